"""Writes the source of Python's standard library as JSON lines, the text of the small setting.

Command: python -m benchmarks.quality.python_sources FILE.jsonl
"""

from __future__ import annotations

import json
import pathlib
import sys
import sysconfig

_LEFT_OUT = {"test", "tests", "site-packages", "idlelib", "lib2to3"}


def main() -> None:
  """Writes each module of the library, but its tests and what is installed, as one record."""
  library = pathlib.Path(sysconfig.get_path("stdlib"))
  with open(sys.argv[1], "w") as out:
    for path in sorted(library.rglob("*.py")):
      if _LEFT_OUT.intersection(path.parts):
        continue
      out.write(json.dumps({"text": path.read_text(errors="replace")}) + "\n")


if __name__ == "__main__":
  main()
