"""A short run of the train command, as small as shows all that a run does."""

from __future__ import annotations

import json
import os
import random
import subprocess

from tests.launch.fork_server import ROOT, SERVER

STEPS = 8
# Programs are kept however quickly they were compiled.
ENVIRONMENT = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


class Train:
  """Commands of a short run on a small corpus; data and compiled programs are shared."""

  def __init__(self, directory):
    self._directory = directory
    words, draw = dir(str) + dir(os) + dir(subprocess), random.Random(0)
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(100)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (directory / "corpus.jsonl").write_text(lines)

  def command(self, workdir, *flags):
    """The script and its arguments."""
    shared = self._directory
    return [
      "launch/run.py",
      f"--config={ROOT}/configs/tiny.py",
      f"--workdir={workdir}",
      f"--config.data.cache={shared}/data",
      f"--config.compilation_cache={shared}/programs",
      f"--config.data.source={shared}/corpus.jsonl",
      "--config.data.held_out_fraction=0.1",
      "--config.eval.sample_tokens=0",
      "--config.eval.every_steps=4",
      "--config.student.remat=none",
      f"--config.steps={STEPS}",
      "--config.checkpoint.every_steps=3",
      *flags,
    ]

  def __call__(self, workdir, *flags):
    """Runs it to its end."""
    return SERVER.run(*self.command(workdir, *flags), environment=ENVIRONMENT)
