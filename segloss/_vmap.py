"""How the operators act on tensors with a dimension that torch.vmap hides."""

from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.segloss


def _class_labels(
    info: Any, in_dims: Any, op: str, target: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, int]:
    return _ops.class_labels(op, target, num_classes, ignore_index), in_dims[1]


def _class_masks(info: Any, in_dims: Any, op: str, target: Tensor, ignore_index: int) -> tuple[Tensor, int]:
    return _ops.class_masks(op, target, ignore_index), in_dims[1]


def _one_hot_labels(info: Any, in_dims: Any, op: str, target: Tensor, dim: int) -> tuple[Tensor, int]:
    return _ops.one_hot_labels(op, target.movedim(in_dims[1], 0), dim + 1), 0


torch.library.register_vmap("segloss::class_labels", _class_labels)
torch.library.register_vmap("segloss::class_masks", _class_masks)
torch.library.register_vmap("segloss::one_hot_labels", _one_hot_labels)
