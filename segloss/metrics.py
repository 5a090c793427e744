"""Metrics: how good a prediction is."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from segloss._docs import documented
from segloss._label_sets import Regions
from segloss._labels import IgnoreIndex, LabelMap, LabelOptions, check_no_regions, num_classes_of, read_labels
from segloss._upsample import Upsample, Upsampling, full_shape, resized_dims, upsampling_code
from segloss.functional import _check_flags, _check_integer, _check_options, _check_types, _checked_threshold, _plain
from segloss.region import _sums, _Walk

_OPERATORS: dict[str, Callable[..., Tensor]] = {
    name: getattr(torch.ops.segloss, name).default
    for name in ("accuracy", "confusion_matrix", "dice_score", "jaccard_index")
}

_NO_REGIONS = "a voxel then has no one class that can be right. Use dice_score or jaccard_index"


@documented()
def confusion_matrix(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    masks: bool = False,
    threshold: float | None = None,
    per_sample: bool = False,
) -> Tensor:
    """Confusion matrix: how many voxels of each class are predicted as each class.

    Over the voxels with label y != ignore_index and predicted class q = argmax_c x[c] of the logits x::

        matrix[j, k] = number of voxels with y == j and q == k

    The kernel reads the logits once, for argmax and counting together.

    Args:
        input: logits ``[N, C, *]`` or ``[C]`` of two or more classes (floating; the first of equal logits wins, nan
            counts as largest), or a map of predicted labels ``[N, *]`` or ``[N, 1, *]`` (integer or bool).
        target: labels ``[N, *]`` or ``[N, 1, *]``: any integer dtype, bool, or floating with integral values; or, with
            logits, one-hot of input's shape.
        num_classes: C; it also says that integer or bool input is a label map. Default: None, the number of classes of
            the logits, or with label maps 1 + the largest label of both at the voxels that count, 0 if there is none.
            Give it to add matrices of several batches, and on a GPU, where the host otherwise waits for this number.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in target; whatever is
            predicted there.
        label_map: the class of each label, where labels are not classes themselves: a mapping ``{label: class}``, in
            which the class None says that the label is ignored, and the key ``...`` stands for all labels that it does
            not name; or an integer tensor ``[L]`` with the classes of the labels 0 to L - 1. A class that is one of
            ``ignore_index`` means ignored, too. It maps the labels of target, not those of a predicted map.
            Default: None, labels are classes.
        regions: of ``segloss.dice_score`` and ``segloss.jaccard_index``; any but None is an error.
        dim: the class dimension of input.
        upsample: how to take logits to the target's size before the argmax, as in ``segloss.cross_entropy``. Default:
            None, both have one size.
        align_corners: with linear interpolation, whether the corners of both sizes are the same places.
        masks: whether input and target are masks, one for each class, as in ``segloss.dice_score``.
        threshold: for logits of a sigmoid, of any number of channels: each channel is a prediction of its own, of the
            voxels where the raw logit is above the threshold; 0 is the probability 1/2. Target is a mask for each
            channel, of input's shape, or class labels, where class c is the foreground of channel c; with one channel a
            map of 0 and 1. Default: None, the argmax of the channels.
        per_sample: whether each sample of the batch has a result of its own. Default: False, that of the whole batch,
            which is not the mean of those of its samples.

    Returns:
        An int64 tensor ``[C, C]``, rows are classes of the target, columns classes of the prediction; with
        ``masks=True`` or ``threshold`` a matrix for each class or channel, ``[C, 2, 2]``. With ``per_sample``
        ``[N, C, C]`` or ``[N, C, 2, 2]``. The counts are exact for any number of voxels. Has no gradient.

    Raises:
        IndexError: a label, or the prediction of a voxel that counts, is outside [0, C).
        ValueError: ``num_classes`` is not the number of classes of the logits.
        TypeError: as ``segloss.cross_entropy``; ``threshold`` with integer input.
        RuntimeError: as ``segloss.cross_entropy``; label maps have different shapes; floating input has one channel
            (``(input > 0).long()`` makes the logits of one foreground class a label map) or holds predicted labels (use
            ``input.long()``). Without ``num_classes``: input and target of one shape are both exactly one-hot along
            ``dim``, or both bool with more than one entry there, and may thus be masks; or the labels need more than
            2^24 counts. ``per_sample=True`` with input of one sample without a batch dimension. With ``threshold``, a
            mask holds another value than 0, 1 or ``ignore_index``.

    Equivalent to:
        ``torch.bincount(target.flatten() * C + input.argmax(1).flatten(), minlength=C * C).view(C, C)`` for int64
        labels ``[N, *]`` if no voxel is ignored.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
        >>> segloss.confusion_matrix(logits, torch.tensor([1, 0, 0]))
        tensor([[1, 1],
                [0, 1]])

    See also:
        * ``segloss.accuracy``, ``segloss.dice_score``, ``segloss.jaccard_index``: scores computed from the same counts
    """
    check_no_regions("confusion_matrix", regions, _NO_REGIONS)
    labels, resize = LabelOptions(ignore_index, label_map), Upsampling(upsample, align_corners)
    return _score(
        "confusion_matrix", input, target, _Options(num_classes, labels, dim, resize, masks, threshold, per_sample)
    )


@documented(like=confusion_matrix)
def accuracy(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    masks: bool = False,
    threshold: float | None = None,
    per_sample: bool = False,
) -> Tensor:
    """Accuracy: the share of voxels whose predicted class is the label.

    Over the voxels with label y != ignore_index and predicted class q = argmax_c x[c] of the logits x::

        accuracy = number of voxels with y == q / number of voxels

    The kernel reads the logits once, for argmax and counting together.

    Args:
        num_classes: C. Default: None, the number of classes of the logits; label maps may hold any labels.
        masks: whether input and target are masks, one for each class, as in ``segloss.dice_score``.
        others: as in ``segloss.confusion_matrix``.

    Returns:
        A 0-dim tensor of torch's default dtype; nan if no voxel counts. With ``masks=True`` or ``threshold`` a tensor
        ``[C]``, for each class the share of voxels where both masks agree. With ``per_sample`` ``[N]`` or ``[N, C]``.
        The counts are exact. Has no gradient.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.confusion_matrix``, and with ``masks=True`` as
            ``segloss.dice_score``.

    Equivalent to:
        ``(input.argmax(1) == target.squeeze(1)).float().mean()`` if no voxel is ignored.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
        >>> segloss.accuracy(logits, torch.tensor([1, 0, 0]))
        tensor(0.6667)
        >>> predicted, target = torch.tensor([[[1, 1], [0, 1]]]), torch.tensor([[[1, 0], [0, 1]]])
        >>> segloss.accuracy(predicted, target, masks=True)  # two classes of two voxels
        tensor([0.5000, 1.0000])

    See also:
        * ``segloss.dice_score``, ``segloss.jaccard_index``: scores of each class
        * ``segloss.confusion_matrix``: the counts
    """
    check_no_regions("accuracy", regions, _NO_REGIONS)
    labels, resize = LabelOptions(ignore_index, label_map), Upsampling(upsample, align_corners)
    return _score("accuracy", input, target, _Options(num_classes, labels, dim, resize, masks, threshold, per_sample))


@documented(like=confusion_matrix)
def dice_score(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    masks: bool = False,
    threshold: float | None = None,
    per_sample: bool = False,
) -> Tensor:
    """Dice score of each class.

    With the true positives TP, false positives FP and false negatives FN of a class over all voxels of the batch that
    count::

        score = 2 * TP / (2 * TP + FP + FN)

    Source: Dice 1945, "Measures of the Amount of Ecologic Association Between Species", Ecology 26.

    Its memory grows with C, not with C^2 as that of ``segloss.confusion_matrix``.

    Args:
        regions: the classes of each region, overlapping as they like: ``[(1, 2, 3), (1, 3), (3,)]``; the result has a
            score for each. Input is then the logits of a channel for each region, of which those above ``threshold``,
            or 0, are in it, or a map of predicted classes. Classes of target are its labels, or those of ``label_map``.
            Default: None, a score for each class.
        masks: whether input and target are masks of 0 and 1, one for each class. Classes may overlap; each has its own
            score. Both are ``[N, C, *]``, with the classes in ``dim``; or for one class ``[N, *]`` and ``[N, 1, *]``,
            or both ``[N]``. Input is integer or bool, target any dtype of labels. A voxel whose target is
            ``ignore_index`` in any class is ignored in all.
        others: as in ``segloss.confusion_matrix``.

    Returns:
        A tensor ``[C]`` of torch's default dtype, with ``per_sample`` ``[N, C]``; nan for a class that is neither in
        target nor predicted. The counts are exact. Has no gradient. ``torch.nanmean`` gives the mean over the classes
        that occur.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.confusion_matrix``. With ``masks=True``:
        TypeError: input is floating.
        ValueError: ``num_classes`` is not the number of masks.
        RuntimeError: a value is neither 0 nor 1 nor, in target, ``ignore_index``; ``ignore_index`` is 0 or 1; shapes
            differ.

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

    See also:
        * ``segloss.jaccard_index``: intersection over union instead
        * ``segloss.dice_loss``: the differentiable loss
        * ``segloss.confusion_matrix``, ``segloss.accuracy``: other metrics
    """
    labels, resize = LabelOptions(ignore_index, label_map, regions), Upsampling(upsample, align_corners)
    return _score("dice_score", input, target, _Options(num_classes, labels, dim, resize, masks, threshold, per_sample))


@documented(like=dice_score)
def jaccard_index(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    masks: bool = False,
    threshold: float | None = None,
    per_sample: bool = False,
) -> Tensor:
    """Jaccard index, intersection over union (IoU), of each class.

    With the true positives TP, false positives FP and false negatives FN of a class over all voxels of the batch that
    count::

        score = TP / (TP + FP + FN)

    Source: Jaccard 1912, "The Distribution of the Flora in the Alpine Zone", New Phytologist 11.

    Args:
        others: as in ``segloss.dice_score``.

    Returns:
        A tensor ``[C]`` of torch's default dtype, with ``per_sample`` ``[N, C]``; nan for a class that is neither in
        target nor predicted. The counts are exact. Has no gradient. ``torch.nanmean`` gives the mean over the classes
        that occur.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_score``.

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

    See also:
        * ``segloss.dice_score``: the Dice score instead
        * ``segloss.dice_loss``: with ``jaccard=True`` the differentiable loss
        * ``segloss.confusion_matrix``, ``segloss.accuracy``: other metrics
    """
    labels, resize = LabelOptions(ignore_index, label_map, regions), Upsampling(upsample, align_corners)
    return _score(
        "jaccard_index", input, target, _Options(num_classes, labels, dim, resize, masks, threshold, per_sample)
    )


class _Options(NamedTuple):
    """The keywords that the metrics share, as the caller gave them."""

    num_classes: int | None
    labels: LabelOptions
    dim: int
    resize: Upsampling
    masks: bool
    threshold: float | None
    per_sample: bool


def _score(op: str, input: Tensor, target: Tensor, options: _Options) -> Tensor:
    input, target = _plain(input), _plain(target)
    num_classes, labels, dim, resize, masks, threshold, per_sample = options
    _check_flags(op, masks=masks, per_sample=per_sample)
    if num_classes is not None:
        _check_integer(op, "num_classes", num_classes)
    if threshold is not None or labels.regions is not None:
        return _score_of_channels(op, input, target, options)
    ignore_index, label_table = read_labels(op, input, target, dim, labels)
    _check_options(op, ignore_index, dim)
    upsample = upsampling_code(op, input, resize)
    arguments = (input, target, num_classes, ignore_index, dim, masks, label_table, upsample, per_sample)
    try:
        return _OPERATORS[op](*arguments)
    except (TypeError, RuntimeError):
        _check_types(op, input, target, None, None, ignore_index, dim)
        raise


def _score_of_channels(op: str, input: Tensor, target: Tensor, options: _Options) -> Tensor:
    """The score of each channel or region, which may overlap: of masks, or from the classes of label maps."""
    num_classes, labels, dim, resize, masks, threshold, per_sample = options
    _check_types(op, input, target, None, None, 0, dim)
    level = _checked_threshold(op, threshold)
    num_channels = _num_channels(input, options)
    if masks or (num_channels is not None and num_classes not in (None, num_channels)):
        given = "threshold" if labels.regions is None else "regions"
        raise ValueError(
            f"{op}: expected masks=False and no other num_classes than {num_channels} with {given}, got masks={masks} "
            f"and num_classes={num_classes}"
        )
    upsample = upsampling_code(op, input, resize)
    if not input.is_floating_point():
        if level is not None:
            raise TypeError(f"{op}: expected floating logits with threshold, got {input.dtype} input")
        return _score_of_pairs(op, input, target, options, upsample)
    if per_sample and input.dim() < 2:
        raise RuntimeError(
            f"{op}: expected a batch with per_sample=True, got one sample, input {list(input.shape)}. Use "
            "input.unsqueeze(0) and target.unsqueeze(0)"
        )
    above = _above(level or 0.0, input, target, dim, upsample)
    tp, predicted, actual = _counts(op, above, target, options)
    if op == "dice_score":
        return _quotient(2 * tp, predicted + actual)
    if op == "jaccard_index":
        return _quotient(tp, predicted + actual - tp)
    _, not_predicted, _ = _counts(op, ~above, target, options)
    tn = not_predicted - (actual - tp)
    if op == "accuracy":
        return _quotient(tp + tn, predicted + not_predicted)
    rows = [torch.stack([tn, predicted - tp], -1), torch.stack([actual - tp, tp], -1)]
    return torch.stack(rows, -2).to(torch.int64)


def _score_of_pairs(op: str, input: Tensor, target: Tensor, options: _Options, upsample: int) -> Tensor:
    """The score of each region of a map of predicted classes."""
    _, labels, dim, _, _, _, per_sample = options
    if upsample != 0:
        raise ValueError(f"{op}: expected logits with upsample, got {input.dtype} input, a label map")
    assert labels.regions is not None
    _, table = read_labels(op, input, target, dim, labels)
    assert table is not None
    num_classes = num_classes_of(table)
    ignore_index, of_pairs = read_labels(op, None, target, dim, labels._replace(regions=None))
    arguments = (input, target, num_classes, ignore_index, dim, False, of_pairs, 0, per_sample, op)
    pairs = _OPERATORS["confusion_matrix"](*arguments).unsqueeze(-3)
    members = torch.tensor(
        [[c in region for c in range(num_classes)] for region in labels.regions], device=input.device
    )
    is_label, is_predicted = members[:, :, None], members[:, None, :]
    both, either = ((pairs * where).sum((-2, -1)) for where in (is_label & is_predicted, is_label | is_predicted))
    above, below = (2 * both, both + either) if op == "dice_score" else (both, either)
    return _quotient(above, below)


def _num_channels(input: Tensor, options: _Options) -> int | None:
    """The number of scores; None if ``dim`` is not a dimension of input, which an operator refuses."""
    if options.labels.regions is not None:
        return len(options.labels.regions)
    along = 0 if input.dim() == 1 else options.dim
    return input.shape[along] if -input.dim() <= along < input.dim() else None


def _above(threshold: float, input: Tensor, target: Tensor, dim: int, upsample: int) -> Tensor:
    """Where the logits, taken to the target's size, are above the threshold, which is not rounded to a half type."""
    if input.dim() == 0:
        return input.detach() > threshold  # what counts refuses it
    along, shape = dim % input.dim(), full_shape(input, target, dim, upsample)
    size = [shape[d] for d in resized_dims(input.dim(), along, upsample)]
    above: Tensor = torch.ops.segloss.predict(input.detach(), size, upsample, threshold, torch.bool, along)
    return above


