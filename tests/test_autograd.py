"""Derivatives: first and second order, forward mode, transforms, hooks, what is saved, compile and opcheck."""

import pytest
import reference
import torch
from operators import options_of
from tolerances import assert_close
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint
from torch_versions import ignores_warnings_of_opcheck

import segloss

WEIGHT = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
REDUCTIONS = ["mean", "sum", "none"]
LABELS = torch.tensor([[0, 2], [1, -100]])
VOXEL_WEIGHT = torch.tensor([[0.5, 0.0], [2.0, 1.0]])


def logits_of(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed), dtype=dtype
    ).requires_grad_()


def probabilities_of(*shape, seed=1):
    return logits_of(*shape, seed=seed).detach().softmax(1)


def assert_derivatives(loss, *inputs):
    assert gradcheck(loss, inputs, check_forward_ad=True)
    assert gradgradcheck(loss, inputs)


# ---- first and second derivatives in float64 ----


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": WEIGHT},
        {"label_smoothing": 0.2},
        {"weight": WEIGHT, "label_smoothing": 0.2},
        {"voxel_weight": VOXEL_WEIGHT},
        {"weight": WEIGHT, "label_smoothing": 0.2, "voxel_weight": VOXEL_WEIGHT},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_derivatives_of_cross_entropy_with_labels(options, reduction):
    assert_derivatives(lambda x: segloss.cross_entropy(x, LABELS, reduction=reduction, **options), logits_of(2, 3, 2))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT}, {"voxel_weight": VOXEL_WEIGHT}], ids=lambda o: "+".join(o))
def test_derivatives_of_nll_loss_with_labels(options, reduction):
    assert_derivatives(lambda x: segloss.nll_loss(x, LABELS, reduction=reduction, **options), logits_of(2, 3, 2))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_derivatives_in_input_probabilities_and_weight(smoothing, reduction):
    def loss(x, target, weight):
        return segloss.cross_entropy(
            x, target, weight, reduction=reduction, label_smoothing=smoothing, voxel_weight=VOXEL_WEIGHT
        )

    target = probabilities_of(2, 3, 2).requires_grad_()
    assert_derivatives(loss, logits_of(2, 3, 2), target, WEIGHT.clone().requires_grad_())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_derivatives_in_input_alone_with_probabilities(smoothing):
    target = probabilities_of(2, 3, 2)
    assert_derivatives(
        lambda x: segloss.cross_entropy(x, target, WEIGHT, label_smoothing=smoothing), logits_of(2, 3, 2)
    )


def test_derivatives_in_probabilities_alone():
    x = logits_of(2, 3, 2).detach()
    assert_derivatives(lambda t: segloss.cross_entropy(x, t), probabilities_of(2, 3, 2).requires_grad_())


def test_derivatives_in_weight_alone():
    x, target = logits_of(2, 3, 2).detach(), probabilities_of(2, 3, 2)
    assert_derivatives(lambda w: segloss.cross_entropy(x, target, w), WEIGHT.clone().requires_grad_())


def test_derivatives_of_nll_loss_with_probabilities():
    target = probabilities_of(2, 3, 2).requires_grad_()
    assert_derivatives(lambda x, t: segloss.nll_loss(x, t), logits_of(2, 3, 2), target)


def test_derivatives_with_one_hot():
    target = torch.tensor([[0, 1, 0], [1, 0, 0]])
    assert_derivatives(lambda x: segloss.cross_entropy(x, target, WEIGHT), logits_of(2, 3))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_with_the_classes_last(reduction):
    assert_derivatives(lambda x: segloss.cross_entropy(x, LABELS, dim=-1, reduction=reduction), logits_of(2, 2, 3))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_with_a_kept_class_dimension(reduction):
    labels = LABELS.unsqueeze(1)
    assert_derivatives(lambda x: segloss.cross_entropy(x, labels, reduction=reduction), logits_of(2, 3, 2))


def test_derivatives_in_channels_last():
    x = logits_of(1, 3, 2, 2).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert_derivatives(lambda x: segloss.cross_entropy(x, LABELS.unsqueeze(0)), x)


