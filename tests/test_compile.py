"""Every loss where torch traces: torch.compile, torch.export, AOTInductor, fake tensors, opcheck."""

import pytest
import torch
import torch.nn.functional as F
from operators import options_of
from tolerances import assert_close
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch_versions import TRACES_LOCALS, ignores_warnings_of_compilers, ignores_warnings_of_opcheck

import segloss

pytestmark = ignores_warnings_of_compilers

NUM_CLASSES = 3
WEIGHT = torch.tensor([0.5, 2.0, 1.0])
# Each dimension has several sizes, none of them 1. In the first shape no two are equal: torch.compile takes sizes that
# are equal in its first call for the same size.
SHAPES = [(2, 4, 8), (3, 6, 10), (5, 8, 4)]


@pytest.fixture(autouse=True)
def _reset():
    """Forgets what was compiled before: torch keeps it for each function, and all tests here compile the same one."""
    torch._dynamo.reset()


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "sliced": lambda x: x.repeat(1, 1, 1, 2)[..., ::2],
    "sliced channels_last": lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:, 1:],
    "expanded": lambda x: x[:1].expand_as(x),
}


# ---- the losses, as a training script calls them ----


def labels_of(n, *sizes):
    return torch.randint(NUM_CLASSES, (n, 1, *sizes), dtype=torch.uint8)


def probabilities_of(n, *sizes):
    return torch.randn(n, NUM_CLASSES, *sizes).softmax(1)


def masks_of(n, *sizes):
    return torch.randint(2, (n, NUM_CLASSES, *sizes), dtype=torch.uint8)


def one_hot_of(n, *sizes):
    return F.one_hot(labels_of(n, *sizes).squeeze(1).long(), NUM_CLASSES).movedim(-1, 1)


DEEP_SUPERVISION = segloss.DeepSupervisionLoss(segloss.CrossEntropyLoss(ignore_index=1))


def binary_dice_of_sigmoid(logits, target):
    return segloss.BinaryDiceLoss()(logits.sigmoid(), target)


def deeply_supervised(logits, target):
    return DEEP_SUPERVISION([logits, F.avg_pool2d(logits, 2)], target)


def weighted_voxels(logits, target):
    return segloss.dice_ce_loss(logits, target, voxel_weight=logits.detach()[:, :1].abs())


CRITERIA = {
    "cross entropy": (segloss.CrossEntropyLoss(ignore_index=1), labels_of),
    "smoothed and weighted cross entropy": (segloss.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), labels_of),
    "cross entropy of probabilities": (segloss.CrossEntropyLoss(), probabilities_of),
    "cross entropy of one-hot labels": (segloss.CrossEntropyLoss(), one_hot_of),
    "negative log likelihood": (segloss.NLLLoss(), labels_of),
    "focal": (segloss.FocalLoss(weight=WEIGHT), labels_of),
    "sigmoid focal": (segloss.FocalLoss(activation="sigmoid"), masks_of),
    "sigmoid focal of each voxel": (segloss.FocalLoss(activation="sigmoid", reduction="none"), labels_of),
    "binary cross entropy": (segloss.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT), masks_of),
    "top-k": (segloss.TopKLoss(k=30, ignore_index=1), labels_of),
    "Dice": (segloss.DiceLoss(include_background=False, squared=True), labels_of),
    "generalized Dice": (segloss.GeneralizedDiceLoss(), labels_of),
    "Tversky": (segloss.TverskyLoss(alpha=0.3, beta=0.7, gamma=0.75, weight=WEIGHT), labels_of),
    "Dice and cross entropy": (segloss.DiceCELoss(ignore_index=1, label_smoothing=0.1), labels_of),
    "Dice and binary cross entropy": (segloss.DiceCELoss(activation="sigmoid"), masks_of),
    "Dice and focal": (segloss.DiceFocalLoss(gamma=1.5), labels_of),
    "Lovasz-Softmax": (segloss.LovaszSoftmaxLoss(ignore_index=1), labels_of),
    "Lovasz hinge": (segloss.LovaszHingeLoss(per_sample=True), masks_of),
    "boundary": (segloss.BoundaryLoss(ignore_index=1, spacing=(2, 1)), labels_of),
    "boundary of masks": (segloss.BoundaryLoss(activation="sigmoid"), masks_of),
    "Hausdorff": (segloss.HausdorffDTLoss(), labels_of),
    "Hausdorff of masks": (segloss.HausdorffDTLoss(activation="sigmoid"), masks_of),
    "CC-DiceCE": (segloss.CCDiceCELoss(ignore_index=1, spacing=(2, 1), num_components=300), labels_of),
    "CC-DiceCE of masks": (segloss.CCDiceCELoss(activation="sigmoid", num_components=300), masks_of),
    "blob": (segloss.BlobLoss(ignore_index=1, num_components=300), labels_of),
    "clDice": (segloss.SoftClDiceLoss(ignore_index=1), labels_of),
    "clDice of masks": (segloss.SoftClDiceLoss(activation="sigmoid", iterations=1), masks_of),
    "Dice and clDice": (segloss.DiceClDiceLoss(include_background=False), labels_of),
    "binary Dice": (binary_dice_of_sigmoid, masks_of),
    "multi-class Dice": (segloss.MultiClassDiceLoss(ignore_index=1), labels_of),
    "deep supervision": (deeply_supervised, labels_of),
    "voxel weights": (weighted_voxels, labels_of),
}


