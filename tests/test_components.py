"""connected_components, against a flood from each voxel, and scipy."""

import pytest
import reference
import torch
from test_devices import without_kernels

import segloss

SHAPES = [(1,), (7,), (130,), (5, 6), (1, 9), (9, 1), (3, 70), (4, 5, 6), (1, 4, 5), (4, 1, 5), (5, 4, 1), (3, 4, 65)]
SHAPES_AND_CONNECTIVITIES = [(shape, c) for shape in SHAPES for c in range(1, len(shape) + 1)]
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float64"]
BOTH = pytest.mark.parametrize("per_class", [False, True])


def components(classes, **options):
    """Of one map [*]."""
    labels, counts = segloss.connected_components(classes[None, None], **options)
    assert labels.dtype == torch.int32
    assert counts.dtype == torch.int64
    assert labels.shape == (1, 1, *classes.shape)
    return labels[0, 0], counts.item()


def assert_components(classes, expected, count, **options):
    labels, actual_count = components(classes, **options)
    assert torch.equal(labels.long(), expected)
    assert actual_count == count


def random_map(shape, share, num_classes=3):
    return torch.randint(1, num_classes + 1, shape) * (torch.rand(shape) < share)


# ---- values ----


@BOTH
@pytest.mark.parametrize(("shape", "connectivity"), SHAPES_AND_CONNECTIVITIES)
def test_components_are_those_that_a_flood_reaches(shape, connectivity, per_class):
    for share in (0.1, 0.4, 0.7, 0.95):
        classes = random_map(shape, share, 2)
        expected = reference.components(classes, connectivity, per_class)
        assert_components(classes, *expected, connectivity=connectivity, per_class=per_class)


@pytest.mark.parametrize("shape", [(900, 700), (64, 60, 130), (3, 400, 401)])
def test_large_maps_equal_scipys(shape):
    """They are cut into slabs, whose seams are united."""
    ndimage = pytest.importorskip("scipy.ndimage")
    for share in (0.02, 0.3, 0.5, 0.7):
        mask = torch.rand(shape) < share
        for connectivity in range(1, len(shape) + 1):
            structure = ndimage.generate_binary_structure(len(shape), connectivity)
            expected, count = ndimage.label(mask.numpy(), structure)
            assert_components(mask, torch.from_numpy(expected).long(), count, connectivity=connectivity)


def test_classes_of_a_large_map_are_apart():
    """As in the components of each class by itself."""
    classes = random_map((40, 90, 70), 0.8)
    together, count = components(classes, per_class=True, connectivity=2)
    numbers = [components(classes == c, connectivity=2) for c in range(1, 4)]
    assert count == sum(each_count for _, each_count in numbers)
    for c, (alone, each_count) in enumerate(numbers, 1):
        pairs = torch.stack([alone, together])[:, classes == c].unique(dim=1)
        assert pairs.shape[1] == each_count
    first_voxels = [(together == k).flatten().byte().argmax().item() for k in range(1, 30)]
    assert first_voxels == sorted(first_voxels)


@pytest.mark.parametrize("shape", [(6,), (3, 4), (3, 2, 80)])
def test_none_and_all_voxels_of_the_foreground(shape):
    nothing, everything = torch.zeros(shape, dtype=torch.uint8), torch.ones(shape, dtype=torch.uint8)
    assert_components(nothing, nothing.long(), 0)
    assert_components(everything, everything.long(), 1)


