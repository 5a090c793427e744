"""Binary cross entropy with logits, against torch's, MONAI's DiceCELoss and a slow version in float64."""

from functools import partial

import pytest
import reference
import torch
from tolerances import assert_close
from torch.nn import functional as F

import segloss

SHAPE = (2, 3, 4, 5)
BCE = segloss.binary_cross_entropy_with_logits
REFERENCE = partial(reference.focal_loss, gamma=0.0, activation="sigmoid")
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])

WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
POS_WEIGHT = torch.tensor([4.0, 0.0, 0.25], dtype=torch.float64)

# Shapes that torch broadcasts, with the weights of WEIGHT's values where there is one for each class.
WEIGHTS = {
    "of classes": WEIGHT.view(3, 1, 1),
    "of classes, with the batch": WEIGHT.view(1, 3, 1, 1),
    "one for all": torch.tensor(0.5, dtype=torch.float64),
    "one for all, with dimensions": torch.full((1, 1, 1), 0.5, dtype=torch.float64),
    "of pixels": torch.linspace(0, 2, 20, dtype=torch.float64).view(4, 5),
    "of samples": torch.tensor([0.5, 3.0], dtype=torch.float64).view(2, 1, 1, 1),
    "of samples and classes": torch.linspace(0, 2, 6, dtype=torch.float64).view(2, 3, 1, 1),
    "of elements": torch.linspace(0, 2, 120, dtype=torch.float64).view(SHAPE),
}
MASK_DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
]


def logits(shape=SHAPE):
    return 3 * torch.randn(shape, dtype=torch.float64)


def masks(shape=SHAPE):
    return torch.rand(shape) < 0.3


def value_and_gradient(loss, input, *arguments, **options):
    x = input.clone().requires_grad_()
    value = loss(x, *arguments, **options)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def assert_same(ours, theirs):
    for actual, expected in zip(ours, theirs, strict=True):
        assert_close(actual, expected)


# ---- torch's values ----


@REDUCTIONS
@pytest.mark.parametrize("pos_weight", [None, *WEIGHTS])
@pytest.mark.parametrize("weight", [None, *WEIGHTS])
def test_values_and_gradients_are_torchs_with_weights_of_every_shape(weight, pos_weight, reduction):
    x, g = logits(), torch.rand(SHAPE, dtype=torch.float64)
    options = {"weight": WEIGHTS.get(weight), "pos_weight": WEIGHTS.get(pos_weight), "reduction": reduction}
    ours = value_and_gradient(BCE, x, g, **options)
    assert_same(ours, value_and_gradient(F.binary_cross_entropy_with_logits, x, g, **options))


@REDUCTIONS
@pytest.mark.parametrize("dtype", MASK_DTYPES)
def test_masks_of_every_dtype_are_torchs_floating_targets(dtype, reduction):
    x, g = logits(), masks()
    ours = value_and_gradient(BCE, x, g.to(dtype), WEIGHT, pos_weight=POS_WEIGHT, reduction=reduction)
    options = {"weight": WEIGHT.view(3, 1, 1), "pos_weight": POS_WEIGHT.view(3, 1, 1), "reduction": reduction}
    assert_same(ours, value_and_gradient(F.binary_cross_entropy_with_logits, x, g.double(), **options))


@pytest.mark.parametrize("dim", [0, 2, -1])
def test_weights_of_classes_run_along_dim(dim):
    x, g = logits(), masks()
    expected = value_and_gradient(BCE, x, g, WEIGHT, pos_weight=POS_WEIGHT)
    moved = [each.movedim(1, dim) for each in (x, g)]
    value, gradient = value_and_gradient(BCE, *moved, WEIGHT, pos_weight=POS_WEIGHT, dim=dim)
    assert_same((value, gradient.movedim(dim, 1)), expected)


def test_arguments_by_position_are_torchs():
    x, g = logits((4, 3)), masks((4, 3))
    arguments = (WEIGHT, None, None, "sum", POS_WEIGHT)
    assert_close(BCE(x, g, *arguments), F.binary_cross_entropy_with_logits(x, g.double(), *arguments))
    with pytest.warns(UserWarning, match="reduction='sum' instead"):
        assert_close(BCE(x, g, None, False), F.binary_cross_entropy_with_logits(x, g.double(), reduction="sum"))


def test_the_module_takes_the_state_of_torchs():
    theirs = torch.nn.BCEWithLogitsLoss(WEIGHT, pos_weight=POS_WEIGHT)
    ours = segloss.BCEWithLogitsLoss(torch.ones(3), pos_weight=torch.ones(3))
    ours.load_state_dict(theirs.state_dict())
    x, g = logits((4, 3)), masks((4, 3))
    assert_close(ours(x, g), theirs(x, g.double()))


