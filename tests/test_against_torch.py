"""torch.nn's losses against segloss's over random shapes, dtypes, memory formats, targets and options.

torch computes in float64 from the same rounded logits, so that its own rounding in half types is not compared.
All logits are finite; for others segloss does better than torch, which test_contract.py tests.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor, nn

import segloss

pytestmark = pytest.mark.filterwarnings("ignore:.*has one channel")

# The same examples in every run, so that a failure comes from a change and not from chance.
RANDOM = settings(derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LABEL_DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32]
LAYOUTS = ["contiguous", "channels_last", "classes last", "permuted view", "every other element"]
IGNORE_INDEX = [-100, -1, 0, 2, 255]


@dataclass
class Case:
    """Arguments of one call, as torch takes them: logits [N, C, *] and labels [N, *] or probabilities [N, C, *]."""

    logits: Tensor
    target: Tensor
    options: dict  # keywords that both libraries have
    layout: str
    label_dtype: torch.dtype
    keep_class_dim: bool
    generator: torch.Generator

    @property
    def num_voxels(self) -> int:
        return self.logits[0].numel() if self.logits.dim() == 1 else self.logits[:, 0].numel()

    @property
    def dim(self) -> int:
        return -1 if self.layout == "classes last" else 1


def put_in_memory(x: Tensor, layout: str) -> Tensor:
    """x with its elements laid out as `layout` says; its classes stay in dimension 1 unless it is "classes last"."""
    if x.dim() < 2 or layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last" and x.dim() in (4, 5):
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if layout == "every other element":
        return torch.stack([x, x.new_full((), 9).expand_as(x)], -1)[..., 0]
    classes_last = x.movedim(1, -1).contiguous()
    return classes_last if layout == "classes last" else classes_last.movedim(-1, 1)


def holds(dtype: torch.dtype, value: int) -> bool:
    return dtype.is_floating_point or torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


def random_labels(shape, num_classes, ignore_index, label_dtype, generator) -> Tensor:
    labels = torch.randint(num_classes, shape, generator=generator)
    if not holds(label_dtype, ignore_index):
        return labels
    return labels.masked_fill(torch.rand(shape, generator=generator) < 0.3, ignore_index)


def random_weight(kind, num_classes, generator) -> Tensor | None:
    """None, positive weights, or positive ones with a zero among them."""
    if kind == "none":
        return None
    weight = torch.rand(num_classes, generator=generator, dtype=torch.float64) + 0.1
    return weight.masked_fill(torch.arange(num_classes) == 0, 0) if kind == "zero" else weight


@st.composite
def cases(draw, target_kinds=("labels", "probabilities"), smoothing=True) -> Case:
    generator = torch.Generator(torch.get_default_device()).manual_seed(draw(st.integers(0, 2**32)))
    num_classes = draw(st.sampled_from([1, 2, 3, 7, 130]))
    rank = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=rank - 1, max_size=rank - 1))
    if rank > 1 and draw(st.integers(0, 19)) == 0:
        sizes[draw(st.integers(0, rank - 2))] = 0
    shape = [*sizes[:1], num_classes, *sizes[1:]]
    dtype = draw(st.sampled_from(DTYPES))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * draw(st.sampled_from([1, 8, 40]))
    label_dtype = draw(st.sampled_from(LABEL_DTYPES if num_classes > 1 else LABEL_DTYPES[:-1]))
    options = {
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "weight": random_weight(draw(st.sampled_from(["none", "positive", "zero"])), num_classes, generator),
        "ignore_index": draw(st.sampled_from(IGNORE_INDEX)),
    }
    if smoothing:
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    if draw(st.sampled_from(target_kinds)) == "probabilities":
        options["ignore_index"] = min(options["ignore_index"], -1)
        target = torch.rand(shape, generator=generator).to(draw(st.sampled_from([dtype, torch.float32])))
    else:
        holds_all = holds(label_dtype, num_classes - 1)
        label_dtype = label_dtype if holds_all else torch.int64
        target = random_labels(sizes, num_classes, options["ignore_index"], label_dtype, generator)
    return Case(
        logits.to(dtype),
        target,
        options,
        draw(st.sampled_from(LAYOUTS)),
        label_dtype,
        draw(st.booleans()) and rank > 1,
        generator,
    )


def random_gradient(case: Case, loss: Tensor) -> Tensor:
    """A random gradient of the loss, in the loss's dtype. For a mean it is multiplied by the number of voxels:
    otherwise the gradient of the logits would be below the tolerance."""
    gradient = torch.randn(loss.shape, generator=case.generator, dtype=torch.float64)
    return (gradient * (case.num_voxels if case.options["reduction"] == "mean" else 1)).to(loss.dtype)


def segloss_loss(case: Case, loss_class) -> tuple[Tensor, Tensor]:
    """The loss, and the leaf [N, C, *] or [N, *, C] that receives its gradient."""
    x = put_in_memory(case.logits, case.layout).detach().requires_grad_()
    if case.target.is_floating_point():
        target = put_in_memory(case.target, case.layout)
    else:
        target = case.target.to(case.label_dtype)
        target = target.unsqueeze(case.dim) if case.keep_class_dim else target
    return loss_class(**case.options, dim=case.dim)(x, target), x


def torch_loss(case: Case, loss_class) -> tuple[Tensor, Tensor]:
    x = case.logits.double().requires_grad_()
    target = case.target.double() if case.target.is_floating_point() else case.target
    loss = loss_class(**case.options)(x, target)
    keeps_dim = case.options["reduction"] == "none" and case.keep_class_dim and not case.target.is_floating_point()
    return (loss.unsqueeze(case.dim) if keeps_dim else loss), x


def assert_equal_to_torch(case: Case, ours, theirs) -> None:
    loss, x = segloss_loss(case, ours)
    expected_loss, expected_x = torch_loss(case, theirs)
    assert loss.shape == expected_loss.shape
    assert_close(loss, expected_loss)
    gradient = random_gradient(case, loss)
    loss.backward(gradient)
    expected_loss.backward(gradient.double())
    # If all voxels that count have zero weight, torch divides zero by zero; segloss's gradient is zero.
    expected_gradient = expected_x.grad.nan_to_num(0, 0, 0)
    assert_close(x.grad.movedim(-1, 1) if case.dim == -1 and x.dim() > 1 else x.grad, expected_gradient)


@settings(RANDOM, max_examples=400)
@given(cases())
def test_cross_entropy_equals_torch(case):
    assert_equal_to_torch(case, segloss.CrossEntropyLoss, nn.CrossEntropyLoss)


@settings(RANDOM, max_examples=200)
@given(cases(target_kinds=("labels",), smoothing=False))
def test_nll_loss_equals_torch(case):
    case.logits = case.logits.double().log_softmax(min(case.logits.dim() - 1, 1)).to(case.logits.dtype)
    assert_equal_to_torch(case, segloss.NLLLoss, nn.NLLLoss)


@settings(RANDOM, max_examples=100)
@given(cases(target_kinds=("probabilities",)))
def test_gradients_of_probabilities_and_class_weights_equal_torch(case):
    def gradients(library, dtype):
        leaves = [case.logits.to(dtype), case.target.to(dtype)]
        leaves += [] if case.options["weight"] is None else [case.options["weight"].to(dtype)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        options = {name: value for name, value in case.options.items() if name != "weight"}
        loss = library(leaves[0], leaves[1], leaves[2] if len(leaves) == 3 else None, **options)
        scale = case.num_voxels if options["reduction"] == "mean" else 1
        return torch.autograd.grad(loss.sum() * scale, leaves)

    for actual, expected in zip(
        gradients(segloss.cross_entropy, torch.float64),
        gradients(nn.functional.cross_entropy, torch.float64),
        strict=True,
    ):
        assert_close(actual, expected.nan_to_num(0, 0, 0))
