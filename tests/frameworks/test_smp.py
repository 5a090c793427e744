"""segloss.smp against the losses of segmentation_models_pytorch: values and gradients over random keywords and data.

Tensors are float64. Options and data on which SMP itself fails are left out of the random ones, and have tests of their
own, with the value that segloss gives.
"""

import copy
import importlib.util
import inspect
import pickle
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from example_scripts import load_example
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor
from torch.nn import functional as F

import segloss
from segloss import smp as ours

if importlib.util.find_spec("segmentation_models_pytorch") is None:
    pytest.skip("segmentation_models_pytorch is not installed", allow_module_level=True)

pytestmark = pytest.mark.cpu_only

with pytest.MonkeyPatch.context() as patch:
    theirs = load_example("smp_unet", patch).losses_of_smp()

MODES = [ours.BINARY_MODE, ours.MULTICLASS_MODE, ours.MULTILABEL_MODE]
REGION_LOSSES = ["DiceLoss", "JaccardLoss", "TverskyLoss"]
LOSSES = [*REGION_LOSSES, "FocalLoss", "SoftCrossEntropyLoss", "SoftBCEWithLogitsLoss"]
KEYWORDS = {name: {"mode": ours.MULTICLASS_MODE} for name in [*REGION_LOSSES, "FocalLoss"]}
KEYWORDS |= {"SoftCrossEntropyLoss": {"smooth_factor": 0.1}, "SoftBCEWithLogitsLoss": {}}

# The same examples in every run, so that a failure comes from a change and not from chance.
RANDOM = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


# ---- what scripts and checkpoints see ----


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_signatures_are_those_of_smp(name, method):
    def parameters(losses):
        signature = inspect.signature(getattr(getattr(losses, name), method))
        return [(each.name, each.kind, each.default) for each in signature.parameters.values()]

    own = parameters(ours)
    assert own[: len(parameters(theirs))] == parameters(theirs)
    assert [each[0] for each in own[len(parameters(theirs)) :]] == (["voxel_weight"] if method == "forward" else [])


def test_it_has_the_names_of_smp_but_one_loss():
    assert set(theirs.__all__) - set(ours.__all__) == {"MCCLoss"}
    assert set(ours.__all__) <= set(theirs.__all__)


def test_the_modes_are_those_of_smp():
    assert MODES == [theirs.BINARY_MODE, theirs.MULTICLASS_MODE, theirs.MULTILABEL_MODE]


def all_options(name) -> dict:
    """Keywords other than the defaults, tensors among them."""
    weights = {"weight": torch.ones(3, 1, 1), "pos_weight": torch.full((3, 1, 1), 2.0)}
    of_classes = {"class_weights": [1.0, 2.0, 3.0]}
    options = {"FocalLoss": of_classes, "SoftCrossEntropyLoss": {}, "SoftBCEWithLogitsLoss": weights}
    return KEYWORDS[name] | options.get(name, {"classes": [0, 2], **of_classes})


@pytest.mark.parametrize("name", LOSSES)
def test_the_state_dict_has_the_keys_of_smp(name):
    own, their = (getattr(losses, name)(**all_options(name)) for losses in (ours, theirs))
    assert own.state_dict().keys() == their.state_dict().keys()


@pytest.mark.parametrize("name", LOSSES)
def test_options_are_attributes(name):
    parameters = inspect.signature(getattr(theirs, name)).parameters
    loss = getattr(ours, name)(**all_options(name))
    for option, parameter in parameters.items():
        value, expected = getattr(loss, option), all_options(name).get(option, parameter.default)
        assert value.tolist() == torch.as_tensor(expected).tolist() if isinstance(value, Tensor) else value == expected


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_can_be_pickled_copied_and_printed(name):
    x, y = torch.randn(2, 3, 4, 5), torch.randint(2, (2, 3, 4, 5))
    y = y if name == "SoftBCEWithLogitsLoss" else y[:, 0]
    loss = getattr(ours, name)(**all_options(name))
    for copied in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert_close(copied(x, y), loss(x, y))
        assert repr(copied) == repr(loss)
    assert all(option in repr(loss) for option in inspect.signature(type(loss)).parameters if option in vars(loss))