@pytest.mark.parametrize("target", [torch.tensor(2), torch.tensor([2])])
def test_derivatives_of_one_unbatched_voxel(target):
    assert_derivatives(lambda x: segloss.cross_entropy(x, target), logits_of(3))


def test_the_gradient_of_probabilities_and_weight_is_that_of_torch():
    x, target, weight = logits_of(2, 3, 2), probabilities_of(2, 3, 2).requires_grad_(), WEIGHT.clone().requires_grad_()
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(x, target, weight), (x, target, weight))
    actual = torch.autograd.grad(segloss.cross_entropy(x, target, weight), (x, target, weight))
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)


def test_the_hessian_is_that_of_torch():
    x = logits_of(2, 3, 2).detach()
    expected = torch.func.hessian(lambda x: torch.nn.functional.cross_entropy(x, LABELS))(x)
    assert_close(torch.func.hessian(lambda x: segloss.cross_entropy(x, LABELS))(x), expected)


# ---- torch.func and forward mode give what the kernel gives ----


def special_cases():
    """Name, input [2, 3, 2], target and keywords."""
    x = logits_of(2, 3, 2).detach()
    ignored_nan, neg_inf = x.clone(), x.clone()
    ignored_nan[1, :, 1] = float("nan")  # the ignored voxel of LABELS
    neg_inf[0, 1] = float("-inf")  # class 1 is no label of sample 0
    probabilities = torch.tensor([[0.5, 0.25], [0.0, 0.0], [0.5, 0.75]]).expand(2, 3, 2).double()
    no_class_1 = torch.tensor([1.0, 0.0, 2.0])
    return [
        ("labels", x, LABELS, {}),
        ("uint8 labels", x, LABELS.clamp(min=0).to(torch.uint8), {}),
        ("float labels", x, LABELS.float(), {}),
        ("kept class dimension", x, LABELS.unsqueeze(1), {}),
        ("weight and smoothing", x, LABELS, {"weight": WEIGHT, "label_smoothing": 0.2}),
        ("voxel weight", x, LABELS, {"voxel_weight": VOXEL_WEIGHT}),
        ("probabilities", x, probabilities, {"weight": WEIGHT, "label_smoothing": 0.2}),
        ("ignored nan", ignored_nan, LABELS, {}),
        ("nan of voxel weight zero", ignored_nan, probabilities, {"voxel_weight": torch.tensor([[1.0, 1], [1, 0]])}),
        ("-inf", neg_inf, LABELS, {}),
        ("-inf where the probability is zero", neg_inf, probabilities, {}),
        ("-inf where the weight is zero", neg_inf, LABELS, {"weight": no_class_1, "label_smoothing": 0.2}),
        ("all ignored", x, torch.full((2, 2), -100), {}),
        ("all ignored, empty zero", x, torch.full((2, 2), -100), {"empty": "zero"}),
        ("all weights zero", x, LABELS, {"weight": torch.zeros(3)}),
        ("all voxel weights zero", x, LABELS, {"voxel_weight": torch.zeros(2, 2)}),
        ("classes last", x.movedim(1, -1), LABELS, {"dim": -1}),
    ]


SPECIAL = pytest.mark.parametrize(
    ("input", "target", "options"), [case[1:] for case in special_cases()], ids=[case[0] for case in special_cases()]
)


def kernel(input, target, **options):
    x = input.clone().requires_grad_()
    value = segloss.cross_entropy(x, target, **options)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


@SPECIAL
def test_the_kernel_is_the_reference(input, target, options):
    expected = reference.value_and_gradient(reference.cross_entropy, input, target, **options)
    for a, e in zip(kernel(input, target, **options), expected, strict=True):
        assert_close(a, e)


@SPECIAL
def test_func_grad_gives_what_the_kernel_gives(input, target, options):
    grad, value = torch.func.grad_and_value(segloss.cross_entropy)(input, target, **options)
    expected_value, expected_grad = kernel(input, target, **options)
    assert_close(value, expected_value)
    assert_close(grad, expected_grad)


@SPECIAL
def test_func_jvp_gives_what_the_kernel_gives(input, target, options):
    tangent = torch.randn_like(input)
    value, derivative = torch.func.jvp(lambda x: segloss.cross_entropy(x, target, **options), (input,), (tangent,))
    expected_value, expected_grad = kernel(input, target, **options)
    assert_close(value, expected_value)
    assert_close(derivative, (expected_grad * tangent).sum())


