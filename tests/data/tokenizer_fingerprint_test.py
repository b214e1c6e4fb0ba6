"""Which changes of a tokenizer make other rows, and which leave the ids their meaning."""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers

from egad_jax.data import corpus, packing
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from tests.models import tiny_llama as tiny

_TEXTS = [f"In {1900 + i} there were {i * 12345} of them, 100000 and 2000." for i in range(60)]


@pytest.fixture(scope="module")
def trained() -> dict:
  """The contents of a tokenizer.json of 300 ids, some of them merged digits."""
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  backend.train_from_iterator(_TEXTS, trainer)
  return json.loads(backend.to_str())


def _load(directory, content) -> Tokenizer:
  directory.mkdir(exist_ok=True)
  (directory / "tokenizer.json").write_text(json.dumps(content))
  (directory / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
  return Tokenizer.from_directory(directory)


def _step(step) -> dict:
  return json.loads(step.__getstate__())


_NUMBER_ALONE = _step(
  pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
)
_MARK = {"id": 300, "content": "1900 to 2000", "special": False, "normalized": True}
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
# What of the file is changed, and whether the ids mean the same after it.
_CHANGES = {
  "digits alone": ({"pre_tokenizer": _NUMBER_ALONE}, True),
  "space in front": ({"pre_tokenizer": _step(pre_tokenizers.ByteLevel(True))}, True),
  "lower case": ({"normalizer": _step(normalizers.Lowercase())}, True),
  "composed": ({"normalizer": _step(normalizers.NFC())}, True),
  "decoder": ({"decoder": _step(decoders.Fuse())}, False),
  "ignore_merges": ({"model": {"ignore_merges": True}}, True),
  "byte_fallback": ({"model": {"byte_fallback": True}}, True),
  "unk_token": ({"model": {"unk_token": "a"}}, True),
  "fuse_unk": ({"model": {"fuse_unk": True}}, True),
  "fewer merges": ({"model": {"merges": []}}, True),
  "an added token": ({"added_tokens": [_FLAGS | _MARK]}, False),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_what_changes_ids_changes_the_fingerprint(trained, tmp_path, change):
  changed, same_meaning = _CHANGES[change]
  content = dict(trained)
  for key, value in changed.items():
    old = content[key]
    content[key] = old | value if key == "model" else old + value if key[0] == "a" else value
  one, other = _load(tmp_path / "a", trained), _load(tmp_path / "b", content)
  assert one.fingerprint != other.fingerprint
  assert (one.vocabulary_fingerprint == other.vocabulary_fingerprint) is same_meaning


def test_flags_of_an_added_token_change_the_fingerprint(trained, tmp_path):
  found = set()
  for flag in (None, "single_word", "lstrip", "rstrip", "normalized", "special"):
    token = _FLAGS | _MARK | ({} if flag is None else {flag: not (_FLAGS | _MARK)[flag]})
    content = trained | {"added_tokens": [*trained["added_tokens"], token]}
    found.add(_load(tmp_path / "a", content).fingerprint)
  assert len(found) == 6


def test_what_ends_a_document_changes_the_fingerprint(tmp_path):
  ends = [
    Tokenizer.from_directory(tiny.make(tmp_path / str(i), tokenizer_config={"eos_token": end}))
    for i, end in enumerate((tiny.SPECIAL[0], tiny.SPECIAL[2]))
  ]
  assert ends[0].fingerprint != ends[1].fingerprint
  assert ends[0].vocabulary_fingerprint == ends[1].vocabulary_fingerprint


def test_another_spelling_of_the_same_is_the_same(trained, tmp_path):
  model = trained["model"]
  spelled = {
    key: trained[key] for key in sorted(trained, reverse=True) if trained[key] is not None
  } | {
    "model": {
      "merges": [" ".join(pair) for pair in model["merges"]],
      "vocab": dict(sorted(model["vocab"].items())),
      "continuing_subword_prefix": "",
      "end_of_word_suffix": "",
    },
    "pre_tokenizer": {
      "type": "Sequence",
      "pretokenizers": [
        {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False, "trim_offsets": False}
      ],
    },
    "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
  }
  one, other = _load(tmp_path / "a", trained), _load(tmp_path / "b", spelled)
  assert one.parts == other.parts


def test_rows_of_one_vocabulary_split_in_two_ways_are_two_sets_of_rows(trained, tmp_path):
  file = tmp_path / "a.jsonl"
  file.write_text("".join(json.dumps({"text": text}) + "\n" for text in _TEXTS))
  prepared = corpus.prepare_corpus(str(file), tmp_path / "cache", held_out_fraction=0.2)
  documents = list(prepared.texts("train"))
  targets = set()
  for content in (trained, trained | {"pre_tokenizer": _NUMBER_ALONE}):
    tokenizer = _load(tmp_path / "tokenizer", content)
    rows = packing.prepare_rows(prepared, tokenizer, seq_len=64, directory=tmp_path / "cache")
    assert rows.num_targets["train"] == sum(len(tokenizer.encode(text)) for text in documents)
    targets.add(rows.num_targets["train"])
  assert len(targets) == 2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"extra": 1}, "the key 'extra' is not known"),
    ({"pre_tokenizer": {"type": "Later"}}, "pre_tokenizer: the kind 'Later' cannot be read"),
    (
      {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFX"}]}},
      "normalizer: the kind 'NFX' cannot be read",
    ),
    ({"normalizer": {"type": "Lowercase", "locale": "tr"}}, "normalizer: the key 'locale'"),
    (
      {
        "pre_tokenizer": {
          "type": "Sequence",
          "pretokenizers": [{"type": "Digits", "individual_digits": True, "script": "Latin"}],
        }
      },
      r"pre_tokenizer\.pretokenizers\[0\]: the key 'script'",
    ),
    ({"decoder": {"type": "Fuse", "with": "-"}}, "decoder: the key 'with'"),
    ({"post_processor": {"type": "Later"}}, "post_processor: the kind 'Later'"),
  ],
)
def test_what_the_library_does_not_read_is_refused_by_name(trained, tmp_path, change, message):
  with pytest.raises(InputError, match=message) as caught:
    _load(tmp_path, trained | change)
  assert str(tmp_path / "tokenizer.json") in str(caught.value)


def test_unknown_options_of_the_model_and_of_added_tokens_are_refused(trained, tmp_path):
  with pytest.raises(InputError, match="model: the key 'greedy' is not known"):
    _load(tmp_path, trained | {"model": trained["model"] | {"greedy": True}})
  token = _FLAGS | _MARK | {"weight": 1}
  with pytest.raises(InputError, match="the key 'weight' of an added token"):
    _load(tmp_path, trained | {"added_tokens": [*trained["added_tokens"], token]})
  token = _FLAGS | _MARK | {"id": 7}
  with pytest.raises(InputError, match=r"'1900 to 2000' says id 7, but the vocabulary gives it"):
    _load(tmp_path, trained | {"added_tokens": [*trained["added_tokens"], token]})
