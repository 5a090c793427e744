"""The private operators: arguments of those that compute the losses, which take their options as two lists."""

import torch

ACTIVATIONS = ("softmax", "sigmoid", "none")
DTYPES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}  # numbers of c10::ScalarType
DTYPES |= {torch.int64: 4, torch.complex64: 9}  # dtypes that no loss has

# Options whose value the public operators choose themselves, unless the caller does.
SET = {name: {"dtype": torch.float32, "with_gradient": False} for name in ("cross_entropy", "binary_cross_entropy")}


def options_of(loss, **values):
    """No label table; `dim`; the lists of integers and of floats, in the order of the public operator's keywords."""
    schema = getattr(torch.ops.segloss, loss).default._schema
    options = {a.name: a.default_value for a in schema.arguments if a.name != "op" and "Tensor" not in str(a.type)}
    options |= SET.get(loss, {})
    assert not set(values) - set(options)
    dim, *numbers = [number_of(name, value) for name, value in (options | values).items()]
    return None, dim, [n for n in numbers if not isinstance(n, float)], [n for n in numbers if isinstance(n, float)]


def number_of(name, value):
    if name == "dtype":
        return DTYPES[value]
    if name == "activation":
        return ACTIVATIONS.index(value)
    return value if isinstance(value, float) else int(value)


def without_kernel(operator, *arguments):
    """The operator's result by its code for devices without a kernel, on tensors of this one."""
    device = torch._C.DispatchKeySet(torch._C.DispatchKey.XLA)
    return getattr(torch.ops.segloss, operator).default.redispatch(device, *arguments)
