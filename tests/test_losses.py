"""No loss is forgotten: the registry has every public name, and each table of the tests has every loss."""

import losses
import pytest
import test_compile
import test_distributed
import test_dtensor
import test_func_nesting
import test_nothing
import test_rank_errors

import segloss

OVER_RANKS = {loss for loss in losses.FUNCTIONS.values() if losses.takes(loss, "process_group")}
DTENSORS = {**test_dtensor.LOSSES, **test_dtensor.LOSSES_OF_BATCHES}


def functions_of(variants):
    return {each.func for each in variants}


def test_every_public_name_is_registered():
    registered = [*losses.FUNCTIONS, *losses.METRICS, *losses.NEITHER]
    registered += [module.__name__ for module in (*losses.MODULES, *losses.MODULES_ALONE)]
    assert sorted(registered) == sorted(segloss.__all__)


def test_every_loss_has_a_module():
    assert list(losses.MODULES.values()) == list(losses.FUNCTIONS.values())


def test_every_loss_has_a_variant():
    assert functions_of(losses.VARIANTS.values()) == set(losses.FUNCTIONS.values())


WITH_ACTIVATION = {name for name, loss in losses.FUNCTIONS.items() if losses.takes(loss, "activation")}


@pytest.mark.parametrize("loss", sorted(WITH_ACTIVATION - {"lovasz_softmax_loss"}))  # which has no sigmoid
def test_every_loss_with_an_activation_has_a_variant_with_a_sigmoid(loss):
    assert losses.FUNCTIONS[loss] in functions_of(filter(losses.is_sigmoid, losses.VARIANTS.values()))


def test_every_module_is_compiled():
    compiled = {type(criterion) for criterion, _ in test_compile.CRITERIA.values()}
    assert compiled >= {*losses.MODULES, segloss.MultiClassDiceLoss}


def test_every_loss_is_nested_in_transforms():
    assert functions_of(loss for loss, *_ in test_func_nesting.PAIRS.values()) >= set(losses.FUNCTIONS.values())


def test_every_loss_over_ranks_is_tested_there():
    assert functions_of(test_distributed.CASES.values()) == OVER_RANKS
    assert {loss for loss, *_ in DTENSORS.values()} == OVER_RANKS
    assert {getattr(each, "func", each) for each in test_rank_errors.LOSSES.values()} >= OVER_RANKS


def test_every_loss_with_regions_is_tested_where_there_is_nothing():
    assert {name for name, _ in test_nothing.LOSSES.values()} == {*losses.REGION_LOSSES, *losses.COMPOUND_LOSSES}
