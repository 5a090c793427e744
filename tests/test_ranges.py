"""Class probabilities, floating masks and probabilities as input must lie in [0, 1], up to rounding."""

from functools import partial

import pytest
import torch
from losses import OF_EACH_VOXEL, REGION_LOSSES, VARIANTS, takes_probabilities
from tolerances import assert_close

import segloss

NAN, INF = float("nan"), float("inf")
FLOATING = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SOFT = {name: loss for name, loss in (VARIANTS | OF_EACH_VOXEL).items() if takes_probabilities(loss)}
EACH_SOFT = pytest.mark.parametrize("loss", SOFT.values(), ids=SOFT)
OF_P = {name: partial(getattr(segloss, name), activation=None) for name in (*REGION_LOSSES, "soft_stats")}
EACH_OF_P = pytest.mark.parametrize("loss", OF_P.values(), ids=OF_P)
OUTSIDE = "expected class probabilities or masks in \\[0, 1\\]"


def eps(dtype):
    return torch.finfo(dtype).eps


# ---- targets ----


@EACH_SOFT
@pytest.mark.parametrize("value", [255.0, 1.01, -0.01, NAN, INF, -INF])
def test_a_value_outside_0_to_1_is_named_with_its_index_and_what_to_do(value, loss):
    target = torch.rand(2, 3, 4, 5)
    target[1, 2, 0, 3] = value
    text = rf"{OUTSIDE}, got {value:g} at index \[1, 2, 0, 3\] of target \[2, 3, 4, 5\]\. .* target / 255"
    with pytest.raises(RuntimeError, match=text):
        loss(torch.randn(2, 3, 4, 5), target)


@pytest.mark.parametrize(
    ("loss", "x"),
    [
        (partial(segloss.dice_ce_loss, activation="sigmoid"), torch.randn(2, 1, 4, 4)),
        (partial(segloss.focal_loss, activation="sigmoid"), torch.randn(2, 1, 4, 4)),
        (segloss.BinaryDiceLoss(), torch.rand(2, 1, 4, 4)),
        (segloss.cross_entropy, torch.randn(2, 2, 4, 4)),
    ],
)
def test_a_mask_of_0_and_255_gave_a_negative_or_a_huge_loss(loss, x):
    mask = torch.randint(2, x.shape) * 255.0
    with pytest.raises(RuntimeError, match=f"{OUTSIDE}, got 255"):
        loss(x, mask)
    assert 0 <= loss(x, mask / 255) < 5


@EACH_SOFT
@pytest.mark.parametrize("dtype", FLOATING)
def test_rounding_may_take_a_value_four_epsilons_outside(dtype, loss):
    target = torch.rand(2, 3, 40).to(dtype)
    target[0, 0, 0], target[1, 2, 39] = 1 + 4 * eps(dtype), -4 * eps(dtype)
    loss(torch.randn(2, 3, 40, dtype=dtype), target)


@EACH_SOFT
@pytest.mark.parametrize("dtype", FLOATING)
def test_rounding_may_take_a_value_no_further_than_four_epsilons(dtype, loss):
    for value in (1 + 6 * eps(dtype), -5 * eps(dtype)):
        target = torch.rand(2, 3, 40).to(dtype)
        target[1, 2, 39] = value
        with pytest.raises(RuntimeError, match=OUTSIDE):
            loss(torch.randn(2, 3, 40, dtype=dtype), target)


@EACH_SOFT
def test_the_epsilon_is_that_of_the_targets_dtype(loss):
    x, half = torch.randn(2, 3, 4), torch.full((2, 3, 4), 1 + 2 * eps(torch.bfloat16), dtype=torch.bfloat16)
    loss(x, half)
    with pytest.raises(RuntimeError, match=OUTSIDE):
        loss(x, half.float())


@EACH_SOFT
def test_voxels_without_a_weight_are_not_looked_at(loss):
    x, target, v = torch.randn(2, 3, 200), torch.rand(2, 3, 200), torch.ones(2, 1, 200)
    expected = loss(x, target, voxel_weight=v.index_fill(2, torch.tensor([7, 150]), 0))
    target[:, 1, 7], target[:, :, 150] = 255, NAN
    v[:, :, 7] = v[:, :, 150] = 0
    assert torch.equal(loss(x, target, voxel_weight=v), expected)
    v[1, :, 150] = 1
    with pytest.raises(RuntimeError, match=rf"{OUTSIDE}, got nan at index \[1, 0, 150\]"):
        loss(x, target, voxel_weight=v)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("num_classes", [3, 112, 113, 300])
@EACH_SOFT
def test_a_value_outside_0_to_1_is_found_in_any_class_and_dim(loss, num_classes, dim):
    x = torch.randn(2, num_classes, 130).movedim(1, dim)
    target = torch.rand(2, num_classes, 130).movedim(1, dim)
    loss(x, target, dim=dim)
    index = {0: [num_classes - 1, 1, 129], 1: [1, num_classes - 1, 129], -1: [1, 129, num_classes - 1]}[dim]
    target[tuple(index)] = 2
    with pytest.raises(RuntimeError, match=rf"got 2 at index \[{index[0]}, {index[1]}, {index[2]}\]"):
        loss(x, target, dim=dim)


