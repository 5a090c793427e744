"""Train as a user of segmentation_models_pytorch (SMP) does, with SMP's losses and, by one import, with segloss's.

    pip install segmentation-models-pytorch    # without it, only segloss's losses run
    python examples/smp_unet.py                # a few steps both ways: half a minute on two cores
    python examples/smp_unet.py --steps 2      # does it run at all?

Before: ``from segmentation_models_pytorch import losses``. After: ``from segloss import smp as losses``. Nothing else
changes: the losses are the same numbers, up to the rounding of SMP's float32 sums. It prints those of both, the
time of a loss and its gradient, and the largest difference of the losses.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

CLASSES, SIZE, UNLABELLED = 4, 128, 255


def losses_of_smp() -> ModuleType | None:
    """SMP's losses; None if it is not installed. Where only its encoders lack torchvision or timm, its losses alone."""
    name = "segmentation_models_pytorch"
    try:
        importlib.import_module(name)
    except ImportError:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # a package that imports nothing by itself
    return importlib.import_module(f"{name}.losses")


def losses_of_segloss() -> ModuleType:
    return importlib.import_module("segloss.smp")


def convolutions(channels: int, width: int) -> nn.Sequential:
    layers = (nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers)


class Unet(nn.Module):
    """A U-Net of two levels; in a script of one's own it is ``smp.Unet("resnet34", classes=CLASSES)``."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.decoder = convolutions(3, 16), convolutions(16, 32), convolutions(48, 16)
        self.pool, self.upsample = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        coarse = self.upsample(self.coarse(self.pool(fine)))
        return self.head(self.decoder(torch.cat([fine, coarse], 1)))


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of coloured discs, and their labels, int64 as SMP wants them; the uppermost rows are unlabelled."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    for label_map in labels:
        for label in range(1, CLASSES):
            radius, *centre = (torch.randint(SIZE // 8, SIZE // 3, (3,), generator=generator) * 1.5).tolist()
            label_map[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (radius / 2) ** 2] = label
    colours = torch.eye(CLASSES, 3)
    images = colours[labels].movedim(-1, 1) + 0.5 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    labels[:, :8] = UNLABELLED
    return images, labels


def train(losses: ModuleType, steps: int) -> tuple[list[float], float]:
    """The losses, and the seconds that a loss and its gradient take."""
    dice = losses.DiceLoss(losses.MULTICLASS_MODE, ignore_index=UNLABELLED)
    focal = losses.FocalLoss(losses.MULTICLASS_MODE, gamma=2.0, ignore_index=UNLABELLED)
    cross_entropy = losses.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=UNLABELLED)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Unet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    values, seconds = [], []
    for _ in range(steps):
        images, labels = scenes(4, generator)
        logits = model(images)
        start = time.perf_counter()
        loss = dice(logits, labels) + focal(logits, labels) + cross_entropy(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        seconds.append(time.perf_counter() - start)
        optimizer.zero_grad()
        logits.backward(gradient)
        optimizer.step()
        values.append(loss.item())
    return values, sorted(seconds)[len(seconds) // 2]


def main(arguments: Sequence[str] | None = None) -> list[list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args(arguments).steps
    all_values = []
    for name, losses in {"SMP": losses_of_smp(), "segloss.smp": losses_of_segloss()}.items():
        if losses is None:
            print(f"{name:12} is not installed")
            continue
        values, seconds = train(losses, steps)
        print(
            f"{name:12} loss {values[0]:.6f} to {values[-1]:.6f}, {seconds * 1e3:.0f} ms for the loss and its gradient"
        )
        all_values.append(values)
    if len(all_values) == 2:
        difference = max(abs(a - b) for a, b in zip(*all_values, strict=True))
        print(f"The losses differ by at most {difference:.1e}, by the rounding of SMP's float32 sums")
    return all_values


if __name__ == "__main__":
    main()
