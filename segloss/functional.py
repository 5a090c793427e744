"""The losses as functions of (input, target)."""

import math
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import _reduction

from segloss._compat import is_autocast_available
from segloss._distributed import check_process_group, is_dtensor, sum_over_ranks, sums_or_zeros
from segloss._docs import documented
from segloss._label_sets import LabelSetIndex, LabelSets, Regions
from segloss._labels import IgnoreIndex, LabelMap, LabelOptions, read_labels
from segloss._upsample import Upsample, Upsampling, full_shape, upsampling_code

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Reduction = Literal["mean", "sum", "none"]
Empty = Literal["nan", "zero"]
Activation = Literal["softmax", "sigmoid"]
ClassWeight: TypeAlias = Tensor | Sequence[float]
_Given = TypeVar("_Given", Tensor, Tensor | None)

_binary_cross_entropy: Callable[..., tuple[Tensor, Tensor]] = torch.ops.segloss.binary_cross_entropy.default
_cross_entropy: Callable[..., Tensor] = torch.ops.segloss.cross_entropy.default
_one_hot_labels: Callable[..., Tensor] = torch.ops.segloss.one_hot_labels.default
_soft_stats: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = torch.ops.segloss.soft_stats.default
_topk_sum: Callable[..., tuple[Tensor, Tensor]] = torch.ops.segloss.topk_sum.default
_total_weight: Callable[..., Tensor] = torch.ops.segloss.total_weight.default

_REDUCTIONS = ("mean", "sum", "none")
_NONE, _MEAN, _SUM = map(_reduction.get_enum, ("none", "mean", "sum"))
_MOST_CLASSES = torch.iinfo(torch.int32).max
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1

# isinstance is slow for abstract classes: the usual types first.
_INTEGER = (int, Integral)
_REAL = (float, Real)


@documented()
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: ClassWeight | None = None,
    size_average: bool | None = None,
    ignore_index: IgnoreIndex = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    label_sets: LabelSets | None = None,
    label_set_index: LabelSetIndex | None = None,
    empty: Empty = "nan",
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """Cross entropy of logits against integer labels of any dtype, or against class probabilities.

    For a voxel with logits x, p = softmax(x), label y, voxel weight v and label smoothing s::

        loss = v * ((1 - s) * weight[y] * -log(p[y]) + s / C * sum_c weight[c] * -log(p[c]))

    and for class probabilities t::

        loss = v * sum_c weight[c] * ((1 - s) * t[c] + s / C) * -log(p[c])

    Label smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567.

    Values and gradients are those of ``torch.nn.functional.cross_entropy``. A zero weight or probability times an
    infinite loss is 0. With one channel the softmax is 1 and the loss is 0, as in torch, with a UserWarning.

    Args:
        input: logits ``[N, C, *]`` with any number of spatial dimensions, or ``[C]``; float64, float32, float16 or
            bfloat16, with any strides.
        target: one of

            * class labels ``[N, *]`` or ``[N, 1, *]``: any integer dtype, bool, or floating with integral values;
            * class probabilities, floating, of input's shape, each in [0, 1];
            * exact one-hot labels, integer, of input's shape.
        weight: a weight for each class, ``[C]``, a tensor of any floating dtype or a list of numbers. Default:
            None, every weight is 1.
        size_average: deprecated, use ``reduction``.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in target; they add nothing to
            the loss, and their gradient is 0. Only class labels have one.
        reduce: deprecated, use ``reduction``.
        reduction: ``"mean"`` divides the sum over the voxels that count by ``sum(v * weight[y])`` (with class
            probabilities by ``sum(v)``, the number of voxels), ``"sum"`` adds, ``"none"`` returns the loss of each
            voxel.
        label_smoothing: s in the formula, in [0, 1].
        dim: the class dimension of input; ``dim=-1`` reads ``[B, L, C]``. Labels may keep a dimension of size 1 there.
        upsample: how to take the logits to the target's size, as ``torch.nn.functional.interpolate``: ``"linear"``,
            ``"bilinear"`` or ``"trilinear"`` for one, two or three spatial axes, ``"nearest"`` or ``"nearest-exact"``;
            or a tuple with ``"linear"``, ``"nearest"`` or ``"nearest-exact"`` for each axis. The interpolated logits
            are in no tensor. They are computed in float32 (float64 for float64), at any ratio of the sizes, also
            downward. The gradient is that of input, at its own size. Default: None, both have one size.
        align_corners: with linear interpolation, whether the corners of both sizes are the same places, as in
            ``torch.nn.functional.interpolate``.
        voxel_weight: a weight for each voxel, of the labels' shape. Voxels of weight 0 do not count. Must not require
            a gradient. Default: None, every weight is 1.
        label_map: the class of each label, where labels are not classes themselves: a mapping ``{label: class}``, in
            which the class None says that the label is ignored, and the key ``...`` stands for all labels that it does
            not name; or an integer tensor ``[L]`` with the classes of the labels 0 to L - 1. A class that is one of
            ``ignore_index`` means ignored, too. Default: None, labels are classes.
        regions: of other losses: overlapping regions need a sigmoid, so any but None is an error.
        label_sets: with softmax, for partial labels, the classes that a label may be: ``{0: (0, 2, 3)}`` where classes
            2 and 3 are not labelled and lie in the background. The sum of p over the set takes the place of p[y]
            (marginal loss: Shi et al. 2021, "Marginal loss and exclusion loss for partially supervised multi-organ
            segmentation", Medical Image Analysis 70; Fang and Yan 2020, arXiv:2001.00208). A class without an entry
            means itself; a class beyond the channels is one that only sets have. A sequence has a mapping for each
            sample. Default: None, every label means itself.
        label_set_index: the mapping of each sample, ``[N]``, where ``label_sets`` has one for each data set. Default:
            None, they are in the order of the samples.
        empty: the mean over no voxel, or over zero weights: ``"nan"`` as in torch, or ``"zero"``. The gradient is 0 in
            both cases.
        process_group: the ``torch.distributed.ProcessGroup`` whose ranks hold parts of the batch, of any sizes. Each
            rank gets the loss of the whole batch; the mean of the ranks' gradients, which DistributedDataParallel
            computes, is the gradient of the whole batch. ``reduction="none"`` communicates nothing. If a rank refuses
            its input or target, it raises the error and the other ranks raise a RuntimeError that names it, within
            seconds. The other ranks wait for the group's timeout instead where a rank refuses an option or a type,
            under torch.compile, and on a GPU whose kernels report labels to a later call. None is this process alone.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast; promoted with the dtype of probabilities),
        0-dim, or with ``reduction="none"`` of the labels' shape, or of input's shape without ``dim`` for probabilities
        and one-hot labels. Sums are accumulated in double precision and do not depend on the number of threads.

    Raises:
        TypeError: input is not floating, or target is neither integer, bool nor floating.
        IndexError: a label is neither ignored nor a class in [0, C), or ``label_map`` does not name it; or ``dim`` is
            not a dimension of input.
        ValueError: the batch sizes of input and target differ, an option has an unknown value, or ``label_map`` has a
            class outside [0, C), or gives a class to a label that ``ignore_index`` names.
        RuntimeError: the shapes do not fit, a floating label is not integral, an integer target of input's shape is
            not one-hot, a class probability is nan or outside [0, 1] by more than four times the epsilon of its dtype,
            ``label_smoothing`` is outside [0, 1], ``ignore_index`` >= 0 with class probabilities, a ``weight`` with
            class labels or a ``voxel_weight`` requires a gradient, or devices differ.

    Equivalent to:
        ``torch.nn.functional.cross_entropy(input, target.squeeze(1).long(), ...)`` for labels ``[N, 1, *]``.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)  # [N, 1, H, W]
        >>> segloss.cross_entropy(logits, labels)
        tensor(1.0066)
        >>> segloss.cross_entropy(logits, labels + 7, label_map={7: 0, 8: 1})  # the classes of the labels 7 and 8
        tensor(1.0066)
        >>> segloss.cross_entropy(logits, labels, label_sets={0: (0, 1)})  # label 0 may be either class
        tensor(0.6222)

    See also:
        * ``segloss.CrossEntropyLoss``: the same as a module
        * ``segloss.nll_loss``: for log-probabilities
        * ``segloss.focal_loss``, ``segloss.topk_loss``: variants that stress hard voxels
        * ``segloss.dice_ce_loss``: with a Dice loss
        * ``segloss.total_weight``: the denominator of the mean
    """
    op = "cross_entropy"
    input, target, voxel_weight = _plain(input), _plain(target), _plain(voxel_weight)
    weight = _of_classes(weight, input)
    of_labels = LabelOptions(ignore_index, label_map, regions, label_sets, label_set_index)
    ignore_index, label_table = read_labels(op, input, target, dim, of_labels, "softmax")
    _check_options(op, ignore_index, dim, label_smoothing)
    code = _reduction_code(op, reduction, size_average, reduce)
    empty_zero = _is_zero(op, empty)
    resize = upsampling_code(op, input, Upsampling(upsample, align_corners))
    options = (dim, code, ignore_index, label_smoothing, False, empty_zero)
    arguments = (input, target, weight, voxel_weight, label_table, *options)
    if (process_group is not None or is_dtensor(input)) and code != _NONE:
        return _of_sums(op, process_group, arguments, resize)
    try:
        loss = _cross_entropy(*arguments, upsample=resize) if resize else _cross_entropy(*arguments)
    except (TypeError, RuntimeError):
        _check_types(op, input, target, weight, voxel_weight, ignore_index, dim)
        raise
    _warn_of_one_channel(op, input, dim)
    return loss


