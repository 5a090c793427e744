"""The Lovasz losses against a slow version in float64, and what their order of the voxels decides."""

from functools import partial

import pytest
import reference
import torch
from losses import value_and_gradient
from meaning import DICE_FOCAL, LOSS_ROWS, SIGMOID
from meaning import DTYPES as OF_ROW
from operators import options_of
from test_devices import without_kernels
from test_layouts import LAYOUTS
from test_target_table import target_for
from tolerances import assert_close, assert_same_bits
from torch_versions import ignores_warnings_of_opcheck

import segloss

SOFTMAX, HINGE = segloss.lovasz_softmax_loss, segloss.lovasz_hinge_loss
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
LOSSES = pytest.mark.parametrize("loss", [SOFTMAX, HINGE], ids=["softmax", "hinge"])
GROUPS = pytest.mark.parametrize("per_sample", [False, True])
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
SHAPES = pytest.mark.parametrize("shape", [(3, 4, 7), (2, 3, 5, 6), (2, 3, 4, 3, 5), (1, 2, 200), (5, 3, 1, 1), (3, 4)])

# More voxels than one part of the sort has, and of two.
LARGE = (2, 3, 150, 140)


def batch(shape, dtype=torch.float64, ignored=-100):
    """Logits, and labels in which some voxels are ignored."""
    x, y = 2 * torch.randn(shape, dtype=torch.float64), torch.randint(shape[1], shape[:1] + shape[2:])
    y[torch.rand(y.shape) < 0.2] = ignored
    return x.to(dtype), y


def masks(shape):
    return (torch.rand(shape) < 0.3).to(torch.uint8)


def assert_as_reference(loss, x, y, dtype=None, **options):
    slow = getattr(reference, loss.__name__)
    actual, expected = value_and_gradient(loss, x, y, **options), reference.value_and_gradient(slow, x, y, **options)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, dtype)


# ---- values and gradients ----


@SHAPES
@REDUCTIONS
@GROUPS
@pytest.mark.parametrize("classes", ["present", "all", [1], [2, 0]])
def test_the_softmax_loss_is_that_of_the_paper(classes, per_sample, reduction, shape):
    if not isinstance(classes, str) and max(classes) >= shape[1]:
        classes = [0]
    x, y = batch(shape)
    assert_as_reference(SOFTMAX, x, y, classes=classes, per_sample=per_sample, reduction=reduction)


@SHAPES
@REDUCTIONS
@GROUPS
@pytest.mark.parametrize("target", ["labels", "masks"])
def test_the_hinge_loss_is_that_of_the_paper(target, per_sample, reduction, shape):
    x, y = batch(shape)
    y = masks(shape) if target == "masks" else y
    assert_as_reference(HINGE, x, y, per_sample=per_sample, reduction=reduction)


@DTYPES
@GROUPS
@LOSSES
def test_every_dtype(loss, per_sample, dtype):
    x, y = batch((2, 3, 9, 8), dtype)
    assert_as_reference(loss, x, y, per_sample=per_sample)


@GROUPS
@LOSSES
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_the_class_dimension_may_be_any(loss, dim, per_sample):
    x, y = batch((2, 3, 4, 5))
    expected = value_and_gradient(loss, x, y, per_sample=per_sample)
    value, gradient = value_and_gradient(loss, x.movedim(1, dim), y, dim=dim, per_sample=per_sample)
    assert_close(value, expected[0])
    assert_close(gradient.movedim(dim, 1), expected[1])


@GROUPS
@LOSSES
def test_logits_without_a_batch_are_one_voxel(loss, per_sample):
    x, y = torch.randn(4, dtype=torch.float64), torch.tensor(2)
    assert_as_reference(loss, x, y, per_sample=per_sample)


@GROUPS
def test_probabilities(per_sample):
    x, y = batch((2, 3, 6, 5))
    assert_as_reference(SOFTMAX, x.softmax(1), y, activation=None, per_sample=per_sample)


