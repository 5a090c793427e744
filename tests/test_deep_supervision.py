"""DeepSupervisionLoss against a plain loop over torch's nearest-neighbour interpolation."""

import copy
import itertools
import pickle
import re
from functools import partial

import pytest
import torch
from tolerances import assert_close
from torch.nn import functional as F

import segloss

SIZES = [
    [(16,), (8,), (4,)],
    [(8, 12), (4, 6), (2, 3)],
    [(8, 12, 4), (4, 6, 4), (2, 3, 2), (1, 1, 1)],
    [(7, 10), (5, 4), (2, 3)],
]
DTYPES = [
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.float32,
    torch.float64,
]


def logits_of(sizes, num_classes=3):
    return [torch.randn(2, num_classes, *size, requires_grad=True) for size in sizes]


def labels_of(size, num_classes=3):
    return torch.randint(num_classes, (2, 1, *size))


def interpolated(tensor, size):
    """The tensor interpolated by torch, which takes floating tensors only."""
    return F.interpolate(tensor.double(), size=size, mode="nearest").to(tensor.dtype)


def plain(loss, inputs, target, weights=None, voxel_weight=None):
    """The plain loop, for labels and voxel weights [N, 1, *] or masks [N, C, *]."""
    if weights is None:
        weights = [2.0**-i for i in range(len(inputs))]
        weights = [w / sum(weights) for w in weights]
    total = 0
    for input, w in zip(inputs, weights, strict=True):
        size = input.shape[2:]
        keywords = {} if voxel_weight is None else {"voxel_weight": interpolated(voxel_weight, size)}
        total = total + w * loss(input, interpolated(target, size), **keywords)
    return total


def assert_same(actual, expected, inputs):
    assert_close(actual, expected)
    wanted = torch.autograd.grad(expected, inputs)
    for gradient, other in zip(torch.autograd.grad(actual, inputs), wanted, strict=True):
        assert_close(gradient, other)


class Recorder:
    """A loss that keeps what it is given."""

    def __init__(self, **attributes):
        self.calls = []
        self.__dict__.update(attributes)

    def __call__(self, input, target, **keywords):
        self.calls.append((input, target, keywords))
        return input.sum()


# ---- values ----


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("loss", [segloss.DiceCELoss(), segloss.CrossEntropyLoss(), segloss.TverskyLoss(batch=True)])
def test_deep_supervision_equals_the_plain_loop(loss, sizes):
    inputs, labels = logits_of(sizes), labels_of(sizes[0])
    assert_same(segloss.DeepSupervisionLoss(loss)(inputs, labels), plain(loss, inputs, labels), inputs)


def test_a_function_may_be_the_loss():
    inputs, labels = logits_of(SIZES[1]), labels_of(SIZES[1][0])
    actual = segloss.DeepSupervisionLoss(segloss.dice_loss)(inputs, labels)
    assert_same(actual, plain(segloss.dice_loss, inputs, labels), inputs)


def test_a_loss_of_torch_may_be_the_loss():
    inputs, labels = logits_of(SIZES[1]), labels_of(SIZES[1][0])
    actual = segloss.DeepSupervisionLoss(torch.nn.CrossEntropyLoss())(inputs, labels.squeeze(1))
    assert_same(actual, plain(segloss.cross_entropy, inputs, labels), inputs)


def test_inputs_may_be_a_tuple():
    inputs, labels = logits_of(SIZES[1]), labels_of(SIZES[1][0])
    loss = segloss.DeepSupervisionLoss(segloss.DiceLoss())
    assert torch.equal(loss(tuple(inputs), labels), loss(inputs, labels))


def test_one_input_is_the_loss_itself():
    (input,), labels = logits_of([(4, 6)]), labels_of((4, 6))
    loss = segloss.DeepSupervisionLoss(segloss.DiceCELoss())
    assert torch.equal(loss([input], labels), segloss.dice_ce_loss(input, labels))


def test_the_first_input_may_be_smaller_than_the_target():
    inputs, labels = logits_of([(4, 6), (2, 3)]), labels_of((8, 12))
    loss = segloss.DiceCELoss()
    assert_same(segloss.DeepSupervisionLoss(loss)(inputs, labels), plain(loss, inputs, labels), inputs)