@EACH_SOFT
def test_probabilities_need_not_sum_to_one(loss):
    x = torch.randn(2, 3, 4)
    loss(x, torch.ones(2, 3, 4))
    loss(x, torch.zeros(2, 3, 4))


@EACH_SOFT
def test_values_are_checked_under_transforms_too(loss):
    x, target = torch.randn(2, 3, 4), torch.rand(2, 3, 4)

    def of(x, target=target):
        return loss(x, target).sum()

    calls = [
        lambda: torch.func.jvp(of, (x,), (x,)),
        lambda: torch.func.grad(of)(x),
        lambda: torch.func.hessian(of)(x),
        lambda: torch.func.vmap(of)(x.unsqueeze(1), target.unsqueeze(1)),
        lambda: torch.func.jvp(lambda t: of(x, t), (target,), (target,)),
        lambda: torch.autograd.grad(of(x.requires_grad_(), target.clone().requires_grad_()), x),
    ]
    for call in calls:
        call()
    target[1, 2, 3] = 1.5
    for call in calls:
        with pytest.raises(RuntimeError, match=f"{OUTSIDE}, got 1.5"):
            call()


# ---- soft statistics take any map ----


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_soft_stats_of_any_finite_map(activation):
    x, phi = torch.rand(2, 3, 50, dtype=torch.float64), 100 * torch.randn(2, 3, 50, dtype=torch.float64)
    p = {"softmax": x.softmax(1), "sigmoid": x.sigmoid(), None: x}[activation]
    assert_close(segloss.soft_stats(x, phi, activation=activation).intersection, (p * phi).sum(2))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_soft_stats_of_a_map_that_is_not_finite(value):
    phi = torch.randn(2, 3, 4)
    phi[1, 0, 2] = value
    text = rf"soft_stats: expected finite numbers in a floating target, got {value} at index \[1, 0, 2\]"
    with pytest.raises(RuntimeError, match=text):
        segloss.soft_stats(torch.randn(2, 3, 4), phi)


# ---- the input ----


@EACH_OF_P
@pytest.mark.parametrize("dtype", FLOATING)
def test_logits_are_no_probabilities(dtype, loss):
    p = torch.rand(2, 3, 40).to(dtype)
    p[1, 2, 39], p[0, 1, 3] = 1 + 4 * eps(dtype), -4 * eps(dtype)
    labels = torch.randint(3, (2, 40))
    loss(p, labels)
    p[1, 0, 5] = 3.5
    text = (
        r"\w+: expected probabilities in \[0, 1\] as input with activation=None, got 3.5 at index \[1, 0, 5\] of input"
    )
    with pytest.raises(RuntimeError, match=text + r".* activation='softmax' or 'sigmoid'"):
        loss(p, labels)
    labels[1, 5] = -100
    loss(p, labels)


def test_binary_dice_of_logits_was_a_plausible_number():
    mask = torch.randint(2, (2, 50))
    with pytest.raises(RuntimeError, match=r"expected probabilities in .* or pass .* input.sigmoid\(\)"):
        segloss.BinaryDiceLoss()(torch.randn(2, 50), mask)
    assert 0 < segloss.BinaryDiceLoss()(torch.randn(2, 50).sigmoid(), mask) < 1


@EACH_OF_P
def test_nan_is_passed_on_as_by_any_operator(loss):
    p = torch.rand(2, 3, 4)
    p[0, 0, 0] = NAN
    value = loss(p, torch.zeros(2, 4))
    assert (value[0] if isinstance(value, tuple) else value).isnan().any()


@EACH_OF_P
def test_the_input_is_checked_under_transforms_too(loss):
    p, labels = torch.rand(2, 3, 4), torch.randint(3, (2, 4))

    def of(p):
        value = loss(p, labels)
        return (value[0] if isinstance(value, tuple) else value).sum()

    p[0, 0, 0] = 2
    for call in (
        lambda: torch.func.jvp(of, (p,), (p,)),
        lambda: torch.func.grad(of)(p),
        lambda: torch.func.hessian(of)(p),
    ):
        with pytest.raises(RuntimeError, match=r"expected probabilities in \[0, 1\] as input"):
            call()


@pytest.mark.parametrize("shape", [(1, 3, 2**23, 1), (3, 2, 2**22), (1, 2, 1, 2**24)])
def test_the_index_of_a_value_far_into_a_large_target(shape):
    """The code that words the error looks at one part of the target at a time."""
    target, v = torch.zeros(shape), torch.ones(shape[0], *shape[2:], dtype=torch.bool)
    flat = target.view(-1)
    flat[target.numel() // 2 + 3], flat[-2] = 5, 6
    v.view(-1)[-1] = False
    (index,) = (target == 5).nonzero().tolist()
    with pytest.raises(RuntimeError, match=rf"got 5 at index \[{', '.join(map(str, index))}\] of target"):
        segloss.cross_entropy(torch.zeros(shape), target, voxel_weight=v)
