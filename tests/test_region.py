"""The region losses and compounds: Dice, generalized Dice, Tversky, DiceCE and DiceFocal."""

import inspect
import random
from functools import partial

import pytest
import reference
import torch
import torch.nn.functional as F
from losses import OF_LABELS, OF_SIZE
from tolerances import ROUNDING_RTOL, SUM_RTOL, assert_close, assert_relative
from torch.autograd import gradcheck, gradgradcheck

import segloss

TERMS = ["dice_loss", "generalized_dice_loss", "tversky_loss"]
COMPOUNDS = ["dice_ce_loss", "dice_focal_loss"]
LOSSES = TERMS + COMPOUNDS
HALVES = [torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")


def one_hot(labels, num_classes):
    return F.one_hot(labels.long(), num_classes).movedim(-1, 1)


def value_and_gradient(name, input, target, **options):
    x = input.detach().requires_grad_()
    value = getattr(segloss, name)(x, target, **options)
    return value.detach(), torch.autograd.grad(value, x, torch.ones_like(value))[0]


def reference_value_and_gradient(name, input, target, **options):
    return reference.value_and_gradient(getattr(reference, name), input, target, **options)


def assert_same(actual, expected):
    """Equal values; and gradients equal relative to the largest of them, as each voxel's share in a region is small.

    If all gradients are small, they are differences of larger terms, whose rounding they keep.
    """
    (value, gradient), (expected_value, expected_gradient) = actual, expected
    assert value.shape == expected_value.shape
    assert_close(value, expected_value, value.dtype)
    largest = expected_gradient.double().abs().max().clamp(min=0.1)
    assert_close(gradient.double() / largest, expected_gradient.double() / largest, value.dtype)


def assert_is_reference(name, input, target, **options):
    actual = value_and_gradient(name, input, target, **options)
    assert actual[0].dtype == input.dtype
    assert_same(actual, reference_value_and_gradient(name, input, target, **options))


def assert_finite(values):
    for tensor in values:
        assert tensor.isfinite().all()


# ---- names and defaults ----

DICE = {
    "activation": "softmax",
    "include_background": True,
    "squared": False,
    "jaccard": False,
    "soft_label": False,
    "batch": False,
    "weight": None,
    "smooth_nr": 1e-5,
    "smooth_dr": 1e-5,
    "ignore_index": -100,
    "reduction": "mean",
    "dim": 1,
    "voxel_weight": None,
    "process_group": None,
    **OF_LABELS,
    **OF_SIZE,
}


COMPOUND = {**DICE, "pos_weight": None}


def without(options, *names):
    return {name: value for name, value in options.items() if name not in names}


SIGNATURES = {
    "dice_loss": DICE,
    "generalized_dice_loss": {"w_type": "square", **without(DICE, "squared", "jaccard", "weight")},
    "tversky_loss": {"alpha": 0.5, "beta": 0.5, "gamma": 1.0, **without(DICE, "squared", "jaccard")},
    "dice_ce_loss": {"lambda_dice": 1.0, "lambda_ce": 1.0, "label_smoothing": 0.0, "empty": "nan", **COMPOUND},
    "dice_focal_loss": {"lambda_dice": 1.0, "lambda_focal": 1.0, "gamma": 2.0, "empty": "nan", **COMPOUND},
    "soft_stats": {
        "activation": "softmax",
        "squared": False,
        "ignore_index": -100,
        "voxel_weight": None,
        "dim": 1,
        **OF_LABELS,
        **OF_SIZE,
    },
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_names_and_defaults_of_the_keywords(name):
    input, target, *keywords = inspect.signature(getattr(segloss, name)).parameters.values()
    assert (input.name, target.name) == ("input", "target")
    assert all(keyword.kind is keyword.KEYWORD_ONLY for keyword in keywords)
    assert {keyword.name: keyword.default for keyword in keywords} == SIGNATURES[name]


# ---- formulas ----


def two_voxels():
    """p of class 1 is 0.8 and 0.4, the labels are 1 and 0: I = 0.6, 0.8; P = 0.8, 1.2; T = 1, 1."""
    return torch.tensor([[[0.2, 0.6], [0.8, 0.4]]]), torch.tensor([[1, 0]])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("dice_loss", {}, [1 - 1.2 / 1.8, 1 - 1.6 / 2.2]),
        ("dice_loss", {"smooth_nr": 1.0, "smooth_dr": 2.0}, [1 - 2.2 / 3.8, 1 - 2.6 / 4.2]),
        ("dice_loss", {"squared": True}, [1 - 1.2 / 1.4, 1 - 1.6 / 1.8]),
        ("dice_loss", {"jaccard": True}, [1 - 0.6 / 1.2, 1 - 0.8 / 1.4]),
        ("dice_loss", {"jaccard": True, "smooth_nr": 1.0, "smooth_dr": 2.0}, [1 - 2.2 / 4.4, 1 - 2.6 / 4.8]),
        ("tversky_loss", {}, [1 - 0.6 / 0.9, 1 - 0.8 / 1.1]),
        ("tversky_loss", {"alpha": 1.0, "beta": 0.0}, [1 - 0.6 / 0.8, 1 - 0.8 / 1.2]),
        ("tversky_loss", {"alpha": 0.0, "beta": 1.0}, [1 - 0.6 / 1.0, 1 - 0.8 / 1.0]),
        ("tversky_loss", {"gamma": 2.0}, [(1 - 0.6 / 0.9) ** 2, (1 - 0.8 / 1.1) ** 2]),
        ("generalized_dice_loss", {}, [1 - 2.8 / 4.0]),
    ],
)
def test_the_terms_of_two_voxels_by_hand(name, options, expected):
    p, labels = two_voxels()
    options = {"smooth_nr": 0.0, "smooth_dr": 0.0, "activation": None, "reduction": "none", **options}
    actual = getattr(segloss, name)(p, labels, **options)
    assert_close(actual.reshape(-1), torch.tensor(expected))


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 0.5 * (1 / 3 + 3 / 11)), ("sum", 1 / 3 + 3 / 11)])
def test_mean_and_sum_are_taken_over_the_terms(reduction, expected):
    p, labels = two_voxels()
    loss = segloss.dice_loss(p, labels, activation=None, reduction=reduction, smooth_nr=0.0, smooth_dr=0.0)
    assert_close(loss, torch.tensor(expected))


