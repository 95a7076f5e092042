# Set-up happens once, behind a stamp file; every target that needs the environment depends on it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-full check format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch goes first and alone: its version decides which build the others see.
$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; about three minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Holdfast needs Python 3.11 or newer; say which with: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check torch numpy
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP) ## train, ask for a save, kill, resume, and compare with a run that was never interrupted
	@$(BIN)/python examples/demo.py

test: $(STAMP) ## every test (two cores: under 15 minutes)
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-full: $(STAMP) ## every test, every cell of the matrix, 200 kills
	@HOLDFAST_FULL=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP) ## ruff, ruff format and mypy, all strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## print what a save, a look at the trigger file and a verb cost here
	@$(BIN)/python -m benchmarks

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache outputs examples/data
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
