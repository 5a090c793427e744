"""Region losses (Dice family), and the sums that they are computed from; the kernels read the logits once."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from segloss._distributed import check_process_group, is_dtensor, sum_over_ranks, sums_or_zeros
from segloss._docs import documented
from segloss._label_sets import LabelSetIndex, LabelSets, Regions
from segloss._labels import (
    IgnoreIndex,
    LabelMap,
    LabelOptions,
    read_groups,
    read_labels,
)
from segloss._upsample import Upsample, Upsampling, upsampling_code
from segloss.functional import (
    _REDUCTIONS,
    Activation,
    ClassWeight,
    Empty,
    Reduction,
    _by_class,
    _check_choice,
    _check_flags,
    _check_gamma,
    _check_numbers,
    _check_types,
    _is_zero,
    _mean_or_sum,
    _of_classes,
    _plain,
    _result_dtype,
    _soft_stats,
    _weights_of_terms,
    cross_entropy,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

WeightType = Literal["square", "simple", "uniform"]

# Smaller sums count as 0. The square of this one is the smallest normal float32: above it, no derivative of a quotient
# overflows or is 0 / 0 when it is computed in float32, or rounded to it.
_LEAST_SUM = 2.0**-63


class SoftStats(NamedTuple):
    """Three sums over the voxels of each sample and class: the result of ``segloss.soft_stats``.

    The properties ``tp``, ``fp`` and ``fn`` are soft counts of true positives, false positives and false negatives::

        tp = intersection
        fp = prediction - intersection
        fn = target - intersection

    They are meaningful for plain sums only, not with ``squared=True``.

    Args:
        intersection: I, the sums of prediction times target, ``[N, C]``.
        prediction: P, the sums of the prediction, ``[N, C]``.
        target: T, the sums of the target, ``[N, C]``.

    Example:
        >>> import segloss, torch
        >>> probabilities, labels = torch.tensor([[[0.75, 0.5], [0.25, 0.5]]]), torch.tensor([[0, 1]])
        >>> stats = segloss.soft_stats(probabilities, labels, activation=None)
        >>> stats.prediction, stats.fp
        (tensor([[1.2500, 0.7500]]), tensor([[0.5000, 0.2500]]))

    See also:
        * ``segloss.soft_stats``: computes the sums
    """

    intersection: Tensor
    prediction: Tensor
    target: Tensor

    @property
    def tp(self) -> Tensor:
        """Soft count of true positives, ``[N, C]``."""
        return self.intersection

    @property
    def fp(self) -> Tensor:
        """Soft count of false positives, ``[N, C]``."""
        return self.prediction - self.intersection

    @property
    def fn(self) -> Tensor:
        """Soft count of false negatives, ``[N, C]``."""
        return self.target - self.intersection


@documented(like=cross_entropy)
def soft_stats(
    input: Tensor,
    target: Tensor,
    *,
    activation: Activation | None = "softmax",
    squared: bool = False,
    ignore_index: IgnoreIndex = -100,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    label_sets: LabelSets | None = None,
    label_set_index: LabelSetIndex | None = None,
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
) -> SoftStats:
    """The three sums for each sample and class from which region losses (Dice family) are computed.

    With p the activated input, g the target (one-hot if it holds labels) and v the voxel weights, sums over the voxels
    of a sample that count are::

        I = sum v * p * g
        P = sum v * p      (with squared: sum v * p ** 2)
        T = sum v * g      (with squared: sum v * g ** 2)

    The forward pass reads the logits once, and so does the backward pass. No memory is kept in between apart from
    input, target and voxel weights themselves.

    Args:
        input: logits ``[N, C, *]`` with any number of spatial dimensions; float64, float32, float16 or bfloat16, with
            any strides. ``[C]`` is a batch of one voxel.
        target: one of

            * class labels ``[N, *]`` or ``[N, 1, *]``: any integer dtype, bool, or floating with integral values;
            * with softmax: class probabilities, floating, or exact one-hot labels, integer, of input's shape;
            * with sigmoid or without activation: a mask for each class, of input's shape: floating, or integer of 0 and
              1, where a voxel that holds ``ignore_index`` in any class is ignored. With one channel a map of 0 and 1,
              ``[N, *]`` or ``[N, 1, *]``, is the mask of the foreground, whatever its dtype.

            Here, but not in the losses, a floating target of input's shape may hold any finite numbers: boundary losses
            are made of sums of p times a map.
        activation: ``"softmax"`` over two or more classes, ``"sigmoid"``, or None for input that holds probabilities,
            each in [0, 1].
        squared: whether P and T are sums of squares.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in target; they enter no sum,
            and their gradient is 0.
        voxel_weight: a weight for each voxel, of the labels' shape. Voxels of weight 0 do not count. Must not require
            a gradient. Default: None, every weight is 1.
        regions: with sigmoid or without activation, the classes of each channel's region, one collection for each
            channel, overlapping as they like: ``[(1, 2, 3), (1, 3), (3,)]``. A channel's target is whether the class of
            the voxel, its label or what ``label_map`` makes of it, is in the region; no mask is made. Without
            ``label_map`` labels are 0 to the largest class. Default: None, channels are classes.
        label_sets: with softmax, for partial labels, the classes that a label may be: ``{0: (0, 2, 3)}`` where classes
            2 and 3 are not labelled and lie in the background. Classes that a set joins are one class of that sample,
            the first of them, whose p is the sum of theirs; the others have no sums and no terms (marginal Dice: Shi et
            al. 2021, "Marginal loss and exclusion loss for partially supervised multi-organ segmentation", Medical
            Image Analysis 70). Not with ``squared``. A class without an entry means itself; a class beyond the channels
            is one that only sets have. A sequence has a mapping for each sample. Default: None, every label means
            itself.
        dim: the class dimension of input.
        others: as in ``segloss.cross_entropy``.

    Returns:
        ``SoftStats(intersection, prediction, target)``, a named tuple of I, P and T with the properties ``tp``, ``fp``
        and ``fn``; each ``[N, C]``, float64 for float64 input, else float32. The first two are differentiable in input.

    Raises:
        ValueError: a softmax over one channel.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.cross_entropy``. A RuntimeError also for an
            integer mask with values other than 0 and 1, a map that is not finite, an input outside [0, 1] without
            activation, and an ``ignore_index`` that its mask cannot hold: 0 or 1 in integer masks, any from 0 on in
            floating ones.

    Example:
        A loss that segloss does not have, one minus the Matthews correlation coefficient (Abhishek and Hamarneh 2021,
        "Matthews Correlation Coefficient Loss for Deep Convolutional Networks", arXiv:2010.13454), at the speed of the
        losses that it has:

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

    See also:
        * ``segloss.SoftStats``: the type of the result
        * ``segloss.dice_loss``, ``segloss.generalized_dice_loss``, ``segloss.tversky_loss``: losses made of these sums
    """
    labels = LabelOptions(ignore_index, label_map, regions, label_sets, label_set_index)
    resize = Upsampling(upsample, align_corners)
    walk = _Walk(dim, resize, activation, labels, squared=squared, any_finite_target=True)
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
    weight: ClassWeight | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    label_sets: LabelSets | None = None,
    label_set_index: LabelSetIndex | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """Soft Dice or Jaccard loss of logits against labels, class probabilities or masks.

    For each sample and class, with I = sum v * p * g, P = sum v * p and T = sum v * g over the voxels that count, where
    p is the activated input, g the target, one-hot if it holds labels, and v the voxel weight::

        loss = weight * (1 - (2 * I + smooth_nr) / (P + T + smooth_dr))

    and with ``jaccard``, the numerator and denominator of I / (P + T - I) doubled::

        loss = weight * (1 - (2 * I + smooth_nr) / (2 * (P + T - I) + smooth_dr))

    Source: Milletari et al. 2016, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
    Segmentation", arXiv:1606.04797, whose formula has ``squared=True``.

    Args:
        target: one of

            * class labels ``[N, *]`` or ``[N, 1, *]``: any integer dtype, bool, or floating with integral values;
            * with softmax: class probabilities, floating, each in [0, 1], or exact one-hot labels, integer, of input's
              shape;
            * with sigmoid or without activation: a mask for each class, of input's shape: floating in [0, 1], or
              integer of 0 and 1, where a voxel that holds ``ignore_index`` in any class is ignored. With one channel a
              map of 0 and 1, ``[N, *]`` or ``[N, 1, *]``, is the mask of the foreground, whatever its dtype.
        include_background: whether class 0 has a term. It is part of the softmax in any case. If it is the only class,
            it has a term anyway, with a UserWarning.
        squared: whether P and T are sums of squares, ``sum v * p ** 2`` and ``sum v * g ** 2``; ``soft_label`` has no
            effect then.
        jaccard: whether to compute the Jaccard loss (intersection over union) instead.
        soft_label: whether I is ``sum v * min(p, g)`` instead of ``sum v * p * g`` if target holds class probabilities
            or floating masks g. The loss is then smallest at p = g; with products a p that is more confident than g can
            have the smaller loss. Labels and integer masks are not affected. Source: Wang et al. 2023, "Dice Semimetric
            Losses: Optimizing the Dice Score with Soft Labels", arXiv:2303.16296.
        batch: whether a class has one term for the whole batch, from sums over all samples, instead of one for each
            sample.
        weight: a weight for each class, ``[C]``, a tensor of any floating dtype or a list of numbers; it multiplies
            the terms of the class, if there are any. Default: None, every weight is 1.
        smooth_nr, smooth_dr: added to the numerator and to the denominator. A sample without a voxel that counts has
            the terms ``1 - smooth_nr / smooth_dr``. A term whose numerator and denominator are both 0 is 0, with zero
            gradient.
        reduction: ``"mean"`` or ``"sum"`` of the terms, or ``"none"`` for the terms themselves. The mean of an input
            without a voxel is nan, with zero gradient.
        voxel_weight: a weight for each voxel, of the labels' shape; it multiplies what the voxel adds to each sum.
            Voxels of weight 0 do not count. Must not require a gradient. Default: None, every weight is 1.
        process_group: the ``torch.distributed.ProcessGroup`` whose ranks hold parts of the batch, of any sizes. Each
            rank gets the loss of the whole batch; the mean of the ranks' gradients, which DistributedDataParallel
            computes, is the gradient of the whole batch. With ``batch`` the ranks may also hold parts of the same
            volumes. Without ``batch``, ``reduction="none"`` returns the terms of this rank's samples. It shares errors
            as in ``segloss.cross_entropy``. None is this process alone.
        others: as in ``segloss.soft_stats``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), rounded to it once; 0-dim, or with
        ``reduction="none"`` of the shape ``[N, C']``, or ``[C']`` with ``batch``, where C' classes have terms.

    Raises:
        ValueError: an option has an unknown value.
        RuntimeError: a floating mask or class probability is nan or outside [0, 1] by more than four times the epsilon
            of its dtype.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.soft_stats``.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)  # [N, 1, H, W]
        >>> segloss.dice_loss(logits, labels)
        tensor(0.6030)
        >>> segloss.dice_loss(logits, labels, reduction="none")
        tensor([[0.5634, 0.6427]])
        >>> tumour = torch.tensor([[[[1, 0], [3, 2]]]], dtype=torch.uint8)
        >>> segloss.dice_loss(logits, tumour, activation="sigmoid", regions=[(1, 2, 3), (3,)])
        tensor(0.4654)

    See also:
        * ``segloss.DiceLoss``: the same as a module
        * ``segloss.generalized_dice_loss``: weights classes by their volume
        * ``segloss.tversky_loss``: weights false positives and false negatives
        * ``segloss.dice_ce_loss``, ``segloss.dice_focal_loss``: compound losses
        * ``segloss.dice_score``: the metric
    """
    op = "dice_loss"
    weight = _of_classes(weight, input)
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    _check_flags(op, jaccard=jaccard)
    _check_numbers(op, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    labels = LabelOptions(ignore_index, label_map, regions, label_sets, label_set_index)
    resize = Upsampling(upsample, align_corners)
    walk = _Walk(dim, resize, activation, labels, include_background, batch, process_group, soft_label, squared)
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
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    label_sets: LabelSets | None = None,
    label_set_index: LabelSetIndex | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """Generalized Dice loss: one term for each sample, in which small classes weigh as much as large ones.

    For each sample, with I = sum v * p * g, P = sum v * p and T = sum v * g of each class over the voxels that count,
    where p is the activated input, g the target, one-hot if it holds labels, and v the voxel weight::

        loss = 1 - (2 * sum_c w * I + smooth_nr) / (sum_c w * (P + T) + smooth_dr),   w = 1 / T ** 2, 1 / T or 1

    Source: Sudre et al. 2017, "Generalised Dice overlap as a deep learning loss function for highly unbalanced
    segmentations", arXiv:1707.03237.

    A class that the sample lacks (T below 2**-63) has the largest finite weight of the sample's classes. If the sample
    lacks all classes, all weights are 1.

    Args:
        w_type: the weight w of a class of volume T: ``"square"`` is 1 / T ** 2, ``"simple"`` 1 / T and ``"uniform"`` 1.
        include_background: whether class 0 is in the sums over the classes, and among the weights.
        batch: whether there is one term for the whole batch, from sums over all samples.
        reduction: ``"mean"`` or ``"sum"`` of the terms, or ``"none"`` for the terms themselves. The mean of an input
            without a voxel is nan, with zero gradient.
        others: as in ``segloss.dice_loss``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), 0-dim; with ``reduction="none"`` of the shape
        ``[N]``, or 0-dim with ``batch``.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_loss``.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8)
        >>> segloss.generalized_dice_loss(logits, labels)
        tensor(0.5794)

    See also:
        * ``segloss.GeneralizedDiceLoss``: the same as a module
        * ``segloss.dice_loss``: one term for each class
        * ``segloss.tversky_loss``: weights false positives and false negatives
    """
    op = "generalized_dice_loss"
    _check_choice(op, "w_type", w_type, ("square", "simple", "uniform"))
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    _check_numbers(op, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    labels = LabelOptions(ignore_index, label_map, regions, label_sets, label_set_index)
    resize = Upsampling(upsample, align_corners)
    walk = _Walk(dim, resize, activation, labels, include_background, batch, process_group, soft_label)
    stats, whole, _ = _sums(op, input, target, None, voxel_weight, walk)
    w = _volume_weights(stats.target, w_type)
    shared = 2 * (w * stats.intersection).sum(-1) + smooth_nr
    sizes = (w * (stats.prediction + stats.target)).sum(-1) + smooth_dr
    terms = _terms(1, shared, sizes, smooth_nr)
    return _reduced(terms, None, reduction, whole._replace(has_term=None)).to(_result_dtype(input))


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
    weight: ClassWeight | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    label_sets: LabelSets | None = None,
    label_set_index: LabelSetIndex | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """Tversky and focal Tversky loss: Dice with separate weights for false positives and false negatives.

    For each sample and class, with TP = I, FP = P - I and FN = T - I from I = sum v * p * g, P = sum v * p and T = sum
    v * g over the voxels that count, where p is the activated input, g the target, one-hot if it holds labels, and v
    the voxel weight::

        loss = weight * (1 - (TP + smooth_nr) / (TP + alpha * FP + beta * FN + smooth_dr)) ** gamma

    Source: Salehi et al. 2017, "Tversky loss function for image segmentation using 3D fully convolutional deep
    networks", arXiv:1706.05721. With ``gamma`` it is the focal Tversky loss of Abraham and Khan 2018, "A Novel Focal
    Tversky loss function with improved Attention U-Net for lesion segmentation", arXiv:1810.07842, who write 1 / gamma
    for the exponent and exchange alpha and beta.

    ``alpha = beta = 0.5`` is the Dice loss with doubled smoothing, ``alpha = beta = 1`` the Jaccard loss.

    Args:
        alpha: the weight of false positives.
        beta: the weight of false negatives; above alpha it favours recall.
        gamma: the exponent, 0 or more; below 1 small terms grow, above 1 they shrink. Unless gamma is 1, a base
            of 0 or less counts as 0 and has zero gradient.
        others: as in ``segloss.dice_loss``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), 0-dim; with ``reduction="none"`` of the shape
        ``[N, C']``, or ``[C']`` with ``batch``, where C' classes have terms.

    Raises:
        ValueError: gamma is below 0, infinite or nan.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_loss``.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
        >>> segloss.tversky_loss(logits, labels, alpha=0.3, beta=0.7)
        tensor(0.6024)

    See also:
        * ``segloss.TverskyLoss``: the same as a module
        * ``segloss.dice_loss``: both weights equal
        * ``segloss.generalized_dice_loss``: weights classes by their volume
    """
    op = "tversky_loss"
    weight = _of_classes(weight, input)
    _check_gamma(op, gamma)
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    _check_numbers(op, alpha=alpha, beta=beta, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    labels = LabelOptions(ignore_index, label_map, regions, label_sets, label_set_index)
    resize = Upsampling(upsample, align_corners)
    walk = _Walk(dim, resize, activation, labels, include_background, batch, process_group, soft_label)
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
    weight: ClassWeight | None = None,
    pos_weight: ClassWeight | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: IgnoreIndex = -100,
    reduction: Literal["mean", "sum"] = "mean",
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    label_sets: LabelSets | None = None,
    label_set_index: LabelSetIndex | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """Compound loss: Dice plus cross entropy, computed together.

    The weighted sum of ``segloss.dice_loss``, which defines I, P and T, and ``segloss.cross_entropy``::

        loss = lambda_dice * dice_loss + lambda_ce * cross_entropy

    Source: Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image
    segmentation", Nature Methods 18.

    The forward pass reads the logits once for both terms, and so does the backward pass. With ``activation="sigmoid"``
    the second term is the binary cross entropy with logits, weighted by ``weight`` and averaged over voxels and
    classes.

    Args:
        lambda_dice, lambda_ce: the factors of the two terms.
        label_smoothing: s of the cross entropy, in [0, 1]. With sigmoid, a target g becomes ``(1 - s) * g + s / 2``.
        empty: the second term's mean over no voxel that counts, or over zero weights, and the mean of both terms for an
            input without a voxel: ``"nan"`` as in torch, or ``"zero"``. The gradient is 0 in both cases.
        activation: ``"softmax"`` or ``"sigmoid"``, for both terms; None is an error, as the second term needs logits.
        include_background: whether class 0 has a Dice term; it is always part of the second term.
        weight: a weight for each class, ``[C]``, a tensor of any floating dtype or a list of numbers, for both
            terms. Default: None, every weight is 1.
        pos_weight: with sigmoid, a weight for each class, ``[C]``, of target 1 in the second term; a tensor or numbers.
            Default: None, every weight is 1.
        reduction: ``"mean"`` or ``"sum"``, of both terms.
        others: as in ``segloss.dice_loss``.

    Returns:
        A 0-dim tensor of input's dtype (float32 for half types under autocast).

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_loss`` and ``segloss.cross_entropy``.

    Equivalent to:
        ``lambda_dice * dice_loss(input, target, ...) + lambda_ce * cross_entropy(input, target, ...)``

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
        >>> segloss.dice_ce_loss(logits, labels)
        tensor(1.6096)

    See also:
        * ``segloss.DiceCELoss``: the same as a module
        * ``segloss.dice_focal_loss``: with focal loss instead of cross entropy
        * ``segloss.dice_loss``, ``segloss.cross_entropy``: the two terms
    """
    op = "dice_ce_loss"
    weight = _of_classes(weight, input)
    pos_weight = _of_classes(pos_weight, input)
    _check_numbers(op, lambda_dice=lambda_dice, lambda_ce=lambda_ce)
    labels = LabelOptions(ignore_index, label_map, regions, label_sets, label_set_index)
    resize = Upsampling(upsample, align_corners)
    walk = _Walk(dim, resize, activation, labels, include_background, batch, process_group, soft_label, squared)
    voxel_loss = _VoxelLoss("cross_entropy", empty, label_smoothing=label_smoothing, pos_weight=pos_weight)
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
    weight: ClassWeight | None = None,
    pos_weight: ClassWeight | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: IgnoreIndex = -100,
    reduction: Literal["mean", "sum"] = "mean",
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    label_sets: LabelSets | None = None,
    label_set_index: LabelSetIndex | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """Compound loss: Dice plus focal loss, computed together.

    The weighted sum of ``segloss.dice_loss``, which defines I, P and T, and ``segloss.focal_loss``::

        loss = lambda_dice * dice_loss + lambda_focal * focal_loss

    Source: Zhu et al. 2019, "AnatomyNet: Deep learning for fast and fully automated whole-volume segmentation of head
    and neck anatomy", arXiv:1808.05238.

    The forward pass reads the logits once for both terms, and so does the backward pass.

    Args:
        lambda_dice, lambda_focal: the factors of the two terms.
        gamma: the exponent of the focal loss, 0 or more. With softmax and gamma > 0, target must hold class labels or
            exact one-hot labels.
        others: as in ``segloss.dice_ce_loss``.

    Returns:
        A 0-dim tensor of input's dtype (float32 for half types under autocast).

    Raises:
        ValueError: gamma is below 0, infinite or nan.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_loss`` and ``segloss.focal_loss``.

    Equivalent to:
        ``lambda_dice * dice_loss(input, target, ...) + lambda_focal * focal_loss(input, target, ...)``

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
        >>> segloss.dice_focal_loss(logits, labels)
        tensor(1.0716)

    See also:
        * ``segloss.DiceFocalLoss``: the same as a module
        * ``segloss.dice_ce_loss``: with cross entropy instead of focal loss
        * ``segloss.dice_loss``, ``segloss.focal_loss``: the two terms
    """
    op = "dice_focal_loss"
    weight = _of_classes(weight, input)
    pos_weight = _of_classes(pos_weight, input)
    _check_gamma(op, gamma)
    _check_numbers(op, lambda_dice=lambda_dice, lambda_focal=lambda_focal)
    labels = LabelOptions(ignore_index, label_map, regions, label_sets, label_set_index)
    resize = Upsampling(upsample, align_corners)
    walk = _Walk(dim, resize, activation, labels, include_background, batch, process_group, soft_label, squared)
    voxel_loss = _VoxelLoss("focal_loss", empty, gamma=gamma, pos_weight=pos_weight)
    terms = _DiceTerms(jaccard, smooth_nr, smooth_dr)
    dice, focal = _dice_and(voxel_loss, op, input, target, weight, voxel_weight, walk, terms, reduction)
    return (lambda_dice * dice + lambda_focal * focal).to(_result_dtype(input))


class _Walk(NamedTuple):
    """Which sums to compute, and over which voxels and classes; see the keywords of the losses."""

    dim: int
    resize: Upsampling
    activation: str | None
    labels: LabelOptions
    include_background: bool = True
    batch: bool = False
    process_group: "ProcessGroup | None" = None
    soft_label: bool = False
    squared: bool = False
    any_finite_target: bool = False  # whether a floating target may hold any finite values


class _VoxelLoss(NamedTuple):
    """The second term of a compound loss, computed together with the sums: cross entropy or focal loss."""

    name: str
    empty: str
    gamma: float = 0.0
    label_smoothing: float = 0.0
    pos_weight: Tensor | None = None  # of a sigmoid


class _DiceTerms(NamedTuple):
    """How to compute Dice terms from the sums."""

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
    """The two terms of a compound loss: Dice, and a loss of each voxel."""
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
    """The data that sums were computed from."""

    op: str
    process_group: "ProcessGroup | None"
    num_logits: int | Tensor  # of this rank; of all ranks, as the sums, if it is a tensor
    refused: list[Exception]  # see sum_over_ranks
    has_term: Tensor | None = None  # of each class, of joined ones only the first; None: all have


def _sums(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    walk: _Walk,
    voxel_loss: _VoxelLoss | None = None,
    operator: Callable[..., Any] = _soft_stats,
) -> tuple[SoftStats, _Whole, list[Tensor]]:
    """The sums of the classes that have terms, [N, C'] or [C'], and the data that they were computed from; with
    `voxel_loss` also the sums of the losses and of their weights. `operator` computes them.

    The kernels return float64 for any dtype of input, so that a loss is rounded once, when it is finished.
    """
    input, target, voxel_weight = _plain(input), _plain(target), _plain(voxel_weight)
    dim, resize, activation, labels, include_background, batch, process_group, *flags = walk
    soft_label, squared, any_finite = flags
    ignore_index, label_table = read_labels(op, input, target, dim, labels, activation)
    _check_background(op, labels.regions, include_background)
    if squared and labels.label_sets is not None:
        raise ValueError(f"{op}: expected squared=False with label_sets, whose joined classes add their p, got True")
    gamma, label_smoothing = (voxel_loss.gamma, voxel_loss.label_smoothing) if voxel_loss else (0.0, 0.0)
    _check_types(
        op, input, target, weight, voxel_weight, ignore_index, dim, gamma=gamma, label_smoothing=label_smoothing
    )
    _check_flags(op, include_background=include_background, batch=batch, squared=squared, soft_label=soft_label)
    check_process_group(op, process_group)
    _check_choice(op, "activation", activation, ("softmax", "sigmoid", None))
    upsample = upsampling_code(op, input, resize)
    options = (dim, activation or "none", squared, ignore_index, voxel_loss is not None, gamma, label_smoothing)
    of_loss = weight if voxel_loss is None else _weight_of_loss(op, voxel_loss, activation, weight, input, dim)
    arguments = (input, target, of_loss, voxel_weight, label_table, *options, soft_label, any_finite, upsample, op)
    refused: list[Exception] = []
    *sums, losses, totals = sums_or_zeros(
        process_group, refused, input, lambda: _sizes_of_sums(input, dim), operator, *arguments
    )
    voxel_sums = [losses.sum(), totals.sum()] if voxel_loss else []
    if is_dtensor(input):
        sums = sum_over_ranks(op, process_group, refused, *sums)
        voxel_sums = sum_over_ranks(op, process_group, refused, *voxel_sums) if voxel_loss else []
    groups = read_groups(op, input, target, dim, labels)
    has_term = None
    if groups is not None:
        sums, has_term = _joined(sums, *groups)
    if not include_background:
        sums = _without_background(op, sums)
        has_term = None if has_term is None else has_term[:, -sums[0].shape[1] :]
    if batch:
        sums = [each.sum(0) for each in sums]
        has_term = None if has_term is None else has_term.any(0)
    whole = _Whole(op, process_group, input.numel(), refused, has_term)
    if process_group is not None and batch:
        return _over_batch(SoftStats(*sums), whole, input.numel(), voxel_sums)
    if process_group is not None and voxel_loss:
        voxel_sums = sum_over_ranks(op, process_group, refused, *voxel_sums)
    return SoftStats(*sums), whole, voxel_sums


def _check_background(op: str, regions: Regions | None, include_background: bool) -> None:
    if regions is not None and not include_background:
        raise ValueError(
            f"{op}: expected include_background=True with regions, where channel 0 is the first region, got False. "
            "Leave the region of the background out of regions"
        )


def _over_batch(
    sums: SoftStats, whole: _Whole, num_logits: int, voxel_sums: list[Tensor]
) -> tuple[SoftStats, _Whole, list[Tensor]]:
    """The sums of all ranks' parts of a batch, and which classes have a term in some part."""
    op, process_group, _, refused, has_term = whole
    counts = [sums[0].new_full((), num_logits)] + ([] if has_term is None else [has_term.to(sums[0].dtype)])
    shared = sum_over_ranks(op, process_group, refused, *sums, *voxel_sums, *counts)
    if has_term is not None:
        whole = whole._replace(has_term=shared.pop() > 0)
    return SoftStats(*shared[:3]), whole._replace(num_logits=shared.pop()), shared[3:]


