"""Prepares documents, once, as ArrayRecord files in two splits.

A document's text alone decides its split, so that a document and its exact copies are all in train
or all in held-out, whatever else the corpus holds; unless the held-out documents have a source of
their own. Memory does not grow with the number of documents.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from egad_jax.data import cached_directory, corpus_reading, near_duplicates, shards, spans
from egad_jax.data.conversations import Renderer
from egad_jax.data.corpus_reading import HELD_OUT, SPLITS, TRAIN
from egad_jax.data.readers import sources as reader_sources
from egad_jax.data.readers.formats import Fields
from egad_jax.data.readers.sources import AUTO, Source
from egad_jax.errors import InputError

__all__ = ["HELD_OUT", "SPLITS", "TRAIN", "Corpus", "open_corpus", "prepare_corpus"]

# Part of the cache key: raise it with any change to the documents or their order.
_VERSION = 2
# Format whose records are always rendered by a chat template, and the one that has its own.
_MESSAGES, _ALPACA = "messages", "alpaca"
_TOGETHER = 64


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A prepared corpus.

  Attributes:
    directory: the corpus' directory in the cache.
    fingerprint: SHA-256 of the documents, their order and their splits, in hexadecimal.
    num_documents: number of documents of each split, keyed "train" and "held_out".
    num_characters: number of characters of each split, keyed alike.
    num_bad_records: number of unusable records that were left out.
    formats: the format of the records of each source.
    near_duplicates: what `near_duplicates.count` found of the train documents in held-out.
    shards: names and numbers of records of each split's files, in order.
  """

  directory: epath.Path
  fingerprint: str
  num_documents: Mapping[str, int]
  num_characters: Mapping[str, int]
  num_bad_records: int
  formats: Mapping[str, str]
  near_duplicates: Mapping[str, Any]
  shards: Mapping[str, Sequence[shards.Shard]]

  def documents(self, split: str, *, start: int = 0) -> Iterator[spans.Document]:
    """Yields the documents of a split, "train" or "held_out", from number `start` on.

    Raises:
      InputError: a file is damaged.
    """
    for record in shards.read_shards(self.directory, self.shards[split], start=start):
      yield spans.load(record)

  def texts(self, split: str) -> Iterator[str]:
    """Yields the whole text of each document of a split."""
    return map(spans.text_of, self.documents(split))


def prepare_corpus(
  source: str | Iterable[str],
  directory: epath.PathLike,
  *,
  held_out_fraction: float,
  held_out_source: str | Iterable[str] = "",
  record_format: str = AUTO,
  fields: Mapping[str, str] | None = None,
  max_bad_records: int = 0,
  seed: int = 0,
  renderer: Callable[[], Renderer | None] = lambda: None,
) -> Corpus:
  """Prepares a corpus, unless the cache holds it already; continues what was interrupted.

  Args:
    source: names of what to read; see `readers.sources`.
    directory: the cache directory; the corpus gets a directory of its own there, named after the
      files' names, sizes and times and the arguments here.
    held_out_fraction: expected share of the documents that is held out, between 0 and 1; not used
      with `held_out_source`.
    held_out_source: where held-out documents come from; "" if from `source`.
    record_format: a name in `readers.table.FORMATS`, or "auto": found out for each source.
    fields: the keys of records by the names that formats have for them.
    max_bad_records: number of unusable records that may be left out; one more is an error.
    seed: seed of the split, and of shares below 1.
    renderer: gives the renderer of conversations; None if there is no chat template. Only called if
      the format may need it.

  Returns:
    The corpus, whose files have been checked.

  Raises:
    InputError: the source is missing, has too many bad records, is empty, or leaves a split empty;
      there is no chat template where one is needed; prepared files are damaged; or the cache
      cannot be written.
  """
  if not held_out_source and not 0 < held_out_fraction < 1:
    raise InputError(
      f"held_out_fraction ({held_out_fraction}) must lie between 0 and 1, like 0.05."
    )
  to_open: dict[str, Any] = {"record_format": record_format, "fields": Fields(fields)}
  opened = reader_sources.open_sources(source, **to_open)
  held_out = reader_sources.open_sources(held_out_source, **to_open) if held_out_source else []
  chat = _renderer(opened + held_out, renderer)
  options = corpus_reading.Options(
    fields=Fields(fields),
    renderer=chat,
    held_out_fraction=0 if held_out else held_out_fraction,
    max_bad_records=max_bad_records,
    seed=seed,
  )
  key = cached_directory.digest(
    [
      _VERSION,
      near_duplicates.VERSION,
      [[_identity(each) for each in group] for group in (opened, held_out)],
      sorted((fields or {}).items()),
      options.held_out_fraction,
      max_bad_records,
      seed,
      chat.fingerprint if chat else "",
    ]
  )
  parent, name = epath.Path(directory), f"corpus-{key[:16]}"

  def build(target: epath.Path) -> dict[str, Any]:
    with (
      cached_directory.unfinished(parent, name) as work,
      corpus_reading.Reading(options, work) as reading,
    ):
      reading.read(opened, held_out)
      _check_counts(source, reading.state)
      return _write(target, reading, opened + held_out)

  return open_corpus(cached_directory.build_once(parent, name, build))


