"""Slow and obvious versions of what segloss computes, in float64. They never import segloss.

All of them are differentiable; `value_and_gradient` asks torch's autograd for the gradient.
"""

import functools
import itertools
import math

import torch
from torch import Tensor


def log_softmax(x: Tensor) -> Tensor:
    """log p over the last dimension as (x_c - m) - log1p(sum of the others): no cancellation, nor in the gradient."""
    largest = x.argmax(-1, keepdim=True)
    m = x.gather(-1, largest)
    difference = (x - m).scatter(-1, largest, 0.0)
    others = difference.exp().scatter(-1, largest, 0.0).sum(-1, keepdim=True)
    return difference - torch.log1p(others) + (m - m).detach()  # m - m: nan where m is nan or inf


def rows(tensor: Tensor, dim: int) -> Tensor:
    """[N, C, *] as [voxels, C]."""
    return tensor.movedim(dim, -1).reshape(-1, tensor.shape[dim])


def weighted(factor: Tensor, values: Tensor) -> Tensor:
    """factor * values, but a zero factor times inf is 0; nan stays nan."""
    void = (factor == 0) & values.isinf()
    return torch.where(void, 0.0, factor * torch.where(void, 0.0, values))


def mean(total: Tensor, denominator: float | Tensor, empty: str) -> Tensor:
    """The quotient; where the denominator is 0, nan or 0 as `empty` says, with a zero gradient."""
    if denominator == 0:
        return total * 0 + (0.0 if empty == "zero" else float("nan"))
    return total / denominator


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    empty: str = "nan",
    log_probabilities: bool = False,
) -> Tensor:
    """Takes labels [N, *] or [N, 1, *] of any dtype, or probabilities (floating, in input's shape)."""
    if input.dim() == 1:
        dim = 0
    x = rows(input.double(), dim)
    num_voxels, num_classes = x.shape
    w = torch.ones(num_classes, dtype=torch.float64) if weight is None else weight.double()
    v = torch.ones(num_voxels, dtype=torch.float64) if voxel_weight is None else voxel_weight.double().reshape(-1)

    has_probabilities = target.is_floating_point() and target.shape == input.shape
    if has_probabilities:
        valid = v != 0
        t = rows(target.double(), dim)[valid]
        share = v[valid]
        shape = input.movedim(dim, -1).shape[:-1]
    else:
        labels = target.to(torch.int64).reshape(-1)
        valid = (labels != ignore_index) & (v != 0)
        t = torch.nn.functional.one_hot(labels[valid], num_classes).double()
        share = v[valid] * w[labels[valid]]
        shape = target.shape if input.dim() > 1 else torch.Size([])

    nll = -x[valid] if log_probabilities else -log_softmax(x[valid])
    factor = w * ((1 - label_smoothing) * t + label_smoothing / max(num_classes, 1))
    losses = v[valid] * weighted(factor, nll).sum(-1)

    if reduction == "none":
        return torch.zeros(num_voxels, dtype=torch.float64).masked_scatter(valid, losses).reshape(shape)
    total = losses.sum()
    if reduction == "sum":
        return total
    return mean(total, share.sum(), empty)


def nll_loss(input: Tensor, target: Tensor, *args, **keywords) -> Tensor:
    return cross_entropy(input, target, *args, log_probabilities=True, **keywords)


