"""What the labels of a data set mean: the tables by which the operators read them.

A table is a row of int64 numbers; csrc/kernels/kernels.h describes it. It is made once for the same keywords.
"""

import reprlib
from collections.abc import Mapping, Sequence
from functools import partial
from types import EllipsisType
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from segloss import _label_sets
from segloss._distributed import is_dtensor
from segloss._label_sets import CheckedSets, LabelSetIndex, LabelSets, Regions
from segloss._label_sets import checked_integer as _integer

IgnoreIndex: TypeAlias = int | Sequence[int]
LabelMap: TypeAlias = Mapping[int | EllipsisType, int | None] | Tensor

# Codes of entries, as in kernels.h.
_IGNORED, _BAD, _SAME = -1, -2, -3

_LONGEST = 2**16  # of a row that has an entry for each label in a range
_FEW = 48  # up to so many labels the kernels compare a voxel with each

# The ignore_index of a loss that ignores nothing: no dtype but int64 can hold it, and nobody uses it as a label.
NO_LABEL = -(2**63)

_tables: dict[object, Tensor] = {}
_MOST_TABLES = 256


class LabelOptions(NamedTuple):
    """The keywords that say what labels mean, as the caller gave them."""

    ignore_index: IgnoreIndex
    label_map: LabelMap | None = None
    regions: Regions | None = None
    label_sets: LabelSets | None = None
    label_set_index: LabelSetIndex | None = None


def read_labels(
    op: str, input: Tensor | None, target: Tensor, dim: int, options: LabelOptions, activation: str | None = None
) -> tuple[int, Tensor | None]:
    """The label to ignore, and None; or, if the labels need one, a table that says all. `input` has the classes."""
    ignore_index, label_map, regions, label_sets, label_set_index = options
    needs_no_table = label_map is None and regions is None and label_sets is None
    if needs_no_table and (type(ignore_index) is int or not _is_collection(ignore_index)):
        return ignore_index, None  # type: ignore[return-value]  # the caller checks whether it is an int
    _check_activation(op, activation, options)
    ignored = _ignored_labels(op, ignore_index)
    occurring = _that_occur(target, ignored)
    if needs_no_table and len(occurring) <= 1:
        return occurring[0] if occurring else NO_LABEL, None
    num_channels = _num_classes(input, dim)
    if not isinstance(target, Tensor) or (label_sets is not None and num_channels is None):
        return NO_LABEL, None  # the caller raises the error
    if needs_no_table and num_channels == 1 and activation != "softmax" and not target.is_floating_point():
        regions = ((1,),)  # the one channel is the foreground's, as without a table
    meaning = _Meaning(ignored, occurring, None, num_channels)
    if regions is not None:
        meaning = meaning._replace(regions=_label_sets.checked_regions(op, regions, num_channels))
    if label_sets is not None:
        meaning = meaning._replace(sets=_checked_sets(op, meaning, label_map, label_sets))
    tables = _tables_of(op, target, meaning, label_map)
    if label_sets is None:
        return NO_LABEL, on_all_ranks(target, tables if regions is not None else tables[0])
    return NO_LABEL, _of_samples(op, input, target, tables, dim, label_set_index)


def read_groups(
    op: str, input: Tensor, target: Tensor, dim: int, options: LabelOptions
) -> tuple[Tensor, Tensor] | None:
    """For each class, [N, C] or [1, C], the first one of its group, of classes that label sets join, and whether it is
    the first one itself."""
    num_channels = _num_classes(input, dim)
    if options.label_sets is None or num_channels is None:
        return None
    sets = _label_sets.checked_sets(op, options.label_sets, num_channels, ())
    rows = [_label_sets.groups_of(each, num_channels) for each in sets]
    groups = torch.tensor(rows, dtype=torch.int64, device=target.device)
    is_first = groups == torch.arange(num_channels, device=target.device)
    of_samples = partial(_of_samples, op, input, target, dim=dim, label_set_index=options.label_set_index)
    return of_samples(groups), of_samples(is_first)


def _of_samples(
    op: str,
    input: Tensor | None,
    target: Tensor,
    rows: Tensor,
    dim: int,
    label_set_index: LabelSetIndex | None,
) -> Tensor:
    assert input is not None
    num_samples = 1 if input.dim() == 1 else input.shape[1 if dim % input.dim() == 0 else 0]
    return on_all_ranks(target, _label_sets.rows_of_samples(op, rows, num_samples, label_set_index))


def _checked_sets(
    op: str, meaning: "_Meaning", label_map: LabelMap | None, label_sets: LabelSets
) -> tuple[CheckedSets, ...]:
    assert meaning.num_channels is not None
    ignored = meaning.occurring if label_map is None else ()
    return _label_sets.checked_sets(op, label_sets, meaning.num_channels, ignored)


def num_classes_of(table: Tensor) -> int:
    """One more than the largest class of a table with sets; kernels.h has the place."""
    return int(table[0, 5])


