# Every target is a line over the `seqbench` command; `make help` reads the comments after "##".
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SUITE  ?= quick
BASE   ?= main
TASKS  ?= lambada_openai,piqa
MODEL  ?= mamba-tiny
# Committed measurements; baselines repeat some of them.
COMMITTED := $(filter-out results/runs results/reference results/baselines,$(wildcard results/*))

.DEFAULT_GOAL := help
.PHONY: help setup test lint bench report plots eval gate data scan-table parity clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(STAMP) ## create .venv and install everything, pinned to what was tested

bench: $(STAMP) ## run the suite (SUITE=quick) and write reports/latest/index.html
	$(BIN)/seqbench run $(SUITE)
	$(BIN)/seqbench report results/runs/$(SUITE)

report: $(STAMP) ## write the report of the runs that exist
	$(BIN)/seqbench report

eval: $(STAMP) ## zero-shot evaluation of a trained model (MODEL=mamba-tiny TASKS=lambada_openai,piqa)
	$(BIN)/seqbench eval --model $(MODEL) --tasks $(TASKS)

plots: $(STAMP) ## redraw the report of the committed records, with its figures, in reports/latest
	$(BIN)/seqbench report $(COMMITTED)

test: $(STAMP) ## all tests, on all cores
	$(BIN)/python -m pytest -n auto

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gate: $(STAMP) ## compare the latest run with a baseline (BASE=main)
	$(BIN)/seqbench gate --base $(BASE) --candidate results/runs/$(SUITE)

data: $(STAMP) ## which data every task would use (SEQBENCH_DATA=DIR for your own)
	$(BIN)/seqbench data

scan-table: $(STAMP) ## compare selective scans on this CPU: results/<machine>/scan_cpu.csv
	$(BIN)/python -m benchmarks.scan_table

parity: $(STAMP) ## compare models and kernels with independent implementations
	$(BIN)/python -m benchmarks.parity

clean: ## remove the virtual environment and this checkout's own runs
	rm -rf $(VENV) results/runs reports/latest
