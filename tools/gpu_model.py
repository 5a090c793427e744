#!/usr/bin/env python3
"""Predicts how fast the CUDA kernels run on GPUs that are not there. A model: nothing is measured.

The kernels are compiled, and some blocks of them interpreted (warps.py). From the instructions that warps issue and the
sectors of memory that they touch come the bounds by bytes, by instructions and by latency, and a simulation in which
these meet (multiprocessor.py). A share is the time in which a copy would move the bytes that a loss has to move at
least, over the time that its kernels take.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import re
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gpu_checks import CHECKS, Check
from gpu_devices import DEVICES, Device
from multiprocessor import Counts, count, cycles_alone, cycles_together, instruction_cycles, own_sectors, steps_of
from sass import Kernel, add_resources, add_sections, parse_sass
from warps import LANES, Block, Memory, Program

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
CUDA = ROOT / "csrc" / "kernels" / "cuda"
ONLY_COMPILED = (120,)  # architectures whose instructions are not interpreted
# Seconds from the end of a kernel to the next one of a stream. On an H200 kernels of 4096 numbers take 2.3 us each, one
# after another (gpu-benches, gpu-small-kernels/h200_graph.txt), of which the model has 0.4.
LAUNCH_GAP = 1.9e-6

# ---- problems --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    units: int  # the bytes of the logits that must be read or written
    label_reads: int
    launcher: str  # its source
    tiles: str  # the source of its kernel over tiles, without the type
    ignore_index: int = -100


CROSS_ENTROPY = "cross_entropy", "warp_cross_entropy"
SUMS, SUMS_GRAD = ("soft_stats", "warp_soft_stats"), ("soft_stats", "warp_soft_stats_grad")
OPS = {
    "cross_entropy": Op(2, 1, *CROSS_ENTROPY),  # of a mean over all voxels, with its gradient
    "cross_entropy_ignoring": Op(2, 2, *CROSS_ENTROPY, ignore_index=255),  # of one over the voxels that have a class
    "cross_entropy_forward": Op(1, 1, *CROSS_ENTROPY),
    "cross_entropy_backward": Op(2, 1, *CROSS_ENTROPY),
    "dice_forward": Op(1, 1, *SUMS),
    "dice_backward": Op(2, 1, *SUMS_GRAD),
    "dice_ce_forward": Op(1, 1, *SUMS),
    "dice_ce_backward": Op(2, 1, *SUMS_GRAD),
    "counts": Op(1, 1, "confusion", "warp_counts"),  # of argmax, by class
}
DTYPES = {"float32": 0, "float16": 2, "bfloat16": 3}
SHAPES = ((2, 3, 128, 128, 128), (2, 4, 128, 128, 128), (2, 19, 1024, 2048), (1, 105, 128, 128, 128))


@dataclass(frozen=True)
class Problem:
    op: str
    shape: tuple[int, ...]
    dtype: str
    is_planar: bool

    @property
    def classes(self) -> int:
        return self.shape[1]

    @property
    def voxels(self) -> int:
        return int(np.prod(self.shape)) // self.classes

    @property
    def logits_bytes(self) -> int:
        return self.voxels * self.classes * (4 if self.dtype == "float32" else 2)

    @property
    def floor_bytes(self) -> int:
        return OPS[self.op].units * self.logits_bytes + OPS[self.op].label_reads * self.voxels

    def __str__(self) -> str:
        layout = "planar" if self.is_planar else "channels_last"
        return f"{self.op:<22} {list(self.shape)!s:<21} {self.dtype:<8} {layout:<13}"


# ---- building --------------------------------------------------------------------------------------------------------


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


def lanes_of_classes(num_classes: int) -> tuple[bool, int]:
    """Whether lanes share a voxel's classes, and how many each has, as tile_call.cu has it."""
    log_groups = next((n for n in range(4) if num_classes <= 8 << n), 4)
    number = -(-num_classes >> log_groups)
    return log_groups > 0, number if number <= 8 else number + number % 2


