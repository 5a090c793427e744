"""The modules, and what the package shows of itself."""

import copy
import importlib.resources
import inspect
import pickle

import losses
import pytest
import torch
from losses import takes
from tolerances import assert_close

import segloss
from segloss import _peers

PAIRS = [
    (segloss.CrossEntropyLoss, torch.nn.CrossEntropyLoss),
    (segloss.NLLLoss, torch.nn.NLLLoss),
    (segloss.BCEWithLogitsLoss, torch.nn.BCEWithLogitsLoss),
]
FUNCTIONS = [
    (segloss.cross_entropy, torch.nn.functional.cross_entropy),
    (segloss.nll_loss, torch.nn.functional.nll_loss),
    (segloss.binary_cross_entropy_with_logits, torch.nn.functional.binary_cross_entropy_with_logits),
]
MODULE_AND_FUNCTION = list(losses.MODULES.items())
OF_TORCH = MODULE_AND_FUNCTION[: len(PAIRS)]
OWN = list(losses.MODULES)[len(PAIRS) :]
MODULES = [*losses.MODULES, segloss.MultiClassDiceLoss]

INPUT = torch.tensor([[[0.5, -1.0], [2.0, 0.25], [-0.5, 1.0]]])  # [1, 3, 2]
LABELS = torch.tensor([[1, 2]], dtype=torch.uint8)
# As many voxels as classes, so that `dim` may be either dimension, and two samples for `batch`.
SQUARE_INPUT = torch.tensor(
    [[[0.5, -1.0, 2.0], [2.0, 0.25, 0.0], [-0.5, 1.0, 1.5]], [[1.0, -0.25, 0.5], [0.0, 3.0, 1.0], [-1.0, 0.5, -2.0]]]
)
SQUARE_LABELS = torch.tensor([[0, 2, 1], [1, 1, 2]], dtype=torch.uint8)

# For each keyword a value that is not its default and that changes the loss of the tensors above.
OTHER_VALUES = {
    "weight": torch.tensor([0.5, 2.0, 1.0]),
    "pos_weight": torch.tensor([1.5, 0.25, 3.0]),
    "ignore_index": 2,
    "reduction": "sum",
    "label_smoothing": 0.3,
    "dim": -1,
    "gamma": 1.5,
    "activation": "sigmoid",
    "k": 50.0,
    "include_background": False,
    "squared": True,
    "jaccard": True,
    "batch": True,
    "smooth_nr": 0.5,
    "smooth_dr": 0.25,
    "w_type": "simple",
    "alpha": 0.3,
    "beta": 0.8,
    "lambda_dice": 2.0,
    "lambda_ce": 0.5,
    "lambda_focal": 0.25,
    "lambda_cc": 0.75,
    "lambda_global": 0.25,
    "connectivity": 1,
    "num_components": 50,
    "smooth": 3.0,
    "classes": [0, 2],
    "per_sample": True,
}
ALONE = {  # values that do not go with others
    "label_map": {0: 2, 1: 0, 2: 1},
    "regions": [(0, 1), (1, 2), (2,)],
    "label_sets": {0: (0, 1), 1: (1, 2), 2: (0, 2)},
}
OF_SIGMOIDS = ("pos_weight", "regions")
OF_DISTANCES = (segloss.BoundaryLoss, segloss.HausdorffDTLoss)
OF_SOFTMAXES = (segloss.CrossEntropyLoss, segloss.NLLLoss, segloss.TopKLoss)


def parameters_of(function):
    return list(inspect.signature(function).parameters.values())


def has(module, keyword):
    return keyword in inspect.signature(module).parameters


def other_values(module):
    values = {name: value for name, value in OTHER_VALUES.items() if has(module, name)}
    if module is segloss.FocalLoss:  # a sigmoid, as the other values have it
        del values["alpha"]
    if module is segloss.LovaszSoftmaxLoss:  # it has no sigmoid
        del values["activation"]
    return values


