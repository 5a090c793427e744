"""segloss.nnunet against nnunetv2 itself: its losses, values and gradients, and its trainer, step by step."""

import copy
import importlib
import inspect
import json
import multiprocessing
import pickle
import random
import subprocess
import sys
from collections import defaultdict
from datetime import timedelta
from functools import partial
from itertools import product
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from example_scripts import load_example
from tolerances import assert_close
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import segloss
from segloss import nnunet as ours

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed: pip install nnunetv2==2.8.1")
from nnunetv2.training.loss import compound_losses, deep_supervision, dice, robust_ce_loss
from nnunetv2.utilities.helpers import softmax_helper_dim1 as softmax

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.filterwarnings("ignore:size_average and reduce args:UserWarning"),  # of nnU-Net's TopKLoss
]

MODULES = {
    dice: ["SoftDiceLoss", "MemoryEfficientSoftDiceLoss"],
    robust_ce_loss: ["RobustCrossEntropyLoss", "TopKLoss"],
    compound_losses: ["DC_and_CE_loss", "DC_and_BCE_loss", "DC_and_topk_loss"],
    deep_supervision: ["DeepSupervisionWrapper"],
}
theirs = SimpleNamespace(**{name: getattr(module, name) for module, names in MODULES.items() for name in names})
DICE = MODULES[dice]
SHAPE, CLASSES, IGNORED = (2, 7, 6), 4, 9
WEIGHT = torch.tensor([0.3, 1.0, 2.5, 0.7])
OF_TRAINER = {"batch_dice": False, "do_bg": False, "smooth": 1e-5, "ddp": False}
OVER_BATCH = {"batch_dice": True, "do_bg": False, "smooth": 0, "ddp": False}


# ---- data, and the comparison ----------------------------------------------------------------------------------------


def logits(seed=0):
    return 2 * torch.randn(SHAPE[0], CLASSES, *SHAPE[1:], generator=torch.Generator().manual_seed(seed))


def labels(ignored=0.0):
    """Labels [N, 1, *] in int16, as nnU-Net's loader has them; `ignored` is the share of ignored voxels."""
    generator, shape = torch.Generator().manual_seed(1), (SHAPE[0], 1, *SHAPE[1:])
    y = torch.randint(CLASSES, shape, generator=generator, dtype=torch.int16)
    return y.masked_fill(torch.rand(shape, generator=generator) < ignored, IGNORED)


def masks():
    return torch.rand(SHAPE[0], CLASSES, *SHAPE[1:], generator=torch.Generator().manual_seed(2)) < 0.4


def assert_same(make, *target, x=None):
    """The losses that `make` makes of segloss's classes and of nnU-Net's have the same value and gradient."""
    values, gradients = [], []
    for package in (ours, theirs):
        inputs = (logits() if x is None else x).clone().requires_grad_()
        loss = make(package)(inputs, *target)
        assert loss.dim() == 0
        loss.backward()
        values.append(loss.detach())
        gradients.append(inputs.grad)
    assert_close(*values)
    assert_close_gradients(*gradients)


def assert_close_gradients(got, expected):
    """In units of the largest: the gradient of a mean is below the tolerance."""
    unit = expected.abs().max().clamp_min(1e-9)
    assert_close(got / unit, expected / unit)


