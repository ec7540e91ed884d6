# What people and CI run. Every target sets up what it needs; the second time that takes a moment.
# ARGS passes arguments on: make demo ARGS="--seed 3", make test ARGS="-k join".

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lint types imports up down bench faults soak lock
MAKEFLAGS += --no-print-directory
SHELL := /bin/sh

BIN := .venv/bin
SOURCES := contracts service towers streams trainer indexer millrace simulator deploy
PYTHON ?=

help: ## Show this
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv and fetch Kafka, installing what the system lacks where that is allowed
	@PYTHON="$(PYTHON)" sh deploy/local/setup.sh

demo: setup ## Run everything with simulated shoppers, and show how search gets better
	@$(BIN)/millrace demo $(ARGS)

test: setup ## Run every test on real Kafka and Redis (about 12 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## Lint, formatting, types, imports, docstrings, spelling and shape
	@$(MAKE) lint types imports
	@$(BIN)/interrogate --quiet tests
	@$(BIN)/codespell
	@$(BIN)/python -m tests.support.shape

format: setup ## Format the code and mend what the linter can mend
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

lint: setup ## Run ruff without changing anything
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## Run mypy in strict mode, tests included
	@$(BIN)/mypy $(SOURCES) tests

imports: setup ## Check which package may import which
	@$(BIN)/lint-imports

up: setup ## Run everything on this machine until Ctrl-C; ARGS=--detach returns when all is ready
	@$(BIN)/millrace up $(ARGS)

down: setup ## Stop what `make up` runs
	@$(BIN)/millrace down $(ARGS)

bench: setup ## Measure one part beside its peer: make bench ARGS=streams
	@$(BIN)/millrace bench $(ARGS)

faults: setup ## Run only the tests that kill real processes, the long ones too (half an hour)
	@FAULTS=long $(BIN)/python -m pytest tests/faults $(ARGS)

lock: setup ## Pin every package and jar anew; ARGS=--upgrade takes newer versions
	@$(BIN)/python -m deploy.local.bootstrap lock $(ARGS)

soak: setup ## Run everything for an hour under shoppers and random faults; ARGS="--minutes 600 --every 60"
	@$(BIN)/python -m tests.faults.soak $(ARGS)
