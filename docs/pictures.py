"""Draws the pictures of the documentation: `python docs/pictures.py` writes them to docs/pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, ListedColormap
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from torch import Tensor
from torch.nn import functional

import segloss

PICTURES = Path(__file__).parent / "pictures"
Loss = Callable[[Tensor, Tensor], Tensor]

# Okabe and Ito's colours, which the colour-blind can tell apart
DASHES = ["-", ":", "-", "--", "-.", "-"]  # where lines lie on each other
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000"]
LOSSES: dict[str, Loss] = {
    "cross entropy": segloss.cross_entropy,
    "focal, gamma 2": segloss.focal_loss,
    "Dice": segloss.dice_loss,
    "Tversky, beta 0.9": lambda x, y: segloss.tversky_loss(x, y, alpha=0.1, beta=0.9),
    "Dice + cross entropy": segloss.dice_ce_loss,
    "top-k, 10 %": segloss.topk_loss,
}
OF_CONTOURS: dict[str, Loss] = {
    "Lovász-Softmax": segloss.lovasz_softmax_loss,
    "boundary": segloss.boundary_loss,
    "Hausdorff": segloss.hausdorff_dt_loss,
}


def save(name: str) -> None:
    pyplot.savefig(PICTURES / f"{name}.png", dpi=90)
    pyplot.close()


def plain(ax: Axes, **labels: object) -> None:
    ax.set(**labels)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def logits_of(p: Tensor) -> Tensor:
    """Of one sample and two classes, [1, 2, *]; the second has the probabilities p."""
    return torch.stack([(1 - p).log(), p.log()])[None]


def draw_focal() -> None:
    """The loss of one voxel against the probability of its class."""
    p = torch.linspace(0.01, 0.999, 200)
    _, ax = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for gamma, colour in zip((0, 0.5, 1, 2, 5), COLOURS, strict=False):
        loss = segloss.focal_loss(logits_of(p), torch.ones(1, len(p)), gamma=gamma, reduction="none")
        ax.plot(p, loss[0], color=colour, label=f"gamma = {gamma}" + (", cross entropy" if gamma == 0 else ""))
    plain(ax, xlabel="probability of the voxel's class", ylabel="loss", ylim=(0, 4))
    ax.legend(frameon=False)
    save("focal")


def draw_sizes() -> None:
    """The loss of a network that misses the object, and of one that finds it with a margin, by the object's size."""
    side, radii = 64, torch.arange(1, 25)
    distance = torch.cartesian_prod(*[torch.arange(side) - side / 2 + 0.5] * 3).norm(dim=1)
    _, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for ax, margin in zip(axes, (None, 2), strict=True):
        values: dict[str, list[float]] = {name: [] for name in LOSSES}
        for radius in radii:
            found = torch.zeros_like(distance) if margin is None else (distance < radius + margin).float()
            x, y = logits_of(0.02 + 0.96 * found), (distance < radius)[None]
            for name, loss in LOSSES.items():
                values[name].append(loss(x, y).item())
        sizes = [(distance < radius).sum().item() for radius in radii]
        for (name, losses), colour, dash in zip(values.items(), COLOURS, DASHES, strict=True):
            ax.plot(sizes, losses, dash, color=colour, label=name)
        title = "the object is missed" if margin is None else "found, with two voxels too many all round"
        plain(ax, xscale="log", yscale="log", ylim=(1e-3, 10), xlabel="voxels of the object, of 64³", title=title)
    axes[0].set_ylabel("loss")
    axes[1].legend(frameon=False, fontsize=8)
    save("sizes")


def lesion() -> tuple[np.ndarray, Tensor, Tensor, Tensor]:
    """A slice of the demo's brain, labels of a drawn lesion, what looks like one, and logits that see half of it."""
    brain = load_mni152_template(resolution=2).get_fdata()[:, :, 45].T[::-1][20:95, 10:88].copy()
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in brain.shape), indexing="ij")
    labels = ((rows - 18) ** 2 + (columns - 22) ** 2 < 16).to(torch.uint8)
    seen = torch.exp(-((rows - 18) ** 2 + (columns - 25) ** 2) / 12.0)
    elsewhere = torch.exp(-((rows - 50) ** 2 + (columns - 52) ** 2) / 12.0)
    return brain, labels, elsewhere, logits_of(0.02 + 0.8 * torch.maximum(seen, 0.6 * elsewhere))


