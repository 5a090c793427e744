"""How good a prediction is."""

from collections.abc import Callable

import torch
from torch import Tensor

from segloss._docs import documented
from segloss.functional import _check_flags, _check_integer, _check_options, _check_types

_OPERATORS: dict[str, Callable[..., Tensor]] = {
    name: getattr(torch.ops.segloss, name).default
    for name in ("accuracy", "confusion_matrix", "dice_score", "jaccard_index")
}


@documented()
def confusion_matrix(
    input: Tensor, target: Tensor, num_classes: int | None = None, *, ignore_index: int = -100, dim: int = 1
) -> Tensor:
    r"""How many voxels of each class are predicted as each class: argmax and counting in one walk over the logits.

    .. math::
        M_{jk} = \sum_v [y_v \ne \mathrm{ignore}]\,[y_v = j]\,[\hat y_v = k],
        \qquad \hat y_v = \mathrm{argmax}_c\, x_{v,c}

    Args:
        input: logits ``[N, C, *]`` or ``[C]`` of two classes or more (floating; the first of equal logits wins, nan
            counts as largest), or a map of predicted labels ``[N, *]`` or ``[N, 1, *]`` (integer or bool).
        target: labels ``[N, *]`` or ``[N, 1, *]`` of any integer dtype, bool or integral floats; or, with logits,
            one-hot of input's shape.
        num_classes: C, and with integer or bool input that it is a label map. Default: None, the classes of the logits;
            with label maps 1 + the largest label of both at the voxels that count, 0 if there is none: give it where
            matrices of several batches are to be added.
        ignore_index: label of the voxels that do not count, whatever is predicted there.
        dim: the class dimension of input.

    Returns:
        int64 ``[C, C]``, the row is the target's class, the column the prediction's. The counts are exact, for any
        number of voxels. Has no gradient.

    Raises:
        IndexError: a label, or the prediction of a voxel that counts, is outside [0, C).
        ValueError: ``num_classes`` is not the number of classes of the logits.
        TypeError: as :func:`segloss.cross_entropy`.
        RuntimeError: as :func:`segloss.cross_entropy`; label maps have different shapes; floating input has one channel
            (the logits of one foreground class become a label map by ``(input > 0).long()``) or holds predicted labels
            (``input.long()``). Without ``num_classes``: input and target of one shape are both exactly one-hot along
            ``dim``, or both bool with more than one entry there, and thus no label maps; or the labels ask for more
            than 2^24 counts.

    Equivalent to:
        ``torch.bincount(target.flatten() * C + input.argmax(1).flatten(), minlength=C * C).view(C, C)`` for int64
        labels ``[N, *]`` where nothing is ignored.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
        >>> segloss.confusion_matrix(logits, torch.tensor([1, 0, 0]))
        tensor([[1, 1],
                [0, 1]])
    """
    return _score("confusion_matrix", input, target, num_classes, ignore_index, dim)


@documented(like=confusion_matrix)
def accuracy(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    ignore_index: int = -100,
    dim: int = 1,
    masks: bool = False,
) -> Tensor:
    r"""Share of the voxels whose predicted class is the label: argmax and comparison in one walk over the logits.

    .. math::
        \frac{\sum_v [y_v \ne \mathrm{ignore}]\,[\mathrm{argmax}_c\, x_{v,c} = y_v]}{\sum_v [y_v \ne \mathrm{ignore}]}

    Args:
        num_classes: C. Default: None, the classes of the logits; label maps are compared whatever their labels are.
        masks: whether input and target are masks, one for each class: those of :func:`segloss.dice_score`.

    Returns:
        A 0-dim tensor of torch's default dtype; nan if no voxel counts. With ``masks=True`` a tensor ``[C]``: of each
        class the share of the voxels where both masks agree. The counts are exact. Has no gradient.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as :func:`segloss.confusion_matrix`, and with ``masks=True`` as
            :func:`segloss.dice_score`.

    Equivalent to:
        ``(input.argmax(1) == target.squeeze(1)).float().mean()`` where nothing is ignored.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
        >>> segloss.accuracy(logits, torch.tensor([1, 0, 0]))
        tensor(0.6667)
        >>> predicted, target = torch.tensor([[[1, 1], [0, 1]]]), torch.tensor([[[1, 0], [0, 1]]])
        >>> segloss.accuracy(predicted, target, masks=True)  # two classes of two voxels
        tensor([0.5000, 1.0000])
    """
    return _score("accuracy", input, target, num_classes, ignore_index, dim, masks)


