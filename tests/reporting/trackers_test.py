"""Trackers get each number once and in order; one that fails, hangs or is slow stops no run."""

from __future__ import annotations

import json
import sys
import threading
import time
import types

import pytest
from etils import epath

from egad_jax.durability.workdir import Workdir
from egad_jax.reporting import trackers
from egad_jax.reporting.events import TensorBoard
from egad_jax.reporting.metric_log import STEP_KEYS, MetricLog
from egad_jax.reporting.mlflow_tracker import MlflowTracker
from egad_jax.reporting.trackers import TrackedRun, Trackers
from egad_jax.reporting.wandb_tracker import WandbTracker
from tests.reporting.events_test import read

CALLS = ("make", "start", "log", "evaluation", "finish")


def a_run(step=0, run_id="ab" * 16, workdir="runs/mine", config=None):
  facts = {"student_parameters": 7}
  return TrackedRun(run_id, step, workdir, config or {"steps": 9, "loss.divergence": "kl"}, facts)


class Recorder:
  """Keeps its calls; does something else at one of them."""

  def __init__(self, at="", act=lambda: None):
    self.calls, self._at, self._act = [], at, act
    self._note("make")

  def _note(self, call, *arguments):
    if call == self._at:
      self._act()
    self.calls.append((call, *arguments))

  def start(self, run):
    self._note("start", run.step)

  def log(self, step, metrics):
    self._note("log", step, metrics)

  def evaluation(self, step, values):
    self._note("evaluation", step, values)

  def finish(self, summary, report):
    self._note("finish", summary, report)


def send(found):
  found.evaluation(0, {"held_out/kl": 2.0})
  for step in (1, 2):
    found.log(step, {"loss": 1 / step, "mfu": None, "grad_norm": float("nan")})
  found.close({"steps": 2}, "report.html")


SENT = [
  ("make",),
  ("start", 0),
  ("evaluation", 0, {"held_out/kl": 2.0}),
  ("log", 1, {"loss": 1.0}),
  ("log", 2, {"loss": 0.5}),
  ("finish", {"steps": 2}, "report.html"),
]


def test_every_tracker_gets_the_finite_numbers_in_order():
  first, second = Recorder(), Recorder()
  send(Trackers({"first": lambda: first, "second": lambda: second}, a_run()))
  assert first.calls == second.calls == SENT


def test_a_process_that_does_not_write_has_none():
  send(Trackers({"first": lambda: pytest.fail("made")}, None))


@pytest.mark.parametrize("error", [ValueError("line 1\nline 2"), SystemExit("line 1\nline 2")])
@pytest.mark.parametrize("at", CALLS)
def test_one_that_raises_is_told_once_and_dropped(at, error, caplog):
  def act():
    raise error

  made, other = [], Recorder()
  send(
    Trackers(
      {"bad": lambda: made.append(Recorder(at, act)) or made[0], "other": lambda: other}, a_run()
    )
  )
  assert other.calls == SENT
  [record] = caplog.records
  call = "start" if at == "make" else at
  expected = f"tracker bad is dropped and the run goes on: {call} raised {type(error).__name__}"
  assert record.levelname == "WARNING"
  assert record.getMessage() == f"{expected}: line 1 line 2"
  if made:
    assert made[0].calls == SENT[: [call for call, *_ in SENT].index(at)]


@pytest.mark.short_form(2)
@pytest.mark.parametrize("at", CALLS)
def test_one_that_hangs_is_told_once_and_dropped(at, caplog, monkeypatch):
  monkeypatch.setattr(trackers, "FINISH_SECONDS", 1.0)
  over, other = threading.Event(), Recorder()
  started = time.monotonic()
  send(Trackers({"bad": lambda: Recorder(at, over.wait), "other": lambda: other}, a_run()))
  assert time.monotonic() - started < 5
  over.set()
  assert other.calls == SENT
  [record] = caplog.records
  call = "start" if at == "make" else at
  assert f"tracker bad is dropped and the run goes on: {call} has not returned" in record.message


