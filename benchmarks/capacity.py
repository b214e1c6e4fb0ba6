"""The most rows that fit on a slice, with this head and with all logits at once, by the compiler.

Command: python -m benchmarks.capacity --topology=v5e:2x2

Nothing runs: each attempt compiles the train step as `launch/plan.py` does, about a minute each.
The head of the comparison is `egad_jax.head.dense_head`, on each device's own rows as ours is.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from benchmarks.markdown import table
from launch import command_line

CONFIG = command_line.define_config(default="configs/qwen3_1_7b_to_0_6b_v5e.py")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "CHIP:SHAPE.")
HEADS = flags.DEFINE_list("heads", ["dense", "chunked"], "Which heads.")
FIRST = flags.DEFINE_list("first", ["16", "352"], "For each head, rows to try first.")
STEP = flags.DEFINE_integer("step", 0, "Rows between sizes; 0: one a device for dense, else four.")
_GIB = 2**30


def largest(fits: Callable[[int], bool], first: int, step: int) -> int:
  """The largest multiple of `step` that fits, by doubling or halving and then bisection.

  Args:
    fits: whether a size does; monotone.
    first: size to try first.
    step: what a size is a multiple of.

  Returns:
    The size, 0 if not even `step` fits.

  >>> largest(lambda size: size <= 41, first=16, step=4)
  40
  """
  low, high, size = 0, None, max(1, first // step)
  while high is None or high - low > 1:
    if fits(size * step):
      low = size
    else:
      high = size
    # Near the first guess, so that a good one costs few compilations.
    size = low + max(1, low // 8) if high is None else (low + high) // 2
  return low * step


def with_dense_head(experiment: Any) -> Any:
  """The experiment with all logits of a device at once in the place of the chunked head."""
  from egad_jax.head import dense_head
  from egad_jax.head.sharded import sharded_head

  def make(token_loss: Any, mesh: Any, **options: Any) -> Any:
    kept = ("vocab_size", "student_soft_cap", "teacher_soft_cap")
    head = dense_head(token_loss, **{name: options[name] for name in kept})
    axes = {"batch_axes": options["batch_axes"], "sequence_axes": (options["tensor_axis"],)}
    return sharded_head(head, mesh, **axes)

  options = dataclasses.replace(experiment.programs, make_head=make)
  return dataclasses.replace(experiment, programs=options)


def main() -> None:
  """Searches and prints."""
  config = command_line.config(CONFIG)
  from egad_jax.planning.environment import prepare_environment

  prepare_environment(TOPOLOGY.value)
  from egad_jax import from_config
  from egad_jax.chips import topology
  from egad_jax.planning.plan import devices_of, plan

  slice_ = topology(TOPOLOGY.value)
  devices = devices_of(slice_)
  found: dict[str, Any] = {}
  for head, first in zip(HEADS.value, FIRST.value, strict=True):
    plans: dict[int, Any] = {}

    def fits(rows: int, head: str = head, plans: dict[int, Any] = plans) -> bool:
      changed = copy.deepcopy(config)
      changed.batch_size = rows * changed.accumulation
      experiment = from_config.plan_run(changed, devices)
      if head == "dense":
        experiment = with_dense_head(experiment)
      made = plans[rows] = plan(experiment, slice_, config=f"{head} {rows}")
      verdict = "fits" if made.fits else "does not fit"
      size, seconds = made.total_bytes / _GIB, made.compile_seconds
      print(f"{head}: {rows} rows {verdict}, {size:.2f} GiB ({seconds:.0f} s)", file=sys.stderr)
      return made.fits

    step = STEP.value or slice_.devices * (1 if head == "dense" else 4)
    best = largest(fits, int(first), step)
    found[head] = (best, plans.get(best), plans.get(best + step))
  lines = []
  for head, (rows, made, next_up) in found.items():
    tokens = rows * config.seq_len // slice_.devices
    total = f"{made.total_bytes / _GIB:.2f}" if made else "-"
    time = f"{made.modelled_seconds / made.tokens_per_step * 1e6:.1f}" if made else "-"
    above = f"{next_up.total_bytes / _GIB:.2f}" if next_up else "-"
    lines.append((head, f"{rows:,}", f"{tokens:,}", total, above, time))
  header = ("head", "rows a micro-batch", "tokens a chip", "GiB a chip")
  print(table((*header, "GiB of the next size, which fails", "modelled µs a token"), lines))
  if {"dense", "chunked"} <= set(found) and found["dense"][0]:
    print(f"\nRatio: {found['chunked'][0] / found['dense'][0]:.1f}")


if __name__ == "__main__":
  command_line.run(main)
