"""Reads the rotary frequencies that foreign files describe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from egad_jax.errors import InputError
from egad_jax.models import rotary
from egad_jax.models.config import (
  DecoderConfig,
  LinearRopeScaling,
  Llama3RopeScaling,
  RopeScaling,
)
from egad_jax.models.foreign_keys import listed, positive_integer, positive_number, shown

_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_KNOWN_KEYS = frozenset({"rope_type", "type", "rope_theta", *_LLAMA3_KEYS})
_REMEDY = "Correct the file, or use a model with plain, linear or llama3 rotary positions."
# Largest relative difference allowed between stored factors and those of the fitted scaling.
_MAX_ERROR = 1e-4


def rope_from_hf(
  source: str, data: Mapping[str, Any], *, default_theta: float = 10_000.0
) -> tuple[float, RopeScaling | None]:
  """The base and the scaling of a config.json.

  transformers 5 writes `rope_parameters`, older versions `rope_theta` and `rope_scaling`. If a file
  has both, they must agree: versions of transformers differ on which they take.

  Args:
    source: name of the file, for messages.
    data: content of the file.
    default_theta: base of the wavelengths if the file has none.

  Returns:
    The base of the wavelengths, and the scaling or None.

  Raises:
    InputError: the keys do not agree, or the decoder does not support them.
  """
  rope = _agreed(source, data, "rope_parameters", "rope_scaling", default={})
  if not isinstance(rope, dict):
    raise InputError(f"{source}: rope scaling must be an object; got {shown(rope)}. {_REMEDY}")
  rope = {key: value for key, value in rope.items() if value is not None}
  if rope.get("partial_rotary_factor") == 1:
    del rope["partial_rotary_factor"]
  unknown = sorted(rope.keys() - _KNOWN_KEYS)
  kind = _agreed(source, rope, "rope_type", "type", default="default")
  if isinstance(kind, (list, dict)) or kind not in ("default", "linear", "llama3"):
    raise InputError(
      f'{source}: rope scaling must be absent, "linear" or "llama3"; got {shown(kind)}. {_REMEDY}'
    )
  if unknown:
    raise InputError(f"{source}: rope scaling has keys not known: {listed(unknown)}. {_REMEDY}")
  bases = {"rope_theta": data.get("rope_theta"), "its rope_theta": rope.get("rope_theta")}
  base = _agreed(source, bases, *bases, default=default_theta)
  theta = positive_number(source, "rope_theta", base)
  if kind == "default":
    if rope.get("factor", 1) != 1:
      raise InputError(
        f"{source}: rope scaling has a factor ({shown(rope['factor'])}) but no type that uses it. "
        f"{_REMEDY}"
      )
    return theta, None
  if kind == "linear":
    return theta, LinearRopeScaling(positive_number(source, "factor", rope.get("factor")))
  return theta, _llama3(source, data, rope)


def rope_to_hf(config: DecoderConfig) -> dict[str, Any]:
  """`rope_theta` and `rope_scaling` of a config.json, in the spelling that transformers 4 reads."""
  scaling: dict[str, Any] | None = None
  if isinstance(config.rope_scaling, LinearRopeScaling):
    scaling = {"rope_type": "linear", "factor": config.rope_scaling.factor}
  elif config.rope_scaling is not None:
    scaling = {
      "rope_type": "llama3",
      "factor": config.rope_scaling.factor,
      "low_freq_factor": config.rope_scaling.low_freq_factor,
      "high_freq_factor": config.rope_scaling.high_freq_factor,
      "original_max_position_embeddings": config.rope_scaling.original_max_seq_len,
    }
  return {"rope_scaling": scaling, "rope_theta": config.rope_theta}


def _llama3(source: str, data: Mapping[str, Any], rope: Mapping[str, Any]) -> Llama3RopeScaling:
  missing = [key for key in _LLAMA3_KEYS if key not in rope]
  if missing:
    raise InputError(
      f"{source}: llama3 rope scaling needs {', '.join(_LLAMA3_KEYS)}; got {shown(dict(rope))}."
    )
  factor, low, high = (positive_number(source, key, rope[key]) for key in _LLAMA3_KEYS[:3])
  if low >= high:
    raise InputError(f"{source}: low_freq_factor ({low}) must be below high_freq_factor ({high}).")
  if factor < 1:
    raise InputError(f"{source}: factor of llama3 rope scaling must be 1 or more; got {factor}.")
  key = _LLAMA3_KEYS[3]
  originals = {key: data.get(key), f"its {key}": rope[key]}
  return Llama3RopeScaling(
    factor, low, high, positive_integer(source, key, _agreed(source, originals, *originals))
  )


def _agreed(source: str, data: Mapping[str, Any], *keys: str, default: Any = None) -> Any:
  """The common value of those keys that are present, or the default.

  Raises:
    InputError: their values differ.
  """
  values = {key: data[key] for key in keys if data.get(key) is not None}
  first = next(iter(values.values()), default)
  if any(value != first for value in values.values()):
    said = " and ".join(f"{key} {shown(value)}" for key, value in values.items())
    raise InputError(f"{source} says {said}; they must agree. {_REMEDY}")
  return first


def rope_from_factors(
  source: str,
  factors: np.ndarray,
  *,
  head_dim: int,
  theta: float,
  original_max_seq_len: int | None,
) -> Llama3RopeScaling | None:
  """Finds Llama 3's scaling from its factors, which llama.cpp stores instead.

  Args:
    source: name of the factors, for messages.
    factors: `[head_dim // 2]`, the divisor of each frequency.
    head_dim: width of one attention head.
    theta: base of the wavelengths.
    original_max_seq_len: number of positions by the file, None if it does not say; it does not
      change the frequencies.

  Returns:
    The scaling; None if all factors are 1.

  Raises:
    InputError: no scaling of Llama 3 has these factors.
  """
  factors = factors.astype(np.float64)
  plain = rotary.frequencies(head_dim, theta=theta).astype(np.float64)
  if np.allclose(factors, 1, rtol=_MAX_ERROR, atol=0):
    return None
  original = original_max_seq_len or Llama3RopeScaling.original_max_seq_len
  candidates = [Llama3RopeScaling(float(factors.max()))]
  if factors.min() > 1 - _MAX_ERROR:
    candidates.append(_fitted(factors, plain, original))
  error = math.inf
  for scaling in candidates:
    wanted = rotary.scaling_factors(plain, scaling)
    error = min(error, float(np.max(np.abs(factors / wanted - 1))))
    if error <= _MAX_ERROR:
      return scaling
  raise InputError(
    f"{source} must be the factors of Llama 3's rope scaling; they differ by up to {error:.2g} of "
    "their value. Use a file with plain or llama3 rotary positions, or the Hugging Face directory."
  )


def _fitted(factors: np.ndarray, plain: np.ndarray, original: int) -> Llama3RopeScaling:
  """Fits a scaling to the factors between 1 and the largest.

  There, 1 / factor is linear in the frequency, so two of them determine where the interpolation
  begins and ends. With fewer, its ends may lie anywhere between the neighbouring frequencies, and
  all such scalings give the same factors.
  """
  largest = factors.max()
  smooth = (1 / factors - 1 / largest) / (1 - 1 / largest)
  turns = original * plain / (2 * math.pi)
  inside = np.flatnonzero((smooth > 1e-3) & (smooth < 1 - 1e-3))
  if len(inside) > 1:
    slope, offset = np.polyfit(turns[inside], smooth[inside], 1)
    low, width = -offset / slope, 1 / slope
  elif len(inside) == 1:
    i = int(inside[0])
    below = turns[i + 1] if i + 1 < len(turns) else turns[i] / 2
    above = turns[i - 1] if i else 2 * turns[i]
    width = min((turns[i] - below) / smooth[i], (above - turns[i]) / (1 - smooth[i]))
    low = turns[i] - smooth[i] * width
  else:
    unscaled = turns[smooth >= 0.5]
    low = turns[smooth < 0.5].max()
    width = unscaled.min() - low if len(unscaled) else low
  # Factors of no such scaling may give invalid bounds here; the caller then finds a large error.
  low, width = max(float(low), 1e-6), max(float(width), 1e-6)
  return Llama3RopeScaling(float(largest), low, low + width, original)
