"""Trains methods with several seeds, each at its own tuned learning rate, by `launch/sweep.py`.

Command: python -m benchmarks.quality.study --students=benchmarks/quality/students/small.jsonl \
           --workdir=runs/study --output=benchmarks/quality/results/NAME.jsonl

A line of --students is a line of a sweep, and may have "seeds", the number of seeds if it is not
--seeds, and "rate_of", the name of a student whose learning rate it takes. A sweep with seed 0
trains each student with each of --learning_rates, and with further ones while the best is at an
end; a line that has its own learning rate keeps it. The best on the validation rows, a half of the
held-out rows, is then trained with the seeds 1, 2, and so on, one sweep a seed, and measured on the
other half and on the other domain. A sweep that is finished is not run again, so an interrupted
study goes on.
"""

from __future__ import annotations

import functools
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import ml_collections
from absl import flags

from benchmarks.quality.lines import read
from benchmarks.quality.tuning import LR_KEY, STUDY_KEYS, Line, at_rate, tune
from egad_jax.errors import InputError
from launch import command_line, config_file

CONFIG = command_line.define_config(default="benchmarks/quality/small.py")
STUDENTS = flags.DEFINE_string("students", None, "Students to train, JSON lines.", required=True)
OTHER = flags.DEFINE_string("other", "python_docs", "Text of another domain, a data source.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweeps.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "File of results, JSON lines.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 10, "Number of seeds that are reported.", 1)
ROWS = flags.DEFINE_integer("rows", 0, "Held-out rows to measure on; 0: the config's eval.rows.", 0)
RATES = flags.DEFINE_list("learning_rates", ["2e-3", "4e-3", "8e-3"], "Grid, with even ratios.")


class Study:
  """A directory of sweeps of one config, and the measurements of their students."""

  def __init__(self):
    self.workdir = pathlib.Path(WORKDIR.value)
    self.workdir.mkdir(parents=True, exist_ok=True)
    config = command_line.config(CONFIG)
    self.changes = {"data.cache": str(self.workdir / "data")}
    self.changes |= {
      key: functools.reduce(getattr, key.split("."), config) for key in command_line.given_keys()
    }
    self._scorers: list[Any] = []
    # {directory of a student: its scores}; the tuning asks for the same students again.
    self._scores: dict[pathlib.Path, dict[str, Any]] = {}

  def sweep(self, seed: int, lines: dict[str, Line]) -> list[dict[str, Any]]:
    """Trains the students of a sweep's lines; returns a result for each.

    Args:
      seed: the seed of all of them.
      lines: the lines by the names that the students have in the sweep. In their results they have
        the names of the lines.
    """
    file = self.workdir / f"seed{seed}.jsonl"
    of_sweep = [line | {"name": name} for name, line in lines.items()]
    file.write_text("".join(json.dumps(line) + "\n" for line in of_sweep))
    started = time.monotonic()
    command = [sys.executable, "launch/sweep.py", f"--config={CONFIG.name}"]
    command += [f"--config.{key}={value}" for key, value in self.changes.items()]
    command += [f"--config.seed={seed}", f"--sweep={file}", f"--workdir={file.with_suffix('')}"]
    # The sweep has printed why it failed.
    if code := subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
      raise SystemExit(code)
    seconds = time.monotonic() - started
    print(f"seed {seed}: {len(lines)} students in {seconds:.0f} s", flush=True)
    return [self._result(seed, file.with_suffix("") / name, line) for name, line in lines.items()]

  def _result(self, seed: int, directory: pathlib.Path, line: Line) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text())
    summary = json.loads((directory / "summary.json").read_text())
    changes = {
      key: value for key, value in line.items() if key not in ("name", LR_KEY, *STUDY_KEYS)
    }
    result = {
      "batch": pathlib.Path(STUDENTS.value).stem,
      "name": line["name"],
      "changes": changes,
      "learning_rate": config["optimizer"]["learning_rate"],
      "seed": seed,
      "steps": config["steps"],
      "tokens": summary["tokens"],
      "device": _device(),
    }
    if directory not in self._scores:
      self._scores[directory] = {}
      for scorer in self._of_domains():
        self._scores[directory] |= scorer.scores(directory / "export")
    return result | self._scores[directory]

  def _of_domains(self) -> list[Any]:
    if not self._scorers:
      from benchmarks.quality.scoring import Scorer

      halves = {"validation": (0.0, 0.5), "held": (0.5, 1.0)}
      for changes, parts in (
        ({}, halves),
        ({"data.held_out_source": OTHER.value}, {"ood": (0.0, 1.0)}),
      ):
        config = ml_collections.ConfigDict(config_file.load(CONFIG.name).to_dict())
        config.update_from_flattened_dict(self.changes | changes)
        config.eval.rows = ROWS.value or config.eval.rows
        self._scorers.append(Scorer(config, self.workdir / "scoring", parts))
    return self._scorers


def _device() -> str:
  import jax

  return jax.devices()[0].device_kind


def main() -> None:
  """Tunes, trains the seeds and writes the results, all anew from the sweeps that are finished."""
  lines = read(pathlib.Path(STUDENTS.value), "--students")
  names = [line["name"] for line in lines]
  if len(set(names)) < len(names):
    raise InputError(f"--students: {STUDENTS.value} has a name twice.")
  tuned = {line["name"] for line in lines if "rate_of" not in line}
  if unknown := {line["rate_of"] for line in lines if "rate_of" in line} - tuned:
    raise InputError(
      f"--students: {STUDENTS.value}: rate_of must name a student with a rate of its own, not "
      f"{', '.join(sorted(unknown))}."
    )
  study, output = Study(), pathlib.Path(OUTPUT.value)
  rates = sorted(float(rate) for rate in RATES.value)
  best, results = tune(lambda asked: study.sweep(0, asked), lines, rates)
  for result in results:
    result["batch"] += "_learning_rates"
  print("learning rates:", best, flush=True)
  for seed in range(1, SEEDS.value + 1):
    of_seed = [line for line in lines if seed <= line.get("seeds", SEEDS.value)]
    results += study.sweep(
      seed, {line["name"]: at_rate(line, best[line["name"]]) for line in of_seed}
    )
    output.write_text("".join(json.dumps(result) + "\n" for result in results))


if __name__ == "__main__":
  command_line.run(main)
