"""The examples of regions, of ids, of partial labels, of small logits and of an export run, and give what they say."""

import pytest
import torch
from example_scripts import load_example

import segloss

pytestmark = pytest.mark.cpu_only


def test_regions_of_brats(monkeypatch, capsys):
    brats = load_example("brats_regions", monkeypatch)
    losses, scores = brats.train(steps=6)
    assert losses[-1] < losses[0]
    assert scores.shape == (3,)
    brats.main(["--steps", "2"])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in printed[1:]] == [f"Dice score, {name}" for name in brats.REGIONS]


def test_the_volumes_of_the_example_have_the_labels_of_brats(monkeypatch):
    brats = load_example("brats_regions", monkeypatch)
    _, labels = brats.volumes(2, torch.Generator().manual_seed(0))
    assert labels.unique().tolist() == [0, 1, 2, 4]
    masks = [torch.isin(labels[:, 0], torch.tensor(values)) for values in ((1, 2, 4), (1, 4), (4,))]
    logits = torch.randn(2, 3, *labels.shape[2:])
    options = {"regions": list(brats.REGIONS.values()), "label_map": brats.LABEL_MAP, "activation": "sigmoid"}
    expected = segloss.dice_ce_loss(logits, torch.stack(masks, 1), activation="sigmoid")
    assert segloss.dice_ce_loss(logits, labels, **options) == expected


def test_ids_of_cityscapes(monkeypatch, capsys):
    cityscapes = load_example("cityscapes_ids", monkeypatch)
    losses, score = cityscapes.train(steps=10)
    assert losses[-1] < losses[0]
    assert 0 < score < 1
    cityscapes.main(["--steps", "2"])
    assert "mean IoU of 19 classes" in capsys.readouterr().out


def test_the_table_of_the_example_is_that_of_cityscapes(monkeypatch):
    cityscapes = load_example("cityscapes_ids", monkeypatch)
    assert [label for label, c in cityscapes.LABEL_MAP.items() if c is None] == [
        *range(7), 9, 10, 14, 15, 16, 18, 29, 30
    ]  # fmt: skip
    assert [cityscapes.LABEL_MAP[label] for label in (7, 11, 26, 33)] == [0, 2, 13, 18]


def test_two_partially_labelled_data_sets(monkeypatch, capsys):
    pytest.importorskip("nilearn")
    partial = load_example("partial_labels", monkeypatch)
    settings = partial.Settings(batch=2, patch=16)
    left, _, _ = partial.load_hemispheres()
    _, labels, data_set = partial.batch_of_both(left, settings, torch.Generator().manual_seed(0))
    assert data_set.tolist() == [0, 1]
    assert partial.WHITE not in labels[0]
    assert partial.GREY not in labels[1]
    results = partial.main(["--steps", "1"])
    assert list(results) == ["background as it is labelled", "label_sets"]
    assert all(len(line.split()) > len(partial.CLASSES) for line in capsys.readouterr().out.splitlines()[1:])


def test_a_quarter_of_the_labels_resolution_with_and_without_interpolation(monkeypatch, capsys):
    before, after = load_example("segformer", monkeypatch).main(["--steps", "3"])
    assert after == pytest.approx(before, rel=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert [line[:28].strip() for line in printed[-2:]] == ["interpolate, cross entropy", "upsample='bilinear'"]


def test_an_exported_prediction_is_the_argmax_of_resampled_logits(monkeypatch, capsys):
    export = load_example("export", monkeypatch)
    for share, distance in export.main([]).values():
        assert share < 1e-5
        assert distance < 1e-5
    assert "predict" in capsys.readouterr().out
