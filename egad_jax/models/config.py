"""The architecture of a decoder: all that its program and its parameters depend on."""

from __future__ import annotations

import dataclasses

from egad_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LayerKind:
  """The properties that may differ between layers.

  Attributes:
    window: number of tokens that a token sees, itself included; None lets it see all before it.
    rope: whether queries and keys are rotated by their positions.
  """

  window: int | None = None
  rope: bool = True


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
  """Frequency scaling of Llama 3.1 and later (`rope_type: llama3` of Hugging Face).

  Attributes:
    factor: multiplier of wavelengths longer than `original_max_seq_len / low_freq_factor`.
    low_freq_factor: turns over the original context below which `factor` applies in full; between
      it and `high_freq_factor`, frequencies are interpolated.
    high_freq_factor: wavelengths shorter than `original_max_seq_len / high_freq_factor` are kept.
    original_max_seq_len: number of positions that the model was first trained on.
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
    num_layers: number of layers, a multiple of `len(pattern)`.
    num_heads: number of query heads, a multiple of `num_kv_heads`.
    num_kv_heads: number of key and value heads.
    head_dim: width of one attention head, even.
    mlp_dim: inner width of the MLP.
    rope_theta: base of the rotary wavelengths.
    rope_scaling: scaling of the rotary frequencies; None leaves them as they are.
    norm_eps: epsilon added to the mean square in RMSNorm.
    qk_norm: whether each head's queries and keys are normalised before their rotation (Qwen3).
    tie_embeddings: whether the unembedding is the embedding table.
    max_seq_len: number of positions that the model was made for.
    logit_soft_cap: c of c·tanh(logits / c), which the head applies; None applies no cap.
    embedding_std: standard deviation of the values of a random embedding table.
    pattern: kinds of consecutive layers, repeated `num_layers / len(pattern)` times.

  Raises:
    InputError: a number is out of range, or numbers do not fit together.
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
    """Number of repetitions of the pattern, which is the length of the layer scan."""
    return self.num_layers // len(self.pattern)

  def kind(self, layer: int) -> LayerKind:
    """The kind of layer `layer`, counted from 0."""
    return self.pattern[layer % len(self.pattern)]
