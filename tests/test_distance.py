"""distance_transform: exact Euclidean distances, against distances to all voxels one by one, and scipy."""

import numpy as np
import pytest
import reference
import torch
from test_devices import without_kernels

import segloss

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1,), (7,), (130,), (5, 6), (1, 9), (9, 1), (3, 40), (4, 5, 6), (1, 4, 5), (4, 1, 5), (5, 4, 1), (1, 1, 1)]
KINDS = [(of, signed) for of in ("foreground", "boundary") for signed in (False, True)]
EVERY_KIND = pytest.mark.parametrize(("of", "signed"), KINDS)
SPACINGS = (0.7, 2.5, 1.25)


def transform(mask, spacing=None, **options):
    """Of one mask [*]."""
    return segloss.distance_transform(mask[None, None], spacing, **options)[0, 0]


def random_masks(shape):
    """Masks with few, half and almost all voxels inside, with none and with all."""
    return [torch.rand(shape) < share for share in (0.1, 0.5, 0.95, 0.0, 1.0)]


# ---- values ----


@EVERY_KIND
@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_those_to_the_nearest_of_all_voxels(shape, of, signed):
    for mask in random_masks(shape):
        for spacing in ((1.0,) * len(shape), SPACINGS[: len(shape)]):
            actual = transform(mask, spacing, of=of, signed=signed, dtype=torch.float64)
            expected = reference.distance_map(mask, spacing, of, signed)
            torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_steps_are_exact_in_every_dtype(dtype, of, signed):
    for step in (1.0, 0.7):
        mask = torch.rand(9, 10, 11) < 0.9
        exact = step * reference.distance_map(mask, (1.0,) * 3, of, signed)
        actual = transform(mask, (step,) * 3, of=of, signed=signed, dtype=dtype)
        assert actual.dtype == dtype
        assert torch.equal(actual, exact.float().to(dtype) if dtype != torch.float64 else exact)


def test_distances_equal_those_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = torch.rand(20, 30, 50) < 0.97
    expected = torch.from_numpy(ndimage.distance_transform_edt(mask.numpy()))
    assert torch.equal(transform(mask), expected.float())
    expected = torch.from_numpy(ndimage.distance_transform_edt(mask.numpy(), sampling=SPACINGS))
    torch.testing.assert_close(transform(mask, SPACINGS), expected.float(), rtol=2.5e-7, atol=0)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [(700, 40), (3, 900, 17), (1500, 1)])
