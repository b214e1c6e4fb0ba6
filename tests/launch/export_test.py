"""The command `launch/export.py` refuses before any work what would cost others their files."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import sys
import types

import pytest
from absl import flags

from configs import tiny
from egad_jax import from_config
from egad_jax.durability.workdir import Workdir
from egad_jax.errors import InputError
from egad_jax.files import owned, paths, replacing


@pytest.fixture
def export(monkeypatch):
  """Runs the command in this process, until it would build the run."""
  export = importlib.import_module("launch.export")

  def reached(*_):
    raise NotImplementedError("the run is built")

  monkeypatch.setattr(from_config, "build", reached)

  def command(checkpoint, output):
    monkeypatch.setattr(export, "CHECKPOINT", types.SimpleNamespace(value=checkpoint))
    monkeypatch.setattr(export, "OUTPUT", types.SimpleNamespace(value=output))
    export.main()

  yield command
  # Its flags are those of other commands too.
  for name in ("checkpoint", "output"):
    delattr(flags.FLAGS, name)
  del sys.modules["launch.export"]


def write(target, text):
  with replacing.replacing(paths.parse(target, "--output"), "--output", owned.EXPORT) as staged:
    (staged / "model.safetensors").write_text(text)


@pytest.fixture
def root(tmp_path, monkeypatch):
  """Runs as a user has them: w is finished, its teacher is an export too, models is the user's."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  write(tmp_path / "teacher", "teacher")
  config = tiny.get_config()
  config.teacher.source, config.student.source = "~/../teacher", str(tmp_path / "student")
  config.data.source = "texts/*.txt"
  write(tmp_path / "student", "student")
  (tmp_path / "home").mkdir()
  with Workdir("runs/w") as workdir:
    workdir.store_config(from_config.plain(config))
    write(workdir / "export", "old")
    pathlib.Path(workdir / "checkpoints" / "20").mkdir(parents=True)
    workdir.write_json("summary.json", {})
  (tmp_path / "runs" / "models" / "mine").mkdir(parents=True)
  (tmp_path / "runs" / "models" / "mine" / "notes").write_text("x")
  (tmp_path / "runs" / "link").symlink_to("w")
  write(tmp_path / "runs" / "old", "old")
  return tmp_path


def snapshot(root):
  # Libraries make files in the home directory.
  found = [path for path in root.rglob("*") if "home" not in path.parts]
  return {p: p.is_file() and p.read_bytes() for p in found if not p.is_symlink()}


REFUSED = {
  # The case export-over-other-files.
  "runs/models": "holds mine",
  "runs/w": "holds .*checkpoints, config.json",
  "runs/link": "holds .*checkpoints",
  "runs": "holds .*models",
  ".": "current directory",
  "/": "current directory",
  "runs/w/checkpoints": "keeps for itself",
  "runs/w/checkpoints/20": "keeps for itself",
  "runs/link/checkpoints/new": "keeps for itself",
  "runs/w/summary.json": "is a file",
  "runs/w/export/new": "keeps for itself",
  "teacher": r"config\.teacher\.source",
  "~/../teacher": r"config\.teacher\.source",
  "student": r"config\.student\.source",
  "file:///x": "not supported",
  "~nobody_of_that_name/x": "no home directory",
}


def test_other_peoples_files_stay(export, root):
  before = snapshot(root)
  for output, words in REFUSED.items():
    with pytest.raises(InputError, match=f"--output .*{words}"):
      export("runs/w", output)
    assert snapshot(root) == before, output
  for output in ("runs/new", "runs/w/export", "runs/w/export-4", "runs/old", "~/out"):
    with pytest.raises(NotImplementedError):
      export("runs/w/checkpoints/20", output)
  assert snapshot(root) == before


def test_an_export_that_was_edited_stays(export, root):
  (root / "runs" / "old" / "model.safetensors").write_text("mine")
  with pytest.raises(InputError, match=r"model\.safetensors \(changed since we wrote it\)"):
    export("runs/w", "runs/old")
  mark = json.loads((root / "runs" / "w" / "export" / owned.MARK).read_text())
  assert list(mark["files"]) == ["model.safetensors"]
  assert os.listdir(root / "runs" / "old") != []
