"""Plans a run: `python launch/plan.py --config=FILE --topology=v5e:16x16`.

Compiles the train step for that slice of TPUs on any CPU, without weights, tokenizer or data.
Exit code 3 when it does not fit; the report is whole all the same, but for its times.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

# So that `launch` and `configs` are found from any working directory.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import config_flags

from launch import command_line

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
  from egad_jax.planning.chips import topology
  from egad_jax.planning.environment import prepare_environment

  prepare_environment(TOPOLOGY.value)
  from rich.console import Console

  from egad_jax import build
  from egad_jax.planning import report
  from egad_jax.planning.plan import Plan, devices_of, plan
  from egad_jax.planning.search import search

  slice_ = topology(TOPOLOGY.value)
  build.validate(config)
  devices = devices_of(slice_)

  def make_plan(name: str, changed: build.Config) -> Plan:
    return plan(build.plan_run(changed, devices), slice_, config=name)

  console = Console(width=None if sys.stdout.isatty() else 120)
  if SEARCH.value:
    plans = search(config, make_plan)
    if JSON.value:
      print(json.dumps([found.as_json() for found in plans]))
    else:
      report.print_search(plans, console)
    return 0 if any(found.fits for found in plans) else DOES_NOT_FIT
  found = make_plan(
    os.path.basename(config_flags.get_config_filename(flags.FLAGS["config"])), config
  )
  if JSON.value:
    print(json.dumps(found.as_json()))
  else:
    report.print_plan(found, console)
  return 0 if found.fits else DOES_NOT_FIT


if __name__ == "__main__":
  command_line.run(main)
