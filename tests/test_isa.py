"""Every instruction set gives the reference's values, and torch's threads are used.

The instruction set is chosen once, when segloss is loaded, so each runs in a process of its own: this file as a script.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import reference
import torch
from tolerances import CONFIDENT_RTOL, assert_close, assert_relative

ISAS = ["baseline", "avx2", "avx512"]
NEEDS = {"baseline": [], "avx2": ["avx2", "fma"], "avx512": ["avx512f", "avx512vl", "avx512dq", "avx512bw", "fma"]}


def processor_flags():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])


def needed(isa):
    missing = [flag for flag in NEEDS[isa] if flag not in processor_flags()]
    return pytest.param(isa, marks=pytest.mark.skipif(bool(missing), reason=f"this processor lacks {missing}"))


def run(command, isa=None):
    """A fresh Python with the import path of this one; `isa` forces the instruction set."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.pop("SEGLOSS_ISA", None)
    if isa is not None:
        environment["SEGLOSS_ISA"] = isa
    command = [sys.executable, *command]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def run_code(code, isa=None):
    return run(["-c", textwrap.dedent(code)], isa)


# ---- the compact suite: what this file does when it is run as a script ----


def cases():
    """Input, target and keywords: every dtype, memory order, kind of target and end of a block."""
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for num_classes, num_voxels in ((2, 200), (5, 64), (131, 67)):
            x = torch.randn(2, num_classes, num_voxels).mul(4).to(dtype)
            labels = torch.randint(num_classes, (2, num_voxels)).to(torch.uint8)
            labels[0, ::5] = 255
            keywords = {
                "ignore_index": 255,
                "weight": torch.rand(num_classes),
                "voxel_weight": torch.rand(2, num_voxels),
            }
            interleaved = x.movedim(1, -1).contiguous().movedim(-1, 1)
            for input in (x, interleaved):
                yield input, labels, {"ignore_index": 255}
                yield input, labels, {**keywords, "label_smoothing": 0.2}
                yield input, torch.rand(2, num_classes, num_voxels).to(dtype), {"label_smoothing": 0.2}


def check_values_and_gradients():
    import segloss

    for input, target, keywords in cases():
        x = input.detach().requires_grad_()
        losses = segloss.cross_entropy(x, target, reduction="none", **keywords)
        (grad,) = torch.autograd.grad(losses, x, torch.ones_like(losses))
        expected, expected_grad = reference.value_and_gradient(
            reference.cross_entropy, input, target, reduction="none", **keywords
        )
        assert_close(losses.detach(), expected)
        assert_close(grad, expected_grad)


def check_confident_voxels():
    import segloss

    margin = torch.linspace(0, 80, 1000)
    x = torch.stack([margin, torch.zeros(1000), -margin], dim=1).requires_grad_()
    labels = torch.zeros(1000, dtype=torch.uint8)
    losses = segloss.cross_entropy(x, labels, reduction="none")
    (grad,) = torch.autograd.grad(losses.sum(), x)
    expected, expected_grad = reference.value_and_gradient(reference.cross_entropy, x, labels, reduction="none")
    assert_relative(losses.detach(), expected, CONFIDENT_RTOL)
    assert_relative(grad[:, 0], expected_grad[:, 0], CONFIDENT_RTOL)


def check_special_values():
    import segloss

    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[0.0, nan], [nan, nan], [0.0, inf], [0.0, -inf], [-inf, 0.0], [-inf, -inf]])
    labels = torch.tensor([0, -100, 0, 0, 0, 0])
    losses = segloss.cross_entropy(x, labels, reduction="none")
    assert_close(losses, torch.tensor([nan, 0.0, nan, 0.0, inf, nan]))
    try:
        segloss.cross_entropy(x, torch.tensor([0, 1, 0, 2, 0, 0]))
    except IndexError as error:
        assert "index [3]" in str(error)  # noqa: PT017  no pytest in here
    else:
        raise AssertionError("a bad label was accepted")


def check_accuracy():
    import segloss

    x, labels = torch.randn(2, 131, 67), torch.randint(131, (2, 67))
    labels[0] = x[0].argmax(0)
    assert_close(segloss.accuracy(x, labels), torch.tensor(reference.accuracy(x, labels)))


def check_one_hot():
    import segloss

    x, labels = torch.randn(2, 5, 67), torch.randint(5, (2, 67))
    one_hot = torch.nn.functional.one_hot(labels, 5).movedim(-1, 1)
    assert torch.equal(segloss.cross_entropy(x, one_hot), segloss.cross_entropy(x, labels))


CHECKS = {
    "values and gradients": check_values_and_gradients,
    "confident voxels": check_confident_voxels,
    "special values": check_special_values,
    "accuracy": check_accuracy,
    "one-hot": check_one_hot,
}


# ---- tests ----


@pytest.mark.parametrize("isa", [needed(isa) for isa in ISAS])
def test_an_instruction_set_can_be_forced_and_gives_the_references_values(isa):
    done = run([__file__], isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [isa, *CHECKS]


@pytest.mark.parametrize("isa", ["", None], ids=["empty", "unset"])
def test_without_a_choice_the_best_instruction_set_is_taken(isa):
    best = [name for name in ISAS if not [flag for flag in NEEDS[name] if flag not in processor_flags()]][-1]
    done = run_code("import segloss; print(segloss.get_isa())", isa)
    assert done.stdout.strip() == best, done.stderr


def test_an_unknown_instruction_set_fails_the_import_with_a_value_error():
    code = """
        try:
            import segloss
        except ValueError as error:
            print(error)
    """
    done = run_code(code, "sse9")
    assert done.returncode == 0, done.stderr
    assert "expected SEGLOSS_ISA to be baseline, avx2 or avx512" in done.stdout
    assert "got 'sse9'" in done.stdout


def test_this_process_knows_its_instruction_set():
    import segloss

    assert segloss.get_isa() in ISAS


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc, which Linux has")
@pytest.mark.parametrize("call", ["cross_entropy", "accuracy"])
def test_the_kernels_start_torchs_threads(call):
    """Nothing before the call has work enough for a second thread: its threads are the kernels'."""
    code = f"""
        import os
        import torch, segloss
        torch.set_num_threads(3)
        x, labels = torch.zeros(1).expand(1, 2, 100_000), torch.zeros(1, dtype=torch.uint8).expand(1, 100_000)
        before = set(os.listdir("/proc/self/task"))
        segloss.{call}(x, labels)
        print(len(set(os.listdir("/proc/self/task")) - before))
    """
    done = run_code(code)
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc, which Linux has")
def test_one_thread_stays_one_thread():
    code = """
        import os
        import torch, segloss
        torch.set_num_threads(1)
        x, labels = torch.zeros(1).expand(1, 2, 100_000), torch.zeros(1, dtype=torch.uint8).expand(1, 100_000)
        before = set(os.listdir("/proc/self/task"))
        segloss.cross_entropy(x, labels)
        print(len(set(os.listdir("/proc/self/task")) - before))
    """
    done = run_code(code)
    assert done.stdout.strip() == "0", done.stderr


if __name__ == "__main__":
    import segloss

    print(segloss.get_isa())
    for name, check in CHECKS.items():
        check()
        print(name)
