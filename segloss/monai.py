"""The losses of MONAI 1.6.1, computed by segloss: a script changes one import.

    from segloss.monai import DiceCELoss, DeepSupervisionLoss  # before: from monai.losses import ...

Parameters, values, gradients, shapes of results, and the names of buffers are MONAI's. MONAI itself is not imported.

Beyond MONAI, labels may be ``[N, *]`` or ``[N, 1, *]``, of any integer dtype; with a softmax they need no
``to_onehot_y=True``; the weights of ``DiceCELoss`` may be a list; ``torch.compile(fullgraph=True)`` works.

What differs:

* ``other_act``, masks with values other than 0 and 1 in the focal losses, and several classes in a voxel in a focal
  loss of a softmax have no kernel. The ValueError names the class of MONAI to keep. A focal loss of a softmax over one
  class, which is always 1, is an error, too.
* Values are checked: labels are classes, a target ``[N, C, *]`` lies in [0, 1], and so does the input if there is
  neither ``sigmoid`` nor ``softmax``, which has no effect on one channel. MONAI computes a number from any.
* A term 0 / 0 (``smooth_nr=0, smooth_dr=0``) is nan in MONAI, 0 here.
* Results have input's dtype, float32 for half types. MONAI casts float64 to float32 in focal losses and deep
  supervision.
* A MetaTensor is read as the tensor that it is, and the loss is a plain tensor. ``torch.compile`` reads it outside its
  graph: with ``fullgraph=True`` pass ``labels.as_tensor()``.

>>> import torch
>>> from segloss.monai import DiceCELoss
>>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
>>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)  # [N, 1, H, W]
>>> DiceCELoss(to_onehot_y=True, softmax=True)(logits, labels)
tensor(1.6096)
"""

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from segloss import boundary, cldice, functional, losses, region
from segloss._labels import NO_LABEL, LabelMap
from segloss.functional import Activation, Reduction
from segloss.losses import _keywords
from segloss.region import WeightType

__all__ = [
    "BoundaryLoss",
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceFocalLoss",
    "GeneralizedDiceLoss",
    "HausdorffDTLoss",
    "MaskedDiceLoss",
    "SoftDiceclDiceLoss",
    "SoftclDiceLoss",
    "TverskyLoss",
]

ClassWeight = Sequence[float] | float | Tensor
OtherActivation = Callable[[Tensor], Tensor]
_Term = TypeVar("_Term", bound=nn.Module)


# ---- what all losses share -------------------------------------------------------------------------------------------


