"""Students of a real teacher on a CPU: 13 of SmolLM2-135M-Instruct's 30 layers, 20 thousand tokens.

Command: python -m benchmarks.quality.study --config=benchmarks/quality/smollm2_cpu.py \
           --students=benchmarks/quality/students/smollm2_cpu.jsonl --workdir=runs/smollm2_cpu \
           --other=runs/python_sources.jsonl --learning_rates=1e-3,2e-3,4e-3 --seeds=3 --rows=48 \
           --output=benchmarks/quality/results/smollm2_cpu.jsonl
Hardware: 2 CPU cores.
"""

from __future__ import annotations

import ml_collections

from benchmarks.quality import small
from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
  """Returns the defaults, EGAD's mechanisms included, with the quickstart's pair of models."""
  config = small.get_config()
  config.teacher.source = quickstart.get_config().teacher.source
  config.student.layers = 13
  config.data.source = "python_docs"
  config.data.held_out_fraction = 0.1
  config.seq_len = 128
  config.batch_size = 4
  config.steps = 40
  config.log_every = 8
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 5
  config.checkpoint.every_seconds = 0.0  # A sweep takes minutes, and its states are gigabytes.
  # The sweep itself evaluates on few rows; the study's --rows says on how many it measures.
  config.eval.rows = 8
  return config
