"""The `egad` command of an installed package: `egad run --config=tiny --workdir=runs/tiny`.

Its subcommands are the modules of launch/, which is beside this package in a clone and inside it in
a wheel.
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
import types

_COMMANDS = {
  "run": "train a student, or resume its training",
  "sweep": "train several students of one teacher together",
  "plan": "whether a run fits some TPUs, and how long a step takes there",
  "evaluate": "measure a checkpoint on held-out text",
  "export": "write a checkpoint's student as a Hugging Face directory",
  "generate": "continue a prompt",
}


def _make_importable(name: str) -> None:
  """Makes launch or configs importable as a package, without adding a directory to sys.path."""
  inside = pathlib.Path(__file__).parent
  home = (inside if (inside / name).is_dir() else inside.parent) / name
  spec = importlib.util.spec_from_file_location(
    name, home / "__init__.py", submodule_search_locations=[str(home)]
  )
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)


def _load(command: str) -> types.ModuleType:
  for name in ("configs", "launch"):
    _make_importable(name)
  return importlib.import_module(f"launch.{command}")


def main() -> None:
  """Runs the command that the first argument names."""
  command = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if command in ("--help", "-h", "help"):
    print("Usage: egad COMMAND [--flag=value ...]; egad COMMAND --help lists the flags.\n")
    print("\n".join(f"  {name:10}{meaning}" for name, meaning in _COMMANDS.items()))
    return
  if command not in _COMMANDS:
    print(f"egad: no command {command!r}; there are {', '.join(_COMMANDS)}.", file=sys.stderr)
    sys.exit(2)
  module = _load(command)
  sys.argv = [f"egad {command}", *sys.argv[2:]]
  sys.modules["launch.command_line"].run(module.main)


if __name__ == "__main__":
  main()