class _ClassLoss(losses._Loss):
    """A loss with terms of classes. MONAI's options are attributes, its weights of classes the buffer class_weight."""

    _tensors = ("class_weight",)
    class_weight: Tensor | None
    include_background: bool
    to_onehot_y: bool
    reduction: Reduction
    ignore_index: int | None = None

    def __init__(self, *, reduction: str, weight: ClassWeight | None = None, **options: Any) -> None:
        class_weight = None if weight is None else _class_weight(type(self).__name__, weight)
        reduction = _choice(type(self).__name__, "reduction", reduction, ("mean", "sum", "none"))
        super().__init__(class_weight=class_weight, reduction=reduction, **options)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]  # MONAI has no voxel weights
        """Computes the loss of ``input`` and ``target``; see the class."""
        return self._loss(*self._read(input, target))

    def _read(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        input, target = _read(self, input, target)
        self._check_use(input, target)
        return input, target

    def _check_use(self, input: Tensor, target: Tensor) -> None:
        """Refuses labels where MONAI does, without an option that asks for classes. Warns of options without effect."""
        if _holds_labels(input, target) and not self._reads_labels():
            raise ValueError(
                f"{type(self).__name__}: expected a target of input's shape {list(input.shape)}, with a mask for each "
                f"class, got {list(target.shape)}. Pass to_onehot_y=True if it holds labels"
            )
        if input.shape[1] > 1:
            return
        unused = {"softmax": True, "to_onehot_y": True, "include_background": False}
        names = [f"{name}={value}" for name, value in unused.items() if getattr(self, name, None) == value]
        if names:
            _warn(f"{type(self).__name__}: ignored {', '.join(names)}, as input {list(input.shape)} has one channel")

    def _reads_labels(self) -> bool:
        """Whether a target of another shape than input's holds labels."""
        raise NotImplementedError

    def _loss(self, input: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def _first_class(self, input: Tensor) -> int:
        """The first class that has a term."""
        return 0 if self.include_background or input.shape[1] == 1 else 1

    def _num_classes(self, input: Tensor) -> int:
        """How many classes have a term."""
        return input.shape[1] - self._first_class(input)

    def _weight(self, input: Tensor) -> Tensor | None:
        """The weights of the classes that have a term."""
        weight = self.class_weight
        if weight is not None and weight.dim() == 0:
            weight = weight.expand(self._num_classes(input))
        return None if weight is None else self._checked("weight", weight, input)

    def _checked(self, name: str, numbers: Tensor, input: Tensor) -> Tensor:
        """Numbers on input's device, one for each class that has a term."""
        num_classes = self._num_classes(input)
        if numbers.shape != (num_classes,):
            raise ValueError(
                f"{type(self).__name__}: expected {name} to be a number or one for each of {num_classes} classes, got "
                f"{list(numbers.shape)} for input {list(input.shape)}. With include_background=False leave out class 0"
            )
        return numbers.to(input.device)

    def _with_background(self, numbers: Tensor | None, input: Tensor) -> Tensor | None:
        """A number for each channel, [C]: 0 for a background without a term."""
        return None if numbers is None else pad(numbers, (self._first_class(input), 0))


class _ActivatedLoss(_ClassLoss):
    """An activation, then terms of samples and classes."""

    sigmoid: bool
    softmax: bool
    batch: bool

    def __init__(self, *, sigmoid: bool, softmax: bool, other_act: OtherActivation | None, **options: Any) -> None:
        _check_activation(type(self).__name__, sigmoid, softmax, other_act)
        super().__init__(sigmoid=sigmoid, softmax=softmax, **options)

    def _reads_labels(self) -> bool:
        return self.to_onehot_y or self.softmax

    def _loss(self, input: Tensor, target: Tensor) -> Tensor:
        return self._of_read(input, target, self._activation(input))

    def _of_read(self, input: Tensor, target: Tensor, activation: Activation | None) -> Tensor:
        """The loss; the error of logits without an activation has the options of this class, not segloss's."""
        try:
            return self._of_activated(input, target, activation)
        except RuntimeError as error:
            _, is_range, got = str(error).partition(" as input with activation=None, got ")
            if not is_range:
                raise
            advice = "sigmoid=True" if input.shape[1] == 1 else "sigmoid=True or softmax=True"
            if self.softmax:
                advice += ": softmax=True has no effect on one channel, as in MONAI"
            raise RuntimeError(
                f"{type(self).__name__}: expected probabilities in [0, 1] as input without an activation, got "
                f"{got.partition('. For logits')[0]}. For logits use {advice}"
            ) from None

    def _of_activated(self, input: Tensor, target: Tensor, activation: Activation | None) -> Tensor:
        raise NotImplementedError

    def _activation(self, input: Tensor) -> Activation | None:
        """A softmax over one channel is left out, as in MONAI."""
        if self.sigmoid:
            return "sigmoid"
        return "softmax" if self.softmax and input.shape[1] > 1 else None


class _RegionLoss(_ActivatedLoss):
    """A loss of the Dice family."""

    smooth_nr: float
    smooth_dr: float
    soft_label: bool

    def _options_of(self, input: Tensor, target: Tensor, activation: Activation | None) -> dict[str, Any]:
        """The keywords of segloss's function, input and target among them."""
        ignore_index, voxel_weight = NO_LABEL, None
        if _holds_labels(input, target):
            ignore_index = NO_LABEL if self.ignore_index is None else self.ignore_index
        else:
            if self.ignore_index is not None:
                target, voxel_weight = _without_ignored(self, input, target)
            if activation == "softmax" and not target.is_floating_point():
                target = target.to(input.dtype)  # integers would have to be one-hot
        return {
            "input": input,
            "target": target,
            "activation": activation,
            "include_background": self._first_class(input) == 0,
            "batch": self.batch,
            "soft_label": self.soft_label,
            "smooth_nr": self.smooth_nr,
            "smooth_dr": self.smooth_dr,
            "ignore_index": ignore_index,
            "voxel_weight": voxel_weight,
            "reduction": self.reduction,
        }


def _class_weight(op: str, weight: ClassWeight) -> Tensor:
    tensor = torch.as_tensor(weight)
    if tensor.dim() > 1 or (tensor < 0).any():
        raise ValueError(f"{op}: expected weight to be a number or one for each class, 0 or more, got {weight}")
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def _choice(op: str, name: str, value: object, choices: tuple[str, ...]) -> Any:
    """The value, a string or a member of MONAI's enumeration, as a string."""
    value = getattr(value, "value", value)
    functional._check_choice(op, name, value, choices)
    return value


def _check_activation(op: str, sigmoid: bool, softmax: bool, other_act: OtherActivation | None) -> None:
    if other_act is not None:
        raise ValueError(f"{op}: expected no other_act, for which there is no kernel. Keep monai.losses.{op}")
    if sigmoid and softmax:
        raise ValueError(f"{op}: expected one of sigmoid=True and softmax=True, got both")


def _read(loss: nn.Module, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as plain tensors, half types as float32 unless autocast makes a float32 loss of them anyway."""
    op = type(loss).__name__
    input, target = functional._plain(input), functional._plain(target)
    functional._check_types(op, input, target, None, None, NO_LABEL, 1)
    if input.dim() < 2 or not input.is_floating_point():
        raise ValueError(f"{op}: expected floating input [N, C, ...], got {input.dtype} {list(input.shape)}")
    if torch.finfo(functional._result_dtype(input)).bits < 32:
        input = input.float()
    if target.dtype in (torch.uint16, torch.uint32, torch.uint64):
        target = target.long()  # torch can hardly compute with these
    return input, target


def _warn(text: str) -> None:
    """A UserWarning at the line that called the loss, which is in neither torch nor segloss."""
    if torch.compiler.is_compiling():
        return
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("segloss", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)


def _holds_labels(input: Tensor, target: Tensor) -> bool:
    """Whether the target holds a label for each voxel; else a mask or probability for each class."""
    return input.shape[1] > 1 and target.shape != input.shape


def _without_ignored(loss: _ClassLoss, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A target without the ignored label, and which of its voxels count.

    In a target [N, C, *] these are, as in MONAI, the voxels of the class ignore_index; if there is no such class, those
    without any class.
    """
    ignore_index, num_channels = cast(int, loss.ignore_index), input.shape[1]
    if _holds_labels(input, target) or num_channels == 1:
        counts = target != ignore_index
        return target.masked_fill(~counts, 0), counts
    if 0 <= ignore_index < num_channels:
        target = _zeros_and_ones(loss, target)  # MONAI squares the weights of voxels that it ignores in part
        return target, target[:, ignore_index] != 1
    return target, target.sum(1) > 0


def _zeros_and_ones(loss: nn.Module, target: Tensor) -> Tensor:
    """A target [N, C, *] as integers, which the kernels check to be 0 or 1."""
    if not target.is_floating_point():
        return target
    is_one = target == 1
    is_soft = (target != 0) & ~is_one
    if not torch.compiler.is_compiling() and is_soft.any():
        op = type(loss).__name__
        raise ValueError(
            f"{op}: expected a target {list(target.shape)} of 0 and 1, got {target[is_soft][0]:g} in it. Keep "
            f"monai.losses.{op} for soft labels"
        )
    return is_one.to(torch.int8) + 2 * is_soft.to(torch.int8)


def _with_ones(terms: Tensor, input: Tensor) -> Tensor:
    """Terms with a dimension of size 1 for each spatial one, as MONAI returns them with reduction="none"."""
    return terms.reshape(terms.shape + (1,) * (input.dim() - 2))


# ---- the losses ------------------------------------------------------------------------------------------------------


class DiceLoss(_RegionLoss):
    """``monai.losses.DiceLoss``: the Dice or Jaccard loss; formula and source are in ``segloss.DiceLoss``.

    Args:
        include_background: whether class 0 has a term. Default: True.
        to_onehot_y: whether a target of another shape than input's holds labels; with ``softmax=True`` it does in any
            case. Default: False.
        sigmoid, softmax: the activation; without one, input holds probabilities in [0, 1]. ``softmax=True`` has no
            effect on one channel. Default: False.
        other_act: has no kernel; any but None is an error.
        squared_pred: whether the denominator has sums of squares. Default: False.
        jaccard: whether to compute the Jaccard loss instead. Default: False.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, or MONAI's ``LossReduction``. Default: ``"mean"``.
        smooth_nr, smooth_dr: added to the numerator and to the denominator. Default: 1e-5.
        batch: whether a class has one term for the whole batch. Default: False.
        weight: a number, or one for each class that has a term: without class 0 if ``include_background=False``. It
            has no effect if a single class has a term. It is a buffer, ``class_weight``. Default: None.
        soft_label: whether the intersection is the sum of min(p, g) instead of p * g. Default: False.
        ignore_index: label of the voxels to ignore. In a target ``[N, C, *]`` of several classes, these are the voxels
            of that class, or those without any class if it is none of them. Default: None.

    Call:
        ``loss(input, target)``, where

        * input: logits or probabilities ``[N, C, *]``; float64, float32, float16 or bfloat16.
        * target: masks or class probabilities ``[N, C, *]`` in [0, 1], of any dtype; or, with ``to_onehot_y=True`` or
          ``softmax=True``, labels ``[N, *]`` or ``[N, 1, *]``, integer or floating with integral values.

    Returns:
        A tensor of input's dtype (float32 for half types), 0-dim; with ``reduction="none"`` of the shape
        ``[N, C', 1, ...]``, or ``[C', 1, ...]`` with ``batch``, where C' classes have terms.

    Raises:
        ValueError: ``other_act`` is given, ``sigmoid`` and ``softmax`` are both True, ``reduction`` has an unknown
            value, a weight is negative, or there is not one for each class that has a term; or target has not input's
            shape with neither ``to_onehot_y`` nor ``softmax``.
        TypeError, IndexError, RuntimeError: as ``segloss.dice_loss``.

    Example:
        >>> import torch
        >>> from segloss.monai import DiceLoss
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
        >>> DiceLoss(to_onehot_y=True, softmax=True, reduction="none")(logits, labels).shape
        torch.Size([1, 2, 1, 1])

    See also:
        * ``segloss.DiceLoss``: the same loss with segloss's keywords
    """

    squared_pred: bool
    jaccard: bool

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: ClassWeight | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))

    def _of_activated(self, input: Tensor, target: Tensor, activation: Activation | None) -> Tensor:
        weight = self._with_background(self._weight(input), input) if self._num_classes(input) > 1 else None
        terms = region.dice_loss(**self._options_of(input, target, activation), weight=weight)
        return _with_ones(terms, input) if self.reduction == "none" else terms

    def _options_of(self, input: Tensor, target: Tensor, activation: Activation | None) -> dict[str, Any]:
        own = {"squared": self.squared_pred, "jaccard": self.jaccard}
        return super()._options_of(input, target, activation) | own


class MaskedDiceLoss(DiceLoss):
    """``monai.losses.MaskedDiceLoss``: the Dice loss of probabilities and a target that are multiplied by a mask.

    With labels and ``to_onehot_y=True``, the voxels that are masked out are of class 0, as in MONAI. Write
    ``segloss.dice_loss(..., voxel_weight=mask)``, or one-hot labels, to leave them out.

    Args:
        others: as in ``segloss.monai.DiceLoss``; there is no ``ignore_index``.

    Call:
        ``loss(input, target, mask=None)``, where

        * input, target: as in ``segloss.monai.DiceLoss``.
        * mask: ``[N, 1, *]`` or ``[1, 1, *]``, of any dtype, in [0, 1]. Default: None, ``DiceLoss`` with a UserWarning.

    Returns:
        A tensor as of ``segloss.monai.DiceLoss``.

    Raises:
        ValueError: the mask has another batch size than input and 1, or more than one channel.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.monai.DiceLoss``.

    Example:
        >>> import torch
        >>> from segloss.monai import MaskedDiceLoss
        >>> logits, masks = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
        >>> MaskedDiceLoss(sigmoid=True)(logits, masks, mask=torch.ones(1, 1, 4, 4))
        tensor(0.3333)

    See also:
        * ``segloss.DiceLoss``: its ``voxel_weight`` reads the logits once
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: ClassWeight | None = None,
        soft_label: bool = False,
    ) -> None:
        super().__init__(**_keywords(locals()))

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Computes the loss of ``input`` and ``target``, both multiplied by ``mask``; see the class."""
        if mask is None:
            _warn("MaskedDiceLoss: got no mask, every voxel counts")
            return super().forward(input, target)
        input, target = self._read(input, target)
        mask = functional._plain(mask)
        if mask.dim() != input.dim() or mask.shape[0] not in (1, input.shape[0]) or mask.shape[1] != 1:
            raise ValueError(
                f"MaskedDiceLoss: expected a mask [N, 1, ...] or [1, 1, ...] for input {list(input.shape)}, got "
                f"{list(mask.shape)}"
            )
        activation = self._activation(input)
        p = input.softmax(1) if activation == "softmax" else input.sigmoid() if activation == "sigmoid" else input
        labels_with_channel = target.unsqueeze(1) if target.dim() < input.dim() else target
        return self._of_read(p * mask, labels_with_channel * mask, None)


class GeneralizedDiceLoss(_RegionLoss):
    """``monai.losses.GeneralizedDiceLoss``; formula and source are in ``segloss.GeneralizedDiceLoss``.

    A sample without a voxel of the classes that have terms has the loss ``1 - smooth_nr / smooth_dr`` without gradient,
    as in MONAI, unless ``w_type="uniform"``.

    Args:
        w_type: the weight of a class of volume T: ``"square"`` is 1 / T ** 2, ``"simple"`` 1 / T and ``"uniform"`` 1,
            or MONAI's ``Weight``. Default: ``"square"``.
        others: as in ``segloss.monai.DiceLoss``; there is neither ``weight`` nor ``ignore_index``.

    Call:
        ``loss(input, target)``, as in ``segloss.monai.DiceLoss``.

    Returns:
        A tensor of input's dtype (float32 for half types), 0-dim; with ``reduction="none"`` of the shape
        ``[N, 1, 1, ...]``, or ``[1, 1, ...]`` with ``batch``.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.monai.DiceLoss``.

    Example:
        >>> import torch
        >>> from segloss.monai import GeneralizedDiceLoss
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8)
        >>> GeneralizedDiceLoss(to_onehot_y=True, softmax=True)(logits, labels)
        tensor(0.5794)

    See also:
        * ``segloss.GeneralizedDiceLoss``: the same loss with segloss's keywords
    """

    w_type: WeightType

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        w_type: str = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
    ) -> None:
        w_type = _choice("GeneralizedDiceLoss", "w_type", w_type, ("square", "simple", "uniform"))
        super().__init__(**_keywords(locals()))

    def _of_activated(self, input: Tensor, target: Tensor, activation: Activation | None) -> Tensor:
        options = self._options_of(input, target, activation) | {"reduction": "none"}
        terms = region.generalized_dice_loss(**options, w_type=self.w_type).view(-1)
        if self.w_type != "uniform":
            without_weights = 1 - terms.new_tensor(self.smooth_nr) / self.smooth_dr
            terms = torch.where(self._has_class(input, target), terms, without_weights)
        if self.reduction == "none":
            return _with_ones(terms if self.batch else terms.unsqueeze(1), input)
        return terms.mean() if self.reduction == "mean" else terms.sum()

    def _has_class(self, input: Tensor, target: Tensor) -> Tensor:
        """Whether a sample, or the batch, has a voxel of a class that has a term."""
        first = self._first_class(input)
        is_class = target >= first if _holds_labels(input, target) else target.reshape(input.shape)[:, first:] != 0
        return is_class.any() if self.batch else is_class.flatten(1).any(1)


