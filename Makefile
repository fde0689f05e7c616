# The two commands of the README, and what they stand on. Needs nothing but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin

# torch first: constraints.txt pins it, and whatever comes after is satisfied by what is there.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: demo test test-slow real bench bench-gpu lint clean
demo: .venv/.installed
	$(BIN)/dual-head demo

test: .venv/.installed lint real
	$(BIN)/pytest -n 2

test-slow: .venv/.installed
	$(BIN)/pytest -m slow

# A real chat model for the tests marked `real`, fetched once. Where that fails, they are skipped and the others run.
export DUAL_HEAD_REAL ?= $(CURDIR)/.venv/real/smollm2
real: .venv/.installed
	@$(BIN)/python scripts/real_backbone.py "$$DUAL_HEAD_REAL" || echo "There is no real model: tests marked 'real' are skipped."

# Figures for docs/performance.md, on an otherwise idle machine; the second one on a machine with a GPU.
bench: .venv/.installed
	$(BIN)/python benchmarks/cpu.py

bench-gpu: .venv/.installed
	$(BIN)/python benchmarks/gpu.py

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

clean:
	rm -rf .venv
