"""Predictions and targets, as the metrics of surfaces and lesions read them: maps of bytes, one beside the other."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segloss._labels import IgnoreIndex, LabelMap, LabelOptions, read_labels
from segloss.distance import checked_spacing
from segloss.functional import _check_flags, _check_integer, _check_types, _checked_threshold, _plain
from segloss.prediction import predict

# Labels of maps of bytes, besides classes.
_OTHERS, _IGNORED = 254, 255


class MapOptions(NamedTuple):
    """The keywords that say what input and target are, as the caller gave them."""

    num_classes: int | None
    include_background: bool
    ignore_index: IgnoreIndex
    label_map: LabelMap | None
    dim: int
    masks: bool
    threshold: float | None


class Maps(NamedTuple):
    """Two maps of uint8 labels, [K, *], and the classes that have results, which are arranged as [N, C]."""

    predicted: Tensor
    target: Tensor
    ignored: int  # the label of ignored voxels in target, or -1
    classes: range
    shape: tuple[int, int]
    num_labels: int  # only these are allowed, and `ignored`
    check: Callable[[], object]  # raises if there is another one where it counts


def read_maps(
    op: str, input: Tensor, target: Tensor, options: MapOptions, spacing: Sequence[float] | None
) -> tuple[list[Maps], tuple[float, ...]]:
    """The maps, of which each has some of the classes, and the spacing along their two or three axes."""
    input, target = _plain(input), _plain(target)
    _check_types(op, input, target, None, None, 0, options.dim)
    _check_flags(op, include_background=options.include_background, masks=options.masks)
    steps = checked_spacing(op, spacing)
    read = _read_labels if options.threshold is None and not options.masks else _read_masks
    groups = read(op, input.detach(), target.detach(), options, steps)
    num_axes = groups[0].predicted.dim() - 1
    if num_axes not in (2, 3) or (steps is not None and len(steps) != num_axes):
        raise ValueError(
            f"{op}: expected two or three spatial axes, and one number in spacing for each, got spacing={steps} for "
            f"input {list(input.shape)} and target {list(target.shape)}"
        )
    return groups, steps or (1.0,) * num_axes


def _read_labels(
    op: str, input: Tensor, target: Tensor, o: MapOptions, spacing: tuple[float, ...] | None
) -> list[Maps]:
    num_classes = o.num_classes
    if num_classes is not None:
        _check_integer(op, "num_classes", num_classes)
    if input.is_floating_point():
        dim = _checked_dim(op, input, o.dim)
        if input.shape[dim] == 1 or num_classes not in (None, input.shape[dim]):
            raise ValueError(
                f"{op}: expected logits of two classes or more, and no other num_classes, got input "
                f"{list(input.shape)} with its classes in dimension {dim} and num_classes={num_classes}. Use threshold "
                "for the logits of a sigmoid, input.long() for a map of predicted labels"
            )
        num_classes = input.shape[dim]
        ignore_index, table = read_labels(op, input, target, dim, LabelOptions(o.ignore_index, o.label_map))
        predicted = predict(input, dim=dim)
        if target.shape == input.shape:
            target = torch.ops.segloss.one_hot_labels(op, target, dim)
        target = _without_channel(op, "target", target, input.dim() - 2, dim)
    else:
        num_axes = _num_axes(op, input, target, o.dim, spacing)
        ignore_index, table = read_labels(op, None, target, o.dim, LabelOptions(o.ignore_index, o.label_map))
        predicted = _without_channel(op, "input", input, num_axes, o.dim)
        target = _without_channel(op, "target", target, num_axes, o.dim)
    _check_integer(op, "ignore_index", ignore_index)
    if predicted.shape != target.shape:
        raise RuntimeError(
            f"{op}: expected input and target of one size, got input {list(input.shape)} and target, without a "
            f"channel, {list(target.shape)}. Use segloss.predict(..., upsample=...) for logits of another size"
        )
    first = 0 if o.include_background else 1

    def classes(limit: int) -> Tensor:
        """The classes of the target, int64, -1 where a voxel is ignored; checked as those of the prediction are."""
        found: Tensor = torch.ops.segloss.class_labels(op, target, limit, ignore_index, table)
        _check_predicted(op, predicted, found, limit)
        return found

    if num_classes is None:
        num_classes = _num_labels(predicted, classes(2**31 - 1))
    limit = num_classes
    as_bytes = _as_bytes(predicted), _as_bytes(target)
    if table is not None or limit > 2**8 or as_bytes[0] is None or as_bytes[1] is None:
        return _groups(predicted, classes(limit), range(first, limit))
    ignored = ignore_index if 0 <= ignore_index < 2**8 else -1
    shape = (target.shape[0], max(limit - first, 0))
    results = range(first, first + shape[1])
    return [Maps(as_bytes[0], as_bytes[1], ignored, results, shape, limit, lambda: classes(limit))]


def _groups(predicted: Tensor, classes: Tensor, results: range) -> list[Maps]:
    """As many classes at once as bytes can hold, with one value for all others and one for ignored voxels."""
    groups = []
    for first in range(results.start, max(results.stop, results.start + 1), _OTHERS):
        count = max(min(_OTHERS, results.stop - first), 0)
        maps = [
            torch.where((each >= first) & (each < first + count), each - first, _OTHERS).to(torch.uint8)
            for each in (predicted.long(), classes)
        ]
        maps[1].masked_fill_(classes < 0, _IGNORED)
        groups.append(Maps(maps[0], maps[1], _IGNORED, range(count), (classes.shape[0], count), 2**8, lambda: None))
    return groups


def _read_masks(op: str, input: Tensor, target: Tensor, o: MapOptions, spacing: tuple[float, ...] | None) -> list[Maps]:
    dim, threshold = _checked_dim(op, input, o.dim), _checked_threshold(op, o.threshold)
    if (threshold is not None) != input.is_floating_point() or (threshold is not None and o.masks):
        raise TypeError(
            f"{op}: expected integer or bool masks with masks=True, or floating logits with threshold, got "
            f"{input.dtype} input, masks={o.masks} and threshold={threshold}"
        )
    num_masks = input.shape[dim]
    if o.num_classes not in (None, num_masks):
        raise ValueError(f"{op}: expected num_classes={num_masks}, the masks of input, got {o.num_classes}")
    ignore_index, table = read_labels(op, input, target, dim, LabelOptions(o.ignore_index, o.label_map))
    predicted = (input if threshold is None else predict(input, threshold=threshold, dim=dim)).movedim(dim, 1)
    if threshold is not None and (target.shape != input.shape or num_masks == 1):
        labels = _without_channel(op, "target", target, input.dim() - 2, dim)
        classes = torch.ops.segloss.class_labels(op, labels, max(num_masks, 2), ignore_index, table).unsqueeze(1)
        channels = torch.arange(num_masks, device=classes.device).view(-1, *(1,) * (classes.dim() - 2))
        masks = (classes == (channels if num_masks > 1 else 1)).to(torch.int8).masked_fill_(classes < 0, -1)
    elif table is None and target.shape == input.shape:
        masks = torch.ops.segloss.class_masks(op, target, ignore_index).movedim(dim, 1)
    else:
        raise RuntimeError(
            f"{op}: expected masks of one shape and one ignore_index, got input {list(input.shape)}, target "
            f"{list(target.shape)}"
        )
    if predicted.shape != masks.shape:
        raise RuntimeError(
            f"{op}: expected input and target of one size, got input {list(input.shape)}, target {list(target.shape)}"
        )
    is_ignored = (masks < 0).any(1, keepdim=True)
    is_strange = (predicted != 0) & (predicted != 1) & ~is_ignored
    if is_strange.any():
        raise RuntimeError(
            f"{op}: expected 0 and 1 in masks, got {predicted[is_strange][0].item()} in input {list(input.shape)}. Use "
            "input.ne(0), or leave out masks=True for labels of several classes"
        )
    first = 0 if o.include_background else 1
    shape = (predicted.shape[0], max(num_masks - first, 0))
    target_bytes = masks.masked_fill(is_ignored, -1).to(torch.uint8)  # -1 is _IGNORED
    flat = [each[:, first:].flatten(0, 1) for each in (predicted.to(torch.uint8), target_bytes)]
    return [Maps(flat[0], flat[1], _IGNORED, range(1, 2), shape, 2**8, lambda: None)]


def _num_axes(op: str, input: Tensor, target: Tensor, dim: int, spacing: tuple[float, ...] | None) -> int:
    """Of two label maps. Nothing but a channel of size 1, or spacing, tells [N, D, H, W] from [N, 1, H, W]."""
    fewer, more = sorted((input.dim(), target.dim()))
    if spacing is not None:
        return len(spacing)
    if fewer + 1 == more:
        return fewer - 1
    has_channel = [each.shape[_checked_dim(op, each, dim)] == 1 for each in (input, target)]
    if fewer != more or not all(has_channel):
        raise RuntimeError(
            f"{op}: expected label maps [N, 1, *] with size 1 in dimension {dim}, or spacing, which says how many "
            f"spatial axes there are, got input {list(input.shape)} and target {list(target.shape)}. Use "
            f"input.unsqueeze({dim}) and target.unsqueeze({dim}) for maps without a channel, masks=True for masks"
        )
    return fewer - 2


def _without_channel(op: str, name: str, labels: Tensor, num_axes: int, dim: int) -> Tensor:
    if labels.dim() == num_axes + 1:
        return labels
    if labels.dim() == num_axes + 2 and labels.shape[_checked_dim(op, labels, dim)] == 1:
        return labels.squeeze(dim)
    raise RuntimeError(
        f"{op}: expected {name} to be labels [N, *] or [N, 1, *] of {num_axes} spatial axes, got {list(labels.shape)}"
    )


def _as_bytes(labels: Tensor) -> Tensor | None:
    """The same labels as uint8; None if it cannot hold some of them."""
    if labels.dtype in (torch.uint8, torch.bool):
        return labels.to(torch.uint8)
    if labels.dtype in (torch.uint16, torch.uint32, torch.uint64):
        labels = labels.long()
    converted = labels.to(torch.uint8)
    return converted if torch.equal(converted.to(labels.dtype), labels) else None


def _num_labels(predicted: Tensor, classes: Tensor) -> int:
    """1 + the largest label of both where it counts."""
    largest = [torch.where(classes >= 0, each, -1) for each in (predicted.long(), classes)]
    return 1 + max((int(each.max()) for each in largest if each.numel()), default=-1)


# ---- checks ----


def _check_predicted(op: str, predicted: Tensor, classes: Tensor, num_classes: int) -> None:
    labels = predicted.long()
    is_bad = (classes >= 0) & ((labels < 0) | (labels >= num_classes))
    if is_bad.any():
        first = is_bad.nonzero()[0].tolist()
        raise IndexError(
            f"{op}: Predicted label {labels[tuple(first)].item()} is out of bounds, the first of {int(is_bad.sum())}, "
            f"at index {first} of {list(labels.shape)}. Expected labels 0 to {num_classes - 1} at voxels that count. "
            "Relabel the prediction, or give a larger num_classes"
        )


def _checked_dim(op: str, tensor: Tensor, dim: int) -> int:
    if not -tensor.dim() <= dim < tensor.dim():
        raise IndexError(
            f"{op}: expected dim in [{-tensor.dim()}, {tensor.dim() - 1}] for a tensor {list(tensor.shape)}, got {dim}"
        )
    return dim % tensor.dim()
