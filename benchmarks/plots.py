"""Draws the measurements."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from report import TITLES, Results, Row, is_shown

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = {
    "segloss": "#0072b2",
    "torch": "#d55e00",
    "torch, compiled": "#e69f00",
    "MONAI": "#cc79a7",
    "nnU-Net": "#009e73",
    "nnU-Net, compiled": "#8fd6bf",
    "SMP": "#f0e442",
    "kornia": "#56b4e9",
    "torchvision": "#7f7f7f",
    "limit": "#000000",
}
SMALL = ("[4, 3, 4, 4]", "[64, 3, 4, 4]")  # take microseconds


def plot(results: Results, path: Path) -> None:
    """Draws the bars to ``path``, and the time by size to a file beside it, ``*_sizes``."""
    machine = results["machine"]
    where = f"{machine['processor']}, {machine['threads']} threads, {machine['isa']}, torch {machine['torch']}"
    if "speed" in results:
        plot_speed(results["speed"], where, path)
    if "sizes" in results:
        plot_sizes(results["sizes"], where, path.with_stem(f"{path.stem}_sizes"))


def plot_speed(rows: list[Row], where: str, path: Path) -> None:
    """Draws the milliseconds of forward + backward in float32 contiguous."""
    rows = [row for row in rows if is_shown(row) and row["logits"] not in SMALL]
    if not rows:
        return
    panels = [[row for row in rows if (row["loss"] == "cross_entropy") == is_left] for is_left in (True, False)]
    panels = [panel for panel in panels if panel]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 6), layout="constrained", squeeze=False)
    for ax, panel in zip(axes[0], panels, strict=True):
        draw_bars(ax, panel)
    used = {name: bars for ax in axes[0] for bars, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    order = [name for name in COLOURS if name in used]
    figure.legend([used[name] for name in order], order, loc="outside upper center", ncols=5, frameon=False)
    caption = "milliseconds for forward + backward, float32; limit: reading the logits twice and writing the gradient"
    figure.supxlabel(f"{caption}\n{where}", fontsize=8)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def draw_bars(ax: Axes, rows: list[Row]) -> None:
    ticks, position = [], 0.0
    for row in rows:
        peers = row["peers"]
        times = {"segloss": row["segloss"]} | {name: peers[name]["theirs"] for name in COLOURS if name in peers}
        ticks.append((position + (len(times) - 1) / 2, f"{TITLES[row['loss']]}\n{row['logits']}"))
        for name, seconds in times.items():
            label = name if name not in ax.get_legend_handles_labels()[1] else None
            ax.barh(position, 1e3 * seconds, height=1, color=COLOURS[name], label=label)
            ax.text(1e3 * seconds, position, f" {significant(1e3 * seconds)}", va="center", fontsize=6)
            position += 1
        position += 1
    ax.set(xscale="log", yticks=[tick for tick, _ in ticks])
    ax.set_yticklabels([label for _, label in ticks], fontsize=7)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.margins(x=0.12, y=0.01)
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)


def significant(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def plot_sizes(rows: list[Row], where: str, path: Path) -> None:
    figure, ax = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    classes = sorted({row["classes"] for row in rows})
    colours = pyplot.get_cmap("viridis")
    for index, c in enumerate(classes):
        chosen = [row for row in rows if row["classes"] == c]
        voxels = [row["voxels"] for row in chosen]
        cost = [1e9 * row["ours"] / row["voxels"] for row in chosen]
        ax.plot(voxels, cost, marker="o", color=colours(0.95 * index / len(classes)), label=f"{c} classes")
    ax.set(xscale="log", yscale="log", xlabel=f"voxels\n{where}", ylabel="nanoseconds for each voxel")
    ax.set_title("Cross entropy, forward + backward, float32: level lines are linear cost", fontsize=10)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True, frameon=False)
    ax.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