def value_and_gradient(loss, input: Tensor, *args, **keywords) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of its sum with respect to a copy of input, in float64."""
    x = input.detach().double().clone().requires_grad_()
    value = loss(x, *args, **keywords)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def accuracy(input: Tensor, target: Tensor, ignore_index: int = -100, dim: int = 1) -> float:
    """Voxel by voxel, compares the first largest logit with the label."""
    correct = valid = 0
    for logits, label in zip(rows(input, dim).tolist(), target.reshape(-1).tolist(), strict=True):
        if label != ignore_index:
            valid += 1
            nans = [c for c, x in enumerate(logits) if x != x]
            predicted = nans[0] if nans else logits.index(max(logits))
            correct += predicted == label
    return correct / valid if valid else float("nan")


def label_pairs(input: Tensor, target: Tensor, ignore_index: int = -100, dim: int = 1) -> list[tuple[int, int]]:
    """(label, prediction) of every voxel that counts; input is logits, or an integer map of predictions."""
    if input.is_floating_point():
        predictions = []
        for logits in rows(input, dim if input.dim() > 1 else 0).tolist():
            nans = [c for c, x in enumerate(logits) if x != x]
            predictions.append(nans[0] if nans else logits.index(max(logits)))
    else:
        predictions = [int(label) for label in input.reshape(-1).tolist()]
    labels = [int(label) for label in target.reshape(-1).tolist()]
    pairs = zip(labels, predictions, strict=True)
    return [(label, prediction) for label, prediction in pairs if label != ignore_index]


def confusion_matrix(
    input: Tensor, target: Tensor, num_classes: int, ignore_index: int = -100, dim: int = 1
) -> list[list[int]]:
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for label, prediction in label_pairs(input, target, ignore_index, dim):
        matrix[label][prediction] += 1
    return matrix


def dice_score(input: Tensor, target: Tensor, num_classes: int, ignore_index: int = -100, dim: int = 1) -> list[float]:
    """For each class, 2 |A and B| / (|A| + |B|): A are the voxels with that label, B those with that prediction."""
    scores = []
    for c in range(num_classes):
        pairs = label_pairs(input, target, ignore_index, dim)
        both = sum(label == c and prediction == c for label, prediction in pairs)
        sizes = sum(label == c for label, _ in pairs) + sum(prediction == c for _, prediction in pairs)
        scores.append(2 * both / sizes if sizes else float("nan"))
    return scores


def jaccard_index(
    input: Tensor, target: Tensor, num_classes: int, ignore_index: int = -100, dim: int = 1
) -> list[float]:
    """|A and B| / |A or B| of the same sets."""
    scores = []
    for c in range(num_classes):
        pairs = label_pairs(input, target, ignore_index, dim)
        both = sum(label == c and prediction == c for label, prediction in pairs)
        either = sum(label == c or prediction == c for label, prediction in pairs)
        scores.append(both / either if either else float("nan"))
    return scores


def mask_scores(input: Tensor, target: Tensor, ignore_index: int = -100, dim: int = 1) -> dict[str, list[float]]:
    """Each metric of each class, from masks [N, C, *], over voxels whose target is not ignore_index in any class."""
    pairs = zip(rows(input, dim).tolist(), rows(target, dim).tolist(), strict=True)
    voxels = [(p, t) for p, t in pairs if ignore_index not in t]
    scores: dict[str, list[float]] = {"accuracy": [], "dice_score": [], "jaccard_index": []}
    for c in range(input.shape[dim]):
        both = sum(p[c] == 1 and t[c] == 1 for p, t in voxels)
        either = sum(p[c] == 1 or t[c] == 1 for p, t in voxels)
        equal = sum(p[c] == t[c] for p, t in voxels)
        scores["accuracy"].append(equal / len(voxels) if voxels else float("nan"))
        scores["dice_score"].append(2 * both / (both + either) if either else float("nan"))
        scores["jaccard_index"].append(both / either if either else float("nan"))
    return scores


# ---- surfaces: of masks of a few voxels, [D, H, W] or [H, W] ----

# Polygons of the surface in a neighbourhood of 2x2x2 voxels, of which those named are inside; voxel 4z + 2y + x. A
# corner is the middle of the edge between two voxels, a polygon the fan of triangles at its first corner. All other
# neighbourhoods are turned or mirrored ones of these, or their complements.
POLYGONS = {
    (): (),
    (0,): ("01 02 04",),
    (0, 1): ("02 04 15 13",),
    (0, 3): ("01 02 04", "13 23 37"),
    (0, 7): ("01 02 04", "37 57 67"),
    (0, 1, 2): ("26 04 15 13 23",),
    (0, 1, 6): ("02 04 15 13", "26 46 67"),
    (0, 3, 5): ("01 02 04", "13 23 37", "15 45 57"),
    (0, 1, 2, 3): ("04 15 37 26",),
    (0, 1, 2, 4): ("13 23 26 46 45 15",),
    (0, 1, 2, 5): ("23 26 04 45 57 13",),
    (0, 1, 6, 7): ("02 04 15 13", "26 46 57 37"),
    (0, 1, 2, 7): ("26 04 15 13 23", "37 57 67"),
    (0, 3, 5, 6): ("01 02 04", "13 23 37", "15 45 57", "26 46 67"),
}


def turned(place: tuple[float, ...], axes: tuple[int, ...], flips: tuple[int, ...]) -> tuple[float, ...]:
    """A place in the neighbourhood after one of the 48 symmetries of the cube."""
    return tuple(1 - place[axis] if flip else place[axis] for axis, flip in zip(axes, flips, strict=True))


def triangle_area(a: Tensor, b: Tensor, c: Tensor) -> float:
    return torch.linalg.cross(b - a, c - a).norm().item() / 2


@functools.cache
def surfel_areas(spacing: tuple[float, float, float]) -> dict[frozenset[tuple[float, ...]], float]:
    """The area of the surface by the places of the voxels inside."""
    places = [tuple(float(voxel >> axis & 1) for axis in (2, 1, 0)) for voxel in range(8)]
    areas = {}
    for axes, flips in itertools.product(itertools.permutations(range(3)), itertools.product((0, 1), repeat=3)):
        for inside, polygons in POLYGONS.items():
            area = 0.0
            for polygon in polygons:
                ends = [
                    [torch.tensor(turned(places[int(voxel)], axes, flips)) for voxel in pair]
                    for pair in polygon.split()
                ]
                first, *rest = [(a + b).double() / 2 * torch.tensor(spacing).double() for a, b in ends]
                area += sum(triangle_area(first, b, c) for b, c in itertools.pairwise(rest))
            voxels = frozenset(turned(places[voxel], axes, flips) for voxel in inside)
            areas[voxels] = areas[frozenset(places) - voxels] = area
    return areas


def contour_length(inside: set[tuple[int, ...]], spacing: tuple[float, ...]) -> float:
    """In a neighbourhood of 2x2 pixels: a straight line between pairs, half a diagonal around each single pixel."""
    fewer = inside if len(inside) <= 2 else {(y, x) for y in (0, 1) for x in (0, 1)} - inside
    if len(fewer) == 2:
        (y, x), (v, u) = fewer
        if y == v or x == u:
            return spacing[1] if y == v else spacing[0]
    return len(fewer) * math.hypot(*spacing) / 2


def surface(mask: Tensor, ignored: Tensor, spacing: tuple[float, ...], kind: str) -> list[tuple[list[float], float]]:
    """Places and weights of the elements of the surface of a bool mask without the ignored voxels."""
    sizes, num_axes = mask.shape, mask.dim()
    if kind == "voxels":
        places = boundary(mask & ~ignored, ignored).nonzero().tolist()
        return [([x * s for x, s in zip(place, spacing, strict=True)], 1.0) for place in places]
    inside = {tuple(place) for place in (mask & ~ignored).nonzero().tolist()}
    void = {tuple(place) for place in ignored.nonzero().tolist()}
    elements = []
    areas = surfel_areas(spacing) if num_axes == 3 else {}
    for place in itertools.product(*(range(size + 1) for size in sizes)):
        corners = {
            offset: tuple(x - 1 + d for x, d in zip(place, offset, strict=True))
            for offset in itertools.product((0, 1), repeat=num_axes)
        }
        here = {offset for offset, voxel in corners.items() if voxel in inside}
        if 0 < len(here) < len(corners) and not void & set(corners.values()):
            weight = (
                areas[frozenset(tuple(map(float, each)) for each in here)] if areas else contour_length(here, spacing)
            )
            elements.append(([x * s for x, s in zip(place, spacing, strict=True)], weight))
    return elements


def surface_distances(
    predicted: Tensor, target: Tensor, ignored: Tensor, spacing: tuple[float, ...], kind: str
) -> list[list[tuple[float, float]]]:
    """Distance and weight of each element, from the predicted surface to the target's and back; both inf if either is
    empty, for the elements of the other."""
    surfaces = [surface(mask, ignored, spacing, kind) for mask in (predicted, target)]
    if not all(surfaces):
        some = [(math.inf, weight) for elements in surfaces for _, weight in elements]
        return [some, some]
    return [
        [(min(math.dist(place, other) for other, _ in to), weight) for place, weight in elements]
        for elements, to in (surfaces, surfaces[::-1])
    ]


def hausdorff_distance(distances: list[list[tuple[float, float]]], percentile: float | None, kind: str) -> float:
    values = [percentile_of(sorted(each), percentile, kind) for each in distances]
    return math.nan if any(map(math.isnan, values)) else max(values)


def percentile_of(pairs: list[tuple[float, float]], percentile: float | None, kind: str) -> float:
    if not pairs:
        return math.nan
    if percentile is None:
        return pairs[-1][0]
    if kind == "voxels":
        rank = percentile / 100 * (len(pairs) - 1)
        low, high = pairs[math.floor(rank)][0], pairs[math.ceil(rank)][0]
        return low + (rank - math.floor(rank)) * (high - low)
    sums = list(itertools.accumulate(weight for _, weight in pairs))
    return next(d for (d, _), share in zip(pairs, sums, strict=True) if share / sums[-1] >= percentile / 100)


def average_surface_distance(distances: list[list[tuple[float, float]]]) -> float:
    pairs = [pair for each in distances for pair in each]
    return sum(d * w for d, w in pairs) / sum(w for _, w in pairs) if pairs else math.nan


def surface_dice(distances: list[list[tuple[float, float]]], tolerance: float) -> float:
    pairs = [pair for each in distances for pair in each]
    return sum(w for d, w in pairs if d <= tolerance) / sum(w for _, w in pairs) if pairs else math.nan


# ---- region losses: formulas over the voxels that count, everything else dropped first ----


def probabilities(x: Tensor, activation: str | None) -> Tensor:
    """p over the last dimension."""
    if activation == "softmax":
        return log_softmax(x).exp()
    return x.sigmoid() if activation == "sigmoid" else x


def labels_of(input: Tensor, target: Tensor, dim: int) -> Tensor:
    """Labels [N, *], [N, 1, *] or one-hot as [voxels]."""
    if target.shape == input.shape and input.dim() > 1 and input.shape[dim] > 1:
        return rows(target.to(torch.int64), dim).argmax(-1)
    return target.to(torch.int64).reshape(-1)


def valid_voxels(
    input: Tensor,
    target: Tensor,
    activation: str | None = "softmax",
    ignore_index: int = -100,
    voxel_weight: Tensor | None = None,
    dim: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which voxels count, as bool [voxels], with their logits and targets [valid, C] and their weights [valid].

    For one class without softmax, labels are its mask. Floating masks and probabilities have no ignore_index.
    """
    x = rows(input.double(), dim)
    v = torch.ones(len(x), dtype=torch.float64) if voxel_weight is None else voxel_weight.double().reshape(-1)
    is_mask_of_one = x.shape[1] == 1 and activation != "softmax"
    if is_mask_of_one or (target.shape == input.shape and (target.is_floating_point() or activation != "softmax")):
        g = target.double().reshape(-1, 1) if is_mask_of_one else rows(target.double(), dim)
        is_ignored = (g.detach() == ignore_index).any(-1) & (not target.is_floating_point())
        valid = ~is_ignored & (v != 0)
        return valid, x[valid], g[valid], v[valid]
    labels = labels_of(input, target, dim)
    valid = (labels != ignore_index) & (v != 0)
    one_hot = torch.nn.functional.one_hot(labels[valid], x.shape[1]).double()
    return valid, x[valid], one_hot, v[valid]


