"""Train a script of MONAI with MONAI's loss and with segloss's: one import changes, the losses do not.

    pip install monai
    python examples/monai_unet.py               # a few steps both ways: a quarter of a minute on two cores
    python examples/monai_unet.py --steps 2     # does it run at all?

The script is as MONAI's users write them: dictionaries and transforms, so that images and labels are MetaTensors, a
U-Net, and deep supervision. The volumes are made here: nested balls in noise. It prints the losses, their
time, and the largest difference.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from monai.data import DataLoader, Dataset
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureTyped, NormalizeIntensityd
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4


def loss_before() -> nn.Module:
    from monai.losses import DeepSupervisionLoss, DiceCELoss

    return DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True))


def loss_after() -> nn.Module:
    from segloss.monai import DeepSupervisionLoss, DiceCELoss

    return DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True))


def volumes(count: int, size: int) -> list[dict[str, Tensor]]:
    """Images [1, D, H, W], and labels of the same shape: three balls in one another."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij"))
    data = []
    for _ in range(count):
        centre = torch.randint(size // 3, 2 * size // 3, (3, 1, 1, 1), generator=generator)
        distance = (grid - centre).square().sum(0, keepdim=True).sqrt()
        label = sum((distance < size * radius).float() for radius in (0.35, 0.25, 0.15))
        data.append({"image": label + 0.5 * torch.randn(label.shape, generator=generator), "label": label})
    return data


def train(loss: Callable[[], nn.Module], steps: int, size: int) -> tuple[list[float], float]:
    """The losses, and the seconds that a loss and its gradient take."""
    transform = Compose([EnsureTyped(("image", "label")), NormalizeIntensityd("image")])
    loader = DataLoader(Dataset(volumes(2 * steps, size), transform), batch_size=2)
    torch.manual_seed(0)
    model = UNet(spatial_dims=3, in_channels=1, out_channels=CLASSES, channels=(8, 16, 32), strides=(2, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = loss()
    losses, seconds = [], []
    for batch in loader:
        logits = model(batch["image"])
        start = time.perf_counter()
        value = criterion([logits, F.avg_pool3d(logits, 2)], batch["label"])
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        seconds.append(time.perf_counter() - start)
        optimizer.zero_grad()
        logits.backward(gradient)
        optimizer.step()
        losses.append(value.item())
    return losses, sorted(seconds)[len(seconds) // 2]


def main(arguments: Sequence[str] | None = None) -> list[list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args(arguments)
    all_losses = []
    for name, loss in {"monai.losses": loss_before, "segloss.monai": loss_after}.items():
        losses, seconds = train(loss, options.steps, options.size)
        steps = " ".join(f"{value:.5f}" for value in losses)
        print(f"{name:14} {seconds * 1e3:4.0f} ms for the loss and its gradient, losses {steps}")
        all_losses.append(losses)
    difference = max(abs(before - after) for before, after in zip(*all_losses, strict=True))
    print(f"largest difference of the losses: {difference:.1e}")
    return all_losses


if __name__ == "__main__":
    main()
