"""Compares every family with transformers: import, export, and greedy generation.

Run in the environment of requirements-parity.txt: `python -m tests.parity.families_parity
[FAMILY …]`. It prints the largest difference of each comparison and fails when one is above its
tolerance.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import numpy as np
import torch
import transformers

from egad_jax import lazy_arrays
from egad_jax.models import family, layout
from egad_jax.models.generation import generate
from egad_jax.models.load import load_pretrained
from egad_jax.models.model import make_model
from tests.models import tiny_llama
from tests.models.safetensors_files import write_safetensors
from tests.parity.family_cases import CASES, head, prompts, rows_of, weights, write_model
from tests.parity.make_families_golden import load, logits, saved

TOLERANCE = 1e-4
NEW_TOKENS = 8
PROMPT = "Entropy guides"
ROOT = pathlib.Path(__file__).resolve().parents[2]


def our_logits(read: Any, texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Logits of all tokens, from one packed row and from a row for each text."""
  model = make_model(read.config)
  run = jax.jit(lambda p, *rows: head(model, p, model.apply(p, *rows)[0]))
  got = np.asarray(run(read.params, *rows_of(texts)))
  alone = [got[1 + i, : len(text)] for i, text in enumerate(texts)]
  return got[0, : sum(map(len, texts))], np.concatenate(alone)


def their_greedy(model: Any, texts: list[list[int]], *, use_cache: bool) -> list[list[int]]:
  """Greedy continuations by `generate`, in one batch that is padded on the left."""
  width = max(map(len, texts))
  ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
  mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
  settings = transformers.GenerationConfig(
    max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=use_cache, pad_token_id=0
  )
  with torch.no_grad():
    new = model.generate(ids, attention_mask=mask, generation_config=settings)
  return new[:, width:].tolist()


def exported(read: Any, directory: pathlib.Path) -> pathlib.Path:
  """Writes config.json and weights as an export does."""
  data = family.config_to_hf(read.config, bos_id=None, eos_id=None, pad_id=None, dtype="float32")
  write_model(directory, data, {"unused": np.zeros(1, np.float32)})
  arrays = layout.by_name(family.tensors(read.config), read.params)
  write_safetensors(directory / "model.safetensors", arrays)
  return directory


def loaded_whole(directory: pathlib.Path) -> Any:
  """A model that transformers loads without a missing, unexpected or mismatched tensor."""
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
  )
  problems = {key: value for key, value in info.items() if value}
  assert not problems, problems
  return model.eval()


def check(name: str, index: int, root: pathlib.Path) -> None:
  """One configuration of one family."""
  data, shapes = saved(name, CASES[name][index], root / "saved")
  source = write_model(root / "made", data, weights(name, shapes, index))
  theirs, read = load(source), load_pretrained(str(source))
  read = read._replace(params=lazy_arrays.read_all(read.params))
  texts = prompts(read.config.vocab_size)
  wanted = np.concatenate([logits(theirs, text) for text in texts])
  packed, alone = our_logits(read, texts)
  again = loaded_whole(exported(read, root / "exported"))
  assert type(again) is type(theirs)
  of_export = np.concatenate([logits(again, text) for text in texts])
  differences = [float(np.abs(x - wanted).max()) for x in (packed, alone, of_export)]
  again.save_pretrained(root / "again")
  back = load_pretrained(str(root / "again"))
  assert back.config == read.config
  jax.tree.map(np.testing.assert_array_equal, back.params, read.params)
  ours = generate(
    make_model(read.config), read.params, texts, max_new_tokens=NEW_TOKENS, temperature=0.0
  )
  for use_cache in (True, False):
    assert their_greedy(theirs, texts, use_cache=use_cache) == ours
  print(
    f"{name} {index}: packed {differences[0]:.1e}, alone {differences[1]:.1e}, export "
    f"{differences[2]:.1e} of std {wanted.std():.2f}; round trip and greedy equal",
    flush=True,
  )
  assert max(differences) < TOLERANCE, name


def check_command(name: str, root: pathlib.Path) -> None:
  """launch/generate.py on a directory with a tokenizer of bytes."""
  data, shapes = saved(name, CASES[name][0] | {"vocab_size": 260}, root / "saved")
  directory = write_model(root / "made", data, weights(name, shapes, 5))
  tokenizer = tiny_llama.tokenizer()
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, eos_token=tiny_llama.SPECIAL[0], pad_token=tiny_llama.SPECIAL[3]
  )
  fast.save_pretrained(directory)
  ids = fast(PROMPT, add_special_tokens=False).input_ids
  [new] = their_greedy(load(directory), [ids], use_cache=True)
  command = [
    sys.executable,
    str(ROOT / "launch" / "generate.py"),
    f"--model={directory}",
    f"--prompt={PROMPT}",
    f"--max_new_tokens={NEW_TOKENS}",
    "--temperature=0",
    "--ignore_eos",
  ]
  done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
  wanted = fast.decode(ids + new).removeprefix(PROMPT)
  assert done.stdout.decode().removesuffix("\n") == wanted.removesuffix("\n"), (done, wanted)
  print(f"{name}: launch/generate.py says {wanted!r}", flush=True)


def main() -> None:
  """Runs all comparisons."""
  transformers.utils.logging.disable_progress_bar()
  for name in sys.argv[1:] or CASES:
    for index in range(len(CASES[name])):
      with tempfile.TemporaryDirectory() as scratch:
        check(name, index, pathlib.Path(scratch))
    with tempfile.TemporaryDirectory() as scratch:
      check_command(name, pathlib.Path(scratch))


if __name__ == "__main__":
  main()
