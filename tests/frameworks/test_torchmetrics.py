"""segloss.torchmetrics beside torchmetrics itself: the same values over all options, and what a Metric is used for."""

import copy
import importlib
import logging
import pickle
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from example_scripts import load_example
from tolerances import assert_close

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from torchmetrics import ClasswiseWrapper, MetricCollection, classification, segmentation

import segloss
import segloss.torchmetrics as ours

pytestmark = pytest.mark.cpu_only

CLASSES = 5
AVERAGES = ["micro", "macro", "weighted", "none", None]
IGNORED = [None, 255, 0, 2]
SCORES = [ours.Accuracy, ours.DiceScore, ours.JaccardIndex]


def batches(seed=0, sizes=(3, 1, 2)):
    """Logits [N, C, 6, 5] and labels uint8 [N, 1, 6, 5] of several batches. Samples lack classes; class 3 is predicted
    but never labelled, class 4 neither."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in sizes:
        logits = torch.randn(size, CLASSES, 6, 5, generator=generator)
        logits[:, 3] -= 1
        logits[:, 4] -= 99
        labels = torch.randint(3, (size, 1, 6, 5), generator=generator, dtype=torch.uint8)
        labels[0] = labels[0].clamp_max(1)
        logits[0, 2] -= 99
        made.append((logits, labels))
    return made


def unlabelled(labels, ignore_index):
    """Labels of which a fifth is `ignore_index`, if it is no class."""
    if ignore_index != 255:
        return labels
    ignored = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    return labels.masked_fill(ignored, 255)


def one_foreground_class(seed=0):
    """Batches in which only class 1 occurs, labelled and predicted, beside the background; in one sample it does
    not occur, in one it is only predicted."""
    made = batches(seed)
    for logits, labels in made:
        logits[:, 2:] -= 99
        labels.clamp_max_(1)
    made[0][0][1, 1] -= 99
    made[0][1][1:] = 0
    return made


DATA = {"all": batches, "foreground": one_foreground_class}


def assert_equal_to_peer(metric, peer, data, as_peer_wants):
    """The values of each batch and of all, twice, as a metric is used in two epochs."""
    for _ in range(2):
        for logits, labels in data:
            assert_close(metric(logits, labels), peer(*as_peer_wants(logits, labels)), torch.float32)
        value, expected = metric.compute(), peer.compute()
        assert value.shape == expected.shape
        assert value.dtype == expected.dtype
        assert_close(value, expected, torch.float32)
        metric.reset()
        peer.reset()


def as_classification(logits, labels):
    return logits, labels[:, 0].long()


def as_indices(logits, labels):
    return logits.argmax(1), labels[:, 0].long()


def with_ignored(data, ignore_index):
    return [(logits, unlabelled(labels, ignore_index)) for logits, labels in data]


# ---- the values of torchmetrics --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*NaN values found in confusion matrix")
@pytest.mark.parametrize("normalize", [None, "none", "true", "pred", "all"])
@pytest.mark.parametrize("ignore_index", IGNORED)
def test_confusion_matrix_is_torchmetrics(normalize, ignore_index):
    options = {"ignore_index": ignore_index, "normalize": normalize}
    peer = classification.MulticlassConfusionMatrix(CLASSES, **options)
    metric = ours.ConfusionMatrix(CLASSES, **options)
    assert_equal_to_peer(metric, peer, with_ignored(batches(), ignore_index), as_classification)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("ignore_index", IGNORED)
@pytest.mark.parametrize("data", DATA)
def test_accuracy_is_torchmetrics(average, ignore_index, data):
    options = {"average": average, "ignore_index": ignore_index}
    peer = classification.MulticlassAccuracy(CLASSES, **options)
    metric = ours.Accuracy(CLASSES, **options)
    assert_equal_to_peer(metric, peer, with_ignored(DATA[data](), ignore_index), as_classification)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("ignore_index", IGNORED)
@pytest.mark.parametrize("zero_division", [0, 1])
@pytest.mark.parametrize("data", DATA)
def test_jaccard_index_is_torchmetrics(average, ignore_index, zero_division, data):
    options = {"average": average, "ignore_index": ignore_index, "zero_division": zero_division}
    peer = classification.MulticlassJaccardIndex(CLASSES, **options)
    metric = ours.JaccardIndex(CLASSES, **options)
    assert_equal_to_peer(metric, peer, with_ignored(DATA[data](), ignore_index), as_classification)


@pytest.mark.filterwarnings("ignore:DiceScore metric currently defaults")
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("aggregation_level", ["samplewise", "global"])
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("data", DATA)
def test_dice_score_is_torchmetrics(average, aggregation_level, include_background, data):
    options = {
        "average": average,
        "aggregation_level": aggregation_level,
        "include_background": include_background,
    }
    peer = segmentation.DiceScore(CLASSES, **options, input_format="index")
    assert_equal_to_peer(ours.DiceScore(CLASSES, **options), peer, DATA[data](), as_indices)


@pytest.mark.parametrize("average", ["micro", "macro", "weighted"])
@pytest.mark.parametrize("ignore_index", [None, 255])
def test_global_dice_score_is_torchmetrics_f1_score(average, ignore_index):
    options = {"average": average, "ignore_index": ignore_index}
    peer = classification.MulticlassF1Score(CLASSES, **options)
    metric = ours.DiceScore(CLASSES, **options, aggregation_level="global")
    assert_equal_to_peer(metric, peer, with_ignored(batches(), ignore_index), as_classification)


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("data", DATA)
def test_mean_iou_is_torchmetrics(per_class, include_background, data):
    options = {"per_class": per_class, "include_background": include_background}
    peer = segmentation.MeanIoU(CLASSES, **options, input_format="index")
    assert_equal_to_peer(ours.MeanIoU(CLASSES, **options), peer, DATA[data](), as_indices)


SEGMENTATION = {
    **{
        ("DiceScore", f"{average}, {level}"): {"average": average, "aggregation_level": level}
        for average in ("micro", "macro", "weighted", "none")
        for level in ("samplewise", "global")
    },
    ("MeanIoU", "per class"): {"per_class": True},
    ("MeanIoU", "mean"): {},
}


@pytest.mark.filterwarnings("ignore:DiceScore metric currently defaults")
@pytest.mark.parametrize(("name", "options"), [(name, options) for (name, _), options in SEGMENTATION.items()], ids=str)
@pytest.mark.parametrize(("num_classes", "include_background"), [(1, True), (3, True), (3, False)])
def test_with_a_threshold_the_scores_are_torchmetrics_of_masks(name, options, num_classes, include_background):
    """Masks that overlap; the last class of the first sample is empty."""
    options = {"num_classes": num_classes, "include_background": include_background, **options}
    peer, metric = getattr(segmentation, name)(**options), getattr(ours, name)(**options, threshold=0.3)
    data = [(torch.randn(n, num_classes, 6, 5), torch.randint(2, (n, num_classes, 6, 5))) for n in (3, 1)]
    data[0][0][0, -1] = data[0][1][0, -1] = 0
    assert_equal_to_peer(metric, peer, data, lambda logits, masks: ((logits > 0.3).long(), masks))


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", ["Accuracy", "JaccardIndex"])
def test_without_a_voxel_that_counts_the_score_is_torchmetrics(average, name):
    peer = getattr(classification, f"Multiclass{name}")(CLASSES, average=average, ignore_index=255)
    data = [(logits, torch.full_like(labels, 255)) for logits, labels in batches()]
    assert_equal_to_peer(getattr(ours, name)(CLASSES, average=average, ignore_index=255), peer, data, as_classification)


# ---- what torchmetrics does not have ---------------------------------------------------------------------------------


def masks_of(labels, background):
    return torch.nn.functional.one_hot(labels.long(), CLASSES).movedim(-1, 1)[:, 0 if background else 1 :]


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("average", ["macro", "none"])
def test_dice_score_ignores_voxels(include_background, average):
    """As torchmetrics' score of masks that are 0 at the ignored voxels."""
    options = {"average": average, "include_background": include_background}
    metric = ours.DiceScore(CLASSES, ignore_index=255, **options)
    peer = segmentation.DiceScore(CLASSES - (not include_background), average=average)
    for logits, labels in with_ignored(batches(), 255):
        valid = labels != 255
        masks = [masks_of(each, include_background) * valid for each in (logits.argmax(1), (labels * valid)[:, 0])]
        assert_close(metric(logits, labels), peer(*masks), torch.float32)
    assert_close(metric.compute(), peer.compute(), torch.float32)


