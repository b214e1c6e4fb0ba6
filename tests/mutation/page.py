"""The page docs/mutations.md."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from tests.mutation.mutant import Equivalent, Mutation

_HEAD = """# Mutation check

A test that stays green when the code is broken tests nothing. `make mutations` breaks the loss
code one line at a time (a sign, an axis, a stop-gradient, a mask, T for T², ...), runs the tests of
that module on the broken copy, and fails unless a test fails for each. An import hook serves the
copy, so the working tree is never touched; a mutation that only breaks the import does not count.
This page is written by it.

```bash
make mutations                                                     # all; writes this page
.venv/bin/python -m tests.mutation.check --only temperature        # a part
```

A new line of loss code gets its mutations in `tests/mutation/mutations_*.py`; the test of the
table, `tests/mutation_test.py`, fails when the text that a mutation breaks is gone.
"""


def page(results: Sequence[tuple[Mutation, str, str]], equivalents: Sequence[Equivalent]) -> str:
  """Returns the page as Markdown.

  Args:
    results: (mutation, "killed" or another status, by which test or why not).
    equivalents: changes that no test can notice.
  """
  killed = sum(status == "killed" for _, status, _ in results)
  files = len({mutation.file for mutation, _, _ in results})
  lines = [_HEAD, f"**{killed} of {len(results)} mutations in {files} files are killed.**", ""]
  kinds = collections.Counter(mutation.kind for mutation, _, _ in results)
  lines += ["| kind | mutations |", "|---|---|"]
  lines += [f"| {kind} | {count} |" for kind, count in sorted(kinds.items())]
  for file in dict.fromkeys(mutation.file for mutation, _, _ in results):
    lines += ["", f"## {file}", "", "| broken | kind | killed by |", "|---|---|---|"]
    for mutation, status, why in results:
      if mutation.file == file:
        killer = f"`{why}`" if status == "killed" else f"**{status}** {why}"
        lines.append(f"| {_cell(mutation.breaks)} | {mutation.kind} | {_cell(killer)} |")
  if equivalents:
    lines += ["", "## Left out", "", "Changes that no test can notice.", ""]
    lines += ["| file | change | why it is none |", "|---|---|---|"]
    lines += [f"| {e.file} | {_cell(e.change)} | {_cell(e.reason)} |" for e in equivalents]
  return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
  return text.replace("|", "\\|")
