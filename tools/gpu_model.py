#!/usr/bin/env python3
"""Predicts how fast the CUDA kernels run on GPUs that are not there. A model: nothing is measured."""

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
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from gpu_checks import CHECKS, Check
from gpu_devices import DEVICES, Device
from sass import Instruction, Kernel, add_resources, add_sections, parse_sass
from warps import LANES, SECTOR, Access, Block, Memory, Program

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "kernels" / "cuda"
TOOLS = Path(__file__).resolve().parent

FLOAT32, FLOAT16, BFLOAT16, UINT8, INT64 = 0, 2, 3, 4, 11
BYTES = {FLOAT32: 4, FLOAT16: 2, BFLOAT16: 2}
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}

ONLY_COMPILED = (120,)  # architectures whose instructions are not interpreted

# Logits read or written, of the floor in bytes.
UNITS = {
    "cross_entropy": 2,
    "cross_entropy_forward": 1,
    "cross_entropy_backward": 2,
    "dice_forward": 1,
    "dice_backward": 2,
    "dice_ce_forward": 1,
    "dice_ce_backward": 2,
    "counts": 1,
}
LABEL_READS = {"cross_entropy": 2}


@dataclass(frozen=True)
class Shape:
    samples: int
    classes: int
    sizes: tuple[int, ...]

    @property
    def positions(self) -> int:
        return int(np.prod(self.sizes))

    def __str__(self) -> str:
        return f"[{', '.join(map(str, (self.samples, self.classes, *self.sizes)))}]"


SHAPES = (
    Shape(2, 3, (128, 128, 128)),
    Shape(2, 4, (128, 128, 128)),
    Shape(2, 19, (1024, 2048)),
    Shape(1, 105, (128, 128, 128)),
)


# ---- building --------------------------------------------------------------------------------------------------------


def run(*command: Any, **options: Any) -> str:
    result: subprocess.CompletedProcess[str] = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def text_with_includes(path: Path, seen: set[Path]) -> str:
    path = path.resolve()
    if path in seen or not path.exists():
        return ""
    seen.add(path)
    text = path.read_text()
    included = re.findall(r'^\s*#include "(.*)"', text, re.MULTILINE)
    return text + "".join(text_with_includes(path.parent / name, seen) for name in included)


def digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


@dataclass
class Toolkit:
    """Compiles for one architecture and keeps what it made in `folder` until sources change."""

    arch: int
    folder: Path
    cuda: Path = CUDA
    kernels: dict[str, Kernel] = field(default_factory=dict)
    modules: dict[str, Path] = field(default_factory=dict)  # the PTX that has a kernel

    def compile(self, source: Path, *flags: str) -> Path:
        """A folder with the object for the host and the PTX of a source."""
        key = digest(self.arch, flags, text_with_includes(source, set()))
        folder = self.folder / f"{source.stem}-{self.arch}-{key}"
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            start = time.time()
            code = f"-gencode=arch=compute_{self.arch},code=compute_{self.arch}"
            options = ["-std=c++17", "-Xcompiler=-fPIC,-O0", "--keep", f"--keep-dir={folder}", code, *flags]
            run("nvcc", *options, "-I", self.cuda, "-c", source, "-o", folder / "host.o")
            print(f"compiled {source.name} for sm_{self.arch} in {time.time() - start:.0f} s", file=sys.stderr)
            (folder / "done").touch()
        for ptx in folder.glob("*.ptx"):
            for name in re.findall(r"^\s*(?:\.visible |\.weak )*\.entry (\w+)", ptx.read_text(), re.MULTILINE):
                self.modules[name] = ptx
        return folder

    def library(self, sources: list[Path], *flags: str) -> ctypes.CDLL:
        folders = [self.compile(source, *flags) for source in sources]
        glue = self.compile(TOOLS / "gpu_launches.cpp", *flags, *launcher_flags(self.cuda))
        objects = [folder / "host.o" for folder in (glue, *folders)]
        target = self.folder / f"launches-{digest(*objects)}.so"
        if not target.exists():
            run("c++", "-shared", "-o", target, *objects)
        return ctypes.CDLL(str(target), mode=os.RTLD_LAZY)

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


