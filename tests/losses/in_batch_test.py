from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses.in_batch import in_batch_inputs, in_batch_metrics
from egad_jax.losses.top_k import top_k_teacher


def test_what_the_mask_hides_is_gone(batch):
  poison = lambda z: jnp.where(batch.mask[..., None], z, jnp.nan).astype(jnp.bfloat16)
  where = jnp.arange(11) < 9
  student, teacher, labels, mask = in_batch_inputs(
    poison(batch.student), poison(batch.teacher), batch.labels, batch.mask.astype(int), where
  )
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, batch.mask)
  np.testing.assert_array_equal(labels, batch.labels)
  for logits, before in ((student, batch.student), (teacher, batch.teacher)):
    assert logits.dtype == jnp.float32
    expected = jnp.where(batch.mask[..., None], before.astype(jnp.bfloat16), 0)
    np.testing.assert_array_equal(logits[..., :9], expected[..., :9].astype(jnp.float32))
    np.testing.assert_array_equal(logits[..., 9:], -jnp.inf)


def test_no_gradient_to_the_teacher_or_through_the_mask(batch):
  def total(student, teacher):
    inputs = in_batch_inputs(student, teacher, batch.labels, batch.mask)
    return jnp.sum(inputs[0] + inputs[1])

  to_student, to_teacher = jax.grad(total, argnums=(0, 1))(batch.student, batch.teacher)
  np.testing.assert_array_equal(to_student[..., 0], batch.mask)
  np.testing.assert_array_equal(to_teacher, 0)


def test_metrics_are_means_over_the_mask():
  names = ("distillation_loss", "cross_entropy", "teacher_entropy", "student_entropy")
  mask = jnp.array([True, True, False])
  stats = {
    name: jnp.array([k, k + 2.0, jnp.nan])
    for k, name in enumerate((*names, "temperature", "weight", "hard"))
  }
  metrics = in_batch_metrics(stats, mask)
  expected = (*names, "temperature_mean", "weight_mean", "hard_fraction")
  assert {name: float(value) for name, value in metrics.items()} == {
    name: k + 1.0 for k, name in enumerate(expected)
  }


def test_misuse(batch):
  student, teacher, labels, mask = batch
  with pytest.raises(ValueError, match="same shape"):
    in_batch_inputs(student[..., :9], teacher, labels, mask)
  with pytest.raises(ValueError, match="one entry per token"):
    in_batch_inputs(student, teacher, labels, mask[:2])
  with pytest.raises(TypeError, match="labels must be integers"):
    in_batch_inputs(student, teacher, labels.astype(float), mask)
  with pytest.raises(ValueError, match="one entry per vocabulary id"):
    in_batch_inputs(student, teacher, labels, mask, jnp.ones(3))
  with pytest.raises(TypeError, match="an in-batch loss needs teacher_logits over the whole vocab"):
    in_batch_inputs(student, top_k_teacher(teacher, 3), labels, mask)