def narrowed(cuda: Path, classes: set[int], folder: Path) -> Path:
    """A copy of the sources that compiles the kernels over tiles for some numbers of classes alone, and the general
    ones, which these calls do not take, for one type alone."""
    copy = folder / f"sources-{digest(cuda, sorted(classes))}"
    for path in [*cuda.parent.glob("*.h"), *cuda.glob("*")]:
        text = path.read_text()
        for name, is_shared in (("Alone", False), ("Grouped", True)):
            numbers = sorted({number for shared, number in map(lanes_of_classes, classes) if shared == is_shared})
            of_type = ", ".join(["int", *map(str, numbers)])
            text = re.sub(rf"(using {name} = .*integer_sequence)<int[\d, ]+>", rf"\1<{of_type}>", text)
        with_types = r"(cudaError_t with_types\(.*?\{)\n.*?\n\}\n"
        text = re.sub(with_types, r"\1 return f(float(), float(), std::false_type()); }\n", text, flags=re.DOTALL)
        target = copy / path.relative_to(cuda.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return copy / cuda.name


@dataclass
class Toolkit:
    """Compiles for some architectures, and keeps what it made in `folder` until sources change."""

    archs: tuple[int, ...]
    folder: Path
    kernels: dict[tuple[int, str], Kernel] = field(default_factory=dict)
    modules: dict[tuple[int, str], Path] = field(default_factory=dict)  # the PTX that has a kernel

    def compile(self, source: Path, *options: str) -> Path:
        """The object for the host; the PTX is beside it."""
        folder = self.folder / f"{source.stem}-{digest(self.archs, options, text_with_includes(source, set()))}"
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            start = time.time()
            codes = [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in self.archs]
            flags = ["-std=c++17", "-Xcompiler=-fPIC,-O0", "--keep", f"--keep-dir={folder}", *codes, *options]
            run("nvcc", *flags, "-c", source, "-o", folder / "host.o")
            print(f"compiled {source.name} in {time.time() - start:.0f} s", file=sys.stderr)
            (folder / "done").touch()
        for ptx in folder.glob("*.ptx"):
            text = ptx.read_text()
            arch = int(re.findall(r"^\.target sm_(\d+)", text, re.MULTILINE)[0])
            for name in re.findall(r"^\s*(?:\.visible |\.weak )*\.entry (\w+)", text, re.MULTILINE):
                self.modules[arch, name] = ptx
        return folder / "host.o"

    def library(self, cuda: Path, problem: Problem) -> ctypes.CDLL:
        """What launches the kernels of a problem. Functions that are not called need not be there."""
        names = OPS[problem.op].launcher, "tile_call", f"{OPS[problem.op].tiles}_{problem.dtype}"
        sources = [TOOLS / "gpu_launches.cpp", *(cuda / f"{name}.cu" for name in names)]
        objects = [self.compile(source, f"-I{cuda}") for source in sources]
        target = self.folder / f"launches-{digest(*objects)}.so"
        if not target.exists():
            run("c++", "-shared", "-o", target, *objects)
        return ctypes.CDLL(str(target), mode=os.RTLD_LAZY)

    def kernel(self, arch: int, name: str) -> Kernel:
        if (arch, name) not in self.kernels:
            ptx = self.modules[arch, name]
            cubin = ptx.parent / f"{digest(arch, name)}.cubin"
            if not cubin.exists():
                run("ptxas", f"-arch=sm_{arch}", "-e", name, ptx, "-o", cubin)
            found = parse_sass(run("cuobjdump", "-sass", cubin))
            add_resources(found, run("cuobjdump", "-res-usage", cubin))
            add_sections(found, cubin)
            self.kernels[arch, name] = found[name]
        return self.kernels[arch, name]


# ---- launches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    name: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int  # dynamic
    arguments: tuple[bytes, ...]  # or all of them at once

    @property
    def blocks(self) -> int:
        return int(np.prod(self.grid))

    def parameters(self, kernel: Kernel) -> bytes:
        data = bytearray(max((offset + size for offset, size in kernel.parameters), default=0))
        for (offset, _), argument in zip(kernel.parameters, self.arguments, strict=True):
            data[offset : offset + len(argument)] = argument
        return bytes(data)


TENSORS = ["logits", "labels", "grad", "grad_loss", "grad_intersection", "grad_prediction", "workspace", "refusal"]
TENSORS += ["total_weight", "results"]


class ProblemStruct(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in ("num_samples", "num_classes", "num_positions", "ignore_index")]
        + [(name, ctypes.c_int) for name in ("dtype", "is_planar")]
        + [(name, ctypes.c_void_p) for name in TENSORS]
    )


