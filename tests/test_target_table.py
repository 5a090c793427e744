"""Each cell of the tables in docs/targets.md: what every loss and metric makes of a target of that shape and dtype."""

import math

import meaning
import pytest
import torch
from meaning import DTYPES, EVERY_LOSS, LOSS_ROWS, LOSSES, METRIC_ROWS, METRICS, Refused
from tolerances import assert_close

import segloss

pytestmark = pytest.mark.filterwarnings("ignore:.*has one channel")

SIZES = {"`[N,*]`": (2, 5), "`[N,1,*]`": (2, 1, 5), "`[N,C,*]`": (2, 3, 5)}


EACH_CELL = pytest.mark.parametrize(
    ("column", "name", "row"),
    [
        pytest.param(column, name, row, id=f"{name}-C {row['C']}-{row['target']}-{row['dtype']}")
        for column, name in EVERY_LOSS
        for row in LOSS_ROWS
    ],
)


def target_for(what, row, dtype, name):
    """A target that fits a cell; for a cell that is an error, one that would fit the next best reading."""
    shape, num_classes = SIZES[row["target"]], 1 if row["C"] == "1" else 3
    if dtype.is_floating_point and what in ("masks", "probabilities") and not meaning.is_of_distances(name):
        return torch.rand(shape).to(dtype)
    if what == "one-hot":
        return one_hot(torch.randint(num_classes, (2, 5)), num_classes, dtype)
    largest = 2 if what == "masks" else min(num_classes, 2) if dtype == torch.bool else num_classes
    return torch.randint(largest, shape).to(dtype)


@EACH_CELL
def test_a_target_means_what_the_table_says(column, name, row):
    x = meaning.logits_for(name, (2, 1 if row["C"] == "1" else 3, 5), torch.float32)
    call, _ = LOSSES[column][name]
    for dtype in DTYPES[row["dtype"]]:
        target = target_for(row[column], row, dtype, name)
        if row[column] == "error":
            with pytest.raises((ValueError, RuntimeError), match=r"\w+: expected .*[Gg]ot "):
                call(x, target)
        else:
            assert_close(call(x, target), meaning.expected_of(column, name, x, target), torch.float32)


def one_hot(labels, num_classes, dtype):
    return torch.nn.functional.one_hot(labels, num_classes).movedim(-1, 1).to(dtype)


def input_and_target(row, dtype):
    """Input and target for a row of the metrics' table."""
    num_classes = 2 if dtype == torch.bool else 3
    labels = torch.randint(num_classes, (2, 5))
    inputs = {
        "logits": lambda: torch.randn(2, num_classes, 5),
        "logits of one channel": lambda: torch.randn(2, 1, 5),
        "label map": lambda: torch.randint(num_classes, (2, 1, 5)).to(torch.uint8),
        "one-hot": lambda: one_hot(labels.roll(1), num_classes, dtype),
        "bool `[N,C,*]`": lambda: torch.rand(2, 3, 5) < 0.5,
    }
    targets = {
        "`[N,*]`": lambda: labels.to(dtype),
        "`[N,1,*]`": lambda: labels.unsqueeze(1).to(dtype),
        "`[N,C,*]`": lambda: one_hot(labels, num_classes, dtype),
        "any": lambda: labels.to(dtype),
        "label map": lambda: labels.to(dtype),
        "one-hot": lambda: one_hot(labels, num_classes, dtype),
        "bool `[N,C,*]`": lambda: torch.rand(2, 3, 5) < 0.5,
    }
    return inputs[row["input"]](), targets[row["target"]]()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("row", METRIC_ROWS, ids=[" ".join(row.values()) for row in METRIC_ROWS])
def test_a_metrics_target_means_what_the_table_says(row, name):
    dtypes = DTYPES["integer"] + DTYPES["floating"] if row["dtype"] == "any" else DTYPES[row["dtype"]]
    for dtype in dtypes:
        input, target = input_and_target(row, dtype)
        if row["meaning"] == "error":
            with pytest.raises(RuntimeError, match=r"\w+: expected .*[Gg]ot "):
                METRICS[name](input, target)
            with pytest.raises(Refused):
                meaning.expected_of_metric(name, input, target, None, -100, masks=False)
        else:
            expected = meaning.expected_of_metric(name, input, target, None, -100, masks=False)
            assert_close(METRICS[name](input, target), expected, torch.float32)


# ---- values that do not fit the meaning ----

WRONG = {
    "labels": [(IndexError, 3), (IndexError, 255), (IndexError, -1), (RuntimeError, 0.5), (RuntimeError, float("nan"))],
    "one-hot": [(RuntimeError, 2), (RuntimeError, 1), (RuntimeError, 0)],  # written to each class of a voxel
    "probabilities": [(RuntimeError, value) for value in (255, -0.5, 1.1, float("nan"), float("inf"))],
}
WRONG_MASKS = {
    "integer": [(RuntimeError, 2), (RuntimeError, 255), (RuntimeError, -1)],
    "floating": WRONG["probabilities"],
}


