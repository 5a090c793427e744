"""Regions and label sets: which channels belong to each class of a label, as the bits that a label table has."""

import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral
from typing import TypeAlias

import torch
from torch import Tensor

Regions: TypeAlias = Sequence[Collection[int]]
SetsOfClasses: TypeAlias = Mapping[int, Collection[int]]
LabelSets: TypeAlias = SetsOfClasses | Sequence[SetsOfClasses]
LabelSetIndex: TypeAlias = Tensor | Sequence[int]

# The sets of one sample, checked: (class, classes that it may be).
CheckedSets: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_MOST_CLASSES = 2**16  # each has a set, so a large label needs a label_map


def checked_integer(op: str, name: str, value: object, expected: str) -> int:
    """The value as an int of 64 bits."""
    is_scalar = isinstance(value, Tensor) and value.dim() == 0 and not value.is_floating_point()
    if isinstance(value, bool) or not (isinstance(value, Integral) or is_scalar):
        raise TypeError(f"{op}: expected {name} to be {expected}, got {reprlib.repr(value)}")
    number: int = int(value)  # type: ignore[call-overload]
    if not _INT64_MIN <= number <= _INT64_MAX:
        raise ValueError(f"{op}: expected {name} to be {expected} of 64 bits, got {reprlib.repr(value)}")
    return number


def _checked_classes(op: str, name: str, given: object, example: str) -> tuple[int, ...]:
    """Different classes from 0 on, one at least, in ascending order."""
    if not isinstance(given, Collection) or isinstance(given, str | Mapping):
        raise TypeError(
            f"{op}: expected {name} to be a collection of classes, got {reprlib.repr(given)}. Use {example}"
        )
    classes = [checked_integer(op, f"each class in {name}", c, "an int") for c in given]
    if not classes or len(set(classes)) < len(classes) or min(classes) < 0:
        raise ValueError(
            f"{op}: expected {name} to be different classes from 0 on, and one at least, got {reprlib.repr(given)}"
        )
    _check_size(op, name, max(classes))
    return tuple(sorted(classes))


def _check_size(op: str, name: str, largest: int) -> None:
    if largest >= _MOST_CLASSES:
        raise ValueError(
            f"{op}: expected classes below {_MOST_CLASSES} in {name}, got {largest}. Give large labels smaller classes "
            "by label_map"
        )


def checked_regions(op: str, regions: Regions, num_channels: int | None) -> tuple[tuple[int, ...], ...]:
    if not isinstance(regions, Sequence) or isinstance(regions, str) or not regions:
        got = "an empty one" if isinstance(regions, Sequence) and not regions else type(regions).__name__
        raise TypeError(f"{op}: expected regions to be a sequence of collections of classes, got {got}")
    if num_channels is not None and len(regions) != num_channels:
        raise ValueError(
            f"{op}: expected {num_channels} regions, one for each channel of input, got {len(regions)}. Give the "
            "network a channel for each region"
        )
    return tuple(_checked_classes(op, "each of regions", each, "(3,) for a region of one class") for each in regions)


def checked_sets(
    op: str, label_sets: LabelSets, num_channels: int, ignored: Collection[int]
) -> tuple[CheckedSets, ...]:
    """The mappings, one for each sample or data set, or a single one. `ignored`: classes that no label has."""
    mappings = [label_sets] if isinstance(label_sets, Mapping) else label_sets
    if not isinstance(mappings, Sequence) or isinstance(mappings, str) or not mappings:
        raise TypeError(
            f"{op}: expected label_sets to be a mapping from a class to the set of classes that it may be, or a "
            f"sequence of such mappings, got {reprlib.repr(label_sets)}"
        )
    checked = []
    for mapping in mappings:
        if not isinstance(mapping, Mapping):
            raise TypeError(f"{op}: expected a mapping for each sample in label_sets, got {reprlib.repr(mapping)}")
        sets = []
        for c, given in mapping.items():
            key = checked_integer(op, "each key of label_sets", c, "a class, an int")
            members = _checked_classes(op, f"the set of class {key}", given, f"({key},) for the class itself")
            for member in (key, *members):
                if member in ignored:
                    raise ValueError(
                        f"{op}: expected no ignored label in label_sets, got {member} in the set of class {key}: "
                        f"{members}. Leave it out of one of label_sets and ignore_index"
                    )
            if key < 0 or members[-1] >= num_channels:
                raise ValueError(
                    f"{op}: expected label_sets of classes in [0, {num_channels}), the channels of input, and keys "
                    f"from 0 on, got {{{key}: {members}}}"
                )
            _check_size(op, "label_sets", key)
            sets.append((key, members))
        checked.append(tuple(sorted(sets)))
    return tuple(checked)


