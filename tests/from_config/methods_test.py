"""From the keys of a config to the method they name."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import from_config, losses, methods
from egad_jax.errors import InputError
from egad_jax.from_config.methods import Option, options
from egad_jax.methods import Context
from tests.from_config.configs import changed

KNOWN = {
  "ratio": Option(0.1, optional=False),
  "nodes": Option(64, optional=False),
  "serial": Option(False, optional=False),
  "kind": Option("label", optional=False),
  "sigma": Option(None, optional=True),
  "top": Option(8192, optional=True),
}


def values(method):
  """Loss of a few tokens, with nothing observed yet."""
  student, teacher = 2 * jax.random.normal(jax.random.key(0), (2, 6, 9))
  labels = jnp.arange(6)
  context = Context(method.init_state(), jnp.float32(0.4), jnp.float32(0.4))
  return method.loss.function(student, teacher, labels, {}, context)[0]


def test_options_take_the_types_of_their_defaults():
  text = "ratio=2, nodes = 8,serial=true,kind=teacher,sigma=3"
  read = options("method_options", text, KNOWN)
  assert read == {"ratio": 2.0, "nodes": 8, "serial": True, "kind": "teacher", "sigma": 3.0}
  assert [type(value) for value in read.values()] == [float, int, bool, str, float]
  assert options("method_options", "sigma=none,top=None,serial=False", KNOWN) == {
    "sigma": None,
    "top": None,
    "serial": False,
  }
  assert options("method_options", " ", KNOWN) == {}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("nods=3", "there is no option 'nods'; the options are ratio, nodes, serial, kind, sigma, top"),
    ("nodes=2.5", "nodes must be a value like 64; got '2.5'"),
    ("nodes=true", "nodes must be a value like 64; got 'true'"),
    ("ratio=high", "ratio must be a value like 0.1; got 'high'"),
    ("serial=1", "serial must be true or false; got '1'"),
    ("sigma=wide", "sigma must be a number; got 'wide'"),
    ("nodes", "must be name=value,name=value; got 'nodes'"),
    ("nodes=none", "nodes must be a value like 64; got 'none'"),
    ("nodes=3,nodes=4", "nodes is given twice"),
  ],
)
def test_options_that_cannot_be_read(text, message):
  with pytest.raises(InputError, match=f"config.method_options.*{message}"):
    options("method_options", text, KNOWN)


def test_options_of_the_divergence_reach_the_loss():
  config = changed(method="vanilla_kd", loss__divergence="jensen_shannon")
  plain = values(from_config.make_method(config))
  config.loss.divergence_options = "beta=0.1"
  expected = methods.make_vanilla_kd(divergence="jensen_shannon", divergence_options={"beta": 0.1})
  np.testing.assert_array_equal(values(from_config.make_method(config)), values(expected))
  assert not np.allclose(plain, values(expected))


@pytest.mark.parametrize(
  ("method", "own", "expected"),
  [
    ("adakd", "ratio_step=0.1", methods.make_adakd(focus=losses.Focus(ratio_step=0.1))),
    (
      "aekt",
      "gamma=0.5",
      methods.make_aekt(explicit_knowledge=losses.ExplicitKnowledge(gamma=0.5)),
    ),
    ("ea_kd", "entropy_temperature=2", methods.make_ea_kd(entropy_temperature=2.0)),
    ("se_kd", "fraction=0.7", methods.make_se_kd(fraction=0.7)),
    ("taid", "start=0.2", methods.make_taid(interpolation=losses.Interpolation(start=0.2))),
    ("trg", "nodes=4", methods.make_trg(graph=losses.RelationGraph(nodes=4))),
  ],
)
def test_options_of_the_method_reach_it(method, own, expected):
  config = changed(method=method, method_options=own)
  if method == "adakd":
    config.loss.divergence = "reverse_kl"
  np.testing.assert_array_equal(values(from_config.make_method(config)), values(expected))


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"method_options": "a=1"}, r"config\.method_options: there is no option 'a'; .* are none"),
    ({"method": "adakd", "method_options": "ratio=1"}, r"the options are ratio_step, tolerance"),
    (
      {"method": "adakd", "method_options": "ratio_step=2"},
      r"config\.method_options: ratio_step must be in \[0, 1\), got 2\.0",
    ),
    ({"method": "se_kd", "method_options": "fraction=0"}, r"config\.method_options: fraction must"),
    (
      {"method": "aekt", "method_options": "serial=true"},
      r"config\.method_options: .*ce_weight",
    ),
    (
      {"loss__divergence": "alpha_beta", "loss__divergence_options": "gamma=1"},
      r"config\.loss\.divergence_options: there is no option 'gamma'; .* are alpha, beta",
    ),
    (
      {"loss__divergence": "alpha_beta", "loss__divergence_options": "alpha=1e999"},
      r"config\.loss\.divergence_options: alpha and beta must each be 0 or at least 0\.01",
    ),
    (
      {"method": "vanilla_kd", "temperature__base": 0.0},
      r"config\.temperature: base must be a positive temperature, got 0\.0",
    ),
    (
      {"loss__divergence": "jensen_shannon", "loss__divergence_options": "beta=2"},
      r"config\.loss\.divergence_options: beta must be in \[0, 1\], got 2\.0",
    ),
  ],
)
def test_options_that_do_not_fit_the_method(values, message):
  with pytest.raises(InputError, match=message):
    from_config.validate(changed(**values))
