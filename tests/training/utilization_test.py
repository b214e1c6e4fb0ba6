"""FLOPs by hand, utilization of devices that are only described, memory of those that count it."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest

from egad_jax import from_config
from egad_jax.models.config import DecoderConfig, Experts
from egad_jax.models.model import make_model
from egad_jax.training import utilization
from egad_jax.training.utilization import KEYS, ModelFlops, Utilization
from tests.from_config.configs import changed


class Device:
  """A device by its description."""

  def __init__(self, kind="TPU v5 lite", process_index=0, stats=None):
    self.device_kind, self.process_index, self._stats = kind, process_index, stats

  def memory_stats(self):
    if isinstance(self._stats, Exception):
      raise self._stats
    return self._stats


def test_flops_of_each_model_by_hand():
  run = from_config.plan_run(changed(batch_size=8, seq_len=64), jax.devices())
  found = utilization.minimum_flops(run)
  tokens = 8 * 64
  for model, flops, passes in (
    (run.models.teacher, found.teacher, 1),
    (run.models.student, found.student, 3),
  ):
    c = model.config
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    # Queries and output, keys and values, the gated MLP, two norms.
    layer = 2 * c.dim * heads + 2 * c.dim * kv_heads + 3 * c.dim * c.mlp_dim + 2 * c.dim
    # Scores and their use, 2 FLOPs each, of half of the row's places.
    attention = 4 * (64 / 2) * heads
    expected = tokens * (c.num_layers * (2 * layer + attention) + 2 * 512 * c.dim)
    assert flops == passes * expected


def test_only_chosen_experts_count():
  config = DecoderConfig(
    vocab_size=512,
    dim=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    mlp_dim=64,
    experts=Experts(count=8, chosen=2, mlp_dim=24),
  )
  plain = dataclasses.replace(config, experts=None, mlp_dim=48)
  routed, dense = (
    utilization.model_flops(make_model(c), tokens=10, seq_len=64, vocab_size=512)
    for c in (config, plain)
  )
  # Two experts of width 24 take what one MLP of width 48 takes, and the router comes on top.
  assert routed - dense == 10 * 2 * 2 * 32 * 8


def test_utilization_is_flops_over_what_all_devices_could_do():
  flops = ModelFlops(teacher=197 * 10**12, student=3 * 197 * 10**12)
  devices = [Device(process_index=i // 4) for i in range(8)]
  values = Utilization(flops, devices).measure(2.0)
  assert list(values) == list(KEYS)
  assert values["mfu"] == pytest.approx(4 / (8 * 2.0))
  assert values["teacher_mfu"] == pytest.approx(values["mfu"] / 4)
  assert values["student_mfu"] == pytest.approx(values["mfu"] * 3 / 4)


@pytest.mark.parametrize("kind", ["cpu", "TPU v99", "NVIDIA GeForce RTX 9090"])
def test_unknown_devices_have_no_utilization(kind):
  values = Utilization(ModelFlops(1, 1), [Device(kind)]).measure(1.0)
  assert values == dict.fromkeys(KEYS)


def test_memory_is_that_of_the_fullest_local_device():
  local = [
    Device(stats={"bytes_in_use": 5, "peak_bytes_in_use": 7}),
    Device(stats={"bytes_in_use": 3, "peak_bytes_in_use": 9}),
    Device(stats=None),
    Device(stats={"largest_alloc_size": 99}),
    Device(stats=jax.errors.JaxRuntimeError("UNIMPLEMENTED")),
  ]
  far = Device(process_index=1, stats={"bytes_in_use": 100, "peak_bytes_in_use": 100})
  values = Utilization(ModelFlops(1, 1), [far, *local]).measure(1.0)
  assert (values["memory_bytes"], values["memory_peak_bytes"]) == (5, 9)


def test_cpu_answers_nothing_or_numbers():
  values = Utilization(ModelFlops(1, 1), jax.devices()).measure(1.0)
  assert values["mfu"] is None
  memory = (values["memory_bytes"], values["memory_peak_bytes"])
  assert all(x is None or (x >= 0 and math.isfinite(x)) for x in memory)
