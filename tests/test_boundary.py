"""The losses made of distance maps, against slow references and MONAI."""

from functools import partial

import pytest
import reference
import torch
from losses import DISTANCE_LOSSES, value_and_gradient
from reference import boundary_loss
from test_losses_of_maps import PAIRS, assert_is_reference, logits, ours
from tolerances import assert_close

import segloss

EACH_LOSS = pytest.mark.parametrize("name", DISTANCE_LOSSES)


# ---- the values ----

OPTIONS = {
    "plain": {},
    "weight": {"weight": torch.tensor([0.5, 2.0, 1.0])},
    "no background": {"include_background": False},
    "sum": {"reduction": "sum"},
    "terms": {"reduction": "none"},
    "terms of the batch": {"reduction": "none", "batch": True},
    "weighted terms of the batch": {"batch": True, "weight": torch.tensor([0.5, 2.0, 1.0])},
    "ignored": {"ignore_index": 1, "reduction": "none"},
    "sigmoid": {"activation": "sigmoid"},
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
    assert_is_reference(name, logits(2, 3, 5, 6).to(dtype), labels, voxel_weight=torch.rand(2, 5, 6))


@EACH_LOSS
@pytest.mark.parametrize("spacing", [(0.5, 2.0), (3, 1), [1.5, 1.5]])
def test_distances_have_the_unit_of_the_spacing(name, spacing):
    labels = torch.randint(3, (2, 5, 6))
    assert_is_reference(name, logits(2, 3, 5, 6), labels, spacing=tuple(spacing), reduction="none")


@EACH_LOSS
@pytest.mark.parametrize("dim", [0, 2, -1])
def test_classes_may_be_in_any_dimension(name, dim):
    x, labels = logits(2, 3, 5, 6), torch.randint(3, (2, 5, 6))
    assert_is_reference(name, x.movedim(1, dim), labels if dim else labels.unsqueeze(0), dim=dim)


@pytest.mark.parametrize("alpha", [0.5, 1, 1.7, 3.0])
def test_alpha_is_the_exponent_of_the_distances(alpha):
    labels = torch.randint(3, (2, 5, 6))
    assert_is_reference("hausdorff_dt_loss", logits(2, 3, 5, 6), labels, alpha=alpha)


def test_boundary_voxels_have_the_distance_0():
    x = torch.zeros(1, 1, 7, dtype=torch.float64)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0]])
    _, gradient = value_and_gradient(ours("boundary_loss", activation=None), x, mask)
    assert (gradient * 7).flatten().tolist() == pytest.approx([2, 1, 0, -1, -1, 0, 1])


# ---- MONAI ----


def theirs(name, **options):
    losses = pytest.importorskip("monai.losses")
    if name == "boundary_loss":
        return losses.BoundaryLoss(**options)
    return losses.HausdorffDTLoss(**{"include_background": True, **options})


@EACH_LOSS
@pytest.mark.parametrize("shape", [(2, 3, 12, 11), (2, 3, 7, 6, 8)], ids=len)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"batch": True}, {"include_background": False}])
def test_it_is_monais(name, shape, reduction, options):
    x, labels = logits(*shape).float(), torch.randint(3, (2, 1, *shape[2:]))
    options = {"reduction": reduction, **options}
    actual = value_and_gradient(ours(name, **options), x, labels)
    expected = value_and_gradient(theirs(name, softmax=True, to_onehot_y=True, **options), x, labels)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a.flatten(), e.flatten(), torch.float32)


@EACH_LOSS
def test_it_is_monais_of_masks(name):
    x, masks = logits(2, 3, 7, 6, 8).float(), torch.randint(2, (2, 3, 7, 6, 8)).float()
    actual = value_and_gradient(ours(name, activation="sigmoid"), x, masks)
    for a, e in zip(actual, value_and_gradient(theirs(name, sigmoid=True), x, masks), strict=True):
        assert_close(a, e, torch.float32)


# ---- where there is little to measure ----


