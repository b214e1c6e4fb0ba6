"""One student's hyper-parameters, and the loss weights, temperatures and gates they give."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egad_jax.errors import InputError


class Variant(NamedTuple):
  """Hyper-parameters of one student; as numbers, so that one program trains all students.

  Below, x is the share of the training that is over, h the rank of a token's teacher entropy in its
  batch, in [0, 1], and a(x) = max(0, 1 - x / anneal), or 1 if anneal is 0.

  Attributes:
    lr: peak learning rate, as a multiple of the batch's base learning rate.
    base: T = (base * exp(strength * (2 h - 1))) ** a(x).
    strength: see `base`; below 0 confident tokens are hot, above 0 uncertain ones.
    match: 0: the loss is T^2 KL_T. 1 (shape only): KL_T scaled to the gradient norm of KL_1.
      2 (weight only): KL_1 scaled to the gradient norm of T^2 KL_T.
    anneal: share of the training after which temperatures and weights are neutral; 0: never.
    start: curriculum weight 2 ((1 - phi)(1 - h) + phi h), phi = 1/2 + (start + (end - start) x -
      1/2) a(x).
    end: see `start`.
    last: weight of 1 - cosine of the last hidden states, through a trained projector.
    last_tokens: tokens of that loss; 0 all, 1 the hard half, 2 the easy half, 3 a random half.
    inner: weight of the mean over layers of 1 - cosine of boundary pairs: the output of a student's
      layer with the teacher's input to the next layer that the student kept.
    inner_tokens: tokens of that loss, as for `last_tokens`.
    ce: weight of the cross-entropy with the labels.
    kd: weight of the distillation loss.
  """

  lr: Any = 1.0
  base: Any = 1.0
  strength: Any = 0.0
  match: Any = 0.0
  anneal: Any = 0.0
  start: Any = 0.5
  end: Any = 0.5
  last: Any = 0.0
  last_tokens: Any = 0.0
  inner: Any = 0.0
  inner_tokens: Any = 0.0
  ce: Any = 0.0
  kd: Any = 1.0

  def annealing(self, x: jax.Array) -> jax.Array:
    """Returns a(x), scalar."""
    falling = jnp.maximum(0.0, 1 - x / jnp.maximum(self.anneal, 1e-6))
    return jnp.where(self.anneal > 0, falling, 1.0)

  def temperature(self, h: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the temperatures, [tokens]."""
    full = self.base * jnp.exp(self.strength * (2 * h - 1))
    return jnp.clip(full ** self.annealing(x), 0.1, 10.0)

  def weight(self, h: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the curriculum's weights, [tokens], of mean 1 over h uniform in [0, 1]."""
    phi = 0.5 + (self.start + (self.end - self.start) * x - 0.5) * self.annealing(x)
    return 2 * ((1 - phi) * (1 - h) + phi * h)

  def gate(self, tokens: jax.Array, h: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns which tokens learn from features, bool [tokens].

    Args:
      tokens: `last_tokens` or `inner_tokens`.
      h: the ranks, [tokens].
      noise: uniform in [0, 1], [tokens]; the same for all students of a batch.
    """
    some = jnp.where(tokens == 1, h >= 0.5, jnp.where(tokens == 2, h < 0.5, noise < 0.5))
    return (tokens == 0) | some


def read_variants(path: pathlib.Path) -> dict[str, dict[str, float]]:
  """Reads a batch of students: a JSON line for each, {"name": ..., hyper-parameter: value}.

  Raises:
    InputError: the file cannot be read, a name is missing or double, or a hyper-parameter unknown.
  """
  try:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
  except (OSError, ValueError) as error:
    raise InputError(f"--batch: {path} cannot be read as JSON lines: {error}") from error
  variants: dict[str, dict[str, float]] = {}
  for line in lines:
    name = line.pop("name", None)
    if not name or name in variants:
      raise InputError(f"--batch: {path}: each line needs a name of its own; got {name!r}.")
    if unknown := set(line) - set(Variant._fields):
      raise InputError(
        f"--batch: {path}, {name}: no hyper-parameters {', '.join(sorted(unknown))}; there are "
        f"{', '.join(Variant._fields)}."
      )
    variants[name] = line
  return variants


def stacked(variants: dict[str, dict[str, float]]) -> Variant:
  """Returns the hyper-parameters of all students, each float32 [students]."""
  rows = [Variant(**values) for values in variants.values()]
  columns = zip(*rows, strict=True)
  return Variant(*(jnp.asarray(column, jnp.float32) for column in columns))
