"""Errors of the tokenizers package, which is written in Rust, as errors of the input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from egad_jax.errors import InputError


@contextlib.contextmanager
def rust_errors(what: str, remedy: str) -> Iterator[None]:
  """Turns what tokenizers raises inside into an `InputError`; wrap nothing else in it.

  Args:
    what: what it works on and fails to do, such as "a/tokenizer.json: not a readable tokenizer".
    remedy: what to do about it.
  """
  try:
    yield
  except BaseException as error:
    # Errors are plain Exceptions there; a panic, of a regular expression without end say, is a
    # BaseException of a class that cannot be imported.
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
      raise InputError(f"{what}: {error}. {remedy}") from error
    raise