def soft_stats(
    input: Tensor,
    target: Tensor,
    *,
    activation: str | None = "softmax",
    squared: bool = False,
    soft_label: bool = False,
    ignore_index: int = -100,
    voxel_weight: Tensor | None = None,
    dim: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of v p g, v p and v g (squared: v p^2 and v g^2) over the voxels of each sample: [N, C].

    With soft_label and without squares, the first sums v (p + g - |p - g|) / 2 instead of v p g.
    """
    dim = 0 if input.dim() == 1 else dim
    valid, x, g, v = valid_voxels(input, target, activation, ignore_index, voxel_weight, dim)
    p = probabilities(x, activation)
    num_samples = input.movedim(dim, -1).shape[0] if input.dim() > 1 else 1
    sample = torch.arange(len(valid)) // max(len(valid) // max(num_samples, 1), 1)

    def sums(values: Tensor) -> Tensor:
        weighted_values = v.unsqueeze(-1) * values
        of_samples = [weighted_values[sample[valid] == n].sum(0) for n in range(num_samples)]
        return torch.stack(of_samples) if of_samples else weighted_values

    both = (p + g - (p - g).abs()) / 2 if soft_label and not squared else p * g
    return sums(both), sums(p * p if squared else p), sums(g * g if squared else g)


def counted_sums(
    input: Tensor, target: Tensor, include_background: bool, batch: bool, **options
) -> tuple[Tensor, Tensor, Tensor]:
    """The soft statistics of the classes that count: [N, C'], or [C'] of the whole batch."""
    first = 0 if include_background else 1
    stats = soft_stats(input, target, **options)
    intersection, prediction, reference = ((s.sum(0) if batch else s)[..., first:] for s in stats)
    return intersection, prediction, reference


def reduced(terms: Tensor, reduction: str, weight: Tensor | None = None) -> Tensor:
    """The plain mean or sum of the terms times their class weights: without background, the last ones."""
    if weight is not None:
        terms = terms * weight.double()[weight.numel() - terms.shape[-1] :]
    return {"mean": terms.mean, "sum": terms.sum, "none": terms.clone}[reduction]()


def one_minus(shared: Tensor, sizes: Tensor, gamma: float = 1.0) -> Tensor:
    """(1 - shared / sizes) ** gamma; for 0 / 0 it is 0, with a zero gradient."""
    void = (shared == 0) & (sizes == 0)
    return torch.where(void, 0.0, (1 - shared / torch.where(void, 1.0, sizes)) ** gamma)


def dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    include_background: bool = True,
    jaccard: bool = False,
    batch: bool = False,
    weight: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    reduction: str = "mean",
    **options,
) -> Tensor:
    """1 - (2 I + nr) / (P + T + dr); options are those of soft_stats."""
    i, p, t = counted_sums(input, target, include_background, batch, **options)
    union = 2 * (p + t - i) if jaccard else p + t
    return reduced(one_minus(2 * i + smooth_nr, union + smooth_dr), reduction, weight)


def tversky_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    reduction: str = "mean",
    **options,
) -> Tensor:
    """(1 - (I + nr) / (I + alpha FP + beta FN + dr)) ** gamma."""
    i, p, t = counted_sums(input, target, include_background, batch, **options)
    sizes = i + alpha * (p - i) + beta * (t - i)
    return reduced(one_minus(i + smooth_nr, sizes + smooth_dr, gamma), reduction, weight)


def volume_weights(volumes: list[float], w_type: str) -> list[float]:
    """For one sample 1 / T^2, 1 / T or 1; for an absent class the largest of the others, or 1 if all are absent."""
    power = {"square": 2, "simple": 1, "uniform": 0}[w_type]
    is_present = [abs(volume) >= 2**-63 or power == 0 for volume in volumes]
    finite = [1 / volume**power for volume, present in zip(volumes, is_present, strict=True) if present]
    absent = max(finite, default=1.0)
    return [1 / volume**power if present else absent for volume, present in zip(volumes, is_present, strict=True)]


def generalized_dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    w_type: str = "square",
    include_background: bool = True,
    batch: bool = False,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    reduction: str = "mean",
    **options,
) -> Tensor:
    """1 - (2 sum_c w I + nr) / (sum_c w (P + T) + dr) of each sample, or of the whole batch."""
    i, p, t = counted_sums(input, target, include_background, batch, **options)
    volumes = t.detach().reshape(-1, t.shape[-1]).tolist()
    w = torch.tensor([volume_weights(sample, w_type) for sample in volumes], dtype=torch.float64).reshape(t.shape)
    return reduced(one_minus(2 * (w * i).sum(-1) + smooth_nr, (w * (p + t)).sum(-1) + smooth_dr), reduction)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) in full precision for any x; torch's softplus returns x above 20."""
    return -torch.nn.functional.logsigmoid(-x)


def sigmoid_power(x: Tensor, gamma: float) -> Tensor:
    """sigmoid(x) ** gamma, through its logarithm: so its gradient is finite where sigmoid(x) is 0."""
    return (gamma * torch.nn.functional.logsigmoid(x)).exp() if gamma > 0 else torch.ones_like(x)


def softmax_focal(x: Tensor, one_hot: Tensor, gamma: float) -> Tensor:
    """(1 - p_y)^gamma (-log p_y) of [voxels, C]: p_y = sigmoid(-m), m = logsumexp of the other logits minus x_y."""
    chosen = one_hot.bool()
    others = x[~chosen].reshape(len(x), x.shape[1] - 1)
    m = others.logsumexp(-1) - x[chosen]
    return sigmoid_power(m, gamma) * softplus(m)


def binary_focal(x: Tensor, g: Tensor, gamma: float, u: Tensor | float = 1.0) -> Tensor:
    """u g (1 - p)^gamma softplus(-x) + (1 - g) p^gamma softplus(x), p = sigmoid(x); a zero factor times inf is 0."""
    foreground = weighted(u * g * sigmoid_power(-x, gamma), softplus(-x))
    return foreground + weighted((1 - g) * sigmoid_power(x, gamma), softplus(x))


def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    activation: str = "softmax",
    ignore_index: int = -100,
    reduction: str = "mean",
    empty: str = "nan",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """v w (1 - p)^gamma (-log p) of each voxel (softmax) or of each voxel and class (sigmoid)."""
    dim = 0 if input.dim() == 1 else dim
    valid, x, g, v = valid_voxels(input, target, activation, ignore_index, voxel_weight, dim)
    num_classes = x.shape[1]
    w = torch.ones(num_classes, dtype=torch.float64) if weight is None else weight.double()
    by_class = activation == "sigmoid"
    if by_class:
        g = (1 - label_smoothing) * g + label_smoothing / 2
        u = 1.0 if pos_weight is None else pos_weight.double()
        losses, share = v.unsqueeze(-1) * weighted(w, binary_focal(x, g, gamma, u)), num_classes * v
        counts, shape = valid.unsqueeze(-1).expand(-1, num_classes), input.movedim(dim, -1).shape
    else:
        share = v * (g * w).sum(-1)
        losses, counts = weighted(share, softmax_focal(x, g, gamma)), valid
        shape = input.movedim(dim, -1).shape[:-1] if target.shape == input.shape else target.shape

    if reduction == "none":
        full = torch.zeros(counts.shape, dtype=torch.float64).masked_scatter(counts, losses)
        return full.reshape(shape).movedim(-1, dim) if by_class else full.reshape(shape if input.dim() > 1 else ())
    return losses.sum() if reduction == "sum" else mean(losses.sum(), share.sum(), empty)


def topk_loss(
    input: Tensor,
    target: Tensor,
    *,
    k: float = 10.0,
    ignore_index: int = -100,
    empty: str = "nan",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    **options,
) -> Tensor:
    """The mean of the largest k percent, at least one, of the cross entropies of the voxels that count."""
    labels = labels_of(input, target, dim)
    v = torch.ones(len(labels)) if voxel_weight is None else voxel_weight.reshape(-1)
    shape = input.movedim(dim, -1).shape[:-1]
    losses = cross_entropy(
        input,
        labels.reshape(shape),
        ignore_index=ignore_index,
        dim=dim,
        voxel_weight=v,
        reduction="none",
        **options,
    )
    valid_losses = losses.reshape(-1)[(labels != ignore_index) & (v != 0)]
    largest = valid_losses.sort(descending=True).values[: max(1, math.floor(k * len(valid_losses) / 100))]
    return mean(largest.sum(), len(largest), empty)


def voxel_options(options: dict) -> dict:
    """Those options of a Dice loss that its voxel-wise partner has, too."""
    names = ("weight", "ignore_index", "voxel_weight", "dim", "reduction")
    return {name: options[name] for name in names if name in options}


def dice_ce_loss(
    input: Tensor,
    target: Tensor,
    *,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    label_smoothing: float = 0.0,
    empty: str = "nan",
    **options,
) -> Tensor:
    """lambda_dice Dice + lambda_ce cross entropy, the binary one if the activation is a sigmoid."""
    keywords = {**voxel_options(options), "label_smoothing": label_smoothing, "empty": empty}
    if options.get("activation", "softmax") == "sigmoid":
        ce = focal_loss(input, target, gamma=0.0, activation="sigmoid", **keywords)
    else:
        soft = target.is_floating_point() and target.shape == input.shape
        dim = 0 if input.dim() == 1 else options.get("dim", 1)
        positions = input.movedim(dim, -1).shape[:-1]
        ce = cross_entropy(input, target if soft else labels_of(input, target, dim).reshape(positions), **keywords)
    return lambda_dice * dice_loss(input, target, **options) + lambda_ce * ce


def dice_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    lambda_dice: float = 1.0,
    lambda_focal: float = 1.0,
    gamma: float = 2.0,
    empty: str = "nan",
    **options,
) -> Tensor:
    """lambda_dice Dice + lambda_focal focal loss, with the same activation."""
    keywords = {**voxel_options(options), "activation": options.get("activation", "softmax"), "empty": empty}
    focal = focal_loss(input, target, gamma=gamma, **keywords)
    return lambda_dice * dice_loss(input, target, **options) + lambda_focal * focal


