"""What a target, dim, voxel_weight and an empty set of voxels mean to cross_entropy and nll_loss."""

import pytest
import reference
import torch
from tolerances import SUM_RTOL, assert_close, assert_relative

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
REDUCTIONS = ["mean", "sum", "none"]


def logits_of(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def labels_of(*shape, classes=3, seed=1):
    return torch.randint(classes, shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def gradient(loss, input, *args, **keywords):
    x = input.clone().requires_grad_()
    loss(x, *args, **keywords).sum().backward()
    return x.grad


def assert_same(loss, input, target, expected_target=None, **keywords):
    """Value and gradient of segloss for `target` equal the reference's for `expected_target`, its labels in int64."""
    expected_target = target if expected_target is None else expected_target
    value, grad = reference.value_and_gradient(getattr(reference, loss), input, expected_target, **keywords)
    actual = getattr(segloss, loss)(input, target, **keywords)
    assert actual.shape == value.shape
    assert_close(actual, value)
    assert_close(gradient(getattr(segloss, loss), input, target, **keywords), grad)


# ---- labels in integers ----


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_every_integer_dtype_holds_labels(loss, dtype):
    labels = labels_of(2, 4, 5)
    assert_same(loss, logits_of(2, 3, 4, 5), labels.to(dtype), labels)


def test_bool_holds_labels_of_two_classes():
    labels = labels_of(2, 4, 5, classes=2)
    assert_same("cross_entropy", logits_of(2, 2, 4, 5), labels.bool(), labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_labels_are_saved_for_backward_as_they_are(dtype):
    labels = labels_of(2, 4, 5, classes=2).to(dtype)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        segloss.cross_entropy(logits_of(2, 2, 4, 5).requires_grad_(), labels)
    assert any(t.data_ptr() == labels.data_ptr() and t.dtype == dtype for t in saved)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_largest_label_of_each_dtype_is_reached(dtype):
    classes = min(torch.iinfo(dtype).max, 999) + 1
    labels = torch.tensor([classes - 1, 0])
    assert_same("cross_entropy", logits_of(2, classes), labels.to(dtype), labels)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_bad_label_of_each_dtype_raises(dtype):
    labels = torch.tensor([0, 2, 3]).to(dtype)
    with pytest.raises(
        IndexError, match=r"Target 3 is out of bounds: 1 label is outside \[0, 3\), the first at index \[2\]"
    ):
        segloss.cross_entropy(logits_of(3, 3), labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int64, torch.float32])
def test_the_error_of_bad_labels_names_the_smallest_and_the_largest(dtype):
    labels = torch.tensor([0, 9, 250, 3]).to(dtype)
    with pytest.raises(IndexError, match=r"3 labels are outside \[0, 3\), .* with values from 3\.?0* to 250\.?0*\. "):
        segloss.cross_entropy(logits_of(4, 3), labels)


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        ([0, 255, 255], r"Use target\.ne\(0\) if it is a mask of 0 and another value"),
        ([0, 255, 1], "Relabel"),
        ([1, 2, 1], "Use target - 1 if labels start at 1"),
        ([0, 2, 1], "Relabel"),
        ([1, 3, 1], "Relabel"),
        ([1, 2, -100], "Use target - 1 if labels start at 1"),
    ],
)
def test_the_error_of_bad_labels_advises_by_their_values(labels, advice):
    with pytest.raises(IndexError, match=advice):
        segloss.cross_entropy(logits_of(3, 2), torch.tensor(labels))


def test_a_label_beyond_int64_is_bad():
    labels = torch.tensor([2**63 + 1, 0], dtype=torch.uint64)
    with pytest.raises(IndexError, match="out of bounds"):
        segloss.cross_entropy(logits_of(2, 3), labels)