@pytest.mark.parametrize(("w_type", "w"), [("square", [1 / 9, 1.0]), ("simple", [1 / 3, 1.0]), ("uniform", [1.0, 1.0])])
def test_the_weights_of_generalized_dice_by_hand(w_type, w):
    p, labels = torch.tensor([[[0.5, 0.5, 0.25, 1.0], [0.5, 0.5, 0.75, 0.0]]]), torch.tensor([[0, 0, 1, 0]])
    i, sizes = [2.0, 0.75], [2.25 + 3, 1.75 + 1]
    score = 2 * (w[0] * i[0] + w[1] * i[1]) / (w[0] * sizes[0] + w[1] * sizes[1])
    loss = segloss.generalized_dice_loss(p, labels, activation=None, w_type=w_type, smooth_nr=0.0, smooth_dr=0.0)
    assert_close(loss, torch.tensor(1 - score))


# ---- the reference over random options ----


def random_target(choose, activation, soft_allowed, n, c, spatial):
    """A target [n, c, *] or labels [n, *], and its ignore_index."""
    labels = torch.randint(2 if c == 1 else c - choose.randint(0, 1), (n, *spatial))  # for one class, its mask
    kinds = ["labels", "kept"] + (["one-hot"] if c > 1 else [])
    kinds += ["mask", "soft"] if activation != "softmax" else ["soft"] * soft_allowed
    kind = choose.choice(kinds)
    if kind == "one-hot" and activation == "softmax":
        return one_hot(labels, c), -100
    if kind in ("mask", "one-hot"):
        mask = torch.randint(2, (n, c, *spatial)).to(torch.uint8)
        mask[torch.rand(mask.shape) < 0.05] = 255
        return mask, 255
    if kind == "soft":
        return torch.rand(n, c, *spatial), -100
    labels[torch.rand(labels.shape) < 0.2] = 255
    return (labels.unsqueeze(1) if kind == "kept" else labels).to(choose.choice([torch.uint8, torch.int64])), 255


