"""The directory of a sweep is neither a run's nor somebody else's."""

from __future__ import annotations

import pytest

from egad_jax.durability.sweep_directory import SweepDirectory
from egad_jax.durability.workdir import Workdir
from egad_jax.errors import InputError


def test_it_holds_workdirs_and_is_locked(tmp_path):
  path = str(tmp_path / "sweep")
  with SweepDirectory(path) as directory, Workdir(f"{path}/a") as workdir:
    directory.require_ours()
    workdir.require_ours()
    with pytest.raises(InputError, match="in use by another run"):
      SweepDirectory(path)
  with SweepDirectory(path):
    pass
  # Prepared data are kept there, and no workdir.
  with pytest.raises(InputError, match="lies inside"):
    Workdir(f"{path}/data/a")


@pytest.mark.parametrize(("one", "other"), [(Workdir, SweepDirectory), (SweepDirectory, Workdir)])
def test_it_is_no_workdir(one, other, tmp_path):
  with one(str(tmp_path)):
    pass
  with pytest.raises(InputError, match=r"holds egad_jax\.json"):
    other(str(tmp_path))


def test_a_report_of_somebody_else_is_not_replaced(tmp_path):
  (tmp_path / "sweep.html").write_text("mine")
  with pytest.raises(InputError, match=r"no directory of a sweep, but holds sweep\.html"):
    SweepDirectory(str(tmp_path))


@pytest.mark.parametrize("name", ["sweep.html", "sweep.jsonl"])
def test_a_report_that_was_changed_is_not_replaced(name, tmp_path):
  with SweepDirectory(str(tmp_path / "sweep")) as directory:
    directory.write_json(name, [1])
    directory.require_ours()
    (directory / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds {name}, which this sweep did not leave there"):
      directory.require_ours()
