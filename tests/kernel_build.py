"""Compiles the kernels and tests/c without setuptools: flags, object files, programs."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "csrc" / "kernels"
C_TESTS = ROOT / "tests" / "c"

# The flags of setup.py.
FLAGS = ["-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wconversion", f"-I{KERNELS}"]
ISA_FLAGS: dict[str, list[str]] = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    FLAGS += ["-DSEGLOSS_X86"]
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"]
    ISA_FLAGS["avx512"] += ["-mprefer-vector-width=512"]

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Leaks are looked for by ptrace, which containers forbid. Freed memory is kept for a while to see it used; more than
# this much costs more than it finds.
SANITIZER_ENV = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=8"}


def run(command, **options):
    """The output of a command that must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def can_link(compiler, flags, directory):
    """Whether the compiler, and the library of its sanitizers, is installed."""
    if not shutil.which(compiler):
        return False
    is_fuzzer = any("fuzzer" in flag for flag in flags)
    name = "LLVMFuzzerTestOneInput" if is_fuzzer else "main"
    (directory / "empty.c").write_text(f"int {name}(void) {{ return 0; }}\n")
    command = [compiler, *flags, directory / "empty.c", "-o", directory / "empty"]
    return subprocess.run(command, capture_output=True).returncode == 0


def kernel_sources():
    """Name, source and own flags of each object file of the kernels; there, a warning is an error."""
    yield "dispatch.o", KERNELS / "dispatch.c", ["-Werror"]
    for isa, flags in ISA_FLAGS.items():
        yield f"kernels_{isa}.o", KERNELS / f"kernels_{isa}.c", [*flags, "-Werror"]


def compile_objects(compiler, flags, sources, directory):
    """Object files of (name, source, own flags), in parallel."""

    def compile_object(name, source, own_flags):
        run([compiler, *FLAGS, *flags, *own_flags, "-c", source, "-o", directory / name])
        return directory / name

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: compile_object(*source), sources))


def link(compiler, flags, objects, program):
    run([compiler, *flags, *objects, "-lm", "-o", program])
    return program