def classes_of_a_lane(num_classes: int) -> int:
    """As tile_call.cu has it."""
    log_groups = 0
    while num_classes > 8 << log_groups and log_groups < 4:
        log_groups += 1
    number = -(-num_classes >> log_groups)
    return number if number <= 8 else number + number % 2


def narrowed(cuda: Path, num_classes: int, folder: Path) -> Path:
    """A copy of the sources that compiles the kernels over tiles for one number of classes alone."""
    copy = folder / f"narrowed-{num_classes}"
    for path in [*cuda.parent.glob("*.h"), *cuda.glob("*")]:
        text = path.read_text()
        if path.name == "tile_launch.cuh":
            lists = r"integer_sequence<int(, \d+)+>"
            text = re.sub(lists, f"integer_sequence<int, {classes_of_a_lane(num_classes)}>", text)
        target = copy / path.relative_to(cuda.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return copy / cuda.name


def launcher_flags(cuda: Path) -> list[str]:
    return [] if "segloss_cuda_sums" in (cuda / "launchers.h").read_text() else ["-DFIRST_LAUNCHERS"]


# ---- launches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    name: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int  # dynamic
    parameters: bytes

    @property
    def blocks(self) -> int:
        return int(np.prod(self.grid))


class ProblemStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_samples", "num_classes", "num_positions")),
        *((name, ctypes.c_int) for name in ("dtype", "label_dtype", "is_planar", "per_sample")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "logits",
                "labels",
                "grad",
                "grad_loss",
                "grad_intersection",
                "grad_prediction",
                "workspace",
                "refusal",
                "total_weight",
                "results",
            )
        ),
    ]


@dataclass
class Problem:
    op: str
    shape: Shape
    dtype: str = "float32"
    is_planar: bool = True
    label_dtype: int = UINT8
    per_sample: bool = True

    @property
    def logits_bytes(self) -> int:
        return self.shape.samples * self.shape.classes * self.shape.positions * BYTES[DTYPES[self.dtype]]

    @property
    def floor_bytes(self) -> int:
        labels = self.shape.samples * self.shape.positions * (1 if self.label_dtype == UINT8 else 8)
        return UNITS[self.op] * self.logits_bytes + LABEL_READS.get(self.op, 1) * labels

    @property
    def layout(self) -> str:
        return "planar" if self.is_planar else "channels_last"

    @property
    def row(self) -> str:
        return f"{self.op:<22} {self.shape!s:<21} {self.dtype:<8} {self.layout:<13}"


def random_logits(dtype: str, count: int) -> np.ndarray[Any, Any]:
    x = (np.random.default_rng(0).standard_normal(count) * 2).astype(np.float32)
    if dtype == "float32":
        return x
    return x.astype(np.float16) if dtype == "float16" else (x.view(np.uint32) >> 16).astype(np.uint16)


PERIOD = 1 << 20  # elements of random tensors before they repeat


def fill_memory(problem: Problem, workspace: int) -> tuple[ProblemStruct, Any]:
    """The tensors of a problem in the model's memory."""
    memory = Memory()
    shape = problem.shape
    voxels = shape.samples * shape.positions
    elements = voxels * shape.classes
    size = BYTES[DTYPES[problem.dtype]]
    random = np.random.default_rng(1)
    label_type = np.uint8 if problem.label_dtype == UINT8 else np.int64
    labels = random.integers(0, shape.classes, min(PERIOD, voxels)).astype(label_type)
    logits = random_logits(problem.dtype, min(PERIOD, elements))
    gradients = random.standard_normal((2, shape.samples * shape.classes)).astype(np.float32)
    fields = {
        "logits": memory.add("logits", logits, elements * size),
        "labels": memory.add("labels", labels, voxels * labels.itemsize),
        "grad": memory.add("grad", np.zeros(elements * size, np.uint8)),
        "grad_loss": memory.add("grad_loss", np.ones(4, np.float32)),
        "grad_intersection": memory.add("grad_intersection", gradients[0]),
        "grad_prediction": memory.add("grad_prediction", gradients[1]),
        "workspace": memory.add("workspace", np.zeros(workspace + 16, np.uint8)),
        "refusal": memory.add("refusal", np.zeros(2048, np.uint8)),
        "total_weight": memory.add("total_weight", np.full(2, float(voxels))),
        "results": memory.add("results", np.zeros(64 + 8 * shape.samples * (shape.classes + 1), np.float64)),
    }
    described = ProblemStruct(
        shape.samples,
        shape.classes,
        shape.positions,
        DTYPES[problem.dtype],
        problem.label_dtype,
        problem.is_planar,
        problem.per_sample,
        **fields,
    )
    return described, memory


