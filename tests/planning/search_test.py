"""Which variants are tried, and in which order they are shown; plans are made up here."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from egad_jax.errors import InputError
from egad_jax.planning import report
from egad_jax.planning.memory import Buffer
from egad_jax.planning.plan import Plan
from egad_jax.planning.program import Collective
from egad_jax.planning.search import search, variants
from tests.from_config.configs import changed

PLAN = Plan(
  config="tiny.py",
  topology="v5e:2x2",
  devices=4,
  chip="v5e",
  fits=True,
  hbm_bytes=2**34,
  arguments_bytes={"teacher": 5, "student": 6, "optimizer": 7, "other": 8},
  temporaries_bytes=2**30,
  total_bytes=2**30 + 26,
  flops=2 * 10**9,
  flops_minimum=10**9,
  modelled_seconds=0.5,
  roofline_seconds=0.25,
  tokens_per_step=512,
  tokens_per_second=1024.0,
  mfu=0.25,
  collectives=[Collective("all-gather", 1234, 5678)],
  largest_buffers=[Buffer(77777, "f32[1,2]", "params['a'][b]")],
  compile_seconds=3.0,
  notes=("Left out: communication.",),
)


def test_at_most_eight_and_the_config_itself_first():
  found = list(variants(changed(student__remat="dots")))
  assert len(found) == len({name for name, _ in found}) == 8
  assert found[0][0] == "batch_size=8 student.remat=dots mesh.tensor=1"
  assert {config.student.remat for _, config in found} == {"none", "dots", "full"}
  assert {config.batch_size for _, config in found} == {8, 16, 32}
  assert {config.mesh.tensor for _, config in found} == {1, 2}


def test_what_fits_comes_first_and_the_fastest_first_of_all():
  def make_plan(name, config):
    if config.mesh.tensor == 2:
      raise InputError("does not divide")
    fits = config.batch_size < 32
    speed = float(config.batch_size + len(config.student.remat)) if fits else None
    return dataclasses.replace(PLAN, config=name, fits=fits, tokens_per_second=speed)

  plans = search(changed(student__remat="dots"), make_plan)
  assert [plan.fits for plan in plans] == sorted((plan.fits for plan in plans), reverse=True)
  speeds = [plan.tokens_per_second for plan in plans if plan.fits]
  assert speeds == sorted(speeds, reverse=True)
  assert len(plans) == 7


def test_a_config_that_is_none_is_told():
  def make_plan(name, config):
    raise InputError("no mesh")

  with pytest.raises(InputError, match="no mesh"):
    search(changed(), make_plan)


def printed(show, what):
  console = Console(width=120, file=io.StringIO())
  show(what, console)
  return console.file.getvalue()


def test_the_report_has_everything():
  text = printed(report.print_plan, PLAN)
  for words in ("fits", "1.000 GiB", "16.000 GiB", "0.5000 s", "25.0%", "2.000", "1,234", "5,678"):
    assert words in text
  assert "params['a'][b]" in text
  assert "communication" in text


def test_the_report_counts_chips_and_where_they_are_more_devices():
  assert "on v5e:2x2 (4 chips): fits" in printed(report.print_plan, PLAN)
  two_a_chip = dataclasses.replace(PLAN, topology="tpu7x:2x2x1", chip="tpu7x", devices=8)
  assert "on tpu7x:2x2x1 (4 chips, 8 devices): fits" in printed(report.print_plan, two_a_chip)


def test_what_does_not_fit_has_no_times():
  nothing = dict.fromkeys(
    ("modelled_seconds", "roofline_seconds", "tokens_per_second", "mfu"), None
  )
  plan = dataclasses.replace(PLAN, fits=False, **nothing)
  assert "DOES NOT FIT" in printed(report.print_plan, plan)
  assert "does not fit" in printed(report.print_search, [PLAN, plan])
