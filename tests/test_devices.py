"""Devices without a kernel: the API, values, gradients and errors of the CPU, and no more memory than torch takes."""

import subprocess
import sys
import textwrap
import warnings
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from losses import OF_EACH_VOXEL, VARIANTS, is_sigmoid, needs_axes, taken, takes, takes_probabilities
from tolerances import assert_close
from torch._C import DispatchKey, DispatchKeySet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import segloss

pytestmark = pytest.mark.cpu_only

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LOSSES = VARIANTS | OF_EACH_VOXEL
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
OTHERS = {name: loss for name, loss in LOSSES.items() if not needs_axes(loss)}  # those have maps of each class
NOT_OF_DISTANCES = pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
FOCAL_LOSSES = {name: loss for name, loss in LOSSES.items() if "focal" in name}
INF = float("inf")
SMALL, TWO_SLABS = (2, 3, 5, 4, 3), (1, 4, 8, 256, 128)
SMALL_AND_SLABS = pytest.mark.parametrize("shape", [SMALL, TWO_SLABS], ids=["small", "slabs"])
WITH_KERNELS = [
    *(
        f"{name}_{way}"
        for name in ("cross_entropy", "soft_stats", "binary_cross_entropy", "component_stats")
        for way in ("forward", "backward")
    ),
    *("cross_entropy_rescale", "binary_cross_entropy_rescale"),
    *("total_weight", "one_hot_labels", "is_one_hot", "confusion_counts", "num_label_classes", "equal_label_counts"),
    *("class_labels", "mask_counts", "predict", "predict_into", "distance_transform"),
    *("connected_components", "nearest_component", "soft_skeleton", "soft_skeleton_backward"),
    *("probabilities", "probabilities_backward"),
]

# The device whose code is called. CUDA's own kernels, where they are built, cannot read the memory of the CPU.
OTHER = DispatchKey.XPU if torch.cuda.is_available() else DispatchKey.CUDA


@contextmanager
def without_kernels():
    """Runs the operators' code for devices without a kernel, on tensors of the CPU."""
    other = DispatchKeySet(OTHER)
    with warnings.catch_warnings(), torch.library._scoped_library("segloss", "IMPL") as library:
        warnings.simplefilter("ignore")  # about the kernels that are overridden
        for name in WITH_KERNELS:
            operator = getattr(torch.ops.segloss, name).default
            library.impl(operator, partial(operator.redispatch, other), "CPU", allow_override=True)
        yield


def value_and_gradient(loss, x, y, **options):
    x = x.detach().requires_grad_()
    value = loss(x, y, **options)
    factor = torch.linspace(-1, 2, value.numel()).view_as(value).to(value.dtype)  # a different one for each voxel
    return value.detach(), torch.autograd.grad(value, x, factor)[0]


def assert_same_without_kernels(loss, x, y, **options):
    expected = value_and_gradient(loss, x, y, **options)
    with without_kernels():
        actual = value_and_gradient(loss, x, y, **options)
    for a, e in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (e.shape, e.dtype, e.stride())
        assert_close(a, e)


# ---- the same values and gradients as the kernels ----


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY_LOSS
def test_labels_with_ignored_voxels_and_weights(loss, dtype):
    x, y = torch.randn(SMALL, dtype=dtype), torch.randint(3, (2, 1, 5, 4, 3))
    y[0, 0, 0] = 7
    x[0, :, 0, 0] = float("nan")  # at ignored voxels
    weights = {"weight": torch.tensor([0.5, 2.0, 0.0]), "voxel_weight": torch.rand(2, 5, 4, 3).round()}
    assert_same_without_kernels(loss, x, y, ignore_index=7, **taken(loss, **weights))


@EVERY_LOSS
def test_labels_of_two_slabs(loss):
    x, y = torch.randn(TWO_SLABS), torch.randint(4, (1, 8, 256, 128), dtype=torch.uint8)
    assert_same_without_kernels(loss, x, y, **taken(loss, voxel_weight=torch.rand(1, 1, 8, 256, 128)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if takes_probabilities(loss)])
