"""The losses as modules: they store the keywords of the functions and call them."""

from typing import Any

from torch import Tensor, nn
from torch.nn import _reduction

from segloss import functional
from segloss.functional import Empty, Reduction


class _Loss(nn.Module):
    """The keywords that every loss of class labels has."""

    weight: Tensor | None
    reduction: str

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
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        if size_average is not None or reduce is not None:
            self.reduction = _reduction.legacy_get_string(size_average, reduce)  # warns as torch does
        else:
            self.reduction = reduction
        self.ignore_index = ignore_index
        self.dim = dim
        self.empty = empty

    def _options(self) -> dict[str, Any]:
        """The keywords of the function, all but the tensors."""
        return {
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "dim": self.dim,
            "empty": self.empty,
        }

    def extra_repr(self) -> str:
        weight = [] if self.weight is None else [f"weight={' '.join(repr(self.weight).split())}"]
        return ", ".join(weight + [f"{name}={value!r}" for name, value in self._options().items()])


class NLLLoss(_Loss):
    """:func:`segloss.nll_loss` as a module; a replacement of :class:`torch.nn.NLLLoss`.

    Args:
        weight: a weight for each class ``[C]``; a buffer, so that it moves with the module.
        size_average, reduce: deprecated, see ``reduction``.
        ignore_index: label of the voxels that do not count. Default: -100.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. Default: ``"mean"``.
        dim: the class dimension of input. Default: 1.
        empty: the mean over no voxel, ``"nan"`` or ``"zero"``. Default: ``"nan"``.

    Called as ``loss(input, target, voxel_weight=None)``; shapes, dtypes and errors are the function's.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.NLLLoss(ignore_index=255)
        >>> log_p = torch.randn(2, 3, 4, 4).log_softmax(1)
        >>> loss(log_p, torch.full((2, 1, 4, 4), 2, dtype=torch.uint8)).shape
        torch.Size([])
    """

    def forward(self, input: Tensor, target: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        return functional.nll_loss(input, target, self.weight, voxel_weight=voxel_weight, **self._options())


class CrossEntropyLoss(_Loss):
    """:func:`segloss.cross_entropy` as a module; a replacement of :class:`torch.nn.CrossEntropyLoss`.

    Args:
        weight: a weight for each class ``[C]``; a buffer, so that it moves with the module.
        size_average, reduce: deprecated, see ``reduction``.
        ignore_index: label of the voxels that do not count. Default: -100.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. Default: ``"mean"``.
        label_smoothing: in [0, 1]. Default: 0.
        dim: the class dimension of input. Default: 1.
        empty: the mean over no voxel, ``"nan"`` or ``"zero"``. Default: ``"nan"``.

    Called as ``loss(input, target, voxel_weight=None)``; shapes, dtypes and errors are the function's.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.CrossEntropyLoss(ignore_index=255)
        >>> loss
        CrossEntropyLoss(ignore_index=255, reduction='mean', dim=1, empty='nan', label_smoothing=0.0)
        >>> logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
        >>> loss(logits, torch.ones(2, 1, 8, 8, 8, dtype=torch.uint8)).backward()
    """

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
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, dim=dim, empty=empty)
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor, voxel_weight: Tensor | None = None) -> Tensor:
        return functional.cross_entropy(input, target, self.weight, voxel_weight=voxel_weight, **self._options())

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"label_smoothing": self.label_smoothing}
