"""Writes the source of Python's standard library as JSON lines, the text of the small setting.

Command: python -m benchmarks.quality.python_sources FILE.jsonl
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sysconfig

_LEFT_OUT = {"test", "tests", "site-packages", "idlelib", "lib2to3"}


def main() -> None:
  """Writes each module of the library, but its tests and what is installed, as one record."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("file", type=pathlib.Path, help="the file to write")
  file = parser.parse_args().file
  file.parent.mkdir(parents=True, exist_ok=True)
  library = pathlib.Path(sysconfig.get_path("stdlib"))
  with file.open("w") as out:
    for path in sorted(library.rglob("*.py")):
      if not _LEFT_OUT.intersection(path.relative_to(library).parts):
        out.write(json.dumps({"text": path.read_text(errors="replace")}) + "\n")


if __name__ == "__main__":
  main()