# ---- labels in floats ----


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5)])
def test_floats_with_integral_values_are_labels(dtype, shape):
    labels = labels_of(*shape)
    assert_same("cross_entropy", logits_of(2, 3, 4, 5), labels.to(dtype), labels)


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_labels_may_be_ignored(dtype):
    labels = labels_of(2, 4, 5)
    labels[:, 1] = 255
    assert_same("cross_entropy", logits_of(2, 3, 4, 5), labels.to(dtype), labels, ignore_index=255)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_float_label_outside_the_classes_raises_index_error(dtype):
    labels = torch.tensor([0.0, 2.0, 3.0, -1.0]).to(dtype)
    with pytest.raises(IndexError, match=r"Target 3.* is out of bounds: 2 labels .* the first at index \[2\]"):
        segloss.cross_entropy(logits_of(4, 3), labels)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("value", "text"), [(0.5, r"0\.5"), (float("nan"), "nan")])
def test_a_float_label_that_is_not_integral_is_named(dtype, value, text):
    labels = torch.zeros(2, 4, 5, dtype=dtype)
    labels[1, 2, 3] = value
    labels[1, 3, 0] = 0.25
    with pytest.raises(RuntimeError, match=rf"expected integral labels .*got {text} at index \[1, 2, 3\]"):
        segloss.cross_entropy(logits_of(2, 3, 4, 5), labels)


# ---- probabilities ----


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_floats_of_the_shape_of_input_are_probabilities(dtype, reduction):
    target = logits_of(2, 3, 4, 5, seed=2).softmax(1).to(dtype)
    keywords = {"weight": torch.tensor([0.5, 2.0, 1.0]), "label_smoothing": 0.1, "reduction": reduction}
    assert_same("cross_entropy", logits_of(2, 3, 4, 5), target, **keywords)


def test_probabilities_need_not_sum_to_one():
    assert_same("cross_entropy", logits_of(2, 3, 4), torch.rand(2, 3, 4))


def test_probabilities_of_one_unbatched_voxel():
    assert_same("cross_entropy", logits_of(3), torch.tensor([0.2, 0.3, 0.5]))


def test_probabilities_of_nll_loss():
    assert_same("nll_loss", logits_of(2, 3, 4), torch.rand(2, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_wider_dtype_of_input_and_probabilities_is_the_dtype_of_the_result(dtype):
    x, target = logits_of(2, 3, 4).to(dtype), torch.rand(2, 3, 4, dtype=torch.float64)
    assert segloss.cross_entropy(x, target).dtype == torch.nn.functional.cross_entropy(x, target).dtype == torch.float64


# ---- one-hot ----


def one_hot_of(labels, classes=3, dim=1):
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, dim)


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_integer_one_hot_is_read_as_labels(dtype, reduction):
    labels = labels_of(2, 4, 5)
    keywords = {"weight": torch.tensor([0.5, 2.0, 1.0]), "label_smoothing": 0.1, "reduction": reduction}
    assert_same("cross_entropy", logits_of(2, 3, 4, 5), one_hot_of(labels).to(dtype), labels, **keywords)


def test_integer_one_hot_of_the_last_dimension():
    labels = labels_of(2, 7)
    assert_same("cross_entropy", logits_of(2, 7, 3), one_hot_of(labels, dim=-1), labels, dim=-1)


def test_integer_one_hot_obeys_ignore_index():
    labels = labels_of(2, 4, 5)
    assert_same("cross_entropy", logits_of(2, 3, 4, 5), one_hot_of(labels), labels, ignore_index=1)


@pytest.mark.parametrize("spoil", [0, 2, -1, [1, 1, 0]])
def test_an_integer_target_that_is_not_one_hot_is_refused_and_says_which_voxel(spoil):
    target = one_hot_of(torch.zeros(2, 4, 5, dtype=torch.int64))
    target[1, :, 2, 3] = torch.tensor(spoil if isinstance(spoil, list) else [spoil, 0, 0])
    torch_text = "Expected floating point type for target with class probabilities, got Long"
    with pytest.raises(RuntimeError, match=rf"{torch_text}.*index \[1, 2, 3\]"):
        segloss.cross_entropy(logits_of(2, 3, 4, 5), target)


# ---- unbatched ----


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", [torch.tensor(2), torch.tensor([2])])
@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_unbatched_classification_is_that_of_torch(loss, target, reduction):
    x = logits_of(3)
    expected = getattr(torch.nn.functional, loss)(x, target, reduction=reduction)
    actual = getattr(segloss, loss)(x, target, reduction=reduction)
    assert actual.shape == expected.shape
    assert_close(actual, expected)


@pytest.mark.parametrize("target", [torch.tensor(2), torch.tensor([2])])
@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_unbatched_classification_has_the_gradient_of_torch(loss, target):
    expected = gradient(getattr(torch.nn.functional, loss), logits_of(3), torch.tensor(2))
    assert_close(gradient(getattr(segloss, loss), logits_of(3), target), expected)


def test_an_unbatched_ignored_label():
    assert segloss.cross_entropy(logits_of(3), torch.tensor(-100), reduction="sum") == 0


# ---- dim ----


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1, -2, -3, -4])
def test_dim_is_the_class_dimension(dim, reduction):
    x = logits_of(3, 3, 3, 3)
    assert_same("cross_entropy", x, labels_of(3, 3, 3), dim=dim, reduction=reduction)


