"""What a target means according to docs/targets.md, and what each loss and metric must give, by slow references.

test_target_table.py and test_target_fuzz.py use it.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import reference
import torch
from torch import Tensor

import segloss

TABLES = (Path(__file__).parent.parent / "docs" / "targets.md").read_text()

SIGNED = [torch.int8, torch.int16, torch.int32, torch.int64]
INTEGER = [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, *SIGNED]
FLOATING = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES = {"integer": INTEGER, "floating": FLOATING, "bool": [torch.bool]}

Call = Callable[..., Any]


def table(title: str) -> list[dict[str, str]]:
    """The first table below a title: a dictionary for each row, with the columns as keys."""
    lines = TABLES.split(f"## {title}\n\n")[1].split("\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


LOSS_ROWS, METRIC_ROWS = table("Losses"), table("Metrics")
CROSS_ENTROPY, LABELS_ONLY, DICE, DICE_FOCAL, SIGMOID = list(LOSS_ROWS[0])[3:]


# ---- the functions of each column, and their references ----


def multi_class_dice(x: Tensor, target: Tensor, ignore_index: int = -100, **options: Any) -> Tensor:
    return segloss.MultiClassDiceLoss(ignore_index=ignore_index)(x, target, **options)


def deep_supervision(x: Tensor, target: Tensor, voxel_weight: Tensor | None = None, **options: Any) -> Tensor:
    return segloss.DeepSupervisionLoss(segloss.DiceCELoss(**options))([x], target, voxel_weight)


def intersection(x: Tensor, target: Tensor, **options: Any) -> Tensor:
    return segloss.soft_stats(x, target, **options).intersection


def reference_intersection(x: Tensor, target: Tensor, **options: Any) -> Tensor:
    return reference.soft_stats(x, target, **options)[0]


REGION: dict[str, tuple[Call, Call]] = {
    "dice_loss": (segloss.dice_loss, reference.dice_loss),
    "generalized_dice_loss": (segloss.generalized_dice_loss, reference.generalized_dice_loss),
    "tversky_loss": (segloss.tversky_loss, reference.tversky_loss),
    "soft_stats": (intersection, reference_intersection),
}
COMPOUND: dict[str, tuple[Call, Call]] = {
    "dice_ce_loss": (segloss.dice_ce_loss, reference.dice_ce_loss),
    "DeepSupervisionLoss": (deep_supervision, reference.dice_ce_loss),
}
OF_DISTANCES: dict[str, tuple[Call, Call]] = {
    "boundary_loss": (segloss.boundary_loss, reference.boundary_loss),
    "hausdorff_dt_loss": (segloss.hausdorff_dt_loss, reference.hausdorff_dt_loss),
}
OF_SKELETONS: dict[str, tuple[Call, Call]] = {
    "soft_cldice_loss": (segloss.soft_cldice_loss, reference.soft_cldice_loss),
    "dice_cldice_loss": (segloss.dice_cldice_loss, reference.dice_cldice_loss),
}
OF_DICE_FOCAL = (segloss.dice_focal_loss, reference.dice_focal_loss)
OF_FOCAL = (segloss.focal_loss, reference.focal_loss)
OF_BINARY = (
    segloss.binary_cross_entropy_with_logits,
    partial(reference.focal_loss, gamma=0.0, activation="sigmoid"),
)


def with_activation(functions: dict[str, tuple[Call, Call]], activation: str | None) -> dict[str, tuple[Call, Call]]:
    return {
        f"{name}, {activation}": (partial(call, activation=activation), partial(slow, activation=activation))
        for name, (call, slow) in functions.items()
    }


LOSSES: dict[str, dict[str, tuple[Call, Call]]] = {
    CROSS_ENTROPY: {
        "cross_entropy": (segloss.cross_entropy, reference.cross_entropy),
        "nll_loss": (segloss.nll_loss, reference.nll_loss),
    },
    LABELS_ONLY: {"topk_loss": (segloss.topk_loss, reference.topk_loss), "focal_loss": OF_FOCAL},
    DICE: {
        **REGION,
        **COMPOUND,
        **OF_SKELETONS,
        "MultiClassDiceLoss": (multi_class_dice, partial(reference.dice_loss, smooth_nr=1.0, smooth_dr=1.0)),
    },
    DICE_FOCAL: {"dice_focal_loss": OF_DICE_FOCAL, **OF_DISTANCES},
    SIGMOID: {
        **with_activation({**REGION, **OF_DISTANCES, **OF_SKELETONS}, None),
        "binary_cross_entropy_with_logits": OF_BINARY,
        **with_activation(
            {
                **REGION,
                **COMPOUND,
                **OF_DISTANCES,
                **OF_SKELETONS,
                "dice_focal_loss": OF_DICE_FOCAL,
                "focal_loss": OF_FOCAL,
            },
            "sigmoid",
        ),
    },
}
EVERY_LOSS = [(column, name) for column, functions in LOSSES.items() for name in functions]


# ---- what a target means, and whether its values fit ----


class Refused(Exception):
    """Raised where segloss must raise an error of one of these classes."""

    def __init__(self, *classes: type[Exception]) -> None:
        super().__init__(classes)
        self.classes = classes


def fits(target: Tensor, x: Tensor) -> bool:
    try:
        shape_of(target, x)
    except Refused:
        return False
    return True


def shape_of(target: Tensor, x: Tensor) -> str:
    """Which of the table's shapes a target has, with the classes in dimension 1."""
    batch, num_classes, *spatial = x.shape
    shapes = {
        "`[N,*]`": [batch, *spatial],
        "`[N,1,*]`": [batch, 1, *spatial],
        "`[N,C,*]`": [batch, num_classes, *spatial],
    }
    for name, shape in shapes.items():
        if list(target.shape) == shape:
            return name
    raise Refused(ValueError, RuntimeError)