def test_probabilities(name, dtype):
    x, y = torch.randn(SMALL, dtype=dtype), torch.randn(SMALL).softmax(1)
    assert_same_without_kernels(LOSSES[name], x, y.to(dtype), voxel_weight=torch.rand(2, 5, 4, 3))


@SMALL_AND_SLABS
@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if is_sigmoid(loss)])
def test_masks(name, shape):
    x, y = torch.randn(shape), torch.randint(2, shape, dtype=torch.uint8)
    y[:, 2, 3] = 255
    assert_same_without_kernels(LOSSES[name], x, y, ignore_index=255)


@pytest.mark.parametrize("shape", [pytest.param((2**18, 4), id="slabs"), (4,), (3, 4), (0, 4), (2, 4, 0)])
@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy of each voxel", "dice_ce_loss"])
def test_samples_of_one_voxel_and_none(name, shape):
    y = torch.randint(4, shape[:1] + shape[2:] if len(shape) > 1 else ())
    assert_same_without_kernels(LOSSES[name], torch.randn(shape), y, empty="nan")


@SMALL_AND_SLABS
@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("name", ["cross_entropy of each voxel", "dice_ce_loss", "sigmoid focal_loss of each voxel"])
def test_classes_first_or_last(name, dim, shape):
    x, y = torch.randn(shape[1:]).movedim(0, dim), torch.randint(shape[1], shape[2:])
    assert_same_without_kernels(LOSSES[name], x, y, dim=dim)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_label_maps(loss, dtype):
    x, y = torch.randn(SMALL), torch.tensor([7, 24, 11])[torch.randint(3, (2, 1, 5, 4, 3))]
    y[0, 0, 0], y[1, 0, 2] = 100, 3
    options = {"label_map": {7: 0, 24: 1, 11: 2, 3: None}, "ignore_index": 100}
    assert_same_without_kernels(loss, x, y.to(dtype), **options)
    far_apart = {1000 * k: 0 for k in range(10, 70)}
    assert_same_without_kernels(loss, x, y.float(), label_map=options["label_map"] | far_apart, ignore_index=100)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES.values() if is_sigmoid(loss)])
def test_regions(loss):
    x, y = torch.randn(SMALL), torch.randint(4, (2, 5, 4, 3), dtype=torch.uint8)
    y[0, 0] = 255
    assert_same_without_kernels(loss, x, y, regions=[(1, 2, 3), (1, 3), (3,)], ignore_index=255)


OF_LABEL_SETS = [loss for loss in LOSSES.values() if takes(loss, "label_sets") and not is_sigmoid(loss)]


@pytest.mark.parametrize("loss", OF_LABEL_SETS)
def test_label_sets(loss):
    if loss.keywords.get("squared"):
        pytest.skip("squares of joined classes are not added")
    x, y = torch.randn(SMALL), torch.randint(3, (2, 5, 4, 3), dtype=torch.uint8)
    y[0, 0] = 255
    for label_sets in ({0: (0, 2)}, [{1: (1, 2)}, {}]):
        assert_same_without_kernels(loss, x, y, label_sets=label_sets, ignore_index=255)


def test_channels_last_gradients_are_channels_last():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert_same_without_kernels(segloss.dice_ce_loss, x, torch.randint(3, (2, 4, 5)))


def test_a_confident_voxel_keeps_its_digits():
    x = torch.zeros(2, 3)
    x[:, 1] = torch.tensor([20.0, 80.0])
    expected = value_and_gradient(segloss.cross_entropy, x.double(), torch.tensor([1, 1]), reduction="none")
    with without_kernels():
        actual = value_and_gradient(segloss.cross_entropy, x, torch.tensor([1, 1]), reduction="none")
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=0)


