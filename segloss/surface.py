"""Metrics of surfaces: how far the boundary of a prediction is from that of the labels."""

import math
import reprlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from segloss import _surfels
from segloss._docs import documented
from segloss._labels import IgnoreIndex, LabelMap
from segloss._maps import MapOptions, Maps, read_maps
from segloss.functional import (
    _check_choice,
    _check_flags,
    _check_numbers,
)
from segloss.metrics import confusion_matrix

Surface: TypeAlias = Literal["voxels", "surfels"]

_distances: Callable[..., tuple[list[Tensor], list[Tensor], Tensor]] = torch.ops.segloss.surface_distances.default


@documented(like=confusion_matrix)
def hausdorff_distance(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    percentile: float | None = None,
    directed: bool = False,
    surface: Surface = "voxels",
    spacing: Sequence[float] | None = None,
    include_background: bool = True,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
    dim: int = 1,
    masks: bool = False,
    threshold: float | None = None,
) -> Tensor:
    """Hausdorff distance of each sample and class: the largest distance between two surfaces, or a percentile of them.

    With the surfaces P of the prediction and T of the labels, and d(a, S) the distance of a to the nearest element of
    S::

        distance = max(max_{p in P} d(p, T), max_{t in T} d(t, P))        (directed: the first of the two)

    Source: Huttenlocher et al. 1993, "Comparing Images Using the Hausdorff Distance", IEEE TPAMI 15. The 95th
    percentile in place of the maximum is often called HD95.

    Published numbers differ by what a surface is, so say which one yours have. For a square of 10x10 pixels that is
    predicted with a spur of 1x3, HD95 is 1.15 for ``"voxels"`` and 2 for ``"surfels"``.

    Args:
        input: logits ``[N, C, *]`` of two or more classes, of which the largest is predicted, or a map of predicted
            labels ``[N, *]`` or ``[N, 1, *]`` (integer or bool). There are two or three spatial axes. Of two label maps
            with as many dimensions, ``spacing`` says whether dimension ``dim`` is an axis; without it, it must be of
            size 1 and is none.
        target: labels ``[N, *]`` or ``[N, 1, *]``, as in ``segloss.confusion_matrix``.
        percentile: of the distances of each surface, in (0, 100], of which the larger one is the result. Of voxels it
            is interpolated linearly, as by numpy and MONAI; of surfels it is the smallest distance at which the share
            of the area is reached, as in surface-distance. Default: None, the maximum.
        directed: whether to measure from the prediction to the labels only.
        surface: ``"voxels"``, those of the mask with a face neighbour outside it or at the border of the image, as in
            MONAI; or ``"surfels"``, the pieces of surface between voxels, one for each neighbourhood of 2x2x2 voxels
            (2x2) that is not uniform, weighted by their area (length), as in DeepMind's surface-distance. A
            neighbourhood with an ignored voxel has none.
        spacing: the distance of voxels along each spatial axis, one number for each. Default: None, all are 1.
        include_background: whether class 0 has a result.
        masks: whether input and target are masks of 0 and 1, one for each class, ``[N, C, *]`` with the classes in
            ``dim``. A voxel whose target is ``ignore_index`` in any class is ignored in all.
        others: as in ``segloss.confusion_matrix``.

    Returns:
        A tensor ``[N, C]`` of torch's default dtype, without background ``[N, C - 1]``. For a class that one of the two
        lacks it is inf, of voxels with ``percentile`` nan, as in MONAI; nan if both lack it, also of surfels, where
        surface-distance has inf. Ignored voxels are in no class, and there is no surface between them and others. Has
        no gradient.

    Raises:
        IndexError: a label, or the prediction of a voxel that counts, is outside [0, C).
        ValueError: ``spacing`` has not one positive, finite number for each axis; ``percentile`` is outside (0, 100];
            ``num_classes`` is not the number of classes of input; there are not two or three spatial axes.
        TypeError: as ``segloss.confusion_matrix``.
        RuntimeError: shapes differ, a mask holds another value than 0, 1 or ``ignore_index``, or two label maps leave
            open what dimension ``dim`` is.

    Equivalent to:
        ``monai.metrics.compute_hausdorff_distance`` of one-hot masks, with ``include_background=True``.

    Example:
        >>> import segloss, torch
        >>> labels = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
        >>> labels[..., 2:12, 2:12] = 1
        >>> predicted = labels.clone()
        >>> predicted[..., 6, 12:15] = 1
        >>> segloss.hausdorff_distance(predicted, labels, include_background=False)
        tensor([[3.]])
        >>> segloss.hausdorff_distance(predicted, labels, include_background=False, percentile=95)
        tensor([[1.1500]])
        >>> segloss.hausdorff_distance(predicted, labels, include_background=False, percentile=95, surface="surfels")
        tensor([[2.]])
        >>> segloss.hausdorff_distance(predicted, labels, include_background=False, spacing=(1.0, 0.5))
        tensor([[1.5000]])

    See also:
        * ``segloss.average_surface_distance``: the mean of these distances
        * ``segloss.surface_dice``: the share of the surfaces within a tolerance
        * ``segloss.dice_score``: the overlap of the volumes
    """
    op = "hausdorff_distance"
    if percentile is not None:
        _check_numbers(op, percentile=percentile)
        if not 0 < percentile <= 100:
            raise ValueError(f"{op}: expected percentile in (0, 100], or None for the maximum, got {percentile}")
    _check_flags(op, directed=directed)
    maps = MapOptions(num_classes, include_background, ignore_index, label_map, dim, masks, threshold)
    options = _Options(surface, spacing, maps)

    return _of_classes(op, input, target, options, lambda _, surfaces: largest(surfaces, percentile), directed)


