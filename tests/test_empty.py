"""Input without a voxel: no sample, or samples of size 0. Tests what a mean is then, and that its gradient is zero."""

from functools import partial
from itertools import product

import pytest
import torch
from losses import COMPOUND_LOSSES, REGION_LOSSES, SIGMOID, VOXEL_LOSSES
from test_devices import without_kernels
from tolerances import assert_close

import segloss

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(0, 3, 4), (2, 3, 0), (0, 3), (2, 2, 4, 0, 2)]
SMOOTH = {"smooth_nr": 0.5, "smooth_dr": 2.0}  # a term without a voxel is 1 - 0.5 / 2 = 0.75
CASES = [(name, {}) for name in VOXEL_LOSSES] + [("focal_loss", SIGMOID)]
CASES += [
    (name, {"batch": batch, **SMOOTH, **activation})
    for name, batch, activation in product((*REGION_LOSSES, *COMPOUND_LOSSES), (False, True), ({}, SIGMOID))
]
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
EVERY_SHAPE_AND_DTYPE = pytest.mark.parametrize(("shape", "dtype"), list(zip(SHAPES, DTYPES, strict=True)), ids=str)
EVERY_LOSS = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda each: str(each) or "defaults")


def value_of(loss, shape, dtype=torch.float32):
    """The loss. Asserts that the gradient has input's shape, and is zero for the tensor that input was made of."""
    source = torch.ones((), dtype=dtype, requires_grad=True)
    x = source.expand(shape) * 1
    value = loss(x, torch.zeros(shape[:1] + shape[2:], dtype=torch.uint8))
    of_input, of_source = torch.autograd.grad(value.sum(), (x, source))
    assert of_input.shape == shape
    assert of_source == 0
    assert value.dtype == dtype
    return value.detach()


def loss_of(name, options, **more):
    return partial(getattr(segloss, name), **options, **more)


@EVERY_SHAPE_AND_DTYPE
@EVERY_LOSS
def test_the_mean_is_nan(name, options, shape, dtype):
    assert value_of(loss_of(name, options), shape, dtype).isnan()


@EVERY_SHAPE_AND_DTYPE
@pytest.mark.parametrize(
    ("name", "options"), [case for case in CASES if case[0] not in REGION_LOSSES], ids=lambda each: str(each)
)
def test_the_mean_is_0_where_empty_says_so(name, options, shape, dtype):
    assert value_of(loss_of(name, options, empty="zero"), shape, dtype) == 0


@EVERY_SHAPE_AND_DTYPE
@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] != "topk_loss"], ids=str)
def test_the_sum_is_that_of_the_terms(name, options, shape, dtype):
    num_terms = 0
    if name in (*REGION_LOSSES, *COMPOUND_LOSSES):
        num_terms = (1 if options["batch"] else shape[0]) * (1 if name == "generalized_dice_loss" else shape[1])
    value = value_of(loss_of(name, options, reduction="sum"), shape, dtype)
    assert_close(value, torch.tensor(0.75 * num_terms, dtype=dtype))


@EVERY_SHAPE
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", REGION_LOSSES)
def test_the_terms_are_those_of_the_smoothing_alone(name, batch, shape):
    terms = value_of(loss_of(name, {"batch": batch, **SMOOTH}, reduction="none"), shape)
    samples, classes = () if batch else shape[:1], () if name == "generalized_dice_loss" else shape[1:2]
    assert torch.equal(terms, torch.full(samples + classes, 0.75))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (4, 2, 3)])
@pytest.mark.parametrize("name", REGION_LOSSES)
def test_an_input_whose_voxels_are_all_ignored_is_not_empty(name, shape):
    x = torch.randn(shape, requires_grad=True)
    y = torch.full(shape[:1] + shape[2:] if len(shape) > 1 else (), -100)
    value = getattr(segloss, name)(x, y, **SMOOTH)
    assert_close(value, torch.tensor(0.75))
    assert torch.equal(torch.autograd.grad(value, x)[0], torch.zeros(shape))


@pytest.mark.parametrize("smoothing", [{}, {"smooth_nr": 0.0, "smooth_dr": 0.0}, {"smooth_nr": 1.0, "smooth_dr": 0.0}])
@pytest.mark.parametrize("name", COMPOUND_LOSSES)
def test_smoothing_does_not_change_the_mean_of_nothing(name, smoothing):
    assert value_of(loss_of(name, smoothing, empty="zero"), (2, 3, 0)) == 0
    assert value_of(loss_of(name, smoothing), (2, 3, 0)).isnan()


@pytest.mark.parametrize("dim", [0, 2, -1])
@pytest.mark.parametrize("name", [*REGION_LOSSES, *COMPOUND_LOSSES])
def test_the_class_dimension_may_be_any(name, dim):
    x = torch.zeros(0, 4, 3).movedim(2, dim)
    assert getattr(segloss, name)(x, torch.zeros(0, 4).long(), dim=dim).isnan()


@EVERY_SHAPE
@EVERY_LOSS
def test_the_mean_is_nan_without_kernels(name, options, shape):
    with without_kernels():
        assert value_of(loss_of(name, options), shape).isnan()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
@pytest.mark.parametrize("name", COMPOUND_LOSSES)
def test_a_compiled_loss_of_nothing(name, shape):
    torch._dynamo.reset()
    loss = torch.compile(loss_of(name, SMOOTH, empty="zero"), backend="aot_eager", fullgraph=True)
    x, y = torch.zeros(shape, requires_grad=True), torch.zeros(shape[:1] + shape[2:], dtype=torch.uint8)
    value = loss(x, y)
    assert value == 0
    assert torch.autograd.grad(value, x)[0].shape == shape


def test_a_graph_is_not_tied_to_whether_there_are_voxels():
    torch._dynamo.reset()

    def loss_of_the_chosen(x, y, chosen):
        n = chosen.nonzero().squeeze(1)
        return segloss.dice_loss(x[n], y[n])

    x, y = torch.randn(4, 3, 5), torch.randint(3, (4, 5))
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(loss_of_the_chosen, backend="aot_eager", fullgraph=True)
        for chosen in (torch.tensor([True, False, True, True]), torch.zeros(4, dtype=torch.bool)):
            assert_close(compiled(x, y, chosen), loss_of_the_chosen(x, y, chosen))
