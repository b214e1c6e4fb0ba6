"""Reads the documents of all sources into sorted files, in a way that can be interrupted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from egad_jax import progress
from egad_jax.data import spans
from egad_jax.data.conversations import Renderer
from egad_jax.data.readers.formats import Conversation, Fields
from egad_jax.data.readers.records import BadRecord, BadRecords, Part
from egad_jax.data.readers.sources import Source
from egad_jax.data.readers.table import FORMATS
from egad_jax.data.sorted_files import SortedFiles
from egad_jax.files import owned

TRAIN, HELD_OUT = "train", "held_out"
SPLITS = (TRAIN, HELD_OUT)
# Records that are parsed before their conversations are rendered together.
_TOGETHER = 256
# Records after which what was done is noted, so that an interrupted preparation goes on from there.
_NOTED_EVERY = 2**16
_STATE = "state.json"
_NO_TEMPLATE = "a conversation, and the tokenizer has no chat template"


class Options(NamedTuple):
  """How documents are made of records and given to splits; see `corpus.prepare_corpus`."""

  fields: Fields
  renderer: Renderer | None
  held_out_fraction: float
  max_bad_records: int
  seed: int


@dataclasses.dataclass
class State:
  """What has been read.

  Attributes:
    part: number of the file or data set that is being read, over all sources.
    records: number of its records that are done.
    bad_records: number of unusable records.
    fingerprint: SHA-256 of the documents and their splits up to the last note.
    num_documents: number of documents by split.
    num_characters: number of their characters by split.
    sizes: bytes of the sorted files by split.
  """

  part: int = 0
  records: int = 0
  bad_records: int = 0
  fingerprint: str = ""
  num_documents: dict[str, int] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(SPLITS, 0)
  )
  num_characters: dict[str, int] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(SPLITS, 0)
  )
  sizes: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


class Reading:
  """The documents that have been read, in sorted files by split; a context that closes them.

  Attributes:
    state: the numbers of what has been read.
  """

  def __init__(self, options: Options, work: pathlib.Path) -> None:
    """Finds what an interrupted process had read.

    Args:
      options: how to read.
      work: the directory of unfinished work.
    """
    self._options = options
    self._work = work
    self.state = self._noted()
    self._files = {
      split: SortedFiles(work / split, self.state.sizes.get(split)) for split in SPLITS
    }
    self._bad = BadRecords(options.max_bad_records, count=self.state.bad_records)
    self._block = hashlib.sha256()
    self._since_note = 0

  def __enter__(self) -> Reading:
    return self

  def __exit__(self, *_: object) -> None:
    for files in self._files.values():
      files.close()

  def _noted(self) -> State:
    """What an interrupted process had noted, if its files are still that long."""
    try:
      state = State(**json.loads((self._work / _STATE).read_text()))
      for split, sizes in state.sizes.items():
        for name, size in sizes.items():
          if (self._work / split / name).stat().st_size < size:
            return State()
      return state
    except (OSError, TypeError, ValueError):
      return State()

  def read(self, sources: Sequence[Source], held_out: Sequence[Source]) -> None:
    """Reads everything; begins where an earlier process was interrupted.

    Args:
      sources: the sources of train documents, and of held-out documents if they have none.
      held_out: the sources of held-out documents; () if `sources` has them.

    Raises:
      InputError: there are too many bad records, or a file cannot be read.
    """
    parts = [(source, part, "") for source in sources for part in source.parts]
    if held_out:
      parts = [(source, part, TRAIN) for source, part, _ in parts]
    parts += [(source, part, HELD_OUT) for source in held_out for part in source.parts]
    for number in range(self.state.part, len(parts)):
      source, part, split = parts[number]
      with progress.phase(f"reading {part.name}") as phase:
        self._read_part(source, part, split, phase)
      self.state.part, self.state.records = number + 1, 0
    self.note()

  def note(self) -> None:
    """Notes what was done so far on the disk."""
    state = self.state
    state.sizes = {split: files.sizes() for split, files in self._files.items()}
    state.bad_records = self._bad.count
    digest = hashlib.sha256(state.fingerprint.encode() + self._block.digest())
    state.fingerprint, self._block, self._since_note = digest.hexdigest(), hashlib.sha256(), 0
    owned.write_text(epath.Path(self._work / _STATE), json.dumps(dataclasses.asdict(state)))

  def _read_part(self, source: Source, part: Part, split: str, phase: progress.Phase) -> None:
    """Reads a file or data set from the record on at which it was left.

    Args:
      source: the source that names it.
      part: the file or data set.
      split: the split of all its documents; "" if their text decides.
      phase: told the number of documents.
    """
    parse, done = FORMATS[source.format].parse, self.state.records
    batch: list[tuple[int, spans.Document | Conversation]] = []
    self._bad.is_quiet = done > 0
    for number, (line, record) in enumerate(part.read(self._bad), start=1):
      if number <= done:
        self._bad.is_quiet = number < done
        continue
      try:
        batch.append((line, parse(record, self._options.fields)))
      except BadRecord as error:
        self._bad.add(part.name, line, str(error))
      self._since_note += 1
      is_due = self._since_note >= _NOTED_EVERY
      if len(batch) >= _TOGETHER or is_due:
        phase.update(self._add(source, part, split, batch), "documents")
        batch = []
      if is_due:
        self.state.records = number
        self.note()
    self._bad.is_quiet = False
    phase.update(self._add(source, part, split, batch), "documents")

  def _add(self, source: Source, part: Part, split: str, batch: Sequence[Any]) -> int:
    """Renders and stores documents; returns their number."""
    conversations = [parsed for _, parsed in batch if isinstance(parsed, Conversation)]
    rendered: Iterator[spans.Document | str]
    if conversations and self._options.renderer is not None:
      rendered = iter(self._options.renderer.render(conversations))
    else:
      rendered = iter([one.without_template or _NO_TEMPLATE for one in conversations])
    count = 0
    for line, parsed in batch:
      document = next(rendered) if isinstance(parsed, Conversation) else parsed
      if isinstance(document, str):
        self._bad.add(part.name, line, document)
        continue
      text = spans.text_of(document)
      if not text.strip():
        continue
      place = position(text, self._options.seed)
      chosen = split or (HELD_OUT if place < self._options.held_out_fraction else TRAIN)
      self._store(chosen, document, text, self._copies(source.weight, chosen, text))
      count += 1
    return count

  def _copies(self, weight: float, split: str, text: str) -> int:
    if weight == 1 or split == HELD_OUT:
      return 1
    # Another hash than the split's, which has already chosen among documents.
    return int(weight) + (position(text, f"{self._options.seed} weight") < weight % 1)

  def _store(self, split: str, document: spans.Document, text: str, copies: int) -> None:
    record = spans.dump(document)
    for _ in range(copies):
      # The order of documents, which is the one that tensorflow-datasets gives them.
      key = hashlib.md5(f"{split}{self.state.num_documents[split]}".encode()).digest()
      self._files[split].add(key, record)
      self.state.num_documents[split] += 1
      self.state.num_characters[split] += len(text)
      self._block.update(split.encode() + hashlib.sha256(record).digest())

  def records(self, split: str) -> Iterator[bytes]:
    """Yields the stored documents of a split in the order of their keys."""
    return self._files[split].read()


def position(text: str, seed: object) -> float:
  """A hash of a document's words and the seed, uniform in [0, 1); copies get the same."""
  content = f"{seed}\n{' '.join(text.split())}".encode()
  return int.from_bytes(hashlib.sha256(content).digest()[:6], "big") / 2**48
