"""The example runs, and its loss agrees with plain PyTorch's as long as training has not amplified the rounding."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import assert_close

pytestmark = pytest.mark.cpu_only

EXAMPLE = Path(__file__).parent.parent / "examples" / "mni152.py"
CLASSES = ["background", "CSF and rest", "grey matter", "white matter"]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    pytest.importorskip("nilearn")
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, EXAMPLE, "--compare", "--steps", "3", "--output", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def metrics(output):
    return json.loads((output / "metrics.json").read_text())


def test_the_example_trains_with_dice_and_cross_entropy(metrics):
    assert metrics["loss"] == "dice_ce"
    assert metrics["steps"] == 3
    assert 0 < metrics["training_loss"]["last"] < 3


def test_the_example_reports_scores_that_agree_with_its_confusion_matrix(metrics):
    confusion = np.array(metrics["confusion_matrix"])
    correct, sizes = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    assert list(metrics["dice"]) == CLASSES
    assert list(metrics["jaccard"]) == CLASSES
    assert metrics["accuracy"] == pytest.approx(correct.sum() / confusion.sum())
    assert list(metrics["dice"].values()) == pytest.approx(2 * correct / sizes)
    assert list(metrics["jaccard"].values()) == pytest.approx(correct / (sizes - correct))


def test_the_example_trains_the_same_with_plain_pytorch(metrics):
    assert metrics["comparison"]["difference of the loss curves, first 10 steps"]["max"] < 1e-4
    assert metrics["torch"]["accuracy"] == pytest.approx(metrics["accuracy"], abs=1e-3)


def test_two_processes_train_on_halves_of_the_same_batches(metrics, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command = [*torchrun, "--rdzv-endpoint=localhost:0", EXAMPLE, "--steps", "3", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    of_two = json.loads((tmp_path / "metrics.json").read_text())
    # Batch normalisation sees halves, so the nets are not quite the same.
    assert of_two["training_loss"]["last"] == pytest.approx(metrics["training_loss"]["last"], rel=0.05)
    assert of_two["accuracy"] == pytest.approx(metrics["accuracy"], abs=0.1)


def test_torchrun_refuses_what_one_process_does_alone():
    command = [sys.executable, "-m", "torch.distributed.run", EXAMPLE, "--loss", "topk", "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "torchrun: expected neither --compare nor --loss topk" in done.stderr


@pytest.mark.parametrize("picture", ["loss.png", "slices.png"])
def test_the_example_draws(output, picture):
    assert (output / picture).read_bytes().startswith(b"\x89PNG")


# ---- its parts, without training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("nilearn")
    spec = importlib.util.spec_from_file_location("mni152", EXAMPLE)
    module = sys.modules["mni152"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mni152"]


@pytest.fixture
def batch():
    """Logits and labels, a fifth of which are 255."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 5, 4, generator=generator, requires_grad=True)
    labels = torch.randint(4, (2, 1, 6, 5, 4), generator=generator, dtype=torch.uint8)
    return logits, labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.2, 255)


def test_every_loss_of_the_example_leaves_out_ignored_voxels(example, batch):
    logits, labels = batch
    for name, loss in example.LOSSES.items():
        gradient = torch.autograd.grad(loss(logits, labels), logits)[0].abs().sum(1, keepdim=True)
        assert (gradient[labels == 255] == 0).all(), name
        assert gradient.max() > 1e-4, name


@pytest.mark.parametrize("loss", ["dice_ce", "cross_entropy"])
def test_the_examples_plain_pytorch_gives_value_and_gradient_of_segloss(example, batch, loss):
    logits, labels = batch
    values = [losses[loss](logits, labels) for losses in (example.LOSSES, example.TORCH_LOSSES)]
    assert_close(*values)
    assert_close(*(torch.autograd.grad(value * labels.numel(), logits)[0] for value in values))


class StopTraining(Exception):
    pass


@pytest.mark.parametrize("loss", ["cross_entropy", "topk"])
def test_the_example_takes_the_loss_asked_for(example, monkeypatch, loss):
    monkeypatch.setattr(sys, "argv", ["mni152.py", "--loss", loss])
    trained = []

    def stop(name, criterion, *_):
        trained.append(criterion)
        raise StopTraining

    monkeypatch.setattr(example, "load_hemispheres", lambda: (None, None, None))
    monkeypatch.setattr(example, "train_and_score", stop)
    with pytest.raises(StopTraining):
        example.main()
    assert trained == [example.LOSSES[loss]]


def test_the_example_says_which_losses_it_can_compare(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mni152.py", "--loss", "focal", "--compare"])
    with pytest.raises(SystemExit):
        example.main()
    assert "--compare: expected --loss dice_ce or cross_entropy, got focal" in capsys.readouterr().err
