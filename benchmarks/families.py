"""The train step of every family of models, compiled for TPUs that need not be there.

Command: python -m benchmarks.families --topology=v5e:2x2 [--families=llama,gemma2]

The teacher is a published model of the family, the student some of its layers. It takes minutes a
family: each step is compiled as `launch/plan.py` does it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from benchmarks.family_models import MODELS
from benchmarks.markdown import table
from egad_jax.errors import InputError
from launch import command_line

CONFIG = command_line.define_config(default="configs/default.py")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "CHIP:SHAPE.")
FAMILIES = flags.DEFINE_list("families", [], "Values of model_type; none: all.")
LAYERS = flags.DEFINE_integer("layers", 4, "Layers of the student.", lower_bound=1)
# Teachers that do not fit four chips of v5e whole, and the number of layers that is planned.
_CUT = {"qwen3_moe": 12}
_STUDENT_LAYERS = {"qwen3_moe": 2}
_GIB = 2**30
_HEADER = ("family", "teacher and student", "a chip, GiB", "step, s", "FLOPs over the least")
_HEADER += ("attention", "head")


def attention_of(kernels: Mapping[str, int], layers: Mapping[str, int]) -> str:
  """Which attention the compiled step has: "splash" where every layer's is the kernel.

  Args:
    kernels: calls of kernels in a step, from `Plan.kernels`.
    layers: number of layers of the "teacher" and the "student".
  """
  forward = sum(calls for name, calls in kernels.items() if "_fwd" in name)
  backward = sum(calls for name, calls in kernels.items() if "_dkv" in name)
  # The student's forward pass runs twice: its layers are computed again in the backward pass.
  if backward == layers["student"] and forward == layers["teacher"] + 2 * layers["student"]:
    return "splash"
  return f"splash in {forward} and {backward} calls" if forward or backward else "xla"


def main() -> None:
  """Prints the table."""
  names = FAMILIES.value or list(MODELS)
  if unknown := set(names) - set(MODELS):
    raise InputError(f"--families: no {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}.")
  config = command_line.config(CONFIG)
  config.batch_size, config.seq_len = 16, 1024
  from egad_jax.planning.environment import prepare_environment

  prepare_environment(TOPOLOGY.value)
  from egad_jax.chips import topology
  from egad_jax.planning.plan import devices_of

  slice_ = topology(TOPOLOGY.value)
  devices = devices_of(slice_)
  rows = []
  for name in names:
    rows.append(_row(name, config, slice_, devices))
    print(table(_HEADER, rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
  print(table(_HEADER, rows))


def _row(name: str, config: Any, slice_: Any, devices: Any) -> tuple[str, ...]:
  from egad_jax import from_config
  from egad_jax.models import family
  from egad_jax.models.architectures import ARCHITECTURES
  from egad_jax.planning.plan import plan

  model, keys = MODELS[name]
  shape = family.config_from_hf(model, keys | {"model_type": name})
  cut = _CUT.get(name, shape.num_layers)
  # A plan reads no files: it takes the architecture from this table.
  ARCHITECTURES[name] = dataclasses.replace(shape, num_layers=cut)
  config.teacher.source = f"hf:{model}"
  config.teacher.architecture = name
  config.student.layers = _STUDENT_LAYERS.get(name, LAYERS.value)
  made = plan(from_config.plan_run(config, devices), slice_, config=model)
  of = f" of {shape.num_layers}" if cut != shape.num_layers else ""
  layers = {"teacher": cut, "student": config.student.layers}
  return (
    name,
    f"{model}, {cut}{of} layers into {config.student.layers}",
    f"{made.total_bytes / _GIB:.2f}" + ("" if made.fits else ", does not fit"),
    f"{made.modelled_seconds:.3f}" if made.modelled_seconds else "-",
    f"{made.flops / made.flops_minimum:.2f}",
    attention_of(made.kernels, layers),
    "kernels" if "logits_gradient" in made.kernels else "xla",
  )


if __name__ == "__main__":
  command_line.run(main)
