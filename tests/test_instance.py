"""Sums keyed by components, nearest components, and the losses of each lesion, against slow references."""

from functools import partial

import pytest
import reference
import torch
from losses import value_and_gradient
from tolerances import assert_close

import segloss

pytest.importorskip("scipy")

PAIRS = {"cc_dice_ce_loss": reference.cc_dice_ce_loss, "blob_loss": reference.blob_loss}
EACH_LOSS = pytest.mark.parametrize("name", PAIRS)
SHAPES = pytest.mark.parametrize("shape", [(2, 2, 19), (2, 3, 9, 7), (2, 2, 5, 7, 6), (1, 3, 4, 5, 6)], ids=str)


def logits(*shape):
    return torch.randn(shape, dtype=torch.float64) * 2


def blobs(num_samples, *sizes, num_classes=2, share=0.3):
    """Labels of many small components."""
    labels = torch.randint(1, max(num_classes, 2), (num_samples, *sizes))
    return labels * (torch.rand(num_samples, *sizes) < share)


# ---- sums of components ----


def sums_of(x, target, keys, num_keys, activation="softmax", ignore_index=-100, voxel_weight=None):
    """The five sums of labels [N, *] or masks [N, C, *], in float64."""
    is_labels = target.dim() < x.dim()
    counts = target != ignore_index if is_labels else (target != ignore_index).all(1)
    v = counts.double() if voxel_weight is None else counts * voxel_weight.double()
    x = torch.where(counts.unsqueeze(1), x.double(), 0.0)
    p = reference.activated(x, activation)
    valid = torch.where(counts if is_labels else counts.unsqueeze(1), target, 0)
    g = torch.nn.functional.one_hot(valid, x.shape[1]).movedim(-1, 1) if is_labels else valid
    if activation == "softmax":
        losses = -(reference.log_softmax(x.movedim(1, -1)) * g.movedim(1, -1)).sum(-1)
    else:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(x, g.double(), reduction="none").sum(1)
    is_key = (keys.unsqueeze(1) == torch.arange(num_keys).view(-1, *[1] * (keys.dim() - 1))) * v.unsqueeze(1)

    def by_key(values):  # [N, C, *]
        return torch.einsum("nrv,ncv->nrc", is_key.flatten(2), values.double().flatten(2))

    return by_key(p * g), by_key(p), by_key(g), is_key.flatten(2).sum(2), by_key(losses.unsqueeze(1)).squeeze(2)


