"""Variants of a config: which fit, and which of those is the fastest."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

from egad_jax.errors import InputError
from egad_jax.planning.plan import Plan

_LOG = logging.getLogger(__name__)
_AT_MOST = 8
# (factor of batch_size, student.remat, mesh.tensor), None: as the config has it.
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
  """(name, config) of at most eight: the config itself, other remat policies, batches, meshes.

  They differ in what one may change without changing the method: more rows change the number of
  tokens in an update, though.
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
  """Plans of the variants, those that fit first, the fastest of them first.

  Args:
    config: to start from.
    make_plan: (name, config) -> plan; an `InputError` skips a variant that is none, such as a mesh
      that does not divide the batch.

  Raises:
    InputError: the config itself is none.
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
