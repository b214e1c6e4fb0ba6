"""Tables about students of several seeds, from what `study` wrote.

Every student is compared with `kd` of the same seed, and the mean of these differences over the
seeds has a standard error, an interval of 95 % and a p-value by Student's t. The p-values of a
table are corrected by Holm's method for all of its rows.
"""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.markdown import table

BASELINE, OURS = "kd", "default"
# The files of results whose students have the small setting, the one with the most seeds first.
SMALL = ("small", "small_others", "small_controls", "small_soft")
_TUNING = "_learning_rates"
_QUARTERS = tuple(f"forward_kl_q{i}" for i in range(1, 5))
_COMPARISON = (
  "held-out",
  "standard error",
  "95 % interval",
  "p, corrected",
  "other domain",
  "standard error",
)
_Line = dict[str, Any]


class Difference(NamedTuple):
  """Differences between two students in one figure, paired by seed.

  Attributes:
    mean: their mean.
    error: the standard error of the mean; NaN for one seed.
    low: lower end of the interval that holds the mean with a confidence of 95 %.
    high: its upper end.
    p_value: of the hypothesis that the true mean is 0, before any correction.
  """

  mean: float
  error: float
  low: float
  high: float
  p_value: float


def difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
  """Compares float [seeds] with float [seeds] of the same seeds."""
  differences = ours - theirs
  n, mean = len(differences), float(differences.mean())
  if n < 2:
    return Difference(mean, *[float("nan")] * 4)
  error = float(differences.std(ddof=1) / n**0.5)
  width = float(stats.t.ppf(0.975, n - 1)) * error
  p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
  return Difference(mean, error, mean - width, mean + width, p_value)


def holm(p_values: list[float]) -> list[float]:
  """Returns p-values corrected for there being several, by Holm's method; NaN stays NaN."""
  known = [i for i, p in enumerate(p_values) if not np.isnan(p)]
  corrected, largest = list(p_values), 0.0
  for rank, i in enumerate(sorted(known, key=p_values.__getitem__)):
    largest = max(largest, min(1.0, (len(known) - rank) * p_values[i]))
    corrected[i] = largest
  return corrected


def by_student(lines: list[_Line]) -> dict[str, dict[int, _Line]]:
  """Returns {name: {seed: line}} of the reported lines, those of the tuning left out."""
  found: dict[str, dict[int, _Line]] = collections.defaultdict(dict)
  for line in lines:
    if not line["batch"].endswith(_TUNING):
      found[line["name"]][line["seed"]] = line
  return dict(found)


def compare(ours: dict[int, _Line], theirs: dict[int, _Line], split: str, name: str) -> Difference:
  """Compares two students in one figure of a split, over the seeds that both have."""
  seeds = sorted(set(ours) & set(theirs))
  of = lambda lines: np.array([lines[seed][split][name] for seed in seeds])
  return difference(of(ours), of(theirs))


def differences(students: dict[str, dict[int, _Line]], baseline: str) -> str:
  """Returns a markdown table of all other students' differences to one of them."""
  base = students[baseline]
  found = {n: compare(s, base, "held", "forward_kl") for n, s in students.items() if n != baseline}
  names = sorted(found, key=lambda name: found[name].mean)
  p_values = dict(zip(names, holm([found[name].p_value for name in names]), strict=True))
  header = (
    "student",
    "learning rate",
    "seeds",
    *_COMPARISON,
    "cross-entropy",
    "same top token, points",
    *(f"quarter {i}" for i in range(1, 5)),
  )

  def row(name: str) -> tuple[str, ...]:
    lines = students[name]
    other = compare(lines, base, "ood", "forward_kl")
    rate = next(iter(lines.values()))["learning_rate"]
    return (
      f"`{name}`",
      f"{1e3 * rate:.2g}e-3",
      str(len(set(lines) & set(base))),
      *_cells(found[name], p_values[name], other),
      f"{compare(lines, base, 'held', 'cross_entropy').mean:+.4f}",
      f"{100 * compare(lines, base, 'held', 'agreement').mean:+.2f}",
      *(f"{compare(lines, base, 'held', quarter).mean:+.3f}" for quarter in _QUARTERS),
    )

  return table(header, [row(name) for name in names])


