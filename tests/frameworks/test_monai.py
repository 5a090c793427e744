"""segloss.monai beside the installed MONAI: the same results from the same arguments, or an error."""

import inspect
import pickle
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from example_scripts import load_example
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

from segloss import losses
from segloss import monai as ours

theirs = pytest.importorskip("monai.losses", reason="MONAI is not installed")

NAMES = ours.__all__
LAMBDAS, GAMMAS, SMOOTH = [0.0, 0.4, 1.0, 2.5], [0.0, 0.5, 1.0, 2.0, 3.5], [1e-5, 0.3, 1.0]
FLAGS = [False, True]
REDUCTIONS = ["mean", "sum", "none"]

# The values that are drawn for each keyword; activation, weights and ignored labels depend on the data: see `draw`.
REGION = {"reduction": REDUCTIONS, "smooth_nr": [0.0, *SMOOTH], "smooth_dr": SMOOTH, "batch": FLAGS}
DICE = {**REGION, "squared_pred": FLAGS, "jaccard": FLAGS}
CLDICE = {"reduction": REDUCTIONS, "iter_": [0, 1, 3], "smooth_nr": SMOOTH, "smooth_dr": SMOOTH, "smooth": SMOOTH}
VALUES = {
    "DiceLoss": {**DICE, "soft_label": FLAGS},
    "MaskedDiceLoss": {**DICE, "soft_label": FLAGS},
    "GeneralizedDiceLoss": {**REGION, "w_type": ["square", "simple", "uniform"], "soft_label": FLAGS},
    "TverskyLoss": {**REGION, "alpha": [0.0, 0.3, 1.0], "beta": [0.2, 0.5, 2.0], "soft_label": FLAGS},
    "FocalLoss": {"reduction": REDUCTIONS, "gamma": GAMMAS},
    "BoundaryLoss": {"reduction": REDUCTIONS, "batch": FLAGS},
    "HausdorffDTLoss": {"reduction": REDUCTIONS, "batch": FLAGS, "alpha": [1.0, 1.5, 2.0]},
    "SoftclDiceLoss": CLDICE,
    "SoftDiceclDiceLoss": {**CLDICE, "alpha": [0.0, 0.3, 1.0]},
    "DiceCELoss": {
        **DICE,
        "reduction": ["mean", "sum"],
        "lambda_dice": LAMBDAS,
        "lambda_ce": LAMBDAS,
        "label_smoothing": [0.0, 0.1],
    },
    "DiceFocalLoss": {
        **DICE,
        "gamma": GAMMAS,
        "lambda_dice": LAMBDAS,
        "lambda_focal": LAMBDAS,
        "alpha": [None, 0.25],
    },
    "GeneralizedDiceFocalLoss": {
        **REGION,
        "w_type": ["square", "simple", "uniform"],
        "gamma": GAMMAS,
        "lambda_gdl": LAMBDAS,
        "lambda_focal": LAMBDAS,
    },
}
HAVE_WEIGHT = {"DiceLoss", "MaskedDiceLoss", "FocalLoss", "DiceCELoss", "DiceFocalLoss", "GeneralizedDiceFocalLoss"}
OF_DISTANCES = {"BoundaryLoss", "HausdorffDTLoss"}
HAVE_IGNORE_INDEX = {"DiceLoss", "TverskyLoss", "FocalLoss"}


