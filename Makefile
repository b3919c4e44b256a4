# Two commands: `make demo` (the main job on the packaged model) and `make test` (the whole gate).
# Each makes its own virtual environment, `.venv`, when there is none.

PYTHON ?= python3
VENV ?= .venv
# Pinned and installed first: left open, pip takes gigabytes of GPU libraries. On a GPU machine: make TORCH=torch demo
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test lint types unit clean

demo: $(VENV)/.core
	$(BIN)/prism demo

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

unit: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) --constraint constraints.txt --editable ".[serve]"
	touch $@

$(VENV)/.test: $(VENV)/.core pyproject.toml
	$(PIP) --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
