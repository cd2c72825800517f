# Everything a fresh machine with Python 3.11 or newer needs: make verify, make test, make check.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LAYOUT := pyproject.toml setup.cfg constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help verify test check clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

verify: $(VENV)/runtime.stamp ## Install, then verify the laws on real training runs
	$(BIN)/noetherflow verify

test: $(VENV)/dev.stamp ## Install with the tools of development, then run the tests
	$(BIN)/pytest

check: $(VENV)/dev.stamp ## Lint, format, types, and a wheel that works outside the checkout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python .ci/check_wheel.py

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# A stamp says that the environment matches the files it depends on.
$(VENV)/created.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is not Python 3.11 or newer. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments: its venv or ensurepip is missing." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv. Elsewhere: install a complete Python, and name it with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/runtime.stamp: $(VENV)/created.stamp $(LAYOUT)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/created.stamp $(LAYOUT)
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/runtime.stamp
