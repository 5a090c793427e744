"""Train a small 3-D U-Net on the MNI152 brain with ``segloss.DiceCELoss``, or with any of segloss's losses.

    pip install nilearn nibabel matplotlib tqdm     # and segloss itself, as its README says
    python examples/mni152.py                   # train, score, draw: about three minutes on two cores
    python examples/mni152.py --loss tversky    # the same with another loss
    python examples/mni152.py --compare         # the same again with plain PyTorch, side by side
    torchrun --nproc-per-node=2 examples/mni152.py  # each process trains on a part of every batch
    python examples/mni152.py --steps 2         # does it run at all?

Nothing is downloaded: the T1 image and the grey- and white-matter maps are inside the nilearn package.
The network learns background, CSF and rest, grey and white matter at 2 mm from random patches of the left
hemisphere, and is scored on the right one. Voxels where no class reaches a probability of 0.5 are labelled
255 and left out of the loss and of every score. ``demo/`` receives metrics.json, loss.png and slices.png.

What the score means: this template is symmetric by construction, so the right hemisphere is the exact
mirror image of the left. Patches are therefore never mirrored left to right, which would show the network
its test data. The score says that the loss trains a network, not how the network does on another person.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import segloss

CLASSES = ("background", "CSF and rest", "grey matter", "white matter")
COLOURS = ("black", "#3f7fd0", "#f09a3e", "#fbf6e9")
ERROR, MARK = "#ff00d4", "#ffe14d"
IGNORE = 255
VOXEL_MM = 2
SLICE_MM = (27, -18, 8)  # x, y and z of the planes in slices.png

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    loss: str = "dice_ce"
    steps: int = 400
    seed: int = 0
    batch: int = 4
    patch: int = 32
    channels: tuple[int, ...] = (16, 32, 64)
    learning_rate: float = 4e-3


# --- the losses, and what two of them replace -------------------------------------------------------------

# Each takes the labels as they are: uint8 [N, 1, D, H, W].
LOSSES: dict[str, Loss] = {
    "dice_ce": segloss.DiceCELoss(ignore_index=IGNORE),
    "cross_entropy": segloss.CrossEntropyLoss(ignore_index=IGNORE),
    "dice": segloss.DiceLoss(ignore_index=IGNORE),
    "dice_focal": segloss.DiceFocalLoss(ignore_index=IGNORE),
    "focal": segloss.FocalLoss(ignore_index=IGNORE),
    "tversky": segloss.TverskyLoss(alpha=0.3, beta=0.7, ignore_index=IGNORE),
    "topk": segloss.TopKLoss(k=20, ignore_index=IGNORE),
    "generalized_dice": segloss.GeneralizedDiceLoss(ignore_index=IGNORE),
}


def torch_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels.squeeze(1).long(), ignore_index=IGNORE)  # eight times the labels' bytes


def torch_dice_ce(logits: Tensor, labels: Tensor) -> Tensor:
    counts = labels != IGNORE
    target = labels.masked_fill(~counts, 0).squeeze(1).long()
    p = logits.softmax(1) * counts
    g = F.one_hot(target, logits.shape[1]).movedim(-1, 1) * counts
    space = (2, 3, 4)
    dice = (2 * (p * g).sum(space) + 1e-5) / (p.sum(space) + g.sum(space) + 1e-5)
    return 1 - dice.mean() + torch_cross_entropy(logits, labels)


TORCH_LOSSES: dict[str, Loss] = {"dice_ce": torch_dice_ce, "cross_entropy": torch_cross_entropy}


# --- data -------------------------------------------------------------------------------------------------


class Hemisphere(NamedTuple):
    image: Tensor  # float32 [1, 1, D, H, W]: left to right, back to front, bottom to top
    labels: Tensor  # uint8, same shape


def load_hemispheres() -> tuple[Hemisphere, Hemisphere, np.ndarray]:
    """The left and right hemispheres, and the MNI coordinates of the left one's first voxel in mm."""
    template = load_mni152_template(resolution=1)
    images = template, load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1)
    t1, grey, white = (torch.from_numpy(image.get_fdata(dtype=np.float32)) for image in images)
    brain = (t1 > 0).float()  # the template is skull-stripped
    maps = torch.stack([t1, 1 - brain, brain * (1 - grey - white), brain * grey, brain * white])
    # Split before averaging, without the plane x = 0, so that no voxel mixes the two hemispheres.
    midline = round(-template.affine[0, 3])
    left, right = (F.avg_pool3d(half, VOXEL_MM) for half in (maps[:, :midline], maps[:, midline + 1 :]))
    inside = left[0][left[1] < 0.5]
    mean, std = inside.mean(), inside.std()  # the right hemisphere is normalised with the left one's
    halves = [Hemisphere(((half[0] - mean) / std)[None, None], to_labels(half[1:])) for half in (left, right)]
    return halves[0], halves[1], template.affine[:3, 3] + (VOXEL_MM - 1) / 2


