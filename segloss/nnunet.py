"""nnU-Net's losses by their own names and keywords, with its values, and a trainer for ``nnUNetv2_train``.

They follow nnunetv2 2.8.1. A script changes one import: ``from segloss.nnunet import DC_and_CE_loss``. Importing this
module does not import nnunetv2; asking it for ``nnUNetTrainerSegloss`` does.

>>> import torch
>>> from segloss.nnunet import DC_and_CE_loss, MemoryEfficientSoftDiceLoss
>>> dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
>>> criterion = DC_and_CE_loss(dice, {}, ignore_label=255, dice_class=MemoryEfficientSoftDiceLoss)
>>> logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
>>> labels = torch.randint(3, (2, 1, 8, 8, 8), dtype=torch.int16)
>>> criterion(logits, labels).backward()
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

import segloss
from segloss._label_sets import LabelSetIndex
from segloss._labels import NO_LABEL
from segloss.functional import _topk_sum

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# nnU-Net clamps the denominator of a Dice at 1e-8, so that without smoothing the Dice of nothing is 0; segloss's is 1.
# This much in the denominator makes it 0, and is too little to change any other.
_LEAST_SMOOTH = 1e-8
_NEXT_TO_NOTHING = 1e-30

# Attributes of nnU-Net's losses that would change nothing here: segloss's have other names, or were read by then.
_FIXED = frozenset({"apply_nonlin", "batch_dice", "clip_tp", "do_bg", "smooth"})
_FIXED_IN_COMPOUND = frozenset({"ignore_label", "use_ignore_label"})


class MemoryEfficientSoftDiceLoss(segloss.DiceLoss):
    """Minus the soft Dice, with the keywords and values of nnU-Net's ``MemoryEfficientSoftDiceLoss``.

    For each sample and class, with I, P and T as in ``segloss.dice_loss``::

        loss = -mean of (2 * I + smooth) / max(P + T + smooth, 1e-8)

    Args:
        apply_nonlin: a function that is a softmax over dimension 1 or a sigmoid, such as nnU-Net's
            ``softmax_helper_dim1`` or ``torch.sigmoid``. Default: None, the input holds probabilities.
        batch_dice: whether a class has one Dice for the whole batch. Default: False.
        do_bg: whether class 0 counts. Default: True.
        smooth: added to numerator and denominator; 0, or 1e-8 and more. Default: 1.
        ddp: whether ``batch_dice`` sums over the ranks of the default process group, whose batches may have any sizes.
            Without ``batch_dice`` it has no effect. Default: True.

    Call:
        ``loss(x, y, loss_mask=None)``, where

        * x: logits ``[N, C, *]``; float64, float32, float16 or bfloat16.
        * y: labels ``[N, 1, *]`` or ``[N, *]`` of any dtype, or masks ``[N, C, *]``.
        * loss_mask: a mask ``[N, 1, *]`` of the voxels that count, of any dtype. Default: None, all count.

    Returns:
        A 0-dim tensor of x's dtype (float32 for half types under autocast).

    Raises:
        ValueError: apply_nonlin is another function, or smooth another number; or ``ddp`` and ``batch_dice`` need a
            default process group, and there is none.
        AttributeError: an attribute ``apply_nonlin``, ``batch_dice``, ``do_bg`` or ``smooth`` is set.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_loss``.

    Example:
        >>> import torch
        >>> from segloss.nnunet import MemoryEfficientSoftDiceLoss
        >>> loss = MemoryEfficientSoftDiceLoss(torch.sigmoid, smooth=0)
        >>> masks = torch.tensor([[[True, False]]])
        >>> loss(torch.tensor([[[9.0, -9.0]]]), masks)
        tensor(-0.9999)

    See also:
        * ``segloss.DiceLoss``: 1 minus the Dice, with all options
    """

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
    ) -> None:
        name = type(self).__name__
        if not (smooth == 0 or smooth >= _LEAST_SMOOTH):
            raise ValueError(
                f"{name}: expected smooth to be 0, or {_LEAST_SMOOTH} or more, got {smooth}. Keep "
                f"nnunetv2.training.loss.dice.{name}, which clamps denominators at {_LEAST_SMOOTH}"
            )
        super().__init__(
            activation=_activation(name, apply_nonlin),
            include_background=do_bg,
            batch=batch_dice,
            smooth_nr=smooth,
            smooth_dr=smooth or _NEXT_TO_NOTHING,
            ignore_index=(),
        )
        self.ddp = ddp

    def __setattr__(self, name: str, value: Any) -> None:
        _check_not_fixed(self, name, _FIXED)
        super().__setattr__(name, value)

    @property
    def sums_over_ranks(self) -> bool:
        return self.ddp and self.batch

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Calls ``segloss.dice_loss``; see the class."""
        group = _default_group(type(self).__name__) if self.sums_over_ranks else None
        return self._call(x, y, voxel_weight=loss_mask, process_group=group) - 1


