"""Logits at another size than the labels: how the operators are told to interpolate them."""

import reprlib
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

AxisMode: TypeAlias = Literal["nearest", "nearest-exact", "linear"]
Upsample: TypeAlias = Literal["nearest", "nearest-exact", "linear", "bilinear", "trilinear"] | tuple[AxisMode, ...]

_NUM_AXES = {"linear": 1, "bilinear": 2, "trilinear": 3}
_NEAREST = ("nearest", "nearest-exact")
_CODES = {"nearest": 1, "linear": 2, "nearest-exact": 3}


class Upsampling(NamedTuple):
    """The keywords, as the caller gave them."""

    upsample: Upsample | None = None
    align_corners: bool = False


def upsampling_code(op: str, input: Tensor, keywords: Upsampling) -> int:
    """The number that stands for the keywords in the operators, 0 for None; csrc/ops/resize.h says how."""
    upsample, align_corners = keywords
    if (upsample is None and align_corners is False) or not isinstance(input, Tensor):
        return 0  # the caller raises the error for an input that is no tensor
    if align_corners not in (True, False):
        raise ValueError(f"{op}: expected align_corners to be True or False, got {reprlib.repr(align_corners)}")
    if upsample is None:
        raise ValueError(f"{op}: expected align_corners=False without upsample, got True")
    modes = _modes_of_axes(op, input, upsample)
    if align_corners and "linear" not in modes:
        raise ValueError(
            f"{op}: expected align_corners=False with upsample={upsample!r}, got True. Only linear interpolation has "
            "corners to align"
        )
    code = int(align_corners)
    for k, mode in enumerate(reversed(modes)):
        code |= _CODES[mode] << (1 + 2 * k)
    return code


def full_shape(input: Tensor, target: Tensor, dim: int, code: int) -> torch.Size:
    """Input's shape at the target's size, if the two fit; else, or without upsampling, input's own."""
    if code == 0 or target.dim() not in (input.dim(), input.dim() - 1) or not -input.dim() <= dim < input.dim():
        return input.shape
    along = dim % input.dim()
    sizes = list(target.shape)
    sizes[along : along + (target.dim() == input.dim())] = [input.shape[along]]
    return torch.Size(sizes)


def resized_dims(num_dims: int, dim: int, code: int) -> list[int]:
    """The dimensions of logits that are resized."""
    others = [d for d in range(num_dims) if d != dim]
    num_axes = ((code >> 1).bit_length() + 1) // 2
    return others[len(others) - num_axes :]


def _modes_of_axes(op: str, input: Tensor, upsample: object) -> tuple[str, ...]:
    """The mode of each spatial axis."""
    num_axes = input.dim() - 2
    is_name = isinstance(upsample, str) and upsample in (*_NEAREST, *_NUM_AXES)
    is_tuple = isinstance(upsample, tuple | list) and all(mode in _CODES for mode in upsample)
    if not (is_name or is_tuple):
        raise ValueError(
            f"{op}: expected upsample to be 'nearest', 'nearest-exact', 'linear', 'bilinear' or 'trilinear', or a "
            f"tuple with 'nearest', 'nearest-exact' or 'linear' for each spatial axis, got {reprlib.repr(upsample)}"
        )
    if not 1 <= num_axes <= 3:
        raise NotImplementedError(
            f"{op}: expected logits of one to three spatial axes with upsample, got input {list(input.shape)}"
        )
    if upsample in _NEAREST:
        return (str(upsample),) * num_axes
    modes = tuple(upsample) if isinstance(upsample, tuple | list) else ("linear",) * _NUM_AXES[str(upsample)]
    if len(modes) != num_axes:
        fitting = next(name for name, number in _NUM_AXES.items() if number == num_axes)
        raise NotImplementedError(
            f"{op}: expected upsample={fitting!r} for the {num_axes} spatial ax{'i' if num_axes == 1 else 'e'}s of "
            f"input {list(input.shape)}, or a tuple with a mode for each, got {upsample!r}"
        )
    return modes
