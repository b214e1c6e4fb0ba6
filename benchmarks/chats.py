"""Writes the chats in the wheel of PyPI's `evals` as records of the format messages.

  pip download --no-deps evals==3.0.1.post1
  python -m benchmarks.chats evals-3.0.1.post1-py3-none-any.whl chats.jsonl

Only what is under the MIT licence is taken: the directories that its LICENSE.md lists with licences
of their own are left out. At most 500 samples of a file, so that no task dominates.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

_MOST = 500
_ROLES = ("system", "user", "assistant")


def _other_licences(archive: zipfile.ZipFile) -> list[str]:
  [licence] = [name for name in archive.namelist() if name.endswith("LICENSE.md")]
  return re.findall(r"\*\*Location\*\*: (\S+)", archive.read(licence).decode())


def _message(message: Any) -> dict[str, str]:
  role, content = message["role"], message["content"]
  if role not in _ROLES or not isinstance(content, str):
    raise ValueError(f"no message: {message!r:.40}")
  return {"role": role, "content": content}


def _chat(line: str) -> dict[str, Any] | None:
  """The messages of a sample with its first ideal answer; None if it has none."""
  try:
    sample = json.loads(line)
    ideal = sample["ideal"][0] if isinstance(sample["ideal"], list) else sample["ideal"]
    messages = list(map(_message, sample["input"]))
  except (KeyError, IndexError, TypeError, ValueError):
    return None
  if not isinstance(ideal, str) or not ideal.strip() or not messages:
    return None
  return {"messages": [*messages, {"role": "assistant", "content": ideal}]}


def chats(wheel: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the chats of all files, in the order of their names."""
  with zipfile.ZipFile(wheel) as archive:
    others = _other_licences(archive)
    for name in sorted(archive.namelist()):
      is_data = name.startswith("evals/registry/data/") and name.endswith(".jsonl")
      if not is_data or any(name.startswith(f"{place}/") for place in others):
        continue
      taken = 0
      with archive.open(name) as file:
        for line in file:
          chat = _chat(line.decode("utf-8", "replace")) if taken < _MOST else None
          if chat is not None:
            taken += 1
            yield chat


def main(wheel: str, target: str) -> None:
  """Writes the file."""
  count = 0
  with open(target, "w", encoding="utf-8") as file:
    for chat in chats(pathlib.Path(wheel)):
      file.write(json.dumps(chat, ensure_ascii=False) + "\n")
      count += 1
  print(f"{count} chats, {pathlib.Path(target).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
  main(*sys.argv[1:])