class TverskyLoss(_RegionLoss):
    """``monai.losses.TverskyLoss``; formula and source are in ``segloss.TverskyLoss``.

    Args:
        alpha: the weight of false positives. Default: 0.5.
        beta: the weight of false negatives. Default: 0.5.
        others: as in ``segloss.monai.DiceLoss``; there is no ``weight``.

    Call:
        ``loss(input, target)``, as in ``segloss.monai.DiceLoss``.

    Returns:
        A tensor of input's dtype (float32 for half types), 0-dim; with ``reduction="none"`` of the shape ``[N, C']``,
        or ``[C']`` with ``batch``, where C' classes have terms.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.monai.DiceLoss``.

    Example:
        >>> import torch
        >>> from segloss.monai import TverskyLoss
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
        >>> TverskyLoss(to_onehot_y=True, softmax=True, alpha=0.3, beta=0.7)(logits, labels)
        tensor(0.6024)

    See also:
        * ``segloss.TverskyLoss``: the same loss with segloss's keywords
    """

    alpha: float
    beta: float

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))

    def _of_activated(self, input: Tensor, target: Tensor, activation: Activation | None) -> Tensor:
        options = self._options_of(input, target, activation)
        return region.tversky_loss(**options, alpha=self.alpha, beta=self.beta)