@EACH_LOSS
@pytest.mark.parametrize("labels", [0, 1])
def test_a_class_that_is_absent_or_fills_the_sample_has_no_distances_of_its_own(name, labels):
    x, target = logits(2, 3, 4, 5), torch.full((2, 4, 5), labels)
    assert_is_reference(name, x, target, reduction="none")
    if name == "boundary_loss":
        assert not segloss.boundary_loss(x, target, reduction="none").any()


@EACH_LOSS
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5)])
def test_no_voxel_gives_nan_or_0_with_a_gradient_of_0(name, shape):
    x, labels = torch.zeros(shape, requires_grad=True), torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    loss = getattr(segloss, name)(x, labels)
    loss.backward()
    assert loss.isnan()
    assert x.grad.shape == shape
    assert getattr(segloss, name)(x, labels, reduction="sum") == 0


# ---- ignored voxels, voxel weights ----


@EACH_LOSS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_logits_of_ignored_voxels_have_no_effect(name, value, activation):
    x, labels = logits(2, 3, 5, 6), torch.randint(3, (2, 5, 6))
    labels[:, :, 0] = labels[0, 2, 2] = -100
    is_ignored = (labels == -100).unsqueeze(1)
    options = {"activation": activation, "reduction": "none"}
    loss, gradient = value_and_gradient(ours(name, **options), x.masked_fill(is_ignored, value), labels)
    expected, of_zeros = reference.value_and_gradient(
        partial(PAIRS[name], **options), x.masked_fill(is_ignored, 0), labels
    )
    assert_close(loss, expected, x.dtype)
    assert_close(gradient, of_zeros, x.dtype)
    assert not gradient.masked_select(is_ignored).any()


@EACH_LOSS
def test_a_voxel_of_a_mask_is_ignored_in_all_classes(name):
    masks = torch.randint(2, (2, 3, 5, 6))
    masks[0, 1, 2, 2:4] = masks[1, 0, 0] = 255
    options = {"activation": "sigmoid", "ignore_index": 255, "reduction": "none"}
    x = logits(2, 3, 5, 6)
    loss = ours(name, **options)(x, masks)
    counts = (masks != 255).all(1)
    g = masks.masked_fill(masks == 255, 0)
    if name == "boundary_loss":
        assert_close(loss, PAIRS[name](x, g, voxel_weight=counts, **options), x.dtype)
    else:
        assert_close(loss, PAIRS[name](x, masks, **options), x.dtype)


@EACH_LOSS
def test_a_sample_of_ignored_voxels_has_terms_of_0(name):
    x, labels = logits(2, 3, 5, 6), torch.randint(3, (2, 5, 6))
    labels[1] = -100
    terms, gradient = value_and_gradient(ours(name, reduction="none"), x, labels)
    assert terms[0].all()
    assert not terms[1].any()
    assert not gradient[1].any()


# ---- maps that the caller gives ----


