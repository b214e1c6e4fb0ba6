"""Every method trains and resumes; the short form of `make methods`."""

from __future__ import annotations

import pytest

from egad_jax.losses import METHODS
from tests.training.every_method import learns, train_and_resume


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("methods")


@pytest.mark.parametrize("method", METHODS)
def test_lowers_its_own_objective_and_resumes_with_its_state(method, root):
  result = train_and_resume(method, 12, root)
  assert learns(result), result
