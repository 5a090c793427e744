"""soft_label=True: the overlap of p and g is the smaller of the two, so that a loss is smallest at p = g."""

import pytest
import reference
import torch
from monai.losses import DiceLoss, GeneralizedDiceLoss, TverskyLoss
from tolerances import assert_close
from torch.autograd import gradcheck, gradgradcheck

import segloss

LOSSES = {
    "dice_loss": (segloss.dice_loss, reference.dice_loss),
    "generalized_dice_loss": (segloss.generalized_dice_loss, reference.generalized_dice_loss),
    "tversky_loss": (segloss.tversky_loss, reference.tversky_loss),
    "dice_ce_loss": (segloss.dice_ce_loss, reference.dice_ce_loss),
}
EACH_LOSS = pytest.mark.parametrize("name", LOSSES)
ACTIVATIONS = pytest.mark.parametrize("activation", ["softmax", "sigmoid"])


def logits_and_soft_labels(*shape, dtype=torch.float64):
    """Logits and labels away from the kinks, where p = g."""
    x, g = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64).softmax(1)
    return x.to(dtype), g.to(dtype)


@EACH_LOSS
@ACTIVATIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 140), (2, 20, 5), (1, 130, 7), (2, 1, 9)])
def test_value_and_gradient_equal_the_reference(shape, dtype, activation, name):
    if shape[1] == 1 and activation == "softmax":
        pytest.skip("a softmax has more than one channel")
    x, g = logits_and_soft_labels(*shape, dtype=dtype)
    g = g if shape[1] > 1 else torch.rand(shape).to(dtype)
    loss, slow = LOSSES[name]
    x.requires_grad_()
    value = loss(x, g, activation=activation, soft_label=True)
    (gradient,) = torch.autograd.grad(value, x)
    expected = reference.value_and_gradient(slow, x, g, activation=activation, soft_label=True)
    assert_close(value, expected[0])
    if dtype != torch.bfloat16:  # its rounding moves p to the other side of g
        assert_close(gradient, expected[1])


@EACH_LOSS
@ACTIVATIONS
def test_derivatives_are_those_of_the_value_away_from_the_kinks(activation, name):
    x, g = logits_and_soft_labels(2, 3, 4)
    loss, _ = LOSSES[name]

    def call(x, g):
        return loss(x, g, activation=activation, soft_label=True)

    arguments = (x.requires_grad_(), g.requires_grad_())
    assert gradcheck(call, arguments, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, arguments)


@pytest.mark.parametrize("name", ["dice_loss", "generalized_dice_loss", "tversky_loss"])
def test_the_loss_is_zero_and_smallest_at_the_label_itself(name):
    _, g = logits_and_soft_labels(2, 3, 50)
    x = g.log().requires_grad_()  # whose softmax is g
    loss, _ = LOSSES[name]
    assert_close(loss(x, g, soft_label=True, smooth_nr=0, smooth_dr=0), torch.tensor(0.0))
    assert loss(x, g, smooth_nr=0, smooth_dr=0) > 0.1
    for _ in range(20):
        assert loss(x + torch.randn_like(x), g, soft_label=True) > loss(x, g, soft_label=True)


def test_without_soft_label_the_loss_is_not_smallest_at_the_label_itself():
    g = torch.tensor([[[0.7, 0.3], [0.3, 0.7]]], dtype=torch.float64)
    surer = torch.tensor([[[0.9, 0.1], [0.1, 0.9]]], dtype=torch.float64)
    assert segloss.dice_loss(surer.log(), g) < segloss.dice_loss(g.log(), g)
    assert segloss.dice_loss(surer.log(), g, soft_label=True) > segloss.dice_loss(g.log(), g, soft_label=True)


def test_the_slope_at_a_kink_is_half_of_the_jump():
    p = torch.tensor([[[0.25, 0.5], [0.5, 0.75]]], requires_grad=True)
    options = {"activation": None, "soft_label": True, "smooth_nr": 0.0, "smooth_dr": 0.0, "reduction": "sum"}
    (at_kink,) = torch.autograd.grad(segloss.dice_loss(p, p.detach(), **options), p)
    expected = reference.value_and_gradient(reference.dice_loss, p, p.detach(), **options)[1]
    assert_close(at_kink, expected, torch.float32)


