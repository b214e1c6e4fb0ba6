"""The head's budget of error: 0.3 % of the gradients of bfloat16 inputs, against float64.

Logits have a standard deviation of 4; a student near its teacher is the hard case, because the
gradient is then a difference of close numbers. No cross-entropy: its gradient would hide that.
"""

from __future__ import annotations

import jax
import pytest

from benchmarks.head_inputs import Sizes, random_inputs, reference_gradients, relative_error
from benchmarks.heads import Settings, contenders, with_gradients

_BUDGET = 0.003
_SIZES = Sizes(tokens=64, vocab=2048, teacher_dim=128, student_dim=64)
_SETTINGS = Settings(temperature=2.0, ce_weight=0.0, chunk=32)


def _errors(key: str, difference: float | None) -> list[float]:
  contender = contenders()[key]
  inputs = random_inputs(_SIZES, difference=difference)
  # XLA for CPUs may drop the roundings to bfloat16 that other devices make; not with this.
  options = {"xla_allow_excess_precision": False}
  compute = jax.jit(with_gradients(contender, _SETTINGS), compiler_options=options)
  expected = reference_gradients(inputs, contender.loss, _SETTINGS)
  return [relative_error(*pair) for pair in zip(compute(inputs)[1], expected, strict=True)]


@pytest.mark.parametrize("difference", [None, 0.1], ids=["independent", "close"])
@pytest.mark.parametrize("key", ["egad_lean", "kd"])
def test_gradient_error_is_within_budget(key, difference):
  errors = _errors(key, difference)
  assert max(errors) <= _BUDGET
  # The gradient of the logits is rounded before its two products: less would mean it was not.
  assert errors[1] > 0.0018


@pytest.mark.parametrize("difference", [None, 0.1], ids=["independent", "close"])
def test_logits_in_bfloat16_would_break_the_budget(difference):
  assert min(_errors("dense_bf16", difference)) > _BUDGET