@documented(like=cross_entropy)
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: ClassWeight | None = None,
    size_average: bool | None = None,
    ignore_index: IgnoreIndex = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    *,
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    label_sets: LabelSets | None = None,
    label_set_index: LabelSetIndex | None = None,
    empty: Empty = "nan",
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """Negative log likelihood of log-probabilities against integer labels of any dtype, or class probabilities.

    For a voxel with log-probabilities x, label y and voxel weight v::

        loss = v * weight[y] * -x[y]

    and for class probabilities t::

        loss = v * sum_c weight[c] * t[c] * -x[c]

    Values and gradients are those of ``torch.nn.functional.nll_loss``.

    Args:
        input: log-probabilities ``[N, C, *]`` or ``[C]``, as ``torch.nn.functional.log_softmax`` returns them; float64,
            float32, float16 or bfloat16, with any strides.
        others: as in ``segloss.cross_entropy``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast; promoted with the dtype of probabilities),
        0-dim, or with ``reduction="none"`` of the labels' shape, or of input's shape without ``dim`` for probabilities
        and one-hot labels.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.cross_entropy``.

    Equivalent to:
        ``torch.nn.functional.nll_loss(input, target.squeeze(1).long(), ...)`` for labels ``[N, 1, *]``.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[1, 0], [0, 1]]], dtype=torch.uint8)
        >>> segloss.nll_loss(logits.log_softmax(1), labels)
        tensor(1.0066)

    See also:
        * ``segloss.NLLLoss``: the same as a module
        * ``segloss.cross_entropy``: for logits
    """
    op = "nll_loss"
    input, target, voxel_weight = _plain(input), _plain(target), _plain(voxel_weight)
    weight = _of_classes(weight, input)
    of_labels = LabelOptions(ignore_index, label_map, regions, label_sets, label_set_index)
    ignore_index, label_table = read_labels(op, input, target, dim, of_labels, "softmax")
    _check_options(op, ignore_index, dim)
    code = _reduction_code(op, reduction, size_average, reduce)
    empty_zero = _is_zero(op, empty)
    resize = upsampling_code(op, input, Upsampling(upsample, align_corners))
    options = (dim, code, ignore_index, 0.0, True, empty_zero)
    arguments = (input, target, weight, voxel_weight, label_table, *options)
    if (process_group is not None or is_dtensor(input)) and code != _NONE:
        return _of_sums(op, process_group, arguments, resize)
    try:
        return _cross_entropy(*arguments, 0.0, None, resize, op)
    except (TypeError, RuntimeError):
        _check_types(op, input, target, weight, voxel_weight, ignore_index, dim)
        raise


