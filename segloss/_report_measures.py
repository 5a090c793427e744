"""What a report keeps of each case: counts and measures of each class and region of a batch."""

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from segloss._labels import read_labels
from segloss._maps import MapOptions, _without_channel
from segloss._report_settings import LESION_METRICS, Row, Settings
from segloss.distance import checked_spacing
from segloss.functional import _check_tensor, _plain
from segloss.lesions import lesion_scores
from segloss.prediction import predict
from segloss.surface import (
    _Distances,
    _Options,
    average,
    largest,
    share_within,
    values_of_classes,
)

OP = "SegmentationReport.update"
Spacing: TypeAlias = tuple[float, ...] | None

_confusion_matrix: Callable[..., Tensor] = torch.ops.segloss.confusion_matrix.default
_IGNORED = 255  # in maps of bytes


@dataclass(frozen=True, slots=True)
class Case:
    """The numbers of one case; two of them can be compared as bytes, as nan has one form here."""

    id: str | int
    voxel_volume: float  # 1 without a spacing
    counts: array  # type: ignore[type-arg]  # int64, true and false positives, false and true negatives of each row
    values: array  # type: ignore[type-arg]  # float64, the measured metrics of each row

    def same_numbers(self, other: "Case") -> bool:
        return (self.voxel_volume, self.counts.tobytes(), self.values.tobytes()) == (
            other.voxel_volume,
            other.counts.tobytes(),
            other.values.tobytes(),
        )

    @staticmethod
    def of(id: str | int, voxel_volume: float, counts: Sequence[int], values: Sequence[float]) -> "Case":
        return Case(id, voxel_volume, array("q", counts), array("d", [math.nan if v != v else v for v in values]))


def measured_cases(
    settings: Settings, ids: Sequence[str | int], prediction: Tensor, labels: Tensor, spacings: Sequence[Spacing]
) -> list[Case]:
    """The numbers of a batch. Steps are multiplied in order of their size, so that that of the axes changes no bit."""
    counts = _counts(settings, prediction, labels)
    values = _values(settings, prediction, labels, spacings)
    return [
        Case.of(
            each,
            math.prod(sorted(spacing or ()), start=1.0),
            counts[n].flatten().tolist(),
            values[n].flatten().tolist(),
        )
        for n, (each, spacing) in enumerate(zip(ids, spacings, strict=True))
    ]


