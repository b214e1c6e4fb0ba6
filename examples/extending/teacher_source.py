"""A teacher source of one's own: a Flax NNX module in the place of a decoder of this package.

python -m examples.extending.teacher_source
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from egad_jax.from_config import Extensions
from egad_jax.models.nnx_model import nnx_model
from egad_jax.teachers import ColocatedTeacher, Teacher
from egad_jax.training.experiment import StudentAndTeacher
from examples.extending.short_run import short_run, show


class Bigram(nnx.Module):
  """Predicts the next token from the present one alone."""

  def __init__(self, vocab_size: int, dim: int, rngs: nnx.Rngs):
    self.embed = nnx.Embed(vocab_size, dim, rngs=rngs)
    self.mix = nnx.Linear(dim, dim, rngs=rngs)
    self.unembed = nnx.Param(0.5 * jax.random.normal(rngs.params(), (vocab_size, dim)))

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Hidden states [batch, seq, dim] of tokens [batch, seq]."""
    return nnx.tanh(self.mix(self.embed(tokens)))


def make_teacher(config: Any, models: StudentAndTeacher, meshes: tuple[Any, Any]) -> Teacher:
  """A random bigram model of the config's vocabulary, on the student's devices."""
  sizes = dataclasses.replace(models.teacher.config, dim=16)
  model, params = nnx_model(
    Bigram(sizes.vocab_size, sizes.dim, nnx.Rngs(config.seed)),
    sizes,
    hidden=lambda module, tokens, positions, segment_ids: module(tokens),
    unembedding=lambda params: params["unembed"],
  )
  return ColocatedTeacher(model, meshes[0], params)


EXTENSIONS = Extensions(teacher=make_teacher)

if __name__ == "__main__":
  show(short_run(EXTENSIONS, method="vanilla_kd"))
