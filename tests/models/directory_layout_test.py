"""Tests of telling which files of a directory hold the model."""

from __future__ import annotations

import json

import pytest

from egad_jax.errors import InputError
from egad_jax.models.directory_layout import INDEX, SINGLE, check_layout, other_weights


def fill(directory, *names):
  for name in names:
    (directory / name).write_text("{}")


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ((), r"config\.json: no such file; expected a Hugging Face directory"),
    (("config.json",), f"expected {SINGLE} or {INDEX}; it has neither.$"),
    ((SINGLE,), r"config\.json: no such file"),
    (("config.json", "pytorch_model.bin"), "neither. It has pytorch_model.bin. Load it with trans"),
    (("config.json", "pytorch_model-00001-of-00002.bin"), "save it as safetensors"),
    (("config.json", "tf_model.h5", "flax_model.msgpack"), "flax_model.msgpack, tf_model.h5. Load"),
    (("config.json", "a.Q4_K_M.gguf"), "name the file itself: one of a.Q4_K_M.gguf"),
    (("b.gguf",), "config.json: no such file.*name the file itself: one of b.gguf"),
    (("config.json", "model-00001-of-00002.safetensors"), "copy the index, or the rest"),
    (("params.json", "consolidated.00.pth"), "the layout of Meta's or Mistral's own programs"),
    (("params.json", "consolidated.safetensors"), "the layout of Meta's or Mistral's own"),
    (("adapter_config.json", "adapter_model.safetensors"), "a LoRA adapter .*merge_and_unload"),
    # transformers applies an adapter that lies beside a whole model.
    (("config.json", SINGLE, "adapter_config.json"), "a LoRA adapter"),
    (("config.json", "adapter_model.bin"), "a LoRA adapter"),
    (("config.json", SINGLE, INDEX), f"two sets of weights: {SINGLE}, and the files of {INDEX}"),
  ],
)
def test_what_cannot_be_read_comes_with_help(tmp_path, names, message):
  fill(tmp_path, *names)
  with pytest.raises(InputError, match=message):
    check_layout(tmp_path)


@pytest.mark.parametrize("files", [(SINGLE,), (INDEX,), (SINGLE, "consolidated.safetensors")])
def test_whole_directories(tmp_path, files):
  fill(tmp_path, "config.json", *files)
  check_layout(tmp_path)


def test_an_index_of_the_one_file_is_no_second_set(tmp_path):
  fill(tmp_path, "config.json", SINGLE)
  (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": SINGLE}}))
  check_layout(tmp_path)
  (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
  with pytest.raises(InputError, match="two sets of weights"):
    check_layout(tmp_path)


def test_other_weights_are_found_and_other_files_are_not(tmp_path):
  others = ["consolidated.safetensors", "model.gguf", "pytorch_model.bin"]
  fill(tmp_path, *others, "training_args.bin", "optimizer.pt", "tokenizer.json", "README.md", "a")
  fill(tmp_path, SINGLE, "scheduler.pt", "rng_state_0.pth")
  assert other_weights(tmp_path, {SINGLE}) == others
