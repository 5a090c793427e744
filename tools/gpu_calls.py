"""Calls of segloss, forward and backward, for tools that watch a GPU at work.

"small": every kind of kernel on a few voxels, for compute-sanitizer. "large": cross entropy and Dice + cross entropy at
sizes that matter, for ncu, which profiles what lies between the start and the stop of the profiler.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

import segloss

Call = tuple[str, Callable[[], Tensor]]

LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": segloss.cross_entropy,
    "dice_ce_loss": segloss.dice_ce_loss,
}
LARGE = [(2, 4, 128, 128, 128), (2, 19, 1024, 2048)]


def logits_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    logits = torch.randn(shape, dtype=dtype)
    if last:
        logits = logits.to(memory_format=torch.channels_last if logits.dim() == 4 else torch.channels_last_3d)
    return logits.requires_grad_()


def labels_of(logits: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(logits.shape[1], (logits.shape[0], 1, *logits.shape[2:])).to(dtype)


def small_calls() -> Iterator[Call]:
    """Class counts of every kernel, sizes that fill neither the last tile nor the last vector."""
    for classes, dtype, last, of_labels in [
        (2, torch.float32, False, torch.uint8),
        (4, torch.bfloat16, False, torch.int64),
        (4, torch.float32, True, torch.uint8),
        (19, torch.float16, False, torch.int16),
        (105, torch.bfloat16, True, torch.uint8),
        (300, torch.float32, False, torch.int32),
    ]:
        logits = logits_of((2, classes, 7, 9, 33), dtype, last)
        labels = labels_of(logits, of_labels)
        for name, loss in LOSSES.items():
            yield f"{name}, {classes} classes, {dtype}, last: {last}", partial(loss, logits, labels)
    logits = logits_of((2, 3, 45, 67))
    labels, masks = labels_of(logits), torch.rand(logits.shape).lt(0.3)
    weight = torch.tensor([1.0, 2.0, 3.0])
    yield "focal_loss with options", partial(segloss.focal_loss, logits, labels, weight=weight, ignore_index=1)
    yield "focal_loss of sigmoids", partial(segloss.focal_loss, logits, masks, activation="sigmoid")
    yield "dice_loss of sigmoids", partial(segloss.dice_loss, logits, masks, activation="sigmoid")
    for classes, dtype, last in [(1, torch.float32, False), (5, torch.bfloat16, False), (9, torch.float32, True)]:
        x = logits_of((2, classes, 45, 67), dtype, last)
        masks = torch.rand(x.shape).lt(0.3)
        call = partial(segloss.dice_ce_loss, x, masks, activation="sigmoid", ignore_index=255)
        yield f"dice_ce_loss of masks, {classes} classes, {dtype}, last: {last}", call
    for name, loss in LOSSES.items():
        small = logits_of((2, 3, 12, 17))
        yield f"{name} of upsampled logits", partial(loss, small, labels, upsample="bilinear")
        yield f"{name} of label sets", partial(loss, logits, labels, label_sets={0: (0, 1)})
    yield "cross_entropy of each voxel", partial(segloss.cross_entropy, logits, labels, reduction="none")
    yield "confusion_matrix", partial(segloss.confusion_matrix, logits, labels)


def large_calls() -> Iterator[Call]:
    for shape in LARGE:
        logits = logits_of(shape)
        labels = labels_of(logits)
        for name, loss in LOSSES.items():
            yield f"{name} {list(shape)}", partial(loss, logits, labels)


def run(call: Callable[[], Tensor]) -> None:
    result = call()
    if result.requires_grad:
        torch.autograd.backward(result.sum())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=("small", "large"))
    parser.add_argument("--device", default="cuda", help="another than cuda only shows that the calls are right")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_default_device(args.device)
    on_gpu = args.device == "cuda"
    for name, call in small_calls() if args.size == "small" else large_calls():
        print(name, flush=True)  # before the call: in a log, a tool's complaint follows its name
        if args.size == "large":
            run(call)  # the first call allocates
        with torch.cuda.profiler.profile() if on_gpu else nullcontext():
            run(call)
            if on_gpu:
                torch.cuda.synchronize()


if __name__ == "__main__":
    main()