def pushes(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """How the loss moves the lesion's logit of each voxel: up is positive, the largest is 1."""
    x = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, labels[None]), x)
    return -gradient[0, 1] / gradient.abs().max()


def draw_pulls(picture: str, losses: dict[str, Loss]) -> None:
    """Where each of some losses pulls the logits of the lesion."""
    brain, labels, elsewhere, logits = lesion()
    rows = len(losses) // 3
    figure, axes = pyplot.subplots(rows, 3, figsize=(9, 3.1 * rows), layout="constrained")
    for ax, (name, loss) in zip(axes.flat, losses.items(), strict=True):
        ax.imshow(brain, cmap="gray")
        push = pushes(loss, logits, labels)
        image = ax.imshow(push, cmap="PuOr_r", vmin=-1, vmax=1, alpha=push.abs().sqrt().numpy())
        ax.contour(labels, levels=[0.5], colors="#00e0e0", linewidths=1)
        ax.contour(elsewhere, levels=[0.5], colors="#00e0e0", linewidths=1, linestyles="dashed")
        ax.set_title(name, fontsize=10)
        ax.axis("off")
    label = "pull towards lesion (+) or away from it (-)" if rows > 1 else "pull"
    figure.colorbar(image, ax=axes, label=label, shrink=0.6)
    save(picture)


def draw_imbalance() -> None:
    """Which share of the gradient belongs to the object's voxels, by their share of all voxels."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.logspace(-4, -0.3, 20)
    x = torch.randn(1, 2, 200_000, generator=generator)
    _, ax = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for (name, loss), colour, dash in zip(LOSSES.items(), COLOURS, DASHES, strict=True):
        of_object = []
        for share in shares:
            labels = (torch.arange(x.shape[2]) < share * x.shape[2])[None]
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(leaf, labels), leaf)
            size = gradient.abs().sum(1)
            of_object.append((size[labels].sum() / size.sum()).item())
        ax.plot(shares, of_object, dash, color=colour, label=name)
    scales = {"xscale": "log", "yscale": "log"}
    plain(ax, xlabel="the object's share of the voxels", ylabel="its share of the gradient", **scales)
    ax.legend(frameon=False, fontsize=8)
    save("imbalance")


def draw_distances() -> None:
    """A mask, and its distance maps."""
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    mask = ((rows - 24) / 14.0) ** 2 + ((columns - 26) / 19.0) ** 2 < 1
    mask |= ((rows - 18) / 8.0) ** 2 + ((columns - 46) / 11.0) ** 2 < 1
    kinds: dict[str, dict[str, Any]] = {
        'of="foreground"': {},
        'of="foreground", signed=True': {"signed": True},
        'of="boundary"': {"of": "boundary"},
    }
    _, axes = pyplot.subplots(1, 4, figsize=(11, 2.4), layout="constrained")
    axes[0].imshow(mask, cmap="Greys", vmax=2)
    axes[0].set_title("mask", fontsize=10)
    for ax, (title, options) in zip(axes[1:], kinds.items(), strict=True):
        distances = segloss.distance_transform(mask[None, None], **options)[0, 0]
        colours = {"cmap": "PuOr", "norm": CenteredNorm()} if distances.min() < 0 else {"cmap": "viridis"}
        pyplot.colorbar(ax.imshow(distances, **colours), ax=ax, shrink=0.8)
        ax.contour(mask, levels=[0.5], colors="#00e0e0", linewidths=1)
        ax.set_title(title, fontsize=10)
    for ax in axes:
        ax.axis("off")
    save("distances")


def draw_skeletons() -> None:
    """The white matter of a slice, its skeleton, and the tube around it."""
    volume = load_mni152_wm_template(resolution=1).get_fdata()
    mask = torch.from_numpy(np.rot90(volume[25:-25, 25:-25, 85] > 0.5).copy())
    _, axes = pyplot.subplots(1, 3, figsize=(10, 4), layout="constrained")
    titles = {"white matter": mask}
    titles |= {f"tube={tube}": segloss.skeletonize(mask[None, None], tube=tube)[0, 0] for tube in (0, 2)}
    for ax, (title, voxels) in zip(axes, titles.items(), strict=True):
        ax.imshow(mask.float() + 2 * (voxels if title.startswith("tube") else 0 * mask), cmap="inferno_r", vmax=4)
        ax.set_title(title, fontsize=10)
        ax.axis("off")
    save("skeletons")


def draw_soft_skeleton() -> None:
    """White matter of the demo's brain, its soft skeletons, and that of its mask."""
    white = torch.from_numpy(load_mni152_wm_template(resolution=1).get_fdata()[:, :, 95].T[::-1].copy()).clamp(0, 1)
    white = white[25:215, 20:180]
    mask = white > 0.5
    _, axes = pyplot.subplots(1, 4, figsize=(11, 3.4), layout="constrained")
    axes[0].imshow(white, cmap="gray")
    axes[0].set_title("probability of white matter", fontsize=10)
    for ax, iterations in zip(axes[1:3], (0, 5), strict=True):
        ax.imshow(torch.ops.segloss.soft_skeleton(white[None, None], iterations)[0, 0], cmap="gray", vmin=0, vmax=0.5)
        ax.set_title(f"soft skeleton, iterations={iterations}", fontsize=10)
    skeleton = torch.ops.segloss.soft_skeleton(mask[None, None], 5)[0, 0]
    axes[3].imshow(mask.int() + 2 * skeleton.int(), cmap="gray")
    axes[3].set_title("of the mask > 0.5, iterations=5", fontsize=10)
    for ax in axes:
        ax.axis("off")
    save("soft-skeleton")