class Scored(nn.Module):
    """A network of one layer, and its loss. The layer is a 1x1 convolution, written out: for nn.Conv2d, Inductor
    compiles a backward pass that takes one spatial size only, whatever loss follows.
    """

    def __init__(self, criterion):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(NUM_CLASSES, 1, 1))
        self.bias = nn.Parameter(torch.randn(NUM_CLASSES, 1, 1))
        self.criterion = criterion

    def forward(self, images, target):
        return self.criterion(images * self.weight + self.bias, target)


def batch_of(shape, target_of):
    n, *sizes = shape
    return torch.randn(n, 1, *sizes), target_of(n, *sizes)


def loss_and_gradients(step, module, *batch):
    loss = step(*batch)
    return loss.detach(), *torch.autograd.grad(loss.sum(), list(module.parameters()))


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert_close(a, e)


# ---- torch.compile ----


def assert_compiles_for_all_shapes(module, target_of, backend):
    """The module compiles once into one graph, which gives the loss and the gradients of the module itself."""
    compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in SHAPES:
            batch = batch_of(shape, target_of)
            assert_same(loss_and_gradients(compiled, module, *batch), loss_and_gradients(module, module, *batch))


@pytest.mark.parametrize("name", CRITERIA)
def test_a_training_step_is_one_graph_for_all_shapes(name):
    criterion, target_of = CRITERIA[name]
    assert_compiles_for_all_shapes(Scored(criterion), target_of, backend="aot_eager")


@pytest.mark.parametrize("criterion", [segloss.CrossEntropyLoss(WEIGHT), segloss.DiceCELoss()], ids=["CE", "DiceCE"])
def test_the_default_backend_gives_the_same_for_all_shapes(criterion):
    assert_compiles_for_all_shapes(Scored(criterion), labels_of, backend="inductor")


@pytest.mark.parametrize("name", ["cross entropy", "sigmoid focal of each voxel", "Dice and cross entropy"])
def test_a_compiled_gradient_has_the_strides_of_channels_last_logits(name):
    criterion, target_of = CRITERIA[name]
    logits = LAYOUTS["channels_last"](torch.randn(2, NUM_CLASSES, 4, 6)).requires_grad_()
    target = target_of(2, 4, 6)
    loss = torch.compile(criterion, backend="aot_eager", fullgraph=True)(logits, target)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert_close(gradient, torch.autograd.grad(criterion(logits, target).sum(), logits)[0])
    assert gradient.stride() == logits.stride()


@pytest.mark.parametrize("name", ["cross entropy", "sigmoid focal", "top-k", "Dice and cross entropy"])
def test_a_compiled_step_under_autocast_has_a_float32_loss(name):
    criterion, target_of = CRITERIA[name]
    module, batch = Scored(criterion), batch_of(SHAPES[0], target_of)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        actual, expected = (loss_and_gradients(step, module, *batch) for step in (compiled, module))
    assert actual[0].dtype == torch.float32
    assert_same(actual, expected)


@pytest.mark.parametrize("name", ["cross entropy", "Dice and cross entropy"])
def test_per_sample_gradients_are_compiled_into_one_graph(name):
    criterion, target_of = CRITERIA[name]
    logits, labels = torch.randn(4, NUM_CLASSES, 2, 3), target_of(4, 2, 3)

    def gradient(logits, labels):
        return torch.func.grad(lambda x: criterion(x.unsqueeze(0), labels.unsqueeze(0)))(logits)

    compiled = torch.compile(torch.func.vmap(gradient), backend="aot_eager", fullgraph=True)
    assert_close(compiled(logits, labels), torch.stack(list(map(gradient, logits, labels))))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # by torch itself
@pytest.mark.parametrize("name", ["cross entropy", "sigmoid focal of each voxel", "Dice and cross entropy"])
def test_compiled_autograd_takes_the_backward_pass(name):
    criterion, target_of = CRITERIA[name]
    module, batch = Scored(criterion), batch_of(SHAPES[0], target_of)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        module(*batch).sum().backward()
    actual = [parameter.grad for parameter in module.parameters()]
    assert_same(actual, loss_and_gradients(module, module, *batch)[1:])


