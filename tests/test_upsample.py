"""upsample: a loss of small logits is the loss of the logits that torch interpolates to the target's size."""

import copy
from functools import partial

import pytest
import reference
import torch
import torch.nn.functional as F
from losses import (
    CLDICE_LOSSES,
    FUNCTIONS,
    INSTANCE_LOSSES,
    LOVASZ_LOSSES,
    METRICS,
    MODULES,
    OF_EACH_VOXEL,
    VARIANTS,
    is_sigmoid,
    taken,
    takes,
    takes_probabilities,
)
from test_devices import without_kernels
from tolerances import RTOL, assert_close, assert_identical, assert_relative

import segloss

LOSSES = {name: loss for name, loss in (VARIANTS | OF_EACH_VOXEL).items() if takes(loss.func, "upsample")}
LOVASZ = [FUNCTIONS[name] for name in LOVASZ_LOSSES]
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
SMALL, SIZE = (2, 4, 5, 6), (12, 15)

# From the logits' size to the target's: the ratios 1, 2, 4, 3/2, 7/3, 1/2 and others, odd sizes, and sizes of 1.
RATIOS = {
    "1-D, 1": ((7,), (7,)),
    "1-D, 4": ((33,), (132,)),
    "1-D, 10/3": ((300,), (1000,)),
    "1-D, 3/10": ((1000,), (300,)),
    "1-D, from 1": ((1,), (9,)),
    "2-D, 2": ((5, 7), (10, 14)),
    "2-D, 4": ((40, 35), (160, 140)),
    "2-D, 3/2": ((8, 86), (12, 129)),
    "2-D, 7/3": ((3, 60), (7, 140)),
    "2-D, 1/2": ((8, 10), (4, 5)),
    "2-D, 8 and 1/3": ((9, 30), (3, 240)),
    "2-D, 1 and 17": ((6, 3), (6, 51)),
    "2-D, rows alone": ((4, 20), (13, 20)),
    "2-D, columns alone": ((9, 20), (9, 77)),
    "2-D, from 1 and to 1": ((1, 5), (4, 1)),
    "2-D, just above 1": ((30, 130), (31, 131)),
    "3-D, 2": ((3, 4, 5), (6, 8, 10)),
    "3-D, 3": ((6, 5, 7), (18, 15, 21)),
    "3-D, 4, 3/2 and 7/3": ((2, 4, 57), (8, 6, 133)),
    "3-D, planes alone": ((3, 4, 5), (9, 4, 5)),
}
EVERY_RATIO = pytest.mark.parametrize("ratio", RATIOS.values(), ids=RATIOS)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def value_and_gradient(loss, x, y, **options):
    """With a different gradient for each term that is not reduced."""
    x = x.detach().requires_grad_()
    value = loss(x, y, **options)
    factor = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value).to(value.dtype)
    return value.detach(), torch.autograd.grad(value, x, factor if value.dim() > 0 else torch.ones_like(value))[0]


def of_resized(loss, size, upsample, align_corners=False):
    """The loss of the logits at full size, in float64."""
    return lambda x, y, **options: loss(reference.resized(x, size, upsample, align_corners), y, **options)


def assert_as_resized(loss, x, y, upsample, align_corners=False, **options):
    size = y.shape[1:] if y.dim() < x.dim() else y.shape[2:]
    actual = value_and_gradient(loss, x, y, upsample=upsample, align_corners=align_corners, **options)
    expected = value_and_gradient(of_resized(loss, size, upsample, align_corners), x, y, **options)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert_close(a, e, x.dtype)
    assert actual[1].dtype == x.dtype


def labels_for(x, size, dtype=torch.uint8):
    return torch.randint(x.shape[1], (x.shape[0], 1, *size)).to(dtype)


# ---- values and gradients ----


@EVERY_RATIO
@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", [segloss.cross_entropy, segloss.dice_ce_loss], ids=["cross_entropy", "dice_ce_loss"])
def test_linear_interpolation_at_every_ratio(loss, dtype, align_corners, ratio):
    small, size = ratio
    x = torch.randn(2, 5, *small).to(dtype)
    assert_as_resized(loss, x, labels_for(x, size), MODES[len(size)], align_corners)


