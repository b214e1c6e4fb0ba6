"""Rules of the source: what a module imports lies below it, and layout is the formatter's."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Each may import what stands before it; rooms on one line do not know each other.
FLOORS = (
  ("errors", "types"),
  ("files", "lazy_arrays", "streams", "progress"),
  ("chips", "device_arrays", "processes", "sharding", "sources"),
  ("losses", "data", "models"),
  ("methods", "teachers"),
  ("head", "durability"),
  ("reporting",),
  ("training",),
  ("planning",),
  ("from_config",),
  ("launch",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules():
  for path in [*(ROOT / "egad_jax").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = parts[0] if parts[0] == "launch" else parts[1]
    if room not in ("__init__", "__main__"):
      yield room, path


def imported(path):
  """The rooms that a module imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      names = [node.module]
      if node.module == "egad_jax":
        names = [f"egad_jax.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      continue
    for name in names:
      if name.startswith("egad_jax."):
        yield name.split(".")[1]


def test_every_room_has_its_floor():
  assert {room for room, _ in modules()} == set(FLOOR)


@pytest.mark.parametrize("room", FLOOR)
def test_no_import_runs_upward(room):
  upward = [
    f"{path.relative_to(ROOT)} imports {other}"
    for own, path in modules()
    if own == room
    for other in imported(path)
    if other != room and FLOOR[other] >= FLOOR[room]
  ]
  assert not upward


def unpacked_literals(path):
  """The lines at which a literal tuple or list is unpacked into the literal or call around it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple | ast.List):
      yield node.lineno


def test_no_literal_is_unpacked_to_please_the_formatter():
  found = [
    f"{path.relative_to(ROOT)}:{line}"
    for name in ("egad_jax", "launch", "configs", "benchmarks", "examples", "tests")
    for path in (ROOT / name).rglob("*.py")
    for line in unpacked_literals(path)
  ]
  assert not found
