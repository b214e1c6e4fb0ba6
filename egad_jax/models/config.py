"""The architecture of a decoder: all that its program and its parameters depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from egad_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LayerKind:
  """The properties that may differ between layers.

  Attributes:
    window: number of tokens that a token sees, itself included; None lets it see all before it.
    rope: whether queries and keys are rotated by their positions.
    rope_theta: base of this layer's rotary wavelengths, which are then not scaled; None takes the
      base and the scaling of the whole model.
  """

  window: int | None = None
  rope: bool = True
  rope_theta: float | None = None


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
class LinearRopeScaling:
  """Division of all frequencies by one factor (`rope_type: linear` of Hugging Face).

  Attributes:
    factor: multiplier of all wavelengths.
  """

  factor: float


RopeScaling = Llama3RopeScaling | LinearRopeScaling
# Names of the functions between the two products of an MLP; "gelu_tanh" is GELU by its tanh form.
ACTIVATIONS = ("silu", "gelu_tanh", "gelu")


@dataclasses.dataclass(frozen=True)
class Experts:
  """The MLPs of a mixture of experts, of which a router chooses some for each token.

  Attributes:
    count: number of experts of a layer.
    chosen: number of experts whose outputs a token adds up.
    mlp_dim: inner width of one expert.
    renormalize: whether the weights of the chosen experts are scaled to sum to 1.
  """

  count: int
  chosen: int
  mlp_dim: int
  renormalize: bool = True


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder of grouped-query attention and MLPs; the defaults are those of a Llama.

  Attributes:
    vocab_size: rows of the embedding table, padding rows included.
    dim: width of the residual stream.
    num_layers: number of layers; the last repetition of the pattern may be partial.
    num_heads: number of query heads, a multiple of `num_kv_heads`.
    num_kv_heads: number of key and value heads.
    head_dim: width of one attention head; even if a layer has rotary positions.
    mlp_dim: inner width of the MLP.
    rope_theta: base of the rotary wavelengths.
    rope_scaling: scaling of the rotary frequencies; None leaves them as they are.
    norm_eps: epsilon added to the mean square in RMSNorm, or to the variance in LayerNorm.
    qk_norm: whether queries and keys are normalised before their rotation.
    qk_norm_over_heads: whether that norm is over all heads together (OLMo 2) instead of over each
      by itself (Qwen3).
    tie_embeddings: whether the unembedding is the embedding table.
    max_seq_len: number of positions that the model was made for.
    logit_soft_cap: c of c·tanh(logits / c), which the head applies; None applies no cap.
    embedding_std: standard deviation of the values of a random embedding table.
    pattern: kinds of consecutive layers, repeated over the depth.
    family: name of the family in whose layout the model is exported; see `models.family`.
    activation: one of `ACTIVATIONS`.
    gated_mlp: whether the MLP is down(f(gate(x)) · up(x)) instead of down(f(up(x))).
    qkv_bias: whether the projections to queries, keys and values add a bias.
    attention_bias: whether the projection of attention's output adds a bias.
    mlp_bias: whether the products of the MLP add a bias.
    layer_norm: whether norms are LayerNorm with a bias (GPT-2) instead of RMSNorm.
    norm_offset: number that is added to the scale of RMSNorm: 1 for Gemma, which stores scale - 1.
    pre_norms: whether attention and MLP read a norm of the residual stream.
    post_norms: whether the outputs of attention and MLP are normalised before they are added.
    learned_positions: whether a table of `max_seq_len` rows is added to the embeddings (GPT-2).
    embedding_scale: factor of the embeddings; None for none.
    query_scale: factor of attention's logits; None for head_dim ** -0.5.
    attention_soft_cap: c of c·tanh(logits / c) in attention, before its mask; None for no cap.
    residual_multiplier: factor of the outputs of attention and MLP; None for none.
    logit_divisor: divisor of the last hidden states and so of the logits; None for none.
    experts: the mixture of experts that replaces every MLP; None for plain MLPs.

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
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-5
  qk_norm: bool = False
  qk_norm_over_heads: bool = False
  tie_embeddings: bool = True
  max_seq_len: int = 2048
  logit_soft_cap: float | None = None
  embedding_std: float = 0.02
  pattern: tuple[LayerKind, ...] = (LayerKind(),)
  family: str = "llama"
  activation: str = "silu"
  gated_mlp: bool = True
  qkv_bias: bool = False
  attention_bias: bool = False
  mlp_bias: bool = False
  layer_norm: bool = False
  norm_offset: float = 0.0
  pre_norms: bool = True
  post_norms: bool = False
  learned_positions: bool = False
  embedding_scale: float | None = None
  query_scale: float | None = None
  attention_soft_cap: float | None = None
  residual_multiplier: float | None = None
  logit_divisor: float | None = None
  experts: Experts | None = None

  def __post_init__(self) -> None:
    sizes = ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
    for name in (*sizes, "max_seq_len"):
      if getattr(self, name) < 1:
        raise InputError(f"{name} must be at least 1; got {getattr(self, name)}.")
    if self.num_heads % self.num_kv_heads:
      raise InputError(
        f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})."
      )
    if not self.pattern or len(self.pattern) > self.num_layers:
      raise InputError(
        f"the layer pattern must have 1 to num_layers ({self.num_layers}) kinds; got "
        f"{len(self.pattern)}."
      )
    if self.head_dim % 2 and any(kind.rope for kind in self.pattern):
      raise InputError(f"head_dim must be even for rotary positions; got {self.head_dim}.")
    if self.activation not in ACTIVATIONS:
      raise InputError(
        f'activation must be one of {", ".join(ACTIVATIONS)}; got "{self.activation}".'
      )
    if self.experts is not None and not 1 <= self.experts.chosen <= self.experts.count:
      raise InputError(
        f"experts.chosen must be from 1 to experts.count ({self.experts.count}); got "
        f"{self.experts.chosen}."
      )

  @property
  def repeats(self) -> int:
    """Number of whole repetitions of the pattern, which is the length of the layer scan."""
    return self.num_layers // len(self.pattern)

  @property
  def tail(self) -> tuple[LayerKind, ...]:
    """The kinds of the layers after the whole repetitions: a beginning of the pattern, or ()."""
    return self.pattern[: self.num_layers % len(self.pattern)]

  def place(self, layer: int) -> tuple[str, int, int]:
    """Where the parameters of layer `layer`, counted from 0, are.

    Returns:
      The group in the parameters ("layers" or "tail"), the index of the layer in the pattern, and
      the index on the stacked axis of its arrays.
    """
    repeat, slot = divmod(layer, len(self.pattern))
    return ("layers", slot, repeat) if repeat < self.repeats else ("tail", slot, 0)

  def kind(self, layer: int) -> LayerKind:
    """The kind of layer `layer`, counted from 0."""
    return self.pattern[layer % len(self.pattern)]


def shortest_pattern(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
  """The shortest pattern whose repetition, the last perhaps partial, gives `kinds`."""
  lengths = range(1, len(kinds) + 1)
  fits = (n for n in lengths if all(kinds[i] == kinds[i % n] for i in range(len(kinds))))
  return tuple(kinds[: next(fits)])