def test_ignored_labels_stay_ignored():
    inputs, labels = logits_of(SIZES[1]), labels_of(SIZES[1][0])
    labels[:, :, ::2, ::3] = 255
    loss = segloss.DiceCELoss(ignore_index=255, empty="zero")
    assert_same(segloss.DeepSupervisionLoss(loss)(inputs, labels), plain(loss, inputs, labels), inputs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_masks_of_the_first_inputs_shape_are_subsampled(dtype):
    inputs = logits_of(SIZES[3])
    masks = torch.randint(2, inputs[0].shape).to(dtype)
    loss = segloss.DiceCELoss(activation="sigmoid")
    assert_same(segloss.DeepSupervisionLoss(loss)(inputs, masks), plain(loss, inputs, masks), inputs)


def test_probabilities_of_the_first_inputs_shape_are_subsampled():
    inputs = logits_of(SIZES[3])
    target = torch.randn(inputs[0].shape).softmax(1)
    loss = segloss.DiceCELoss()
    assert_same(segloss.DeepSupervisionLoss(loss)(inputs, target), plain(loss, inputs, target), inputs)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_voxel_weights_are_subsampled(sizes):
    inputs, labels, v = logits_of(sizes), labels_of(sizes[0]), torch.rand(2, 1, *sizes[0])
    loss = segloss.DiceCELoss()
    actual = segloss.DeepSupervisionLoss(loss)(inputs, labels, v)
    assert_same(actual, plain(loss, inputs, labels, voxel_weight=v), inputs)
    assert not torch.equal(actual, segloss.DeepSupervisionLoss(loss)(inputs, labels))


# ---- subsampling ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_channel", [False, True], ids=["[N,*]", "[N,1,*]"])
def test_labels_of_any_dtype_are_subsampled_as_they_are(has_channel, dtype):
    labels = torch.randint(100, (2, 1, 9, 10)).to(dtype)
    given = labels if has_channel else labels.squeeze(1)
    loss = Recorder()
    segloss.DeepSupervisionLoss(loss)(logits_of([(9, 10), (3, 5), (4, 7)]), given)
    for input, target, _ in loss.calls:
        expected = interpolated(labels.to(torch.float64), input.shape[2:]).to(dtype)
        assert target.dtype == dtype
        assert torch.equal(target, expected if has_channel else expected.squeeze(1))


def test_bool_labels_are_subsampled_as_they_are():
    labels = torch.rand(2, 9, 10) < 0.5
    loss = Recorder()
    segloss.DeepSupervisionLoss(loss)(logits_of([(4, 5)]), labels)
    expected = interpolated(labels.double().unsqueeze(1), (4, 5)).squeeze(1).bool()
    assert torch.equal(loss.calls[0][1], expected)


@pytest.mark.parametrize("size", range(1, 24))
def test_the_source_index_is_that_of_interpolate(size):
    positions = torch.arange(23).reshape(1, 23)
    loss = Recorder()
    segloss.DeepSupervisionLoss(loss)([torch.zeros(1, 2, size)], positions)
    expected = F.interpolate(positions.float().unsqueeze(1), size=size, mode="nearest").squeeze(1)
    assert torch.equal(loss.calls[0][1].float(), expected)


@pytest.mark.parametrize("size", [(8, 12), (4, 12), (2, 3)])
def test_nothing_is_copied_when_the_sizes_divide_evenly(size):
    labels = labels_of((8, 12))
    loss = Recorder()
    segloss.DeepSupervisionLoss(loss)(logits_of([size]), labels)
    assert loss.calls[0][1].data_ptr() == labels.data_ptr()


def test_the_target_of_full_resolution_is_handed_on():
    labels = labels_of((8, 12))
    loss = Recorder()
    segloss.DeepSupervisionLoss(loss)(logits_of([(8, 12)]), labels)
    assert torch.equal(loss.calls[0][1], labels)
    assert loss.calls[0][1].stride() == labels.stride()


@pytest.mark.parametrize("has_channel", [False, True], ids=["[N,*]", "[N,*,1]"])
@pytest.mark.parametrize("dim", [-1, 3])
def test_the_class_dimension_is_that_of_the_loss(dim, has_channel):
    inputs, labels = logits_of(SIZES[3]), labels_of(SIZES[3][0]).squeeze(1)
    loss = segloss.DeepSupervisionLoss(segloss.DiceCELoss(dim=dim))
    last = [input.movedim(1, -1) for input in inputs]
    actual = loss(last, labels.unsqueeze(-1) if has_channel else labels)
    assert_same(actual, plain(segloss.dice_ce_loss, inputs, labels.unsqueeze(1)), inputs)


def test_masks_are_not_subsampled_along_the_class_dimension():
    inputs = [torch.randn(2, 8, 10, 6), torch.randn(2, 4, 5, 6)]
    loss = Recorder(dim=-1)
    segloss.DeepSupervisionLoss(loss)(inputs, torch.zeros(2, 8, 10, 6))
    assert [target.shape for _, target, _ in loss.calls] == [input.shape for input in inputs]


def test_the_batch_is_not_subsampled():
    inputs, labels = [torch.randn(2, 3, 4)], torch.zeros(4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="dice_loss"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss())(inputs, labels)


def test_a_target_without_spatial_dimensions_is_not_subsampled():
    inputs, labels = [torch.randn(4, 3), torch.randn(4, 3)], torch.tensor([0, 2, 1, 1])
    first, second = (segloss.dice_ce_loss(input, labels) for input in inputs)
    assert_close(segloss.DeepSupervisionLoss(segloss.DiceCELoss())(inputs, labels), (2 * first + second) / 3)


# ---- weights ----


@pytest.mark.parametrize("num_inputs", [1, 2, 5])
def test_default_weights_halve_and_sum_to_1(num_inputs):
    inputs = [torch.ones(1, 1, 1, requires_grad=True) for _ in range(num_inputs)]
    segloss.DeepSupervisionLoss(Recorder())(inputs, torch.zeros(1, 1, 1)).backward()
    weights = [input.grad.item() for input in inputs]
    assert sum(weights) == pytest.approx(1)
    assert [a / b for a, b in itertools.pairwise(weights)] == pytest.approx([2] * (num_inputs - 1))


def test_given_weights_are_taken_as_they_are():
    inputs, labels, weights = logits_of(SIZES[1]), labels_of(SIZES[1][0]), [3.0, 0.5, -1.0]
    loss = segloss.DiceCELoss()
    actual = segloss.DeepSupervisionLoss(loss, weights)(inputs, labels)
    assert_same(actual, plain(loss, inputs, labels, weights), inputs)


def test_an_input_of_weight_0_is_left_out():
    inputs, labels = logits_of(SIZES[1]), labels_of(SIZES[1][0])
    loss = Recorder()
    segloss.DeepSupervisionLoss(loss, [1.0, 0, 0.5])(inputs, labels)
    assert [input.shape for input, _, _ in loss.calls] == [inputs[0].shape, inputs[2].shape]


def test_weights_of_0_alone_are_refused():
    with pytest.raises(ValueError, match=r"expected a weight other than 0, got \[0.0, 0\]"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss(), [0.0, 0])


def test_the_callers_list_of_weights_may_change_afterwards():
    weights = [1.0, 0.5]
    loss = segloss.DeepSupervisionLoss(segloss.DiceLoss(), weights)
    weights.append(0.25)
    assert loss.weights == (1.0, 0.5)


# ---- errors ----


def test_a_wrong_number_of_inputs_names_their_shapes():
    text = re.escape("expected 2 inputs, one for each weight, got 1 of shapes [[2, 3, 4, 6]]")
    with pytest.raises(ValueError, match=text):
        segloss.DeepSupervisionLoss(segloss.DiceLoss(), [1.0, 0.5])(logits_of([(4, 6)]), labels_of((4, 6)))


@pytest.mark.parametrize("inputs", [[], ()])
def test_no_input_is_refused(inputs):
    with pytest.raises(ValueError, match="at least one resolution, got an empty list"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss())(inputs, labels_of((4, 6)))


@pytest.mark.parametrize("size", [(16, 6), (4, 12), (5, 6)])
def test_an_input_larger_than_the_target_is_refused(size):
    text = re.escape(f"got [2, 1, 4, 6] for input [2, 3, {size[0]}, {size[1]}]")
    with pytest.raises(ValueError, match=text):
        segloss.DeepSupervisionLoss(segloss.DiceLoss())(logits_of([size]), labels_of((4, 6)))


@pytest.mark.parametrize("target_shape", [(2,), (2, 1, 4, 6, 1)])
def test_a_target_of_another_number_of_dimensions_is_refused(target_shape):
    text = re.escape(f"got {list(target_shape)} for input [2, 3, 4, 6]")
    with pytest.raises(ValueError, match=text):
        segloss.DeepSupervisionLoss(segloss.DiceLoss())(logits_of([(4, 6)]), torch.zeros(target_shape))


def test_voxel_weights_of_another_resolution_are_refused():
    with pytest.raises(ValueError, match=r"got \[2, 1, 2, 3\] for input \[2, 3, 4, 6\]"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss())(logits_of([(4, 6)]), labels_of((4, 6)), torch.ones(2, 1, 2, 3))


def test_a_tensor_instead_of_a_list_is_refused():
    text = (
        r"expected a list of logits.*got Tensor. Pass input.unbind\(1\) for .* stacked .*, \[input\] for a single one"
    )
    with pytest.raises(TypeError, match=text):
        segloss.DeepSupervisionLoss(segloss.DiceLoss())(logits_of([(4, 6)])[0], labels_of((4, 6)))


def test_a_class_instead_of_an_instance_as_loss_is_refused():
    with pytest.raises(TypeError, match=r"expected a module or a function as loss, got a class\. Pass DiceLoss\(\)"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss)


def test_losses_of_different_shapes_are_not_added():
    inputs, labels = [torch.randn(1, 3, 4), torch.randn(1, 3, 1)], torch.zeros(1, 4, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="equal size"):
        segloss.DeepSupervisionLoss(segloss.CrossEntropyLoss(reduction="none"))(inputs, labels)


# ---- a target for each input ----


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_targets_has_one_for_each_input(kind, sizes):
    inputs, labels, weights = (
        logits_of(sizes),
        [labels_of(size) for size in sizes],
        [0.5, 0, *[0.25] * (len(sizes) - 2)],
    )
    loss = segloss.DiceCELoss()
    expected = sum(w * loss(x, y) for w, x, y in zip(weights, inputs, labels, strict=True) if w)
    used = [x for w, x in zip(weights, inputs, strict=True) if w]
    assert_same(segloss.DeepSupervisionLoss(loss, weights)(inputs, kind(labels)), expected, used)


def test_a_list_of_voxel_weights_has_one_for_each_input():
    sizes = [(8, 12), (4, 6)]
    inputs, labels, v = (
        logits_of(sizes),
        [labels_of(size) for size in sizes],
        [torch.rand(2, 1, *size) for size in sizes],
    )
    loss = segloss.DeepSupervisionLoss(segloss.DiceCELoss(), [1.0, 0.5])
    expected = segloss.dice_ce_loss(inputs[0], labels[0], voxel_weight=v[0])
    expected = expected + segloss.dice_ce_loss(inputs[1], labels[1], voxel_weight=v[1]) / 2
    assert_same(loss(inputs, labels, v), expected, inputs)


def test_a_list_of_targets_that_nnunet_made_gives_the_loss_of_the_full_target():
    inputs, labels = logits_of([(8, 12), (4, 6), (2, 3)]), labels_of((8, 12))
    loss = segloss.DeepSupervisionLoss(segloss.DiceCELoss(), mode="nearest-exact")
    made = [F.interpolate(labels.float(), x.shape[2:], mode="nearest-exact") for x in inputs]
    assert_close(loss(inputs, made), loss(inputs, labels))


def test_with_upsample_each_input_is_taken_to_its_target():
    inputs, labels = logits_of([(4, 6), (2, 3)]), [labels_of((8, 12)), labels_of((4, 6))]
    loss = segloss.DeepSupervisionLoss(segloss.CrossEntropyLoss(), [1.0, 1.0], upsample="bilinear")
    expected = sum(segloss.cross_entropy(x, y, upsample="bilinear") for x, y in zip(inputs, labels, strict=True))
    assert_close(loss(inputs, labels), expected)


@pytest.mark.parametrize("name", ["target", "voxel_weight"])
def test_a_list_of_another_length_than_the_inputs_is_refused(name):
    inputs, labels = logits_of([(4, 6), (2, 3)]), labels_of((4, 6))
    arguments = ([labels],) if name == "target" else (labels, [torch.ones(2, 1, 4, 6)])
    with pytest.raises(ValueError, match=f"expected a {name} for each of the 2 inputs, got 1"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss())(inputs, *arguments)


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (2, 1, 2, 6), (2,)])
def test_a_target_of_another_resolution_than_its_input_is_refused(shape):
    inputs, labels = logits_of([(4, 6), (2, 3)]), [labels_of((4, 6)), torch.zeros(shape, dtype=torch.long)]
    text = re.escape(f"expected target[1] at the resolution of its input [2, 3, 2, 3], got {list(shape)}")
    with pytest.raises(ValueError, match=text):
        segloss.DeepSupervisionLoss(segloss.DiceLoss())(inputs, labels)


