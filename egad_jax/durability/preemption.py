"""Ends a run on SIGTERM, SIGINT or SIGHUP, sent to this process or to another one of the run.

Python runs a signal's handler only between bytecodes of the main thread, which may be inside a
compilation for minutes. The interpreter writes a byte to the wake-up file descriptor at once, and a
dedicated thread reads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from egad_jax import streams

PREEMPTED = 75  # EX_TEMPFAIL: run again to resume.
_AT_ONCE = 1
_SAME_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Signals that stay ignored if they are: nohup and shells without job control turn them off.
_LEFT_IGNORED = (signal.SIGHUP, signal.SIGTSTP)
_LOG = logging.getLogger(__name__)


class Preempted(Exception):
  """The run was asked to end, and its state is saved."""


class Interrupted(Exception):
  """Work other than a step was abandoned because the run was asked to end; its state is whole."""


class Preemption:
  """Tells a run whether it shall end early, once `watch` has been called.

  Outside `between_steps` a signal ends the process at once with exit code 75: there is nothing to
  save since the last checkpoint. Inside, the training loop ends the run; it polls `requested`. A
  second signal ends the process at once with exit code 1 and leaves the last whole checkpoint.
  Further signals within a second of the first count as the same one: some launchers send it twice.

  Attributes:
    while_stopped: makes a context that is open while SIGTSTP (Ctrl-Z) stops the process.
  """

  def __init__(self) -> None:
    """Installs no signal handler yet; see `watch`."""
    self.while_stopped: Callable[[], contextlib.AbstractContextManager[Any]] = (
      contextlib.nullcontext
    )
    self._noticed = threading.Event()
    self._lock = threading.Lock()
    self._by_loop = False
    self._asked = 0
    self._noticed_at = 0.0
    self._shared = False
    self._jax_handler: Callable[[int], None] | None = None

  def watch(self) -> None:
    """Takes over the signals; call it from the main thread, as early as possible.

    SIGUSR1, which asks for a profile, is included because it would end a process that does not
    handle it yet.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _take_over(*_SIGNALS, signal.SIGTSTP, signal.SIGUSR1)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=self._listen, args=(reader,), name="preemption", daemon=True)
    thread.start()

  def share(self) -> None:
    """Passes signals on to the other processes; call it after `jax.distributed` has joined them."""
    # JAX has taken SIGTERM over, and its handler tells the other processes.
    self._jax_handler = _c_handler(signal.SIGTERM)
    _take_over(signal.SIGTERM)
    self._shared = True

  def _listen(self, reader: int) -> None:
    while numbers := os.read(reader, 64):
      for number in numbers:
        if number in _SIGNALS:
          self._notice(signal.Signals(number))
        elif number == signal.SIGTSTP:
          with self.while_stopped():
            # A signal sent to the whole process might stop it only after this context is closed.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

  def _notice(self, number: signal.Signals) -> None:
    with self._lock:
      now = time.monotonic()
      if self._noticed.is_set():
        if now - self._noticed_at < _SAME_SECONDS:
          return
        _exit(_AT_ONCE, f"{number.name} again: ends at once; the last whole checkpoint stays.")
      self._noticed_at = now
      self._noticed.set()
      if not self._by_loop:
        _exit(PREEMPTED, f"{number.name}: nothing new to save; run the command again to resume.")
    _LOG.warning("%s: ends after this step, with a checkpoint", number.name)
    if self._jax_handler is not None:
      self._jax_handler(signal.SIGTERM)

  @contextlib.contextmanager
  def between_steps(self) -> Iterator[None]:
    """While this context is open, a signal leaves it to the loop to end the run between steps.

    Raises:
      Preempted: a signal came after the loop asked for the last time; its state is saved.
    """
    with self._lock:
      self._by_loop = True
    try:
      yield
    finally:
      with self._lock:
        self._by_loop = False
        late = self._noticed.is_set()
    from egad_jax import processes

    if processes.any_process(late):
      raise Preempted

  def requested(self) -> bool:
    """Whether to end the run here; all processes must ask equally often and get the same answer."""
    self._asked += 1
    if self._shared:
      from jax.experimental import multihost_utils

      return multihost_utils.reached_preemption_sync_point(self._asked)
    return self._noticed.is_set()

  def check(self) -> None:
    """Asks `requested`, for work that can be abandoned.

    Raises:
      Interrupted: the run shall end.
    """
    if self.requested():
      raise Interrupted


def _take_over(*numbers: signal.Signals) -> None:
  for number in numbers:
    if number not in _LEFT_IGNORED or signal.getsignal(number) != signal.SIG_IGN:
      # The handler does nothing: the byte in the wake-up file descriptor says it all.
      signal.signal(number, lambda *_: None)


def _c_handler(number: int) -> Callable[[int], None] | None:
  """The C function that handles a signal now, which is removed; None if there is none."""
  libc = ctypes.CDLL(None)
  libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
  address = libc.signal(number, None)
  return ctypes.CFUNCTYPE(None, ctypes.c_int)(address) if address and address > 1 else None


def _exit(code: int, message: str) -> None:
  streams.write_stderr(f"{message}\n")
  # Not sys.exit, which would end this thread only.
  os._exit(code)
