"""Host memory that the import and the export of a sharded checkpoint take, on one process and two.

    python -m benchmarks.host_memory [--gigabytes=3] [--directory=/tmp]

A checkpoint of random bfloat16 values is written and deleted again. A teacher is imported as
bfloat16; a student as float32, and exported as bfloat16. Each run has eight virtual CPU devices in
all. Their arrays are in host memory too, so they are taken off: what is printed is the
highest resident memory (VmHWM, which counts mapped pages of files) less what was resident before,
less the bytes of the arrays that the process holds on its devices afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

DEVICES, SHARD_BYTES = 8, 10**9
VOCAB, DIM, MLP, HEADS = 32_000, 4096, 11_008, 32


def model(gigabytes: float):
  """The architecture whose bfloat16 values take about this many 10^9 bytes."""
  from egad_jax.models.config import DecoderConfig

  layer, tables = 4 * DIM**2 + 3 * DIM * MLP, 2 * VOCAB * DIM
  return DecoderConfig(
    vocab_size=VOCAB,
    dim=DIM,
    num_layers=max(1, round((gigabytes * 5e8 - tables) / layer)),
    num_heads=HEADS,
    num_kv_heads=HEADS,
    head_dim=DIM // HEADS,
    mlp_dim=MLP,
    tie_embeddings=False,
  )


def write_checkpoint(directory: pathlib.Path, gigabytes: float) -> None:
  """Writes config.json and shards of random values, a tensor at a time."""
  import ml_dtypes
  import numpy as np

  from egad_jax.models import family
  from egad_jax.models.safetensors_shards import ShardedWriter

  config = model(gigabytes)
  data = family.config_to_hf(config, bos_id=1, eos_id=2, pad_id=None, dtype="bfloat16")
  (directory / "config.json").write_text(json.dumps(data))
  tensors = family.tensors(config)
  shapes = [(t.hf, t.shape) for t in tensors]
  writer = ShardedWriter(directory, shapes, dtype="bfloat16", most=SHARD_BYTES)
  random = np.random.default_rng(0)
  for tensor in tensors:
    # Bits of values in +-[0.5, 1), and of all signs.
    bits = random.integers(0, 2**16, tensor.shape, np.uint16) & 0x807F | 0x3F00
    writer.write(tensor.hf, bits.view(ml_dtypes.bfloat16))


def resident(peak: bool) -> int:
  """Bytes of resident memory of this process: now, or at most since `reset_peak`."""
  name = "VmHWM:" if peak else "VmRSS:"
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def reset_peak() -> int:
  """Forgets the highest resident memory so far; returns the present one."""
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  return resident(peak=False)


def measure(directory: pathlib.Path, who: str, index: int, count: int, port: int) -> None:
  """Imports the checkpoint on this process and prints a line of JSON; exports a student, too."""
  from egad_jax import processes

  processes.join(f"127.0.0.1:{port}", count, index)
  import jax
  import jax.numpy as jnp

  from egad_jax import device_arrays, sharding
  from egad_jax.models import export, safetensors_shards
  from egad_jax.models.load import load_pretrained
  from egad_jax.models.model import make_model

  safetensors_shards.MOST_BYTES = SHARD_BYTES
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {"fsdp": DEVICES})

  def held(params):
    shards = (s for x in jax.tree.leaves(params) for s in x.addressable_shards)
    return sum(shard.data.nbytes for shard in shards)

  before, started = reset_peak(), time.monotonic()
  read = load_pretrained(str(directory))
  axes = make_model(read.config).logical_axes()
  shardings = sharding.parameter_shardings(mesh, axes, read.params)
  dtype = jnp.bfloat16 if who == "teacher" else jnp.float32
  dtypes = jax.tree.map(lambda _: jnp.dtype(dtype), read.params)
  params = device_arrays.put(read.params, shardings, dtypes)
  seconds, arrays = time.monotonic() - started, held(params)
  found: dict[str, Any] = {"process": index}
  found[f"import of a {who}"] = (resident(peak=True) - before - arrays, arrays, seconds)
  if who == "teacher":
    print(json.dumps(found), flush=True)
    return
  before, started = reset_peak(), time.monotonic()

  class Tokenizer:
    vocab_size, eos_id, document_end_id = VOCAB, 2, 2
    bos_id: int | None = 1
    pad_id: int | None = None

    def save(self, directory: Any) -> None:
      """Writes nothing."""

  export.export_student(
    directory / "export",
    read.config,
    params,
    Tokenizer(),
    model_card="",
    dtype="bfloat16",
    fetch=lambda array, at: device_arrays.get(array, at, processes.fetch),
    writes=processes.is_first(),
  )
  processes.wait("export")
  seconds = time.monotonic() - started
  found["export of the student"] = (resident(peak=True) - before, held(params), seconds)
  if index == 0:
    for path in directory.glob("*.safetensors"):
      same = path.read_bytes() == (directory / "export" / path.name).read_bytes()
      assert same, f"{path.name} of the export differs"
  print(json.dumps(found), flush=True)


def run(directory: pathlib.Path, who: str, count: int) -> list[dict[str, Any]]:
  """Runs `measure` on this many processes; returns what each printed."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  flags = f"--xla_force_host_platform_device_count={DEVICES // count}"
  # By the threshold, memory that is freed is no longer resident.
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": flags,
    "MALLOC_MMAP_THRESHOLD_": str(2**17),
  }
  command = [sys.executable, "-m", "benchmarks.host_memory", f"--directory={directory}"]
  command += [f"--who={who}"]
  started = [
    subprocess.Popen(
      [*command, f"--process={index}", f"--processes={count}", f"--port={port}"],
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]
  outputs = [process.communicate()[0] for process in started]
  if any(process.returncode for process in started):
    raise SystemExit("a process failed")
  # Other lines are of the library that connects the processes.
  lines = (line for output in outputs for line in output.splitlines())
  return [json.loads(line) for line in lines if line.startswith("{")]


def main() -> None:
  """Writes the checkpoint, runs all, prints a table, and deletes the checkpoint."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--gigabytes", type=float, default=3.0)
  parser.add_argument("--directory", default=tempfile.gettempdir())
  parser.add_argument("--who", default="")
  for name in ("process", "processes", "port"):
    parser.add_argument(f"--{name}", type=int, default=-1)
  arguments = parser.parse_args()
  if arguments.process >= 0:
    directory = pathlib.Path(arguments.directory)
    measure(directory, arguments.who, arguments.process, arguments.processes, arguments.port)
    return
  work = pathlib.Path(tempfile.mkdtemp(prefix="host_memory-", dir=arguments.directory))
  try:
    write_checkpoint(work, arguments.gigabytes)
    shards = [path.stat().st_size for path in work.glob("*.safetensors")]
    print(
      f"{len(shards)} shards, {sum(shards) / 1e9:.2f} GB, the largest {max(shards) / 1e9:.2f} GB"
    )
    print("\n| processes | what | arrays of a process | host memory beyond them | seconds |")
    print("|---|---|---|---|---|")
    for who, count in itertools.product(("teacher", "student"), (1, 2)):
      for found in run(work, who, count):
        index = found.pop("process")
        for what, (beyond, arrays, seconds) in found.items():
          ratio = f"{beyond / 1e9:.2f} GB, {beyond / max(shards):.2f} of the largest shard"
          who = f"{count}" if count == 1 else f"{count}, process {index}"
          print(f"| {who} | {what} | {arrays / 1e9:.2f} GB | {ratio} | {seconds:.0f} |")
  finally:
    shutil.rmtree(work)


if __name__ == "__main__":
  main()
