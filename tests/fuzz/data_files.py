"""Damaged files of text and chats, and what preparing a corpus does with them."""

from __future__ import annotations

import contextlib
import json
import pathlib
import random
from typing import Any

from egad_jax.data import corpus, spans
from egad_jax.data.conversations import Renderer
from egad_jax.data.readers import sources
from egad_jax.data.readers.formats import Conversation, Fields
from egad_jax.data.readers.records import BadRecord, BadRecords
from egad_jax.data.readers.table import FORMATS
from tests.fuzz.byte_mutations import mutate_bytes
from tests.fuzz.json_mutations import mutate_json
from tests.fuzz.seeds import TEMPLATES, Seeds

_RENDERER = Renderer(TEMPLATES[0], {}, ("<|im_end|>",))


def write_texts(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> tuple[Any, ...]:
  """One or two damaged files of text; returns the most bad records, and whether to prepare all."""
  source = directory / "texts"
  source.mkdir()
  for i in range(rng.choice((1, 1, 2))):
    name, data = rng.choice(seeds.texts)
    (source / f"{i}{name}").write_bytes(_damaged(name, data, rng, seeds.texts))
  if rng.random() < 0.05:
    (source / "link.txt").symlink_to(rng.choice(("nowhere", ".", "link.txt", "/dev/null")))
  return rng.choice((0, 3, 10**9)), rng.random() < 0.05


def write_chats(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> tuple[Any, ...]:
  """A damaged file of chats; returns what `write_texts` does."""
  (directory / "texts").mkdir()
  name, data = rng.choice(seeds.chats)
  (directory / "texts" / name).write_bytes(_damaged(name, data, rng, seeds.chats))
  return rng.choice((0, 3, 10**9)), rng.random() < 0.05


def write_packed(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> tuple[Any, ...]:
  """A damaged Parquet or compressed file; returns what `write_texts` does."""
  (directory / "texts").mkdir()
  name, data = rng.choice(seeds.packed)
  data = mutate_bytes(data, rng, [content for _, content in seeds.packed])
  (directory / "texts" / name).write_bytes(data)
  return rng.choice((0, 3, 10**9)), rng.random() < 0.05


def _damaged(name: str, data: bytes, rng: random.Random, others: list[tuple[str, bytes]]) -> bytes:
  if name.endswith(".json") and rng.random() < 0.6:
    values = json.loads(data)
    at = rng.randrange(len(values))
    parts = [json.dumps(value).encode() for value in values]
    with contextlib.suppress(RecursionError, ValueError):
      parts[at] = mutate_json(values[at], rng)
    return b"[" + b",".join(parts) + b"]"
  lines = data.split(b"\n")
  if name.endswith(".jsonl") and rng.random() < 0.6:
    at = rng.randrange(len(lines))
    # A value that was put into itself is no JSON.
    with contextlib.suppress(RecursionError, ValueError):
      lines[at] = mutate_json(json.loads(lines[at]), rng)
    return b"\n".join(lines)
  return mutate_bytes(data, rng, [content for _, content in others])


def read_texts(directory: pathlib.Path, options: tuple[int, bool]) -> None:
  """Reads all records, and sometimes prepares the corpus."""
  _read(str(directory / "texts"), directory / "cache", *options)


def read_chats(directory: pathlib.Path, options: tuple[int, bool]) -> None:
  """Reads and renders all records, and sometimes prepares the corpus."""
  _read(str(directory / "texts"), directory / "cache", *options)


def _read(source: str, cache: pathlib.Path, maximum: int, is_prepared: bool) -> None:
  if is_prepared:
    corpus.prepare_corpus(
      source,
      cache,
      held_out_fraction=0.3,
      max_bad_records=maximum,
      renderer=lambda: _RENDERER,
    )
  bad = BadRecords(maximum)
  for opened in sources.open_sources(source):
    for part in opened.parts:
      for line, record in part.read(bad):
        try:
          parsed = FORMATS[opened.format].parse(record, Fields())
        except BadRecord as error:
          bad.add(part.name, line, str(error))
          continue
        if isinstance(parsed, Conversation):
          [parsed] = _RENDERER.render([parsed])
        if isinstance(parsed, str):
          bad.add(part.name, line, parsed)
          continue
        assert spans.load(spans.dump(parsed)) == parsed
        assert spans.has_target(parsed) or not spans.text_of(parsed)