def _renderer(opened: Sequence[Source], renderer: Callable[[], Renderer | None]) -> Renderer | None:
  formats = {each.format: each.name for each in opened}
  if set(formats) == {"text"}:
    return None
  found = renderer()
  if found is None and _MESSAGES in formats:
    raise InputError(
      f"data.source {formats[_MESSAGES]!r}: its records of the format {_MESSAGES} need a chat "
      "template, and the tokenizer has none. Use a tokenizer of an instruction-tuned model "
      "(data.tokenizer), or records of the format text, prompt_completion or alpaca."
    )
  if found is None and _ALPACA in formats:
    logging.info(
      "data.source %s: the tokenizer has no chat template; records of the format alpaca are "
      'rendered by the template of Alpaca ("Below is an instruction that describes a task").',
      formats[_ALPACA],
    )
  return found


def _identity(source: Source) -> list[Any]:
  return [source.name, source.weight, source.format, [part.state for part in source.parts]]


def _check_counts(source: object, state: corpus_reading.State) -> None:
  total = sum(state.num_documents.values())
  if not total:
    raise InputError(
      f"data.source {source!r}: no documents in it ({state.bad_records} bad records left out). "
      "Give files with text."
    )
  for split, count in state.num_documents.items():
    if not count:
      raise InputError(
        f"data.source {source!r}: its {total} documents leave the {split} split empty. Give more "
        "documents (a lone text file is cut at form feeds and at two blank lines), or change the "
        "held-out fraction."
      )


def _write(
  target: epath.Path, reading: corpus_reading.Reading, opened: Sequence[Source]
) -> dict[str, Any]:
  """Writes the documents in the order of their keys, and looks for near-duplicates."""
  found = near_duplicates.Search()
  written = {}
  for split in (HELD_OUT, TRAIN):
    records = found.watch(reading.records(split), is_train=split == TRAIN)
    written[split] = shards.write_shards(target, split, records, together=_TOGETHER)
  near = found.result()
  if near["near_duplicates"]:
    logging.warning(
      "%d of %d train documents that were compared are near-duplicates of held-out documents.",
      near["near_duplicates"],
      near["compared"],
    )
  state = reading.state
  return {
    "fingerprint": state.fingerprint,
    "formats": {source.name: source.format for source in opened},
    "num_documents": state.num_documents,
    "num_characters": state.num_characters,
    "num_bad_records": state.bad_records,
    "near_duplicates": near,
    "shards": written,
  }


def open_corpus(directory: epath.PathLike) -> Corpus:
  """Opens a prepared corpus and checks that every file is there and whole.

  Raises:
    InputError: a file is missing or damaged; the message names it.
  """
  directory = epath.Path(directory)
  manifest = cached_directory.read_manifest(directory)
  for shard in itertools.chain.from_iterable(manifest["shards"].values()):
    shards.check_shard(directory / shard["file"], shard["records"])
  fields = [field.name for field in dataclasses.fields(Corpus) if field.name != "directory"]
  return Corpus(directory=directory, **{field: manifest[field] for field in fields})
