"""The example runs, and its losses agree with torch's while rounding has not yet been amplified by training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    pytest.importorskip("nilearn")
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, ROOT / "examples" / "mni152.py", "--compare", "--steps", "3", "--output", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_example_reports_loss_accuracy_and_dice_of_each_class(output):
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["steps"] == 3
    assert 0 < metrics["loss"]["last"] < 2
    assert 0 < metrics["accuracy"] < 1
    assert set(metrics["dice"]) == {"background", "CSF and rest", "grey matter", "white matter"}


def test_the_example_trains_the_same_with_torchs_loss(output):
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["comparison"]["difference of the loss curves, first 10 steps"]["max"] < 1e-4
    assert metrics["torch"]["accuracy"] == pytest.approx(metrics["accuracy"], abs=1e-3)


@pytest.mark.parametrize("picture", ["loss.png", "slices.png"])
def test_the_example_draws(output, picture):
    assert (output / picture).read_bytes().startswith(b"\x89PNG")
