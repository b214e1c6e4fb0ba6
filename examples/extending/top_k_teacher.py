"""A teacher source that gives the likeliest tokens alone, as a cache or a server of one would.

python -m examples.extending.top_k_teacher
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from egad_jax.data.batches import AnyBatch
from egad_jax.from_config import Extensions
from egad_jax.head.logits import soft_capped
from egad_jax.losses import top_k_teacher
from egad_jax.teachers import ColocatedTeacher, PlacedTeacher, Teacher, TopK
from egad_jax.training.experiment import StudentAndTeacher
from egad_jax.types import Params
from examples.extending.short_run import short_run, show


@dataclasses.dataclass(frozen=True)
class TopKTeacher:
  """Reduces another teacher's outputs to the k likeliest tokens; a `Teacher`.

  It makes the logits of a whole batch, so it suits small models. A source that reads the tokens
  from elsewhere would add them to the batches, in `attach` of what its `place` returns.

  Attributes:
    own: the teacher whose outputs are reduced.
    k: number of tokens kept, in [1, vocab].
    entropy: whether the outputs hold the true entropy, as they do where the source was asked for
      it; if not, the training uses that of the kept tokens and an even tail.
  """

  own: ColocatedTeacher
  k: int
  entropy: bool = True

  @property
  def meshes(self) -> tuple[jax.sharding.Mesh, ...]:
    """The meshes of `own`."""
    return self.own.meshes

  def abstract_params(self) -> Params:
    """The parameters of `own`."""
    return self.own.abstract_params()

  def abstract_attached(self, batch: AnyBatch) -> Any:
    """What `own` attaches."""
    return self.own.abstract_attached(batch)

  def place(self) -> PlacedTeacher:
    """Puts the parameters on the devices."""
    return self.own.place()

  def outputs(self, params: Params, batch: AnyBatch, *, with_taps: bool = False) -> TopK:
    """Returns the tokens' ids and log-probabilities, without taps; see `Teacher.outputs`."""
    del with_taps
    hidden, unembedding, _ = self.own.outputs(params, batch)
    logits = jnp.einsum("bsd,vd->bsv", hidden, unembedding, preferred_element_type=jnp.float32)
    kept = top_k_teacher(soft_capped(logits, self.own.model.config.logit_soft_cap), self.k)
    return kept if self.entropy else kept._replace(entropy=None)


def make_teacher(config: Any, models: StudentAndTeacher, meshes: tuple[Any, Any]) -> Teacher:
  """The 20 likeliest tokens of the config's teacher, on the student's devices."""
  own = ColocatedTeacher(
    models.teacher, meshes[0], models.teacher_params, models.teacher_dtype, seed=config.seed
  )
  return TopKTeacher(own, k=20)


EXTENSIONS = Extensions(teacher=make_teacher)

if __name__ == "__main__":
  # Without a feature loss, which reads layers that this source does not give.
  show(short_run(EXTENSIONS, method="egad", branch__weight=0.0))