@pytest.mark.parametrize("include_background", [True, False])
def test_jaccard_index_leaves_out_the_background(include_background):
    metric = ours.JaccardIndex(CLASSES, include_background=include_background)
    logits, labels = batches()[0]
    scores = segloss.jaccard_index(logits, labels)
    assert_close(metric(logits, labels), scores[0 if include_background else 1 :].nanmean())


@pytest.mark.parametrize("metric", [ours.DiceScore(3, ignore_index=2), ours.MeanIoU(3, ignore_index=2)], ids=repr)
def test_a_mean_leaves_out_the_class_that_is_ignored(metric):
    """Class 2 is predicted where 1 is labelled; a score of 0 for it would halve the mean."""
    predicted, labels = torch.tensor([[1, 2, 2, 1]]), torch.tensor([[1, 1, 2, 2]])
    ratio = {"DiceScore": 2 / 3, "MeanIoU": 1 / 2}[type(metric).__name__]
    assert_close(metric(predicted, labels), torch.tensor(ratio))


def test_several_labels_are_ignored():
    logits, labels = batches()[0]
    metric = ours.ConfusionMatrix(CLASSES, ignore_index=(255, 2))
    assert torch.equal(
        metric(logits, unlabelled(labels, 255)),
        segloss.confusion_matrix(logits, unlabelled(labels, 255), CLASSES, ignore_index=(255, 2)),
    )