def values_alone(module):
    values = {name: value for name, value in ALONE.items() if has(module, name)}
    if module in OF_SOFTMAXES:
        del values["regions"]
    if module is segloss.FocalLoss:
        values["alpha"] = torch.tensor([0.1, 0.6, 0.3])
    values = other_values(module) | values
    if module in OF_DISTANCES:  # their mean over samples of equal size is that over the batch
        del values["batch"]
    for without_effect in ("connectivity", "num_components"):  # on labels of one axis
        values.pop(without_effect, None)
    return values


WEIGHTED = [module for module in MODULES if has(module, "weight")]


# ---- signatures ----


@pytest.mark.parametrize(("ours", "torchs"), PAIRS + FUNCTIONS)
def test_the_arguments_are_torchs_in_torchs_order_with_torchs_defaults(ours, torchs):
    def positional(function):
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return [(p.name, p.default) for p in parameters_of(function) if p.kind == kinds]

    assert positional(ours) == positional(torchs)


@pytest.mark.parametrize("function", [ours for ours, _ in FUNCTIONS])
def test_arguments_that_torch_lacks_are_keyword_only(function):
    own = {p.name: p.default for p in parameters_of(function) if p.kind == inspect.Parameter.KEYWORD_ONLY}
    assert {"dim": 1, "voxel_weight": None, "empty": "nan"}.items() <= own.items()


@pytest.mark.parametrize(("module", "function"), MODULE_AND_FUNCTION)
def test_a_module_has_the_keywords_of_its_function(module, function):
    def keywords(callable):
        return {p.name: p.default for p in parameters_of(callable)}

    of_function = keywords(function)
    for of_a_call in ("input", "target", "voxel_weight", "label_set_index", "distances", "components"):
        of_function.pop(of_a_call, None)
    assert keywords(module) == of_function


@pytest.mark.parametrize("module", OWN)
def test_arguments_of_losses_that_torch_lacks_are_keyword_only(module):
    assert {p.kind for p in parameters_of(module)} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("module", MODULES)
def test_forward_takes_what_changes_from_call_to_call(module):
    expected = ["input", "target"]
    if takes(losses.MODULES.get(module, segloss.dice_loss), "voxel_weight"):
        expected.append("voxel_weight")
    if takes(module, "label_sets"):
        expected.append("label_set_index")
    if module is segloss.BoundaryLoss:
        expected.append("distances")
    if module in (segloss.CCDiceCELoss, segloss.BlobLoss):
        expected.append("components")
    assert [p.name for p in parameters_of(module().forward)] == expected


# ---- a module gives what its function gives ----