@documented(like=hausdorff_distance)
def average_surface_distance(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    symmetric: bool = False,
    surface: Surface = "voxels",
    spacing: Sequence[float] | None = None,
    include_background: bool = True,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
    dim: int = 1,
    masks: bool = False,
    threshold: float | None = None,
) -> Tensor:
    """Average surface distance of each sample and class, from the prediction to the labels or between both.

    With the surfaces P of the prediction and T of the labels, d(a, S) the distance of a to the nearest element of S,
    and w the area of a surfel, or 1 for voxels::

        distance = sum_{p in P} w(p) d(p, T) / sum_{p in P} w(p)        (symmetric: over P and T together)

    Source: Heimann et al. 2009, "Comparison and Evaluation of Methods for Liver Segmentation From CT Datasets", IEEE
    TMI 28, for the symmetric one (ASSD).

    Published numbers differ by what a surface is, so say which one yours have. For a square of 10x10 pixels that is
    predicted with a spur of 1x3, the symmetric distance is 0.095 for ``"voxels"`` and 0.124 for ``"surfels"``.

    Args:
        symmetric: whether to average over the elements of both surfaces. Those of the larger one weigh more.
        others: as in ``segloss.hausdorff_distance``.

    Returns:
        A tensor ``[N, C]`` of torch's default dtype, without background ``[N, C - 1]``. It is inf for a class that one
        of the two lacks, nan if both lack it. Sums are float64. Has no gradient.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.hausdorff_distance``.

    Equivalent to:
        ``monai.metrics.compute_average_surface_distance`` of one-hot masks, with ``include_background=True``.

    Example:
        >>> import segloss, torch
        >>> labels = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
        >>> labels[..., 2:12, 2:12] = 1
        >>> predicted = labels.clone()
        >>> predicted[..., 6, 12:15] = 1
        >>> segloss.average_surface_distance(predicted, labels, include_background=False, symmetric=True)
        tensor([[0.0946]])

    See also:
        * ``segloss.hausdorff_distance``: the largest of these distances
        * ``segloss.surface_dice``: the share of the surfaces within a tolerance
    """
    op = "average_surface_distance"
    _check_flags(op, symmetric=symmetric)
    maps = MapOptions(num_classes, include_background, ignore_index, label_map, dim, masks, threshold)
    options = _Options(surface, spacing, maps)

    return _of_classes(op, input, target, options, lambda _, surfaces: average(surfaces), not symmetric)


