"""Sums over the ranks of a process group, or over the shards of DTensors."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def is_dtensor(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor. If it is, this registers the sharding rules of the operators."""
    if type(tensor) is Tensor or not hasattr(tensor, "device_mesh"):
        return False
    import segloss._dtensor  # noqa: F401  here, as torch.distributed.tensor imports slowly and few need it

    return True


def sum_over_ranks(
    op: str, process_group: "ProcessGroup | None", refused: list[Exception], *tensors: Tensor
) -> list[Tensor]:
    """The sums of the tensors over all ranks, in one message; without a group, of DTensors, one by one.

    Each rank's gradient is that of the sum of the ranks' losses. These losses are equal, so the mean of the gradients,
    which DistributedDataParallel computes, is the gradient of one of them. DTensors handle this themselves.

    `refused` holds the error of a rank whose operators refused its data; on other ranks it is empty. As the others wait
    for that rank, it sends stand-ins for its sums, with a flag. Then it raises its error, and the others one that names
    it.
    """
    if process_group is None:
        from segloss._dtensor import replicated

        return replicated(*tensors)
    if is_dtensor(tensors[0]):
        raise ValueError("segloss: expected no process_group with DTensors, whose device_mesh tells the ranks")
    # Here, as the import is slow and few need it. torch.distributed.nn recommends it: differentiable, and it compiles.
    from torch.distributed._functional_collectives import all_reduce, wait_tensor

    flags = tensors[0].new_zeros(torch.distributed.get_world_size(process_group))
    if refused:
        flags[torch.distributed.get_rank(process_group)] = 1
    packed = torch.cat([*(each.flatten() for each in tensors), flags])
    try:
        total: Tensor = wait_tensor(all_reduce(packed, "sum", process_group))  # type: ignore[no-untyped-call]
    finally:
        if refused:
            raise refused.pop()  # popped, as a cycle of error and frame would keep the logits
    *parts, flags = torch.split(total, [*(each.numel() for each in tensors), flags.numel()])
    if shares_errors(process_group, flags) and type(flags) is Tensor:  # a fake tensor has no values
        _raise_for_others(op, process_group, [rank for rank, flag in enumerate(flags.tolist()) if flag])
    return [part.view_as(each) for part, each in zip(parts, tensors, strict=True)]


def shares_errors(process_group: "ProcessGroup | None", tensor: Tensor) -> bool:
    """Whether the other ranks learn of an error of this rank's operators, from the next message.

    Under torch.compile they do not: reading the flags would break the graph. Nor where the kernels of a GPU report bad
    data to a later call: reading the flags would make the host wait for the device.
    """
    if process_group is None or torch.compiler.is_compiling() or tensor.is_meta or is_dtensor(tensor):
        return False
    has_kernels = torch._C._dispatch_has_kernel_for_dispatch_key("segloss::soft_stats_forward", "CUDA")
    return not (tensor.is_cuda and has_kernels) or os.environ.get("SEGLOSS_SYNC_CHECKS") == "1"


def sums_or_zeros(
    process_group: "ProcessGroup | None",
    refused: list[Exception],
    like: Tensor,
    sizes: Callable[[], Sequence[tuple[int, ...]] | None],
    operator: Callable[..., Any],
    *arguments: Any,
) -> list[Tensor]:
    """The sums that the operator returns; if it raises an error that is shared, zeros, and the error in `refused`.

    The zeros are on the device of `like`. If an argument leaves their sizes unknown, None, no error is shared.
    """
    try:
        sums = operator(*arguments)
        return [sums] if isinstance(sums, Tensor) else list(sums)
    except Exception as error:
        sizes_of_zeros = sizes() if shares_errors(process_group, like) else None
        if sizes_of_zeros is None:
            raise
        refused.append(error)
        dtype = torch.float32 if like.is_mps else torch.float64  # as the operators return them
        return [like.new_zeros(size, dtype=dtype) for size in sizes_of_zeros]


def _raise_for_others(op: str, process_group: "ProcessGroup", ranks: list[int]) -> None:
    if not ranks:
        return
    names = []
    for rank in ranks:
        global_rank = torch.distributed.get_global_rank(process_group, rank)
        names.append(str(rank) if global_rank == rank else f"{rank} (of all processes: {global_rank})")
    whose = f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(names)}"
    raise RuntimeError(
        f"{op}: expected sums from every rank of process_group, got an error on {whose}. Its own message, there, says "
        "what to change; no rank waits in this call any more, and the group can be used again"
    )


def check_process_group(op: str, process_group: Any) -> None:
    """Raises a TypeError for a value that is not a process group; None is this process alone."""
    if process_group is None:
        return
    if torch.distributed.is_available() and isinstance(process_group, torch.distributed.ProcessGroup):
        return
    raise TypeError(
        f"{op}: expected process_group to be a torch.distributed.ProcessGroup, got {type(process_group).__name__}. "
        "Use torch.distributed.group.WORLD for all processes"
    )
