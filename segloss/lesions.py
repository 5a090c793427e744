"""Scores of lesions: which are found, and how well."""

import itertools
import math
import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from segloss._docs import documented
from segloss._labels import IgnoreIndex, LabelMap
from segloss._maps import MapOptions, Maps, read_maps
from segloss.functional import _check_integer, _check_number
from segloss.surface import hausdorff_distance

Overlap: TypeAlias = Literal["any"] | float

_components: Callable[..., tuple[Tensor, Tensor]] = torch.ops.segloss.connected_components.default
_component_pairs: Callable[..., Tensor] = torch.ops.segloss.component_pairs.default


class Lesion(NamedTuple):
    """A lesion of the target, in the table of ``segloss.lesion_scores``.

    With the predicted components M that match the lesion L::

        dice = 2 |L and M| / (|L| + |M|)
        volume = |L| times the volume of a voxel

    Args:
        sample: its number in the batch.
        class_index: its class, or its mask.
        component: its number among the lesions of its sample and class, from 1 on, in the order of first voxels.
        size: its number of voxels.
        volume: size times the product of ``spacing``.
        dice: its Dice with the predicted components that match it; 0 if it is missed.
        found: whether one matches it.

    Example:
        >>> import segloss, torch
        >>> labels = torch.tensor([[[[1, 1, 0, 1]]]])
        >>> segloss.lesion_scores(labels, labels).lesions[1]
        Lesion(sample=0, class_index=1, component=2, size=1, volume=1.0, dice=1.0, found=True)

    See also:
        * ``segloss.lesion_scores``: makes them
    """

    sample: int
    class_index: int
    component: int
    size: int
    volume: float
    dice: float
    found: bool


