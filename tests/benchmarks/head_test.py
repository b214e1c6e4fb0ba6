"""The contenders of the head's benchmark compute one thing; what is missing is said."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import head_measured, head_rivals
from benchmarks.head_inputs import (
  Sizes,
  random_inputs,
  reference_gradients,
  relative_error,
)
from benchmarks.heads import Contender, Settings, contenders, with_gradients

_SIZES = Sizes(tokens=24, vocab=37, teacher_dim=12, student_dim=8)
_SETTINGS = Settings(temperature=1.7, ce_weight=0.3, chunk=8)
_EXACT = [key for key in contenders() if key != "dense_bf16"]


@pytest.fixture(scope="module")
def inputs():
  return random_inputs(_SIZES, dtype=jnp.float32)


@pytest.fixture(scope="module")
def references(inputs):
  """Per loss, what its dense baseline answers and the gradients in float64."""
  return {
    loss: (
      jax.jit(with_gradients(contenders()[baseline], _SETTINGS))(inputs)[0],
      reference_gradients(inputs, loss, _SETTINGS),
    )
    for loss, baseline in (("egad", "dense_egad"), ("kd", "dense"))
  }


@pytest.mark.slow
@pytest.mark.parametrize("key", _EXACT)
def test_contenders_agree(key, inputs, references):
  contender = contenders()[key]
  expected, exact_gradients = references[contender.loss]
  loss, gradients = jax.jit(with_gradients(contender, _SETTINGS))(inputs)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for found, right in zip(gradients, exact_gradients, strict=True):
    assert relative_error(found, right) < 1e-5


def test_teacher_differs_from_student_by_what_is_asked():
  sizes = Sizes(tokens=64, vocab=256, teacher_dim=64, student_dim=32)
  inputs = random_inputs(sizes, difference=0.1, dtype=jnp.float32)
  inputs = jax.tree.map(np.asarray, inputs)
  student = inputs.student_hidden @ inputs.student_unembedding.T
  teacher = inputs.teacher_hidden @ inputs.teacher_unembedding.T
  assert float(np.std(student)) == pytest.approx(4, rel=0.1)
  assert float(np.std(teacher - student)) == pytest.approx(0.1, rel=0.1)


def test_what_is_not_installed_has_a_row():
  absent = head_rivals.Rival("Absent", "no_such_package", lambda settings: None)
  ours = {"kd": contenders()["kd"]}
  text = head_measured.measured(
    ours, {"absent": absent}, _SIZES, _SETTINGS, rounds=1, report=lambda line: None
  )
  assert "| egad_jax, plain KD | 1.00 |" in text
  assert f"| Absent | {head_rivals.NOT_INSTALLED} |" in text
  text = head_measured.errors(ours, {"absent": absent}, _SIZES, _SETTINGS)
  assert f"| Absent | {head_rivals.NOT_INSTALLED} |" in text


def test_scan_says_what_it_cannot_cut(inputs):
  contender: Contender = contenders()["scan"]
  with pytest.raises(ValueError, match="needs 7 to divide the 24 tokens"):
    with_gradients(contender, _SETTINGS._replace(chunk=7))(inputs)
