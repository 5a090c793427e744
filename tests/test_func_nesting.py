"""Nested transforms of torch.func around each loss, against the same transforms around its plain formula.

The formulas are written in torch operations, in float64, without a branch on a value: any transform takes them.
"""

import itertools
from functools import partial

import pytest
import torch
from tolerances import assert_close
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import segloss

WEIGHT = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
VOXEL_WEIGHT = torch.tensor([[0.5, 2.0]], dtype=torch.float64)

# Two batches of one sample with two voxels and three classes.
LABELS = torch.tensor([[[0, 2]], [[1, -100]]])
MASKS = torch.tensor([[[[1, 0], [1, 1], [0, 0]]], [[[0, 1], [1, 0], [1, 1]]]])
PROBABILITIES = torch.tensor([[[[2, 5], [7, 5], [1, 0]]], [[[10, 3], [0, 3], [0, 4]]]], dtype=torch.float64) / 10
TARGETS = {"[N, *]": LABELS, "[N, 1, *]": LABELS.unsqueeze(2), "masks": MASKS, "probabilities": PROBABILITIES}


# ---- the plain formulas, of logits [N, C, *] ----


def read(x, y):
    """The target as [N, C, *]; and [N, 1, *], which is 1 where a voxel counts and 0 elsewhere."""
    if y.shape == x.shape:
        return y.to(x.dtype), torch.ones_like(x[:, :1])
    labels = y if y.ndim == x.ndim else y.unsqueeze(1)
    return (labels == torch.arange(3).view(3, 1)).to(x.dtype), (labels != -100).to(x.dtype)


def by_class(weight):
    return torch.ones(3, 1, dtype=torch.float64) if weight is None else weight.view(3, 1)


def by_voxel(counts, voxel_weight):
    return counts if voxel_weight is None else counts * voxel_weight.unsqueeze(1)


def reduced_losses(losses, shares, y, reduction):
    """The losses [N, 1, *] in the labels' shape, their sum, or their sum divided by that of their shares."""
    if reduction == "none":
        return losses if y.shape == losses.shape else losses.squeeze(1)
    return losses.sum() / shares.sum() if reduction == "mean" else losses.sum()


def cross_entropy(x, y, reduction="mean", weight=None, voxel_weight=None, label_smoothing=0.0, gamma=0.0):
    g, counts = read(x, y)
    w, v = by_class(weight), by_voxel(counts, voxel_weight)
    log_p = x.log_softmax(1)
    focal = log_p if gamma == 0 else (1 - log_p.exp()) ** gamma * log_p
    losses = -v * (((1 - label_smoothing) * g + label_smoothing / 3) * w * focal).sum(1, keepdim=True)
    return reduced_losses(losses, v if y.is_floating_point() else v * (g * w).sum(1, keepdim=True), y, reduction)


def nll_loss(x, y, reduction="mean"):
    g, counts = read(x, y)
    return reduced_losses(-(g * x).sum(1, keepdim=True), counts, y, reduction)


