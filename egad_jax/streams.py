"""stdout and stderr that keep no work from being done: closed, full, stalled, or with nobody there.

Messages on stderr are lost where they cannot be written, and the loss is counted. Results on stdout
are the work of most commands, so that these end when nobody takes them; training outlives that.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import socket
import stat
import sys
import time
from typing import Any

STDIN, STDOUT, STDERR = 0, 1, 2
# How long a reader may stand still before what is written is lost, in seconds.
PATIENCE = 1.0
# Room that `poll` promises.
_PIECE = 4096


class StdoutError(OSError):
  """What was written to stdout did not get there."""


class Descriptor(io.RawIOBase):
  """A descriptor that is written to.

  Attributes:
    patient: whether to wait for its reader for ever and to raise `StdoutError`; else what cannot be
      written within `PATIENCE` is lost.
    lost: bytes that were lost and not told of.
  """

  def __init__(self, descriptor: int, *, patient: bool) -> None:
    self._descriptor, self.patient = descriptor, patient
    self.lost, self._stalled = 0, False
    self._socket: socket.socket | None = None
    if _kind(descriptor) == stat.S_IFSOCK:
      self._socket = socket.socket(fileno=os.dup(descriptor))

  def writable(self) -> bool:
    """It is."""
    return True

  def fileno(self) -> int:
    """The descriptor."""
    return self._descriptor

  def isatty(self) -> bool:
    """Whether it is a terminal."""
    return os.isatty(self._descriptor)

  def close(self) -> None:
    """Ends the use of it, and leaves it open."""
    if self._socket:
      self._socket.close()
    super().close()

  def write(self, data: Any) -> int:
    """Writes all of it, or loses the rest."""
    data = bytes(data)
    try:
      if self.patient:
        return self._write_all(data)
      self._write_in_time(data)
    except OSError as error:
      if self.patient:
        raise StdoutError(error.errno, error.strerror) from error
      self.lost += len(data)
    return len(data)

  def _write_all(self, data: bytes) -> int:
    left = memoryview(data)
    while left:
      try:
        left = left[os.write(self._descriptor, left) :]
      except BlockingIOError:  # Whoever shares it has made it so.
        select.select([], [self._descriptor], [])
    return len(data)

  def _write_in_time(self, data: bytes) -> None:
    if self.lost and self._is_ready(0):
      note, self.lost = f"[{self.lost} characters were lost: nobody read them]\n".encode(), 0
      self._send(note)
    until = time.monotonic() + (0 if self._stalled else PATIENCE)
    left = memoryview(data)
    while left:
      self._stalled = not self._is_ready(max(until - time.monotonic(), 0))
      if self._stalled:
        self.lost += len(left)
        return
      with contextlib.suppress(BlockingIOError):
        left = left[self._send(left[:_PIECE]) :]

  def _is_ready(self, seconds: float) -> bool:
    poll = select.poll()
    poll.register(self._descriptor, select.POLLOUT)
    return bool(poll.poll(1000 * seconds))

  def _send(self, data: Any) -> int:
    if self._socket:
      return self._socket.send(data, socket.MSG_DONTWAIT)
    return os.write(self._descriptor, data)


def write_stderr(text: str) -> None:
  """Writes what must be said at once and from any thread, as far as that is possible."""
  with contextlib.suppress(OSError), Descriptor(STDERR, patient=False) as stderr:
    stderr.write(text.encode(errors="replace"))


def take_over() -> None:
  """Has stdout and stderr of this process behave as this module says; call it first.

  A descriptor that is closed gets /dev/null, or the next file that is opened would get its number
  and all that is written to it.
  """
  for descriptor, flags in ((STDIN, os.O_RDONLY), (STDOUT, os.O_RDONLY), (STDERR, os.O_WRONLY)):
    # stdout for reading only: what is written to it fails, as it does for other programs.
    if not _is_open(descriptor):
      _replace(descriptor, os.open(os.devnull, flags))
  _stall_for_nobody(STDERR)
  sys.stdout = _text(sys.stdout, Descriptor(STDOUT, patient=True))
  sys.stderr = _text(sys.stderr, Descriptor(STDERR, patient=False))
  # A message that cannot be written is no reason for a traceback.
  logging.raiseExceptions = False
  if absl := sys.modules.get("absl.logging"):
    absl.get_absl_handler().python_handler.stream = sys.stderr


def outlive_stdout() -> None:
  """Has what cannot be written to stdout lost, as it is on stderr."""
  with contextlib.suppress(StdoutError):
    sys.stdout.flush()
  _stall_for_nobody(STDOUT)
  raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
  if isinstance(raw, Descriptor):
    raw.patient = False


def close_stdout() -> None:
  """Writes what is waiting to be written.

  Raises:
    StdoutError: it could not be written; there is nothing left to write then.
  """
  try:
    sys.stdout.flush()
  except StdoutError:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 # Until the process ends.
    raise


def _text(old: Any, raw: Descriptor) -> io.TextIOWrapper:
  if old is not None:
    with contextlib.suppress(OSError):
      old.flush()
  messages = not raw.patient
  return io.TextIOWrapper(
    io.BufferedWriter(raw),
    encoding=getattr(old, "encoding", None) or "utf-8",
    errors="backslashreplace" if messages else getattr(old, "errors", None),
    line_buffering=messages or raw.isatty(),
    write_through=messages,
  )


def _is_open(descriptor: int) -> bool:
  try:
    os.fstat(descriptor)
  except OSError:
    return False
  return True


def _kind(descriptor: int) -> int:
  try:
    return stat.S_IFMT(os.fstat(descriptor).st_mode)
  except OSError:
    return 0


def _stall_for_nobody(descriptor: int) -> None:
  """Has writes fail rather than wait, those of libraries in C as well.

  The pipe or terminal is opened once more for that, because other processes share the description
  that is open.
  """
  if _kind(descriptor) != stat.S_IFIFO and not os.isatty(descriptor):
    return
  flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
  with contextlib.suppress(OSError):  # It has no reader, or belongs to somebody else.
    _replace(descriptor, os.open(f"/proc/self/fd/{descriptor}", flags))


def _replace(descriptor: int, by: int) -> None:
  if by != descriptor:
    os.dup2(by, descriptor, inheritable=True)
    os.close(by)
  else:
    os.set_inheritable(descriptor, True)


def reader_is_gone(error: OSError) -> bool:
  """Whether an error says that nobody will read any more, which is no fault of this program."""
  return error.errno == errno.EPIPE
