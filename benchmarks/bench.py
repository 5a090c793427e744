"""Compares time and memory of segloss with its peers, and with the limit that this machine's memory sets.

Prints tables in Markdown; writes every figure as JSON, and two plots.
"""

import argparse
import itertools
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import memory
import report
import torch
from cases import IMAGE_LIKE, OF_FEW_DIGITS, SCENES, Call, Case, Problem, cases, tiny, variants
from floor import floor_bytes, floor_cases, time_floor
from limits import copy_rate, read_once, read_twice_and_write, read_twice_and_write_fresh
from passes import PASSES, forward_backward
from timing import Comparison, Run, compare, seconds_alone
from torch import Tensor

import segloss

Row = dict[str, Any]
Job = Callable[[], list[Row]]

RESULTS = Path(__file__).parent / "results"
LARGE = 4 << 20  # bytes of logits: memory and limits are measured from here on; below, a call's overhead dominates
TOLERANCE = 1e-4
TOLERANCE_BFLOAT16 = 1e-2  # the result has 8 bits

LIMITS = {
    "forward": {"limit": read_once},
    "forward + backward": {"limit": read_twice_and_write_fresh, "limit, memory at hand": read_twice_and_write},
}

# ---- do they compute the same? ----


def outcome(call: Call, logits: Tensor, labels: Tensor) -> list[Tensor]:
    result = call(logits, labels)
    return [result.detach(), *(torch.autograd.grad(result, logits) if result.requires_grad else ())]


def check_agreement(ours: Call, theirs: Call, logits: Tensor, labels: Tensor, tolerance: float = TOLERANCE) -> None:
    """Checks values and gradients in float32, relative to the largest."""
    logits = logits.detach().float().requires_grad_()
    outcomes = [outcome(call, logits, labels) for call in (ours, theirs)]
    for actual, expected in zip(*outcomes, strict=True):
        if actual.dtype == torch.uint8:  # label maps: the two largest logits of a voxel may be equal but for rounding
            assert (actual != expected).float().mean() < 1e-5
            continue
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def error(call: Call, logits: Tensor, labels: Tensor) -> float:
    """The error of the value from bfloat16 logits, relative to the value from the same logits in float32."""
    with torch.no_grad():
        actual, expected = (call(x, labels).item() for x in (logits, logits.float()))
    return abs(actual - expected) / abs(expected)


def errors(calls: dict[str, tuple[Call, Call]], logits: Tensor, labels: Tensor) -> dict[str, float]:
    if logits.dtype == torch.float32:
        return {}
    assert all(error(ours, logits, labels) < TOLERANCE_BFLOAT16 for ours, _ in calls.values())
    return {name: error(theirs, logits, labels) for name, (_, theirs) in calls.items()}


# ---- the tables ----


def time_case(case: Case, budget: float) -> list[Row]:
    torch.compiler.reset()  # otherwise torch.compile gives up after eight shapes of one function
    logits, labels = case.problem.tensors()
    calls = case.calls()
    if not calls:
        return []  # no peer is installed
    tolerance = OF_FEW_DIGITS.get(case.loss, TOLERANCE)
    compared = case.problem.with_sizes(8).tensors() if case.loss in OF_FEW_DIGITS else (logits, labels)
    for ours, theirs in calls.values():
        check_agreement(ours, theirs, *compared, tolerance)
    off = errors(calls, logits, labels)
    plain = next(iter(calls.values()))[0]
    differentiable = plain(logits, labels).requires_grad
    rows = []
    for name in PASSES if differentiable else ["forward"]:
        pairs = {
            peer: (PASSES[name](ours, logits, labels), PASSES[name](theirs, logits, labels))
            for peer, (ours, theirs) in calls.items()
        }
        results = compare(pairs, budget)
        has_limits = case.problem.num_bytes >= LARGE and case.problem.enlarged == 1
        if has_limits:  # on its own: fresh memory is slow for a while after peers free theirs
            results |= beside_limits(case, name, plain, logits, labels, budget)
        rows.append(
            {
                "loss": case.loss,
                **case.columns(),
                "pass": name,
                "segloss": next(iter(results.values())).ours,
                "peers": {peer: asdict(result) for peer, result in results.items()},
                "error": off,
            }
        )
    return rows


def beside_limits(
    case: Case, name: str, call: Call, logits: Tensor, labels: Tensor, budget: float
) -> dict[str, Comparison]:
    ours = PASSES[name](call, logits, labels)
    if logits.is_cuda:
        taken, limit = seconds_alone(ours, budget), floor_bytes(case, name, logits, labels) / copy_rate()
        return {"limit": Comparison(taken, limit, limit / taken)}
    pairs = {limit: (ours, Run(make(logits), before=read_once(logits))) for limit, make in LIMITS[name].items()}
    return compare(pairs, budget)


def time_variants(case: Case, budget: float) -> list[Row]:
    """Compares segloss with itself: forward and backward in each dtype and layout against float32 contiguous."""
    ours = next(iter(case.calls().values()))[0]
    plain, *others = [
        (Case(case.loss, variant), forward_backward(ours, *variant.tensors())) for variant in variants(case.problem)
    ]
    pairs = {" ".join((v.columns()["dtype"], v.columns()["layout"])): (plain[1], run) for v, run in others}
    results = {name: asdict(result) for name, result in compare(pairs, budget).items()}
    return [{"loss": case.loss, **plain[0].columns(), "variants": results}]


def measure_memory(case: Case) -> list[Row]:
    """Measures segloss, as it is called for the first peer, and each peer."""
    peers = list(case.calls())
    if not peers:
        return []
    sides = {"segloss": (peers[0], 0)} | {name: (name, 1) for name in peers}
    taken = {who: asdict(memory.taken(case, *side)) for who, side in sides.items()}
    return [{"loss": case.loss, **case.columns(), "memory": taken}]