# ---- what torch lacks ----


@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("keeps_channel", [True, False])
def test_labels_and_ignored_voxels(keeps_channel, smoothing, reduction):
    x, labels = logits(), torch.randint(3, (2, 1, 4, 5), dtype=torch.uint8)
    labels[0, 0, :2] = 255
    x[0, :, 0] = torch.nan
    v = torch.rand(2, 1, 4, 5, dtype=torch.float64)
    labels, v = (labels, v) if keeps_channel else (labels[:, 0], v[:, 0])
    options = {"weight": WEIGHT, "pos_weight": POS_WEIGHT, "reduction": reduction, "voxel_weight": v}
    options |= {"ignore_index": 255, "label_smoothing": smoothing}
    ours = value_and_gradient(BCE, x, labels, **options)
    assert_same(ours, value_and_gradient(REFERENCE, x, labels, **options))
    assert (ours[1][0, :, :2] == 0).all()


@REDUCTIONS
def test_a_voxel_is_ignored_where_any_of_its_masks_is(reduction):
    x, g = logits(), masks().to(torch.int16)
    g[1, 2, 3] = -1
    options = {"pos_weight": POS_WEIGHT, "reduction": reduction, "ignore_index": -1}
    ours = value_and_gradient(BCE, x, g, **options)
    assert_same(ours, value_and_gradient(REFERENCE, x, g, **options))
    kept = (g >= 0).all(1, keepdim=True).expand_as(x)
    if reduction == "mean":
        of_kept = {"pos_weight": POS_WEIGHT.view(3, 1, 1).expand(SHAPE)[kept]}
        assert_close(ours[0], F.binary_cross_entropy_with_logits(x[kept], g[kept].double(), **of_kept))


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_voxels_are_left_out_of_a_mean_with_weights_of_elements(name):
    x, g, v = logits(), masks(), masks((2, 1, 4, 5)).double()
    ours = value_and_gradient(BCE, x, g, voxel_weight=v, **{name: WEIGHTS["of elements"]})

    def expected(x, g, **options):
        losses = F.binary_cross_entropy_with_logits(x, g.double(), reduction="none", **options)
        return (v * losses).sum() / (3 * v.sum())

    assert_same(ours, value_and_gradient(expected, x, g, **{name: WEIGHTS["of elements"]}))


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5)])
def test_a_map_of_one_channel_is_the_foreground(shape):
    x, g = logits((2, 1, 4, 5)), masks(shape)
    ours = value_and_gradient(BCE, x, g, pos_weight=torch.tensor([3.0], dtype=torch.float64))
    expected = partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(3.0, dtype=torch.float64))
    assert_same(ours, value_and_gradient(expected, x, g.view(2, 1, 4, 5).double()))


@pytest.mark.parametrize("activation", ["sigmoid"])
def test_it_is_the_second_term_of_dice_ce_loss(activation):
    x, g = logits(), masks()
    whole = segloss.dice_ce_loss(x, g, weight=WEIGHT, label_smoothing=0.1, activation=activation)
    dice = segloss.dice_loss(x, g, weight=WEIGHT, activation=activation)
    assert_close(BCE(x, g, WEIGHT, label_smoothing=0.1), whole - dice)


def test_it_is_the_second_term_of_monais_dice_ce_loss():
    losses = pytest.importorskip("monai.losses")
    x, g = logits((2, 1, 4, 5)), masks((2, 1, 4, 5)).double()
    whole = losses.DiceCELoss(sigmoid=True, lambda_dice=0.0)(x, g)
    assert_close(BCE(x, g), whole)


def test_no_voxel_that_counts():
    x, labels = logits().requires_grad_(), torch.full((2, 4, 5), 255)
    assert BCE(x, labels, ignore_index=255).isnan()
    loss = BCE(x, labels, ignore_index=255, empty="zero", pos_weight=POS_WEIGHT)
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()


def test_confident_voxels_keep_their_digits():
    x = torch.tensor([[-40.0, 40.0, 80.0]])
    g = torch.tensor([[0, 1, 1]])
    losses = BCE(x, g, reduction="none")
    expected = torch.log1p(torch.exp(-x.double().abs()))
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("pos_weight", [None, torch.tensor([2.0, 3.0])])
def test_infinite_logits_on_the_right_side_cost_nothing(pos_weight):
    x = torch.tensor([[torch.inf, -torch.inf]], requires_grad=True)
    loss = BCE(x, torch.tensor([[True, False]]), pos_weight=pos_weight)
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()
    assert BCE(x.detach(), torch.tensor([[False, True]])) == torch.inf


