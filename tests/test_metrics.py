"""confusion_matrix, dice_score, jaccard_index: labels against predictions, per class."""

import pytest
import reference
import torch
from operators import without_kernel

import segloss

INTEGERS = [
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
METRICS = ["confusion_matrix", "dice_score", "jaccard_index"]
NAN = float("nan")


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def randint(classes, *shape, seed=1):
    return torch.randint(classes, shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def half_right(x, labels, dim=1):
    """The labels, with every other one replaced by the prediction."""
    voxels = torch.arange(labels.numel()).view(labels.shape)
    return torch.where(voxels % 2 == 0, x.argmax(dim, keepdim=labels.dim() == x.dim()), labels)


def assert_scores(actual, expected):
    """The counts are exact, and so is their quotient up to its rounding to float32."""
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


def assert_metrics(input, target, num_classes, ignore_index=-100, dim=1, expected=None, give_num_classes=False):
    """All metrics of (input, target) equal the reference's of `expected`, the same voxels in another form."""
    given = (num_classes,) if give_num_classes else ()
    arguments = (*(expected or (input, target)), num_classes, ignore_index, dim)
    matrix = segloss.confusion_matrix(input, target, *given, ignore_index=ignore_index, dim=dim)
    assert matrix.tolist() == reference.confusion_matrix(*arguments)
    dice = segloss.dice_score(input, target, *given, ignore_index=ignore_index, dim=dim)
    assert_scores(dice, reference.dice_score(*arguments))
    jaccard = segloss.jaccard_index(input, target, *given, ignore_index=ignore_index, dim=dim)
    assert_scores(jaccard, reference.jaccard_index(*arguments))


# ---- logits ----


@pytest.mark.parametrize("spatial", [(), (4,), (4, 5), (3, 4, 2), (2, 3, 2, 2)], ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("keepdim", [False, True])
def test_logits_against_labels(keepdim, dtype, spatial):
    x, labels = randn(4, 3, *spatial).to(dtype), randint(3, 4, *([1] if keepdim else []), *spatial)
    assert_metrics(x, labels, 3)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_labels_of_any_dtype(dtype):
    x, labels = randn(2, 3, 40), randint(3, 2, 40)
    assert_metrics(x, labels.to(dtype), 3)


def test_bool_labels():
    assert_metrics(randn(2, 2, 40), randint(2, 2, 40).bool(), 2)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_dim_is_the_class_dimension(dim):
    assert_metrics(randn(5, 5, 5), randint(5, 5, 5), 5, dim=dim)


def test_labels_may_keep_the_class_dimension_where_it_is_last():
    assert_metrics(randn(2, 7, 3), randint(3, 2, 7, 1), 3, dim=-1)


@pytest.mark.parametrize("target", [torch.tensor(2), torch.tensor([2])])
def test_one_unbatched_voxel(target):
    assert_metrics(torch.tensor([0.0, 3.0, 2.0]), target, 3)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("target_layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout(target_layout, layout):
    x, labels = randn(2, 3, 6, 15), randint(3, 2, 1, 6, 15)
    assert_metrics(layout(x), target_layout(labels), 3, expected=(x, labels))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_of_maps(layout):
    predicted, labels = randint(3, 2, 1, 6, 15, seed=2), randint(3, 2, 6, 15)
    assert_metrics(layout(predicted), labels, 3, expected=(predicted, labels))


@pytest.mark.parametrize("num_voxels", [1, 63, 64, 65, 4097])
@pytest.mark.parametrize("num_classes", [2, 127, 128, 129, 150, 300])
def test_many_classes_and_the_ends_of_blocks(num_classes, num_voxels):
    x = randn(1, num_classes, num_voxels)
    labels = half_right(x, randint(num_classes, 1, num_voxels))
    cells = labels * num_classes + x.argmax(1)
    expected = torch.bincount(cells.flatten(), minlength=num_classes**2).view(num_classes, num_classes)
    assert torch.equal(segloss.confusion_matrix(x, labels), expected)
    assert torch.equal(segloss.confusion_matrix(x.argmax(1), labels, num_classes), expected)
    hits, sizes = expected.diag().double(), (expected.sum(0) + expected.sum(1)).double()
    assert_scores(segloss.dice_score(x, labels), (2 * hits / sizes).tolist())
    assert_scores(segloss.jaccard_index(x, labels), (hits / (sizes - hits)).tolist())


def test_areas_of_one_class_and_single_voxels():
    """Runs of every length from 1 to 100 voxels: the kernel counts groups of equal voxels at once."""
    lengths = torch.arange(1, 101)
    labels = torch.arange(100).remainder(3).repeat_interleave(lengths)
    predicted = torch.arange(100).remainder(4).repeat_interleave(lengths.flip(0))
    assert_metrics(predicted, labels, 4)


@pytest.mark.parametrize("metric", METRICS)
def test_num_classes_may_be_given_with_logits(metric):
    x, labels = randn(2, 3, 40), randint(3, 2, 40)
    assert torch.equal(getattr(segloss, metric)(x, labels, 3), getattr(segloss, metric)(x, labels))


# ---- floating input that is not logits of two classes or more ----

EVERY_METRIC = pytest.mark.parametrize("metric", ["accuracy", *METRICS])


@pytest.mark.parametrize(
    ("shape", "target_shape", "dim"),
    [((2, 1, 4), (2, 4), 1), ((2, 1, 4), (2, 1, 4), 1), ((2, 4, 1), (2, 4), -1), ((2, 1), (2,), 1), ((1,), (), 1)],
)
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int64, torch.float32])
@EVERY_METRIC
def test_one_channel_was_scored_as_logits_of_background_alone(metric, target_dtype, shape, target_shape, dim):
    logits, background = randn(*shape), torch.zeros(target_shape, dtype=target_dtype)
    text = rf"{metric}: .*one channel in dimension .* \(input > 0\)\.long\(\) with num_classes=2 .* input\.long\(\)"
    for input, target in ((logits, background), ((logits > 0).float(), background + 1)):
        with pytest.raises(RuntimeError, match=text):
            getattr(segloss, metric)(input, target, dim=dim)


def test_the_advice_for_one_channel_scores_background_and_foreground():
    logits, mask = torch.tensor([[[-1.0, 2.0, 3.0, -4.0]]]), torch.tensor([[0, 1, 0, 0]])
    assert segloss.confusion_matrix((logits > 0).long(), mask, num_classes=2).tolist() == [[2, 1], [0, 1]]
    assert_scores(segloss.dice_score((logits > 0).long(), mask, num_classes=2), [0.8, 2 / 3])


@pytest.mark.parametrize(
    ("shape", "target_shape"),
    [
        *(((2, 4, 5), (2, 4, 5)), ((2, 4, 5), (2, 1, 4, 5)), ((2, 1, 4, 5), (2, 4, 5)), ((2, 4), (2, 4))),
        *(((4,), (4,)), ((4,), (4, 1)), ((), ()), ((), (1,))),
    ],
)
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int64, torch.float32])
@EVERY_METRIC
def test_predicted_labels_of_a_floating_dtype_were_read_as_logits(metric, target_dtype, shape, target_shape):
    predicted, labels = randint(3, *shape) + 1, (randint(3, *target_shape) + 1).to(target_dtype)
    with pytest.raises(RuntimeError, match=rf"{metric}: (?s:.*)input\.long\(\).* a map of predicted labels"):
        getattr(segloss, metric)(predicted.float(), labels)
    getattr(segloss, metric)(predicted, labels)