def _counts(op: str, above: Tensor, target: Tensor, options: _Options) -> tuple[Tensor, Tensor, Tensor]:
    """Of each channel, [C] or [N, C]: the voxels that are above and in the target, that are above, in the target.

    These are the sums of a region loss whose probabilities are 0 and 1; they are exact.
    """
    p, labels = above.to(torch.bfloat16), options.labels
    if labels.regions is None and target.shape == above.shape and _num_channels(p, options) != 1:
        _check_masks(op, p, target, options)
    walk = _Walk(options.dim, Upsampling(), None, labels, batch=not options.per_sample)
    try:
        with torch.no_grad():
            return _sums(op, p, _as_integers(target), None, None, walk)[0]
    except (IndexError, RuntimeError):
        _check_integral(op, target)
        raise


def _check_masks(op: str, p: Tensor, target: Tensor, options: _Options) -> None:
    """Raises if the masks would need a table of labels."""
    _, table = read_labels(op, p, target, options.dim, options.labels)
    if table is not None:
        raise ValueError(
            f"{op}: expected one ignore_index and no label_map with a mask for each class, a target "
            f"{list(target.shape)} of input's shape, got several labels or a label_map. Use class labels, or masks of "
            "0, 1 and one other value"
        )


# No label or mask, so that the kernels refuse it.
_NO_INTEGER = -(2**62)


def _as_integers(target: Tensor) -> Tensor:
    """Floating labels or masks as integers: a region loss would take fractions."""
    if not target.is_floating_point():
        return target
    integers = target.to(torch.int64)
    return torch.where(integers == target, integers, _NO_INTEGER)


def _check_integral(op: str, target: Tensor) -> None:
    is_fraction = target != target.floor() if target.is_floating_point() else target.new_zeros((), dtype=torch.bool)
    if is_fraction.any():
        raise RuntimeError(
            f"{op}: expected integral labels, or masks of 0 and 1, got {target[is_fraction][0].item():g} in target "
            f"{list(target.shape)}. Use target.round() for labels, target > 0.5 for masks of probabilities"
        ) from None


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    wide = torch.float32 if above.is_mps else torch.float64  # MPS has no float64
    return (above.to(wide) / below.to(wide)).to(torch.get_default_dtype())
