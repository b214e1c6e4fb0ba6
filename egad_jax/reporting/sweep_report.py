"""Compares the students of a sweep: sweep.jsonl and a self-contained sweep.html.

Both are made from the files in the students' workdirs alone, and can be made again at any time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from egad_jax.durability import sweep_directory
from egad_jax.durability import workdir as files
from egad_jax.durability.jsonl_log import read_jsonl
from egad_jax.durability.sweep_directory import SweepDirectory
from egad_jax.files.storage import finite_or_none, read_json, write_text
from egad_jax.reporting import report, sweep_plots
from egad_jax.reporting.svg import Record

Changes = Mapping[str, Mapping[str, Any]]
_MEASURES = ("cross_entropy", "perplexity", "bits_per_byte", "forward_kl", "agreement")
_PAIRED = ("forward_kl", "cross_entropy")


class Difference(NamedTuple):
  """How far a student is from the first one, over the same held-out tokens.

  Attributes:
    mean: mean difference per token, this student minus the first; negative is better.
    standard_error: its standard error, with held-out rows as the independent parts; None for fewer
      than two rows.
  """

  mean: float
  standard_error: float | None


def difference(
  sums: Sequence[float], first: Sequence[float], tokens: Sequence[float]
) -> Difference | None:
  """The paired difference of two students' means per token; None without a token.

  Args:
    sums: a student's sum over the tokens of each row.
    first: the first student's sums over the same rows.
    tokens: number of tokens of each row.

  >>> difference([2.0, 6.0], [1.0, 3.0], [1, 1])
  Difference(mean=2.0, standard_error=1.0)
  """
  each, count = np.asarray(sums, np.float64) - np.asarray(first), np.asarray(tokens, np.float64)
  total, rows = count.sum(), np.count_nonzero(count)
  if not total:
    return None
  mean = each.sum() / total
  if rows < 2:
    return Difference(float(mean), None)
  # The error of a ratio of two sums, since rows have different numbers of tokens.
  square = np.sum((each - mean * count) ** 2) * rows / (rows - 1)
  return Difference(float(mean), float(math.sqrt(square) / total))


def compare(rows: Record, first: Record) -> dict[str, Any] | None:
  """The differences of two students, from their held_out_rows.json.

  Returns:
    "forward_kl" and "cross_entropy", a `Difference` each, and "forward_kl_by_entropy", four of them
    from the tokens of lowest teacher entropy to those of highest; None for other rows.
  """
  if any(rows[key] != first[key] for key in ("rows", "tokens", "quarter_tokens")):
    return None
  by_entropy = (
    np.asarray(each["quarter_" + key]).T
    for each, key in ((rows, "forward_kl"), (first, "forward_kl"), (rows, "tokens"))
  )
  return {
    **{key: difference(rows[key], first[key], rows["tokens"]) for key in _PAIRED},
    "forward_kl_by_entropy": [difference(*quarter) for quarter in zip(*by_entropy, strict=True)],
  }


def quarters(rows: Record) -> list[float | None]:
  """Mean forward KL in nats in each quarter of the tokens by teacher entropy; None for no token."""
  sums, counts = (np.sum(rows[f"quarter_{key}"], axis=0) for key in ("forward_kl", "tokens"))
  return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]


def is_written(directory: epath.Path, changes: Changes) -> bool:
  """Whether the comparison of these students, all of them finished, has been written."""
  if not (directory / sweep_directory.REPORT).exists():
    return False
  try:
    lines = (directory / sweep_directory.RECORDS).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    made = [(record["name"], record["changes"], record["failure"]) for record in records]
  except (OSError, ValueError, TypeError, KeyError):
    return False
  return made == [(name, dict(change), None) for name, change in changes.items()]


def write(directory: SweepDirectory, changes: Changes, failures: Mapping[str, str]) -> None:
  """Writes sweep.jsonl and sweep.html.

  Args:
    directory: the sweep's directory, with the students' workdirs.
    changes: the keys that each student changes, {name: {"config.key": value}}, in the file's order.
    failures: why students were given up, by their names.
  """
  records = _records(directory.path, changes, failures)
  lines = "".join(json.dumps(finite_or_none(record)) + "\n" for record in records)
  with directory.writing(sweep_directory.RECORDS):
    write_text(directory / sweep_directory.RECORDS, lines)
  page = _render(directory.path, records)
  with directory.writing(sweep_directory.REPORT):
    # File names may hold lone surrogates, which UTF-8 cannot carry.
    write_text(directory / sweep_directory.REPORT, page.encode("utf-8", "replace").decode())


def _records(
  directory: epath.Path, changes: Changes, failures: Mapping[str, str]
) -> list[dict[str, Any]]:
  """The lines of sweep.jsonl; see docs/files.md."""
  first: Record | None = None
  records = []
  for index, (name, change) in enumerate(changes.items()):
    workdir = directory / name
    failed = name in failures
    summary = {} if failed else read_json(workdir / files.SUMMARY) or {}
    rows = None if failed else read_json(workdir / files.HELD_OUT_ROWS)
    first = rows if index == 0 else first
    after = summary.get("student_after") or {}
    paired = compare(rows, first) if index and rows and first else None
    records.append(
      {
        "name": name,
        "changes": dict(change),
        "failure": failures.get(name),
        **{key: summary.get(key) for key in ("steps", "skipped_steps", "tokens", "seconds")},
        "parameters": after.get("parameters"),
        **{key: after.get(key) for key in _MEASURES},
        "teacher": summary.get("teacher"),
        "forward_kl_by_entropy": quarters(rows) if rows else None,
        "edges": rows["edges"] if rows else None,
        "difference": paired and _plain(paired),
      }
    )
  return records


def _plain(value: Any) -> Any:
  if isinstance(value, Difference):
    return value._asdict()
  if isinstance(value, list):
    return [_plain(each) for each in value]
  return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def _render(directory: epath.Path, records: Sequence[Record]) -> str:
  """The page as one HTML document that loads no other resource."""
  names = [record["name"] for record in records]
  known = [record for record in records if record["forward_kl_by_entropy"]]
  teacher: Record = next((record["teacher"] for record in records if record["teacher"]), {})
  return (
    report.environment()
    .get_template("sweep.html.j2")
    .render(
      students=records,
      first=names[0],
      teacher=teacher,
      edges=next((record["edges"] for record in known), None),
      quarters=sweep_plots.QUARTERS,
      palettes={},
      duration=report.duration,
      panels_of_students=sweep_plots.panels(
        {name: read_jsonl(directory / name / files.METRICS) for name in names},
        {name: read_jsonl(directory / name / files.EVALUATIONS) for name in names},
        {record["name"]: record["forward_kl_by_entropy"] for record in known},
      ),
    )
  )
