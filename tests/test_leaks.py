"""Memory stays where it is: over many calls, over a thousand errors, and over large gradients of any sizes."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = [pytest.mark.cpu_only, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

SETUP = """
    import gc, random
    from pathlib import Path
    import torch, segloss

    def grown(run, times):
        "Bytes of resident memory that `times` calls of run() have added, after a tenth as many that may."
        def resident():
            gc.collect()
            return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

        for _ in range(times // 10):
            run()
        before = resident()
        for _ in range(times):
            run()
        return resident() - before

    torch.set_num_threads(1)
    x, labels = torch.randn(2, 3, 4), torch.randint(3, (2, 4)).to(torch.uint8)
    one_hot, weight = torch.eye(3, dtype=torch.uint8)[labels.long()].movedim(-1, 1), torch.ones(3)
    with_grad = x.clone().requires_grad_()
"""


def grown(code):
    """Runs SETUP and the code in a process of its own; returns the number that they print."""
    code = textwrap.dedent(SETUP) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_two_hundred_thousand_calls_leave_resident_memory_flat():
    """More than half of them are of cross entropy, and three of every 50 calls run backward."""
    code = """
        calls = 25 * [lambda: segloss.cross_entropy(x, labels)]
        calls += 7 * [lambda: segloss.total_weight(labels)]
        calls += 6 * [lambda: segloss.confusion_matrix(x, labels)]
        calls += 4 * [lambda: segloss.nll_loss(x, labels, weight)]
        calls += 2 * [lambda: segloss.accuracy(x, labels)]
        calls += 2 * [lambda: segloss.cross_entropy(x, one_hot)]
        calls += [lambda: segloss.focal_loss(x, labels, activation="sigmoid")]
        losses = 2 * [segloss.cross_entropy] + [lambda x, y: segloss.soft_stats(x, y)[0].sum()]

        def run():
            for call in calls:
                call()
            for loss in losses:
                loss(with_grad, labels).backward()
                with_grad.grad = None

        times = 100_000 // (len(calls) + len(losses))
        print(min(grown(run, times) for _ in range(2)))  # a leak shows in both, a step of the heap in one
    """
    assert grown(code) < 100_000  # a byte per call


def test_a_thousand_errors_leave_resident_memory_flat():
    code = """
        bad_calls = [
            lambda: segloss.cross_entropy(with_grad, labels + 3),
            lambda: segloss.cross_entropy(with_grad, labels[:1]),
            lambda: segloss.nll_loss(with_grad, labels, torch.ones(7)),
            lambda: segloss.focal_loss(with_grad, labels + 3, activation="sigmoid"),
            lambda: segloss.soft_stats(with_grad, labels + 3),
            lambda: segloss.dice_ce_loss(with_grad, labels.float() + 0.5),
            lambda: segloss.total_weight(labels + 3, torch.ones(3)),
            lambda: segloss.accuracy(x, labels + 3),
            lambda: segloss.confusion_matrix(labels, labels + 3, 3),
            lambda: segloss.cross_entropy(x.argmax(1), labels),
        ]

        def run():
            for call in bad_calls:
                try:
                    call()
                except (IndexError, RuntimeError, TypeError, ValueError):
                    continue
                raise AssertionError("a call was accepted")

        print(grown(run, 1000))
    """
    assert grown(code) < 1_000_000


def test_large_gradients_of_any_sizes_leave_resident_memory_flat():
    """Their memory is kept for the next ones, but no more than was in use at once: two gradients of 4 to 8 MiB."""
    code = """
        choose, alive = random.Random(0), []

        def run():
            size = choose.randrange(2**18, 2**19)
            logits = torch.zeros(1).expand(1, 4, size).requires_grad_()
            labels = torch.zeros(1, dtype=torch.uint8).expand(1, size)
            alive[:-1] = []
            alive.append(torch.autograd.grad(segloss.cross_entropy(logits, labels), logits)[0])

        print(grown(run, 100))
    """
    assert grown(code) < 4 * 2**20
