"""soft_stats: sums of p g, p and g for each sample and class, of every target, layout and size; their derivatives."""

import itertools

import pytest
import reference
import torch
from tolerances import SUM_RTOL, assert_close, assert_relative, assert_same_bits
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import one_hot
from torch_versions import ignores_warnings_of_opcheck

import segloss

INTEGERS = [
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ACTIVATIONS = ["softmax", "sigmoid", None]
INF, NAN = float("inf"), float("nan")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(
        shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def logits_of(*shape, activation="softmax", seed=0, dtype=torch.float32):
    """Logits, or probabilities where no activation makes them."""
    x = random(*shape, seed=seed, dtype=torch.float64)
    return (x if activation else x.sigmoid()).to(dtype)


def labels_of(*shape, classes=3, seed=1):
    return torch.randint(classes, shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def mask_of(*shape, seed=1):
    return labels_of(*shape, classes=2, seed=seed)


def voxel_weight_of(*shape, seed=2):
    """Weights, about a third of which are 0."""
    return random(*shape, seed=seed).clamp(min=-0.4) + 0.4


def scalar(stats):
    """A combination of the sums in which each has a different factor, so that its gradient tests all of them."""
    intersection, prediction = stats[:2]
    factors = torch.arange(1.0, 1 + 2 * intersection.numel(), dtype=torch.float64).sin()
    a, b = factors.reshape(2, *intersection.shape)
    return (a * intersection + b * prediction).sum()


def sums(input, target, **options):
    stats = segloss.soft_stats(input, target, **options)
    return stats.intersection, stats.prediction, stats.target


def sums_and_gradient(compute, input, target, **options):
    x = input.detach().requires_grad_()
    stats = compute(x, target, **options)
    (gradient,) = torch.autograd.grad(scalar(stats), x)
    return *(s.detach() for s in stats), gradient


def assert_is_reference(input, target, expected_target=None, **options):
    """Sums and gradient equal the reference's for expected_target, by default target itself."""
    expected_target = target if expected_target is None else expected_target
    expected = sums_and_gradient(reference.soft_stats, input.double(), expected_target, **options)
    actual = sums_and_gradient(sums, input, target, **options)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert_close(a, e, input.dtype)


# ---- what it returns ----


def test_the_sums_of_two_voxels_by_hand():
    stats = segloss.soft_stats(torch.tensor([[[0.2, 0.6], [0.8, 0.4]]]), torch.tensor([[1, 0]]), activation=None)
    assert_close(stats.intersection, torch.tensor([[0.6, 0.8]]), torch.float32)
    assert_close(stats.prediction, torch.tensor([[0.8, 1.2]]), torch.float32)
    assert_close(stats.target, torch.tensor([[1.0, 1.0]]), torch.float32)


def test_true_positives_false_positives_and_false_negatives():
    stats = segloss.soft_stats(torch.tensor([[[0.2, 0.6], [0.8, 0.4]]]), torch.tensor([[1, 0]]), activation=None)
    assert_close(stats.tp, torch.tensor([[0.6, 0.8]]), torch.float32)
    assert_close(stats.fp, torch.tensor([[0.2, 0.4]]), torch.float32)
    assert_close(stats.fn, torch.tensor([[0.4, 0.2]]), torch.float32)


def test_softmax_of_labels_is_the_default():
    x, labels = random(2, 3, 5), labels_of(2, 5)
    labels[0, 1] = -100
    options = {"activation": "softmax", "squared": False, "ignore_index": -100, "voxel_weight": None, "dim": 1}
    assert_same_bits(sums(x, labels), sums(x, labels, **options))


def test_a_loss_of_ones_own_has_a_gradient():
    x, labels = random(2, 3, 5).requires_grad_(), labels_of(2, 5)
    stats = segloss.soft_stats(x, labels)
    jaccard = stats.intersection / (stats.prediction + stats.target - stats.intersection)
    (1 - jaccard.mean()).backward()
    p, g = x.detach().clone().requires_grad_(), one_hot(labels, 3).movedim(-1, 1)
    i, u = (p.softmax(1) * g).sum(2), (p.softmax(1) + g - p.softmax(1) * g).sum(2)
    (1 - (i / u).mean()).backward()
    assert_close(x.grad, p.grad)


# ---- labels ----


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5)], ids=["plain", "kept class dimension"])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_labels_of_every_dtype_and_both_shapes(activation, dtype, shape):
    labels = labels_of(*shape)
    assert_is_reference(logits_of(2, 3, 4, 5, activation=activation), labels.to(dtype), labels, activation=activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bool_holds_labels_of_two_classes(activation):
    labels = labels_of(2, 4, 5, classes=2)
    x = logits_of(2, 2, 4, 5, activation=activation)
    assert_is_reference(x, labels.bool(), labels, activation=activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("ignore_index", [-100, 255, 1])
def test_ignored_labels_enter_no_sum(ignore_index, activation):
    labels = labels_of(2, 4, 5).to(torch.int16)
    labels[0, 2], labels[1, :, 3] = ignore_index, ignore_index
    x = logits_of(2, 3, 4, 5, activation=activation)
    assert_is_reference(x, labels, activation=activation, ignore_index=ignore_index)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ignoring_voxels_is_dropping_them(activation):
    x, labels = logits_of(2, 3, 6, activation=activation), labels_of(2, 6)
    labels[:, [1, 4]] = 255
    kept = [0, 2, 3, 5]
    *actual, gradient = sums_and_gradient(sums, x, labels, activation=activation, ignore_index=255)
    *expected, kept_gradient = sums_and_gradient(sums, x[..., kept], labels[:, kept], activation=activation)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, x.dtype)
    assert_close(gradient[..., kept], kept_gradient)
    assert torch.equal(gradient[..., [1, 4]], torch.zeros(2, 3, 2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_all_voxels_ignored_gives_zeros_and_a_zero_gradient(activation):
    x = logits_of(2, 3, 4, activation=activation)
    for values in sums_and_gradient(sums, x, torch.full((2, 4), -100), activation=activation):
        assert torch.equal(values, torch.zeros_like(values))


@pytest.mark.parametrize("spoiled", [NAN, INF, -INF])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("how", ["ignore_index", "voxel_weight"])
@pytest.mark.parametrize("num_voxels", [5, 130])
def test_nan_and_inf_on_a_voxel_that_does_not_count_have_no_effect(num_voxels, how, activation, spoiled):
    clean, labels, v = logits_of(2, 3, num_voxels, activation=activation), labels_of(2, num_voxels), None
    if how == "ignore_index":
        labels[0, 3] = labels[1, 0] = -100
    else:
        v = torch.ones(2, num_voxels)
        v[0, 3] = v[1, 0] = 0
    x = clean.clone()
    x[0, :, 3], x[1, 1, 0] = spoiled, spoiled
    options = {"activation": activation, "voxel_weight": v}
    assert_same_bits(sums_and_gradient(sums, x, labels, **options), sums_and_gradient(sums, clean, labels, **options))


@pytest.mark.parametrize("spoiled", [NAN, INF])
def test_nan_and_inf_on_a_voxel_that_counts_are_seen(spoiled):
    x = random(2, 3, 4)
    x[0, 1, 2] = spoiled
    _, prediction, _ = sums(x, labels_of(2, 4))
    assert prediction[0].isnan().all()
    assert prediction[1].isfinite().all()


# ---- one-hot ----


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
def test_integer_one_hot_is_labels(dtype):
    x, labels = random(2, 3, 4, 5), labels_of(2, 4, 5)
    target = one_hot(labels, 3).movedim(-1, 1).to(dtype)
    assert_same_bits(sums_and_gradient(sums, x, target), sums_and_gradient(sums, x, labels))


def test_the_class_of_one_hot_may_be_ignored():
    x, labels = random(2, 3, 4), labels_of(2, 4)
    target = one_hot(labels, 3).movedim(-1, 1)
    expected = sums_and_gradient(sums, x, labels, ignore_index=2)
    assert_same_bits(sums_and_gradient(sums, x, target, ignore_index=2), expected)


def test_a_voxel_that_is_not_one_hot_is_named_in_torchs_words():
    target = one_hot(labels_of(2, 4, 5), 3).movedim(-1, 1).contiguous()
    target[1, :, 2, 3] = torch.tensor([1, 0, 1])
    with pytest.raises(
        RuntimeError, match=r"soft_stats: Expected floating point type for target with class probabilities, got Long"
    ) as raised:
        segloss.soft_stats(random(2, 3, 4, 5), target)
    assert "2, 3]" in str(raised.value)


# ---- soft labels ----


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("squared", [False, True])
def test_soft_labels_are_multiplied_plainly(squared, dtype):
    target = random(2, 3, 4, 5, seed=1).softmax(1).to(dtype)
    assert_is_reference(random(2, 3, 4, 5), target, squared=squared)


def test_soft_labels_need_not_sum_to_one():
    assert_is_reference(random(2, 3, 4), 2 * random(2, 3, 4, seed=1))


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_soft_labels_of_one_class(activation):
    target = random(2, 1, 4, seed=1).sigmoid()
    assert_is_reference(logits_of(2, 1, 4, activation=activation), target, activation=activation)


def test_a_softmax_over_one_channel_is_refused():
    with pytest.raises(ValueError, match=r"soft_stats: expected more than one channel .* Use activation='sigmoid'"):
        segloss.soft_stats(random(2, 1, 4), labels_of(2, 4, classes=1))


@pytest.mark.parametrize("ignore_index", [0, 2, 255])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_soft_labels_with_an_ignore_index_of_a_class_are_refused(activation, ignore_index):
    with pytest.raises(RuntimeError, match="ignore_index"):
        segloss.soft_stats(torch.rand(2, 3), torch.rand(2, 3), activation=activation, ignore_index=ignore_index)


def test_soft_labels_with_a_negative_ignore_index_are_accepted():
    x, target = random(2, 3), random(2, 3, seed=1).softmax(1)
    assert_same_bits(sums(x, target, ignore_index=-1), sums(x, target))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_soft_labels_that_require_a_gradient_get_one(activation):
    x = logits_of(2, 3, 4, activation=activation, dtype=torch.float64).requires_grad_()
    target = random(2, 3, 4, seed=1, dtype=torch.float64).softmax(1).requires_grad_()

    def loss(compute):
        i, p, t = compute(x, target, activation=activation, squared=True)
        return scalar((i, p)) + (t * t).sum()

    expected = torch.autograd.grad(loss(reference.soft_stats), (x, target))
    for a, e in zip(torch.autograd.grad(loss(sums), (x, target)), expected, strict=True):
        assert_close(a, e)


# ---- a mask per class ----


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool, *FLOATS])
@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_a_mask_per_class(activation, dtype, num_classes):
    shape = (2, num_classes, 4, 5)
    mask = mask_of(*shape)
    x = logits_of(*shape, activation=activation)
    assert_is_reference(x, mask.to(dtype), mask.double(), activation=activation, squared=True)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_a_mask_of_fractions(activation):
    target = random(2, 3, 4, seed=1).sigmoid()
    assert_is_reference(logits_of(2, 3, 4, activation=activation), target, activation=activation, squared=True)


def test_a_mask_without_spatial_dimensions():
    assert_is_reference(random(4, 3), mask_of(4, 3), activation="sigmoid")


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("ignore_index", [255, -1])
@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_a_voxel_with_ignore_index_in_any_class_of_an_integer_mask_is_left_out(activation, ignore_index, num_classes):
    mask = mask_of(2, num_classes, 4, 5).to(torch.int16)
    mask[0, 0, 1, 2] = mask[1, -1, 3] = ignore_index
    x = logits_of(2, num_classes, 4, 5, activation=activation)
    assert_is_reference(x, mask, activation=activation, ignore_index=ignore_index)


@pytest.mark.parametrize("ignore_index", [0, 1])
@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_ignoring_a_value_of_the_mask_is_refused(activation, ignore_index):
    with pytest.raises(RuntimeError, match=r"soft_stats: .*ignore_index"):
        segloss.soft_stats(torch.rand(2, 3, 4), mask_of(2, 3, 4), activation=activation, ignore_index=ignore_index)


@pytest.mark.parametrize("activation", ["sigmoid", None])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_the_first_value_of_an_integer_mask_that_is_not_0_or_1_is_named(dtype, activation):
    mask = mask_of(2, 3, 4, 5).to(dtype)
    mask[1, 0, 2, 3], mask[1, 2, 3, 4] = 7, 9
    with pytest.raises(RuntimeError, match=r"soft_stats: .*\b7\b.*\[1, 0, 2, 3\]"):
        segloss.soft_stats(torch.rand(2, 3, 4, 5), mask, activation=activation)


def test_the_bad_value_of_a_mask_that_is_named_is_the_first_in_the_order_of_the_mask():
    """A walk over the voxels meets the bad value of the second class first."""
    mask = torch.zeros(1, 2, 5, dtype=torch.int64)
    mask[0, 0, 4], mask[0, 1, 0] = 5, 6
    with pytest.raises(RuntimeError, match=r"\b5\b.*\[0, 0, 4\]"):
        segloss.soft_stats(torch.rand(1, 2, 5), mask, activation="sigmoid")


def test_a_negative_value_of_a_mask_is_named():
    with pytest.raises(RuntimeError, match=r"-1\b.*\[0, 1\]"):
        segloss.soft_stats(torch.rand(1, 2), torch.tensor([[0, -1]]), activation="sigmoid")


# ---- one voxel without a batch ----


@pytest.mark.parametrize("target", [torch.tensor(2), torch.tensor([2]), torch.tensor([0.5, 0.25, 0.25])])
def test_one_unbatched_voxel_is_a_batch_of_one(target):
    x = random(3)
    assert_is_reference(x, target)
    assert segloss.soft_stats(x, target).intersection.shape == (1, 3)


# ---- voxel weights ----


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5)], ids=["plain", "kept class dimension"])
@pytest.mark.parametrize("target", ["labels", "soft labels", "mask"])
@pytest.mark.parametrize("squared", [False, True])
def test_voxel_weights_weigh_every_sum(squared, target, shape):
    targets = {
        "labels": labels_of(2, 4, 5),
        "soft labels": random(2, 3, 4, 5, seed=1).softmax(1),
        "mask": mask_of(2, 3, 4, 5),
    }
    options = {"activation": "sigmoid" if target == "mask" else "softmax", "voxel_weight": voxel_weight_of(*shape)}
    assert_is_reference(random(2, 3, 4, 5), targets[target], squared=squared, **options)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("input_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_voxel_weights_of_every_float_dtype(input_dtype, dtype):
    v = voxel_weight_of(2, 4).to(dtype)
    assert_is_reference(random(2, 3, 4, dtype=input_dtype), labels_of(2, 4), voxel_weight=v)


def test_a_voxel_weight_of_zero_leaves_the_voxel_out():
    x, labels, v = random(2, 3, 6), labels_of(2, 6), torch.ones(2, 6)
    v[:, [1, 4]] = 0
    ignored = labels.clone()
    ignored[:, [1, 4]] = -100
    assert_same_bits(sums_and_gradient(sums, x, labels, voxel_weight=v), sums_and_gradient(sums, x, ignored))


def test_all_voxel_weights_zero_give_zeros():
    for values in sums_and_gradient(sums, random(2, 3, 4), labels_of(2, 4), voxel_weight=torch.zeros(2, 4)):
        assert torch.equal(values, torch.zeros_like(values))


def test_a_voxel_weight_that_requires_a_gradient_is_refused():
    with pytest.raises(RuntimeError, match=r"soft_stats: .*voxel_weight"):
        segloss.soft_stats(random(2, 3, 4), labels_of(2, 4), voxel_weight=torch.ones(2, 4, requires_grad=True))


@pytest.mark.parametrize("shape", [(2,), (4,), (2, 3, 4), (2, 2, 4), (1, 4)])
def test_a_voxel_weight_of_another_shape_is_refused(shape):
    with pytest.raises(RuntimeError, match=r"soft_stats: .*voxel_weight"):
        segloss.soft_stats(random(2, 3, 4), labels_of(2, 4), voxel_weight=torch.ones(shape))


# ---- dim ----


@pytest.mark.parametrize("dim", [-1, 0, 2, 1, -2])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_labels_with_the_classes_in_any_dimension(activation, keepdim, dim):
    x = logits_of(4, 4, 4, 4, activation=activation)
    labels = labels_of(4, 4, 4, classes=4)
    v = voxel_weight_of(4, 4, 4)
    if keepdim:
        labels, v = labels.unsqueeze(dim if dim >= 0 else dim + 4), v.unsqueeze(dim if dim >= 0 else dim + 4)
    assert_is_reference(x, labels, activation=activation, dim=dim, voxel_weight=v)


@pytest.mark.parametrize("dim", [-1, 0, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_targets_of_inputs_shape_with_the_classes_in_any_dimension(activation, dim):
    x, target = logits_of(3, 4, 3, 5, activation=activation), random(3, 4, 3, 5, seed=1).sigmoid()
    assert_is_reference(x, target, activation=activation, dim=dim)


def test_the_classes_may_be_the_first_of_two_dimensions():
    assert_is_reference(random(3, 5), labels_of(5), dim=0)


@pytest.mark.parametrize("dim", [3, -4])
def test_a_dim_that_input_lacks_is_an_index_error(dim):
    with pytest.raises(IndexError):
        segloss.soft_stats(random(2, 3, 4), labels_of(2, 4), dim=dim)


# ---- dtypes, ranks and layouts ----


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("spatial", [(), (7,), (4, 5), (3, 4, 2), (2, 3, 2, 2)], ids=lambda sizes: f"{len(sizes)}d")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_dtype_and_rank(activation, spatial, dtype):
    x, labels = logits_of(4, 3, *spatial, activation=activation, dtype=dtype), labels_of(4, *spatial)
    assert_is_reference(x, labels, activation=activation, squared=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_half_logits_have_the_sums_of_their_float32_values(activation, dtype):
    """A float16 sum overflows above 65 504, and a bfloat16 sum stops growing at 256."""
    x = logits_of(1, 2, 300_000, activation=activation, dtype=dtype)
    labels = torch.zeros(1, 300_000, dtype=torch.uint8)
    for actual, expected in zip(
        sums(x, labels, activation=activation), sums(x.float(), labels, activation=activation), strict=True
    ):
        assert_relative(actual, expected, SUM_RTOL)


def moved(x, dim):
    """x with dimension `dim` fastest in memory."""
    return x.movedim(dim, -1).contiguous().movedim(-1, dim)


def cropped(x):
    """A part of a larger tensor of nan."""
    big = torch.full((x.shape[0], x.shape[1] + 1, *(size + 3 for size in x.shape[2:])), NAN, dtype=x.dtype)
    return big[:, 1:, 1:-2, 2:-1, :-3].copy_(x)


def strided(x):
    """Every second element of every dimension."""
    big = torch.full([2 * size for size in x.shape], NAN, dtype=x.dtype)
    return big[::2, 1::2, ::2, 1::2, ::2].copy_(x)


SHAPE = (2, 3, 6, 10, 4)
DENSE = {
    "channels_last_3d": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "batch fastest": lambda x: moved(x, 0),
    "transposed": lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
    "reversed": lambda x: x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
}
LAYOUTS = {**DENSE, "cropped": cropped, "strided": strided}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_of_any_layout_give_the_bits_of_the_contiguous_copy(layout, activation, dtype):
    x, labels = logits_of(*SHAPE, activation=activation, dtype=dtype), labels_of(2, 6, 10, 4)
    options = {"activation": activation, "squared": True, "voxel_weight": voxel_weight_of(2, 6, 10, 4)}
    expected = sums_and_gradient(sums, x, labels, **options)
    assert_same_bits(sums_and_gradient(sums, LAYOUTS[layout](x), labels, **options), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", DENSE)
def test_the_gradient_has_the_strides_of_dense_logits(layout, activation):
    x = DENSE[layout](logits_of(*SHAPE, activation=activation))
    gradient = sums_and_gradient(sums, x, labels_of(2, 6, 10, 4), activation=activation)[-1]
    assert gradient.stride() == x.stride()


def test_the_gradient_in_two_dimensions_is_channels_last_where_input_is():
    x = random(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    gradient = sums_and_gradient(sums, x, labels_of(2, 4, 5))[-1]
    assert gradient.stride() == x.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_soft_labels_of_any_layout_give_the_bits_of_the_contiguous_copy(activation, layout):
    x, target = logits_of(*SHAPE, activation=activation), random(*SHAPE, seed=1).sigmoid()
    expected = sums_and_gradient(sums, x, target, activation=activation)
    assert_same_bits(sums_and_gradient(sums, x, LAYOUTS[layout](target), activation=activation), expected)


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_masks_of_any_layout_give_the_bits_of_the_contiguous_copy(dtype, layout):
    x, mask = random(*SHAPE), mask_of(*SHAPE).to(dtype)
    expected = sums_and_gradient(sums, x, mask, activation="sigmoid")
    assert_same_bits(sums_and_gradient(sums, x, DENSE[layout](mask), activation="sigmoid"), expected)


@pytest.mark.parametrize("keepdim", [False, True])
def test_labels_and_voxel_weights_that_are_not_contiguous(keepdim):
    x = random(2, 3, 6, 10)
    labels = labels_of(2, 10, 12).to(torch.uint8).transpose(1, 2)[:, ::2]
    v = voxel_weight_of(2, 10, 12).transpose(1, 2)[:, ::2]
    if keepdim:
        labels, v = labels.unsqueeze(1), v.unsqueeze(1)
    expected = sums_and_gradient(sums, x, labels.contiguous(), voxel_weight=v.contiguous())
    assert_same_bits(sums_and_gradient(sums, x, labels, voxel_weight=v), expected)


@pytest.mark.parametrize("expanded_dim", [0, 1, 2, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_expanded_logits(activation, expanded_dim):
    sizes = [2, 3, 6, 10]
    size_1 = [1 if d == expanded_dim else size for d, size in enumerate(sizes)]
    x, labels = logits_of(*size_1, activation=activation).expand(sizes), labels_of(2, 6, 10)
    expected = sums_and_gradient(sums, x.contiguous(), labels, activation=activation)
    assert_same_bits(sums_and_gradient(sums, x, labels, activation=activation), expected)


# ---- the ends of blocks and of chunks of classes ----


@pytest.mark.parametrize("num_voxels", [1, 2, 63, 64, 65, 127, 128, 129, 4095, 4097])
@pytest.mark.parametrize("memory", ["planar", "interleaved"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_number_of_voxels(activation, memory, num_voxels):
    """Samples end within a block of 64 voxels; the sums of neighbouring samples must not mix."""
    x, labels = logits_of(3, 3, num_voxels, activation=activation), labels_of(3, num_voxels)
    labels[:, 1::7] = -100
    x = moved(x, 1) if memory == "interleaved" else x
    assert_is_reference(x, labels, activation=activation, squared=True)


@pytest.mark.parametrize("num_samples", [1, 7, 200])
def test_many_small_samples(num_samples):
    assert_is_reference(random(num_samples, 3, 5), labels_of(num_samples, 5))
    assert_is_reference(random(num_samples, 3), labels_of(num_samples))


@pytest.mark.parametrize("num_classes", [1, 2, 3, 5, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300])
@pytest.mark.parametrize("memory", ["planar", "interleaved"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_number_of_classes(dtype, activation, memory, num_classes):
    if num_classes == 1 and activation == "softmax":
        pytest.skip("a softmax has more than one channel")
    x = logits_of(2, num_classes, 70, activation=activation, dtype=dtype)
    labels = labels_of(2, 70, classes=num_classes)
    labels[0, 5] = -100
    x = moved(x, 1) if memory == "interleaved" else x
    assert_is_reference(x, labels, activation=activation, squared=num_classes % 2 == 0)


@pytest.mark.parametrize("num_classes", [1, 64, 65, 128, 129, 300])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["soft", "mask"])
def test_every_number_of_classes_of_a_target_of_inputs_shape(kind, activation, num_classes):
    if kind == "mask" and activation == "softmax":
        pytest.skip("a softmax has no integer masks")
    if num_classes == 1 and activation == "softmax":
        pytest.skip("a softmax has more than one channel")
    shape = (2, num_classes, 70)
    target = mask_of(*shape) if kind == "mask" else random(*shape, seed=1).sigmoid()
    assert_is_reference(logits_of(*shape, activation=activation), target, activation=activation, squared=True)


@pytest.mark.parametrize("num_classes", [2, 64, 128, 129, 257])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_class_may_be_the_label_and_the_largest(activation, num_classes):
    x = torch.eye(num_classes) * (5 if activation else 1)
    assert_is_reference(x, torch.arange(num_classes), activation=activation)


def test_a_block_whose_voxels_are_all_ignored():
    x, labels = random(1, 3, 130), labels_of(1, 130)
    labels[:, :64] = -100
    assert_is_reference(x, labels)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (0, 3)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_voxel_gives_zeros(activation, shape):
    labels = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    *stats, gradient = sums_and_gradient(sums, torch.zeros(shape), labels, activation=activation)
    for values in stats:
        assert torch.equal(values, torch.zeros(shape[:2], dtype=values.dtype))
    assert gradient.shape == shape


# ---- saturation and precision ----


@pytest.mark.parametrize("margin", [100.0, 1e4, 3e38])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_saturated_logits_have_finite_sums_and_gradients(activation, margin):
    x, labels = margin * random(2, 3, 50).sign(), labels_of(2, 50)
    assert_is_reference(x, labels, activation=activation, squared=True)


def test_minus_inf_is_a_probability_of_zero():
    x = torch.tensor([[1.0, -INF, 0.5], [-INF, 2.0, -INF]])
    assert_is_reference(x, torch.tensor([1, 1]))


def test_infinite_logits_of_a_sigmoid_are_probabilities_of_0_and_1():
    x = torch.tensor([[INF, -INF, 0.5]])
    assert_is_reference(x, torch.tensor([[1, 0, 1]]), activation="sigmoid", squared=True)


def test_a_sum_of_equal_probabilities_does_not_drift():
    """Added one by one in float32, thirds would be off in the fifth digit."""
    num_voxels = 2**20 + 1
    x, labels = torch.zeros(1).expand(1, 3, num_voxels), torch.zeros(1, dtype=torch.uint8).expand(1, num_voxels)
    intersection, prediction, target = sums(x, labels)
    assert_relative(prediction, torch.full((1, 3), num_voxels / 3), SUM_RTOL)
    assert_relative(intersection, torch.tensor([[num_voxels / 3, 0, 0]]), SUM_RTOL)
    assert torch.equal(target.double(), torch.tensor([[num_voxels, 0, 0]]).double())


# ---- the same bits ----


@pytest.fixture(scope="module")
def large():
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    labels = torch.randint(5, (2, 1, 37, 41, 30), generator=generator).to(torch.uint8)
    labels[:, :, 3] = 255
    return torch.randn(2, 5, 37, 41, 30, generator=generator), labels


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_for_any_number_of_threads(dtype, activation, large, num_threads):
    x, labels = large
    x = x if activation else x.sigmoid()
    options = {"activation": activation, "ignore_index": 255, "squared": True}
    num_threads(1)
    expected = sums_and_gradient(sums, x.to(dtype), labels, **options)
    num_threads(2)
    assert_same_bits(sums_and_gradient(sums, x.to(dtype), labels, **options), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_same_bits_for_contiguous_and_channels_last(activation, large):
    x, labels = large
    x = x if activation else x.sigmoid()
    options = {"activation": activation, "ignore_index": 255}
    expected = sums_and_gradient(sums, x, labels, **options)
    channels_last = x.contiguous(memory_format=torch.channels_last_3d)
    assert_same_bits(sums_and_gradient(sums, channels_last, labels, **options), expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.float32])
def test_the_same_bits_for_any_dtype_of_the_labels(dtype, large):
    x, labels = large
    expected = sums_and_gradient(sums, x, labels, ignore_index=255)
    assert_same_bits(sums_and_gradient(sums, x, labels.to(dtype), ignore_index=255), expected)


# ---- derivatives ----

LABELS = torch.tensor([[0, 2], [1, -100]])
VOXEL_WEIGHT = torch.tensor([[0.5, 1.0], [2.0, 1.0]])
SOFT = random(2, 3, 2, seed=1, dtype=torch.float64).softmax(1)
TARGETS = {"labels": LABELS, "soft labels": SOFT, "mask": mask_of(2, 3, 2)}
COMBINATIONS = [(a, t) for a in ACTIVATIONS for t in TARGETS if (a, t) != ("softmax", "mask")]


def double_logits(*shape, activation="softmax"):
    return logits_of(*shape, activation=activation, dtype=torch.float64).requires_grad_()


def assert_derivatives(function, *inputs):
    assert gradcheck(function, inputs, check_forward_ad=True)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize(
    ("activation", "target", "squared"),
    [("softmax", "labels", False), ("sigmoid", "mask", False), *((a, t, True) for a, t in COMBINATIONS)],
)
def test_first_and_second_derivatives(activation, target, squared):
    options = {"activation": activation, "squared": squared, "voxel_weight": VOXEL_WEIGHT}
    assert_derivatives(lambda x: sums(x, TARGETS[target], **options)[:2], double_logits(2, 3, 2, activation=activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_in_input_and_soft_labels(activation):
    def function(x, target):
        return sums(x, target, activation=activation, squared=True, voxel_weight=VOXEL_WEIGHT)

    assert_derivatives(function, double_logits(2, 3, 2, activation=activation), SOFT.clone().requires_grad_())


def test_derivatives_with_one_hot():
    target = one_hot(torch.tensor([2, 0]), 3)
    assert_derivatives(lambda x: sums(x, target)[:2], double_logits(2, 3))


def test_derivatives_with_the_classes_last():
    assert_derivatives(lambda x: sums(x, LABELS, dim=-1)[:2], double_logits(2, 2, 3))


def test_derivatives_in_channels_last():
    x = double_logits(1, 3, 2, 2).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert_derivatives(lambda x: sums(x, LABELS.unsqueeze(0))[:2], x)


def test_derivatives_of_one_unbatched_voxel():
    assert_derivatives(lambda x: sums(x, torch.tensor(2))[:2], double_logits(3))


@pytest.mark.parametrize("which", [0, 1], ids=["intersection", "prediction"])
def test_one_of_the_sums_alone_has_its_gradient(which):
    x = double_logits(2, 3, 2)
    expected = torch.autograd.grad(reference.soft_stats(x, LABELS)[which].sum(), x)[0]
    assert_close(torch.autograd.grad(sums(x, LABELS)[which].sum(), x)[0], expected)


def special_cases():
    """Activation, input [2, 3, 2], target and keywords of each name."""
    x, p = logits_of(2, 3, 2, dtype=torch.float64), logits_of(2, 3, 2, activation=None, dtype=torch.float64)
    ignored_nan, neg_inf = x.clone(), x.clone()
    ignored_nan[1, :, 1] = NAN  # the ignored voxel of LABELS
    neg_inf[0, 1] = -INF
    return {
        "labels": (x, LABELS, {}),
        "uint8 labels": (x, LABELS.clamp(min=0).to(torch.uint8), {}),
        "float labels": (x, LABELS.float(), {}),
        "kept class dimension": (x, LABELS.unsqueeze(1), {}),
        "squared": (x, LABELS, {"squared": True}),
        "voxel weight": (x, LABELS, {"voxel_weight": VOXEL_WEIGHT}),
        "soft labels": (x, SOFT, {"squared": True}),
        "sigmoid": (x, LABELS, {"activation": "sigmoid"}),
        "mask": (x, TARGETS["mask"], {"activation": "sigmoid", "squared": True}),
        "no activation": (p, TARGETS["mask"], {"activation": None, "squared": True}),
        "ignored nan": (ignored_nan, LABELS, {}),
        "ignored nan of a sigmoid": (ignored_nan, LABELS, {"activation": "sigmoid"}),
        "-inf": (neg_inf, LABELS, {}),
        "all ignored": (x, torch.full((2, 2), -100), {}),
        "classes last": (x.movedim(1, -1), LABELS, {"dim": -1}),
    }


CASES = special_cases()


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_reference(name):
    input, target, options = CASES[name]
    assert_is_reference(input, target, **options)


@pytest.mark.parametrize("name", CASES)
def test_func_grad_gives_what_the_kernel_gives(name):
    input, target, options = CASES[name]
    actual = torch.func.grad(lambda x: scalar(sums(x, target, **options)))(input)
    assert_close(actual, sums_and_gradient(sums, input, target, **options)[-1])


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_gives_what_the_kernel_gives(name):
    input, target, options = CASES[name]
    tangent = random(*input.shape, seed=5, dtype=torch.float64)
    value, derivative = torch.func.jvp(lambda x: scalar(sums(x, target, **options)), (input,), (tangent,))
    *stats, gradient = sums_and_gradient(sums, input, target, **options)
    assert_close(value, scalar(stats), torch.float64)
    assert_close(derivative, (gradient * tangent).sum(), torch.float64)


def test_a_dual_tensor_gives_what_the_kernel_gives():
    input, tangent = double_logits(2, 3, 2).detach(), random(2, 3, 2, seed=5, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(input, tangent)
        derivative = torch.autograd.forward_ad.unpack_dual(scalar(sums(dual, LABELS))).tangent
    assert_close(derivative, (sums_and_gradient(sums, input, LABELS)[-1] * tangent).sum())


def test_jacrev_is_the_gradient_of_each_sum():
    x = double_logits(2, 3, 2)
    actual = torch.func.jacrev(lambda x: sums(x, LABELS)[0])(x.detach())
    for n in range(2):
        for c in range(3):
            expected = torch.autograd.grad(sums(x, LABELS)[0][n, c], x)[0]
            assert_close(actual[n, c], expected)


def test_the_hessian_equals_that_of_the_reference():
    x = double_logits(2, 3, 2).detach()
    actual, expected = (
        torch.func.hessian(lambda x, compute=compute: scalar(compute(x, LABELS, squared=True)))(x)
        for compute in (sums, reference.soft_stats)
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_vmap_is_one_call_at_a_time(activation):
    x, labels = logits_of(4, 2, 3, 2, activation=activation, dtype=torch.float64), labels_of(4, 2, 2)
    labels[0, 0, 0] = -100

    def prediction(x, y):
        return sums(x, y, activation=activation, squared=True)[1]

    expected = torch.stack([prediction(x[b], labels[b]) for b in range(4)])
    assert_close(torch.func.vmap(prediction)(x, labels), expected)


def test_vmap_of_the_gradient_is_one_call_at_a_time():
    x, labels = double_logits(4, 2, 3, 2).detach(), labels_of(4, 2, 2)

    def gradient(x, y):
        return torch.func.grad(lambda x: scalar(sums(x, y)))(x)

    expected = torch.stack([gradient(x[b], labels[b]) for b in range(4)])
    assert_close(torch.func.vmap(gradient)(x, labels), expected)


def test_vmap_over_one_hot_and_over_masks():
    x, labels = double_logits(4, 2, 3, 2).detach(), labels_of(4, 2, 2)
    target = one_hot(labels, 3).movedim(-1, 2)
    expected = torch.func.vmap(lambda x, y: sums(x, y)[0])(x, labels)
    assert_close(torch.func.vmap(lambda x, y: sums(x, y)[0])(x, target), expected)
    actual = torch.func.vmap(lambda x, y: sums(x, y, activation="sigmoid")[0])(x, target)
    assert_close(actual, (x.sigmoid() * target).sum(-1))


def test_a_bad_label_under_func_grad_raises_index_error():
    with pytest.raises(IndexError, match="out of bounds"):
        torch.func.grad(lambda x, y: scalar(sums(x, y)))(random(2, 3), torch.tensor([0, 3]))


# ---- autograd's bookkeeping ----


def saved_tensors(compute):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        compute()
    return saved


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("activation", "target"), COMBINATIONS)
def test_nothing_of_the_size_of_the_voxels_is_saved_beyond_the_arguments(activation, target, squared, dtype):
    targets = {
        "labels": torch.zeros(2, 8, 8, dtype=torch.uint8),
        "soft labels": random(2, 3, 8, 8, seed=1).softmax(1),
        "mask": mask_of(2, 3, 8, 8).to(torch.uint8),
    }
    x = logits_of(2, 3, 8, 8, activation=activation, dtype=dtype).requires_grad_()
    y, v = targets[target], torch.ones(2, 8, 8)
    saved = saved_tensors(lambda: sums(x, y, activation=activation, squared=squared, voxel_weight=v))
    held_by_caller = {x.data_ptr(), y.data_ptr(), v.data_ptr()}
    assert x.data_ptr() in {t.data_ptr() for t in saved}
    assert not [t.shape for t in saved if t.data_ptr() not in held_by_caller and t.numel() >= v.numel()]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_labels_are_saved_for_backward_as_they_are(dtype):
    x, labels = random(2, 2, 4, 5).requires_grad_(), labels_of(2, 1, 4, 5, classes=2).to(dtype)
    saved = saved_tensors(lambda: sums(x, labels))
    assert any(t.data_ptr() == labels.data_ptr() and t.dtype == dtype for t in saved)


@pytest.mark.parametrize("changed", ["input", "target", "voxel_weight"])
def test_a_change_in_place_before_backward_is_detected(changed):
    tensors = {
        "input": double_logits(2, 3, 2) * 1,
        "target": LABELS.clone(),
        "voxel_weight": VOXEL_WEIGHT.clone(),
    }
    loss = scalar(sums(**tensors))
    tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_graph_is_made_where_no_gradient_is_asked():
    assert not any(s.requires_grad for s in sums(random(2, 3, 2), LABELS))
    with torch.no_grad():
        assert not any(s.requires_grad for s in sums(double_logits(2, 3, 2), LABELS))


def test_the_sum_of_the_target_needs_no_gradient_of_input():
    assert not segloss.soft_stats(double_logits(2, 3, 2), LABELS).target.requires_grad


def test_a_hook_on_input_runs_once():
    x, calls = double_logits(2, 3, 2), []
    x.register_hook(calls.append)
    scalar(sums(x, LABELS)).backward()
    assert len(calls) == 1


def test_compile_is_one_graph_with_the_same_bits():
    x, labels = double_logits(2, 3, 4), labels_of(2, 1, 4).to(torch.uint8)
    compiled = torch.compile(lambda x, y: scalar(sums(x, y, squared=True)), backend="aot_eager", fullgraph=True)
    value, expected = compiled(x, labels), scalar(sums(x, labels, squared=True))
    assert torch.equal(value, expected)
    assert torch.equal(torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, x)[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_meta_tensors_give_the_shape(activation):
    x = torch.empty(2, 3, 4, device="meta", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.empty(2, 1, 4, device="meta", dtype=torch.uint8)
    stats = sums(x, labels, activation=activation)
    assert [(s.device.type, s.shape) for s in stats] == 3 * [("meta", (2, 3))]


@ignores_warnings_of_opcheck
@pytest.mark.parametrize(
    ("activation", "target", "voxel_loss"),
    [("softmax", "labels", True), ("softmax", "soft labels", False), ("sigmoid", "mask", True), (None, "mask", False)],
)
def test_opcheck(activation, target, voxel_loss):
    layout = torch.channels_last if voxel_loss else torch.contiguous_format
    x = logits_of(2, 3, 4, 4, activation=activation).contiguous(memory_format=layout).requires_grad_()
    targets = {
        "labels": labels_of(2, 4, 4).to(torch.uint8),
        "soft labels": random(2, 3, 4, 4, seed=1).softmax(1),
        "mask": mask_of(2, 3, 4, 4),
    }
    options = {"activation": activation or "none", "squared": True, "voxel_loss": voxel_loss}
    tensors = (x, targets[target], None, torch.rand(2, 4, 4))
    torch.library.opcheck(torch.ops.segloss.soft_stats.default, tensors, options)


# ---- errors ----


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bad", [3, 255, -1, -(2**63), 2**32 + 1])
def test_the_error_of_a_bad_label_names_the_count_the_first_its_index_and_the_range(bad, activation):
    labels = torch.zeros(2, 4, 5, dtype=torch.int64)
    labels[1, 2, 3] = labels[1, 3, 0] = bad
    text = (
        rf"soft_stats: Target {bad} is out of bounds: 2 labels are outside \[0, 3\), "
        r"the first at index \[1, 2, 3\] .*labels 0 to 2"
    )
    with pytest.raises(IndexError, match=text):
        segloss.soft_stats(torch.rand(2, 3, 4, 5), labels, activation=activation)


def test_the_index_of_a_bad_label_is_in_the_label_tensor_as_it_was_given():
    labels = torch.zeros(2, 1, 4, 5, dtype=torch.uint8)
    labels[1, 0, 2, 3] = 9
    with pytest.raises(IndexError, match=r"index \[1, 0, 2, 3\] of target \[2, 1, 4, 5\]"):
        segloss.soft_stats(random(2, 3, 4, 5), labels)


def test_the_first_bad_label_is_named_with_any_number_of_threads(num_threads):
    num_threads(2)
    labels = torch.zeros(1, 300_000, dtype=torch.uint8)
    labels[0, [7, 150_000, 299_999]] = 9
    with pytest.raises(IndexError, match=r"3 labels are .* the first at index \[0, 7\]"):
        segloss.soft_stats(torch.zeros(1).expand(1, 2, 300_000), labels)


def test_a_bad_label_on_a_voxel_of_weight_zero_is_still_an_error():
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        segloss.soft_stats(random(2, 3), torch.tensor([0, 7]), voxel_weight=torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_float_label_that_is_not_integral_is_named(activation):
    labels = torch.tensor([[0.0, 1.0], [0.5, 2.0]])
    with pytest.raises(RuntimeError, match=r"soft_stats: .*0\.5.*\[1, 0\]"):
        segloss.soft_stats(torch.rand(2, 3, 2), labels, activation=activation)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_an_argmax_as_input_is_refused(dtype):
    with pytest.raises(TypeError, match=r"soft_stats: expected floating logits .*looks like predicted labels"):
        segloss.soft_stats(torch.zeros(2, 4, dtype=dtype), torch.zeros(2, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("input_shape", "target_shape", "error"),
    [
        ((2, 3, 4, 5), (2, 4, 5, 1), RuntimeError),
        ((2, 3, 4, 5), (2, 2, 4, 5), RuntimeError),
        ((2, 3, 4, 5), (2, 8, 10), RuntimeError),
        ((2, 4, 5, 3), (2, 4, 5), RuntimeError),
        ((1, 3, 4, 5), (4, 5), ValueError),
        ((2, 3, 4, 5), (1, 4, 5), ValueError),
        ((4, 3, 5), (2, 5), ValueError),
    ],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_shape_that_does_not_fit_is_named_with_the_one_expected(activation, input_shape, target_shape, error):
    with pytest.raises(error, match=r"^soft_stats: ") as raised:
        segloss.soft_stats(torch.rand(input_shape), torch.zeros(target_shape).long(), activation=activation)
    text = str(raised.value)
    assert f"{[*input_shape[:1], *input_shape[2:]]}" in text
    assert f"input {list(input_shape)}" in text
    assert f"target {list(target_shape)}" in text


@pytest.mark.parametrize("activation", ["relu", "none", "Softmax", ""])
def test_an_unknown_activation_is_refused(activation):
    with pytest.raises(ValueError, match=r"soft_stats: expected activation .*, got"):
        segloss.soft_stats(random(2, 3), torch.tensor([0, 1]), activation=activation)


def test_a_target_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"soft_stats: expected target to be a torch\.Tensor, got list"):
        segloss.soft_stats(random(2, 3), [0, 1])


def test_an_input_of_no_dimension_is_refused():
    with pytest.raises(RuntimeError, match=r"soft_stats: .*0-dim input"):
        segloss.soft_stats(torch.tensor(1.0), torch.tensor(0))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        ({"target": torch.tensor([[0, 1], [7, 2]])}, IndexError),
        ({"target": torch.tensor([[0.0, 1.0], [0.5, 2.0]])}, RuntimeError),
        ({"target": torch.ones(2, 3, 2, dtype=torch.int64)}, RuntimeError),
        ({"voxel_weight": torch.ones(3)}, RuntimeError),
    ],
    ids=["bad label", "not integral", "not one-hot", "voxel_weight"],
)
def test_an_error_leaves_every_tensor_as_it_was(spoil, error):
    arguments = {"input": random(2, 3, 2), "target": labels_of(2, 2), "voxel_weight": torch.rand(2, 2), **spoil}
    before = {name: value.clone() for name, value in arguments.items()}
    with pytest.raises(error):
        segloss.soft_stats(**arguments)
    for name, value in before.items():
        assert torch.equal(arguments[name], value)


# ---- memory ----


def allocations(call):
    """Bytes of each allocation that torch's allocator makes during call()."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


@pytest.mark.cpu_only
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_forward_allocates_nothing_of_the_size_of_the_logits(layout, dtype, activation):
    x = logits_of(2, 64, 32, 32, activation=activation, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    labels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    made = allocations(lambda: sums(x, labels, activation=activation))
    assert made
    assert sum(made) <= x.numel() * x.element_size() / 4


@pytest.mark.cpu_only
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_backward_allocates_the_gradient_and_nothing_else_of_its_size(activation):
    x = logits_of(2, 64, 32, 32, activation=activation).requires_grad_()
    labels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    loss = sums(x, labels, activation=activation)[1].sum()
    assert sum(allocations(lambda: torch.autograd.grad(loss, x))) <= 1.25 * x.numel() * x.element_size()


# ---- small samples share a block ----

SMALL = [1, 3, 64, 65]


@pytest.mark.parametrize("num_classes", [3, 130])
@pytest.mark.parametrize("memory", ["planar", "interleaved"])
@pytest.mark.parametrize(
    ("activation", "kind"),
    [*itertools.product(ACTIVATIONS, ["labels", "probabilities"]), ("sigmoid", "masks"), (None, "masks")],
)
@pytest.mark.parametrize("num_voxels", SMALL)
def test_a_small_sample_has_the_sums_and_the_gradient_that_it_has_alone(
    num_voxels, activation, kind, memory, num_classes
):
    num_samples = 2 * 128 // num_voxels + 3
    x = logits_of(num_samples, num_classes, num_voxels, activation=activation)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if memory == "interleaved" else x
    weight = voxel_weight_of(num_samples, num_voxels)
    target = {
        "labels": lambda: labels_of(num_samples, num_voxels, classes=num_classes),
        "probabilities": lambda: random(*x.shape, seed=3).softmax(1),
        "masks": lambda: mask_of(*x.shape),
    }[kind]()
    if kind == "labels":
        target[:, ::5] = -100
    factors = random(2, num_samples, num_classes, seed=4, dtype=torch.float64)

    def sums_and_gradient(samples):
        leaf = x[samples].detach().requires_grad_()
        stats = segloss.soft_stats(leaf, target[samples], activation=activation, voxel_weight=weight[samples])
        loss = (factors[0, samples] * stats[0] + factors[1, samples] * stats[1]).sum()
        return *stats, *torch.autograd.grad(loss, leaf)

    together = sums_and_gradient(slice(None))
    for n in range(num_samples):
        for one, alone in zip(together, sums_and_gradient(slice(n, n + 1)), strict=True):
            assert_close(one[n : n + 1], alone)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("num_voxels", SMALL)
def test_the_losses_of_small_samples_are_those_of_each_alone(num_voxels, activation):
    x, target = random(200, 3, num_voxels), labels_of(200, num_voxels)
    target[:, 1::4] = -100
    x.requires_grad_()
    options = {
        "activation": activation,
        "weight": torch.tensor([0.5, 1, 2]),
        "voxel_weight": voxel_weight_of(200, num_voxels),
    }
    loss = segloss.dice_ce_loss(x, target, reduction="sum", **options)
    each = [
        segloss.dice_ce_loss(
            x[n : n + 1],
            target[n : n + 1],
            reduction="sum",
            **options | {"voxel_weight": options["voxel_weight"][n : n + 1]},
        )
        for n in range(200)
    ]
    assert_close(loss, torch.stack(each).sum())
    for a, b in zip(torch.autograd.grad(loss, x), torch.autograd.grad(torch.stack(each).sum(), x), strict=True):
        assert_close(a, b)
