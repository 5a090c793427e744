"""The names of the libraries that hold the operators. setup.py reads this file, too, without importing the package."""

import re


def name(torch_version: str) -> str:
    """Of the library for a version of torch: one serves all releases of a minor version, however they were built, as
    torch's C++ classes differ from minor version to minor version. Anything else is served by its own alone.
    """
    release = re.fullmatch(r"(\d+)\.(\d+)\.\d+(\.post\d+)?(\+.*)?", torch_version)
    served = f"{release[1]}_{release[2]}" if release else re.sub(r"\W", "_", torch_version)
    return f"_C_torch{served}"
