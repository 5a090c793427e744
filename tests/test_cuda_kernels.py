"""Compiles the CUDA kernels for an emulated GPU, with a C++ compiler, and runs them: nothing here needs a GPU."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
import torch
from kernel_build import KERNELS, ROOT, compiled, link, run
from test_memory import PRELUDE
from torch.utils.cpp_extension import include_paths, library_paths

from segloss import _extension

TESTS = ROOT / "tests" / "cuda"

# Order: the emulation's headers stand for those of CUDA.
INCLUDES = [f"-I{path}" for path in (TESTS / "include", TESTS, ROOT / "tests" / "c", KERNELS, KERNELS / "cuda")]
FLAGS = ["-g0", "-fPIC", "-Wall", "-Wextra", "-Werror", *INCLUDES]
UNUSED = ["-Wno-unused-function", "-Wno-unused-const-variable"]  # not every shared test is
C_FLAGS = ["cc", "-std=gnu11", "-O2", *FLAGS, *UNUSED]
CXX_FLAGS = ["c++", "-std=c++17", "-Og", *FLAGS, "-x", "c++"]  # -O1 compiles for twice as long
TORCH_FLAGS = ["c++", "-std=c++20", "-O0", "-g0", "-fPIC", *(f"-isystem{path}" for path in include_paths())]

EMULATION = TESTS / "emulation.cpp"
GPU = [*sorted((KERNELS / "cuda").glob("*.cu")), EMULATION]
PROGRAM = [TESTS / "test_cuda_kernels.c", KERNELS / "kernels_baseline.c"]
OPERATORS = sorted((ROOT / "csrc" / "ops").glob("cuda*.cpp"))
COMMANDS = dict.fromkeys(GPU, CXX_FLAGS) | dict.fromkeys(PROGRAM, C_FLAGS) | dict.fromkeys(OPERATORS, TORCH_FLAGS)
COMMANDS[EMULATION] = [*CXX_FLAGS, "-O2"]  # most of the time is spent there
COMMANDS[TESTS / "test_cuda_kernels.c"] = [*C_FLAGS, "-DFEW_CASES"]
COMMANDS[KERNELS / "kernels_baseline.c"] = [*C_FLAGS, "-O0"]  # one small function of it is called

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(not (shutil.which("cc") and shutil.which("c++")), reason="cc or c++ is not on PATH"),
]


def objects(sources):
    def compiled_source(source):
        return compiled(f"{source.stem}-torch{torch.__version__}", COMMANDS[source], source)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled_source, sources))


def test_cuda_kernels_equal_slow_references(tmp_path):
    program = link("c++", [], objects(GPU + PROGRAM), tmp_path / "test_cuda_kernels")
    output = run([program])
    print(output)
    assert output.rstrip().endswith("ok")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The operators of CUDA tensors, for the emulated GPU."""
    extension = _extension.library()
    target = tmp_path_factory.mktemp("cuda") / "segloss_cuda.so"
    libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch_cpu", "-lc10"]
    extension_flags = [f"-L{extension.parent}", f"-l:{extension.name}", f"-Wl,-rpath,{extension.parent}"]
    run(["c++", "-shared", *objects(GPU + OPERATORS), "-o", target, *extension_flags, *libraries])
    return target