@documented(like=hausdorff_distance)
def surface_dice(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    tolerance: float | Sequence[float],
    surface: Surface = "voxels",
    spacing: Sequence[float] | None = None,
    include_background: bool = True,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
    dim: int = 1,
    masks: bool = False,
    threshold: float | None = None,
) -> Tensor:
    """Surface Dice of each sample and class, also called normalized surface distance (NSD).

    With the surfaces P of the prediction and T of the labels, d(a, S) the distance of a to the nearest element of S,
    and w the area of a surfel, or 1 for voxels::

        score = (sum_{p in P, d(p, T) <= tolerance} w(p) + sum_{t in T, d(t, P) <= tolerance} w(t))
                / (sum_{p in P} w(p) + sum_{t in T} w(t))

    Source: Nikolov et al. 2018, "Deep learning to achieve clinically applicable segmentation of head and neck anatomy
    for radiotherapy", https://arxiv.org/abs/1809.04430, whose surfaces are ``"surfels"``.

    Published numbers differ by what a surface is, so say which one yours have. For a square of 10x10 pixels that is
    predicted with a spur of 1x3, and a tolerance of 1, the score is 0.973 for ``"voxels"`` and 0.959 for ``"surfels"``.

    Args:
        tolerance: the distance up to which surfaces agree, or one for each class that has a result.
        others: as in ``segloss.hausdorff_distance``.

    Returns:
        A tensor ``[N, C]`` of torch's default dtype, without background ``[N, C - 1]``. It is 0 for a class that one of
        the two lacks, nan if both lack it. Sums are float64. Has no gradient.

    Raises:
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.hausdorff_distance``.
        ValueError: ``tolerance`` is negative or not finite, or is not one number for each class.

    Equivalent to:
        ``monai.metrics.compute_surface_dice`` of one-hot masks, with ``include_background=True``; with
        ``surface="surfels"`` ``surface_distance.compute_surface_dice_at_tolerance`` of each mask.

    Example:
        >>> import segloss, torch
        >>> labels = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
        >>> labels[..., 2:12, 2:12] = 1
        >>> predicted = labels.clone()
        >>> predicted[..., 6, 12:15] = 1
        >>> segloss.surface_dice(predicted, labels, include_background=False, tolerance=1)
        tensor([[0.9730]])
        >>> segloss.surface_dice(predicted, labels, include_background=False, tolerance=1, surface="surfels")
        tensor([[0.9586]])

    See also:
        * ``segloss.hausdorff_distance``, ``segloss.average_surface_distance``: distances of the same surfaces
        * ``segloss.dice_score``: the overlap of the volumes
    """
    op = "surface_dice"
    maps = MapOptions(num_classes, include_background, ignore_index, label_map, dim, masks, threshold)
    options = _Options(surface, spacing, maps)

    def of_class(c: int, surfaces: "list[_Distances]") -> float:
        return share_within(surfaces, tolerances[c] if len(tolerances) > 1 else tolerances[0])

    tolerances = checked_tolerances(op, tolerance)
    return _of_classes(op, input, target, options, of_class, False, len(tolerances))


class _Options(NamedTuple):
    """The keywords that the metrics share, as the caller gave them."""

    surface: Surface
    spacing: Sequence[float] | None
    maps: MapOptions


class _Distances(NamedTuple):
    """Of each element of a surface, the distance to the other surface; and the area of surfels."""

    values: Tensor  # float64
    areas: Tensor | None

    def measure(self) -> float:
        return self.values.numel() if self.areas is None else _sum(self.areas)

    def within(self, tolerance: float) -> float:
        if self.areas is not None:
            return _sum(self.areas[self.values <= tolerance])
        return int((self.values.float() <= tolerance).sum())  # so that 3 steps of 0.1 are within 0.3


def _of_classes(
    op: str,
    input: Tensor,
    target: Tensor,
    options: _Options,
    of_class: Callable[[int, list[_Distances]], float],
    directed: bool,
    num_tolerances: int = 1,
) -> Tensor:
    """of_class() of each sample and class, [N, C]."""

    def values_of_class(c: int, surfaces: list[_Distances]) -> list[float]:
        return [of_class(c, surfaces)]

    (values,) = values_of_classes(op, input, target, options, values_of_class, directed, 1, num_tolerances)
    return values.to(torch.get_default_dtype()).to(input.device)


