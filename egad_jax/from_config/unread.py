"""Refuses values that nothing would read: options of what is not in use, and overrides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from egad_jax import methods
from egad_jax.errors import InputError
from egad_jax.from_config.extensions import NO_EXTENSIONS, Extensions
from egad_jax.from_config.methods import RECIPES, defaults_of
from egad_jax.from_config.values import Config
from egad_jax.losses.log_divergences import LOG_DIVERGENCES

_MECHANISMS = ("curriculum", "temperature", "branch")


class _Rule(NamedTuple):
  """When some keys are read.

  Attributes:
    group: the group of the config that holds the keys.
    keys: their names in the group.
    is_read: (the group) -> whether they are read.
    setting: the key of the group that decides it, for the message.
  """

  group: str
  keys: Collection[str]
  is_read: Callable[[Config], bool]
  setting: str


_RULES = (
  _Rule("curriculum", ("width",), lambda c: c.kind == "window", "kind"),
  _Rule("curriculum", ("competence",), lambda c: c.kind == "competence", "kind"),
  _Rule("curriculum", ("strength",), lambda c: c.kind == "exponential", "kind"),
  _Rule("curriculum", ("start", "end", "power"), lambda c: c.kind != "uniform", "kind"),
  _Rule(
    "temperature",
    ("strength", "direction", "position", "minimum", "maximum", "anneal"),
    lambda t: t.kind != "fixed",
    "kind",
  ),
  _Rule(
    "branch",
    ("hard_fraction", "threshold", "softness", "tokens", "hard_logits", "layers", "loss"),
    lambda b: b.weight > 0,
    "weight",
  ),
  _Rule("branch", ("projector",), lambda b: b.weight > 0, "weight"),
  _Rule("branch", ("projector",), lambda b: b.loss != "pair_distances", "loss"),
  _Rule("student", ("source",), lambda s: s.init == "source", "init"),
  _Rule("student", ("layers",), lambda s: s.init != "source", "init"),
  _Rule("student", ("layer_indices",), lambda s: s.init == "layers", "init"),
  _Rule("student", ("architecture",), lambda s: s.init != "layers", "init"),
  _Rule(
    "student",
    ("dim", "num_heads", "num_kv_heads", "mlp_dim"),
    lambda s: s.init == "random",
    "init",
  ),
  _Rule("teacher.mesh", ("data", "fsdp", "tensor"), lambda m: m.devices > 0, "devices"),
  _Rule("optimizer", ("final_fraction",), lambda o: o.schedule != "constant", "schedule"),
  _Rule("data", ("held_out_fraction",), lambda d: not d.held_out_source, "held_out_source"),
)


def check_given(
  config: Config, given: Collection[str], extensions: Extensions = NO_EXTENSIONS
) -> None:
  """Checks that the keys that a user gave are read, which a preset's keys need not be.

  A preset may set up a mechanism that another method ignores; whoever sets a key by hand expects it
  to act.

  Args:
    config: all keys, the given ones with their new values.
    given: keys that were given one by one, such as "curriculum.kind".
    extensions: methods from outside the package, which may read any key.

  Raises:
    InputError: a key of `given` is not read; the message says why.
  """
  for key in sorted(given):
    group, _, name = key.rpartition(".")
    if group in _MECHANISMS:
      if config.method in extensions.methods:
        continue
      reads = RECIPES[config.method].reads
      if group not in reads and key not in reads:
        raise InputError(
          f"config.{key} is not read, because config.method is {config.method}. Leave it out, or "
          "choose a method that reads it, such as egad."
        )
      # A method that reads single keys of a group does so whatever the others say.
      if group not in reads:
        continue
    for rule in _RULES:
      if rule.group != group or name not in rule.keys:
        continue
      values = config
      for part in group.split("."):
        values = values[part]
      if not rule.is_read(values):
        raise InputError(
          f"config.{key} is not read, because config.{group}.{rule.setting} is "
          f"{values[rule.setting]!r}. Leave it out, or change that key too."
        )


def check_unread_options(config: Config, extensions: Extensions = NO_EXTENSIONS) -> None:
  """Checks that the options of methods and divergences that are not in use have their defaults.

  Raises:
    InputError: an option that nothing reads was changed; the message names it.
  """
  method, divergence = config.method, config.loss.divergence
  makers = {name: r.made[1] if r.made else methods.METHODS[name] for name, r in RECIPES.items()}
  _check_unread(
    "method_options", config.method_options, makers, method, f"config.method is {method}"
  )
  reason = f"config.loss.divergence is {divergence}"
  if method not in extensions.methods and "divergence" not in defaults_of(methods.METHODS[method]):
    divergence, reason = None, f"config.method={method} has a divergence of its own"
  groups = config.loss.divergence_options
  _check_unread("loss.divergence_options", groups, LOG_DIVERGENCES, divergence, reason)


def _check_unread(
  key: str,
  groups: Config,
  makers: Mapping[str, Callable[..., Any]],
  chosen: str | None,
  reason: str,
) -> None:
  """Checks all groups of options but the chosen one.

  Args:
    key: key of the config that holds the groups, for the message.
    groups: name -> the options of the method or divergence of that name.
    makers: name -> the function or dataclass whose defaults are those of the options.
    chosen: name of the group that is read; None if none is.
    reason: why the others are not read, for the message.

  Raises:
    InputError: a key has another value than its default.
  """
  for name, group in groups.items():
    defaults = defaults_of(makers[name])
    for option, value in group.items():
      if name != chosen and value != defaults[option]:
        raise InputError(
          f"config.{key}.{name}.{option} ({value}) is not read, because {reason}. Leave it at its "
          f"default, {defaults[option]}."
        )
