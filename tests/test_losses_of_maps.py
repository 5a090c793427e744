"""What the losses that make a map of each class share: boundary, Hausdorff and clDice, against slow references."""

from functools import partial

import pytest
import reference
import torch
from losses import CLDICE_LOSSES, DISTANCE_LOSSES, value_and_gradient
from tolerances import assert_close

import segloss

PAIRS = {name: getattr(reference, name) for name in DISTANCE_LOSSES + CLDICE_LOSSES}
EACH_LOSS = pytest.mark.parametrize("name", PAIRS)


def logits(*shape):
    """None of whose probabilities is close to 0.5, where the mask of the prediction changes."""
    x = torch.randn(shape, dtype=torch.float64) * 2
    for _ in range(100):
        near = torch.stack([x.softmax(1), x.sigmoid(), x]).sub(0.5).abs().amin(0) < 0.02
        x = torch.where(near, torch.randn(shape, dtype=torch.float64) * 2, x)
    return x


def ours(name, **options):
    return partial(getattr(segloss, name), **options)


def assert_is_reference(name, x, target, **options):
    """Compares value and gradient."""
    actual = value_and_gradient(ours(name, **options), x, target)
    expected = reference.value_and_gradient(partial(PAIRS[name], **options), x, target)
    assert actual[0].dtype == actual[1].dtype == x.dtype
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, x.dtype)


@EACH_LOSS
def test_a_probability_needs_no_activation(name):
    labels = torch.randint(3, (2, 5, 6))
    assert_is_reference(name, logits(2, 3, 5, 6).softmax(1), labels, activation=None)


@EACH_LOSS
def test_masks_may_overlap(name):
    masks = torch.randint(2, (2, 3, 5, 6))
    for dtype in (torch.uint8, torch.bool, torch.int64, torch.float32):
        assert_is_reference(name, logits(2, 3, 5, 6), masks.to(dtype), activation="sigmoid", reduction="none")


@EACH_LOSS
@pytest.mark.parametrize("sizes", [(1,), (1, 1), (1, 1, 1), (1, 4, 5), (4, 1, 5), (5, 4, 1)])
def test_volumes_of_one_voxel_or_slice(name, sizes):
    assert_is_reference(name, logits(2, 3, *sizes), torch.randint(3, (2, *sizes)))


@EACH_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bool])
@pytest.mark.parametrize("options", [{}, {"activation": "sigmoid"}, {"batch": True, "reduction": "none"}])
def test_voxels_are_weighted(name, dtype, options):
    labels, weights = torch.randint(-1, 3, (2, 1, 5, 6)), torch.randint(3, (2, 5, 6)).to(dtype)
    assert_is_reference(name, logits(2, 3, 5, 6), labels, voxel_weight=weights, ignore_index=-1, **options)


@EACH_LOSS
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 1, 5, 6)])
def test_a_label_map_gives_the_classes(name, shape):
    x, classes = logits(2, 3, 5, 6), torch.randint(-1, 3, shape)
    labels = torch.tensor([7, 30, 4, 255], dtype=torch.uint8)[classes]
    expected = PAIRS[name](x, classes, ignore_index=-1)
    assert_close(ours(name, label_map={7: 0, 30: 1, 4: 2, 255: None})(x, labels), expected, x.dtype)
    assert_close(ours(name, ignore_index=(255, -1))(x, classes), expected, x.dtype)


@EACH_LOSS
def test_regions_are_masks_of_several_classes(name):
    x, labels = logits(2, 2, 5, 6), torch.randint(4, (2, 5, 6))
    masks = torch.stack([labels > 0, labels == 3], 1)
    for target in (labels, labels.unsqueeze(1), labels.float()):
        actual = ours(name, activation="sigmoid", regions=[(1, 2, 3), (3,)], reduction="none")(x, target)
        assert_close(actual, PAIRS[name](x, masks, activation="sigmoid", reduction="none"), x.dtype)


@EACH_LOSS
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_first_and_second_derivatives(name, activation):
    labels = torch.randint(-1, 3, (2, 3, 3))
    x = logits(2, 3, 3, 3)
    x = (x if activation else x.softmax(1)).requires_grad_()
    loss = ours(name, activation=activation, ignore_index=-1, reduction="none")
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), x, eps=1e-8 if activation is None else 1e-6)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), x, eps=1e-8 if activation is None else 1e-6)


@EACH_LOSS
def test_arguments_are_left_as_they_were(name):
    arguments = [logits(2, 3, 5, 6), torch.randint(3, (2, 5, 6)), torch.rand(2, 5, 6)]
    before = [each.clone() for each in arguments]
    ours(name)(*arguments[:2], voxel_weight=arguments[2])
    assert all(map(torch.equal, arguments, before))
