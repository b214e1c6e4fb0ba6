"""Tiny models on disk, in the layouts that other programs write."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import gguf
import jax
import numpy as np
import pytest

from egad_jax.models import family, layout
from egad_jax.models.config import DecoderConfig
from egad_jax.models.model import Params, make_model


@pytest.fixture(scope="session")
def config() -> DecoderConfig:
  """A small architecture in which no two sizes are equal."""
  return DecoderConfig(
    vocab_size=40,
    dim=24,
    num_layers=3,
    num_heads=6,
    num_kv_heads=3,
    head_dim=4,
    mlp_dim=32,
    rope_theta=1000.0,
    max_seq_len=64,
  )


@pytest.fixture(scope="session")
def params(config: DecoderConfig) -> Params:
  """Random parameters of `config`, numpy, norms included."""
  made = jax.jit(make_model(config).init)(jax.random.key(1))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda a: np.asarray(a) + 0.1 * rng.standard_normal(a.shape).astype(np.float32), made
  )


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
  """The row order that llama.cpp's converter gives query and key projections."""
  rows, dim = weight.shape
  halves = weight.reshape(heads, 2, rows // heads // 2, dim)
  return halves.swapaxes(1, 2).reshape(rows, dim)


@pytest.fixture
def write_gguf(config: DecoderConfig) -> Callable[..., pathlib.Path]:
  """A function that writes parameters as a GGUF file.

  Its keyword arguments `tensors` and `metadata` replace, add or (None) leave out entries.
  """

  def write(
    path: pathlib.Path,
    params: Params,
    *,
    tensors: dict[str, np.ndarray | None] | None = None,
    metadata: dict[str, Any] | None = None,
    architecture: str = "llama",
  ) -> pathlib.Path:
    arrays = layout.by_name(family.tensors(config), params)
    named = {}
    for tensor in family.tensors(config):
      counts = {"attention/query": config.num_heads, "attention/key": config.num_kv_heads}
      heads = counts.get(tensor.first)
      array = arrays[tensor.hf]
      named[tensor.gguf] = array if heads is None else permute(array, heads)
    values: dict[str, Any] = {
      "llama.block_count": config.num_layers,
      "llama.context_length": config.max_seq_len,
      "llama.embedding_length": config.dim,
      "llama.feed_forward_length": config.mlp_dim,
      "llama.attention.head_count": config.num_heads,
      "llama.attention.head_count_kv": config.num_kv_heads,
      "llama.rope.freq_base": config.rope_theta,
      "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
      "general.license": "mit",
    }
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (values | (metadata or {})).items():
      if value is None:
        continue
      add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
      add[type(value)](key, value)
    for name, array in (named | (tensors or {})).items():
      if array is not None:
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

  return write
