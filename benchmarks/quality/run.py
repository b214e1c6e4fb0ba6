"""Trains batches of students that share a teacher, and appends a JSON line for each to a file.

Command: python -m benchmarks.quality.run --teacher=FILE.gguf --rows=ROWS.npz --batch=BATCH.jsonl \
           --output=benchmarks/quality/results/NAME.jsonl [--tuning=BATCH.jsonl] [--seeds=1,2]

ROWS.npz holds uint16 token ids: train, held and ood (another domain), each [n, seq_len + 1]. A half
of the held-out rows is for choosing, the other half is reported. What is written is complete after
each seed, and a seed that would not end within --seconds is not begun.
"""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

from absl import flags

from egad_jax.errors import InputError
from launch import command_line

TEACHER = flags.DEFINE_string("teacher", None, "The teacher's weights.", required=True)
ROWS = flags.DEFINE_string("rows", None, "Rows of token ids, an .npz file.", required=True)
BATCH = flags.DEFINE_string("batch", None, "Students to train, JSON lines.", required=True)
TUNING = flags.DEFINE_string(
  "tuning", "", "Students of which the best plain one, named kd..., gives the base learning rate."
)
OUTPUT = flags.DEFINE_string("output", None, "File to append results to.", required=True)
BASE_LR = flags.DEFINE_float("base_lr", 1e-3, "Learning rate that a student's lr multiplies.")
SEEDS = flags.DEFINE_list("seeds", ["1", "2"], "Seeds of --batch; that of --tuning is 0.")
STEPS = flags.DEFINE_integer("steps", 247, "Steps of a student.", 1)
SECONDS = flags.DEFINE_float("seconds", 0.0, "Seconds from the start; 0: no limit.")
LAYERS = flags.DEFINE_integer("layers", 13, "Layers of a student.", 1)
SIZES = flags.DEFINE_list("sizes", ["16", "512", "2048"], "Rows, tokens of a row, chunk.")

_STARTED = time.monotonic()


def _say(text: str) -> None:
  print(f"{time.monotonic() - _STARTED:6.1f} s  {text}", flush=True)


class Study:
  """The teacher, the rows and where the results go."""

  def __init__(self):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.quality.together import Sizes
    from egad_jax.models.load import load_pretrained

    self.sizes = Sizes(*(int(size) for size in SIZES.value))
    with np.load(ROWS.value) as rows:
      self.rows = {name: rows[name][:, : self.sizes.seq_len + 1] for name in rows.files}
    if missing := {"train", "held", "ood"} - set(self.rows):
      raise InputError(f"--rows: {ROWS.value} lacks {', '.join(sorted(missing))}.")
    half = len(self.rows["held"]) // 2
    self.reported = {
      "validation": self.rows["held"][:half],
      "held": self.rows["held"][half:],
      "ood": self.rows["ood"],
    }
    self.read = load_pretrained(TEACHER.value)
    self.device = jax.devices()[0].device_kind
    self.versions = {"jax": jax.__version__}
    self.edges = jnp.zeros(3)

  def train(self, name: str, seeds: list[int], base_lr: float) -> list[dict[str, Any]]:
    """Trains the students of the batch file `name` with each seed; returns their results."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.quality.together import WARMUP_STEPS, Together
    from benchmarks.quality.variant import read_variants, stacked

    variants = read_variants(pathlib.Path(name))
    taps = any(values.get("inner") for values in variants.values())
    together = Together(
      self.read, self.sizes, LAYERS.value, stacked(variants), base_lr=base_lr, taps=taps
    )
    entropy = [
      np.asarray(together.entropy(together.teacher_params, jnp.asarray(batch)))
      for batch in np.split(self.reported["held"], len(self.reported["held"]) // self.sizes.rows)
    ]
    edges = jnp.asarray(np.quantile(np.concatenate(entropy), [0.25, 0.5, 0.75]), jnp.float32)
    _say(f"{name}: {len(variants)} students, base learning rate {base_lr:.3g}")
    train, rows = self.rows["train"], self.sizes.rows
    lines: list[dict[str, Any]] = []
    seed_seconds = 0.0
    for seed in seeds:
      started = time.monotonic()
      if SECONDS.value and started - _STARTED + seed_seconds > SECONDS.value:
        _say(f"{name}: seed {seed} is left out, because it would take {seed_seconds:.0f} s")
        continue
      rng = np.random.default_rng(seed)
      order, states = rng.permutation(len(train)), together.init()
      clipped = np.zeros(len(variants))
      first = 0.0
      for i in range(STEPS.value):
        batch = train[order[np.arange(i * rows, (i + 1) * rows) % len(train)]]
        noise = rng.random(self.sizes.tokens, np.float32)
        x, warmup = i / STEPS.value, min(1.0, (i + 1) / WARMUP_STEPS)
        states, (losses, over) = together.step(
          states, together.teacher_params, jnp.asarray(batch), noise, x, warmup
        )
        if i == 0:
          jax.block_until_ready(losses)
          first = time.monotonic()
          _say(f"first step, compiled, in {first - started:.1f} s")
        if i % max(1, STEPS.value // 6) == 0 or i == STEPS.value - 1:
          _say(f"seed {seed} step {i + 1}/{STEPS.value} losses {np.round(losses, 2).tolist()}")
        clipped += np.asarray(over)
      per_step = (time.monotonic() - first) / max(STEPS.value - 1, 1) / len(variants)
      scores = {
        split: together.scores(states, of_split, edges) for split, of_split in self.reported.items()
      }
      for m, (student, values) in enumerate(variants.items()):
        line = {
          "batch": pathlib.Path(name).stem,
          "name": student,
          "variant": values,
          "base_lr": base_lr,
          "seed": seed,
          "steps": STEPS.value,
          "tokens": STEPS.value * self.sizes.tokens,
          "layers": LAYERS.value,
          "clipped": round(float(clipped[m]) / STEPS.value, 4),
          **{split: scores[split][m] for split in scores},
          "device": self.device,
          "seconds_per_step": round(per_step, 5),
          **self.versions,
        }
        lines.append(line)
        held, ood = line["held"], line["ood"]
        _say(
          f"{student:24s} held-out KL {held['forward_kl']:.4f} CE {held['cross_entropy']:.4f} top "
          f"{100 * held['agreement']:.2f} %, other domain KL {ood['forward_kl']:.4f}"
        )
      del states
      with open(OUTPUT.value, "a") as output:
        output.writelines(json.dumps(line) + "\n" for line in lines[-len(variants) :])
      seed_seconds = time.monotonic() - started
    return lines


def main() -> None:
  """Trains the batches."""
  study = Study()
  _say(f"{study.device}, teacher and rows read")
  base_lr = BASE_LR.value
  if TUNING.value:
    tuned = study.train(TUNING.value, [0], base_lr)
    plain = [line for line in tuned if line["name"].startswith("kd")]
    best = min(plain, key=lambda line: line["validation"]["forward_kl"])
    base_lr *= best["variant"].get("lr", 1.0)
    _say(f"base learning rate {base_lr:.3g}, that of {best['name']}")
  study.train(BATCH.value, [int(seed) for seed in SEEDS.value], base_lr)


if __name__ == "__main__":
  command_line.run(main)
