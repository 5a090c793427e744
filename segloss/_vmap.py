"""Batching rules of the operators for torch.vmap: the hidden dimension becomes one more dimension of the batch.

A tensor that is not mapped is expanded to each member of the hidden dimension, as a view; soft statistics of several
samples copy it. Mapped class weights and label tables are the exception: a kernel takes one of them, so it is called
for each member.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import _reduction

from segloss._upsample import full_shape
from segloss.functional import _MOST_CLASSES, _holds_probabilities, _mean_or_sum

_ops = torch.ops.segloss

_Rule = TypeVar("_Rule", bound=Callable[..., Any])

_OF_ALL_VOXELS = ("weight", "label_table")

_NONE, _MEAN = map(_reduction.get_enum, ("none", "mean"))


def _rule(op: OpOverload, is_of_all: bool = False) -> Callable[[_Rule], _Rule]:
    """Registers a rule, which gets all tensors but those of all voxels with the hidden dimension first, and returns
    results like that; with `is_of_all` it returns one result for all members."""
    names = [argument.name for argument in op._schema.arguments]

    def register(rule: _Rule) -> _Rule:
        def batched(info: Any, in_dims: Any, *arguments: Any) -> Any:
            of_arguments = dict(zip(names, in_dims, strict=False))
            if any(of_arguments.get(name) is not None for name in _OF_ALL_VOXELS):
                return _one_by_one(op, info.batch_size, in_dims, arguments)
            results = rule(
                *(
                    _of_members(name, argument, info.batch_size)
                    if name in _OF_ALL_VOXELS
                    else _in_front(argument, hidden, info.batch_size)
                    for name, argument, hidden in zip(names, arguments, in_dims, strict=False)  # without defaults
                )
            )
            hidden = None if is_of_all else 0
            return results, hidden if isinstance(results, Tensor) else (hidden,) * len(results)

        torch.library.register_vmap(op, batched)
        return rule

    return register


def _of_members(name: str, argument: Any, size: int) -> Any:
    """A label table with a row for each sample, for the samples of each member; others as they are."""
    if name != "label_table" or argument is None or argument.ndim < 2 or len(argument) == 1:
        return argument
    return argument.expand(size, *argument.shape).contiguous()


def _in_front(argument: Any, hidden: int | None, size: int) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return argument.expand(size, *argument.shape) if hidden is None else argument.movedim(hidden, 0)


def _one_by_one(op: OpOverload, size: int, in_dims: Any, arguments: Any) -> Any:
    def call(member: int) -> Any:
        pairs = zip(arguments, in_dims, strict=True)
        return op(*(each.select(hidden, member) if isinstance(hidden, int) else each for each, hidden in pairs))

    members = [call(member) for member in range(size)]
    if isinstance(members[0], Tensor):
        return torch.stack(members), 0
    return tuple(map(torch.stack, zip(*members, strict=True))), (0,) * len(members[0])


def _sum_each(values: Tensor) -> Tensor:
    """[B, *] to [B], in float64 on devices that have it."""
    return values.unsqueeze(-1).flatten(1).sum(1, dtype=torch.float32 if values.is_mps else torch.float64)


# ---- cross entropy: each member has its own denominator ----


def _of_the_loss_shape(target: Tensor, input: Tensor) -> Tensor:
    """The target in the loss's shape: a label [1] of logits [C], which have no batch, becomes []."""
    return target if input.ndim > 2 or _holds_probabilities(input.shape, target) else target.flatten()


def names_of_options(op: OpOverload) -> list[str]:
    """The options that the private operators take as a list of ints; from the public schema."""
    return [
        argument.name
        for argument in op._schema.arguments
        if argument.name not in ("dim", "op") and str(argument.type) not in ("Tensor", "Optional[Tensor]", "float")
    ]


_OPTIONS = names_of_options(_ops.cross_entropy.default)
_BINARY_OPTIONS = names_of_options(_ops.binary_cross_entropy.default)