def test_predicted_labels_of_a_floating_dtype_with_num_classes_were_read_as_logits():
    with pytest.raises(ValueError, match=r"expected num_classes=4, .* input\.long\(\) for a map of predicted labels"):
        segloss.dice_score(randint(3, 2, 4, 5).float(), randint(3, 2, 4, 5), 3)


def test_the_advice_for_predicted_labels_is_given_by_a_compiled_metric_too():
    compiled = torch.compile(segloss.dice_score, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"dice_score: .*input\.long\(\)"):
        compiled(randint(3, 2, 4, 5).float(), randint(3, 2, 4, 5))


# ---- ties and nan ----


@pytest.mark.parametrize("num_classes", [3, 128, 129, 300])
def test_the_first_of_equal_logits_is_predicted(num_classes):
    x = torch.zeros(1, num_classes)
    x[:, [1, num_classes - 1]] = 5
    assert segloss.confusion_matrix(x, torch.tensor([0])).nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("num_classes", [3, 128, 129, 300])
def test_the_first_nan_is_predicted(num_classes):
    x = torch.zeros(1, num_classes)
    x[0, 0] = float("inf")
    x[0, [1, num_classes - 1]] = NAN
    assert segloss.confusion_matrix(x, torch.tensor([0])).nonzero().tolist() == [[0, 1]]


# ---- ignored voxels ----


@pytest.mark.parametrize("ignore_index", [-100, 255, 0, 2])
def test_ignored_voxels_do_not_count(ignore_index):
    x, labels = randn(2, 3, 40), randint(3, 2, 40)
    labels[:, ::3] = ignore_index
    assert_metrics(x, labels, 3, ignore_index)
    assert_metrics(x.argmax(1), labels, 3, ignore_index, give_num_classes=True)


@pytest.mark.parametrize("strange", [-1, 3, 255, 2**40])
def test_any_prediction_is_accepted_where_the_label_is_ignored(strange):
    predicted, labels = torch.tensor([0, strange, 2]), torch.tensor([0, 255, 1])
    matrix = segloss.confusion_matrix(predicted, labels, ignore_index=255)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_a_prediction_of_ignore_index_counts():
    """Only the label says which voxels do not count."""
    predicted, labels = torch.tensor([0, 2, 1]), torch.tensor([0, 1, 2])
    matrix = segloss.confusion_matrix(predicted, labels, 3, ignore_index=2)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("labels", [torch.zeros(0, dtype=torch.int64), torch.full((2,), -100)])
def test_without_a_voxel_that_counts_the_counts_are_zero_and_the_scores_nan(labels):
    x = torch.zeros(len(labels), 3)
    assert torch.equal(segloss.confusion_matrix(x, labels), torch.zeros(3, 3, dtype=torch.int64))
    assert_scores(segloss.dice_score(x, labels), [NAN] * 3)
    assert_scores(segloss.jaccard_index(x, labels), [NAN] * 3)


@pytest.mark.parametrize("labels", [torch.zeros(0, dtype=torch.int64), torch.full((2,), -100)])
def test_maps_without_a_voxel_that_counts_have_no_class(labels):
    predicted = torch.ones_like(labels)
    assert segloss.confusion_matrix(predicted, labels).shape == (0, 0)
    assert segloss.dice_score(predicted, labels).shape == (0,)


# ---- the scores ----


