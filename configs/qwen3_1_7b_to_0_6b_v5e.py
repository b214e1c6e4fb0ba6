"""Qwen3-1.7B into Qwen3-0.6B, with many tokens a chip on four v5e.

Command: python launch/run.py --config=configs/qwen3_1_7b_to_0_6b_v5e.py \\
           --workdir=runs/qwen3_1_7b_to_0_6b_v5e
Hardware: 4 chips of TPU v5e, or more: the mesh adapts; their number must divide batch_size.
Plan: python launch/plan.py --config=configs/qwen3_1_7b_to_0_6b_v5e.py --topology=v5e:2x2
Plan's result, with the settings that docs/planning.md names:
fits with 11.15 of 16 GiB at 57,344 tokens a chip; modelled 33,497 tokens/s, MFU
32 %, without communication. With batch_size=400 15.17 GiB at 102,400 tokens a chip.
Not run yet.
"""

from __future__ import annotations

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  """Returns `default` with the models, data and sizes of this run."""
  config = default.get_config()
  config.steps = 20_000
  # A plan does not read the models: it uses the architectures' names.
  config.teacher.source = "hf:Qwen/Qwen3-1.7B"
  config.teacher.architecture = "qwen3-1.7b"
  config.student.init = "source"
  config.student.source = "hf:Qwen/Qwen3-0.6B"
  config.student.architecture = "qwen3-0.6b"
  # The models differ in width: the last layer's features, through a trained map.
  config.branch.layers = "last"
  config.branch.projector = "linear"
  config.branch.weight = 1.0
  config.data.source = "data/*.jsonl"
  config.batch_size = 224
  config.seq_len = 1024
  return config
