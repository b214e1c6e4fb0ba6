"""Many students of one teacher in one program, which computes the teacher once a batch."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality.variant import Variant
from egad_jax.models.load import Pretrained
from egad_jax.models.model import Model, make_model
from egad_jax.models.student import evenly_spaced, student_from_layers

WARMUP_STEPS, FINAL_FRACTION, CLIP_NORM, WEIGHT_DECAY = 30, 0.1, 1.0, 0.01
_ADAM = optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8)


class Sizes(NamedTuple):
  """Rows of a batch, tokens of a row, and tokens whose logits exist at once."""

  rows: int
  seq_len: int
  chunk: int

  @property
  def tokens(self) -> int:
    """The number of tokens in a batch."""
    return self.rows * self.seq_len


class Taught(NamedTuple):
  """The teacher's part of a batch.

  Attributes:
    hidden: final hidden states, [tokens, dim].
    taps: hidden states after the layers of the boundary pairs, [taps, tokens, dim].
    unembedding: [vocab, dim].
    entropy: float32 [tokens], nats.
    h: rank of the entropy in the batch, float32 [tokens] in (0, 1).
  """

  hidden: jax.Array
  taps: jax.Array
  unembedding: jax.Array
  entropy: jax.Array
  h: jax.Array


def _logits(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
  hidden = hidden.astype(jnp.bfloat16)
  return jnp.einsum("nd,vd->nv", hidden, unembedding, preferred_element_type=jnp.float32)


def _cosine_distance(a: jax.Array, b: jax.Array) -> jax.Array:
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
  return 1 - jnp.sum(a * b, axis=-1) / (norms + 1e-6)


def _gradient_norm(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Returns the norm of the gradient of KL(p || q) with respect to q's logits, per token."""
  return jnp.sqrt(jnp.sum((jnp.exp(log_q) - jnp.exp(log_p)) ** 2, axis=-1))


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def distillation_loss(
  student_logits: jax.Array, teacher_logits: jax.Array, temperature: jax.Array, match: jax.Array
) -> jax.Array:
  """The forward KL at each token's temperature, with one of three compensations.

  Args:
    student_logits: float32 [tokens, vocab].
    teacher_logits: float32 [tokens, vocab].
    temperature: [tokens].
    match: scalar, see `Variant`.

  Returns:
    [tokens]. The factors of match 1 and 2 carry no gradient and are clipped to [1/4, 4].
  """
  warm = temperature[:, None]
  log_p, log_q = jax.nn.log_softmax(teacher_logits), jax.nn.log_softmax(student_logits)
  warm_p = jax.nn.log_softmax(teacher_logits / warm)
  warm_q = jax.nn.log_softmax(student_logits / warm)
  squared = temperature**2 * _kl(warm_p, warm_q)
  norm = temperature * _gradient_norm(warm_q, warm_p)
  ratio = _gradient_norm(log_q, log_p) / jnp.maximum(norm, 1e-9)
  ratio = jax.lax.stop_gradient(jnp.clip(ratio, 0.25, 4.0))
  plain = _kl(log_p, log_q)
  return jnp.where(match == 1, ratio * squared, jnp.where(match == 2, plain / ratio, squared))


