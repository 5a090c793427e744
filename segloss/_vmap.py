"""How the operators act on tensors with a dimension that torch.vmap hides."""

import torch
from torch import Tensor

_ops = torch.ops.segloss


@torch.library.register_vmap("segloss::class_labels")
def _class_labels(info, in_dims, op: str, target: Tensor, num_classes: int, ignore_index: int):  # type: ignore[no-untyped-def]
    return _ops.class_labels(op, target, num_classes, ignore_index), in_dims[1]


@torch.library.register_vmap("segloss::one_hot_labels")
def _one_hot_labels(info, in_dims, target: Tensor, dim: int):  # type: ignore[no-untyped-def]
    return _ops.one_hot_labels(target.movedim(in_dims[0], 0), dim + 1), 0