# By the number of the c10::ScalarType, as the options have it.
_DTYPES = {5: torch.float16, 6: torch.float32, 7: torch.float64, 15: torch.bfloat16}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def _replaced(options: Sequence[int], names: Sequence[str] = _OPTIONS, **values: int) -> list[int]:
    """The options with some replaced, and without a gradient ahead of time."""
    named = dict(zip(names, options, strict=False)) | values
    return [*named.values(), 0]


def _reduced(losses: Tensor, total_weight: Tensor, named: dict[str, int]) -> Tensor:
    """The loss of each member, from the losses of its voxels."""
    if named["reduction"] == _NONE:
        return losses
    kind = "mean" if named["reduction"] == _MEAN else "sum"
    loss = _mean_or_sum(_sum_each(losses), total_weight, kind, bool(named["empty_zero"]))
    return loss.to(_DTYPES[named["dtype"]])


def _gradient(
    backward: OpOverload,
    names: Sequence[str],
    shape: torch.Size,
    grad_loss: Tensor,
    total_weight: Tensor,
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    options: Sequence[int],
    factors: Sequence[float],
) -> Tensor:
    """Input's gradient, from that of the reduced losses; `shape` is that of losses that are not reduced."""
    reduction = options[names.index("reduction")]
    if reduction == _MEAN:
        grad_loss = torch.where(total_weight == 0, 0.0, grad_loss / total_weight)
    if reduction != _NONE:
        grad_loss = grad_loss.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    arguments = (grad_loss, total_weight.new_ones(()), op, input, target, weight, voxel_weight, label_table)
    gradient: Tensor = backward(*arguments, dim + 1, _replaced(options, names, reduction=_NONE), factors)
    return gradient


