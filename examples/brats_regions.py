"""Train on overlapping regions, as BraTS has them, from label maps: no one-hot masks are made.

    python examples/brats_regions.py                # train and score: half a minute on two cores
    python examples/brats_regions.py --steps 2      # does it run at all?

BraTS labels are 1 (necrotic core), 2 (oedema) and 3 (enhancing tumour); older data sets have 4 in place of 3. The
network has a channel with a sigmoid for each region that BraTS scores: whole tumour, tumour core and enhancing tumour.
The volumes are made here, as BraTS may not be passed on: nested balls in noise, of four modalities.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import segloss

REGIONS = {"whole tumour": (1, 2, 3), "tumour core": (1, 3), "enhancing tumour": (3,)}
LABEL_MAP = {0: 0, 1: 1, 2: 2, 4: 3}  # of BraTS up to 2022; without it labels are 0 to 3
SIZE = 32


def volumes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [N, 4, D, H, W] and uint8 labels [N, 1, D, H, W] of the values 0, 1, 2 and 4."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIZE)] * 3, indexing="ij"))
    centres = torch.randint(SIZE // 3, 2 * SIZE // 3, (count, 3, 1, 1, 1), generator=generator)
    distance = (grid - centres).square().sum(1, keepdim=True).sqrt()
    labels = torch.zeros_like(distance, dtype=torch.uint8)
    for label, radius in ((2, 10), (4, 7), (1, 4)):  # oedema, then the enhancing rim around the necrotic core
        labels[distance < radius + torch.rand(count, 1, 1, 1, 1, generator=generator)] = label
    contrast = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]])
    signal = contrast[labels.squeeze(1).long()].movedim(-1, 1)
    return signal + 0.7 * torch.randn(signal.shape, generator=generator), labels


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((4, 12), (12, 12)):
        layers += [nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv3d(12, len(REGIONS), 1))


def train(steps: int) -> tuple[list[float], Tensor]:
    """The loss of each step, and the Dice score of each region on new volumes."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = segloss.DiceCELoss(
        activation="sigmoid", regions=list(REGIONS.values()), label_map=LABEL_MAP, batch=True
    )
    losses = []
    for _ in range(steps):
        images, labels = volumes(2, generator)
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    images, labels = volumes(4, generator)
    with torch.no_grad():
        logits = model(images)
    return losses, segloss.dice_score(logits, labels, regions=list(REGIONS.values()), label_map=LABEL_MAP)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    losses, scores = train(parser.parse_args(arguments).steps)
    print(f"loss: {losses[0]:.3f} in the first step, {losses[-1]:.3f} in the last one")
    for name, score in zip(REGIONS, scores.tolist(), strict=True):
        print(f"Dice score, {name}: {score:.3f}")


if __name__ == "__main__":
    main()
