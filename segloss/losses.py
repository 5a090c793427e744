"""The losses as modules: they store the keywords of the functions and call them."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import _reduction

from segloss import boundary, cldice, functional, instance, lovasz, region, skeleton
from segloss._docs import document_module
from segloss._label_sets import LabelSetIndex, LabelSets, Regions
from segloss._labels import NO_LABEL, IgnoreIndex, LabelMap
from segloss._peers import explains_keywords
from segloss._upsample import Upsample
from segloss.functional import Activation, ClassWeight, Empty, Reduction
from segloss.lovasz import LovaszClasses
from segloss.region import WeightType
from segloss.skeleton import Thinning

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Loss(nn.Module):
    """Base of the losses: a function with its keywords. Options are attributes, tensors are buffers."""

    _function: Callable[..., Tensor]
    _tensors: tuple[str, ...] = ("weight",)
    weight: Tensor | None

    def __init_subclass__(cls) -> None:
        if "_function" in vars(cls):
            document_module(cls, cls._function)
        if cls.__module__ == __name__ and "__init__" in vars(cls):
            cls.__init__ = explains_keywords(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, **options: Any) -> None:
        """Stores the keywords. The docstring of the class describes them."""
        super().__init__()
        if "reduce" in options:
            size_average, reduce = options.pop("size_average"), options.pop("reduce")
            if size_average is not None or reduce is not None:
                options["reduction"] = _reduction.legacy_get_string(size_average, reduce)  # warns as torch does
        for name in self._tensors:
            tensor = functional._of_classes(options.pop(name, None))
            if tensor is not None:
                functional._check_tensor(type(self).__name__, name, tensor)
            self.register_buffer(name, tensor)
        if "alpha" in options:
            options["alpha"] = functional._of_classes(options["alpha"])
        self._names = tuple(options)
        for name, value in options.items():
            if name in ("label_map", "alpha") and isinstance(value, Tensor):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)

    def forward(self, input: Tensor, target: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        """Calls the function of the loss with the keywords of the module.

        Args:
            input: logits ``[N, C, *]``, or what else the class says.
            target: labels ``[N, *]`` or ``[N, 1, *]``, or what else the class says.
            voxel_weight: a weight for each voxel, of the labels' shape. Default: None, every weight is 1.

        Returns:
            The loss, a 0-dim tensor of input's dtype; with ``reduction="none"`` its terms.
        """
        return self._call(input, target, voxel_weight=voxel_weight)

    def _call(self, input: Tensor, target: Tensor | None, **more: Any) -> Tensor:
        options = self._options() | more
        for name in self._tensors:
            tensor = self._buffers[name]  # getattr would take a microsecond, as for every buffer
            if tensor is not None:
                options[name] = tensor
        return type(self)._function(input, target, **options)

    def _options(self) -> dict[str, Any]:
        """The keywords of the function, apart from tensors."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        buffers = [(name, getattr(self, name)) for name in self._tensors]
        tensors = [f"{name}={' '.join(repr(tensor).split())}" for name, tensor in buffers if tensor is not None]
        return ", ".join(tensors + [f"{name}={value!r}" for name, value in self._options().items()])


def _keywords(arguments: dict[str, Any]) -> dict[str, Any]:
    """The keywords among the locals() of an __init__."""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__")}


# ---- types of the attributes that several losses share, for type checkers: Module's own answer is Tensor | Module ----


class _LabelLoss(_Loss):
    ignore_index: IgnoreIndex
    label_map: LabelMap | None
    regions: Regions | None
    dim: int
    upsample: Upsample | None
    align_corners: bool


class _SetLoss(_LabelLoss):
    label_sets: LabelSets | None

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        voxel_weight: Tensor | None = None,
        label_set_index: LabelSetIndex | None = None,
    ) -> Tensor:
        """Calls the function of the loss with the keywords of the module.

        Args:
            input: logits ``[N, C, *]``, or what else the class says.
            target: labels ``[N, *]`` or ``[N, 1, *]``, or what else the class says.
            voxel_weight: a weight for each voxel, of the labels' shape. Default: None, every weight is 1.
            label_set_index: for each sample the mapping that it has in ``label_sets``, ``[N]``. Default: None, the
                mappings are in the order of the samples.

        Returns:
            The loss, a 0-dim tensor of input's dtype; with ``reduction="none"`` its terms.
        """
        return self._call(input, target, voxel_weight=voxel_weight, label_set_index=label_set_index)


class _ReducedLoss(_SetLoss):
    reduction: Reduction
    process_group: "ProcessGroup | None"


class _RegionLoss(_ReducedLoss):
    activation: Activation | None
    include_background: bool
    soft_label: bool
    batch: bool
    smooth_nr: float
    smooth_dr: float


class _CompoundLoss(_RegionLoss):
    _tensors = ("weight", "pos_weight")
    pos_weight: Tensor | None
    lambda_dice: float
    squared: bool
    jaccard: bool
    empty: Empty


