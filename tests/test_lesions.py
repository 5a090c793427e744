"""lesion_scores, against the scores of each lesion by itself."""

import itertools
import math

import pytest
import reference
import torch
from test_surface_metrics import blobs

import segloss

pytestmark = pytest.mark.cpu_only

SIZES = {2: (17, 19), 3: (7, 8, 10)}


def spots(*sizes, share=0.12, seed=0):
    """Labels of two classes with many small components."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, 1, *sizes, generator=generator)
    classes = torch.randint(1, 3, (2, 1, *(-(-size // 4) for size in sizes)), generator=generator)
    for axis in range(2, classes.dim()):
        classes = classes.repeat_interleave(4, axis).narrow(axis, 0, sizes[axis - 2])
    return torch.where(noise < share, classes, 0)


def pair(num_axes, seed=0):
    """A prediction that has some voxels of the target, and others."""
    target = spots(*SIZES[num_axes], seed=seed)
    others = spots(*SIZES[num_axes], share=0.05, seed=100 + seed)
    kept = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    return torch.where(kept, target, others), target


def quotient(above, below):
    return above / below if below else math.nan


def expected_scores(lesions, true_components, false_alarms):
    found = sum(lesion[-1] for lesion in lesions)
    total = len(lesions) + false_alarms
    return {
        "precision": quotient(true_components, true_components + false_alarms),
        "recall": quotient(found, len(lesions)),
        "f1": quotient(2 * found, found + total),
        "dice": sum(lesion[3] for lesion in lesions) / total if total else 1.0,
        "found": found,
        "missed": len(lesions) - found,
        "false_alarms": false_alarms,
    }


def assert_equal(scores, tables, first_class=1):
    """Scores and the table of lesions; `tables` are those of the reference, [N][C]."""
    rows = []
    for (n, of_sample), c in itertools.product(enumerate(tables), range(len(tables[0]))):
        for name, value in expected_scores(*of_sample[c]).items():
            actual = getattr(scores, name)[n, c].double()
            torch.testing.assert_close(actual, torch.tensor(float(value)).double(), equal_nan=True, rtol=1e-6, atol=0)
        rows += [(n, first_class + c, *row) for row in of_sample[c][0]]
    assert [(*row[:4], round(row.volume, 9), round(row.dice, 9), row.found) for row in scores.lesions] == [
        (*row[:4], round(row[4], 9), round(row[5], 9), row[6]) for row in rows
    ]


def tables_of(predicted, target, classes=(1, 2), valid=None, **options):
    valid = torch.ones_like(target, dtype=torch.bool) if valid is None else valid
    return [
        [reference.lesion_table((p == c) & v, (t == c) & v, **options) for c in classes]
        for p, t, v in zip(predicted.squeeze(1), target.squeeze(1), valid.squeeze(1), strict=True)
    ]


# ---- values ----


@pytest.mark.parametrize("dilation", [0, 1, 2])
@pytest.mark.parametrize("overlap", ["any", 0.1, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("num_axes", [2, 3])
def test_scores_are_those_of_each_lesion_by_itself(num_axes, overlap, dilation):
    predicted, target = pair(num_axes)
    for connectivity in (1, num_axes):
        options = {"overlap": overlap, "dilation": dilation, "connectivity": connectivity}
        assert_equal(segloss.lesion_scores(predicted, target, **options), tables_of(predicted, target, **options))


@pytest.mark.parametrize("dilation", [0, 1])
def test_small_lesions_and_what_matches_only_them_are_left_out(dilation):
    predicted, target = pair(3, seed=1)
    options = {"spacing": (2.0, 1.0, 0.5), "min_volume": 2.0, "dilation": dilation}
    wanted = tables_of(predicted, target, min_volume=2.0, voxel=1.0, dilation=dilation, connectivity=3)
    assert_equal(segloss.lesion_scores(predicted, target, **options), wanted)
    assert any(row[1] > 2 for of_sample in wanted for rows, _, _ in of_sample for row in rows)


def brats_dice(predicted, target, dilation, least_volume):
    """As BraTS 2023 defines it, by scipy."""
    ndimage = pytest.importorskip("scipy.ndimage")
    all_neighbours, dilating = (ndimage.generate_binary_structure(3, k) for k in (3, 2))
    grown = ndimage.binary_dilation(target, dilating, iterations=dilation) if dilation else target
    lesions, count = ndimage.label(grown, all_neighbours)
    lesions = lesions * target
    parts, num_parts = ndimage.label(predicted, all_neighbours)
    scores, matching = [], set()
    for k in range(1, count + 1):
        lesion = lesions == k
        around = ndimage.binary_dilation(lesion, dilating, iterations=dilation) if dilation else lesion
        meeting = set((parts * around).ravel().tolist()) - {0}
        matching |= meeting
        whole = sum((parts == j for j in meeting), start=lesion & False)
        if lesion.sum() > least_volume:
            scores.append(2 * (whole & lesion).sum() / (whole.sum() + lesion.sum()))
    total = len(scores) + num_parts - len(matching)
    return sum(scores) / total if total else 1.0


@pytest.mark.parametrize(("dilation", "least_volume"), [(0, 0), (1, 2), (3, 50), (3, 10)])
def test_dice_is_that_of_brats(dilation, least_volume):
    for seed in range(3):
        target, predicted = ((blobs(20, 24, 28, seed=seed + k) == 1).float() for k in (0, 50))
        predicted = torch.where(torch.rand(target.shape) < 0.5, predicted, target) > 0.5
        target = target > 0.5
        actual = segloss.lesion_scores(predicted, target, 2, dilation=dilation, min_volume=least_volume).dice
        for n in range(2):
            expected = brats_dice(predicted[n, 0].numpy(), target[n, 0].numpy(), dilation, least_volume)
            torch.testing.assert_close(actual[n, 0].item(), expected, rtol=1e-6, atol=0)


def test_by_hand():
    target = torch.tensor([[[[1, 1, 0, 0, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0, 0]]]])
    predicted = torch.tensor([[[[1, 0, 0, 0, 0, 0, 1, 1], [1, 0, 0, 1, 0, 0, 0, 0]]]])
    scores = segloss.lesion_scores(predicted, target, connectivity=1)
    assert [tuple(lesion)[2:] for lesion in scores.lesions] == [
        (1, 4, 4.0, pytest.approx(2 * 2 / 6), True),
        (2, 1, 1.0, 0.0, False),
        (3, 1, 1.0, pytest.approx(2 / 3), True),
    ]
    assert (scores.found.item(), scores.missed.item(), scores.false_alarms.item()) == (2, 1, 1)
    for name, value in {"precision": 2 / 3, "recall": 2 / 3, "f1": 4 / 6, "dice": (2 / 3 + 2 / 3) / 4}.items():
        assert getattr(scores, name).item() == pytest.approx(value)


def test_one_component_finds_two_lesions_only_without_a_threshold():
    target = torch.tensor([[[[1, 1, 0, 1, 1]]]])
    predicted = torch.ones_like(target)
    assert segloss.lesion_scores(predicted, target).found.item() == 2
    one_to_one = segloss.lesion_scores(predicted, target, overlap=0.4)
    assert (one_to_one.found.item(), one_to_one.missed.item(), one_to_one.false_alarms.item()) == (1, 1, 0)
    assert one_to_one.lesions[0].found  # the first of two equal ones
    assert segloss.lesion_scores(predicted, target, overlap=0.41).found.item() == 0


def test_dilation_joins_lesions_that_are_near():
    target = torch.tensor([[[[1, 1, 0, 1, 0, 0, 0, 0, 1]]]])
    lesions = segloss.lesion_scores(target, target, dilation=1).lesions
    assert [(lesion.component, lesion.size, lesion.dice) for lesion in lesions] == [(1, 3, 1.0), (2, 1, 1.0)]


def test_dilation_lets_a_component_beside_the_lesion_match():
    target = torch.tensor([[[[1, 1, 0, 0, 0]]]])
    predicted = torch.tensor([[[[0, 0, 1, 0, 0]]]])
    beside = segloss.lesion_scores(predicted, target, dilation=1)
    assert beside.lesions[0].found
    assert beside.lesions[0].dice == 0
    assert beside.false_alarms.item() == 0


@pytest.mark.parametrize("dilation", [0, 1])
def test_nothing_to_count(dilation):
    nothing = torch.zeros(2, 1, 4, 5, 6, dtype=torch.uint8)
    scores = segloss.lesion_scores(nothing, nothing, 2, dilation=dilation)
    for name in ("precision", "recall", "f1"):
        assert getattr(scores, name).isnan().all()
    assert (scores.dice == 1).all()
    assert scores.lesions == ()
    missed = segloss.lesion_scores(nothing, 1 - nothing, 2, dilation=dilation)
    assert (missed.recall == 0).all()
    assert missed.precision.isnan().all()
    alarm = segloss.lesion_scores(1 - nothing, nothing, 2, dilation=dilation)
    assert (alarm.precision == 0).all()
    assert alarm.recall.isnan().all()
    assert (alarm.dice == 0).all()


def test_thousands_of_lesions_of_one_voxel():
    target = torch.zeros(1, 1, 40, 40, 40, dtype=torch.uint8)
    target[..., ::2, ::2, ::2] = 1
    predicted = target.clone()
    predicted[..., :20, :, :] = 0
    scores = segloss.lesion_scores(predicted, target)
    assert (scores.found.item(), scores.missed.item(), scores.false_alarms.item()) == (4000, 4000, 0)
    assert scores.dice.item() == 0.5


# ---- what comes in ----


def test_logits():
    predicted, target = pair(3)
    logits = torch.nn.functional.one_hot(predicted.squeeze(1), 3).movedim(-1, 1) + 0.1 * torch.rand(2, 3, *SIZES[3])
    from_labels, from_logits = (segloss.lesion_scores(each, target, 3) for each in (predicted, logits))
    for name in ("precision", "recall", "f1", "dice"):
        torch.testing.assert_close(getattr(from_labels, name), getattr(from_logits, name), equal_nan=True)
    assert from_labels.lesions == from_logits.lesions


def test_ignored_voxels_are_in_no_lesion_and_no_component():
    predicted, target = pair(3)
    valid = torch.rand(target.shape) < 0.8
    for dilation in (0, 1):
        wanted = tables_of(predicted, target, valid=valid, dilation=dilation, connectivity=3)
        for ignored in (-100, 255, 1000):
            labels = target.int().masked_fill(~valid, ignored)
            scores = segloss.lesion_scores(predicted, labels, 3, ignore_index=ignored, dilation=dilation)
            assert_equal(scores, wanted)


def test_a_label_map_and_many_classes():
    predicted, target = pair(2)
    wanted = tables_of(predicted, target, connectivity=2)
    names = {0: 0, 10: 1, 300: 2}
    labels = torch.tensor(list(names))[target]
    assert_equal(segloss.lesion_scores(predicted, labels, 3, label_map=names), wanted)
    many = segloss.lesion_scores(300 * predicted.int(), 300 * target.int(), connectivity=2)
    assert many.dice.shape == (2, 600)
    assert torch.equal(many.found[:, [299, 599]], segloss.lesion_scores(predicted, target).found)
    assert {lesion.class_index for lesion in many.lesions} == {300, 600}


def test_background_is_a_class_if_it_is_included():
    predicted, target = pair(2)
    scores = segloss.lesion_scores(predicted, target, include_background=True)
    assert_equal(scores, tables_of(predicted, target, classes=(0, 1, 2), connectivity=2), first_class=0)


def test_masks():
    predicted, target = pair(3)
    masks = [torch.cat([each == 1, each > 0], 1) for each in (predicted, target)]
    scores = segloss.lesion_scores(*masks, masks=True, include_background=True)
    tables = [
        [reference.lesion_table(masks[0][n, c], masks[1][n, c], connectivity=3) for c in range(2)] for n in range(2)
    ]
    assert_equal(scores, tables, first_class=0)
    assert_equal(segloss.lesion_scores(*masks, masks=True), [each[1:] for each in tables])


def test_a_threshold():
    predicted, target = pair(3)
    logits = torch.where(predicted == 1, 2.0, -2.0)
    scores = segloss.lesion_scores(logits, (target == 1).byte(), threshold=0.0, include_background=True)
    assert_equal(scores, tables_of(predicted, target, classes=(1,), connectivity=3), first_class=0)


@pytest.mark.parametrize("shape", [(0, 1, 4, 5), (2, 1, 0, 5), (2, 1, 4, 5, 0)])
def test_no_sample_and_no_voxel(shape):
    for dilation in (0, 1):
        scores = segloss.lesion_scores(
            *(torch.zeros(shape, dtype=torch.uint8),) * 2, 3, dilation=dilation, include_background=True
        )
        assert scores.f1.shape == (shape[0], 3)
        assert scores.found.dtype == torch.int64


def test_the_number_of_threads_changes_nothing():
    predicted, target = (spots(40, 50, 60, share=0.3, seed=seed) for seed in range(2))
    results = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(segloss.lesion_scores(predicted, target))
        torch.set_num_threads(before)
    assert results[0].lesions == results[1].lesions
    assert torch.equal(results[0].f1, results[1].f1)


# ---- bad input ----


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"connectivity": 0}, ValueError, "expected connectivity of 1 or more, or None"),
        ({"connectivity": 3}, ValueError, r"expected connectivity in \[1, 2\]"),
        ({"connectivity": 1.5}, TypeError, "expected connectivity to be an int"),
        ({"overlap": "all"}, ValueError, "expected overlap to be 'any' or a number"),
        ({"overlap": 0}, ValueError, "expected overlap to be 'any' or a number"),
        ({"overlap": 1.5}, ValueError, "expected overlap to be 'any' or a number"),
        ({"overlap": math.nan}, ValueError, "expected overlap to be 'any' or a number"),
        ({"overlap": None}, TypeError, "expected overlap to be a float"),
        ({"dilation": -1}, ValueError, "expected dilation of 0 or more"),
        ({"dilation": 1.0}, TypeError, "expected dilation to be an int"),
        ({"min_volume": -1.0}, ValueError, "expected min_volume to be finite, 0 or more"),
        ({"min_volume": math.inf}, ValueError, "expected min_volume to be finite, 0 or more"),
        ({"spacing": (1.0, 0.0)}, ValueError, "expected a spacing of finite numbers above 0"),
        ({"include_background": 2}, ValueError, "expected include_background"),
        ({"masks": True}, ValueError, "expected include_background=True with a single mask"),
    ],
)
def test_a_bad_option(options, error, text):
    labels = torch.zeros(2, 1, 4, 5, dtype=torch.uint8)
    with pytest.raises(error, match=f"lesion_scores: {text}"):
        segloss.lesion_scores(labels, labels, **options)


@pytest.mark.parametrize("dilation", [0, 1])
def test_a_label_that_is_no_class(dilation):
    good, bad = torch.zeros(1, 1, 4, 5, dtype=torch.uint8), torch.full((1, 1, 4, 5), 3, dtype=torch.uint8)
    with pytest.raises(IndexError, match="lesion_scores: Target 3 is out of bounds"):
        segloss.lesion_scores(good, bad, 3, dilation=dilation)
    with pytest.raises(IndexError, match="lesion_scores: Predicted label 3 is out of bounds"):
        segloss.lesion_scores(bad, good, 3, dilation=dilation)


@pytest.mark.parametrize(("first", "second"), [(torch.int64, torch.int32), (torch.int32, torch.float32)])
def test_pairs_are_of_int32_maps(first, second):
    with pytest.raises(TypeError, match="component_pairs: expected int32 components, got"):
        torch.ops.segloss.component_pairs(torch.zeros(3, dtype=first), torch.zeros(3, dtype=second))


def test_pairs_are_of_maps_of_one_shape():
    with pytest.raises(RuntimeError, match=r"component_pairs: expected components of one shape, got \[3\] and \[4\]"):
        torch.ops.segloss.component_pairs(*(torch.zeros(size, dtype=torch.int32) for size in (3, 4)))


def test_pairs_have_the_position_of_their_first_voxel():
    first, second = (
        torch.tensor(each, dtype=torch.int32) for each in ([[0, 2, 2, 0], [0, 1, 2, 0]], [[0, 0, 5, 5]] * 2)
    )
    rows = torch.ops.segloss.component_pairs(first, second)
    assert rows.tolist() == [[0, 5, 2, 3], [1, 0, 1, 5], [2, 0, 1, 1], [2, 5, 2, 2]]