def test_a_target_in_a_list_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"expected target\[0\] to be a torch\.Tensor, got int"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss())(logits_of([(4, 6)]), [3])


# ---- nearest-exact ----


@pytest.mark.parametrize("sizes", [*SIZES, [(30,), (10,), (7,), (1,)]], ids=str)
def test_nearest_exact_takes_the_voxels_that_interpolate_takes(sizes):
    inputs, positions = logits_of(sizes), torch.arange(2 * torch.Size(sizes[0]).numel()).view(2, 1, *sizes[0])
    recorder = Recorder()
    segloss.DeepSupervisionLoss(recorder, mode="nearest-exact")(inputs, positions)
    for x, (_, target, _) in zip(inputs, recorder.calls, strict=True):
        expected = F.interpolate(positions.double(), x.shape[2:], mode="nearest-exact")
        assert torch.equal(target, expected.long())


def test_nearest_exact_is_a_view_where_the_sizes_divide():
    labels, recorder = labels_of((12, 8)), Recorder()
    segloss.DeepSupervisionLoss(recorder, mode="nearest-exact")(logits_of([(4, 4)]), labels)
    (_, target, _) = recorder.calls[0]
    assert target.untyped_storage().data_ptr() == labels.untyped_storage().data_ptr()
    assert torch.equal(target, labels[..., 1::3, 1::2])


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="expected mode to be 'nearest' or 'nearest-exact', got 'area'"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss(), mode="area")