class LesionScores(NamedTuple):
    """The result of ``segloss.lesion_scores``. All tensors are ``[N, C]``, without background ``[N, C - 1]``.

    Of counts, which can be added up over samples, come the other scores::

        recall = found / (found + missed)
        f1 = 2 found / (2 found + missed + false_alarms)

    Args:
        precision: the share of predicted components that match a lesion.
        recall: the share of lesions that are found.
        f1: as above.
        dice: the sum of the lesions' Dice / (found + missed + false_alarms); 1 if that is 0.
        found: the number of lesions that are found.
        missed: the number of lesions that are not.
        false_alarms: the number of predicted components that match no lesion.
        lesions: a ``Lesion`` for each lesion, by sample, class and component.

    Example:
        >>> import segloss, torch
        >>> labels = torch.tensor([[[[1, 1, 0, 1]]]])
        >>> scores = segloss.lesion_scores(labels, labels)
        >>> scores.found, scores.f1
        (tensor([[2]]), tensor([[1.]]))

    See also:
        * ``segloss.lesion_scores``: makes them
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor
    dice: Tensor
    found: Tensor
    missed: Tensor
    false_alarms: Tensor
    lesions: tuple[Lesion, ...]


@documented(like=hausdorff_distance)
def lesion_scores(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    connectivity: int | None = None,
    overlap: Overlap = "any",
    dilation: int = 0,
    min_volume: float = 0.0,
    spacing: Sequence[float] | None = None,
    include_background: bool = False,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
    dim: int = 1,
    masks: bool = False,
    threshold: float | None = None,
) -> LesionScores:
    """Detection and Dice of each lesion: the connected components of the target, each counting once, whatever its size.

    Lesions L of a sample and class are components of its labels; predicted components are those of the prediction. A
    component that has a voxel in a lesion matches it; it may match several, and several may match one. With the
    components M(L) that match a lesion, all of their voxels::

        dice(L)   = 2 |L and M(L)| / (|L| + |M(L)|)                  (0 if none matches: L is missed)
        dice      = sum_L dice(L) / (found + missed + false_alarms)
        precision = components that match a lesion / components
        recall    = found / (found + missed)
        f1        = 2 found / (2 found + missed + false_alarms)

    where false_alarms are the components that match no lesion.

    Sources: of dice, with ``dilation`` and ``min_volume``, the lesion-wise Dice of BraTS 2023 (Saluja et al.,
    github.com/rachitsaluja/BraTS-2023-Metrics), which has dilation=3 and min_volume=50 for gliomas, 1 and 2 for
    metastases. Of f1, ISLES 2022 (Hernandez Petzsche et al. 2022, Scientific Data 9:762); with a threshold in
    ``overlap`` it is the recognition quality of Kirillov et al. 2019, "Panoptic Segmentation".

    Args:
        connectivity: along how many axes at once neighbours may differ. Default: None, all: 8 neighbours in two axes,
            26 in three.
        overlap: ``"any"``, as above; or a number in (0, 1]: a component matches a lesion if their intersection over
            union is that large, and each matches one at most. Above 0.5 no other one can. Pairs are matched from the
            largest intersection over union on, of equal ones those of earlier lesions and components first.
        dilation: how many times a class of the target is dilated, by the 18 neighbours of a voxel (the 8 of a pixel).
            Lesions that this joins are one, of the same voxels as before; and with ``overlap="any"`` a component
            matches a lesion if it has a voxel in the dilated one.
        min_volume: lesions of at most this volume, in the unit of ``spacing``, are left out of all results. So are
            predicted components that match no other lesion.
        include_background: whether class 0 has a result, or the first mask. With a single mask it must be True.
        others: as in ``segloss.hausdorff_distance``.

    Returns:
        ``LesionScores``, of torch's default dtype; found, missed and false_alarms are int64. Where there is nothing to
        count, precision, recall and f1 are nan, and dice is 1, as in BraTS. Ignored voxels are in no lesion and in no
        predicted component. Has no gradient.

    Raises:
        IndexError: a label, or the prediction of a voxel that counts, is outside [0, C).
        ValueError: an option is out of its range; there are not two or three spatial axes, or a spacing of other ones;
            a single mask without ``include_background``.
        TypeError: as ``segloss.hausdorff_distance``.
        RuntimeError: as ``segloss.hausdorff_distance``.

    Example:
        >>> import segloss, torch
        >>> labels = torch.tensor([[[[1, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]]]])  # [N, 1, H, W]
        >>> predicted = torch.tensor([[[[1, 1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 1]]]])
        >>> scores = segloss.lesion_scores(predicted, labels, spacing=(0.5, 0.5))
        >>> scores.recall, scores.precision
        (tensor([[0.5000]]), tensor([[0.5000]]))
        >>> for lesion in scores.lesions:
        ...     print(lesion.component, lesion.volume, round(lesion.dice, 3), lesion.found)
        1 1.0 0.857 True
        2 0.25 0.0 False

    See also:
        * ``segloss.connected_components``: the components themselves
        * ``segloss.dice_score``, ``segloss.hausdorff_distance``: scores of a whole class
    """
    op = "lesion_scores"
    maps = MapOptions(num_classes, include_background, ignore_index, label_map, dim, masks, threshold)
    _check_rule(op, connectivity, overlap, dilation, min_volume)
    groups, steps = read_maps(op, input, target, maps, spacing)
    num_columns = sum(each.shape[1] for each in groups)
    if num_columns == 0 and (masks or threshold is not None):
        raise ValueError(f"{op}: expected include_background=True with a single mask, got False, which leaves no mask")
    num_axes = len(steps)
    if connectivity is not None and connectivity > num_axes:
        raise ValueError(
            f"{op}: expected connectivity in [1, {num_axes}] for {num_axes} spatial axes, got {connectivity}"
        )
    rule = _Rule(connectivity or num_axes, overlap, dilation, min_volume, math.prod(steps))
    columns = [
        [_scores(pairs, rule) for pairs in _pairs_of_samples(each, rule)] for each in groups if each.shape[1] > 0
    ]
    cells = [
        columns[group][n * each.shape[1] + c]
        for n in range(groups[0].shape[0])
        for group, each in enumerate(groups)
        for c in range(each.shape[1])
    ]
    return _table(cells, (groups[0].shape[0], num_columns), 0 if include_background else 1, input.device)


class _Rule(NamedTuple):
    """What lesions are, and what matches them."""

    connectivity: int
    overlap: Overlap
    dilation: int
    min_volume: float
    voxel: float  # its volume


class _Pairs(NamedTuple):
    """The lesions and predicted components of a sample and class, and the pairs that meet. Numbers are from 0 on."""

    lesion_sizes: Tensor
    component_sizes: Tensor
    lesion: Tensor  # of each pair
    component: Tensor
    voxels: Tensor  # that both have; 0 if only the dilated lesion meets the component


class _Scores(NamedTuple):
    """Of a sample and class. The lesions' numbers are from 1 on."""

    lesions: list[tuple[int, int, float, float, bool]]  # component, size, volume, dice, found
    true_components: int
    false_alarms: int


# ---- components ----


