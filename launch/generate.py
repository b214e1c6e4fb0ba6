"""Continues a prompt: `python launch/generate.py --model=runs/quickstart/export --prompt="..."`.

stdout is the continuation and nothing else.
"""

from __future__ import annotations

import pathlib
import sys

if __name__ == "__main__":
  # So that `launch` and `configs` are found from any working directory.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from launch import command_line

MODEL = command_line.required("model", "Hugging Face directory, GGUF file or python:PACKAGE/FILE.")
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
  import jax

  from egad_jax.data.tokenizer import Tokenizer
  from egad_jax.models.generation import generate
  from egad_jax.models.load import load_pretrained
  from egad_jax.models.model import make_model

  tokenizer = Tokenizer.from_source(MODEL.value)
  prompt = PROMPT.value
  if CHAT.value:
    prompt = tokenizer.apply_chat([{"role": "user", "content": prompt}], add_generation_prompt=True)
  pretrained = load_pretrained(MODEL.value, tokenizer_size=tokenizer.vocab_size)
  ends = {tokenizer.eos_id, tokenizer.document_end_id}
  [continuation] = generate(
    make_model(pretrained.config),
    jax.device_put(pretrained.params),
    [tokenizer.encode(prompt, allow_special=CHAT.value)],
    max_new_tokens=MAX_NEW_TOKENS.value,
    temperature=TEMPERATURE.value,
    top_k=TOP_K.value,
    top_p=TOP_P.value,
    seed=SEED.value,
    eos_id=None if IGNORE_EOS.value else sorted(ends),
    vocab_size=tokenizer.vocab_size,
  )
  sys.stdout.write(tokenizer.decode(continuation))
  if sys.stdout.isatty():
    sys.stdout.write("\n")


if __name__ == "__main__":
  command_line.run(main)
