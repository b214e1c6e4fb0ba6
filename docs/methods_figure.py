"""Draws docs/methods.png: `JAX_PLATFORMS=cpu python docs/methods_figure.py`.

Weight and temperature that each method gives a token, along the teacher's entropy, on synthetic
tokens: teachers from sure to clueless over 512 entries, students that differ from them by noise.
EGAD at both ends of its default curriculum, AdaKD at a focus ratio of one half.
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot as plt

from egad_jax import methods

TOKENS, VOCAB, BINS = 4000, 512, 24


def synthetic_tokens() -> tuple[jax.Array, jax.Array, jax.Array]:
  """Student logits, teacher logits and labels; sharpness is spread evenly in its logarithm."""
  keys = jax.random.split(jax.random.key(0), 4)
  sharpness = jnp.exp(jax.random.uniform(keys[0], (TOKENS, 1), minval=-1.0, maxval=3.0))
  teacher = sharpness * jax.random.normal(keys[1], (TOKENS, VOCAB))
  student = 0.7 * teacher + jax.random.normal(keys[2], (TOKENS, VOCAB))
  return student, teacher, jax.random.categorical(keys[3], teacher)


def half_focused(state: methods.State) -> methods.State:
  """AdaKD's controller at r = 1/2, as after some training."""
  focus = state.own.focus._replace(ratio=jnp.float32(0.5))
  return state._replace(own=state.own._replace(focus=focus))


# Label -> (method, curriculum progress, change of its filled state).
CURVES = {
  "EGAD, φ = 0.25": ("egad", 0.25, lambda state: state),
  "EGAD, φ = 0.75": ("egad", 0.75, lambda state: state),
  "AdaKD, r = 0.5": ("adakd", 0.0, half_focused),
  "AEKT, explicit term": ("aekt", 0.0, lambda state: state),
  "EA-KD": ("ea_kd", 0.0, lambda state: state),
  "SE-KD": ("se_kd", 0.0, lambda state: state),
  "vanilla KD, TAID, TRG": ("vanilla_kd", 0.0, lambda state: state),
}


def main() -> None:
  """Fills each method's running distributions with the tokens and bins what it makes of them."""
  tokens, mask = synthetic_tokens(), jnp.ones(TOKENS, bool)
  figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
  for label, (name, progress, change) in CURVES.items():
    method = methods.make_method(name)
    context = methods.Context(method.init_state(), jnp.float32(progress), jnp.float32(0.5))
    _, stats = method.loss.function(*tokens, {}, context)
    state = change(method.observe(context.state, stats, mask))
    _, stats = method.loss.function(*tokens, {}, context._replace(state=state))
    stats = {key: np.asarray(x) for key, x in stats.items()}
    entropy = stats["teacher_entropy"]
    edges = np.quantile(entropy, np.linspace(0, 1, BINS + 1))
    index = np.clip(np.searchsorted(edges, entropy, side="right") - 1, 0, BINS - 1)
    mean = lambda x, index=index: [x[index == i].mean() for i in range(BINS)]
    style = {"color": "grey", "linestyle": "--"} if name == "vanilla_kd" else {}
    for panel, key in zip(axes, ("weight", "temperature"), strict=True):
      panel.plot(mean(entropy), mean(stats[key]), label=label, linewidth=1.5, **style)
  for panel, key in zip(axes, ("weight", "temperature"), strict=True):
    panel.set_xlabel("teacher entropy, nats")
    panel.set_ylabel(f"mean {key}")
    panel.set_ylim(bottom=0)
  axes[0].legend(fontsize=8, frameon=False)
  figure.savefig(pathlib.Path(__file__).with_name("methods.png"), dpi=110)


if __name__ == "__main__":
  main()
