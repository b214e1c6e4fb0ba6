"""The teacher of the small setting: 8 layers, trained on Python's source from random values.

Command: python -m benchmarks.quality.python_sources runs/python_sources.jsonl
         python launch/run.py --config=benchmarks/quality/small_teacher.py \
           --workdir=runs/small_teacher
Hardware: 2 CPU cores.

A run needs a teacher. This one names the tiny random one, and a thousandfold weight of the labels
makes its share of the gradient negligible.
"""

from __future__ import annotations

import ml_collections

from configs import tiny


def get_config() -> ml_collections.ConfigDict:
  """Returns a config that trains a language model of almost single bytes."""
  config = tiny.get_config()
  config.method = "vanilla_kd"
  config.loss.ce_weight = 1000.0
  config.data.source = "runs/python_sources.jsonl"
  config.data.tokenizer = "train:272"
  config.seq_len = 128
  config.batch_size = 16
  config.steps = 2500
  config.log_every = 50
  config.student.layers = 8
  config.student.dim = 64
  config.student.num_heads = 4
  config.student.num_kv_heads = 2
  config.student.mlp_dim = 192
  config.student.remat = "none"
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.clip_norm = 0.0  # The weight of the labels would have every gradient clipped.
  config.checkpoint.every_steps = 0
  config.eval.every_steps = 0
  config.eval.rows = 256
  config.export.dtype = "bfloat16"  # The repository holds it.
  config.eval.sample_tokens = 64
  return config