@pytest.mark.parametrize(
    "weights", [[1, 2, 5], (1.0, 2.0, 5.0), np.array([1, 2, 5]), torch.tensor([1, 2, 5])], ids=type
)
@pytest.mark.parametrize("name", [*REGION_LOSSES, "FocalLoss"])
def test_class_weights_may_be_a_list_an_array_or_a_tensor(name, weights):
    x, y = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(3, (2, 4, 5))
    own, their = (getattr(losses, name)("multiclass", class_weights=weights)(x, y) for losses in (ours, theirs))
    assert_close(own, their)


# ---- values and gradients over random keywords ----


@dataclass
class Case:
    options: dict
    logits: Tensor  # [N, C, *] with two or three spatial dimensions
    target: Tensor
    generator: torch.Generator

    def weights(self, *shape: int) -> Tensor:
        """Random weights that float32, in which SMP keeps them, holds exactly."""
        return torch.randint(1, 9, shape, generator=self.generator) / 4


@st.composite
def cases(draw, mode, options, ignored=(None, 255, 0, 1), soft=False) -> Case:
    """Keywords, logits and a target. Some labels, or masks, are empty; some voxels ignored."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    num_classes = 1 if mode == ours.BINARY_MODE else draw(st.integers(2, 5))
    shape = [draw(st.integers(1, 3)), num_classes, *draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))]
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.5, 3.0]))
    if mode == ours.MULTICLASS_MODE:
        target = torch.randint(draw(st.integers(1, num_classes)), (shape[0], *shape[2:]), generator=generator)
    else:
        present = torch.rand(1, num_classes, *[1] * (len(shape) - 2), generator=generator) < 0.8
        target = (torch.rand(shape, generator=generator) < 0.4) & present
        if soft and draw(st.booleans()):
            target = target * torch.rand(shape, generator=generator, dtype=torch.float64)
        else:
            target = target.to(draw(st.sampled_from([torch.int64, torch.float64])))
    case = Case({name: draw(values) for name, values in options.items()}, logits, target, generator)
    ignore_index = case.options["ignore_index"] = draw(st.sampled_from(ignored))
    if ignore_index is not None:
        share = draw(st.sampled_from([0.3, 0.3, 1.0]))
        case.target = target.masked_fill(torch.rand(target.shape, generator=generator) < share, ignore_index)
    return case


def value_and_gradient(loss, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of a random combination of its numbers, times the number of logits: otherwise that of
    a mean would be below the tolerance."""
    x = logits.clone().requires_grad_()
    value = loss(x, target)
    incoming = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((value * incoming).sum() * x.numel(), x)
    return value.detach(), gradient


def assert_equal_to_smp(name: str, case: Case, target_of_smp: Tensor | None = None) -> None:
    own = value_and_gradient(getattr(ours, name)(**case.options), case.logits, case.target)
    target = case.target if target_of_smp is None else target_of_smp
    expected = value_and_gradient(getattr(theirs, name)(**case.options), case.logits, target)
    assert own[0].shape == expected[0].shape
    assert_close(own[0], expected[0])
    assert_close(own[1], expected[1])


def probability(logits: Tensor, mode: str) -> Tensor:
    return logits.softmax(1) if mode == ours.MULTICLASS_MODE else logits.sigmoid()


def with_weights_of_classes(case: Case, mode: str) -> None:
    if mode != ours.BINARY_MODE and torch.rand((), generator=case.generator) < 0.5:
        case.options["class_weights"] = case.weights(case.logits.shape[1]).tolist()


OVERLAP = {
    "log_loss": st.booleans(),
    "from_logits": st.booleans(),
    "smooth": st.sampled_from([0.0, 0.5, 3.0]),
    "eps": st.sampled_from([1e-7, 1e-3, 2.0]),
}
TVERSKY = OVERLAP | {
    "alpha": st.sampled_from([0.0, 0.3, 2.0]),
    "beta": st.sampled_from([0.0, 0.7, 1.5]),
    "gamma": st.sampled_from([0.75, 1.0, 2.0]),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REGION_LOSSES)
