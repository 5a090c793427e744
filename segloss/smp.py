"""The losses of segmentation_models_pytorch (SMP) 0.6.0, computed by segloss: a script changes one import.

``from segloss.smp import DiceLoss`` takes the place of ``from segmentation_models_pytorch.losses import DiceLoss``.
Signatures, attributes, ``state_dict``, values and gradients are those of SMP's class of the same name; SMP itself need
not be installed. SMP's ``MCCLoss`` has no counterpart here: keep it.

Beyond SMP, every loss

* takes labels ``[N, *]`` or ``[N, 1, *]`` of any integer dtype, bool, or floating with integral values, and any number
  of spatial dimensions;
* checks labels and masks: a label that is neither a class nor ignored is an error;
* is called as ``loss(y_pred, y_true, voxel_weight=None)``, with a weight for each voxel if you like (not
  ``LovaszLoss``);
* has the attributes ``upsample`` and ``align_corners``, as in ``segloss.cross_entropy``, for logits that are smaller
  than the labels: set ``loss.upsample = "bilinear"``, or put the loss into ``segloss.DeepSupervisionLoss``.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from segloss import functional, lovasz, region
from segloss._labels import NO_LABEL, LabelOptions, _that_occur
from segloss._upsample import Upsample, Upsampling, full_shape, upsampling_code
from segloss.losses import _keywords, _Loss

if TYPE_CHECKING:
    import numpy as np

    Numbers: TypeAlias = Sequence[float] | np.ndarray[Any, Any] | Tensor

__all__ = [
    "BINARY_MODE",
    "MULTICLASS_MODE",
    "MULTILABEL_MODE",
    "DiceLoss",
    "FocalLoss",
    "JaccardLoss",
    "LovaszLoss",
    "SoftBCEWithLogitsLoss",
    "SoftCrossEntropyLoss",
    "TverskyLoss",
]

BINARY_MODE = "binary"
MULTICLASS_MODE = "multiclass"
MULTILABEL_MODE = "multilabel"

_KEEP = "Keep segmentation_models_pytorch.losses."


class _SMPLoss(_Loss):
    """Base of the losses: SMP's keywords are attributes, and so are two of segloss, which SMP does not have."""

    _tensors: tuple[str, ...] = ()
    ignore_index: int | None
    reduction: str | None
    upsample: Upsample | None = None
    align_corners: bool = False

    def _check_reduction(self, *choices: str | None) -> None:
        op = type(self).__name__
        functional._check_choice(op, "reduction", self.reduction, choices, f"{_KEEP}{op} for others")

    def _resize(self) -> dict[str, Any]:
        return {"upsample": self.upsample, "align_corners": self.align_corners}

    def _full_shape(self, input: Tensor, target: Tensor, dim: int = 1) -> torch.Size:
        """The shape of the logits at the target's size."""
        op = type(self).__name__
        functional._check_types(op, input, target, None, None, NO_LABEL, dim)
        if input.dim() < 2:
            raise ValueError(f"{op}: expected y_pred [N, C, ...], got {list(input.shape)}")
        code = upsampling_code(op, input, Upsampling(self.upsample, self.align_corners))
        return full_shape(input, target, dim, code)