@pytest.mark.parametrize(("connectivity", "count"), [(1, 64 * 64 * 64 // 2), (2, 1), (3, 1)])
def test_a_checkerboard(connectivity, count):
    axes = [torch.arange(64).view(-1, *(1,) * k) for k in range(3)]
    board = (axes[0] + axes[1] + axes[2]) % 2 == 1
    labels, actual = components(board, connectivity=connectivity)
    assert actual == count
    if connectivity == 1:
        assert torch.equal(labels[board], torch.arange(1, count + 1, dtype=torch.int32))


def test_a_spiral_that_meets_itself_last():
    spiral = torch.tensor(
        [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 0, 1], [1, 0, 0, 1, 0, 1], [1, 0, 0, 0, 0, 1], [1] * 6]
    )
    assert_components(spiral, spiral, 1)


def test_each_sample_has_its_own_numbers():
    maps = torch.stack([random_map((9, 70), share) for share in (0.3, 0.0, 1.0, 0.6)]).unsqueeze(1)
    labels, counts = segloss.connected_components(maps)
    for n in range(4):
        expected, count = reference.components(maps[n, 0], 1)
        assert torch.equal(labels[n, 0].long(), expected)
        assert counts[n] == count


# ---- labels ----


@BOTH
@pytest.mark.parametrize("name", DTYPES)
def test_labels_of_every_dtype(name, per_class):
    classes = random_map((9, 70), 0.6)
    expected = reference.components(classes, 2, per_class)
    assert_components(classes.to(getattr(torch, name)), *expected, connectivity=2, per_class=per_class)


@BOTH
def test_labels_of_any_strides(per_class):
    labels = random_map((2, 1, 18, 7, 9), 0.6)
    for view in (
        labels[:, :, ::2],
        labels.movedim(2, -1),
        labels.flip(2)[..., 1:-1],
        labels[:1].expand(3, 1, 18, 7, 9),
    ):
        expected = segloss.connected_components(view.contiguous(), per_class=per_class)
        for actual, each in zip(segloss.connected_components(view, per_class=per_class), expected, strict=True):
            assert torch.equal(actual, each)


def test_labels_without_a_channel():
    labels = random_map((2, 5, 6, 7), 0.4)
    components, counts = segloss.connected_components(labels, spatial_dims=3)
    expected, expected_counts = segloss.connected_components(labels.unsqueeze(1))
    assert torch.equal(components, expected.squeeze(1))
    assert torch.equal(counts, expected_counts)


def test_spatial_dims_tell_a_slice_from_a_channel():
    labels = random_map((2, 1, 6, 7), 0.5)
    assert torch.equal(
        segloss.connected_components(labels, spatial_dims=3, connectivity=3).labels,
        segloss.connected_components(labels, connectivity=2).labels,
    )


def test_a_label_map_gives_the_classes():
    labels = torch.tensor([0, 10, 20, 30])[torch.randint(4, (1, 1, 8, 9))]
    for per_class in (False, True):
        actual = segloss.connected_components(
            labels, per_class=per_class, label_map={10: 1, 20: 2, 30: None, ...: 0}
        ).labels
        classes = torch.where(labels == 30, 0, labels // 10)
        assert torch.equal(actual, segloss.connected_components(classes, per_class=per_class).labels)


@BOTH
def test_ignored_voxels_are_of_no_component(per_class):
    labels = torch.randint(4, (1, 1, 8, 70), dtype=torch.int16)
    expected = segloss.connected_components(labels.masked_fill(labels == 2, 0), per_class=per_class)
    for ignored in (2, -100):
        ignoring = labels.masked_fill(labels == 2, ignored)
        actual = segloss.connected_components(ignoring, per_class=per_class, ignore_index=ignored)
        assert torch.equal(actual.labels, expected.labels)
        assert torch.equal(actual.counts, expected.counts)


def test_an_ignored_voxel_joins_nothing():
    labels = torch.tensor([[[1, 255, 1]]], dtype=torch.uint8)
    components, counts = segloss.connected_components(labels, ignore_index=255)
    assert components.tolist() == [[[1, 0, 2]]]
    assert counts.item() == 2


@pytest.mark.parametrize("shape", [(0, 1, 4, 5), (2, 1, 0, 5), (2, 1, 4, 0), (0, 1, 0)])
def test_no_sample_and_no_voxel(shape):
    labels, counts = segloss.connected_components(torch.zeros(shape, dtype=torch.uint8))
    assert labels.shape == shape
    assert counts.tolist() == [0] * shape[0]


# ---- PyTorch ----


@BOTH
def test_the_number_of_threads_changes_nothing(per_class):
    labels = random_map((2, 1, 40, 50, 130), 0.6)
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(segloss.connected_components(labels, per_class=per_class).labels)
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@BOTH
def test_devices_without_a_kernel(per_class):
    labels = random_map((2, 1, 5, 6, 7), 0.5)
    options = {"per_class": per_class, "label_map": {1: 1, 2: 0, 3: None, 0: 2}}
    expected = segloss.connected_components(labels, **options)
    with without_kernels():
        actual = segloss.connected_components(labels, **options)
    assert torch.equal(actual.labels, expected.labels)
    assert torch.equal(actual.counts, expected.counts)


def test_compiled_with_any_sizes():
    compiled = torch.compile(segloss.connected_components, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 1, 4, 5), (3, 1, 7, 6)):
        labels = random_map(shape, 0.5)
        actual, expected = compiled(labels, connectivity=2), segloss.connected_components(labels, connectivity=2)
        assert torch.equal(actual.labels, expected.labels)
        assert torch.equal(actual.counts, expected.counts)


def test_vmap_over_labels():
    labels = random_map((4, 2, 1, 5, 6), 0.5)
    actual = torch.vmap(lambda y: tuple(segloss.connected_components(y)))(labels)
    for k, result in enumerate(actual):
        assert torch.equal(result, torch.stack([segloss.connected_components(y)[k] for y in labels]))


def test_the_operator_keeps_torchs_rules():
    torch.library.opcheck(
        torch.ops.segloss.connected_components.default, (torch.randint(3, (2, 5, 6)), None, 2, -100, True)
    )


# ---- bad input ----


@pytest.mark.parametrize("connectivity", [-1, 0, 3, 2**40])
def test_a_connectivity_beyond_the_axes(connectivity):
    with pytest.raises(ValueError, match=r"connected_components: expected connectivity in \[1, 2\] .* got"):
        segloss.connected_components(torch.zeros(2, 1, 4, 5, dtype=torch.uint8), connectivity=connectivity)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 5), (2, 1), (2, 1, 3, 3, 3, 3), (5,), ()])
