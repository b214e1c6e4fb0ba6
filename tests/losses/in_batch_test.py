from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses.in_batch import in_batch_inputs, in_batch_metrics


def test_what_the_mask_hides_is_gone(batch):
  batch = jax.tree.map(np.asarray, batch)
  poison = lambda z: np.where(batch.mask[..., None], z, np.nan).astype(jnp.bfloat16)
  where = np.arange(11) < 9
  student, teacher, labels, mask = in_batch_inputs(
    poison(batch.student), poison(batch.teacher), batch.labels, batch.mask.astype(int), where
  )
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, batch.mask)
  np.testing.assert_array_equal(labels, batch.labels)
  for logits, before in ((student, batch.student), (teacher, batch.teacher)):
    assert logits.dtype == jnp.float32
    rounded = before.astype(jnp.bfloat16).astype(np.float32)
    expected = np.where(batch.mask[..., None], rounded, 0)
    np.testing.assert_array_equal(np.asarray(logits)[..., :9], expected[..., :9])
    np.testing.assert_array_equal(np.asarray(logits)[..., 9:], -np.inf)


def test_no_gradient_to_the_teacher_or_through_the_mask(batch):
  def total(student, teacher):
    inputs = in_batch_inputs(student, teacher, batch.labels, batch.mask)
    return jnp.sum(inputs[0] + inputs[1])

  to_student, to_teacher = jax.jit(jax.grad(total, argnums=(0, 1)))(batch.student, batch.teacher)
  np.testing.assert_array_equal(np.asarray(to_student)[..., 0], batch.mask)
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
  student, teacher, labels, mask = map(np.asarray, batch)
  with pytest.raises(ValueError, match="same shape"):
    in_batch_inputs(student[..., :9], teacher, labels, mask)
  with pytest.raises(ValueError, match="one entry per token"):
    in_batch_inputs(student, teacher, labels, mask[:2])
  with pytest.raises(TypeError, match="labels must be integers"):
    in_batch_inputs(student, teacher, labels.astype(float), mask)
  with pytest.raises(ValueError, match="one entry per vocabulary id"):
    in_batch_inputs(student, teacher, labels, mask, jnp.ones(3))


# The losses that read the teacher only through the whole vocabulary or its tail.
SPARSE = {
  "egad": functools.partial(losses.egad_loss, progress=0.3),
  "se_kd": losses.se_kd_loss,
  "adakd": lambda *b: losses.adakd_loss(*b, state=losses.FocusState.init(), elapsed=0.5),
  "taid": lambda *b: losses.taid_loss(*b, state=losses.InterpolationState.init(), elapsed=0.5),
}


@pytest.mark.short_form(2)
@pytest.mark.parametrize("name", SPARSE)
def test_a_sparse_teacher_of_all_entries_is_the_dense_one(name, batch):
  student, teacher, labels, mask = map(np.asarray, batch)
  function = jax.jit(jax.value_and_grad(lambda z, t: SPARSE[name](z, t, labels, mask)[0]))
  expected, expected_gradient = function(student, teacher)
  reduce = jax.jit(losses.top_k_teacher, static_argnums=1)
  whole = jax.tree.map(np.asarray, reduce(teacher, teacher.shape[-1]))
  loss, gradient = function(student, whole)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
  per_token = lambda x: mask.reshape(mask.shape + (1,) * (x.ndim - 2))
  poison = lambda x: np.where(per_token(x), x, np.float32(np.nan))
  values = {field: poison(x) for field, x in whole._asdict().items() if field != "ids"}
  poisoned = whole._replace(ids=np.where(mask[..., None], whole.ids, np.int32(-7)), **values)
  again = function(poison(student), poisoned)
  assert again[0] == loss
  np.testing.assert_array_equal(again[1], gradient)


@pytest.mark.parametrize("loss", [losses.ea_kd_loss, losses.explicit_knowledge_loss])
def test_methods_that_need_the_whole_vocabulary_say_so(loss, batch):
  sparse = losses.top_k_teacher(batch.teacher, 3)
  with pytest.raises(TypeError, match="needs teacher_logits over the whole vocabulary, got a TopK"):
    loss(batch.student, sparse, batch.labels, batch.mask)
