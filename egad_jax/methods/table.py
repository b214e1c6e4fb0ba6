"""The table of distillation methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from egad_jax.methods.adakd import make_adakd
from egad_jax.methods.egad import make_egad, make_vanilla_kd
from egad_jax.methods.entropy_weighting import make_ea_kd, make_se_kd
from egad_jax.methods.explicit_knowledge import make_aekt
from egad_jax.methods.method import Method
from egad_jax.methods.relation_graph import make_trg
from egad_jax.methods.taid import make_taid
from egad_jax.methods.x_token import make_x_token

METHODS: Mapping[str, Callable[..., Method]] = {
  "egad": make_egad,
  "vanilla_kd": make_vanilla_kd,
  "adakd": make_adakd,
  "aekt": make_aekt,
  "ea_kd": make_ea_kd,
  "se_kd": make_se_kd,
  "taid": make_taid,
  "trg": make_trg,
  "x_token": make_x_token,
}
"""The maker of each method, by the name that `--config.method` takes; see docs/methods.md."""


TWO_TOKENIZERS = frozenset(
  name for name, make in METHODS.items() if "projection" in inspect.signature(make).parameters
)
"""Names of the methods whose teacher may have another tokenizer.

Their makers take a `projection` from the student's vocabulary to the teacher's, and make a method
with a `SpanLoss`. The names are needed before there is a projection and so before there is a
method: it is made from the two tokenizers.
"""


def make_method(name: str, **options: object) -> Method:
  """Makes the method called `name`.

  Args:
    name: a key of `METHODS`.
    **options: keyword arguments of the method's maker, such as `make_egad`.

  Raises:
    ValueError: `METHODS` has no such name (the message lists the names), or the maker refuses an
      option's value.

  >>> make_method("vanilla_kd", temperature=2.0).feature_loss is None
  True
  """
  if name not in METHODS:
    raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}.")
  return METHODS[name](**options)
