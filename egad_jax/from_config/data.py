"""From the keys of config.data to a corpus, with the tokenizers that it needs or that need it."""

from __future__ import annotations

import pathlib

from etils import epath

from egad_jax.data import corpus as corpora
from egad_jax.data.conversations import Renderer
from egad_jax.data.readers.sources import split_names
from egad_jax.data.readers.table import FORMATS
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.files import paths
from egad_jax.files.storage import is_local
from egad_jax.from_config.tokenizers import make_tokenizers, needs_corpus
from egad_jax.from_config.values import Config, name_values


def field_names(config: Config) -> dict[str, str]:
  """`config.data.fields` as {name in a format: key of records}.

  Raises:
    InputError: it is not name=key,name=key, or no format has such a name.
  """
  fields = name_values("data.fields", config.data.fields)
  known = sorted({name for each in FORMATS.values() for name in each.names})
  for name in fields:
    if name not in known:
      raise InputError(
        f"config.data.fields: no format has a value named {name!r}; expected one of "
        f"{', '.join(known)}."
      )
  return fields


def make_corpus_and_tokenizers(
  config: Config, cache: epath.Path
) -> tuple[corpora.Corpus, tuple[Tokenizer, Tokenizer]]:
  """Prepares the corpus, and reads or trains the tokenizers of student and teacher.

  Args:
    config: checked by `validate`.
    cache: the directory for prepared data.

  Raises:
    InputError: a source is missing or unusable; see `corpus.prepare_corpus` and `make_tokenizers`.
  """
  data = config.data

  def prepare(tokenizers: tuple[Tokenizer, Tokenizer] | None) -> corpora.Corpus:
    def renderer() -> Renderer | None:
      # A tokenizer that is still to be trained has no template.
      return tokenizers[0].conversation_renderer() if tokenizers else None

    return corpora.prepare_corpus(
      data.source,
      cache,
      held_out_fraction=data.held_out_fraction,
      held_out_source=data.held_out_source,
      record_format=data.format,
      fields=field_names(config),
      max_bad_records=data.max_bad_records,
      renderer=renderer,
    )

  if needs_corpus(config):
    corpus = prepare(None)
    return corpus, make_tokenizers(config, corpus)
  tokenizers = make_tokenizers(config, None)
  return prepare(tokenizers), tokenizers


def data_paths(config: Config) -> dict[str, pathlib.Path]:
  """The existing local files and directories that config.data names, as {"config.KEY": path}.

  Raises:
    InputError: a name cannot be understood.
  """
  found = {}
  for key in ("source", "held_out_source"):
    sources = config.data[key]
    names = [name for name, _ in split_names(sources)] if sources else []
    for name in names:
      for scheme in ("hf:", "tfds:"):
        name = name.removeprefix(scheme).split("#")[0]
      if not is_local(name):
        continue
      path = pathlib.Path(paths.expand(name, f"config.data.{key}"))
      if path.exists():
        found[f"config.data.{key}" + f" ({name})" * (len(names) > 1)] = path
  return found