def launches_of(toolkit: Toolkit, library: ctypes.CDLL, problem: Problem) -> tuple[list[Launch], Any]:
    described, _ = fill_memory(problem, 0)
    library.model_workspace.restype = ctypes.c_size_t
    described, memory = fill_memory(problem, library.model_workspace(ctypes.byref(described)))
    launches: list[Launch] = []
    unsigned = ctypes.POINTER(ctypes.c_uint)
    pointers = ctypes.POINTER(ctypes.c_void_p)

    def note(name: bytes, grid: Any, threads: int, shared: int, args: Any) -> None:
        kernel = toolkit.kernel(name.decode())
        end = max((offset + size for offset, size in kernel.parameters), default=0)
        data = bytearray(end)
        for k, (offset, size) in enumerate(kernel.parameters):
            data[offset : offset + size] = ctypes.string_at(args[k], size)
        launches.append(Launch(name.decode(), (grid[0], grid[1], grid[2]), threads, shared, bytes(data)))

    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p, unsigned, ctypes.c_uint, ctypes.c_uint, pointers)
    error = library.model_call(problem.op.encode(), ctypes.byref(described), callback(note))
    if error:
        raise RuntimeError(f"{problem.row}: CUDA error {error}")
    return launches, memory


# ---- counting --------------------------------------------------------------------------------------------------------

XU = {"MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV", "FCHK"}
FP64 = {"DADD", "DMUL", "DFMA", "DSETP"}
FMA = {"FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2", "FADD32I", "FMUL32I", "FFMA32I"}
MEMORY = {"LDG", "STG", "LDS", "STS", "LDL", "STL", "LDGSTS", "ATOMS", "ATOMG", "RED", "REDG", "SHFL"}
BRANCH = {"BRA", "EXIT", "CALL", "BRX", "RET", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "BAR", "NOP", "YIELD", "DEPBAR"}
BRANCH |= {"LDGDEPBAR", "MEMBAR", "ERRBAR", "CCTL"}


def pipe_of(instruction: Instruction) -> str:
    opcode = instruction.opcode
    if opcode in XU:
        return "xu"
    if opcode in FP64:
        return "fp64"
    if opcode == "IMAD":
        return "imad"
    if opcode in FMA:
        return "fma"
    if opcode in MEMORY:
        return "memory"
    if opcode in BRANCH:
        return "branch"
    if opcode.startswith("U") or opcode in ("LDC", "S2R", "S2UR", "R2UR", "CS2R", "B2R"):
        return "uniform"
    return "alu"


@dataclass
class Counts:
    """Of one block, on average over the blocks that ran."""

    blocks: int = 0
    issued: float = 0  # instructions of warps
    threads: float = 0  # instructions of threads
    pipes: dict[str, float] = field(default_factory=dict)
    passes: float = 0  # of the memory pipe
    conflicts: float = 0  # passes beyond what the bytes need, in shared memory
    loaded: float = 0  # bytes of sectors from memory, each counted once
    stored: float = 0
    asked: float = 0  # bytes that threads ask for, of global memory
    asked_sectors: float = 0  # of all accesses of warps
    cycles: float = 0  # of a block alone, with `latency`


