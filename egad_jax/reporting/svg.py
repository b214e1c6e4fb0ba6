"""Drawing helpers of the report: a common style, columns of run records, figures as inline SVG.

They use matplotlib's object interface only: no pyplot, no global figure, no display.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import colors, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Record = Mapping[str, Any]  # A JSON object from a file of the workdir.

MAX_POINTS = 600
MAX_LINES = 12
SIZE = (4.7, 3.0)  # Inches; small, so that the text stays readable when scaled down to a phone.
# After Okabe and Ito: distinguishable with any colour vision.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#008563", "#a8508a", "#5b6470"
# The ends of plasma are too pale for a line on a light card and too dark for a dark one.
PROGRESS = colors.ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0.3, 0.75, 32)[::-1]))
STYLE: dict[Any, Any] = {
  "axes.edgecolor": "#8a929c",
  "axes.axisbelow": True,
  "axes.grid": True,
  "axes.labelcolor": "#2b323b",
  "axes.labelsize": 9,
  "axes.linewidth": 0.7,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "figure.facecolor": "none",
  "axes.facecolor": "none",
  "font.size": 9,
  "grid.color": "#d3d9df",
  "grid.linewidth": 0.6,
  "legend.fontsize": 8.5,
  "legend.frameon": False,
  "legend.labelcolor": "#2b323b",
  "lines.linewidth": 1.5,
  "lines.markersize": 3.2,
  "svg.fonttype": "none",
  "svg.hashsalt": "egad_jax",
  "text.parse_math": False,
  "xtick.color": "#4b545f",
  "ytick.color": "#4b545f",
  "xtick.labelsize": 8.5,
  "ytick.labelsize": 8.5,
}


class Panel(NamedTuple):
  """One figure of the report.

  Attributes:
    name: identifier, unique in the report; it prefixes the ids in the SVG.
    title: heading of the figure.
    caption: text that says what is drawn, or why nothing is.
    svg: `<svg>` element ready for inlining; None if there is nothing to draw.
  """

  name: str
  title: str
  caption: str
  svg: str | None = None


def finite(values: Sequence[Any]) -> np.ndarray:
  """Returns float64 [n] with NaN where a value is null or not finite."""
  array = np.array([math.nan if value is None else float(value) for value in values], np.float64)
  return np.where(np.isfinite(array), array, math.nan)


def constant(values: np.ndarray) -> float | None:
  """Returns the one value that all finite entries share (to 1e-6), else None."""
  known = values[np.isfinite(values)]
  if known.size and np.ptp(known) <= 1e-6 * max(1.0, float(np.abs(known).max())):
    return float(known[0])
  return None


def new_axes() -> tuple[Figure, Axes]:
  """Returns a figure of `SIZE` with one pair of axes."""
  figure = Figure(figsize=SIZE, layout="constrained")
  return figure, figure.subplots()


def inline_svg(figure: Figure, name: str, label: str) -> str:
  """Serializes a figure for inlining: no prolog, no metadata, unique ids, no URL.

  Args:
    figure: the figure to serialize.
    name: prefix that makes the figure's ids unique in the document.
    label: description for screen readers.
  """
  buffer = io.StringIO()
  figure.savefig(buffer, format="svg", metadata={"Date": None})
  text = buffer.getvalue()
  view_box = re.search(r'viewBox="([^"]+)"', text)
  body = text[text.index(">", text.index("<svg")) + 1 :]
  body = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", body, flags=re.DOTALL)
  # Several drawings share one document, and matplotlib numbers ids from 1 in each.
  body = re.sub(r'\bid="', f'id="{name}-', body)
  body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
  body = re.sub(r"(font: [\d.]+px )[^;\"]*", r"\1system-ui, sans-serif", body)
  body = re.sub(r"\n\s*", "\n", body)
  head = f'<svg viewBox="{view_box[1] if view_box else ""}" role="img"'
  return f'{head} aria-label="{html.escape(label, quote=True)}">{body}'


def column(records: Sequence[Record], *path: str) -> np.ndarray:
  """Returns float64 [len(records)] of the value at `path`, NaN where it is absent or null."""
  values = []
  for record in records:
    value: Any = record
    for key in path:
      value = value.get(key) if isinstance(value, Mapping) else None
    values.append(value)
  return finite(values)


def thin(*columns: np.ndarray) -> tuple[int, list[np.ndarray]]:
  """Averages consecutive values so that at most `MAX_POINTS` remain.

  Args:
    columns: float64 [n] each; NaN values are left out of the means.

  Returns:
    The number of values averaged into each point, and the thinned columns.
  """
  size = math.ceil(len(columns[0]) / MAX_POINTS)
  if size <= 1:
    return 1, list(columns)
  starts = np.arange(0, len(columns[0]), size)
  thinned = []
  for column in columns:
    total = np.add.reduceat(np.nan_to_num(column), starts)
    count = np.add.reduceat(np.isfinite(column).astype(np.float64), starts)
    thinned.append(np.where(count > 0, total / np.maximum(count, 1.0), math.nan))
  return size, thinned


def plot_known(axes: Axes, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
  """Plots the points where x and y are finite, joined by lines; up to 40 points get markers."""
  known = np.isfinite(x) & np.isfinite(y)
  # A single point has no line and shows only by its marker.
  marker = "o" if known.sum() <= 40 else None
  axes.plot(x[known], y[known], **{"marker": marker} | style)


def step_axis(axes: Axes) -> None:
  """Labels the x axis as whole training steps."""
  axes.set_xlabel("step")
  low, high = axes.dataLim.intervalx
  if low == high:
    # Around a single step matplotlib would put ticks at fractions of a step.
    axes.set_xlim(low - 1.0, high + 1.0)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))


def legend_above(axes: Axes, columns: int = 2) -> None:
  """Puts the legend above the axes, where no curve can run through it."""
  axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2)


def averaged_note(size: int) -> str:
  """Says how many logged steps `thin` averaged into each point; "" if it did not."""
  return "" if size == 1 else f" Each point is the mean of {size} logged steps."


def first(values: np.ndarray) -> str:
  """Returns the first finite value to four digits."""
  return f"{values[np.isfinite(values)][0]:.4g}"


def last(values: np.ndarray) -> str:
  """Returns the last finite value to four digits."""
  return f"{values[np.isfinite(values)][-1]:.4g}"


def short_number(value: float, _: int | None = None) -> str:
  """Formats a tick label, such as 5e-4, 0.01 or 10; the second argument is matplotlib's index."""
  if 0.0 < abs(value) < 1e-3:
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
  return f"{value:.6g}"
