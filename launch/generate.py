"""Continues a prompt: `python launch/generate.py --model=runs/quickstart/export --prompt="..."`.

stdout is the continuation and nothing else, in UTF-8: prompt and output are the model's text.
"""

from __future__ import annotations

import pathlib
import sys

if __name__ == "__main__":
  # So that `launch` and `configs` are found from any working directory.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import launch

launch.require_environment()

from absl import flags

from launch import accelerators, command_line

MODEL = command_line.required("model", "Hugging Face directory, GGUF file or python:PACKAGE/FILE.")
TOKENIZER = flags.DEFINE_string(
  "tokenizer", "", "Where its tokenizer is, like --model; the model itself if empty."
)
PROMPT = command_line.required("prompt", "Text to continue; with --chat, the user's message.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "At most so many tokens are added.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 is greedy.")
TOP_K = flags.DEFINE_integer("top_k", None, "Sample among the k most probable tokens.")
TOP_P = flags.DEFINE_float("top_p", None, "Sample among the most probable tokens of this sum.")
SEED = flags.DEFINE_integer("seed", 0, "Of the random choices.")
IGNORE_EOS = flags.DEFINE_bool("ignore_eos", False, "Go on after an end token.")
CHAT = flags.DEFINE_bool("chat", False, "Put the prompt into the model's chat template.")


def main() -> None:
  """Reads the model, continues the prompt and prints the continuation."""
  accelerators.import_jax()
  import jax

  from egad_jax.data.tokenizer import Tokenizer
  from egad_jax.models.generation import generate
  from egad_jax.models.load import load_pretrained
  from egad_jax.models.model import make_model

  accelerators.require_devices()
  tokenizer = Tokenizer.from_source(TOKENIZER.value or MODEL.value)
  text = command_line.text(PROMPT)
  if CHAT.value:
    chat = tokenizer.apply_chat([{"role": "user", "content": text}], add_generation_prompt=True)
    prompt = tokenizer.encode(chat, allow_special=True)
  else:
    prompt = tokenizer.encode_prompt(text)
  pretrained = load_pretrained(MODEL.value, tokenizer_size=tokenizer.vocab_size)
  [continuation] = generate(
    make_model(pretrained.config),
    jax.device_put(pretrained.params),
    [prompt],
    max_new_tokens=MAX_NEW_TOKENS.value,
    temperature=TEMPERATURE.value,
    top_k=TOP_K.value,
    top_p=TOP_P.value,
    seed=SEED.value,
    eos_id=None if IGNORE_EOS.value else pretrained.generation.ends(tokenizer),
    vocab_size=tokenizer.vocab_size,
  )
  # Data, not messages: UTF-8 whatever the terminal's encoding.
  sys.stdout.buffer.write(tokenizer.decode_continuation(prompt, continuation).encode())
  if sys.stdout.isatty():
    sys.stdout.buffer.write(b"\n")
  sys.stdout.buffer.flush()


if __name__ == "__main__":
  command_line.run(main)