@SPECIAL
def test_a_dual_tensor_gives_what_the_kernel_gives(input, target, options):
    tangent = torch.randn_like(input)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(input, tangent)
        value, derivative = torch.autograd.forward_ad.unpack_dual(segloss.cross_entropy(dual, target, **options))
    expected_value, expected_grad = kernel(input, target, **options)
    assert_close(value, expected_value)
    assert_close(derivative, (expected_grad * tangent).sum())


@pytest.mark.parametrize("name", ["target", "weight"])
def test_a_dual_target_or_weight_has_a_derivative(name):
    tensors = {"input": logits_of(2, 3, 2).detach(), "target": probabilities_of(2, 3, 2), "weight": WEIGHT}
    tangent = torch.randn_like(tensors[name])
    source = tensors[name].clone().requires_grad_()
    (grad,) = torch.autograd.grad(segloss.cross_entropy(**{**tensors, name: source}), source)
    with torch.autograd.forward_ad.dual_level():
        dual = {**tensors, name: torch.autograd.forward_ad.make_dual(tensors[name], tangent)}
        derivative = torch.autograd.forward_ad.unpack_dual(segloss.cross_entropy(**dual)).tangent
    assert_close(derivative, (grad * tangent).sum())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT, "label_smoothing": 0.2}], ids=["plain", "weight+smoothing"])
def test_vmap_over_samples_is_one_sample_at_a_time(options, reduction):
    x = logits_of(2, 3, 2).detach()

    def loss(x, y):
        return segloss.cross_entropy(x, y, dim=0, reduction=reduction, **options)

    expected = torch.stack([loss(x[0], LABELS[0]), loss(x[1], LABELS[1])])
    assert_close(torch.func.vmap(loss)(x, LABELS), expected)


def test_per_sample_gradients():
    x = logits_of(2, 3, 2).detach()

    def loss(x, y):
        return segloss.cross_entropy(x, y, dim=0)

    expected = torch.stack([torch.func.grad(loss)(x[0], LABELS[0]), torch.func.grad(loss)(x[1], LABELS[1])])
    assert_close(torch.func.vmap(torch.func.grad(loss))(x, LABELS), expected)


def test_vmap_over_one_hot_targets():
    x = logits_of(2, 3, 2).detach()
    labels = LABELS.clamp(min=0)
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    actual = torch.func.vmap(lambda x, y: segloss.cross_entropy(x, y, dim=0))(x, one_hot)
    assert_close(actual, torch.func.vmap(lambda x, y: segloss.cross_entropy(x, y, dim=0))(x, labels))


def test_a_bad_label_that_is_an_argument_of_func_grad_raises_index_error():
    with pytest.raises(IndexError, match="out of bounds"):
        torch.func.grad(segloss.cross_entropy)(logits_of(2, 3, 2).detach(), torch.tensor([[0, 3], [1, 1]]))


def test_a_bad_label_in_a_closure_under_func_grad_raises_index_error():
    labels = torch.tensor([[0, 3], [1, 1]])
    with pytest.raises(IndexError, match="out of bounds"):
        torch.func.grad(lambda x: segloss.cross_entropy(x, labels))(logits_of(2, 3, 2).detach())


def test_a_bad_label_with_a_dual_tensor_raises_index_error():
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.randn(2, 3), torch.randn(2, 3))
        with pytest.raises(IndexError, match="Target 3 is out of bounds"):
            segloss.cross_entropy(dual, torch.tensor([0, 3]))


def test_half_logits_have_half_tangents():
    x = torch.randn(2, 3, 2).half()
    value, derivative = torch.func.jvp(lambda x: segloss.cross_entropy(x, LABELS), (x,), (torch.ones_like(x),))
    assert value.dtype == derivative.dtype == torch.float16


# ---- autograd's bookkeeping ----


def test_a_hook_on_input_runs_once():
    x = logits_of(2, 3, 2)
    calls = []
    x.register_hook(calls.append)
    segloss.cross_entropy(x, LABELS).backward()
    assert len(calls) == 1


