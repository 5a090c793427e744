"""What a report is to measure: the keywords of ``SegmentationReport``, checked, so that two of them can be compared."""

import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from segloss._label_sets import checked_regions
from segloss._labels import IgnoreIndex, LabelMap, LabelOptions, _ignored_labels, read_labels
from segloss.functional import _check_choice, _check_flags, _check_integer
from segloss.lesions import _check_rule
from segloss.surface import Surface, checked_tolerances

OP = "SegmentationReport"
Names: TypeAlias = Sequence[str] | Mapping[int, str]
NamedRegions: TypeAlias = Mapping[str, Collection[int]] | Sequence[Collection[int]]
Tolerance: TypeAlias = float | Sequence[float] | Mapping[str, float]

SURFACE_METRICS = (
    "hausdorff_distance",
    "hausdorff_distance_95",
    "average_surface_distance",
    "average_symmetric_surface_distance",
    "surface_dice",
)
LESION_OPTIONS: dict[str, Any] = {"connectivity": None, "overlap": "any", "dilation": 0, "min_volume": 0.0}
LESION_METRICS = {  # by the names that segloss.lesion_scores has for them
    "precision": "lesion_precision",
    "recall": "lesion_recall",
    "f1": "lesion_f1",
    "dice": "lesion_dice",
    "found": "lesions_found",
    "missed": "lesions_missed",
    "false_alarms": "false_alarms",
}


class Row(NamedTuple):
    """What has results of its own: a class, or a region, a union of classes."""

    name: str
    classes: tuple[int, ...]
    is_region: bool


@dataclass(frozen=True)
class Settings:
    num_classes: int
    names: tuple[str, ...]
    regions: tuple[tuple[str, tuple[int, ...]], ...]
    include_background: bool
    ignore_index: tuple[int, ...]
    label_map: tuple[tuple[int | EllipsisType, int | None], ...] | None
    surface_metrics: tuple[str, ...]
    surface: Surface
    tolerance: tuple[tuple[str, float], ...] | None  # of each row
    lesion_options: tuple[tuple[str, Any], ...] | None  # None: no lesion metrics

    @property
    def rows(self) -> list[Row]:
        return _rows(self.names, self.regions, self.include_background)

    @property
    def measured(self) -> list[str]:
        """The metrics that do not follow from counts."""
        return [*self.surface_metrics, *(LESION_METRICS.values() if self.lesion_options is not None else ())]

    @property
    def labels(self) -> LabelOptions:
        return LabelOptions(self.ignore_index, None if self.label_map is None else dict(self.label_map))

    def keywords(self) -> dict[str, Any]:
        """The keywords that make the same settings, of values that JSON has."""
        label_map = self.label_map
        return {
            "num_classes": self.num_classes,
            "names": list(self.names),
            "regions": {name: list(classes) for name, classes in self.regions},
            "include_background": self.include_background,
            "ignore_index": list(self.ignore_index),
            "label_map": label_map and [[key if isinstance(key, int) else "...", c] for key, c in label_map],
            "surface_metrics": list(self.surface_metrics),
            "surface": self.surface,
            "tolerance": None if self.tolerance is None else dict(self.tolerance),
            "lesion_metrics": False if self.lesion_options is None else dict(self.lesion_options),
        }

    def check_same(self, other: "Settings") -> None:
        mine, theirs = self.keywords(), other.keywords()
        different = [name for name in mine if mine[name] != theirs[name]]
        if different:
            got = "; ".join(f"{name}={mine[name]!r} and {name}={theirs[name]!r}" for name in different)
            raise ValueError(
                f"{OP}: expected reports that measure the same, got {got}. Make both with the same keywords"
            )


def checked_settings(
    num_classes: int,
    names: Names | None,
    regions: NamedRegions | None,
    include_background: bool,
    ignore_index: IgnoreIndex,
    label_map: LabelMap | None,
    surface_metrics: Sequence[str],
    surface: Surface,
    tolerance: Tolerance | None,
    lesion_metrics: bool | Mapping[str, Any],
) -> Settings:
    _check_integer(OP, "num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(
            f"{OP}: expected num_classes of 2 or more, with the background, got {num_classes}. The logits of one "
            "foreground class are two classes for update((logits > 0).long(), labels)"
        )
    _check_flags(OP, include_background=include_background)
    checked_names = _checked_names(int(num_classes), names)
    named_regions = _checked_regions(int(num_classes), regions)
    rows = _rows(checked_names, named_regions, include_background)
    of_rows = [row.name for row in rows]
    if len(set(of_rows)) < len(of_rows):
        raise ValueError(f"{OP}: expected different names of classes and regions, got {of_rows}")
    metrics = _checked_metrics(surface_metrics)
    _check_choice(OP, "surface", surface, ("voxels", "surfels"))
    return Settings(
        int(num_classes),
        checked_names,
        named_regions,
        include_background,
        _ignored_labels(OP, ignore_index),
        _checked_label_map(ignore_index, label_map),
        metrics,
        surface,
        _checked_tolerance(of_rows, metrics, tolerance),
        _checked_lesion_options(lesion_metrics),
    )


