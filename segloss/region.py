"""The losses of regions: what the prediction and the target of a class share, from one walk over the logits."""

import warnings
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from segloss._distributed import check_process_group, is_dtensor, sum_over_ranks, sums_or_zeros
from segloss._docs import documented
from segloss.functional import (
    _REDUCTIONS,
    Activation,
    Empty,
    Reduction,
    _check_choice,
    _check_flags,
    _check_gamma,
    _check_numbers,
    _check_types,
    _is_zero,
    _mean_or_sum,
    _result_dtype,
    _soft_stats,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

WeightType = Literal["square", "simple", "uniform"]

# Sums below it are as good as none: its square is the smallest normal float32, so that above it no derivative of a
# quotient overflows or is 0 / 0 where it is computed in, or rounded to, float32.
_LEAST_SUM = 2.0**-63


class SoftStats(NamedTuple):
    """What :func:`segloss.soft_stats` returns: sums over the voxels of each sample and class, each ``[N, C]``.

    ``tp``, ``fp`` and ``fn`` are the soft counts of true positives, false positives and false negatives. They are
    counts of plain sums, not of those with ``squared=True``.
    """

    intersection: Tensor
    prediction: Tensor
    target: Tensor

    @property
    def tp(self) -> Tensor:
        return self.intersection

    @property
    def fp(self) -> Tensor:
        return self.prediction - self.intersection

    @property
    def fn(self) -> Tensor:
        return self.target - self.intersection


@documented()
def soft_stats(
    input: Tensor,
    target: Tensor,
    *,
    activation: Activation | None = "softmax",
    squared: bool = False,
    ignore_index: int = -100,
    voxel_weight: Tensor | None = None,
    dim: int = 1,
) -> SoftStats:
    r"""What region losses are made of: three sums for each sample and class, from one walk over the logits.

    With :math:`p` the activated input, :math:`g` the target, one-hot where it holds labels, and :math:`v` the voxel
    weights, sums over the voxels of sample n that count give

    .. math::
        I_{nc} = \sum v\, p_c\, g_c, \qquad P_{nc} = \sum v\, p_c, \qquad T_{nc} = \sum v\, g_c

    or, ``squared``, :math:`P_{nc} = \sum v\, p_c^2` and :math:`T_{nc} = \sum v\, g_c^2`.

    The gradient is one more walk; between the two nothing is kept but input, target and voxel weights themselves.

    Args:
        input: logits ``[N, C, *]`` with any number of spatial sizes; float64, float32, float16 or bfloat16, of any
            strides. ``[C]`` is a batch of one voxel.
        target: one of

            * class labels ``[N, *]`` or ``[N, 1, *]``: any integer dtype, bool, or floating with integral values;
            * with softmax: class probabilities, floating, or exact one-hot labels, integer, of input's shape;
            * with sigmoid or without activation: a mask for each class, of input's shape: floating, or integer of 0
              and 1, where a voxel that holds ``ignore_index`` in any class does not count. Of one channel a map of 0
              and 1, ``[N, *]`` or ``[N, 1, *]``, is the mask of the foreground, whatever its dtype.

            Here, but not in the losses, a floating target of input's shape may hold any finite numbers: sums of p times
            a map are what boundary losses are made of.
        activation: ``"softmax"`` over two or more classes, ``"sigmoid"``, or None for input that
            holds probabilities, each in [0, 1].
        squared: whether P and T are sums of squares.
        ignore_index: label of the voxels that do not count.
        voxel_weight: a weight for each voxel, of the labels' shape; voxels of weight 0 do not count. Without gradient.
            Default: 1.
        dim: the class dimension of input.

    Returns:
        ``SoftStats(intersection, prediction, target)``, a named tuple of I, P and T with the properties ``tp``, ``fp``
        and ``fn``; each ``[N, C]``, float64 for float64 input, else float32. The first two are differentiable in input.

    Raises:
        ValueError: a softmax over one channel.
        TypeError, IndexError, ValueError, RuntimeError: as :func:`segloss.cross_entropy`; a RuntimeError, too, for an
            integer mask of other values than 0 and 1, a map that is not finite, an input outside [0, 1] without
            activation, and an ``ignore_index`` that its mask cannot hold: 0 or 1 in integer masks, any from 0 on in
            floating ones.

    Example:
        A loss that segloss does not have, one minus the correlation of Matthews (Abhishek and Hamarneh, "Matthews
        Correlation Coefficient Loss for Deep Convolutional Networks", 2021), at the speed of those that it has:

        >>> import segloss, torch
        >>> def matthews_loss(logits, labels):
        ...     s = segloss.soft_stats(logits, labels, ignore_index=255)
        ...     voxels = s.prediction.sum(1, keepdim=True)  # in each voxel the probabilities sum to 1
        ...     tn = voxels - s.tp - s.fp - s.fn
        ...     covariance = s.tp * tn - s.fp * s.fn
        ...     variances = (s.tp + s.fp) * (s.tp + s.fn) * (tn + s.fp) * (tn + s.fn)
        ...     return 1 - (covariance / (variances + 1).sqrt()).mean()
        >>> labels = torch.tensor([[[0, 1], [2, 255]]], dtype=torch.uint8)
        >>> logits = torch.tensor([[[[9.0, 0], [0, 0]], [[0, 9], [0, 0]], [[0, 0], [9, 0]]]], requires_grad=True)
        >>> loss = matthews_loss(logits, labels)
        >>> loss.backward()
        >>> print(f"{loss.item():.4f}")
        0.1059
    """
    walk = _Walk(dim, activation, ignore_index, squared=squared, any_finite_target=True)
    stats, *_ = _sums("soft_stats", input, target, None, voxel_weight, walk)
    dtype = torch.promote_types(input.dtype, torch.float32)
    return SoftStats(*(sums.to(dtype) for sums in stats))


@documented(like=soft_stats)
def dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    activation: Activation | None = "softmax",
    include_background: bool = True,
    squared: bool = False,
    jaccard: bool = False,
    soft_label: bool = False,
    batch: bool = False,
    weight: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Soft Dice loss of logits against labels as they come, against class probabilities, or against masks.

    For each sample and class, with the sums I, P and T of :func:`segloss.soft_stats`

    .. math::
        l_{nc} = w_c \left(1 - \frac{2 I_{nc} + \mathrm{smooth\_nr}}{P_{nc} + T_{nc} + \mathrm{smooth\_dr}}\right)

    (Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation", 2016,
    with ``squared=True``), and with ``jaccard`` the soft Jaccard loss, whose denominator is
    :math:`2 (P_{nc} + T_{nc} - I_{nc}) + \mathrm{smooth\_dr}`.

    Args:
        input, target: as :func:`segloss.soft_stats` takes them; floating masks and class probabilities in [0, 1].
        include_background: whether class 0 is among the terms. It takes part in the softmax in any case, and is kept,
            with a UserWarning, where it is the only class.
        squared: whether the denominator sums squares.
        jaccard: whether to compute the Jaccard loss instead.
        soft_label: whether I is the sum of :math:`(p + g - |p - g|) / 2`, the smaller one of p and g, instead of
            :math:`p\, g` where target holds class probabilities :math:`g`. The loss is then smallest at :math:`p = g`;
            with products a p that is surer than g can have the smaller loss. Labels, integer masks and ``squared`` sums
            are not affected.
        batch: whether a class has one term for the whole batch, of sums over its samples, instead of one for each
            sample.
        weight: a weight for each class ``[C]``, which multiplies its terms; that of a class without a term is not used.
            Default: 1.
        smooth_nr, smooth_dr: added to the numerator and to the denominator. A sample without a voxel that counts has
            the terms ``1 - smooth_nr / smooth_dr``. A term whose numerator and denominator are both 0 is 0, with zero
            gradient.
        reduction: ``"mean"`` of the terms, their ``"sum"``, or ``"none"`` for the terms themselves: ``[N, C']``, with
            ``batch`` ``[C']``, where C' classes have terms. The mean of an input without a voxel is nan, with zero
            gradient.
        voxel_weight: a weight for each voxel, of the labels' shape; it multiplies the voxel's part of every sum.
            Voxels of weight 0 do not count. Without gradient. Default: 1.
        process_group: the :class:`torch.distributed.ProcessGroup` whose ranks hold parts of the batch, of any sizes.
            Each rank gets the loss of the whole, and the mean of their gradients, as DistributedDataParallel takes it,
            is the gradient of the whole; with ``batch`` the parts may be of the same volumes, too. Without ``batch``,
            ``reduction="none"`` gives the terms of this rank's samples. Errors are shared as by
            :func:`segloss.cross_entropy`. None is this process alone.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), rounded to it once.

    Raises:
        ValueError: an option has an unknown value.
        RuntimeError: a floating mask or class probability is nan or outside [0, 1] by more than four times the epsilon
            of its dtype.
        TypeError, IndexError, ValueError, RuntimeError: as :func:`segloss.soft_stats`.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)  # [N, 1, H, W]
        >>> segloss.dice_loss(logits, labels)
        tensor(0.6030)
        >>> segloss.dice_loss(logits, labels, reduction="none")
        tensor([[0.5634, 0.6427]])
    """
    op = "dice_loss"
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    _check_flags(op, jaccard=jaccard)
    _check_numbers(op, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    walk = _Walk(dim, activation, ignore_index, include_background, batch, process_group, soft_label, squared)
    stats, whole, _ = _sums(op, input, target, weight, voxel_weight, walk)
    terms = _dice_terms(stats, _DiceTerms(jaccard, smooth_nr, smooth_dr))
    return _reduced(terms, weight, reduction, whole).to(_result_dtype(input))


@documented(like=dice_loss)
def generalized_dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    w_type: WeightType = "square",
    activation: Activation | None = "softmax",
    include_background: bool = True,
    soft_label: bool = False,
    batch: bool = False,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Generalized Dice loss: one term for each sample, in which small classes weigh as much as large ones.

    With the sums I, P and T of :func:`segloss.soft_stats`

    .. math::
        l_n = 1 - \frac{2 \sum_c w_{nc} I_{nc} + \mathrm{smooth\_nr}}
                       {\sum_c w_{nc} (P_{nc} + T_{nc}) + \mathrm{smooth\_dr}},
        \qquad w_{nc} = T_{nc}^{-2},\ T_{nc}^{-1}\ \text{or}\ 1

    (Sudre et al., "Generalised Dice overlap as a deep learning loss function for highly unbalanced segmentations",
    2017). A class that the sample lacks, whose volume is below 2**-63, has the largest finite weight of the sample's
    classes; if it lacks all, all weights are 1.

    Args:
        w_type: ``"square"`` (the reciprocal of the squared volume), ``"simple"`` (the reciprocal of the volume) or
            ``"uniform"`` (1).
        include_background: whether class 0 is among the sums over the classes, and among the weights.
        batch: whether there is one term for the whole batch, of sums over its samples.
        reduction: ``"mean"`` of the terms, their ``"sum"``, or ``"none"`` for the terms themselves: ``[N]``, with
            ``batch`` ``[]``.

    The result and the errors are those of :func:`segloss.dice_loss`.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8)
        >>> segloss.generalized_dice_loss(logits, labels)
        tensor(0.5794)
    """
    op = "generalized_dice_loss"
    _check_choice(op, "w_type", w_type, ("square", "simple", "uniform"))
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    _check_numbers(op, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    walk = _Walk(dim, activation, ignore_index, include_background, batch, process_group, soft_label)
    stats, whole, _ = _sums(op, input, target, None, voxel_weight, walk)
    w = _volume_weights(stats.target, w_type)
    shared = 2 * (w * stats.intersection).sum(-1) + smooth_nr
    sizes = (w * (stats.prediction + stats.target)).sum(-1) + smooth_dr
    terms = _terms(1, shared, sizes, smooth_nr)
    return _reduced(terms, None, reduction, whole).to(_result_dtype(input))


@documented(like=dice_loss)
def tversky_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    activation: Activation | None = "softmax",
    include_background: bool = True,
    soft_label: bool = False,
    batch: bool = False,
    weight: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Tversky loss: Dice with a price of its own for false positives and for false negatives.

    For each sample and class, with :math:`\mathrm{TP} = I`, :math:`\mathrm{FP} = P - I` and :math:`\mathrm{FN} = T - I`
    of :func:`segloss.soft_stats`

    .. math::
        l_{nc} = w_c \left(1 - \frac{\mathrm{TP} + \mathrm{smooth\_nr}}
            {\mathrm{TP} + \alpha\, \mathrm{FP} + \beta\, \mathrm{FN} + \mathrm{smooth\_dr}}\right)^\gamma

    (Salehi et al., "Tversky loss function for image segmentation using 3D fully convolutional deep networks", 2017;
    with ``gamma`` the focal Tversky loss of Abraham and Khan, "A Novel Focal Tversky loss function with improved
    Attention U-Net for lesion segmentation", 2018, who write :math:`1 / \gamma` for the exponent and exchange
    :math:`\alpha` and :math:`\beta`.) ``alpha = beta = 0.5`` is the Dice loss with doubled smoothing, ``alpha = beta =
    1`` the Jaccard loss.

    Args:
        alpha: the price of a false positive.
        beta: the price of a false negative.
        gamma: the exponent, from 0 on; below 1 small terms grow, above 1 they shrink. Where the base is 0, so is the
            gradient; with another gamma than 1, a base below 0 counts as 0.

    The result and the errors are those of :func:`segloss.dice_loss`; a gamma below 0 is a
    ValueError.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
        >>> segloss.tversky_loss(logits, labels, alpha=0.3, beta=0.7)
        tensor(0.6024)
    """
    op = "tversky_loss"
    _check_gamma(op, gamma)
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    _check_numbers(op, alpha=alpha, beta=beta, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    walk = _Walk(dim, activation, ignore_index, include_background, batch, process_group, soft_label)
    stats, whole, _ = _sums(op, input, target, weight, voxel_weight, walk)
    errors = alpha * stats.fp + beta * stats.fn
    terms = _terms(1, stats.tp + smooth_nr, stats.tp + errors + smooth_dr, smooth_nr, gamma)
    return _reduced(terms, weight, reduction, whole).to(_result_dtype(input))


@documented(like=dice_loss)
def dice_ce_loss(
    input: Tensor,
    target: Tensor,
    *,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    label_smoothing: float = 0.0,
    empty: Empty = "nan",
    activation: Activation = "softmax",
    include_background: bool = True,
    squared: bool = False,
    jaccard: bool = False,
    soft_label: bool = False,
    batch: bool = False,
    weight: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Dice loss plus cross entropy, both from one walk over the logits, and their gradient from another.

    .. math::
        \lambda_\mathrm{dice}\, \mathrm{dice\_loss} + \lambda_\mathrm{ce}\, \mathrm{cross\_entropy}

    (Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", 2021.)
    With ``activation="sigmoid"`` the second term is the binary cross entropy with logits, weighted by ``weight`` and
    averaged over voxels and classes.

    Args:
        lambda_dice, lambda_ce: the factors of the two terms.
        label_smoothing: in [0, 1], of the second term. With sigmoid, a target g becomes ``(1 - s) g + s / 2``.
        empty: the second term's mean over no voxel that counts, or over zero weights, and the mean of both for an input
            without a voxel: ``"nan"`` as torch, or ``"zero"``. With both the gradient is zero.
        activation: ``"softmax"`` or ``"sigmoid"``; the second term needs logits.
        include_background: whether class 0 is among the terms of Dice; in cross entropy it always is.
        weight: a weight for each class ``[C]``, in both terms. Default: 1.
        reduction: ``"mean"`` or ``"sum"``, of both terms.

    The result and the errors are those of :func:`segloss.dice_loss`.

    Equivalent to:
        ``lambda_dice * dice_loss(input, target, ...) + lambda_ce * cross_entropy(input, target, ...)``

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
        >>> segloss.dice_ce_loss(logits, labels)
        tensor(1.6096)
    """
    op = "dice_ce_loss"
    _check_numbers(op, lambda_dice=lambda_dice, lambda_ce=lambda_ce)
    walk = _Walk(dim, activation, ignore_index, include_background, batch, process_group, soft_label, squared)
    voxel_loss = _VoxelLoss("cross_entropy", empty, label_smoothing=label_smoothing)
    terms = _DiceTerms(jaccard, smooth_nr, smooth_dr)
    dice, ce = _dice_and(voxel_loss, op, input, target, weight, voxel_weight, walk, terms, reduction)
    return (lambda_dice * dice + lambda_ce * ce).to(_result_dtype(input))


@documented(like=dice_ce_loss)
def dice_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    lambda_dice: float = 1.0,
    lambda_focal: float = 1.0,
    gamma: float = 2.0,
    empty: Empty = "nan",
    activation: Activation = "softmax",
    include_background: bool = True,
    squared: bool = False,
    jaccard: bool = False,
    soft_label: bool = False,
    batch: bool = False,
    weight: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Dice loss plus focal loss, both from one walk over the logits, and their gradient from another.

    .. math::
        \lambda_\mathrm{dice}\, \mathrm{dice\_loss} + \lambda_\mathrm{focal}\, \mathrm{focal\_loss}

    (Zhu et al., "AnatomyNet: Deep learning for fast and fully automated whole-volume segmentation of head and neck
    anatomy", 2019.) Both terms have the same activation.

    Args:
        lambda_dice, lambda_focal: the factors of the two terms.
        gamma: the exponent of :func:`segloss.focal_loss`. With softmax and gamma > 0, target holds class labels or
            exact one-hot ones.

    The result and the errors are those of :func:`segloss.dice_ce_loss`; a gamma below 0 is a
    ValueError.

    Equivalent to:
        ``lambda_dice * dice_loss(input, target, ...) + lambda_focal * focal_loss(input, target, ...)``

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
        >>> segloss.dice_focal_loss(logits, labels)
        tensor(1.0716)
    """
    op = "dice_focal_loss"
    _check_gamma(op, gamma)
    _check_numbers(op, lambda_dice=lambda_dice, lambda_focal=lambda_focal)
    walk = _Walk(dim, activation, ignore_index, include_background, batch, process_group, soft_label, squared)
    voxel_loss = _VoxelLoss("focal_loss", empty, gamma=gamma)
    terms = _DiceTerms(jaccard, smooth_nr, smooth_dr)
    dice, focal = _dice_and(voxel_loss, op, input, target, weight, voxel_weight, walk, terms, reduction)
    return (lambda_dice * dice + lambda_focal * focal).to(_result_dtype(input))


class _Walk(NamedTuple):
    """What sums are taken, and over what; see the losses' keywords."""

    dim: int
    activation: str | None
    ignore_index: int
    include_background: bool = True
    batch: bool = False
    process_group: "ProcessGroup | None" = None
    soft_label: bool = False
    squared: bool = False
    any_finite_target: bool = False  # of a floating target's values


class _VoxelLoss(NamedTuple):
    """A loss of each voxel, in the same walk: cross entropy, or by its options another."""

    name: str
    empty: str
    gamma: float = 0.0
    label_smoothing: float = 0.0


class _DiceTerms(NamedTuple):
    """What becomes of the sums."""

    jaccard: bool
    smooth_nr: float
    smooth_dr: float


def _dice_and(
    voxel_loss: _VoxelLoss,
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    walk: _Walk,
    terms: _DiceTerms,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Dice, and a loss of the voxels."""
    second = voxel_loss.name
    advice = f"The second term needs logits; for probabilities p write dice_loss(p, ..., activation=None) + {second}"
    _check_choice(op, "activation", walk.activation, ("softmax", "sigmoid"), f"{advice}(p.log(), ...)")
    advice = f"The terms have different shapes; call dice_loss and {second}"
    _check_choice(op, "reduction", reduction, ("mean", "sum"), advice)
    empty_zero = _is_zero(op, voxel_loss.empty)
    _check_flags(op, jaccard=terms.jaccard)
    _check_numbers(op, smooth_nr=terms.smooth_nr, smooth_dr=terms.smooth_dr)
    stats, whole, (loss, total) = _sums(op, input, target, weight, voxel_weight, walk, voxel_loss)
    dice = _reduced(_dice_terms(stats, terms), weight, reduction, whole, empty_zero)
    return dice, _mean_or_sum(loss, total, reduction, empty_zero)


class _Whole(NamedTuple):
    """What sums are of."""

    op: str
    process_group: "ProcessGroup | None"
    num_logits: int | Tensor  # of this rank, or, a tensor, of all ranks, whose sums they are then
    refused: list[Exception]  # see sum_over_ranks


def _sums(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    walk: _Walk,
    voxel_loss: _VoxelLoss | None = None,
) -> tuple[SoftStats, _Whole, list[Tensor]]:
    """The sums of the classes that count, [N, C'] or [C'], and what they are of; with `voxel_loss` the sums of the
    losses and of their weights, too.

    They are float64 where a kernel takes them, whatever input is, so that a loss is rounded once, when it is finished.
    """
    dim, activation, ignore_index, include_background, batch, process_group, soft_label, squared, any_finite = walk
    gamma, label_smoothing = (voxel_loss.gamma, voxel_loss.label_smoothing) if voxel_loss else (0.0, 0.0)
    _check_types(
        op, input, target, weight, voxel_weight, ignore_index, dim, gamma=gamma, label_smoothing=label_smoothing
    )
    _check_flags(op, include_background=include_background, batch=batch, squared=squared, soft_label=soft_label)
    check_process_group(op, process_group)
    _check_choice(op, "activation", activation, ("softmax", "sigmoid", None))
    options = (dim, activation or "none", squared, ignore_index, voxel_loss is not None, gamma, label_smoothing)
    arguments = (input, target, weight, voxel_weight, *options, soft_label, any_finite, op)
    refused: list[Exception] = []
    *sums, losses, totals = sums_or_zeros(
        process_group, refused, input, lambda: _sizes_of_sums(input, dim), _soft_stats, *arguments
    )
    voxel_sums = [losses.sum(), totals.sum()] if voxel_loss else []
    if is_dtensor(input):
        sums = sum_over_ranks(op, process_group, refused, *sums)
        voxel_sums = sum_over_ranks(op, process_group, refused, *voxel_sums) if voxel_loss else []
    if not include_background:
        sums = _without_background(op, sums)
    num_logits = input.numel()
    if batch:
        sums = [each.sum(0) for each in sums]
    if process_group is not None and batch:
        counts = sums[0].new_full((), num_logits)
        shared = sum_over_ranks(op, process_group, refused, *sums, counts, *voxel_sums)
        return SoftStats(*shared[:3]), _Whole(op, process_group, shared[3], refused), shared[4:]
    if process_group is not None and voxel_loss:
        voxel_sums = sum_over_ranks(op, process_group, refused, *voxel_sums)
    return SoftStats(*sums), _Whole(op, process_group, num_logits, refused), voxel_sums


def _sizes_of_sums(input: Tensor, dim: int) -> list[tuple[int, ...]] | None:
    """Of one sample. None where `dim` is no dimension of input."""
    along = 0 if input.dim() == 1 else dim
    if not -input.dim() <= along < input.dim():
        return None
    return [(1, input.shape[along])] * 3 + [(1,)] * 2


def _without_background(op: str, sums: list[Tensor]) -> list[Tensor]:
    if sums[0].shape[1] > 1:
        return [each[:, 1:] for each in sums]
    if not torch.compiler.is_compiling():
        warnings.warn(f"{op}: include_background=False is ignored, as input has one class", UserWarning, stacklevel=4)
    return sums


def _dice_terms(stats: SoftStats, terms: _DiceTerms) -> Tensor:
    """1 - (2 I + smooth_nr) / sizes, halved above and below with jaccard: an operation on a few numbers takes as long
    as one on thousands, and so does its gradient, of which target has none.
    """
    jaccard, smooth_nr, smooth_dr = terms
    shared = stats.intersection + smooth_nr / 2
    if jaccard:
        sizes = stats.prediction + (stats.target + smooth_dr / 2) - stats.intersection
    else:
        sizes = stats.prediction + (stats.target + smooth_dr)
    return _terms(1 if jaccard else 2, shared, sizes, smooth_nr)


def _terms(factor: int, shared: Tensor, sizes: Tensor, smooth_nr: float, gamma: float = 1.0) -> Tensor:
    """(1 - factor shared / sizes) ** gamma; where both are 0, that is 0, and so is its gradient.

    A smoothed numerator is not 0. (A tensor's value is not asked for: the host would wait for it.) Where the numerator
    alone is 0, as probabilities that underflow leave it, the term is 1 with gradient 0 at any size.
    """
    one = shared.new_ones(())
    if not isinstance(smooth_nr, Tensor) and smooth_nr != 0:
        return _power(torch.addcdiv(one, shared, sizes, value=-factor), gamma)
    is_least = (shared == 0) & (sizes.abs() < _LEAST_SUM)
    quotients = torch.addcdiv(one, shared.masked_fill(is_least, 0), sizes.masked_fill(is_least, 1), value=-factor)
    return _power(quotients, gamma).masked_fill(is_least & (sizes == 0), 0)


def _volume_weights(volume: Tensor, w_type: str) -> Tensor:
    if w_type == "uniform" or volume.shape[-1] == 0:
        return torch.ones_like(volume)
    is_absent = volume.abs() < _LEAST_SUM
    w = (volume if w_type == "simple" else volume.square()).masked_fill(is_absent, 1).reciprocal()
    largest = w.masked_fill(is_absent, 0).amax(-1, keepdim=True)
    return torch.where(is_absent, torch.where(largest > 0, largest, 1.0), w)


def _power(terms: Tensor, gamma: float) -> Tensor:
    """terms ** gamma, but with gradient 0 from the rounding of 1 down, where that of a root has no bound."""
    if gamma == 1:
        return terms
    least = torch.finfo(terms.dtype).eps
    return torch.where(terms <= least, 0.0**gamma, terms.clamp_min(least) ** gamma)


def _reduced(terms: Tensor, weight: Tensor | None, reduction: str, whole: _Whole, empty_zero: bool = False) -> Tensor:
    """The terms, their sum or their mean. That over no voxel is nan or 0, with a zero gradient, whatever they are."""
    op, process_group, num_logits, refused = whole
    if weight is not None and not refused:
        terms = terms * weight[weight.shape[0] - terms.shape[-1] :].to(terms.dtype)
    if reduction == "none":
        if refused:
            raise refused.pop()
        return terms
    if process_group is None or isinstance(num_logits, Tensor):
        if reduction == "sum":
            return terms.sum()
        mean = terms.mean()
    else:
        counts = (terms.new_full((), terms.numel()), terms.new_full((), num_logits))
        total, count, num_logits = sum_over_ranks(op, process_group, refused, terms.sum(), *counts)
        if reduction == "sum":
            return total
        mean = total / count
    if not isinstance(num_logits, Tensor):
        if not torch.compiler.is_compiling() and num_logits > 0:  # a graph would be tied to what is asked of sizes
            return mean
        num_logits = terms.new_full((), num_logits)
    return torch.where(num_logits == 0, 0.0 if empty_zero else torch.nan, mean)
