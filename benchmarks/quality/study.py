"""Trains methods with several seeds, each at its own tuned learning rate, by `launch/sweep.py`.

Command: python -m benchmarks.quality.study --students=benchmarks/quality/students/small.jsonl \
           --workdir=runs/study --output=benchmarks/quality/results/NAME.jsonl

A line of --students is a line of a sweep, and may have "seeds", the number of seeds if it is not
--seeds. A sweep with seed 0 trains each student with each of --learning_rates, and with further
ones while the best is at an end; a line that has its own learning rate keeps it. The best on the
validation rows, a half of the held-out rows, is then trained with the seeds 1, 2, and so on, one
sweep a seed, and measured on the other half and on the other domain. A sweep that is finished is
not run again, so an interrupted study goes on.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import ml_collections
from absl import flags

from egad_jax.errors import InputError
from launch import command_line, config_file

CONFIG = flags.DEFINE_string("config", "benchmarks/quality/small.py", "Config of all students.")
TEACHER = flags.DEFINE_string("teacher", "", "The teacher, if it is not the config's.")
STUDENTS = flags.DEFINE_string("students", None, "Students to train, JSON lines.", required=True)
TEXT = flags.DEFINE_string("text", "", "Text to train on, if it is not the config's.")
OTHER = flags.DEFINE_string("other", "python_docs", "Text of another domain, a data source.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweeps.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "File of results, JSON lines.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 10, "Number of seeds that are reported.", 1)
RATES = flags.DEFINE_list("learning_rates", ["2e-3", "4e-3", "8e-3"], "Grid, with even ratios.")
LR_KEY = "config.optimizer.learning_rate"
_Line = dict[str, Any]


class Study:
  """A directory of sweeps of one config, and the measurements of their students."""

  def __init__(self):
    self.workdir = pathlib.Path(WORKDIR.value)
    self.workdir.mkdir(parents=True, exist_ok=True)
    self.given = [f"--config={CONFIG.value}", f"--config.data.cache={self.workdir / 'data'}"]
    if TEACHER.value:
      self.given.append(f"--config.teacher.source={TEACHER.value}")
    if TEXT.value:
      self.given.append(f"--config.data.source={TEXT.value}")
    self._scorers: list[Any] = []

  def sweep(self, seed: int, lines: list[_Line]) -> list[dict[str, Any]]:
    """Trains the students of a sweep's lines; returns a result for each."""
    name = f"seed{seed}"
    file = self.workdir / f"{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    started = time.monotonic()
    command = [sys.executable, "launch/sweep.py", *self.given, f"--config.seed={seed}"]
    command += [f"--sweep={file}", f"--workdir={self.workdir / name}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    print(f"seed {seed}: {len(lines)} students in {seconds:.0f} s", flush=True)
    return [self._result(seed, line) for line in lines]

  def _result(self, seed: int, line: _Line) -> dict[str, Any]:
    directory = self.workdir / f"seed{seed}" / line["name"]
    config = json.loads((directory / "config.json").read_text())
    summary = json.loads((directory / "summary.json").read_text())
    changes = {key: value for key, value in line.items() if key not in ("name", LR_KEY)}
    result = {
      "batch": pathlib.Path(STUDENTS.value).stem,
      "name": line["name"].split(".lr")[0],
      "changes": changes,
      "learning_rate": config["optimizer"]["learning_rate"],
      "seed": seed,
      "steps": config["steps"],
      "tokens": summary["tokens"],
      "device": _device(),
    }
    for scorer in self._of_domains():
      result |= scorer.scores(directory / "export")
    return result

  def _of_domains(self) -> list[Any]:
    if not self._scorers:
      from benchmarks.quality.scoring import Scorer

      halves = {"validation": (0.0, 0.5), "held": (0.5, 1.0)}
      for changes, parts in (({}, halves), ({"held_out_source": OTHER.value}, {"ood": (0.0, 1.0)})):
        config = ml_collections.ConfigDict(config_file.load(CONFIG.value).to_dict())
        config.data.cache = str(self.workdir / "data")
        if TEXT.value:
          config.data.source = TEXT.value
        config.data.update(changes)
        if TEACHER.value:
          config.teacher.source = TEACHER.value
        self._scorers.append(Scorer(config, self.workdir / "scoring", parts))
    return self._scorers


def _device() -> str:
  import jax

  return jax.devices()[0].device_kind


def _at(line: _Line, rate: float) -> _Line:
  """The sweep's line of a student at a learning rate."""
  return {k: v for k, v in line.items() if k != "seeds"} | {LR_KEY: rate}


def tune(study: Study, lines: list[_Line]) -> tuple[dict[str, float], list[dict[str, Any]]]:
  """Returns the learning rate of each student that is best on validation, and all results.

  Students whose lines have a learning rate keep it, and are not trained here.
  """
  best = {line["name"]: line[LR_KEY] for line in lines if LR_KEY in line}
  lines = [line for line in lines if LR_KEY not in line]
  rates = sorted(float(rate) for rate in RATES.value)
  ratio = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1)) if len(rates) > 1 else 2.0
  wanted = [(line, rate) for line in lines for rate in rates]
  results: list[dict[str, Any]] = []
  while wanted and len(wanted) > len(results):
    asked = [_at(line, rate) | {"name": f"{line['name']}.lr{rate:.2g}"} for line, rate in wanted]
    results = study.sweep(0, asked)
    for line in lines:
      own = [r for r in results if r["name"] == line["name"]]
      score = {r["learning_rate"]: r["validation"]["forward_kl"] for r in own}
      best[line["name"]] = chosen = min(score, key=score.__getitem__)
      if len(score) > 1 and chosen in (min(score), max(score)):
        wanted.append((line, chosen / ratio if chosen == min(score) else chosen * ratio))
  return best, results


def main() -> None:
  """Tunes, trains the seeds and writes the results, all anew from the sweeps that are finished."""
  text = pathlib.Path(STUDENTS.value).read_text()
  lines = [json.loads(line) for line in text.splitlines() if line.strip()]
  names = [line["name"] for line in lines]
  if len(set(names)) < len(names):
    raise InputError(f"--students: {STUDENTS.value} has a name twice.")
  study, output = Study(), pathlib.Path(OUTPUT.value)
  best, results = tune(study, lines)
  for result in results:
    result["batch"] += "_learning_rates"
  print("learning rates:", best, flush=True)
  for seed in range(1, SEEDS.value + 1):
    of_seed = [line for line in lines if seed <= line.get("seeds", SEEDS.value)]
    results += study.sweep(seed, [_at(line, best[line["name"]]) for line in of_seed])
    output.write_text("".join(json.dumps(result) + "\n" for result in results))


if __name__ == "__main__":
  command_line.run(main)