def test_the_last_dimension_reads_sequences_without_a_permute():
    x, labels = logits_of(2, 7, 3), labels_of(2, 7)
    expected = torch.nn.functional.cross_entropy(x.movedim(-1, 1), labels)
    assert_close(segloss.cross_entropy(x, labels, dim=-1), expected)


@pytest.mark.parametrize(
    ("dim", "input_shape", "label_shape"),
    [
        (1, (2, 3, 4, 5), (2, 1, 4, 5)),
        (-1, (2, 7, 3), (2, 7, 1)),
        (0, (3, 4, 5), (1, 4, 5)),
        (2, (2, 4, 3, 5), (2, 4, 1, 5)),
    ],
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_labels_may_keep_a_class_dimension_of_one(dim, input_shape, label_shape, reduction):
    labels = labels_of(*label_shape)
    assert_same("cross_entropy", logits_of(*input_shape), labels, dim=dim, reduction=reduction)


@pytest.mark.parametrize("dim", [4, -5])
def test_a_dim_that_input_lacks_is_refused(dim):
    with pytest.raises(IndexError, match=r"dim, the class dimension of input, in \[-4, 3\], got"):
        segloss.cross_entropy(logits_of(2, 3, 4, 5), labels_of(2, 4, 5), dim=dim)


# ---- shape of reduction="none" ----


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5)])
@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_reduction_none_has_the_shape_of_the_labels(loss, shape):
    losses = getattr(segloss, loss)(logits_of(2, 3, 4, 5), labels_of(*shape), reduction="none")
    assert losses.shape == shape


@pytest.mark.parametrize(
    "target",
    [torch.rand(2, 4, 5, 3), torch.ones(2, 4, 5, 1).long() * torch.tensor([0, 1, 0])],
    ids=["floats", "one-hot"],
)
def test_reduction_none_of_probabilities_and_one_hot_has_the_shape_of_input_without_dim(target):
    assert segloss.cross_entropy(logits_of(2, 4, 5, 3), target, dim=-1, reduction="none").shape == (2, 4, 5)


# ---- ignore_index ----


@pytest.mark.parametrize("ignore_index", [0, 2, -1, -100, 255, 2**40, -(2**63), 2**63 - 1])
def test_any_ignore_index_is_left_out(ignore_index):
    labels = labels_of(2, 4, 5)
    labels[:, 1:3] = ignore_index
    keywords = {"weight": torch.tensor([0.5, 2.0, 1.0]), "label_smoothing": 0.1, "ignore_index": ignore_index}
    assert_same("cross_entropy", logits_of(2, 3, 4, 5), labels, **keywords)