def random_case(name, seed):
    choose = random.Random(f"{name} {seed}")
    torch.manual_seed(choose.randrange(10**6))
    activation = choose.choice(["softmax", "sigmoid"] + [None] * (name in TERMS))
    fewest = 2 if activation == "softmax" else 1
    n, c, spatial = choose.randint(1, 3), choose.randint(fewest, 5), choose.choice([(), (9,), (3, 4), (2, 3, 2)])
    x = torch.randn(n, c, *spatial, dtype=choose.choice([torch.float64, torch.float32]))
    target, ignore_index = random_target(choose, activation, name != "dice_focal_loss", n, c, spatial)
    smooth_dr = choose.choice([1e-5, 1.0])
    options = {
        "activation": activation,
        "include_background": c == 1 or choose.random() < 0.6,
        "squared": choose.random() < 0.4,
        "jaccard": choose.random() < 0.4,
        "soft_label": choose.random() < 0.4,
        "batch": choose.random() < 0.4,
        "weight": choose.choice([None, torch.rand(c)]),
        "smooth_nr": choose.choice([0.0, 0.5]) * smooth_dr,
        "smooth_dr": smooth_dr,
        "ignore_index": ignore_index,
        "reduction": choose.choice(["mean", "sum"] + ["none"] * (name in TERMS)),
        "voxel_weight": choose.choice([None, torch.randint(3, (n, *spatial)) * torch.rand(n, *spatial)]),
        "w_type": choose.choice(["square", "simple", "uniform"]),
        "alpha": choose.uniform(0.1, 1),
        "beta": choose.uniform(0.1, 1),
        "gamma": choose.choice([0.5, 1.0, 2.0]),
        "lambda_dice": choose.uniform(0, 2),
        "lambda_ce": choose.uniform(0, 2),
        "lambda_focal": choose.uniform(0, 2),
        "label_smoothing": choose.choice([0.0, 0.2]),
        "empty": choose.choice(["nan", "zero"]),
    }
    options = {option: value for option, value in options.items() if option in SIGNATURES[name]}
    if choose.random() < 0.3:
        full = target.shape == x.shape or target.dim() == x.dim()
        x, target = x.movedim(1, -1), target.movedim(1, -1) if full else target
        options["dim"] = -1
    return (x if activation else x.sigmoid()), target, options


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_the_reference(name, seed):
    input, target, options = random_case(name, seed)
    assert_is_reference(name, input, target, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_of_the_defaults_equal_the_reference(name):
    assert_is_reference(name, torch.randn(2, 4, 5, 6), torch.randint(4, (2, 1, 5, 6)).to(torch.uint8))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_classes", [63, 64, 65, 128, 129, 300])
def test_many_classes(num_classes, name):
    assert_is_reference(name, torch.randn(2, num_classes, 70), torch.randint(num_classes, (2, 70)))


@pytest.mark.parametrize("name", LOSSES)
def test_one_unbatched_voxel(name):
    assert_is_reference(name, torch.randn(3), torch.tensor(2))


# ---- the parts of the compound losses ----


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_dice_ce_is_dice_plus_cross_entropy(smoothing, soft, reduction):
    x, w = torch.randn(2, 3, 4, 5), torch.tensor([0.5, 2.0, 1.0])
    target = torch.rand(2, 3, 4, 5).softmax(1) if soft else torch.randint(3, (2, 4, 5))
    keywords = {"weight": w, "reduction": reduction}
    ce = F.cross_entropy(x, target, label_smoothing=smoothing, **keywords)
    expected = 0.5 * segloss.dice_loss(x, target, **keywords) + 3 * ce
    actual = segloss.dice_ce_loss(x, target, lambda_dice=0.5, lambda_ce=3.0, label_smoothing=smoothing, **keywords)
    assert_close(actual, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_dice_ce_of_a_sigmoid_is_dice_plus_binary_cross_entropy(reduction):
    x, mask = torch.randn(2, 3, 4, 5), torch.randint(2, (2, 3, 4, 5))
    keywords = {"activation": "sigmoid", "reduction": reduction}
    expected = segloss.dice_loss(x, mask, **keywords)
    expected += F.binary_cross_entropy_with_logits(x, mask.float(), reduction=reduction)
    assert_close(segloss.dice_ce_loss(x, mask, **keywords), expected)


def test_label_smoothing_of_a_sigmoid_moves_both_values_halfway():
    x, mask, s = torch.randn(2, 3, 4, 5), torch.randint(2, (2, 3, 4, 5)), 0.2
    smooth = (1 - s) * mask + s / 2
    expected = segloss.dice_loss(x, mask, activation="sigmoid") + F.binary_cross_entropy_with_logits(x, smooth)
    assert_close(segloss.dice_ce_loss(x, mask, activation="sigmoid", label_smoothing=s), expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_dice_focal_is_dice_plus_focal(reduction, activation):
    x, labels, w = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5)), torch.tensor([0.5, 2.0, 1.0])
    keywords = {"weight": w, "reduction": reduction, "activation": activation}
    expected = 0.5 * segloss.dice_loss(x, labels, **keywords) + 3 * segloss.focal_loss(x, labels, gamma=1.5, **keywords)
    actual = segloss.dice_focal_loss(x, labels, lambda_dice=0.5, lambda_focal=3.0, gamma=1.5, **keywords)
    assert_close(actual, expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_dice_focal_of_gamma_zero_is_dice_ce(activation):
    x, labels, w = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5)), torch.tensor([0.5, 2.0, 1.0])
    keywords = {"weight": w, "activation": activation}
    actual = value_and_gradient("dice_focal_loss", x, labels, gamma=0.0, **keywords)
    assert_same(actual, value_and_gradient("dice_ce_loss", x, labels, **keywords))


@pytest.mark.parametrize("name", COMPOUNDS)
def test_without_background_the_voxel_losses_still_have_all_classes(name):
    x, labels, w = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5)), torch.tensor([0.5, 2.0, 1.0])
    dice = {include: segloss.dice_loss(x, labels, weight=w, include_background=include) for include in (True, False)}
    losses = {
        include: getattr(segloss, name)(x, labels, weight=w, include_background=include) for include in (True, False)
    }
    assert_close(losses[False] - losses[True], dice[False] - dice[True])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", COMPOUNDS)
@pytest.mark.parametrize(("empty", "expected"), [("nan", NAN), ("zero", 0.4 * (1 - 0.5 / 2))])
def test_no_voxel_to_average(empty, expected, name, activation):
    """Only the Dice term of samples without a valid voxel is left."""
    labels = torch.full((2, 4), -100)
    options = {"smooth_nr": 0.5, "smooth_dr": 2.0, "lambda_dice": 0.4, "empty": empty, "activation": activation}
    value, gradient = value_and_gradient(name, torch.randn(2, 3, 4), labels, **options)
    assert_close(value, torch.tensor(expected))
    assert torch.equal(gradient, torch.zeros(2, 3, 4))


@pytest.mark.parametrize("name", COMPOUNDS)
def test_class_weights_of_zero_leave_nothing_to_average(name):
    options = {"weight": torch.zeros(3), "empty": "zero"}
    value, gradient = value_and_gradient(name, torch.randn(2, 3, 4), torch.randint(3, (2, 4)), **options)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(2, 3, 4))


@pytest.mark.parametrize("name", COMPOUNDS)
def test_a_reduction_to_none_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name}: expected reduction .*'none'"):
        getattr(segloss, name)(torch.randn(2, 3), torch.tensor([0, 1]), reduction="none")


@pytest.mark.parametrize("name", COMPOUNDS)
def test_probabilities_as_input_of_a_loss_of_logits_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name}: expected activation .*got None"):
        getattr(segloss, name)(torch.rand(2, 3), torch.tensor([0, 1]), activation=None)


def test_dice_focal_refuses_soft_labels_of_a_softmax():
    with pytest.raises(RuntimeError, match=r"dice_focal_loss: expected .*labels"):
        segloss.dice_focal_loss(torch.randn(2, 3, 4), torch.rand(2, 3, 4))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, NAN])
def test_label_smoothing_outside_of_0_to_1_is_refused(smoothing):
    with pytest.raises(RuntimeError, match="label_smoothing"):
        segloss.dice_ce_loss(torch.randn(2, 3), torch.tensor([0, 1]), label_smoothing=smoothing)


# ---- shapes of the result ----


