"""Compiles tests/c with the kernels and runs it: every kernel of this processor without Python."""

import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "csrc" / "kernels"
TESTS = ROOT / "tests" / "c"

# The flags of setup.py; here a warning of the kernels is an error.
FLAGS = ["-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wconversion"]
ISA_FLAGS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    FLAGS += ["-DSEGLOSS_X86"]
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"]
    ISA_FLAGS["avx512"] += ["-mprefer-vector-width=512"]

BUILDS = {"plain": ["-O3"], "sanitized": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]}


def run(command, **options):
    """The output of a command that must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def error_bounds():
    """The bounds that math_tmpl.h states, in units in the last place."""
    exp, log, log1p = re.findall(r"within ([\d.]+) ulp", (KERNELS / "math_tmpl.h").read_text())
    return [f"-DEXP_BOUND={exp}", f"-DLOG_BOUND={log}", f"-DLOG1P_BOUND={log1p}"]


def objects():
    """Object file, source and its own flags."""
    yield "test_kernels.o", TESTS / "test_kernels.c", error_bounds()
    yield "dispatch.o", KERNELS / "dispatch.c", ["-Werror"]
    for isa, flags in ISA_FLAGS.items():
        yield f"kernels_{isa}.o", KERNELS / f"kernels_{isa}.c", [*flags, "-Werror"]
        names = [f'-DISA="{isa}"', f"-DELEMENTARY=elementary_{isa}"]
        yield f"elementary_{isa}.o", TESTS / "elementary.c", flags + names


def build(compiler, flags, directory):
    """The test program."""

    def compile_object(name, source, own_flags):
        command = [compiler, *FLAGS, *flags, *own_flags, f"-I{KERNELS}", "-c", source, "-o", directory / name]
        run(command)
        return directory / name

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        names = list(pool.map(lambda arguments: compile_object(*arguments), objects()))
    run([compiler, *flags, *names, "-lm", "-o", directory / "test_kernels"])
    return directory / "test_kernels"


def need_compiler(compiler, flags, directory):
    """Skips where the compiler, or the library of its sanitizers, is not installed."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not on PATH")
    (directory / "empty.c").write_text("int main(void) { return 0; }\n")
    command = [compiler, *flags, directory / "empty.c", "-o", directory / "empty"]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip(f"{compiler} cannot link {' '.join(flags)}")


@pytest.mark.parametrize(("compiler", "kind"), [("cc", "plain"), ("cc", "sanitized"), ("clang", "plain")])
def test_kernels_equal_slow_references(compiler, kind, tmp_path):
    flags = BUILDS[kind]
    need_compiler(compiler, flags, tmp_path)
    program = build(compiler, flags, tmp_path)
    # Leaks are looked for by ptrace, which containers forbid.
    output = run([program], env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"})
    print(output)  # the measured errors, with pytest -s
    assert output.rstrip().endswith("ok")