@SHAPES
@pytest.mark.parametrize("num_keys", [1, 4, 300])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_sums_of_components_are_the_reference(shape, num_keys, activation):
    x = logits(*shape) if activation else logits(*shape).softmax(1)
    target, keys = torch.randint(shape[1], (shape[0], *shape[2:])), torch.randint(num_keys, (shape[0], *shape[2:]))
    weights = [torch.randn(shape[0], num_keys, shape[1]), torch.randn(shape[0], num_keys, shape[1])]
    of_loss = torch.randn(shape[0], num_keys)

    def total(sums):
        loss = 0 if activation is None else (sums[4] * of_loss).sum()
        return (sums[0] * weights[0]).sum() + (sums[1] * weights[1]).sum() + loss

    def ours(x):
        stats = segloss.component_stats(x, target, keys, num_keys, activation=activation)
        return torch.stack([total(stats)]), stats

    x.requires_grad_()
    value, stats = ours(x)
    expected = sums_of(x, target, keys, num_keys, activation)
    for actual, e in zip(stats, expected, strict=True):
        assert actual is None or (actual.shape == e.shape and torch.allclose(actual, e))
    (grad,) = torch.autograd.grad(value.sum(), x)
    (expected_grad,) = torch.autograd.grad(total(expected), x)
    assert_close(grad, expected_grad, x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sums_of_other_dtypes_are_those_of_the_rounded_logits(dtype):
    x, target, keys = logits(2, 3, 9, 40).to(dtype), blobs(2, 9, 40, num_classes=3), torch.randint(5, (2, 9, 40))
    stats = segloss.component_stats(x, target, keys)
    for actual, expected in zip(stats, sums_of(x, target, keys, 5), strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual, expected, torch.float32)


def test_one_component_has_the_sums_of_soft_stats():
    x, target = logits(3, 20, 17, 70).float(), torch.randint(20, (3, 17, 70))
    stats = segloss.component_stats(x, target, torch.zeros(3, 17, 70, dtype=torch.int32))
    for actual, expected in zip(stats[:3], segloss.soft_stats(x, target), strict=True):
        assert_close(actual.squeeze(1), expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_components_may_have_any_integer_dtype_and_a_channel(dtype):
    x, target, keys = logits(2, 2, 9, 7), torch.randint(2, (2, 9, 7)), torch.randint(5, (2, 9, 7))
    expected = segloss.component_stats(x, target, keys)
    for actual in (
        segloss.component_stats(x, target, keys.to(dtype)),
        segloss.component_stats(x, target, keys[:, None].to(dtype)),
    ):
        assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("dim", [0, 2, -1])
def test_sums_of_components_with_classes_in_any_dimension(dim):
    x, target, keys = logits(2, 3, 9, 7), torch.randint(3, (2, 9, 7)), torch.randint(5, (2, 9, 7))
    expected = segloss.component_stats(x, target, keys)
    actual = segloss.component_stats(x.movedim(1, dim), target, keys, dim=dim)
    for a, e in zip(actual, expected, strict=True):
        assert torch.allclose(a, e, rtol=1e-14)


def test_ignored_voxels_and_weights_of_voxels_in_components():
    x, target, keys = logits(2, 3, 9, 70), torch.randint(3, (2, 9, 70)), torch.randint(5, (2, 9, 70))
    v = torch.rand(2, 9, 70, dtype=torch.float64) * (torch.rand(2, 9, 70) < 0.8)
    x[target.unsqueeze(1).expand_as(x) == 2] = float("nan")
    stats = segloss.component_stats(x, target, keys, ignore_index=2, voxel_weight=v)
    for actual, expected in zip(stats, sums_of(x, target, keys, 5, ignore_index=2, voxel_weight=v), strict=True):
        assert torch.allclose(actual, expected)


def test_masks_of_channels_in_components():
    x, masks, keys = logits(2, 3, 9, 70), torch.randint(2, (2, 3, 9, 70)), torch.randint(5, (2, 9, 70))
    masks[:, 1, 2] = 255
    stats = segloss.component_stats(x, masks, keys, activation="sigmoid", ignore_index=255)
    for actual, expected in zip(stats, sums_of(x, masks, keys, 5, "sigmoid", 255), strict=True):
        assert torch.allclose(actual, expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_sums_of_components_have_both_derivatives(activation):
    x = logits(2, 3, 3, 2) if activation else logits(2, 3, 3, 2).softmax(1) * 0.5 + 0.1
    target, keys = torch.randint(3, (2, 3, 2)), torch.randint(3, (2, 3, 2))

    def sums(x):
        stats = segloss.component_stats(x, target, keys, 3, activation=activation)
        return [stats.intersection, stats.prediction] + ([] if activation is None else [stats.loss])

    x.requires_grad_()
    assert torch.autograd.gradcheck(sums, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(sums, x)


@pytest.mark.parametrize("num_keys", [1, 3, 5000])
def test_sums_of_components_do_not_depend_on_threads(num_threads, num_keys):
    x, target = torch.randn(2, 3, 90, 400), torch.randint(3, (2, 90, 400))
    keys = torch.randint(num_keys, (2, 9, 40)).repeat_interleave(10, 1).repeat_interleave(10, 2)
    results = []
    for threads in (1, 2, 7):
        num_threads(threads)
        y = x.clone().requires_grad_()
        stats = segloss.component_stats(y, target, keys, num_keys)
        (stats.intersection.square().sum() + stats.prediction.square().sum() + stats.loss.square().sum()).backward()
        results.append([*stats, y.grad])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (2, 2, 0, 5)], ids=str)
def test_sums_of_no_voxel_are_0(shape):
    x, target = torch.randn(shape, requires_grad=True), torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    stats = segloss.component_stats(x, target, target, 3)
    assert stats.intersection.shape == (shape[0], 3, 2)
    assert not any(each.any() for each in stats)
    (grad,) = torch.autograd.grad(sum(each.sum() for each in stats), x)
    assert grad.shape == shape


def test_a_component_out_of_range_is_named():
    x, target, keys = logits(2, 2, 9, 7), torch.randint(2, (2, 9, 7)), torch.zeros(2, 9, 7, dtype=torch.long)
    keys[1, 2, 3] = 5
    with pytest.raises(IndexError, match=r"expected components in \[0, 5\), got 5 at index \[1, 2, 3\]"):
        segloss.component_stats(x, target, keys, 5)
    with pytest.raises(IndexError, match="got -1"):
        segloss.component_stats(x, target, keys.clamp_max(0) - 1, 5)


@pytest.mark.parametrize(
    ("components", "error", "message"),
    [
        (torch.zeros(2, 9, dtype=torch.long), RuntimeError, "components of the labels' shape"),
        (torch.zeros(2, 9, 7), TypeError, "integer dtype"),
        (None, TypeError, "expected components to be a torch.Tensor, got NoneType"),
    ],
)
def test_components_must_fit(components, error, message):
    with pytest.raises(error, match=message):
        segloss.component_stats(logits(2, 2, 9, 7), torch.zeros(2, 9, 7, dtype=torch.long), components, 3)


def test_the_operator_of_components_is_well_behaved():
    x, target = logits(2, 3, 9, 7).requires_grad_(), torch.randint(3, (2, 9, 7))
    arguments = (x, target, torch.randint(4, (2, 9, 7)), None, None, 1, "softmax", 4, -100, True)
    torch.library.opcheck(torch.ops.segloss.component_stats.default, arguments)


# ---- nearest components ----

SPACINGS = [None, (2, 1, 0.5), (1, 3, 1)]


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("sizes", [(40,), (9, 14), (5, 7, 6), (1, 9, 1)], ids=str)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.9])
def test_the_nearest_component_is_the_reference(sizes, spacing, share):
    components = torch.randint(1, 9, (3, *sizes)) * (torch.rand(3, *sizes) < share)
    steps = None if spacing is None else spacing[-len(sizes) :]
    actual = segloss.nearest_component(components.unsqueeze(1), steps)
    assert actual.dtype == torch.int32
    assert actual.squeeze(1).tolist() == [reference.nearest_component(each, steps).tolist() for each in components]


