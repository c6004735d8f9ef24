# `make demo` and `make test` are the only set-up a new machine needs.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# threads of one test process: tests run two at a time
TEST_ENV := OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore

.PHONY: demo test slow engines faults lint docs clean
.DELETE_ON_ERROR:

demo: .venv/.installed-base
	$(BIN)/crossloom demo --out runs/demo

test: .venv/.installed-dev
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist loadfile

slow: .venv/.installed-dev
	$(TEST_ENV) $(BIN)/pytest -m slow

engines: .venv/.installed-dev
	$(TEST_ENV) $(BIN)/pytest -m "slow or not slow" tests/distributed/test_engines.py

faults: .venv/.installed-dev
	$(TEST_ENV) $(BIN)/python tests/faults/kills.py --json runs/faults.json

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed-docs
	$(BIN)/mkdocs build

clean:
	rm -rf .venv site build dist

# uv when it is there, venv and pip otherwise; a stamp appears only after a complete install
.venv/bin/python:
	@if command -v uv >/dev/null; then uv venv -q --seed --allow-existing --python $(PYTHON) .venv; else $(PYTHON) -m venv .venv; fi

define install
	@echo "installing crossloom$(1) (a few minutes the first time)"
	@if command -v uv >/dev/null; then uv pip install --python $(BIN)/python -q -c constraints.txt -e ".$(1)"; \
	 else $(BIN)/python -m pip install -q --progress-bar off --disable-pip-version-check -c constraints.txt -e ".$(1)"; fi
	@touch $@
endef

.venv/.installed-base: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,)

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,[dev$(comma)peers])
	@touch .venv/.installed-base

.venv/.installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,[docs])

comma := ,
