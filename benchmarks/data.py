"""What it takes to prepare text: seconds, megabytes a second and memory, by number of documents.

  python -m benchmarks.data --documents=1000000 --words=15 --tokenizer=train:1000

Words are drawn from the built-in corpus' own text, so that tokens are those of real English.
"""

from __future__ import annotations

import json
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import app, flags

from egad_jax.data import corpus, packing, python_docs
from egad_jax.data.tokenizer import Tokenizer

_DOCUMENTS = flags.DEFINE_integer("documents", 100_000, "Number of documents.", lower_bound=100)
_WORDS = flags.DEFINE_integer("words", 150, "Mean number of words of a document.", lower_bound=2)
_TOKENIZER = flags.DEFINE_string("tokenizer", "train:1000", "A tokenizer's source, or train:N.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", 1024, "Tokens of a row.")
_WORK = flags.DEFINE_string("work", "", 'Directory for the data; "": a temporary one.')


def _words() -> list[str]:
  texts = python_docs.read_python_docs()
  return " ".join(next(texts) for _ in range(60)).split()


def _write(path: pathlib.Path, words: list[str]) -> int:
  generator = np.random.default_rng(0)
  with path.open("w") as file:
    for i in range(0, _DOCUMENTS.value, 1000):
      lengths = generator.integers(1, 2 * _WORDS.value, 1000)
      starts = generator.integers(0, len(words) - 2 * _WORDS.value, 1000)
      for k, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        text = f"{i + k} " + " ".join(words[start : start + length])
        file.write(json.dumps({"text": text}) + "\n")
  return path.stat().st_size


def _peak() -> float:
  """The most memory that was ever resident, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _timed(name: str, size: int, work: Callable[[], Any]) -> Any:
  before, start = time.process_time(), time.monotonic()
  result = work()
  spent, wall = time.process_time() - before, time.monotonic() - start
  rate, each = size / spent / 1e6, spent / _DOCUMENTS.value * 1e6
  print(
    f"{name:8} {wall:8.1f} s wall {spent:8.1f} s of processors {rate:6.2f} MB/s a core "
    f"{each:7.1f} µs a document; peak of memory {_peak():7.0f} MiB",
    flush=True,
  )
  return result


def main(_: list[str]) -> None:
  """Prepares synthetic documents and prints what it took."""
  words = _words()
  size = _TOKENIZER.value.removeprefix("train:")
  if size != _TOKENIZER.value:
    tokenizer = Tokenizer.train(words, int(size))
  else:
    tokenizer = Tokenizer.from_source(_TOKENIZER.value)
  with tempfile.TemporaryDirectory(dir=_WORK.value or None) as name:
    directory = pathlib.Path(name)
    num_bytes = _write(directory / "a.jsonl", words)
    print(
      f"{_DOCUMENTS.value} documents, {num_bytes / 1e6:.1f} MB; memory {_peak():.0f} MiB",
      flush=True,
    )
    source, cache = str(directory / "a.jsonl"), directory / "cache"
    prepared = _timed(
      "corpus", num_bytes, lambda: corpus.prepare_corpus(source, cache, held_out_fraction=0.01)
    )
    rows = _timed(
      "rows",
      num_bytes,
      lambda: packing.prepare_rows(prepared, tokenizer, seq_len=_SEQ_LEN.value, directory=cache),
    )
    print(f"{rows.train_size} rows, {100 * rows.fill:.2f} % filled", flush=True)
    _timed("encode", num_bytes, lambda: list(_encode(prepared, tokenizer)))


def _encode(prepared: corpus.Corpus, tokenizer: Tokenizer) -> Iterator[int]:
  """The tokenizer alone, for comparison."""
  group: list[str] = []
  for text in prepared.texts(corpus.TRAIN):
    group.append(text)
    if len(group) == 256:
      yield len(tokenizer.encode_batch(group))
      group = []


if __name__ == "__main__":
  app.run(main)