@pytest.mark.cpu_only
def test_the_nearest_component_is_scipys():
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = torch.rand(40, 50, 30) < 0.001
    components, _ = ndimage.label(mask.numpy())
    places = ndimage.distance_transform_edt(components == 0, return_distances=False, return_indices=True)
    scipys = torch.from_numpy(components[tuple(places)])
    ours = segloss.nearest_component(torch.from_numpy(components)[None, None])[0, 0]
    differ = (ours != scipys).nonzero()
    sites = torch.from_numpy(components).nonzero()
    numbers = torch.from_numpy(components)[tuple(sites.T)]
    for voxel in differ:  # two components are equally near
        squares = (sites - voxel).square().sum(1)
        both = [squares[numbers == each[tuple(voxel)]].min() for each in (ours, scipys)]
        assert both[0] == both[1]
        assert ours[tuple(voxel)] < scipys[tuple(voxel)]


def test_without_components_there_is_none_nearest():
    nothing = torch.zeros(2, 1, 4, 5, dtype=torch.uint8)
    assert not segloss.nearest_component(nothing).any()
    assert segloss.nearest_component(nothing[:0]).shape == (0, 1, 4, 5)
    assert segloss.nearest_component(nothing[..., :0]).shape == (2, 1, 4, 0)


def test_the_nearest_components_of_these_are_themselves():
    components = segloss.nearest_component(torch.randint(1, 9, (2, 1, 9, 14)) * (torch.rand(2, 1, 9, 14) < 0.1))
    assert torch.equal(segloss.nearest_component(components), components)


