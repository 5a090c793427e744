"""Scores of a report from its counts, and their mean, median and interval over the cases."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from segloss._report_measures import Case
from segloss._report_settings import Settings

SCORES = ("dice", "iou", "precision", "recall")
VOLUMES = ("predicted_volume", "reference_volume", "volume_difference")
COUNTS = ("tp", "fp", "fn", "tn")
_LARGEST_DRAW = 2**20  # entries of a table of resampled cases


class Statistics(NamedTuple):
    """Of one metric of a class or region over the cases."""

    mean: float  # of the finite values, as all numbers but the median
    median: float  # of all values but nan; inf is the largest
    std: float  # divided by n - 1
    low: float  # the bounds of the bootstrap interval of the mean
    high: float
    cases: int  # the finite values
    infinite: int
    missing: int  # cases without a value: nan


def metrics_of(settings: Settings) -> list[str]:
    return [*SCORES, *VOLUMES, *settings.measured]


def scores(tp: int, fp: int, fn: int) -> dict[str, float]:
    return {
        "dice": _quotient(2 * tp, 2 * tp + fp + fn),
        "iou": _quotient(tp, tp + fp + fn),
        "precision": _quotient(tp, tp + fp),
        "recall": _quotient(tp, tp + fn),
    }


def numbers_of(settings: Settings, case: Case) -> dict[str, dict[str, float]]:
    """All metrics of a case, and its counts, by the name of the class or region."""
    num_values = len(settings.measured)
    result: dict[str, dict[str, float]] = {}
    for k, row in enumerate(settings.rows):
        tp, fp, fn, tn = case.counts[4 * k : 4 * k + 4]
        volume = case.voxel_volume
        volumes = (volume * (tp + fp), volume * (tp + fn), volume * (fp - fn))
        values = case.values[num_values * k : num_values * (k + 1)]
        result[row.name] = {
            **scores(tp, fp, fn),
            **dict(zip(VOLUMES, volumes, strict=True)),
            **dict(zip(settings.measured, values, strict=True)),
            **dict(zip(COUNTS, (tp, fp, fn, tn), strict=True)),
        }
    return result


def pooled(settings: Settings, cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """The scores of the counts of all cases together."""
    result: dict[str, dict[str, float]] = {}
    for k, row in enumerate(settings.rows):
        tp, fp, fn, tn = (sum(case.counts[4 * k + j] for case in cases) for j in range(4))
        result[row.name] = {**scores(tp, fp, fn), "tp": tp, "fp": fp, "fn": fn, "tn": tn}
        if settings.lesion_options is not None:
            result[row.name] |= _pooled_lesions(settings, cases, k)
    return result


def _pooled_lesions(settings: Settings, cases: Sequence[Case], row: int) -> dict[str, float]:
    first, width = settings.measured.index("lesions_found"), len(settings.measured)
    places = range(width * row + first, width * row + first + 3)
    found, missed, alarms = (int(sum(case.values[place] for case in cases)) for place in places)
    return {
        "lesion_recall": _quotient(found, found + missed),
        "lesion_f1": _quotient(2 * found, 2 * found + missed + alarms),
        "lesions_found": found,
        "lesions_missed": missed,
        "false_alarms": alarms,
    }


def statistics_of(values: Sequence[float], resamples: int, confidence: float, seed: int) -> Statistics:
    known = sorted(value for value in values if not math.isnan(value))
    finite = [value for value in values if math.isfinite(value)]
    count, half = len(finite), len(known) // 2
    mean = math.fsum(finite) / count if count else math.nan
    low, high = bootstrap_interval(finite, resamples, confidence, seed)
    return Statistics(
        mean=mean,
        median=(known[half] + known[-1 - half]) / 2 if known else math.nan,
        std=math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / (count - 1)) if count > 1 else math.nan,
        low=low,
        high=high,
        cases=count,
        infinite=len(known) - count,
        missing=len(values) - len(known),
    )


def bootstrap_interval(values: Sequence[float], resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """The percentile interval of the mean over cases drawn with replacement: Efron and Tibshirani 1993, chapter 13.

    nan for less than two values, which say nothing about how much a mean varies.
    """
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    sample, means = torch.tensor(values, dtype=torch.float64, device="cpu"), []
    at_once = max(_LARGEST_DRAW // count, 1)
    for first in range(0, resamples, at_once):
        drawn = torch.randint(count, (min(at_once, resamples - first), count), generator=generator, device="cpu")
        # cumsum adds in order; torch's sum depends on the number of threads
        means.append(sample[drawn].cumsum(1)[:, -1] / count)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64, device="cpu")
    low, high = torch.cat(means).quantile(ends).tolist()
    return low, high


def _quotient(above: int, below: int) -> float:
    return above / below if below else math.nan
