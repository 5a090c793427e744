"""Compiles the kernels and tests/c without setuptools: flags, object files, programs."""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "csrc" / "kernels"
C_TESTS = ROOT / "tests" / "c"
OBJECTS = ROOT / "build" / "objects"

# What is compiled for, the compiler, and the command that runs its programs here: `make test-arm` sets all three.
MACHINE = os.environ.get("SEGLOSS_TEST_MACHINE", platform.machine()).lower()
CC = os.environ.get("SEGLOSS_TEST_CC", "cc")
EMULATOR = os.environ.get("SEGLOSS_TEST_EMULATOR", "").split()

# The flags of setup.py.
FLAGS = ["-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wconversion", f"-I{KERNELS}"]
ARM = MACHINE in ("aarch64", "arm64")
ISA_FLAGS: dict[str, list[str]] = {"neon" if ARM else "baseline": []}
if MACHINE in ("x86_64", "amd64"):
    FLAGS += ["-DSEGLOSS_X86"]
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] += ["-mprefer-vector-width=512"]

CPU_FLAGS = {
    "baseline": [],
    "avx2": ["avx2", "fma", "f16c"],
    "avx512": ["avx512f", "avx512vl", "avx512dq", "avx512bw", "fma", "f16c"],
}
if ARM:
    CPU_FLAGS = {"neon": []}

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Leaks are looked for by ptrace, which containers forbid. Freed memory is kept for a while to see it used; more than
# this much costs more than it finds.
SANITIZER_ENV = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=8"}


def run(command, **options):
    """The output of a command that must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def processor_flags():
    """What this processor can do, in Linux' words; nothing where there is no saying."""
    cpuinfo = Path("/proc/cpuinfo")
    return set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()


def can_run(isa):
    """Whether this processor runs the table of an instruction set; where there is no saying, it does."""
    has = processor_flags()
    return not has or has.issuperset(CPU_FLAGS[isa])


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
    """Name, source and own flags of each object file of the kernels; there, a warning is an error.

    A table that this processor cannot run only has to be there.
    """
    yield "dispatch", KERNELS / "dispatch.c", ["-Werror"]
    for isa, flags in ISA_FLAGS.items():
        yield f"kernels_{isa}", KERNELS / f"kernels_{isa}.c", [*flags, "-Werror", *([] if can_run(isa) else ["-O0"])]


def built_kernels():
    """The extension's library of kernels, if a program can link it and nothing has changed since it was built."""
    library = ROOT / "segloss" / "_kernels.so"
    newest = max(path.stat().st_mtime for path in [*KERNELS.glob("*.[ch]"), ROOT / "setup.py"])
    is_usable = sys.platform == "linux" and not EMULATOR and library.exists() and library.stat().st_mtime > newest
    return [library] if is_usable else None


@cache
def content_of_sources():
    """A digest of every file that a source of this tree may include."""
    folders = (ROOT / "csrc", ROOT / "tests" / "c", ROOT / "tests" / "cuda")
    files = sorted(path for folder in folders for path in folder.rglob("*.[ch]*"))
    return sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@cache
def version_of(compiler):
    return run([compiler, "--version"])


def compiled(name, command, source):
    """The object file that a command makes of a source. It is kept in build/objects until command or sources change."""
    command = [*map(str, command), "-c", str(source)]
    key = sha256("\n".join([*command, version_of(command[0])]).encode()).hexdigest()[:12]
    content = sha256((content_of_sources() + Path(source).read_text()).encode()).hexdigest()[:12]
    target = OBJECTS / f"{name}-{key}-{content}.o"
    if not target.exists():
        OBJECTS.mkdir(parents=True, exist_ok=True)
        for outdated in OBJECTS.glob(f"{name}-{key}-*.o"):
            outdated.unlink()
        own = target.with_suffix(f".{os.getpid()}")  # another process may compile the same
        run([*command, "-o", own])
        own.rename(target)
    return target


def compile_objects(compiler, flags, sources):
    """Object files of (name, source, own flags), in parallel."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda each: compiled(each[0], [compiler, *FLAGS, *flags, *each[2]], each[1]), sources))


def link(compiler, flags, objects, program):
    run([compiler, *flags, *objects, "-lm", "-o", program])
    return program