class Operators(TorchDispatchMode):
    """Collects the names of segloss's operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "segloss":
            self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def operators_of(loss, *arguments):
    with torch.no_grad(), Operators() as operators:
        loss(*arguments)
    return operators.names


ONE_WALK = ["soft_stats_forward"]


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", vars(theirs))
def test_a_loss_has_nnunets_keywords_in_their_order_with_their_defaults(name):
    def parameters(package):
        found = inspect.signature(getattr(package, name)).parameters.values()
        defaults = [getattr(each.default, "__name__", each.default) for each in found]  # dice_class is a class
        return [
            (each.name, default)
            for each, default in zip(found, defaults, strict=True)
            if each.kind != each.KEYWORD_ONLY
        ]

    assert parameters(ours) == parameters(theirs)


def test_to_import_the_losses_does_not_import_nnunet():
    subprocess.run(
        [sys.executable, "-c", "import segloss.nnunet, sys; assert 'nnunetv2' not in sys.modules"], check=True
    )


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'segloss\.nnunet' has no attribute 'nnUNetTrainer'"):
        ours.nnUNetTrainer  # noqa: B018


# ---- Dice ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DICE)
@pytest.mark.parametrize("smooth", [0, 1e-5, 1.0])
@pytest.mark.parametrize(("batch", "background"), list(product([False, True], repeat=2)))
def test_dice_of_labels(name, smooth, batch, background):
    options = {"batch_dice": batch, "do_bg": background, "smooth": smooth, "ddp": False}
    without_two_classes = labels().clamp_max(1)
    for y in (labels(), labels().float(), labels()[:, 0].long(), without_two_classes):
        assert_same(lambda package: getattr(package, name)(softmax, **options), y)


@pytest.mark.parametrize("name", DICE)
def test_dice_with_nnunets_defaults(name):
    assert_same(lambda package: getattr(package, name)(softmax), labels())


@pytest.mark.parametrize("name", DICE)
def test_dice_of_masks_and_of_probabilities(name):
    for y in (masks(), masks().float(), masks().long()):
        assert_same(lambda package: getattr(package, name)(torch.sigmoid, smooth=1e-5), y)
        assert_same(lambda package: getattr(package, name)(smooth=1e-5), y, x=logits().sigmoid())


@pytest.mark.parametrize("name", DICE)
@pytest.mark.parametrize("smooth", [0, 1e-5, 1.0])
@pytest.mark.parametrize("batch", [False, True])
def test_dice_of_the_voxels_of_a_loss_mask(name, smooth, batch):
    options = {"batch_dice": batch, "smooth": smooth, "ddp": False}
    counts = labels(0.4) != IGNORED
    without_the_first_sample, nothing = counts.clone(), counts & False
    without_the_first_sample[0] = False
    for mask in (counts, counts.float(), without_the_first_sample, nothing):
        assert_same(lambda package: getattr(package, name)(softmax, **options), labels(), mask)


@pytest.mark.parametrize("function", [softmax, nn.Softmax(1), partial(torch.softmax, dim=1), lambda x: x.softmax(1)])
def test_a_softmax_is_known_by_what_it_returns(function):
    assert ours.SoftDiceLoss(function).activation == "softmax"


@pytest.mark.parametrize("function", [torch.sigmoid, nn.Sigmoid(), lambda x: x.sigmoid()])
def test_a_sigmoid_is_known_by_what_it_returns(function):
    assert ours.SoftDiceLoss(function).activation == "sigmoid"


@pytest.mark.parametrize("name", DICE)
@pytest.mark.parametrize(
    "function", [torch.tanh, nn.Softmax(0), partial(torch.softmax, dim=-3), lambda x: (2 * x).softmax(1)]
)
def test_another_nonlinearity_is_an_error_that_names_nnunets_class(name, function):
    with pytest.raises(
        ValueError, match=rf"{name}: expected apply_nonlin .* Keep nnunetv2\.training\.loss\.dice\.{name}"
    ):
        getattr(ours, name)(function)


def test_clip_tp_is_an_error_that_names_nnunets_class():
    with pytest.raises(
        ValueError, match=r"expected clip_tp=None, got 1.* Keep nnunetv2\.training\.loss\.dice\.SoftDiceLoss"
    ):
        ours.SoftDiceLoss(clip_tp=1.0)


@pytest.mark.parametrize("smooth", [1e-9, -1.0, float("nan")])
def test_a_smoothing_below_nnunets_clamp_is_an_error_that_names_nnunets_class(smooth):
    with pytest.raises(ValueError, match=r"expected smooth to be 0, or 1e-08 or more, .*Keep nnunetv2"):
        ours.MemoryEfficientSoftDiceLoss(smooth=smooth)


def test_a_dice_over_ranks_without_a_group_is_an_error_as_in_nnunet():
    for package in (ours, theirs):
        with pytest.raises(ValueError, match="efault process group"):
            package.SoftDiceLoss(softmax, batch_dice=True)(logits(), labels())


@pytest.mark.filterwarnings("ignore:dice_loss. include_background=False is ignored:UserWarning")
@pytest.mark.parametrize("name", DICE)
def test_one_channel_counts_without_background_where_nnunets_dice_is_nan(name):
    x, y = logits()[:, :1], masks()[:, :1]
    assert getattr(theirs, name)(torch.sigmoid, do_bg=False)(x, y).isnan()
    assert getattr(ours, name)(torch.sigmoid, do_bg=False)(x, y) == getattr(ours, name)(torch.sigmoid)(x, y)


@pytest.mark.parametrize("name", DICE)
@pytest.mark.parametrize(
    "attribute", [("smooth", 0), ("do_bg", True), ("batch_dice", True), ("apply_nonlin", nn.Sigmoid())]
)
def test_an_option_of_the_dice_is_not_set_afterwards(name, attribute):
    loss = ours.DC_and_CE_loss({}, {}, dice_class=getattr(ours, name))
    with pytest.raises(AttributeError, match=rf"{name}: expected {attribute[0]} when .* Make a new {name}"):
        setattr(loss.dc, *attribute)


# ---- cross entropy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": WEIGHT},
        {"weight": WEIGHT, "label_smoothing": 0.1},
        {"ignore_index": IGNORED},
        {"ignore_index": IGNORED, "reduction": "sum"},
    ],
)
def test_cross_entropy(options):
    y = labels(0.3 if "ignore_index" in options else 0.0)
    for target in (y, y.float(), y[:, 0]):
        assert_same(lambda package: package.RobustCrossEntropyLoss(**options), target)


def test_cross_entropy_of_each_voxel_has_no_channel():
    losses = [
        package.RobustCrossEntropyLoss(reduction="none", ignore_index=IGNORED)(logits(), labels(0.3))
        for package in (ours, theirs)
    ]
    assert losses[0].shape == SHAPE
    assert_close(*losses)


@pytest.mark.parametrize("k", [3, 10, 62.5, 100])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": WEIGHT}])
def test_topk_counts_ignored_voxels_as_losses_of_0(k, ignored, options):
    assert_same(lambda package: package.TopKLoss(k=k, ignore_index=IGNORED, **options), labels(ignored))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_topk_of_other_dtypes(dtype):
    values = [package.TopKLoss(k=20)(logits().to(dtype), labels()) for package in (ours, theirs)]
    assert values[0].dtype == dtype
    assert_close(*values)


def test_topk_of_less_than_one_voxel_is_that_of_one_where_nnunets_is_nan():
    x, y = logits()[:1, :, :1, :2], labels()[:1, :, :1, :2]
    assert theirs.TopKLoss(k=10)(x, y).isnan()
    assert ours.TopKLoss(k=10)(x, y) == segloss.cross_entropy(x, y, reduction="none").max()


@pytest.mark.parametrize(
    "loss", [ours.RobustCrossEntropyLoss(), ours.TopKLoss(), ours.DC_and_CE_loss({}, {}), ours.DC_and_topk_loss({}, {})]
)
def test_one_hot_labels_are_an_error(loss):
    with pytest.raises(ValueError, match=rf"{type(loss).__name__}: expected labels .* got \[2, 4, 7, 6\]"):
        loss(logits(), masks().float())


# ---- Dice and cross entropy ------------------------------------------------------------------------------------------

SHARES = [None, 0.3, 1.0]  # of ignored voxels; None: no label to ignore
WEIGHTS = [{"weight_ce": 0.5, "weight_dice": 2}, {"weight_ce": 0}, {"weight_dice": 0}]


def ignoring(share):
    return {} if share is None else {"ignore_label": IGNORED}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("ce_options", [{}, {"label_smoothing": 0.1}, {"weight": WEIGHT}, {"reduction": "sum"}])
@pytest.mark.parametrize("dice_class", DICE)
@pytest.mark.parametrize("dice_options", [{}, OF_TRAINER, OVER_BATCH])
def test_dice_and_cross_entropy(share, ce_options, dice_class, dice_options):
    def make(package):
        options = {"dice_class": getattr(package, dice_class), **ignoring(share)}
        return package.DC_and_CE_loss(dice_options, {**ce_options}, **options)

    assert_same(make, labels(share or 0.0))


@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_of_dice_and_cross_entropy(share, weights):
    assert_same(
        lambda package: package.DC_and_CE_loss(OF_TRAINER, {}, **weights, **ignoring(share)), labels(share or 0.0)
    )


@pytest.mark.parametrize("share", [None, 0.3])
def test_dice_and_cross_entropy_are_one_walk_over_the_logits(share):
    loss = ours.DC_and_CE_loss(OF_TRAINER, {"label_smoothing": 0.1}, 2, 0.5, **ignoring(share))
    assert operators_of(loss, logits(), labels(share or 0.0)) == ONE_WALK


def test_an_ignore_index_of_the_cross_entropy_alone():
    """Class 3 is left out of the cross entropy, and has a Dice."""
    assert_same(lambda package: package.DC_and_CE_loss({}, {"ignore_index": 3}), labels())


def test_a_label_outside_the_classes_is_an_error_without_ignore_label():
    """Also -100, which the cross entropy would ignore by default."""
    with pytest.raises(IndexError, match="Target -100 is out of bounds"):
        ours.DC_and_CE_loss({}, {})(logits(), labels(0.3).where(labels(0.3) != IGNORED, -100))


def test_a_cross_entropy_without_any_weight_is_0_with_ignore_label_where_nnunets_is_nan():
    x, y, options = logits(), labels(0.3), {"weight": torch.zeros(CLASSES)}
    assert theirs.DC_and_CE_loss({}, {**options}, ignore_label=IGNORED)(x, y).isnan()
    got = ours.DC_and_CE_loss({}, options, ignore_label=IGNORED)(x, y)
    assert_close(got, ours.DC_and_CE_loss({}, {}, weight_ce=0, ignore_label=IGNORED)(x, y))


def test_the_callers_dictionaries_are_not_changed():
    ce, bce = {}, {}
    ours.DC_and_CE_loss({}, ce, ignore_label=IGNORED)
    ours.DC_and_BCE_loss(bce, {}, use_ignore_label=True)
    assert ce == bce == {}


@pytest.mark.parametrize("name", ["DC_and_CE_loss", "DC_and_BCE_loss"])
def test_a_dice_class_of_nnunet_is_an_error_that_says_what_to_import(name):
    for dice_class in (theirs.SoftDiceLoss, nn.Identity, type("Mine", (ours.SoftDiceLoss,), {})):
        with pytest.raises(ValueError, match=rf"{name}: expected dice_class .* keep nnunetv2\..*\.{name}"):
            getattr(ours, name)({}, {}, dice_class=dice_class)


def test_a_compiled_dice_as_in_nnunets_trainers_changes_no_value():
    loss = ours.DC_and_CE_loss(OF_TRAINER, {})
    expected = loss(logits(), labels())
    loss.dc = torch.compile(loss.dc, backend="eager")
    assert loss(logits(), labels()) == expected
    assert operators_of(loss, logits(), labels()) == ONE_WALK


def test_the_state_dict_has_nnunets_keys():
    states = [package.DC_and_CE_loss({}, {"weight": WEIGHT}).state_dict() for package in (ours, theirs)]
    assert states[0].keys() == states[1].keys() == {"ce.weight"}


@pytest.mark.parametrize(
    "make", [ours.DC_and_CE_loss, ours.DC_and_topk_loss, partial(ours.DC_and_BCE_loss, regions=[1, 2])]
)
def test_an_ignore_label_is_not_set_afterwards(make):
    loss = make({}, {}, ignore_label=IGNORED)
    assert loss.ignore_label == IGNORED
    for other in (1, None):
        with pytest.raises(AttributeError, match=r"DC_and_.*: expected ignore_label when .* Make a new DC_and_"):
            loss.ignore_label = other


def test_whether_there_is_a_mask_of_ignored_voxels_is_not_set_afterwards():
    loss = ours.DC_and_BCE_loss({}, {})
    with pytest.raises(AttributeError, match="DC_and_BCE_loss: expected use_ignore_label when"):
        loss.use_ignore_label = True


def test_a_term_may_be_one_of_nnunet():
    """Class 3 has a Dice, and no cross entropy."""

    def make(package, replaced):
        loss = package.DC_and_CE_loss(OF_TRAINER, {}, dice_class=package.MemoryEfficientSoftDiceLoss)
        for name, term in replaced.items():
            setattr(loss, name, term)
        return loss

    ce, dc = theirs.RobustCrossEntropyLoss(ignore_index=3), theirs.SoftDiceLoss(softmax, smooth=0)
    for replaced in ({"ce": ce}, {"dc": dc}, {"ce": ce, "dc": dc}):
        assert_same(partial(make, replaced=replaced), labels())


def test_a_term_may_be_a_subclass_of_ones_own():
    class Twice(ours.SoftDiceLoss):
        def forward(self, *args):
            return 2 * super().forward(*args)

    loss = ours.DC_and_CE_loss({}, {})
    loss.dc = Twice(softmax)
    assert_close(loss(logits(), labels()), ours.DC_and_CE_loss({}, {}, weight_dice=2)(logits(), labels()))


def test_a_label_map_of_the_cross_entropy_alone():
    swapped = {0: 0, 1: 2, 2: 1, 3: 3}
    loss = ours.DC_and_CE_loss({}, {"label_map": swapped})
    expected = ours.SoftDiceLoss(softmax)(logits(), labels())
    expected = expected + segloss.cross_entropy(logits(), labels(), label_map=swapped)
    assert_close(loss(logits(), labels()), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_loss_is_copied_and_pickled(copied):
    loss = ours.DeepSupervisionWrapper(ours.DC_and_CE_loss({**OVER_BATCH, "ddp": True}, {}), [1])
    assert str(copied(loss)) == str(loss)


def test_half_logits_under_autocast_give_a_float_loss():
    values = []
    for package in (ours, theirs):
        with torch.autocast("cpu"):
            values.append(package.DC_and_CE_loss(OF_TRAINER, {})(logits().bfloat16(), labels()))
    assert values[0].dtype == values[1].dtype == torch.float32
    assert_close(*values, torch.bfloat16)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("weights", WEIGHTS[:2])
@pytest.mark.parametrize("dice_options", [OF_TRAINER, OVER_BATCH])
def test_dice_and_topk(share, weights, dice_options):
    options = {**weights, **ignoring(share)}
    assert_same(lambda package: package.DC_and_topk_loss(dice_options, {"k": 20}, **options), labels(share or 0.0))


# ---- regions ---------------------------------------------------------------------------------------------------------


def masks_and_ignored(share):
    """Masks of the classes, and as nnU-Net wants it one more of the voxels to ignore."""
    return masks() if share is None else torch.cat([masks(), labels(share) == IGNORED], 1)


BY_CLASS = WEIGHT.view(-1, 1, 1)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("dice_options", [{"smooth": 1e-5}, {**OVER_BATCH, "do_bg": True}, OF_TRAINER])
@pytest.mark.parametrize(
    "bce_options",
    [{}, {"pos_weight": BY_CLASS}, {"weight": BY_CLASS, "pos_weight": BY_CLASS}, {"reduction": "sum"}],
)
def test_dice_and_binary_cross_entropy(share, dice_options, bce_options):
    assert_same(
        lambda package: package.DC_and_BCE_loss({**bce_options}, dice_options, use_ignore_label=share is not None),
        masks_and_ignored(share),
    )


@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_dice_and_binary_cross_entropy_of_masks_of_other_dtypes(share, dtype, weights):
    options = {"use_ignore_label": share is not None, **weights}
    assert_same(lambda package: package.DC_and_BCE_loss({}, {}, **options), masks_and_ignored(share).to(dtype))


def test_weights_of_channels_are_those_of_the_last_dimension_in_torch():
    x, y = logits()[..., :CLASSES], masks()[..., :CLASSES]
    of_channels, by_class, of_last = (
        package.DC_and_BCE_loss({"pos_weight": weight}, {})(x, y)
        for package, weight in ((ours, WEIGHT), (theirs, BY_CLASS), (theirs, WEIGHT))
    )
    assert_close(of_channels, by_class)
    assert (of_channels - of_last).abs() > 0.01


REGIONS = [(1, 2, 3), [1, 3], 3, (2,)]


def their_masks(y, *ignored):
    from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

    convert = ConvertSegmentationToRegionsTransform([*REGIONS, *ignored])
    return torch.stack([convert(segmentation=sample)["segmentation"] for sample in y])


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("dice_options", [{"smooth": 1e-5}, {**OVER_BATCH, "do_bg": True}])
def test_regions_of_labels_have_the_loss_of_nnunets_masks(share, dice_options):
    y = labels(share or 0.0)

    def make(package):
        if package is ours:
            loss = ours.DC_and_BCE_loss({}, dice_options, regions=REGIONS, **ignoring(share))
            return lambda x, _: loss(x, y)
        return theirs.DC_and_BCE_loss({}, dice_options, use_ignore_label=share is not None)

    assert_same(make, their_masks(y, *ignoring(share).values()))


@pytest.mark.parametrize("options", [{"regions": REGIONS, "ignore_label": IGNORED}, {"use_ignore_label": True}])
def test_regions_are_one_walk_over_the_logits(options):
    loss = ours.DC_and_BCE_loss({}, {"smooth": 1e-5}, **options)
    target = labels(0.3) if "regions" in options else masks_and_ignored(0.3)
    assert operators_of(loss, logits(), target) == ONE_WALK


def test_labels_in_place_of_masks_are_an_error():
    with pytest.raises(ValueError, match=r"expected masks \[2, 4, 7, 6\] as target, got \[2, 1, 7, 6\]. Pass regions"):
        ours.DC_and_BCE_loss({}, {})(logits(), labels())
    with pytest.raises(ValueError, match=r"got \[2, 3, 7, 6\] besides the mask of ignored voxels"):
        ours.DC_and_BCE_loss({}, {}, use_ignore_label=True)(logits(), masks())


def test_masks_in_place_of_labels_are_an_error_that_says_so():
    loss = ours.DC_and_BCE_loss({}, {}, regions=REGIONS)
    with pytest.raises(ValueError, match=r"got \[2, 4, 7, 6\]\. With regions, pass labels, not masks\."):
        loss(logits(), masks())


def test_regions_are_integers_of_any_type():
    x, y = logits()[:, :2], labels()
    values = [
        ours.DC_and_BCE_loss({}, {}, regions=regions)(x, y)
        for regions in ([1, (2, 3)], [np.int64(1), np.array([2, 3], np.uint8)])
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("options", [{"use_ignore_label": True, "regions": REGIONS}, {"ignore_label": IGNORED}])
def test_two_ways_to_ignore_do_not_mix(options):
    with pytest.raises(ValueError, match="expected use_ignore_label with masks, or ignore_label with regions"):
        ours.DC_and_BCE_loss({}, {}, **options)


# ---- deep supervision ------------------------------------------------------------------------------------------------


def test_deep_supervision_of_lists():
    smaller = labels()[:, :, ::2, ::2]

    def make(package):
        loss = package.DeepSupervisionWrapper(package.DC_and_CE_loss(OF_TRAINER, {}), np.array([2, 1, 0]) / 3)
        return lambda x, y: loss([x, x[..., ::2, ::2], x[..., ::2, ::2]], [y, smaller, smaller])  # the last has none

    assert_same(make, labels())


def test_deep_supervision_subsamples_a_single_target_as_nnunets_loader():
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

    loss, y = ours.DeepSupervisionWrapper(ours.RobustCrossEntropyLoss(), [2 / 3, 1 / 3]), labels()[..., :6, :]
    downsample = DownsampleSegForDSTransform([[1, 1], [0.5, 0.5]])
    targets = [torch.stack(each) for each in zip(*(downsample(segmentation=n)["segmentation"] for n in y), strict=True)]
    outputs = [logits()[..., :6, :], logits()[..., :3, :3]]
    assert loss(outputs, y) == loss(outputs, targets)


def test_deep_supervision_without_factors_adds_up_where_nnunet_raises_a_type_error():
    with pytest.raises(TypeError):
        theirs.DeepSupervisionWrapper(nn.CrossEntropyLoss())
    loss = ours.DeepSupervisionWrapper(ours.RobustCrossEntropyLoss())
    x, y = logits(), labels()
    assert_close(loss([x, x], [y, y]), 2 * segloss.cross_entropy(x, y))


def test_a_third_list_of_deep_supervision_holds_voxel_weights():
    x, y = logits(), labels()
    weights = torch.rand(y.shape, generator=torch.Generator().manual_seed(3))
    loss = ours.DeepSupervisionWrapper(ours.RobustCrossEntropyLoss(), [1])
    assert loss([x], [y], [weights]) == segloss.cross_entropy(x, y, voxel_weight=weights)
    takes_three = ours.DeepSupervisionWrapper(lambda x, y, z: x.sum(), [1])  # in nnU-Net's, z is an entry of the list
    with pytest.raises(TypeError, match="voxel_weight"):
        takes_three([x], [y], [weights])


# ---- several processes -----------------------------------------------------------------------------------------------

OVER_RANKS = {
    "labels": lambda package: package.DC_and_CE_loss({**OVER_BATCH, "ddp": True}, {}, ignore_label=IGNORED),
    "per sample": lambda package: package.DC_and_CE_loss({**OF_TRAINER, "ddp": True}, {}, ignore_label=IGNORED),
    "memory efficient": lambda package: package.DC_and_CE_loss(
        {**OVER_BATCH, "ddp": True}, {}, dice_class=package.MemoryEfficientSoftDiceLoss, ignore_label=IGNORED
    ),
    "masks": lambda package: package.DC_and_BCE_loss({}, {**OVER_BATCH, "ddp": True}, use_ignore_label=True),
    "top-k": lambda package: package.DC_and_topk_loss({**OVER_BATCH, "ddp": True}, {}, ignore_label=IGNORED),
}


def step(loss, x, y):
    """The value, and the gradient of the network that DistributedDataParallel averages."""
    torch.manual_seed(0)
    net = DistributedDataParallel(nn.Conv2d(CLASSES, CLASSES, 1))
    value = loss(net(x), y)
    value.backward()
    return value.detach(), net.module.weight.grad, net.module.bias.grad


def run_rank(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store, timeout=timedelta(seconds=60))
    x, y = logits(rank), labels(0.2 + 0.5 * rank)  # of one size, but one has far more voxels to ignore
    for name, make in OVER_RANKS.items():
        target = torch.cat([masks(), y == IGNORED], 1) if name == "masks" else y
        assert_close(torch.cat([each.flatten() for each in step(make(ours), x, target)]), their_step(make, x, target))
    loss = OVER_RANKS["memory efficient"](ours)
    loss(x[: rank + 1], y[: rank + 1])  # batches of two sizes, where nnU-Net's gather aborts the process
    dist.barrier()
    (folder / f"done {rank}").touch()
    dist.destroy_process_group()


def their_step(make, x, target):
    return torch.cat([each.flatten() for each in step(make(theirs), x, target)])


def test_over_two_ranks_values_and_averaged_gradients_are_nnunets(tmp_path):
    mp.spawn(run_rank, (tmp_path,), 2)
    assert all((tmp_path / f"done {rank}").exists() for rank in range(2))


# ---- nnU-Net's own training ------------------------------------------------------------------------------------------

DATA_SET = "Dataset001_Balls"
RAW_LABELS = {"background": 0, "shell": 1, "core": 2, "ignore": 3}
DATA_SETS = {
    "labels": {"background": 0, "shell": 1, "core": 2, "edge": 3},
    "ignore label": RAW_LABELS,
    "regions": {"background": 0, "ball": [1, 2], "core": 2, "edge": 3},
    "regions, ignore label": {"background": 0, "ball": [1, 2], "core": 2, "ignore": 3},
}
CONFIGURATION = {
    "labels": "3d_fullres",
    "ignore label": "2d",
    "regions": "2d",
    "regions, ignore label": "3d_fullres",
}


TRAINERS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from segloss.nnunet import nnUNetTrainerSegloss

class DiceOnly(nnUNetTrainerDiceLoss, nnUNetTrainerSegloss): pass
class LossOfNNUNet(nnUNetTrainerSegloss): _build_loss = nnUNetTrainer._build_loss
class SeglossDA5(nnUNetTrainerSegloss, nnUNetTrainerDA5): pass
class SeglossFlat(nnUNetTrainerSegloss, nnUNetTrainerNoDeepSupervision): pass
class WrongOrder(nnUNetTrainerDA5, nnUNetTrainerSegloss): pass
"""


