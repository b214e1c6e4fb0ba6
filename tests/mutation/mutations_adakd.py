"""Mutations of AdaKD and its controller."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_ADAKD = [
  (
    "temperature",
    "the compensation is left out",
    "divergence(*at_temperature(pair, guidance.temperature)) * guidance.factor",
    "divergence(*at_temperature(pair, guidance.temperature))",
  ),
  (
    "sign",
    "the easy tokens are selected",
    "hard = distribution.top_share(difficulty, ratio)",
    "hard = 1 - distribution.top_share(difficulty, 1 - ratio)",
  ),
  (
    "off by one",
    "selects from position r on",
    "hard = distribution.top_share(difficulty, ratio)",
    "hard = distribution.top_share(difficulty, 1 - ratio)",
  ),
  (
    "comparison",
    "selects by a threshold: all or none of the tokens that are alike",
    "hard = distribution.top_share(difficulty, ratio)",
    "hard = distribution.position(difficulty) >= 1 - ratio",
  ),
  (
    "normaliser",
    "selected tokens weigh 1, not 1 / r",
    "weight = hard / ratio",
    "weight = hard",
  ),
  (
    "mask",
    "tokens that are not selected weigh as much",
    "weight = hard / ratio",
    "weight = jnp.ones_like(hard) / ratio",
  ),
  (
    "off by one",
    "the selected tokens' median is at 1 - r",
    "distribution.quantile(1 - ratio / 2)",
    "distribution.quantile(1 - ratio)",
  ),
  (
    "normaliser",
    "in-batch: over all tokens instead of the selected",
    "weight = jnp.where(hard, jnp.sum(mask) / selected, 0)",
    "weight = jnp.where(hard, jnp.float32(1), 0)",
  ),
  (
    "promotion",
    "in-batch: float32 becomes float64 where that is on",
    "selected = jnp.maximum(jnp.sum(hard), 1).astype(difficulty.dtype)",
    "selected = jnp.maximum(jnp.sum(hard), 1)",
  ),
  (
    "mask",
    "in-batch: the median of the selected tokens where that of all is wanted",
    "hard if lower and hard is not None else mask, lower=lower)",
    "hard if hard is not None else mask, lower=lower)",
  ),
  (
    "normaliser",
    "the controller reads the sum of the losses",
    'loss = masked_sum(stats["distillation_loss"], mask) / jnp.where(weight > 0, weight, 1)',
    'loss = masked_sum(stats["distillation_loss"], mask)',
  ),
  (
    "mask",
    "a step that selected nothing moves the controller",
    "counts = (weight > 0) & jnp.isfinite(loss)",
    "counts = jnp.isfinite(loss)",
  ),
  (
    "mask",
    "a loss that is not finite moves the controller",
    "counts = (weight > 0) & jnp.isfinite(loss)",
    "counts = weight > 0",
  ),
  (
    "swap",
    "the running difficulty is the entropy",
    'state.method.difficulty.update(stats["difficulty"], mask',
    'state.method.difficulty.update(stats["teacher_entropy"], mask',
  ),
]

_FOCUS = [
  (
    "swap",
    "the running loss forgets at the rate of decay",
    "ema_loss = previous + (1 - focus.decay) * (loss - previous)",
    "ema_loss = previous + focus.decay * (loss - previous)",
  ),
  (
    "off by one",
    "the running loss starts at 0",
    "previous = jnp.where(first, loss, state.ema_loss)",
    "previous = jnp.where(first, 0, state.ema_loss)",
  ),
  (
    "stop-gradient",
    "gradient flows through the controller",
    "loss = jax.lax.stop_gradient(jnp.asarray(loss, jnp.float32))",
    "loss = jnp.asarray(loss, jnp.float32)",
  ),
  (
    "comparison",
    "the last step of the warm-up is none",
    "(elapsed <= focus.warmup)",
    "(elapsed < focus.warmup)",
  ),
  (
    "sign",
    "falls when the loss rises",
    "fell = ema_loss < state.reference_loss * (1 - focus.tolerance)",
    "fell = ema_loss > state.reference_loss * (1 + focus.tolerance)",
  ),
  (
    "options",
    "no tolerance below",
    "fell = ema_loss < state.reference_loss * (1 - focus.tolerance)",
    "fell = ema_loss < state.reference_loss",
  ),
  (
    "options",
    "no tolerance above",
    "rose = ema_loss > state.reference_loss * (1 + focus.tolerance)",
    "rose = ema_loss > state.reference_loss",
  ),
  (
    "clip",
    "no floor of the share",
    "jnp.maximum(state.ratio * (1 - focus.ratio_step), focus.minimum_ratio)",
    "state.ratio * (1 - focus.ratio_step)",
  ),
  (
    "clip",
    "the share exceeds 1",
    "jnp.minimum(state.ratio * (1 + focus.ratio_step), 1)",
    "(state.ratio * (1 + focus.ratio_step))",
  ),
  (
    "sign",
    "the share falls when the loss rises",
    "jnp.minimum(state.ratio * (1 + focus.ratio_step), 1)",
    "jnp.minimum(state.ratio * (1 - focus.ratio_step), 1)",
  ),
  (
    "mask",
    "the reference follows the loss at every step",
    "jnp.where(warming | fell | rose, ema_loss, state.reference_loss)",
    "ema_loss",
  ),
  (
    "mask",
    "the reference does not follow a rise",
    "jnp.where(warming | fell | rose, ema_loss, state.reference_loss)",
    "jnp.where(warming | fell, ema_loss, state.reference_loss)",
  ),
  (
    "mask",
    "the share moves during warm-up",
    "ratio=jnp.where(warming, 1, ratio)",
    "ratio=ratio",
  ),
  (
    "sign",
    "the easiest tokens are selected",
    "easiness = jnp.where(mask, -hardness, jnp.inf).reshape(-1)",
    "easiness = jnp.where(mask, hardness, jnp.inf).reshape(-1)",
  ),
  (
    "mask",
    "tokens outside the mask take ranks",
    "easiness = jnp.where(mask, -hardness, jnp.inf).reshape(-1)",
    "easiness = -hardness.reshape(-1)",
  ),
  (
    "off by one",
    "order for rank",
    "rank = jnp.argsort(jnp.argsort(easiness, stable=True))",
    "rank = jnp.argsort(easiness, stable=True)",
  ),
  (
    "off by one",
    "rounds the number of tokens up",
    "jnp.maximum(jnp.floor(jnp.sum(mask) * jnp.asarray(ratio)), 1)",
    "jnp.maximum(jnp.ceil(jnp.sum(mask) * jnp.asarray(ratio)), 1)",
  ),
  (
    "clip",
    "a small batch selects nothing",
    "jnp.maximum(jnp.floor(jnp.sum(mask) * jnp.asarray(ratio)), 1)",
    "jnp.floor(jnp.sum(mask) * jnp.asarray(ratio))",
  ),
  (
    "comparison",
    "one token too many",
    "return mask & (rank < count)",
    "return mask & (rank <= count)",
  ),
]

MUTATIONS = (
  *of_file(
    ("losses/adakd.py", "methods/adakd.py"),
    ["losses/adakd_test.py", "losses/adakd_running_test.py"],
    _ADAKD,
  ),
  *of_file("losses/focus.py", ["losses/focus_test.py"], _FOCUS),
)

EQUIVALENTS = (
  Equivalent(
    "losses/adakd.py",
    "drop the stop-gradient of the difficulty",
    "positions, selections and stats made from it are detached again, each at its place",
  ),
  Equivalent(
    "losses/adakd.py",
    "drop the floor of 1 of the in-batch number of selected tokens",
    "without a selected token every weight is the 0 that is selected, and none has a gradient",
  ),
  Equivalent(
    "losses/focus.py",
    "drop the stop-gradient of `select_hardest`",
    "what leaves are bools: no gradient passes them",
  ),
)
