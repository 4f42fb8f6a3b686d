# Every target does the set-up it needs. `make demo` on a fresh clone is all that it takes.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SITE := $(VENV)/.docs
# Small tensors gain nothing from many threads, so the tests run in several single-threaded processes.
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8

.PHONY: help install demo test coverage test-slow check format bench docs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(READY)  ## the virtual environment .venv with everything in it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trigflow needs Python 3.11 or newer: make install PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	touch $@

demo: $(READY)  ## train a teacher on digits, distil it, score the student (about 5 minutes) -> demo/
	$(BIN)/trigflow demo --out demo

test: $(READY)  ## the tests (about 7 minutes on two quiet cores)
	$(PYTEST) -m "not slow"

coverage: $(READY)  ## the tests once more, with the share of src that they run, which takes half as long again
	$(PYTEST) -m "not slow" --cov=trigflow --cov-report=term --cov-fail-under=96

test-slow: $(READY)  ## the tests that train for minutes
	$(PYTEST) -m slow

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src

format: $(READY)  ## put the code into form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## time and memory of a training step in every derivative mode (20 minutes at most)
	$(BIN)/python benchmarks/train_step.py --json results/train_step.json

docs: $(SITE)  ## write docs/commands.md and the tables, check links and commands, build the site -> site/index.html
	$(BIN)/python docs/generate.py
	$(BIN)/python -m pytest -q tests/test_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(SITE): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:  ## everything that can be made again, except the virtual environment
	rm -rf build dist site htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
