"""How the memory of large gradients is reused. test_benchmarks.py has the memory that forward and backward take."""

import subprocess
import sys
import textwrap

import pytest
import torch

import segloss

pytestmark = pytest.mark.cpu_only

LARGE = (1, 3, 128, 64, 64)  # 6 MiB; memory is kept from 2 MiB on


def gradient_of(x):
    labels = torch.zeros(1, *x.shape[2:], dtype=torch.uint8)
    return torch.autograd.grad(segloss.cross_entropy(x, labels), x)[0]


@pytest.fixture
def x():
    return torch.randn(LARGE, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the allocator of torch is left alone")
def test_a_large_gradient_takes_the_memory_of_the_one_before(x):
    address = gradient_of(x).data_ptr()
    assert gradient_of(x).data_ptr() == address


def test_gradients_alive_at_the_same_time_have_memory_of_their_own(x):
    first = gradient_of(x)
    copy = first.clone()
    second = gradient_of((2 * x).detach().requires_grad_())
    assert first.data_ptr() != second.data_ptr()
    second.zero_()
    assert torch.equal(first, copy)


def test_a_large_gradient_can_be_resized_as_any_tensor(x):
    gradient = gradient_of(x)
    first = gradient.flatten()[0].item()
    gradient.resize_(2, *LARGE)
    assert gradient.flatten()[0].item() == first


def test_a_large_gradient_keeps_the_memory_format():
    x = torch.randn(LARGE).to(memory_format=torch.channels_last_3d).requires_grad_()
    assert gradient_of(x).stride() == x.stride()


# The beginning of each script, which runs in a process of its own; sizes are in KiB, from /proc/self/status.
PRELUDE = """
import torch, segloss
from pathlib import Path

def memory(kind):
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if kind in l).split()[1])
"""


def printed_by(script):
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


TRANSFORMS = {
    "grad": "torch.func.grad(segloss.cross_entropy)",
    "per-sample gradients": "torch.func.vmap(torch.func.grad(lambda x, y: segloss.cross_entropy(x[None], y[None])))",
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_peak_memory_of_transforms_is_that_of_the_gradient(transform):
    script = f"""
        gradient = {TRANSFORMS[transform]}
        x, labels = torch.randn(4, 19, 256, 512), torch.zeros(4, 256, 512, dtype=torch.uint8)
        gradient(x[..., :1], labels[..., :1])
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        result = gradient(x, labels)
        print((memory("VmHWM") - before) * 1024 / x.nbytes)
    """
    assert 0.9 < float(printed_by(script)) < 1.3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("loss", ["cross_entropy", "dice_ce_loss"])
def test_small_logits_take_no_memory_of_the_full_size(loss):
    script = f"""
        def step(x, labels):
            segloss.{loss}(x, labels, upsample="bilinear").backward()
            return x.grad

        x, labels = torch.randn(1, 150, 64, 64), torch.zeros(1, 256, 256, dtype=torch.uint8)
        step(x[..., :4, :4].clone().requires_grad_(), labels[..., :16, :16])
        x.requires_grad_()
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        gradient = step(x, labels)
        print((memory("VmHWM") - before) * 1024 - gradient.nbytes)
    """
    assert int(printed_by(script)) < 10 * 2**20  # the logits of the full size take 39 MB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16"])
def test_no_voxel_weight_is_copied(dtype):
    script = f"""
        def step(x, labels, weight):
            segloss.cross_entropy(x, labels, voxel_weight=weight).backward()
            return x.grad

        x, labels = torch.randn(1, 2, 2048, 4096), torch.zeros(1, 2048, 4096, dtype=torch.uint8)
        weight = torch.ones(1, 2048, 4096, dtype=torch.{dtype})
        step(x[..., :1].clone().requires_grad_(), labels[..., :1], weight[..., :1])
        x.requires_grad_()
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        gradient = step(x, labels, weight)
        print(((memory("VmHWM") - before) * 1024 - gradient.nbytes) / labels.numel())
    """
    assert float(printed_by(script)) < 0.5  # bytes for each voxel


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("ignore_index", [-100, 255])
def test_topk_takes_the_losses_and_their_gradient_beside_that_of_the_logits(ignore_index):
    script = f"""
        def step(x, labels):
            segloss.topk_loss(x, labels, ignore_index={ignore_index}).backward()
            return x.grad

        x, labels = torch.randn(1, 3, 2048, 2048), torch.zeros(1, 2048, 2048, dtype=torch.uint8)
        step(x[..., :1].clone().requires_grad_(), labels[..., :1])
        x.requires_grad_()
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        gradient = step(x, labels)
        print(((memory("VmHWM") - before) * 1024 - gradient.nbytes) / labels.numel())
    """
    assert float(printed_by(script)) < 8.5  # bytes for each voxel: two float32


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_more_is_kept_than_was_in_use_at_once():
    """Of gradients of 20 sizes, one after the other, the memory of one is kept, not that of all."""
    script = """
        logits, labels = torch.zeros(2 * 4000 * 1024), torch.zeros(4000 * 1024, dtype=torch.uint8)

        def step(n):  # allocates a gradient and nothing else
            x = logits[: 2 * n * 1024].view(1, 2, n, 1024).requires_grad_()
            segloss.dice_loss(x, labels[: n * 1024].view(1, n, 1024)).backward()

        step(4000)
        before = memory("VmRSS")
        for n in range(3000, 4000, 50):
            step(n)
        print((memory("VmRSS") - before) * 1024 / logits.nbytes)
    """
    assert float(printed_by(script)) < 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_peak_stayed_for_good():
    """After one large gradient, as much memory was kept of gradients of 20 smaller sizes."""
    script = """
        logits, labels = torch.zeros(1, 2, 8000, 1024), torch.zeros(1, 8000, 1024, dtype=torch.uint8)

        def step(n):
            segloss.dice_loss(logits[:, :, :n].detach().requires_grad_(), labels[:, :n]).backward()

        step(400)
        before = memory("VmSize")
        step(8000)
        for _ in range(10):
            for n in range(400, 1400, 50):
                step(n)
        print((memory("VmSize") - before) * 1024 / logits.nbytes)
    """
    assert float(printed_by(script)) < 0.3


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_gradient_too_large_for_the_memory_is_an_error_after_which_smaller_ones_work():
    script = """
        import resource

        logits, labels = torch.zeros(1, 2, 4000, 1024), torch.zeros(1, 4000, 1024, dtype=torch.uint8)

        def gradient(n):
            x = logits[:, :, :n].detach().requires_grad_()
            segloss.dice_loss(x, labels[:, :n]).backward()
            return x.grad

        expected = gradient(400).clone()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + logits.nbytes // 2,) * 2)
        for _ in range(3):
            try:
                gradient(4000)
            except torch.OutOfMemoryError as error:
                print(error)
            assert torch.equal(gradient(400), expected)
    """
    text = "segloss: no memory for a gradient of 33554432 bytes. Use a smaller batch or patch"
    assert printed_by(script).splitlines() == [text] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_confusion_matrix_takes_its_own_memory_alone():
    """It takes no table for each thread, and no copy of one."""
    script = """
        torch.set_num_threads(3)
        labels = torch.arange(8192).repeat(8)
        segloss.confusion_matrix(labels % 3, labels % 3, 3)
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        result = segloss.confusion_matrix(labels, labels, num_classes=8192)
        print((memory("VmHWM") - before) * 1024 / result.nbytes)
    """
    assert 0.9 < float(printed_by(script)) < 1.1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_small_samples_took_eight_numbers_for_each_statistic():
    """They take one of float64 beside that of float32, the result."""
    script = """
        x, labels = torch.randn(16384, 200), torch.zeros(16384, dtype=torch.uint8)
        segloss.soft_stats(x[:2], labels[:2])
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        results = segloss.soft_stats(x, labels)
        print((memory("VmHWM") - before) * 1024 / sum(result.nbytes for result in results))
    """
    assert 2.5 < float(printed_by(script)) < 3.5
