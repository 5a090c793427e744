"""BinaryDiceLoss and MultiClassDiceLoss against the two classes that many training scripts carry, in plain PyTorch."""

import re

import pytest
import torch
from tolerances import ROUNDING_RTOL, assert_close, assert_relative
from torch import nn
from torch.nn import functional as F

import segloss


class PlainBinaryDice(nn.Module):
    def __init__(self, smooth=1.0):
        super().__init__()
        self.smooth = smooth

    def forward(self, input, target):
        num_samples = target.size(0)
        p = input.reshape(num_samples, -1)
        g = target.reshape(num_samples, -1)
        intersection = (p * g).sum(1)
        dice = (2 * intersection + self.smooth) / (p.sum(1) + g.sum(1) + self.smooth)
        return 1 - dice.sum() / num_samples


class PlainMultiClassDice(nn.Module):
    def __init__(self, weight=None, smooth=1.0):
        super().__init__()
        self.weight = weight
        self.binary = PlainBinaryDice(smooth)

    def forward(self, input, target):
        num_classes = input.shape[1]
        one_hot = F.one_hot(target.long(), num_classes).movedim(-1, 1)
        p = F.softmax(input, dim=1)
        total = 0
        for c in range(num_classes):
            loss = self.binary(p[:, c], one_hot[:, c])
            total = total + (loss if self.weight is None else loss * self.weight[c])
        return total / num_classes


SPATIAL = [(), (7,), (5, 6), (3, 4, 5)]
WEIGHT = torch.tensor([0.5, 2.0, 1.0])


def value_and_gradient(loss, input, *args):
    x = input.detach().clone().requires_grad_()
    value = loss(x, *args)
    return value.detach(), torch.autograd.grad(value, x)[0]


def assert_same(ours, plain, input, *args, plain_args=None):
    expected = value_and_gradient(plain, input.double(), *(plain_args or args))
    for actual, wanted in zip(value_and_gradient(ours, input, *args), expected, strict=True):
        assert_close(actual, wanted)


# ---- binary ----


