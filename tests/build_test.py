"""What a config may say, and what the answer is when it may not."""

from __future__ import annotations

import importlib
import pathlib

import jax
import pytest

import configs
from configs import default, tiny
from egad_jax import build
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError

CONFIGS = sorted(
  path.stem
  for path in pathlib.Path(configs.__file__).parent.glob("*.py")
  if path.stem not in ("__init__", "default")
)


def changed(**values):
  """The tiny config with values set; `a__b` is the key a.b."""
  config = tiny.get_config()
  for key, value in values.items():
    config.update_from_flattened_dict({key.replace("__", "."): value})
  return config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid(name):
  build.validate(importlib.import_module(f"configs.{name}").get_config())


def test_a_config_is_json_and_back():
  config = tiny.get_config()
  again = build.from_plain(build.plain(config))
  assert build.plain(again) == build.plain(config)
  build.validate(again)


def test_the_defaults_are_few_and_need_a_teacher():
  def count(config):
    return sum(count(v) if hasattr(v, "items") else 1 for v in config.values())

  config = default.get_config()
  assert count(config) <= 100
  with pytest.raises(InputError, match=r"config\.teacher\.source is required: a \.gguf file"):
    build.validate(config)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"method": "egda"}, r"config\.method must be one of egad, vanilla_kd; got 'egda'"),
    ({"student__dtype": "f16"}, r"config\.student\.dtype must be one of bfloat16, float32"),
    ({"student__init": "zeros"}, r"config\.student\.init must be one of layers, random, source"),
    ({"student__init": "source"}, r"config\.student\.source is required with"),
    ({"student__remat": "some"}, r"config\.student\.remat must be one of none, dots, full"),
    ({"loss__divergence": "kl"}, r"config\.loss\.divergence must be one of .*forward_kl"),
    ({"optimizer__schedule": "step"}, r"config\.optimizer\.schedule must be one of cosine"),
    ({"optimizer__beta2": 1.0}, r"config\.optimizer\.beta2 must be at least 0 and below 1"),
    ({"optimizer__learning_rate": float("nan")}, r"config\.optimizer\.learning_rate must be pos"),
    (
      {"branch__hard_fraction": 1.5},
      r"config\.branch: hard_fraction must be in \(0, 1\], got 1\.5",
    ),
    ({"steps": 0}, r"config\.steps must be positive; got 0"),
    ({"optimizer__learning_rate": -1.0}, r"learning_rate must be positive; got -1\.0"),
    ({"seed": -1}, r"config\.seed must not be negative; got -1"),
    ({"loss__ce_weight": -0.5}, r"config\.loss\.ce_weight must not be negative; got -0\.5"),
    ({"curriculum__end": 1.5}, r"config\.curriculum\.end must be between 0 and 1; got 1\.5"),
    ({"data__held_out_fraction": 1.0}, r"held_out_fraction must lie between 0 and 1; got 1\.0"),
    ({"accumulation": 3}, r"config\.accumulation \(3\) must divide config\.batch_size \(8\)"),
    ({"compiler_options": "a=1,b"}, r"compiler_options must be name=value,.*; got 'b'"),
    ({"compiler_options": "=1"}, r"compiler_options must be name=value,.*; got ''"),
    (
      {"curriculum__kind": "linaer"},
      r"config\.curriculum\.kind must be one of uniform, linear, .*'linaer'",
    ),
    ({"temperature__base": 0.0}, r"base must be a positive temperature, got 0\.0"),
    ({"branch__tokens": "some"}, r"tokens must be one of hard, all, easy, got 'some'"),
  ],
)
def test_a_bad_value_is_named(values, message):
  with pytest.raises(InputError, match=message):
    build.validate(changed(**values))


def test_compiler_options():
  config = changed(compiler_options="xla_a=true,xla_b=x=y")
  assert build.compiler_options(config) == {"xla_a": "true", "xla_b": "x=y"}
  assert build.compiler_options(tiny.get_config()) == {}


@pytest.mark.parametrize(
  ("layers", "pairs"),
  [
    ("last", ((4, 30),)),
    ("uniform:4", ((1, 8), (2, 15), (3, 22), (4, 30))),
    ("2:12,4:30", ((2, 12), (4, 30))),
  ],
)
def test_layer_pairs(layers, pairs):
  assert build.layer_pairs(layers, 4, 30) == pairs


