"""Skeletons of labels, and the loss that asks for them: lines along the middle of vessels, roots and roads."""

import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from segloss._docs import documented
from segloss._label_sets import Regions
from segloss._labels import IgnoreIndex, LabelMap, LabelOptions, _num_classes, read_labels
from segloss._upsample import Upsample, Upsampling, full_shape, upsampling_code
from segloss.components import connected_components
from segloss.distance import without_channel
from segloss.functional import (
    _REDUCTIONS,
    Activation,
    ClassWeight,
    Reduction,
    _check_choice,
    _check_flags,
    _check_integer,
    _check_numbers,
    _check_tensor,
    _labels,
    _of_classes,
    _plain,
    _result_dtype,
    _soft_stats,
)
from segloss.region import _reduced, _sums, _terms, _Walk, dice_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Thinning: TypeAlias = Literal["zhang", "lee"]

_skeletonize: Callable[..., Tensor] = torch.ops.segloss.skeletonize.default


@documented(like=connected_components)
def skeletonize(
    labels: Tensor,
    *,
    method: Thinning | None = None,
    tube: int = 0,
    per_class: bool = False,
    spatial_dims: int | None = None,
    ignore_index: IgnoreIndex = -100,
    label_map: LabelMap | None = None,
) -> Tensor:
    """Skeletons of the foreground of each sample, by thinning: lines, one voxel wide, along its middle.

    Voxels v of the foreground's border go, round by round, until none can. With N(v) its neighbours in the foreground
    F, of 8 or 26, and chi the Euler characteristic of F, as a union of closed cubes, v can go if::

        zhang: 2 <= |N(v)| <= 6, N(v) is one arc of the circle of neighbours, and some sides of v are background
        lee:   |N(v)| != 1, chi(F without v) = chi(F), and N(v) is connected

    ``"zhang"`` goes over all pixels at once, in two passes in turn, which ask for other sides. ``"lee"`` goes from each
    side in turn, and there over one voxel after the other.

    Source: Zhang and Suen 1984, "A fast parallel algorithm for thinning digital patterns", Communications of the ACM
    27(3); Lee, Kashyap and Chu 1994, "Building skeleton models via 3-D medial surface/axis thinning algorithms",
    CVGIP: Graphical Models and Image Processing 56(6). Where scikit-image differs from Zhang and Suen, at some corners,
    so does this function.

    Args:
        labels: ``[N, 1, *]`` with two or three spatial axes, any integer dtype, bool, or floating with integral values;
            or ``[N, *]``, if ``spatial_dims`` says how many axes are spatial. What is beyond the image is background.
        method: ``"zhang"``, for two spatial axes, or ``"lee"``. Default: None, ``"zhang"`` for two and ``"lee"`` for
            three.
        tube: by how many voxels to widen the skeleton: so many times by the neighbours along the axes, and then only
            the foreground is kept.
        per_class: whether each class has a skeleton of its own, in place of all classes but 0 together.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as they are in labels. They are
            background.
        others: as in ``segloss.connected_components``.

    Returns:
        A contiguous bool tensor of the labels' shape: True on the skeletons. The labels times it are the skeleton of
        each class, with ``per_class``, or each class's part of the skeleton. Without gradient. The same for any number
        of threads.

    Raises:
        TypeError: labels is no dense tensor of labels.
        IndexError: a label is negative, beyond int32 or not named by ``label_map``, and not ignored.
        ValueError: ``method`` is not one for so many axes; ``tube`` is below 0.
        RuntimeError: labels are not ``[N, 1, *]``, nor ``[N, *]`` with ``spatial_dims`` axes, of which there are two or
            three; a floating label is not integral.

    Equivalent to:
        ``skimage.morphology.skeletonize(mask, method=method)`` of scikit-image 0.26, for the mask of one sample.

    Example:
        >>> import segloss, torch
        >>> labels = torch.zeros(1, 1, 5, 7, dtype=torch.uint8)  # [N, 1, H, W]
        >>> labels[..., 1:4, :] = 1
        >>> segloss.skeletonize(labels).int()
        tensor([[[[0, 0, 0, 0, 0, 0, 0],
                  [0, 0, 0, 0, 0, 1, 0],
                  [1, 1, 1, 1, 1, 0, 0],
                  [0, 0, 0, 0, 0, 0, 0],
                  [0, 0, 0, 0, 0, 0, 0]]]], dtype=torch.int32)

    See also:
        * ``segloss.skeleton_recall_loss``: a loss on the widened skeleton
        * ``segloss.distance_transform``: how far voxels are from the foreground's border
    """
    op = "skeletonize"
    labels = _plain(labels)
    _check_tensor(op, "labels", labels)
    _check_flags(op, per_class=per_class)
    _check_tube(op, tube)
    maps = without_channel(op, "labels", labels, None, spatial_dims)
    ignore_index, label_table = read_labels(op, None, maps, 1, LabelOptions(ignore_index, label_map))
    _check_integer(op, "ignore_index", ignore_index)
    skeletons = _skeletonize(maps, label_table, _method(op, method, maps), ignore_index, per_class, tube)
    return skeletons.view(labels.shape)


