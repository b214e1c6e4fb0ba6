"""Plans variants of a config to find those that fit, and the fastest of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

from egad_jax.errors import InputError
from egad_jax.planning.plan import Plan

_LOG = logging.getLogger(__name__)
_AT_MOST = 8
# (factor on batch_size, student.remat, mesh.tensor); None keeps the config's value.
_VARIANTS: tuple[tuple[int, str | None, int | None], ...] = (
  (1, None, None),
  *((1, remat, None) for remat in ("none", "dots", "full")),
  (2, None, None),
  (4, None, None),
  (1, None, 2),
  (2, "full", None),
  (4, "full", None),
  (2, "dots", None),
  (1, None, 4),
)


def variants(config: Any) -> Iterator[tuple[str, Any]]:
  """Yields (name, config) of at most eight variants, the config itself first.

  The others have another remat policy, batch size or mesh, none of which changes the method. But a
  larger batch does change the number of tokens in an update.
  """
  seen: set[str] = set()
  for factor, remat, tensor in _VARIANTS:
    changed = copy.deepcopy(config)
    changed.batch_size = config.batch_size * factor
    changed.student.remat = remat or config.student.remat
    changed.mesh.tensor = tensor or config.mesh.tensor
    if tensor:
      changed.mesh.fsdp = -1
      others = [axis for axis in ("replica", "data") if changed.mesh[axis] == -1]
      changed.mesh.update(dict.fromkeys(others, 1))
    name = (
      f"batch_size={changed.batch_size} student.remat={changed.student.remat} "
      f"mesh.tensor={changed.mesh.tensor}"
    )
    if name not in seen and len(seen) < _AT_MOST:
      seen.add(name)
      yield name, changed


def search(config: Any, make_plan: Callable[[str, Any], Plan]) -> list[Plan]:
  """Plans the variants of a config; sorts those that fit first, and the fastest first.

  Args:
    config: the config to start from.
    make_plan: (name, config) -> plan. A variant for which it raises an `InputError` is skipped, for
      example one whose mesh does not divide the batch.

  Raises:
    InputError: the config itself cannot be planned.
  """
  plans = []
  for i, (name, changed) in enumerate(variants(config)):
    try:
      plans.append(make_plan(name, changed))
      _LOG.info("%s: %s", name, "fits" if plans[-1].fits else "does not fit")
    except InputError as error:
      if not i:
        raise
      _LOG.info("%s: skipped, %s", name, error)
  return sorted(plans, key=lambda plan: (not plan.fits, -(plan.tokens_per_second or 0)))