def test_region_losses(name, mode):
    @settings(RANDOM, max_examples=80)
    @given(cases(mode, TVERSKY if name == "TverskyLoss" else OVERLAP, soft=True))
    def check(case):
        case.options["mode"] = mode
        with_weights_of_classes(case, mode)
        if mode != ours.BINARY_MODE and torch.rand((), generator=case.generator) < 0.5:
            num_classes = case.logits.shape[1]
            order = torch.randperm(num_classes, generator=case.generator)
            case.options["classes"] = order[: 1 + num_classes // 2].tolist()
        if not case.options["from_logits"]:
            case.logits = probability(case.logits, mode)
        if case.options.get("gamma", 1) < 1:  # where the mean is 0, SMP's gradient is nan
            assume(getattr(theirs, name)(**case.options)(case.logits, case.target) > 1e-6)
        assert_equal_to_smp(name, case)

    check()


FOCAL = {
    "alpha": st.sampled_from([None, 0.25, 1.0]),
    "gamma": st.sampled_from([0.0, 0.5, 2.0, 3]),
    "from_logits": st.booleans(),
    "reduction": st.sampled_from(["mean", "sum", "none", None]),
}


@pytest.mark.parametrize("mode", MODES)
def test_focal_loss(mode):
    """With ignore_index and masks of several classes SMP raises an IndexError."""

    @settings(RANDOM, max_examples=100)
    @given(cases(mode, FOCAL, ignored=(None,) if mode == ours.MULTILABEL_MODE else (None, 255, 0, 1)))
    def check(case):
        case.options["mode"] = mode
        if case.options["reduction"] in ("mean", "sum"):
            with_weights_of_classes(case, mode)
        if not case.options["from_logits"]:
            case.options["eps"] = 0.25  # some probabilities are clamped
            case.logits = probability(case.logits, mode)
        assert_equal_to_smp("FocalLoss", case)

    check()


CROSS_ENTROPY = {
    "smooth_factor": st.sampled_from([0.0, 0.1, 1.0]),
    "reduction": st.sampled_from(["mean", "sum", "none"]),
    "dim": st.sampled_from([1, -1]),
}


@RANDOM
@given(cases(ours.MULTICLASS_MODE, CROSS_ENTROPY, ignored=(None, -100, 255, 0, 1)))
def test_soft_cross_entropy_loss(case):
    case.logits = case.logits.movedim(1, case.options["dim"])
    assert_equal_to_smp("SoftCrossEntropyLoss", case)


BINARY_CROSS_ENTROPY = {
    "smooth_factor": st.sampled_from([None, 0.0, 0.1, 0.5]),
    "reduction": st.sampled_from(["mean", "sum", "none"]),
}


def random_weight(case: Case) -> Tensor | None:
    """A weight for each class, each place of the last dimension, each number, one for all, or none."""
    _, num_classes, *sizes = shape = case.logits.shape
    shapes = [(num_classes, *[1] * len(sizes)), (sizes[-1],), shape, (1,), None]
    chosen = shapes[torch.randint(len(shapes), (), generator=case.generator)]
    return None if chosen is None else case.weights(*chosen)


@pytest.mark.parametrize("mode", [ours.BINARY_MODE, ours.MULTILABEL_MODE])
def test_soft_bce_with_logits_loss(mode):
    @settings(RANDOM, max_examples=120)
    @given(cases(mode, BINARY_CROSS_ENTROPY, ignored=(None, -100, 255, 0, 1), soft=True))
    def check(case):
        case.options |= {"weight": random_weight(case), "pos_weight": random_weight(case)}
        assert_equal_to_smp("SoftBCEWithLogitsLoss", case, case.target.double())  # SMP takes floating masks

    check()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_with_its_defaults(name):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    y = torch.randint(2, (2, 3, 4, 5)).double() if name == "SoftBCEWithLogitsLoss" else torch.randint(3, (2, 4, 5))
    assert_equal_to_smp(name, Case(KEYWORDS[name], x, y, torch.default_generator))


@pytest.mark.parametrize("name", [*REGION_LOSSES, "FocalLoss"])
@pytest.mark.parametrize("x_shape", [(2, 1, 4, 5), (2, 4, 5), (2, 3, 4, 5)], ids=str)
def test_binary_logits_may_lack_the_channel_or_have_several(name, x_shape):
    x, y = torch.randn(x_shape, dtype=torch.float64), torch.randint(2, x_shape)
    assert_equal_to_smp(name, Case({"mode": "binary"}, x, y, torch.default_generator))


# ---- the Lovasz loss, which in SMP takes float32 alone ----


@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_the_signatures_of_the_lovasz_loss_are_those_of_smp(method):
    own, their = (inspect.signature(getattr(losses.LovaszLoss, method)).parameters for losses in (ours, theirs))
    assert [(p.name, p.default) for p in own.values()] == [(p.name, p.default) for p in their.values()]


def lovasz_batch(mode, shape=(3, 4, 9, 8)):
    x = torch.randn(shape)
    if mode == "multiclass":
        return x, torch.randint(shape[1], shape[:1] + shape[2:])
    x = x[:, :1] if mode == "binary" else x
    return x, torch.randint(2, x.shape)


def assert_lovasz_is_that_of_smp(x, y, *options, **keywords):
    own, their = (value_and_gradient(losses.LovaszLoss(*options, **keywords), x, y) for losses in (ours, theirs))
    assert_close(own[0], their[0])
    torch.testing.assert_close(own[1], their[1], rtol=0, atol=1e-3 * their[1].abs().max().item())


@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_lovasz_loss_is_that_of_smp(mode, per_image, ignore_index):
    x, y = lovasz_batch(mode)
    if ignore_index is not None:
        y[:, ..., :2] = ignore_index
    assert_lovasz_is_that_of_smp(x, y, mode, per_image=per_image, ignore_index=ignore_index)


@pytest.mark.parametrize("per_image", [False, True])
def test_the_lovasz_loss_of_absent_classes_is_that_of_smp(per_image):
    x, y = lovasz_batch("multiclass")
    assert_lovasz_is_that_of_smp(x, y.clamp_max(1), "multiclass", per_image=per_image)
    assert_lovasz_is_that_of_smp(x, torch.full_like(y, 2), "multiclass", per_image=per_image)


@pytest.mark.parametrize("value", [0, 1])
def test_the_lovasz_loss_of_masks_of_one_value_is_that_of_smp(value):
    x, y = lovasz_batch("binary")
    assert_lovasz_is_that_of_smp(x, torch.full_like(y, value), "binary")


def test_the_lovasz_loss_takes_logits_without_a_channel():
    x, y = lovasz_batch("binary")
    assert_lovasz_is_that_of_smp(x[:, 0], y[:, 0], "binary", per_image=True)


def test_the_lovasz_loss_of_many_masks_has_no_upsample():
    loss = ours.LovaszLoss("multilabel")
    loss.upsample = "bilinear"
    with pytest.raises(ValueError, match="expected upsample=None with mode='multilabel'"):
        loss(torch.randn(1, 2, 2, 2), torch.ones(1, 2, 4, 4).long())


# ---- where SMP fails, or has no such option ----


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*REGION_LOSSES, "FocalLoss"])
def test_labels_and_masks_have_any_dtype_and_may_have_a_channel(name, mode, dtype):
    num_classes = 1 if mode == ours.BINARY_MODE else 2
    x = torch.randn(2, num_classes, 4, 5, dtype=torch.float64)
    y = torch.randint(2, (2, num_classes, 4, 5) if mode == ours.MULTILABEL_MODE else (2, 1, 4, 5))
    expected = getattr(theirs, name)(mode)(x, y if mode == ours.MULTILABEL_MODE else y.squeeze(1))
    assert_close(getattr(ours, name)(mode)(x, y.to(dtype)), expected)
    if mode != ours.MULTILABEL_MODE:
        assert_close(getattr(ours, name)(mode)(x, y.squeeze(1).to(dtype)), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32], ids=str)
