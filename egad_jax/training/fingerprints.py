"""The fingerprints of all that a run reads: its weights, tokenizers and data."""

from __future__ import annotations

import hashlib

from egad_jax.data import cached_directory
from egad_jax.durability.identity import NUM_DIGITS, code_fingerprints, weights_fingerprint
from egad_jax.training.run import Run


def fingerprints(run: Run, *, starts: bool = True) -> dict[str, str]:
  """The fingerprints of a run's inputs and code.

  Args:
    run: from `build`.
    starts: whether it may begin with the student's first weights; a run that goes on from a
      checkpoint has them no longer, and no fingerprint of them.
  """
  pair, rows = run.pair, run.rows
  template = run.tokenizer.chat_template or ""
  found = {
    "teacher_weights": f"{pair.teacher_name}, drawn with seed {run.seed}"
    if pair.teacher_params is None
    else weights_fingerprint(pair.teacher_params),
    "tokenizer": run.tokenizer.fingerprint[:NUM_DIGITS],
    "teacher_tokenizer": run.teacher_tokenizer.fingerprint[:NUM_DIGITS],
    "chat_template": hashlib.sha256(template.encode()).hexdigest()[:NUM_DIGITS],
    "data": cached_directory.read_manifest(rows.directory)["corpus"][:NUM_DIGITS],
    "rows": rows.fingerprint[:NUM_DIGITS],
  }
  if starts:
    found["student_weights"] = (
      f"drawn with seed {run.seed}"
      if pair.student_params is None
      else weights_fingerprint(pair.student_params)
    )
  return found | code_fingerprints()
