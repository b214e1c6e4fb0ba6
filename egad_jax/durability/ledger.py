"""Knows which checkpoints a run wrote: each step is noted before it is written.

A damaged checkpoint may have lost everything that identifies it. The workdir's mark lists the
steps, so that somebody else's directory is not mistaken for a damaged checkpoint of the run.
"""

from __future__ import annotations

import json
import re

from etils import epath

from egad_jax.errors import InputError
from egad_jax.files import owned

META, QUARANTINE = "meta", "quarantine"
_STEP = re.compile(r"(0|[1-9][0-9]*)(-deleted)?(\.orbax-checkpoint-tmp.*)?")


def note_step(directory: epath.Path, step: int) -> None:
  """Notes in the workdir's mark that a step is about to be written.

  Args:
    directory: the directory of checkpoints, `<workdir>/checkpoints`. Outside of a workdir nothing
      is noted.
    step: the step of the checkpoint.

  Raises:
    OSError: the mark cannot be written.
  """
  steps = _noted(directory)
  if steps is None or step in steps:
    return
  there = {int(m[1]) for path in directory.iterdir() if (m := _STEP.fullmatch(path.name))}
  owned.amend_mark(directory.parent, {}, steps=sorted((steps & there) | {step}))


def is_ours(path: epath.Path) -> bool:
  """Whether a run wrote this checkpoint, whole or not; always True outside of a workdir."""
  steps, name = _noted(path.parent), _STEP.fullmatch(path.name)
  if steps is None or name is None:
    return steps is None
  return int(name[1]) in steps or _has_record(path)


def require_ours(directory: epath.Path) -> None:
  """Checks that a run wrote every checkpoint in a workdir's directory of checkpoints.

  Raises:
    InputError: a checkpoint is somebody else's; nothing has been touched.
  """
  if found := _strangers(directory):
    raise InputError(
      f"--workdir {directory.parent}: {directory} holds {owned.name_some(found)}, which this run "
      "did not write. Nothing was touched: move that away, or choose another workdir."
    )


def _strangers(directory: epath.Path) -> list[str]:
  """Sorted names of checkpoints, or of their remains, that no run wrote."""
  if not directory.exists():
    return []
  found = [p.name for p in directory.iterdir() if _STEP.fullmatch(p.name) and not is_ours(p)]
  quarantine = directory / QUARANTINE
  if quarantine.exists() and not quarantine.is_dir():
    found.append(QUARANTINE)
  return sorted(found)


def _noted(directory: epath.Path) -> set[int] | None:
  mark = owned.read_mark(directory.parent)
  if mark is None or mark["kind"] != owned.WORKDIR:
    return None
  steps = mark.get("steps", [])
  return {step for step in steps if isinstance(step, int)} if isinstance(steps, list) else set()


def _has_record(path: epath.Path) -> bool:
  """Whether a checkpoint holds a record in our format, as one copied from another run does."""
  try:
    record = json.loads((path / META / "metadata").read_text())
    return {"record", "sha256"} <= record.keys()
  except (OSError, ValueError, AttributeError, RecursionError):
    return False
