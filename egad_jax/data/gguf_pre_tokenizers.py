"""The pre-tokenizer of each `tokenizer.ggml.pre`: how byte-level BPE splits a text before merges.

Names, expressions, `ignore_merges` and `add_bos` are those of llama.cpp, src/llama-vocab.cpp
(`llm_tokenizer_bpe` and `llama_vocab::impl::load`). Where llama.cpp rewrites an expression for its
own engine, this table has the original from the models' tokenizer.json, which llama.cpp quotes.
"""

from __future__ import annotations

from typing import NamedTuple

import tokenizers
from tokenizers import pre_tokenizers


class PreTokenizer(NamedTuple):
  """One way of splitting a text.

  Attributes:
    expressions: regular expressions, applied one after the other to all pieces so far; matches and
      the text between them become pieces.
    ignore_merges: whether a piece that is in the vocabulary becomes that token without merges.
    adds_bos: whether beginning of sequence is put in front of a text if the file does not say.
  """

  expressions: tuple[str, ...]
  ignore_merges: bool = False
  adds_bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = "|".join([_ENDINGS, _WORD, r"\p{N}{1,3}", _SIGNS, _SPACES])
_QWEN2 = "|".join([_ENDINGS, _WORD, r"\p{N}", _SIGNS, _SPACES])
_QWEN35 = "|".join(
  [
    _ENDINGS,
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    _SPACES,
  ]
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
  rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
  rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_SIGNS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = "|".join([*_CASED, r"\p{N}", _SIGNS_OR_SLASH, _SPACES])
_GPT4O = "|".join(
  [*(f"{word}{_ENDINGS}?" for word in _CASED), r"\p{N}{1,3}", _SIGNS_OR_SLASH, _SPACES]
)
_DEEPSEEK3 = "|".join(
  [
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+[\r\n]*",
    _SPACES,
  ]
)
_CHINESE = "[一-龥ࠀ-一가-퟿]+"

_DIGITS_ALONE = PreTokenizer((r"\p{N}", _GPT2))
_WORDS = PreTokenizer((_GPT2,))
_LLAMA_BPE = PreTokenizer((_LLAMA3,), ignore_merges=True, adds_bos=True)
_HUNYUAN_DENSE = PreTokenizer((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
  **dict.fromkeys(
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    _LLAMA_BPE,
  ),
  **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), PreTokenizer((_LLAMA3,))),
  **dict.fromkeys(
    (
      "qwen2",
      "deepseek-r1-qwen",
      "kormo",
      "megrez",
      "stablelm2",
      "hunyuan",
      "solar-open",
      "grok-2",
    ),
    PreTokenizer((_QWEN2,)),
  ),
  "qwen35": PreTokenizer((_QWEN35,)),
  **dict.fromkeys(
    (
      "gpt-2",
      "phi-2",
      "gigachat",
      "mellum",
      "modern-bert",
      "a.x-4.0",
      "exaone4",
      "mpt",
      "olmo",
      "jais",
      "trillion",
      "granite-docling",
    ),
    _WORDS,
  ),
  **dict.fromkeys(
    (
      "smollm",
      "starcoder",
      "refact",
      "command-r",
      "codeshell",
      "exaone",
      "minerva-7b",
      "mellum2",
    ),
    _DIGITS_ALONE,
  ),
  "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, adds_bos=True),
  **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), PreTokenizer((_GPT4O,))),
  "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
  "deepseek-coder": PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, r"\p{N}")),
  **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _HUNYUAN_DENSE),
  "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}


def digits_and_bytes() -> pre_tokenizers.PreTokenizer:
  """SmolLM's pre-tokenizer: every digit is a piece, then GPT-2's pattern on bytes."""
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )


def make_pre_tokenizer(kind: PreTokenizer) -> pre_tokenizers.PreTokenizer:
  """The tokenizers library's step for a kind, in the form that most tokenizer.json files have."""
  if kind is _WORDS:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)
  if kind is _DIGITS_ALONE:
    return digits_and_bytes()
  split = [
    pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
    for expression in kind.expressions
  ]
  return pre_tokenizers.Sequence(
    [*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )
