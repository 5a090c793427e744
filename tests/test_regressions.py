"""Bugs that were found, each test named after what was wrong."""

import threading

import numpy as np
import pytest
import reference
import torch
import torch.autograd.forward_ad as fwAD
from tolerances import CONFIDENT_RTOL, assert_close, assert_relative

import segloss


@pytest.mark.parametrize("num_classes", [10_000, 200_000])
def test_sums_over_many_classes_were_taken_in_float32(num_classes):
    x = torch.zeros(1, num_classes)
    x[0, 0] = 1
    loss, grad = reference.value_and_gradient(segloss.cross_entropy, x, torch.tensor([0]))
    expected_loss, expected_grad = reference.value_and_gradient(reference.cross_entropy, x, torch.tensor([0]))
    assert_relative(loss, expected_loss, 1e-6)
    assert_relative(grad, expected_grad, CONFIDENT_RTOL)


def test_a_tiny_tail_was_lost_where_the_largest_logit_is_in_a_later_chunk_of_classes():
    x = torch.full((1, 300), -60.0)
    x[0, 250] = 0
    expected = reference.cross_entropy(x, torch.tensor([250]))
    assert_relative(segloss.cross_entropy(x, torch.tensor([250])), expected, CONFIDENT_RTOL)


def test_vmap_looped_over_samples_with_a_warning(capfd):
    x, labels = torch.randn(3, 2, 4, 5), torch.randint(4, (3, 2, 5))
    losses = torch.vmap(segloss.cross_entropy)(x, labels)
    assert_close(losses, torch.stack([segloss.cross_entropy(a, b) for a, b in zip(x, labels, strict=True)]))
    assert "performance drop" not in capfd.readouterr().err


def test_vmap_over_an_empty_dimension_raised():
    assert torch.vmap(segloss.cross_entropy)(torch.zeros(0, 2, 4), torch.zeros(0, 2).long()).shape == (0,)


def test_the_tangent_of_grad_loss_was_dropped():
    x = torch.randn(2, 3, requires_grad=True)
    labels = torch.tensor([0, 2])
    with fwAD.dual_level():
        scale = fwAD.make_dual(torch.tensor(2.0), torch.tensor(1.0))
        (grad,) = torch.autograd.grad(segloss.cross_entropy(x, labels) * scale, x)
        value, tangent = fwAD.unpack_dual(grad)
    assert_close(tangent, value / 2)


def test_accuracy_of_a_label_map_truncated_fractional_labels():
    with pytest.raises(RuntimeError, match=r"expected integral labels .* got 1\.5 at index \[1\]"):
        segloss.accuracy(torch.tensor([0, 1]), torch.tensor([0.0, 1.5]))


def test_nan_at_a_class_of_weight_zero_was_zero_in_nll_loss():
    log_p = torch.tensor([[float("nan"), -1.0], [-1.0, -2.0]])
    assert segloss.nll_loss(log_p, torch.tensor([0, 1]), torch.tensor([0.0, 1.0])).isnan()


def test_plus_inf_had_a_finite_second_order_gradient():
    x = torch.tensor([[float("inf"), 0.0, 1.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(segloss.cross_entropy(x, torch.tensor([1])), x, create_graph=True)
    assert grad.isnan().all()


def test_a_row_of_the_lowest_number_was_wrong_under_torch_func():
    x = torch.full((1, 3), torch.finfo(torch.float32).min)
    grad, loss = torch.func.grad_and_value(segloss.cross_entropy)(x, torch.tensor([1]))
    assert_close(loss, torch.tensor(3.0).log())
    assert_close(grad, torch.tensor([[1 / 3, -2 / 3, 1 / 3]]))


def test_integer_voxel_weights_were_rounded_to_float32_for_float64_logits():
    x, weight = torch.randn(1, 3, 2, dtype=torch.float64), torch.tensor([[2**24 + 1, 1]])
    labels = torch.tensor([[0, 2]])
    expected = reference.cross_entropy(x, labels, voxel_weight=weight, reduction="sum")
    assert_close(segloss.cross_entropy(x, labels, voxel_weight=weight, reduction="sum"), expected)


def test_fake_labels_kept_strides_that_real_ones_lose():
    labels = torch.randint(3, (2, 4, 5)).transpose(1, 2)
    torch.library.opcheck(torch.ops.segloss.class_labels.default, ("cross_entropy", labels, 3, -100))


def test_a_weight_that_requires_grad_was_refused_without_grad_mode():
    weight = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        segloss.cross_entropy(torch.randn(2, 3), torch.tensor([0, 2]), weight)


def test_accuracy_of_a_float_one_hot_target_could_not_be_compiled():
    x = torch.randn(4, 3)
    one_hot = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    compiled = torch.compile(segloss.accuracy, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, one_hot), segloss.accuracy(x, one_hot))


def test_float64_overflowed_the_stack_of_a_small_thread():
    x = torch.randn(2, 130, 70, dtype=torch.float64, requires_grad=True)
    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=lambda: segloss.cross_entropy(x, x.detach().softmax(1)).backward())
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert x.grad is not None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"target": np.zeros((2, 4))}, r"expected target to be a torch.Tensor, got ndarray\. Use torch.as_tensor"),
        ({"target": None}, "expected target to be a torch.Tensor, got NoneType"),
        ({"input": [[0.0]]}, "expected input to be a torch.Tensor, got list"),
        ({"weight": [1.0, 1.0]}, "expected weight to be a torch.Tensor, got list"),
        ({"ignore_index": 2.5}, r"expected ignore_index to be an int, got 2\.5"),
        ({"dim": "C"}, "expected dim to be an int, got 'C'"),
        ({"label_smoothing": None}, "expected label_smoothing to be a float, got None"),
    ],
)
def test_what_is_no_tensor_or_number_was_printed_whole(arguments, text):
    arguments = {"input": torch.zeros(2, 3, 4), "target": torch.zeros(2, 4).long()} | arguments
    with pytest.raises(TypeError, match="cross_entropy: " + text):
        segloss.cross_entropy(**arguments)


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        (lambda y: torch.nn.functional.one_hot(y[:, 0], 4), lambda y: y.movedim(-1, 1)),
        (lambda y: y.transpose(2, 4), lambda y: y.permute(0, 1, 4, 3, 2)),
        (lambda y: y.flatten(2), lambda y: y.reshape(2, 6, 7, 8)),
    ],
    ids=["one-hot of the labels", "other order of axes", "flattened"],
)
def test_the_wrong_mend_was_named(spoil, mend):
    x, labels = torch.randn(2, 4, 6, 7, 8), torch.randint(4, (2, 1, 6, 7, 8))
    with pytest.raises((RuntimeError, ValueError), match=r"Try target\.(movedim\(-1, 1\)|permute\(|reshape\()"):
        segloss.cross_entropy(x, spoil(labels))
    assert torch.equal(segloss.cross_entropy(x, mend(spoil(labels))), segloss.cross_entropy(x, labels))