def draw_surfaces() -> None:
    """The elements of both surfaces of one mask."""
    mask = torch.zeros(9, 12, dtype=torch.uint8)
    mask[2:7, 2:8] = 1
    mask[2, 2] = mask[2, 7] = 0
    mask[4, 8:11] = 1
    inside = functional.pad(mask, (1, 1, 1, 1)).unfold(0, 3, 1).unfold(1, 3, 1)
    boundary = (mask == 1) & (inside.flatten(2)[..., 1::2].sum(-1) < 4)
    corners = functional.avg_pool2d(functional.pad(mask, (1, 1, 1, 1)).float()[None], 2, stride=1)[0]
    _, axes = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for ax, name in zip(axes, ("voxels", "surfels"), strict=True):
        ax.imshow(mask, cmap="Greys", vmax=3, extent=(-0.5, 11.5, 8.5, -0.5))
        ax.set(title=f'surface="{name}"', xticks=[x - 0.5 for x in range(13)], yticks=[y - 0.5 for y in range(10)])
        ax.grid(alpha=0.3)
        ax.tick_params(length=0, labelbottom=False, labelleft=False)
    rows, columns = boundary.nonzero().T
    axes[0].scatter(columns, rows, marker="s", s=150, color=COLOURS[0], alpha=0.7)
    rows, columns = ((corners > 0) & (corners < 1)).nonzero().T
    axes[1].contour(mask, levels=[0.5], colors=COLOURS[1], linewidths=2)
    axes[1].scatter(columns - 0.5, rows - 0.5, s=20, color=COLOURS[1])
    save("surfaces")


def lesions() -> tuple[np.ndarray, Tensor, Tensor]:
    """A slice of the demo's brain, labels of some lesions, and a prediction that misses some and sees others."""
    brain = load_mni152_template(resolution=2).get_fdata()[:, :, 45].T[::-1][5:105, 8:92].copy()
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in brain.shape), indexing="ij")

    def discs(*places: tuple[int, int, float]) -> Tensor:
        return torch.stack([(rows - y) ** 2 + (columns - x) ** 2 < r**2 for y, x, r in places]).any(0)

    labels = discs((25, 30, 6), (31, 36, 4), (40, 60, 5), (68, 28, 3), (75, 55, 2), (60, 50, 2), (22, 58, 2.5))
    predicted = discs((24, 32, 6), (41, 62, 4), (68, 29, 3.5), (60, 51, 2), (50, 20, 2.5))
    return brain, labels, predicted


