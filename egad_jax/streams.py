"""Makes stdout and stderr unable to stop a run when they are closed, full, stalled or unread.

Messages on stderr that cannot be written are dropped, and the loss is counted. Results on stdout
are the purpose of most commands, so these end when stdout cannot be written; training goes on.
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
# Seconds that a reader may stall before what is written is dropped.
PATIENCE = 1.0
# Bytes for which there is room when `poll` says that a descriptor is writable.
_PIECE = 4096


class StdoutError(OSError):
  """Writing to stdout failed."""


class Descriptor(io.RawIOBase):
  """A file descriptor for writing.

  Attributes:
    patient: True to wait for the reader without limit and to raise `StdoutError` if a write fails;
      False to drop what cannot be written within `PATIENCE`.
    lost: number of bytes dropped since the last note about it.
  """

  def __init__(self, descriptor: int, *, patient: bool) -> None:
    self._descriptor, self.patient = descriptor, patient
    self.lost, self._stalled = 0, False
    self._socket: socket.socket | None = None
    if _kind(descriptor) == stat.S_IFSOCK:
      self._socket = socket.socket(fileno=os.dup(descriptor))

  def writable(self) -> bool:
    """True: the descriptor is for writing."""
    return True

  def fileno(self) -> int:
    """The number of the descriptor."""
    return self._descriptor

  def isatty(self) -> bool:
    """Whether the descriptor is a terminal."""
    return os.isatty(self._descriptor)

  def close(self) -> None:
    """Closes this object and leaves the descriptor itself open."""
    if self._socket:
      self._socket.close()
    super().close()

  def write(self, data: Any) -> int:
    """Writes all the data, or drops what cannot be written unless `patient`.

    Raises:
      StdoutError: a write failed and the descriptor is `patient`.
    """
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
      except BlockingIOError:  # Another process that shares the descriptor made it non-blocking.
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
  """Writes text to stderr at once, from any thread; what cannot be written is dropped."""
  with contextlib.suppress(OSError), Descriptor(STDERR, patient=False) as stderr:
    stderr.write(text.encode(errors="replace"))


def take_over() -> None:
  """Replaces sys.stdout and sys.stderr by streams that behave as above; call it first.

  A closed descriptor is opened on /dev/null. Otherwise the next file opened would get its number,
  and with it everything written to the stream.
  """
  for descriptor, flags in ((STDIN, os.O_RDONLY), (STDOUT, os.O_RDONLY), (STDERR, os.O_WRONLY)):
    # stdout is opened for reading only, so that writes fail, as they do for other programs.
    if not _is_open(descriptor):
      _replace(descriptor, os.open(os.devnull, flags))
  _stall_for_nobody(STDERR)
  sys.stdout = _text(sys.stdout, Descriptor(STDOUT, patient=True))
  sys.stderr = _text(sys.stderr, Descriptor(STDERR, patient=False))
  # A log message that cannot be written must not cause a traceback.
  logging.raiseExceptions = False
  if absl := sys.modules.get("absl.logging"):
    absl.get_absl_handler().python_handler.stream = sys.stderr


def outlive_stdout() -> None:
  """From now on drops what cannot be written to stdout, as on stderr."""
  with contextlib.suppress(StdoutError):
    sys.stdout.flush()
  _stall_for_nobody(STDOUT)
  _drop_what_fails()


def _drop_what_fails() -> None:
  raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
  if isinstance(raw, Descriptor):
    raw.patient = False


def close_stdout() -> None:
  """Flushes stdout before the process ends.

  Raises:
    StdoutError: the buffered text could not be written; it is dropped.
  """
  try:
    sys.stdout.flush()
  except StdoutError:
    _drop_what_fails()  # The stream tries again when it is collected, which Python 3.13 reports.
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
  """Makes writes to a pipe or terminal fail instead of blocking, including those of C libraries.

  The pipe or terminal is opened again for this, because other processes share the open file
  description, which must stay blocking for them.
  """
  if _kind(descriptor) != stat.S_IFIFO and not os.isatty(descriptor):
    return
  flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
  with contextlib.suppress(OSError):  # It has no reader, or belongs to another user.
    _replace(descriptor, os.open(f"/proc/self/fd/{descriptor}", flags))


def _replace(descriptor: int, by: int) -> None:
  if by != descriptor:
    os.dup2(by, descriptor, inheritable=True)
    os.close(by)
  else:
    os.set_inheritable(descriptor, True)


def reader_is_gone(error: OSError) -> bool:
  """Whether an error means that the reader has closed its end, which is no fault of the program."""
  return error.errno == errno.EPIPE
