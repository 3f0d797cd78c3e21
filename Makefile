# xmodal: `make help` lists what there is. Everything runs inside .venv, which is made on first use.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# glibc then puts large buffers into huge pages: a step of the demo spends half as much time in the kernel.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
RECIPE ?= configs/demo.py
WORKDIR ?= runs/demo

.PHONY: help setup demo test lint format clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Create .venv with the pinned requirements

# uv installs in seconds where it is present; pip does the same without it.
$(READY): requirements.txt
	@if command -v uv >/dev/null 2>&1; then \
	  test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV); \
	  uv pip install --quiet --python $(BIN)/python -r requirements.txt; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt; \
	fi
	@touch $@

demo: $(READY)  ## Train a small CLIP on the emoji data (6 to 7 minutes on 2 cores) and write its report
	$(BIN)/python train.py --config $(RECIPE) --workdir $(WORKDIR)

test: $(READY)  ## Run the whole test suite (about 20 minutes on 2 cores)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## Mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove caches (not runs, not .venv)
	rm -rf .cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
