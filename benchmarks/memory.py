"""The memory that a loss takes. On a CPU it is read from /proc, in a process of its own for each loss, because the peak
is that of a whole process; on a GPU torch's allocator counts it.
"""

import ctypes
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import Case
from torch import Tensor

WARM_UP_SIZE = 8  # voxels along each axis
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Memory:
    """Memory beyond logits and labels, in units of the logits' bytes."""

    peak: float  # of forward and backward, including the gradient, which is 1
    saved: float  # what is kept from forward to backward


def process_bytes(field: str) -> int:
    """Bytes of this process: VmRSS is what it holds now, VmHWM the most it has ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def return_freed_memory() -> None:
    """Makes malloc return freed memory at once; otherwise the peak depends on which blocks it keeps."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)


def held(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else process_bytes("VmRSS")


def forget_most_held(device: str) -> None:
    """So that what made the tensors does not count."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def most_held(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else process_bytes("VmHWM")


def measure(case: Case, peer: str, side: int) -> Memory:
    """Measures the first call at this size in this process, so that the process's peak is that of the call."""
    device = case.problem.device
    call = case.calls()[peer][side]
    logits, labels = case.problem.with_sizes(WARM_UP_SIZE).tensors()
    run_backward(call(logits, labels))  # loads code and starts thread pools, which must not count
    logits, labels = case.problem.tensors()
    forget_most_held(device)
    before = held(device)
    result = call(logits, labels)
    saved = held(device) - before
    run_backward(result)
    peak = most_held(device) - before
    return Memory(peak / logits.nbytes, saved / logits.nbytes)


def run_backward(result: Tensor) -> None:
    if result.requires_grad:  # a confusion matrix has no gradient
        torch.autograd.backward(result)


def taken(case: Case, peer: str, side: int) -> Memory:
    """The memory of one call of a pair; ``side`` 0 is segloss, 1 the peer."""
    return (measure if case.problem.device == "cuda" else in_own_process)(case, peer, side)


def in_own_process(case: Case, peer: str, side: int) -> Memory:
    """Forks the process from one that has not run anything yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "monai.losses", "kornia.losses"])  # slow to import
    with context.Pool(1, initializer=return_freed_memory) as pool:
        return pool.apply(measure, (case, peer, side))
