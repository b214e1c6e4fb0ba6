"""What operators do wrong, or meet: `python -m tests.faults.operators [NAME …]` prints a table.

Each row is a script of a few lines and what it must end with, and takes some seconds. Exit code 1
if one ends otherwise. Most need no rights of root; those that drop them do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from tests.faults import operator_rows, user_rows
from tests.faults.operator_rows import Row
from tests.faults.runs import ROOT

ROWS = (*operator_rows.ROWS, *user_rows.ROWS)
_STEPS = 40
_SECONDS = 300.0


class Result(NamedTuple):
  """What came of a row.

  Attributes:
    row: of the table.
    code: of the script.
    said: its last line on stderr.
    wrong: what is not as it must be, "" if nothing is.
    seconds: that it took.
  """

  row: Row
  code: int
  said: str
  wrong: str
  seconds: float


def _digest(directory: pathlib.Path) -> dict[str, str]:
  files = sorted(path for path in directory.rglob("*") if path.is_file())
  return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _environment(scratch: pathlib.Path, cache: pathlib.Path) -> dict[str, str]:
  python = sys.executable
  flags = (
    f"--config.data.cache={cache}/data --config.compilation_cache={cache}/programs "
    f"--config.eval.sample_tokens=0 --config.steps={_STEPS} --config.log_every=1 "
    "--config.checkpoint.every_steps=10 --config.eval.every_steps=20"
  )
  own = {
    "PY": python,
    "FLAGS": f"--config=configs/tiny.py {flags}",
    "TRAIN": f"{python} launch/run.py --config=configs/tiny.py {flags} --workdir={scratch}/run",
    "GENERATE": f"{python} launch/generate.py --model={scratch}/done/export --prompt=One",
    "S": str(scratch),
  }
  return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)} | own


def prepare(cache: pathlib.Path) -> None:
  """Makes the finished run that rows find at $S/done; everything is compiled then."""
  if (cache / "done" / "summary.json").exists():
    return
  environment = _environment(cache, cache)
  subprocess.run(
    ["bash", "-c", '$TRAIN --workdir="$S/done"'],
    cwd=ROOT,
    env=environment,
    check=True,
    capture_output=True,
  )


def attempt(row: Row, cache: pathlib.Path) -> Result:
  """Runs a row in a directory of its own, $S, which holds a finished run in $S/done."""
  with tempfile.TemporaryDirectory(prefix="egad-operator-") as name:
    scratch, started = pathlib.Path(name), time.monotonic()
    scratch.chmod(0o755)
    shutil.copytree(cache / "done", scratch / "done")
    before = _digest(scratch / "done")
    process = subprocess.Popen(
      ["bash", "-c", row.script],
      cwd=ROOT,
      env=_environment(scratch, cache),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
    )
    try:
      out, err = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, 9)
      out, err = process.communicate()
    seconds, text = time.monotonic() - started, (err + out).decode(errors="replace")
    wrong = []
    if process.returncode not in row.codes:
      wrong.append(f"code {process.returncode}")
    if "Traceback" in text:
      wrong.append("a traceback")
    wrong += [f"does not say {words!r}" for words in row.says if words not in text]
    if _digest(scratch / "done") != before:
      wrong.append("the finished run has changed")
    if wrong:
      wrong.append(text[-600:])
    lines = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
    said = lines[-1].replace(name, "") if lines else ""
    return Result(row, process.returncode, said, "; ".join(wrong), seconds)


def cells(result: Result) -> str:
  """The row of the table in docs/faults.md."""
  row = result.row
  after = result.wrong or f"code {result.code}" + (f": {result.said}" if result.said else "")
  command = " ".join((row.command or row.script).split())
  texts = (row.fault, f"`{command}`", row.before, after[:240])
  return "| " + " | ".join(" ".join(text.split()).replace("|", "\\|") for text in texts) + " |"


def main() -> int:
  """Prints the table, one row after another."""
  parser = argparse.ArgumentParser(prog="python -m tests.faults.operators")
  parser.add_argument("words", nargs="*", help="rows whose fault holds one of them; none: all")
  parser.add_argument("--cache", help="a directory that stays, instead of a new one")
  arguments = parser.parse_args()
  failed = False
  print("| fault | command | before | after |\n|---|---|---|---|")
  with tempfile.TemporaryDirectory(prefix="egad-operators-") as scratch:
    cache = pathlib.Path(arguments.cache or scratch)
    cache.mkdir(exist_ok=True)
    prepare(cache)
    for row in ROWS:
      if arguments.words and not any(word in row.fault for word in arguments.words):
        continue
      result = attempt(row, cache)
      failed |= bool(result.wrong)
      print(cells(result), flush=True)
      print(f"{row.fault}: {result.seconds:.1f} s", file=sys.stderr, flush=True)
  return int(failed)


if __name__ == "__main__":
  sys.exit(main())
