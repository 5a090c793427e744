"""What the labels of a data set mean: the tables by which the operators read them.

A table is a row of int64 numbers; csrc/kernels/kernels.h describes it. It is made once for the same keywords.
"""

import reprlib
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from types import EllipsisType
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from segloss._distributed import is_dtensor

IgnoreIndex: TypeAlias = int | Sequence[int]
LabelMap: TypeAlias = Mapping[int | EllipsisType, int | None] | Tensor
Regions: TypeAlias = Sequence[Collection[int]]

# Codes of entries, as in kernels.h.
_IGNORED, _BAD, _SAME = -1, -2, -3

_LONGEST = 2**16  # of a row that has an entry for each label in a range
_FEW = 48  # up to so many labels the kernels compare a voxel with each
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1

# The ignore_index of a loss that ignores nothing: no dtype but int64 can hold it, and nobody uses it as a label.
NO_LABEL = _INT64_MIN

_tables: dict[object, Tensor] = {}
_MOST_TABLES = 256


class LabelOptions(NamedTuple):
    """The keywords that say what labels mean, as the caller gave them."""

    ignore_index: IgnoreIndex
    label_map: LabelMap | None = None
    regions: Regions | None = None


def read_labels(
    op: str,
    input: Tensor | None,
    target: Tensor,
    dim: int,
    ignore_index: IgnoreIndex,
    label_map: LabelMap | None,
    regions: Regions | None = None,
) -> tuple[int, Tensor | None]:
    """The label to ignore, and None; or, if the labels need one, a table that says all. `input` has the classes."""
    if label_map is None and regions is None and (type(ignore_index) is int or not _is_collection(ignore_index)):
        return ignore_index, None  # type: ignore[return-value]  # the caller checks whether it is an int
    ignored = _that_occur(target, _ignored_labels(op, ignore_index))
    if label_map is None and regions is None and len(ignored) <= 1:
        return ignored[0] if ignored else NO_LABEL, None
    if not isinstance(target, Tensor):
        return NO_LABEL, None  # the caller raises the error
    num_channels = _num_classes(input, dim)
    of_channels = None if regions is None else _checked_regions(op, regions, num_channels)
    table = _table(op, target, _Meaning(ignored, None, num_channels, of_channels), label_map)
    return NO_LABEL, table if regions is None else table.unsqueeze(0)


def check_no_regions(op: str, regions: Regions | None, why: str) -> None:
    if regions is not None:
        raise ValueError(f"{op}: expected no regions, which may overlap: {why}")


OF_SOFTMAX = (
    "classes of a softmax exclude each other. Use a loss with activation='sigmoid', or "
    "binary_cross_entropy_with_logits, and a channel for each region"
)


class _Meaning(NamedTuple):
    """The keywords that say what labels mean, checked; equal ones have equal tables."""

    ignored: tuple[int, ...]
    label_map: tuple[tuple[object, object], ...] | None
    num_channels: int | None  # None: not known
    regions: tuple[tuple[int, ...], ...] | None


def _num_classes(input: Tensor | None, dim: int) -> int | None:
    """The number of classes of logits; None if it is not known."""
    if not isinstance(input, Tensor) or input.dim() == 0 or not input.is_floating_point():
        return None
    along = 0 if input.dim() == 1 else dim
    return input.shape[along] if -input.dim() <= along < input.dim() else None


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor made from it has values that outlive the call: not of a compiler, a transform or a subclass."""
    is_of_torch = type(tensor) is Tensor or type(tensor) is torch.nn.Parameter
    is_traced = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return is_of_torch and not is_traced


def _is_collection(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset | range)


def _ignored_labels(op: str, ignore_index: IgnoreIndex) -> tuple[int, ...]:
    labels = tuple(ignore_index) if _is_collection(ignore_index) else (ignore_index,)  # type: ignore[arg-type]
    return tuple(_integer(op, "ignore_index", each, "an int or a sequence of ints") for each in labels)


def _that_occur(target: Tensor, labels: tuple[int, ...]) -> tuple[int, ...]:
    """The labels that an integer target can hold: others, as -100 in uint8, need not be looked for."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex():
        return labels
    low, high = (0, 1) if target.dtype == torch.bool else (torch.iinfo(target.dtype).min, torch.iinfo(target.dtype).max)
    return tuple(label for label in labels if low <= label <= high)


def _integer(op: str, name: str, value: object, expected: str) -> int:
    is_scalar = isinstance(value, Tensor) and value.dim() == 0 and not value.is_floating_point()
    if isinstance(value, bool) or not (isinstance(value, Integral) or is_scalar):
        raise TypeError(f"{op}: expected {name} to be {expected}, got {reprlib.repr(value)}")
    number: int = int(value)  # type: ignore[call-overload]
    if not _INT64_MIN <= number <= _INT64_MAX:
        raise ValueError(f"{op}: expected {name} to be {expected} of 64 bits, got {reprlib.repr(value)}")
    return number


