#!/usr/bin/env python3
"""Predicts how fast the CUDA kernels run on GPUs that are not there. A model: nothing is measured.

Bounds and shares are parts of the rate of a copy that moves the bytes that a call has to move at least; gpu_predict.py
says how they come about. Bounds are those of a call's main kernel, shares those of all its kernels.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from gpu_checks import CHECKS
from gpu_compile import Toolkit, digest, narrowed, run
from gpu_devices import DEVICES, H100, Device
from gpu_predict import Row, check_row, details_of, predict, row_of
from gpu_problems import OPS, Problem, launches_of, library_of
from warps import Memory, Unknown

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
CUDA = ROOT / "csrc" / "kernels" / "cuda"
MODEL = "".join(path.read_text() for path in sorted(TOOLS.glob("*.*")) if path != Path(__file__).resolve())
ONLY_COMPILED = 120  # an architecture whose instructions are not interpreted

# ---- rows as lines ---------------------------------------------------------------------------------------------------

LINE = "{:<22} {:<21} {:<8} {:<13} {:>6} {:>5} {:>6} {:>6} {:>7}   {:>5} {:>6} {:>8}   {:>6} {:>10}"
HEADER = LINE.format(
    *("kernel", "logits", "dtype", "layout", "instr.", "regs", "blocks", "moved", "KB"),
    *("bytes", "issue", "latency", "share", "together"),
)


def line_of(row: Row) -> str:
    shares = [f"{share:.0%}" for share in (*row["bounds"].values(), row["share"], row["together"])]
    what = row["op"], str(row["shape"]), row["dtype"], row["layout"]
    numbers = [row[name] for name in ("instructions", "registers", "blocks")]
    numbers += [f"{row['moved']:.2f}", f"{row['in_flight']:.1f}"]
    return LINE.format(*what, *numbers, *shares)


CHECKS_HEADER = """
Kernels whose speed others have measured, in GB/s; where the figures come from is in gpu_checks.py:

