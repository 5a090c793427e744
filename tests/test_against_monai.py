"""MONAI's region losses against segloss's, values and gradients, over random shapes, targets and options.

Tensors are float64. Where MONAI casts to float32 itself (its focal losses, the weights of its generalized Dice, deep
supervision), its rounding is the tolerance. All options of these losses are drawn, except those that MONAI reads
differently, on purpose or by a slip: the reason is given where they are left out.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from monai import losses as monai
from monai.data import MetaTensor
from monai.metrics import DiceMetric
from tolerances import assert_close
from torch import Tensor
from torch.nn import functional as F

import segloss

# The same examples in every run, so that a failure comes from a change and not from chance.
RANDOM = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

LABEL_DTYPES = [torch.uint8, torch.int16, torch.int64, torch.float32]
MASK_DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float32]
IGNORE_INDEX = [-1, 0, 1, 255]
SMOOTH = {"smooth_nr": st.sampled_from([0.0, 1e-5, 1.0]), "smooth_dr": st.sampled_from([1e-5, 0.3, 1.0])}
OVERLAP = {"include_background": st.booleans(), "batch": st.booleans(), **SMOOTH}
REDUCTION = {"reduction": st.sampled_from(["mean", "sum", "none"])}


@dataclass
class Case:
    """Logits [N, C, *], or probabilities if activation is None, and a target that both libraries take."""

    input: Tensor
    target: Tensor  # labels [N, 1, *], or a mask or probability per class [N, C, *]
    has_labels: bool
    activation: str | None
    options: dict  # keywords that both libraries have
    generator: torch.Generator

    @property
    def num_classes(self) -> int:
        return self.input.shape[1]

    @property
    def num_voxels(self) -> int:
        return self.input[:, 0].numel()

    @property
    def classes_that_count(self) -> int:
        return self.num_classes - (not self.options.get("include_background", True))

    @property
    def monai_target(self) -> Tensor:
        return self.target if self.has_labels else self.target.double()

    @property
    def monai_activation(self) -> dict:
        return {
            "softmax": self.activation == "softmax",
            "sigmoid": self.activation == "sigmoid",
            "to_onehot_y": self.has_labels,
        }

    def random_weight(self) -> Tensor:
        """Random weights [C], now and then one of them 0."""
        weight = torch.rand(self.num_classes, generator=self.generator, dtype=torch.float64) + 0.1
        return weight * (torch.rand(self.num_classes, generator=self.generator) < 0.8)


@st.composite
def cases(draw, activations=("softmax", "sigmoid", None), targets=("labels", "masks", "soft"), options=None) -> Case:
    generator = torch.Generator(torch.get_default_device()).manual_seed(draw(st.integers(0, 2**32)))
    activation = draw(st.sampled_from(activations))
    # For a single channel, MONAI skips softmax and one-hot coding, and does not drop the background.
    num_classes = draw(st.integers(2 if activation == "softmax" else 1, 6))
    drawn = {name: draw(values) for name, values in (options or {}).items()}
    if num_classes == 1 and "include_background" in drawn:
        drawn["include_background"] = True
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=3))
    shape = [draw(st.integers(1, 3)), num_classes, *sizes]
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.5, 3.0]))
    # An integer target of softmax's shape is one-hot in segloss, a mask in MONAI.
    kinds = [kind for kind in targets if not (kind == "labels" and num_classes == 1)]
    kind = draw(st.sampled_from([kind for kind in kinds if not (kind == "masks" and activation == "softmax")]))
    if kind == "labels":
        target = torch.randint(num_classes, (shape[0], 1, *sizes), generator=generator)
        target = target.to(draw(st.sampled_from(LABEL_DTYPES)))
    elif kind == "masks":
        target = (torch.rand(shape, generator=generator) < 0.4).to(draw(st.sampled_from(MASK_DTYPES)))
    else:
        target = torch.rand(shape, generator=generator, dtype=torch.float64)
    return Case(x if activation else x.sigmoid(), target, kind == "labels", activation, drawn, generator)


def with_ignored_voxels(case: Case, ignore_index: int) -> dict:
    """Marks a third of the labels as ignored; returns the keyword for both libraries."""
    assume(case.target.dtype != torch.uint8 or ignore_index >= 0)
    ignored = torch.rand(case.target.shape, generator=case.generator) < 0.3
    case.target = case.target.masked_fill(ignored, ignore_index)
    return {"ignore_index": ignore_index}


def value_and_gradient(loss, case: Case) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of a random combination of its numbers. The gradient of a mean is multiplied by the
    number of voxels: otherwise it would be below the tolerance."""
    x = case.input.clone().requires_grad_()
    value = loss(x)
    incoming = torch.randn(
        value.shape, generator=torch.Generator(torch.get_default_device()).manual_seed(0), dtype=torch.float64
    )
    scale = case.num_voxels if case.options["reduction"] == "mean" else 1
    (gradient,) = torch.autograd.grad((value * incoming).sum() * scale, x)
    return value.detach(), gradient


