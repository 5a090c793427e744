"""What only a GPU can show; skipped without one. The other tests run on a GPU, too: see conftest.py."""

from functools import partial

import pytest
import torch
from tolerances import assert_close

import segloss

HAS_KERNELS = torch._C._dispatch_has_kernel_for_dispatch_key("segloss::cross_entropy_forward", "CUDA")
OF_KERNELS = pytest.mark.skipif(not HAS_KERNELS, reason="segloss is built without its CUDA kernels: SEGLOSS_CUDA=1")
LOSSES = pytest.mark.parametrize("loss", [segloss.cross_entropy, segloss.dice_ce_loss])
SHAPE = (2, 5, 40, 65, 70)


@pytest.fixture(autouse=True)
def _gpu(device):
    if device == "cpu":
        pytest.skip("a GPU's turn, where torch finds one")


@pytest.fixture
def without_checks_at_once(monkeypatch):
    """As for users: unsets the variable that conftest.py sets so that errors are raised at once."""
    monkeypatch.delenv("SEGLOSS_SYNC_CHECKS")


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def logits_and_labels():
    return torch.randn(SHAPE, requires_grad=True), torch.randint(SHAPE[1], (SHAPE[0], 1, *SHAPE[2:])).to(torch.uint8)


def value_and_gradient(loss, x, y):
    value = loss(x, y)
    return value.detach(), torch.autograd.grad(value, x)[0]


@LOSSES
@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms_give_the_same_bits_again(loss):
    x, y = logits_and_labels()
    first, second = value_and_gradient(loss, x, y), value_and_gradient(loss, x, y)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@LOSSES
@pytest.mark.usefixtures("without_checks_at_once")
def test_a_bad_label_is_an_index_error_and_the_device_stays_usable(loss):
    x, y = logits_and_labels()
    x, bad = x.detach(), y.clone()
    bad[1, 0, 3, 4, 5] = 200
    if HAS_KERNELS:
        assert loss(x, bad).isnan().item()  # .item() waits for the device
        reported = r"Target 200 is out of bounds, the first of 1, at index \[1, 0, 3, 4, 5\] .* an earlier one"
        with pytest.raises(IndexError, match=reported):
            loss(x, y)
    else:
        with pytest.raises(IndexError, match=r"Target 200 is out of bounds: 1 label .* index \[1, 0, 3, 4, 5\]"):
            loss(x, bad)
    assert_close(loss(x, y), loss(x.cpu(), y.cpu()).to(x.device))


@OF_KERNELS
@LOSSES
@pytest.mark.usefixtures("without_checks_at_once")
def test_synchronize_raises_what_the_last_call_refused(loss):
    x, y = logits_and_labels()
    bad = y.clone()
    bad[1, 0, 3, 4, 5] = 200
    loss(x, bad)
    with pytest.raises(IndexError, match="and synchronize is the first to see it"):
        segloss.synchronize()
    segloss.synchronize(x.device)


def captured(function):
    """A CUDA graph of a call, and the results that its replays overwrite."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # torch requires a first call on a stream that is not captured
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


@OF_KERNELS
@pytest.mark.parametrize("ignore_index", [-100, 255])
@pytest.mark.parametrize("factor", [1.0, 0.5])
@LOSSES
@pytest.mark.usefixtures("without_checks_at_once")
def test_a_cuda_graph_gives_the_value_and_the_gradient_of_other_logits_and_labels(loss, factor, ignore_index):
    x, y = logits_and_labels()
    step = partial(value_and_gradient, lambda x, y: loss(x, y, ignore_index=ignore_index) * factor, x, y)
    graph, actual = captured(step)
    x.detach().copy_(torch.randn(SHAPE))
    y.copy_(y.flip(2))
    y[0, 0, :7] = ignore_index if ignore_index > 0 else 1
    graph.replay()
    for a, e in zip(actual, step(), strict=True):
        assert_close(a, e)
    y[1, 0, 3, 4, 5] = 200
    graph.replay()
    with pytest.raises(IndexError, match=r"Target 200 is out of bounds, the first of 1, at index \[1, 0, 3, 4, 5\]"):
        segloss.synchronize()


@OF_KERNELS
@pytest.mark.usefixtures("without_checks_at_once")
def test_a_cuda_graph_gives_scores_and_predictions_of_other_logits():
    x, y = logits_and_labels()
    x = x.detach()

    def scores():
        prediction = segloss.predict(x)
        maps = segloss.accuracy(prediction, y.squeeze(1))
        return prediction, maps, segloss.dice_score(x, y), segloss.confusion_matrix(prediction, y.squeeze(1), SHAPE[1])

    graph, actual = captured(scores)
    x.copy_(torch.randn(SHAPE))
    graph.replay()
    for a, e in zip(actual, scores(), strict=True):
        assert_close(a, e)


@OF_KERNELS
@LOSSES
@pytest.mark.usefixtures("without_checks_at_once")
def test_a_cuda_graph_interpolates_other_logits(loss):
    x, y = torch.randn(2, 5, 10, 13, 14, requires_grad=True), logits_and_labels()[1]
    step = partial(value_and_gradient, partial(loss, upsample="trilinear"), x, y)
    graph, actual = captured(step)
    x.detach().copy_(torch.randn(x.shape))
    graph.replay()
    for a, e in zip(actual, step(), strict=True):
        assert_close(a, e)


@OF_KERNELS
@LOSSES
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.usefixtures("without_checks_at_once")
def test_the_host_does_not_wait_for_the_device(loss):
    x, y = logits_and_labels()
    value_and_gradient(loss, x, y)  # the first call allocates pinned memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        value_and_gradient(loss, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@OF_KERNELS
@LOSSES
@pytest.mark.usefixtures("without_checks_at_once")
def test_peak_memory_is_hardly_more_than_the_gradient(loss):
    x, y = logits_and_labels()
    value_and_gradient(loss, x, y)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value_and_gradient(loss, x, y)
    assert torch.cuda.max_memory_allocated() - before < 1.1 * x.nbytes
