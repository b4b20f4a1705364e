# `make demo` and `make test` each do all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Workers of the test suite: the machine's cores, at most 4 (more would fight over XLA's threads).
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); if [ $$n -gt 4 ]; then echo 4; else echo $$n; fi)

# What is compiled when the package is installed.
NATIVE := hatch_build.py llmasos_xla/kernels/_onednn/compiler.py $(wildcard llmasos_xla/kernels/_onednn/native/*)

.PHONY: demo test test-all lint clean

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/digits_demo.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow'

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
