"""A run that goes on in its workdir: what is free to change, what is refused, what is recorded."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from configs import tiny
from egad_jax import from_config
from egad_jax.durability.preemption import Preempted, Preemption
from egad_jax.durability.workdir import HARMLESS_KEYS
from egad_jax.errors import InputError
from egad_jax.from_config.trackers import TRACKERS
from egad_jax.training import evaluation
from tests.launch.stopping import EndAfter

STEPS, HALF = 4, 2
build_run = from_config.build


@pytest.fixture(scope="module")
def command():
  """`launch.run.train`; the flags that its module defines are given back."""
  before = set(flags.FLAGS)
  from launch import run

  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)
  return run.train


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """Texts, prepared data and compiled programs of all runs here."""
  directory = tmp_path_factory.mktemp("shared")
  lines = [{"text": f"Document {i} says that {i} and {i} make {2 * i}. " * 4} for i in range(40)]
  (directory / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return directory


@pytest.fixture(scope="module")
def _all_programs_are_kept():
  """Even those that are compiled quickly: the runs here have the same ones."""
  before = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  yield
  jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.fixture(scope="module")
def train(command, shared, _all_programs_are_kept):
  """`(workdir, steps=None, **changes)`: a run as small as can be, its config changed by key."""

  def train(workdir, *, until=None, force=False, devices=1, **changes):
    config = tiny.get_config()
    config.steps, config.batch_size, config.seq_len = STEPS, 8, 16
    config.optimizer.warmup_steps, config.distribution.fill_batches = 1, 0
    config.branch.weight, config.temperature.kind = 0.0, "fixed"
    config.student.layers, config.student.remat = 1, "none"
    config.compiler_options = "xla_backend_optimization_level=0"
    config.data.source, config.data.cache = str(shared / "texts.jsonl"), str(shared / "data")
    config.data.held_out_fraction, config.data.tokenizer = 0.2, "train:270"
    config.compilation_cache = str(shared / "programs")
    config.checkpoint.every_steps, config.eval.every_steps = 1, 0
    config.eval.sample_tokens, config.eval.rows, config.trackers = 2, 8, ()
    config.eval.prompts = ("one", "two")
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    early = Preemption() if until is None else EndAfter(until)
    with pytest.MonkeyPatch.context() as patch:
      # One device compiles fastest.
      some = jax.devices()[:devices]
      patch.setattr(from_config, "build", functools.partial(build_run, devices=some))
      return command(config, str(workdir), early, force=force)

  return train


@pytest.fixture(scope="module")
def half(train, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("half") / "run"
  with pytest.raises(Preempted):
    train(workdir, until=HALF)
  return workdir


@pytest.fixture(scope="module")
def finished(train, half, tmp_path_factory):
  """Resumed to its end, with nothing changed."""
  workdir = pathlib.Path(shutil.copytree(half, tmp_path_factory.mktemp("finished") / "run"))
  train(workdir)
  return workdir


@pytest.fixture
def halfway(half, tmp_path):
  return pathlib.Path(shutil.copytree(half, tmp_path / "run"))


@pytest.fixture
def done(finished, tmp_path):
  return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def read(workdir, name):
  return json.loads((workdir / name).read_text())


def lines(workdir, name):
  return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def content(workdir):
  return {
    path.relative_to(workdir): path.read_bytes()
    for path in workdir.rglob("*")
    if path.is_file() and path.name != ".lock"
  }


# Together they change every key that is called harmless.
FREE = {
  "fewer prompts, longer continuations": {
    "eval__prompts": ("two",),
    "eval__sample_tokens": 3,
    "log_every": 3,
    "checkpoint__every_steps": 0,
    "checkpoint__every_seconds": 0.0,
    "checkpoint__keep": 1,
    "checkpoint__keep_best": False,
    "eval__every_steps": 1,
    "watchdog__step_seconds": 500.0,
    "watchdog__other_seconds": 0.0,
    "teacher__placement": "host",
    "export__dtype": "bfloat16",
  },
  "more prompts": {
    "eval__prompts": ("three", "two", "one", "two"),
    "trackers": ("tensorboard",),
    "guard__max_skipped": 1,
    # After the last step: beside libtpu, which other tests load, the profiler of CPUs crashes.
    "profile__start_step": 1000,
    "profile__steps": 7,
    "compilation_cache": "",
    "checkpoint__every_seconds": 1e-6,
  },
  "no samples, other devices": {
    "eval__prompts": (),
    "eval__sample_tokens": 0,
    "mesh__replica": 2,
    "mesh__data": -1,
    "mesh__fsdp": 1,
    "mesh__tensor": 2,
    "teacher__mesh__devices": 4,
    "teacher__mesh__data": 2,
    "teacher__mesh__fsdp": 1,
    "teacher__mesh__tensor": 2,
  },
  "no samples": {"eval__sample_tokens": 0},
}
# The short form, of a finished run alone, changes the most keys; the long ones are beside it.
CASES = [
  pytest.param(name, marks=[] if name.startswith("fewer prompts") else [pytest.mark.slow])
  for name in FREE
]


def test_every_harmless_key_is_tried_here():
  tried = {key.replace("__", ".") for changes in FREE.values() for key in changes}
  assert tried == HARMLESS_KEYS


@pytest.mark.slow
@pytest.mark.parametrize("name", FREE)
def test_a_harmless_key_is_free_to_change_half_way(name, train, finished, halfway):
  other_devices = "devices" in name
  train(halfway, devices=8 if other_devices else 1, **FREE[name])
  kept = {(r["step"], r["loss"]) for r in lines(halfway, "metrics.jsonl")}
  expected = {(r["step"], r["loss"]) for r in lines(finished, "metrics.jsonl")}
  if other_devices:
    assert sorted(kept) == [(s, pytest.approx(x, rel=1e-5)) for s, x in sorted(expected)]
  else:
    assert kept <= expected
  assert max(kept)[0] == STEPS
  assert (halfway / "report.html").exists()
  assert read(halfway, "summary.json")["changes"] == []


@pytest.mark.parametrize("name", CASES)
def test_a_finished_run_stays_as_it_is_under_any_harmless_change(name, train, done):
  before = content(done)
  assert "nothing to do" in train(done, **FREE[name])
  assert content(done) == before


@pytest.mark.slow
def test_samples_are_of_the_prompts_asked_for_and_claim_no_more(train, half, done):
  """The prompts change when no step is left to make, and only the results are."""
  before = {sample["prompt"]: sample["before"] for sample in read(half, "samples.json")}
  assert set(before) == {"one", "two"}
  (done / "report.html").unlink()
  train(done, eval__prompts=("three", "two"))
  new, old = read(done, "samples.json")
  assert (new["prompt"], new["before"], old["prompt"]) == ("three", None, "two")
  assert old["before"] == before["two"]
  assert isinstance(new["after"], str)
  assert isinstance(new["teacher"], str)


REFUSED = {
  "no room for the continuation": ({"eval__sample_tokens": 512}, "sample_tokens"),
  "no room for the prompt": ({"eval__prompts": ("x " * 600,)}, "prompts"),
  "an empty prompt": ({"eval__prompts": ("one", "")}, "at least one token"),
  "a mesh": ({"mesh__fsdp": 3}, "mesh"),
  "another seed": ({"seed": 1}, r"seed: 0 there, 1 now"),
  "more steps": ({"steps": 6}, r"steps: 4 there, 6 now"),
  "fewer steps than made": ({"steps": 1, "optimizer__warmup_steps": 0}, r"config\.steps \(1\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_free_is_refused_and_changes_nothing(name, train, halfway):
  changes, message = REFUSED[name]
  before = content(halfway)
  with pytest.raises(InputError, match=message):
    train(halfway, **changes)
  assert content(halfway) == before


@pytest.mark.parametrize("steps", [1, 3])
def test_fewer_steps_than_made_are_refused_with_force_too(steps, train, done):
  before = content(done)
  with pytest.raises(InputError, match=rf"config\.steps \({steps}\).*4 steps.*force does not undo"):
    train(done, steps=steps, optimizer__warmup_steps=0, force=True)
  assert content(done) == before


@pytest.mark.parametrize("force", [False, True])
def test_checkpoints_without_their_config_are_refused(force, train, halfway):
  (halfway / "config.json").unlink()
  before = content(halfway)
  with pytest.raises(InputError, match=r"has checkpoints but no config\.json.*Restore"):
    train(halfway, force=force)
  assert content(halfway) == before


def test_what_a_finished_run_could_not_follow_is_refused(train, done):
  with pytest.raises(InputError, match=r"finished run.*optimizer\.learning_rate"):
    train(done, optimizer__learning_rate=1e-4, force=True)


@pytest.mark.slow
def test_a_forced_change_is_on_record_with_its_step(train, halfway):
  train(halfway, optimizer__learning_rate=1e-4, force=True)
  (change,) = read(halfway, "summary.json")["changes"]
  assert change == {
    "step": HALF,
    "what": "config.optimizer.learning_rate",
    "before": 3e-3,
    "after": 1e-4,
    "forced": True,
  }
  for name in ("report.html", "export/README.md"):
    text = (halfway / name).read_text()
    assert "optimizer.learning_rate: 0.003 until step 2, then 0.0001" in text


@pytest.mark.slow
def test_more_steps_train_a_finished_run_further_if_forced(train, done):
  train(done, steps=6, force=True)
  summary = read(done, "summary.json")
  assert (summary["steps"], summary["changes"][0]["step"]) == (6, STEPS)
  assert [r["step"] for r in lines(done, "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
  assert lines(done, "metrics.jsonl")[-1]["learning_rate"] == pytest.approx(3e-4, rel=1e-6)


@pytest.mark.slow
def test_a_student_that_breaks_is_null_and_the_run_ends_normally(
  train, halfway, caplog, monkeypatch
):
  evaluate = evaluation.evaluate

  def broken(sums, batches, **options):
    names = ("cross_entropy", "forward_kl", "student_entropy")
    return evaluate(lambda b: sums(b) | dict.fromkeys(names, jnp.nan), batches, **options)

  monkeypatch.setattr(evaluation, "evaluate", broken)
  with caplog.at_level("INFO", logger="egad_jax"):
    told = train(halfway, eval__every_steps=1, trackers=("tensorboard",))
  first, *_, last = lines(halfway, "evaluations.jsonl")
  summary = read(halfway, "summary.json")
  assert first["student"]["perplexity"] > 1
  for key in ("cross_entropy", "perplexity", "forward_kl", "bits_per_byte"):
    assert last["student"][key] is summary["student_after"][key] is None
    assert summary["student_before"][key] > 0
    assert summary["teacher"][key] is not None
  for words in ("forward KL n/a, perplexity n/a", "-> n/a", "is not finite: it is null"):
    assert words in caplog.text
  card = (halfway / "export" / "README.md").read_text()
  (perplexity,) = (line for line in card.splitlines() if line.startswith("| Perplexity"))
  assert perplexity.split("|")[3].strip() == "n/a"
  assert "n/a" in (halfway / "report.html").read_text()
  assert "Student:" in told


@pytest.mark.slow
def test_a_tracker_sees_one_run_over_its_starts(train, tmp_path, monkeypatch):
  starts = []

  class Recorder:
    def start(self, run):
      starts.append(calls := [run])
      self.log = lambda step, metrics: calls.append(("log", step, metrics["loss"]))
      self.evaluation = lambda step, values: calls.append(("held_out", step, values))
      self.finish = lambda summary, report: calls.append((summary, report))

  monkeypatch.setitem(TRACKERS, "mine", Recorder)
  workdir = tmp_path / "run"
  with pytest.raises(Preempted):
    train(workdir, until=HALF, trackers=("mine",), log_every=1)
  train(workdir, trackers=("mine",), log_every=1)
  first, second = starts
  assert first[0].run_id == second[0].run_id == read(workdir, "trackers.json")["run_id"]
  assert [calls[0].step for calls in starts] == [0, HALF]
  assert first[0].workdir == second[0].workdir == str(workdir)
  assert first[0].config["data.tokenizer"] == "train:270"
  measured = read(workdir, "summary.json")["student_after"]
  assert first[0].facts["student_parameters"] == measured["parameters"]
  logged = [call[1:] for calls in starts for call in calls[1:] if call[0] == "log"]
  assert logged == [(r["step"], r["loss"]) for r in lines(workdir, "metrics.jsonl")]
  assert [step for step, _ in logged] == list(range(1, STEPS + 1))
  held_out = [call[1:] for calls in starts for call in calls[1:] if call[0] == "held_out"]
  assert [step for step, _ in held_out] == [0, STEPS]
  last = lines(workdir, "evaluations.jsonl")[-1]["student"]
  assert held_out[-1][1]["held_out/forward_kl"] == last["forward_kl"]
  assert first[-1] == (None, None)
  summary, report = second[-1]
  assert (summary["steps"], summary["student_after.forward_kl"]) == (STEPS, last["forward_kl"])
  assert report == str(workdir / "report.html")


def assert_one_goodput(workdir, told):
  """Of the terminal, the summary and the report."""
  spent = read(workdir, "summary.json")["goodput"]
  assert sum(spent.values()) == pytest.approx(read(workdir, "summary.json")["seconds"])
  share = 100 * spent["step"] / sum(spent.values())
  assert f"goodput {share:.1f} %" in told
  assert f"{share:.1f} %" in (workdir / "report.html").read_text()


@pytest.mark.slow
def test_other_documents_in_the_same_file_are_refused_and_a_touched_file_is_not(
  train, shared, done, caplog
):
  path = shared / "texts.jsonl"
  text = path.read_text()
  path.write_text(text)  # Another time, the same text.
  (done / "report.html").unlink()
  with caplog.at_level("INFO", logger="egad_jax"):
    train(done)
  assert_one_goodput(done, caplog.text)
  (done / "report.html").unlink()
  try:
    path.write_text(text.replace("Document 7 says", "Document 7 said"))
    with pytest.raises(
      InputError, match=r"the documents \(config\.data\.source\): \w+ there, \w+ now"
    ):
      train(done)
    train(done, force=True)
  finally:
    path.write_text(text)
  changes = read(done, "summary.json")["changes"]
  assert {"data", "rows"} <= {change["what"] for change in changes}
  assert all(change["forced"] and change["step"] == STEPS for change in changes)
  assert "the documents (config.data.source)" in (done / "report.html").read_text()
