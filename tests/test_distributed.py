"""Losses over the ranks of a process group: each rank gets the loss of the whole batch, and the mean of the gradients,
as DistributedDataParallel takes it, is the whole batch's gradient.

The processes are started once for each number of ranks; they run every case and write their results to files.
"""

import os
import time
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from losses import BATCH, FUNCTIONS, VARIANTS, takes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import segloss

pytestmark = pytest.mark.cpu_only

WEIGHT = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
IGNORED = {"ignore_index": 255}
PARTS = {2: (1, 3), 4: (2, 1, 3, 1)}  # samples of each rank; those of rank 0 are all ignored
NOTHING = (slice(0), (slice(None), slice(None), slice(0)))
CLOSE = {"rtol": 0, "atol": 1e-10}

CASES = {
    **{name: partial(loss, **IGNORED) for name, loss in VARIANTS.items() if takes(loss, "process_group")},
    "weighted cross_entropy": partial(segloss.cross_entropy, weight=WEIGHT, **IGNORED),
    "weighted dice_ce_loss of the batch": partial(segloss.dice_ce_loss, weight=WEIGHT, **IGNORED, **BATCH),
    "cross_entropy of a label map": partial(segloss.cross_entropy, label_map={0: 1, 1: 2, 2: 0, 255: None}),
    "dice_ce_loss without two labels": partial(segloss.dice_ce_loss, ignore_index=(0, 255)),
    "sigmoid dice_ce_loss of regions": partial(
        segloss.dice_ce_loss, activation="sigmoid", regions=[(1, 2), (2,), (0, 1)], **IGNORED
    ),
    "focal_loss with alpha": partial(segloss.focal_loss, alpha=WEIGHT, weight=WEIGHT, **IGNORED),
    "dice_ce_loss of label sets": partial(segloss.dice_ce_loss, label_sets={0: (0, 2)}, **IGNORED),
    "dice_loss of label sets, of the batch": partial(segloss.dice_loss, label_sets={0: (0, 2)}, **IGNORED, **BATCH),
    "cross_entropy, sum": partial(segloss.cross_entropy, weight=WEIGHT, **IGNORED, reduction="sum"),
    "dice_loss, sum": partial(segloss.dice_loss, **IGNORED, reduction="sum"),
}


def of_small(loss):
    """The loss of every second voxel's logits, taken to the labels' size."""
    return lambda logits, labels, **options: loss(
        logits[..., ::2, ::2, ::2], labels, upsample="trilinear", **IGNORED, **options
    )


OF_SMALL = {
    f"{loss.__name__} of small logits": of_small(loss)
    for loss in (segloss.cross_entropy, segloss.dice_ce_loss, segloss.focal_loss)
}
SLABS = ["weighted cross_entropy", "focal_loss", "squared dice_loss of the batch", "weighted dice_ce_loss of the batch"]


def network():
    torch.manual_seed(0)
    return nn.Conv3d(2, 3, 1, dtype=torch.float64)  # its kernel is one voxel, so that slabs of a volume need no halo


