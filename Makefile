# The commands of the README and of CONTRIBUTING.md. Needs nothing but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin

# torch first: constraints.txt pins it, and whatever comes after is satisfied by what is there.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: demo check check-tests test all-tests test-slow real docs bench bench-gpu bench-serve fuzz-serve load-serve lint clean
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

test-slow: .venv/.stress
	$(BIN)/pytest -m slow

# A real chat model for the tests marked `real`, fetched once. Where that fails, they are skipped and the others run.
export DUAL_HEAD_REAL ?= $(CURDIR)/.venv/real/smollm2
real: .venv/.installed
	@$(BIN)/python scripts/real_backbone.py "$$DUAL_HEAD_REAL" || echo "There is no real model: tests marked 'real' are skipped."

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

.venv/.stress: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[stress]'
	touch $@

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
	rm -rf .venv
