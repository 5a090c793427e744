"""regions: overlapping unions of classes as channels, read from labels, give the results for masks made by hand."""

from functools import partial

import pytest
import torch
from losses import MODULES, VARIANTS, is_sigmoid, taken, takes, value_and_gradient
from test_devices import without_kernels
from tolerances import assert_identical

import segloss

BRATS = [(1, 2, 3), (1, 3), (3,)]  # whole tumour, tumour core, enhancing tumour
MANY = [{c for c in range(9) if (c + 1) * (channel + 3) % 5 < 2} or {8} for channel in range(130)]
LOSSES = {
    **{name: loss for name, loss in VARIANTS.items() if is_sigmoid(loss)},
    "squared dice_loss": partial(segloss.dice_loss, activation="sigmoid", squared=True),
    "jaccard dice_loss": partial(segloss.dice_loss, activation="sigmoid", jaccard=True),
    "sigmoid focal_loss of each voxel": partial(segloss.focal_loss, activation="sigmoid", reduction="none"),
    "binary cross entropy of each voxel": partial(segloss.binary_cross_entropy_with_logits, reduction="none"),
}
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
SCORES = {"dice_score": segloss.dice_score, "jaccard_index": segloss.jaccard_index}


def masks_of(classes, regions):
    """int16 masks [N, R, *], with -100 where the class is."""
    masks = [torch.isin(classes, torch.tensor(sorted(region))) for region in regions]
    return torch.stack(masks, 1).to(torch.int16).masked_fill((classes == -100).unsqueeze(1), -100)


def case(regions=BRATS, num_classes=4, dtype=torch.float64, shape=(2, 5, 6)):
    """Logits, labels of which some are 255 and ignored, and the masks of the regions."""
    x = torch.randn(shape[0], len(regions), *shape[1:], dtype=torch.float64).to(dtype).requires_grad_()
    classes = torch.randint(num_classes, shape)
    classes[0, 0] = -100
    return x, classes.masked_fill(classes == -100, 255), masks_of(classes, regions)


# ---- values ----


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.uint64, torch.float32])
def test_labels_give_the_loss_of_the_masks_of_their_regions(loss, dtype):
    x, labels, masks = case()
    actual = value_and_gradient(loss, x, labels.to(dtype), regions=BRATS, ignore_index=255)
    assert_identical(actual, value_and_gradient(loss, x, masks))


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_more_regions_than_a_word_or_a_chunk_has(loss, dtype):
    x, labels, masks = case(MANY, 9, dtype, (2, 5, 40))
    actual = value_and_gradient(loss, x, labels, regions=MANY, ignore_index=255)
    assert_identical(actual, value_and_gradient(loss, x, masks))


@pytest.mark.parametrize("size", [1, 127, 128, 129, 400])
@pytest.mark.parametrize("shape", ["[N, *]", "[N, 1, *]"])
def test_one_region_of_labels_of_either_shape(size, shape):
    """A map of labels of the shape of one channel is no mask."""
    regions = [(2, 4)]
    x, labels, masks = case(regions, 5, shape=(2, size))
    labels = labels.unsqueeze(1) if shape == "[N, 1, *]" else labels
    for loss in LOSSES.values():
        actual = value_and_gradient(loss, x, labels.byte(), regions=regions, ignore_index=255)
        assert_identical(actual, value_and_gradient(loss, x, masks))


@EVERY_LOSS
def test_regions_of_the_classes_of_a_label_map(loss):
    x, labels, masks = case()
    raw = torch.tensor([0, 1, 2, 4])[labels.clamp_max(3)].masked_fill(labels == 255, 255)  # BraTS 2018: 4 is ET
    label_map = {0: 0, 1: 1, 2: 2, 4: 3, 255: None}
    actual = value_and_gradient(loss, x, raw, regions=BRATS, label_map=label_map)
    assert_identical(actual, value_and_gradient(loss, x, masks))


def test_regions_without_activation():
    x, labels, masks = case()
    p = x.detach().sigmoid().requires_grad_()
    loss = partial(segloss.dice_loss, activation=None)
    actual = value_and_gradient(loss, p, labels, regions=BRATS, ignore_index=255)
    assert_identical(actual, value_and_gradient(loss, p, masks))


