"""Every instruction set gives the reference's values, and torch's threads are used.

The instruction set is chosen once, when segloss is loaded, so each runs in a process of its own.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from kernel_build import CPU_FLAGS, processor_flags

import segloss

pytestmark = pytest.mark.cpu_only

ISAS = list(CPU_FLAGS)
SYSTEM_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


def missing_flags(isa):
    return [flag for flag in CPU_FLAGS[isa] if flag not in processor_flags()]


def needed(isa):
    missing = missing_flags(isa)
    return pytest.param(isa, marks=pytest.mark.skipif(bool(missing), reason=f"this processor lacks {missing}"))


def run(command, isa=None, **variables):
    """A fresh Python with the import path of this one; `isa` forces the instruction set."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **variables}
    environment.pop("SEGLOSS_ISA", None)
    if isa is not None:
        environment["SEGLOSS_ISA"] = isa
    command = [sys.executable, *command]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)


def run_code(code, isa=None, **variables):
    return run(["-c", textwrap.dedent(code)], isa, **variables)


def run_numbers(names, isa=None, **variables):
    """Runs tests of values again, on one thread: a second one gives the same bits, and would only wait."""
    files = [Path(__file__).with_name(f"test_{name}.py") for name in names]
    command = ["-m", "pytest", "-p", "no:cacheprovider", "-k", " or ".join(NUMBERS), *files]
    done = run(command, isa, OMP_NUM_THREADS="1", **variables)
    assert done.returncode == 0, done.stdout
    return done.stdout


# ---- every instruction set ----

# `make test-kernels` runs these files' tests with one of NUMBERS in their names; `make test-isas` runs the whole files.
FILES = ["contract", "layouts", "targets", "focal", "soft_stats", "region", "metrics"]
NUMBERS = [
    "reference",
    "as_in_torch",
    "confident",
    "every_dtype",
    "every_number",
    "bits_of_the_contiguous",
    "inf_",
    "one_hot",
    "logits_against_labels",
]


@pytest.mark.parametrize("isa", [needed(isa) for isa in ISAS if isa != segloss.get_isa()])
def test_another_instruction_set_gives_the_references_values(isa):
    """All other tests run with the best instruction set."""
    assert f"kernels: {isa}" in run_numbers(FILES, isa)


def test_gradients_written_past_the_caches_are_the_same():
    """In all other tests, only gradients larger than a quarter of the caches are written past them: few are."""
    run_numbers(["layouts", "soft_stats", "focal"], SEGLOSS_CACHE_SIZE="0")


# ---- the choice ----


@pytest.mark.parametrize("isa", ["", None], ids=["empty", "unset"])
def test_without_a_choice_the_best_instruction_set_is_taken(isa):
    best = [name for name in ISAS if not missing_flags(name)][-1]
    done = run_code("import segloss; print(segloss.get_isa())", isa)
    assert done.stdout.strip() == best, done.stderr


def test_baseline_is_what_every_processor_of_its_kind_has():
    done = run_code("import segloss; print(segloss.get_isa())", "baseline")
    assert done.stdout.strip() == ISAS[0], done.stderr


@pytest.mark.parametrize("isa", ["sse9", *[isa for isa in ISAS if missing_flags(isa)]])
def test_an_instruction_set_that_is_unknown_or_not_the_processors_fails_the_import_with_a_value_error(isa):
    code = """
        try:
            import segloss
        except ValueError as error:
            print(error)
    """
    done = run_code(code, isa)
    assert done.returncode == 0, done.stderr
    usable = ", ".join(isa for isa in reversed(ISAS) if not missing_flags(isa))
    assert f"expected SEGLOSS_ISA to be one that this processor has ({usable}), got '{isa}'" in done.stdout
    assert "Unset it to let segloss choose" in done.stdout


@pytest.mark.parametrize("size", ["32M", "-1"])
def test_a_cache_size_that_is_no_number_of_bytes_fails_the_import_with_a_value_error(size):
    done = run(["-c", "import segloss"], SEGLOSS_CACHE_SIZE=size)
    assert f"expected SEGLOSS_CACHE_SIZE to be a number of bytes, 0 or more, got '{size}'" in done.stderr


@pytest.mark.parametrize(("size", "expected"), [("12345", 12345), ("0", 0)])
def test_the_cache_size_can_be_set(size, expected):
    done = run_code("import torch, segloss; print(torch.ops.segloss.cache_size())", SEGLOSS_CACHE_SIZE=size)
    assert int(done.stdout) == expected


@pytest.mark.skipif(not SYSTEM_CACHE.exists(), reason="this system does not describe its caches")
def test_the_cache_size_is_that_of_the_largest_cache_of_one_core():
    assert torch.ops.segloss.cache_size() == 1024 * int(SYSTEM_CACHE.read_text().strip().rstrip("K"))


def test_this_process_knows_its_instruction_set():
    assert segloss.get_isa() in ISAS


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc, which Linux has")
@pytest.mark.parametrize("call", ["cross_entropy", "accuracy"])
def test_the_kernels_start_torchs_threads(call):
    """Nothing before the call has enough work for a second thread, so new threads are those of the kernels."""
    code = f"""
        import os
        import torch, segloss
        torch.set_num_threads(3)
        x, labels = torch.zeros(1).expand(1, 2, 100_000), torch.zeros(1, dtype=torch.uint8).expand(1, 100_000)
        before = set(os.listdir("/proc/self/task"))
        segloss.{call}(x, labels)
        print(len(set(os.listdir("/proc/self/task")) - before))
    """
    done = run_code(code)
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc, which Linux has")
def test_one_thread_stays_one_thread():
    code = """
        import os
        import torch, segloss
        torch.set_num_threads(1)
        x, labels = torch.zeros(1).expand(1, 2, 100_000), torch.zeros(1, dtype=torch.uint8).expand(1, 100_000)
        before = set(os.listdir("/proc/self/task"))
        segloss.cross_entropy(x, labels)
        print(len(set(os.listdir("/proc/self/task")) - before))
    """
    done = run_code(code)
    assert done.stdout.strip() == "0", done.stderr
