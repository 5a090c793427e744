"""Metrics of each sample, ``per_sample=True``, and of the channels of a sigmoid, ``threshold=``."""

import pytest
import torch
from operators import without_kernel
from torch.nn import functional as F

import segloss

METRICS = {name: getattr(segloss, name) for name in ("accuracy", "confusion_matrix", "dice_score", "jaccard_index")}
SCORES = {name: METRICS[name] for name in ("dice_score", "jaccard_index")}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
every_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)


def batch(num_classes=3, size=(3, 7, 200), num_samples=4):
    """Logits and uint8 labels, a fifth of which are 255; the second sample has none that counts, the third one class.
    The samples are larger than a block and end within one."""
    logits = torch.randn(num_samples, num_classes, *size)
    labels = torch.randint(num_classes, (num_samples, 1, *size), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < 0.2] = 255
    labels[1:2] = 255
    labels[2:3] = 1
    return logits, labels


def one_by_one(metric, input, target, **options):
    """The metric of each sample as a batch of its own."""
    return torch.stack([metric(x[None], y[None], **options) for x, y in zip(input, target, strict=True)])


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


# ---- per_sample ----


@every_metric
def test_each_sample_has_the_result_that_it_has_alone(metric):
    logits, labels = batch()
    expected = one_by_one(metric, logits, labels, ignore_index=255)
    assert_equal(metric(logits, labels, ignore_index=255, per_sample=True), expected)
    assert expected.isnan().any() or metric is segloss.confusion_matrix


@pytest.mark.parametrize(
    ("name", "shape"), [("accuracy", (4,)), ("confusion_matrix", (4, 3, 3)), ("dice_score", (4, 3))]
)
def test_the_first_dimension_of_the_result_is_that_of_the_samples(name, shape):
    logits, labels = batch()
    assert METRICS[name](logits, labels, ignore_index=255, per_sample=True).shape == shape


@every_metric
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_layout_and_dtype_of_logits(metric, memory_format, dtype):
    logits, labels = batch()
    logits = logits.to(dtype).contiguous(memory_format=memory_format)
    expected = one_by_one(metric, logits, labels, ignore_index=255)
    assert_equal(metric(logits, labels, ignore_index=255, per_sample=True), expected)


@every_metric
def test_classes_in_the_last_or_the_first_dimension(metric):
    logits, labels = batch()
    expected = one_by_one(metric, logits, labels, ignore_index=255)
    for dim in (-1, 0):
        actual = metric(logits.movedim(1, dim), labels.squeeze(1), ignore_index=255, dim=dim, per_sample=True)
        assert_equal(actual, expected)


@every_metric
@pytest.mark.parametrize("num_classes", [None, 3])
def test_label_maps(metric, num_classes):
    logits, labels = batch()
    predicted = logits.argmax(1)
    expected = one_by_one(metric, predicted, labels[:, 0], num_classes=3, ignore_index=255)
    assert_equal(metric(predicted, labels, num_classes, ignore_index=255, per_sample=True), expected)


@every_metric
def test_masks(metric):
    predicted, masks = torch.rand(4, 3, 7, 30) > 0.5, torch.randint(2, (4, 3, 7, 30))
    masks[0, 1, 2:4] = 255
    options = {"masks": True, "ignore_index": 255}
    expected = one_by_one(metric, predicted, masks, **options)
    assert_equal(metric(predicted, masks, **options, per_sample=True), expected)
    of_one_class = metric(predicted[:, 0], masks[:, :1], **options, per_sample=True)
    assert_equal(of_one_class, metric(predicted[:, :1], masks[:, :1], **options, per_sample=True))


@every_score
def test_regions_of_logits_and_of_label_maps(score):
    logits, labels = batch(num_classes=2)
    labels[labels == 1] = 2
    options = {"regions": [(1, 2), (2,)], "ignore_index": 255}
    assert_equal(score(logits, labels, **options, per_sample=True), one_by_one(score, logits, labels, **options))
    predicted = torch.randint(3, labels.shape)
    expected = one_by_one(score, predicted, labels, **options)
    assert_equal(score(predicted, labels, **options, per_sample=True), expected)