class Draw:
    """Random data and keywords that both libraries take."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.random = name, random.Random(f"{name} {seed}")
        self.generator = torch.Generator().manual_seed(seed)
        pick = self.random.choice
        self.num_classes = pick([1, 2, 3, 5])
        sizes = [self.random.randint(1, 6) for _ in range(pick([2, 3]))]
        self.shape = [self.random.randint(1, 3), self.num_classes, *sizes]
        self.options = {keyword: pick(values) for keyword, values in VALUES[name].items()}
        self.options["include_background"] = pick(FLAGS)
        self.activation = pick(["softmax", "sigmoid", None])
        if name == "FocalLoss":
            self.options["use_softmax"] = self.activation == "softmax" and self.num_classes - self.first > 1
        else:
            self.options |= {each: self.activation == each for each in ("softmax", "sigmoid")}
        self.input = self.logits()
        if not self.has_logits:
            self.input = self.input.sigmoid()
        self.target, self.kind = self.labels_or_masks()
        self.options["to_onehot_y"] = self.kind == "labels"
        if name in HAVE_IGNORE_INDEX and pick(FLAGS):
            self.ignore_voxels()
        if name in HAVE_WEIGHT and pick(FLAGS):
            self.draw_weight()
        if name == "FocalLoss":
            self.draw_alpha()

    @property
    def has_logits(self) -> bool:
        """Whether MONAI applies an activation to the input of the Dice term; else segloss wants it in [0, 1]."""
        is_softmax = self.activation == "softmax" and self.num_classes > 1
        return self.name == "FocalLoss" or is_softmax or self.activation == "sigmoid"

    @property
    def first(self) -> int:
        return 0 if self.options["include_background"] or self.num_classes == 1 else 1

    def logits(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64) * self.random.choice([0.5, 3.0])

    def labels_or_masks(self) -> tuple[Tensor, str]:
        """Labels [N, 1, *], or [N, C, *] of one-hot labels, of any masks, or of numbers from 0 to 1."""
        shape, pick = self.shape, self.random.choice
        labels = torch.randint(self.num_classes, (shape[0], 1, *shape[2:]), generator=self.generator)
        if self.num_classes > 1 and pick(FLAGS):
            return labels.to(pick([torch.uint8, torch.int16, torch.int64, torch.float32])), "labels"
        kinds = ["one-hot"] if self.num_classes > 1 else []
        if not self.options.get("use_softmax"):
            kinds.append("masks")
        if "Focal" not in self.name and self.name not in OF_DISTANCES:
            kinds.append("soft")
        dtype = pick([torch.uint8, torch.bool, torch.int64, torch.float32, torch.float64])
        kind = pick(kinds)
        if kind == "one-hot":
            return F.one_hot(labels.squeeze(1), self.num_classes).movedim(-1, 1).to(dtype), kind
        numbers = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (numbers, kind) if kind == "soft" else ((numbers < 0.3).to(dtype), kind)

    def ignore_voxels(self) -> None:
        """An ignore_index, and voxels that have it."""
        ignored = torch.rand((self.shape[0], 1, *self.shape[2:]), generator=self.generator)
        ignored = ignored < self.random.choice([0.0, 0.3, 1.0])
        if self.kind == "labels" or self.num_classes == 1:
            least = 0 if self.target.dtype in (torch.uint8, torch.bool) else -1
            most = 1 if self.target.dtype == torch.bool else 255
            self.options["ignore_index"] = self.random.choice([i for i in (-1, 0, 1, 255) if least <= i <= most])
            self.target = self.target.masked_fill(ignored, self.options["ignore_index"])
        elif self.kind != "soft" and self.random.choice(FLAGS):
            self.options["ignore_index"] = self.random.randrange(self.num_classes)
        else:
            self.options["ignore_index"] = self.random.choice([-1, 255])
            self.target = self.target.masked_fill(ignored, 0)

    def draw_weight(self) -> None:
        """A number, a list or a tensor, for the classes that have a term; of DiceCELoss a tensor of all classes."""
        num_classes = self.num_classes - self.first
        weight = torch.rand(self.num_classes, generator=self.generator) + 0.1
        if self.name == "DiceCELoss":
            self.options["weight"] = weight.double()
        elif num_classes == 1 and "Focal" in self.name:
            self.options["weight"] = 2  # MONAI refuses a list
        else:
            weight = weight[:num_classes]
            self.options["weight"] = self.random.choice([weight, weight.tolist(), 0.7])

    def draw_alpha(self) -> None:
        sequence = torch.rand(self.num_classes - self.first, generator=self.generator)
        self.options["alpha"] = self.random.choice([None, 0.25, sequence, sequence.tolist()])

    @property
    def mask(self) -> list[Tensor]:
        """The third argument of MaskedDiceLoss."""
        if self.name != "MaskedDiceLoss":
            return []
        shape = (self.random.choice([1, self.shape[0]]), 1, *self.shape[2:])
        mask = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        is_fraction = self.kind != "labels" and self.random.choice(FLAGS)
        return [mask if is_fraction else (mask < 0.7).to(self.random.choice([torch.float64, torch.uint8, torch.bool]))]

    @property
    def dtype(self) -> torch.dtype:
        """MONAI computes in float32: focal losses, weights of generalized Dice, distances, sums of one-hot labels."""
        is_single = "Focal" in self.name or "Generalized" in self.name or self.name in OF_DISTANCES
        sums_labels = self.options.get("squared_pred") or self.options.get("soft_label") or "iter_" in self.options
        is_rounded = self.kind == "labels" and sums_labels
        return torch.float32 if is_single or is_rounded else torch.float64


def value_and_gradient(loss: Callable[[Tensor], Tensor], input: Tensor) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of a random combination of its numbers. The gradient of a single number is multiplied
    by that of the logits: otherwise that of a mean would be below the tolerance."""
    x = input.clone().requires_grad_()
    value = loss(x)
    incoming = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((value * incoming).sum() * (x.numel() if value.dim() == 0 else 1), x)
    return value.detach(), gradient


