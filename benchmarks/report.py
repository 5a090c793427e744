"""Writes the measurements as Markdown and JSON. As a command it prints the tables of such JSON."""

import json
import sys
from pathlib import Path
from typing import Any

Results = dict[str, Any]
Row = dict[str, Any]

WRONG = 0.03  # the table shows a value's relative error if it is larger than this

TITLES = {
    "cross_entropy": "cross entropy",
    "dice_ce_loss": "Dice + cross entropy",
    "dice_loss": "Dice",
    "dice_loss of samples": "Dice of each sample",
    "generalized_dice_loss": "generalized Dice",
    "focal_loss": "focal",
    "focal_loss of sigmoids": "focal, sigmoids",
    "binary_cross_entropy_with_logits": "binary cross entropy",
    "dice_ce_loss of sigmoids": "Dice + binary cross entropy",
    "topk_loss": "top-k",
}


def to_json(results: Results) -> str:
    """Puts each table row on one line. Four digits are more than repeated runs agree on."""
    rounded = json.loads(json.dumps(results), parse_float=lambda number: float(f"{float(number):.4g}"))
    parts = []
    for key, value in rounded.items():
        rows = ",\n".join(f"  {json.dumps(row)}" for row in value) if isinstance(value, list) else ""
        parts.append(f"{json.dumps(key)}: " + (f"[\n{rows}\n]" if rows else json.dumps(value)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


# ---- Markdown ----


def markdown(results: Results) -> str:
    machine = results["machine"]
    title = (
        f"{machine['processor']}, {machine['threads']} threads, {machine['isa']} kernels, torch {machine['torch']}, "
        f"cache of {machine['cache']} MiB, "
        f"{results['form']} form. Load average before the start: {machine['load']:.2f}."
    )
    if "copy" in machine:
        title += f" The GPU copies at {machine['copy'] / 1e12:.2f} TB/s, bytes read and written."
    return "\n\n".join(
        [title, *(text for name, write in TABLES.items() if name in results for text in write(results[name]))]
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def duration(seconds: float) -> str:
    value, unit = (seconds * 1e6, "µs") if seconds < 1e-3 else (seconds * 1e3, "ms")
    return f"{value:.{0 if value >= 100 else 1}f} {unit}"


def what(row: Row) -> list[str]:
    return [f"`{row['logits']}` {row['labels']}", format_of(row)]


def names(rows: list[Row], key: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row[key]))


LIMITS = {
    "cpu": "a plain C loop on the same threads that\n"
    "reads the logits once (forward), or reads them twice and writes a gradient (forward + backward), into fresh\n"
    "memory or into memory at hand, which segloss keeps from the gradient before.",
    "cuda": "the fewest bytes that it can read and\nwrite, at the rate of a copy within the memory of the GPU.",
}


def floor_tables(rows: list[Row]) -> list[str]:
    """A column for each format, so that the table is short: a row for each loss, shape and pass."""
    formats = list(dict.fromkeys(format_of(row) for row in rows))
    taken: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        cells = taken.setdefault((row["loss"], f"`{row['logits']}`", row["pass"]), {})
        cells[format_of(row)] = f"{100 * row['share']:.0f} % ({duration(row['segloss'])})"
    return [
        "## The share of a copy's rate\n\n"
        "segloss alone: the fewest bytes that a pass can read and write, divided by the time that it takes, as a\n"
        "share of the rate at which the GPU copies memory.",
        table(["loss", "logits", "pass", *formats], [[*key, *cells.values()] for key, cells in taken.items()]),
    ]


def format_of(row: Row) -> str:
    return f"{row['dtype']} {row['layout']}"


def device_of(rows: list[Row]) -> str:
    return rows[0].get("device", "cpu")


# The loss and shape for each peer's row in README's table.
IN_SHORT = {
    "torch": ("cross_entropy", "[2, 19, 512, 1024]"),
    "torch, compiled": ("cross_entropy", "[2, 19, 512, 1024]"),
    "MONAI": ("dice_ce_loss", "[2, 4, 96, 96, 96]"),
    "nnU-Net": ("dice_ce_loss", "[2, 4, 96, 96, 96]"),
    "SMP": ("dice_loss", "[2, 19, 256, 512]"),
    "kornia": ("focal_loss", "[2, 19, 256, 512]"),
}


def in_short(results: Results) -> str:
    """README's table: forward + backward, one row per peer."""
    rows = []
    for peer, (loss, logits) in IN_SHORT.items():
        speed, memory = (one_of(results[what], loss, logits) for what in ("speed", "memory"))
        peaks = [
            f"{memory['memory'][name]['peak']:.1f}" if name in memory["memory"] else "" for name in (peer, "segloss")
        ]
        rows.append([peer, TITLES[loss], f"`{logits}`", *times(speed, peer), *peaks])
    return table(["", "loss", "logits", "time", "segloss", "faster", "memory", "segloss"], rows)


def by_shape(results: Results) -> str:
    """README's other table: cross entropy beside torch's, including shapes where torch is faster."""
    rows = [row for row in results["speed"] if row["loss"] == "cross_entropy" and is_shown(row)]
    cells = [[f"`{row['logits']}`", row["labels"], *times(row, "torch")] for row in rows]
    return table(["logits", "labels", "torch", "segloss", "faster"], cells)


def times(row: Row, peer: str) -> list[str]:
    taken = row["peers"][peer]
    return [duration(taken["theirs"]), duration(row["segloss"]), f"**{taken['ratio']:.1f}x**"]


def one_of(rows: list[Row], loss: str, logits: str) -> Row:
    return next(row for row in rows if (row["loss"], row["logits"]) == (loss, logits) and is_shown(row))


SHOWN = ("forward + backward", "float32", "contiguous")


def is_shown(row: Row) -> bool:
    return (row.get("pass", SHOWN[0]), row["dtype"], row["layout"]) == SHOWN


def speed_tables(rows: list[Row]) -> list[str]:
    texts = [
        "## Speed\n\n"
        "A peer's cell says how many times as fast segloss is (2.0x: in half the time) and what the peer takes.\n"
        f"The last columns are the time of segloss divided by that of a limit: {LIMITS[device_of(rows)]}"
    ]
    for loss in dict.fromkeys(row["loss"] for row in rows):
        texts.append(f"### {loss}")
        texts.append(speed_table([row for row in rows if row["loss"] == loss]))
    return texts


def speed_table(rows: list[Row]) -> str:
    peers = names(rows, "peers")
    header = [f"segloss / {name}" if name.startswith("limit") else name for name in peers]
    return table(
        ["logits, labels", "format", "pass", "segloss", *header],
        [
            [*what(row), row["pass"], duration(row["segloss"]), *(speed_cell(row, peer) for peer in peers)]
            for row in rows
        ],
    )


def speed_cell(row: Row, peer: str) -> str:
    result, error = row["peers"].get(peer), row["error"].get(peer, 0)
    if result is None:
        return ""
    if peer.startswith("limit"):
        return f"{1 / result['ratio']:.2f}"
    wrong = f", value off by {100 * error:.0f} %" if error > WRONG else ""
    return f"{result['ratio']:.1f}x ({duration(result['theirs'])}{wrong})"


def variant_tables(rows: list[Row]) -> list[str]:
    variants = names(rows, "variants")
    cells = [
        [
            row["loss"],
            f"`{row['logits']}` {row['labels']}",
            duration(row["variants"][variants[0]]["ours"]),
            *(f"{1 / row['variants'][name]['ratio']:.2f}x" for name in variants),
        ]
        for row in rows
    ]
    return [
        "## segloss beside itself\n\nForward + backward: how many times as fast as in float32 contiguous.",
        table(["loss", "logits, labels", "float32 contiguous", *variants], cells),
    ]


def memory_tables(rows: list[Row]) -> list[str]:
    who = names(rows, "memory")
    cells = [
        [
            row["loss"],
            f"`{row['logits']}` {row['labels']}",
            *(memory_cell(row["memory"].get(name)) for name in who),
        ]
        for row in rows
    ]
    how = {"cpu": "Each in a process of its own.", "cuda": "As torch's allocator counts."}
    return [
        "## Memory\n\n"
        "Beyond logits and labels, in units of the logits' bytes: the peak of forward + backward, where the gradient\n"
        f"itself is 1, and in brackets what is kept from forward to backward. {how[device_of(rows)]}",
        table(["loss", "logits, labels", *who], cells),
    ]


def memory_cell(taken: Row | None) -> str:
    return "" if taken is None else f"{taken['peak']:.2f} ({taken['saved']:.2f})"


def size_tables(rows: list[Row]) -> list[str]:
    voxels, classes = (sorted({row[key] for row in rows}) for key in ("voxels", "classes"))
    cost = {(row["voxels"], row["classes"]): row for row in rows}
    cells = [
        [str(c), *(f"{1e9 * cost[n, c]['ours'] / n:.1f}" if (n, c) in cost else "" for n in voxels)] for c in classes
    ]
    return [
        "## By size\n\n`cross_entropy`, forward + backward, float32 contiguous: nanoseconds for each voxel.",
        table(["classes", *(f"{n:,} voxels" for n in voxels)], cells),
    ]


TABLES = {
    "floor": floor_tables,
    "speed": speed_tables,
    "variants": variant_tables,
    "memory": memory_tables,
    "sizes": size_tables,
}


def main() -> None:
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