def test_one_hot_labels():
    x, y = batch((2, 3, 6, 5), ignored=1)
    one_hot = torch.nn.functional.one_hot(y, 3).movedim(-1, 1)
    assert_same_bits(value_and_gradient(SOFTMAX, x, one_hot), value_and_gradient(SOFTMAX, x, y))


def test_one_channel_takes_a_map_of_0_and_1_of_any_shape_and_dtype():
    x, y = torch.randn(2, 1, 6, 5), masks((2, 1, 6, 5))
    expected = value_and_gradient(HINGE, x, y)
    for dtype in (torch.bool, torch.int64, torch.uint16, torch.float32, torch.float16):
        for target in (y.to(dtype), y.squeeze(1).to(dtype)):
            assert_same_bits(value_and_gradient(HINGE, x, target), expected)


@LOSSES
@pytest.mark.parametrize("row", LOSS_ROWS, ids=lambda row: f"C {row['C']}-{row['target']}-{row['dtype']}")
def test_a_target_means_what_the_table_says(row, loss):
    x = torch.randn(2, 1 if row["C"] == "1" else 3, 5)
    what = row[DICE_FOCAL if loss is SOFTMAX else SIGMOID]
    for dtype in OF_ROW[row["dtype"]]:
        target = target_for(what, row, dtype, "lovasz")
        if what == "error":
            with pytest.raises((ValueError, RuntimeError), match=r"\w+: expected .*[Gg]ot "):
                loss(x, target)
        else:
            assert_as_reference(loss, x, target.round() if what == "masks" and dtype.is_floating_point else target)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_masks_of_several_channels_with_ignored_voxels(dtype):
    x, y = torch.randn(2, 3, 6, 5, dtype=torch.float64), masks((2, 3, 6, 5))
    y[0, 1, :2], y[1, 2, 3] = 255, 255
    assert_as_reference(HINGE, x, y.to(dtype), ignore_index=255)


def test_regions_are_masks():
    x, y = torch.randn(2, 2, 6, 5), torch.randint(4, (2, 6, 5))
    as_masks = torch.stack([(y == 1) | (y == 3), y == 3], 1)
    expected = value_and_gradient(HINGE, x, as_masks)
    assert_same_bits(value_and_gradient(HINGE, x, y, regions=[(1, 3), (3,)]), expected)


def test_the_confident_voxels_of_float32_keep_their_order_and_digits():
    margins = torch.linspace(10, 60, 50, dtype=torch.float64)
    x = torch.stack([margins, torch.zeros(50, dtype=torch.float64)]).unsqueeze(0)
    y = torch.zeros(1, 50, dtype=torch.long)
    value, gradient = value_and_gradient(SOFTMAX, x.float(), y)
    expected, slope = reference.value_and_gradient(
        lambda x, y: reference.lovasz_extension(1 / (1 + (x[0, 0] - x[0, 1]).exp()), y == 0), x, y[0]
    )
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=0)


# ---- many voxels: as composed of torch's sort and cumulative sums ----


@GROUPS
@LOSSES
def test_a_large_batch_is_sorted_as_torch_sorts_it(loss, per_sample):
    x, y = batch(LARGE)
    actual = value_and_gradient(loss, x, y, per_sample=per_sample)
    with without_kernels():
        expected = value_and_gradient(loss, x, y, per_sample=per_sample)
    assert_close(actual[0], expected[0])
    assert_close(actual[1] * y.numel(), expected[1] * y.numel())


@DTYPES
@GROUPS
@LOSSES
def test_the_loss_of_a_large_batch_is_that_in_float64(loss, per_sample, dtype):
    x, y = batch(LARGE, dtype)
    assert_close(loss(x, y, per_sample=per_sample), loss(x.double(), y, per_sample=per_sample), dtype)


