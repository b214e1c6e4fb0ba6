"""Checks, before any step is made, that the prompts of a config can be continued."""

from __future__ import annotations

from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.from_config.values import Config
from egad_jax.training.experiment import StudentAndTeacher


def check_prompts(
  config: Config, models: StudentAndTeacher, tokenizers: tuple[Tokenizer, Tokenizer]
) -> None:
  """Checks that student and teacher have room for every prompt and its continuation.

  Raises:
    InputError: a prompt is empty or too long for a model's positions.
  """
  new = config.eval.sample_tokens
  for prompt in config.eval.prompts if new else ():
    for who, model, tokenizer in zip(
      ("student", "teacher"), (models.student, models.teacher), tokenizers, strict=True
    ):
      length, room = len(tokenizer.encode_prompt(prompt)), model.config.max_seq_len
      if not length:
        raise InputError(
          f"config.eval.prompts: a prompt must have at least one token; {prompt!r} has none. Leave "
          "it out, or set config.eval.sample_tokens=0 for no samples."
        )
      if length + new > room:
        raise InputError(
          f"config.eval.prompts: a prompt ({length} tokens) and config.eval.sample_tokens ({new}) "
          f"must fit into the {who}'s {room} positions; shorten {prompt[:60]!r} or lower the other."
        )