class _ModeLoss(_SMPLoss):
    """Base of the losses that have a mode, and weights of classes."""

    _tensors: tuple[str, ...] = ("class_weights",)
    mode: str
    from_logits: bool
    eps: float
    class_weights: Tensor | None

    def __init__(self, class_weights: "Numbers | None", **options: Any) -> None:
        super().__init__(**options)
        modes = (BINARY_MODE, MULTICLASS_MODE, MULTILABEL_MODE)
        functional._check_choice(type(self).__name__, "mode", self.mode, modes)
        self._store("class_weights", class_weights, torch.float32)

    def _store(self, name: str, values: "Numbers | None", dtype: torch.dtype) -> None:
        """Stores a tensor that a binary loss does not take. As in SMP, it is not in the state_dict."""
        if values is not None and self.mode == BINARY_MODE:
            raise ValueError(f"{type(self).__name__}: expected no {name} with mode='binary', got {values!r}")
        tensor = None if values is None else torch.as_tensor(values, dtype=dtype)
        self.register_buffer(name, tensor, persistent=False)

    def _channels(self, input: Tensor, target: Tensor) -> Tensor:
        """The input with its channels, one if the mode is binary."""
        op = type(self).__name__
        functional._check_types(op, input, target, None, None, NO_LABEL, dim=1)
        if self.mode == BINARY_MODE:
            return self._one_channel(input, target)
        if input.dim() < 2 or (self.mode == MULTICLASS_MODE and input.shape[1] == 1):
            least = "two channels or more" if self.mode == MULTICLASS_MODE else "a channel for each class"
            raise ValueError(
                f"{op}: expected y_pred [N, C, ...] of {least} with mode={self.mode!r}, got {list(input.shape)}. Use "
                "mode='binary' for the logits of one class"
            )
        if self.mode == MULTILABEL_MODE and (target.dim() != input.dim() or target.shape[:2] != input.shape[:2]):
            raise ValueError(
                f"{op}: expected y_true with a mask for each class of y_pred {list(input.shape)} with "
                f"mode='multilabel', got {list(target.shape)}. Use mode='multiclass' for labels"
            )
        return input

    def _one_channel(self, input: Tensor, target: Tensor) -> Tensor:
        """The input [N, 1, *]; one without a channel is told from one with several by the target's size."""
        if input.dim() > 1 and input.shape[1] == 1:
            return input
        shape = target.shape if target.shape[1:2] != (1,) else target.shape[:1] + target.shape[2:]
        if len(shape) != input.dim() or (self.upsample is None and shape != input.shape):
            raise ValueError(
                f"{type(self).__name__}: expected y_pred of one channel with mode='binary', or logits [N, *] of the "
                f"labels' size, got y_pred {list(input.shape)} and y_true {list(target.shape)}. Use another mode for "
                "several channels, the attribute upsample for logits of another size"
            )
        return input.unsqueeze(1)

    def _ignores_by_channel(self, target: Tensor) -> bool:
        return self.mode != MULTICLASS_MODE and _can_hold(target, self.ignore_index)

    def _mean_over_classes(self, terms: Tensor, classes: Tensor | None = None) -> Tensor:
        weight = torch.ones_like(terms) if self.class_weights is None else self.class_weights.to(terms.dtype)
        if classes is not None:
            terms, weight = terms[classes], weight[classes]
        return (terms * weight).sum() / weight.sum()


