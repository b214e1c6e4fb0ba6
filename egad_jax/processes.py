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
  """The processes of a run did not find each other; another attempt may succeed. One line."""


_MESSAGE_BYTES, _PORTS = 4096, 2**16
# Largest number of characters that a message shows of a value.
_SHOWN = 200
# Variables in which each launcher sets the number of processes and the index of this one.
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

  Values that are None are taken from the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
  and JAX_PROCESS_ID, a SLURM step of several tasks, Open MPI, or a TPU host. If none of these is
  there, the run has one process.

  Args:
    address: "host:port" of process 0; None to look in the environment.
    count: number of processes; None to look in the environment.
    index: index of this process, from 0; None to look in the environment.
    heartbeat_seconds: seconds of silence after which a process counts as dead and the others end
      with exit code 134.
    environment: the environment variables.

  Raises:
    InputError: some of the three values are missing or invalid.
    JoinError: the other processes cannot be reached, or the port is taken.
  """
  found = _found(environment)
  address = address or environment.get("JAX_COORDINATOR_ADDRESS")
  # If none of the three is given, JAX itself can ask SLURM, Open MPI 4 or the TPU host for them.
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
  """Checks that the port that process 0 will listen on is free: JAX crashes if it is taken."""
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
  # A launcher's variable is not the number that it should be, for example.
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
  """The (number of processes, index of this one) that a launcher has set; None if none has."""
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
  """Whether this is process 0, which writes what is written once; True in a run of one process."""
  return not is_multiprocess() or jax.process_index() == 0


def on_all_processes(work: Callable[[], _T], *, first_alone: bool = False) -> _T:
  """Runs `work` on every process; if it raises an InputError on one, all processes raise it.

  Args:
    work: a function that uses no devices.
    first_alone: whether process 0 runs it before the others, so that they find its files.

  Returns:
    What `work` returned on this process.
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
    values: JSON values by names that messages use.

  Raises:
    InputError: the values differ. It is raised on all processes, and names the first value that
      differs and the process that has it.
  """
  if is_multiprocess():
    texts = _gather(json.dumps(values, sort_keys=True, default=str).encode())
    problem = first_difference([json.loads(text) for text in texts])
    if problem:
      raise InputError(problem)


def first_difference(values: Sequence[Mapping[str, Any]]) -> str:
  """A message on the first value that differs from that of process 0; "" if none differs.

  Args:
    values: the values of each process, by name, in the order of the processes.

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
  """Whether the flag is True on any process; all must call it."""
  if not is_multiprocess():
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def wait(name: str) -> None:
  """Waits until all processes have called it with the same `name`."""
  if is_multiprocess():
    multihost_utils.sync_global_devices(name)


def fetch(tree: Any) -> Any:
  """The tree's arrays as whole NumPy arrays, whichever processes hold parts; all must call it."""
  if not is_multiprocess():
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def _exchange(text: str) -> list[str]:
  return [data.decode(errors="replace") for data in _gather(text.encode()[:_MESSAGE_BYTES])]


def _gather(data: bytes) -> list[bytes]:
  """The data of every process, in the order of the processes; all must call it."""
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.zeros(max(1, sizes.max()), np.uint8)
  padded[: len(data)] = np.frombuffer(data, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [row.tobytes()[:size] for row, size in zip(rows, sizes.tolist(), strict=True)]