@documented(like=confusion_matrix)
def dice_score(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    ignore_index: int = -100,
    dim: int = 1,
    masks: bool = False,
) -> Tensor:
    r"""Dice score of each class.

    (Dice, "Measures of the amount of ecologic association between species", 1945.)

    .. math::
        \frac{2\,\mathrm{TP}_c}{2\,\mathrm{TP}_c + \mathrm{FP}_c + \mathrm{FN}_c}

    with the true positives, false positives and false negatives over all voxels of the batch that count. Errors
    are those of :func:`segloss.confusion_matrix`; the memory it takes grows with C, not with C^2.

    Args:
        masks: whether input and target are masks of 0 and 1, one for each class. Classes may overlap; each is scored by
            itself. Both are ``[N, C, *]``, with the classes in ``dim``; or for one class ``[N, *]`` and ``[N, 1, *]``,
            or ``[N]`` both. Input is integer or bool, target any dtype of labels. A voxel whose target is
            ``ignore_index`` in any class counts in none.

    Returns:
        A tensor ``[C]`` of torch's default dtype; nan for a class that is neither in target nor predicted. The counts
        are exact. Has no gradient: :func:`torch.nanmean` gives the mean over the classes that occur.

    Raises:
        TypeError: with ``masks=True``, floating input.
        ValueError: with ``masks=True``, another ``num_classes`` than there are masks.
        RuntimeError: with ``masks=True``, a value that is neither 0 nor 1 nor, in target, ``ignore_index``, or an
            ``ignore_index`` of 0 or 1; shapes that differ.

    Equivalent to:
        ``2 * m.diag() / (m.sum(0) + m.sum(1))`` for ``m = segloss.confusion_matrix(input, target)``.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [0.3, 0.7, 0.0]])
        >>> segloss.dice_score(logits, torch.tensor([1, 0, 0]))
        tensor([0.6667, 0.6667,    nan])
        >>> predicted, target = torch.tensor([[[1, 1], [0, 1]]]), torch.tensor([[[1, 0], [0, 1]]])
        >>> segloss.dice_score(predicted, target, masks=True)  # two classes of two voxels
        tensor([0.6667, 1.0000])
    """
    return _score("dice_score", input, target, num_classes, ignore_index, dim, masks)


@documented(like=dice_score)
def jaccard_index(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    ignore_index: int = -100,
    dim: int = 1,
    masks: bool = False,
) -> Tensor:
    r"""Jaccard index, intersection over union, of each class.

    (Jaccard, "The distribution of the flora in the alpine zone", 1912.)

    .. math::
        \frac{\mathrm{TP}_c}{\mathrm{TP}_c + \mathrm{FP}_c + \mathrm{FN}_c}

    Result and errors are those of :func:`segloss.dice_score`.

    Equivalent to:
        ``m.diag() / (m.sum(0) + m.sum(1) - m.diag())`` for ``m = segloss.confusion_matrix(input, target)``.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [0.3, 0.7, 0.0]])
        >>> segloss.jaccard_index(logits, torch.tensor([1, 0, 0]))
        tensor([0.5000, 0.5000,    nan])
        >>> predicted, target = torch.tensor([[[1, 1], [0, 1]]]), torch.tensor([[[1, 0], [0, 1]]])
        >>> segloss.jaccard_index(predicted, target, masks=True)  # two classes of two voxels
        tensor([0.5000, 1.0000])
    """
    return _score("jaccard_index", input, target, num_classes, ignore_index, dim, masks)


def _score(
    op: str, input: Tensor, target: Tensor, num_classes: int | None, ignore_index: int, dim: int, *masks: bool
) -> Tensor:
    _check_options(op, ignore_index, dim)
    if num_classes is not None:
        _check_integer(op, "num_classes", num_classes)
    for flag in masks:
        _check_flags(op, masks=flag)
    try:
        return _OPERATORS[op](input, target, num_classes, ignore_index, dim, *masks)
    except (TypeError, RuntimeError):
        _check_types(op, input, target, None, None, ignore_index, dim)
        raise