def num_label_classes(sets: Iterable[CheckedSets], num_channels: int) -> int:
    """How many classes labels have: those of the channels, and those that stand for a set alone."""
    return max([num_channels, *(key + 1 for mapping in sets for key, _ in mapping)])


def groups_of(sets: CheckedSets, num_channels: int) -> list[int]:
    """For each channel the first one of its group: of those that sets join, directly or by others."""
    first = list(range(num_channels))
    for _, members in sets:
        joined = {first[member] for member in members}
        first = [min(joined) if each in joined else each for each in first]
    return first


def bits(members: Sequence[Collection[int]], num_channels: int) -> list[int]:
    """For each class the channels that it has, as numbers of 64 bits."""
    numbers = []
    for channels in members:
        every = sum(1 << channel for channel in channels)
        for word in range(num_words(num_channels)):
            number = every >> (64 * word) & (2**64 - 1)
            numbers.append(number if number <= _INT64_MAX else number - 2**64)
    return numbers


def num_words(num_channels: int) -> int:
    return -(-num_channels // 64)


def bits_of_regions(
    op: str, regions: tuple[tuple[int, ...], ...], num_classes: int, classes: Collection[int]
) -> list[int]:
    """The regions that each class is in, twice: regions have no groups. `classes`: those that labels can have."""
    for region in regions:
        for c in region:
            if c not in classes:
                raise ValueError(
                    f"{op}: expected regions of classes that labels can have, got class {c} in region {region}, which "
                    f"is no class of label_map or is ignored. The classes are {reprlib.repr(sorted(classes))}"
                )
    _check_size(op, "label_map with regions", num_classes - 1)
    of_classes = [[channel for channel, region in enumerate(regions) if c in region] for c in range(num_classes)]
    return 2 * bits(of_classes, len(regions))


def bits_of_sets(sets: CheckedSets, num_classes: int, num_channels: int) -> list[int]:
    """The set of each class, then its group."""
    given, first = dict(sets), groups_of(sets, num_channels)
    of_classes = [given.get(c, (c,) if c < num_channels else ()) for c in range(num_classes)]
    of_groups = [
        [channel for channel in range(num_channels) if members and first[channel] == first[members[0]]]
        for members in of_classes
    ]
    return [*bits(of_classes, num_channels), *bits(of_groups, num_channels)]


def rows_of_samples(op: str, tables: Tensor, num_samples: int, label_set_index: LabelSetIndex | None) -> Tensor:
    """For each sample the row of its mapping; one row serves all samples."""
    num_mappings = tables.shape[0]
    if label_set_index is None:
        if num_mappings not in (1, num_samples):
            raise ValueError(
                f"{op}: expected {num_samples} mappings in label_sets, one for each sample of input, got "
                f"{num_mappings}. label_set_index says which one each sample has"
            )
        return tables
    index = torch.as_tensor(label_set_index, device=tables.device)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"{op}: expected label_set_index to hold integers, got {index.dtype}")
    if list(index.shape) != [num_samples]:
        raise ValueError(
            f"{op}: expected label_set_index of shape [{num_samples}], one for each sample of input, got "
            f"{list(index.shape)}"
        )
    return tables.index_select(0, index.to(torch.int64))
