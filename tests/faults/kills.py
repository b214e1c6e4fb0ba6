"""Runs that are killed or asked to end at random moments, and what is left of them at the end."""

from __future__ import annotations

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
  *("--config.checkpoint.every_steps=5", "--config.eval.every_steps=7", "--config.log_every=1"),
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
  """

  workdir: pathlib.Path
  seconds: float


def reference(cache: pathlib.Path, *, processes: int = 1, devices: int = 1) -> Reference:
  """A run without a fault, made twice, since the first time everything is compiled."""
  root = cache / f"reference-{processes}-{devices}"
  noted = root / "seconds"
  if noted.exists():
    return Reference(root / "uninterrupted", float(noted.read_text()))
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
  noted.write_text(str(seconds))
  return Reference(workdir, seconds)


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
  struck, chain, wrong = 0, 0, []
  by_signal = {-signal.SIGKILL, -signal.SIGABRT, 134, 1}
  while struck < count:
    chain += 1
    workdir = root / f"killed-{chain}"
    while True:
      job = Job(workdir, cache, *FLAGS, processes=processes, devices=devices)
      if struck < count:
        _pause(job, rng.uniform(0, 0.8 * whole.seconds))
        if job.running():
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
  return Outcome(struck, struck if not wrong else 0, _COMPARED, "; ".join(wrong) or f"{chain} runs")


def terminated(root: pathlib.Path, cache: pathlib.Path, count: int, *, seed: int = 0) -> Outcome:
  """SIGTERM at random moments: code 75, soon, and the resumed run is the uninterrupted one."""
  rng, whole = random.Random(seed), reference(cache)
  struck, chain, slowest, wrong = 0, 0, 0.0, []
  while struck < count:
    chain += 1
    workdir = root / f"terminated-{chain}"
    while True:
      job = Job(workdir, cache, *FLAGS)
      sent = None
      if struck < count:
        # Before its first lines the interpreter does as the system tells it.
        _pause(job, rng.uniform(0.5, 0.8 * whole.seconds))
        if job.running():
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
  notes = "; ".join(wrong) or f"{chain} runs; ended within {slowest:.1f} s"
  return Outcome(struck, struck if not wrong else 0, _COMPARED, notes)


_COMPARED = "state, logs and export bit for bit"


def _pause(job: Job, seconds: float) -> None:
  end = time.monotonic() + seconds
  while time.monotonic() < end and job.running():
    time.sleep(0.01)


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
