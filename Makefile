# make demo | test | test-all | bench | lint | sanitize | planted | wheel-test: each makes .venv and installs first, and reuses both later.
# SYSTEM_SITE=1 uses the torch (2.11 or newer) of the machine's own Python; CLIPSIGHT_CUDA=ON|OFF|AUTO as in CMakeLists.txt.
PYTHON ?= python3
SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
INSTALLED := $(VENV)/.installed
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc cmake -type f; find python -name "*.py" -o -name "*.safetensors" -o -name "*.html")

.PHONY: install demo test test-all bench lint sanitize planted wheel-test dev clean
install: $(INSTALLED)

# torchvision only serves tests and examples; its wheel asks for a CUDA torch, hence --no-deps.
$(VENV)/.tools:
	$(PYTHON) -m venv $(if $(SYSTEM_SITE),--system-site-packages) $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(if $(SYSTEM_SITE),,$(BIN)/python -m pip install -q '$(TORCH)')
	@$(BIN)/python -c 'import torch; v = tuple(map(int, torch.__version__.split(".")[:2])); \
	  assert v >= (2, 11), f"clipsight needs torch 2.11 or newer, found {torch.__version__}"'
	$(BIN)/python -m pip install -q numpy 'scikit-build-core>=0.10' 'pybind11>=2.13' 'cmake>=3.26' ninja
	$(BIN)/python -c 'from importlib.util import find_spec; exit(find_spec("torchvision") is None)' \
	  || $(BIN)/python -m pip install -q --no-deps torchvision==0.28.0 pillow
	touch $@

# A runtime that is already there (onnxruntime or onnxruntime-gpu) is kept.
$(INSTALLED): $(VENV)/.tools $(SOURCES)
	if $(BIN)/python -c 'import onnxruntime' 2>/dev/null; then also='onnx onnxscript .'; else also='.[onnx]'; fi; \
	  PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -q --no-build-isolation $$also '.[video,pyramid,evaluate,ray,test,lint]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/clipsight demo --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The whole suite, with every network at every clip size, of which it leaves a log.
test-all: $(INSTALLED)
	$(BIN)/python -m pytest --ignore=tests/test_models_onnx.py
	set -o pipefail; for which in 'not all_sizes' all_sizes; do \
	  $(BIN)/python -m pytest tests/test_models_onnx.py -m "$$which" -v --no-header --disable-warnings --durations=0 || exit 1; \
	done | tee benchmarks/results/test_all.log

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

# docs/motion-study.md and its figures; DATA=FOLDER measures real clips too.
.PHONY: study
study: $(INSTALLED)
	$(BIN)/python -m studies $(if $(DATA),--data '$(DATA)')

lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# AddressSanitizer and UndefinedBehaviorSanitizer under the tests that reach the C++.
sanitize: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/sanitize.sh

# One-line faults, one at a time: do the tests see them? PLANTED_ARGS="--resume" goes on where it stopped; see tests/planted.
planted: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m planted $(PLANTED_ARGS)

# The wheel in an environment of its own, outside the source tree.
wheel-test: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/wheel.sh

# For work on the sources: the libraries next to the package, to be used with PYTHONPATH=python.
dev: $(VENV)/.tools
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/dev -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/dev
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --install build/dev --prefix python

clean:
	rm -rf $(VENV) build demo
