"""Stand-ins for the programs that the launchers start: small scripts that come first on PATH."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What is passed on to launch/run.py, with all that a shell or YAML could misread.
RUN_FLAGS = ("--config=configs/tiny.py", "--config.eval.prompts=('it''s', \"$(b) & c\")")

# Notes its arguments, takes the next code from the file `codes`, and ends with it.
TRAINER = """#!/usr/bin/env bash
for word in "$JAX_PLATFORMS" "$@"; do printf '%s\\n' "$word"; done >> started
echo . >> starts
code=$(head -n 1 codes); sed -i 1d codes
exit "$code"
"""
# Trains for ever; SIGTERM, SIGINT, SIGHUP: saves for a while and ends with 75; after two with 1.
# In Python: a trap of bash can miss a signal that comes while its `sleep` is started.
STEADY_TRAINER = f"""#!{sys.executable}
import signal, sys, time

def note(text, file):
  with open(file, "a") as notes:
    notes.write(text + "\\n")

ends = []
def end(number, frame):
  note("TERM", "signals")
  ends.append(number)

signal.signal(signal.SIGUSR1, lambda number, frame: note("USR1", "signals"))
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
  signal.signal(number, end)
note(".", "starts")
while not ends:
  time.sleep(0.02)
time.sleep(0.3)
sys.exit(75 if len(ends) == 1 else 1)
"""
GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$STUBS/calls"
code=0
for word in "$@"; do
  case $word in
    --worker=all) workers='0 1' ;;
    --worker=*) workers=${word#*=} ;;
    --command=*) command=${word#*=} ;;
    describe) head -n 1 "$STUBS/states"; sed -i 1d "$STUBS/states"; exit ;;
  esac
done
for worker in ${workers:-}; do
  (cd "$STUBS/worker$worker" && bash -c "$command") || code=$?
done
exit "$code"
"""


def executable(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def stand_ins(directory: pathlib.Path) -> None:
  """Fills directory/bin with programs that note that they were called, and fail."""
  for name in ("gcloud", "kubectl", "srun", "scontrol"):
    executable(directory / "bin" / name, '#!/bin/sh\necho "$0 $*" >> "$STUBS/calls"\nexit 99\n')


def run(stubs, *command, code=0, cwd=ROOT, **environment):
  """Runs a command with the stand-ins on PATH, checks its exit code and returns what it wrote."""
  found = subprocess.run(
    [os.fspath(word) for word in command],
    cwd=cwd,
    env=environment
    | {
      "PATH": f"{stubs}/bin:/usr/local/bin:/usr/bin:/bin",
      "STUBS": str(stubs),
      "HOME": str(stubs),
    },
    capture_output=True,
    text=True,
    timeout=30,
    check=False,
  )
  assert found.returncode == code, found.stdout + found.stderr
  return found.stdout, found.stderr


def lines(path: pathlib.Path) -> list[str]:
  return path.read_text().splitlines() if path.exists() else []


def wait_for(text: str, *files: pathlib.Path) -> None:
  deadline = time.monotonic() + 20
  while not all(file.exists() and text in file.read_text() for file in files):
    assert time.monotonic() < deadline, [file.read_text() for file in files if file.exists()]
    time.sleep(0.02)


def messages(stderr):
  """The lines that are no log and no progress: those begin with the time of day."""
  return [line for line in stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