def meaning_of(column: str, x: Tensor, target: Tensor) -> str:
    channels = "1" if x.shape[1] == 1 else "more"
    kind = "floating" if target.is_floating_point() else "integer"
    key = (channels, shape_of(target, x), kind)
    (row,) = (row for row in LOSS_ROWS if (row["C"], row["target"], row["dtype"]) == key)
    return row[column]


def are_probabilities(values: Tensor, computed_in: torch.dtype, any_finite: bool) -> Tensor:
    """Where values are in [0, 1], up to the rounding of their dtype; with `any_finite`, as for soft_stats, finite."""
    slack = 4 * torch.finfo(values.dtype).eps
    rounded = values.to(computed_in)
    if any_finite:
        return rounded.isfinite()
    low, high = torch.tensor([-slack, 1 + slack], dtype=torch.float64).to(computed_in)
    return (rounded >= low) & (rounded <= high)


def is_of_distances(name: str) -> bool:
    return name.partition(",")[0] in OF_DISTANCES


def are_hard(values: Tensor) -> Tensor:
    """Where values are 0 or 1."""
    return (values == 0) | (values == 1)


def is_one_hot(values: Tensor) -> bool:
    """Whether the values are one-hot along dimension 1."""
    numbers = values if values.is_floating_point() else values.to(torch.int64)
    return bool(((numbers == 0) | (numbers == 1)).all()) and bool((numbers.sum(1) == 1).all())


def canonical(meaning: str, x: Tensor, target: Tensor, ignore_index: int, are_some: Call, weightless: Tensor) -> Tensor:
    """The target as int64 labels [N, *], masks or probabilities [N, C, *]; raises Refused if a value does not fit.

    `are_some` says which values are probabilities, `weightless` which voxels [N, *] have no weight.
    """
    if meaning == "error":
        raise Refused(ValueError, RuntimeError)
    if meaning == "labels":
        return canonical_labels(target, x.shape[1], ignore_index).reshape(x[:, 0].shape)
    if meaning == "one-hot":
        if not is_one_hot(target):
            raise Refused(RuntimeError)
        labels = target.to(torch.int64).argmax(1)
        return labels.masked_fill(labels == ignore_index, -100)
    values = target.reshape(x.shape)
    if target.is_floating_point():
        weightless = weightless.unsqueeze(1)
        if ignore_index >= 0 or not (are_some(values) | weightless).all():
            raise Refused(RuntimeError)
        return values.double().masked_fill(weightless, 0)
    if ignore_index in (0, 1) or any(value not in (0, 1, ignore_index) for value in values.flatten().tolist()):
        raise Refused(RuntimeError)
    return values.to(torch.int64)