@pytest.mark.parametrize("label_map", [{7: 0, 8: 1, 9: 2}, torch.tensor([*range(7), 0, 1, 2]) % 3])
def test_labels_of_the_data_set_are_mapped(label_map):
    logits, labels = batches()[0]
    expected = ours.DiceScore(CLASSES)(logits, labels)
    assert ours.DiceScore(CLASSES, label_map=label_map)(logits, labels + 7) == expected


def test_small_logits_are_upsampled():
    logits, labels = batches()[0]
    labels = labels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    full = torch.nn.functional.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True)
    metric = ours.MeanIoU(CLASSES, upsample="bilinear", align_corners=True)
    assert metric(logits, labels) == ours.MeanIoU(CLASSES)(full, labels)


def test_classes_may_be_in_the_last_dimension():
    logits, labels = batches()[0]
    expected = ours.DiceScore(CLASSES)(logits, labels)
    assert ours.DiceScore(CLASSES, dim=-1)(logits.movedim(1, -1), labels[:, 0]) == expected


@pytest.mark.parametrize("kind", [*SCORES, ours.ConfusionMatrix, ours.MeanIoU])
def test_logits_and_label_maps_of_any_shape_and_dtype_are_the_same(kind):
    logits, labels = batches()[0]
    expected = kind(CLASSES)(logits, labels)
    predicted = logits.argmax(1)
    for predictions, target in [
        (predicted, labels[:, 0].long()),
        (predicted.to(torch.uint8).unsqueeze(1), labels),
        (predicted.int(), labels[:, 0].to(torch.int16)),
        (logits, labels.float()),
    ]:
        assert torch.equal(kind(CLASSES)(predictions, target), expected)


@pytest.mark.parametrize("kind", [ours.DiceScore, ours.MeanIoU])
def test_class_labels_are_masks_with_a_threshold(kind):
    logits, labels = torch.randn(2, 3, 6, 5), torch.randint(3, (2, 1, 6, 5))
    masks = torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1)
    assert kind(3, threshold=0)(logits, labels) == kind(3, threshold=0)(logits, masks)


@pytest.mark.parametrize("kind", [ours.DiceScore, ours.MeanIoU])
def test_one_channel_is_no_background(kind):
    logits, labels = torch.randn(2, 1, 6, 5), torch.randint(2, (2, 1, 6, 5))
    foreground = kind(1, threshold=0, include_background=False)(logits, labels)
    assert foreground == kind(2, include_background=False)(logits > 0, labels)


def test_one_foreground_class_is_a_label_map_of_two():
    logits, labels = torch.randn(2, 1, 6, 5), torch.randint(2, (2, 1, 6, 5))
    peer = classification.BinaryJaccardIndex()
    assert_close(ours.JaccardIndex(2, include_background=False)(logits > 0, labels), peer(logits.sigmoid(), labels))