kernel                          on         measured  model  source"""


def check_line(row: Row) -> str:
    return (
        f"{row['kernel']:<13} {row['threads']:>4} threads, {row['blocks']} blocks  {row['device']:<10} "
        f"{row['measured']:>6} {row['model']:>6}  {row['source']}"
    )


# ---- results ---------------------------------------------------------------------------------------------------------

Results = dict[str, Any]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "gpu_model.json", ROOT / "docs" / "gpu.md"
TABLE = re.compile(r"^By nvcc [^\n]*\n\n(?:\|[^\n]*\n)+", re.MULTILINE)  # on the page
IN_WORDS = {
    "cross_entropy": "cross entropy, with its gradient",
    "cross_entropy_ignoring": "the same, some voxels ignored",
    "dice_forward": "Dice, forward",
    "dice_backward": "Dice, backward",
    "dice_ce_forward": "Dice + cross entropy, forward",
    "dice_ce_backward": "Dice + cross entropy, backward",
    "counts": "argmax and counts",
    "sigmoid_bce": "binary cross entropy of masks, with its gradient",
    "sigmoid_dice_forward": "Dice of a sigmoid and masks, forward",
    "sigmoid_dice_backward": "Dice of a sigmoid and masks, backward",
}


def to_json(results: Results) -> str:
    """One row a line."""
    parts = []
    for name, value in results.items():
        rows = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n]"
        parts.append(f'"{name}": {rows if isinstance(value, list) else json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def table_of(results: Results) -> str:
    """The shares on an H100, in percent: by the largest bounds, and where these meet."""
    columns = [(dtype, layout) for dtype in ("float32", "bfloat16") for layout in ("planar", "channels_last")]
    lines = [
        f"By nvcc {results['nvcc']}, the kernels of commit {results['commit']}, on an H100:",
        "",
        "| | C | " + " | ".join(f"{dtype}, {layout}" for dtype, layout in columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    cells = {
        (row["op"], row["shape"][1], row["dtype"], row["layout"]): f"{row['share']:.0%} / {row['together']:.0%}"
        for row in results["rows"]
        if row["device"] == H100.name
    }
    for op, words in IN_WORDS.items():
        for classes in (shape[1] for shape in OPS[op].shapes):
            shares = [cells.get((op, classes, *column), "") for column in columns]
            lines.append(f"| {words} | {classes} | " + " | ".join(shares) + " |")
    return "\n".join(lines) + "\n"


def write(results: Results) -> None:
    """To the results of the benchmarks and to the page about GPUs."""
    RESULTS.write_text(to_json(results))
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table_of(results), page, count=1), encoding="utf-8")


# ---- command line ----------------------------------------------------------------------------------------------------


def problems(args: argparse.Namespace) -> Iterator[Problem]:
    def is_wanted(op: str, shape: tuple[int, ...]) -> bool:
        has_name = any(fnmatch(op, pattern) for pattern in args.only.split(","))
        return has_name and (not args.classes or str(shape[1]) in args.classes.split(","))

    for op in OPS:
        for shape in OPS[op].shapes:
            if is_wanted(op, shape):
                for dtype in args.dtype.split(","):
                    for layout in args.layout.split(","):
                        yield Problem(op, shape, dtype, layout)


def kept(folder: Path, key: str, make: Callable[[], Row]) -> Row:
    """A row, made if none is there from the same sources by the same model."""
    path = folder / "rows" / f"{digest(MODEL, key)}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make()))
    row: Row = json.loads(path.read_text())
    return row


def report_checks(toolkits: dict[int, Toolkit], folder: Path) -> Iterator[Row]:
    print(CHECKS_HEADER)
    for check in CHECKS:
        if toolkit := toolkits.get(check.device.arch):
            toolkit.compile(TOOLS / "gpu_checks.cu")
            row = kept(folder, str(check), partial(check_row, check, toolkit))
            print(check_line(row), flush=True)
            yield row


def report(problem: Problem, device: Device, toolkit: Toolkit, cuda: Path, has_details: bool) -> list[Row]:
    """A row, if the model knows all instructions of its kernels."""
    library = library_of(problem, cuda, toolkit)

    def make() -> Row:
        memory = Memory()
        launches = launches_of(library, problem, memory, toolkit)
        predictions = [predict(toolkit.kernel(each.name), each, memory, device) for each in launches]
        row = row_of(problem, device, predictions)
        if has_details:
            row["details"] = [details_of(problem, each, device, toolkit.folder) for each in predictions]
        return row

    try:
        row = kept(toolkit.folder, f"{problem}{device}{library}{has_details}", make)
    except Unknown as error:
        print(f"{problem.op} {problem.shape} {problem.dtype} {problem.layout}: the model lacks {error}", flush=True)
        return []
    print(line_of(row), *row.get("details", []), sep="\n", flush=True)
    return [row]


def report_registers(toolkit: Toolkit, cuda: Path, args: argparse.Namespace) -> None:
    for problem in problems(args):
        launches = launches_of(library_of(problem, cuda, toolkit), problem, Memory(), toolkit)
        kernels = [toolkit.kernel(launch.name) for launch in launches]
        numbers = ", ".join(f"{kernel.registers} registers and {kernel.stack} bytes of stack" for kernel in kernels)
        print(f"{problem.op:<22} {problem.shape!s:<24} {problem.dtype:<8} {problem.layout:<13} {numbers}", flush=True)


def commit_of(folder: Path) -> str:
    commit = run("git", "-C", folder, "log", "-1", "--format=%h", "--abbrev=7", "--", ".").strip()
    return commit + (" with changes" if run("git", "-C", folder, "status", "--porcelain", ".") else "")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    archs = "sm_90, sm_80 or sm_89, all three if not given; sm_120: registers alone"
    written = "the rows to benchmarks/results, and a table to docs/gpu.md"
    parser.add_argument("--arch", default="", help=archs)
    parser.add_argument("--only", default="*", help="checks and operators, such as cross_entropy,dice*")
    parser.add_argument("--classes", default="", help="such as 4,19")
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--layout", default="planar,channels_last")
    parser.add_argument("--sources", type=Path, default=CUDA, help="the folder of the .cu files")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "gpu-model")
    parser.add_argument("--details", action="store_true", help="of each kernel, with a listing of its instructions")
    parser.add_argument("--write", action="store_true", help=written)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    print("A model of compiled code: nothing here was measured.")
    nvcc = re.findall(r"V([\d.]+)", run("nvcc", "--version"))[0]
    folder = args.build / nvcc
    cuda = narrowed(args.sources.resolve(), {problem.classes for problem in problems(args)}, folder)
    if args.arch == f"sm_{ONLY_COMPILED}":
        report_registers(Toolkit(ONLY_COMPILED, folder), cuda, args)
        return
    devices = [device for device in DEVICES if args.arch in ("", f"sm_{device.arch}")]
    toolkits = {device.arch: Toolkit(device.arch, folder) for device in devices}
    commit = commit_of(args.sources) if args.write else ""
    results: Results = {"is": "a model: nothing was measured", "nvcc": nvcc, "commit": commit, "checks": [], "rows": []}
    if any(fnmatch("checks", pattern) for pattern in args.only.split(",")):
        results["checks"] += report_checks(toolkits, folder)
    for device in devices:
        needed = f"{device.bytes_a_cycle * device.latency / 1024:.1f} KB in flight on a multiprocessor"
        print(f"\nOn {device.name}, where {needed} reach the copy rate:\n\n{HEADER}")
        for problem in problems(args):
            results["rows"] += report(problem, device, toolkits[device.arch], cuda, args.details)
        if args.write:
            write(results)


if __name__ == "__main__":
    main()
