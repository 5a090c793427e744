"""Sums over the ranks of a process group."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def sum_over_ranks(process_group: "ProcessGroup", *tensors: Tensor) -> list[Tensor]:
    """The tensors of all ranks added up, in one message.

    Each rank's gradient is that of the sum of the ranks' losses. They are equal, so the mean over the ranks, as
    DistributedDataParallel takes it, is the gradient of one of them.
    """
    # Here, as it takes long and few ask for it; what torch.distributed.nn advises, differentiable and to be compiled.
    from torch.distributed._functional_collectives import all_reduce, wait_tensor

    packed = torch.cat([each.flatten() for each in tensors])
    total: Tensor = wait_tensor(all_reduce(packed, "sum", process_group))  # type: ignore[no-untyped-call]
    parts = torch.split(total, [each.numel() for each in tensors])
    return [part.view_as(each) for part, each in zip(parts, tensors, strict=True)]


def check_process_group(op: str, process_group: Any) -> None:
    """TypeError for what is no process group; None is this process alone."""
    if process_group is None:
        return
    if torch.distributed.is_available() and isinstance(process_group, torch.distributed.ProcessGroup):
        return
    raise TypeError(
        f"{op}: expected process_group to be a torch.distributed.ProcessGroup, got {type(process_group).__name__}. "
        "Use torch.distributed.group.WORLD for all processes"
    )
