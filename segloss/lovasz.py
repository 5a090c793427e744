"""The Lovasz losses: surrogates of the Jaccard index, from the voxels sorted by their errors."""

import reprlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from segloss._distributed import is_dtensor
from segloss._docs import documented
from segloss._label_sets import Regions
from segloss._labels import IgnoreIndex, LabelMap, LabelOptions, on_all_ranks, read_labels
from segloss._upsample import Upsample, Upsampling, upsampling_code
from segloss.functional import (
    _REDUCTIONS,
    Reduction,
    _check_choice,
    _check_flags,
    _check_types,
    _plain,
    _result_dtype,
    binary_cross_entropy_with_logits,
    cross_entropy,
)

LovaszClasses: TypeAlias = Literal["present", "all"] | Sequence[int]

_lovasz: Callable[..., tuple[Tensor, Tensor]] = torch.ops.segloss.lovasz.default


@documented(like=cross_entropy)
def lovasz_softmax_loss(
    input: Tensor,
    target: Tensor,
    *,
    classes: LovaszClasses = "present",
    per_sample: bool = False,
    activation: Literal["softmax"] | None = "softmax",
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    label_map: LabelMap | None = None,
) -> Tensor:
    """Lovasz-Softmax loss: a convex surrogate of one minus the Jaccard index of each class.

    For each class c, the errors of the voxels of the batch (of a sample with ``per_sample``) that count, with p the
    softmax of the logits and g = 1 at the voxels of the class, else 0::

        e = |g - p|

    Sorted from the largest to the smallest, with g in the same order and G = sum(g), the Jaccard loss of the first k
    voxels as errors is J[k], and the loss of the class is::

        J[k] = 1 - (G - sum(g[:k])) / (G + sum(1 - g[:k]))
        loss = sum_k e[k] * (J[k] - J[k - 1])

    Equal errors keep the order of their voxels. The gradient is that of the errors, with their order fixed; an error of
    0 has none.

    Source: Berman, Rannen Triki and Blaschko 2018, "The Lovász-Softmax loss: A tractable surrogate for the optimization
    of the intersection-over-union measure in neural networks", arXiv:1705.08790.

    It is a loss of the whole batch: a batch of several processes, or the micro-batches of one, give the mean of their
    losses, not the loss of their union. Memory besides the gradient: one copy of the logits, and for the forward pass
    16 bytes for each voxel (32 in float64).

    Args:
        input: logits ``[N, C, *]`` of two or more classes with any number of spatial dimensions, or ``[C]``; float64,
            float32, float16 or bfloat16, with any strides.
        target: class labels ``[N, *]`` or ``[N, 1, *]``: any integer dtype, bool, or floating with integral values; or
            exact one-hot labels, integer, of input's shape.
        classes: the classes that have a term: ``"present"``, those with a voxel that counts in the batch (in the
            sample); ``"all"``; or a sequence of classes, also absent ones. The loss of an absent class is its largest
            error, that of a class which fills all is its largest error, too.
        per_sample: whether a class has a term for each sample, sorted by itself, instead of one for the batch.
        activation: ``"softmax"``, or None for input that holds probabilities, each in [0, 1].
        reduction: ``"mean"`` of the terms: of the classes, and then with ``per_sample`` of the samples, in which a
            sample without a term counts as 0. The mean of no term is 0, with zero gradient. ``"sum"`` adds the terms;
            ``"none"`` returns them, 0 for a class that has none.
        others: as in ``segloss.cross_entropy``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), rounded to it once; 0-dim, or with
        ``reduction="none"`` of the shape ``[C']``, or ``[N, C']`` with ``per_sample``, of C' = C classes, or those that
        ``classes`` names.

    Raises:
        TypeError: ``classes`` is neither a string nor a sequence of ints.
        ValueError: input has one channel, or ``classes`` is an unknown word, or it names no class, one twice, or one
            that input does not have.
        RuntimeError: target holds class probabilities.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.cross_entropy``.

    Equivalent to:
        ``segmentation_models_pytorch.losses.LovaszLoss("multiclass")(input, target)``

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)  # [N, 1, H, W]
        >>> segloss.lovasz_softmax_loss(logits, labels)
        tensor(0.6570)
        >>> segloss.lovasz_softmax_loss(logits, labels, reduction="none")
        tensor([0.6350, 0.6790])

    See also:
        * ``segloss.LovaszSoftmaxLoss``: the same as a module
        * ``segloss.lovasz_hinge_loss``: of one class, or of classes that overlap
        * ``segloss.dice_loss``: with ``jaccard=True`` the soft Jaccard loss
    """
    op = "lovasz_softmax_loss"
    input, target = _plain(input), _plain(target)
    ignore_index, label_table = read_labels(op, input, target, dim, LabelOptions(ignore_index, label_map), "softmax")
    _check_types(op, input, target, None, None, ignore_index, dim)
    is_dtensor(input)  # registers the sharding rules if it is one
    _check_flags(op, per_sample=per_sample)
    _check_choice(op, "activation", activation, ("softmax", None), "Use lovasz_hinge_loss for classes that overlap")
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    chosen = _chosen_classes(op, classes, input, dim)
    resize = upsampling_code(op, input, Upsampling(upsample, align_corners))
    options = (dim, activation or "none", False, int(per_sample), ignore_index, resize)
    terms, num_ones = _lovasz(input, target, _weight_of(chosen, input, dim), None, label_table, *options, op)
    if chosen is not None:
        terms = torch.stack([terms[:, c] for c in chosen], 1)
    has_term = num_ones > 0 if classes == "present" else torch.ones_like(terms, dtype=torch.bool)
    return _reduced(terms, has_term, reduction, per_sample).to(_result_dtype(input))


