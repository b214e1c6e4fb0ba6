"""A run of seconds on any CPU, with random weights and a small vocabulary, for tests and trials.

Command: python launch/run.py --config=configs/tiny.py --workdir=runs/tiny
Hardware: any CPU. Nothing is downloaded.
"""

from __future__ import annotations

import ml_collections

from configs import egad_abstract


def get_config() -> ml_collections.ConfigDict:
  """Returns `egad_abstract`, which has all three mechanisms on, with tiny models."""
  config = egad_abstract.get_config()
  config.steps = 20
  config.batch_size = 8
  config.seq_len = 64
  config.log_every = 1
  config.teacher.source = "random:tiny"
  config.teacher.dtype = "float32"
  config.student.init = "random"
  config.student.layers = 2
  config.student.dim = 32
  config.student.num_heads = 2
  config.student.num_kv_heads = 1
  config.student.mlp_dim = 64
  config.student.dtype = "float32"
  config.data.tokenizer = "train:512"
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 2
  config.checkpoint.every_steps = 5
  config.eval.every_steps = 10
  config.eval.rows = 16
  config.eval.sample_tokens = 8
  return config
