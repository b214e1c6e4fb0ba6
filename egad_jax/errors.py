"""The one exception that means "the input is wrong", and nothing else does."""

from __future__ import annotations


class InputError(ValueError):
  """Bad config, flag, file or directory: reported as one message, exit code 2.

  The message names the argument, what was expected, what came instead and the remedy.
  """
