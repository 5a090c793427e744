"""The contract of cross_entropy and nll_loss, point by point: torch's values, and where segloss does better."""

import itertools
import os
import re
import subprocess
import sys
import textwrap

import pytest
import reference
import torch
import torch.nn.functional as F
from operators import options_of
from tolerances import CONFIDENT_RTOL, ROUNDING_RTOL, SUM_RTOL, assert_close, assert_relative, assert_same_bits

import segloss

REDUCTIONS = ["mean", "sum", "none"]
HALVES = [torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")


def value_and_gradient(loss, input, *args, **keywords):
    x = input.detach().requires_grad_()
    value = loss(x, *args, **keywords)
    return value.detach(), torch.autograd.grad(value, x, torch.ones_like(value))[0]


def cross_entropy_and_gradient(input, target, **keywords):
    return value_and_gradient(segloss.cross_entropy, input, target, **keywords)


def assert_is_torch(input, target, **keywords):
    expected = value_and_gradient(F.cross_entropy, input, target, **keywords)
    for actual, wanted in zip(cross_entropy_and_gradient(input, target, **keywords), expected, strict=True):
        assert_close(actual, wanted)


def assert_is_reference(input, target, dtype=None, **keywords):
    expected = reference.value_and_gradient(reference.cross_entropy, input, target, **keywords)
    for actual, wanted in zip(cross_entropy_and_gradient(input, target, **keywords), expected, strict=True):
        assert_close(actual, wanted, dtype)


# ---- same value and gradient as torch in every combination ----

SPATIAL = [(), (4,), (4, 5), (3, 4, 2), (2, 3, 2, 2)]


@pytest.mark.parametrize("spatial", SPATIAL, ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weight"])
@pytest.mark.parametrize("ignored", [False, True], ids=["all", "ignored"])
def test_labels_are_as_in_torch(ignored, weighted, smoothing, reduction, spatial):
    labels = torch.randint(3, (4, *spatial))
    if ignored:
        labels[1] = 255
    weight = torch.tensor([0.5, 2.0, 1.0]) if weighted else None
    keywords = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction, "ignore_index": 255}
    assert_is_torch(torch.randn(4, 3, *spatial), labels, **keywords)


@pytest.mark.parametrize("spatial", SPATIAL, ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weight"])
def test_probabilities_are_as_in_torch(weighted, smoothing, reduction, spatial):
    weight = torch.tensor([0.5, 2.0, 1.0]) if weighted else None
    target = torch.randn(4, 3, *spatial).softmax(1)
    keywords = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    assert_is_torch(torch.randn(4, 3, *spatial), target, **keywords)


@pytest.mark.parametrize("spatial", SPATIAL, ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weight"])
def test_nll_loss_is_as_in_torch(weighted, reduction, spatial):
    labels = torch.randint(3, (4, *spatial))
    labels[1] = 255
    weight = torch.tensor([0.5, 2.0, 1.0]) if weighted else None
    log_p = torch.randn(4, 3, *spatial).log_softmax(1)
    keywords = {"weight": weight, "reduction": reduction, "ignore_index": 255}
    expected = value_and_gradient(F.nll_loss, log_p, labels, **keywords)
    for actual, wanted in zip(value_and_gradient(segloss.nll_loss, log_p, labels, **keywords), expected, strict=True):
        assert_close(actual, wanted)


# ---- mean ----


def test_mean_divides_by_the_weight_of_the_labels():
    x, labels, w = torch.randn(2, 3, 4), torch.randint(3, (2, 4)), torch.tensor([0.5, 2.0, 1.0])
    labels[0, 1] = -100
    losses = segloss.cross_entropy(x, labels, w, reduction="none")
    assert_close(segloss.cross_entropy(x, labels, w), losses.sum() / w[labels[labels >= 0]].sum())


def test_mean_with_label_smoothing_has_the_same_denominator():
    x, labels, w = torch.randn(2, 3, 4), torch.randint(3, (2, 4)), torch.tensor([0.5, 2.0, 1.0])
    losses = segloss.cross_entropy(x, labels, w, reduction="none", label_smoothing=0.3)
    assert_close(segloss.cross_entropy(x, labels, w, label_smoothing=0.3), losses.sum() / w[labels].sum())


def test_mean_of_probabilities_divides_by_the_number_of_positions():
    x, target, w = torch.randn(2, 3, 4), torch.rand(2, 3, 4), torch.tensor([0.5, 2.0, 1.0])
    losses = segloss.cross_entropy(x, target, w, reduction="none")
    assert_close(segloss.cross_entropy(x, target, w), losses.mean())


# ---- label outside [0, C) ----


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bad", [3, 255, -1, -(2**63), 2**63 - 1, 2**32 + 1])
def test_the_error_of_a_bad_label_names_the_count_the_first_its_index_and_the_range(bad, smoothing, reduction):
    labels = torch.zeros(2, 4, 5, dtype=torch.int64)
    labels[1, 2, 3] = labels[1, 3, 0] = bad
    text = (
        rf"Target {bad} is out of bounds: 2 labels are outside \[0, 3\), the first at index \[1, 2, 3\] .*labels 0 to 2"
    )
    with pytest.raises(IndexError, match=text):
        segloss.cross_entropy(torch.randn(2, 3, 4, 5), labels, reduction=reduction, label_smoothing=smoothing)


def test_the_index_of_a_bad_label_is_in_the_label_tensor_as_it_was_given():
    labels = torch.zeros(2, 1, 4, 5, dtype=torch.uint8)
    labels[1, 0, 2, 3] = 9
    with pytest.raises(IndexError, match=r"index \[1, 0, 2, 3\] of target \[2, 1, 4, 5\]"):
        segloss.cross_entropy(torch.randn(2, 3, 4, 5), labels)


def test_the_first_bad_label_is_named_with_any_number_of_threads(num_threads):
    num_threads(2)
    labels = torch.zeros(1, 300_000, dtype=torch.uint8)
    labels[0, [7, 150_000, 299_999]] = 9
    with pytest.raises(IndexError, match=r"3 labels are .* the first at index \[0, 7\]"):
        segloss.cross_entropy(torch.zeros(1, 2, 300_000), labels)


def test_a_bad_label_of_nll_loss():
    with pytest.raises(IndexError, match="nll_loss: Target 3 is out of bounds"):
        segloss.nll_loss(torch.randn(2, 3), torch.tensor([0, 3]))


def test_minus_hundred_is_a_bad_label_where_another_is_ignored():
    with pytest.raises(IndexError, match="Target -100 is out of bounds"):
        segloss.cross_entropy(torch.randn(2, 3), torch.tensor([0, -100]), ignore_index=255)


def forward_operator(input, target, reduction=1, dim=1, log_probabilities=False):
    options = options_of("cross_entropy", dim=dim, reduction=reduction, log_probabilities=log_probabilities)
    return torch.ops.segloss.cross_entropy_forward("op", input, target, None, None, *options)


def backward_operator(input, target, *, grad_loss=None, total_weight=None, reduction=1, log_probabilities=False):
    """Calls the backward operator by itself, by default with what the forward operator returned."""
    safe = target.clamp(0, 2) if not target.is_floating_point() else target
    loss, saved_weight, _ = forward_operator(input, safe, reduction, 1, log_probabilities)
    return torch.ops.segloss.cross_entropy_backward(
        torch.ones_like(loss) if grad_loss is None else grad_loss,
        saved_weight if total_weight is None else total_weight,
        "op",
        input,
        target,
        None,
        None,
        *options_of("cross_entropy", reduction=reduction, log_probabilities=log_probabilities),
    )


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("log_probabilities", [False, True])
@pytest.mark.parametrize("bad", [3, -1, 2**40])
def test_a_bad_label_raises_in_the_backward_operator_called_alone(bad, log_probabilities, reduction):
    labels = torch.tensor([[0, 1], [bad, 2]])
    with pytest.raises(IndexError, match=rf"Target {bad} is out of bounds: 1 label is .* index \[1, 0\]"):
        backward_operator(torch.randn(2, 3, 2), labels, reduction=reduction, log_probabilities=log_probabilities)


@pytest.mark.parametrize(
    ("saved", "text"),
    [
        ({"total_weight": torch.zeros(2, dtype=torch.float64)}, "expected total_weight of one element"),
        ({"total_weight": torch.zeros(0, dtype=torch.float64)}, "expected total_weight of one element"),
        ({"grad_loss": torch.ones(2)}, "expected grad_loss of the loss's shape"),
        ({"grad_loss": torch.ones(()), "reduction": 0}, "expected grad_loss of the loss's shape"),
        ({"grad_loss": torch.ones(2, 3), "reduction": 0}, "expected grad_loss of the loss's shape"),
        ({"grad_loss": torch.ones((), dtype=torch.int64)}, "grad_loss"),
        ({"grad_loss": torch.ones(2, 2, dtype=torch.bool), "reduction": 0}, "grad_loss"),
    ],
)
def test_the_backward_operator_refuses_what_the_forward_operator_did_not_return(saved, text):
    with pytest.raises((RuntimeError, TypeError), match=text):
        backward_operator(torch.randn(2, 3, 2), torch.tensor([[0, 1], [1, 2]]), **saved)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_the_forward_operator_refuses_a_dtype_that_is_not_floating(dtype):
    options = options_of("cross_entropy", dtype=dtype)
    with pytest.raises((RuntimeError, TypeError), match="dtype"):
        torch.ops.segloss.cross_entropy_forward("op", torch.randn(2, 3), torch.tensor([0, 1]), None, None, *options)


@pytest.mark.parametrize("loss", ["cross_entropy", "soft_stats", "binary_cross_entropy"])
@pytest.mark.parametrize("change", [lambda numbers: numbers[:-1], lambda numbers: [*numbers, 0]])
def test_the_private_operators_refuse_lists_of_options_of_another_length(loss, change):
    call = getattr(torch.ops.segloss, f"{loss}_forward")
    *before, options, factors = options_of(loss)
    expected = rf"op: expected {len(options)} options and {len(factors)} factors, got "
    for lists in ((change(options), factors), (options, change(factors))):
        with pytest.raises(ValueError, match=expected + rf"{len(lists[0])} and {len(lists[1])}"):
            call("op", torch.randn(2, 3), torch.tensor([0, 1]), None, None, *before, *lists)


OPERATORS = {
    "cross_entropy_forward": "ops.cross_entropy_forward('op', x, y, None, None, *options_of('cross_entropy', dim=DIM))",
    "cross_entropy_backward": "ops.cross_entropy_backward("
    "torch.ones(()), torch.ones(()), 'op', x, y, None, None, *options_of('cross_entropy', dim=DIM))",
    "soft_stats_forward": "ops.soft_stats_forward("
    "'op', x, y, None, None, *options_of('soft_stats', dim=DIM, voxel_loss=True))",
    "soft_stats_backward": "ops.soft_stats_backward("
    "torch.ones(2, 3), torch.ones(2, 3), torch.ones(2), "
    "'op', x, y, None, None, *options_of('soft_stats', dim=DIM, voxel_loss=True))",
    "binary_cross_entropy_forward": "ops.binary_cross_entropy_forward("
    "'op', x, y, None, None, *options_of('binary_cross_entropy', dim=DIM))",
    "confusion_counts": "ops.confusion_counts('accuracy', x, y, 3, -100, DIM, True)",
}


@pytest.mark.cpu_only
def test_the_private_operators_refuse_a_dim_that_is_not_counted_from_the_front():
    """Runs in a process of its own: without the check, an operator would write outside of its memory."""
    calls = ", ".join(f"{name!r}: lambda dim: {call.replace('DIM', 'dim')}" for name, call in OPERATORS.items())
    script = f"""
        import torch, segloss
        from operators import options_of
        ops, x, y = torch.ops.segloss, torch.randn(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64)
        for name, call in {{{calls}}}.items():
            for dim in (-1, -2, -3, -9, 3, 9):
                print(name, dim, flush=True)
                try:
                    call(dim)
                    raise SystemExit(f"{{name}}: dim={{dim}} was accepted")
                except IndexError:
                    pass
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    assert done.returncode == 0, done.stdout + done.stderr


def child_environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# ---- nothing to average ----


@pytest.mark.parametrize(("reduction", "expected"), [("mean", NAN), ("sum", 0.0)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": torch.tensor([0.5, 2.0, 1.0])}])
def test_all_voxels_ignored(options, reduction, expected):
    labels = torch.full((2, 4), 255, dtype=torch.uint8)
    keywords = {"reduction": reduction, "ignore_index": 255, **options}
    value, grad = cross_entropy_and_gradient(torch.randn(2, 3, 4), labels, **keywords)
    assert_close(value, torch.tensor(expected))
    assert torch.equal(grad, torch.zeros(2, 3, 4))


def test_all_voxels_ignored_with_reduction_none_gives_zeros():
    value, grad = cross_entropy_and_gradient(torch.randn(2, 3, 4), torch.full((2, 4), -100), reduction="none")
    assert torch.equal(value, torch.zeros(2, 4))
    assert torch.equal(grad, torch.zeros(2, 3, 4))


def test_all_voxels_ignored_and_empty_zero_gives_zero_with_a_zero_gradient():
    labels = torch.full((2, 4), -100)
    value, grad = cross_entropy_and_gradient(torch.randn(2, 3, 4), labels, empty="zero")
    assert value == 0
    assert torch.equal(grad, torch.zeros(2, 3, 4))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
@pytest.mark.parametrize(("empty", "expected"), [("nan", NAN), ("zero", 0.0)])
def test_no_voxel(shape, empty, expected):
    labels = torch.zeros(shape[0], shape[2], dtype=torch.int64)
    value, grad = cross_entropy_and_gradient(torch.zeros(shape), labels, empty=empty)
    assert_close(value, torch.tensor(expected))
    assert grad.shape == shape


@pytest.mark.parametrize(("empty", "expected"), [("nan", NAN), ("zero", 0.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_weights_zero_gives_a_zero_gradient(smoothing, empty, expected):
    keywords = {"weight": torch.zeros(3), "label_smoothing": smoothing, "empty": empty}
    value, grad = cross_entropy_and_gradient(torch.randn(2, 3, 4), torch.randint(3, (2, 4)), **keywords)
    assert_close(value, torch.tensor(expected))
    assert torch.equal(grad, torch.zeros(2, 3, 4))


def test_a_zero_weight_of_every_present_class_gives_a_zero_gradient():
    weight = torch.tensor([0.0, 1.0, 1.0])
    value, grad = cross_entropy_and_gradient(torch.randn(2, 3, 4), torch.zeros(2, 4).long(), weight=weight)
    assert value.isnan()
    assert torch.equal(grad, torch.zeros(2, 3, 4))


@pytest.mark.parametrize(("empty", "expected"), [("nan", NAN), ("zero", 0.0)])
def test_a_zero_weight_of_every_present_class_with_label_smoothing(empty, expected):
    """The smoothing's share of the loss is not zero, but the denominator is."""
    x, labels, weight = torch.randn(4, 2), torch.zeros(4, dtype=torch.int64), torch.tensor([0.0, 1.0])
    keywords = {"weight": weight, "label_smoothing": 0.3}
    assert F.cross_entropy(x, labels, **keywords).isnan()
    value, grad = cross_entropy_and_gradient(x, labels, empty=empty, **keywords)
    assert_close(value, torch.tensor(expected))
    assert torch.equal(grad, torch.zeros(4, 2))


# ---- nan and inf ----


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("num_voxels", [5, 130])
def test_nan_and_inf_on_an_ignored_voxel_have_no_effect(num_voxels, smoothing, reduction, value):
    x, labels = torch.randn(2, 3, num_voxels), torch.randint(3, (2, num_voxels))
    labels[0, 3] = labels[1, 0] = -100
    spoiled = x.clone()
    spoiled[0, :, 3] = value
    spoiled[1, 1, 0] = value
    keywords = {"reduction": reduction, "label_smoothing": smoothing, "weight": torch.tensor([0.5, 2.0, 1.0])}
    clean = cross_entropy_and_gradient(x, labels, **keywords)
    for actual, expected in zip(cross_entropy_and_gradient(spoiled, labels, **keywords), clean, strict=True):
        assert torch.equal(actual, expected)


def test_nan_on_an_ignored_voxel_of_nll_loss_has_no_effect():
    x, labels = torch.randn(2, 3), torch.tensor([-100, 1])
    x[0] = NAN
    value, grad = value_and_gradient(segloss.nll_loss, x, labels)
    assert value == -x[1, 1]
    assert torch.equal(grad, torch.tensor([[0.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_minus_inf_where_the_probability_is_zero_counts_as_zero(smoothing):
    x = torch.tensor([[1.0, -INF, 0.5]])
    target = torch.tensor([[0.25, 0.0, 0.75]])
    keywords = {"weight": torch.tensor([1.0, 0.0, 2.0])} if smoothing else {}
    value, grad = cross_entropy_and_gradient(x, target, label_smoothing=smoothing, **keywords)
    assert value.isfinite()
    assert grad.isfinite().all()
    assert_is_reference(x, target, label_smoothing=smoothing, **keywords)


def test_minus_inf_on_a_class_whose_weight_is_zero_counts_as_zero():
    x, weight = torch.tensor([[1.0, -INF, 0.5], [1.0, 2.0, 3.0]]), torch.tensor([1.0, 0.0, 2.0])
    labels = torch.tensor([1, 2])
    value, grad = cross_entropy_and_gradient(x, labels, weight=weight)
    assert value.isfinite()
    assert torch.equal(grad[0], torch.zeros(3))
    assert_is_reference(x, labels, weight=weight)


def test_minus_inf_on_a_class_whose_weight_is_zero_counts_as_zero_in_the_smoothing():
    x, weight = torch.tensor([[1.0, -INF, 0.5]]), torch.tensor([1.0, 0.0, 2.0])
    assert segloss.cross_entropy(x, torch.tensor([2]), weight, label_smoothing=0.1).isfinite()
    assert_is_reference(x, torch.tensor([2]), weight=weight, label_smoothing=0.1)


def test_minus_inf_on_a_class_whose_weight_is_zero_counts_as_zero_in_nll_loss():
    log_p, weight = torch.tensor([[-1.0, -INF], [-1.0, -2.0]]), torch.tensor([1.0, 0.0])
    assert segloss.nll_loss(log_p, torch.tensor([1, 0]), weight) == 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_minus_inf_that_is_not_the_target_is_exact(reduction):
    x = torch.tensor([[1.0, -INF, 0.5], [1.0, 2.0, -INF]])
    without = torch.tensor([[1.0, 0.5], [1.0, 2.0]])
    expected, expected_grad = cross_entropy_and_gradient(without, torch.tensor([1, 0]), reduction=reduction)
    value, grad = cross_entropy_and_gradient(x, torch.tensor([2, 0]), reduction=reduction)
    assert_close(value, expected)
    assert_close(grad[x.isfinite()].reshape(2, 2), expected_grad)
    assert (grad[x.isinf()] == 0).all()


def test_minus_inf_that_is_not_the_target_is_inf_with_label_smoothing():
    x, labels = torch.tensor([[1.0, -INF, 0.5]]), torch.tensor([2])
    assert segloss.cross_entropy(x, labels, label_smoothing=0.1) == INF
    assert_is_torch(x, labels, label_smoothing=0.1)


def test_minus_inf_at_the_target_is_inf_with_a_finite_gradient():
    x, labels = torch.tensor([[1.0, -INF, 0.5]]), torch.tensor([1])
    value, grad = cross_entropy_and_gradient(x, labels)
    assert value == INF
    assert grad.isfinite().all()
    assert_is_torch(x, labels)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("position", [0, 1], ids=["target", "other"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plus_inf_or_nan_on_a_valid_voxel_is_nan(smoothing, position, value):
    x = torch.zeros(2, 3)
    x[0, position] = value
    loss, grad = cross_entropy_and_gradient(x, torch.tensor([0, 0]), label_smoothing=smoothing)
    assert loss.isnan()
    assert grad[0].isnan().all()
    assert grad[1].isfinite().all()


def test_all_logits_minus_inf_is_nan_as_in_torch():
    x, labels = torch.full((1, 3), -INF), torch.tensor([1])
    assert segloss.cross_entropy(x, labels).isnan()
    assert F.cross_entropy(x, labels).isnan()


@pytest.mark.parametrize("scale", [1e8, 3e38])
def test_the_largest_logits_do_not_overflow(scale):
    x = torch.tensor([[scale, scale, -scale]])
    assert_is_torch(x, torch.tensor([0]))


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("label", [0, -100])
def test_a_weight_that_is_not_finite_has_no_effect_if_its_class_is_absent(label, value):
    x, labels = torch.randn(3, 3), torch.tensor([0, 1, label])
    weight = torch.tensor([0.5, 2.0, value])
    expected = cross_entropy_and_gradient(x, labels, weight=torch.tensor([0.5, 2.0, 1.0]))
    for actual, wanted in zip(cross_entropy_and_gradient(x, labels, weight=weight), expected, strict=True):
        assert torch.equal(actual, wanted)


# ---- float16 and bfloat16 ----


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("num_voxels", [65_504, 70_000, 262_144, 300_001])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": torch.tensor([0.5, 2.0])}], ids=str)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_the_mean_of_a_half_type_is_rounded_once_however_many_voxels(kind, options, num_voxels, dtype):
    x = torch.randn(1, 2, num_voxels).to(dtype)
    target = torch.randint(2, (1, num_voxels)) if kind == "labels" else torch.rand(1, 2, num_voxels).to(dtype)
    value = segloss.cross_entropy(x, target, **options)
    assert value.dtype == dtype
    assert_relative(value, reference.cross_entropy(x, target, **options), ROUNDING_RTOL[dtype])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("num_voxels", [70_000, 262_144])
def test_the_sum_of_a_half_type_is_rounded_once_however_many_voxels(num_voxels, dtype):
    x = torch.zeros(1, 2, num_voxels, dtype=dtype)
    x[:, 0] = 3
    labels = torch.zeros(1, num_voxels, dtype=torch.uint8)
    value = segloss.cross_entropy(x, labels, reduction="sum")
    assert_relative(value, reference.cross_entropy(x, labels, reduction="sum"), ROUNDING_RTOL[dtype])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_the_gradient_of_a_half_type_is_that_of_float32_rounded(reduction, dtype):
    x, labels = torch.randn(2, 3, 40).to(dtype), torch.randint(3, (2, 40))
    _, grad = cross_entropy_and_gradient(x, labels, reduction=reduction, label_smoothing=0.1)
    _, expected = reference.value_and_gradient(
        reference.cross_entropy, x, labels, reduction=reduction, label_smoothing=0.1
    )
    assert_relative(grad, expected, ROUNDING_RTOL[dtype])


@pytest.mark.parametrize("num_voxels", [70_000, 262_144])
def test_the_gradient_of_a_float16_mean_is_not_lost_in_many_voxels(num_voxels):
    x, labels = torch.zeros(1, 2, num_voxels, dtype=torch.float16), torch.zeros(1, num_voxels, dtype=torch.uint8)
    _, grad = value_and_gradient(lambda x, y: 1024 * segloss.cross_entropy(x, y), x, labels)
    assert_relative(grad[0, 1], torch.full((num_voxels,), 512 / num_voxels), ROUNDING_RTOL[torch.float16])


@pytest.mark.parametrize("dtype", HALVES)
def test_each_voxels_loss_in_a_half_type_is_rounded_once(dtype):
    x, labels = torch.randn(2, 3, 40).to(dtype), torch.randint(3, (2, 40))
    losses = segloss.cross_entropy(x, labels, reduction="none")
    assert_relative(losses, reference.cross_entropy(x, labels, reduction="none"), ROUNDING_RTOL[dtype])


def finite_numbers_of(dtype):
    """Every positive finite number of the dtype, in order."""
    bits = torch.arange(1, 2**15, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype)
    return numbers[numbers.isfinite()]


@pytest.mark.parametrize("dtype", HALVES)
def test_every_number_of_a_half_type_is_read_exactly(dtype):
    numbers = torch.cat([finite_numbers_of(dtype), -finite_numbers_of(dtype)])
    losses = segloss.nll_loss(numbers.unsqueeze(1), torch.zeros(len(numbers), dtype=torch.uint8), reduction="none")
    assert torch.equal(losses, -numbers)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_result_is_rounded_to_the_nearest_number_of_a_half_type_ties_to_even(dtype):
    numbers = finite_numbers_of(dtype).float()
    ties = numbers[:-1] / 2 + numbers[1:] / 2
    above, below = ties.nextafter(torch.tensor(INF)), ties.nextafter(torch.tensor(0.0))
    largest = torch.tensor([65519.0, 65520.0, 1e6, 3.38e38, 3.3961e38, INF])
    values = torch.cat([numbers, ties, above, below, largest])
    values = torch.cat([values, -values])
    log_p, labels = torch.full((len(values), 1), -1.0, dtype=dtype), torch.zeros(len(values), dtype=torch.uint8)
    losses = segloss.nll_loss(log_p, labels, voxel_weight=values, reduction="none")
    assert torch.equal(losses, values.to(dtype))


# ---- autocast ----


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_under_autocast_the_result_is_float32(kind, reduction, dtype):
    x = torch.randn(2, 3, 4).to(dtype).requires_grad_()
    target = torch.randint(3, (2, 4)) if kind == "labels" else torch.rand(2, 3, 4).to(dtype)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        value = segloss.cross_entropy(x, target, reduction=reduction)
    value.sum().backward()
    expected, expected_grad = reference.value_and_gradient(reference.cross_entropy, x, target, reduction=reduction)
    assert value.dtype == torch.float32
    assert_close(value, expected)
    assert x.grad.dtype == dtype
    assert_close(x.grad, expected_grad)


def test_under_autocast_float64_stays_float64():
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        value = segloss.cross_entropy(torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1]))
        assert value.dtype == torch.float64
        assert F.cross_entropy(torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1])).dtype == torch.float64


def test_under_autocast_the_logits_are_not_cast():
    x, labels = torch.randn(2, 3, 4, dtype=torch.bfloat16).requires_grad_(), torch.randint(3, (2, 4))
    saved = []
    with (
        torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        segloss.cross_entropy(x, labels)
    assert [t.dtype for t in saved if t.shape == x.shape] == [torch.bfloat16]
    assert any(t.data_ptr() == x.data_ptr() for t in saved)


# ---- very confident voxels ----

MARGINS = torch.cat([torch.linspace(0, 80, 161), torch.rand(95) * 80])


def confident(margin, offset, num_classes, seed=0):
    """Logits [margins, C] whose class 1 leads the largest of the others by `margin`, all shifted by `offset`."""
    others = (
        -torch.rand(len(margin), num_classes, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))
        * 3
    )
    others[:, 0] = 0
    x = others + offset
    x[:, 1] = offset + margin
    return x


def confident_target(kind, num_voxels, num_classes):
    labels = torch.ones(num_voxels, dtype=torch.int64)
    one_hot = F.one_hot(labels, num_classes)
    return {"labels": labels, "one-hot": one_hot, "probabilities": one_hot.float()}[kind]


CONFIDENT = [(offset, classes) for offset in (0.0, 10.0, -1000.0) for classes in (2, 3, 100, 200)]


@pytest.mark.parametrize(("offset", "num_classes"), CONFIDENT)
@pytest.mark.parametrize("kind", ["labels", "one-hot", "probabilities"])
def test_a_confident_voxels_loss_keeps_its_digits(kind, offset, num_classes):
    x = confident(MARGINS, offset, num_classes)
    target = confident_target(kind, len(x), num_classes)
    expected = reference.cross_entropy(x, torch.ones(len(x)).long(), reduction="none")
    assert_relative(segloss.cross_entropy(x, target, reduction="none"), expected, CONFIDENT_RTOL)


@pytest.mark.parametrize(("offset", "num_classes"), CONFIDENT)
@pytest.mark.parametrize("kind", ["labels", "one-hot", "probabilities"])
def test_a_confident_voxels_target_gradient_keeps_its_digits(kind, offset, num_classes):
    x = confident(MARGINS, offset, num_classes)
    target = confident_target(kind, len(x), num_classes)
    _, grad = cross_entropy_and_gradient(x, target, reduction="sum")
    _, expected = reference.value_and_gradient(reference.cross_entropy, x, torch.ones(len(x)).long(), reduction="sum")
    assert_relative(grad[:, 1], expected[:, 1], CONFIDENT_RTOL)


def test_a_confident_voxel_keeps_its_digits_in_channels_last():
    x = confident(MARGINS, 0.0, 3).T.reshape(1, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    labels = torch.ones(1, 16, 16, dtype=torch.uint8)
    expected = reference.value_and_gradient(reference.cross_entropy, x, labels, reduction="none")
    actual = cross_entropy_and_gradient(x, labels, reduction="none")
    assert_relative(actual[0], expected[0], CONFIDENT_RTOL)
    assert_relative(actual[1][:, 1], expected[1][:, 1], CONFIDENT_RTOL)


def test_a_confident_voxel_keeps_its_digits_under_torch_func():
    x, labels = confident(MARGINS, 0.0, 3), torch.ones(len(MARGINS), dtype=torch.int64)
    grad = torch.func.grad(lambda x: segloss.cross_entropy(x, labels, reduction="sum"))(x)
    _, expected = reference.value_and_gradient(reference.cross_entropy, x, labels, reduction="sum")
    assert_relative(grad[:, 1], expected[:, 1], CONFIDENT_RTOL)


def test_a_confident_voxel_keeps_its_digits_where_probabilities_have_a_gradient():
    x, target = confident(MARGINS, 0.0, 3), confident_target("probabilities", len(MARGINS), 3).requires_grad_()
    _, grad = cross_entropy_and_gradient(x, target, reduction="sum")
    _, expected = reference.value_and_gradient(reference.cross_entropy, x, target.detach(), reduction="sum")
    assert_relative(grad[:, 1], expected[:, 1], CONFIDENT_RTOL)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_confident_voxel_of_a_half_type_has_a_float32_loss_under_autocast(dtype):
    x = confident(MARGINS, 0.0, 3).to(dtype)
    labels = torch.ones(len(x), dtype=torch.int64)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        losses = segloss.cross_entropy(x, labels, reduction="none")
    assert_relative(losses, reference.cross_entropy(x, labels, reduction="none"), CONFIDENT_RTOL)


@pytest.mark.parametrize("margin", [0.0, 5.0, 20.0, 80.0])
def test_a_confident_and_wrong_voxel_has_its_whole_loss(margin):
    x, labels = confident(torch.tensor([margin]), 0.0, 3), torch.tensor([0])
    expected = reference.value_and_gradient(reference.cross_entropy, x, labels)
    for actual, wanted in zip(cross_entropy_and_gradient(x, labels), expected, strict=True):
        assert_relative(actual, wanted, CONFIDENT_RTOL)


# ---- weight ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("input_dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_of_another_dtype_is_promoted_and_the_result_has_inputs_dtype(input_dtype, dtype):
    x, weight = torch.randn(2, 3, 4).to(input_dtype), torch.tensor([0.5, 2.0, 1.0]).to(dtype)
    value = segloss.cross_entropy(x, torch.randint(3, (2, 4)), weight)
    assert value.dtype == input_dtype
    assert_is_reference(x, torch.randint(3, (2, 4)), weight=weight, label_smoothing=0.1)


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (2,), (4,), (1,), (0,), ()])
@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_a_weight_of_another_shape_is_refused_with_both_shapes(loss, shape):
    got = re.escape(str(list(shape)))
    with pytest.raises(RuntimeError, match=rf"{loss}: expected weight of shape \[3\].* input \[2, 3, 4\], got {got}"):
        getattr(segloss, loss)(torch.randn(2, 3, 4), torch.randint(3, (2, 4)), torch.ones(shape))


@pytest.mark.parametrize(
    ("shape", "advice"),
    [((2,), "Give class 0 a weight too"), ((1, 3, 1), r"Use weight\.flatten\(\)"), ((2, 3, 4), "as voxel_weight")],
)
def test_the_error_of_a_weight_of_another_shape_says_what_to_do(shape, advice):
    with pytest.raises(RuntimeError, match=f"expected weight of shape .*{advice}"):
        segloss.dice_ce_loss(torch.randn(2, 3, 4), torch.randint(3, (2, 4)), weight=torch.ones(shape))


@pytest.mark.parametrize("kind", ["labels", "one-hot"])
def test_a_weight_that_requires_grad_is_refused_with_labels(kind):
    target = torch.tensor([0, 2]) if kind == "labels" else torch.tensor([[1, 0, 0], [0, 0, 1]])
    with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'weight'"):
        segloss.cross_entropy(torch.randn(2, 3), target, torch.ones(3, requires_grad=True))


def test_a_weight_that_requires_grad_has_a_gradient_with_probabilities():
    x, target = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    weight = torch.rand(3, requires_grad=True)
    (expected,) = torch.autograd.grad(F.cross_entropy(x, target, weight), weight)
    assert_close(torch.autograd.grad(segloss.cross_entropy(x, target, weight), weight)[0], expected)


# ---- label_smoothing, size_average, reduce, reduction, ignore_index ----


@pytest.mark.parametrize("smoothing", [-0.1, 1.0001, NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_a_label_smoothing_outside_its_range_is_refused(kind, smoothing):
    target = torch.tensor([0, 2]) if kind == "labels" else torch.rand(2, 3)
    with pytest.raises(RuntimeError, match=r"label_smoothing must be between 0\.0 and 1\.0\. Got: "):
        segloss.cross_entropy(torch.randn(2, 3), target, label_smoothing=smoothing)


def legacy_results(loss, size_average, reduce):
    x, labels = (
        torch.randn(2, 3, generator=torch.Generator(torch.get_default_device()).manual_seed(0)),
        torch.tensor([0, 2]),
    )
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        return loss(x, labels, size_average=size_average, reduce=reduce)


@pytest.mark.parametrize(
    ("size_average", "reduce"),
    [p for p in itertools.product([None, True, False], repeat=2) if any(v is not None for v in p)],
)
@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_size_average_and_reduce_are_honoured_with_a_warning(loss, size_average, reduce):
    expected = legacy_results(getattr(F, loss), size_average, reduce)
    actual = legacy_results(getattr(segloss, loss), size_average, reduce)
    assert actual.shape == expected.shape
    assert_close(actual, expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_an_unknown_reduction_is_refused(loss):
    with pytest.raises(ValueError, match="avg is not a valid value for reduction"):
        getattr(segloss, loss)(torch.randn(2, 3), torch.tensor([0, 2]), reduction="avg")


def test_elementwise_mean_works_as_mean_with_a_warning():
    x, labels = torch.randn(2, 3), torch.tensor([0, 2])
    with pytest.warns(UserWarning, match="reduction='elementwise_mean' is deprecated"):
        value = segloss.cross_entropy(x, labels, reduction="elementwise_mean")
    assert torch.equal(value, segloss.cross_entropy(x, labels))


@pytest.mark.parametrize("ignore_index", [0, 2, 255])
def test_probabilities_with_an_ignore_index_of_a_class_are_refused(ignore_index):
    with pytest.raises(RuntimeError, match="ignore_index is not supported for floating point target"):
        segloss.cross_entropy(torch.randn(2, 3), torch.rand(2, 3), ignore_index=ignore_index)


def test_probabilities_with_a_negative_ignore_index_are_accepted():
    x, target = torch.randn(2, 3), torch.rand(2, 3)
    assert torch.equal(segloss.cross_entropy(x, target, ignore_index=-1), segloss.cross_entropy(x, target))


def test_an_ignore_index_that_is_no_integer_is_refused():
    with pytest.raises((TypeError, RuntimeError), match="ignore_index"):
        segloss.cross_entropy(torch.randn(2, 3), torch.tensor([0, 2]), ignore_index=-1.5)


# ---- an argmax or max taken before the loss ----


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_an_argmax_as_input_is_refused(loss, dtype):
    predicted = torch.randn(2, 3, 4).argmax(1).to(dtype)
    with pytest.raises(
        TypeError, match=rf"{loss}: expected floating logits \[N, C, \.\.\.\].*looks like predicted labels"
    ):
        getattr(segloss, loss)(predicted, torch.randint(3, (2, 4)))


@pytest.mark.parametrize(("keepdim", "error"), [(False, RuntimeError), (True, IndexError)])
def test_an_argmax_in_a_floating_dtype_is_named_in_the_error(keepdim, error):
    predicted = torch.tensor([[0, 2, 1], [2, 0, 1]]).unsqueeze(1) if keepdim else torch.tensor([[0, 2, 1], [2, 0, 1]])
    with pytest.raises(error, match="If input holds predicted labels, pass the logits, before argmax"):
        segloss.cross_entropy(predicted.float(), torch.tensor([[0, 2, 1], [1, 0, 1]]))


@pytest.mark.parametrize("num_samples", [2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_an_input_that_lost_its_classes_to_a_max_is_refused(dtype, num_samples):
    best = torch.randn(num_samples, 3).max(1).values
    text = "Expected floating point type for target with class probabilities, got .*no class dimension.*argmax or max"
    with pytest.raises(RuntimeError, match=text):
        segloss.cross_entropy(best, torch.eye(num_samples, dtype=dtype)[0])


def test_torchs_own_words_for_a_lost_class_dimension():
    text = "Expected floating point type for target with class probabilities, got Long"
    for loss in (F.cross_entropy, segloss.cross_entropy):
        with pytest.raises(RuntimeError, match=text):
            loss(torch.randn(3), torch.tensor([0, 1, 0]))


# ---- shapes that do not fit ----

SHAPE_ERRORS = [
    # shape of input, shape of target, class of the error, and what it advises
    ((2, 3, 4, 5), (2, 4, 5, 1), RuntimeError, "target.squeeze(3)"),
    ((2, 3, 4, 5), (1, 2, 4, 5), ValueError, "target.squeeze(0)"),
    ((2, 3, 4), (2, 1, 1, 4), RuntimeError, "target.squeeze(1)"),
    ((2, 4, 5, 3), (2, 4, 5), RuntimeError, "dim=3"),
    ((2, 7, 3), (2, 7), RuntimeError, "dim=2"),
    ((2, 7, 3), (2, 7, 1), RuntimeError, "dim=2"),
    ((1, 3, 4, 5), (4, 5), ValueError, "target.unsqueeze(0)"),
    ((3, 4, 5), (1, 4, 5), ValueError, "input.unsqueeze(0)"),
    ((3, 4, 5), (4, 5), ValueError, "input.unsqueeze(0) and target.unsqueeze(0)"),
    ((2, 3, 4, 5), (2, 2, 4, 5), RuntimeError, "target.argmax(1)"),
    ((2, 3, 4, 5), (2, 2, 4, 5), RuntimeError, "target.narrow(1, 0, 1)"),
    ((2, 3, 4, 5), (2, 8, 10), RuntimeError, "interpolate(input, size=[8, 10])"),
    ((2, 3, 4, 5, 6), (2, 1, 8, 10, 12), RuntimeError, "interpolate(input, size=[8, 10, 12])"),
    ((2, 3, 4, 5), (1, 4, 5), ValueError, "target.expand(2, -1, -1)"),
    ((2, 3, 4, 5), (1, 1, 4, 5), ValueError, "target.expand(2, -1, -1, -1)"),
    ((4, 3, 5), (2, 5), ValueError, "input and target of the same samples"),
    ((2, 3, 4, 5), (4, 5), ValueError, "target.expand(2, -1, -1)"),
    ((2, 5, 4, 6), (2, 4, 6, 3), RuntimeError, "turn the colours of an image into labels first"),
    ((2, 5, 4, 6), (2, 3, 4, 6), RuntimeError, "turn the colours of an image into labels first"),
    ((2, 3, 5, 4, 6), (2, 4, 6), RuntimeError, "DeepSupervisionLoss with input.unbind(1)"),
]


@pytest.mark.parametrize(("input_shape", "target_shape", "error", "advice"), SHAPE_ERRORS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_shape_error_names_the_expected_shape_and_what_to_do(dtype, input_shape, target_shape, error, advice):
    expected = list(input_shape[:1] + input_shape[2:])
    with pytest.raises(error) as raised:
        segloss.cross_entropy(torch.randn(input_shape), torch.zeros(target_shape, dtype=dtype))
    text = str(raised.value)
    assert f"expected labels of shape {expected}" in text
    assert f"for input {list(input_shape)}" in text
    assert f"got target {list(target_shape)}" in text
    assert advice in text


@pytest.mark.parametrize(("input_shape", "target_shape", "error", "advice"), SHAPE_ERRORS)
def test_the_class_of_a_shape_error_is_torchs(input_shape, target_shape, error, advice):
    with pytest.raises((ValueError, RuntimeError)) as raised:
        F.cross_entropy(torch.randn(input_shape), torch.zeros(target_shape, dtype=torch.int64))
    assert raised.type is error


ADVICE = {
    "target.squeeze(3)": ((2, 3, 4, 5), (2, 4, 5, 1), lambda x, y: segloss.cross_entropy(x, y.squeeze(3))),
    "dim=3": ((2, 4, 5, 3), (2, 4, 5), lambda x, y: segloss.cross_entropy(x, y, dim=3)),
    "target.unsqueeze(0)": ((1, 3, 4, 5), (4, 5), lambda x, y: segloss.cross_entropy(x, y.unsqueeze(0))),
    "input.unsqueeze(0)": ((3, 4, 5), (1, 4, 5), lambda x, y: segloss.cross_entropy(x.unsqueeze(0), y)),
    "target.expand(2, -1, -1)": ((2, 3, 4, 5), (1, 4, 5), lambda x, y: segloss.cross_entropy(x, y.expand(2, -1, -1))),
    "target.expand(2, -1, -1) ": ((2, 3, 4, 5), (4, 5), lambda x, y: segloss.cross_entropy(x, y.expand(2, -1, -1))),
    "target[..., 0]": ((2, 5, 4, 6), (2, 4, 6, 3), lambda x, y: segloss.cross_entropy(x, y[..., 0])),
    "target.argmax(1)": ((2, 3, 4, 5), (2, 2, 4, 5), lambda x, y: segloss.cross_entropy(x, y.argmax(1))),
    "target.narrow(1, 0, 1)": ((2, 3, 4, 5), (2, 2, 4, 5), lambda x, y: segloss.cross_entropy(x, y.narrow(1, 0, 1))),
    "torch.nn.functional.interpolate(input, size=[8, 10])": (
        (2, 3, 4, 5),
        (2, 8, 10),
        lambda x, y: segloss.cross_entropy(F.interpolate(x, size=[8, 10]), y),
    ),
}


@pytest.mark.parametrize("advice", ADVICE)
def test_what_a_shape_error_advises_works(advice):
    input_shape, target_shape, fixed = ADVICE[advice]
    x, y = torch.randn(input_shape), torch.zeros(target_shape, dtype=torch.int64)
    with pytest.raises((ValueError, RuntimeError), match=re.escape(advice)):
        segloss.cross_entropy(x, y)
    assert fixed(x, y).isfinite()


def test_a_shape_error_without_advice_says_what_was_expected():
    with pytest.raises(
        RuntimeError, match=r"expected labels of shape \[2, 4, 5\] or \[2, 1, 4, 5\].*got target \[2, 7\]"
    ):
        segloss.cross_entropy(torch.randn(2, 3, 4, 5), torch.zeros(2, 7, dtype=torch.int64))


def test_the_error_of_a_float_target_names_the_shape_of_probabilities():
    with pytest.raises(RuntimeError, match=r"or class probabilities of shape \[2, 3, 4\].*got target \[2, 3, 5\]"):
        segloss.cross_entropy(torch.randn(2, 3, 4), torch.rand(2, 3, 5))


def test_an_input_of_no_dimension_is_refused():
    with pytest.raises(RuntimeError, match=r"expected logits \[N, C, \.\.\.\] or \[C\], got a 0-dim input"):
        segloss.cross_entropy(torch.tensor(1.0), torch.tensor(0))


# ---- memory format ----


def in_format(x, memory_format):
    return x.contiguous(memory_format=memory_format)


FORMATS = [
    ((2, 3, 4, 5), torch.contiguous_format),
    ((2, 3, 4, 5), torch.channels_last),
    ((2, 3, 4, 5, 6), torch.channels_last_3d),
]


@pytest.mark.parametrize(("shape", "memory_format"), FORMATS)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_has_the_strides_of_input(dtype, kind, shape, memory_format):
    x = in_format(torch.randn(shape).to(dtype), memory_format)
    target = torch.randint(3, (shape[0], *shape[2:])) if kind == "labels" else torch.rand(shape)
    assert cross_entropy_and_gradient(x, target)[1].stride() == x.stride()


# ---- precision of a float32 sum ----


@pytest.fixture(scope="module")
def many_voxels():
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    x = torch.randn(1, 2, 3_000_001, generator=generator) * 4
    return x, torch.randint(2, (1, 3_000_001), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_summation_adds_at_most_2e_7_to_the_voxels_own_losses(reduction, many_voxels):
    losses = segloss.cross_entropy(*many_voxels, reduction="none").double()
    expected = losses.mean() if reduction == "mean" else losses.sum()
    assert_relative(segloss.cross_entropy(*many_voxels, reduction=reduction), expected, SUM_RTOL)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_float32_reduction_of_millions_of_voxels_is_the_float64_one(reduction, many_voxels):
    expected = reference.cross_entropy(*many_voxels, reduction=reduction)
    assert_relative(segloss.cross_entropy(*many_voxels, reduction=reduction), expected, SUM_RTOL)


def test_a_sum_of_equal_losses_does_not_drift():
    """Added one by one in float32, the sum of 2^25 losses of 0.69 would stop growing."""
    num_voxels = 2**25
    x, labels = torch.zeros(1).expand(1, 2, num_voxels), torch.zeros(1, dtype=torch.uint8).expand(1, num_voxels)
    expected = num_voxels * torch.tensor(2.0, dtype=torch.float64).log()
    assert_relative(segloss.cross_entropy(x, labels, reduction="sum"), expected, SUM_RTOL)


# ---- determinism ----


def determinism_cases():
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    shape = (2, 5, 37, 41, 30)
    x = torch.randn(shape, generator=generator)
    labels = torch.randint(5, (2, 1, 37, 41, 30), generator=generator).to(torch.uint8)
    labels[:, :, 3] = 255
    weight = torch.rand(5, generator=generator)
    probabilities = torch.rand(shape, generator=generator)
    v = torch.rand(2, 37, 41, 30, generator=generator)
    return {
        "mean": (x, labels, {}),
        "sum": (x, labels, {"reduction": "sum"}),
        "none": (x, labels, {"reduction": "none"}),
        "weight+smoothing": (x, labels, {"weight": weight, "label_smoothing": 0.1}),
        "voxel_weight": (x, labels, {"voxel_weight": v}),
        "bfloat16": (x.bfloat16(), labels, {}),
        "probabilities": (x, probabilities, {"ignore_index": -100}),
    }


@pytest.fixture(scope="module")
def cases():
    return determinism_cases()


CASES = ["mean", "sum", "none", "weight+smoothing", "voxel_weight", "bfloat16", "probabilities"]


def bits_of(case, memory_format=torch.contiguous_format):
    x, target, keywords = case
    target = in_format(target, memory_format) if target.shape == x.shape else target
    return cross_entropy_and_gradient(in_format(x, memory_format), target, **{"ignore_index": 255, **keywords})


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_for_any_number_of_threads(name, cases, num_threads):
    num_threads(1)
    expected = bits_of(cases[name])
    for threads in (2, 3):
        num_threads(threads)
        for actual, wanted in zip(bits_of(cases[name]), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_for_contiguous_and_channels_last(name, cases):
    assert_same_bits(bits_of(cases[name], torch.channels_last_3d), bits_of(cases[name]))


def test_the_same_bits_in_two_dimensions(cases, num_threads):
    x, labels = torch.randn(2, 7, 250, 201), torch.randint(7, (2, 250, 201))
    num_threads(1)
    expected = bits_of((x, labels, {}))
    num_threads(3)
    for actual, wanted in zip(bits_of((x, labels, {}), torch.channels_last), expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.float32])
def test_the_same_bits_for_any_dtype_of_the_labels(dtype, cases):
    x, labels, _ = cases["mean"]
    for actual, wanted in zip(bits_of((x, labels.to(dtype), {})), bits_of((x, labels, {})), strict=True):
        assert torch.equal(actual, wanted)


def test_the_same_bits_again(cases, num_threads):
    num_threads(2)
    for actual, wanted in zip(bits_of(cases["mean"]), bits_of(cases["mean"]), strict=True):
        assert torch.equal(actual, wanted)


# ---- an error leaves everything as it was ----


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        ({"target": torch.tensor([[0, 1], [7, 2]])}, IndexError),
        ({"target": torch.tensor([[0.0, 1.0], [0.5, 2.0]])}, RuntimeError),
        ({"target": torch.ones(2, 3, 2, dtype=torch.int64)}, RuntimeError),
        ({"weight": torch.ones(4)}, RuntimeError),
        ({"voxel_weight": torch.ones(3)}, RuntimeError),
        ({"label_smoothing": 2.0}, RuntimeError),
    ],
    ids=["bad label", "not integral", "not one-hot", "weight", "voxel_weight", "label_smoothing"],
)
def test_an_error_leaves_every_tensor_as_it_was(spoil, error):
    arguments = {"input": torch.randn(2, 3, 2), "target": torch.tensor([[0, 1], [1, 2]]), "weight": torch.rand(3)}
    arguments = {**arguments, "voxel_weight": torch.rand(2, 2), **spoil}
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    arguments["input"].requires_grad_()
    arguments["input"].grad = torch.ones(2, 3, 2)
    with pytest.raises(error):
        segloss.cross_entropy(**arguments)
    for name, value in before.items():
        assert torch.equal(arguments[name], value)
    assert torch.equal(arguments["input"].grad, torch.ones(2, 3, 2))


def test_a_loss_changes_none_of_its_arguments():
    arguments = {
        "input": torch.randn(2, 3, 2).requires_grad_(),
        "target": torch.tensor([[0, 1], [-100, 2]]),
        "weight": torch.rand(3),
        "voxel_weight": torch.rand(2, 2),
    }
    before = {name: value.detach().clone() for name, value in arguments.items()}
    segloss.cross_entropy(**arguments, label_smoothing=0.1).backward()
    for name, value in before.items():
        assert torch.equal(arguments[name], value)
