"""Files are data: nothing in the product turns one into code."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(
  path for folder in ("egad_jax", "launch") for path in (ROOT / folder).rglob("*.py")
)
MODULES = {
  "pickle",
  "cPickle",
  "_pickle",
  "marshal",
  "shelve",
  "dill",
  "cloudpickle",
  "joblib",
  "code",
  "torch",
  "transformers",
  "runpy",
  "ctypes",
  "codeop",
}
# `compose` makes nodes of text and no values.
SAFE_YAML = {"safe_load", "safe_dump", "compose"}
COMMANDS = ("egad_jax/__main__.py", "launch/config_file.py", "egad_jax/models/families/__init__.py")
CALLS = {"eval", "exec", "compile", "__import__", "import_module", "exec_module", "load_module"}


def _violations(tree: ast.AST) -> list[str]:
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or ""]
    else:
      names = []
    found += [name for name in names if name.split(".")[0] in MODULES]
    if not isinstance(node, ast.Call):
      continue
    called = node.func.id if isinstance(node.func, ast.Name) else ""
    if isinstance(node.func, ast.Attribute):
      # re.compile and the compilers of jax are other things.
      called = node.func.attr if node.func.attr != "compile" else ""
    found += [called] if called in CALLS else []
    if ast.unparse(node.func) == f"yaml.{called}" and called not in SAFE_YAML:
      found.append(f"yaml.{called}")
    found += [
      k.arg for k in node.keywords if k.arg in ("allow_pickle", "trust_remote_code", "shell")
    ]
    if isinstance(node.func, ast.Attribute) and called == "Environment":
      found.append("jinja2.Environment")
  return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_from_data(path):
  found = _violations(ast.parse(path.read_text()))
  if str(path.relative_to(ROOT)) in COMMANDS:
    # Configs are code by design; the package's own commands and families are imported by name.
    found = [name for name in found if name not in ("exec_module", "import_module")]
  # The report and the model card are templates of the project's own.
  own = path.name in ("report.py", "model_card.py")
  if path.name == "preemption.py":
    # It asks the C library who handles a signal; no file has a say in that.
    found = [name for name in found if name != "ctypes"]
  assert [name for name in found if not (own and name == "jinja2.Environment")] == []


@pytest.mark.parametrize(
  "code",
  [
    "import pickle",
    "from torch import load",
    "yaml.load(f)",
    "eval('1')",
    "exec('1')",
    "builtins.eval('1')",
    "__import__('os')",
    "importlib.import_module('a')",
    "np.load(f, allow_pickle=True)",
    "run(c, shell=True)",
    "jinja2.Environment()",
  ],
)
def test_each_of_them_would_be_found(code):
  assert _violations(ast.parse(code))