class _DistanceLoss(_ActivatedLoss):
    """A loss of distance maps, whose masks hold 0 and 1."""

    _of_segloss: Callable[..., Tensor]

    def _terms(self, input: Tensor, target: Tensor, activation: Activation | None, **options: Any) -> Tensor:
        """The terms by segloss's function, or their mean or sum."""
        if not _holds_labels(input, target):
            target = _zeros_and_ones(self, target)
            if activation == "softmax":  # the masks need not be one-hot
                input, activation = input.softmax(1), None
        return type(self)._of_segloss(
            input,
            target,
            activation=activation,
            include_background=self._first_class(input) == 0,
            batch=self.batch,
            ignore_index=NO_LABEL,
            reduction=self.reduction,
            **options,
        )


class BoundaryLoss(_DistanceLoss):
    """``monai.losses.BoundaryLoss``; formula and source are in ``segloss.BoundaryLoss``.

    Args:
        others: as in ``segloss.monai.DiceLoss``; there is neither ``weight`` nor ``ignore_index``.

    Call:
        ``loss(input, target)``, as in ``segloss.monai.DiceLoss``; masks hold 0 and 1.

    Returns:
        A tensor of input's dtype (float32 for half types), 0-dim; with ``reduction="none"`` of the shape
        ``[N, C']``, or ``[C']`` with ``batch``.

    Raises:
        ValueError: soft masks, which MONAI compares with 0.5.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.monai.DiceLoss``.

    Example:
        >>> import torch
        >>> from segloss.monai import BoundaryLoss
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8)
        >>> BoundaryLoss(to_onehot_y=True, softmax=True)(logits, labels)
        tensor(0.1818)

    See also:
        * ``segloss.BoundaryLoss``: the same loss with segloss's keywords, and spacing
    """

    _of_segloss = boundary.boundary_loss

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        reduction: str = "mean",
        batch: bool = False,
    ) -> None:
        super().__init__(**_keywords(locals()))

    def _of_activated(self, input: Tensor, target: Tensor, activation: Activation | None) -> Tensor:
        return self._terms(input, target, activation)


class HausdorffDTLoss(_DistanceLoss):
    """``monai.losses.HausdorffDTLoss``; formula and source are in ``segloss.HausdorffDTLoss``.

    Args:
        alpha: the exponent of the distances, above 0. Default: 2.
        include_background: whether class 0 has a term. Default: False.
        others: as in ``segloss.monai.BoundaryLoss``.

    Call:
        ``loss(input, target)``, as in ``segloss.monai.BoundaryLoss``.

    Returns:
        A tensor of input's dtype (float32 for half types), 0-dim; with ``reduction="none"`` of the shape
        ``[N, C', 1, 1, ...]``, or ``[1, C', 1, 1, ...]`` with ``batch``.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.monai.BoundaryLoss``.

    Example:
        >>> import torch
        >>> from segloss.monai import HausdorffDTLoss
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8)
        >>> HausdorffDTLoss(to_onehot_y=True, softmax=True)(logits, labels)
        tensor(0.4317)

    See also:
        * ``segloss.HausdorffDTLoss``: the same loss with segloss's keywords, and spacing
    """

    _of_segloss = boundary.hausdorff_dt_loss
    alpha: float

    def __init__(
        self,
        alpha: float = 2.0,
        include_background: bool = False,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        reduction: str = "mean",
        batch: bool = False,
    ) -> None:
        super().__init__(**_keywords(locals()))

    def _of_activated(self, input: Tensor, target: Tensor, activation: Activation | None) -> Tensor:
        terms = self._terms(input, target, activation, alpha=self.alpha)
        if self.reduction != "none":
            return terms
        return _with_ones(terms.unsqueeze(0) if self.batch else terms, input)


class _ClDiceLoss(_ActivatedLoss):
    """A loss of soft skeletons."""

    iter_: int
    smooth_nr: float
    smooth_dr: float
    smooth: float

    def __init__(self, *, iter_: int, smooth: float, **options: Any) -> None:
        op = type(self).__name__
        if not isinstance(iter_, int):
            raise TypeError(f"{op}: expected iter_ to be an int, got {type(iter_).__name__}")
        if iter_ < 0:
            raise ValueError(f"{op}: expected iter_ of 0 or more, got {iter_}")
        if not smooth > 0:
            raise ValueError(f"{op}: expected smooth above 0, got {smooth}")
        super().__init__(iter_=iter_, smooth=smooth, **options)

    def _options_of(self, input: Tensor, target: Tensor, activation: Activation | None) -> dict[str, Any]:
        """The keywords that both terms have, input and target among them."""
        if not _holds_labels(input, target) and activation == "softmax" and not target.is_floating_point():
            target = target.to(input.dtype)  # integers would have to be one-hot
        return {
            "input": input,
            "target": target,
            "activation": activation,
            "include_background": self._first_class(input) == 0,
            "smooth_nr": self.smooth_nr,
            "smooth_dr": self.smooth_dr,
            "ignore_index": NO_LABEL,
            "reduction": self.reduction,
        }

    def _options_of_cldice(self) -> dict[str, Any]:
        return {"iterations": self.iter_, "smooth": self.smooth, "per_class": False}