def test_lines_whose_voxels_are_far_apart(shape, signed):
    """They are measured by the lower envelope of parabolas."""
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = torch.ones(shape, dtype=torch.bool)
    mask.view(-1)[torch.randint(mask.numel() // 16, (40,))] = False
    expected = ndimage.distance_transform_edt(mask.numpy())
    if signed:
        expected = ndimage.distance_transform_edt(~mask.numpy()) - expected
    assert torch.equal(transform(mask, signed=signed), torch.from_numpy(expected).float())


def test_the_end_of_the_image_is_a_boundary():
    mask = torch.ones(5, 5, dtype=torch.bool)
    assert transform(mask, of="boundary").tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 2, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("shape", [(6,), (3, 4), (3, 2, 20)])
def test_nothing_to_measure_to_is_infinitely_far(shape):
    nothing, everything = torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    assert torch.equal(transform(everything), torch.full(shape, torch.inf))
    assert torch.equal(transform(everything, signed=True), torch.full(shape, -torch.inf))
    assert torch.equal(transform(nothing), torch.zeros(shape))
    assert torch.equal(transform(nothing, signed=True), torch.full(shape, torch.inf))
    assert torch.equal(transform(nothing, of="boundary"), torch.full(shape, torch.inf))


def test_zero_has_no_sign():
    signs = torch.signbit(transform(torch.rand(6, 7) < 0.5, of="boundary", signed=True, dtype=torch.float64))
    assert not signs[transform(torch.zeros(6, 7) < 0.5, of="boundary") == 0].any()


# ---- labels ----


@EVERY_KIND
def test_a_map_of_each_class(of, signed):
    labels = torch.randint(4, (2, 1, 5, 6, 7))
    maps = segloss.distance_transform(labels, num_classes=5, of=of, signed=signed)
    assert maps.shape == (2, 5, 5, 6, 7)
    for n in range(2):
        for c in range(5):
            assert torch.equal(maps[n, c], transform(labels[n, 0] == c, of=of, signed=signed))


def test_without_classes_the_foreground_is_all_but_class_0():
    labels = torch.randint(3, (2, 1, 9, 9))
    assert torch.equal(segloss.distance_transform(labels), segloss.distance_transform(labels > 0))


@pytest.mark.parametrize(
    "name", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float64"]
)
def test_labels_of_every_dtype(name):
    labels = torch.randint(3, (2, 1, 9, 9))
    expected = segloss.distance_transform(labels, num_classes=3)
    assert torch.equal(segloss.distance_transform(labels.to(getattr(torch, name)), num_classes=3), expected)


def test_labels_of_any_strides():
    labels = torch.randint(3, (2, 1, 18, 7, 9))
    for view in (
        labels[:, :, ::2],
        labels.movedim(2, -1),
        labels.flip(2)[..., 1:-1],
        labels[:1].expand(3, 1, 18, 7, 9),
    ):
        expected = segloss.distance_transform(view.contiguous(), num_classes=3)
        assert torch.equal(segloss.distance_transform(view, num_classes=3), expected)


def test_labels_without_a_channel():
    labels = torch.randint(3, (2, 5, 6, 7))
    expected = segloss.distance_transform(labels.unsqueeze(1), SPACINGS)
    assert torch.equal(segloss.distance_transform(labels, SPACINGS), expected.squeeze(1))
    expected = segloss.distance_transform(labels.unsqueeze(1)).squeeze(1)
    assert torch.equal(segloss.distance_transform(labels, spatial_dims=3), expected)
    assert torch.equal(
        segloss.distance_transform(labels, SPACINGS, num_classes=3),
        segloss.distance_transform(labels.unsqueeze(1), SPACINGS, num_classes=3),
    )


def test_a_label_map_gives_the_classes():
    labels = torch.tensor([0, 10, 20, 30])[torch.randint(4, (1, 1, 8, 9))]
    actual = segloss.distance_transform(labels, num_classes=2, label_map={10: 1, 20: 1, 30: None, ...: 0})
    classes = torch.where(labels == 30, 7, (labels == 10) | (labels == 20))
    assert torch.equal(actual, segloss.distance_transform(classes, num_classes=2, ignore_index=7))


def test_ignored_voxels_are_of_no_class():
    labels = torch.randint(3, (1, 1, 8, 9))
    ignored = labels == 2
    for signed in (False, True):
        maps = segloss.distance_transform(labels, num_classes=2, ignore_index=2, signed=signed)
        expected = segloss.distance_transform(labels, num_classes=3, signed=signed)[:, :2]
        assert torch.equal(maps, expected)
    assert (segloss.distance_transform(labels, ignore_index=2)[ignored] == 0).all()


@pytest.mark.parametrize("shape", [(12,), (5, 8), (4, 5, 6)])
def test_ignored_neighbours_make_no_boundary(shape):
    labels = torch.randint(3, shape)
    for signed in (False, True):
        actual = transform(labels, of="boundary", signed=signed, ignore_index=2, dtype=torch.float64)
        expected = reference.distance_map(labels == 1, (1.0,) * len(shape), "boundary", signed, labels == 2)
        torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(0, 1, 4, 5), (2, 1, 0, 5), (2, 1, 4, 0), (0, 1, 0)])
def test_no_sample_and_no_voxel(shape):
    labels = torch.zeros(shape, dtype=torch.uint8)
    assert segloss.distance_transform(labels).shape == shape
    assert segloss.distance_transform(labels, num_classes=3).shape == (shape[0], 3, *shape[2:])


# ---- PyTorch ----


@EVERY_KIND
def test_the_number_of_threads_changes_no_bit(of, signed):
    labels = torch.randint(3, (2, 1, 40, 50, 60))
    labels[:, :, 10:30] = 1
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(segloss.distance_transform(labels, SPACINGS, num_classes=3, of=of, signed=signed))
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@EVERY_KIND
@pytest.mark.parametrize("shape", [(9,), (5, 6), (3, 4, 5), (1, 4, 5)])
def test_devices_without_a_kernel(shape, of, signed):
    labels = torch.randint(4, (2, 1, *shape))
    options = {"num_classes": 3, "ignore_index": 3, "of": of, "signed": signed, "dtype": torch.float64}
    for spacing in (None, SPACINGS[: len(shape)]):
        expected = segloss.distance_transform(labels, spacing, **options)
        with without_kernels():
            actual = segloss.distance_transform(labels, spacing, **options)
        torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)
        assert torch.equal(torch.signbit(actual), torch.signbit(expected))


