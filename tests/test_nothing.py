"""Terms of region losses whose numerator and denominator are both 0: the term is 0, with a zero gradient."""

from contextlib import nullcontext
from functools import partial

import pytest
import reference
import torch
from losses import value_and_gradient
from test_devices import without_kernels
from tolerances import assert_close

import segloss

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
UNSMOOTHED = {"smooth_nr": 0.0, "smooth_dr": 0.0}
ABSENT = 2  # the class that the first sample lacks, in target and prediction
LOSSES = {
    "dice": ("dice_loss", {}),
    "squared dice": ("dice_loss", {"squared": True}),
    "weighted dice": ("dice_loss", {"weight": torch.tensor([0.5, 2.0, 3.0])}),
    "jaccard": ("dice_loss", {"jaccard": True}),
    "tversky": ("tversky_loss", {"alpha": 0.3, "beta": 0.7}),
    "focal tversky": ("tversky_loss", {"gamma": 0.75}),
    "tversky of exponent 2": ("tversky_loss", {"gamma": 2.0}),
    "tversky of exponent 0": ("tversky_loss", {"gamma": 0.0}),
    "tversky of free errors": ("tversky_loss", {"alpha": 0.0, "beta": 0.0}),
    "dice and cross entropy": ("dice_ce_loss", {}),
    "dice and focal": ("dice_focal_loss", {"jaccard": True}),
    "generalized dice": ("generalized_dice_loss", {"include_background": False}),
    "simple generalized dice": ("generalized_dice_loss", {"include_background": False, "w_type": "simple"}),
    "uniform generalized dice": ("generalized_dice_loss", {"include_background": False, "w_type": "uniform"}),
}
TERMS = [name for name in LOSSES if "and" not in name]
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
EVERY_TERM = pytest.mark.parametrize("name", TERMS)


def loss_of(name, package=segloss):
    function, options = LOSSES[name]
    return partial(getattr(package, function), **UNSMOOTHED, **options)


def absent_class(name, num_samples=2, dtype=torch.float32):
    """Logits and labels. The first sample lacks a class; for generalized Dice, which sums over classes, it lacks all
    foreground."""
    x, y = torch.randn(num_samples, 3, 5), torch.randint(3, (num_samples, 5))
    absent = slice(1, 3) if "generalized" in name else slice(ABSENT, 3)
    x[0, absent] = -6e4
    y[0] = y[0].clamp(max=absent.start - 1)
    return x.to(dtype), y


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
@EVERY_LOSS
def test_an_absent_class_of_underflowed_probabilities_equals_the_reference(name, dtype, activation):
    x, y = absent_class(name, dtype=dtype)
    value, gradient = value_and_gradient(loss_of(name), x, y, activation=activation)
    expected = reference.value_and_gradient(loss_of(name, reference), x, y, activation=activation)
    assert expected[0].isfinite()
    assert_close(value, expected[0])
    assert_close(gradient, expected[1])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
@EVERY_TERM
def test_the_term_of_an_absent_class_is_0_with_a_zero_gradient(name, activation):
    x, y = absent_class(name)
    x = x.softmax(1) if activation is None else x
    loss = partial(loss_of(name), activation=activation, reduction="none")
    terms, gradient = value_and_gradient(loss, x, y)
    assert (terms[0] if terms.dim() == 1 else terms[0, ABSENT]) == 0
    assert torch.equal(gradient[0, ABSENT], torch.zeros(5))
    assert_close(terms[1:], loss(x[1:], y[1:]))  # the terms of the other sample


@EVERY_LOSS
def test_a_batch_of_equal_samples_without_the_class_equals_one_sample(name):
    x, y = absent_class(name, num_samples=1)
    value, gradient = value_and_gradient(loss_of(name), x, y)
    x, y = x.expand(2, 3, 5), y.expand(2, 5)
    of_batch = value_and_gradient(loss_of(name), x, y, batch=True)
    assert_close(of_batch[0], value)
    assert_close(of_batch[1], gradient.expand(2, 3, 5) / 2)


@EVERY_TERM
def test_the_loss_of_ignored_voxels_alone_is_0(name):
    x, y = torch.randn(2, 3, 5), torch.full((2, 5), -100)
    value, gradient = value_and_gradient(loss_of(name), x, y)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(2, 3, 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [1e-40, 1e-30, 1e-20])
