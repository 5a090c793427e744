"""Slips of MONAI, nnU-Net, SMP and kornia that segloss does not repeat: our value against one computed voxel by voxel.

Where MONAI itself shows the slip, a test asserts that, too: it fails once MONAI has fixed it.
"""

import math

import pytest
import torch
from monai import losses as monai
from tolerances import assert_close
from torch import Tensor

import segloss

NUM_CLASSES = 4
IGNORE_INDEX = 255


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(
        2, NUM_CLASSES, 5, 6, generator=torch.Generator(torch.get_default_device()).manual_seed(0), dtype=torch.float64
    )


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(
        NUM_CLASSES, (2, 1, 5, 6), generator=torch.Generator(torch.get_default_device()).manual_seed(1)
    )


@pytest.fixture
def with_ignored(labels) -> Tensor:
    ignored = torch.rand(labels.shape, generator=torch.Generator(torch.get_default_device()).manual_seed(2)) < 0.6
    return labels.masked_fill(ignored, IGNORE_INDEX)


def voxels(logits: Tensor, labels: Tensor) -> list[tuple[list[float], int]]:
    """Logits and label of each voxel that is not ignored."""
    rows = zip(logits.movedim(1, -1).reshape(-1, NUM_CLASSES).tolist(), labels.flatten().tolist(), strict=True)
    return [(x, y) for x, y in rows if y != IGNORE_INDEX]


def softmax(x: list[float]) -> list[float]:
    powers = [math.exp(value) for value in x]
    return [power / sum(powers) for power in powers]


def softmax_focal(x: list[float], y: int, gamma: float = 2.0) -> float:
    p = softmax(x)[y]
    return (1 - p) ** gamma * -math.log(p)


def sigmoid_focal(x: float, y: bool, gamma: float = 2.0) -> float:
    q = 1 / (1 + math.exp(-x if y else x))  # the probability of its label
    return (1 - q) ** gamma * -math.log(q)


def mean(values: list[float]) -> Tensor:
    return torch.tensor(sum(values) / len(values), dtype=torch.float64)


def gradient_of(loss, logits: Tensor) -> Tensor:
    x = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


# ---- an ignore_index that never occurs -------------------------------------------------------------------------------


def test_monai_focal_loss_is_multiplied_by_the_classes_if_an_ignore_index_is_given(logits, labels):
    for options in ({"use_softmax": True}, {"use_softmax": False}):
        without = monai.FocalLoss(to_onehot_y=True, **options)(logits, labels)
        given = monai.FocalLoss(to_onehot_y=True, ignore_index=IGNORE_INDEX, **options)(logits, labels)
        assert_close(given, NUM_CLASSES * without)


def test_softmax_focal_loss_is_the_same_with_an_ignore_index_that_never_occurs(logits, labels):
    expected = mean([softmax_focal(x, y) for x, y in voxels(logits, labels)])
    assert_close(segloss.focal_loss(logits, labels), expected)
    assert_close(segloss.focal_loss(logits, labels, ignore_index=IGNORE_INDEX), expected)


def test_sigmoid_focal_loss_is_the_same_with_an_ignore_index_that_never_occurs(logits, labels):
    terms = [sigmoid_focal(x[c], y == c) for x, y in voxels(logits, labels) for c in range(NUM_CLASSES)]
    for options in ({}, {"ignore_index": IGNORE_INDEX}):
        assert_close(segloss.focal_loss(logits, labels, activation="sigmoid", **options), mean(terms))


# ---- ignored voxels among the largest losses (nnU-Net), in the mean's denominator (SMP, kornia) ----------------------


@pytest.mark.parametrize("k", [10.0, 50.0, 100.0])
def test_topk_loss_chooses_among_the_voxels_that_are_not_ignored(logits, with_ignored, k):
    losses = sorted((softmax_focal(x, y, gamma=0) for x, y in voxels(logits, with_ignored)), reverse=True)
    expected = mean(losses[: max(1, int(len(losses) * k / 100))])
    loss = segloss.topk_loss(logits, with_ignored, k=k, ignore_index=IGNORE_INDEX)
    assert_close(loss, expected)
    assert expected > 0.1


def test_topk_loss_gives_an_ignored_voxel_no_gradient_and_no_place(logits, with_ignored):
    def loss(x):
        return segloss.topk_loss(x, with_ignored, k=50, ignore_index=IGNORE_INDEX)

    has_gradient = gradient_of(loss, logits).abs().sum(1, keepdim=True) > 0
    valid = with_ignored != IGNORE_INDEX
    assert not (has_gradient & ~valid).any()
    assert has_gradient.sum() == valid.sum() // 2


def test_focal_losses_divide_by_the_voxels_that_are_not_ignored(logits, with_ignored):
    rows = voxels(logits, with_ignored)
    options = {"ignore_index": IGNORE_INDEX}
    assert_close(segloss.focal_loss(logits, with_ignored, **options), mean([softmax_focal(x, y) for x, y in rows]))
    terms = [sigmoid_focal(x[c], y == c) for x, y in rows for c in range(NUM_CLASSES)]
    assert_close(segloss.focal_loss(logits, with_ignored, activation="sigmoid", **options), mean(terms))