def assert_equal(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    """Equal values and gradients; numbers below the largest one may have its rounding, as they are sums of such."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        largest = e.abs().max().clamp(min=1)
        assert_close(a / largest, e / largest, dtype)


def compare(draw: Draw) -> None:
    mask = draw.mask
    target = draw.target if draw.kind == "labels" else draw.target.double()  # MONAI's norms refuse integers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of one channel: see below
        loss, their_loss = (getattr(each, draw.name)(**draw.options) for each in (ours, theirs))
        actual = value_and_gradient(lambda x: loss(x, draw.target, *mask), draw.input)
        expected = value_and_gradient(lambda x: their_loss(x, target, *mask), draw.input)
    assert_equal(actual, expected, draw.dtype)


@pytest.mark.parametrize("seed", range(0, 300, 20))
@pytest.mark.parametrize("name", VALUES)
def test_a_loss_has_monais_values_gradients_and_shapes(name, seed):
    for each in range(seed, seed + 20):
        draw = Draw(name, each)
        try:
            compare(draw)
        except Exception as error:
            target = f"{draw.kind} {draw.target.dtype} {list(draw.target.shape)}"
            raise AssertionError(f"seed {each}: {draw.options}, input {draw.shape}, {target}") from error


# ---- the interface ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_monais_parameters_and_defaults(name):
    signatures = [inspect.signature(getattr(each, name)).parameters for each in (ours, theirs)]
    actual, expected = ([(p.name, p.kind, p.default) for p in each.values()] for each in signatures)
    assert actual == expected
    calls = [list(inspect.signature(getattr(each, name).forward).parameters) for each in (ours, theirs)]
    assert calls[0] == calls[1]


@pytest.mark.cpu_only
def test_segloss_does_not_import_the_adapter_which_does_not_import_monai():
    code = "import sys, segloss\nassert 'segloss.monai' not in sys.modules"
    code += "\nimport segloss.monai\nassert 'monai' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_members_of_monais_enumerations_are_options():
    from monai.utils import LossReduction, Weight

    loss = ours.GeneralizedDiceLoss(w_type=Weight.SIMPLE, reduction=LossReduction.SUM)
    assert (loss.w_type, loss.reduction) == ("simple", "sum")
    assert ours.DiceCELoss(reduction=LossReduction.SUM).dice.reduction == "sum"
    assert ours.FocalLoss(reduction=LossReduction.NONE).reduction == "none"


LABELLED = {name: {"to_onehot_y": True, "softmax": True} for name in VALUES if name != "FocalLoss"}
LABELLED["FocalLoss"] = {"to_onehot_y": True, "use_softmax": True}


def logits_and_labels(*sizes: int, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(2, num_classes, *sizes), torch.randint(num_classes, (2, 1, *sizes))


@pytest.mark.filterwarnings("ignore:MaskedDiceLoss")
@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.int32, torch.float32])
def test_labels_need_neither_a_channel_nor_with_a_softmax_to_onehot_y(name, dtype):
    x, y = logits_and_labels(4, 5)
    expected = getattr(ours, name)(**LABELLED[name])(x, y)
    loss = getattr(ours, name)(**LABELLED[name] | {"to_onehot_y": False})
    assert_close(loss(x, y.squeeze(1).to(dtype)), expected)
    assert_close(loss(x, y.to(dtype)), expected)


@pytest.mark.filterwarnings("ignore:MaskedDiceLoss")
@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_label_that_is_no_class_is_refused(name, label):
    x, y = logits_and_labels(4, 5)
    y[0, 0, 1, 2] = label
    for options in ({}, {"include_background": False}):
        with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
            getattr(ours, name)(**LABELLED[name] | options)(x, y)


def test_focal_loss_with_a_sigmoid_refuses_labels_that_are_no_class():
    x, y = logits_and_labels(4, 5)
    y[0, 0, 1, 2] = -100
    with pytest.raises(IndexError, match="Target -100 is out of bounds"):
        ours.FocalLoss(to_onehot_y=True)(x, y)


def test_weight_of_dice_ce_loss_may_be_a_list():
    x, y = logits_and_labels(4, 5)
    expected = theirs.DiceCELoss(**LABELLED["DiceCELoss"], weight=torch.tensor([1.0, 2.0, 3.0]))(x, y)
    assert_close(ours.DiceCELoss(**LABELLED["DiceCELoss"], weight=[1, 2, 3])(x, y), expected)


def with_weights(package, name: str) -> nn.Module:
    options = {"weight": torch.tensor([1.0, 2.0, 3.0])} if name in HAVE_WEIGHT else {}
    if name == "FocalLoss":
        options["alpha"] = [0.2, 0.3, 0.4]
    return getattr(package, name)(**LABELLED[name], **options)


@pytest.mark.filterwarnings("ignore:MaskedDiceLoss")
@pytest.mark.parametrize("name", LABELLED)
def test_a_loss_is_pickled(name):
    loss = with_weights(ours, name)
    x, y = logits_and_labels(4, 5)
    copy = pickle.loads(pickle.dumps(loss))
    assert repr(copy) == repr(loss)
    assert_close(copy(x, y), loss(x, y))


@pytest.mark.parametrize("name", LABELLED)
def test_state_dicts_are_monais(name):
    loss, their_loss = with_weights(ours, name), with_weights(theirs, name)
    state = {key: value * 2 for key, value in their_loss.state_dict().items()}
    loss.load_state_dict(state)
    their_loss.load_state_dict(loss.state_dict())
    assert bool(state) == (name in HAVE_WEIGHT)
    for key, value in their_loss.state_dict().items():
        assert_close(value, state[key])


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("DiceLoss", "class_weight", torch.tensor([1.0, 2.0, 3.0])),
        ("DiceLoss", "squared_pred", True),
        ("MaskedDiceLoss", "jaccard", True),
        ("GeneralizedDiceLoss", "batch", True),
        ("TverskyLoss", "alpha", 0.2),
        ("FocalLoss", "include_background", False),
        ("FocalLoss", "gamma", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore:MaskedDiceLoss", "ignore:No mask")
def test_an_option_of_a_loss_of_one_term_may_be_changed(name, option, value):
    x, y = logits_and_labels(4, 5)
    loss, their_loss = (getattr(package, name)(**LABELLED[name]) for package in (ours, theirs))
    before = loss(x, y)
    for each in (loss, their_loss):
        setattr(each, option, value)
    assert loss(x, y) != before
    assert_close(loss(x, y), their_loss(x, y))


# ---- the terms of DiceCELoss, which may be changed -------------------------------------------------------------------

WEIGHT = torch.tensor([1.0, 2.0, 3.0])


CHANGES = {
    "cross_entropy.weight": WEIGHT * 2,
    "dice.class_weight": WEIGHT * 2,
    "dice.ignore_index": 0,
    "dice.reduction": "sum",
    "dice.softmax": False,
    "dice.squared_pred": True,
    "dice": theirs.DiceLoss(to_onehot_y=True, softmax=True, squared_pred=True),
    "cross_entropy.ignore_index": 0,
    "cross_entropy.reduction": "sum",
    "cross_entropy.label_smoothing": 0.2,
    "cross_entropy": nn.CrossEntropyLoss(WEIGHT * 2, ignore_index=1),
}


def changed(loss: nn.Module, name: str, value: object) -> nn.Module:
    *path, attribute = name.split(".")
    setattr(loss.get_submodule(".".join(path)), attribute, value)
    return loss.to(torch.get_default_device())


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_term_of_dice_ce_loss_has_monais_value(name, weight):
    x, y = logits_and_labels(4, 5)
    x = x.softmax(1) if name == "dice.softmax" else x
    loss, their_loss = (
        changed(package.DiceCELoss(to_onehot_y=True, softmax=True, weight=weight), name, CHANGES[name])
        for package in (ours, theirs)
    )
    expected = value_and_gradient(lambda x: their_loss(x, y), x)
    for labels in (y, y.to(torch.int16)):
        assert_equal(value_and_gradient(lambda x, labels=labels: loss(x, labels), x), expected, torch.float32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("binary_cross_entropy.pos_weight", torch.tensor([3.0])),
        ("binary_cross_entropy.weight", torch.tensor([3.0])),
        ("binary_cross_entropy.reduction", "sum"),
        ("binary_cross_entropy", nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))),
        ("dice.class_weight", torch.tensor([3.0])),
        ("dice.reduction", "sum"),
    ],
)
def test_a_changed_term_of_dice_ce_loss_of_one_channel_has_monais_value(name, value):
    x, y = logits_and_labels(4, 5, num_classes=1)
    y = (x > 0.3).long()
    loss, their_loss = (changed(package.DiceCELoss(sigmoid=True), name, value) for package in (ours, theirs))
    assert_close(loss(x, y), their_loss(x, y))


@pytest.mark.parametrize(
    "replacement",
    [
        losses.CrossEntropyLoss(label_map={0: 1, 1: 0, 2: 2}),
        losses.CrossEntropyLoss(label_map=torch.tensor([1, 0, 2])),
        losses.BCEWithLogitsLoss(),
        losses.TopKLoss(),
    ],
    ids=str,
)
def test_another_loss_of_segloss_as_cross_entropy_keeps_its_value(replacement):
    x, y = logits_and_labels(4, 5)
    loss = changed(ours.DiceCELoss(softmax=True, lambda_dice=0), "cross_entropy", replacement)
    assert_close(loss(x, y), replacement(x, y))


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("options", "num_classes"),
    [
        ({"softmax": True}, 3),
        ({"softmax": True, "weight": WEIGHT}, 3),
        ({"softmax": True, "weight": WEIGHT, "include_background": False}, 3),
        ({"softmax": True, "label_smoothing": 0.1, "reduction": "sum"}, 3),
        ({"softmax": True, "include_background": False}, 2),
        ({"sigmoid": True, "weight": WEIGHT[:1]}, 1),
    ],
)
def test_the_terms_of_dice_ce_loss_are_computed_together(options, num_classes, monkeypatch):
    x, y = logits_and_labels(4, 5, num_classes=num_classes)
    loss = ours.DiceCELoss(**options)
    expected = loss(x, y)
    monkeypatch.setattr(loss, "_cross_entropy", None)
    assert_close(loss(x, y), expected)


@pytest.mark.cpu_only
def test_a_compiled_loss_sees_a_changed_weight():
    x, y = logits_and_labels(4, 5)
    loss, their_loss = (each.DiceCELoss(to_onehot_y=True, softmax=True, weight=WEIGHT) for each in (ours, theirs))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for factor in (1, 2):
        for each in (loss, their_loss):
            each.dice.class_weight = WEIGHT * factor
        assert_close(compiled(x, y), their_loss(x, y))


def test_repr_has_monais_keywords():
    expected = "TverskyLoss(reduction='mean', sigmoid=False, softmax=True, include_background=True, to_onehot_y=False"
    assert repr(ours.TverskyLoss(softmax=True)).startswith(expected)


# ---- tensors of other kinds ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:MaskedDiceLoss")
@pytest.mark.parametrize("name", LABELLED)
def test_metatensors_are_read_as_tensors(name):
    from monai.data import MetaTensor

    x, y = logits_and_labels(4, 5)
    network = nn.Conv2d(3, 3, 1)
    loss = getattr(ours, name)(**LABELLED[name])
    results = []
    for images, labels in [(x, y), (MetaTensor(x), MetaTensor(y))]:
        output = network(images)
        assert isinstance(output, MetaTensor) == isinstance(images, MetaTensor)
        value = loss(output, labels)
        results.append((value, torch.autograd.grad(value, network.weight)[0]))
        assert type(value) is Tensor
    assert_close(results[1][0], results[0][0])
    assert_close(results[1][1], results[0][1])


def test_a_mask_and_the_outputs_of_deep_supervision_may_be_metatensors():
    from monai.data import MetaTensor

    x, y = logits_and_labels(4, 6)
    mask = torch.randint(2, (2, 1, 4, 6))
    loss = ours.MaskedDiceLoss(softmax=True)
    assert_close(loss(x, y, MetaTensor(mask)), loss(x, y, mask))
    loss, xs = ours.DeepSupervisionLoss(ours.DiceLoss(softmax=True)), [x, x[..., ::2]]
    assert_close(loss([MetaTensor(each) for each in xs], MetaTensor(y)), loss(xs, y))


@pytest.mark.filterwarnings("ignore:MaskedDiceLoss", "ignore:No mask")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LABELLED)
def test_the_loss_of_half_logits_is_float32(name, dtype):
    x, y = logits_and_labels(4, 5)
    x = x.to(dtype)
    value = getattr(ours, name)(**LABELLED[name])(x, y)
    assert value.dtype == torch.float32
    assert_close(value, getattr(theirs, name)(**LABELLED[name])(x.float(), y))


def test_a_sum_of_float16_does_not_overflow():
    x, y = torch.full((1, 2, 300, 300), -20.0, dtype=torch.float16), torch.ones(1, 1, 300, 300, dtype=torch.uint8)
    options = {"to_onehot_y": True, "gamma": 0.0, "ignore_index": 255}
    assert_close(ours.FocalLoss(**options)(x, y), theirs.FocalLoss(**options)(x, y))


@pytest.mark.filterwarnings("ignore:MaskedDiceLoss")
@pytest.mark.parametrize("name", LABELLED)
def test_autocast_does_not_change_the_loss_of_half_logits(name):
    x, y = logits_and_labels(4, 5)
    loss = getattr(ours, name)(**LABELLED[name])
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        value = loss(x.bfloat16(), y)
    assert_close(value, loss(x.bfloat16(), y))


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", LABELLED)
def test_a_loss_is_one_graph_of_torch_compile(name):
    x, y = logits_and_labels(4, 5)
    masks = F.one_hot(y.squeeze(1), 3).movedim(-1, 1).float()
    arguments = [masks, torch.ones(2, 1, 4, 5)] if name == "MaskedDiceLoss" else [masks if "Focal" in name else y]
    loss = with_weights(ours, name)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for scale in (1.0, 3.0):
        logits = (x * scale).requires_grad_()
        actual, expected = (torch.autograd.grad(each(logits, *arguments), logits)[0] for each in (compiled, loss))
        assert_close(actual, expected)


@pytest.mark.cpu_only
def test_a_compiled_loss_takes_metatensors():
    from monai.data import MetaTensor

    x, y = logits_and_labels(4, 5)
    loss = ours.DiceCELoss(softmax=True)
    compiled = torch.compile(loss, backend="aot_eager")
    assert_close(compiled(MetaTensor(x), MetaTensor(y)), loss(x, y))


# ---- what differs, each with an error or as the documentation says ---------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LABELLED if name != "FocalLoss"])
def test_another_activation_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected no other_act.*Keep monai\.losses\.{name}$"):
        getattr(ours, name)(other_act=torch.tanh)


@pytest.mark.parametrize("name", [name for name in LABELLED if name != "FocalLoss"])
def test_two_activations_are_refused_as_in_monai(name):
    for package in (ours, theirs):
        with pytest.raises(ValueError, match="softmax=True"):
            getattr(package, name)(sigmoid=True, softmax=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DiceLoss", {"reduction": "avg"}),
        ("FocalLoss", {"reduction": "avg"}),
        ("DiceCELoss", {"reduction": "none"}),
        ("GeneralizedDiceLoss", {"w_type": "cubic"}),
        ("DiceCELoss", {"lambda_dice": -1.0}),
        ("DiceCELoss", {"lambda_ce": -1.0}),
        ("DiceFocalLoss", {"lambda_focal": -1.0}),
        ("GeneralizedDiceFocalLoss", {"lambda_gdl": -1.0}),
    ],
)
def test_an_option_that_monai_refuses_is_refused(name, options):
    for package in (ours, theirs):
        with pytest.raises(ValueError):  # noqa: PT011  the words are each library's own
            getattr(package, name)(**options)
    (keyword,) = options
    with pytest.raises(ValueError, match=rf"^{name}: expected {keyword} to be "):
        getattr(ours, name)(**options)


@pytest.mark.parametrize("name", ["DiceLoss", "FocalLoss"])
@pytest.mark.parametrize("include_background", [False, True])
def test_weights_that_monai_refuses_are_refused(name, include_background):
    x, y = logits_and_labels(4, 5)
    options = LABELLED[name] | {"include_background": include_background}
    for weight in ([1.0] * (2 if include_background else 3), [1.0, -1.0, 1.0][-3 + (not include_background) :]):
        for package in (ours, theirs):
            with pytest.raises(ValueError, match="weight"):
                getattr(package, name)(**options, weight=weight)(x, y)


def test_weights_of_a_single_class_are_refused_in_focal_losses_as_in_monai():
    x, y = logits_and_labels(4, 5, num_classes=1)
    for package in (ours, theirs):
        with pytest.raises(ValueError, match="single"):
            package.FocalLoss(weight=[2.0])(x, y)


def test_alpha_needs_one_number_for_each_class_as_in_monai():
    x, y = logits_and_labels(4, 5)
    for package in (ours, theirs):
        for softmax in (False, True):
            with pytest.raises(ValueError, match="alpha"):
                package.FocalLoss(to_onehot_y=True, use_softmax=softmax, alpha=[0.5, 0.5])(x, y)


MASKED = [name for name in LABELLED if name != "FocalLoss"]  # the losses with sigmoid and softmax


@pytest.mark.parametrize("activation", ["sigmoid", None])
@pytest.mark.parametrize("name", LABELLED)
def test_a_target_of_another_shape_is_refused_as_in_monai_without_softmax_and_to_onehot_y(name, activation):
    mask = [torch.ones(2, 1, 6, 6)] if name == "MaskedDiceLoss" else []
    options = {"sigmoid": True} if activation and name != "FocalLoss" else {}
    p, y = torch.rand(2, 3, 6, 6), torch.randint(2, (2, 1, 6, 6))
    with pytest.raises((AssertionError, ValueError)):
        getattr(theirs, name)(**options)(p, y.float(), *mask)
    for target in (y, y.float(), y[:, 0], y.expand(2, 2, 6, 6)):
        with pytest.raises(ValueError, match=r"with a mask for each class, got .* Pass to_onehot_y=True if it holds"):
            getattr(ours, name)(**options)(p, target, *mask)
    labelled = getattr(ours, name)(**options, to_onehot_y=True)
    assert_close(labelled(p, y[:, 0], *mask), labelled(p, y, *mask))


@pytest.mark.filterwarnings("ignore:HausdorffDTLoss")
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(("num_classes", "advice"), [(3, "sigmoid=True or softmax=True"), (1, "sigmoid=True")])
def test_input_without_activation_must_be_probabilities(name, num_classes, advice):
    x, mask = torch.randn(2, num_classes, 6, 6), [torch.ones(2, 1, 6, 6)] if name == "MaskedDiceLoss" else []
    expected = r"Loss: expected probabilities in \[0, 1\] as input without an activation, got -?\d.* of input \[2, "
    with pytest.raises(RuntimeError, match=rf"{expected}.*\. For logits use {advice}$"):
        getattr(ours, name)()(x, (x > 0).long(), *mask)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.filterwarnings("ignore:.*ignored softmax=True")
def test_logits_of_one_channel_need_a_sigmoid(name):
    x, mask = torch.randn(2, 1, 6, 6), [torch.ones(2, 1, 6, 6)] if name == "MaskedDiceLoss" else []
    expected = "For logits use sigmoid=True: softmax=True has no effect on one channel, as in MONAI$"
    with pytest.raises(RuntimeError, match=expected):
        getattr(ours, name)(softmax=True)(x, (x > 0).long(), *mask)


def test_masks_must_lie_in_0_to_1():
    x, y = logits_and_labels(4, 5)
    for dtype in (torch.uint8, torch.float32):
        masks = (F.one_hot(y.squeeze(1), 3).movedim(-1, 1) * 255).to(dtype)
        for activation in ({"softmax": True}, {"sigmoid": True}):
            with pytest.raises(RuntimeError, match="expected"):
                ours.DiceLoss(**activation)(x, masks)


@pytest.mark.parametrize("softmax", [False, True])
def test_focal_loss_refuses_soft_labels(softmax):
    """With sigmoid, MONAI's focal factor of a soft label is not the mean of those of 0 and 1."""
    x, _ = logits_and_labels(4, 5)
    target = x.softmax(1)
    with pytest.raises(ValueError, match=r"^FocalLoss: expected a target .* of 0 and 1.*Keep monai\.losses\.FocalLoss"):
        ours.FocalLoss(use_softmax=softmax)(x, target)


@pytest.mark.cpu_only
def test_focal_loss_refuses_soft_labels_in_compiled_code():
    x, _ = logits_and_labels(4, 5)
    with pytest.raises(RuntimeError, match="expected 0 and 1"):
        torch.compile(ours.FocalLoss(), backend="aot_eager")(x, x.softmax(1))


@pytest.mark.parametrize("name", ["DiceLoss", "TverskyLoss"])
def test_soft_labels_have_no_class_to_ignore(name):
    """MONAI weighs a voxel by one minus the ignored class's number, and squares the weight in the intersection."""
    x, _ = logits_and_labels(4, 5)
    with pytest.raises(ValueError, match=rf"^{name}: expected a target .* of 0 and 1.*Keep monai\.losses\.{name}"):
        getattr(ours, name)(softmax=True, ignore_index=1)(x, x.softmax(1))


def test_focal_loss_of_a_softmax_refuses_several_classes_in_a_voxel():
    x, _ = logits_and_labels(4, 5)
    masks = torch.zeros_like(x)
    masks[1, :2, 2, 3] = 1
    expected = (
        "FocalLoss: expected masks of 0 and 1 with at most one 1 in each voxel for use_softmax=True, got [1, 1, 0] at "
        "index [1, 2, 3]. Keep monai.losses.FocalLoss for several classes in a voxel"
    )
    for dtype in (torch.uint8, torch.bool, torch.float32):
        with pytest.raises(ValueError, match=rf"^{re.escape(expected)}$"):
            ours.FocalLoss(use_softmax=True)(x, masks.to(dtype))


def test_focal_loss_of_a_softmax_refuses_a_mask_of_other_integers():
    x, _ = logits_and_labels(4, 5)
    masks = torch.zeros(x.shape, dtype=torch.uint8)
    masks[1, 0, 2, 3] = 255
    with pytest.raises(ValueError, match=r"expected masks of 0 and 1 .* got \[255, 0, 0\] at index \[1, 2, 3\]"):
        ours.FocalLoss(use_softmax=True)(x, masks)


@pytest.mark.filterwarnings("ignore:single channel", "ignore:FocalLoss")
@pytest.mark.parametrize(("num_classes", "include_background"), [(1, True), (1, False), (2, False)])
def test_focal_loss_of_a_softmax_over_one_class_is_refused_as_monais_is_always_0(num_classes, include_background):
    x, y = logits_and_labels(4, 5, num_classes=num_classes)
    options = {"use_softmax": True, "to_onehot_y": True, "include_background": include_background}
    assert theirs.FocalLoss(**options)(x, y) == 0
    with pytest.raises(ValueError, match="FocalLoss: expected several classes with use_softmax=True, got one"):
        ours.FocalLoss(**options)(x, y)


def test_monai_ignores_a_single_alpha_without_background_with_a_warning():
    x, y = logits_and_labels(4, 5)
    options = LABELLED["FocalLoss"] | {"alpha": 0.25, "include_background": False}
    with pytest.warns(UserWarning, match="alpha"):
        expected = theirs.FocalLoss(**options)(x, y)
    with pytest.warns(UserWarning, match="^FocalLoss: a single alpha is ignored"):
        assert_close(ours.FocalLoss(**options)(x, y), expected)


def test_a_term_of_0_divided_by_0_is_0():
    x, y = torch.zeros(1, 1, 4, 5), torch.zeros(1, 1, 4, 5)
    for name in ("DiceLoss", "TverskyLoss"):
        options = {"smooth_nr": 0, "smooth_dr": 0}
        assert getattr(theirs, name)(**options)(x, y).isnan()
        assert getattr(ours, name)(**options)(x, y) == 0


def test_generalized_dice_without_any_voxel_is_monais_constant():
    x, y = logits_and_labels(4, 5)
    x, y = x.requires_grad_(), y.clone()
    y[0] = 0
    options = {"include_background": False, "smooth_nr": 0.1, "smooth_dr": 0.4, "reduction": "none"}
    loss = ours.GeneralizedDiceLoss(softmax=True, **options)(x, y)
    assert_close(loss, theirs.GeneralizedDiceLoss(softmax=True, to_onehot_y=True, **options)(x, y))
    assert_close(loss[0].squeeze(), torch.tensor(1 - 0.1 / 0.4))
    assert torch.autograd.grad(loss[0].sum(), x)[0].count_nonzero() == 0


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"softmax": True}, "softmax=True"),
        ({"to_onehot_y": True}, "to_onehot_y=True"),
        ({"include_background": False}, "include_background=False"),
        ({"softmax": True, "to_onehot_y": True}, "softmax=True, to_onehot_y=True"),
    ],
)
def test_what_one_channel_does_without_is_named_in_a_warning(options, names):
    p, y = torch.rand(2, 1, 4, 5), torch.randint(2, (2, 1, 4, 5))
    with pytest.warns(UserWarning, match=f"^DiceLoss: ignored {names}, as input .* has one channel"):
        loss = ours.DiceLoss(**options)(p, y)
    assert_close(loss, theirs.DiceLoss()(p, y))