def write_cases(folder, size=16):
    """Ten noisy balls with a core; the first slices are label 3."""
    import nibabel

    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for case in range(10):
        centre = generator.integers(5, size - 5, (3, 1, 1, 1))
        distance = np.sqrt(((np.indices((size,) * 3) - centre) ** 2).sum(0))
        y = (distance < 6).astype(np.uint8) + (distance < 3)
        image = (y + generator.normal(0, 0.3, y.shape)).astype(np.float32)
        y[:, :2] = 3
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"case_{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(y.astype(np.uint8), np.eye(4)), folder / "labelsTr" / f"case_{case}.nii.gz")
    description = {"channel_names": {"0": "MRI"}, "labels": RAW_LABELS, "numTraining": 10, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))


def edited(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def make_small(plans):
    """A few features, and one stage more, so that deep supervision has two resolutions that count."""
    for name in ("2d", "3d_fullres"):
        network = plans["configurations"][name]["architecture"]["arch_kwargs"]
        dims = len(network["strides"][0])
        network |= {"n_stages": 4, "features_per_stage": [4, 8, 8, 8]}
        network |= {"strides": [[1] * dims] + 3 * [[2] * dims], "kernel_sizes": 4 * [[3] * dims]}
        network |= {"n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3}
        plans["configurations"][name]["batch_size"] = 2


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory):
    """The folder of a data set that nnU-Net has planned and preprocessed, with the environment for training on it."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        patch.setenv("nnUNet_n_proc_DA", "1")  # planning wants a thread
        # Threads in place of processes, each of which would import torch anew.
        patch.setattr(multiprocessing, "get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
        try:
            importlib.import_module("timm")
        except ImportError:  # nnU-Net's search imports every trainer, and Primus needs timm, which needs torchvision
            patch.setitem(sys.modules, "dynamic_network_architectures.architectures.primus", MagicMock())
        from nnunetv2.experiment_planning import plan_and_preprocess_api as api

        write_cases(root / "raw" / DATA_SET)
        api.extract_fingerprints([1], num_processes=1)
        api.plan_experiments([1])
        api.preprocess([1], configurations=list(set(CONFIGURATION.values())), num_processes=[1, 1])
        patch.setenv("nnUNet_n_proc_DA", "0")  # augments in this process, so that a seed gives the same batches
        trainers = root / "trainers"
        trainers.mkdir()
        (trainers / "segloss_trainers.py").write_text(TRAINERS)
        patch.setenv("nnUNet_extTrainer", str(trainers))
        edited(root / "preprocessed" / DATA_SET / "nnUNetPlans.json", make_small)
        yield root / "preprocessed" / DATA_SET


@pytest.fixture
def results_of(preprocessed, monkeypatch):
    """Trains by nnU-Net's command, and returns what each step returned."""
    from nnunetv2.run.run_training import run_training
    from nnunetv2.training.logging.nnunet_logger import MetaLogger
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    def on_train_start(self, original=nnUNetTrainer.on_train_start):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 2, 1
        original(self)

    def train_step(self, batch, original=nnUNetTrainer.train_step):
        seen["targets"] = batch["target"]
        result = original(self, batch)
        seen["train"].append(result["loss"])
        return result

    def on_validation_epoch_end(self, outputs, original=nnUNetTrainer.on_validation_epoch_end):
        seen["validation"].extend(outputs)
        original(self, outputs)

    for function in (on_train_start, train_step, on_validation_epoch_end):
        monkeypatch.setattr(nnUNetTrainer, function.__name__, function)
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, save_probabilities: None)
    monkeypatch.setattr(nnUNetTrainer, "print_to_log_file", lambda self, *_, **__: None)
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, folder: None)
    seen = defaultdict(list)

    def results(data_set, trainer):
        seen.clear()
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        regions = [name for name in DATA_SETS[data_set] if name not in ("background", "ignore")]
        description = {"labels": DATA_SETS[data_set], "regions_class_order": list(range(1, len(regions) + 1))}
        edited(preprocessed / "dataset.json", lambda content: content.update(description))
        device = torch.device("cpu")
        run_training("1", CONFIGURATION[data_set], 0, trainer, disable_checkpointing=True, device=device)
        return copy.copy(seen)

    return results


