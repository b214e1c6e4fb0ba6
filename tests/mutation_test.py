"""The table of mutations cannot rot, and the import hook really loads broken code."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from tests.mutation.check import judge
from tests.mutation.mutant import ROOT, Mutation, mutated_source
from tests.mutation.page import page
from tests.mutation.table import EQUIVALENTS, MUTATIONS

PROGRAM = """
import tests.mutation.plugin as plugin
from egad_jax.losses import reductions, temperature
assert reductions.BROKEN, temperature
assert plugin._finder.is_loaded()
assert not hasattr(temperature, "BROKEN")
"""


@pytest.mark.parametrize("file", sorted({mutation.file for mutation in MUTATIONS}))
def test_every_text_occurs_once_and_its_replacement_compiles(file):
  for mutation in MUTATIONS:
    if mutation.file == file:
      compile(mutated_source(mutation), mutation.file, "exec")
      assert all((ROOT / test).is_file() for test in mutation.tests), mutation


def test_no_mutation_is_there_twice():
  assert len({mutated_source(mutation) for mutation in MUTATIONS}) == len(MUTATIONS)
  assert len({(mutation.file, mutation.breaks) for mutation in MUTATIONS}) == len(MUTATIONS)
  assert all((ROOT / "egad_jax" / equivalent.file).is_file() for equivalent in EQUIVALENTS)


def test_a_text_that_is_gone_is_named():
  gone = Mutation("egad_jax/losses/reductions.py", "sign", "a minus", "no such line", "", ())
  with pytest.raises(ValueError, match="the text of 'a minus' must occur once, found 0 times"):
    mutated_source(gone)


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
    ({"exit": 0, "loaded": False, "failed": {}}, ("INVALID", "never imported")),
    ({"exit": 1, "loaded": False, "failed": FAILED}, ("INVALID", "AssertionError")),
    ({"exit": 2, "loaded": True, "failed": {}}, ("INVALID", "without a failed test")),
    ({"exit": 1, "loaded": True, "failed": FAILED | {"when": "setup"}}, ("INVALID", "in setup")),
    ({"exit": 1, "loaded": True, "failed": FAILED | {"error": "NameError"}}, ("INVALID", "Name")),
    ({"exit": "timeout"}, ("killed", "no end")),
  ],
)
def test_only_a_failed_test_kills(result, expected):
  status, why = judge(result)
  assert status == expected[0]
  assert expected[1] in why


def test_page_counts_and_names_the_survivor():
  first, second = MUTATIONS[:2]
  text = page([(first, "killed", "a_test.py::test_b"), (second, "SURVIVED", "")], EQUIVALENTS)
  assert "**1 of 2 mutations in 1 files are killed.**" in text
  assert "`a_test.py::test_b`" in text
  assert "**SURVIVED**" in text