def _weight_of_loss(
    op: str, voxel_loss: _VoxelLoss, activation: str | None, weight: Tensor | None, input: Tensor, dim: int
) -> Tensor | None:
    """As the operator takes them: [C], or with pos_weight [2, C], those of the terms for targets 0 and 1."""
    if voxel_loss.pos_weight is None:
        return weight
    if activation != "sigmoid":
        raise ValueError(
            f"{op}: expected no pos_weight with activation={activation!r}, which has no target 1. Use weight"
        )
    pos_weight = _by_class(op, "pos_weight", voxel_loss.pos_weight, input.shape, dim)
    if pos_weight is not None and pos_weight.dim() > 1:
        raise RuntimeError(f"{op}: expected pos_weight of shape [C], got {list(pos_weight.shape)}")
    return _weights_of_terms(weight, pos_weight)


def _joined(sums: list[Tensor], groups: Tensor, is_first: Tensor) -> tuple[list[Tensor], Tensor]:
    """The sums of groups of classes, at the first class of each, and which classes these are; 0 at the others.

    The target of each class is that of its group already.
    """
    num_samples = sums[0].shape[0]  # 1 on a rank that was refused
    groups, is_first = groups[:num_samples].expand_as(sums[0]), is_first[:num_samples]
    intersection, prediction = (torch.zeros_like(each).scatter_add(1, groups, each) for each in sums[:2])
    return [intersection, prediction, sums[2] * is_first], is_first