def whole_batch(world_size):
    """Images [N, 2, 8, 4, 4] and uint8 labels [N, 1, 8, 4, 4]; the first rank's are all ignored."""
    generator = torch.Generator().manual_seed(1)
    size = sum(PARTS[world_size])
    images = torch.randn(size, 2, 8, 4, 4, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (size, 1, 8, 4, 4), generator=generator, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[: PARTS[world_size][0]] = 255
    return images, labels


def gradients_of(module):
    return [parameter.grad for parameter in module.parameters()]


def expected(loss, images, labels):
    module = network()
    value = loss(module(images), labels)
    value.backward()
    return value.detach(), gradients_of(module)


# ---- what a rank does ----


def step(loss, images, labels):
    """A training step of this rank's part of the batch."""
    module = DistributedDataParallel(network())
    value = loss(module(images), labels, process_group=dist.group.WORLD)
    value.backward()
    return value.detach(), gradients_of(module.module)


def accumulated(images, labels):
    """Micro-batches of one sample: the sum of the losses of each, divided by the total weight of all."""
    module = network()
    total = segloss.total_weight(labels, WEIGHT, **IGNORED, process_group=dist.group.WORLD)
    criterion = segloss.CrossEntropyLoss(WEIGHT, **IGNORED, reduction="sum", process_group=dist.group.WORLD)
    for _ in range(max(PARTS[dist.get_world_size()])):  # a rank that has no samples left takes part with an empty batch
        (criterion(module(images[:1]), labels[:1]) / total).backward()
        images, labels = images[1:], labels[1:]
    for gradient in gradients_of(module):
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return total, gradients_of(module)


def run_rank(rank, world_size, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store, timeout=timedelta(seconds=60))
    images, labels = whole_batch(world_size)
    part = [each.split(PARTS[world_size])[rank] for each in (images, labels)]
    slab = [each.chunk(world_size, dim=2)[rank] for each in (images, labels)]
    got = {name: step(loss, *part) for name, loss in (CASES | OF_SMALL).items()}
    got |= {f"{name}, slabs": step(CASES[name], *slab) for name in SLABS}
    got["probabilities"] = step(segloss.cross_entropy, part[0], probabilities(part[0]))
    got["accumulated"] = accumulated(*part)
    rest = [each[:0] if rank == 0 else each for each in part]
    got |= {f"{name}, without the first": step(loss, *rest) for name, loss in CASES.items()}
    got["nothing"] = {name: losses_of_nothing(loss, *part) for name, loss in CASES.items()}
    logits, options = network()(part[0]), {**IGNORED, "process_group": dist.group.WORLD}
    got["empty"] = [
        segloss.cross_entropy(logits, 255 + 0 * part[1], **options, empty=empty) for empty in ("nan", "zero")
    ]
    got["bfloat16"] = segloss.cross_entropy(logits.bfloat16(), part[1], **options)
    got["voxels"] = segloss.cross_entropy(logits, part[1], **options, reduction="none")
    got["terms"] = segloss.dice_loss(logits, part[1], **options, reduction="none")
    got["compiled"] = compiled_step(*part)
    got["messages"] = {name: messages(CASES[name], *part) for name in CASES}
    torch.save(got, folder / f"{rank}.pt")
    dist.destroy_process_group()


def losses_of_nothing(loss, images, labels):
    """The losses of no sample, and of samples without a voxel."""
    loss = partial(loss, process_group=dist.group.WORLD)
    return [loss(network()(images)[part], labels[part]).detach() for part in NOTHING]


def compiled_step(images, labels):
    module, criterion = network(), segloss.DiceCELoss(weight=WEIGHT, **IGNORED, **BATCH, process_group=dist.group.WORLD)
    call = torch.compile(lambda x, y: criterion(module(x), y), fullgraph=True, backend="aot_eager")
    loss = call(images, labels)
    loss.backward()
    return loss.detach()


def probabilities(images):
    return torch.cat([images, images[:, :1]], dim=1).softmax(1)


class Messages(TorchDispatchMode):
    """Collects the sizes of what is sent to other ranks."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "_c10d_functional" and "wait" not in func.__name__:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def messages(loss, images, labels):
    with Messages() as sent:
        loss(network()(images), labels, process_group=dist.group.WORLD).backward()
    return sent.sizes


# ---- what the ranks got ----


@pytest.fixture(scope="module", params=list(PARTS))
def ranks(request, tmp_path_factory):
    """The whole batch, and what each rank got."""
    world_size = request.param
    folder = tmp_path_factory.mktemp(f"ranks{world_size}")
    mp.spawn(run_rank, (world_size, folder), world_size)
    return whole_batch(world_size), [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def assert_each_rank_got(got, name, value, gradients):
    for rank in got:
        loss, grads = rank[name]
        torch.testing.assert_close(loss, value, **CLOSE)
        torch.testing.assert_close(grads, gradients, **CLOSE)


@pytest.mark.parametrize("name", CASES | OF_SMALL)
def test_each_rank_gets_the_loss_and_ddp_the_gradient_of_the_whole_batch(ranks, name):
    (images, labels), got = ranks
    assert_each_rank_got(got, name, *expected((CASES | OF_SMALL)[name], images, labels))


def test_each_rank_gets_the_same_with_probabilities(ranks):
    (images, _), got = ranks
    assert_each_rank_got(got, "probabilities", *expected(segloss.cross_entropy, images, probabilities(images)))


@pytest.mark.parametrize("name", SLABS)
def test_ranks_may_hold_slabs_of_the_same_volumes(ranks, name):
    (images, labels), got = ranks
    assert_each_rank_got(got, f"{name}, slabs", *expected(CASES[name], images, labels))


def test_sums_over_uneven_micro_batches_divided_by_the_total_weight_are_the_mean(ranks):
    (images, labels), got = ranks
    _, gradients = expected(CASES["weighted cross_entropy"], images, labels)
    assert_each_rank_got(got, "accumulated", segloss.total_weight(labels, WEIGHT, **IGNORED), gradients)


@pytest.mark.parametrize("name", CASES)
def test_a_rank_without_a_sample_takes_part(ranks, name):
    (images, labels), got = ranks
    first = PARTS[len(got)][0]
    assert_each_rank_got(got, f"{name}, without the first", *expected(CASES[name], images[first:], labels[first:]))


@pytest.mark.parametrize("name", CASES)
def test_ranks_that_are_all_empty_get_the_loss_of_an_empty_batch(ranks, name):
    (images, labels), got = ranks
    whole = [CASES[name](network()(images)[part], labels[part]) for part in NOTHING]
    assert all(value.isnan() for value in whole) or "sum" in name
    for rank in got:
        torch.testing.assert_close(rank["nothing"][name], whole, **CLOSE, equal_nan=True)


def test_the_mean_over_no_voxel_of_any_rank_is_what_empty_says(ranks):
    for rank in ranks[1]:
        assert rank["empty"][0].isnan()
        assert rank["empty"][1] == 0


def test_a_half_loss_is_rounded_once(ranks):
    (images, labels), got = ranks
    whole = segloss.cross_entropy(network()(images).bfloat16(), labels, **IGNORED)
    assert all(rank["bfloat16"].dtype == torch.bfloat16 and rank["bfloat16"] == whole for rank in got)


@pytest.mark.parametrize(("name", "loss"), [("voxels", segloss.cross_entropy), ("terms", segloss.dice_loss)])
def test_without_reduction_a_rank_keeps_its_own_losses(ranks, name, loss):
    (images, labels), got = ranks
    whole = loss(network()(images), labels, **IGNORED, reduction="none")
    torch.testing.assert_close(torch.cat([rank[name] for rank in got]), whole, **CLOSE)


def test_compile_is_one_graph(ranks):
    (images, labels), got = ranks
    value, _ = expected(CASES["weighted dice_ce_loss of the batch"], images, labels)
    for rank in got:
        torch.testing.assert_close(rank["compiled"], value, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_only_sums_of_classes_cross_the_network(ranks, name):
    for rank in ranks[1]:
        assert rank["messages"][name]
        # At most three sums of three classes, the number of voxels, a loss and its weight, a flag for each rank; with
        # label sets which classes have terms.
        assert max(rank["messages"][name]) <= 4 * 3 + 1 + 2 + len(ranks[1])


# ---- what goes wrong ----


def run_without_the_last(rank, world_size, folder):
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store, timeout=timedelta(seconds=3))
    if rank == world_size - 1:
        while not (folder / "raised").exists():  # stays alive, but never takes part
            time.sleep(0.1)
        return
    start = time.monotonic()
    with pytest.raises(RuntimeError):
        segloss.cross_entropy(torch.randn(1, 3, 2), torch.zeros(1, 2), process_group=dist.group.WORLD)
    assert time.monotonic() - start < 30
    (folder / "raised").touch()
    os._exit(0)  # after a timeout gloo at times aborts a process that ends in the usual way


def test_a_rank_that_never_comes_makes_the_others_raise_after_the_timeout(tmp_path):
    mp.spawn(run_without_the_last, (2, tmp_path), 2)
    assert (tmp_path / "raised").exists()


@pytest.mark.parametrize("loss", [loss for loss in FUNCTIONS.values() if takes(loss, "process_group")])
def test_a_process_group_of_another_type_is_a_type_error(loss):
    expected = "expected process_group to be a torch.distributed.ProcessGroup, got str"
    with pytest.raises(TypeError, match=f"{loss.__name__}: {expected}"):
        loss(torch.randn(1, 3, 2), torch.zeros(1, 2), process_group="gloo")


def test_a_process_group_of_another_type_is_a_type_error_in_total_weight():
    with pytest.raises(
        TypeError, match=r"total_weight: expected process_group to be a torch\.distributed\.ProcessGroup"
    ):
        segloss.total_weight(torch.zeros(2), process_group=0)