def checked_batch(prediction: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    _check_tensor(OP, "prediction", prediction)
    _check_tensor(OP, "labels", labels)
    prediction, labels = _plain(prediction).detach(), _plain(labels).detach()
    if prediction.dim() < 2 or labels.dim() < 1:
        raise RuntimeError(
            f"{OP}: expected a batch, got prediction {list(prediction.shape)} and labels {list(labels.shape)}. Use "
            "prediction.unsqueeze(0) and labels.unsqueeze(0)"
        )
    return prediction, labels


def checked_spacings(
    settings: Settings, spacing: Any, default: Spacing, prediction: Tensor, labels: Tensor
) -> list[Spacing]:
    """One for each sample: the default, one for all of the batch, or a sequence with one for each."""
    num_samples = prediction.shape[0]
    if hasattr(spacing, "tolist"):
        spacing = spacing.tolist()
    is_of_samples = isinstance(spacing, list | tuple) and any(isinstance(each, list | tuple) for each in spacing)
    given = list(spacing) if is_of_samples else [default if spacing is None else spacing] * num_samples
    if len(given) != num_samples:
        raise ValueError(f"{OP}: expected {num_samples} spacings, one for each sample, got {len(given)}")
    spacings = [checked_spacing(OP, each) for each in given]
    is_logits = prediction.is_floating_point()
    for steps in spacings:
        if steps is None:
            continue
        num_axes = prediction.dim() - 2 if is_logits else len(steps)
        fits = labels.dim() == num_axes + 1 or (labels.dim() == num_axes + 2 and (is_logits or labels.shape[1] == 1))
        if len(steps) != num_axes or not fits:
            raise ValueError(
                f"{OP}: expected a spacing with one number for each spatial axis, got {list(steps)} for prediction "
                f"{list(prediction.shape)} and labels {list(labels.shape)}"
            )
    _check_no_masks(settings, prediction, labels, spacings)
    return spacings


def _check_no_masks(settings: Settings, prediction: Tensor, labels: Tensor, spacings: Sequence[Spacing]) -> None:
    """One-hot masks of integers would pass for label maps."""
    is_open = any(steps is None or len(steps) != labels.dim() - 1 for steps in spacings)
    looks_like_masks = prediction.dim() > 2 and prediction.shape == labels.shape
    if is_open and not prediction.is_floating_point() and looks_like_masks and labels.shape[1] == settings.num_classes:
        raise ValueError(
            f"{OP}: expected logits or a label map, got {prediction.dtype} prediction {list(prediction.shape)}, which "
            f"may be a mask for each of {settings.num_classes} classes. Use prediction.unsqueeze(1) of a label map, "
            "prediction.argmax(1) of masks"
        )


def _counts(settings: Settings, prediction: Tensor, labels: Tensor) -> Tensor:
    """[N, R, 4] of R rows, from one walk over the voxels."""
    ignore_index, table = read_labels(OP, prediction, labels, 1, settings.labels)
    matrix = _confusion_matrix(
        prediction, labels, settings.num_classes, ignore_index, 1, False, table, 0, True, OP
    ).cpu()
    rows = [_counts_of_row(matrix, row) for row in settings.rows]
    return torch.stack(rows, 1) if rows else matrix.new_zeros(len(matrix), 0, 4)


def _counts_of_row(matrix: Tensor, row: Row) -> Tensor:
    """[N, 4] from matrices [N, C, C], whose rows are classes of the labels."""
    members = list(row.classes)
    of_labels, of_prediction = matrix[:, members].sum((1, 2)), matrix[:, :, members].sum((1, 2))
    tp = matrix[:, members][:, :, members].sum((1, 2))
    fp, fn = of_prediction - tp, of_labels - tp
    return torch.stack([tp, fp, fn, matrix.sum((1, 2)) - tp - fp - fn], 1)


# ---- surfaces and lesions ----


def _values(settings: Settings, prediction: Tensor, labels: Tensor, spacings: Sequence[Spacing]) -> Tensor:
    """[N, R, M] of the R rows and the M metrics that do not follow from counts."""
    num_samples = len(spacings)
    if not settings.measured or num_samples == 0:
        return torch.zeros(num_samples, len(settings.rows), len(settings.measured), dtype=torch.float64, device="cpu")
    predicted, classes = _plain_maps(settings, prediction, labels, spacings[0])
    is_one = len(set(spacings)) == 1
    parts = [slice(None)] if is_one else [slice(n, n + 1) for n in range(num_samples)]
    return torch.cat([_values_of(settings, predicted[part], classes[part], spacings[part][0]) for part in parts])


def _plain_maps(settings: Settings, prediction: Tensor, labels: Tensor, spacing: Spacing) -> tuple[Tensor, Tensor]:
    """Both as label maps [N, *]; of the labels, an ignored voxel is _IGNORED, or -1 where bytes do not suffice."""
    ignore_index, table = read_labels(OP, prediction, labels, 1, settings.labels)
    if prediction.is_floating_point():
        num_axes = prediction.dim() - 2
        if labels.shape == prediction.shape:
            labels = torch.ops.segloss.one_hot_labels(OP, labels, 1)
        prediction = predict(prediction)
    elif spacing is not None:
        num_axes = len(spacing)
    else:
        num_axes = _axes_of_maps(prediction, labels)
    predicted = _without_channel(OP, "prediction", prediction, num_axes, 1)
    labels = _without_channel(OP, "labels", labels, num_axes, 1)
    if num_axes not in (2, 3):
        raise ValueError(
            f"{OP}: expected two or three spatial axes with surface or lesion metrics, got {num_axes} in prediction "
            f"{list(prediction.shape)} and labels {list(labels.shape)}"
        )
    classes: Tensor = torch.ops.segloss.class_labels(OP, labels, settings.num_classes, ignore_index, table)
    if settings.num_classes <= _IGNORED:
        classes = classes.to(torch.uint8)  # -1 is _IGNORED
        predicted = predicted.long().masked_fill(classes == _IGNORED, 0).to(torch.uint8)
    return predicted.long() if classes.dtype == torch.int64 else predicted, classes


def _axes_of_maps(prediction: Tensor, labels: Tensor) -> int:
    fewer, more = sorted((prediction.dim(), labels.dim()))
    if fewer < more:
        return fewer - 1
    if prediction.shape[1] == labels.shape[1] == 1:
        return fewer - 2
    raise RuntimeError(
        f"{OP}: expected label maps [N, 1, *] with surface or lesion metrics, or spacing, which says how many spatial "
        f"axes there are, got prediction {list(prediction.shape)} and labels {list(labels.shape)}. Use "
        "prediction.unsqueeze(1) and labels.unsqueeze(1) for maps without a channel"
    )


def _values_of(settings: Settings, predicted: Tensor, classes: Tensor, spacing: Spacing) -> Tensor:
    """The measures of all classes at once, then those of each region, whose voxels are class 1 of two."""
    num_classes = settings.num_classes
    limits = [tolerance for _, tolerance in settings.tolerance or ()] or [0.0] * len(settings.rows)
    first = 0 if settings.include_background else 1
    parts = [_measures(settings, predicted, classes, num_classes, first, spacing, limits[: num_classes - first])]
    for row, limit in zip(settings.rows[num_classes - first :], limits[num_classes - first :], strict=True):
        members = torch.tensor(row.classes, device=classes.device)
        region = torch.isin(classes, members.to(classes.dtype)).to(torch.uint8)
        region[classes == (_IGNORED if classes.dtype == torch.uint8 else -1)] = _IGNORED
        found = torch.isin(predicted, members.to(predicted.dtype)).to(torch.uint8)
        parts.append(_measures(settings, found, region, 2, 1, spacing, [limit]))
    return torch.cat(parts, 1)


def _measures(
    settings: Settings,
    predicted: Tensor,
    classes: Tensor,
    num_classes: int,
    first: int,
    spacing: Spacing,
    limits: list[float],
) -> Tensor:
    """[N, C, M] of label maps without a channel."""
    ignored = _IGNORED if classes.dtype == torch.uint8 else -1
    predicted, classes = predicted.unsqueeze(1), classes.unsqueeze(1)
    found: list[Tensor] = []
    if settings.surface_metrics:
        maps = MapOptions(num_classes, first == 0, ignored, None, dim=1, masks=False, threshold=None)
        options = _Options(settings.surface, spacing, maps)

        def of_class(c: int, surfaces: list[_Distances]) -> list[float]:
            return [_of_surfaces(name, surfaces, limits[c]) for name in settings.surface_metrics]

        found += values_of_classes(OP, predicted, classes, options, of_class, False, len(settings.surface_metrics))
    if settings.lesion_options is not None:
        scores = lesion_scores(
            predicted,
            classes,
            num_classes,
            spacing=spacing,
            include_background=first == 0,
            ignore_index=ignored,
            **dict(settings.lesion_options),
        )
        found += [getattr(scores, name) for name in LESION_METRICS]
    return torch.stack([each.to("cpu", torch.float64) for each in found], -1)


def _of_surfaces(name: str, surfaces: list[_Distances], tolerance: float) -> float:
    if name == "surface_dice":
        return share_within(surfaces, tolerance)
    if name == "average_surface_distance":
        return average(surfaces[:1])
    if name == "average_symmetric_surface_distance":
        return average(surfaces)
    distance = largest(surfaces, None)
    # A percentile between infinite distances would be nan, and a missed class would be left out of the mean.
    return distance if name == "hausdorff_distance" or math.isinf(distance) else largest(surfaces, 95.0)