def test_a_class_in_neither_map_scores_nan_and_a_class_in_only_one_scores_zero():
    predicted, labels = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 3])
    assert_scores(segloss.dice_score(predicted, labels, 5), [1.0, 0.0, NAN, 0.0, NAN])
    assert_scores(segloss.jaccard_index(predicted, labels, 5), [1.0, 0.0, NAN, 0.0, NAN])


def test_the_scores_follow_from_the_confusion_matrix():
    x, labels = randn(2, 5, 100), randint(5, 2, 100)
    m = segloss.confusion_matrix(x, half_right(x, labels)).double()
    hits, predicted, labelled = m.diag(), m.sum(0), m.sum(1)
    assert_scores(segloss.dice_score(x, half_right(x, labels)), (2 * hits / (predicted + labelled)).tolist())
    assert_scores(segloss.jaccard_index(x, half_right(x, labels)), (hits / (predicted + labelled - hits)).tolist())
    assert segloss.accuracy(x, half_right(x, labels)) == (hits.sum() / m.sum()).float()


# ---- label maps ----


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int64, torch.uint64, torch.float32, torch.bool])
def test_a_map_of_predicted_labels(target_dtype, dtype):
    predicted, labels = randint(2, 2, 4, 5), randint(2, 2, 4, 5, seed=2)
    both_bool = (dtype, target_dtype) == (torch.bool, torch.bool)
    assert_metrics(predicted.to(dtype), labels.to(target_dtype), 2, give_num_classes=both_bool)


@pytest.mark.parametrize(("first", "second"), [((2, 1, 4), (2, 4)), ((2, 4), (2, 1, 4)), ((2, 1, 4), (2, 1, 4))])
def test_maps_may_keep_the_class_dimension(first, second):
    assert_metrics(randint(3, *first), randint(3, *second, seed=2), 3)


def test_maps_may_keep_the_last_dimension():
    assert_metrics(randint(3, 2, 4, 1), randint(3, 2, 4, seed=2), 3, dim=-1)


def test_maps_of_one_voxel():
    assert segloss.confusion_matrix(torch.tensor(1), torch.tensor(0)).tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("predicted", "labels", "num_classes"),
    [([0, 1, 0], [0, 4, 0], 5), ([0, 7, 0], [0, 4, 0], 8), ([0, 9, 1], [0, 255, 0], 2), ([0, 0, 0], [0, 255, 0], 1)],
)
def test_the_classes_of_maps_are_those_up_to_the_largest_label_that_counts(predicted, labels, num_classes):
    predicted, labels = torch.tensor(predicted), torch.tensor(labels)
    assert segloss.dice_score(predicted, labels, ignore_index=255).shape == (num_classes,)
    assert segloss.confusion_matrix(predicted, labels, ignore_index=255).shape == (num_classes, num_classes)


def test_the_largest_label_is_found_wherever_it_is():
    predicted, labels = torch.zeros(3, 10_000, dtype=torch.uint8), torch.zeros(3, 10_000, dtype=torch.uint8)
    predicted[1, 7000] = 200
    assert segloss.dice_score(predicted, labels).shape == (201,)


# ---- label maps that may be masks ----


def one_hot(labels, num_classes, dim=1):
    return torch.nn.functional.one_hot(labels, num_classes).movedim(-1, dim)


def one_hot_pair(dim=1):
    """Prediction and target of three classes, and the right Dice scores, those of their label maps."""
    predicted, labels = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[0, 1, 2, 2]])
    return one_hot(predicted, 3, dim), one_hot(labels, 3, dim), [2 / 3, 1.0, 2 / 3]


def test_one_hot_integers_were_scored_as_maps_of_two_labels():
    predicted, target, expected = one_hot_pair()
    assert_scores(segloss.dice_score(predicted, target, num_classes=2), [0.875, 0.75])  # two numbers, for three classes
    with pytest.raises(
        RuntimeError, match=r"dice_score: .* both one-hot along dimension 1, .*num_classes= .*masks=True"
    ):
        segloss.dice_score(predicted, target)
    assert_scores(segloss.dice_score(predicted, target, masks=True), expected)
    assert_scores(segloss.dice_score(predicted.float(), target), expected)
    assert_scores(segloss.dice_score(predicted.argmax(1), target.argmax(1)), expected)


@pytest.mark.parametrize("dim", [1, 2, -1, 0])
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int64, torch.bool, *FLOATS])
@EVERY_METRIC
def test_a_pair_of_one_hot_tensors_is_no_pair_of_label_maps(metric, target_dtype, dtype, dim):
    predicted, target, _ = one_hot_pair(dim)
    predicted, target = predicted.to(dtype), target.to(target_dtype)
    with pytest.raises(RuntimeError, match=rf"{metric}: expected label maps, got input and target .* num_classes= "):
        getattr(segloss, metric)(predicted, target, dim=dim)
    getattr(segloss, metric)(predicted, target, 2, dim=dim)
    if metric != "confusion_matrix":
        assert getattr(segloss, metric)(predicted, target, dim=dim, masks=True).shape == (3,)


@EVERY_METRIC
def test_a_pair_of_bool_masks_is_no_pair_of_label_maps(metric):
    predicted, masks = randint(2, 2, 3, 4).bool(), torch.ones(2, 3, 4, dtype=torch.bool)
    with pytest.raises(
        RuntimeError, match=rf"{metric}: .* both bool with more than one entry along dimension 1.*num_cl"
    ):
        getattr(segloss, metric)(predicted, masks)
    getattr(segloss, metric)(predicted, masks, 2)
    getattr(segloss, metric)(predicted, masks.long())