# ---- the table of the page, and differences --------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent.parent / "docs" / "coming-from" / "torchmetrics.md"
LINES = [
    [cell.strip().strip("`") for cell in line.strip("|\n").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]
DIFFERENCES = {
    "A class that is neither labelled nor predicted has 0 in torchmetrics, nan in segloss.",
    "segloss's mean leaves out the ignored class, torchmetrics' counts it as 0 if it is predicted.",
    "segloss leaves out the ignored class, torchmetrics counts what is predicted as it as false positives.",
    "If only the ignored class is labelled, any average is 0 in torchmetrics, nan in segloss.",
    "torchmetrics takes label maps of two dimensions for one sample.",
}


def data_of_the_table():
    logits, labels = batches()[0]
    z, m = torch.randn(2, 3, 6, 5), torch.randint(2, (2, 3, 6, 5))
    names = {"C": CLASSES, "K": 3, "x": logits, "z": z, "m": m, "b": m[:, 0]}
    return names | {"y": labels[:, 0].long(), "u": unlabelled(labels, 255)[:, 0].long()}


@pytest.mark.parametrize(("theirs", "mine", "difference"), LINES, ids=[line[0] for line in LINES])
def test_line_of_the_table(theirs, mine, difference):
    """The values are the same, and where a difference is named they differ."""
    names = data_of_the_table()
    expected = eval(theirs, {**vars(classification), **vars(segmentation), **names})
    value = eval(mine, {**vars(ours), **names})
    assert torch.allclose(value.float(), expected.float(), rtol=1e-5, equal_nan=True) == (not difference)


def test_the_differences_of_the_table_are_those_tested_below():
    assert {line[2] for line in LINES} - {""} == DIFFERENCES


def test_the_f1_score_of_a_class_without_a_voxel_is_0_and_its_dice_score_nan():
    (logits, labels), options = batches()[0], {"average": "none"}
    theirs = classification.MulticlassF1Score(CLASSES, **options)(logits, labels[:, 0])
    mine = ours.DiceScore(CLASSES, aggregation_level="global", **options)(logits, labels)
    assert mine[4].isnan()
    assert theirs[4] == 0
    assert_close(mine[:4], theirs[:4])


def test_the_mean_f1_score_counts_the_ignored_class_as_0():
    (logits, labels), options = batches()[0], {"ignore_index": 0}
    theirs = classification.MulticlassF1Score(CLASSES, **options)(logits, labels[:, 0])
    mine = ours.DiceScore(CLASSES, aggregation_level="global", **options)(logits, labels)
    assert_close(mine * 3, theirs * 4)  # the classes 1 to 3 occur


def test_the_micro_f1_score_counts_what_is_predicted_as_the_ignored_class():
    (logits, labels), options = batches()[0], {"average": "micro", "ignore_index": 0}
    theirs = classification.MulticlassF1Score(CLASSES, **options)(logits, labels[:, 0])
    mine = ours.DiceScore(CLASSES, aggregation_level="global", **options)(logits, labels)
    matrix = ours.ConfusionMatrix(CLASSES, ignore_index=0)(logits, labels)
    twice_tp, predicted, actual = 2 * matrix.diag().sum(), matrix.sum(), matrix.sum()
    assert_close(theirs, twice_tp / (predicted + actual))
    assert_close(mine, twice_tp / (predicted - matrix[:, 0].sum() + actual))


@pytest.mark.parametrize("average", ["micro", "macro", "weighted"])
def test_where_only_the_ignored_class_is_labelled_the_f1_score_is_0_and_the_dice_score_nan(average):
    (logits, labels), options = batches()[0], {"average": average, "ignore_index": 0}
    labels.zero_()
    assert classification.MulticlassF1Score(CLASSES, **options)(logits, labels[:, 0]) == 0
    assert ours.DiceScore(CLASSES, aggregation_level="global", **options)(logits, labels).isnan()


def test_label_maps_of_two_dimensions_are_several_samples_and_one_in_torchmetrics():
    predicted, labels = torch.randint(3, (4, 20)), torch.randint(3, (4, 20))
    peer = segmentation.MeanIoU(3, input_format="index")
    assert_close(ours.MeanIoU(3)(predicted[None], labels[None]), peer(predicted, labels))
    assert_close(ours.MeanIoU(3)(predicted, labels), peer(predicted[:, None], labels[:, None]))


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_a_label_that_is_no_class_is_an_error():
    logits, labels = batches()[0]
    with pytest.raises(IndexError, match="Target 255 is out of bounds"):
        ours.Accuracy(CLASSES).update(logits, unlabelled(labels, 255))


@pytest.mark.parametrize("kind", [*SCORES, ours.ConfusionMatrix, ours.MeanIoU])
def test_masks_are_refused(kind):
    masks = torch.randint(2, (2, 4, 6, 5))
    with pytest.raises(ValueError, match=r"may be a mask for each of 4 classes.*keep the class in torchmetrics.segm"):
        kind(4).update(masks, masks)
    kind(4).update(masks[:, None], masks[:, None])  # a volume of four slices


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ours.Accuracy(1), "expected num_classes to be an int of at least 2, got 1"),
        (lambda: ours.DiceScore(0, threshold=0.0), "expected num_classes to be an int of at least 1, got 0"),
        (lambda: ours.JaccardIndex(3, threshold=0.5), "or keep torchmetrics.classification.MultilabelJaccardIndex"),
        (lambda: ours.Accuracy(4.0), "expected num_classes to be an int of at least 2, got 4.0"),
        (lambda: ours.Accuracy(4, average="mean"), "expected average to be 'micro'.* got 'mean'"),
        (lambda: ours.DiceScore(4, aggregation_level="batch"), "expected aggregation_level.* got 'batch'"),
        (lambda: ours.ConfusionMatrix(4, normalize="rows"), "expected normalize.* got 'rows'"),
        (lambda: ours.Accuracy(4, top_k=2), "expected no top_k. Keep torchmetrics.classification.MulticlassAccuracy"),
        (lambda: ours.Accuracy(4, multidim_average="samplewise"), "keep .*MulticlassAccuracy"),
        (lambda: ours.DiceScore(4, input_format="index"), "expected no input_format. Drop it"),
        (lambda: ours.JaccardIndex(4, validate_args=False), "expected no validate_args. Drop it"),
        (lambda: ours.JaccardIndex(4, per_class=True), "expected no per_class. Use average='none', or MeanIoU"),
        (lambda: ours.Accuracy(num_classes=3, task="multiclass"), "no task. Drop it, and pass average='micro' where"),
        (lambda: ours.DiceScore(4, zero_division=1), "no zero_division. Only JaccardIndex .*MulticlassF1Score"),
        (lambda: ours.MeanIoU(4, average="none"), "Unexpected keyword arguments: `average`"),
        (lambda: ours.Accuracy(4, include_background=False), "Unexpected keyword arguments: `include_background`"),
    ],
)
def test_an_option_that_does_not_exist_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_preds_that_are_no_tensor_are_an_error():
    with pytest.raises(TypeError, match="confusion_matrix"):
        ours.Accuracy(3).update([0, 1], torch.tensor([0, 1]))


