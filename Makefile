# Two commands do everything on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help serve train test dev lint check docs audit clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.serve ## Set up and serve the shipped models on http://127.0.0.1:8000
	@$(BIN)/python -m app

train: $(VENV)/.dev ## Train the two shipped models again from their recipes
	$(BIN)/python -m training train training/recipes/weather.toml
	$(BIN)/python -m training train training/recipes/weather-lstm.toml

# Hundreds of processes read the same files: let the first of them keep what it compiled, whatever the shell says.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.dev lint ## Lint, type-check and run every test
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

dev: $(VENV)/.dev ## Set up what training and the tests need

lint: $(VENV)/.dev ## Ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: $(VENV)/.dev ## Format, fix what can be fixed, then lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

docs: $(VENV)/.dev ## Write what is generated of the documentation
	$(BIN)/python -m docs.generate
	$(BIN)/python -m training options > docs/recipes.md

audit: $(VENV)/audit/bin/pip-audit ## Look the pinned versions up among known vulnerabilities (internet)
	$(VENV)/audit/bin/pip-audit --disable-pip --no-deps --requirement constraints.txt

clean: ## Remove the environment and caches
	rm -rf $(VENV) build *.egg-info client/build client/*.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Foretell needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# In an environment of its own: what looks is no part of what is looked at.
$(VENV)/audit/bin/pip-audit: | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit

$(VENV)/.serve: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing what serving needs into $(VENV) ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml client/pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing what training and the tests need into $(VENV) ..."
	$(PIP) --editable '.[dev]' --editable './client[cli]'
	@touch $@
