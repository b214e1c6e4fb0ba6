"""Prepares text, once, as a tensorflow-datasets corpus of ArrayRecord files, without TensorFlow.

A document's content alone decides its split, so that a document and its exact copies are all in
train or all in held-out, whatever else the corpus holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from egad_jax import progress
from egad_jax.data import cached_directory, documents, python_docs, shards
from egad_jax.errors import InputError
from egad_jax.files import paths

PYTHON_DOCS = "python_docs"
TRAIN, HELD_OUT = "train", "held_out"
SPLITS = (TRAIN, HELD_OUT)
# Versions of this module's preparation, and of the built-in corpus. They are part of the cache key.
_VERSIONS = (1, python_docs.VERSION)

_Reader = Callable[[documents.BadRecords], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A prepared corpus.

  Attributes:
    directory: the corpus' directory in the cache.
    fingerprint: SHA-256 of the documents, their order and their splits, in hexadecimal.
    num_documents: number of documents of each split, keyed "train" and "held_out".
    num_characters: number of characters of each split, keyed alike.
    num_bad_records: number of unusable records that were left out.
  """

  directory: epath.Path
  fingerprint: str
  num_documents: Mapping[str, int]
  num_characters: Mapping[str, int]
  num_bad_records: int

  def data_source(self, split: str) -> Sequence[Mapping[str, bytes]]:
    """Random access to the documents of a split, "train" or "held_out": {"text": UTF-8 bytes}."""
    return _builder(self.directory).as_data_source(split)


class _TextCorpus(
  tfds.core.GeneratorBasedBuilder,
  skip_registration=True,  # type: ignore[call-arg] # tfds has no types.
):
  """The tfds builder that writes documents; reading needs no builder class."""

  VERSION = tfds.core.Version("1.0.0")
  name = "text_corpus"
  # Finding the checksums of downloads beside the code needs a package (importlib_resources) that
  # tfds does not require; nothing is downloaded here.
  code_path = None

  def __init__(self, *, splits: Mapping[str, Callable[[], Iterable[str]]], **kwargs: Any) -> None:
    self._splits = splits
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Plain text documents.",
      features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
    del dl_manager
    return {split: self._generate_examples(split) for split in self._splits}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
    for index, text in enumerate(self._splits[split]()):
      yield index, {"text": text}


def prepare_corpus(
  source: str,
  directory: epath.PathLike,
  *,
  held_out_fraction: float,
  max_bad_records: int = 0,
  seed: int = 0,
) -> Corpus:
  """Prepares a corpus, unless the cache holds it already.

  Args:
    source: "python_docs", or a .txt, .md or .jsonl file, a directory or a glob pattern of them
      (see `documents.read_documents` for what a document is).
    directory: the cache directory; the corpus gets a directory of its own there, named after the
      files' names, sizes and times and the arguments here.
    held_out_fraction: expected share of the documents that is held out, between 0 and 1.
    max_bad_records: number of unusable records that may be left out; one more is an error.
    seed: seed of the split.

  Returns:
    The corpus, whose files have been checked.

  Raises:
    InputError: the source is missing, has too many bad records, is empty, or leaves a split empty;
      prepared files are damaged; or the cache cannot be written.
  """
  if not 0 < held_out_fraction < 1:
    raise InputError(
      f"held_out_fraction ({held_out_fraction}) must lie between 0 and 1, like 0.05."
    )
  files, read = _open_source(source)
  key = cached_directory.digest(
    [_VERSIONS, source, _state_of(files), held_out_fraction, max_bad_records, seed]
  )

  def split_of(text: str) -> str:
    return HELD_OUT if _position(text, seed) < held_out_fraction else TRAIN

  def build(target: epath.Path) -> dict[str, Any]:
    manifest = _scan(source, read, split_of, max_bad_records)
    with progress.phase("writing the corpus", sum(manifest["num_documents"].values())) as phase:
      _write(target, read, split_of, phase)
    return manifest

  return open_corpus(
    cached_directory.build_once(epath.Path(directory), f"corpus-{key[:16]}", build)
  )