@GROUPS
@LOSSES
def test_equal_errors_of_a_large_batch_keep_the_order_of_their_voxels(loss, per_sample):
    x, y = torch.randint(-2, 2, LARGE) / 2, torch.randint(3, (LARGE[0], *LARGE[2:]))
    actual = value_and_gradient(loss, x.double(), y, per_sample=per_sample)
    with without_kernels():
        expected = value_and_gradient(loss, x.double(), y, per_sample=per_sample)
    assert_close(actual[1] * y.numel(), expected[1] * y.numel())


@GROUPS
@LOSSES
@pytest.mark.parametrize("shape", [LARGE, (40, 3, 11, 12)])
def test_the_same_bits_for_any_number_of_threads(shape, loss, per_sample, num_threads):
    x, y = batch(shape, torch.float32)
    num_threads(1)
    expected = value_and_gradient(loss, x, y, per_sample=per_sample)
    for threads in (2, 3, 7):
        num_threads(threads)
        assert_same_bits(value_and_gradient(loss, x, y, per_sample=per_sample), expected)


@LOSSES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_in_any_layout(layout, loss):
    x, y = batch((2, 19, 6, 10, 4), torch.float32)
    expected = value_and_gradient(loss, x, y)
    assert_same_bits(value_and_gradient(loss, LAYOUTS[layout](x), y), expected)


# ---- ties and errors of 0 ----


@GROUPS
@LOSSES
def test_equal_errors_keep_the_order_of_their_voxels(loss, per_sample):
    x, y = torch.zeros(2, 3, 9, dtype=torch.float64), torch.randint(3, (2, 9))
    x[:, :, 4:] = 1
    assert_as_reference(loss, x, y, per_sample=per_sample)


def test_an_error_of_0_has_no_gradient():
    x = torch.tensor([[[2.0, -3.0, 0.5, 0.25]]], requires_grad=True)  # beyond the margin, beyond it, within it, wrong
    HINGE(x, torch.tensor([[1, 0, 1, 0]])).backward()
    assert torch.equal(x.grad.ne(0), torch.tensor([[[False, False, True, True]]]))


def test_a_perfect_prediction_has_a_loss_of_0():
    y = torch.tensor([[0, 1, 2, 1]])
    p = torch.nn.functional.one_hot(y, 3).movedim(-1, 1).float().requires_grad_()
    loss = SOFTMAX(p, y, activation=None)
    loss.backward()
    assert loss == 0
    assert not p.grad.any()


# ---- nothing, everything, one ----


@GROUPS
@LOSSES
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (0, 3, 0, 2), (0, 3)])
def test_the_loss_of_no_voxel_is_0_with_zero_gradient(shape, loss, per_sample):
    value, gradient = value_and_gradient(loss, torch.zeros(shape), torch.zeros(shape[:1] + shape[2:]).long())
    assert value == 0
    assert gradient.shape == shape


@GROUPS
@LOSSES
def test_the_loss_of_ignored_voxels_is_0_with_zero_gradient(loss, per_sample):
    x, y = torch.randn(2, 3, 8), torch.full((2, 8), 255)
    value, gradient = value_and_gradient(loss, x, y, ignore_index=255, per_sample=per_sample)
    assert value == 0
    assert not gradient.any()


@GROUPS
@LOSSES
def test_ignored_voxels_are_as_if_absent(loss, per_sample):
    x, y = torch.randn(2, 3, 10, dtype=torch.float64), torch.randint(3, (2, 10))
    expected = value_and_gradient(loss, x[:, :, :6], y[:, :6], per_sample=per_sample)
    y[:, 6:], x[0, :, 7], x[1, 0, 8] = 9, torch.nan, torch.inf
    value, gradient = value_and_gradient(loss, x, y, ignore_index=9, per_sample=per_sample)
    assert_close(value, expected[0])
    assert_close(gradient[:, :, :6], expected[1])
    assert not gradient[:, :, 6:].any()


def test_a_sample_of_ignored_voxels_counts_as_0_in_the_mean_of_samples():
    x, y = torch.randn(2, 3, 8), torch.randint(3, (2, 8))
    y[1] = -100
    assert_close(SOFTMAX(x, y, per_sample=True), SOFTMAX(x[:1], y[:1]) / 2)


