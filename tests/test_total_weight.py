"""total_weight: the denominator of a mean, from the labels alone."""

import pytest
import torch
import torch.nn.functional as F

import segloss

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.float16,
    torch.float32,
]
LABELS = torch.tensor([[[0, 1, 2], [2, 2, 1]], [[1, 0, 7], [7, 0, 0]]])
WEIGHT = torch.tensor([0.5, 2.0, 3.0])
VOXEL_WEIGHT = torch.tensor([[[1.0, 0.5, 0.0], [2.0, 1.0, 1.0]], [[0.25, 1.0, 5.0], [0.0, 1.0, 3.0]]])


def reference(labels, weight, voxel_weight, ignore_index):
    total = 0.0
    for y, v in zip(labels.flatten().tolist(), voxel_weight.flatten().tolist(), strict=True):
        total += 0.0 if y == ignore_index else v * weight[y]
    return total


@pytest.mark.parametrize("voxel_weight", [None, VOXEL_WEIGHT], ids=["", "voxel_weight"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weight"])
@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 1, 2, 3), (12,), (1, 2, 1, 2, 3)])
def test_the_total_weight_is_the_sum_of_the_weights_of_the_voxels_that_count(shape, weight, voxel_weight):
    total = segloss.total_weight(
        LABELS.view(shape),
        weight,
        ignore_index=7,
        voxel_weight=None if voxel_weight is None else voxel_weight.view(shape),
    )
    ones = torch.ones_like(VOXEL_WEIGHT)
    values = [1.0] * 3 if weight is None else weight.tolist()
    expected = reference(LABELS, values, ones if voxel_weight is None else voxel_weight, 7)
    torch.testing.assert_close(total, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_of_every_dtype(dtype):
    assert segloss.total_weight(LABELS.clamp(max=1).to(dtype), WEIGHT).item() == 4 * 0.5 + 8 * 2.0


def test_labels_of_any_strides():
    assert segloss.total_weight(LABELS.permute(2, 0, 1)[::2], WEIGHT, ignore_index=7).item() == reference(
        LABELS[..., ::2], WEIGHT.tolist(), torch.ones(8), 7
    )


def test_the_total_weight_is_the_denominator_of_torch():
    logits = torch.randn(2, 3, 2, 3, dtype=torch.float64)
    options = {"ignore_index": 7}
    total = segloss.total_weight(LABELS, WEIGHT, **options)
    weight = WEIGHT.double()
    sum_ = F.cross_entropy(logits, LABELS, weight, **options, reduction="sum")
    torch.testing.assert_close(sum_ / total, F.cross_entropy(logits, LABELS, weight, **options))


def test_the_total_weight_of_no_voxel_is_zero():
    assert segloss.total_weight(torch.empty(0, 4, dtype=torch.uint8)).item() == 0
    assert segloss.total_weight(torch.full((2, 4), 255), WEIGHT, ignore_index=255).item() == 0


def test_a_count_beyond_float32_is_exact():
    labels = torch.zeros((), dtype=torch.uint8).expand(2**24 + 1)
    assert segloss.total_weight(labels).item() == 2**24 + 1


def test_without_weight_labels_have_no_bound():
    assert segloss.total_weight(torch.tensor([0, 1000, 70_000])).item() == 3


def test_the_total_weight_has_no_gradient():
    voxel_weight = VOXEL_WEIGHT.clone().requires_grad_()
    total = segloss.total_weight(LABELS, WEIGHT.clone().requires_grad_(), ignore_index=7, voxel_weight=voxel_weight)
    assert not total.requires_grad


@pytest.mark.parametrize("with_weights", [False, True])
def test_the_meta_device_gives_shape_and_dtype(with_weights):
    weights = (WEIGHT.to("meta"), VOXEL_WEIGHT.to("meta")) if with_weights else (None, None)
    total = segloss.total_weight(LABELS.to("meta"), weights[0], voxel_weight=weights[1])
    assert (total.shape, total.dtype, total.device.type) == ((), torch.float64, "meta")


def test_opcheck():
    arguments = ("total_weight", LABELS, WEIGHT, VOXEL_WEIGHT, 3, 7)
    torch.library.opcheck(torch.ops.segloss.total_weight.default, arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 1],), TypeError, "expected target to be a torch.Tensor, got list"),
        ((LABELS, 2.0), TypeError, "expected weight to be a torch.Tensor, got float"),
        ((LABELS, WEIGHT), IndexError, r"Target 7 is out of bounds: 2 labels are outside \[0, 3\)"),
        ((LABELS + 0.5,), RuntimeError, "expected integral labels"),
        ((LABELS, WEIGHT.view(1, 3)), RuntimeError, r"expected weight of shape \[3\]"),
        ((LABELS * 1j,), TypeError, "expected an integer, bool or floating target, got ComplexFloat"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        segloss.total_weight(*arguments)


def test_a_voxel_weight_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match=r"expected voxel_weight of the labels' shape \[2, 2, 3\], got \[2, 3\]"):
        segloss.total_weight(LABELS, voxel_weight=VOXEL_WEIGHT[0])


def test_the_total_weight_of_labels_that_require_a_gradient_claimed_to_have_one():
    """Its backward pass gave no gradient, with a warning from torch."""
    labels = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    assert not segloss.total_weight(labels).requires_grad
