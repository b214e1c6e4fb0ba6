"""One tokenizer for text, chats and export, whatever file it came from."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from etils import epath

from egad_jax import sources
from egad_jax.data import chat, tokenizer_files
from egad_jax.data import gguf_tokenizer as gguf
from egad_jax.data.rust_errors import rust_errors
from egad_jax.errors import InputError

_END_OF_TEXT = "<|endoftext|>"
_BYTE_ALPHABET = frozenset(tokenizers.pre_tokenizers.ByteLevel.alphabet())


# Far above any vocabulary there is. An id is a row of a table and of lists here.
_MAX_IDS = 2**24
# How many times longer a normalizer may make a text.
_MAX_GROWTH = 256


class SpecialIds(NamedTuple):
  """Ids of the tokens that have a role; None where the vocabulary has no such token."""

  bos: int | None
  eos: int
  pad: int | None
  unk: int | None


class Tokenizer:
  """Text to ids and back, with the special ids, chat template and files that belong to them.

  Attributes:
    vocab_size: number of ids, rows that only pad an embedding not counted.
    bos_id: beginning of sequence, or None.
    eos_id: what the model emits to stop.
    pad_id: padding, or None.
    unk_id: unknown token, or None.
    document_end_id: what ends a document of plain text: `<|endoftext|>` when the vocabulary has
      it (in a chat model `eos_id` ends a turn, which is something else), else `eos_id`.
    chat_template: Jinja source, or None.
    max_length: positions the model was made for, or None if unknown.
    fingerprint: SHA-256 of vocabulary, merges and special tokens; equal for two files that mean
      the same tokenizer, however many rows their embeddings are padded to.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    *,
    special: SpecialIds,
    chat_template: str | None = None,
    max_length: int | None = None,
  ) -> None:
    vocabulary = backend.get_vocab(with_added_tokens=True)
    self._token_of = {index: token for token, index in vocabulary.items()}
    if len(self._token_of) < len(vocabulary):
      raise InputError(
        f"the tokenizer gives {len(vocabulary)} tokens {len(self._token_of)} ids; each must have "
        "one of its own. Copy its files again."
      )
    _check_ids(self._token_of, special)
    with rust_errors("the tokenizer cannot be copied", "Copy its files again."):
      # Only now: this takes memory for each id below the largest.
      specification = backend.to_str()
      # Two copies, because the switch is state of the object and encoding runs in many threads.
      self._with_special = backend
      self._plain = tokenizers.Tokenizer.from_str(specification)
    self._plain.encode_special_tokens = True
    self._specification = json.loads(specification)
    _check_steps(self._specification)
    self.vocab_size = max(self._token_of) + 1
    self.bos_id, self.eos_id, self.pad_id, self.unk_id = (
      special.bos,
      special.eos,
      special.pad,
      special.unk,
    )
    self.document_end_id = vocabulary.get(_END_OF_TEXT, self.eos_id)
    self.chat_template = chat_template
    self.max_length = max_length
    self.fingerprint = _fingerprint(vocabulary, self._specification)

  @classmethod
  def from_source(cls, source: str | os.PathLike[str]) -> Tokenizer:
    """Loads from a GGUF file, a Hugging Face directory, or `python:PACKAGE/FILE`.

    Raises:
      InputError: if the source is missing or is none of these.
    """
    path = sources.resolve(source)
    if path.is_dir():
      return cls.from_directory(path)
    if path.suffix == ".gguf":
      return cls.from_gguf(path)
    raise InputError(
      f"tokenizer source {os.fspath(source)!r}: expected a *.gguf file or a Hugging Face directory "
      "with tokenizer.json; this is neither."
    )

  @classmethod
  def from_gguf(cls, path: str | os.PathLike[str]) -> Tokenizer:
    """Builds the tokenizer described by a GGUF file's metadata.

    Raises:
      InputError: if the file is unreadable or describes a tokenizer of an unknown kind.
    """
    read = gguf.read_gguf_tokenizer(path)
    if read.eos_id is None:
      raise InputError(
        f"{path}: no tokenizer.ggml.eos_token_id, so nothing would end a generation. "
        "Convert the model again with its tokenizer files present."
      )
    try:
      return cls(
        read.tokenizer,
        special=SpecialIds(bos=read.bos_id, eos=read.eos_id, pad=read.pad_id, unk=read.unk_id),
        chat_template=read.chat_template,
        max_length=read.max_length,
      )
    except InputError as error:
      raise InputError(f"{path}: {error}") from error

  @classmethod
  def from_directory(cls, directory: str | os.PathLike[str]) -> Tokenizer:
    """Loads `tokenizer.json` and `tokenizer_config.json` from a Hugging Face directory.

    Raises:
      InputError: if one of the files is missing or broken, or names no end-of-sequence token.
    """
    directory = epath.Path(directory)
    path = directory / "tokenizer.json"
    if not path.exists():
      raise InputError(
        f"{directory}: no tokenizer.json. Make one with transformers: "
        "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)."
      )
    text = tokenizer_files.read_text(path)
    with rust_errors(f"{path}: not a readable tokenizer", "Copy the file again."):
      backend = tokenizers.Tokenizer.from_str(text)
      # Left on, these would cut or pad documents silently.
      backend.no_truncation()
      backend.no_padding()
    config = tokenizer_files.read_json(
      directory / "special_tokens_map.json"
    ) | tokenizer_files.read_json(directory / "tokenizer_config.json")
    ids = {
      role: tokenizer_files.special_id(directory, backend, config, role)
      for role in ("bos", "eos", "pad", "unk")
    }
    if ids["eos"] is None:
      raise InputError(
        f"{directory}: neither tokenizer_config.json nor special_tokens_map.json names an "
        "eos_token that is in tokenizer.json. Add it to tokenizer_config.json."
      )
    try:
      return cls(
        backend,
        special=SpecialIds(bos=ids["bos"], eos=ids["eos"], pad=ids["pad"], unk=ids["unk"]),
        chat_template=tokenizer_files.chat_template(directory, config),
        max_length=tokenizer_files.max_length(config),
      )
    except InputError as error:
      raise InputError(f"{directory}: {error}") from error

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains byte-level BPE with one special token, `<|endoftext|>`.

    Args:
      texts: documents to learn merges from.
      vocab_size: ids wanted, at least 257 (the bytes and the special token). Little text yields
        fewer.

    Raises:
      InputError: if `vocab_size` is too small.

    >>> tokenizer = Tokenizer.train(["some text, some more text"], vocab_size=270)
    >>> tokenizer.decode(tokenizer.encode("naïve 🙂"))
    'naïve 🙂'
    """
    smallest = len(_BYTE_ALPHABET) + 1
    if vocab_size < smallest:
      raise InputError(
        f"vocab_size ({vocab_size}) must be at least {smallest}: every byte and one special token."
      )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = gguf.digits_and_bytes()
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.train_from_iterator(
      texts,
      trainer=tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=sorted(_BYTE_ALPHABET),
        show_progress=False,
      ),
    )
    end = backend.get_vocab()[_END_OF_TEXT]
    return cls(backend, special=SpecialIds(bos=end, eos=end, pad=end, unk=end))

  def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
    """Turns text into ids; none are added in front or behind.

    Args:
      text: any string. Characters made of bytes that the vocabulary lacks are dropped, as Hugging
        Face's tokenizer does (SmolLM2 lacks six of the control characters and a few bytes).
      allow_special: whether the text of a special token, such as `<|im_end|>`, stands for that
        token. Leave it off for documents, where it is only text; turn it on for a rendered chat.
    """
    backend = self._with_special if allow_special else self._plain
    with rust_errors(*_CANNOT_ENCODE):
      return backend.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Encodes documents on all cores; like `encode` without specials for each of them."""
    with rust_errors(*_CANNOT_ENCODE):
      encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
    """Turns ids into text; special tokens are written out unless `skip_special`."""
    with rust_errors("the tokenizer cannot turn these ids into text", "Copy its files again."):
      return self._with_special.decode(list(ids), skip_special_tokens=skip_special)

  def id_to_token(self, index: int) -> str | None:
    """The vocabulary's own spelling of an id, or None for an id that stands for nothing."""
    return self._token_of.get(index)

  def token_bytes(self) -> np.ndarray:
    """How many bytes of text each id stands for: int32 [vocab_size]; special tokens 0."""
    return np.array([len(piece) for piece in self.token_pieces()], np.int32)

  def token_pieces(self) -> list[bytes]:
    """The bytes of text that each id stands for, [vocab_size]; empty for special tokens.

    >>> tokenizer = Tokenizer.train(["naïve"], vocab_size=270)
    >>> pieces = tokenizer.token_pieces()
    >>> b"".join(pieces[i] for i in tokenizer.encode("naïve 🙂")).decode()
    'naïve 🙂'
    """
    pieces = [b""] * self.vocab_size
    byte_level = "ByteLevel" in json.dumps(self._specification.get("decoder"))
    added = {entry["id"]: entry for entry in self._specification["added_tokens"]}
    for index, token in self._token_of.items():
      if index in added:
        pieces[index] = b"" if added[index]["special"] else token.encode()
      else:
        pieces[index] = _byte_level_piece(token) if byte_level else _sentencepiece_piece(token)
    return pieces

  @property
  def special_tokens(self) -> dict[int, str]:
    """The special tokens, id -> spelling."""
    added = self._specification["added_tokens"]
    return {entry["id"]: entry["content"] for entry in added if entry["special"]}

  def apply_chat(
    self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
  ) -> str:
    """Renders a conversation with the chat template; encode it with `allow_special=True`.

    Raises:
      InputError: if there is no template, or it refuses the messages.
    """
    if self.chat_template is None:
      raise InputError(
        "this tokenizer has no chat template, so --chat cannot be used: leave it out, or use an "
        "instruction-tuned model."
      )
    return chat.render_chat(
      self.chat_template,
      messages,
      add_generation_prompt=add_generation_prompt,
      special_tokens=self._special_tokens(),
    )

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    `transformers.AutoTokenizer.from_pretrained(directory)` loads them and gives the same ids.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    special = self._special_tokens()
    config: dict[str, Any] = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "clean_up_tokenization_spaces": False,
      # transformers' own way to say "unknown".
      "model_max_length": self.max_length or int(1e30),
      **special,
    }
    if self.chat_template is not None:
      config["chat_template"] = self.chat_template
    (directory / "tokenizer.json").write_text(self._with_special.to_str(pretty=True))
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
      (directory / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

  def _special_tokens(self) -> dict[str, str]:
    ids = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id, "unk": self.unk_id}
    return {f"{role}_token": self._token_of[i] for role, i in ids.items() if i is not None}


