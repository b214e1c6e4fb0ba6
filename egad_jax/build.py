"""The only reader of a config: checks it, then turns it into the functions and values of a run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import ml_collections
import optax
from etils import epath

from egad_jax import losses, sharding
from egad_jax.data import corpus as corpora
from egad_jax.data import packing
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.losses.curriculum import CURRICULUM_KINDS
from egad_jax.losses.method import Method
from egad_jax.models.architectures import architecture
from egad_jax.models.config import DecoderConfig
from egad_jax.models.load import Pretrained, load_pretrained
from egad_jax.models.model import make_model
from egad_jax.models.student import evenly_spaced, student_from_layers
from egad_jax.training.optimizers import OptimizerOptions, make_optimizer, make_schedule
from egad_jax.training.run import Intervals, Pair, Run

Config: TypeAlias = ml_collections.ConfigDict

_DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
_RANDOM, _TRAIN = "random:", "train:"
_CHOICES = {
  "method": tuple(losses.METHODS),
  "teacher.dtype": tuple(_DTYPES),
  "student.dtype": tuple(_DTYPES),
  "student.init": ("layers", "random", "source"),
  "student.remat": ("none", "dots", "full"),
  "loss.divergence": tuple(losses.DIVERGENCES),
  "optimizer.schedule": ("cosine", "linear", "constant"),
  "curriculum.kind": ("uniform", *CURRICULUM_KINDS),
}
_POSITIVE = ("steps", "batch_size", "seq_len", "accumulation", "log_every", "eval.rows")
_POSITIVE += (
  "checkpoint.keep",
  "distribution.half_life",
  "optimizer.learning_rate",
  "optimizer.epsilon",
)
_NOT_NEGATIVE = ("seed", "student.layers", "data.max_bad_records", "loss.ce_weight")
_NOT_NEGATIVE += ("loss.chunk_size", "branch.weight", "distribution.fill_batches")
_NOT_NEGATIVE += ("optimizer.warmup_steps", "optimizer.weight_decay", "optimizer.clip_norm")
_NOT_NEGATIVE += ("checkpoint.every_steps", "checkpoint.every_seconds", "eval.every_steps")
_NOT_NEGATIVE += ("eval.batch_size", "eval.sample_tokens", "student.dim", "student.num_heads")
_NOT_NEGATIVE += ("student.num_kv_heads", "student.mlp_dim", "curriculum.power")
_SHARES = ("curriculum.start", "curriculum.end", "optimizer.final_fraction")
# Each states what is valid, so that NaN never is.
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
  (_POSITIVE, lambda x: x > 0, "be positive"),
  (_NOT_NEGATIVE, lambda x: x >= 0, "not be negative"),
  (_SHARES, lambda x: 0 <= x <= 1, "be between 0 and 1"),
  (("data.held_out_fraction",), lambda x: 0 < x < 1, "lie between 0 and 1"),
  (("optimizer.beta1", "optimizer.beta2"), lambda x: 0 <= x < 1, "be at least 0 and below 1"),
)


def plain(config: Config) -> dict[str, Any]:
  """The config as JSON values."""
  return json.loads(json.dumps(config.to_dict()))


def from_plain(values: Mapping[str, Any]) -> Config:
  """The config that `plain` was called with."""
  return ml_collections.ConfigDict(values)


def _read(config: Config, key: str) -> Any:
  value = config
  for part in key.split("."):
    value = value[part]
  return value


def validate(config: Config) -> None:
  """Checks everything that can be known from the config alone, before any work.

  Raises:
    InputError: naming the key, what it must be and what it is.
  """
  if not config.teacher.source:
    raise InputError(
      "config.teacher.source is required: a .gguf file, a Hugging Face directory, "
      "python:PACKAGE/FILE.gguf or random:ARCHITECTURE."
    )
  for key, choices in _CHOICES.items():
    if _read(config, key) not in choices:
      raise InputError(
        f"config.{key} must be one of {', '.join(choices)}; got {_read(config, key)!r}."
      )
  for keys, is_valid, expected in _RANGES:
    for key in keys:
      if not is_valid(_read(config, key)):
        raise InputError(f"config.{key} must {expected}; got {_read(config, key)}.")
  if config.student.init == "source" and not config.student.source:
    raise InputError("config.student.source is required with config.student.init=source.")
  if config.batch_size % config.accumulation:
    raise InputError(
      f"config.accumulation ({config.accumulation}) must divide config.batch_size "
      f"({config.batch_size})."
    )
  make_method(config)
  compiler_options(config)


def compiler_options(config: Config) -> dict[str, str]:
  """Parses "name=value,name=value"."""
  pairs = [entry.split("=", 1) for entry in config.compiler_options.split(",") if entry]
  if bad := [pair[0] for pair in pairs if len(pair) != 2 or not pair[0]]:
    raise InputError(f"config.compiler_options must be name=value,name=value; got {bad[0]!r}.")
  return dict(pairs)


def _options(config: Config, group: str, make: Any) -> Any:
  """The dataclass `make` from the keys of a group that are its fields."""
  names = [field.name for field in dataclasses.fields(make)]
  try:
    return make(**{name: config[group][name] for name in names})
  except ValueError as error:  # Its message names the field.
    raise InputError(f"config.{group}: {error}") from None


def make_method(config: Config) -> Method:
  """The method of a config.

  Raises:
    InputError: a hyper-parameter is out of range.
  """
  make = losses.METHODS[config.method]
  temperature = _options(config, "temperature", losses.Temperature)
  shared = {"divergence": config.loss.divergence, "ce_weight": config.loss.ce_weight}
  shared["half_life"] = float(config.distribution.half_life)
  if config.method == "vanilla_kd":
    return make(**shared, temperature=temperature.base)
  is_off = config.curriculum.kind == "uniform"
  return make(
    **shared,
    curriculum=None if is_off else _options(config, "curriculum", losses.Curriculum),
    temperature=temperature,
    branch=_options(config, "branch", losses.Branch) if config.branch.weight else None,
  )


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


def make_tokenizer(config: Config, corpus: corpora.Corpus) -> Tokenizer:
  """The tokenizer of teacher and student."""
  source = config.data.tokenizer or config.teacher.source
  if not source.startswith(_TRAIN):
    if source.startswith(_RANDOM):
      raise InputError(
        f"config.teacher.source={source} brings no tokenizer; set config.data.tokenizer to a "
        "directory, a .gguf file or train:N."
      )
    return Tokenizer.from_source(source)
  size = source.removeprefix(_TRAIN)
  if not size.isdigit():
    raise InputError(f"config.data.tokenizer must be train:N with a number N; got {source!r}.")
  texts = (record["text"].decode() for record in corpus.data_source(corpora.TRAIN))
  return Tokenizer.train(texts, int(size))


def _load(source: str, tokenizer: Tokenizer) -> Pretrained:
  """A model of the tokenizer's vocabulary; params None for random values."""
  size = tokenizer.vocab_size
  if not source.startswith(_RANDOM):
    return load_pretrained(source, tokenizer_size=size)
  shape = architecture(source.removeprefix(_RANDOM))
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
  config: Config, teacher: Pretrained, tokenizer: Tokenizer
) -> tuple[DecoderConfig, Any]:
  options = config.student
  if options.init == "source":
    own = Tokenizer.from_source(options.source)
    if own.fingerprint != tokenizer.fingerprint:
      raise InputError(
        f"the tokenizer of config.student.source ({options.source}, {own.vocab_size} entries) is "
        f"not the teacher's ({tokenizer.vocab_size} entries); both must give the same ids for the "
        "same text. Choose a student of the teacher's family, or student.init=layers or random."
      )
    read = load_pretrained(options.source, tokenizer_size=tokenizer.vocab_size)
    return read.config, read.params
  if options.init == "random":
    names = ("dim", "num_heads", "num_kv_heads", "mlp_dim")
    sizes = {name: options[name] for name in names}
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


