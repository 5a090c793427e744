"""Static analysis of the kernels: warnings of cc, clang-tidy, cppcheck. Prints what they find and exits with 1."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kernel_build import FLAGS, KERNELS, ROOT, kernel_sources

BIN = Path(sys.executable).parent  # where pip puts the commands of its packages

CPPCHECK = [
    *("--quiet", "--std=c11", "--error-exitcode=1", "--check-level=exhaustive"),
    *("--enable=warning,performance,portability", "--suppress=missingIncludeSystem"),
    "--suppress=incorrectLogicOperator",  # it takes every hexadecimal floating constant for 0
    "--suppress=invalidPointerCast",  # tensors and staged blocks are addressed in bytes, and aligned
]


def commands():
    """Of each source, as it is compiled for its instruction set; only clang-tidy and cppcheck look into all paths."""
    for _, source, flags in kernel_sources():
        yield ["cc", *FLAGS, *flags, "-fsyntax-only", source]
        yield [BIN / "clang-tidy", "--quiet", source, "--", *FLAGS, *flags]
    # The tables differ in their vectors alone, which cppcheck does not look into.
    defines = [flag for flag in FLAGS if flag.startswith(("-D", "-I"))]
    for source in ("dispatch.c", "kernels_baseline.c"):
        yield [BIN / "cppcheck", *CPPCHECK, *defines, KERNELS / source]


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    if done.returncode:
        print(f"{' '.join(map(str, command))}\n{done.stdout}", flush=True)
    return done.returncode


if __name__ == "__main__":
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sys.exit(any(list(pool.map(run, commands()))))
