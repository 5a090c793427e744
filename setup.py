"""Builds the C kernels, which do not use torch, and the C++ glue that makes torch operators of them: for the torch of
this environment, or for each torch folder in SEGLOSS_TORCH. Neither uses Python, so one wheel serves all its versions.
"""

import os
import platform
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"segloss: expected setuptools 77 or newer, got {setuptools.__version__}: pip install -U setuptools")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

KERNELS = Path("csrc/kernels")
OPS = Path("csrc/ops")
GLUE = runpy.run_path("segloss/_glue.py")

X86 = platform.machine().lower() in ("x86_64", "amd64")
ARM = platform.machine().lower() in ("aarch64", "arm64")
DEBUG = os.environ.get("SEGLOSS_DEBUG", "0") == "1"  # asserts, and the address and undefined-behaviour sanitizers
CUDA = os.environ.get("SEGLOSS_CUDA", "0") == "1"  # kernels for GPUs, too: no GPU has run them yet

# -fno-trapping-math lets the exponential's comparisons become vector selects; -std=gnu11 (not c11) lets a * b + c
# become one fused instruction; -fno-wrapv undoes a default of Python's build that makes the gradient slower. Aligned
# loops are equally fast whatever code precedes them.
C_FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fno-wrapv"]
C_FLAGS += ["-falign-functions=64", "-falign-loops=32"]
C_FLAGS += ["-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wconversion"]
# Most of a call's time is spent in torch, not in the glue's own code: -O2 is no faster.
CXX_FLAGS = ["-O1", "-g0", "-std=c++20", "-fPIC", "-Wall", "-Wno-array-bounds"]  # a false alarm in torch's tuples
LINK_FLAGS: list[str] = []
NVCC_FLAGS = ["-std=c++17", "-Xcompiler=-fPIC", "--threads=0"]  # a thread for each architecture

ISA_FLAGS: dict[str, list[str]] = {"neon" if ARM else "baseline": []}
if X86:
    ISA_FLAGS["baseline"] = ["-O2"]  # compiles in half the time; almost every processor has AVX2
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] += ["-mprefer-vector-width=512"]
    C_FLAGS += ["-DSEGLOSS_X86"]

OPENMP = ["-fopenmp"] if sys.platform == "linux" else []  # without it at::parallel_for is a plain loop

if DEBUG:
    SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # an error ends the process
    C_FLAGS += ["-g", "-O1", "-UNDEBUG", "-fno-omit-frame-pointer", *SANITIZE]
    CXX_FLAGS += ["-g", "-O1", "-UNDEBUG", "-fno-omit-frame-pointer", *SANITIZE]
    LINK_FLAGS += SANITIZE


class Library(Extension):
    """A shared library in the package's folder. Its name does not contain the version of Python."""

    def __init__(self, name: str, flags: dict[str, list[str]], headers: list[Path], **options: object) -> None:
        super().__init__(f"segloss.{name}", list(flags), depends=[*map(str, headers)], **options)
        self.flags = flags  # of the compiler, for each source


def kernels() -> Library:
    """One source, compiled once for each instruction set."""
    flags = {str(KERNELS / f"kernels_{isa}.c"): C_FLAGS + flags for isa, flags in ISA_FLAGS.items()}
    flags[str(KERNELS / "dispatch.c")] = C_FLAGS
    headers = sorted(KERNELS.glob("*.h"))
    return Library("_kernels", flags, headers, extra_link_args=[*LINK_FLAGS, "-lm"])


def file_with(text: str, name: str) -> Path:
    """A file in the build's folder; it is written only if the text has changed, so that what is made of it is not."""
    file = Path("build", name)
    file.parent.mkdir(exist_ok=True)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    return file


def in_one_unit(sources: list[Path]) -> Path:
    """A file that includes all sources: torch's headers take longer to compile than the sources themselves."""
    return file_with("".join(f'#include "{source.resolve()}"\n' for source in sources), "glue.cpp")


def torches() -> Iterator[Path]:
    """The folders of torch to build for. Only their headers, libraries and version are needed."""
    if "SEGLOSS_TORCH" in os.environ:
        yield from map(Path, os.environ["SEGLOSS_TORCH"].split(os.pathsep))
    elif spec := find_spec("torch"):
        yield from map(Path, spec.submodule_search_locations or [])
    else:
        sys.exit(
            "segloss: expected torch in the environment that builds, found none. Install the torch that you train "
            "with, then build in its environment: pip install --no-build-isolation ... (pip would otherwise fetch "
            "another torch, of several gigabytes)"
        )


def glue(torch: Path) -> Library:
    version = runpy.run_path(str(torch / "version.py"))["__version__"]
    include = [torch / "include", torch / "include/torch/csrc/api/include"]
    flags = [*CXX_FLAGS, *OPENMP, *(f"-isystem{path}" for path in include), f"-idirafter{OPS / 'missing'}"]
    source = in_one_unit([path for path in sorted(OPS.glob("*.cpp")) if CUDA or not path.stem.startswith("cuda")])
    here = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
    return Library(
        GLUE["name"](version),
        {str(source): flags},
        [*sorted(OPS.rglob("*.*pp")), *sorted(OPS.glob("*.h")), KERNELS / "kernels.h", Path("setup.py")],
        libraries=["c10", "torch_cpu", "torch"] + ["segloss_cuda"] * CUDA,
        library_dirs=[str(torch / "lib")],
        extra_link_args=[*LINK_FLAGS, *OPENMP, f"-Wl,-rpath,{here}"],
    )