@EVERY_RATIO
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_neighbours_at_every_ratio(mode, dtype, ratio):
    small, size = ratio
    x = torch.randn(2, 3, *small, dtype=dtype)
    assert_as_resized(segloss.cross_entropy, x, labels_for(x, size), mode)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_neighbours_are_those_of_torch_at_every_size_up_to_100(mode):
    for small in range(1, 101, 9):
        x = torch.arange(small, dtype=torch.float32).expand(1, 2, small) * torch.tensor([[[1.0], [0.0]]])
        for size in range(1, 101):
            place = (2 * torch.arange(size) + 1) * small
            is_tie = (place % (2 * size) == 0) & (mode == "nearest-exact")  # torch rounds, up or down
            losses = partial(segloss.cross_entropy, target=torch.zeros(1, size).byte(), reduction="none")
            expected = losses(F.interpolate(x, size=size, mode=mode))
            assert torch.equal(losses(x, upsample=mode)[:, ~is_tie], expected[:, ~is_tie])


@pytest.mark.parametrize(
    "upsample", [("nearest", "linear", "linear"), ("linear", "nearest-exact", "linear"), ("linear",) * 3]
)
def test_a_mode_for_each_axis_is_one_axis_after_the_other(upsample):
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    assert_as_resized(segloss.dice_ce_loss, x, labels_for(x, (10, 9, 14)), upsample)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_loss(loss, dtype):
    x = torch.randn(SMALL).to(dtype)
    y = labels_for(x, SIZE)
    y[0, 0, :3] = 255
    weights = {"weight": torch.rand(4), "voxel_weight": torch.rand(2, *SIZE)}
    assert_as_resized(loss, x, y, "bilinear", ignore_index=255, **taken(loss, **weights))


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if takes_probabilities(loss)])
def test_class_probabilities(name):
    x = torch.randn(SMALL, dtype=torch.float64)
    assert_as_resized(LOSSES[name], x, torch.randn(2, 4, *SIZE, dtype=torch.float64).softmax(1), "bilinear")


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if is_sigmoid(loss)])
@pytest.mark.parametrize("channels", [1, 4])
def test_masks(name, channels):
    x = torch.randn(2, channels, 5, 6, dtype=torch.float64)
    assert_as_resized(LOSSES[name], x, torch.randint(2, (2, channels, *SIZE), dtype=torch.uint8), "bilinear")


def test_one_hot_labels():
    x = torch.randn(SMALL, dtype=torch.float64)
    y = labels_for(x, SIZE)
    masks = F.one_hot(y[:, 0].long(), 4).movedim(-1, 1)
    assert_identical(
        [segloss.focal_loss(x, masks, upsample="bilinear")], [segloss.focal_loss(x, y, upsample="bilinear")]
    )


@pytest.mark.parametrize("num_classes", [2, 3, 19, 113, 150])
@pytest.mark.parametrize("loss", [segloss.cross_entropy, segloss.dice_ce_loss], ids=["cross_entropy", "dice_ce_loss"])
def test_more_classes_than_a_chunk_has(loss, num_classes):
    x = torch.randn(1, num_classes, 20, 40)
    assert_as_resized(loss, x, labels_for(x, (80, 160), torch.int16), "bilinear")


def test_probabilities_as_input():
    x = torch.randn(SMALL, dtype=torch.float64).softmax(1)
    assert_as_resized(segloss.dice_loss, x, labels_for(x, SIZE), "bilinear", activation=None)


def test_soft_stats():
    x = torch.randn(SMALL, dtype=torch.float64)
    y = labels_for(x, SIZE)
    expected = segloss.soft_stats(reference.resized(x, SIZE, "bilinear"), y, squared=True)
    for a, e in zip(segloss.soft_stats(x, y, squared=True, upsample="bilinear"), expected, strict=True):
        assert_close(a, e)