@documented(like=cross_entropy)
def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | ClassWeight | None = None,
    weight: ClassWeight | None = None,
    activation: Activation = "softmax",
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    empty: Empty = "nan",
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
    """Focal loss: cross entropy in which well-classified voxels count less.

    For a voxel with logits x, p = softmax(x), label y and voxel weight v::

        loss = v * weight[y] * alpha[y] * (1 - p[y]) ** gamma * -log(p[y])

    and with ``activation="sigmoid"``, p = sigmoid(x), for each class c with a target g in [0, 1]::

        loss[c] = v * weight[c] * (alpha * g[c] * (1 - p[c]) ** gamma * -log(p[c])
                                   + (1 - alpha) * (1 - g[c]) * p[c] ** gamma * -log(1 - p[c]))

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002.

    With ``gamma=0`` it is ``segloss.cross_entropy``, with sigmoid the binary cross entropy with logits. The gradient is
    finite for every gamma, also in saturated voxels.

    Args:
        gamma: the exponent, 0 or more; the larger it is, the less well-classified voxels count.
        alpha: with softmax a factor for each class, ``[C]``, a tensor of any floating dtype or numbers, which unlike
            ``weight`` does not enter the denominator of the mean; with sigmoid a float in [0, 1], the factor of the
            term of target 1, 1 - alpha being that of target 0. Default: None, all these factors are 1.
        activation: ``"softmax"``: classes exclude each other; ``"sigmoid"``: each class is a binary problem of its own.
        target: class labels ``[N, *]`` or ``[N, 1, *]``: any integer dtype, bool, or floating with integral values; or,
            of input's shape,

            * with softmax exact one-hot labels, integer;
            * with sigmoid a mask for each class, floating in [0, 1], or integer of 0 and 1. With one channel a map of 0
              and 1 of any shape and dtype is the mask of the foreground.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in target; they add nothing to
            the loss, and their gradient is 0.
        reduction: ``"mean"`` divides the sum over the voxels that count by ``sum(v * weight[y])``, with sigmoid by
            ``C * sum(v)``; ``"sum"`` adds; ``"none"`` returns the loss of each voxel, with sigmoid of each voxel and
            class.
        regions: with sigmoid, the classes of each channel's region, one collection for each channel, overlapping as
            they like: ``[(1, 2, 3), (1, 3), (3,)]``. A channel's target is whether the class of the voxel, its label or
            what ``label_map`` makes of it, is in the region; no mask is made. Without ``label_map`` labels are 0 to the
            largest class. Default: None, channels are classes.
        others: as in ``segloss.cross_entropy``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), 0-dim; or with ``reduction="none"`` of the
        labels' shape (input's shape without ``dim`` for one-hot labels), with sigmoid of input's shape.

    Raises:
        TypeError: ``alpha`` is a number with softmax, or no number with sigmoid.
        ValueError: gamma is below 0, infinite or nan, alpha is outside [0, 1], or an option has an unknown value.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.cross_entropy``; with sigmoid as
            ``segloss.soft_stats``.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)  # [N, 1, H, W]
        >>> segloss.focal_loss(logits, labels)
        tensor(0.4686)
        >>> segloss.focal_loss(logits, labels, activation="sigmoid")
        tensor(0.2979)

    See also:
        * ``segloss.FocalLoss``: the same as a module
        * ``segloss.topk_loss``: keeps the hardest voxels only
        * ``segloss.dice_focal_loss``: with a Dice loss
    """
    op = "focal_loss"
    input, target, voxel_weight = _plain(input), _plain(target), _plain(voxel_weight)
    weight = _of_classes(weight, input)
    of_labels = LabelOptions(ignore_index, label_map, regions, label_sets, label_set_index)
    ignore_index, label_table = read_labels(op, input, target, dim, of_labels, activation)
    _check_types(op, input, target, weight, voxel_weight, ignore_index, dim)
    _check_gamma(op, gamma)
    _check_choice(op, "activation", activation, ("softmax", "sigmoid"))
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    empty_zero = _is_zero(op, empty)
    check_process_group(op, process_group)
    code = _reduction.get_enum(reduction)
    resize = upsampling_code(op, input, Upsampling(upsample, align_corners))
    if activation == "softmax":
        factors = _alpha_of_classes(op, alpha, weight, input)
        options = (voxel_weight, label_table, dim, code, ignore_index, 0.0, False, empty_zero)
        is_quotient = process_group is not None or is_dtensor(input) or (alpha is not None and code == _MEAN)
        if is_quotient and code != _NONE:
            arguments = (input, target, weight, *options)
            return _of_sums(op, process_group, arguments, resize, gamma, factors, takes_probabilities=False)
        labels = _labels(op, input, target, dim, resize)
        loss = _cross_entropy(input, labels, factors, *options, gamma, None, resize, op)
        _warn_of_one_channel(op, input, dim)
        return loss
    of_terms = _weights_of_alpha(op, alpha, weight, input, dim)

    def of_this_rank(code: int, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        options = (code, ignore_index, 0.0, empty_zero, gamma, dtype, resize)
        return _binary_cross_entropy(input, target, of_terms, voxel_weight, label_table, dim, *options, op)

    return _binary_loss(op, process_group, input, code, empty_zero, of_this_rank)


@documented(like=focal_loss)
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: ClassWeight | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    pos_weight: ClassWeight | None = None,
    *,
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    ignore_index: IgnoreIndex = -100,
    label_smoothing: float = 0.0,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    empty: Empty = "nan",
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """Binary cross entropy of each class's logit against masks or labels of any dtype.

    For each class c of a voxel with logits x, p = sigmoid(x), a target g in [0, 1] and voxel weight v::

        loss[c] = v * weight[c] * (pos_weight[c] * g[c] * -log(p[c]) + (1 - g[c]) * -log(1 - p[c]))

    and label smoothing s makes ``(1 - s) * g + s / 2`` of g.

    Values and gradients are those of ``torch.nn.functional.binary_cross_entropy_with_logits``. Confident voxels keep
    their digits; a zero weight or a zero target times an infinite loss is 0.

    Args:
        input: logits ``[N, C, *]`` with any number of spatial dimensions, or ``[C]``; float64, float32, float16 or
            bfloat16, with any strides.
        target: a mask for each class, of input's shape, integer or bool of 0 and 1 or floating in [0, 1]; or class
            labels ``[N, *]`` or ``[N, 1, *]``, any integer dtype, bool, or floating with integral values. With one
            channel a map of 0 and 1 of any shape and dtype is the mask of the foreground.
        weight: a weight for each class, ``[C]``, a tensor of any floating dtype or a list of numbers; or a tensor
            of a shape that broadcasts to input's, as ``[C, 1, 1]``, or input's own. Default: None, every weight is 1.
            ``[C]`` runs along ``dim``, also where torch would take it for the last dimension. Weights that vary from
            voxel to voxel take a slower path.
        size_average: deprecated, use ``reduction``.
        reduce: deprecated, use ``reduction``.
        reduction: ``"mean"`` divides the sum over the voxels that count by ``C * sum(v)``, as torch does also with
            weights; ``"sum"`` adds; ``"none"`` returns the loss of each voxel and class.
        pos_weight: a weight for the term of target 1, of the shapes of ``weight``. Default: None, every weight is 1.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in target; in masks a value
            other than 0 and 1 in any class of a voxel. They add nothing to the loss, and their gradient is 0. Floating
            targets in [0, 1] have none.
        label_smoothing: s in the formula, in [0, 1].
        regions: the classes of each channel's region, one collection for each channel, overlapping as they like, as in
            ``segloss.focal_loss``. Default: None, channels are classes.
        others: as in ``segloss.cross_entropy``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), 0-dim, or with ``reduction="none"`` of
        input's shape.

    Raises:
        RuntimeError: ``weight`` or ``pos_weight`` has neither one value for each class nor a shape that broadcasts to
            input's, or requires a gradient with class labels.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.cross_entropy`` and ``segloss.soft_stats``.

    Equivalent to:
        ``torch.nn.functional.binary_cross_entropy_with_logits(input, target.to(input.dtype), ...)`` for masks.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> masks = torch.tensor([[[[1, 0], [0, 1]], [[0, 1], [0, 0]]]], dtype=torch.bool)  # [N, C, H, W]
        >>> segloss.binary_cross_entropy_with_logits(logits, masks)
        tensor(0.6698)
        >>> segloss.binary_cross_entropy_with_logits(logits, masks, pos_weight=torch.tensor([1.0, 5.0]))
        tensor(0.9386)

    See also:
        * ``segloss.BCEWithLogitsLoss``: the same as a module
        * ``segloss.focal_loss``: with ``activation="sigmoid"`` it stresses hard voxels
        * ``segloss.dice_ce_loss``: with ``activation="sigmoid"`` it adds a Dice loss
    """
    op = "binary_cross_entropy_with_logits"
    input, target, voxel_weight = _plain(input), _plain(target), _plain(voxel_weight)
    weight = _of_classes(weight, input)
    pos_weight = _of_classes(pos_weight, input)
    ignore_index, label_table = read_labels(op, input, target, dim, LabelOptions(ignore_index, label_map, regions))
    _check_types(op, input, target, weight, voxel_weight, ignore_index, dim, label_smoothing=label_smoothing)
    code = _reduction_code(op, reduction, size_average, reduce)
    empty_zero = _is_zero(op, empty)
    check_process_group(op, process_group)
    resize = upsampling_code(op, input, Upsampling(upsample, align_corners))
    shape = full_shape(input, target, dim, resize)
    weight = _by_class(op, "weight", weight, shape, dim)
    pos_weight = _by_class(op, "pos_weight", pos_weight, shape, dim)

    def losses(of_terms: Tensor | None, code: int, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        options = (code, ignore_index, label_smoothing, empty_zero, 0.0, dtype, resize)
        return _binary_cross_entropy(input, target, of_terms, voxel_weight, label_table, dim, *options, op)

    def of_this_rank(code: int, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        if all(each is None or each.dim() == 1 for each in (weight, pos_weight)):
            return losses(_weights_of_terms(weight, pos_weight), code, dtype)
        wide = torch.promote_types(input.dtype, torch.float32)
        if pos_weight is None:
            loss, total = losses(None, _NONE, wide)
        else:
            num_classes = input.shape[dim if input.dim() > 1 else 0]
            one_term = torch.eye(2, dtype=wide, device=input.device).unsqueeze(2)
            of_zeros, total = losses(one_term[0].expand(2, num_classes), _NONE, wide)
            of_ones, _ = losses(one_term[1].expand(2, num_classes), _NONE, wide)
            loss = of_zeros + _along(pos_weight, input, dim) * of_ones
        if weight is not None:
            loss = _along(weight, input, dim) * loss
        if code != _NONE:
            loss = _mean_or_sum(loss.sum(dtype=total.dtype), total, "sum" if code == _SUM else "mean", empty_zero)
        return loss.to(_result_dtype(input) if dtype is None else dtype), total

    return _binary_loss(op, process_group, input, code, empty_zero, of_this_rank)


def _plain(tensor: _Given) -> _Given:
    """A MetaTensor of MONAI as the tensor that it is: torch.compile has no rules for it, and it is slow."""
    if type(tensor) is not Tensor and hasattr(tensor, "as_tensor"):
        return tensor.as_tensor()  # type: ignore[union-attr,no-any-return]
    return tensor


def _of_classes(values: Any, like: Any = None) -> Tensor | None:
    """Numbers, one for each class, as a tensor where `like` is, with its digits; a tensor or None as it is."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, _REAL) for value in values):
        return _plain(values)  # type: ignore[no-any-return]  # the caller raises the error for anything else
    is_tensor = isinstance(like, Tensor)
    dtype = like.dtype if is_tensor and like.is_floating_point() else torch.get_default_dtype()
    wide = torch.promote_types(dtype, torch.float32)
    return torch.tensor(values, dtype=wide, device=like.device if is_tensor else None)


def _by_class(op: str, name: str, weight: Tensor | None, shape: torch.Size, dim: int) -> Tensor | None:
    """The weight as [C], if it has one value for each class; else the weight, which broadcasts to the logits' shape."""
    if weight is None:
        return None
    _check_tensor(op, name, weight)
    if not weight.is_floating_point():
        raise RuntimeError(f"{op}: expected a floating {name}, got {weight.dtype}. Use {name}.to(input.dtype)")
    along = 0 if len(shape) == 1 else dim
    if not -len(shape) <= along < len(shape):
        return weight  # the operator raises the error
    num_classes, sizes = shape[along], list(weight.shape)
    aligned = [1] * (len(shape) - len(sizes)) + sizes
    if len(sizes) <= 1:
        fits, is_by_class = weight.numel() in (1, num_classes), True
    else:
        fits = len(aligned) == len(shape) and all(a in (1, b) for a, b in zip(aligned, shape, strict=True))
        is_by_class = fits and weight.numel() == aligned[along]
    if not fits:
        raise RuntimeError(
            f"{op}: expected {name} of shape [{num_classes}], one for each class of input {list(shape)}, or of a "
            f"shape that broadcasts to input's, got {sizes}. Pass weights of voxels as voxel_weight, those along the "
            f"last dimension as {name}.view(1, -1)"
        )
    return weight.reshape(-1).expand(num_classes) if is_by_class else weight


def _along(weight: Tensor, input: Tensor, dim: int) -> Tensor:
    """A weight of classes, shaped to multiply input; others unchanged."""
    if weight.dim() > 1:
        return weight
    return weight.view([-1 if d == dim % input.dim() else 1 for d in range(input.dim())])


def _alpha_of_classes(op: str, alpha: object, weight: Tensor | None, input: Tensor) -> Tensor | None:
    """The factor of each class in a focal loss of a softmax, [C]."""
    if alpha is None:
        return weight
    alpha = _of_classes(alpha, input)
    if not isinstance(alpha, Tensor) or alpha.dim() == 0:
        raise TypeError(
            f"{op}: expected alpha to be a tensor [C] with activation='softmax', a factor for each class, got "
            f"{reprlib.repr(alpha)}. Use torch.tensor([1 - alpha, alpha]) for two classes"
        )
    if not alpha.is_floating_point() or (weight is not None and weight.shape != alpha.shape):
        shape = "" if weight is None else f" of the shape of weight, {list(weight.shape)}"
        raise RuntimeError(f"{op}: expected a floating alpha{shape}, got {alpha.dtype} {list(alpha.shape)}")
    wide = torch.promote_types(alpha.dtype, torch.float32)
    return alpha if weight is None else alpha.to(wide) * weight


def _weights_of_alpha(op: str, alpha: object, weight: Tensor | None, input: Tensor, dim: int) -> Tensor | None:
    """The weights of the terms for targets 0 and 1 in a focal loss of a sigmoid, [2, C]."""
    if alpha is None:
        return weight
    if isinstance(alpha, bool) or not isinstance(alpha, _REAL):
        got = f"a tensor {list(alpha.shape)}" if isinstance(alpha, Tensor) else reprlib.repr(alpha)
        raise TypeError(f"{op}: expected alpha to be a float with activation='sigmoid', got {got}. Use alpha.item()")
    factor = float(alpha)
    if not 0 <= factor <= 1:
        raise ValueError(f"{op}: expected alpha in [0, 1], got {factor}. Use alpha=None for no factors")
    if input.dim() == 0 or not -input.dim() <= dim < input.dim():
        return weight  # the operator raises the error
    num_classes = input.shape[dim if input.dim() > 1 else 0]
    dtype = torch.promote_types(input.dtype, torch.float32)
    factors = input.new_tensor([[1 - factor], [factor]], dtype=dtype).expand(2, num_classes)
    return factors if weight is None else factors * weight


def _weights_of_terms(weight: Tensor | None, pos_weight: Tensor | None) -> Tensor | None:
    """As the operator takes them: [C], or with pos_weight [2, C], the weights of the terms for targets 0 and 1."""
    if pos_weight is None:
        return weight
    wide = torch.promote_types(pos_weight.dtype, torch.float32 if weight is None else weight.dtype)
    wide = torch.promote_types(wide, torch.float32)
    of_zero = torch.ones_like(pos_weight, dtype=wide) if weight is None else weight.to(wide)
    return torch.stack([of_zero, of_zero * pos_weight])


@documented(like=cross_entropy)
def topk_loss(
    input: Tensor,
    target: Tensor,
    *,
    k: float = 10.0,
    weight: ClassWeight | None = None,
    ignore_index: IgnoreIndex = -100,
    label_smoothing: float = 0.0,
    empty: Empty = "nan",
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    label_sets: LabelSets | None = None,
    label_set_index: LabelSetIndex | None = None,
) -> Tensor:
    """Top-k loss (online bootstrapping): the mean of cross entropy over the k percent of voxels where it is largest.

    With l the losses of the V voxels of the batch that count, as ``segloss.cross_entropy`` with ``reduction="none"``::

        loss = mean of the max(1, floor(k / 100 * V)) largest l

    Source: Wu et al. 2016, "Bridging Category-level and Instance-level Semantic Image Segmentation", arXiv:1605.06885,
    who keep a number of voxels instead of a percentage.

    The other voxels have zero gradient. ``weight`` and ``voxel_weight`` multiply the losses before they are ranked; the
    mean divides by the number of voxels kept. nan is larger than any number. Of equal losses the first ones are kept,
    in the order of the flattened labels; where ``torch.topk`` ranks them, as it chooses: on devices other than the CPU,
    under ``torch.func`` and in forward-mode AD.

    Args:
        k: the percentage of voxels to keep, in (0, 100].
        target: class labels ``[N, *]`` or ``[N, 1, *]``: any integer dtype, bool, or floating with integral values; or
            exact one-hot labels, integer, of input's shape.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in target: they are neither
            ranked nor counted in V.
        label_smoothing: of the cross entropy, in [0, 1].
        empty: the loss of no voxel: ``"nan"``, or ``"zero"``. The gradient is 0 in both cases.
        others: as in ``segloss.cross_entropy``.

    Returns:
        A 0-dim tensor of input's dtype (float32 for half types under autocast).

    Raises:
        ValueError: k is outside (0, 100], or ``empty`` has an unknown value.
        RuntimeError: target holds class probabilities.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.cross_entropy``.

    Equivalent to:
        ``cross_entropy(input, target, reduction="none").flatten().topk(k * V // 100).values.mean()`` if no voxel is
        ignored.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
        >>> segloss.topk_loss(logits, labels, k=50)
        tensor(1.3275)

    See also:
        * ``segloss.TopKLoss``: the same as a module
        * ``segloss.cross_entropy``: the mean over all voxels
        * ``segloss.focal_loss``: stresses hard voxels without dropping any
    """
    op = "topk_loss"
    input, target, voxel_weight = _plain(input), _plain(target), _plain(voxel_weight)
    weight = _of_classes(weight, input)
    of_labels = LabelOptions(ignore_index, label_map, regions, label_sets, label_set_index)
    ignore_index, label_table = read_labels(op, input, target, dim, of_labels, "softmax")
    _check_types(op, input, target, weight, voxel_weight, ignore_index, dim, k=k, label_smoothing=label_smoothing)
    if not 0 < k <= 100:
        raise ValueError(f"{op}: expected k, a percentage, in (0, 100], got {k!r}")
    k = float(k)
    empty_zero = _is_zero(op, empty)
    resize = upsampling_code(op, input, Upsampling(upsample, align_corners))
    target = _labels(op, input, target, dim, resize)
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32  # half types would tie by rounding
    options = (_NONE, ignore_index, label_smoothing, False, False, 0.0, dtype, resize)
    losses = _cross_entropy(input, target, weight, voxel_weight, label_table, dim, *options, op)
    _warn_of_one_channel(op, input, dim)
    total, num_kept = _topk_sum(losses, target, voxel_weight, label_table, k, ignore_index)
    return _mean_or_sum(total, num_kept, "mean", empty_zero).to(_result_dtype(input))


@documented(like=cross_entropy)
def total_weight(
    target: Tensor,
    weight: ClassWeight | None = None,
    *,
    ignore_index: IgnoreIndex = -100,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """The denominator of the mean of cross entropy: the weights of the voxels that count, summed.

    For labels y and voxel weights v::

        total = sum of v * weight[y] over the voxels with y != ignore_index

    Use it to accumulate gradients over micro-batches with different numbers of voxels: the mean of the micro-batches'
    means is not the mean of the whole batch, but the sum of their sums divided by its total weight is.

    Args:
        target: class labels of any shape: any integer dtype, bool, or floating with integral values.
        weight: a weight for each class, ``[C]``, a tensor of any floating dtype or a list of numbers. Default:
            None, every weight is 1, for labels up to 2**31 - 2.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in target.
        voxel_weight: a weight for each voxel, of target's shape. Default: None, every weight is 1.
        process_group: the ``torch.distributed.ProcessGroup`` over whose ranks the weights are summed; it shares errors
            as in ``segloss.cross_entropy``. None is this process alone.
        others: as in ``segloss.cross_entropy``.

    Returns:
        A 0-dim float64 tensor (float32 on MPS), without gradient.

    Raises:
        TypeError: target is neither integer, bool nor floating.
        IndexError: a label is neither ignored nor a class in [0, C).
        RuntimeError: the shapes do not fit, or a floating label is not integral.

    Example:
        >>> import segloss, torch
        >>> logits = torch.randn(4, 3, 8, 8, requires_grad=True)
        >>> labels = torch.randint(3, (4, 1, 8, 8))
        >>> labels[0] = 255
        >>> total = segloss.total_weight(labels, ignore_index=255)
        >>> total
        tensor(192., dtype=torch.float64)
        >>> for micro_batch in range(4):
        ...     x, y = logits[micro_batch, None], labels[micro_batch, None]
        ...     (segloss.cross_entropy(x, y, ignore_index=255, reduction="sum") / total).backward()

    See also:
        * ``segloss.cross_entropy``, ``segloss.nll_loss``, ``segloss.focal_loss``: ``reduction="sum"`` is the numerator
    """
    op = "total_weight"
    target, voxel_weight = _plain(target), _plain(voxel_weight)
    weight = _of_classes(weight, target)
    ignore_index, label_table = read_labels(op, None, target, 0, LabelOptions(ignore_index, label_map))
    _check_tensor(op, "target", target)
    _check_types(op, target, target, weight, voxel_weight, ignore_index, dim=0)
    check_process_group(op, process_group)
    over_ranks = process_group is not None or is_dtensor(target)
    num_classes = _MOST_CLASSES if weight is None else weight.numel()
    refused: list[Exception] = []
    tensors = (target.detach(), _detached(weight), _detached(voxel_weight))
    arguments = (op, *tensors, num_classes, ignore_index, label_table)
    (total,) = sums_or_zeros(process_group, refused, target, lambda: [()], _total_weight, *arguments)
    return sum_over_ranks(op, process_group, refused, total)[0] if over_ranks else total


def _of_sums(
    op: str,
    process_group: "ProcessGroup | None",
    arguments: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, int, int, int, float, bool, bool],
    resize: int,
    gamma: float = 0.0,
    factors: Tensor | None = None,
    *,
    takes_probabilities: bool = True,
) -> Tensor:
    """Cross entropy as a sum divided by the total weight; of the data of all ranks, if there are several.

    `factors` take the place of the weights in the first one.
    """
    input, target, weight, voxel_weight, label_table, dim, code, ignore_index, *options = arguments
    _, log_probabilities, empty_zero = arguments[-3:]
    _check_types(op, input, target, weight, voxel_weight, ignore_index, dim)
    check_process_group(op, process_group)
    shape = full_shape(input, target, dim, resize)
    has_probabilities = takes_probabilities and _holds_probabilities(shape, target)
    dtype = _result_dtype(input)
    if has_probabilities:
        dtype = torch.promote_types(dtype, target.dtype)
    wide = torch.promote_types(dtype, torch.float32)  # rounded once, when the loss is finished

    def of_this_rank() -> tuple[Tensor, Tensor]:
        labels = target if has_probabilities else _labels(op, input, target, dim, resize)
        of_classes = weight if factors is None else factors
        of_call = (dim, _SUM, ignore_index, *options, gamma, wide, resize, op)
        loss = _cross_entropy(input, labels, of_classes, voxel_weight, label_table, *of_call)
        if not log_probabilities:
            _warn_of_one_channel(op, input, dim)
        if has_probabilities:
            return loss, _total_voxel_weight(input, shape, dim, voxel_weight)
        num_classes = input.shape[dim if input.dim() > 1 else 0]
        v = None if voxel_weight is None else voxel_weight.reshape(labels.shape)
        return loss, _total_weight(op, labels, _detached(weight), v, num_classes, ignore_index, label_table)

    refused: list[Exception] = []
    loss, total = sums_or_zeros(process_group, refused, input, lambda: [(), ()], of_this_rank)
    loss = loss.to(total.dtype)
    if process_group is not None or is_dtensor(input):
        loss, total = sum_over_ranks(op, process_group, refused, loss, total)
    return _mean_or_sum(loss, total, "sum" if code == _SUM else "mean", empty_zero).to(dtype)


def _binary_loss(
    op: str,
    process_group: "ProcessGroup | None",
    input: Tensor,
    code: int,
    empty_zero: bool,
    of_this_rank: Callable[[int, torch.dtype | None], tuple[Tensor, Tensor]],
) -> Tensor:
    """Binary cross entropy or sigmoid focal loss; if it is reduced, of the data of all ranks.

    `of_this_rank` returns the loss with a given reduction and dtype, and its total weight.
    """
    if code == _NONE or (process_group is None and not is_dtensor(input)):
        return of_this_rank(code, None)[0]
    dtype = _result_dtype(input)
    wide = torch.promote_types(dtype, torch.float32)  # rounded once, when the loss is finished
    refused: list[Exception] = []
    loss, total = sums_or_zeros(process_group, refused, input, lambda: [(), ()], of_this_rank, _SUM, wide)
    loss, total = sum_over_ranks(op, process_group, refused, loss.to(total.dtype), total)
    return _mean_or_sum(loss, total, "sum" if code == _SUM else "mean", empty_zero).to(dtype)


def _holds_probabilities(shape: torch.Size, target: Tensor) -> bool:
    """Whether the target of a softmax over logits of this shape holds class probabilities."""
    return target.is_floating_point() and target.shape == shape


def _total_voxel_weight(input: Tensor, shape: torch.Size, dim: int, voxel_weight: Tensor | None) -> Tensor:
    if voxel_weight is None:
        return input.new_full((), _num_voxels(shape, dim), dtype=torch.float64)
    return voxel_weight.sum(dtype=torch.float64)


def _num_voxels(shape: torch.Size, dim: int) -> int:
    """The number of voxels of logits, which may have no class."""
    sizes = list(shape)
    del sizes[dim if len(sizes) > 1 else 0]
    return math.prod(sizes)


def _labels(op: str, input: Tensor, target: Tensor, dim: int, resize: int) -> Tensor:
    """Class labels of a one-hot target; other targets unchanged."""
    if (
        target.shape != full_shape(input, target, dim, resize)
        or not -input.dim() <= dim < input.dim()
        or input.dim() < 2
    ):
        return target
    has_one_channel = input.shape[dim] == 1
    if target.is_floating_point():
        advice = "a loss with activation='sigmoid', which takes a mask" if has_one_channel else f"target.argmax({dim})"
        raise RuntimeError(
            f"{op}: expected class labels, got class probabilities, a {target.dtype} target of input's shape "
            f"{list(target.shape)}. Use {advice}"
        )
    return target if has_one_channel else _one_hot_labels(op, target, dim % input.dim())


def _warn_of_one_channel(op: str, input: Tensor, dim: int) -> None:
    """Warns of a softmax over one channel, which torch accepts silently; ``dim`` is one of input's dimensions."""
    if not isinstance(input, Tensor):  # an object that torch itself unwraps
        return
    if input.shape[dim if input.dim() > 1 else 0] == 1 and not torch.compiler.is_compiling():
        warnings.warn(
            f"{op}: input {list(input.shape)} has one channel, whose softmax is 1: the loss is 0 and has no gradient. "
            "Use segloss.binary_cross_entropy_with_logits, or segloss.focal_loss or a region loss with "
            'activation="sigmoid"',
            UserWarning,
            stacklevel=3,
        )


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _check_types(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    ignore_index: int,
    dim: int,
    **numbers: float,
) -> None:
    """Raises a TypeError for an argument that is not a dense tensor or not a number.

    The dispatcher's error would print the whole argument; ``from None`` leaves it out of the traceback. If nothing but
    the operator reads the arguments, the check runs after the operator has refused them: good calls do not wait for it.
    """
    _check_tensor(op, "input", input)
    _check_tensor(op, "target", target)
    if weight is not None:
        _check_tensor(op, "weight", weight)
    if voxel_weight is not None:
        _check_tensor(op, "voxel_weight", voxel_weight)
    _check_integer(op, "ignore_index", ignore_index)
    _check_integer(op, "dim", dim)
    _check_numbers(op, **numbers)


def _check_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        got, advice = type(value).__name__, _advice_for(name, value)
        raise TypeError(f"{op}: expected {name} to be a torch.Tensor, got {got}. {advice}") from None
    if value.is_nested:  # its shape cannot be read
        raise TypeError(
            f"{op}: expected a dense {name}, got a nested tensor. Use {name}.to_padded_tensor(), and ignore_index as "
            "the label of the padding"
        ) from None
    if value.layout != torch.strided:
        raise TypeError(f"{op}: expected a dense {name}, got {value.layout}. Use {name}.to_dense()") from None


def _advice_for(name: str, value: object) -> str:
    """What to do with an argument that is no tensor: networks return dictionaries and lists of tensors as well."""
    if isinstance(value, Mapping):
        names = [key for key, each in value.items() if isinstance(each, Tensor)]
        return f"Pass a tensor that is in it: {reprlib.repr(names)}"
    if name != "weight" and isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value):
        several = ", or DeepSupervisionLoss where they are outputs of several resolutions"
        return f"Use torch.stack({name}) where its tensors are samples" + (several if name == "input" else "")
    return "Use torch.tensor(weight, dtype=torch.float32)" if name == "weight" else f"Use torch.as_tensor({name})"


def _check_options(op: str, ignore_index: int, dim: int, label_smoothing: float = 0.0) -> None:
    """Raises a TypeError for options that the dispatcher would convert: True, a float that it truncates, a list of one.

    The usual types pass without a call.
    """
    if type(ignore_index) is not int:
        _check_integer(op, "ignore_index", ignore_index)
    if type(dim) is not int:
        _check_integer(op, "dim", dim)
    if type(label_smoothing) is not float:
        _check_number(op, "label_smoothing", label_smoothing)


def _check_integer(op: str, name: str, value: object) -> None:
    """Raises a TypeError for a value that torch does not accept as an int: a bool. A 0-dim integer tensor passes."""
    if isinstance(value, bool) or not (isinstance(value, _INTEGER) or _is_scalar_tensor(value, is_integer=True)):
        raise TypeError(f"{op}: expected {name} to be an int, got {reprlib.repr(value)}") from None
    if not _INT64_MIN <= value <= _INT64_MAX:  # type: ignore[operator]
        raise ValueError(f"{op}: expected {name} to be an int of 64 bits, got {reprlib.repr(value)}") from None


def _check_number(op: str, name: str, value: object) -> None:
    """Raises a TypeError for a value that is not a real number; a real 0-dim tensor is one."""
    if not (isinstance(value, _REAL) or _is_scalar_tensor(value, is_integer=False)):
        raise TypeError(f"{op}: expected {name} to be a float, got {reprlib.repr(value)}") from None
    if isinstance(value, int) and not _INT64_MIN <= value <= _INT64_MAX:
        raise ValueError(f"{op}: expected {name} to be a float, got an int beyond 64 bits") from None


def _is_scalar_tensor(value: object, is_integer: bool) -> bool:
    if not isinstance(value, Tensor) or value.dim() > 0 or value.is_complex():
        return False
    return not is_integer or not (value.is_floating_point() or value.dtype == torch.bool)


def _check_numbers(op: str, **numbers: float) -> None:
    for name, number in numbers.items():
        _check_number(op, name, number)


def _check_flags(op: str, **flags: bool) -> None:
    for name, flag in flags.items():
        if type(flag) is not bool:
            _check_choice(op, name, flag, (True, False))


def _check_choice(op: str, name: str, value: object, choices: tuple[object, ...], advice: str = "") -> None:
    if value not in choices:
        *others, last = map(repr, choices)
        expected = f"{', '.join(others)} or {last}"
        got = reprlib.repr(value)
        raise ValueError(f"{op}: expected {name} to be {expected}, got {got}" + (advice and f". {advice}"))


def _checked_threshold(op: str, threshold: object) -> float | None:
    """A threshold as a float; None as it is. It is no tensor, whose value the host would wait for."""
    if threshold is None:
        return None
    if isinstance(threshold, bool) or not isinstance(threshold, _REAL):
        raise TypeError(f"{op}: expected threshold to be a float, a raw logit, got {reprlib.repr(threshold)}")
    return float(threshold)


def _check_gamma(op: str, gamma: float) -> None:
    _check_number(op, "gamma", gamma)
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"{op}: expected gamma, an exponent, in [0, inf), got {gamma!r}")


def _reduction_code(op: str, reduction: str, size_average: bool | None, reduce: bool | None) -> int:
    if size_average is not None or reduce is not None:
        return _reduction.legacy_get_enum(size_average, reduce)  # warns as torch does
    try:
        return _reduction.get_enum(reduction)
    except ValueError as error:
        raise ValueError(f"{op}: {error}. Expected 'mean', 'sum' or 'none'") from None


def _is_zero(op: str, empty: str) -> bool:
    _check_choice(op, "empty", empty, ("nan", "zero"))
    return empty == "zero"


def _mean_or_sum(loss: Tensor, total: Tensor, reduction: str, empty_zero: bool) -> Tensor:
    """A sum of voxel losses, or its mean; `total` is the denominator of the mean, whose gradient is 0 if it is 0."""
    if reduction == "sum":
        return loss
    empty = total == 0
    return torch.where(empty, 0.0 if empty_zero else float("nan"), loss / total.masked_fill(empty, 1))


def _result_dtype(input: Tensor) -> torch.dtype:
    """Input's dtype; float32 for half types under autocast."""
    device = input.device.type
    autocast = is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.promote_types(input.dtype, torch.float32) if autocast else input.dtype