def canonical_labels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    values = target.flatten().tolist()  # Python's numbers compare exactly
    if any(
        isinstance(value, float) and (value != value or value % 1 != 0) for value in values if not math.isinf(value)
    ):
        raise Refused(RuntimeError)
    if any(value != ignore_index and not 0 <= value < num_classes for value in values):
        raise Refused(IndexError)
    return torch.tensor([-100 if value == ignore_index else int(value) for value in values], dtype=torch.int64)


# ---- the input and the expected value of a call ----


def logits_for(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random logits, or (log-)probabilities for a loss that takes those."""
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    return x.sigmoid() if name.endswith("None") else x.log_softmax(1) if name == "nll_loss" else x


def expected_of(
    column: str, name: str, x: Tensor, target: Tensor, ignore_index: int = -100, voxel_weight: Tensor | None = None
) -> Tensor:
    """The reference's value; raises Refused where the call must raise."""
    positions = x[:, 0]
    weightless = torch.zeros(positions.shape, dtype=torch.bool)
    if voxel_weight is not None:
        weightless = voxel_weight.reshape(positions.shape) == 0
    meaning = meaning_of(column, x, target)
    dtypes = (x.dtype, target.dtype) if column == CROSS_ENTROPY else (x.dtype,)  # it promotes dtypes, as torch does
    computed_in = torch.float64 if torch.float64 in dtypes else torch.float32
    are_some = partial(are_probabilities, computed_in=computed_in, any_finite=name.startswith("soft_stats"))
    if is_of_distances(name):  # soft masks have no boundary, and masks are read where voxels have no weight, too
        are_some, weightless = are_hard, torch.zeros_like(weightless)
    if x.dim() == 2 and (is_of_distances(name) or name.partition(",")[0] in OF_SKELETONS):
        raise Refused(ValueError, RuntimeError, IndexError)
    values = canonical(meaning, x, target, ignore_index, are_some, weightless)
    ignored = -100 if meaning in ("labels", "one-hot") else ignore_index
    _, slow = LOSSES[column][name]
    return slow(x, values, ignore_index=ignored, voxel_weight=voxel_weight)


# ---- metrics ----

METRICS: dict[str, Call] = {
    name: getattr(segloss, name) for name in ("accuracy", "confusion_matrix", "dice_score", "jaccard_index")
}


def scores(name: str, pairs: list[tuple[int, int]], num_classes: int) -> Tensor:
    """The metric from (label, prediction) of every voxel that counts."""
    labels, predictions = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    if name == "accuracy":
        return (labels == predictions).double().mean()
    if name == "confusion_matrix":
        matrix = reference.confusion_matrix(predictions, labels, num_classes, -(2**62), dim=0)
        return torch.tensor(matrix).reshape(num_classes, num_classes)
    return torch.tensor(getattr(reference, name)(predictions, labels, num_classes, -(2**62), dim=0))


def mask_scores(name: str, predicted: Tensor, masks: Tensor, ignore_index: int) -> Tensor:
    """The metric of each class, from masks [N, C, *]."""
    if ignore_index in (0, 1):
        raise Refused(RuntimeError)
    valid = torch.tensor([value != ignore_index for value in masks.flatten().tolist()]).reshape(masks.shape).all(1)
    if any(value not in (0, 1, ignore_index) for value in masks.flatten().tolist()):
        raise Refused(RuntimeError)
    per_class = []
    for p, t in zip(predicted.unbind(1), masks.unbind(1), strict=True):
        p, t = p[valid], t[valid]
        if any(value not in (0, 1) for value in p.flatten().tolist()):
            raise Refused(RuntimeError)
        p, t = p == 1, t == 1
        both, either = int((p & t).sum()), int((p | t).sum())
        quotients = {
            "accuracy": (int((p == t).sum()), p.numel()),
            "dice_score": (2 * both, both + either),
            "jaccard_index": (both, either),
        }
        above, below = quotients[name]
        per_class.append(above / below if below else math.nan)
    return torch.tensor(per_class)


def as_masks(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as masks [N, C, *]; a map with a class dimension of size 1, or without one, is the mask of one class."""
    if input.shape == target.shape and input.dim() > 1:
        return input, target
    return with_channel(input, target), with_channel(target, input)


def with_channel(tensor: Tensor, other: Tensor) -> Tensor:
    return tensor if tensor.dim() > other.dim() else tensor.unsqueeze(1)


def expected_of_metric(
    name: str, input: Tensor, target: Tensor, num_classes: int | None, ignore_index: int, masks: bool
) -> Tensor:
    """The slow score, with the classes in dimension 1; raises Refused where the call must raise."""
    if masks:
        if input.is_floating_point():
            raise Refused(TypeError)
        predicted, truth = as_masks(input, target)
        if predicted.shape != truth.shape:
            raise Refused(RuntimeError, ValueError)
        if num_classes not in (None, predicted.shape[1]):
            raise Refused(ValueError)
        return mask_scores(name, predicted, truth, ignore_index)
    if input.is_floating_point():
        return score_of_logits(name, input, target, num_classes, ignore_index)
    return score_of_maps(name, input, target, num_classes, ignore_index)


def score_of_logits(name: str, x: Tensor, target: Tensor, num_classes: int | None, ignore_index: int) -> Tensor:
    if x.shape[1] == 1:
        raise Refused(RuntimeError)
    what = "one-hot" if shape_of(target, x) == "`[N,C,*]`" else "labels"
    if num_classes not in (None, x.shape[1]):
        raise Refused(ValueError)
    labels = canonical(what, x, target, ignore_index, are_probabilities, torch.tensor(False))
    return scores(name, reference.label_pairs(x, labels, -100), x.shape[1])


def score_of_maps(name: str, input: Tensor, target: Tensor, num_classes: int | None, ignore_index: int) -> Tensor:
    if abs(input.dim() - target.dim()) == 1:
        wide = input if input.dim() > target.dim() else target
        if wide.dim() < 2 or wide.shape[1] != 1:
            raise Refused(RuntimeError, ValueError)
    elif input.shape != target.shape:
        raise Refused(RuntimeError, ValueError)
    elif num_classes is None and input.dim() > 1 and input.shape[1] > 1:
        both_are_bool = input.dtype == target.dtype == torch.bool
        if both_are_bool or (is_one_hot(input) and is_one_hot(target)):
            raise Refused(RuntimeError)
    if input.numel() != target.numel():
        raise Refused(RuntimeError, ValueError)
    truth, predictions = target.flatten().tolist(), input.flatten().tolist()
    pairs = [(t, int(p)) for t, p in zip(truth, predictions, strict=True) if t != ignore_index]
    if any(isinstance(t, float) and not math.isinf(t) and (t != t or t % 1 != 0) for t, _ in pairs):
        raise Refused(RuntimeError)
    if name == "accuracy" and num_classes is None:
        return torch.tensor(sum(t == p for t, p in pairs) / len(pairs) if pairs else math.nan)
    largest = 2**31 - 1 if num_classes is None else num_classes
    if any(not 0 <= label < largest for pair in pairs for label in pair):
        raise Refused(IndexError)
    found = 1 + max((int(label) for pair in pairs for label in pair), default=-1)
    if num_classes is None and found * (found if name == "confusion_matrix" else 3) > 2**24:
        raise Refused(RuntimeError)
    return scores(name, [(int(t), p) for t, p in pairs], found if num_classes is None else num_classes)
