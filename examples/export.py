"""Resample a prediction to the size of the volume: what nnU-Net's export does with all logits, and ``predict`` without.

    pip install nilearn nibabel matplotlib tqdm     # and segloss itself, as its README says
    pip install nnunetv2                            # to compare with nnU-Net's own functions; else with torch's
    python examples/export.py

The logits are those of the tissues of the MNI152 brain of mni152.py, at half the resolution. Printed are the time, and
the share of voxels where the label maps differ; there the two largest logits are equal but for rounding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from mni152 import CLASSES, IGNORE, load_hemispheres
from torch import Tensor
from torch.nn import functional as F

import segloss


def half_size_logits(labels: Tensor) -> Tensor:
    """Logits [1, C, *] of a network that is unsure at borders: the logarithm of smoothed labels, at half the size."""
    one_hot = F.one_hot(labels.masked_fill(labels == IGNORE, 0).long(), len(CLASSES)).movedim(-1, 0).float()
    smooth = F.avg_pool3d(one_hot[None], 5, stride=2, padding=2, count_include_pad=False)
    return (smooth + 0.01 + 1e-3 * torch.rand(smooth.shape, generator=torch.Generator().manual_seed(0))).log()


def exports() -> dict[str, Callable[[Tensor, list[int]], Tensor]]:
    """Each takes logits [C, *] to logits of the size, as nnU-Net does before its argmax."""
    spacings = ((2.0, 2.0, 2.0), (1.0, 1.0, 1.0))
    try:
        import numpy as np
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
        from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
    except ImportError:
        return {"F.interpolate": lambda x, size: F.interpolate(x[None], size=size, mode="trilinear")[0]}

    def by_default(x: Tensor, size: list[int]) -> Tensor:
        old, new = map(np.array, spacings)
        return torch.as_tensor(resample_data_or_seg_to_shape(x.numpy(), size, old, new, is_seg=False, order=1))

    return {
        "resample_torch_fornnunet": lambda x, size: resample_torch_fornnunet(x, size, *spacings),
        "nnU-Net's default": by_default,
    }


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def differences(full_size: Tensor, prediction: Tensor) -> tuple[float, float]:
    """The share of voxels that differ from the argmax, and how far apart the two largest logits are there at most."""
    differs = full_size.argmax(0) != prediction
    largest, second = full_size.double().topk(2, 0).values
    return differs.double().mean().item(), (largest - second)[differs].max().item() if differs.any() else 0.0


def main(arguments: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    labels = torch.cat([each.labels[0, 0] for each in load_hemispheres()[:2]])  # both hemispheres, [D, H, W]
    logits, size = half_size_logits(labels), list(labels.shape)
    prediction, seconds = timed(lambda: segloss.predict(logits, size, upsample="trilinear")[0])
    print(f"{list(logits.shape)} to {size}\n{'predict':26} {seconds * 1e3:7.0f} ms")
    found = {}
    for name, export in exports().items():
        full_size, seconds = timed(lambda export=export: export(logits[0], size))
        found[name] = differences(full_size, prediction)
        print(
            f"{name:26} {seconds * 1e3:7.0f} ms before its argmax; {found[name][0] * 1e5:.2f} voxels in 100 000 differ"
        )
    return found


if __name__ == "__main__":
    main()
