"""Metrics of surfels against DeepMind's surface-distance."""

import warnings
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

import segloss
from segloss import _surfels

pytestmark = pytest.mark.cpu_only


def assert_close(actual: Tensor, wanted: object) -> None:
    torch.testing.assert_close(
        actual, torch.as_tensor(wanted, dtype=actual.dtype), equal_nan=True, rtol=2e-6, atol=1e-6
    )


@pytest.fixture
def deepmind(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """It was written for an older numpy and scipy."""
    package = pytest.importorskip("surface_distance")
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    monkeypatch.setattr(ndimage, "filters", ndimage, raising=False)
    monkeypatch.setattr(ndimage, "morphology", ndimage, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield package


def assert_as_deepmind(package: ModuleType, predicted: Tensor, target: Tensor, spacing: tuple[float, ...]) -> None:
    """Of bool masks."""
    theirs = package.compute_surface_distances(target.numpy(), predicted.numpy(), spacing)
    masks = [mask[None, None].byte() for mask in (predicted, target)]
    options = {"masks": True, "surface": "surfels", "spacing": spacing}
    for percentile in (1, 30, 50, 95, 100):
        wanted = package.compute_robust_hausdorff(theirs, percentile)
        assert_close(segloss.hausdorff_distance(*masks, percentile=percentile, **options), [[wanted]])
    to_target, to_prediction = package.compute_average_surface_distance(theirs)[::-1]
    assert_close(segloss.average_surface_distance(*masks, **options), [[to_target]])
    assert_close(segloss.average_surface_distance(*masks[::-1], **options), [[to_prediction]])
    for tolerance in (0.0, 1.0, 2.3):
        wanted = package.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert_close(segloss.surface_dice(*masks, tolerance=tolerance, **options), [[wanted]])


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 2.5), (1.0, 1.0, 1.0), (3.0, 0.5, 1.2)])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_surfels_of_random_masks_are_those_of_deepmind(
    deepmind: ModuleType, spacing: tuple[float, ...], density: float
) -> None:
    generator = torch.Generator().manual_seed(11)
    sizes = (13, 9, 11)[: len(spacing)]
    predicted, target = (torch.rand(sizes, generator=generator) < density for _ in range(2))
    assert_as_deepmind(deepmind, predicted, target, spacing)


def test_every_neighbourhood_counts_as_in_deepminds_package(deepmind: ModuleType) -> None:
    """Every code by itself, against a mask that is somewhere else."""
    other = torch.zeros(4, 4, 4, dtype=torch.bool)
    other[3, 3, 2:] = True
    for code in range(1, 256):
        mask = torch.zeros(4, 4, 4, dtype=torch.bool)
        mask[1:3, 1:3, 1:3] = torch.tensor([code >> 7 - k & 1 for k in range(8)]).view(2, 2, 2)
        theirs = deepmind.compute_surface_distances(other.numpy(), mask.numpy(), (1.0, 1.5, 0.4))
        options = {"masks": True, "surface": "surfels", "spacing": (1.0, 1.5, 0.4)}
        wanted = deepmind.compute_average_surface_distance(theirs)[1]
        assert_close(segloss.average_surface_distance(mask[None, None], other[None, None], **options), [[wanted]])


def test_areas_of_all_codes_are_those_of_deepminds_table(deepmind: ModuleType) -> None:
    tables = deepmind.lookup_tables
    for spacing in ((1.0, 1.0, 1.0), (0.7, 1.3, 2.9), (5.0, 1.0, 0.3)):
        wanted = tables.create_table_neighbour_code_to_surface_area(list(spacing))
        torch.testing.assert_close(_surfels.measures(spacing), torch.from_numpy(wanted))
        wanted = tables.create_table_neighbour_code_to_contour_length(list(spacing[:2]))
        torch.testing.assert_close(_surfels.measures(spacing[:2]), torch.from_numpy(wanted))