def assert_equal_to_monai(case: Case, ours, theirs, dtype: torch.dtype = torch.float64) -> None:
    if case.has_labels and case.options.get("squared"):
        dtype = torch.float32  # MONAI's one-hot is float32: exact in sums, but its squared norm is not
    value, gradient = value_and_gradient(ours, case)
    # With reduction="none" MONAI keeps spatial dimensions of size 1.
    expected, expected_gradient = value_and_gradient(lambda x: theirs(x).reshape(value.shape), case)
    assert_close(value, expected, dtype)
    assert_close(gradient, expected_gradient, dtype)


def overlap_shape(case: Case) -> tuple[int, ...]:
    """The shape of the Dice and Tversky losses with reduction="none"."""
    return (case.classes_that_count,) if case.options["batch"] else (len(case.input), case.classes_that_count)


DICE = {**OVERLAP, **REDUCTION, "jaccard": st.booleans(), "squared": st.booleans()}


def dice_weights(case: Case, weighted: bool) -> tuple[Tensor | None, Tensor | None]:
    """The same weights for segloss, [C], and for MONAI, [C] or without background [C - 1]."""
    # MONAI ignores the weight if only one class counts.
    if not weighted or case.classes_that_count == 1:
        return None, None
    weight = case.random_weight()
    return weight, weight[case.num_classes - case.classes_that_count :]


@settings(RANDOM, max_examples=200)
@given(cases(options=DICE), st.booleans(), st.none() | st.sampled_from(IGNORE_INDEX))
def test_dice_loss_equals_monai(case, weighted, ignore_index):
    # In a mask, MONAI looks for the ignored label in the background's channel, segloss in all channels.
    ignore = with_ignored_voxels(case, ignore_index) if case.has_labels and ignore_index is not None else {}
    weight, monai_weight = dice_weights(case, weighted)
    ours = segloss.DiceLoss(activation=case.activation, weight=weight, **case.options, **ignore)
    options = {"squared_pred" if name == "squared" else name: value for name, value in case.options.items()}
    theirs = monai.DiceLoss(**case.monai_activation, weight=monai_weight, **options, **ignore)
    assert_equal_to_monai(case, lambda x: ours(x, case.target), lambda x: theirs(x, case.monai_target))
    if case.options["reduction"] == "none":
        assert ours(case.input, case.target).shape == overlap_shape(case)


TVERSKY = {**OVERLAP, **REDUCTION, "alpha": st.sampled_from([0.0, 0.3, 1.0]), "beta": st.sampled_from([0.2, 0.5, 2.0])}


@settings(RANDOM, max_examples=100)
@given(cases(options=TVERSKY), st.none() | st.sampled_from(IGNORE_INDEX))
def test_tversky_loss_equals_monai(case, ignore_index):
    ignore = with_ignored_voxels(case, ignore_index) if case.has_labels and ignore_index is not None else {}
    ours = segloss.TverskyLoss(activation=case.activation, **case.options, **ignore)
    theirs = monai.TverskyLoss(**case.monai_activation, **case.options, **ignore)
    assert_equal_to_monai(case, lambda x: ours(x, case.target), lambda x: theirs(x, case.monai_target))
    if case.options["reduction"] == "none":
        assert ours(case.input, case.target).shape == overlap_shape(case)


GENERALIZED = {**OVERLAP, **REDUCTION, "w_type": st.sampled_from(["square", "simple", "uniform"])}


def has_no_finite_weight(case: Case) -> bool:
    """Whether all classes that count are empty in some sample or, with `batch`, in the whole batch."""
    target = case.target
    if case.has_labels:
        target = F.one_hot(target.squeeze(1).long(), case.num_classes).movedim(-1, 1)
    counted = target[:, case.num_classes - case.classes_that_count :]
    return bool((~(counted != 0).flatten(0 if case.options["batch"] else 1).any(-1)).any())


@settings(RANDOM, max_examples=100)
@given(cases(options=GENERALIZED))
def test_generalized_dice_loss_equals_monai(case):
    # If no weight is finite, all of MONAI's weights are 0 and its loss is 1 - nr / dr; segloss's weights are 1.
    assume(case.options["w_type"] == "uniform" or not has_no_finite_weight(case))
    ours = segloss.GeneralizedDiceLoss(activation=case.activation, **case.options)
    theirs = monai.GeneralizedDiceLoss(**case.monai_activation, **case.options)
    # MONAI's weights are float32.
    assert_equal_to_monai(
        case, lambda x: ours(x, case.target), lambda x: theirs(x, case.monai_target), dtype=torch.float32
    )
    if case.options["reduction"] == "none" and not case.options["batch"]:
        assert ours(case.input, case.target).shape == case.input.shape[:1]