def _pairs_of_samples(maps: Maps, rule: _Rule) -> Iterator[_Pairs]:
    """Of each sample and class, in this order."""
    target, predicted = _class_maps(maps)
    num_classes = len(maps.classes)
    if rule.dilation > 0:
        for labels, prediction in zip(target, predicted, strict=True):
            for c in range(1, num_classes + 1):
                yield _pairs_of_dilated(labels == c, prediction == c, rule)
        return
    of_target, of_prediction = (
        _components(each, None, rule.connectivity, -100, True)[0] for each in (target, predicted)
    )
    for k in range(target.shape[0]):
        lesions, components, voxels, first = _component_pairs(of_target[k], of_prediction[k]).unbind(1)
        classes = target[k].flatten()[first], predicted[k].flatten()[first]
        for c in range(1, num_classes + 1):
            yield _pairs_of_rows(
                torch.where(classes[0] == c, lesions, 0), torch.where(classes[1] == c, components, 0), voxels
            )


def _class_maps(maps: Maps) -> list[Tensor]:
    """Target and prediction as maps of the classes that have results, from 1 on, and of 0."""
    predicted, target = maps.predicted.cpu(), maps.target.cpu()
    is_ignored = target == maps.ignored if maps.ignored >= 0 else torch.zeros((), dtype=torch.bool)
    shift = 1 - maps.classes.start
    result = [each.to(torch.int16).add_(shift).masked_fill_(is_ignored, 0) for each in (target, predicted)]
    if any(bool((each >= maps.num_labels + shift).any()) for each in result):
        maps.check()
    return [each.masked_fill_(each > len(maps.classes), 0) for each in result]


def _pairs_of_rows(lesions: Tensor, components: Tensor, voxels: Tensor) -> _Pairs:
    """Of rows that say how many voxels are in a lesion and in a component; 0 is none. They are numbered anew."""
    lesion_sizes, lesion = _numbered(lesions, voxels)
    component_sizes, component = _numbered(components, voxels)
    meet = (lesions > 0) & (components > 0)
    return _Pairs(lesion_sizes, component_sizes, lesion[meet], component[meet], voxels[meet])


def _numbered(numbers: Tensor, voxels: Tensor) -> tuple[Tensor, Tensor]:
    """The size of each number but 0, in ascending order, and the place of each row's number there."""
    occurring, place = torch.unique(numbers, return_inverse=True)
    sizes = torch.zeros_like(occurring).index_add_(0, place, voxels)
    has_none = int((occurring == 0).any())
    return sizes[has_none:], place - has_none


def _pairs_of_dilated(labels: Tensor, predicted: Tensor, rule: _Rule) -> _Pairs:
    """Of masks [*]."""
    dilated = labels
    for _ in range(rule.dilation):
        dilated = _dilated(dilated)
    regions, components = (
        _components(each.unsqueeze(0), None, rule.connectivity, -100, False)[0][0] for each in (dilated, predicted)
    )
    within = _pairs_of_rows(*_component_pairs(regions.masked_fill(~labels, 0), components).unbind(1)[:3])
    lesion, component, *_ = _component_pairs(regions, components).unbind(1)
    meet = (lesion > 0) & (component > 0)
    lesion, component = (
        torch.cat([own, others[meet] - 1]) for own, others in ((within.lesion, lesion), (within.component, component))
    )
    num_components = len(within.component_sizes)
    keys, place = torch.unique(lesion * num_components + component, return_inverse=True)
    voxels = torch.zeros_like(keys).index_add_(0, place[: len(within.voxels)], within.voxels)
    lesion, component = keys // max(num_components, 1), keys % max(num_components, 1)
    return within._replace(lesion=lesion, component=component, voxels=voxels)


def _dilated(mask: Tensor) -> Tensor:
    """By the neighbours that differ along at most two axes."""
    widened = [_widened(mask, axis) for axis in range(mask.dim())]
    pairs = [_widened(widened[a], b) for a, b in itertools.combinations(range(mask.dim()), 2)]
    return torch.stack(pairs).any(0)


def _widened(mask: Tensor, axis: int) -> Tensor:
    """With the neighbours along an axis."""
    result, rest = mask.clone(), max(mask.shape[axis] - 1, 0)
    if rest > 0:
        result.narrow(axis, 1, rest).logical_or_(mask.narrow(axis, 0, rest))
        result.narrow(axis, 0, rest).logical_or_(mask.narrow(axis, 1, rest))
    return result


# ---- scores ----