def test_soft_statistics_of_regions():
    x, labels, masks = case()
    actual = segloss.soft_stats(x, labels, activation="sigmoid", regions=BRATS, ignore_index=255)
    assert_identical(actual, segloss.soft_stats(x, masks, activation="sigmoid"))


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("channel", [False, True])
def test_scores_of_regions(score, channel):
    x, labels, masks = case()
    labels = labels.unsqueeze(1) if channel else labels
    actual = score(x.detach(), labels, regions=BRATS, ignore_index=255)
    assert_identical([actual], [score(x > 0, masks, masks=True)])
    predicted = torch.randint(4, (2, 5, 6))
    for prediction in (predicted, predicted.unsqueeze(1).byte()):
        actual = score(prediction, labels, regions=BRATS, ignore_index=(255, 254))
        assert_identical([actual], [score(masks_of(predicted, BRATS), masks, masks=True)])


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_scores_of_regions_of_a_label_map(score):
    _, labels, masks = case()
    predicted, raw = torch.randint(4, (2, 5, 6)), labels + 10
    label_map = {10: 0, 11: 1, 12: 2, 13: 3, 265: None}
    actual = score(predicted, raw, regions=BRATS, label_map=label_map)
    assert_identical([actual], [score(masks_of(predicted, BRATS), masks, masks=True)])


# ---- with other options ----


@EVERY_LOSS
def test_regions_with_weights(loss):
    x, labels, masks = case()
    weights = {"voxel_weight": torch.rand(2, 5, 6, dtype=torch.float64).round(decimals=1)}
    if loss.func is not segloss.generalized_dice_loss:
        weights["weight"] = torch.tensor([0.5, 2.0, 0.0])
    options = taken(loss, **weights)
    actual = value_and_gradient(loss, x, labels, regions=BRATS, ignore_index=255, **options)
    assert_identical(actual, value_and_gradient(loss, x, masks, **options))


@EVERY_LOSS
def test_regions_on_devices_without_kernels(loss):
    x, labels, masks = case()
    with without_kernels():
        actual = value_and_gradient(loss, x, labels, regions=BRATS, ignore_index=255)
        assert_identical(actual, value_and_gradient(loss, x, masks))


@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (5, 2, 6, 3)])
def test_regions_along_another_dimension(shape):
    x = torch.randn(shape, dtype=torch.float64)
    labels = torch.randint(4, shape[:-1])
    actual = segloss.dice_ce_loss(x, labels, activation="sigmoid", regions=BRATS, dim=-1)
    expected = segloss.dice_ce_loss(x.movedim(-1, 1), labels, activation="sigmoid", regions=BRATS)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)


def test_gradients_of_regions():
    x, labels, _ = case(shape=(2, 3, 2))
    loss = partial(
        segloss.dice_ce_loss, target=labels, activation="sigmoid", regions=BRATS, ignore_index=255, label_smoothing=0.1
    )
    assert torch.autograd.gradcheck(loss, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, x)


def test_regions_under_vmap_and_compiled():
    x, labels, masks = case(shape=(4, 5, 6))
    x, labels, masks = (each.detach().unflatten(0, (2, 2)) for each in (x, labels, masks))
    for loss in LOSSES.values():
        options = {"regions": BRATS, "ignore_index": 255}
        actual = torch.vmap(partial(loss, **options))(x, labels)
        torch.testing.assert_close(actual, torch.vmap(loss)(x, masks), rtol=1e-12, atol=0)
    compiled = torch.compile(partial(segloss.dice_ce_loss, activation="sigmoid", **options), backend="aot_eager")
    actual = value_and_gradient(compiled, x[0].clone().requires_grad_(), labels[0])
    loss = partial(segloss.dice_ce_loss, activation="sigmoid")
    expected = value_and_gradient(loss, x[0].clone().requires_grad_(), masks[0])
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)


def test_regions_of_a_compiled_tensor_map():
    x, labels, masks = case()
    label_map = torch.tensor([0, 1, 2, 3, 0, 9])
    loss = partial(
        segloss.dice_ce_loss, activation="sigmoid", regions=BRATS, label_map=label_map, ignore_index=(254, 255)
    )
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_identical([compiled(x, labels)], [segloss.dice_ce_loss(x, masks, activation="sigmoid")])
    assert_identical([compiled(x, labels.where(labels > 0, 5))], [segloss.dice_ce_loss(x, masks, activation="sigmoid")])


@pytest.mark.parametrize("module", [m for m, f in MODULES.items() if takes(f, "regions")], ids=lambda m: m.__name__)
def test_modules_take_regions(module):
    x, labels, masks = case()
    options = {"activation": "sigmoid"} if "activation" in module().__dict__ else {}
    if module in (segloss.CrossEntropyLoss, segloss.NLLLoss, segloss.TopKLoss):
        with pytest.raises(ValueError, match="classes of a softmax exclude each other"):
            module(regions=BRATS)(x, labels)
        return
    actual = module(regions=BRATS, ignore_index=255, **options)(x, labels)
    assert_identical([actual], [module(**options)(x, masks)])


# ---- bad input ----