@documented(like=dice_loss)
def skeleton_recall_loss(
    input: Tensor,
    target: Tensor,
    *,
    skeleton: Tensor | None = None,
    tube: int = 2,
    method: Thinning | None = None,
    activation: Activation | None = "softmax",
    batch: bool = False,
    weight: ClassWeight | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: IgnoreIndex = -100,
    reduction: Reduction = "mean",
    dim: int = 1,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    voxel_weight: Tensor | None = None,
    label_map: LabelMap | None = None,
    regions: Regions | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """Skeleton recall loss: how much of the target's skeleton, widened to a tube, the prediction misses.

    For each sample and class but class 0, with p the activated input, g the target and v the voxel weight, sums over
    the voxels in the tube S that count are I = sum_S v * p * g and T = sum_S v * g, and::

        loss = weight * (1 - (I + smooth_nr) / (T + smooth_dr))

    S is the skeleton of all classes but 0 together, widened by ``tube`` voxels within them: ``segloss.skeletonize``.

    Source: Kirchhoff et al. 2024, "Skeleton Recall Loss for Connectivity Conserving and Resource Efficient Segmentation
    of Thin Tubular Structures", ECCV, arXiv:2404.03010.

    Their implementation returns the same minus 1. The loss does not see false positives: add it to a region loss and
    cross entropy, as in the paper, with weight 1 each. It has a term for class 0 only if this is the only class, or the
    first of ``regions``. A class that is not on the skeleton has the term ``1 - smooth_nr / smooth_dr``.

    Args:
        target: one of

            * class labels ``[N, *]`` or ``[N, 1, *]`` with two or three spatial axes: any integer dtype, bool, or
              floating with integral values;
            * with softmax: exact one-hot labels, integer, of input's shape;
            * with sigmoid or without activation, and one channel: a map of 0 and 1, the mask of the foreground.
        skeleton: the voxels of S, of the labels' shape, any dtype, those that are not 0, if a data loader makes them:
            ``segloss.skeletonize(labels, tube=2)``. Default: None, they are made of the target.
        tube: by how many voxels to widen the skeleton, if it is made here.
        method: ``"zhang"`` or ``"lee"``, as in ``segloss.skeletonize``, if the skeleton is made here. Default: None,
            ``"zhang"`` for two spatial axes and ``"lee"`` for three.
        others: as in ``segloss.dice_loss``.

    Returns:
        A tensor of input's dtype (float32 for half types under autocast), rounded to it once; 0-dim, or with
        ``reduction="none"`` of the shape ``[N, C']``, or ``[C']`` with ``batch``, where C' classes have terms.

    Raises:
        ValueError: there are not two or three spatial axes, or ``method`` is not one for so many; ``tube`` is below 0.
        RuntimeError: the target holds probabilities, or a mask for each of several classes; ``skeleton`` has another
            shape than the labels.
        TypeError, IndexError, ValueError, RuntimeError: as ``segloss.dice_loss``.

    Example:
        >>> import segloss, torch
        >>> logits = torch.tensor([[[[0.5, 0.2, 0.0, 2.0]] * 3, [[0.0, 0.1, 3.0, 0.0]] * 3]])
        >>> labels = torch.tensor([[[[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]]], dtype=torch.uint8)  # [N, 1, H, W]
        >>> segloss.skeleton_recall_loss(logits, labels)
        tensor(0.4844)

    See also:
        * ``segloss.SkeletonRecallLoss``: the same as a module
        * ``segloss.skeletonize``: makes the skeleton
        * ``segloss.dice_ce_loss``: what it is added to
    """
    op = "skeleton_recall_loss"
    weight = _of_classes(weight, input)
    _check_choice(op, "reduction", reduction, _REDUCTIONS)
    _check_numbers(op, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    _check_tube(op, tube)
    if method is not None:
        _check_choice(op, "method", method, ("zhang", "lee"))
    input, target, skeleton = _plain(input), _plain(target), _plain(skeleton)
    _check_tensor(op, "input", input)
    _check_tensor(op, "target", target)
    if skeleton is not None:
        _check_tensor(op, "skeleton", skeleton)
    resize = Upsampling(upsample, align_corners)
    target = _class_labels(op, input, target, dim, resize, activation)
    read = read_labels(op, None, target, dim, LabelOptions(ignore_index, label_map))
    has_background = regions is not None or _num_classes(input, dim) == 1

    def sums_in_tube(x: Tensor, y: Tensor, of_classes: Tensor | None, v: Tensor | None, *options: Any) -> Any:
        in_tube = _tube(op, x, y, dim, skeleton, read, tube, method)
        return _soft_stats(x, y, of_classes, _within(in_tube, v), *options)

    labels = LabelOptions(ignore_index, label_map, regions)
    walk = _Walk(dim, resize, activation, labels, has_background, batch, process_group)
    stats, whole, _ = _sums(op, input, target, weight, voxel_weight, walk, operator=sums_in_tube)
    terms = _terms(1, stats.intersection + smooth_nr, stats.target + smooth_dr, smooth_nr)
    return _reduced(terms, weight, reduction, whole).to(_result_dtype(input))


def _check_tube(op: str, tube: int) -> None:
    _check_integer(op, "tube", tube)
    if tube < 0:
        raise ValueError(f"{op}: expected tube, a number of voxels, to be 0 or more, got {reprlib.repr(tube)}")


def _method(op: str, method: Thinning | None, maps: Tensor) -> str:
    """The method for labels [N, *]; the operator checks how many axes there are."""
    if method is None:
        return "zhang" if maps.dim() == 3 else "lee"
    _check_choice(op, "method", method, ("zhang", "lee"))
    return method


def _class_labels(
    op: str, input: Tensor, target: Tensor, dim: int, resize: Upsampling, activation: str | None
) -> Tensor:
    """Labels of a one-hot target; other labels unchanged. Masks of several classes have no one skeleton."""
    code = upsampling_code(op, input, resize)
    if activation == "softmax":
        return _labels(op, input, target, dim, code)
    is_of_each = input.dim() > 1 and -input.dim() <= dim < input.dim() and input.shape[dim] > 1
    if is_of_each and target.shape == full_shape(input, target, dim, code):
        raise RuntimeError(
            f"{op}: expected class labels [N, *] or [N, 1, *], got a mask for each class, {target.dtype} "
            f"{list(target.shape)}. Use labels, with regions for classes that overlap"
        )
    return target


def _tube(
    op: str,
    input: Tensor,
    target: Tensor,
    dim: int,
    skeleton: Tensor | None,
    read: tuple[int, Tensor | None],
    tube: int,
    method: Thinning | None,
) -> Tensor:
    """The voxels to sum over, a bool tensor of the target's shape."""
    if skeleton is not None:
        if skeleton.shape != target.shape and skeleton.squeeze(dim).shape != target.squeeze(dim).shape:
            raise RuntimeError(
                f"{op}: expected a skeleton of the labels' shape {list(target.shape)}, got {list(skeleton.shape)}"
            )
        return (skeleton != 0).view(target.shape)
    maps = target.squeeze(dim) if target.dim() == input.dim() else target
    if maps.dim() not in (3, 4):
        raise ValueError(
            f"{op}: expected labels [N, *] or [N, 1, *] with two or three spatial axes, got {list(target.shape)}"
        )
    ignore_index, label_table = read
    skeletons = _skeletonize(maps, label_table, _method(op, method, maps), ignore_index, False, tube)
    return skeletons.view(target.shape)


def _within(in_tube: Tensor, voxel_weight: Tensor | None) -> Tensor:
    """The voxel weights, 0 beyond the tube."""
    if voxel_weight is None or voxel_weight.numel() != in_tube.numel():  # the operator refuses another shape
        return in_tube if voxel_weight is None else voxel_weight
    return voxel_weight.masked_fill(~in_tube.view(voxel_weight.shape), 0)