def against(students: dict[str, dict[int, _Line]], ours: str) -> str:
  """Returns a markdown table of one student's differences to each other one."""
  others = {name: lines for name, lines in students.items() if name != ours}
  held = {name: compare(students[ours], o, "held", "forward_kl") for name, o in others.items()}
  ood = {name: compare(students[ours], o, "ood", "forward_kl") for name, o in others.items()}
  names = sorted(held, key=lambda name: held[name].mean)
  p_values = holm([held[name].p_value for name in names])
  rows = [(f"`{n}`", *_cells(held[n], p, ood[n])) for n, p in zip(names, p_values, strict=True)]
  return table(("to", *_COMPARISON), rows)


def _cells(held: Difference, p_value: float, other: Difference) -> tuple[str, ...]:
  return (
    f"{held.mean:+.4f}",
    f"{held.error:.4f}",
    f"{held.low:+.4f} to {held.high:+.4f}",
    f"{p_value:.1g}",
    f"{other.mean:+.4f}",
    f"{other.error:.4f}",
  )


def costs(lines: list[_Line], results: list[list[_Line]]) -> str:
  """Returns a markdown table of what a step costs beside the forward KL, a row for each student.

  Args:
    lines: those that `cost` prints, that of the baseline first.
    results: the lines of each file of results with the students.
  """
  found: dict[str, float] = {}
  for students in map(by_student, results):
    for name, own in students.items():
      baseline = students[BASELINE]
      kd = np.mean([line["held"]["forward_kl"] for line in baseline.values()])
      found.setdefault(name, 100 * compare(own, baseline, "held", "forward_kl").mean / kd)
  header = ("student", "held-out, % of `kd`", "step, s", "over `kd`", "memory of a chip, GiB")
  rows = [
    (
      f"`{line['name']}`",
      f"{found[line['name']]:+.1f}",
      f"{line['step_seconds']:.4f}",
      f"{line['step_seconds'] / lines[0]['step_seconds']:.3f}",
      f"{line['gib']:.2f}",
    )
    for line in lines
  ]
  return table(header, rows)


def by_learning_rate(lines: list[_Line]) -> dict[str, dict[float, float]]:
  """Returns {name: {learning rate: validation forward KL}} of the lines of the tuning."""
  found: dict[str, dict[float, float]] = collections.defaultdict(dict)
  for line in lines:
    if line["batch"].endswith(_TUNING):
      found[line["name"]][line["learning_rate"]] = line["validation"]["forward_kl"]
  return dict(found)


def rates(lines: list[_Line]) -> str:
  """Returns a markdown table of the validation forward KL of each student by learning rate."""
  found = by_learning_rate(lines)
  grid = sorted({rate for scores in found.values() for rate in scores})

  def cell(scores: dict[float, float], rate: float) -> str:
    if rate not in scores:
      return ""
    best = scores[rate] == min(scores.values())
    return f"**{scores[rate]:.4f}**" if best else f"{scores[rate]:.4f}"

  rows = [(f"`{n}`", *(cell(scores, rate) for rate in grid)) for n, scores in found.items()]
  return table(("student", *(f"{1e3 * rate:.2g}e-3" for rate in grid)), rows)


def tables(lines: list[_Line]) -> str:
  """Returns all tables of a file, each under a line that says what it shows."""
  students = by_student(lines)
  kd = students[BASELINE]
  seeds, first = sorted(kd), next(iter(kd.values()))
  mean = lambda split, name: float(np.mean([kd[seed][split][name] for seed in seeds]))
  parts = [
    f"`{first['batch']}`: {first['steps']} steps, {first['tokens']:,} tokens, {first['device']}. "
    f"`kd`, mean of {len(seeds)} seeds: held-out {mean('held', 'forward_kl'):.4f}, other domain "
    f"{mean('ood', 'forward_kl'):.4f}, cross-entropy {mean('held', 'cross_entropy'):.4f} "
    f"nats, same top token {100 * mean('held', 'agreement'):.1f} %. The teacher's entropy: mean "
    f"{first['held']['teacher_entropy']:.2f}, median "
    f"{first['held']['teacher_entropy_median']:.2f} nats."
  ]
  if len(students) > 1:
    parts += [f"Differences to `{BASELINE}`:", differences(students, BASELINE)]
  if OURS in students:
    parts += [f"Differences of `{OURS}` to the others:", against(students, OURS)]
  return "\n\n".join([*parts, "Validation by learning rate, seed 0:", rates(lines)])