@pytest.mark.parametrize(
    "function",
    [
        *(segloss.cross_entropy, segloss.nll_loss, segloss.topk_loss, segloss.focal_loss, segloss.dice_loss),
        *(segloss.soft_stats, segloss.dice_focal_loss, segloss.accuracy, segloss.confusion_matrix),
    ],
    ids=lambda function: function.__name__,
)
def test_regions_need_a_sigmoid_or_a_score(function):
    x, labels, _ = case()
    with pytest.raises(ValueError, match=rf"{function.__name__}: expected no regions, which may overlap: .*Use "):
        function(x.detach(), labels, regions=BRATS)


BAD = {
    "a class that no label has": ([(1, 2), (4,), (0,)], {}, ValueError, "got class 4 in region"),
    "an ignored class": ([(1, 2), (3,), (0, 1)], {"ignore_index": 0}, ValueError, r"got class 0 in region \(0, 1\)"),
    "two of three regions": ([(1, 2), (3,)], {}, ValueError, "3 regions, one for each channel of input, got 2"),
    "a class twice": ([(1, 1), (2,), (3,)], {}, ValueError, r"different classes .* got \(1, 1\)"),
    "an empty region": ([(1,), (), (3,)], {}, ValueError, r"one at least, got \(\)"),
    "a huge class": (
        [(1,), (2,), (10**9,)],
        {},
        ValueError,
        "classes below 65536 .* got 1000000000. Give large labels",
    ),
    "a negative class": ([(1,), (-1,), (3,)], {}, ValueError, r"each of regions to be different classes from 0 on"),
    "a class that is no int": (
        [(1,), (1.5,), (3,)],
        {},
        TypeError,
        "each class in each of regions .* an int, got 1.5",
    ),
    "a region that is an int": ([1, 2, 3], {}, TypeError, r"Use \(3,\) for a region of one class"),
    "no sequence": ({"WT": (1, 2, 3)}, {}, TypeError, "a sequence of collections of classes, got dict"),
    "no region": ([], {}, TypeError, "a sequence of collections of classes, got an empty one"),
    "without a background": (BRATS, {"include_background": False}, ValueError, "include_background=True with regions"),
}


@pytest.mark.parametrize(("regions", "options", "error", "text"), BAD.values(), ids=BAD)
def test_bad_regions_raise(regions, options, error, text):
    x, labels, _ = case()
    label_map = {"label_map": {0: 0, 1: 1, 2: 2, 3: 3, 255: None}} if "ignore_index" not in options else {}
    with pytest.raises(error, match=rf"dice_loss: .*{text}"):
        segloss.dice_loss(x, labels, activation="sigmoid", regions=regions, **label_map, **options)


def test_a_label_of_no_class_is_listed():
    x, labels, _ = case()
    labels[1, 2, 3] = 4
    expected = r"Target 4 is out of bounds: 1 label has no class, .* 4 \(once\). Expected one of the labels 0, 1, 2, 3"
    with pytest.raises(IndexError, match=expected):
        segloss.dice_loss(x, labels, activation="sigmoid", regions=BRATS, ignore_index=255)
    with pytest.raises(IndexError, match="Target 4 is out of bounds"):
        segloss.dice_score(x.detach(), labels, regions=BRATS, ignore_index=255)


def test_a_predicted_class_beyond_those_of_the_labels_raises():
    _, labels, _ = case()
    with pytest.raises(IndexError, match="dice_score: Predicted label 7 is out of bounds"):
        segloss.dice_score(torch.full_like(labels, 7), labels, regions=BRATS, ignore_index=255)


def test_masks_and_probabilities_are_no_labels_of_regions():
    x, _, masks = case()
    with pytest.raises(RuntimeError, match=r"expected class labels with regions, got a .* a mask for each region"):
        segloss.dice_loss(x, masks.clamp_min(0), activation="sigmoid", regions=BRATS)
    with pytest.raises(RuntimeError, match=r"expected class labels with regions, got a .* a mask for each region"):
        segloss.dice_loss(x, masks.double(), activation="sigmoid", regions=BRATS)


def test_a_score_of_regions_takes_no_masks_or_number_of_classes():
    x, labels, _ = case()
    for options in ({"masks": True}, {"num_classes": 4}):
        with pytest.raises(ValueError, match="masks=False and no other num_classes than 3 with regions"):
            segloss.dice_score(x.detach(), labels, regions=BRATS, ignore_index=255, **options)


def test_labels_of_another_shape_than_the_logits_of_regions():
    x, labels, _ = case()
    with pytest.raises(ValueError, match=r"dice_score: expected labels of shape \[2, 5, 6\].* got target \[1, 5, 6\]"):
        segloss.dice_score(x.detach(), labels[:1], regions=BRATS, ignore_index=255)