def _make_pair(config: Config, tokenizer: Tokenizer, method: Method, mesh: Any) -> Pair:
  teacher = _load(config.teacher.source, tokenizer)
  student_config, student_params = _student(config, teacher, tokenizer)
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
      dtype=_DTYPES[config.student.dtype],
      remat=config.student.remat,
      constrain=constrain,
    ),
    teacher=make_model(teacher.config, dtype=_DTYPES[config.teacher.dtype], constrain=constrain),
    student_params=student_params,
    teacher_params=teacher.params,
    student_taps=tuple(s for s, _ in pairs),
    teacher_taps=tuple(t for _, t in pairs),
    teacher_name=teacher.name,
    teacher_license=teacher.license,
    teacher_dtype=_DTYPES[config.teacher.dtype],
  )


def _check_divides(config: Config, mesh: Any) -> None:
  devices, micro = sharding.batch_devices(mesh), config.batch_size // config.accumulation
  for key, rows in (("batch_size / accumulation", micro), ("eval.batch_size", _eval_batch(config))):
    if rows % devices:
      raise InputError(
        f"the mesh splits rows over {devices} devices (replica * data * fsdp), which must divide "
        f"config.{key} ({rows}); use a multiple of {devices} or give devices to mesh.tensor."
      )
  if config.seq_len % sharding.sequence_devices(mesh):
    raise InputError(
      f"config.mesh.tensor ({sharding.sequence_devices(mesh)}) must divide config.seq_len "
      f"({config.seq_len})."
    )


