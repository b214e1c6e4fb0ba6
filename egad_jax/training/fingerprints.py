"""Fingerprints of everything that a run reads: weights, tokenizers, data and code."""

from __future__ import annotations

import hashlib

from egad_jax.data import cached_directory
from egad_jax.durability.identity import NUM_DIGITS, code_fingerprints, weights_fingerprint
from egad_jax.training.experiment import Experiment


def fingerprints(
  experiment: Experiment, *, starts: bool = True, teacher_weights: str | None = None
) -> dict[str, str]:
  """The fingerprints of a run's inputs and code, as {name: text}.

  Args:
    experiment: an experiment from `build`.
    starts: whether the run may start from the student's initial weights. A resumed run takes its
      weights from a checkpoint, so that "student_weights" is left out if False.
    teacher_weights: the fingerprint of the teacher's weights, if another experiment has it; None to
      make it, for which all weights are read.
  """
  models, rows = experiment.models, experiment.rows
  template = experiment.tokenizers.student.chat_template or ""
  found = {
    "teacher_weights": teacher_weights or _teacher_weights(experiment),
    "tokenizer": experiment.tokenizers.student.fingerprint[:NUM_DIGITS],
    "teacher_tokenizer": experiment.tokenizers.teacher.fingerprint[:NUM_DIGITS],
    "chat_template": hashlib.sha256(template.encode()).hexdigest()[:NUM_DIGITS],
    "data": cached_directory.read_manifest(rows.directory)["corpus"][:NUM_DIGITS],
    "rows": rows.fingerprint[:NUM_DIGITS],
  }
  if starts:
    found["student_weights"] = (
      f"drawn with seed {experiment.seed}"
      if models.student_params is None
      else weights_fingerprint(models.student_params)
    )
  return found | code_fingerprints()


def _teacher_weights(experiment: Experiment) -> str:
  models = experiment.models
  if models.teacher_params is None:
    return f"{models.teacher_name}, drawn with seed {experiment.seed}"
  return weights_fingerprint(models.teacher_params)
