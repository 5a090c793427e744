"""The focal loss: softmax focal is cross entropy with a factor, sigmoid focal its binary sister for every class."""

import inspect

import pytest
import reference
import torch
import torch.nn.functional as F
from losses import OF_LABELS, OF_SIZE, value_and_gradient
from tolerances import CONFIDENT_RTOL, ROUNDING_RTOL, SUM_RTOL, assert_close, assert_relative, assert_same_bits
from torch.autograd import gradcheck, gradgradcheck

import segloss

REDUCTIONS = ["mean", "sum", "none"]
GAMMAS = [0.5, 1.0, 2.0, 5.0]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
HALVES = [torch.float16, torch.bfloat16]
WEIGHT = torch.tensor([0.5, 2.0, 1.0])
INF, NAN = float("inf"), float("nan")


def focal(input, target, **options):
    return value_and_gradient(segloss.focal_loss, input, target, **options)


def assert_is_reference(input, target, **options):
    expected = reference.value_and_gradient(reference.focal_loss, input, target, **options)
    for actual, wanted in zip(focal(input, target, **options), expected, strict=True):
        assert actual.shape == wanted.shape
        assert actual.dtype == input.dtype
        assert_close(actual, wanted)


def test_names_and_defaults_of_the_keywords():
    input, target, *keywords = inspect.signature(segloss.focal_loss).parameters.values()
    assert (input.name, target.name) == ("input", "target")
    assert all(keyword.kind is keyword.KEYWORD_ONLY for keyword in keywords)
    assert {keyword.name: keyword.default for keyword in keywords} == {
        "gamma": 2.0,
        "alpha": None,
        "weight": None,
        "activation": "softmax",
        "ignore_index": -100,
        "reduction": "mean",
        "empty": "nan",
        "dim": 1,
        "voxel_weight": None,
        "process_group": None,
        **OF_LABELS,
        **OF_SIZE,
    }


# ---- softmax: values ----


def test_softmax_focal_of_one_voxel_by_hand():
    p = torch.tensor([[0.2, 0.5, 0.3]])
    expected = (1 - 0.5) ** 2 * -torch.tensor([0.5]).log()
    assert_close(segloss.focal_loss(p.log(), torch.tensor([1]), reduction="none"), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT}, {"ignore_index": 1}], ids=["plain", "weight", "ignored"])
def test_gamma_zero_is_exactly_cross_entropy(options, dtype, reduction):
    x, labels, v = torch.randn(2, 3, 70).to(dtype), torch.randint(3, (2, 70)), torch.rand(2, 70)
    options = {**options, "reduction": reduction, "voxel_weight": v}
    expected = value_and_gradient(segloss.cross_entropy, x, labels, **options)
    assert_same_bits(focal(x, labels, gamma=0.0, **options), expected)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "options",
    [{}, {"weight": WEIGHT}, {"voxel_weight": True}, {"weight": WEIGHT, "voxel_weight": True, "ignore_index": 1}],
    ids=lambda options: "+".join(options) or "plain",
)
def test_softmax_focal_is_the_reference(options, reduction, gamma):
    v = torch.randint(3, (2, 70)) * torch.rand(2, 70) if options.get("voxel_weight") else None
    options = {**options, "voxel_weight": v, "reduction": reduction, "gamma": gamma}
    assert_is_reference(2 * torch.randn(2, 3, 70), torch.randint(3, (2, 70)), **options)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("spatial", [(), (7,), (4, 5), (3, 4, 2)], ids=lambda sizes: f"{len(sizes)}d")
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_every_dtype_and_rank_is_the_reference(activation, spatial, dtype):
    x, labels = torch.randn(4, 3, *spatial).to(dtype), torch.randint(3, (4, *spatial))
    assert_is_reference(x, labels, activation=activation, reduction="sum")


@pytest.mark.filterwarnings("ignore:.*has one channel")
@pytest.mark.parametrize("num_classes", [1, 2, 5, 63, 64, 65, 128, 129, 300])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_every_number_of_classes_is_the_reference(reduction, activation, num_classes):
    x, labels = torch.randn(2, num_classes, 70), torch.randint(num_classes, (2, 70))
    assert_is_reference(x, labels, activation=activation, reduction=reduction, gamma=1.5)


