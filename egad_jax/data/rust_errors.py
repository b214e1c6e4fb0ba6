"""Turns errors of the tokenizers package, which is written in Rust, into input errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from egad_jax.errors import InputError


@contextlib.contextmanager
def rust_errors(what: str, remedy: str) -> Iterator[None]:
  """Turns any error inside the block into an `InputError`; wrap only calls of tokenizers in it.

  Args:
    what: beginning of the message, such as "a/tokenizer.json: not a readable tokenizer".
    remedy: sentence that says what to do about it.

  Raises:
    InputError: the block raised an error, or the Rust code panicked.
  """
  try:
    yield
  except BaseException as error:
    # The package's errors are plain Exceptions. A panic, as from an endless regular expression, is
    # a BaseException of a class that cannot be imported.
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
      raise InputError(f"{what}: {error}. {remedy}") from error
    raise