def test_soft_cross_entropy_takes_labels_of_any_dtype(dtype):
    x, y = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(3, (2, 4, 5))
    loss = ours.SoftCrossEntropyLoss(smooth_factor=0.1)
    assert_close(loss(x, y.to(dtype)), loss(x, y))
    assert_close(loss(x, y.to(dtype).unsqueeze(1)), loss(x, y))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
def test_soft_bce_takes_masks_of_any_dtype(dtype):
    x, y = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(2, (2, 3, 4, 5))
    assert_close(ours.SoftBCEWithLogitsLoss()(x, y.to(dtype)), F.binary_cross_entropy_with_logits(x, y.double()))


def test_soft_bce_takes_a_mask_without_channel_for_one_class():
    x, y = torch.randn(2, 1, 4, 5, dtype=torch.float64), torch.randint(2, (2, 4, 5)).double()
    y[:, 0] = 255
    loss = ours.SoftBCEWithLogitsLoss(ignore_index=255)
    assert_close(loss(x, y), theirs.SoftBCEWithLogitsLoss(ignore_index=255)(x, y.unsqueeze(1)))


def test_soft_cross_entropy_without_a_smooth_factor_is_cross_entropy():
    x, y = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(3, (2, 4, 5))
    with pytest.raises(TypeError):
        theirs.SoftCrossEntropyLoss()(x, y)
    assert_close(ours.SoftCrossEntropyLoss()(x, y), F.cross_entropy(x, y))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_focal_loss_ignores_masks_of_several_classes_class_by_class(reduction, dtype):
    """The weighted mean over the classes of SMP's binary losses."""
    x, y = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(2, (2, 3, 4, 5), dtype=dtype)
    y = y.masked_fill(torch.rand(y.shape) < 0.3, 255)
    options = {"ignore_index": 255, "reduction": reduction}
    with pytest.raises(IndexError):
        theirs.FocalLoss("multilabel", **options)(x, y)
    of_class = theirs.FocalLoss("binary", **options)
    losses = torch.stack([of_class(x[:, c], y[:, c]) for c in range(3)])
    weights = torch.tensor([1.0, 2.0, 5.0])
    assert_close(ours.FocalLoss("multilabel", **options)(x, y), losses.mean())
    expected = (weights * losses).sum() / weights.sum()
    assert_close(ours.FocalLoss("multilabel", class_weights=weights, **options)(x, y), expected)