def _sizes_of_sums(input: Tensor, dim: int) -> list[tuple[int, ...]] | None:
    """The shapes of the sums of one sample; None if `dim` is not a dimension of input."""
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
    """1 - (2 I + smooth_nr) / sizes; for Jaccard the numerator and denominator are halved.

    Few operations, and some of them on target alone, which has no gradient: an operation on a few numbers takes as long
    as one on thousands, and so does its gradient.
    """
    jaccard, smooth_nr, smooth_dr = terms
    shared = stats.intersection + smooth_nr / 2
    if jaccard:
        sizes = stats.prediction + (stats.target + smooth_dr / 2) - stats.intersection
    else:
        sizes = stats.prediction + (stats.target + smooth_dr)
    return _terms(1 if jaccard else 2, shared, sizes, smooth_nr)


def _terms(factor: int, shared: Tensor, sizes: Tensor, smooth_nr: float, gamma: float = 1.0) -> Tensor:
    """(1 - factor * shared / sizes) ** gamma; 0 with zero gradient where shared and sizes are both 0.

    A smoothed numerator is not 0. (The value of a tensor is not read: the host would wait for it.) Where the numerator
    alone is 0, as after an underflow of probabilities, the term is 1 with zero gradient at any size.
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
    """terms ** gamma; zero gradient for terms up to the rounding error of 1, where a root's gradient has no bound."""
    if gamma == 1:
        return terms
    least = torch.finfo(terms.dtype).eps
    return torch.where(terms <= least, 0.0**gamma, terms.clamp_min(least) ** gamma)