# ---- repr, state and copies of the module ----


def test_repr_shows_the_loss_and_the_weights():
    text = repr(segloss.DeepSupervisionLoss(segloss.DiceCELoss(lambda_ce=0.5), [1.0, 0.5]))
    assert text.startswith("DeepSupervisionLoss(")
    assert "weights=(1.0, 0.5)" in text
    assert "(loss): DiceCELoss(" in text
    assert "lambda_ce=0.5" in text


def test_the_weight_of_its_loss_moves_with_it():
    loss = segloss.DeepSupervisionLoss(segloss.DiceLoss(weight=torch.ones(3)))
    assert list(loss.state_dict()) == ["loss.weight"]
    assert loss.to(torch.float64).loss.weight.dtype == torch.float64


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_copy_is_the_module(copied):
    inputs, labels = logits_of(SIZES[1]), labels_of(SIZES[1][0])
    loss = segloss.DeepSupervisionLoss(segloss.DiceCELoss(), [1.0, 0.5, 0.25])
    assert repr(copied(loss)) == repr(loss)
    assert torch.equal(copied(loss)(inputs, labels), loss(inputs, labels))


def test_the_class_dimension_of_a_partial_function_was_ignored():
    inputs = [x.movedim(1, -1) for x in logits_of(SIZES[1])]
    target = labels_of(SIZES[1][0]).squeeze(1)
    loss = partial(segloss.cross_entropy, dim=-1)
    expected = segloss.DeepSupervisionLoss(segloss.CrossEntropyLoss(dim=-1))(inputs, target)
    assert_close(segloss.DeepSupervisionLoss(loss)(inputs, target), expected)
    assert_close(segloss.DeepSupervisionLoss(partial(loss, label_smoothing=0.0))(inputs, target), expected)


@pytest.mark.parametrize("is_list", [False, True])
def test_a_class_dimension_that_no_input_has_is_refused(is_list):
    labels = labels_of((4, 6))
    with pytest.raises(IndexError, match=r"expected dim, the class dimension, in \[-4, 3\] for input .*, got 7"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss(dim=7))(logits_of([(4, 6)]), [labels] if is_list else labels)
