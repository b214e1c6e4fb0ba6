"""Session settings, before jax is imported: CPU with 8 virtual devices. An object store.

Which cases of a long parametrization `make test` runs: see `pytest_collection_modifyitems`.
"""

from __future__ import annotations

import collections
import os
from typing import ClassVar

from tests.compiler import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), xla_flags(devices=8)]).strip()

import fsspec
import jax
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

# XLA reads its flags when the first devices are made. libtpu, which some tests load later, reads
# the same variable, and ends the process at a flag that it does not know.
jax.devices()
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

# A silent broadcast between ranks is how masks and weights go wrong.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Marks as slow all but n cases, evenly spaced, of a test with `@pytest.mark.short_form(n)`."""
  cases = collections.defaultdict(list)
  for item in items:
    if marker := item.get_closest_marker("short_form"):
      cases[item.path, item.originalname, marker.args[0]].append(item)
  for (_, _, count), members in cases.items():
    short = {len(members) * i // count for i in range(count)}
    for i, item in enumerate(members):
      if i not in short:
        item.add_marker(pytest.mark.slow)


class Bucket(MemoryFileSystem):
  """Stands in for an object store: whole objects only, no appending, no renaming."""

  protocol = ("gcs", "gs")
  store: ClassVar = {}
  pseudo_dirs: ClassVar = [""]

  @classmethod
  def _strip_protocol(cls, path):
    return "/" + path.removeprefix("gs://").strip("/")

  def _open(self, path, mode="rb", **options):
    assert not set(mode) & {"a", "+"}, f"object stores cannot open with {mode}"
    return super()._open(path, mode, **options)

  def mv(self, *_, **__):
    raise AssertionError("object stores cannot rename")

  rename = move = mv


@pytest.fixture
def bucket(monkeypatch):
  """A directory gs://bucket/run in an empty stand-in for an object store."""
  monkeypatch.setattr(Bucket, "store", {})
  monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
  fsspec.register_implementation("gcs", Bucket, clobber=True)
  Bucket.clear_instance_cache()
  fsspec.filesystem("gcs").mkdir("bucket")
  return epath.Path("gs://bucket/run")