def test_spatial_dims_say_which_axes_are_spatial():
    components = torch.randint(1, 9, (2, 9, 14)) * (torch.rand(2, 9, 14) < 0.1)
    expected = segloss.nearest_component(components.unsqueeze(1)).squeeze(1)
    assert torch.equal(segloss.nearest_component(components, spatial_dims=2), expected)
    with pytest.raises(RuntimeError, match="unsqueeze"):
        segloss.nearest_component(components)
    with pytest.raises(ValueError, match="expected a spacing of 2 numbers"):
        segloss.nearest_component(components, (1, 1, 1), spatial_dims=2)


def test_a_negative_component_is_named():
    with pytest.raises(IndexError, match=r"got -3 at index \[0, 1\]"):
        segloss.nearest_component(torch.tensor([[[0, -3, 2]]]))


def test_the_nearest_component_does_not_depend_on_threads(num_threads):
    components = torch.randint(1, 99, (2, 1, 30, 40, 50)) * (torch.rand(2, 1, 30, 40, 50) < 0.001)
    results = []
    for threads in (1, 2, 7):
        num_threads(threads)
        results.append(segloss.nearest_component(components, (1.3, 0.7, 1.1)))
    assert all(torch.equal(results[0], each) for each in results[1:])


def test_the_operator_of_nearest_components_is_well_behaved():
    components = torch.randint(3, (2, 9, 7))
    torch.library.opcheck(torch.ops.segloss.nearest_component.default, (components, [1.0, 2.0]))


# ---- losses of each lesion ----


def assert_is_reference(name, x, target, **options):
    """Compares value and gradient."""
    actual = value_and_gradient(partial(getattr(segloss, name), **options), x, target)
    expected = reference.value_and_gradient(partial(PAIRS[name], **options), x, target)
    assert actual[0].dtype == actual[1].dtype == x.dtype
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, x.dtype)


FACTORS = {
    "cc_dice_ce_loss": {"lambda_cc": 0.7, "lambda_global": 0.4, "lambda_dice": 1.5, "lambda_ce": 0.6},
    "blob_loss": {"alpha": 0.7, "beta": 0.4, "lambda_dice": 1.5, "lambda_ce": 0.6},
}


@EACH_LOSS
@SHAPES
def test_it_is_the_reference(name, shape):
    target = blobs(shape[0], *shape[2:], num_classes=shape[1])
    assert_is_reference(name, logits(*shape), target)
    assert_is_reference(name, logits(*shape), target.unsqueeze(1).to(torch.uint8), **FACTORS[name])


@EACH_LOSS
def test_the_whole_images_may_have_no_term(name):
    none = {"cc_dice_ce_loss": {"lambda_global": 0}, "blob_loss": {"alpha": 0}}[name]
    assert_is_reference(name, logits(2, 2, 9, 14), blobs(2, 9, 14), **none)


@EACH_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes_are_rounded_once(name, dtype):
    assert_is_reference(name, logits(2, 2, 9, 14).to(dtype), blobs(2, 9, 14), voxel_weight=torch.rand(2, 9, 14) + 0.1)


@EACH_LOSS
@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_connectivity_says_which_voxels_are_neighbours(name, connectivity):
    assert_is_reference(name, logits(1, 2, 5, 7, 6), blobs(1, 5, 7, 6, share=0.15), connectivity=connectivity)


def test_regions_have_the_unit_of_the_spacing():
    assert_is_reference("cc_dice_ce_loss", logits(2, 2, 9, 14), blobs(2, 9, 14, share=0.05), spacing=(3, 1))


