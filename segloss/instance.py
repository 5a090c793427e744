"""Losses of each lesion, and the sums that they are computed from; the kernels read the logits once."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from segloss._docs import documented
from segloss._label_sets import Regions
from segloss._labels import IgnoreIndex, LabelMap, LabelOptions, read_labels
from segloss._upsample import Upsampling
from segloss.boundary import _masks, _steps
from segloss.distance import checked_spacing, without_channel
from segloss.functional import (
    Activation,
    Empty,
    _check_choice,
    _check_integer,
    _check_numbers,
    _check_tensor,
    _check_types,
    _labels,
    _plain,
    _result_dtype,
)
from segloss.region import _dice_and, _DiceTerms, _VoxelLoss, _Walk, dice_ce_loss, soft_stats

_ops = torch.ops.segloss
_component_stats: Callable[..., tuple[Tensor, ...]] = _ops.component_stats.default
_nearest_component: Callable[..., Tensor] = _ops.nearest_component.default

_LEAST_SIZE = 1e-7  # of P + T, as the authors of CC-DiceCE have it
_IGNORED = -1  # of masks and classes
_HARDLY_COMPUTABLE = (torch.uint16, torch.uint32, torch.uint64)  # by torch itself


class ComponentStats(NamedTuple):
    """Sums over the voxels of each sample and component: the result of ``segloss.component_stats``.

    With them, the Dice loss of each component and class, and the mean cross entropy of each component, are::

        dice = 1 - 2 * intersection / (prediction + target)
        ce = loss / voxels

    Args:
        intersection: I, the sums of prediction times target, ``[N, R, C]``.
        prediction: P, the sums of the prediction, ``[N, R, C]``.
        target: T, the sums of the target, ``[N, R, C]``.
        voxels: V, the sums of the voxel weights, ``[N, R]``: the number of voxels if there are none.
        loss: L, the sums of the voxels' cross entropy (of a sigmoid, of the binary cross entropies of all channels),
            ``[N, R]``; None without activation.

    Example:
        >>> import segloss, torch
        >>> probabilities, labels = torch.tensor([[[0.75, 0.5], [0.25, 0.5]]]), torch.tensor([[0, 1]])
        >>> stats = segloss.component_stats(probabilities, labels, torch.tensor([[0, 1]]), activation=None)
        >>> stats.prediction, stats.voxels
        (tensor([[[0.7500, 0.2500],
                 [0.5000, 0.5000]]]), tensor([[1., 1.]]))

    See also:
        * ``segloss.component_stats``: computes the sums
    """

    intersection: Tensor
    prediction: Tensor
    target: Tensor
    voxels: Tensor
    loss: Tensor | None


@documented(like=soft_stats)
def component_stats(
    input: Tensor,
    target: Tensor,
    components: Tensor,
    num_components: int | None = None,
    *,
    activation: Activation | None = "softmax",
    ignore_index: IgnoreIndex = -100,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    dim: int = 1,
) -> ComponentStats:
    """The sums for each sample, component and class from which losses of each lesion are computed.

    With p the activated input, g the target (one-hot if it holds labels), v the voxel weights and l the voxel's cross
    entropy, sums over the voxels of a sample that count and have the number r in ``components``::

        I = sum v * p * g
        P = sum v * p
        T = sum v * g
        V = sum v
        L = sum v * l

    The forward pass reads the logits once, whatever the number of components, and so does the backward pass.

    Args:
        components: the number of each voxel's component or region, in [0, R), of the labels' shape and any integer
            dtype. 0, which ``segloss.connected_components`` gives the background, is a number like the others.
        num_components: R. Default: None, one more than the largest number in components.
        others: as in ``segloss.soft_stats``.

    Returns:
        ``ComponentStats(intersection, prediction, target, voxels, loss)``, a named tuple of I, P, T, V and L; ``[N, R,
        C]`` and ``[N, R]``, float64 for float64 input, else float32. I, P and L are differentiable in input.

    Raises:
        IndexError: a number in components is outside [0, R).
        ValueError: num_components is below 1.
        TypeError, RuntimeError: components is no integer tensor of the labels' shape.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.soft_stats``.

    Example:
        The Dice loss of each of two lesions, each with the voxels that are nearest to it:

        >>> import segloss, torch
        >>> labels = torch.tensor([[[0, 1, 0, 0, 0, 1, 1]]])  # [N, 1, L]
        >>> lesions = torch.tensor([[[0, 1, 0, 0, 0, 2, 2]]])  # as of segloss.connected_components(labels).labels
        >>> logits = torch.stack([torch.zeros(1, 7), torch.tensor([[-9.0, -9, -9, -9, -9, 9, 9]])], 1)
        >>> stats = segloss.component_stats(logits, labels, segloss.nearest_component(lesions))
        >>> foreground = [each[0, 1:, 1] for each in (stats.intersection, stats.prediction, stats.target)]
        >>> print(1 - 2 * foreground[0] / (foreground[1] + foreground[2]))
        tensor([9.9975e-01, 9.2506e-05])

    See also:
        * ``segloss.ComponentStats``: the type of the result
        * ``segloss.cc_dice_ce_loss``, ``segloss.blob_loss``: losses made of these sums
        * ``segloss.soft_stats``: the sums of whole samples
    """
    op = "component_stats"
    input, target, components, voxel_weight = _plain(input), _plain(target), _plain(components), _plain(voxel_weight)
    _check_tensor(op, "components", components)
    options = LabelOptions(ignore_index, label_map, regions)
    ignore_index, label_table = read_labels(op, input, target, dim, options, activation)
    _check_types(op, input, target, None, voxel_weight, ignore_index, dim)
    _check_choice(op, "activation", activation, ("softmax", "sigmoid", None))
    if num_components is None:
        num_components = 1 + _largest(op, components)
    _check_integer(op, "num_components", num_components)
    walk = (voxel_weight, label_table, dim, activation or "none", num_components, ignore_index, activation is not None)
    intersection, prediction, of_target, loss, voxels = _component_stats(input, target, components, *walk, op)
    dtype = torch.promote_types(input.dtype, torch.float32)
    intersection, prediction, of_target = (each.to(dtype) for each in (intersection, prediction, of_target))
    loss_or_none = None if activation is None else loss.to(dtype)
    return ComponentStats(intersection, prediction, of_target, voxels.to(dtype), loss_or_none)


def nearest_component(
    components: Tensor, spacing: Sequence[float] | None = None, *, spatial_dims: int | None = None
) -> Tensor:
    """The number of the component that is nearest to each voxel: the Voronoi regions of the components.

    For each voxel v, of the voxels u of the sample that have a component, by the Euclidean distance::

        nearest(v) = components[argmin_u |u - v|]

    Of several components at one distance, the smallest number. A voxel of a component has this one. The distances are
    exact, as those of ``segloss.distance_transform``.

    Args:
        components: the number of each voxel's component, 0 where there is none: ``[N, 1, *]`` with one to three spatial
            axes, of any integer dtype; or ``[N, *]``, if ``spacing`` or ``spatial_dims`` says how many are spatial.
        spacing: the distance of neighbouring voxels along each spatial axis. Default: None, 1 along all.
        spatial_dims: the number of spatial axes. Default: None, dimension 1 of size 1 is a channel, and all that follow
            are spatial.

    Returns:
        A tensor of the components' shape, int32; all 0 in a sample without a component.

    Raises:
        TypeError: components is no dense integer tensor.
        IndexError: a number is below 0, or 2147483647 or more.
        ValueError: ``spacing`` is not one finite number above 0 for each spatial axis.
        RuntimeError: components are not ``[N, 1, *]``, nor ``[N, *]`` with as many spatial axes as ``spacing`` has.

    Equivalent to:
        ``components[scipy.ndimage.distance_transform_edt(components == 0, return_distances=False,
        return_indices=True)]`` for one sample, with the indices as a tuple, but for components at the same distance.

    Example:
        >>> import segloss, torch
        >>> segloss.nearest_component(torch.tensor([[[0, 1, 0, 0, 0, 2, 0]]]))  # [N, 1, L]
        tensor([[[1, 1, 1, 1, 2, 2, 2]]], dtype=torch.int32)

    See also:
        * ``segloss.connected_components``: the components of labels
        * ``segloss.cc_dice_ce_loss``: a loss of each of these regions
    """
    op = "nearest_component"
    components = _plain(components)
    _check_tensor(op, "components", components)
    steps = checked_spacing(op, spacing)
    maps = without_channel(op, "components", components, steps, spatial_dims)
    return _nearest_component(maps, steps or (1.0,) * (maps.dim() - 1)).view(components.shape)


@documented(like=dice_ce_loss)
def cc_dice_ce_loss(
    input: Tensor,
    target: Tensor,
    *,
    components: Tensor | None = None,
    num_components: int | None = None,
    lambda_cc: float = 1.0,
    lambda_global: float = 1.0,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    spacing: Sequence[float] | None = None,
    connectivity: int | None = None,
    empty: Empty = "nan",
    activation: Literal["softmax", "sigmoid"] = "softmax",
    batch: bool = False,
    ignore_index: IgnoreIndex = -100,
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
) -> Tensor:
    """CC-DiceCE loss: Dice and cross entropy of each lesion, so that small lesions count as much as large ones.

    Each voxel belongs to the region of the nearest connected component of a class. In the region of component r, with p
    the activated input, g = 1 in the class and else 0, v the voxel weight and l the voxel's cross entropy::

        term(r) = lambda_dice * (1 - 2 * sum v * p * g / (sum v * p + sum v * g)) + lambda_ce * sum v * l / sum v

    The loss is the mean of the terms of each sample and class, then the mean over samples and classes, and besides the
    Dice and cross entropy of the whole images::

        loss = lambda_cc * mean_{n, c} mean_r term(r) + lambda_global * dice_ce_loss

    A sample without a component of a class is one region. ``dice_ce_loss`` is ``segloss.dice_ce_loss`` with the same
    factors, without the background and with ``smooth_nr=0, smooth_dr=0``.

    Source: Bouteille, Jaus, Kleesiek, Stiefelhagen and Heine 2025, "Learning to Look Closer: A New Instance-Wise Loss
    for Small Cerebral Lesion Segmentation", arXiv:2511.17146, for two classes with a softmax.

    Classes are those of labels but 0, the background; or the channels of masks or ``regions``, each of which has its
    own components, and the binary cross entropy of its own logit. Whatever the number of components, the logits are
    read once for the whole images and once for the components, with a softmax once for those of each class.

    Args:
        target: one of

            * class labels ``[N, *]`` or ``[N, 1, *]`` with one to three spatial axes: any integer dtype, bool, or
              floating with integral values;
            * with softmax: exact one-hot labels, integer, of input's shape;
            * with sigmoid: a mask for each class, of input's shape: integer or floating of 0 and 1, where a voxel that
              holds ``ignore_index`` in any class is ignored. With one channel a map of 0 and 1, ``[N, *]`` or
              ``[N, 1, *]``, is the mask of the foreground, whatever its dtype.

            Ignored voxels belong to no component.
        components: the components, numbered from 1 on in each sample, integer, if a data loader makes them ahead; or
            ``segloss.nearest_component`` of them, which takes no time then. One map of the labels' shape (for
            several classes as of ``segloss.connected_components(per_class=True)``; a mask for each class has none),
            or with a class dimension a map for each class that has components. Default: None, they are made of the
            target.
        num_components: the largest number that components may have, so that the call need not wait for it, and
            ``torch.compile`` not break its graph there. Default: None, the largest that there is.
        lambda_cc, lambda_global: the factors of the terms of components and of whole images.
        lambda_dice, lambda_ce: the factors of Dice and cross entropy in both.
        spacing: the distance of neighbouring voxels along each spatial axis. Default: None, 1 along all.
        connectivity: how many axes neighbours in a component may differ along: 1, up to the number of axes. Default:
            None, all: 26 neighbours in three dimensions, 8 in two.
        empty: the cross entropy of images without a voxel that counts, and the mean for an input without a voxel:
            ``"nan"`` as in torch, or ``"zero"``. The gradient is 0 in both cases.
        batch: whether the Dice of whole images is that of the batch, as ``batch_dice`` of nnU-Net.
        others: as in ``segloss.dice_ce_loss``.

    Returns:
        A 0-dim tensor of input's dtype (float32 for half types under autocast).

    Raises:
        ValueError: input has no spatial axes, or more than three; ``spacing`` is not one finite number above 0 for
            each; ``connectivity`` is not in [1, axes].
        RuntimeError: the target holds class probabilities or soft masks; components has another shape.
        IndexError: components has a number below 0, or above ``num_components``.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_ce_loss``.

    Example:
        >>> import segloss, torch
        >>> labels = torch.tensor([[[0, 1, 0, 0, 0, 1, 1]]])  # [N, 1, L]
        >>> logits = torch.stack([torch.zeros(1, 7), torch.tensor([[-9.0, -9, -9, -9, -9, 9, 9]])], 1)
        >>> segloss.cc_dice_ce_loss(logits, labels)
        tensor(3.1110)
        >>> segloss.dice_ce_loss(logits, labels, include_background=False, smooth_nr=0, smooth_dr=0)
        tensor(1.4859)

    See also:
        * ``segloss.CCDiceCELoss``: the same as a module
        * ``segloss.blob_loss``: without regions: each lesion with the whole background
        * ``segloss.component_stats``, ``segloss.nearest_component``: what it is made of
        * ``segloss.dice_ce_loss``: the loss of whole images
    """
    op = "cc_dice_ce_loss"
    _check_numbers(op, lambda_cc=lambda_cc, lambda_global=lambda_global, lambda_dice=lambda_dice, lambda_ce=lambda_ce)
    labels = LabelOptions(ignore_index, label_map, regions)
    call = _Call(op, input, target, voxel_weight, dim, activation, labels, components, num_components, connectivity)
    whole = _whole_images(call, lambda_dice, lambda_ce, empty, batch, lambda_global)
    steps = _steps(op, spacing, input)

    def sums_of_regions(of_class: _OfClass) -> tuple[_Sums, Tensor]:
        sums = _sums_of(call, of_class, _nearest_component(of_class.components, steps))
        return sums, sums.voxels > 0  # component 0 only if there is no other

    mean = _mean_of_components(call, sums_of_regions, lambda_dice, lambda_ce)
    return (lambda_cc * mean + whole).to(_result_dtype(input))


@documented(like=cc_dice_ce_loss)
def blob_loss(
    input: Tensor,
    target: Tensor,
    *,
    components: Tensor | None = None,
    num_components: int | None = None,
    alpha: float = 2.0,
    beta: float = 1.0,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    connectivity: int | None = None,
    empty: Empty = "nan",
    activation: Literal["softmax", "sigmoid"] = "softmax",
    batch: bool = False,
    ignore_index: IgnoreIndex = -100,
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
) -> Tensor:
    """Blob loss: Dice and cross entropy of each lesion with the background, without the other lesions.

    For each connected component r of a class, over its voxels and those outside all components of the class, with p the
    activated input, g = 1 in the component and else 0, v the voxel weight and l the voxel's cross entropy::

        term(r) = lambda_dice * (1 - 2 * sum v * p * g / (sum v * p + sum v * g)) + lambda_ce * sum v * l / sum v

    The loss is the mean of the terms of each sample and class, then the mean over the samples and classes that have
    one, and besides the Dice and cross entropy of the whole images::

        loss = alpha * dice_ce_loss + beta * mean_{n, c} mean_r term(r)

    ``dice_ce_loss`` is as in ``segloss.cc_dice_ce_loss``.

    Source: Kofler et al. 2022, "blob loss: instance imbalance aware loss functions for semantic segmentation",
    arXiv:2205.08209. The voxels of the other components do not count, as in the code of Bouteille et al. 2025,
    arXiv:2511.17146; the code of Kofler et al. sets their logits to 0 instead, and counts them.

    Args:
        alpha: the factor of the Dice and cross entropy of whole images.
        beta: the factor of the mean over components.
        components: the components, numbered from 1 on in each sample, 0 elsewhere, integer, if a data loader makes them
            ahead. One map of the labels' shape (for several classes as of
            ``segloss.connected_components(per_class=True)``; a mask for each class has none), or with a class dimension
            a map for each class that has components. Default: None, they are made of the target.
        others: as in ``segloss.cc_dice_ce_loss``.

    Returns:
        A 0-dim tensor of input's dtype (float32 for half types under autocast).

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.cc_dice_ce_loss``.

    Example:
        >>> import segloss, torch
        >>> labels = torch.tensor([[[0, 1, 0, 0, 0, 1, 1]]])  # [N, 1, L]
        >>> logits = torch.stack([torch.zeros(1, 7), torch.tensor([[-9.0, -9, -9, -9, -9, 9, 9]])], 1)
        >>> segloss.blob_loss(logits, labels)
        tensor(4.3720)

    See also:
        * ``segloss.BlobLoss``: the same as a module
        * ``segloss.cc_dice_ce_loss``: each lesion with the voxels that are nearest to it
        * ``segloss.component_stats``: what it is made of
    """
    op = "blob_loss"
    _check_numbers(op, alpha=alpha, beta=beta, lambda_dice=lambda_dice, lambda_ce=lambda_ce)
    labels = LabelOptions(ignore_index, label_map, regions)
    call = _Call(op, input, target, voxel_weight, dim, activation, labels, components, num_components, connectivity)
    whole = _whole_images(call, lambda_dice, lambda_ce, empty, batch, alpha)
    _steps(op, None, input)  # raises if these are not one to three

    def sums_with_background(of_class: _OfClass) -> tuple[_Sums, Tensor]:
        sums = _sums_of(call, of_class, of_class.components)
        return _Sums(*(each[:, :1] + each[:, 1:] for each in sums)), sums.voxels[:, 1:] > 0

    mean = _mean_of_components(call, sums_with_background, lambda_dice, lambda_ce)
    return (beta * mean + whole).to(_result_dtype(input))


class _Call(NamedTuple):
    """The arguments that the losses share."""

    op: str
    input: Tensor
    target: Tensor
    voxel_weight: Tensor | None
    dim: int
    activation: Literal["softmax", "sigmoid"]
    labels: LabelOptions
    components: Tensor | None
    num_components: int | None
    connectivity: int | None


class _OfClass(NamedTuple):
    """A class that has components, and what its sums are computed from."""

    channel: int  # of input
    input: Tensor
    target: Tensor
    ignore_index: int
    label_table: Tensor | None
    components: Tensor  # [N, *]
    num_components: int


class _Sums(NamedTuple):
    """The sums of one class, [N, R]."""

    intersection: Tensor
    prediction: Tensor
    target: Tensor
    loss: Tensor
    voxels: Tensor


def _whole_images(
    call: _Call, lambda_dice: float, lambda_ce: float, empty: Empty, batch: bool, factor: float
) -> Tensor:
    """The Dice and cross entropy of whole images, times a factor. Checks all arguments that it reads."""
    op, input, target, voxel_weight, dim, activation, labels, *_ = call
    _check_tensor(op, "input", _plain(input))
    _check_tensor(op, "target", _plain(target))
    _check_integer(op, "dim", dim)
    walk = _Walk(dim, Upsampling(), activation, labels, not _has_background(call), batch)
    x = input.detach() if factor == 0 and isinstance(input, Tensor) else input
    terms = _DiceTerms(jaccard=False, smooth_nr=0.0, smooth_dr=0.0)
    loss = _VoxelLoss("cross_entropy", empty)
    dice, ce = _dice_and(loss, op, x, target, None, voxel_weight, walk, terms, "mean")
    return torch.zeros_like(dice) if factor == 0 else factor * (lambda_dice * dice + lambda_ce * ce)


def _has_background(call: _Call) -> bool:
    """Whether channel 0 is that of the background: unless each channel of a sigmoid has a mask of its own."""
    _, input, target, _, dim, activation, labels, *_ = call
    if not -input.dim() <= dim < input.dim():
        return False  # the walk raises the error
    of_labels = activation == "softmax" or (labels.regions is None and target.shape != input.shape)
    return of_labels and input.shape[dim] > 1


def _classes(call: _Call) -> list[_OfClass]:
    """The classes that have components."""
    op, input, target, dim = call.op, _plain(call.input), _plain(call.target), call.dim % call.input.dim()
    ignore_index, table = read_labels(op, input, target, dim, call.labels, call.activation)
    num_channels = input.shape[dim]
    channels = range(int(_has_background(call)), num_channels)
    if len(channels) == 0:
        return []
    if channels[0] == 0:
        masks = _masks_of(op, input, target, dim, ignore_index, table)
        maps, num_components = _maps(call, list(masks.unbind(dim)), _IGNORED, None, channels)
    else:
        target = _labels(op, input, target, dim, 0)
        values = target.squeeze(dim) if target.dim() == input.dim() else target
        maps, num_components = _maps(call, [values], ignore_index, table, channels)
        if call.activation == "softmax":
            of_softmax = (input, target, ignore_index, table)
            return [_OfClass(c, *of_softmax, each, num_components) for c, each in zip(channels, maps, strict=True)]
        masks = _masks_of_classes(_ops.class_labels(op, values, num_channels, ignore_index, table), num_channels, dim)
    pairs = [(input.narrow(dim, c, 1), masks.narrow(dim, c, 1)) for c in channels]
    return [_OfClass(0, *pair, _IGNORED, None, each, num_components) for pair, each in zip(pairs, maps, strict=True)]


def _maps(
    call: _Call, labels: list[Tensor], ignore_index: int, table: Tensor | None, channels: range
) -> tuple[list[Tensor], int]:
    """The components of each class, [N, *], and the largest number; from a mask for each, or one map of labels."""
    op, components, num_components, connectivity = call.op, _plain(call.components), *call[-2:]
    per_class = len(labels) == 1 and len(channels) > 1
    neighbours = _neighbours(op, connectivity, call.input.dim() - 2)
    if components is None:
        found = [_ops.connected_components(each, table, neighbours, ignore_index, per_class) for each in labels]
        maps, counts = [each for each, _ in found], [each for _, each in found]
    else:
        maps = counts = _given_maps(call, components, len(channels), may_be_joint=len(labels) == 1)
    if num_components is None:
        num_components = max((_largest(op, each) for each in counts), default=0)
    _check_integer(op, "num_components", num_components)
    if num_components < 0:
        raise ValueError(f"{op}: expected num_components of 0 or more, got {num_components}")
    if len(maps) < len(channels):
        classes = labels[0]
        if table is not None or classes.dtype in _HARDLY_COMPUTABLE:
            classes = _ops.class_labels(op, classes, channels.stop, ignore_index, table)
        maps = [torch.where(classes == c, maps[0], 0) for c in channels]
    return maps, num_components


def _masks_of(op: str, input: Tensor, target: Tensor, dim: int, ignore_index: int, table: Tensor | None) -> Tensor:
    """A mask for each channel of 0 and 1; -1 in all channels where a voxel is ignored."""
    if table is not None and table.dim() > 1:
        given = target if target.dim() == input.dim() else target.unsqueeze(dim)
        masks = _ops.set_masks(op, given, table, input.shape[dim], dim)
    else:
        masks = _masks(op, target, ignore_index).reshape(input.shape)
    ignored = (masks < 0).any(dim, keepdim=True)
    return torch.where(ignored, _IGNORED, masks)


def _masks_of_classes(classes: Tensor, num_channels: int, dim: int) -> Tensor:
    along = [num_channels if d == dim else 1 for d in range(classes.dim() + 1)]
    classes = classes.unsqueeze(dim)
    of_channels = torch.arange(num_channels, dtype=classes.dtype, device=classes.device).view(along)
    return (classes == of_channels).to(torch.int8).masked_fill(classes < 0, _IGNORED)


def _neighbours(op: str, connectivity: int | None, num_axes: int) -> int:
    if connectivity is None:
        return num_axes
    _check_integer(op, "connectivity", connectivity)
    if not 1 <= connectivity <= num_axes:
        raise ValueError(f"{op}: expected connectivity in [1, {num_axes}], the number of axes, got {connectivity}")
    return connectivity


def _given_maps(call: _Call, components: Tensor, num_classes: int, may_be_joint: bool) -> list[Tensor]:
    """A map for each class, or one for all, [N, *]."""
    op, input, dim = call.op, call.input, call.dim % call.input.dim()
    _check_tensor(op, "components", components)
    if components.is_floating_point() or components.is_complex() or components.dtype == torch.bool:
        raise TypeError(f"{op}: expected integer components, got {components.dtype}")
    before, after, shape = list(input.shape[:dim]), list(input.shape[dim + 1 :]), list(components.shape)
    if shape == [*before, num_classes, *after]:
        return list(components.unbind(dim))
    if may_be_joint and shape in ([*before, *after], [*before, 1, *after]):
        return [components.reshape([*before, *after])]
    joint = f"{[*before, *after]} or " if may_be_joint else ""
    raise RuntimeError(
        f"{op}: expected components of shape {joint}{[*before, num_classes, *after]}, a map for each class that has "
        f"components, for input {list(input.shape)}, got {shape}"
    )


def _largest(op: str, numbers: Tensor) -> int:
    if numbers.is_meta:
        raise RuntimeError(f"{op}: expected num_components for tensors without values, on the meta device, got None")
    return int(numbers.long().max()) if numbers.numel() > 0 else 0


def _sums_of(call: _Call, of_class: _OfClass, components: Tensor) -> _Sums:
    """The walk that both losses share: the sums of one class by the numbers of a map."""
    channel, input, target, ignore_index, table, _, num_components = of_class
    options = (call.dim, call.activation, 1 + num_components, ignore_index, True, call.op)
    sums = _component_stats(input, target, components, _plain(call.voxel_weight), table, *options)
    intersection, prediction, of_target, loss, voxels = sums
    return _Sums(intersection[..., channel], prediction[..., channel], of_target[..., channel], loss, voxels)


def _mean_of_components(
    call: _Call, sums_of: Callable[[_OfClass], tuple[_Sums, Tensor]], lambda_dice: float, lambda_ce: float
) -> Tensor:
    """Over the components of each sample and class, and then over those that have one; 0 if none has."""
    terms, has_term = [], []
    for of_class in _classes(call):
        sums, exists = sums_of(of_class)
        terms.append(_mean(_dice_ce(sums, lambda_dice, lambda_ce), exists, 1))
        has_term.append(exists.any(1))
    if not terms:
        return call.input.new_zeros(())
    return _mean(torch.stack(terms), torch.stack(has_term), (0, 1))


def _dice_ce(sums: _Sums, lambda_dice: float, lambda_ce: float) -> Tensor:
    sizes = (sums.prediction + sums.target).clamp_min(_LEAST_SIZE)
    ce = sums.loss / sums.voxels.masked_fill(sums.voxels == 0, 1)
    return lambda_dice * (1 - 2 * sums.intersection / sizes) + lambda_ce * ce


def _mean(terms: Tensor, has_term: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The mean of those that exist; 0 if none does."""
    return torch.where(has_term, terms, 0.0).sum(dim) / has_term.sum(dim).clamp_min(1)
