"""Plans a run: whether it fits some TPUs, and how long a step takes there at best.

    python launch/plan.py --config=configs/qwen3_8b_to_0_6b_v5e.py --topology=v5e:4x4

Compiles the train step for that slice of TPUs on any CPU, without weights, tokenizer or data.
Exit code 3 when it does not fit; the report is whole all the same, but for its times.
"""

from __future__ import annotations

import json
import pathlib
import sys

if __name__ == "__main__":
  # So that `launch` and `configs` are found from any working directory.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import launch

launch.require_environment()

from absl import flags

from egad_jax import progress
from launch import accelerators, command_line, config_file

CONFIG = command_line.define_config()
TOPOLOGY = command_line.required(
  "topology", "CHIP:SHAPE, such as v5e:16x16, v5p:2x4x4 or tpu7x:2x2x1."
)
JSON = flags.DEFINE_bool("json", False, "Print JSON, and nothing else, to stdout.")
SEARCH = flags.DEFINE_bool(
  "search", False, "Try other batches, remat policies and meshes, at most 8 in all."
)
DOES_NOT_FIT = 3


def main() -> int:
  """Compiles and prints the plan, or those of the variants."""
  config = command_line.config(CONFIG)
  # libtpu reads the environment when jax is imported, and so does jax.
  from egad_jax.chips import topology
  from egad_jax.planning.environment import prepare_environment

  prepare_environment(TOPOLOGY.value)
  with progress.phase("importing JAX"):
    accelerators.import_jax()
    from egad_jax import from_config
    from egad_jax.planning import report
    from egad_jax.planning.plan import Plan, devices_of, plan
    from egad_jax.planning.search import search

  slice_ = topology(TOPOLOGY.value)
  from_config.validate(config, given=command_line.given_keys())
  with progress.phase(f"loading the compiler for {slice_.name}"):
    devices = devices_of(slice_)

  def make_plan(name: str, changed: from_config.Config) -> Plan:
    with progress.phase(f"planning {name} on {slice_.name}"):
      return plan(from_config.plan_run(changed, devices), slice_, config=name)

  if SEARCH.value:
    plans = search(config, make_plan)
    text = json.dumps([found.as_json() for found in plans]) if JSON.value else ""
    command_line.print_result(text or report.search_text(plans))
    return 0 if any(found.fits for found in plans) else DOES_NOT_FIT
  found = make_plan(config_file.find(CONFIG.name).name, config)
  text = json.dumps(found.as_json()) if JSON.value else report.plan_text(found)
  command_line.print_result(text)
  return 0 if found.fits else DOES_NOT_FIT


if __name__ == "__main__":
  command_line.run(main)
