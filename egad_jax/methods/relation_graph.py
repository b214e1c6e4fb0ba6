"""TRG: vanilla KD plus a graph of each row's hardest tokens; see `losses.relation_graph`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from egad_jax.losses.branch import Branch
from egad_jax.losses.features import init_projector, project, take_tokens
from egad_jax.losses.log_divergences import LogDivergence
from egad_jax.losses.probabilities import check_mask, promote
from egad_jax.losses.reductions import masked_sum
from egad_jax.losses.relation_graph import TERMS, RelationGraph, graph_terms
from egad_jax.losses.routing import gather_indices
from egad_jax.losses.temperature import Temperature
from egad_jax.methods.egad import make_egad
from egad_jax.methods.method import Context, Method
from egad_jax.types import Metrics, Params, Stats


def make_trg(
  *,
  divergence: str | LogDivergence = "forward_kl",
  divergence_options: Mapping[str, Any] | None = None,
  temperature: float = 1.0,
  ce_weight: float = 0.0,
  half_life: float = 1e6,
  hard_fraction: float = 0.5,
  graph: RelationGraph = RelationGraph(),  # noqa: B008 (frozen)
) -> Method:
  """Makes TRG (arXiv 2306.12442): vanilla KD on all tokens plus graph terms on hard ones.

  The token loss is that of `make_vanilla_kd`, bit for bit, and hard tokens are defined as in
  `make_egad`. The nodes of a row's graph are its hardest tokens, at most `graph.nodes` of them. No
  row reads another, so shards, micro-batches and chunks change nothing. Documents packed into one
  row share its graph, as the graph described in the notes spans the instances of a batch. The terms
  are averaged over taps. The method has no state of its own.

  Args:
    divergence: a key of `DIVERGENCES`, or a function, see `make_divergence`.
    divergence_options: hyper-parameters of the divergence; None for its defaults.
    temperature: T of the logit loss, > 0.
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    half_life: tokens after which a token counts half in the entropy distribution; > 0.
    hard_fraction: in (0, 1]; a token is hard when the position of its teacher entropy is at least
      1 - hard_fraction.
    graph: the graph and the weights of its terms; with all three weights 0 the method is vanilla KD
      and reads no taps.

  Raises:
    ValueError: an argument is out of range, or a name is unknown.

  >>> method = make_trg(graph=RelationGraph(nodes=16))
  >>> params = method.init_params(jax.random.key(0), student_dim=4, teacher_dim=8, num_taps=2)
  >>> params["kernel"].shape
  (2, 4, 8)
  """

  def init_params(key: jax.Array, *, student_dim: int, teacher_dim: int, num_taps: int) -> Params:
    if not graph.contextual_weight:
      return {}
    return init_projector(key, student_dim=student_dim, teacher_dim=teacher_dim, num_taps=num_taps)

  def feature_loss(
    params: Params,
    student_taps: jax.Array,
    teacher_taps: jax.Array,
    stats: Stats,
    mask: jax.Array,
    context: Context,
  ) -> tuple[jax.Array, Metrics]:
    mask = check_mask(mask, stats["hard"].shape)
    eligible = mask & (stats["hard"] > 0)
    capacity = min(graph.nodes, mask.shape[1])
    indices, valid = gather_indices(stats["teacher_entropy"], eligible, capacity=capacity)
    student, teacher = (
      promote(name, take_tokens(taps, indices, valid))
      for name, taps in (("student_taps", student_taps), ("teacher_taps", teacher_taps))
    )
    projected = project(params, student) if graph.contextual_weight else student
    in_taps = jnp.broadcast_to(valid, student.shape[:-1])
    terms = graph_terms(student, teacher, projected, in_taps, context.elapsed, graph)
    row_tokens = jnp.sum(mask, axis=1, dtype=jnp.float32)
    # A row's nodes stand for all its tokens, so their sum is divided by the share of tokens that
    # are expected to be nodes. That share follows from the mask alone, so sums over rows add up
    # however the batch is split.
    share = jnp.minimum(hard_fraction, graph.nodes / jnp.maximum(row_tokens, 1))
    sums = {
      name: masked_sum(jnp.mean(term, axis=0) / share[:, None], valid)
      for name, term in terms.items()
    }
    total = sum((weight * sums[name] for name, weight in graph.weights().items()), jnp.float32(0))
    count, hard = jnp.sum(row_tokens), jnp.sum(eligible, dtype=jnp.float32)
    metrics = {
      name: (jax.lax.stop_gradient(sums.get(name, jnp.float32(0))), count) for name in TERMS
    }
    return total, metrics | {"hard_overflow": (hard - jnp.sum(valid, dtype=jnp.float32), hard)}

  method = make_egad(
    divergence=divergence,
    divergence_options=divergence_options,
    ce_weight=ce_weight,
    curriculum=None,
    temperature=Temperature(kind="fixed", base=temperature),
    branch=Branch(hard_fraction=hard_fraction),
    half_life=half_life,
  )
  return method._replace(
    init_params=init_params, feature_loss=feature_loss if graph.weights() else None
  )
