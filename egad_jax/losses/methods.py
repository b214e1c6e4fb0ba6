"""The table of distillation methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from egad_jax.losses.egad import make_egad, make_vanilla_kd
from egad_jax.losses.method import Method

METHODS: Mapping[str, Callable[..., Method]] = {
  "egad": make_egad,
  "vanilla_kd": make_vanilla_kd,
}


def make_method(name: str, **options: object) -> Method:
  """Returns the method of that name, with the options of its maker.

  Raises:
    ValueError: there is no such method; the message lists those that exist.

  >>> make_method("vanilla_kd", temperature=2.0).feature_loss is None
  True
  """
  if name not in METHODS:
    raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}.")
  return METHODS[name](**options)
