"""Loads the operators that were compiled for the torch at hand."""

import warnings
from importlib import metadata
from pathlib import Path

import torch  # loads the libraries that the operators link against

from segloss import _glue


def library() -> Path:
    """Of the operators for this torch."""
    here = Path(__file__).parent
    library = here / f"{_glue.name(torch.__version__)}.so"
    if not library.exists():
        there = sorted(path.stem.removeprefix("_C_torch").replace("_", ".", 1) for path in here.glob("_C_torch*.so"))
        raise ImportError(
            f"segloss: expected torch {' or '.join(there)}, which {here} has compiled operators for, got torch "
            f"{torch.__version__}. To compile them for this torch: "
            "pip install --no-build-isolation --no-binary torch-segloss torch-segloss"
            if there
            else f"segloss: expected compiled operators in {here}, found none. In the source folder: "
            "pip install --no-build-isolation --editable ."
        )
    return library


def _warn_of_namesake() -> None:
    """Another project's distribution `segloss` has a segloss/__init__.py, too: who is installed last overwrites it."""
    try:
        version = metadata.version("segloss")
    except metadata.PackageNotFoundError:
        return
    warnings.warn(
        f"segloss: the distribution segloss {version}, of another project, is installed beside torch-segloss, in the "
        "same folder; each overwrites files of the other. Repair it: pip uninstall --yes segloss torch-segloss, then "
        "pip install torch-segloss",
        stacklevel=3,
    )


_warn_of_namesake()
torch.ops.load_library(library())  # type: ignore[no-untyped-call]


def get_isa() -> str:
    """The instruction set whose kernels are in use: ``'baseline'``, ``'avx2'`` or ``'avx512'``; ``'neon'`` on ARM.

    Raises:
        ValueError: The environment variable ``SEGLOSS_ISA`` names none that this processor has.
    """
    return str(torch.ops.segloss.get_isa())


get_isa()  # an unusable SEGLOSS_ISA fails here, not in the first training step

__all__ = ["get_isa"]
