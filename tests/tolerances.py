"""Every tolerance of the tests, each with its reason."""

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