def test_smoothed_cross_entropy_divides_by_the_voxels_that_are_not_ignored(logits, with_ignored):
    terms = []
    for x, y in voxels(logits, with_ignored):
        nll = [-math.log(p) for p in softmax(x)]
        terms.append(0.9 * nll[y] + 0.1 * sum(nll) / NUM_CLASSES)
    loss = segloss.cross_entropy(logits, with_ignored, ignore_index=IGNORE_INDEX, label_smoothing=0.1)
    assert_close(loss, mean(terms))


# ---- the background dropped before the softmax -----------------------------------------------------------------------


def test_monai_focal_loss_without_background_takes_the_softmax_of_the_other_classes(logits, labels):
    theirs = monai.FocalLoss(use_softmax=True, to_onehot_y=True, include_background=False)(logits, labels)
    terms = []
    for x, y in voxels(logits, labels):
        others = softmax(x[1:])
        terms += [(1 - p) ** 2 * -math.log(p) * (y == c) for c, p in enumerate(others, 1)]
    assert_close(theirs, mean(terms), torch.float32)


def test_focal_loss_without_background_takes_the_softmax_of_all_classes(logits, labels):
    """The background's weight is 0, so that its voxels are not in the denominator."""
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0])
    expected = mean([softmax_focal(x, y) for x, y in voxels(logits, labels) if y > 0])
    assert_close(segloss.focal_loss(logits, labels, weight=weight), expected)


def test_dice_loss_without_background_takes_the_softmax_of_all_classes(logits, labels):
    shared, sizes = [0.0] * NUM_CLASSES, [0.0] * NUM_CLASSES
    for x, y in voxels(logits, labels):
        for c, p in enumerate(softmax(x)):
            shared[c] += p * (y == c)
            sizes[c] += p + (y == c)
    expected = mean([1 - (2 * shared[c] + 1e-5) / (sizes[c] + 1e-5) for c in range(1, NUM_CLASSES)])

    def loss(x):
        return segloss.dice_loss(x, labels, include_background=False, batch=True)

    assert_close(loss(logits), expected)
    assert (gradient_of(loss, logits)[:, 0] != 0).all()


# ---- weights, sums and powers ----------------------------------------------------------------------------------------


def test_monai_dice_loss_ignores_the_weight_of_a_single_class(logits, labels):
    x, y = logits[:, :2], labels % 2
    options = {"softmax": True, "to_onehot_y": True, "include_background": False}
    theirs = monai.DiceLoss(**options, weight=torch.tensor([3.0]))(x, y)
    assert_close(theirs, monai.DiceLoss(**options)(x, y))


def test_dice_loss_weighs_a_single_class(logits, labels):
    x, y = logits[:, :2], labels % 2
    loss = segloss.dice_loss(x, y, include_background=False, weight=torch.tensor([9.0, 3.0]))
    assert_close(loss, 3 * segloss.dice_loss(x, y, include_background=False))


def test_monai_focal_loss_with_reduction_sum_is_a_sum_of_means(logits, labels):
    options = {"use_softmax": True, "to_onehot_y": True}
    theirs = monai.FocalLoss(**options, reduction="sum")(logits, labels)
    assert_close(theirs, monai.FocalLoss(**options, reduction="none")(logits, labels).sum() / 30)


def test_focal_loss_with_reduction_sum_is_the_sum(logits, labels):
    expected = torch.tensor(sum(softmax_focal(x, y) for x, y in voxels(logits, labels)), dtype=torch.float64)
    assert_close(segloss.focal_loss(logits, labels, reduction="sum"), expected)


def test_monai_focal_loss_of_a_certain_voxel_has_a_nan_gradient_for_gamma_below_1():
    x, y = torch.tensor([[200.0, 0.0]])[..., None], torch.zeros(1, 1, 1)
    loss = monai.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=0.5)
    assert gradient_of(lambda x: loss(x, y), x).isnan().any()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_focal_loss_of_a_certain_voxel_has_a_gradient_of_0_for_gamma_below_1(activation):
    x, y = torch.tensor([[200.0, -200.0]])[..., None], torch.zeros(1, 1, 1, dtype=torch.long)
    gradient = gradient_of(lambda x: segloss.focal_loss(x, y, gamma=0.5, activation=activation), x)
    assert (gradient == 0).all()


# ---- a class without a voxel -----------------------------------------------------------------------------------------


def test_dice_loss_counts_what_is_predicted_of_a_class_without_a_voxel():
    """SMP's loss is 0 without a gradient, and kornia's mean leaves the class out."""
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    y = torch.zeros(1, 1, 4, 4, dtype=torch.long)

    def loss(x):
        return segloss.dice_loss(x, y, activation="sigmoid", smooth_nr=1, smooth_dr=1)

    assert_close(loss(x), torch.tensor(1 - 1 / (16 * 0.5 + 1), dtype=torch.float64))
    # d/dx of 1 - 1 / (sum p + 1), p = 1/2
    assert_close(gradient_of(loss, x), torch.full_like(x, 0.25 / 81))
