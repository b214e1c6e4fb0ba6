"""Token focusing of AdaKD: which tokens are distilled, and the controller of their share.

Loss-driven adaptive token focusing (LATF, arXiv 2510.11615) selects fewer and harder tokens while
the loss falls, and more when it rises again. The caller defines the difficulty of a token.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.log_divergences import check_share
from egad_jax.losses.probabilities import check_mask, check_progress, promote

MEDIANS = ("all", "selected")


@dataclasses.dataclass(frozen=True)
class Focus:
  """How the share r of the tokens that are distilled follows the loss.

  Attributes:
    ratio_step: relative change of the share, r (1 - step) or r (1 + step), in [0, 1); 0 turns the
      selection off. The paper's scripts use 0.05.
    tolerance: relative change of the loss that leaves the share as it is, in [0, 1); 0.05 in the
      scripts.
    decay: decay of the running loss per step, in [0, 1); 0.99 in the paper.
    minimum_ratio: lower bound of the share, in (0, 1]; 0.1 in the code, while the paper has none.
    warmup: share of the training, in [0, 1], during which all tokens are distilled, as in the
      paper; 0 for none.
    median: the difficulty that gets the base temperature: "all", the median of all tokens (the
      paper), or "selected", the lower median of the selected tokens (the code).
  """

  ratio_step: float = 0.05
  tolerance: float = 0.05
  decay: float = 0.99
  minimum_ratio: float = 0.1
  warmup: float = 0.05
  median: str = "all"

  def __post_init__(self) -> None:
    for name in ("ratio_step", "tolerance", "decay"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
    if not 0 < self.minimum_ratio <= 1:
      raise ValueError(f"minimum_ratio must be in (0, 1], got {self.minimum_ratio}.")
    check_share("warmup", self.warmup)
    if self.median not in MEDIANS:
      raise ValueError(f"median must be one of {', '.join(MEDIANS)}, got {self.median!r}.")


class FocusState(NamedTuple):
  """The controller's memory; a pytree of float32 scalars.

  Attributes:
    ema_loss: the running loss of the selected tokens; infinite before the first loss.
    reference_loss: the running loss when the share last changed; infinite before the first loss.
    ratio: the share r in (0, 1] of the tokens that the next step distils.
  """

  ema_loss: jax.Array
  reference_loss: jax.Array
  ratio: jax.Array

  @classmethod
  def init(cls) -> FocusState:
    """Returns the state before the first step: no loss seen, all tokens distilled."""
    return cls(jnp.float32(jnp.inf), jnp.float32(jnp.inf), jnp.float32(1))


def update_focus(
  state: FocusState, loss: ArrayLike, *, elapsed: ArrayLike, focus: Focus
) -> FocusState:
  """Makes one step of the controller: L <- decay L + (1 - decay) loss, then r from L.

  L < L_ref (1 - tolerance): r <- max(minimum_ratio, r (1 - step)) and L_ref <- L;
  L > L_ref (1 + tolerance): r <- min(1, r (1 + step)) and L_ref <- L; between them nothing
  changes. As long as the next step is in the warm-up (elapsed <= warmup), r = 1 and L_ref <- L, so
  that afterwards L_ref is the running loss at its end. The first loss initializes L, as in the
  code: from 0, the running loss would rise in any case.

  Args:
    state: the state before the step.
    loss: mean loss of the tokens that were distilled, >= 0, a scalar. Detached.
    elapsed: how far along the training the next step is, a scalar in [0, 1].
    focus: how the share follows the loss.

  Returns:
    The state after the step.

  >>> state, focus = FocusState.init(), Focus(decay=0.0, warmup=0.0)
  >>> ratios = []
  >>> for loss in (1.0, 0.97, 0.94, 0.92, 0.89, 0.95):
  ...   state = update_focus(state, loss, elapsed=0.5, focus=focus)
  ...   ratios.append(round(float(state.ratio), 6))
  >>> ratios
  [1.0, 1.0, 0.95, 0.95, 0.9025, 0.947625]
  """
  loss = jax.lax.stop_gradient(jnp.asarray(loss, jnp.float32))
  elapsed = check_progress("elapsed", elapsed)
  first = jnp.isinf(state.ema_loss)
  previous = jnp.where(first, loss, state.ema_loss)
  ema_loss = previous + (1 - focus.decay) * (loss - previous)
  warming = first | (elapsed <= focus.warmup)
  fell = ema_loss < state.reference_loss * (1 - focus.tolerance)
  rose = ema_loss > state.reference_loss * (1 + focus.tolerance)
  ratio = jnp.where(
    fell, jnp.maximum(state.ratio * (1 - focus.ratio_step), focus.minimum_ratio), state.ratio
  )
  ratio = jnp.where(rose, jnp.minimum(state.ratio * (1 + focus.ratio_step), 1), ratio)
  return FocusState(
    ema_loss,
    reference_loss=jnp.where(warming | fell | rose, ema_loss, state.reference_loss),
    ratio=jnp.where(warming, 1, ratio),
  )


def select_hardest(difficulty: ArrayLike, mask: ArrayLike, ratio: ArrayLike) -> jax.Array:
  """Marks the k = max(1, floor(n ratio)) most difficult of the n masked tokens.

  All axes form one batch. At ties the earlier token is taken, so a smaller ratio selects a subset.
  A difficulty of NaN counts as the highest, so that it stays visible in the loss.

  Args:
    difficulty: float, shape [...]. Values outside the mask are ignored.
    mask: bool, shape [...], true at tokens that count.
    ratio: share of the masked tokens to select, a scalar in (0, 1], which may be traced.

  Returns:
    bool, shape [...]; all false when nothing is masked in.

  Raises:
    TypeError: `difficulty` is not floating point.
    ValueError: shapes differ.

  >>> difficulty, mask = jnp.array([0.2, 0.7, 0.4, 0.4, 0.9]), jnp.array([1, 1, 1, 1, 0])
  >>> select_hardest(difficulty, mask, 0.5).tolist()
  [False, True, True, False, False]
  """
  difficulty = jax.lax.stop_gradient(promote("difficulty", difficulty))
  mask = check_mask(mask, difficulty.shape)
  hardness = jnp.where(jnp.isnan(difficulty), jnp.inf, difficulty)
  easiness = jnp.where(mask, -hardness, jnp.inf).reshape(-1)
  # The ratio may be traced, so k cannot be a shape; tokens are selected by rank instead.
  rank = jnp.argsort(jnp.argsort(easiness, stable=True))
  count = jnp.maximum(jnp.floor(jnp.sum(mask) * jnp.asarray(ratio)), 1)
  return mask & (rank < count).reshape(mask.shape)