def topk_loss(x, y, k):
    """The larger of two losses, or the mean of both. An ignored voxel has the loss 0, which is never the larger."""
    losses = cross_entropy(x, y, "none").flatten()
    return losses.sort(descending=True).values[: k // 50].mean()


def sigmoid_focal(x, y, reduction="mean", weight=None, gamma=2.0, pos_weight=None):
    g, v = read(x, y)
    of_ones = -torch.nn.functional.logsigmoid(x) * (-x).sigmoid() ** gamma
    of_zeros = -torch.nn.functional.logsigmoid(-x) * x.sigmoid() ** gamma
    losses = v * by_class(weight) * (by_class(pos_weight) * g * of_ones + (1 - g) * of_zeros)
    return losses if reduction == "none" else reduced_losses(losses, v.expand(x.shape), y, reduction)


def soft_stats(x, y, activation="softmax", squared=False, voxel_weight=None):
    g, counts = read(x, y)
    v, power = by_voxel(counts, voxel_weight), 2 if squared else 1
    p = x.softmax(1) if activation == "softmax" else x.sigmoid()
    return torch.stack([(v * each).sum(2) for each in (p * g, p**power, g**power)])


def distances(is_in):
    """The signed distances of the voxels of a line to the other side of the masks; 0 where there is none."""
    places = torch.arange(is_in.shape[-1], dtype=torch.float64)
    steps = (places - places.unsqueeze(1)).abs()
    to_in, to_out = (torch.where(m.unsqueeze(-2), steps, torch.inf).amin(-1) for m in (is_in, ~is_in))
    return torch.nan_to_num(torch.where(is_in, -to_out, to_in), posinf=0, neginf=0)


def boundary_loss(x, y, reduction="mean", activation="softmax", weight=None, voxel_weight=None):
    g, counts = read(x, y)
    v, p = by_voxel(counts, voxel_weight), x.softmax(1) if activation == "softmax" else x.sigmoid()
    d = distances(g > 0)
    phi = torch.where(d < 0, d + 1, d)
    return reduced_terms(by_class(weight)[:, 0] * (v * p * phi).sum(2) / v.sum(2), reduction)


def hausdorff_dt_loss(x, y, reduction="mean", weight=None):
    g, v = read(x, y)
    p = x.softmax(1)
    w = distances((p > 0.5) & (v > 0)).square() + distances(g > 0).square()
    return reduced_terms(by_class(weight)[:, 0] * (v * (p - g).square() * w).sum(2) / v.sum(2), reduction)


def reduced_terms(terms, reduction):
    return {"mean": terms.mean, "sum": terms.sum, "none": terms.clone}[reduction]()


def dice_loss(x, y, reduction="mean", weight=None, jaccard=False, batch=False, **options):
    i, p, t = soft_stats(x, y, **options)
    if batch:
        i, p, t = i.sum(0), p.sum(0), t.sum(0)
    terms = 1 - (2 * i + 1e-5) / ((2 * (p + t - i) if jaccard else p + t) + 1e-5)
    return reduced_terms(terms if weight is None else terms * weight, reduction)


def generalized_dice_loss(x, y, reduction="mean"):
    i, p, t = soft_stats(x, y)
    w = torch.where(t > 0, t.clamp(min=1) ** -2, 0)
    w = torch.where(t > 0, w, w.amax(1, keepdim=True))
    return reduced_terms(1 - (2 * (w * i).sum(1) + 1e-5) / ((w * (p + t)).sum(1) + 1e-5), reduction)


def tversky_loss(x, y, reduction="mean", alpha=0.5, beta=0.5, gamma=1.0, weight=None):
    i, p, t = soft_stats(x, y)
    terms = (1 - (i + 1e-5) / (i + alpha * (p - i) + beta * (t - i) + 1e-5)) ** gamma
    return reduced_terms(terms if weight is None else terms * weight, reduction)


def dice_and(second, x, y, reduction="mean", weight=None, activation="softmax"):
    return dice_loss(x, y, reduction, weight, activation=activation) + second(x, y, reduction, weight)


def pooled(x, largest):
    """The largest, or the least, of each 3 voxels of a line; beyond its ends there are none."""
    ends = torch.cat([x[..., :1], x[..., :-1]], -1), torch.cat([x[..., 1:], x[..., -1:]], -1)
    pool = torch.maximum if largest else torch.minimum
    return pool(pool(ends[0], x), ends[1])


def soft_skeleton(x, iterations):
    skeleton = 0
    for _ in range(iterations + 1):
        eroded = pooled(x, largest=False)
        lost = torch.relu(x - pooled(eroded, largest=True))
        skeleton = skeleton + torch.relu(lost - skeleton * lost)
        x = eroded
    return skeleton


def soft_cldice_loss(x, y, reduction="mean", weight=None, voxel_weight=None, iterations=3, activation="softmax"):
    g, counts = read(x, y)
    v = by_voxel(counts, voxel_weight)
    p = counts * (x.softmax(1) if activation == "softmax" else x.sigmoid())
    s_p, s_g = soft_skeleton(p, iterations), soft_skeleton(g, iterations)
    precision, sensitivity = (((v * s * each).sum(2) + 1) / ((v * s).sum(2) + 1) for s, each in ((s_p, g), (s_g, p)))
    terms = 1 - 2 * precision * sensitivity / (precision + sensitivity + 1e-4)
    return reduced_terms(terms if weight is None else terms * weight, reduction)


def lovasz_terms(errors, g, counts, reduction):
    """The terms of the classes. The factors of the errors, sorted, are differences of the Jaccard loss."""
    e, g = ((each * counts).movedim(1, 0).flatten(1) for each in (errors, g))
    order = e.detach().sort(dim=1, descending=True, stable=True).indices
    g = g.gather(1, order)
    total = g.sum(1, keepdim=True)
    jaccard = 1 - (total - g.cumsum(1)) / (total + (1 - g).cumsum(1))
    factors = jaccard - torch.nn.functional.pad(jaccard, (1, 0))[:, :-1]
    return reduced_terms((e.gather(1, order) * factors).sum(1), reduction)


def lovasz_softmax_loss(x, y, reduction="mean"):
    g, counts = read(x, y)
    return lovasz_terms(g * (1 - x.softmax(1)) + (1 - g) * x.softmax(1), g, counts, reduction)


def lovasz_hinge_loss(x, y, reduction="mean"):
    g, counts = read(x, y)
    return lovasz_terms(torch.relu(1 - x * (2 * g - 1)), g, counts, reduction)


def lesions(x, y):
    """The terms of classes 1 and 2, [N, 2], which have one component at most in two voxels; whether; and the whole."""
    g, v = read(x, y)
    i, p, t = soft_stats(x, y)[..., 1:]
    dice = 1 - 2 * i / (p + t)
    losses = -(v * g * x.log_softmax(1)).sum((1, 2)) / v.sum((1, 2))
    return dice + losses.unsqueeze(1), t > 0, dice.mean() + cross_entropy(x, y)


def cc_dice_ce_loss(x, y):
    terms, _, whole = lesions(x, y)
    return terms.mean() + whole


def blob_loss(x, y):
    terms, has_one, whole = lesions(x, y)
    return torch.where(has_one, terms, 0).sum() / has_one.sum().clamp(min=1) + 2 * whole


# ---- the losses with their formulas ----

BOTH = ("[N, *]", "[N, 1, *]")
MASKED = (*BOTH, "masks")
SOFT = (*BOTH, "probabilities")
ALL, REDUCED, OWN = ("mean", "sum", "none"), ("mean", "sum"), (None,)
SIGMOID = {"activation": "sigmoid"}


def pair(loss, formula, targets=BOTH, reductions=ALL, only=None, **options):
    """A loss and its formula. `options` are for both, `only` is for the loss."""
    return partial(loss, **(only or {}), **options), partial(formula, **options), targets, reductions


def two_of(stats, x, y, reduction, **options):
    """The two soft statistics that depend on the logits, reduced."""
    return reduced_terms(torch.stack(tuple(stats(x, y, **options))[:2]), reduction)


PAIRS = {
    "cross entropy": pair(segloss.cross_entropy, cross_entropy),
    "weighted cross entropy": pair(
        segloss.cross_entropy, cross_entropy, SOFT, weight=WEIGHT, voxel_weight=VOXEL_WEIGHT, label_smoothing=0.1
    ),
    "nll": pair(segloss.nll_loss, nll_loss),
    "focal": pair(segloss.focal_loss, partial(cross_entropy, gamma=2.0), weight=WEIGHT),
    "sigmoid focal": pair(segloss.focal_loss, sigmoid_focal, MASKED, only=SIGMOID, weight=WEIGHT),
    "binary cross entropy": pair(
        segloss.binary_cross_entropy_with_logits,
        partial(sigmoid_focal, gamma=0.0, pos_weight=WEIGHT),
        MASKED,
        only={"pos_weight": WEIGHT},
        weight=WEIGHT,
    ),
    "top-k": pair(segloss.topk_loss, topk_loss, reductions=OWN, k=70),
    "Dice": pair(segloss.dice_loss, dice_loss, SOFT, squared=True, weight=WEIGHT),
    "sigmoid Dice": pair(segloss.dice_loss, dice_loss, MASKED, voxel_weight=VOXEL_WEIGHT, **SIGMOID),
    "Jaccard": pair(segloss.dice_loss, dice_loss, jaccard=True, batch=True),
    "generalized Dice": pair(segloss.generalized_dice_loss, generalized_dice_loss),
    "Tversky": pair(segloss.tversky_loss, tversky_loss, alpha=0.3, beta=0.7, gamma=1.5),
    "Dice and cross entropy": pair(
        segloss.dice_ce_loss, partial(dice_and, cross_entropy), SOFT, REDUCED, weight=WEIGHT
    ),
    "Dice and binary cross entropy": pair(
        segloss.dice_ce_loss, partial(dice_and, partial(sigmoid_focal, gamma=0.0)), MASKED, REDUCED, **SIGMOID
    ),
    "Dice and focal": pair(
        segloss.dice_focal_loss, partial(dice_and, partial(cross_entropy, gamma=2.0)), BOTH, REDUCED
    ),
    "Lovasz-Softmax": pair(segloss.lovasz_softmax_loss, lovasz_softmax_loss, only={"classes": "all"}),
    "Lovasz hinge": pair(segloss.lovasz_hinge_loss, lovasz_hinge_loss, MASKED),
    "boundary": pair(segloss.boundary_loss, boundary_loss, MASKED, weight=WEIGHT, **SIGMOID),
    "boundary of a softmax": pair(segloss.boundary_loss, boundary_loss, voxel_weight=VOXEL_WEIGHT),
    "Hausdorff": pair(segloss.hausdorff_dt_loss, hausdorff_dt_loss, weight=WEIGHT),
    "CC-DiceCE": pair(segloss.cc_dice_ce_loss, cc_dice_ce_loss, reductions=OWN, only={"num_components": 2}),
    "blob": pair(segloss.blob_loss, blob_loss, reductions=OWN, only={"num_components": 2}),
    "clDice": pair(segloss.soft_cldice_loss, soft_cldice_loss, SOFT, iterations=1, weight=WEIGHT),
    "clDice of sigmoids": pair(
        segloss.soft_cldice_loss, soft_cldice_loss, MASKED, iterations=0, voxel_weight=VOXEL_WEIGHT, **SIGMOID
    ),
    "Dice and clDice": pair(
        segloss.dice_cldice_loss, soft_cldice_loss, only={"lambda_dice": 0.0, "lambda_cldice": 1.0}, iterations=1
    ),
    "soft statistics": pair(partial(two_of, segloss.soft_stats), partial(two_of, soft_stats), SOFT, ("sum", "none")),
}


# ---- the transforms, of functions of x and y ----

VMAPS = {"vmap of logits": (0, None), "vmap of targets": (None, 0), "vmap of both": (0, 0)}
TRANSFORMS = {
    "grad": lambda f: grad(lambda x, y: f(x, y).sum()),
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "jvp": lambda f: lambda x, y: jvp(lambda x: f(x, y), (x,), (x.cos(),))[1],
} | {name: partial(vmap, in_dims=in_dims) for name, in_dims in VMAPS.items()}


def nested(transforms, f):
    for transform in reversed(transforms):
        f = TRANSFORMS[transform](f)
    return f


def arguments_for(transforms, target):
    """Logits and targets, each with a leading dimension for each vmap over it."""
    in_dims = [VMAPS[name] for name in transforms if name in VMAPS]
    of_logits, of_targets = (sum(dims[k] == 0 for dims in in_dims) for k in (0, 1))
    y = TARGETS[target] if of_targets else TARGETS[target][0]
    for _ in range(of_targets - 1):
        y = torch.stack([y, y.flip(0)])
    return torch.randn(*[2] * of_logits, 1, 3, 2, dtype=torch.float64), y


def functions_of(name, reduction):
    options = {} if reduction is None else {"reduction": reduction}
    return [partial(function, **options) for function in PAIRS[name][:2]]


def nestings(kinds):
    """Each nesting around each loss and each of its targets; slow ones, with many derivatives, around one target.

    Targets, reductions and what a vmap maps over take turns.
    """
    for (i, kind), (j, name) in itertools.product(enumerate(kinds), enumerate(PAIRS)):
        _, _, targets, reductions = PAIRS[name]
        if kind == ("hessian", "hessian"):
            reductions = [each for each in reductions if each != "none"]
        cases = list(itertools.product(reductions, targets))
        is_slow = "hessian" in kind or len(kind) > 2
        for turn in [i + j] if is_slow else range(i * len(targets), (i + 1) * len(targets)):
            reduction, target = cases[turn % len(cases)]
            maps = itertools.islice(itertools.cycle(VMAPS), turn % 3, None)
            transforms = tuple(next(maps) if each == "vmap" else each for each in kind)
            case = f"{' of '.join(transforms)}-{name}-{target}-{reduction}"
            yield pytest.param(transforms, name, target, reduction, id=case)


NESTINGS = [
    *itertools.product(["grad", "jacrev", "jacfwd", "vmap", "hessian"], repeat=2),
    ("jvp", "vmap", "grad"),
    ("vmap", "jacrev", "jacrev"),
    ("jacrev", "vmap", "jacrev"),
    ("jacrev", "jacrev", "jacrev"),
]


@pytest.mark.parametrize(("transforms", "name", "target", "reduction"), list(nestings(NESTINGS)))
def test_nested_transforms_of_a_loss_are_those_of_its_formula(transforms, name, target, reduction):
    arguments = arguments_for(transforms, target)
    actual, expected = (nested(transforms, f)(*arguments) for f in functions_of(name, reduction))
    assert actual.shape == expected.shape
    assert_close(actual, expected)


# ---- with respect to other arguments, and by torch.autograd ----

DERIVATIVES = pytest.mark.parametrize(("outer", "inner"), list(itertools.product([jacrev, jacfwd], repeat=2)))
WEIGHTED = [name for name, (loss, *_) in PAIRS.items() if "weight" in loss.keywords]


@DERIVATIVES
@pytest.mark.parametrize("name", WEIGHTED)
def test_vmap_over_class_weights_between_two_derivatives(name, outer, inner):
    x, y = arguments_for((), "[N, 1, *]")
    weights = torch.stack([WEIGHT, WEIGHT.flip(0)])
    actual, expected = (
        outer(vmap(inner(lambda x, w, f=f: f(x, y, weight=w)), (None, 0)))(x, weights)
        for f in functions_of(name, "mean")
    )
    assert_close(actual, expected)


@DERIVATIVES
@pytest.mark.parametrize("name", [name for name, (_, _, targets, _) in PAIRS.items() if "probabilities" in targets])
def test_derivatives_by_logits_and_by_probabilities(name, outer, inner):
    x, p = arguments_for(("vmap of both",), "probabilities")
    actual, expected = (vmap(outer(inner(f, argnums=1)))(x, p) for f in functions_of(name, PAIRS[name][3][0]))
    assert_close(actual, expected)


@pytest.mark.parametrize("target", BOTH)
@pytest.mark.parametrize("name", PAIRS)
def test_the_vectorized_hessian_of_autograd(name, target):
    x, y = arguments_for((), target)
    actual, expected = (
        torch.autograd.functional.hessian(lambda x, f=f: f(x, y).sum(), x, vectorize=True)
        for f in functions_of(name, PAIRS[name][3][-1])
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("target", BOTH)
@pytest.mark.parametrize("name", PAIRS)
def test_a_gradient_may_be_differentiated_after_its_transform_has_ended(name, target):
    x, y = arguments_for((), target)
    actual, expected = (
        torch.func.vjp(grad(lambda x, f=f: f(x, y).sum()), x)[1](x.cos())[0]
        for f in functions_of(name, PAIRS[name][3][0])
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("name", ["cross entropy", "sigmoid focal", "Dice"])
def test_a_compiled_hessian(name):
    x, y = arguments_for((), "[N, 1, *]")
    of_loss, of_formula = (hessian(lambda x, f=f: f(x, y)) for f in functions_of(name, "none"))
    torch.compiler.reset()
    assert_close(torch.compile(of_loss, backend="aot_eager")(x), of_formula(x))


@pytest.mark.parametrize("reduction", ALL)
def test_per_sample_losses_of_logits_without_a_batch(reduction):
    """A label [1] for logits [C]: the loss has no dimension."""
    x, y = torch.randn(2, 3, dtype=torch.float64), torch.tensor([[0], [2]])
    loss = partial(segloss.cross_entropy, reduction=reduction)
    assert vmap(loss)(x, y).shape == (2,)
    assert_close(vmap(hessian(loss))(x, y), vmap(hessian(lambda x: x.logsumexp(0)))(x))