def test_a_hook_runs_once_where_a_graph_is_made():
    x = logits_of(2, 3, 2)
    calls = []
    x.register_hook(lambda grad: calls.append(1))
    torch.autograd.grad(segloss.cross_entropy(x, LABELS), x, create_graph=True)
    assert calls == [1]


def test_hooks_on_input_target_and_weight_run_once():
    tensors = [logits_of(2, 3, 2), probabilities_of(2, 3, 2).requires_grad_(), WEIGHT.clone().requires_grad_()]
    calls = []
    for name, tensor in zip("itw", tensors, strict=True):
        tensor.register_hook(lambda grad, name=name: calls.append(name))
    segloss.cross_entropy(*tensors).backward()
    assert sorted(calls) == ["i", "t", "w"]


@pytest.mark.parametrize("changed", ["input", "target", "weight", "voxel_weight"])
def test_a_change_in_place_before_backward_is_detected(changed):
    tensors = {
        "input": logits_of(2, 3, 2) * 1,
        "target": LABELS.clone(),
        "weight": WEIGHT.clone(),
        "voxel_weight": VOXEL_WEIGHT.clone(),
    }
    loss = segloss.cross_entropy(**tensors)
    tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_twice_is_an_error():
    loss = segloss.cross_entropy(logits_of(2, 3, 2), LABELS)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_retain_graph_gives_the_same_gradient_again():
    x = logits_of(2, 3, 2)
    loss = segloss.cross_entropy(x, LABELS)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, x)[0], first)


def test_gradients_accumulate():
    x = logits_of(2, 3, 2)
    segloss.cross_entropy(x, LABELS).backward()
    once = x.grad.clone()
    segloss.cross_entropy(x, LABELS).backward()
    assert torch.equal(x.grad, 2 * once)


def test_the_gradient_is_scaled_by_the_gradient_of_the_loss():
    x = logits_of(2, 3, 2)
    grad = torch.autograd.grad(segloss.cross_entropy(x, LABELS), x)[0]
    scaled = torch.autograd.grad(segloss.cross_entropy(x, LABELS) * -3, x)[0]
    assert_close(scaled, -3 * grad)


def test_the_gradient_of_each_voxel_is_scaled_by_that_of_its_loss():
    x, scale = logits_of(2, 3, 2), torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64)
    grad = torch.autograd.grad(segloss.cross_entropy(x, LABELS, reduction="none").sum(), x)[0]
    scaled = torch.autograd.grad(segloss.cross_entropy(x, LABELS, reduction="none"), x, scale)[0]
    assert_close(scaled, scale.unsqueeze(1) * grad)


