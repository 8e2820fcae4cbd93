PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off -c .ci/constraints.txt

.PHONY: demo test install benchmarks gpu kernels peers soak size clean

demo: install            ## build the demo engine, serve it behind Triton, stream a completion
	$(BIN)/python -m slipway.compiler.cli.demo

test: install            ## every test that needs no GPU
	$(BIN)/python -m pytest

benchmarks: install      ## the machine's limits, the kernels, a whole engine
	$(BIN)/python tests/benchmarks/bench_linear.py
	$(BIN)/python tests/benchmarks/bench_attention.py
	$(BIN)/slipway build demo-llama/cpu-int8 -o build/benchmarks --force
	$(BIN)/slipway bench build/benchmarks

gpu: install             ## on a machine with a GPU: kernels and engines against PyTorch and transformers, and what kernels reach of its limits
	$(BIN)/python -m pytest -m gpu --gpu
	$(BIN)/python tests/benchmarks/bench_crossovers.py --write build/crossovers.json
	$(BIN)/python tests/benchmarks/bench_gpu.py --json build/gpu.json
	$(BIN)/python tests/benchmarks/bench_gpu_engines.py --json build/gpu-engines.json

kernels: install         ## registers of every CUDA kernel on every GPU target, and what spills
	$(BIN)/python tests/benchmarks/kernel_resources.py

peers: install           ## Slipway beside vLLM in one run, and the ratios aimed at
	$(BIN)/python tests/benchmarks/bench_peers.py

soak: install            ## 500 mixed requests in five minutes; fails if a KV block leaks
	$(BIN)/slipway build demo-llama/cpu-int8 -o build/soak --force
	$(BIN)/python tests/benchmarks/soak.py build/soak

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml .ci/constraints.txt $(wildcard runtime/native/*) plugins/include/slipway/abi.hpp
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[cuda,triton,test]'
	touch $@

size:                    ## lines of code a room
	@for room in recipes quantization plugins passes compiler runtime tests; do \
	  git ls-files $$room | grep -E '\.(py|hpp|cuh|cpp|j2)$$' | xargs cat | grep -cvE '^\s*$$' | sed "s/^/$$room\t/"; done

clean:
	rm -rf $(VENV) build dist
