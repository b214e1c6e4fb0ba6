"""A key that a user gave and nothing reads is refused; a preset's is not."""

from __future__ import annotations

from collections.abc import Iterator

import ml_collections
import pytest

from configs import default
from egad_jax import methods
from egad_jax.errors import InputError
from egad_jax.from_config import unread
from egad_jax.from_config.extensions import Extensions
from egad_jax.from_config.methods import RECIPES
from egad_jax.from_config.validation import validate


def _config(**values: object) -> ml_collections.ConfigDict:
  config = default.get_config()
  config.teacher.source = "random:qwen3-0.6b"
  for key, value in values.items():
    with config.ignore_type():
      config.update_from_flattened_dict({key.replace("__", "."): value})
  return config


@pytest.mark.parametrize(
  ("values", "given", "reason"),
  [
    ({"method": "vanilla_kd"}, "curriculum.kind", "config.method is vanilla_kd"),
    ({"method": "vanilla_kd"}, "temperature.strength", "config.method is vanilla_kd"),
    ({"method": "vanilla_kd"}, "branch.weight", "config.method is vanilla_kd"),
    ({"method": "trg"}, "branch.tokens", "config.method is trg"),
    ({"method": "x_token"}, "branch.layers", "config.method is x_token"),
    (
      {"method": "adakd", "temperature__kind": "adaptive"},
      "temperature.position",
      "config.method is adakd",
    ),
    ({}, "curriculum.start", "config.curriculum.kind is 'uniform'"),
    ({"curriculum__kind": "linear"}, "curriculum.width", "config.curriculum.kind is 'linear'"),
    ({}, "temperature.direction", "config.temperature.kind is 'fixed'"),
    ({"branch__weight": 0.0}, "branch.layers", "config.branch.weight is 0.0"),
    ({"branch__loss": "pair_distances"}, "branch.projector", "config.branch.loss"),
    ({}, "student.dim", "config.student.init is 'layers'"),
    ({}, "student.source", "config.student.init is 'layers'"),
    ({"student__init": "random"}, "student.layer_indices", "config.student.init is 'random'"),
    ({}, "teacher.mesh.fsdp", "config.teacher.mesh.devices is 0"),
    ({"optimizer__schedule": "constant"}, "optimizer.final_fraction", "schedule is 'constant'"),
    ({"data__held_out_source": "a.txt"}, "data.held_out_fraction", "held_out_source is 'a.txt'"),
  ],
)
def test_a_given_key_that_nothing_reads_is_refused(values, given, reason):
  config = _config(**values)
  validate(config)
  with pytest.raises(InputError) as error:
    validate(config, given=("seed", given))
  assert str(error.value).startswith(f"config.{given} is not read, because ")
  assert reason in str(error.value)


@pytest.mark.parametrize(
  ("values", "given"),
  [
    ({}, "branch.layers"),
    ({}, "temperature.base"),
    ({}, "temperature.compensation"),
    ({"method": "vanilla_kd"}, "temperature.base"),
    ({"curriculum__kind": "linear"}, "curriculum.start"),
    ({"curriculum__kind": "window"}, "curriculum.width"),
    ({"method": "trg", "branch__weight": 0.0}, "branch.hard_fraction"),
    ({"method": "trg"}, "branch.layers"),
    ({"method": "adakd", "temperature__kind": "adaptive"}, "temperature.strength"),
    ({"student__init": "random"}, "student.dim"),
  ],
)
def test_a_key_that_is_read_may_be_given(values, given):
  validate(_config(**values), given=(given,))


def test_a_method_from_outside_may_read_any_key():
  made = methods.make_method("vanilla_kd")
  extensions = Extensions(methods={"own": lambda config: made})
  validate(_config(method="own"), extensions, given=("curriculum.kind", "branch.weight"))


def _keys(group: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
  for key, value in group.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _keys(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}"


def test_the_rules_name_keys_that_exist():
  known = set(_keys(default.get_config()))
  ruled = {f"{rule.group}.{key}" for rule in unread._RULES for key in (*rule.keys, rule.setting)}
  assert ruled <= known
  reads = {key for recipe in RECIPES.values() for key in recipe.reads if "." in key}
  assert reads <= known
  assert RECIPES.keys() == methods.METHODS.keys()
