"""Runs that are killed or asked to end at random moments, and what is left of them at the end."""

from __future__ import annotations

import json
import pathlib
import random
import signal
import sys
import time
from typing import NamedTuple

from tests.faults.runs import Job, difference

# Signals come at any moment from the start on: importing, compiling, training, saving, evaluating.
STEPS = 40
FLAGS = (
  f"--config.steps={STEPS}",
  "--config.checkpoint.every_steps=5",
  "--config.eval.every_steps=7",
  "--config.log_every=1",
)
# More than one step and one save of the tiny config takes on a busy machine.
_END_SECONDS = 30.0


class Outcome(NamedTuple):
  """What became of one kind of fault.

  Attributes:
    tried: signals sent to processes that ran.
    survived: those after which the run went on as it should.
    compared: how the final states were compared.
    notes: what else was measured, or what was wrong.
  """

  tried: int
  survived: int
  compared: str
  notes: str


class Reference(NamedTuple):
  """The uninterrupted run that all others must equal.

  Attributes:
    workdir: of the run.
    seconds: that it took, with everything compiled before.
    training_seconds: of them, with evaluations and saves.
  """

  workdir: pathlib.Path
  seconds: float
  training_seconds: float


def reference(cache: pathlib.Path, *, processes: int = 1, devices: int = 1) -> Reference:
  """A run without a fault, made twice, since the first time everything is compiled."""
  root = cache / f"reference-{processes}-{devices}"
  noted = root / "seconds.json"
  if noted.exists():
    return Reference(root / "uninterrupted", *json.loads(noted.read_text()))
  for name in ("first", "uninterrupted"):
    workdir, started = root / name, time.monotonic()
    workdir.mkdir(parents=True)
    job = Job(workdir, cache, *FLAGS, processes=processes, devices=devices)
    codes = job.wait()
    if any(codes):
      raise RuntimeError(f"the uninterrupted run ended with {codes}:\n{job.text()}")
  if found := difference(root / "first", workdir, STEPS):
    raise RuntimeError(f"two uninterrupted runs differ: {found}")
  seconds = time.monotonic() - started
  sections = json.loads((workdir / "goodput.json").read_text())["seconds"]
  training = sum(sections[name] for name in ("data", "step", "evaluation", "saving"))
  noted.write_text(json.dumps([seconds, training]))
  return Reference(workdir, seconds, training)


def killed(
  root: pathlib.Path,
  cache: pathlib.Path,
  count: int,
  *,
  processes: int = 1,
  devices: int = 1,
  seed: int = 0,
) -> Outcome:
  """SIGKILL at random moments to a random process or to all, until `count` have struck."""
  rng, whole = random.Random(seed), reference(cache, processes=processes, devices=devices)
  struck, in_loop, chain, wrong = 0, 0, 0, []
  by_signal = {-signal.SIGKILL, -signal.SIGABRT, 134, 1}
  while struck < count:
    chain += 1
    workdir = root / f"killed-{chain}"
    while True:
      job = Job(workdir, cache, *FLAGS, processes=processes, devices=devices)
      if struck < count:
        trains = _pause(job, rng, whole)
        if job.running():
          in_loop += trains
          job.send(signal.SIGKILL, to=rng.choice([[i] for i in range(processes)] + [None]))
          struck += 1
      codes = job.wait()
      if not any(codes):
        break
      if not set(codes) <= by_signal | {0}:
        wrong.append(f"codes {codes}")
      _say(f"  {struck} of {count} kills, codes {codes}")
      if struck >= count and -signal.SIGKILL not in codes:
        wrong.append(f"ended with {codes} unasked: {job.text()[-300:]}")
        break
    if found := difference(whole.workdir, workdir, STEPS):
      wrong.append(f"run {chain}: {found}")
  notes = "; ".join(wrong) or _moments(chain, in_loop, struck)
  return Outcome(struck, struck if not wrong else 0, _COMPARED, notes)


def terminated(root: pathlib.Path, cache: pathlib.Path, count: int, *, seed: int = 0) -> Outcome:
  """SIGTERM at random moments: code 75, soon, and the resumed run is the uninterrupted one."""
  rng, whole = random.Random(seed), reference(cache)
  struck, in_loop, chain, slowest, wrong = 0, 0, 0, 0.0, []
  while struck < count:
    chain += 1
    workdir = root / f"terminated-{chain}"
    while True:
      job = Job(workdir, cache, *FLAGS)
      sent = None
      if struck < count:
        trains = _pause(job, rng, whole)
        if job.running():
          in_loop += trains
          job.send(signal.SIGTERM)
          struck, sent = struck + 1, time.monotonic()
      codes = job.wait()
      if sent is not None:
        slowest = max(slowest, time.monotonic() - sent)
      if codes == [0]:
        break
      _say(f"  {struck} of {count} signals, codes {codes}")
      if codes != [75]:
        wrong.append(f"code {codes}: {job.text()[-300:]}")
        break
    if found := difference(whole.workdir, workdir, STEPS):
      wrong.append(f"run {chain}: {found}")
  if slowest > _END_SECONDS:
    wrong.append(f"took {slowest:.1f} s to end")
  notes = "; ".join(wrong) or f"{_moments(chain, in_loop, struck)}; ended within {slowest:.1f} s"
  return Outcome(struck, struck if not wrong else 0, _COMPARED, notes)


# A process says so when its first step begins.
_TRAINS = "compiled the train step"
_COMPARED = "state, logs and export bit for bit"


def _pause(job: Job, rng: random.Random, whole: Reference) -> bool:
  """Waits for a random moment of a process that has just begun.

  Of the whole run one time in three, else of its training, which is a small part of so short a run.

  Returns:
    Whether it trained then, or evaluated or saved meanwhile.
  """
  before = job.text().count(_TRAINS)
  trains = lambda: job.text().count(_TRAINS) > before
  # In its first moments the interpreter does with a signal as the system tells it.
  end = time.monotonic() + rng.uniform(0.5, 0.8 * whole.seconds)
  if rng.random() < 2 / 3:
    while job.running() and not trains():
      time.sleep(0.01)
    end = time.monotonic() + rng.uniform(0, whole.training_seconds)
  while time.monotonic() < end and job.running():
    time.sleep(0.01)
  return trains()


def _moments(runs: int, in_loop: int, struck: int) -> str:
  return f"in {runs} runs; {in_loop} during training, {struck - in_loop} before or after it"


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
