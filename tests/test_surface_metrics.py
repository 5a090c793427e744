"""Metrics of surfaces: against slow references and MONAI; tests/frameworks has DeepMind's surface-distance."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import reference
import torch
from torch.nn import functional as F

import segloss
from segloss import _surfels

pytestmark = pytest.mark.cpu_only

METRICS = {
    "hausdorff_distance": segloss.hausdorff_distance,
    "average_surface_distance": segloss.average_surface_distance,
    "surface_dice": segloss.surface_dice,
}
REQUIRED = {"surface_dice": {"tolerance": 1.0}}
SPACINGS = {2: [(1.0, 1.0), (0.7, 2.5)], 3: [(1.0, 1.0, 1.0), (3.0, 0.5, 1.2)]}
SURFACES = ["voxels", "surfels"]


def of_each_metric(test):
    calls = [
        pytest.param(lambda *a, m=m, n=n, **o: m(*a, **REQUIRED.get(n, {}), **o), id=n) for n, m in METRICS.items()
    ]
    return pytest.mark.parametrize("metric", calls)(test)


def blobs(*sizes, classes=3, seed=0):
    """Labels with regions of several voxels."""
    noise = torch.randn(2, classes, *(-(-size // 3) for size in sizes), generator=torch.Generator().manual_seed(seed))
    mode = "bilinear" if len(sizes) == 2 else "trilinear"
    return F.interpolate(noise, size=sizes, mode=mode).argmax(1, keepdim=True)


def pair(num_axes, seed=0):
    sizes = (9, 11) if num_axes == 2 else (5, 6, 7)
    return blobs(*sizes, seed=2 * seed), blobs(*sizes, seed=2 * seed + 1)


def distances_of_classes(predicted, target, ignored, spacing, surface, classes=3):
    """[N][C], those of the reference."""
    return [
        [reference.surface_distances(p[0] == c, t[0] == c, v[0], spacing, surface) for c in range(classes)]
        for p, t, v in zip(predicted, target, ignored, strict=True)
    ]


def one_hot(labels, classes=3):
    return F.one_hot(labels.squeeze(1).long(), classes).movedim(-1, 1)


def assert_close(actual, wanted):
    torch.testing.assert_close(
        actual, torch.as_tensor(wanted, dtype=actual.dtype), equal_nan=True, rtol=2e-6, atol=1e-6
    )


# ---- against the slow reference ----


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("spacing", [*SPACINGS[2], *SPACINGS[3]])
@pytest.mark.parametrize("with_ignored", [False, True])
def test_metrics_are_those_of_the_reference(surface, spacing, with_ignored):
    predicted, target = pair(len(spacing))
    ignored = torch.zeros_like(target, dtype=torch.bool)
    if with_ignored:
        ignored = torch.rand(target.shape, generator=torch.Generator().manual_seed(5)) < 0.1
        ignored[..., 0] = True  # a border
    options = {"spacing": spacing, "surface": surface, "ignore_index": 7}
    labels = target.masked_fill(ignored, 7)
    distances = distances_of_classes(predicted, target, ignored, spacing, surface)

    def check(actual, of_distances):
        assert_close(actual, [[of_distances(each) for each in row] for row in distances])

    for percentile in (None, 5, 51, 95, 100):
        found = segloss.hausdorff_distance(predicted, labels, 3, percentile=percentile, **options)
        check(found, partial(reference.hausdorff_distance, percentile=percentile, kind=surface))
    found = segloss.hausdorff_distance(predicted, labels, 3, directed=True, **options)
    check(found, lambda d: reference.hausdorff_distance(d[:1], None, surface))
    found = segloss.average_surface_distance(predicted, labels, 3, **options)
    check(found, lambda d: reference.average_surface_distance(d[:1]))
    found = segloss.average_surface_distance(predicted, labels, 3, symmetric=True, **options)
    check(found, reference.average_surface_distance)
    for tolerance in (0.0, 0.9, 2.0):
        found = segloss.surface_dice(predicted, labels, 3, tolerance=tolerance, **options)
        check(found, partial(reference.surface_dice, tolerance=tolerance))


def test_far_surfaces_have_the_distances_of_near_ones_moved_apart():
    """Beyond the rows that are searched first, the tree of bricks finds the nearest voxel."""
    predicted, target = torch.zeros(2, 1, 1, 150, 70, 90, dtype=torch.uint8)
    predicted[0, 0, 2:6, 60:66, 80:90] = 1
    target[0, 0, 120:130, 3:20, 1:9] = 1
    target[0, 0, 140, 69, 89] = 1
    spacing = (2.0, 0.5, 1.5)
    places = [
        torch.tensor([place for place, _ in reference.surface(mask[0, 0] == 1, mask[0, 0] > 1, spacing, "voxels")])
        for mask in (predicted, target)
    ]
    distances = torch.cdist(*places, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = torch.cat([distances.amin(1), distances.amin(0)])
    options = {"num_classes": 2, "spacing": spacing, "include_background": False}
    assert_close(segloss.average_surface_distance(predicted, target, symmetric=True, **options), [[nearest.mean()]])
    assert_close(segloss.hausdorff_distance(predicted, target, **options), [[nearest.max()]])


def test_the_last_column_that_is_seen_on_the_left_is_not_taken_for_one_on_the_right():
    """It was, and the next voxel started its search from there."""
    predicted, target = torch.zeros(2, 1, 1, 1, 200, dtype=torch.uint8)
    target[..., 50] = 1
    predicted[..., [50 + 32, 50 + 62]] = 1
    found = segloss.average_surface_distance(predicted, target, 2, include_background=False)
    assert found.item() == (32 + 62) / 2


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.3, 2.0, 5.0)])
@pytest.mark.parametrize("density", [0.002, 0.02, 0.3])
def test_scattered_voxels_have_their_nearest_neighbours(spacing, density):
    generator = torch.Generator().manual_seed(3)
    predicted, target = (torch.rand(1, 1, 40, 37, 131, generator=generator) < density for _ in range(2))
    scipy = pytest.importorskip("scipy.spatial")

    def elements(mask):
        padded = F.pad(mask[0, 0], (1, 1, 1, 1, 1, 1))
        rolled = [padded.roll(step, axis) for axis in range(3) for step in (-1, 1)]
        inside = torch.stack(rolled).all(0)
        return ((padded & ~inside).nonzero() * torch.tensor(spacing).double()).numpy()

    first, second = elements(predicted), elements(target)
    distances = scipy.KDTree(second).query(first)[0]
    options = {"num_classes": 2, "spacing": spacing, "include_background": False}
    assert_close(segloss.average_surface_distance(predicted, target, **options), [[distances.mean()]])
    assert_close(segloss.hausdorff_distance(predicted, target, directed=True, **options), [[distances.max()]])


# ---- the areas of surfels ----


def test_areas_of_all_neighbourhoods_are_those_of_turned_and_mirrored_ones():
    for spacing in ((1.0, 1.0, 1.0), (0.7, 1.3, 2.9), (5.0, 1.0, 0.3)):
        areas = reference.surfel_areas(spacing)
        assert len(areas) == 256
        for places, area in areas.items():
            code = sum(1 << 7 - int(4 * z + 2 * y + x) for z, y, x in places)
            assert _surfels.measures(spacing)[code] == pytest.approx(area)


@pytest.mark.parametrize(
    ("code", "area"),
    [
        (0b00000000, 0),
        (0b11111111, 0),
        (0b00001111, 1.0),  # a plane
        (0b10000000, math.sqrt(3) / 8),  # a corner: a triangle with sides of sqrt(1/2)
        (0b01111111, math.sqrt(3) / 8),
        (0b10000001, math.sqrt(3) / 4),
        (0b11000000, math.sqrt(1 / 2)),  # an edge: a rectangle
        (0b11101000, math.sqrt(3) * 3 / 4),  # a corner with its three neighbours: a hexagon
        (0b10010110, math.sqrt(3) / 2),  # no two are neighbours
    ],
)
def test_area_of_a_neighbourhood(code, area):
    assert _surfels.measures((1, 1, 1))[code].item() == pytest.approx(area, abs=1e-12)


def test_lengths_of_all_neighbourhoods_of_pixels():
    half = math.hypot(2, 3) / 2
    wanted = [0, half, half, 3, half, 2, 2 * half, half, half, 2 * half, 2, half, 3, half, half, 0]
    torch.testing.assert_close(_surfels.measures((2, 3)), torch.tensor(wanted, dtype=torch.float64))


def test_area_of_a_box_is_that_of_its_faces_with_cut_edges_and_corners():
    mask = torch.zeros(1, 1, 10, 9, 10, dtype=torch.uint8)
    mask[..., 1:5, 2:8, 3:9] = 1  # 4 x 6 x 6
    faces = 2 * (3 * 5 + 3 * 5 + 5 * 5)
    edges, corners = 4 * (3 + 5 + 5) * math.sqrt(1 / 2), math.sqrt(3)
    moved = mask.roll(4, 2)
    dice = segloss.surface_dice(moved, mask, 2, tolerance=0, surface="surfels")[0, 1].item()
    assert dice == pytest.approx(side_overlap(mask, moved) / (faces + edges + corners))


def side_overlap(mask, moved):
    both = [
        {tuple(place): weight for place, weight in reference.surface(m[0, 0] == 1, m[0, 0] < 0, (1, 1, 1), "surfels")}
        for m in (mask, moved)
    ]
    shared = both[0].keys() & both[1].keys()
    return sum(both[0][place] + both[1][place] for place in shared) / 2


# ---- against MONAI ----


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spacing", [None, (0.7, 2.5), (3.0, 0.5, 1.2)])
@pytest.mark.filterwarnings("ignore")
def test_voxels_are_those_of_monai(seed, spacing):
    metrics = pytest.importorskip("monai.metrics")
    num_axes = 3 if spacing is None else len(spacing)
    predicted, target = pair(num_axes, seed)
    ours = {"num_classes": 3, "spacing": spacing}
    pairs = one_hot(predicted), one_hot(target)
    theirs = {"include_background": True, "spacing": spacing}
    for percentile, directed in itertools.product((None, 30, 95, 100), (False, True)):
        options = {"percentile": percentile, "directed": directed}
        wanted = metrics.compute_hausdorff_distance(*pairs, **options, **theirs)
        assert_close(segloss.hausdorff_distance(predicted, target, **options, **ours), wanted)
    for symmetric in (False, True):
        wanted = metrics.compute_average_surface_distance(*pairs, symmetric=symmetric, **theirs)
        assert_close(segloss.average_surface_distance(predicted, target, symmetric=symmetric, **ours), wanted)
    tolerances = [0.0, 1.0, 2.5]
    wanted = metrics.compute_surface_dice(*pairs, tolerances, **theirs)
    assert_close(segloss.surface_dice(predicted, target, tolerance=tolerances, **ours), wanted)


def empty_cases():
    """Class 1 absent in the prediction, in the target, in both and in none, filling all, one voxel, one slice."""
    nothing, everything, some = torch.zeros(1, 1, 5, 6), torch.ones(1, 1, 5, 6), torch.zeros(1, 1, 5, 6)
    some[..., 1:3, 2:5] = 1
    voxel, line = torch.zeros(1, 1, 5, 6), torch.zeros(1, 1, 5, 6)
    voxel[..., 4, 0] = line[..., 2, :] = 1
    masks = {"nothing": nothing, "everything": everything, "some": some, "voxel": voxel, "line": line}
    return [pytest.param(a, b, id=f"{m}-{n}") for (m, a), (n, b) in itertools.product(masks.items(), repeat=2)]


@pytest.mark.parametrize(("predicted", "target"), empty_cases())
@pytest.mark.parametrize("percentile", [None, 50, 95])
@pytest.mark.filterwarnings("ignore")
def test_empty_full_and_tiny_masks_give_what_monai_gives(predicted, target, percentile):
    metrics = pytest.importorskip("monai.metrics")
    masks = predicted.byte(), target.byte()
    for directed in (False, True):
        options = {"percentile": percentile, "directed": directed}
        wanted = metrics.compute_hausdorff_distance(predicted, target, include_background=True, **options)
        assert_close(segloss.hausdorff_distance(*masks, masks=True, **options), wanted)
        wanted = metrics.compute_average_surface_distance(
            predicted, target, include_background=True, symmetric=directed
        )
        assert_close(segloss.average_surface_distance(*masks, masks=True, symmetric=directed), wanted)
    wanted = metrics.compute_surface_dice(predicted, target, [1.0], include_background=True)
    assert_close(segloss.surface_dice(*masks, masks=True, tolerance=1.0), wanted)


# ---- hard facts ----


@pytest.mark.parametrize("surface", SURFACES)
def test_of_a_class_that_one_lacks_distances_are_inf_and_the_dice_is_0(surface):
    predicted, target = torch.zeros(2, 1, 1, 5, 6, dtype=torch.uint8)
    target[..., 1:3, 2:5] = 1
    for maps in ((predicted, target), (target, predicted)):
        assert segloss.hausdorff_distance(*maps, 2, surface=surface)[0, 1] == math.inf
        assert segloss.hausdorff_distance(*maps, 2, surface=surface, directed=True)[0, 1] == math.inf
        assert segloss.average_surface_distance(*maps, 2, surface=surface)[0, 1] == math.inf
        assert segloss.surface_dice(*maps, 2, surface=surface, tolerance=100)[0, 1] == 0


@of_each_metric
@pytest.mark.parametrize("surface", SURFACES)
def test_of_a_class_that_both_lack_the_result_is_nan(metric, surface):
    nothing = torch.zeros(2, 1, 5, 6, dtype=torch.uint8)
    assert metric(nothing, nothing, 2, surface=surface)[:, 1].isnan().all()


def test_a_percentile_of_infinite_distances_is_nan_of_voxels_and_inf_of_surfels():
    predicted, target = torch.zeros(2, 1, 1, 5, 6, dtype=torch.uint8)
    target[..., 1:3, 2:5] = 1
    assert segloss.hausdorff_distance(predicted, target, 2, percentile=95)[0, 1].isnan()
    assert segloss.hausdorff_distance(predicted, target, 2, percentile=95, surface="surfels")[0, 1] == math.inf


def test_steps_that_make_the_tolerance_are_within_it():
    mask = torch.zeros(1, 1, 1, 8, dtype=torch.uint8)
    mask[..., 0] = 1
    options = {"num_classes": 2, "include_background": False, "spacing": (1.0, 0.1), "tolerance": 0.3}
    assert segloss.surface_dice(mask.roll(3, 3), mask, **options) == 1
    assert segloss.surface_dice(mask.roll(4, 3), mask, **options) == 0


def test_no_boundary_is_where_a_mask_meets_ignored_voxels():
    target = torch.zeros(1, 1, 7, 9, dtype=torch.uint8)
    target[..., 2:5, :4] = 1
    target[..., 4:] = 255
    predicted = target.where(target < 255, 1)  # goes on where the target is not known
    for surface in SURFACES:
        options = {"ignore_index": 255, "surface": surface, "num_classes": 2}
        assert segloss.hausdorff_distance(predicted, target, **options)[0].tolist() == [0, 0]
    distances = reference.surface(target[0, 0] == 1, target[0, 0] == 255, (1, 1), "voxels")
    assert [3.0, 3.0] not in [place for place, _ in distances]


@pytest.mark.parametrize("percentile", [10, 50, 95])
def test_percentiles_are_those_of_numpy(percentile):
    predicted, target = pair(3)
    options = {"num_classes": 3, "include_background": False, "directed": True}
    for n, c in itertools.product(range(2), (1, 2)):
        distances = reference.surface_distances(
            predicted[n, 0] == c, target[n, 0] == c, target[n, 0] < 0, (1, 1, 1), "voxels"
        )
        wanted = np.percentile([d for d, _ in distances[0]], percentile)
        found = segloss.hausdorff_distance(predicted, target, percentile=percentile, **options)
        assert found[n, c - 1].item() == pytest.approx(wanted)


def test_percentiles_of_more_values_than_torchs_quantile_takes():
    from segloss import surface

    values = torch.rand(2**24 + 5, dtype=torch.float64)
    found = surface._percentile(surface._Distances(values, None), 95)
    assert found == pytest.approx(np.percentile(values.numpy(), 95), rel=1e-12)


# ---- arguments ----


@of_each_metric
def test_logits_are_compared_by_their_argmax(metric):
    logits = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    _, target = pair(2)
    target = target[..., :6, :7]
    wanted = metric(logits.argmax(1, keepdim=True), target, 3)
    assert_close(metric(logits, target), wanted)
    assert_close(metric(logits.movedim(1, -1), target.squeeze(1), dim=-1), wanted)
    assert_close(metric(logits, one_hot(target)), wanted)
    assert_close(metric(logits.half(), target.float()), metric(logits.half().argmax(1, keepdim=True), target, 3))


@of_each_metric
def test_labels_may_have_any_dtype_and_a_channel_or_none(metric):
    predicted, target = pair(3)
    wanted = metric(predicted, target, 3)
    options = {"num_classes": 3, "spacing": (1, 1, 1)}
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64, torch.float32):
        prediction = predicted.to(torch.int32 if dtype == torch.float32 else dtype)
        assert torch.equal(metric(prediction, target.to(dtype), **options), wanted)
        assert torch.equal(metric(prediction.squeeze(1), target.to(dtype), **options), wanted)
        assert torch.equal(metric(prediction.squeeze(1), target.squeeze(1).to(dtype), **options), wanted)


@of_each_metric
def test_ignored_labels_may_be_of_any_value(metric):
    predicted, target = pair(2)
    ignored = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    wanted = metric(predicted, target.byte().masked_fill(ignored, 255), 3, ignore_index=255)
    assert not torch.equal(wanted, metric(predicted, target, 3))
    for label in (-100, -1, 3, 254, 1000):
        assert torch.equal(metric(predicted, target.masked_fill(ignored, label), 3, ignore_index=label), wanted)
    assert torch.equal(metric(predicted, target.masked_fill(ignored, 9), 3, ignore_index=(9, 10)), wanted)
    strange = predicted.masked_fill(ignored, 77)  # what is predicted there does not matter
    assert torch.equal(metric(strange, target.masked_fill(ignored, 255), 3, ignore_index=255), wanted)


@of_each_metric
def test_a_class_may_be_ignored(metric):
    predicted, target = pair(2)
    wanted = metric(predicted, target.masked_fill(target == 1, 9), 3, ignore_index=9)
    assert torch.equal(metric(predicted, target, 3, ignore_index=1), wanted)


@of_each_metric
def test_label_map_says_what_the_labels_mean(metric):
    predicted, target = pair(2)
    found = metric(predicted, target * 10, 3, label_map={0: 0, 10: 1, 20: 2})
    assert torch.equal(found, metric(predicted, target, 3))


@of_each_metric
def test_without_num_classes_label_maps_have_as_many_as_occur(metric):
    predicted, target = pair(2)
    assert torch.equal(metric(predicted, target), metric(predicted, target, 3))
    far = target.masked_fill(target == 2, 4)
    assert metric(predicted, far).shape == (2, 5)


@of_each_metric
def test_more_classes_than_bytes_hold_have_their_results(metric):
    predicted, target = pair(2)
    wanted = metric(predicted, target, 3)
    found = metric(predicted + 253, target + 253, 600)
    assert found.shape == (2, 600)
    assert torch.equal(found[:, 253:256], wanted)
    assert found[:, :253].isnan().all()


@of_each_metric
def test_background_may_be_left_out(metric):
    predicted, target = pair(3)
    wanted = metric(predicted, target, 3)[:, 1:]
    assert torch.equal(metric(predicted, target, 3, include_background=False), wanted)


@of_each_metric
def test_masks_may_overlap(metric):
    generator = torch.Generator().manual_seed(4)
    predicted, target = (torch.rand(2, 3, 6, 7, generator=generator) < 0.4 for _ in range(2))
    found = metric(predicted, target, masks=True)
    for c in range(3):
        wanted = metric(predicted[:, c : c + 1].byte(), target[:, c : c + 1].byte(), 2)[:, 1:]
        assert torch.equal(found[:, c : c + 1], wanted)
    last = [each.movedim(1, -1) for each in (predicted, target)]
    assert torch.equal(metric(*last, masks=True, dim=-1), found)


@of_each_metric
def test_a_voxel_that_one_mask_ignores_is_ignored_in_all(metric):
    generator = torch.Generator().manual_seed(4)
    predicted, target = ((torch.rand(1, 2, 6, 7, generator=generator) < 0.5).byte() for _ in range(2))
    target[0, 1, 2:4, 3] = 255
    everywhere = target.clone()
    everywhere[0, :, 2:4, 3] = 255
    options = {"masks": True, "ignore_index": 255}
    assert torch.equal(metric(predicted, target, **options), metric(predicted, everywhere, **options))


@of_each_metric
def test_threshold_makes_a_mask_of_each_channel(metric):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 3, 6, 7, generator=generator)
    masks = torch.rand(2, 3, 6, 7, generator=generator) < 0.4
    wanted = metric(logits > 0.25, masks, masks=True)
    assert torch.equal(metric(logits, masks, threshold=0.25), wanted)
    labels = torch.randint(3, (2, 1, 6, 7), generator=generator)
    assert torch.equal(metric(logits, labels, threshold=0.0), metric(logits > 0, one_hot(labels), masks=True))
    binary = logits[:, :1], masks[:, :1]
    assert torch.equal(metric(*binary, threshold=0.0), metric(binary[0] > 0, binary[1], masks=True))
    assert torch.equal(metric(binary[0], binary[1][:, 0], threshold=0.0), metric(binary[0] > 0, binary[1], masks=True))


@of_each_metric
def test_no_samples_have_no_results(metric):
    assert metric(torch.zeros(0, 1, 4, 5).byte(), torch.zeros(0, 1, 4, 5).byte(), 3).shape == (0, 3)
    assert metric(torch.zeros(0, 3, 4, 5), torch.zeros(0, 1, 4, 5).byte()).shape == (0, 3)


@of_each_metric
def test_images_without_voxels_have_results_of_nan(metric):
    assert metric(torch.zeros(2, 3, 4, 0), torch.zeros(2, 1, 4, 0).byte()).isnan().all()


@pytest.mark.parametrize("surface", SURFACES)
def test_a_volume_of_one_slice_is_a_volume(surface):
    """All voxels of a slice are boundary, and surfels are on both sides."""
    predicted, target = (each.unsqueeze(2) for each in pair(2))
    rows = distances_of_classes(predicted, target, predicted < 0, (2.0, 1.0, 1.0), surface)
    found = segloss.average_surface_distance(predicted, target, 3, spacing=(2.0, 1.0, 1.0), surface=surface)
    assert_close(found, [[reference.average_surface_distance(d[:1]) for d in row] for row in rows])


@of_each_metric
@pytest.mark.parametrize("surface", SURFACES)
def test_results_have_the_same_bits_for_any_number_of_threads(metric, surface, num_threads):
    predicted, target = blobs(40, 50, 60, seed=1), blobs(40, 50, 60, seed=2)
    found = []
    for threads in (1, 2, 5):
        num_threads(threads)
        found.append(metric(predicted, target, 3, surface=surface, spacing=(0.7, 1.1, 2.3)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@of_each_metric
def test_strides_do_not_matter(metric):
    predicted, target = pair(3)
    wanted = metric(predicted, target, 3)
    transposed = [each.transpose(2, 4).contiguous().transpose(2, 4) for each in (predicted, target)]
    assert torch.equal(metric(*transposed, 3), wanted)


@of_each_metric
def test_results_have_the_default_dtype_and_no_gradient(metric):
    logits = torch.randn(1, 3, 6, 7, requires_grad=True)
    target = torch.randint(3, (1, 1, 6, 7))
    found = metric(logits, target)
    assert found.dtype == torch.get_default_dtype()
    assert not found.requires_grad


# ---- bad arguments ----


@of_each_metric
@pytest.mark.parametrize(
    "spacing",
    [(1.0,), (1.0, 1.0, 1.0, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan), (1.0, math.inf)],
)
def test_spacing_is_one_positive_number_for_each_axis(metric, spacing):
    logits, target = torch.randn(1, 3, 6, 7), torch.randint(3, (1, 1, 6, 7))
    with pytest.raises(ValueError, match=r"one for each spatial axis|one number in spacing for each"):
        metric(logits, target, spacing=spacing)


@of_each_metric
@pytest.mark.parametrize("spacing", [1.0, ("1", "2")])
def test_spacing_is_a_sequence_of_numbers(metric, spacing):
    with pytest.raises(TypeError, match="expected spacing to be a"):
        metric(torch.randn(1, 3, 6, 7), torch.randint(3, (1, 1, 6, 7)), spacing=spacing)


@of_each_metric
def test_label_maps_whose_second_dimension_is_open_are_an_error(metric):
    maps = torch.randint(3, (2, 4, 6, 7))
    with pytest.raises(RuntimeError, match=r"expected label maps \[N, 1, \*\] with size 1 in dimension 1, or spacing"):
        metric(maps, maps, 3)
    assert metric(maps, maps, 3, spacing=(1, 1, 1)).shape == (2, 3)
    assert metric(maps, maps.unsqueeze(1), 3).shape == (2, 3)
    with pytest.raises(RuntimeError, match="of 2 spatial axes"):
        metric(maps, maps, 3, spacing=(1, 1))


@of_each_metric
def test_labels_outside_the_classes_are_an_error(metric):
    maps = torch.randint(3, (1, 1, 6, 7))
    bad = maps.clone()
    bad[0, 0, 2, 3] = 3
    with pytest.raises(IndexError, match="Target 3 is out of bounds"):
        metric(maps, bad, 3)
    with pytest.raises(IndexError, match=r"Predicted label 3 is out of bounds, the first of 1, at index \[0, 2, 3\]"):
        metric(bad, maps, 3)
    with pytest.raises(IndexError, match="Target -1 is out of bounds"):
        metric(maps, bad.masked_fill(bad == 3, -1), 3)


@of_each_metric
def test_maps_of_different_sizes_are_an_error(metric):
    with pytest.raises(RuntimeError, match="expected input and target of one size"):
        metric(torch.zeros(1, 1, 6, 7).byte(), torch.zeros(1, 1, 6, 8).byte(), 2)
    with pytest.raises(RuntimeError, match=r"upsample"):
        metric(torch.zeros(1, 3, 6, 7), torch.zeros(1, 1, 12, 14).byte())


@of_each_metric
def test_one_spatial_axis_is_an_error(metric):
    with pytest.raises(ValueError, match="two or three spatial axes"):
        metric(torch.zeros(1, 3, 6), torch.zeros(1, 1, 6).byte())


@of_each_metric
def test_logits_of_one_channel_need_a_threshold(metric):
    with pytest.raises(ValueError, match="Use threshold for the logits of a sigmoid"):
        metric(torch.zeros(1, 1, 6, 7), torch.zeros(1, 1, 6, 7).byte())


@of_each_metric
def test_masks_of_other_values_are_an_error(metric):
    masks = torch.zeros(1, 2, 6, 7).byte()
    with pytest.raises(RuntimeError, match="expected 0 and 1 in masks, got 2"):
        metric(masks + 2, masks, masks=True)
    with pytest.raises(RuntimeError, match="expected 0 and 1 in an integer target"):
        metric(masks, masks + 2, masks=True)
    with pytest.raises(TypeError, match="expected integer or bool masks with masks=True"):
        metric(masks.float(), masks, masks=True)


@pytest.mark.parametrize("percentile", [0, -1, 100.5, math.nan])
def test_percentile_is_above_0_and_at_most_100(percentile):
    maps = torch.zeros(1, 1, 6, 7).byte()
    with pytest.raises(ValueError, match=r"expected percentile in \(0, 100\]"):
        segloss.hausdorff_distance(maps, maps, percentile=percentile)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf, [1.0, -2.0], [], "1"])
def test_tolerances_are_finite_and_not_negative(tolerance):
    maps = torch.zeros(1, 1, 6, 7).byte()
    with pytest.raises(ValueError, match="expected tolerance to be a finite number from 0 on"):
        segloss.surface_dice(maps, maps, 2, tolerance=tolerance)


def test_there_is_one_tolerance_for_each_class_that_has_a_result():
    maps = torch.zeros(1, 1, 6, 7).byte()
    with pytest.raises(ValueError, match="one for each of the 2 classes that have a result, got 3"):
        segloss.surface_dice(maps, maps, 3, include_background=False, tolerance=[1.0, 1.0, 1.0])


@of_each_metric
def test_unknown_surfaces_are_an_error(metric):
    maps = torch.zeros(1, 1, 6, 7).byte()
    with pytest.raises(ValueError, match="surface"):
        metric(maps, maps, 2, surface="faces")
