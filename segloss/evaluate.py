"""Scores a folder of predictions against a folder of labels: ``python -m segloss.evaluate PREDICTIONS LABELS``.

Files are NIfTI (.nii, .nii.gz) or PNG, matched by name, whatever their suffixes. The output folder receives
report.json, which ``segloss.SegmentationReport.from_json`` reads, cases.csv, and nnU-Net's summary.json.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segloss import _label_files
from segloss._label_files import SUFFIXES, check_one_grid, check_packages, files_of
from segloss._labels import LabelOptions, read_labels
from segloss._report_formats import as_dict, read_json, write_json
from segloss._report_settings import SURFACE_METRICS
from segloss.report import SegmentationReport

_SAVING_SHARE = 0.05  # of the time; report.json grows with the cases
_MOST_CLASSES = 1024  # that labels in files may stand for; memory grows with the square

LabelMap = dict[int | EllipsisType, int | None]


class Pair(NamedTuple):
    case: str
    prediction: Path
    reference: Path

    def stamp(self) -> list[list[int]]:
        """What changes when one of the files does."""
        stats = [path.stat() for path in (self.prediction, self.reference)]
        return [[each.st_size, each.st_mtime_ns] for each in stats]


class Run(NamedTuple):
    """What all cases share."""

    keywords: dict[str, Any]  # of the report
    spacing: tuple[float, ...] | None
    prediction_map: LabelMap | None
    ignore_affine: bool

    def report(self) -> SegmentationReport:
        return SegmentationReport(**self.keywords)

    def options(self) -> dict[str, str]:
        """Those that change numbers, and that the report does not know."""
        return {
            "--spacing": str(self.spacing),
            "--prediction-map": str(self.prediction_map),
            "--ignore-affine": str(self.ignore_affine),
        }

    def measured(self, pair: Pair) -> SegmentationReport:
        """A report of one case."""
        prediction, reference = (_label_files.read(path) for path in (pair.prediction, pair.reference))
        check_one_grid(prediction, reference, self.ignore_affine)
        labels, spacing = reference.labels, self.spacing or reference.spacing
        if spacing is not None and len(spacing) != labels.dim():
            raise ValueError(
                f"expected a spacing of {labels.dim()} numbers, one for each axis of the file, got {spacing}"
            )
        # The axes of NIfTI lie in memory from the last to the first; in that order the kernels need no copy.
        # Lesions keep the order of the file: it numbers them, and of equal overlaps the first one matches.
        axes = list(range(labels.dim()))
        if self.keywords["lesion_metrics"] is False:
            axes.sort(key=labels.stride, reverse=True)
        in_order = spacing and tuple(spacing[axis] for axis in axes)
        predicted, labels = (each.permute(axes)[None, None] for each in (self.predicted(prediction.labels), labels))
        report = self.report()
        report.update(predicted, labels, ids=[pair.case], spacing=in_order)
        return report

    def predicted(self, labels: Tensor) -> Tensor:
        """The classes of predicted labels."""
        if self.prediction_map is None:
            return labels
        _, table = read_labels("--prediction-map", None, labels, 1, LabelOptions((), self.prediction_map))
        limit = max(c for c in self.prediction_map.values() if c is not None) + 1
        classes: Tensor = torch.ops.segloss.class_labels("--prediction-map", labels[None], limit, -100, table)
        return classes[0]


# ---- files ----


def matched(predictions: Path, references: Path) -> tuple[list[Pair], list[Path], list[Path]]:
    """Pairs by name, and the files of labels and of predictions that have no partner."""
    predicted, labelled = files_of(predictions), files_of(references)
    pairs = [Pair(case, predicted[case], labelled[case]) for case in sorted(predicted.keys() & labelled.keys())]
    missing = [labelled[case] for case in sorted(labelled.keys() - predicted.keys())]
    extra = [predicted[case] for case in sorted(predicted.keys() - labelled.keys())]
    return pairs, missing, extra


def num_classes_in(pairs: Sequence[Pair], run: Run, workers: int) -> int:
    """One more than the largest class in all files."""
    in_map: list[int] = [c for c in (run.keywords["label_map"] or {}).values() if c is not None]
    with ThreadPoolExecutor(workers) as pool:
        in_files = list(pool.map(lambda pair: largest_class(pair, run), pairs))
    largest = max([1, *in_map, *in_files])
    if largest >= _MOST_CLASSES:
        case = pairs[in_files.index(largest)].case if largest in in_files else "--label-map"
        raise ValueError(
            f"evaluate: expected labels below {_MOST_CLASSES} where --num-classes is not given, got {largest} in {case}"
            ". Give --num-classes, or --label-map and --prediction-map"
        )
    return largest + 1


def largest_class(pair: Pair, run: Run) -> int:
    """Where voxels count; 0 if a file cannot be read, which is reported later."""
    try:
        predicted = run.predicted(_label_files.read(pair.prediction).labels).long()
        if run.keywords["label_map"] is not None:
            return int(predicted.max()) if predicted.numel() else 0
        labels = _label_files.read(pair.reference).labels.long()
        counts = ~torch.isin(labels, torch.tensor(run.keywords["ignore_index"], dtype=torch.int64))
        found = torch.cat([labels[counts], predicted[counts]])
        return int(found.max()) if found.numel() else 0
    except Exception:
        return 0


# ---- the run ----


class State:
    """The report so far and its file, from which a run that was interrupted goes on."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path, self.report, self._options = path, run.report(), run.options()
        self.files: dict[str, Any] = {}  # of each case: both paths and their stamp
        self._saved_at, self._duration = 0.0, 0.0

    def resume(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Takes over the cases whose files are as they were; returns the others."""
        if not self.path.exists():
            return list(pairs)
        before, stored = read_json(self.path)
        self.report._settings.check_same(before._settings)
        options, files = stored.get("options", {}), stored.get("files", {})
        for name, value in self._options.items():
            if options.get(name) != value:
                raise ValueError(
                    f"evaluate: expected a run to be resumed with the same options, got {name} {value} in place of "
                    f"{options.get(name)} in {self.path}. Give the same, or leave out --resume"
                )
        as_before = [pair for pair in pairs if files.get(pair.case) == _entry(pair) and pair.case in before._cases]
        for pair in as_before:
            self.report._add([before._cases[pair.case]])
            self.files[pair.case] = files[pair.case]
        return [pair for pair in pairs if pair.case not in self.files]

    def add(self, pair: Pair, entry: list[Any], report: SegmentationReport) -> None:
        self.report.merge(report)
        self.files[pair.case] = entry
        if time.monotonic() - self._saved_at > self._duration / _SAVING_SHARE:
            self.save(with_summary=False)

    def save(self, with_summary: bool) -> None:
        start = time.monotonic()
        of_run = {"options": self._options, "files": dict(sorted(self.files.items()))}
        write_json(self.path, {**as_dict(self.report, with_summary), **of_run})
        self._saved_at = time.monotonic()
        self._duration = self._saved_at - start


def _entry(pair: Pair) -> list[Any]:
    return [str(pair.prediction), str(pair.reference), pair.stamp()]


def evaluate(pairs: Sequence[Pair], run: Run, state: State, workers: int, say: Callable[..., None]) -> dict[str, str]:
    """Measures the pairs; returns the error of each one that failed."""

    def measured(pair: Pair) -> tuple[list[Any], SegmentationReport]:
        entry = _entry(pair)  # first: a file that changes while it is read is read again when the run is resumed
        return entry, run.measured(pair)

    failures: dict[str, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        futures: dict[Future[tuple[list[Any], SegmentationReport]], Pair] = {
            pool.submit(measured, pair): pair for pair in pairs
        }
        try:
            for done, future in enumerate(as_completed(futures), 1):
                pair = futures.pop(future)
                try:
                    entry, report = future.result()
                except Exception as error:  # whatever is wrong with a file, the others go on
                    failures[pair.case] = f"{type(error).__name__}: {error}"
                    say(f"{pair.case}: {failures[pair.case]}")
                else:
                    state.add(pair, entry, report)
                say(done=done)
        finally:
            pool.shutdown(cancel_futures=True)
            for future, pair in futures.items():  # what was done when the run was interrupted
                if not future.cancelled() and future.exception() is None:
                    state.add(pair, *future.result())
            state.save(with_summary=False)
    return failures


class Progress:
    """A bar on a terminal; messages everywhere."""

    def __init__(self, total: int, file: Any) -> None:
        self._total, self._file, self._start = total, file, time.monotonic()
        self._is_shown = file.isatty()

    def __call__(self, message: str | None = None, done: int | None = None) -> None:
        clear = "\r\x1b[K" if self._is_shown else ""
        if message is not None:
            print(f"{clear}{message}", file=self._file)
        if done is not None and self._is_shown:
            left = (time.monotonic() - self._start) / done * (self._total - done)
            bar = "#" * (30 * done // self._total)
            time_left = f"{int(left) // 60}:{int(left) % 60:02} left"
            end = "\n" if done == self._total else ""
            print(f"{clear}[{bar:<30}] {done}/{self._total}, {time_left}", end=end, file=self._file, flush=True)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """As by Ctrl-C, so that what is done is saved."""
    if threading.current_thread() is not threading.main_thread():
        yield  # others have no signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- command line ----


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(each) for each in text.split(","))


def _words(text: str) -> list[str]:
    return [each.strip() for each in text.split(",")]


def _region(text: str) -> tuple[str, tuple[int, ...]]:
    name, is_there, classes = text.rpartition("=")
    numbers = _numbers(classes)
    return (name if is_there else str(numbers)), numbers


def _regions(given: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"evaluate: expected a name of its own for each of --regions, got {name!r} twice")
    return dict(given)


def _label_map(text: str) -> LabelMap:
    pairs = [each.rsplit(":", 1) for each in text.split(",")]
    return {... if key == "..." else int(key): None if c == "none" else int(c) for key, c in pairs}


def _lesion_options(text: str) -> dict[str, Any]:
    options: dict[str, Any] = dict(each.split("=") for each in text.split(","))
    integers = ("connectivity", "dilation")
    return {
        name: value if value == "any" else int(value) if name in integers else float(value)
        for name, value in options.items()
    }


for _parse, _name in (
    (_numbers, "list of ints"),
    (_floats, "list of numbers"),
    (_region, "region"),
    (_label_map, "map"),
    (_lesion_options, "list of options"),
):
    _parse.__name__ = _name  # argparse's errors have it


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m segloss.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("predictions", type=Path, help="folder of predicted label maps")
    add("labels", type=Path, help="folder of label maps")
    add(
        "--num-classes",
        type=int,
        help="with the background; default: one for each of --names, or one more than the "
        "largest label in the files, which are then read once more",
    )
    add("--names", type=_words, help="of the classes from the background on: background,liver,tumour")
    add("--regions", type=_region, action="append", help="a union of classes, NAME=1,2 or 1,2; once for each")
    add("--spacing", type=_floats, help="of voxels, in the order of the file's axes: 1,1,2.5; default: the header's")
    add("--include-background", action="store_true", help="report class 0, too")
    add("--ignore-index", type=_numbers, default=(), help="labels of voxels to ignore: 255, or 254,255")
    add(
        "--label-map",
        type=_label_map,
        help="class of each label, LABEL:CLASS: 0:0,1:1,4:3,255:none; none is ignored, ... stands for all other labels",
    )
    add("--prediction-map", type=_label_map, help="the same for the predictions: 0:0,255:1")
    add("--surface", type=_words, default=[], help=f"metrics of surfaces: {','.join(SURFACE_METRICS)}")
    add("--surface-elements", choices=("voxels", "surfels"), default="voxels", help="what a surface is made of")
    add("--tolerance", type=_floats, help="of surface_dice: one, or one for each class and region")
    add(
        "--lesions",
        type=_lesion_options,
        nargs="?",
        const=True,
        default=False,
        metavar="OPTIONS",
        help="count lesions that are found and missed; OPTIONS of lesion_scores: dilation=3,min_volume=50,overlap=0.1",
    )
    add("--output", type=Path, default=Path("evaluation"), help="folder to write; default: evaluation")
    add("--workers", type=int, default=min(4, os.cpu_count() or 1), help="cases at a time; default: %(default)s")
    add("--resume", action="store_true", help="take over what report.json in --output has of files as they are")
    add("--ignore-affine", action="store_true", help="compare voxel by voxel, wherever the headers place them")
    add("--allow-missing", action="store_true", help="labels without a prediction are no failure")
    return parser


def _run_of(arguments: argparse.Namespace, pairs: Sequence[Pair]) -> Run:
    keywords = {
        "num_classes": arguments.num_classes,
        "names": arguments.names,
        "regions": _regions(arguments.regions or ()),
        "include_background": arguments.include_background,
        "ignore_index": arguments.ignore_index,
        "label_map": arguments.label_map,
        "surface_metrics": arguments.surface,
        "surface": arguments.surface_elements,
        "tolerance": arguments.tolerance,
        "lesion_metrics": arguments.lesions,
    }
    run = Run(keywords, arguments.spacing, arguments.prediction_map, arguments.ignore_affine)
    if arguments.num_classes is None:
        keywords["num_classes"] = (
            len(arguments.names) if arguments.names else num_classes_in(pairs, run, arguments.workers)
        )
    return run


def _listed(title: str, lines: Sequence[str]) -> None:
    print("\n".join([f"{title}:", *(f"  {line}" for line in lines)]), file=sys.stderr)


def _write_results(state: State, output: Path) -> None:
    state.save(with_summary=True)
    state.report.to_csv(output / "cases.csv")
    files: Mapping[str | int, tuple[str, str]] = {case: (one, other) for case, (one, other, _) in state.files.items()}
    state.report.to_nnunet(output / "summary.json", files)
    print(state.report)
    print(f"\nWrote report.json, cases.csv and summary.json to {output}.")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error(f"--workers: expected 1 or more, got {arguments.workers}")
    try:
        pairs, missing, extra = matched(arguments.predictions, arguments.labels)
        if not pairs:
            raise ValueError(
                f"evaluate: expected files of one name in both folders, ending in {', '.join(SUFFIXES)}, got "
                f"{len(extra)} in {arguments.predictions} and {len(missing)} in {arguments.labels}"
            )
        check_packages([path for pair in pairs for path in pair[1:]])
        run = _run_of(arguments, pairs)
        state = State(arguments.output / "report.json", run)
        to_do = state.resume(pairs) if arguments.resume else pairs
    except (ImportError, OSError, TypeError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    arguments.output.mkdir(parents=True, exist_ok=True)
    if len(to_do) < len(pairs):
        print(f"Taken over: {len(pairs) - len(to_do)} of {len(pairs)} cases.", file=sys.stderr)
    try:
        with _interrupted_by_sigterm():
            failures = evaluate(to_do, run, state, arguments.workers, Progress(len(to_do), sys.stderr))
    except KeyboardInterrupt:
        print(f"Interrupted after {len(state.report)} of {len(pairs)} cases. Use --resume to go on.", file=sys.stderr)
        return 130
    _write_results(state, arguments.output)
    if extra:
        _listed("Predictions without labels, left out", [str(path) for path in extra])
    if missing:
        _listed("Labels without a prediction", [str(path) for path in missing])
    if failures:
        _listed(
            f"Failed, {len(failures)} of {len(pairs)} cases", [f"{case}: {failures[case]}" for case in sorted(failures)]
        )
    return 1 if failures or (missing and not arguments.allow_missing) else 0


if __name__ == "__main__":
    sys.exit(main())
