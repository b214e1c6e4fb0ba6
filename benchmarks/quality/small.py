"""Students of the small setting: 3 of the 8 layers of `small_teacher`, 0.2 M tokens.

The teacher is the export of `small_teacher`, in `teacher/`.

Command: python -m benchmarks.quality.study --help
Hardware: 2 CPU cores.
"""

from __future__ import annotations

import pathlib

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  """Returns the defaults, EGAD's mechanisms included, with sizes for seconds on a CPU."""
  config = default.get_config()
  config.teacher.source = str(pathlib.Path(__file__).parent / "teacher")
  config.teacher.dtype = "float32"
  config.data.source = "runs/python_sources.jsonl"
  config.seq_len = 128
  config.batch_size = 8
  config.steps = 200
  config.log_every = 50
  config.trackers = ()
  config.student.layers = 3
  config.student.dtype = "float32"
  config.student.remat = "none"
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 10
  config.checkpoint.every_steps = 0
  config.eval.every_steps = 0
  config.eval.rows = 256
  config.eval.sample_tokens = 0
  return config
