# `make demo` and `make test` do all their own set-up; nothing else has to be typed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# The benchmarks' peers bring much that nobody needs for the tests: they have an environment of their own.
PEERS := build/bench
PEERS_READY := $(PEERS)/ready
# Tests of one file share processes, and stay together.
BOTH_CORES := --numprocesses 2 --dist loadfile

.PHONY: help demo world test docs laws lint types check soak mutants bench benchmore peers clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@

$(PEERS_READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt torch
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[bench]'
	touch $@

demo: $(READY) ## train a classifier three ways, killed twice on the way, and compare the bits
	$(BIN)/python examples/demo.py

world: $(READY) ## train two models on 1, 2 and 4 processes, and on numbers that change, and compare the bits
	$(BIN)/python examples/world.py

docs: $(READY) ## run every block of the README and the guides, and every example in a docstring (five minutes)
	$(BIN)/python -m pytest -m "soak or not soak" tests/meta/test_documents.py tests/meta/test_doctests.py \
		tests/meta/test_features.py tests/meta/test_errors_guide.py tests/meta/test_proving_guide.py \
		tests/world/test_sharded_guide.py

test: $(READY) ## lint, types and all tests (under ten minutes on two cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(BOTH_CORES)

laws: $(READY) ## only the laws; DEVICE=cuda holds them there
	HELIOS_FN_TEST_DEVICE=$(DEVICE) $(BIN)/python -m pytest $(BOTH_CORES) tests/laws

soak: $(READY) ## the laws with many more examples, every fault against checkpoints; prints a table of faults (an hour)
	HELIOS_FN_PROFILE=nightly $(BIN)/python -m pytest $(BOTH_CORES) -m "soak or not soak" tests/laws tests/crash tests/unit tests/world tests/meta

mutants: $(READY) ## plant faults one at a time and show that the suite catches every one
	$(BIN)/python tests/mutants/run.py

bench: $(PEERS_READY) ## measure training against loops by hand and other frameworks; writes bench/RESULTS.md (under 20 minutes)
	$(PEERS)/bin/python -m bench.all

benchmore: $(PEERS_READY) ## measure saving and loading, several processes, and seeking in ten million samples; the same file
	$(PEERS)/bin/python -m bench.all --more

peers: $(PEERS_READY) ## kill and resume the same job in other training loops; writes bench/PEERS.md (under 15 minutes)
	$(PEERS)/bin/python -m bench.peers

clean: ## remove the environment and what the examples wrote
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