def test_an_ignore_index_of_the_lowest_int64_does_not_hide_a_label_that_is_not_integral():
    with pytest.raises(RuntimeError, match=r"expected integral labels .* got 0\.5 at index \[0, 0\]"):
        segloss.cross_entropy(torch.zeros(1, 3, 1), torch.tensor([[0.5]]), ignore_index=-(2**63))


def test_an_ignore_index_of_the_lowest_int64_does_not_hide_a_label_beyond_int64():
    labels = torch.tensor([[2**63]], dtype=torch.uint64)
    with pytest.raises(IndexError, match="1 label is outside"):
        segloss.cross_entropy(torch.zeros(1, 3, 1), labels, ignore_index=-(2**63))


def test_ignore_index_255_in_uint8():
    labels = labels_of(2, 1, 4, 5)
    labels[:, :, 1] = 255
    assert_same("cross_entropy", logits_of(2, 3, 4, 5), labels.to(torch.uint8), labels, ignore_index=255)


@pytest.mark.parametrize(
    ("dtype", "alias", "ignore_index"),
    [(torch.uint8, 156, -100), (torch.uint8, 44, 300), (torch.int8, -1, 255), (torch.uint16, 65436, -100)],
)
def test_an_ignore_index_out_of_the_range_of_the_labels_dtype_ignores_nothing(dtype, alias, ignore_index):
    """`alias` is what ignore_index would become if it were cast to the labels' dtype."""
    labels = torch.tensor([0, alias, 1]).to(dtype)
    with pytest.raises(IndexError, match=rf"Target {alias} is out of bounds: 1 label is"):
        segloss.cross_entropy(logits_of(3, 3), labels, ignore_index=ignore_index)


def test_a_valid_label_that_equals_ignore_index_only_after_a_cast_counts():
    labels = torch.tensor([0, 156, 1], dtype=torch.uint8)
    assert_same("cross_entropy", logits_of(3, 200), labels, labels.long(), ignore_index=-100)


def test_a_valid_label_that_equals_ignore_index_only_after_a_cast_counts_under_torch_func():
    labels = torch.tensor([0, 156, 1], dtype=torch.uint8)
    x = logits_of(3, 200)
    _, expected = reference.value_and_gradient(reference.cross_entropy, x, labels.long())
    assert_close(torch.func.grad(lambda z: segloss.cross_entropy(z, labels))(x), expected)


# ---- voxel_weight ----


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["labels", "probabilities", "one-hot"])
def test_voxel_weight_weighs_every_sum(kind, dtype, shape, reduction):
    labels = labels_of(2, 4, 5)
    probabilities = logits_of(2, 3, 4, 5, seed=2).softmax(1)
    target = {"labels": labels, "probabilities": probabilities, "one-hot": one_hot_of(labels)}[kind]
    expected_target = probabilities if kind == "probabilities" else labels
    v = labels_of(*shape, classes=5, seed=3).to(dtype) / 4
    keywords = {"weight": torch.tensor([0.5, 2.0, 1.0]), "label_smoothing": 0.1, "reduction": reduction}
    assert_same("cross_entropy", logits_of(2, 3, 4, 5), target, expected_target, voxel_weight=v, **keywords)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_voxel_weight_may_be_integers_or_bool(loss, dtype):
    v = labels_of(2, 4, 5, classes=2, seed=3).to(dtype)
    assert_same(loss, logits_of(2, 3, 4, 5), labels_of(2, 4, 5), voxel_weight=v)


def test_labels_may_have_a_class_dimension_that_voxel_weight_lacks():
    v = torch.rand(2, 4, 5)
    assert_same("cross_entropy", logits_of(2, 3, 4, 5), labels_of(2, 1, 4, 5), voxel_weight=v, reduction="none")


