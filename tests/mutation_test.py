"""Every module has mutants that compile, and the import hook really loads broken code."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.mutation.check import Result, _helpers, _without_other_tests, judge, selected
from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.mutants import PER_FUNCTION, ROOT, all_mutants, chosen, files, mutants_in
from tests.mutation.nearest_tests import nearest_tests
from tests.mutation.operators import OPERATORS
from tests.mutation.page import page

PROGRAM = """
import tests.mutation.plugin as plugin
from egad_jax.losses import reductions, temperature
assert reductions.BROKEN, temperature
assert plugin._finder.is_loaded()
assert not hasattr(temperature, "BROKEN")
"""


def mutants_of(text):
  return list(mutants_in(ast.parse(text), "module.py"))


@pytest.mark.parametrize("file", files())
def test_every_module_has_mutants_that_compile(file):
  code = ast.dump(ast.parse((ROOT / file).read_text()))
  found = chosen(all_mutants(file))
  assert found or "def " not in code
  for mutant in found:
    assert mutant.before != mutant.after
    # What is broken of the module: compiling all of it each time would take a minute.
    part = ast.Module([ast.fix_missing_locations(mutant.tree(top=1))], [])
    if len(mutant.path) > 1:
      compile(part, file, "exec")
  if found:
    compile(found[-1].source, file, "exec")
    assert ast.dump(ast.parse(found[-1].source)) != code
  assert ast.dump(found[0].path[0].parent) == code, "a mutant changed the tree of the others"
  assert nearest_tests(file), f"no test is near {file}"


def test_the_modules_are_those_of_three_packages():
  assert {name.split("/")[1] for name in files()} == {"losses", "head", "methods"}


def test_every_site_names_one_mutant_and_every_operator_has_some():
  found = [mutant for file in files() for mutant in all_mutants(file)]
  assert len({mutant.site for mutant in found}) == len(found)
  assert {mutant.site.operator for mutant in selected()} == set(OPERATORS)


def test_every_equivalent_exists_and_runs():
  run = {mutant.site for mutant in selected()}
  assert [str(site) for site in EQUIVALENTS if site not in run] == []


def test_names_and_layout_do_not_matter():
  text = """
def f(x, mask):
  \"\"\"Documented.\"\"\"
  if x.ndim < 1:
    raise ValueError(f"{x.ndim - 1}")
  total = jnp.sum(jnp.where(mask, x, 0) - 1, axis=-1)
  return jax.lax.stop_gradient(total) * 2