class SoftDiceLoss(MemoryEfficientSoftDiceLoss):
    """Minus the soft Dice, with the keywords and values of nnU-Net's ``SoftDiceLoss``.

    For each sample and class, with I, P and T as in ``segloss.dice_loss``::

        loss = -mean of (2 * I + smooth) / max(P + T + smooth, 1e-8)

    Args:
        clip_tp: None; a number is an error. Default: None.
        others: as in ``segloss.nnunet.MemoryEfficientSoftDiceLoss``, with its call and result.

    Raises:
        ValueError: clip_tp is a number.
        AttributeError, TypeError, IndexError, ValueError, RuntimeError: as
            ``segloss.nnunet.MemoryEfficientSoftDiceLoss``.

    Example:
        >>> import torch
        >>> from segloss.nnunet import SoftDiceLoss
        >>> loss = SoftDiceLoss(lambda x: torch.softmax(x, 1), do_bg=False, smooth=1e-5)
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8)).backward()

    See also:
        * ``segloss.DiceLoss``: 1 minus the Dice, with all options
    """

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
        clip_tp: float | None = None,
    ) -> None:
        if clip_tp is not None:
            raise ValueError(
                f"SoftDiceLoss: expected clip_tp=None, got {clip_tp}. Keep nnunetv2.training.loss.dice.SoftDiceLoss"
            )
        super().__init__(apply_nonlin, batch_dice, do_bg, smooth, ddp)


class RobustCrossEntropyLoss(segloss.CrossEntropyLoss):
    """Cross entropy of labels, with the keywords and values of nnU-Net's ``RobustCrossEntropyLoss``.

    This is ``segloss.CrossEntropyLoss``, which takes labels with a channel and labels in floating point anyway. Its
    formula is that of ``segloss.cross_entropy``.

    Args:
        others: as in ``segloss.cross_entropy``.

    Call:
        ``loss(input, target, voxel_weight=None, label_set_index=None)`` as ``segloss.CrossEntropyLoss``, where

        * target: labels ``[N, 1, *]`` or ``[N, *]`` of any dtype.

    Returns:
        A 0-dim tensor, or with ``reduction="none"`` a tensor ``[N, *]``.

    Raises:
        ValueError: target has several channels.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.cross_entropy``.

    Example:
        >>> import torch
        >>> from segloss.nnunet import RobustCrossEntropyLoss
        >>> RobustCrossEntropyLoss()(torch.zeros(1, 2, 4), torch.ones(1, 1, 4))
        tensor(0.6931)

    See also:
        * ``segloss.CrossEntropyLoss``: for class probabilities, too
    """

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        voxel_weight: Tensor | None = None,
        label_set_index: LabelSetIndex | None = None,
    ) -> Tensor:
        """Calls ``segloss.cross_entropy``; see the class."""
        target = _labels("RobustCrossEntropyLoss", input, target)
        return super().forward(input, target, voxel_weight, label_set_index)