class SoftclDiceLoss(_ClDiceLoss):
    """``monai.losses.SoftclDiceLoss``; formula and source are in ``segloss.SoftClDiceLoss``.

    Args:
        iter_: how often the image is eroded after the first level. Default: 3.
        smooth_nr, smooth_dr: added to numerator and denominator of precision and sensitivity. Default: 1.
        smooth: added to the denominator of their harmonic mean, above 0. Default: 1e-4.
        others: as in ``segloss.monai.DiceLoss``; there is neither ``weight`` nor ``batch`` nor ``ignore_index``.

    Call:
        ``loss(input, target)``, as in ``segloss.monai.DiceLoss``, with one to three spatial axes.

    Returns:
        A tensor of input's dtype (float32 for half types), 0-dim; with ``reduction="none"`` of the shape ``[N]``.

    Raises:
        ValueError: ``iter_`` is below 0 or above 1000, or ``smooth`` is not above 0.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.monai.DiceLoss``.

    Example:
        >>> import torch
        >>> from segloss.monai import SoftclDiceLoss
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8)
        >>> SoftclDiceLoss(to_onehot_y=True, softmax=True)(logits, labels)
        tensor(0.1413)

    See also:
        * ``segloss.SoftClDiceLoss``: the same loss with segloss's keywords, and a term for each class
    """

    def __init__(
        self,
        iter_: int = 3,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        smooth: float = 1e-4,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(**_keywords(locals()))

    def _of_activated(self, input: Tensor, target: Tensor, activation: Activation | None) -> Tensor:
        return cldice.soft_cldice_loss(**self._options_of(input, target, activation), **self._options_of_cldice())


class SoftDiceclDiceLoss(_ClDiceLoss):
    """``monai.losses.SoftDiceclDiceLoss``; formula and source are in ``segloss.DiceClDiceLoss``.

    Args:
        alpha: the factor of the clDice loss, in [0, 1]; that of the Dice loss is 1 - alpha. Default: 0.5.
        smooth_nr, smooth_dr: added to numerator and denominator of the Dice loss, of precision and of sensitivity.
            Default: 1.
        others: as in ``segloss.monai.SoftclDiceLoss``.

    Call:
        ``loss(input, target)``, as in ``segloss.monai.SoftclDiceLoss``.

    Returns:
        A tensor of input's dtype (float32 for half types), 0-dim; with ``reduction="none"`` the Dice terms
        ``[N, C', 1, 1, ...]`` plus the clDice terms ``[N]``, as torch broadcasts them.

    Raises:
        ValueError: ``alpha`` is outside [0, 1].
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.monai.SoftclDiceLoss``.

    Example:
        >>> import torch
        >>> from segloss.monai import SoftDiceclDiceLoss
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8)
        >>> SoftDiceclDiceLoss(to_onehot_y=True, softmax=True)(logits, labels)
        tensor(0.2557)

    See also:
        * ``segloss.DiceClDiceLoss``: the same loss with segloss's keywords, and a clDice term for each class
    """

    alpha: float

    def __init__(
        self,
        iter_: int = 3,
        alpha: float = 0.5,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        smooth: float = 1e-4,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        reduction: str = "mean",
    ) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"SoftDiceclDiceLoss: expected alpha in [0, 1], got {alpha}")
        super().__init__(**_keywords(locals()))

    def _of_activated(self, input: Tensor, target: Tensor, activation: Activation | None) -> Tensor:
        options, of_cldice = self._options_of(input, target, activation), self._options_of_cldice()
        if self.reduction != "none":
            options |= {"lambda_dice": 1 - self.alpha, "lambda_cldice": self.alpha}
            return cldice.dice_cldice_loss(**options, **of_cldice)
        dice = _with_ones(region.dice_loss(**options), input)
        return (1 - self.alpha) * dice + self.alpha * cldice.soft_cldice_loss(**options, **of_cldice)


