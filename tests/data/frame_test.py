"""What tokenizers put around a text, in every spelling of it, in rows and in prompts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from egad_jax.data import corpus, packing, paired_packing, pipeline
from egad_jax.data.frame import Frame, read_frame, set_frame
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from tests.models import tiny_llama as tiny

END, BOS, TURN = tiny.SPECIAL[:3]
_IDS = [(token, i) for i, token in enumerate(tiny.SPECIAL)]


def _template(single, ids=_IDS):
  return processors.TemplateProcessing(single=single, special_tokens=ids)


def _with(processor):
  backend = tiny.tokenizer()
  backend.post_processor = processor
  return backend


# The second column is what transformers 5.23 puts around "Hi" with such a tokenizer.json, printed
# by AutoTokenizer.from_pretrained(DIRECTORY)("Hi").input_ids.
_PROCESSORS = [
  (processors.ByteLevel(trim_offsets=False), ((), ())),
  (_template(f"{BOS} $A"), ((1,), ())),
  (_template(f"{BOS} {TURN} $A"), ((1, 2), ())),
  (_template(f"$A {END}"), ((), (0,))),
  (processors.RobertaProcessing((END, 0), (BOS, 1)), ((1,), (0,))),
  (processors.BertProcessing((TURN, 2), (BOS, 1)), ((1,), (2,))),
  (processors.Sequence([processors.ByteLevel(), _template(f"{BOS} $A")]), ((1,), ())),
]


@pytest.mark.parametrize(("processor", "frame"), _PROCESSORS)
def test_every_kind_of_post_processor_is_read(processor, frame):
  assert read_frame(_with(processor)) == frame


@pytest.mark.parametrize("frame", [Frame(), Frame((1,)), Frame((1, 2), (0,)), Frame((), (2, 0))])
def test_a_frame_is_put_around_texts_by_the_library_itself(frame):
  backend = _with(processors.ByteLevel())
  set_frame(backend, frame)
  assert backend.encode("Hi").ids == [*frame.prefix, 43, 76, *frame.suffix]
  assert read_frame(backend) == frame


@pytest.mark.parametrize(
  ("processor", "message"),
  [
    (_template("$A $A"), "only tokens in front of the text and behind it"),
    (_template(BOS), "only tokens in front of the text and behind it"),
    (_template(f"{BOS} $A", [(BOS, 7)]), "as id 7, but the vocabulary has it as 1"),
  ],
)
def test_a_post_processor_that_does_more_is_refused(processor, message):
  with pytest.raises(InputError, match=message):
    read_frame(_with(processor))


@pytest.mark.parametrize(
  ("flags", "bos", "prefix", "suffix", "said"),
  [
    ({}, True, (1,), (), ""),
    ({"add_bos_token": True}, False, (1,), (), ""),
    ({"add_bos_token": True}, True, (1,), (), ""),
    ({"add_bos_token": False}, False, (), (), ""),
    # As transformers 5.23 does.
    ({"add_bos_token": False}, True, (1,), (), "the post_processor decides"),
    ({"add_bos_token": True, "add_eos_token": True}, False, (1,), (0,), ""),
    ({"add_eos_token": True}, True, (1,), (0,), ""),
  ],
)
def test_flags_of_tokenizer_config(tmp_path, caplog, flags, bos, prefix, suffix, said):
  directory = tiny.make(tmp_path / "model", bos=bos, tokenizer_config=flags)
  tokenizer = Tokenizer.from_directory(directory)
  # An end behind the text is not doubled.
  assert (tokenizer.prefix_ids, tokenizer.end_ids) == (prefix, (0,))
  assert tokenizer.encode_prompt("Hi") == [*prefix, 43, 76]
  assert said in caplog.text
  tokenizer.save(tmp_path / "export")
  again = Tokenizer.from_directory(tmp_path / "export")
  assert again.fingerprint == tokenizer.fingerprint
  library = tokenizers.Tokenizer.from_file(str(tmp_path / "export" / "tokenizer.json"))
  assert library.encode("Hi").ids == [*prefix, 43, 76, *suffix]


def test_a_flag_without_its_token_is_refused(tmp_path):
  flags = {"add_bos_token": True, "bos_token": None}
  directory = tiny.make(tmp_path, tokenizer_config=flags)
  with pytest.raises(InputError, match="add_bos_token is true, but no bos_token"):
    Tokenizer.from_directory(directory)


@pytest.mark.parametrize(
  ("metadata", "prefix"),
  [
    ({}, (1,)),
    ({"tokenizer.ggml.add_bos_token": False}, ()),
    # Without the key llama.cpp goes by the kind of splitting.
    ({"tokenizer.ggml.add_bos_token": None}, (1,)),
    ({"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.pre": "gpt-2"}, ()),
    ({"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.pre": "tekken"}, (1,)),
    ({"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.bos_token_id": None}, ()),
  ],
)
def test_flags_of_gguf(tmp_path, metadata, prefix):
  tokenizer = Tokenizer.from_gguf(tiny.make_gguf(tmp_path / "a.gguf", metadata=metadata))
  assert tokenizer.prefix_ids == prefix
  tokenizer.save(tmp_path)
  assert Tokenizer.from_directory(tmp_path).prefix_ids == prefix


def test_a_gguf_file_with_an_end_behind_texts_does_not_end_documents_twice(tmp_path):
  metadata = {"tokenizer.ggml.add_eos_token": True}
  tokenizer = Tokenizer.from_gguf(tiny.make_gguf(tmp_path / "a.gguf", metadata=metadata))
  assert tokenizer.end_ids == (0,)
  metadata = {"tokenizer.ggml.bos_token_id": None}
  path = tiny.make_gguf(tmp_path / "b.gguf", metadata=metadata)
  with pytest.raises(InputError, match=r"add_bos_token is true, but there is no .*bos_token_id"):
    Tokenizer.from_gguf(path)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
  """A corpus, and how often each text is in its train split."""
  directory = tmp_path_factory.mktemp("corpus")
  texts = [f"{i} " + "entropy guides " * (i % 4) for i in range(40)]
  lines = (json.dumps({"text": text}) + "\n" for text in texts)
  (directory / "a.jsonl").write_text("".join(lines))
  return corpus.prepare_corpus(str(directory / "a.jsonl"), directory, held_out_fraction=0.2)


def _tokenizer(directory, **options) -> Tokenizer:
  return Tokenizer.from_directory(tiny.make(directory, **options))


def _segments(batch):
  for segment in range(1, batch.segment_ids.max() + 1):
    yield np.flatnonzero(batch.segment_ids == segment)


@pytest.mark.parametrize("seq_len", [5, 16, 200])
@pytest.mark.parametrize("split", corpus.SPLITS)
def test_every_document_begins_with_bos_once_and_its_first_token_is_a_target(
  documents, tmp_path, seq_len, split
):
  tokenizer = _tokenizer(tmp_path / "model", bos=True)
  rows = packing.prepare_rows(documents, tokenizer, seq_len=seq_len, directory=tmp_path)
  source = pipeline.RowSource(rows, split)
  begun, targets = [], 0
  for row in (source[i] for i in range(len(source))):
    assert not (row.labels[row.mask] == 1).any()
    targets += int(row.mask.sum())
    for places in _segments(row):
      if row.tokens[places[0]] == 1:
        assert row.mask[places[0]]
        begun.append(int(row.labels[places[0]]))
      assert not (row.tokens[places[1:]] == 1).any()
  texts = list(documents.texts(split))
  assert sorted(begun) == sorted(tokenizer.encode(text)[0] for text in texts)
  # Every byte is a target, and the end of each document.
  assert targets == sum(len(text.encode()) + 1 for text in texts)


def test_a_longer_beginning_is_context_alone(documents, tmp_path):
  directory = tiny.make(tmp_path / "model")
  backend = _with(_template(f"{BOS} {TURN} $A"))
  backend.save(str(directory / "tokenizer.json"))
  tokenizer = Tokenizer.from_directory(directory)
  rows = packing.prepare_rows(documents, tokenizer, seq_len=1, directory=tmp_path)
  assert rows.num_rows == rows.num_targets
  source = pipeline.RowSource(rows, "train")
  labels = [int(source[i].labels[0]) for i in range(len(source))]
  assert not {1, 2} & set(labels)


@pytest.mark.parametrize("both", [False, True])
def test_rows_of_two_tokenizers_begin_each_in_its_own_way(documents, tmp_path, both):
  plain = _tokenizer(tmp_path / "plain", bos=both)
  with_bos = _tokenizer(tmp_path / "bos", bos=True)
  rows = paired_packing.prepare_paired_rows(
    documents, plain, with_bos, seq_len=200, directory=tmp_path
  )
  source = pipeline.RowSource(rows, "train")
  students, teachers = 0, 0
  for row in (source[i] for i in range(len(source))):
    for side in (row.student, row.teacher):
      assert not (side.labels[side.mask] == 1).any()
    students += int((row.student.tokens == 1).sum())
    teachers += int((row.teacher.tokens == 1).sum())
  texts = list(documents.texts("train"))
  assert (students, teachers) == (len(texts) * both, len(texts))
  # Without a token in front on both sides the first byte of a document cannot be predicted.
  expected = sum(len(text.encode()) + both for text in texts)
  assert rows.num_targets["train"] == expected


def test_rows_with_and_without_bos_are_not_the_same_rows(documents, tmp_path):
  found = [
    packing.prepare_rows(
      documents, _tokenizer(tmp_path / str(bos), bos=bos), seq_len=16, directory=tmp_path
    ).fingerprint
    for bos in (False, True)
  ]
  assert found[0] != found[1]
