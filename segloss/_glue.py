"""Names of the libraries that hold the operators. setup.py also reads this file, without importing the package."""

import re


def name(torch_version: str) -> str:
    """Name of the library for a version of torch. One library serves all releases and builds of a minor version, as
    torch's C++ classes differ between minor versions. A development version has a library of its own.
    """
    release = re.fullmatch(r"(\d+)\.(\d+)\.\d+(\.post\d+)?(\+.*)?", torch_version)
    served = f"{release[1]}_{release[2]}" if release else re.sub(r"\W", "_", torch_version)
    return f"_C_torch{served}"