"""
  moved = re.sub(r"\bx\b", "logits", text.replace("total", "result").replace("- 1,", "\n- 1,\n"))
  first, second = mutants_of(text), mutants_of("# A comment.\n\n" + moved)
  assert len(first) > 8
  assert [m.site[1:] for m in first] == [m.site[1:] for m in second]


@pytest.mark.parametrize(
  ("code", "operator", "expected"),
  [
    ("jax.lax.stop_gradient(x)", "detach", ["x"]),
    ("jnp.where(m, x, 0)", "mask", ["x"]),
    ("masked_mean(x, m)", "mask", ["x.mean()"]),
    ("a - b", "sign", ["a + b"]),
    ("-a", "sign", ["a"]),
    ("[a] + b", "sign", []),
    ("a / b", "factor", ["a * b"]),
    ("f(student, teacher)", "swap", ["f(teacher, student)"]),
    ("check_mask(m, shape)", "swap", []),
    ("f(a, mask=m, axis=0)", "keyword", ["f(a, axis=0)"]),
    ("f(a, axis=-1)", "axis", ["f(a, axis=0)"]),
    ("f(a, axis=1)", "axis", ["f(a, axis=-1)"]),
    ("jnp.sum(a)", "reduction", ["jnp.mean(a)"]),
    ("jnp.clip(a, 0, 1)", "bound", ["jnp.clip(a, 0, None)", "jnp.clip(a, None, 1)"]),
    ("jnp.maximum(1, n)", "bound", ["n"]),
    ("t ** 2", "power", ["t"]),
    ("a < b <= c", "comparison", ["a >= b <= c", "a < b > c"]),
    ("a < b <= c", "boundary", ["a <= b <= c", "a < b < c"]),
    ("a is None", "comparison", ["a is not None"]),
    ("a & b", "logic", ["a | b"]),
    ("a or b", "logic", ["a and b"]),
    ("~m", "negation", ["m"]),
    ("a if m else b", "negation", ["a if not m else b"]),
    ("x.astype(t)", "promotion", ["x"]),
    ("promote('x', x)", "promotion", ["x"]),
    ("a + 1", "constant", ["2"]),
    ("isinstance(a, int | float)", "logic", []),
  ],
)
def test_operators(code, operator, expected):
  found = mutants_of(f"def f(a: int | None = 1):\n  y = {code}\n")
  assert [m.after for m in found if m.site.operator == operator] == expected


def test_guards_are_dropped_as_a_whole():
  found = mutants_of("def f(a):\n  if a < 1:\n    raise ValueError(a + 1)\n  check(a)\n")
  assert [(m.site.operator, m.after) for m in found] == [("guard", "pass")] * 2


def test_a_function_with_many_mutants_runs_different_operators():
  found = mutants_of(f"def f(a, b, m):\n  y = {'a + b - ' * 20} stop_gradient(-a < b) / 2\n")
  assert len(found) > 3 * PER_FUNCTION
  few = chosen(found)
  assert len({m.site.operator for m in few}) == len(few) == PER_FUNCTION
  assert few[0].site.operator == "detach"
  others = chosen(found, but={m.site for m in few})
  assert len(others) == PER_FUNCTION
  assert {m.site for m in others}.isdisjoint({m.site for m in few})


def test_the_nearest_tests_bear_the_name_of_the_module():
  assert nearest_tests("egad_jax/losses/curriculum.py")[0] == "tests/losses/curriculum_test.py"


def test_the_hook_loads_one_module_broken(tmp_path):
  file = "egad_jax/losses/reductions.py"
  source = (ROOT / file).read_text()
  broken = tmp_path / "mutant.py"
  broken.write_text(source + "\nBROKEN = True\n")
  environment = os.environ | {"MUTANT_FILE": file, "MUTANT_SOURCE": str(broken)}
  subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, check=True)
  assert pathlib.Path(ROOT / file).read_text() == source


FAILED = {
  "test": "tests/a_test.py::test_b",
  "when": "call",
  "error": "AssertionError",
  "message": "",
}


@pytest.mark.parametrize(
  ("result", "expected"),
  [
    ({"exit": 1, "loaded": True, "failed": FAILED}, ("killed", "a_test.py::test_b")),
    ({"exit": 0, "loaded": True, "failed": {}}, ("SURVIVED", "")),
    ({"exit": 0, "loaded": False, "failed": {}}, ("ERROR", "no test imports")),
    ({"exit": 1, "loaded": False, "failed": FAILED}, ("stillborn", "AssertionError")),
    ({"exit": 2, "loaded": True, "failed": {}}, ("stillborn", "cannot be imported")),
    ({"exit": 4, "output": "no such option"}, ("ERROR", "ended with 4")),
    (
      {"exit": 4, "output": "ImportError while loading conftest 'tests/conftest.py'."},
      ("stillborn", "cannot be imported"),
    ),
    ({"exit": 1, "loaded": True, "failed": FAILED | {"when": "setup"}}, ("stillborn", "in setup")),
    ({"exit": 1, "loaded": True, "failed": FAILED | {"error": "NameError"}}, ("stillborn", "Name")),
    ({"exit": "timeout"}, ("killed", "no end")),
    ({"exit": -6}, ("killed", "signal 6")),
  ],
)
def test_only_a_failed_test_kills(result, expected):
  status, why = judge(result)
  assert status == expected[0]
  assert expected[1] in why


def test_page_counts_and_names_the_survivor():
  first, second, third = chosen(all_mutants("egad_jax/losses/curriculum.py"))[:3]
  text = page(
    [
      Result(first, "killed", "a_test.py::test_b"),
      Result(second, "SURVIVED", ""),
      Result(third, "stillborn", "a fixture"),
    ]
  )
  assert (
    f"**1 of 2 mutants in 1 of {len(files())} files are killed.** Further 1 are stillborn" in text
  )
  assert f"| {second.site} |" in text
  assert f"| {first.site} |" not in text
  sections = [line for line in text.splitlines() if line.startswith("## ")]
  assert sections == ["## Survivors", "## Operators", "## Files", "## Stillborn"]


def test_a_result_depends_on_the_modules_that_its_test_imports():
  found = _helpers("tests/training/paired_objective_test.py")
  assert {"tests/head/dense_spans.py", "tests/conftest.py"} <= set(found)
  assert not any(path.endswith("_test.py") for path in _helpers("tests/head/tpu_kernels_test.py"))


def test_a_result_depends_on_its_own_test_and_on_what_that_shares():
  text = "X = 1\ndef test_a():\n  assert X\ndef test_b():\n  assert X\n"
  more = text + "def test_c():\n  pass\n"
  assert _without_other_tests(more, "test_a") == _without_other_tests(text, "test_a")
  for changed in (text.replace("X = 1", "X = 2"), text.replace("test_a():\n", "test_a(y):\n")):
    assert _without_other_tests(changed, "test_a") != _without_other_tests(text, "test_a")