def test_one_that_hangs_is_dropped_during_the_run(caplog, monkeypatch):
  monkeypatch.setattr(trackers, "CALL_SECONDS", 0.5)
  over, begun = threading.Event(), threading.Event()
  bad = Recorder("log", lambda: begun.set() or over.wait())
  found = Trackers({"bad": lambda: bad}, a_run())
  found.log(1, {"loss": 1.0})
  assert begun.wait(10)
  found.log(2, {"loss": 1.0})
  time.sleep(0.6)
  for step in range(3, 100):
    found.log(step, {"loss": 1.0})
  assert [record.message for record in caplog.records] == [
    "tracker bad is dropped and the run goes on: log has not returned after 0.5 s"
  ]
  found.close(None, None)
  over.set()
  found._workers[0]._thread.join(10)
  # It takes nothing more when it returns after all.
  assert [call for call, *_ in bad.calls] == ["make", "start", "log"]


def test_a_slow_one_delays_no_step_and_lacks_what_is_too_much(caplog, monkeypatch):
  monkeypatch.setattr(trackers, "MOST_WAITING", 4)
  go = threading.Event()
  slow = Recorder("start", go.wait)
  found = Trackers({"slow": lambda: slow}, a_run())
  started = time.monotonic()
  for step in range(1, 101):
    found.log(step, {"loss": 1.0})
  assert time.monotonic() - started < 2
  assert [record.message for record in caplog.records] == [
    "tracker slow is 4 records behind: it will lack some, which metrics.jsonl has"
  ]
  go.set()
  found.close({"steps": 100}, "report.html")
  assert [step for call, step, *_ in slow.calls[2:-1]] == [1, 2, 3, 4]
  assert slow.calls[-1] == ("finish", {"steps": 100}, "report.html")


def test_the_log_sends_its_lines_and_evaluations(tmp_path):
  recorder = Recorder()
  values = dict.fromkeys(STEP_KEYS, 0.5) | {"tokens": 3.0, "grad_norm": float("inf"), "own": 2.0}
  with Workdir(str(tmp_path)) as workdir:
    log = MetricLog(
      workdir,
      steps=3,
      start=0,
      log_every=2,
      trackers=Trackers({"mine": lambda: recorder}, a_run()),
      measure=lambda seconds: {"mfu": None},
    )
    for step in (1, 2, 3):
      log.write(step, values, epoch=0.1, tokens=9, seconds=2.0)
    log.write_evaluation(3, {"student": {"agreement": 0.25, "perplexity": None}, "teacher": {}})
    log.close({"goodput": {"step": 1.5}, "steps": 3})
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  present = [{k: v for k, v in line.items() if v is not None and k != "step"} for line in lines]
  assert [line["step"] for line in lines] == [2, 3]
  assert recorder.calls[2:] == [
    ("log", 2, present[0]),
    ("log", 3, present[1]),
    ("evaluation", 3, {"held_out/agreement": 0.25}),
    ("finish", {"goodput.step": 1.5, "steps": 3}, str(workdir / "report.html")),
  ]
  assert present[0]["own"] == 2.0
  assert "grad_norm" not in present[0]


def test_the_run_id_is_made_once(tmp_path):
  with Workdir(str(tmp_path / "a")) as workdir:
    first = trackers.run_id(workdir)
  with Workdir(str(tmp_path / "a")) as workdir:
    workdir.require_ours()
    assert trackers.run_id(workdir) == first
  assert json.loads((tmp_path / "a" / "trackers.json").read_text()) == {"run_id": first}
  with Workdir(str(tmp_path / "b")) as workdir:
    assert len({first, trackers.run_id(workdir)}) == 2


