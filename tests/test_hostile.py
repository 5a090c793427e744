"""Hostile arguments: each call gives a value or an error that says what was expected and what was given. The process
survives, and no argument is changed.
"""

import inspect
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from losses import FUNCTIONS, METRICS, OF_EACH_VOXEL, VARIANTS, takes
from monai.data import MetaTensor
from operators import ACTIVATIONS, SET, options_of
from tolerances import assert_close
from torch import Tensor, nn

import segloss

# The same examples in every run, so that a failure comes from a change and not from chance.
RANDOM = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
NAN, INF = float("nan"), float("inf")
pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors",
    "ignore:.*include_background=False is ignored",
    "ignore:.*has one channel",
    "ignore:Converting a tensor with requires_grad=True",
    "ignore:The given NumPy array is not writable",
    "ignore:The given buffer is not writable",
    "ignore:torch.quantize_per_tensor",
)

LOSSES = {
    **VARIANTS,
    **OF_EACH_VOXEL,
    "soft_stats": lambda x, y, **options: segloss.soft_stats(x, y, **options).intersection,
    "MultiClassDiceLoss": segloss.MultiClassDiceLoss(),
    "DeepSupervisionLoss": lambda x, y, **options: segloss.DeepSupervisionLoss(segloss.DiceCELoss())([x], y, **options),
}
OF_TWO = {**LOSSES, **METRICS, "BinaryDiceLoss": segloss.BinaryDiceLoss()}


# ---- what every call must do -----------------------------------------------------------------------------------------


def assert_raises_well(error: Exception) -> None:
    """The error has one of torch's classes, and names the operation, what was expected and what was given."""
    assert type(error) in (TypeError, ValueError, IndexError, RuntimeError), repr(error)
    assert re.match(r"\w+( backward)?: ", str(error)), str(error)
    assert "xpected" in str(error), str(error)
    assert re.search("[Gg]ot:? |out of bounds|not a valid value", str(error)), str(error)


def bits(tensor: Tensor) -> Tensor | None:
    """A copy of the memory that a tensor views; None if it views none."""
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
        return None
    if tensor.is_neg():  # a lazy negation: its memory holds the numbers before negation
        return tensor.detach().clone().nan_to_num()
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().view(sizes[tensor.element_size()]).clone()


def written_by(operator):
    """The places of the arguments that an operator writes to."""
    return [k for k, each in enumerate(operator._schema.arguments) if each.alias_info and each.alias_info.is_write]


def survives(call, *arguments, **options):
    """The value of a call, or None after an error that says enough. Asserts that no tensor has changed, but for those
    that an operator is to change.
    """
    written = written_by(call) if isinstance(call, torch._ops.OpOverload) else []
    values = [*(each for k, each in enumerate(arguments) if k not in written), *options.values()]
    tensors = [each for each in values if isinstance(each, Tensor)]
    before = [bits(tensor) for tensor in tensors]
    value = None
    try:
        value = call(*arguments, **options)
    except Exception as error:
        assert_raises_well(error)
    for tensor, expected in zip(tensors, before, strict=True):
        assert expected is None or torch.equal(bits(tensor), expected)
    return value


def assert_has_a_gradient(value: Tensor, x: Tensor) -> None:
    (grad,) = torch.autograd.grad(value, x, torch.ones_like(value))
    assert grad.shape == x.shape
    assert grad.dtype == x.dtype


# ---- random tensors --------------------------------------------------------------------------------------------------

READABLE = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LABELS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
WIDE_UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]  # for which torch itself has few operations
LABELS += WIDE_UNSIGNED
STRANGE = [torch.complex64, torch.float8_e4m3fn]
HOSTILE_FLOATS = [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, NAN, INF, -INF, 1e-40, 5e-324, 3e38, -3e38, -100.0, 255.0, 2.0**53]
HOSTILE_INTS = [0, 1, 2, 3, -1, -100, 127, 128, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32, 2**63 - 1, -(2**63)]


