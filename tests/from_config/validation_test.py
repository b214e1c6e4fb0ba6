"""What a config may say, and what the answer is when it may not."""

from __future__ import annotations

import importlib
import pathlib

import pytest

import configs
from configs import default, egad_abstract, tiny
from egad_jax import from_config
from egad_jax.errors import InputError
from tests.from_config.configs import changed

CONFIGS = sorted(
  path.stem
  for path in pathlib.Path(configs.__file__).parent.glob("*.py")
  # These two name no teacher.
  if path.stem not in ("__init__", "default", "egad_abstract")
)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid(name):
  from_config.validate(importlib.import_module(f"configs.{name}").get_config())


def test_the_defaults_are_few_and_need_a_teacher():
  def count(config):
    return sum(count(v) if hasattr(v, "items") else 1 for v in config.values())

  config = default.get_config()
  assert count(config) <= 130
  with pytest.raises(InputError, match=r"config\.teacher\.source is required: hf:NAME"):
    from_config.validate(config)


def test_the_defaults_are_what_did_not_lose_and_the_abstract_is_a_preset():
  config = default.get_config()
  mechanisms = lambda c: (
    c.curriculum.kind,
    c.temperature.kind,
    c.temperature.base,
    c.branch.tokens,
  )
  assert mechanisms(config) == ("uniform", "fixed", 1.0, "all")
  features = lambda c: (c.branch.layers, c.branch.projector, c.branch.weight)
  assert features(config) == ("all", "none", 10.0)
  abstract = egad_abstract.get_config()
  assert mechanisms(abstract) == ("linear", "adaptive", 1.0, "hard")
  assert features(abstract) == ("last", "linear", 1.0)
  assert abstract.temperature.direction == "confident_hot"
  assert (abstract.curriculum.start, abstract.curriculum.end) == (0.25, 0.75)
  # The preset changes nothing else.
  for group in ("curriculum", "temperature", "branch"):
    abstract[group] = config[group]
  assert abstract == config


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      {"method": "adakd", "temperature__kind": "fixed"},
      r'config\.temperature\.kind \("fixed"\) must be "adaptive" or "mean" for method adakd',
    ),
    (
      {
        "method": "adakd",
        "temperature__kind": "adaptive",
        "temperature__compensation": "gradient_norm",
      },
      r"config\.temperature: compensation 'gradient_norm' is egad's alone; for adakd it must",
    ),
    ({"method": "egda"}, r"config\.method must be one of egad, vanilla_kd, .*; got 'egda'"),
    ({"attention": "flash"}, r"config\.attention must be one of auto, splash, cudnn, xla; got 'f"),
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
    ({"watchdog__step_seconds": -1.0}, r"config\.watchdog\.step_seconds must not be negative"),
    ({"watchdog__other_seconds": float("nan")}, r"config\.watchdog\.other_seconds must not be"),
    ({"profile__start_step": -1}, r"config\.profile\.start_step must not be negative; got -1"),
    ({"profile__steps": 0}, r"config\.profile\.steps must be positive; got 0"),
    ({"steps": 0}, r"config\.steps must be positive; got 0"),
    ({"optimizer__learning_rate": -1.0}, r"learning_rate must be positive; got -1\.0"),
    ({"guard__max_skipped": 0}, r"config\.guard\.max_skipped must be positive; got 0"),
    ({"guard__half_life": 0.0}, r"config\.guard\.half_life must be positive; got 0\.0"),
    ({"guard__spike_sigmas": -1.0}, r"guard\.spike_sigmas must not be negative; got -1\.0"),
    ({"seed": -1}, r"config\.seed must be at least 0 and below 2\*\*32; got -1"),
    ({"seed": 2**32}, r"config\.seed must be at least 0 and below 2\*\*32; got 4294967296"),
    ({"loss__ce_weight": -0.5}, r"config\.loss\.ce_weight must not be negative; got -0\.5"),
    ({"curriculum__end": 1.5}, r"config\.curriculum\.end must be between 0 and 1; got 1\.5"),
    (
      {"data__held_out_fraction": 1.0},
      r"held_out_fraction must lie between 0 and 1; got 1\.0\. Use a share such as",
    ),
    ({"accumulation": 3}, r"config\.accumulation \(3\) must divide config\.batch_size \(8\)"),
    ({"compiler_options": "a=1,b"}, r"compiler_options must be name=value,.*; got 'b'"),
    ({"compiler_options": "=1"}, r"compiler_options must be name=value,.*; got '=1'"),
    ({"compiler_options": "a=1,a=2"}, r"compiler_options: a is given twice"),
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
    from_config.validate(changed(**values))


def test_compiler_options():
  config = changed(compiler_options="xla_a=true,xla_b=x=y")
  assert from_config.compiler_options(config) == {"xla_a": "true", "xla_b": "x=y"}
  assert from_config.compiler_options(tiny.get_config()) == {}
