from __future__ import annotations

import inspect

import jax
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses import DIVERGENCES, log_divergences
from egad_jax.losses.log_divergences import LOG_DIVERGENCES, make_divergence
from egad_jax.losses.probabilities import log_probabilities

PUBLIC = {
  "forward_kl": {},
  "reverse_kl": {},
  "jensen_shannon": {"beta": 0.5},
  "skew_forward_kl": {"alpha": 0.1},
  "skew_reverse_kl": {"alpha": 0.1},
  "total_variation": {},
  "alpha_beta": {"alpha": 0.2, "beta": 0.7},
  "adaptive_kl": {"head_mass": 0.5},
  "token_wise_kl": {},
}


@pytest.mark.parametrize("name", [*PUBLIC, "hellinger", "target_class_kl", "non_target_class_kl"])
def test_what_a_user_reads_of_a_divergence_on_logits(name):
  function, formula = getattr(losses, name), getattr(log_divergences, name)
  parameters = inspect.signature(function).parameters.values()
  labels = ["labels"] if name.endswith("class_kl") else []
  assert [p.name for p in parameters if p.default is p.empty] == [
    "student_logits",
    "teacher_logits",
    *labels,
  ]
  keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
  assert {p.name: p.default for p in keywords} == {
    **PUBLIC.get(name, {}),
    "temperature": 1.0,
    "where": None,
  }
  assert (function.__name__, function.__module__) == (name, "egad_jax.losses.divergences")
  meaning, _, arguments = function.__doc__.partition("Args:\n")
  assert meaning.strip() in inspect.cleandoc(formula.__doc__)
  for parameter in parameters:
    assert f"\n  {parameter.name}: " in f"\n{arguments}"
  assert "Returns:\n  The divergence of each token, shape [...]" in arguments


def test_the_tables_have_the_public_names():
  assert list(DIVERGENCES) == list(LOG_DIVERGENCES) == list(PUBLIC)
  assert all(DIVERGENCES[name] is getattr(losses, name) for name in PUBLIC)


def test_an_option_that_is_not_there():
  with pytest.raises(TypeError, match=r"jensen_shannon\(\) got an unexpected keyword .*'gamma'"):
    losses.jensen_shannon(*pair(), gamma=0.5)


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