@pytest.mark.parametrize("name", ["dice_loss", "tversky_loss"])
@pytest.mark.parametrize(
    ("batch", "include_background", "shape"),
    [(False, True, (2, 4)), (False, False, (2, 3)), (True, True, (4,)), (True, False, (3,))],
)
def test_reduction_none_gives_a_term_for_each_sample_and_class_that_counts(name, batch, include_background, shape):
    options = {"batch": batch, "include_background": include_background, "reduction": "none"}
    assert getattr(segloss, name)(torch.randn(2, 4, 5), torch.randint(4, (2, 5)), **options).shape == shape


@pytest.mark.parametrize("include_background", [True, False])
def test_reduction_none_gives_a_term_for_each_sample_of_generalized_dice(include_background):
    options = {"include_background": include_background, "reduction": "none"}
    assert segloss.generalized_dice_loss(torch.randn(2, 4, 5), torch.randint(4, (2, 5)), **options).shape == (2,)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_reduced_loss_is_one_number(name, reduction):
    assert getattr(segloss, name)(torch.randn(2, 4, 5), torch.randint(4, (2, 5)), reduction=reduction).shape == ()


# ---- weight ----


@pytest.mark.parametrize("name", ["dice_loss", "tversky_loss"])
def test_weight_multiplies_the_terms_before_the_plain_mean(name):
    x, labels, w = torch.randn(2, 3, 4), torch.randint(3, (2, 4)), torch.tensor([0.5, 2.0, 1.0])
    terms = getattr(segloss, name)(x, labels, reduction="none")
    assert_close(getattr(segloss, name)(x, labels, weight=w), (w * terms).sum() / 6)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", ["dice_loss", "tversky_loss"])
def test_the_weight_of_the_background_is_unused_without_it(name, batch):
    x, labels = torch.randn(2, 3, 4), torch.randint(3, (2, 4))
    options = {"include_background": False, "batch": batch}
    losses = [
        getattr(segloss, name)(x, labels, weight=torch.tensor([w0, 2.0, 1.0]), **options) for w0 in (0.0, 1e30, NAN)
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("name", ["dice_loss", "tversky_loss", "dice_ce_loss", "dice_focal_loss"])
@pytest.mark.parametrize("shape", [(2,), (4,), (1, 3), ()])
def test_a_weight_that_is_not_one_for_each_class_is_refused(shape, name, include_background):
    with pytest.raises(RuntimeError, match=rf"{name}: .*weight.*\[3\]"):
        getattr(segloss, name)(
            torch.randn(2, 3, 4),
            torch.randint(3, (2, 4)),
            weight=torch.ones(shape),
            include_background=include_background,
        )


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES])
@pytest.mark.parametrize("name", ["dice_loss", "tversky_loss", "dice_ce_loss", "dice_focal_loss"])
def test_a_weight_of_another_dtype_leaves_the_result_in_the_dtype_of_input(name, dtype):
    x, labels, w = torch.randn(2, 3, 4), torch.randint(3, (2, 4)), torch.tensor([0.5, 2.0, 1.0])
    actual = getattr(segloss, name)(x, labels, weight=w.to(dtype))
    assert actual.dtype == torch.float32
    assert_close(actual, getattr(segloss, name)(x, labels, weight=w))


# ---- samples and classes that are absent ----


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("how", ["ignore_index", "voxel_weight"])
def test_a_sample_without_a_valid_voxel_has_the_terms_of_the_smoothing_alone(how, name):
    x, labels, v = torch.randn(2, 3, 4), torch.randint(3, (2, 4)), None
    options = {"smooth_nr": 0.5, "smooth_dr": 2.0, "reduction": "none"}
    if how == "ignore_index":
        labels[1] = -100
    else:
        v = torch.tensor([[1.0] * 4, [0.0] * 4])
    actual = getattr(segloss, name)(x, labels, voxel_weight=v, **options)
    alone = getattr(segloss, name)(x[:1], labels[:1], **options)
    assert_close(actual[0], alone[0])
    assert_close(actual[1], torch.full_like(alone[0], 1 - 0.5 / 2))
    assert_close(getattr(segloss, name)(x, labels, voxel_weight=v, **{**options, "reduction": "mean"}), actual.mean())


@pytest.mark.parametrize("name", TERMS)
def test_a_sample_without_a_valid_voxel_adds_nothing_to_the_batch(name):
    x, labels = torch.randn(2, 3, 4), torch.randint(3, (2, 4))
    labels[1] = -100
    expected = getattr(segloss, name)(x[:1], labels[:1], batch=True)
    assert_close(getattr(segloss, name)(x, labels, batch=True), expected)


def generalized_dice(p, labels, w, include_background=True):
    """Generalized Dice of one sample, with given weights."""
    first = 0 if include_background else 1
    g = one_hot(labels, p.shape[1])
    i, sizes = ((values.sum(2)[0, first:] * torch.tensor(w)).sum() for values in (p * g, p + g))
    return 1 - 2 * i / sizes


@pytest.mark.parametrize(("w_type", "w"), [("square", [1 / 9, 1.0, 1.0]), ("simple", [1 / 3, 1.0, 1.0])])
def test_an_absent_class_has_the_largest_weight_of_its_sample(w_type, w):
    p, labels = torch.rand(1, 3, 4), torch.tensor([[0, 1, 0, 0]])
    actual = segloss.generalized_dice_loss(p, labels, activation=None, w_type=w_type, smooth_nr=0.0, smooth_dr=0.0)
    assert_close(actual, generalized_dice(p, labels, w))