def test_keywords_are_not_taken_by_position():
    with pytest.raises(TypeError, match="positional"):
        ours.Accuracy(4, 1, "macro")  # num_classes, top_k, average of torchmetrics


def test_a_missing_torchmetrics_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "segloss.torchmetrics")
    with pytest.raises(ImportError, match=r'`pip install "torchmetrics>=1\.9"`'):
        importlib.import_module("segloss.torchmetrics")


# ---- as a Metric -----------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """The shapes of the logits that were counted."""
    shapes, count = [], ours.confusion_matrix

    def recorded(preds, *arguments, **options):
        shapes.append(preds.shape)
        return count(preds, *arguments, **options)

    monkeypatch.setattr(ours, "confusion_matrix", recorded)
    return shapes


def test_a_collection_counts_a_batch_once_for_all_global_scores(counted):
    collection = MetricCollection(
        {
            "matrix": ours.ConfusionMatrix(CLASSES),
            "shares": ours.ConfusionMatrix(CLASSES, normalize="true"),
            "accuracy": ours.Accuracy(CLASSES, average="micro"),
            "dice": ours.DiceScore(CLASSES, aggregation_level="global"),
            "iou": ours.JaccardIndex(CLASSES, average="none", include_background=False),
        }
    )
    alone = copy.deepcopy(dict(collection))
    (logits, labels), *rest = batches()
    collection.update(logits, labels)  # the first time each metric, to see which have equal states
    assert len(collection.compute_groups) == 1
    counted.clear()
    for batch in rest:
        collection.update(*batch)
    assert len(counted) == len(rest)
    for name, metric in alone.items():
        for batch in batches():
            metric.update(*batch)
        torch.testing.assert_close(collection.compute()[name], metric.compute(), equal_nan=True)


