"""A mutation: one line of a module, broken on purpose."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Mutation(NamedTuple):
  """What to break where, and who should notice.

  Attributes:
    file: the module, a path from the repository's root.
    kind: class of the fault, such as "sign" or "stop-gradient".
    breaks: the fault in words.
    old: text that occurs exactly once in the file.
    new: what stands there instead.
    tests: test files, in the order in which they are asked.
  """

  file: str
  kind: str
  breaks: str
  old: str
  new: str
  tests: tuple[str, ...]


class Equivalent(NamedTuple):
  """A change that no test can notice, because it changes nothing that anyone can see.

  Attributes:
    file: as for `Mutation`.
    change: the change in words.
    reason: why it is none.
  """

  file: str
  change: str
  reason: str


def of_file(
  file: str | Sequence[str], tests: Sequence[str], rows: Iterable[tuple[str, str, str, str]]
) -> tuple[Mutation, ...]:
  """Returns the mutations of a file, or of several of which each row's text is in one.

  Args:
    file: relative to egad_jax.
    tests: relative to tests.
    rows: (kind, breaks, old, new) of each.
  """
  paths = tuple(f"tests/{test}" for test in tests)
  files = [f"egad_jax/{name}" for name in ([file] if isinstance(file, str) else file)]
  sources = {name: (ROOT / name).read_text() for name in files}
  return tuple(
    Mutation(next((f for f in files if row[2] in sources[f]), files[0]), *row, paths)
    for row in rows
  )


def mutated_source(mutation: Mutation, root: pathlib.Path = ROOT) -> str:
  """Returns the broken module's text.

  Raises:
    ValueError: `old` does not occur exactly once, or the change is none.
  """
  source = (root / mutation.file).read_text()
  count = source.count(mutation.old)
  if count != 1:
    raise ValueError(
      f"{mutation.file}: the text of '{mutation.breaks}' must occur once, found {count} times:"
      f"\n{mutation.old}"
    )
  if mutation.old == mutation.new:
    raise ValueError(f"{mutation.file}: '{mutation.breaks}' changes nothing.")
  return source.replace(mutation.old, mutation.new)
