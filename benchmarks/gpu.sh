#!/usr/bin/env bash
# On a machine with one NVIDIA GPU: installs what is needed, prints the measured tables of the head.
# Usage: benchmarks/gpu.sh [--dry_run] [flags of benchmarks.head]. It has not been run on a GPU yet.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
environment=.venv-benchmarks-gpu
# Sizes of a real pair; about 16 GiB for the heads that keep all logits.
command=("$environment/bin/python" -m benchmarks.head --platform=gpu --tables=measured,errors
  --measured_sizes=4096,151936,4096,1024 --measured_chunk=1024 --rounds=20 "$@")
for argument in "$@"; do
  if [ "$argument" = --dry_run ]; then
    echo "would make $environment, install requirements-benchmarks.txt and requirements-gpu.txt, run:"
    echo "${command[*]}"
    exit
  fi
done
# The two frameworks share the GPU: JAX takes memory as it needs it.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
[ -d "$environment" ] || "$python" -m venv "$environment"
"$environment/bin/pip" install --quiet --requirement requirements-benchmarks.txt \
  --requirement requirements-gpu.txt
exec "${command[@]}"
