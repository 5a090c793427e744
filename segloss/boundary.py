"""Losses made of distance maps: they say how far a prediction is from the boundary of the target."""

from collections.abc import Sequence
from math import inf, prod
from typing import NamedTuple

import torch
from torch import Tensor

from segloss._docs import documented
from segloss._label_sets import Regions
from segloss._labels import NO_LABEL, IgnoreIndex, LabelMap, LabelOptions, _that_occur, read_labels
from segloss._upsample import Upsample, Upsampling, full_shape, upsampling_code
from segloss.distance import _MOST_AXES, _distance_transform, checked_spacing
from segloss.functional import (
    _REDUCTIONS,
    Activation,
    ClassWeight,
    Reduction,
    _check_choice,
    _check_number,
    _check_tensor,
    _check_types,
    _labels,
    _of_classes,
    _plain,
    _result_dtype,
)
from segloss.region import _check_background, _reduced, _sums, _Walk, _Whole, dice_loss

_ops = torch.ops.segloss


@documented(like=dice_loss)
def boundary_loss(
    input: Tensor,
    target: Tensor | None,
    *,
    distances: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    activation: Activation | None = "softmax",
    include_background: bool = True,
    batch: bool = False,
    weight: ClassWeight | None = None,
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
) -> Tensor:
    """Boundary loss: the mean of the probabilities times the signed distances to the boundary of the target.

    For each sample and class, over the voxels that count, with p the activated input, v the voxel weight and phi the
    signed distance map of the class::

        loss = weight * sum v * p * phi / sum v

    Outside the class, phi is the distance to its nearest voxel; inside, minus the distance to the nearest voxel that is
    not of the class, plus the smallest spacing. So it is 0 on the boundary's voxels, and below 0 within. A class that
    a sample lacks, or that fills it, has phi = 0.

    Source: Kervadec et al. 2019, "Boundary loss for highly unbalanced segmentation", MIDL, arXiv:1812.07032.

    The loss can be below 0, and its gradient does not depend on p: add it to a region loss, with a small factor that
    grows during the training.

    Args:
        target: one of

            * class labels ``[N, *]`` or ``[N, 1, *]`` with one to three spatial axes: any integer dtype, bool, or
              floating with integral values;
            * with softmax: exact one-hot labels, integer, of input's shape;
            * with sigmoid or without activation: a mask for each class, of input's shape: integer or floating of 0 and
              1, where a voxel that holds ``ignore_index`` in any class is ignored. With one channel a map of 0 and 1,
              ``[N, *]`` or ``[N, 1, *]``, is the mask of the foreground, whatever its dtype.

            Ignored voxels belong to no class. None with ``distances``, if no voxel is ignored.
        distances: the maps phi, floating, of input's shape (with ``upsample`` at the target's size), if a data loader
            makes them ahead; they must be finite. Default: None, they are made of the target.
        spacing: the distance of neighbouring voxels along each spatial axis. Default: None, 1 along all.
        others: as in ``segloss.dice_loss``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), rounded to it once; 0-dim, or with
        ``reduction="none"`` of the shape ``[N, C']``, or ``[C']`` with ``batch``, where C' classes have terms. A term
        over no voxel that counts is 0.

    Raises:
        ValueError: ``spacing`` is not one finite number above 0 for each spatial axis; there are none, or more than
            three.
        RuntimeError: the target holds class probabilities or soft masks; ``distances`` has another shape than input,
            is not finite or requires a gradient.
        TypeError: neither target nor ``distances`` is given.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_loss``.

    Equivalent to:
        ``monai.losses.BoundaryLoss(softmax=True, to_onehot_y=True)``

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.5, 0.2, 0.0, 2.0]], [[0.0, 0.1, 3.0, 0.0]]]])
        >>> labels = torch.tensor([[[[0, 0, 1, 1]]]], dtype=torch.uint8)  # [N, 1, H, W]
        >>> segloss.boundary_loss(logits, labels)
        tensor(0.2872)

        A data loader can make the maps, so that the training step does not wait for them:

        >>> phi = segloss.distance_transform(labels, num_classes=2, signed=True).nan_to_num(posinf=0, neginf=0)
        >>> phi = torch.where(phi < 0, phi + 1, phi)  # 1 is the smallest spacing
        >>> segloss.boundary_loss(logits, None, distances=phi)
        tensor(0.2872)

    See also:
        * ``segloss.BoundaryLoss``: the same as a module
        * ``segloss.distance_transform``: the distance maps
        * ``segloss.hausdorff_dt_loss``: weighs errors by their distance from the boundary
        * ``segloss.dice_loss``, ``segloss.generalized_dice_loss``: the losses that it is added to
    """
    op = "boundary_loss"
    weight = _of_classes(weight, input)
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    labels = LabelOptions(ignore_index, label_map, regions)
    walk = _Walk(dim, Upsampling(upsample, align_corners), activation, labels, include_background, batch)
    input, target, distances, voxel_weight = _plain(input), _plain(target), _plain(distances), _plain(voxel_weight)
    if target is None and distances is None:
        raise TypeError(f"{op}: expected target to be a torch.Tensor, or distances, the signed maps, got None for both")
    read = None if target is None else _read_target(op, input, target, weight, voxel_weight, walk, spacing)
    voxel_weight = voxel_weight if read is None else read.voxel_weight
    if distances is not None:
        phi = _checked_distances(op, input, distances, walk)
    elif read is not None:
        phi = _signed_distances(read, dim, _wide(input))
        phi.add_(phi < 0, alpha=min(read.steps))
    stats, whole, _ = _sums(op, input, phi, weight, voxel_weight, _of_maps(walk))
    total = _total_weight(op, phi, voxel_weight, walk) if read is None else read.total
    return _mean(stats.intersection, total, weight, reduction, whole, batch).to(_result_dtype(input))


