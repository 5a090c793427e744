"""SegmentationReport and segloss.evaluate against nnU-Net's evaluation: numbers and layout of summary.json."""

import json

import nibabel
import numpy as np
import pytest
import torch

from segloss import SegmentationReport, evaluate

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed: pip install nnunetv2==2.8.1")
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, compute_metrics_on_folder, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

pytestmark = pytest.mark.cpu_only

CLASSES, IGNORED, CASES = 4, 9, 11


@pytest.fixture
def folders(tmp_path):
    """Predictions and labels of some cases, of which some lack a class in one or in both."""
    generator = np.random.default_rng(0)
    for name in ("pred", "ref"):
        (tmp_path / name).mkdir()
    for k in range(CASES):
        labels = generator.integers(0, CLASSES, (9, 8, 7), dtype=np.uint8)
        predicted = np.where(generator.random(labels.shape) < 0.7, labels, 0).astype(np.uint8)
        if k % 3 == 0:
            predicted[predicted == 1] = 0
        if k == 3:
            labels[labels == 1] = 0
        labels[generator.random(labels.shape) < 0.1] = IGNORED
        for name, array in (("pred", predicted), ("ref", labels)):
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 2, 3, 1])), tmp_path / name / f"case_{k:02}.nii.gz")
    return tmp_path


@pytest.mark.parametrize("parts", [[1, 2, 3], [0, 1, 2, 3], [1, 2, 3, (1, 2, 3), (3, 1)]])
def test_the_summary_is_that_of_nnunet(folders, parts, capsys):
    pred, ref = str(folders / "pred"), str(folders / "ref")
    theirs = folders / "theirs.json"
    compute_metrics_on_folder(ref, pred, str(theirs), SimpleITKIO(), ".nii.gz", parts, IGNORED, num_processes=1)
    options = ["--num-classes", str(CLASSES), "--ignore-index", str(IGNORED), "--output", str(folders / "out")]
    options += ["--include-background"] * (0 in parts)
    for region in parts:
        options += ["--regions", ",".join(map(str, region))] if isinstance(region, tuple) else []
    assert evaluate.main([pred, ref, *options]) == 0
    ours = folders / "out/summary.json"
    assert list(json.loads(ours.read_text())) == list(json.loads(theirs.read_text()))
    assert load_summary_json(str(ours))["mean"].keys() == load_summary_json(str(theirs))["mean"].keys()
    got, expected = (json.loads(path.read_text()) for path in (ours, theirs))
    assert str(got["metric_per_case"]) == str(expected["metric_per_case"])  # nan is not equal to itself
    for key, means in {**expected["mean"], None: expected["foreground_mean"]}.items():
        assert (got["foreground_mean"] if key is None else got["mean"][key]) == pytest.approx(
            means, rel=1e-14, nan_ok=True
        )


def test_each_case_has_the_numbers_of_compute_metrics(folders):
    report = SegmentationReport(CLASSES, regions={"whole": (1, 2, 3)}, ignore_index=IGNORED)
    for k in range(CASES):
        files = [str(folders / name / f"case_{k:02}.nii.gz") for name in ("pred", "ref")]
        tensors = [torch.from_numpy(np.asarray(nibabel.load(file).dataobj))[None, None] for file in files]
        report.update(*tensors, ids=[k])
        metrics = compute_metrics(files[1], files[0], SimpleITKIO(), [1, 2, 3, (1, 2, 3)], IGNORED)["metrics"]
        for name, key in {"1": 1, "2": 2, "3": 3, "whole": (1, 2, 3)}.items():
            numbers = report.cases()[k][name]
            for ours, theirs in {"dice": "Dice", "iou": "IoU", "tp": "TP", "fp": "FP", "fn": "FN", "tn": "TN"}.items():
                np.testing.assert_equal(numbers[ours], metrics[key][theirs])
