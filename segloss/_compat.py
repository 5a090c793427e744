"""All code that depends on the version of torch. Each entry names the torch that needs it, and is removed with it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch._ops import OpOverload

if TYPE_CHECKING:
    from torch.distributed.tensor._op_schema import OpSchema

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


def is_autocast_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# Newest torch whose compiler does not trace it: 2.11. This is what torch.compiler.assume_constant_result sets.
if TORCH < (2, 12):
    is_autocast_available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def register_sharding(op: OpOverload, rule: Callable[..., Any]) -> None:
    """A DTensor rule for an operator whose first argument need not be a tensor."""
    from torch.distributed.tensor import DTensor  # here, as the import is slow and few need it
    from torch.distributed.tensor.experimental import register_sharding

    register_sharding(op)(rule)
    if TORCH < (2, 12):  # newest torch that looks for a mesh in the first argument alone: 2.11
        strategies = DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs
        strategies[op] = _with_mesh_of_tensors(strategies[op])


def _with_mesh_of_tensors(strategy: Callable[["OpSchema"], Any]) -> Callable[["OpSchema"], Any]:
    def with_mesh(schema: "OpSchema") -> Any:
        of_tensors = type(schema)(schema.op, schema.args_strategy, {})
        schema.get_mesh_from_args = of_tensors.get_mesh_from_args  # type: ignore[method-assign]
        return strategy(schema)

    return with_mesh
