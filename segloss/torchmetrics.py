"""Metrics of torchmetrics, 1.9, that count with segloss: for a ``MetricCollection``, several ranks, and Lightning.

Keywords and values are those of the torchmetrics class that each class names. This module imports torchmetrics;
``import segloss`` does not import this module. Logits and labels are counted as they come, in one walk.
"""

import zlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from segloss._labels import IgnoreIndex, LabelMap, _ignored_labels
from segloss._upsample import Upsample
from segloss.functional import _check_choice
from segloss.metrics import confusion_matrix

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.plot import plot_confusion_matrix
except ModuleNotFoundError as error:
    raise ImportError(
        "segloss.torchmetrics: expected torchmetrics 1.9 or newer to be installed, got none. Use "
        '`pip install "torchmetrics>=1.9"`'
    ) from error

__all__ = ["Accuracy", "ConfusionMatrix", "DiceScore", "JaccardIndex", "MeanIoU"]

Average = Literal["micro", "macro", "weighted", "none"] | None

# Keywords of torchmetrics that are not taken, and what to do.
_NOT_TAKEN = {
    "input_format": "Drop it: logits and label maps are told apart. For masks keep torchmetrics.segmentation",
    "multidim_average": "For a score of each sample keep torchmetrics.classification.MulticlassAccuracy",
    "per_class": "Use average='none', or MeanIoU",
    "task": "Drop it, and pass average='micro' where Accuracy or F1Score had it by default; for binary or multilabel "
    "keep the class of torchmetrics",
    "top_k": "Keep torchmetrics.classification.MulticlassAccuracy",
    "validate_args": "Drop it: labels are checked while they are counted",
    "zero_division": "Only JaccardIndex has it. For Dice keep torchmetrics.classification.MulticlassF1Score",
}


