"""One file for each family of models, which declares its `FAMILY`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any


def declared() -> Iterator[Any]:
  """The `FAMILY` of every module of this package, in the order of the modules' names."""
  for module in pkgutil.iter_modules(__path__):
    yield importlib.import_module(f"{__name__}.{module.name}").FAMILY
