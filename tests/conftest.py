"""What every test file has."""

import pytest
import torch

import segloss


def pytest_report_header():
    return f"segloss: {segloss.__path__[0]}, kernels: {segloss.get_isa()}"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def num_threads():
    """Sets torch's number of threads; the old one comes back at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
