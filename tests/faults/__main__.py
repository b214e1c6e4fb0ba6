"""The fault suite: `python -m tests.faults [--quick] [NAME …]` prints a table.

Exit code 1 if a run did not survive as it should. Full, it takes over an hour on two cores; --quick
takes a few minutes.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

from tests.faults import conditions, kills
from tests.faults.kills import Outcome

Fault = Callable[[pathlib.Path, pathlib.Path, bool], Outcome]

FAULTS: dict[str, tuple[str, Fault]] = {
  "sigkill": (
    "SIGKILL, one process",
    lambda root, cache, quick: kills.killed(root, cache, 3 if quick else 50),
  ),
  "sigkill_two": (
    "SIGKILL, either or both of two processes",
    lambda root, cache, quick: kills.killed(
      root, cache, 2 if quick else 20, processes=2, devices=2, seed=1
    ),
  ),
  "sigterm": (
    "SIGTERM",
    lambda root, cache, quick: kills.terminated(root, cache, 3 if quick else 20),
  ),
  "damage": (
    "a file of the latest checkpoint deleted, cut short or with a flipped byte",
    lambda root, cache, quick: conditions.damaged(root, cache, 3 if quick else 60),
  ),
  "disk": (
    "the disk fills up and is freed again",
    lambda root, cache, quick: conditions.full_disk(root, cache),
  ),
  "devices": (
    "resumed on other devices and by other processes",
    lambda root, cache, quick: conditions.other_devices(root, cache),
  ),
  "stuck": (
    "one of two processes stands still",
    lambda root, cache, quick: conditions.stuck(root, cache),
  ),
  "teacher": (
    "the teacher's place",
    lambda root, cache, quick: conditions.teacher_places(root, cache),
  ),
  "two_runs": (
    "a second run in the workdir; the same command after the end",
    lambda root, cache, quick: conditions.two_runs(root, cache),
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
      title, fault = FAULTS[name]
      root, started = pathlib.Path(scratch) / name, time.monotonic()
      root.mkdir()
      outcome = fault(root, cache, arguments.quick)
      failed |= outcome.survived < outcome.tried
      minutes = (time.monotonic() - started) / 60
      cells = (title, outcome.tried, outcome.survived, outcome.compared, f"{minutes:.1f}")
      notes = outcome.notes.replace("|", "\\|").replace("\n", " ")
      print("| " + " | ".join(map(str, (*cells, notes))) + " |", flush=True)
  return int(failed)


if __name__ == "__main__":
  sys.exit(main())
