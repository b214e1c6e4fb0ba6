"""Reads checkpoints and verifies them against their records."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from egad_jax import processes
from egad_jax.durability.digest import digests, leaves_by_path
from egad_jax.durability.ledger import META, QUARANTINE
from egad_jax.errors import InputError
from egad_jax.files import paths

_LOG = logging.getLogger(__name__)
STATE = "state"
CHECKPOINTS = "checkpoints"
_FORMAT = 1
# Bytes; Orbax stores smaller arrays, compressed, among the names.
_OWN_BYTES = 4096
# Errors of the devices or of memory, which say nothing about the files.
NOT_DAMAGE = (MemoryError, jax.errors.JaxRuntimeError)

_Value = TypeVar("_Value")


class _DamageError(Exception):
  """A checkpoint differs from what was saved; the message is a short reason."""


def abstract(tree: Any, shardings: Any) -> Any:
  """A tree of `jax.ShapeDtypeStruct` for `Checkpoints.restore_latest`.

  Args:
    tree: arrays, or anything with a shape and a dtype.
    shardings: a tree of the same structure with the sharding of each leaf.
  """
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )


def locate(checkpoint: str) -> tuple[epath.Path, int | None]:
  """Splits a `--checkpoint` flag into the workdir and the step.

  Args:
    checkpoint: a workdir, or its `checkpoints/<step>`.

  Returns:
    The workdir and the step; None as step means the latest whole checkpoint.

  Raises:
    InputError: there is no such workdir, or no such step.
  """
  given = paths.parse(checkpoint, "--checkpoint")
  # A link to a step, or a name with "..", may show its step only when it is resolved.
  places = [given, paths.LocalPath(paths.real(given))] if paths.is_local(given) else [given]
  for path in places:
    workdir, step = path, None
    if re.fullmatch("[0-9]+", path.name) and path.parent.name == CHECKPOINTS:
      workdir, step = path.parent.parent, int(path.name)
    if (workdir / "config.json").exists() and (workdir / CHECKPOINTS).is_dir():
      break
  else:
    raise InputError(_not_a_checkpoint(checkpoint, given))
  if step is not None and not path.exists():
    saved = sorted(steps_of(path.parent))
    raise InputError(f"--checkpoint {checkpoint} does not exist; saved steps are {saved}.")
  return workdir, step


def _not_a_checkpoint(checkpoint: str, path: epath.Path) -> str:
  expected = "must be a workdir with config.json and checkpoints/, or its checkpoints/<step>"
  if QUARANTINE in (path.name, path.parent.name):
    return f"--checkpoint {checkpoint} {expected}; what is in {QUARANTINE}/ is damaged."
  for above in (path, path.parent):
    if above.name == CHECKPOINTS and (steps := sorted(steps_of(above))):
      return f"--checkpoint {checkpoint} {expected}; saved steps are {steps}."
  return f"--checkpoint {checkpoint} {expected}; there is none."


def restore_state(workdir: epath.Path, step: int | None, like: Any) -> tuple[int, Any]:
  """Reads a checkpoint found by `locate`; changes nothing in the workdir.

  Args:
    workdir: the run's workdir.
    step: the step to read; None reads the latest whole checkpoint.
    like: tree of `jax.ShapeDtypeStruct` with the shardings that the arrays shall have.

  Returns:
    Step and state.

  Raises:
    InputError: there is no whole checkpoint, the given one is damaged, or it does not fit the
      config.
  """
  directory, argument = workdir / CHECKPOINTS, f"--checkpoint {workdir}"
  if step is None:
    found = restore_whole(directory, like, argument=argument, on_damage=lambda step: "")
    if found is None:
      raise InputError(f"{argument} has no whole checkpoint.")
    return found[:2]
  try:
    return step, _read(directory, step, like, argument)[0]
  except _DamageError as damage:
    raise InputError(
      f"{argument}: step {step} is damaged ({damage}); choose another of "
      f"{sorted(steps_of(directory))}."
    ) from None


def restore_whole(
  directory: epath.Path, like: Any, *, argument: str, on_damage: Callable[[int], str]
) -> tuple[int, Any, dict[str, Any]] | None:
  """Reads the latest whole checkpoint and logs a warning for each damaged one.

  Args:
    directory: the directory of checkpoints.
    like: tree of `jax.ShapeDtypeStruct` with the shardings that the arrays shall have.
    argument: the flag and its value, for messages.
    on_damage: called with each damaged step; returns what it did, for the warning.

  Returns:
    Step, state and metadata; None if no checkpoint is whole.

  Raises:
    InputError: a checkpoint does not fit the config.
  """
  quieten()
  steps = agreed(steps_of(directory))
  for i, step in enumerate(steps):
    try:
      return step, *_read(directory, step, like, argument)
    except _DamageError as damage:
      reason = str(damage)
    # Neither its traceback nor Orbax's abandoned readers may hold arrays during the next attempt.
    gc.collect()
    done = on_damage(step)
    if jax.process_index() == 0:
      last = f"falling back to step {steps[i + 1]}" if steps[i + 1 :] else "there is none before it"
      _LOG.warning("the checkpoint of step %d is damaged (%s)%s; %s", step, reason, done, last)
  return None


def _read(directory: epath.Path, step: int, like: Any, argument: str) -> tuple[Any, dict[str, Any]]:
  """State and metadata of one step, verified.

  Raises:
    InputError: the checkpoint does not fit the config.
    _DamageError: it is damaged; all processes raise if one finds damage.
  """
  record = _attempt(lambda: _read_record(directory, step))
  _require_fit(record, like, f"{argument}: the checkpoint of step {step}")
  state = _read_state(directory, step, like)
  for path, digest in digests(state).items():
    if digest != record["leaves"][path]["digest"]:
      raise _DamageError(f"{path} has changed since it was saved")
  return state, record["meta"]


def _read_state(directory: epath.Path, step: int, like: Any) -> Any:
  # A checkpointer's barrier after reading would wait for ever for a process whose reading failed,
  # so the handler is used directly.
  handler = ocp.StandardCheckpointHandler()
  path = paths.speakable(directory) / str(step) / STATE
  return _attempt(lambda: handler.restore(path, args=ocp.args.StandardRestore(like)))


def require_readable(directory: epath.Path, step: int, like: Any = None) -> None:
  """Checks that a checkpoint's record, and each array that the record names, is on the disk.

  Args:
    directory: the directory of checkpoints.
    step: the step to check.
    like: as for `restore_whole`, to read the arrays too and compare their digests; None only counts
      their bytes.

  Raises:
    Exception: of any kind, if the checkpoint cannot be read; then every process raises.
  """
  record = _attempt(lambda: _read_record(directory, step))
  _attempt(lambda: _require_arrays(directory / str(step) / STATE, record["leaves"]))
  if like is not None:
    _read(directory, step, like, "the checkpoint")


def _require_arrays(state: epath.Path, leaves: Mapping[str, Any]) -> None:
  path = paths.speakable(state.parent.parent) / state.parent.name / state.name
  found = leaves_by_path(ocp.PyTreeCheckpointHandler().metadata(path).tree)
  expected = 0
  for name, leaf in leaves.items():
    if name not in found or list(found[name].shape) != leaf["shape"]:
      raise ValueError(f"{name} is not in it")
    num_bytes = math.prod(leaf["shape"]) * jnp.dtype(found[name].dtype).itemsize
    expected += num_bytes if num_bytes >= _OWN_BYTES else 0
  if paths.is_local(state):
    written = sum(file.stat().st_size for file in pathlib.Path(state).rglob("*") if file.is_file())
    if written < expected:
      raise ValueError(f"it has {written} bytes, {expected} were to be written")


def _attempt(action: Callable[[], _Value]) -> _Value:
  """The value of an action that reads files; if it fails on one process, it fails on all.

  Raises:
    _DamageError: the action failed on some process.
  """
  try:
    value, reason = action(), ""
  except NOT_DAMAGE:
    raise
  except Exception as error:
    reason = one_line(error)
  if processes.any_process(bool(reason)):
    raise _DamageError(reason or "another process could not read it")
  return value


def make_record(
  step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float] | None
) -> dict[str, str]:
  """The record of a checkpoint, for its JSON item.

  Args:
    step: the state's step.
    state: tree of arrays on the devices.
    meta: the caller's metadata.
    metrics: held-out metrics of this state; None if it was not evaluated.

  Returns:
    "record", the record as JSON text, and "sha256", the text's checksum.
  """
  digest_of = digests(state)
  leaves = {
    path: {"shape": list(x.shape), "dtype": str(x.dtype), "digest": digest_of[path]}
    for path, x in leaves_by_path(state).items()
  }
  record = {
    "format": _FORMAT,
    "step": step,
    "meta": dict(meta),
    "metrics": dict(metrics or {}),
    "leaves": leaves,
  }
  text = json.dumps(record)
  return {"record": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _read_record(directory: epath.Path, step: int) -> dict[str, Any]:
  """The record of a step.

  Raises:
    OSError: the record cannot be read.
    ValueError: it is damaged.
  """
  try:
    stored = ocp.JsonCheckpointHandler().restore(directory / str(step) / META)
    text, checksum = stored["record"], stored["sha256"]
    whole = hashlib.sha256(text.encode()).hexdigest() == checksum
  except (ValueError, TypeError, KeyError, AttributeError):
    whole = False
  if not whole:
    raise ValueError("its record has changed since it was saved")
  record = json.loads(text)
  if record["step"] != step:
    raise ValueError(f"it is of step {record['step']}")
  return record


def forward_kl_of(directory: epath.Path, step: int) -> float | None:
  """The held-out forward KL of a step, nats per token; None if unknown or not finite."""
  try:
    value = float(_read_record(directory, step)["metrics"]["forward_kl"])
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return value if math.isfinite(value) else None


def _require_fit(record: Mapping[str, Any], like: Any, what: str) -> None:
  """Compares a record with the state that the config describes.

  Raises:
    InputError: they differ in format, shapes or dtypes.
  """
  if record["format"] != _FORMAT:
    raise InputError(
      f"{what} has format {record['format']}, this version reads {_FORMAT}; use the version that "
      "wrote it."
    )
  describe = lambda shape, dtype: f"{dtype}[{','.join(map(str, shape))}]"
  saved = {path: describe(x["shape"], x["dtype"]) for path, x in record["leaves"].items()}
  expected = {path: describe(x.shape, x.dtype) for path, x in leaves_by_path(like).items()}
  for path in sorted(saved | expected):
    there, here = saved.get(path, "absent"), expected.get(path, "absent")
    if there != here:
      raise InputError(
        f"{what} does not fit the config: {path} must be {here} and is {there} in it; use the "
        "config that it was made with, or another directory."
      )


def steps_of(directory: epath.Path) -> list[int]:
  """The steps in a directory of checkpoints, latest first; unfinished saves are not among them."""
  names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
  return sorted((int(n) for n in names if re.fullmatch(r"0|[1-9][0-9]*", n)), reverse=True)


def agreed(steps: list[int]) -> list[int]:
  """The steps that process 0 sees, on every process."""
  if jax.process_count() == 1:
    return steps
  count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
  padded = np.resize(np.asarray([*steps, 0], np.int32), count)
  return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tolist()


def one_line(error: BaseException) -> str:
  """The cause of an error in at most 160 characters; TensorStore's own text fills a page."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = " ".join(str(error).split())
  system = re.search(r"os_error_code='(\d+)'", text)
  if system:
    return os.strerror(int(system.group(1)))
  return (text[:157] + "..." if len(text) > 160 else text) or type(error).__name__


@functools.cache
def quieten() -> None:
  """Silences the pages that Orbax and asyncio print about an error; one line is logged here."""
  logging.getLogger("absl").addFilter(lambda entry: "orbax" not in entry.pathname)
  # After the first error Orbax abandons its other readers and writers and closes their event loop.
  warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
  logging.getLogger("asyncio").addFilter(lambda entry: "never retrieved" not in entry.getMessage())
  report = sys.unraisablehook

  def report_others(event: Any) -> None:
    late = str(event.exc_value) == "Event loop is closed"
    if not late and not isinstance(getattr(event.exc_value, "__cause__", None), GeneratorExit):
      report(event)

  sys.unraisablehook = report_others
