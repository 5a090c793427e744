"""Loads the compiled operators, after a look at what they were built for."""

from pathlib import Path

import torch  # loads the libraries that the extension links against


def _check_torch() -> None:
    """The extension holds classes of its torch, which differ from minor version to minor version."""
    record = Path(__file__).with_name("_C.torch")
    if not record.exists():
        raise ImportError(
            f"segloss: expected the compiled extension in {record.parent}, found none. "
            "In the source folder: pip install --no-build-isolation --editable ."
        )
    built_with = record.read_text()
    major, minor = built_with.split(".")[:2]
    if torch.__version__.split(".")[:2] != [major, minor]:
        raise ImportError(
            f"segloss: expected torch {major}.{minor}, as the extension was built with torch {built_with}, "
            f"got torch {torch.__version__}. Install torch {major}.{minor}, or build segloss again with this one"
        )


_check_torch()  # before the loader finds a symbol missing, or worse, none

from segloss._C import get_isa  # noqa: E402

get_isa()  # an unusable SEGLOSS_ISA fails here, not in the first training step

__all__ = ["get_isa"]
