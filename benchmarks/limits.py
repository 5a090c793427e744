"""The limits of limits.c, compiled for this machine and called on the same tensors as the losses. On a GPU the limit is
the rate at which it copies memory.
"""

import mmap
import os
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import CDLL, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from timing import Run, seconds_alone
from torch import Tensor

WORD = 8  # bytes that limits.c reads at once
FAR_BEYOND_CACHES = {"cuda": 1 << 30, "cpu": 1 << 24}  # bytes; on a CPU only the tests copy


@cache
def library() -> CDLL:
    """Compiles limits.c. Torch is already loaded, so the loops run on its OpenMP threads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "limits.so"
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        source = Path(__file__).with_name("limits.c")
        subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", path, source], check=True)
        return CDLL(str(path))


def read_once(logits: Tensor) -> Callable[[], object]:
    function, words, threads = library().read_once, logits.nbytes // WORD, torch.get_num_threads()
    return lambda: function(c_void_p(logits.data_ptr()), c_int64(words), threads)


@cache
def other_memory(device: str) -> Tensor:
    return torch.zeros(FAR_BEYOND_CACHES[device], dtype=torch.uint8, device=device)


def empty_caches_of_gpu() -> None:
    """Reads memory that no loss uses. The logits are then read from memory, and the GPU is busy for a millisecond, in
    which the host puts the call behind: what is measured does not wait for the host.
    """
    for _ in range(4):
        other_memory("cuda").view(torch.int32).sum()


@cache
def copy_rate(device: str = "cuda") -> float:
    """Bytes per second that a device reads plus those that it writes while it copies."""
    source = other_memory(device)
    target = torch.empty_like(source)
    copy = Run(lambda: target.copy_(source), before=lambda: None, on_gpu=source.is_cuda)
    return 2 * source.nbytes / seconds_alone(copy, budget=0.2)


def read_twice_and_write(logits: Tensor) -> Callable[[], object]:
    function, words, threads = library().read_twice_and_write, logits.nbytes // WORD, torch.get_num_threads()
    memory = mmap.mmap(-1, logits.nbytes)
    memory.madvise(mmap.MADV_HUGEPAGE)
    gradient = torch.frombuffer(memory, dtype=torch.uint8)
    return lambda: function(c_void_p(logits.data_ptr()), c_void_p(gradient.data_ptr()), c_int64(words), threads)


def read_twice_and_write_fresh(logits: Tensor) -> Callable[[], object]:
    function, words, threads = library().read_twice_and_write_fresh, logits.nbytes // WORD, torch.get_num_threads()
    return lambda: function(c_void_p(logits.data_ptr()), c_int64(words), threads)