@pytest.mark.parametrize("name", [name for name in TERMS if name not in ("squared dice", "tversky of free errors")])
def test_the_term_of_an_absent_class_of_tiny_probabilities_is_1_with_a_zero_gradient(name, p, dtype):
    """The reciprocal of their sum, or of its square, overflows float32. Two losses are left out, as their term
    is 0: the squares of squared Dice underflow, and free errors cost nothing."""
    probabilities = torch.tensor([1.0, p, p], dtype=dtype).view(1, 3, 1).repeat(1, 1, 4)
    probabilities[0, 1] = p if "generalized" in name else 0.5
    y = torch.zeros(1, 4).long() if "generalized" in name else torch.tensor([[0, 1, 0, 1]])
    loss = partial(loss_of(name), activation=None, reduction="none")
    expected = LOSSES[name][1].get("weight", torch.ones(3))[ABSENT]
    for kernels in (nullcontext(), without_kernels()):
        with kernels:
            terms, gradient = value_and_gradient(loss, probabilities, y)
        assert_close(terms.flatten()[-1], expected.to(dtype))
        assert gradient.isfinite().all()
        assert torch.equal(gradient[0, ABSENT], torch.zeros(4, dtype=dtype))


def test_logits_whose_probabilities_are_almost_0_made_the_gradient_nan():
    x = torch.tensor([[0.0], [0.0], [-92.0]]).repeat(2, 1, 6)
    y = torch.randint(2, (2, 6))
    for name in ("dice", "tversky", "generalized dice"):
        value, gradient = value_and_gradient(loss_of(name), x, y)
        assert value.isfinite()
        assert gradient.isfinite().all()


@EVERY_LOSS
def test_an_absent_class_gives_the_same_without_kernels(name):
    x, y = absent_class(name)
    expected = value_and_gradient(loss_of(name), x, y)
    with without_kernels():
        actual = value_and_gradient(loss_of(name), x, y)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@EVERY_LOSS
def test_first_and_second_derivatives(name):
    x, y = absent_class(name, dtype=torch.float64)
    loss = loss_of(name)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x.requires_grad_(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y), x)


@EVERY_LOSS
def test_vmap_compile_and_func_grad_are_one_call_at_a_time(name):
    x, y = absent_class(name)
    loss = loss_of(name)
    expected = torch.stack([loss(x[n : n + 1], y[n : n + 1]) for n in range(2)])
    assert_close(torch.func.vmap(loss)(x.unsqueeze(1), y.unsqueeze(1)), expected)
    value, gradient = value_and_gradient(loss, x, y)
    assert_close(torch.func.grad(loss)(x, y), gradient)
    torch._dynamo.reset()
    compiled = value_and_gradient(torch.compile(loss, backend="aot_eager", fullgraph=True), x, y)
    assert_close(compiled[0], value)
    assert_close(compiled[1], gradient)


@EVERY_TERM
def test_soft_labels_get_a_zero_gradient_from_an_absent_class(name):
    x, y = absent_class(name, dtype=torch.float64)
    target = torch.nn.functional.one_hot(y, 3).movedim(2, 1).double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(name)(x, target), target)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[0, ABSENT], torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("w_type", ["square", "simple"])
@pytest.mark.parametrize("volume", [0.0, 1e-45, 1e-30])
def test_a_soft_volume_that_underflows_counts_as_an_absent_class_in_generalized_dice(volume, w_type):
    x = torch.randn(1, 3, 4)
    x[:, ABSENT] = -1e4
    target = torch.tensor([0.25, 0.75, volume]).view(1, 3, 1).repeat(1, 1, 4)
    loss = partial(segloss.generalized_dice_loss, w_type=w_type, **UNSMOOTHED)
    value, gradient = value_and_gradient(loss, x, target)
    expected = value_and_gradient(loss, x[:, :ABSENT], target[:, :ABSENT])
    assert_close(value, expected[0])
    assert_close(gradient[:, :ABSENT], expected[1])
    (gradient,) = torch.autograd.grad(loss(x, target.requires_grad_()), target)
    assert gradient.isfinite().all()


def test_the_binary_dice_loss_of_an_empty_sample_predicted_empty_is_0():
    p, mask = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    p[1], mask[1, 0] = 0.5, 1
    value, gradient = value_and_gradient(segloss.BinaryDiceLoss(smooth=0), p, mask)
    alone = value_and_gradient(segloss.BinaryDiceLoss(smooth=0), p[1:], mask[1:])
    assert_close(value, alone[0] / 2)
    assert_close(gradient, torch.cat([torch.zeros(1, 4, 4), alone[1] / 2]))


def test_the_multi_class_dice_loss_of_an_absent_class():
    x, y = absent_class("dice")
    actual = value_and_gradient(segloss.MultiClassDiceLoss(smooth=0), x, y)
    for a, e in zip(actual, value_and_gradient(loss_of("dice"), x, y), strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("smooth_dr", [0.0, 1e-8])
def test_smoothing_that_is_a_tensor_is_that_number(smooth_dr):
    x, y = absent_class("dice")
    smooth = {"smooth_nr": torch.tensor(0.0), "smooth_dr": torch.tensor(smooth_dr)}
    actual = value_and_gradient(segloss.dice_loss, x, y, **smooth)
    for a, e in zip(actual, value_and_gradient(segloss.dice_loss, x, y, smooth_nr=0, smooth_dr=smooth_dr), strict=True):
        assert_close(a, e)
