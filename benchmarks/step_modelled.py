"""The steps of variants of a config, as the compiler models them for a slice of TPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.markdown import table
from egad_jax import from_config
from egad_jax.chips import topology
from egad_jax.errors import InputError
from egad_jax.planning.plan import devices_of, plan

# The budget of docs/: EGAD's step over plain distillation's.
EGAD_AT_MOST = 1.02
_GIB = 2**30
_HEADER = ("method", "step, s", "over vanilla_kd", "temporaries, GiB", "total, GiB")
_HEADER += ("FLOPs", "FLOPs over the least")


def modelled(variants: Iterable[tuple[str, Any]], name: str, report: Callable[[str], None]) -> str:
  """A markdown table of plans.

  Args:
    variants: (label, config), the baseline first.
    name: of the topology.
    report: takes a line of progress.
  """
  slice_ = topology(name)
  devices = devices_of(slice_)
  rows, baseline, notes = [], None, []
  for label, config in variants:
    try:
      made = plan(from_config.plan_run(config, devices), slice_, config=label)
    except InputError as error:
      notes.append(f"{label}: {error}")
      rows.append((label, *["-"] * (len(_HEADER) - 1)))
      report(notes[-1])
      continue
    seconds = made.modelled_seconds
    baseline = baseline or seconds
    ratio = seconds / baseline if seconds and baseline else None
    rows.append(
      (
        label,
        f"{seconds:.4f}" if seconds else "does not fit",
        f"{ratio:.4f}" if ratio else "-",
        f"{made.temporaries_bytes / _GIB:.3f}",
        f"{made.total_bytes / _GIB:.2f}",
        f"{made.flops:.4e}",
        f"{made.flops / made.flops_minimum:.3f}",
      )
    )
    report(
      f"modelled {label}: {' '.join(rows[-1][1:3])} (compiled in {made.compile_seconds:.0f} s)"
    )
    if label == "egad" and ratio:
      kept = "kept" if ratio <= EGAD_AT_MOST else "NOT KEPT"
      notes.append(f"Budget of EGAD's step, {EGAD_AT_MOST} of vanilla_kd's: {kept}, {ratio:.4f}.")
  return "\n\n".join([table(_HEADER, rows), *notes])