def own_sectors(blocks: list[Block]) -> list[tuple[set[int], set[int]]]:
    """The sectors that each block loads and stores, without those that another block touches, too."""
    touched = []
    for block in blocks:
        loads: set[int] = set()
        stores: set[int] = set()
        for warp in block.warps:
            for access in warp.accesses.values():
                (stores if access.is_store else loads).update(access.sectors.tolist())
        touched.append((loads, stores))
    if len(blocks) < 2:
        return touched
    result = []
    for k, (loads, stores) in enumerate(touched):
        others = set().union(*(a | b for j, (a, b) in enumerate(touched) if j != k))
        result.append((loads - others, stores - others))
    return result


def count(blocks: list[Block], device: Device) -> Counts:
    counts = Counts(len(blocks))
    share = 1 / len(blocks)
    for block, (loads, stores) in zip(blocks, own_sectors(blocks), strict=True):
        code = block.program.code
        for warp in block.warps:
            counts.issued += len(warp.trace) * share
            for at, threads in warp.trace:
                pipe = pipe_of(code[at])
                counts.pipes[pipe] = counts.pipes.get(pipe, 0) + share
                counts.threads += threads * share
                if code[at].opcode == "SHFL":
                    counts.passes += share
            for access in warp.accesses.values():
                counts.passes += access.wavefronts * share
                if access.space == "global":
                    counts.asked += access.num_bytes * share
                    counts.asked_sectors += len(access.sectors) * share
                elif access.space == "shared":
                    counts.conflicts += (access.wavefronts - max(1, access.num_bytes / 128)) * share
        counts.loaded += len(loads) * SECTOR * share
        counts.stored += len(stores) * SECTOR * share
        counts.cycles += time_alone(block, device, loads) * share
    return counts


# ---- the time of a block that runs alone -----------------------------------------------------------------------------

LATENCY = {"xu": 20, "fp64": 16, "memory": 26, "uniform": 24, "alu": 6, "fma": 6, "imad": 6, "branch": 6}
L1_LATENCY, READ_LATENCY, BARRIER_LATENCY, BRANCH_LATENCY = 35, 12, 20, 8


@dataclass
class Timeline:
    """How far a warp has come, by the stall counts and scoreboards that the compiler wrote into the code."""

    now: float = 0
    boards: list[float] = field(default_factory=lambda: [0.0] * 8)
    copies: list[float] = field(default_factory=list)  # when asynchronous copies have come
    groups: list[float] = field(default_factory=list)
    at: int = 0


def result_latency(
    instruction: Instruction, access: Access | None, device: Device, far: set[int], seen: set[int]
) -> float:
    if access is None:
        pipe = pipe_of(instruction)
        return LATENCY[pipe] * (3 if pipe == "fp64" and device.fp64_lanes < 16 else 1)
    if access.space != "global":
        return 24 + access.wavefronts
    if any(sector in far and sector not in seen for sector in access.sectors.tolist()):
        return device.latency * device.clock
    return L1_LATENCY


def advance(timeline: Timeline, warp: Any, device: Device, far: set[int], seen: set[int]) -> bool:
    """Up to the next barrier of the block. False at the end."""
    code, trace = warp.block.program.code, warp.trace
    boards = timeline.boards
    while timeline.at < len(trace):
        index = trace[timeline.at][0]
        instruction = code[index]
        for board in instruction.waits:
            timeline.now = max(timeline.now, boards[board])
        opcode = instruction.opcode
        if opcode == "DEPBAR" and timeline.groups:
            kept = next((o.index for o in instruction.operands if o.kind == "number"), 0)
            waited = timeline.groups[: len(timeline.groups) - kept] if kept else timeline.groups
            timeline.now = max([timeline.now, *waited])
        access = warp.accesses.get(timeline.at)
        done = timeline.now + result_latency(instruction, access, device, far, seen)
        if access is not None and access.space == "global":
            seen.update(access.sectors.tolist())
        if opcode == "LDGSTS":
            timeline.copies.append(done)
        elif opcode == "LDGDEPBAR":
            timeline.groups.append(max(timeline.copies, default=timeline.now))
            timeline.copies = []
        if instruction.result_board < 6:
            boards[instruction.result_board] = max(boards[instruction.result_board], done)
        if instruction.read_board < 6:
            boards[instruction.read_board] = max(boards[instruction.read_board], timeline.now + READ_LATENCY)
        timeline.now += instruction.stall
        timeline.at += 1
        if opcode in ("BRA", "BRX", "CALL", "RET") and timeline.at < len(trace) and trace[timeline.at][0] != index + 1:
            timeline.now += BRANCH_LATENCY
        if opcode == "BAR":
            return True
    timeline.now = max([timeline.now, *boards])
    return False


