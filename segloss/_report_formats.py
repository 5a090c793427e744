"""What a report is written as: JSON, CSV, nnU-Net's summary, a table for a terminal, a box plot."""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segloss._report_measures import Case
from segloss._report_settings import Settings
from segloss._report_statistics import COUNTS, SCORES, VOLUMES, Statistics, metrics_of
from segloss.functional import _check_choice

if TYPE_CHECKING:
    from segloss.report import SegmentationReport

_FORMAT = 1
_WIDTH, _SHORTEST_NAME = 100, 8  # of a table, and of a name that it shortens
_SHORT = {  # names in a table
    "dice": "Dice",
    "iou": "IoU",
    "volume_difference": "volume diff",
    "hausdorff_distance": "HD",
    "hausdorff_distance_95": "HD95",
    "average_surface_distance": "ASD",
    "average_symmetric_surface_distance": "ASSD",
    "surface_dice": "surface Dice",
    "lesion_dice": "lesion Dice",
    "lesion_f1": "lesion F1",
}


# ---- JSON ----


def as_dict(report: "SegmentationReport", with_summary: bool = True) -> dict[str, Any]:
    numbers = report.cases()
    result: dict[str, Any] = {
        "format": _FORMAT,
        "settings": {**report._settings.keywords(), "spacing": report._spacing and list(report._spacing)},
        "has_running_numbers": report._has_running_numbers,
    }
    if with_summary:
        summary = report.summary()
        result["summary"] = {
            name: {metric: each._asdict() for metric, each in of_row.items()} for name, of_row in summary.items()
        }
        result["pooled"] = report.pooled()
    result["cases"] = [
        {"id": case.id, "voxel_volume": case.voxel_volume, "classes": numbers[case.id]} for case in report._sorted()
    ]
    return result


