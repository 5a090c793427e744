"""The clDice losses and their soft skeletons, against slow references and MONAI."""

from functools import partial

import pytest
import reference
import torch
from losses import CLDICE_LOSSES, value_and_gradient
from reference import soft_skeleton
from test_losses_of_maps import PAIRS, assert_is_reference, logits, ours
from tolerances import assert_close

import segloss

EACH_LOSS = pytest.mark.parametrize("name", CLDICE_LOSSES)
skeleton = torch.ops.segloss.soft_skeleton

SHAPES = [
    (1, 1, 1), (2, 1, 9), (1, 2, 40), (1, 1, 1, 1), (2, 1, 5, 6), (1, 2, 1, 7), (1, 2, 7, 1), (1, 1, 33, 19),
    (1, 1, 1, 1, 1), (2, 1, 4, 3, 5), (1, 1, 1, 6, 7), (1, 1, 6, 1, 7), (1, 1, 6, 7, 1), (1, 1, 40, 9, 8),
]  # fmt: skip


# ---- the soft skeleton ----


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("iterations", [0, 1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_skeleton_and_its_gradient_are_the_references(shape, iterations, dtype):
    x, factors = torch.rand(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    actual = value_and_gradient(lambda x: (skeleton(x, iterations) * factors).double().sum(), x)
    expected = reference.value_and_gradient(lambda x: (soft_skeleton(x.double(), iterations) * factors).sum(), x)
    assert_close(skeleton(x, iterations), soft_skeleton(x.double(), iterations), dtype)
    assert_close(actual[1], expected[1], dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_skeleton_of_a_mask_is_exact(shape):
    for density in (0.1, 0.5, 0.9, 0.98):
        mask = torch.rand(shape) < density
        actual = skeleton(mask, 3)
        assert actual.dtype == torch.bool
        assert torch.equal(actual.double(), soft_skeleton(mask.double(), 3))
        assert torch.equal(actual, skeleton(mask.float(), 3) > 0)


@pytest.mark.parametrize("fill", [0.0, 0.25, 1.0])
def test_an_image_of_one_value_has_no_skeleton(fill):
    x = torch.full((1, 1, 5, 6, 7), fill, requires_grad=True)
    result = skeleton(x, 3)
    result.sum().backward()
    assert not result.any()
    assert not x.grad.any()


def test_among_equal_voxels_the_one_in_the_middle_has_the_gradient():
    x = torch.tensor([[[0.0, 1.0, 1.0, 1.0, 0.0]]], requires_grad=True)
    skeleton(x, 1).sum().backward()
    assert skeleton(x, 1).tolist() == [[[0, 0, 1, 0, 0]]]
    assert x.grad.tolist() == [[[0, 0, 1, 0, 0]]] or x.grad.isfinite().all()


def test_half_types_are_computed_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.rand(1, 2, 9, 8, 7).to(dtype).requires_grad_()
        y = x.detach().float().requires_grad_()
        a, e = skeleton(x, 3), skeleton(y, 3)
        assert torch.equal(a, e.to(dtype))
        a.sum().backward()
        e.sum().backward()
        assert torch.equal(x.grad, y.grad.to(dtype))


def test_nan_stays_where_it_is():
    x = torch.rand(1, 1, 6, 6)
    x[0, 0, 2, 3] = float("nan")
    assert skeleton(x, 3).isnan().nonzero().tolist() == [[0, 0, 2, 3]]


@pytest.mark.parametrize("shape", [(0, 1, 4, 5), (1, 0, 4, 5), (1, 1, 0, 5), (1, 1, 4, 5, 0)])
def test_an_image_without_voxels_has_a_skeleton_without_any(shape):
    x = torch.zeros(shape, requires_grad=True)
    result = skeleton(x, 2)
    result.sum().backward()
    assert result.shape == x.grad.shape == shape


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 2, 5, 6), (1, 1, 3, 4, 3)], ids=len)
def test_derivatives_of_a_skeleton(shape):
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: skeleton(x, 2), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: skeleton(x, 2), x)


@pytest.mark.parametrize("of_mask", [False, True])
def test_opcheck_of_a_skeleton(of_mask):
    x = torch.rand(2, 1, 5, 6) > 0.5 if of_mask else torch.rand(2, 1, 5, 6, requires_grad=True)
    torch.library.opcheck(skeleton.default, (x, 2))
    if not of_mask:
        torch.library.opcheck(torch.ops.segloss.soft_skeleton_backward.default, (torch.rand(2, 1, 5, 6), x, 2))


def test_vmap_of_a_skeleton():
    x = torch.rand(3, 2, 1, 5, 6)
    assert torch.equal(torch.vmap(lambda x: skeleton(x, 2))(x), torch.stack([skeleton(each, 2) for each in x]))
    per_sample = torch.vmap(torch.func.grad(lambda x: skeleton(x, 2).square().sum()))(x)
    y = x.clone().requires_grad_()
    sum(skeleton(each, 2).square().sum() for each in y).backward()
    assert torch.equal(per_sample, y.grad)


