"""Qwen3-30B-A3B, a mixture of experts, into Qwen3-1.7B.

Command: python launch/run.py --config=configs/qwen3_30b_a3b_to_1_7b_v5p.py \\
           --workdir=runs/qwen3_30b_a3b_to_1_7b_v5p
Hardware: 16 chips of TPU v5p; the mesh adapts to others, of which there are a multiple of four,
if their number divides batch_size.
Plan: python launch/plan.py --config=configs/qwen3_30b_a3b_to_1_7b_v5p.py --topology=v5p:2x2x4
Plan's result: fits with 34.30 of 95 GiB; modelled 198,166 tokens/s, MFU 48 %, without
communication.
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
  config.teacher.source = "hf:Qwen/Qwen3-30B-A3B"
  config.teacher.architecture = "qwen3-30b-a3b"
  config.student.init = "source"
  config.student.source = "hf:Qwen/Qwen3-1.7B"
  config.student.architecture = "qwen3-1.7b"
  # The models differ in width: the last layer's features, through a trained map.
  config.branch.layers = "last"
  config.branch.projector = "linear"
  config.branch.weight = 1.0
  config.data.source = "data/*.jsonl"
  config.batch_size = 256
  config.seq_len = 2048
  # Parameters in four parts, which leaves most of a chip's memory free. With sixteen the compiler
  # cuts the products with weights of this width into slices of 128, which take longer in its model.
  config.mesh.data = -1
  config.mesh.fsdp = 4
  return config