def test_reduction_none_is_v_times_w_times_l():
    x, labels, v = logits_of(2, 3, 4), labels_of(2, 4), torch.rand(2, 4)
    w = torch.tensor([0.5, 2.0, 1.0])
    expected = v * w[labels] * torch.nn.functional.cross_entropy(x, labels, reduction="none")
    assert_close(segloss.cross_entropy(x, labels, w, voxel_weight=v, reduction="none"), expected)


def test_a_mean_of_labels_divides_by_the_sum_of_v_w():
    x, labels, v = logits_of(2, 3, 4), labels_of(2, 4), torch.rand(2, 4)
    w = torch.tensor([0.5, 2.0, 1.0])
    expected = segloss.cross_entropy(x, labels, w, voxel_weight=v, reduction="sum") / (v * w[labels]).sum()
    assert_close(segloss.cross_entropy(x, labels, w, voxel_weight=v), expected)


def test_a_mean_of_probabilities_divides_by_the_sum_of_v():
    x, target, v = logits_of(2, 3, 4), torch.rand(2, 3, 4), torch.rand(2, 4)
    w = torch.tensor([0.5, 2.0, 1.0])
    expected = segloss.cross_entropy(x, target, w, voxel_weight=v, reduction="sum") / v.sum()
    assert_close(segloss.cross_entropy(x, target, w, voxel_weight=v), expected)


def test_a_voxel_weight_of_zero_is_as_ignored_bit_for_bit():
    x, labels = logits_of(2, 3, 4, 5), labels_of(2, 4, 5)
    v = labels_of(2, 4, 5, classes=2, seed=3)
    ignored = labels.masked_fill(v == 0, -100)
    assert torch.equal(segloss.cross_entropy(x, labels, voxel_weight=v), segloss.cross_entropy(x, ignored))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_a_voxel_of_weight_zero_is_not_looked_at(kind, value):
    x = logits_of(2, 3, 4)
    x[0, :, 1] = value
    target = labels_of(2, 4) if kind == "labels" else torch.rand(2, 3, 4)
    v = torch.ones(2, 4)
    v[0, 1] = 0
    assert_same("cross_entropy", x, target, voxel_weight=v)
    assert gradient(segloss.cross_entropy, x, target, voxel_weight=v)[0, :, 1].eq(0).all()


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_all_voxel_weights_zero_is_as_all_ignored(kind, empty):
    target = labels_of(2, 4) if kind == "labels" else torch.rand(2, 3, 4)
    loss = segloss.cross_entropy(logits_of(2, 3, 4), target, voxel_weight=torch.zeros(2, 4), empty=empty)
    assert_close(loss, torch.tensor(0.0 if empty == "zero" else float("nan")))
    grad = gradient(segloss.cross_entropy, logits_of(2, 3, 4), target, voxel_weight=torch.zeros(2, 4), empty=empty)
    assert torch.equal(grad, torch.zeros(2, 3, 4))


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_voxel_weight_has_no_gradient(kind):
    target = labels_of(2, 4) if kind == "labels" else torch.rand(2, 3, 4)
    with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'voxel_weight'"):
        segloss.cross_entropy(logits_of(2, 3, 4), target, voxel_weight=torch.ones(2, 4, requires_grad=True))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (2, 5), (1, 4), ()])
def test_a_voxel_weight_of_another_shape_is_refused(shape):
    with pytest.raises(RuntimeError, match=r"voxel_weight of the labels' shape, \[2, 4\] or \[2, 1, 4\] for input"):
        segloss.cross_entropy(logits_of(2, 3, 4), labels_of(2, 4), voxel_weight=torch.ones(shape))


def test_a_voxel_weight_does_not_excuse_a_bad_label():
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        segloss.cross_entropy(logits_of(2, 3), torch.tensor([0, 7]), voxel_weight=torch.tensor([1.0, 0.0]))


# ---- empty ----


