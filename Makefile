# Everything a person does with this repository. Each target installs what it needs; second runs take seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help run run-vllm vllm test test-vllm test-slow fast test-fast check loadtest soak sim compare clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -e 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Switchyard needs Python 3.11 or newer; say PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Switchyard into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,loadtest]'
	@touch $(STAMP)

run: $(STAMP) ## everything on this machine with simulated engines, and a first answer
	$(BIN)/switchyard up

run-vllm: $(STAMP) ## the same with real vLLM (GPU build where there is a GPU, else the CPU build and a tiny model)
	$(BIN)/switchyard up --engine vllm

vllm: $(STAMP) ## the environment of real vLLM, made once in .venv-vllm (2.5 GB)
	$(BIN)/python -m node_agent.engines.install

test: $(STAMP) ## all that a newcomer needs to trust it (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest

test-vllm: $(STAMP) ## the tests that need a real vLLM
	$(BIN)/python -m pytest -m vllm

test-slow: $(STAMP) ## soaks, sweeps and large fault runs
	$(BIN)/python -m pytest -m slow

fast: $(STAMP) ## a copy of this house in build/fast whose hot path is compiled (a C compiler, a minute): hatch_build.py
	$(BIN)/python hatch_build.py

test-fast: fast ## what tests the router, on the compiled one
	cd build/fast && ../../$(BIN)/python -m pytest tests/router tests/properties tests/e2e tests/loadtest

check: $(STAMP) ## lint, types, import rules, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

loadtest: $(STAMP) ## Locust, headless, against `switchyard up`; prints a table
	$(BIN)/python -m loadtest.locust_run

soak: $(STAMP) ## 10,000 requests, a third aborted at random moments; then nothing may be counted any more
	$(BIN)/python -m loadtest.soak --requests 10000

sim: $(STAMP) ## every policy and our rule's limits on simulated fleets in virtual time (a first look, some minutes; the whole: loadtest/sim)
	$(BIN)/python -m loadtest.sim --quick

compare: $(STAMP) ## this router beside nginx, HAProxy, Envoy and the routers on PyPI, in one run (half an hour)
	$(BIN)/python -m loadtest.peers install
	$(BIN)/python -m loadtest.compare --rounds 3

clean: ## remove environments and run data
	rm -rf build $(VENV) .venv-vllm .venv-peers .switchyard
