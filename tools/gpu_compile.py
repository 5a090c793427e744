"""Compiles the CUDA kernels for one architecture of GPUs, and keeps what it made until sources change."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sass import Kernel, add_resources, add_sections, parse_sass


def run(*command: Any) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def text_with_includes(path: Path, seen: set[Path]) -> str:
    path = path.resolve()
    if path in seen or not path.exists():
        return ""
    seen.add(path)
    text = path.read_text()
    included = re.findall(r'^\s*#include "(.*)"', text, re.MULTILINE)
    return text + "".join(text_with_includes(path.parent / name, seen) for name in included)


def classes_of_lane(num_classes: int, most: int) -> int:
    """How many classes a lane has, as tile_call.cu has it."""
    log_groups = next((n for n in range(4) if num_classes <= most << n), 4)
    number = -(-num_classes >> log_groups)
    return number if number <= 8 else number + number % 2


def narrowed(cuda: Path, classes: set[int], folder: Path) -> Path:
    """A copy of the sources that compiles the kernels over tiles for some numbers of classes alone, and the general
    ones, which these calls do not take, for one type alone."""
    copy = folder / f"sources-{digest(cuda, sorted(classes))}"
    for path in [*cuda.parent.glob("*.h"), *cuda.glob("*")]:
        text = path.read_text()
        for name, most in (("Alone", 8), ("SharedFloats", 8), ("SharedHalves", 16)):
            taken = [number for number in classes if number > 1 and (number <= 8) == (name == "Alone")]
            numbers = {classes_of_lane(number, most) for number in taken}
            of_type = ", ".join(["int", *map(str, sorted(numbers))])
            text = re.sub(rf"(using {name} = .*integer_sequence)<int[\d, ]+>", rf"\1<{of_type}>", text)
        with_types = r"(cudaError_t with_types\(.*?\{)\n.*?\n\}\n"
        text = re.sub(with_types, r"\1 return f(float(), float(), std::false_type()); }\n", text, flags=re.DOTALL)
        target = copy / path.relative_to(cuda.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return copy / cuda.name


class Toolkit:
    def __init__(self, arch: int, folder: Path) -> None:
        self.arch, self.folder = arch, folder
        self.kernels: dict[str, Kernel] = {}
        self.modules: dict[str, Path] = {}  # the PTX that has a kernel

    def compile(self, source: Path, *options: str) -> Path:
        """The object for the host; the PTX is beside it."""
        folder = self.folder / f"{source.stem}-{digest(self.arch, options, text_with_includes(source, set()))}"
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            start = time.time()
            code = f"-gencode=arch=compute_{self.arch},code=compute_{self.arch}"
            flags = ["-std=c++17", "-Xcompiler=-fPIC,-O0", "--keep", f"--keep-dir={folder}", code, *options]
            run("nvcc", *flags, "-c", source, "-o", folder / "host.o")
            print(f"compiled {source.name} in {time.time() - start:.0f} s", file=sys.stderr)
            (folder / "done").touch()
        for ptx in folder.glob("*.ptx"):
            for name in re.findall(r"^\s*(?:\.visible |\.weak )*\.entry (\w+)", ptx.read_text(), re.MULTILINE):
                self.modules[name] = ptx
        return folder / "host.o"

    def library(self, *sources: Path, options: str) -> Path:
        """Functions that are not called need not be there."""
        objects = [self.compile(source, options) for source in sources]
        target = self.folder / f"launches-{digest(*objects)}.so"
        if not target.exists():
            run("c++", "-shared", "-o", target, *objects)
        return target

    def kernel(self, name: str) -> Kernel:
        if name not in self.kernels:
            ptx = self.modules[name]
            cubin = ptx.parent / f"{digest(name)}.cubin"
            if not cubin.exists():
                run("ptxas", f"-arch=sm_{self.arch}", "-e", name, ptx, "-o", cubin)
            found = parse_sass(run("cuobjdump", "-sass", cubin))
            add_resources(found, run("cuobjdump", "-res-usage", cubin))
            add_sections(found, cubin)
            self.kernels[name] = found[name]
        return self.kernels[name]


def short_name(name: str) -> str:
    demangled = run("c++filt", name).strip().replace("(anonymous namespace)::", "")
    return re.sub(r"\(.*\)$", "", re.sub(r"^void ", "", demangled))
