"""Tokenizers out of GGUF metadata, on files written here."""

from __future__ import annotations

import gguf
import pytest
import tokenizers

from egad_jax.data.gguf_pre_tokenizers import PRE_TOKENIZERS, make_pre_tokenizer
from egad_jax.data.gguf_tokenizer import TokenType, read_gguf_tokenizer
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from tests.models import tiny_llama as tiny

_BYTES = [*sorted("abcdĠ12é<|>end"), "Ċ"]
_TOKENS = ["<|end|>", "<mark>", *dict.fromkeys(_BYTES), "ab", "Ġab", "12"]
_MERGES = ["a b", "Ġ ab", "1 2"]


def _write(path, *, padding=0, **changes) -> str:
  tokens = _TOKENS + [f"[PAD{i}]" for i in range(padding)]
  types = [TokenType.CONTROL, TokenType.USER_DEFINED]
  types += [TokenType.NORMAL] * (len(_TOKENS) - 2) + [TokenType.UNUSED] * padding
  fields = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "types": types, "eos": 0} | changes
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_context_length(64)
  writer.add_tokenizer_model(fields["model"])
  writer.add_tokenizer_pre(fields["pre"])
  writer.add_token_list(fields["tokens"])
  writer.add_token_types([int(kind) for kind in fields["types"]])
  writer.add_token_merges(_MERGES)
  if fields["eos"] is not None:
    writer.add_eos_token_id(fields["eos"])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  return str(path)


def test_vocabulary_and_roles(tmp_path):
  tokenizer = Tokenizer.from_gguf(_write(tmp_path / "a.gguf"))
  assert tokenizer.vocab_size == len(_TOKENS)
  assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (0, None, None)
  assert tokenizer.document_end_id == 0
  assert tokenizer.max_length == 64
  assert tokenizer.chat_template is None


def test_control_tokens_are_special_and_user_tokens_are_not(tmp_path):
  tokenizer = Tokenizer.from_gguf(_write(tmp_path / "a.gguf"))
  assert tokenizer.encode("<|end|>") != [0]
  assert tokenizer.encode("<|end|>", allow_special=True) == [0]
  assert tokenizer.encode("ab<mark>ab").count(1) == 1
  assert tokenizer.token_bytes()[:2].tolist() == [0, len("<mark>")]


def test_pre_tokenizers_differ_in_digits(tmp_path):
  joined = _TOKENS.index("12")
  smollm = Tokenizer.from_gguf(_write(tmp_path / "a.gguf"))
  gpt2 = Tokenizer.from_gguf(_write(tmp_path / "b.gguf", pre="gpt-2"))
  assert joined not in smollm.encode("ab 12")
  assert gpt2.encode("12") == [joined]


def test_padding_rows_are_no_tokens(tmp_path):
  plain = Tokenizer.from_gguf(_write(tmp_path / "a.gguf"))
  padded = Tokenizer.from_gguf(_write(tmp_path / "b.gguf", padding=5))
  assert padded.vocab_size == plain.vocab_size
  assert padded.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model": "t5"}, "tokenizer.ggml.model is 't5'; only 'gpt2' .* and 'llama'"),
    ({"model": "llama"}, "puts a space in front of a text .*add_space_prefix is not false"),
    ({"pre": "viking"}, r"tokenizer.ggml.pre is 'viking'; known are .*, llama-bpe, .*--tokenizer"),
    ({"types": [1, 1]}, "must all be there"),
    ({"eos": None}, "eos_token_id"),
  ],
)
def test_unknown_kinds_are_refused(tmp_path, changes, message):
  path = _write(tmp_path / "a.gguf", **changes)
  with pytest.raises(InputError, match=message) as caught:
    Tokenizer.from_gguf(path)
  assert path in str(caught.value)


_PIECES = ["<eos>", "<bos>", "<unk>", "<0x41>", "<0xC3>", "<0xA9>", "\n\n", "  ", "   "]
_PIECES += ["\u2581a", "\u2581ab", "ab", "bc", "abc", "\u2581", "a", "b", "c"]


def _sentencepiece(path, **changes) -> str:
  """A file with a SentencePiece tokenizer; the first pieces have the highest scores."""
  types = [TokenType.CONTROL] * 2 + [TokenType.UNKNOWN] + [TokenType.BYTE] * 3
  types += [TokenType.USER_DEFINED] * 3 + [TokenType.NORMAL] * 9
  scores = [-1000.0] * 9 + [-float(i) for i in range(9)]
  fields = {"space": False, "scores": scores, "tokens": _PIECES} | changes
  writer = gguf.GGUFWriter(path, "gemma3")
  writer.add_tokenizer_model("llama")
  writer.add_tokenizer_pre("default")
  writer.add_token_list(fields["tokens"])
  writer.add_token_types([int(kind) for kind in types])
  writer.add_token_scores(fields["scores"])
  writer.add_eos_token_id(0)
  writer.add_bos_token_id(1)
  writer.add_unk_token_id(2)
  if fields["space"] is not None:
    writer.add_add_space_prefix(fields["space"])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  return str(path)