class _RegionLoss(_ModeLoss):
    """Base of the losses that are made of sums over the batch."""

    _tensors = ("class_weights", "classes")
    classes: Tensor | None
    log_loss: bool
    smooth: float
    alpha: float
    beta: float
    gamma: float

    def __init__(self, classes: "Numbers | None", **options: Any) -> None:
        super().__init__(**options)
        self._store("classes", classes, torch.int64)

    def forward(self, y_pred: Tensor, y_true: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        """The loss of the batch; see the class."""
        stats = self._sums(y_pred, y_true, voxel_weight)
        shared = stats.tp + self.smooth
        score = shared / (shared + self.alpha * stats.fp + self.beta * stats.fn).clamp_min(self.eps)
        terms = -score.clamp_min(self.eps).log() if self.log_loss else 1 - score
        mean = self._mean_over_classes(terms * (stats.target > 0), self.classes)
        # Below 1 the gradient of a power has no bound at 0.
        loss = region._power(mean, self.gamma) if self.gamma <= 1 else mean**self.gamma
        return loss.to(functional._result_dtype(y_pred))

    def _sums(self, y_pred: Tensor, y_true: Tensor, voxel_weight: Tensor | None) -> region.SoftStats:
        """The sums of each class, [C]; `soft_label`, as SMP's intersection is sum min(p, g)."""
        op, input = type(self).__name__, self._channels(y_pred, y_true)
        activation = ("softmax" if self.mode == MULTICLASS_MODE else "sigmoid") if self.from_logits else None
        resize = Upsampling(self.upsample, self.align_corners)
        walk = region._Walk(1, resize, activation, LabelOptions(NO_LABEL), batch=True, soft_label=True)

        def sums(x: Tensor, y: Tensor, ignore_index: int, v: Tensor | None) -> region.SoftStats:
            labels = LabelOptions(ignore_index)
            return region._sums(op, x, y, None, v, walk._replace(labels=labels))[0]

        if not self._ignores_by_channel(y_true):
            return sums(input, y_true, _no_label_if_none(self.ignore_index), voxel_weight)
        of_channels = [
            sums(x, y, *_left_out(y, self.ignore_index, voxel_weight)) for x, y in _one_by_one(input, y_true)
        ]
        return region.SoftStats(*(torch.cat(each) for each in zip(*of_channels, strict=True)))


class _FixedWeightsLoss(_RegionLoss):
    """Base of the losses whose weights of false positives and negatives are fixed."""

    def __init__(
        self,
        mode: str,
        classes: "Numbers | None" = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        class_weights: "Numbers | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class DiceLoss(_FixedWeightsLoss):
    """SMP's ``DiceLoss``: the soft Dice loss of each class over the whole batch.

    With the sums over the batch I = sum min(p, g), P = sum p and T = sum g of a class, p the activated logits and g the
    target, one-hot if it holds labels::

        score = (I + smooth) / max(I + (P - I) / 2 + (T - I) / 2 + smooth, eps)
        loss = weighted mean over the classes of (1 - score, or 0 if T = 0)

    Args:
        mode: ``"binary"``, ``"multiclass"`` (softmax) or ``"multilabel"`` (sigmoid).
        classes: the classes that have terms. Default: None, all have.
        log_loss: whether a term is ``-log(max(score, eps))``. Default: False.
        from_logits: whether y_pred holds logits; else probabilities, each in [0, 1]. Default: True.
        smooth: added to numerator and denominator. Default: 0.
        ignore_index: label of the voxels to ignore. In masks of several classes, a voxel is ignored in the classes
            whose masks hold it. Default: None, every voxel counts.
        eps: the least denominator. Default: 1e-7.
        class_weights: a weight for each class, which need not be normalized. Default: None, every weight is 1.

    Call:
        ``loss(y_pred, y_true, voxel_weight=None)``, where

        * y_pred: logits ``[N, C, *]``, of a binary loss ``[N, 1, *]`` or ``[N, *]``; float64, float32, float16 or
          bfloat16.
        * y_true: of a multiclass loss labels ``[N, *]`` or ``[N, 1, *]``; of a multilabel loss a mask for each class,
          of y_pred's shape, and of a binary loss one ``[N, *]`` or ``[N, 1, *]``: integer or bool of 0 and 1, or
          floating in [0, 1].
        * voxel_weight: a weight for each voxel, ``[N, *]``. Default: None, every weight is 1.

    Returns:
        A 0-dim tensor of y_pred's dtype (float32 for half types under autocast).

    Raises:
        ValueError: an unknown mode, ``classes``, ``class_weights`` or several channels of a binary loss, one channel of
            a multiclass one, or a mask for each class is missing.
        IndexError: a label is neither ignored nor a class, or one of ``classes`` is not a channel.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_loss``.

    Equivalent to:
        ``segmentation_models_pytorch.losses.DiceLoss``, which takes labels of other dtypes than int64 only with
        ``ignore_index``.

    Example:
        >>> import segloss.smp, torch
        >>> loss = segloss.smp.DiceLoss("multiclass", ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.DiceLoss``: with a term for each sample, and other options
        * ``segloss.smp.JaccardLoss``, ``segloss.smp.TverskyLoss``: other weights of false positives and negatives
    """

    alpha = beta = 0.5
    gamma = 1.0


class JaccardLoss(_FixedWeightsLoss):
    """SMP's ``JaccardLoss``: the soft Jaccard loss, 1 - IoU, of each class over the whole batch.

    With the sums I, P and T of ``segloss.smp.DiceLoss``::

        score = (I + smooth) / max(P + T - I + smooth, eps)
        loss = weighted mean over the classes of (1 - score, or 0 if T = 0)

    Args:
        others: as in ``segloss.smp.DiceLoss``, and so are the call, the result and the errors.

    Equivalent to:
        ``segmentation_models_pytorch.losses.JaccardLoss``

    Example:
        >>> import segloss.smp, torch
        >>> loss = segloss.smp.JaccardLoss("multilabel", log_loss=True)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 3, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.DiceLoss``: ``jaccard=True``
    """

    alpha = beta = gamma = 1.0


class TverskyLoss(_RegionLoss):
    """SMP's ``TverskyLoss``: Dice with separate weights for false positives and false negatives, over the whole batch.

    With the sums I, P and T of ``segloss.smp.DiceLoss``::

        score = (I + smooth) / max(I + alpha * (P - I) + beta * (T - I) + smooth, eps)
        loss = (weighted mean over the classes of (1 - score, or 0 if T = 0)) ** gamma

    Args:
        alpha: the weight of false positives. Default: 0.5.
        beta: the weight of false negatives. Default: 0.5.
        gamma: the exponent of the mean, 0 or more. Where it is below 1 and the mean is 0, the gradient is 0; SMP's is
            infinite or nan. Default: 1.
        others: as in ``segloss.smp.DiceLoss``, and so are the call, the result and the errors.

    Equivalent to:
        ``segmentation_models_pytorch.losses.TverskyLoss``

    Example:
        >>> import segloss.smp, torch
        >>> loss = segloss.smp.TverskyLoss("binary", alpha=0.3, beta=0.7, gamma=0.75)
        >>> logits = torch.randn(2, 1, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.TverskyLoss``: with the exponent on each term
    """

    def __init__(
        self,
        mode: str,
        classes: "Numbers | None" = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 1.0,
        class_weights: "Numbers | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))
        functional._check_gamma("TverskyLoss", gamma)


class FocalLoss(_ModeLoss):
    """SMP's ``FocalLoss``: the binary focal loss of each class, by the sigmoid in every mode.

    For each class of a voxel with logit x, p = sigmoid(x), and target g, 1 or 0::

        loss = alpha * g * (1 - p) ** gamma * -log(p) + (1 - alpha) * (1 - g) * p ** gamma * -log(1 - p)

    The result is the weighted mean over the classes of the mean, or the sum, over their voxels.

    Args:
        mode: ``"binary"``, ``"multiclass"`` (labels, each class against the rest) or ``"multilabel"``.
        alpha: the factor of the term of target 1, in [0, 1]. Default: None, both factors are 1.
        gamma: the exponent, 0 or more. Default: 2.
        ignore_index: label of the voxels to ignore. Default: None, every voxel counts.
        from_logits: whether y_pred holds logits; else probabilities. These are clamped to [eps, 1 - eps]; their logit,
            of a multiclass loss their logarithm, takes the place of x. Default: True.
        eps: the least probability, without ``from_logits``. Default: 1e-7.
        reduction: ``"mean"`` or ``"sum"`` over the voxels, or ``"none"``, or None, which is the same. With ``"none"`` a
            binary loss returns the losses of the voxels that count, one after the other. Losses of other modes return
            the mean, and take no ``class_weights``.
        normalized, reduced_threshold: must have their defaults: keep SMP's class for others.
        class_weights: a weight for each class, which need not be normalized. Default: None, every weight is 1.

    Call:
        ``loss(y_pred, y_true, voxel_weight=None)``: as in ``segloss.smp.DiceLoss``; floating masks must hold 0 and 1.

    Returns:
        A 0-dim tensor of y_pred's dtype (float32 for half types under autocast); with ``reduction="none"``, of a binary
        loss, ``[V]`` for V voxels that count.

    Raises:
        ValueError: an option has a value that it must not have.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.smp.DiceLoss`` and ``segloss.focal_loss``. A
            RuntimeError also for a floating mask with other values than 0 and 1, for which SMP's formula is another.

    Equivalent to:
        ``segmentation_models_pytorch.losses.FocalLoss``, which raises an IndexError for ``ignore_index`` with
        ``mode="multilabel"``. Here a voxel is ignored in the classes whose masks hold it.

    Example:
        >>> import segloss.smp, torch
        >>> loss = segloss.smp.FocalLoss("multiclass", alpha=0.25, ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.FocalLoss``: by the softmax, and with other options
    """

    alpha: float | None
    gamma: float
    normalized: bool
    reduced_threshold: float | None

    def __init__(
        self,
        mode: str,
        alpha: float | None = None,
        gamma: float = 2.0,
        ignore_index: int | None = None,
        from_logits: bool = True,
        eps: float = 1e-7,
        reduction: str | None = "mean",
        normalized: bool = False,
        reduced_threshold: float | None = None,
        class_weights: "Numbers | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))
        functional._check_gamma("FocalLoss", gamma)
        self._check_reduction("mean", "sum", "none", None)
        is_given = {
            "normalized": normalized is not False,
            "reduced_threshold": reduced_threshold is not None,
            "class_weights with reduction='none'": class_weights is not None and reduction not in ("mean", "sum"),
        }
        for option, given in is_given.items():
            if given:
                raise ValueError(f"FocalLoss: expected no {option}, which segloss does not have. {_KEEP}FocalLoss")

    def forward(self, y_pred: Tensor, y_true: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        """The loss of the batch; see the class."""
        input = self._logits(self._channels(y_pred, y_true))
        if self.mode != MULTICLASS_MODE and y_true.is_floating_point():
            # Checks that the masks hold 0 and 1: for values between them SMP's formula is another.
            ignore_index = _no_label_if_none(self.ignore_index)
            functional._total_weight("FocalLoss", y_true.detach(), None, None, 2, ignore_index, None)
        if self._ignores_by_channel(y_true):
            losses = [
                self._loss(x, y, None, *_left_out(y, self.ignore_index, voxel_weight))
                for x, y in _one_by_one(input, y_true)
            ]
            return losses[0] if self.mode == BINARY_MODE else self._mean_over_classes(torch.stack(losses))
        weight = self.class_weights
        if weight is not None:
            weight = weight.double() / weight.double().mean()
        loss = self._loss(input, y_true, weight, _no_label_if_none(self.ignore_index), voxel_weight)
        return loss / input.shape[1] if self.reduction == "sum" else loss

    def _loss(
        self, input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, voxel_weight: Tensor | None
    ) -> Tensor:
        has_losses_of_voxels = self.mode == BINARY_MODE and self.reduction not in ("mean", "sum")
        loss = functional.focal_loss(
            input,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            weight=weight,
            activation="sigmoid",
            ignore_index=ignore_index,
            reduction="none" if has_losses_of_voxels else "sum" if self.reduction == "sum" else "mean",
            voxel_weight=voxel_weight,
            **self._resize(),
        )
        if not has_losses_of_voxels:
            return loss
        return loss.flatten() if self.ignore_index is None else loss.flatten()[target.flatten() != self.ignore_index]

    def _logits(self, y_pred: Tensor) -> Tensor:
        if self.from_logits:
            return y_pred
        p = y_pred.clamp(self.eps, 1 - self.eps)
        return p.log() if self.mode == MULTICLASS_MODE else p.logit()


class LovaszLoss(_ModeLoss):
    """SMP's ``LovaszLoss``: the Lovasz-Softmax loss of the classes that are present, or the Lovasz hinge loss of masks.

    With the errors e of the voxels, ``|g - p|`` for a class of a multiclass loss with p = softmax(x), else
    ``max(0, 1 - x * (2 * g - 1))``, sorted from the largest to the smallest, the targets g in the same order and
    G = sum(g)::

        J[k] = 1 - (G - sum(g[:k])) / (G + sum(1 - g[:k]))
        loss = sum_k e[k] * (J[k] - J[k - 1])

    A multiclass loss is the mean over the classes that are present. The masks of a multilabel loss are sorted together.

    Args:
        mode: ``"binary"``, ``"multiclass"`` (softmax) or ``"multilabel"``.
        per_image: whether the loss is the mean of those of the samples instead of one of the batch. Default: False.
        ignore_index: label of the voxels to ignore. Default: None, every voxel counts.
        from_logits: has no effect, as in SMP: y_pred holds logits. Default: True.

    Call:
        ``loss(y_pred, y_true)``: as in ``segloss.smp.DiceLoss``, but masks hold 0 and 1.

    Returns:
        A 0-dim tensor of y_pred's dtype (float32 for half types under autocast).

    Raises:
        ValueError: ``mode`` has an unknown value, or the attribute ``upsample`` is set with ``mode="multilabel"``.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.lovasz_softmax_loss`` and
            ``segloss.lovasz_hinge_loss``.

    Equivalent to:
        ``segmentation_models_pytorch.losses.LovaszLoss``, which takes differences of Jaccard losses in float32: of
        millions of voxels its gradient has one or two digits.

    Example:
        >>> import segloss.smp, torch
        >>> loss = segloss.smp.LovaszLoss("multiclass", ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.LovaszSoftmaxLoss``, ``segloss.LovaszHingeLoss``: with other options
    """

    per_image: bool

    def __init__(
        self, mode: str, per_image: bool = False, ignore_index: int | None = None, from_logits: bool = True
    ) -> None:
        super().__init__(None, **_keywords(locals()))

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of the batch; see the class."""
        input = self._channels(y_pred, y_true)
        if self.mode == MULTILABEL_MODE:
            if self.upsample is not None:
                raise ValueError(
                    f"LovaszLoss: expected upsample=None with mode='multilabel', whose masks are sorted together, got "
                    f"{self.upsample!r}. Use segloss.LovaszHingeLoss, the mean over the masks"
                )
            input, y_true = input.unsqueeze(1), y_true.unsqueeze(1)
        loss = lovasz.lovasz_softmax_loss if self.mode == MULTICLASS_MODE else lovasz.lovasz_hinge_loss
        ignore_index = _no_label_if_none(self.ignore_index)
        return loss(input, y_true, per_sample=self.per_image, ignore_index=ignore_index, **self._resize())


class SoftCrossEntropyLoss(_SMPLoss):
    """SMP's ``SoftCrossEntropyLoss``: cross entropy with label smoothing, whose mean is over ignored voxels, too.

    For a voxel with logits x, p = softmax(x), label y and s = ``smooth_factor``; it is 0 if the voxel is ignored::

        loss = (1 - s) * -log(p[y]) + s / C * sum_c -log(p[c])

    Args:
        reduction: ``"mean"`` divides by the number of all voxels, of ignored ones, too (with voxel weights by their
            sum), ``"sum"`` adds, ``"none"`` returns the loss of each voxel. Default: ``"mean"``.
        smooth_factor: s in the formula, in [0, 1]. Default: None, 0.
        ignore_index: label of the voxels to ignore; None: every voxel counts. Default: -100.
        dim: the class dimension. Default: 1.

    Call:
        ``loss(y_pred, y_true, voxel_weight=None)``, where

        * y_pred: logits ``[N, C, *]``; float64, float32, float16 or bfloat16.
        * y_true: labels ``[N, *]`` or ``[N, 1, *]``.
        * voxel_weight: a weight for each voxel, ``[N, *]``. Default: None, every weight is 1.

    Returns:
        A tensor of y_pred's dtype (float32 for half types under autocast), 0-dim; with ``reduction="none"`` as SMP
        ``[N, 1, *]``, or without an ``ignore_index`` ``[N, *]``.

    Raises:
        ValueError: ``reduction`` has an unknown value.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.cross_entropy``.

    Equivalent to:
        ``segmentation_models_pytorch.losses.SoftCrossEntropyLoss``, which raises a TypeError for
        ``smooth_factor=None``, its own default. Here it is 0.

    Example:
        >>> import segloss.smp, torch
        >>> loss = segloss.smp.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.CrossEntropyLoss``: its mean is over the voxels that count, and it has weights of classes
    """

    smooth_factor: float | None
    dim: int

    def __init__(
        self,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        ignore_index: int | None = -100,
        dim: int = 1,
    ) -> None:
        super().__init__(**_keywords(locals()))
        self._check_reduction("mean", "sum", "none")

    def forward(self, y_pred: Tensor, y_true: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        """The loss of the batch; see the class."""
        shape = self._full_shape(y_pred, y_true, self.dim)
        weight = _one_share(y_pred, shape, self.dim, voxel_weight) if self.reduction == "mean" else None
        loss = functional.cross_entropy(
            y_pred,
            y_true,
            None if weight is None else weight.expand(y_pred.size(self.dim)),
            ignore_index=_no_label_if_none(self.ignore_index),
            reduction="none" if self.reduction == "none" else "sum",
            label_smoothing=0.0 if self.smooth_factor is None else self.smooth_factor,
            dim=self.dim,
            voxel_weight=voxel_weight,
            **self._resize(),
        )
        if self.reduction != "none":
            return loss
        sizes = list(shape)
        sizes[self.dim : self.dim % len(sizes) + 1] = [] if self.ignore_index is None else [1]
        return loss.reshape(sizes)


class SoftBCEWithLogitsLoss(_SMPLoss):
    """SMP's ``SoftBCEWithLogitsLoss``: binary cross entropy with label smoothing, its mean over ignored voxels, too.

    For each class of a voxel with logit x, p = sigmoid(x), target t and s = ``smooth_factor``; it is 0 if ignored::

        g = t * (1 - s) + (1 - t) * s
        loss = weight * (pos_weight * g * -log(p) + (1 - g) * -log(1 - p))

    Args:
        weight: a weight for each class, ``[C]``, or of a shape that broadcasts to y_pred's. As in torch and SMP, a
            weight of one dimension belongs to the last dimension of y_pred if it has that length. Default: None, every
            weight is 1. It is a buffer and moves with the module.
        ignore_index: label of the voxels to ignore. In masks of several classes, a voxel is ignored in the classes
            whose masks hold it. None: every voxel counts. Default: -100.
        reduction: ``"mean"`` divides by the number of all voxels and classes, of ignored ones, too (with voxel weights
            by their sum times C), ``"sum"`` adds, ``"none"`` returns each loss. Default: ``"mean"``.
        smooth_factor: s in the formula, in [0, 0.5]. Default: None, 0.
        pos_weight: a weight for the term of target 1, of the shapes of ``weight``. Default: None, every weight is 1. It
            is a buffer and moves with the module.

    Call:
        ``loss(y_pred, y_true, voxel_weight=None)``, where

        * y_pred: logits ``[N, C, *]``; float64, float32, float16 or bfloat16.
        * y_true: a mask for each class, of y_pred's shape: integer or bool of 0 and 1, or floating in [0, 1]; with one
          class also ``[N, *]``.
        * voxel_weight: a weight for each voxel, ``[N, *]``. Default: None, every weight is 1.

    Returns:
        A tensor of y_pred's dtype (float32 for half types under autocast), 0-dim; with ``reduction="none"`` of y_pred's
        shape.

    Raises:
        ValueError: ``reduction`` has an unknown value, or ``smooth_factor`` is outside [0, 0.5].
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.binary_cross_entropy_with_logits``.

    Equivalent to:
        ``segmentation_models_pytorch.losses.SoftBCEWithLogitsLoss``

    Example:
        >>> import segloss.smp, torch
        >>> loss = segloss.smp.SoftBCEWithLogitsLoss(smooth_factor=0.1)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 3, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.BCEWithLogitsLoss``: its mean is over the voxels that count
    """

    _tensors = ("weight", "pos_weight")
    pos_weight: Tensor | None
    smooth_factor: float | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))
        self._check_reduction("mean", "sum", "none")
        if smooth_factor is not None and not 0 <= smooth_factor <= 0.5:
            raise ValueError(
                f"SoftBCEWithLogitsLoss: expected smooth_factor in [0, 0.5], got {smooth_factor!r}, which makes target "
                f"0 larger than target 1. {_KEEP}SoftBCEWithLogitsLoss"
            )

    def forward(self, y_pred: Tensor, y_true: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        """The loss of the batch; see the class."""
        shape = self._full_shape(y_pred, y_true)
        weight, pos_weight = _aligned(self.weight, shape), _aligned(self.pos_weight, shape)
        if self.reduction == "mean":
            share = _one_share(y_pred, shape, 1, voxel_weight) / shape[1]
            weight = share if weight is None else weight * share
        has_masks = y_true.shape == shape or shape[1] == 1
        if not (has_masks and _can_hold(y_true, self.ignore_index)):
            return self._loss(y_pred, y_true, weight, pos_weight, _no_label_if_none(self.ignore_index), voxel_weight)
        losses = [
            self._loss(
                x, y, _of_class(weight, c), _of_class(pos_weight, c), *_left_out(y, self.ignore_index, voxel_weight)
            )
            for c, (x, y) in enumerate(_one_by_one(y_pred, y_true))
        ]
        return torch.cat(losses, 1) if self.reduction == "none" else torch.stack(losses).sum()

    def _loss(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        ignore_index: int,
        voxel_weight: Tensor | None,
    ) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            input,
            target,
            weight,
            reduction="none" if self.reduction == "none" else "sum",
            pos_weight=pos_weight,
            ignore_index=ignore_index,
            label_smoothing=0.0 if self.smooth_factor is None else 2 * self.smooth_factor,
            voxel_weight=voxel_weight,
            **self._resize(),
        )


# ---- what marks voxels to ignore ----


def _no_label_if_none(ignore_index: int | None) -> int:
    return NO_LABEL if ignore_index is None else ignore_index


def _can_hold(target: Tensor, ignore_index: int | None) -> bool:
    return ignore_index is not None and bool(_that_occur(target, (ignore_index,)))


def _one_by_one(input: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The channels and their masks, [N, 1, *]: segloss ignores a voxel in all channels, SMP in those whose masks say
    so."""
    target = target if target.dim() == input.dim() else target.unsqueeze(1)
    return zip(torch.split(input, 1, 1), torch.split(target, 1, 1), strict=True)


def _left_out(target: Tensor, ignore_index: int | None, voxel_weight: Tensor | None) -> tuple[int, Tensor | None]:
    """The ignore_index and voxel weights that leave voxels of a mask out. segloss takes no ignore_index in floating
    masks, nor 0 or 1 in any: there the voxels have a weight of 0."""
    if ignore_index is None or (not target.is_floating_point() and ignore_index not in (0, 1)):
        return _no_label_if_none(ignore_index), voxel_weight
    counts = target != ignore_index
    return NO_LABEL, counts if voxel_weight is None else counts * voxel_weight.reshape(counts.shape)


# ---- weights ----


def _one_share(input: Tensor, shape: torch.Size, dim: int, voxel_weight: Tensor | None) -> Tensor:
    """What one voxel adds to a mean over all voxels, of ignored ones, too. As a weight, it keeps sums in half types
    from overflowing."""
    return functional._total_voxel_weight(input, shape, dim, voxel_weight).reciprocal()


def _aligned(weight: Tensor | None, shape: torch.Size) -> Tensor | None:
    """A weight in float64 with the dimensions of the logits. A weight of one dimension belongs to the last of them, as
    in torch, or to the classes if it has another length."""
    if weight is None:
        return None
    is_of_classes = weight.dim() == 1 and len(weight) not in (1, shape[-1])
    after = [1] * (len(shape) - 2 if is_of_classes else 0)
    before = [1] * (len(shape) - weight.dim() - len(after))
    return weight.double().view(*before, *weight.shape, *after)


def _of_class(weight: Tensor | None, c: int) -> Tensor | None:
    """The weight of a channel; `weight` has the dimensions of the logits, or is one number."""
    return weight if weight is None or weight.dim() < 2 or weight.shape[1] == 1 else weight[:, c : c + 1]