def wrong_values(what, row, name):
    """The values that a cell refuses, with their errors, and a dtype that holds them."""
    values = WRONG_MASKS[row["dtype"]] if what == "masks" else WRONG.get(what, [])
    if row["dtype"] == "integer":
        return torch.int16, [(error, value) for error, value in values if isinstance(value, int)]
    if name.startswith("soft_stats") and what in ("masks", "probabilities"):  # it takes any finite number
        values = [(error, value) for error, value in values if not math.isfinite(value)]
    return torch.float32, values


@EACH_CELL
def test_a_value_that_does_not_fit_the_meaning_is_an_error(column, name, row):
    x = meaning.logits_for(name, (2, 1 if row["C"] == "1" else 3, 5), torch.float32)
    call, _ = LOSSES[column][name]
    dtype, values = wrong_values(row[column], row, name)
    for error, value in values:
        target = target_for(row[column], row, dtype, name)
        target[1, ..., 2] = value
        with pytest.raises(error, match=r"\w+: .*[Ee]xpected "):
            call(x, target)


def test_the_references_refuse_a_value_out_of_range():
    x = torch.randn(2, 3, 5)
    with pytest.raises(Refused):
        meaning.expected_of(meaning.DICE, "dice_loss", x, torch.full((2, 3, 5), 2.0))


# ---- one channel ----


@pytest.mark.parametrize("name", [name for name in LOSSES[meaning.SIGMOID] if "cldice" not in name])  # of neighbours
def test_background_alone_pushes_a_single_logit_down(name):
    """Zeros were read as labels of class 0, which is the only class: as foreground."""
    x = meaning.logits_for(name, (2, 1, 5), torch.float32).requires_grad_()
    call, _ = LOSSES[meaning.SIGMOID][name]
    for target in (torch.zeros(2, 5, dtype=torch.uint8), torch.zeros(2, 5), torch.zeros(2, 1, 5, dtype=torch.bool)):
        value = call(x, target)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert (gradient >= 0).all()
        if not name.startswith(("soft_stats", "boundary_loss")):  # an absent class has no distances
            assert gradient.any()


@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 4)])
def test_a_mask_of_one_logit_may_have_voxels_to_ignore(shape):
    x, mask = torch.randn(2, 1, 4), torch.randint(2, shape, dtype=torch.uint8)
    mask[1] = 255
    value = segloss.dice_ce_loss(x, mask, activation="sigmoid", ignore_index=255, batch=True)
    assert_close(value, segloss.dice_ce_loss(x[:1], mask[:1], activation="sigmoid", batch=True))


@pytest.mark.parametrize("loss", [segloss.cross_entropy, segloss.focal_loss, segloss.topk_loss])
def test_a_softmax_over_one_channel_is_torchs_zero_with_a_warning(loss):
    x, labels = torch.randn(2, 1, 4, requires_grad=True), torch.zeros(2, 1, 4, dtype=torch.int64)
    with pytest.warns(UserWarning, match=rf'{loss.__name__}: input \[2, 1, 4\] has one channel.*activation="sigmoid"'):
        value = loss(x, labels)
    assert value == 0
    assert not torch.autograd.grad(value, x)[0].any()


@pytest.mark.parametrize("activation", ["sigmoid", None])
@pytest.mark.parametrize("target", [torch.full((2, 1, 4), 7), torch.full((2, 4), 0.5).sub(1), torch.zeros(2, 3, 4)])
def test_no_advice_names_what_is_set_already_nor_an_argmax_over_one_channel(activation, target):
    x = torch.rand(2, 1, 4)
    with pytest.raises((RuntimeError, ValueError)) as raised:
        segloss.dice_loss(x, target, activation=activation)
    assert "sigmoid" not in str(raised.value)
    assert "argmax" not in str(raised.value)


@pytest.mark.parametrize("loss", [segloss.dice_loss, segloss.focal_loss, segloss.dice_ce_loss])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_flattened_mask_is_not_read_as_masks_of_many_classes(dtype, loss):
    x, mask = torch.randn(50), torch.randint(2, (50,)).to(dtype)
    with pytest.raises(RuntimeError, match=r"\w+: expected input \[N, C, \.\.\.\] .* input\[None, None\]"):
        loss(x, mask, activation="sigmoid")
    loss(x[None, None], mask[None, None], activation="sigmoid")
    loss(x[None], mask[None], activation="sigmoid")


def test_the_index_of_a_bad_value_is_that_in_the_target_as_it_was_given():
    mask = torch.zeros(2, 4, 5)
    mask[1, 2, 3] = 9
    with pytest.raises(RuntimeError, match=r"got 9 at index \[1, 2, 3\] of target \[2, 4, 5\]"):
        segloss.dice_loss(torch.randn(2, 1, 4, 5), mask, activation="sigmoid")
