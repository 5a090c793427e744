"""Random targets of random shapes, dtypes and values: each call gives the reference's value, or the error expected.

`make test` draws 500 cases for losses and 500 for metrics, the same ones each time; `make fuzz` draws 10 000 others.
"""

import os
import re
from collections import Counter
from functools import partial

import meaning
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from meaning import DTYPES, EVERY_LOSS, FLOATING, LOSSES, Refused
from tolerances import assert_close

NUM_EXAMPLES = os.environ.get("SEGLOSS_FUZZ_EXAMPLES", "500")
FUZZING = settings(
    max_examples=int(NUM_EXAMPLES),
    derandomize="SEGLOSS_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = [pytest.mark.cpu_only, pytest.mark.filterwarnings("ignore:.*has one channel")]

NAN, INF = float("nan"), float("inf")
STRANGE_FLOATS = [-0.5, 0.5, 1.5, 2.0, 3.0, 255.0, -1.0, -100.0, NAN, INF, -INF, 1 + 1e-12, -1e-30, 1e-40]
STRANGE_INTS = [2, 3, 7, 127, 128, 255, -1, -100, 65535, 2**31, -(2**63)]


def filled(draw, shape, dtype, choices):
    """A tensor of those of the values that the dtype can hold."""
    if not dtype.is_floating_point:
        low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        choices = [value for value in choices if low <= value <= high]
    count = torch.Size(shape).numel()
    values = draw(st.lists(st.sampled_from(choices), min_size=count, max_size=count))
    return (
        torch.tensor(values, dtype=torch.float64 if dtype.is_floating_point else torch.int64).reshape(shape).to(dtype)
    )


@st.composite
def targets(draw, sizes, num_classes, kinds):
    """A target, usually of a shape that fits, and usually of values that fit one of its meanings."""
    batch, *spatial = sizes
    shapes = [(batch, *spatial), (batch, 1, *spatial), (batch, num_classes, *spatial)]
    strange_shapes = [
        (batch, *spatial, num_classes),
        (batch + 1, *spatial),
        (batch, num_classes + 2, *spatial),
        spatial,
    ]
    shape = draw(st.sampled_from(shapes if draw(st.integers(0, 7)) else strange_shapes))
    dtype = draw(st.sampled_from(DTYPES[draw(st.sampled_from(kinds))]))
    if draw(st.booleans()) and tuple(shape) == shapes[2] and num_classes > 1 and not dtype.is_floating_point:
        labels = filled(draw, shapes[0], torch.int64, range(num_classes if dtype != torch.bool else 2))
        return torch.nn.functional.one_hot(labels, num_classes).movedim(-1, 1).to(dtype)
    usual = [range(num_classes), [0, 1], [0, 1, 255]]
    usual += [[0.0, 0.25, 0.5, 0.75, 1.0], [0.1, 0.7]] if dtype.is_floating_point else []
    choices = list(draw(st.sampled_from(usual)))
    if draw(st.integers(0, 3)) == 0:
        choices += STRANGE_FLOATS if dtype.is_floating_point else STRANGE_INTS
    return filled(draw, shape, dtype, choices)


@st.composite
def tensors(draw, kinds=("integer", "floating")):
    """Sizes, the number of classes, the input's dtype, a target and voxel weights."""
    sizes = (draw(st.integers(1, 2)), *draw(st.sampled_from([(), (1,), (3,), (5,), (2, 2)])))
    num_classes = draw(st.sampled_from([1, 1, 2, 3, 3, 4]))
    dtype = draw(st.sampled_from(FLOATING))
    voxel_weight = None
    if draw(st.integers(0, 3)) == 0:
        voxel_weight = filled(draw, sizes, torch.float32, [0.0, 0.5, 1.0, 2.0])
    return sizes, num_classes, dtype, draw(targets(sizes, num_classes, kinds)), voxel_weight


def outcome(call, expected, dtype):
    """Compares a call with what is expected: a value, or an error of one of some classes."""
    try:
        value = expected()
    except Refused as refused:
        with pytest.raises(refused.classes) as raised:
            call()
        assert re.match(r"\w+: ", str(raised.value))
        assert "xpected" in str(raised.value)
        return "error"
    assert_close(call(), value, dtype)
    return "value"


def assert_a_third_are_values(cases, outcome_of):
    """Runs the cases; more than a third of them must give a value."""
    outcomes = Counter()

    @FUZZING
    @given(cases)
    def check(case):
        outcomes[outcome_of(*case)] += 1

    check()
    assert outcomes["value"] > outcomes.total() / 3, outcomes


# ---- losses ----


@st.composite
def loss_cases(draw):
    column, name = draw(st.sampled_from(EVERY_LOSS))
    (batch, *spatial), num_classes, dtype, target, voxel_weight = draw(tensors())
    ignore_index = draw(st.sampled_from([-100, -100, 255, -1, 0, 1, 2]))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    x = meaning.logits_for(name, (batch, num_classes, *spatial), dtype)
    assume("DeepSupervision" not in name or meaning.fits(target, x))  # it subsamples a larger target
    return column, name, x, target, ignore_index, voxel_weight


def outcome_of_loss(column, name, x, target, ignore_index, voxel_weight):
    call, _ = LOSSES[column][name]
    options = {"ignore_index": ignore_index, "voxel_weight": voxel_weight}
    dtype = torch.float32 if x.dtype == torch.float64 else x.dtype  # sums of float32 weights, DeepSupervision's too
    expected = partial(meaning.expected_of, column, name, x, target, **options)
    return outcome(partial(call, x, target, **options), expected, dtype)


def test_a_loss_of_any_target_equals_the_reference_or_is_an_error():
    assert_a_third_are_values(loss_cases(), outcome_of_loss)


# ---- metrics ----


@st.composite
def metric_cases(draw):
    """Logits, or a map or masks of any integer dtype, and a target."""
    name = draw(st.sampled_from(list(meaning.METRICS)))
    (batch, *spatial), num_classes, _, target, _ = draw(tensors(kinds=["integer", "integer", "integer", "floating"]))
    assume(target.dim() > 0)  # a 0-dim target is that of one voxel, of input [C]
    kind = draw(st.sampled_from(["logits", "map", "map", "masks"]))
    shapes = [(batch, *spatial), (batch, 1, *spatial)] if kind == "map" else [(batch, num_classes, *spatial)]
    is_pair = kind != "logits" and draw(st.integers(0, 3))
    shape = tuple(target.shape) if is_pair else draw(st.sampled_from(shapes))
    if kind == "logits":
        torch.manual_seed(draw(st.integers(0, 10**6)))
        input = torch.randn(shape)
    elif kind == "masks" and draw(st.booleans()) and not target.is_floating_point():
        input = target.roll(1, 0)  # one-hot if target is
    else:
        dtype = draw(st.sampled_from(DTYPES["integer"]))
        strange = [[0, 1, 2, 255, 70000]] if draw(st.integers(0, 3)) == 0 else []
        input = filled(draw, shape, dtype, draw(st.sampled_from([[0, 1], range(num_classes), *strange])))
    masks = name != "confusion_matrix" and draw(st.integers(0, 2)) == 0
    classes = draw(st.sampled_from([None] * 6 + [num_classes, 4, 300]))
    return name, input, target, classes, draw(st.sampled_from([-100, -100, 255, -1, 0, 1])), masks


def outcome_of_metric(name, input, target, num_classes, ignore_index, masks):
    options = {"ignore_index": ignore_index, **({"masks": True} if masks else {})}
    expected = partial(meaning.expected_of_metric, name, input, target, num_classes, ignore_index, masks)
    return outcome(partial(meaning.METRICS[name], input, target, num_classes, **options), expected, torch.float32)


def test_a_metric_of_any_target_equals_the_reference_or_is_an_error():
    assert_a_third_are_values(metric_cases(), outcome_of_metric)
