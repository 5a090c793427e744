"""Logits of more than 2^31 elements, which an int cannot count: values and gradients at both ends and in between.

A few voxels have random logits, all others zeros. On the CPU, zeros take no memory until they are written to: only
the gradient needs memory.
"""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from tolerances import CONFIDENT_RTOL, SUM_RTOL, assert_close, assert_relative

import segloss

NUM_ELEMENTS = 2_300_000_016
NEEDED = {"cpu": 10 * 2**30, "cuda": 16 * 2**30}  # distances; on a GPU logits, gradient, and others

pytestmark = pytest.mark.filterwarnings("ignore:.*lower precision:UserWarning")


def available_memory(device):
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("how much memory is available is read from /proc/meminfo, which Linux has")
    return 1024 * int(meminfo.read_text().split("MemAvailable:")[1].split()[0])


@pytest.fixture(autouse=True)
def _memory(device):
    needed, available = NEEDED[device], available_memory(device)
    if available < needed:
        pytest.skip(f"{needed >> 30} GiB of memory are needed, {available >> 30} GiB are available")


def zeros(sizes, dtype):
    """Zeros. On the CPU torch.zeros would write them; numpy gets them from the system unwritten."""
    if torch.get_default_device().type == "cpu":
        return torch.from_numpy(np.zeros(sizes, dtype=f"u{dtype.itemsize}")).view(dtype)
    return torch.zeros(sizes, dtype=dtype)


class Problem:
    """Logits [1, C, V], in memory class by class or voxel by voxel, and labels [1, 1, V]; zeros except at a few voxels.

    For one class, the labels are its mask.
    """

    def __init__(self, num_classes, memory, values=torch.randn):
        self.num_classes, self.num_voxels = num_classes, NUM_ELEMENTS // num_classes
        sizes = (num_classes, self.num_voxels) if memory == "planar" else (self.num_voxels, num_classes)
        x = zeros(sizes, torch.bfloat16)
        self.x = (x if memory == "planar" else x.T).unsqueeze(0)
        self.labels = zeros((1, 1, self.num_voxels), torch.uint8)
        passes = 2**31 % self.num_voxels if memory == "planar" else 2**31 // num_classes  # an offset of 2^31 elements
        starts = (0, self.num_voxels // 2, passes - 100, self.num_voxels - 200)
        self.chosen = torch.cat([torch.arange(start, start + 200) for start in starts])
        self.x[..., self.chosen] = values(1, num_classes, len(self.chosen)).bfloat16()
        self.labels[..., self.chosen] = torch.randint(max(num_classes, 2), (1, 1, len(self.chosen)), dtype=torch.uint8)

    def small(self, num_zeros=1):
        """The chosen voxels, followed by voxels of zeros."""
        x = torch.cat([self.x[..., self.chosen], torch.zeros(1, self.num_classes, num_zeros).bfloat16()], dim=-1)
        return x, torch.cat([self.labels[..., self.chosen], torch.zeros(1, 1, num_zeros, dtype=torch.uint8)], dim=-1)

    def total(self, small_sum, sum_of_zero):
        """The sum over all voxels, from the sum over `small()` and that over its one voxel of zeros."""
        return small_sum + sum_of_zero * (self.num_voxels - len(self.chosen) - 1)

    def assert_gradient(self, gradient, expected):
        """`expected` is that of `small()`. Of the voxels of zeros, three near the chosen ones are compared."""
        assert_close(gradient[..., self.chosen], expected[..., :-1])
        zeros = torch.tensor([201, self.num_voxels // 2 - 1, self.num_voxels - 201])
        assert_close(gradient[..., zeros], expected[..., -1:].expand(1, self.num_classes, 3))


def gradient_of(loss, x):
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.stride() == x.stride()
    return gradient


@pytest.mark.parametrize("memory", ["planar", "interleaved"])
def test_cross_entropy(memory):
    """In planar memory, each class has fewer than 2^31 voxels, and only the offsets of the last classes exceed 2^31."""
    problem = Problem(24, memory)
    x = problem.x.requires_grad_()
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):  # a float32 loss
        loss = segloss.cross_entropy(x, problem.labels, reduction="sum")
    losses = reference.cross_entropy(*problem.small(), reduction="none")
    assert_relative(loss.detach(), problem.total(losses.sum(), losses[..., -1].sum()), SUM_RTOL)
    _, expected = reference.value_and_gradient(reference.cross_entropy, *problem.small(), reduction="sum")
    problem.assert_gradient(gradient_of(loss, x), expected)


@pytest.mark.parametrize(
    ("num_classes", "options"),
    [(24, {}), (1, {"activation": None, "squared": True})],
    ids=["softmax", "more than 2^31 voxels"],
)
def test_soft_stats(num_classes, options):
    problem = Problem(num_classes, "planar", torch.rand if "activation" in options else torch.randn)
    x = problem.x.requires_grad_()
    stats = segloss.soft_stats(x, problem.labels, **options)
    x_small, labels_small = problem.small()
    of_small = reference.soft_stats(x_small, labels_small, **options)
    of_zero = reference.soft_stats(x_small[..., -1:], labels_small[..., -1:], **options)
    for actual, small, zero in zip(stats, of_small, of_zero, strict=True):
        assert_relative(actual.detach(), problem.total(small, zero), CONFIDENT_RTOL)

    def loss(s):
        return s[0].sum() + 0.5 * s[1][:, 0].sum()

    def reference_loss(x, y):
        return loss(reference.soft_stats(x, y, **options))

    _, expected = reference.value_and_gradient(reference_loss, x_small, labels_small)
    problem.assert_gradient(gradient_of(loss(stats), x), expected)


def test_confusion_of_logits():
    problem = Problem(24, "planar")
    matrix = segloss.confusion_matrix(problem.x, problem.labels)
    x_small, labels_small = problem.small(num_zeros=0)
    expected = torch.tensor(reference.confusion_matrix(x_small, labels_small, 24))
    expected[0, 0] += problem.num_voxels - len(problem.chosen)
    assert torch.equal(matrix, expected)


def labels_of_boxes():
    """More than 2^31 voxels that are empty but for boxes at both ends and where offsets exceed 2^31; and the boxes."""
    sizes, box = (1150, 1000, 2000), (3, 4, 5)
    labels = zeros((1, 1, *sizes), torch.uint8)
    places = [(0, 0, 0), (1073, 741, 1000), tuple(n - k for n, k in zip(sizes, box, strict=True))]
    boxes = [tuple(slice(a, a + k) for a, k in zip(place, box, strict=True)) for place in places]
    for each in boxes:
        labels[(0, 0, *each)] = 1
    return labels, boxes


def test_distances_of_more_than_2_31_voxels():
    labels, boxes = labels_of_boxes()
    distances = segloss.distance_transform(labels)[0, 0]
    for each in boxes:
        around = tuple(slice(max(a.start - 1, 0), a.stop + 1) for a in each)
        assert torch.equal(distances[around], segloss.distance_transform(labels[(..., *around)].clone())[0, 0])
    assert distances[1073, 741, 1000] == 1
    assert distances[0, 0, 0] > 1
    assert torch.count_nonzero(distances) == 3 * 60


def test_components_of_more_than_2_31_voxels():
    labels, boxes = labels_of_boxes()
    components, counts = segloss.connected_components(labels)
    assert counts.tolist() == [3]
    for number, each in enumerate(boxes, 1):
        assert (components[(0, 0, *each)] == number).all()
    assert torch.count_nonzero(components) == 3 * 60
