# make search ARGS="--smoke"    make test    make faults    make lint
# Everything runs in .venv, which the first call makes; PYTHON and VENV may be given.

SHELL := /bin/bash
VENV ?= .venv
ARGS ?=
CHECK := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c '$(CHECK)' >/dev/null 2>&1 && echo "$$name" && break; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help search test faults lint
.DEFAULT_GOAL := help

help:
	@echo 'make search ARGS="..."  search an architecture: python -m experiments.darts ... (--help lists the flags)'
	@echo 'make test               run the tests on the CPU'
	@echo 'make faults             kill, damage and starve it: the gates of reliability, one line each'
	@echo 'make lint               flake8, isort and mypy'

search: $(STAMP)
	@$(BIN)/python -m experiments.darts $(ARGS)

# worksteal: each worker begins with half of the files, so that a file's fixtures are made once.
test: $(STAMP)
	@JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

faults: $(STAMP)
	@JAX_PLATFORMS=cpu FAULTS_JSON="$${FAULTS_JSON:-runs/faults.json}" $(BIN)/python -m pytest \
		-m "slow or not slow" tests/faults $(ARGS)

lint: $(STAMP)
	@$(BIN)/python -m flake8
	@$(BIN)/python -m isort --check --quiet jaxnas experiments tests
	@$(BIN)/python -m mypy

$(STAMP): setup.cfg pyproject.toml
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(CHECK)' >/dev/null 2>&1; then \
		echo "error: Python >= 3.11 with its venv module is needed; install it or name one: make PYTHON=/path/to/python3.11" >&2; \
		exit 2; fi
	@if [ ! -x $(BIN)/python ]; then echo "Making $(VENV) with $(PYTHON) ..." >&2; "$(PYTHON)" -m venv $(VENV); fi
	@echo "Installing jaxnas and what it needs into $(VENV) (once) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[viz,test]'
	@touch $@