def check_no_regions(op: str, regions: Regions | None, why: str) -> None:
    if regions is not None:
        raise ValueError(f"{op}: expected no regions, which may overlap: {why}")


def _check_activation(op: str, activation: str | None, options: LabelOptions) -> None:
    """Regions overlap, so that a softmax has none; only a softmax has label sets."""
    if activation == "softmax":
        check_no_regions(
            op,
            options.regions,
            "classes of a softmax exclude each other. Use a loss with activation='sigmoid', or "
            "binary_cross_entropy_with_logits, and a channel for each region",
        )
    elif options.label_sets is not None:
        raise ValueError(
            f"{op}: expected no label_sets without a softmax, whose probabilities of several classes they add. Use "
            "activation='softmax', or leave voxels out with voxel_weight=0"
        )


class _Meaning(NamedTuple):
    """The keywords that say what labels mean, checked; equal ones have equal tables."""

    ignored: tuple[int, ...]
    occurring: tuple[int, ...]  # of these, the labels that the target can hold
    label_map: tuple[tuple[object, object], ...] | None
    num_channels: int | None  # None: not known
    regions: tuple[tuple[int, ...], ...] | None = None
    sets: tuple[CheckedSets, ...] | None = None  # of each sample or data set, or one for all

    def num_classes(self) -> int | None:
        """How many classes labels can have, if it is known before the labels are."""
        if self.regions is not None or self.num_channels is None:
            return None
        return _label_sets.num_label_classes(self.sets or (), self.num_channels)


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


def _tables_of(op: str, target: Tensor, meaning: _Meaning, label_map: LabelMap | None) -> Tensor:
    """The rows of the table, [M, n], one for each mapping of label sets."""
    if isinstance(label_map, Tensor):
        _check_tensor_map(op, target, label_map)
        if not (_is_plain(label_map) and label_map.is_cpu):
            return _rows_of_tensor(op, meaning, label_map)
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
        rows = [_row(op, meaning, sets) for sets in meaning.sets or (None,)]
        table = torch.tensor(rows, dtype=torch.int64, device=target.device)
        if may_keep and _is_plain(table):
            if len(_tables) >= _MOST_TABLES:
                _tables.clear()
            _tables[(meaning, target.device)] = table
    return table


def on_all_ranks(target: Tensor, table: Tensor) -> Tensor:
    if not is_dtensor(target):
        return table
    from segloss._dtensor import replicated_like

    return replicated_like(target, table)


def _row(op: str, meaning: _Meaning, sets: CheckedSets | None) -> list[int]:
    entries, other = _entries(op, meaning, sets)
    codes = [*entries.values(), other]
    labels = sorted(entries)
    first, last = labels[0], labels[-1]
    is_sorted = len(labels) <= _FEW or last - first >= _LONGEST
    num_classes = max(0, *(code + 1 for code in codes))
    words, bits = 0, []
    if meaning.regions is not None:
        words = _label_sets.num_words(len(meaning.regions))
        classes = {code for code in codes if code >= 0}
        bits = _label_sets.bits_of_regions(op, meaning.regions, num_classes, classes)
    elif sets is not None:
        num_channels, num_classes = meaning.num_channels or 0, meaning.num_classes() or 0
        words = _label_sets.num_words(num_channels)
        bits = _label_sets.bits_of_sets(sets, num_classes, num_channels)
    start = first if other != _SAME else min(first, 0)
    length = len(labels) if is_sorted else last - first + 1
    header = [start, length, int(is_sorted), other, int(_IGNORED in codes), num_classes, words]
    if is_sorted:
        return [*header, *(entries[label] for label in labels), *labels, *bits]
    return [*header, *(entries.get(label, other) for label in range(first, last + 1)), *bits]


def _entries(op: str, meaning: _Meaning, sets: CheckedSets | None) -> tuple[dict[int, int], int]:
    """The entry of each label that is named, and that of all others."""
    if meaning.label_map is None:
        to_ignore = dict.fromkeys(meaning.occurring, _IGNORED)
        if meaning.regions is None and sets is None:
            return to_ignore, _SAME
        end = _end(meaning.regions) if meaning.regions is not None else meaning.num_classes() or 0
        codes = {c: c for c in range(end)} | to_ignore
        other = _BAD
    else:
        codes, other = _entries_of_map(op, meaning, meaning.label_map)
    if sets is not None:  # a class beyond the channels is one only with a set; those of other samples are bad here
        with_sets = {*range(meaning.num_channels or 0), *(key for key, _ in sets), _IGNORED}
        codes = {label: code if code in with_sets else _BAD for label, code in codes.items()}
        other = other if other in with_sets else _BAD
    return codes or {0: other}, other


