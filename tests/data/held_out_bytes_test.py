"""How many bytes of text an evaluation is over, where tokens are not the text's own bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import normalizers

from egad_jax.data import corpus, packing, paired_packing, pipeline
from egad_jax.data.tokenizer import SpecialIds, Tokenizer
from tests.data.decoding_test import sentencepiece_backend
from tests.data.frame_test import Frame, set_frame
from tests.models import tiny_llama as tiny


def _lossy(bos: bool = False) -> Tokenizer:
  """Bytes of a text in lower case, without accents and outer spaces."""
  backend = tiny.tokenizer(bos=bos)
  steps = [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
  backend.normalizer = normalizers.Sequence([*steps, normalizers.Strip()])
  return Tokenizer(backend, special=SpecialIds(bos=1, eos=0, pad=3, unk=None))


def _sentencepiece(bos: bool = False) -> Tokenizer:
  backend = sentencepiece_backend()
  if bos:
    set_frame(backend, Frame((1,)))
  return Tokenizer(backend, special=SpecialIds(bos=1, eos=2, pad=None, unk=0))


def _in_bytes(bos: bool = False) -> Tokenizer:
  special = SpecialIds(bos=1, eos=0, pad=3, unk=None)
  return Tokenizer(tiny.tokenizer(bos=bos), special=special)


@pytest.mark.parametrize(
  ("make", "text", "sizes", "behind"),
  [
    # Each byte of "é" has an offset of the whole character, which the first one takes.
    (_in_bytes, "aé b", [1, 2, 0, 1, 1], 0),
    # Two spaces are dropped in front and three behind; "É" of two bytes becomes "e".
    (_lossy, "  aÉ b   ", [3, 2, 1, 1], 3),
    # The space that is put in front of the text is none of its bytes, and has the first's offset.
    (_sentencepiece, "the a", [3, 1, 1], 0),
    (_sentencepiece, "T🙂", [1, 0, 4, 0, 0, 0], 0),
    (_lossy, "   ", [], 3),
    (_in_bytes, "", [], 0),
  ],
)
def test_bytes_of_each_token_by_hand(make, text, sizes, behind):
  tokenizer = make()
  [(ids, found, rest)] = tokenizer.encode_batch_with_bytes([text])
  assert ids == tokenizer.encode(text)
  assert (found.tolist(), rest) == (sizes, behind)
  assert found.sum() + rest == len(text.encode())


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
  directory = tmp_path_factory.mktemp("corpus")
  texts = [f"  É{i} naïve the 🙂\n" + "the  Hat, " * (i % 5) + " " for i in range(60)]
  file = directory / "a.jsonl"
  file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  return corpus.prepare_corpus(str(file), directory, held_out_fraction=0.4)


@pytest.mark.parametrize("make", [_in_bytes, _lossy, _sentencepiece])
@pytest.mark.parametrize("bos", [False, True])
def test_an_evaluation_is_over_the_bytes_of_the_text(documents, tmp_path, make, bos):
  tokenizer = make(bos)
  texts = list(documents.texts("held_out"))
  # Without a beginning, the first token is no target, and its bytes are no part.
  first = 0 if bos else sum(int(s[0]) for _, s, _ in tokenizer.encode_batch_with_bytes(texts))
  whole = sum(len(text.encode()) for text in texts) - first
  for seq_len in (7, 300):
    rows = packing.prepare_rows(documents, tokenizer, seq_len=seq_len, directory=tmp_path)
    assert pipeline.held_out_bytes(rows) == sum(rows.held_out_bytes) == whole
  rows = paired_packing.prepare_paired_rows(
    documents, tokenizer, tokenizer, seq_len=300, directory=tmp_path
  )
  assert pipeline.held_out_bytes(rows) == whole


@pytest.mark.parametrize("rows_taken", [1, 3])
def test_the_bytes_are_those_of_the_rows_that_are_evaluated(documents, tmp_path, rows_taken):
  tokenizer = _in_bytes(bos=True)
  rows = packing.prepare_rows(documents, tokenizer, seq_len=20, directory=tmp_path)
  tokens = rows_taken * rows.seq_len
  [batch] = pipeline.held_out_batches(rows, batch_size=rows_taken, max_tokens=tokens)
  found = pipeline.held_out_bytes(rows, max_tokens=tokens)
  # Rows are of one-byte tokens but for the character that straddles their ends, and of ends.
  labels = batch.labels[batch.mask]
  text = tokenizer.decode(labels[labels != 0].tolist())
  assert abs(found - np.count_nonzero(labels)) <= 3 * 2 * rows_taken
  assert found <= len(text.encode()) + 3 * 2 * rows_taken
  assert found != pipeline.held_out_bytes(rows)
