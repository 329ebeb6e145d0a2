# Each target sets up what it needs: a .venv with the package in it, once, then its job.
PYTHON ?= python3
MODALITY ?= audio
BIN := .venv/bin

.PHONY: demo test test-slow lint bench

demo: .venv/.installed
	$(BIN)/bridle study $(MODALITY)/demo --finetune $(MODALITY)/demo_finetune

# the fast lane first, a minute or so, to fail early
test: .venv/.tested
	$(BIN)/python -m pytest -m "not slow and not e2e"
	$(BIN)/python -m pytest -m "e2e and not slow"

test-slow: .venv/.tested
	.ci/fetch_transformers $(BIN)/python
	$(BIN)/python -m pytest -m slow

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/.benched
	$(BIN)/python benchmarks/bench.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

# The stamps stand for an install; a newer setup.cfg or pyproject.toml asks for another.
.venv/.installed: EXTRA = all
.venv/.tested: EXTRA = test
.venv/.benched: EXTRA = bench

.venv/.installed .venv/.tested .venv/.benched: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -e ".[$(EXTRA)]"
	@touch $@