GAMMA = {"gamma": st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5])}


@settings(RANDOM, max_examples=80)
@given(cases(activations=("softmax",), targets=("labels",), options={**GAMMA, **REDUCTION}), st.booleans())
def test_softmax_focal_loss_equals_monai_up_to_its_denominator(case, weighted):
    """MONAI's mean divides by voxels and classes, not by the weights; its sum adds up the means of the channels."""
    weight = case.random_weight() if weighted else torch.ones(case.num_classes, dtype=torch.float64)
    ours = segloss.FocalLoss(activation="softmax", weight=weight, **case.options)
    theirs = monai.FocalLoss(use_softmax=True, to_onehot_y=True, weight=weight, **case.options)
    share = weight[case.target.long()].sum()
    assume(share > 0)
    factor = {
        "mean": case.num_classes * case.num_voxels / share,
        "sum": case.num_voxels / len(case.input),
        "none": 1,
    }[case.options["reduction"]]

    def their_loss(x):
        value = theirs(x, case.target) * factor
        return value.sum(1, keepdim=True) if case.options["reduction"] == "none" else value

    assert_equal_to_monai(case, lambda x: ours(x, case.target), their_loss, dtype=torch.float32)


@settings(RANDOM, max_examples=80)
@given(
    cases(activations=("sigmoid",), options={"include_background": st.booleans(), **GAMMA, **REDUCTION}), st.booleans()
)
def test_sigmoid_focal_loss_equals_monai_up_to_its_denominator(case, weighted):
    """MONAI's sum adds up the means of the channels. Without background its mean is over the remaining classes; segloss
    gets a weight of 0 for class 0 instead."""
    # Without reduction, MONAI drops the background's channel from the result.
    assume(case.options["include_background"] or case.options["reduction"] != "none")
    if case.options["gamma"] > 0 and not case.has_labels:
        # For a soft label, MONAI's focal factor is not the mean of the factors of labels 0 and 1.
        case.target = case.target.round() if case.target.is_floating_point() else case.target
    options = {name: value for name, value in case.options.items() if name != "include_background"}
    first = case.num_classes - case.classes_that_count
    weighted = weighted and case.classes_that_count > 1  # MONAI refuses a weight for a single channel
    weight = case.random_weight() if weighted else torch.ones(case.num_classes, dtype=torch.float64)
    weight[:first] = 0
    ours = segloss.FocalLoss(activation="sigmoid", weight=weight, **options)
    theirs = monai.FocalLoss(to_onehot_y=case.has_labels, weight=weight[first:] if weighted else None, **case.options)
    factor = {
        "mean": case.classes_that_count / case.num_classes,
        "sum": case.num_voxels / len(case.input),
        "none": 1,
    }[options["reduction"]]
    assert_equal_to_monai(
        case, lambda x: ours(x, case.target), lambda x: theirs(x, case.monai_target) * factor, dtype=torch.float32
    )


LAMBDAS = [0.0, 0.4, 1.0, 2.5]
COMPOUND = {**DICE, "reduction": st.sampled_from(["mean", "sum"]), "lambda_dice": st.sampled_from(LAMBDAS)}
DICE_CE = {**COMPOUND, "lambda_ce": st.sampled_from(LAMBDAS)}


def assert_dice_ce_equals_monai(case: Case, weight: Tensor | None, label_smoothing: float) -> None:
    ours = segloss.DiceCELoss(
        activation=case.activation, weight=weight, label_smoothing=label_smoothing, **case.options
    )
    options = {"squared_pred" if name == "squared" else name: value for name, value in case.options.items()}
    theirs = monai.DiceCELoss(**case.monai_activation, weight=weight, label_smoothing=label_smoothing, **options)
    assert_equal_to_monai(case, lambda x: ours(x, case.target), lambda x: theirs(x, case.monai_target))