def test_the_largest_weight_is_that_of_the_same_sample():
    x, labels = torch.randn(2, 3, 4), torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0]])
    terms = segloss.generalized_dice_loss(x, labels, reduction="none")
    for n in range(2):
        assert_close(terms[n], segloss.generalized_dice_loss(x[n : n + 1], labels[n : n + 1]))


def test_the_largest_weight_of_a_batch_is_that_of_the_batch():
    p, labels = torch.rand(2, 3, 4), torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0]])
    actual = segloss.generalized_dice_loss(p, labels, activation=None, batch=True, smooth_nr=0.0, smooth_dr=0.0)
    joined = p.movedim(0, 1).reshape(1, 3, 8)
    assert_close(actual, generalized_dice(joined, labels.reshape(1, 8), [1 / 49, 1.0, 1.0]))


def test_without_background_its_weight_is_not_the_largest():
    p, labels = torch.rand(1, 3, 4), torch.tensor([[0, 1, 1, 1]])
    options = {"activation": None, "include_background": False, "smooth_nr": 0.0, "smooth_dr": 0.0}
    actual = segloss.generalized_dice_loss(p, labels, **options)
    assert_close(actual, generalized_dice(p, labels, [1 / 9, 1 / 9], include_background=False))


@pytest.mark.parametrize("w_type", ["square", "simple", "uniform"])
def test_without_any_finite_weight_all_are_one(w_type):
    p, labels = torch.rand(1, 3, 4), torch.zeros(1, 4, dtype=torch.int64)
    options = {"activation": None, "include_background": False, "smooth_nr": 1.0, "smooth_dr": 2.0, "w_type": w_type}
    actual = segloss.generalized_dice_loss(p, labels, **options)
    assert_close(actual, 1 - 1 / (p[:, 1:].sum() + 2))


@pytest.mark.parametrize("w_type", ["cubic", "Square", None])
def test_an_unknown_type_of_weights_is_refused(w_type):
    with pytest.raises(ValueError, match=r"generalized_dice_loss: expected w_type .*, got"):
        segloss.generalized_dice_loss(torch.randn(2, 3), torch.tensor([0, 1]), w_type=w_type)


# ---- voxels that do not count, and voxels that count twice ----


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_ignoring_voxels_is_dropping_them(name, activation):
    x, labels, kept = torch.randn(2, 3, 7), torch.randint(3, (2, 7)), [0, 2, 3, 5, 6]
    labels[:, [1, 4]] = 255
    x[:, :, 1], x[0, 2, 4] = NAN, INF
    options = {"activation": activation, "ignore_index": 255}
    value, gradient = value_and_gradient(name, x, labels, **options)
    assert_same((value, gradient[..., kept]), value_and_gradient(name, x[..., kept], labels[:, kept], **options))
    assert torch.equal(gradient[..., [1, 4]], torch.zeros(2, 3, 2))


@pytest.mark.parametrize("name", LOSSES)
def test_ignoring_voxels_of_a_mask_is_dropping_them(name):
    x, mask, kept = torch.randn(2, 1, 7), torch.randint(2, (2, 1, 7)), [0, 2, 3, 5, 6]
    mask[..., [1, 4]] = 255
    options = {"activation": "sigmoid", "ignore_index": 255}
    value, gradient = value_and_gradient(name, x, mask, **options)
    assert_same((value, gradient[..., kept]), value_and_gradient(name, x[..., kept], mask[..., kept], **options))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_voxel_of_weight_two_counts_twice_and_one_of_weight_zero_not_at_all(name, activation):
    x, labels, v = torch.randn(2, 3, 5), torch.randint(3, (2, 5)), torch.tensor([1.0, 2.0, 0.0, 1.0, 2.0])
    repeated = [0, 1, 1, 3, 4, 4]
    value, gradient = value_and_gradient(name, x, labels, activation=activation, voxel_weight=v.expand(2, 5))
    assert_close(value, getattr(segloss, name)(x[..., repeated], labels[:, repeated], activation=activation))
    assert torch.equal(gradient[..., 2], torch.zeros(2, 3))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_does_not_change_where_all_voxel_weights_are_multiplied(name):
    """Without smoothing: the means and ratios divide by the weights."""
    x, labels, v = torch.randn(2, 3, 50), torch.randint(3, (2, 50)), torch.rand(2, 50) + 0.5
    options = {"smooth_nr": 0.0, "smooth_dr": 0.0}
    expected = value_and_gradient(name, x, labels, voxel_weight=v, **options)
    assert_same(value_and_gradient(name, x, labels, voxel_weight=8 * v, **options), expected)


# ---- half types ----


@pytest.fixture(scope="module")
def image():
    """Logits of 512 x 512 and labels of one sample in four classes."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    labels = torch.randint(4, (1, 1, 512, 512), generator=generator).to(torch.uint8)
    return 3 * torch.randn(1, 4, 512, 512, generator=generator), labels


def scaled_gradient(name, input, target, scale, **options):
    """The gradient of the loss times `scale`, as with torch.amp's GradScaler: half types have no numbers this small."""
    x = input.detach().requires_grad_()
    value = getattr(segloss, name)(x, target, **options)
    return torch.autograd.grad(value, x, torch.full_like(value, scale))[0]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_half_logits_of_an_image_give_the_float32_answer_rounded(name, activation, dtype, image):
    x, labels = image[0].to(dtype), image[1]
    value = getattr(segloss, name)(x, labels, activation=activation)
    expected = getattr(segloss, name)(x.float(), labels, activation=activation)
    assert value.dtype == dtype
    assert_relative(value, expected, ROUNDING_RTOL[dtype])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_half_logits_is_the_float32_one_rounded(name, dtype, image):
    x, labels = image[0].to(dtype), image[1]
    actual = scaled_gradient(name, x, labels, 2.0**15)
    expected = scaled_gradient(name, x.float(), labels, 2.0**15)
    assert actual.dtype == dtype
    assert expected.abs().max() > 2**-6  # far above the numbers that are too small for float16
    assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast_the_result_is_float32_and_nothing_is_cast(name, dtype):
    x, labels = torch.randn(2, 3, 8, 8).to(dtype), torch.randint(3, (2, 8, 8))
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        value, gradient = value_and_gradient(name, x, labels)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    assert_close(value, getattr(segloss, name)(x.float(), labels))


