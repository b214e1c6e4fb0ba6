"""The tiny config on a corpus of forty short documents."""

from __future__ import annotations

import pytest

from tests.from_config.configs import changed


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
  """A directory of forty short documents."""
  directory = tmp_path_factory.mktemp("texts")
  for i in range(40):
    (directory / f"{i}.txt").write_text(f"Document {i} says that {i} and {i} make {2 * i}. " * 4)
  return directory


@pytest.fixture(scope="session")
def small(texts):
  """A function that changes the tiny config, on that corpus."""

  def config(**values):
    base = {
      "data__source": str(texts),
      "data__cache": str(texts.parent / f"{texts.name}_cache"),
      "data__held_out_fraction": 0.2,
      "data__tokenizer": "train:270",
      "compilation_cache": "",
    }
    return changed(**base | values)

  return config
