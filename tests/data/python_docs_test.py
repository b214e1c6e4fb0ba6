"""The built-in corpus, on a library written here and on this Python's own."""

from __future__ import annotations

import sys

import pytest

from egad_jax.data import python_docs

_LONG = "This paragraph is long enough to count as a repetition when it is seen again."


@pytest.fixture
def library(tmp_path):
  (tmp_path / "pydoc_data").mkdir()
  (tmp_path / "package" / "test").mkdir(parents=True)
  (tmp_path / "config-3.11-x86").mkdir()
  (tmp_path / "pydoc_data" / "topics.py").write_text(
    f"raise SystemExit\ntopics = {{'a': 'Topic a\\n\\n{_LONG}', 'b': 'Topic b\\n\\n {_LONG}'}}\n"
  )
  (tmp_path / "package" / "__init__.py").write_text(
    '"""The package."""\n'
    "raise SystemExit\n"
    "class Thing:\n"
    '  r"""A thing."""\n'
    "  async def run(self, x: int = 3, *, y=None):\n"
    f'    """Runs.\n\n    {_LONG}\n    """\n'
    "def silent(): pass\n"
    f'def repeated():\n  """{_LONG}"""\n'
  )
  (tmp_path / "latin.py").write_bytes(b'# -*- coding: latin-1 -*-\n"""Caf\xe9."""\n"\\d"\n')
  (tmp_path / "broken.py").write_text("print 'python 2'\n")
  (tmp_path / "package" / "test" / "test_it.py").write_text('"""Left out."""')
  (tmp_path / "config-3.11-x86" / "a.py").write_text('"""Left out."""')
  return tmp_path


def test_documents_of_a_library(library):
  assert list(python_docs.read_python_docs(library)) == [
    f"Topic a\n\n{_LONG}\n",
    "module latin\n\nCafé.\n",
    "module package\n\nThe package.\n\nclass package.Thing\n\nA thing.\n\n"
    "package.Thing.run(self, x: int=3, *, y=None)\n\nRuns.\n",
  ]


def test_topics_come_first(library):
  names = [path.name for path in python_docs.source_files(library)]
  assert names == ["topics.py", "broken.py", "latin.py", "__init__.py"]


def test_a_library_without_topics_still_has_docstrings(library):
  (library / "pydoc_data" / "topics.py").unlink()
  assert len(list(python_docs.read_python_docs(library))) == 2


@pytest.mark.slow
def test_this_pythons_library_is_read_and_not_imported():
  before = set(sys.modules)
  texts = list(python_docs.read_python_docs())
  assert len(texts) > 300
  assert sum(map(len, texts)) > 1_000_000
  assert "antigravity" not in set(sys.modules) - before
  paragraphs = [
    " ".join(part.split()) for text in texts for part in text.split("\n\n") if len(part) > 200
  ]
  assert len(paragraphs) == len(set(paragraphs))