def test_the_advice_for_a_confusion_matrix_of_one_hot_tensors_is_argmax():
    predicted, target, _ = one_hot_pair()
    text = r"input\.long\(\)\.argmax\(1\) and target\.long\(\)\.argmax\(1\) where they are one-hot$"
    with pytest.raises(RuntimeError, match=text):
        segloss.confusion_matrix(predicted.bool(), target.bool())
    matrix = segloss.confusion_matrix(predicted.bool().long().argmax(1), target.bool().long().argmax(1))
    assert torch.equal(matrix, segloss.confusion_matrix(predicted.float(), target))


LABEL_MAPS = {
    "only the prediction is one-hot": (one_hot_pair()[0], randint(2, 1, 3, 4)),
    "only the target is one-hot": (randint(2, 1, 3, 4), one_hot_pair()[1]),
    "one-hot along another dimension": tuple(each.mT for each in one_hot_pair()[:2]),
    "one entry": (torch.ones(4, 1, dtype=torch.int64), torch.ones(4, 1, dtype=torch.int64)),
    "one entry of bool": (torch.ones(4, 1, dtype=torch.bool), torch.ones(4, 1, dtype=torch.bool)),
    "one dimension": (torch.tensor([0, 1, 0]), torch.tensor([1, 0, 0])),
    "one dimension of bool": (torch.tensor([False, True]), torch.tensor([True, True])),
    "a class dimension of one of them": (torch.eye(3).long().unsqueeze(1), torch.eye(3).long()),
    "a voxel of many that is not one-hot": (torch.eye(2).long().repeat(9000, 1), torch.eye(2).long().repeat(9000, 1)),
    "no voxel": (torch.zeros(0, 3, 4).long(), torch.zeros(0, 3, 4).long()),
}
LABEL_MAPS["a voxel of many that is not one-hot"][1][17_000] = 1


@pytest.mark.parametrize("name", LABEL_MAPS)
def test_label_maps_are_scored_as_such(name):
    predicted, labels = LABEL_MAPS[name]
    flat = predicted.flatten(), labels.flatten()
    assert torch.equal(segloss.confusion_matrix(predicted, labels), segloss.confusion_matrix(*flat))
    assert_scores(segloss.accuracy(predicted, labels), segloss.accuracy(*flat).item())


def test_the_accuracy_of_label_maps_is_one_compiled_graph_with_the_same_errors():
    compiled = torch.compile(segloss.accuracy, backend="aot_eager", fullgraph=True)
    predicted, labels = randint(3, 2, 40), randint(3, 2, 40, seed=2)
    assert compiled(predicted, labels) == segloss.accuracy(predicted, labels)
    with pytest.raises(RuntimeError, match="both one-hot"):
        compiled(*one_hot_pair()[:2])


def test_vmap_gives_the_accuracy_of_each_pair_of_label_maps():
    predicted, labels = randint(3, 3, 2, 4), randint(3, 3, 2, 4, seed=2)
    expected = [segloss.accuracy(*pair).item() for pair in zip(predicted, labels, strict=True)]
    assert_scores(torch.func.vmap(segloss.accuracy)(predicted, labels), expected)
    pairs = [each.expand(2, *each.shape) for each in one_hot_pair()[:2]]
    with pytest.raises(RuntimeError, match="both one-hot"):
        torch.func.vmap(segloss.accuracy)(*pairs)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, torch.bool])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_operators_of_pytorch_know_one_hot_tensors_as_the_kernel_does(dim, dtype):
    values = one_hot(randint(3, 2, 40), 3, dim).to(dtype)
    no_one, two_ones = values.clone(), values.clone()
    no_one.select(0, -1)[..., -1] = 0
    two_ones.select(0, -1)[..., -1] = 1
    others = [] if dtype == torch.bool else [(values.long() * 2).to(dtype), torch.full_like(values, 3)]
    for tensor, expected in ((values, True), *((each, False) for each in (no_one, two_ones, *others))):
        assert torch.ops.segloss.is_one_hot("op", tensor, dim) == expected
        assert without_kernel("is_one_hot", "op", tensor, dim) == expected


def test_opcheck_of_the_counts_of_equal_labels_and_of_one_hot_tensors():
    arguments = ("accuracy", randint(3, 2, 4), randint(3, 2, 4, seed=2), -100, 1)
    torch.library.opcheck(torch.ops.segloss.equal_label_counts.default, arguments)
    torch.library.opcheck(torch.ops.segloss.num_label_classes.default, arguments)
    torch.library.opcheck(torch.ops.segloss.is_one_hot.default, ("accuracy", one_hot_pair()[0], 1))


@pytest.mark.parametrize("name", ["input", "target"])
def test_a_stray_label_does_not_ask_for_gigabytes(name):
    maps = {"input": torch.zeros(2, 4, dtype=torch.uint16), "target": torch.zeros(2, 4, dtype=torch.uint8)}
    maps[name] = torch.tensor([[0, 0, 0, 0], [0, 60_000, 0, 0]], dtype=torch.uint16)
    text = rf"label 60000 at index \[1, 1\] of {name} \[2, 4\].* 28\.8 GB.* num_classes=60001"
    with pytest.raises(RuntimeError, match=rf"confusion_matrix: .*{text}"):
        segloss.confusion_matrix(**maps)


