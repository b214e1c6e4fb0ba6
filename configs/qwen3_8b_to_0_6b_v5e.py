"""Qwen3-8B into Qwen3-0.6B.

Command: python launch/run.py --config=configs/qwen3_8b_to_0_6b_v5e.py \\
           --workdir=runs/qwen3_8b_to_0_6b_v5e
Hardware: 16 chips of TPU v5e; the mesh adapts to others whose number divides batch_size.
Plan: python launch/plan.py --config=configs/qwen3_8b_to_0_6b_v5e.py --topology=v5e:4x4
Plan's result, with the settings that docs/planning.md names:
fits with 5.53 of 16 GiB; modelled 60,577 tokens/s, MFU 37 %, without communication.
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
  config.teacher.source = "hf:Qwen/Qwen3-8B"
  config.teacher.architecture = "qwen3-8b"
  config.student.init = "source"
  config.student.source = "hf:Qwen/Qwen3-0.6B"
  config.student.architecture = "qwen3-0.6b"
  # The models differ in width: the last layer's features, through a trained map.
  config.branch.layers = "last"
  config.branch.projector = "linear"
  config.branch.weight = 1.0
  config.data.source = "data/*.jsonl"
  config.batch_size = 64
  config.seq_len = 1024
  return config