def test_tensorboard_is_one_of_them(tmp_path):
  send(Trackers({"tensorboard": TensorBoard}, a_run(step=5, workdir=str(tmp_path))))
  [path] = epath.Path(tmp_path / "tensorboard").iterdir()
  _, start, *numbers = read(path)
  assert start.step == 6
  found = [(e.step, v.tag, v.simple_value) for e in numbers for v in e.summary.value]
  assert found == [(0, "held_out/kl", 2.0), (1, "loss", 1.0), (2, "loss", 0.5)]


class StubWandb(types.ModuleType):
  """The part of wandb that is used; its server keeps runs by their id."""

  def __init__(self):
    super().__init__("wandb")
    self.runs, self.settings = {}, []

  def Settings(self, **values):
    return values

  def setup(self, settings):
    self.settings.append(settings)

  def Html(self, text, inject):
    return ("html", text, inject)

  def init(self, *, id, resume, config, allow_val_change, settings):
    assert (resume, allow_val_change, settings) == ("allow", True, self.settings[-1])
    run = self.runs.setdefault(id, types.SimpleNamespace(logged=[], ended=[], summary={}, axes={}))
    run.config, run.offline, run.url = config, False, f"https://example.org/{id}"

    def log(values):
      run.logged.append(values)
      run.summary.update(values)

    def finish(exit_code):
      run.ended.append(exit_code)

    run.log, run.finish = log, finish

    def define_metric(name, step_metric, step_sync):
      assert not step_sync, "an evaluation would be a record of both axes"
      run.axes[name] = step_metric

    run.define_metric = define_metric
    return run


class StubMlflow(types.ModuleType):
  """The part of mlflow that is used; its server keeps runs in order."""

  def __init__(self):
    super().__init__("mlflow")
    self.runs = []

  def search_runs(self, *, filter_string, max_results, output_format):
    assert (max_results, output_format) == (1, "list")
    key, _, value = filter_string.removeprefix("tags.`").partition("` = ")
    return [run for run in self.runs if run.tags.get(key) == value.strip("'")]

  def start_run(self, run_id=None, tags=None):
    if run_id is not None:
      [run] = [run for run in self.runs if run.info.run_id == run_id]
      return run
    info = types.SimpleNamespace(run_id=f"server-{len(self.runs)}")
    run = types.SimpleNamespace(info=info, tags=tags, params={}, logged=[], texts={}, ended=[])
    self.runs.append(run)
    return run

  def log_params(self, params):
    assert not self.runs[-1].params.keys() & params.keys(), "a parameter cannot change"
    self.runs[-1].params.update(params)

  def log_metrics(self, metrics, step, run_id):
    self.runs[int(run_id[7:])].logged.append((step, metrics))

  def log_text(self, text, path, run_id):
    self.runs[int(run_id[7:])].texts[path] = text

  def end_run(self, status):
    self.runs[-1].ended.append(status)

  def MlflowClient(self):
    history = lambda run_id, key: [
      types.SimpleNamespace(step=step)
      for step, metrics in self.runs[int(run_id[7:])].logged
      if key in metrics
    ]
    return types.SimpleNamespace(get_metric_history=history)


def attempt(make, *, start, steps, summary=None, report=None, evaluations=(), config=None):
  """One start of a run that logs the steps after `start`."""
  found = Trackers({"it": make}, a_run(step=start, config=config))
  for step in range(start, steps + 1):
    if step > start:
      found.log(step, {"loss": 1 / step, "epoch": step / 10})
    if step in evaluations:
      found.evaluation(step, {"held_out/agreement": 0.5})
  found.close(summary, report)


@pytest.fixture
def report(tmp_path):
  path = tmp_path / "report.html"
  path.write_text("<b>näher</b>", encoding="utf-8")
  return str(path)


