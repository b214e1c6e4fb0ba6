"""Utilization of the devices: the FLOPs that a step needs over the peak, and memory in use."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from egad_jax.chips import peak_flops
from egad_jax.models.model import Model
from egad_jax.training.experiment import Experiment

# Keys of a line of metrics.jsonl; a value is null where it is not known.
KEYS = ("mfu", "teacher_mfu", "student_mfu", "memory_bytes", "memory_peak_bytes")


class ModelFlops(NamedTuple):
  """Least FLOPs of one step on all devices, for the teacher and for the student."""

  teacher: int
  student: int


def minimum_flops(experiment: Experiment) -> ModelFlops:
  """FLOPs that no way of computing a step avoids, on all devices, if every token is a target.

  Per token, each parameter in the teacher's layers takes 2 FLOPs and each one in the student's 6.
  Of a mixture of experts only those that a token chooses count. The distillation head takes
  2 N V (Dt + 3 Ds) for N tokens. Attention is over whole rows, and only its causal half counts.
  """
  seq_len = experiment.rows.seq_len
  tokens = experiment.optimization.batch_size * seq_len

  models, tokenizers = experiment.models, experiment.tokenizers
  flops = functools.partial(model_flops, tokens=tokens, seq_len=seq_len)
  return ModelFlops(
    teacher=flops(models.teacher, vocab_size=tokenizers.teacher.vocab_size),
    student=3 * flops(models.student, vocab_size=tokenizers.student.vocab_size),
  )


def model_flops(model: Model, *, tokens: int, seq_len: int, vocab_size: int) -> int:
  """FLOPs of the forward pass of a model and its unembedding.

  Args:
    model: of any family; its mixtures of experts count the experts that a token takes.
    tokens: number of tokens.
    seq_len: number of tokens of a row.
    vocab_size: number of rows of the unembedding that count.
  """
  c = model.config
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  groups = [shapes[name] for name in ("layers", "tail") if name in shapes]
  layers = sum(math.prod(x.shape) for x in jax.tree.leaves(groups))
  if c.experts is not None:
    idle = c.experts.count - c.experts.chosen
    layers -= c.num_layers * idle * 3 * c.dim * c.experts.mlp_dim
  windows = (c.kind(i).window or seq_len for i in range(c.num_layers))
  keys = sum(min(window, seq_len / 2) for window in windows)
  per_token = 2 * layers + 2 * vocab_size * c.dim + 4 * keys * c.num_heads * c.head_dim
  return int(tokens * per_token)


class Utilization:
  """Measures the values of `KEYS` for the devices of a run."""

  def __init__(self, flops: ModelFlops, devices: Sequence[Any]):
    """Looks up the peak FLOPs of the devices.

    Args:
      flops: the FLOPs that a step needs, from `minimum_flops`.
      devices: the devices that share them, over all processes; all of one kind.
    """
    peak = peak_flops(devices[0].device_kind)
    self._ideal = None if peak is None else [x / (peak * len(devices)) for x in flops]
    # Another process's memory cannot be read.
    self._local = [d for d in devices if d.process_index == jax.process_index()]

  def measure(self, step_seconds: float) -> dict[str, float | int | None]:
    """The values of `KEYS`, each None where it is not known.

    Args:
      step_seconds: seconds that a step took, waiting for data included.

    Returns:
      `mfu` is the FLOPs needed over those that the devices could do in that time in bfloat16, 0 to
      1; `teacher_mfu` and `student_mfu` are its two parts. `memory_bytes` and `memory_peak_bytes`
      are the bytes in use and their maximum since the process began, each on the local device where
      it is largest.
    """
    values: dict[str, float | int | None] = dict.fromkeys(KEYS)
    if self._ideal is not None:
      teacher, student = (seconds / step_seconds for seconds in self._ideal)
      values |= {"mfu": teacher + student, "teacher_mfu": teacher, "student_mfu": student}
    stats = [_memory_stats(device) for device in self._local]
    for key, name in (("memory_bytes", "bytes_in_use"), ("memory_peak_bytes", "peak_bytes_in_use")):
      values[key] = max((s[name] for s in stats if name in s), default=None)
    return values


def _memory_stats(device: Any) -> dict[str, int]:
  try:
    return device.memory_stats() or {}
  except RuntimeError:  # Some platforms and allocators keep no statistics.
    return {}
