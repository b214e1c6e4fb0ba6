"""From the keys of a config to the method they name."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from egad_jax import from_config, losses, methods
from egad_jax.errors import InputError
from egad_jax.from_config.unread import check_unread_options
from egad_jax.losses.log_divergences import forward_kl, reverse_kl
from egad_jax.methods import Context
from tests.from_config.configs import changed

ROOT = pathlib.Path(__file__).resolve().parents[2]


def values(method):
  """Loss of a few tokens, with nothing observed yet."""
  student, teacher = 2 * jax.random.normal(jax.random.key(0), (2, 6, 9))
  labels = jnp.arange(6)
  context = Context(method.init_state(), jnp.float32(0.4), jnp.float32(0.4))
  return method.loss.function(student, teacher, labels, {}, context)[0]


def test_options_of_the_divergence_reach_the_loss():
  config = changed(method="vanilla_kd", loss__divergence="jensen_shannon")
  plain = values(from_config.make_method(config))
  config.loss.divergence_options.jensen_shannon.beta = 0.1
  expected = methods.make_vanilla_kd(divergence="jensen_shannon", divergence_options={"beta": 0.1})
  np.testing.assert_array_equal(values(from_config.make_method(config)), values(expected))
  assert not np.allclose(plain, values(expected))


@pytest.mark.parametrize(
  ("method", "own", "expected"),
  [
    ("adakd", {"ratio_step": 0.1}, methods.make_adakd(focus=losses.Focus(ratio_step=0.1))),
    (
      "aekt",
      {"gamma": 0.5},
      methods.make_aekt(explicit_knowledge=losses.ExplicitKnowledge(gamma=0.5)),
    ),
    ("ea_kd", {"entropy_temperature": 2.0}, methods.make_ea_kd(entropy_temperature=2.0)),
    ("se_kd", {"fraction": 0.7}, methods.make_se_kd(fraction=0.7)),
    ("taid", {"start": 0.2}, methods.make_taid(interpolation=losses.Interpolation(start=0.2))),
    ("trg", {"nodes": 4}, methods.make_trg(graph=losses.RelationGraph(nodes=4))),
  ],
)
def test_options_of_the_method_reach_it(method, own, expected):
  config = changed(method=method)
  config.method_options[method].update(own)
  if method == "adakd":
    config.loss.divergence = "reverse_kl"
  np.testing.assert_array_equal(values(from_config.make_method(config)), values(expected))


def recorder(name):
  """Stands in for a method's maker; returns the keywords that it was given."""
  return functools.wraps(methods.METHODS[name])(lambda **given: given)


def test_every_option_reaches_the_maker(monkeypatch):
  """Each key of a group, changed alone, arrives under its name in what the method is made of."""
  monkeypatch.setattr(methods, "METHODS", {name: recorder(name) for name in methods.METHODS})
  for name, group in default.get_config().method_options.items():
    for option, value in group.items():
      other = "uld" if option == "kind" else type(value)(not value if value is False else value / 2)
      config = changed(method=name, temperature__kind="adaptive", loss__ce_weight=0.1)
      config.method_options[name][option] = other
      from_config.validate(config)
      given = from_config.make_method(config)
      fields = [vars(value) for value in given.values() if dataclasses.is_dataclass(value)]
      found = given.get(option) or next(f[option] for f in fields if option in f)
      assert found == other, (name, option)


def test_the_config_has_the_defaults_of_the_library():
  config = default.get_config()
  # With each method in turn, the options of all others count as unchanged.
  for method in methods.METHODS:
    config.method = method
    check_unread_options(config)
  for name, group in config.loss.divergence_options.items():
    assert dict(group) == {
      p.name: p.default
      for p in inspect.signature(losses.DIVERGENCES[name]).parameters.values()
      if p.name in group
    }


def test_the_page_of_methods_lists_every_option():
  """First those of the config with their defaults, then those of the library alone with theirs."""
  text = (ROOT / "docs" / "methods.md").read_text()
  of_classes = {
    "adakd": losses.Focus,
    "aekt": losses.ExplicitKnowledge,
    "taid": losses.Interpolation,
    "trg": losses.RelationGraph,
  }
  shared = {"projection", "temperature", "curriculum", "ce_weight", "half_life"}
  shared |= {"divergence", "divergence_options"}
  for name, group in default.get_config().method_options.items():
    section = re.search(rf"^## {name}$(.*?)^## ", text, re.M | re.S)[1]
    words = re.search(rf"`method_options\.{name}\.\*`: (.*?)^- ", section, re.M | re.S)[1]
    keys, _, alone = " ".join(words.split()).partition("In Python only")
    listed = [dict(re.findall(r"`(\w+)=([^`]+)`", part)) for part in (keys, alone)]
    parameters = inspect.signature(of_classes.get(name, methods.METHODS[name])).parameters.values()
    known = {p.name: p.default for p in parameters if p.name not in shared}
    values = [{key: ast.literal_eval(value) for key, value in part.items()} for part in listed]
    assert values[0] == dict(group), name
    assert values[0] | values[1] == known, name
    assert not set(values[0]) & set(values[1]), name


