"""Every way in which one file of a directory may be damaged."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Damage:
  """One damage to one file.

  Attributes:
    file: its path inside the directory.
    kind: deleted, halved, emptied, or the place of the byte that is flipped.
  """

  file: str
  kind: str

  def __str__(self) -> str:
    return f"{self.kind}: {self.file}"

  def apply(self, directory: pathlib.Path) -> None:
    """Does it to a copy of the directory."""
    path = directory / self.file
    content = bytearray(path.read_bytes())
    if self.kind == "deleted":
      path.unlink()
      return
    if self.kind in PLACES:
      content[PLACES[self.kind](len(content))] ^= 0x10
    else:
      del content[len(content) // 2 if self.kind == "halved" else 0 :]
    path.write_bytes(content)


PLACES = {
  "first byte flipped": lambda size: 0,
  "middle byte flipped": lambda size: size // 2,
  "last byte flipped": lambda size: size - 1,
}
KINDS = ("deleted", "halved", "emptied", *PLACES)


def damage_cases(directory: pathlib.Path) -> Iterator[Damage]:
  """All damages to all files of a directory that change something, in a fixed order."""
  for path in sorted(directory.rglob("*")):
    if path.is_file():
      for kind in KINDS if path.stat().st_size else ("deleted",):
        yield Damage(str(path.relative_to(directory)), kind)


class _Warnings(logging.Handler):
  """The messages of a logger from WARNING on."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.messages: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    self.messages.append(record.getMessage())


def falls_back(
  saved: pathlib.Path, work: pathlib.Path, damage: Damage, restore: Callable[[pathlib.Path], int]
) -> bool:
  """Restores with the last of two checkpoints damaged.

  Args:
    saved: a directory of the two.
    work: where the copy that is damaged goes; what is there is deleted.
    damage: done to the later one.
    restore: restores from a directory, asserts the values to be exactly those of the step that it
      got, and returns that step.

  Returns:
    Whether the step before was taken.

  Raises:
    AssertionError: the values were wrong, or the directory or the warning is not as promised.
  """
  last, before = sorted((int(path.name) for path in saved.iterdir()), reverse=True)
  shutil.rmtree(work, ignore_errors=True)
  shutil.copytree(saved, work)
  damage.apply(work / str(last))
  warnings = _Warnings()
  logger = logging.getLogger("egad_jax")
  logger.addHandler(warnings)
  try:
    step = restore(work)
  finally:
    logger.removeHandler(warnings)
  names = {path.name for path in work.iterdir()}
  if step == last:
    assert (names, warnings.messages) == ({str(before), str(last)}, []), damage
    return False
  assert step == before, damage
  assert names == {str(before), "quarantine"}, damage
  assert [path.name for path in (work / "quarantine").iterdir()] == [str(last)], damage
  assert len(warnings.messages) == 1, damage
  message = warnings.messages[0]
  assert f"step {last} is damaged (" in message, damage
  assert message.endswith(f"falling back to step {before}"), damage
  assert "\n" not in message, damage
  return True
