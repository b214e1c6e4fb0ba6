"""Runs that meet a damaged checkpoint, a full disk, other devices, or another run."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Iterator

import numpy as np

from tests.faults.damage import damage_cases
from tests.faults.kills import FLAGS, STEPS, Outcome, reference
from tests.faults.runs import Job, difference, lines


def stopped(workdir: pathlib.Path, cache: pathlib.Path, *flags: str, after: int, **how: int) -> Job:
  """A run ended by SIGTERM once it has logged a step; with a checkpoint of then and earlier."""
  job = Job(workdir, cache, *FLAGS, *flags, **how)
  job.wait_for(f"step {after}/")
  job.send(signal.SIGTERM, to=[0])
  codes = job.wait()
  if set(codes) != {75}:
    raise RuntimeError(f"codes {codes}:\n{job.text()}")
  return job


def damaged(root: pathlib.Path, cache: pathlib.Path, count: int) -> Outcome:
  """The train command with one file of its latest checkpoint damaged, evenly over all ways."""
  whole = reference(cache)
  stopped(root / "stopped", cache, after=12)
  last = max((root / "stopped" / "checkpoints").iterdir(), key=lambda path: int(path.name))
  cases = list(damage_cases(last))
  chosen = [cases[i * len(cases) // count] for i in range(count)]
  wrong, fell_back = [], 0
  for i, damage in enumerate(chosen):
    workdir = root / f"damaged-{i}"
    shutil.copytree(root / "stopped", workdir)
    damage.apply(workdir / "checkpoints" / last.name)
    job = Job(workdir, cache, *FLAGS)
    codes, text = job.wait(), job.text()
    told = f"step {last.name} is damaged" in text and "falling back to step" in text
    fell_back += told
    moved = (workdir / "checkpoints" / "quarantine" / last.name).exists()
    if codes != [0] or "Traceback" in text or told != moved:
      wrong.append(f"{damage}: codes {codes}, told {told}, moved {moved}: {text[-300:]}")
    elif found := difference(whole.workdir, workdir, STEPS):
      wrong.append(f"{damage}: {found}")
    shutil.rmtree(workdir)
  notes = "; ".join(wrong) or f"{fell_back} fell back, the others restored"
  return Outcome(count, count - len(wrong), "state, logs and export bit for bit", notes)


@contextlib.contextmanager
def small_disk(path: pathlib.Path, size: str) -> Iterator[None]:
  """A file system of its own of that size; needs the right to mount."""
  path.mkdir()
  subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
  try:
    yield
  finally:
    subprocess.run(["umount", "--lazy", path], check=True)


def full_disk(root: pathlib.Path, cache: pathlib.Path) -> Outcome:
  """The disk fills up while a run saves; later there is room again."""
  whole = reference(cache)
  with small_disk(root / "disk", "64m"):
    workdir, ballast = root / "disk" / "run", root / "disk" / "ballast"
    job = Job(workdir, cache, *FLAGS)
    job.wait_for("step 8/")
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
      while file.write(bytes(2**12)):
        pass
    job.wait_for("could not be written")
    ballast.unlink()
    codes, text = job.wait(), job.text()
    wrong = [] if codes == [0] else [f"codes {codes}: {text[-300:]}"]
    if "No space left on device" not in text or "Traceback" in text:
      wrong.append(f"said: {text[-500:]}")
    if not wrong and (found := difference(whole.workdir, workdir, STEPS)):
      wrong.append(found)
  said = next((line for line in text.splitlines() if "could not be written" in line), "")
  return Outcome(1, int(not wrong), "state, logs and export bit for bit", "; ".join(wrong) or said)


# (processes, devices of each, mesh)
_TOPOLOGIES = {
  "4 devices": (1, 4, ()),
  "2 devices": (1, 2, ()),
  "1 device": (1, 1, ()),
  "data 2, fsdp 2, tensor 2": (1, 8, ("--config.mesh.data=2", "--config.mesh.tensor=2")),
  "2 processes of 4 devices": (2, 4, ()),
}


def other_devices(root: pathlib.Path, cache: pathlib.Path) -> Outcome:
  """Saved on 8 devices, resumed on others; and of two processes, resumed by one."""
  stopped(root / "eight", cache, after=12, devices=8)
  stopped(root / "pair", cache, after=12, processes=2, devices=4)
  step = {
    name: max(int(p.name) for p in (root / name / "checkpoints").iterdir())
    for name in ("eight", "pair")
  }
  plans = [("eight", name, how) for name, how in _TOPOLOGIES.items()]
  plans += [("pair", "1 device", _TOPOLOGIES["1 device"])]
  # By step: the two were not stopped at the same one.
  expected: dict[int, float] = {}
  wrong, most = [], 0.0
  for start, name, (processes, devices, mesh) in [("eight", "same", (1, 8, ())), *plans]:
    workdir = root / f"{start} to {name}".replace(" ", "-").replace(",", "")
    shutil.copytree(root / start, workdir)
    job = Job(workdir, cache, *FLAGS, *mesh, processes=processes, devices=devices)
    codes = job.wait()
    if any(codes):
      wrong.append(f"{start} to {name}: codes {codes}: {job.text()[-300:]}")
      continue
    losses = {r["step"]: r["loss"] for r in lines(workdir / "metrics.jsonl")}
    expected = expected or losses
    compared = range(step[start] + 1, step[start] + 21)
    most = max(most, *(abs(losses[i] / expected[i] - 1) for i in compared))
  if most > 1e-5:
    wrong.append(f"losses differ by {most:.1e}")
  notes = "; ".join(wrong) or f"losses of the next 20 steps differ by {most:.1e} at most"
  return Outcome(len(plans), len(plans) - len(wrong), "loss to 1e-5", notes)


def two_runs(root: pathlib.Path, cache: pathlib.Path) -> Outcome:
  """A second run in a workdir in use is refused; a finished run is a no-op."""
  first = Job(root / "run", cache, *FLAGS)
  first.wait_for("step 2/")
  second = again(root, cache)
  codes = [second.wait(), first.wait(), again(root, cache).wait()]
  text = second.text() + first.text()
  told = "is in use by another run" in text and "nothing to do" in text
  wrong = [] if (codes == [[2], [0], [0]] and told) else [f"codes {codes}: {text[-500:]}"]
  return Outcome(2, 0 if wrong else 2, "exit codes 2 and 0", "; ".join(wrong))


def again(root: pathlib.Path, cache: pathlib.Path) -> Job:
  """The same command again."""
  return Job(root / "run", cache, *FLAGS)


# Process 1 never gets its sixth batch.
_STUCK = """
import runpy, sys, time
from egad_jax.data import pipeline
batches = pipeline.train_batches
def stuck(*args, **options):
  for i, batch in enumerate(batches(*args, **options)):
    if i == 5 and "--process_id=1" in sys.argv:
      time.sleep(10**6)
    yield batch
