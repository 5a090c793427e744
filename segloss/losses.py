"""The losses as modules: they store the keywords of the functions and call them."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import _reduction

from segloss import functional, region
from segloss._docs import document_module
from segloss.functional import Activation, Empty, Reduction
from segloss.region import WeightType

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# As ignore_index of a loss that ignores nothing: no other dtype than int64 can hold it, and nobody writes it.
_NO_LABEL = torch.iinfo(torch.int64).min


class _Loss(nn.Module):
    """A function with its keywords: options are attributes, tensors are buffers."""

    _function: Callable[..., Tensor]
    weight: Tensor | None
    reduction: str

    def __init_subclass__(cls) -> None:
        if "_function" in vars(cls):
            document_module(cls, cls._function)

    def __init__(self, weight: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        if "reduce" in options:
            size_average, reduce = options.pop("size_average"), options.pop("reduce")
            if size_average is not None or reduce is not None:
                options["reduction"] = _reduction.legacy_get_string(size_average, reduce)  # warns as torch does
        self.register_buffer("weight", weight)
        self._names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def forward(self, input: Tensor, target: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        options = self._options()
        weight = self._buffers["weight"]  # self.weight takes a microsecond, as every buffer does
        if weight is not None:
            options["weight"] = weight
        return type(self)._function(input, target, voxel_weight=voxel_weight, **options)

    def _options(self) -> dict[str, Any]:
        """The keywords of the function, all but the tensors."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        weight = [] if self.weight is None else [f"weight={' '.join(repr(self.weight).split())}"]
        return ", ".join(weight + [f"{name}={value!r}" for name, value in self._options().items()])


def _keywords(arguments: dict[str, Any]) -> dict[str, Any]:
    """The keywords among the locals() of an __init__."""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__")}


class NLLLoss(_Loss):
    """:func:`segloss.nll_loss` as a module; a replacement of :class:`torch.nn.NLLLoss`.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.NLLLoss(ignore_index=255)
        >>> log_p = torch.randn(2, 3, 4, 4).log_softmax(1)
        >>> loss(log_p, torch.full((2, 1, 4, 4), 2, dtype=torch.uint8)).shape
        torch.Size([])
    """

    _function = functional.nll_loss

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        *,
        dim: int = 1,
        empty: Empty = "nan",
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class CrossEntropyLoss(_Loss):
    """:func:`segloss.cross_entropy` as a module; a replacement of :class:`torch.nn.CrossEntropyLoss`.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.CrossEntropyLoss(ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, 8, dtype=torch.uint8)).backward()
    """

    _function = functional.cross_entropy

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        dim: int = 1,
        empty: Empty = "nan",
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class FocalLoss(_Loss):
    """:func:`segloss.focal_loss` as a module: cross entropy in which well-classified voxels count less.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.FocalLoss(gamma=1.5, ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()
    """

    _function = functional.focal_loss

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        activation: Activation = "softmax",
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        empty: Empty = "nan",
        dim: int = 1,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class TopKLoss(_Loss):
    """:func:`segloss.topk_loss` as a module: cross entropy over the k percent of the voxels where it is largest.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.TopKLoss(k=20)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()
    """

    _function = functional.topk_loss

    def __init__(
        self,
        *,
        k: float = 10.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        empty: Empty = "nan",
        dim: int = 1,
    ) -> None:
        super().__init__(**_keywords(locals()))