def _entries_of_map(
    op: str, meaning: _Meaning, label_map: tuple[tuple[object, object], ...]
) -> tuple[dict[int, int], int]:
    ignored, num_classes = meaning.ignored, meaning.num_classes()
    classes = dict(_entry(op, key, value) for key, value in label_map)
    named = [c for c in classes.values() if c is not None and c not in ignored]
    if num_classes is None:  # one more than the map has, or its last class might be ignored without a word
        num_classes = max(named, default=-1) + 2
    for label, c in classes.items():
        if c in ignored and 0 <= c < num_classes:
            raise ValueError(_two_meanings(op, f"class {c} for label {_text(label)}", ignored))
        if c is not None and c < 0 and c not in ignored:
            raise ValueError(
                f"{op}: expected a class from 0 on in label_map, or None for a label to ignore, got class {c} for "
                f"label {_text(label)}"
            )
        if meaning.sets is not None and c is not None and c not in ignored and c >= num_classes:
            raise ValueError(
                f"{op}: expected classes in [0, {num_classes}) in label_map, or with a set in label_sets, got class "
                f"{c} for label {_text(label)}"
            )
    coded = {label: _IGNORED if c is None or c in ignored else c for label, c in classes.items()}
    other = coded.pop(..., _BAD)
    codes = {label: code for label, code in coded.items() if not isinstance(label, EllipsisType)}
    for label in meaning.occurring:
        if codes.get(label, _IGNORED) != _IGNORED:
            raise ValueError(
                f"{op}: expected a label to have a class or to be ignored, got class {codes[label]} for label {label} "
                f"in label_map and ignore_index={_text(ignored)}. Leave it out of one; ignore_index=() ignores none"
            )
        codes[label] = _IGNORED
    if not named:
        raise ValueError(f"{op}: expected a class for at least one label in label_map, got {reprlib.repr(classes)}")
    return codes, other


def _end(regions: tuple[tuple[int, ...], ...]) -> int:
    """One more than the largest class of the regions."""
    return 1 + max(max(region) for region in regions)


def _two_meanings(op: str, got: str, ignored: tuple[int, ...]) -> str:
    return (
        f"{op}: expected an ignore_index that is no class where there is a label_map, got {got} and "
        f"ignore_index={_text(ignored)}, so that a label of this class may be meant to be ignored. Leave it out of "
        "ignore_index, and map labels to ignore to None"
    )


def _entry(op: str, label: object, value: object) -> tuple[int | EllipsisType, int | None]:
    name, expected = "each value of label_map", "a class, an int, or None"
    c = None if value is None else _integer(op, name, value, expected)
    if isinstance(label, EllipsisType):
        return label, c
    return _integer(op, "each key of label_map", label, "a label, an int, or ... for all other labels"), c


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


def _rows_of_tensor(op: str, meaning: _Meaning, label_map: Tensor) -> Tensor:
    """The rows of a tensor whose values are not read: a device would have to be waited for, or there are none yet."""
    ignored, regions, num_classes = meaning.ignored, meaning.regions, meaning.num_classes()
    length = label_map.shape[0]
    for label in ignored:
        if num_classes is not None and 0 <= label < num_classes:
            raise ValueError(_two_meanings(op, f"a tensor as label_map on {label_map.device}", ignored))
    first, last = min(0, *meaning.occurring, 0), max(length - 1, *meaning.occurring, 0)
    if last - first >= max(length, _LONGEST):
        raise ValueError(
            f"{op}: expected ignore_index within {_LONGEST} labels of those in label_map, a tensor {[length]}, got "
            f"{_text(ignored)}. Use a mapping"
        )

    def numbers(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=label_map.device)

    def masked(values: Tensor, numbers: Tensor, ignored: tuple[int, ...]) -> Tensor:
        for number in ignored:
            values = values.masked_fill(numbers == number, _IGNORED)
        return values

    def row(classes: Tensor, after_classes: Tensor, bits: list[int]) -> Tensor:
        entries = torch.nn.functional.pad(classes, (-first, last + 1 - length), value=_BAD)
        entries = masked(entries, torch.arange(first, last + 1, device=label_map.device), meaning.occurring)
        return torch.cat([numbers(first, last + 1 - first, 0, _BAD, 1), after_classes, entries, numbers(*bits)])

    classes = label_map.to(torch.int64)
    classes = masked(classes.masked_fill(classes < 0, _BAD), classes, ignored)
    if regions is not None:  # one more class stands for all that are in no region
        end = _end(regions) + 1
        bits = _label_sets.bits_of_regions(op, regions, end, range(end))
        words = _label_sets.num_words(len(regions))
        return row(classes.clamp_max(end - 1), numbers(end, words), bits).unsqueeze(0)
    if meaning.sets is None:
        return row(classes, torch.cat([classes.amax(0, keepdim=True) + 1, numbers(0)]), []).unsqueeze(0)
    num_channels, end = meaning.num_channels or 0, num_classes or 0
    rows = []
    for sets in meaning.sets:
        of_sample = classes
        for c in set(range(num_channels, end)) - {key for key, _ in sets}:
            of_sample = of_sample.masked_fill(of_sample == c, _BAD)
        after = numbers(end, _label_sets.num_words(num_channels))
        rows.append(row(of_sample, after, _label_sets.bits_of_sets(sets, end, num_channels)))
    return torch.stack(rows)
