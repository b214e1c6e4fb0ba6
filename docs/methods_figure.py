"""Draws docs/methods.png: `JAX_PLATFORMS=cpu python docs/methods_figure.py`, after make quickstart.

Weight and temperature that each method gives a token, along the teacher's entropy: the quickstart's
teacher and its student before training, on its held-out text, with running distributions filled
from two train batches. EGAD at both ends of its curriculum, AdaKD at a focus ratio of one half.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot as plt

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import quickstart
from egad_jax import build
from egad_jax.training.programs import Programs
from egad_jax.training.step import TrainState

LEAST_TOKENS = 5


def at_end(state: TrainState) -> TrainState:
  """The last step's place in the curriculum."""
  return state._replace(step=jnp.int32(quickstart.get_config().steps))


def half_focused(state: TrainState) -> TrainState:
  """AdaKD's controller at r = 1/2, as after some training."""
  own = state.method_state.own
  own = own._replace(focus=own.focus._replace(ratio=jnp.float32(0.5)))
  return state._replace(method_state=state.method_state._replace(own=own))


CURVES = {
  "EGAD, φ = 0.25": ("egad", lambda state: state),
  "EGAD, φ = 0.75": ("egad", at_end),
  "AdaKD, r = 0.5": ("adakd", half_focused),
  "AEKT, explicit term": ("aekt", lambda state: state),
  "EA-KD": ("ea_kd", lambda state: state),
  "SE-KD": ("se_kd", lambda state: state),
  "vanilla KD, TAID, TRG": ("vanilla_kd", lambda state: state),
}


def bins_of(method: str, change: Any, workdir: pathlib.Path) -> dict[str, Any]:
  """The entropy bins of an evaluation before training."""
  config = quickstart.get_config()
  config.method = method
  run = build.build(config, workdir)
  programs = Programs(run)
  state = change(programs.fill(run.place_student()))
  return programs.evaluate(state)["entropy_bins"]


def main() -> None:
  """Evaluates every curve and draws both panels."""
  figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
  for label, (method, change) in CURVES.items():
    bins = bins_of(method, change, ROOT / "runs" / "quickstart")
    edges = np.array(bins["edges"])
    kept = np.array(bins["count"]) >= LEAST_TOKENS
    middle = ((np.sqrt(edges[:-1]) + np.sqrt(edges[1:])) / 2) ** 2
    style = {"color": "grey", "linestyle": "--"} if "vanilla" in label else {}
    for panel, key in zip(axes, ("weight", "temperature"), strict=True):
      values = np.array(bins[key], float)
      panel.plot(middle[kept], values[kept], label=label, linewidth=1.5, **style)
  for panel, key in zip(axes, ("weight", "temperature"), strict=True):
    panel.set_xscale("function", functions=(np.sqrt, np.square))
    panel.set_xlabel("teacher entropy, nats (square-root scale)")
    panel.set_ylabel(f"mean {key}")
    panel.set_ylim(bottom=0)
  axes[0].legend(fontsize=8, frameon=False)
  figure.savefig(ROOT / "docs" / "methods.png", dpi=110)


if __name__ == "__main__":
  main()
