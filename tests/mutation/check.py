"""Breaks the loss code in every way that `operators` knows and checks that a test fails for each.

  python -m tests.mutation.check                        all, and the page docs/mutations.md
  python -m tests.mutation.check --only temperature     the mutants whose site matches
  python -m tests.mutation.check --list --only egad     shows them and their tests; runs nothing

Every mutant runs the test files nearest to its module in a process of its own, in which an import
hook (`plugin`) serves the broken module. It counts as killed when a test's own call fails. A module
that cannot be imported, or a broken fixture, proves nothing: such a mutant is stillborn, and counts
neither way. The known equivalents run too, and must survive. Results are kept, so that an
interrupted run goes on where it was: that of a killed mutant for as long as the broken module and
the test that killed it are the same, any other for as long as all of its tests are. `--fresh`
forgets them. Exit code 1 when a mutant survives, a test fails without a mutant, or an equivalent is
killed.
"""

from __future__ import annotations

import argparse
import ast
import collections
import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib
import queue
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.mutation import worker
from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.mutants import ROOT, Mutant, all_mutants, chosen, files
from tests.mutation.nearest_tests import nearest_tests
from tests.mutation.page import page

KILLED, SURVIVED, STILLBORN = "killed", "SURVIVED", "stillborn"
EQUIVALENT, STALE, ERROR = "equivalent", "STALE", "ERROR"
# The worst that a run can say of a mutant; the exit code is 1 for them.
BAD = (SURVIVED, STALE, ERROR)
# Errors of a module that does not work at all, or of the machine, not of the maths.
PROVES_NOTHING = {
  "ImportError",
  "ModuleNotFoundError",
  "NameError",
  "SyntaxError",
  "UnboundLocalError",
  "UserWarning",
}
# A mutant may make a test slow, not ten times as slow as all of them together.
SLOWER, SECONDS = 10.0, 120.0
_BASELINE_READS = ("egad_jax/losses", "egad_jax/head", "egad_jax/methods")


class Result(NamedTuple):
  """What became of a mutant.

  Attributes:
    mutant: the mutant.
    status: one of the words above.
    why: the test that killed it, or why it proves nothing.
  """

  mutant: Mutant
  status: str
  why: str


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
    # By function, the tests that killed one of its mutants: they are the likeliest to kill others.
    self._killers: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    self._slots: queue.Queue[int] = queue.Queue()
    for slot in range(jobs):
      self._slots.put(slot)

  def baseline(self, test: str) -> dict[str, Any]:
    """The unbroken code's run of one test file; must be green."""
    texts = [path.read_text() for d in _BASELINE_READS for path in sorted((ROOT / d).glob("*.py"))]
    key = _digest(test, *_texts([test, *_helpers(test)]), *texts)
    if key not in self._results:
      self._keep(key, self._pytest((test,), {}, timeout=None))
    return self._results[key]

  def kept(self, mutant: Mutant, tests: Sequence[str]) -> dict[str, Any] | None:
    """The result of an earlier run of a mutant, if it still holds."""
    result = self._results.get(_digest(mutant.site.file, mutant.source))
    if result is None or result["asked"] != _asked(result, tests):
      return None
    self._learn(mutant, result)
    return result

  def run(self, mutant: Mutant, tests: Sequence[str], timeout: float) -> dict[str, Any]:
    """Runs a mutant until the first failing test."""
    killers = self._killers[mutant.site.file, mutant.site.function]
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory, "mutant.py")
      path.write_text(mutant.source)
      environment = {"MUTANT_FILE": mutant.site.file, "MUTANT_SOURCE": str(path)}
      environment["MUTANT_FIRST"] = "\n".join(killers)
      result = self._pytest(tests, environment, timeout)
    result["asked"] = _asked(result, tests)
    self._keep(_digest(mutant.site.file, mutant.source), result)
    self._learn(mutant, result)
    return result

  def _learn(self, mutant: Mutant, result: dict[str, Any]) -> None:
    killers = self._killers[mutant.site.file, mutant.site.function]
    killer = (result.get("failed") or {}).get("test")
    if killer and killer not in killers:
      killers.append(killer)

  def _keep(self, key: str, result: dict[str, Any]) -> None:
    with self._lock:
      self._results[key] = result
      # In one step, so that an interruption leaves a whole file.
      part = self._results_file.with_suffix(".part")
      part.write_text(json.dumps(self._results, indent=1))
      os.replace(part, self._results_file)

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
  """Returns (KILLED, SURVIVED, STILLBORN or ERROR; by which test or why)."""
  failed = result.get("failed") or {}
  timed_out = result["exit"] == "timeout"
  if timed_out or result["exit"] < 0:
    died = "no end within ten times the usual time" if timed_out else "the process died of signal"
    return KILLED, died if timed_out else f"{died} {-result['exit']}"
  if result["exit"] == 0:
    return (SURVIVED, "") if result["loaded"] else (ERROR, "no test imports the module")
  if result["exit"] == 1 and failed:
    test = failed["test"].removeprefix("tests/")
    if failed["when"] == "call" and failed["error"] not in PROVES_NOTHING and result["loaded"]:
      return KILLED, test
    return STILLBORN, f"{failed['error']} in {failed['when']} of {test}: {failed['message']}"
  # 1 and 2: files that could not be collected, since the broken module cannot be imported. 4: their
  # conftest could not be.
  unusable = result["exit"] == 4 and "loading conftest" in result["output"]
  if result["exit"] in (1, 2) or unusable:
    return STILLBORN, "a test file cannot be imported"
  return ERROR, f"pytest ended with {result['exit']}"