def time_sizes(full: bool, budget: float, device: str) -> list[Row]:
    """Times cross entropy, forward and backward, from 10^4 voxels and 2 classes upwards."""
    most_logits = 512 * 10**6 if full else 40 * 10**6  # of four bytes each
    memory_of_logits = torch.empty(most_logits, device=device).normal_()
    memory_of_labels = torch.empty(10**8, dtype=torch.int16, device=device)
    rows = []
    for classes in (2**n for n in range(1, 10)) if full else (2, 8, 32, 128, 512):
        memory_of_labels.random_(classes)
        for voxels in (10**n for n in range(4, 9)):
            if classes * voxels <= most_logits:
                logits = memory_of_logits[: classes * voxels].view(1, classes, voxels).requires_grad_()
                labels = memory_of_labels[:voxels].view(1, 1, voxels)
                case = Case("cross_entropy", Problem(tuple(logits.shape), labels.dtype))
                tensors = logits, labels
                *_, result = beside_limits(case, "forward + backward", segloss.cross_entropy, *tensors, budget).values()
                rows.append({"voxels": voxels, "classes": classes, **asdict(result)})
                memory_of_logits.requires_grad_(False)
    return rows


def machine(device: str) -> Row:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else processor or platform.machine(),
        "threads": torch.get_num_threads(),
        "isa": gpu_kernels() if device == "cuda" else segloss.get_isa(),
        "torch": torch.__version__,
        "cache": torch.ops.segloss.cache_size() >> 20,
        "load": os.getloadavg()[0],  # other work on the machine changes the figures
        **({"copy": copy_rate()} if device == "cuda" else {}),
    }


def gpu_kernels() -> str:
    built = torch._C._dispatch_has_kernel_for_dispatch_key("segloss::cross_entropy_forward", "CUDA")
    return "segloss's CUDA" if built else "ATen's"


def jobs(full: bool, budget: float, device: str = "cpu", dry_run: bool = False) -> dict[str, Job]:
    """The jobs by name. The first word of a name is the table that its rows go to."""
    floors = floor_cases(device) if device == "cuda" else []
    chosen = cases(full, device)
    if dry_run:
        floors, chosen = ([tiny(case) for case in each] for each in (floors, chosen))
    by_name: dict[str, Job] = {f"floor {case.name}": partial(time_floor, case, budget / 4) for case in floors}
    by_name |= {f"speed {case.name}": partial(time_case, case, budget) for case in chosen}
    for case in chosen:
        is_large = case.problem.num_bytes >= LARGE or case.problem.enlarged > 1
        if case.problem.is_plain and is_large:
            by_name[f"memory {case.name}"] = partial(measure_memory, replace(case, compiled=False))
    return by_name | (other_jobs(full, budget, device) if full or device == "cpu" else {})


def other_jobs(full: bool, budget: float, device: str) -> dict[str, Job]:
    """segloss beside itself."""
    by_name: dict[str, Job] = {}
    shapes = [*IMAGE_LIKE, SCENES] if full else IMAGE_LIKE[1:3]
    for loss, problem in itertools.product(("cross_entropy", "dice_ce_loss"), shapes):
        case = Case(loss, replace(problem, device=device))
        by_name[f"variants {case.name}"] = partial(time_variants, case, budget)
    by_name["sizes"] = partial(time_sizes, full, budget / 4, device)
    return by_name


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--quick",
        action="store_true",
        help="under five minutes on two cores, or on a GPU, where only large shapes are measured (the default)",
    )
    form.add_argument("--full", action="store_true", help="every shape in every dtype and layout")
    parser.add_argument("--only", metavar="SUBSTRING", default="", help="only what has it in its name; writes no files")
    parser.add_argument("--seconds", type=float, help="for each ratio (default: 0.5, full: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: a GPU, and larger shapes, too")
    parser.add_argument("--dry-run", action="store_true", help="with cuda: its jobs, on the CPU with a few voxels")
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--json", type=Path, help="default: results/quick.json or full.json; quick_cuda.json")
    parser.add_argument("--plot", type=Path, help="default: results/quick.png or full.png; by size: *_sizes.png")
    args = parser.parse_args()
    if args.device == "cuda" and not args.dry_run and not torch.cuda.is_available():
        found = f"torch {torch.__version__} finds none (torch.cuda.is_available() is False)"
        parser.exit(
            2, f"{parser.prog}: --device cuda: expected a GPU, {found}. Run it where one is, or without --device\n"
        )
    args.form = "full" if args.full else "quick"
    args.seconds = args.seconds if args.seconds is not None else (1.0 if args.full else 0.5)
    if not args.only and not args.dry_run:
        stem = args.form if args.device == "cpu" else f"{args.form}_{args.device}"
        args.json = args.json or RESULTS / f"{stem}.json"
        if args.full or args.device == "cpu":
            args.plot = args.plot or RESULTS / f"{stem}.png"
    return args


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    for path in filter(None, (args.json, args.plot)):
        path.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"form": args.form, "machine": machine("cpu" if args.dry_run else args.device)}
    for name, job in jobs(args.full, args.seconds, args.device, args.dry_run).items():
        if args.only in name:
            print(name, file=sys.stderr)
            results.setdefault(name.split()[0], []).extend(job())
            if args.json:  # after each job, because the full form takes long
                args.json.write_text(report.to_json(results))
    print(report.markdown(results))
    if args.plot:
        import plots  # by matplotlib, which no other part needs

        plots.plot(results, args.plot)


if __name__ == "__main__":
    main()
