# Every target is a line over the `seqbench` command; `make help` reads the comments after "##".
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SUITE  ?= quick
BASE   ?= main
TASKS  ?= lambada_openai,piqa
MODEL  ?= mamba-tiny
# Committed measurements; baselines and repeats have some of them again.
COMMITTED := $(filter-out results/runs results/reference results/baselines results/repeats,$(wildcard results/*))

.DEFAULT_GOAL := help
.PHONY: help setup test conformance interpret lint bench report plots eval exact micro gate aa data scan-table parity clean

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

eval: $(STAMP) ## zero-shot evaluation; trains MODEL first if need be (MODEL=mamba-tiny or a folder, TASKS=lambada_openai,piqa)
	@ls -d $(MODEL) results/runs/*/checkpoints/$(MODEL)-language-* 2>/dev/null | grep -q . || \
	  $(BIN)/seqbench run quick --tasks language --models $(MODEL)
	$(BIN)/seqbench eval --model $(MODEL) --tasks $(TASKS)

plots: $(STAMP) ## redraw the report of the committed records, with its figures, in reports/latest
	$(BIN)/seqbench report $(COMMITTED)

test: $(STAMP) ## the tests, on all cores, in minutes; what takes every model or kernel in turn is conformance
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not conformance"

conformance: $(STAMP) ## the long tests: every model, kernel, prediction and command in turn
	$(BIN)/python -m pytest -n auto --dist worksteal -m conformance

# Beside the environment and not in it: PyTorch for a CPU comes without Triton, and so should all else that is tested.
$(VENV)/triton: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ triton==3.6.0
	@touch $@

interpret: $(VENV)/triton ## the Triton kernel in Triton's interpreter, which needs no GPU (installs Triton, 190 MB)
	TRITON_INTERPRET=1 PYTHONPATH=$(VENV)/triton $(BIN)/python -m pytest tests/models/test_decode_attention.py -k interpreted

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

exact: $(STAMP) ## compare counts, predictions and seeded losses with results/baselines/exact.json; no timing
	$(BIN)/python -m benchmarks.exact_tier

micro: $(STAMP) ## time the hot pieces with pytest-benchmark; records in .benchmarks/micro, for seqbench gate
	@mkdir -p .benchmarks
	$(BIN)/python -m pytest benchmarks/micro -p no:xdist --benchmark-min-rounds=10 \
	  --benchmark-columns=min,median,iqr,rounds --benchmark-json=.benchmarks/micro.json
	$(BIN)/python -m benchmarks.micro.import_json .benchmarks/micro.json --out .benchmarks/micro

gate: $(STAMP) ## compare this checkout with a commit (BASE=main): counts, accuracy, and times taken in turns
	$(BIN)/seqbench gate --base $(BASE)

aa: $(STAMP) ## compare a commit with itself: the gate's false alarms, and what slowdowns it sees, on this machine
	$(BIN)/seqbench gate --self

data: $(STAMP) ## which data every task would use (SEQBENCH_DATA=DIR for your own)
	$(BIN)/seqbench data

scan-table: $(STAMP) ## compare selective scans on this CPU: results/<machine>/scan_cpu.csv
	$(BIN)/python -m benchmarks.scan_table

parity: $(STAMP) ## compare models and kernels with independent implementations
	$(BIN)/python -m benchmarks.parity

clean: ## remove the virtual environment and this checkout's own runs
	rm -rf $(VENV) results/runs reports/latest
