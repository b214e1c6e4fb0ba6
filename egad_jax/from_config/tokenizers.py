"""Reads or trains the tokenizers of student and teacher that a config names."""

from __future__ import annotations

import logging

from egad_jax import progress
from egad_jax.data import corpus as corpora
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.from_config.values import RANDOM, TRAIN, Config
from egad_jax.methods import TWO_TOKENIZERS
from egad_jax.models.foreign_keys import listed

_LOG = logging.getLogger(__name__)


def needs_corpus(config: Config) -> bool:
  """Whether a tokenizer is to be trained on the corpus."""
  return any(name.startswith(TRAIN) for name in (config.data.tokenizer, config.student.tokenizer))


def make_tokenizers(config: Config, corpus: corpora.Corpus | None) -> tuple[Tokenizer, Tokenizer]:
  """The tokenizers of student and teacher; the same object if they are equal.

  Two tokenizers may have the same vocabulary and still give a text different ids, because they
  split it differently or begin it with another token. The teacher's is then used for both, with a
  warning; but a method for two tokenizers uses both. The same holds if the student's vocabulary is
  the teacher's without some added tokens, such as those of a later release of the family.

  Args:
    config: checked by `validate`.
    corpus: the text that train:N tokenizers are trained on; None if `needs_corpus` is false.

  Raises:
    InputError: a source is missing or unreadable, or the two differ where the method or
      config.student.init does not allow it.
  """
  source = config.data.tokenizer or config.teacher.source
  if source.startswith(RANDOM):
    raise InputError(
      f"config.teacher.source={source} brings no tokenizer; set config.data.tokenizer to a "
      "directory, a .gguf file or train:N."
    )
  teacher = _read("data.tokenizer", source, corpus)
  own = config.student.tokenizer or (
    config.student.source if config.student.init == "source" else ""
  )
  if not own:
    return teacher, teacher
  key = "student.tokenizer" if config.student.tokenizer else "student.source"
  student = _read(key, own, corpus)
  if student.fingerprint == teacher.fingerprint:
    return teacher, teacher
  same_vocabulary = student.vocabulary_fingerprint == teacher.vocabulary_fingerprint
  if same_vocabulary and config.method not in TWO_TOKENIZERS:
    parts = [name for name, digest in student.parts.items() if digest != teacher.parts[name]]
    _LOG.warning(
      "The tokenizer of config.%s (%s) has the teacher's vocabulary, but differs in: %s. The "
      "teacher's makes the rows, and is exported with the student.",
      key,
      own,
      ", ".join(parts),
    )
    return teacher, teacher
  added = teacher.added_to(student)
  if added is not None and config.method not in TWO_TOKENIZERS:
    _LOG.warning(
      "The tokenizer of config.%s (%s) lacks %d added tokens of the teacher's (%s). The teacher's "
      "makes the rows, and is exported with the student.",
      key,
      own,
      len(added),
      listed(added),
    )
    return teacher, teacher
  different = (
    f"the tokenizer of config.{key} ({own}, {student.vocab_size} entries) is not the teacher's "
    f"({teacher.vocab_size} entries)"
  )
  if config.method not in TWO_TOKENIZERS:
    raise InputError(
      f"{different}, but config.method={config.method} needs the same ids for the same text; use "
      f"config.method={' or '.join(TWO_TOKENIZERS)}, or a student of the teacher's family."
    )
  if config.student.init == "layers" and not same_vocabulary:
    raise InputError(
      f"{different}, so that config.student.init=layers would give the student an embedding of "
      "other tokens; use config.student.init=random or source."
    )
  return student, teacher


def _read(key: str, source: str, corpus: corpora.Corpus | None) -> Tokenizer:
  size = source.removeprefix(TRAIN)
  if source.startswith(TRAIN) and not size.isdigit():
    raise InputError(f"config.{key} must be train:N with a number N; got {source!r}.")
  try:
    if not source.startswith(TRAIN):
      with progress.phase(f"reading the tokenizer of {source}"):
        return Tokenizer.from_source(source)
    assert corpus is not None
    texts = corpus.texts(corpora.TRAIN)
    with progress.phase(f"training a tokenizer of {size} entries"):
      return Tokenizer.train(texts, int(size))
  except InputError as error:
    raise InputError(f"config.{key}: {error}") from None
