"""Reads .txt and .md files."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from egad_jax.data.readers import records
from egad_jax.data.readers.records import BadRecord, BadRecords, decode

# A document of a lone file ends at the first blank line after this length, so that the file has
# several documents to split.
_CUT_AFTER_CHARACTERS = 8192
_FORM_FEED = "\f"


def _too_long() -> str:
  return (
    f"a document of more than {records.LONGEST_DOCUMENT} bytes; in a lone .txt or .md file two "
    "blank lines or a form feed end one"
  )


def read_text(file: pathlib.Path, bad: BadRecords, *, is_lone: bool) -> Iterator[tuple[int, str]]:
  """Yields the documents of a file as (line, text).

  A file is one document, unless it is the only file: then a form feed or two blank lines end a
  document, and so does one blank line once a document is longer than 8,192 characters.

  Args:
    file: a .txt or .md file, perhaps compressed.
    bad: counts documents that are too long or not UTF-8.
    is_lone: whether the source has no other file.
  """
  return _read_lone(file, bad) if is_lone else _read_whole(file, bad)


def _read_whole(file: pathlib.Path, bad: BadRecords) -> Iterator[tuple[int, str]]:
  with records.opened(file) as lines:
    data = records.without_mark(lines.read(records.LONGEST_DOCUMENT + 1))
  if len(data) > records.LONGEST_DOCUMENT:
    bad.add(file, 1, _too_long())
    return
  try:
    text = decode(data)
  except BadRecord as error:
    bad.add(file, 1 + data[: error.__cause__.start].count(b"\n"), str(error))  # type: ignore[union-attr]
    return
  yield 1, text


def _read_lone(file: pathlib.Path, bad: BadRecords) -> Iterator[tuple[int, str]]:
  parts: list[str] = []
  number, size, blank_lines, is_broken = 0, 0, 0, False
  with records.opened(file) as lines:
    for number, line in records.numbered_lines(lines):
      text, problem = "", ""
      try:
        text = decode(line)
      except BadRecord as error:
        problem = str(error)
      if len(line) > records.LONGEST_DOCUMENT:
        text, problem = "", _too_long()
      if problem and not is_broken:
        bad.add(file, number, problem)
      is_broken = is_broken or bool(problem)
      blank_lines = 0 if text.strip() or problem else blank_lines + 1
      before, *after = text.split(_FORM_FEED)
      parts.append(before)
      size += len(before)
      if size > records.LONGEST_DOCUMENT and not is_broken:
        bad.add(file, number, _too_long())
        is_broken = True
      if is_broken:
        parts.clear()
      if not after and (blank_lines >= 2 or (blank_lines and size > _CUT_AFTER_CHARACTERS)):
        after = [""]
      if after:
        if not is_broken:
          yield number, _trim("".join(parts))
        yield from ((number, _trim(part)) for part in after[:-1])
        parts, size, is_broken = [after[-1]], len(after[-1]), False
  if not is_broken:
    yield number, _trim("".join(parts))


def _trim(text: str) -> str:
  """Strips the separators around a document, but not the first line's indentation."""
  return text.lstrip("\r\n").rstrip()
