"""Ending a run when it is asked to: SIGTERM, SIGINT, SIGHUP, and the same asked of another process.

Python runs a signal's handler only between bytecodes of the main thread, which may be inside a
compilation for minutes. The byte that the interpreter writes to the wake-up file descriptor comes
at once, and a thread of its own reads it.
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
# Those that nohup and shells without job control turn off stay so.
_LEFT_IGNORED = (signal.SIGHUP, signal.SIGTSTP)
_LOG = logging.getLogger(__name__)


class Preempted(Exception):
  """The run was asked to end, and all that is worth keeping of it is saved."""


class Interrupted(Exception):
  """What was going on was given up because the run was asked to end; its state is whole."""


class Preemption:
  """Whether a run shall end early; signals say so once `watch` is called.

  Outside `between_steps` a signal ends the process at once with code 75: nothing since the last
  checkpoint is worth keeping. Inside it is up to the loop, which asks `requested`. A second signal
  ends the process at once with code 1 and leaves the last whole checkpoint; launchers that send
  the same one twice within a second mean one.

  Attributes:
    while_stopped: a context that is open while SIGTSTP (Ctrl-Z) stops the process.
  """

  def __init__(self) -> None:
    """Takes over no signal yet."""
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
    """Takes over the signals; call it as early as can be, from the main thread.

    SIGUSR1 asks for a profile, and would end a process that is not ready for it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _take_over(*_SIGNALS, signal.SIGTSTP, signal.SIGUSR1)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=self._listen, args=(reader,), name="preemption", daemon=True)
    thread.start()

  def share(self) -> None:
    """Lets the other processes know of a signal; call it when they have been joined."""
    # JAX has taken SIGTERM over, and its handler tells them.
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
            # A signal to the whole process may stop it only after this thread has gone on.
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
    """While this is open the loop ends the run, between two steps."""
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
      raise Preempted  # It came after the last question; the loop has ended with all saved.

  def requested(self) -> bool:
    """Whether to end here. All processes must ask equally often, and get the same answer."""
    self._asked += 1
    if self._shared:
      from jax.experimental import multihost_utils

      return multihost_utils.reached_preemption_sync_point(self._asked)
    return self._noticed.is_set()

  def check(self) -> None:
    """Raises `Interrupted` if the run should end, for work that can be given up."""
    if self.requested():
      raise Interrupted


def _take_over(*numbers: signal.Signals) -> None:
  for number in numbers:
    if number not in _LEFT_IGNORED or signal.getsignal(number) != signal.SIG_IGN:
      # Python's own part of it does nothing: the byte in the wake-up file descriptor does.
      signal.signal(number, lambda *_: None)


def _c_handler(number: int) -> Callable[[int], None] | None:
  """The C function that handles a signal now, None if there is none."""
  libc = ctypes.CDLL(None)
  libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
  address = libc.signal(number, None)
  return ctypes.CFUNCTYPE(None, ctypes.c_int)(address) if address and address > 1 else None


def _exit(code: int, message: str) -> None:
  streams.write_stderr(f"{message}\n")
  # Not sys.exit: the main thread may be where no exception reaches it.
  os._exit(code)
