"""A long run that is only looked at: `python -m tests.faults.soak [--minutes=30]`.

The tiny config with evaluation and saving on. Prints how memory and open files moved, and what was
compiled after the beginning; exit code 1 if anything grew.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import sys
import tempfile
import time

import numpy as np

from tests.faults.runs import Job, lines

# Compilers, caches and logs settle; only then growth is a leak.
_SETTLE = 0.2
# Each save leaks some 40 KiB (docs/faults.md); at this interval that is not all there is to see.
_SAVE_STEPS = 250
_MIB_PER_HOUR = 60.0


def sample(pid: int) -> tuple[float, int]:
  """Resident memory in MiB and the number of open files of a process."""
  status = pathlib.Path(f"/proc/{pid}/statm").read_text().split()
  pages = int(status[1]) * os.sysconf("SC_PAGE_SIZE")
  return pages / 2**20, len(os.listdir(f"/proc/{pid}/fd"))


def main() -> int:
  """Runs, samples and prints."""
  parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
  parser.add_argument("--minutes", type=float, default=30.0)
  minutes = parser.parse_args().minutes
  os.environ["JAX_LOG_COMPILES"] = "1"
  with tempfile.TemporaryDirectory(prefix="egad-soak-") as scratch:
    root = pathlib.Path(scratch)
    flags = ("--config.steps=1000000", "--config.eval.every_steps=50")
    flags += (f"--config.checkpoint.every_steps={_SAVE_STEPS}", "--config.log_every=10")
    job = Job(root / "run", root / "cache", *flags)
    job.wait_for("step 100/")
    seconds, rows, compiled = 60 * minutes, [], None
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds and job.running():
      memory, files = sample(job.processes[0].pid)
      print(f"{now:6.0f} s  {memory:.1f} MiB, {files} open files", file=sys.stderr, flush=True)
      if now > _SETTLE * seconds:
        compiled = job.text().count("Finished XLA compilation") if compiled is None else compiled
        rows.append((now, memory, files))
      time.sleep(min(5.0, seconds / 60))
    again = job.text().count("Finished XLA compilation") - (compiled or 0)
    job.send(signal.SIGTERM)
    codes = job.wait()
    steps = max(record["step"] for record in lines(root / "run" / "metrics.jsonl"))
  times, memory, files = np.array(rows).T
  slope = np.polyfit(times, memory, 1)[0] * 3600
  # A save has files open while it writes.
  quarter = len(files) // 4
  first, last = np.median(files[:quarter]), np.median(files[-quarter:])
  print(f"minutes watched         {(times[-1] - times[0]) / 60:.1f}")
  print(f"steps, saves            {steps}, {steps // _SAVE_STEPS}")
  print(f"memory, MiB             {memory[0]:.0f} to {memory[-1]:.0f}, {slope:+.1f} an hour")
  print(
    f"open files              {files.min():.0f} to {files.max():.0f}, median {first:g} to {last:g}"
  )
  print(f"compilations meanwhile  {again}")
  print(f"exit code               {codes[0]}")
  flat = slope < _MIB_PER_HOUR and last <= first
  return int(not flat or again > 0 or codes != [75])


if __name__ == "__main__":
  sys.exit(main())
