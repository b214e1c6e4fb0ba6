"""Measures exported students of one teacher on rows of a held-out text."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from egad_jax import from_config
from egad_jax.models.load import load_pretrained
from egad_jax.training.compiled_run import CompiledRun
from egad_jax.training.held_out_rows import by_row
from egad_jax.training.objective import loss_mask

_AVERAGED = ("forward_kl", "cross_entropy", "agreement", "student_entropy", "teacher_entropy")


class Scorer:
  """Compares students that have one architecture with their teacher, on the rows of a config.

  Args:
    config: a run's config. Its teacher, student and held-out rows are read, its method is not.
    workdir: directory for prepared rows.
    parts: name -> (start, stop), shares of the held-out rows in the order in which a run reads
      them.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    parts: dict[str, tuple[float, float]],
  ):
    config = ml_collections.ConfigDict(config.to_dict())
    config.method = "vanilla_kd"
    self._run = CompiledRun(from_config.build(config.lock(), workdir))
    self._state = self._run.experiment.first_state()
    # The teacher's outputs are computed once for all students.
    self._held_out = list(self._run.attached_held_out())
    self._parts = parts

  def scores(self, export: pathlib.Path) -> dict[str, dict[str, float]]:
    """Returns {part: averages over its tokens} of the student in an export.

    The averages are in nats, "agreement" is a share of the tokens, and "forward_kl_q1" to
    "forward_kl_q4" are those of the quarters of teacher entropy, from the lowest.
    """
    params = jax.tree.map(
      lambda old, new: jax.device_put(np.asarray(new, old.dtype), old.sharding),
      self._state.trainable["student"],
      load_pretrained(str(export)).params,
    )
    state = self._state._replace(trainable=self._state.trainable | {"student": params})
    batches = list(self._of_batches(state))
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    rows = len(joined["mask"])
    found = {}
    for part, (start, stop) in self._parts.items():
      inside = slice(round(start * rows), round(stop * rows))
      found[part] = _averages({name: x[inside] for name, x in joined.items()})
    return found

  def _of_batches(self, state: Any) -> Iterator[dict[str, np.ndarray]]:
    for batch in self._held_out:
      stats = self._run.statistics_of(state, batch)
      mask = np.asarray(loss_mask(batch))
      kept = mask.any(axis=1)
      arrays = {"mask": mask} | {name: np.asarray(stats[name], np.float64) for name in _AVERAGED}
      yield {name: x[kept] for name, x in arrays.items()}


def _averages(stats: dict[str, np.ndarray]) -> dict[str, float]:
  mask = stats["mask"]
  names = ("mask", "teacher_entropy", "forward_kl", "cross_entropy")
  sums = by_row(numbers=np.arange(len(mask)), **{name: stats[name] for name in names})
  tokens, kl = (np.sum(sums[f"quarter_{name}"], axis=0) for name in ("tokens", "forward_kl"))
  return {
    "tokens": int(mask.sum()),
    **{name: round(float(stats[name].mean(where=mask)), 6) for name in _AVERAGED},
    "teacher_entropy_median": round(float(np.median(stats["teacher_entropy"][mask])), 4),
    **{f"forward_kl_q{i + 1}": round(float(kl[i] / tokens[i]), 6) for i in range(len(kl))},
  }
