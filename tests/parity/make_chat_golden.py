"""Writes tests/fixtures/chat_golden.json: chat templates as transformers renders them.

Run in the environment of requirements-parity.txt:
`python tests/parity/make_chat_golden.py` rewrites the fixture;
`python tests/parity/make_chat_golden.py --check` compares a new rendering with it instead.
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

from tests.data import chat_cases  # noqa: E402
from tests.models import tiny_llama  # noqa: E402

FIXTURE = ROOT / "tests" / "fixtures" / "chat_golden.json"


def rendered(tokenizer: Any, template: str, messages: list[Any], prompt: bool) -> str | None:
  """What transformers makes of it; None for an error."""
  tokenizer.chat_template = template
  try:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
  # Jinja, the template itself and Python inside a template raise errors of many types.
  except Exception:
    return None


def main() -> None:
  """Renders every template with every conversation."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--check", action="store_true")
  check = parser.parse_args().check
  with tempfile.TemporaryDirectory() as directory:
    names = {"image_token": "<|eot_id|>"}
    tiny_llama.make(directory, tokenizer_config=names)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    found = {
      "transformers": transformers.__version__,
      "special_tokens": tokenizer.special_tokens_map,
      "texts": {
        name: {
          title: [rendered(tokenizer, template, messages, prompt) for prompt in (False, True)]
          for title, messages in chat_cases.CONVERSATIONS.items()
        }
        for name, template in chat_cases.TEMPLATES.items()
      },
    }
  if not check:
    FIXTURE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
  elif json.loads(FIXTURE.read_text())["texts"] != found["texts"]:
    sys.exit(f"transformers {transformers.__version__} renders other texts than {FIXTURE.name}")
  print(f"{FIXTURE.name}: {len(chat_cases.TEMPLATES)} templates, as transformers renders them")


if __name__ == "__main__":
  main()
