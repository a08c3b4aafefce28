# make demo    pre-train on real images and evaluate, from nothing, in a few minutes
# make test    lint, types and the whole suite, from nothing
# make bench   benchmarks against the peers, results in build/benchmarks/
# Everything lives in .venv and build/; constraints.txt pins what is installed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export SSLFAST_WERROR ?= 1

.PHONY: demo test lint types suite bench peers triton36 gpu-bundle clean

demo: $(VENV)/.demo
	$(BIN)/sslfast train --config examples/demo.yaml
	$(BIN)/sslfast report --run runs/demo

test: lint types suite

CPP_FILES := $(shell find csrc tests/emulation -name '*.h' -o -name '*.c[pu]*')
lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

# kernels/ installs as sslfast.kernels: a tree of links shows mypy the installed shape.
types: $(VENV)/.dev
	rm -rf build/types && mkdir -p build/types/sslfast
	ln -s $(CURDIR)/sslfast/* build/types/sslfast/ && ln -s $(CURDIR)/kernels build/types/sslfast/kernels
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p sslfast

suite: $(VENV)/.dev peers triton36
	SSLFAST_TRITON_36=$(CURDIR)/build/triton36 $(BIN)/python -m pytest

bench: $(VENV)/.dev peers
	for name in similarity_softmax losses redundancy prototypes sigreg masking vit packed_crops ema optim teacher data train_step; do \
	  $(BIN)/python -m benchmarks.$$name --out build/benchmarks/$$name.json || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first: the build of torch that the index serves by this version, and no other. What builds the
# extension stays in the environment, so that the second install compiles nothing.
$(VENV)/.demo: $(VENV)/bin/python constraints.txt pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
	$(PIP) torch==2.13.0 "setuptools>=70" pybind11 cmake ninja
	$(PIP) --no-build-isolation --editable ".[train,dali]"
	touch $@

# What is tested is whole: without its extension the package would be another one.
$(VENV)/.dev: $(VENV)/.demo
	SSLFAST_BUILD=1 $(PIP) --no-build-isolation --editable ".[train,dali,video,dev]"
	touch $@

# Other libraries' losses, as oracles and baselines, without what they depend on.
peers: build/peers/.done
build/peers/.done: $(VENV)/.dev
	rm -rf build/peers
	$(PIP) --no-deps --target build/peers lightly==1.6.0 open_clip_torch==3.3.0 info-nce-pytorch==0.1.4 \
	  pytorch-metric-learning==2.9.0 timm==1.0.31 GradCache==0.0.1
	touch $@

# The oldest Triton that is supported, beside the newest.
triton36: build/triton36/.done
build/triton36/.done: $(VENV)/.dev
	rm -rf build/triton36
	$(BIN)/python -m pip install --quiet --no-deps --target build/triton36 triton==3.6.0
	touch $@

# What a run on a GPU takes along, so that little is compiled there (docs/developers/gpu.md): the
# extension and the Triton kernels, made by an interpreter of the versions that are there:
#   make gpu-bundle GPU_PYTHON=python3.12      with torch, triton, pybind11, cmake and ninja
GPU_PYTHON ?= $(BIN)/python
GPU_ARCHITECTURE ?= 90
GPU_BUNDLE := build/gpu-bundle
gpu-bundle:
	$(GPU_PYTHON) -m benchmarks.build $(GPU_BUNDLE)/tree --keep $(GPU_BUNDLE) \
	  --architectures $(GPU_ARCHITECTURE:90=90a)-real
	cd $(GPU_BUNDLE)/tree && TRITON_CACHE_DIR=$(CURDIR)/$(GPU_BUNDLE)/cache $(abspath $(shell command -v $(GPU_PYTHON))) \
	  -m benchmarks.compiled --architecture $(GPU_ARCHITECTURE) \
	  --keep $(CURDIR)/$(GPU_BUNDLE)/kernels.tar.xz

clean:
	rm -rf $(VENV) build dist *.egg-info sslfast/_C*.so
