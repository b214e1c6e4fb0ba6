"""Draws docs/results.png from the results of the small setting.

Command: python -m benchmarks.quality.figure

On the left the difference of each student to `kd` of its own seeds, with its interval of 95 %; on
the right the validation forward KL by learning rate.
"""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot as plt

from benchmarks.quality import seeds
from benchmarks.quality.lines import read
from launch import command_line

_ROOT = pathlib.Path(__file__).parents[2]
_RESULTS = pathlib.Path(__file__).parent / "results"
# Those with other learning rates, so that a line is not lost among thirty.
_CURVES = ("kd", "default", "default_hard", "temperature_matched", "abstract", "adakd")
# A random start is too far from the others for one axis.
_LEFT_OUT = ("kd_random", "default_random")


def _differences() -> dict[str, dict[str, np.ndarray]]:
  """Returns {name: {part: (mean, low, high)}} of all students but `kd`, in percent of `kd`."""
  found: dict[str, dict[str, np.ndarray]] = {}
  for path in (_RESULTS / f"{name}.jsonl" for name in seeds.SMALL):
    students = seeds.by_student(read(path))
    kd = students.pop(seeds.BASELINE)
    for name in set(students) - set(_LEFT_OUT):
      found[name] = {}
      for part in ("held", "ood"):
        mean = np.mean([line[part]["forward_kl"] for line in kd.values()])
        between = seeds.compare(students[name], kd, part, "forward_kl")
        found[name][part] = 100 / mean * np.array([between.mean, between.low, between.high])
  return found


def draw_differences(panel: Any) -> None:
  """Draws the difference of each student to `kd`, in percent of its forward KL."""
  found = sorted(_differences().items(), key=lambda item: -item[1]["held"][0])
  for y, (name, parts) in enumerate(found):
    color = "tab:red" if name.startswith("default") else "tab:blue"
    mean, low, high = parts["held"]
    panel.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="o", color=color, markersize=4)
    panel.plot(parts["ood"][0], y, "o", color=color, markersize=4, fillstyle="none")
  panel.set_yticks(range(len(found)), [name for name, _ in found], fontsize=8)
  panel.axvline(0, color="grey", linewidth=0.8)
  panel.grid(axis="x", alpha=0.3)
  panel.set_xscale("symlog", linthresh=20)
  panel.set_xticks([-20, -10, 0, 10, 20, 50, 100], ["-20", "-10", "0", "10", "20", "50", "100"])
  panel.set_xlabel("forward KL beyond kd's, % (circles: other domain; red: the default, varied)")


def draw_learning_rates(panel: Any) -> None:
  """Draws the validation forward KL of some students by learning rate, seed 0."""
  rates = seeds.by_learning_rate(read(_RESULTS / "small.jsonl"))
  for name in _CURVES:
    scores = sorted(rates[name].items())
    panel.plot(*zip(*scores, strict=True), marker="o", markersize=3, label=name)
  panel.set_xscale("log", base=2)
  ticks = sorted({rate for name in _CURVES for rate in rates[name]})
  panel.set_xticks(ticks, [f"{1e3 * rate:.0f}e-3" for rate in ticks])
  panel.set_xlabel("learning rate")
  panel.set_ylabel("forward KL on validation rows, nats")
  panel.grid(alpha=0.3)
  panel.legend(frameon=False, fontsize=8)


def main() -> None:
  """Draws both panels."""
  figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 8), constrained_layout=True, width_ratios=(3, 2)
  )
  draw_differences(left)
  draw_learning_rates(right)
  figure.savefig(_ROOT / "docs/results.png", dpi=110)


if __name__ == "__main__":
  command_line.run(main)