def test_a_bad_label_is_found_in_the_whole_target():
    y = torch.zeros(TWO_SLABS[2:], dtype=torch.uint8).unsqueeze(0)
    y[0, 3, 200, 5] = 9
    with without_kernels(), pytest.raises(IndexError, match=r"1 label is outside.* index \[0, 3, 200, 5\]"):
        segloss.cross_entropy(torch.zeros(TWO_SLABS), y)


def test_second_derivatives():
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0, 1, 2, 0], [1, -100, 2, 2]])
    with without_kernels():
        assert torch.autograd.gradgradcheck(lambda x: segloss.dice_ce_loss(x, y, empty="nan"), x)


# ---- input without classes ----


@pytest.mark.parametrize("shape", [(2, 0, 4), (2, 0, 0), (0, 0, 4), (0,)])
@EVERY_LOSS
def test_input_without_classes_raised_an_error_about_amax_or_narrow(loss, shape):
    if needs_axes(loss) and len(shape) == 1:
        pytest.skip("it needs a spatial axis")
    y = torch.full(shape[:1] + shape[2:] if len(shape) > 1 else (), -100)
    assert_same_without_kernels(loss, torch.zeros(shape), y)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if takes(loss, "weight")])
def test_input_without_classes_with_class_weights_raised_an_error_about_an_index_out_of_range(name):
    x, y = torch.zeros(2, 0, 4), torch.full((2, 4), -100)
    assert_same_without_kernels(LOSSES[name], x, y, weight=torch.zeros(0), voxel_weight=torch.rand(2, 4))


@pytest.mark.parametrize("name", ["smoothed cross_entropy", "dice_ce_loss", "sigmoid dice_ce_loss"])
def test_probabilities_of_no_class_raised_an_error_about_argmax_or_narrow(name):
    assert_same_without_kernels(LOSSES[name], torch.zeros(2, 0, 4), torch.zeros(2, 0, 4))


def test_log_probabilities_of_no_class_raised_an_error_about_narrow():
    x = torch.zeros(2, 0, 4)
    assert_same_without_kernels(segloss.nll_loss, x, x, reduction="none")


@EVERY_LOSS
def test_forward_mode_of_no_class_raised_an_error_about_amax_or_narrow(loss):
    x, y = torch.zeros(2, 0, 4), torch.full((2, 4), -100)
    assert_close(torch.func.jvp(lambda x: loss(x, y), (x,), (x,))[0], loss(x, y))


def test_total_weight_of_no_class_with_class_weights_raised_an_error_about_an_index_out_of_range():
    with without_kernels():
        assert segloss.total_weight(torch.full((2, 4), -100), torch.zeros(0)) == 0


# ---- infinite and huge logits ----


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("extreme", [INF, -INF, 3e38, -3e38])
@pytest.mark.parametrize("name", FOCAL_LOSSES)
def test_the_gradient_of_focal_loss_at_an_infinite_or_huge_logit_was_nan(name, extreme, gamma):
    x, y = torch.tensor([[extreme, 1.0, 0.5], [1.0, extreme, 0.5]]), torch.tensor([0, 0])
    assert_same_without_kernels(FOCAL_LOSSES[name], x, y, gamma=gamma, weight=torch.tensor([2.0, 0.5, 1.0]))