@every_metric
def test_labels_that_a_table_maps(metric):
    logits, labels = batch()
    options = {"label_map": {0: 2, 1: 0, 2: None, 255: 1}}
    assert_equal(metric(logits, labels, **options, per_sample=True), one_by_one(metric, logits, labels, **options))


@every_metric
def test_logits_of_another_size(metric):
    logits, labels = batch()
    small = logits[..., ::2, ::2].contiguous()
    options = {"upsample": "trilinear", "ignore_index": 255}
    assert_equal(metric(small, labels, **options, per_sample=True), one_by_one(metric, small, labels, **options))


@every_metric
@pytest.mark.parametrize("num_classes", [2, 150])
def test_many_small_samples(metric, num_classes):
    logits, labels = batch(num_classes, size=(5,), num_samples=70)
    expected = one_by_one(metric, logits, labels, ignore_index=255)
    assert_equal(metric(logits, labels, ignore_index=255, per_sample=True), expected)


@every_metric
def test_a_batch_without_samples_and_samples_without_voxels(metric):
    none = metric(torch.randn(0, 3, 4), torch.zeros(0, 4, dtype=torch.long), per_sample=True)
    assert none.shape[0] == 0
    empty = metric(torch.randn(2, 3, 0), torch.zeros(2, 0, dtype=torch.long), per_sample=True)
    assert empty.shape[0] == 2
    assert (empty == 0).all() if metric is segloss.confusion_matrix else empty.isnan().all()


def test_without_kernels_the_counts_are_the_same():
    logits, labels = batch()
    predicted = logits.argmax(1, keepdim=True)
    for per_class in (False, True):
        for input in (logits, predicted):
            arguments = ("dice_score", input, labels, 3, 255, 1 if input is logits else 0, per_class, None, 0, True)
            expected = torch.ops.segloss.confusion_counts(*arguments)
            assert torch.equal(without_kernel("confusion_counts", *arguments), expected)
    arguments = ("accuracy", predicted, labels, 255, None, None, True)
    expected = torch.ops.segloss.equal_label_counts(*arguments)
    assert torch.equal(without_kernel("equal_label_counts", *arguments), expected)


@pytest.mark.cpu_only
def test_the_operators_pass_torchs_checks():
    logits, labels = batch(size=(6,))
    predicted = logits.argmax(1, keepdim=True)
    for per_class in (False, True):
        arguments = ("dice_score", logits, labels, 3, 255, 1, per_class, None, 0, True)
        torch.library.opcheck(torch.ops.segloss.confusion_counts.default, arguments)
    arguments = ("accuracy", predicted, labels, 255, None, None, True)
    torch.library.opcheck(torch.ops.segloss.equal_label_counts.default, arguments)
    masks = ("dice_score", predicted > 1, (labels > 1).byte(), -1, 1, True)
    torch.library.opcheck(torch.ops.segloss.mask_counts.default, masks)


@pytest.mark.cpu_only
@every_metric
@pytest.mark.parametrize("options", [{}, {"threshold": 0.0}], ids=["argmax", "threshold"])
def test_compile_is_one_graph_with_the_same_result(metric, options):
    compiled = torch.compile(metric, backend="aot_eager", fullgraph=True)
    logits, labels = batch(size=(6,))
    options = {**options, "ignore_index": 255, "per_sample": True}
    assert_equal(compiled(logits, labels, **options), metric(logits, labels, **options))


@every_metric
def test_vmap_has_the_samples_of_each_member(metric):
    logits, labels = batch(size=(6,))
    pairs = logits.unflatten(0, (2, 2)), labels.unflatten(0, (2, 2))
    actual = torch.func.vmap(lambda x, y: metric(x, y, ignore_index=255, per_sample=True))(*pairs)
    assert_equal(actual.flatten(0, 1), metric(logits, labels, ignore_index=255, per_sample=True))


def test_the_number_of_threads_makes_no_difference(num_threads):
    logits, labels = batch(num_samples=9)
    results = []
    for threads in (1, 2, 3):
        num_threads(threads)
        results.append(segloss.confusion_matrix(logits, labels, ignore_index=255, per_sample=True))
    assert all(torch.equal(each, results[0]) for each in results)


