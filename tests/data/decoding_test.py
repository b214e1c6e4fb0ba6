"""Text of ids in their context: leading spaces, characters spread over tokens."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, normalizers

from egad_jax.data import batches
from egad_jax.data.tokenizer import SpecialIds, Tokenizer
from egad_jax.training import results
from tests.models import tiny_llama as tiny

_SPECIAL = ["<unk>", "<s>", "</s>"]
_TOKENS = [*_SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), *"▁abcdefghijklmnopqrstuvwxyzHT.,"]
_TOKENS += ["▁t", "he", "▁the"]


def sentencepiece_backend() -> tokenizers.Tokenizer:
  """A tokenizer in the manner of Llama 2: a space in front of a text, bytes for the unknown."""
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(_TOKENS)},
      merges=[("▁", "t"), ("h", "e"), ("▁t", "he")],
      unk_token="<unk>",
      byte_fallback=True,
      fuse_unk=True,
    )
  )
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  backend.add_special_tokens(_SPECIAL)
  return backend


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
  special = SpecialIds(bos=1, eos=2, pad=None, unk=0)
  return Tokenizer(sentencepiece_backend(), special=special)


@pytest.fixture(scope="module")
def in_bytes() -> Tokenizer:
  special = SpecialIds(bos=1, eos=0, pad=3, unk=None)
  return Tokenizer(tiny.tokenizer(), special=special)


_TEXTS = ["Hello the the", " the  the", "", "naïve 🙂 café", "🙂🙂", "a", "\n the", "\ufffd x"]


@pytest.mark.parametrize("kind", ["sentencepiece", "in_bytes"])
@pytest.mark.parametrize("text", _TEXTS)
def test_texts_of_tokens_concatenate_to_the_text(request, kind, text):
  tokenizer = request.getfixturevalue(kind)
  ids = tokenizer.encode(text)
  texts = tokenizer.token_texts(ids)
  assert len(texts) == len(ids)
  assert "".join(texts) == tokenizer.decode(ids) == text
  # None has half a character.
  assert "\ufffd" not in "".join(texts).replace("\ufffd x", "")


@pytest.mark.parametrize("kind", ["sentencepiece", "in_bytes"])
@pytest.mark.parametrize("text", _TEXTS)
def test_prompt_and_continuation_concatenate_wherever_the_text_is_cut(request, kind, text):
  tokenizer = request.getfixturevalue(kind)
  ids = tokenizer.encode(text)
  for at in range(len(ids) + 1):
    before, after = tokenizer.decode(ids[:at]), tokenizer.decode_continuation(ids[:at], ids[at:])
    # A prompt that ends inside a character gives it up to the continuation.
    assert before.rstrip("\ufffd") + after in (text, text.replace("\ufffd", ""))


def test_a_space_is_with_the_token_that_has_it(sentencepiece):
  ids = sentencepiece.encode("Hello the the")
  assert sentencepiece.token_texts(ids)[-2:] == [" the", " the"]
  assert sentencepiece.decode(ids[-1:]) == "the"
  assert sentencepiece.decode_continuation(ids[:-1], ids[-1:]) == " the"


def test_a_character_is_with_the_token_that_completes_it(in_bytes):
  ids = in_bytes.encode("a🙂b")
  assert in_bytes.token_texts(ids) == ["a", "", "", "", "🙂", "b"]
  assert in_bytes.token_texts(ids[:3]) == ["a", "", "\ufffd"]


@pytest.mark.parametrize("kind", ["sentencepiece", "in_bytes"])
def test_a_character_that_is_cut_off_does_not_take_others_with_it(request, kind):
  tokenizer = request.getfixturevalue(kind)
  ids = tokenizer.encode("🙂🙂🙂")
  for missing in (1, 2, 3):
    assert tokenizer.decode_continuation(ids[:-8], ids[-8:-missing]) == "🙂\ufffd"


def test_bytes_that_are_no_character_are_shown_once_the_text_goes_on(in_bytes):
  smile = in_bytes.encode("🙂")
  ids = [*smile[:2], *in_bytes.encode("ab")]
  assert in_bytes.token_texts(ids) == ["", "", "\ufffda", "b"]
  assert in_bytes.decode_continuation(smile[:2], in_bytes.encode("ab")) == "ab"


def test_the_passage_shows_labels_in_the_context_of_their_segment(sentencepiece):
  first, second = (sentencepiece.encode(text) for text in ("Hello the", "T é the"))
  width = len(first) + len(second) + 1
  fields = np.zeros((4, width), np.int32)
  fields[0, : width - 1] = [*first, *second]
  fields[1, : width - 1] = [1] * len(first) + [2] * len(second)
  fields[3] = 1
  # One that does not count is context all the same.
  fields[3, len(first) + 2] = 0
  texts = results.label_texts(sentencepiece, batches.shift(*fields))
  assert "".join(texts[: len(first) - 1]) == "Hello the"
  assert "".join(texts[len(first) : width - 2]) == "T é the"
  assert texts[len(first) - 2] == texts[width - 3] == " the"