@pytest.mark.cpu_only
@pytest.mark.parametrize("shape", [(1, 1, 97, 9, 21), (1, 3, 80, 30), (5, 1, 130, 8)], ids=str)
def test_a_skeleton_has_the_same_bits_for_any_number_of_threads(shape, num_threads):
    x, factors = torch.rand(shape), torch.randn(shape)
    results = []
    for threads in (1, 2, 3, 7):
        num_threads(threads)
        results.append((skeleton(x > 0.5, 2), *value_and_gradient(lambda x: (skeleton(x, 2) * factors).sum(), x)[1:]))
    for actual in results[1:]:
        assert all(map(torch.equal, actual, results[0]))


@pytest.mark.parametrize(
    ("images", "iterations", "error", "text"),
    [
        (torch.zeros(1, 1, 4), -1, ValueError, r"iterations in \[0, 1000\], got -1"),
        (torch.zeros(1, 1, 4), 1001, ValueError, r"iterations in \[0, 1000\], got 1001"),
        (torch.zeros(1, 4), 1, ValueError, r"one to three spatial axes, got \[1, 4\]"),
        (torch.zeros(1, 1, 1, 1, 1, 4), 1, ValueError, "one to three spatial axes"),
        (torch.zeros(1, 1, 4).long(), 1, TypeError, "images of float64, .* got Long"),
    ],
)
def test_bad_images_are_an_error(images, iterations, error, text):
    with pytest.raises(error, match=f"^soft_skeleton: expected .*{text}"):
        skeleton(images, iterations)


# ---- the values of the losses ----

OPTIONS = {
    "plain": {},
    "weight": {"weight": torch.tensor([0.5, 2.0, 1.0])},
    "no background": {"include_background": False},
    "weight without background": {"include_background": False, "weight": torch.tensor([0.5, 2.0, 1.0])},
    "sum": {"reduction": "sum"},
    "terms": {"reduction": "none"},
    "terms of the batch": {"reduction": "none", "batch": True},
    "one term": {"per_class": False},
    "one term of the batch": {"per_class": False, "batch": True, "include_background": False},
    "ignored": {"ignore_index": 1, "reduction": "none"},
    "sigmoid": {"activation": "sigmoid"},
    "iterations": {"iterations": 1},
    "smooth": {"smooth_nr": 0.1, "smooth_dr": 2.0, "smooth": 0.0},
    "nothing added": {"smooth_nr": 0.0, "smooth_dr": 0.0, "smooth": 0.0},
}


@EACH_LOSS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 5, 6), (2, 3, 4, 3, 5)], ids=len)
def test_it_is_the_reference(name, options, shape):
    labels = torch.randint(3, (shape[0], 1, *shape[2:]))
    assert_is_reference(name, logits(*shape), labels, **options)


@EACH_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes_are_rounded_once(name, dtype):
    labels = torch.randint(3, (2, 5, 6))
    x = logits(2, 3, 5, 6).to(dtype)
    loss, gradient = value_and_gradient(ours(name), x, labels)
    expected, of_float = value_and_gradient(ours(name), x.float(), labels)
    assert_close(loss, expected, dtype)
    assert_close(gradient, of_float, dtype)


@EACH_LOSS
@pytest.mark.parametrize("dim", [0, 2, -1])
def test_classes_may_be_in_any_dimension(name, dim):
    x, labels = logits(2, 3, 5, 6), torch.randint(3, (2, 5, 6))
    if dim == 0:  # the samples are in dimension 1 then
        x, labels = x.movedim(1, 0), labels
        assert_close(ours(name, dim=0)(x, labels), ours(name)(x.movedim(0, 1), labels), x.dtype)
        return
    assert_close(ours(name, dim=dim)(x.movedim(1, dim), labels), PAIRS[name](x, labels), x.dtype)


@EACH_LOSS
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_a_target_may_be_soft(name, activation):
    x, g = logits(2, 3, 5, 6), torch.randn(2, 3, 5, 6, dtype=torch.float64).softmax(1)
    x = x if activation else x.softmax(1)
    for options in ({}, {"include_background": False}, {"voxel_weight": torch.randint(2, (2, 5, 6))}):
        assert_is_reference(name, x, g, activation=activation, **options)


@EACH_LOSS
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 1, 5, 6)])
def test_one_channel_may_have_a_soft_mask(name, shape):
    assert_is_reference(name, logits(2, 1, 5, 6), torch.rand(shape, dtype=torch.float64), activation="sigmoid")


# ---- MONAI ----


