"""The comparison of students: differences against other computations, and what the page shows."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from egad_jax.durability.sweep_directory import SweepDirectory
from egad_jax.reporting import sweep_report
from tests.training.fake_run import HOSTILE, write_workdir


def test_a_difference_of_rows_of_one_length_is_that_of_a_paired_t_test():
  draw = np.random.default_rng(0)
  one, two = draw.random(20) + 0.3, draw.random(20)
  found = sweep_report.difference(list(one * 8), list(two * 8), [8] * 20)
  assert found.mean == pytest.approx(np.mean(one - two))
  assert found.standard_error == pytest.approx(np.std(one - two, ddof=1) / np.sqrt(20))


def test_a_difference_of_rows_of_several_lengths_has_the_error_of_a_bootstrap():
  draw = np.random.default_rng(1)
  tokens = draw.integers(1, 60, 400)
  sums = draw.normal(0.1 * tokens, 0.5 * np.sqrt(tokens))
  found = sweep_report.difference(list(sums), [0.0] * 400, list(tokens))
  assert found.mean == pytest.approx(sums.sum() / tokens.sum())
  rows = draw.integers(0, 400, (4000, 400))
  resampled = sums[rows].sum(axis=1) / tokens[rows].sum(axis=1)
  assert found.standard_error == pytest.approx(resampled.std(), rel=0.05)


@pytest.mark.parametrize(
  ("tokens", "expected"), [([0, 0], None), ([0, 4], (0.5, None)), ([2, 2], (0.5, 0.0))]
)
def test_few_tokens_and_rows(tokens, expected):
  sums = [0.5 * count for count in tokens]
  assert sweep_report.difference(sums, [0.0, 0.0], tokens) == expected


def rows_of(kl):
  """held_out_rows.json of two rows of two tokens, one of each in the outer quarters."""
  return {
    "step": 1,
    "rows": [3, 4],
    "tokens": [2, 2],
    "edges": [0.1, 0.2, 0.3],
    "forward_kl": [2 * kl, 4 * kl],
    "cross_entropy": [3 * kl, 3 * kl],
    "quarter_tokens": [[1, 0, 0, 1], [1, 0, 0, 1]],
    "quarter_forward_kl": [[0, 0, 0, 2 * kl], [kl, 0, 0, 3 * kl]],
  }


CHANGES = {
  "first": {},
  "second": {"config.data.source": HOSTILE},
  "lost": {"config.optimizer.learning_rate": 9.0},
}


@pytest.fixture
def directory(tmp_path):
  """Two finished students and one that was given up."""
  with SweepDirectory(str(tmp_path / "sweep")) as opened:
    write_workdir(tmp_path / "run")
    for name, kl in (("first", 1.0), ("second", 2.0)):
      shutil.copytree(tmp_path / "run", opened / name)
      (opened / name / "held_out_rows.json").write_text(json.dumps(rows_of(kl)))
    yield opened


def test_records_and_page(directory):
  sweep_report.write(directory, CHANGES, {"lost": f"step 3 {HOSTILE}"})
  first, second, lost = map(json.loads, (directory / "sweep.jsonl").read_text().splitlines())
  assert first["difference"] is None
  assert first["forward_kl_by_entropy"] == [0.5, None, None, 2.5]
  found = second["difference"]
  # 1 and 2 nats a token more on rows of two tokens: 1.5 on average, 0.5 from row to row.
  assert found["forward_kl"] == {"mean": 1.5, "standard_error": pytest.approx(0.5)}
  assert found["cross_entropy"] == {"mean": 1.5, "standard_error": 0.0}
  low, second_quarter, _, high = found["forward_kl_by_entropy"]
  assert (low["mean"], second_quarter, high["mean"]) == (0.5, None, 2.5)
  assert (lost["forward_kl"], lost["difference"]) == (None, None)
  page = (directory / "sweep.html").read_text()
  assert "<script>" not in page
  assert "<img" not in page
  assert "+1.5000 ± 0.5000" in page
  assert page.count("given up: step 3") == 1
  assert page.count("<svg") == page.count("</svg>") == 3
  assert "http:" not in page.replace("http://evil.example", "")
  # A sweep with a student that was given up is not at its end.
  assert not sweep_report.is_written(directory.path, CHANGES)


def test_the_comparison_of_finished_students_is_known_again(directory):
  changes = {name: CHANGES[name] for name in ("first", "second")}
  assert not sweep_report.is_written(directory.path, changes)
  sweep_report.write(directory, changes, {})
  assert sweep_report.is_written(directory.path, changes)
  assert not sweep_report.is_written(directory.path, {"second": changes["second"]})
  assert not sweep_report.is_written(directory.path, changes | {"first": {"config.seed": 1}})
  (directory / "sweep.jsonl").write_text("{")
  assert not sweep_report.is_written(directory.path, changes)


def test_students_of_other_rows_are_not_compared():
  one, two = rows_of(1.0), rows_of(2.0) | {"rows": [3, 5]}
  assert sweep_report.compare(one, two) is None