PERIOD = 1 << 20  # elements of large tensors before they repeat


def random_logits(dtype: str) -> npt.NDArray[Any]:
    x = (np.random.default_rng(0).standard_normal(PERIOD) * 2).astype(np.float32)
    if dtype == "bfloat16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(np.float16) if dtype == "float16" else x


def random_labels(problem: Problem) -> npt.NDArray[Any]:
    labels = np.random.default_rng(1).integers(0, problem.classes, PERIOD).astype(np.uint8)
    if OPS[problem.op].ignore_index >= 0:  # in runs, as segmentations have them
        labels[np.arange(PERIOD) % 1024 < 64] = OPS[problem.op].ignore_index
    return labels


def fill_memory(problem: Problem, memory: Memory) -> ProblemStruct:
    """The tensors of a problem. The last ones are small, or only written."""
    cells = problem.shape[0] * problem.classes
    zeros = np.zeros(PERIOD, np.uint8)
    tensors: dict[str, tuple[npt.NDArray[Any], int]] = {
        "logits": (random_logits(problem.dtype), problem.logits_bytes),
        "labels": (random_labels(problem), problem.voxels),
        "grad": (zeros, problem.logits_bytes),
        "grad_loss": (np.ones(4, np.float32), 0),
        "grad_intersection": (np.ones(cells, np.float32), 0),
        "grad_prediction": (np.ones(cells, np.float32), 0),
        "workspace": (zeros, 1 << 30),
        "refusal": (zeros[:4096], 0),
        "total_weight": (np.full(2, float(problem.voxels)), 0),
        "results": (zeros, 0),
    }
    pointers = {name: memory.add(data, size) for name, (data, size) in tensors.items()}
    samples, positions = problem.shape[0], problem.voxels // problem.shape[0]
    numbers = samples, problem.classes, positions, OPS[problem.op].ignore_index, DTYPES[problem.dtype]
    return ProblemStruct(*numbers, problem.is_planar, **pointers)


def launches_of(library: ctypes.CDLL, problem: Problem, memory: Memory, toolkit: Toolkit) -> list[Launch]:
    launches: list[Launch] = []
    errors: list[BaseException] = []  # which would not pass through the library

    def note(name: bytes, grid: Any, threads: int, shared: int, args: Any) -> None:
        try:
            parameters = toolkit.kernel(toolkit.archs[0], name.decode()).parameters
            arguments = tuple(ctypes.string_at(args[k], size) for k, (_, size) in enumerate(parameters))
            launches.append(Launch(name.decode(), (grid[0], grid[1], grid[2]), threads, shared, arguments))
        except BaseException as error:
            errors.append(error)

    unsigned, pointers = ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_void_p)
    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p, unsigned, ctypes.c_uint, ctypes.c_uint, pointers)
    described = fill_memory(problem, memory)
    if error := library.model_call(problem.op.encode(), ctypes.byref(described), callback(note)):
        raise RuntimeError(f"{problem}: CUDA error {error}")
    if errors:
        raise errors[0]
    return launches


# ---- predicting ------------------------------------------------------------------------------------------------------


@dataclass
class Prediction:
    launch: Launch
    kernel: Kernel
    blocks: list[Block]  # that were interpreted
    counts: Counts
    resident: int  # blocks on a multiprocessor
    bounds: dict[str, float]  # seconds, each alone
    simulated: float
    cycles: dict[str, float]  # of a block, by each kind of instructions

    @property
    def bound(self) -> float:
        return max(self.bounds.values())

    @property
    def time(self) -> float:
        return max(self.bound, self.simulated)

    @property
    def limit(self) -> str:
        """What decides: a bound, or that several are close."""
        return max(self.bounds, key=lambda name: self.bounds[name]) if self.simulated < 1.03 * self.bound else "mixed"


