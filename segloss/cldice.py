"""The clDice losses: overlap along soft skeletons, which min and max pools make of the probabilities."""

from typing import NamedTuple

import torch
from torch import Tensor

from segloss._docs import documented
from segloss._label_sets import Regions
from segloss._labels import IgnoreIndex, LabelMap, LabelOptions
from segloss._upsample import Upsampling
from segloss.boundary import _activated, _is_class, _of_maps, _read_target, _steps, _wide, _with_zeros
from segloss.functional import (
    _REDUCTIONS,
    Activation,
    ClassWeight,
    Reduction,
    _check_choice,
    _check_flags,
    _check_numbers,
    _of_classes,
    _plain,
    _result_dtype,
)
from segloss.region import SoftStats, _dice_terms, _DiceTerms, _reduced, _sums, _terms, _Walk, _Whole, dice_loss

_ops = torch.ops.segloss


@documented(like=dice_loss)
def soft_cldice_loss(
    input: Tensor,
    target: Tensor,
    *,
    iterations: int = 3,
    per_class: bool = True,
    activation: Activation | None = "softmax",
    include_background: bool = True,
    batch: bool = False,
    weight: ClassWeight | None = None,
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
    smooth: float = 1e-4,
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
) -> Tensor:
    """Soft clDice loss, for tubes such as vessels, nerves and roads: overlap along the skeletons of both sides.

    For each sample and class, over the voxels that count, with p the activated input, g the target, v the voxel weight
    and S the soft skeleton::

        precision   = (sum v * S(p) * g + smooth_nr) / (sum v * S(p) + smooth_dr)
        sensitivity = (sum v * S(g) * p + smooth_nr) / (sum v * S(g) + smooth_dr)
        loss = weight * (1 - 2 * precision * sensitivity / (precision + sensitivity + smooth))

    The soft skeleton of x has a level for each k from 0 to ``iterations``; with x_0 = x and s = 0 before the first::

        x_(k+1) = the least of a voxel of x_k and its neighbours along the axes
        d       = max(0, x_k - (the largest of x_(k+1) in the 3 x 3 x 3 voxels around))
        s       = s + max(0, d - s * d)

    Source: Shit et al. 2021, "clDice - a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation",
    CVPR, arXiv:2003.07311.

    Voxels that do not count are background to the pools, in the prediction and in the target; what lies beyond the
    image takes no part in them. Among equal voxels a pool passes its gradient to the one in the middle, else to the
    first; torch's pools take others, which is the same unless probabilities are equal. The pools of all levels run
    together, plane by plane, forward and backward; no level is kept.

    Args:
        target: one of

            * class labels ``[N, *]`` or ``[N, 1, *]`` with one to three spatial axes: any integer dtype, bool, or
              floating with integral values;
            * with softmax: class probabilities, floating, each in [0, 1], or exact one-hot labels, integer, of input's
              shape;
            * with sigmoid or without activation: a mask for each class, of input's shape: floating in [0, 1], or
              integer of 0 and 1, where a voxel that holds ``ignore_index`` in any class is ignored. With one channel a
              map of 0 and 1, ``[N, *]`` or ``[N, 1, *]``, is the mask of the foreground, whatever its dtype.
        iterations: how often the image is eroded after the first level, from 0 to 1000: at least the radius of the
            thickest tube, in voxels.
        per_class: whether each class has a term of its own. Otherwise the sums run over the classes, too, and a sample
            has one term, as in MONAI.
        weight: a weight for each class, ``[C]``, a tensor of any floating dtype or a list of numbers; it multiplies
            the terms of the class. Default: None, every weight is 1.
        smooth_nr, smooth_dr: added to numerator and denominator of precision and sensitivity. One whose numerator and
            denominator are both 0 is 1, with zero gradient.
        smooth: added to the denominator of their harmonic mean, 0 or more.
        others: as in ``segloss.dice_loss``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), rounded to it once; 0-dim, or with
        ``reduction="none"`` of the shape ``[N, C']``, where C' classes have terms, or ``[C']`` with ``batch``; ``[N]``
        or 0-dim without ``per_class``.

    Raises:
        ValueError: ``iterations`` is not in [0, 1000], ``smooth`` is below 0, there is no spatial axis, or more than
            three, or a ``weight`` without ``per_class``.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_loss``.

    Equivalent to:
        ``monai.losses.SoftclDiceLoss(softmax=True, to_onehot_y=True)(input, target)`` with ``per_class=False``

    Example:
        >>> import segloss, torch
        >>> labels = torch.zeros(1, 1, 7, 9, dtype=torch.uint8)  # [N, 1, H, W]
        >>> labels[..., 2:5, :] = 1  # a vessel, three voxels wide
        >>> logits = torch.stack([torch.zeros(1, 7, 9), 6.0 * labels[:, 0] - 3], 1)
        >>> segloss.soft_cldice_loss(logits, labels, include_background=False)
        tensor(0.0219)
        >>> logits[:, 1, :, 4] = -3  # a gap of one voxel
        >>> segloss.soft_cldice_loss(logits, labels, include_background=False)
        tensor(0.0714)

    See also:
        * ``segloss.SoftClDiceLoss``: the same as a module
        * ``segloss.dice_cldice_loss``: with the Dice loss, which clDice needs beside it
        * ``segloss.dice_loss``: overlap of all voxels
    """
    op = "soft_cldice_loss"
    weight = _of_classes(weight, input)
    walk = _Walk(
        dim, Upsampling(), activation, LabelOptions(ignore_index, label_map, regions), include_background, batch
    )
    form = _Form(iterations, per_class, smooth_nr, smooth_dr, smooth)
    _check_form(op, form, weight, reduction)
    sums = _sums_of_skeletons(op, input, target, weight, voxel_weight, walk, form)
    terms = _cldice_terms(sums, form)
    return _reduced(terms, weight, reduction, sums.whole).to(_result_dtype(input))


