"""A fixture that all tests against other packages share."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(num_threads):
    """Tensors and networks as small as these are no faster with more threads, and wait for them on a busy machine."""
    num_threads(1)
