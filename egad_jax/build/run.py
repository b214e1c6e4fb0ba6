"""From a config to everything a run is made of."""

from __future__ import annotations

import os
from typing import Any, cast

import jax
from etils import epath

from egad_jax.build.attention import check_attention
from egad_jax.build.meshes import eval_batch, make_meshes
from egad_jax.build.methods import make_method
from egad_jax.build.models import make_pair
from egad_jax.build.planned import planned_projection, planned_vocabularies
from egad_jax.build.prompts import check_prompts
from egad_jax.build.tokenizers import X_TOKEN, make_tokenizers
from egad_jax.build.validation import compiler_options, validate
from egad_jax.build.values import Config
from egad_jax.data import corpus as corpora
from egad_jax.data.packing import Rows, prepare_rows
from egad_jax.data.paired_packing import prepare_paired_rows
from egad_jax.data.projection import prepare_projection
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.losses.method import Method
from egad_jax.models import llama
from egad_jax.training.guard import Spikes
from egad_jax.training.optimizers import (
  OptimizerOptions,
  make_optimizer,
  make_progress,
  make_schedule,
)
from egad_jax.training.profiling import Window
from egad_jax.training.run import Intervals, Pair, Run
from egad_jax.training.storage import is_local
from egad_jax.training.watchdog import Limits


def _data_cache(workdir: epath.PathLike) -> epath.PathLike:
  # Rows are read one by one from files that are mapped; each host makes the same ones.
  if is_local(workdir):
    return epath.Path(workdir) / "data"
  return os.path.expanduser("~/.cache/egad_jax/data")


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
  meshes = make_meshes(config, devices)
  check_attention(config, meshes[0])
  data = config.data
  cache = epath.Path(data.cache or _data_cache(workdir))
  corpus = corpora.prepare_corpus(
    data.source,
    cache,
    held_out_fraction=data.held_out_fraction,
    max_bad_records=data.max_bad_records,
  )
  tokenizers = make_tokenizers(config, corpus)
  to_rows = {"seq_len": config.seq_len, "directory": cache}
  if config.method == X_TOKEN:
    projection = prepare_projection(*tokenizers, directory=cache)
    method = make_method(config, projection=(projection.ids, projection.weights))
    pair = make_pair(config, *tokenizers, method=method, meshes=meshes)
    rows = prepare_paired_rows(corpus, *tokenizers, **to_rows)
  else:
    method = make_method(config)
    pair = make_pair(config, *tokenizers, method=method, meshes=meshes)
    rows = prepare_rows(corpus, tokenizers[0], **to_rows)
  check_prompts(config, pair, tokenizers)
  # What cannot be exported is refused before it is trained.
  llama.config_to_hf(pair.student.config, bos_id=None, eos_id=None, pad_id=None, dtype="float32")
  return _assemble(config, method, pair, tokenizers, rows, meshes)


def plan_run(config: Config, devices: Any) -> Run:
  """The run of a config for `devices` that may not exist: its train step can only be compiled.

  Nothing is read, neither weights nor tokenizer nor data: tokenizer and rows are stand-ins that
  know their sizes.

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
  paired = config.method == X_TOKEN
  inputs = {"projection": planned_projection(config, *vocabularies)} if paired else {}
  method = make_method(config, **inputs)
  pair = make_pair(config, *vocabularies, method=method, meshes=meshes, planned=True)
  nothing: dict[str, Any] = {}
  sides = 2 if paired else 1
  rows = Rows(epath.Path(), "", sides, config.seq_len, nothing, nothing, nothing, nothing)
  tokenizers = cast(tuple[Tokenizer, Tokenizer], vocabularies)
  return _assemble(config, method, pair, tokenizers, rows, meshes)


def _assemble(
  config: Config,
  method: Method,
  pair: Pair,
  tokenizers: tuple[Tokenizer, Tokenizer],
  rows: Rows,
  meshes: tuple[Any, Any],
) -> Run:
  options = OptimizerOptions(**config.optimizer.to_dict())
  learning_rate = make_schedule(options, config.steps)
  c, guard = config.curriculum, config.guard
  return Run(
    method_name=config.method,
    method=method,
    pair=pair,
    tokenizer=tokenizers[0],
    teacher_tokenizer=tokenizers[1],
    rows=rows,
    mesh=meshes[0],
    teacher_mesh=meshes[1],
    teacher_on_host=config.teacher.placement == "host",
    tx=make_optimizer(options, learning_rate),
    learning_rate=learning_rate,
    progress=make_progress(c.start, c.end, c.power, config.steps),
    seed=config.seed,
    steps=config.steps,
    batch_size=config.batch_size,
    accumulation=config.accumulation,
    chunk_size=config.loss.chunk_size or None,
    kernels=config.loss.kernels == "auto",
    spikes=Spikes(guard.spike_sigmas, guard.half_life) if guard.spike_sigmas else None,
    max_skipped=guard.max_skipped,
    fill_batches=config.distribution.fill_batches,
    held_out_rows=config.eval.rows,
    held_out_batch=eval_batch(config),
    intervals=Intervals(
      config.log_every,
      config.checkpoint.every_steps,
      config.checkpoint.every_seconds,
      config.eval.every_steps,
    ),
    keep=config.checkpoint.keep,
    keep_best=config.checkpoint.keep_best,
    prompts=tuple(config.eval.prompts),
    sample_tokens=config.eval.sample_tokens,
    compiler_options=compiler_options(config),
    tensorboard=config.tensorboard,
    limits=Limits(**config.watchdog.to_dict()),
    profile=Window(**config.profile.to_dict()),
  )
