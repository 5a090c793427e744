"""The calls that the model is about, and the kernels that they launch."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gpu_compile import Toolkit
from sass import Kernel
from warps import Memory

SHAPES = ((2, 3, 128, 128, 128), (2, 4, 128, 128, 128), (2, 19, 1024, 2048), (1, 105, 128, 128, 128))
SIGMOID_SHAPES = ((2, 1, 128, 128, 128), (2, 4, 128, 128, 128))


@dataclass(frozen=True)
class Op:
    units: int  # the bytes of the logits that must be read or written
    label_reads: int
    launcher: str  # its source
    tiles: str  # the source of its kernel over tiles, without the type
    ignore_index: int = -100
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    has_masks: bool = False  # of each class, in place of labels


CROSS_ENTROPY = "cross_entropy", "warp_cross_entropy"
SUMS, SUMS_GRAD = ("soft_stats", "warp_soft_stats"), ("soft_stats", "warp_soft_stats_grad")
SIGMOID, SIGMOID_GRAD = ("soft_stats", "warp_sigmoid"), ("soft_stats", "warp_sigmoid_grad")
OPS = {
    "cross_entropy": Op(2, 1, *CROSS_ENTROPY),  # of a mean over all voxels, with its gradient
    "cross_entropy_ignoring": Op(2, 2, *CROSS_ENTROPY, ignore_index=255),  # of one over the voxels that have a class
    "dice_forward": Op(1, 1, *SUMS),
    "dice_backward": Op(2, 1, *SUMS_GRAD),
    "dice_ce_forward": Op(1, 1, *SUMS),
    "dice_ce_backward": Op(2, 1, *SUMS_GRAD),
    "counts": Op(1, 1, "confusion", "warp_counts"),  # of argmax, by class
    "sigmoid_bce": Op(2, 1, *SIGMOID, shapes=SIGMOID_SHAPES, has_masks=True),  # with its gradient
    "sigmoid_dice_forward": Op(1, 1, *SIGMOID, shapes=SIGMOID_SHAPES, has_masks=True),
    "sigmoid_dice_backward": Op(2, 1, *SIGMOID_GRAD, shapes=SIGMOID_SHAPES, has_masks=True),
}
DTYPES = {"float32": 0, "float16": 2, "bfloat16": 3}


@dataclass(frozen=True)
class Problem:
    op: str
    shape: tuple[int, ...]
    dtype: str
    layout: str

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
    def label_bytes(self) -> int:
        return self.voxels * (self.classes if OPS[self.op].has_masks else 1)

    @property
    def floor_bytes(self) -> int:
        return OPS[self.op].units * self.logits_bytes + OPS[self.op].label_reads * self.label_bytes


def library_of(problem: Problem, cuda: Path, toolkit: Toolkit) -> Path:
    """What launches the kernels of a problem."""
    names = OPS[problem.op].launcher, "tile_call", f"{OPS[problem.op].tiles}_{problem.dtype}"
    sources = (cuda / f"{name}.cu" for name in names)
    return toolkit.library(Path(__file__).with_name("gpu_launches.cpp"), *sources, options=f"-I{cuda}")


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
    most = 2 if OPS[problem.op].has_masks else problem.classes
    labels = np.random.default_rng(1).integers(0, most, PERIOD).astype(np.uint8)
    if OPS[problem.op].ignore_index >= 0:  # in runs, as segmentations have them
        labels[np.arange(PERIOD) % 1024 < 64] = OPS[problem.op].ignore_index
    return labels


def fill_memory(problem: Problem, memory: Memory) -> ProblemStruct:
    """The tensors of a problem. The last ones are small, or only written."""
    cells = problem.shape[0] * problem.classes
    zeros = np.zeros(PERIOD, np.uint8)
    tensors: dict[str, tuple[npt.NDArray[Any], int]] = {
        "logits": (random_logits(problem.dtype), problem.logits_bytes),
        "labels": (random_labels(problem), problem.label_bytes),
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
    return ProblemStruct(*numbers, problem.layout == "planar", **pointers)


def launches_of(library: Path, problem: Problem, memory: Memory, toolkit: Toolkit) -> list[Launch]:
    launches: list[Launch] = []
    errors: list[BaseException] = []  # which would not pass through the library

    def note(name: bytes, grid: Any, threads: int, shared: int, args: Any) -> None:
        try:
            parameters = toolkit.kernel(name.decode()).parameters
            arguments = tuple(ctypes.string_at(args[k], size) for k, (_, size) in enumerate(parameters))
            launches.append(Launch(name.decode(), (grid[0], grid[1], grid[2]), threads, shared, arguments))
        except BaseException as error:
            errors.append(error)

    unsigned, pointers = ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_void_p)
    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p, unsigned, ctypes.c_uint, ctypes.c_uint, pointers)
    described = fill_memory(problem, memory)
    loaded = ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    if error := loaded.model_call(problem.op.encode(), ctypes.byref(described), callback(note)):
        raise RuntimeError(f"{problem}: CUDA error {error}")
    if errors:
        raise errors[0]
    return launches
