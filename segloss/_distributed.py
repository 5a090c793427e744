"""Sums over the ranks of a process group, or over the shards of DTensors."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def is_dtensor(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor; if it is, the operators have sharding rules from here on."""
    if type(tensor) is Tensor or not hasattr(tensor, "device_mesh"):
        return False
    import segloss._dtensor  # noqa: F401  here, as torch.distributed.tensor takes long and few ask for it

    return True


def sum_over_ranks(process_group: "ProcessGroup | None", *tensors: Tensor) -> list[Tensor]:
    """The tensors of all ranks added up, in one message; without a group, DTensors, one by one.

    Each rank's gradient is that of the sum of the ranks' losses. They are equal, so the mean over the ranks, as
    DistributedDataParallel takes it, is the gradient of one of them. DTensors keep account of that themselves.
    """
    if process_group is None:
        from segloss._dtensor import replicated

        return replicated(*tensors)
    if is_dtensor(tensors[0]):
        raise ValueError("segloss: expected no process_group with DTensors, whose device_mesh tells the ranks")
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