def test_the_loss_of_an_absent_class_is_its_largest_error():
    x, y = torch.randn(1, 3, 20), torch.randint(2, (1, 20))
    terms = SOFTMAX(x, y, classes="all", reduction="none")
    assert_close(terms[2], x.softmax(1)[0, 2].max())
    assert_close(SOFTMAX(x, y), terms[:2].mean())
    assert SOFTMAX(x, y, reduction="none")[2] == 0


def test_the_loss_of_a_class_that_fills_all_is_its_mean_error():
    x, y = torch.randn(1, 3, 20), torch.ones(1, 20, dtype=torch.long)
    assert_close(SOFTMAX(x, y), 1 - x.softmax(1)[0, 1].mean())


def test_a_class_that_is_not_chosen_has_no_term():
    x, y = batch((2, 4, 9))
    terms = SOFTMAX(x, y, classes="all", reduction="none")
    assert_close(SOFTMAX(x, y, classes=[3, 1], reduction="none"), terms[[3, 1]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_logit_that_is_not_finite_is_not_hidden(value):
    x, y = torch.randn(1, 2, 6), torch.tensor([[0, 1, 0, 1, 1, 0]])
    x[0, 0, 1] = value
    assert SOFTMAX(x, y).isnan()
    assert torch.equal(HINGE(x, y, reduction="none")[0].isnan(), torch.tensor(value != value))
    assert not HINGE(x, y).isfinite()


# ---- derivatives ----


def smooth_batch(shape):
    """Logits whose errors are no ties and not 0."""
    x = torch.randperm(torch.Size(shape).numel()).view(shape) / 40.0 - 1
    return x.double().requires_grad_(), torch.randint(shape[1], shape[:1] + shape[2:])


@GROUPS
@LOSSES
def test_gradients_are_those_of_finite_differences(loss, per_sample):
    x, y = smooth_batch((2, 3, 4))
    function = partial(loss, target=y, per_sample=per_sample)
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradcheck(function, x, check_forward_ad=True, check_backward_ad=False)
    assert torch.autograd.gradgradcheck(function, x)


@GROUPS
@LOSSES
def test_vmap_is_a_loop(loss, per_sample):
    x, y = torch.randn(4, 2, 3, 5), torch.randint(3, (4, 2, 5))
    call = partial(loss, per_sample=per_sample)
    gradients = torch.func.vmap(torch.func.grad(call))(x, y)
    assert_close(torch.func.vmap(call)(x, y), torch.stack([call(*each) for each in zip(x, y, strict=True)]))
    for each, *pair in zip(gradients, x, y, strict=True):
        assert_close(each, value_and_gradient(call, *pair)[1])


@ignores_warnings_of_opcheck
@pytest.mark.parametrize("options", [{}, {"group_size": 1}, {"activation": "none", "hinge": True}])
def test_opcheck(options):
    x, y = batch((2, 3, 4, 5), torch.float32)
    arguments = ("lovasz", x, y, None, None, *options_of("lovasz", **options))
    torch.library.opcheck(torch.ops.segloss.lovasz.default, (x.clone().requires_grad_(), y), options)
    torch.library.opcheck(torch.ops.segloss.lovasz_forward.default, arguments)
    loss, _, slopes = torch.ops.segloss.lovasz_forward(*arguments)
    torch.library.opcheck(torch.ops.segloss.lovasz_backward.default, (torch.rand_like(loss), slopes, *arguments))


@pytest.mark.parametrize("classes", ["present", "all", [2, 0]])
def test_a_compiled_loss(classes):
    torch.compiler.reset()
    x, y = batch((2, 3, 4, 5))
    loss = partial(SOFTMAX, classes=classes)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 3, 4, 5), (3, 3, 6, 2)):
        x, y = batch(shape)
        for a, e in zip(value_and_gradient(compiled, x, y), value_and_gradient(loss, x, y), strict=True):
            assert_close(a, e)


# ---- bad input ----

