"""Train a network that predicts at a quarter of the labels' resolution, with and without full-size logits.

    pip install transformers                   # for a small random SegFormer; without it a few layers of our own
    python examples/segformer.py               # a few steps both ways: one minute on two cores
    python examples/segformer.py --steps 2     # does it run at all?

Before: the logits are interpolated to the labels' size, sixteen times their memory, as transformers does for its own
loss. After: ``upsample="bilinear"``. The losses are the same; printed are both, the time of a step, and the mean IoU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import segloss

CLASSES, SIZE, UNLABELLED = 150, 256, 255


class Quarter(nn.Sequential):
    """Logits at a quarter of the image's size."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 4, stride=4),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(64, CLASSES, 1),
        )


def network() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network, and how it makes logits of images."""
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except ImportError:
        quarter = Quarter()
        return quarter, quarter
    config = SegformerConfig(
        num_labels=CLASSES,
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 96],
        decoder_hidden_size=64,
        classifier_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    segformer = SegformerForSemanticSegmentation(config)
    return segformer, lambda images: segformer(pixel_values=images).logits


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of coloured rectangles, and their labels; the uppermost rows are unlabelled."""
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.uint8)
    for n in range(count):
        for _ in range(8):
            top, left = torch.randint(SIZE - 32, (2,), generator=generator).tolist()
            height, width = torch.randint(16, SIZE // 2, (2,), generator=generator).tolist()
            labels[n, top : top + height, left : left + width] = torch.randint(1, 12, (), generator=generator)
    colours = torch.rand(CLASSES, 3, generator=generator)
    images = colours[labels.long()].movedim(-1, 1) + 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    labels[:, :8] = UNLABELLED
    return images, labels


def loss_before(logits: Tensor, labels: Tensor) -> Tensor:
    full_size = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full_size, labels.long(), ignore_index=UNLABELLED)


def loss_after(logits: Tensor, labels: Tensor) -> Tensor:
    return segloss.cross_entropy(logits, labels, ignore_index=UNLABELLED, upsample="bilinear")


def train(loss: Callable[[Tensor, Tensor], Tensor], steps: int) -> tuple[list[float], float, float]:
    """The losses, the seconds that a loss and its gradient take, and the mean IoU of the last batch."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model, logits_of = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, seconds = [], []
    for _ in range(steps):
        images, labels = scenes(2, generator)
        logits = logits_of(images)
        start = time.perf_counter()
        value = loss(logits, labels)
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        seconds.append(time.perf_counter() - start)
        optimizer.zero_grad()
        logits.backward(gradient)
        optimizer.step()
        losses.append(value.item())
    iou = segloss.jaccard_index(logits.detach(), labels, ignore_index=UNLABELLED, upsample="bilinear")
    return losses, sorted(seconds)[len(seconds) // 2], iou.nanmean().item()


def main(arguments: Sequence[str] | None = None) -> list[list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args(arguments).steps
    all_losses = []
    for name, loss in {"interpolate, cross entropy": loss_before, "upsample='bilinear'": loss_after}.items():
        losses, seconds, iou = train(loss, steps)
        print(
            f"{name:28} loss {losses[0]:.6f} to {losses[-1]:.6f}, mean IoU {iou:.4f}, "
            f"{seconds * 1e3:.0f} ms for the loss and its gradient"
        )
        all_losses.append(losses)
    return all_losses


if __name__ == "__main__":
    main()
