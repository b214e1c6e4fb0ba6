"""Draws the figures of the report: takes a run's records and returns panels of inline SVG.

A figure without data is a `Panel` whose `svg` is None and whose caption says why, so that a
mechanism that is off does not look like an empty plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import cm, colors, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egad_jax.reporting.svg import (
  BLUE,
  GREEN,
  GREY,
  MAX_LINES,
  ORANGE,
  PROGRESS,
  PURPLE,
  SIZE,
  STYLE,
  Panel,
  Record,
  averaged_note,
  column,
  constant,
  finite,
  first,
  inline_svg,
  last,
  legend_above,
  new_axes,
  plot_known,
  short_number,
  step_axis,
  thin,
)

# Up to this many lines a legend names each; for more there is a colour bar.
_NAMED_LINES = 4
_TICKS = (0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0)


def training_panels(metrics: Sequence[Record], evaluations: Sequence[Record]) -> list[Panel]:
  """Returns the curves over steps: losses, held-out KL and cross-entropy, optimizer.

  Args:
    metrics: the lines of metrics.jsonl.
    evaluations: the lines of evaluations.jsonl.
  """
  with matplotlib.rc_context(STYLE):
    return [
      _loss(metrics),
      _held_out_kl(evaluations),
      _held_out_cross_entropy(evaluations),
      _optimizer(metrics),
    ]


def entropy_panels(metrics: Sequence[Record], evaluations: Sequence[Record]) -> list[Panel]:
  """Returns the figures of the mechanisms: by entropy, and curriculum and temperature over steps.

  Args:
    metrics: the lines of metrics.jsonl.
    evaluations: the lines of evaluations.jsonl.
  """
  binned = [line for line in evaluations if line.get("entropy_bins")]
  with matplotlib.rc_context(STYLE):
    return [
      _histogram(binned),
      _forward_kl_along(binned),
      _weight_along(binned),
      _temperature_along(binned),
      _curriculum_over_steps(metrics),
      _temperature_over_steps(metrics),
    ]


def _loss(metrics: Sequence[Record]) -> Panel:
  name, title = "loss", "Training loss"
  series = {
    "loss": ("total loss", BLUE, "-"),
    "distillation_loss": ("distillation", ORANGE, "--"),
    "cross_entropy": ("cross-entropy", GREEN, "-."),
    "feature_loss": ("feature", PURPLE, ":"),
  }
  columns = {key: column(metrics, key) for key in series}
  shown = [key for key in series if np.isfinite(columns[key]).any()]
  if not shown:
    absent = "metrics.jsonl holds no loss, so there is nothing to draw."
    return Panel(name, title, absent + _skipped_note(metrics))
  size, (steps, *values) = thin(column(metrics, "step"), *(columns[key] for key in shown))
  figure, axes = new_axes()
  for key, value in zip(shown, values, strict=True):
    label, color, line = series[key]
    plot_known(axes, steps, value, label=label, color=color, linestyle=line, marker=None)
    if len(steps) == 1:
      axes.plot(steps, value, "o", color=color)
  step_axis(axes)
  axes.set_ylabel("nats per token")
  legend_above(axes)
  absent = "" if "feature_loss" in shown else " There is no feature loss in this run."
  caption = (
    "Train batches, as logged. Cross-entropy is against the text, before its weight in the total."
    f"{absent}{_skipped_note(metrics)}{averaged_note(size)}"
  )
  label = f"Training loss by step, first {first(values[0])}, last {last(values[0])}."
  return Panel(name, title, caption, inline_svg(figure, name, label))


def _skipped_note(metrics: Sequence[Record]) -> str:
  """Says how many steps were skipped; "" if none."""
  skipped = np.nan_to_num(column(metrics, "skipped_total")).max()
  steps = "1 step was" if skipped == 1 else f"{int(skipped):,} steps were"
  return f" {steps} skipped: not finite, or a spike." if skipped else ""


def _held_out_kl(evaluations: Sequence[Record]) -> Panel:
  name, title = "held-out-kl", "Held-out forward KL"
  values = column(evaluations, "student", "forward_kl")
  if not np.isfinite(values).any():
    return Panel(name, title, "evaluations.jsonl holds no forward KL.")
  figure, axes = new_axes()
  plot_known(axes, column(evaluations, "step"), values, color=BLUE)
  step_axis(axes)
  axes.set_ylabel("KL(teacher ‖ student), nats")
  axes.set_ylim(0.0, 1.05 * float(np.nanmax(values)) or 1.0)
  caption = "The same held-out tokens each time. 0 means the student predicts as the teacher does."
  label = f"Held-out forward KL by step, from {first(values)} to {last(values)} nats."
  return Panel(name, title, caption, inline_svg(figure, name, label))


def _held_out_cross_entropy(evaluations: Sequence[Record]) -> Panel:
  name, title = "held-out-cross-entropy", "Held-out cross-entropy"
  steps = column(evaluations, "step")
  student = column(evaluations, "student", "cross_entropy")
  teacher = column(evaluations, "teacher", "cross_entropy")
  if not np.isfinite(student).any():
    return Panel(name, title, "evaluations.jsonl holds no cross-entropy.")
  figure, axes = new_axes()
  plot_known(axes, steps, student, color=BLUE, label="student")
  known = teacher[np.isfinite(teacher)]
  against = ""
  if known.size:
    axes.axhline(known[-1], color=GREY, linestyle="--", label="teacher")
    against = f" The teacher has {known[-1]:.4g}."
  step_axis(axes)
  axes.set_ylabel("nats per token")
  legend_above(axes)
  label = f"Held-out cross-entropy, from {first(student)} to {last(student)} nats.{against}"
  return Panel(name, title, f"Against the text itself.{against}", inline_svg(figure, name, label))


def _optimizer(metrics: Sequence[Record]) -> Panel:
  name, title = "optimizer", "Learning rate and gradient norm"
  rate, norm = column(metrics, "learning_rate"), column(metrics, "grad_norm")
  if not (np.isfinite(rate).any() or np.isfinite(norm).any()):
    return Panel(name, title, "metrics.jsonl holds neither.")
  size, (steps, rate, norm) = thin(column(metrics, "step"), rate, norm)
  figure = Figure(figsize=SIZE, layout="constrained")
  upper, lower = figure.subplots(2, 1, sharex=True)
  plot_known(upper, steps, rate, color=BLUE, marker=None if len(steps) > 1 else "o")
  plot_known(lower, steps, norm, color=ORANGE, marker=None if len(steps) > 1 else "o")
  upper.set_ylabel("learning rate")
  # Matplotlib's common multiplier above the axis would collide with the panel.
  upper.yaxis.set_major_formatter(ticker.FuncFormatter(short_number))
  upper.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
  lower.set_ylabel("gradient norm")
  lower.yaxis.set_major_locator(ticker.MaxNLocator(4))
  step_axis(lower)
  caption = f"Gradient norm before clipping.{averaged_note(size)}"
  label = "Learning rate and gradient norm by step."
  return Panel(name, title, caption, inline_svg(figure, name, label))


def _centres(bins: Record) -> np.ndarray:
  """Returns float64 [bins]: the middle of each entropy bin on the square-root axis, in nats."""
  root = np.sqrt(finite(bins["edges"]))
  return ((root[:-1] + root[1:]) / 2.0) ** 2


def _entropy_axis(axes: Axes, evaluations: Sequence[Record]) -> None:
  """Scales x by the square root, which spreads out the many tokens below one nat."""
  bins = evaluations[-1]["entropy_bins"]
  used = np.flatnonzero(np.nan_to_num(finite(bins["count"])))
  edges = finite(bins["edges"])
  low, high = edges[used[0]], edges[used[-1] + 1]
  root = lambda x: np.sqrt(np.maximum(x, 0.0))
  axes.set_xscale("function", functions=(root, np.square))
  axes.set_xlim(low, high)
  axes.xaxis.set_major_locator(ticker.FixedLocator([x for x in _TICKS if low <= x <= high]))
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(short_number))
  axes.set_xlabel("teacher entropy, nats (square-root scale)")


def _histogram(evaluations: Sequence[Record]) -> Panel:
  name, title = "entropy-histogram", "Where the teacher is sure and where it is not"
  bins = evaluations[-1]["entropy_bins"] if evaluations else {"count": []}
  count = np.nan_to_num(finite(bins["count"]))
  if not count.sum():
    return Panel(name, title, "evaluations.jsonl holds no entropy histogram.")
  edges, share = finite(bins["edges"]), 100.0 * count / count.sum()
  hard = np.nan_to_num(finite(bins.get("hard") or [None] * len(count)))
  figure, axes = new_axes()
  style: dict[str, Any] = {"align": "edge", "edgecolor": "white", "linewidth": 0.4}
  axes.bar(edges[:-1], share * (1.0 - hard), np.diff(edges), color=BLUE, label="easy", **style)
  total = float((count * hard).sum() / count.sum())
  if total:
    # The hatch distinguishes the two without colour.
    axes.bar(
      edges[:-1],
      share * hard,
      np.diff(edges),
      bottom=share * (1.0 - hard),
      color="#f0a35e",
      hatch="////",
      label="hard",
      **style,
    )
    legend_above(axes)
  _entropy_axis(axes, evaluations)
  axes.set_ylabel("% of tokens")
  branch = (
    f"{100 * total:.3g} % of them are hard."
    if total
    else "No token is treated as hard: the method does not tell tokens apart."
  )
  caption = f"{int(count.sum()):,} held-out tokens, last evaluation. {branch}"
  return Panel(
    name, title, caption, inline_svg(figure, name, f"Teacher-entropy histogram. {caption}")
  )


def _along(evaluations: Sequence[Record], key: str) -> list[np.ndarray]:
  """Returns one float64 [bins] per evaluation: the mean of `key` in each entropy bin."""
  lines = []
  for line in evaluations:
    bins = line["entropy_bins"]
    count = np.nan_to_num(finite(bins["count"]))
    values = finite(bins.get(key) or [None] * len(count))
    lines.append(np.where(count > 0, values, math.nan))
  return lines


def _lines_by_progress(
  evaluations: Sequence[Record], values: Sequence[np.ndarray], ylabel: str
) -> tuple[Figure, Axes, str]:
  """Draws one line per evaluation along entropy, coloured by step.

  Returns:
    The figure, its axes, and a note for the caption on evaluations that are not drawn.
  """
  keep = np.unique(np.linspace(0, len(values) - 1, MAX_LINES).round().astype(int))
  steps = column(evaluations, "step")
  figure, axes = new_axes()
  norm = colors.Normalize(np.nanmin(steps), max(np.nanmax(steps), np.nanmin(steps) + 1.0))
  for index in keep:
    centres = _centres(evaluations[index]["entropy_bins"])
    newest = index == keep[-1]
    plot_known(
      axes,
      centres,
      values[index],
      color=BLUE if newest else PROGRESS(norm(steps[index])),
      linewidth=2.2 if newest else 1.3,
      marker="o",
      markersize=3.4 if newest else 2.2,
      label=f"step {steps[index]:,.0f}",
    )
  if 1 < len(keep) <= _NAMED_LINES:
    legend_above(axes, columns=len(keep))
  elif len(keep) > 1:
    figure.colorbar(cm.ScalarMappable(norm, PROGRESS), ax=axes, label="step", aspect=30, pad=0.02)
  _entropy_axis(axes, evaluations)
  axes.set_ylabel(ylabel)
  if len(keep) == 1:
    return figure, axes, " One evaluation only, so no movement is visible."
  left = "" if len(keep) == len(values) else f" {len(keep)} of {len(values)} evaluations are drawn."
  return figure, axes, left


def _forward_kl_along(evaluations: Sequence[Record]) -> Panel:
  name, title = "kl-along-entropy", "Where the student still differs"
  values = _along(evaluations, "forward_kl")
  if not values or not np.isfinite(np.concatenate(values)).any():
    return Panel(name, title, "evaluations.jsonl holds no forward KL by entropy.")
  figure, axes, note = _lines_by_progress(evaluations, values, "forward KL, nats")
  axes.set_ylim(bottom=0.0)
  caption = f"Held-out forward KL of the tokens in each entropy bin, one line per evaluation.{note}"
  return Panel(name, title, caption, inline_svg(figure, name, caption))


def _weight_along(evaluations: Sequence[Record]) -> Panel:
  name, title = "weight-along-entropy", "Weight along entropy"
  values = _along(evaluations, "weight")
  everything = np.concatenate(values) if values else np.zeros(0)
  if not np.isfinite(everything).any():
    return Panel(name, title, "No weights were recorded.")
  same = constant(everything)
  if same is not None:
    return Panel(name, title, f"Every token has weight {same:.4g}: nothing weights tokens.")
  figure, axes, note = _lines_by_progress(evaluations, values, "weight of a token's loss")
  axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
  caption = f"Mean weight in each entropy bin; 1 (dashed) is vanilla distillation.{note}"
  return Panel(name, title, caption, inline_svg(figure, name, caption))


def _temperature_along(evaluations: Sequence[Record]) -> Panel:
  name, title = "temperature-along-entropy", "Temperature along entropy"
  values = _along(evaluations, "temperature")
  everything = np.concatenate(values) if values else np.zeros(0)
  if not np.isfinite(everything).any():
    return Panel(name, title, "No temperatures were recorded.")
  same = constant(everything)
  if same is not None:
    return Panel(name, title, f"Every token has temperature {same:.4g}: nothing adapts it.")
  figure, _, note = _lines_by_progress(evaluations, values, "temperature")
  caption = (
    "Mean temperature in each entropy bin. It moves when the running entropy distribution does."
    + note
  )
  return Panel(name, title, caption, inline_svg(figure, name, caption))


def _curriculum_over_steps(metrics: Sequence[Record]) -> Panel:
  name, title = "curriculum-over-steps", "Curriculum during training"
  progress, weight = column(metrics, "curriculum_progress"), column(metrics, "weight_mean")
  if not np.isfinite(progress).any():
    return Panel(name, title, "There is no token curriculum: no progress was recorded.")
  size, (steps, progress, weight) = thin(column(metrics, "step"), progress, weight)
  figure, axes = new_axes()
  marker = None if len(steps) > 1 else "o"
  plot_known(axes, steps, progress, color=BLUE, label="progress φ", marker=marker)
  if np.isfinite(weight).any():
    style = {"color": ORANGE, "linestyle": "--", "label": "mean weight of a step", "marker": marker}
    plot_known(axes, steps, weight, **style)
  step_axis(axes)
  axes.set_ylim(bottom=0.0)
  legend_above(axes)
  caption = f"The mean weight is 1 in expectation; a step's own mean varies.{averaged_note(size)}"
  label = f"Curriculum progress by step, from {first(progress)} to {last(progress)}."
  return Panel(name, title, caption, inline_svg(figure, name, label))


def _temperature_over_steps(metrics: Sequence[Record]) -> Panel:
  name, title = "temperature-over-steps", "Temperature during training"
  keys = ("temperature_min", "temperature_mean", "temperature_max")
  columns = [column(metrics, key) for key in keys]
  if not np.isfinite(columns[1]).any():
    return Panel(name, title, "metrics.jsonl holds no temperature.")
  same = constant(np.concatenate(columns))
  if same is not None:
    return Panel(name, title, f"Nothing adapts the temperature: it stays at {same:.4g}.")
  size, (steps, low, mean, high) = thin(column(metrics, "step"), *columns)
  figure, axes = new_axes()
  axes.fill_between(steps, low, high, color=BLUE, alpha=0.2, linewidth=0, label="min to max")
  plot_known(axes, steps, mean, color=BLUE, label="mean", marker=None if len(steps) > 1 else "o")
  step_axis(axes)
  axes.set_ylabel("temperature")
  legend_above(axes)
  caption = f"Over the tokens of each logged step.{averaged_note(size)}"
  label = f"Mean temperature by step, from {first(mean)} to {last(mean)}, with its range."
  return Panel(name, title, caption, inline_svg(figure, name, label))