@_rule(_ops.cross_entropy_forward.default)
def _cross_entropy_forward(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    options: Sequence[int],
    factors: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    named = dict(zip(_OPTIONS, options, strict=False))
    reduction, dtype = named["reduction"], _DTYPES[named["dtype"]]
    arguments = (op, input, _of_the_loss_shape(target, input), weight, voxel_weight, label_table)
    wide = torch.promote_types(dtype, torch.float32)  # of the summands: a loss is rounded once, when it is finished
    dtype_of_losses = dtype if reduction == _NONE else wide
    of_voxels = _replaced(options, reduction=_NONE, dtype=_CODES[dtype_of_losses])
    loss, *_ = _ops.cross_entropy_forward(*arguments, dim + 1, of_voxels, factors)
    total_weight = _total_weights(*arguments, dim + 1, _replaced(of_voxels, dtype=_CODES[wide]))
    return _reduced(loss, total_weight, named), total_weight, input.new_empty(len(input), 0)


def _total_weights(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    options: Sequence[int],
) -> Tensor:
    """The total weight of each member: with labels, the sum of its losses if each log probability is -1."""
    named = dict(zip(_OPTIONS, options, strict=False))
    shape = full_shape(input, target, dim, named["upsample"])
    if _holds_probabilities(shape, target):
        voxels = target.select(dim, 0)
        return _sum_each(voxels.new_ones(()).expand_as(voxels) if voxel_weight is None else voxel_weight)
    if label_table is not None and label_table.ndim > 1:  # the losses of sets would depend on the sets
        return _sum_each(_weights_of_labels(op, target, weight, voxel_weight, label_table, named["ignore_index"]))
    log_p = input.new_full((), -1.0, dtype=_DTYPES[named["dtype"]]).expand(shape)
    tensors = (log_p, target, weight, voxel_weight, label_table)
    of_log_p = _replaced(options, log_probabilities=1, upsample=0)
    return _sum_each(_ops.cross_entropy_forward(op, *tensors, dim, of_log_p, (0.0, 0.0))[0])


def _weights_of_labels(
    op: str,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor,
    ignore_index: int,
) -> Tensor:
    classes = _ops.class_labels(op, target, _MOST_CLASSES, ignore_index, label_table)
    of_classes: Tensor | int = 1
    if weight is not None and len(weight) > 0:
        of_classes = weight.index_select(0, classes.clamp_min(0).flatten()).view_as(classes)
    of_voxels = 1 if voxel_weight is None else voxel_weight.reshape(classes.shape)
    return torch.where(classes < 0, 0, of_classes * of_voxels)


@_rule(_ops.cross_entropy_backward.default)
def _cross_entropy_backward(
    grad_loss: Tensor,
    total_weight: Tensor,
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    *options: Any,
) -> Tensor:
    target = _of_the_loss_shape(target, input)
    named = dict(zip(_OPTIONS, options[0], strict=False))
    full = full_shape(input, target, dim + 1, named["upsample"])
    losses = target.select(dim + 1, 0) if _holds_probabilities(full, target) else target
    arguments = (grad_loss, total_weight, op, input, target, weight, voxel_weight, label_table, dim, *options)
    return _gradient(_ops.cross_entropy_backward.default, _OPTIONS, losses.shape, *arguments)


# ---- soft statistics: sums of each sample, so the hidden dimension and the batch can be merged ----


def _folded(dim: int, input: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    """[B, N, *] to [B * N, *], with the class dimension at max(dim, 1); an input [C] is one sample."""

    def fold(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or input.ndim == 2:
            return tensor
        return (tensor.movedim(2, 1) if dim == 0 and tensor.ndim == input.ndim else tensor).flatten(0, 1)

    return [fold(tensor) for tensor in (input, *tensors)]


def _unfolded(dim: int, folded: Tensor, like: Tensor) -> Tensor:
    """[B * N, *] of the folded input's shape to [B, N, *] of the input's."""
    if like.ndim == 2:
        return folded
    unfolded = folded.reshape(len(like), like.shape[2 if dim == 0 else 1], *folded.shape[1:])
    return unfolded.movedim(1, 2) if dim == 0 else unfolded


def _folded_table(label_table: Tensor | None) -> Tensor | None:
    return label_table if label_table is None or label_table.ndim < 3 else label_table.flatten(0, 1)


@_rule(_ops.soft_stats_forward.default)
def _soft_stats_forward(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    *options: Any,
) -> tuple[Tensor, ...]:
    x, y, v = _folded(dim, input, target, voxel_weight)
    results = _ops.soft_stats_forward(op, x, y, weight, v, _folded_table(label_table), max(dim, 1), *options)
    return tuple(each.view(len(input), -1, *each.shape[1:]) for each in results)


@_rule(_ops.soft_stats_backward.default)
def _soft_stats_backward(
    grad_intersection: Tensor,
    grad_prediction: Tensor,
    grad_loss: Tensor,
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    *options: Any,
) -> Tensor:
    grads = (each.flatten(0, 1) for each in (grad_intersection, grad_prediction, grad_loss))
    x, y, v = _folded(dim, input, target, voxel_weight)
    arguments = (op, x, y, weight, v, _folded_table(label_table))
    gradient: Tensor = _ops.soft_stats_backward(*grads, *arguments, max(dim, 1), *options)
    return _unfolded(dim, gradient, input)


# ---- statistics of components, in the place of weights: likewise ----


@_rule(_ops.component_stats_forward.default)
def _component_stats_forward(
    op: str,
    input: Tensor,
    target: Tensor,
    components: Tensor,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    *options: Any,
) -> tuple[Tensor, ...]:
    x, y, r, v = _folded(dim, input, target, components, voxel_weight)
    results = _ops.component_stats_forward(op, x, y, r, v, _folded_table(label_table), max(dim, 1), *options)
    return tuple(each.view(len(input), -1, *each.shape[1:]) for each in results)


@_rule(_ops.component_stats_backward.default)
def _component_stats_backward(
    grad_intersection: Tensor,
    grad_prediction: Tensor,
    grad_loss: Tensor,
    op: str,
    input: Tensor,
    target: Tensor,
    components: Tensor,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    *options: Any,
) -> Tensor:
    grads = (each.flatten(0, 1) for each in (grad_intersection, grad_prediction, grad_loss))
    x, y, r, v = _folded(dim, input, target, components, voxel_weight)
    arguments = (op, x, y, r, v, _folded_table(label_table))
    gradient: Tensor = _ops.component_stats_backward(*grads, *arguments, max(dim, 1), *options)
    return _unfolded(dim, gradient, input)


@_rule(_ops.nearest_component.default)
def _nearest_component(components: Tensor, spacing: Sequence[float]) -> Tensor:
    nearest: Tensor = _ops.nearest_component(components.flatten(0, 1), spacing)
    return nearest.view(components.shape)


# ---- binary cross entropy: like cross entropy; soft statistics give the total weight of each sample ----


@_rule(_ops.binary_cross_entropy_forward.default)
def _binary_cross_entropy_forward(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    options: Sequence[int],
    factors: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    named = dict(zip(_BINARY_OPTIONS, options, strict=False))
    dtype = _DTYPES[named["dtype"]]
    dtype_of_losses = dtype if named["reduction"] == _NONE else torch.promote_types(dtype, torch.float32)
    of_voxels = _replaced(options, _BINARY_OPTIONS, reduction=_NONE, dtype=_CODES[dtype_of_losses])
    arguments = (op, input, target, weight, voxel_weight, label_table)
    losses, *_ = _ops.binary_cross_entropy_forward(*arguments, dim + 1, of_voxels, factors)
    of_stats = [1, 0, named["ignore_index"], 1, 0, 0, named["upsample"]]  # of a sigmoid, with the losses
    *_, totals = _soft_stats_forward(op, input, target, None, voxel_weight, label_table, dim, of_stats, [0.0, 0.0])
    total_weight = totals.sum(1)
    return _reduced(losses, total_weight, named), total_weight, input.new_empty(len(input), 0)


@_rule(_ops.binary_cross_entropy_backward.default)
def _binary_cross_entropy_backward(
    grad_loss: Tensor,
    total_weight: Tensor,
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    *options: Any,
) -> Tensor:
    named = dict(zip(_BINARY_OPTIONS, options[0], strict=False))
    shape = full_shape(input, target, dim + 1, named["upsample"])
    arguments = (grad_loss, total_weight, op, input, target, weight, voxel_weight, label_table, dim, *options)
    return _gradient(_ops.binary_cross_entropy_backward.default, _BINARY_OPTIONS, shape, *arguments)


# ---- Lovasz losses: the samples of a member are a group, so the hidden dimension and the batch can be merged ----


_LOVASZ_OPTIONS = names_of_options(_ops.lovasz.default)


def _by_member(options: Sequence[int], dim: int, input: Tensor) -> list[int]:
    """The options, in which a group is no larger than a member's batch."""
    named = dict(zip(_LOVASZ_OPTIONS, options, strict=True))
    num_samples = 1 if input.ndim == 2 else input.shape[2 if dim == 0 else 1]
    return [*(named | {"group_size": named["group_size"] or max(num_samples, 1)}).values()]


@_rule(_ops.lovasz_forward.default)
def _lovasz_forward(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    options: Sequence[int],
    factors: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    x, y = _folded(dim, input, target)
    arguments = (op, x, y, weight, voxel_weight, _folded_table(label_table))
    loss, num_ones, slopes = _ops.lovasz_forward(*arguments, max(dim, 1), _by_member(options, dim, input), factors)
    by_group = (each.reshape(len(input), len(each) // len(input), each.shape[1]) for each in (loss, num_ones))
    return (*by_group, _unfolded(dim, slopes, input))


@_rule(_ops.lovasz_backward.default)
def _lovasz_backward(
    grad_loss: Tensor,
    slopes: Tensor,
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    label_table: Tensor | None,
    dim: int,
    options: Sequence[int],
    factors: Sequence[float],
) -> Tensor:
    x, y, s = _folded(dim, input, target, slopes)
    arguments = (grad_loss.flatten(0, 1), s, op, x, y, weight, voxel_weight, _folded_table(label_table))
    gradient: Tensor = _ops.lovasz_backward(*arguments, max(dim, 1), _by_member(options, dim, input), factors)
    return _unfolded(dim, gradient, input)


# ---- operators on single voxels: the hidden dimension is like any other ----


@_rule(_ops.class_labels.default)
def _class_labels(op: str, target: Tensor, num_classes: int, ignore_index: int, *label_table: Tensor | None) -> Tensor:
    labels: Tensor = _ops.class_labels(op, target, num_classes, ignore_index, *label_table)
    return labels


@_rule(_ops.class_masks.default)
def _class_masks(op: str, target: Tensor, ignore_index: int) -> Tensor:
    masks: Tensor = _ops.class_masks(op, target, ignore_index)
    return masks


@_rule(_ops.set_masks.default)
def _set_masks(op: str, target: Tensor, label_table: Tensor, num_channels: int, dim: int, *of_groups: bool) -> Tensor:
    masks: Tensor = _ops.set_masks(op, target, label_table, num_channels, dim + 1, *of_groups)
    return masks


@_rule(_ops.one_hot_labels.default)
def _one_hot_labels(op: str, target: Tensor, dim: int, *advice: str) -> Tensor:
    labels: Tensor = _ops.one_hot_labels(op, target, dim + 1, *advice)
    return labels


# ---- checks of all members together, with one answer ----


torch.library.register_vmap(
    _ops.check_range.default, lambda _, in_dims, *arguments: (_ops.check_range(*arguments), None)
)


@_rule(_ops.is_one_hot.default, is_of_all=True)
def _is_one_hot(op: str, target: Tensor, dim: int) -> Tensor:
    answer: Tensor = _ops.is_one_hot(op, target, dim + 1)
    return answer


@_rule(_ops.num_label_classes.default, is_of_all=True)
def _num_label_classes(
    op: str,
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    dim: int | None = None,
    label_table: Tensor | None = None,
) -> Tensor:
    dim = None if dim is None else dim + 1
    number: Tensor = _ops.num_label_classes(op, input, target, ignore_index, dim, label_table)
    return number


@_rule(_ops.predict.default)
def _predict(
    input: Tensor, size: Sequence[int], upsample: int, threshold: float | None, dtype: Any, dim: int
) -> Tensor:
    prediction: Tensor = _ops.predict(input, size, upsample, threshold, dtype, dim + 1)
    return prediction


@_rule(_ops.distance_transform.default)
def _distance_transform(labels: Tensor, label_table: Tensor | None, *options: Any) -> Tensor:
    maps: Tensor = _ops.distance_transform(labels.flatten(0, 1), label_table, *options)
    return maps.view(*labels.shape[:2], *maps.shape[1:])


@_rule(_ops.connected_components.default)
def _connected_components(labels: Tensor, label_table: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    components, counts = _ops.connected_components(labels.flatten(0, 1), label_table, *options)
    return components.view(labels.shape), counts.view(labels.shape[:2])


@_rule(_ops.skeletonize.default)
def _skeletonize(labels: Tensor, label_table: Tensor | None, *options: Any) -> Tensor:
    skeletons: Tensor = _ops.skeletonize(labels.flatten(0, 1), label_table, *options)
    return skeletons.view(labels.shape)


@_rule(_ops.probabilities.default)
def _probabilities(input: Tensor, counts: Tensor | None, dim: int, sigmoid: bool) -> Tensor:
    p: Tensor = _ops.probabilities(input, counts, dim + 1, sigmoid)
    return p


@_rule(_ops.probabilities_backward.default)
def _probabilities_backward(grad: Tensor, input: Tensor, counts: Tensor | None, dim: int, sigmoid: bool) -> Tensor:
    gradient: Tensor = _ops.probabilities_backward(grad, input, counts, dim + 1, sigmoid)
    return gradient


@_rule(_ops.soft_skeleton.default)
def _soft_skeleton(images: Tensor, iterations: int) -> Tensor:
    skeletons: Tensor = _ops.soft_skeleton(images.flatten(0, 1), iterations)
    return skeletons.view(images.shape)


@_rule(_ops.soft_skeleton_backward.default)
def _soft_skeleton_backward(grad: Tensor, images: Tensor, iterations: int) -> Tensor:
    gradient: Tensor = _ops.soft_skeleton_backward(grad.flatten(0, 1), images.flatten(0, 1), iterations)
    return gradient.view(images.shape)


# ---- counts: one member after the other ----


def _count_one_by_one(op: OpOverload) -> None:
    def batched(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return _one_by_one(op, info.batch_size, in_dims, arguments)

    torch.library.register_vmap(op, batched)


for _op in (_ops.confusion_counts, _ops.equal_label_counts, _ops.mask_counts):
    _count_one_by_one(_op.default)
