"""How good a prediction is."""

from collections.abc import Callable

import torch
from torch import Tensor

_accuracy: Callable[..., Tensor] = torch.ops.segloss.accuracy.default


def accuracy(input: Tensor, target: Tensor, *, ignore_index: int = -100, dim: int = 1) -> Tensor:
    r"""Share of the voxels whose predicted class is the label: argmax and comparison in one walk over the logits.

    .. math::
        \frac{\sum_v [y_v \ne \mathrm{ignore}]\,[\mathrm{argmax}_c\, x_{v,c} = y_v]}{\sum_v [y_v \ne \mathrm{ignore}]}

    Args:
        input: logits ``[N, C, *]`` or ``[C]`` (floating; the first of equal logits wins, nan counts as largest), or
            a map of predicted labels ``[N, *]`` or ``[N, 1, *]`` (integer).
        target: labels ``[N, *]`` or ``[N, 1, *]`` of any integer dtype, bool or integral floats; or one-hot of input's
            shape.
        ignore_index: label of the voxels that do not count. Default: -100.
        dim: the class dimension of input. Default: 1.

    Returns:
        A 0-dim tensor of torch's default dtype; nan if no voxel counts. The counts are exact. Has no gradient.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as :func:`segloss.cross_entropy`.

    Equivalent to:
        ``(input.argmax(1) == target.squeeze(1)).float().mean()`` where nothing is ignored.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
        >>> segloss.accuracy(logits, torch.tensor([1, 0, 0]))
        tensor(0.6667)
    """
    return _accuracy(input, target, ignore_index, dim)
