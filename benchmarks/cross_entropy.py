"""segloss.cross_entropy beside torch's, which gets the labels as it needs them: by squeeze(1).long()."""

import torch
from measure import Case, main
from torch import Tensor
from torch.nn import functional as F

import segloss


def torch_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels.squeeze(1).long())


CALLS = {"segloss": segloss.cross_entropy, "peer": torch_cross_entropy}
CASES = [
    Case((4, 3, 64, 64, 64), torch.int64, "torch", CALLS),
    Case((2, 19, 512, 1024), torch.uint8, "torch", CALLS),
    Case((1, 105, 64, 96, 96), torch.uint8, "torch", CALLS),
]

if __name__ == "__main__":
    main(__doc__, CASES)
