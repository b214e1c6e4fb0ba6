"""The tokenizer for text, chats and export, from a GGUF file or a Hugging Face directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from etils import epath

from egad_jax import sources
from egad_jax.data import chat, decoding, tokenizer_files, tokenizer_fingerprint, tokenizer_json
from egad_jax.data import gguf_tokenizer as gguf
from egad_jax.data.conversations import Renderer
from egad_jax.data.document_encoding import (
  CANNOT_ENCODE,
  EncodedDocument,
  byte_sizes,
  encode_documents,
)
from egad_jax.data.frame import Frame, read_frame, set_frame
from egad_jax.data.gguf_pre_tokenizers import digits_and_bytes
from egad_jax.data.rust_errors import rust_errors
from egad_jax.data.spans import Document
from egad_jax.data.token_pieces import token_pieces
from egad_jax.errors import InputError

_END_OF_TEXT = "<|endoftext|>"
_BYTE_ALPHABET = frozenset(tokenizers.pre_tokenizers.ByteLevel.alphabet())


class SpecialIds(NamedTuple):
  """Ids of the tokens that have a role.

  Attributes:
    bos: beginning of sequence; None if there is none.
    eos: end of sequence, which ends a generation.
    pad: padding; None if there is none.
    unk: unknown token; None if there is none.
  """

  bos: int | None
  eos: int
  pad: int | None
  unk: int | None


class Tokenizer:
  """Turns text into ids and back, with its special ids, chat templates and files.

  Attributes:
    vocab_size: the largest id plus 1; rows that only pad an embedding are not counted.
    bos_id: beginning of sequence; None if there is none.
    eos_id: the id that the model emits to stop.
    pad_id: padding; None if there is none.
    unk_id: unknown token; None if there is none.
    document_end_id: the id that ends a document of plain text: `<|endoftext|>` if the vocabulary
      has it (in a chat model `eos_id` ends a turn, not a document), else `eos_id`.
    prefix_ids: ids that the tokenizer puts in front of every text, such as `bos_id`; often ().
    end_ids: ids behind every document: those that the tokenizer puts behind a text, and
      `document_end_id` unless they end with an end token already.
    chat_templates: Jinja sources by name.
    chat_template: the chat template named "default"; None if there is none.
    max_length: number of positions that the model was made for; None if unknown.
    parts: SHA-256, by name, of each part that decides which ids a document gets.
    fingerprint: SHA-256 of `parts`. Tokenizers with equal ones give every document the same ids.
    vocabulary_fingerprint: SHA-256 of the tokens of all ids. Tokenizers with equal ones may split
      a text differently, but a student and a teacher can share their ids.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    *,
    special: SpecialIds,
    chat_templates: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    max_length: int | None = None,
  ) -> None:
    """Wraps a tokenizer of the tokenizers library.

    Args:
      backend: the tokenizer, whose post-processor adds the right ids around a text.
      special: the ids with a role.
      chat_templates: Jinja sources by name; "default" is the one that is used. None means none.
      names: text of further special tokens by the names that templates use, such as `image_token`.
      max_length: number of positions that the model was made for; None if unknown.

    Raises:
      InputError: special ids are not in the vocabulary, ids are shared or too large, or a step or
        the post-processor is not supported.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    tokenizer_json.check_ids(vocabulary)
    self._token_of = {index: token for token, index in vocabulary.items()}
    unknown = [index for index in special if index is not None and index not in self._token_of]
    if unknown:
      raise InputError(
        f"the special ids {unknown} are not in the vocabulary. Copy its files again."
      )
    with rust_errors("the tokenizer cannot be copied", "Copy its files again."):
      # After `check_ids`, because this takes memory for each id below the largest.
      specification = backend.to_str()
      # Two copies: `encode_special_tokens` is state of the object, and many threads encode.
      self._with_special = backend
      self._plain = tokenizers.Tokenizer.from_str(specification)
    self._plain.encode_special_tokens = True
    self._specification = json.loads(specification)
    tokenizer_json.check_steps(self._specification)
    self.vocab_size = max(self._token_of) + 1
    self.bos_id, self.eos_id, self.pad_id, self.unk_id = (
      special.bos,
      special.eos,
      special.pad,
      special.unk,
    )
    self.document_end_id = vocabulary.get(_END_OF_TEXT, self.eos_id)
    frame = read_frame(backend)
    self.prefix_ids = frame.prefix
    ended = frame.suffix[-1:] in ((self.eos_id,), (self.document_end_id,))
    self.end_ids = frame.suffix if ended else (*frame.suffix, self.document_end_id)
    self.chat_templates = dict(chat_templates or {})
    self.chat_template = self.chat_templates.get("default")
    self._names = dict(names or {})
    self.max_length = max_length
    around = {"front": self.prefix_ids, "end": self.end_ids}
    self.parts = tokenizer_fingerprint.parts(vocabulary, self._specification, around)
    self.fingerprint = tokenizer_fingerprint.fingerprint(self.parts)
    self.vocabulary_fingerprint = self.parts["vocabulary"]

  @classmethod
  def from_source(cls, source: str | os.PathLike[str]) -> Tokenizer:
    """Loads from a GGUF file, a Hugging Face directory, `hf:NAME`, or `python:PACKAGE/FILE`.

    Raises:
      InputError: the source is missing, is none of these, or holds no usable tokenizer.
    """
    path = sources.resolve(source, weights=False)
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
      InputError: the file is unreadable, or its tokenizer is of an unknown kind or has no end of
        sequence.
    """
    read = gguf.read_gguf_tokenizer(path)
    if read.eos_id is None:
      raise InputError(
        f"{path}: no tokenizer.ggml.eos_token_id, so nothing would end a generation. "
        "Convert the model again with its tokenizer files present."
      )
    set_frame(read.tokenizer, Frame(read.prefix_ids, read.suffix_ids))
    try:
      return cls(
        read.tokenizer,
        special=SpecialIds(bos=read.bos_id, eos=read.eos_id, pad=read.pad_id, unk=read.unk_id),
        chat_templates=read.chat_templates,
        max_length=read.max_length,
      )
    except InputError as error:
      raise InputError(f"{path}: {error}") from error

  @classmethod
  def from_directory(cls, directory: str | os.PathLike[str]) -> Tokenizer:
    """Loads `tokenizer.json` and `tokenizer_config.json` from a Hugging Face directory.

    Raises:
      InputError: a file is missing or broken, or none names an end-of-sequence token.
    """
    read = tokenizer_files.read_directory(epath.Path(directory))
    ids = read.ids
    if ids["eos"] is None:
      raise InputError(
        f"{directory}: neither tokenizer_config.json nor special_tokens_map.json names an "
        "eos_token that is in tokenizer.json. Add it to tokenizer_config.json."
      )
    try:
      return cls(
        read.backend,
        special=SpecialIds(ids["bos"], ids["eos"], ids["pad"], ids["unk"]),
        chat_templates=read.chat_templates,
        names=read.names,
        max_length=read.max_length,
      )
    except InputError as error:
      raise InputError(f"{directory}: {error}") from error

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains byte-level BPE with one special token, `<|endoftext|>`.

    Args:
      texts: documents from which merges are learnt.
      vocab_size: the most ids, at least 257 (the bytes and the special token). Little text yields
        fewer.

    Raises:
      InputError: `vocab_size` is too small.

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
    backend.pre_tokenizer = digits_and_bytes()
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
    """Turns text into ids, without adding any in front or behind.

    Args:
      text: any string. Characters made of bytes that the vocabulary lacks are dropped, as Hugging
        Face's tokenizer does (SmolLM2 lacks six of the control characters and a few bytes).
      allow_special: whether the text of a special token, such as `<|im_end|>`, becomes that token.
        Leave it off for documents, where it is plain text; turn it on for a rendered chat.
    """
    with rust_errors(*CANNOT_ENCODE):
      return self.backend(allow_special=allow_special).encode(text, add_special_tokens=False).ids

  def encode_prompt(self, text: str) -> list[int]:
    """Turns the beginning of a text into ids: `prefix_ids` in front, nothing behind.

    Use `encode` for a rendered chat, whose template writes all special tokens.
    """
    return [*self.prefix_ids, *self.encode(text)]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Encodes documents on all cores, each as `encode` does without `allow_special`."""
    with rust_errors(*CANNOT_ENCODE):
      encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def encode_batch_with_bytes(
    self, texts: Sequence[str]
  ) -> list[tuple[list[int], np.ndarray, int]]:
    """Encodes like `encode_batch`, but slower, and counts the bytes of text of each token.

    Returns:
      For each text its ids, the integers [ids] of bytes that each id stands for, and the bytes
      behind the last. They add up to the text's UTF-8 bytes: text that a normalizer drops or
      shortens counts for the token that follows it.
    """
    with rust_errors(*CANNOT_ENCODE):
      encodings = self._plain.encode_batch(texts, add_special_tokens=False)
    sizes = [byte_sizes(text, each) for text, each in zip(texts, encodings, strict=True)]
    return [
      (each.ids, size[:-1], int(size[-1])) for each, size in zip(encodings, sizes, strict=True)
    ]

  def encode_document(self, document: Document) -> tuple[np.ndarray, np.ndarray]:
    """Turns a document into ids and targets, int32 [ids] each; a target is 1, context is 0.

    Text is encoded across the bounds of spans, as a rendered chat is by transformers: an id is a
    target if any of its characters is in a span that is. Plain text gets `prefix_ids` in front,
    never targets, and `end_ids` behind, targets if the last span is. A rendered chat gets neither:
    its template writes the special tokens.
    """
    [encoded] = self.encode_documents([document])
    return encoded.ids, encoded.targets

  def encode_documents(
    self, documents: Sequence[Document], *, with_bytes: bool = False
  ) -> list[EncodedDocument]:
    """Encodes documents on all cores, each as `encode_document` does.

    Args:
      documents: the documents.
      with_bytes: whether to count the bytes of text of each id, which takes longer.
    """
    return encode_documents(self, documents, with_bytes=with_bytes)

  def backend(self, *, allow_special: bool) -> tokenizers.Tokenizer:
    """The tokenizer of the library, which does or does not make tokens of their spellings."""
    return self._with_special if allow_special else self._plain

  def conversation_renderer(self) -> Renderer | None:
    """Renders conversations with the chat template; None if there is none named "default"."""
    if self.chat_template is None:
      return None
    special = list(self.special_tokens.values())
    return Renderer(self.chat_template, self._special_tokens(), special)

  def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
    """Turns ids into text; special tokens are written out unless `skip_special` is set."""
    with rust_errors("the tokenizer cannot turn these ids into text", "Copy its files again."):
      return self._with_special.decode(list(ids), skip_special_tokens=skip_special)

  def decode_continuation(self, context: Sequence[int], new: Sequence[int]) -> str:
    """The text that `new` adds to that of `context`; see `decoding.continuation`."""
    return decoding.continuation(self.decode, context, new)

  def token_texts(self, ids: Sequence[int]) -> list[str]:
    """The text that each id adds to that of the ids before it; see `decoding.token_texts`."""
    return decoding.token_texts(self.decode, ids)

  def id_to_token(self, index: int) -> str | None:
    """The vocabulary's spelling of an id; None for an id without a token."""
    return self._token_of.get(index)

  def token_bytes(self) -> np.ndarray:
    """Number of bytes of text of each id, int32 [vocab_size]; 0 for special tokens."""
    return np.array([len(piece) for piece in self.token_pieces()], np.int32)

  def token_pieces(self) -> list[bytes]:
    """The bytes of text of each id, [vocab_size]; empty for special tokens.

    >>> tokenizer = Tokenizer.train(["naïve"], vocab_size=270)
    >>> pieces = tokenizer.token_pieces()
    >>> b"".join(pieces[i] for i in tokenizer.encode("naïve 🙂")).decode()
    'naïve 🙂'
    """
    return token_pieces(self._token_of, self._specification)

  @property
  def special_tokens(self) -> dict[int, str]:
    """Id -> spelling of every special token."""
    added = self._specification["added_tokens"]
    return {entry["id"]: entry["content"] for entry in added if entry["special"]}

  def added_to(self, other: Tokenizer) -> list[str] | None:
    """The added tokens that only this tokenizer has; None if they differ in anything else.

    Args:
      other: a tokenizer whose every id may have the same token here.
    """
    own = self._token_of
    if any(own.get(index) != token for index, token in other._token_of.items()):
      return None
    more = sorted(own.keys() - other._token_of.keys())
    added = {entry["id"] for entry in self._specification["added_tokens"]}
    return [own[index] for index in more] if added.issuperset(more) else None

  def apply_chat(
    self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
  ) -> str:
    """Renders a conversation with the chat template; encode the text with `allow_special=True`.

    Args:
      messages: `{"role": ..., "content": ...}` of each message, in order.
      add_generation_prompt: whether to end with the opening of the assistant's turn.

    Raises:
      InputError: there is no template, or it cannot render the messages.
    """
    if self.chat_template is None:
      named = ", ".join(sorted(self.chat_templates))
      raise InputError(
        "this tokenizer has no chat template"
        + (f" named default, only {named}" if named else "")
        + ", so --chat cannot be used: leave it out, or use an instruction-tuned model."
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
    tokenizer_files.write_directory(
      epath.Path(directory),
      self._with_special,
      self._special_tokens(),
      chat_templates=self.chat_templates,
      max_length=self.max_length,
    )

  def _special_tokens(self) -> dict[str, str]:
    ids = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id, "unk": self.unk_id}
    roles = {f"{role}_token": self._token_of[i] for role, i in ids.items() if i is not None}
    return self._names | roles
