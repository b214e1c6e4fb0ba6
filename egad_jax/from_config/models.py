"""Makes the models of teacher and student from a config."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from egad_jax import progress, sharding
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.from_config.attention import make_attention
from egad_jax.from_config.values import DTYPES, RANDOM, Config
from egad_jax.methods.method import Method
from egad_jax.models.architectures import architecture
from egad_jax.models.config import DecoderConfig
from egad_jax.models.generation_settings import GenerationSettings
from egad_jax.models.load import Pretrained, load_pretrained
from egad_jax.models.model import make_model
from egad_jax.models.student import evenly_spaced, shape_from_layers, student_from_layers
from egad_jax.training.experiment import StudentAndTeacher


def layer_pairs(
  layers: str, num_student: int, num_teacher: int, kept: Sequence[int] = ()
) -> tuple[tuple[int, int], ...]:
  """The (student, teacher) layers whose outputs are compared, counted from 1.

  Args:
    layers: "last", "all", "uniform:N" or "S:T,S:T".
    num_student: number of the student's layers.
    num_teacher: number of the teacher's layers.
    kept: the teacher's layers that the student is made of, counted from 0; () if it is not made of
      them. With "all" a student layer then stands for the teacher's layers up to the next kept one,
      so its output is paired with the input of that one; without them the pairs are evenly spaced.

  Raises:
    InputError: `layers` cannot be parsed, names a layer twice, or one that does not exist.

  >>> layer_pairs("uniform:2", 4, 30)
  ((2, 15), (4, 30))
  >>> layer_pairs("all", 3, 30, kept=(0, 12, 29))
  ((1, 12), (2, 29), (3, 30))
  """
  expected = "config.branch.layers must be last, all, uniform:N or S:T,S:T"
  if layers == "all":
    if kept:
      return tuple(enumerate((*kept[1:], num_teacher), start=1))
    layers = f"uniform:{min(num_student, num_teacher)}"
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


class Vocabulary(NamedTuple):
  """The part of a `Tokenizer` that a model depends on: the number of its entries."""

  vocab_size: int


def planned_shape(who: str, source: str, name: str) -> DecoderConfig:
  """The architecture of a source, known from the config alone.

  Args:
    who: "teacher" or "student", for messages.
    source: the value of config.teacher.source or config.student.source.
    name: name of an architecture; "" if the config names none.

  Raises:
    InputError: the architecture cannot be known without reading files.
  """
  if source.startswith(RANDOM):
    return architecture(source.removeprefix(RANDOM))
  if not name:
    raise InputError(
      f"a plan reads no files, so config.{who}.architecture must name what config.{who}.source="
      f"{source} has, such as qwen3-8b; see egad_jax/models/architectures.py."
    )
  return architecture(name)


def _load(
  who: str,
  source: str,
  name: str,
  tokenizer: Tokenizer | Vocabulary,
  planned: bool,
  grow: bool = False,
) -> Pretrained:
  """Reads a model; its params are None if they are random, or if nothing is read for a plan.

  Args:
    who: "teacher" or "student", for messages.
    source: the value of config.teacher.source or config.student.source.
    name: name of the architecture that the config states; "" if it states none.
    tokenizer: the tokenizer that makes the model's rows.
    planned: whether this is for a plan.
    grow: whether ids that the model lacks get rows, each the mean of the others.
  """
  size = tokenizer.vocab_size
  if source.startswith(RANDOM):
    return Pretrained(
      _replace(planned_shape(who, source, name), vocab_size=size), None, None, source
    )
  if planned:
    return Pretrained(planned_shape(who, source, name), None, None, source)
  with progress.phase(f"reading the {who}, {source}"):
    read = load_pretrained(source, tokenizer_size=size, grow=grow)
  if name:
    _check_architecture(who, source, read.config, name)
  return read


def _check_architecture(who: str, source: str, found: DecoderConfig, name: str) -> None:
  # A plan does not depend on how random values are drawn.
  wanted = dataclasses.replace(architecture(name), embedding_std=found.embedding_std)
  for field in dataclasses.fields(wanted):
    got, expected = getattr(found, field.name), getattr(wanted, field.name)
    if got != expected:
      raise InputError(
        f"config.{who}.architecture is {name}, of {field.name} {expected}, but {source} has {got}; "
        "name the architecture it has, or none."
      )


def _replace(shape: DecoderConfig, **sizes: int) -> DecoderConfig:
  """`shape` with those of `sizes` that are not 0, and a head_dim that fits them."""
  sizes = {name: size for name, size in sizes.items() if size}
  dim, heads = sizes.get("dim", shape.dim), sizes.get("num_heads", shape.num_heads)
  if "dim" in sizes or "num_heads" in sizes:
    if dim % heads:
      raise InputError(
        f"config.student.num_heads ({heads}) must divide config.student.dim ({dim})."
      )
    sizes["head_dim"] = dim // heads
  changes: dict[str, Any] = {**sizes}
  if shape.embedding_scale == math.sqrt(shape.dim):
    # Gemma's factor follows from the width.
    changes["embedding_scale"] = math.sqrt(dim)
  if len(shape.pattern) > sizes.get("num_layers", shape.num_layers):
    changes["pattern"] = shape.pattern[: sizes["num_layers"]]
  return dataclasses.replace(shape, **changes)


def _student(
  config: Config,
  teacher: Pretrained,
  tokenizer: Tokenizer | Vocabulary,
  teacher_tokenizer: Tokenizer | Vocabulary,
  planned: bool,
) -> Pretrained:
  options = config.student
  if options.init == "source":
    named = (options.source, options.architecture)
    # Its own tokenizer was compared with the teacher's, so that rows it lacks are of added tokens.
    return _load("student", *named, tokenizer, planned, grow=not options.tokenizer)
  if options.init == "random":
    names = ("dim", "num_heads", "num_kv_heads", "mlp_dim")
    sizes = {name: options[name] for name in names}
    if options.architecture or tokenizer is not teacher_tokenizer:
      sizes["vocab_size"] = tokenizer.vocab_size
    like = architecture(options.architecture) if options.architecture else teacher.config
    shape = _replace(like, num_layers=options.layers, **sizes)
    return _untrained(dataclasses.replace(shape, embedding_std=DecoderConfig.embedding_std))
  if teacher.params is None and (not planned or config.teacher.source.startswith(RANDOM)):
    raise InputError(
      f"config.student.init=layers takes layers of a trained teacher, but config.teacher.source="
      f"{config.teacher.source} has random values; use student.init=random."
    )
  indices = _kept_layers(config, teacher.config.num_layers)
  if options.layers and len(indices) != options.layers:
    raise InputError(
      f"config.student.layers ({options.layers}) and config.student.layer_indices "
      f"({len(indices)} of them) disagree; leave one at its default."
    )
  if teacher.params is None:
    return _untrained(shape_from_layers(teacher.config, indices))
  cut, params = student_from_layers(teacher.config, teacher.params, indices)
  return _untrained(cut)._replace(params=params)


def _kept_layers(config: Config, depth: int) -> tuple[int, ...]:
  """The teacher's layers that the student is made of, counted from 0; () if it is not."""
  options = config.student
  if options.init != "layers":
    return ()
  return tuple(options.layer_indices) or evenly_spaced(depth, options.layers or depth)


