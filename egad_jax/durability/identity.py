"""Fingerprints of a run's inputs and code, and a record of how they changed between its starts.

They are stored in `identity.json` beside config.json. A run resumes only with the same inputs, or
with `--force`; forced changes stay on record.
"""

from __future__ import annotations

import collections
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
from egad_jax.lazy_arrays import LazyArray

_LOG = logging.getLogger(__name__)

IDENTITY = files.IDENTITY
_FORMAT = 1
# Hexadecimal digits of a fingerprint: 64 bits.
NUM_DIGITS = 16
# Bytes that one task hashes: large arrays are split over the cores.
_BLOCK = 2**26
# Most blocks that are hashed at once: each is in memory meanwhile.
_HASHING = 8
_PACKAGES = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "grain")

# Inputs that must be the same when a run resumes, and their names in messages.
INPUTS = {
  "teacher_weights": "the teacher's weights (config.teacher.source)",
  "student_weights": "the weights that the student starts from (config.student.*)",
  "tokenizer": "the tokenizer",
  "teacher_tokenizer": "the teacher's tokenizer",
  "chat_template": "the chat template",
  "data": "the documents (config.data.source)",
  "rows": "the packed rows",
}
# With others of these a student's ids would mean something else.
TOKENIZERS = ("tokenizer", "teacher_tokenizer", "chat_template")
# Other code may round differently; a change of it is recorded and does not stop a run.
CODE = {"code": "the code of egad_jax", "versions": "the versions of libraries"}
_NAMES = INPUTS | CODE


class Change(NamedTuple):
  """A change of an input, of the code or of the config while a run was stopped.

  Attributes:
    step: the last step made before the change.
    what: a key of `INPUTS` or `CODE`, "config." and a key of the config, or "identity.json" if that
      file was absent.
    before: the fingerprint or value until that step.
    after: the fingerprint or value from then on.
    forced: whether the change required `--force`.
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
  """A digest of a tree of host arrays: their names, dtypes, shapes and every byte.

  It is SHA-256 computed on several cores, which is faster than the disk that the arrays come from.
  Memory holds a few blocks of an array that is read from files, or one entry of its first axis.

  Args:
    params: tree of NumPy arrays or `LazyArray`s, of any shape and dtype.

  Returns:
    `NUM_DIGITS` hexadecimal digits.
  """
  workers = min(_HASHING, os.cpu_count() or 1)
  whole = hashlib.sha256()
  under_way: collections.deque[concurrent.futures.Future[bytes]] = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for path, leaf in sorted(leaves_by_path(params).items()):
      array = leaf if isinstance(leaf, LazyArray) else np.asarray(leaf)
      whole.update(f"{path} {array.dtype} {array.shape}\n".encode())
      for block in _blocks(array):
        under_way.append(pool.submit(_digest, block))
        if len(under_way) > workers:
          whole.update(under_way.popleft().result())
      while under_way:
        whole.update(under_way.popleft().result())
  return whole.hexdigest()[:NUM_DIGITS]


def _blocks(array: np.ndarray | LazyArray) -> Iterator[np.ndarray]:
  """Views of at most about `_BLOCK` bytes; the cuts depend on the shape and dtype alone."""
  if array.nbytes <= _BLOCK or not array.ndim:
    yield array[()]
    return
  at_once = _BLOCK // (array.nbytes // len(array))
  for start in range(0, len(array), max(1, at_once)):
    part = array[start : start + max(1, at_once)]
    yield from [part] if at_once else _blocks(part[0])


def _digest(block: np.ndarray) -> bytes:
  return hashlib.sha256(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data).digest()


@functools.cache
def code_fingerprints() -> dict[str, str]:
  """Fingerprints of the running code, by the keys of `CODE`."""
  root = pathlib.Path(egad_jax.__file__).parent
  content = hashlib.sha256()
  for path in sorted(root.rglob("*")):
    if path.suffix in (".py", ".j2"):
      content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
  versions = (f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
  return {"code": content.hexdigest()[:NUM_DIGITS], "versions": ", ".join(versions)}


def different(stored: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
  """Names of the fingerprints that both have and that differ, in the order of `INPUTS`, `CODE`."""
  return [
    name for name in _NAMES if name in stored and stored[name] != found.get(name, stored[name])
  ]


def read_fingerprints(workdir: epath.Path) -> dict[str, str]:
  """The fingerprints that a run stored, by name; empty if the workdir has no identity.json.

  Raises:
    InputError: the file is damaged.
  """
  return _read(workdir)["fingerprints"]


def read_changes(workdir: epath.Path) -> list[Change]:
  """The changes that a run recorded, oldest first.

  Raises:
    InputError: the file is damaged.
  """
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
  """Checks that a run resumes with the inputs that it began with.

  Args:
    workdir: the run's workdir, whose config.json is still that of the last start.
    config: the resolved config as plain values, accepted by `Workdir.check_config`.
    found: the fingerprints of this start, by name.
    force: whether to accept other inputs.

  Returns:
    The new content of identity.json, for `store`.

  Raises:
    InputError: without `force`, the inputs differ or cannot be compared.
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
  """Writes the record that `check` returned.

  Call it before config.json is written, or a kill between the two would lose a forced change.
  """
  workdir.write_json(IDENTITY, dict(record))


def require(
  workdir: epath.Path, found: Mapping[str, str], names: Collection[str]
) -> list[str] | None:
  """Compares a checkpoint's inputs with the present ones, for commands that only read it.

  Args:
    workdir: the workdir of the run that wrote the checkpoint.
    found: the present fingerprints, by name.
    names: the keys of `INPUTS` that must be the same.

  Returns:
    Names of the other inputs that differ, after a warning; None, also after a warning, if the run
    stored no fingerprints.

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
