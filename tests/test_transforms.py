"""torch.func, forward-mode AD, autocast, checkpoints, hooks and autograd's own errors, of every differentiable loss."""

from functools import partial

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from losses import OF_EACH_VOXEL, VARIANTS, is_sigmoid, takes
from tolerances import assert_close
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import segloss

WEIGHT = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
LABELS = torch.tensor([[0, 2], [1, -100]])
MASKS = torch.tensor([[[1, 0], [1, 1], [0, 0]], [[0, 0], [1, 0], [1, 1]]])
VOXEL_WEIGHT = torch.tensor([[0.5, 1.0], [2.0, 1.0]], dtype=torch.float64)


# ---- the losses, as functions of logits [N, 3, *] and labels or masks ----


def binary_dice_of_sigmoid(x, masks, **options):
    return segloss.BinaryDiceLoss()(x.sigmoid(), masks, **options)


def deep_supervision(x, labels, **options):
    return segloss.DeepSupervisionLoss(segloss.dice_ce_loss)([x, x[..., ::2]], labels, **options)


def matthews(x, labels, **options):
    """A loss that a caller builds from the sums."""
    s = segloss.soft_stats(x, labels, **options)
    tn = s.prediction.sum(1, keepdim=True) - s.tp - s.fp - s.fn
    variances = (s.tp + s.fp) * (s.tp + s.fn) * (tn + s.fp) * (tn + s.fn)
    return 1 - ((s.tp * tn - s.fp * s.fn) / (variances + 1).sqrt()).mean()


LABEL_LOSSES = {
    **{name: loss for name, loss in (VARIANTS | OF_EACH_VOXEL).items() if not is_sigmoid(loss)},
    "weighted cross_entropy": partial(segloss.cross_entropy, weight=WEIGHT, label_smoothing=0.1),
    "weighted dice_ce_loss": partial(segloss.dice_ce_loss, weight=WEIGHT),
    "MultiClassDiceLoss": segloss.MultiClassDiceLoss(ignore_index=-100),
    "DeepSupervisionLoss": deep_supervision,
    "soft_stats": matthews,
}
MASK_LOSSES = {
    **{name: loss for name, loss in (VARIANTS | OF_EACH_VOXEL).items() if is_sigmoid(loss)},
    "BinaryDiceLoss": binary_dice_of_sigmoid,
}
LOSSES = LABEL_LOSSES | MASK_LOSSES
EACH_LOSS = pytest.mark.parametrize("name", LOSSES)


def target_of(name):
    return MASKS if name in MASK_LOSSES else LABELS


def logits(*shape):
    return torch.randn(shape, dtype=torch.float64)


def loss_of(name, target=None, **options):
    """The loss as a function of the logits alone, summed to one number."""
    target = target_of(name) if target is None else target
    return lambda x: LOSSES[name](x, target, **options).sum()


