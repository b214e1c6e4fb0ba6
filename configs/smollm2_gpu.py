"""SmolLM2-1.7B-Instruct into SmolLM2-135M-Instruct on GPUs.

Command: python launch/run.py --config=configs/smollm2_gpu.py --workdir=runs/smollm2_gpu
Hardware: one GPU of 80 GB, or more: the mesh adapts; their number must divide batch_size.
Plan: python launch/plan.py --config=configs/smollm2_gpu.py --topology=v5e:2x2
Plan's result, with the settings that docs/planning.md names:
Programs for GPUs compile only on a GPU, so this is the plan for four v5e chips: fits with
3.93 of 16 GiB each; modelled 54,057 tokens/s, MFU 32 %, without communication. Not run yet.
"""

from __future__ import annotations

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  """Returns `default` with the models, data and sizes of this run."""
  config = default.get_config()
  config.steps = 20_000
  # A plan does not read the models: it uses the architectures' names.
  config.teacher.source = "hf:HuggingFaceTB/SmolLM2-1.7B-Instruct"
  config.teacher.architecture = "smollm2-1.7b"
  config.student.init = "source"
  config.student.source = "hf:HuggingFaceTB/SmolLM2-135M-Instruct"
  config.student.architecture = "smollm2-135m"
  # The models differ in width: the last layer's features, through a trained map.
  config.branch.layers = "last"
  config.branch.projector = "linear"
  config.branch.weight = 1.0
  config.data.source = "data/*.jsonl"
  config.batch_size = 32
  config.seq_len = 2048
  return config
