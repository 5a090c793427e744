"""Time and memory of segloss beside what a user would write instead, as a table in Markdown.

Both run in turn in one process on the same tensors, after a check that they agree; a ratio is the median of the ratios
of neighbouring runs, because a shared machine drifts. Peak memory is measured in a process of its own for each: how
far the resident set rises above logits and labels, in units of the logits' bytes; a gradient itself is 1.0.
"""

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import segloss

Call = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[Call, Tensor, Tensor], None]

MIN_RUNS = 5


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]  # of the logits
    labels: torch.dtype
    peer: str
    calls: dict[str, Call]  # of "segloss" and "peer": the same result from logits and labels [N, 1, *]

    def inputs(self) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        logits = torch.randn(self.shape, requires_grad=True)
        return logits, torch.randint(self.shape[1], (self.shape[0], 1, *self.shape[2:]), dtype=self.labels)


def forward(call: Call, logits: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        call(logits, labels)


def forward_backward(call: Call, logits: Tensor, labels: Tensor) -> None:
    call(logits, labels).backward()
    logits.grad = None  # each pays for giving back its own gradient


STEPS: dict[str, Step] = {"forward": forward, "forward + backward": forward_backward}


def check_agreement(case: Case, logits: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        ours, theirs = (case.calls[side](logits, labels) for side in ("segloss", "peer"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(step: Step, case: Case, logits: Tensor, labels: Tensor, budget: float) -> tuple[float, dict[str, float]]:
    """The median of peer / segloss over neighbouring runs, and the median seconds of each."""
    end = time.perf_counter() + budget
    times: dict[str, list[float]] = {side: [] for side in case.calls}
    while len(times["segloss"]) < 1 + MIN_RUNS or time.perf_counter() < end:
        for side, call in case.calls.items():
            times[side].append(seconds(partial(step, call, logits, labels)))
    times = {side: values[1:] for side, values in times.items()}  # the first run warms up
    ratios = (theirs / ours for theirs, ours in zip(times["peer"], times["segloss"], strict=True))
    return median(ratios), {side: median(values) for side, values in times.items()}


def process_memory(field: str) -> int:
    """Bytes of this process: VmRSS is what it holds now, VmHWM the most it has ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def print_peak_memory(step: Step, case: Case, side: str) -> None:
    """Runs in a process of its own: the peak is that of the whole process."""
    small = replace(case, shape=(1, case.shape[1], *(8 for _ in case.shape[2:])))
    step(case.calls[side], *small.inputs())  # code and thread pools are not what the call takes
    logits, labels = case.inputs()
    before = process_memory("VmRSS")
    step(case.calls[side], logits, labels)
    print((process_memory("VmHWM") - before) / logits.nbytes)


def peak_memory(case_index: int, side: str) -> float:
    command = [sys.executable, sys.argv[0], "--peak-memory", str(case_index), side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_row(cells: list[str]) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def print_table(cases: list[Case], steps: dict[str, Step], budget: float) -> None:
    """A ratio for each step; times and memory are those of the last one."""
    threads = f"{torch.get_num_threads()} threads"
    print(f"{processor()}, {threads}, {segloss.get_isa()} kernels, torch {torch.__version__}, float32\n")
    header = ["logits", "labels", "peer", *steps, "peer takes", "segloss takes", "peak memory: peer", "segloss"]
    print_row(header)
    print_row(["---"] * len(header))
    for index, case in enumerate(cases):
        logits, labels = case.inputs()
        check_agreement(case, logits, labels)
        results = [compare(step, case, logits, labels, budget) for step in steps.values()]
        times = results[-1][1]
        del logits, labels
        print_row(
            [
                f"`{list(case.shape)}`",
                str(case.labels).removeprefix("torch."),
                case.peer,
                *(f"{ratio:.1f}x" for ratio, _ in results),
                *(f"{times[side] * 1e3:.0f} ms" for side in ("peer", "segloss")),
                *(f"{peak_memory(index, side):.2f}" for side in ("peer", "segloss")),
            ]
        )
    print()


def main(description: str, cases: list[Case], steps: dict[str, Step] = STEPS) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6, help="for each ratio (default: 6)")
    parser.add_argument("--peak-memory", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory:
        index, side = args.peak_memory
        print_peak_memory(list(steps.values())[-1], cases[int(index)], side)
    else:
        print(description.splitlines()[0], end="\n\n")
        print_table(cases, steps, args.seconds)