class FocalLoss(_ClassLoss):
    """``monai.losses.FocalLoss``, with a sigmoid or a softmax; ``segloss.FocalLoss`` has the formulas.

    Each voxel and class has a term; with a softmax only that of the voxel's class is not 0. The mean is over all terms;
    with ``ignore_index`` it is their sum divided by the number of voxels that count. The sum is that of the means which
    each sample and class has over its voxels.

    Args:
        include_background: whether class 0 has a term; without one, the softmax is over the other classes. Default:
            True.
        to_onehot_y: whether a target of another shape than input's holds labels; with ``use_softmax=True`` it does in
            any case. Default: False.
        gamma: the exponent, 0 or more. Default: 2.
        alpha: a number in [0, 1]: with sigmoid the factor of target 1, as 1 - alpha is that of target 0; with softmax
            the factor of all classes but the first, as 1 - alpha is that of the first, and ignored with a UserWarning
            if ``include_background=False``. Or a sequence, the factor of each class that has a term (with sigmoid
            where the target is 1). Default: None.
        weight: a number, or one for each class that has a term, if there are several. It is a buffer, ``class_weight``.
            Default: None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, or MONAI's ``LossReduction``. Default: ``"mean"``.
        use_softmax: whether classes exclude each other; else each is a binary problem of its own. Default: False.
        ignore_index: label of the voxels to ignore, as in ``segloss.monai.DiceLoss``. Default: None.

    Call:
        ``loss(input, target)``, where

        * input: logits ``[N, C, *]``; float64, float32, float16 or bfloat16.
        * target: masks ``[N, C, *]`` of 0 and 1, of any dtype, for a softmax with at most one 1 in each voxel; or, with
          ``to_onehot_y=True`` or ``use_softmax=True``, labels ``[N, *]`` or ``[N, 1, *]``, integer or floating with
          integral values.

    Returns:
        A tensor of input's dtype (float32 for half types), 0-dim; with ``reduction="none"`` ``[N, C', *]``, where C'
        classes have terms.

    Raises:
        ValueError: a softmax over one channel, or of several classes in a voxel; a mask that is not of 0 and 1;
            ``gamma`` is below 0, ``alpha`` is outside [0, 1], or there is not one for each class; ``reduction``,
            ``weight`` and target's shape as in ``segloss.monai.DiceLoss``, and a ``weight`` for each class of one.
        TypeError, IndexError, RuntimeError: as ``segloss.focal_loss``.

    Example:
        >>> import torch
        >>> from segloss.monai import FocalLoss
        >>> logits = torch.tensor([[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]])
        >>> labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
        >>> FocalLoss(to_onehot_y=True)(logits, labels)
        tensor(0.2979)

    See also:
        * ``segloss.FocalLoss``: has a softmax by default, and another mean
    """

    gamma: float
    alpha: float | Tensor | None
    use_softmax: bool
    _is_beside_softmax = False  # as a term of a compound loss whose other term has a softmax

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        weight: ClassWeight | None = None,
        reduction: str = "mean",
        use_softmax: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        options = _keywords(locals())
        if not (alpha is None or isinstance(alpha, float | int)):
            options["alpha"] = torch.as_tensor(alpha, dtype=torch.get_default_dtype())
        super().__init__(**options)

    def _reads_labels(self) -> bool:
        return self.to_onehot_y or self.use_softmax or self._is_beside_softmax

    def _loss(self, input: Tensor, target: Tensor) -> Tensor:
        if self.use_softmax and self._num_classes(input) == 1:
            raise ValueError(
                f"FocalLoss: expected several classes with use_softmax=True, got one of input {list(input.shape)}, "
                "whose softmax is 1: the loss would be 0 without gradient. Use use_softmax=False"
            )
        counts = None
        if self.ignore_index is not None:
            target, counts = _without_ignored(self, input, target)
        if not _holds_labels(input, target):
            target = _zeros_and_ones(self, target)
        voxel_weight, divisor = self._voxel_weight_and_divisor(input, counts)
        options = {
            "gamma": self.gamma,
            "ignore_index": (),
            "voxel_weight": voxel_weight,
            "reduction": "none" if self.reduction == "none" else "sum",
        }
        terms = self._of_softmax if self.use_softmax else self._of_sigmoid
        loss = terms(input, target, **options)
        return loss if divisor is None else loss / divisor

    def _voxel_weight_and_divisor(
        self, input: Tensor, counts: Tensor | None
    ) -> tuple[Tensor | None, Tensor | int | None]:
        """What makes MONAI's mean, or sum of means over voxels, of a sum over voxels and classes."""
        num_samples, _, *sizes = input.shape
        if self.reduction == "none":
            return counts, None
        if self.reduction == "mean":
            num_terms = num_samples * self._num_classes(input) * math.prod(sizes)
            return counts, num_terms if counts is None else counts.sum().clamp(min=1)
        if counts is None:
            return None, math.prod(sizes)
        of_samples = counts.flatten(1).sum(1).clamp(min=1).view(-1, *[1] * (counts.dim() - 1))
        return counts.to(input.dtype) / of_samples, None

    def _weight(self, input: Tensor) -> Tensor | None:
        if self._num_classes(input) == 1 and self.class_weight is not None and self.class_weight.dim() > 0:
            raise ValueError(
                f"FocalLoss: expected a number as weight of a single class, got {list(self.class_weight.shape)}"
            )
        return super()._weight(input)

    def _of_sigmoid(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        first = self._first_class(input)
        weight = self._weight(input)
        if weight is None and first == 1:
            weight = input.new_ones(self._num_classes(input))
        weight = self._with_background(weight, input)

        def terms(alpha: float | None, weight: Tensor | None) -> Tensor:
            loss = functional.focal_loss(input, target, alpha=alpha, weight=weight, activation="sigmoid", **options)
            return loss[:, first:] if self.reduction == "none" else loss

        if not isinstance(self.alpha, Tensor):
            return terms(self.alpha, weight)
        of_ones = pad(self._checked("alpha", self.alpha, input), (first, 0))
        return terms(1.0, of_ones if weight is None else of_ones * weight) + terms(0.0, weight)

    def _of_softmax(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        first = self._first_class(input)
        factors = self._factors_of_softmax(input)
        if not _holds_labels(input, target):
            target, is_shifted = _labels_above_0(target[:, first:]), True
        else:
            target, is_shifted = target if target.dim() == input.dim() else target.unsqueeze(1), first == 1
        input = input[:, first:]
        label_map: LabelMap | None = None
        if is_shifted:
            label_map = {label: label - 1 if label > 0 else None for label in range(input.shape[1] + 1)}
        terms = functional.focal_loss(input, target, alpha=factors, label_map=label_map, **options)
        if self.reduction != "none":
            return terms
        classes = (target.long() - int(is_shifted)).clamp(min=0)  # the term of a label without a class is 0
        return terms.new_zeros(input.shape).scatter(1, classes, terms)

    def _factors_of_softmax(self, input: Tensor) -> Tensor | None:
        """Alpha times weight of each class that has a term."""
        weight = self._weight(input)
        if self.alpha is None:
            return weight
        if isinstance(self.alpha, Tensor):
            alpha = self._checked("alpha", self.alpha, input)
        elif self._first_class(input) == 1:
            _warn("FocalLoss: a single alpha is ignored with use_softmax=True and include_background=False")
            return weight
        else:
            alpha = input.new_tensor([1 - self.alpha] + [self.alpha] * (input.shape[1] - 1))
        return alpha if weight is None else alpha * weight


def _labels_above_0(masks: Tensor) -> Tensor:
    """Labels [N, 1, *] of masks of 0 and 1: c + 1 for class c, 0 for a voxel without a class."""
    without_class = (masks == 0).all(1, keepdim=True).to(masks.dtype)
    advice = "Keep monai.losses.FocalLoss for several classes in a voxel"
    one_hot = torch.cat([without_class, masks], 1)
    try:
        return functional._one_hot_labels("FocalLoss", one_hot, 1, advice).unsqueeze(1)
    except RuntimeError:
        is_wrong = ((masks != 0) & (masks != 1)).any(1) | (masks.sum(1) > 1)
        if not is_wrong.any():
            raise
        raise ValueError(
            "FocalLoss: expected masks of 0 and 1 with at most one 1 in each voxel for use_softmax=True, got "
            f"{masks.movedim(1, -1)[is_wrong][0].long().tolist()} at index {is_wrong.nonzero()[0].tolist()}. {advice}"
        ) from None


class _CompoundLoss(nn.Module):
    """A loss of two terms, with MONAI's options of both. The factors of the terms are attributes."""

    def __init__(self, options: dict[str, Any], **factors: float) -> None:
        super().__init__()
        op = type(self).__name__
        _check_activation(op, options["sigmoid"], options["softmax"], options["other_act"])
        for name, factor in factors.items():
            functional._check_number(op, name, factor)
            if factor < 0:
                raise ValueError(f"{op}: expected {name} to be 0 or more, got {factor}")
            setattr(self, name, factor)


def _term(loss: Callable[..., _Term], options: dict[str, Any]) -> _Term:
    """A term of a compound loss, with the options that both have."""
    return loss(**{name: options[name] for name in inspect.signature(loss).parameters if name in options})


class DiceCELoss(_CompoundLoss):
    """``monai.losses.DiceCELoss``: Dice plus cross entropy.

    The second term is the cross entropy of a softmax, with one channel binary cross entropy, whatever the activation of
    the Dice term is::

        loss = lambda_dice * DiceLoss(...)(input, target) + lambda_ce * cross_entropy(input, target, weight)

    As in MONAI, the terms are the modules ``dice`` and ``cross_entropy``, with one channel ``binary_cross_entropy``,
    and may be changed or replaced. With ``softmax=True``, with one channel ``sigmoid=True``, the logits are read once
    for both terms. They are read twice if the terms were changed to differ in their voxels, weights or reduction, and
    with weights of several classes also on a GPU and in compiled code.

    Args:
        weight: one for each class, ``[C]``, of the cross entropy and, but for class 0 if ``include_background=False``,
            of Dice; with one channel the weight of target 1 in the cross entropy. Default: None.
        lambda_dice, lambda_ce: the factors of the two terms, 0 or more. Default: 1.
        label_smoothing: of the cross entropy of several channels, in [0, 1]. Default: 0.
        reduction: ``"mean"`` or ``"sum"``. Default: ``"mean"``.
        others: as in ``segloss.monai.DiceLoss``.

    Call:
        ``loss(input, target)``, as in ``segloss.monai.DiceLoss``.

    Returns:
        A 0-dim tensor of input's dtype (float32 for half types).

    Raises:
        ValueError: a factor is negative.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.monai.DiceLoss`` and ``segloss.cross_entropy``.

    Example:
        >>> import torch
        >>> from segloss.monai import DiceCELoss
        >>> loss = DiceCELoss(to_onehot_y=True, softmax=True, weight=[1.0, 2.0, 2.0])
        >>> logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.DiceCELoss``: takes ``ignore_index``, too
    """

    lambda_dice: float
    lambda_ce: float

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Sequence[float] | Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        options = _keywords(locals())
        super().__init__(options, lambda_dice=lambda_dice, lambda_ce=lambda_ce)
        reduced: Reduction = _choice("DiceCELoss", "reduction", reduction, ("mean", "sum"))
        of_classes = None if weight is None else _class_weight("DiceCELoss", weight)
        of_terms = of_classes if of_classes is None or include_background else of_classes[1:]
        self.dice = _term(DiceLoss, options | {"weight": of_terms})
        self.cross_entropy = losses.CrossEntropyLoss(
            of_classes, ignore_index=NO_LABEL, reduction=reduced, label_smoothing=label_smoothing
        )
        self.binary_cross_entropy = losses.BCEWithLogitsLoss(
            pos_weight=of_classes, ignore_index=NO_LABEL, reduction=reduced
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Computes the loss of ``input`` and ``target``; see the class."""
        x, y = _read(self, input, target)
        if y.shape == x.shape and not y.is_floating_point():
            y = y.to(x.dtype)  # integers would be one-hot labels, whose weighted mean is another
        dice, ce = self.dice, self.binary_cross_entropy if x.shape[1] == 1 else self.cross_entropy
        if not self._is_one_walk(x, dice, ce):
            loss: Tensor = self.lambda_dice * dice(x, y) + self.lambda_ce * self._cross_entropy(ce, x, y)
            return loss
        dice._check_use(x, y)
        return region.dice_ce_loss(
            **dice._options_of(x, y, dice._activation(x)),
            weight=ce.weight,
            pos_weight=getattr(ce, "pos_weight", None),
            label_smoothing=ce.label_smoothing,
            lambda_dice=self.lambda_dice,
            lambda_ce=self.lambda_ce,
        )

    @staticmethod
    def _cross_entropy(ce: nn.Module, input: Tensor, target: Tensor) -> Tensor:
        """The second term by itself, of a module that may be torch's."""
        if _holds_labels(input, target):
            target = target.squeeze(1) if target.dim() == input.dim() else target
            target = target if isinstance(ce, losses.CrossEntropyLoss) else target.long()
        loss: Tensor = ce(input, target)
        return loss

    @staticmethod
    def _is_one_walk(input: Tensor, dice: nn.Module, ce: nn.Module) -> bool:
        """Whether ``dice_ce_loss`` has both terms: modules that were not replaced, of one activation, and with the same
        voxels, reduction and weights."""
        has_one_channel = input.shape[1] == 1
        if type(dice) is not DiceLoss or type(ce) is not (_BCE if has_one_channel else _CE):
            return False
        own = {"reduction": dice.reduction, "label_smoothing": ce.label_smoothing}
        is_same = dice.ignore_index is None and ce._options() == _OPTIONS_OF_CE[type(ce)] | own
        is_same = is_same and dice._activation(input) == ("sigmoid" if has_one_channel else "softmax")
        return is_same and (_have_one_weight(input, dice, ce) if isinstance(ce, _CE) else ce.weight is None)


_CE, _BCE = losses.CrossEntropyLoss, losses.BCEWithLogitsLoss
_OPTIONS_OF_CE = {each: each(ignore_index=NO_LABEL)._options() for each in (_CE, _BCE)}


def _have_one_weight(input: Tensor, dice: DiceLoss, ce: losses.CrossEntropyLoss) -> bool:
    """Whether the terms have the same weights. Weights on a GPU are not compared, which would wait for it, nor those in
    compiled code, which has no branches that depend on numbers."""
    of_dice = dice.class_weight if dice._num_classes(input) > 1 else None  # a single class has none
    of_ce = ce.weight
    if of_dice is None or of_ce is None:
        return of_dice is of_ce
    is_readable = of_dice.device.type == of_ce.device.type == "cpu" and not torch.compiler.is_compiling()
    return is_readable and torch.equal(of_dice, of_ce[dice._first_class(input) :])


class DiceFocalLoss(_CompoundLoss):
    """``monai.losses.DiceFocalLoss``: Dice plus focal loss, which has a sigmoid whatever the activation of Dice is.

    The sum of ``segloss.monai.DiceLoss`` and ``segloss.monai.FocalLoss``::

        loss = lambda_dice * DiceLoss(...)(input, target) + lambda_focal * FocalLoss(...)(input, target)

    Args:
        gamma, alpha: of the focal loss. Default: 2 and None.
        include_background, reduction, weight: as in ``segloss.monai.DiceLoss``, of both terms.
        lambda_dice, lambda_focal: the factors of the two terms, 0 or more. Default: 1.
        others: as in ``segloss.monai.DiceLoss``.

    Call:
        ``loss(input, target)``, as in ``segloss.monai.FocalLoss``; labels need ``to_onehot_y=True`` or
        ``softmax=True``.

    Returns:
        A tensor of input's dtype (float32 for half types), 0-dim; with ``reduction="none"`` the terms of both losses,
        added with broadcasting, ``[N, C', *]``.

    Raises:
        ValueError: a factor is negative.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.monai.DiceLoss`` and ``segloss.monai.FocalLoss``.

    Example:
        >>> import torch
        >>> from segloss.monai import DiceFocalLoss
        >>> loss = DiceFocalLoss(to_onehot_y=True, softmax=True)
        >>> logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.DiceFocalLoss``: one activation for both terms
    """

    lambda_dice: float
    lambda_focal: float

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        gamma: float = 2.0,
        weight: ClassWeight | None = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: float | None = None,
    ) -> None:
        options = _keywords(locals())
        super().__init__(options, lambda_dice=lambda_dice, lambda_focal=lambda_focal)
        self.dice = _term(DiceLoss, options)
        self.focal = _term(FocalLoss, options)
        self.focal._is_beside_softmax = softmax

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Computes the loss of ``input`` and ``target``; see the class."""
        loss: Tensor = self.lambda_dice * self.dice(input, target) + self.lambda_focal * self.focal(input, target)
        return loss


class GeneralizedDiceFocalLoss(_CompoundLoss):
    """``monai.losses.GeneralizedDiceFocalLoss``: generalized Dice plus focal loss, which always has a sigmoid.

    The sum of ``segloss.monai.GeneralizedDiceLoss`` and ``segloss.monai.FocalLoss``::

        loss = lambda_gdl * GeneralizedDiceLoss(...)(input, target) + lambda_focal * FocalLoss(...)(input, target)

    Args:
        gamma, weight: of the focal loss. Default: 2 and None.
        include_background, reduction: of both terms.
        lambda_gdl, lambda_focal: the factors of the two terms, 0 or more. Default: 1.
        others: as in ``segloss.monai.GeneralizedDiceLoss``.

    Call:
        ``loss(input, target)``, as in ``segloss.monai.FocalLoss``; labels need ``to_onehot_y=True`` or
        ``softmax=True``.

    Returns:
        A tensor as of ``segloss.monai.DiceFocalLoss``.

    Raises:
        ValueError: a factor is negative.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.monai.GeneralizedDiceLoss`` and
            ``segloss.monai.FocalLoss``.

    Example:
        >>> import torch
        >>> from segloss.monai import GeneralizedDiceFocalLoss
        >>> loss = GeneralizedDiceFocalLoss(to_onehot_y=True, softmax=True)
        >>> logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.GeneralizedDiceLoss``, ``segloss.FocalLoss``: the terms with segloss's keywords
    """

    lambda_gdl: float
    lambda_focal: float

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherActivation | None = None,
        w_type: str = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        gamma: float = 2.0,
        weight: ClassWeight | None = None,
        lambda_gdl: float = 1.0,
        lambda_focal: float = 1.0,
    ) -> None:
        options = _keywords(locals())
        super().__init__(options, lambda_gdl=lambda_gdl, lambda_focal=lambda_focal)
        self.generalized_dice = _term(GeneralizedDiceLoss, options)
        self.focal = _term(FocalLoss, options)
        self.focal._is_beside_softmax = softmax

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Computes the loss of ``input`` and ``target``; see the class."""
        generalized_dice, focal = self.generalized_dice(input, target), self.focal(input, target)
        loss: Tensor = self.lambda_gdl * generalized_dice + self.lambda_focal * focal
        return loss


class DeepSupervisionLoss(losses.DeepSupervisionLoss):
    """``monai.losses.DeepSupervisionLoss``: the weighted sum of one loss over outputs at several resolutions.

    As ``segloss.DeepSupervisionLoss`` with ``mode="nearest-exact"`` and MONAI's weights::

        loss = sum_i weights[i] * loss(x[i], y[i])

    Args:
        loss: a loss of this module, or any called as ``loss(input, target)``.
        weight_mode: ``"exp"`` for the weights 1, 1/2, 1/4, 1/8, 1/16, 1/16, ..., ``"same"`` for 1, ``"two"`` for 1,
            1/2, 1/2, ... Default: ``"exp"``.
        weights: a weight for each resolution. As in MONAI, those beyond the number of resolutions are not used, and
            ``weight_mode`` applies if there are more resolutions than weights. Default: None.

    Call:
        ``loss(input, target)``, where

        * input: logits ``[N, C, *]``, or a list or tuple of them at several resolutions.
        * target: as the loss takes it, of any dtype, at full resolution.

    Returns:
        A tensor of the dtype and shape of the inner loss.

    Raises:
        TypeError, ValueError: as ``segloss.DeepSupervisionLoss``; a ValueError also for an unknown ``weight_mode``.

    Example:
        >>> import torch
        >>> from segloss.monai import DeepSupervisionLoss, DiceLoss
        >>> loss = DeepSupervisionLoss(DiceLoss(to_onehot_y=True, softmax=True))
        >>> logits = [torch.randn(2, 3, size, size, requires_grad=True) for size in (16, 8, 4)]
        >>> loss(logits, torch.ones(2, 1, 16, 16, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.DeepSupervisionLoss``: takes voxel weights, and can interpolate the logits instead
    """

    def __init__(
        self, loss: Callable[..., Tensor], weight_mode: str = "exp", weights: Sequence[float] | None = None
    ) -> None:
        functional._check_choice("DeepSupervisionLoss", "weight_mode", weight_mode, ("same", "exp", "two"))
        super().__init__(loss, weights, mode="nearest-exact")
        self.weight_mode = weight_mode

    def forward(  # type: ignore[override]  # MONAI has no voxel weights
        self, input: Tensor | Sequence[Tensor], target: Tensor
    ) -> Tensor:
        """Calls the inner loss at each resolution; see the class."""
        if not isinstance(input, list | tuple):
            return self.loss(input, target)
        return super().forward([functional._plain(each) for each in input], functional._plain(target))

    def _weights_for(self, inputs: Sequence[Tensor]) -> Sequence[float]:
        levels = range(len(inputs))
        if self.weights is not None and len(self.weights) >= len(inputs):
            return self.weights[: len(inputs)]
        if self.weight_mode == "exp":
            return [max(0.5**level, 0.0625) for level in levels]
        return [1.0 if level == 0 or self.weight_mode == "same" else 0.5 for level in levels]

    def extra_repr(self) -> str:
        return f"weight_mode={self.weight_mode!r}, {super().extra_repr()}"
