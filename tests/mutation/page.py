"""The page docs/mutations.md."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.mutants import PER_FUNCTION, all_mutants, files
from tests.mutation.operators import OPERATORS

if TYPE_CHECKING:
  from tests.mutation.check import Result

_HEAD = """# Mutation check

A test that stays green when the code is broken tests nothing. `make mutations` breaks the code of
the losses, the heads and the methods, one node of the syntax tree at a time, and runs the tests
nearest to that module on the broken copy. A mutant is killed when a test fails; a mutant that
survives is a hole in the tests, and makes the command fail. An import hook serves the copy, so the
working tree is never touched. This page is written by the command.

```bash
make mutations                                                     # all; writes this page
.venv/bin/python -m tests.mutation.check --only temperature        # a part
.venv/bin/python -m tests.mutation.check --only temperature --list # shows the part, runs nothing
.venv/bin/python -m tests.mutation.check --only temperature --all  # without the limit per function
```

Nobody writes mutants. `tests/mutation/operators.py` says how each kind of node is broken, and every
function of every module has the mutants of its own nodes, so new code has them at once and a
renamed variable or a moved line changes nothing. A mutant is named by its file, its function, its
operator and its index among that operator's mutants in that function.

Of each function's mutants at most {per_function} is run, so that all run in about an hour on two
cores: the first `detach`, `mask`, `bound` and `power`, the first of each other, then the
second of each, and so on. The other operators take turns: the name of the function says with which
one it begins. So the choice depends on the code alone, and together the functions have mutants of
all operators. `--all` runs every mutant of a part.

A mutant that no test can tell from the code is listed in `tests/mutation/equivalents.py` with the
reason. Those run too, and the command fails when a test kills one: the entry is then wrong, or it
names another node since the function changed. A mutant with which a test file cannot be imported
is stillborn, which proves nothing, and counts neither as killed nor as a survivor.
"""


def page(results: Sequence[Result]) -> str:
  """Returns the page as Markdown."""
  counts = collections.Counter(result.status for result in results)
  modules = len({result.mutant.site.file for result in results})
  everything = sum(len(all_mutants(file)) for file in files())
  tried = counts["killed"] + counts["SURVIVED"]
  lines = [
    _HEAD.format(per_function=PER_FUNCTION),
    f"**{counts['killed']} of {tried} mutants in {modules} of {len(files())} files are killed.**"
    f" Further {counts['stillborn']} are stillborn and {counts['equivalent']} are known"
    f" equivalents; {everything} mutants exist.",
  ]
  bad = [r for r in results if r.status not in ("killed", "stillborn", "equivalent")]
  lines += _section("Survivors", bad, [f"**{r.status}** {r.why}".strip() for r in bad])
  lines += ["", "## Operators", "", "| operator | what it does | killed | survived |"]
  lines += ["|---|---|---|---|"]
  for operator, (_, words) in OPERATORS.items():
    of_operator = [r for r in results if r.mutant.site.operator == operator]
    lines.append(f"| {operator} | {_cell(words)} | {_killed_survived(of_operator)} |")
  lines += ["", "## Files", "", "| file | killed | survived |", "|---|---|---|"]
  for file in dict.fromkeys(r.mutant.site.file for r in results):
    of_file = [r for r in results if r.mutant.site.file == file]
    lines.append(f"| {file} | {_killed_survived(of_file)} |")
  known = [r for r in results if r.status == "equivalent"]
  lines += _section("Equivalents", known, [EQUIVALENTS[r.mutant.site] for r in known])
  unborn = [r for r in results if r.status == "stillborn"]
  lines += _section("Stillborn", unborn, [r.why for r in unborn])
  return "\n".join(lines) + "\n"


def _section(title: str, results: Sequence[Result], remarks: Sequence[str]) -> list[str]:
  """A table of mutants with a remark on each; nothing without mutants."""
  if not results:
    return []
  rows = [
    f"| {r.mutant.site} | {_code(r.mutant.before)} | {_code(r.mutant.after)} | {_cell(remark)} |"
    for r, remark in zip(results, remarks, strict=True)
  ]
  return ["", f"## {title}", "", "| mutant | code | becomes | remark |", "|---|---|---|---|", *rows]


def _killed_survived(results: Sequence[Result]) -> str:
  counts = collections.Counter(result.status for result in results)
  return f"{counts['killed']} | {counts['SURVIVED']}"


def _cell(text: str) -> str:
  return text.replace("|", "\\|")


def _code(text: str) -> str:
  short = text if len(text) <= 80 else f"{text[:79]}…"
  return f"`{_cell(short)}`"