@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_empty_zero_gives_zero_with_a_zero_gradient_attached(loss):
    x = logits_of(2, 3, 4).requires_grad_()
    value = getattr(segloss, loss)(x, torch.full((2, 4), -100), empty="zero")
    assert value == 0
    value.backward()
    assert torch.equal(x.grad, torch.zeros(2, 3, 4))


def test_empty_zero_changes_nothing_where_a_voxel_counts():
    x, labels = logits_of(2, 3, 4), labels_of(2, 4)
    assert torch.equal(segloss.cross_entropy(x, labels, empty="zero"), segloss.cross_entropy(x, labels))


@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_an_unknown_empty_is_refused(loss):
    with pytest.raises(ValueError, match=f"{loss}: expected empty to be 'nan' or 'zero', got 'one'"):
        getattr(segloss, loss)(logits_of(2, 3), labels_of(2), empty="one")


# ---- the smallest sizes ----


@pytest.mark.filterwarnings("ignore:.*has one channel")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 4)])
def test_one_class_has_no_loss(shape, reduction):
    assert_same("cross_entropy", logits_of(2, 1, 4), torch.zeros(shape, dtype=torch.uint8), reduction=reduction)


@pytest.mark.filterwarnings("ignore:.*has one channel")
def test_floats_of_the_shape_of_a_single_class_are_probabilities():
    assert_same("cross_entropy", logits_of(2, 1, 4), torch.rand(2, 1, 4))


def test_float_labels_for_a_single_class_are_refused():
    with pytest.raises(
        RuntimeError, match=r"expected integer labels .* of one class.*binary_cross_entropy_with_logits"
    ):
        segloss.cross_entropy(logits_of(2, 1, 4), torch.zeros(2, 4))


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 5), (2, 3, 0), (2, 3, 4, 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_no_voxel_at_all_is_as_in_torch(kind, shape, reduction):
    x = torch.zeros(shape)
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64) if kind == "labels" else torch.zeros(shape)
    expected = torch.nn.functional.cross_entropy(x, target, reduction=reduction)
    actual = segloss.cross_entropy(x, target, reduction=reduction)
    assert actual.shape == expected.shape
    assert_close(actual, expected)
    assert gradient(segloss.cross_entropy, x, target, reduction=reduction).shape == shape


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_no_voxel_at_all_and_empty_zero(kind):
    target = torch.zeros(0, 4, dtype=torch.int64) if kind == "labels" else torch.zeros(0, 3, 4)
    assert segloss.cross_entropy(torch.zeros(0, 3, 4), target, empty="zero") == 0


def test_no_class_for_a_voxel_raises():
    with pytest.raises(IndexError, match=r"outside \[0, 0\)"):
        segloss.cross_entropy(torch.zeros(2, 0, 4), torch.zeros(2, 4, dtype=torch.int64))


def test_no_class_and_all_voxels_ignored():
    target = torch.full((2, 4), -100)
    assert segloss.cross_entropy(torch.zeros(2, 0, 4), target, reduction="sum") == 0


def test_probabilities_of_no_class_have_the_loss_of_torch():
    x = torch.zeros(2, 0, 4)
    assert segloss.cross_entropy(x, x).isnan()
    assert torch.nn.functional.cross_entropy(x, x).isnan()


def test_no_class_and_no_voxel():
    target = torch.zeros(0, 4, dtype=torch.int64)
    assert segloss.cross_entropy(torch.zeros(0, 0, 4), target).isnan()


def test_many_voxels_of_weight_one_are_counted_exactly():
    """2^24 + 2 voxels: a float32 count would stop at 2^24."""
    num_voxels = 2**24 + 2
    x = torch.tensor([1.0, 0.0]).view(1, 2, 1).expand(1, 2, num_voxels)
    labels = torch.zeros(1, dtype=torch.uint8).expand(1, num_voxels)
    one = segloss.cross_entropy(x[..., :1], labels[..., :1])
    assert_relative(segloss.cross_entropy(x, labels), one, SUM_RTOL)
