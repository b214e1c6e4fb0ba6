"""What a run is made of, as fingerprints: its inputs, its code, and how they changed on the way.

They are noted in `identity.json` beside config.json. A run goes on with the same inputs only, or
with `--force`, and what was forced stays on record.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import importlib.metadata
import logging
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

import egad_jax
from egad_jax.durability import workdir as files
from egad_jax.durability.digest import leaves_by_path
from egad_jax.durability.restoring import steps_of
from egad_jax.durability.workdir import Workdir
from egad_jax.errors import InputError
from egad_jax.files.storage import read_json

_LOG = logging.getLogger(__name__)

IDENTITY = files.IDENTITY
_FORMAT = 1
# Fingerprints are compared by their first so many hexadecimal digits: 64 bits.
NUM_DIGITS = 16
# Bytes that are hashed at once: large arrays are spread over the cores.
_BLOCK = 2**26
_PACKAGES = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "grain")

# What a resumed run must not have others of, for people.
INPUTS = {
  "teacher_weights": "the teacher's weights (config.teacher.source)",
  "student_weights": "the weights that the student starts from (config.student.*)",
  "tokenizer": "the tokenizer",
  "teacher_tokenizer": "the teacher's tokenizer",
  "chat_template": "the chat template",
  "data": "the documents (config.data.source)",
  "rows": "the packed rows",
}
# Without these a student's ids mean something else.
TOKENIZERS = ("tokenizer", "teacher_tokenizer", "chat_template")
# Other code may round differently; it is noted and does not stop a run.
CODE = {"code": "the code of egad_jax", "versions": "the versions of libraries"}
_NAMES = INPUTS | CODE


class Change(NamedTuple):
  """Something that is not as it was when the run began, from a step on.

  Attributes:
    step: the last step made before.
    what: a key of `INPUTS` or `CODE`, or "config." and a key of the config.
    before: the fingerprint or the value until then.
    after: from then on.
    forced: whether it took `--force`.
  """

  step: int
  what: str
  before: Any
  after: Any
  forced: bool


def describe(change: Change) -> str:
  """One line about a change.

  >>> describe(Change(10, "config.seed", 0, 1, True))
  'config.seed: 0 until step 10, then 1'
  """
  what = _NAMES.get(change.what, change.what)
  return f"{what}: {change.before} until step {change.step}, then {change.after}"


def weights_fingerprint(params: Any) -> str:
  """A digest of every byte of every array of a tree on the host, their names, shapes and dtypes.

  SHA-256, on all cores: faster than the disk that the arrays come from.
  """
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    whole = hashlib.sha256()
    for path, leaf in sorted(leaves_by_path(params).items()):
      array = np.asarray(leaf)
      whole.update(f"{path} {array.dtype} {array.shape}\n".encode())
      for block in pool.map(_digest, _blocks(array)):
        whole.update(block)
  return whole.hexdigest()[:NUM_DIGITS]


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
  """Views of about `_BLOCK` bytes; where they are cut depends on the shape alone."""
  if array.nbytes <= _BLOCK or not array.ndim:
    yield array
    return
  at_once = _BLOCK // (array.nbytes // len(array))
  for start in range(0, len(array), max(1, at_once)):
    part = array[start : start + max(1, at_once)]
    yield from [part] if at_once else _blocks(part[0])


def _digest(block: np.ndarray) -> bytes:
  return hashlib.sha256(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data).digest()


@functools.cache
def code_fingerprints() -> dict[str, str]:
  """The values of `CODE` for what is running here."""
  root = pathlib.Path(egad_jax.__file__).parent
  content = hashlib.sha256()
  for path in sorted(root.rglob("*")):
    if path.suffix in (".py", ".j2"):
      content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
  versions = (f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
  return {"code": content.hexdigest()[:NUM_DIGITS], "versions": ", ".join(versions)}


def different(stored: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
  """The names of what both have and differs, in the order of `INPUTS` and `CODE`."""
  return [
    name for name in _NAMES if name in stored and stored[name] != found.get(name, stored[name])
  ]


def read_fingerprints(workdir: epath.Path) -> dict[str, str]:
  """The fingerprints that a run stored; none if there is no such file.

  Raises:
    InputError: the file is damaged.
  """
  return _read(workdir)["fingerprints"]


def read_changes(workdir: epath.Path) -> list[Change]:
  """What changed while a run went on, in order; raises as `read_fingerprints`."""
  return [Change(**change) for change in _read(workdir)["changes"]]


def _read(workdir: epath.Path) -> dict[str, Any]:
  path = workdir / IDENTITY
  try:
    stored = read_json(path)
    if stored is None:
      return {"fingerprints": {}, "changes": []}
    if stored["format"] != _FORMAT:
      raise ValueError(f"format {stored['format']}, this version reads {_FORMAT}")
    prints = {str(name): str(value) for name, value in stored["fingerprints"].items()}
    changes = [Change(**change)._asdict() for change in stored["changes"]]
  except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise InputError(
      f"{path} must hold the fingerprints of a run; it is damaged ({error}). Restore the file, or "
      "choose another workdir."
    ) from error
  return {"fingerprints": prints, "changes": changes}


def check(
  workdir: Workdir, config: Mapping[str, Any], found: Mapping[str, str], *, force: bool = False
) -> dict[str, Any]:
  """Checks that a workdir's run goes on with what it began with.

  Args:
    workdir: of the run, whose config.json is still that of the last start.
    config: the resolved config as plain values, accepted by `Workdir.check_config`.
    found: the `fingerprints` of this start.
    force: go on with other inputs.

  Returns:
    What `store` writes.

  Raises:
    InputError: the inputs are others, or cannot be compared, and there is no `force`.
  """
  steps = steps_of(workdir / files.CHECKPOINTS)
  record = _read(workdir.path)
  stored = record["fingerprints"]
  if steps and not stored and not force:
    raise InputError(
      f"--workdir {workdir.path} has checkpoints but no {IDENTITY}, so that nobody can say whether "
      "teacher, tokenizer and data are theirs. Restore the file, use another workdir, or pass "
      "--force to go on."
    )
  others = different(stored, found)
  inputs = [name for name in others if name in INPUTS]
  if inputs and not force:
    lines = "; ".join(f"{INPUTS[k]}: {stored[k]} there, {found[k]} now" for k in inputs)
    raise InputError(
      f"--workdir {workdir.path} holds a run of other inputs ({lines}). Put back what was there, "
      "use another workdir, or pass --force to go on with what is there now."
    )
  step = max(steps, default=0)
  changes = [Change(step, k, stored[k], found[k], k in INPUTS) for k in others]
  changes += _config_changes(workdir, config, step)
  if steps and not stored:
    changes.append(Change(step, IDENTITY, "unknown inputs", "the fingerprints there", True))
  for change in changes:
    _LOG.warning("the run goes on with a change, on record in %s: %s", IDENTITY, describe(change))
  known = [Change(**change) for change in record["changes"]]
  known += [change for change in changes if change not in known]
  kept = {name: value for name, value in stored.items() if name in INPUTS}
  return {
    "format": _FORMAT,
    "fingerprints": kept | dict(found),
    "changes": [change._asdict() for change in known],
  }


def _config_changes(workdir: Workdir, config: Mapping[str, Any], step: int) -> list[Change]:
  stored = files.read_config(workdir / files.CONFIG)
  if stored is None:
    return []
  old, new = files.flat(stored), files.flat(config)
  return [
    Change(step, f"config.{key}", old.get(key), new.get(key), True)
    for key in files.changed_keys(stored, config)
    if key not in files.HARMLESS_KEYS
  ]


def store(workdir: Workdir, record: Mapping[str, Any]) -> None:
  """Writes what `check` returned; before config.json, so that no forced change goes unrecorded."""
  workdir.write_json(IDENTITY, dict(record))


def require(
  workdir: epath.Path, found: Mapping[str, str], names: Collection[str]
) -> list[str] | None:
  """Compares a checkpoint's inputs with those at hand, for commands that only read it.

  Args:
    workdir: the run's directory that holds the checkpoint.
    found: `fingerprints` of the run as built now.
    names: the part of `INPUTS` that must be the same.

  Returns:
    Names of the other inputs that differ, which a warning names too; None if nothing is known.

  Raises:
    InputError: one of `names` differs.
  """
  stored = read_fingerprints(workdir)
  if not stored:
    _LOG.warning("%s has no %s: nobody can say what it was trained with", workdir, IDENTITY)
    return None
  others = [name for name in different(stored, found) if name in INPUTS]
  lines = "; ".join(f"{INPUTS[k]}: {stored[k]} there, {found[k]} now" for k in others if k in names)
  if lines:
    raise InputError(
      f"--checkpoint {workdir} is of a run with other inputs ({lines}). Put back what was there, "
      "or give a config that names it."
    )
  if others:
    what = ", ".join(INPUTS[name] for name in others)
    _LOG.warning("not what the checkpoint was trained with: %s", what)
  return others
