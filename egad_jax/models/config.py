"""The shape of a decoder: everything its program and its parameters depend on."""

from __future__ import annotations

import dataclasses

from egad_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LayerKind:
  """What may differ from one layer to the next.

  Attributes:
    window: a token sees itself and the `window - 1` tokens before it; None sees all before it.
    rope: whether queries and keys are rotated by position.
  """

  window: int | None = None
  rope: bool = True


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
  """Frequency scaling of Llama 3.1 and later (`rope_type: llama3` of Hugging Face).

  Attributes:
    factor: wavelengths longer than `original_max_seq_len / low_freq_factor` are multiplied by it.
    low_freq_factor: see `factor`; in between, frequencies are interpolated.
    high_freq_factor: wavelengths shorter than `original_max_seq_len / high_freq_factor` stay.
    original_max_seq_len: positions the model was first trained on.
  """

  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_seq_len: int = 8192


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A pre-norm decoder with gated SiLU MLPs and grouped-query attention.

  Attributes:
    vocab_size: rows of the embedding table, padding rows included.
    dim: width of the residual stream.
    num_layers: a multiple of `len(pattern)`.
    num_heads: query heads, a multiple of `num_kv_heads`.
    num_kv_heads: key and value heads.
    head_dim: width of one head, even.
    mlp_dim: inner width of the MLP.
    rope_theta: base of the rotary wavelengths.
    rope_scaling: None or the scaling of the rotary frequencies.
    norm_eps: added to the mean square in RMSNorm.
    qk_norm: whether each head's queries and keys are normalised before their rotation (Qwen3).
    tie_embeddings: whether the unembedding is the embedding table.
    max_seq_len: positions the model was made for.
    logit_soft_cap: cap c of c·tanh(logits / c), applied by the head; None is no cap.
    embedding_std: standard deviation of the values that a random embedding table starts with.
    pattern: the kinds of layers, repeated `num_layers / len(pattern)` times.

  Raises:
    InputError: if the numbers do not fit together.
  """

  vocab_size: int
  dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  rope_theta: float = 10_000.0
  rope_scaling: Llama3RopeScaling | None = None
  norm_eps: float = 1e-5
  qk_norm: bool = False
  tie_embeddings: bool = True
  max_seq_len: int = 2048
  logit_soft_cap: float | None = None
  embedding_std: float = 0.02
  pattern: tuple[LayerKind, ...] = (LayerKind(),)

  def __post_init__(self) -> None:
    sizes = ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
    for name in (*sizes, "max_seq_len"):
      if getattr(self, name) < 1:
        raise InputError(f"{name} must be at least 1; got {getattr(self, name)}.")
    if self.num_heads % self.num_kv_heads:
      raise InputError(
        f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})."
      )
    if self.head_dim % 2:
      raise InputError(f"head_dim must be even for rotary positions; got {self.head_dim}.")
    if not self.pattern or self.num_layers % len(self.pattern):
      raise InputError(
        f"num_layers ({self.num_layers}) must be a multiple of the length of the layer pattern "
        f"({len(self.pattern)}); use a longer pattern or another depth."
      )

  @property
  def repeats(self) -> int:
    """How often the pattern is repeated: the length of the layer scan."""
    return self.num_layers // len(self.pattern)

  def kind(self, layer: int) -> LayerKind:
    """The kind of layer `layer`, counted from 0."""
    return self.pattern[layer % len(self.pattern)]
