"""The report's passage: one text coloured by entropy, KL, temperature and branch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib import colors

from egad_jax.reporting.svg import Record, constant, finite

_SHADES = 24
# Colour maps of entropy, KL and temperature, by the prefix of their CSS classes.
_MAPS = {"e": "viridis_r", "k": "YlOrRd", "t": "cividis"}
_BRANCH = [("#cfe3f3", "#000000"), ("#f0a35e", "#000000")]
_WHITESPACE = re.compile(r"\n|\t| {2,}|^ +$")
# Control characters are invisible, and bidirectional ones would reorder the text around them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class PassageView(NamedTuple):
  """One colouring of the passage.

  Attributes:
    title: heading of the colouring.
    classes: the CSS class of each token's colour, "" where its value is null; empty if `absent`.
    legend: (CSS background, label) of each swatch of a two-colour legend, or of one gradient.
    ticks: labels spread under a gradient, low to high; empty for a two-colour legend.
    absent: why there is nothing to colour; "" if there is something.
  """

  title: str
  classes: list[str]
  legend: list[tuple[str, str]]
  ticks: list[str]
  absent: str = ""


def passage_views(tokens: Sequence[Record]) -> list[PassageView]:
  """Returns the colourings by teacher entropy, the student's KL, temperature and branch.

  Args:
    tokens: the entries of passage.json's `tokens`.
  """
  entropy = finite([token.get("entropy") for token in tokens])
  temperature = finite([token.get("temperature") for token in tokens])
  hard = finite([token.get("hard") for token in tokens])
  kl = finite([token.get("forward_kl") for token in tokens])
  return [
    _nats_view("Teacher entropy", "entropies", entropy, "e"),
    _nats_view("KL of the student to the teacher", "KLs", kl, "k"),
    _temperature_view(temperature),
    _branch_view(hard),
  ]


def _nats_view(title: str, what: str, nats: np.ndarray, prefix: str) -> PassageView:
  if not np.isfinite(nats).any():
    return PassageView(title, [], [], [], f"No {what} were recorded for this passage.")
  top = max(float(np.nanmax(nats)), 1e-6)
  # Most tokens are near zero nats; the square root spreads them out.
  shade = np.sqrt(np.maximum(nats, 0.0) / top)
  ticks = [f"{top * share**2:.2g}" for share in (0.0, 0.5, 1.0)]
  label = "nats, square-root scale"
  gradient = _gradient(_MAPS[prefix])
  return PassageView(title, _classes(prefix, shade), [(gradient, label)], ticks)


def _temperature_view(temperature: np.ndarray) -> PassageView:
  title = "Temperature"
  same = constant(temperature)
  if not np.isfinite(temperature).any():
    return PassageView(title, [], [], [], "No temperatures were recorded for this passage.")
  if same is not None:
    off = f"Every token has temperature {same:.4g}: nothing adapts it."
    return PassageView(title, [], [], [], off)
  low, high = float(np.nanmin(temperature)), float(np.nanmax(temperature))
  shade = (temperature - low) / (high - low)
  ticks = [f"{value:.3g}" for value in (low, (low + high) / 2.0, high)]
  gradient = _gradient(_MAPS["t"])
  return PassageView(title, _classes("t", shade), [(gradient, "temperature")], ticks)


def _branch_view(hard: np.ndarray) -> PassageView:
  title = "Hard tokens"
  known = hard[np.isfinite(hard)]
  if not known.size or not known.any():
    off = "No token is treated as hard: the method does not tell tokens apart."
    return PassageView(title, [], [], [], off)
  share = 100.0 * float(known.mean())
  legend = [
    (_BRANCH[0][0], f"easy, {100.0 - share:.3g} %"),
    (_BRANCH[1][0], f"hard, {share:.3g} % (underlined)"),
  ]
  classes = ["" if math.isnan(value) else f"b{int(value > 0.5)}" for value in hard]
  return PassageView(title, classes, legend, [])


def _classes(prefix: str, shade: np.ndarray) -> list[str]:
  return [
    "" if math.isnan(value) else f"{prefix}{round(min(max(value, 0.0), 1.0) * (_SHADES - 1))}"
    for value in shade.tolist()
  ]


def _shades(name: str) -> list[str]:
  return [colors.to_hex(rgba) for rgba in matplotlib.colormaps[name](np.linspace(0, 1, _SHADES))]


def palettes() -> dict[str, list[tuple[str, str]]]:
  """Returns, for each CSS class prefix, the (background, text) colours of its numbered classes."""
  return {prefix: _palette(name) for prefix, name in _MAPS.items()} | {"b": _BRANCH}


def _palette(name: str) -> list[tuple[str, str]]:
  """Returns (background, text) colours of each shade; text is black or white, as contrasts more."""
  return [(shade, text_color(shade)) for shade in _shades(name)]


def _gradient(name: str) -> str:
  return f"linear-gradient(to right, {', '.join(_shades(name))})"


def luminance(color: str) -> float:
  """Returns the relative luminance of `color` in [0, 1] (WCAG 2.2, "relative luminance")."""
  channels = np.asarray(colors.to_rgb(color))
  linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
  return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def text_color(background: str) -> str:
  """Returns black or white, whichever has the higher WCAG contrast on `background` (>= 4.5)."""
  light = luminance(background)
  return "#000000" if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else "#ffffff"


def tooltip(token: Record) -> str:
  """Returns a token's measured values in words."""
  parts = [
    f"{name} {token[key]:.4g}{unit}"
    for key, name, unit in (
      ("entropy", "entropy", " nats"),
      ("forward_kl", "KL", " nats"),
      ("position", "position", ""),
      ("weight", "weight", ""),
      ("temperature", "temperature", ""),
    )
    if token.get(key) is not None
  ]
  if token.get("hard") is not None:
    parts.append("hard" if token["hard"] else "easy")
  return ", ".join(parts)


def plain(text: object) -> Markup:
  """Escapes text and shows control characters by their code point."""
  return Markup(_CONTROL.sub(lambda m: f"[U+{ord(m[0]):04X}]", str(escape(text))))


def visible(text: object) -> Markup:
  """Does what `plain` does, and marks newlines, tabs, runs of spaces and lone spaces."""

  def mark(match: re.Match[str]) -> str:
    found = match[0]
    sign, rest = {"\n": ("↵", "\n"), "\t": ("→", "\t")}.get(found, ("·" * len(found), ""))
    return f"<i>{sign}</i>{rest}"

  return Markup(_WHITESPACE.sub(mark, str(plain(text))))
