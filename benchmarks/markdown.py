"""Tables to paste into a page of docs/."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A markdown table, numbers to the right of a first column of names.

  >>> print(table(("method", "s"), [("egad", "1.5")]))
  | method | s |
  |---|--:|
  | egad | 1.5 |
  """
  rule = "|---|" + "--:|" * (len(header) - 1)
  lines = [header, *rows]
  text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
  return "\n".join([text[0], rule, *text[1:]])