@pytest.mark.parametrize("layers", ["", "first", "uniform:", "uniform:0", "1", "1:2:3", "a:b"])
def test_layer_pairs_that_cannot_be_read(layers):
  with pytest.raises(InputError, match=f"last, uniform:N or S:T,S:T; got '{layers}'"):
    build.layer_pairs(layers, 4, 30)


@pytest.mark.parametrize(
  ("layers", "message"),
  [
    ("5:30", r"different student layers between 1 and 4; got '5:30'.* student's 5\."),
    ("0:1", r"different student layers between 1 and 4"),
    ("4:31", r"different teacher layers between 1 and 30; .* teacher's 31\."),
    ("1:2,1:3", r"different student layers .* student's 1, 1\."),
    ("1:3,2:3", r"different teacher layers .* teacher's 3, 3\."),
    ("uniform:5", r"different student layers between 1 and 4"),
  ],
)
def test_layer_pairs_that_do_not_exist(layers, message):
  with pytest.raises(InputError, match=message):
    build.layer_pairs(layers, 4, 30)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """A directory of forty short documents."""
  directory = tmp_path_factory.mktemp("texts")
  for i in range(40):
    (directory / f"{i}.txt").write_text(f"Document {i} says that {i} and {i} make {2 * i}. " * 4)
  return directory


@pytest.fixture(scope="module")
def small(texts):
  """A function that changes the tiny config, on that corpus."""

  def config(**values):
    base = {
      "data__source": str(texts),
      "data__cache": str(texts.parent / f"{texts.name}_cache"),
      "data__held_out_fraction": 0.2,
      "data__tokenizer": "train:270",
      "compilation_cache": "",
    }
    return changed(**base | values)

  return config


def test_a_config_becomes_a_run(small, tmp_path):
  run = build.build(small(), tmp_path)
  assert run.mesh.devices.shape == (1, 1, 8, 1)
  assert (run.pair.student_taps, run.pair.teacher_taps) == ((2,), (4,))
  assert run.pair.student.config.head_dim == 16
  assert run.pair.teacher.config.vocab_size == run.tokenizer.vocab_size == 270


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"batch_size": 4}, r"rows over 8 devices .* config\.batch_size / accumulation \(4\)"),
    ({"accumulation": 2}, r"config\.batch_size / accumulation \(4\); use a multiple of 8"),
    ({"eval__batch_size": 3}, r"rows over 8 devices .* config\.eval\.batch_size \(3\)"),
    ({"mesh__tensor": 4, "seq_len": 66}, r"mesh\.tensor \(4\) must divide config\.seq_len \(66\)"),
    ({"mesh__data": 3}, r"the mesh must use all 8 devices; got mesh\.replica=1, mesh\.data=3"),
    ({"seq_len": 1024}, r"config\.seq_len \(1024\) is above the teacher's 512 positions"),
    (
      {"student__num_heads": 3},
      r"student\.num_heads \(3\) must divide config\.student\.dim \(32\)",
    ),
    ({"student__init": "layers"}, r"student\.init=layers takes layers of a trained teacher"),
    ({"teacher__source": "random:tony"}, r'unknown architecture "tony".*Did you mean "tiny"'),
    ({"data__tokenizer": ""}, r"random:tiny brings no tokenizer; set config\.data\.tokenizer"),
    ({"data__tokenizer": "train:many"}, r"must be train:N with a number N; got 'train:many'"),
    ({"data__tokenizer": "train:10"}, r"vocab_size \(10\) must be at least 257"),
    ({"branch__layers": "3:4"}, r"different student layers between 1 and 2; got '3:4'"),
  ],
)
def test_what_does_not_fit_together(values, message, small, tmp_path):
  with pytest.raises(InputError, match=message):
    build.build(small(**values), tmp_path)


def test_a_student_with_another_tokenizer(small, tmp_path):
  for size in (260, 265):
    Tokenizer.train(["some text, some more text"] * 4, size).save(tmp_path / str(size))
  config = small(
    data__tokenizer=str(tmp_path / "265"),
    student__init="source",
    student__source=str(tmp_path / "260"),
  )
  message = r"student\.source \(.*260, 260 entries\) is not the teacher's \(265 entries\)"
  with pytest.raises(InputError, match=message):
    build.build(config, tmp_path, devices=jax.devices()[:1])