@pytest.mark.filterwarnings("ignore:.*has one channel")
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_one_class_has_a_softmax_focal_loss_of_zero(gamma):
    value, gradient = focal(torch.randn(2, 1, 4), torch.zeros(2, 4).long(), gamma=gamma)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(2, 1, 4))


@pytest.mark.parametrize("num_voxels", [1, 63, 64, 65, 4097])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_every_number_of_voxels_is_the_reference(activation, num_voxels):
    x, labels = torch.randn(3, 3, num_voxels), torch.randint(3, (3, num_voxels))
    labels[:, 1::7] = -100
    assert_is_reference(x, labels, activation=activation, reduction="none")


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_classes_may_be_last(reduction, activation):
    x, labels = torch.randn(2, 7, 3), torch.randint(3, (2, 7))
    assert_is_reference(x, labels, activation=activation, dim=-1, reduction=reduction)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("target", [torch.tensor(2), torch.tensor([2])])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_unbatched_voxel(reduction, target, activation):
    assert_is_reference(torch.randn(3), target, activation=activation, reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool, torch.float32])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_labels_of_other_dtypes(activation, dtype):
    x, labels = torch.randn(2, 2, 9), torch.randint(2, (2, 1, 9))
    expected = focal(x, labels, activation=activation)
    assert_same_bits(focal(x, labels.to(dtype), activation=activation), expected)


def test_integer_one_hot_is_labels():
    x, labels = torch.randn(2, 3, 9), torch.randint(3, (2, 9))
    target = F.one_hot(labels, 3).movedim(-1, 1)
    assert_same_bits(focal(x, target), focal(x, labels))


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5)])
def test_reduction_none_has_the_shape_of_the_labels(shape):
    value = segloss.focal_loss(torch.randn(2, 3, 4, 5), torch.randint(3, shape), reduction="none")
    assert value.shape == shape


def test_reduction_none_of_one_hot_has_the_shape_of_input_without_the_classes():
    target = F.one_hot(torch.randint(3, (2, 4)), 3).movedim(-1, 1)
    assert segloss.focal_loss(torch.randn(2, 3, 4), target, reduction="none").shape == (2, 4)


# ---- softmax: confident voxels ----

MARGINS = [0.0, 1.0, 10.0, 50.0, 87.0, 200.0]


def of_margin(margins, right, num_classes=3, dtype=torch.float32):
    """Voxels of label 0, whose logit is larger (right) or smaller (wrong) than the others by these margins."""
    x = torch.zeros(len(margins), num_classes, dtype=dtype)
    x[:, 0] = torch.tensor(margins, dtype=dtype) * (1 if right else -1)
    return x, torch.zeros(len(margins), dtype=torch.int64)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("num_classes", [2, 3, 130])
def test_a_confident_voxel_has_a_finite_value_and_gradient(num_classes, gamma, right, dtype):
    x, labels = of_margin([*MARGINS, 1e4], right, num_classes, dtype)
    value, gradient = focal(x, labels, gamma=gamma, reduction="none")
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert_is_reference(x, labels, gamma=gamma, reduction="none")


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_the_gradient_where_one_minus_p_vanishes_is_zero(gamma):
    """The factor gamma (1 - p)^(gamma - 1) in it is inf there."""
    x, labels = of_margin([1e4], right=True)
    value, gradient = focal(x, labels, gamma=gamma)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(1, 3))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_loss_of_confident_voxels_keeps_its_digits(num_classes, gamma):
    """(1 - p)^gamma (-log p) is about (4 e^-margin)^(gamma + 1): a rounded 1 - p is 0 from a margin of 17 on."""
    margins = [m for m in torch.arange(0, 40.5, 0.5).tolist() if m * (gamma + 1) < 80]
    x, labels = of_margin(margins, True, num_classes)
    expected = reference.focal_loss(x, labels, gamma=gamma, reduction="none")
    assert_relative(segloss.focal_loss(x, labels, gamma=gamma, reduction="none"), expected, CONFIDENT_RTOL)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_gradient_at_the_label_of_confident_voxels_keeps_its_digits(gamma):
    margins = [m for m in torch.arange(0, 40.5, 0.5).tolist() if m * (gamma + 1) < 80]
    x, labels = of_margin(margins, True)
    actual = focal(x, labels, gamma=gamma, reduction="none")[1][:, 0]
    expected = reference.value_and_gradient(reference.focal_loss, x, labels, gamma=gamma, reduction="none")[1][:, 0]
    assert_relative(actual, expected, CONFIDENT_RTOL)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_loss_of_confidently_wrong_voxels_is_the_margin(gamma):
    x, labels = of_margin([50.0, 87.0, 200.0, 1e4], right=False, num_classes=2)
    assert_relative(segloss.focal_loss(x, labels, gamma=gamma, reduction="none"), -x[:, 0], CONFIDENT_RTOL)


