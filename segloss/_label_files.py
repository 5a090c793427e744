"""Label maps in files: NIfTI by nibabel, PNG by pillow; both are imported when a file is read."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

SUFFIXES = (".nii.gz", ".nii", ".png")
_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # of pillow: one number for each pixel
_LARGEST_SHIFT = 0.1  # between voxels of two files on one grid, in voxels: headers are rounded


class LabelFile(NamedTuple):
    path: Path
    labels: Tensor  # of integers, without batch and channel
    spacing: tuple[float, ...] | None
    affine: Tensor | None  # float64 [4, 4], from voxels to millimetres


def files_of(folder: Path) -> dict[str, Path]:
    """The files with labels by their names without suffix."""
    if not folder.is_dir():
        raise NotADirectoryError(f"evaluate: expected a folder, got {folder}")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((each for each in SUFFIXES if path.name.lower().endswith(each)), None)
        if suffix is None or path.name.startswith(".") or not path.is_file():
            continue
        name = path.name[: -len(suffix)]
        if name in files:
            raise ValueError(
                f"evaluate: expected one file for each case, got {files[name].name} and {path.name} in {folder}. "
                "Remove one"
            )
        files[name] = path
    return files


def check_packages(paths: list[Path]) -> None:
    """Imports what reads these files."""
    for is_png in sorted({_is_png(path) for path in paths}):
        _pillow() if is_png else _nibabel()


def read(path: Path) -> LabelFile:
    return _read_png(path) if _is_png(path) else _read_nifti(path)


def check_one_grid(prediction: LabelFile, reference: LabelFile, ignore_affine: bool) -> None:
    shapes = [list(each.labels.shape) for each in (prediction, reference)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"expected both files of one shape, got prediction {shapes[0]} and labels {shapes[1]}")
    if ignore_affine or prediction.affine is None or reference.affine is None:
        return
    _check_header(reference)
    sizes = [size - 1 for size in shapes[0]] + [0] * (3 - len(shapes[0]))
    corners = torch.tensor([[*corner, 1] for corner in itertools.product(*((0, size) for size in sizes))]).double()
    shift = ((prediction.affine - reference.affine)[:3] @ corners.T).norm(dim=0).max().item()
    smallest = reference.affine[:3, :3].norm(dim=0).min().item()
    if not shift <= _LARGEST_SHIFT * smallest:
        got = " and ".join(
            f"{name} with spacing {_rounded(each.spacing)} and affine {_rounded(each.affine[:3].flatten().tolist())}"
            for name, each in (("prediction", prediction), ("labels", reference))
            if each.affine is not None
        )
        raise ValueError(
            f"expected both files on one grid, got voxels that are up to {shift:.4g} mm apart: {got}. Resample the "
            "prediction, or use --ignore-affine if a header is wrong"
        )


def _check_header(file: LabelFile) -> None:
    """A NIfTI header has the spacing twice: as such, and in the affine."""
    assert file.affine is not None
    assert file.spacing is not None
    of_affine = file.affine[:3, : len(file.spacing)].norm(dim=0)
    if not torch.allclose(of_affine, torch.tensor(file.spacing, dtype=torch.float64), rtol=1e-2, atol=0):
        raise ValueError(
            f"expected one spacing in the header of {file.path}, got {_rounded(file.spacing)} in pixdim and "
            f"{_rounded(of_affine.tolist())} in its affine. Mend it, or use --ignore-affine to take pixdim"
        )


def _rounded(numbers: Any) -> list[float] | None:
    return None if numbers is None else [float(f"{number:.5g}") for number in numbers]


def _is_png(path: Path) -> bool:
    return path.name.lower().endswith(".png")


def _read_nifti(path: Path) -> LabelFile:
    image: Any = _nibabel().load(path)
    array = image.dataobj[...]
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3):
        raise ValueError(f"expected an image of two or three axes in {path}, got shape {list(array.shape)}")
    # A float32 of the header as the decimal number that was meant: 0.3, not 0.30000001192.
    spacing = tuple(float(str(step)) for step in image.header.get_zooms()[: array.ndim])
    affine = torch.tensor(image.affine, dtype=torch.float64)
    return LabelFile(path, _integers(path, array), spacing, affine)


def _read_png(path: Path) -> LabelFile:
    import numpy

    with _pillow().open(path) as image:
        if image.mode not in _MODES:
            raise ValueError(
                f"expected a PNG with one number for each pixel in {path}, got mode {image.mode}. Convert colours to "
                "labels first"
            )
        # The bytes of pillow's bools are 0 and 255.
        array = numpy.array(image.convert("L")) > 0 if image.mode == "1" else numpy.array(image)
    return LabelFile(path, _integers(path, array), None, None)


def _integers(path: Path, array: Any) -> Tensor:
    """As a tensor in the order of the file's axes, whose strides are those of the file."""
    array = array.astype(array.dtype.newbyteorder("="), order="K", copy=True)  # also writable, as torch asks
    if array.dtype.kind == "f":
        labels = torch.from_numpy(array)
        is_fraction = labels != labels.floor()  # of nan, too
        if is_fraction.any() or labels.isinf().any():
            bad = labels[is_fraction | labels.isinf()]
            raise ValueError(
                f"expected integral labels in {path}, got {bad[0].item():g}, the first of {len(bad)}. Round labels "
                "that were interpolated, or save the argmax of probabilities"
            )
        return labels.to(torch.int64)
    if array.dtype.kind not in "biu":
        raise ValueError(f"expected integers in {path}, got {array.dtype}")
    return torch.from_numpy(array)


def _nibabel() -> Any:
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise _missing("nibabel", "NIfTI") from error
    return nibabel


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise _missing("pillow", "PNG") from error
    return Image


def _missing(package: str, kind: str) -> ImportError:
    return ImportError(
        f"evaluate: expected {package} to be installed, which reads {kind}, got none. Use "
        '`pip install "torch-segloss[evaluate]"`'
    )
