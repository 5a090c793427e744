"""Time and memory of segloss.cross_entropy beside torch's, forward plus backward, as a table in Markdown.

    python benchmarks/cross_entropy.py [--repeats 15]

Both losses run in turn in one process on the same tensors; the ratio is the median of the ratios of neighbouring runs,
because a shared machine drifts. Torch gets the labels as nn.CrossEntropyLoss needs them, by squeeze(1).long(), as a
training step has to do it. Peak memory is measured in a process of its own for each loss: how far the resident set
rises above logits and labels, in units of the logits' bytes; the gradient itself is 1.0.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import segloss

CASES = [  # shape of the logits, dtype of the labels
    ((4, 3, 64, 64, 64), torch.int64),
    ((2, 19, 512, 1024), torch.uint8),
    ((1, 105, 64, 96, 96), torch.uint8),
]


def torch_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, labels.squeeze(1).long())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch": torch_loss, "segloss": segloss.cross_entropy}


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(shape, requires_grad=True)
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), dtype=dtype)
    return logits, labels


def forward(loss: str, logits: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        LOSSES[loss](logits, labels)


def forward_backward(loss: str, logits: Tensor, labels: Tensor) -> None:
    LOSSES[loss](logits, labels).backward()
    logits.grad = None  # each loss pays for giving back its own gradient


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(step: Callable[[str, Tensor, Tensor], None], logits: Tensor, labels: Tensor, repeats: int) -> dict:
    """Median seconds of each loss, and the median of torch / segloss over neighbouring runs."""
    pairs = []
    for _ in range(repeats + 2):
        pairs.append({name: seconds(lambda name=name: step(name, logits, labels)) for name in LOSSES})
    pairs = pairs[2:]  # the first runs warm up
    result = {name: statistics.median(pair[name] for pair in pairs) for name in LOSSES}
    return result | {"ratio": statistics.median(pair["torch"] / pair["segloss"] for pair in pairs)}


def process_memory(field: str) -> int:
    """Bytes of this process: VmRSS is what it holds now, VmHWM the most it has ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def print_peak_memory(loss: str, case: int) -> None:
    """Runs in a process of its own: the peak is that of the whole process."""
    forward_backward(loss, *make_inputs((1, 3, 8, 8), torch.int64))  # code and thread pools are not the loss's memory
    logits, labels = make_inputs(*CASES[case])
    before = process_memory("VmRSS")
    forward_backward(loss, logits, labels)
    print((process_memory("VmHWM") - before) / logits.nbytes)


def peak_memory(loss: str, case: int) -> float:
    command = [sys.executable, __file__, "--peak-memory", loss, str(case)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each loss (default: 15)")
    parser.add_argument("--peak-memory", nargs=2, metavar=("LOSS", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory:
        print_peak_memory(args.peak_memory[0], int(args.peak_memory[1]))
        return
    threads = f"{torch.get_num_threads()} threads"
    print(f"{processor()}, {threads}, {segloss.get_isa()} kernels, torch {torch.__version__}, float32\n")
    print("| logits | labels | forward | forward + backward | torch | segloss | peak memory: torch | segloss |")
    print("|---|---|---|---|---|---|---|---|")
    for case, (shape, dtype) in enumerate(CASES):
        logits, labels = make_inputs(shape, dtype)
        only_forward = compare(forward, logits, labels, args.repeats)
        both = compare(forward_backward, logits, labels, args.repeats)
        del logits, labels
        memory = {loss: peak_memory(loss, case) for loss in LOSSES}
        print(
            f"| `{list(shape)}` | {str(dtype).removeprefix('torch.')} "
            f"| {only_forward['ratio']:.1f}x | {both['ratio']:.1f}x "
            f"| {both['torch'] * 1e3:.0f} ms | {both['segloss'] * 1e3:.0f} ms "
            f"| {memory['torch']:.2f} | {memory['segloss']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
