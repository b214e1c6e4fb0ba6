from __future__ import annotations

import inspect

import jax
import numpy as np
import pytest

from egad_jax.losses import DIVERGENCES, log_divergences
from egad_jax.losses.log_divergences import LOG_DIVERGENCES, make_divergence
from egad_jax.losses.probabilities import log_probabilities


def test_both_tables_have_the_same_names_and_options():
  assert list(LOG_DIVERGENCES) == list(DIVERGENCES)
  for name, function in DIVERGENCES.items():
    options = {
      parameter.name: parameter.default
      for parameter in inspect.signature(function).parameters.values()
      if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert options.pop("temperature") == 1.0
    assert options.pop("where") is None
    of_logs = inspect.signature(LOG_DIVERGENCES[name]).parameters.values()
    assert options == {p.name: p.default for p in of_logs if p.default is not p.empty}


def pair():
  return np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)


def test_on_log_probabilities_as_on_logits():
  @jax.jit
  def compute(*pair):
    logs = [log_probabilities(logits) for logits in pair]
    return {name: (make_divergence(name)(*logs), DIVERGENCES[name](*pair)) for name in DIVERGENCES}

  for name, (of_logs, of_logits) in compute(*pair()).items():
    np.testing.assert_array_equal(of_logs, of_logits, err_msg=name)


def test_options_arrive():
  @jax.jit
  def compute(*pair):
    function = make_divergence("jensen_shannon", {"beta": 0.2})
    return (
      function(*(log_probabilities(logits) for logits in pair)),
      DIVERGENCES["jensen_shannon"](*pair, beta=0.2),
      DIVERGENCES["jensen_shannon"](*pair),
    )

  value, expected, default = map(np.asarray, compute(*pair()))
  np.testing.assert_array_equal(value, expected)
  assert np.any(value != default)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("kl", {}, "divergence must be one of forward_kl, reverse_kl, .*, got 'kl'"),
    ("forward_kl", {"beta": 1}, r"forward_kl takes the options \(none\), got beta"),
    ("alpha_beta", {"gamma": 1}, "takes the options alpha, beta, got gamma"),
    ("jensen_shannon", {"beta": 2.0}, r"beta must be in \[0, 1\], got 2.0"),
  ],
)
def test_misuse(name, options, message):
  with pytest.raises(ValueError, match=message):
    make_divergence(name, options)


def test_head_that_has_the_mass_exactly_takes_no_further_entry():
  log_p, log_q = np.log(np.array([[0.25, 0.5, 0.25], [0.125, 0.25, 0.625]], np.float32))

  @jax.jit
  def compute(log_q, log_p):
    forward, reverse = (
      log_divergences.forward_kl(log_q, log_p),
      log_divergences.reverse_kl(log_q, log_p),
    )
    return log_divergences.adaptive_kl(log_q, log_p, head_mass=0.5), (forward + 2 * reverse) / 3

  # Gaps: 0.25 in the head {1}, 0.5 in the tail.
  np.testing.assert_allclose(*compute(log_q, log_p), rtol=1e-6)


def test_hellinger_of_entries_too_small_to_square_has_a_finite_gradient():
  log_q, log_p = np.array([[0.0, -150.0], [0.0, -200.0]], np.float32)
  value, gradient = jax.jit(jax.value_and_grad(log_divergences.hellinger))(log_q, log_p)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)
