"""The losses as functions of (input, target)."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Literal

import torch
from torch import Tensor
from torch.nn import _reduction

Reduction = Literal["mean", "sum", "none"]
Empty = Literal["nan", "zero"]

_cross_entropy: Callable[..., Tensor] = torch.ops.segloss.cross_entropy.default


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    empty: Empty = "nan",
) -> Tensor:
    r"""Cross entropy of logits against labels as they come, or against class probabilities.

    A replacement of :func:`torch.nn.functional.cross_entropy` with the same values and gradients.

    For a voxel with logits :math:`x`, label :math:`y`, voxel weight :math:`v` and label smoothing :math:`s`

    .. math::
        l = v \left((1 - s)\, w_y\, (-\log p_y) + \frac{s}{C} \sum_c w_c\, (-\log p_c)\right),
        \qquad p = \mathrm{softmax}(x)

    and for class probabilities :math:`t`

    .. math::
        l = v \sum_c w_c \left((1 - s)\, t_c + \frac{s}{C}\right) (-\log p_c)

    (Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, for the smoothing.)
    A product with a zero weight or a zero probability is 0 even where the logit is -inf.

    Args:
        input: logits ``[N, C, *]`` with any number of spatial sizes, or ``[C]``; float64, float32, float16 or
            bfloat16, of any strides.
        target: one of

            * class labels ``[N, *]`` or ``[N, 1, *]``: any integer dtype, bool, or floating with integral values;
            * class probabilities, floating, of input's shape;
            * exact one-hot labels, integer, of input's shape.
        weight: a weight for each class ``[C]``, of any floating dtype. Default: 1.
        size_average: deprecated, see ``reduction``.
        ignore_index: label of the voxels that do not count. Class labels only. Default: -100.
        reduce: deprecated, see ``reduction``.
        reduction: ``"mean"`` divides the sum by ``sum(v * w[y])`` over the voxels that count (class probabilities: by
            ``sum(v)``, the number of voxels), ``"sum"`` adds, ``"none"`` gives one loss for each voxel, of the shape of
            the labels, or of input without ``dim`` for probabilities and one-hot. Default: ``"mean"``.
        label_smoothing: in [0, 1]. Default: 0.
        dim: the class dimension of input; ``dim=-1`` reads ``[B, L, C]``. Labels may keep a dimension of size 1 there.
            Default: 1.
        voxel_weight: a weight for each voxel, of the labels' shape; voxels of weight 0 do not count. Without gradient.
            Default: 1.
        empty: the mean over no voxel, or over zero weights: ``"nan"`` as torch, or ``"zero"``. With both the gradient
            is zero. Default: ``"nan"``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast; promoted with the dtype of probabilities).
        Sums are accumulated in double precision and do not depend on the number of threads.

    Raises:
        TypeError: input is not floating, or target is neither integer, bool nor floating.
        IndexError: a label is outside [0, C) and not ``ignore_index``, or ``dim`` is not a dimension of input.
        ValueError: the batch sizes of input and target differ, or an option has an unknown value.
        RuntimeError: the shapes do not fit, a floating label is not integral, an integer target of input's shape is
            not one-hot, ``label_smoothing`` is outside [0, 1], ``ignore_index`` >= 0 with class probabilities, a
            ``weight`` with class labels or a ``voxel_weight`` requires a gradient, or devices differ.

    Equivalent to:
        ``torch.nn.functional.cross_entropy(input, target.squeeze(1).long(), ...)`` for labels ``[N, 1, *]``.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)  # [N, 1, H, W]
        >>> segloss.cross_entropy(logits, labels)
        tensor(1.0066)
    """
    _check_types("cross_entropy", input, target, weight, voxel_weight, ignore_index, dim, label_smoothing)
    return _cross_entropy(
        input,
        target,
        weight,
        voxel_weight,
        dim,
        _reduction_code(reduction, size_average, reduce),
        ignore_index,
        label_smoothing,
        False,
        _is_zero("cross_entropy", empty),
    )


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    *,
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    empty: Empty = "nan",
) -> Tensor:
    r"""Negative log likelihood of log-probabilities against labels as they come.

    A replacement of :func:`torch.nn.functional.nll_loss` with the same values and gradients. For a voxel with
    log-probabilities :math:`x`, label :math:`y` and voxel weight :math:`v`

    .. math::
        l = -v\, w_y\, x_y

    and for class probabilities :math:`t`, :math:`l = -v \sum_c w_c\, t_c\, x_c`.

    Args:
        input: log-probabilities ``[N, C, *]`` or ``[C]``, as :func:`torch.nn.functional.log_softmax` gives them.

    All other arguments, the result and the errors are those of :func:`segloss.cross_entropy`.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[1, 0], [0, 1]]], dtype=torch.uint8)
        >>> segloss.nll_loss(logits.log_softmax(1), labels)
        tensor(1.0066)
    """
    _check_types("nll_loss", input, target, weight, voxel_weight, ignore_index, dim, 0.0)
    return _cross_entropy(
        input,
        target,
        weight,
        voxel_weight,
        dim,
        _reduction_code(reduction, size_average, reduce),
        ignore_index,
        0.0,
        True,
        _is_zero("nll_loss", empty),
    )


def _check_types(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    voxel_weight: Tensor | None,
    ignore_index: int,
    dim: int,
    label_smoothing: float,
) -> None:
    """TypeError for what is no tensor or no number; the dispatcher would print the whole of it."""
    tensors = {"input": input, "target": target, "weight": weight, "voxel_weight": voxel_weight}
    for name, value in tensors.items():
        optional = name in ("weight", "voxel_weight") and value is None
        if not (isinstance(value, Tensor) or optional):
            got = type(value).__name__
            raise TypeError(f"{op}: expected {name} to be a torch.Tensor, got {got}. Use torch.as_tensor({name})")
    for name, number in (("ignore_index", ignore_index), ("dim", dim)):
        if not isinstance(number, Integral):
            raise TypeError(f"{op}: expected {name} to be an int, got {number!r}")
    if not isinstance(label_smoothing, Real):
        raise TypeError(f"{op}: expected label_smoothing to be a float, got {label_smoothing!r}")


def _reduction_code(reduction: str, size_average: bool | None, reduce: bool | None) -> int:
    if size_average is not None or reduce is not None:
        return _reduction.legacy_get_enum(size_average, reduce)  # warns as torch does
    return _reduction.get_enum(reduction)


def _is_zero(op: str, empty: str) -> bool:
    if empty not in ("nan", "zero"):
        raise ValueError(f"{op}: expected empty to be 'nan' or 'zero', got {empty!r}")
    return empty == "zero"