@pytest.mark.parametrize(
    "options",
    [
        {"label_map": {0: 3, 1: 2, 2: 1, 3: 0, 255: None}},
        {"label_sets": [{0: (0, 2)}, {}], "ignore_index": 255},
        {"regions": [(1, 2, 3), (1,), (2, 3), (3,)], "activation": "sigmoid", "ignore_index": 255},
    ],
    ids=["label_map", "label_sets", "regions"],
)
def test_labels_as_the_data_set_has_them(options):
    x = torch.randn(SMALL, dtype=torch.float64)
    y = labels_for(x, SIZE)
    y[1, 0, :5] = 255
    assert_as_resized(segloss.dice_ce_loss, x, y, "bilinear", **options)


def test_half_logits_are_interpolated_in_float32():
    x = torch.randn(1, 4, 16, 16).bfloat16()
    y = labels_for(x, (64, 64))
    expected = segloss.cross_entropy(reference.resized(x, (64, 64), "bilinear"), y).float()
    assert_relative(segloss.cross_entropy(x, y, upsample="bilinear").float(), expected, 2.0**-8)
    assert_relative(
        segloss.soft_stats(x, y, upsample="bilinear").prediction,
        segloss.soft_stats(reference.resized(x, (64, 64), "bilinear"), y).prediction,
        RTOL[torch.float32],
    )


def test_a_class_that_is_minus_infinity_everywhere_stays_so():
    x = torch.randn(1, 3, 4, 4)
    x[:, 2] = -torch.inf
    y = torch.randint(2, (1, 16, 16))
    assert_close(
        segloss.cross_entropy(x, y, upsample="bilinear"), segloss.cross_entropy(x[:, :2], y, upsample="bilinear")
    )


def test_nan_at_voxels_that_do_not_count_has_no_effect():
    x = torch.randn(1, 3, 4, 8)
    y = labels_for(x, (8, 16))
    y[..., 8:] = 255
    clean = value_and_gradient(segloss.dice_ce_loss, x, y, ignore_index=255, upsample="bilinear")
    x[..., 5:] = torch.nan
    assert_identical(value_and_gradient(segloss.dice_ce_loss, x, y, ignore_index=255, upsample="bilinear"), clean)


# ---- layouts ----


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "every second column": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "expanded": lambda x: x[:, :1].expand_as(x),
    "a slice": lambda x: torch.cat([x, x], 1)[:, 2:6],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_of_any_layout(dtype, layout):
    x = layout(torch.randn(SMALL).to(dtype))
    y = labels_for(x, SIZE)
    assert_as_resized(segloss.dice_ce_loss, x, y, "bilinear")
    contiguous = value_and_gradient(segloss.cross_entropy, x.contiguous(), y, upsample="bilinear")
    assert_identical(value_and_gradient(segloss.cross_entropy, x, y, upsample="bilinear"), contiguous)


def test_the_gradient_keeps_the_memory_format():
    x = torch.randn(SMALL).to(memory_format=torch.channels_last)
    _, gradient = value_and_gradient(segloss.cross_entropy, x, labels_for(x, SIZE), upsample="bilinear")
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("shape", ["[N, *]", "[N, 1, *]"])
def test_classes_first_or_last(dim, shape):
    x = torch.randn(SMALL, dtype=torch.float64)
    y = labels_for(x, SIZE)
    expected = value_and_gradient(segloss.dice_ce_loss, x, y, upsample="bilinear")
    y = y.squeeze(1) if shape == "[N, *]" else y.movedim(1, dim)
    value, gradient = value_and_gradient(segloss.dice_ce_loss, x.movedim(1, dim), y, upsample="bilinear", dim=dim)
    assert_identical([value, gradient.movedim(dim, 1)], expected)


@pytest.mark.parametrize(
    "target", [lambda y: y.mT.contiguous().mT, lambda y: y.expand(2, 1, 12, 15), lambda y: y[..., :1].expand_as(y)]
)
def test_targets_of_any_layout(target):
    x = torch.randn(SMALL)
    y = target(labels_for(x[:1], SIZE)).expand(2, 1, *SIZE)
    weight = torch.rand(15, 12).mT.expand(2, *SIZE)
    expected = value_and_gradient(
        segloss.cross_entropy, x, y.contiguous(), upsample="bilinear", voxel_weight=weight.contiguous()
    )
    assert_identical(
        value_and_gradient(segloss.cross_entropy, x, y, upsample="bilinear", voxel_weight=weight), expected
    )