@pytest.mark.parametrize("name", ["DiceLoss", "DiceCELoss", "DiceFocalLoss", "DeepSupervisionLoss"])
def test_a_warning_is_at_the_line_that_calls_the_loss(name):
    p, y = torch.rand(2, 1, 4, 5), torch.randint(2, (2, 1, 4, 5))
    is_outer = name == "DeepSupervisionLoss"
    loss = ours.DeepSupervisionLoss(ours.DiceLoss(softmax=True)) if is_outer else getattr(ours, name)(softmax=True)
    with pytest.warns(UserWarning, match="ignored softmax=True") as warned:
        line, _ = inspect.currentframe().f_lineno, loss([p] if is_outer else p, y)
    assert [(each.filename, each.lineno) for each in warned] == [(__file__, line)]


def test_masked_dice_without_a_mask_warns():
    x, y = logits_and_labels(4, 5)
    with pytest.warns(UserWarning, match="^MaskedDiceLoss: got no mask"):
        assert_close(ours.MaskedDiceLoss(softmax=True)(x, y), ours.DiceLoss(softmax=True)(x, y))


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 1, 4, 5), (2, 3, 4, 5)])
def test_a_mask_of_another_shape_is_refused(shape):
    x, y = logits_and_labels(4, 5)
    with pytest.raises(ValueError, match="MaskedDiceLoss: expected a mask"):
        ours.MaskedDiceLoss(softmax=True)(x, y, torch.ones(shape))


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 3, 4, dtype=torch.long)])
def test_input_must_be_floating_with_classes(bad):
    with pytest.raises(ValueError, match=r"^DiceLoss: expected floating input \[N, C, ...\]"):
        ours.DiceLoss(sigmoid=True)(bad, bad)