def _feature_layers(
  config: Config, student: DecoderConfig, teacher: DecoderConfig
) -> tuple[tuple[int, int], ...]:
  """The pairs of `layer_pairs` for a method with a feature loss.

  Raises:
    InputError: there are no such layers, or features of other widths need a projector.
  """
  branch = config.branch
  if branch.projector == "none" and student.dim != teacher.dim and branch.loss != "pair_distances":
    raise InputError(
      f"config.branch.projector=none compares features of one width, but the student's are "
      f"{student.dim} wide and the teacher's {teacher.dim}. Use config.branch.projector=linear "
      "(the presets have config.branch.layers=last and config.branch.weight=1 with it), or "
      "config.branch.loss=pair_distances."
    )
  kept = _kept_layers(config, teacher.num_layers)
  return layer_pairs(branch.layers, student.num_layers, teacher.num_layers, kept)


def _untrained(shape: DecoderConfig) -> Pretrained:
  return Pretrained(shape, None, None, "student")


def _generation(student: Pretrained, teacher: Pretrained, shared: bool) -> GenerationSettings:
  """The student's generation settings: the teacher's, if it has end tokens and the ids agree."""
  if shared and teacher.generation.end_ids:
    return teacher.generation
  return student.generation


def make_models(
  config: Config,
  tokenizer: Tokenizer | Vocabulary,
  teacher_tokenizer: Tokenizer | Vocabulary,
  *,
  method: Method,
  meshes: tuple[Any, Any],
  planned: bool = False,
) -> StudentAndTeacher:
  """Makes student and teacher, with their initial parameters on the host.

  Args:
    config: checked by `validate`.
    tokenizer: the student's tokenizer, or a stand-in for a plan.
    teacher_tokenizer: the teacher's; the same object if they share one.
    method: the distillation method; its feature loss decides whether layers are tapped.
    meshes: the student's mesh and the teacher's.
    planned: whether this is for a plan. Then no files are read: the architectures are those that
      the config names, and there are no parameters.

  Raises:
    InputError: a source is missing or damaged, or the models do not fit the config.
  """
  options = config.teacher
  teacher = _load("teacher", options.source, options.architecture, teacher_tokenizer, planned)
  tokenizers = (tokenizer, teacher_tokenizer)
  student = _student(config, teacher, *tokenizers, planned)
  for who, shape in (("teacher", teacher.config), ("student", student.config)):
    if config.seq_len > shape.max_seq_len:
      raise InputError(
        f"config.seq_len ({config.seq_len}) is above the {who}'s {shape.max_seq_len} positions; "
        f"set config.seq_len to {shape.max_seq_len} or less."
      )
  pairs: tuple[tuple[int, int], ...] = ()
  if method.feature_loss is not None:
    pairs = _feature_layers(config, student.config, teacher.config)
  mesh, teacher_mesh = meshes
  return StudentAndTeacher(
    student=make_model(
      student.config,
      dtype=DTYPES[config.student.dtype],
      remat=config.student.remat,
      constrain=sharding.constrain(mesh),
      attention=make_attention(config, "student", student.config, mesh),
      mesh=mesh,
    ),
    teacher=make_model(
      teacher.config,
      dtype=DTYPES[config.teacher.dtype],
      constrain=sharding.constrain(teacher_mesh),
      attention=make_attention(config, "teacher", teacher.config, teacher_mesh),
      mesh=teacher_mesh,
      layers_on_host=config.teacher.placement == "host",
    ),
    student_params=student.params,
    teacher_params=teacher.params,
    student_taps=tuple(s for s, _ in pairs),
    teacher_taps=tuple(t for _, t in pairs),
    teacher_name=teacher.name,
    teacher_license=teacher.license,
    teacher_dtype=DTYPES[config.teacher.dtype],
    teacher_generation=teacher.generation,
    student_generation=_generation(student, teacher, tokenizer is teacher_tokenizer),
    unread=tuple(f"{model.name}: {what}" for model in (teacher, student) for what in model.unread),
  )