@settings(RANDOM, max_examples=150)
@given(
    cases(activations=("softmax",), targets=("labels", "soft"), options=DICE_CE),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_dice_ce_loss_equals_monai(case, weighted, label_smoothing):
    """With softmax only: MONAI's second term is always the softmax cross entropy, segloss's follows the activation."""
    # If only one class counts, MONAI ignores the weight in the Dice term, but not in the other.
    weight = case.random_weight() if weighted and case.classes_that_count > 1 else None
    # If all labels have zero weight, both losses are nan.
    assume(weight is None or not case.has_labels or weight[case.target.long()].sum() > 0)
    assert_dice_ce_equals_monai(case, weight, label_smoothing)


@settings(RANDOM, max_examples=60)
@given(cases(activations=("sigmoid",), targets=("masks", "soft"), options=DICE_CE))
def test_dice_ce_loss_of_one_class_equals_monais_binary_cross_entropy(case):
    """Without weight, which MONAI applies to positive voxels only, and without smoothing, which it does not apply."""
    case.input, case.target = case.input[:, :1], case.target[:, :1]
    case.options["include_background"] = True
    assert_dice_ce_equals_monai(case, None, 0.0)


DICE_FOCAL = {**COMPOUND, **GAMMA, "lambda_focal": st.sampled_from(LAMBDAS), "include_background": st.just(True)}


@settings(RANDOM, max_examples=100)
@given(cases(activations=("sigmoid",), targets=("labels", "masks"), options=DICE_FOCAL), st.booleans())
def test_dice_focal_loss_equals_monai(case, weighted):
    """With sigmoid only, which MONAI's focal term always uses, and with the background, which MONAI would drop from the
    focal term, too."""
    weight = case.random_weight() if weighted and case.num_classes > 1 else None
    ours = segloss.DiceFocalLoss(activation="sigmoid", weight=weight, **case.options)
    options = {"squared_pred" if name == "squared" else name: value for name, value in case.options.items()}
    if options["reduction"] == "sum":  # MONAI's focal sum adds up the means of the channels
        options["lambda_focal"] *= case.num_voxels / len(case.input)
    theirs = monai.DiceFocalLoss(**case.monai_activation, weight=weight, **options)
    assert_equal_to_monai(
        case, lambda x: ours(x, case.target), lambda x: theirs(x, case.monai_target), dtype=torch.float32
    )


@pytest.mark.parametrize("sizes", [(12, 8), (8, 12, 4)])
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.float32])
def test_deep_supervision_loss_equals_monai(sizes, label_dtype):
    """Equal up to the sum of MONAI's weights. MONAI's labels have dtypes that interpolate takes."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    target = torch.randint(3, (2, 1, *sizes), generator=generator).to(label_dtype)
    levels = [torch.randn(2, 3, *(-(-size // 2**level) for size in sizes), generator=generator) for level in range(3)]
    weights = [1 / 2**level for level in range(3)]

    def value_and_gradients(loss, scale):
        leaves = [level.clone().requires_grad_() for level in levels]
        value = loss(leaves, target) * scale
        return value.detach(), torch.autograd.grad(value * target.numel(), leaves)

    ours = segloss.DeepSupervisionLoss(segloss.DiceCELoss(), mode="nearest-exact")
    theirs = monai.DeepSupervisionLoss(monai.DiceCELoss(softmax=True, to_onehot_y=True))
    value, gradients = value_and_gradients(ours, 1)
    expected, expected_gradients = value_and_gradients(theirs, 1 / sum(weights))
    assert_close(value, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient)


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_the_score_of_each_sample_is_monais_that_counts_empty_classes():
    """Up to a class that is neither in the labels nor predicted: nan here, 1 there."""
    x, labels = torch.randn(4, 3, 6, 5), torch.randint(2, (4, 1, 6, 5))
    metric = DiceMetric(reduction="none", ignore_empty=False)
    metric(*(F.one_hot(y.squeeze(1), 3).movedim(-1, 1) for y in (x.argmax(1, keepdim=True), labels)))
    scores = segloss.dice_score(x, labels, per_sample=True)
    torch.testing.assert_close(scores.nan_to_num(1.0), metric.aggregate())


# ---- MetaTensor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cross_entropy", "focal_loss", "topk_loss", "dice_ce_loss", "dice_score", "accuracy"])
def test_a_metatensor_is_read_as_the_tensor_that_it_is(name):
    x, labels = torch.randn(2, 3, 6, 5), torch.randint(3, (2, 1, 6, 5))
    expected, actual = (getattr(segloss, name)(of(x), of(labels)) for of in (torch.Tensor.clone, MetaTensor))
    assert torch.equal(actual, expected)
    assert type(actual) is torch.Tensor


@pytest.mark.cpu_only
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch.compile itself
@pytest.mark.parametrize("loss", [segloss.CrossEntropyLoss(), segloss.DeepSupervisionLoss(segloss.DiceCELoss())])
def test_compiled_code_may_be_given_a_metatensor(loss):
    """torch.compile itself has no rules for it, and breaks the graph."""
    net, images = torch.nn.Conv2d(1, 3, 1), torch.randn(2, 1, 6, 5)
    labels = MetaTensor(torch.randint(3, (2, 1, 6, 5)))

    def step(images, labels):
        x = net(images)
        return loss([x] if isinstance(loss, segloss.DeepSupervisionLoss) else x, labels)

    assert_close(torch.compile(step, backend="aot_eager")(images, labels), step(images, labels))
