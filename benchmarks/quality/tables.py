"""Tables of docs/results.md from the lines that `benchmarks.quality.run` and `study` wrote.

Command: python -m benchmarks.quality.tables [--results=FILE,FILE]

Every student is compared with the student of plain distillation, `kd`, of its batch and seed; the
tables over several seeds are those of `seeds`.
"""

from __future__ import annotations

import collections
import pathlib
import statistics
from typing import Any

from absl import flags

from benchmarks.markdown import table
from benchmarks.quality import seeds
from benchmarks.quality.lines import read
from launch import command_line

RESULTS = flags.DEFINE_list("results", [], "Files of results, JSON lines; none: all there are.")
_DIRECTORY = pathlib.Path(__file__).parent / "results"
BASELINE = "kd"
_Line = dict[str, Any]
_QUARTERS = tuple(f"forward_kl_q{i}" for i in range(1, 5))


def row_error(line: _Line, baseline: _Line, split: str) -> float:
  """Returns the standard error of the difference in forward KL over the rows of `split`.

  Both students see the same rows, so the differences of single rows are what varies.
  """
  pairs = zip(line[split]["rows"], baseline[split]["rows"], strict=True)
  differences = [a - b for a, b in pairs]
  return statistics.stdev(differences) / len(differences) ** 0.5


def absolute(lines: list[_Line]) -> str:
  """Returns a markdown table of absolute values, a row for each line."""
  header = (
    "student",
    "learning rate",
    "validation",
    "held-out",
    "other domain",
    "cross-entropy",
    "same top token, %",
    "clipped steps, %",
  )
  rows = [
    (
      f"`{line['name']}`",
      f"{1e3 * line['base_lr'] * line['variant'].get('lr', 1):.1f}e-3",
      *(f"{line[split]['forward_kl']:.4f}" for split in ("validation", "held", "ood")),
      f"{line['held']['cross_entropy']:.4f}",
      f"{100 * line['held']['agreement']:.2f}",
      f"{100 * line['clipped']:.0f}",
    )
    for line in lines
  ]
  return table(header, rows)


def differences(lines: list[_Line]) -> str:
  """Returns a markdown table of differences to the baseline, a row for each line but that one."""
  baseline = next(line for line in lines if line["name"] == BASELINE)
  header = (
    "student",
    "held-out",
    "standard error",
    "other domain",
    "same top token, points",
    *(f"quarter {i}" for i in range(1, 5)),
  )

  def row(line: _Line) -> tuple[str, ...]:
    held, ood = line["held"], line["ood"]
    of = baseline["held"]
    return (
      f"`{line['name']}`",
      f"{held['forward_kl'] - of['forward_kl']:+.4f}",
      f"{row_error(line, baseline, 'held'):.4f}",
      f"{ood['forward_kl'] - baseline['ood']['forward_kl']:+.4f}",
      f"{100 * (held['agreement'] - of['agreement']):+.2f}",
      *(f"{held[name] - of[name]:+.3f}" for name in _QUARTERS),
    )

  rest = [line for line in lines if line is not baseline]
  rows = [row(line) for line in sorted(rest, key=lambda line: line["held"]["forward_kl"])]
  return table(header, rows)


def tables(lines: list[_Line]) -> str:
  """Returns the tables of all batches and seeds, under a line that says what they are."""
  groups = collections.defaultdict(list)
  for line in lines:
    groups[line["batch"], line["seed"]].append(line)
  parts = []
  for (batch, seed), group in groups.items():
    first = group[0]
    parts.append(
      f"Batch `{batch}`, seed {seed}: {first['steps']} steps, {first['tokens']:,} tokens, "
      f"{first['device']}, {first['seconds_per_step']:.3f} s per step and student."
    )
    baseline = [line for line in group if line["name"] == BASELINE]
    if baseline:
      parts.append(absolute(baseline))
      parts.append(differences(group))
    else:
      parts.append(absolute(group))
  return "\n\n".join(parts)


def of_file(path: pathlib.Path) -> str:
  """Returns the tables of a file that either command wrote."""
  lines = read(path)
  return seeds.tables(lines) if "changes" in lines[0] else tables(lines)


def of_cost() -> str:
  """Returns the table of what the students of the small setting cost, from what `cost` printed."""
  # The file with the most seeds first, whose figures are taken.
  results = [read(_DIRECTORY / f"{name}.jsonl") for name in seeds.SMALL]
  return seeds.costs(read(_DIRECTORY.parent / "cost.jsonl"), results)


def main() -> None:
  """Prints the tables of each file, and that of cost if none is named."""
  paths = RESULTS.value or sorted(map(str, _DIRECTORY.glob("*.jsonl")))
  parts = [of_file(pathlib.Path(path)) for path in paths]
  command_line.print_result("\n\n".join(parts if RESULTS.value else [of_cost(), *parts]))


if __name__ == "__main__":
  command_line.run(main)