@EACH_LOSS
@pytest.mark.parametrize("target", [torch.randint(3, (2, 9)), torch.randint(3, (2, 1, 9)).float()])
def test_labels_are_not_affected(target, name):
    x, loss = torch.randn(2, 3, 9), LOSSES[name][0]
    assert torch.equal(loss(x, target, soft_label=True), loss(x, target))


def test_integer_masks_are_not_affected():
    x, masks = torch.randn(2, 3, 9), torch.randint(2, (2, 3, 9))
    options = {"activation": "sigmoid"}
    assert torch.equal(segloss.dice_loss(x, masks, soft_label=True, **options), segloss.dice_loss(x, masks, **options))


def test_squares_are_not_affected():
    x, g = logits_and_soft_labels(2, 3, 9)
    expected = segloss.dice_loss(x, g, squared=True)
    assert torch.equal(segloss.dice_loss(x, g, squared=True, soft_label=True), expected)


def test_dice_focal_takes_soft_label_for_masks():
    x, masks = torch.randn(2, 3, 9), torch.rand(2, 3, 9)
    value = segloss.dice_focal_loss(x, masks, activation="sigmoid", soft_label=True)
    dice = segloss.dice_loss(x, masks, activation="sigmoid", soft_label=True)
    assert_close(value, dice + segloss.focal_loss(x, masks, activation="sigmoid"))


def test_a_voxel_without_a_weight_has_no_overlap():
    x, g = logits_and_soft_labels(1, 3, 8)
    v = torch.ones(1, 8)
    v[:, 5:] = 0
    assert_close(
        segloss.dice_loss(x, g, soft_label=True, voxel_weight=v),
        segloss.dice_loss(x[..., :5], g[..., :5], soft_label=True),
    )


PEERS = {
    "dice": (segloss.DiceLoss, DiceLoss, {}),
    "jaccard": (segloss.DiceLoss, DiceLoss, {"jaccard": True}),
    "dice of the batch": (segloss.DiceLoss, DiceLoss, {"batch": True}),
    "generalized dice": (segloss.GeneralizedDiceLoss, GeneralizedDiceLoss, {}),
    "generalized dice, simple": (segloss.GeneralizedDiceLoss, GeneralizedDiceLoss, {"w_type": "simple"}),
    "tversky": (segloss.TverskyLoss, TverskyLoss, {"alpha": 0.3, "beta": 0.7}),
}


@ACTIVATIONS
@pytest.mark.parametrize("soft_label", [False, True])
@pytest.mark.parametrize("name", PEERS)
def test_value_and_gradient_are_those_of_monai(name, soft_label, activation):
    x, g = logits_and_soft_labels(2, 3, 6, 7)
    ours, theirs, options = PEERS[name]
    x.requires_grad_()
    value = ours(activation=activation, soft_label=soft_label, **options)(x, g)
    expected = theirs(**{activation: True}, soft_label=soft_label, **options)(x, g)
    rounding = torch.float32 if "generalized" in name else torch.float64  # MONAI's class weights are float32
    assert_close(value, expected, rounding)
    assert_close(torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, x)[0], rounding)


def test_squares_are_those_of_monai():
    x, g = logits_and_soft_labels(2, 3, 6)
    value = segloss.dice_loss(x, g, squared=True, soft_label=True)
    assert_close(value, DiceLoss(softmax=True, squared_pred=True, soft_label=True)(x, g))


@pytest.mark.parametrize("value", ["no", None, 2])
def test_a_value_other_than_true_and_false_is_refused(value):
    with pytest.raises(ValueError, match="dice_loss: expected soft_label to be True or False"):
        segloss.dice_loss(torch.randn(1, 2, 3), torch.zeros(1, 3), soft_label=value)
