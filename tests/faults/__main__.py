"""The fault suite: `python -m tests.faults [--quick] [NAME …]` prints a table.

Exit code 1 if a run did not survive as it should. Full, it takes over an hour on two cores; --quick
takes a few minutes.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.faults import conditions, kills
from tests.faults.kills import Outcome


class Fault(NamedTuple):
  """A row of the table.

  Attributes:
    title: of it.
    run: (directory, cache), then how many times if that is not fixed.
    times: quick and full; none: fixed.
  """

  title: str
  run: Callable[..., Outcome]
  times: tuple[int, ...] = ()


FAULTS = {
  "sigkill": Fault("SIGKILL, one process", kills.killed, (3, 50)),
  "sigkill_two": Fault(
    "SIGKILL, either or both of two processes",
    functools.partial(kills.killed, processes=2, devices=2, seed=1),
    (2, 20),
  ),
  "sigterm": Fault("SIGTERM", kills.terminated, (3, 20)),
  "damage": Fault(
    "a file of the latest checkpoint deleted, cut short or with a flipped byte",
    conditions.damaged,
    (3, 60),
  ),
  "disk": Fault("the disk fills up and is freed again", conditions.full_disk),
  "devices": Fault("resumed on other devices and by other processes", conditions.other_devices),
  "stuck": Fault("one of two processes stands still", conditions.stuck),
  "teacher": Fault("the teacher's place", conditions.teacher_places),
  "two_runs": Fault(
    "a second run in the workdir; the same command after the end", conditions.two_runs
  ),
}


def main() -> int:
  """Prints the table, one row after another."""
  parser = argparse.ArgumentParser(prog="python -m tests.faults")
  parser.add_argument("names", nargs="*", help=f"of {', '.join(FAULTS)}; none: all")
  parser.add_argument("--quick", action="store_true", help="fewer times each")
  arguments = parser.parse_args()
  if unknown := [name for name in arguments.names if name not in FAULTS]:
    parser.error(f"no {', '.join(unknown)}; there are {', '.join(FAULTS)}")
  print("| fault | tried | survived | compared | minutes | notes |\n|---|--:|--:|---|--:|---|")
  failed = False
  with tempfile.TemporaryDirectory(prefix="egad-faults-") as scratch:
    cache = pathlib.Path(scratch) / "cache"
    cache.mkdir()
    for name in arguments.names or FAULTS:
      title, run, times = FAULTS[name]
      root, started = pathlib.Path(scratch) / name, time.monotonic()
      root.mkdir()
      outcome = run(root, cache, *times[not arguments.quick :][:1])
      failed |= outcome.survived < outcome.tried
      minutes = (time.monotonic() - started) / 60
      cells = (title, outcome.tried, outcome.survived, outcome.compared, f"{minutes:.1f}")
      notes = outcome.notes.replace("|", "\\|").replace("\n", " ")
      print("| " + " | ".join(map(str, (*cells, notes))) + " |", flush=True)
  return int(failed)


if __name__ == "__main__":
  sys.exit(main())