def gradient_of(loss, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


# ---- derivatives ----


@EACH_LOSS
def test_first_derivatives_in_both_modes_one_at_a_time_and_batched(name):
    loss, target = LOSSES[name], target_of(name)
    x = logits(2, 3, 2).requires_grad_()
    assert gradcheck(
        lambda x: loss(x, target), x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )


@EACH_LOSS
def test_second_derivatives_in_both_modes(name):
    loss, target = LOSSES[name], target_of(name)
    x = logits(2, 3, 2).requires_grad_()
    assert gradgradcheck(lambda x: loss(x, target), x, check_fwd_over_rev=True, check_batched_grad=True)


@EACH_LOSS
def test_func_gives_the_gradient_of_the_kernel(name):
    loss, x = loss_of(name), logits(2, 3, 2)
    expected = gradient_of(loss, x)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        assert_close(transform(loss)(x), expected)


@EACH_LOSS
def test_a_tangent_is_the_gradient_of_the_kernel_in_its_direction(name):
    loss, x, tangent = loss_of(name), logits(2, 3, 2), logits(2, 3, 2)
    expected = (gradient_of(loss, x) * tangent).sum()
    assert_close(torch.func.jvp(loss, (x,), (tangent,))[1], expected)
    with fwAD.dual_level():
        assert_close(fwAD.unpack_dual(loss(fwAD.make_dual(x, tangent))).tangent, expected)


@EACH_LOSS
def test_the_hessian_is_that_of_two_backward_passes(name):
    loss, x = loss_of(name), logits(2, 3, 2)
    assert_close(torch.func.hessian(loss)(x), torch.autograd.functional.hessian(loss, x))


# ---- vmap ----


class Calls(TorchDispatchMode):
    """Collects the operators that run, with their tensor arguments."""

    def __init__(self):
        super().__init__()
        self.operators, self.arguments = [], []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.operators.append(operator)
        self.arguments.append([a for a in args if isinstance(a, torch.Tensor)])
        return operator(*args, **(kwargs or {}))


def operators_of(function, *arguments):
    with Calls() as calls:
        function(*arguments)
    return calls.operators


def repeated(target, times):
    return target.repeat(times, *[1] * (target.dim() - 1))


@EACH_LOSS
def test_per_sample_gradients_without_a_loop_over_samples(name):
    def gradient(x, target):
        return torch.func.grad(loss_of(name, target.unsqueeze(0)))(x.unsqueeze(0)).squeeze(0)

    per_sample, target = torch.func.vmap(gradient), target_of(name)
    x = logits(2, 3, 2)
    expected = [gradient_of(loss_of(name, target[n : n + 1]), x[n : n + 1]).squeeze(0) for n in range(2)]
    assert_close(per_sample(x, target), torch.stack(expected))
    assert operators_of(per_sample, x, target) == operators_of(per_sample, logits(6, 3, 2), repeated(target, 3))


@EACH_LOSS
def test_vmap_over_logits_alone_and_over_targets_alone(name):
    target, others = target_of(name), target_of(name).flip(-1)
    x, targets = logits(3, 2, 3, 2), torch.stack([target, others])

    def loss(x, target):
        return loss_of(name, target)(x)

    over_logits = torch.func.vmap(loss, in_dims=(0, None))(x, target)
    assert_close(over_logits, torch.stack([loss(each, target) for each in x]))
    over_targets = torch.func.vmap(loss, in_dims=(None, 0))(x[0], targets)
    assert_close(over_targets, torch.stack([loss(x[0], each) for each in targets]))


@EACH_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_vmap_rounds_to_the_dtype_of_the_logits_as_each_call_does(name, dtype):
    target = target_of(name)
    x, targets = logits(2, 2, 3, 2).to(dtype), torch.stack([target, target.flip(-1)])

    def gradient_and_value(x, target):
        return torch.func.grad_and_value(lambda x: loss_of(name, target)(x).sum())(x)

    actual = torch.func.vmap(gradient_and_value)(x, targets)
    expected = [gradient_and_value(*each) for each in zip(x, targets, strict=True)]
    for of_all, of_each in zip(actual, zip(*expected, strict=True), strict=True):
        assert_close(of_all, torch.stack(of_each))


@pytest.mark.parametrize("name", [name for name in LABEL_LOSSES if takes(LABEL_LOSSES[name], "voxel_weight")])
def test_vmap_over_voxel_weights(name):
    x, weights = logits(2, 3, 2), torch.stack([VOXEL_WEIGHT, VOXEL_WEIGHT.flip(0), VOXEL_WEIGHT.square()])

    def loss(voxel_weight):
        return loss_of(name, voxel_weight=voxel_weight)(x)

    assert_close(torch.func.vmap(loss)(weights), torch.stack([loss(each) for each in weights]))


@EACH_LOSS
def test_batched_gradients_of_a_loss_computed_outside_of_any_transform(name):
    x, factors = logits(2, 3, 2).requires_grad_(), logits(4)
    expected = factors.view(4, 1, 1, 1) * gradient_of(loss_of(name), x)
    loss = loss_of(name)(x)
    assert_close(torch.autograd.grad(loss, x, factors, is_grads_batched=True, retain_graph=True)[0], expected)
    backward = torch.func.vmap(lambda factor: torch.autograd.grad(loss, x, factor, retain_graph=True)[0])
    assert_close(backward(factors), expected)
    assert operators_of(backward, factors) == operators_of(backward, logits(9))


# ---- transforms run the kernels ----

TRANSFORMS = {
    "grad": lambda loss, x, target: torch.func.grad(lambda x: loss(x, target).sum())(x),
    "vjp": lambda loss, x, target: torch.func.vjp(lambda x: loss(x, target).sum(), x)[1](torch.ones((), dtype=x.dtype)),
    "jacrev": lambda loss, x, target: torch.func.jacrev(lambda x: loss(x, target))(x),
    "vmap of grad": lambda loss, x, target: torch.func.vmap(
        torch.func.grad(lambda x, target: loss(x[None], target[None]).sum())
    )(x, target),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@EACH_LOSS
def test_a_transform_runs_the_kernels_forward_and_backward(name, transform):
    operators = operators_of(TRANSFORMS[transform], LOSSES[name], logits(2, 3, 2), target_of(name))
    names = [operator.name().removeprefix("segloss::") for operator in operators]
    assert any(each.endswith("_forward") for each in names)
    assert any(each.endswith("_backward") for each in names)
    assert not any("softmax" in each or each == "sigmoid" for each in names)


def per_sample(loss, dim, in_dims):
    """Two functions for the gradient of each member of a vmapped dimension: by vmap, and one after the other."""

    def of_all(x, target):
        return torch.func.vmap(torch.func.grad(lambda x, target: loss(x, target, dim=dim).sum()), in_dims)(x, target)

    def one_by_one(x, target):
        members = zip(x.unbind(in_dims[0]), target.unbind(in_dims[1]), strict=True)
        return torch.stack([gradient_of(lambda x, y=y: loss(x, y, dim=dim).sum(), x) for x, y in members])

    return of_all, one_by_one


ANY_SIDE = pytest.mark.parametrize(
    ("dim", "shape", "labels"),
    [(0, (3,), ()), (0, (3, 4), (4,)), (1, (4, 3, 2), (4, 2)), (1, (4, 3, 2), (4, 1, 2)), (-1, (4, 2, 3), (4, 2))],
)


@ANY_SIDE
@pytest.mark.parametrize("in_dims", [(0, 0), (-1, -1)])
@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy of each voxel", "dice_loss", "dice_ce_loss"])
def test_the_dimension_of_vmap_and_the_class_dimension_may_be_any(name, in_dims, dim, shape, labels):
    of_all, one_by_one = per_sample(LOSSES[name], dim, in_dims)
    x = logits(5, *shape).movedim(0, in_dims[0])
    target = torch.randint(3, (5, *labels)).movedim(0, in_dims[1])
    assert_close(of_all(x, target), one_by_one(x, target))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", [segloss.cross_entropy, segloss.dice_loss])
def test_vmap_over_class_weights(loss, reduction):
    x, weights = logits(2, 3, 2), torch.rand(4, 3, dtype=torch.float64)

    def gradient(weight):
        return torch.func.grad(lambda x: loss(x, LABELS, weight=weight, reduction=reduction).sum())(x)

    assert_close(torch.func.vmap(gradient)(weights), torch.stack([gradient(each) for each in weights]))


@pytest.mark.parametrize("options", [{}, {"voxel_weight": VOXEL_WEIGHT[:1]}, {"weight": WEIGHT}])
def test_per_sample_means_of_class_probabilities_have_denominators_of_their_own(options):
    x, p = logits(4, 1, 3, 2), logits(4, 1, 3, 2).softmax(2)
    loss = partial(segloss.cross_entropy, label_smoothing=0.1, **options)
    assert_close(torch.func.vmap(loss)(x, p), torch.stack([loss(*each) for each in zip(x, p, strict=True)]))


@pytest.mark.parametrize("not_counted", [-100, 2])
@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_per_sample_means_without_a_voxel_that_counts_are_empty(empty, not_counted):
    """The second sample's labels are ignored, or have no weight."""
    x, labels = logits(2, 1, 3, 2), torch.tensor([[[0, 1]], [[not_counted, not_counted]]])
    loss = partial(segloss.cross_entropy, empty=empty, weight=torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    per_sample_losses = torch.func.vmap(loss)(x, labels)
    assert_close(per_sample_losses, torch.stack([loss(x[0], labels[0]), loss(x[1], labels[1])]))
    assert not torch.func.vmap(torch.func.grad(loss))(x, labels)[1].any()


def gradient_penalty(loss, target):
    """The loss plus its squared gradient, taken by torch.autograd, for a transform that differentiates again."""

    def penalized(x):
        value = loss(x, target).sum()
        return value + torch.autograd.grad(value, x, create_graph=True)[0].square().sum()

    return penalized


@EACH_LOSS
def test_second_derivatives_within_a_transform_and_around_it(name):
    loss, target, x = LOSSES[name], target_of(name), logits(2, 3, 2)
    expected = gradient_of(gradient_penalty(loss, target), x.requires_grad_())
    assert_close(torch.func.grad(gradient_penalty(loss, target))(x), expected)

    def around(x):
        return loss(x, target).sum() + torch.func.grad(loss_of(name))(x).square().sum()

    assert_close(gradient_of(around, x), expected)
    assert_close(torch.func.grad(around)(x), expected)


@pytest.mark.parametrize("loss", [segloss.cross_entropy, segloss.dice_loss])
def test_probabilities_and_class_weights_have_gradients_within_a_transform(loss):
    arguments = (logits(2, 3, 2), logits(2, 3, 2).softmax(1), WEIGHT)
    for k in range(3):
        leaves = [each.detach().requires_grad_(j == k) for j, each in enumerate(arguments)]
        expected = torch.autograd.grad(loss(leaves[0], leaves[1], weight=leaves[2]), leaves[k])[0]
        actual = torch.func.grad(lambda x, p, weight: loss(x, p, weight=weight), argnums=k)(*arguments)
        assert_close(actual, expected)


# ---- autocast ----


OF_LOGITS = [name for name in LOSSES if "hausdorff" not in name and "cldice" not in name]  # the p of these is float32


@pytest.mark.parametrize("name", OF_LOGITS)
def test_autocast_casts_no_logits_and_gives_a_float32_loss(name):
    x = logits(2, 3, 2).log_softmax(1).to(torch.bfloat16).requires_grad_()
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16), Calls() as calls:
        loss = loss_of(name)(x)
        loss.backward()
    assert (loss.dtype, x.grad.dtype) == (torch.float32, torch.bfloat16)
    assert any(operator.namespace == "segloss" for operator in calls.operators)
    casts = [a for op, a in zip(calls.operators, calls.arguments, strict=True) if op is torch.ops.aten._to_copy.default]
    assert torch.bfloat16 not in [tensor.dtype for tensors in casts for tensor in tensors]


@pytest.fixture
def cuda_autocast():
    """Sets what torch.autocast("cuda") sets, which refuses to do so without such a device."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", before)


@pytest.mark.cpu_only  # its fake tensors are of both devices
@pytest.mark.usefixtures("cuda_autocast")
@pytest.mark.parametrize(("place", "dtype"), [("cuda", torch.float32), ("cpu", torch.bfloat16)])
@pytest.mark.parametrize("loss", [segloss.cross_entropy, segloss.dice_ce_loss])
def test_autocast_of_one_device_is_not_that_of_another(loss, place, dtype):
    with FakeTensorMode():
        x = torch.empty(2, 3, 4, device=place, dtype=torch.bfloat16)
        labels = torch.empty(2, 4, device=place, dtype=torch.uint8)
        assert loss(x, labels).dtype == dtype


# ---- checkpoints, hooks, errors ----


@pytest.mark.parametrize("use_reentrant", [False, True])
@EACH_LOSS
def test_a_checkpointed_loss_has_the_same_gradient(name, use_reentrant):
    loss, x = loss_of(name), logits(2, 3, 2)
    actual = x.clone().requires_grad_()
    checkpoint(loss, actual, use_reentrant=use_reentrant).backward()
    assert torch.equal(actual.grad, gradient_of(loss, x))


@EACH_LOSS
def test_saved_tensors_may_be_packed_and_unpacked(name):
    loss, x = loss_of(name), logits(2, 3, 2).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.numpy(force=True), lambda a: torch.from_numpy(a).to(x.device)
    ):
        value = loss(x)
    assert torch.equal(torch.autograd.grad(value, x)[0], gradient_of(loss, x))


@pytest.mark.parametrize("changed", ["input", "target", "weight", "voxel_weight"])
@pytest.mark.parametrize(
    ("loss", "reduction"), [(segloss.dice_ce_loss, "mean"), (segloss.focal_loss, "mean"), (segloss.focal_loss, "none")]
)
def test_a_change_in_place_before_backward_is_detected(loss, reduction, changed):
    tensors = {
        "input": logits(2, 3, 2).requires_grad_() * 1,
        "target": LABELS.clone(),
        "weight": WEIGHT.clone(),
        "voxel_weight": VOXEL_WEIGHT.clone(),
    }
    value = loss(**tensors, reduction=reduction, activation="sigmoid").sum()
    tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@EACH_LOSS
def test_backward_twice_is_an_error(name):
    value = loss_of(name)(logits(2, 3, 2).requires_grad_())
    value.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()
