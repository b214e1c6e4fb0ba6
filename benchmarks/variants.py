"""What a config trains with: EGAD, its mechanisms one at a time, every other method."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from configs import default, egad_abstract
from egad_jax.errors import InputError

BASELINE = "vanilla_kd"
_GROUPS = ("curriculum", "temperature", "branch")
_UNIFORM = {"curriculum.kind": "uniform"}
_FIXED = {"temperature.kind": "fixed"}
_NO_BRANCH = {"branch.weight": 0.0}
# EGAD as in configs/egad_abstract.py, with the other two mechanisms absent from the program.
_ALONE: dict[str, dict[str, Any]] = {
  "curriculum": _FIXED | _NO_BRANCH,
  "temperature": _UNIFORM | _NO_BRANCH,
  "branch": _UNIFORM | _FIXED,
}
# EGAD as in configs/default.py, with features as the presets have them for models that differ in
# width.
_PRESET = "preset"
_LAST_LAYER = {"branch.layers": "last", "branch.projector": "linear", "branch.weight": 1.0}
LABELS = {name: f"egad, {name} alone" for name in _ALONE} | {
  _PRESET: "egad, as the presets have it",
  "egad": "egad, all three mechanisms",
}


def names() -> list[str]:
  """All variants: the baseline, the mechanisms, EGAD, then the rest of the table of methods."""
  from egad_jax.methods import METHODS

  first = [BASELINE, *_ALONE, _PRESET, "egad"]
  return first + [name for name in METHODS if name not in first]


def variants(config: Any, chosen: Sequence[str]) -> Iterator[tuple[str, Any]]:
  """(label, config) of each variant chosen, the baseline first whether chosen or not.

  The config's own settings of the three mechanisms are replaced. Its options of a method are kept
  for that method alone, and those of the divergence for the methods that read them.

  Raises:
    InputError: there is no such variant.
  """
  known = names()
  if unknown := [name for name in chosen if name not in known]:
    raise InputError(f"--methods: no {', '.join(unknown)}; there are {', '.join(known)}.")
  for name in known:
    if name == BASELINE or not chosen or name in chosen:
      changed = copy.deepcopy(config)
      changed.method = "egad" if name in (*_ALONE, _PRESET) else name
      mechanisms = (default if name == _PRESET else egad_abstract).get_config()
      for group in _GROUPS:
        changed[group].update(mechanisms[group].to_dict())
      changed.update_from_flattened_dict(_LAST_LAYER if name == _PRESET else _ALONE.get(name, {}))
      _reset_unread_options(changed)
      yield LABELS.get(name, name), changed


def _reset_unread_options(config: Any) -> None:
  """Sets the options that the config's method does not read to their defaults."""
  from egad_jax.methods import METHODS

  defaults = default.get_config()
  for name, group in config.method_options.items():
    if name != config.method:
      group.update(defaults.method_options[name].to_dict())
  if "divergence" not in inspect.signature(METHODS[config.method]).parameters:
    config.loss.divergence_options.update(defaults.loss.divergence_options.to_dict())