def _rows(
    names: tuple[str, ...], regions: tuple[tuple[str, tuple[int, ...]], ...], include_background: bool
) -> list[Row]:
    first = 0 if include_background else 1
    classes = [Row(name, (c,), False) for c, name in enumerate(names)]
    return classes[first:] + [Row(name, members, True) for name, members in regions]


def _checked_names(num_classes: int, names: Names | None) -> tuple[str, ...]:
    if isinstance(names, Mapping):
        unknown = [c for c in names if c not in range(num_classes)]
        if unknown:
            raise ValueError(f"{OP}: expected names of classes 0 to {num_classes - 1}, got one of class {unknown[0]}")
        names = [names.get(c, str(c)) for c in range(num_classes)]
    if names is None:
        return tuple(map(str, range(num_classes)))
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(each, str) for each in names):
        raise TypeError(f"{OP}: expected names to be strings, one for each class, got {reprlib.repr(names)}")
    if len(names) != num_classes:
        raise ValueError(
            f"{OP}: expected {num_classes} names, one for each class from the background on, got {len(names)}: "
            f"{reprlib.repr(list(names))}. A mapping {{class: name}} names some"
        )
    return tuple(names)


def _checked_regions(num_classes: int, regions: NamedRegions | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    if not regions and isinstance(regions, Sequence | Mapping | None):
        return ()
    members = list(regions.values()) if isinstance(regions, Mapping) else regions
    in_order = checked_regions(OP, members, None)
    as_given = [  # the key of a region in nnU-Net's summary keeps the order of its classes
        tuple(map(int, given)) if isinstance(given, Sequence) else ordered
        for given, ordered in zip(members, in_order, strict=True)
    ]
    names = list(regions) if isinstance(regions, Mapping) else [str(each) for each in as_given]
    for name, classes in zip(names, as_given, strict=True):
        if not isinstance(name, str):
            raise TypeError(f"{OP}: expected the names of regions to be strings, got {name!r}")
        if max(classes) >= num_classes:
            raise ValueError(
                f"{OP}: expected regions of classes 0 to {num_classes - 1}, got {classes} for {name!r}. Give a larger "
                "num_classes"
            )
    return tuple(zip(names, as_given, strict=True))


def _checked_label_map(
    ignore_index: IgnoreIndex, label_map: LabelMap | None
) -> tuple[tuple[int | EllipsisType, int | None], ...] | None:
    if label_map is None:
        return None
    read_labels(OP, None, torch.zeros(0, dtype=torch.int64), 1, LabelOptions(ignore_index, label_map))
    pairs: Iterable[tuple[Any, Any]] = (
        enumerate(label_map.tolist()) if isinstance(label_map, Tensor) else label_map.items()
    )
    integers = [(key if key is ... else int(key), c if c is None else int(c)) for key, c in pairs]
    return tuple(sorted(integers, key=lambda pair: (pair[0] is ..., 0 if pair[0] is ... else pair[0])))


def _checked_metrics(surface_metrics: Sequence[str]) -> tuple[str, ...]:
    if isinstance(surface_metrics, str):
        raise TypeError(
            f"{OP}: expected surface_metrics to be a sequence of names, got {surface_metrics!r}. Use "
            f"({surface_metrics!r},)"
        )
    for name in surface_metrics:
        _check_choice(OP, "each of surface_metrics", name, SURFACE_METRICS)
    return tuple(name for name in SURFACE_METRICS if name in surface_metrics)


def _checked_tolerance(
    rows: list[str], metrics: tuple[str, ...], tolerance: Tolerance | None
) -> tuple[tuple[str, float], ...] | None:
    if ("surface_dice" in metrics) != (tolerance is not None):
        raise ValueError(
            f"{OP}: expected a tolerance, the distance up to which surfaces agree, with surface_dice and only there, "
            f"got tolerance={tolerance} and surface_metrics={metrics}"
        )
    if tolerance is None:
        return None
    if isinstance(tolerance, Mapping):
        if set(tolerance) != set(rows):
            raise ValueError(f"{OP}: expected a tolerance for each of {rows}, got those of {list(tolerance)}")
        tolerance = [tolerance[name] for name in rows]
    numbers = checked_tolerances(OP, tolerance)
    if len(numbers) not in (1, len(rows)):
        raise ValueError(f"{OP}: expected one tolerance, or one for each of {rows}, got {len(numbers)}")
    return tuple(zip(rows, numbers if len(numbers) > 1 else numbers * len(rows), strict=True))


def _checked_lesion_options(lesion_metrics: bool | Mapping[str, Any]) -> tuple[tuple[str, Any], ...] | None:
    if isinstance(lesion_metrics, Mapping):
        for name in lesion_metrics:
            _check_choice(OP, "each key of lesion_metrics", name, tuple(LESION_OPTIONS))
        _check_rule(OP, **LESION_OPTIONS | dict(lesion_metrics))
        return tuple(sorted(lesion_metrics.items()))
    _check_flags(OP, lesion_metrics=lesion_metrics)
    return () if lesion_metrics else None