@documented(like=soft_cldice_loss)
def dice_cldice_loss(
    input: Tensor,
    target: Tensor,
    *,
    lambda_dice: float = 0.5,
    lambda_cldice: float = 0.5,
    iterations: int = 3,
    per_class: bool = True,
    activation: Activation | None = "softmax",
    include_background: bool = True,
    batch: bool = False,
    weight: ClassWeight | None = None,
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
    smooth: float = 1e-4,
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
) -> Tensor:
    """Compound loss: Dice plus soft clDice.

    The weighted sum of ``segloss.dice_loss`` and ``segloss.soft_cldice_loss``::

        loss = lambda_dice * dice_loss + lambda_cldice * soft_cldice_loss

    Source: Shit et al. 2021, "clDice - a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation",
    CVPR, arXiv:2003.07311, whose alpha is lambda_cldice, with ``lambda_dice = 1 - alpha``.

    Args:
        lambda_dice, lambda_cldice: the factors of the two terms.
        per_class: whether each class has a clDice term of its own; it always has a Dice term.
        smooth_nr, smooth_dr: added to numerator and denominator of the Dice loss, of precision and of sensitivity.
        reduction: ``"mean"`` or ``"sum"`` of the terms, or with ``per_class`` ``"none"`` for the terms themselves. The
            mean of an input without a voxel is nan, with zero gradient.
        others: as in ``segloss.soft_cldice_loss``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), rounded to it once; 0-dim, or with
        ``reduction="none"`` of the shape ``[N, C']``, or ``[C']`` with ``batch``, where C' classes have terms.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.soft_cldice_loss``.

    Equivalent to:
        ``monai.losses.SoftDiceclDiceLoss(softmax=True, to_onehot_y=True)(input, target)`` with ``per_class=False``

    Example:
        >>> import segloss, torch
        >>> labels = torch.zeros(1, 1, 7, 9, dtype=torch.uint8)  # [N, 1, H, W]
        >>> labels[..., 2:5, :] = 1  # a vessel, three voxels wide
        >>> logits = torch.stack([torch.zeros(1, 7, 9), 6.0 * labels[:, 0] - 3], 1)
        >>> segloss.dice_cldice_loss(logits, labels, include_background=False)
        tensor(0.0379)

    See also:
        * ``segloss.DiceClDiceLoss``: the same as a module
        * ``segloss.soft_cldice_loss``, ``segloss.dice_loss``: the two terms
    """
    op = "dice_cldice_loss"
    weight = _of_classes(weight, input)
    walk = _Walk(
        dim, Upsampling(), activation, LabelOptions(ignore_index, label_map, regions), include_background, batch
    )
    form = _Form(iterations, per_class, smooth_nr, smooth_dr, smooth)
    _check_numbers(op, lambda_dice=lambda_dice, lambda_cldice=lambda_cldice)
    _check_form(op, form, weight if per_class else None, reduction)
    if reduction == "none" and not per_class:
        raise ValueError(
            f"{op}: expected reduction 'mean' or 'sum' without per_class, got 'none'. The terms have different shapes; "
            "call dice_loss and soft_cldice_loss"
        )
    sums = _sums_of_skeletons(op, input, target, weight, voxel_weight, walk, form, with_dice=True)
    dice = _reduced(_dice_terms(sums.dice, _DiceTerms(False, smooth_nr, smooth_dr)), weight, reduction, sums.whole)
    cldice = _reduced(_cldice_terms(sums, form), weight if per_class else None, reduction, sums.whole)
    return (lambda_dice * dice + lambda_cldice * cldice).to(_result_dtype(input))


class _Form(NamedTuple):
    """How to compute clDice terms; see the keywords of the loss."""

    iterations: int
    per_class: bool
    smooth_nr: float
    smooth_dr: float
    smooth: float


class _Sums(NamedTuple):
    """Sums over voxels, [N, C'] or [C'], and the data that they were computed from."""

    of_predicted: SoftStats  # S(p) with g
    of_target: SoftStats  # p with S(g)
    dice: SoftStats  # p with g
    whole: _Whole


