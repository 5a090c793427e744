"""Runs compilers and analyzers: cc, clang-tidy and cppcheck on the kernels, nvcc (where it is installed) on those for
GPUs, clang-tidy on the operators.

If they find something, prints it and exits with 1.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kernel_build import FLAGS, KERNELS, ROOT, kernel_sources
from torch.utils.cpp_extension import include_paths

BIN = Path(sys.executable).parent  # where pip puts the commands of its packages

CPPCHECK = [
    *("--quiet", "--std=c11", "--error-exitcode=1", "--check-level=exhaustive"),
    *("--enable=warning,performance,portability", "--suppress=missingIncludeSystem"),
    "--suppress=incorrectLogicOperator",  # cppcheck reads every hexadecimal floating constant as 0
    "--suppress=invalidPointerCast",  # tensors and staged blocks are addressed by bytes, and are aligned
]


# The kernels are templates in headers, whose functions clang's analyzer leaves out by default.
ANALYZE_HEADERS = ["-Xclang", "-analyzer-opt-analyze-headers"]

# The analyzer is off: it would spend minutes on torch's headers.
OPERATORS = ["--quiet", "--checks=-clang-analyzer-*", "--header-filter=csrc/ops"]
TORCH = [*(f"-isystem{path}" for path in include_paths()), "-idirafter", ROOT / "csrc" / "ops" / "missing"]

NVCC = ["-std=c++17", "-arch=sm_80", "-Werror", "all-warnings", "-Xcicc", "-O0", "-Xptxas", "-O0", "--cubin"]


def commands():
    """The compiler checks every table of kernels; the analyzers check one, as tables differ only in their vectors."""
    defines = [flag for flag in FLAGS if flag.startswith(("-D", "-I"))]
    for source in (KERNELS / "kernels_baseline.c", KERNELS / "dispatch.c"):
        yield [BIN / "clang-tidy", "--quiet", source, "--", *FLAGS, *ANALYZE_HEADERS]
        yield [BIN / "cppcheck", *CPPCHECK, *defines, source]
    for _, source, flags in kernel_sources():
        yield ["cc", *FLAGS, *flags, "-fsyntax-only", source]
    for source in (ROOT / "csrc" / "ops").glob("*.cpp"):
        yield [BIN / "clang-tidy", *OPERATORS, source, "--", "-std=c++20", *TORCH]
    for source in (KERNELS / "cuda").glob("*.cu") if shutil.which("nvcc") else ():
        if "float16" not in source.stem:  # the same templates as for float32
            yield ["nvcc", *NVCC, source, "-o", os.devnull]


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    if done.returncode:
        print(f"{' '.join(map(str, command))}\n{done.stdout}", flush=True)
    return done.returncode


if __name__ == "__main__":
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sys.exit(any(list(pool.map(run, commands()))))