@documented(like=boundary_loss)
def hausdorff_dt_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 2.0,
    spacing: Sequence[float] | None = None,
    activation: Activation | None = "softmax",
    include_background: bool = True,
    batch: bool = False,
    weight: ClassWeight | None = None,
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
) -> Tensor:
    """Hausdorff loss by distance transforms: squared errors, weighed by their distances from both boundaries.

    For each sample and class, over the voxels that count, with p the activated input, g the target, 1 in the class and
    0 elsewhere, and v the voxel weight::

        loss = weight * sum v * (p - g) ** 2 * (d_p ** alpha + d_g ** alpha) / sum v

    d_p and d_g are the distances of a voxel to the other side of the masks p > 0.5 and g: of one inside to the nearest
    voxel outside, of one outside to the nearest inside. They are 0 if the mask is empty or full, and have no gradient.

    Source: Karimi and Salcudean 2019, "Reducing the Hausdorff Distance in Medical Image Segmentation With Convolutional
    Neural Networks", IEEE Transactions on Medical Imaging 39(2), arXiv:1904.10030.

    Distances of the prediction are computed in every call, so the loss takes longer than others. Class 0 has a term
    unless ``include_background=False``, which is the default of MONAI's ``HausdorffDTLoss``.

    Args:
        target: as in ``segloss.boundary_loss``, but not None.
        alpha: the exponent of the distances, above 0.
        others: as in ``segloss.boundary_loss``.

    Returns:
        A tensor as of ``segloss.boundary_loss``.

    Raises:
        ValueError: alpha is not a finite number above 0.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.boundary_loss``.

    Equivalent to:
        ``monai.losses.HausdorffDTLoss(softmax=True, to_onehot_y=True, include_background=True)``

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.5, 0.2, 0.0, 2.0]], [[0.0, 0.1, 3.0, 0.0]]]])
        >>> labels = torch.tensor([[[[0, 0, 1, 1]]]], dtype=torch.uint8)  # [N, 1, H, W]
        >>> segloss.hausdorff_dt_loss(logits, labels)
        tensor(1.3688)

    See also:
        * ``segloss.HausdorffDTLoss``: the same as a module
        * ``segloss.boundary_loss``: takes less time
    """
    op = "hausdorff_dt_loss"
    weight = _of_classes(weight, input)
    _check_number(op, "alpha", alpha)
    if not 0 < alpha < inf:
        raise ValueError(f"{op}: expected alpha, an exponent, to be a finite number above 0, got {alpha!r}")
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    labels = LabelOptions(ignore_index, label_map, regions)
    walk = _Walk(dim, Upsampling(), activation, labels, include_background, batch)
    input, target, voxel_weight = _plain(input), _plain(target), _plain(voxel_weight)
    read = _read_target(op, input, target, weight, voxel_weight, walk, spacing)
    p = _activated(input, walk, read.counts)
    is_in = p.detach() > 0.5
    if read.counts is not None:
        is_in = is_in & read.counts.unsqueeze(dim)
    d_p, d_g = _of_masks(is_in, dim, read.steps, p.dtype), _signed_distances(read, dim, p.dtype)
    distances = _powers(d_p, alpha) + _powers(d_g, alpha)
    del d_p, d_g, is_in
    errors = (p - _is_class(read, input, dim).to(p.dtype)).square()
    of_errors = _of_maps(walk)._replace(activation=None)
    stats, whole, _ = _sums(op, errors, distances, weight, read.voxel_weight, of_errors)
    return _mean(stats.intersection, read.total, weight, reduction, whole, batch).to(_result_dtype(input))