def to_labels(probabilities: Tensor) -> Tensor:
    best, labels = probabilities.max(0)
    return labels.to(torch.uint8).masked_fill(best < 0.5, IGNORE)[None, None]


def random_patches(source: Hemisphere, settings: Settings, generator: torch.Generator) -> Hemisphere:
    """Cubes around random voxels of the brain, moved inwards where they would extend beyond the image."""
    size = settings.patch
    brain = source.labels[0, 0].nonzero()
    centres = brain[torch.randint(len(brain), (settings.batch,), generator=generator)]
    limits = torch.tensor(source.labels.shape[2:]) - size
    corners = torch.minimum((centres - size // 2).clamp(min=0), limits)
    cubes = [[slice(start, start + size) for start in corner] for corner in corners.tolist()]
    return Hemisphere(*(torch.cat([volume[:, :, x, y, z] for x, y, z in cubes]) for volume in source))


# --- network ----------------------------------------------------------------------------------------------


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv3d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm3d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.stem = conv_block(1, channels[0])
        self.encoder = nn.ModuleList(conv_block(fine, coarse) for fine, coarse in pairs)
        self.upsample = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.decoder = nn.ModuleList(conv_block(2 * fine, fine) for fine, _ in pairs)
        self.head = nn.Conv3d(channels[0], len(CLASSES), 1)

    def forward(self, image: Tensor) -> Tensor:
        features = [self.stem(image)]
        for block in self.encoder:
            features.append(block(F.max_pool3d(features[-1], 2)))
        x = features.pop()
        for upsample, block in zip(reversed(self.upsample), reversed(self.decoder), strict=True):
            x = block(torch.cat([features.pop(), upsample(x)], dim=1))
        return self.head(x)


# --- one process or several -------------------------------------------------------------------------------


def start_process_group() -> None:
    """Join the other processes if torchrun started this one."""
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def own_part(batch: Hemisphere) -> Hemisphere:
    """This process's part of the batch; all processes draw the same patches."""
    if not dist.is_initialized():
        return batch
    return Hemisphere(*(each[rank() :: dist.get_world_size()] for each in batch))


def over_all_parts(criterion: Loss) -> Loss:
    """The loss over the parts of all processes together."""
    if not dist.is_initialized():
        return criterion
    criterion = copy.copy(criterion)
    criterion.process_group = dist.group.WORLD  # as if it were passed to the constructor
    return criterion


# --- training and scoring ---------------------------------------------------------------------------------


def train(name: str, criterion: Loss, left: Hemisphere, settings: Settings) -> tuple[UNet, list[float]]:
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    network = UNet(settings.channels)
    trained = DistributedDataParallel(network) if dist.is_initialized() else network
    criterion = over_all_parts(criterion)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps)
    losses: list[float] = []
    with tqdm(range(settings.steps), desc=name, unit="step", disable=rank() > 0) as progress:
        for _ in progress:
            images, labels = own_part(random_patches(left, settings, generator))
            optimizer.zero_grad()
            loss = criterion(trained(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{fmean(losses[-20:]):.3f}")
    return network, losses


@torch.inference_mode()
def predict(network: UNet, image: Tensor) -> Tensor:
    """Logits of a whole hemisphere at once, padded with air to a size that the network can halve."""
    depth, height, width = image.shape[2:]
    multiple = 2 ** len(network.encoder)
    padding = (0, -width % multiple, 0, -height % multiple, 0, -depth % multiple)
    logits = network.eval()(F.pad(image, padding, value=image.min().item()))
    return logits[..., :depth, :height, :width]


def score(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy, Dice and Jaccard of each class, and the confusion matrix, whose rows are the labels."""
    dice, jaccard = (
        dict(zip(CLASSES, metric(logits, labels, ignore_index=IGNORE).tolist(), strict=True))
        for metric in (segloss.dice_score, segloss.jaccard_index)
    )
    return {
        "accuracy": segloss.accuracy(logits, labels, ignore_index=IGNORE).item(),
        "dice": dice,
        "jaccard": jaccard,
        "confusion_matrix": segloss.confusion_matrix(logits, labels, ignore_index=IGNORE).tolist(),
    }


def print_scores(metrics: dict[str, Any]) -> None:
    print(f"  loss {metrics['test_loss']:.4f}, accuracy {metrics['accuracy']:.4f}")
    print(f"  {'':13}{'Dice':>8}{'Jaccard':>9}   voxels predicted as {', '.join(CLASSES)}")
    for name, row in zip(CLASSES, metrics["confusion_matrix"], strict=True):
        counts = "".join(f"{count:>9}" for count in row)
        print(f"  {name:13}{metrics['dice'][name]:8.4f}{metrics['jaccard'][name]:9.4f}   {counts}")


def train_and_score(
    name: str, criterion: Loss, left: Hemisphere, right: Hemisphere, settings: Settings
) -> tuple[list[float], Tensor, dict[str, Any]]:
    """Loss curve, predicted labels of the right hemisphere and metrics."""
    start = time.perf_counter()
    network, losses = train(name, criterion, left, settings)
    seconds = time.perf_counter() - start
    logits = predict(network, right.image)
    metrics: dict[str, Any] = {
        "loss": settings.loss,
        "steps": settings.steps,
        "training_seconds": seconds,
        "training_loss": {"last": losses[-1], "mean_of_last_50": fmean(losses[-50:])},
        "test_loss": criterion(logits, right.labels).item(),
        **score(logits, right.labels),
    }
    print(f"\n{name}, {settings.loss}: {settings.steps} steps in {seconds:.0f} s. On the right hemisphere:")
    print_scores(metrics)
    return losses, logits.argmax(1, keepdim=True).to(torch.uint8), metrics


# --- what each loss costs ---------------------------------------------------------------------------------


def random_example(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    labels = torch.randint(len(CLASSES), (shape[0], 1, *shape[2:]), dtype=torch.uint8)
    return torch.randn(shape, requires_grad=True), labels


def measure_time(losses: dict[str, Loss], shape: tuple[int, ...], repeats: int = 50) -> dict[str, float]:
    """Median milliseconds of forward and backward. The losses take turns, so that noise affects them equally."""
    logits, labels = random_example(shape)
    milliseconds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(repeats):
        for name, criterion in losses.items():
            start = time.perf_counter()
            criterion(logits, labels).backward()
            logits.grad = None  # so that each loss pays for freeing its own gradient
            milliseconds[name].append(1000 * (time.perf_counter() - start))
    return {name: median(values) for name, values in milliseconds.items()}


def process_memory(field: str) -> float:
    """MiB of this process on Linux: VmRSS is what it holds now, VmHWM the most it has ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_memory(criterion: Loss, shape: tuple[int, ...]) -> float:
    criterion(*random_example((1, len(CLASSES), 8, 8, 8))).backward()  # libraries load on first use
    logits, labels = random_example(shape)
    before = process_memory("VmRSS")
    criterion(logits, labels).backward()
    return process_memory("VmHWM") - before


def measure_memory(losses: dict[str, Loss], shape: tuple[int, ...]) -> dict[str, float]:
    """Peak MiB of forward and backward beyond logits and labels; the gradient of the logits is included.

    A process's peak never falls, so each loss is measured in a fresh process.
    """
    peaks = {}
    for name, criterion in losses.items():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[name] = pool.submit(peak_memory, criterion, shape).result()
    return peaks


def compare(losses: dict[str, Loss], curves: dict[str, list[float]], settings: Settings) -> dict[str, dict[str, float]]:
    patches = (settings.batch, len(CLASSES), *(settings.patch,) * 3)
    distance = np.abs(np.subtract(curves["segloss"], curves["torch"]))
    # Rounding differs in the last bit, and training amplifies it: only the first steps test the loss.
    result = {
        "difference of the loss curves, first 10 steps": {
            "max": distance[:10].max(),
            "mean": distance[:10].mean(),
        },
        "difference of the loss curves, all steps": {"max": distance.max(), "mean": distance.mean()},
        "loss forward and backward, ms per step": measure_time(losses, patches),
    }
    if Path("/proc/self/status").exists():
        shape = (1, len(CLASSES), 160, 192, 160)  # a whole brain at 1 mm
        result["loss forward and backward, peak extra MiB on 160 x 192 x 160 voxels"] = measure_memory(losses, shape)
    print("\nsegloss and torch, same patches and same initial weights:")
    for title, values in result.items():
        print(f"  {title}: " + ", ".join(f"{key} {value:.3g}" for key, value in values.items()))
    return result


# --- pictures ---------------------------------------------------------------------------------------------


def draw_losses(curves: dict[str, list[float]], loss: str, path: Path) -> None:
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for (name, losses), colour, line in zip(curves.items(), ("#e07b00", "#1b3a5c"), ("-", "--"), strict=False):
        window = min(25, len(losses))
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(range(1, len(losses) + 1), losses, color=colour, linewidth=0.6, alpha=0.4)
        label = f"{name}, mean of {window} steps"
        axes.plot(np.arange(len(smooth)) + (window + 1) / 2, smooth, line, color=colour, linewidth=2, label=label)
    axes.set(xlabel="step", ylabel=loss, yscale="log", title="Training loss, left hemisphere")
    axes.grid(which="both", alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def render(left: Hemisphere, right: Hemisphere, predicted: Tensor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each column, an RGB volume of both hemispheres and the voxels to hatch."""
    image = torch.cat([left.image, right.image], 2)[0, 0].numpy()
    truth = torch.cat([left.labels, right.labels], 2)[0, 0].numpy()
    answer = torch.cat([left.labels, predicted], 2)[0, 0].numpy()
    palette = np.zeros((256, 3))
    palette[: len(CLASSES)] = [to_rgb(colour) for colour in COLOURS]
    grey = np.repeat(((image - image.min()) / np.ptp(image))[..., None], 3, axis=-1)
    test, ignored = np.zeros_like(truth, dtype=bool), truth == IGNORE
    test[left.labels.shape[2] :] = True
    errors = 0.5 * grey
    errors[test & ~ignored & (answer != truth)] = to_rgb(ERROR)
    return {
        "T1": (grey, np.zeros_like(ignored)),
        "Truth": (palette[truth], ignored),
        "Prediction": (np.where(test[..., None], palette[answer], 0.5 * grey), np.zeros_like(ignored)),
        "Errors": (errors, ignored & test),
    }


def hatch(rgb: np.ndarray, mask: np.ndarray, zoom: int = 8) -> np.ndarray:
    """Stripe the masked pixels of an enlarged slice; matplotlib's own hatches are too coarse for them."""
    rgb, mask = (array.repeat(zoom, 0).repeat(zoom, 1) for array in (rgb, mask))
    stripes = np.add.outer(range(len(mask)), range(mask.shape[1])) // (zoom // 2) % 2
    return np.where(mask[..., None], np.where(stripes, 0.25, 0.75)[..., None], rgb)


def draw_panel(axes: Axes, rgb: np.ndarray, mask: np.ndarray, marks: str, width: int) -> None:
    """Radiological convention: the patient's right, or in a sagittal plane the front, is on the left."""
    across, up = mask.shape
    picture = hatch(rgb[::-1].swapaxes(0, 1), mask[::-1].T)
    axes.imshow(picture, origin="lower", extent=(0, across, 0, up), interpolation="nearest")
    axes.set(xlim=((across - width) / 2, (across + width) / 2), ylim=(0, up), xticks=[], yticks=[])
    axes.set_facecolor("black")
    style: dict[str, Any] = {"transform": axes.transAxes, "va": "center"}
    for mark, x, y in zip(marks, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.965, 0.035), strict=True):
        axes.text(x, y, mark, color=MARK, size=13, weight="bold", ha="center", **style)
    if marks.startswith("R"):
        axes.axvline(across / 2, 0.07, 0.93, color=MARK, linewidth=1.2, linestyle=(0, (5, 3)))
        axes.text(0.46, 0.965, "test", color="white", size=11, ha="right", **style)
        axes.text(0.54, 0.965, "train", color="white", size=11, ha="left", **style)


def add_legend(figure: Figure, dice: dict[str, float]) -> None:
    handles: list[Patch | Line2D] = [
        Patch(facecolor=colour, edgecolor="grey", label=f"{name}: Dice {dice[name]:.3f}")
        for name, colour in zip(CLASSES, COLOURS, strict=True)
    ]
    handles += [
        Patch(facecolor="#bfbfbf", edgecolor="#404040", hatch="////", label="ignored: no class reaches 0.5"),
        Patch(facecolor=ERROR, label="error: prediction is not truth"),
        Line2D([], [], color=MARK, linestyle="--", label="midline between test and train"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, labelcolor="white", fontsize=13)


def draw_slices(
    left: Hemisphere,
    right: Hemisphere,
    origin: np.ndarray,
    predicted: Tensor,
    metrics: dict[str, Any],
    path: Path,
) -> None:
    columns = render(left, right, predicted)
    brain, margin = np.nonzero(columns["T1"][0][..., 0]), 5
    box = [slice(max(axis.min() - margin, 0), axis.max() + margin + 1) for axis in brain]
    size_y, size_z = (side.stop - side.start for side in box[1:])
    at = [round((mm - start) / VOXEL_MM) for mm, start in zip(SLICE_MM, origin, strict=True)]
    figure = Figure(figsize=(16, 12), facecolor="black")
    layout = {"left": 0.03, "right": 0.995, "top": 0.915, "bottom": 0.075, "wspace": 0.08, "hspace": 0.02}
    grid = figure.subplots(3, 4, gridspec_kw={"height_ratios": (size_y, size_z, size_z), **layout})
    planes = (("Axial", 2, "RLAP"), ("Coronal", 1, "RLSI"), ("Sagittal", 0, "APSI"))
    for row, (plane, axis, marks) in zip(grid, planes, strict=True):
        row[0].set_ylabel(f"{plane}, {'xyz'[axis]} = {SLICE_MM[axis]:+d} mm", color="white", size=15)
        index: Any = tuple(at[a] if a == axis else box[a] for a in range(3))
        for axes, (rgb, mask) in zip(row, columns.values(), strict=True):
            draw_panel(axes, rgb[index], mask[index], marks, size_y + margin)
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, color="white", size=18, weight="bold")
    title = f"MNI152 at {VOXEL_MM} mm, trained with {metrics['loss']} on the left hemisphere, tested on the right"
    title += f" (accuracy {metrics['accuracy']:.3f}); radiological view"
    figure.suptitle(title, color="white", size=17, y=0.985)
    add_legend(figure, metrics["dice"])
    figure.savefig(path, dpi=100)


# --- command line -----------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=LOSSES, default=Settings.loss, help="to train with (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="of training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="of weights and patches (default: 0)")
    parser.add_argument("--compare", action="store_true", help=f"with plain PyTorch: {' or '.join(TORCH_LOSSES)}")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write (default: demo)")
    arguments = parser.parse_args()
    if arguments.compare and arguments.loss not in TORCH_LOSSES:
        parser.error(f"--compare: expected --loss {' or '.join(TORCH_LOSSES)}, got {arguments.loss}")
    if dist.is_torchelastic_launched() and (arguments.compare or arguments.loss == "topk"):
        parser.error("torchrun: expected neither --compare nor --loss topk, which are of one process alone")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    settings = Settings(arguments.loss, arguments.steps, arguments.seed)
    losses = {"segloss": LOSSES[settings.loss]}
    if arguments.compare:
        losses["torch"] = TORCH_LOSSES[settings.loss]
    left, right, origin = load_hemispheres()
    start_process_group()
    if rank() > 0:  # the first process scores, writes and draws
        train("segloss", losses["segloss"], left, settings)
        return
    results = {name: train_and_score(name, loss, left, right, settings) for name, loss in losses.items()}
    curves = {name: curve for name, (curve, _, _) in results.items()}
    _, predicted, metrics = results["segloss"]
    metrics["settings"] = asdict(settings)
    if arguments.compare:
        metrics["torch"] = results["torch"][2]
        metrics["comparison"] = compare(losses, curves, settings)

    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    draw_losses(curves, settings.loss, arguments.output / "loss.png")
    draw_slices(left, right, origin, predicted, metrics, arguments.output / "slices.png")
    print(f"\nWrote metrics.json, loss.png and slices.png to {arguments.output}.")


if __name__ == "__main__":
    main()
