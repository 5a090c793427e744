"""label_map and several labels to ignore give the results for classes made by hand."""

import copy
from functools import partial

import numpy
import pytest
import torch
from losses import METRICS, MODULES, VARIANTS, taken, value_and_gradient
from test_devices import without_kernels
from tolerances import assert_identical

import segloss

SHAPE = (2, 3, 5, 4)
IDS = (7, 24, 11)  # raw labels of the classes 0, 1, 2
DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]
FLOATING = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

# The maps give the same classes by each of the ways that the kernels have: by comparing, by a table, by a search.
FEW = dict(zip(IDS, range(3), strict=True))
MAPS = {
    "few labels": FEW,
    "a range of labels": {**dict.fromkeys(range(30, 99), 1), **FEW},
    "labels far apart": {**FEW, **{1000 * k - 70_000: 0 for k in range(-60, 60)}},
}
OTHERS = {**dict.fromkeys((3, 100)), **FEW}


def case(dtype=torch.uint8, ids=IDS, shape=SHAPE, device=None):
    """Logits, raw labels of which some are `ignored`, and the same labels as classes with -100 for those."""
    x = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
    classes = torch.randint(3, (shape[0], *shape[2:]))
    raw = torch.tensor(ids)[classes]
    raw[0, 0, :2], classes[0, 0, :2] = 100, -100
    raw[1, 1, 1:], classes[1, 1, 1:] = 3, -100
    return x, raw.to(dtype), classes


# ---- values ----


@pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("label_map", MAPS.values(), ids=MAPS)
def test_raw_labels_give_the_loss_of_their_classes(loss, label_map):
    x, raw, classes = case(torch.int32)
    actual = value_and_gradient(loss, x, raw, label_map=label_map, ignore_index=(3, 100))
    assert_identical(actual, value_and_gradient(loss, x, classes))


@pytest.mark.parametrize("dtype", DTYPES + FLOATING)
@pytest.mark.parametrize("label_map", MAPS.values(), ids=MAPS)
def test_labels_of_every_dtype_are_mapped(dtype, label_map):
    x, raw, classes = case(dtype)
    actual = value_and_gradient(segloss.cross_entropy, x, raw, label_map=label_map, ignore_index=(3, 100))
    assert_identical(actual, value_and_gradient(segloss.cross_entropy, x, classes))


@pytest.mark.parametrize("dtype", DTYPES + FLOATING)
@pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS)
def test_several_labels_are_ignored(dtype, loss):
    x, _, classes = case()
    raw = classes.masked_fill(classes == -100, 100)
    raw[0, 3], classes[0, 3] = 9, -100
    actual = value_and_gradient(loss, x, raw.to(dtype), ignore_index=(9, 100))
    assert_identical(actual, value_and_gradient(loss, x, classes))


