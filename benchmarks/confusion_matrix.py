"""segloss.confusion_matrix beside argmax and bincount, which need the labels as int64."""

import torch
from measure import Case, forward, main
from torch import Tensor

import segloss


def argmax_and_bincount(logits: Tensor, labels: Tensor) -> Tensor:
    num_classes = logits.shape[1]
    pairs = labels.squeeze(1).long() * num_classes + logits.argmax(1)
    return pairs.flatten().bincount(minlength=num_classes**2).view(num_classes, num_classes)


CALLS = {"segloss": segloss.confusion_matrix, "peer": argmax_and_bincount}
CASES = [
    Case((2, 19, 512, 1024), torch.uint8, "argmax and bincount", CALLS),
    Case((1, 105, 64, 96, 96), torch.uint8, "argmax and bincount", CALLS),
]

if __name__ == "__main__":
    main(__doc__, CASES, {"forward": forward})