def test_labels_whose_axes_could_mean_two_things(shape):
    with pytest.raises(RuntimeError, match=r"expected labels \[N, 1, \*\], .* Use labels\.unsqueeze\(1\)"):
        segloss.connected_components(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("spatial_dims", [-1, 0, 1, 2, 5])
def test_spatial_dims_that_labels_do_not_have(spatial_dims):
    with pytest.raises(RuntimeError, match=rf"expected labels \[N, 1, \*\], .* and spatial_dims={spatial_dims}"):
        segloss.connected_components(torch.zeros(2, 3, 4, 5, dtype=torch.uint8), spatial_dims=spatial_dims)


@pytest.mark.parametrize("bad", [-1, 2**31])
def test_a_label_that_is_no_class(bad):
    labels = torch.zeros(1, 1, 4, 5, dtype=torch.int64)
    labels[0, 0, 2, 3] = bad
    with pytest.raises(IndexError, match=rf"connected_components: Target {bad} is out of bounds.*\[0, 2, 3\]"):
        segloss.connected_components(labels)


def test_a_label_that_is_not_integral():
    with pytest.raises(RuntimeError, match="connected_components"):
        segloss.connected_components(torch.full((1, 1, 4), 0.5))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"connectivity": 1.0}, TypeError, "expected connectivity to be an int"),
        ({"per_class": 2}, ValueError, "expected per_class"),
        ({"spatial_dims": "2"}, TypeError, "expected spatial_dims to be an int"),
        ({"ignore_index": 0.5}, TypeError, "expected ignore_index"),
    ],
)
def test_a_bad_option(options, error, text):
    with pytest.raises(error, match=f"connected_components: {text}"):
        segloss.connected_components(torch.zeros(2, 1, 4, 5, dtype=torch.uint8), **options)


def test_labels_that_are_no_tensor():
    with pytest.raises(TypeError, match="expected labels to be a torch"):
        segloss.connected_components([[0, 1]])
