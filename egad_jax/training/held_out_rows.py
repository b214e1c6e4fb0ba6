"""What a trained student has on each held-out row, so that students can be compared in pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from egad_jax import processes
from egad_jax.durability import workdir as files
from egad_jax.durability.workdir import Workdir
from egad_jax.training.compiled_run import CompiledRun
from egad_jax.training.objective import loss_mask
from egad_jax.training.state import TrainState

NUM_GROUPS = 4


def write(runs: Sequence[tuple[CompiledRun, Workdir, Callable[[], TrainState]]]) -> None:
  """Writes held_out_rows.json into the workdir of each run; see docs/files.md.

  Args:
    runs: for each run, beside each other, its programs, its workdir and a function that returns its
      state on the devices. All processes call this together, and the first one writes.
  """
  if not runs:
    return
  lead = runs[0][0]
  parts: list[list[dict[str, np.ndarray]]] = [[] for _ in runs]
  for batch in lead.attached_held_out():
    mask, numbers = processes.fetch((loss_mask(batch), batch.row_numbers))
    for (compiled, _, state), part in zip(runs, parts, strict=True):
      stats = processes.fetch(compiled.statistics_of(state(), batch))
      part.append({"mask": mask, "numbers": numbers} | {name: stats[name] for name in _READ})
  for (_, workdir, state), part in zip(runs, parts, strict=True):
    joined = {name: np.concatenate([p[name] for p in part]) for name in part[0]}
    step = int(processes.fetch(state().step))
    workdir.write_json(files.HELD_OUT_ROWS, {"step": step} | by_row(**joined))


_READ = ("teacher_entropy", "forward_kl", "cross_entropy")


def by_row(
  mask: np.ndarray,
  numbers: np.ndarray,
  teacher_entropy: np.ndarray,
  forward_kl: np.ndarray,
  cross_entropy: np.ndarray,
) -> dict[str, Any]:
  """Sums over the tokens of each row, and over its tokens in each quarter of teacher entropy.

  Args:
    mask: bool [rows, seq], the tokens (for paired rows, the span pairs) that count.
    numbers: int [rows], each row's number in its split; rows without a token are left out.
    teacher_entropy: float [rows, seq], nats.
    forward_kl: float [rows, seq], nats.
    cross_entropy: float [rows, seq], nats.

  Returns:
    "rows", "tokens", "forward_kl" and "cross_entropy", lists with an entry a row; "edges", the
    three quartiles of teacher entropy over all tokens; "quarter_tokens" and "quarter_forward_kl",
    lists of four sums for each row, from the lowest entropy to the highest.
  """
  kept = mask.any(axis=1)
  mask, numbers = mask[kept], numbers[kept]
  entropy, kl, ce = (
    x[kept].astype(np.float64) for x in (teacher_entropy, forward_kl, cross_entropy)
  )
  edges = np.quantile(entropy[mask], (0.25, 0.5, 0.75)) if mask.any() else np.zeros(3)
  quarter = np.searchsorted(edges, entropy, side="right")
  inside = mask[..., None] & (quarter[..., None] == np.arange(NUM_GROUPS))
  total = lambda x: np.sum(x, axis=1, where=mask)
  return {
    "rows": numbers.tolist(),
    "tokens": mask.sum(axis=1).tolist(),
    "forward_kl": total(kl).tolist(),
    "cross_entropy": total(ce).tolist(),
    "edges": edges.tolist(),
    "quarter_tokens": inside.sum(axis=1).tolist(),
    "quarter_forward_kl": np.sum(np.where(inside, kl[..., None], 0), axis=1).tolist(),
  }