class _Counts(Metric):
    """What all metrics here share: how they count, and states that add up over batches and ranks."""

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    _takes_threshold = False

    confmat: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: IgnoreIndex | None = None,
        label_map: LabelMap | None = None,
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        threshold: float | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        for keyword in kwargs.keys() & _NOT_TAKEN.keys():
            raise ValueError(f"{name}: expected no {keyword}. {_NOT_TAKEN[keyword]}")
        if threshold is not None and not self._takes_threshold:
            raise ValueError(
                f"{name}: expected no threshold, which makes a mask of each channel, got {threshold}. Use DiceScore or "
                f"MeanIoU, or keep torchmetrics.classification.Multilabel{name}"
            )
        least = 2 if threshold is None else 1
        if not isinstance(num_classes, int) or num_classes < least:
            raise ValueError(
                f"{name}: expected num_classes to be an int of at least {least}, got {num_classes}. The logits of one "
                "foreground class are two classes for `update(logits > 0, target)`"
            )
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.threshold = threshold
        self._ignored = () if ignore_index is None else _ignored_labels(name, ignore_index)
        self._options: dict[str, Any] = {
            "ignore_index": self._ignored,
            # A tensor would stay on its device when the metric moves, and a long one has a shortened repr (_add_sums).
            "label_map": dict(enumerate(label_map.tolist())) if isinstance(label_map, Tensor) else label_map,
            "dim": dim,
            "upsample": upsample,
            "align_corners": align_corners,
            "threshold": threshold,
        }

    def _add_confmat(self) -> None:
        size = [self.num_classes] * 2 if self.threshold is None else [self.num_classes, 2, 2]
        self._add_sums(confmat=torch.zeros(size, dtype=torch.int64))

    def _add_sums(self, *settings: object, **sums: Tensor) -> None:
        """Adds states that add up, and one that is always 0, whose name stands for all that the sums depend on.

        A MetricCollection lets metrics share their states if these have the same names and, after the first batch, the
        same values. Without that name, two metrics of different options would share theirs if they happened to agree on
        the first batch.
        """
        for name, zero in sums.items():
            self.add_state(name, zero, dist_reduce_fx="sum")
        key = zlib.crc32(repr((self._options, settings)).encode())
        self.add_state(f"counted_as_{key:08x}", torch.zeros(()), dist_reduce_fx="sum")

    def _count(self, preds: Tensor, target: Tensor, per_sample: bool = False) -> Tensor:
        matrix = confusion_matrix(preds, target, self.num_classes, **self._options, per_sample=per_sample)
        may_be_masks = not preds.is_floating_point() and preds.dim() > 1 and preds.shape == target.shape
        if may_be_masks and preds.shape[1] == self.num_classes:
            raise ValueError(
                f"{type(self).__name__}: expected logits or a label map, got {preds.dtype} preds {list(preds.shape)}, "
                f"which may be a mask for each of {self.num_classes} classes. Use `preds.unsqueeze(1)` of a label map; "
                "for masks keep the class in torchmetrics.segmentation"
            )
        return matrix

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts a batch: logits or a label map, and labels."""
        self.confmat = self.confmat + self._count(preds, target)


class ConfusionMatrix(_Counts):
    """Confusion matrix of all batches: how many voxels of each class are predicted as each class.

    Over the voxels with label y != ignore_index and predicted class q = argmax_c x[c] of the logits x::

        matrix[j, k] = number of voxels with y == j and q == k

    The values are those of ``torchmetrics.classification.MulticlassConfusionMatrix``.

    Args:
        num_classes: C, at least 2.
        normalize: "true" divides each row by its sum, the voxels of the class; "pred" each column; "all" the matrix. 0
            / 0 is 0. Default: None, or "none", counts.
        ignore_index: label of the voxels to ignore, or a sequence of labels. Default: None, all voxels count.
        label_map, dim, upsample, align_corners: as in ``segloss.confusion_matrix``.
        kwargs: those of ``torchmetrics.Metric``, such as ``process_group`` or ``sync_on_compute``.

    Call:
        preds: logits ``[N, C, *]`` (floating), or predicted labels ``[N, *]`` or ``[N, 1, *]`` (integer or bool).
        target: labels ``[N, *]`` or ``[N, 1, *]`` of any integer dtype, as in ``segloss.confusion_matrix``.

    Returns:
        int64 ``[C, C]``, or torch's default dtype with ``normalize``. Rows are classes of the target.

    Raises:
        ValueError: an option is not one of those above; integer preds of the target's shape have C entries in dimension
            1, and may thus be masks.
        TypeError, IndexError, RuntimeError: as ``segloss.confusion_matrix``.

    Example:
        >>> import torch
        >>> from segloss.torchmetrics import ConfusionMatrix
        >>> metric = ConfusionMatrix(num_classes=2)
        >>> metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 0]))
        >>> metric.update(torch.tensor([[0.3, 0.7]]), torch.tensor([0]))
        >>> metric.compute()
        tensor([[1, 1],
                [0, 1]])

    See also:
        * ``segloss.confusion_matrix``: of one batch
    """

    higher_is_better = None

    def __init__(
        self, num_classes: int, *, normalize: Literal["true", "pred", "all", "none"] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, **kwargs)
        _check_choice("ConfusionMatrix", "normalize", normalize, (None, "none", "true", "pred", "all"))
        self.normalize = normalize
        self._add_confmat()

    def compute(self) -> Tensor:
        """The matrix of all batches since the last reset."""
        if self.normalize is None or self.normalize == "none":
            return self.confmat
        dims = {"true": [-1], "pred": [-2], "all": [-2, -1]}[self.normalize]
        matrix = self.confmat.double()
        shares: Tensor = matrix / matrix.sum(dims, keepdim=True)
        return shares.nan_to_num(0).to(torch.get_default_dtype())

    def plot(self, val: Tensor | None = None, ax: Any = None, **options: Any) -> Any:
        """Draws the matrix, or val, as ``MulticlassConfusionMatrix.plot`` does, with its options."""
        return plot_confusion_matrix(self.compute() if val is None else val, ax=ax, **options)


class _Score(_Counts):
    """A quotient of each class's counts, averaged over classes: of all batches, or of each sample and then averaged.

    With ``background=False`` class 0 has no score. ``ignored`` says whether a class that is ``ignore_index`` has one;
    if None, it has a score of its own, but averages leave it out.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    total: Tensor
    num_scores: Tensor

    def __init__(
        self,
        num_classes: int,
        options: dict[str, Any],
        *,
        average: Average,
        background: bool = True,
        ignored: bool | None = None,
        samplewise: bool = False,
    ) -> None:
        super().__init__(num_classes, **options)
        _check_choice(type(self).__name__, "average", average, ("micro", "macro", "weighted", "none", None))
        self.average = average
        self.include_background = background
        self._samplewise = samplewise
        first = 0 if background or num_classes == 1 else 1
        of_classes = average in ("none", None)
        left_out = () if (of_classes if ignored is None else ignored) else self._ignored
        self._classes = [c for c in range(first, num_classes) if c not in left_out]
        if not samplewise:
            self._add_confmat()
            return
        shape = (len(self._classes),) if of_classes else ()
        sums = {"total": torch.zeros(shape, dtype=torch.float64), "num_scores": torch.zeros(shape, dtype=torch.int64)}
        self._add_sums(type(self).__name__, average, self._classes, **sums)

    def _terms(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of the score of each class."""
        raise NotImplementedError

    def _scores(self, matrices: Tensor) -> Tensor:
        """Scores [..., C] of matrices [..., C, C] or [..., C, 2, 2], or averages [...]; nan where none has a voxel."""
        matrices = matrices.double()
        if self.threshold is None:
            counts = matrices.diagonal(dim1=-2, dim2=-1), matrices.sum(-2), matrices.sum(-1)
        else:
            counts = matrices[..., 1, 1], matrices[..., :, 1].sum(-1), matrices[..., 1, :].sum(-1)
        tp, predicted, actual = (each[..., self._classes] for each in counts)
        numerator, denominator = self._terms(tp, predicted, actual)
        if self.average == "micro":
            return numerator.sum(-1) / denominator.sum(-1)
        scores = numerator / denominator
        if self.average in ("none", None):
            return scores
        occurs = predicted + actual > 0
        weights = actual if self.average == "weighted" else occurs.double()
        mean = (weights * scores.nan_to_num(0)).sum(-1) / weights.sum(-1).clamp_min(1)
        return mean.where(occurs.any(-1), torch.nan)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts a batch: logits or a label map, and labels."""
        if not self._samplewise:
            super().update(preds, target)
            return
        scores = self._scores(self._count(preds, target, per_sample=True))
        self.total = self.total + scores.nansum(0)
        self.num_scores = self.num_scores + scores.isfinite().sum(0)

    def compute(self) -> Tensor:
        """The score of all batches since the last reset."""
        score = self.total / self.num_scores if self._samplewise else self._scores(self.confmat)
        return score.to(torch.get_default_dtype())

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draws the score, or one or several values of it, as the metrics of torchmetrics do."""
        return self._plot(val, ax)


class Accuracy(_Score):
    """Accuracy: the share of the voxels of a class that are predicted as it, averaged over classes.

    With the true positives TP and false negatives FN of a class over the voxels of all batches that count::

        score = TP / (TP + FN)

    The values are those of ``torchmetrics.classification.MulticlassAccuracy``: a class that has no voxel scores 0, also
    in the mean, unless it is not predicted either.

    Args:
        average: "macro": the mean over the classes that are labelled or predicted. "micro": the share of all voxels.
            "weighted": the mean with the number of labelled voxels as weights, which is the same as "micro". "none" or
            None: a score for each class.
        others: as in ``segloss.torchmetrics.ConfusionMatrix``.

    Returns:
        A 0-dim tensor, or ``[C]``, of torch's default dtype; 0 if no voxel counts.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: as ``segloss.torchmetrics.ConfusionMatrix``.

    Example:
        >>> import torch
        >>> from segloss.torchmetrics import Accuracy
        >>> Accuracy(num_classes=2)(torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([1, 0, 0]))
        tensor(0.7500)

    See also:
        * ``segloss.accuracy``: of one batch, as ``average="micro"``
    """

    def __init__(self, num_classes: int, *, average: Average = "macro", **kwargs: Any) -> None:
        super().__init__(num_classes, kwargs, average=average, ignored=True)

    def _terms(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        return tp, actual

    def compute(self) -> Tensor:
        """The score of all batches since the last reset."""
        return super().compute().nan_to_num(0)


class _IntersectionOverUnion(_Score):
    def _terms(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        return tp, predicted + actual - tp


class JaccardIndex(_IntersectionOverUnion):
    """Jaccard index, intersection over union (IoU), over all batches.

    With the true positives TP, false positives FP and false negatives FN of a class over the voxels of all batches that
    count::

        score = TP / (TP + FP + FN)

    The values are those of ``torchmetrics.classification.MulticlassJaccardIndex``, which has no ``include_background``.

    Args:
        average: "macro": the mean over the classes that are labelled or predicted. "micro": TP, FP and FN are summed
            over the classes first. "weighted": the mean with the number of labelled voxels as weights. "none" or None:
            a score for each class. Averages leave out a class that is ``ignore_index``.
        include_background: whether class 0 has a score. Its voxels count for the other classes in any case.
        zero_division: the score of a class that is neither labelled nor predicted, and of "micro" without a voxel.
        others: as in ``segloss.torchmetrics.ConfusionMatrix``.

    Returns:
        A 0-dim tensor, or ``[C]`` or ``[C - 1]`` for each class that has a score, of torch's default dtype; nan for
        "macro" and "weighted" if no voxel counts.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: as ``segloss.torchmetrics.ConfusionMatrix``.

    Example:
        >>> import torch
        >>> from segloss.torchmetrics import JaccardIndex
        >>> metric = JaccardIndex(num_classes=3, average="none", zero_division=1)
        >>> metric(torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [0.3, 0.7, 0.0]]), torch.tensor([1, 0, 0]))
        tensor([0.5000, 0.5000, 1.0000])

    See also:
        * ``segloss.torchmetrics.MeanIoU``: the mean over samples
        * ``segloss.jaccard_index``: of one batch
    """

    def __init__(
        self,
        num_classes: int,
        *,
        average: Average = "macro",
        include_background: bool = True,
        zero_division: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, kwargs, average=average, background=include_background)
        self.zero_division = zero_division

    def compute(self) -> Tensor:
        """The score of all batches since the last reset."""
        score = super().compute()
        return score if self.average in ("macro", "weighted") else score.nan_to_num(self.zero_division)


class DiceScore(_Score):
    """Dice score: of each sample, averaged, or over all batches.

    With the true positives TP, false positives FP and false negatives FN of a class over the voxels that count::

        score = 2 * TP / (2 * TP + FP + FN)

    The values are those of ``torchmetrics.segmentation.DiceScore``, which has no ``ignore_index``. With
    ``aggregation_level="global"`` they are those of ``torchmetrics.classification.MulticlassF1Score``, too, except that
    it has 0 where segloss has nan, and its "macro" and "micro" count what is predicted as a class that is
    ``ignore_index``.

    Args:
        average: "macro": the mean over the classes that are labelled or predicted. "micro": TP, FP and FN are summed
            over the classes first. "weighted": the mean with the number of labelled voxels as weights. "none" or None:
            a score for each class. Averages leave out a class that is ``ignore_index``.
        aggregation_level: "samplewise": a score of each sample, then the mean over samples that have one. "global": the
            score over the voxels of all batches.
        include_background: whether class 0 has a score. Its voxels count for the other classes in any case.
        threshold: for logits of a sigmoid: each channel is a prediction of its own, of the voxels whose raw logit is
            above it. Target is then a mask for each of the C channels, 1 or more, or class labels, as in
            ``segloss.confusion_matrix``. Default: None, the argmax of the channels.
        others: as in ``segloss.torchmetrics.ConfusionMatrix``.

    Returns:
        A 0-dim tensor, or ``[C]`` or ``[C - 1]`` for each class that has a score, of torch's default dtype; nan for
        a class that is neither labelled nor predicted.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: as ``segloss.torchmetrics.ConfusionMatrix``.

    Example:
        >>> import torch
        >>> from segloss.torchmetrics import DiceScore
        >>> labels, predicted = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]), torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1]])
        >>> DiceScore(num_classes=2, average="none")(predicted, labels)
        tensor([0.8286, 0.3333])
        >>> DiceScore(num_classes=2, average="none", aggregation_level="global")(predicted, labels)
        tensor([0.8333, 0.5000])

    See also:
        * ``segloss.dice_score``: of one batch
    """

    _takes_threshold = True

    def __init__(
        self,
        num_classes: int,
        *,
        average: Average = "macro",
        aggregation_level: Literal["samplewise", "global"] = "samplewise",
        include_background: bool = True,
        **kwargs: Any,
    ) -> None:
        _check_choice("DiceScore", "aggregation_level", aggregation_level, ("samplewise", "global"))
        samplewise = aggregation_level == "samplewise"
        super().__init__(num_classes, kwargs, average=average, background=include_background, samplewise=samplewise)
        self.aggregation_level = aggregation_level

    def _terms(self, tp: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * tp, predicted + actual


class MeanIoU(_IntersectionOverUnion):
    """Intersection over union (IoU) of each sample and class, averaged.

    With the true positives TP, false positives FP and false negatives FN of a class in a sample over the voxels that
    count::

        score = TP / (TP + FP + FN)

    The values are those of ``torchmetrics.segmentation.MeanIoU``, which has no ``ignore_index``. The mean is over all
    pairs of a sample and a class that is labelled or predicted in it. Label maps ``[N, V]`` are N samples here, one in
    torchmetrics.

    Args:
        per_class: whether each class has a mean over samples of its own. Otherwise a class that is ``ignore_index`` is
            left out.
        include_background: whether class 0 has a score. Its voxels count for the other classes in any case.
        threshold: for logits of a sigmoid: each channel is a prediction of its own, of the voxels whose raw logit is
            above it. Target is then a mask for each of the C channels, 1 or more, or class labels, as in
            ``segloss.confusion_matrix``. Default: None, the argmax of the channels.
        others: as in ``segloss.torchmetrics.ConfusionMatrix``.

    Returns:
        A 0-dim tensor of torch's default dtype, nan if no voxel counts. With ``per_class=True`` ``[C]`` or ``[C - 1]``,
        -1 for a class that is neither labelled nor predicted in any sample.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: as ``segloss.torchmetrics.ConfusionMatrix``.

    Example:
        >>> import torch
        >>> from segloss.torchmetrics import MeanIoU
        >>> labels, predicted = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]), torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1]])
        >>> MeanIoU(num_classes=2, per_class=True)(predicted, labels)
        tensor([0.7083, 0.2500])

    See also:
        * ``segloss.torchmetrics.JaccardIndex``: over the voxels of all batches
        * ``segloss.jaccard_index``: of one batch
    """

    _takes_threshold = True

    def __init__(
        self, num_classes: int, *, per_class: bool = False, include_background: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(
            num_classes, kwargs, average="none", background=include_background, ignored=per_class, samplewise=True
        )
        self.per_class = per_class

    def compute(self) -> Tensor:
        """The score of all batches since the last reset."""
        if self.per_class:
            return super().compute().nan_to_num(-1)
        return (self.total.sum() / self.num_scores.sum()).to(torch.get_default_dtype())