def resident_blocks(kernel: Kernel, launch: Launch, device: Device) -> int:
    warps = -(-launch.threads // LANES)
    registers = -(-max(kernel.registers, 1) * LANES // 256) * 256 * warps
    system = 0 if device.arch >= 90 and kernel.shared else 1024  # bytes of each block, which sm_90 counts as static
    shared = -(-(kernel.shared + launch.shared_bytes + system) // 128) * 128
    limits = [device.blocks, device.warps // warps, device.registers // registers, device.shared_bytes // shared]
    return max(1, min(limits))


def predict(kernel: Kernel, launch: Launch, memory: Memory, device: Device, resident: int = 0) -> Prediction:
    resident = resident or resident_blocks(kernel, launch, device)
    program = Program(kernel, device.arch, launch.grid, launch.threads, launch.parameters(kernel), memory)
    first = launch.blocks // 3
    blocks = [program.block(first)]
    if launch.blocks > 1 and len(blocks[0].warps[0].trace) < 10000:  # the second tells which sectors all of them touch
        blocks.append(program.block((first + (launch.blocks + 1) // 2) % launch.blocks))
    sectors = own_sectors(blocks)
    counts = count(blocks, sectors)
    steps = [steps_of(block, of_block, device) for block, of_block in zip(blocks, sectors, strict=True)]
    of_multiprocessor = -(-launch.blocks // device.multiprocessors)
    cycles = instruction_cycles(counts, device)
    bounds = {
        "bytes": counts.moved * launch.blocks / device.copy_rate,
        "issue": of_multiprocessor * max(cycles.values()) / device.clock,
        "latency": -(-of_multiprocessor // resident) * cycles_alone(steps) / device.clock,
    }
    simulated = cycles_together(steps, device, resident, of_multiprocessor) / device.clock
    return Prediction(launch, kernel, blocks, counts, resident, bounds, simulated, cycles)


# ---- reporting -------------------------------------------------------------------------------------------------------


def short_name(name: str) -> str:
    demangled = run("c++filt", name).strip().replace("(anonymous namespace)::", "")
    return re.sub(r"\(.*\)$", "", re.sub(r"^void ", "", demangled))


def cell_of(problem: Problem, device: Device, predictions: list[Prediction]) -> str:
    floor = problem.floor_bytes / device.copy_rate
    gaps = LAUNCH_GAP * (len(predictions) - 1)
    share, bound = (
        floor / (sum(times) + gaps) for times in zip(*((p.time, p.bound) for p in predictions), strict=True)
    )
    limit = max(predictions, key=lambda p: p.time).limit
    return f"{share:>4.0%} of {bound:>4.0%} {limit:<7}"


def report_details(problem: Problem, p: Prediction, device: Device, folder: Path) -> None:
    logits = problem.voxels * problem.classes
    a_logit = p.launch.blocks / logits
    listing = folder / f"{digest(device.arch, p.kernel.name, str(problem))}.txt"
    times = Counter(at for block in p.blocks for warp in block.warps for at in warp.trace)
    listing.write_text(
        "\n".join(
            [short_name(p.kernel.name), "issued by a block's warps, stall, address, instruction"]
            + [
                f"{times[at] / len(p.blocks):8.0f}  {each.stall:2} {each.address:05x}  {each.text}"
                for at, each in enumerate(p.kernel.instructions)
            ]
        )
    )
    bounds = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in p.bounds.items())
    pipes = ", ".join(f"{pipe} {number * LANES * a_logit:.2f}" for pipe, number in sorted(p.counts.pipes.items()))
    slowest = max(p.cycles, key=lambda name: p.cycles[name])
    print(f"    {device.name} {short_name(p.kernel.name)}: {p.simulated * 1e6:.1f} us simulated; bounds: {bounds}")
    print(
        f"        {p.launch.blocks} blocks of {p.launch.threads} threads, {p.resident} resident, {p.kernel.registers} "
        f"registers, {p.kernel.shared + p.launch.shared_bytes} bytes of shared memory, {p.kernel.stack} of stack\n"
        f"        a logit: {p.counts.issued * LANES * a_logit:.1f} instructions ({p.counts.threads * a_logit:.1f} of "
        f"threads): {pipes}; the slowest are {slowest}\n"
        f"        bank conflicts: {p.counts.conflicts:.0f} of {p.counts.passes:.0f} passes; {listing}"
    )


def report_problem(problem: Problem, cuda: Path, toolkit: Toolkit, details: bool) -> None:
    memory = Memory()
    launches = launches_of(toolkit.library(cuda, problem), problem, memory, toolkit)
    cells, moved, of_devices = [], 0.0, []
    for device in DEVICES:
        if device.arch in toolkit.archs:
            predictions = [predict(toolkit.kernel(device.arch, each.name), each, memory, device) for each in launches]
            moved = sum(p.counts.moved * p.launch.blocks for p in predictions) / problem.floor_bytes
            cells.append(cell_of(problem, device, predictions))
            of_devices.append((device, predictions))
    for arch in set(ONLY_COMPILED).intersection(toolkit.archs):
        registers = "+".join(str(toolkit.kernel(arch, each.name).registers) for each in launches)
        cells.append(f"sm_{arch} compiled: {registers} registers")
    print(f"{problem} {moved:.2f}  {'  '.join(cells)}", flush=True)
    for device, predictions in of_devices if details else []:
        for prediction in predictions:
            report_details(problem, prediction, device, toolkit.folder)


def report_check(check: Check, toolkit: Toolkit) -> None:
    memory, size = Memory(), check.total * check.num_bytes + 64
    threads = -(-check.total // check.elements)
    data = random_logits("float32")
    pointers = [memory.add(data, size) for _ in ("from", "to")]
    arguments = (*(struct.pack("<Q", pointer) for pointer in pointers), struct.pack("<I", check.limit))
    launch = Launch(check.kernel, (-(-threads // check.threads), 1, 1), check.threads, 0, arguments)
    kernel = toolkit.kernel(check.device.arch, check.kernel)
    prediction = predict(kernel, launch, memory, check.device, check.resident)
    speed = check.streams * check.total * check.num_bytes / prediction.time
    print(
        f"{check.kernel:<13} {check.threads:>4} threads, {prediction.resident} blocks  {check.device.name:<10} "
        f"{check.published / 1e9:>6.0f} {speed / 1e9:>6.0f}  {prediction.limit:<8} {check.source}"
    )


# ---- command line ----------------------------------------------------------------------------------------------------


def problems(args: argparse.Namespace) -> Iterator[Problem]:
    for op in OPS:
        if any(fnmatch(op, pattern) for pattern in args.only.split(",")):
            for shape in shapes(args):
                for dtype in args.dtype.split(","):
                    for layout in args.layout.split(","):
                        yield Problem(op, shape, dtype, layout == "planar")


def shapes(args: argparse.Namespace) -> list[tuple[int, ...]]:
    return [shape for shape in SHAPES if args.classes == "" or str(shape[1]) in args.classes.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="", help="sm_80, sm_89, sm_90 or sm_120; all if not given")
    parser.add_argument("--only", default="*", help="checks and operators, such as cross_entropy,dice*")
    parser.add_argument("--classes", default="", help="such as 4,19")
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--layout", default="planar,channels_last")
    parser.add_argument("--sources", type=Path, default=CUDA, help="the folder of the .cu files")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "gpu-model")
    parser.add_argument("--fast", action="store_true", help="no longer needed")
    parser.add_argument("--details", action="store_true", help="of each kernel, with a listing of its instructions")
    args = parser.parse_args()
    known = (*dict.fromkeys(device.arch for device in DEVICES), *ONLY_COMPILED)
    toolkit = Toolkit(tuple(arch for arch in known if args.arch in ("", f"sm_{arch}")), args.build)
    print("A model of compiled code: nothing here was measured.")
    if any(fnmatch("checks", pattern) for pattern in args.only.split(",")):
        print("\nKernels whose speed others have measured, in GB/s:\n")
        print("kernel                          on         measured  model  limited by, source")
        toolkit.compile(TOOLS / "gpu_checks.cu")
        for check in CHECKS:
            if check.device.arch in toolkit.archs:
                report_check(check, toolkit)
    devices = [device.name for device in DEVICES if device.arch in toolkit.archs]
    print(
        "\nBytes that move over those that must; the share of the copy rate, of what the largest bound alone would"
        f"\nleave, and what limits it, on {', '.join(devices)}:\n"
    )
    cuda = narrowed(args.sources.resolve(), {shape[1] for shape in shapes(args)}, args.build)
    for problem in problems(args):
        report_problem(problem, cuda, toolkit, args.details)


if __name__ == "__main__":
    main()
