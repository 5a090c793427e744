"""Distance maps: how far each voxel is from a class, or from its boundary."""

import reprlib
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Literal

import torch
from torch import Tensor

from segloss._docs import documented
from segloss._labels import IgnoreIndex, LabelMap, LabelOptions, read_labels
from segloss.functional import (
    _check_choice,
    _check_flags,
    _check_integer,
    _check_number,
    _check_tensor,
    _plain,
    cross_entropy,
)

_distance_transform: Callable[..., Tensor] = torch.ops.segloss.distance_transform.default

_MOST_AXES = 3


@documented(like=cross_entropy)
def distance_transform(
    labels: Tensor,
    spacing: Sequence[float] | None = None,
    *,
    num_classes: int | None = None,
    of: Literal["foreground", "boundary"] = "foreground",
    signed: bool = False,
    spatial_dims: int | None = None,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Exact Euclidean distance maps of labels.

    For each voxel v of the foreground F, the distance to the nearest voxel u outside it, and 0 outside::

        distance(v) = min_{u not in F} |u - v|

    With ``of="boundary"``, of every voxel to the nearest voxel of F that has a neighbour outside F along an axis, or
    lies at the end of the image.

    Source: Felzenszwalb and Huttenlocher 2012, "Distance Transforms of Sampled Functions", Theory of Computing 8.

    The maps are computed in place, axis by axis: they take the memory of the result. They are exact: where spacing is
    the same along all axes, they are the square roots of whole numbers, times the spacing, rounded once; otherwise the
    sum of squares of each axis is rounded, too.

    Args:
        labels: ``[N, 1, *]`` with one to three spatial axes, any integer dtype, bool, or floating with integral values;
            or ``[N, *]``, if ``spacing`` or ``spatial_dims`` says how many axes are spatial.
        spacing: the distance of neighbouring voxels along each spatial axis, in the unit of the result. Default: None,
            1 along all.
        num_classes: C, for a map of each class, whose voxels are its foreground. Default: None, one map, whose
            foreground are all classes but 0.
        of: ``"foreground"`` or ``"boundary"``: from where to where to measure.
        signed: whether distances are negative in the foreground. Voxels outside then have the distance to the nearest
            voxel of the foreground, or, with ``of="boundary"``, of its boundary.
        spatial_dims: the number of spatial axes. Default: None, all after a channel, which is dimension 1 if its size
            is 1; without one, as many as ``spacing`` has numbers.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in labels. They belong to no
            class. A voxel whose only neighbours outside the foreground are ignored is none of the boundary.
        dtype: of the result, floating. Distances are computed in float64 for float64, else in float32.
        others: as in ``segloss.cross_entropy``.

    Returns:
        A contiguous tensor of the labels' shape; with ``num_classes`` ``[N, C, *]``. ``inf`` where there is nothing to
        measure to: no voxel outside the foreground, or no boundary; with ``signed`` the sign says on which side. Has no
        gradient.

    Raises:
        TypeError: labels is no dense tensor of labels, or ``dtype`` is not floating.
        IndexError: a label is neither ignored nor a class in [0, C), or ``label_map`` does not name it.
        ValueError: ``spacing`` is not one finite number above 0 for each spatial axis; ``of`` or ``num_classes`` has an
            unknown value.
        RuntimeError: labels are not ``[N, 1, *]``, nor ``[N, *]`` with as many spatial axes as ``spacing`` or
            ``spatial_dims`` say; a floating label is not integral.

    Equivalent to:
        ``scipy.ndimage.distance_transform_edt(mask, sampling=spacing)`` for the mask of one sample.

    Example:
        >>> import segloss, torch
        >>> labels = torch.tensor([[[[0, 1, 1, 1, 1, 0, 0]]]])  # [N, 1, H, W]
        >>> segloss.distance_transform(labels)
        tensor([[[[0., 1., 2., 2., 1., 0., 0.]]]])
        >>> segloss.distance_transform(labels, (1, 0.5), signed=True)
        tensor([[[[ 0.5000, -0.5000, -1.0000, -1.0000, -0.5000,  0.5000,  1.0000]]]])

    See also:
        * ``segloss.boundary_loss``, ``segloss.hausdorff_dt_loss``: losses made of such maps
        * ``segloss.hausdorff_distance``, ``segloss.average_surface_distance``: how far two surfaces are apart
    """
    op = "distance_transform"
    labels = _plain(labels)
    _check_tensor(op, "labels", labels)
    _check_choice(op, "of", of, ("foreground", "boundary"))
    _check_flags(op, signed=signed)
    if num_classes is not None:
        _check_integer(op, "num_classes", num_classes)
        if num_classes < 1:
            raise ValueError(f"{op}: expected num_classes of 1 or more, got {num_classes}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"{op}: expected dtype to be a floating torch.dtype, got {dtype!r}")
    steps = checked_spacing(op, spacing)
    maps = without_channel(op, "labels", labels, steps, spatial_dims)
    steps = steps or (1.0,) * (maps.dim() - 1)
    ignore_index, label_table = read_labels(op, None, maps, 1, LabelOptions(ignore_index, label_map))
    _check_integer(op, "ignore_index", ignore_index)
    classes, of_boundary = num_classes or 0, of == "boundary"
    distances = _distance_transform(maps, label_table, steps, ignore_index, classes, of_boundary, signed, dtype)
    return distances if num_classes is not None else distances.view(labels.shape)


def checked_spacing(op: str, spacing: Sequence[float] | None) -> tuple[float, ...] | None:
    """A spacing as a tuple of floats; None as it is."""
    if spacing is None:
        return None
    if isinstance(spacing, str) or not isinstance(spacing, Iterable):
        raise TypeError(f"{op}: expected spacing to be a number for each spatial axis, got {reprlib.repr(spacing)}")
    spacing = tuple(spacing)
    for step in spacing:
        _check_number(op, "spacing", step)
    steps = tuple(map(float, spacing))
    if not steps or not all(0 < step < inf for step in steps):
        raise ValueError(f"{op}: expected a spacing of finite numbers above 0, one for each spatial axis, got {steps}")
    return steps


def without_channel(
    op: str, name: str, labels: Tensor, spacing: tuple[float, ...] | None, spatial_dims: int | None
) -> Tensor:
    """Labels [N, 1, *] or [N, *] as [N, *]. Only a channel, spacing or spatial_dims says which axes are spatial."""
    has_channel = labels.dim() > 1 and labels.shape[1] == 1
    if spatial_dims is not None:
        _check_integer(op, "spatial_dims", spatial_dims)
        has_channel = has_channel and labels.dim() == spatial_dims + 2
    num_axes = labels.dim() - (2 if has_channel else 1)
    is_known = has_channel or spacing is not None if spatial_dims is None else num_axes == spatial_dims
    if not is_known or not 1 <= num_axes <= _MOST_AXES:
        of = "one to three" if spatial_dims is None else spatial_dims
        raise RuntimeError(
            f"{op}: expected {name} [N, 1, *], or [N, *] with spatial_dims, of {of} spatial axes, got "
            f"{list(labels.shape)} and spatial_dims={spatial_dims}. Use {name}.unsqueeze(1), or say in spatial_dims "
            "how many axes are spatial"
        )
    if spacing is not None and len(spacing) != num_axes:
        raise ValueError(
            f"{op}: expected a spacing of {num_axes} numbers, one for each spatial axis of {name} "
            f"{list(labels.shape)}, got {list(spacing)}. Use spatial_dims to say which axes these are"
        )
    return labels.squeeze(1) if has_channel else labels
