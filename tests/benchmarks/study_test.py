"""Tests of the small study: its students, and the statistics of its tables."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from benchmarks.quality import small, smollm2_cpu
from benchmarks.quality.lines import read
from benchmarks.quality.seeds import by_student, compare, difference, holm
from benchmarks.quality.tuning import LR_KEY, at_rate, tune
from egad_jax import from_config
from launch import sweep_file

_ROOT = pathlib.Path(__file__).parents[2]
_STUDENTS = _ROOT / "benchmarks/quality/students"


@pytest.mark.parametrize("path", sorted(_STUDENTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_student_reads_all_keys_that_its_line_changes(path, tmp_path):
  config = smollm2_cpu if path.stem == "smollm2_cpu" else small
  # What the study makes of the file for a sweep.
  text = "".join(json.dumps(at_rate(line, 1e-3)) + "\n" for line in read(path))
  (file := tmp_path / path.name).write_text(text)
  students = sweep_file.read(str(file), config.get_config())
  assert students[0].name == "kd"
  for student in students:
    given = {key.removeprefix("config.") for key in student.changes}
    from_config.validate(student.config, given=given)


def test_differences_are_those_of_a_paired_t_test():
  rng = np.random.default_rng(0)
  ours, theirs = rng.normal(size=8), rng.normal(size=8) + 0.3
  found, known = difference(ours, theirs), stats.ttest_rel(ours, theirs)
  low, high = known.confidence_interval(0.95)
  np.testing.assert_allclose(found.mean, (ours - theirs).mean())
  np.testing.assert_allclose([found.low, found.high, found.p_value], [low, high, known.pvalue])
  np.testing.assert_allclose(found.mean / found.error, known.statistic)
  assert np.isnan(difference(ours[:1], theirs[:1]).error)


def test_holm_multiplies_by_the_hypotheses_that_are_left():
  np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
  np.testing.assert_allclose(holm([0.5, np.nan, 0.6]), [1.0, np.nan, 1.0])


def test_the_grid_goes_on_until_the_best_rate_has_neighbours():
  optimum = {"inside": 4e-3, "above": 32e-3, "below": 1e-3}
  asked = []

  def sweep(lines):
    asked.append(len(lines))
    rates = [(line["name"], line[LR_KEY]) for line in lines.values()]
    loss = lambda name, rate: {"forward_kl": abs(np.log(rate / optimum[name]))}
    return [{"name": n, "learning_rate": r, "validation": loss(n, r)} for n, r in rates]

  lines = [{"name": name, "seeds": 2} for name in optimum] + [{"name": "given", LR_KEY: 0.5}]
  lines += [{"name": "follower", "rate_of": "below"}]
  best, results = tune(sweep, lines, [2e-3, 4e-3, 8e-3])
  assert best["given"] == 0.5
  assert best["follower"] == best["below"]
  for name, rate in optimum.items():
    np.testing.assert_allclose(best[name], rate)
  # Three rates each; "below" then gets 1e-3 and 0.5e-3, "above" gets 16e-3, 32e-3 and 64e-3.
  assert asked == [9, 11, 13, 14]
  assert len(results) == 14
  assert tune(sweep, lines[:1], [2e-3])[0] == {"inside": 2e-3}


@pytest.mark.slow
def test_a_row_of_the_page_can_be_made_again(tmp_path):
  """The source of another version of Python is another text, so the figures are not the same."""
  known = by_student(read(_ROOT / "benchmarks/quality/results/small.jsonl"))
  rates = {name: known[name][1]["learning_rate"] for name in ("kd", "default")}
  lines = [
    {"name": "kd", "config.method": "vanilla_kd", LR_KEY: rates["kd"]},
    {"name": "default", LR_KEY: rates["default"]},
  ]
  students, text = tmp_path / "students.jsonl", tmp_path / "sources.jsonl"
  students.write_text("".join(json.dumps(line) + "\n" for line in lines))
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
  module = [sys.executable, "-m"]
  options = [
    f"--students={students}",
    f"--workdir={tmp_path}",
    f"--config.data.source={text}",
    "--seeds=1",
  ]
  output = tmp_path / "results.jsonl"
  for command in (
    [*module, "benchmarks.quality.python_sources", str(text)],
    [*module, "benchmarks.quality.study", *options, f"--output={output}"],
  ):
    subprocess.run(command, check=True, cwd=_ROOT, env=environment, timeout=600)
  made = by_student(read(output))
  for split in ("held", "ood"):
    seeds = [{s: known[n][s] for s in range(1, 11)} for n in ("default", "kd")]
    table = compare(*seeds, split, "forward_kl")
    # The interval in which one more seed lies with a confidence of 95 %.
    width = stats.t.ppf(0.975, 9) * table.error * np.sqrt(10 + 1)
    found = compare(made["default"], made["kd"], split, "forward_kl").mean
    assert abs(found - table.mean) <= width, split