# ---- deep supervision ------------------------------------------------------------------------------------------------


def levels(count: int, *sizes: int) -> list[Tensor]:
    return [torch.randn(2, 3, *(-(-size // 2**level) for size in sizes), requires_grad=True) for level in range(count)]


@pytest.mark.parametrize("sizes", [(12, 8), (13, 7), (9, 12, 5)])
@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {}),
        (6, {}),
        (3, {"weight_mode": "same"}),
        (3, {"weight_mode": "two"}),
        (3, {"weights": [0.5, 0.0, 2.0]}),
        (2, {"weights": [0.5, 0.3, 2.0]}),
        (3, {"weights": [0.5, 0.3]}),
    ],
)
def test_deep_supervision_is_monais(sizes, count, options):
    xs, y = levels(count, *sizes), torch.randint(3, (2, 1, *sizes)).float()
    inner = LABELLED["DiceCELoss"]
    value, expected = (
        package.DeepSupervisionLoss(package.DiceCELoss(**inner), **options)(xs, y) for package in (ours, theirs)
    )
    assert_close(value, expected)
    gradients = [torch.autograd.grad(each, xs, allow_unused=True, materialize_grads=True) for each in (value, expected)]
    for actual, gradient in zip(*gradients, strict=True):
        assert_close(actual, gradient)


def test_deep_supervision_takes_labels_of_any_dtype():
    xs, y = levels(3, 13, 7), torch.randint(3, (2, 1, 13, 7))
    loss = ours.DeepSupervisionLoss(ours.DiceLoss(softmax=True))
    expected = loss(xs, y.float())
    for dtype in (torch.uint8, torch.int16, torch.int64):
        assert_close(loss(xs, y.to(dtype)), expected)
        assert_close(loss(xs, y.squeeze(1).to(dtype)), expected)


def test_deep_supervision_takes_a_single_tensor():
    x, y = logits_and_labels(4, 5)
    inner = ours.DiceLoss(softmax=True)
    assert_close(ours.DeepSupervisionLoss(inner, "two", [3.0])(x, y), inner(x, y))


def test_a_resolution_larger_than_the_target_is_refused():
    """MONAI repeats the target's voxels."""
    xs, y = levels(2, 8, 8), torch.randint(3, (2, 1, 4, 4))
    with pytest.raises(ValueError, match="of at least the resolution of each input"):
        ours.DeepSupervisionLoss(ours.DiceLoss(softmax=True))(xs, y)


def test_an_unknown_weight_mode_is_refused():
    """MONAI takes it for "same" without a word."""
    with pytest.raises(ValueError, match="DeepSupervisionLoss: expected weight_mode to be 'same', 'exp' or 'two'"):
        ours.DeepSupervisionLoss(ours.DiceLoss(), "half")


# ---- in a training ---------------------------------------------------------------------------------------------------

TRAINED = {
    "DiceLoss": {**LABELLED["DiceLoss"], "include_background": False, "squared_pred": True},
    "GeneralizedDiceLoss": LABELLED["GeneralizedDiceLoss"],
    "TverskyLoss": {**LABELLED["TverskyLoss"], "alpha": 0.3, "beta": 0.7, "batch": True},
    "FocalLoss": {**LABELLED["FocalLoss"], "weight": [1.0, 2.0, 3.0]},
    "DiceCELoss": {**LABELLED["DiceCELoss"], "label_smoothing": 0.1},
    "DiceFocalLoss": {**LABELLED["DiceFocalLoss"], "lambda_focal": 5.0},
    "GeneralizedDiceFocalLoss": LABELLED["GeneralizedDiceFocalLoss"],
    "MaskedDiceLoss": {"sigmoid": True},
    "DeepSupervisionLoss": {},
}


def losses_of_training(package, name: str, steps: int = 10) -> Tensor:
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    network = UNet(3, 1, 3, channels=(4, 8, 16), strides=(2, 2)).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    inner = package.DiceLoss(**LABELLED["DiceLoss"])
    criterion = package.DeepSupervisionLoss(inner) if name == "DeepSupervisionLoss" else None
    criterion = criterion or getattr(package, name)(**TRAINED[name])
    losses = []
    for _ in range(steps):
        images, labels = torch.randn(2, 1, 8, 8, 8).double(), torch.randint(3, (2, 1, 8, 8, 8)).float()
        output, arguments = network(images), [labels]
        if name == "DeepSupervisionLoss":
            output = [output, F.avg_pool3d(output, 2)]
        elif name == "MaskedDiceLoss":
            arguments = [F.one_hot(labels.squeeze(1).long(), 3).movedim(-1, 1), (images > -1).double()]
        loss = criterion(output, *arguments)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().double())
    return torch.stack(losses)


@pytest.mark.parametrize("name", TRAINED)
def test_each_step_of_a_training_has_monais_loss(name):
    actual, expected = (losses_of_training(package, name) for package in (ours, theirs))
    assert expected.unique().numel() == len(expected)
    assert_close(actual, expected, torch.float32)


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.cpu_only
def test_a_script_of_monai_changes_one_import(monkeypatch, capsys):
    """The example has MONAI's losses before and after; the documentation shows its two imports."""
    before, after = load_example("monai_unet", monkeypatch).main(["--steps", "3", "--size", "16"])
    assert len(before) == 3
    assert_close(torch.tensor(after), torch.tensor(before), torch.float32)
    difference = max(abs(a - b) for a, b in zip(after, before, strict=True))
    assert capsys.readouterr().out.splitlines()[-1] == f"largest difference of the losses: {difference:.1e}"
    imports = [
        f"from {package} import DeepSupervisionLoss, DiceCELoss\n" for package in ("monai.losses", "segloss.monai")
    ]
    for path in ("examples/monai_unet.py", "docs/coming-from/monai.md"):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert all(line in text for line in imports)
