"""Skeletons against scikit-image, and the loss on them against the paper's formula."""

from functools import partial

import pytest
import torch
from losses import value_and_gradient
from tolerances import assert_close

import segloss
from segloss import skeletonize

METHODS = pytest.mark.parametrize("method", ["zhang", "lee"])
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.bool]


def expected_of(mask, method=None):
    """scikit-image's skeleton of one mask."""
    morphology = pytest.importorskip("skimage.morphology")
    return torch.from_numpy(morphology.skeletonize(mask.cpu().numpy(), method=method)).to(mask.device)


def assert_is_skimage(masks, method=None):
    """Compares the skeletons of masks [N, *]."""
    actual = skeletonize(masks.unsqueeze(1), method=method).squeeze(1)
    assert actual.dtype == torch.bool
    for k, mask in enumerate(masks):
        assert torch.equal(actual[k], expected_of(mask, method)), (k, mask.int())


def noise(*shape):
    """Masks of as many densities as there are samples."""
    density = torch.linspace(0.05, 0.98, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return torch.rand(shape) < density


def blobs(*shape, sigma=2):
    ndimage = pytest.importorskip("scipy.ndimage")
    smooth = ndimage.gaussian_filter(torch.randn(shape).cpu().numpy(), (0, *[sigma] * (len(shape) - 1)))
    return torch.from_numpy(smooth > 0)


def tubes(*sizes, count=6):
    """Balls along curves."""
    mask, grid = torch.zeros(sizes, dtype=torch.bool), torch.meshgrid(*map(torch.arange, sizes), indexing="ij")
    for _ in range(count):
        place, direction = torch.rand(len(sizes)) * torch.tensor(sizes), torch.randn(len(sizes))
        for _ in range(25):
            direction = torch.nn.functional.normalize(direction + 0.2 * torch.randn(len(sizes)), dim=0)
            place = place + direction
            mask |= sum((axis - x) ** 2 for axis, x in zip(grid, place.tolist(), strict=True)) < 6
    return mask.unsqueeze(0)


# ---- equality with scikit-image ----


@METHODS
def test_each_3x3_image(method):
    images = (torch.arange(512).unsqueeze(1) >> torch.arange(9)) & 1
    assert_is_skimage(images.view(512, 3, 3), method)


@METHODS
@pytest.mark.parametrize("shape", [(64, 7, 9), (16, 40, 62), (8, 33, 63), (8, 20, 64), (4, 30, 130)], ids=str)
def test_noise_in_two_dimensions(shape, method):
    assert_is_skimage(noise(*shape), method)


@pytest.mark.parametrize("shape", [(200, 3, 3, 3), (200, 4, 4, 4), (16, 12, 9, 11), (4, 9, 8, 127)], ids=str)
def test_noise_in_three_dimensions(shape):
    assert_is_skimage(noise(*shape))


@METHODS
@pytest.mark.parametrize("sigma", [1, 3, 8])
def test_blobs_in_two_dimensions(sigma, method):
    assert_is_skimage(blobs(2, 120, 200, sigma=sigma), method)


@pytest.mark.parametrize("sigma", [1, 2.5, 5])
def test_blobs_in_three_dimensions(sigma):
    assert_is_skimage(blobs(1, 30, 40, 70, sigma=sigma))


def test_tubes():
    assert_is_skimage(tubes(40, 36, 70))
    assert_is_skimage(tubes(90, 100), "zhang")
    assert_is_skimage(tubes(90, 100), "lee")


THIN = [(1, 1), (1, 7), (9, 1), (2, 8), (1, 1, 1), (1, 6, 9), (6, 1, 9), (6, 9, 1), (1, 1, 9), (1, 8, 1), (2, 2, 2)]


@pytest.mark.parametrize("sizes", THIN, ids=str)
def test_few_voxels_along_an_axis(sizes):
    for method in ["zhang", "lee"] if len(sizes) == 2 else ["lee"]:
        assert_is_skimage(noise(30, *sizes), method)
        assert_is_skimage(torch.ones(1, *sizes, dtype=torch.bool), method)


@pytest.mark.parametrize("sizes", [(24, 31), (11, 12, 13)], ids=len)
def test_full_and_checkered_images(sizes):
    checks = sum(torch.meshgrid(*map(torch.arange, sizes), indexing="ij")) % 2 == 0
    one = torch.zeros(sizes, dtype=torch.bool)
    one[tuple(size // 2 for size in sizes)] = True
    for method in ["zhang", "lee"] if len(sizes) == 2 else ["lee"]:
        assert_is_skimage(torch.stack([torch.ones(sizes, dtype=torch.bool), checks, ~checks, one]), method)


def test_an_object_in_one_plane_of_a_volume():
    """It has six directions; a volume of one plane has four."""
    volume = torch.zeros(1, 5, 30, 40, dtype=torch.bool)
    volume[:, 2] = blobs(1, 30, 40)
    assert_is_skimage(volume)
    assert_is_skimage(volume[:, 2:3])


# ---- labels ----


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.float32, torch.float16, torch.float64])
def test_labels_of_any_dtype(dtype):
    labels = noise(3, 20, 30).unsqueeze(1)
    assert torch.equal(skeletonize(labels.to(dtype)), skeletonize(labels))


def test_labels_of_any_strides():
    labels = torch.randint(3, (2, 1, 8, 9, 10))
    expected = skeletonize(labels)
    for dims in [(4, 3, 2, 1, 0), (0, 1, 4, 2, 3), (1, 0, 3, 4, 2)]:
        strided = labels.permute(dims).contiguous().permute([dims.index(d) for d in range(5)])
        assert torch.equal(skeletonize(strided), expected)
    wide = torch.zeros(2, 1, 8, 9, 20, dtype=torch.int64)
    wide[..., ::2] = labels
    assert torch.equal(skeletonize(wide[..., ::2]), expected)
    assert torch.equal(
        skeletonize(torch.zeros(1, 1, 4, 4, dtype=torch.uint8).expand(3, 1, 4, 4)), torch.zeros(3, 1, 4, 4) > 0
    )


def test_all_classes_but_0_are_the_foreground():
    labels = torch.randint(3, (2, 1, 20, 30))
    assert torch.equal(skeletonize(labels), skeletonize(labels > 0))


def test_a_skeleton_of_each_class():
    labels = blobs(2, 40, 50).int() + 2 * blobs(2, 40, 50).int()
    expected = sum(skeletonize(labels == c, spatial_dims=2).int() for c in (1, 2, 3)) > 0
    assert torch.equal(skeletonize(labels, spatial_dims=2, per_class=True), expected)
    assert not torch.equal(skeletonize(labels, spatial_dims=2), expected)


def test_large_classes_have_skeletons_too():
    labels = torch.where(noise(2, 10, 12), 2_000_000_000, 0).unsqueeze(1)
    assert torch.equal(skeletonize(labels, per_class=True), skeletonize(labels > 0))


def test_ignored_voxels_are_background():
    labels = torch.randint(3, (2, 1, 20, 30), dtype=torch.uint8)
    labels[noise(2, 20, 30).unsqueeze(1)] = 255
    foreground = (labels > 0) & (labels < 255)
    assert torch.equal(skeletonize(labels, ignore_index=255), skeletonize(foreground))
    assert torch.equal(skeletonize(labels, ignore_index=(255, 2)), skeletonize(labels == 1))


def test_a_label_map_says_what_is_background():
    labels = torch.randint(4, (2, 1, 20, 30))
    assert torch.equal(skeletonize(labels, label_map={0: 3, 1: 0, ...: None}), skeletonize(labels == 0))


def test_a_channel_or_spatial_dims_says_which_axes_are_spatial():
    labels = noise(3, 10, 12)
    expected = skeletonize(labels.unsqueeze(1)).squeeze(1)
    assert torch.equal(skeletonize(labels, spatial_dims=2), expected)
    volume = labels.unsqueeze(0)
    assert torch.equal(skeletonize(volume, spatial_dims=3), skeletonize(volume.unsqueeze(1)).squeeze(1))
    one_plane = labels.unsqueeze(1)
    assert torch.equal(skeletonize(one_plane, spatial_dims=3), skeletonize(one_plane.unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize("shape", [(0, 1, 4, 5), (2, 1, 0, 5), (2, 1, 4, 0), (0, 1, 3, 4, 5), (2, 1, 3, 0, 5)], ids=str)
def test_no_voxels(shape):
    labels = torch.zeros(shape, dtype=torch.uint8)
    for per_class in (False, True):
        assert skeletonize(labels, per_class=per_class).shape == shape


# ---- tubes ----


@pytest.mark.parametrize("shape", [(2, 40, 63), (2, 50, 62), (1, 12, 20, 30)], ids=str)
@pytest.mark.parametrize("tube", [1, 2, 5])
def test_a_tube_is_a_dilated_skeleton_within_the_foreground(shape, tube):
    ndimage = pytest.importorskip("scipy.ndimage")
    labels = blobs(*shape)
    dilated = [ndimage.binary_dilation(expected_of(mask).cpu().numpy(), iterations=tube) for mask in labels]
    expected = torch.stack([torch.from_numpy(each).to(labels.device) for each in dilated]) & labels
    assert torch.equal(skeletonize(labels.unsqueeze(1), tube=tube).squeeze(1), expected)


def test_the_widest_tube_is_the_foreground():
    labels = blobs(2, 30, 20).unsqueeze(1)
    assert torch.equal(skeletonize(labels, tube=2**40), labels)


# ---- threads, transforms, errors ----


@pytest.mark.cpu_only
def test_threads_do_not_change_it():
    labels = torch.randint(4, (3, 1, 12, 20, 30))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([skeletonize(labels, per_class=each) for each in (False, True)])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_under_vmap():
    labels = noise(6, 10, 12).view(2, 3, 1, 10, 12)
    expected = torch.stack([skeletonize(each) for each in labels])
    assert torch.equal(torch.vmap(skeletonize)(labels), expected)


def test_opcheck():
    labels = torch.randint(3, (2, 5, 6))
    torch.library.opcheck(torch.ops.segloss.skeletonize.default, (labels, None, "zhang", -100, False, 2))
    torch.library.opcheck(torch.ops.segloss.skeletonize.default, (labels.unsqueeze(1), None, "lee", 1, True, 0))


@pytest.mark.cpu_only
def test_devices_without_a_kernel_give_the_same():
    labels = torch.randint(3, (2, 9, 10))
    operator = torch.ops.segloss.skeletonize.default
    table, options = torch.tensor([0, 3, 0, -2, 0, 3, 0, 0, -1, 2]), ("zhang", -100, False, 1)
    other = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)
    assert torch.equal(operator.redispatch(other, labels, table, *options), operator(labels, table, *options))
    assert operator(labels.to("meta"), table.to("meta"), *options).shape == labels.shape


ERRORS = {
    "no tensor": ([[1]], {}, TypeError, "expected labels to be a torch.Tensor, got list"),
    "no channel": (torch.ones(2, 3, 4), {}, RuntimeError, r"got \[2, 3, 4\].*labels.unsqueeze\(1\)"),
    "one axis": (torch.ones(2, 1, 4), {}, RuntimeError, r"expected labels \[N, H, W\] or \[N, D, H, W\], got \[2, 4\]"),
    "four axes": (torch.ones(2, 1, 3, 3, 3, 3), {}, RuntimeError, r"got \[2, 1, 3, 3, 3, 3\]"),
    "other axes": (torch.ones(2, 1, 3, 3), {"spatial_dims": 1}, RuntimeError, r"got \[2, 1, 3, 3\] and spatial_dims=1"),
    "method": (torch.ones(2, 1, 3, 3), {"method": "thin"}, ValueError, "expected method .*got 'thin'"),
    "zhang of volumes": (
        torch.ones(2, 1, 3, 3, 3),
        {"method": "zhang"},
        ValueError,
        'expected method="lee".*got "zhang"',
    ),
    "tube": (torch.ones(2, 1, 3, 3), {"tube": -1}, ValueError, "expected tube.* 0 or more, got -1"),
    "float tube": (torch.ones(2, 1, 3, 3), {"tube": 1.5}, TypeError, "expected tube"),
    "per_class": (torch.ones(2, 1, 3, 3), {"per_class": "no"}, ValueError, "expected per_class.*got .no"),
    "ignore_index": (torch.ones(2, 1, 3, 3), {"ignore_index": 1.5}, TypeError, "expected ignore_index"),
    "soft labels": (torch.full((1, 1, 3, 3), 0.5), {}, RuntimeError, "0.5"),
    "negative label": (torch.full((1, 1, 3, 3), -3), {}, IndexError, "-3"),
    "label without a class": (torch.ones(1, 1, 3, 3), {"label_map": {0: 0, 2: 1}}, IndexError, "label_map"),
    "complex labels": (torch.ones(1, 1, 3, 3, dtype=torch.complex64), {}, TypeError, "labels"),
}


@pytest.mark.parametrize(("labels", "options", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(labels, options, error, message):
    with pytest.raises(error, match=message):
        skeletonize(labels, **options)


# ---- skeleton recall ----


def reference_loss(
    x, labels, *, tube=None, activation="softmax", batch=False, smooth=1e-5, ignore_index=None, regions=None
):
    """1 minus the recall of Kirchhoff et al., [N, C'] or [C']; labels [N, 1, *]."""
    if tube is None:
        ndimage = pytest.importorskip("scipy.ndimage")
        foreground = (labels > 0) & (labels != ignore_index)
        skeletons = [expected_of(mask).cpu().numpy() for mask in foreground.squeeze(1)]
        dilated = [torch.from_numpy(ndimage.binary_dilation(each, iterations=2)) for each in skeletons]
        tube = torch.stack(dilated).unsqueeze(1).to(labels.device) & foreground
    p = x.softmax(1) if activation == "softmax" else x.sigmoid()
    classes = regions or [(c,) for c in range(1, x.shape[1])] or [(1,)]
    p = p if regions or x.shape[1] == 1 else p[:, 1:]
    g = torch.cat([sum(labels == c for c in region) for region in classes], 1).to(x.dtype) * tube
    dims = tuple(range(2, x.dim()))
    shared, size = (p * g).sum(dims), g.sum(dims)
    if batch:
        shared, size = shared.sum(0), size.sum(0)
    return 1 - (shared + smooth) / (size + smooth)


def logits(*shape):
    return torch.randn(shape, dtype=torch.float64)


def assert_is_reference(x, labels, expected, **options):
    actual = value_and_gradient(partial(segloss.skeleton_recall_loss, **options), x, labels)
    expected = value_and_gradient(expected, x, labels)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, x.dtype)


OPTIONS = {
    "softmax": {},
    "terms": {"reduction": "none"},
    "batch": {"batch": True},
    "terms of the batch": {"batch": True, "reduction": "none"},
    "sum": {"reduction": "sum"},
    "sigmoid": {"activation": "sigmoid"},
    "ignored": {"ignore_index": 2},
    "smoothed": {"smooth_nr": 1.0, "smooth_dr": 1.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("sizes", [(24, 31), (10, 12, 14)], ids=len)
def test_it_is_the_papers_formula(sizes, options):
    labels = (blobs(2, *sizes).int() * torch.randint(1, 3, (2, *sizes))).unsqueeze(1)
    reductions = {"none": lambda terms: terms, "sum": torch.sum, "mean": torch.mean}
    reduced = reductions[options.get("reduction", "mean")]
    of_reference = {name: value for name, value in options.items() if name in ("batch", "activation", "ignore_index")}
    of_reference["smooth"] = options.get("smooth_nr", 1e-5)
    assert_is_reference(
        logits(2, 3, *sizes), labels, lambda x, y: reduced(reference_loss(x, y, **of_reference)), **options
    )


def test_one_channel_is_the_foreground():
    labels = blobs(2, 24, 31).int().unsqueeze(1)
    expected = partial(reference_loss, activation="sigmoid")
    assert_is_reference(logits(2, 1, 24, 31), labels, lambda x, y: expected(x, y).mean(), activation="sigmoid")


def test_regions():
    labels = (blobs(2, 24, 31).int() * torch.randint(1, 4, (2, 24, 31))).unsqueeze(1)
    options = {"regions": [(1, 2, 3), (2, 3)], "activation": "sigmoid"}
    expected = partial(reference_loss, **options)
    assert_is_reference(logits(2, 2, 24, 31), labels, lambda x, y: expected(x, y).mean(), **options)


def test_several_ignored_labels_of_one_channel():
    labels = torch.randint(2, (2, 1, 20, 30))
    ignored = labels.masked_fill(torch.rand(labels.shape) < 0.1, 7).masked_fill(torch.rand(labels.shape) < 0.1, 8)
    x = logits(2, 1, 20, 30)
    actual = segloss.skeleton_recall_loss(x, ignored, activation="sigmoid", ignore_index=(7, 8))
    assert_close(actual, reference_loss(x, ignored.masked_fill(ignored > 1, 0), activation="sigmoid").mean(), x.dtype)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_a_skeleton_from_the_loader(dtype):
    labels = (blobs(2, 24, 31).int() * torch.randint(1, 3, (2, 24, 31))).unsqueeze(1)
    x = logits(2, 3, 24, 31)
    tube = skeletonize(labels, tube=2)
    expected = segloss.skeleton_recall_loss(x, labels)
    for skeleton in (tube.to(dtype), (labels * tube).to(dtype), tube.squeeze(1).to(dtype)):
        assert torch.equal(segloss.skeleton_recall_loss(x, labels, skeleton=skeleton), expected)
    assert torch.equal(segloss.SkeletonRecallLoss()(x, labels.squeeze(1), skeleton=tube), expected)


def test_labels_without_a_channel_or_with_the_classes_last():
    labels = blobs(2, 24, 31).int()
    x = logits(2, 3, 24, 31)
    expected = segloss.skeleton_recall_loss(x, labels.unsqueeze(1))
    assert torch.equal(segloss.skeleton_recall_loss(x, labels), expected)
    last = x.movedim(1, -1)
    assert torch.equal(segloss.skeleton_recall_loss(last, labels, dim=-1), expected)
    assert torch.equal(segloss.skeleton_recall_loss(last, labels.unsqueeze(-1), dim=-1), expected)


def test_one_hot_labels():
    labels = blobs(2, 24, 31).long()
    x = logits(2, 3, 24, 31)
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    assert torch.equal(segloss.skeleton_recall_loss(x, one_hot), segloss.skeleton_recall_loss(x, labels))


def test_voxel_weights():
    labels = blobs(2, 24, 31).int().unsqueeze(1)
    x, v = logits(2, 2, 24, 31), torch.rand(2, 1, 24, 31, dtype=torch.float64)
    tube = skeletonize(labels, tube=2)
    w = v * tube * (labels == 1)
    sums = (x.softmax(1)[:, 1:] * w).sum((2, 3)), w.sum((2, 3))
    expected = (1 - (sums[0] + 1e-5) / (sums[1] + 1e-5)).mean()
    for weights in (v, v.squeeze(1), v.masked_fill(~tube, torch.inf)):
        assert_close(segloss.skeleton_recall_loss(x, labels, voxel_weight=weights), expected, x.dtype)


def test_class_weights():
    labels = (blobs(2, 24, 31).int() * torch.randint(1, 3, (2, 24, 31))).unsqueeze(1)
    x = logits(2, 3, 24, 31)
    terms = segloss.skeleton_recall_loss(x, labels, reduction="none")
    actual = segloss.skeleton_recall_loss(x, labels, reduction="none", weight=[1.0, 2.0, 3.0])
    assert_close(actual, terms * torch.tensor([2.0, 3.0]), x.dtype)


def test_logits_of_another_size():
    labels = blobs(2, 24, 30).int().unsqueeze(1)
    x = logits(2, 3, 12, 15)
    large = torch.nn.functional.interpolate(x, (24, 30), mode="bilinear")
    expected = segloss.skeleton_recall_loss(large, labels)
    assert_close(segloss.skeleton_recall_loss(x, labels, upsample="bilinear"), expected, x.dtype)


def test_a_class_that_is_absent_has_no_loss():
    x = logits(2, 3, 8, 9).requires_grad_()
    loss = segloss.skeleton_recall_loss(x, torch.zeros(2, 1, 8, 9, dtype=torch.uint8))
    loss.backward()
    assert loss == 0
    assert not x.grad.any()


def test_gradcheck():
    labels = blobs(2, 6, 7, sigma=1).int().unsqueeze(1) * torch.randint(1, 3, (2, 1, 6, 7))
    x = logits(2, 3, 6, 7).requires_grad_()
    for options in ({}, {"activation": "sigmoid", "batch": True}):
        loss = partial(segloss.skeleton_recall_loss, target=labels, **options)
        torch.autograd.gradcheck(loss, x)
        torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_of_logits(dtype):
    labels = blobs(2, 24, 31).int().unsqueeze(1)
    x = logits(2, 2, 24, 31).to(dtype)
    loss = segloss.skeleton_recall_loss(x, labels)
    assert loss.dtype == dtype
    assert_close(loss, reference_loss(x.double(), labels).mean(), dtype)


X, Y = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5, dtype=torch.uint8)
LOSS_ERRORS = {
    "one axis": ((torch.zeros(2, 3, 4), Y[..., 0]), {}, ValueError, r"two or three spatial axes, got \[2, 1, 4\]"),
    "masks": ((X, X.to(torch.uint8)), {"activation": "sigmoid"}, RuntimeError, "expected class labels.* got a mask"),
    "probabilities": ((X, X.softmax(1)), {}, RuntimeError, "expected class labels, got class probabilities"),
    "shape of the skeleton": ((X, Y), {"skeleton": Y[..., :3]}, RuntimeError, r"skeleton .*got \[2, 1, 4, 3\]"),
    "no skeleton": ((X, Y), {"skeleton": [1]}, TypeError, "expected skeleton to be a torch.Tensor, got list"),
    "method": ((X, Y), {"method": "thin"}, ValueError, "expected method .*got 'thin'"),
    "tube": ((X, Y), {"tube": -1}, ValueError, "expected tube.* 0 or more, got -1"),
    "label": ((X, Y + 3), {}, IndexError, "skeleton_recall_loss.*3"),
    "other sizes": ((X, Y[..., :3]), {}, RuntimeError, "skeleton_recall_loss"),
    "reduction": ((X, Y), {"reduction": "max"}, ValueError, "max"),
}


@pytest.mark.parametrize(("arguments", "options", "error", "message"), LOSS_ERRORS.values(), ids=LOSS_ERRORS)
def test_errors_of_the_loss(arguments, options, error, message):
    with pytest.raises(error, match=message):
        segloss.skeleton_recall_loss(*arguments, **options)


# ---- where torch traces, transforms or shares ----


@pytest.mark.cpu_only
def test_it_compiles_without_a_graph_break():
    torch._dynamo.reset()
    labels, x = blobs(2, 24, 31).int().unsqueeze(1), logits(2, 3, 24, 31)
    for criterion in (segloss.SkeletonRecallLoss(), segloss.SkeletonRecallLoss(activation="sigmoid", batch=True)):
        compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
        for actual, expected in zip(
            value_and_gradient(compiled, x, labels), value_and_gradient(criterion, x, labels), strict=True
        ):
            assert_close(actual, expected, x.dtype)


def test_under_vmap_and_grad():
    labels, x = blobs(6, 12, 11).int().view(3, 2, 1, 12, 11), logits(3, 2, 2, 12, 11)
    actual = torch.vmap(torch.func.grad(segloss.skeleton_recall_loss))(x, labels)
    expected = [value_and_gradient(segloss.skeleton_recall_loss, *pair)[1] for pair in zip(x, labels, strict=True)]
    assert_close(actual, torch.stack(expected), x.dtype)


def of_a_rank(rank, folder, x, labels):
    """Writes the loss and the gradient of one sample of two, of each sample and of the batch; then an error."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group = torch.distributed.group.WORLD
    part = slice(rank, rank + 1)
    results = []
    for batch in (False, True):
        loss = partial(segloss.skeleton_recall_loss, batch=batch, process_group=group)
        results.append(value_and_gradient(loss, x[part], labels[part]))
        bad = labels[part] + 3 * rank
        try:
            loss(x[part], bad)
        except (IndexError, RuntimeError) as error:
            results.append(type(error).__name__)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.cpu_only
def test_over_ranks(tmp_path):
    labels, x = blobs(2, 24, 31).int().unsqueeze(1), logits(2, 3, 24, 31)
    torch.multiprocessing.spawn(of_a_rank, (str(tmp_path), x, labels), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for k, batch in enumerate((False, True)):
        loss, grad = value_and_gradient(partial(segloss.skeleton_recall_loss, batch=batch), x, labels)
        for rank, results in enumerate(ranks):
            assert_close(results[2 * k][0], loss, x.dtype)
            assert_close(results[2 * k][1] / 2, grad[rank : rank + 1], x.dtype)
            assert results[2 * k + 1] == ("RuntimeError", "IndexError")[rank]
