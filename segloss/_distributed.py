"""Sums over the ranks of a process group, or over the shards of DTensors."""

import os
from collections.abc import Callable, Sequence
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


def sum_over_ranks(
    op: str, process_group: "ProcessGroup | None", refused: list[Exception], *tensors: Tensor
) -> list[Tensor]:
    """The tensors of all ranks added up, in one message; without a group, DTensors, one by one.

    Each rank's gradient is that of the sum of the ranks' losses. They are equal, so the mean over the ranks, as
    DistributedDataParallel takes it, is the gradient of one of them. DTensors keep account of that themselves.

    `refused` holds the error of a rank whose operators refused its data, and nothing on others. It sends what stands
    in for its sums, with a flag, as the others would wait for it; then it raises that error, they one that names it.
    """
    if process_group is None:
        from segloss._dtensor import replicated

        return replicated(*tensors)
    if is_dtensor(tensors[0]):
        raise ValueError("segloss: expected no process_group with DTensors, whose device_mesh tells the ranks")
    # Here, as it takes long and few ask for it; what torch.distributed.nn advises, differentiable and to be compiled.
    from torch.distributed._functional_collectives import all_reduce, wait_tensor

    flags = tensors[0].new_zeros(torch.distributed.get_world_size(process_group))
    if refused:
        flags[torch.distributed.get_rank(process_group)] = 1
    packed = torch.cat([*(each.flatten() for each in tensors), flags])
    try:
        total: Tensor = wait_tensor(all_reduce(packed, "sum", process_group))  # type: ignore[no-untyped-call]
    finally:
        if refused:
            raise refused.pop()  # held by no frame that it holds itself, so that nothing keeps the logits
    *parts, flags = torch.split(total, [*(each.numel() for each in tensors), flags.numel()])
    if shares_errors(process_group, flags) and type(flags) is Tensor:  # a fake tensor has no values
        _raise_for_others(op, process_group, [rank for rank, flag in enumerate(flags.tolist()) if flag])
    return [part.view_as(each) for part, each in zip(parts, tensors, strict=True)]


def shares_errors(process_group: "ProcessGroup | None", tensor: Tensor) -> bool:
    """Whether an error of this rank's operators is told the others, who read of it in the next message.

    A graph would break there. Where a GPU's kernels report what they refused to a later call, it is that call's error:
    to read flags, too, the host would have to wait for the device.
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
    """The operator's sums of `like`; zeros of their sizes, and its error in `refused`, where that is shared.

    An argument may leave the sizes unknown, None: then no error is shared.
    """
    try:
        sums = operator(*arguments)
        return [sums] if isinstance(sums, Tensor) else list(sums)
    except Exception as error:
        sizes_of_zeros = sizes() if shares_errors(process_group, like) else None
        if sizes_of_zeros is None:
            raise
        refused.append(error)
        dtype = torch.float32 if like.is_mps else torch.float64  # as the operators give them
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
    """TypeError for what is no process group; None is this process alone."""
    if process_group is None:
        return
    if torch.distributed.is_available() and isinstance(process_group, torch.distributed.ProcessGroup):
        return
    raise TypeError(
        f"{op}: expected process_group to be a torch.distributed.ProcessGroup, got {type(process_group).__name__}. "
        "Use torch.distributed.group.WORLD for all processes"
    )