@pytest.mark.parametrize(
  ("text", "pieces"),
  [
    # "\u2581a" has a higher score than "ab", which has a higher one than "bc".
    ("ab abc", ["ab", "\u2581ab", "c"]),
    ("abc", ["abc"]),
    ("bc", ["bc"]),
    ("a  b   c", ["a", "  ", "b", "   ", "c"]),
    ("a\n\nb", ["a", "\n\n", "b"]),
    ("é", ["<0xC3>", "<0xA9>"]),
    # A byte without a piece of its own.
    ("ü", ["<unk>"]),
    # The spelling of a special token is plain text, made of characters that are not there.
    ("<eos>a", ["<unk>", "a"]),
  ],
)
def test_sentencepiece_joins_the_highest_scores_first(tmp_path, text, pieces):
  tokenizer = Tokenizer.from_gguf(_sentencepiece(tmp_path / "a.gguf"))
  ids = [_PIECES.index(piece) for piece in pieces]
  assert tokenizer.encode(text) == ids
  if "<unk>" not in pieces:
    assert tokenizer.decode(ids) == text
    assert sum(int(tokenizer.token_bytes()[i]) for i in ids) == len(text.encode())
  assert tokenizer.encode("<eos>a", allow_special=True) == [0, _PIECES.index("a")]
  assert (tokenizer.prefix_ids, tokenizer.end_ids) == ((1,), (0,))
  assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (0, 1, 2)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"space": True}, "add_space_prefix is not false"),
    ({"space": None}, "add_space_prefix is not false"),
    ({"scores": [0.0]}, "tokens, token_type, scores must all be there: .*and scores, all of one"),
    ({"tokens": [*_PIECES[:-1], "c" * 513]}, "a piece of 513 characters; at most 512"),
  ],
)
def test_sentencepiece_that_is_not_followed_is_refused(tmp_path, changes, message):
  path = _sentencepiece(tmp_path / "a.gguf", **changes)
  with pytest.raises(InputError, match=message):
    Tokenizer.from_gguf(path)


@pytest.mark.parametrize("size", [0, 3, 20, 100, 500])
def test_truncated_files_are_refused(tmp_path, size):
  whole = tmp_path / "a.gguf"
  _write(whole)
  short = tmp_path / "short.gguf"
  short.write_bytes(whole.read_bytes()[:size])
  with pytest.raises(InputError, match="not a whole GGUF file"):
    read_gguf_tokenizer(short)


@pytest.mark.parametrize(
  ("pre", "text", "pieces"),
  [
    (
      "llama-bpe",
      "It'S 12345  days\n\n x",
      ["It", "'S", "Ġ", "123", "45", "Ġ", "Ġdays", "ĊĊ", "Ġx"],
    ),
    ("qwen2", "a 123", ["a", "Ġ", "1", "2", "3"]),
    ("gpt-4o", "helloWorld's 1234", ["hello", "World's", "Ġ", "123", "4"]),
    ("tekken", "helloWorld 12", ["hello", "World", "Ġ", "1", "2"]),
    ("falcon", "a,b 12345", ["a", ",", "b", "Ġ", "123", "45"]),
    ("refact", "ab 12", ["ab", "Ġ", "1", "2"]),
    ("default", "a+b 12345", ["a", "+", "b", "Ġ", "123", "45"]),
    ("deepseek-v3", "x=1234", ["x", "=", "123", "4"]),
  ],
)
def test_splittings_of_the_table_by_hand(pre, text, pieces):
  step = make_pre_tokenizer(PRE_TOKENIZERS[pre])
  assert [piece for piece, _ in step.pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize("kind", dict.fromkeys(PRE_TOKENIZERS.values()))
def test_every_splitting_keeps_the_whole_text(kind):
  text = "naïve 🙂 It's 12345;\r\n\n  x=[y]; 日本語 \u01c5 3\u00bd \t end  "
  step = make_pre_tokenizer(kind)
  joined = "".join(piece for piece, _ in step.pre_tokenize_str(text))
  assert tokenizers.decoders.ByteLevel().decode([joined]) == text


@pytest.mark.parametrize(
  ("metadata", "message"),
  [
    ({"tokenizer.ggml.later": 1}, r"tokenizer\.ggml\.later is not known here"),
    ({"tokenizer.other": "x"}, r"tokenizer\.other is not known here"),
    ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix is set"),
    ({"tokenizer.ggml.suppress_tokens": [1]}, "suppress_tokens is set"),
    ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token must be true or false; got 1"),
  ],
)
def test_keys_that_are_not_followed_are_refused(tmp_path, metadata, message):
  with pytest.raises(InputError, match=message):
    Tokenizer.from_gguf(tiny.make_gguf(tmp_path / "a.gguf", metadata=metadata))


def test_harmless_keys_are_taken(tmp_path):
  metadata = {
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.eot_token_id": 2,
    "tokenizer.ggml.fim_pre_token_id": 3,
    "tokenizer.chat_template": "d",
    "tokenizer.chat_template.tool_use": "t",
  }
  tokenizer = Tokenizer.from_gguf(tiny.make_gguf(tmp_path / "a.gguf", metadata=metadata))
  assert tokenizer.chat_templates == {"default": "d", "tool_use": "t"}
