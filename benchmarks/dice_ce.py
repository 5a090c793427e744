"""segloss.dice_ce_loss beside MONAI's DiceCELoss and nnU-Net's DC_and_CE_loss.

nnU-Net's is written out here from its formula, with the options of its trainer: minus the soft Dice of the batch
without background, plus cross entropy. It saves memory where nnU-Net does: a bool one-hot target, no background in the
products.
"""

import torch
from measure import Case, main
from monai.losses import DiceCELoss
from torch import Tensor
from torch.nn import functional as F

import segloss


def nnunet_dice_ce(logits: Tensor, labels: Tensor, smooth: float = 1e-5) -> Tensor:
    indices = labels.long()
    with torch.no_grad():
        target = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, indices, True)[:, 1:]
        target_size = target.sum((0, 2, 3, 4))
    p = logits.softmax(1)[:, 1:]
    overlap, predicted_size = (p * target).sum((0, 2, 3, 4)), p.sum((0, 2, 3, 4))
    dice = (2 * overlap + smooth) / (predicted_size + target_size + smooth).clamp_min(1e-8)
    return F.cross_entropy(logits, indices.squeeze(1)) - dice.mean()


def segloss_as_nnunet(logits: Tensor, labels: Tensor) -> Tensor:
    return segloss.dice_ce_loss(logits, labels, include_background=False, batch=True) - 1


PEERS = {
    "MONAI": {"segloss": segloss.dice_ce_loss, "peer": DiceCELoss(softmax=True, to_onehot_y=True)},
    "nnU-Net": {"segloss": segloss_as_nnunet, "peer": nnunet_dice_ce},
}
SHAPES = [(4, 3, 64, 64, 64), (2, 4, 96, 96, 96), (1, 105, 64, 96, 96)]
CASES = [Case(shape, torch.uint8, peer, calls) for shape in SHAPES for peer, calls in PEERS.items()]

if __name__ == "__main__":
    main(__doc__, CASES)