def jaccard_of_errors(wrong: list[bool], truth: list[bool]) -> float:
    """One minus the Jaccard index of the foreground if these voxels are wrong and all others right; 0 if none is."""
    union = sum(w or t for w, t in zip(wrong, truth, strict=True))
    return sum(wrong) / union if union else 0.0


def lovasz_extension(errors: Tensor, truth: Tensor) -> Tensor:
    """The sum of the errors, from the largest, times what each voxel adds to the Jaccard loss of those before it."""
    order = sorted(range(len(errors)), key=lambda voxel: -errors[voxel].item())  # stable
    wrong, before, total = [False] * len(errors), 0.0, errors.sum() * 0
    for voxel in order:
        wrong[voxel] = True
        now = jaccard_of_errors(wrong, truth.tolist())
        total = total + errors[voxel] * (now - before)
        before = now
    return total


def groups_of(valid: Tensor, num_samples: int, per_sample: bool) -> list[Tensor]:
    """The voxels that count of each sample, or of the batch: masks of all voxels, which are those of one sample after
    the other."""
    if not per_sample:
        return [valid]
    sample = torch.arange(num_samples).repeat_interleave(len(valid) // max(num_samples, 1))
    return [valid & (sample == n) for n in range(num_samples)]


def lovasz_reduced(groups: list[list[Tensor | None]], like: Tensor, reduction: str, per_sample: bool) -> Tensor:
    """The terms of each group and class, None for a class without one."""
    zero = like.sum() * 0
    if reduction == "none":
        terms = [torch.stack([zero if term is None else term for term in group]) for group in groups]
        return torch.stack(terms) if per_sample else terms[0]
    present = [[term for term in group if term is not None] for group in groups]
    sums = [zero + sum(group) for group in present]
    if reduction == "sum":
        return zero + sum(sums)
    means = [total / max(len(group), 1) for total, group in zip(sums, present, strict=True)]
    return zero + sum(means) / max(len(means), 1)


def lovasz_softmax_loss(
    input: Tensor,
    target: Tensor,
    *,
    classes: str | list[int] = "present",
    per_sample: bool = False,
    activation: str | None = "softmax",
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = 1,
) -> Tensor:
    dim = 0 if input.dim() == 1 else dim
    x = rows(input.double(), dim)
    labels = labels_of(input, target, dim)
    valid = labels != ignore_index
    x = torch.where(valid.unsqueeze(1), x, 0.0)
    p = x.softmax(1) if activation == "softmax" else x
    groups = []
    for group in groups_of(valid, 1 if input.dim() == 1 else input.shape[1 if dim == 0 else 0], per_sample):
        terms: list[Tensor | None] = []
        for c in range(input.shape[dim]) if isinstance(classes, str) else classes:
            g = labels[group] == c
            is_left_out = classes == "present" and not g.any()
            terms.append(None if is_left_out else lovasz_extension((g.double() - p[group, c]).abs(), g))
        groups.append(terms)
    return lovasz_reduced(groups, x, reduction, per_sample)


def lovasz_hinge_loss(
    input: Tensor,
    target: Tensor,
    *,
    per_sample: bool = False,
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = 1,
) -> Tensor:
    """Takes masks of input's shape; with one channel also without it, with several also labels [N, *] or [N, 1, *]."""
    dim = 0 if input.dim() == 1 else dim
    x = rows(input.double(), dim)
    num_channels = x.shape[1]
    values = rows(target, dim) if target.shape == input.shape else target.reshape(-1, 1)
    values = values.double()
    valid = ~(values == ignore_index).any(1)
    masks = values == torch.arange(num_channels) if values.shape[1] < num_channels else values == 1
    x = torch.where(valid.unsqueeze(1), x, 0.0)
    groups = []
    for group in groups_of(valid, 1 if input.dim() == 1 else input.shape[1 if dim == 0 else 0], per_sample):
        signs = 2 * masks[group].double() - 1
        errors = torch.relu(1 - x[group] * signs)
        groups.append([lovasz_extension(errors[:, c], masks[group, c]) for c in range(num_channels)])
    return lovasz_reduced(groups, x, reduction, per_sample)


def resized(x: Tensor, size: tuple[int, ...], upsample: str | tuple[str, ...], align_corners: bool = False) -> Tensor:
    """Logits [N, C, *] at another spatial size, one axis after the other, as torch interpolates in float64."""
    modes = upsample if isinstance(upsample, tuple) else (upsample if "nearest" in upsample else "linear",) * len(size)
    x = x.double()
    for axis, (mode, length) in enumerate(zip(modes, size, strict=True), start=2):
        line = x.movedim(axis, -1)
        keywords = {"align_corners": align_corners} if mode == "linear" else {}
        longer = torch.nn.functional.interpolate(
            line.reshape(-1, 1, line.shape[-1]), size=length, mode=mode, **keywords
        )
        x = longer.reshape(*line.shape[:-1], length).movedim(-1, axis)
    return x


def distance_map(
    inside: Tensor, spacing: tuple[float, ...], of: str, signed: bool, ignored: Tensor | None = None
) -> Tensor:
    """Distances of one mask [*], from each voxel to all others."""
    ignored = torch.zeros_like(inside) if ignored is None else ignored
    places = torch.cartesian_prod(*map(torch.arange, inside.shape)).view(-1, inside.dim())

    def to_nearest(near: Tensor) -> Tensor:
        if not near.any():
            return torch.full(inside.shape, torch.inf).double()
        differences = (places[:, None] - places[near.flatten()]).double() * torch.tensor(spacing, dtype=torch.float64)
        squares = differences.square().sum(-1).amin(1)
        roots = [math.sqrt(each) for each in squares]  # of torch, they are not exact
        return torch.tensor(roots, dtype=torch.float64).view_as(inside)

    if of == "foreground":
        distances = torch.where(inside, to_nearest(~inside), 0.0)
        return torch.where(inside, -distances, to_nearest(inside)) if signed else distances
    distances = to_nearest(boundary(inside, ignored))
    return torch.where(inside & (distances > 0), -distances, distances) if signed else distances


def boundary(inside: Tensor, ignored: Tensor) -> Tensor:
    """The voxels of a mask [*] with a neighbour along an axis that is outside, or with none."""
    outside = ~inside & ~ignored
    result = torch.zeros_like(inside)
    for place in inside.nonzero().tolist():
        for axis, step in itertools.product(range(inside.dim()), (-1, 1)):
            neighbour = [i + step * (d == axis) for d, i in enumerate(place)]
            is_there = 0 <= neighbour[axis] < inside.shape[axis]
            if not is_there or outside[tuple(neighbour)]:
                result[tuple(place)] = True
    return result


# ---- connected components ----


def components(classes: Tensor, connectivity: int, per_class: bool = False) -> tuple[Tensor, int]:
    """The components of a class map [*], numbered in the order of their first voxels, and how many there are."""
    steps = [
        step for step in itertools.product((-1, 0, 1), repeat=classes.dim()) if 1 <= sum(map(abs, step)) <= connectivity
    ]
    result = torch.zeros(classes.shape, dtype=torch.int64)
    count = 0
    for first in (classes > 0).nonzero().tolist():
        if result[tuple(first)]:
            continue
        count += 1
        result[tuple(first)] = count
        reached = [first]
        while reached:
            place = reached.pop()
            for step in steps:
                neighbour = tuple(i + d for i, d in zip(place, step, strict=True))
                is_there = all(0 <= i < size for i, size in zip(neighbour, classes.shape, strict=True))
                if not is_there or classes[neighbour] <= 0 or result[neighbour]:
                    continue
                if not per_class or classes[neighbour] == classes[tuple(place)]:
                    result[neighbour] = count
                    reached.append(neighbour)
    return result, count


# ---- lesions: of bool masks of one sample and class, [D, H, W] or [H, W] ----


def dilated(mask: Tensor, times: int) -> Tensor:
    """By the neighbours that differ along at most two axes."""
    for _ in range(times):
        result = mask.clone()
        for step in itertools.product((-1, 0, 1), repeat=mask.dim()):
            if sum(map(abs, step)) <= 2:
                for place in mask.nonzero().tolist():
                    neighbour = tuple(i + d for i, d in zip(place, step, strict=True))
                    if all(0 <= i < size for i, size in zip(neighbour, mask.shape, strict=True)):
                        result[neighbour] = True
        mask = result
    return mask


def lesion_table(
    predicted: Tensor,
    target: Tensor,
    connectivity: int,
    overlap: str | float = "any",
    dilation: int = 0,
    min_volume: float = 0.0,
    voxel: float = 1.0,
) -> tuple[list[tuple[int, int, float, float, bool]], int, int]:
    """Number, size, volume, Dice, and whether it is found, of each lesion that counts; the predicted components that
    match one of these; and those that match none at all."""
    regions, num_regions = components(dilated(target, dilation), connectivity)
    found, num_found = components(predicted, connectivity)
    lesions = [(regions == k) & target for k in range(1, num_regions + 1)]
    parts = [found == k for k in range(1, num_found + 1)]
    volumes = [int(each.sum()) * voxel for each in lesions]
    if overlap == "any":
        around = [dilated(each, dilation) for each in lesions]
        pairs = [
            (i, j)
            for (i, region), (j, part) in itertools.product(enumerate(around), enumerate(parts))
            if (region & part).any()
        ]
    else:
        of_pairs = [
            (-int((lesion & part).sum()) / int((lesion | part).sum()), i, j)
            for (i, lesion), (j, part) in itertools.product(enumerate(lesions), enumerate(parts))
        ]
        pairs = []
        for negative, i, j in sorted(of_pairs):
            if -negative >= overlap and i not in {a for a, _ in pairs} and j not in {b for _, b in pairs}:
                pairs.append((i, j))
    rows = []
    for i, lesion in enumerate(lesions):
        matching = [parts[j] for a, j in pairs if a == i]
        union = torch.stack(matching).any(0) if matching else torch.zeros_like(lesion)
        dice = 2 * int((union & lesion).sum()) / (int(union.sum()) + int(lesion.sum()))
        if volumes[i] > min_volume:
            rows.append((i + 1, int(lesion.sum()), volumes[i], dice, bool(matching)))
    true = {j for i, j in pairs if volumes[i] > min_volume}
    return rows, len(true), num_found - len({j for _, j in pairs})


# ---- losses of distance maps ----


def class_masks(
    input: Tensor, target: Tensor, activation: str | None, ignore_index: int, dim: int
) -> tuple[Tensor, Tensor]:
    """The mask of each class, bool [N, C, *], and the voxels that count, [N, *]; of labels, one-hot labels or masks."""
    x = input.movedim(dim, 1)
    num_classes = x.shape[1]
    if target.shape == input.shape and (activation == "softmax" or num_classes > 1 or target.is_floating_point()):
        values = target.movedim(dim, 1).to(torch.int64)
        labels = None if activation != "softmax" else values.argmax(1)
    else:
        values = target.to(torch.int64).reshape(x[:, 0].shape)
        labels = values if num_classes > 1 else None
        values = values.unsqueeze(1)
    if labels is None:
        return values == 1, (values != ignore_index).all(1)
    counts = labels != ignore_index
    return (labels.unsqueeze(-1) == torch.arange(num_classes)).movedim(-1, 1) & counts.unsqueeze(1), counts


def distance_maps(masks: Tensor, spacing: tuple[float, ...] | None) -> Tensor:
    """The signed distance of each voxel of masks [N, C, *] to the other side, negative inside; 0 if there is none."""
    spacing = spacing or (1.0,) * (masks.dim() - 2)
    maps = [distance_map(mask, spacing, "foreground", signed=True) for mask in masks.flatten(0, 1)]
    return torch.stack(maps).nan_to_num(posinf=0, neginf=0).reshape(masks.shape) if maps else masks.double()


def mean_of_maps(
    maps: Tensor, v: Tensor, include_background: bool, batch: bool, weight: Tensor | None, reduction: str
) -> Tensor:
    """From maps [N, C, *], and the voxels' weights [N, *], to the reduced terms."""
    v = v.unsqueeze(1)
    sums = torch.where(v == 0, 0.0, v * maps).flatten(2).sum(2)
    totals = v.flatten(2).sum(2)
    if batch:
        sums, totals = sums.sum(0), totals.sum(0)
    terms = sums / torch.where(totals == 0, 1.0, totals)
    if weight is not None:
        terms = terms * weight.double()
    terms = terms if include_background or maps.shape[1] == 1 else terms[..., 1:]
    return terms if reduction == "none" else terms.mean() if reduction == "mean" else terms.sum()


def activated(x: Tensor, activation: str | None) -> Tensor:
    return (
        x
        if activation is None
        else x.sigmoid()
        if activation == "sigmoid"
        else log_softmax(x.movedim(1, -1)).exp().movedim(-1, 1)
    )


def boundary_loss(
    input: Tensor,
    target: Tensor,
    *,
    activation: str | None = "softmax",
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    spacing: tuple[float, ...] | None = None,
) -> Tensor:
    masks, counts = class_masks(input, target, activation, ignore_index, dim)
    v = counts.double() if voxel_weight is None else counts * voxel_weight.double().reshape(counts.shape)
    maps = distance_maps(masks, spacing)
    phi = torch.where(maps < 0, maps + min(spacing or [1.0]), maps)
    p = activated(input.double().movedim(dim, 1), activation)
    return mean_of_maps(p * phi, v, include_background, batch, weight, reduction)


def hausdorff_dt_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 2.0,
    activation: str | None = "softmax",
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
    spacing: tuple[float, ...] | None = None,
) -> Tensor:
    masks, counts = class_masks(input, target, activation, ignore_index, dim)
    v = counts.double() if voxel_weight is None else counts * voxel_weight.double().reshape(counts.shape)
    p = activated(input.double().movedim(dim, 1), activation)
    predicted = (p.detach() > 0.5) & counts.unsqueeze(1)
    powers = [distance_maps(each, spacing).abs() ** alpha for each in (predicted, masks)]
    return mean_of_maps((p - masks.double()) ** 2 * sum(powers), v, include_background, batch, weight, reduction)


