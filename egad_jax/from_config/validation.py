"""Checks everything about a config that can be known before any work is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from egad_jax import losses, methods
from egad_jax.data.readers.sources import AUTO
from egad_jax.data.readers.table import FORMATS
from egad_jax.errors import InputError
from egad_jax.from_config.attention import ATTENTIONS
from egad_jax.from_config.data import field_names
from egad_jax.from_config.extensions import NO_EXTENSIONS, Extensions
from egad_jax.from_config.methods import make_method
from egad_jax.from_config.trackers import check_trackers
from egad_jax.from_config.unread import check_given, check_unread_options
from egad_jax.from_config.values import DTYPES, Config, name_values
from egad_jax.losses.curriculum import CURRICULUM_KINDS
from egad_jax.models.safetensors_shards import DTYPES as EXPORT_DTYPES

_CHOICES = {
  "method": tuple(methods.METHODS),
  "attention": ATTENTIONS,
  "teacher.dtype": tuple(DTYPES),
  "teacher.placement": ("device", "host"),
  "student.dtype": tuple(DTYPES),
  "student.init": ("layers", "random", "source"),
  "export.dtype": EXPORT_DTYPES,
  "student.remat": ("none", "dots", "full"),
  "loss.divergence": tuple(losses.DIVERGENCES),
  "data.format": (AUTO, *FORMATS),
  "loss.kernels": ("auto", "xla"),
  "optimizer.schedule": ("cosine", "linear", "constant"),
  "curriculum.kind": ("uniform", *CURRICULUM_KINDS),
}
_POSITIVE = ("steps", "batch_size", "seq_len", "accumulation", "log_every", "eval.rows")
_POSITIVE += (
  "checkpoint.keep",
  "distribution.half_life",
  "optimizer.learning_rate",
  "optimizer.epsilon",
  "guard.half_life",
  "guard.max_skipped",
  "profile.steps",
  "curriculum.power",
)
_NOT_NEGATIVE = ("student.layers", "data.max_bad_records", "loss.ce_weight")
_NOT_NEGATIVE += ("loss.chunk_size", "branch.weight", "distribution.fill_batches")
_NOT_NEGATIVE += ("optimizer.warmup_steps", "optimizer.weight_decay", "optimizer.clip_norm")
_NOT_NEGATIVE += ("checkpoint.every_steps", "checkpoint.every_seconds", "eval.every_steps")
_NOT_NEGATIVE += ("eval.batch_size", "eval.sample_tokens", "student.dim", "student.num_heads")
_NOT_NEGATIVE += ("student.num_kv_heads", "student.mlp_dim")
_NOT_NEGATIVE += ("guard.spike_sigmas",)
_NOT_NEGATIVE += ("watchdog.step_seconds", "watchdog.other_seconds", "profile.start_step")
_NOT_NEGATIVE += ("teacher.mesh.devices", "method_options.x_token.teacher_top_k")
_NOT_NEGATIVE += ("data.min_tokens", "data.max_tokens")
_SHARES = ("curriculum.start", "curriculum.end", "optimizer.final_fraction")
# Each predicate states what is valid, so that NaN never is, nor infinity for any of these keys.
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
  (_POSITIVE, lambda x: 0 < x < math.inf, "be positive"),
  (_NOT_NEGATIVE, lambda x: 0 <= x < math.inf, "not be negative"),
  (_SHARES, lambda x: 0 <= x <= 1, "be between 0 and 1"),
  # JAX and grain take 32-bit seeds; JAX would silently reduce others modulo 2**32.
  (("seed",), lambda x: 0 <= x < 2**32, "be at least 0 and below 2**32"),
  (("data.held_out_fraction",), lambda x: 0 < x < 1, "lie between 0 and 1"),
  (("optimizer.beta1", "optimizer.beta2"), lambda x: 0 <= x < 1, "be at least 0 and below 1"),
)

_REMEDIES = {
  "data.held_out_fraction": " Use a share such as 0.02: without held-out text nothing is measured, "
  "and without the rest nothing is trained.",
}


def _read(config: Config, key: str) -> Any:
  value = config
  for part in key.split("."):
    value = value[part]
  return value


def validate(
  config: Config, extensions: Extensions = NO_EXTENSIONS, *, given: Collection[str] = ()
) -> None:
  """Checks everything that can be known from the config alone, before any work.

  Args:
    config: all keys of `configs.default`, with the values to check.
    extensions: methods, divergences and trackers that the config may name besides the package's.
    given: keys that the user set one by one, such as "curriculum.kind"; each must be read.

  Raises:
    InputError: a value is invalid, or a given key is not read; the message names the key, what it
      must be and what it is.
  """
  if not config.teacher.source:
    raise InputError(
      "config.teacher.source is required: hf:NAME, a Hugging Face directory, a .gguf file, "
      "python:PACKAGE/FILE.gguf or random:ARCHITECTURE."
    )
  added = {"method": extensions.methods, "loss.divergence": extensions.divergences}
  for key, known in _CHOICES.items():
    choices = (*known, *added.get(key, ()))
    if _read(config, key) not in choices:
      raise InputError(
        f"config.{key} must be one of {', '.join(choices)}; got {_read(config, key)!r}."
      )
  for keys, is_valid, expected in _RANGES:
    for key in keys:
      if not is_valid(_read(config, key)):
        remedy = _REMEDIES.get(key, "")
        raise InputError(f"config.{key} must {expected}; got {_read(config, key)}.{remedy}")
  if config.student.init == "source" and not config.student.source:
    raise InputError("config.student.source is required with config.student.init=source.")
  if config.batch_size % config.accumulation:
    raise InputError(
      f"config.accumulation ({config.accumulation}) must divide config.batch_size "
      f"({config.batch_size})."
    )
  check_given(config, given, extensions)
  check_unread_options(config, extensions)
  check_trackers(config, extensions)
  if 0 < config.data.max_tokens < config.data.min_tokens:
    raise InputError(
      f"config.data.max_tokens ({config.data.max_tokens}) must be 0 or at least "
      f"config.data.min_tokens ({config.data.min_tokens})."
    )
  field_names(config)
  make_method(config, extensions)
  compiler_options(config)


def compiler_options(config: Config) -> dict[str, str]:
  """The XLA options of `config.compiler_options` as {name: value}; {} for none.

  Raises:
    InputError: the text is not name=value,name=value, or gives a name twice.
  """
  return name_values("compiler_options", config.compiler_options)
