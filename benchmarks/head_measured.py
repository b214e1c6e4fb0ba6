"""Heads run on the device that is there: time in interleaved rounds, memory, gradient errors."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.head_inputs import Sizes, random_inputs, reference_gradients, relative_error
from benchmarks.head_rivals import (
  NOT_INSTALLED,
  Rival,
  installed,
  peak_bytes,
  synchronize,
  tensors,
)
from benchmarks.heads import Contender, Inputs, Settings, with_gradients
from benchmarks.markdown import table

_HEADER = (
  "head",
  "time / first row",
  "fastest to slowest",
  "median, s",
  "peak memory beyond the inputs, MiB",
)
_ERRORS_HEADER = ("head", "logits of std 4", "teacher and student differ by 0.1")
_DIFFERENCES = (None, 0.1)
# Conversions to bfloat16 and back stay, as on a device that has bfloat16 units.
_EXACT = {"xla_allow_excess_precision": False}


@dataclasses.dataclass
class _Timed:
  title: str
  run: Callable[[], None]
  memory: int
  seconds: list[float] = dataclasses.field(default_factory=list)


def torch_device() -> str:
  """The device of torch that is JAX's."""
  return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _time_jax(contender: Contender, inputs: Inputs, settings: Settings) -> _Timed:
  compiled = jax.jit(with_gradients(contender, settings)).lower(inputs).compile()
  stats: Any = compiled.memory_analysis()
  memory = stats.temp_size_in_bytes + stats.output_size_in_bytes
  return _Timed(contender.title, lambda: jax.block_until_ready(compiled(inputs)), memory)


def _time_torch(key: str, rival: Rival, inputs: Inputs, sizes: Sizes, settings: Settings) -> _Timed:
  device = torch_device()
  arrays, head = tensors(inputs, device), rival.make(settings)

  def run():
    head(*arrays)
    synchronize(device)

  run()
  if device == "cpu":
    # Resident memory is that of a process, so each gets its own.
    call = [sys.executable, "-m", "benchmarks.head_torch_memory", key]
    call += [json.dumps([sizes, settings])]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return _Timed(rival.title, run, int(done.stdout.split()[-1]))
  return _Timed(rival.title, run, peak_bytes(run, device))


def measured(
  contenders: Mapping[str, Contender],
  rivals: Mapping[str, Rival],
  sizes: Sizes,
  settings: Settings,
  rounds: int,
  report: Callable[[str], None],
) -> str:
  """A markdown table of times and memory; every round times the second of two calls of each.

  Args:
    contenders: by key; the first is what the others are compared with.
    rivals: by key.
    sizes: of the problem, bfloat16 inputs.
    settings: of the loss.
    rounds: that count; one more warms up.
    report: takes a line of progress.
  """
  inputs = random_inputs(sizes)
  timed: dict[str, _Timed] = {}
  missing = []
  for key, contender in contenders.items():
    timed[key] = _time_jax(contender, inputs, settings)
    timed[key].run()
    report(f"ready: {contender.title}")
  for key, rival in rivals.items():
    if installed(rival):
      timed[key] = _time_torch(key, rival, inputs, sizes, settings)
      report(f"ready: {rival.title}")
    else:
      missing.append((rival.title, NOT_INSTALLED, "—", "—", "—"))
  order = list(timed.values())
  for i in range(rounds):
    # Every other round goes backwards, so that no head always follows the same one.
    for one in order if i % 2 == 0 else reversed(order):
      # The first call pays for what the one before left: spinning threads, memory to be mapped.
      one.run()
      started = time.monotonic()
      one.run()
      one.seconds.append(time.monotonic() - started)
    report(f"round {i + 1} of {rounds}")
  rows = []
  for one in order:
    # Ratios are taken inside a round: what else the machine does then slows both.
    ratios = [a / b for a, b in zip(one.seconds, order[0].seconds, strict=True)]
    rows.append(
      (
        one.title,
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{statistics.median(one.seconds):.3f}",
        f"{one.memory / 2**20:,.0f}",
      )
    )
  return table(_HEADER, rows + missing)


def gradient_error(gradients: Sequence[Any], expected: tuple[np.ndarray, np.ndarray]) -> float:
  """The larger of the errors of the two gradients."""
  return max(map(relative_error, gradients, expected))


def errors(
  contenders: Mapping[str, Contender],
  rivals: Mapping[str, Rival],
  sizes: Sizes,
  settings: Settings,
) -> str:
  """A markdown table of gradient errors, in percent, of the distillation term alone.

  The cross-entropy's gradient is large, and would hide errors of the other where student and
  teacher are close.
  """
  settings = settings._replace(ce_weight=0.0)
  cells: dict[str, list[str]] = {}
  for difference in _DIFFERENCES:
    inputs = random_inputs(sizes, difference=difference)
    losses = sorted({c.loss for c in contenders.values()} | {"kd"})
    expected = {loss: reference_gradients(inputs, loss, settings) for loss in losses}
    for contender in contenders.values():
      compute = jax.jit(with_gradients(contender, settings), compiler_options=_EXACT)
      found = compute(inputs)[1]
      error = gradient_error(found, expected[contender.loss])
      cells.setdefault(contender.title, []).append(f"{100 * error:.2f} %")
    for rival in rivals.values():
      row = cells.setdefault(rival.title, [])
      if not installed(rival):
        row.append("—" if row else NOT_INSTALLED)
        continue
      device = torch_device()
      gradients = rival.make(settings)(*tensors(inputs, device))[1:]
      arrays = [gradient.double().cpu().numpy() for gradient in gradients]
      row.append(f"{100 * gradient_error(arrays, expected['kd']):.2f} %")
  return table(_ERRORS_HEADER, [(title, *row) for title, row in cells.items()])