def _reduced(terms: Tensor, weight: Tensor | None, reduction: str, whole: _Whole, empty_zero: bool = False) -> Tensor:
    """The terms, their sum or their mean. The mean over no voxel is nan or 0, with zero gradient, for any terms."""
    op, process_group, num_logits, refused, has_term = whole
    if weight is not None and not refused:
        terms = terms * weight[weight.shape[0] - terms.shape[-1] :].to(terms.dtype)
    if has_term is not None:
        terms = torch.where(has_term, terms, 0.0)
    if reduction == "none":
        if refused:
            raise refused.pop()
        return terms
    if process_group is None or isinstance(num_logits, Tensor):
        if reduction == "sum":
            return terms.sum()
        mean = terms.mean() if has_term is None else terms.sum() / has_term.expand_as(terms).sum()
    else:
        num_terms = terms.new_full((), terms.numel())
        if has_term is not None:
            num_terms = has_term.expand_as(terms).sum().to(terms.dtype)
        counts = (num_terms, terms.new_full((), num_logits))
        total, count, num_logits = sum_over_ranks(op, process_group, refused, terms.sum(), *counts)
        if reduction == "sum":
            return total
        mean = total / count
    if not isinstance(num_logits, Tensor):
        if not torch.compiler.is_compiling() and num_logits > 0:  # a condition on sizes would tie a graph to it
            return mean
        num_logits = terms.new_full((), num_logits)
    return torch.where(num_logits == 0, 0.0 if empty_zero else torch.nan, mean)
