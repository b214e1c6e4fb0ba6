"""Builds the experiment and the loop's options from a config."""

from __future__ import annotations

import logging
import pathlib
from typing import Any, cast

import jax
from etils import epath

from egad_jax import progress, sharding
from egad_jax.data import corpus as corpora
from egad_jax.data.packed_rows import Rows
from egad_jax.data.packing import prepare_rows
from egad_jax.data.paired_packing import prepare_paired_rows
from egad_jax.data.projection import prepare_projection
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.durability.watchdog import Limits
from egad_jax.errors import InputError
from egad_jax.files import hub, paths
from egad_jax.files.storage import is_local
from egad_jax.from_config.attention import check_attention
from egad_jax.from_config.data import data_paths, make_corpus_and_tokenizers
from egad_jax.from_config.extensions import NO_EXTENSIONS, Extensions
from egad_jax.from_config.meshes import eval_batch, make_meshes
from egad_jax.from_config.methods import make_method
from egad_jax.from_config.models import make_models
from egad_jax.from_config.planned import planned_projection, planned_vocabularies
from egad_jax.from_config.prompts import check_prompts
from egad_jax.from_config.teachers import check_teacher, make_teacher
from egad_jax.from_config.trackers import make_trackers
from egad_jax.from_config.validation import compiler_options, validate
from egad_jax.from_config.values import RANDOM, TRAIN, Config
from egad_jax.methods import TWO_TOKENIZERS, Method
from egad_jax.models import family
from egad_jax.training.batch_source import BatchSource, PackedRows
from egad_jax.training.experiment import (
  EvaluationOptions,
  Experiment,
  Optimization,
  ProgramOptions,
  StudentAndTeacher,
  Tokenizers,
)
from egad_jax.training.guard import Spikes
from egad_jax.training.loop import LoopOptions
from egad_jax.training.optimizers import (
  OptimizerOptions,
  make_optimizer,
  make_progress,
  make_schedule,
)
from egad_jax.training.profiling import Window

_LOG = logging.getLogger(__name__)


def _data_cache(config: Config, workdir: epath.PathLike) -> epath.Path:
  if config.data.cache:
    return paths.local(config.data.cache, "config.data.cache")
  # Rows are read from memory-mapped files, so they must be local. Every host makes the same ones.
  if is_local(workdir):
    return epath.Path(workdir) / "data"
  return paths.local("~/.cache/egad_jax/data", "config.data.cache")


def _compilation_cache(config: Config) -> str:
  path = paths.parse(config.compilation_cache, "config.compilation_cache")
  if path.exists() and not path.is_dir():
    raise InputError(f"config.compilation_cache {path} must be a directory, and is a file.")
  return str(path)


def input_paths(config: Config) -> dict[str, pathlib.Path]:
  """The existing local files and directories that a config reads, as {"config.KEY": path}.

  Raises:
    InputError: a path cannot be understood.
  """
  found = {}
  for group, key in (
    ("teacher", "source"),
    ("student", "source"),
    ("student", "tokenizer"),
    ("data", "tokenizer"),
    ("data", "cache"),
  ):
    name = config[group][key]
    if not name or name.startswith((RANDOM, TRAIN, hub.SCHEME)) or not is_local(name):
      continue
    path = pathlib.Path(paths.expand(name, f"config.{group}.{key}"))
    if path.exists():
      found[f"config.{group}.{key}"] = path
  return found | data_paths(config)


def build(
  config: Config,
  workdir: epath.PathLike,
  *,
  devices: Any = None,
  extensions: Extensions = NO_EXTENSIONS,
) -> Experiment:
  """Makes the experiment of a config; prepares its data if that is not done yet.

  Args:
    config: the config; `validate` is called on it first.
    workdir: the directory in whose data/ the data is prepared, unless config.data.cache names
      another or the workdir is in an object store.
    devices: the devices to make meshes of; None for all devices of all processes.
    extensions: methods, divergences, a teacher, a batch source or trackers from outside the
      package; `loop_options` takes the trackers, and here their names are checked.

  Raises:
    InputError: an input is missing, damaged or does not fit the others.
  """
  validate(config, extensions)
  if config.compilation_cache:
    jax.config.update("jax_compilation_cache_dir", _compilation_cache(config))
  with progress.phase("looking for devices"):
    meshes = make_meshes(config, devices)
  check_attention(config, meshes[0])
  data = config.data
  cache = _data_cache(config, workdir)
  corpus, tokenizers = make_corpus_and_tokenizers(config, cache)
  to_rows = {"seq_len": config.seq_len, "directory": cache}
  if config.method in TWO_TOKENIZERS:
    projection = prepare_projection(*tokenizers, directory=cache)
    method = make_method(config, projection=(projection.ids, projection.weights))
    models = make_models(config, *tokenizers, method=method, meshes=meshes)
    rows = prepare_paired_rows(corpus, *tokenizers, **to_rows)
  else:
    method = make_method(config, extensions)
    models = make_models(config, *tokenizers, method=method, meshes=meshes)
    rows = prepare_rows(
      corpus,
      tokenizers[0],
      min_tokens=data.min_tokens,
      max_tokens=data.max_tokens,
      **to_rows,
    )
  check_prompts(config, models, tokenizers)
  _check_size(config, rows, meshes[0])
  # A student that cannot be exported must be refused before it is trained.
  family.config_to_hf(models.student.config, bos_id=None, eos_id=None, pad_id=None, dtype="float32")
  return _assemble(config, method, models, tokenizers, rows, meshes, extensions)


