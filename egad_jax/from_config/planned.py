"""Stand-ins for tokenizers and for the projection between them in a plan, which reads no files."""

from __future__ import annotations

import numpy as np

from egad_jax.errors import InputError
from egad_jax.from_config.models import Vocabulary, planned_shape
from egad_jax.from_config.values import TRAIN, Config
from egad_jax.methods import TWO_TOKENIZERS

# Largest number of entries in a row of a run's projection: the default of `prepare_projection`.
_PIECES = 4


def planned_vocabularies(config: Config) -> tuple[Vocabulary, Vocabulary]:
  """Stand-ins for the tokenizers of student and teacher; the same object unless rows are paired.

  Raises:
    InputError: a size is not known from the config alone.
  """
  options = config.teacher
  teacher = _vocabulary("teacher", config.data.tokenizer, options.source, options.architecture)
  if config.method not in TWO_TOKENIZERS:
    return teacher, teacher
  student = config.student
  own = student.tokenizer
  if student.init == "source" or _trained_size(own):
    return _vocabulary("student", own, student.source, student.architecture), teacher
  if own:
    raise InputError(
      f"config.student.tokenizer={own} is not read by a plan; plan with train:N, N its entries."
    )
  return teacher, teacher


def _vocabulary(who: str, tokenizer: str, source: str, name: str) -> Vocabulary:
  """A vocabulary of N entries for train:N, else of as many as the embedding has rows."""
  return Vocabulary(_trained_size(tokenizer) or planned_shape(who, source, name).vocab_size)


def _trained_size(tokenizer: str) -> int:
  """N if the text is train:N, else 0."""
  size = tokenizer.removeprefix(TRAIN)
  return int(size) if tokenizer.startswith(TRAIN) and size.isdigit() else 0


def planned_projection(
  config: Config, student: Vocabulary, teacher: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
  """A stand-in for the projection, with every row full, so that no real one costs more.

  Returns:
    Teacher ids, int32 [student's entries, 4], and their weights, float32 of the same shape.

  Raises:
    InputError: the method's program depends on more than the size of the projection.
  """
  if config.method_options.x_token.kind == "h_kl":
    raise InputError(
      "config.method_options.x_token.kind=h_kl cannot be planned: its program depends on which "
      "tokens two tokenizers share, and a plan reads no files; plan p_kl or uld."
    )
  rows = np.arange(student.vocab_size, dtype=np.int32)[:, None]
  ids = (rows + np.arange(_PIECES, dtype=np.int32)) % teacher.vocab_size
  return ids, np.full(ids.shape, 1 / _PIECES, np.float32)
