# Every target makes what it needs, in .venv: on a fresh machine, Python 3.11+, make and pip do.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra arguments: make train ARGS="rounds=5 clients.language=4"; make test ARGS="-k pbea".
ARGS ?=

.PHONY: help train test test-all lint format clean

help: ## Print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

train: $(VENV)/installed ## Train a federation on the embedded dataset
	$(BIN)/utmp-train $(ARGS)

test: $(VENV)/installed-dev ## Run the tests, and one federation on real processes; minutes
	$(BIN)/pytest -n auto -m "not slow" $(ARGS)

test-all: test ## Run all tests: faults, kills, TLS, browsers, fuzzing too
	$(BIN)/pytest -n auto -m slow $(ARGS)

lint: $(VENV)/installed-dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev ## Fix formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and all caches; runs stay
	rm -rf $(VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; use make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