def test_a_collection_counts_each_samplewise_score_by_itself_and_mean_iou_once():
    collection = MetricCollection(
        {
            "dice": ours.DiceScore(CLASSES, average="none"),
            "iou": ours.MeanIoU(CLASSES, per_class=True),
            "mean iou": ours.MeanIoU(CLASSES),
        }
    )
    collection.update(*batches()[0])
    assert sorted(map(sorted, collection.compute_groups.values())) == [["dice"], ["iou", "mean iou"]]


LONG_MAP = torch.arange(3000) % 3
ALIKE_AT_FIRST = {
    "ignored": [ours.Accuracy(3), ours.Accuracy(3, ignore_index=255)],
    "mapped": [ours.Accuracy(3), ours.Accuracy(3, label_map={0: 0, 1: 1, 255: 1})],
    "mapped by tensors": [
        ours.Accuracy(3, label_map=label_map) for label_map in (LONG_MAP, LONG_MAP.index_fill(0, torch.tensor(1500), 2))
    ],
    "upsampled": [ours.Accuracy(3, upsample="bilinear"), ours.Accuracy(3, upsample="nearest")],
    "threshold": [ours.MeanIoU(3, threshold=0.0), ours.MeanIoU(3, threshold=0.5)],
    "averages": [ours.DiceScore(3, average="macro"), ours.DiceScore(3, average="micro")],
    "background": [ours.DiceScore(3), ours.DiceScore(3, include_background=False)],
    "Dice and IoU": [ours.DiceScore(3, average="none"), ours.MeanIoU(3, per_class=True)],
}


@pytest.mark.parametrize("metrics", ALIKE_AT_FIRST.values(), ids=ALIKE_AT_FIRST)
def test_metrics_that_agree_on_the_first_batch_alone_do_not_share_their_sums(metrics):
    collection = MetricCollection(dict(zip("ab", metrics, strict=True)))
    collection.update(torch.eye(3)[[1, 1]].reshape(2, 3, 1, 1), torch.ones(2, 1, 1, 1, dtype=torch.uint8))
    assert len(collection.compute_groups) == 2


def test_torchmetrics_own_metrics_that_agree_on_the_first_batch_share_their_sums():
    kind = classification.MulticlassConfusionMatrix
    collection = MetricCollection({"all": kind(3), "labelled": kind(3, ignore_index=2)})
    ones, twos = torch.ones(1, 4, dtype=torch.long), torch.full((1, 4), 2)
    for labels in (ones, twos):
        collection.update(labels, labels)
    assert torch.equal(collection["labelled"].compute(), collection["all"].compute())


def test_metrics_of_the_same_options_share_their_sums_in_a_collection():
    options = {"ignore_index": (255, 4), "label_map": {0: 0, 1: 1, 2: None, 255: None}, "upsample": "bilinear"}
    collection = MetricCollection([ours.Accuracy(CLASSES, **options), ours.JaccardIndex(CLASSES, **options)])
    collection.update(*batches()[0])
    assert len(collection.compute_groups) == 1


METRICS = {
    "matrix": ours.ConfusionMatrix(CLASSES, ignore_index=255),
    "accuracy": ours.Accuracy(CLASSES, ignore_index=255),
    "IoU": ours.JaccardIndex(CLASSES, ignore_index=255, average="none"),
    "Dice": ours.DiceScore(CLASSES, ignore_index=255),
    "Dice of classes": ours.DiceScore(CLASSES, ignore_index=255, average="none", include_background=False),
    "global Dice": ours.DiceScore(CLASSES, ignore_index=255, aggregation_level="global"),
    "mean IoU": ours.MeanIoU(CLASSES, ignore_index=255),
}


def of_each(test):
    return pytest.mark.parametrize("name", METRICS)(test)


def updated(name, data):
    metric = METRICS[name].clone()
    for batch in data:
        metric.update(*batch)
    return metric