def _check_size(config: Config, rows: Rows, mesh: Any) -> None:
  """Checks that there is enough text for a batch and for an evaluation.

  Raises:
    InputError: there are fewer train rows than a batch has, or a split has no target tokens.
  """
  unit = sharding.batch_devices(mesh) * config.accumulation
  if config.batch_size > rows.train_size:
    fitting = rows.train_size // unit * unit
    smaller = f"lower config.batch_size to {fitting} or less, " if fitting else ""
    raise InputError(
      f"config.batch_size ({config.batch_size} rows) is larger than the data: config.data.source="
      f"{config.data.source} gives {rows.train_size} rows of {rows.seq_len} tokens to train on. "
      f"Give more text, {smaller}or shorten config.seq_len, which makes more rows."
    )
  for split, what in ((corpora.TRAIN, "train on"), (corpora.HELD_OUT, "evaluate on")):
    if not rows.num_targets[split]:
      raise InputError(
        f"config.data.source={config.data.source} leaves no tokens to {what}: the documents of its "
        f"{split.replace('_', '-')} split are of one token or none, have no targets, or are left "
        "out by config.data.min_tokens and max_tokens. Give more text, or other values."
      )


def plan_run(config: Config, devices: Any) -> Experiment:
  """The experiment of a config for `devices` that may not exist; it can only be compiled.

  Neither weights nor tokenizers nor data are read: stand-ins for tokenizers and rows have their
  sizes alone.

  Raises:
    InputError: the config is invalid, does not fit the devices, or needs files to be known.
  """
  validate(config)
  if config.teacher.mesh.devices:
    raise InputError(
      f"config.teacher.mesh.devices ({config.teacher.mesh.devices}) must be 0 for a plan, which is "
      "of one program for all devices; plan it with config.teacher.placement=host if memory is "
      "short."
    )
  meshes = make_meshes(config, devices)
  check_attention(config, meshes[0])
  vocabularies = planned_vocabularies(config)
  paired = config.method in TWO_TOKENIZERS
  inputs = {"projection": planned_projection(config, *vocabularies)} if paired else {}
  method = make_method(config, NO_EXTENSIONS, **inputs)
  models = make_models(config, *vocabularies, method=method, meshes=meshes, planned=True)
  nothing: dict[str, Any] = {}
  sides = 2 if paired else 1
  rows = Rows(
    epath.Path(),
    "",
    sides,
    config.seq_len,
    nothing,
    nothing,
    nothing,
    nothing,
    nothing,
    held_out_bytes=(),
    files=nothing,
  )
  tokenizers = cast(tuple[Tokenizer, Tokenizer], vocabularies)
  return _assemble(config, method, models, tokenizers, rows, meshes)


def _assemble(
  config: Config,
  method: Method,
  models: StudentAndTeacher,
  tokenizers: tuple[Tokenizer, Tokenizer],
  rows: Rows,
  meshes: tuple[Any, Any],
  extensions: Extensions = NO_EXTENSIONS,
) -> Experiment:
  options = OptimizerOptions(**config.optimizer.to_dict())
  if options.warmup_steps >= config.steps > 1:
    _LOG.warning(
      "config.optimizer.warmup_steps (%d) is cut to %d, as the run has %d steps",
      options.warmup_steps,
      config.steps - 1,
      config.steps,
    )
  learning_rate = make_schedule(options, config.steps)
  teacher = (extensions.teacher or make_teacher)(config, models, meshes)
  batch_source = (extensions.batch_source or _packed_rows)(config, rows)
  if teacher.meshes and batch_source.reads_state:
    raise InputError(
      f"config.teacher.mesh.devices ({config.teacher.mesh.devices}) must be 0 with a batch source "
      "that reads the state: a teacher on devices of its own works on batches before they are due."
    )
  c, guard = config.curriculum, config.guard
  experiment = Experiment(
    method_name=config.method,
    method=method,
    models=models,
    teacher=teacher,
    tokenizers=Tokenizers(*tokenizers),
    rows=rows,
    batch_source=batch_source,
    mesh=meshes[0],
    optimization=Optimization(
      tx=make_optimizer(options, learning_rate),
      learning_rate=learning_rate,
      progress=make_progress(c.start, c.end, c.power, config.steps),
      steps=config.steps,
      batch_size=config.batch_size,
      accumulation=config.accumulation,
      spikes=Spikes(guard.spike_sigmas, guard.half_life) if guard.spike_sigmas else None,
      fill_batches=config.distribution.fill_batches,
    ),
    programs=ProgramOptions(
      chunk_size=config.loss.chunk_size or None,
      kernels=config.loss.kernels == "auto",
      compiler_options=compiler_options(config),
    ),
    evaluation=EvaluationOptions(
      rows=config.eval.rows,
      batch_size=eval_batch(config),
      prompts=tuple(config.eval.prompts),
      sample_tokens=config.eval.sample_tokens,
    ),
    seed=config.seed,
    export_dtype=config.export.dtype,
  )
  check_teacher(experiment)
  return experiment


def _packed_rows(config: Config, rows: Rows) -> BatchSource:
  return PackedRows(rows, config.batch_size, config.seed)


def loop_options(config: Config, extensions: Extensions = NO_EXTENSIONS) -> LoopOptions:
  """The options of the loop that runs a config's experiment.

  Args:
    config: all keys of `configs.default`, checked by `validate`; it reads those of the loop alone.
    extensions: trackers that the config may name besides the package's.

  Raises:
    InputError: the package of a tracker is not installed.
  """
  return LoopOptions(
    log_steps=config.log_every,
    save_steps=config.checkpoint.every_steps,
    save_seconds=config.checkpoint.every_seconds,
    evaluate_steps=config.eval.every_steps,
    keep=config.checkpoint.keep,
    keep_best=config.checkpoint.keep_best,
    max_skipped=config.guard.max_skipped,
    trackers=make_trackers(config, extensions),
    limits=Limits(**config.watchdog.to_dict()),
    profile=Window(**config.profile.to_dict()),
  )