def test_float32_sums_are_those_of_float64_where_smp_is_off():
    x, y = 4 * torch.randn(2, 4, 256, 256), torch.randint(4, (2, 256, 256))
    exact = theirs.DiceLoss("multiclass")(x.double(), y)
    assert (ours.DiceLoss("multiclass")(x, y) - exact).abs() < 1e-7
    assert (theirs.DiceLoss("multiclass")(x, y) - exact).abs() > 1e-5


def test_float32_sums_of_six_pixels_are_enough_where_smp_takes_the_logarithm_of_a_score_near_0():
    x, y = torch.tensor([[[-13.0, 5, 5, 5, 5, 5]]]), torch.tensor([[1, 0, 0, 0, 0, 0]])
    exact = theirs.DiceLoss("binary", log_loss=True)(x.double(), y)
    assert_close(ours.DiceLoss("binary", log_loss=True)(x, y), exact.float())
    assert (theirs.DiceLoss("binary", log_loss=True)(x, y) - exact).abs() > 0.05


def test_the_gradient_of_tversky_loss_is_0_where_its_mean_is_0():
    x, y = torch.randn(1, 1, 4, 5), torch.zeros(1, 4, 5, dtype=torch.int64)
    assert value_and_gradient(theirs.TverskyLoss("binary", gamma=0.5), x.double(), y)[1].isnan().all()
    value, gradient = value_and_gradient(ours.TverskyLoss("binary", gamma=0.5), x.double(), y)
    assert value == 0
    assert (gradient == 0).all()


def test_a_half_mean_of_many_large_losses_is_finite():
    x = torch.zeros(1, 2, 512, 512, dtype=torch.float16)
    x[:, 0] = 20
    for loss, y in [
        (ours.SoftCrossEntropyLoss(), torch.ones(1, 512, 512, dtype=torch.uint8)),
        (ours.SoftBCEWithLogitsLoss(), torch.ones(1, 2, 512, 512, dtype=torch.uint8)),
    ]:
        assert_close(loss(x, y), loss(x.double(), y), torch.float16)


# ---- what segloss adds ----


def random_batch(name: str, options: dict) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    has_masks = name == "SoftBCEWithLogitsLoss" or options.get("mode") == ours.MULTILABEL_MODE
    return x, torch.randint(2, (2, 3, 4, 6)) if has_masks else torch.randint(3, (2, 4, 6))


NAME_AND_OPTIONS = [
    *KEYWORDS.items(),
    ("DiceLoss", {"mode": ours.MULTILABEL_MODE, "ignore_index": 255}),
    ("DiceLoss", {"mode": ours.MULTILABEL_MODE, "ignore_index": 0}),
    ("FocalLoss", {"mode": ours.MULTILABEL_MODE, "ignore_index": 0}),
    ("FocalLoss", {"mode": ours.MULTILABEL_MODE, "class_weights": [1, 2, 3]}),
    ("SoftBCEWithLogitsLoss", {"ignore_index": 0}),
    ("SoftBCEWithLogitsLoss", {"pos_weight": torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)}),
    ("SoftBCEWithLogitsLoss", {"weight": torch.tensor([1.0, 2.0, 3.0])}),
]


