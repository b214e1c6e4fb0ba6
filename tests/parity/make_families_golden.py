"""Writes tests/fixtures/families/*.npz: what transformers computes for small models of each family.

Run in the environment of requirements-parity.txt:
`python -m tests.parity.make_families_golden [FAMILY …]` rewrites the fixtures;
`python -m tests.parity.make_families_golden --check` compares a new computation with them instead.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import safetensors
import torch
import transformers

from tests.parity.family_cases import CASES, FIXTURES, prompts, weights, write_model

NEW_TOKENS = 6
TOLERANCE = 1e-5


def saved(family: str, case: dict[str, Any], directory: pathlib.Path) -> tuple[Any, Any]:
  """config.json and the shapes of all tensors as transformers saves a model of this config."""
  config = transformers.AutoConfig.for_model(family, **case)
  model = transformers.AutoModelForCausalLM.from_config(config)
  model.save_pretrained(directory)
  data = json.loads((directory / "config.json").read_text())
  with safetensors.safe_open(directory / "model.safetensors", framework="numpy") as file:
    shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
  return data, shapes


def load(directory: pathlib.Path) -> Any:
  """A saved model in float32, with the plainest attention."""
  return transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32, attn_implementation="eager"
  ).eval()


def logits(model: Any, ids: list[int]) -> np.ndarray:
  """Logits of one text, float32 `[tokens, vocab]`."""
  with torch.no_grad():
    return model(torch.tensor([ids])).logits[0].numpy()


def greedy(model: Any, ids: list[int]) -> list[int]:
  """The most probable continuation, from a new computation of the whole text for each token."""
  read = list(ids)
  for _ in range(NEW_TOKENS):
    read.append(int(logits(model, read)[-1].argmax()))
  return read[len(ids) :]


def golden(family: str, index: int, case: dict[str, Any]) -> dict[str, np.ndarray]:
  """What the fixture holds of one configuration."""
  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    data, shapes = saved(family, case, root / "saved")
    model = load(write_model(root / "made", data, weights(family, shapes, index)))
    texts = prompts(case["vocab_size"])
    return {
      "config": np.array(json.dumps(data)),
      "shapes": np.array(json.dumps(shapes)),
      "logits": np.concatenate([logits(model, ids) for ids in texts]),
      "greedy": np.array([greedy(model, ids) for ids in texts], np.int32),
    }


def main() -> None:
  """Writes or checks the fixtures."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("families", nargs="*", help="names of families; all if none is given")
  parser.add_argument("--check", action="store_true", help="compare instead of writing")
  arguments = parser.parse_args()
  transformers.utils.logging.disable_progress_bar()
  FIXTURES.mkdir(exist_ok=True)
  for family in arguments.families or CASES:
    made = {
      f"{index}/{key}": value
      for index, case in enumerate(CASES[family])
      for key, value in golden(family, index, case).items()
    }
    path = FIXTURES / f"{family}.npz"
    if arguments.check:
      stored = np.load(path)
      assert sorted(stored.files) == sorted(made)
      for key in (key for key in made if key.endswith(("logits", "greedy"))):
        np.testing.assert_allclose(stored[key], made[key], atol=TOLERANCE, rtol=0, err_msg=key)
      print(f"golden: {family} as stored", flush=True)
      continue
    np.savez_compressed(path, **made)
    spread = min(made[f"{i}/logits"].std() for i in range(len(CASES[family])))
    print(f"{path}: {path.stat().st_size} bytes, least logit std {spread:.2f}", flush=True)


if __name__ == "__main__":
  main()
