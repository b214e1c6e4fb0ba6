"""The directory of a sweep: its students' workdirs, their prepared data and the comparison."""

from __future__ import annotations

import os

from egad_jax.durability.workdir import DATA, Workdir
from egad_jax.errors import InputError
from egad_jax.files import owned

REPORT = "sweep.html"
RECORDS = "sweep.jsonl"
# No student can have these names.
RESERVED = (REPORT, RECORDS, DATA, owned.MARK)


class SweepDirectory(Workdir):
  """An open directory of a sweep, locked like a workdir; the students' workdirs lie in it."""

  _kind, _called = owned.SWEEP, "directory of a sweep"
  _files = (REPORT, RECORDS)
  _directories = (DATA,)

  def require_ours(self) -> None:
    """Checks that the files that a sweep replaces are as a sweep left them.

    Raises:
      InputError: a file is somebody else's, or was changed; nothing has been touched.
    """
    if not self.writes:
      return
    mark = owned.read_mark(self.path) or {"files": {}}
    found = owned.changed(self.path, mark)
    found += [
      name
      for name in self._files
      if os.path.lexists(self.path / name) and name not in mark["files"]
    ]
    if found:
      raise InputError(
        f"--workdir {self.path} holds {owned.name_some(sorted(found))}, which this sweep did not "
        "leave there so and would replace. Nothing was touched: move that away, or choose another "
        "workdir."
      )
