"""Every tolerance of the tests, each with its reason."""

from collections.abc import Iterable

import torch

# Two float implementations of log and exp of the same logits differ by a few units in the last place per voxel, and the
# gradient by that times its scale. The half types round only the result.
RTOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
ATOL = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Equal within the rounding of `dtype` (default: of actual), nan equal to nan, any dtype and memory format."""
    dtype = dtype or actual.dtype
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=RTOL[dtype], atol=ATOL[dtype], equal_nan=True, check_stride=False
    )


def assert_same_bits(actual: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> None:
    """The same bits, as promised for the CPU; a GPU may add up in another order in another layout."""
    for a, e in zip(actual, expected, strict=True):
        if e.is_cuda:
            assert_close(a, e)
        else:
            assert torch.equal(a, e)


def assert_identical(actual: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> None:
    """The same numbers on every device, nan equal to nan: of the same arithmetic on a target read in another way."""
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


# A confident voxel's loss and the gradient at its target hardly differ from 0, so that only a relative bound says
# anything. The promise in docs/how-it-works.md is 1e-5 in float32, some 80 units in the last place.
CONFIDENT_RTOL = 1e-5

# A float32 sum or mean is taken in double and rounded once (6e-8); docs/how-it-works.md promises 2e-7.
SUM_RTOL = 2e-7

# The rounding of one result to a half type: half a unit in the last place of 11 or 8 bits, and the float32 rounding
# before it.
ROUNDING_RTOL = {torch.float16: 2.0**-11 * 1.01, torch.bfloat16: 2.0**-8 * 1.01}


def assert_relative(actual: torch.Tensor, expected: torch.Tensor, rtol: float) -> None:
    """Equal within `rtol` of each expected value, with nothing added for small ones."""
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=0, check_stride=False)
