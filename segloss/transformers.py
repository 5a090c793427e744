"""The loss of Hugging Face's models for semantic segmentation, for ``Trainer(compute_loss_func=...)``.

Follows transformers 5.24, which need not be installed: the model, its config and its outputs are only read.
"""

from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from segloss.losses import BCEWithLogitsLoss, CrossEntropyLoss, DeepSupervisionLoss, _keyword_of

Outputs: TypeAlias = MutableMapping[str, Tensor] | tuple[Tensor, ...]

_NOT_AN_ITEM = -100  # what Trainer leaves out of num_items_in_batch, whatever the model ignores


class SemanticSegmentationLoss(nn.Module):
    """The loss of a model ``...ForSemanticSegmentation``, without full-size logits, as a ``compute_loss_func``.

    With the logits taken to the labels' size, and the logits of the model's auxiliary head, if it has one::

        loss = (loss(logits, labels) + auxiliary_loss_weight * loss(auxiliary_logits, labels)) * share
        share = number of labels that are not -100 / num_items_in_batch

    Without ``loss`` the value is that of ``model(pixel_values, labels=labels).loss``: torch's cross entropy of logits
    interpolated bilinearly. With one channel it is the binary cross entropy, a mean over the labelled voxels, where
    transformers divides by the number of all voxels.

    Trainer sums the losses of the micro-batches of a step, and passes the number of their labels that are not -100, of
    all processes, as ``num_items_in_batch``. The shares add up to 1, so the sum is the mean of the micro-batches'
    losses, weighted by their labels; if unlabelled voxels are -100, it is the cross entropy of the whole batch. Voxels
    of ``semantic_loss_ignore_index`` are counted as labels.

    Args:
        model: the model that is trained, as it is given to Trainer. Its config says what is ignored, besides -100. A
            forward hook on its auxiliary head keeps the auxiliary logits, which its outputs lack.
        loss: a loss of segloss, module or function, with what it is to ignore, called as ``loss(logits, labels)``. Its
            own ``upsample`` is kept; without one it is ``"bilinear"``. Its weights move to the logits' device. Default:
            None, the loss of the model itself.

    Call:
        ``criterion(outputs, labels, num_items_in_batch=None)``, where

        * outputs: what the model returns without labels: a mapping with ``"logits"``, or a tuple that begins with them;
          ``[N, C, h, w]``, of any floating dtype.
        * labels: ``[N, H, W]`` or ``[N, 1, H, W]``, of any dtype that the loss takes. Unlike the model's own loss it
          needs no int64.
        * num_items_in_batch: as Trainer passes it. Default: None, share is 1.

    Returns:
        A 0-dim tensor of the dtype of the loss, of at least float32 with num_items_in_batch.

    Raises:
        TypeError: the model has no config; the loss is a module without ``upsample``; outputs have no logits, as those
            of MaskFormer and Mask2Former.
        ValueError: labels is None.
        RuntimeError: the model has an auxiliary head, but outputs are those of another model.
        TypeError, IndexError, ValueError, RuntimeError: as the loss; without ``loss`` as ``segloss.cross_entropy``.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> from segloss.transformers import SemanticSegmentationLoss
        >>> model = torch.nn.Conv2d(3, 4, 4, stride=4)  # stands for a SegformerForSemanticSegmentation
        >>> model.config = SimpleNamespace(num_labels=4, semantic_loss_ignore_index=255)
        >>> criterion = SemanticSegmentationLoss(model)  # for Trainer(model, compute_loss_func=criterion)
        >>> outputs = {"logits": model(torch.randn(2, 3, 64, 64))}
        >>> criterion(outputs, torch.randint(4, (2, 64, 64))).backward()

    See also:
        * ``segloss.CrossEntropyLoss``, ``segloss.DiceCELoss``: losses for ``loss``
        * ``segloss.DeepSupervisionLoss``: what sums the two terms
    """

    loss: DeepSupervisionLoss

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        if not hasattr(model, "config"):
            raise TypeError(
                "SemanticSegmentationLoss: expected a model of transformers, with a config, got "
                f"{type(model).__name__}. Pass the model itself, before it is wrapped"
            )
        if isinstance(loss, nn.Module) and not hasattr(loss, "upsample"):
            raise TypeError(
                "SemanticSegmentationLoss: expected a loss of segloss with upsample, got "
                f"{type(loss).__module__}.{type(loss).__name__}. Use a loss of segloss itself, such as "
                "segloss.CrossEntropyLoss, or a function that takes upsample and align_corners"
            )
        config: Any = model.config
        loss = _own_loss(config) if loss is None else loss
        head = getattr(model, "auxiliary_head", None)
        self._has_auxiliary_head = head is not None
        if head is not None:
            head.register_forward_hook(self._keep)
            model.register_forward_hook(self._tie)
        self._auxiliary_logits: Tensor | None = None
        self.loss = DeepSupervisionLoss(
            loss,
            [1.0] if head is None else [1.0, config.auxiliary_loss_weight],
            upsample=_keyword_of(loss, "upsample", None) or "bilinear",
            align_corners=_keyword_of(loss, "align_corners", False),
        )

    def forward(self, outputs: Outputs, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The loss of the outputs; see the class."""
        logits = _logits_of(outputs)
        if labels is None:
            raise ValueError(
                "SemanticSegmentationLoss: expected labels, got None. Call the label maps of the data set 'labels'"
            )
        loss: Tensor = self.loss.to(logits.device)([logits, *self._taken_auxiliary_logits()], labels)
        if num_items_in_batch is None:
            return loss
        num_items = torch.as_tensor(num_items_in_batch).sum()  # one number; of DataParallel one for each GPU
        return loss * (labels.ne(_NOT_AN_ITEM).sum() / num_items.clamp(min=1))

    def _keep(self, head: nn.Module, args: Any, logits: Tensor) -> None:
        self._auxiliary_logits = logits

    def _tie(self, model: nn.Module, args: Any, outputs: Outputs) -> Outputs:
        """DistributedDataParallel looks for the parameters with a gradient behind the outputs of the model."""
        logits = _Tied.apply(_logits_of(outputs), self._auxiliary_logits)  # type: ignore[no-untyped-call]
        if isinstance(outputs, tuple):
            return (logits, *outputs[1:])
        outputs["logits"] = logits
        return outputs

    def __getstate__(self) -> dict[str, Any]:
        """Without logits, which can be neither copied nor pickled: the hooks are copied with their model."""
        return self.__dict__ | {"_auxiliary_logits": None}

    def _taken_auxiliary_logits(self) -> list[Tensor]:
        """The logits of the last forward pass, once: in a later call they would meet the labels of another batch."""
        if not self._has_auxiliary_head:
            return []
        logits, self._auxiliary_logits = self._auxiliary_logits, None
        if logits is None:
            raise RuntimeError(
                "SemanticSegmentationLoss: expected outputs of the model that it was made from, whose auxiliary head "
                "has a loss, too, got outputs of another model or for a second time. Make it from the model that is "
                "trained, and call it once after each forward pass"
            )
        return [logits]


class _Tied(torch.autograd.Function):
    """The logits, with a graph that also leads to the auxiliary ones, and brings them no gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, auxiliary_logits: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _own_loss(config: Any) -> nn.Module:
    """The loss of the model itself, which also ignores what Trainer does not count."""
    ignored = getattr(config, "semantic_loss_ignore_index", None)  # UperNet: loss_ignore_index
    ignore_index = (config.loss_ignore_index if ignored is None else ignored, _NOT_AN_ITEM)
    if config.num_labels == 1:
        return BCEWithLogitsLoss(ignore_index=ignore_index, regions=[(1,)])
    return CrossEntropyLoss(ignore_index=ignore_index)


def _logits_of(outputs: Outputs) -> Tensor:
    if isinstance(outputs, tuple):
        return outputs[0]
    if isinstance(outputs, MutableMapping) and "logits" in outputs:
        return outputs["logits"]
    got = f"one with {', '.join(outputs)}" if isinstance(outputs, MutableMapping) else type(outputs).__name__
    raise TypeError(
        f"SemanticSegmentationLoss: expected outputs with logits, or a tuple that begins with them, got {got}. Models "
        "such as MaskFormer and Mask2Former have a loss of their own: leave out compute_loss_func"
    )