def _scores(pairs: _Pairs, rule: _Rule) -> _Scores:
    volumes = pairs.lesion_sizes.double() * rule.voxel
    counts = volumes > rule.min_volume
    matched = _one_to_one(pairs, rule.overlap) if rule.overlap != "any" else slice(None)
    lesion, component, voxels = (each[matched] for each in (pairs.lesion, pairs.component, pairs.voxels))
    common, joined = torch.zeros_like(pairs.lesion_sizes), torch.zeros_like(pairs.lesion_sizes)
    common.index_add_(0, lesion, voxels)
    joined.index_add_(0, lesion, pairs.component_sizes[component])
    dice = 2 * common / (pairs.lesion_sizes + joined).double()
    found = torch.zeros_like(counts).index_fill_(0, lesion, True)
    is_matched, is_true = (torch.zeros(len(pairs.component_sizes), dtype=torch.bool) for _ in range(2))
    is_matched[component] = True
    is_true[component[counts[lesion]]] = True
    numbers = 1 + torch.arange(len(counts))
    columns = (each[counts].tolist() for each in (numbers, pairs.lesion_sizes, volumes, dice, found))
    return _Scores(list(zip(*columns, strict=True)), int(is_true.sum()), int((~is_matched).sum()))


def _one_to_one(pairs: _Pairs, threshold: float) -> Tensor:
    """The places of the pairs that match."""
    union = pairs.lesion_sizes[pairs.lesion] + pairs.component_sizes[pairs.component] - pairs.voxels
    overlaps = pairs.voxels.double() / union
    matched: list[int] = []
    lesions: set[int] = set()
    components: set[int] = set()
    order = overlaps.argsort(descending=True, stable=True)
    candidates = order[overlaps[order] >= threshold]
    for place, lesion, component in zip(
        candidates.tolist(), pairs.lesion[candidates].tolist(), pairs.component[candidates].tolist(), strict=True
    ):
        if lesion not in lesions and component not in components:
            matched.append(place)
            lesions.add(lesion)
            components.add(component)
    return torch.tensor(matched, dtype=torch.int64)


def _table(cells: Sequence[_Scores], shape: tuple[int, int], first_class: int, device: torch.device) -> LesionScores:
    found = [sum(lesion[-1] for lesion in cell.lesions) for cell in cells]
    missed = [len(cell.lesions) - each for cell, each in zip(cells, found, strict=True)]
    false_alarms = [cell.false_alarms for cell in cells]
    counts = torch.tensor([found, missed, false_alarms, [cell.true_components for cell in cells]]).view(4, *shape)
    dice = torch.tensor([sum(lesion[-2] for lesion in cell.lesions) for cell in cells], dtype=torch.float64).view(shape)
    hits, misses, alarms, true_components = counts.to(torch.int64)
    every = hits + misses + alarms
    scores = (
        true_components / (true_components + alarms).double(),
        hits / (hits + misses).double(),
        2 * hits / (hits + every).double(),
        torch.where(every > 0, dice / every, 1.0),
    )
    lesions = tuple(
        Lesion(k // shape[1], first_class + k % shape[1], *lesion)
        for k, cell in enumerate(cells)
        for lesion in cell.lesions
    )
    precision, recall, f1, dice = (each.to(torch.get_default_dtype()).to(device) for each in scores)
    hits, misses, alarms = (each.to(device) for each in (hits, misses, alarms))
    return LesionScores(precision, recall, f1, dice, hits, misses, alarms, lesions)


# ---- checks ----


def _check_rule(op: str, connectivity: int | None, overlap: Overlap, dilation: int, min_volume: float) -> None:
    if connectivity is not None:
        _check_integer(op, "connectivity", connectivity)
        if connectivity < 1:
            raise ValueError(
                f"{op}: expected connectivity of 1 or more, or None for all neighbours, got {connectivity}"
            )
    if isinstance(overlap, str) and overlap != "any":
        raise ValueError(f"{op}: expected overlap to be 'any' or a number in (0, 1], got {reprlib.repr(overlap)}")
    if overlap != "any":
        _check_number(op, "overlap", overlap)
        if not 0 < overlap <= 1:
            raise ValueError(f"{op}: expected overlap to be 'any' or a number in (0, 1], got {overlap}")
    _check_integer(op, "dilation", dilation)
    if dilation < 0:
        raise ValueError(f"{op}: expected dilation of 0 or more, got {dilation}")
    _check_number(op, "min_volume", min_volume)
    if not 0 <= min_volume < math.inf:
        raise ValueError(f"{op}: expected min_volume to be finite, 0 or more, got {min_volume}")
