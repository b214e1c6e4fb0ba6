"""Gemma 3, text only: five layers with a window and a base of their own to one without.

transformers does not apply its attn_logit_softcapping, so that a file with one is refused.
"""

from __future__ import annotations

from typing import Any

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig, LayerKind, RopeScaling
from egad_jax.models.families import gemma2
from egad_jax.models.family import Family, GGUFFamily
from egad_jax.models.foreign_keys import positive_number
from egad_jax.models.gguf_config import GGUFConfig, gguf_keys
from egad_jax.models.hf_config import ROTARY, HFConfig, config_keys, pattern_of
from egad_jax.models.rope_config import rope_from_hf

_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0
_PERIOD = 6
_KINDS = {"full_attention", "sliding_attention"}


def _rope(hf: HFConfig) -> tuple[float, RopeScaling | None, float]:
  """Base and scaling of the layers without a window, and the base of the others."""
  both = hf.data.get("rope_parameters")
  if not (isinstance(both, dict) and both and both.keys() <= _KINDS):
    theta, scaling = rope_from_hf(hf.source, hf.data, default_theta=_GLOBAL_THETA)
    local = hf.data.get("rope_local_base_freq", _LOCAL_THETA)
    return theta, scaling, positive_number(hf.source, "rope_local_base_freq", local)
  data = dict(hf.data) | {"rope_parameters": both.get("full_attention")}
  theta, scaling = rope_from_hf(hf.source, data, default_theta=_GLOBAL_THETA)
  data = {
    "rope_parameters": both.get("sliding_attention"),
    "rope_theta": hf.data.get("rope_local_base_freq"),
  }
  local, of_local = rope_from_hf(hf.source, data, default_theta=_LOCAL_THETA)
  if of_local is not None:
    raise InputError(
      f"{hf.source}: rope_parameters must not scale the layers with a window; got {of_local}. Use "
      "a model whose sliding_attention has rope_type default."
    )
  return theta, scaling, local


def _period(hf: HFConfig) -> int:
  keys = ("sliding_window_pattern", "_sliding_window_pattern")
  named = next((key for key in keys if hf.data.get(key) is not None), None)
  return _PERIOD if named is None else hf.integer(named)


def _from_hf(hf: HFConfig) -> DecoderConfig:
  theta, scaling, local_theta = _rope(hf)
  period = _period(hf)
  sliding = hf.sliding((i + 1) % period != 0 for i in range(hf.layers()))
  local = LayerKind(window=hf.integer("sliding_window"), rope_theta=local_theta)
  return hf.config(
    rope_theta=theta,
    rope_scaling=scaling,
    qk_norm=True,
    pattern=pattern_of(local if slides else LayerKind() for slides in sliding),
    **gemma2.fields_from_hf(hf),
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  thetas = [kind.rope_theta for kind in config.pattern if kind.rope_theta is not None]
  return gemma2.to_hf(config) | {"rope_local_base_freq": thetas[0] if thetas else _LOCAL_THETA}


def _from_gguf(gguf: GGUFConfig) -> DecoderConfig:
  local = LayerKind(
    window=gguf.integer("attention.sliding_window"),
    rope_theta=gguf.number("rope.freq_base_swa", _LOCAL_THETA),
  )
  layers = range(gguf.integer("block_count"))[:_PERIOD]
  return gguf.config(
    default_theta=_GLOBAL_THETA,
    qk_norm=True,
    pattern=tuple(LayerKind() if i + 1 == _PERIOD else local for i in layers),
    query_scale=gemma2.gguf_query_scale(gguf, 62),
    logit_soft_cap=None
    if gguf.get("final_logit_softcapping") is None
    else gguf.number("final_logit_softcapping"),
    **gemma2.fields(gguf.integer("embedding_length")),
  )


FAMILY = Family(
  name="gemma3_text",
  title="Gemma 3",
  architectures=("Gemma3ForCausalLM",),
  keys=config_keys(
    *ROTARY,
    *gemma2.KEYS,
    "rope_local_base_freq",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    harmless=gemma2.UNREAD,
  ),
  defaults=gemma2.DEFAULTS
  | {
    "max_position_embeddings": 131_072,
    "final_logit_softcapping": None,
  },
  config_from_hf=_from_hf,
  config_to_hf=_to_hf,
  tensors=gemma2.TENSORS,
  gguf_names=("gemma3",),
  gguf=GGUFFamily(
    keys=gguf_keys(
      "attention.sliding_window",
      "rope.freq_base_swa",
      "final_logit_softcapping",
      neutral={"attention.sliding_window_pattern": (_PERIOD,)},
    ),
    config=_from_gguf,
    transforms=gemma2.TRANSFORMS,
  ),
)
