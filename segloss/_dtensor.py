"""Sharding rules of the operators for DTensors: each rank reads its own logits, sharded over the batch or over space.

The sum of a rank is a part of the whole sum: Partial. `replicated` returns the whole sum, so that only sums cross the
network. There is no rule for logits sharded over their classes, nor for the mean of cross entropy, whose denominator is
a sum over all ranks: DTensor redistributes the arguments of operators without a rule. Top-k gathers the losses.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.nn import _reduction

from segloss._compat import register_sharding
from segloss._upsample import resized_dims
from segloss._vmap import names_of_options

_ops = torch.ops.segloss

# Placements of the results and of the arguments; None for an argument that is not a tensor.
_Sharding = tuple[list[Placement | None], list[Placement | None]]
_Rule = Callable[..., list[_Sharding]]

_NONE, _MEAN = map(_reduction.get_enum, ("none", "mean"))


def replicated(*tensors: Any) -> list[Tensor]:
    """The whole of each DTensor, on every rank."""
    return [each.redistribute(placements=[Replicate()] * each.device_mesh.ndim) for each in tensors]


def replicated_like(like: Any, tensor: Tensor) -> Tensor:
    """A tensor that every rank has, as a DTensor on the mesh of another."""
    mesh = like.device_mesh
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _rule(*ops: OpOverload) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        for op in ops:
            register_sharding(op, rule)
        return rule

    return register


# Below, logits are sharded over their dimension d, or not at all if d is None.


def _dims(input: Any, dim: int, upsample: int = 0) -> list[int | None]:
    """The dimensions that may be sharded: all but the class dimension and those that are resized; None for none."""
    fixed = [dim, *resized_dims(input.ndim, dim, upsample)]
    return [None, *(d for d in range(input.ndim) if d not in fixed)]


def _upsample_of(op: OpOverload, options: Any) -> int:
    """The option `upsample`, among those that the private operators of `op` take."""
    code: int = options[0][names_of_options(op).index("upsample")]
    return code


def _shard(d: int | None) -> Placement:
    return Replicate() if d is None else Shard(d)


def _shard_without(dim: int, d: int | None) -> Placement:
    """Placement of a tensor of the logits' shape without the class dimension."""
    return _shard(d - 1 if d is not None and d > dim else d)


def _sum(d: int | None) -> Placement:
    return Replicate() if d is None else Partial()


def _sum_of_samples(dim: int, d: int | None) -> Placement:
    """Placement of sums [N, C] or [N]; the batch is the first dimension that is not the class dimension."""
    return Shard(0) if d == (1 if dim == 0 else 0) else _sum(d)


def _voxels(tensor: Any, input: Any, dim: int, d: int | None) -> Placement | None:
    """Placement of a tensor of the logits' shape, with or without the class dimension."""
    if tensor is None:
        return None
    return _shard(d) if tensor.ndim == input.ndim else _shard_without(dim, d)


def _whole(tensor: Any) -> Placement | None:
    return None if tensor is None else Replicate()


def _has_rows(label_table: Any) -> bool:
    """Whether a label table has a row for each sample."""
    return label_table is not None and label_table.ndim > 1 and label_table.shape[0] > 1


def _rows(label_table: Any, dim: int, d: int | None) -> Placement | None:
    is_sharded = _has_rows(label_table) and _sum_of_samples(dim, d) == Shard(0)
    return Shard(0) if is_sharded else _whole(label_table)


def _arguments(
    input: Any, target: Any, weight: Any, voxel_weight: Any, label_table: Any, dim: int, d: int | None
) -> list[Placement | None]:
    voxels = (_voxels(target, input, dim, d), _whole(weight), _voxels(voxel_weight, input, dim, d))
    return [_shard(d), *voxels, _rows(label_table, dim, d)]


# Arguments of the operators of every loss that are not tensors: the first (the name in errors), and the last ones.
_BEFORE: list[Placement | None] = [None]
_AFTER: list[Placement | None] = [None, None, None]


