"""The processes of a run: how they find each other, wait for each other and fail together."""

from __future__ import annotations

import errno
import functools
import glob
import importlib.util
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from egad_jax.errors import InputError

_T = TypeVar("_T")


class JoinError(RuntimeError):
  """The processes of a run did not find each other, and may at the next attempt; one line."""


_MESSAGE_BYTES, _PORTS = 4096, 2**16
# Characters of a value in a message.
_SHOWN = 200
# Where each kind of launcher says how many processes there are and which one this is.
_RANKS = {
  "JAX": ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
  "SLURM": ("SLURM_NTASKS", "SLURM_PROCID"),
  "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}


def join(
  address: str | None = None,
  count: int | None = None,
  index: int | None = None,
  *,
  heartbeat_seconds: int = 100,
  environment: Mapping[str, str] = os.environ,
) -> None:
  """Joins the other processes of this run, if it has any. Call it before anything uses a device.

  What is not given is taken from the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, a SLURM step of several tasks, Open MPI, or a TPU host. Otherwise the run has one
  process.

  Args:
    address: "host:port" of process 0.
    count: number of processes.
    index: which of them this is, from 0.
    heartbeat_seconds: a process silent for so long counts as dead, and the others end (code 134).
    environment: variables.

  Raises:
    InputError: some of the three are missing, or are not what they should be.
    JoinError: the others cannot be reached, or the port is taken.
  """
  found = _found(environment)
  address = address or environment.get("JAX_COORDINATOR_ADDRESS")
  # Without all three JAX asks SLURM, Open MPI 4 or the TPU host for them.
  asks_jax = address is None and count is None and index is None and found is not None
  if count is None and index is None and found is not None:
    count, index = found
  given = {"--coordinator_address": address, "--num_processes": count, "--process_id": index}
  missing = [name for name, value in given.items() if value is None]
  initialize = functools.partial(_initialize, heartbeat_timeout_seconds=heartbeat_seconds)
  if len(missing) == 3:
    if _on_tpu_host(environment):
      initialize()
    return
  if asks_jax and _jax_finds_address(environment):
    if count != 1:
      initialize()
    return
  if missing and count != 1:
    raise InputError(
      f"{', '.join(missing)} must be given too: a run of several processes needs "
      "--coordinator_address=HOST:PORT of process 0, --num_processes and --process_id, or "
      "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, where the launcher "
      "(SLURM, Open MPI 4, a TPU host) does not say."
    )
  if count is not None and (count < 1 or index is None or not 0 <= index < count):
    raise InputError(f"--process_id must be from 0 to --num_processes - 1; got {index} of {count}.")
  if count == 1 or address is None:
    return
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < _PORTS:
    raise InputError(
      f"--coordinator_address must be HOST:PORT, with a port from 1 to {_PORTS - 1}; got "
      f"{address!r}."
    )
  if index == 0:
    _require_free(int(port))
  initialize(address, count, index, cluster_detection_method="deactivate")


def _require_free(port: int) -> None:
  """Checks the port that process 0 is going to listen at: JAX crashes if it is taken."""
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(("", port))
    except OSError as error:
      if error.errno == errno.EADDRINUSE:
        raise JoinError(
          f"port {port} of --coordinator_address is taken on this machine. End what has it, or "
          "choose another."
        ) from error


def _initialize(*args: Any, **options: Any) -> None:
  try:
    jax.distributed.initialize(*args, **options)
  # A launcher's variable that should be a number.
  except (ValueError, KeyError) as error:
    raise InputError(
      f"JAX cannot tell the processes of this run from the launcher's variables: {error}. Correct "
      "them, or give --coordinator_address, --num_processes and --process_id."
    ) from error
  except RuntimeError as error:
    where = f" at {args[0]}" if args else ""
    raise JoinError(
      f"the processes of this run did not find each other{where}: {' '.join(str(error).split())}. "
      "The port may be taken, or process 0 not be there."
    ) from error


def _found(environment: Mapping[str, str]) -> tuple[int, int] | None:
  """(number of processes, this one's index) that a launcher has set."""
  for launcher, (count, index) in _RANKS.items():
    values = environment.get(count), environment.get(index)
    if launcher == "SLURM" and "SLURM_STEP_NODELIST" not in environment:
      continue  # A shell inside an allocation, not a step of it.
    if values[0] is None or values[1] is None:
      continue
    if not (values[0].isdigit() and values[1].isdigit()):
      raise InputError(f"{count} and {index} must be integers; got {values[0]!r}, {values[1]!r}.")
    return int(values[0]), int(values[1])
  return None


def _jax_finds_address(environment: Mapping[str, str]) -> bool:
  """Whether the launcher's variables tell JAX where process 0 is."""
  return "SLURM_STEP_NODELIST" in environment or "OMPI_MCA_orte_hnp_uri" in environment


def _on_tpu_host(environment: Mapping[str, str]) -> bool:
  if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
    return False
  chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_multiprocess() -> bool:
  """Whether the run has several processes."""
  return jax.distributed.is_initialized()


def is_first() -> bool:
  """Whether this process writes what is written once. A run of one process is its first."""
  return not is_multiprocess() or jax.process_index() == 0


def on_all_processes(work: Callable[[], _T], *, first_alone: bool = False) -> _T:
  """Does `work` on every process; an InputError of one of them is raised by all.

  Args:
    work: uses no devices.
    first_alone: process 0 does it first, the others after it (they find its files).
  """
  if not is_multiprocess():
    return work()
  result: list[_T] = []
  first = is_first()
  for turn in ([True], [False]) if first_alone else ([True, False],):
    error = ""
    if first in turn:
      try:
        result.append(work())
      except InputError as refusal:
        error = str(refusal) or "bad input"
    if errors := [text for text in _exchange(error) if text]:
      raise InputError(errors[0])
  return result[0]


def require_equal(values: Mapping[str, Any]) -> None:
  """Checks that all processes have the same values; all must call it.

  Args:
    values: names for people -> JSON values.

  Raises:
    InputError: on all of them, naming the first value that differs, and whose it is.
  """
  if is_multiprocess():
    texts = _gather(json.dumps(values, sort_keys=True, default=str).encode())
    problem = first_difference([json.loads(text) for text in texts])
    if problem:
      raise InputError(problem)


def first_difference(values: Sequence[Mapping[str, Any]]) -> str:
  """How the values of some process differ from those of process 0; "" if none do.

  >>> first_difference([{"a": 1, "b": 2}, {"a": 1, "b": 3}]).partition(";")[2].partition(".")[0]
  ' it is 2 for process 0 and 3 for process 1'
  """
  missing = object()
  show = lambda value: "missing" if value is missing else repr(value)[:_SHOWN]
  for index, others in enumerate(values):
    for name in sorted({*values[0], *others}):
      first, other = values[0].get(name, missing), others.get(name, missing)
      if first != other:
        return (
          f"{name} must be the same for all processes; it is {show(first)} for process 0 and "
          f"{show(other)} for process {index}. Start the same command, with the same code and "
          "files, on all machines."
        )
  return ""


def any_process(flag: bool) -> bool:
  """Whether the flag is set on any process; all must call it."""
  if not is_multiprocess():
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def wait(name: str) -> None:
  """Waits until all processes are here."""
  if is_multiprocess():
    multihost_utils.sync_global_devices(name)


def fetch(tree: Any) -> Any:
  """Whole arrays on the host, whichever processes hold their parts; all must call it."""
  if not is_multiprocess():
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def _exchange(text: str) -> list[str]:
  return [data.decode(errors="replace") for data in _gather(text.encode()[:_MESSAGE_BYTES])]


def _gather(data: bytes) -> list[bytes]:
  """The data of every process."""
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.zeros(max(1, sizes.max()), np.uint8)
  padded[: len(data)] = np.frombuffer(data, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [row.tobytes()[:size] for row, size in zip(rows, sizes.tolist(), strict=True)]
