"""Tests of the small study: its students, and the statistics of its tables."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from scipy import stats

from benchmarks.quality import small
from benchmarks.quality.seeds import difference, holm
from egad_jax import from_config
from launch import sweep_file

_STUDENTS = pathlib.Path(__file__).parents[2] / "benchmarks/quality/students"


@pytest.mark.parametrize("name", ["small", "small_others"])
def test_every_student_reads_all_keys_that_its_line_changes(name):
  students = sweep_file.read(str(_STUDENTS / f"{name}.jsonl"), small.get_config())
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
