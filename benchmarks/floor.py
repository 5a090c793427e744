"""The floor of a loss on a GPU: what it must read and write, at the rate of a copy within the GPU's memory."""

from cases import PATCHES, STREETS, TUMOUR_PATCHES, WHOLE_BODY, Call, Case, on_device, variants
from limits import copy_rate
from passes import PASSES
from report import Row
from timing import seconds_alone
from torch import Tensor

import segloss

# One of each kind of kernel.
LOSSES: dict[str, Call] = {
    "cross_entropy": segloss.cross_entropy,
    "focal_loss": segloss.focal_loss,
    "dice_ce_loss": segloss.dice_ce_loss,
    "confusion_matrix": segloss.confusion_matrix,
}
PROBLEMS = [TUMOUR_PATCHES, PATCHES, STREETS, WHOLE_BODY]


def floor_cases(device: str) -> list[Case]:
    return on_device(
        [Case(loss, each) for loss in LOSSES for problem in PROBLEMS for each in variants(problem)], device
    )


def floor_bytes(case: Case, name: str, logits: Tensor, labels: Tensor) -> int:
    """The fewest bytes that a pass can read and write.

    Cross entropy writes its gradient along with the loss. The gradient of a Dice loss needs all sums first, so that
    everything is read twice. The mean over voxels of which some are ignored needs their number first, from the labels.
    """
    if name == "forward":
        return logits.nbytes + labels.nbytes
    is_dice = "dice" in case.loss
    counts_labels = is_dice or case.problem.ignore_index >= 0
    return (3 if is_dice else 2) * logits.nbytes + (2 if counts_labels else 1) * labels.nbytes


def time_floor(case: Case, budget: float) -> list[Row]:
    logits, labels = case.problem.tensors()
    call = LOSSES[case.loss]
    rows = []
    for name in PASSES if call(logits, labels).requires_grad else ["forward"]:
        taken = seconds_alone(PASSES[name](call, logits, labels), budget)
        moved = floor_bytes(case, name, logits, labels)
        share = moved / taken / copy_rate(case.problem.device)
        rows.append(
            {"loss": case.loss, **case.columns(), "pass": name, "bytes": moved, "segloss": taken, "share": share}
        )
    return rows