def draw_lesions() -> None:
    """Components in colours; and lesions that are found and missed, and false alarms."""
    brain, labels, predicted = lesions()
    components = segloss.connected_components(labels[None, None], connectivity=2).labels[0, 0]
    table = segloss.lesion_scores(predicted[None, None], labels[None, None], 2).lesions
    is_found = torch.tensor([False, *(lesion.found for lesion in table)])[components.long()]
    parts = segloss.connected_components(predicted[None, None], connectivity=2).labels[0, 0].long()
    meets = torch.unique(parts[labels])
    alarms = (parts > 0) & ~torch.isin(parts, meets)
    _, axes = pyplot.subplots(1, 2, figsize=(8, 4.6), layout="constrained")
    for ax in axes:
        ax.imshow(brain, cmap="gray")
        ax.axis("off")
    axes[0].imshow(
        np.ma.masked_equal(components, 0), cmap=ListedColormap([*COLOURS[:5], "#f0e442"]), interpolation="nearest"
    )
    axes[0].set_title(f"{components.max()} components", fontsize=10)
    kinds = {"found": is_found, "missed": labels & ~is_found, "false alarm": alarms}
    for (name, mask), colour in zip(kinds.items(), (COLOURS[2], COLOURS[1], COLOURS[4]), strict=True):
        axes[1].imshow(np.ma.masked_equal(mask, False), cmap=ListedColormap([colour]), interpolation="nearest")
        axes[1].plot([], [], "s", color=colour, label=name)
    axes[1].contour(predicted, levels=[0.5], colors="#00e0e0", linewidths=1)
    axes[1].plot([], [], color="#00e0e0", label="prediction")
    axes[1].legend(loc="lower right", fontsize=8)
    axes[1].set_title("lesions", fontsize=10)
    save("lesions")


def draw_instances() -> None:
    """Lesions, the regions nearest to each, and the voxels that count for one of them in the blob loss."""
    brain, labels, _ = lesions()
    components = segloss.connected_components(labels[None, None], connectivity=2).labels
    regions, one = segloss.nearest_component(components)[0, 0], components[0, 0] == 4
    of_blob = torch.where((components[0, 0] == 0) | one, 0.0, 1.0)
    _, axes = pyplot.subplots(1, 3, figsize=(9, 3.8), layout="constrained")
    titles = ("lesions", "regions of cc_dice_ce_loss", "blob_loss, one lesion")
    for ax, title in zip(axes, titles, strict=True):
        ax.imshow(brain, cmap="gray")
        ax.contour(labels, levels=[0.5], colors="#00e0e0", linewidths=1)
        ax.set_title(title, fontsize=10)
        ax.axis("off")
    colours = ListedColormap(COLOURS[: int(regions.max())])
    axes[1].imshow(regions, cmap=colours, alpha=0.45, interpolation="nearest")
    axes[1].contour(labels, levels=[0.5], colors="#00e0e0", linewidths=1)
    axes[2].contour(one, levels=[0.5], colors=COLOURS[1], linewidths=2)
    axes[2].imshow(of_blob, cmap=ListedColormap([COLOURS[-1]]), alpha=of_blob.numpy())
    save("instances")


def draw_report() -> None:
    """The report on the blocks of the demo's brain that docs/how-to/report.md shows."""
    maps = (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    t1, grey, white = (torch.from_numpy(load(resolution=1).get_fdata()[::2, ::2, ::2]) for load in maps)
    labels = torch.where(white > 0.5, 2, torch.where(grey > 0.5, 1, 0))
    predicted = torch.where(t1 > 0.76, 2, torch.where(t1 > 0.5, 1, 0))
    names = ["other", "grey matter", "white matter"]
    report = segloss.SegmentationReport(3, names=names, regions={"brain": (1, 2)}, ignore_index=())
    for k in range(8):
        block = slice(10 * k + 10, 10 * k + 20)
        report.update(predicted[None, None, ..., block], labels[None, None, ..., block])
    report.box_plot(PICTURES / "report.png")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    plots = (draw_focal, draw_sizes, draw_imbalance, draw_distances, draw_surfaces)
    plots += (draw_lesions, draw_instances, draw_skeletons, draw_soft_skeleton, draw_report)
    for draw in plots:
        draw()
    draw_pulls("lesion", LOSSES)
    draw_pulls("contours", OF_CONTOURS)