@EACH_LOSS
def test_ignored_voxels_belong_to_no_component(name):
    x, target = logits(2, 3, 9, 14), blobs(2, 9, 14, num_classes=3)
    target[torch.rand(2, 9, 14) < 0.1] = 255
    x[(target == 255).unsqueeze(1).expand_as(x)] = float("nan")
    assert_is_reference(name, x.nan_to_num(), target, ignore_index=255)
    actual = value_and_gradient(partial(getattr(segloss, name), ignore_index=255), x, target.to(torch.uint8))
    expected = value_and_gradient(partial(getattr(segloss, name), ignore_index=255), x.nan_to_num(), target)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@EACH_LOSS
def test_each_channel_of_a_sigmoid_has_its_own_components(name):
    masks = (torch.rand(2, 3, 9, 14) < 0.2).long()
    assert_is_reference(name, logits(2, 3, 9, 14), masks, activation="sigmoid")
    masks[:, 1, 3:5, 2] = 255
    assert_is_reference(name, logits(2, 3, 9, 14), masks.to(torch.uint8), activation="sigmoid", ignore_index=255)


@EACH_LOSS
def test_one_channel_is_the_foreground(name):
    assert_is_reference(name, logits(2, 1, 9, 14), blobs(2, 9, 14), activation="sigmoid")


@EACH_LOSS
def test_labels_with_a_sigmoid_leave_out_the_background(name):
    assert_is_reference(name, logits(2, 3, 9, 14), blobs(2, 9, 14, num_classes=3), activation="sigmoid")


@EACH_LOSS
def test_regions_of_labels_are_their_masks(name):
    loss = partial(getattr(segloss, name), activation="sigmoid")
    x, labels = logits(2, 2, 9, 14), blobs(2, 9, 14, num_classes=4)
    masks = torch.stack([labels > 0, labels == 3], 1)
    assert torch.equal(loss(x, labels, regions=[(1, 2, 3), (3,)]), loss(x, masks))


@EACH_LOSS
def test_labels_of_a_map_have_the_components_of_their_classes(name):
    loss = getattr(segloss, name)
    x, labels = logits(2, 3, 9, 14), blobs(2, 9, 14, num_classes=3)
    assert torch.equal(loss(x, labels * 10, label_map={0: 0, 10: 1, 20: 2}), loss(x, labels))


@EACH_LOSS
def test_one_hot_labels_are_labels(name):
    loss = getattr(segloss, name)
    x, labels = logits(2, 3, 9, 14), blobs(2, 9, 14, num_classes=3)
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    assert torch.equal(loss(x, one_hot), loss(x, labels))
    assert torch.equal(loss(x, labels.float()), loss(x, labels))


@EACH_LOSS
@pytest.mark.parametrize("dim", [2, -1])
def test_classes_may_be_in_any_dimension(name, dim):
    loss = getattr(segloss, name)
    for activation, labels in (("softmax", blobs(2, 9, 14, num_classes=3)), ("sigmoid", blobs(2, 3, 9, 14))):
        x, target = logits(2, 3, 9, 14), labels if labels.dim() == 3 else labels.movedim(1, dim)
        expected = loss(x, labels, activation=activation)
        torch.testing.assert_close(loss(x.movedim(1, dim), target, activation=activation, dim=dim), expected)


@EACH_LOSS
def test_a_loader_may_make_the_components(name):
    loss = getattr(segloss, name)
    x, labels = logits(2, 2, 9, 14), blobs(2, 9, 14)
    components = torch.stack([reference.connected_components(each > 0) for each in labels])
    expected = loss(x, labels)
    for given in (components, components.unsqueeze(1).int()):
        assert torch.equal(loss(x, labels, components=given), expected)
        assert torch.allclose(loss(x, labels, components=given, num_components=99), expected, rtol=1e-14)
    if name == "cc_dice_ce_loss":
        nearest = segloss.nearest_component(components.unsqueeze(1))
        assert torch.equal(loss(x, labels, components=nearest), expected)