def resumed(make, report):
  """Killed after step 5 with a checkpoint of step 3, then to the end; evaluations each 2 steps."""
  attempt(make, start=0, steps=5, evaluations=(0, 2, 4))
  # A parameter that may change between starts has changed.
  config = {"steps": 9, "loss.divergence": "kl", "log_every": 2}
  done = {"steps": 7, "method": "egad", "goodput.step": 2.5}
  attempt(make, start=3, steps=7, evaluations=(4, 6, 7), summary=done, report=report, config=config)


def test_wandb_goes_on_with_the_same_run_without_repeating_steps(monkeypatch, report, caplog):
  monkeypatch.setitem(sys.modules, "wandb", stub := StubWandb())
  resumed(WandbTracker, report)
  assert not caplog.records
  [run] = stub.runs.values()
  assert list(stub.runs) == ["ab" * 16]
  assert [v["step"] for v in run.logged if "step" in v] == [1, 2, 3, 4, 5, 6, 7]
  assert [v["loss"] for v in run.logged if "step" in v] == [1 / s for s in range(1, 8)]
  evaluations = [v for v in run.logged if "held_out/step" in v]
  assert [v["held_out/step"] for v in evaluations] == [0, 2, 4, 6, 7]
  assert all(v["held_out/agreement"] == 0.5 for v in evaluations)
  assert run.axes == {"*": "step", "held_out/*": "held_out/step"}
  assert run.logged[-1] == {"report": ("html", "<b>näher</b>", False)}
  assert {k: v for k, v in run.summary.items() if k.startswith("summary/")} == {
    "summary/steps": 7,
    "summary/goodput.step": 2.5,
  }
  assert run.ended == [1, 0]
  assert run.config["loss.divergence"] == "kl"
  assert (run.config["student_parameters"], run.config["workdir"]) == (7, "runs/mine")
  # The client must neither ask for a key nor take over the console, and must not wait for ever.
  assert all(s["silent"] and s["console"] == "off" for s in stub.settings)
  assert all(0 < s["finish_timeout"] < trackers.FINISH_SECONDS for s in stub.settings)


def test_mlflow_goes_on_with_the_same_run_without_repeating_steps(monkeypatch, report, caplog):
  monkeypatch.setitem(sys.modules, "mlflow", stub := StubMlflow())
  resumed(MlflowTracker, report)
  assert not caplog.records
  [run] = stub.runs
  assert run.tags == {"egad_jax.run_id": "ab" * 16}
  losses = [(step, values["loss"]) for step, values in run.logged if "loss" in values]
  assert losses == [(step, 1 / step) for step in range(1, 8)]
  assert [step for step, v in run.logged if "held_out/agreement" in v] == [0, 2, 4, 6, 7]
  assert run.logged[-1] == (7, {"summary/steps": 7, "summary/goodput.step": 2.5})
  assert run.texts == {"report.html": "<b>näher</b>"}
  assert run.ended == ["KILLED", "FINISHED"]
  assert run.params["loss.divergence"] == "kl"
  assert (run.params["student_parameters"], run.params["workdir"]) == (7, "runs/mine")


def test_mlflow_ends_its_run_though_the_report_cannot_be_sent(monkeypatch, tmp_path, caplog):
  monkeypatch.setitem(sys.modules, "mlflow", stub := StubMlflow())
  attempt(MlflowTracker, start=0, steps=1, summary={"steps": 1}, report=str(tmp_path / "nowhere"))
  assert stub.runs[0].ended == ["FINISHED"]
  assert [r.levelname for r in caplog.records] == ["WARNING"]
  assert "finish raised FileNotFoundError" in caplog.text


@pytest.mark.parametrize(("name", "make"), [("wandb", WandbTracker), ("mlflow", MlflowTracker)])
def test_a_package_that_cannot_be_imported_is_told_once(name, make, monkeypatch, caplog):
  monkeypatch.setitem(sys.modules, name, None)
  attempt(make, start=0, steps=3, summary={"steps": 3})
  [record] = caplog.records
  assert "is dropped and the run goes on: start raised ModuleNotFoundError" in record.message
