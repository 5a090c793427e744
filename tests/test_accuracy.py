"""accuracy: the share of valid voxels whose predicted class is the label."""

from contextlib import nullcontext

import pytest
import reference
import torch
from test_devices import without_kernels
from test_layouts import allocations

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
NAN = float("nan")


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def randint(classes, *shape, seed=1):
    return torch.randint(classes, shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def assert_accuracy(actual, expected):
    """The counts are exact, and so is their quotient up to its rounding to float32."""
    assert torch.equal(actual, torch.tensor(expected, dtype=torch.float64).to(actual.dtype))


# ---- logits ----


@pytest.mark.parametrize("spatial", [(), (4,), (4, 5), (3, 4, 2), (2, 3, 2, 2)], ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("keepdim", [False, True])
def test_logits_against_labels(keepdim, dtype, spatial):
    x, labels = randn(4, 3, *spatial).to(dtype), randint(3, 4, *([1] if keepdim else []), *spatial)
    assert_accuracy(segloss.accuracy(x, labels), reference.accuracy(x, labels))


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_labels_of_any_dtype(dtype):
    x, labels = randn(2, 3, 40), randint(3, 2, 40)
    assert_accuracy(segloss.accuracy(x, labels.to(dtype)), reference.accuracy(x, labels))


def test_bool_labels():
    x, labels = randn(2, 2, 40), randint(2, 2, 40)
    assert_accuracy(segloss.accuracy(x, labels.bool()), reference.accuracy(x, labels))


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_dim_is_the_class_dimension(dim):
    x, labels = randn(5, 5, 5), randint(5, 5, 5)
    assert_accuracy(segloss.accuracy(x, labels, dim=dim), reference.accuracy(x, labels, dim=dim))


def test_labels_may_keep_the_class_dimension_where_it_is_last():
    x, labels = randn(2, 7, 3), randint(3, 2, 7, 1)
    assert_accuracy(segloss.accuracy(x, labels, dim=-1), reference.accuracy(x, labels, dim=-1))


@pytest.mark.parametrize("target", [torch.tensor(2), torch.tensor([2])])
def test_one_unbatched_voxel(target):
    assert segloss.accuracy(torch.tensor([0.0, 1.0, 2.0]), target) == 1
    assert segloss.accuracy(torch.tensor([0.0, 3.0, 2.0]), target) == 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_any_layout(memory_format):
    x, labels = randn(2, 3, 6, 5).contiguous(memory_format=memory_format), randint(3, 2, 5, 6).transpose(1, 2)
    assert_accuracy(segloss.accuracy(x, labels), reference.accuracy(x, labels))


@pytest.mark.parametrize("num_voxels", [1, 63, 64, 65, 4095, 4096, 4097])
@pytest.mark.parametrize("num_classes", [2, 127, 128, 129, 257])
def test_the_ends_of_blocks_and_chunks(num_classes, num_voxels):
    x, labels = randn(1, num_classes, num_voxels), randint(num_classes, 1, num_voxels)
    labels = torch.where(labels % 2 == 0, x.argmax(1), labels)
    expected = (x.argmax(1) == labels).double().mean().item()
    assert_accuracy(segloss.accuracy(x, labels), expected)


# ---- ties and nan ----


@pytest.mark.parametrize("num_classes", [3, 128, 129, 300])
def test_the_first_of_equal_logits_wins(num_classes):
    x = torch.zeros(2, num_classes)
    x[:, [1, num_classes - 1]] = 5
    assert segloss.accuracy(x, torch.tensor([1, 1])) == 1
    assert segloss.accuracy(x, torch.tensor([num_classes - 1, num_classes - 1])) == 0


@pytest.mark.parametrize("num_classes", [3, 128, 129, 300])
def test_the_first_nan_counts_as_the_largest(num_classes):
    x = torch.zeros(1, num_classes)
    x[0, 0] = float("inf")
    x[0, [1, num_classes - 1]] = NAN
    assert x.argmax(1) == 1
    assert segloss.accuracy(x, torch.tensor([1])) == 1


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
def test_equal_special_logits_are_class_zero(value):
    x = torch.full((1, 3), value)
    assert segloss.accuracy(x, torch.tensor([0])) == 1


# ---- ignored voxels ----


@pytest.mark.parametrize("ignore_index", [-100, 255, 0, 2])
def test_ignored_voxels_do_not_count(ignore_index):
    x, labels = randn(2, 3, 40), randint(3, 2, 40)
    labels[:, ::3] = ignore_index
    expected = reference.accuracy(x, labels, ignore_index)
    assert_accuracy(segloss.accuracy(x, labels, ignore_index=ignore_index), expected)


def test_nan_on_an_ignored_voxel_has_no_effect():
    x = torch.tensor([[NAN, NAN], [1.0, 0.0]])
    assert segloss.accuracy(x, torch.tensor([-100, 0])) == 1


def test_all_ignored_is_nan():
    assert segloss.accuracy(randn(2, 3), torch.full((2,), -100)).isnan()


def test_the_accuracy_of_no_voxel_is_nan():
    assert segloss.accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).isnan()


# ---- label maps ----


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
def test_a_map_of_predicted_labels(target_dtype, dtype):
    predicted, labels = randint(2, 2, 4, 5), randint(2, 2, 4, 5, seed=2)
    expected = (predicted == labels).double().mean().item()
    assert_accuracy(segloss.accuracy(predicted.to(dtype), labels.to(target_dtype), 2), expected)
    if (dtype, target_dtype) != (torch.bool, torch.bool):
        assert_accuracy(segloss.accuracy(predicted.to(dtype), labels.to(target_dtype)), expected)


@pytest.mark.parametrize(("first", "second"), [((2, 1, 4), (2, 4)), ((2, 4), (2, 1, 4)), ((2, 1, 4), (2, 1, 4))])
def test_maps_may_keep_the_class_dimension(first, second):
    predicted, labels = randint(3, *first), randint(3, *second, seed=2)
    expected = (predicted.reshape(2, 4) == labels.reshape(2, 4)).double().mean().item()
    assert_accuracy(segloss.accuracy(predicted, labels), expected)


def test_maps_may_keep_the_last_dimension():
    predicted, labels = randint(3, 2, 4, 1), randint(3, 2, 4, seed=2)
    expected = (predicted.squeeze(-1) == labels).double().mean().item()
    assert_accuracy(segloss.accuracy(predicted, labels, dim=-1), expected)


def test_ignored_voxels_of_maps_do_not_count():
    predicted, labels = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 255, 2, 1])
    assert_accuracy(segloss.accuracy(predicted, labels, ignore_index=255), 2 / 3)