@EVERY_LOSS
def test_a_batch_of_no_samples(loss):
    x = torch.randn(0, 3, 4, 4, requires_grad=True)
    options = taken(loss, voxel_weight=torch.rand(0, 8, 8))
    value = loss(x, torch.zeros(0, 8, 8, dtype=torch.uint8), upsample="bilinear", **options)
    assert value == 0 if loss.func in LOVASZ else value.isnan().all()
    assert torch.autograd.grad(value.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
@pytest.mark.parametrize(("small", "size"), [((40, 40), (170, 160)), ((7, 9, 11), (23, 30, 40)), ((900,), (3000,))])
def test_the_same_bits_for_any_number_of_threads(num_threads, small, size):
    x = torch.randn(2, 9, *small)
    y = labels_for(x, size)
    threads = torch.get_num_threads()
    expected = [
        value_and_gradient(loss, x, y, upsample=MODES[len(size)])
        for loss in (segloss.cross_entropy, segloss.dice_ce_loss)
    ]
    try:
        torch.set_num_threads(num_threads)
        for loss, results in zip((segloss.cross_entropy, segloss.dice_ce_loss), expected, strict=True):
            assert_identical(value_and_gradient(loss, x, y, upsample=MODES[len(size)]), results)
    finally:
        torch.set_num_threads(threads)


# ---- derivatives and transforms ----


@EVERY_LOSS
@pytest.mark.parametrize("upsample", ["bilinear", ("nearest", "linear")], ids=["bilinear", "mixed"])
def test_gradcheck(loss, upsample):
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randint(3, (2, 5, 4))
    call = partial(loss, target=y, upsample=upsample)
    assert torch.autograd.gradcheck(call, (x,), check_forward_ad=True, check_batched_grad=True)
    if loss.func is not segloss.topk_loss:
        assert torch.autograd.gradgradcheck(call, (x,))


@pytest.mark.parametrize("name", ["cross_entropy", "dice_ce_loss", "sigmoid focal_loss", "topk_loss"])
def test_vmap_and_per_sample_gradients(name):
    x, y = torch.randn(3, 2, 4, 3, 5, dtype=torch.float64), torch.randint(4, (3, 2, 7, 9))
    loss = partial(LOSSES[name], upsample="bilinear")
    values = torch.func.vmap(loss)(x, y)
    gradients = torch.func.vmap(torch.func.grad(loss))(x, y)
    for k in range(3):
        value, gradient = value_and_gradient(loss, x[k], y[k])
        assert_close(values[k], value)
        assert_close(gradients[k], gradient)


@pytest.mark.parametrize(
    "name", ["cross_entropy", "cross_entropy of each voxel", "dice_ce_loss", "binary cross entropy"]
)
def test_vmap_of_class_probabilities(name):
    x, y = torch.randn(3, 2, 4, 3, 5, dtype=torch.float64), torch.rand(3, 2, 4, 7, 9, dtype=torch.float64).softmax(2)
    loss = partial(LOSSES[name], upsample="bilinear")
    total = lambda x, y: loss(x, y).sum()  # noqa: E731
    gradients = torch.func.vmap(torch.func.grad(total))(x, y)
    for k in range(3):
        assert_close(gradients[k], torch.func.grad(total)(x[k], y[k]))


@pytest.mark.parametrize("name", ["cross_entropy", "dice_ce_loss", "sigmoid focal_loss"])
def test_compiled(name):
    x = torch.randn(SMALL)
    y = labels_for(x, SIZE)
    loss = partial(LOSSES[name], upsample="bilinear")
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for a, e in zip(value_and_gradient(compiled, x, y), value_and_gradient(loss, x, y), strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("operator", ["cross_entropy", "binary_cross_entropy", "soft_stats"])
def test_opcheck(operator):
    x, code = torch.randn(SMALL, requires_grad=True), 2 << 1 | 2 << 3
    torch.library.opcheck(getattr(torch.ops.segloss, operator).default, (x, labels_for(x, SIZE)), {"upsample": code})


def test_autocast_gives_a_float32_loss():
    x = torch.randn(SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        loss = segloss.cross_entropy(x.bfloat16(), labels_for(x, SIZE), upsample="bilinear")
    assert loss.dtype == torch.float32


# ---- devices without kernels: the composite, in slabs ----


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_devices_without_kernels(loss, dtype):
    x = torch.randn(SMALL).to(dtype)
    y = labels_for(x, SIZE)
    expected = value_and_gradient(loss, x, y, upsample="bilinear")
    with without_kernels():
        actual = value_and_gradient(loss, x, y, upsample="bilinear")
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)


@EVERY_LOSS
def test_a_batch_of_no_samples_on_devices_without_kernels(loss):
    with without_kernels():
        test_a_batch_of_no_samples(loss)


@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy of each voxel", "dice_ce_loss"])
@pytest.mark.parametrize(
    ("small", "size", "upsample"),
    [
        ((4, 64, 32), (8, 256, 128), "trilinear"),  # slabs along an axis that is resized
        ((256, 8, 4), (256, 16, 8), ("linear", "nearest", "linear")),  # and along one that is not
    ],
)
def test_slabs_on_devices_without_kernels(name, small, size, upsample):
    x = torch.randn(1, 8, *small)
    y = labels_for(x, size)
    expected = value_and_gradient(LOSSES[name], x, y, upsample=upsample)
    with without_kernels():
        actual = value_and_gradient(LOSSES[name], x, y, upsample=upsample)
        matrix = segloss.confusion_matrix(x, y, upsample=upsample)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)
    assert torch.equal(matrix, segloss.confusion_matrix(x, y, upsample=upsample))


# ---- metrics, modules, deep supervision ----


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_metrics(metric, dtype):
    x = torch.randn(SMALL, dtype=dtype)
    y = labels_for(x, SIZE)
    y[0, 0, :4] = 255
    full = reference.resized(x, SIZE, "bilinear")
    for options in ({"ignore_index": 255}, {"label_map": {0: 3, 1: 2, 2: 1, 3: 0, 255: None}}):
        assert_identical([metric(x, y, upsample="bilinear", **options)], [metric(full, y, **options)])


@pytest.mark.parametrize("metric", [segloss.dice_score, segloss.jaccard_index])
def test_scores_of_regions(metric):
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    y = torch.randint(4, (2, 1, *SIZE))
    regions = [(1, 2, 3), (1, 3), (3,)]
    expected = metric(reference.resized(x, SIZE, "bilinear"), y, regions=regions)
    assert_identical([metric(x, y, regions=regions, upsample="bilinear")], [expected])


@pytest.mark.parametrize(
    ("module", "loss"), [pair for pair in MODULES.items() if takes(pair[1], "upsample")], ids=lambda each: each.__name__
)
def test_modules_take_the_keywords_of_their_functions(module, loss):
    x = torch.randn(SMALL)
    y = labels_for(x, SIZE)
    keywords = {"upsample": "bilinear", "align_corners": True}
    assert_identical([module(**keywords)(x, y)], [loss(x, y, **keywords)])


def test_modules_of_probabilities_and_of_several_classes():
    x = torch.randn(2, 3, 4, 4)
    y = torch.randint(3, (2, 1, 8, 8))
    expected = segloss.dice_loss(x, y, upsample="bilinear", smooth_nr=1, smooth_dr=1)
    assert_identical([segloss.MultiClassDiceLoss(upsample="bilinear")(x, y)], [expected])
    p, mask = x[:, 0].sigmoid(), torch.randint(2, (2, 8, 8))
    full = F.interpolate(p.unsqueeze(1), size=(8, 8), mode="bilinear").squeeze(1)
    assert_close(segloss.BinaryDiceLoss(upsample="bilinear")(p, mask), segloss.BinaryDiceLoss()(full, mask))


INNER = {
    "a module": segloss.DiceCELoss(ignore_index=255),
    "a function": partial(segloss.dice_ce_loss, ignore_index=255),
    "a module that upsamples itself": segloss.DiceCELoss(ignore_index=255, upsample="bilinear"),
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_deep_supervision_against_the_full_labels(inner):
    heads = [torch.randn(2, 3, size, size, dtype=torch.float64) for size in (16, 8, 4)]
    y = torch.randint(3, (2, 1, 16, 16))
    y[0, 0, :2] = 255
    upsample = None if getattr(inner, "upsample", None) else "bilinear"
    losses = [segloss.dice_ce_loss(reference.resized(x, (16, 16), "bilinear"), y, ignore_index=255) for x in heads]
    expected = sum(w * each for w, each in zip((4 / 7, 2 / 7, 1 / 7), losses, strict=True))
    assert_close(segloss.DeepSupervisionLoss(inner, upsample=upsample)(heads, y), expected)


def test_deep_supervision_leaves_the_inner_module_as_it_is():
    inner = segloss.DiceCELoss(weight=torch.ones(3))
    outer = segloss.DeepSupervisionLoss(inner, upsample="bilinear")
    assert inner.upsample is None
    assert outer.loss.upsample == "bilinear"
    assert copy.deepcopy(outer).loss.upsample == "bilinear"


def test_deep_supervision_passes_voxel_weights_at_full_size():
    heads = [torch.randn(2, 3, size, size) for size in (8, 4)]
    y, weight = torch.randint(3, (2, 1, 8, 8)), torch.rand(2, 1, 8, 8)
    outer = segloss.DeepSupervisionLoss(segloss.cross_entropy, weights=[1, 1], upsample="bilinear")
    expected = sum(segloss.cross_entropy(x, y, voxel_weight=weight, upsample="bilinear") for x in heads)
    assert_close(outer(heads, y, voxel_weight=weight), expected)


def test_deep_supervision_of_a_module_that_cannot_upsample():
    with pytest.raises(TypeError, match="expected a loss with upsample and align_corners, got Identity"):
        segloss.DeepSupervisionLoss(torch.nn.Identity(), upsample="bilinear")


# ---- bad input ----


X = torch.randn(SMALL)
Y = torch.randint(4, (2, 1, *SIZE))
BAD = {
    "a mode of other axes": (
        X,
        Y,
        {"upsample": "trilinear"},
        NotImplementedError,
        "upsample='bilinear' for the 2 spatial axes",
    ),
    "too few modes": (X, Y, {"upsample": ("linear",)}, NotImplementedError, "a mode for each, got ('linear',)"),
    "an unknown mode": (X, Y, {"upsample": "bicubic"}, ValueError, "'trilinear', or a tuple with"),
    "an unknown mode of an axis": (
        X,
        Y,
        {"upsample": ("linear", "cubic")},
        ValueError,
        "or a tuple with 'nearest', 'nearest-exact' or 'linear'",
    ),
    "no spatial axis": (X[..., 0, 0], Y, {"upsample": "nearest"}, NotImplementedError, "got input [2, 4]"),
    "four spatial axes": (
        X[..., None, None],
        Y,
        {"upsample": "nearest"},
        NotImplementedError,
        "one to three spatial axes",
    ),
    "corners of nearest": (
        X,
        Y,
        {"upsample": "nearest", "align_corners": True},
        ValueError,
        "Only linear interpolation",
    ),
    "corners of nothing": (X, Y, {"align_corners": True}, ValueError, "align_corners=False without upsample"),
    "corners of a number": (X, Y, {"upsample": "bilinear", "align_corners": 2}, ValueError, "True or False, got 2"),
    "other samples": (
        X,
        Y[:1],
        {"upsample": "bilinear"},
        ValueError,
        "got input [2, 4, 5, 6] and target [1, 1, 12, 15]",
    ),
    "logits of size 0": (
        X[:, :, :0],
        Y,
        {"upsample": "bilinear"},
        RuntimeError,
        "got input [2, 4, 0, 6] and target [2, 1, 12, 15]",
    ),
    "a target of size 0": (
        X,
        Y[..., :0],
        {"upsample": "bilinear"},
        RuntimeError,
        "got input [2, 4, 5, 6] and target [2, 1, 12, 0]",
    ),
    "other classes": (
        X,
        Y.expand(2, 3, *SIZE),
        {"upsample": "bilinear"},
        RuntimeError,
        "a class dimension of size 1 or 4",
    ),
    "too few dimensions": (
        X,
        Y[0, 0],
        {"upsample": "bilinear"},
        RuntimeError,
        "got input [2, 4, 5, 6] with upsample, got target [12, 15]",
    ),
    "a bad label": (X, Y + 4, {"upsample": "bilinear"}, IndexError, "of target [2, 1, 12, 15]"),
    "weights of the small size": (
        X,
        Y,
        {"upsample": "bilinear", "voxel_weight": torch.rand(2, 5, 6)},
        RuntimeError,
        "voxel_weight",
    ),
}
EVERY_BAD_CALL = pytest.mark.parametrize(("x", "y", "options", "error", "message"), BAD.values(), ids=BAD)


@EVERY_BAD_CALL
@pytest.mark.parametrize(
    "loss", [segloss.cross_entropy, segloss.dice_ce_loss, segloss.focal_loss], ids=lambda loss: loss.__name__
)
def test_bad_calls_say_what_to_do(loss, x, y, options, error, message):
    with pytest.raises(error) as caught:
        loss(x, y, **options)
    assert message.replace("got input [2, 4, 5, 6] with", "input [2, 4, 5, 6] with") in str(caught.value)
    assert str(caught.value).startswith(loss.__name__)


@pytest.mark.parametrize(("size", "mode"), [((9,), "linear"), ((9, 8), "bilinear"), ((9, 8, 7), "trilinear")])
def test_another_size_without_upsample_names_it(size, mode):
    with pytest.raises(RuntimeError, match=f"Try upsample='{mode}' or"):
        segloss.cross_entropy(torch.randn(2, 3, *(4,) * len(size)), torch.zeros(2, 1, *size, dtype=torch.long))


def test_probabilities_outside_the_range_are_found_where_they_are_interpolated():
    x = torch.full((1, 2, 2, 2), 0.5)
    x[0, 1, 1, 1] = 3.0
    with pytest.raises(
        RuntimeError, match=r"probabilities in \[0, 1\] as input .* at index \[0, 1, 1, 3\] of input \[1, 2, 4, 4\]"
    ):
        segloss.dice_loss(x, torch.zeros(1, 4, 4, dtype=torch.long), activation=None, upsample="bilinear")


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_label_maps_are_not_interpolated(metric):
    with pytest.raises(ValueError, match="expected logits with upsample, got Long input"):
        metric(
            torch.zeros(2, 1, 4, 4, dtype=torch.long), torch.zeros(2, 1, 8, 8, dtype=torch.long), upsample="bilinear"
        )


def test_masks_of_metrics_are_not_interpolated():
    masks = torch.ones(2, 3, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected no upsample with masks=True"):
        segloss.dice_score(masks, masks, masks=True, upsample="bilinear")


def test_one_channel_warns_as_without_upsample():
    with pytest.warns(UserWarning, match="has one channel, whose softmax is 1"):
        segloss.cross_entropy(torch.randn(2, 1, 4, 4), torch.zeros(2, 1, 8, 8, dtype=torch.long), upsample="bilinear")


def test_every_loss_and_metric_takes_upsample():
    for function in (*FUNCTIONS.values(), *METRICS.values(), segloss.soft_stats, segloss.predict):
        if function is segloss.hausdorff_dt_loss or function.__name__ in (*CLDICE_LOSSES, *INSTANCE_LOSSES):
            continue  # they need the probabilities, or sums of components, at the labels' size
        assert takes(function, "upsample")
        assert takes(function, "align_corners")