@EACH_LOSS
def test_a_loader_may_make_the_components_of_several_classes(name):
    loss = getattr(segloss, name)
    x, labels = logits(2, 3, 9, 14), blobs(2, 9, 14, num_classes=3)
    of_classes = [torch.stack([reference.connected_components(each == c) for each in labels]) for c in (1, 2)]
    joint = of_classes[0] + torch.where(of_classes[1] > 0, of_classes[1] + of_classes[0].max(), 0)
    for given in (joint, torch.stack(of_classes, 1)):
        assert torch.allclose(loss(x, labels, components=given), loss(x, labels), rtol=1e-14)


@EACH_LOSS
def test_components_of_another_shape_are_refused(name):
    x, labels = logits(2, 3, 9, 14), blobs(2, 9, 14, num_classes=3)
    with pytest.raises(
        RuntimeError, match=r"expected components of shape \[2, 9, 14\] or \[2, 2, 9, 14\].*got \[2, 9\]"
    ):
        getattr(segloss, name)(x, labels, components=torch.zeros(2, 9, dtype=torch.int32))
    masks = torch.ones(2, 3, 9, 14, dtype=torch.long)
    with pytest.raises(RuntimeError, match=r"expected components of shape \[2, 3, 9, 14\]"):
        getattr(segloss, name)(x, masks, activation="sigmoid", components=labels)
    with pytest.raises(TypeError, match="expected integer components, got"):
        getattr(segloss, name)(x, labels, components=labels.float())


@EACH_LOSS
def test_more_components_than_said_are_an_error(name):
    x, labels = logits(1, 2, 9, 14), blobs(1, 9, 14)
    with pytest.raises(IndexError, match=r"expected components in \[0, 3\)"):
        getattr(segloss, name)(x, labels, num_components=2)


@EACH_LOSS
def test_a_sample_may_have_no_component(name):
    x, labels = logits(3, 3, 9, 14), blobs(3, 9, 14, num_classes=3)
    labels[1] = 0
    labels[2] *= labels[2] == 1
    assert_is_reference(name, x, labels)
    assert_is_reference(name, x, torch.zeros_like(labels))


@EACH_LOSS
def test_one_component_may_fill_all(name):
    assert_is_reference(name, logits(2, 2, 9, 14), torch.ones(2, 9, 14, dtype=torch.long))


@EACH_LOSS
def test_there_may_be_thousands_of_components_of_one_voxel(name):
    labels = torch.zeros(1, 60, 140, dtype=torch.long)
    labels[:, ::2, ::2] = 1
    x = logits(1, 2, 60, 140)
    value, gradient = value_and_gradient(getattr(segloss, name), x, labels)
    p, losses = x.softmax(1)[:, 1], torch.nn.functional.cross_entropy(x, labels, reduction="none")
    keys = reference.connected_components(labels[0])
    if name == "blob_loss":
        p0, ce0, n0 = p[labels == 0].sum(), losses[labels == 0].sum(), (labels == 0).sum()
        pr, cer = p[labels == 1], losses[labels == 1]
        terms = 1 - 2 * pr / (p0 + pr + 1) + (ce0 + cer) / (n0 + 1)
    else:
        nearest = segloss.nearest_component(keys[None, None])[0, 0].long()
        by_key = [
            torch.zeros(2101, dtype=torch.float64).index_add(0, nearest.flatten(), each.double().flatten())[1:]
            for each in (p * labels, p, labels, losses, torch.ones_like(p))
        ]
        i, q, t, ce, n = by_key
        terms = 1 - 2 * i / (q + t) + ce / n
    whole = segloss.dice_ce_loss(x, labels, include_background=False, smooth_nr=0, smooth_dr=0)
    expected = terms.mean() + (2 if name == "blob_loss" else 1) * whole
    assert torch.allclose(value, expected, rtol=1e-12)
    assert gradient.isfinite().all()