def theirs(name, **options):
    losses = pytest.importorskip("monai.losses")
    renamed = {{"iterations": "iter_", "lambda_cldice": "alpha"}.get(key, key): each for key, each in options.items()}
    renamed.pop("lambda_dice", None)
    return losses.SoftclDiceLoss(**renamed) if name == "soft_cldice_loss" else losses.SoftDiceclDiceLoss(**renamed)


@EACH_LOSS
@pytest.mark.parametrize("shape", [(2, 3, 12, 11), (2, 3, 9, 8, 10)], ids=len)
@pytest.mark.parametrize(
    "options", [{}, {"reduction": "sum"}, {"include_background": False}, {"iterations": 1, "smooth_nr": 0.5}]
)
def test_it_is_monais(name, shape, options):
    x, labels = logits(*shape), torch.randint(3, (2, 1, *shape[2:]))
    if name == "dice_cldice_loss":
        options = {"lambda_dice": 0.3, "lambda_cldice": 0.7, **options}
    actual = value_and_gradient(ours(name, per_class=False, **options), x, labels)
    expected = value_and_gradient(theirs(name, softmax=True, to_onehot_y=True, **options), x, labels)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, torch.float64)


@EACH_LOSS
def test_it_is_monais_of_soft_masks(name):
    x, masks = logits(2, 3, 7, 6, 8), torch.rand(2, 3, 7, 6, 8, dtype=torch.float64)
    actual = value_and_gradient(ours(name, activation="sigmoid", per_class=False), x, masks)
    for a, e in zip(actual, value_and_gradient(theirs(name, sigmoid=True), x, masks), strict=True):
        assert_close(a, e, torch.float64)


# ---- where there is little to look at ----


@EACH_LOSS
@pytest.mark.parametrize("labels", [0, 1])
def test_a_class_that_is_absent_or_fills_the_sample(name, labels):
    for options in ({}, {"smooth_nr": 0.0, "smooth_dr": 0.0, "smooth": 0.0}):
        target = torch.full((2, 4, 5), labels)
        assert_is_reference(name, logits(2, 3, 4, 5), target, reduction="none", **options)


@EACH_LOSS
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5)])
def test_no_voxel_gives_nan_with_a_gradient_of_0(name, shape):
    x, labels = torch.zeros(shape, requires_grad=True), torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    loss = getattr(segloss, name)(x, labels)
    loss.backward()
    assert loss.isnan()
    assert x.grad.shape == shape
    assert_close(ours(name, reduction="sum")(x, labels), PAIRS[name](x, labels, reduction="sum"), torch.float32)


@EACH_LOSS
def test_one_class_has_a_term_also_without_background(name):
    x, mask = logits(2, 1, 4, 5), torch.randint(2, (2, 4, 5))
    with pytest.warns(UserWarning, match="input has one class"):
        actual = ours(name, activation="sigmoid", include_background=False)(x, mask)
    assert_close(actual, PAIRS[name](x, mask, activation="sigmoid"), x.dtype)


# ---- ignored voxels, voxel weights ----


@EACH_LOSS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("by_weight", [False, True])
def test_logits_of_voxels_that_do_not_count_have_no_effect(name, value, activation, by_weight):
    x, labels = logits(2, 3, 5, 6), torch.randint(3, (2, 5, 6))
    counts = torch.rand(2, 5, 6) > 0.3
    options = {"activation": activation, "reduction": "none"}
    labels, weights = (labels, counts.float()) if by_weight else (labels.masked_fill(~counts, -100), None)
    loss, gradient = value_and_gradient(
        ours(name, **options), x.masked_fill(~counts.unsqueeze(1), value), labels, voxel_weight=weights
    )
    expected, of_zeros = reference.value_and_gradient(
        partial(PAIRS[name], **options), x.masked_fill(~counts.unsqueeze(1), 0), labels, voxel_weight=weights
    )
    assert_close(loss, expected, x.dtype)
    assert_close(gradient, of_zeros, x.dtype)
    assert not gradient.masked_select(~counts.unsqueeze(1)).any()


def test_nan_logits_of_a_voxel_that_counts_make_the_loss_nan():
    x = logits(1, 2, 5, 6)
    x[0, 1, 2, 3] = float("nan")
    loss, gradient = value_and_gradient(segloss.soft_cldice_loss, x, torch.zeros(1, 5, 6, dtype=torch.int64))
    assert loss.isnan()
    assert gradient.isnan().any()


@EACH_LOSS
def test_a_voxel_of_a_mask_is_ignored_in_all_classes(name):
    masks = torch.randint(2, (2, 3, 5, 6))
    masks[0, 1, 2, 2:4] = masks[1, 0, 0] = 255
    assert_is_reference(name, logits(2, 3, 5, 6), masks, activation="sigmoid", ignore_index=255, reduction="none")