@pytest.mark.parametrize("spatial", SPATIAL, ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("smooth", [1.0, 0.5, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_dice_is_the_plain_class(dtype, smooth, spatial):
    p, g = torch.rand(3, *spatial, dtype=dtype), torch.randint(2, (3, *spatial))
    assert_same(segloss.BinaryDiceLoss(smooth), PlainBinaryDice(smooth), p, g)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64, torch.bool, torch.float16])
def test_binary_dice_takes_masks_of_any_dtype(dtype):
    p, g = torch.rand(2, 5, 6), torch.randint(2, (2, 5, 6))
    assert_same(segloss.BinaryDiceLoss(), PlainBinaryDice(), p, g.to(dtype), plain_args=(g,))


def test_binary_dice_takes_a_soft_target():
    p, g = torch.rand(2, 5, 6), torch.rand(2, 5, 6)
    assert_same(segloss.BinaryDiceLoss(), PlainBinaryDice(), p, g)


def test_binary_dice_smooths_by_1_by_default():
    assert_close(segloss.BinaryDiceLoss()(torch.zeros(1, 3), torch.ones(1, 3)), torch.tensor(0.75))


def test_binary_dice_keeps_a_channel_of_one():
    p, g = torch.rand(2, 1, 5, 6), torch.randint(2, (2, 1, 5, 6))
    assert_same(segloss.BinaryDiceLoss(), PlainBinaryDice(), p, g)


def test_binary_dice_is_the_mean_over_the_samples_not_the_loss_of_the_batch():
    p = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    g = torch.tensor([[1, 0], [1, 1]])
    assert_close(segloss.BinaryDiceLoss()(p, g), torch.tensor((0 + 2 / 3) / 2))


def test_binary_dice_of_an_empty_mask_that_is_predicted_empty_is_0():
    loss, gradient = value_and_gradient(segloss.BinaryDiceLoss(), torch.zeros(2, 4), torch.zeros(2, 4))
    assert loss == 0
    assert_close(gradient, torch.full((2, 4), 0.5))


def test_binary_dice_leaves_out_voxels_of_weight_0():
    p, g = torch.rand(2, 6), torch.randint(2, (2, 6))
    v = torch.tensor([1.0, 1, 1, 1, 0, 0]).expand(2, 6)
    assert_close(segloss.BinaryDiceLoss()(p, g, v), PlainBinaryDice()(p[:, :4], g[:, :4]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_binary_dice_of_half_types_is_rounded_once(dtype):
    p, g = torch.rand(1, 512, 512).to(dtype), torch.randint(2, (1, 512, 512))
    loss = segloss.BinaryDiceLoss()(p, g)
    assert loss.dtype == dtype
    assert_relative(loss, PlainBinaryDice()(p.double(), g), ROUNDING_RTOL[dtype])


@pytest.mark.parametrize("value", [255, 2, -1, -100])
def test_binary_dice_refuses_integers_other_than_0_and_1(value):
    with pytest.raises(RuntimeError, match=str(value)):
        segloss.BinaryDiceLoss()(torch.rand(2, 4), torch.tensor([[0, 1, 1, 0], [0, value, 1, 0]]))


@pytest.mark.parametrize(("input_shape", "target_shape"), [((2, 1, 4), (2, 4)), ((2, 4), (2, 1, 4)), ((2, 4), (1, 4))])
def test_binary_dice_refuses_a_target_of_another_shape(input_shape, target_shape):
    text = re.escape(f"of one shape [N, ...], got input {list(input_shape)} and target {list(target_shape)}")
    with pytest.raises(ValueError, match=text):
        segloss.BinaryDiceLoss()(torch.rand(input_shape), torch.ones(target_shape))


def test_binary_dice_refuses_a_number():
    with pytest.raises(ValueError, match=r"got input \[\] and target \[\]"):
        segloss.BinaryDiceLoss()(torch.tensor(0.5), torch.tensor(1.0))


# ---- multi-class ----


@pytest.mark.parametrize("spatial", SPATIAL, ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("smooth", [1.0, 0.5, 1e-5])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weight"])
def test_multi_class_dice_is_the_plain_class(weight, smooth, spatial):
    x, labels = torch.randn(4, 3, *spatial), torch.randint(3, (4, *spatial))
    assert_same(segloss.MultiClassDiceLoss(weight, smooth=smooth), PlainMultiClassDice(weight, smooth), x, labels)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_multi_class_dice_with_any_number_of_classes(num_classes):
    x, labels = torch.randn(2, num_classes, 5, 6), torch.randint(num_classes, (2, 5, 6))
    assert_same(segloss.MultiClassDiceLoss(), PlainMultiClassDice(), x, labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_multi_class_dice_takes_labels_with_a_channel_of_any_dtype(dtype):
    x, labels = torch.randn(2, 3, 5, 6), torch.randint(3, (2, 5, 6))
    given = labels.unsqueeze(1).to(dtype)
    assert_same(segloss.MultiClassDiceLoss(), PlainMultiClassDice(), x, given, plain_args=(labels,))


def test_multi_class_dice_without_the_ignored_voxels_is_the_plain_class():
    x, labels = torch.randn(1, 3, 10), torch.randint(3, (1, 10))
    labels[:, 6:] = 255
    value, gradient = value_and_gradient(segloss.MultiClassDiceLoss(ignore_index=255), x, labels)
    expected, rest = value_and_gradient(PlainMultiClassDice(), x[..., :6], labels[..., :6])
    assert_close(value, expected)
    assert_close(gradient, F.pad(rest, (0, 4)))


def test_multi_class_dice_ignores_a_class_by_its_voxels_not_by_its_term():
    x, labels = torch.randn(1, 3, 10), torch.randint(3, (1, 10))
    valid = labels[0] != 0
    expected = PlainMultiClassDice()(x[..., valid], labels[..., valid])
    assert_close(segloss.MultiClassDiceLoss(ignore_index=0)(x, labels), expected)


@pytest.mark.parametrize("label", [-100, 255, -1])
def test_multi_class_dice_ignores_no_label_by_default(label):
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        segloss.MultiClassDiceLoss()(torch.randn(1, 3, 4), torch.tensor([[0, 1, label, 2]]))


def test_multi_class_dice_with_voxel_weights_leaves_out_those_of_0():
    x, labels = torch.randn(2, 3, 6), torch.randint(3, (2, 6))
    v = torch.tensor([1.0, 1, 1, 1, 0, 0]).expand(2, 6)
    expected = PlainMultiClassDice()(x[..., :4], labels[..., :4])
    assert_close(segloss.MultiClassDiceLoss()(x, labels, v), expected)


def test_arguments_of_multi_class_dice_have_the_usual_order():
    loss = segloss.MultiClassDiceLoss(WEIGHT, 255, 3.0)
    assert torch.equal(loss.weight, WEIGHT)
    assert (loss.ignore_index, loss.smooth) == (255, 3.0)
