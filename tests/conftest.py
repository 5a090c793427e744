"""Hooks and fixtures that all test files share."""

import getpass
import hashlib
import os
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

import segloss


def pytest_report_header():
    return f"segloss: {segloss.__path__[0]}, kernels: {segloss.get_isa()}"


# ---- compiled code ----


def cache_of_compiled_code():
    """A cache for these operators alone: torch would reuse code that calls older ones, with other arguments."""
    schemas = sorted(str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("segloss::"))
    key = hashlib.sha1("".join(schemas).encode()).hexdigest()[:8]
    return str(Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}_segloss_{key}")


os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache_of_compiled_code())


# ---- tests on a GPU ----


def pytest_generate_tests(metafunc):
    """Where there is a GPU, runs a test on the CPU and on the GPU, unless it is marked cpu_only or sets threads."""
    is_of_the_cpu = metafunc.definition.get_closest_marker("cpu_only") or "num_threads" in metafunc.fixturenames
    if torch.cuda.is_available() and not is_of_the_cpu:
        metafunc.parametrize("device", ["cpu", "cuda"], indirect=True)


def moved(tree, device):
    """The tree with its tensors and modules on the device."""

    def move(each):
        return (deepcopy(each) if isinstance(each, nn.Module) else each).to(device)  # a module's to() changes it

    return tree_map_only((torch.Tensor, nn.Module), move, tree)


@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    """The device on which a test makes its tensors; the tensors in its file's constants are moved there, too."""
    device = getattr(request, "param", "cpu")
    if device == "cpu":
        yield device
        return
    monkeypatch.setenv("SEGLOSS_SYNC_CHECKS", "1")  # so that the call with a bad label raises, as on the CPU
    constants = {name: value for name, value in vars(request.module).items() if name.isupper()}
    for name, value in constants.items():
        monkeypatch.setattr(request.module, name, moved(value, device))
    torch.set_default_device(device)
    yield device
    torch.set_default_device(None)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Moves the test's arguments to its device: parameters and fixtures of a file were made before there was one."""
    device = pyfuncitem.funcargs["device"]
    if device != "cpu":
        pyfuncitem.funcargs = moved(pyfuncitem.funcargs, device)


# ---- fixtures ----


@pytest.fixture(autouse=True)
def _seed():
    """torch.manual_seed keeps the stack of each call for a GPU that it may find later: three milliseconds a test."""
    seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
    seed(0)


@pytest.fixture
def num_threads():
    """Sets torch's number of threads; restores the old one at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