@pytest.mark.parametrize(("activation", "y"), [("softmax", torch.tensor([1])), ("sigmoid", torch.tensor([[1, 1, 0]]))])
def test_further_derivatives_of_focal_loss_at_an_infinite_logit_were_nan(activation, y):
    """Forward mode and second derivatives, for which there are no kernels."""
    x, direction = torch.tensor([[1.0, -INF, 0.5]]), torch.tensor([[0.3, 1.0, 0.7]])
    loss = partial(segloss.focal_loss, target=y, activation=activation, reduction="sum")
    gradient = torch.autograd.grad(loss(x.requires_grad_()), x)[0]
    assert_close(torch.func.jvp(loss, (x.detach(),), (direction,))[1], (gradient * direction).sum())
    assert torch.autograd.functional.hessian(loss, x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_loss_of_a_huge_finite_logit_was_inf(dtype):
    lowest = torch.finfo(dtype).min
    x, y = torch.tensor([[lowest, 1.0, 0.5], [0.8 * lowest, 0.0, 0.0]], dtype=dtype), torch.tensor([0, 0])
    assert_same_without_kernels(segloss.cross_entropy, x, y, reduction="none")


# ---- shape, dtype and device, of tensors that have no data ----


FAKES = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch
    from test_devices import LOSSES, SMALL
    from torch._subclasses import FakeTensorMode
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("other")  # a device that segloss knows nothing of
    with FakeTensorMode():
        y = torch.empty(2, 1, 5, 4, 3, dtype=torch.uint8, device="other")
        for name, loss in LOSSES.items():
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.empty(SMALL, dtype=dtype, device="other", requires_grad=True)
                value = loss(x, y)
                value.sum().backward()
                print(name, *((t.shape, t.dtype, t.device.type) for t in (value, x.grad)), sep="|")
"""


def run_script(script, request, **fields):
    """Runs the script in a process of its own; returns the columns of what it prints."""
    source = textwrap.dedent(script).format(tests=str(request.path.parent), **fields)
    # The backward thread of a made-up device sometimes kills a process that exits normally.
    source += "\nimport os\nsys.stdout.flush()\nos._exit(0)\n"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split("|") for line in done.stdout.splitlines()]


def test_fake_tensors_give_what_the_cpu_gives(request):
    expected = []
    for name, loss in LOSSES.items():
        for dtype in (torch.float32, torch.bfloat16):
            x, y = torch.randn(SMALL, dtype=dtype), torch.zeros(2, 1, 5, 4, 3, dtype=torch.uint8)
            results = value_and_gradient(loss, x, y)
            expected.append([name, *(str((t.shape, t.dtype, "other")) for t in results)])
    assert run_script(FAKES, request) == expected


# ---- memory ----


class OneHots(TorchDispatchMode):
    """Counts the tensors that have a single 1 for each voxel and zeros elsewhere."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.shape == SMALL:
                is_binary = tensor.eq(0).logical_or(tensor.eq(1)).all()
                self.count += bool(is_binary and (tensor.sum(1) == 1).all())
        return result


def test_one_hot_tensors_are_counted():
    with OneHots() as one_hots:
        torch.zeros(SMALL).scatter(1, torch.randint(3, (2, 1, 5, 4, 3)), 1)
    assert one_hots.count == 1


@NOT_OF_DISTANCES
def test_labels_are_not_made_one_hot(loss):
    x, y = torch.randn(SMALL), torch.randint(3, (2, 1, 5, 4, 3))
    with without_kernels(), OneHots() as one_hots:
        value_and_gradient(loss, x, y)
    assert one_hots.count == 0


@NOT_OF_DISTANCES
def test_labels_are_not_made_one_hot_under_torch_func(loss):
    x, y = torch.randn(SMALL), torch.randint(3, (2, 1, 5, 4, 3))
    with OneHots() as one_hots:
        torch.func.grad(lambda x: loss(x, y).sum())(x)
    assert one_hots.count == 0


PEAKS = """
    import ctypes, os, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch, segloss
    from test_devices import LOSSES, without_kernels
    from torch.nn.functional import cross_entropy

    def status(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

    def peak(run, dtype):
        for size in (8, 96):  # the first call loads what is needed
            logits = torch.randn(1, 8, size, size, size).to(dtype).requires_grad_()
            labels = torch.randint(8, (1, size, size, size))
            before = status("VmRSS")
            run(logits, labels)
        return (status("VmHWM") - before) / logits.nbytes

    def eager(loss):
        return lambda x, y: loss(x, y).backward()

    def transformed(loss):
        return lambda x, y: torch.func.grad_and_value(lambda x: loss(x, y))(x.detach())

    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # so that malloc gives back at once what is freed
    for mode, dtype, name in {cases!r}:
        if os.fork() == 0:
            loss = cross_entropy if name == "torch" else LOSSES[name]
            with without_kernels():
                taken = peak(globals()[mode](loss), getattr(torch, dtype))
            print(mode, dtype, name, taken, sep="|", flush=True)
            os._exit(0)
        os.wait()
"""
PEERS = [("eager", "float32"), ("eager", "bfloat16"), ("transformed", "float32")]
EAGER = [("float32", "cross_entropy"), ("float32", "dice_ce_loss"), ("bfloat16", "sigmoid dice_ce_loss")]


@pytest.fixture(scope="module")
def peaks(request):
    """Peak memory of forward and backward, in units of the logits' bytes, by mode, dtype and loss."""
    cases = [(mode, dtype, "torch") for mode, dtype in PEERS] + [("transformed", "float32", "cross_entropy")]
    rows = run_script(PEAKS, request, cases=cases + [("eager", *case) for case in EAGER])
    return {tuple(case): float(peak) for *case, peak in rows}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "name"), EAGER)