@_rule(_ops.cross_entropy_forward.default)
def _cross_entropy_forward(
    op: str, input: Any, target: Any, weight: Any, voxel_weight: Any, label_table: Any, dim: int, *options: Any
) -> list[_Sharding]:
    (reduction, *_), _ = options
    has_classes = target.ndim == input.ndim and target.shape[dim] == input.shape[dim]
    is_probabilities = has_classes and target.tensor_meta.dtype.is_floating_point
    upsample = _upsample_of(_ops.cross_entropy.default, options)
    shardings: list[_Sharding] = []
    for d in [None] if reduction == _MEAN else _dims(input, dim, upsample):
        losses = _shard_without(dim, d) if is_probabilities else _voxels(target, input, dim, d)
        results = [losses if reduction == _NONE else _sum(d), _sum(d), Replicate()]  # no gradient ahead of time
        shardings.append(
            (results, [*_BEFORE, *_arguments(input, target, weight, voxel_weight, label_table, dim, d), *_AFTER])
        )
    return shardings


@_rule(_ops.cross_entropy_backward.default)
def _cross_entropy_backward(
    grad_loss: Any,
    total_weight: Any,
    op: str,
    input: Any,
    target: Any,
    weight: Any,
    voxel_weight: Any,
    label_table: Any,
    dim: int,
    *options: Any,
) -> list[_Sharding]:
    (reduction, *_), _ = options
    upsample = _upsample_of(_ops.cross_entropy.default, options)
    shardings: list[_Sharding] = []
    for d in [None] if reduction == _MEAN else _dims(input, dim, upsample):
        grad = _voxels(grad_loss, input, dim, d) if reduction == _NONE else Replicate()
        arguments = _arguments(input, target, weight, voxel_weight, label_table, dim, d)
        shardings.append(([_shard(d)], [grad, _sum(d), *_BEFORE, *arguments, *_AFTER]))
    return shardings


@_rule(_ops.soft_stats_forward.default)
def _soft_stats_forward(
    op: str, input: Any, target: Any, weight: Any, voxel_weight: Any, label_table: Any, dim: int, *options: Any
) -> list[_Sharding]:
    shardings: list[_Sharding] = []
    for d in _dims(input, dim, _upsample_of(_ops.soft_stats.default, options)):
        sums: list[Placement | None] = [_sum_of_samples(dim, d)] * 5
        shardings.append(
            (sums, [*_BEFORE, *_arguments(input, target, weight, voxel_weight, label_table, dim, d), *_AFTER])
        )
    return shardings


@_rule(_ops.soft_stats_backward.default)
def _soft_stats_backward(grad_intersection: Any, grad_prediction: Any, grad_loss: Any, *call: Any) -> list[_Sharding]:
    shardings: list[_Sharding] = []
    for [sums, *_], arguments in _soft_stats_forward(*call):
        grad = sums if sums == Shard(0) else Replicate()  # the gradient of a part is that of the whole sum
        shardings.append(([arguments[len(_BEFORE)]], [grad, grad, grad, *arguments]))
    return shardings


@_rule(_ops.binary_cross_entropy_forward.default)
def _binary_cross_entropy_forward(
    op: str, input: Any, target: Any, weight: Any, voxel_weight: Any, label_table: Any, dim: int, *options: Any
) -> list[_Sharding]:
    (reduction, *_), _ = options
    upsample = _upsample_of(_ops.binary_cross_entropy.default, options)
    shardings: list[_Sharding] = []
    for d in [None] if reduction == _MEAN else _dims(input, dim, upsample):
        loss = _shard(d) if reduction == _NONE else _sum(d)
        results: list[Placement | None] = [loss, _sum(d), Replicate()]  # no gradient ahead of time
        shardings.append(
            (results, [*_BEFORE, *_arguments(input, target, weight, voxel_weight, label_table, dim, d), *_AFTER])
        )
    return shardings


