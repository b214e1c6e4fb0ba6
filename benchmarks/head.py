"""The fused distillation head against rivals: time, memory, gradient error, modelled TPU cycles.

Command: python -m benchmarks.head [--tables=measured,errors,modelled] [--platform=cpu|gpu]

Measured and errors: what is installed here, on this machine's CPU or one GPU. Modelled: heads in
JAX, compiled for TPUs that need not be there, up to a minute each; the grid takes over an hour.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

from absl import flags

from egad_jax.errors import InputError
from launch import command_line

_TABLES = ("measured", "errors", "modelled")
_CONTENDERS = (
  "egad",
  "egad_lean",
  "egad_xla",
  "kd",
  "dense_egad",
  "dense",
  "dense_bf16",
  "scan",
  "tunix",
)
_RIVALS = ("liger", "liger_compiled", "trl")

TABLES = flags.DEFINE_list("tables", list(_TABLES), "Which tables.")
CONTENDERS = flags.DEFINE_list("contenders", [*_CONTENDERS, *_RIVALS], "Which heads.")
PLATFORM = flags.DEFINE_enum("platform", "cpu", ["cpu", "gpu"], "Where to measure.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what would be done, and stop.")
CHIPS = flags.DEFINE_list("chips", ["v5e", "v5p", "v6e"], "Modelled: of these TPUs.")
TOKENS = flags.DEFINE_list("tokens", ["8192", "32768"], "Modelled: numbers of tokens.")
VOCABULARIES = flags.DEFINE_list(
  "vocabularies", ["49152", "151936", "262144"], "Modelled: sizes of the vocabulary."
)
DIMS = flags.DEFINE_list("dims", ["4096", "1024"], "Modelled: widths of teacher and student.")
MEASURED = flags.DEFINE_list(
  "measured_sizes", ["512", "32768", "576", "192"], "Tokens, vocabulary, teacher, student."
)
ERRORS = flags.DEFINE_list(
  "errors_sizes", ["256", "8192", "256", "128"], "Tokens, vocabulary, teacher, student."
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Measured: calls of each head that count.", 1)
TEMPERATURE = flags.DEFINE_float("temperature", 2.0, "Of plain distillation.")
CE_WEIGHT = flags.DEFINE_float("ce_weight", 0.1, "Of the cross-entropy.")
CHUNK = flags.DEFINE_integer("chunk", 1024, "Tokens of a lean chunk and of the rivals'.", 1)
MEASURED_CHUNK = flags.DEFINE_integer("measured_chunk", 128, "The same, where measured.", 1)

_T = TypeVar("_T")


def _integers(flag: flags.FlagHolder, count: int | None = None) -> list[int]:
  values = flag.value
  if not all(value.isdigit() and int(value) for value in values):
    raise InputError(f"--{flag.name} must be positive integers; got {','.join(values)}.")
  if count not in (None, len(values)):
    raise InputError(f"--{flag.name} must be {count} integers; got {len(values)}.")
  return [int(value) for value in values]


def _check(flag: flags.FlagHolder, known: tuple[str, ...]) -> None:
  if unknown := [value for value in flag.value if value not in known]:
    raise InputError(f"--{flag.name}: no {', '.join(unknown)}; there are {', '.join(known)}.")


def _chosen(all_of_them: Mapping[str, _T]) -> dict[str, _T]:
  return {key: value for key, value in all_of_them.items() if key in CONTENDERS.value}


def _prepare(tables: list[str]) -> None:
  """Sets what must be set before jax is imported."""
  if "modelled" in tables:
    from egad_jax.planning.environment import prepare_environment

    prepare_environment("v5e:2x2")  # Others can be made after it.
  else:
    os.environ["JAX_PLATFORMS"] = "cpu" if PLATFORM.value == "cpu" else "cuda,cpu"


def _dry_run(tables: list[str]) -> None:
  print(f"platform {PLATFORM.value}; heads {', '.join(CONTENDERS.value)}")
  for name in tables:
    sizes = {
      "measured": f"sizes {','.join(MEASURED.value)}, {ROUNDS.value} rounds",
      "errors": f"sizes {','.join(ERRORS.value)}",
      "modelled": f"chips {','.join(CHIPS.value)}, tokens {','.join(TOKENS.value)}, "
      f"vocabularies {','.join(VOCABULARIES.value)}",
    }
    print(f"table {name}: {sizes[name]}")


def main() -> None:
  """Prints the tables."""
  _check(TABLES, _TABLES)
  _check(CONTENDERS, (*_CONTENDERS, *_RIVALS))
  _check(CHIPS, ("v5e", "v5p", "v6e", "tpu7x"))
  measured_sizes, errors_sizes = _integers(MEASURED, 4), _integers(ERRORS, 4)
  tokens, vocabularies, dims = _integers(TOKENS), _integers(VOCABULARIES), _integers(DIMS, 2)
  tables = [name for name in _TABLES if name in TABLES.value]
  if PLATFORM.value == "gpu" and "modelled" in tables:
    raise InputError("--platform=gpu is for --tables=measured,errors; TPUs are modelled on a CPU.")
  if DRY_RUN.value:
    _dry_run(tables)
    return
  _prepare(tables)

  from benchmarks import head_measured, head_modelled
  from benchmarks.head_inputs import Sizes
  from benchmarks.head_rivals import rivals
  from benchmarks.heads import Settings, contenders

  settings = Settings(TEMPERATURE.value, CE_WEIGHT.value, CHUNK.value)
  ours, theirs = _chosen(contenders()), _chosen(rivals())
  report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
  if "measured" in tables:
    sizes = Sizes(*measured_sizes)
    chunked = settings._replace(chunk=MEASURED_CHUNK.value)
    text = head_measured.measured(ours, theirs, sizes, chunked, ROUNDS.value, report)
    print(f"Measured on the {PLATFORM.value}, {sizes}:\n\n{text}\n", flush=True)
  if "errors" in tables:
    text = head_measured.errors(ours, theirs, Sizes(*errors_sizes), settings)
    print(f"Gradient errors, {Sizes(*errors_sizes)}:\n\n{text}\n", flush=True)
  if "modelled" in tables:
    problems = [Sizes(n, v, *dims) for n in tokens for v in vocabularies]
    text = head_modelled.modelled(ours, CHIPS.value, problems, settings, report)
    print(f"Modelled, teacher of width {dims[0]}, student of {dims[1]}:\n\n{text}\n")


if __name__ == "__main__":
  command_line.run(main)