# Imports torch and loads the library once; each script then runs in a fork of this process.
SERVER = """
import json, os, sys, traceback
import segloss, torch
library = sys.argv.pop()
torch.ops.load_library(library)
for line in sys.stdin:
    script, arguments, environment, output = json.loads(line)
    child = os.fork()
    if child == 0:
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(environment)
        sys.argv[1:] = arguments
        status = 1
        try:
            exec(script, {"__name__": "__main__", "segloss": segloss, "sys": sys, "torch": torch, "library": library})
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run_python(library, tmp_path_factory):
    """Runs a script on the emulated GPU: run_python(script, *arguments, **environment) is its output."""
    outputs = (tmp_path_factory.mktemp("outputs") / str(number) for number in count())
    command = [sys.executable, "-c", SERVER, library]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT / "tests", **pipes) as server:

        def run_script(script, *arguments, **environment):
            output = next(outputs)
            print(json.dumps([script, arguments, environment, str(output)]), file=server.stdin, flush=True)
            status = server.stdout.readline()
            assert int(status) == 0, output.read_text()
            return output.read_text()

        yield run_script
        server.stdin.close()


def test_operators_of_an_emulated_gpu_equal_those_of_the_cpu(run_python):
    """The tests of devices without kernels, whose tensors then have some."""
    script = "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    selected = (
        "(ignored_voxels or probabilities or masks or samples or last or bad or maps or regions or sets) and not slabs"
    )
    options = ["-q", "-n0", "-pno:cacheprovider", "test_devices.py", "-k", selected]
    output = run_python(script, *options, SEGLOSS_SYNC_CHECKS="1")
    assert " passed" in output  # pytest exits with 1 where one fails


ON_EMULATED_GPU = """
import pytest
from test_devices import without_kernels
with without_kernels():
    sys.exit(pytest.main(["-q", "-n0", "-pno:cacheprovider", *sys.argv[1:]]))
"""


def test_gradients_made_with_the_loss(run_python):
    """The tests of these gradients, on an emulated GPU."""
    selected = "made_with_the_loss or scaled_by_the_gradient or every_backward or without_a_copy or too_small or retain"
    options = ["test_autograd.py", "-k", selected]
    assert " passed" in run_python(ON_EMULATED_GPU, *options, SEGLOSS_SYNC_CHECKS="1")


def test_predictions_counts_and_weights(run_python):
    """Tests of the operators that read labels or predict them, on an emulated GPU."""
    files = ["test_predict.py", "test_total_weight.py", "test_per_sample.py", "test_metrics.py"]
    of_metrics = "named or no_pair or masks or ignored or stray or one_hot_targets or layout_of_maps"
    too_large = "beyond or memory or vmap or compile or ranks or gigabytes or opcheck or checks"
    selected = f"(test_predict or test_total_weight or test_per_sample or {of_metrics}) and not ({too_large})"
    assert " passed" in run_python(ON_EMULATED_GPU, *files, "-k", selected, SEGLOSS_SYNC_CHECKS="1")


def test_label_sets(run_python):
    """The tests of label sets, on an emulated GPU."""
    unlike_the_cpu = "bad or refused or vmap or compile or modules or second or slab"  # raises later, or is no kernel's
    repeated = "many and (everything or unlabelled)"  # the other sets have many classes, too
    options = ["test_label_sets.py", "-k", f"not ({unlike_the_cpu}) and not ({repeated})"]
    assert " passed" in run_python(ON_EMULATED_GPU, *options, SEGLOSS_SYNC_CHECKS="1")


def test_logits_of_another_size(run_python):
    """The tests of these logits, on an emulated GPU."""
    ratios = "at_every_ratio and (dtype1 and not aligned or dtype2 and aligned)"  # float32 and float16
    others = "each_axis or every_loss or half_logits or minus_infinity or no_effect or no_samples or layout or format"
    classes = "more_classes and not 113 and not (dice and 150)"
    predictions = "test_metrics or interpolated"
    options = ["test_upsample.py", "test_predict.py", "-k", f"{ratios} or {others} or {classes} or {predictions}"]
    assert " passed" in run_python(ON_EMULATED_GPU, *options, SEGLOSS_SYNC_CHECKS="1")


def test_gradients_of_logits_of_another_size_have_the_same_bits_in_any_order(run_python):
    script = """
import ctypes
from test_devices import without_kernels
from test_upsample import labels_for, value_and_gradient
gpu = ctypes.CDLL(library)
def results(order, *arguments, **options):
    gpu.set_order(order)
    with without_kernels():
        return value_and_gradient(*arguments, **options)
