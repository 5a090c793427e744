"""The benchmarks' instrument, on small shapes; and the memory that it measures, of shapes of real size."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
            bench.check_agreement(ours, theirs, logits, labels)


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
    """In units of the logits' bytes: 1 is the gradient, which cross entropy computes along with itself."""
    cases = module("cases")
    case = cases.Case(loss, getattr(cases, problem))
    taken = module("memory").in_own_process(case, peer=next(iter(case.calls())), side=0)
    assert 0.99 < taken.peak < 1.1
    assert kept - 0.01 < taken.saved < kept + 0.1


def test_the_command_writes_tables_figures_and_a_plot(tmp_path):
    files = ["--json", tmp_path / "bench.json", "--plot", tmp_path / "bench.png"]
    command = [sys.executable, BENCHMARKS / "bench.py", "--only", "cross_entropy [32, 1000]", "--seconds", "0", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| `[32, 1000]` int64 | float32 contiguous | forward |" in done.stdout
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert [row["pass"] for row in figures["speed"]] == ["forward", "forward + backward"]
    assert (tmp_path / "bench.png").stat().st_size > 1000