@every_metric
def test_a_bad_label_is_named_by_its_place_in_the_batch(metric):
    logits, labels = batch()
    labels[3, 0, 2, 6, 199] = 9
    with pytest.raises(IndexError, match=r"Target 9 is out of bounds.* at index \[3, 0, 2, 6, 199\]"):
        metric(logits, labels, ignore_index=255, per_sample=True)


@every_metric
def test_one_sample_without_a_batch_dimension_has_no_samples(metric):
    with pytest.raises(RuntimeError, match=r"expected a batch with per_sample=True.*unsqueeze\(0\)"):
        metric(torch.randn(3), torch.tensor(1), per_sample=True)
    with pytest.raises(RuntimeError, match="expected a batch with per_sample=True"):
        metric(torch.tensor(1), torch.tensor(1), num_classes=3, per_sample=True)


@every_metric
def test_per_sample_is_true_or_false(metric):
    with pytest.raises(ValueError, match="expected per_sample to be True or False, got 'yes'"):
        metric(*batch(), per_sample="yes")


# ---- threshold ----

THRESHOLDS = [0.0, -0.7, 1.5]


@every_metric
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_channels_of_a_sigmoid_against_masks(metric, threshold):
    logits, masks = torch.randn(2, 3, 7, 30), torch.randint(2, (2, 3, 7, 30))
    expected = metric(logits > threshold, masks, masks=True)
    for dtype in (torch.long, torch.bool, torch.uint8, torch.float32):
        assert_equal(metric(logits, masks.to(dtype), threshold=threshold), expected)
    expected = metric(logits > threshold, masks, masks=True, per_sample=True)
    assert_equal(metric(logits, masks, threshold=threshold, per_sample=True), expected)


@every_metric
def test_labels_are_the_masks_of_their_classes(metric):
    logits, labels = batch()
    classes = labels.long().masked_fill(labels == 255, 0)
    masks = F.one_hot(classes.squeeze(1), 3).movedim(-1, 1).masked_fill(labels == 255, 255)
    for target in (labels, labels.squeeze(1), labels.float()):
        for per_sample in (False, True):
            options = {"threshold": 0.3, "ignore_index": 255, "per_sample": per_sample}
            assert_equal(metric(logits, target, **options), metric(logits, masks, **options))


@every_metric
@pytest.mark.parametrize("keepdim", [False, True])
def test_one_channel_against_a_map_of_0_and_1(metric, keepdim):
    logits, labels = batch(num_classes=2)
    foreground = logits[:, :1]
    target = labels if keepdim else labels.squeeze(1)
    actual = metric(foreground, target, threshold=0.0, ignore_index=255, per_sample=True)
    maps = metric((foreground > 0).long(), labels, num_classes=2, ignore_index=255, per_sample=True)
    if metric is segloss.confusion_matrix:
        assert_equal(actual[:, 0], maps)
    else:
        assert_equal(actual[:, 0], maps if metric is segloss.accuracy else maps[:, 1])


def test_a_confusion_matrix_of_each_channel():
    logits, masks = torch.randn(2, 3, 40), torch.randint(2, (2, 3, 40))
    actual = segloss.confusion_matrix(logits, masks, threshold=0.5)
    for c in range(3):
        assert_equal(actual[c], segloss.confusion_matrix((logits[:, c] > 0.5).long(), masks[:, c], num_classes=2))


@every_metric
def test_a_threshold_of_logits_of_another_size(metric):
    logits, labels = batch()
    small = logits[..., ::2, ::2].contiguous()
    full = F.interpolate(small.double(), labels.shape[2:], mode="trilinear")
    options = {"threshold": 0.2, "ignore_index": 255}
    assert_equal(metric(small.double(), labels, **options, upsample="trilinear"), metric(full, labels, **options))


@every_score
def test_a_threshold_of_regions(score):
    logits, labels = batch(num_classes=2)
    options = {"regions": [(0, 1), (1,)], "ignore_index": 255}
    assert_equal(score(logits, labels, **options, threshold=0.0), score(logits, labels, **options))
    assert_equal(score(logits, labels, **options, threshold=0.7), score(logits - 0.7, labels, **options))