def assert_same_steps(got, expected):
    assert len(got["train"]) == 4
    np.testing.assert_allclose(got["train"], expected["train"], rtol=1e-5)
    for of_ours, of_theirs in zip(got["validation"], expected["validation"], strict=True):
        assert of_ours.keys() == of_theirs.keys()
        for name in of_theirs:
            np.testing.assert_allclose(of_ours[name], of_theirs[name], rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data_set", DATA_SETS)
def test_the_trainer_has_nnunets_losses_and_scores_at_each_step(results_of, data_set):
    expected, got = (results_of(data_set, trainer) for trainer in ("nnUNetTrainer", "nnUNetTrainerSegloss"))
    assert_same_steps(got, expected)
    assert [each.dtype for each in got["targets"]] == 3 * [torch.int16]  # label maps, no masks
    assert all(each.shape[1] == 1 for each in got["targets"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data_set", "of_nnunet", "trainer"),
    [
        ("regions", "nnUNetTrainerDiceLoss", "DiceOnly"),
        ("regions, ignore label", "nnUNetTrainer", "LossOfNNUNet"),
        ("regions", "nnUNetTrainerDA5", "SeglossDA5"),
        ("regions, ignore label", "nnUNetTrainerNoDeepSupervision", "SeglossFlat"),
    ],
)
def test_a_trainer_of_ones_own_has_nnunets_losses_and_scores_at_each_step(results_of, data_set, of_nnunet, trainer):
    expected, got = results_of(data_set, of_nnunet), results_of(data_set, trainer)
    assert_same_steps(got, expected)
    target = got["targets"] if trainer == "SeglossFlat" else got["targets"][0]
    assert (target.shape[1] == 1) == trainer.startswith("Segloss")  # label maps, or with nnU-Net's loss masks


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_whose_first_base_makes_masks_is_an_error_that_names_the_right_order(results_of):
    with pytest.raises(
        ValueError, match=r"names nnUNetTrainerSegloss as its first base: class My\(nnUNetTrainerSegloss"
    ):
        results_of("regions", "WrongOrder")


@pytest.mark.filterwarnings("ignore")
def test_the_trainers_loss_sums_over_the_ranks_of_ddp(preprocessed):
    from nnunetv2.run.run_training import get_trainer_from_args

    edited(preprocessed / "dataset.json", lambda content: content.update({"labels": DATA_SETS["labels"]}))
    losses = []
    for name in ("nnUNetTrainer", "nnUNetTrainerSegloss"):
        trainer = get_trainer_from_args("1", "2d", 0, name, device=torch.device("cpu"))
        trainer.is_ddp = True
        losses.append(trainer._build_loss())
    assert losses[1].loss.dc.sums_over_ranks
    assert losses[1].weight_factors == pytest.approx(losses[0].weight_factors)
    assert losses[1].weight_factors[-1] > 0  # DDP wants a gradient of each parameter


# ---- the documentation -----------------------------------------------------------------------------------------------


def test_the_table_of_equivalents_holds_for_nnunet_itself(monkeypatch):
    import test_equivalents  # here, as it takes seconds, also in the ranks

    monkeypatch.setitem(test_equivalents.PACKAGES, "nnU-Net", {**vars(theirs), "softmax": softmax})
    data = test_equivalents.random_data("nnU-Net")
    x = data["x"].detach().float().requires_grad_()
    data |= {"x": x, "xs": [x, x[..., ::2, ::2], x[..., ::4, ::4]], "w": data["w"].float()}
    lines = [line for line in test_equivalents.LINES if line.package == "nnU-Net"]
    assert len(lines) >= 10
    for line in lines:
        got, expected = line.evaluate(data)
        assert_close(got, expected)
        assert_close_gradients(*(torch.autograd.grad(loss, x)[0] for loss in (got, expected)))


def test_without_smoothing_a_class_without_a_voxel_has_a_dice_of_0():
    x, y, nothing = logits(), labels(), torch.zeros(SHAPE)
    expected = theirs.SoftDiceLoss(softmax, smooth=0)(x, y, nothing[:, None])
    options = {"smooth_nr": 0, "voxel_weight": nothing}
    assert_close(segloss.dice_loss(x, y, smooth_dr=1e-30, **options) - 1, expected)
    assert segloss.dice_loss(x, y, smooth_dr=0, **options) - 1 == -1


# ---- the example -----------------------------------------------------------------------------------------------------


def test_a_script_of_nnunet_changes_one_import(capsys, monkeypatch):
    before, after = load_example("nnunet_loss", monkeypatch).main(["--steps", "3"])
    assert after == pytest.approx(before, rel=1e-5)
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(" loss ")[0].strip() for line in lines] == ["nnunetv2", "segloss.nnunet"]
    largest = max(abs(a - b) for a, b in zip(before, after, strict=True))
    assert last == f"largest difference of the losses: {largest:.1e}"
