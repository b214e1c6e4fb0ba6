"""Breaks each loss line in turn and checks that a test fails for it.

  python -m tests.mutation.check                        all, and the page docs/mutations.md
  python -m tests.mutation.check --only temperature     those whose file, kind or words match

Every mutation runs its test files in a process of its own, in which an import hook (`plugin`)
serves the broken text of one module. It counts as killed when a test's own call fails; a module
that cannot be imported, a broken fixture or a misspelt name proves nothing and is an error. Results
are kept, by the hash of the broken module and of the tests, so that an interrupted run goes on
where it was; `--fresh` forgets them. Exit code 1 when a mutation survives or proves nothing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import queue
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from tests.mutation import worker
from tests.mutation.mutant import ROOT, Mutation, mutated_source
from tests.mutation.page import page
from tests.mutation.table import EQUIVALENTS, MUTATIONS

# Errors that say that the mutation is misspelt, or that the machine is at fault, not the maths.
PROVES_NOTHING = (
  *("AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "SyntaxError"),
  *("UnboundLocalError", "UserWarning"),
)
# A mutation may make a test slow, not ten times as slow as all of them together.
SLOWER, SECONDS = 10.0, 120.0
_BASELINE_READS = ("egad_jax/losses", "egad_jax/head", "tests/losses", "tests/head")


class Runner:
  """Runs pytest processes, each with a compilation cache that no other process writes.

  Attributes:
    cache: directory of results and compiled programs.
  """

  def __init__(self, cache: pathlib.Path, jobs: int, fresh: bool) -> None:
    self.cache = cache.resolve()
    self._context = worker.start()
    cache.mkdir(parents=True, exist_ok=True)
    self._results_file = cache / "results.json"
    kept = self._results_file.exists() and not fresh
    self._results: dict[str, Any] = json.loads(self._results_file.read_text()) if kept else {}
    self._lock = threading.Lock()
    self._slots: queue.Queue[int] = queue.Queue()
    for slot in range(jobs):
      self._slots.put(slot)

  def baseline(self, tests: str) -> dict[str, Any]:
    """The unbroken code's run of one test file; must be green."""
    key = _digest(tests, *(t for d in _BASELINE_READS for t in _texts(d)))
    return self._kept(key, lambda: self._pytest((tests,), {}, timeout=None))

  def mutant(self, mutation: Mutation, timeout: float) -> dict[str, Any]:
    """The run of one mutation, until the first failing test."""
    source = mutated_source(mutation)
    texts = [(ROOT / test).read_text() for test in mutation.tests]
    texts += [path.read_text() for path in sorted((ROOT / "tests").rglob("conftest.py"))]

    def run() -> dict[str, Any]:
      with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "mutant.py")
        path.write_text(source)
        environment = {"MUTANT_FILE": mutation.file, "MUTANT_SOURCE": str(path)}
        return self._pytest(mutation.tests, environment, timeout)

    return self._kept(_digest(mutation.file, source, *mutation.tests, *texts), run)

  def _kept(self, key: str, run) -> dict[str, Any]:
    if key not in self._results:
      result = run()
      with self._lock:
        self._results[key] = result
        self._results_file.write_text(json.dumps(self._results, indent=1))
    return self._results[key]

  def _pytest(
    self, tests: Sequence[str], environment: dict[str, str], timeout: float | None
  ) -> dict[str, Any]:
    slot = self._slots.get()
    start = time.monotonic()
    try:
      with tempfile.TemporaryDirectory() as directory:
        verdict, output = (pathlib.Path(directory, name) for name in ("verdict.json", "output"))
        environment = environment | {"MUTANT_VERDICT": str(verdict)}
        arguments = (tests, ROOT, environment, output, self.cache / f"compiled-{slot}")
        process = self._context.Process(target=worker.run_pytest, args=arguments, daemon=True)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
          process.kill()
          process.join()
          return {"exit": "timeout", "seconds": timeout}
        result = json.loads(verdict.read_text()) if verdict.exists() else {"exit": process.exitcode}
        result["output"] = output.read_text(errors="replace")[-2000:]
    finally:
      self._slots.put(slot)
    return result | {"seconds": round(time.monotonic() - start, 1)}


def judge(result: dict[str, Any]) -> tuple[str, str]:
  """Returns ("killed" | "SURVIVED" | "INVALID", by which test or why)."""
  failed = result.get("failed") or {}
  if result["exit"] == "timeout":
    return "killed", "no end within ten times the usual time"
  if result["exit"] == 0:
    return ("SURVIVED", "") if result["loaded"] else ("INVALID", "the module was never imported")
  if result["exit"] != 1 or not failed:
    return "INVALID", f"pytest ended with {result['exit']}, without a failed test"
  test = failed["test"].removeprefix("tests/")
  if failed["when"] != "call" or failed["error"] in PROVES_NOTHING or not result["loaded"]:
    return "INVALID", f"{failed['error']} in {failed['when']} of {test}: {failed['message']}"
  return "killed", test


def main() -> int:
  """Runs what the command line asks for; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--only", default="", metavar="REGEX", help="a part of the table; no page")
  parser.add_argument("--jobs", type=int, default=2, help="processes at once")
  parser.add_argument("--fresh", action="store_true", help="forget earlier results")
  parser.add_argument("--cache", type=pathlib.Path, default=ROOT / ".cache/mutations")
  parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs/mutations.md")
  options = parser.parse_args()
  mutations = [
    m for m in MUTATIONS if re.search(options.only, f"{m.file} {m.kind} {m.breaks}", re.IGNORECASE)
  ]
  runner = Runner(options.cache, options.jobs, options.fresh)
  with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    baselines = dict(zip(tests, pool.map(runner.baseline, tests), strict=True))
    red = {test for test, result in baselines.items() if result["exit"] != 0}
    for test in sorted(red):
      print(f"{test} fails without any mutation:\n{baselines[test]['output']}")

    def run(mutation: Mutation) -> tuple[Mutation, str, str]:
      usual = sum(baselines[test]["seconds"] for test in mutation.tests)
      seconds = 0.0
      try:
        if broken := red.intersection(mutation.tests):
          raise ValueError(f"{', '.join(sorted(broken))} fails without any mutation")
        result = runner.mutant(mutation, max(SECONDS, SLOWER * usual))
        seconds = result["seconds"]
        status, why = judge(result)
      except ValueError as error:
        status, why = "INVALID", str(error)
      name = f"{mutation.file.removeprefix('egad_jax/')}: {mutation.breaks}"
      print(f"{status:8} {seconds:5.1f} s  {name}  [{why}]", flush=True)
      return mutation, status, why

    results = list(pool.map(run, mutations))
  bad = [result for result in results if result[1] != "killed"]
  print(f"{len(results) - len(bad)} of {len(results)} mutations are killed.")
  for mutation, status, why in bad:
    print(f"  {status} {mutation.file}: {mutation.breaks} {why}")
  if not options.only:
    options.page.write_text(page(results, EQUIVALENTS))
  return 1 if bad else 0


def _digest(*texts: str) -> str:
  return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _texts(directory: str) -> list[str]:
  return [path.read_text() for path in sorted((ROOT / directory).rglob("*.py"))]


if __name__ == "__main__":
  sys.exit(main())