@every_metric
def test_a_threshold_of_labels_that_a_table_maps(metric):
    logits, labels = batch()
    mapped = torch.full_like(labels, 255)
    for label, c in ((0, 2), (1, 0), (2, 1)):
        mapped[labels == label] = c
    options = {"threshold": 0.0, "per_sample": True}
    actual = metric(logits, labels, label_map={0: 2, 1: 0, 2: 1, 255: None}, **options)
    assert_equal(actual, metric(logits, mapped, ignore_index=255, **options))


@pytest.mark.parametrize("options", [{}, {"upsample": "nearest"}])
def test_a_logit_that_is_the_threshold_is_not_above_it(options):
    logits = torch.tensor([[[0.5, 0.75]]])
    assert segloss.accuracy(logits, torch.tensor([[[0, 1]]]), threshold=0.5, **options).item() == 1


def test_nan_is_above_no_threshold():
    logits = torch.tensor([[[float("nan"), 1.0]]])
    assert segloss.accuracy(logits, torch.tensor([[[0, 1]]]), threshold=0.0).item() == 1


@every_metric
def test_a_threshold_needs_logits(metric):
    with pytest.raises(TypeError, match=r"expected floating logits with threshold, got torch.int64 input"):
        metric(torch.zeros(2, 3, 4, dtype=torch.long), torch.zeros(2, 3, 4, dtype=torch.long), threshold=0.0)


@every_metric
@pytest.mark.parametrize("threshold", ["half", [0.5]])
def test_a_threshold_is_a_number(metric, threshold):
    with pytest.raises(TypeError, match="expected threshold to be a float, a raw logit, got"):
        metric(torch.randn(2, 3, 4), torch.zeros(2, 4, dtype=torch.long), threshold=threshold)


@every_metric
def test_a_label_that_is_no_channel(metric):
    with pytest.raises(IndexError, match="Target 3 is out of bounds"):
        metric(torch.randn(2, 3, 4), torch.full((2, 4), 3), threshold=0.0)


@every_metric
def test_a_mask_of_other_values_than_0_and_1(metric):
    with pytest.raises(RuntimeError, match="expected 0 and 1 in an integer target"):
        metric(torch.randn(2, 3, 4), torch.full((2, 3, 4), 2), threshold=0.0)
    with pytest.raises(RuntimeError, match=r"expected integral labels, or masks of 0 and 1, got 0\.5 in target"):
        metric(torch.randn(2, 3, 4), torch.full((2, 3, 4), 0.5), threshold=0.0)


def test_counts_of_channels_are_exact_beyond_the_integers_of_float32():
    logits = torch.ones(1, 1, 1).expand(1, 1, 2**25 + 3)
    matrix = segloss.confusion_matrix(
        logits, torch.ones(1, 1, 1, dtype=torch.uint8).expand(logits.shape), threshold=0.0
    )
    assert matrix.tolist() == [[[0, 0], [0, 2**25 + 3]]]


def test_a_confusion_matrix_of_each_mask():
    predicted, masks = torch.rand(2, 3, 40) > 0.5, torch.rand(2, 3, 40) > 0.5
    actual = segloss.confusion_matrix(predicted, masks, masks=True)
    for c in range(3):
        assert_equal(actual[c], segloss.confusion_matrix(predicted[:, c], masks[:, c], num_classes=2))


@every_metric
def test_decollated_lists_are_to_be_stacked(metric):
    logits, labels = batch(size=(6,))
    with pytest.raises(TypeError, match=r"expected input to be a torch.Tensor, got list. Use torch.stack\(input\)"):
        metric(list(logits), list(labels))
    with pytest.raises(TypeError, match=r"expected target to be a torch.Tensor, got list. Use torch.stack\(target\)"):
        metric(logits, list(labels))


# ---- other dimensions, fractions, several labels to ignore ----


@every_metric
@pytest.mark.parametrize("dim", [0, 2, -1])
def test_samples_of_masks_whose_classes_are_in_another_dimension(metric, dim):
    predicted, masks = torch.rand(2, 3, 7) > 0.5, torch.rand(2, 3, 7) > 0.5
    moved = [each.movedim(1, dim) for each in (predicted, masks)]
    options = {"masks": True, "per_sample": True}
    expected = metric(predicted, masks, **options)
    assert_equal(metric(*moved, dim=dim, **options), expected)
    assert metric(*(each.to("meta") for each in moved), dim=dim, **options).shape == expected.shape


