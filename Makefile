# Two commands for a stranger: `make demo` and `make test`. The environment is .venv; PYTHON picks the interpreter.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.octavo
SOURCES := $(wildcard csrc/*) CMakeLists.txt pyproject.toml

.PHONY: demo serve setup build fmt check test test-arm test-sanitize bench docs clean

demo: $(STAMP)-base
	$(BIN)/python tools/demo.py

serve: $(STAMP)-base
	$(BIN)/octavo serve

# The base install: what a user gets, nothing more.
$(STAMP)-base: $(SOURCES)
	@test -x .venv/bin/python || $(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Octavo needs Python 3.11 or newer; name one: make demo PYTHON=python3.12")'
	@echo "Building Octavo in .venv: some minutes for the C++ kernels, the first time only."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check "scikit-build-core>=0.10" "nanobind>=2.4" "cmake>=3.18" ninja
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e .
	touch $@

# The test install: PyTorch (CPU) and transformers are test-only.
$(STAMP)-test: $(STAMP)-base
	$(BIN)/pip install -q --disable-pip-version-check "torch==2.13.0"
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e ".[test,dev]"
	touch $@

setup: $(STAMP)-test

build:
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .

fmt: $(STAMP)-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.cpp csrc/*.h csrc/*.inl

check: $(STAMP)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror csrc/*.cpp csrc/*.h csrc/*.inl
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/forbidden.py
	$(BIN)/python tools/docs.py --check

test: $(STAMP)-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The ARM kernels under an emulator, on a processor that has everything and on one that has NEON alone; Debian: apt-get install g++-aarch64-linux-gnu qemu-user
ARM_BUILD := build/kernels_test_arm
test-arm: $(STAMP)-base
	$(BIN)/cmake -S tests/native -B $(ARM_BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static
	$(BIN)/cmake --build $(ARM_BUILD)
	for cpu in max cortex-a72; do for program in kernels_test parts_test; do \
	  qemu-aarch64 -cpu $$cpu $(ARM_BUILD)/$$program || exit 1; done; done

# The native code under the address, undefined-behaviour and thread sanitizers; the first build takes some minutes.
SANITIZED := build/sanitized
test-sanitize: $(STAMP)-base
	for kind in address,undefined thread; do \
	  $(BIN)/cmake -S tests/native -B $(SANITIZED)-$$kind -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DOCTAVO_SANITIZE=$$kind && $(BIN)/cmake --build $(SANITIZED)-$$kind && \
	  $(SANITIZED)-$$kind/kernels_test && $(SANITIZED)-$$kind/parts_test || exit 1; done

bench: $(STAMP)-base
	$(BIN)/octavo bench latency
	$(BIN)/octavo bench throughput

docs: $(STAMP)-base
	$(BIN)/python tools/docs.py

clean:
	rm -rf build .venv