# ---- gradients, determinism ----


@pytest.mark.cpu_only
@EACH_LOSS
@pytest.mark.parametrize("options", [{}, {"activation": "sigmoid"}, {"weighted": True}])
def test_the_same_bits_for_any_number_of_threads(name, options, num_threads):
    options = dict(options)
    x, labels = torch.randn(1, 3, 97, 21, 19), torch.randint(3, (1, 97, 21, 19))
    if options.pop("weighted", False):
        options["voxel_weight"] = torch.rand(1, 97, 21, 19)
    num_threads(1)
    expected = value_and_gradient(ours(name, **options), x, labels)
    for threads in (2, 3, 7):
        num_threads(threads)
        for a, e in zip(value_and_gradient(ours(name, **options), x, labels), expected, strict=True):
            assert torch.equal(a, e)


@EACH_LOSS
def test_it_compiles_to_one_graph(name):
    x, labels = logits(2, 3, 5, 6).float(), torch.randint(3, (2, 5, 6))
    compiled = torch.compile(ours(name), fullgraph=True, backend="aot_eager")
    for a, e in zip(value_and_gradient(compiled, x, labels), value_and_gradient(ours(name), x, labels), strict=True):
        assert_close(a, e, torch.float32)


# ---- bad input ----

X, Y = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)
BAD = {
    "negative iterations": ({"iterations": -1}, ValueError, r"iterations in \[0, 1000\], got -1"),
    "iterations of a float": ({"iterations": 2.0}, TypeError, "iterations to be an int, got float"),
    "iterations of a flag": ({"iterations": True}, TypeError, "iterations to be an int, got bool"),
    "negative smooth": ({"smooth": -1.0}, ValueError, "smooth of 0 or more, got -1.0"),
    "nan as smooth": ({"smooth": float("nan")}, ValueError, "smooth of 0 or more, got nan"),
    "per_class": ({"per_class": "yes"}, ValueError, "expected per_class to be True or False"),
    "reduction": ({"reduction": "max"}, ValueError, "expected reduction to be"),
    "activation": ({"activation": "relu"}, ValueError, "expected activation to be"),
    "flag": ({"batch": "yes"}, ValueError, "expected batch to be True or False"),
    "weight": ({"weight": torch.ones(2)}, RuntimeError, r"expected weight of shape \[3\]"),
    "voxel weight": ({"voxel_weight": torch.ones(2, 5, 4)}, RuntimeError, "expected voxel_weight of the labels' shape"),
    "regions": (
        {"regions": [(1,), (2,), (1, 2)], "activation": "sigmoid", "include_background": False},
        ValueError,
        "expected include_background=True with regions",
    ),
}


@EACH_LOSS
@pytest.mark.parametrize(("options", "error", "text"), BAD.values(), ids=BAD)
def test_a_bad_option_is_an_error(name, options, error, text):
    with pytest.raises(error, match=f"^{name}: .*{text}"):
        ours(name, **options)(X, Y)


@EACH_LOSS
@pytest.mark.parametrize(
    ("x", "target", "activation", "error", "text"),
    [
        (X, Y + 3, "softmax", IndexError, r"Target 3 is out of bounds: 40 labels"),
        (X, Y[:1], "softmax", ValueError, "expected labels of shape"),
        (X, X - 1, "softmax", RuntimeError, r"in \[0, 1\]"),
        (X[:, :1], Y, "softmax", ValueError, "expected more than one channel for activation='softmax'"),
        (X[:, :, 0, 0], Y[:, 0, 0], "softmax", ValueError, "with one to three spatial axes"),
        (X[:, :, None, None], Y[:, None, None], "softmax", ValueError, "with one to three spatial axes"),
        (X[0, :, 0, 0], Y[0, 0, 0], "softmax", ValueError, "with one to three spatial axes"),
        (X.long(), Y, "softmax", TypeError, "expected floating logits"),
        (X, [1], "softmax", TypeError, "expected target to be a torch.Tensor"),
        (X - 0.5, Y, None, RuntimeError, r"as input with activation=None, got -0\.5"),
    ],
)
def test_a_bad_tensor_is_an_error(name, x, target, activation, error, text):
    with pytest.raises(error, match=f"^{name}: .*{text}"):
        ours(name, activation=activation)(x, target)


def test_one_term_of_all_classes_has_no_weight():
    with pytest.raises(ValueError, match=r"^soft_cldice_loss: expected no weight without per_class"):
        segloss.soft_cldice_loss(X, Y, per_class=False, weight=[1.0, 2.0, 1.0])


def test_terms_of_other_shapes_are_not_added():
    with pytest.raises(ValueError, match=r"^dice_cldice_loss: expected reduction 'mean' or 'sum' without per_class"):
        segloss.dice_cldice_loss(X, Y, per_class=False, reduction="none")