class _Target(NamedTuple):
    """What a target says: labels, as they came, without a class dimension; or a mask for each class."""

    values: Tensor
    ignore_index: int
    label_table: Tensor | None
    num_classes: int | None  # None: of masks
    counts: Tensor | None  # the voxels that are not ignored, [N, *]; None: all
    voxel_weight: Tensor | None  # 0 where a voxel is ignored
    total: Tensor  # the sum of the voxel weights of each sample, [N, 1]
    steps: tuple[float, ...]  # the spacing


def _read_target(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    walk: _Walk,
    spacing: Sequence[float] | None,
) -> _Target:
    """Reads the target after the walk of region losses, which checks all arguments, has read it as well."""
    dim, resize, activation, labels, include_background, *_ = walk
    ignore_index, table = read_labels(op, input, target, dim, labels, activation)
    _check_types(op, input, target, weight, voxel_weight, ignore_index, dim)
    _check_background(op, labels.regions, include_background)
    code = upsampling_code(op, input, resize)
    if activation == "softmax" or (table is not None and table.dim() == 1):
        target = _labels(op, input, target, dim, code)
    x = input.detach()
    stats, *_ = _sums(op, x, target, weight, voxel_weight, walk._replace(include_background=True, batch=False))
    steps = _steps(op, spacing, input)
    if target.dtype in (torch.uint16, torch.uint32, torch.uint64):
        target = target.long()  # torch can hardly compute with these
    shape = full_shape(input, target, dim, code)
    is_of_one = shape[dim] == 1
    if table is not None and table.dim() > 1:
        given = target if target.dim() == len(shape) else target.unsqueeze(dim)
        masks = _ops.set_masks(op, given, table, shape[dim], dim % len(shape))
    elif table is None and activation != "softmax" and (target.shape == shape or is_of_one):
        masks = _masks(op, target, ignore_index).reshape(shape)
    else:
        values = target.squeeze(dim) if target.dim() == len(shape) else target
        counts = _counts(op, values, ignore_index, table)
        v = _with_zeros(voxel_weight, counts)
        of_classes = stats.target.sum(1, keepdim=True)  # each voxel that counts is in one class
        return _Target(values, ignore_index, table, shape[dim], counts, v, of_classes, steps)
    may_ignore = table is not None or (not target.is_floating_point() and _may_ignore(target, ignore_index, table))
    counts = (masks >= 0).all(dim) if may_ignore else None
    v = _with_zeros(voxel_weight, counts)
    checked = 0 * stats.target.sum(1, keepdim=True)  # a compiler would leave out checks whose result nobody needs
    return _Target(masks, NO_LABEL, None, None, counts, v, checked + _total_weight(op, masks, v, walk), steps)


def _masks(op: str, target: Tensor, ignore_index: int) -> Tensor:
    """Masks of 0 and 1, and -1 where a voxel is ignored, which floating ones do not have."""
    is_floating = target.is_floating_point()
    try:
        masks: Tensor = _ops.class_masks(op, target, NO_LABEL if is_floating else ignore_index)
        return masks
    except RuntimeError as error:
        if not is_floating or "expected 0 and 1" not in str(error):
            raise
        raise RuntimeError(
            f"{op}: expected 0 and 1 in a floating target that is a mask for each class, got other values: soft masks "
            "have no boundary. Use target > 0.5"
        ) from None


def _may_ignore(target: Tensor, ignore_index: int, table: Tensor | None) -> bool:
    return table is not None or len(_that_occur(target, (ignore_index,))) > 0


def _counts(op: str, labels: Tensor, ignore_index: int, table: Tensor | None) -> Tensor | None:
    """The voxels whose label is not ignored; None if the dtype cannot hold such a label."""
    if table is not None:
        classes: Tensor = _ops.class_labels(op, labels, 2**31 - 1, ignore_index, table)
        return classes >= 0
    if not _may_ignore(labels, ignore_index, table):
        return None
    if labels.is_floating_point():  # float16 cannot be compared with a large number
        labels = labels.to(torch.promote_types(labels.dtype, torch.float32))
    return labels != ignore_index


def _with_zeros(voxel_weight: Tensor | None, counts: Tensor | None) -> Tensor | None:
    """The voxel weights, 0 where a voxel is ignored."""
    if voxel_weight is None or counts is None:
        return counts if voxel_weight is None else voxel_weight
    return voxel_weight.reshape(counts.shape).masked_fill(~counts, 0)