for loss in segloss.cross_entropy, segloss.dice_ce_loss:
    for shape, size, upsample in ((20, 70), (60, 300), "bilinear"), ((5, 6, 35), (9, 12, 70), "trilinear"):
        x = torch.randn(2, 9, *shape)
        arguments = (loss, x, labels_for(x, size))
        first = results(0, *arguments, upsample=upsample)
        for order in 1, 2, 3:
            other = results(order, *arguments, upsample=upsample)
            print(all(torch.equal(a, b) for a, b in zip(first, other)))
"""
    assert run_python(script).split() == 12 * ["True"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_logits_of_another_size_are_in_no_memory_at_the_full_size(run_python):
    script = """
from test_devices import without_kernels
def step(x, labels, loss):
    with without_kernels():
        loss(x, labels, upsample="bilinear").backward()
        segloss.dice_score(x, labels, upsample="bilinear")
        segloss.predict(x, labels.shape[1:], upsample="bilinear")
for loss in segloss.cross_entropy, segloss.dice_ce_loss:
    x, labels = torch.randn(1, 150, 32, 32), torch.zeros(1, 128, 128, dtype=torch.uint8)
    step(x[..., :4, :4].clone().requires_grad_(), labels[..., :16, :16], loss)
    x.requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    step(x, labels, loss)
    print((memory("VmHWM") - before) * 1024 - x.nbytes)
"""
    full_size = 4 * 150 * 128 * 128
    assert all(int(number) < full_size / 4 for number in run_python(PRELUDE + script).split())


def test_samples_of_several_blocks(run_python):
    """A block has 4096 or 8192 voxels."""
    script = """
from itertools import product
from test_devices import without_kernels
def value_and_gradient(loss, x, y):
    x = x.detach().requires_grad_()
    value = loss(x, y)
    return value.detach(), *torch.autograd.grad(value, x)
formats = torch.contiguous_format, torch.channels_last
for (dtype, tolerance), classes, memory in product([(torch.float32, 1e-5), (torch.bfloat16, 8e-3)], (3, 19), formats):
    x = torch.randn(1, classes, 91, 93).to(dtype).contiguous(memory_format=memory)
    y = torch.randint(classes, (1, 1, 91, 93), dtype=torch.uint8)
    for loss in segloss.cross_entropy, segloss.dice_ce_loss:
        expected = value_and_gradient(loss, x, y)
        with without_kernels():
            actual = value_and_gradient(loss, x, y)
        errors = [(a - e).abs().max() / e.abs().max() for a, e in zip(actual, expected)]
        print(max(errors).item() <= tolerance, errors)
"""
    lines = run_python(script).splitlines()
    assert len(lines) == 16
    assert all(line.startswith("True") for line in lines), lines


LAUNCHES = """
import ctypes
from test_devices import without_kernels
gpu = ctypes.CDLL(library)
def launches(call):
    before = gpu.num_launches()
    result = call()
    return gpu.num_launches() - before, result
x, labels = torch.randn(2, 3, 40, requires_grad=True), torch.randint(3, (2, 40))
masks = torch.randint(2, (2, 3, 40), dtype=torch.uint8)
def report(name, y, factor=1.0, dtype=torch.float32, **options):
    with without_kernels():
        logits = x.to(dtype)
        forward, loss = launches(lambda: getattr(segloss, name)(logits, y, **options))
        backward, _ = launches(lambda: torch.autograd.grad(loss, logits, torch.full_like(loss, factor)))
        print(name, forward, backward)
"""


def test_the_number_of_launches(run_python):
    """One kernel and one that adds its sums, for each walk; where the mean depends on the labels, two more."""
    script = """
