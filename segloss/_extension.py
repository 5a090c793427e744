"""Loads the operators compiled for the installed torch."""

import warnings
from importlib import metadata
from pathlib import Path

import torch  # loads the libraries that the operators link against

from segloss import _glue


def _is_installed() -> bool:
    """Whether there is a torch-segloss with files of its own, beside the package that is imported."""
    every = metadata.distributions(name="torch-segloss")  # a build leaves metadata in the source folder as well
    return any(file.match("segloss/_C_torch*.so") for each in every for file in each.files or [])


def library() -> Path:
    """The path of the operators for this torch."""
    here = Path(__file__).parent
    library = here / f"{_glue.name(torch.__version__)}.so"
    if not library.exists():
        there = sorted(path.stem.removeprefix("_C_torch").replace("_", ".", 1) for path in here.glob("_C_torch*.so"))
        raise ImportError(
            f"segloss: expected torch {' or '.join(there)}, which {here} has compiled operators for, got torch "
            f"{torch.__version__}. To compile them for this torch: "
            "pip install --no-build-isolation --no-binary torch-segloss torch-segloss"
            if there
            else f"segloss: expected compiled operators in {here}, found none: this is the source folder. "
            + (
                "Start Python in another folder, where it finds the torch-segloss that is installed"
                if _is_installed()
                else "Compile them: pip install --no-build-isolation --editable ."
            )
        )
    return library


def _warn_of_namesake() -> None:
    """Warns of another project's distribution `segloss`: the one installed last overwrites segloss/__init__.py."""
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
    """Name of the instruction set whose kernels are in use.

    The environment variable ``SEGLOSS_ISA`` selects another one that this processor has; set it before the import.

    Returns:
        A str, ``"baseline"``, ``"avx2"`` or ``"avx512"`` on x86, ``"neon"`` on ARM.

    Raises:
        ValueError: ``SEGLOSS_ISA`` is not an instruction set that this processor has; the import raises it, too.

    Example:
        >>> import segloss
        >>> segloss.get_isa() in ("baseline", "avx2", "avx512", "neon")
        True

    See also:
        * ``torch.backends.cpu.get_cpu_capability``: the instruction set of torch's own kernels
    """
    return str(torch.ops.segloss.get_isa())


def synchronize(device: torch.types.Device = None) -> None:
    """Waits for a GPU, and raises what segloss's last calls there refused.

    The kernels on a GPU check labels, but no call waits for them: a call that refuses one returns nan, and the next one
    raises. Nothing follows the last call of a run, or of an epoch: call this there. Without CUDA kernels every call
    raises itself, and there is nothing to wait for.

    Args:
        device: a CUDA device. Default: None, the current one.

    Returns:
        None.

    Raises:
        IndexError: an earlier call on this device refused a label, a mask, a probability or a predicted label.

    Example:
        >>> import segloss, torch
        >>> loss = segloss.cross_entropy(torch.zeros(1, 2, 3), torch.tensor([[0, 1, 1]]))
        >>> segloss.synchronize()  # raises here at the latest if a label was out of bounds
        >>> round(loss.item(), 4)
        0.6931

    See also:
        * ``torch.cuda.synchronize``: only waits
    """
    raise_reported = getattr(torch.ops.segloss, "raise_reported", None)
    if raise_reported is None:
        return
    index = -1
    if torch.cuda.is_available():
        with torch.cuda.device(device):
            torch.cuda.synchronize()
            index = torch.cuda.current_device()
    raise_reported("synchronize", index)


# An unusable SEGLOSS_ISA or SEGLOSS_CACHE_SIZE fails here, not in the first training step.
get_isa()
torch.ops.segloss.cache_size()

__all__ = ["get_isa", "synchronize"]
