"""Methods train and resume; the short form of `make methods`, which has all of them."""

from __future__ import annotations

import pytest

from egad_jax.losses import METHODS
from tests.training.every_method import learns, train_and_resume


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("methods")


# Half a minute each; this one has state of its own to lose, of two kinds.
SHORT = {"adakd"}


@pytest.mark.parametrize(
  "method",
  [
    pytest.param(name, marks=[] if name in SHORT else [pytest.mark.slow])
    for name in sorted(METHODS)
  ],
)
def test_lowers_its_own_objective_and_resumes_with_its_state(method, root):
  result = train_and_resume(method, 12, root)
  assert learns(result), result
