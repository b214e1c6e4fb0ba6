"""From the keys of a config to teacher and student."""

from __future__ import annotations

import dataclasses
from typing import Any

from egad_jax import sharding
from egad_jax.build.values import DTYPES, RANDOM, Config
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.losses.method import Method
from egad_jax.models.architectures import architecture
from egad_jax.models.config import DecoderConfig
from egad_jax.models.load import Pretrained, load_pretrained
from egad_jax.models.model import make_model
from egad_jax.models.student import evenly_spaced, student_from_layers
from egad_jax.training.run import Pair


def layer_pairs(layers: str, num_student: int, num_teacher: int) -> tuple[tuple[int, int], ...]:
  """The (student, teacher) layers whose outputs are compared, counted from 1.

  Args:
    layers: "last", "uniform:N" or "S:T,S:T".
    num_student: the student's depth.
    num_teacher: the teacher's.

  Raises:
    InputError: it cannot be parsed or names a layer that does not exist, or one twice.

  >>> layer_pairs("uniform:2", 4, 30)
  ((2, 15), (4, 30))
  """
  expected = "config.branch.layers must be last, uniform:N or S:T,S:T"
  try:
    if layers == "last":
      pairs = ((num_student, num_teacher),)
    elif layers.startswith("uniform:"):
      n = int(layers.removeprefix("uniform:"))
      pairs = tuple(
        (round(i * num_student / n), round(i * num_teacher / n)) for i in range(1, n + 1)
      )
    else:
      pairs = tuple(tuple(map(int, pair.split(":"))) for pair in layers.split(","))
    student, teacher = zip(*pairs, strict=True)
  except (ValueError, ZeroDivisionError):
    raise InputError(f"{expected}; got {layers!r}.") from None
  for who, chosen, depth in (("student", student, num_student), ("teacher", teacher, num_teacher)):
    if len(set(chosen)) != len(chosen) or not all(1 <= i <= depth for i in chosen):
      raise InputError(
        f"{expected}, of different {who} layers between 1 and {depth}; got {layers!r}, which "
        f"takes the {who}'s {', '.join(map(str, chosen))}."
      )
  return tuple(zip(student, teacher, strict=True))


def _load(source: str, tokenizer: Tokenizer) -> Pretrained:
  """A model of the tokenizer's vocabulary; params None for random values."""
  size = tokenizer.vocab_size
  if not source.startswith(RANDOM):
    return load_pretrained(source, tokenizer_size=size)
  shape = architecture(source.removeprefix(RANDOM))
  return Pretrained(_replace(shape, vocab_size=size), None, None, source)


def _replace(shape: DecoderConfig, **sizes: int) -> DecoderConfig:
  """`shape` with the sizes that are not 0."""
  sizes = {name: size for name, size in sizes.items() if size}
  dim, heads = sizes.get("dim", shape.dim), sizes.get("num_heads", shape.num_heads)
  if "dim" in sizes or "num_heads" in sizes:
    if dim % heads:
      raise InputError(
        f"config.student.num_heads ({heads}) must divide config.student.dim ({dim})."
      )
    sizes["head_dim"] = dim // heads
  changes: dict[str, Any] = {**sizes}
  return dataclasses.replace(shape, **changes)


def _student(
  config: Config, teacher: Pretrained, tokenizer: Tokenizer, teacher_tokenizer: Tokenizer
) -> tuple[DecoderConfig, Any]:
  options = config.student
  if options.init == "source":
    read = load_pretrained(options.source, tokenizer_size=tokenizer.vocab_size)
    return read.config, read.params
  if options.init == "random":
    names = ("dim", "num_heads", "num_kv_heads", "mlp_dim")
    sizes = {name: options[name] for name in names}
    if tokenizer is not teacher_tokenizer:
      sizes["vocab_size"] = tokenizer.vocab_size
    shape = _replace(teacher.config, num_layers=options.layers, **sizes)
    return dataclasses.replace(shape, embedding_std=DecoderConfig.embedding_std), None
  if teacher.params is None:
    raise InputError(
      f"config.student.init=layers takes layers of a trained teacher, but config.teacher.source="
      f"{config.teacher.source} has random values; use student.init=random."
    )
  depth = teacher.config.num_layers
  indices = tuple(options.layer_indices) or evenly_spaced(depth, options.layers or depth)
  if options.layers and len(indices) != options.layers:
    raise InputError(
      f"config.student.layers ({options.layers}) and config.student.layer_indices "
      f"({len(indices)} of them) disagree; leave one at its default."
    )
  return student_from_layers(teacher.config, teacher.params, indices)


def make_pair(
  config: Config,
  tokenizer: Tokenizer,
  teacher_tokenizer: Tokenizer,
  *,
  method: Method,
  mesh: Any,
) -> Pair:
  """Student and teacher; `tokenizer` is the student's, the same object if there is one for both."""
  teacher = _load(config.teacher.source, teacher_tokenizer)
  student_config, student_params = _student(config, teacher, tokenizer, teacher_tokenizer)
  for who, shape in (("teacher", teacher.config), ("student", student_config)):
    if config.seq_len > shape.max_seq_len:
      raise InputError(
        f"config.seq_len ({config.seq_len}) is above the {who}'s {shape.max_seq_len} positions; "
        "shorten the rows."
      )
  pairs: tuple[tuple[int, int], ...] = ()
  if method.feature_loss is not None:
    depths = (student_config.num_layers, teacher.config.num_layers)
    pairs = layer_pairs(config.branch.layers, *depths)
  constrain = sharding.constrain(mesh)
  return Pair(
    student=make_model(
      student_config,
      dtype=DTYPES[config.student.dtype],
      remat=config.student.remat,
      constrain=constrain,
    ),
    teacher=make_model(teacher.config, dtype=DTYPES[config.teacher.dtype], constrain=constrain),
    student_params=student_params,
    teacher_params=teacher.params,
    student_taps=tuple(s for s, _ in pairs),
    teacher_taps=tuple(t for _, t in pairs),
    teacher_name=teacher.name,
    teacher_license=teacher.license,
    teacher_dtype=DTYPES[config.teacher.dtype],
  )
