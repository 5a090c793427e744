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
from statistics import median

import torch
from timing import Run, seconds
from torch import Tensor

WORD = 8  # bytes that limits.c reads at once
COPIED = 1 << 30  # bytes, many times a GPU's caches


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
    if logits.is_cuda:
        return logits.detach().sum
    function, words, threads = library().read_once, logits.nbytes // WORD, torch.get_num_threads()
    return lambda: function(c_void_p(logits.data_ptr()), c_int64(words), threads)


@cache
def gpu_bandwidth() -> float:
    """Bytes per second that a GPU reads plus those that it writes while it copies."""
    source, target = torch.empty(2, COPIED, dtype=torch.uint8, device="cuda")
    copy = Run(lambda: target.copy_(source), before=lambda: None, on_gpu=True)
    seconds(copy)  # warms up
    return 2 * COPIED / median(seconds(copy) for _ in range(9))


def read_twice_and_write(logits: Tensor) -> Callable[[], object]:
    function, words, threads = library().read_twice_and_write, logits.nbytes // WORD, torch.get_num_threads()
    memory = mmap.mmap(-1, logits.nbytes)
    memory.madvise(mmap.MADV_HUGEPAGE)
    gradient = torch.frombuffer(memory, dtype=torch.uint8)
    return lambda: function(c_void_p(logits.data_ptr()), c_void_p(gradient.data_ptr()), c_int64(words), threads)


def read_twice_and_write_fresh(logits: Tensor) -> Callable[[], object]:
    function, words, threads = library().read_twice_and_write_fresh, logits.nbytes // WORD, torch.get_num_threads()
    return lambda: function(c_void_p(logits.data_ptr()), c_int64(words), threads)