class TopKLoss(segloss.TopKLoss):
    """Mean of the largest losses, with the keywords and values of nnU-Net's ``TopKLoss``.

    With l the cross entropy of each of the V voxels of the batch, 0 where it is ignored::

        loss = mean of the max(1, floor(k / 100 * V)) largest l

    ``segloss.topk_loss`` leaves ignored voxels out instead: V are those that count. nnU-Net's loss is nan where k
    percent of V are less than one voxel.

    Args:
        weight: a weight for each class, ``[C]``. Default: None, every weight is 1.
        ignore_index: label of the voxels whose loss is 0. Default: -100.
        k: the percentage of voxels to keep, in (0, 100]. Default: 10.
        label_smoothing: as in ``segloss.topk_loss``. Default: 0.

    Call:
        ``loss(inp, target)``, where

        * inp: logits ``[N, C, *]``; float64, float32, float16 or bfloat16.
        * target: labels ``[N, 1, *]`` or ``[N, *]`` of any dtype.

    Returns:
        A 0-dim tensor of inp's dtype (float32 for half types under autocast).

    Raises:
        ValueError: k is outside (0, 100], or target has several channels.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.topk_loss``.

    Example:
        >>> import torch
        >>> from segloss.nnunet import TopKLoss
        >>> TopKLoss(k=50, ignore_index=255)(torch.zeros(1, 2, 4), torch.tensor([[[1, 255, 255, 255]]]))
        tensor(0.3466)

    See also:
        * ``segloss.TopKLoss``: leaves ignored voxels out
    """

    def __init__(
        self, weight: Tensor | None = None, ignore_index: int = -100, k: float = 10, label_smoothing: float = 0
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, k=k, label_smoothing=label_smoothing)

    def forward(self, inp: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """Calls ``segloss.cross_entropy``, and adds up the largest losses; see the class."""
        target = _labels("TopKLoss", inp, target)
        losses = segloss.cross_entropy(
            inp,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        wide = losses.to(torch.promote_types(losses.dtype, torch.float32))
        total, num_kept = _topk_sum(wide, target, None, None, float(self.k), NO_LABEL)  # all voxels count
        return (total / num_kept).to(losses.dtype)


# The cross entropy that segloss.dice_ce_loss has besides a Dice of the activation.
_IN_ONE_WALK = {None: None, "softmax": RobustCrossEntropyLoss, "sigmoid": segloss.BCEWithLogitsLoss}


class _CompoundLoss(nn.Module):
    """weight_ce * ce + weight_dice * dc."""

    dc: MemoryEfficientSoftDiceLoss
    ce: "RobustCrossEntropyLoss | TopKLoss | segloss.BCEWithLogitsLoss"

    def __init__(self, dc: MemoryEfficientSoftDiceLoss, ce: Any, weight_ce: float, weight_dice: float) -> None:
        super().__init__()
        self.weight_dice, self.weight_ce = weight_dice, weight_ce
        self.dc, self.ce = dc, ce

    def __setattr__(self, name: str, value: Any) -> None:
        _check_not_fixed(self, name, _FIXED_IN_COMPOUND & vars(self).keys())  # __init__ sets them
        super().__setattr__(name, value)

    def _value(self, x: Tensor, y: Tensor, voxel_weight: Tensor | None = None, factor: int = 1) -> Tensor:
        """The sum of the terms; `factor` multiplies the second. A term of weight 0 is left out, as in nnU-Net."""
        if self._is_one_walk():
            options: dict[str, Any] = {
                **self.dc._options(),
                "lambda_dice": self.weight_dice,
                "lambda_ce": self.weight_ce * factor,
                "label_smoothing": self.ce.label_smoothing,
                "empty": self.ce.empty,
            }
            return segloss.dice_ce_loss(x, y, voxel_weight=voxel_weight, **options) - self.weight_dice
        more = () if voxel_weight is None else (voxel_weight,)
        loss = x.new_zeros(())
        if self.weight_dice != 0:
            loss = loss + self.weight_dice * self.dc(x, y, *more)
        if self.weight_ce != 0:
            loss = loss + self.weight_ce * factor * self.ce(x, y, *more)
        return loss

    def _is_one_walk(self) -> bool:
        """Whether ``segloss.dice_ce_loss`` has both terms: segloss's own, with the same options and without weights."""
        dc, ce = getattr(self.dc, "_orig_mod", self.dc), self.ce  # nnU-Net's trainers compile the Dice
        if type(dc) not in (SoftDiceLoss, MemoryEfficientSoftDiceLoss) or type(ce) is not _IN_ONE_WALK[dc.activation]:
            return False
        if next(ce.buffers(), None) is not None or ce.reduction != "mean" or dc.sums_over_ranks:
            return False
        of_dc, of_ce = dc._options(), ce._options()
        is_same = all(of_dc[name] == of_ce[name] for name in of_dc.keys() & of_ce.keys())
        return is_same and 0 not in (self.weight_dice, self.weight_ce)

    def extra_repr(self) -> str:
        return f"weight_ce={self.weight_ce}, weight_dice={self.weight_dice}"


class DC_and_CE_loss(_CompoundLoss):
    """Dice and cross entropy of labels, with the keywords and values of nnU-Net's ``DC_and_CE_loss``.

    With the losses ``segloss.nnunet.RobustCrossEntropyLoss`` and ``dice_class``, over the voxels whose label is not
    ``ignore_label``; without any such voxel the cross entropy is left out::

        loss = weight_ce * cross_entropy + weight_dice * dice

    The logits are read once for both, as by ``segloss.dice_ce_loss``. With class weights or another keyword than
    ``label_smoothing`` and ``empty`` in ``ce_kwargs``, a Dice that sums over ranks, or ``ce`` or ``dc`` replaced by
    another module, they are read twice, for two terms that differ.

    Args:
        soft_dice_kwargs: keywords of ``dice_class``, apart from ``apply_nonlin``.
        ce_kwargs: keywords of ``segloss.nnunet.RobustCrossEntropyLoss``.
        weight_ce, weight_dice: the factors of the terms. Default: 1.
        ignore_label: label of the voxels to ignore. Default: None, every voxel counts.
        dice_class: ``SoftDiceLoss`` or ``MemoryEfficientSoftDiceLoss`` of this module. Default: ``SoftDiceLoss``.

    Call:
        ``loss(net_output, target)``, where

        * net_output: logits ``[N, C, *]``; float64, float32, float16 or bfloat16.
        * target: labels ``[N, 1, *]`` or ``[N, *]`` of any dtype.

    Returns:
        A 0-dim tensor of net_output's dtype (float32 for half types under autocast).

    Raises:
        ValueError: dice_class is another class, or target has several channels.
        AttributeError: the attribute ``ignore_label`` is set.
        TypeError, IndexError, ValueError, RuntimeError: as the two losses.

    Example:
        >>> import torch
        >>> from segloss.nnunet import DC_and_CE_loss
        >>> loss = DC_and_CE_loss({"batch_dice": True, "ddp": False, "smooth": 1e-5, "do_bg": False}, {})
        >>> logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
        >>> loss(logits, torch.tensor([[[0, 1]]]))
        tensor(-0.9993)

    See also:
        * ``segloss.DiceCELoss``: the same plus 1, with all options
    """

    def __init__(
        self,
        soft_dice_kwargs: Mapping[str, Any],
        ce_kwargs: Mapping[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
        dice_class: type[MemoryEfficientSoftDiceLoss] = SoftDiceLoss,
    ) -> None:
        ce = _cross_entropy_of(RobustCrossEntropyLoss, ce_kwargs, ignore_label)
        super().__init__(_dice_of(self, dice_class, _softmax, soft_dice_kwargs), ce, weight_ce, weight_dice)
        self.ignore_label = ignore_label
        if ignore_label is not None:
            self.dc.ignore_index, ce.empty = ignore_label, "zero"

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Calls ``segloss.dice_ce_loss``; see the class."""
        return self._value(net_output, _labels("DC_and_CE_loss", net_output, target))


class DC_and_BCE_loss(_CompoundLoss):
    """Dice and binary cross entropy of regions, with the keywords and values of nnU-Net's ``DC_and_BCE_loss``.

    With ``segloss.BCEWithLogitsLoss`` and ``dice_class``, over the voxels that count::

        loss = weight_ce * binary_cross_entropy + weight_dice * dice

    As in nnU-Net, the cross entropy is summed over the C channels where ``use_ignore_label`` or ``ignore_label`` is
    given, and averaged over them otherwise. The logits are read once for both terms, unless they differ as in
    ``segloss.nnunet.DC_and_CE_loss``.

    Args:
        bce_kwargs: keywords of ``torch.nn.BCEWithLogitsLoss``; weights ``[C]`` are those of the channels.
        soft_dice_kwargs: keywords of ``dice_class``, apart from ``apply_nonlin``.
        weight_ce, weight_dice: the factors of the terms. Default: 1.
        use_ignore_label: whether the last channel of the target is a mask of the voxels to ignore. Default: False.
        dice_class: ``SoftDiceLoss`` or ``MemoryEfficientSoftDiceLoss`` of this module. Default:
            ``MemoryEfficientSoftDiceLoss``.
        regions: segloss's own: the labels of each channel's region, an int or a collection of ints for each, as in
            nnU-Net's ``dataset.json``. The target then holds labels; no masks are made. Default: None, the target holds
            masks.
        ignore_label: with ``regions``, the label of the voxels to ignore. Default: None, every voxel counts.

    Call:
        ``loss(net_output, target)``, where

        * net_output: logits ``[N, C, *]``; float64, float32, float16 or bfloat16.
        * target: masks ``[N, C, *]``, with ``use_ignore_label`` ``[N, C + 1, *]``, of any dtype; with ``regions``
          labels ``[N, 1, *]`` or ``[N, *]`` of any dtype.

    Returns:
        A 0-dim tensor of net_output's dtype (float32 for half types under autocast).

    Raises:
        ValueError: dice_class is another class, ``use_ignore_label`` is given with ``regions``, or ``ignore_label``
            without; or target has another number of channels.
        AttributeError: an attribute ``ignore_label`` or ``use_ignore_label`` is set.
        TypeError, IndexError, ValueError, RuntimeError: as the two losses.

    Example:
        >>> import torch
        >>> from segloss.nnunet import DC_and_BCE_loss
        >>> logits, labels = torch.randn(2, 2, 8, 8), torch.randint(3, (2, 1, 8, 8))
        >>> masks = torch.cat([labels > 0, labels == 2], dim=1)
        >>> of_masks = DC_and_BCE_loss({}, {"smooth": 1e-5})
        >>> of_labels = DC_and_BCE_loss({}, {"smooth": 1e-5}, regions=[(1, 2), 2])
        >>> torch.equal(of_masks(logits, masks), of_labels(logits, labels))
        True

    See also:
        * ``segloss.DiceCELoss``: the same plus 1, with all options
    """

    def __init__(
        self,
        bce_kwargs: Mapping[str, Any],
        soft_dice_kwargs: Mapping[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        use_ignore_label: bool = False,
        dice_class: type[MemoryEfficientSoftDiceLoss] = MemoryEfficientSoftDiceLoss,
        *,
        regions: Sequence[int | Collection[int]] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        if (use_ignore_label and regions is not None) or (ignore_label is not None and regions is None):
            raise ValueError(
                "DC_and_BCE_loss: expected use_ignore_label with masks, or ignore_label with regions of labels, got "
                f"use_ignore_label={use_ignore_label}, ignore_label={ignore_label} and regions={regions}"
            )
        ce = segloss.BCEWithLogitsLoss(**bce_kwargs, ignore_index=() if ignore_label is None else ignore_label)
        ignores = use_ignore_label or ignore_label is not None
        if ignores:
            ce.reduction, ce.empty = "mean", "zero"  # nnU-Net takes no other reduction either
        super().__init__(_dice_of(self, dice_class, torch.sigmoid, soft_dice_kwargs), ce, weight_ce, weight_dice)
        self.use_ignore_label, self.ignore_label, self.ignores = use_ignore_label, ignore_label, ignores
        self.dc.ignore_index = ce.ignore_index
        self.dc.regions = ce.regions = None if regions is None else _collections(regions)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Calls ``segloss.dice_ce_loss``; see the class."""
        voxel_weight = None
        if self.use_ignore_label:
            voxel_weight, target = target[:, -1:] != 1, target[:, :-1]
        if self.dc.regions is not None:
            target = _labels("DC_and_BCE_loss", net_output, target, _NO_MASKS)
        elif target.shape != net_output.shape:
            raise ValueError(
                f"DC_and_BCE_loss: expected masks {list(net_output.shape)} as target, got {list(target.shape)}"
                f"{' besides the mask of ignored voxels' if self.use_ignore_label else ''}. Pass regions for labels"
            )
        return self._value(net_output, target, voxel_weight, factor=net_output.shape[1] if self.ignores else 1)


class DC_and_topk_loss(_CompoundLoss):
    """Dice and the largest cross entropies, with the keywords and values of nnU-Net's ``DC_and_topk_loss``.

    With ``segloss.nnunet.TopKLoss``, which counts ignored voxels as losses of 0, and ``segloss.nnunet.SoftDiceLoss``::

        loss = weight_ce * topk + weight_dice * dice

    Args:
        soft_dice_kwargs: keywords of ``segloss.nnunet.SoftDiceLoss``, apart from ``apply_nonlin``.
        ce_kwargs: keywords of ``segloss.nnunet.TopKLoss``.
        weight_ce, weight_dice: the factors of the terms. Default: 1.
        ignore_label: label of the voxels to ignore. Default: None, every voxel counts.

    Call:
        ``loss(net_output, target)`` as ``segloss.nnunet.DC_and_CE_loss``.

    Returns:
        A 0-dim tensor of net_output's dtype (float32 for half types under autocast).

    Raises:
        AttributeError: the attribute ``ignore_label`` is set.
        TypeError, IndexError, ValueError, RuntimeError: as the two losses.

    Example:
        >>> import torch
        >>> from segloss.nnunet import DC_and_topk_loss
        >>> loss = DC_and_topk_loss({"smooth": 1e-5, "do_bg": False}, {"k": 10}, ignore_label=255)
        >>> loss(torch.randn(2, 3, 8, 8, requires_grad=True), torch.ones(2, 1, 8, 8)).backward()

    See also:
        * ``segloss.TopKLoss``, ``segloss.DiceLoss``: segloss's own terms
    """

    def __init__(
        self,
        soft_dice_kwargs: Mapping[str, Any],
        ce_kwargs: Mapping[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
    ) -> None:
        ce = _cross_entropy_of(TopKLoss, ce_kwargs, ignore_label)
        super().__init__(SoftDiceLoss(_softmax, **soft_dice_kwargs), ce, weight_ce, weight_dice)
        self.ignore_label = ignore_label
        if ignore_label is not None:
            self.dc.ignore_index = ignore_label

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Calls the two losses; see the class."""
        return self._value(net_output, _labels("DC_and_topk_loss", net_output, target))


class DeepSupervisionWrapper(segloss.DeepSupervisionLoss):
    """A loss at several resolutions, with the keywords and values of nnU-Net's ``DeepSupervisionWrapper``.

    With the i-th entries of the lists in the call::

        loss = sum_i weight_factors[i] * loss(outputs[i], targets[i])

    Args:
        loss: any function or module.
        weight_factors: a factor for each resolution; one of factor 0 is left out. Default: None, all are 1 (nnU-Net
            says so, too, but raises a TypeError).

    Call:
        ``loss(outputs, targets, voxel_weight=None)`` as ``segloss.DeepSupervisionLoss``, where

        * outputs, targets: lists or tuples, one entry for each resolution. A single target is subsampled by
          ``mode="nearest-exact"``, as nnU-Net's data loader does it.
        * voxel_weight: voxel weights, which ``loss`` takes by this keyword. Default: None, every weight is 1. nnU-Net's
          wrapper takes any number of lists instead, and passes their entries by position.

    Returns:
        The weighted sum of what ``loss`` returns.

    Raises:
        TypeError, ValueError: as ``segloss.DeepSupervisionLoss``.

    Example:
        >>> import torch
        >>> from segloss.nnunet import DeepSupervisionWrapper, RobustCrossEntropyLoss
        >>> loss = DeepSupervisionWrapper(RobustCrossEntropyLoss(), [2 / 3, 1 / 3])
        >>> outputs, targets = ([torch.zeros(1, c, size) for size in (4, 2)] for c in (2, 1))
        >>> loss(outputs, targets)
        tensor(0.6931)

    See also:
        * ``segloss.DeepSupervisionLoss``: with other default factors, and logits that are interpolated
    """

    def __init__(self, loss: Callable[..., Tensor], weight_factors: Sequence[float] | None = None) -> None:
        super().__init__(loss, weight_factors, mode="nearest-exact")

    @property
    def weight_factors(self) -> tuple[float, ...] | None:
        return self.weights

    def _weights_for(self, inputs: Sequence[Tensor]) -> Sequence[float]:
        weights = super()._weights_for(inputs)
        return weights if self.weights is not None else [1.0] * len(weights)


# ---- what the losses share -------------------------------------------------------------------------------------------


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


def _activation(name: str, apply_nonlin: Callable[[Tensor], Tensor] | None) -> Literal["softmax", "sigmoid"] | None:
    """What the function is, from what it returns: nnU-Net takes functions, modules and lambdas."""
    if apply_nonlin is None:
        return None
    numbers = torch.linspace(-9, 9, 24, device="cpu").sin()
    probes = [numbers.view(2, 3, 2, 2), numbers.view(1, 3, 2, 2, 2)]  # a negative dimension is 1 in one of them only
    if all(torch.allclose(apply_nonlin(probe), probe.softmax(1)) for probe in probes):
        return "softmax"
    if all(torch.allclose(apply_nonlin(probe), probe.sigmoid()) for probe in probes):
        return "sigmoid"
    raise ValueError(
        f"{name}: expected apply_nonlin to be None, a softmax over dimension 1 or a sigmoid, got {apply_nonlin!r}. "
        f"Keep nnunetv2.training.loss.dice.{name} for another one"
    )


def _check_not_fixed(loss: nn.Module, name: str, fixed: Collection[str]) -> None:
    if name in fixed:
        kind = type(loss).__name__
        raise AttributeError(
            f"{kind}: expected {name} when the loss is made, got a new value for the attribute, which would have no "
            f"effect. Make a new {kind}"
        )


def _default_group(name: str) -> "ProcessGroup | None":
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ValueError(
            f"{name}: expected a default process group for ddp=True with batch_dice=True, got none. Call "
            "torch.distributed.init_process_group before, or pass ddp=False in a single process"
        )
    return torch.distributed.group.WORLD


_NO_MASKS = (
    "With regions, pass labels, not masks. A trainer that makes masks names nnUNetTrainerSegloss as its first base: "
    "class My(nnUNetTrainerSegloss, nnUNetTrainerDA5)"
)


def _labels(name: str, input: Tensor, target: Tensor, advice: str = "Take the argmax of one-hot labels") -> Tensor:
    """Labels [N, 1, *] or [N, *] as [N, *]."""
    if target.dim() != input.dim():
        return target
    if target.shape[1:2] != (1,):
        raise ValueError(
            f"{name}: expected labels [N, 1, ...] or [N, ...] for input {list(input.shape)}, got {list(target.shape)}. "
            f"{advice}"
        )
    return target[:, 0]


def _dice_of(
    loss: nn.Module, dice_class: type, apply_nonlin: Callable[[Tensor], Tensor], options: Mapping[str, Any]
) -> MemoryEfficientSoftDiceLoss:
    if dice_class not in (SoftDiceLoss, MemoryEfficientSoftDiceLoss):
        name = type(loss).__name__
        raise ValueError(
            f"{name}: expected dice_class to be SoftDiceLoss or MemoryEfficientSoftDiceLoss of segloss.nnunet, got "
            f"{dice_class!r}. Import it from there, or keep nnunetv2.training.loss.compound_losses.{name}"
        )
    return dice_class(apply_nonlin, **options)


def _cross_entropy_of(ce_class: type, options: Mapping[str, Any], ignore_label: int | None) -> Any:
    """A cross entropy that ignores the label, or else the label in the options, or else none, as the Dice."""
    if ignore_label is None:
        return ce_class(**{"ignore_index": (), **options})
    return ce_class(**{**options, "ignore_index": ignore_label})


def _collections(regions: Sequence[Any]) -> list[Collection[int]]:
    return [(int(region),) if isinstance(region, Integral) else tuple(dict.fromkeys(region)) for region in regions]


# ---- the trainer -----------------------------------------------------------------------------------------------------


class _SeglossTrainer:
    """nnU-Net's trainer with segloss's loss. It has nnU-Net's own values at every step.

    Regions are trained from label maps: the data loader makes no masks, unless a subclass has another loss. A subclass
    of several trainers has the loss of the first that makes one; name this one first.
    """

    def _build_loss(self: Any) -> nn.Module:
        theirs = super()._build_loss()  # type: ignore[misc]  # for the weights of deep supervision
        labels = self.label_manager
        dice = {
            "batch_dice": self.configuration_manager.batch_dice,
            "do_bg": labels.has_regions,
            "smooth": 1e-5,
            "ddp": self.is_ddp,
        }
        loss: nn.Module
        if labels.has_regions:
            loss = DC_and_BCE_loss({}, dice, regions=labels.foreground_regions, ignore_label=labels.ignore_label)
        else:
            loss = DC_and_CE_loss(dice, {}, ignore_label=labels.ignore_label)
        return DeepSupervisionWrapper(loss, theirs.weight_factors) if self.enable_deep_supervision else loss

    def _takes_label_maps(self: Any) -> bool:
        """Whether the loss is segloss's of regions; a subclass may have another, which wants nnU-Net's masks."""
        loss = getattr(self.loss, "loss", self.loss)  # of a deep supervision
        return isinstance(loss, DC_and_BCE_loss) and loss.dc.regions is not None

    def _without_masks(self, options: dict[str, Any]) -> dict[str, Any]:
        return options | {"regions": None} if self._takes_label_maps() else options

    # These two are static in nnU-Net, which calls them on the trainer once it has its loss.

    def get_training_transforms(self, *args: Any, **options: Any) -> Any:
        return super().get_training_transforms(*args, **self._without_masks(options))  # type: ignore[misc]

    def get_validation_transforms(self, *args: Any, **options: Any) -> Any:
        return super().get_validation_transforms(*args, **self._without_masks(options))  # type: ignore[misc]

    def validation_step(self: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """As nnU-Net's, which expects masks of the regions."""
        if not self._takes_label_maps():
            return super().validation_step(batch)  # type: ignore[misc,no-any-return]
        labels = self.label_manager
        data, target = batch["data"].to(self.device, non_blocking=True), batch["target"]
        is_list = isinstance(target, list)
        targets = [each.to(self.device, non_blocking=True) for each in (target if is_list else [target])]
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            output = self.network(data)
            loss = self.loss(output, targets if is_list else targets[0])
        finest = output[0] if self.enable_deep_supervision else output
        counts = segloss.soft_stats(
            (finest.sigmoid() > 0.5).float(),
            targets[0],
            activation=None,
            regions=_collections(labels.foreground_regions),
            ignore_index=() if labels.ignore_label is None else labels.ignore_label,
        )
        hard = {"tp_hard": counts.tp, "fp_hard": counts.fp, "fn_hard": counts.fn}
        return {"loss": loss.detach().cpu().numpy()} | {name: n.sum(0).cpu().numpy() for name, n in hard.items()}


def __getattr__(name: str) -> Any:
    """Makes nnUNetTrainerSegloss when it is asked for: nnunetv2 takes seconds to import, and may be missing."""
    if name != "nnUNetTrainerSegloss":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = type(name, (_SeglossTrainer, nnUNetTrainer), {"__module__": __name__, "__doc__": _SeglossTrainer.__doc__})
    globals()[name] = trainer
    return trainer
