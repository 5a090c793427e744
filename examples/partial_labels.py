"""Train one network on two data sets that label different tissues of the brain.

    pip install nilearn nibabel matplotlib tqdm     # and segloss itself, as its README says
    python examples/partial_labels.py               # train twice and score: two minutes on two cores
    python examples/partial_labels.py --steps 2     # does it run at all?

Both data sets come from the MNI152 brain of mni152.py. In the first one white matter is not labelled, in the second
one grey matter: such a voxel is background there. A plain loss learns from one data set that white matter is
background, and from the other that it is not. With ``label_sets`` the background of each data set may be what that data
set does not label, and the network learns both tissues. The score is that of the right hemisphere, fully labelled.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from mni152 import CLASSES, IGNORE, Hemisphere, Settings, UNet, load_hemispheres, predict, random_patches
from torch import Tensor

import segloss

GREY, WHITE = CLASSES.index("grey matter"), CLASSES.index("white matter")
UNLABELLED = (WHITE, GREY)  # of each data set
LABEL_SETS = [{0: (0, tissue)} for tissue in UNLABELLED]


def batch_of_both(source: Hemisphere, settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images and labels of patches, of which each second one lacks another tissue, and the data set of each."""
    images, labels = random_patches(source, settings, generator)
    data_set = torch.arange(settings.batch) % 2
    for n, k in enumerate(data_set.tolist()):
        labels[n][labels[n] == UNLABELLED[k]] = 0
    return images, labels, data_set


def train(source: Hemisphere, settings: Settings, *, with_sets: bool) -> UNet:
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    model = UNet(settings.channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    criterion = segloss.DiceCELoss(ignore_index=IGNORE, label_sets=LABEL_SETS if with_sets else None)
    for _ in range(settings.steps):
        images, labels, data_set = batch_of_both(source, settings, generator)
        options = {"label_set_index": data_set} if with_sets else {}
        loss = criterion(model(images), labels, **options)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def main(arguments: Sequence[str] | None = None) -> dict[str, Tensor]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    settings = Settings(steps=parser.parse_args(arguments).steps, channels=(8, 16, 32))
    left, right, _ = load_hemispheres()
    results = {
        name: segloss.dice_score(
            predict(train(left, settings, with_sets=with_sets), right.image), right.labels, ignore_index=IGNORE
        )
        for name, with_sets in (("background as it is labelled", False), ("label_sets", True))
    }
    print("Dice score".ljust(32) + "".join(name.rjust(14) for name in CLASSES))
    for name, of_classes in results.items():
        print(name.ljust(32) + "".join(f"{score:14.3f}" for score in of_classes.tolist()))
    return results


if __name__ == "__main__":
    main()
