"""Train with nnU-Net's loss, and with segloss's: one import changes.

    pip install nnunetv2                       # for its network and, before, its loss
    python examples/nnunet_loss.py             # a few steps both ways: half a minute on two cores
    python examples/nnunet_loss.py --steps 2   # does it run at all?

A 3-D U-Net with deep supervision finds balls in noise; a tenth of the voxels are unlabelled. It prints the losses,
the time that the loss and its gradient take, and the largest difference of the losses, which is one of rounding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, SIZE, UNLABELLED = 3, 32, 255


def losses_before() -> tuple[type[nn.Module], ...]:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    return DC_and_CE_loss, MemoryEfficientSoftDiceLoss, DeepSupervisionWrapper


def losses_after() -> tuple[type[nn.Module], ...]:
    from segloss.nnunet import DC_and_CE_loss, DeepSupervisionWrapper, MemoryEfficientSoftDiceLoss

    return DC_and_CE_loss, MemoryEfficientSoftDiceLoss, DeepSupervisionWrapper


def criterion(losses: tuple[type[nn.Module], ...]) -> nn.Module:
    """The loss of nnU-Net's trainer, with its options."""
    DC_and_CE_loss, MemoryEfficientSoftDiceLoss, DeepSupervisionWrapper = losses
    dice_options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice_options, {}, ignore_label=UNLABELLED, dice_class=MemoryEfficientSoftDiceLoss)
    return DeepSupervisionWrapper(loss, [2 / 3, 1 / 3, 0])


def network() -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        input_channels=1,
        n_stages=4,
        features_per_stage=[8, 16, 32, 32],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2, 2],
        n_conv_per_stage=1,
        n_conv_per_stage_decoder=1,
        num_classes=CLASSES,
        norm_op=nn.InstanceNorm3d,
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


def balls(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of balls with a core, and their labels as nnU-Net's loader has them: int16 [N, 1, D, H, W]."""
    centres = torch.randint(8, SIZE - 8, (count, 3, 1, 1, 1), generator=generator)
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIZE)] * 3, indexing="ij"))
    distance = (grid - centres).square().sum(1, keepdim=True).sqrt()
    labels = (distance < 10).to(torch.int16) + (distance < 5)
    images = labels + 0.5 * torch.randn(labels.shape, generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = UNLABELLED
    return images, labels


def train(loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor], steps: int) -> tuple[list[float], float]:
    """The losses, and the seconds that a loss and its gradient take."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    losses, seconds = [], []
    for _ in range(steps):
        images, labels = balls(2, generator)
        outputs = net(images)
        sizes = [output.shape[2:] for output in outputs]
        targets = [F.interpolate(labels.float(), size, mode="nearest-exact").to(labels.dtype) for size in sizes]
        start = time.perf_counter()
        value = loss(outputs, targets)
        gradients = torch.autograd.grad(value, outputs[:-1], retain_graph=True)  # the last one has no loss
        seconds.append(time.perf_counter() - start)
        optimizer.zero_grad()
        torch.autograd.backward(outputs[:-1], gradients)
        nn.utils.clip_grad_norm_(net.parameters(), 12)
        optimizer.step()
        losses.append(value.item())
    return losses, sorted(seconds)[len(seconds) // 2]


def main(arguments: Sequence[str] | None = None) -> list[list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args(arguments).steps
    all_losses = []
    for name, losses_of in {"nnunetv2": losses_before, "segloss.nnunet": losses_after}.items():
        losses, seconds = train(criterion(losses_of()), steps)
        print(
            f"{name:14} loss {losses[0]:.6f} to {losses[-1]:.6f}, {seconds * 1e3:.1f} ms for the loss and its gradient"
        )
        all_losses.append(losses)
    differences = [abs(before - after) for before, after in zip(*all_losses, strict=True)]
    print(f"largest difference of the losses: {max(differences):.1e}")
    return all_losses


if __name__ == "__main__":
    main()