OPTIONS = [
    {},
    {"weight": torch.tensor([0.5, 2.0, 1.0])},
    {"ignore_index": 2},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"ignore_index": 1, "weight": torch.tensor([0.5, 2.0, 1.0]), "reduction": "none"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize(("module", "function"), OF_TORCH)
def test_a_module_gives_what_its_function_gives(module, function, options):
    assert torch.equal(module(**options)(INPUT, LABELS), function(INPUT, LABELS, **options))


@pytest.mark.parametrize(
    ("module", "function", "keyword"),
    [(*pair, keyword) for pair in MODULE_AND_FUNCTION for keyword in values_alone(pair[0])],
)
def test_a_module_hands_each_keyword_to_its_function(module, function, keyword):
    context = {"activation": "sigmoid"} if keyword in OF_SIGMOIDS and has(module, "activation") else {}
    options = {keyword: values_alone(module)[keyword], **context}
    loss = module(**options)(SQUARE_INPUT, SQUARE_LABELS)
    assert torch.equal(loss, function(SQUARE_INPUT, SQUARE_LABELS, **options))
    assert not torch.equal(loss, function(SQUARE_INPUT, SQUARE_LABELS, **context))


@pytest.mark.parametrize("module", [segloss.DiceLoss, segloss.GeneralizedDiceLoss, segloss.TverskyLoss])
def test_a_region_loss_without_reduction_keeps_its_terms(module):
    terms = module(reduction="none")(SQUARE_INPUT, SQUARE_LABELS)
    assert terms.shape == ((2,) if module is segloss.GeneralizedDiceLoss else (2, 3))
    assert_close(terms.mean(), module()(SQUARE_INPUT, SQUARE_LABELS))


@pytest.mark.parametrize("module", [segloss.DiceLoss, segloss.GeneralizedDiceLoss, segloss.TverskyLoss])
def test_activation_none_reads_probabilities(module):
    loss = module(activation=None)(SQUARE_INPUT.softmax(1), SQUARE_LABELS)
    assert_close(loss, module()(SQUARE_INPUT, SQUARE_LABELS))


@pytest.mark.parametrize(("module", "torchs"), PAIRS[:2])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
def test_a_module_gives_what_torchs_gives(options, module, torchs):
    assert_close(module(**options)(INPUT, LABELS), torchs(**options)(INPUT, LABELS.long()))


def test_label_smoothing_of_the_module():
    expected = segloss.cross_entropy(INPUT, LABELS, label_smoothing=0.3)
    assert torch.equal(segloss.CrossEntropyLoss(label_smoothing=0.3)(INPUT, LABELS), expected)


@pytest.mark.parametrize(("module", "function"), OF_TORCH)
def test_dim_of_the_module(module, function):
    x = INPUT.transpose(1, 2)
    assert torch.equal(module(dim=-1)(x, LABELS), function(INPUT, LABELS))


@pytest.mark.parametrize("module", [module for module in MODULES if has(module, "empty")])
def test_empty_of_the_module(module):
    ignored = torch.full((1, 2), -100)
    assert module()(INPUT, ignored).isnan()
    dice = 0.0 if not has(module, "lambda_dice") else segloss.dice_loss(INPUT, ignored)
    assert module(empty="zero")(INPUT, ignored) == dice


@pytest.mark.parametrize(
    ("module", "function"), [pair for pair in MODULE_AND_FUNCTION if takes(pair[1], "voxel_weight")]
)
def test_voxel_weight_goes_to_forward(module, function):
    v = torch.tensor([[0.5, 2.0]])
    expected = function(INPUT, LABELS, voxel_weight=v)
    assert torch.equal(module()(INPUT, LABELS, v), expected)
    assert torch.equal(module()(INPUT, LABELS, voxel_weight=v), expected)
    assert not torch.equal(module()(INPUT, LABELS), expected)


@pytest.mark.parametrize("module", [module for module, _ in OF_TORCH])
@pytest.mark.parametrize(
    ("legacy", "reduction"),
    [({"size_average": False}, "sum"), ({"size_average": True}, "mean"), ({"reduce": False}, "none")],
)
def test_the_deprecated_keywords_become_a_reduction_with_a_warning(legacy, reduction, module):
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        loss = module(**legacy)
    assert loss.reduction == reduction
    assert torch.equal(loss(INPUT, LABELS), module(reduction=reduction)(INPUT, LABELS))


def test_positional_arguments_are_torchs():
    weight = torch.tensor([0.5, 2.0, 1.0])
    loss = segloss.CrossEntropyLoss(weight, None, 2, None, "sum", 0.3)
    expected = torch.nn.CrossEntropyLoss(weight, None, 2, None, "sum", 0.3)
    assert_close(loss(INPUT, LABELS), expected(INPUT, LABELS.long()))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_takes_part_in_backward(module):
    x = INPUT.clone().requires_grad_()
    module()(x, LABELS).backward()
    assert x.grad.abs().sum() > 0


# ---- state, repr and copies of a module ----


@pytest.mark.parametrize("module", WEIGHTED)
def test_weight_is_a_buffer(module):
    weight = torch.tensor([0.5, 2.0, 1.0])
    loss = module(weight=weight)
    assert list(loss.state_dict()) == ["weight"]
    assert not list(loss.parameters())
    assert torch.equal(loss.state_dict()["weight"], weight)


@pytest.mark.parametrize("module", MODULES)
def test_without_weight_the_state_is_empty(module):
    assert not module().state_dict()


@pytest.mark.parametrize("module", WEIGHTED)
def test_weight_moves_with_the_module(module):
    assert module(weight=torch.ones(3)).to(torch.float64).weight.dtype == torch.float64
    assert module(weight=torch.ones(3)).to("meta").weight.is_meta


@pytest.mark.parametrize("module", WEIGHTED)
def test_the_state_of_one_module_loads_into_another(module):
    loss = module(weight=torch.ones(3))
    loss.load_state_dict(module(weight=torch.tensor([0.5, 2.0, 1.0])).state_dict())
    assert torch.equal(loss.weight, torch.tensor([0.5, 2.0, 1.0]))


@pytest.mark.parametrize("module", PAIRS)
def test_the_state_of_torchs_module_loads(module):
    ours, torchs = module
    loss = ours(torch.ones(3))
    loss.load_state_dict(torchs(torch.tensor([0.5, 2.0, 1.0])).state_dict())
    assert torch.equal(loss.weight, torch.tensor([0.5, 2.0, 1.0]))


@pytest.mark.parametrize("module", MODULES)
def test_repr_shows_every_keyword(module):
    values = other_values(module)
    text = repr(module(**values))
    assert text.startswith(module.__name__ + "(")
    for name, value in values.items():
        assert f"{name}={value!r}" in text


@pytest.mark.parametrize("module", [module for module in MODULES if has(module, "empty")])
def test_repr_shows_empty(module):
    assert "empty='zero'" in repr(module(empty="zero"))


def test_repr_of_a_weight_without_values():
    assert "CrossEntropyLoss(" in repr(segloss.CrossEntropyLoss(torch.ones(3)).to("meta"))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_copy_of_a_module_is_the_module(copied, module):
    loss = module(**other_values(module))
    other = copied(loss)
    assert repr(other) == repr(loss)
    assert torch.equal(other(SQUARE_INPUT, SQUARE_LABELS), loss(SQUARE_INPUT, SQUARE_LABELS))


@pytest.mark.parametrize("module", WEIGHTED)
def test_a_deep_copy_has_a_weight_of_its_own(module):
    loss = module(weight=torch.ones(3))
    assert copy.deepcopy(loss).weight.data_ptr() != loss.weight.data_ptr()


@pytest.mark.parametrize("module", WEIGHTED)
def test_a_weight_of_another_dtype_is_promoted(module):
    loss = module(weight=torch.tensor([0.5, 2.0, 1.0]))
    expected = loss(SQUARE_INPUT, SQUARE_LABELS)
    assert_close(loss.double()(SQUARE_INPUT, SQUARE_LABELS), expected)
    assert loss(SQUARE_INPUT, SQUARE_LABELS).dtype == torch.float32


def test_a_module_in_a_sequence_of_modules():
    model = torch.nn.ModuleDict({"loss": segloss.CrossEntropyLoss(torch.ones(3))})
    assert list(model.state_dict()) == ["loss.weight"]


# ---- the package ----


def test_public_names_are_sorted_and_there():
    assert sorted(segloss.__all__) == list(segloss.__all__)
    assert all(hasattr(segloss, name) for name in segloss.__all__)


def test_every_public_name_has_a_docstring():
    assert all(getattr(segloss, name).__doc__ for name in segloss.__all__)


def test_type_information_is_shipped():
    files = importlib.resources.files(segloss)
    assert files.joinpath("py.typed").is_file()


# ---- class weights as numbers ----


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("module", WEIGHTED)
def test_a_module_takes_weights_of_classes_as_numbers(module, kind):
    values = {"weight": [0.5, 2.0, 1.0]} | ({"pos_weight": [1.5, 0.25, 3.0]} if has(module, "pos_weight") else {})
    options = {"activation": "sigmoid"} if has(module, "pos_weight") and has(module, "activation") else {}
    tensors = {name: torch.tensor(numbers) for name, numbers in values.items()}
    loss = module(**{name: kind(numbers) for name, numbers in values.items()}, **options)
    assert {name: buffer.tolist() for name, buffer in loss.state_dict().items()} == values
    assert torch.equal(loss(SQUARE_INPUT, SQUARE_LABELS), module(**tensors, **options)(SQUARE_INPUT, SQUARE_LABELS))


@pytest.mark.parametrize("function", [each for each in losses.FUNCTIONS.values() if takes(each, "weight")])
def test_a_function_takes_weights_of_classes_as_numbers(function):
    values = {"weight": [0.5, 2, 1]} | ({"pos_weight": [1.5, 0.25, 3.0]} if takes(function, "pos_weight") else {})
    options = {"activation": "sigmoid"} if takes(function, "pos_weight") and takes(function, "activation") else {}
    tensors = {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in values.items()}
    expected = function(SQUARE_INPUT, SQUARE_LABELS, **tensors, **options)
    assert torch.equal(function(SQUARE_INPUT, SQUARE_LABELS, **values, **options), expected)


def test_numbers_keep_the_digits_of_float64_logits():
    x, numbers = SQUARE_INPUT.double(), [0.1, 0.6, 0.3]
    expected = segloss.cross_entropy(x, SQUARE_LABELS, torch.tensor(numbers, dtype=torch.float64))
    assert segloss.cross_entropy(x, SQUARE_LABELS, numbers) == expected


def test_numbers_are_not_rounded_to_a_half_type_that_is_torchs_default():
    torch.set_default_dtype(torch.float16)
    try:
        assert segloss.CrossEntropyLoss([1e5, 1.0]).weight.tolist() == [1e5, 1.0]
    finally:
        torch.set_default_dtype(torch.float32)


def test_alpha_of_a_softmax_and_the_total_weight_take_numbers():
    numbers, tensor = [0.1, 0.6, 0.3], torch.tensor([0.1, 0.6, 0.3])
    expected = segloss.focal_loss(SQUARE_INPUT, SQUARE_LABELS, alpha=tensor)
    assert torch.equal(segloss.focal_loss(SQUARE_INPUT, SQUARE_LABELS, alpha=numbers), expected)
    assert torch.equal(segloss.FocalLoss(alpha=numbers)(SQUARE_INPUT, SQUARE_LABELS), expected)
    assert segloss.total_weight(SQUARE_LABELS, numbers) == segloss.total_weight(SQUARE_LABELS, tensor)


@pytest.mark.parametrize("weight", [["a", "b", "c"], 2.0, [[1.0], [2.0], [3.0]]])
def test_weights_that_are_no_numbers_are_refused(weight):
    for call in (segloss.DiceLoss, lambda weight: segloss.dice_loss(SQUARE_INPUT, SQUARE_LABELS, weight=weight)):
        with pytest.raises(TypeError, match=r"expected weight to be a torch\.Tensor, got"):
            call(weight=weight)


# ---- keywords of other packages ----


@pytest.mark.parametrize("module", MODULES)
def test_a_keyword_of_another_package_names_what_to_give_instead(module):
    softmax = r" \(the default, see activation\)" if has(module, "activation") else ""
    text = (
        rf"^{module.__name__}: expected segloss's own keywords, got to_onehot_y \(drop it, labels are taken as they "
        rf"come\), softmax{softmax}, foo\. segloss\.monai, segloss\.smp and segloss\.nnunet have losses with"
    )
    with pytest.raises(TypeError, match=text):
        module(to_onehot_y=True, softmax=True, foo=1)


def test_deep_supervision_explains_keywords_of_monai():
    with pytest.raises(TypeError, match=r"got weight_mode \(weights, a number for each resolution\)"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss(), weight_mode="exp")


@pytest.mark.parametrize("own", [{}, {"smooth": 2.0}])
def test_another_unknown_keyword_is_pythons_own_error(own):
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'weigth'"):
        segloss.MultiClassDiceLoss(**own, weigth=[1.0])


@pytest.mark.parametrize("keyword", sorted(_peers._ADVICE))
def test_the_advice_for_a_keyword_names_one_that_some_loss_has(keyword):
    modules = (*MODULES, segloss.DeepSupervisionLoss)
    keywords = {name for module in modules for name in inspect.signature(module).parameters}
    replacement, _ = _peers._ADVICE[keyword]
    assert replacement is None or replacement in keywords
    assert keyword not in keywords - {"mode", "smooth", "classes"}
