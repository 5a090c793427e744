"""An error on one rank raises on all: a rank whose data are refused still takes part in the communication.

The processes are started once for each number of ranks; they run every case and write their results to files.
"""

import gc
import re
import time
import weakref
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from losses import BATCH, VARIANTS, takes

import segloss

pytestmark = pytest.mark.cpu_only

TIMEOUT, SECONDS = 60, 20  # the timeout of the group; the time in which all ranks must raise
ON_RANKS = {2: [(0,), (1,), (0, 1)], 3: [(1,), (0, 2)]}
OTHERS = "expected sums from every rank of process_group, got an error on rank"


def total_weight(input, target, **options):
    return segloss.total_weight(target, torch.ones(input.shape[1]), **options)


LOSSES = {
    **{name: loss for name, loss in VARIANTS.items() if takes(loss, "process_group")},
    "cross_entropy, sum": partial(segloss.cross_entropy, reduction="sum"),
    "dice_loss, sum": partial(segloss.dice_loss, reduction="sum"),
    "terms of dice_loss of the batch": partial(segloss.dice_loss, reduction="none", **BATCH),
    "weighted dice_loss": partial(segloss.dice_loss, weight=torch.tensor([1.0, 2.0, 3.0])),
    "total_weight": total_weight,
}
BAD_LABEL = (IndexError, r"Target 7 is out of bounds: 1 label is outside \[0, 3\), the first at index \[0, 1\]")


def data(world_size):
    """Logits [2 N, 3, 4] and labels [2 N, 4] of N ranks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * world_size, 3, 4, generator=generator)
    return x, torch.randint(3, (2 * world_size, 4), generator=generator)


def with_a_bad_label(x, y):
    y = y.clone()
    y[0, 1] = 7
    return x, y


# Other data that an operator refuses: the loss, what changes the data, the error.
REFUSED = {
    "a mask of 2": (
        LOSSES["sigmoid dice_focal_loss"],
        lambda x, y: (x, torch.full(x.shape, 2)),
        (RuntimeError, "expected 0 and 1 in an integer target"),
    ),
    "a label of 0.5": (
        LOSSES["squared dice_loss of the batch"],
        lambda x, y: (x, y + 0.5),
        (RuntimeError, "expected integral labels"),
    ),
    "no one-hot": (
        LOSSES["focal_loss"],
        lambda x, y: (x, torch.ones(x.shape, dtype=torch.int64)),
        (RuntimeError, "Expected floating point type"),
    ),
    "probabilities for labels": (
        LOSSES["focal_loss"],
        lambda x, y: (x, x.softmax(1)),
        (RuntimeError, "expected class labels, got class probabilities"),
    ),
    "another shape": (
        LOSSES["generalized_dice_loss of the batch"],
        lambda x, y: (x, y[:, :2]),
        (RuntimeError, "expected labels of shape"),
    ),
    "fewer samples": (LOSSES["cross_entropy"], lambda x, y: (x, y[:1]), (ValueError, "expected labels of shape")),
}


def outcome(loss, x, y, group):
    """What was raised, as (class, text, seconds), or the loss."""
    start = time.monotonic()
    try:
        return loss(x, y, process_group=group)
    except Exception as error:
        return type(error), str(error), time.monotonic() - start


def start(rank, world_size, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store, timeout=timeout)


def run_rank(rank, world_size, folder):
    start(rank, world_size, folder)
    group = dist.group.WORLD
    good = [each.split(2)[rank] for each in data(world_size)]
    got = {}
    for ranks in ON_RANKS[world_size]:
        for name, loss in LOSSES.items():
            mine = with_a_bad_label(*good) if rank in ranks else good
            got[name, ranks] = outcome(loss, *mine, group), loss(*good, process_group=group)
    for name, (loss, spoil, _) in REFUSED.items():
        got[name] = outcome(loss, *(spoil(*good) if rank == 0 else good), group)
    got["own terms"] = outcome(
        partial(segloss.dice_loss, reduction="none"), *(with_a_bad_label(*good) if rank == 0 else good), group
    )
    last = dist.new_group([world_size - 2, world_size - 1])
    if rank >= world_size - 2:
        mine = with_a_bad_label(*good) if rank == world_size - 1 else good
        got["subgroup"] = outcome(segloss.dice_loss, *mine, last)
    torch.save(got, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=list(ON_RANKS))
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    mp.spawn(run_rank, (request.param, folder), request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


def assert_raised(got, expected, text):
    kind, message, seconds = got
    assert kind is expected
    assert re.search(text, message)
    assert seconds < SECONDS


@pytest.mark.parametrize("name", LOSSES)
def test_a_bad_label_raises_on_every_rank_within_seconds(ranks, name):
    for bad in ON_RANKS[len(ranks)]:
        names = f"{OTHERS} {bad[0]}\\." if len(bad) == 1 else f"{OTHERS}s {', '.join(map(str, bad))}\\."
        for rank, got in enumerate(ranks):
            assert_raised(got[name, bad][0], *(BAD_LABEL if rank in bad else (RuntimeError, names)))


@pytest.mark.parametrize("name", LOSSES)
def test_the_next_call_gives_the_loss_of_the_whole_batch(ranks, name):
    whole = LOSSES[name](*data(len(ranks)))
    for bad in ON_RANKS[len(ranks)]:
        for got in ranks:
            torch.testing.assert_close(got[name, bad][1], whole)


@pytest.mark.parametrize("name", REFUSED)
def test_whatever_an_operator_refuses_raises_on_every_rank(ranks, name):
    assert_raised(ranks[0][name], *REFUSED[name][2])
    for got in ranks[1:]:
        assert_raised(got[name], RuntimeError, f"{OTHERS} 0\\.")


def test_without_a_message_the_others_keep_their_terms(ranks):
    assert_raised(ranks[0]["own terms"], *BAD_LABEL)
    assert all(got["own terms"].shape == (2, 3) for got in ranks[1:])


def test_a_rank_is_named_by_its_number_in_the_group_and_among_all(ranks):
    assert_raised(ranks[-1]["subgroup"], *BAD_LABEL)
    name = "1" if len(ranks) == 2 else r"1 \(of all processes: 2\)"
    assert_raised(ranks[-2]["subgroup"], RuntimeError, f"^dice_loss: {OTHERS} {name}\\.")


# ---- in one process ----


@pytest.fixture
def group(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_keeps_the_logits_of_a_refused_call(group, name):
    x, y = with_a_bad_label(*data(1))
    LOSSES[name](*data(1), process_group=group)  # what torch imports for its first message keeps its callers alive
    gc.disable()
    with pytest.raises(IndexError):
        LOSSES[name](x, y, process_group=group)
    logits = weakref.ref(x)
    del x
    gc.enable()
    assert logits() is None


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_loss_raises_its_error_at_once(group, name):
    torch._dynamo.reset()
    loss = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    x, y = data(1)
    torch.testing.assert_close(loss(x, y, process_group=group), LOSSES[name](x, y))
    with pytest.raises(IndexError, match=BAD_LABEL[1]):
        loss(*with_a_bad_label(x, y), process_group=group)
