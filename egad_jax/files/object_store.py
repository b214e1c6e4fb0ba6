"""Checks access to paths in object stores before any work is done, with one clear message."""

from __future__ import annotations

import os
import re

from etils import epath

from egad_jax.errors import InputError

# Scheme -> the Python package that reads it, and the command that logs a user in.
_STORES = {
  "gs": ("gcsfs", "gcloud auth application-default login"),
  "s3": ("s3fs", "aws configure"),
  "az": ("adlfs", "az login"),
  "hf": ("huggingface_hub", "hf auth login"),
}
# Beginnings of the paths that are in an object store.
SCHEMES = tuple(f"{scheme}://" for scheme in _STORES)
# Words in errors that another attempt would not cure.
_REFUSED = re.compile(
  r"credential|forbidden|unauthorized|permission|access denied|anonymous caller|not found"
  r"|does not exist|invalid bucket|bad request|\b40[0134]\b",
  re.IGNORECASE,
)


def require(path: str | os.PathLike[str], what: str) -> None:
  """Checks that the store of a path can be asked; whether the path exists does not matter.

  Args:
    path: a path in an object store; nothing is done for one on a disk.
    what: the flag or config key that names it, for messages.

  Raises:
    InputError: the store's Python package is not installed, or the store refuses this user.
  """
  name = os.fspath(path)
  scheme = name.split("://")[0] if "://" in name else ""
  if scheme not in _STORES:
    return
  package, login = _STORES[scheme]
  try:
    epath.Path(name).exists()
  except ImportError as error:
    raise InputError(
      f"{what} {name}: {scheme}:// needs the Python package {package}, which is not installed. "
      f"pip install {package}, or give a path on a disk."
    ) from error
  # Every store's client has error classes of its own; those of a broken network are passed on.
  except Exception as error:
    if not _REFUSED.search(f"{type(error).__name__} {error}"):
      raise
    raise InputError(
      f"{what} {name}: {' '.join(str(error).split())[:300]}. Log in (`{login}`), and see to it "
      "that the bucket exists and that you may use it."
    ) from error