def _eval_batch(config: Config) -> int:
  return config.eval.batch_size or config.batch_size // config.accumulation


def build(config: Config, workdir: epath.PathLike, *, devices: Any = None) -> Run:
  """Makes the run of a config; prepares its data if that is not done yet.

  Args:
    config: the config, checked by `validate` first.
    workdir: where data is prepared unless config.data.cache says otherwise.
    devices: the devices of the mesh; all if None.

  Raises:
    InputError: an input is missing, damaged or does not fit.
  """
  validate(config)
  if config.compilation_cache:
    cache = os.path.expanduser(config.compilation_cache)
    jax.config.update("jax_compilation_cache_dir", cache)
  mesh = sharding.make_mesh(config.mesh, devices)
  _check_divides(config, mesh)
  method = make_method(config)
  data = config.data
  cache = epath.Path(data.cache or epath.Path(workdir) / "data")
  corpus = corpora.prepare_corpus(
    data.source,
    cache,
    held_out_fraction=data.held_out_fraction,
    max_bad_records=data.max_bad_records,
  )
  tokenizer = make_tokenizer(config, corpus)
  pair = _make_pair(config, tokenizer, method, mesh)
  rows = packing.prepare_rows(corpus, tokenizer, seq_len=config.seq_len, directory=cache)
  options = OptimizerOptions(**config.optimizer.to_dict())
  learning_rate = make_schedule(options, config.steps)
  c = config.curriculum
  return Run(
    method_name=config.method,
    method=method,
    pair=pair,
    tokenizer=tokenizer,
    rows=rows,
    mesh=mesh,
    tx=make_optimizer(options, learning_rate),
    learning_rate=learning_rate,
    progress=optax.polynomial_schedule(c.start, c.end, c.power, config.steps),
    seed=config.seed,
    steps=config.steps,
    batch_size=config.batch_size,
    accumulation=config.accumulation,
    chunk_size=config.loss.chunk_size or None,
    fill_batches=config.distribution.fill_batches,
    held_out_rows=config.eval.rows,
    held_out_batch=_eval_batch(config),
    intervals=Intervals(
      config.log_every,
      config.checkpoint.every_steps,
      config.checkpoint.every_seconds,
      config.eval.every_steps,
    ),
    keep=config.checkpoint.keep,
    prompts=tuple(config.eval.prompts),
    sample_tokens=config.eval.sample_tokens,
    compiler_options=compiler_options(config),
    tensorboard=config.tensorboard,
  )
