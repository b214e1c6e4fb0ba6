"""The exception that means that the input is wrong; no other exception does."""

from __future__ import annotations


class InputError(ValueError):
  """A config, flag, file or directory is wrong; commands report it as one message, exit code 2.

  The message names the argument, what was expected, what was found instead and the remedy.
  """