def test_compiled_with_any_sizes():
    compiled = torch.compile(segloss.distance_transform, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 1, 4, 5), (3, 1, 7, 6)):
        labels = torch.randint(3, shape)
        assert torch.equal(
            compiled(labels, num_classes=3, signed=True),
            segloss.distance_transform(labels, num_classes=3, signed=True),
        )


def test_vmap_over_labels():
    labels = torch.randint(3, (4, 2, 1, 5, 6))
    actual = torch.vmap(lambda y: segloss.distance_transform(y, num_classes=3))(labels)
    assert torch.equal(actual, torch.stack([segloss.distance_transform(y, num_classes=3) for y in labels]))


def test_the_operator_keeps_torchs_rules():
    labels = torch.randint(3, (2, 5, 6))
    torch.library.opcheck(
        torch.ops.segloss.distance_transform.default,
        (labels, None, [1.0, 2.0], -100, 3, True, True, torch.float32),
    )


def test_the_memory_is_that_of_the_result():
    """Lines of each thread come on top."""
    labels = torch.randint(2, (1, 1, 64, 64, 64), dtype=torch.uint8)
    with torch.profiler.profile(profile_memory=True) as profile:
        segloss.distance_transform(labels, of="boundary", signed=True)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated <= 1.05 * 4 * labels.numel()


# ---- bad input ----


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spacing_that_is_not_above_0_and_finite(step):
    with pytest.raises(ValueError, match=r"distance_transform: expected a spacing of finite numbers above 0"):
        segloss.distance_transform(torch.zeros(1, 1, 4, 5, dtype=torch.uint8), (1.0, step))


@pytest.mark.parametrize("spacing", [(), (1.0,), (1.0, 1.0, 1.0), (1.0,) * 4])
def test_a_spacing_of_the_wrong_length(spacing):
    with pytest.raises(ValueError, match="expected a spacing of"):
        segloss.distance_transform(torch.zeros(2, 1, 4, 5, dtype=torch.uint8), spacing)


@pytest.mark.parametrize("spacing", [2.0, "12", ("a", "b"), (True, None)])
def test_a_spacing_of_no_numbers(spacing):
    with pytest.raises(TypeError, match="expected spacing"):
        segloss.distance_transform(torch.zeros(2, 1, 4, 5, dtype=torch.uint8), spacing)


def test_numpys_numbers_are_a_spacing():
    labels = torch.randint(2, (2, 1, 4, 5))
    expected = segloss.distance_transform(labels, (1.0, 2.0))
    assert torch.equal(segloss.distance_transform(labels, np.array([1, 2], dtype=np.float32)), expected)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 5), (2, 1), (2, 1, 3, 3, 3, 3), (5,), ()])
def test_labels_whose_axes_could_mean_two_things(shape):
    with pytest.raises(RuntimeError, match=r"expected labels \[N, 1, \*\], .* of one to three spatial axes"):
        segloss.distance_transform(torch.zeros(shape, dtype=torch.uint8))


def test_a_label_that_is_no_class():
    labels = torch.zeros(1, 1, 4, 5, dtype=torch.int64)
    labels[0, 0, 2, 3] = 3
    with pytest.raises(IndexError, match=r"distance_transform: Target 3 is out of bounds.*\[0, 2, 3\]"):
        segloss.distance_transform(labels, num_classes=3)


def test_a_label_that_is_not_integral():
    with pytest.raises(RuntimeError, match="distance_transform"):
        segloss.distance_transform(torch.full((1, 1, 4), 0.5))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"of": "surface"}, ValueError, "expected of to be 'foreground' or 'boundary'"),
        ({"signed": 2}, ValueError, "expected signed"),
        ({"num_classes": 0}, ValueError, "expected num_classes of 1 or more, got 0"),
        ({"num_classes": 2.0}, TypeError, "expected num_classes to be an int"),
        ({"dtype": torch.int64}, TypeError, "expected dtype to be a floating"),
        ({"dtype": torch.float8_e4m3fn}, TypeError, "expected dtype float64, float32, float16 or bfloat16"),
        ({"ignore_index": 0.5}, TypeError, "expected ignore_index"),
    ],
)
def test_a_bad_option(options, error, text):
    with pytest.raises(error, match=f"distance_transform: {text}"):
        segloss.distance_transform(torch.zeros(2, 1, 4, 5, dtype=torch.uint8), **options)


def test_labels_that_are_no_tensor():
    with pytest.raises(TypeError, match="expected labels to be a torch"):
        segloss.distance_transform([[0, 1]])