class DiceLoss(_Loss):
    """:func:`segloss.dice_loss` as a module: the soft Dice or Jaccard loss.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.DiceLoss(include_background=False, batch=True)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()
    """

    _function = region.dice_loss

    def __init__(
        self,
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
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class GeneralizedDiceLoss(_Loss):
    """:func:`segloss.generalized_dice_loss` as a module: Dice in which small classes weigh as much as large ones.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.GeneralizedDiceLoss(w_type="simple")
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()
    """

    _function = region.generalized_dice_loss

    def __init__(
        self,
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
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class TverskyLoss(_Loss):
    """:func:`segloss.tversky_loss` as a module: Dice with a price of its own for false positives and negatives.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.TverskyLoss(alpha=0.3, beta=0.7, gamma=0.75)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()
    """

    _function = region.tversky_loss

    def __init__(
        self,
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
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class DiceCELoss(_Loss):
    """:func:`segloss.dice_ce_loss` as a module: Dice plus cross entropy, from one walk over the logits.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.DiceCELoss(include_background=False, batch=True)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()
    """

    _function = region.dice_ce_loss

    def __init__(
        self,
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
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class DiceFocalLoss(_Loss):
    """:func:`segloss.dice_focal_loss` as a module: Dice plus focal loss, from one walk over the logits.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.DiceFocalLoss(activation="sigmoid")
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()
    """

    _function = region.dice_focal_loss

    def __init__(
        self,
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
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class BinaryDiceLoss(_Loss):
    r"""Dice loss of probabilities against a mask: one term for each sample, then their mean.

    For the probabilities :math:`p` and the target :math:`g` of a sample

    .. math::
        l = 1 - \frac{2 \sum p\, g + \mathrm{smooth}}{\sum p + \sum g + \mathrm{smooth}}

    (Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation", 2016,
    without its squares.)

    Args:
        smooth: added to numerator and denominator. Default: 1.

    Called as ``loss(input, target, voxel_weight=None)`` with probabilities ``[N, *]`` (float64, float32, float16 or
    bfloat16), a target of their shape (floating, or integer or bool of 0 and 1) and, if any, a weight for each voxel,
    of their shape, too. Returns a 0-dim tensor of input's dtype. A target of another shape is a ValueError; one of
    other integers than 0 and 1, and floating values outside [0, 1] in either, as logits are, a RuntimeError.

    Equivalent to:
        ``dice_loss(input.unsqueeze(1), target.unsqueeze(1), activation=None, smooth_nr=smooth, smooth_dr=smooth)``

    Example:
        >>> import segloss, torch
        >>> segloss.BinaryDiceLoss()(torch.tensor([[0.9, 0.2, 0.4]]), torch.tensor([[True, False, True]]))
        tensor(0.2000)
    """

    smooth: float

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__(smooth=smooth)

    def forward(self, input: Tensor, target: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        functional._check_types("BinaryDiceLoss", input, target, None, voxel_weight, _NO_LABEL, dim=1)
        if input.dim() == 0 or input.shape != target.shape:
            raise ValueError(
                "BinaryDiceLoss: expected probabilities and a target of one shape [N, ...], "
                f"got input {list(input.shape)} and target {list(target.shape)}"
            )
        return region.dice_loss(
            input.unsqueeze(1),
            target.unsqueeze(1),
            activation=None,
            smooth_nr=self.smooth,
            smooth_dr=self.smooth,
            ignore_index=_NO_LABEL,
            voxel_weight=voxel_weight,
        )


class MultiClassDiceLoss(_Loss):
    r"""Softmax, then the weighted mean over the classes of their binary Dice losses.

    With :math:`l_c` the :class:`segloss.BinaryDiceLoss` of the probabilities of class c against its mask

    .. math::
        \frac{1}{C} \sum_c w_c\, l_c

    Args:
        weight: a weight for each class ``[C]``; a buffer, so that it moves with the module. Default: 1.
        ignore_index: label of the voxels that do not count; None: every voxel counts. Default: None.
        smooth: added to numerator and denominator. Default: 1.

    Called as ``loss(input, target, voxel_weight=None)``; shapes, dtypes and errors are those of
    :func:`segloss.dice_loss`.

    Equivalent to:
        ``dice_loss(input, target, weight=weight, smooth_nr=smooth, smooth_dr=smooth)``

    Example:
        >>> import segloss, torch
        >>> loss = segloss.MultiClassDiceLoss(ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()
    """

    ignore_index: int | None
    smooth: float

    def __init__(self, weight: Tensor | None = None, ignore_index: int | None = None, smooth: float = 1.0) -> None:
        super().__init__(weight, ignore_index=ignore_index, smooth=smooth)

    def forward(self, input: Tensor, target: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        return region.dice_loss(
            input,
            target,
            weight=self.weight,
            smooth_nr=self.smooth,
            smooth_dr=self.smooth,
            ignore_index=_NO_LABEL if self.ignore_index is None else self.ignore_index,
            voxel_weight=voxel_weight,
        )


class DeepSupervisionLoss(nn.Module):
    r"""A loss at several resolutions: the weighted sum of one loss over the outputs of a network's decoder.

    .. math::
        \sum_i w_i\, \mathrm{loss}(x_i, y_i)

    where :math:`y_i` is the target at the resolution of the logits :math:`x_i`, by nearest neighbours: its element
    :math:`\lfloor j \cdot \mathrm{in} / \mathrm{out} \rfloor` in each spatial dimension, as
    :func:`torch.nn.functional.interpolate` with ``mode="nearest"`` takes it. Where the resolutions divide it is a view;
    in no case is the target cast or made one-hot.

    (Lee et al., "Deeply-Supervised Nets", 2015; the default weights are those of nnU-Net, Isensee et al., "nnU-Net: a
    self-configuring method for deep learning-based biomedical image segmentation", 2021.)

    Args:
        loss: called as ``loss(input, target)``, or ``loss(input, target, voxel_weight=...)`` where voxel weights are
            given; a module or a function. Its attribute ``dim``, or the keyword ``dim`` of a ``functools.partial``, is
            the class dimension, 1 where it has none.
        weights: a factor for each resolution, taken as it is; a resolution of weight 0 is left out. Default:
            :math:`2^{-i}`, normalised to the sum 1.

    Called as ``loss(inputs, target, voxel_weight=None)`` with a list or tuple of logits, usually of falling resolution;
    target, labels ``[N, *]`` or ``[N, 1, *]`` or masks or probabilities ``[N, C, *]`` of any dtype, and voxel_weight at
    full resolution.

    Raises:
        TypeError: inputs is neither a list nor a tuple, or target is no tensor.
        ValueError: inputs is empty, or there is not one weight for each, or all weights are 0; an input and the target
            differ in the number of dimensions, or the input is larger in a spatial one.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.DeepSupervisionLoss(segloss.DiceCELoss(ignore_index=255))
        >>> logits = [torch.randn(2, 3, size, size, requires_grad=True) for size in (16, 8, 4)]
        >>> loss(logits, torch.ones(2, 1, 16, 16, dtype=torch.uint8)).backward()
    """

    def __init__(self, loss: Callable[..., Tensor], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"DeepSupervisionLoss: expected a module or a function as loss, got {type(loss).__name__}")
        self.loss = loss
        self.weights = None if weights is None else _checked_weights(weights)

    def forward(self, inputs: Sequence[Tensor], target: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        dim = _class_dim_of(self.loss)
        losses = []
        for weight, input in zip(self._weights_for(inputs), inputs, strict=True):
            if weight != 0:
                tensors = {} if voxel_weight is None else {"voxel_weight": _subsampled(voxel_weight, input, dim)}
                losses.append(weight * self.loss(input, _subsampled(target, input, dim), **tensors))
        return torch.stack(losses).sum(0)

    def _weights_for(self, inputs: Sequence[Tensor]) -> Sequence[float]:
        if not isinstance(inputs, list | tuple):
            raise TypeError(
                "DeepSupervisionLoss: expected a list of logits, one tensor for each resolution, got "
                f"{type(inputs).__name__}. Pass [input] for a single resolution"
            )
        if not inputs:
            raise ValueError("DeepSupervisionLoss: expected logits of at least one resolution, got an empty list")
        if self.weights is None:
            halves = [0.5**i for i in range(len(inputs))]
            return [half / sum(halves) for half in halves]
        if len(self.weights) != len(inputs):
            raise ValueError(
                f"DeepSupervisionLoss: expected {len(self.weights)} inputs, one for each weight, got {len(inputs)} of "
                f"shapes {[list(input.shape) for input in inputs]}. Give each a weight; 0 leaves it out"
            )
        return self.weights

    def extra_repr(self) -> str:
        return f"weights={self.weights}"


def _checked_weights(weights: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(weights, Iterable):
        raise TypeError(
            f"DeepSupervisionLoss: expected a list of weights, one for each resolution, got {type(weights).__name__}"
        )
    factors = tuple(weights)
    for factor in factors:
        functional._check_number("DeepSupervisionLoss", "each of weights", factor)
    if not any(factors):
        raise ValueError(f"DeepSupervisionLoss: expected a weight other than 0, got {weights}")
    return factors


def _class_dim_of(loss: Callable[..., Tensor]) -> int:
    keywords = loss.keywords if isinstance(loss, partial) else {}
    dim: int = keywords.get("dim", getattr(loss, "dim", 1))
    return dim


def _subsampled(target: Tensor, input: Tensor, dim: int) -> Tensor:
    """Target, or voxel weights, at input's resolution, by nearest neighbours."""
    if not isinstance(target, Tensor):
        raise TypeError(
            f"DeepSupervisionLoss: expected one target at full resolution, got {type(target).__name__}. Pass the "
            "tensor itself; it is subsampled for each input"
        )
    functional._check_types("DeepSupervisionLoss", input, target, None, None, _NO_LABEL, dim)
    if input.dim() == 0:
        raise ValueError("DeepSupervisionLoss: expected logits [N, C, ...] of each resolution, got a 0-dim tensor")
    class_dim = dim % input.dim()
    lost_dims = input.dim() - target.dim()  # 1 where target has no class dimension
    spatial_dims = [d for d in range(input.dim()) if d != class_dim][1:]
    for d in spatial_dims:
        position = d - lost_dims if d > class_dim else d
        if lost_dims not in (0, 1) or input.shape[d] > target.shape[position]:
            raise ValueError(
                "DeepSupervisionLoss: expected a target, and voxel weights, of at least the resolution of each input, "
                f"got {list(target.shape)} for input {list(input.shape)} with its classes in dimension {class_dim}"
            )
        target = _strided(target, position, input.shape[d])
    return target


def _strided(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Elements floor(i * in / out) of a dimension; in integers, which no rounding shifts."""
    available = tensor.shape[dim]
    if size > 0 and available % size == 0:
        step = available // size
        return tensor[(slice(None),) * dim + (slice(None, None, step),)]
    return tensor.index_select(dim, torch.arange(size, device=tensor.device) * available // size)