def _fingerprint(vocabulary: Mapping[str, int], specification: Mapping[str, Any]) -> str:
  merges = specification["model"].get("merges") or []
  content = {
    "vocabulary": sorted((index, token) for token, index in vocabulary.items()),
    # tokenizer.json has both spellings of a pair: ["a", "b"] and "a b".
    "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
    "special": sorted(e["content"] for e in specification["added_tokens"] if e["special"]),
  }
  return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()


def _byte_alphabet() -> dict[str, int]:
  """GPT-2's spelling of bytes: the printable ones are themselves, the others follow from 256."""
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  spelled = {chr(byte): byte for byte in printable}
  return spelled | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level_piece(token: str) -> bytes:
  # A token with a character of no byte can only be an added one that lost its mark.
  return b"".join(bytes([_BYTE_OF[c]]) if c in _BYTE_OF else c.encode() for c in token)


def _sentencepiece_piece(token: str) -> bytes:
  if re.fullmatch("<0x[0-9A-F]{2}>", token):
    return bytes([int(token[3:5], 16)])
  return token.replace("▁", " ").encode()


_CANNOT_ENCODE = (
  "the tokenizer cannot encode this text",
  "Check that the text is valid Unicode and that the tokenizer's files are whole.",
)


def _check_ids(token_of: Mapping[int, str], special: SpecialIds) -> None:
  if not token_of or max(token_of) >= _MAX_IDS:
    raise InputError(
      f"the tokenizer must have ids from 0 to at most {_MAX_IDS - 1}; its largest is "
      f"{max(token_of, default=None)}. Copy its files again."
    )
  unknown = [index for index in special if index is not None and index not in token_of]
  if unknown:
    raise InputError(f"the special ids {unknown} are not in the vocabulary. Copy its files again.")


def _check_steps(specification: Mapping[str, Any]) -> None:
  if specification["model"].get("dropout"):
    raise InputError(
      "the tokenizer drops merges by chance (dropout in its model), so that no run could be "
      "repeated. Set dropout to null in tokenizer.json."
    )
  growth = _growth(specification.get("normalizer")) * _growth(specification.get("decoder"))
  if growth > _MAX_GROWTH:
    raise InputError(
      f"the tokenizer's Replace and Prepend steps may make a text {growth} times longer; at most "
      f"{_MAX_GROWTH} times is allowed. Copy its files again."
    )


def _growth(step: Any) -> int:
  """How many times longer the replacements of a normalizer or decoder may make a text."""
  if not isinstance(step, dict):
    return 1
  inner = step.get("normalizers") or step.get("decoders") or []
  return math.prod(map(_growth, inner)) * max(
    1, len(step.get("content") or step.get("prepend") or "")
  )