def filled(dtype: torch.dtype, shape: list[int], kind: str, seed: int) -> Tensor:
    """Logits or labels of three classes, or anything that the dtype can hold."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    if kind == "usual":
        is_real = dtype.is_floating_point or dtype.is_complex
        usual = torch.randn(shape, generator=generator) if is_real else torch.randint(3, shape, generator=generator)
        return usual.to(dtype)
    if kind == "labels":
        return torch.randint(3, shape, generator=generator).to(dtype)
    is_real = dtype.is_floating_point or dtype.is_complex
    pool = torch.tensor(HOSTILE_FLOATS, dtype=torch.float64) if is_real else torch.tensor(HOSTILE_INTS)
    return pool[torch.randint(len(pool), shape, generator=generator)].to(dtype)


def every_other(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 1]


LAYOUTS = {
    "contiguous": lambda x: x,
    "last dimension first": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": every_other,
    "expanded": lambda x: x[:1].expand(x.shape),
    "of one number": lambda x: torch.as_strided(x.contiguous(), x.shape, [0] * x.dim()) if x.numel() else x,
    "flipped": lambda x: x if x.dtype in WIDE_UNSIGNED else x.flip(0),
    "negated later": lambda x: torch._neg_view(x) if x.is_floating_point() else x,
    "sparse": lambda x: x if x.dtype in WIDE_UNSIGNED else x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "mkldnn": lambda x: x.cpu().to_mkldnn() if x.dtype == torch.float32 and x.dim() <= 5 else x,
    "nested": lambda x: x if x.dtype in WIDE_UNSIGNED else torch.nested.nested_tensor([x, x]),
}
USUAL_LAYOUTS = ["contiguous"] * 4 + ["last dimension first", "every other", "expanded", "flipped", "negated later"]


def mostly(usual, strange, share=8):
    """Draws from `strange` once in `share` times, and otherwise from `usual`."""
    return st.integers(0, share - 1).flatmap(lambda n: strange if n == 0 else usual)


@st.composite
def tensors(draw, shape: list[int], dtypes: list[torch.dtype]) -> Tensor:
    """A tensor, usually of that shape and of one of those dtypes, dense and with sane values."""
    shape = list(shape)
    if shape and draw(st.integers(0, 11)) == 0:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.sampled_from([0, 1, 2, 7]))
    if draw(st.integers(0, 15)) == 0:
        shape = draw(st.sampled_from([shape[1:], [*shape, 1], [], shape[::-1]]))
    dtype = draw(mostly(st.sampled_from(dtypes), st.sampled_from(READABLE + LABELS + STRANGE)))
    kind = draw(st.sampled_from(["usual", "usual", "labels", "hostile"]))
    x = filled(dtype, shape, kind, draw(st.integers(0, 1000)))
    if x.dim() == 0 or x.dtype in STRANGE:
        return x
    x = LAYOUTS[draw(mostly(st.sampled_from(USUAL_LAYOUTS), st.sampled_from(list(LAYOUTS))))](x)
    takes_gradient = x.is_floating_point() and not x.is_nested and draw(st.integers(0, 5)) == 0
    return x.detach().requires_grad_() if takes_gradient else x


@st.composite
def shapes(draw) -> tuple[list[int], int, int]:
    """The sizes of the positions, the number of classes, and the dimension of the classes."""
    sizes = [draw(st.sampled_from([0, 1, 2, 3])), *draw(st.lists(st.sampled_from([0, 1, 2, 5, 130]), max_size=3))]
    return sizes, draw(st.sampled_from([0, 1, 2, 3, 3, 3, 17, 130])), draw(st.integers(0, len(sizes)))


def with_classes(sizes: list[int], dim: int, num_classes: int) -> list[int]:
    return [*sizes[:dim], num_classes, *sizes[dim:]]


@st.composite
def like_labels(draw, sizes: list[int], num_classes: int, dim: int, dtypes: list[torch.dtype]) -> Tensor:
    """A target with the class dimension, with size 1 there, or without it."""
    kept = draw(st.sampled_from([None, None, 1, num_classes]))
    return draw(tensors(sizes if kept is None else with_classes(sizes, dim, kept), dtypes))


# ---- the public functions --------------------------------------------------------------------------------------------

NO_TENSOR = [None, [1.0], "labels", 3, np.zeros((2, 3)), object()]
# The usual values of an option, and strange ones.
OPTIONS = {
    "reduction": (["mean", "sum", "none"], ["average", None, 1, "MEAN"]),
    "ignore_index": ([-100, 255, 0, -1, 2**63 - 1, -(2**63), np.int64(1)], [2**63, True, None, "a", 1.5, [1], NAN]),
    "label_smoothing": ([0.0, 0.1, 1], [-0.1, 1.5, NAN, INF, None, "a", 1j, 10**400]),
    "gamma": ([0.0, 2.0, 0.5, 1], [-1.0, NAN, INF, None, "a", 1j, 10**400]),
    "k": ([10.0, 100, 1e-9, np.float32(50)], [0, 101, NAN, None, "a", 1j]),
    "empty": (["nan", "zero"], [None, 0, "inf"]),
    "activation": (["softmax", "sigmoid", None], ["relu", 1, ["softmax"]]),
    "w_type": (["square", "simple", "uniform"], [None, 2]),
    "include_background": ([True, False], ["no", None, 2]),
    "squared": ([True, False], ["no", None, NAN]),
    "jaccard": ([True, False], ["no", None, 2]),
    "soft_label": ([True, False], ["no", None, 2]),
    "batch": ([True, False], ["no", None, 2]),
    "smooth_nr": ([1e-5, 0.0, 1], [None, "a", 1j, [1.0], 10**400]),
    "smooth_dr": ([1e-5, 1.0, 0, -1.0, INF, NAN], [None, "a", 1j]),
    "alpha": ([0.5, 0, -1.0, INF, NAN], [None, "a", 1j]),
    "beta": ([0.5, 0, INF], [None, "a", 1j]),
    "lambda_dice": ([1.0, 0, -1.0, INF], [None, "a", 1j]),
    "lambda_ce": ([1.0, 0, NAN], [None, "a", 1j]),
    "lambda_focal": ([1.0, 0, NAN], [None, "a", 1j]),
    "lambda_cc": ([1.0, 0, NAN], [None, "a", 1j]),
    "lambda_global": ([1.0, 0, NAN], [None, "a", 1j]),
    "connectivity": ([None, 1], [0, 9, "a", True, 2.5]),
    "num_components": ([None, 9], [0, -1, 2**63, True, "a", 2.5]),
    "masks": ([True, False], ["no", None, 2]),
    "num_classes": ([None, 3], [0, -1, 2**31, 2**63, True, "a", 2.5]),
    "dim": ([1, -1, 0], [5, -9, 2**63, None, True, 1.5]),
    "process_group": ([None], [3, "WORLD"]),
}
CALLED = [*FUNCTIONS.values(), segloss.soft_stats, segloss.total_weight, *METRICS.values()]


@st.composite
def calls(draw):
    """A public function, its tensors, and its options."""
    function = draw(st.sampled_from(CALLED))
    names = list(inspect.signature(function).parameters)
    sizes, num_classes, dim = draw(shapes())
    arguments = {
        "input": draw(mostly(tensors(with_classes(sizes, dim, num_classes), READABLE), st.sampled_from(NO_TENSOR), 30)),
        "target": draw(mostly(like_labels(sizes, num_classes, dim, LABELS + READABLE), st.sampled_from(NO_TENSOR), 30)),
        "dim": dim,
    }
    if draw(st.integers(0, 2)) == 0:
        arguments["weight"] = draw(mostly(tensors([num_classes], READABLE), st.sampled_from(NO_TENSOR), 20))
    if draw(st.integers(0, 2)) == 0:
        arguments["voxel_weight"] = draw(like_labels(sizes, num_classes, dim, READABLE + LABELS))
    for name in names:
        if name in OPTIONS and draw(st.integers(0, 5)) == 0:
            usual, strange = OPTIONS[name]
            arguments[name] = draw(mostly(st.sampled_from(usual), st.sampled_from(strange), 5))
    return function, {name: value for name, value in arguments.items() if name in names}


def assert_many_are_values(values):
    """If every call raised, nothing else would be tested."""
    assert sum(value is not None for value in values) > len(values) / 10


def test_a_hostile_call_gives_a_value_or_an_error_that_says_enough():
    values = []

    @settings(RANDOM, max_examples=300)
    @given(calls())
    def check(call):
        function, arguments = call
        x = arguments.get("input")
        value = survives(function, **arguments)
        value = value[0] if isinstance(value, tuple) else value
        values.append(value)
        if value is not None and value.requires_grad and x.requires_grad and x.numel() > 0:
            assert_has_a_gradient(value, x)

    check()
    assert_many_are_values(values)


# ---- the private operators -------------------------------------------------------------------------------------------

OPERATORS = sorted(
    name.removeprefix("segloss::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("segloss::")
)
INTS = [-(2**63), -(2**31), -101, -2, -1, 0, 1, 2, 3, 4, 256, 2**31, 2**32 + 1, 2**63 - 1]
ARGUMENTS = {
    "op": st.just("op"),
    "advice": st.sampled_from(["", "advice"]),
    "dtype": mostly(st.sampled_from(READABLE), st.sampled_from([torch.int64, *STRANGE])),
    "reduction": mostly(st.sampled_from([0, 1, 2]), st.sampled_from(INTS)),
    "upsample": mostly(st.just(0), st.sampled_from([*INTS, 10, 42, 43]), 3),
    "per_class": st.booleans(),
    "connectivity": mostly(st.just(1), st.sampled_from(INTS)),
    "method": st.sampled_from(["zhang", "lee", ""]),
    "widen": mostly(st.just(2), st.sampled_from(INTS)),
    "masks": mostly(st.just(False), st.just(True)),
    "spacing": st.lists(mostly(st.sampled_from([1.0, 2.5]), st.sampled_from([0.0, -1.0, 1e200, NAN, INF])), max_size=4),
    "num_components": mostly(st.just(3), st.sampled_from(INTS)),
    "iterations": mostly(st.sampled_from([0, 1, 3]), st.sampled_from(INTS)),
    "first_class": mostly(st.just(0), st.sampled_from(INTS)),
    "end_class": mostly(st.just(3), st.sampled_from(INTS)),
    "ignored_label": mostly(st.just(-1), st.sampled_from(INTS)),
    "threshold": st.sampled_from([None, 0.5, NAN]),
    "ignore_index": mostly(st.sampled_from([-100, 255, 0, -1]), st.sampled_from(INTS)),
    "gamma": mostly(st.just(0.0), st.sampled_from([2.0, 0.5, -1.0, NAN, INF]), 3),
    "label_smoothing": mostly(st.just(0.0), st.sampled_from([0.1, 1.0, -1.0, NAN, INF]), 3),
}


# Label tables: good ones, and int64 tensors that are none.
TABLES = [
    torch.tensor([0, 2, 0, -2, 0, 2, 0, 0, 1]),
    torch.tensor([1, 2, 1, 0, 1, 1, 0, 0, -1, 1, 255]),
    torch.tensor([0, 0, 0, 0, 0, 0, 0, 0]),
    torch.tensor([0, 10**9, 0, 0, 0, 0, 0, 0]),
    torch.arange(9).int(),
    torch.tensor(7),
]


@st.composite
def lists_of_options(draw, loss):
    """The lists of options of a private operator: of meaningful values, of any values, or of another length."""
    strategies = {**ARGUMENTS, "dtype": st.sampled_from(READABLE), "activation": st.sampled_from(ACTIVATIONS)}
    schema = getattr(torch.ops.segloss, loss).default._schema
    keywords = [a.name for a in schema.arguments if a.name not in ("dim", "op") and "Tensor" not in str(a.type)]
    names = dict.fromkeys([*keywords, *SET.get(loss, {})])
    *_, integers, factors = options_of(loss, **{name: draw(strategies.get(name, st.booleans())) for name in names})
    any_integers = st.lists(st.sampled_from(INTS), min_size=len(integers) - 1, max_size=len(integers) + 1)
    return draw(mostly(st.just(integers), any_integers)), draw(mostly(st.just(factors), st.just([0.0])))


@st.composite
def operator_calls(draw):
    """An operator and its arguments, usually of shapes that fit."""
    operator = getattr(torch.ops.segloss, draw(st.sampled_from(OPERATORS))).default
    sizes, num_classes, dim = draw(shapes())
    whole = with_classes(sizes, dim, num_classes)
    batch = sizes[0] if sizes else 1
    tensors_of = {
        "input": tensors(whole, READABLE),
        "target": like_labels(sizes, num_classes, dim, LABELS + READABLE),
        "weight": st.one_of(st.none(), tensors([num_classes], READABLE)),
        "voxel_weight": st.one_of(st.none(), like_labels(sizes, num_classes, dim, READABLE + LABELS)),
        "components": mostly(like_labels(sizes, num_classes, dim, LABELS), st.none()),
        "gradient": tensors(whole, READABLE),
        "grad_loss": st.one_of(tensors([], READABLE), tensors(sizes, READABLE), tensors(whole, READABLE)),
        "grad_intersection": tensors([batch, num_classes], READABLE),
        "grad_prediction": tensors([batch, num_classes], READABLE),
        "total_weight": tensors([], [torch.float64]),
        "losses": like_labels(sizes, num_classes, dim, [torch.float32, torch.float64]),
        "grad_sum": tensors([], READABLE),
        "label_table": st.one_of(st.none(), st.sampled_from(TABLES)),
        "out": like_labels(sizes, num_classes, dim, LABELS),
        "slopes": tensors(whole, READABLE),
        "images": tensors(whole, [*READABLE, torch.bool]),
        "grad": tensors(whole, READABLE),
        "counts": st.one_of(st.none(), like_labels(sizes, num_classes, dim, [torch.bool])),
        "labels": like_labels(sizes, num_classes, dim, LABELS + READABLE),
        "first": tensors([2, 3, 4, 5], [torch.uint8]),
        "second": tensors([2, 3, 4, 5], [torch.uint8]),
        "cutoff": st.sampled_from([torch.tensor([2**31, 2]), torch.tensor([-1, -1]), torch.tensor([0.5])]),
    }
    numbers = {
        **ARGUMENTS,
        "dim": mostly(st.just(dim), st.sampled_from(INTS)),
        # The numbers left out are those whose counts would take too much memory.
        "num_classes": mostly(st.just(num_classes), st.sampled_from([n for n in INTS if not 256 < n < 2**40])),
        "activation": st.sampled_from(["softmax", "sigmoid", "none", "", "relu"]),
    }
    numbers["spacing"] = mostly(st.just([1.0] * max(len(sizes) - 1, 0)), ARGUMENTS["spacing"])
    numbers["size"] = mostly(st.just(list(sizes[1:])), st.lists(st.sampled_from([0, 1, 5]), max_size=3))
    numbers["k"] = mostly(st.just(50.0), st.sampled_from([0.001, 100.0, 0.0, -1.0, NAN, INF]), 3)
    numbers |= {"name": st.sampled_from(["input", "target"]), "low": st.just(0.0), "high": st.just(1.0)}
    strategies = {**tensors_of, "values": tensors(whole, READABLE), **numbers}
    names = [each.name for each in operator._schema.arguments]
    if "components" in names:  # three of them
        of_classes, of_loss = tensors([batch, 3, num_classes], READABLE), tensors([batch, 3], READABLE)
        strategies |= {"grad_intersection": of_classes, "grad_prediction": of_classes, "grad_loss": of_loss}
    if "factors" in names:
        loss = re.sub("^segloss::|_(forward|backward|rescale)$", "", operator._schema.name)
        strategies["options"], strategies["factors"] = map(st.just, draw(lists_of_options(loss)))
    arguments = [draw(strategies.get(name, st.booleans())) for name in names]
    return operator, arguments


# Errors of the dispatcher itself, in operators that public functions call only with checked arguments.
OF_THE_DISPATCHER = "Could not run|no fake impl or Meta kernel|negative dimension"


def test_a_hostile_call_of_an_operator_gives_a_value_or_an_error_that_says_enough():
    values = []

    @settings(RANDOM, max_examples=300)
    @given(operator_calls())
    def check(call):
        operator, arguments = call
        try:
            values.append(survives(operator, *arguments))
        except AssertionError as error:
            if not re.search(OF_THE_DISPATCHER, str(error)):
                raise

    check()
    assert_many_are_values(values)


# ---- labels over the whole range of their dtype ----------------------------------------------------------------------


@st.composite
def labels_of_any_value(draw):
    dtype = draw(st.sampled_from([each for each in LABELS if each != torch.bool]))
    info = torch.iinfo(dtype)
    value = st.one_of(st.integers(0, 3), st.integers(info.min, info.max), st.sampled_from([info.min, info.max]))
    value = value.filter(lambda n: info.min <= n <= info.max)
    values = draw(st.lists(value, min_size=1, max_size=6))
    ignore_index = draw(st.one_of(st.sampled_from(values), st.integers(-(2**63), 2**63 - 1), st.just(-100)))
    return values, dtype, min(ignore_index, 2**63 - 1)


@settings(RANDOM, max_examples=60)
@given(labels_of_any_value())
def test_integer_labels_of_any_value_are_classes_ignored_or_named_in_the_error(case):
    values, dtype, ignore_index = case
    x, labels = torch.randn(len(values), 3), torch.tensor(values, dtype=dtype)
    assert_are_classes_ignored_or_named(x, labels, values, ignore_index)


@settings(RANDOM, max_examples=100)
@given(
    st.lists(st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from(HOSTILE_FLOATS)), min_size=1, max_size=4),
    st.sampled_from([torch.float64, torch.float32]),
    st.sampled_from([-100, 255, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]),
)
def test_floating_labels_of_any_value_are_classes_ignored_or_named_in_the_error(values, dtype, ignore_index):
    labels = torch.tensor(values, dtype=dtype)
    x, values = torch.randn(len(values), 3), labels.tolist()
    if all(value in (INF, -INF) or value == value // 1 for value in values):
        assert_are_classes_ignored_or_named(x, labels, values, ignore_index)
    else:
        with pytest.raises(RuntimeError, match=r"cross_entropy: expected integral labels in target .* got"):
            segloss.cross_entropy(x, labels, ignore_index=ignore_index)


def assert_are_classes_ignored_or_named(x, labels, values, ignore_index):
    """Python's integers and floats compare exactly."""
    bad = [i for i, value in enumerate(values) if value != ignore_index and not 0 <= value < 3]
    if not bad:
        clean = torch.tensor([-100 if value == ignore_index else int(value) for value in values])
        assert_close(segloss.cross_entropy(x, labels, ignore_index=ignore_index), F.cross_entropy(x, clean))
        return
    text = rf"out of bounds: {len(bad)} labels? (is|are) outside \[0, 3\), the first at index \[{bad[0]}\]"
    for loss in (
        segloss.cross_entropy,
        segloss.dice_loss,
        lambda x, y, **k: torch.func.grad(lambda x: segloss.cross_entropy(x, y, **k))(x),
    ):
        with pytest.raises(IndexError, match=text) as raised:
            loss(x, labels, ignore_index=ignore_index)
        first = re.search(r"Target (\S+) is out", str(raised.value)).group(1)
        assert float(first) == pytest.approx(float(values[bad[0]]), rel=1e-5)


