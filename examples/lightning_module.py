"""Train a small 3-D U-Net with Lightning, its loss and metrics by torch and torchmetrics, then by segloss.

    pip install lightning torchmetrics
    python examples/lightning_module.py               # a few steps both ways: one minute on two cores
    python examples/lightning_module.py --steps 2     # does it run at all?

Before: cross entropy and Dice by hand, and three metrics that each make label maps of the logits. After: one loss, and
metrics that count together. Losses and scores are the same; it prints both, the seconds that they took, and the largest
difference of the losses.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Sequence

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

import segloss
from segloss.torchmetrics import Accuracy, DiceScore, JaccardIndex

CLASSES, SIZE, UNLABELLED = 4, 32, 255


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(channels_in, channels_out, 3, padding=1), nn.InstanceNorm3d(channels_out), nn.ReLU())


class UNet(nn.Module):
    """Two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.below, self.decode = block(1, 8), block(8, 16), block(24, 8)
        self.head = nn.Conv3d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.encode(images)
        coarse = F.interpolate(self.below(F.max_pool3d(fine, 2)), scale_factor=2)
        return self.head(self.decode(torch.cat([fine, coarse], 1)))


def volumes(count: int, generator: torch.Generator) -> TensorDataset:
    """Images of boxes of three kinds, and uint8 labels [N, 1, D, H, W]; the uppermost slices are unlabelled."""
    labels = torch.zeros(count, 1, SIZE, SIZE, SIZE, dtype=torch.uint8)
    for n in range(count):
        for c in range(1, CLASSES):
            z, y, x = torch.randint(SIZE // 2, (3,), generator=generator).tolist()
            labels[n, :, z : z + SIZE // 2, y : y + SIZE // 2, x : x + SIZE // 2] = c
    images = labels + 0.5 * torch.randn(labels.shape, generator=generator)
    labels[:, :, :2] = UNLABELLED
    return TensorDataset(images, labels)


def dice_and_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    target, counts = labels.squeeze(1).long(), labels != UNLABELLED
    p = logits.softmax(1) * counts
    g = F.one_hot(target.where(counts[:, 0], 0), CLASSES).movedim(-1, 1) * counts
    dice = (2 * (p * g).sum((2, 3, 4)) + 1e-5) / ((p + g).sum((2, 3, 4)) + 1e-5)
    return 1 - dice.mean() + F.cross_entropy(logits, target, ignore_index=UNLABELLED)


class Segmentation(lightning.LightningModule):
    """What does not change. It measures the seconds that losses, without their gradients, and metrics take."""

    criterion: Callable[[Tensor, Tensor], Tensor]
    metrics: MetricCollection

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet()
        self.losses: list[float] = []
        self.seconds = 0.0

    def training_step(self, batch: Sequence[Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        start = time.perf_counter()
        loss = self.criterion(logits, labels)
        self.seconds += time.perf_counter() - start
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_index: int) -> None:
        images, labels = batch
        logits = self.net(images)
        start = time.perf_counter()
        self.count(logits, labels)
        self.seconds += time.perf_counter() - start
        self.log_dict(self.metrics)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Before(Segmentation):
    def __init__(self) -> None:
        super().__init__()
        options = {"num_classes": CLASSES, "ignore_index": UNLABELLED}
        self.criterion = dice_and_cross_entropy
        self.metrics = MetricCollection(
            {
                "dice": MulticlassF1Score(**options),
                "iou": MulticlassJaccardIndex(**options),
                "accuracy": MulticlassAccuracy(**options, average="micro"),
            }
        )

    def count(self, logits: Tensor, labels: Tensor) -> None:
        self.metrics.update(logits, labels.squeeze(1).long())


class After(Segmentation):
    def __init__(self) -> None:
        super().__init__()
        options = {"num_classes": CLASSES, "ignore_index": UNLABELLED}
        self.criterion = segloss.DiceCELoss(ignore_index=UNLABELLED)
        self.metrics = MetricCollection(
            {
                "dice": DiceScore(**options, aggregation_level="global"),
                "iou": JaccardIndex(**options),
                "accuracy": Accuracy(**options, average="micro"),
            }
        )

    def count(self, logits: Tensor, labels: Tensor) -> None:
        self.metrics.update(logits, labels)


def train(kind: type[Segmentation], steps: int) -> Segmentation:
    """The trained module: its losses and seconds, and its scores in its trainer's callback_metrics."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    module = kind()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    training, validation = volumes(2 * steps, generator), volumes(8, generator)
    trainer.fit(module, DataLoader(training, batch_size=2), DataLoader(validation, batch_size=2))
    return module


def main(arguments: Sequence[str] | None = None) -> list[dict[str, list[float]]]:
    """The losses of both trainings, and their scores after it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args(arguments).steps
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # no tips
    warnings.filterwarnings("ignore", module="lightning")
    results = []
    for name, kind in {"torch and torchmetrics": Before, "segloss": After}.items():
        module = train(kind, steps)
        scores = {key: module.trainer.callback_metrics[key].item() for key in module.metrics}
        print(
            f"{name:24} loss {module.losses[0]:.6f} to {module.losses[-1]:.6f}, "
            + ", ".join(f"{key} {score:.4f}" for key, score in scores.items())
            + f", {module.seconds:.2f} s for losses and metrics"
        )
        results.append({"losses": module.losses, "scores": list(scores.values())})
    before, after = (result["losses"] for result in results)
    print(f"The losses differ by at most {max(abs(a - b) for a, b in zip(before, after, strict=True)):.1e}")
    return results


if __name__ == "__main__":
    main()