@pytest.mark.parametrize(("metric", "largest"), [("confusion_matrix", 4095), ("dice_score", 2**24 // 3 - 1)])
def test_maps_without_num_classes_may_need_at_most_2_to_the_24_counts(metric, largest):
    labels = torch.tensor([0, largest])
    assert getattr(segloss, metric)(labels, labels).shape[0] == largest + 1
    with pytest.raises(
        RuntimeError, match=rf"{metric}: .* 2\^24 counts, got label {largest + 1} at index \[1\] of target"
    ):
        getattr(segloss, metric)(labels, torch.tensor([0, largest + 1]))


def test_a_stray_label_that_is_ignored_is_no_class():
    labels = torch.tensor([0, 1, 60_000])
    assert segloss.confusion_matrix(labels, labels, ignore_index=60_000).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_large_matrices_count_the_same_with_fewer_tables_than_threads(num_threads):
    """For 3000 classes a table takes 72 MB, so that there is one for all threads."""
    predicted, labels = randint(3000, 50_000), randint(3000, 50_000, seed=2)
    expected = torch.bincount(labels * 3000 + predicted, minlength=3000**2).view(3000, 3000)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert torch.equal(segloss.confusion_matrix(predicted, labels, 3000), expected)
    finally:
        torch.set_num_threads(before)


# ---- masks ----

MASK_METRICS = {name: getattr(segloss, name) for name in ("accuracy", "dice_score", "jaccard_index")}
EVERY_MASK_METRIC = pytest.mark.parametrize("metric", MASK_METRICS)


def assert_mask_scores(input, target, expected, **options):
    for name, scores in expected.items():
        assert_scores(MASK_METRICS[name](input, target, masks=True, **options), scores)


@pytest.mark.parametrize("spatial", [(), (7,), (4, 5), (3, 4, 2)], ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
def test_masks_are_scored_class_by_class(dtype, spatial):
    predicted, masks = randint(2, 4, 3, *spatial).to(dtype), randint(2, 4, 3, *spatial, seed=2)
    expected = reference.mask_scores(predicted, masks)
    for target_dtype in (dtype, torch.int64, torch.bool, *FLOATS):
        assert_mask_scores(predicted, masks.to(target_dtype), expected)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_dim_is_where_the_masks_are(dim):
    predicted, masks = randint(2, 3, 4, 5), randint(2, 3, 4, 5, seed=2)
    assert_mask_scores(predicted, masks, reference.mask_scores(predicted, masks, dim=dim), dim=dim)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *(((2, 4, 5), (2, 1, 4, 5)), ((2, 1, 4, 5), (2, 4, 5)), ((2, 1, 4, 5), (2, 1, 4, 5)), ((8,), (8, 1))),
        *(((8,), (8,)), ((8, 1), (8, 1)), ((), ()), ((1,), ())),
    ],
)
def test_the_masks_of_one_class_may_keep_the_class_dimension(first, second):
    predicted, masks = randint(2, *first), randint(2, *second, seed=2)
    expected = reference.mask_scores(predicted.reshape(-1, 1), masks.reshape(-1, 1))
    assert_mask_scores(predicted, masks, expected)
    assert_mask_scores(predicted, masks, expected, num_classes=1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint64, torch.float32, torch.bfloat16])
def test_a_voxel_that_is_ignored_in_any_class_counts_in_none(dtype):
    predicted, masks = randint(2, 2, 3, 40), randint(2, 2, 3, 40, seed=2)
    masks[:, 1, ::3] = 255
    masks[:, :, ::7] = 255
    predicted[:, 2, ::3] = 9  # not a value of a mask, but at ignored voxels
    expected = reference.mask_scores(predicted, masks, 255)
    assert_mask_scores(predicted, masks.to(dtype), expected, ignore_index=255)


def test_masks_of_absent_classes_score_nan_but_have_an_accuracy():
    empty = torch.zeros(2, 3, 4, dtype=torch.bool)
    assert_mask_scores(empty, empty, {"accuracy": [1.0] * 3, "dice_score": [NAN] * 3, "jaccard_index": [NAN] * 3})


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
@EVERY_MASK_METRIC
def test_masks_without_a_voxel_score_nan(metric, shape):
    empty = torch.zeros(shape, dtype=torch.uint8)
    assert_scores(MASK_METRICS[metric](empty, empty, masks=True), [NAN] * 3)


def test_masks_are_counted_exactly_beyond_2_to_the_24():
    predicted = torch.zeros(1, 1, 2**24 + 1, dtype=torch.bool)
    masks = predicted.clone()
    masks[..., 12_345] = True
    assert torch.ops.segloss.mask_counts("dice_score", predicted, masks, -100, 1).flatten().tolist() == [0, 0, 1, 2**24]


@EVERY_MASK_METRIC
def test_floating_input_is_no_mask(metric):
    with pytest.raises(
        TypeError, match=rf"{metric}: .*got Float\. .*\(input > 0\) for logits, \(input > 0\.5\) for prob"
    ):
        MASK_METRICS[metric](randn(2, 3, 4), randint(2, 2, 3, 4), masks=True)


@pytest.mark.parametrize("bad", [2, 255, 0.5, NAN, -100.5])
@EVERY_MASK_METRIC
def test_a_bad_value_of_a_mask_is_named(metric, bad):
    good = torch.zeros(2, 3, 4, dtype=torch.uint8)
    masks = good.to(torch.float32 if isinstance(bad, float) else torch.int64)
    masks[1, 2, 1:] = bad
    with pytest.raises(
        RuntimeError, match=rf"{metric}: .*0 and 1 in target .*got {bad} at index \[1, 2, 1\] of target"
    ):
        MASK_METRICS[metric](good, masks, masks=True)
    if isinstance(bad, int):
        with pytest.raises(
            RuntimeError, match=rf"0 and 1 in input .*got {bad} at index \[1, 2, 1\] of input \[2, 3, 4\]"
        ):
            MASK_METRICS[metric](masks, good, masks=True)


@pytest.mark.parametrize("ignore_index", [0, 1])
def test_an_ignore_index_that_is_a_value_of_masks_is_refused(ignore_index):
    masks = randint(2, 2, 3, 4)
    with pytest.raises(RuntimeError, match=rf"no value of a mask, got ignore_index={ignore_index}"):
        segloss.dice_score(masks, masks, ignore_index=ignore_index, masks=True)


def test_another_number_of_classes_than_there_are_masks_is_refused():
    masks = randint(2, 2, 3, 4)
    assert segloss.dice_score(masks, masks, 3, masks=True).shape == (3,)
    with pytest.raises(ValueError, match=r"expected num_classes=3, the masks of input \[2, 3, 4\], got 4"):
        segloss.dice_score(masks, masks, 4, masks=True)


@pytest.mark.parametrize("target_shape", [(2, 4, 5), (2, 1, 5), (2, 5)])
def test_masks_of_other_shapes_are_refused(target_shape):
    with pytest.raises(RuntimeError, match=r"dice_score: expected input and target of one shape.*input \[2, 3, 5\]"):
        segloss.dice_score(randint(2, 2, 3, 5), randint(2, *target_shape), masks=True)


@EVERY_MASK_METRIC
def test_masks_under_transforms(metric):
    predicted, masks = randint(2, 2, 2, 3, 4).bool(), randint(2, 2, 2, 3, 4, seed=2)
    call = lambda p, t: MASK_METRICS[metric](p, t, masks=True)  # noqa: E731
    expected = torch.stack([call(*pair) for pair in zip(predicted, masks, strict=True)])
    assert_scores(torch.func.vmap(call)(predicted, masks), expected.tolist())
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert_scores(compiled(predicted[0], masks[0]), expected[0].tolist())
    with pytest.raises(RuntimeError, match="expected 0 and 1 in target"):
        compiled(predicted[0], masks[0] + 1)


def test_opcheck_of_the_counts_of_masks():
    predicted, masks = randint(2, 2, 3, 4), randint(2, 2, 3, 4, seed=2)
    torch.library.opcheck(torch.ops.segloss.mask_counts.default, ("dice_score", predicted, masks, -100, 1))
    torch.library.opcheck(torch.ops.segloss.dice_score.default, (predicted, masks, None, -100, 1, True))


# ---- one-hot ----


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, torch.bool])
def test_one_hot_targets(dtype):
    x, labels = randn(2, 3, 40), randint(3, 2, 40)
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).to(dtype)
    assert_metrics(x, one_hot, 3, expected=(x, labels))