# ---- softmax: nan and inf ----


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_minus_inf_that_is_not_the_label_is_exact(reduction, gamma):
    x, without = torch.tensor([[1.0, -INF, 0.5], [1.0, 2.0, -INF]]), torch.tensor([[1.0, 0.5], [1.0, 2.0]])
    value, gradient = focal(x, torch.tensor([2, 0]), gamma=gamma, reduction=reduction)
    expected, expected_gradient = focal(without, torch.tensor([1, 0]), gamma=gamma, reduction=reduction)
    assert_close(value, expected)
    assert_close(gradient[x.isfinite()].reshape(2, 2), expected_gradient)
    assert (gradient[x.isinf()] == 0).all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_minus_inf_on_all_classes_but_the_label_is_a_loss_of_zero(gamma):
    value, gradient = focal(torch.tensor([[-INF, 1.0, -INF]]), torch.tensor([1]), gamma=gamma)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(1, 3))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_minus_inf_at_the_label_is_inf_with_the_gradient_of_cross_entropy(gamma):
    x, labels = torch.tensor([[1.0, -INF, 0.5]]), torch.tensor([1])
    value, gradient = focal(x, labels, gamma=gamma)
    assert value == INF
    assert_close(gradient, value_and_gradient(segloss.cross_entropy, x, labels)[1])


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("position", [0, 1], ids=["label", "other"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_plus_inf_or_nan_on_a_valid_voxel_is_nan(gamma, position, value):
    x = torch.zeros(2, 3)
    x[0, position] = value
    loss, gradient = focal(x, torch.tensor([0, 0]), gamma=gamma)
    assert loss.isnan()
    assert gradient[0].isnan().all()
    assert gradient[1].isfinite().all()


@pytest.mark.parametrize("spoiled", [NAN, INF, -INF])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nan_and_inf_on_a_voxel_that_does_not_count_have_no_effect(reduction, activation, spoiled):
    clean, labels, v = torch.randn(2, 3, 70), torch.randint(3, (2, 70)), torch.rand(2, 70) + 0.1
    labels[0, 3], v[1, 5] = -100, 0
    x = clean.clone()
    x[0, :, 3], x[1, 1, 5] = spoiled, spoiled
    options = {"activation": activation, "reduction": reduction, "voxel_weight": v}
    assert_same_bits(focal(x, labels, **options), focal(clean, labels, **options))


# ---- nothing to average ----


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("empty", "expected"), [("nan", NAN), ("zero", 0.0)])
@pytest.mark.parametrize("how", ["ignored", "voxel_weight", "no voxel"])
def test_the_mean_over_no_voxel(how, empty, expected, activation):
    num_voxels = 0 if how == "no voxel" else 4
    labels = torch.full((2, num_voxels), -100 if how == "ignored" else 1)
    v = torch.zeros(2, num_voxels) if how == "voxel_weight" else None
    x = torch.randn(2, 3, num_voxels)
    value, gradient = focal(x, labels, empty=empty, activation=activation, voxel_weight=v)
    assert_close(value, torch.tensor(expected))
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize(("empty", "expected"), [("nan", NAN), ("zero", 0.0)])
def test_the_mean_over_class_weights_of_zero(empty, expected):
    value, gradient = focal(torch.randn(2, 3, 4), torch.randint(3, (2, 4)), weight=torch.zeros(3), empty=empty)
    assert_close(value, torch.tensor(expected))
    assert torch.equal(gradient, torch.zeros(2, 3, 4))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_sum_and_none_of_no_valid_voxel_are_zero(reduction, activation):
    values = focal(torch.randn(2, 3, 4), torch.full((2, 4), -100), activation=activation, reduction=reduction)
    for value in values:
        assert torch.equal(value, torch.zeros_like(value))


# ---- sigmoid ----


def test_sigmoid_focal_of_one_voxel_by_hand():
    p = torch.tensor([[0.2, 0.9]])
    expected = torch.stack([(1 - p[0, 0]) ** 2 * -p[0, 0].log(), p[0, 1] ** 2 * -(1 - p[0, 1]).log()])
    actual = segloss.focal_loss(p.logit(), torch.tensor([[1, 0]]), activation="sigmoid", reduction="none")
    assert_close(actual, expected.unsqueeze(0))


def sigmoid_targets(num_classes=3):
    labels = torch.randint(num_classes, (2, 70))
    mask = torch.randint(2, (2, num_classes, 70))
    return {
        "labels": labels,
        "kept class dimension": labels.unsqueeze(1),
        "mask": mask.to(torch.uint8),
        "bool mask": mask.bool(),
        "float mask": mask.float(),
        "soft labels": torch.rand(2, num_classes, 70),
    }


@pytest.mark.parametrize("gamma", [0.0, *GAMMAS])
@pytest.mark.parametrize("kind", list(sigmoid_targets()))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sigmoid_focal_is_the_reference(reduction, kind, gamma):
    v = torch.randint(3, (2, 70)) * torch.rand(2, 70)
    options = {"activation": "sigmoid", "gamma": gamma, "reduction": reduction, "weight": WEIGHT, "voxel_weight": v}
    assert_is_reference(2 * torch.randn(2, 3, 70), sigmoid_targets()[kind], **options)


@pytest.mark.parametrize("kind", ["mask", "float mask", "soft labels"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("num_classes", [1, 3])
def test_sigmoid_focal_of_gamma_zero_is_the_binary_cross_entropy(num_classes, reduction, kind):
    x, target = torch.randn(2, num_classes, 70), sigmoid_targets(num_classes)[kind]
    x.requires_grad_()
    expected = F.binary_cross_entropy_with_logits(x, target.float(), reduction=reduction)
    actual = segloss.focal_loss(x, target, gamma=0.0, activation="sigmoid", reduction=reduction)
    assert_close(actual, expected)
    gradients = (torch.autograd.grad(loss.sum(), x)[0] for loss in (actual, expected))
    assert_close(*gradients)


def test_labels_of_a_sigmoid_are_one_hot_inside():
    x, labels = torch.randn(2, 3, 9), torch.randint(3, (2, 9))
    mask = F.one_hot(labels, 3).movedim(-1, 1)
    assert_same_bits(focal(x, labels, activation="sigmoid"), focal(x, mask, activation="sigmoid"))


@pytest.mark.parametrize("num_classes", [1, 3])
def test_a_voxel_of_an_ignored_mask_value_is_left_out(num_classes):
    x, mask = torch.randn(2, num_classes, 9), torch.randint(2, (2, num_classes, 9))
    mask[0, 0, 2] = mask[1, -1, 5:] = 255
    for reduction in REDUCTIONS:
        assert_is_reference(x, mask, activation="sigmoid", ignore_index=255, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_mean_of_a_sigmoid_is_over_valid_voxels_and_classes(reduction):
    x, labels = torch.randn(2, 3, 9), torch.randint(3, (2, 9))
    labels[0, :4] = -100
    losses = segloss.focal_loss(x, labels, activation="sigmoid", reduction="none")
    expected = losses.sum() / (14 * 3 if reduction == "mean" else 1)
    assert_close(segloss.focal_loss(x, labels, activation="sigmoid", reduction=reduction), expected)


def test_the_weight_of_a_sigmoid_multiplies_the_classes_and_divides_nothing():
    x, mask = torch.randn(2, 3, 9), torch.randint(2, (2, 3, 9))
    losses = segloss.focal_loss(x, mask, activation="sigmoid", reduction="none")
    expected = (WEIGHT.view(1, 3, 1) * losses).mean()
    assert_close(segloss.focal_loss(x, mask, activation="sigmoid", weight=WEIGHT), expected)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5)])
def test_reduction_none_of_a_sigmoid_has_the_shape_of_input(shape):
    x = torch.randn(2, 3, 4, 5)
    value = segloss.focal_loss(x, torch.randint(3, shape), activation="sigmoid", reduction="none")
    assert value.shape == x.shape


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("margin", [50.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saturated_logits_of_a_sigmoid(dtype, margin, gamma):
    x, mask = margin * torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=dtype), torch.tensor([[1, 0, 1, 0]])
    value, gradient = focal(x, mask, activation="sigmoid", gamma=gamma, reduction="none")
    assert_close(value, torch.tensor([[0.0, margin, margin, 0.0]], dtype=dtype))
    assert_close(gradient, torch.tensor([[0.0, 1.0, -1.0, 0.0]], dtype=dtype))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_infinite_logits_of_a_sigmoid_that_are_right_have_a_loss_of_zero(gamma):
    x, mask = torch.tensor([[INF, -INF]]), torch.tensor([[1, 0]])
    for values in focal(x, mask, activation="sigmoid", gamma=gamma, reduction="none"):
        assert torch.equal(values, torch.zeros(1, 2))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_infinite_logits_of_a_sigmoid_that_are_wrong_are_inf_with_a_finite_gradient(gamma):
    x, mask = torch.tensor([[INF, -INF]]), torch.tensor([[0, 1]])
    value, gradient = focal(x, mask, activation="sigmoid", gamma=gamma, reduction="none")
    assert torch.equal(value, torch.tensor([[INF, INF]]))
    assert torch.equal(gradient, torch.tensor([[1.0, -1.0]]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_loss_of_confident_classes_of_a_sigmoid_keeps_its_digits(sign, gamma):
    margins = [m for m in torch.arange(0, 40.5, 0.5).tolist() if m * (gamma + 1) < 80]
    x = sign * torch.tensor(margins).unsqueeze(1)
    mask = torch.full((len(margins), 1), 1 if sign > 0 else 0)
    options = {"gamma": gamma, "activation": "sigmoid", "reduction": "none"}
    assert_relative(segloss.focal_loss(x, mask, **options), reference.focal_loss(x, mask, **options), CONFIDENT_RTOL)


def test_nan_in_one_class_of_a_sigmoid_is_seen_there_alone():
    x = torch.randn(1, 3, 2)
    x[0, 1, 0] = NAN
    value = segloss.focal_loss(x, torch.randint(2, (1, 3, 2)), activation="sigmoid", reduction="none")
    assert torch.equal(value.isnan(), x.isnan())


# ---- sums ----


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    labels = torch.randint(4, (1, 1, 512, 512), generator=generator).to(torch.uint8)
    return 3 * torch.randn(1, 4, 512, 512, generator=generator), labels


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_float32_reduction_of_an_image_is_the_sum_of_its_voxels(reduction, activation, image):
    losses = segloss.focal_loss(*image, activation=activation, reduction="none").double()
    expected = losses.mean() if reduction == "mean" else losses.sum()
    actual = segloss.focal_loss(*image, activation=activation, reduction=reduction, gamma=2.0)
    assert_relative(actual, expected, SUM_RTOL)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_half_logits_of_an_image_give_the_float32_answer_rounded(activation, dtype, image):
    x, labels = image[0].to(dtype), image[1]
    value = segloss.focal_loss(x, labels, activation=activation)
    assert value.dtype == dtype
    expected = segloss.focal_loss(x.float(), labels, activation=activation)
    assert_relative(value, expected, ROUNDING_RTOL[dtype])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_under_autocast_the_result_is_float32(reduction, activation):
    x, labels = torch.randn(2, 3, 8).bfloat16(), torch.randint(3, (2, 8))
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        value, gradient = focal(x, labels, activation=activation, reduction=reduction)
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert_close(value, reference.focal_loss(x, labels, activation=activation, reduction=reduction), torch.bfloat16)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_same_bits_for_one_thread_and_two_and_for_channels_last(reduction, activation, image, num_threads):
    x, labels = image
    options = {"activation": activation, "reduction": reduction, "gamma": 1.5}
    num_threads(1)
    expected = focal(x, labels, **options)
    num_threads(2)
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out = x.contiguous(memory_format=layout)
        actual = focal(laid_out, labels, **options)
        assert_same_bits(actual, expected)
        assert actual[1].stride() == laid_out.stride()


# ---- derivatives ----

LABELS = torch.tensor([[0, 2], [1, -100]])
MASK = torch.tensor([[[1, 0], [1, 1], [0, 0]], [[0, 0], [1, 0], [1, 1]]])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("activation", "target"), [("softmax", LABELS), ("sigmoid", LABELS), ("sigmoid", MASK)])
def test_first_and_second_derivatives(activation, target, reduction, gamma):
    x = torch.randn(2, 3, 2, dtype=torch.float64).requires_grad_()
    options = {"activation": activation, "reduction": reduction, "gamma": gamma, "weight": WEIGHT}
    options["voxel_weight"] = torch.tensor([[0.5, 1.0], [2.0, 1.0]])

    def loss(x):
        return segloss.focal_loss(x, target, **options)

    assert gradcheck(loss, x, check_forward_ad=True)
    assert gradgradcheck(loss, x)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_func_grad_gives_what_the_kernel_gives(reduction, activation):
    x, options = torch.randn(2, 3, 2).double(), {"activation": activation, "reduction": reduction}
    actual = torch.func.grad(lambda x: segloss.focal_loss(x, LABELS, **options).sum())(x)
    assert_close(actual, focal(x, LABELS, **options)[1])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_vmap_is_one_call_at_a_time(activation):
    x, labels = torch.randn(4, 2, 3, 5), torch.randint(3, (4, 2, 5))

    def loss(x, y):
        return segloss.focal_loss(x, y, activation=activation)

    expected = torch.stack([loss(x[b], labels[b]) for b in range(4)])
    assert_close(torch.func.vmap(loss)(x, labels), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("right", [True, False])
def test_second_derivatives_of_confident_voxels_are_finite(right, gamma):
    x, labels = of_margin(MARGINS, right, dtype=torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(segloss.focal_loss(x, labels, gamma=gamma), x, create_graph=True)
    assert_close(gradient.detach(), focal(x, labels, gamma=gamma)[1])
    assert torch.autograd.grad(gradient.square().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_beyond_the_arguments_at_most_one_number_per_voxel_is_saved(dtype):
    x, labels = torch.randn(2, 3, 8, 8).to(dtype).requires_grad_(), torch.zeros(2, 8, 8, dtype=torch.uint8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        segloss.focal_loss(x, labels)
    own = {t.data_ptr(): t.numel() for t in saved if t.data_ptr() not in {x.data_ptr(), labels.data_ptr()}}
    assert sum(numel for numel in own.values() if numel > 1) <= labels.numel()


# ---- errors ----


def test_softmax_focal_refuses_class_probabilities():
    with pytest.raises(RuntimeError, match=r"focal_loss: expected .*labels, got .*probabilities"):
        segloss.focal_loss(torch.randn(2, 3, 4), torch.rand(2, 3, 4))


def test_the_argmax_that_the_error_of_class_probabilities_advises_works():
    x, p = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    with pytest.raises(RuntimeError, match=r"target\.argmax\(1\)"):
        segloss.focal_loss(x, p)
    assert segloss.focal_loss(x, p.argmax(1)).isfinite()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gamma", [-1.0, -1e-9, NAN, -INF])
def test_a_negative_gamma_is_refused(gamma, activation):
    with pytest.raises((ValueError, RuntimeError), match=r"focal_loss: expected gamma.*got"):
        segloss.focal_loss(torch.randn(2, 3), torch.tensor([0, 1]), gamma=gamma, activation=activation)


@pytest.mark.parametrize("activation", [None, "none", "relu"])
def test_an_unknown_activation_is_refused(activation):
    with pytest.raises(ValueError, match=r"focal_loss: expected activation .*, got"):
        segloss.focal_loss(torch.randn(2, 3), torch.tensor([0, 1]), activation=activation)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_bad_label_names_the_loss(reduction, activation):
    text = r"^focal_loss: Target 7 is out of bounds: 1 label is outside \[0, 3\), the first at index \[1\]"
    with pytest.raises(IndexError, match=text):
        segloss.focal_loss(torch.randn(2, 3), torch.tensor([0, 7]), activation=activation, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_bad_value_of_a_mask_is_named(reduction):
    mask = torch.tensor([[0, 1, 0], [1, 2, 0]])
    with pytest.raises(RuntimeError, match=r"^focal_loss: .*\b2\b.*\[1, 1\]"):
        segloss.focal_loss(torch.randn(2, 3), mask, activation="sigmoid", reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [0, 1])
def test_ignoring_a_value_of_the_mask_is_refused(ignore_index, reduction):
    options = {"activation": "sigmoid", "ignore_index": ignore_index, "reduction": reduction}
    with pytest.raises(RuntimeError, match="ignore_index"):
        segloss.focal_loss(torch.randn(2, 3), torch.tensor([[0, 1, 0], [1, 1, 0]]), **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_soft_labels_with_an_ignore_index_are_refused(reduction):
    with pytest.raises(RuntimeError, match="ignore_index"):
        segloss.focal_loss(
            torch.randn(2, 3), torch.rand(2, 3), activation="sigmoid", ignore_index=255, reduction=reduction
        )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_weight_that_is_not_one_for_each_class_is_refused(reduction, activation):
    with pytest.raises(RuntimeError, match=r"focal_loss: .*weight.*\[3\]"):
        segloss.focal_loss(
            torch.randn(2, 3),
            torch.tensor([0, 1]),
            weight=torch.ones(4),
            activation=activation,
            reduction=reduction,
        )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_voxel_weight_that_requires_a_gradient_is_refused(reduction, activation):
    v = torch.ones(2, requires_grad=True)
    options = {"activation": activation, "reduction": reduction}
    with pytest.raises(RuntimeError, match=r"^focal_loss: .*voxel_weight"):
        segloss.focal_loss(torch.randn(2, 3), torch.tensor([0, 1]), voxel_weight=v, **options)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("option", "value"), [("reduction", "avg"), ("empty", "one")])
def test_an_unknown_choice_is_refused(option, value, activation):
    with pytest.raises(ValueError, match=value):
        segloss.focal_loss(torch.randn(2, 3), torch.tensor([0, 1]), activation=activation, **{option: value})


# ---- alpha ----


def torchvision_focal(x, g, alpha, gamma):
    """torchvision.ops.sigmoid_focal_loss, written out from its formula."""
    p = x.sigmoid()
    ce = torch.nn.functional.binary_cross_entropy_with_logits(x, g, reduction="none")
    p_t = p * g + (1 - p) * (1 - g)
    return (alpha * g + (1 - alpha) * (1 - g)) * ce * (1 - p_t) ** gamma


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_alpha_of_a_sigmoid_is_that_of_torchvision(alpha, reduction):
    x, masks = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randint(2, (2, 3, 5, 4))
    options = {"alpha": alpha, "gamma": 2.0, "activation": "sigmoid", "reduction": reduction}
    expected = torchvision_focal(x, masks.double(), alpha, 2.0)
    expected = expected if reduction == "none" else getattr(expected, reduction)()
    torch.testing.assert_close(segloss.focal_loss(x, masks, **options), expected)
    weight = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    actual = segloss.focal_loss(x, masks, weight=weight, **options | {"reduction": "none"})
    torch.testing.assert_close(actual, torchvision_focal(x, masks.double(), alpha, 2.0) * weight.view(1, 3, 1, 1))


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)], ids=["", "weight"])
def test_alpha_of_a_softmax_multiplies_the_loss_and_not_the_denominator(weight):
    x, labels = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True), torch.randint(3, (2, 5, 4))
    labels[0, 0], alpha = 255, torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    options = {"weight": weight, "ignore_index": 255}
    losses = segloss.focal_loss(x, labels, reduction="none", **options)
    weights = torch.ones(3) if weight is None else weight
    factor = torch.where(labels == 255, 0, alpha[labels.clamp_max(2)])
    expected = {
        "none": losses * factor,
        "sum": (losses * factor).sum(),
        "mean": (losses * factor).sum() / weights[labels[labels < 3]].sum(),
    }
    for reduction, value in expected.items():
        actual = segloss.focal_loss(x, labels, alpha=alpha, reduction=reduction, **options)
        torch.testing.assert_close(actual, value)
        gradients = (torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in (actual, value))
        torch.testing.assert_close(*gradients)


def test_alpha_of_one_changes_nothing_and_half_types_are_rounded_once():
    x, labels = torch.randn(2, 3, 50).bfloat16(), torch.randint(3, (2, 50))
    expected = segloss.focal_loss(x.double(), labels).bfloat16()
    assert segloss.focal_loss(x, labels, alpha=torch.ones(3)) == expected
    assert segloss.focal_loss(x, labels, alpha=torch.ones(3), reduction="mean", empty="zero") == expected


def test_alpha_of_no_voxel():
    x, labels = torch.randn(2, 3, 5), torch.full((2, 5), 255)
    options = {"alpha": torch.ones(3), "ignore_index": 255}
    assert segloss.focal_loss(x, labels, **options).isnan()
    assert segloss.focal_loss(x, labels, empty="zero", **options) == 0


def test_alpha_is_a_keyword_of_the_module_that_moves_with_it():
    x, labels, alpha = torch.randn(2, 3, 5), torch.randint(3, (2, 5)), torch.tensor([0.1, 0.6, 0.3])
    loss = segloss.FocalLoss(alpha=alpha)
    assert loss(x, labels) == segloss.focal_loss(x, labels, alpha=alpha)
    assert not loss.state_dict()
    assert loss.to("meta").alpha.is_meta
    loss = segloss.FocalLoss(alpha=0.25, activation="sigmoid")
    assert loss(x, labels) == segloss.focal_loss(x, labels, alpha=0.25, activation="sigmoid")


@pytest.mark.parametrize(
    ("alpha", "activation", "error", "text"),
    [
        (0.25, "softmax", TypeError, r"a tensor \[C\] with activation='softmax'.*got 0.25"),
        (torch.tensor(0.25), "softmax", TypeError, r"a tensor \[C\] with activation='softmax'"),
        ("0.25", "softmax", TypeError, r"a tensor \[C\] with activation='softmax'"),
        (torch.ones(3), "sigmoid", TypeError, r"a float with activation='sigmoid', got a tensor \[3\]"),
        (True, "sigmoid", TypeError, r"a float with activation='sigmoid', got True"),
        (1.5, "sigmoid", ValueError, r"alpha in \[0, 1\], got 1.5"),
        (-1, "sigmoid", ValueError, r"alpha in \[0, 1\], got -1.0. Use alpha=None"),
        (float("nan"), "sigmoid", ValueError, r"alpha in \[0, 1\]"),
        (torch.ones(4), "softmax", RuntimeError, r"\[3\]"),
        (torch.ones(3).long(), "softmax", RuntimeError, "a floating alpha"),
    ],
)
def test_bad_alpha_raises(alpha, activation, error, text):
    x, labels = torch.randn(2, 3, 5), torch.randint(3, (2, 5))
    with pytest.raises(error, match=f"focal_loss: .*{text}"):
        segloss.focal_loss(x, labels, alpha=alpha, activation=activation)
