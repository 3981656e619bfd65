# Every target stands alone: `make demo` on a fresh checkout needs only Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup supervisor wheel fmt lint schema test bench demo clean
.DEFAULT_GOAL := help

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready ## make .venv with SCAR and all that its tests need

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[local,dev]'
	@touch $@

supervisor: setup ## build what runs the supervisor in any image, for all or one: ARCH=all|amd64|arm64 (needs apt-get; no root)
	$(BIN)/python tools/build_supervisor.py --arch $(or $(ARCH),all)

wheel: supervisor ## build the wheel, with the supervisor for x86_64 and arm64, into dist/
	$(BIN)/python -m hatchling build -t wheel

fmt: setup ## format the code
	$(BIN)/ruff format src tests tools benchmarks
	$(BIN)/ruff check --fix --quiet src tests tools benchmarks

lint: setup ## check format, style, types and the layering
	$(BIN)/ruff format --check src tests tools benchmarks
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

schema: setup ## write docs/fdl.schema.json and docs/fdl.md from the FDL's schema
	$(BIN)/python tools/fdl_reference.py

test: setup ## run the tests; those that need an engine that is not here are skipped with the reason
	@if command -v apt-get >/dev/null; then $(BIN)/python tools/build_supervisor.py; fi
	$(BIN)/pytest --numprocesses 4

bench: setup ## measure; prints one table a benchmark
	@for benchmark in benchmarks/bench_*.py; do $(BIN)/python $$benchmark || exit 1; done

demo: setup ## run a workflow across Batch and Lambda on this machine; results land in demo-results/
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/genome-gc/demo.sh demo-results

clean: ## remove what was made here
	rm -rf .venv build dist demo-results src/scar/supervisor
