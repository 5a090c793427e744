"""How times and ratios are measured: every figure about speed comes from `compare`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from statistics import median

import torch

MIN_ROUNDS = 5


@dataclass(frozen=True)
class Run:
    call: Callable[[], object]
    before: Callable[[], object]  # untimed; makes the content of the caches independent of what ran last
    on_gpu: bool = False


@dataclass(frozen=True)
class Comparison:
    ours: float  # seconds, median
    theirs: float
    ratio: float  # theirs / ours: the median of the ratios of neighbouring runs


def seconds(run: Run) -> float:
    run.before()
    if run.on_gpu:
        return seconds_on_gpu(run.call)
    start = time.perf_counter()
    run.call()
    return time.perf_counter() - start


def seconds_on_gpu(call: Callable[[], object]) -> float:
    """Measures between two events on the stream, because a call returns before its work is done."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def compare(pairs: dict[str, tuple[Run, Run]], budget: float) -> dict[str, Comparison]:
    """Runs the pairs (ours, theirs) in turn, for ``budget`` seconds each and MIN_ROUNDS times at least.

    A shared machine drifts, so the two of a pair run one right after the other.
    """
    for run in chain.from_iterable(pairs.values()):
        seconds(run)  # warms up, and compiles what torch.compile compiles
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    end = time.perf_counter() + budget * len(pairs)
    rounds = 0
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        for name, (ours, theirs) in pairs.items():
            times[name].append((seconds(ours), seconds(theirs)))
        rounds += 1
    return {name: summary(values) for name, values in times.items()}


def seconds_alone(run: Run, budget: float) -> float:
    """The median of as many runs as take ``budget`` seconds, at least MIN_ROUNDS."""
    seconds(run)  # warms up
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < MIN_ROUNDS or time.perf_counter() < end:
        times.append(seconds(run))
    return median(times)


def summary(times: list[tuple[float, float]]) -> Comparison:
    ours, theirs = zip(*times, strict=True)
    return Comparison(median(ours), median(theirs), median(b / a for a, b in times))