@EACH_LOSS
def test_it_has_both_derivatives(name):
    labels = torch.tensor([[[0, 1, 0, 2], [1, 0, 0, 2]]])
    loss = partial(getattr(segloss, name), num_components=2)
    x = logits(1, 3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, labels))
    assert torch.autograd.gradgradcheck(loss, (x, labels))
    assert torch.autograd.gradcheck(partial(loss, activation="sigmoid"), (x, labels))


@EACH_LOSS
def test_without_a_voxel_it_is_empty(name):
    loss = getattr(segloss, name)
    for x, labels in (
        (logits(0, 2, 9, 14), torch.zeros(0, 9, 14, dtype=torch.long)),
        (logits(2, 2, 9, 0), torch.zeros(2, 9, 0, dtype=torch.long)),
        (logits(2, 2, 9, 14), torch.full((2, 9, 14), -100)),
    ):
        value, gradient = value_and_gradient(loss, x, labels)
        assert value.isnan()
        assert not gradient.any()
        value, gradient = value_and_gradient(partial(loss, empty="zero"), x, labels)
        assert value == 0 or labels.numel() > 0
        assert value.isfinite()
        assert not gradient.any()


@EACH_LOSS
def test_it_does_not_depend_on_threads(name, num_threads):
    x, labels = torch.randn(2, 3, 20, 60, 70), blobs(2, 20, 60, 70, num_classes=3, share=0.03)
    results = []
    for threads in (1, 2, 7):
        num_threads(threads)
        results.append(value_and_gradient(getattr(segloss, name), x, labels))
    assert all(torch.equal(a, e) for each in results[1:] for a, e in zip(each, results[0], strict=True))


@EACH_LOSS
@pytest.mark.parametrize("options", [{"connectivity": 3}, {"connectivity": 0}])
def test_connectivity_is_at_most_the_number_of_axes(name, options):
    with pytest.raises(ValueError, match=r"expected connectivity in \[1, 2\]"):
        getattr(segloss, name)(logits(2, 2, 9, 14), blobs(2, 9, 14), **options)


@EACH_LOSS
def test_errors_name_the_loss(name):
    loss = getattr(segloss, name)
    with pytest.raises(IndexError, match=f"{name}: Target 5 is out of bounds"):
        loss(logits(2, 2, 9, 14), torch.full((2, 9, 14), 5))
    with pytest.raises(ValueError, match=f"{name}: .*spatial axes"):
        loss(logits(2, 2), torch.ones(2, dtype=torch.long))
    with pytest.raises(RuntimeError, match=f"{name}: expected class labels, got class probabilities"):
        loss(logits(2, 2, 9, 14), torch.full((2, 2, 9, 14), 0.5))
    with pytest.raises(RuntimeError, match=f"{name}: expected 0 and 1"):
        loss(logits(2, 2, 9, 14), torch.full((2, 2, 9, 14), 0.5), activation="sigmoid")
    with pytest.raises(ValueError, match=f"{name}: expected activation"):
        loss(logits(2, 2, 9, 14), blobs(2, 9, 14), activation=None)


@EACH_LOSS
def test_the_module_calls_the_function(name):
    module = {"cc_dice_ce_loss": segloss.CCDiceCELoss, "blob_loss": segloss.BlobLoss}[name]
    x, labels = logits(2, 2, 9, 14), blobs(2, 9, 14)
    components = torch.stack([reference.connected_components(each > 0) for each in labels])
    v = torch.rand(2, 9, 14)
    expected = getattr(segloss, name)(x, labels, voxel_weight=v, components=components, **FACTORS[name])
    assert torch.equal(module(**FACTORS[name])(x, labels, v, components), expected)


@EACH_LOSS
def test_it_compiles_in_one_graph_if_the_number_of_components_is_known(name):
    loss = torch.compile(partial(getattr(segloss, name), num_components=50), fullgraph=True, backend="aot_eager")
    x, labels = logits(2, 2, 9, 14), blobs(2, 9, 14)
    actual = value_and_gradient(loss, x, labels)
    expected = value_and_gradient(partial(getattr(segloss, name), num_components=50), x, labels)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