@pytest.mark.parametrize("metric", METRICS)
def test_probabilities_are_refused(metric):
    with pytest.raises(RuntimeError, match=rf"{metric}: .*one-hot target, got class probabilities"):
        getattr(segloss, metric)(randn(2, 3), torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))


# ---- errors ----


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_bad_label_raises_index_error(dtype, metric):
    labels = torch.tensor([[0, 1], [2, 3]], dtype=dtype)
    text = rf"{metric}: Target 3.* is out of bounds: 1 label is .* index \[1, 1\]"
    with pytest.raises(IndexError, match=text):
        getattr(segloss, metric)(randn(2, 3, 2), labels)
    with pytest.raises(IndexError, match=text):
        getattr(segloss, metric)(torch.zeros(2, 2, dtype=torch.uint8), labels, 3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_a_bad_prediction_raises_index_error(bad, metric):
    predicted = torch.tensor([[0, 1], [bad, 2]])
    text = rf"{metric}: Predicted label {bad} .* 1 label of input .* \[0, 3\), .* index \[1, 0\] of input \[2, 2\]"
    with pytest.raises(IndexError, match=text):
        getattr(segloss, metric)(predicted, torch.zeros(2, 2, dtype=torch.uint8), 3)


def test_all_bad_predictions_are_counted_but_those_where_the_label_is_ignored():
    predicted, labels = torch.tensor([7, 7, 0, 7]), torch.tensor([255, 0, 0, 0])
    with pytest.raises(IndexError, match=r"2 labels of input .* the first at index \[1\]"):
        segloss.confusion_matrix(predicted, labels, 3, ignore_index=255)


@pytest.mark.parametrize("bad", [2**64 - 1, 2**63])
def test_an_unsigned_prediction_beyond_int64_is_named(bad):
    predicted = torch.tensor([0, bad], dtype=torch.uint64)
    with pytest.raises(IndexError, match=rf"Predicted label {bad} is out of bounds"):
        segloss.confusion_matrix(predicted, torch.tensor([0, 0]), 3)


@pytest.mark.parametrize("bad", [-1, 2**40])
def test_maps_without_num_classes_refuse_labels_that_cannot_be_counted(bad):
    good = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(IndexError, match=rf"Target {bad} is out of bounds"):
        segloss.dice_score(good, torch.tensor([0, bad]))
    with pytest.raises(IndexError, match=rf"Predicted label {bad} is out of bounds"):
        segloss.dice_score(torch.tensor([0, bad]), good)


@pytest.mark.parametrize("metric", METRICS)
def test_a_label_that_is_not_integral_is_named(metric):
    for input in (randn(2, 3), torch.tensor([0, 1])):
        with pytest.raises(RuntimeError, match=rf"{metric}: expected integral labels .*got 0\.5 at index \[1\]"):
            getattr(segloss, metric)(input, torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("num_classes", [0, 2, 4])
def test_num_classes_other_than_the_logits_is_refused(num_classes, metric):
    text = rf"{metric}: expected num_classes=3, the classes of input \[2, 3, 4\] in dimension 1, got {num_classes}"
    with pytest.raises(ValueError, match=text):
        getattr(segloss, metric)(randn(2, 3, 4), randint(3, 2, 4), num_classes)


@pytest.mark.parametrize("num_classes", [-1, 2**31])
def test_an_impossible_num_classes_is_refused(num_classes):
    with pytest.raises(ValueError, match=rf"expected num_classes in \[0, 2147483647\], got {num_classes}"):
        segloss.confusion_matrix(randint(3, 2, 4), randint(3, 2, 4), num_classes)


@pytest.mark.parametrize("metric", METRICS)
def test_shapes_that_do_not_fit_are_refused(metric):
    with pytest.raises(RuntimeError, match=rf"{metric}: expected labels of shape \[2, 4\].*got target \[2, 5\]"):
        getattr(segloss, metric)(randn(2, 3, 4), randint(3, 2, 5))
    with pytest.raises(RuntimeError, match=rf"{metric}: .*of one shape.*got input \[2, 4\] and target \[2, 5\]"):
        getattr(segloss, metric)(randint(3, 2, 4), randint(3, 2, 5))


@pytest.mark.parametrize(("one_hot", "dim"), [("input", 1), ("target", -1)])
@pytest.mark.parametrize("metric", METRICS)
def test_the_error_of_one_hot_beside_labels_advises_argmax(metric, one_hot, dim):
    labels = torch.randint(3, (2, 4, 5))
    maps = {"input": labels, "target": labels} | {one_hot: torch.nn.functional.one_hot(labels, 3).movedim(-1, dim)}
    with pytest.raises(RuntimeError, match=rf"Use {one_hot}\.byte\(\)\.argmax\({dim % 4}\) if {one_hot} is one-hot"):
        getattr(segloss, metric)(**maps, dim=dim)


def test_the_private_operators_refuse_maps_of_different_shapes():
    for map, dim in ((randint(3, 2, 5), 0), (randint(3, 8), 1)):
        with pytest.raises(RuntimeError, match="expected label maps of one shape"):
            torch.ops.segloss.confusion_counts("dice_score", map, randint(3, 2, 4), 3, -100, dim, True)
        with pytest.raises(RuntimeError, match="expected label maps of one shape"):
            torch.ops.segloss.num_label_classes("dice_score", map, randint(3, 2, 4), -100)


@pytest.mark.cpu_only
def test_the_private_operators_returned_uninitialised_memory_for_a_target_without_values():
    maps = ("dice_score", randint(3, 2, 4), randint(3, 2, 4).to("meta"))
    calls = {"confusion_counts": (3, -100, 0, True), "num_label_classes": (-100,), "equal_label_counts": (-100,)}
    for name, options in {**calls, "mask_counts": (-100, 1)}.items():
        with pytest.raises(RuntimeError, match="dice_score: expected all tensors on one device"):
            getattr(torch.ops.segloss, name)(*maps, *options)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_private_operator_refuses_another_number_of_classes_than_the_logits(num_classes):
    with pytest.raises(ValueError, match=rf"expected num_classes=3 for input \[2, 3\] .* got {num_classes}"):
        torch.ops.segloss.confusion_counts("dice_score", randn(2, 3), torch.tensor([0, 1]), num_classes, -100, 1, True)


def test_the_private_operator_refuses_logits_instead_of_maps():
    with pytest.raises(TypeError, match="expected a map of predicted labels, got Float"):
        torch.ops.segloss.num_label_classes("dice_score", randn(2, 4), randint(3, 2, 4), -100)


# ---- the result ----


def test_the_matrix_is_int64_and_the_scores_are_of_the_default_dtype():
    x, labels = randn(2, 3).half(), torch.tensor([0, 1])
    assert segloss.confusion_matrix(x, labels).dtype == torch.int64
    assert segloss.dice_score(x, labels).dtype == torch.get_default_dtype()
    assert segloss.jaccard_index(x, labels).dtype == torch.get_default_dtype()


@pytest.mark.parametrize("metric", METRICS)
def test_the_result_has_no_gradient(metric):
    x = randn(2, 3).requires_grad_()
    assert not getattr(segloss, metric)(x, torch.tensor([0, 1])).requires_grad


def test_counts_are_exact_beyond_2_to_the_31():
    """4096 labels, expanded without memory to more than 2^31."""
    repeats = 2**19 + 200
    row = torch.zeros(4096, dtype=torch.uint8)
    row[0] = 1
    labels, predicted = row.expand(repeats, 4096), torch.zeros(4096, dtype=torch.uint8).expand(repeats, 4096)
    assert 4095 * repeats > 2**31
    matrix = segloss.confusion_matrix(predicted, labels, 2)
    assert matrix.tolist() == [[4095 * repeats, 0], [repeats, 0]]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num_classes", [3, 150])
def test_any_number_of_threads_counts_the_same(num_classes, num_threads):
    x, labels = randn(1, num_classes, 50_000), randint(num_classes, 1, 50_000)
    cells = (labels * num_classes + x.argmax(1)).flatten()
    expected = torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        of_logits = segloss.confusion_matrix(x, labels)
        of_maps = segloss.confusion_matrix(x.argmax(1), labels)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(of_logits, expected)
    assert torch.equal(of_maps, expected)


# ---- devices without a kernel ----


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 1, 255])
@pytest.mark.parametrize("target_dtype", [torch.int16, torch.int64, torch.float32])
def test_operators_of_pytorch_count_as_the_kernel_does(target_dtype, ignore_index, per_class):
    x, labels = randn(2, 5, 100), randint(5, 2, 100)
    labels = half_right(x, labels).to(target_dtype)
    labels[:, ::3] = ignore_index
    options = (5, ignore_index, 1, per_class)
    for input, target in ((x, labels), (x, labels.unsqueeze(1)), (randint(5, 2, 100).to(torch.uint8), labels)):
        expected = torch.ops.segloss.confusion_counts("dice_score", input, target, *options)
        assert torch.equal(without_kernel("confusion_counts", "dice_score", input, target, *options), expected)