def main() -> int:
  """Runs what the command line asks for; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--only", default="", metavar="REGEX", help="a part of the mutants")
  parser.add_argument("--all", action="store_true", help="without the limit per function")
  parser.add_argument("--list", action="store_true", help="show the mutants, run none")
  parser.add_argument("--jobs", type=int, default=2, help="processes at once")
  parser.add_argument("--fresh", action="store_true", help="forget earlier results")
  parser.add_argument("--cache", type=pathlib.Path, default=ROOT / ".cache/mutations")
  parser.add_argument(
    "--page", type=pathlib.Path, help="where to write the page; without a part, docs/mutations.md"
  )
  options = parser.parse_args()
  mutants = [
    mutant
    for mutant in selected(options.all)
    if re.search(options.only, str(mutant.site), re.IGNORECASE)
  ]
  if options.list:
    for mutant in mutants:
      print(f"{mutant.site}\n  {mutant.before}\n  {mutant.after}")
    return 0
  runner = Runner(options.cache, options.jobs, options.fresh)
  with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
    waiting = [m for m in mutants if runner.kept(m, nearest_tests(m.site.file)) is None]
    tests = sorted({test for file in _files_of(waiting) for test in nearest_tests(file)})
    baselines = dict(zip(tests, pool.map(runner.baseline, tests), strict=True))
    red = {test for test, result in baselines.items() if result["exit"] != 0}
    for test in sorted(red):
      print(f"{test} fails without any mutant:\n{baselines[test]['output']}")

    def run(mutant: Mutant) -> Result:
      tests = nearest_tests(mutant.site.file)
      result = runner.kept(mutant, tests)
      if result is None and (broken := sorted(red.intersection(tests))):
        return Result(mutant, ERROR, f"{', '.join(broken)} fails without any mutant")
      if result is None:
        usual = sum(baselines[test]["seconds"] for test in tests)
        result = runner.run(mutant, tests, max(SECONDS, SLOWER * usual))
      seconds = result["seconds"]
      status, why = judge(result)
      if mutant.site in EQUIVALENTS and status in (KILLED, SURVIVED):
        status = STALE if status == KILLED else EQUIVALENT
      print(f"{status:10} {seconds:5.1f} s  {mutant.site}  [{why}]", flush=True)
      return Result(mutant, status, why)

    results = list(pool.map(run, mutants))
  bad = [result for result in results if result.status in BAD]
  counts = collections.Counter(result.status for result in results)
  print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
  for mutant, status, why in bad:
    print(f"{status} {mutant.site} {why}\n  {mutant.before}\n  {mutant.after}")
  is_whole = not options.only and not options.all
  if target := options.page or (is_whole and ROOT / "docs/mutations.md"):
    target.write_text(page(results))
  return 1 if bad or red else 0


def selected(everything: bool = False) -> list[Mutant]:
  """Returns the mutants to run: those chosen of every module, then the equivalents.

  Args:
    everything: all mutants instead.
  """
  if everything:
    return [mutant for file in files() for mutant in all_mutants(file)]
  mutants = []
  for file in files():
    mutants += chosen(all_mutants(file), but=EQUIVALENTS)
    mutants += [mutant for mutant in all_mutants(file) if mutant.site in EQUIVALENTS]
  return mutants


def _files_of(mutants: Sequence[Mutant]) -> set[str]:
  return {mutant.site.file for mutant in mutants}


def _digest(*texts: str) -> str:
  return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _asked(result: dict[str, Any], tests: Sequence[str]) -> str:
  """The digest of the tests that a mutant's result depends on: its killer, else all of them."""
  killer = (result.get("failed") or {}).get("test")
  if killer is None:
    return _digest(*tests, *_texts([*tests, *_helpers(*tests)]))
  path, name = killer.split("[")[0].split("::")
  if not (ROOT / path).is_file():
    return _digest(killer, "")
  text = _without_other_tests((ROOT / path).read_text(), name)
  return _digest(killer, text, *_texts(_helpers(path)))


def _without_other_tests(text: str, name: str) -> str:
  tree = ast.parse(text)
  is_other = lambda node: getattr(node, "name", "").startswith("test_") and node.name != name
  tree.body = [node for node in tree.body if not is_other(node)]
  return ast.unparse(tree)


def _texts(paths: Sequence[str]) -> list[str]:
  return [(ROOT / path).read_text() for path in paths]


@functools.cache
def _helpers(*tests: str) -> list[str]:
  """Returns the modules of tests/ that test files import, directly or not, and all conftests."""
  found: set[str] = set()
  waiting = [*tests, *(str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("conftest.py"))]
  while waiting:
    path = waiting.pop()
    found.add(path)
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
      modules = _tests_imported(node)
      files = (module.replace(".", "/") + ".py" for module in modules)
      waiting += [file for file in files if file not in found and (ROOT / file).is_file()]
  return sorted(found.difference(tests))


def _tests_imported(node: ast.AST) -> list[str]:
  """Returns the modules of tests/ that an import statement may read."""
  if isinstance(node, ast.Import):
    names = [alias.name for alias in node.names]
  elif isinstance(node, ast.ImportFrom) and node.module:
    names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
  else:
    return []
  return [name for name in names if name.startswith("tests.")]


if __name__ == "__main__":
  sys.exit(main())