@pytest.mark.parametrize(("name", "options"), NAME_AND_OPTIONS)
def test_a_voxel_of_weight_2_counts_as_two_voxels_and_one_of_weight_0_not_at_all(name, options):
    x, y = random_batch(name, options)
    loss = getattr(ours, name)(**options)
    voxel_weight = torch.ones(2, 4, 6)
    voxel_weight[..., 0], voxel_weight[..., 1] = 0, 2
    doubled = [torch.cat([each[..., 1:2], each[..., 1:]], -1) for each in (x, y)]
    assert_close(loss(x, y, voxel_weight=voxel_weight), loss(*doubled))
    assert_close(loss(x, y, voxel_weight.unsqueeze(1)), loss(*doubled))


@pytest.mark.parametrize(("name", "options"), NAME_AND_OPTIONS)
def test_upsample_takes_the_logits_to_the_labels_size(name, options):
    x, y = random_batch(name, options)
    small = x[..., :2, :3]
    loss = getattr(ours, name)(**options)
    full_size = F.interpolate(small, y.shape[-2:], mode="bilinear", align_corners=True)
    expected = loss(full_size, y)
    loss.upsample, loss.align_corners = "bilinear", True
    assert_close(loss(small, y), expected)


def test_deep_supervision_of_a_loss():
    x, y = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    xs, loss = [x, F.avg_pool2d(x, 2)], ours.DiceLoss("multiclass")
    expected = (2 * loss(x, y) + loss(xs[1], y[:, ::2, ::2])) / 3
    assert_close(segloss.DeepSupervisionLoss(loss)(xs, y), expected)
    expected = (2 * loss(x, y) + loss(F.interpolate(xs[1], (8, 8), mode="bilinear"), y)) / 3
    assert_close(segloss.DeepSupervisionLoss(loss, upsample="bilinear")(xs, y), expected)
    assert loss.upsample is None


@pytest.mark.parametrize("name", ["DiceLoss", "FocalLoss"])
def test_torch_compile_makes_one_graph(name):
    x, y = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randint(3, (2, 4, 5))
    loss = getattr(ours, name)("multiclass", ignore_index=1, class_weights=[1, 2, 3])
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, y), loss(x, y))
    gradients = [torch.autograd.grad(each(x, y), x)[0] for each in (compiled, loss)]
    assert_close(*gradients)