# ---- saturation and precision ----


@pytest.mark.parametrize("margin", [100.0, 1e4])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_saturated_logits_have_a_finite_value_and_gradient(name, activation, margin):
    x, labels = margin * torch.randn(2, 3, 20).sign(), torch.randint(3, (2, 20))
    assert_finite(value_and_gradient(name, x, labels, activation=activation))
    assert_is_reference(name, x, labels, activation=activation)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("right", [True, False])
def test_saturated_dice_focal_has_a_finite_gradient_of_any_gamma(right, activation, gamma):
    labels = torch.randint(3, (2, 20))
    x = 1e4 * (2 * one_hot(labels, 3) - 1) * (1.0 if right else -1.0)
    assert_finite(value_and_gradient("dice_focal_loss", x, labels, activation=activation, gamma=gamma))


@pytest.mark.parametrize("name", LOSSES)
def test_minus_inf_on_another_class_than_the_label_is_exact(name):
    x, labels = torch.randn(2, 3, 6), torch.randint(2, (2, 6))
    x[:, 2, ::2] = -INF
    assert F.cross_entropy(x, labels).isfinite()
    assert_finite(value_and_gradient(name, x, labels))
    assert_is_reference(name, x, labels)


@pytest.mark.parametrize("name", TERMS)
def test_minus_inf_on_the_label_is_a_probability_of_zero(name):
    x, labels = torch.randn(2, 3, 6), torch.randint(3, (2, 6))
    x[:, 1] = -INF
    assert_finite(value_and_gradient(name, x, labels))
    assert_is_reference(name, x, labels)


@pytest.mark.parametrize("name", LOSSES)
def test_infinite_logits_of_a_sigmoid_that_is_right_are_exact(name):
    x, mask = torch.randn(2, 3, 6), torch.randint(2, (2, 3, 6))
    x[..., ::2] = (INF * (2 * mask - 1))[..., ::2]
    assert_finite(value_and_gradient(name, x, mask, activation="sigmoid"))
    assert_is_reference(name, x, mask, activation="sigmoid")


@pytest.mark.parametrize("spoiled", [NAN, INF])
@pytest.mark.parametrize("name", LOSSES)
def test_nan_and_plus_inf_on_a_voxel_that_counts_are_seen(name, spoiled):
    x = torch.randn(2, 3, 6)
    x[0, 1, 2] = spoiled
    assert getattr(segloss, name)(x, torch.randint(3, (2, 6))).isnan()


@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.75, 4 / 3, 2.0])
@pytest.mark.parametrize("batch", [False, True])
def test_a_perfect_prediction_has_a_tversky_loss_of_zero_and_a_finite_gradient(batch, gamma):
    labels = torch.randint(3, (2, 20))
    p = one_hot(labels, 3).float()
    value, gradient = value_and_gradient("tversky_loss", p, labels, activation=None, gamma=gamma, batch=batch)
    assert_close(value, torch.tensor(0.0))
    assert_finite([gradient])


@pytest.mark.parametrize("gamma", [0.25, 0.75])
def test_saturated_logits_that_are_right_have_a_finite_gradient_of_focal_tversky(gamma):
    labels = torch.randint(3, (2, 20))
    assert_finite(value_and_gradient("tversky_loss", 200.0 * one_hot(labels, 3), labels, gamma=gamma))


@pytest.mark.parametrize("gamma", [0.25, 0.75])
def test_a_sample_without_a_valid_voxel_has_a_finite_gradient_of_focal_tversky(gamma):
    labels = torch.tensor([[0, 1, 2], [-100, -100, -100]])
    value, gradient = value_and_gradient("tversky_loss", torch.randn(2, 3, 3), labels, gamma=gamma)
    assert_finite([value, gradient])
    assert torch.equal(gradient[1], torch.zeros(3, 3))


@pytest.mark.parametrize("gamma", [-1.0, NAN])
@pytest.mark.parametrize("name", ["tversky_loss", "dice_focal_loss"])
def test_a_negative_gamma_is_refused(name, gamma):
    with pytest.raises((ValueError, RuntimeError), match=rf"{name}: .*gamma"):
        getattr(segloss, name)(torch.randn(2, 3), torch.tensor([0, 1]), gamma=gamma)


@pytest.mark.parametrize("name", LOSSES)
def test_a_float32_loss_of_an_image_is_the_float64_one(name, image):
    x, labels = image
    assert_relative(getattr(segloss, name)(x, labels), getattr(reference, name)(x, labels), 2 * SUM_RTOL)


# ---- no voxel, no sample ----


@pytest.mark.parametrize("name", TERMS)
def test_samples_without_voxels_have_the_terms_of_the_smoothing_alone(name):
    options = {"smooth_nr": 0.5, "smooth_dr": 2.0, "reduction": "none"}
    terms, gradient = value_and_gradient(name, torch.zeros(2, 3, 0), torch.zeros(2, 0).long(), **options)
    assert_close(terms, torch.full_like(terms, 0.75))
    assert gradient.shape == (2, 3, 0)