def write_json(path: str | Path, value: Any) -> None:
    """Under another name first, so that whoever reads the file, or is left with it, has a whole one."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(_to_json(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_to_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def read_json(path: str | Path) -> "tuple[SegmentationReport, dict[str, Any]]":
    """The report, and all that the file has."""
    op = "SegmentationReport.from_json"
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
            raise ValueError("another format")
        return report_of(stored), stored
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{op}: expected a report that to_json wrote, got {path}, which cannot be read: {error}. Make it anew"
        ) from error


def report_of(stored: Mapping[str, Any]) -> "SegmentationReport":
    """The report of a dictionary that as_dict made, and JSON stored."""
    from segloss.report import SegmentationReport

    keywords = dict(stored["settings"])
    if keywords["label_map"] is not None:
        keywords["label_map"] = {... if key == "..." else key: c for key, c in keywords["label_map"]}
    report = SegmentationReport(**keywords)
    report._has_running_numbers = stored["has_running_numbers"]
    report._add(_case(report._settings, case) for case in stored["cases"])
    return report


def _case(settings: Settings, stored: Mapping[str, Any]) -> Case:
    of_rows = [stored["classes"][row.name] for row in settings.rows]
    return Case.of(
        stored["id"],
        float(stored["voxel_volume"]),
        [of_row[name] for of_row in of_rows for name in COUNTS],
        [_from_json(of_row[name]) for of_row in of_rows for name in settings.measured],
    )


def _from_json(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


# ---- CSV, nnU-Net ----


def write_csv(report: "SegmentationReport", path: str | Path) -> None:
    columns = [*metrics_of(report._settings), *COUNTS]
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "class", *columns])
        for case, of_rows in report.cases().items():
            for name, numbers in of_rows.items():
                writer.writerow([case, name, *(numbers[column] for column in columns)])


def write_nnunet(report: "SegmentationReport", path: str | Path, files: Mapping[str | int, tuple[str, str]]) -> None:
    """As ``nnunetv2.evaluation.evaluate_predictions`` 2.8 writes it, nan included."""
    rows = report._settings.rows
    keys = {row.name: str(row.classes) if row.is_region else str(row.classes[0]) for row in rows}
    per_case: list[dict[str, Any]] = []
    for case, of_rows in report.cases().items():
        prediction, reference = files.get(case, (str(case), str(case)))
        metrics = {keys[name]: _of_nnunet(numbers) for name, numbers in of_rows.items()}
        per_case.append({"metrics": metrics, "prediction_file": prediction, "reference_file": reference})
    names = list(_of_nnunet(dict.fromkeys([*SCORES, *COUNTS], 0)))
    means = {
        key: {name: _mean(case["metrics"][key][name] for case in per_case) for name in names} for key in keys.values()
    }
    of_foreground = [of_key for key, of_key in means.items() if key != "0"]
    foreground = {name: math.fsum(each[name] for each in of_foreground) / len(of_foreground) for name in names}
    result = {"foreground_mean": foreground, "mean": means, "metric_per_case": per_case}
    Path(path).write_text(json.dumps(result, indent=4, sort_keys=True), encoding="utf-8")


def _of_nnunet(numbers: Mapping[str, float]) -> dict[str, float]:
    tp, fp, fn, tn = (numbers[name] for name in COUNTS)
    of_both = {"n_pred": fp + tp, "n_ref": fn + tp}
    return {"Dice": numbers["dice"], "IoU": numbers["iou"], "TP": tp, "FP": fp, "FN": fn, "TN": tn, **of_both}


def _mean(values: Any) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


# ---- text ----


def table(report: "SegmentationReport", metrics: Sequence[str] | None) -> str:
    settings = report._settings
    known = metrics_of(settings)
    if metrics is None:
        metrics = [metric for metric in known if metric not in VOLUMES[:2]]
    for metric in metrics:
        _check_choice("SegmentationReport.table", "each of metrics", metric, tuple(known))
    summary, sums = report.summary(), report.pooled()
    header = ["class", "metric", "mean", "95 % interval", "median", "std", "pooled", "cases", "inf", "nan"]
    lines = [header]
    for name, of_row in summary.items():
        of_class = name
        for metric in metrics:
            shown = _SHORT.get(metric, metric.replace("_", " "))
            lines.append([of_class, shown, *_cells(of_row[metric], sums[name].get(metric))])
            of_class = ""
    count = f"{len(report)} case" + ("" if len(report) == 1 else "s")
    has_infinite = any(of_row[metric].infinite for of_row in summary.values() for metric in metrics)
    notes = ["inf: one of prediction and labels lacks the class; only the median counts such a case"]
    return "\n".join([count, "", *_aligned(lines), *(["", *notes] if has_infinite else [])])


def _cells(of: Statistics, sums: float | None) -> list[str]:
    interval = "" if math.isnan(of.low) else f"[{_text(of.low)}, {_text(of.high)}]"
    pooled = "" if sums is None else _text(sums)
    counts = [str(count) if count else "" for count in (of.cases, of.infinite, of.missing)]
    return [_text(of.mean), interval, _text(of.median), _text(of.std), pooled, *counts]


def _text(value: float) -> str:
    """Four digits, and three after the point at most."""
    size = abs(value)
    if not math.isfinite(value):
        return "" if math.isnan(value) else "inf"
    if size >= 1e7:
        return f"{value:.3g}"
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns two spaces apart; names in the first one are as short as the width of a terminal asks for."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    excess = max(sum(widths) + 2 * (len(widths) - 1) - _WIDTH, 0)
    longest = widths[0] = max(widths[0] - excess, min(widths[0], _SHORTEST_NAME))
    align = [str.ljust, str.ljust, *[str.rjust] * (len(widths) - 2)]
    rows = []
    for first, *others in lines:
        short = first if len(first) <= longest else first[: longest - 3] + "..."
        cells = [to(cell, width) for to, cell, width in zip(align, [short, *others], widths, strict=True)]
        rows.append("  ".join(cells).rstrip())
    return [rows[0], "-" * max(map(len, rows)), *rows[1:]]


# ---- box plot ----


def box_plot(report: "SegmentationReport", path: str | Path | None, metric: str) -> Any:
    op = "SegmentationReport.box_plot"
    _check_choice(op, "metric", metric, tuple(metrics_of(report._settings)))
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{op}: expected matplotlib to be installed, got none. Use `pip install matplotlib`"
        ) from error
    numbers = report.cases().values()
    names = [row.name for row in report._settings.rows]
    values = [[case[name][metric] for case in numbers if math.isfinite(case[name][metric])] for name in names]
    figure = Figure(figsize=(1.5 + 1.1 * len(names), 4), layout="constrained")
    axes = figure.subplots()
    axes.boxplot(values, showfliers=False, widths=0.5)
    axes.set_xticklabels(names)
    for place, points in enumerate(values, 1):
        # Beside each other in the order of the cases, so that equal ones can be seen.
        places = [place + 0.3 * (k / max(len(points) - 1, 1) - 0.5) for k in range(len(points))]
        axes.plot(places, points, ".", color="#0072b2", alpha=0.6)
    left_out = len(names) * len(numbers) - sum(map(len, values))
    note = f", {left_out} values that are inf or nan left out" if left_out else ""
    axes.set(ylabel=metric.replace("_", " "), title=f"{len(report)} cases{note}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