FEW_GRADIENTS = {
    "plain": {},
    "weight": {"weight": torch.linspace(0.5, 2, 5)},
    "smoothing": {"label_smoothing": 0.2},
    "voxel_weight": {"voxel_weight": torch.arange(2 * 13 * 40).remainder(3).view(2, 13, 40) / 2},
    "ignored": {"ignore_index": 1},
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", FEW_GRADIENTS)
def test_the_gradient_where_few_losses_have_one(options, dtype, layout):
    options = FEW_GRADIENTS[options]
    x, labels = logits_of(2, 5, 13, 40, dtype=dtype).detach(), torch.randint(5, (2, 13, 40))
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.mT.contiguous().mT
    x.requires_grad_()
    loss = segloss.cross_entropy(x, labels, reduction="none", **options)
    of_all = torch.autograd.grad(loss, x, torch.ones_like(loss), retain_graph=True)[0]
    grads = torch.randint(-1, 2, loss.shape).to(dtype) * (torch.rand(loss.shape) < 0.1)
    grads[0, :3] = 1  # many in one block
    gradient = torch.autograd.grad(loss, x, grads)[0]
    assert gradient.stride() == x.stride()
    assert torch.equal(gradient, of_all * grads.unsqueeze(1))


@pytest.mark.parametrize("num_classes", [2, 16, 17, 33, 56, 57, 112, 113])
def test_the_gradient_of_few_losses_of_many_classes(num_classes):
    for dtype in (torch.float32, torch.float64):
        x, labels = logits_of(2, num_classes, 300, dtype=dtype), torch.randint(num_classes, (2, 300))
        loss = segloss.cross_entropy(x, labels, reduction="none")
        of_all = torch.autograd.grad(loss, x, torch.ones_like(loss), retain_graph=True)[0]
        grads = (torch.rand(loss.shape) < 0.1).to(dtype)
        assert torch.equal(torch.autograd.grad(loss, x, grads)[0], of_all * grads.unsqueeze(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_strange_logit_of_a_loss_without_a_gradient_gives_the_gradient_of_torch(value):
    x, labels = logits_of(2, 3, 300), torch.zeros(2, 300).long()
    grads = torch.zeros(2, 300)
    grads[:, 5] = 1
    with torch.no_grad():
        x[0, 1, 7] = value
    gradients = []
    for cross_entropy in (segloss.cross_entropy, torch.nn.functional.cross_entropy):
        loss = cross_entropy(x, labels, reduction="none")
        gradients.append(torch.autograd.grad(loss, x, grads.to(loss.dtype))[0])
    assert_close(*gradients)


def test_no_graph_is_made_where_no_gradient_is_asked():
    assert not segloss.cross_entropy(logits_of(2, 3, 2).detach(), LABELS).requires_grad
    with torch.no_grad():
        assert not segloss.cross_entropy(logits_of(2, 3, 2), LABELS).requires_grad


def test_inference_mode():
    with torch.inference_mode():
        value = segloss.cross_entropy(logits_of(2, 3, 2), LABELS)
    assert value.is_inference()


def test_checkpoint_gives_the_same_gradient():
    x = logits_of(2, 3, 2)
    expected = torch.autograd.grad(segloss.cross_entropy(x, LABELS), x)[0]
    loss = torch.utils.checkpoint.checkpoint(lambda x: segloss.cross_entropy(x, LABELS), x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", [segloss.cross_entropy, segloss.nll_loss])
def test_nothing_beyond_input_and_target_is_saved(loss, reduction):
    x, labels = logits_of(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss(x, labels, reduction=reduction)
    assert all(t.numel() <= 1 for t in saved if t.data_ptr() not in {x.data_ptr(), labels.data_ptr()})


# ---- a reduced loss computes its gradient along with itself ----


def gradient_in_two_walks(x, labels, factor=1.0, **options):
    """Computes the gradient after the loss: under a hook on saved tensors it is not made along with the loss."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        loss = segloss.cross_entropy(x, labels, **options)
    return torch.autograd.grad(loss, x, torch.full_like(loss, factor))[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", [{}, {"ignore_index": 1}, {"label_smoothing": 0.1}, {"dim": -1}])
def test_the_gradient_made_with_the_loss_has_the_bits_of_a_second_pass(options, reduction, dtype):
    x = torch.randn(3, 3, 70, 3, dtype=dtype, requires_grad=True)
    labels = torch.randint(3, (3, 3, 70) if "dim" in options else (3, 70, 3))
    loss = segloss.cross_entropy(x, labels, reduction=reduction, **options)
    expected = gradient_in_two_walks(x, labels, reduction=reduction, **options)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


def test_the_gradient_made_with_the_loss_has_the_bits_of_a_second_pass_with_weights():
    x, weight = torch.randn(2, 3, 100, requires_grad=True), torch.tensor([0.5, 0.0, 3.0])
    labels, voxel_weight = torch.randint(3, (2, 100)), torch.rand(2, 100)
    options = {"weight": weight, "voxel_weight": voxel_weight}
    gradient = torch.autograd.grad(segloss.cross_entropy(x, labels, **options), x)[0]
    assert torch.equal(gradient, gradient_in_two_walks(x, labels, **options))


@pytest.mark.parametrize("factor", [0.0, -0.3, 2.0**16, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_gradient_made_with_the_loss_is_scaled_by_the_gradient_of_the_loss(dtype, factor):
    x = torch.randn(2, 3, 100, dtype=dtype, requires_grad=True)
    labels = torch.randint(3, (2, 100))
    labels[0, :50] = -100  # no gradient here, not even for an infinite factor
    loss = segloss.cross_entropy(x, labels)
    gradient = torch.autograd.grad(loss, x, torch.full_like(loss, factor))[0]
    rounding = {torch.float64: 1e-15, torch.float32: 2e-7}.get(dtype, 0)
    expected = gradient_in_two_walks(x, labels, factor)
    torch.testing.assert_close(gradient, expected, rtol=rounding, atol=0, equal_nan=True)


def test_a_float16_gradient_that_is_too_small_without_a_gradient_scaler_is_kept():
    x = torch.zeros(1, 3, 2**20, dtype=torch.float16, requires_grad=True)
    loss = segloss.cross_entropy(x, torch.zeros(1, 2**20, dtype=torch.uint8))
    gradient = torch.autograd.grad(loss * 2.0**12, x)[0]
    assert_close(gradient[0, 1], torch.full((2**20,), 2.0**-8 / 3, dtype=torch.float64))


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_every_backward_pass_gives_a_gradient_of_its_own(factor):
    x, labels = torch.randn(2, 3, 100, requires_grad=True), torch.randint(3, (2, 100))
    loss = segloss.cross_entropy(x, labels)
    (first,) = torch.autograd.grad(loss * factor, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss * factor, x, retain_graph=True)
    second.mul_(2)
    assert torch.equal(first, kept)
    torch.testing.assert_close(torch.autograd.grad(loss * factor, x)[0], kept, rtol=2e-7, atol=0)


def test_the_gradient_goes_to_the_leaf_without_a_copy():
    x, labels = torch.randn(1, 3, 100, requires_grad=True), torch.randint(3, (1, 100))
    loss = segloss.cross_entropy(x, labels)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient._base is None
    assert gradient._version == 0


def test_a_checkpointed_loss_has_the_same_gradient():
    x, labels = torch.randn(2, 3, 100, requires_grad=True), torch.randint(3, (2, 100))
    loss = checkpoint(segloss.cross_entropy, x, labels, use_reentrant=False)
    expected = torch.autograd.grad(segloss.cross_entropy(x, labels), x)[0]
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


def test_saved_tensors_may_be_packed_and_unpacked():
    x = logits_of(2, 3, 2)
    expected = torch.autograd.grad(segloss.cross_entropy(x, LABELS, WEIGHT), x)[0]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.numpy(force=True), lambda a: torch.from_numpy(a).to(x.device)
    ):
        loss = segloss.cross_entropy(x, LABELS, WEIGHT)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


# ---- meta tensors, opcheck, compile ----


@pytest.mark.parametrize(("reduction", "shape"), [("mean", ()), ("sum", ()), ("none", (2, 1, 4))])
@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_meta_tensors_give_shape_and_dtype(loss, reduction, shape):
    x = torch.empty(2, 3, 4, device="meta", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.empty(2, 1, 4, device="meta", dtype=torch.uint8)
    value = getattr(segloss, loss)(x, labels, reduction=reduction)
    assert (value.device.type, value.shape, value.dtype) == ("meta", shape, torch.bfloat16)
    value.sum().backward()
    assert (x.grad.device.type, x.grad.shape, x.grad.dtype) == ("meta", x.shape, torch.bfloat16)


def test_meta_accuracy():
    labels = torch.empty(2, 4, device="meta", dtype=torch.uint8)
    assert segloss.accuracy(torch.empty(2, 3, 4, device="meta"), labels).shape == ()


def opcheck_cases():
    x = torch.randn(2, 3, 4, 4)
    labels = torch.randint(3, (2, 4, 4)).to(torch.uint8)
    weight, v = torch.rand(3), torch.rand(2, 4, 4)
    return [
        ("plain", (x.clone().requires_grad_(), labels), {}),
        ("weight+smoothing", (x.clone().requires_grad_(), labels, weight, v), {"label_smoothing": 0.1}),
        ("none", (x.clone().requires_grad_(), labels.unsqueeze(1)), {"reduction": 0}),
        ("channels_last", (x.to(memory_format=torch.channels_last).requires_grad_(), labels), {}),
        ("classes last", (x.movedim(1, -1).clone().requires_grad_(), labels), {"dim": -1}),
        ("probabilities", (x.clone().requires_grad_(), x.softmax(1), weight), {}),
        ("bfloat16", (x.bfloat16().requires_grad_(), labels), {}),
        ("nll", (x.clone().requires_grad_(), labels), {"log_probabilities": True}),
    ]


@ignores_warnings_of_opcheck
@pytest.mark.parametrize(
    ("args", "options"), [case[1:] for case in opcheck_cases()], ids=[case[0] for case in opcheck_cases()]
)
def test_opcheck_of_cross_entropy(args, options):
    torch.library.opcheck(torch.ops.segloss.cross_entropy.default, args, options)


@pytest.mark.parametrize("target", ["labels", "probabilities"])
@pytest.mark.parametrize(("reduction", "with_gradient"), [(0, False), (1, False), (2, False), (1, True), (2, True)])
def test_opcheck_of_the_forward_and_backward_operators(reduction, with_gradient, target):
    x = torch.randn(2, 3, 4, 4)
    y = torch.randint(3, (2, 4, 4)) if target == "labels" else x.softmax(1)
    options = options_of("cross_entropy", reduction=reduction, label_smoothing=0.1, with_gradient=with_gradient)
    forward = ("op", x, y, None, None, *options)
    torch.library.opcheck(torch.ops.segloss.cross_entropy_forward.default, forward)
    loss, total_weight, gradient = torch.ops.segloss.cross_entropy_forward(*forward)
    backward = (torch.ones_like(loss), total_weight, *forward)
    torch.library.opcheck(torch.ops.segloss.cross_entropy_backward.default, backward)
    if with_gradient:
        rescale = (gradient, torch.tensor(0.3), *backward[1:])
        torch.library.opcheck(torch.ops.segloss.cross_entropy_rescale.default, rescale)


@ignores_warnings_of_opcheck
@pytest.mark.parametrize("voxel_loss", [False, True])
@pytest.mark.parametrize("soft_label", [False, True])
@pytest.mark.parametrize(
    ("activation", "target"),
    [("softmax", "labels"), ("softmax", "soft labels"), ("sigmoid", "labels"), ("sigmoid", "masks")],
)
def test_opcheck_of_soft_stats(activation, target, soft_label, voxel_loss):
    x = torch.randn(2, 3, 4, 4)
    targets = {"labels": torch.randint(3, (2, 4, 4)), "soft labels": x.softmax(1), "masks": (x > 0).to(torch.uint8)}
    y, ops = targets[target], torch.ops.segloss
    options = {"activation": activation, "squared": not soft_label, "voxel_loss": voxel_loss}
    options |= {"label_smoothing": 0.1, "soft_label": soft_label}
    torch.library.opcheck(ops.soft_stats.default, (x.clone().requires_grad_(), y), options)
    beneath = ("op", x, y, None, None, *options_of("soft_stats", **options))
    torch.library.opcheck(ops.soft_stats_forward.default, beneath)
    grads = (torch.ones(2, 3), torch.ones(2, 3), torch.ones(2))
    torch.library.opcheck(ops.soft_stats_backward.default, (*grads, *beneath))


def test_opcheck_of_accuracy_and_one_hot():
    x, labels = torch.randn(2, 3, 4), torch.randint(3, (2, 4))
    torch.library.opcheck(torch.ops.segloss.accuracy.default, (x, labels))
    counts = ("accuracy", x, labels, 3, -100, 1, True)
    torch.library.opcheck(torch.ops.segloss.confusion_counts.default, counts)
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    torch.library.opcheck(torch.ops.segloss.one_hot_labels.default, ("cross_entropy", one_hot, 1))
    torch.library.opcheck(torch.ops.segloss.class_masks.default, ("dice_loss", one_hot, -100))
    torch.library.opcheck(torch.ops.segloss.check_range.default, ("dice_loss", "target", x.softmax(1), 0.0, 1.0))


def test_compile_is_one_graph_with_the_same_bits():
    x, labels = logits_of(2, 3, 4), torch.randint(3, (2, 1, 4), dtype=torch.uint8)
    compiled = torch.compile(
        lambda x, y: segloss.cross_entropy(x, y, label_smoothing=0.1), backend="aot_eager", fullgraph=True
    )
    value, expected = compiled(x, labels), segloss.cross_entropy(x, labels, label_smoothing=0.1)
    assert torch.equal(value, expected)
    assert torch.equal(torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, x)[0])
