"""Without arguments: the counters that ncu shall read. With ncu's CSV of these: what they say of each kernel.

Bytes are those of the GPU's memory, beyond its caches; a stall is the mean number of warps that wait for that reason
while a scheduler issues an instruction.
"""

import csv
import re
import sys
from collections.abc import Iterable

# A column's head, the counter, and the factor and format that show it.
COUNTERS = {
    "read MB": ("dram__bytes_read.sum", 1e-6, ".1f"),
    "written MB": ("dram__bytes_write.sum", 1e-6, ".1f"),
    "us": ("gpu__time_duration.sum", 1e-3, ".1f"),
    "instructions/1e6": ("smsp__inst_executed.sum", 1e-6, ".2f"),
    "issue %": ("smsp__issue_active.avg.pct_of_peak_sustained_active", 1, ".0f"),
    "occupancy %": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1, ".0f"),
    "registers": ("launch__registers_per_thread", 1, ".0f"),
    "shared KB": ("launch__shared_mem_per_block", 1 / 1024, ".1f"),
}
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = ("long_scoreboard", "lg_throttle", "short_scoreboard", "mio_throttle", "math_pipe_throttle", "wait", "barrier")


def metrics() -> list[str]:
    return [*(counter for counter, *_ in COUNTERS.values()), *map(STALL.format, STALLS)]


def number(text: str) -> float:
    return float(text.replace(",", "") or "nan")


def short_name(kernel: str) -> str:
    """A kernel's name with its template's arguments, without namespaces and parameters."""
    plain = re.sub(r"\((anonymous namespace|unnamed)\)::|<unnamed>::|^void |\((bool|int|long)\)", "", kernel)
    return plain.split("(")[0][:60]


def rows(lines: Iterable[str]) -> list[list[str]]:
    """A row for each kernel that took a microsecond or more. ncu's own messages precede the CSV, and a row of units
    follows its head."""
    table = csv.DictReader(line for line in lines if line.startswith('"'))
    return [row_of(row) for row in table if row["ID"] and number(row["gpu__time_duration.sum"]) >= 1000]


def row_of(row: dict[str, str]) -> list[str]:
    cells = [format(factor * number(row[counter]), spec) for counter, factor, spec in COUNTERS.values()]
    moved = number(row["dram__bytes_read.sum"]) + number(row["dram__bytes_write.sum"])
    rate = moved / number(row["gpu__time_duration.sum"]) / 1e3
    stalls = sorted(((number(row[STALL.format(name)]), name) for name in STALLS), reverse=True)
    return [
        short_name(row["Kernel Name"]),
        *cells,
        f"{rate:.2f}",
        ", ".join(f"{name} {n:.1f}" for n, name in stalls[:2]),
    ]


def main() -> None:
    if len(sys.argv) == 1:
        print(",".join(metrics()))
        return
    with open(sys.argv[1]) as lines:
        body = rows(lines)
    head = ["kernel", *COUNTERS, "TB/s", "stalls"]
    for row in [head, ["---"] * len(head), *body]:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