report("cross_entropy", labels.byte())
report("cross_entropy", labels)  # some may be ignored
report("cross_entropy", labels, reduction="sum", factor=0.5)
report("cross_entropy", labels.byte(), dtype=torch.float16)  # the gradient is computed in backward
report("focal_loss", labels.byte(), activation="softmax")
report("focal_loss", masks, activation="sigmoid", ignore_index=-100)
report("focal_loss", masks, activation="sigmoid", ignore_index=255)
report("dice_loss", labels)
report("dice_ce_loss", labels)
report("dice_focal_loss", labels)
report("tversky_loss", masks, activation="sigmoid")
large = torch.randint(3, (2, 120))
report("cross_entropy", large.byte(), upsample="linear")
report("dice_ce_loss", large, upsample="linear")
"""
    assert run_python(LAUNCHES + script).splitlines() == [
        "cross_entropy 2 1",
        "cross_entropy 4 1",
        "cross_entropy 2 1",
        "cross_entropy 2 2",
        "focal_loss 2 1",
        "focal_loss 2 1",
        "focal_loss 4 1",
        "dice_loss 2 2",
        "dice_ce_loss 2 2",
        "dice_focal_loss 2 2",
        "tversky_loss 2 2",
        "cross_entropy 4 3",  # also tables of the axes, and the gradient of the small logits
        "dice_ce_loss 3 4",
    ]


ATEN = """
import ctypes
from operators import options_of
from torch.utils._python_dispatch import TorchDispatchMode
class Calls(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        print(" ", func)
        return func(*args, **(kwargs or {}))
gpu = ctypes.CDLL(library)
def report(name, *arguments, **options):
    packed = options_of(name.rsplit("_", 1)[0], **options)
    operator = getattr(torch.ops.segloss, name).default
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    operator.redispatch(key, *arguments, *packed)  # the first call allocates the device's record of refusals
    before = gpu.num_launches()
    with Calls():
        result = operator.redispatch(key, *arguments, *packed)
    print(name, gpu.num_launches() - before)
    return result
"""


def test_the_operators_launch_no_kernel_of_torch(run_python):
    """They allocate results and a workspace, and no more."""
    script = """
x, labels = torch.randn(2, 3, 40), torch.randint(3, (2, 40))
masks, v = torch.randint(2, (2, 3, 40), dtype=torch.uint8), torch.rand(2, 40)
one, stats = torch.ones(()), torch.ones(2, 3)
for name, y in ("cross_entropy", labels), ("binary_cross_entropy", masks):
    arguments = ("loss", x, y, torch.rand(3), v)
    loss, total, gradient = report(name + "_forward", *arguments, with_gradient=True)
    report(name + "_backward", one, total, *arguments)
    report(name + "_rescale", gradient, one, total, *arguments)
arguments = ("dice", x, labels, None, v)
report("soft_stats_forward", *arguments, voxel_loss=True)
report("soft_stats_backward", stats, stats, stats[:, 0], *arguments, voxel_loss=True)
"""
    calls = [line.strip() for line in run_python(ATEN + script).splitlines() if line.startswith(" ")]
    views = {"aten.detach.default", "aten.view.default", "aten.expand.default"}
    assert set(calls) - views == {"aten.empty.memory_format", "aten.empty_like.default"}


def test_operators_on_labels_launch_no_kernel_of_torch_but_to_zero_counts(run_python):
    script = """
def options_of(name):
    return ()
x, y, maps = torch.randn(2, 3, 40), torch.randint(3, (2, 40)), torch.randint(3, (2, 40))
masks = torch.randint(2, (2, 3, 40), dtype=torch.uint8)
one_hot = torch.nn.functional.one_hot(y, 3).movedim(-1, 1)
report("total_weight", "op", y, torch.rand(3).double(), torch.rand(2, 40), 3, -100)
report("class_labels", "op", y, 3, -100)
report("one_hot_labels", "op", one_hot, 1)
report("is_one_hot", "op", one_hot, 1)
report("equal_label_counts", "op", maps, y, -100, None, None, True)
report("equal_label_counts", "op", maps, y, -100, 1)  # are these maps, or masks?
report("predict", x, [], 0, None, torch.uint8, 1)
report("predict_into", x, 0, 0.5, 1, masks)
report("confusion_counts", "op", x, y, 3, -100, 1, True, None, 0, True)
report("confusion_counts", "op", x, y, 3, -100, 1, False)
report("mask_counts", "op", masks, masks, -100, 1, True)
"""
    lines = [line for line in run_python(ATEN + script).splitlines() if "aten.detach" not in line]
    assert [line for line in lines if line != "  aten.empty.memory_format"] == [
        *("total_weight 2", "class_labels 2", "one_hot_labels 2", "is_one_hot 2"),
        *("equal_label_counts 2", "equal_label_counts 6", "predict 1", "predict_into 1"),
        *("  aten.zeros.default", "confusion_counts 2") * 2,
        *("  aten.zeros.default", "mask_counts 2"),
    ]


REPORT = """
from operators import options_of
from torch._C import DispatchKey, DispatchKeySet
def loss(y):
    arguments = ("loss", torch.zeros(1, 2, 5), y, None, None, *options_of("cross_entropy"))
    forward = torch.ops.segloss.cross_entropy_forward.default
    return forward.redispatch(DispatchKeySet(DispatchKey.CUDA), *arguments)[0].round(decimals=5)
good, bad = torch.tensor([[0, 1, 1, 0, 1]]), torch.tensor([[0, 1, 7, 0, 8]])
"""


def test_bad_labels_make_nan_and_the_next_call_raises(run_python):
    script = """
print(loss(good).item(), loss(bad).item())
for _ in range(2):
    try:
        print(loss(good).item())
    except IndexError as error:
        print(error)
"""
    first, second, third = run_python(REPORT + script).splitlines()[-3:]
    assert first.split() == [str(torch.tensor(2.0).log().round(decimals=5).item()), "nan"]
    assert second.startswith("loss: Target 7 is out of bounds, the first of 2, at index [0, 2] of labels [1, 5]. ")
    expected = "Expected labels 0 to 1, masks of 0 and 1, probabilities in [0, 1], or ignore_index=-100. "
    assert expected + "The call was an earlier one" in second
    assert third == str(torch.tensor(2.0).log().round(decimals=5).item())


def test_the_report_names_the_operator_and_the_index_in_its_labels(run_python):
    script = """
arguments = (torch.zeros(3, 2, 5), torch.tensor([[[0] * 5], [[1, 1, 0, 9, 0]], [[0] * 5]]), None, None)
options = options_of("soft_stats")
torch.ops.segloss.soft_stats_forward.default.redispatch(DispatchKeySet(DispatchKey.CUDA), "dice", *arguments, *options)
try:
    loss(good)
except IndexError as error:
    print(error)
"""
    report = run_python(REPORT + script)
    assert "dice: Target 9 is out of bounds, the first of 1, at index [1, 0, 3] of labels [3, 1, 5]. " in report
    assert "and loss is the first to see it" in report


def test_a_gradient_of_another_shape_is_refused(run_python):
    script = """
y, total = good, torch.tensor(5.0, dtype=torch.float64)
for gradient, reduction in ((torch.ones(1, 4), 0), (torch.ones(5), 1)):
    try:
        arguments = (gradient, total, "loss", torch.zeros(1, 2, 5), y, None, None)
        operator = torch.ops.segloss.cross_entropy_backward.default
        options = options_of("cross_entropy", reduction=reduction)
        operator.redispatch(DispatchKeySet(DispatchKey.CUDA), *arguments, *options)
    except RuntimeError as error:
        print(str(error).splitlines()[0])
for shapes in (((1, 3), (1, 2), (1,)), ((1, 2), (2, 2), (1,)), ((1, 2), (1, 2), ())):
    try:
        gradients = [torch.ones(shape) for shape in shapes]
        arguments = ("dice", torch.zeros(1, 2, 5), y, None, None, *options_of("soft_stats", voxel_loss=True))
        operator = torch.ops.segloss.soft_stats_backward.default
        operator.redispatch(DispatchKeySet(DispatchKey.CUDA), *gradients, *arguments)
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""
    assert run_python(REPORT + script).splitlines()[-5:] == [
        *(
            f"loss backward: expected grad_loss of the loss's shape, got {s} for input [1, 2, 5] and target [1, 5]"
            for s in ([1, 4], [5])
        ),
        *(f"dice backward: expected a gradient [1, 2] for input [1, 2, 5], got {s}" for s in ([1, 3], [2, 2])),
        "dice backward: expected a gradient [1] of the loss for input [1, 2, 5], got []",
    ]


def test_synchronize_raises_what_the_last_call_refused(run_python):
    script = """
segloss.synchronize()
loss(bad)
try:
    segloss.synchronize()
except IndexError as error:
    print(error)
segloss.synchronize()
print(loss(good).item())
"""
    report, value = run_python(REPORT + script).splitlines()[-2:]
    assert report.startswith("loss: Target 7 is out of bounds, the first of 2, at index [0, 2] of labels [1, 5]. ")
    assert "and synchronize is the first to see it" in report
    assert value == str(torch.tensor(2.0).log().round(decimals=5).item())


def test_a_launch_that_fails_leaves_no_error_to_cudas_runtime(run_python):
    script = """
import ctypes
gpu = ctypes.CDLL(library)
gpu.fail_launches(1)
try:
    loss(good)
except RuntimeError as error:
    print(str(error).splitlines()[0])
gpu.fail_launches(0)
print(gpu.last_error(), loss(good).item())
"""
    error, value = run_python(REPORT + script).splitlines()[-2:]
    assert error == "loss: a CUDA kernel could not be launched, error 1 of CUDA's runtime"
    assert value == f"0 {torch.tensor(2.0).log().round(decimals=5).item()}"


def test_bad_labels_raise_at_once_with_sync_checks(run_python):
    script = """
try:
    loss(bad)
except IndexError as error:
    print(error)
print(loss(good).item())
"""
    error, value = run_python(REPORT + script, SEGLOSS_SYNC_CHECKS="1").splitlines()[-2:]
    assert "Target 7 is out of bounds: 2 labels are outside [0, 2), the first at index [0, 2]" in error
    assert value == str(torch.tensor(2.0).log().round(decimals=5).item())


def test_bad_labels_of_logits_of_another_size(run_python):
    """The gradient is nan where the refused voxel has a part, at four pixels of each class."""
    script = """
x, y = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 1, 8, 15))
y[1, 0, 6, 7] = 5
bilinear = 2 << 1 | 2 << 3
options = options_of("cross_entropy", with_gradient=True, upsample=bilinear, reduction=2, ignore_index=255)
operator = torch.ops.segloss.cross_entropy_forward.default
value, _, gradient = operator.redispatch(DispatchKeySet(DispatchKey.CUDA), "loss", x, y, None, None, *options)
print(value.item(), gradient.isnan().nonzero()[:, 2:].unique(dim=0).tolist(), gradient.isnan().sum().item())
try:
    loss(good)
except IndexError as error:
    print(error)
arguments = ("dice", x, y, None, None, *options_of("soft_stats", upsample=bilinear))
sums = torch.ops.segloss.soft_stats_forward.default.redispatch(DispatchKeySet(DispatchKey.CUDA), *arguments)[0]
print(sums.isnan().all(1).tolist())
"""
    values, report, sums = run_python(REPORT + script).splitlines()
    assert values == "nan [[2, 2], [3, 2]] 6"
    assert "Target 5 is out of bounds, the first of 1, at index [1, 0, 6, 7] of labels [2, 1, 8, 15]. " in report
    assert sums == "[False, True]"


def test_counts_of_an_emulated_gpu_equal_those_of_the_cpu(run_python):
    script = """
from itertools import product
counts = torch.ops.segloss.confusion_counts.default
x, y = torch.randn(2, 3, 40, 50), torch.randint(3, (2, 1, 40, 50), dtype=torch.uint8)
y[0, 0, :3] = 255
maps = x.argmax(1, keepdim=True)
for (input, dim), per_class in product([(x, 1), (x[:, :, 0], 1), (maps, 0)], [False, True]):
    target = y[:, :, 0] if input.dim() == 3 else y
    arguments = "accuracy", input, target, 3, 255, dim, per_class
    print(torch.equal(counts.redispatch(DispatchKeySet(DispatchKey.CUDA), *arguments), counts(*arguments)))
maps[1, 0, 5, 6] = 3
counts.redispatch(DispatchKeySet(DispatchKey.CUDA), "dice_score", maps, y, 3, 255, 0, True)
try:
    loss(good)
except IndexError as error:
    print(error)
"""
    *equal, report = run_python(REPORT + script).splitlines()[-7:]
    assert equal == 6 * ["True"]
    assert report.startswith("dice_score: Predicted label 3 is out of bounds, the first of 1, at index [1, 0, 5, 6] ")


def test_what_other_operators_refuse_is_reported(run_python):
    script = """
def report(name, *arguments):
    key = DispatchKeySet(DispatchKey.CUDA)
    result = getattr(torch.ops.segloss, name).default.redispatch(key, *arguments)
    try:
        segloss.synchronize()
    except (IndexError, RuntimeError) as error:
        print(type(error).__name__, *str(error).split(". The call was")[0].splitlines())
    return result
one_hot = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2], [2, 1, 0]])).movedim(-1, 1)
strange = one_hot.clone()
strange[1, :, 1] = 1
print(report("is_one_hot", "op", one_hot, 1).item(), report("is_one_hot", "op", strange, 1).item())
report("one_hot_labels", "op", strange, 1)
counts = report("equal_label_counts", "accuracy", one_hot, one_hot, -100, 1)
print(counts.tolist(), report("equal_label_counts", "accuracy", one_hot, strange, -100, 1).tolist())
strange[0, 1, 2] = 7
report("mask_counts", "dice_score", one_hot, strange, -100, 1)
report("mask_counts", "dice_score", strange, one_hot, -100, 1)
print(report("class_labels", "op", strange, 2, 1).tolist()[0])
report("total_weight", "op", torch.tensor([1, 3]), None, None, 3, -100)
try:
    report("num_label_classes", "op", one_hot, torch.tensor([[[0, 0, -1]] * 3] * 2), -100)  # waits
except IndexError as error:
    print(str(error).split(": 6 labels")[0])
"""
    assert run_python(REPORT + script).splitlines() == [
        "True False",
        "RuntimeError op: expected a one-hot target, got one that is not at index [1, 1] of labels [2, 3], "
        "the first of 1",
        "RuntimeError accuracy: expected label maps, got input and target [2, 3, 3] that are both one-hot, as masks "
        "are. Give num_classes= for label maps, or masks=True",
        "[0, 0] [16, 18]",
        "IndexError dice_score: Target 7 is out of bounds, the first of 1, at index [0, 2] of labels [2, 3]. Expected "
        "labels 0 to 2, masks of 0 and 1, probabilities in [0, 1], or ignore_index=-100",
        "IndexError dice_score: Predicted label 7 is out of bounds, the first of 1, at index [0, 2] of labels [2, 3]. "
        "Expected labels 0 to 2, masks of 0 and 1, probabilities in [0, 1], or ignore_index=-100",
        "IndexError op: Target 7 is out of bounds, the first of 1, at index [0, 1, 2] of labels [2, 3, 3]. Expected "
        "labels 0 to 1, masks of 0 and 1, probabilities in [0, 1], or ignore_index=1",
        "[[-1, 0, 0], [0, -1, 0], [0, 0, -1]]",
        "IndexError op: Target 3 is out of bounds, the first of 1, at index [1] of labels [2]. Expected labels 0 to 2, "
        "masks of 0 and 1, probabilities in [0, 1], or ignore_index=-100",
        "op: Target -1 is out of bounds",
    ]


def test_compiled_code_calls_the_kernels(run_python):
    script = """
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
with FakeTensorMode():
    x, y = torch.zeros(1, 2, 5, device="cuda"), torch.zeros(1, 5, dtype=torch.uint8, device="cuda")
graph = make_fx(lambda x, y: segloss.cross_entropy(x, y))(x, y).graph
print(*(node.target for node in graph.nodes if node.op == "call_function" and "getitem" not in str(node)))
"""
    assert run_python(script).splitlines()[-1] == "segloss.cross_entropy_forward.default"