def open_corpus(directory: epath.PathLike) -> Corpus:
  """Opens a prepared corpus and checks that every file is there and whole.

  Raises:
    InputError: a file is missing or damaged; the message names it.
  """
  directory = epath.Path(directory)
  manifest = cached_directory.read_manifest(directory)
  splits = _builder(directory).info.splits
  for split in SPLITS:
    info = splits[split]
    for path, records in zip(info.filepaths, info.shard_lengths, strict=True):
      shards.check_shard(epath.Path(path), records)
  fields = ("fingerprint", "num_documents", "num_characters", "num_bad_records")
  return Corpus(directory=directory, **{field: manifest[field] for field in fields})


def _open_source(source: str) -> tuple[list[pathlib.Path], _Reader]:
  if source == PYTHON_DOCS:
    # Kept in memory: it is small, is read twice, and takes long to parse.
    cached: list[str] = []

    def read_built_in(bad: documents.BadRecords) -> Iterable[str]:
      del bad
      if cached:
        yield from cached
        return
      for text in python_docs.read_python_docs():
        cached.append(text)
        yield text

    return python_docs.source_files(), read_built_in
  files = documents.find_files(source)
  return files, lambda bad: documents.read_documents(files, bad)


def _state_of(files: Iterable[Any]) -> list[list[Any]]:
  stats = ((path, path.stat()) for path in files)
  return [
    # epath's stat of an object store's path has other fields.
    [str(path), stat.length, stat.mtime]
    if isinstance(path, epath.Path)
    else [str(path), stat.st_size, stat.st_mtime_ns]
    for path, stat in stats
  ]


def _position(text: str, seed: int) -> float:
  """A hash of a document's words and the seed, uniform in [0, 1); copies get the same."""
  content = f"{seed}\n{' '.join(text.split())}".encode()
  return int.from_bytes(hashlib.sha256(content).digest()[:6], "big") / 2**48


def _scan(
  source: str, read: _Reader, split_of: Callable[[str], str], max_bad_records: int
) -> dict[str, Any]:
  """Reads all documents, so that bad input shows before any is written; returns the manifest."""
  bad = documents.BadRecords(max_bad_records)
  counts, characters = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
  fingerprint = hashlib.sha256()
  with progress.phase(f"reading {source}") as phase:
    for text in read(bad):
      split = split_of(text)
      counts[split] += 1
      characters[split] += len(text)
      fingerprint.update(split.encode() + hashlib.sha256(text.encode()).digest())
      phase.update(1, "documents")
  total = sum(counts.values())
  if not total:
    raise InputError(
      f"data.source {source!r}: no documents in it ({bad.count} bad records left out). Give files "
      "with text."
    )
  for split, count in counts.items():
    if not count:
      raise InputError(
        f"data.source {source!r}: its {total} documents leave the {split} split empty. Give more "
        "documents (a lone text file is cut at form feeds and at two blank lines), or change the "
        "held-out fraction."
      )
  return {
    "fingerprint": fingerprint.hexdigest(),
    "source": source,
    "num_documents": counts,
    "num_characters": characters,
    "num_bad_records": bad.count,
  }


def _write(
  target: epath.Path, read: _Reader, split_of: Callable[[str], str], phase: progress.Phase
) -> None:
  def documents_of(split: str) -> Iterator[str]:
    # `_scan` has already counted bad records and applied the limit.
    everything = read(documents.BadRecords(maximum=2**63))
    for text in everything:
      if split_of(text) == split:
        phase.update(1, "documents")
        yield text

  builder = _TextCorpus(
    splits={split: functools.partial(documents_of, split) for split in SPLITS},
    data_dir=str(paths.speakable(target)),
    file_format="array_record",
  )
  tfds.disable_progress_bar()
  # tfds prints, but standard output is for the commands' results.
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig())
  downloads = target / "downloads"
  if downloads.exists():
    downloads.rmtree()


def _builder(directory: epath.Path) -> tfds.core.DatasetBuilder:
  inside = epath.Path(_TextCorpus.name) / str(_TextCorpus.VERSION)
  try:
    return tfds.builder_from_directory(str(paths.speakable(directory) / inside))
  except (OSError, ValueError) as error:
    path = directory / inside
    raise cached_directory.damaged(
      path / "dataset_info.json", f"cannot be read ({error})"
    ) from error
