"""Parses paths that users write: `~` is the home directory, every other character is literal."""

from __future__ import annotations

import atexit
import functools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath
from etils.epath.gpath import PosixGPath

from egad_jax.errors import InputError

_SCHEMES = ("gs", "s3", "az", "hf")


@epath.register_path_cls
class LocalPath(PosixGPath):
  """A path on a disk, whatever its name.

  `epath.Path` alone would take /gs/DIRECTORY for a bucket, and its `iterdir` leaves out names that
  end in `~`.
  """

  @property
  def _uri_scheme(self) -> None:
    return None

  def iterdir(self) -> Iterator[LocalPath]:
    """Yields every entry of the directory."""
    for name in os.listdir(self):
      yield self / name


def parse(name: str | os.PathLike[str], what: str) -> epath.Path:
  """The path that a flag or a config key names: absolute on a disk, or in an object store.

  Args:
    name: a path on a disk, with `~` for the home directory, or an address such as gs://BUCKET/….
    what: the flag or config key, for messages.

  Raises:
    InputError: the name is empty, has an unknown scheme, holds a null byte, or begins with `~` and
      an unknown user; or the current directory no longer exists.
  """
  text = os.fspath(name)
  scheme = re.match(r"([a-z][a-z0-9+.-]*)://", text)
  if scheme is None:
    return local(text, what)
  if scheme[1] not in _SCHEMES:
    raise InputError(
      f"{what} {text!r}: {scheme[1]}:// is not supported. Give a path on a disk, or one of an "
      f"object store: {', '.join(f'{known}://' for known in _SCHEMES)}."
    )
  return epath.Path(text)


def local(name: str | os.PathLike[str], what: str) -> LocalPath:
  """The absolute path on a disk that a flag or a config key names; links are not followed.

  Raises:
    InputError: the name is empty, a URL, holds a null byte, or begins with `~` and an unknown user;
      or the current directory no longer exists.
  """
  return LocalPath(expand(name, what)).absolute()


def expand(name: str | os.PathLike[str], what: str) -> str:
  """A path on a disk with `~` or `~USER` at its beginning replaced by the home directory.

  Raises:
    InputError: the name is empty, a URL, holds a null byte, or begins with `~` and an unknown user;
      or the current directory no longer exists.
  """
  text = os.fspath(name)
  if not text or "\0" in text:
    raise InputError(f"{what} {text!r} must be a path; it has no name of a file. Give one.")
  if re.match(r"[a-z][a-z0-9+.-]*://", text):
    raise InputError(f"{what} {text!r} must be a path on a disk, without {text.split('//')[0]}//.")
  try:
    pathlib.Path.cwd()
    # pathlib alone would drop the ./ of ./~ and expand it too.
    return os.fspath(pathlib.Path(text).expanduser()) if text.startswith("~") else text
  except FileNotFoundError:
    raise InputError(
      f"{what} {text!r}: the current directory no longer exists. Change to one that does."
    ) from None
  except RuntimeError:
    owner = text.split("/")[0]
    raise InputError(
      f"{what} {text!r}: there is no home directory for {owner}. Write the path out, or ./{owner} "
      "for a directory of that name."
    ) from None


def is_local(path: str | os.PathLike[str]) -> bool:
  """Whether a path is on a disk; addresses such as gs://BUCKET/… are not."""
  return "://" not in os.fspath(path)


def real(path: str | os.PathLike[str]) -> pathlib.Path:
  """The absolute path with all links resolved, for comparing directories."""
  return pathlib.Path(os.path.realpath(path))


def speakable(directory: epath.Path) -> epath.Path:
  """The same directory under a name that Orbax, TensorStore and tensorflow-datasets take literally.

  Orbax and tensorflow-datasets look for files by patterns that begin with the directory's own name,
  Orbax takes `gs:` anywhere for a bucket, and TensorStore reads a backslash as a slash and refuses
  names that are not UTF-8. A directory with such a name gets a link in the temporary directory,
  which is removed when the process ends.
  """
  if not is_local(directory):
    return directory
  name = os.fspath(directory)
  awkward = re.search(r"[*?\[\\]|gs:(/|$)", name) is not None
  awkward |= name.encode("utf-8", "replace") != os.fsencode(name)
  return _link_to(name) if awkward else LocalPath(name)


@functools.cache
def _link_to(name: str) -> LocalPath:
  scratch = tempfile.mkdtemp(prefix="egad_jax-")
  link = LocalPath(scratch) / "directory"
  os.symlink(name, link)
  atexit.register(shutil.rmtree, scratch, ignore_errors=True)
  return link
