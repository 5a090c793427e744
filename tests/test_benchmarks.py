"""Tests the code of the benchmarks on small shapes, and the memory that it measures on shapes of real size."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.cpu_only

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_peers_agree_with_segloss_in_every_case(module):
    bench, cases = module("bench"), module("cases")
    for case in cases.cases(full=True):
        small = cases.Case(case.loss, case.problem.with_sizes(8))
        logits, labels = small.problem.tensors()
        for ours, theirs in small.calls().values():
            tolerance = cases.OF_FEW_DIGITS.get(case.loss, bench.TOLERANCE)
            bench.check_agreement(ours, theirs, logits, labels, tolerance)


def test_every_tensor_of_a_case_is_on_its_device(module):
    for case in module("cases").cases(full=False):
        on_device = replace(case.problem, device="meta")
        assert {tensor.device.type for tensor in on_device.tensors()} == {"meta"}


def test_a_gpu_has_larger_shapes_in_two_dtypes_and_in_the_full_form_those_of_the_cpu(module):
    of_cpu, of_gpu = (module("cases").cases(full=True, device=device) for device in ("cpu", "cuda"))
    assert {case.problem.device for case in of_gpu} == {"cuda"}
    assert [case.name + " cuda" for case in of_cpu] == [case.name for case in of_gpu[: len(of_cpu)]]
    larger = of_gpu[len(of_cpu) :]
    assert larger == module("cases").cases(full=False, device="cuda")
    shapes = [(2, 4, 128, 128, 128), (2, 19, 1024, 2048), (1, 105, 128, 128, 128)]
    peers = {"dice_ce_loss": ["MONAI", "nnU-Net"], "cross_entropy": ["torch"]}
    assert [(case.loss, case.problem.shape, case.problem.dtype) for case in larger] == list(
        product(peers, shapes, (torch.float32, torch.bfloat16))
    )
    for case in larger:
        assert list(replace(case, compiled=False).calls()) == peers[case.loss]
        assert case.compiled == (case.loss == "cross_entropy")


@pytest.mark.parametrize(
    ("loss", "name", "ignored", "logits_times", "labels_times"),
    [
        ("cross_entropy", "forward", False, 1, 1),
        ("cross_entropy", "forward + backward", False, 2, 1),
        ("cross_entropy", "forward + backward", True, 2, 2),
        ("dice_ce_loss", "forward", False, 1, 1),
        ("dice_ce_loss", "forward + backward", False, 3, 2),
        ("confusion_matrix", "forward", True, 1, 1),
    ],
)
def test_the_floor_counts_what_a_pass_must_read_and_write(module, loss, name, ignored, logits_times, labels_times):
    cases = module("cases")
    problem = cases.Problem((2, 4, 3, 5), torch.uint8, ignore_index=255 if ignored else -100)
    tensors = problem.tensors()
    counted = module("floor").floor_bytes(cases.Case(loss, problem), name, *tensors)
    assert counted == logits_times * 4 * 2 * 4 * 15 + labels_times * 2 * 15


def test_the_floor_is_measured_in_every_format_of_the_shapes_that_matter(module):
    cases = module("floor").floor_cases("cuda")
    measured = {(each.problem.num_classes, each.problem.dtype, each.problem.channels_last) for each in cases}
    assert measured == set(product((3, 4, 19, 105), (torch.float32, torch.bfloat16), (False, True)))


def test_a_gpu_where_torch_finds_none_is_an_error_of_one_line(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--device", "cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        module("bench").main()
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"bench\.py: --device cuda: expected a GPU, torch \S+ finds none .*\. Run it where one is.*\n", line
    )


def test_limits_read_all_logits(module):
    limits, logits = module("limits"), torch.arange(999)
    assert limits.read_once(logits)() == logits.sum()
    assert limits.read_twice_and_write(logits)() == limits.read_twice_and_write_fresh(logits)() == 0


def test_a_ratio_is_that_of_neighbouring_runs(module, monkeypatch):
    timing = module("timing")
    drifting = (seconds for n in range(1, 99) for seconds in (n, 3 * n))
    monkeypatch.setattr(timing, "seconds", lambda run: next(drifting))
    run = timing.Run(lambda: None, before=lambda: None)
    assert timing.compare({"peer": (run, run)}, budget=0)["peer"].ratio == 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("loss", "problem", "kept"), [("cross_entropy", "STREET", 1), ("dice_ce_loss", "PATCH", 0)])
def test_peak_memory_is_hardly_more_than_the_gradient(module, loss, problem, kept):
    """In units of the logits' bytes: 1 is the gradient, which cross entropy computes along with the loss."""
    cases = module("cases")
    case = cases.Case(loss, getattr(cases, problem))
    taken = module("memory").in_own_process(case, peer=next(iter(case.calls())), side=0)
    assert 0.99 < taken.peak < 1.1
    assert kept - 0.01 < taken.saved < kept + 0.1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_of_a_lovasz_loss_is_that_of_the_slopes_and_the_gradient(module):
    case = module("cases").Case("lovasz_softmax_loss", module("cases").LABELLED_CROP)
    assert module("memory").in_own_process(case, peer="torch", side=0).peak < 2.1


def test_the_command_writes_tables_figures_and_a_plot(tmp_path):
    files = ["--json", tmp_path / "bench.json", "--plot", tmp_path / "bench.png"]
    command = [sys.executable, BENCHMARKS / "bench.py", "--only", "cross_entropy [32, 1000]", "--seconds", "0", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| `[32, 1000]` int64 | float32 contiguous | forward |" in done.stdout
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert [row["pass"] for row in figures["speed"]] == ["forward", "forward + backward"]
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_the_jobs_of_a_gpu_can_be_tried_without_one(tmp_path):
    command = [sys.executable, BENCHMARKS / "bench.py", "--device", "cuda", "--dry-run", "--seconds", "0"]
    command += ["--only", "[2, 4, 8, 8, 8]", "--json", tmp_path / "bench.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "bench.json").read_text())
    measured = {(row["loss"], row["dtype"], row["layout"], row["pass"]) for row in figures["floor"]}
    formats = set(product(("float32", "bfloat16"), ("contiguous", "channels_last")))
    assert {(*format, "forward + backward") for format in formats} == {key[1:] for key in measured if "+" in key[3]}
    assert all(row["share"] > 0 and row["bytes"] > 0 for row in figures["floor"])
    assert {row["loss"] for row in figures["speed"]} == {"cross_entropy", "dice_ce_loss"}
    command = [sys.executable, BENCHMARKS / "report.py", tmp_path / "bench.json"]
    tables = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert without_figures(tables) == without_figures(done.stdout)  # which are rounded in the file


def without_figures(text):
    return re.sub(r"[\d.]+", "", text)