def assert_value_of(name, metric, data):
    """That the metric's value is that of the batches."""
    torch.testing.assert_close(metric.compute(), updated(name, data).compute(), equal_nan=True)


DATA_WITH_IGNORED = with_ignored(batches(), 255)


@of_each
def test_the_value_does_not_depend_on_how_samples_are_batched(name):
    logits, labels = (torch.cat(each) for each in zip(*DATA_WITH_IGNORED, strict=True))
    whole = updated(name, [(logits, labels)]).compute()
    torch.testing.assert_close(updated(name, DATA_WITH_IGNORED).compute(), whole, equal_nan=True)
    samples = [(x[None], y[None]) for x, y in zip(logits, labels, strict=True)]
    torch.testing.assert_close(updated(name, samples).compute(), whole, equal_nan=True)


@of_each
def test_forward_returns_the_value_of_the_batch_and_counts_it_once(name, counted):
    metric = METRICS[name].clone()
    for batch in DATA_WITH_IGNORED:
        value = metric(*batch)
        num_counted = len(counted)
        torch.testing.assert_close(value, updated(name, [batch]).compute(), equal_nan=True)
        assert num_counted == len(counted) - num_counted
        counted.clear()
    assert_value_of(name, metric, DATA_WITH_IGNORED)


@of_each
def test_reset_forgets(name):
    metric = updated(name, DATA_WITH_IGNORED)
    metric.reset()
    metric.update(*DATA_WITH_IGNORED[0])
    assert_value_of(name, metric, DATA_WITH_IGNORED[:1])


@of_each
def test_a_pickled_metric_goes_on(name):
    metric = pickle.loads(pickle.dumps(updated(name, DATA_WITH_IGNORED[:1])))
    for batch in DATA_WITH_IGNORED[1:]:
        metric.update(*batch)
    assert_value_of(name, metric, DATA_WITH_IGNORED)


@of_each
def test_a_persistent_metric_goes_on_from_a_state_dict(name):
    metric = updated(name, DATA_WITH_IGNORED[:1])
    metric.persistent(True)
    loaded = METRICS[name].clone()
    loaded.persistent(True)
    loaded.load_state_dict(metric.state_dict())
    loaded.update(*DATA_WITH_IGNORED[1])
    assert_value_of(name, loaded, DATA_WITH_IGNORED[:2])


@of_each
def test_to_moves_the_sums(name):
    metric = updated(name, DATA_WITH_IGNORED).to("meta")
    assert {state.device.type for state in metric.metric_state.values()} == {"meta"}


@of_each
def test_batches_counted_in_inference_mode_and_outside_of_it_add_up(name):
    metric = METRICS[name].clone()
    with torch.inference_mode():
        metric.reset()
    for number, batch in enumerate(DATA_WITH_IGNORED):
        with torch.inference_mode(number % 2 == 1):
            metric.update(*batch)
            metric.compute()
    assert_value_of(name, metric, DATA_WITH_IGNORED)


@of_each
def test_a_batch_without_a_sample_adds_nothing(name):
    metric = updated(name, DATA_WITH_IGNORED)
    metric.update(*(each[:0] for each in DATA_WITH_IGNORED[0]))
    assert_value_of(name, metric, DATA_WITH_IGNORED)


# ---- on two ranks ----------------------------------------------------------------------------------------------------

PARTS = [slice(0, 2), slice(2, 3)]  # batches of each rank


def run_rank(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), len(PARTS))
    dist.init_process_group("gloo", rank=rank, world_size=len(PARTS), store=store, timeout=timedelta(seconds=60))
    metrics = {name: updated(name, DATA_WITH_IGNORED[PARTS[rank]]) for name in METRICS}
    collection = MetricCollection({name: METRICS[name].clone() for name in METRICS})
    for batch in DATA_WITH_IGNORED[PARTS[rank]]:
        collection.update(*batch)
    got = {name: metric.compute() for name, metric in metrics.items()}
    torch.save([got, collection.compute()], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (folder,), len(PARTS))
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(PARTS))]


@of_each
def test_each_rank_gets_the_score_of_all_ranks(name, ranks):
    expected = updated(name, DATA_WITH_IGNORED).compute()
    for alone, in_a_collection in ranks:
        torch.testing.assert_close(alone[name], expected, equal_nan=True)
        torch.testing.assert_close(in_a_collection[name], expected, equal_nan=True)


