# Needs make and Python 3.11 or later; everything else is fetched, pinned by hash, into .venv.
#
#   make up        the whole stack, until Ctrl-C          make test      everything that CI runs
#   make down      stop one that runs elsewhere           make help      the rest

VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?=
ARGS   ?=
PYTEST ?=
UV_VERSION := 0.13.8

# Each stamp says: this lock, and this pyproject.toml, are what is installed. A second run finds it and does nothing.
READY := $(VENV)/.ready-runtime
TESTS := $(VENV)/.ready-test
GPU   := $(VENV)/.ready-gpu
PIP    = $(BIN)/python -m pip --disable-pip-version-check --quiet
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	pyproject.toml infra/locks/build.in

# The first Python here that is new enough and can make environments; `make PYTHON=...` for another.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: up down test drill lint typecheck bench bench-ledger gpu-check lock clean help

up: $(READY)  ## start the whole stack (PORT=8080, ARGS=...)
	@exec $(BIN)/shrk up $(if $(PORT),--port $(PORT)) $(ARGS)

down: $(READY)  ## stop the stack that runs on the state folder
	@exec $(BIN)/shrk down

# Two at a time, each with a broker and a database of its own: most tests wait for processes (tests/conftest.py).
test: lint typecheck  ## lint, types and all tests (PYTEST="-k name")
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder $(PYTEST)

drill: $(TESTS)  ## plants bugs one by one and wants the tests to notice each (ARGS="part of a name")
	$(BIN)/python -m tests.drill $(ARGS)

lint: $(TESTS)  ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(TESTS)  ## pyright, from a wheel that brings its own node
	$(BIN)/basedpyright

bench: $(TESTS)  ## the README's tables, measured on this machine
	$(BIN)/python -m infra.bench $(ARGS)

bench-ledger: $(TESTS)  ## what the ledger does a second: append, projection, archive, replay (ARGS=--quick)
	$(BIN)/python -m infra.bench.ledger $(ARGS)

gpu-check: $(GPU)  ## exllamav2's contract tests and a short bench; needs a CUDA GPU and nvcc
	$(BIN)/python -m infra.bench.gpu_check $(ARGS)

lock: $(BIN)/python  ## resolve infra/locks again (make lock ARGS=--upgrade to move versions)
	$(PIP) install uv==$(UV_VERSION)
	$(COMPILE) $(ARGS) -o infra/locks/runtime.txt
	$(COMPILE) $(ARGS) --extra test -c infra/locks/runtime.txt -o infra/locks/test.txt
	$(COMPILE) $(ARGS) --extra gpu -c infra/locks/runtime.txt -o infra/locks/gpu.txt
	@! grep -n '://' infra/locks/*.txt || { echo "make: a lock names an address" >&2; exit 1; }

clean:  ## remove state and environment; refused while a stack runs
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m infra.state clean; else $(or $(PYTHON),python3) -m infra.state clean; fi
	@rm -rf $(VENV) build *.egg-info

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
	  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "make: python3 cannot make environments: install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; \
	  else \
	    echo "make: no Python 3.11 or later found; install one, or say which: make PYTHON=/path/to/python" >&2; \
	  fi; exit 1; fi
	@echo "making $(VENV) with $(PYTHON)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)

$(READY): infra/locks/runtime.txt pyproject.toml | $(BIN)/python
	@echo "installing what infra/locks/runtime.txt pins"
	@$(PIP) install --require-hashes -r infra/locks/runtime.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(TESTS): infra/locks/test.txt $(READY)
	@echo "installing what infra/locks/test.txt pins"
	@$(PIP) install --require-hashes -r infra/locks/test.txt
	@touch $@

$(GPU): infra/locks/gpu.txt $(TESTS)
	@echo "installing what infra/locks/gpu.txt pins"
	@$(PIP) install --require-hashes -r infra/locks/gpu.txt
	@touch $@
