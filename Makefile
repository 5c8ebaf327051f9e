# `make demo` and `make test` do all their own set-up; nothing else has to be typed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: help demo test laws lint types check soak mutants seek clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY) ## train a classifier three ways, killed twice on the way, and compare the bits
	$(BIN)/python examples/demo.py

test: $(READY) ## lint, types and all tests (under ten minutes on two cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

laws: $(READY) ## only the laws
	$(BIN)/python -m pytest tests/laws

soak: $(READY) ## the laws with many more examples
	HELIOS_FN_PROFILE=nightly $(BIN)/python -m pytest tests/laws tests/crash

mutants: $(READY) ## plant faults one at a time and show that the suite catches every one
	$(BIN)/python tests/mutants/run.py

seek: $(READY) ## time to the first batch in the middle of ten million samples, against torchdata
	$(BIN)/python bench/seek.py

clean: ## remove the environment and what the examples wrote
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
