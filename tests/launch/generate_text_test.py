"""What `launch/generate.py` reads of a prompt and writes of a continuation, by its bytes."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.models import generation
from launch import generate
from tests.data.decoding_test import sentencepiece_backend
from tests.models import tiny_llama as tiny

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(capsysbinary):
  """Runs the command in this process, greedy; returns its stdout."""

  def run_here(model, prompt, count, *arguments):
    values = [f"--model={model}", f"--prompt={prompt}", f"--max_new_tokens={count}"]
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["generate.py", *values, "--temperature=0", *arguments])
    generate.main()
    return capsysbinary.readouterr().out

  yield run_here
  for name in ("model", "prompt", "max_new_tokens", "temperature", "chat", "tokenizer"):
    flags.FLAGS[name].unparse()
  flags.FLAGS.unparse_flags()


@pytest.fixture
def prompts(monkeypatch):
  """The prompts that reach the model from here on; it continues them with "ab"."""
  asked = []

  def continued(model, params, prompts, **_):
    asked.extend(prompts)
    return [tiny.tokenizer().encode("ab").ids]

  return lambda: monkeypatch.setattr(generation, "generate", continued) or asked


def _text(ids) -> bytes:
  return tiny.tokenizer().decode(list(ids), skip_special_tokens=False).encode()


def test_bos_stands_in_front_of_a_prompt_and_twice_nowhere(run, prompts, tmp_path):
  arrays = tiny.tensors()
  template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
  config = {"chat_template": template}
  directory = tiny.make(tmp_path, arrays, bos=True, tokenizer_config=config)
  ids = tiny.tokenizer(bos=True).encode("Entropy guides").ids
  assert ids[0] == 1
  right = _text(tiny.greedy(arrays, ids, 10, stop=[0]))
  assert right != _text(tiny.greedy(arrays, ids[1:], 10, stop=[0]))
  assert run(directory, "Entropy guides", 10) == right
  asked = prompts()
  # The template writes it itself; an empty prompt is the beginning of a text.
  assert run(directory, "Entropy guides", 10, "--chat") == run(directory, "", 10) == b"ab"
  assert asked == [ids, [1]]


def test_gguf_of_llama_3_and_a_tokenizer_from_elsewhere(run, prompts, tmp_path):
  arrays = tiny.tensors(rows=261)
  path = tiny.make_gguf(tmp_path / "a.gguf", arrays)
  ids = tiny.tokenizer(bos=True).encode("Entropy guides").ids
  right = _text(tiny.greedy(arrays, ids, 10, stop=[0]))
  assert run(path, "Entropy guides", 10) == right
  tiny.make_gguf(path, arrays, metadata={"tokenizer.ggml.pre": "later"})
  with pytest.raises(InputError, match=r"tokenizer\.ggml\.pre is 'later'; known are.*--tokenizer"):
    run(path, "Entropy guides", 10)
  directory = tiny.make(tmp_path / "directory", bos=True)
  asked = prompts()
  run(path, "Entropy guides", 10, f"--tokenizer={directory}")
  assert asked == [ids]


def test_the_space_between_prompt_and_continuation_is_kept(run, tmp_path):
  backend = sentencepiece_backend()
  prompt = backend.encode("Hello").ids
  tokens = backend.get_vocab()
  arrays = tiny.tensors(1, rows=len(tokens))
  # A continuation of words: the unembedding of all else points away from the last hidden state.
  hidden = np.linalg.lstsq(arrays["lm_head.weight"], tiny.logits(arrays, prompt)[-1])[0]
  arrays["lm_head.weight"][:] *= 0.01
  arrays["lm_head.weight"][tokens["▁the"]] = hidden
  new = tiny.greedy(arrays, prompt, 3)
  assert new[0] == tokens["▁the"]
  config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None}
  directory = tiny.make(
    tmp_path, arrays, tokenizer_config=config, vocab_size=len(tokens), eos_token_id=2
  )
  backend.save(str(directory / "tokenizer.json"))
  right = backend.decode([*prompt, *new], skip_special_tokens=False).removeprefix("Hello")
  assert right.startswith(" the")
  assert run(directory, "Hello", 3).decode() == right


@pytest.mark.slow
def test_stdout_is_utf_8_whatever_the_locale(tmp_path):
  arrays = tiny.tensors(rows=260)
  # The same two bytes again and again: "é" in UTF-8.
  first, second = tiny.tokenizer().encode("é").ids
  for name in ("self_attn.o_proj", "mlp.down_proj"):
    for layer in range(2):
      arrays[f"model.layers.{layer}.{name}.weight"][:] = 0
  embedding, head = arrays["model.embed_tokens.weight"], arrays["lm_head.weight"]
  norm = arrays["model.norm.weight"]
  head[first] = 9 * embedding[second] / norm
  head[second] = 9 * embedding[first] / norm
  directory = tiny.make(tmp_path, arrays)
  right = _text(tiny.greedy(arrays, tiny.tokenizer().encode("é").ids, 4))
  assert right == "éé".encode()
  arguments = [f"--model={directory}", "--prompt=é".encode(), "--max_new_tokens=4"]
  done = subprocess.run(
    [sys.executable, _ROOT / "launch" / "generate.py", *arguments, "--temperature=0"],
    capture_output=True,
    check=False,
    env=os.environ
    | {"JAX_PLATFORMS": "cpu", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
  )
  assert (done.returncode, done.stdout) == (0, right), done.stderr


def test_a_prompt_that_is_no_text_is_refused(run, tmp_path):
  directory = tiny.make(tmp_path)
  with pytest.raises(InputError, match="--prompt must be valid UTF-8"):
    run(directory, os.fsdecode(b"\xff\xfe"), 3)
  assert Tokenizer.from_directory(directory).vocab_size == 260