def test_a_module_may_be_made_within_the_graph():
    def step(logits, target):
        return segloss.DeepSupervisionLoss(segloss.CrossEntropyLoss(ignore_index=1))([logits], target)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    batch = torch.randn(2, NUM_CLASSES, 4, 8), labels_of(2, 4, 8)
    if TRACES_LOCALS:
        assert torch.equal(compiled(*batch), step(*batch))
    else:
        with pytest.raises(torch._dynamo.exc.Unsupported, match="builtin operator `locals`"):
            compiled(*batch)


# ---- torch.export and AOTInductor ----


def exported_for_all_shapes(module, batch):
    """Exports for any batch size and any even spatial sizes: deep supervision halves them."""
    sizes = {0: Dim("n", min=2), 2: 2 * Dim("half_h", min=2), 3: 2 * Dim("half_w", min=2)}
    return torch.export.export(module, batch, dynamic_shapes=(sizes, sizes))


@pytest.mark.parametrize("name", CRITERIA)
def test_an_exported_module_is_saved_loaded_and_takes_every_shape(name, tmp_path):
    criterion, target_of = CRITERIA[name]
    module = Scored(criterion)
    exported = exported_for_all_shapes(module, batch_of(SHAPES[0], target_of))
    torch.export.save(exported, tmp_path / "loss.pt2")
    loaded = torch.export.load(tmp_path / "loss.pt2").module()
    for shape in SHAPES:
        batch = batch_of(shape, target_of)
        assert_same(loss_and_gradients(loaded, loaded, *batch), loss_and_gradients(module, module, *batch))


@pytest.mark.cpu_only  # for a GPU it needs CUDA's headers
def test_a_module_with_a_loss_is_packaged_by_aot_inductor(tmp_path):
    module = Scored(segloss.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1))
    with torch.no_grad():
        exported = exported_for_all_shapes(module, batch_of(SHAPES[0], labels_of))
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "loss.pt2"))
        packaged = torch._inductor.aoti_load_package(package)
        for shape in SHAPES:
            batch = batch_of(shape, labels_of)
            assert_close(packaged(*batch), module(*batch))


# ---- the operators on fake tensors ----


def operator_calls(x):
    """Each operator that makes a tensor in the logits' layout, with its arguments."""
    ops, n = torch.ops.segloss, x.shape[0]
    labels, masks = labels_of(n, *x.shape[2:]), masks_of(n, *x.shape[2:])
    one, stats, total = torch.ones(()), torch.ones(n, NUM_CLASSES), torch.ones((), dtype=torch.float64)
    options = options_of("cross_entropy", label_smoothing=0.1, dtype=x.dtype, with_gradient=True)
    forward = ("op", x, labels, None, None, *options)
    binary = ("op", x, masks, None, None, *options_of("binary_cross_entropy", gamma=2.0, dtype=x.dtype))
    region = ("op", x, labels, None, None, *options_of("soft_stats", voxel_loss=True))
    return {
        "cross_entropy_forward": (ops.cross_entropy_forward, forward),
        "cross_entropy_backward": (ops.cross_entropy_backward, (one, total, *forward)),
        "binary_cross_entropy_forward": (ops.binary_cross_entropy_forward, binary),
        "binary_cross_entropy_backward": (ops.binary_cross_entropy_backward, (one, total, *binary)),
        "soft_stats_forward": (ops.soft_stats_forward, region),
        "soft_stats_backward": (ops.soft_stats_backward, (stats, stats, stats[:, 0], *region)),
    }


OPERATORS = pytest.mark.parametrize("operator", operator_calls(torch.zeros(1, NUM_CLASSES, 1, 1)))


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@OPERATORS
def test_fake_results_have_the_strides_of_real_ones(operator, layout, dtype):
    x = LAYOUTS[layout](torch.randn(2, NUM_CLASSES, 4, 6, dtype=dtype))
    call, arguments = operator_calls(x)[operator]
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        fake_results = as_tuple(call(*fakes))
    for fake, real in zip(fake_results, as_tuple(call(*arguments)), strict=True):
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@ignores_warnings_of_opcheck
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("target_of", [labels_of, masks_of, probabilities_of])
def test_opcheck_of_binary_cross_entropy(target_of, layout):
    x, target, ops = LAYOUTS[layout](torch.randn(2, NUM_CLASSES, 4, 6)), target_of(2, 4, 6), torch.ops.segloss
    weights = (WEIGHT, torch.rand(2, 4, 6))
    options = {"gamma": 1.5}
    torch.library.opcheck(ops.binary_cross_entropy.default, (x.clone().requires_grad_(), target, *weights), options)
    for grad_loss, reduction in ((torch.ones_like(x), 0), (torch.ones(()), 1)):
        beneath = ("op", x, target, *weights, *options_of("binary_cross_entropy", reduction=reduction, **options))
        torch.library.opcheck(ops.binary_cross_entropy_forward.default, beneath)
        handed = (grad_loss, torch.tensor(144.0, dtype=torch.float64))
        torch.library.opcheck(ops.binary_cross_entropy_backward.default, (*handed, *beneath))
