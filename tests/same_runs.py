"""Whether two checkouts compute the same: every method of the tiny config, whole and resumed.

  python -m tests.same_runs OTHER_CHECKOUT [--methods egad adakd] [--devices 1 8] [--steps 6]

Both run by this interpreter. For each method and number of devices the metrics, the evaluations,
the digests of every leaf of the last checkpoint and the export are compared bit for bit; then the
second half is made again from the checkpoint mid-way, and compared with that of the other checkout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from egad_jax.methods import METHODS

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Keys of a line that depend on the clock or on what else the machine holds.
_TIMES = ("tokens_per_second", "step_seconds", "seconds", "memory_bytes", "memory_peak_bytes")
_OWN = {
  "adakd": ["--config.temperature.kind=adaptive"],
  "x_token": ["--config.student.tokenizer=train:300"],
}


def train(checkout: pathlib.Path, workdir: pathlib.Path, flags: list[str], devices: int) -> None:
  """Runs or resumes the tiny config with the code of a checkout."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(checkout),
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  command = [sys.executable, "launch/run.py", "--config=configs/tiny.py", f"--workdir={workdir}"]
  result = subprocess.run(
    [*command, *flags], cwd=checkout, env=environment, capture_output=True, text=True, check=False
  )
  if result.returncode:
    raise RuntimeError(f"{checkout}: {result.stderr[-2000:]}")


def numbers(workdir: pathlib.Path, steps: int) -> dict[str, Any]:
  """What a run computed, without what its clock says."""

  def lines(name: str) -> list[Any]:
    read = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _TIMES} for line in read]

  stored = json.loads((workdir / f"checkpoints/{steps}/meta/metadata").read_text())["record"]
  leaves = [leaf["digest"] for leaf in json.loads(stored)["leaves"].values()]
  export = (workdir / "export/model.safetensors").read_bytes()
  return {
    "metrics": lines("metrics.jsonl"),
    "evaluations": lines("evaluations.jsonl"),
    # Without the paths: a field may have another name in the other checkout.
    "checkpoint": sorted(leaves),
    "export": hashlib.sha256(export).hexdigest(),
  }


def forget_second_half(workdir: pathlib.Path, steps: int) -> None:
  """Leaves what a run has that was killed right after its checkpoint mid-way."""
  shutil.rmtree(workdir / f"checkpoints/{steps}")
  for name in ("summary.json", "report.html"):
    (workdir / name).unlink()


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
  """The kinds of numbers that differ."""
  return [kind for kind in one if one[kind] != two[kind]]


def main() -> int:
  """Compares, prints a line for each comparison; 1 if anything differs."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("other", type=pathlib.Path)
  parser.add_argument("--methods", nargs="*", default=list(METHODS))
  parser.add_argument("--devices", nargs="*", type=int, default=[1, 8])
  parser.add_argument("--steps", type=int, default=6)
  arguments = parser.parse_args()
  bad = 0
  for method in arguments.methods:
    for devices in arguments.devices:
      found: dict[str, list[dict[str, Any]]] = {}
      with tempfile.TemporaryDirectory() as scratch:
        for name, checkout in (("here", ROOT), ("other", arguments.other.resolve())):
          workdir = pathlib.Path(scratch) / name
          flags = [
            f"--config.method={method}",
            f"--config.steps={arguments.steps}",
            f"--config.data.cache={scratch}/data_{name}",
            "--config.eval.sample_tokens=0",
            "--config.batch_size=8",
            "--config.eval.rows=8",
            f"--config.checkpoint.every_steps={arguments.steps // 2}",
            *_OWN.get(method, []),
          ]
          train(checkout, workdir, flags, devices)
          whole = numbers(workdir, arguments.steps)
          forget_second_half(workdir, arguments.steps)
          train(checkout, workdir, flags, devices)
          found[name] = [whole, numbers(workdir, arguments.steps)]
      for i, kind in enumerate(("whole", "resumed")):
        other = differences(found["here"][i], found["other"][i])
        bad += bool(other)
        verdict = f"DIFFERS in {', '.join(other)}" if other else "the same, bit for bit"
        print(f"{method}, {devices} device(s), {kind}: {verdict}", flush=True)
  return bool(bad)


if __name__ == "__main__":
  sys.exit(main())