def test_peak_memory_is_not_above_that_of_torch(peaks, dtype, name):
    assert peaks["eager", dtype, name] < 1.05 * peaks["eager", dtype, "torch"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_under_torch_func(peaks):
    """More than torch takes: the gradient is masked for ignored voxels, which takes a tensor of its own."""
    assert peaks["transformed", "float32", "cross_entropy"] < peaks["transformed", "float32", "torch"] + 2


# ---- values outside their range ----


@SMALL_AND_SLABS
@pytest.mark.parametrize("name", [name for name in OTHERS if name.split()[-1] not in ("focal_loss", "topk_loss")])
def test_a_probability_outside_0_to_1_is_named_with_its_index_in_the_whole_target(name, shape):
    if name in ("dice_focal_loss", "sigmoid focal_loss of each voxel") or "lovasz" in name:
        pytest.skip("takes labels or masks")
    x, target, voxel_weight = torch.randn(shape), torch.rand(shape), torch.ones(shape[0], *shape[2:])
    target[0, 1, 2, 3, 1], voxel_weight[0, 2, 3, 1] = 7, 0
    index = [each - 1 for each in shape]
    with without_kernels():
        LOSSES[name](x, target, voxel_weight=voxel_weight)
        target[tuple(index)] = 2
        with pytest.raises(RuntimeError, match=rf"got 2 at index \[{', '.join(map(str, index))}\] of target"):
            LOSSES[name](x, target, voxel_weight=voxel_weight)


@SMALL_AND_SLABS
def test_an_input_that_holds_no_probabilities_is_refused(shape):
    x, labels = torch.rand(shape), torch.randint(3, (shape[0], *shape[2:]))
    x[0, 1, 2, 3, 1] = -2
    with without_kernels(), pytest.raises(RuntimeError, match=r"got -2 at index \[0, 1, 2, 3, 1\] of input"):
        segloss.dice_loss(x, labels, activation=None)


@pytest.mark.parametrize("loss", [segloss.dice_loss, segloss.dice_ce_loss, segloss.tversky_loss])
def test_soft_labels_with_the_option_soft_label(loss):
    x, g = torch.randn(SMALL, dtype=torch.float64), torch.randn(SMALL, dtype=torch.float64).softmax(1)
    assert_same_without_kernels(loss, x, g, soft_label=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_labels_of_a_single_logit_are_its_mask(dtype):
    x, mask = torch.randn(2, 1, 5, 4), torch.randint(2, (2, 5, 4)).to(dtype)
    for loss in (segloss.dice_loss, segloss.dice_ce_loss, segloss.focal_loss):
        assert_same_without_kernels(partial(loss, activation="sigmoid"), x, mask)