@pytest.mark.parametrize("name", ["dice_loss", "tversky_loss"])
def test_no_sample_has_no_term(name):
    value, gradient = value_and_gradient(name, torch.zeros(0, 3, 4), torch.zeros(0, 4).long(), reduction="none")
    assert value.shape == (0, 3)
    assert gradient.shape == (0, 3, 4)


# ---- derivatives, bits, memory ----

LABELS = torch.tensor([[0, 2], [1, -100]])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_first_and_second_derivatives(name, activation):
    x = torch.randn(2, 3, 2, dtype=torch.float64).requires_grad_()
    options = {"activation": activation, "voxel_weight": torch.tensor([[0.5, 1.0], [2.0, 1.0]])}
    options |= {"gamma": 1.5} if "gamma" in SIGNATURES[name] else {}
    options |= {"label_smoothing": 0.1} if "label_smoothing" in SIGNATURES[name] else {}

    def loss(x):
        return getattr(segloss, name)(x, LABELS, **options)

    assert gradcheck(loss, x, check_forward_ad=True)
    assert gradgradcheck(loss, x)


@pytest.mark.parametrize("name", LOSSES)
def test_func_grad_gives_what_the_kernel_gives(name):
    x, labels = torch.randn(2, 3, 5), torch.randint(3, (2, 5))
    assert_close(torch.func.grad(getattr(segloss, name))(x, labels), value_and_gradient(name, x, labels)[1])


@pytest.mark.parametrize("name", LOSSES)
def test_vmap_is_one_call_at_a_time(name):
    x, labels = torch.randn(4, 2, 3, 5), torch.randint(3, (4, 2, 5))
    labels[0, 0] = -100
    expected = torch.stack([getattr(segloss, name)(x[b], labels[b]) for b in range(4)])
    assert_close(torch.func.vmap(getattr(segloss, name))(x, labels), expected)


@pytest.mark.parametrize("name", ["generalized_dice_loss", "dice_ce_loss"])
def test_compile_is_one_graph(name):
    x, labels = torch.randn(2, 3, 5).requires_grad_(), torch.randint(3, (2, 5))
    value = torch.compile(getattr(segloss, name), backend="aot_eager", fullgraph=True)(x, labels)
    actual = value.detach(), torch.autograd.grad(value, x)[0]
    assert_same(actual, value_and_gradient(name, x, labels))


@pytest.mark.parametrize("name", ["dice_loss", "dice_ce_loss"])
def test_soft_labels_that_require_a_gradient_get_one(name):
    x = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_()
    target = torch.rand(2, 3, 4, dtype=torch.float64).softmax(1).requires_grad_()
    expected = torch.autograd.grad(getattr(reference, name)(x, target), (x, target))
    actual = torch.autograd.grad(getattr(segloss, name)(x, target), (x, target))
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_same_bits_for_one_thread_and_two_and_for_channels_last(name, activation, image, num_threads):
    x, labels = image
    num_threads(1)
    expected = value_and_gradient(name, x, labels, activation=activation)
    num_threads(2)
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out = x.contiguous(memory_format=layout)
        value, gradient = value_and_gradient(name, laid_out, labels, activation=activation)
        assert torch.equal(value, expected[0])
        assert torch.equal(gradient, expected[1])
        assert gradient.stride() == laid_out.stride()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_at_most_one_number_per_voxel_is_saved_beyond_the_arguments(name, activation):
    x, labels = torch.randn(2, 3, 8, 8).requires_grad_(), torch.zeros(2, 8, 8, dtype=torch.uint8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        getattr(segloss, name)(x, labels, activation=activation)
    own = {t.data_ptr(): t.numel() for t in saved if t.data_ptr() not in {x.data_ptr(), labels.data_ptr()}}
    large = [numel for numel in own.values() if numel >= labels.numel()]
    assert x.data_ptr() in {t.data_ptr() for t in saved}
    assert sum(large) <= labels.numel()


# ---- errors ----


@pytest.mark.parametrize("name", LOSSES)
def test_a_bad_label_names_the_loss_the_value_and_its_index(name):
    labels = torch.tensor([[0, 1], [7, 2]])
    text = rf"^{name}: Target 7 is out of bounds: 1 label is outside \[0, 3\), the first at index \[1, 0\]"
    with pytest.raises(IndexError, match=text):
        getattr(segloss, name)(torch.randn(2, 3, 2), labels)


@pytest.mark.parametrize("name", LOSSES)
def test_a_bad_value_of_a_mask_names_the_loss_the_value_and_its_index(name):
    mask = torch.zeros(2, 3, 2, dtype=torch.int64)
    mask[1, 2, 0] = 5
    with pytest.raises(RuntimeError, match=rf"^{name}: .*\b5\b.*\[1, 2, 0\]"):
        getattr(segloss, name)(torch.randn(2, 3, 2), mask, activation="sigmoid")


@pytest.mark.parametrize("ignore_index", [0, 255])
@pytest.mark.parametrize("name", [*TERMS, "dice_ce_loss"])
def test_soft_labels_with_an_ignore_index_are_refused(name, ignore_index):
    with pytest.raises(RuntimeError, match="ignore_index"):
        getattr(segloss, name)(torch.randn(2, 3, 2), torch.rand(2, 3, 2), ignore_index=ignore_index)


@pytest.mark.parametrize("name", LOSSES)
def test_an_argmax_as_input_is_refused(name):
    with pytest.raises(TypeError, match=rf"^{name}: expected floating logits"):
        getattr(segloss, name)(torch.zeros(2, 4).long(), torch.zeros(2, 4).long())


@pytest.mark.parametrize("name", LOSSES)
def test_a_shape_that_does_not_fit_is_named_with_the_loss(name):
    with pytest.raises(RuntimeError, match=rf"^{name}: .*\[2, 4, 5\].*got target \[2, 7\]"):
        getattr(segloss, name)(torch.randn(2, 3, 4, 5), torch.zeros(2, 7).long())


@pytest.mark.parametrize("name", LOSSES)
def test_a_voxel_weight_that_requires_a_gradient_is_refused(name):
    with pytest.raises(RuntimeError, match=rf"^{name}: .*voxel_weight"):
        getattr(segloss, name)(
            torch.randn(2, 3, 4), torch.zeros(2, 4).long(), voxel_weight=torch.ones(2, 4, requires_grad=True)
        )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("option", "value"), [("reduction", "avg"), ("activation", "relu")])
