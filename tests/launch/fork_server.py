"""Starts commands of `launch/` in forks of a process that has imported all they need.

Importing takes five seconds of computing for each command; a fork takes none. What runs is a
process like any other, with a session, an environment, streams and flags of its own, from the first
line of the script to the interpreter's own end.
"""

from __future__ import annotations

import json
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from tests.compiler import xla_flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
_WAIT = 0.01


class Process:
  """A started command; what of `subprocess.Popen` tests need.

  Attributes:
    pid: its process, which leads a session of its own.
    returncode: None until it has ended; negative after a signal.
  """

  def __init__(self, directory: pathlib.Path):
    """Waits until the process is there; the server writes into the directory."""
    self._path = directory
    weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
    self.returncode: int | None = None
    deadline = time.monotonic() + 120
    while not (pid := self._read("pid")):
      assert time.monotonic() < deadline, "the fork server does not start the command"
      time.sleep(_WAIT)
    self.pid = int(pid)

  def _read(self, name: str) -> str:
    path = self._path / name
    return path.read_text(errors="replace") if path.exists() else ""

  def poll(self) -> int | None:
    """The return code if it has ended."""
    if self.returncode is None and (code := self._read("code")):
      self.returncode = int(code)
    return self.returncode

  def wait(self, timeout: float = 600) -> int:
    """The return code; after so many seconds `subprocess.TimeoutExpired`."""
    deadline = time.monotonic() + timeout
    while (code := self.poll()) is None:
      if time.monotonic() > deadline:
        raise subprocess.TimeoutExpired("command", timeout)
      time.sleep(_WAIT)
    return code

  def send_signal(self, number: int) -> None:
    """Sends a signal to a process that still runs."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    """Kills all of its session that still run."""
    if self.poll() is None:
      os.killpg(self.pid, signal.SIGKILL)

  @property
  def stdout(self) -> str:
    """What it has printed."""
    return self._read("stdout")

  @property
  def stderr(self) -> str:
    """What it has said besides."""
    return self._read("stderr")


class ForkServer:
  """The process that is forked, started with the first command.

  One for all tests of a pytest process: `SERVER`.
  """

  def __init__(self) -> None:
    self._process: subprocess.Popen[bytes] | None = None

  def start(
    self,
    script: str,
    *arguments: Any,
    cwd: str | os.PathLike[str] = ROOT,
    environment: Mapping[str, str] | None = None,
    devices: int = 1,
    log: pathlib.Path | None = None,
  ) -> Process:
    """Starts a command.

    Args:
      script: a file like "launch/run.py", from the repository's root.
      *arguments: of the command.
      cwd: directory in which it starts.
      environment: what it has besides the tests' own environment.
      devices: number of virtual devices.
      log: a file to which stdout and stderr are appended; else they are the process's attributes.
    """
    if self._process is None:
      self._process = subprocess.Popen(
        [sys.executable, "-m", "tests.launch.fork_server"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdin=subprocess.PIPE,
      )
    directory = pathlib.Path(tempfile.mkdtemp())
    request = {
      "script": str(ROOT / script),
      "arguments": [str(argument) for argument in arguments],
      "cwd": str(cwd),
      "environment": {"XLA_FLAGS": xla_flags(devices), **(environment or {})},
      "directory": str(directory),
      "log": log and str(log),
    }
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps(request).encode() + b"\n")
    self._process.stdin.flush()
    return Process(directory)

  def run(self, script: str, *arguments: Any, **options: Any) -> Process:
    """Runs a command to its end; as `start`."""
    process = self.start(script, *arguments, **options)
    try:
      process.wait(300)
    finally:
      process.kill()
    return process

  def close(self) -> None:
    """Ends the server; commands that run go on."""
    if self._process is not None and self._process.stdin is not None:
      self._process.stdin.close()
      self._process.wait()
      self._process = None


SERVER = ForkServer()


def _put(path: pathlib.Path, text: str) -> None:
  path.with_suffix(".new").write_text(text)
  path.with_suffix(".new").replace(path)


def _become(request: Mapping[str, Any]) -> None:
  """Makes this process the command's: its streams, directory, environment and arguments."""
  os.setsid()
  directory = pathlib.Path(request["directory"])
  for number, name in ((1, "stdout"), (2, "stderr")):
    path = request["log"] or directory / name
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(opened, number)
    os.close(opened)
  null = os.open(os.devnull, os.O_RDONLY)
  os.dup2(null, 0)
  os.close(null)
  os.chdir(request["cwd"])
  os.environ.update(request["environment"])
  sys.argv = [request["script"], *request["arguments"]]
  # What `python script` would have: the script's directory first, not the server's.
  sys.path[0] = str(pathlib.Path(request["script"]).parent)


def _preload() -> None:
  """Imports what commands import; nothing of it makes devices."""
  import matplotlib.pyplot
  import orbax.checkpoint
  import tensorboardX

  import configs.default
  from egad_jax import from_config, processes
  from egad_jax.models import export, generation, load
  from egad_jax.training import loop, results
  from launch import command_line

  del matplotlib, orbax, tensorboardX, configs, from_config, processes, export, generation, load
  del loop, results, command_line


def _serve(requests: Sequence[bytes] | Any) -> Mapping[str, Any] | None:
  """Forks for every request; returns its request in a fork, None in the server at the end."""
  # Nobody waits for the forks that watch.
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)
  for line in requests:
    request = json.loads(line)
    with warnings.catch_warnings():
      # jax and Python warn of forks; nothing here has begun to compute.
      warnings.simplefilter("ignore")
      if os.fork():
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    directory = pathlib.Path(request["directory"])
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      if not (pid := os.fork()):
        return request
    _put(directory / "pid", str(pid))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if directory.exists():
      _put(directory / "code", str(code))
    os._exit(0)
  return None


if __name__ == "__main__":
  _preload()
  command = _serve(sys.stdin.buffer)
  if command is not None:
    _become(command)
    runpy.run_path(command["script"], run_name="__main__")
