"""Memory that forward and backward take beyond logits and labels, measured by the benchmark in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "cross_entropy.py"
IMAGES_OF_19_CLASSES = "1"  # the benchmark's case [2, 19, 512, 1024] with uint8 labels


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_hardly_more_than_the_gradient():
    """In units of the logits' bytes: 1 is the gradient, 1/19 the number kept for each voxel."""
    command = [sys.executable, BENCHMARK, "--peak-memory", "segloss", IMAGES_OF_19_CLASSES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 1.0 < float(done.stdout) < 1.2