def nvcc() -> str:
    """CUDA's compiler: that of CUDA_HOME, where it is set, else the one on PATH."""
    home = os.environ.get("CUDA_HOME")
    found = which("nvcc", path=str(Path(home, "bin")) if home else None)
    return found or sys.exit("segloss: expected nvcc for SEGLOSS_CUDA=1, found none on PATH or in CUDA_HOME")


def cuda_architectures() -> list[str]:
    """Those of TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX", which torch's own extensions read, too; else those of this
    machine's GPUs; else, where there are none, every generation that nvcc knows."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not named and find_spec("torch"):
        import torch

        cards = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
        named = [f"{major}.{minor}" for major, minor in sorted(cards)]
    return named or every_generation()


def every_generation() -> list[str]:
    """From 7.0 on, the first that passes structs to kernels as the kernels want them; with PTX for those to come."""
    listed = subprocess.run([nvcc(), "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    numbers = sorted(int(number) for number in re.findall(r"sm_(\d+)", listed))
    names = [f"{number // 10}.{number % 10}" for number in numbers if number >= 70 and number % 10 in (0, 5)]
    return [*names[:-1], f"{names[-1]}+PTX"]


def options_of_architecture(name: str) -> list[str]:
    found = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)
    if not found:
        sys.exit(f'segloss: expected numbers in TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX", got {name!r}')
    number = found[1] + found[2]
    kinds = ["sm", "compute"] if found[3] else ["sm"]  # machine code, and PTX, which later GPUs can run
    return [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]


class CudaLibrary(Library):
    """The kernels for GPUs. nvcc links its own runtime, so the library needs nothing of torch."""

    def __init__(self) -> None:
        sources = sorted((KERNELS / "cuda").glob("*.cu"))
        architectures = [option for name in cuda_architectures() for option in options_of_architecture(name)]
        options = file_with("\n".join([*NVCC_FLAGS, *architectures]), "nvcc_options")
        headers = [*(KERNELS / "cuda").glob("*.*h"), *KERNELS.glob("*.h"), options]
        super().__init__("libsegloss_cuda", {str(source): [] for source in sources}, headers)
        self.nvcc = [nvcc(), f"--options-file={options}"]

    def compile(self, source: str, directory: str, force: bool) -> str:
        target = Path(directory, source).with_suffix(".o")
        if force or newer_group([source, *self.depends], target):  # another source may be the one that has changed
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*self.nvcc, "-c", source, "-o", target], check=True)
        return str(target)

    def link(self, objects: list[str], target: Path) -> None:
        subprocess.run([*self.nvcc, "-shared", *objects, "-o", target], check=True)


class Build(build_ext):
    """Compiles all sources in parallel, and links the libraries."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extensions(self) -> None:
        self.forget_where_python_is()
        outdated = [library for library in self.extensions if self.is_outdated(library)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # the slowest ones first
            compiled = {each.name: pool.map(self.compiler_of(each), each.sources) for each in outdated[::-1]}
        for library in outdated:
            self.link(library, list(compiled[library.name]))

    def forget_where_python_is(self) -> None:
        """Removes the linker options by which some builds of Python make a library search Python's folder."""
        for linker in ("linker_so", "linker_so_cxx"):
            flags = getattr(self.compiler, linker)
            setattr(self.compiler, linker, [flag for flag in flags if not flag.startswith("-Wl,-rpath")])

    def is_outdated(self, library: Library) -> bool:
        target = Path(self.get_ext_fullpath(library.name))
        newest = max(Path(path).stat().st_mtime for path in [*library.sources, *library.depends])
        return self.force or not target.exists() or target.stat().st_mtime <= newest

    def compiler_of(self, library: Library) -> Callable[[str], str]:
        directory = os.path.join(self.build_temp, library.name)
        if isinstance(library, CudaLibrary):
            return lambda source: library.compile(source, directory, self.force)
        return lambda source: self.compiler.compile([source], directory, extra_postargs=library.flags[source])[0]

    def link(self, library: Library, objects: list[str]) -> None:
        target = Path(self.get_ext_fullpath(library.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(library, CudaLibrary):
            return library.link(objects, target)
        beside = [":_kernels.so"] if library.libraries else []
        self.compiler.link_shared_object(
            objects,
            str(target),
            libraries=beside + library.libraries,
            library_dirs=[str(target.parent), *library.library_dirs],
            extra_postargs=library.extra_link_args,
            target_lang="c++" if library.libraries else "c",
        )


class Wheel(bdist_wheel):
    """A wheel for every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[-1]


if sys.platform == "win32":
    sys.exit("segloss: expected Linux or macOS, got Windows, which is not supported. Use WSL 2, a Linux within Windows")

libraries = [kernels(), *([CudaLibrary()] if CUDA else []), *map(glue, torches())]
setup(ext_modules=libraries, cmdclass={"build_ext": Build, "bdist_wheel": Wheel})