@pytest.mark.parametrize("ignore_index", [-100, 0, 255])
def test_num_classes_of_maps_bounds_their_labels(ignore_index):
    predicted, labels = randint(3, 2, 40), randint(3, 2, 40, seed=2)
    labels[:, ::3] = ignore_index
    expected = segloss.accuracy(predicted, labels, ignore_index=ignore_index)
    assert segloss.accuracy(predicted, labels, 3, ignore_index=ignore_index) == expected
    with pytest.raises(IndexError, match="accuracy: Target 2 is out of bounds"):
        segloss.accuracy(predicted, labels, 2, ignore_index=ignore_index)
    with pytest.raises(IndexError, match="accuracy: Predicted label 2 is out of bounds"):
        segloss.accuracy(predicted, labels.clamp(max=1), 2, ignore_index=ignore_index)


def test_maps_of_any_labels_can_be_compared_without_num_classes():
    assert segloss.accuracy(torch.tensor([0, -7, 2**40]), torch.tensor([1, -7, 2**40])) == torch.tensor(2 / 3)


WIDE = [torch.int64, torch.int32, torch.uint32, torch.int16, torch.uint16, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("target_dtype", [*WIDE, *FLOATS])
@pytest.mark.parametrize("input_dtype", WIDE)
def test_maps_of_any_two_dtypes_are_compared_by_value(input_dtype, target_dtype):
    predicted, labels = randint(2, 3, 1, 50), randint(2, 3, 50, seed=2)
    expected = (predicted[:, 0] == labels)[labels != 0].float().mean()
    for kernels in (nullcontext(), without_kernels()):
        with kernels:
            actual = segloss.accuracy(predicted.to(input_dtype), labels.to(target_dtype), ignore_index=0)
        assert actual == expected


LARGE = 2**63 + 5  # as int64 it is -(2**63) + 5


@pytest.mark.parametrize(
    ("predicted", "labels", "expected"),
    [
        (torch.tensor([LARGE, LARGE + 1], dtype=torch.uint64), torch.tensor([LARGE, LARGE], dtype=torch.uint64), 0.5),
        (torch.tensor([LARGE, 1], dtype=torch.uint64), torch.tensor([LARGE - 2**64, 1]), 0.5),
        (torch.tensor([LARGE - 2**64, 1]), torch.tensor([LARGE, 1], dtype=torch.uint64), 0.5),
        (torch.tensor([-(2**63) + 1, 1]), torch.tensor([1e30, 1.0]), 0.5),
    ],
)
def test_a_label_beyond_int64_equals_none_that_it_wraps_to(predicted, labels, expected):
    assert segloss.accuracy(predicted, labels) == expected
    if labels.dtype == torch.uint64:
        assert segloss.accuracy(predicted, labels, ignore_index=LARGE - 2**64) == expected


@pytest.mark.cpu_only
def test_maps_are_compared_without_a_copy():
    predicted, labels = torch.zeros(1, 64, 64, 64, dtype=torch.uint8), torch.zeros(1, 64, 64, 64, dtype=torch.bool)
    assert sum(allocations(lambda: segloss.accuracy(predicted.transpose(1, 2), labels))) < labels.numel()


def test_maps_of_different_shapes_are_refused():
    with pytest.raises(RuntimeError, match=r"of one shape.*got input \[2, 4\] and target \[2, 5\]"):
        segloss.accuracy(randint(3, 2, 4), randint(3, 2, 5))


# ---- one-hot ----


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, torch.bool])
def test_one_hot_targets(dtype):
    x, labels = randn(2, 3, 40), randint(3, 2, 40)
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).to(dtype)
    assert_accuracy(segloss.accuracy(x, one_hot), reference.accuracy(x, labels))


