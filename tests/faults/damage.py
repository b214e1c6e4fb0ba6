"""Every way in which one file of a directory may be damaged."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator


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