@_rule(_ops.binary_cross_entropy_backward.default)
def _binary_cross_entropy_backward(grad_loss: Any, total_weight: Any, *call: Any) -> list[_Sharding]:
    (reduction, *_), _ = call[-2:]
    shardings: list[_Sharding] = []
    for [_, total, _], arguments in _binary_cross_entropy_forward(*call):
        grad = arguments[len(_BEFORE)]
        shardings.append(([grad], [grad if reduction == _NONE else Replicate(), total, *arguments]))
    return shardings


@_rule(_ops.total_weight.default)
def _total_weight(
    op: str,
    target: Any,
    weight: Any,
    voxel_weight: Any,
    num_classes: int,
    ignore_index: int,
    label_table: Any = None,
) -> list[_Sharding]:
    rest = [None, None, *([] if label_table is None else [Replicate()])]
    return [
        ([_sum(d)], [None, _shard(d), _whole(weight), None if voxel_weight is None else _shard(d), *rest])
        for d in ([None] if _has_rows(label_table) else [None, *range(target.ndim)])
    ]


@_rule(_ops.topk_sum_forward.default)
def _topk_sum_forward(losses: Any, target: Any, voxel_weight: Any, label_table: Any, *options: Any) -> list[_Sharding]:
    whole = Replicate()  # the losses of all ranks compete
    return [([whole] * 3, [whole, whole, _whole(voxel_weight), _whole(label_table), *[None] * len(options)])]


@_rule(_ops.topk_sum_backward.default)
def _topk_sum_backward(
    grad_sum: Any, cutoff: Any, losses: Any, target: Any, voxel_weight: Any, label_table: Any, *options: Any
) -> list[_Sharding]:
    [(results, arguments)] = _topk_sum_forward(losses, target, voxel_weight, label_table, *options)
    return [(results[:1], [*results[:2], *arguments])]


@_rule(_ops.lovasz_forward.default)
def _lovasz_forward(
    op: str, input: Any, target: Any, weight: Any, voxel_weight: Any, label_table: Any, *options: Any
) -> list[_Sharding]:
    whole = Replicate()  # all voxels are sorted together
    tensors = [whole, whole, _whole(weight), _whole(voxel_weight), _whole(label_table)]
    return [([whole] * 3, [*_BEFORE, *tensors, *_AFTER])]


@_rule(_ops.lovasz_backward.default)
def _lovasz_backward(grad_loss: Any, slopes: Any, *call: Any) -> list[_Sharding]:
    [(_, arguments)] = _lovasz_forward(*call)
    return [([Replicate()], [Replicate(), Replicate(), *arguments])]


@_rule(_ops.one_hot_labels.default)
def _one_hot_labels(op: str, target: Any, dim: int, *advice: str) -> list[_Sharding]:
    rest = [None] * (1 + len(advice))
    return [([_shard_without(dim, d)], [None, _shard(d), *rest]) for d in _dims(target, dim)]


@_rule(_ops.class_labels.default, _ops.class_masks.default)
def _elementwise(op: str, target: Any, *options: Any) -> list[_Sharding]:
    rest = [None if isinstance(each, int) else _whole(each) for each in options]  # the last one may be a table
    has_rows = any(_has_rows(each) for each in options if not isinstance(each, int))
    return [([_shard(d)], [None, _shard(d), *rest]) for d in ([None] if has_rows else [None, *range(target.ndim)])]


@_rule(_ops.set_masks.default)
def _set_masks(
    op: str, target: Any, label_table: Any, num_channels: int, dim: int, *of_groups: bool
) -> list[_Sharding]:
    rest = [None] * (2 + len(of_groups))
    return [([_shard(d)], [None, _shard(d), _rows(label_table, dim, d), *rest]) for d in _dims(target, dim)]


@_rule(_ops.check_range.default)
def _check_range(op: str, name: str, values: Any, *options: Any) -> list[_Sharding]:
    return [([Replicate()], [None, None, _shard(d), None, None]) for d in [None, *range(values.ndim)]]