class Together:
  """The programs that train and evaluate a batch of students.

  Args:
    read: the teacher.
    sizes: sizes of a batch.
    num_layers: layers of a student, evenly spaced ones of the teacher's.
    variants: hyper-parameters, each [students].
    base_lr: the learning rate that `Variant.lr` multiplies.
    taps: whether any student has a loss on boundary pairs.
  """

  def __init__(
    self,
    read: Pretrained,
    sizes: Sizes,
    num_layers: int,
    variants: Variant,
    *,
    base_lr: float,
    taps: bool,
  ):
    assert read.params is not None
    self.sizes, self._variants, self._base_lr = sizes, variants, base_lr
    depth = read.config.num_layers
    kept = list(evenly_spaced(depth, num_layers))
    config, self._student_params = student_from_layers(read.config, read.params, kept)
    self._teacher: Model = make_model(read.config, dtype=jnp.bfloat16)
    self._student: Model = make_model(config, dtype=jnp.bfloat16)
    self.teacher_params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), read.params)
    # Student layer j, from 1, stands for the teacher's layers up to the next kept one.
    self._student_taps = tuple(range(1, num_layers + 1)) if taps else ()
    self._teacher_taps = (*kept[1:], depth) if taps else ()
    self._dim = read.config.dim
    self.step = jax.jit(self._step, donate_argnums=0)
    self.evaluate = jax.jit(self._evaluate)
    self.entropy = jax.jit(lambda params, rows: self._teach(params, rows[:, :-1]).entropy)

  def init(self) -> Any:
    """Returns the first state of all students: parameters and optimizer, each [students, ...]."""
    student = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self._student_params)
    params = {"student": student, "projector": jnp.eye(self._dim, dtype=jnp.float32)}
    students = len(self._variants.lr)
    copies = lambda x: jnp.broadcast_to(x, (students, *jnp.shape(x)))
    return jax.tree.map(copies, (params, _ADAM.init(params)))

  def _hidden(self, model: Model, params: Any, ids: jax.Array, taps: tuple[int, ...]):
    shape = (self.sizes.rows, self.sizes.seq_len)
    positions = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    segments = jnp.ones(shape, jnp.int32)
    hidden, tapped = model.apply(params, ids.astype(jnp.int32), positions, segments, taps=taps)
    unembedding = model.unembedding(params).astype(jnp.bfloat16)
    width, tokens = hidden.shape[-1], self.sizes.tokens
    return hidden.reshape(tokens, width), tapped.reshape(len(taps), tokens, width), unembedding

  def _chunks(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    count = self.sizes.tokens // self.sizes.chunk
    return tuple(x.reshape(count, self.sizes.chunk, *x.shape[1:]) for x in arrays)

  def _teach(self, params: Any, ids: jax.Array) -> Taught:
    hidden, taps, unembedding = self._hidden(self._teacher, params, ids, self._teacher_taps)

    def chunk(_, rows):
      log_p = jax.nn.log_softmax(_logits(rows[0], unembedding))
      return None, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    entropy = jax.lax.scan(chunk, None, self._chunks(hidden))[1].reshape(-1)
    rank = (jnp.argsort(jnp.argsort(entropy)) + 0.5) / len(entropy)
    return Taught(hidden, taps, unembedding, entropy, rank.astype(jnp.float32))

  def _loss(
    self, params: Any, ids, labels, taught: Taught, noise, variant: Variant, x: jax.Array
  ) -> jax.Array:
    hidden, taps, unembedding = self._hidden(
      self._student, params["student"], ids, self._student_taps
    )
    temperature, weight = variant.temperature(taught.h, x), variant.weight(taught.h, x)

    @jax.checkpoint
    def chunk(total, rows):
      of_student, of_teacher, warm, weights, targets = rows
      student_logits = _logits(of_student, unembedding)
      teacher_logits = _logits(of_teacher, taught.unembedding)
      loss = distillation_loss(student_logits, teacher_logits, warm, variant.match)
      log_q = jax.nn.log_softmax(student_logits)
      cross_entropy = -jnp.take_along_axis(log_q, targets[:, None], 1)[:, 0]
      return total + jnp.sum(variant.kd * weights * loss + variant.ce * cross_entropy), None

    rows = self._chunks(hidden, taught.hidden, temperature, weight, labels)
    total = jax.lax.scan(chunk, jnp.float32(0), rows)[0] / self.sizes.tokens

    def mean(distance, tokens):
      gate = variant.gate(tokens, taught.h, noise)
      return jnp.sum(distance * gate) / jnp.sum(gate)

    projected = hidden.astype(jnp.float32) @ params["projector"]
    last = mean(_cosine_distance(projected, taught.hidden), variant.last_tokens)
    total += variant.last * last
    if self._student_taps:
      inner = jnp.mean(_cosine_distance(taps, taught.taps), axis=0)
      total += variant.inner * mean(inner, variant.inner_tokens)
    return total

  def _step(self, states, teacher_params, rows, noise, x, warmup):
    """Takes one step of every student.

    Args:
      states: of all students, as `init` gives them.
      teacher_params: the teacher's parameters.
      rows: token ids, [rows, seq_len + 1].
      noise: uniform in [0, 1], [tokens].
      x: scalar, share of the training that is over.
      warmup: scalar, factor on the learning rate.

    Returns:
      (states, (losses [students], whether the gradient was clipped [students])).
    """
    ids, labels = rows[:, :-1], rows[:, 1:].reshape(-1).astype(jnp.int32)
    taught = self._teach(teacher_params, ids)

    def one(state_and_variant):
      (params, optimizer), variant = state_and_variant
      objective = functools.partial(
        self._loss, ids=ids, labels=labels, taught=taught, noise=noise, variant=variant, x=x
      )
      loss, gradient = jax.value_and_grad(objective)(params)
      norm = optax.tree.norm(gradient)
      gradient = jax.tree.map(lambda g: g / jnp.maximum(norm / CLIP_NORM, 1.0), gradient)
      updates, optimizer = _ADAM.update(gradient, optimizer, params)
      cosine = 0.5 * (1 + jnp.cos(jnp.pi * x))
      lr = self._base_lr * variant.lr * warmup * (FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine)
      decayed = lambda p, u: p - lr * (u + WEIGHT_DECAY * p * (p.ndim > 1))
      return (jax.tree.map(decayed, params, updates), optimizer), (loss, norm > CLIP_NORM)

    return jax.lax.map(one, (states, self._variants))

  def _evaluate(self, states, teacher_params, rows, edges):
    """Sums over the tokens of each row; see `scores` for their names.

    Returns:
      (the students' {name: [students, rows]}, the teacher's {"entropy": [rows]}).
    """
    ids, labels = rows[:, :-1], rows[:, 1:].reshape(-1).astype(jnp.int32)
    taught = self._teach(teacher_params, ids)
    quartile = jnp.searchsorted(edges, taught.entropy)
    by_row = lambda values: jnp.sum(values.reshape(self.sizes.rows, -1), axis=1)

    def one(state):
      hidden, _, unembedding = self._hidden(self._student, state[0]["student"], ids, ())

      def chunk(_, rows):
        of_student, of_teacher, targets = rows
        log_p = jax.nn.log_softmax(_logits(of_teacher, taught.unembedding))
        log_q = jax.nn.log_softmax(_logits(of_student, unembedding))
        cross_entropy = -jnp.take_along_axis(log_q, targets[:, None], 1)[:, 0]
        agreement = jnp.argmax(log_p, axis=-1) == jnp.argmax(log_q, axis=-1)
        entropy = -jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
        return None, (_kl(log_p, log_q), cross_entropy, agreement.astype(jnp.float32), entropy)

      names = ("forward_kl", "cross_entropy", "agreement", "student_entropy")
      parts = jax.lax.scan(chunk, None, self._chunks(hidden, taught.hidden, labels))[1]
      values = {name: part.reshape(-1) for name, part in zip(names, parts, strict=True)}
      quarters = {f"forward_kl_q{i + 1}": values["forward_kl"] * (quartile == i) for i in range(4)}
      return jax.tree.map(by_row, values | quarters)

    counts = {f"tokens_q{i + 1}": by_row(quartile == i) for i in range(4)}
    return jax.lax.map(one, states), counts | {"teacher_entropy": by_row(taught.entropy)}

  def scores(self, states: Any, rows: np.ndarray, edges: jax.Array) -> list[dict[str, Any]]:
    """Evaluates every student on `rows`, of which a last incomplete batch is left out.

    Args:
      states: of all students.
      rows: token ids, [n, seq_len + 1].
      edges: quartiles of the teacher's entropy, [3].

    Returns:
      For each student means over tokens in nats, with forward KL by quartile of the teacher's
      entropy, and "rows": the mean forward KL of each row.
    """
    students, counts = [], []
    for i in range(0, len(rows) - self.sizes.rows + 1, self.sizes.rows):
      batch = jnp.asarray(rows[i : i + self.sizes.rows])
      one, count = jax.device_get(self.evaluate(states, self.teacher_params, batch, edges))
      students.append(one)
      counts.append(count)
    sums = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *students)
    count = jax.tree.map(lambda *parts: float(np.concatenate(parts).sum()), *counts)
    results = []
    for m in range(len(self._variants.lr)):
      of_student = {name: values[m] for name, values in sums.items()}
      tokens = of_student["forward_kl"].size * self.sizes.seq_len
      result: dict[str, Any] = {"teacher_entropy": count["teacher_entropy"] / tokens}
      for name, values in of_student.items():
        whole = count["tokens_" + name[-2:]] if "_q" in name else tokens
        result[name] = round(float(values.sum()) / max(whole, 1), 5)
      per_row = of_student["forward_kl"] / self.sizes.seq_len
      result["rows"] = [round(float(value), 4) for value in per_row]
      results.append(result)
    return results
