"""Heads of PyTorch packages, called as their trainers call them; imported, never copied.

Liger-Kernel's `chunked_loss.LigerFusedLinearJSDLoss` (beta 0: forward KL) and TRL's chunked
divergence of `DistillationTrainer`. TRL's has no cross-entropy, so it does less than the others.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.heads import Inputs, Settings

NOT_INSTALLED = "not installed: pip install -r requirements-benchmarks.txt"

# inputs -> (loss, gradient of the hidden states, gradient of the unembedding).
TorchHead = Callable[..., tuple[Any, Any, Any]]


class Rival(NamedTuple):
  """A head of a PyTorch package.

  Attributes:
    title: of its row.
    package: what must be importable.
    make: (settings) -> head of tensors: student hidden, student unembedding, teacher hidden,
      teacher unembedding, labels.
  """

  title: str
  package: str
  make: Callable[[Settings], TorchHead]


def _liger(settings: Settings, *, compiled: bool) -> TorchHead:
  from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

  # Its divergence is not multiplied by T^2, and it divides by the number of tokens.
  module = LigerFusedLinearJSDLoss(
    weight_hard_loss=settings.ce_weight,
    weight_soft_loss=settings.temperature**2,
    beta=0.0,
    temperature=settings.temperature,
    compiled=compiled,
    chunk_size=settings.chunk,
  )

  def loss(student, unembedding, teacher, teacher_unembedding, labels):
    mean = module(student, unembedding, teacher, teacher_unembedding, labels)
    return mean * labels.shape[0]

  return _differentiated(loss)


def _trl(settings: Settings) -> TorchHead:
  import torch
  from trl.trainer.distillation_trainer import _chunked_divergence_loss

  def loss(student, unembedding, teacher, teacher_unembedding, labels):
    found = _chunked_divergence_loss(
      student[None],
      teacher[None],
      unembedding,
      teacher_unembedding,
      completion_mask=torch.ones_like(labels)[None],
      beta=0.0,
      num_items_in_batch=1,
      temperature=settings.temperature,
    )
    return settings.temperature**2 * found[0]

  return _differentiated(loss)


def _differentiated(loss: Callable[..., Any]) -> TorchHead:
  def head(student, unembedding, *rest):
    student = student.detach().requires_grad_()
    unembedding = unembedding.detach().requires_grad_()
    value = loss(student, unembedding, *rest)
    value.backward()
    return value.detach(), student.grad, unembedding.grad

  return head


def rivals() -> dict[str, Rival]:
  """Key of `--contenders` -> rival."""
  return {
    "liger": Rival(
      "Liger chunked JSD, plain KD", "liger_kernel", lambda s: _liger(s, compiled=False)
    ),
    "liger_compiled": Rival(
      "Liger chunked JSD, torch.compile, plain KD",
      "liger_kernel",
      lambda s: _liger(s, compiled=True),
    ),
    "trl": Rival("TRL chunked divergence, KL alone", "trl", _trl),
  }


def installed(rival: Rival) -> bool:
  """Whether a rival can be imported here."""
  try:
    importlib.import_module("torch")
    importlib.import_module(rival.package)
  except ImportError:
    return False
  return True


def tensors(inputs: Inputs, device: str) -> tuple[Any, ...]:
  """The inputs as tensors of the same dtypes, without mask and context."""
  import torch

  def convert(array):
    array = np.asarray(array)
    if array.dtype.name == "bfloat16":
      bits = torch.from_numpy(np.array(array).view(np.int16))
      return bits.view(torch.bfloat16).to(device)
    if array.dtype.kind == "i":
      return torch.from_numpy(array.astype(np.int64)).to(device)
    return torch.from_numpy(np.array(array)).to(device)

  return tuple(convert(array) for array in inputs[:5])


def synchronize(device: str) -> None:
  """Waits for a GPU."""
  import torch

  if device == "cuda":
    torch.cuda.synchronize()


def peak_bytes(run: Callable[[], Any], device: str) -> int:
  """Most memory in use during `run()` beyond what was in use before; it must have run once.

  On a GPU that of the allocator of torch; on the CPU resident memory of the whole process, so that
  nothing else may run in it.
  """
  import torch

  gc.collect()
  if device == "cuda":
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
  # What was freed goes back to the system, and the mark of the most goes back to now.
  ctypes.CDLL(None).malloc_trim(0)
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  before = _status_bytes("VmRSS")
  result = run()
  peak = _status_bytes("VmHWM") - before
  del result
  return peak


def _status_bytes(key: str) -> int:
  text = pathlib.Path("/proc/self/status").read_text()
  found = re.search(rf"{key}:\s+(\d+) kB", text)
  assert found
  return int(found[1]) * 1024
