"""Which trackers a config may name, and what a missing package leads to."""

from __future__ import annotations

import sys
import types

import pytest

from configs import tiny
from egad_jax import from_config
from egad_jax.errors import InputError
from egad_jax.from_config import Extensions
from egad_jax.reporting.events import TensorBoard
from egad_jax.reporting.wandb_tracker import WandbTracker


def config_with(*names):
  config = tiny.get_config()
  config.trackers = names
  return config


def test_names_become_makers_in_their_order(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
  assert from_config.loop_options(tiny.get_config()).trackers == {"tensorboard": TensorBoard}
  found = from_config.loop_options(config_with("wandb", "tensorboard")).trackers
  assert list(found.items()) == [("wandb", WandbTracker), ("tensorboard", TensorBoard)]
  assert from_config.loop_options(config_with()).trackers == {}


@pytest.mark.parametrize("names", [("wandb,mlflow",), ("tensorboard", "neptune"), (1,)])
def test_an_unknown_name_is_refused(names):
  words = r"config\.trackers must be a tuple of names among tensorboard, wandb, mlflow, such as"
  for check in (from_config.validate, from_config.loop_options):
    with pytest.raises(InputError, match=words):
      check(config_with(*names))


def test_a_name_twice_is_refused():
  with pytest.raises(InputError, match=r"config\.trackers must have each name once; got"):
    from_config.validate(config_with("tensorboard", "tensorboard"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_with_the_remedy_where_it_would_be_used(name, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)
  config = config_with("tensorboard", name)
  # Plans, evaluations and exports of such a run need no tracker.
  from_config.validate(config)
  with pytest.raises(InputError, match=rf"names {name}, .* -m pip install {name}`, or leave"):
    from_config.loop_options(config)


def test_a_directory_of_the_name_is_no_package(tmp_path, monkeypatch):
  (tmp_path / "wandb").mkdir()
  monkeypatch.delitem(sys.modules, "wandb", raising=False)
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  with pytest.raises(InputError, match="wandb is not installed"):
    from_config.loop_options(config_with("wandb"))
  (tmp_path / "wandb" / "__init__.py").write_text("raise SystemExit('must not be imported here')")
  sys.path_importer_cache.pop(str(tmp_path), None)
  assert list(from_config.loop_options(config_with("wandb")).trackers) == ["wandb"]


def test_ones_own_is_named_like_the_others():
  mine = Extensions(trackers={"mine": TensorBoard})
  config = config_with("mine")
  from_config.validate(config, mine)
  assert from_config.loop_options(config, mine).trackers == {"mine": TensorBoard}
  with pytest.raises(InputError, match="got \\('mine',\\)"):
    from_config.loop_options(config)
