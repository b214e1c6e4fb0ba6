"""SE-KD and EA-KD as methods; the formulas are in `losses.entropy_weighting`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.losses.entropy_weighting import (
  check_ea_kd,
  pair_weights,
  student_entropy_of,
  weighted_terms,
)
from egad_jax.losses.log_divergences import LogDivergence, make_divergence
from egad_jax.losses.routing import check_fraction
from egad_jax.losses.temperature import check_temperature
from egad_jax.losses.terms import check_ce_weight, log_pair
from egad_jax.losses.top_k import check_dense
from egad_jax.methods.method import Context, Method, State, TokenLoss, entropy_only
from egad_jax.types import Stats


def make_se_kd(
  *,
  fraction: float = 0.2,
  divergence: str | LogDivergence = "forward_kl",
  divergence_options: Mapping[str, Any] | None = None,
  temperature: float = 1.0,
  ce_weight: float = 0.0,
  half_life: float = 1e6,
) -> Method:
  """Makes SE-KD (arXiv 2602.01395): T^2 D / fraction on the tokens of highest student entropy.

  The paper keeps the top fraction of each sequence (`se_kd_loss`); here the running distribution of
  student entropy (the method's own state) decides which tokens are kept, see
  `EntropyDistribution.top_share`. A token's loss then depends on no other token of its batch, and a
  kept token has the same weight in every batch: the stat `hard` is the share of the token that is
  kept, almost always 0 or 1, and the stat `weight` is `hard / fraction`.

  Args:
    fraction: share of the tokens to keep, in (0, 1]; the paper uses 0.2.
    divergence: a key of `DIVERGENCES` or a function, see `make_divergence`; the paper uses forward
      KL.
    divergence_options: hyper-parameters of the divergence; None for its defaults.
    temperature: T of the divergence, > 0; the paper uses 1. Entropies are at T = 1.
    ce_weight: factor, >= 0, on the cross-entropy with the labels, which is over all tokens; 0, the
      paper's value, leaves it out of the loss.
    half_life: tokens after which a token counts half in either running distribution; > 0.

  Raises:
    ValueError: an argument is out of range, or a name is unknown.

  >>> import jax.numpy as jnp
  >>> method = make_se_kd(fraction=0.5)
  >>> entropy, mask = jnp.array([0.1, 0.5, 1.0, 1.3]), jnp.ones(4, bool)
  >>> stats = {"teacher_entropy": entropy, "student_entropy": entropy}
  >>> state = method.observe(method.init_state(), stats, mask)
  >>> logits = jnp.array([[1.0, 1.0, 1.0], [9.0, 0.0, 0.0]])  # Entropies 1.1 and 0.
  >>> context = Context(state, jnp.float32(0), jnp.float32(0))
  >>> _, stats = method.loss.function(logits, logits, jnp.array([0, 0]), {}, context)
  >>> stats["weight"].tolist()
  [2.0, 0.0]
  """
  check_fraction(fraction)
  check_ce_weight(ce_weight)
  check_temperature("temperature", temperature)
  log_divergence = make_divergence(divergence, divergence_options)
  teacher_only = entropy_only(half_life)

  def token_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    extras: Mapping[str, jax.Array],
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    pair = log_pair(student_logits, teacher_logits, teacher_entropy=extras.get("teacher_entropy"))
    kept = context.state.method.top_share(student_entropy_of(pair), fraction)
    return weighted_terms(
      pair,
      labels,
      kept / fraction,
      hard=kept,
      divergence=log_divergence,
      temperature=temperature,
      ce_weight=ce_weight,
    )

  def observe(state: State, stats: Stats, mask: jax.Array) -> State:
    own = state.method.update(stats["student_entropy"], mask, half_life=half_life)
    return teacher_only["observe"](state, stats, mask)._replace(method=own)

  def update(state: State, stats: Stats, mask: jax.Array, elapsed: jax.Array) -> State:
    del elapsed
    return observe(state, stats, mask)

  return Method(
    loss=TokenLoss(token_loss),
    init_state=lambda: State(EntropyDistribution.init(), EntropyDistribution.init()),
    observe=observe,
    update=update,
    metrics=lambda state: {"kept_from_student_entropy": state.method.quantile(1 - fraction)},
  )


def make_ea_kd(
  *,
  entropy_temperature: float = 3.0,
  entropy_bound: float | None = None,
  divergence: str | LogDivergence = "forward_kl",
  divergence_options: Mapping[str, Any] | None = None,
  temperature: float = 1.0,
  ce_weight: float = 0.0,
  half_life: float = 1e6,
) -> Method:
  """Makes EA-KD (arXiv 2311.13621): w T^2 D for every token, weighted by `entropy_weights`.

  The weights are not normalized, as in the paper, so the mean of the stat `weight` scales the loss.

  Args:
    entropy_temperature: temperature, > 0, at which both entropies of the weight are taken; the
      paper uses 3. With a teacher that gives a `TopK` they are those of `losses.spread_tail`, as
      the true entropy is known at T = 1 alone.
    entropy_bound: H_ub in nats, > 0; None for log vocab, as in the paper's text.
    divergence: a key of `DIVERGENCES` or a function, see `make_divergence`; the paper uses forward
      KL.
    divergence_options: hyper-parameters of the divergence; None for its defaults.
    temperature: T of the divergence; > 0.
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    half_life: tokens after which a token counts half in the entropy distribution, which only
      reports read here; > 0.

  Raises:
    ValueError: an argument is out of range, or a name is unknown.

  >>> make_ea_kd(entropy_temperature=0.0)
  Traceback (most recent call last):
    ...
  ValueError: entropy_temperature must be a positive temperature, got 0.0.
  """
  check_ea_kd(entropy_temperature, entropy_bound, temperature, ce_weight)
  log_divergence = make_divergence(divergence, divergence_options)

  def token_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    extras: Mapping[str, jax.Array],
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    del context
    check_dense("ea_kd", teacher_logits)
    pair = log_pair(student_logits, teacher_logits, teacher_entropy=extras.get("teacher_entropy"))
    bound = math.log(pair.log_q.shape[-1]) if entropy_bound is None else entropy_bound
    return weighted_terms(
      pair,
      labels,
      pair_weights(pair, entropy_temperature, bound),
      divergence=log_divergence,
      temperature=temperature,
      ce_weight=ce_weight,
    )

  return Method(loss=TokenLoss(token_loss), **entropy_only(half_life))