def maps_of(labels, num_classes):
    maps = reference.distance_maps(torch.stack([labels == c for c in range(num_classes)], 1), None)
    return torch.where(maps < 0, maps + 1, maps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_given_distances_take_the_place_of_the_targets(dtype):
    x, labels = logits(2, 3, 5, 6).to(dtype), torch.randint(3, (2, 5, 6))
    phi, weights = maps_of(labels, 3).to(dtype), torch.rand(2, 5, 6)
    expected = boundary_loss(x, labels, voxel_weight=weights)
    for target in (None, labels):
        assert_close(segloss.boundary_loss(x, target, distances=phi, voxel_weight=weights), expected, dtype)
    assert_close(segloss.BoundaryLoss()(x, None, distances=phi), boundary_loss(x, labels), dtype)


def test_a_target_beside_given_distances_says_what_to_ignore():
    x, labels = logits(2, 3, 5, 6), torch.randint(3, (2, 5, 6))
    phi = maps_of(labels, 3)
    labels[:, 3] = -100
    x[:, :, 3] = float("nan")
    expected = (x.softmax(1) * phi)[:, :, [0, 1, 2, 4]].mean()
    assert_close(segloss.boundary_loss(x, labels, distances=phi), expected, x.dtype)


def test_distances_have_the_size_of_the_labels_with_upsample():
    x, labels = logits(2, 3, 3, 3), torch.randint(3, (2, 5, 6))
    full = torch.nn.functional.interpolate(x, size=(5, 6), mode="bilinear")
    expected = boundary_loss(full, labels)
    assert_close(segloss.boundary_loss(x, labels, upsample="bilinear"), expected, x.dtype)
    phi = maps_of(labels, 3)
    assert_close(segloss.boundary_loss(x, None, distances=phi, upsample="bilinear"), expected, x.dtype)


# ---- gradients, determinism ----


@pytest.mark.cpu_only
@EACH_LOSS
@pytest.mark.parametrize("options", [{}, {"activation": "sigmoid", "alpha": 1.5}, {"weighted": True}])
def test_the_same_bits_for_any_number_of_threads(name, options, num_threads):
    options = {key: value for key, value in options.items() if key != "alpha" or name == "hausdorff_dt_loss"}
    x, labels = torch.randn(1, 3, 37, 41, 29), torch.randint(3, (1, 37, 41, 29))
    if options.pop("weighted", False):
        options["voxel_weight"] = torch.rand(1, 37, 41, 29)
    num_threads(1)
    expected = value_and_gradient(ours(name, **options), x, labels)
    for threads in (2, 3, 7):
        num_threads(threads)
        for a, e in zip(value_and_gradient(ours(name, **options), x, labels), expected, strict=True):
            assert torch.equal(a, e)


# ---- bad input ----

X, Y = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)
BAD = {
    "spacing of another length": ({"spacing": (1.0, 1.0, 1.0)}, ValueError, r"a spacing of 2 numbers, .* got \[1"),
    "spacing of 0": ({"spacing": (1.0, 0.0)}, ValueError, r"finite numbers above 0.* got \(1\.0, 0\.0\)"),
    "negative spacing": ({"spacing": (-1.0, 1.0)}, ValueError, "finite numbers above 0"),
    "infinite spacing": ({"spacing": (1.0, float("inf"))}, ValueError, "finite numbers above 0"),
    "nan as spacing": ({"spacing": (1.0, float("nan"))}, ValueError, "finite numbers above 0"),
    "one number as spacing": ({"spacing": 2.0}, TypeError, "a number for each spatial axis, got 2.0"),
    "text in spacing": ({"spacing": ("1", 1)}, TypeError, "expected spacing to be a float, got '1'"),
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
        (X, X, "softmax", RuntimeError, r"expected class labels, got class probabilities, .* Use target\.argmax\(1\)"),
        (X, X + 0.5, "sigmoid", RuntimeError, "expected 0 and 1 in a floating target .* soft masks have no boundary"),
        (X, Y + 3, "softmax", IndexError, r"Target 3 is out of bounds: 40 labels"),
        (X, Y[:1], "softmax", ValueError, "expected labels of shape"),
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


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_alpha_is_a_finite_number_above_0(alpha):
    with pytest.raises(ValueError, match=r"^hausdorff_dt_loss: expected alpha, an exponent"):
        segloss.hausdorff_dt_loss(X, Y, alpha=alpha)


@pytest.mark.parametrize(
    ("distances", "error", "text"),
    [
        (None, TypeError, "expected target to be a torch.Tensor, or distances"),
        (
            torch.zeros(2, 1, 4, 5),
            RuntimeError,
            r"expected floating distances of shape \[2, 3, 4, 5\], .* \[2, 1, 4, 5\]",
        ),
        (torch.zeros(2, 3, 4, 5).long(), RuntimeError, "expected floating distances"),
        (torch.full((2, 3, 4, 5), float("inf")), RuntimeError, "expected .*finite"),
        (torch.zeros(2, 3, 4, 5, requires_grad=True), RuntimeError, r"without gradient.* distances\.detach\(\)"),
        ([[1.0]], TypeError, "expected distances to be a torch.Tensor"),
    ],
)
def test_bad_distances_are_an_error(distances, error, text):
    with pytest.raises(error, match=f"^boundary_loss: .*{text}"):
        segloss.boundary_loss(X, None, distances=distances)
