# make demo | test | test-isas | test-arm | fuzz | sanitize | lint | bench | bench-full. Each sets up .venv on its first run.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# By files, whose tests share what is slow to set up. Waiting threads do not spin: processes would take the cores from each other.
PYTEST := OMP_WAIT_POLICY=passive $(CURDIR)/$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder
SOURCES := $(shell find csrc -name '*.[ch]' -o -name '*.cpp') setup.py pyproject.toml
LINTED_C := $(shell find csrc tests/c tests/cuda benchmarks -name '*.[ch]' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# The tests of values and gradients.
NUMBERS := contract layouts targets focal soft_stats region metrics accuracy topk total_weight dice_classes regressions
# A tree like this one, whose segloss is built with sanitizers.
SANITIZED := build/sanitized
# What does not go with them: files that start compilers (kernels, cuda_kernels, compile), measure time (benchmarks) or memory (leaks,
# large) or train (example), and tests that measure memory or have their turn anyway.
UNSANITIZED := $(patsubst %,--ignore=tests/test_%.py,kernels cuda_kernels compile benchmarks leaks large example)
UNSANITIZED += -k "not peak_memory and not another_instruction_set"

.PHONY: demo test test-isas test-arm fuzz sanitize lint bench bench-full clean

demo: .venv/.built
	$(BIN)/python examples/mni152.py

test: .venv/.built
	$(PYTEST)

test-isas: .venv/.built
	for isa in baseline avx2 avx512; do \
		SEGLOSS_ISA=$$isa $(PYTEST) $(NUMBERS:%=tests/test_%.py) || exit 1; \
	done

# The kernels for 64-bit ARM, in an emulator. Without conftest.py, which asks for the extension.
test-arm: .venv/.installed
	@for tool in aarch64-linux-gnu-gcc qemu-aarch64; do command -v $$tool > /dev/null || { echo "$$tool was not found:" \
		"Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user are needed" >&2; exit 1; }; done
	SEGLOSS_TEST_MACHINE=aarch64 SEGLOSS_TEST_CC=aarch64-linux-gnu-gcc \
		SEGLOSS_TEST_EMULATOR="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
		$(BIN)/python -m pytest --noconftest tests/test_kernels.py::test_kernels_equal_slow_references

# Targets of any shape, dtype and value; then the C kernels by clang's libFuzzer, a minute for each family.
fuzz: .venv/.built
	SEGLOSS_FUZZ_EXAMPLES=10000 $(PYTEST) tests/test_target_fuzz.py
	$(BIN)/python tests/fuzz_kernels.py --seconds 60

# libstdc++ comes after libasan, or the first C++ exception aborts. Python itself leaks at exit. A sanitizer ends the process:
# pytest-xdist then names the test and goes on, but by files it would wait forever.
sanitize: .venv/.installed
	SEGLOSS_DEBUG=1 $(BIN)/python setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)
	ln -sfn $(addprefix $(CURDIR)/,tests csrc pyproject.toml README.md) $(SANITIZED)
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		$(PYTEST) --dist load $(UNSANITIZED)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(LINTED_C)
	$(BIN)/python tests/static_analysis.py

bench: .venv/.built .venv/.peers
	$(BIN)/python benchmarks/bench.py --quick

bench-full: .venv/.built .venv/.peers
	$(BIN)/python benchmarks/bench.py --full

# torch goes first and by its exact pin: another spelling may bring another build of it, of several gigabytes.
.venv/.installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "segloss needs Python 3.10 or newer, this is " + sys.version)'
	@echo "Setting up .venv: one to two minutes"
	@$(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
	@$(PIP) -r requirements-dev.txt
	@touch $@

# Without its dependencies: torchvision would bring a torch of its own. Where it fails, the benchmarks do without this peer.
.venv/.peers: .venv/.installed
	-@$(PIP) --no-deps segmentation-models-pytorch==0.6.0 && touch $@

# No build isolation: an isolated build would fetch a torch of its own.
.venv/.built: .venv/.installed $(SOURCES)
	@echo "Building the extension: one to two minutes"
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

clean:
	rm -rf .venv build dist demo segloss/*.so *.egg-info