# ---- gradients ----


@REDUCTIONS
@pytest.mark.parametrize("kind", ["labels", "masks", "floats"])
def test_first_and_second_derivatives(kind, reduction):
    x = logits((2, 3, 4)).requires_grad_()
    target = {
        "labels": torch.randint(3, (2, 4)),
        "masks": masks((2, 3, 4)),
        "floats": torch.rand(2, 3, 4, dtype=torch.float64),
    }[kind]
    loss = partial(BCE, target=target, weight=WEIGHT, pos_weight=POS_WEIGHT, reduction=reduction, label_smoothing=0.1)
    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


def test_derivatives_by_weights_with_masks():
    tensors = [logits((2, 3, 4)), WEIGHT.clone(), WEIGHT.clone() + 1]
    g = masks((2, 3, 4))

    def loss(x, weight, pos_weight):
        return BCE(x, g, weight, pos_weight=pos_weight)

    assert torch.autograd.gradcheck(loss, [each.requires_grad_() for each in tensors])
    with pytest.raises(RuntimeError, match="expected a weight without gradient"):
        BCE(tensors[0], torch.randint(3, (2, 4)), pos_weight=tensors[1])


@REDUCTIONS
def test_derivatives_by_target_and_weights(reduction):
    def loss(x, g, weight, pos_weight):
        return BCE(x, g, weight, pos_weight=pos_weight, reduction=reduction)

    tensors = [logits((2, 3, 4)), torch.rand(2, 3, 4, dtype=torch.float64), WEIGHT.clone(), WEIGHT.clone() + 1]
    assert torch.autograd.gradcheck(loss, [each.requires_grad_() for each in tensors])
    assert torch.autograd.gradgradcheck(loss, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@REDUCTIONS
def test_dtypes(dtype, reduction):
    x, g = logits().to(dtype), masks()
    options = {"weight": WEIGHT, "pos_weight": POS_WEIGHT, "reduction": reduction}
    value, gradient = value_and_gradient(BCE, x, g, **options)
    expected = value_and_gradient(REFERENCE, x.double(), g, **options)
    assert value.dtype == gradient.dtype == dtype
    assert_close(value, expected[0], dtype)
    assert_close(gradient, expected[1], dtype)


# ---- errors ----


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
@pytest.mark.parametrize("shape", [(4,), (5,), (2, 3), (3, 4, 4), (1, 2, 3, 4, 5)])
def test_a_weight_of_another_shape(name, shape):
    expected = rf"binary_cross_entropy_with_logits: expected {name} of shape \[3\], one for each class of input "
    with pytest.raises(RuntimeError, match=expected + r"\[2, 3, 4, 5\], or of a shape that broadcasts to input's, got"):
        BCE(logits(), masks(), **{name: torch.ones(shape)})


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_a_weight_of_another_type(name):
    with pytest.raises(
        RuntimeError, match=rf"expected a floating {name}, got torch.int64. Use {name}.to\(input.dtype\)"
    ):
        BCE(logits(), masks(), **{name: torch.ones(3, dtype=torch.int64)})
    with pytest.raises(TypeError, match=f"expected {name} to be a torch.Tensor, got str"):
        BCE(logits(), masks(), **{name: "balanced"})
    with pytest.raises(TypeError, match=f"BCEWithLogitsLoss: expected {name} to be a torch.Tensor, got float"):
        segloss.BCEWithLogitsLoss(**{name: 2.0})


def test_a_mask_that_is_neither_0_nor_1():
    g = masks().to(torch.uint8)
    g[1, 2, 3, 4] = 2
    with pytest.raises(RuntimeError, match="binary_cross_entropy_with_logits: expected 0 and 1 in an integer target"):
        BCE(logits(), g)
    with pytest.raises(RuntimeError, match=r"expected class probabilities or masks in \[0, 1\], got 2 at"):
        BCE(logits(), g.float())


def test_a_bad_label():
    with pytest.raises(IndexError, match="binary_cross_entropy_with_logits: Target 3 is out of bounds"):
        BCE(logits(), torch.full((2, 4, 5), 3))


def test_an_unknown_reduction():
    with pytest.raises(ValueError, match="binary_cross_entropy_with_logits: avg is not a valid value for reduction"):
        BCE(logits(), masks(), reduction="avg")
