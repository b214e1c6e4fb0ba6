"""Prints the most memory that a rival needs on the CPU beyond its inputs, in a process of its own.

`benchmarks.head` runs it: python -m benchmarks.head_torch_memory KEY '[SIZES, SETTINGS]'
"""

from __future__ import annotations

import json
import sys

from benchmarks.head_inputs import Sizes, random_inputs
from benchmarks.head_rivals import peak_bytes, rivals, tensors
from benchmarks.heads import Settings


def main(key: str, problem: str) -> None:
  """Measures one rival, in bytes."""
  sizes, settings = json.loads(problem)
  arrays = tensors(random_inputs(Sizes(*sizes)), "cpu")
  head = rivals()[key].make(Settings(*settings))
  head(*arrays)
  print(peak_bytes(lambda: head(*arrays), "cpu"))


if __name__ == "__main__":
  main(*sys.argv[1:])