X, Y = torch.randn(2, 3, 4), torch.randint(3, (2, 4))
M = masks((2, 3, 4))
BAD = {
    "one channel": (SOFTMAX, X[:, :1], Y, {}, ValueError, "expected more than one channel"),
    "probabilities as target": (SOFTMAX, X, X.softmax(1), {}, RuntimeError, "expected class labels, got class prob"),
    "a sigmoid": (
        SOFTMAX,
        X,
        Y,
        {"activation": "sigmoid"},
        ValueError,
        "'softmax' or None, got 'sigmoid'. Use lovasz_h",
    ),
    "logits as probabilities": (
        SOFTMAX,
        9 + X,
        Y,
        {"activation": None},
        RuntimeError,
        "expected probabilities in [0, 1]",
    ),
    "an unknown word": (SOFTMAX, X, Y, {"classes": "some"}, ValueError, "expected classes to be 'present' or 'all'"),
    "no class": (SOFTMAX, X, Y, {"classes": []}, ValueError, "expected different classes in [0, 3), one at least"),
    "a class twice": (SOFTMAX, X, Y, {"classes": [1, 1]}, ValueError, "expected different classes in [0, 3)"),
    "a class too many": (SOFTMAX, X, Y, {"classes": [3]}, ValueError, "in [0, 3), one at least, got [3]"),
    "classes of another type": (SOFTMAX, X, Y, {"classes": 1}, TypeError, "'all' or a sequence of ints, got 1"),
    "a float as class": (SOFTMAX, X, Y, {"classes": [1.0]}, TypeError, "or a sequence of ints, got [1.0]"),
    "a bad label": (SOFTMAX, X, Y + 3, {}, IndexError, "is out of bounds"),
    "a bad reduction": (SOFTMAX, X, Y, {"reduction": "max"}, ValueError, "expected reduction to be 'mean', 'sum' or"),
    "a number as flag": (HINGE, X, Y, {"per_sample": 2}, ValueError, "expected per_sample to be True or False, got 2"),
    "predicted labels": (HINGE, Y, Y, {}, TypeError, "expected floating logits"),
    "an integer mask of 0 and 255": (HINGE, X, 255 * M, {}, RuntimeError, "expected 0 and 1 in an integer target"),
    "a soft mask": (HINGE, X, M * 0.5, {}, RuntimeError, "expected 0 and 1 in a floating target that is a mask"),
    "a mask of nan": (
        HINGE,
        X,
        M * torch.nan,
        {},
        RuntimeError,
        "expected 0 and 1 in a floating target that is a mask",
    ),
    "ignored zeros": (HINGE, X, M, {"ignore_index": 0}, RuntimeError, "expected an ignore_index that is no value of a"),
    "another shape": (HINGE, X, Y[:, :3], {}, RuntimeError, "expected labels of shape [2, 4]"),
}


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize(("loss", "x", "y", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(loss, x, y, options, error, message, with_kernels):
    def call():
        with pytest.raises(error) as raised:
            loss(x, y, **options)
        assert message in str(raised.value)
        assert str(raised.value).startswith(loss.__name__ + ": ")

    if with_kernels:
        call()
        return
    with without_kernels():
        call()


def test_the_backward_operator_refuses_slopes_of_another_shape():
    arguments = ("lovasz", X, Y, None, None, *options_of("lovasz"))
    loss, _, slopes = torch.ops.segloss.lovasz_forward(*arguments)
    with pytest.raises(RuntimeError, match="expected slopes of input's shape"):
        torch.ops.segloss.lovasz_backward(loss, slopes[:1], *arguments)
    with pytest.raises(RuntimeError, match="expected grad_loss"):
        torch.ops.segloss.lovasz_backward(loss[:, :2], slopes, *arguments)


def test_a_group_is_a_part_of_the_batch():
    with pytest.raises(ValueError, match="expected group_size to divide the batch of 2, got 3"):
        torch.ops.segloss.lovasz(X, Y, group_size=3)
