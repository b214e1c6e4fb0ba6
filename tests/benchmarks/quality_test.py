"""Tests of benchmarks.quality: its losses, its batches, and the tables of its page."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.quality import tables
from benchmarks.quality.lines import read
from benchmarks.quality.together import distillation_loss
from benchmarks.quality.variant import Variant, read_variants, stacked
from egad_jax.errors import InputError

_ROOT = pathlib.Path(__file__).parents[2]
_RESULTS = sorted((_ROOT / "benchmarks/quality/results").glob("*.jsonl"))
_BATCHES = sorted((_ROOT / "benchmarks/quality/batches").glob("*.jsonl"))


def _gradients(match: float, temperature: float) -> np.ndarray:
  rng = np.random.default_rng(0)
  student, teacher = (rng.normal(size=(6, 11)).astype(np.float32) * 2 for _ in range(2))
  warm = jnp.full(6, temperature, jnp.float32)
  loss = lambda x: jnp.sum(distillation_loss(x, teacher, warm, match))
  return np.asarray(jax.jit(jax.grad(loss))(student))


def test_shape_only_keeps_the_norm_and_weight_only_the_direction():
  plain, squared = _gradients(0, 1.0), _gradients(0, 1.5)
  shape, weight = _gradients(1, 1.5), _gradients(2, 1.5)
  norm = lambda x: np.linalg.norm(x, axis=-1)
  unit = lambda x: x / norm(x)[:, None]
  np.testing.assert_allclose(norm(shape), norm(plain), rtol=1e-5)
  np.testing.assert_allclose(unit(shape), unit(squared), atol=1e-6)
  np.testing.assert_allclose(norm(weight), norm(squared), rtol=1e-5)
  np.testing.assert_allclose(unit(weight), unit(plain), atol=1e-6)


def test_neutral_values_change_nothing():
  h, x = jnp.linspace(0, 1, 5), jnp.float32(0.3)
  np.testing.assert_array_equal(Variant().temperature(h, x), np.ones(5))
  np.testing.assert_allclose(Variant().weight(h, x), np.ones(5), atol=1e-6)
  annealed = Variant(strength=0.5, start=0.25, end=0.75, anneal=0.6)
  np.testing.assert_array_equal(annealed.temperature(h, jnp.float32(0.6)), np.ones(5))
  np.testing.assert_allclose(annealed.weight(h, jnp.float32(0.7)), np.ones(5), atol=1e-6)
  np.testing.assert_allclose(
    annealed.temperature(h, 0.0), np.exp(np.linspace(-0.5, 0.5, 5)), rtol=1e-6
  )


@pytest.mark.parametrize("path", _BATCHES, ids=lambda path: path.stem)
def test_batches_can_be_read(path):
  variants = read_variants(path)
  assert stacked(variants).lr.shape == (len(variants),)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"name": "a", "lambda": 1}', "no hyper-parameters lambda; there are lr"),
    ('{"lr": 1}', "needs a name of its own; got None"),
    ('{"name": "a"}\n{"name": "a"}', "needs a name of its own; got 'a'"),
    ("{", "cannot be read as JSON lines"),
  ],
)
def test_bad_batches_are_refused(tmp_path, text, message):
  path = tmp_path / "batch.jsonl"
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    read_variants(path)


@pytest.mark.parametrize("path", _RESULTS, ids=lambda path: path.stem)
def test_the_page_has_the_tables_of_the_results(path):
  assert tables.of_file(path) in (_ROOT / "docs/results.md").read_text()


def test_the_page_has_the_table_of_cost():
  assert tables.of_cost() in (_ROOT / "docs/results.md").read_text()


def test_rows_have_the_mean_that_is_reported():
  for line in read(_ROOT / "benchmarks/quality/results/h200_smollm2.jsonl"):
    for split in ("validation", "held", "ood"):
      # The mean over rows of equal length is the mean over tokens.
      assert np.mean(line[split]["rows"]) == pytest.approx(line[split]["forward_kl"], abs=1e-4)