# ---- plots -----------------------------------------------------------------------------------------------------------


def points_of(ax):
    return [line.get_xydata().tolist() for line in ax.get_lines()]


@pytest.fixture
def pyplot(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    yield pyplot
    pyplot.close("all")


@pytest.mark.parametrize("average", ["macro", "none"])
@pytest.mark.usefixtures("pyplot")
def test_a_score_is_drawn_as_torchmetrics_draws_it(average):
    metric = ours.JaccardIndex(CLASSES, average=average)
    peer = classification.MulticlassJaccardIndex(CLASSES, average=average)
    values = [metric(*batch) for batch in batches()]
    peer.update(*as_classification(*batches()[0]))
    for value in (None, values):
        ax, expected = metric.plot(value)[1], peer.plot(metric.compute() if value is None else value)[1]
        assert points_of(ax) == points_of(expected) != []
        assert ax.get_ylim() == expected.get_ylim()


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # torchmetrics' tensor
def test_a_confusion_matrix_is_drawn_as_torchmetrics_draws_it(pyplot):
    metric, labels = ours.ConfusionMatrix(CLASSES), list("abcde")
    metric.update(*batches()[0])
    _, ax = metric.plot(ax=pyplot.subplots()[1], labels=labels)
    _, expected = classification.MulticlassConfusionMatrix(CLASSES).plot(metric.compute(), labels=labels)
    assert ax.images[0].get_array().tolist() == metric.compute().tolist()
    assert [text.get_text() for text in ax.texts] == [text.get_text() for text in expected.texts]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == labels


# ---- in Lightning ----------------------------------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch):
    pytest.importorskip("lightning", reason="lightning is not installed")
    module = load_example("lightning_module", monkeypatch)
    monkeypatch.setattr(module, "SIZE", 12)
    return module


def test_a_lightning_module_trains_the_same_with_segloss(example, capsys, tmp_path, monkeypatch):
    """Its lines are not lost among Lightning's tips and warnings."""
    handler, logged = logging.Handler(), []
    handler.emit = logged.append
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [handler])
    monkeypatch.chdir(tmp_path)
    before, after = example.main(["--steps", "3"])
    assert after["losses"] == pytest.approx(before["losses"], rel=1e-5)
    assert after["scores"] == pytest.approx(before["scores"], rel=1e-5)
    assert len(before["losses"]) == len(before["scores"]) == 3
    assert not list(tmp_path.iterdir())
    assert not logged
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines] == ["torch and torchmetrics", "segloss"]
    difference = max(abs(a - b) for a, b in zip(before["losses"], after["losses"], strict=True))
    assert last == f"The losses differ by at most {difference:.1e}"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_logged_metric_is_the_score_of_each_epoch(example, monkeypatch):
    """Lightning computes and resets it; the scores of each class have names by torchmetrics' ClasswiseWrapper."""
    lightning, logged = example.lightning, []

    class Logs(example.After):
        def __init__(self):
            super().__init__()
            self.dice = ours.DiceScore(4, ignore_index=255)
            mean_iou = ours.MeanIoU(4, ignore_index=255, per_class=True)
            self.of_classes = ClasswiseWrapper(mean_iou, list("abcd"))
            self.counted = []

        def validation_step(self, batch, batch_index):
            images, labels = batch
            logits = self.net(images)
            self.counted.append((logits, labels))
            self.dice(logits, labels)
            self.log("dice", self.dice)
            self.of_classes.update(logits, labels)

        def on_validation_epoch_end(self):
            self.log_dict(self.of_classes.compute())
            self.of_classes.reset()
            expected = ours.DiceScore(4, ignore_index=255), ours.MeanIoU(4, ignore_index=255, per_class=True)
            for metric in expected:
                for batch in self.counted:
                    metric.update(*batch)
            logged.append([metric.compute() for metric in expected])
            self.counted.clear()

    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 2}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **options)
    data = example.DataLoader(example.volumes(3, torch.Generator().manual_seed(0)), batch_size=2)
    trainer.fit(Logs(), data, data)
    dice, of_classes = logged[-1]
    assert trainer.callback_metrics["dice"] == dice
    names = [f"meaniou_{name}" for name in "abcd"]
    assert_close(torch.stack([trainer.callback_metrics[name] for name in names]), of_classes)