def _table(op: str, target: Tensor, meaning: _Meaning, label_map: LabelMap | None) -> Tensor:
    if isinstance(label_map, Tensor):
        _check_tensor_map(op, target, label_map)
        if not (_is_plain(label_map) and label_map.is_cpu):
            return _on_all_ranks(target, _row_of_tensor(op, meaning, label_map))
        label_map = dict(enumerate(label_map.tolist()))
    elif label_map is not None and not isinstance(label_map, Mapping):
        raise TypeError(
            f"{op}: expected label_map to be a mapping from labels to classes, or an integer tensor, got "
            f"{type(label_map).__name__}. Use {{label: class_ for class_, label in enumerate(labels)}} for a list of "
            "labels"
        )
    if label_map is not None:
        meaning = meaning._replace(label_map=tuple(label_map.items()))
    may_keep = _is_plain(target)
    table = _tables.get((meaning, target.device)) if may_keep else None
    if table is None:
        table = torch.tensor(_row(op, meaning), dtype=torch.int64, device=target.device)
        if may_keep and _is_plain(table):
            if len(_tables) >= _MOST_TABLES:
                _tables.clear()
            _tables[(meaning, target.device)] = table
    return _on_all_ranks(target, table)


def _on_all_ranks(target: Tensor, table: Tensor) -> Tensor:
    if not is_dtensor(target):
        return table
    from segloss._dtensor import replicated_like

    return replicated_like(target, table)


def _row(op: str, meaning: _Meaning) -> list[int]:
    entries, other = _entries(op, meaning)
    codes = [*entries.values(), other]
    labels = sorted(entries)
    first, last = labels[0], labels[-1]
    is_sorted = len(labels) <= _FEW or last - first >= _LONGEST
    num_classes = max(0, *(code + 1 for code in codes))
    header = [
        first if other != _SAME else min(first, 0),
        len(labels) if is_sorted else last - first + 1,
        int(is_sorted),
        other,
        int(_IGNORED in codes),
        num_classes,
        _words(meaning),
    ]
    if is_sorted:
        by_label = [*(entries[label] for label in labels), *labels]
    else:
        by_label = [entries.get(label, other) for label in range(first, last + 1)]
    return [*header, *by_label, *_sets(op, meaning, num_classes, {code for code in codes if code >= 0})]


