"""Paths in object stores: asked for before any work, so that what is missing has one message."""

from __future__ import annotations

import os
import re

from etils import epath

from egad_jax.errors import InputError

# Each scheme's package that reads it, and how a user is known to it.
_STORES = {
  "gs": ("gcsfs", "gcloud auth application-default login"),
  "s3": ("s3fs", "aws configure"),
  "az": ("adlfs", "az login"),
  "hf": ("huggingface_hub", "hf auth login"),
}
# Words of errors after which another attempt would not help.
_REFUSED = re.compile(
  r"credential|forbidden|unauthorized|permission|access denied|anonymous caller|not found"
  r"|does not exist|invalid bucket|bad request|\b40[0134]\b",
  re.IGNORECASE,
)


def require(path: str | os.PathLike[str], what: str) -> None:
  """Looks whether a path exists, if it is one of an object store.

  Args:
    path: of any kind; nothing is done for one on a disk.
    what: the flag or key, for messages.

  Raises:
    InputError: the store's package is missing, or it lets this user do nothing.
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
  # Every store's client has errors of its own; those of a network that is down are passed on.
  except Exception as error:
    if not _REFUSED.search(f"{type(error).__name__} {error}"):
      raise
    raise InputError(
      f"{what} {name}: {' '.join(str(error).split())[:300]}. Log in (`{login}`), and see to it "
      "that the bucket exists and that you may use it."
    ) from error
