"""The commands. Importing this first says what is missing for them, in one message."""

# This file is read by any Python 3, the wrong ones included.

import importlib.util
import os
import sys

_LEAST_PYTHON = (3, 11)
_PACKAGES = (
  "absl",
  "array_record",
  "etils",
  "filelock",
  "flax",
  "gguf",
  "grain",
  "huggingface_hub",
  "jax",
  "jaxlib",
  "jinja2",
  "ml_collections",
  "ml_dtypes",
  "numpy",
  "optax",
  "orbax",
  "pyarrow",
  "rensa",
  "rich",
  "safetensors",
  "yaml",
  "tensorboardX",
  "tensorflow_datasets",
  "tokenizers",
  "zstandard",
)
_BAD_INPUT = 2


def missing():
  """The packages that this Python does not find."""
  return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def require_environment():
  """Ends the process with one message and code 2 if this Python is too old or lacks packages."""
  problem = ""
  if sys.version_info < _LEAST_PYTHON:
    problem = f"is Python {sys.version.split()[0]}; at least 3.{_LEAST_PYTHON[1]} is needed"
  elif missing():
    problem = f"lacks {', '.join(missing())}"
  if problem:
    program = os.path.basename(sys.argv[0])
    remedy = "Use .venv/bin/python of `make install`, or pip install this package."
    try:
      os.write(2, f"{program}: {sys.executable} {problem}. {remedy}\n".encode())
    finally:
      sys.exit(_BAD_INPUT)
