"""Warns of skipped steps; after too many in a row, saves the batch and stops the run."""

from __future__ import annotations

import json
import logging
import operator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from egad_jax import processes
from egad_jax.data.batches import AnyBatch, Batch
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.durability.workdir import Workdir
from egad_jax.files.storage import finite_or_none, write_text
from egad_jax.training.experiment import Experiment

_FIELDS = ("tokens", "labels", "positions", "segment_ids", "mask")
_LOG = logging.getLogger(__name__)


def why_skipped(values: Mapping[str, float]) -> str:
  """Returns why a step was skipped, in words, from the averages of its metrics.

  >>> why_skipped({"finite": 0.0, "loss": float("nan"), "grad_norm": 2.0})
  'not finite: loss nan, gradient norm 2'
  >>> why_skipped({"finite": 1.0, "loss": 2.0, "grad_norm": 9.5, "loss_limit": 2.5,
  ...              "grad_norm_limit": 3.0})
  'a spike: loss 2 (limit 2.5), gradient norm 9.5 (limit 3)'
  """
  names = {"loss": "loss", "grad_norm": "gradient norm"}
  if not values["finite"]:
    return "not finite: " + ", ".join(f"{name} {values[key]:.4g}" for key, name in names.items())
  return "a spike: " + ", ".join(
    f"{name} {values[key]:.4g} (limit {values[f'{key}_limit']:.4g})" for key, name in names.items()
  )


def note_skipped(
  experiment: Experiment,
  batch: AnyBatch | None,
  workdir: Workdir,
  step: int,
  values: Mapping[str, float],
  *,
  max_skipped: int,
  saved_step: int | None,
) -> None:
  """Warns of a skipped step; saves its batch and stops the run if it is one too many in a row.

  Args:
    experiment: the experiment being run.
    batch: the step's batch on the devices; None to ask the batch source for it again, which a
      source that reads the state cannot answer: the state is another by now.
    workdir: where the batch is saved.
    step: number of the skipped step, counted from 1.
    values: averages of the step's metrics, as scalars by name.
    max_skipped: skipped steps in a row that end the run.
    saved_step: step of the last checkpoint; None if there is none.

  Raises:
    FloatingPointError: `max_skipped` steps in a row were skipped.
  """
  why, in_a_row = why_skipped(values), int(values["skipped_in_a_row"])
  _LOG.warning(
    "step %d is %s; update withheld, %d in a row (guard.max_skipped: %d)",
    step,
    why,
    in_a_row,
    max_skipped,
  )
  if in_a_row < max_skipped:
    return
  path = workdir / f"bad_batch_{step}.json"
  on_host = None if batch is None else processes.fetch(batch)  # All processes take part.
  try:
    if workdir.writes:
      path = workdir / workdir.free_name(path.name)
      with workdir.writing(path.name):
        save_bad_batch(path, experiment, on_host, step, values)
    saved = f"Its batch is in {path}."
  except OSError as error:  # A full disk must not hide why the run stops.
    saved = f"Its batch could not be saved ({error})."
  kept = "there is none yet" if saved_step is None else f"the last is of step {saved_step}"
  remedy = "raise guard.spike_sigmas" if values["finite"] else "lower optimizer.learning_rate"
  raise FloatingPointError(
    f"step {step} is {why}; it is number {in_a_row} in a row that was skipped (guard.max_skipped). "
    f"{saved} No checkpoint holds anything of it: {kept}. The same command stops here again unless "
    f"you mend the data, {remedy} (with --force) or raise guard.max_skipped."
  )


def save_bad_batch(
  path: epath.Path,
  experiment: Experiment,
  batch: AnyBatch | None,
  step: int,
  values: Mapping[str, float],
) -> None:
  """Writes the batch of a step, with the rows of all processes, as JSON.

  The file appears whole, by a rename. It is an object with the keys step, batch (the batch's number
  from 0), why, loss, grad_norm and rows. Each row, on a line of its own, has its number, its text
  and the fields of a `Batch`; a row of a `PairedBatch` has text and fields once for the student and
  once for the teacher.

  Args:
    path: the file to write.
    experiment: the experiment being run.
    batch: the step's batch on the host; None to ask the batch source for it again.
    step: number of the step, counted from 1.
    values: averages of the step's metrics, as scalars by name.
  """
  size = experiment.optimization.batch_size
  if batch is None:
    batch = experiment.batch_source.batch(step - 1, None)
  head = {
    **{"step": step, "batch": step - 1, "why": why_skipped(values)},
    **{key: values[key] for key in ("loss", "grad_norm")},
  }
  rows = [
    json.dumps(_row(jax.tree.map(operator.itemgetter(i), batch), experiment), ensure_ascii=False)
    for i in range(size)
  ]
  start = json.dumps(finite_or_none(head))[:-1]
  write_text(path, f'{start}, "rows": [\n' + ",\n".join(rows) + "\n]}\n")


def _row(row: AnyBatch, experiment: Experiment) -> dict[str, Any]:
  number = {"row_number": int(row.row_numbers)}
  if isinstance(row, Batch):
    return number | _side(row, experiment.tokenizers.student)
  return number | {
    "student": _side(row.student, experiment.tokenizers.student),
    "teacher": _side(row.teacher, experiment.tokenizers.teacher),
    "student_spans": row.student_spans.tolist(),
    "teacher_spans": row.teacher_spans.tolist(),
  }


def _side(row: Batch, tokenizer: Tokenizer) -> dict[str, Any]:
  text = tokenizer.decode(row.tokens[row.segment_ids > 0].tolist())
  fields = {name: np.asarray(getattr(row, name), np.int32).tolist() for name in _FIELDS}
  return {"text": text, **fields}