@pytest.mark.parametrize("ignore_index", [-100, 255])
@pytest.mark.parametrize("labels", [[0, 255, 2], [255, 255, 255], [0, 0, 0], []])
def test_operators_of_pytorch_find_the_classes_of_maps(labels, ignore_index):
    labels = torch.tensor(labels, dtype=torch.uint8)
    predicted = torch.arange(len(labels)) * 2
    expected = torch.ops.segloss.num_label_classes("dice_score", predicted, labels, ignore_index)
    assert without_kernel("num_label_classes", "dice_score", predicted, labels, ignore_index) == expected


@pytest.mark.parametrize("per_class", [False, True])
def test_operators_of_pytorch_raise_the_same_errors(per_class):
    good, bad = torch.tensor([0, 1]), torch.tensor([0, 3])
    for input, target, text in ((randn(2, 3), bad, "Target 3"), (good, bad, "Target 3"), (bad, good, "Predicted")):
        with pytest.raises(IndexError, match=rf"dice_score: {text}.* index \[1\]"):
            without_kernel("confusion_counts", "dice_score", input, target, 3, -100, 1, per_class)


# ---- vmap, compile, meta tensors, opcheck ----


INPUTS = {"logits": lambda: randn(2, 3, 4), "map": lambda: randint(3, 2, 4)}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("input", INPUTS.values(), ids=INPUTS)
def test_vmap_gives_the_metric_of_each_sample(input, metric):
    inputs, labels = torch.stack([input(), input() * 0]), randint(3, 2, 2, 4)
    call = lambda x, y: getattr(segloss, metric)(x, y, 3)  # noqa: E731
    expected = torch.stack([call(x, y) for x, y in zip(inputs, labels, strict=True)])
    torch.testing.assert_close(torch.func.vmap(call)(inputs, labels), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("input", INPUTS.values(), ids=INPUTS)
def test_compile_is_one_graph_with_the_same_result(input, metric):
    x, labels = input(), randint(3, 2, 1, 4).to(torch.uint8)
    call = lambda x, y: getattr(segloss, metric)(x, y, 3)  # noqa: E731
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, labels), call(x, labels), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
def test_compile_with_dynamic_shapes(metric):
    compiled = torch.compile(getattr(segloss, metric), backend="aot_eager", fullgraph=True, dynamic=True)
    for num_classes, num_voxels in ((3, 4), (5, 70)):
        x, labels = randn(2, num_classes, num_voxels), randint(num_classes, 2, num_voxels)
        expected = getattr(segloss, metric)(x, labels)
        torch.testing.assert_close(compiled(x, labels), expected, rtol=0, atol=0, equal_nan=True)


