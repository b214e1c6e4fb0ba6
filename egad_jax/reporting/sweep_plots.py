"""Draws the figures that compare students: a line for each, in panels of inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from egad_jax.reporting.svg import (
  BLUE,
  GREEN,
  GREY,
  ORANGE,
  PURPLE,
  STYLE,
  Panel,
  Record,
  column,
  inline_svg,
  legend_above,
  new_axes,
  plot_known,
  step_axis,
  thin,
)

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#b58900", "#00798c", GREY)
_LINES = ("-", "--", "-.", ":")
_LONGEST = 17
QUARTERS = ("lowest", "second", "third", "highest")


def panels(
  metrics: Mapping[str, Sequence[Record]],
  evaluations: Mapping[str, Sequence[Record]],
  quarters: Mapping[str, Sequence[float]],
) -> list[Panel]:
  """Returns the curves of all students: loss and held-out KL over steps, KL along entropy.

  Args:
    metrics: the lines of metrics.jsonl, by the student's name.
    evaluations: the lines of evaluations.jsonl, by the student's name.
    quarters: mean forward KL in nats in each quarter of the tokens by teacher entropy, by name.
  """
  with matplotlib.rc_context(STYLE):
    return [_loss(metrics), _held_out_kl(evaluations), _by_quarter(quarters)]


def _style(index: int) -> dict[str, str]:
  """A colour for each of the first students, then again with another line."""
  line = _LINES[index // len(_COLORS) % len(_LINES)]
  return {"color": _COLORS[index % len(_COLORS)], "linestyle": line}


def _label(name: str) -> str:
  """A name that fits a legend; of a long one, the begin and the end.

  >>> _label("base"), _label("learning-rate-0.001-fixed")
  ('base', 'learning…01-fixed')
  """
  return name if len(name) <= _LONGEST else f"{name[:8]}…{name[-8:]}"


def _legend(axes: Axes, names: Iterable[str]) -> None:
  longest = max(len(_label(name)) for name in names)
  legend_above(axes, columns=3 if longest < 10 else 2)


def _loss(metrics: Mapping[str, Sequence[Record]]) -> Panel:
  name, title = "sweep-loss", "Training loss"
  known = {key: lines for key, lines in metrics.items() if lines}
  if not known:
    return Panel(name, title, "No student has logged a step.")
  figure, axes = new_axes()
  for index, (key, lines) in enumerate(known.items()):
    _, (steps, loss) = thin(column(lines, "step"), column(lines, "loss"))
    marker = None if len(steps) > 1 else "o"
    plot_known(axes, steps, loss, label=_label(key), marker=marker, **_style(index))
  step_axis(axes)
  axes.set_ylabel("nats per token")
  _legend(axes, known)
  caption = (
    "Train batches, the same for all students. Losses of different kinds (method, divergence, "
    "temperature, terms) cannot be compared with each other."
  )
  return Panel(name, title, caption, inline_svg(figure, name, "Training loss by step."))


def _held_out_kl(evaluations: Mapping[str, Sequence[Record]]) -> Panel:
  name, title = "sweep-held-out-kl", "Held-out forward KL"
  figure, axes = new_axes()
  highest = 0.0
  for index, (key, lines) in enumerate(evaluations.items()):
    values = column(lines, "student", "forward_kl")
    if np.isfinite(values).any():
      plot_known(axes, column(lines, "step"), values, label=_label(key), **_style(index))
      highest = max(highest, float(np.nanmax(values)))
  if not highest:
    return Panel(name, title, "No evaluation holds a forward KL.")
  step_axis(axes)
  axes.set_ylabel("KL(teacher ‖ student), nats")
  axes.set_ylim(0.0, 1.05 * highest)
  _legend(axes, evaluations)
  caption = "The same held-out tokens each time, at temperature 1."
  return Panel(name, title, caption, inline_svg(figure, name, "Held-out forward KL by step."))


def _by_quarter(quarters: Mapping[str, Sequence[float]]) -> Panel:
  name, title = "sweep-by-entropy", "Where the students differ"
  if not quarters:
    return Panel(name, title, "No student has held_out_rows.json.")
  figure, axes = new_axes()
  places = np.arange(1.0, len(QUARTERS) + 1)
  for index, (key, values) in enumerate(quarters.items()):
    known = np.array([math.nan if value is None else value for value in values], np.float64)
    plot_known(axes, places, known, label=_label(key), **_style(index))
  axes.set_xticks(places, QUARTERS)
  axes.set_xlabel("quarter of the held-out tokens by teacher entropy")
  axes.set_ylabel("forward KL, nats")
  axes.set_ylim(bottom=0.0)
  _legend(axes, quarters)
  caption = "Mean forward KL of the trained students in each quarter."
  return Panel(name, title, caption, inline_svg(figure, name, caption))
