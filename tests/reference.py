"""Slow and obvious versions of what segloss computes, in float64. They never import segloss.

All of them are differentiable; `value_and_gradient` asks torch's autograd for the gradient.
"""

import torch
from torch import Tensor


def log_softmax(x: Tensor) -> Tensor:
    """log p over the last dimension as (x_c - m) - log1p(sum of the others): nothing cancels, nor in the gradient."""
    largest = x.argmax(-1, keepdim=True)
    m = x.gather(-1, largest)
    difference = (x - m).scatter(-1, largest, 0.0)
    others = difference.exp().scatter(-1, largest, 0.0).sum(-1, keepdim=True)
    return difference - torch.log1p(others) + (m - m).detach()  # m - m: nan where m is nan or inf


def rows(tensor: Tensor, dim: int) -> Tensor:
    """[N, C, *] as [voxels, C]."""
    return tensor.movedim(dim, -1).reshape(-1, tensor.shape[dim])


def weighted(factor: Tensor, values: Tensor) -> Tensor:
    """factor * values, where a zero factor gives 0 even of inf; nan stays nan."""
    void = (factor == 0) & values.isinf()
    return torch.where(void, 0.0, factor * torch.where(void, 0.0, values))


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
    """Labels [N, *] or [N, 1, *] of any dtype, or probabilities (floating, of input's shape), one row per voxel."""
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
    if share.sum() == 0:
        return total * 0 + (0.0 if empty == "zero" else float("nan"))
    return total / share.sum()


def nll_loss(input: Tensor, target: Tensor, *args, **keywords) -> Tensor:
    return cross_entropy(input, target, *args, log_probabilities=True, **keywords)


def value_and_gradient(loss, input: Tensor, *args, **keywords) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of its sum with respect to a copy of input, in float64."""
    x = input.detach().double().clone().requires_grad_()
    value = loss(x, *args, **keywords)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def accuracy(input: Tensor, target: Tensor, ignore_index: int = -100, dim: int = 1) -> float:
    """Voxel by voxel: the first largest logit against the label."""
    correct = valid = 0
    for logits, label in zip(rows(input, dim).tolist(), target.reshape(-1).tolist(), strict=True):
        if label != ignore_index:
            valid += 1
            nans = [c for c, x in enumerate(logits) if x != x]
            predicted = nans[0] if nans else logits.index(max(logits))
            correct += predicted == label
    return correct / valid if valid else float("nan")