def test_probabilities_are_refused():
    with pytest.raises(RuntimeError, match=r"one-hot target, got class probabilities.*target\.argmax\(1\)"):
        segloss.accuracy(randn(2, 3), torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_target_of_the_shape_of_input_with_two_ones_is_refused(dtype):
    with pytest.raises(RuntimeError, match=r"the voxel at index \[1\] of \[2\] is not one-hot"):
        segloss.accuracy(randn(2, 3), torch.tensor([[1, 0, 0], [1, 0, 1]], dtype=dtype))


# ---- errors ----


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_bad_label_raises_index_error(dtype):
    labels = torch.tensor([[0, 1], [2, 3]], dtype=dtype)
    with pytest.raises(IndexError, match=r"accuracy: Target 3.* is out of bounds: 1 label is .* index \[1, 1\]"):
        segloss.accuracy(randn(2, 3, 2), labels)


def test_a_label_that_is_not_integral_is_named():
    with pytest.raises(RuntimeError, match=r"accuracy: expected integral labels .*got 0\.5 at index \[1\]"):
        segloss.accuracy(randn(2, 3), torch.tensor([1.0, 0.5]))


def test_labels_of_another_shape_are_refused():
    with pytest.raises(RuntimeError, match=r"accuracy: expected labels of shape \[2, 4\].*got target \[2, 5\]"):
        segloss.accuracy(randn(2, 3, 4), randint(3, 2, 5))


def test_a_dim_that_input_lacks_is_refused():
    with pytest.raises(IndexError, match=r"accuracy: expected dim, .* in \[-3, 2\], got 3"):
        segloss.accuracy(randn(2, 3, 4), randint(3, 2, 4), dim=3)


# ---- the result ----


def test_the_result_is_a_0_dim_tensor_of_the_default_dtype():
    result = segloss.accuracy(randn(2, 3).half(), torch.tensor([0, 1]))
    assert (result.shape, result.dtype) == ((), torch.get_default_dtype())


def test_the_result_has_no_gradient():
    assert not segloss.accuracy(randn(2, 3).requires_grad_(), torch.tensor([0, 1])).requires_grad


def class_counts(x, labels):
    """True positives, false positives, false negatives of each class: the counts that accuracy comes from."""
    return torch.ops.segloss.confusion_counts("accuracy", x, labels, x.shape[1], -100, 1, True)


def test_counts_are_exact_beyond_2_to_the_24():
    """One voxel of 2^24 + 1 is wrong; counts in float32 could not tell."""
    num_voxels = 2**24 + 1
    x = torch.tensor([1.0, 0.0]).view(1, 2, 1).expand(1, 2, num_voxels)
    labels = torch.zeros(1, num_voxels, dtype=torch.uint8)
    labels[0, 12345] = 1
    assert class_counts(x, labels).tolist() == [[num_voxels - 1, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_any_number_of_threads_counts_the_same(num_threads):
    x, labels = randn(1, 3, 100_000), randint(3, 1, 100_000)
    expected = (x.argmax(1) == labels).sum().item()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        counts = class_counts(x, labels)
    finally:
        torch.set_num_threads(before)
    assert counts.sum(1).tolist() == [expected, 100_000 - expected, 100_000 - expected]