def test_an_unknown_choice_is_refused(option, value, name):
    with pytest.raises(ValueError, match=rf"^{name}: expected {option} .*, got '{value}'"):
        getattr(segloss, name)(torch.randn(2, 3), torch.tensor([0, 1]), **{option: value})


@pytest.mark.parametrize("name", COMPOUNDS)
def test_an_unknown_meaning_of_empty_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected empty to be 'nan' or 'zero', got 'one'"):
        getattr(segloss, name)(torch.randn(2, 3), torch.tensor([0, 1]), empty="one")


# ---- an ignore_index that is a class ----


@pytest.mark.parametrize("smooth", [1e-5, 1.0])
def test_a_class_that_is_ignored_keeps_its_term_of_a_class_without_a_voxel(smooth):
    x, labels = torch.randn(2, 3, 40, dtype=torch.float64), torch.randint(3, (2, 40))
    terms = segloss.dice_loss(x, labels, ignore_index=0, reduction="none", smooth_nr=smooth, smooth_dr=smooth)
    p = (x.softmax(1) * (labels != 0).unsqueeze(1)).sum(2)
    assert_close(terms[:, 0], 1 - smooth / (p[:, 0] + smooth))
    others = segloss.dice_loss(
        x, labels, ignore_index=0, include_background=False, reduction="none", smooth_nr=smooth, smooth_dr=smooth
    )
    assert torch.equal(terms[:, 1:], others)


# ---- pos_weight of compound losses ----


@pytest.mark.parametrize("of_labels", [True, False], ids=["labels", "masks"])
@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)], ids=["", "weight"])
def test_pos_weight_of_dice_and_binary_cross_entropy(of_labels, weight):
    x, pos_weight = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([1.0, 5.0, 0.0])
    target = torch.randint(3, (2, 5, 4)) if of_labels else torch.randint(2, (2, 3, 5, 4))
    options = {"activation": "sigmoid", "weight": weight}
    actual = segloss.dice_ce_loss(x, target, pos_weight=pos_weight, label_smoothing=0.1, **options)
    second = segloss.binary_cross_entropy_with_logits(x, target, weight, pos_weight=pos_weight, label_smoothing=0.1)
    expected = segloss.dice_loss(x, target, **options) + second
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (actual, expected)))


def test_pos_weight_of_dice_and_focal_loss():
    x, masks = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randint(2, (2, 3, 5, 4))
    actual = segloss.dice_focal_loss(x, masks, pos_weight=torch.full((3,), 4.0), activation="sigmoid", lambda_dice=0.0)
    expected = 5 * segloss.focal_loss(x, masks, alpha=0.8, activation="sigmoid")
    torch.testing.assert_close(actual, expected)


def test_pos_weight_is_a_buffer_of_the_module():
    x, masks, pos_weight = torch.randn(2, 3, 5), torch.randint(2, (2, 3, 5)), torch.tensor([1.0, 5.0, 2.0])
    loss = segloss.DiceCELoss(activation="sigmoid", pos_weight=pos_weight)
    assert loss(x, masks) == segloss.dice_ce_loss(x, masks, activation="sigmoid", pos_weight=pos_weight)
    assert list(loss.state_dict()) == ["pos_weight"]


def test_pos_weight_on_a_device_without_kernels_and_under_vmap():
    x, masks = torch.randn(3, 2, 3, 5, dtype=torch.float64), torch.randint(2, (3, 2, 3, 5))
    loss = partial(segloss.dice_ce_loss, activation="sigmoid", pos_weight=torch.tensor([1.0, 5.0, 2.0]))
    expected = torch.stack([loss(*each) for each in zip(x, masks, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(x, masks), expected)
    assert torch.autograd.gradgradcheck(loss, (x[0, :1].requires_grad_(), masks[0, :1]))


@pytest.mark.parametrize("loss", [segloss.dice_ce_loss, segloss.dice_focal_loss])
def test_pos_weight_needs_a_sigmoid_and_one_value_for_each_class(loss):
    x, labels = torch.randn(2, 3, 5), torch.randint(3, (2, 5))
    with pytest.raises(ValueError, match=r"expected no pos_weight with activation='softmax'"):
        loss(x, labels, pos_weight=torch.ones(3))
    with pytest.raises(RuntimeError, match=r"pos_weight of shape \[3\]"):
        loss(x, labels, pos_weight=torch.ones(2), activation="sigmoid")
    with pytest.raises(RuntimeError, match=r"pos_weight of shape \[C\]"):
        loss(x, labels, pos_weight=torch.ones(2, 3, 5), activation="sigmoid")
