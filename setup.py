"""Builds the C kernels, one static library per instruction set, and the extension that links them."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

KERNELS = Path("csrc/kernels")
OPS = Path("csrc/ops")

X86 = platform.machine().lower() in ("x86_64", "amd64")
DEBUG = os.environ.get("SEGLOSS_DEBUG", "0") == "1"  # asserts, and the address and undefined-behaviour sanitizers

CUDA = os.environ.get("SEGLOSS_CUDA", "0") == "1"  # kernels for GPUs, too: no GPU has run them yet

# -fno-trapping-math lets the exponential's comparisons become vector selects; -std=gnu11 (not c11) lets a * b + c
# become one fused instruction; -fno-wrapv takes back a default of Python's build that makes the gradient slower.
# Aligned loops are as fast whatever code lies before them.
C_FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fno-wrapv"]
C_FLAGS += ["-falign-functions=64", "-falign-loops=32"]
C_FLAGS += ["-Wall", "-Wextra", "-Wconversion"]
CXX_FLAGS = ["-O2", "-g0", "-std=c++20", "-Wall", "-Wno-array-bounds"]  # a false alarm in torch's tuples
LINK_FLAGS: list[str] = []

ISA_FLAGS: dict[str, list[str]] = {"baseline": []}
if X86:
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"]
    ISA_FLAGS["avx512"] += ["-mprefer-vector-width=512"]
    C_FLAGS += ["-DSEGLOSS_X86"]

if sys.platform == "linux":  # at::parallel_for is a plain loop without it; elsewhere torch brings its own threads
    CXX_FLAGS += ["-fopenmp"]
    LINK_FLAGS += ["-fopenmp"]

if DEBUG:
    SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # an error ends the process
    C_FLAGS += ["-g", "-O1", "-UNDEBUG", "-fno-omit-frame-pointer", *SANITIZE]
    CXX_FLAGS += ["-g", "-O1", "-UNDEBUG", "-fno-omit-frame-pointer", *SANITIZE]
    LINK_FLAGS += SANITIZE


def kernel_library(name: str, source: str, flags: list[str]) -> tuple[str, dict[str, list[str]]]:
    """One entry of setuptools' `libraries`; it is built anew when any header of the kernels changes."""
    headers = [str(path) for path in sorted(KERNELS.glob("*.h"))]
    build = {"sources": [str(KERNELS / source)], "cflags": C_FLAGS + flags, "obj_deps": {"": headers}}
    return f"segloss_{name}", build  # type: ignore[return-value]


# The linker takes what is still missing from left to right: dispatch needs the tables.
libraries = [kernel_library("dispatch", "dispatch.c", [])]
libraries += [kernel_library(isa, f"kernels_{isa}.c", flags) for isa, flags in ISA_FLAGS.items()]


def in_few_units(sources: list[Path]) -> list[str]:
    """As many compilations as there are processors on a small machine, each of many sources: torch's headers take
    longer than what follows them."""
    units = [Path(f"build/glue_{k}.cpp") for k in range(2)]
    for k, unit in enumerate(units):
        text = "".join(f'#include "{source.resolve()}"\n' for source in sources[k :: len(units)])
        unit.parent.mkdir(exist_ok=True)
        if not unit.exists() or unit.read_text() != text:
            unit.write_text(text)
    return [str(unit) for unit in units]


extension = CppExtension(
    name="segloss._C",
    sources=in_few_units([path for path in sorted(OPS.glob("*.cpp")) if CUDA or path.stem != "cuda"]),
    depends=[str(path) for path in [*sorted(OPS.iterdir()), KERNELS / "kernels.h"]],
    extra_compile_args=CXX_FLAGS,
    extra_link_args=LINK_FLAGS,
)


def cuda_architectures() -> list[str]:
    """nvcc's options for what torch was built for, or for every generation where it was built without CUDA."""
    pairs = [name.split("_") for name in torch.cuda.get_arch_list()]  # such as sm_90, or compute_120 for PTX
    return [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind, number in pairs] or ["-arch=all-major"]


def link_cuda_kernels(directory: Path) -> None:
    """Makes a library of the CUDA kernels beside the extension: nvcc, which knows its own runtime, needs nothing of
    torch."""
    directory.mkdir(parents=True, exist_ok=True)
    sources = sorted((KERNELS / "cuda").glob("*.cu"))
    options = ["-shared", "-std=c++17", "-Xcompiler=-fPIC", "--threads=0", *cuda_architectures()]
    subprocess.run(["nvcc", *options, *sources, "-o", directory / "libsegloss_cuda.so"], check=True)
    extension.libraries.append("segloss_cuda")
    extension.library_dirs.append(str(directory))
    extension.runtime_library_dirs.append("$ORIGIN")


class Build(BuildExtension):
    """Leaves the version of torch beside the extension: segloss/_extension.py compares it before it loads it."""

    def run(self) -> None:
        directory = Path(self.get_ext_fullpath("segloss._C")).parent
        if CUDA:
            link_cuda_kernels(directory)
        super().run()
        (directory / "_C.torch").write_text(torch.__version__)


setup(libraries=libraries, ext_modules=[extension], cmdclass={"build_ext": Build})
