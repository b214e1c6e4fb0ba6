"""Students that are trained together: each is that of its own run, bit for bit."""

from __future__ import annotations

import functools
import importlib
import json
import pathlib
import shutil

import jax
import pytest
from absl import flags

from configs import tiny
from egad_jax import from_config
from egad_jax.durability.preemption import Preempted, Preemption
from egad_jax.durability.sweep_directory import SweepDirectory
from egad_jax.errors import InputError
from egad_jax.training import results
from egad_jax.training.compiled_run import CompiledRun
from tests.launch.stopping import EndAfter
from tests.same_runs import numbers

STEPS, HALF = 4, 2
# Another loss, and a shorter run.
STUDENTS = {
  "base": {},
  "reverse": {"config.loss.divergence": "reverse_kl", "config.steps": 3},
}
# Other methods, layers of their own that are compared, distributions that see different batches.
MORE = {
  "taid": {"config.method": "taid", "config.distribution.fill_batches": 1},
  "taps": {"config.method": "egad", "config.branch.layers": "1:3", "config.log_every": 3},
  "other taps": {
    "config.method": "egad",
    "config.student.layers": 2,
    "config.branch.layers": "1:4,2:2",
  },
}


@pytest.fixture(scope="module")
def commands():
  """The modules of the commands; the flags that they define are given back."""
  found, before = [], set(flags.FLAGS)
  for name in ("run", "sweep", "sweep_file"):
    found.append(importlib.import_module(f"launch.{name}"))
    for flag in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, flag)
  return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """Texts, prepared data and compiled programs of all runs here."""
  directory = tmp_path_factory.mktemp("shared")
  lines = [{"text": f"Document {i} says that {i} and {i} make {2 * i}. " * 4} for i in range(40)]
  (directory / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  before = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  yield directory
  jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.fixture(scope="module")
def config(shared):
  config = tiny.get_config()
  config.steps, config.batch_size, config.seq_len = STEPS, 8, 16
  config.optimizer.warmup_steps, config.distribution.fill_batches = 1, 0
  config.method, config.student.layers, config.student.remat = "vanilla_kd", 1, "none"
  config.compiler_options = (
    "xla_backend_optimization_level=0,xla_llvm_disable_expensive_passes=True"
  )
  config.data.source, config.data.cache = str(shared / "texts.jsonl"), str(shared / "data")
  config.data.held_out_fraction, config.data.tokenizer = 0.2, "train:270"
  config.compilation_cache = str(shared / "programs")
  config.checkpoint.every_steps, config.eval.every_steps = 2, 2
  config.eval.sample_tokens, config.eval.rows, config.trackers = 0, 8, ()
  return config


@pytest.fixture(scope="module", autouse=True)
def _quick():
  """One device compiles fastest, and the reports of runs have tests of their own."""
  write = lambda path: (path / "report.html").write_text("")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(results, "write_report", write)
    sweep = importlib.import_module("egad_jax.from_config.sweep")
    build = functools.partial(from_config.build, devices=jax.devices()[:1])
    patch.setattr(from_config, "build", build)
    patch.setattr(sweep, "build", lambda config, workdir, devices: build(config, workdir))
    yield


@pytest.fixture(scope="module")
def train(commands, config, tmp_path_factory):
  """`(workdir, students, until=None)`: trains students together, in this process."""
  _, sweep, sweep_file = commands
  lines = tmp_path_factory.mktemp("lines") / "students.jsonl"

  def train(workdir, students, *, until=None, **options):
    lines.write_text(
      "".join(json.dumps({"name": name} | changes) + "\n" for name, changes in students.items())
    )
    early = Preemption() if until is None else EndAfter(until)
    return sweep.train(sweep_file.read(str(lines), config), str(workdir), early, **options)

  return train


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
  """A sweep that was interrupted and resumed, and the number of batches that it made each time."""
  workdir = tmp_path_factory.mktemp("sweep") / "runs"
  made = []

  def counting(run, *arguments):
    for batch in batches(run, *arguments):
      made[-1] += 1
      yield batch

  batches = CompiledRun.train_batches
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(CompiledRun, "train_batches", counting)
    made.append(0)
    with pytest.raises(Preempted):
      train(workdir, STUDENTS, until=HALF)
    made.append(0)
    told = train(workdir, STUDENTS)
  assert "sweep.html" in told
  return workdir, made


@pytest.fixture(scope="module")
def finished(trained):
  return trained[0]


@pytest.fixture(scope="module")
def alone(commands, config):
  """`(workdir, changes)`: trains a student of the sweep by itself."""

  def alone(workdir, changes):
    own = config.copy_and_resolve_references()
    own.update_from_flattened_dict({k.removeprefix("config."): v for k, v in changes.items()})
    commands[0].train(own, str(workdir), Preemption())
    return workdir

  return alone


def assert_same(found, expected, steps):
  """Every number, and every file that holds nothing of the clock."""
  assert numbers(found, steps) == numbers(expected, steps)
  for name in ("config.json", "passage.json", "export/config.json"):
    assert (found / name).read_bytes() == (expected / name).read_bytes()


def test_a_student_is_that_of_its_own_run_bit_for_bit(alone, finished, tmp_path):
  own = alone(tmp_path / "run", STUDENTS["reverse"])
  found = numbers(finished / "reverse", 3)
  assert [line["step"] for line in found["metrics"]] == [1, 2, 3]
  assert [line["step"] for line in found["evaluations"]] == [0, 2, 3]
  assert_same(finished / "reverse", own, 3)


@pytest.mark.slow
def test_students_of_all_kinds_with_samples_are_those_of_their_own_runs(train, alone, tmp_path):
  samples = {"config.eval.sample_tokens": 2, "config.eval.prompts": ["one", "two"]}
  students = {
    name.replace(" ", "_"): changes | samples for name, changes in (STUDENTS | MORE).items()
  }
  with pytest.raises(Preempted):
    train(tmp_path / "runs", students, until=HALF)
  train(tmp_path / "runs", students)
  for name, changes in students.items():
    own = alone(tmp_path / name, changes)
    assert_same(tmp_path / "runs" / name, own, changes.get("config.steps", STEPS))
    both = [(at / "samples.json").read_bytes() for at in (own, tmp_path / "runs" / name)]
    assert both[0] == both[1]


def test_the_teacher_computes_each_batch_once(trained):
  assert trained[1] == [HALF, STEPS - HALF]


def content(directory):
  return {
    path.relative_to(directory): path.read_bytes()
    for path in directory.rglob("*")
    if path.is_file() and path.name != ".lock"
  }


def test_a_finished_sweep_is_a_no_op(train, finished):
  before = content(finished)
  assert "nothing to do" in train(finished, STUDENTS)
  assert content(finished) == before


def test_the_records_compare_the_students_with_the_first(finished):
  records = [json.loads(line) for line in (finished / "sweep.jsonl").read_text().splitlines()]
  assert [(r["name"], r["changes"], r["failure"]) for r in records] == [
    (name, changes, None) for name, changes in STUDENTS.items()
  ]
  base, *others = records
  for record in records:
    summary = json.loads((finished / record["name"] / "summary.json").read_text())
    assert record["forward_kl"] == summary["student_after"]["forward_kl"]
    rows = json.loads((finished / record["name"] / "held_out_rows.json").read_text())
    mean = sum(rows["forward_kl"]) / sum(rows["tokens"])
    assert mean == pytest.approx(record["forward_kl"], rel=1e-5)
    parts = sum(x for row in rows["quarter_forward_kl"] for x in row)
    assert parts == pytest.approx(sum(rows["forward_kl"]), rel=1e-5)
  for record in others:
    found = record["difference"]["forward_kl"]
    # Float32 means per batch there, float64 sums of float32 tokens here.
    tolerance = 1e-6 * record["forward_kl"]
    assert found["mean"] == pytest.approx(record["forward_kl"] - base["forward_kl"], abs=tolerance)
    assert found["standard_error"] > 0
  page = (finished / "sweep.html").read_text()
  assert all(f">{name}<" in page for name in STUDENTS)
  assert page.count("<svg") == 3


def test_a_lost_report_is_made_again_without_training(train, finished, tmp_path, monkeypatch):
  copied = pathlib.Path(shutil.copytree(finished, tmp_path / "runs"))
  (copied / "sweep.html").unlink()
  monkeypatch.setattr(CompiledRun, "__init__", None)
  train(copied, STUDENTS)
  assert (copied / "sweep.html").read_text() == (finished / "sweep.html").read_text()


def test_a_directory_in_use_is_refused(train, finished):
  with SweepDirectory(str(finished)), pytest.raises(InputError, match="in use by another run"):
    train(finished, STUDENTS)


def test_a_run_and_a_sweep_do_not_share_a_directory(commands, train, config, finished):
  with pytest.raises(InputError, match=r"no workdir of egad_jax.*egad_jax\.json"):
    commands[0].train(config, str(finished), Preemption())
  with pytest.raises(InputError, match=r"no directory of a sweep.*egad_jax\.json"):
    train(finished / "base", STUDENTS)


def test_a_changed_student_is_refused_by_name(train, finished):
  before = content(finished)
  changed = STUDENTS | {"reverse": STUDENTS["reverse"] | {"config.loss.ce_weight": 0.5}}
  with pytest.raises(InputError, match=r"runs/reverse.*loss\.ce_weight: 0\.0 there, 0\.5 now"):
    train(finished, changed)
  assert content(finished) == before


@pytest.mark.slow
def test_a_new_student_joins_those_that_are_finished_and_one_that_fails_is_said(
  train, finished, tmp_path
):
  copied = pathlib.Path(shutil.copytree(finished, tmp_path / "runs"))
  more = {
    "bad": {"config.optimizer.learning_rate": 1e30, "config.guard.max_skipped": 1},
    # As "base", in the other memory.
    "late": {},
  }
  with pytest.raises(FloatingPointError, match=r"student bad was given up: step \d is not finite"):
    train(copied, STUDENTS | more, on_host=True)
  for name in ("late", "base"):
    assert_same(copied / name, finished / "base", STEPS)
  assert not (copied / "bad" / "summary.json").exists()
  assert list((copied / "bad").glob("bad_batch_*.json"))
  *_, bad, late = map(json.loads, (copied / "sweep.jsonl").read_text().splitlines())
  assert (bad["name"], bad["forward_kl"], late["failure"]) == ("bad", None, None)
  assert "not finite" in bad["failure"]
  assert late["difference"]["forward_kl"] == {"mean": 0.0, "standard_error": 0.0}
  assert "given up: step" in (copied / "sweep.html").read_text()
  # The same command tries it again.
  with pytest.raises(FloatingPointError, match="student bad was given up"):
    train(copied, STUDENTS | more)


def test_students_of_other_rows_are_refused(train, tmp_path):
  students = {
    "base": {},
    "pair": {"config.method": "x_token"},
  }
  with pytest.raises(
    InputError, match=r"student pair trains on other packed rows than student base"
  ):
    train(tmp_path / "runs", students)


def test_a_change_that_a_student_does_not_read_is_refused_before_anything_is_made(train, tmp_path):
  students = {"base": {}, "heavy": {"config.branch.weight": 0.5}}
  with pytest.raises(InputError, match=r"student heavy: config\.branch\.weight is not read"):
    train(tmp_path / "runs", students)
  assert not (tmp_path / "runs").exists()