class NLLLoss(_ReducedLoss):
    """Module of ``segloss.nll_loss``; replaces ``torch.nn.NLLLoss``.

    For a voxel with log-probabilities x, label y and voxel weight v::

        loss = v * weight[y] * -x[y]

    and for class probabilities t::

        loss = v * sum_c weight[c] * t[c] * -x[c]

    Args:
        others: as in ``segloss.nll_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.NLLLoss(ignore_index=255)
        >>> log_p = torch.randn(2, 3, 4, 4).log_softmax(1)
        >>> loss(log_p, torch.full((2, 1, 4, 4), 2, dtype=torch.uint8)).shape
        torch.Size([])

    See also:
        * ``segloss.nll_loss``: the function that it calls
        * ``segloss.CrossEntropyLoss``: for logits
    """

    _function = functional.nll_loss
    empty: Empty

    def __init__(
        self,
        weight: ClassWeight | None = None,
        size_average: bool | None = None,
        ignore_index: IgnoreIndex = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        *,
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        label_sets: LabelSets | None = None,
        empty: Empty = "nan",
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class CrossEntropyLoss(_ReducedLoss):
    """Module of ``segloss.cross_entropy``; replaces ``torch.nn.CrossEntropyLoss``.

    For a voxel with logits x, p = softmax(x), label y, voxel weight v and label smoothing s::

        loss = v * ((1 - s) * weight[y] * -log(p[y]) + s / C * sum_c weight[c] * -log(p[c]))

    and for class probabilities t::

        loss = v * sum_c weight[c] * ((1 - s) * t[c] + s / C) * -log(p[c])

    Label smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567.

    Args:
        label_smoothing: s in the formula, in [0, 1].
        others: as in ``segloss.cross_entropy``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.CrossEntropyLoss(ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.cross_entropy``: the function that it calls
        * ``segloss.FocalLoss``, ``segloss.TopKLoss``: variants that stress hard voxels
        * ``segloss.DiceCELoss``: with a Dice loss
    """

    _function = functional.cross_entropy
    label_smoothing: float
    empty: Empty

    def __init__(
        self,
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
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        label_sets: LabelSets | None = None,
        empty: Empty = "nan",
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class FocalLoss(_ReducedLoss):
    """Module of ``segloss.focal_loss``: cross entropy in which well-classified voxels count less.

    For a voxel with logits x, p = softmax(x), label y and voxel weight v::

        loss = v * weight[y] * alpha[y] * (1 - p[y]) ** gamma * -log(p[y])

    and with ``activation="sigmoid"``, p = sigmoid(x), for each class c with a target g in [0, 1]::

        loss[c] = v * weight[c] * (alpha * g[c] * (1 - p[c]) ** gamma * -log(p[c])
                                   + (1 - alpha) * (1 - g[c]) * p[c] ** gamma * -log(1 - p[c]))

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002.

    Args:
        gamma: the exponent, 0 or more; the larger it is, the less well-classified voxels count.
        activation: ``"softmax"``: classes exclude each other; ``"sigmoid"``: each class is a binary problem of its own.
        others: as in ``segloss.focal_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.FocalLoss(gamma=1.5, ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.focal_loss``: the function that it calls
        * ``segloss.TopKLoss``: keeps the hardest voxels only
        * ``segloss.DiceFocalLoss``: with a Dice loss
    """

    _function = functional.focal_loss
    gamma: float
    alpha: float | Tensor | None
    activation: Activation
    empty: Empty

    def __init__(
        self,
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
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        label_sets: LabelSets | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class BCEWithLogitsLoss(_LabelLoss):
    """Module of ``segloss.binary_cross_entropy_with_logits``; replaces ``torch.nn.BCEWithLogitsLoss``.

    For each class c of a voxel with logits x, p = sigmoid(x), a target g in [0, 1] and voxel weight v::

        loss[c] = v * weight[c] * (pos_weight[c] * g[c] * -log(p[c]) + (1 - g[c]) * -log(1 - p[c]))

    and label smoothing s makes ``(1 - s) * g + s / 2`` of g.

    Args:
        label_smoothing: s in the formula, in [0, 1].
        others: as in ``segloss.binary_cross_entropy_with_logits``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 5.0]))
        >>> logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 3, 8, 8, 8, dtype=torch.bool)).backward()

    See also:
        * ``segloss.binary_cross_entropy_with_logits``: the function that it calls
        * ``segloss.FocalLoss``: with ``activation="sigmoid"`` it stresses hard voxels
        * ``segloss.DiceCELoss``: with ``activation="sigmoid"`` it adds a Dice loss
    """

    _function = functional.binary_cross_entropy_with_logits
    _tensors = ("weight", "pos_weight")
    pos_weight: Tensor | None
    label_smoothing: float
    reduction: Reduction
    process_group: "ProcessGroup | None"
    empty: Empty

    def __init__(
        self,
        weight: ClassWeight | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        pos_weight: ClassWeight | None = None,
        *,
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        ignore_index: IgnoreIndex = -100,
        label_smoothing: float = 0.0,
        empty: Empty = "nan",
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class TopKLoss(_SetLoss):
    """Module of ``segloss.topk_loss``: cross entropy over the k percent of voxels where it is largest.

    With l the losses of the V voxels of the batch that count, as ``segloss.cross_entropy`` with ``reduction="none"``::

        loss = mean of the max(1, floor(k / 100 * V)) largest l

    Source: Wu et al. 2016, "Bridging Category-level and Instance-level Semantic Image Segmentation", arXiv:1605.06885,
    who keep a number of voxels instead of a percentage.

    Args:
        k: the percentage of voxels to keep, in (0, 100].
        others: as in ``segloss.topk_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.TopKLoss(k=20)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.topk_loss``: the function that it calls
        * ``segloss.CrossEntropyLoss``: the mean over all voxels
        * ``segloss.FocalLoss``: stresses hard voxels without dropping any
    """

    _function = functional.topk_loss
    k: float
    label_smoothing: float
    empty: Empty

    def __init__(
        self,
        *,
        k: float = 10.0,
        weight: ClassWeight | None = None,
        ignore_index: IgnoreIndex = -100,
        label_smoothing: float = 0.0,
        empty: Empty = "nan",
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        label_sets: LabelSets | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class _LovaszLoss(_Loss):
    _tensors = ()
    weight = None
    per_sample: bool
    ignore_index: IgnoreIndex
    reduction: Reduction
    dim: int
    upsample: Upsample | None
    align_corners: bool
    label_map: LabelMap | None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """Calls the function of the loss with the keywords of the module.

        Args:
            input: logits ``[N, C, *]``.
            target: labels ``[N, *]`` or ``[N, 1, *]``, or what else the class says.

        Returns:
            The loss, a 0-dim tensor of input's dtype; with ``reduction="none"`` its terms.
        """
        return self._call(input, target)


class LovaszSoftmaxLoss(_LovaszLoss):
    """Module of ``segloss.lovasz_softmax_loss``: a convex surrogate of one minus the Jaccard index of each class.

    For each class c, the errors of the voxels of the batch (of a sample with ``per_sample``) that count, with p the
    softmax of the logits and g = 1 at the voxels of the class, else 0::

        e = |g - p|

    Sorted from the largest to the smallest, with g in the same order and G = sum(g), the Jaccard loss of the first k
    voxels as errors is J[k], and the loss of the class is::

        J[k] = 1 - (G - sum(g[:k])) / (G + sum(1 - g[:k]))
        loss = sum_k e[k] * (J[k] - J[k - 1])

    Source: Berman, Rannen Triki and Blaschko 2018, "The Lovász-Softmax loss: A tractable surrogate for the optimization
    of the intersection-over-union measure in neural networks", arXiv:1705.08790.

    Args:
        others: as in ``segloss.lovasz_softmax_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.LovaszSoftmaxLoss(ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.lovasz_softmax_loss``: the function that it calls
        * ``segloss.LovaszHingeLoss``: of one class, or of classes that overlap
        * ``segloss.DiceLoss``: with ``jaccard=True`` the soft Jaccard loss
    """

    _function = lovasz.lovasz_softmax_loss
    classes: LovaszClasses
    activation: Literal["softmax"] | None

    def __init__(
        self,
        *,
        classes: LovaszClasses = "present",
        per_sample: bool = False,
        activation: Literal["softmax"] | None = "softmax",
        ignore_index: IgnoreIndex = -100,
        reduction: Reduction = "mean",
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class LovaszHingeLoss(_LovaszLoss):
    """Module of ``segloss.lovasz_hinge_loss``: a convex surrogate of one minus the Jaccard index of each channel.

    For each channel, the errors of the voxels of the batch (of a sample with ``per_sample``) that count, with logits x
    and g = 1 in the foreground, else 0::

        e = max(0, 1 - x * (2 * g - 1))

    Sorted from the largest to the smallest, with g in the same order and G = sum(g), the Jaccard loss of the first k
    voxels as errors is J[k], and the loss of the channel is::

        J[k] = 1 - (G - sum(g[:k])) / (G + sum(1 - g[:k]))
        loss = sum_k e[k] * (J[k] - J[k - 1])

    Source: Yu and Blaschko 2015, "Learning Submodular Losses with the Lovász Hinge", ICML; Berman, Rannen Triki and
    Blaschko 2018, arXiv:1705.08790.

    Args:
        others: as in ``segloss.lovasz_hinge_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.LovaszHingeLoss()
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 3, 8, 8, dtype=torch.bool)).backward()

    See also:
        * ``segloss.lovasz_hinge_loss``: the function that it calls
        * ``segloss.LovaszSoftmaxLoss``: of classes that exclude each other
        * ``segloss.DiceLoss``: with ``activation="sigmoid", jaccard=True`` the soft Jaccard loss
    """

    _function = lovasz.lovasz_hinge_loss
    regions: Regions | None

    def __init__(
        self,
        *,
        per_sample: bool = False,
        ignore_index: IgnoreIndex = -100,
        reduction: Reduction = "mean",
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class DiceLoss(_RegionLoss):
    """Module of ``segloss.dice_loss``: the soft Dice or Jaccard loss.

    For each sample and class, with I = sum v * p * g, P = sum v * p and T = sum v * g over the voxels that count, where
    p is the activated input, g the target, one-hot if it holds labels, and v the voxel weight::

        loss = weight * (1 - (2 * I + smooth_nr) / (P + T + smooth_dr))

    and with ``jaccard``, the numerator and denominator of I / (P + T - I) doubled::

        loss = weight * (1 - (2 * I + smooth_nr) / (2 * (P + T - I) + smooth_dr))

    Source: Milletari et al. 2016, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
    Segmentation", arXiv:1606.04797, whose formula has ``squared=True``.

    Args:
        include_background: whether class 0 has a term. It is part of the softmax in any case. If it is the only class,
            it has a term anyway, with a UserWarning.
        squared: whether P and T are sums of squares, ``sum v * p ** 2`` and ``sum v * g ** 2``; ``soft_label`` has no
            effect then.
        jaccard: whether to compute the Jaccard loss (intersection over union) instead.
        batch: whether a class has one term for the whole batch, from sums over all samples, instead of one for each
            sample.
        smooth_nr, smooth_dr: added to the numerator and to the denominator. A sample without a voxel that counts has
            the terms ``1 - smooth_nr / smooth_dr``. A term whose numerator and denominator are both 0 is 0, with zero
            gradient.
        others: as in ``segloss.dice_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.DiceLoss(include_background=False, batch=True)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.dice_loss``: the function that it calls
        * ``segloss.GeneralizedDiceLoss``: weights classes by their volume
        * ``segloss.TverskyLoss``: weights false positives and false negatives
        * ``segloss.DiceCELoss``, ``segloss.DiceFocalLoss``: compound losses
        * ``segloss.BinaryDiceLoss``, ``segloss.MultiClassDiceLoss``: with one ``smooth``
    """

    _function = region.dice_loss
    squared: bool
    jaccard: bool

    def __init__(
        self,
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
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        label_sets: LabelSets | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class GeneralizedDiceLoss(_RegionLoss):
    """Module of ``segloss.generalized_dice_loss``: Dice in which small classes weigh as much as large ones.

    For each sample, with I = sum v * p * g, P = sum v * p and T = sum v * g of each class over the voxels that count,
    where p is the activated input, g the target, one-hot if it holds labels, and v the voxel weight::

        loss = 1 - (2 * sum_c w * I + smooth_nr) / (sum_c w * (P + T) + smooth_dr),   w = 1 / T ** 2, 1 / T or 1

    Source: Sudre et al. 2017, "Generalised Dice overlap as a deep learning loss function for highly unbalanced
    segmentations", arXiv:1707.03237.

    Args:
        w_type: the weight w of a class of volume T: ``"square"`` is 1 / T ** 2, ``"simple"`` 1 / T and ``"uniform"`` 1.
        others: as in ``segloss.generalized_dice_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.GeneralizedDiceLoss(w_type="simple")
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.generalized_dice_loss``: the function that it calls
        * ``segloss.DiceLoss``: one term for each class
        * ``segloss.TverskyLoss``: weights false positives and false negatives
    """

    _function = region.generalized_dice_loss
    w_type: WeightType

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
        ignore_index: IgnoreIndex = -100,
        reduction: Reduction = "mean",
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        label_sets: LabelSets | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class TverskyLoss(_RegionLoss):
    """Module of ``segloss.tversky_loss``: Dice with separate weights for false positives and false negatives.

    For each sample and class, with TP = I, FP = P - I and FN = T - I from I = sum v * p * g, P = sum v * p and T = sum
    v * g over the voxels that count, where p is the activated input, g the target, one-hot if it holds labels, and v
    the voxel weight::

        loss = weight * (1 - (TP + smooth_nr) / (TP + alpha * FP + beta * FN + smooth_dr)) ** gamma

    Source: Salehi et al. 2017, "Tversky loss function for image segmentation using 3D fully convolutional deep
    networks", arXiv:1706.05721. With ``gamma`` it is the focal Tversky loss of Abraham and Khan 2018, "A Novel Focal
    Tversky loss function with improved Attention U-Net for lesion segmentation", arXiv:1810.07842, who write 1 / gamma
    for the exponent and exchange alpha and beta.

    Args:
        alpha: the weight of false positives.
        beta: the weight of false negatives; above alpha it favours recall.
        gamma: the exponent, 0 or more; below 1 small terms grow, above 1 they shrink. Unless gamma is 1, a base
            of 0 or less counts as 0 and has zero gradient.
        others: as in ``segloss.tversky_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.TverskyLoss(alpha=0.3, beta=0.7, gamma=0.75)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.tversky_loss``: the function that it calls
        * ``segloss.DiceLoss``: both weights equal
        * ``segloss.GeneralizedDiceLoss``: weights classes by their volume
    """

    _function = region.tversky_loss
    alpha: float
    beta: float
    gamma: float

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
        weight: ClassWeight | None = None,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        ignore_index: IgnoreIndex = -100,
        reduction: Reduction = "mean",
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        label_sets: LabelSets | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class DiceCELoss(_CompoundLoss):
    """Module of ``segloss.dice_ce_loss``: Dice plus cross entropy, computed together.

    The weighted sum of ``segloss.dice_loss``, which defines I, P and T, and ``segloss.cross_entropy``::

        loss = lambda_dice * dice_loss + lambda_ce * cross_entropy

    Source: Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image
    segmentation", Nature Methods 18.

    Args:
        lambda_dice, lambda_ce: the factors of the two terms.
        label_smoothing: s of the cross entropy, in [0, 1]. With sigmoid, a target g becomes ``(1 - s) * g + s / 2``.
        others: as in ``segloss.dice_ce_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.DiceCELoss(include_background=False, batch=True)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.dice_ce_loss``: the function that it calls
        * ``segloss.DiceFocalLoss``: with focal loss instead of cross entropy
        * ``segloss.DiceLoss``, ``segloss.CrossEntropyLoss``: the two terms
    """

    _function = region.dice_ce_loss
    lambda_ce: float
    label_smoothing: float

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
        weight: ClassWeight | None = None,
        pos_weight: ClassWeight | None = None,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        ignore_index: IgnoreIndex = -100,
        reduction: Literal["mean", "sum"] = "mean",
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        label_sets: LabelSets | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class DiceFocalLoss(_CompoundLoss):
    """Module of ``segloss.dice_focal_loss``: Dice plus focal loss, computed together.

    The weighted sum of ``segloss.dice_loss``, which defines I, P and T, and ``segloss.focal_loss``::

        loss = lambda_dice * dice_loss + lambda_focal * focal_loss

    Source: Zhu et al. 2019, "AnatomyNet: Deep learning for fast and fully automated whole-volume segmentation of head
    and neck anatomy", arXiv:1808.05238.

    Args:
        lambda_dice, lambda_focal: the factors of the two terms.
        gamma: the exponent of the focal loss, 0 or more. With softmax and gamma > 0, target must hold class labels or
            exact one-hot labels.
        others: as in ``segloss.dice_focal_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.DiceFocalLoss(activation="sigmoid")
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.dice_focal_loss``: the function that it calls
        * ``segloss.DiceCELoss``: with cross entropy instead of focal loss
        * ``segloss.DiceLoss``, ``segloss.FocalLoss``: the two terms
    """

    _function = region.dice_focal_loss
    lambda_focal: float
    gamma: float

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
        weight: ClassWeight | None = None,
        pos_weight: ClassWeight | None = None,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        ignore_index: IgnoreIndex = -100,
        reduction: Literal["mean", "sum"] = "mean",
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        label_sets: LabelSets | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class _DistanceLoss(_Loss):
    spacing: Sequence[float] | None
    activation: Activation | None
    include_background: bool
    batch: bool
    ignore_index: IgnoreIndex
    reduction: Reduction
    dim: int
    label_map: LabelMap | None
    regions: Regions | None


class BoundaryLoss(_DistanceLoss):
    """Module of ``segloss.boundary_loss``: the probabilities times the signed distances to the target's boundary.

    For each sample and class, over the voxels that count, with p the activated input, v the voxel weight and phi the
    signed distance map of the class::

        loss = weight * sum v * p * phi / sum v

    Source: Kervadec et al. 2019, "Boundary loss for highly unbalanced segmentation", MIDL, arXiv:1812.07032.

    Args:
        others: as in ``segloss.boundary_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.BoundaryLoss(spacing=(3, 1, 1))
        >>> logits = torch.randn(2, 3, 4, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 4, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.boundary_loss``: the function that it calls
        * ``segloss.HausdorffDTLoss``: weighs errors by their distance from the boundary
        * ``segloss.DiceLoss``, ``segloss.GeneralizedDiceLoss``: the losses that it is added to
    """

    _function = boundary.boundary_loss
    upsample: Upsample | None
    align_corners: bool

    def __init__(
        self,
        *,
        spacing: Sequence[float] | None = None,
        activation: Activation | None = "softmax",
        include_background: bool = True,
        batch: bool = False,
        weight: ClassWeight | None = None,
        ignore_index: IgnoreIndex = -100,
        reduction: Reduction = "mean",
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))

    def forward(
        self,
        input: Tensor,
        target: Tensor | None,
        voxel_weight: Tensor | None = None,
        distances: Tensor | None = None,
    ) -> Tensor:
        """Calls the function of the loss with the keywords of the module.

        Args:
            input: logits ``[N, C, *]``, or what else the class says.
            target: labels ``[N, *]`` or ``[N, 1, *]``, or what else the class says; None with ``distances``.
            voxel_weight: a weight for each voxel, of the labels' shape. Default: None, every weight is 1.
            distances: the signed distance maps, if a data loader makes them. Default: None, they are made of target.

        Returns:
            The loss, a 0-dim tensor of input's dtype; with ``reduction="none"`` its terms.
        """
        return self._call(input, target, voxel_weight=voxel_weight, distances=distances)


class HausdorffDTLoss(_DistanceLoss):
    """Module of ``segloss.hausdorff_dt_loss``: squared errors, weighed by their distances from both boundaries.

    For each sample and class, over the voxels that count, with p the activated input, g the target, 1 in the class and
    0 elsewhere, and v the voxel weight::

        loss = weight * sum v * (p - g) ** 2 * (d_p ** alpha + d_g ** alpha) / sum v

    Source: Karimi and Salcudean 2019, "Reducing the Hausdorff Distance in Medical Image Segmentation With Convolutional
    Neural Networks", IEEE Transactions on Medical Imaging 39(2), arXiv:1904.10030.

    Args:
        alpha: the exponent of the distances, above 0.
        others: as in ``segloss.hausdorff_dt_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.HausdorffDTLoss(include_background=False)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.hausdorff_dt_loss``: the function that it calls
        * ``segloss.BoundaryLoss``: takes less time
    """

    _function = boundary.hausdorff_dt_loss
    alpha: float

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        spacing: Sequence[float] | None = None,
        activation: Activation | None = "softmax",
        include_background: bool = True,
        batch: bool = False,
        weight: ClassWeight | None = None,
        ignore_index: IgnoreIndex = -100,
        reduction: Reduction = "mean",
        dim: int = 1,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class SkeletonRecallLoss(_Loss):
    """Module of ``segloss.skeleton_recall_loss``: how much of the target's skeleton the prediction misses.

    For each sample and class but class 0, with p the activated input, g the target and v the voxel weight, sums over
    the voxels in the tube S that count are I = sum_S v * p * g and T = sum_S v * g, and::

        loss = weight * (1 - (I + smooth_nr) / (T + smooth_dr))

    Source: Kirchhoff et al. 2024, "Skeleton Recall Loss for Connectivity Conserving and Resource Efficient Segmentation
    of Thin Tubular Structures", ECCV, arXiv:2404.03010.

    Args:
        others: as in ``segloss.skeleton_recall_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.SkeletonRecallLoss(batch=True)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.skeleton_recall_loss``: the function that it calls
        * ``segloss.DiceCELoss``: what it is added to
    """

    _function = skeleton.skeleton_recall_loss
    tube: int
    method: Thinning | None
    activation: Activation | None
    batch: bool
    smooth_nr: float
    smooth_dr: float
    ignore_index: IgnoreIndex
    reduction: Reduction
    dim: int
    upsample: Upsample | None
    align_corners: bool
    label_map: LabelMap | None
    regions: Regions | None
    process_group: "ProcessGroup | None"

    def __init__(
        self,
        *,
        tube: int = 2,
        method: Thinning | None = None,
        activation: Activation | None = "softmax",
        batch: bool = False,
        weight: ClassWeight | None = None,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        ignore_index: IgnoreIndex = -100,
        reduction: Reduction = "mean",
        dim: int = 1,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(**_keywords(locals()))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        voxel_weight: Tensor | None = None,
        skeleton: Tensor | None = None,
    ) -> Tensor:
        """Calls the function of the loss with the keywords of the module.

        Args:
            input: logits ``[N, C, *]``, or what else the class says.
            target: labels ``[N, *]`` or ``[N, 1, *]``, or what else the class says.
            voxel_weight: a weight for each voxel, of the labels' shape. Default: None, every weight is 1.
            skeleton: the widened skeleton, if a data loader makes it. Default: None, it is made of target.

        Returns:
            The loss, a 0-dim tensor of input's dtype; with ``reduction="none"`` its terms.
        """
        return self._call(input, target, voxel_weight=voxel_weight, skeleton=skeleton)


class _ClDiceLoss(_Loss):
    iterations: int
    per_class: bool
    activation: Activation | None
    include_background: bool
    batch: bool
    smooth_nr: float
    smooth_dr: float
    smooth: float
    ignore_index: IgnoreIndex
    reduction: Reduction
    dim: int
    label_map: LabelMap | None
    regions: Regions | None


class SoftClDiceLoss(_ClDiceLoss):
    """Module of ``segloss.soft_cldice_loss``: overlap along the skeletons of prediction and target, for tubes.

    For each sample and class, over the voxels that count, with p the activated input, g the target, v the voxel weight
    and S the soft skeleton::

        precision   = (sum v * S(p) * g + smooth_nr) / (sum v * S(p) + smooth_dr)
        sensitivity = (sum v * S(g) * p + smooth_nr) / (sum v * S(g) + smooth_dr)
        loss = weight * (1 - 2 * precision * sensitivity / (precision + sensitivity + smooth))

    Source: Shit et al. 2021, "clDice - a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation",
    CVPR, arXiv:2003.07311.

    Args:
        iterations: how often the image is eroded after the first level, from 0 to 1000: at least the radius of the
            thickest tube, in voxels.
        others: as in ``segloss.soft_cldice_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.SoftClDiceLoss(include_background=False)
        >>> logits = torch.randn(2, 2, 8, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.soft_cldice_loss``: the function that it calls
        * ``segloss.DiceClDiceLoss``: with the Dice loss, which clDice needs beside it
    """

    _function = cldice.soft_cldice_loss

    def __init__(
        self,
        *,
        iterations: int = 3,
        per_class: bool = True,
        activation: Activation | None = "softmax",
        include_background: bool = True,
        batch: bool = False,
        weight: ClassWeight | None = None,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        smooth: float = 1e-4,
        ignore_index: IgnoreIndex = -100,
        reduction: Reduction = "mean",
        dim: int = 1,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class DiceClDiceLoss(_ClDiceLoss):
    """Module of ``segloss.dice_cldice_loss``: Dice plus soft clDice.

    The weighted sum of ``segloss.dice_loss`` and ``segloss.soft_cldice_loss``::

        loss = lambda_dice * dice_loss + lambda_cldice * soft_cldice_loss

    Source: Shit et al. 2021, "clDice - a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation",
    CVPR, arXiv:2003.07311, whose alpha is lambda_cldice, with ``lambda_dice = 1 - alpha``.

    Args:
        lambda_dice, lambda_cldice: the factors of the two terms.
        others: as in ``segloss.dice_cldice_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.DiceClDiceLoss(include_background=False)
        >>> logits = torch.randn(2, 2, 8, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.dice_cldice_loss``: the function that it calls
        * ``segloss.SoftClDiceLoss``, ``segloss.DiceLoss``: the two terms
    """

    _function = cldice.dice_cldice_loss
    lambda_dice: float
    lambda_cldice: float

    def __init__(
        self,
        *,
        lambda_dice: float = 0.5,
        lambda_cldice: float = 0.5,
        iterations: int = 3,
        per_class: bool = True,
        activation: Activation | None = "softmax",
        include_background: bool = True,
        batch: bool = False,
        weight: ClassWeight | None = None,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        smooth: float = 1e-4,
        ignore_index: IgnoreIndex = -100,
        reduction: Reduction = "mean",
        dim: int = 1,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class BinaryDiceLoss(_Loss):
    """Dice loss of probabilities against a mask: one term for each sample, then their mean.

    For a sample with probabilities p, target g and voxel weights v::

        loss = 1 - (2 * sum v * p * g + smooth) / (sum v * p + sum v * g + smooth)

    Source: Milletari et al. 2016, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
    Segmentation", arXiv:1606.04797, without its squares.

    Args:
        smooth: added to numerator and denominator. Default: 1.
        upsample: how to take the probabilities to the target's size, as in ``segloss.dice_loss``. Default: None, both
            have one size.
        align_corners: with linear interpolation, whether the corners of both sizes are the same places. Default: False.

    Call:
        ``loss(input, target, voxel_weight=None)``, where

        * input: probabilities ``[N, *]``, each in [0, 1]; float64, float32, float16 or bfloat16.
        * target: a mask of input's shape: floating in [0, 1], or integer or bool of 0 and 1.
        * voxel_weight: a weight for each voxel, of input's shape. Default: None, every weight is 1.

    Returns:
        A 0-dim tensor of input's dtype.

    Raises:
        ValueError: input and target have different shapes.
        RuntimeError: an integer target holds other values than 0 and 1, or a floating input or target holds values
            outside [0, 1], as logits are.
        TypeError: as ``segloss.dice_loss``.

    Equivalent to:
        ``dice_loss(input.unsqueeze(1), target.unsqueeze(1), activation=None, smooth_nr=smooth, smooth_dr=smooth)``

    Example:
        >>> import segloss, torch
        >>> segloss.BinaryDiceLoss()(torch.tensor([[0.9, 0.2, 0.4]]), torch.tensor([[True, False, True]]))
        tensor(0.2000)

    See also:
        * ``segloss.MultiClassDiceLoss``: of several classes, from logits
        * ``segloss.DiceLoss``: with all options; ``activation="sigmoid"`` for logits
    """

    smooth: float
    upsample: Upsample | None
    align_corners: bool

    def __init__(self, smooth: float = 1.0, *, upsample: Upsample | None = None, align_corners: bool = False) -> None:
        super().__init__(smooth=smooth, upsample=upsample, align_corners=align_corners)

    def forward(self, input: Tensor, target: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        functional._check_types("BinaryDiceLoss", input, target, None, voxel_weight, NO_LABEL, dim=1)
        is_one_shape = input.shape == target.shape or (self.upsample and input.dim() == target.dim())
        if input.dim() == 0 or not is_one_shape:
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
            ignore_index=NO_LABEL,
            voxel_weight=voxel_weight,
            upsample=self.upsample,
            align_corners=self.align_corners,
        )


class MultiClassDiceLoss(_Loss):
    """Softmax, then the weighted mean over the classes of their binary Dice losses.

    With I = sum v * p * g, P = sum v * p and T = sum v * g of a sample and class over the voxels that count, where p is
    the softmax, g the target, one-hot if it holds labels, and v the voxel weight::

        loss = mean over samples and classes of weight * (1 - (2 * I + smooth) / (P + T + smooth))

    Source: Milletari et al. 2016, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
    Segmentation", arXiv:1606.04797, without its squares.

    Args:
        weight: a weight for each class, ``[C]``, a tensor of any floating dtype or a list of numbers. It is a
            buffer and moves with the module. Default: None, every weight is 1.
        ignore_index: label of the voxels to ignore, or a sequence of labels; None: every voxel counts. Default: None.
        smooth: added to numerator and denominator. Default: 1.
        label_map: the class of each label, as in ``segloss.dice_loss``. Default: None, labels are classes.
        upsample: how to take the logits to the target's size, as in ``segloss.dice_loss``. Default: None, both have one
            size.
        align_corners: with linear interpolation, whether the corners of both sizes are the same places. Default: False.

    Call:
        ``loss(input, target, voxel_weight=None)``, where

        * input: logits ``[N, C, *]``; float64, float32, float16 or bfloat16.
        * target: class labels ``[N, *]`` or ``[N, 1, *]``: any integer dtype, bool, or floating with integral values;
          or of input's shape class probabilities or exact one-hot labels.
        * voxel_weight: a weight for each voxel, of the labels' shape. Default: None, every weight is 1.

    Returns:
        A 0-dim tensor of input's dtype (float32 for half types under autocast).

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_loss``.

    Equivalent to:
        ``dice_loss(input, target, weight=weight, smooth_nr=smooth, smooth_dr=smooth)``

    Example:
        >>> import segloss, torch
        >>> loss = segloss.MultiClassDiceLoss(ignore_index=255)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.DiceLoss``: with all options
        * ``segloss.BinaryDiceLoss``: of one class, from probabilities
    """

    ignore_index: IgnoreIndex | None
    smooth: float
    label_map: LabelMap | None
    upsample: Upsample | None
    align_corners: bool

    def __init__(
        self,
        weight: ClassWeight | None = None,
        ignore_index: IgnoreIndex | None = None,
        smooth: float = 1.0,
        *,
        label_map: LabelMap | None = None,
        upsample: Upsample | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__(**_keywords(locals()))

    def forward(self, input: Tensor, target: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        return region.dice_loss(
            input,
            target,
            weight=self.weight,
            smooth_nr=self.smooth,
            smooth_dr=self.smooth,
            ignore_index=() if self.ignore_index is None else self.ignore_index,
            label_map=self.label_map,
            voxel_weight=voxel_weight,
            upsample=self.upsample,
            align_corners=self.align_corners,
        )


class _InstanceLoss(_Loss):
    num_components: int | None
    lambda_dice: float
    lambda_ce: float
    connectivity: int | None
    empty: Empty
    activation: Literal["softmax", "sigmoid"]
    batch: bool
    ignore_index: IgnoreIndex
    dim: int
    label_map: LabelMap | None
    regions: Regions | None

    def forward(
        self, input: Tensor, target: Tensor, voxel_weight: Tensor | None = None, components: Tensor | None = None
    ) -> Tensor:
        """Calls the function of the loss with the keywords of the module.

        Args:
            input: logits ``[N, C, *]``, or what else the class says.
            target: labels ``[N, *]`` or ``[N, 1, *]``, or what else the class says.
            voxel_weight: a weight for each voxel, of the labels' shape. Default: None, every weight is 1.
            components: the components, if a data loader makes them. Default: None, they are made of target.

        Returns:
            The loss, a 0-dim tensor of input's dtype.
        """
        return self._call(input, target, voxel_weight=voxel_weight, components=components)


class CCDiceCELoss(_InstanceLoss):
    """Module of ``segloss.cc_dice_ce_loss``: Dice and cross entropy of each lesion with the voxels nearest to it.

    Each voxel belongs to the region of the nearest connected component of a class. In the region of component r, with p
    the activated input, g = 1 in the class and else 0, v the voxel weight and l the voxel's cross entropy::

        term(r) = lambda_dice * (1 - 2 * sum v * p * g / (sum v * p + sum v * g)) + lambda_ce * sum v * l / sum v

    The loss is the mean of the terms of each sample and class, then the mean over samples and classes, and besides the
    Dice and cross entropy of the whole images::

        loss = lambda_cc * mean_{n, c} mean_r term(r) + lambda_global * dice_ce_loss

    A sample without a component of a class is one region. ``dice_ce_loss`` is ``segloss.dice_ce_loss`` with the same
    factors, without the background and with ``smooth_nr=0, smooth_dr=0``.

    Source: Bouteille, Jaus, Kleesiek, Stiefelhagen and Heine 2025, "Learning to Look Closer: A New Instance-Wise Loss
    for Small Cerebral Lesion Segmentation", arXiv:2511.17146, for two classes with a softmax.

    Args:
        others: as in ``segloss.cc_dice_ce_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.CCDiceCELoss(spacing=(3, 1, 1))
        >>> logits = torch.randn(2, 2, 4, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 4, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.cc_dice_ce_loss``: the function that it calls
        * ``segloss.BlobLoss``: each lesion with the whole background
        * ``segloss.DiceCELoss``: the loss of whole images
    """

    _function = instance.cc_dice_ce_loss
    lambda_cc: float
    lambda_global: float
    spacing: Sequence[float] | None

    def __init__(
        self,
        *,
        num_components: int | None = None,
        lambda_cc: float = 1.0,
        lambda_global: float = 1.0,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        spacing: Sequence[float] | None = None,
        connectivity: int | None = None,
        empty: Empty = "nan",
        activation: Literal["softmax", "sigmoid"] = "softmax",
        batch: bool = False,
        ignore_index: IgnoreIndex = -100,
        dim: int = 1,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class BlobLoss(_InstanceLoss):
    """Module of ``segloss.blob_loss``: Dice and cross entropy of each lesion with the background.

    For each connected component r of a class, over its voxels and those outside all components of the class, with p the
    activated input, g = 1 in the component and else 0, v the voxel weight and l the voxel's cross entropy::

        term(r) = lambda_dice * (1 - 2 * sum v * p * g / (sum v * p + sum v * g)) + lambda_ce * sum v * l / sum v

    The loss is the mean of the terms of each sample and class, then the mean over the samples and classes that have
    one, and besides the Dice and cross entropy of the whole images::

        loss = alpha * dice_ce_loss + beta * mean_{n, c} mean_r term(r)

    ``dice_ce_loss`` is as in ``segloss.cc_dice_ce_loss``.

    Source: Kofler et al. 2022, "blob loss: instance imbalance aware loss functions for semantic segmentation",
    arXiv:2205.08209. The voxels of the other components do not count, as in the code of Bouteille et al. 2025,
    arXiv:2511.17146; the code of Kofler et al. sets their logits to 0 instead, and counts them.

    Args:
        others: as in ``segloss.blob_loss``.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.BlobLoss()
        >>> logits = torch.randn(2, 2, 4, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 4, 8, 8, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.blob_loss``: the function that it calls
        * ``segloss.CCDiceCELoss``: each lesion with the voxels that are nearest to it
    """

    _function = instance.blob_loss
    alpha: float
    beta: float

    def __init__(
        self,
        *,
        num_components: int | None = None,
        alpha: float = 2.0,
        beta: float = 1.0,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        connectivity: int | None = None,
        empty: Empty = "nan",
        activation: Literal["softmax", "sigmoid"] = "softmax",
        batch: bool = False,
        ignore_index: IgnoreIndex = -100,
        dim: int = 1,
        label_map: LabelMap | None = None,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(**_keywords(locals()))


class DeepSupervisionLoss(nn.Module):
    """Deep supervision: the weighted sum of one loss over outputs of a network at several resolutions.

    For logits x[i] and the target y[i] at their resolution::

        loss = sum_i weights[i] * loss(x[i], y[i])

    One target for all is subsampled by nearest neighbours, as by ``torch.nn.functional.interpolate`` with the same
    mode: in a spatial dimension of size M, of size m in x[i], y[i] has the target's elements floor(j * M / m), for j
    from 0 to m - 1, or with ``mode="nearest-exact"`` floor((j + 1/2) * M / m). It is a view if m divides M, and is
    never cast or made one-hot. With ``upsample`` the logits are taken to the target's size instead, so that small
    structures count at every resolution: y[i] is the target itself.

    Source: Lee et al. 2015, "Deeply-Supervised Nets", arXiv:1409.5185. The default weights are those of nnU-Net:
    Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
    Nature Methods 18.

    Args:
        loss: a module or function, called as ``loss(input, target)``, or ``loss(input, target, voxel_weight=...)`` if
            voxel weights are given. Its attribute ``dim``, or the keyword ``dim`` of a ``functools.partial``, is the
            class dimension; without one it is 1.
        weights: a factor for each resolution, not normalized; a resolution of weight 0 is left out. Default: None, the
            factors 1, 1/2, 1/4, ... divided by their sum.
        mode: how to subsample a target: ``"nearest"``, or ``"nearest-exact"`` as MONAI and nnU-Net do. Default:
            ``"nearest"``.
        upsample: how to take the logits of each resolution to the target's size, as in ``segloss.cross_entropy``.
            Default: None, as ``loss`` itself does; if it does not either, the target is subsampled.
        align_corners: with ``upsample``, as in ``segloss.cross_entropy``. Default: False.

    Call:
        ``loss(inputs, target, voxel_weight=None, label_set_index=None)``, where

        * inputs: a list or tuple of logits ``[N, C, *]``, usually of falling resolution.
        * target: labels ``[N, *]`` or ``[N, 1, *]``, or masks or probabilities ``[N, C, *]``, of any dtype, at full
          resolution; or a list or tuple of one at each resolution, as nnU-Net's loader makes it.
        * voxel_weight: a weight for each voxel, of the labels' shape, at full resolution; or a list or tuple of one at
          each resolution. Default: None, every weight is 1.
        * label_set_index: as in the inner loss, if it takes one. Default: None.

    Returns:
        A tensor of the dtype and shape of the inner loss.

    Raises:
        TypeError: inputs is neither a list nor a tuple, or target neither a tensor nor a list or tuple of tensors.
        ValueError: inputs is empty, or there is not one weight, or one target of a list, for each; all weights are 0;
            ``mode`` has an unknown value; an input and the target differ in the number of dimensions, or without
            ``upsample`` the input is larger in a spatial one, or of another size than its own target of a list.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.DeepSupervisionLoss(segloss.DiceCELoss(ignore_index=255))
        >>> logits = [torch.randn(2, 3, size, size, requires_grad=True) for size in (16, 8, 4)]
        >>> loss(logits, torch.ones(2, 1, 16, 16, dtype=torch.uint8)).backward()

    See also:
        * ``segloss.DiceCELoss``, ``segloss.DiceFocalLoss``: usual inner losses
    """

    loss: Callable[..., Tensor]
    weights: tuple[float, ...] | None
    mode: Literal["nearest", "nearest-exact"]
    upsample: Upsample | None
    align_corners: bool

    @explains_keywords
    def __init__(
        self,
        loss: Callable[..., Tensor],
        weights: Sequence[float] | None = None,
        *,
        mode: Literal["nearest", "nearest-exact"] = "nearest",
        upsample: Upsample | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if not callable(loss) or isinstance(loss, type):
            got = f"a class. Pass {loss.__name__}()" if isinstance(loss, type) else type(loss).__name__
            raise TypeError(f"DeepSupervisionLoss: expected a module or a function as loss, got {got}")
        functional._check_choice("DeepSupervisionLoss", "mode", mode, ("nearest", "nearest-exact"))
        self.mode = mode
        is_resized = upsample is not None or align_corners is not False
        self.loss = _with_keywords(loss, upsample=upsample, align_corners=align_corners) if is_resized else loss
        self.upsample = _keyword_of(self.loss, "upsample", None)
        self.align_corners = _keyword_of(self.loss, "align_corners", False)
        self.weights = None if weights is None else _checked_weights(weights)

    def forward(
        self,
        inputs: Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        voxel_weight: Tensor | Sequence[Tensor] | None = None,
        label_set_index: LabelSetIndex | None = None,
    ) -> Tensor:
        """Calls the inner loss at each resolution; see the class."""
        weights = self._weights_for(inputs)
        _check_number_of("target", target, inputs)
        _check_number_of("voxel_weight", voxel_weight, inputs)
        losses = []
        for i, (weight, input) in enumerate(zip(weights, inputs, strict=True)):
            if weight != 0:
                options: dict[str, Any] = {} if label_set_index is None else {"label_set_index": label_set_index}
                if voxel_weight is not None:
                    options["voxel_weight"] = self._at_resolution("voxel_weight", voxel_weight, i, input)
                losses.append(weight * self.loss(input, self._at_resolution("target", target, i, input), **options))
        return torch.stack(losses).sum(0)

    def _at_resolution(self, name: str, given: Tensor | Sequence[Tensor], i: int, input: Tensor) -> Tensor:
        """The target, or the voxel weights, of the i-th input."""
        is_list = isinstance(given, list | tuple)
        each: Any = given[i] if is_list else given
        tensor: Tensor = functional._plain(each)
        if self.upsample is not None:
            return tensor
        dim = _keyword_of(self.loss, "dim", 1)
        if is_list:
            _check_resolution(f"{name}[{i}]", tensor, input, dim)
            return tensor
        return _subsampled(tensor, input, dim, self.mode)

    def _weights_for(self, inputs: Sequence[Tensor]) -> Sequence[float]:
        if not isinstance(inputs, list | tuple):
            raise TypeError(
                "DeepSupervisionLoss: expected a list of logits, one tensor for each resolution, got "
                f"{type(inputs).__name__}. Pass input.unbind(1) for resolutions that are stacked as [N, S, C, ...], "
                "[input] for a single one"
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
        return f"weights={self.weights}, mode={self.mode!r}"


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


def _keyword_of(loss: Callable[..., Tensor], name: str, default: Any) -> Any:
    keywords = loss.keywords if isinstance(loss, partial) else {}
    return keywords.get(name, getattr(loss, name, default))


def _with_keywords(loss: Callable[..., Tensor], **keywords: Any) -> Callable[..., Tensor]:
    """The loss with these keywords; a module is not changed itself, but its tensors are shared."""
    if not isinstance(loss, nn.Module):
        return partial(loss, **keywords)
    missing = [name for name in keywords if not hasattr(loss, name)]
    if missing:
        raise TypeError(
            f"DeepSupervisionLoss: expected a loss with {' and '.join(missing)}, got {type(loss).__name__}. Use a loss "
            "of segloss, or a function that takes these keywords"
        )
    own = copy(loss)
    for name, value in keywords.items():
        setattr(own, name, value)
    return own


def _check_number_of(name: str, given: object, inputs: Sequence[Tensor]) -> None:
    """Raises unless there is one tensor for all inputs, or a list with one for each."""
    if isinstance(given, list | tuple) and len(given) != len(inputs):
        raise ValueError(
            f"DeepSupervisionLoss: expected a {name} for each of the {len(inputs)} inputs, got {len(given)}. Pass the "
            "tensor at full resolution itself; it is subsampled for each input"
        )


def _spatial_dims(tensor: Tensor, input: Tensor, dim: int) -> list[tuple[int, int]] | None:
    """The spatial dimensions of input, each with that of the target, or of voxel weights; None if they do not fit."""
    functional._check_types("DeepSupervisionLoss", input, tensor, None, None, NO_LABEL, dim)
    if input.dim() == 0:
        raise ValueError("DeepSupervisionLoss: expected logits [N, C, ...] of each resolution, got a 0-dim tensor")
    if input.dim() > 1 and not -input.dim() <= dim < input.dim():
        raise IndexError(
            f"DeepSupervisionLoss: expected dim, the class dimension, in [{-input.dim()}, {input.dim() - 1}] for input "
            f"{list(input.shape)}, got {dim}"
        )
    class_dim = dim % input.dim()
    lost_dims = input.dim() - tensor.dim()  # 1 where target has no class dimension
    if lost_dims not in (0, 1):
        return None
    spatial_dims = [d for d in range(input.dim()) if d != class_dim][1:]
    return [(d, d - lost_dims if d > class_dim else d) for d in spatial_dims]


def _check_resolution(name: str, tensor: Tensor, input: Tensor, dim: int) -> None:
    """Raises unless a tensor of a list has the resolution of its input."""
    functional._check_tensor("DeepSupervisionLoss", name, tensor)
    dims = _spatial_dims(tensor, input, dim)
    if dims is None or any(input.shape[d] != tensor.shape[position] for d, position in dims):
        raise ValueError(
            f"DeepSupervisionLoss: expected {name} at the resolution of its input {list(input.shape)}, got "
            f"{list(tensor.shape)}. Pass the tensor at full resolution instead of a list, or targets in the order of "
            "the inputs"
        )


def _subsampled(tensor: Tensor, input: Tensor, dim: int, mode: str) -> Tensor:
    """The target, or voxel weights, at input's resolution, by nearest neighbours."""
    dims = _spatial_dims(tensor, input, dim)
    if dims is None or any(input.shape[d] > tensor.shape[position] for d, position in dims):
        raise ValueError(
            "DeepSupervisionLoss: expected a target, and voxel weights, of at least the resolution of each input, "
            f"got {list(tensor.shape)} for input {list(input.shape)} with its classes in dimension "
            f"{dim % input.dim()}"
        )
    for d, position in dims:
        tensor = _strided(tensor, position, input.shape[d], mode)
    return tensor


def _strided(tensor: Tensor, dim: int, size: int, mode: str) -> Tensor:
    """Elements floor(i * in / out) of a dimension, or those of the middles, floor((i + 1/2) * in / out), computed in
    integers, without rounding errors."""
    available = tensor.shape[dim]
    is_middle = int(mode == "nearest-exact")
    if size > 0 and available % size == 0:
        step = available // size
        return tensor[(slice(None),) * dim + (slice(is_middle * (step // 2), None, step),)]
    numerators = (2 * torch.arange(size, device=tensor.device) + is_middle) * available
    return tensor.index_select(dim, numerators // (2 * size))
