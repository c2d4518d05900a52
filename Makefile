# Runs everything. On a fresh Debian 12 with python3 and make, `make serve` alone installs what is missing and serves.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
CONFIG ?= demo

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# A spinning OpenMP pool beside busy neighbours (here: the HTTP processes) makes a UNet call 30 to 150 times slower.
export OMP_WAIT_POLICY := passive
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install serve test lint bench faults clean
.DEFAULT_GOAL := help

help:
	@echo "make serve    install what is missing, then serve on http://$(HOST):$(PORT)   (HOST, PORT, CONFIG)"
	@echo "make test     install what is missing, then run every test"
	@echo "make lint     ruff and mypy --strict"
	@echo "make bench    the engine against diffusers' own pipelines, both workloads"
	@echo "make faults   what becomes of requests when things break (docs/reliability.md), up to 20 minutes"
	@echo "make install  only install, into $(VENV)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@sh .ci/venv $(PYTHON) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# `exec`: signals that are meant for the server reach it, not a shell.
serve: $(STAMP)
	@exec $(BIN)/darkroom serve --config $(CONFIG) --host $(HOST) --port $(PORT)

# Fast tests first, so that a failure shows before a cluster has started: on every core, each with one thread.
test: $(STAMP)
	@sh .ci/packages
	OMP_NUM_THREADS=1 sh .ci/pytest $(BIN)/python -m "not ray" --numprocesses auto
	sh .ci/pytest $(BIN)/python -m ray

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m bench.engine
	$(BIN)/python -m bench.engine --workload mixed

faults: $(STAMP)
	$(BIN)/python -m bench.faults

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