def test_every_option_of_a_divergence_is_a_key():
  groups = default.get_config().loss.divergence_options
  for name, function in losses.DIVERGENCES.items():
    parameters = inspect.signature(function).parameters
    options = set(parameters) - {"student_logits", "teacher_logits", "temperature", "where"}
    assert options == set(groups.get(name, {})), name


def test_zero_takes_all_entries_of_the_teacher(monkeypatch):
  monkeypatch.setattr(methods, "METHODS", {"x_token": recorder("x_token")})
  config = changed(method="x_token", method_options__x_token__teacher_top_k=0)
  assert from_config.make_method(config)["teacher_top_k"] is None


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      {"method_options__adakd__ratio_step": 0.1},
      r"config\.method_options\.adakd\.ratio_step \(0\.1\) is not read, because config\.method is "
      r"egad\. Leave it at its default, 0\.05\.",
    ),
    (
      {"method": "trg", "method_options__x_token__kind": "uld"},
      r"method_options\.x_token\.kind \(uld\) is not read, because config\.method is trg",
    ),
    (
      {"loss__divergence_options__jensen_shannon__beta": 0.1},
      r"config\.loss\.divergence_options\.jensen_shannon\.beta \(0\.1\) is not read, because "
      r"config\.loss\.divergence is forward_kl\. Leave it at its default, 0\.5\.",
    ),
    (
      {
        "method": "taid",
        "loss__divergence": "jensen_shannon",
        "loss__divergence_options__jensen_shannon__beta": 0.1,
      },
      r"beta \(0\.1\) is not read, because config\.method=taid has a divergence of its own",
    ),
  ],
)
def test_options_that_are_not_read(values, message):
  with pytest.raises(InputError, match=message):
    from_config.validate(changed(**values))


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      {"method": "adakd", "method_options__adakd__ratio_step": 2.0},
      r"config\.method_options\.adakd: ratio_step must be in \[0, 1\), got 2\.0",
    ),
    (
      {"method": "se_kd", "method_options__se_kd__fraction": 0.0},
      r"config\.method_options\.se_kd: fraction must",
    ),
    (
      {"method": "aekt", "method_options__aekt__serial": True},
      r"config\.method_options\.aekt: .*ce_weight",
    ),
    (
      {"method": "x_token", "method_options__x_token__teacher_top_k": -1},
      r"config\.method_options\.x_token\.teacher_top_k must not be negative; got -1",
    ),
    (
      {
        "loss__divergence": "alpha_beta",
        "loss__divergence_options__alpha_beta__alpha": float("inf"),
      },
      r"loss\.divergence_options\.alpha_beta: alpha and beta must each be 0 or at least 0\.01",
    ),
    (
      {
        "loss__divergence": "jensen_shannon",
        "loss__divergence_options__jensen_shannon__beta": 2.0,
      },
      r"config\.loss\.divergence_options\.jensen_shannon: beta must be in \[0, 1\], got 2\.0",
    ),
    (
      {"method": "vanilla_kd", "temperature__base": 0.0},
      r"config\.temperature: base must be a positive temperature, got 0\.0",
    ),
  ],
)
def test_options_that_do_not_fit_the_method(values, message):
  with pytest.raises(InputError, match=message):
    from_config.validate(changed(**values))


def test_options_of_an_extension_are_given_in_python():
  def jeffreys(log_q, log_p, *, reverse_weight=1.0):
    return forward_kl(log_q, log_p) + reverse_weight * reverse_kl(log_q, log_p)

  both = {
    name: from_config.Extensions(divergences={"jeffreys": function})
    for name, function in {
      "default": jeffreys,
      "half": functools.partial(jeffreys, reverse_weight=0.5),
    }.items()
  }
  config = changed(method="vanilla_kd", loss__divergence="jeffreys")
  losses_of = {}
  for name, extensions in both.items():
    from_config.validate(config, extensions)
    losses_of[name] = values(from_config.make_method(config, extensions))
  plain = {
    name: values(methods.make_vanilla_kd(divergence=name)) for name in ("forward_kl", "reverse_kl")
  }
  np.testing.assert_allclose(
    losses_of["half"], plain["forward_kl"] + 0.5 * plain["reverse_kl"], rtol=1e-6
  )
  assert not np.allclose(losses_of["half"], losses_of["default"])
