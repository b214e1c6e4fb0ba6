"""Tests of rotary frequencies in other people's files."""

from __future__ import annotations

import math

import numpy as np
import pytest

from egad_jax.errors import InputError
from egad_jax.models import rotary
from egad_jax.models.config import LinearRopeScaling, Llama3RopeScaling
from egad_jax.models.rope_config import rope_from_factors, rope_from_hf

LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
  ("data", "wanted"),
  [
    ({}, (10_000.0, None)),
    ({"rope_theta": None, "rope_scaling": None}, (10_000.0, None)),
    ({"rope_theta": 500_000}, (500_000.0, None)),
    ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, (7.0, None)),
    ({"rope_theta": 7, "rope_parameters": {"rope_theta": 7.0}}, (7.0, None)),
    ({"rope_scaling": {"type": "default", "factor": 1.0}}, (10_000.0, None)),
    ({"rope_scaling": LLAMA3 | {"type": "llama3"}}, (10_000.0, Llama3RopeScaling(8.0))),
    ({"rope_scaling": LLAMA3, "rope_parameters": LLAMA3}, (10_000.0, Llama3RopeScaling(8.0))),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, (10_000.0, LinearRopeScaling(2.0))),
    ({"rope_parameters": LLAMA3 | {"rope_theta": 5.0}}, (5.0, Llama3RopeScaling(8.0))),
    ({"rope_parameters": LLAMA3 | {"partial_rotary_factor": 1.0}}, (1e4, Llama3RopeScaling(8.0))),
  ],
)
def test_both_layouts_of_config_json(data, wanted):
  assert rope_from_hf("config.json", data) == wanted


@pytest.mark.parametrize(
  ("data", "message"),
  [
    ({"rope_theta": 0}, "rope_theta must be a positive number below 1e38; got 0"),
    ({"rope_theta": ""}, "rope_theta must be a positive number"),
    ({"rope_theta": -1.0}, "rope_theta must be a positive number"),
    ({"rope_parameters": {"rope_theta": False}}, "rope_theta must be a positive number"),
    (
      {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
      r"says rope_theta 10000\.0 and its rope_theta 500000\.0; they must agree",
    ),
    (
      {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3 | {"factor": 32.0}},
      "says rope_parameters .* and rope_scaling .*; they must agree",
    ),
    ({"rope_scaling": LLAMA3 | {"type": "linear"}}, "says rope_type 'llama3' and type 'linear'"),
    ({"rope_scaling": {"type": "longrope"}}, '"linear" or "llama3"; got \'longrope\''),
    ({"rope_scaling": {"type": "linear"}}, "factor must be a positive number below 1e38; got None"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "got 'yarn'"),
    ({"rope_scaling": {"factor": 2.0}}, r"has a factor \(2\.0\) but no type that uses it"),
    ({"rope_scaling": LLAMA3 | {"attention_factor": 0.5}}, "keys not known: attention_factor"),
    (
      {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
      "keys not known: full_attention",
    ),
    ({"rope_parameters": LLAMA3 | {"partial_rotary_factor": 0.5}}, "known: partial_rotary_factor"),
    ({"rope_scaling": [8.0]}, r"rope scaling must be an object; got \[8\.0\]"),
    ({"rope_scaling": LLAMA3 | {"factor": "8"}}, "factor must be a positive number"),
    ({"rope_scaling": LLAMA3 | {"factor": 0.5}}, "factor of llama3 rope scaling must be 1 or more"),
    ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "must be below high_freq_factor"),
    ({"rope_scaling": LLAMA3 | {"factor": None}}, "llama3 rope scaling needs factor"),
    (
      {"rope_scaling": LLAMA3, "original_max_position_embeddings": 4096},
      "says original_max_position_embeddings 4096 and its .* 8192; they must agree",
    ),
  ],
)
def test_what_is_not_computed_or_does_not_agree_is_refused(data, message):
  with pytest.raises(InputError, match=rf"config\.json.*{message}"):
    rope_from_hf("config.json", data)


def factors(head_dim, theta, factor, low=1.0, high=4.0, original=8192):
  """As llama.cpp's converter computes them, one frequency at a time."""
  found = []
  for i in range(0, head_dim, 2):
    wavelength = 2 * math.pi * theta ** (i / head_dim)
    if wavelength < original / high:
      found.append(1.0)
    elif wavelength > original / low:
      found.append(factor)
    else:
      smooth = (original / wavelength - low) / (high - low)
      found.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(found, np.float32)


@pytest.mark.parametrize(
  ("head_dim", "theta", "scaling"),
  [
    (128, 5e5, {"factor": 8.0}),
    (64, 5e5, {"factor": 32.0}),
    (8, 1e4, {"factor": 4.0, "original": 64}),
    (64, 1e4, {"factor": 16.0, "low": 2.0, "high": 3.0, "original": 2048}),
    (128, 1e6, {"factor": 2.5, "low": 0.5, "high": 9.0, "original": 4096}),
    # Every frequency scaled, none at all interpolated, and one bound beyond all of them.
    (8, 10.0, {"factor": 2.0, "low": 1e6, "high": 2e6}),
    (8, 1e4, {"factor": 8.0, "low": 1.0, "high": 1.001, "original": 100}),
    (64, 100.0, {"factor": 8.0, "original": 1024}),
  ],
)
def test_factors_of_llama3_scaling_are_recognised(head_dim, theta, scaling):
  given = factors(head_dim, theta, **scaling)
  found = rope_from_factors(
    "a", given, head_dim=head_dim, theta=theta, original_max_seq_len=scaling.get("original")
  )
  plain = rotary.frequencies(head_dim, theta=theta).astype(np.float64)
  got = rotary.frequencies(head_dim, theta=theta, scaling=found)
  np.testing.assert_allclose(got, plain / given, rtol=1e-4)
  assert found is None or found.low_freq_factor < found.high_freq_factor


def test_the_usual_scaling_is_found_exactly():
  given = factors(128, 5e5, 8.0)
  how = {"head_dim": 128, "theta": 5e5, "original_max_seq_len": None}
  assert rope_from_factors("a", given, **how) == Llama3RopeScaling(8.0)
  assert rope_from_factors("a", np.ones(64, np.float32), **how) is None


@pytest.mark.parametrize(
  "given",
  [[4, 1, 1, 1], [1, 2, 3, 4], [0.5, 1, 1, 1], [1, 1, 0, 1], [1, -1, 2, 2], [1, 3, 2, 3]],
)
def test_factors_of_another_scaling_are_refused(given):
  with pytest.raises(InputError, match="a must be the factors of Llama 3's rope scaling; they dif"):
    rope_from_factors(
      "a", np.array(given, np.float32), head_dim=8, theta=1e4, original_max_seq_len=None
    )
