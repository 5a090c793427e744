"""SegmentationReport: counts, scores, surfaces, summaries, several ranks, and the files that it writes."""

import csv
import json
import math
import re
import sys
import tracemalloc
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import segloss
from segloss import SegmentationReport

SURFACES = {
    "hausdorff_distance": lambda *args, **options: segloss.hausdorff_distance(*args, **options),
    "hausdorff_distance_95": lambda *args, **options: segloss.hausdorff_distance(*args, percentile=95, **options),
    "average_surface_distance": lambda *args, **options: segloss.average_surface_distance(*args, **options),
    "average_symmetric_surface_distance": lambda *args, **options: segloss.average_surface_distance(
        *args, symmetric=True, **options
    ),
    "surface_dice": lambda *args, **options: segloss.surface_dice(*args, tolerance=1.5, **options),
}
LESIONS = {f"lesion_{name}": name for name in ("precision", "recall", "f1", "dice")}
LESIONS |= {"lesions_found": "found", "lesions_missed": "missed", "false_alarms": "false_alarms"}
REGIONS = {"whole": (1, 2, 3), "core": (3, 1)}


def batch(size=2, shape=(5, 6, 7), classes=4, seed=0):
    """Predicted classes and labels [N, 1, *], uint8, with 255 ignored."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    labels = torch.randint(classes, (size, 1, *shape), generator=generator, dtype=torch.uint8, device="cpu")
    others = torch.randint(classes, labels.shape, generator=generator, dtype=torch.uint8, device="cpu")
    predicted = torch.where(torch.rand(labels.shape, generator=generator, device="cpu") < 0.7, labels, others)
    labels[torch.rand(labels.shape, generator=generator, device="cpu") < 0.1] = 255
    device = torch.get_default_device()
    return predicted.to(device), labels.to(device)


def counted(predicted, labels, members, ignored=(255,)):
    """TP, FP, FN and TN of one sample, voxel by voxel."""
    counts = [0, 0, 0, 0]
    for p, y in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if y not in ignored:
            counts[{(True, True): 0, (True, False): 1, (False, True): 2}.get((p in members, y in members), 3)] += 1
    return counts


def counts_of(numbers):
    return [numbers[name] for name in ("tp", "fp", "fn", "tn")]


def of_cases(**options):
    """A report on five cases, of which one lacks class 1, one has it in the labels alone, one in neither."""
    report = SegmentationReport(4, ignore_index=255, **options)
    for seed in range(5):
        predicted, labels = batch(1, seed=seed)
        if seed in (1, 2):
            predicted[predicted == 1] = 0
        if seed == 2:
            labels[labels == 1] = 0
        report.update(predicted, labels, ids=[f"case_{seed}"])
    return report


ALL = {"surface_metrics": list(SURFACES), "tolerance": 1.5, "regions": REGIONS}


# ---- counts and scores ----


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int64])
@pytest.mark.parametrize("with_channel", [True, False])
def test_counts_are_those_of_a_loop_over_the_voxels(dtype, with_channel):
    predicted, labels = batch()
    report = SegmentationReport(4, regions=REGIONS, ignore_index=255, include_background=True)
    given = [each.to(dtype) if with_channel else each.squeeze(1).to(dtype) for each in (predicted, labels)]
    report.update(*given, ids=["a", "b"])
    members = {str(c): (c,) for c in range(4)} | REGIONS
    for n, case in enumerate(("a", "b")):
        for name, classes in members.items():
            assert counts_of(report.cases()[case][name]) == counted(predicted[n], labels[n], classes)


def test_logits_count_as_their_argmax():
    predicted, labels = batch()
    logits = torch.nn.functional.one_hot(predicted.squeeze(1).long(), 4).movedim(-1, 1).float()
    reports = [SegmentationReport(4, ignore_index=255, **ALL) for _ in range(2)]
    for report, prediction in zip(reports, (predicted, logits), strict=True):
        report.update(prediction, labels)
    assert reports[0].to_dict() == reports[1].to_dict()


def test_labels_are_read_by_the_label_map():
    predicted, labels = batch()
    label_map = {0: 0, 1: 2, 2: 1, 3: 3, ...: None}
    report = SegmentationReport(4, label_map=label_map, ignore_index=())
    report.update(predicted, labels)
    mapped = labels.clone()
    for label, c in ((1, 2), (2, 1)):
        mapped[labels == label] = c
    for c in (1, 2, 3):
        assert counts_of(report.cases()[0][str(c)]) == counted(predicted[0], mapped[0], (c,))


def test_scores_follow_from_the_counts():
    report = SegmentationReport(2)
    labels = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    report.update(torch.tensor([[1, 1, 0, 0, 1, 0, 0, 0]]), labels)
    expected = {"dice": 4 / 7, "iou": 2 / 5, "precision": 2 / 3, "recall": 2 / 4}
    assert expected.items() <= report.cases()[0]["1"].items()


def test_a_score_of_nothing_is_nan():
    zeros, ones = torch.zeros(1, 8, dtype=torch.uint8), torch.ones(1, 8, dtype=torch.uint8)
    report = SegmentationReport(2)
    report.update(torch.cat([zeros, ones, zeros]), torch.cat([zeros, zeros, ones]), ids=["none", "extra", "missed"])
    scores = {case: [of["1"][name] for name in ("dice", "precision", "recall")] for case, of in report.cases().items()}
    assert scores["extra"][:2] == [0, 0]
    assert math.isnan(scores["extra"][2])
    assert scores["missed"][::2] == [0, 0]
    assert math.isnan(scores["missed"][1])
    assert all(map(math.isnan, scores["none"]))


def test_volumes_are_in_the_unit_of_the_spacing_of_each_sample():
    predicted, labels = batch()
    report = SegmentationReport(4, ignore_index=255, spacing=(9, 9, 9))
    report.update(predicted, labels, spacing=[(1, 1, 1), (0.5, 2, 3)])
    report.update(predicted[:1], labels[:1], ids=["of the report"])
    for case, volume in zip(report.cases().values(), (1, 3, 729), strict=True):
        tp, fp, fn, _ = counts_of(case["2"])
        assert case["2"]["predicted_volume"] == volume * (tp + fp)
        assert case["2"]["reference_volume"] == volume * (tp + fn)
        assert case["2"]["volume_difference"] == volume * (fp - fn)


def test_counts_beyond_float32_are_exact():
    labels = torch.zeros(1, 1, 2**24 + 3, dtype=torch.uint8)
    labels[..., 0] = 1
    report = SegmentationReport(2)
    report.update(labels, labels)
    assert counts_of(report.cases()[0]["1"]) == [1, 0, 0, 2**24 + 2]


def test_no_sample_and_no_row_are_no_error():
    report = SegmentationReport(2, surface_metrics=["hausdorff_distance"])
    report.update(torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0, 1, 4, 4, dtype=torch.uint8))
    assert len(report) == 0
    assert report.summary()["1"]["dice"].cases == 0
    assert "0 cases" in str(report)


# ---- surfaces and lesions ----


@pytest.mark.parametrize("surface", ["voxels", "surfels"])
@pytest.mark.parametrize("spacing", [None, (1.0, 0.5, 2.0)])
def test_surface_metrics_are_those_of_the_functions(surface, spacing):
    torch.set_default_dtype(torch.float64)
    try:
        predicted, labels = batch()
        report = SegmentationReport(4, surface=surface, ignore_index=255, **ALL)
        report.update(predicted, labels, spacing=spacing)
        options = {"surface": surface, "spacing": spacing, "include_background": False, "ignore_index": 255}
        for name, metric in SURFACES.items():
            expected = metric(predicted, labels, 4, **options)
            for region in REGIONS.values():
                masks = [
                    torch.isin(each, torch.tensor(region, dtype=torch.uint8)).byte() for each in (predicted, labels)
                ]
                masks[1][labels == 255] = 255
                expected = torch.cat([expected, metric(*masks, 2, **options)], 1)
            got = torch.tensor([[of[name] for of in case.values()] for case in report.cases().values()])
            assert torch.equal(got, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_each_sample_of_a_batch_has_a_spacing_of_its_own():
    predicted, labels = batch()
    spacings = [(1.0, 1.0, 1.0), (1.0, 2.0, 0.3)]
    whole, single = (SegmentationReport(4, ignore_index=255, **ALL) for _ in range(2))
    whole.update(predicted, labels, spacing=spacings)
    for n, spacing in enumerate(spacings):
        single.update(predicted[n : n + 1], labels[n : n + 1], spacing=spacing)
    assert whole.to_dict() == single.to_dict()


def test_spacings_may_be_a_tensor_as_a_loader_makes_them():
    predicted, labels = batch()
    reports = [SegmentationReport(4, ignore_index=255) for _ in range(2)]
    spacing = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 0.5]])
    reports[0].update(predicted, labels, spacing=spacing)
    reports[1].update(predicted, labels, spacing=spacing.tolist())
    assert reports[0].to_dict() == reports[1].to_dict()
    with pytest.raises(TypeError, match="expected spacing to be a float"):  # a loader's list of axes, not of samples
        reports[0].update(predicted, labels, ids=["a", "b"], spacing=list(spacing.T))


@pytest.mark.parametrize("missing", ["prediction", "labels"])
def test_a_class_that_one_of_both_lacks_is_infinitely_far_also_by_the_percentile(missing):
    predicted, labels = batch(1)
    lacks = predicted if missing == "prediction" else labels
    lacks[lacks == 1] = 0
    report = SegmentationReport(4, ignore_index=255, **ALL)
    report.update(predicted, labels)
    numbers = report.cases()[0]["1"]
    assert [numbers[name] for name in SURFACES] == [math.inf] * 4 + [0]


def test_many_classes_are_measured_as_few_are():
    predicted, labels = batch()
    few, many = (SegmentationReport(c, ignore_index=255, **ALL | {"regions": {"whole": (1, 2)}}) for c in (4, 300))
    few.update(predicted, labels)
    many.update(predicted.to(torch.uint16), labels.to(torch.int64))
    of_few, of_many = (report.cases()[1] for report in (few, many))
    assert all(of_many[name] == of_few[name] for name in of_few)


def test_a_prediction_outside_the_classes_is_allowed_where_labels_are_ignored():
    predicted, labels = batch()
    predicted[labels == 255] = 200
    report = SegmentationReport(4, ignore_index=255, **ALL)
    report.update(predicted, labels)
    assert len(report) == 2


@pytest.mark.parametrize("options", [{}, {"connectivity": 1, "overlap": 0.3, "dilation": 1, "min_volume": 2.0}])
def test_lesion_metrics_are_those_of_lesion_scores(options):
    predicted, labels = batch(shape=(6, 9, 8))
    report = SegmentationReport(4, regions=REGIONS, lesion_metrics=options or True, ignore_index=255)
    report.update(predicted, labels, spacing=(1, 2, 0.5))
    for name, classes in {"1": (1,), "2": (2,), "3": (3,), **REGIONS}.items():
        masks = [torch.isin(each, torch.tensor(classes, dtype=torch.uint8)).byte() for each in (predicted, labels)]
        masks[1][labels == 255] = 255
        expected = segloss.lesion_scores(*masks, 2, spacing=(1, 2, 0.5), ignore_index=255, **options)
        for n, case in report.cases().items():
            for column, field in LESIONS.items():
                assert str(case[name][column]) == str(float(getattr(expected, field)[n, 0]))


def test_lesions_are_pooled_by_their_counts():
    report = SegmentationReport(4, lesion_metrics={"connectivity": 1}, ignore_index=255)
    for seed in range(3):
        report.update(*batch(seed=seed))
    cases, pooled = [case["2"] for case in report.cases().values()], report.pooled()["2"]
    found, missed, alarms = (
        sum(case[name] for case in cases) for name in ("lesions_found", "lesions_missed", "false_alarms")
    )
    assert (pooled["lesions_found"], pooled["false_alarms"]) == (found, alarms)
    assert pooled["lesion_recall"] == found / (found + missed)
    assert pooled["lesion_f1"] == 2 * found / (2 * found + missed + alarms)


# ---- summaries ----


def test_the_summary_counts_cases_without_a_value_and_leaves_them_out():
    summary = of_cases(**ALL).summary()["1"]
    values = [case["1"] for case in of_cases(**ALL).cases().values()]
    known = [of["dice"] for of in values if not math.isnan(of["dice"])]
    assert (summary["dice"].cases, summary["dice"].missing, summary["dice"].infinite) == (4, 1, 0)
    assert summary["dice"].mean == pytest.approx(sum(known) / 4, rel=1e-15)
    assert (summary["hausdorff_distance"].cases, summary["hausdorff_distance"].infinite) == (3, 1)
    distances = [of["hausdorff_distance"] for of in values if math.isfinite(of["hausdorff_distance"])]
    assert summary["hausdorff_distance"].mean == pytest.approx(sum(distances) / 3, rel=1e-15)
    assert summary["hausdorff_distance"].median == sum(sorted([*distances, math.inf])[1:3]) / 2


@pytest.mark.cpu_only
def test_the_interval_is_that_of_the_percentile_bootstrap():
    np = pytest.importorskip("numpy")
    report = of_cases()
    values = np.array([case["2"]["dice"] for case in report.cases().values()])
    drawn = torch.randint(5, (1000, 5), generator=torch.Generator().manual_seed(7)).numpy()
    expected = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    got = report.summary(seed=7)["2"]["dice"]
    np.testing.assert_allclose([got.low, got.high], expected, rtol=1e-12)
    assert got.std == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert got.median == np.median(values)


@pytest.mark.cpu_only
def test_the_interval_is_that_of_scipy_but_for_chance():
    stats = pytest.importorskip("scipy.stats")
    values = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    low, high = segloss._report_statistics.bootstrap_interval(values, 20000, 0.9, 0)
    options = {"n_resamples": 20000, "confidence_level": 0.9, "method": "percentile", "random_state": 1}
    expected = stats.bootstrap((values,), lambda x, axis: x.mean(axis), **options).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=3e-3)


def test_a_summary_is_that_of_the_cases_so_far():
    report = of_cases()
    before = report.summary()
    before["2"].clear()
    report.update(*batch(1, seed=9), ids=["another"])
    assert report.summary()["2"]["dice"].cases == 6


def test_the_interval_is_the_same_in_every_run_and_that_of_another_seed_is_another():
    report = of_cases()
    assert report.summary() == report.summary()
    assert report.summary(seed=1)["2"]["dice"].low != report.summary(seed=2)["2"]["dice"].low


def test_one_case_has_no_interval():
    report = SegmentationReport(4, ignore_index=255)
    report.update(*batch(1))
    dice = report.summary()["2"]["dice"]
    assert all(map(math.isnan, (dice.low, dice.high, dice.std)))
    assert dice.mean == dice.median == report.cases()[0]["2"]["dice"]


def test_pooled_scores_are_those_of_all_voxels():
    report = of_cases(regions=REGIONS)
    cases = list(report.cases().values())
    for name in ("1", "3", "core"):
        tp, fp, fn, tn = (sum(counts_of(case[name])[k] for case in cases) for k in range(4))
        assert counts_of(report.pooled()[name]) == [tp, fp, fn, tn]
        assert report.pooled()[name]["dice"] == 2 * tp / (2 * tp + fp + fn)
        assert report.pooled()[name]["recall"] == tp / (tp + fn)


def test_batches_and_their_order_do_not_change_the_report():
    predicted, labels = batch(4)
    names = ["d", "b", "a", "c"]
    whole, single = (SegmentationReport(4, ignore_index=255, **ALL) for _ in range(2))
    whole.update(predicted, labels, ids=names)
    for n in (2, 0, 3, 1):
        single.update(predicted[n : n + 1], labels[n : n + 1], ids=names[n : n + 1])
    assert whole.to_dict() == single.to_dict()
    assert list(whole.cases()) == ["a", "b", "c", "d"]


def test_threads_do_not_change_the_report(num_threads):
    reports = []
    for threads in (1, 3):
        num_threads(threads)
        reports.append(of_cases(**ALL).to_dict())
    assert str(reports[0]) == str(reports[1])


@pytest.mark.cpu_only
def test_a_case_takes_a_few_hundred_bytes():
    predicted, labels = (each.expand(1000, 1, 5, 6, 7) for each in batch(1))
    report = SegmentationReport(4, ignore_index=255, names=["a", "b", "c", "d"])
    tracemalloc.start()
    report.update(predicted, labels)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 1000 * 1000


# ---- ids and errors ----


def test_ids_are_strings_or_ints_of_lists_or_tensors():
    report = SegmentationReport(4, ignore_index=255)
    report.update(*batch(), ids=torch.tensor([7, 3]))
    report.update(*batch(), ids=("b", 10))
    assert list(report.cases()) == [3, 7, 10, "b"]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (["a", "a"], ValueError, "expected a new id for each case, got 'a' again"),
        (["known", "a"], ValueError, "expected a new id for each case, got 'known' again"),
        (["a"], ValueError, "expected 2 ids, one for each sample, got 1"),
        ("ab", TypeError, "expected ids to be a sequence with one for each sample, got 'ab'"),
        ([0.5, 1.0], TypeError, "expected each id to be a string or an int, got 0.5"),
        ([True, 3], TypeError, "expected each id to be a string or an int, got True"),
    ],
)
def test_bad_ids_are_named_and_nothing_is_counted(ids, error, message):
    report = SegmentationReport(4, ignore_index=255)
    report.update(*batch(1), ids=["known"])
    with pytest.raises(error, match=f"^SegmentationReport.update: {message}"):
        report.update(*batch(), ids=ids)
    assert list(report.cases()) == ["known"]


@pytest.mark.parametrize("metrics", [{}, ALL])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p, y: (p, y + 4), IndexError, "Target .* is out of bounds"),
        (lambda p, y: (p + 4, y), IndexError, "Predicted label .* is out of bounds"),
        (lambda p, y: (p, y[:, :, :3]), RuntimeError, "expected"),
        (lambda p, y: (p.float(), y), RuntimeError, "expected"),
        (lambda p, y: (p, y.tolist()), TypeError, "expected labels to be a torch.Tensor, got list"),
        (lambda p, y: (p[0, 0, 0, 0, 0], y), RuntimeError, "expected a batch, got prediction"),
        (
            lambda p, y: (p.expand(-1, 4, -1, -1, -1), y.expand(-1, 4, -1, -1, -1)),
            ValueError,
            ".* may be a mask for each",
        ),
    ],
)
def test_bad_tensors_are_refused_and_nothing_is_counted(metrics, change, error, message):
    report = SegmentationReport(4, ignore_index=255, **metrics)
    predicted, labels = batch()
    with pytest.raises(error, match=f"SegmentationReport.update: {message}"):
        report.update(*change(predicted.long(), labels.long().masked_fill(labels == 255, 0)))
    assert len(report) == 0


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ((1, 1), "expected a spacing with one number for each spatial axis, got \\[1.0, 1.0\\] for prediction"),
        ((1, 1, 0), "expected a spacing of finite numbers above 0"),
        ([(1, 1, 1)] * 3, "expected 2 spacings, one for each sample, got 3"),
    ],
)
def test_a_bad_spacing_is_refused(spacing, message):
    with pytest.raises(ValueError, match=f"^SegmentationReport.update: {message}"):
        SegmentationReport(4, ignore_index=255).update(*batch(), spacing=spacing)


def test_surfaces_of_maps_without_a_channel_need_a_spacing():
    predicted, labels = (each.squeeze(1) for each in batch())
    report = SegmentationReport(4, ignore_index=255, **ALL)
    with pytest.raises(
        RuntimeError, match="expected label maps \\[N, 1, \\*\\] with surface or lesion metrics, or spac"
    ):
        report.update(predicted, labels)
    report.update(predicted, labels, spacing=(1, 1, 1))
    with pytest.raises(ValueError, match="expected two or three spatial axes with surface or lesion metrics, got 1"):
        report.update(predicted[:, :1, 0], labels[:, :1, 0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, "expected num_classes of 2 or more, with the background, got 1"),
        ({"num_classes": 2.0}, TypeError, "expected num_classes to be an int, got 2.0"),
        ({"names": ["a", "b"]}, ValueError, "expected 4 names, one for each class from the background on, got 2"),
        ({"names": "abcd"}, TypeError, "expected names to be strings, one for each class, got 'abcd'"),
        ({"names": {5: "a"}}, ValueError, "expected names of classes 0 to 3, got one of class 5"),
        ({"names": ["a", "b", "b", "c"]}, ValueError, "expected different names of classes and regions"),
        ({"names": ["a", "b", "c", "d"], "regions": {"b": (1, 2)}}, ValueError, "expected different names of classes"),
        ({"regions": {"a": (1, 4)}}, ValueError, "expected regions of classes 0 to 3, got \\(1, 4\\) for 'a'"),
        ({"regions": {"a": 1}}, TypeError, "expected each of regions to be a collection of classes, got 1"),
        ({"regions": {"a": ()}}, ValueError, "expected each of regions to be different classes from 0 on, and one"),
        ({"regions": {1: (1,)}}, TypeError, "expected the names of regions to be strings, got 1"),
        ({"regions": 3}, TypeError, "expected regions to be a sequence of collections of classes, got int"),
        ({"spacing": (1, -1)}, ValueError, "expected a spacing of finite numbers above 0"),
        ({"include_background": 2}, ValueError, "expected include_background to be True or False, got 2"),
        ({"ignore_index": 0.5}, TypeError, "expected ignore_index to be an int"),
        ({"label_map": [0, 1]}, TypeError, "expected label_map to be a mapping"),
        ({"surface_metrics": "surface_dice"}, TypeError, "expected surface_metrics to be a sequence of names"),
        ({"surface_metrics": ["hd95"]}, ValueError, "expected each of surface_metrics to be 'hausdorff_distance', "),
        ({"surface_metrics": ["surface_dice"]}, ValueError, "expected a tolerance, the distance up to which surfaces"),
        ({"tolerance": 1.0}, ValueError, "expected a tolerance, the distance up to which surfaces"),
        ({**ALL, "tolerance": [1, 2]}, ValueError, "expected one tolerance, or one for each of \\['1', '2', '3', 'wh"),
        ({**ALL, "tolerance": {"1": 1}}, ValueError, "expected a tolerance for each of \\['1', '2', '3', 'whole'"),
        ({**ALL, "tolerance": -1}, ValueError, "expected tolerance to be a finite number from 0 on"),
        ({"surface": "mesh"}, ValueError, "expected surface to be 'voxels' or 'surfels', got 'mesh'"),
        ({"lesion_metrics": {"iou": 1}}, ValueError, "expected each key of lesion_metrics to be 'connectivity'"),
        ({"lesion_metrics": {"overlap": 2.0}}, ValueError, "expected overlap to be "),
        ({"lesion_metrics": 3}, ValueError, "expected lesion_metrics to be True or False, got 3"),
    ],
)
def test_a_bad_keyword_is_refused(options, error, message):
    with pytest.raises(error, match=f"^SegmentationReport: {message}"):
        SegmentationReport(**{"num_classes": 4} | options)


def test_tolerances_are_those_of_the_names():
    tolerances = [0.5, 1, 1.5, 2, 2.5]
    by_order = of_cases(**ALL | {"tolerance": tolerances})
    by_name = of_cases(**ALL | {"tolerance": dict(zip(["1", "2", "3", "whole", "core"], tolerances, strict=True))})
    assert str(by_order.to_dict()) == str(by_name.to_dict())
    for name, tolerance in (("1", 0.5), ("core", 2.5)):
        expected = of_cases(**ALL | {"tolerance": tolerance}).cases()["case_0"][name]
        assert by_name.cases()["case_0"][name] == expected


@pytest.mark.parametrize("options", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0}])
def test_a_bad_option_of_the_summary_is_refused(options):
    with pytest.raises(
        ValueError, match=r"^SegmentationReport.summary: expected resamples of 1 or more and a confiden"
    ):
        of_cases().summary(**options)


# ---- several reports and ranks ----


def parts_of(count, **options):
    """Reports of `count` parts of six cases; the last part repeats the first case, as a sampler pads."""
    predicted, labels = batch(6)
    reports = []
    for k in range(count):
        which = [*range(k, 6, count), *([0] if k == count - 1 and count > 1 else [])]
        report = SegmentationReport(4, ignore_index=255, **ALL | options)
        report.update(predicted[which], labels[which], ids=[f"case_{n}" for n in which])
        reports.append(report)
    return reports


@pytest.mark.parametrize("count", [2, 3, 6])
def test_merged_reports_are_the_report_of_all(count):
    first, *others = parts_of(count)
    for other in others:
        first.merge(other)
    assert first.to_dict() == parts_of(1)[0].to_dict()


def test_cases_with_other_numbers_are_no_duplicates():
    first, second = parts_of(2)
    predicted, labels = batch(1, seed=9)
    second.update(predicted, labels, ids=["case_2"])
    before = str(first.to_dict())
    with pytest.raises(ValueError, match="expected the same numbers for case 'case_2' in both reports, got other ones"):
        first.merge(second)
    assert str(first.to_dict()) == before


def test_running_numbers_are_not_merged():
    first, second = (SegmentationReport(4, ignore_index=255) for _ in range(2))
    first.update(*batch(), ids=["a", "b"])
    second.update(*batch())
    with pytest.raises(
        ValueError, match=r"^SegmentationReport.merge: expected ids in both reports, got running numbers"
    ):
        first.merge(second)


def test_reports_that_measure_other_things_are_not_merged():
    with pytest.raises(ValueError, match=r"measure the same, got surface='voxels' and surface='surfels'. Make both"):
        SegmentationReport(4).merge(SegmentationReport(4, surface="surfels"))
    with pytest.raises(TypeError, match=r"^SegmentationReport.merge: expected a SegmentationReport, got dict"):
        SegmentationReport(4).merge({})


def test_without_ranks_gather_returns_the_same_report():
    report = of_cases()
    assert str(report.gather().to_dict()) == str(report.to_dict())
    with pytest.raises(TypeError, match=r"^SegmentationReport.gather: expected process_group to be"):
        report.gather("gloo")


def gather_on_rank(rank, world_size, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store, timeout=timedelta(seconds=60))
    parts_of(world_size)[rank].gather().to_json(folder / f"{rank}.json")
    numbered = SegmentationReport(4, ignore_index=255)
    numbered.update(*batch())
    try:
        numbered.gather()
    except ValueError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


@pytest.mark.cpu_only
@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_gathers_the_report_of_all(world_size, tmp_path):
    mp.spawn(gather_on_rank, (world_size, tmp_path), nprocs=world_size)
    parts_of(1)[0].to_json(tmp_path / "whole.json")
    for rank in range(world_size):
        assert (tmp_path / f"{rank}.json").read_text() == (tmp_path / "whole.json").read_text()
        assert "expected ids in both reports, got running numbers" in (tmp_path / f"{rank}.txt").read_text()


# ---- files and text ----


OPTIONS = [
    {},
    ALL,
    {
        "label_map": {0: 0, 1: 1, 2: 2, 3: 3, ...: None},
        "include_background": True,
        "spacing": (1, 2, 0.1),
        "lesion_metrics": True,
    },
    {"label_map": torch.tensor([0, 1, 2, 3]), "names": {2: "liver"}, "lesion_metrics": {"overlap": 0.2}},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_report_that_was_written_goes_on_as_if_it_had_not_been(options, tmp_path):
    report = of_cases(**options)
    report.to_json(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    again = SegmentationReport.from_json(tmp_path / "report.json")
    again.to_json(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text
    for each in (report, again):
        each.update(*batch(seed=7), ids=["x", "y"])
    assert str(again.to_dict()) == str(report.to_dict())
    again.merge(report)
    assert len(again) == 7


def test_json_is_strict(tmp_path):
    of_cases(**ALL).to_json(tmp_path / "report.json")

    def refuse(constant):
        raise AssertionError(constant)

    stored = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    numbers = stored["cases"][2]["classes"]["1"]
    assert (numbers["dice"], numbers["recall"]) == (None, None)
    assert stored["cases"][1]["classes"]["1"]["hausdorff_distance"] == "inf"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1, "settings": {}}'])
def test_a_file_that_is_no_report_is_refused(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"^SegmentationReport.from_json: expected a report that to_json wrote, got .*other"
    ):
        SegmentationReport.from_json(path)


def test_csv_has_every_number(tmp_path):
    report = of_cases(**ALL, names=["none", "a, b", "c", "d"])
    report.to_csv(tmp_path / "cases.csv")
    with (tmp_path / "cases.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * 5
    for line in lines:
        numbers = report.cases()[line.pop("case")][line.pop("class")]
        assert str({name: float(value) for name, value in line.items()}) == str(
            {name: float(value) for name, value in numbers.items()}
        )


def test_the_table_has_a_line_for_each_class_and_metric():
    report = SegmentationReport(3, names=["background", "liver", "tumour"])
    labels = torch.tensor([[1, 1, 1, 2], [1, 1, 1, 0], [1, 0, 0, 2]]).view(3, 1, 4)
    report.update(torch.tensor([[1, 1, 1, 2], [1, 1, 0, 0], [1, 0, 0, 0]]).view(3, 1, 4), labels)
    assert report.table(["dice", "volume_difference"]).splitlines() == [
        "3 cases",
        "",
        "class   metric         mean    95 % interval  median    std  pooled  cases  inf  nan",
        "------------------------------------------------------------------------------------",
        "liver   Dice          0.933   [0.800, 1.000]   1.000  0.115   0.923      3",
        "        volume diff  -0.333  [-1.000, 0.000]   0.000  0.577              3",
        "tumour  Dice          0.500   [0.000, 1.000]   0.500  0.707   0.667      2         1",
        "        volume diff  -0.333  [-1.000, 0.000]   0.000  0.577              3",
    ]
    with pytest.raises(ValueError, match=r"^SegmentationReport.table: expected each of metrics to be 'dice', "):
        report.table(["Dice"])


def test_the_table_fits_a_terminal_and_explains_inf():
    report = of_cases(**ALL, names=["b", "a very long name of a class indeed", "c", "d"], spacing=(10, 10, 10))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert re.match(r"a very long[a-z ]*\.\.\.  Dice", lines[4])
    assert lines[-1].startswith("inf: one of prediction and labels lacks the class")
    assert "inf:" not in str(of_cases())
    assert repr(report) == "SegmentationReport(cases=5, of a very long name of a class indeed, c, d, whole, core)"


@pytest.mark.cpu_only
def test_the_box_plot_has_a_box_for_each_class_and_region(tmp_path):
    pytest.importorskip("matplotlib")
    figure = of_cases(**ALL).box_plot(tmp_path / "box.png", "hausdorff_distance")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "whole", "core"]
    assert "2 values that are inf or nan left out" in axes.get_title()
    assert (tmp_path / "box.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"^SegmentationReport.box_plot: expected metric to be 'dice', "):
        of_cases().box_plot(metric="hausdorff_distance")


def test_a_box_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError, match=r"expected matplotlib to be installed, got none. Use `pip install matplotlib`"
    ):
        of_cases().box_plot()


def test_the_summary_of_nnunet_has_its_keys(tmp_path):
    report = of_cases(regions=REGIONS, include_background=True)
    report.to_nnunet(tmp_path / "summary.json", {"case_1": ("pred/case_1.nii.gz", "ref/case_1.nii.gz")})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["mean"]) == ["(1, 2, 3)", "(3, 1)", "0", "1", "2", "3"]
    assert set(summary["mean"]["1"]) == {"Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref"}
    assert summary["metric_per_case"][1]["prediction_file"] == "pred/case_1.nii.gz"
    assert summary["metric_per_case"][0]["reference_file"] == "case_0"
    of_foreground = [summary["mean"][key]["Dice"] for key in summary["mean"] if key != "0"]
    assert summary["foreground_mean"]["Dice"] == pytest.approx(sum(of_foreground) / 5, rel=1e-15)