def _total_weight(op: str, maps: Tensor, voxel_weight: Tensor | None, walk: _Walk) -> Tensor:
    """The sum of the voxel weights of each sample of maps of the target's size, [N, 1]; the same for any threads."""
    dim = walk.dim % maps.dim()
    sizes = [*maps.shape[:dim], 1, *maps.shape[dim + 1 :]]
    ones = torch.ones((), dtype=torch.float32, device=maps.device).expand(sizes)
    if voxel_weight is None:
        num_samples = sizes.pop(1 if dim == 0 else 0)
        return torch.full((num_samples, 1), prod(sizes), dtype=torch.float64, device=maps.device)
    stats, *_ = _sums(op, ones, ones, None, voxel_weight, _Walk(dim, Upsampling(), None, LabelOptions(NO_LABEL)))
    return stats.prediction


def _steps(op: str, spacing: Sequence[float] | None, input: Tensor) -> tuple[float, ...]:
    """The spacing of each spatial axis of input [N, C, *]."""
    num_axes = input.dim() - 2
    if not 1 <= num_axes <= _MOST_AXES:
        raise ValueError(
            f"{op}: expected input [N, C, *] with one to three spatial axes, got {list(input.shape)}. Use "
            "input.unsqueeze(0) for logits without a batch"
        )
    steps = checked_spacing(op, spacing) or (1.0,) * num_axes
    if len(steps) != num_axes:
        raise ValueError(
            f"{op}: expected a spacing of {num_axes} numbers, one for each spatial axis of input {list(input.shape)}, "
            f"got {list(steps)}"
        )
    return steps


def _signed_distances(target: _Target, dim: int, dtype: torch.dtype) -> Tensor:
    """New maps of input's shape: outside a class the distance to it, inside minus that to others, 0 if it has none."""
    values, ignore_index, table, num_classes, *_, steps = target
    if num_classes is None:
        return _of_masks(values > 0, dim, steps, dtype)
    maps = _distance_transform(values, table, steps, ignore_index, num_classes, False, True, dtype)
    return maps[:, :num_classes].nan_to_num_(posinf=0, neginf=0).movedim(1, dim)


def _of_masks(masks: Tensor, dim: int, steps: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    moved = masks.movedim(dim, 1)
    maps = _distance_transform(moved.flatten(0, 1), None, steps, NO_LABEL, 0, False, True, dtype)
    return maps.nan_to_num_(posinf=0, neginf=0).view(moved.shape).movedim(1, dim)


def _powers(distances: Tensor, alpha: float) -> Tensor:
    """|distances| ** alpha, in place. pow_ would round differently for other numbers of threads."""
    return distances.mul_(distances) if alpha == 2 else distances.abs_().log_().mul_(alpha).exp_()


def _is_class(target: _Target, input: Tensor, dim: int) -> Tensor:
    """The mask of each class."""
    if target.num_classes is None:
        return target.values > 0
    classes = target.values
    if target.label_table is not None:
        classes = _ops.class_labels("", classes, target.num_classes, target.ignore_index, target.label_table)
    of_classes = torch.arange(target.num_classes, device=input.device)
    along = [-1 if d == dim % input.dim() else 1 for d in range(input.dim())]
    return classes.unsqueeze(dim) == of_classes.view(along)


def _activated(input: Tensor, walk: _Walk, counts: Tensor | None) -> Tensor:
    """The probabilities, in float32 at least, 0 in ignored voxels, whose logits, which may be nan, have no effect."""
    dim = walk.dim % input.dim()
    if walk.activation is not None:
        p: Tensor = _ops.probabilities(input, counts, dim, walk.activation == "sigmoid")
        return p
    x = input.to(_wide(input))
    if counts is not None:
        x = x.masked_fill(~counts.unsqueeze(dim), 0)
    return x.clamp(0, 1)  # they lie beyond by rounding alone


def _wide(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def _of_maps(walk: _Walk) -> _Walk:
    """The same walk with maps of any numbers as the target."""
    return walk._replace(labels=LabelOptions(NO_LABEL), any_finite_target=True)


def _checked_distances(op: str, input: Tensor, distances: Tensor, walk: _Walk) -> Tensor:
    _check_tensor(op, "input", input)
    _check_tensor(op, "distances", distances)
    shape = full_shape(input, distances, walk.dim, upsampling_code(op, input, walk.resize))
    if distances.shape != shape or not distances.is_floating_point():
        raise RuntimeError(
            f"{op}: expected floating distances of shape {list(shape)}, a map for each class of input "
            f"{list(input.shape)}, got {distances.dtype} {list(distances.shape)}"
        )
    if distances.requires_grad:
        raise RuntimeError(f"{op}: expected distances without gradient, got requires_grad=True. Use distances.detach()")
    return distances


def _mean(sums: Tensor, total: Tensor, weight: Tensor | None, reduction: str, whole: _Whole, batch: bool) -> Tensor:
    """The terms, from the sums of samples and classes, or their mean or sum; a term over no voxel is 0."""
    total = total.sum(0) if batch else total
    terms = sums / total.masked_fill(total == 0, 1)
    return _reduced(terms, weight, reduction, whole)