@documented(like=binary_cross_entropy_with_logits)
def lovasz_hinge_loss(
    input: Tensor,
    target: Tensor,
    *,
    per_sample: bool = False,
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
) -> Tensor:
    """Lovasz hinge loss: a convex surrogate of one minus the Jaccard index, of the foreground or of each channel.

    For each channel, the errors of the voxels of the batch (of a sample with ``per_sample``) that count, with logits x
    and g = 1 in the foreground, else 0::

        e = max(0, 1 - x * (2 * g - 1))

    Sorted from the largest to the smallest, with g in the same order and G = sum(g), the Jaccard loss of the first k
    voxels as errors is J[k], and the loss of the channel is::

        J[k] = 1 - (G - sum(g[:k])) / (G + sum(1 - g[:k]))
        loss = sum_k e[k] * (J[k] - J[k - 1])

    Equal errors keep the order of their voxels. The gradient is that of the errors, with their order fixed; an error of
    0 has none. The loss without any foreground is the largest error.

    Source: Yu and Blaschko 2015, "Learning Submodular Losses with the Lovász Hinge", ICML; Berman, Rannen Triki and
    Blaschko 2018, arXiv:1705.08790.

    It is a loss of the whole batch: a batch of several processes, or the micro-batches of one, give the mean of their
    losses, not the loss of their union.

    Args:
        target: a mask for each channel, of input's shape, of 0 and 1, integer, bool or floating; or class labels
            ``[N, *]`` or ``[N, 1, *]``, any integer dtype, bool, or floating with integral values. With one channel a
            map of 0 and 1 of any shape and dtype is the mask of the foreground.
        per_sample: whether a channel has a term for each sample, sorted by itself, instead of one for the batch.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in target; in masks a value
            other than 0 and 1 in any channel of a voxel. Their gradient is 0.
        reduction: ``"mean"`` of the terms of the channels (and samples); of no term it is 0, with zero gradient.
            ``"sum"`` adds the terms; ``"none"`` returns them.
        others: as in ``segloss.binary_cross_entropy_with_logits``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), rounded to it once; 0-dim, or with
        ``reduction="none"`` of the shape ``[C]``, or ``[N, C]`` with ``per_sample``.

    Raises:
        RuntimeError: a mask holds a value other than 0, 1 and ``ignore_index``.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.binary_cross_entropy_with_logits``.

    Equivalent to:
        ``segmentation_models_pytorch.losses.LovaszLoss("binary")(input, target)`` for one channel.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]]]])  # [N, 1, H, W]
        >>> mask = torch.tensor([[[1, 0], [0, 1]]], dtype=torch.uint8)
        >>> segloss.lovasz_hinge_loss(logits, mask)
        tensor(0.9617)

    See also:
        * ``segloss.LovaszHingeLoss``: the same as a module
        * ``segloss.lovasz_softmax_loss``: of classes that exclude each other
        * ``segloss.dice_loss``: with ``activation="sigmoid", jaccard=True`` the soft Jaccard loss
    """
    op = "lovasz_hinge_loss"
    input, target = _plain(input), _plain(target)
    ignore_index, label_table = read_labels(op, input, target, dim, LabelOptions(ignore_index, label_map, regions))
    _check_types(op, input, target, None, None, ignore_index, dim)
    is_dtensor(input)  # registers the sharding rules if it is one
    _check_flags(op, per_sample=per_sample)
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    resize = upsampling_code(op, input, Upsampling(upsample, align_corners))
    options = (dim, "none", True, int(per_sample), ignore_index, resize)
    terms, _ = _lovasz(input, target, None, None, label_table, *options, op)
    has_term = torch.ones_like(terms, dtype=torch.bool)
    return _reduced(terms, has_term, reduction, per_sample).to(_result_dtype(input))


def _chosen_classes(op: str, classes: object, input: Tensor, dim: int) -> Sequence[int] | None:
    """The classes of a sequence; None for all of them."""
    if isinstance(classes, str):
        _check_choice(op, "classes", classes, ("present", "all"), "Or give a sequence of classes")
        return None
    if not isinstance(classes, Sequence) or not all(type(c) is int for c in classes):
        raise TypeError(
            f"{op}: expected classes to be 'present', 'all' or a sequence of ints, got {reprlib.repr(classes)}"
        )
    if not -input.dim() <= dim < input.dim():
        return None  # the operator raises the error
    num_classes = input.shape[dim if input.dim() > 1 else 0]
    if not classes or len(set(classes)) < len(classes) or not all(0 <= c < num_classes for c in classes):
        raise ValueError(
            f"{op}: expected different classes in [0, {num_classes}), one at least, got {reprlib.repr(classes)}"
        )
    return classes


def _weight_of(chosen: Sequence[int] | None, input: Tensor, dim: int) -> Tensor | None:
    """1 for the chosen classes, 0 for the others, which are not sorted then."""
    if chosen is None:
        return None
    num_classes = input.shape[dim if input.dim() > 1 else 0]
    every, of_terms = torch.arange(num_classes, device=input.device), torch.tensor(chosen, device=input.device)
    return on_all_ranks(input, torch.isin(every, of_terms).float())


def _reduced(terms: Tensor, has_term: Tensor, reduction: str, per_sample: bool) -> Tensor:
    """The terms [G, C] of the samples or, G = 1, of the batch; their sum; or the mean of the groups' means."""
    terms = torch.where(has_term, terms, 0.0)
    if reduction == "none":
        return terms if per_sample else terms.squeeze(0)
    if reduction == "sum":
        return terms.sum()
    means = terms.sum(1) / has_term.sum(1).clamp_min(1)
    return means.sum() / torch.ones_like(means).sum().clamp_min(1)