def test_compile_of_maps_without_num_classes_breaks_the_graph_and_is_right():
    predicted, labels = randint(3, 2, 40), randint(3, 2, 40, seed=2)
    compiled = torch.compile(segloss.confusion_matrix, backend="aot_eager")
    assert torch.equal(compiled(predicted, labels), segloss.confusion_matrix(predicted, labels))


@pytest.mark.parametrize("input", INPUTS.values(), ids=INPUTS)
def test_meta_tensors_give_shape_and_dtype(input):
    x, labels = input().to("meta"), randint(3, 2, 4).to("meta")
    matrix, dice = segloss.confusion_matrix(x, labels, 3), segloss.dice_score(x, labels, 3)
    assert (matrix.device.type, matrix.shape, matrix.dtype) == ("meta", (3, 3), torch.int64)
    assert (dice.device.type, dice.shape, dice.dtype) == ("meta", (3,), torch.get_default_dtype())


@pytest.mark.parametrize("metric", ["confusion_matrix", "dice_score", "jaccard_index"])
@pytest.mark.parametrize("input", INPUTS.values(), ids=INPUTS)
def test_opcheck(input, metric):
    x, labels = input(), randint(3, 2, 4)
    torch.library.opcheck(getattr(torch.ops.segloss, metric).default, (x, labels, 3))
    for per_class in (False, True):
        counts = (metric, x, labels, 3, -100, 1, per_class)
        torch.library.opcheck(torch.ops.segloss.confusion_counts.default, counts)


def test_opcheck_of_the_number_of_classes():
    arguments = ("dice_score", randint(3, 2, 4), randint(3, 2, 4), -100)
    torch.library.opcheck(torch.ops.segloss.num_label_classes.default, arguments)