def values_of_classes(
    op: str,
    input: Tensor,
    target: Tensor,
    options: _Options,
    values_of_class: Callable[[int, list[_Distances]], list[float]],
    directed: bool,
    num_values: int,
    num_tolerances: int = 1,
) -> list[Tensor]:
    """The values of each sample and class as float64 tensors [N, C], from one search of the surfaces."""
    _check_choice(op, "surface", options.surface, ("voxels", "surfels"))
    groups, spacing = read_maps(op, input, target, options.maps, options.spacing)
    num_classes = sum(maps.shape[1] for maps in groups)
    if num_tolerances not in (1, num_classes):
        raise ValueError(
            f"{op}: expected one tolerance, or one for each of the {num_classes} classes that have a result, got "
            f"{num_tolerances}"
        )
    areas = _surfels.measures(spacing) if options.surface == "surfels" else None
    columns: list[Tensor] = []
    for maps in groups:
        first = sum(column.shape[1] for column in columns)
        values = [
            values_of_class(first + k % maps.shape[1], surfaces)
            for k, surfaces in enumerate(_surfaces(maps, spacing, areas, directed))
        ]
        columns.append(torch.tensor(values, dtype=torch.float64).view(*maps.shape, num_values))
    return list(torch.cat(columns, 1).unbind(-1))


def _surfaces(maps: Maps, spacing: tuple[float, ...], areas: Tensor | None, directed: bool) -> list[list[_Distances]]:
    """Of each sample and class the distances from the prediction, and those from the target unless directed."""
    predicted, target = (
        (each if len(spacing) == 3 else each.unsqueeze(1)).cpu().contiguous() for each in (maps.predicted, maps.target)
    )
    limits = (maps.classes.start, maps.classes.stop, maps.ignored)
    values, codes, occurs = _distances(predicted, target, *limits, spacing, areas is not None, not directed)
    if maps.ignored >= 0:
        occurs[1, maps.ignored] = False
    if occurs[:, maps.num_labels :].any():
        maps.check()
    each = [_Distances(v, None if areas is None else areas[c.int()]) for v, c in zip(values, codes, strict=True)]
    return [[one] for one in each] if directed else [list(pair) for pair in zip(each[::2], each[1::2], strict=True)]


# ---- checks ----


def checked_tolerances(op: str, tolerance: float | Sequence[float]) -> list[float]:
    is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    numbers = _numbers([tolerance] if is_number else tolerance)
    if not numbers or not all(0 <= each < math.inf for each in numbers):
        raise ValueError(
            f"{op}: expected tolerance to be a finite number from 0 on, or one for each class, got "
            f"{reprlib.repr(tolerance)}"
        )
    return numbers


def _numbers(values: object) -> list[float] | None:
    """Of a sequence, an array or a tensor; None if it has no numbers."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, list | tuple) or any(isinstance(each, bool | str) for each in values):
        return None
    try:
        return [float(each) for each in values]
    except (TypeError, ValueError):
        return None


# ---- numbers of distances ----


def largest(surfaces: list[_Distances], percentile: float | None) -> float:
    """The largest distance or percentile of the surfaces; nan, where there is one, is the largest."""
    values = [_percentile(each, percentile) for each in surfaces]
    return max(values, key=lambda value: (math.isnan(value), value))


def average(surfaces: list[_Distances]) -> float:
    above = sum(_sum(each.values if each.areas is None else each.values * each.areas) for each in surfaces)
    return _quotient(above, sum(each.measure() for each in surfaces))


def share_within(surfaces: list[_Distances], tolerance: float) -> float:
    return _quotient(sum(each.within(tolerance) for each in surfaces), sum(each.measure() for each in surfaces))


def _percentile(distances: _Distances, percentile: float | None) -> float:
    """nan without distances."""
    values, areas = distances
    n = values.numel()
    if n == 0:
        return math.nan
    if percentile is None:
        return float(values.max())
    if areas is None:
        rank = percentile / 100 * (n - 1)
        low, high = (float(values.kthvalue(min(int(rank) + k, n)).values) for k in (1, 2))
        return low + (rank - int(rank)) * (high - low)  # nan if both are inf
    values, order = values.sort(stable=True)
    shares = areas[order].cumsum(0)
    k = int(torch.searchsorted(shares / shares[-1], percentile / 100))
    return float(values[min(k, n - 1)])


def _sum(values: Tensor) -> float:
    """Added in order: torch's sum depends on the number of threads."""
    return float(values.cumsum(0)[-1]) if values.numel() else 0.0


def _quotient(above: float, below: float) -> float:
    return above / below if below else math.nan
