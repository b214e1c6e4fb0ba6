"""Options and compiled forms of AdaKD that its tests share."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from egad_jax import methods
from egad_jax.losses import Temperature
from egad_jax.losses.adakd import adakd_loss
from egad_jax.losses.focus import Focus, FocusState

FIXED = Temperature(kind="fixed")
IDTS = Temperature(position="median_ratio")
OFF = {"temperature": FIXED, "focus": Focus(ratio_step=0.0)}
CODE = {"temperature": IDTS, "focus": Focus(median="selected")}
EVERYTHING = {
  "temperature": Temperature(
    position="median_ratio", base=1.5, strength=0.7, compensation="mean_norm"
  ),
  "divergence": "skew_reverse_kl",
  "divergence_options": (("alpha", 0.3),),
  "ce_weight": 0.2,
}
OPTIONS = {
  "paper": {},
  "code": CODE,
  "off": OFF,
  "everything": EVERYTHING,
  "cdf": {"temperature": Temperature(kind="mean"), "divergence": "forward_kl"},
}


def at(ratio, ema=2.0, reference=2.0):
  return FocusState(jnp.float32(ema), jnp.float32(reference), jnp.float32(ratio))


@functools.lru_cache
def compiled(**options):
  """Jitted (batch, state) -> ((loss, (metrics, state)), gradient to the student)."""
  options["divergence_options"] = dict(options.get("divergence_options", ()))

  def function(student, rest, state):
    return adakd_loss(student, *rest, state=state, elapsed=0.3, **options)

  step = jax.jit(jax.value_and_grad(function, has_aux=True))
  return lambda batch, state: step(batch[0], tuple(batch[1:]), state)


def filled_context(method, tokens, ratio):
  """A context whose distribution is that of `tokens` and whose share is `ratio`."""
  context = methods.Context(method.init_state(), jnp.float32(0), jnp.float32(0.3))
  stats = jax.jit(lambda c: method.loss.function(*tokens[:3], {}, c)[1])(context)
  state = jax.jit(method.observe)(context.state, stats, tokens[3])
  state = state._replace(method=state.method._replace(focus=at(ratio)))
  return context._replace(state=state), stats
