"""Predictions: label maps and masks from logits."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segloss._docs import documented
from segloss._upsample import Upsample, Upsampling, resized_dims, upsampling_code
from segloss.functional import _check_integer, _check_tensor, _checked_threshold, _plain, cross_entropy

_predict: Callable[..., Tensor] = torch.ops.segloss.predict.default
_predict_into: Callable[..., None] = torch.ops.segloss.predict_into.default


@documented(like=cross_entropy)
def predict(
    logits: Tensor,
    size: Sequence[int] | None = None,
    *,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    threshold: float | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    dim: int = 1,
) -> Tensor:
    """The class of each voxel, or masks, from logits of the result's size or of another one.

    The class of the largest logit; with a threshold, whether each logit is above it::

        prediction = argmax_c x[c]        (with threshold: x[c] > threshold)

    The logits x are interpolated while they are read, so that no tensor of the result's size holds them: exporting a
    volume takes the memory of the prediction itself.

    Args:
        logits: ``[N, C, *]``; float64, float32, float16 or bfloat16, with any strides.
        size: the spatial size of the result, with ``upsample``. Default: None, that of ``out``, or the logits' own.
        upsample: how to take the logits to ``size``, as in ``segloss.cross_entropy``. Default: None, they have it.
        threshold: makes masks, one for each channel, of raw logits: 0 is the probability 1/2 of a sigmoid. nan is not
            above it. Default: None, the argmax of the channels: the first of equal logits wins, nan counts as largest.
        dtype: of the result, integer. Default: None, uint8 for up to 256 classes, int16 for up to 32 767, else int32;
            with a threshold bool, or uint8 if given.
        out: the tensor to write to, of the result's shape, with any strides; it may lie in a file, as
            ``torch.from_numpy(numpy.memmap(...))`` does. Default: None, a new one.
        dim: the class dimension of the logits.
        others: as in ``segloss.cross_entropy``.

    Returns:
        A label map ``[N, *]``, or with a threshold masks ``[N, C, *]``. Has no gradient.

    Raises:
        TypeError: the logits are not floating, or ``dtype`` or that of ``out`` is none that a prediction can have.
        ValueError: ``size`` without ``upsample`` or the reverse; ``dtype`` does not hold the classes; ``size`` has not
            one number for each spatial axis.
        NotImplementedError: ``upsample`` does not fit the number of spatial axes.
        RuntimeError: one channel without a threshold, a size of 0, or ``out`` is of another shape or device.
        IndexError: ``dim`` is not a dimension of the logits.

    Equivalent to:
        ``torch.nn.functional.interpolate(logits, size, mode="trilinear").argmax(1).to(torch.uint8)``

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 1.0]]]])  # [N, C, H, W]
        >>> segloss.predict(logits)
        tensor([[[0, 1]]], dtype=torch.uint8)
        >>> segloss.predict(logits, (1, 4), upsample="bilinear")
        tensor([[[0, 0, 0, 1]]], dtype=torch.uint8)

    See also:
        * ``segloss.confusion_matrix``, ``segloss.dice_score``: compare a prediction, or logits, with labels
    """
    op = "predict"
    logits = _plain(logits)
    _check_tensor(op, "logits", logits)
    _check_integer(op, "dim", dim)
    threshold = _checked_threshold(op, threshold)
    if logits.dim() < 2 or not -logits.dim() <= dim < logits.dim():
        raise IndexError(
            f"{op}: expected logits [N, C, ...] and dim, their class dimension, in [{-logits.dim()}, "
            f"{logits.dim() - 1}], got {list(logits.shape)} and {dim}"
        )
    along = dim % logits.dim()
    code = upsampling_code(op, logits, Upsampling(upsample, align_corners))
    logits = logits.detach()
    if out is not None:
        _check_tensor(op, "out", out)
        if dtype is not None and dtype != out.dtype:
            raise TypeError(f"{op}: expected out of dtype {dtype}, got {out.dtype}. Leave dtype out")
        if size is not None:
            _sizes(logits, size, along, code)
            _check_size_of_out(size, out, along, threshold)
        _predict_into(logits, code, threshold, along, out)
        return out
    sizes = _sizes(logits, size, along, code)
    return _predict(logits, sizes, code, threshold, dtype or _smallest(logits.shape[along], threshold), along)


def _smallest(num_classes: int, threshold: float | None) -> torch.dtype:
    if threshold is not None:
        return torch.bool
    return torch.uint8 if num_classes <= 2**8 else torch.int16 if num_classes < 2**15 else torch.int32


def _sizes(logits: Tensor, size: Sequence[int] | None, dim: int, code: int) -> list[int]:
    if (size is None) != (code == 0):
        raise ValueError(
            f"predict: expected size and upsample, or neither, for logits {list(logits.shape)}, got size {size}"
            + (". Give upsample, such as 'trilinear'" if code == 0 else ". Give the size of the result, or out")
        )
    if size is None:
        return []
    num_axes = len(resized_dims(logits.dim(), dim, code))
    if len(size) != num_axes:
        raise ValueError(
            f"predict: expected size with {num_axes} numbers, one for each spatial axis of logits "
            f"{list(logits.shape)}, got {list(size)}"
        )
    return list(size)


def _check_size_of_out(size: Sequence[int], out: Tensor, dim: int, threshold: float | None) -> None:
    sizes = list(out.shape)
    if threshold is not None and dim < len(sizes):
        del sizes[dim]
    if list(size) != sizes[1:]:
        raise ValueError(f"predict: expected out with the spatial size {list(size)}, got {list(out.shape)}")