def _words(meaning: _Meaning) -> int:
    """How many numbers of 64 bits a set takes."""
    return 0 if meaning.regions is None else -(-len(meaning.regions) // 64)


def _sets(op: str, meaning: _Meaning, num_classes: int, classes: Collection[int]) -> list[int]:
    """The regions that each class is in, as numbers of 64 bits."""
    if meaning.regions is None:
        return []
    for region in meaning.regions:
        for c in region:
            if c not in classes:
                raise ValueError(
                    f"{op}: expected regions of classes that labels can have, got class {c} in region {region}, which "
                    f"is no class of label_map or is ignored. The classes are {reprlib.repr(sorted(classes))}"
                )
    numbers = []
    for c in range(num_classes):
        bits = sum(1 << channel for channel, region in enumerate(meaning.regions) if c in region)
        for word in range(_words(meaning)):
            number = bits >> (64 * word) & (2**64 - 1)
            numbers.append(number if number <= _INT64_MAX else number - 2**64)
    return numbers


def _entries(op: str, meaning: _Meaning) -> tuple[dict[int, int], int]:
    """The entry of each label that is named, and that of all others."""
    ignored, label_map, num_classes, regions = meaning
    if label_map is None:
        to_ignore = dict.fromkeys(ignored, _IGNORED)
        return (to_ignore, _SAME) if regions is None else ({c: c for c in range(_end(regions))} | to_ignore, _BAD)
    classes = {key: _class(op, key, value) for key, value in label_map}
    named = [c for c in classes.values() if c is not None and c not in ignored]
    if num_classes is None or regions is not None:  # one more than the map has, or its last class might be ignored
        num_classes = max(named, default=-1) + 2
    for label, c in classes.items():
        if c in ignored and 0 <= c < num_classes:
            raise ValueError(_two_meanings(op, f"class {c} for label {_text(label)}", ignored))
        if c is not None and c < 0 and c not in ignored:
            raise ValueError(
                f"{op}: expected a class from 0 on in label_map, or None for a label to ignore, got class {c} for "
                f"label {_text(label)}"
            )
    codes = {label: _IGNORED if c is None or c in ignored else c for label, c in classes.items()}
    other = codes.pop(..., _BAD)
    for label in ignored:
        if codes.get(label, _IGNORED) != _IGNORED:
            raise ValueError(
                f"{op}: expected a label to have a class or to be ignored, got class {codes[label]} for label {label} "
                f"in label_map and ignore_index={_text(ignored)}. Leave it out of one; ignore_index=() ignores none"
            )
        codes[label] = _IGNORED
    if not named:
        raise ValueError(f"{op}: expected a class for at least one label in label_map, got {reprlib.repr(classes)}")
    return codes or {0: other}, other  # type: ignore[return-value]


def _end(regions: tuple[tuple[int, ...], ...]) -> int:
    """One more than the largest class of the regions."""
    return 1 + max(max(region) for region in regions)


def _checked_regions(op: str, regions: Regions, num_channels: int | None) -> tuple[tuple[int, ...], ...]:
    if not isinstance(regions, Sequence) or isinstance(regions, str) or not regions:
        got = "an empty one" if isinstance(regions, Sequence) and not regions else type(regions).__name__
        raise TypeError(f"{op}: expected regions to be a sequence of collections of classes, got {got}")
    checked = []
    for region in regions:
        if not isinstance(region, Collection) or isinstance(region, str | Mapping):
            raise TypeError(
                f"{op}: expected each of regions to be a collection of classes, got {reprlib.repr(region)}. Use (3,) "
                "for a region of one class"
            )
        classes = [_integer(op, "each class of regions", c, "an int") for c in region]
        if not classes or len(set(classes)) < len(classes) or min(classes) < 0:
            raise ValueError(
                f"{op}: expected different classes from 0 on in each of regions, and one at least, got "
                f"{reprlib.repr(region)}"
            )
        checked.append(tuple(sorted(classes)))
    if num_channels is not None and len(checked) != num_channels:
        raise ValueError(
            f"{op}: expected {num_channels} regions, one for each channel of input, got {len(checked)}. Give the "
            "network a channel for each region"
        )
    return tuple(checked)


def _two_meanings(op: str, got: str, ignored: tuple[int, ...]) -> str:
    return (
        f"{op}: expected an ignore_index that is no class where there is a label_map, got {got} and "
        f"ignore_index={_text(ignored)}, so that a label of this class may be meant to be ignored. Leave it out of "
        "ignore_index, and map labels to ignore to None"
    )


def _class(op: str, label: object, value: object) -> int | None:
    if label is not ...:
        _integer(op, "each key of label_map", label, "a label, an int, or ... for all other labels")
    return None if value is None else _integer(op, "each value of label_map", value, "a class, an int, or None")


def _text(labels: object) -> str:
    if labels is ...:
        return "..."
    return str(labels[0]) if isinstance(labels, tuple) and len(labels) == 1 else str(labels)


def _check_tensor_map(op: str, target: Tensor, label_map: Tensor) -> None:
    if label_map.is_floating_point() or label_map.is_complex() or label_map.dtype == torch.bool:
        raise TypeError(f"{op}: expected label_map to be an integer tensor, got {label_map.dtype}")
    if label_map.dim() != 1 or label_map.shape[0] == 0:
        raise ValueError(
            f"{op}: expected label_map of shape [L], with the class of each label 0 to L - 1, got "
            f"{list(label_map.shape)}"
        )
    if label_map.device != target.device:
        raise RuntimeError(
            f"{op}: expected all tensors on one device, got target on {target.device} and label_map on "
            f"{label_map.device}. Use label_map.to(target.device)"
        )


def _row_of_tensor(op: str, meaning: _Meaning, label_map: Tensor) -> Tensor:
    """The row of a tensor whose values are not read: a device would have to be waited for, or they do not exist yet."""
    ignored, _, num_classes, regions = meaning
    length = label_map.shape[0]
    for label in ignored:
        if num_classes is not None and regions is None and 0 <= label < num_classes:
            raise ValueError(_two_meanings(op, f"a tensor as label_map on {label_map.device}", ignored))
    first, last = min(0, *ignored, 0), max(length - 1, *ignored, 0)
    if last - first >= max(length, _LONGEST):
        raise ValueError(
            f"{op}: expected ignore_index within {_LONGEST} labels of those in label_map, a tensor {[length]}, got "
            f"{_text(ignored)}. Use a mapping"
        )

    def numbers(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=label_map.device)

    def masked(values: Tensor, labels: Tensor) -> Tensor:
        for label in ignored:
            values = values.masked_fill(labels == label, _IGNORED)
        return values

    classes = label_map.to(torch.int64)
    classes = masked(classes.masked_fill(classes < 0, _BAD), classes)
    if regions is not None:  # one more class stands for all that are in no region
        classes = classes.clamp_max(_end(regions))
    entries = torch.nn.functional.pad(classes, (-first, last + 1 - length), value=_BAD)
    entries = masked(entries, torch.arange(first, last + 1, device=label_map.device))
    header = numbers(first, last + 1 - first, 0, _BAD, 1)
    if regions is None:
        return torch.cat([header, classes.amax(0, keepdim=True) + 1, numbers(0), entries])
    end = _end(regions) + 1
    sets = numbers(*_sets(op, meaning, end, range(end)))
    return torch.cat([header, numbers(end, _words(meaning)), entries, sets])
