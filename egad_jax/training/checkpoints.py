"""Checkpoints of a run by Orbax: written beside the training, whole or not at all."""

from __future__ import annotations

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from egad_jax.errors import InputError

_STATE, _META = "state", "meta"


class Checkpoints:
  """The checkpoints of one directory, `<directory>/<step>/`."""

  def __init__(self, directory: epath.Path, *, keep: int = 1, read_only: bool = False):
    """Opens or creates a directory of checkpoints.

    Args:
      directory: where they are.
      keep: how many of the latest stay.
      read_only: touch nothing there; a run may be writing.
    """
    self._manager = ocp.CheckpointManager(
      directory,
      item_names=(_STATE, _META),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else keep,
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        enable_async_checkpointing=not read_only,
      ),
    )

  def latest(self) -> int | None:
    """The step of the latest whole checkpoint, None without one."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
    """Copies the state off the devices and writes it in the background."""
    items = ocp.args.Composite(
      **{_STATE: ocp.args.StandardSave(state), _META: ocp.args.JsonSave(meta)}
    )
    self._manager.save(step, args=items, force=True)

  def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """The state and metadata of one checkpoint.

    Args:
      step: which.
      like: tree of `jax.ShapeDtypeStruct` with the shardings that the arrays shall have.
    """
    items = ocp.args.Composite(
      **{_STATE: ocp.args.StandardRestore(like), _META: ocp.args.JsonRestore()}
    )
    restored = self._manager.restore(step, args=items)
    return restored[_STATE], restored[_META]

  def wait(self) -> None:
    """Waits for what is being written; raises what went wrong there."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for what is being written; raises what went wrong there."""
    self._manager.wait_until_finished()
    self._manager.close()


def abstract(tree: Any, shardings: Any) -> Any:
  """Shapes, dtypes and shardings of a tree, for `Checkpoints.restore`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )


def locate(checkpoint: str) -> tuple[epath.Path, int | None]:
  """Splits a `--checkpoint` flag into the workdir and the step.

  Args:
    checkpoint: a workdir, meaning its latest whole checkpoint (None), or its `checkpoints/<step>`.

  Raises:
    InputError: neither is there.
  """
  path = epath.Path(checkpoint).absolute()
  workdir, step = path, None
  if path.name.isdigit() and path.parent.name == "checkpoints":
    workdir, step = path.parent.parent, int(path.name)
  if not (workdir / "config.json").exists() or not (workdir / "checkpoints").exists():
    raise InputError(
      f"--checkpoint {checkpoint} must be a workdir with config.json and checkpoints/, or its "
      "checkpoints/<step>; there is none."
    )
  if step is not None and not path.exists():
    saved = sorted(int(p.name) for p in path.parent.iterdir() if p.name.isdigit())
    raise InputError(f"--checkpoint {checkpoint} does not exist; saved steps are {saved}.")
  return workdir, step


def restore_state(workdir: epath.Path, step: int | None, like: Any) -> tuple[int, Any]:
  """The step and state of a checkpoint found by `locate`.

  Raises:
    InputError: there is no whole checkpoint, or it does not fit the config.
  """
  manager = Checkpoints(workdir / "checkpoints", read_only=True)
  try:
    step = manager.latest() if step is None else step
    if step is None:
      raise InputError(f"--checkpoint {workdir} has no whole checkpoint yet.")
    return step, manager.restore(step, like)[0]
  except ValueError as error:
    if isinstance(error, InputError):
      raise
    reason = str(error).split(". ")[0]
    raise InputError(
      f"--checkpoint {workdir}: step {step} does not fit the config: {reason}"
    ) from error
  finally:
    manager.close()