class _Sides(NamedTuple):
    """Prediction and target, [N, C', *] with the classes in dimension 1, and the voxel weights [N, *]."""

    p: Tensor
    g: Tensor
    voxel_weight: Tensor | None


def _check_form(op: str, form: _Form, weight: Tensor | None, reduction: str) -> None:
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    _check_flags(op, per_class=form.per_class)
    _check_numbers(op, smooth_nr=form.smooth_nr, smooth_dr=form.smooth_dr, smooth=form.smooth)
    if type(form.iterations) is bool or not isinstance(form.iterations, int | torch.SymInt):
        raise TypeError(f"{op}: expected iterations to be an int, got {type(form.iterations).__name__}")
    if not 0 <= form.iterations <= 1000:
        raise ValueError(f"{op}: expected iterations in [0, 1000], got {form.iterations}")
    if not isinstance(form.smooth, Tensor) and not form.smooth >= 0:
        raise ValueError(f"{op}: expected smooth of 0 or more, got {form.smooth}")
    if weight is not None and not form.per_class:
        raise ValueError(f"{op}: expected no weight without per_class, where classes have no terms, got one")


def _sums_of_skeletons(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    walk: _Walk,
    form: _Form,
    with_dice: bool = False,
) -> _Sums:
    input, target, voxel_weight = _plain(input), _plain(target), _plain(voxel_weight)
    p, g, v = _sides(op, input, target, weight, voxel_weight, walk)
    is_of_one = input.dim() > 1 and input.shape[walk.dim] == 1  # it keeps its term, with a warning
    of_g = _of_maps(walk)._replace(dim=1, activation=None, include_background=walk.include_background or not is_of_one)
    s_g = _ops.soft_skeleton(g, form.iterations)
    of_target, whole, _ = _sums(op, p, s_g, None, v, of_g)
    dice = _sums(op, p, g, None, v, of_g)[0] if with_dice else of_target
    del s_g
    of_predicted, *_ = _sums(op, _ops.soft_skeleton(p, form.iterations), g, None, v, of_g)
    return _Sums(of_predicted, of_target, dice, whole)


def _sides(
    op: str, input: Tensor, target: Tensor, weight: Tensor | None, voxel_weight: Tensor | None, walk: _Walk
) -> _Sides:
    """Reads and checks the arguments. Voxels that do not count have p = g = 0; without background, class 0 is left out
    here, so that nobody looks for its skeleton."""
    dim = walk.dim
    if _is_soft(input, target, walk):
        _sums(op, input.detach(), target, weight, voxel_weight, walk._replace(include_background=True))
        _steps(op, None, input)
        counts, g, v = None, target.reshape(input.shape).to(_wide(input)), voxel_weight
    else:
        read = _read_target(op, input, target, weight, voxel_weight, walk, None)
        counts, g, v = read.counts, _is_class(read, input, dim), read.voxel_weight
    dim %= input.dim()
    if voxel_weight is not None:
        has_weight = voxel_weight.reshape(*input.shape[:dim], *input.shape[dim + 1 :]) != 0
        counts = has_weight if counts is None else counts & has_weight
    p = _activated(input, walk, counts)
    if counts is not None:
        g, v = g.masked_fill(~counts.unsqueeze(dim), 0), _with_zeros(voxel_weight, counts)
    if not walk.include_background and input.shape[dim] > 1:
        p, g = (each.narrow(dim, 1, input.shape[dim] - 1) for each in (p, g))
    return _Sides(p.movedim(dim, 1), g.movedim(dim, 1), v)


def _is_soft(input: Tensor, target: Tensor, walk: _Walk) -> bool:
    """Whether the target holds a floating mask for each class, or class probabilities."""
    is_map = walk.labels.label_map is not None or walk.labels.regions is not None
    if is_map or not (isinstance(input, Tensor) and isinstance(target, Tensor) and target.is_floating_point()):
        return False
    if target.is_nested or input.is_nested or target.numel() != input.numel():
        return False
    return target.shape == input.shape or (walk.activation != "softmax" and target.dim() == input.dim() - 1)


def _cldice_terms(sums: _Sums, form: _Form) -> Tensor:
    _, per_class, smooth_nr, smooth_dr, smooth = form
    parts = [sums.of_predicted.intersection, sums.of_predicted.prediction]
    parts += [sums.of_target.intersection, sums.of_target.target]
    if not per_class:
        parts = [each.sum(-1) for each in parts]
    precise, predicted, found, present = parts
    precision = 1 - _terms(1, precise + smooth_nr, predicted + smooth_dr, smooth_nr)
    sensitivity = 1 - _terms(1, found + smooth_nr, present + smooth_dr, smooth_nr)
    both = precision + sensitivity + smooth
    return 1 - 2 * precision * sensitivity / both.masked_fill(both == 0, 1)
