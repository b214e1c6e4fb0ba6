"""Methods train and resume; the short form of `make methods`, which has all of them."""

from __future__ import annotations

import jax
import pytest

from egad_jax.methods import METHODS
from tests.training.every_method import learns, train_and_resume


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A directory with a few texts."""
  root = tmp_path_factory.mktemp("methods")
  (root / "texts").mkdir()
  for i in range(80):
    text = f"Document {i} says that {i} and {i} make {2 * i}. " * 8
    (root / "texts" / f"{i}.txt").write_text(text)
  return root


@pytest.fixture(scope="module", autouse=True)
def _all_programs_are_kept():
  """Even those that are compiled quickly: the second half of a run has the same ones."""
  before = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  yield
  jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


# The short forms: tests of resuming (tests/launch/resume_test.py) and of the state of each method.
@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_lowers_its_own_objective_and_resumes_with_its_state(method, root):
  changes = {
    **{"data.source": str(root / "texts"), "data.held_out_fraction": 0.2},
    **{"data.tokenizer": "train:300", "seq_len": 32, "student.remat": "none"},
  }
  result = train_and_resume(method, 8, root, changes=changes, devices=jax.devices()[:1])
  assert learns(result), result
