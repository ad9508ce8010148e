# Short names for what CONTRIBUTING.md says. Every target runs in .venv where there is one.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
JOBS ?= 2
WORKDIR ?= runs/smoke
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install test nightly sql lint smoke docs ci clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## Make .venv and install the package with its test tools
	python3 -m venv .venv
	.venv/bin/pip install -e '.[test]'

test: ## Run the tests (ARGS= for pytest, JOBS= processes, SQLR1_DATA= real data)
	$(PYTHON) -m pytest -n $(JOBS) $(ARGS)

nightly: ## Run the long tests that `make test` leaves out
	$(PYTHON) -m pytest -n $(JOBS) -m nightly $(ARGS)

sql: ## Run the tests of the SQL sandbox
	$(PYTHON) -m pytest tests/sql $(ARGS)

lint: ## Run ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

smoke: ## Run every stage of the smoke config (ARGS= more settings, WORKDIR= its folder)
	$(PYTHON) -m sqlr1_jax.main --config=configs/grpo.py:smoke --workdir=$(WORKDIR) $(ARGS)

docs: ## Check the documents: links, names, commands, layout and import order
	$(PYTHON) -m pytest tests/docs_test.py $(ARGS)

ci: ## Check a copy of the tree in a new environment, as CI does
	.ci/run

clean: ## Remove caches and build outputs; runs/ and .venv stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find sqlr1_jax tests benchmarks configs -name __pycache__ -type d -prune -exec rm -rf {} +
