"""Losses of DTensors that are sharded over the batch or over space are those of the whole tensors.

Two processes are started once; they run every case and write what went wrong to files.
"""

import json
import traceback
from datetime import timedelta
from functools import cache, partial
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

import segloss

pytestmark = pytest.mark.cpu_only

RANKS = 2
SIZES = (3, 4, 5, 6)  # [N, C, H, W]: samples and rows do not divide evenly
WEIGHT = {"weight": torch.tensor([0.3, 1.0, 2.5, 0.0], dtype=torch.float64)}
IGNORED = {"ignore_index": 255}
MAPPED = {"label_map": {0: 2, 1: 0, 2: 1, 3: 3, 255: None}}
SIGMOID = {"activation": "sigmoid"}
SETS = [{0: (0, 2)}, {}, {1: (1, 2, 3)}]  # of each sample
REGIONS = [(0, 1, 2, 3), (1, 3), (3,), (0, 2)]


def tensors(kind="labels", sizes=SIZES):
    """Logits, and a target of that kind. All labels of the last sample, the only one of rank 1, are ignored."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(sizes, dtype=torch.float64, generator=generator)
    labels = torch.randint(sizes[1], (sizes[0], *sizes[2:]), dtype=torch.uint8, generator=generator)
    if kind == "probabilities":
        return logits, torch.randn(sizes, dtype=torch.float64, generator=generator).softmax(1)
    if kind == "one-hot":
        return logits, nn.functional.one_hot(labels.long(), sizes[1]).movedim(-1, 1)
    if kind == "masks":
        return logits, torch.randint(2, sizes, dtype=torch.uint8, generator=generator)
    labels[:, 0, 0] = 255
    labels[-1] = 255
    return logits, labels.unsqueeze(1) if kind == "channel" else labels


@cache
def mesh_of(*sizes):
    return init_device_mesh("cpu", sizes)


def without_classes(placements):
    """The placements of labels [N, *] that belong to these placements of the logits."""
    return [Shard(each.dim - 1) if each.is_shard() and each.dim > 1 else each for each in placements]


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10, equal_nan=True)


# ---- what a rank does: each case is a function that raises if something is wrong ----


def agrees(loss, logits, target, options, placements, target_placements=None, mesh_sizes=(RANKS,)):
    """Value and gradient equal those of the whole tensors; a reduced loss is complete on every rank."""
    leaf = logits.clone().requires_grad_()
    expected = loss(leaf, target, **options)
    upstream = torch.linspace(0.5, 1.5, expected.numel(), dtype=expected.dtype).view_as(expected)
    expected.backward(upstream)

    mesh = mesh_of(*mesh_sizes)
    whole = [Replicate()] * mesh.ndim
    target_placements = target_placements or (
        placements if target.dim() == logits.dim() else without_classes(placements)
    )
    of_option = {"weight": whole, "alpha": whole, "pos_weight": whole, "voxel_weight": without_classes(placements)}
    options = {
        k: distribute_tensor(v, mesh, of_option[k]) if k in of_option and isinstance(v, torch.Tensor) else v
        for k, v in options.items()
    }
    sharded = distribute_tensor(logits, mesh, placements).requires_grad_()
    actual = loss(sharded, distribute_tensor(target, mesh, target_placements), **options)
    assert actual.dim() > 0 or list(actual.placements) == whole
    actual.backward(distribute_tensor(upstream, mesh, actual.placements))
    value, gradient = actual.full_tensor(), sharded.grad.full_tensor()  # both before an error can stop one rank alone
    assert_same(value, expected)
    assert_same(gradient, leaf.grad)
    return list(sharded.grad.placements)


def agrees_sharded(loss, kind, d, options):
    """The logits, the target and the gradient are sharded over dimension `d` of the logits."""
    placements = [Shard(d)]
    assert agrees(loss, *tensors(kind), options, placements) == placements


LOSSES = {
    "cross entropy": (segloss.cross_entropy, "labels", {**WEIGHT, **IGNORED, "label_smoothing": 0.1}),
    "cross entropy of a label map": (segloss.cross_entropy, "labels", {**WEIGHT, **MAPPED}),
    "cross entropy, probabilities": (segloss.cross_entropy, "probabilities", {**WEIGHT, "label_smoothing": 0.1}),
    "cross entropy, one-hot": (segloss.cross_entropy, "one-hot", {}),
    "negative log likelihood": (segloss.nll_loss, "channel", {**WEIGHT, **IGNORED}),
    "focal": (segloss.focal_loss, "labels", {**WEIGHT, **IGNORED}),
    "focal, one-hot": (segloss.focal_loss, "one-hot", {}),
    "focal, sigmoid": (segloss.focal_loss, "labels", {**WEIGHT, **IGNORED, **SIGMOID}),
    "focal, masks": (segloss.focal_loss, "masks", SIGMOID),
    "binary cross entropy": (
        segloss.binary_cross_entropy_with_logits,
        "masks",
        {**WEIGHT, "pos_weight": torch.tensor([2.0, 0.0, 0.5, 1.0], dtype=torch.float64)},
    ),
    "binary cross entropy of a label map": (segloss.binary_cross_entropy_with_logits, "labels", MAPPED),
    "dice": (segloss.dice_loss, "labels", {**WEIGHT, **IGNORED}),
    "focal of regions": (segloss.focal_loss, "labels", {**SIGMOID, **IGNORED, "regions": REGIONS}),
    "focal with alpha": (segloss.focal_loss, "labels", {**IGNORED, "alpha": WEIGHT["weight"].add(0.1)}),
    "cross entropy of label sets": (segloss.cross_entropy, "labels", {**WEIGHT, **IGNORED, "label_sets": SETS}),
    "dice of label sets": (segloss.dice_loss, "labels", {**IGNORED, "label_sets": SETS}),
    "dice of a label map": (segloss.dice_loss, "labels", MAPPED),
    "dice without smoothing": (segloss.dice_loss, "labels", {**IGNORED, "smooth_nr": 0.0, "smooth_dr": 0.0}),
    "generalized dice": (segloss.generalized_dice_loss, "labels", IGNORED),
    "tversky": (segloss.tversky_loss, "labels", {**WEIGHT, **IGNORED, "alpha": 0.3, "gamma": 0.75}),
}
LOSSES_OF_BATCHES = {
    "dice without background": (segloss.dice_loss, "channel", {**WEIGHT, **IGNORED, "include_background": False}),
    "squared dice": (segloss.dice_loss, "probabilities", {"squared": True}),
    "jaccard of masks": (segloss.dice_loss, "masks", {"jaccard": True, **SIGMOID}),
    "simple generalized dice": (segloss.generalized_dice_loss, "one-hot", {"w_type": "simple"}),
    "tversky of channels": (segloss.tversky_loss, "channel", {**WEIGHT, **IGNORED}),
    "dice and cross entropy": (segloss.dice_ce_loss, "labels", {**WEIGHT, **IGNORED, "label_smoothing": 0.1}),
    "dice and cross entropy of masks": (segloss.dice_ce_loss, "masks", SIGMOID),
    "dice and focal": (segloss.dice_focal_loss, "labels", {**WEIGHT, **IGNORED}),
    "dice and cross entropy of label sets": (segloss.dice_ce_loss, "labels", {**IGNORED, "label_sets": SETS}),
}
VOXEL_WEIGHTED = {
    "cross entropy": (segloss.cross_entropy, "labels", IGNORED),
    "cross entropy, probabilities": (segloss.cross_entropy, "probabilities", {}),
    "negative log likelihood": (segloss.nll_loss, "channel", {**WEIGHT, **IGNORED}),
    "focal, sigmoid": (segloss.focal_loss, "labels", {**IGNORED, **SIGMOID}),
    "dice and focal": (segloss.dice_focal_loss, "labels", IGNORED),
}
VOXEL_WEIGHT = {"voxel_weight": torch.linspace(0, 2, 90, dtype=torch.float64).view(3, 5, 6)}


def sharded_cases():
    """Each loss, sharded over the samples and over the rows."""
    reductions = [{"reduction": reduction} for reduction in ("mean", "sum", "none")]
    variants = [
        *product(LOSSES.items(), reductions),
        *product(LOSSES_OF_BATCHES.items(), [{"batch": False}, {"batch": True}]),
        *product(VOXEL_WEIGHTED.items(), [VOXEL_WEIGHT]),
    ]
    cases = {}
    for (name, (loss, kind, options)), more in variants:
        variant = " ".join(f"{key}={value}" if key != "voxel_weight" else key for key, value in more.items())
        for d in (0, 2):
            cases[f"{name}, {variant}, dim {d}"] = partial(agrees_sharded, loss, kind, d, {**options, **more})
    return cases


def mesh_of_two_dimensions():
    placements = [Shard(0), Shard(2)]
    assert agrees(segloss.dice_ce_loss, *tensors(), IGNORED, placements, mesh_sizes=(1, RANKS)) == placements


def class_dimension_last():
    logits = torch.linspace(-1, 1, 40, dtype=torch.float64).sin().view(2, 5, 4)
    labels = torch.arange(10).view(2, 5) % 4
    for loss, d in product((segloss.cross_entropy, segloss.dice_ce_loss), (0, 1)):
        placements = [Shard(d)]
        assert agrees(loss, logits, labels, {"dim": -1}, placements, placements) == placements


def small_logits(d):
    """Sharded over the samples, they stay so; over an axis that is resized, they are redistributed."""
    labels = torch.arange(3 * 80).view(3, 8, 10) % 4
    masks, logits = labels.unsqueeze(1).expand(3, 4, 8, 10) % 2, tensors()[0]
    for loss, target, options in (
        (segloss.cross_entropy, labels, {}),
        (segloss.cross_entropy, labels, {"reduction": "none"}),
        (segloss.dice_ce_loss, labels, {}),
        (segloss.focal_loss, masks, {**SIGMOID, "reduction": "sum"}),
    ):
        placements = agrees(loss, logits, target, {**options, "upsample": "bilinear"}, [Shard(d)], [Shard(0)])
        assert d != 0 or placements == [Shard(0)]


def sharded_otherwise(placement, target_placement):
    """Placements that have no rule are redistributed, and the results are right."""
    for loss in (segloss.cross_entropy, segloss.dice_ce_loss):
        agrees(loss, *tensors(), IGNORED, [placement], [target_placement])


def fewer_samples_than_ranks():
    logits, labels = tensors()
    agrees(segloss.dice_ce_loss, logits[:1], labels[:1], IGNORED, [Shard(0)])


def nothing_counts():
    logits, labels = tensors()
    for loss, empty in product((segloss.cross_entropy, segloss.focal_loss, segloss.dice_ce_loss), ("nan", "zero")):
        agrees(loss, logits, labels | 255, {**IGNORED, "empty": empty}, [Shard(0)])


def only_sums_are_sent(loss, d, messages):
    """The forward pass sends this many messages, and the backward pass none."""
    logits, labels = tensors(sizes=(4, 4, 6, 6))
    mesh = mesh_of(RANKS)
    sharded = distribute_tensor(logits, mesh, [Shard(d)]).requires_grad_()
    labels = distribute_tensor(labels, mesh, without_classes([Shard(d)]))
    with CommDebugMode() as forward:
        value = loss(sharded, labels, **IGNORED)
    with CommDebugMode() as backward:
        value.backward()
    assert (forward.get_total_counts(), backward.get_total_counts()) == (messages, 0)


def half_sums_do_not_overflow():
    logits = torch.zeros(2, 4, 2**16, dtype=torch.float16)
    labels = torch.zeros(2, 2**16, dtype=torch.uint8)
    mesh = mesh_of(RANKS)
    loss = segloss.cross_entropy(*(distribute_tensor(each, mesh, [Shard(0)]) for each in (logits, labels)))
    assert loss.dtype == torch.float16
    assert loss.item() == segloss.cross_entropy(logits, labels).item()


def module_with_weight():
    logits, labels = tensors()
    mesh = mesh_of(RANKS)
    criterion = segloss.CrossEntropyLoss(**WEIGHT, **IGNORED)
    expected = criterion(logits, labels)
    distribute_module(criterion, mesh)
    sharded = [distribute_tensor(each, mesh, [Shard(0)]) for each in (logits, labels)]
    assert_same(criterion(*sharded).full_tensor(), expected)


def total_weight():
    _, labels = tensors()
    mesh = mesh_of(RANKS)
    total = segloss.total_weight(distribute_tensor(labels, mesh, [Shard(0)]), **IGNORED)
    assert total.item() == (labels != 255).sum()


def losses_of_all_ranks_compete():
    options = {"k": 40, "ignore_index": 255, **WEIGHT}
    for d in (0, 2):
        agrees(segloss.topk_loss, *tensors(), options, [Shard(d)])
    agrees(segloss.topk_loss, *tensors(), {**options, "voxel_weight": torch.ones(3, 5, 6)}, [Shard(0)])


def voxels_of_all_ranks_are_sorted_together():
    for options, d in (({}, 0), ({"per_sample": True}, 0), ({"classes": [2, 0]}, 2), ({"classes": "all"}, 2)):
        agrees(segloss.lovasz_softmax_loss, *tensors(), {**options, **IGNORED}, [Shard(d)])
    for d in (0, 2):
        agrees(segloss.lovasz_hinge_loss, *tensors("masks"), {}, [Shard(d)])


def compiled():
    for loss in (segloss.cross_entropy, segloss.dice_ce_loss):
        agrees(torch.compile(loss, backend="aot_eager", fullgraph=True), *tensors(), IGNORED, [Shard(0)])


def second_derivative():
    def of(logits, labels):
        (gradient,) = torch.autograd.grad(segloss.cross_entropy(logits, labels, **IGNORED), logits, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), logits)[0]

    whole = tensors()
    sharded = [distribute_tensor(each, mesh_of(RANKS), [Shard(0)]) for each in whole]
    assert_same(of(sharded[0].requires_grad_(), sharded[1]).full_tensor(), of(whole[0].requires_grad_(), whole[1]))


def targets_stay_where_they_are():
    for op, kind, options in (("class_labels", "labels", (4, 255)), ("class_masks", "masks", (255,))):
        operator, (_, target) = getattr(torch.ops.segloss, op), tensors(kind)
        placements = (Shard(target.dim() - 1),)
        read = operator(op, distribute_tensor(target, mesh_of(RANKS), placements), *options)
        assert read.placements == placements
        assert_same(read.full_tensor(), operator(op, target, *options))


def errors():
    logits, labels = tensors()
    mesh = mesh_of(RANKS)
    x, y = (distribute_tensor(each, mesh, [Shard(0)]) for each in (logits, labels))
    for loss in (segloss.cross_entropy, segloss.dice_loss):
        with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
            loss(x, labels, **IGNORED)
        with pytest.raises(ValueError, match="no process_group with DTensors"):
            loss(x, y, **IGNORED, process_group=dist.group.WORLD)
        with pytest.raises(IndexError, match="Target 255 is out of bounds"):
            loss(x, y | 255)
        with pytest.raises(RuntimeError, match=r"expected labels of shape \[3, 5, 6\]"):
            loss(x, y[:, :4], **IGNORED)


def fully_sharded():
    """Trains a network whose parameters are DTensors for two steps, and another alone on the batches of both ranks."""

    def network():
        torch.manual_seed(0)
        layers = nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1)
        return nn.Sequential(*layers).double()

    def train(network, loss_of_step):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for step in range(2):
            optimizer.zero_grad()
            loss_of_step(step).backward()
            optimizer.step()

    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 5, 1, 4, 6, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, images.shape, dtype=torch.uint8, generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    labels[0, :2] = 255  # the whole first batch of rank 0
    ranks = [slice(0, 2), slice(2, 5)]
    for loss, options in ((segloss.cross_entropy, {}), (segloss.dice_ce_loss, {"batch": True})):
        alone = network()
        train(alone, lambda step: loss(alone(images[step]), labels[step], **IGNORED, **options))  # noqa: B023
        sharded = network()
        fully_shard(sharded, mesh=mesh_of(RANKS))
        own = ranks[dist.get_rank()]
        options = {**options, **IGNORED, "process_group": dist.group.WORLD}
        train(sharded, lambda step: loss(sharded(images[step, own]), labels[step, own], **options))  # noqa: B023
        for actual, expected in zip(sharded.parameters(), alone.parameters(), strict=True):
            assert_same(actual.full_tensor(), expected)


CASES = {
    **sharded_cases(),
    "mesh of two dimensions": mesh_of_two_dimensions,
    "class dimension last": class_dimension_last,
    "sharded over the classes": partial(sharded_otherwise, Shard(1), Replicate()),
    "labels on every rank": partial(sharded_otherwise, Shard(0), Replicate()),
    "labels sharded otherwise": partial(sharded_otherwise, Shard(0), Shard(1)),
    "small logits, batch": partial(small_logits, 0),
    "small logits, space": partial(small_logits, 2),
    "fewer samples than ranks": fewer_samples_than_ranks,
    "nothing counts": nothing_counts,
    "messages of cross entropy, batch": partial(only_sums_are_sent, segloss.cross_entropy, 0, 2),
    "messages of cross entropy, space": partial(only_sums_are_sent, segloss.cross_entropy, 2, 2),
    "messages of dice, batch": partial(only_sums_are_sent, segloss.dice_loss, 0, 3),
    "messages of dice, space": partial(only_sums_are_sent, segloss.dice_loss, 2, 3),
    "messages of dice and focal, space": partial(only_sums_are_sent, segloss.dice_focal_loss, 2, 5),
    "half precision": half_sums_do_not_overflow,
    "module with weight": module_with_weight,
    "total weight": total_weight,
    "top-k": losses_of_all_ranks_compete,
    "Lovasz": voxels_of_all_ranks_are_sorted_together,
    "compiled": compiled,
    "second derivative": second_derivative,
    "targets": targets_stay_where_they_are,
    "errors": errors,
    "fully sharded": fully_sharded,
}


def run_rank(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, store=store, timeout=timedelta(seconds=60))
    failures = {}
    for name, run in CASES.items():
        try:
            run()
        except Exception:
            failures[name] = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()


# ---- what went wrong ----


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """The tracebacks of each rank, by case."""
    folder = tmp_path_factory.mktemp("dtensor")
    mp.spawn(run_rank, args=(folder,), nprocs=RANKS)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_ranks_agree_with_the_whole(failures, name):
    problems = [f"rank {rank}:\n{each[name]}" for rank, each in enumerate(failures) if name in each]
    assert not problems, "\n".join(problems)