def time_alone(block: Block, device: Device, far: set[int]) -> float:
    timelines = [Timeline() for _ in block.warps]
    # `seen` is per warp: warps of a block load at about the same time, so a hit on another's sector waits as long.
    seen: list[set[int]] = [set() for _ in block.warps]
    running = list(range(len(block.warps)))
    while running:
        running = [k for k in running if advance(timelines[k], block.warps[k], device, far, seen[k])]
        if running:
            together = max(timelines[k].now for k in running) + BARRIER_LATENCY
            for k in running:
                timelines[k].now = together
    return max(timeline.now for timeline in timelines)


# ---- predicting ------------------------------------------------------------------------------------------------------

ISSUE_EFFICIENCY, PIPE_EFFICIENCY = 0.6, 0.9
ALU_LANES, XU_LANES = 64, 16
BLOCK_START = 300  # cycles until a new block's first instruction has its constants and code
LAUNCH_GAP = 1.0e-6  # seconds between two kernels of a stream


def resident_blocks(kernel: Kernel, launch: Launch, device: Device) -> int:
    warps = -(-launch.threads // LANES)
    registers = -(-max(kernel.registers, 1) * LANES // 256) * 256 * warps
    system = 0 if device.arch >= 90 and kernel.shared else 1024  # bytes of each block, which sm_90 counts as static
    shared = -(-(kernel.shared + launch.shared_bytes + system) // 128) * 128
    limits = [device.blocks, device.warps // warps, device.registers // registers, device.shared_bytes // shared]
    return max(1, min(limits))


@dataclass
class Prediction:
    launch: Launch
    kernel: Kernel
    counts: Counts
    resident: int
    times: dict[str, float]  # seconds of each bound
    issue_cycles: dict[str, float]

    @property
    def time(self) -> float:
        return max(self.times.values())

    @property
    def bound(self) -> str:
        return max(self.times, key=lambda name: self.times[name])

    @property
    def bytes(self) -> float:
        return (self.counts.loaded + self.counts.stored) * self.launch.blocks


def instruction_cycles(counts: Counts, device: Device) -> dict[str, float]:
    """Cycles that a multiprocessor takes for a block, by each limit."""
    pipes = counts.pipes
    fma = pipes.get("fma", 0) + pipes.get("imad", 0)
    return {
        "issue": counts.issued / 4 / ISSUE_EFFICIENCY,
        "alu": pipes.get("alu", 0) * LANES / ALU_LANES / PIPE_EFFICIENCY,
        "fma": fma * LANES / device.fp32_lanes / PIPE_EFFICIENCY,
        "imad": pipes.get("imad", 0) * LANES / 64 / PIPE_EFFICIENCY,
        "xu": pipes.get("xu", 0) * LANES / XU_LANES / PIPE_EFFICIENCY,
        "fp64": pipes.get("fp64", 0) * LANES / device.fp64_lanes / PIPE_EFFICIENCY,
        "lsu": counts.passes / PIPE_EFFICIENCY,
    }


def sample_blocks(launch: Launch) -> list[int]:
    return sorted({launch.blocks // 3, launch.blocks // 2 + 1} & set(range(launch.blocks))) or [0]


def predict(
    kernel: Kernel, launch: Launch, memory: Any, device: Device, listings: Path, resident: int = 0
) -> Prediction:
    program = Program(kernel, device.arch, launch.grid, launch.threads, launch.parameters, memory)
    blocks = [program.block(index) for index in sample_blocks(launch)]
    write_listing(listings / f"{digest(kernel.name, launch.parameters)}.txt", kernel, blocks)
    counts = count(blocks, device)
    resident = resident or resident_blocks(kernel, launch, device)
    cycles = instruction_cycles(counts, device)
    per_multiprocessor = -(-launch.blocks // device.multiprocessors)
    rounds = -(-launch.blocks // (device.multiprocessors * resident))
    total = (counts.loaded + counts.stored) * launch.blocks
    times = {
        "bytes": total / (device.bandwidth * device.copy_efficiency),
        "issue": per_multiprocessor * max(cycles.values()) / device.clock,
        "latency": rounds * (counts.cycles + BLOCK_START) / device.clock,
    }
    return Prediction(launch, kernel, counts, resident, times, cycles)


def short_name(name: str) -> str:
    demangled = run("c++filt", name).strip()
    demangled = demangled.replace("(anonymous namespace)::", "")
    return re.sub(r"\(.*\)$", "", re.sub(r"^void ", "", demangled))


def sources_of(cuda: Path, narrow: Path, op: str, dtype: str) -> list[Path]:
    family = "cross_entropy" if op.startswith("cross") else "confusion" if op == "counts" else "soft_stats"
    names = [f"{family}.cu", "tile_call.cu"]
    if op == "cross_entropy" or op.startswith("cross_entropy_"):
        names.append(f"warp_cross_entropy_{dtype}.cu")
    elif op == "counts":
        names += [f"warp_counts_{dtype}.cu", "warp_counts.cu", "soft_stats.cu"]
    else:
        names.append(f"warp_soft_stats_grad_{dtype}.cu" if "backward" in op else f"warp_soft_stats_{dtype}.cu")
        names += [] if (cuda / "warp_soft_stats_float32.cu").exists() else ["cross_entropy.cu"]
    if family == "cross_entropy":
        names.append("soft_stats.cu")  # has segloss_cuda_workspace
    present = [name for name in dict.fromkeys(names) if (cuda / name).exists()]
    return [(narrow if name.startswith("warp") else cuda) / name for name in present]


def write_listing(path: Path, kernel: Kernel, blocks: list[Block]) -> None:
    """The kernel's instructions, each with how often the warps of a block issue it."""
    times: dict[int, int] = {}
    for block in blocks:
        for warp in block.warps:
            for at, _ in warp.trace:
                times[at] = times.get(at, 0) + 1
    lines = [
        f"{times.get(at, 0) / len(blocks):8.0f}  {each.stall:2} {each.address:05x}  {each.text}"
        for at, each in enumerate(kernel.instructions)
    ]
    path.write_text("\n".join([short_name(kernel.name), *lines]) + "\n")


def report(problem: Problem, device: Device, predictions: list[Prediction], details: bool) -> None:
    elements = problem.shape.samples * problem.shape.positions * problem.shape.classes
    floor = problem.floor_bytes / (device.bandwidth * device.copy_efficiency)
    total = sum(p.time for p in predictions) + LAUNCH_GAP * (len(predictions) - 1)
    largest = max(predictions, key=lambda p: p.time)
    moved = sum(p.bytes for p in predictions) / problem.floor_bytes
    print(f"{problem.row} {device.name:<8} {floor / total:>5.0%} {largest.bound:<7} {moved:>5.2f}")
    for p in predictions if details else []:
        per_logit = p.counts.issued * LANES * p.launch.blocks / elements
        bound = max(p.issue_cycles, key=lambda name: p.issue_cycles[name])
        in_flight = p.counts.loaded * p.resident * device.latency * device.clock / max(p.counts.cycles, 1)
        times = " ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in p.times.items())
        print(
            f"    {short_name(p.kernel.name)}: us: {times}; {p.launch.blocks} blocks of {p.launch.threads}, "
            f"{p.resident} resident, {p.kernel.registers} registers, "
            f"{p.kernel.shared + p.launch.shared_bytes} B shared; "
            f"{per_logit:.1f} instructions a logit ({p.counts.threads * p.launch.blocks / elements:.1f} of threads), "
            f"limit {bound}; {in_flight / 1024:.0f} KB in flight; bank conflicts {p.counts.conflicts:.0f} of "
            f"{p.counts.passes:.0f} passes; cycles {p.counts.cycles:.0f} a block"
        )
        listing = digest(p.kernel.name, p.launch.parameters)
        pipes = " ".join(f"{k}={v * LANES * p.launch.blocks / elements:.2f}" for k, v in sorted(p.counts.pipes.items()))
        print(f"        a logit: {pipes}; stack {p.kernel.stack}; listing {listing}.txt")


# ---- kernels of known speed ------------------------------------------------------------------------------------------


def launch_of(check: Check, kernel: Kernel) -> tuple[Launch, Memory]:
    memory = Memory()
    size = check.total * check.num_bytes
    data = random_logits("float32", PERIOD)
    threads = -(-check.total // check.elements)
    data_of = {"from": memory.add("from", data, size + 64), "to": memory.add("to", np.zeros_like(data), size + 64)}
    parameters = struct.pack("<QQI", data_of["from"], data_of["to"], threads if "copy" in check.kernel else check.total)
    return Launch(check.kernel, (-(-threads // check.threads), 1, 1), check.threads, 0, parameters), memory


def report_check(check: Check, toolkit: Toolkit) -> None:
    toolkit.compile(TOOLS / "gpu_checks.cu")
    kernel = toolkit.kernel(check.kernel)
    launch, memory = launch_of(check, kernel)
    prediction = predict(kernel, launch, memory, check.device, toolkit.folder, check.resident)
    speed = check.streams * check.total * check.num_bytes / prediction.time
    print(
        f"{check.kernel:<13} {check.threads:>4} threads, {prediction.resident} blocks  {check.device.name:<10} "
        f"{check.published / 1e9:>6.0f} {speed / 1e9:>6.0f}  {prediction.bound:<8} {check.source}"
    )


def report_checks(arch: str, folder: Path) -> None:
    print("Kernels of known speed          on              GB/s  model  bound    source")
    for check in CHECKS:
        if arch in ("", f"sm_{check.device.arch}"):
            report_check(check, Toolkit(check.device.arch, folder))


def problems(args: argparse.Namespace) -> Iterator[Problem]:
    for op in UNITS:
        if any(fnmatch(op, pattern) for pattern in args.only.split(",")):
            for shape in SHAPES:
                if args.classes == "" or str(shape.classes) in args.classes.split(","):
                    for dtype in args.dtype.split(","):
                        for layout in args.layout.split(","):
                            yield Problem(op, shape, dtype, layout == "planar")


def report_problem(problem: Problem, arch: int, args: argparse.Namespace) -> None:
    toolkit = Toolkit(arch, args.build, cuda=args.sources.resolve())
    narrow = narrowed(toolkit.cuda, problem.shape.classes, args.build) if args.fast else toolkit.cuda
    library = toolkit.library(sources_of(toolkit.cuda, narrow, problem.op, problem.dtype))
    launches, memory = launches_of(toolkit, library, problem)
    if arch in ONLY_COMPILED:
        registers = ", ".join(str(toolkit.kernel(each.name).registers) for each in launches)
        print(f"{problem.row} sm_{arch}: compiled, with {registers} registers")
    for device in DEVICES:
        if device.arch == arch:
            predictions = [predict(toolkit.kernel(each.name), each, memory, device, args.build) for each in launches]
            report(problem, device, predictions, args.details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="", help="sm_80, sm_89, sm_90 or sm_120; all if not given")
    parser.add_argument("--only", default="*", help="operators, such as cross_entropy,dice*")
    parser.add_argument("--classes", default="", help="such as 4,19")
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--layout", default="planar,channels_last")
    parser.add_argument("--sources", type=Path, default=CUDA, help="the folder of the .cu files")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "gpu-model")
    parser.add_argument("--fast", action="store_true", help="compile for one number of classes at a time")
    parser.add_argument("--details", action="store_true")
    args = parser.parse_args()
    print("A model of compiled code: nothing here was measured.")
    if any(fnmatch("checks", pattern) for pattern in args.only.split(",")):
        report_checks(args.arch, args.build)
    for arch in (*dict.fromkeys(device.arch for device in DEVICES), *ONLY_COMPILED):
        if args.arch in ("", f"sm_{arch}"):
            for problem in problems(args):
                report_problem(problem, arch, args)


if __name__ == "__main__":
    main()