# ---- errors ----


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "DiceLoss",
            {"mode": "binry"},
            "DiceLoss: expected mode to be 'binary', 'multiclass' or 'multilabel'",
        ),
        ("JaccardLoss", {"mode": "binary", "classes": [0]}, "JaccardLoss: expected no classes with mode='binary'"),
        ("FocalLoss", {"mode": "binary", "class_weights": [1]}, "FocalLoss: expected no class_weights with mode='bin"),
        (
            "FocalLoss",
            {"mode": "binary", "normalized": True},
            "no normalized, .* Keep segmentation_models_",
        ),
        (
            "FocalLoss",
            {"mode": "binary", "reduced_threshold": 0.5},
            "no reduced_threshold, .* Keep segmentation_models",
        ),
        ("FocalLoss", {"mode": "binary", "reduction": "batchwise_mean"}, "Keep .*losses.FocalLoss for others"),
        (
            "FocalLoss",
            {"mode": "multiclass", "reduction": "none", "class_weights": [1, 1]},
            "no class_weights with reduction='none'",
        ),
        ("FocalLoss", {"mode": "binary", "gamma": -1}, "FocalLoss: expected gamma, an exponent"),
        ("TverskyLoss", {"mode": "binary", "gamma": -1}, "TverskyLoss: expected gamma, an exponent"),
        ("SoftCrossEntropyLoss", {"reduction": "batch"}, "SoftCrossEntropyLoss: expected reduction to be 'mean'"),
        ("SoftBCEWithLogitsLoss", {"reduction": "batch"}, "SoftBCEWithLogitsLoss: expected reduction to be 'mean'"),
        ("SoftBCEWithLogitsLoss", {"smooth_factor": 0.6}, "smooth_factor in .0, 0.5., got 0.6, .* Keep segmentation_m"),
    ],
)
def test_an_option_without_a_counterpart_is_an_error_at_once(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(ours, name)(**options)


@pytest.mark.parametrize(
    ("name", "mode", "x_shape", "y_shape", "message"),
    [
        ("DiceLoss", "multiclass", (2, 1, 4), (2, 4), "DiceLoss: expected y_pred .* of two channels or more"),
        ("FocalLoss", "multiclass", (2, 1, 4), (2, 4), "FocalLoss: expected y_pred .* of two channels or more"),
        ("FocalLoss", "multilabel", (2, 3, 4), (2, 4), "FocalLoss: expected y_true with a mask for each class"),
        ("DiceLoss", "multilabel", (2, 3, 4), (2, 1, 4), "DiceLoss: expected y_true with a mask for each class"),
    ],
)
def test_shapes_that_do_not_fit_the_mode_are_an_error(name, mode, x_shape, y_shape, message):
    with pytest.raises(ValueError, match=message):
        getattr(ours, name)(mode)(torch.randn(x_shape), torch.zeros(y_shape, dtype=torch.int64))


@pytest.mark.parametrize("name", [*REGION_LOSSES, "FocalLoss"])
@pytest.mark.parametrize(
    ("x_shape", "y_shape", "upsample"),
    [
        ((2, 2, 4, 4), (2, 4, 4), None),
        ((2, 2, 4, 4), (2, 1, 4, 4), None),
        ((2, 4, 4), (2, 8, 8), None),
        ((2, 4, 4), (2, 2, 4, 4), None),
        ((2, 2, 4, 4), (2, 8, 8), "bilinear"),
        ((2, 2, 4, 4), (2, 1, 8, 8), "nearest"),
    ],
    ids=str,
)
def test_several_channels_or_another_size_are_an_error_with_mode_binary(name, x_shape, y_shape, upsample):
    loss = getattr(ours, name)("binary")
    loss.upsample = upsample
    shapes = re.escape(f"got y_pred {list(x_shape)} and y_true {list(y_shape)}")
    with pytest.raises(ValueError, match=f"{name}: expected y_pred of one channel with mode='binary', .*, {shapes}"):
        loss(torch.randn(x_shape), torch.zeros(y_shape, dtype=torch.int64))


@pytest.mark.parametrize("y_shape", [(2, 8, 8), (2, 1, 8, 8)], ids=str)
def test_binary_logits_without_a_channel_are_upsampled(y_shape):
    x, y = torch.randn(2, 4, 4), torch.randint(2, y_shape)
    loss = ours.DiceLoss("binary")
    loss.upsample = "bilinear"
    assert_close(loss(x, y), loss(x.unsqueeze(1), y))


@pytest.mark.parametrize("name", LOSSES)
def test_logits_without_a_class_dimension_are_an_error(name):
    with pytest.raises(ValueError, match=rf"{name}: expected y_pred \[N, C, ...\]"):
        getattr(ours, name)(**KEYWORDS[name])(torch.randn(3), torch.ones(3))


@pytest.mark.parametrize("name", [*REGION_LOSSES, "FocalLoss", "SoftCrossEntropyLoss"])
def test_a_label_that_is_no_class_is_an_error(name):
    with pytest.raises(IndexError, match="255"):
        getattr(ours, name)(**KEYWORDS[name])(torch.randn(1, 3, 4), torch.full((1, 4), 255))


def test_a_soft_mask_is_an_error_in_focal_loss():
    with pytest.raises(RuntimeError, match="integral"):
        ours.FocalLoss("binary")(torch.randn(1, 1, 4), torch.full((1, 4), 0.5))


@pytest.mark.parametrize("name", LOSSES)
def test_a_dictionary_in_place_of_logits_is_an_error(name):
    with pytest.raises(TypeError, match=r"expected input to be a torch\.Tensor, got dict"):
        getattr(ours, name)(**KEYWORDS[name])({"out": torch.randn(1, 3, 4)}, torch.zeros(1, 4))


# ---- the example ----


def test_a_script_of_smp_changes_one_import(capsys, monkeypatch):
    """SMP adds up its differences of probabilities and targets in float32."""
    before, after = load_example("smp_unet", monkeypatch).main(["--steps", "3"])
    assert after == pytest.approx(before, rel=2e-4)
    difference = max(abs(a - b) for a, b in zip(before, after, strict=True))
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["SMP", "segloss.smp"]
    assert last == f"The losses differ by at most {difference:.1e}, by the rounding of SMP's float32 sums"
