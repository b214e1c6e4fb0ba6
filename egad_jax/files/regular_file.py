"""Opens files that users name; pipes and devices are refused without waiting for them."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, BinaryIO

from etils import epath

from egad_jax.errors import InputError

_KINDS = {
  stat.S_IFDIR: "a directory",
  stat.S_IFIFO: "a pipe",
  stat.S_IFSOCK: "a socket",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
}
# Limit in bytes for files that are read whole: the largest known tokenizer.json has 35 MB.
MOST_BYTES = 2**28
_REMEDIES = {
  errno.EACCES: "Make it readable for this user",
  errno.EPERM: "Make it readable for this user",
  errno.ENOENT: "Name one that is there",
  errno.ELOOP: "Mend the link",
  errno.ENAMETOOLONG: "Give a shorter name",
}


def open_regular(path: os.PathLike[str] | str) -> BinaryIO:
  """Opens a regular file on a disk, or an object of a store, for reading.

  Links are followed and must lead to a regular file. A file of size 0 reads as empty, even one in
  /proc, which might have no end.

  Raises:
    InputError: the path is missing, is not a regular file, or cannot be opened.
  """
  if "://" in os.fspath(path):
    return _open_object(path)
  try:
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
  except OSError as error:
    # ENXIO comes from a socket, or a device without its hardware.
    kind = _kind_of(path) if error.errno == errno.ENXIO else None
    raise InputError(_message(path, error, kind)) from error
  except ValueError as error:  # A null byte.
    raise InputError(f"{os.fspath(path)!r} is no name of a file: {error}.") from error
  status = os.fstat(descriptor)
  if not stat.S_ISREG(status.st_mode):
    os.close(descriptor)
    raise InputError(_message(path, None, _KINDS.get(stat.S_IFMT(status.st_mode), "no file")))
  if not status.st_size:
    os.close(descriptor)
    return open(os.devnull, "rb")
  return os.fdopen(descriptor, "rb")


def read_regular(path: os.PathLike[str] | str, *, most: int = MOST_BYTES) -> bytes:
  """Reads a whole file that `open_regular` opens.

  Args:
    path: path of the file; links are followed.
    most: the most bytes that it may have.

  Raises:
    InputError: `open_regular` refuses it, it is larger than `most`, or it cannot be read.
  """
  with open_regular(path) as file:
    try:
      content = file.read(most + 1)
    except OSError as error:
      raise InputError(_message(path, error, None)) from error
  if len(content) > most:
    raise InputError(f"{path}: more than {most} bytes are too many for a file of its name.")
  return content


def is_there(path: os.PathLike[str] | str) -> bool:
  """Whether the path exists, or may exist where it cannot be looked up; opening it tells."""
  if "://" in os.fspath(path):
    return epath.Path(path).exists()
  try:
    os.lstat(path)
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return False
  except OSError:
    return True
  return True


def require_regular(path: os.PathLike[str] | str) -> int:
  """Checks a file that a library is going to open; returns its size in bytes.

  Raises:
    InputError: the path is missing, is not a regular file, or cannot be opened.
  """
  with open_regular(path) as file:
    return file.seek(0, os.SEEK_END)


def _open_object(path: Any) -> BinaryIO:
  try:
    return epath.Path(path).open("rb")
  except OSError as error:
    raise InputError(_message(path, error, None)) from error


def _kind_of(path: os.PathLike[str] | str) -> str | None:
  try:
    return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
  except OSError:
    return None


def _message(path: os.PathLike[str] | str, error: OSError | None, kind: str | None) -> str:
  if kind or error is None:
    return f"{path} must be a file; it is {kind}."
  remedy = _REMEDIES.get(error.errno or 0, "See to it that it can be read")
  return f"{path} cannot be read: {error.strerror or error}. {remedy}."
