"""A report on the predictions for a data set: numbers of each case, class and region, and their summary."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segloss import _report_formats as formats
from segloss import _report_statistics as statistics_
from segloss._distributed import check_process_group
from segloss._docs import documented
from segloss._labels import IgnoreIndex, LabelMap
from segloss._report_measures import OP, Case, checked_batch, checked_spacings, measured_cases
from segloss._report_settings import NamedRegions, Names, Tolerance, checked_settings
from segloss._report_statistics import Statistics
from segloss.distance import checked_spacing
from segloss.functional import _check_integer, _check_number
from segloss.surface import Surface

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@documented()
class SegmentationReport:
    """Scores of each case, class and region of a data set, and their mean, median and interval over the cases.

    ``update`` counts batch by batch and keeps nothing but numbers: the true and false positives and negatives TP, FP,
    FN and TN of each class, and of each region, a union of classes. Of them, for each case and over all cases::

        dice = 2 * TP / (2 * TP + FP + FN)      precision = TP / (TP + FP)
        iou = TP / (TP + FP + FN)               recall = TP / (TP + FN)
        volume_difference = (FP - FN) * volume of a voxel

    A score of 0 / 0 is nan: the class is in neither, or for precision not predicted, for recall not in the labels. The
    mean leaves such a case out, and the summary counts it. The interval of the mean is the percentile bootstrap over
    cases: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    Args:
        num_classes: C, with the background, class 0.
        names: of the classes: C strings, or a mapping ``{class: name}``. Default: None, their numbers.
        regions: unions of classes that have results, too: a mapping ``{"whole tumour": (1, 2, 3), ...}``, or a sequence
            of them, whose names are then ``"(1, 2, 3)"``. Default: None, no regions.
        spacing: the distance of voxels along each spatial axis, for volumes and surfaces, where ``update`` gets none.
            Default: None, all are 1, and volumes count voxels.
        include_background: whether class 0 has results.
        ignore_index: label of the voxels to ignore, or a sequence of labels, as in ``segloss.confusion_matrix``.
        label_map: the class of each label, as in ``segloss.confusion_matrix``. It maps labels, not predictions.
            Default: None, labels are classes.
        surface_metrics: those of ``"hausdorff_distance"``, ``"hausdorff_distance_95"``,
            ``"average_surface_distance"``, ``"average_symmetric_surface_distance"`` and ``"surface_dice"`` to measure.
            Values are those of ``segloss.hausdorff_distance``, ``segloss.average_surface_distance`` and
            ``segloss.surface_dice``; but the 95th percentile is inf, not nan, if one of the two lacks the class.
        surface: what a surface is, as in ``segloss.hausdorff_distance``.
        tolerance: of ``"surface_dice"``: a number, one for each class and region in their order, or a mapping from
            their names. Default: None, there is no such metric.
        lesion_metrics: whether to find and count lesions, as ``segloss.lesion_scores`` does; or a mapping with its
            keywords ``connectivity``, ``overlap``, ``dilation`` and ``min_volume``.

    Raises:
        TypeError, ValueError: an argument is none of those above, or two names are the same.

    Example:
        >>> import segloss, torch
        >>> labels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        >>> labels[0, :, 2:6, 2:6] = 1
        >>> predicted = labels.clone()
        >>> predicted[0, :, 5] = 0
        >>> report = segloss.SegmentationReport(2, names=["background", "lesion"])
        >>> report.update(predicted, labels, ids=["anna", "bert"])
        >>> round(report.cases()["anna"]["lesion"]["dice"], 3)
        0.857
        >>> report.summary()["lesion"]["dice"].missing  # bert has no lesion, and none is predicted
        1

    See also:
        * ``segloss.confusion_matrix``, ``segloss.dice_score``: of one batch
        * ``segloss.hausdorff_distance``, ``segloss.surface_dice``: the metrics of surfaces
        * ``segloss.lesion_scores``: the metrics of lesions, with a table of all lesions
    """

    def __init__(
        self,
        num_classes: int,
        *,
        names: Names | None = None,
        regions: NamedRegions | None = None,
        spacing: Sequence[float] | None = None,
        include_background: bool = False,
        ignore_index: IgnoreIndex = -100,
        label_map: LabelMap | None = None,
        surface_metrics: Sequence[str] = (),
        surface: Surface = "voxels",
        tolerance: Tolerance | None = None,
        lesion_metrics: bool | Mapping[str, Any] = False,
    ) -> None:
        self._settings = checked_settings(
            num_classes,
            names,
            regions,
            include_background,
            ignore_index,
            label_map,
            surface_metrics,
            surface,
            tolerance,
            lesion_metrics,
        )
        self._spacing = checked_spacing("SegmentationReport", spacing)
        self._cases: dict[str | int, Case] = {}
        self._has_running_numbers = False
        self._summaries: dict[tuple[int, float, int], dict[str, dict[str, Statistics]]] = {}  # by their options

    # ---- collecting ----

    def update(
        self,
        prediction: Tensor,
        labels: Tensor,
        ids: Sequence[str | int] | Tensor | None = None,
        spacing: Sequence[float] | Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Counts a batch.

        Args:
            prediction: logits ``[N, C, *]`` (floating), or predicted classes ``[N, *]`` or ``[N, 1, *]`` (integer or
                bool).
            labels: ``[N, *]`` or ``[N, 1, *]``, as in ``segloss.confusion_matrix``.
            ids: a string or an int for each sample. Default: None, running numbers from 0 on.
            spacing: of the batch, or one for each sample. Default: None, that of the report.

        Raises:
            ValueError: a case has been counted before, or ids or spacings do not fit the batch. Nothing is counted.
            TypeError, IndexError, RuntimeError: as ``segloss.confusion_matrix``. Nothing is counted.
        """
        prediction, labels = checked_batch(prediction, labels)
        names = self._checked_ids(ids, prediction.shape[0])
        spacings = checked_spacings(self._settings, spacing, self._spacing, prediction, labels)
        with torch.no_grad():
            cases = measured_cases(self._settings, names, prediction, labels, spacings)
        self._add(cases)
        self._has_running_numbers |= ids is None and bool(cases)

    def _add(self, cases: Iterable[Case]) -> None:
        self._cases.update((case.id, case) for case in cases)
        self._summaries.clear()

    def _checked_ids(self, ids: Sequence[str | int] | Tensor | None, num_samples: int) -> list[str | int]:
        if ids is None:
            ids = range(len(self._cases), len(self._cases) + num_samples)
        given: Any = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"{OP}: expected ids to be a sequence with one for each sample, got {ids!r}. Use [id]")
        if len(given) != num_samples:
            raise ValueError(f"{OP}: expected {num_samples} ids, one for each sample, got {len(given)}: {given!r}")
        names: list[str | int] = []
        for each in given:
            if isinstance(each, bool) or not isinstance(each, str | Integral):
                raise TypeError(f"{OP}: expected each id to be a string or an int, got {each!r}. Use str({each!r})")
            names.append(each if isinstance(each, str) else int(each))
        known = set(self._cases)
        for name in names:
            if name in known:
                raise ValueError(
                    f"{OP}: expected a new id for each case, got {name!r} again. Use merge() for reports that share "
                    "cases"
                )
            known.add(name)
        return names

    def merge(self, other: "SegmentationReport") -> None:
        """Adds the cases of another report that measures the same. A case that both have counts once.

        Raises:
            ValueError: the reports do not measure the same; they have different numbers for a case; or cases of one of
                them are running numbers, which say nothing about whether two cases are the same.
        """
        op = "SegmentationReport.merge"
        if not isinstance(other, SegmentationReport):
            raise TypeError(f"{op}: expected a SegmentationReport, got {type(other).__name__}")
        self._settings.check_same(other._settings)
        if self._cases and other._cases and (self._has_running_numbers or other._has_running_numbers):
            raise ValueError(
                f"{op}: expected ids in both reports, got running numbers, which name different cases in each. Use "
                "update(prediction, labels, ids=...)"
            )
        for name, case in other._cases.items():
            if name in self._cases and not self._cases[name].same_numbers(case):
                raise ValueError(
                    f"{op}: expected the same numbers for case {name!r} in both reports, got other ones. Give each "
                    "case an id of its own, and predict it the same way everywhere"
                )
        self._add(other._cases.values())
        self._has_running_numbers |= other._has_running_numbers

    def gather(self, process_group: "ProcessGroup | None" = None) -> "SegmentationReport":
        """A report with the cases of all ranks, the same on each of them and for any number of them.

        Cases that several ranks have, as those by which a DistributedSampler pads, count once. All ranks must call it.

        Args:
            process_group: whose ranks. Default: None, all processes; without ``torch.distributed``, this one.

        Raises:
            ValueError: as ``merge``, on every rank.
        """
        check_process_group("SegmentationReport.gather", process_group)
        reports: list[Any] = [self]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            reports = [None] * torch.distributed.get_world_size(process_group)
            torch.distributed.all_gather_object(reports, self, group=process_group)
        whole = self._like()
        for report in reports:
            whole.merge(report)
        return whole

    def _like(self) -> "SegmentationReport":
        """A report that measures the same, without cases."""
        report = SegmentationReport.__new__(SegmentationReport)
        report._settings, report._spacing = self._settings, self._spacing
        report._cases, report._has_running_numbers, report._summaries = {}, False, {}
        return report

    # ---- results ----

    def __len__(self) -> int:
        """The number of cases."""
        return len(self._cases)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        rows = ", ".join(row.name for row in self._settings.rows)
        return f"SegmentationReport(cases={len(self)}, of {rows})"

    def _sorted(self) -> list[Case]:
        return sorted(self._cases.values(), key=lambda case: (isinstance(case.id, str), case.id))

    def cases(self) -> dict[str | int, dict[str, dict[str, float]]]:
        """The metrics and counts of each case and class or region: ``cases()[id][name]["dice"]``; sorted by id."""
        return {case.id: statistics_.numbers_of(self._settings, case) for case in self._sorted()}

    def summary(
        self, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
    ) -> dict[str, dict[str, Statistics]]:
        """Statistics over the cases of each class or region and metric: ``summary()[name]["dice"].mean``.

        Each is a named tuple of ``mean``, ``median``, ``std``, ``low`` and ``high``, the interval of the mean, and the
        numbers of values that are finite, ``cases``, that are inf, ``infinite``, and nan, ``missing``. Only the median
        counts those that are inf. The interval is nan for less than two cases.

        Args:
            resamples: of the bootstrap.
            confidence: of the interval.
            seed: of the generator that draws cases; each metric draws the same ones.
        """
        op = "SegmentationReport.summary"
        _check_integer(op, "resamples", resamples)
        _check_integer(op, "seed", seed)
        _check_number(op, "confidence", confidence)
        if resamples < 1 or not 0 < confidence < 1:
            raise ValueError(
                f"{op}: expected resamples of 1 or more and a confidence in (0, 1), got resamples={resamples} and "
                f"confidence={confidence}"
            )
        options = (int(resamples), float(confidence), int(seed))
        if options not in self._summaries:
            self._summaries[options] = self._summary(*options)
        return copy.deepcopy(self._summaries[options])

    def _summary(self, resamples: int, confidence: float, seed: int) -> dict[str, dict[str, Statistics]]:
        cases = self.cases().values()
        return {
            row.name: {
                metric: statistics_.statistics_of(
                    [case[row.name][metric] for case in cases], resamples, confidence, seed
                )
                for metric in statistics_.metrics_of(self._settings)
            }
            for row in self._settings.rows
        }

    def pooled(self) -> dict[str, dict[str, float]]:
        """The scores of the sums of TP, FP, FN and TN over all cases, and these sums, of each class or region."""
        return statistics_.pooled(self._settings, self._sorted())

    def table(self, metrics: Sequence[str] | None = None) -> str:
        """The summary as text: a line for each class or region and metric.

        Args:
            metrics: names of those to show. Default: None, all but the two volumes.
        """
        return formats.table(self, metrics)

    def to_dict(self) -> dict[str, Any]:
        """The settings, the cases, the summary and the pooled scores."""
        return formats.as_dict(self)

    def to_json(self, path: str | Path) -> None:
        """Writes ``to_dict()``; nan is null, infinity the string "inf". ``from_json`` reads it again."""
        formats.write_json(path, self.to_dict())

    @classmethod
    def from_json(cls, path: str | Path) -> "SegmentationReport":
        """The report that ``to_json`` wrote, with the same numbers to the last bit: an evaluation can go on."""
        report, _ = formats.read_json(path)
        return report

    def to_csv(self, path: str | Path) -> None:
        """Writes a line for each case and class or region."""
        formats.write_csv(self, path)

    def to_nnunet(self, path: str | Path, files: Mapping[str | int, tuple[str, str]] | None = None) -> None:
        """Writes nnU-Net's ``summary.json``, with the metrics that it has there.

        Args:
            path: of the file.
            files: prediction and reference file of each case. Default: None, its id stands for both.
        """
        formats.write_nnunet(self, path, files or {})

    def box_plot(self, path: str | Path | None = None, metric: str = "dice") -> Any:
        """A box plot of a metric, a box for each class or region and a point for each case; needs matplotlib.

        Args:
            path: where to save it. Default: None, nowhere.
            metric: its name.

        Returns:
            The ``matplotlib.figure.Figure``.
        """
        return formats.box_plot(self, path, metric)
