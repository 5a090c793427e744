"""Connected components of label maps."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from segloss._docs import documented
from segloss._labels import IgnoreIndex, LabelMap, LabelOptions, read_labels
from segloss.distance import distance_transform, without_channel
from segloss.functional import _check_flags, _check_integer, _check_tensor, _plain

_connected_components: Callable[..., tuple[Tensor, Tensor]] = torch.ops.segloss.connected_components.default


class Components(NamedTuple):
    """The connected components of label maps: the result of ``segloss.connected_components``.

    The largest number in a sample is the number of its components::

        counts[n] = max(labels[n])        (0 where there is none)

    Args:
        labels: for each voxel the number of its component, from 1 on; 0 in the background. An int32 tensor of the
            labels' shape.
        counts: the number of components of each sample, int64 ``[N]``.

    Example:
        >>> import segloss, torch
        >>> components = segloss.connected_components(torch.tensor([[[[1, 0, 1]]]]))
        >>> components.labels.flatten().bincount(minlength=3)  # sizes, the background's first
        tensor([1, 1, 1])

    See also:
        * ``segloss.connected_components``: makes them
    """

    labels: Tensor
    counts: Tensor


@documented(like=distance_transform)
def connected_components(
    labels: Tensor,
    *,
    connectivity: int = 1,
    per_class: bool = False,
    spatial_dims: int | None = None,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
) -> Components:
    """Connected components of the foreground of each sample: of all voxels whose class is not 0.

    Two voxels of the foreground are in one component if a path of such voxels joins them, from neighbour to neighbour.
    Neighbours differ by 1 along one axis or, with a higher ``connectivity``, along several at once::

        connectivity   two axes        three axes
        1              4 neighbours     6 neighbours
        2              8 neighbours    18 neighbours
        3              -               26 neighbours

    Components are numbered from 1 on, anew in each sample, in the order of their first voxels.

    Source: Rosenfeld and Pfaltz 1966, "Sequential Operations in Digital Picture Processing", Journal of the ACM 13;
    runs of voxels in place of voxels: He, Chao and Suzuki 2008, "A Run-Based Two-Scan Labeling Algorithm", IEEE
    Transactions on Image Processing 17.

    Args:
        labels: ``[N, 1, *]`` with one to three spatial axes, any integer dtype, bool, or floating with integral values;
            or ``[N, *]``, if ``spatial_dims`` says how many axes are spatial.
        connectivity: along how many axes at once neighbours may differ, from 1 to the number of spatial axes.
        per_class: whether voxels of different classes are in different components, in place of all voxels whose class
            is not 0 alike.
        spatial_dims: the number of spatial axes. Default: None, all after the channel of labels ``[N, 1, *]``.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in labels. They belong to no
            component.
        others: as in ``segloss.distance_transform``.

    Returns:
        ``Components(labels, counts)``, without gradient. The same for any number of threads.

    Raises:
        TypeError: labels is no dense tensor of labels.
        IndexError: a label is negative, beyond int32 or not named by ``label_map``, and not ignored.
        ValueError: ``connectivity`` is not in the range that the axes allow.
        RuntimeError: labels are not ``[N, 1, *]``, nor ``[N, *]`` with ``spatial_dims`` axes; a floating label is not
            integral; a sample has more than 2^31 - 1 runs of voxels.

    Equivalent to:
        ``scipy.ndimage.label(mask, scipy.ndimage.generate_binary_structure(mask.ndim, connectivity))`` for the mask of
        one sample.

    Example:
        >>> import segloss, torch
        >>> labels = torch.tensor([[[[1, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 1]]]])  # [N, 1, H, W]
        >>> segloss.connected_components(labels)
        Components(labels=tensor([[[[1, 0, 0, 2],
                  [0, 3, 0, 2],
                  [0, 0, 0, 2]]]], dtype=torch.int32), counts=tensor([3]))
        >>> segloss.connected_components(labels, connectivity=2).counts
        tensor([2])
        >>> segloss.connected_components(labels, connectivity=2, per_class=True).counts
        tensor([3])

    See also:
        * ``segloss.lesion_scores``: which components of a target are found
        * ``segloss.distance_transform``: how far voxels are from the foreground
    """
    op = "connected_components"
    labels = _plain(labels)
    _check_tensor(op, "labels", labels)
    _check_integer(op, "connectivity", connectivity)
    _check_flags(op, per_class=per_class)
    maps = without_channel(op, "labels", labels, None, spatial_dims)
    ignore_index, label_table = read_labels(op, None, maps, 1, LabelOptions(ignore_index, label_map))
    _check_integer(op, "ignore_index", ignore_index)
    components, counts = _connected_components(maps, label_table, connectivity, ignore_index, per_class)
    return Components(components.view(labels.shape), counts)