# ---- components ----


def connected_components(mask: Tensor, connectivity: int | None = None) -> Tensor:
    """The components of one mask [*], numbered from 1 on, by scipy; by default of all neighbours."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(mask.dim(), connectivity or mask.dim())
    return torch.from_numpy(ndimage.label(mask.cpu().numpy(), structure)[0]).long().to(mask.device)


def nearest_component(components: Tensor, spacing: tuple[float, ...] | None = None) -> Tensor:
    """The smallest number among the nearest voxels that have one, of [*]; compares all pairs of voxels."""
    steps = torch.tensor(spacing or (1.0,) * components.dim(), dtype=torch.float64)
    places = torch.stack(torch.meshgrid(*map(torch.arange, components.shape), indexing="ij"), -1) * steps
    places, numbers = places.flatten(0, -2), components.flatten().long()
    near = numbers > 0
    if not near.any():
        return torch.zeros_like(components, dtype=torch.long)
    squares = (places.unsqueeze(1) - places[near]).square().sum(-1)
    is_nearest = squares == squares.amin(1, keepdim=True)
    return torch.where(is_nearest, numbers[near], numbers.max() + 1).amin(1).reshape(components.shape)


def instance_terms(
    p: Tensor, g: Tensor, losses: Tensor, v: Tensor, parts: list[Tensor], factors: tuple[float, float]
) -> Tensor:
    """The mean over parts, masks of a sample [*], of the Dice loss of one class and the mean loss of the voxels."""
    terms = []
    for part in parts:
        w = v * part
        size = ((w * p).sum() + (w * g).sum()).clamp_min(1e-7)
        dice = 1 - 2 * (w * p * g).sum() / size
        terms.append(factors[0] * dice + factors[1] * (w * losses).sum() / w.sum())
    return torch.stack(terms).mean()


def instances(
    input: Tensor, target: Tensor, activation: str, ignore_index: int, voxel_weight: Tensor | None
) -> list[list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]]:
    """Of each sample and foreground class: p, g, losses and weights of the voxels, and which ones count."""
    masks, counts = class_masks(input, target, activation, ignore_index, 1)
    v = counts.double() if voxel_weight is None else counts * voxel_weight.double().reshape(counts.shape)
    x = torch.where(counts.unsqueeze(1), input.double(), 0.0)
    p = activated(x, activation)
    has_background = input.shape[1] > 1 and target.shape != input.shape
    found = []
    for n in range(len(x)):
        of_sample = []
        for c in range(int(has_background), x.shape[1]):
            g = masks[n, c] & counts[n]
            if activation == "softmax":
                losses = -(log_softmax(x[n].movedim(0, -1)) * masks[n].movedim(0, -1).double()).sum(-1)
            else:
                losses = torch.nn.functional.binary_cross_entropy_with_logits(x[n, c], g.double(), reduction="none")
            of_sample.append((p[n, c], g, losses, v[n], counts[n]))
        found.append(of_sample)
    return found


def of_whole_images(
    input: Tensor,
    target: Tensor,
    activation: str,
    ignore_index: int,
    voxel_weight: Tensor | None,
    factors: tuple[float, float],
) -> Tensor:
    """Dice of each sample and foreground class and the cross entropy of all voxels, with these factors."""
    found = instances(input, target, activation, ignore_index, voxel_weight)
    dice = [
        1 - 2 * (v * p * g).sum() / ((v * p).sum() + (v * g).sum())
        for of_sample in found
        for p, g, _, v, _ in of_sample
    ]
    if activation == "softmax":
        ce = cross_entropy(input, target, ignore_index=ignore_index, voxel_weight=voxel_weight)
    else:
        masks, counts = class_masks(input, target, activation, ignore_index, 1)
        v = counts.double() if voxel_weight is None else counts * voxel_weight.double().reshape(counts.shape)
        x = torch.where(counts.unsqueeze(1), input.double(), 0.0)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(x, masks.double(), reduction="none")
        ce = (v.unsqueeze(1) * losses).sum() / (v.sum() * x.shape[1])
    return factors[0] * torch.stack(dice).mean() + factors[1] * ce


def cc_dice_ce_loss(
    input: Tensor,
    target: Tensor,
    *,
    lambda_cc: float = 1.0,
    lambda_global: float = 1.0,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    spacing: tuple[float, ...] | None = None,
    connectivity: int | None = None,
    activation: str = "softmax",
    ignore_index: int = -100,
    voxel_weight: Tensor | None = None,
) -> Tensor:
    terms = []
    factors = (lambda_dice, lambda_ce)
    for of_sample in instances(input, target, activation, ignore_index, voxel_weight):
        for p, g, losses, v, _ in of_sample:
            regions = nearest_component(connected_components(g, connectivity), spacing)
            parts = [part for part in (regions == r for r in regions.unique()) if (v * part).sum() > 0]
            terms.append(instance_terms(p, g.double(), losses, v, parts, factors))
    whole = of_whole_images(input, target, activation, ignore_index, voxel_weight, factors)
    return lambda_cc * torch.stack(terms).mean() + lambda_global * whole


def blob_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 1.0,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    connectivity: int | None = None,
    activation: str = "softmax",
    ignore_index: int = -100,
    voxel_weight: Tensor | None = None,
) -> Tensor:
    terms = []
    factors = (lambda_dice, lambda_ce)
    for of_sample in instances(input, target, activation, ignore_index, voxel_weight):
        for p, g, losses, v, _ in of_sample:
            found = connected_components(g, connectivity)
            parts = [(found == 0) | (found == r) for r in found.unique() if r > 0 and (v * (found == r)).sum() > 0]
            if parts:
                terms.append(instance_terms(p, g.double(), losses, v, parts, factors))
    blobs = torch.stack(terms).mean() if terms else 0
    return beta * blobs + alpha * of_whole_images(input, target, activation, ignore_index, voxel_weight, factors)


def pooled(x: Tensor, axes: tuple[int, ...], largest: bool) -> Tensor:
    """The largest, or the least, of each 3 elements along axes; nothing lies beyond the border."""
    beyond = -math.inf if largest else math.inf
    sizes = [int(d in axes) for d in reversed(range(x.dim())) for _ in range(2)]
    windows = torch.nn.functional.pad(x, sizes, value=beyond)
    for axis in axes:
        windows = windows.unfold(axis, 3, 1)
    windows = windows.flatten(x.dim())
    return windows.amax(-1) if largest else windows.amin(-1)


def soft_skeleton(x: Tensor, iterations: int) -> Tensor:
    """Of images [N, C, *]."""
    axes = tuple(range(2, x.dim()))
    skeleton = torch.zeros_like(x)
    for _ in range(iterations + 1 if x.numel() > 0 else 0):
        eroded = torch.stack([pooled(x, (axis,), largest=False) for axis in axes]).amin(0)
        lost = torch.relu(x - pooled(eroded, axes, largest=True))
        skeleton = skeleton + torch.relu(lost - skeleton * lost)
        x = eroded
    return skeleton


def sides_of_cldice(
    input: Tensor, target: Tensor, activation: str | None, ignore_index: int, dim: int, voxel_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction and target [N, C, *], 0 in voxels that do not count, and the weights of the voxels [N, 1, *]."""
    if target.is_floating_point() and target.numel() == input.numel():
        masks = target.double().reshape(input.shape).movedim(dim, 1)
        counts = torch.ones_like(masks[:, 0], dtype=torch.bool)
    else:
        masks, counts = class_masks(input, target, activation, ignore_index, dim)
    v = counts.double() if voxel_weight is None else counts * voxel_weight.double().reshape(counts.shape)
    v = v.unsqueeze(1)
    p = activated(torch.where(v == 0, 0.5, input.double().movedim(dim, 1)), activation)
    return torch.where(v == 0, 0.0, p), torch.where(v == 0, 0.0, masks.double()), v


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """The quotient; 0 / 0 is 1, with a zero gradient."""
    return 1 - one_minus(above, below)


