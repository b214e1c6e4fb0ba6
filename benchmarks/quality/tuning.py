"""Chooses each student's learning rate on validation rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LR_KEY = "config.optimizer.learning_rate"
# Keys of a line that are the study's and not the sweep's.
STUDY_KEYS = ("seeds", "rate_of")
Line = dict[str, Any]


def at_rate(line: Line, rate: float) -> Line:
  """Returns the sweep's line of a student at a learning rate."""
  return {key: value for key, value in line.items() if key not in STUDY_KEYS} | {LR_KEY: rate}


def tune(
  sweep: Callable[[dict[str, Line]], list[dict[str, Any]]], lines: list[Line], rates: list[float]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
  """Returns the learning rate of each student that is best on validation, and all results.

  Args:
    sweep: trains students, given as {name in the sweep: line}, and returns a result for each, with
      "name", that of the line, "learning_rate" and "validation".
    lines: the students. One whose line has a learning rate keeps it, and one with "rate_of" takes
      that of the student so named; neither is trained here.
    rates: learning rates to try, ascending by one factor. Where the best is at an end, the next one
      is tried too, unless there is but one.
  """
  best = {line["name"]: line[LR_KEY] for line in lines if LR_KEY in line}
  followers = {line["name"]: line["rate_of"] for line in lines if "rate_of" in line}
  lines = [line for line in lines if LR_KEY not in line and "rate_of" not in line]
  ratio = (rates[-1] / rates[0]) ** (1 / max(len(rates) - 1, 1))
  wanted = [(line, rate) for line in lines for rate in rates]
  results: list[dict[str, Any]] = []
  while len(wanted) > len(results):
    results = sweep({f"{line['name']}.lr{rate:.2g}": at_rate(line, rate) for line, rate in wanted})
    for line in lines:
      own = [result for result in results if result["name"] == line["name"]]
      score = {r["learning_rate"]: r["validation"]["forward_kl"] for r in own}
      best[line["name"]] = chosen = min(score, key=score.__getitem__)
      if len(score) > 1 and chosen in (min(score), max(score)):
        wanted.append((line, chosen / ratio if chosen == min(score) else chosen * ratio))
  return best | {name: best[leader] for name, leader in followers.items()}, results
