# `make` shows what there is. Everything runs in .venv, which `make venv` builds from constraints.txt.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test lint types contracts tests bench clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCHMARKS := $(sort $(basename $(notdir $(wildcard benchmarks/[a-z]*.py))))

# one thread per rank; ranks share the cores
export OMP_NUM_THREADS := 1
# every rank is a process, which should not compile the package anew
export PYTHONDONTWRITEBYTECODE :=

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Begin with make demo; then read README.md. Another interpreter: make venv PYTHON=python3.12"

venv: $(READY)  ## .venv with every package pinned, and the trainsys command in .venv/bin

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "trainsys needs Python 3.11 or newer: make venv PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt setuptools
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: venv  ## plan a small model, train it, kill a rank on the way, compare with an undisturbed run (1 minute)
	mkdir -p runs/demo
	$(BIN)/trainsys plan configs/run/demo.yaml --out runs/demo/plan.yaml
	$(BIN)/trainsys drill runs/demo/plan.yaml run_dir=runs/demo

test: lint types contracts tests  ## everything that must pass before a commit

lint: venv  ## style and format (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv  ## types, strict (mypy)
	$(BIN)/mypy

contracts: venv  ## imports run downwards only (import-linter)
	$(BIN)/lint-imports

# tests that look at the clock have the mark `alone`: one after the other, when the others are done
ALONE = $(shell grep -rl --include='*.py' 'pytest.mark.alone' tests)

tests: venv  ## the tests alone; parts of them: .venv/bin/pytest tests/space -k transition
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m 'not alone' tests
	$(BIN)/pytest -m alone $(ALONE)

bench: venv  ## every benchmark, each against its peers; one of them: .venv/bin/trainsys bench NAME
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/trainsys bench $$name; done

clean:  ## remove .venv, caches and build outputs; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
