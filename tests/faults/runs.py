"""Starting the train command as one or several real processes, and comparing what runs leave."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tests.launch.fork_server import ForkServer, Process

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Wall-clock numbers differ from run to run; everything else must not.
TIMES = frozenset({"tokens_per_second", "step_seconds", "seconds"})
_HEARTBEAT_SECONDS = 10


class Job:
  """A run as processes: each with virtual CPU devices of its own, collectives over gloo."""

  def __init__(
    self,
    workdir: pathlib.Path,
    cache: pathlib.Path,
    *flags: str,
    processes: int = 1,
    devices: int = 1,
    last: Sequence[str] = (),
    command: Sequence[str] = ("launch/run.py", "--config=configs/tiny.py"),
    server: ForkServer | None = None,
  ):
    """Starts them; they write to `<workdir>-<process>.log`.

    Args:
      workdir: of the run.
      cache: directory of prepared data and compiled programs, shared by all runs.
      *flags: more flags of the command.
      processes: how many.
      devices: virtual devices of each.
      last: flags of the last process alone.
      command: what is run, and its config.
      server: starts the processes, quickly; None: they start as a shell would start them.
    """
    joined = [f"--coordinator_address=127.0.0.1:{_free_port()}", f"--num_processes={processes}"]
    joined.append(f"--heartbeat_seconds={_HEARTBEAT_SECONDS}")
    self.logs = [workdir.with_name(f"{workdir.name}-{i}.log") for i in range(processes)]
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    self.processes: list[subprocess.Popen[bytes] | Process] = []
    for index, path in enumerate(self.logs):
      arguments = [
        *command,
        f"--workdir={workdir}",
        f"--config.data.cache={cache}/data",
        f"--config.compilation_cache={cache}/programs",
        "--config.eval.sample_tokens=0",
        "--config.trackers=()",
        *flags,
        *([*joined, f"--process_id={index}"] if processes > 1 else []),
        *(last if index == processes - 1 else ()),
      ]
      with path.open("a") as log:
        self.processes.append(
          subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
          )
          if server is None
          else server.start(*arguments, devices=devices, log=path)
        )

  def wait(self, seconds: float = 600) -> list[int]:
    """The exit codes (negative: killed by that signal); kills all after so many seconds."""
    deadline = time.monotonic() + seconds
    try:
      return [p.wait(max(deadline - time.monotonic(), 0.01)) for p in self.processes]
    finally:
      self.send(signal.SIGKILL)

  def running(self) -> bool:
    """Whether any process is."""
    return any(process.poll() is None for process in self.processes)

  def send(self, number: int, *, to: Sequence[int] | None = None) -> None:
    """Sends a signal to all or some of the processes that still run."""
    for index in range(len(self.processes)) if to is None else to:
      if self.processes[index].poll() is None:
        self.processes[index].send_signal(number)

  def text(self, index: int = 0) -> str:
    """All that a process of this number has printed, over all jobs of the workdir."""
    return self.logs[index].read_text()

  def wait_for(self, text: str, *, index: int = 0, seconds: float = 300) -> None:
    """Waits until a process has printed something.

    Raises:
      TimeoutError: it has not, in time or before its end.
    """
    deadline = time.monotonic() + seconds
    while text not in self.text(index):
      if time.monotonic() > deadline or not self.running():
        raise TimeoutError(f"{text!r} is not in:\n{self.text(index)[-3000:]}")
      time.sleep(0.02)


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a .jsonl file without their times; every line must be whole."""
  records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def saved_state(workdir: pathlib.Path, step: int) -> list[tuple[str, np.ndarray]]:
  """(path, array) of every leaf of a checkpoint."""
  reader, path = ocp.PyTreeCheckpointer(), epath.Path(workdir) / "checkpoints" / str(step) / "state"
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
  )
  flat = jax.tree_util.tree_leaves_with_path(reader.restore(path, restore_args=as_numpy))
  return [(jax.tree_util.keystr(key), np.asarray(leaf)) for key, leaf in flat]


def difference(one: pathlib.Path, other: pathlib.Path, step: int) -> str:
  """The first difference between two finished runs in state, logs or export; "" if none."""
  states = saved_state(one, step), saved_state(other, step)
  if [path for path, _ in states[0]] != [path for path, _ in states[1]]:
    return "the states have other leaves"
  for (path, a), (_, b) in zip(*states, strict=True):
    if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
      return f"state{path} differs"
  for name in ("metrics.jsonl", "evaluations.jsonl"):
    records = lines(one / name), lines(other / name)
    if records[0] != records[1]:
      return f"{name} differs"
    if [r["step"] for r in records[0]] != sorted({r["step"] for r in records[0]}):
      return f"{name} does not ascend"
  weights = "export/model.safetensors"
  if (one / weights).read_bytes() != (other / weights).read_bytes():
    return f"{weights} differs"
  return ""