def soft_cldice_loss(
    input: Tensor,
    target: Tensor,
    *,
    iterations: int = 3,
    per_class: bool = True,
    activation: str | None = "softmax",
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
    smooth: float = 1e-4,
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = 1,
    voxel_weight: Tensor | None = None,
) -> Tensor:
    p, g, v = sides_of_cldice(input, target, activation, ignore_index, dim, voxel_weight)

    def total(values: Tensor) -> Tensor:
        sums = (v * values).flatten(2).sum(2)
        sums = sums if include_background or sums.shape[1] == 1 else sums[:, 1:]
        sums = sums.sum(0) if batch else sums
        return sums if per_class else sums.sum(-1)

    s_p, s_g = soft_skeleton(p, iterations), soft_skeleton(g, iterations)
    precision = ratio(total(s_p * g) + smooth_nr, total(s_p) + smooth_dr)
    sensitivity = ratio(total(s_g * p) + smooth_nr, total(s_g) + smooth_dr)
    both = precision + sensitivity + smooth
    terms = 1 - 2 * precision * sensitivity / torch.where(both == 0, 1.0, both)
    return reduced(terms, reduction, weight)


def dice_cldice_loss(
    input: Tensor,
    target: Tensor,
    *,
    lambda_dice: float = 0.5,
    lambda_cldice: float = 0.5,
    iterations: int = 3,
    smooth: float = 1e-4,
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
    **options,
) -> Tensor:
    options |= {"smooth_nr": smooth_nr, "smooth_dr": smooth_dr}
    of_classes = options.pop("per_class", True)
    cldice = soft_cldice_loss(input, target, iterations=iterations, smooth=smooth, per_class=of_classes, **options)
    return lambda_dice * dice_loss(input, target, **options) + lambda_cldice * cldice
