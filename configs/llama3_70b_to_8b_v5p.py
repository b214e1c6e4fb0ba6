"""Llama-3.1-70B-Instruct into Llama-3.1-8B-Instruct.

Command: python launch/run.py --config=configs/llama3_70b_to_8b_v5p.py \\
           --workdir=runs/llama3_70b_to_8b_v5p
Hardware: 32 chips of TPU v5p; the mesh adapts to others whose number divides batch_size.
Plan: python launch/plan.py --config=configs/llama3_70b_to_8b_v5p.py --topology=v5p:2x4x4
Plan's result, with the settings that docs/planning.md names:
fits with 18.52 of 95 GiB; modelled 32,303 tokens/s, MFU 41 %, without communication.
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
  config.teacher.source = "hf:meta-llama/Llama-3.1-70B-Instruct"
  config.teacher.architecture = "llama-3.1-70b"
  config.student.init = "source"
  config.student.source = "hf:meta-llama/Llama-3.1-8B-Instruct"
  config.student.architecture = "llama-3.1-8b"
  # The models differ in width: the last layer's features, through a trained map.
  config.branch.layers = "last"
  config.branch.projector = "linear"
  config.branch.weight = 1.0
  config.data.source = "data/*.jsonl"
  config.batch_size = 256
  config.seq_len = 2048
  return config
