"""Continues a prompt.

    python launch/generate.py --model=runs/quickstart --prompt="The capital of France is"

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

from egad_jax import progress
from egad_jax.errors import InputError
from launch import accelerators, command_line

MODEL = command_line.required(
  "model",
  "A workdir (its export), Hugging Face directory, GGUF file, hf:NAME or python:PACKAGE/FILE.",
)
TOKENIZER = flags.DEFINE_string(
  "tokenizer", "", "Where its tokenizer is, like --model; the model itself if empty."
)
PROMPT = command_line.required("prompt", "Text to continue; with --chat, the user's message.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "At most so many tokens are added.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 is greedy.")
TOP_K = flags.DEFINE_integer("top_k", None, "Sample among the k most probable tokens.")
TOP_P = flags.DEFINE_float("top_p", None, "Sample among the most probable tokens of this sum.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the random choices.")
IGNORE_EOS = flags.DEFINE_bool("ignore_eos", False, "Go on after an end token.")
CHAT = flags.DEFINE_bool("chat", False, "Put the prompt into the model's chat template.")


def model_of(source: str) -> str:
  """The model that `--model` means: a workdir means its export.

  Raises:
    InputError: a workdir has no export yet, or a checkpoint is given.
  """
  try:
    path = pathlib.Path(source).expanduser()
    is_checkpoint = path.name.isdigit() and path.parent.name == "checkpoints" and path.is_dir()
    workdir = path.parent.parent if is_checkpoint else path
    is_workdir = (workdir / "checkpoints").is_dir() and (workdir / "config.json").is_file()
  except (OSError, RuntimeError, ValueError):  # No name of a path: what reads it says so.
    return source
  if not is_workdir:
    return source
  if not is_checkpoint and (path / "export" / "config.json").is_file():
    return str(path / "export")
  what = "a checkpoint" if is_checkpoint else "a workdir without export/, its run has not ended"
  raise InputError(
    f"--model {source} is {what}. Export it first: launch/export.py --checkpoint={source} "
    "--output=DIR, then --model=DIR."
  )


def main() -> None:
  """Reads the model, continues the prompt and prints the continuation."""
  accelerators.import_jax()
  import jax

  from egad_jax import device_arrays
  from egad_jax.data.tokenizer import Tokenizer
  from egad_jax.models.generation import generate
  from egad_jax.models.load import load_pretrained
  from egad_jax.models.model import make_model

  accelerators.require_devices()
  model = model_of(MODEL.value)
  with progress.phase(f"reading the tokenizer of {model}"):
    tokenizer = Tokenizer.from_source(TOKENIZER.value or model)
  text = command_line.text(PROMPT)
  if CHAT.value:
    chat = tokenizer.apply_chat([{"role": "user", "content": text}], add_generation_prompt=True)
    prompt = tokenizer.encode(chat, allow_special=True)
  else:
    prompt = tokenizer.encode_prompt(text)
  with progress.phase(f"reading {model}"):
    pretrained = load_pretrained(model, tokenizer_size=tokenizer.vocab_size)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = device_arrays.put(pretrained.params, jax.tree.map(lambda _: device, pretrained.params))
  with progress.phase("generating"):
    [continuation] = generate(
      make_model(pretrained.config),
      params,
      [prompt],
      max_new_tokens=MAX_NEW_TOKENS.value,
      temperature=TEMPERATURE.value,
      top_k=TOP_K.value,
      top_p=TOP_P.value,
      seed=SEED.value,
      eos_id=None if IGNORE_EOS.value else pretrained.generation.ends(tokenizer),
      vocab_size=tokenizer.vocab_size,
    )
  command_line.print_result("")
  # Data, not messages: UTF-8 whatever the terminal's encoding.
  sys.stdout.buffer.write(tokenizer.decode_continuation(prompt, continuation).encode())
  if sys.stdout.isatty():
    sys.stdout.buffer.write(b"\n")
  sys.stdout.buffer.flush()


if __name__ == "__main__":
  command_line.run(main)
