"""SmolLM2 from its GGUF file against logits that transformers computed from the same file.

The fixture is made by tests/parity/make_golden.py.
"""

from __future__ import annotations

import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import lazy_arrays, sources
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.models.load import load_pretrained
from egad_jax.models.model import make_model

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / "fixtures" / "smollm2_golden.json").read_text()
)
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def logits():
  """Our logits of each golden prompt, float32 `[tokens, vocab]`, all from one packed row."""
  pretrained = load_pretrained(GOLDEN["source"], tokenizer_size=49152)
  model = make_model(pretrained.config)
  prompts = [prompt["tokens"] for prompt in GOLDEN["prompts"]]
  lengths = [len(prompt) for prompt in prompts]
  positions = np.concatenate([np.arange(length) for length in lengths])[None]
  segments = np.repeat(np.arange(1, len(prompts) + 1), lengths)[None]

  @jax.jit
  def run(params, tokens):
    hidden, _ = model.apply(params, tokens, jnp.asarray(positions), jnp.asarray(segments))
    return hidden[0] @ model.unembedding(params).T

  params = lazy_arrays.read_all(pretrained.params)
  whole = np.asarray(run(params, np.concatenate(prompts)[None]))
  return np.split(whole, np.cumsum(lengths)[:-1])


def test_fixture_was_made_from_the_installed_file():
  digest = hashlib.sha256(sources.resolve(GOLDEN["source"]).read_bytes()).hexdigest()
  assert digest == GOLDEN["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(GOLDEN["prompts"])))
def test_logits_equal_those_of_transformers(logits, index):
  golden, ours = GOLDEN["prompts"][index], logits[index].astype(np.float64)
  close = lambda got, wanted: np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0)
  close(ours[-1, GOLDEN["vocab_ids"]], golden["last_logits"])
  close(np.log(np.exp(ours).sum(-1)), golden["log_sum_exp"])
  close(np.take_along_axis(ours, np.array(golden["top_ids"]), -1), golden["top_logits"])
  assert np.argmax(ours[-1]) == golden["top_ids"][-1][0]


def test_ids_equal_those_of_transformers():
  tokenizer = Tokenizer.from_source(GOLDEN["source"])
  for golden in GOLDEN["prompts"]:
    assert tokenizer.encode(golden["text"], allow_special=True) == golden["tokens"]