# ---- tensors of other kinds ------------------------------------------------------------------------------------------


class Subclass(Tensor):
    """A subclass as users write them."""


class Disguised:
    """Not a tensor, but functions of torch take it for one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        unwrapped = [each.tensor if isinstance(each, cls) else each for each in args]
        return function(*unwrapped, **(kwargs or {}))


def of_bytes(x: Tensor) -> Tensor:
    return torch.frombuffer(bytes(x.cpu().contiguous().numpy()), dtype=x.dtype).view(x.shape).to(x.device)


def read_only(x: Tensor) -> Tensor:
    array = x.cpu().numpy().copy()
    array.setflags(write=False)
    return torch.from_numpy(array).to(x.device)


# Tensors that hold the same numbers in other ways.
KINDS = {
    "subclass": lambda x: x.as_subclass(Subclass),
    "MetaTensor": MetaTensor,
    "parameter": lambda x: nn.Parameter(x, requires_grad=False),
    "numpy's memory": lambda x: torch.from_numpy(x.cpu().numpy().copy()).to(x.device),
    "read-only memory": read_only,
    "memory of bytes": of_bytes,
    "memory of a view": lambda x: torch.cat([x.flatten(), x.flatten()])[x.numel() :].view(x.shape),
    "expanded": lambda x: x.unsqueeze(0).expand(2, *x.shape)[1],
    "flipped": lambda x: x.flip(-1).contiguous().flip(-1),
    "of a complex tensor": lambda x: torch.complex(x, x).conj().real if x.is_floating_point() else x,
    "negated": lambda x: torch._neg_view(-x) if x.is_floating_point() else x,
}


def logits_and_labels(name: str) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 3, 4)
    return (x.sigmoid(), torch.randint(2, (2, 3, 4))) if name == "BinaryDiceLoss" else (x, torch.randint(3, (2, 4)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OF_TWO)
def test_a_tensor_of_another_kind_gives_the_bits_of_a_plain_one(name, kind):
    x, y = logits_and_labels(name)
    expected = OF_TWO[name](x, y)
    for arguments in ((KINDS[kind](x), y), (x, KINDS[kind](y)), (KINDS[kind](x), KINDS[kind](y))):
        assert torch.equal(torch.as_tensor(OF_TWO[name](*arguments)), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_metatensor_and_a_parameter_have_a_gradient(name):
    x, y = logits_and_labels(name)
    for leaf in (nn.Parameter(x), MetaTensor(x).requires_grad_()):
        value = LOSSES[name](leaf, MetaTensor(y))
        assert_has_a_gradient(value, leaf)


NOT_DENSE = {
    "sparse": lambda x: x.to_sparse(),
    "mkldnn": lambda x: x.cpu().float().to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "complex": lambda x: x.to(torch.complex64),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "of another device": lambda x: x.to("meta"),
    "no tensor": lambda x: x.cpu().numpy(),
    "none": lambda x: None,
}


@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("name", OF_TWO)
def test_a_tensor_that_no_kernel_reads_is_refused(name, kind):
    x, y = logits_and_labels(name)
    for arguments in ((NOT_DENSE[kind](x), y), (x, NOT_DENSE[kind](y))):
        with pytest.raises((TypeError, RuntimeError)) as raised:
            OF_TWO[name](*arguments)
        assert_raises_well(raised.value)


@pytest.mark.parametrize("kind", [kind for kind in NOT_DENSE if kind not in ("none", "float8")])
@pytest.mark.parametrize("keyword", ["weight", "voxel_weight"])
def test_weights_that_no_kernel_reads_are_refused(keyword, kind):
    weight = torch.rand(3) if keyword == "weight" else torch.rand(2, 4)
    for function in (each for each in CALLED if takes(each, keyword)):
        tensors = (torch.randint(3, (2, 4)),) if function is segloss.total_weight else logits_and_labels("dice_loss")
        with pytest.raises((TypeError, RuntimeError)) as raised:
            function(*tensors, **{keyword: NOT_DENSE[kind](weight)})
        assert_raises_well(raised.value)


@pytest.mark.parametrize("name", OF_TWO)
def test_an_object_in_place_of_a_tensor_is_unwrapped_or_refused(name):
    x, y = logits_and_labels(name)
    value = survives(OF_TWO[name], Disguised(x), y)
    assert value is None or torch.equal(value, OF_TWO[name](x, y))


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 4), (0, 3, 0), (0, 0, 0), (0, 1), (0,)])
@pytest.mark.parametrize("name", LOSSES)
def test_a_size_of_zero_gives_a_value_and_a_gradient_or_an_error_that_says_enough(name, shape):
    x = torch.zeros(shape, requires_grad=True)
    y = torch.zeros((shape[0], *shape[2:]) if len(shape) > 1 else (), dtype=torch.int64)
    value = survives(LOSSES[name], x, y)
    if value is not None:
        assert_has_a_gradient(value, x)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_no_voxel_or_class_give_nan_or_an_error_that_says_enough(name):
    for shape in [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)]:
        value = survives(METRICS[name], torch.zeros(shape), torch.zeros(shape[0], shape[2], dtype=torch.int64))
        assert (
            value is None or value.eq(0).all() if name == "confusion_matrix" else value is None or value.isnan().all()
        )


@pytest.mark.parametrize("num_classes", [2, 50_000])
def test_any_number_of_classes_gives_the_reference(num_classes):
    x, y = torch.randn(2, num_classes, 3), torch.randint(num_classes, (2, 3))
    assert_close(segloss.cross_entropy(x, y), F.cross_entropy(x.double(), y), torch.float32)
    p, g = x.double().softmax(1), F.one_hot(y, num_classes).movedim(-1, 1).double()
    dice = 1 - (2 * (p * g).sum(2) + 1e-5) / (p.sum(2) + g.sum(2) + 1e-5)
    assert_close(segloss.dice_loss(x, y, reduction="none"), dice, torch.float32)
    p_y = p.gather(1, y.unsqueeze(1))
    assert_close(segloss.focal_loss(x, y), ((1 - p_y).square() * -p_y.log()).mean(), torch.float32)
    binary = F.binary_cross_entropy_with_logits(x.double(), g)
    assert_close(segloss.focal_loss(x, y, activation="sigmoid", gamma=0), binary, torch.float32)
    if num_classes > 1:
        assert segloss.accuracy(x, y) == (x.argmax(1) == y).float().mean()