pipeline.train_batches = stuck
runpy.run_path("launch/run.py", run_name="__main__")
"""


def stuck(root: pathlib.Path, cache: pathlib.Path) -> Outcome:
  """One of two processes stands still, alive: both end, with the stacks of all threads."""
  job = Job(
    root / "run",
    cache,
    *FLAGS,
    "--config.watchdog.step_seconds=8",
    processes=2,
    command=("-c", _STUCK, "--config=configs/tiny.py"),
  )
  codes, texts = job.wait(), [job.text(0), job.text(1)]
  # Whichever watchdog is first ends its process; the other may hear of that before its own.
  ended = 1 in codes and not set(codes) & {0, 2, 75}
  told = any("Thread 0x" in text for text in texts)
  wrong = [] if ended and told else [f"codes {codes}: {texts[1][-800:]}"]
  return Outcome(1, int(not wrong), "exit codes, stacks", "; ".join(wrong) or f"codes {codes}")


def teacher_places(root: pathlib.Path, cache: pathlib.Path) -> Outcome:
  """The teacher on the student's devices, on devices of its own, and in host memory."""
  places = {
    "device": ("--config.mesh.fsdp=4", 4),
    "own": ("--config.teacher.mesh.devices=4", 8),
    "host": ("--config.teacher.placement=host", 4),
  }
  losses, wrong = {}, []
  for name, (flag, devices) in places.items():
    job = Job(root / name, cache, *FLAGS, flag, devices=devices)
    codes = job.wait()
    if codes != [0]:
      wrong.append(f"{name}: codes {codes}: {job.text()[-300:]}")
    losses[name] = [r["loss"] for r in lines(root / name / "metrics.jsonl")]
  most = 0.0
  if not wrong:
    most = max(
      float(np.max(np.abs(np.divide(losses[name], losses["device"]) - 1))) for name in places
    )
    wrong += [f"losses differ by {most:.1e}"] if most > 1e-5 else []
  notes = "; ".join(wrong) or f"losses of {STEPS} steps differ by {most:.1e} at most"
  return Outcome(3, 3 - len(wrong), "loss to 1e-5", notes)