@every_metric
def test_samples_of_maps_that_both_keep_the_first_dimension_for_classes(metric):
    predicted, labels = torch.randint(3, (1, 2, 5)), torch.randint(3, (1, 2, 5))
    expected = metric(predicted[0], labels[0], 3, per_sample=True)
    assert_equal(metric(predicted, labels, 3, dim=0, per_sample=True), expected)
    assert_equal(metric(predicted, labels[0], 3, dim=0, per_sample=True), expected)


@every_metric
@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 4)])
def test_fractions_of_one_channel_are_no_mask(metric, shape):
    with pytest.raises(RuntimeError, match=r"expected integral labels, or masks of 0 and 1, got 0\.5 in target"):
        metric(torch.randn(1, 1, 4), torch.full(shape, 0.5), threshold=0.0)


@every_score
def test_one_region_of_floating_labels(score):
    logits, labels = torch.randn(2, 1, 6), torch.randint(2, (2, 6))
    expected = score(logits, labels, regions=[(1,)])
    for target in (labels.float(), labels.unsqueeze(1).half()):
        assert_equal(score(logits, target, regions=[(1,)]), expected)
    labels[:, 0] = 255
    expected = score(logits, labels, threshold=0.0, ignore_index=255)
    assert_equal(score(logits, labels.float(), threshold=0.0, ignore_index=255), expected)


@every_metric
def test_one_channel_with_several_labels_to_ignore(metric):
    logits, labels = torch.randn(2, 1, 6), torch.tensor([[0, 1, 0, 255, 1, 0], [0, 0, 0, 254, 0, 0]])
    expected = metric(logits, labels.where(labels < 2, 255), threshold=0.0, ignore_index=255)
    assert_equal(metric(logits, labels, threshold=0.0, ignore_index=[254, 255]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_threshold_is_not_rounded_to_half_precision(dtype):
    logits = torch.full((1, 1, 4), 0.1, dtype=dtype)  # a little more, or less
    masks = (logits.double() > 0.1).long()
    assert segloss.accuracy(logits, masks, threshold=0.1).item() == 1
    assert segloss.accuracy(logits, masks, threshold=0.1, upsample="nearest").item() == 1


@every_metric
def test_floating_masks_are_compiled_and_mapped(metric):
    logits, masks = torch.randn(2, 2, 3, 4), torch.randint(2, (2, 2, 3, 4)).float()
    call = lambda x, y: metric(x, y, threshold=0.0)  # noqa: E731
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert_equal(compiled(logits[0], masks[0]), call(logits[0], masks[0]))
    expected = torch.stack([call(x, y) for x, y in zip(logits, masks, strict=True)])
    assert_equal(torch.func.vmap(call)(logits, masks), expected)


@every_metric
@pytest.mark.parametrize("options", [{"ignore_index": [254, 255]}, {"label_map": {0: 0, 1: 1}}], ids=str)
def test_masks_have_no_table_of_labels(metric, options):
    with pytest.raises(ValueError, match="expected one ignore_index and no label_map with a mask for each class"):
        metric(torch.randn(2, 3, 4), torch.full((2, 3, 4), 255), threshold=0.0, **options)


@every_metric
def test_one_sample_has_no_samples_of_channels_either(metric):
    with pytest.raises(RuntimeError, match="expected a batch with per_sample=True"):
        metric(torch.randn(3), torch.tensor(1), threshold=0.0, per_sample=True)


@pytest.mark.parametrize("per_sample", [False, True])
def test_labels_that_ask_for_gigabytes_of_counts(per_sample):
    predicted = torch.zeros(8, 1, dtype=torch.long)
    labels = predicted.clone()
    labels[0] = 2**11 if per_sample else 2**13
    with pytest.raises(RuntimeError, match=r"expected num_classes where labels ask for more than 2\^24 counts"):
        segloss.confusion_matrix(predicted, labels, per_sample=per_sample)
