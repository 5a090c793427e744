"""Train on Cityscapes' labels as its files have them: 34 ids, of which 19 are classes and the rest is ignored.

    python examples/cityscapes_ids.py               # train and score: a few seconds on two cores
    python examples/cityscapes_ids.py --steps 2     # does it run at all?

The files gtFine_labelIds.png hold ids; the classes, "train ids", take another set of files, or a table and a copy of
each label map. Here the loss and the score look the ids up. The scenes are made here, as Cityscapes asks for an
account: rectangles of a colour for each id.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import segloss

# https://github.com/mcordts/cityscapesScripts: ids of the 19 classes, in the order of their train ids.
CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
LABEL_MAP: dict[int, int | None] = dict.fromkeys(range(34))  # None: ignored
LABEL_MAP |= {label: train_id for train_id, label in enumerate(CLASSES)}


def scenes(count: int, colours: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [N, 3, H, W] and uint8 ids [N, H, W]."""
    ids = torch.randint(34, (count, 6, 12), generator=generator, dtype=torch.uint8)
    ids = ids.repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = colours[ids.long()].movedim(-1, 1)
    return images + 0.05 * torch.randn(images.shape, generator=generator), ids


def train(steps: int) -> tuple[list[float], float]:
    """The loss of each step, and the mean IoU of the classes on new scenes."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(34, 3, generator=generator)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU())
    model.append(nn.Conv2d(64, len(CLASSES), 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = segloss.CrossEntropyLoss(label_map=LABEL_MAP)
    losses = []
    for _ in range(steps):
        images, ids = scenes(4, colours, generator)
        loss = criterion(model(images), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    images, ids = scenes(8, colours, generator)
    with torch.no_grad():
        logits = model(images)
    return losses, segloss.jaccard_index(logits, ids, label_map=LABEL_MAP).nanmean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    losses, score = train(parser.parse_args(arguments).steps)
    print(f"loss: {losses[0]:.3f} in the first step, {losses[-1]:.3f} in the last one")
    print(f"mean IoU of {len(CLASSES)} classes: {score:.3f}")


if __name__ == "__main__":
    main()