@pytest.mark.parametrize("ids", [(-1024, 3071, -7), (24000, 1, 70000), (2**62, -(2**62), 0)])
def test_negative_and_large_labels_are_mapped(ids):
    x, raw, classes = case(torch.int64, ids)
    label_map = dict(zip(ids, range(3), strict=True)) | {3: None, 100: None}
    actual = value_and_gradient(segloss.dice_ce_loss, x, raw, label_map=label_map)
    assert_identical(actual, value_and_gradient(segloss.dice_ce_loss, x, classes))


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 1000])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("label_map", MAPS.values(), ids=MAPS)
def test_blocks_of_every_length_and_labels_of_any_strides(size, dtype, label_map):
    x = torch.randn(1, 3, size, 2, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(3, (1, size, 2))
    raw = torch.tensor(IDS)[classes].to(dtype)
    for raw_labels in (raw, raw.transpose(1, 2).contiguous().transpose(1, 2), torch.stack([raw, raw], -1)[..., 0]):
        actual = value_and_gradient(segloss.cross_entropy, x, raw_labels, label_map=label_map)
        assert_identical(actual, value_and_gradient(segloss.cross_entropy, x, classes))


def test_labels_are_merged():
    x, raw, classes = case()
    label_map = {7: 0, 24: 0, 11: 1, 3: None, 100: None}
    merged = classes.masked_fill(classes == 1, 0).masked_fill(classes == 2, 1)
    actual = value_and_gradient(segloss.cross_entropy, x, raw, label_map=label_map)
    assert_identical(actual, value_and_gradient(segloss.cross_entropy, x, merged))


@pytest.mark.parametrize("others", [0, 2, None])
def test_the_key_of_all_other_labels(others):
    x, raw, classes = case()
    raw[0, 1], classes[0, 1] = 200, -100 if others is None else others
    label_map = {**FEW, 3: None, 100: None, ...: others}
    actual = value_and_gradient(segloss.cross_entropy, x, raw, label_map=label_map)
    assert_identical(actual, value_and_gradient(segloss.cross_entropy, x, classes))


def test_the_key_of_all_other_labels_alone():
    x, raw, _ = case()
    actual = segloss.cross_entropy(x, raw, label_map={...: 1})
    assert torch.equal(actual, segloss.cross_entropy(x, torch.ones_like(raw)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_a_label_map_can_be_a_tensor(dtype):
    x, raw, classes = case(dtype)
    label_map = torch.full((101,), 255, dtype=torch.int16)
    label_map[list(IDS)] = torch.tensor([0, 1, 2], dtype=torch.int16)
    actual = value_and_gradient(segloss.cross_entropy, x, raw, label_map=label_map, ignore_index=255)
    assert_identical(actual, value_and_gradient(segloss.cross_entropy, x, classes))


def test_a_class_that_is_an_ignored_label_means_ignored():
    x, raw, classes = case()
    label_map = {**FEW, 3: 255, 100: 255}
    actual = value_and_gradient(segloss.cross_entropy, x, raw, label_map=label_map, ignore_index=(255, -1))
    assert_identical(actual, value_and_gradient(segloss.cross_entropy, x, classes))


def test_a_class_that_is_an_ignored_label_which_the_dtype_cannot_hold():
    x, raw, classes = case(torch.uint8)
    actual = value_and_gradient(segloss.cross_entropy, x, raw, label_map={**FEW, 3: -1, 100: -1}, ignore_index=-1)
    assert_identical(actual, value_and_gradient(segloss.cross_entropy, x, classes))
    raw = raw.where(raw < 25, 3)
    label_map = torch.full((25,), -1)
    label_map[list(IDS)] = torch.tensor([0, 1, 2])
    actual = value_and_gradient(segloss.cross_entropy, x, raw, label_map=label_map, ignore_index=(-1, 300))
    assert_identical(actual, value_and_gradient(segloss.cross_entropy, x, classes))


def test_labels_and_classes_of_numpy():
    x, raw, classes = case()
    ids, numbers = numpy.array(IDS, dtype=numpy.uint8), numpy.arange(3)
    label_map = dict(zip(ids, numbers, strict=True)) | {numpy.int16(3): None, numpy.int16(100): None}
    actual = value_and_gradient(segloss.cross_entropy, x, raw, label_map=label_map)
    assert_identical(actual, value_and_gradient(segloss.cross_entropy, x, classes))


@pytest.mark.parametrize("ignored", [(), [], range(0)])
def test_no_label_is_ignored(ignored):
    x, _, classes = case(torch.int64)
    with pytest.raises(IndexError, match="Target -100 is out of bounds"):
        segloss.cross_entropy(x, classes, ignore_index=ignored)


def test_one_label_in_a_sequence_is_like_the_label():
    x, _, classes = case()
    assert_identical([segloss.cross_entropy(x, classes, ignore_index=[-100])], [segloss.cross_entropy(x, classes)])


def test_a_mean_over_labels_that_are_all_ignored():
    x, raw, _ = case()
    label_map = {...: None, 200: 0}
    assert segloss.cross_entropy(x, raw, label_map=label_map).isnan()
    assert segloss.cross_entropy(x, raw, label_map=label_map, empty="zero") == 0


def test_the_total_weight_of_raw_labels():
    _, raw, classes = case()
    weight = torch.tensor([0.5, 1.0, 3.0])
    actual = segloss.total_weight(raw, weight, label_map=FEW, ignore_index=(3, 100))
    assert torch.equal(actual, segloss.total_weight(classes, weight))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("label_map", MAPS.values(), ids=MAPS)
def test_metrics_of_raw_labels(name, dtype, label_map):
    x, raw, classes = case(dtype)
    for prediction in (x.detach(), x.argmax(1), x.argmax(1, keepdim=True).byte()):
        actual = METRICS[name](prediction, raw, label_map=label_map, ignore_index=(3, 100))
        assert_identical([actual], [METRICS[name](prediction, classes)])


@pytest.mark.parametrize("name", METRICS)
def test_metrics_without_several_labels(name):
    x, _, classes = case()
    raw = classes.masked_fill(classes == -100, 100)
    raw[0, 3], classes[0, 3] = 9, -100
    for prediction in (x.detach(), x.argmax(1)):
        actual = METRICS[name](prediction, raw, ignore_index=(9, 100))
        assert_identical([actual], [METRICS[name](prediction, classes)])


# ---- with other options ----


@pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS)
def test_with_voxel_weights_and_a_channel_of_the_labels(loss):
    x, raw, classes = case()
    options = taken(loss, voxel_weight=torch.rand(classes.shape, dtype=torch.float64).round(decimals=1))
    actual = value_and_gradient(loss, x, raw.unsqueeze(1), label_map=OTHERS, **options)
    assert_identical(actual, value_and_gradient(loss, x, classes.unsqueeze(1), **options))


def test_with_one_hot_labels():
    x, _, classes = case()
    one_hot = torch.nn.functional.one_hot(classes.clamp_min(0), 3).movedim(-1, 1)
    label_map = {0: 2, 1: None, 2: 0}
    mapped = torch.tensor([2, -100, 0])[classes.clamp_min(0)]
    actual = value_and_gradient(segloss.cross_entropy, x, one_hot, label_map=label_map)
    assert_identical(actual, value_and_gradient(segloss.cross_entropy, x, mapped))


@pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_with_half_logits_that_are_channels_last(loss, dtype):
    x, raw, classes = case()
    x = x.detach().to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    assert_identical(value_and_gradient(loss, x, raw, label_map=OTHERS), value_and_gradient(loss, x, classes))


@pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS)
def test_on_devices_without_kernels(loss):
    x, raw, classes = case()
    with without_kernels():
        for label_map in MAPS.values():
            actual = value_and_gradient(loss, x, raw, label_map=label_map, ignore_index=(3, 100))
            assert_identical(actual, value_and_gradient(loss, x, classes))


@pytest.mark.parametrize("name", METRICS)
def test_metrics_on_devices_without_kernels(name):
    x, raw, classes = case()
    with without_kernels():
        for prediction in (x.detach(), x.argmax(1)):
            actual = METRICS[name](prediction, raw, label_map=OTHERS)
            assert_identical([actual], [METRICS[name](prediction, classes)])


def test_second_derivatives_and_forward_mode():
    x, raw, _ = case()
    loss = partial(segloss.dice_ce_loss, target=raw, label_map=OTHERS)
    assert torch.autograd.gradcheck(loss, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, x)


def test_under_vmap():
    x, raw, classes = case(shape=(4, 3, 5, 4))
    x, raw, classes = x.detach().view(2, 2, 3, 5, 4), raw.view(2, 2, 5, 4), classes.view(2, 2, 5, 4)
    for loss in VARIANTS.values():
        actual = torch.vmap(partial(loss, label_map=OTHERS))(x, raw)
        torch.testing.assert_close(actual, torch.vmap(loss)(x, classes), rtol=1e-12, atol=0)


def test_under_vmap_of_label_maps():
    x, raw, classes = case()
    label_maps = torch.full((2, 101), 255)
    label_maps[:, list(IDS)] = torch.tensor([[0, 1, 2], [2, 0, 1]])
    loss = partial(segloss.cross_entropy, x.detach(), raw, ignore_index=255)
    actual = torch.vmap(lambda label_map: loss(label_map=label_map))(label_maps)
    expected = [segloss.cross_entropy(x, c.where(classes >= 0, -100)) for c in (classes, (classes + 2) % 3)]
    torch.testing.assert_close(actual, torch.stack(expected).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("label_map", [OTHERS, torch.tensor([*[-1] * 7, 0, -1, -1, -1, 2, *[-1] * 12, 1])])
def test_compiled_without_a_break(label_map):
    x, raw, classes = case()
    raw = raw.where(classes >= 0, 100)
    loss = partial(segloss.dice_ce_loss, label_map=label_map, ignore_index=100)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_identical(value_and_gradient(compiled, x, raw), value_and_gradient(segloss.dice_ce_loss, x, classes))


def test_at_several_resolutions():
    x, raw, classes = case(shape=(2, 3, 8, 8))
    inputs = [x, x[..., ::2, ::2]]
    actual = segloss.DeepSupervisionLoss(segloss.DiceCELoss(label_map=OTHERS))(inputs, raw)
    assert_identical([actual], [segloss.DeepSupervisionLoss(segloss.DiceCELoss())(inputs, classes)])


# ---- modules ----


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_modules_take_a_label_map(module):
    x, raw, classes = case()
    assert_identical([module(label_map=FEW, ignore_index=(3, 100))(x, raw)], [module()(x, classes)])


def test_multi_class_dice_loss_takes_a_label_map():
    x, raw, classes = case()
    expected = segloss.MultiClassDiceLoss(ignore_index=-100)(x, classes)
    assert_identical([segloss.MultiClassDiceLoss(label_map=OTHERS)(x, raw)], [expected])


@pytest.mark.parametrize("label_map", [FEW, torch.tensor([0, 1, 2])], ids=["mapping", "tensor"])
def test_a_label_map_is_not_in_the_state_of_a_module(label_map):
    loss = segloss.DiceCELoss(label_map=label_map)
    assert not loss.state_dict()
    loss.load_state_dict(segloss.DiceCELoss().state_dict(), strict=True)


def test_a_tensor_moves_with_its_module():
    loss = segloss.DiceCELoss(label_map=torch.tensor([0, 1, 2]))
    assert loss.to("meta").label_map.is_meta


def test_a_module_with_a_label_map_is_copied_and_printed():
    x, raw, classes = case()
    loss = copy.deepcopy(segloss.CrossEntropyLoss(label_map=OTHERS, ignore_index=(255, -1)))
    assert_identical([loss(x, raw)], [segloss.cross_entropy(x, classes)])
    assert "label_map={3: None, 100: None, 7: 0, 24: 1, 11: 2}" in repr(loss)
    assert "ignore_index=(255, -1)" in repr(loss)


def test_an_option_that_is_set_later_counts():
    x, raw, classes = case()
    loss = segloss.CrossEntropyLoss(label_map=FEW)
    loss.ignore_index = (3, 100)
    assert_identical([loss(x, raw)], [segloss.cross_entropy(x, classes)])


# ---- bad input ----


def test_labels_that_the_map_does_not_name_are_listed_with_their_counts():
    x, raw, _ = case()
    expected = (
        r"Target 100 is out of bounds: 8 labels have no class, the first at index \[0, 0, 0\] of target "
        r"\[2, 5, 4\]: 3 \(3 times\), 100 \(2 times\), 200 \(3 times\). Expected one of the labels "
        r"7, 11, 24. Name others in label_map, with None for labels to ignore; its key ... stands for all"
    )
    raw[1, 4, :3] = 200
    with pytest.raises(IndexError, match=expected):
        segloss.cross_entropy(x, raw, label_map=FEW)


@pytest.mark.parametrize("label_map", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64, torch.float32])
@pytest.mark.parametrize("label", [-1, -2, -3, 0, 1, 2, 110])
def test_a_label_that_the_map_does_not_name_is_refused(label_map, dtype, label):
    x, raw, _ = case(dtype)
    raw[1, 4, 3] = label
    with pytest.raises(IndexError, match=rf"Target {label}(\.0)? is out of bounds: 1 label has no class"):
        segloss.dice_ce_loss(x, raw, label_map=label_map, ignore_index=(3, 100))


@pytest.mark.parametrize("label", [-1, -2, -3, 3, 50])
def test_a_label_that_is_no_class_is_refused_where_several_are_ignored(label):
    x, _, classes = case()
    classes = classes.clamp_min(0)
    classes[1, 4, 3] = label
    with pytest.raises(IndexError, match=rf"Target {label} .* Expected labels 0 to 2; 9, 100 are ignored. Relabel"):
        segloss.cross_entropy(x, classes, ignore_index=(9, 100))


@pytest.mark.parametrize("label", [0.5, float("nan"), float("inf"), 1e30])
def test_a_label_that_is_no_integer_is_refused_even_if_all_others_have_a_class(label):
    x, raw, _ = case(torch.float64)
    raw[1, 4, 3] = label
    with pytest.raises((IndexError, RuntimeError), match=r"expected integral labels|is out of bounds"):
        segloss.cross_entropy(x, raw, label_map={...: 0})


def test_a_label_beyond_int64_is_refused_even_if_all_others_have_a_class():
    x, raw, _ = case(torch.uint64)
    raw = raw.view(torch.int64).masked_fill(raw.long() == 7, -5).view(torch.uint64)
    with pytest.raises(IndexError, match=r"Target 18446744073709551611 is out of bounds"):
        segloss.cross_entropy(x, raw, label_map={...: 0})


BAD = {
    "a class beyond the channels": ({7: 0, 24: 3}, -100, ValueError, r"classes in \[0, 3\) in label_map, got class 3"),
    "a negative class": ({7: 0, 24: -1}, -100, ValueError, r"from 0 on in label_map.* got class -1 for label 24"),
    "a label with a class and ignored": ({7: 0, 24: 1}, 24, ValueError, "got class 1 for label 24 in label_map and ig"),
    "a default ignore_index with a class": ({-100: 0}, -100, ValueError, r"ignore_index=\(\) ignores none"),
    "a class that may be ignored": ({7: 0, 24: 1}, 1, ValueError, "an ignore_index that is no class .* got class 1"),
    "the only class may be ignored": ({7: 0}, 0, ValueError, "an ignore_index that is no class .* got class 0"),
    "no class": ({7: None}, -100, ValueError, "a class for at least one label"),
    "nothing": ({}, -100, ValueError, "a class for at least one label"),
    "a list": ([7, 24, 11], -100, TypeError, "a mapping from labels to classes, or an integer tensor, got list"),
    "a label that is no int": ({7.5: 0}, -100, TypeError, "each key of label_map to be a label, an int"),
    "a bool": ({True: 0}, -100, TypeError, "each key of label_map"),
    "a class that is no int": ({7: "liver"}, -100, TypeError, "each value of label_map to be a class"),
    "a label beyond int64": ({2**63: 0}, -100, ValueError, "each key of label_map .* of 64 bits"),
    "a floating tensor": (torch.tensor([0.0]), -100, TypeError, "an integer tensor, got torch.float32"),
    "a tensor of two dimensions": (torch.zeros(2, 3).long(), -100, ValueError, r"label_map of shape \[L\].*\[2, 3\]"),
    "an empty tensor": (torch.zeros(0).long(), -100, ValueError, r"label_map of shape \[L\]"),
    "a tensor on another device": (torch.zeros(3, device="meta").long(), -100, RuntimeError, "Use label_map.to"),
    "an ignored label that is no int": (None, (1, 2.5), TypeError, "ignore_index to be an int or a sequence of ints"),
    "an ignored label that is None": (None, (1, None), TypeError, "ignore_index to be an int or a sequence of ints"),
}


@pytest.mark.cpu_only
@pytest.mark.parametrize(("label_map", "ignore_index", "error", "text"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("function", [segloss.cross_entropy, segloss.dice_ce_loss, segloss.dice_score])
def test_bad_maps_raise(label_map, ignore_index, error, text, function):
    x, raw, _ = case(torch.int64)
    with pytest.raises(error, match=rf"{function.__name__}: .*{text}"):
        function(x.detach(), raw, label_map=label_map, ignore_index=ignore_index)


@pytest.mark.parametrize("options", [{"label_map": FEW}, {"ignore_index": (3, 100)}], ids=["label_map", "several"])
def test_probabilities_and_masks_have_no_labels_to_map(options):
    x, _, _ = case()
    with pytest.raises(RuntimeError, match=r"expected class labels with label_map, or .* got class probabilities"):
        segloss.cross_entropy(x, x.detach().softmax(1), **options)
    with pytest.raises(RuntimeError, match=r"expected class labels with label_map, or .* got masks"):
        segloss.dice_score(x.detach() > 0, (x > 0).byte(), masks=True, **options)
    with pytest.raises(RuntimeError, match=r"is read as one-hot"):
        segloss.focal_loss(x, (x > 0).byte(), activation="sigmoid", **options)


def test_a_table_that_segloss_did_not_make_is_refused():
    x, raw, _ = case()
    for table in (torch.zeros(9).long(), torch.tensor([0, 10**9, 0, 0, 0, 0, 0, 0]), torch.zeros(9), torch.tensor(3)):
        with pytest.raises((ValueError, TypeError), match="label table"):
            torch.ops.segloss.cross_entropy(x, raw, label_table=table)
