"""label_sets: labels that stand for any class of a set give the marginal loss, and a Dice term for what they join."""

from functools import partial

import pytest
import torch
from losses import MODULES, takes, value_and_gradient
from test_devices import without_kernels

import segloss

UNLABELLED = {0: (0, 2, 3)}  # classes 2 and 3 lie in the background
EITHER = {0: (0, 3), 4: (1, 2)}  # label 4 is class 1 or 2
OF_EACH = [UNLABELLED, {}, EITHER]
ALL = {"unlabelled": UNLABELLED, "either": EITHER, "of each sample": OF_EACH, "everything": {0: (0, 1, 2, 3)}}
EVERY_SETS = pytest.mark.parametrize("label_sets", ALL.values(), ids=ALL)
CLOSE = {"rtol": 1e-12, "atol": 1e-14}
IGNORED = {"ignore_index": 255}

VOXEL_LOSSES = {
    "cross_entropy": segloss.cross_entropy,
    "weighted, smoothed cross_entropy": partial(
        segloss.cross_entropy, label_smoothing=0.1, weight=torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)
    ),
    "focal_loss": partial(segloss.focal_loss, gamma=1.5),
    "nll_loss": segloss.nll_loss,
    "topk_loss": partial(segloss.topk_loss, k=60),
}
REGION_LOSSES = {
    "dice_loss": segloss.dice_loss,
    "dice_loss of the batch": partial(segloss.dice_loss, batch=True),
    "jaccard dice_loss": partial(segloss.dice_loss, jaccard=True),
    "generalized_dice_loss": segloss.generalized_dice_loss,
    "tversky_loss": partial(segloss.tversky_loss, alpha=0.3, beta=0.7, gamma=0.75),
}
COMPOUND_LOSSES = {"dice_ce_loss": segloss.dice_ce_loss, "dice_focal_loss": segloss.dice_focal_loss}
LOSSES = VOXEL_LOSSES | REGION_LOSSES | COMPOUND_LOSSES
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def sets_of_samples(label_sets, num_samples):
    return label_sets if isinstance(label_sets, list) else [label_sets] * num_samples


def case(label_sets=UNLABELLED, shape=(3, 4, 5, 6), dtype=torch.float64):
    """Logits and labels: of the channels, and those that only sets have; some are 255 and ignored."""
    x = torch.randn(shape, dtype=torch.float64)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]))
    for n, sets in enumerate(sets_of_samples(label_sets, shape[0])):
        labels[n, 0, 0] = 4 if 4 in sets else 0
        labels[n, 1] = labels[n, 1].where(labels[n, 1] != 1, 4 if 4 in sets else 1)
    labels[0, 0, 1:] = 255
    return x.to(dtype).requires_grad_(), labels


def members_of(sets, label):
    return list(sets.get(label, (label,)))


def marginal(x, labels, label_sets, *, gamma=0.0, smoothing=0.0, weight=None):
    """The loss of each voxel that counts, and its weight, one by one."""
    losses, weights = [], []
    log_p = x.double().log_softmax(1)
    for n, sets in enumerate(sets_of_samples(label_sets, len(x))):
        for voxel, label in enumerate(labels[n].flatten().tolist()):
            if label == 255:
                continue
            of_voxel = log_p[n].flatten(1)[:, voxel]
            log_q = of_voxel[members_of(sets, label)].logsumexp(0).clamp_max(0)
            w = 1.0 if weight is None else weight[label]
            smooth = (of_voxel if weight is None else of_voxel * weight).mean()
            losses.append(-(1 - smoothing) * w * (1 - log_q.exp()) ** gamma * log_q - smoothing * smooth)
            weights.append(torch.as_tensor(w, dtype=torch.float64))
    return torch.stack(losses), torch.stack(weights)


def groups_of(sets, num_channels):
    """Lists of classes that sets join, by adding a class to a group until nothing changes."""
    groups = [{c} for c in range(num_channels)]
    for _ in range(num_channels):
        for members in sets.values():
            joined = [group for group in groups if group & set(members)]
            groups = [group for group in groups if not group & set(members)] + [set().union(*joined)]
    return sorted(map(sorted, groups))


def merged(x, labels, sets):
    """For one sample the probabilities and masks of its groups, -100 where ignored, and the first class of each."""
    groups = groups_of(sets, x.shape[1])
    p = torch.cat([x.softmax(1)[:, group].sum(1, keepdim=True) for group in groups], 1)
    masks = torch.zeros_like(p, dtype=torch.int16)
    for k, group in enumerate(groups):
        for label in labels.unique().tolist():
            if label != 255 and members_of(sets, label)[0] in group:
                masks[:, k][labels == label] = 1
    masks = masks.masked_fill((labels == 255).unsqueeze(1), -100)
    return p, masks, [group[0] for group in groups]


def assert_close(actual, expected, **tolerance):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, **(tolerance or CLOSE), equal_nan=True)


# ---- values ----


@EVERY_SETS
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_the_loss_is_minus_log_of_the_sum_over_the_set(label_sets, gamma):
    x, labels = case(label_sets)
    loss = segloss.focal_loss if gamma else segloss.cross_entropy
    options = {"gamma": gamma} if gamma else {}
    actual = value_and_gradient(loss, x, labels, label_sets=label_sets, **IGNORED, **options)
    assert_close(actual, value_and_gradient(lambda x: marginal(x, labels, label_sets, gamma=gamma)[0].mean(), x))


@pytest.mark.parametrize("label_sets", [UNLABELLED, [UNLABELLED, {}, {1: (1, 3)}]], ids=["one", "of each sample"])
def test_weights_are_those_of_the_label_and_smoothing_is_over_all_classes(label_sets):
    x, labels = case(label_sets)
    weight = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)

    def expected(x):
        losses, weights = marginal(x, labels, label_sets, smoothing=0.1, weight=weight)
        return losses.sum() / weights.sum()

    options = {"weight": weight, "label_smoothing": 0.1, "label_sets": label_sets, **IGNORED}
    actual = value_and_gradient(segloss.cross_entropy, x, labels, **options)
    assert_close(actual, value_and_gradient(expected, x))


@EVERY_SETS
def test_of_log_probabilities(label_sets):
    x, labels = case(label_sets)
    loss = partial(segloss.nll_loss, target=labels, label_sets=label_sets, **IGNORED)
    actual = value_and_gradient(lambda x: loss(x.log_softmax(1)), x)
    expected = value_and_gradient(segloss.cross_entropy, x, labels, label_sets=label_sets, **IGNORED)
    assert_close(actual, expected)


@EVERY_SETS
def test_the_largest_losses(label_sets):
    x, labels = case(label_sets)
    actual = value_and_gradient(segloss.topk_loss, x, labels, k=40, label_sets=label_sets, **IGNORED)

    def expected(x):
        losses, _ = marginal(x, labels, label_sets)
        return losses.topk(int(0.4 * len(losses))).values.mean()

    assert_close(actual, value_and_gradient(expected, x))


@EVERY_SETS
@pytest.mark.parametrize("options", [{}, {"jaccard": True}], ids=["dice", "jaccard"])
def test_classes_that_a_set_joins_are_one_term(label_sets, options):
    x, labels = case(label_sets)
    actual = segloss.dice_loss(x, labels, label_sets=label_sets, reduction="none", **IGNORED, **options)
    expected = torch.zeros_like(actual)
    for n, sets in enumerate(sets_of_samples(label_sets, len(x))):
        p, masks, first = merged(x[[n]], labels[[n]], sets)
        expected[n, first] = segloss.dice_loss(p, masks, activation=None, reduction="none", **options)[0]
    assert_close([actual], [expected])
    mean = segloss.dice_loss(x, labels, label_sets=label_sets, **IGNORED, **options)
    num_terms = sum(len(groups_of(sets, 4)) for sets in sets_of_samples(label_sets, len(x)))
    assert_close([mean], [expected.sum() / num_terms])


@EVERY_SETS
def test_gradients_of_joined_terms(label_sets):
    x, labels = case(label_sets)

    def expected(x):
        terms = []
        for n, sets in enumerate(sets_of_samples(label_sets, len(x))):
            p, masks, _ = merged(x[[n]], labels[[n]], sets)
            terms.append(segloss.tversky_loss(p, masks, activation=None, alpha=0.3, beta=0.7, reduction="none")[0])
        return torch.cat(terms).mean()

    actual = value_and_gradient(segloss.tversky_loss, x, labels, alpha=0.3, beta=0.7, label_sets=label_sets, **IGNORED)
    assert_close(actual, value_and_gradient(expected, x))


@EVERY_SETS
def test_the_generalized_dice_loss_of_groups(label_sets):
    x, labels = case(label_sets)
    actual = segloss.generalized_dice_loss(x, labels, label_sets=label_sets, reduction="none", **IGNORED)
    for n, sets in enumerate(sets_of_samples(label_sets, len(x))):
        p, masks, _ = merged(x[[n]], labels[[n]], sets)
        assert_close([actual[n]], [segloss.generalized_dice_loss(p, masks, activation=None)])


def test_a_batch_adds_the_samples_in_which_a_class_is_a_term():
    x, labels = case(OF_EACH)
    stats = [segloss.soft_stats(x[[n]], labels[[n]], label_sets=sets, **IGNORED) for n, sets in enumerate(OF_EACH)]
    i, p, t = (torch.cat([each[k] for each in stats]).sum(0) for k in range(3))
    expected = (1 - (2 * i + 1e-5) / (p + t + 1e-5)).mean()  # class 2 is one of the second sample's alone
    assert_close([segloss.dice_loss(x, labels, label_sets=OF_EACH, batch=True, **IGNORED)], [expected])


def test_without_the_background_there_is_no_term_of_what_it_joins():
    x, labels = case()
    options = {"label_sets": UNLABELLED, **IGNORED}
    terms = segloss.dice_loss(x, labels, reduction="none", **options)
    actual = segloss.dice_loss(x, labels, include_background=False, **options)
    assert_close([actual], [terms[:, 1].mean()])


def test_soft_statistics_are_those_of_the_first_of_joined_classes():
    x, labels = case()
    stats = segloss.soft_stats(x, labels, label_sets=UNLABELLED, **IGNORED)
    p, masks, _ = merged(x, labels, UNLABELLED)
    for actual, expected in zip(stats, segloss.soft_stats(p, masks, activation=None), strict=True):
        assert_close([actual[:, :2], actual[:, 2:]], [expected, torch.zeros(3, 2, dtype=torch.float64)])


@EVERY_SETS
@pytest.mark.parametrize("name", COMPOUND_LOSSES)
def test_compound_losses_are_the_sum_of_their_terms(label_sets, name):
    x, labels = case(label_sets)
    options = {"label_sets": label_sets, **IGNORED}
    second = segloss.cross_entropy if name == "dice_ce_loss" else segloss.focal_loss

    def expected(x):
        return segloss.dice_loss(x, labels, **options) + second(x, labels, **options)

    actual = value_and_gradient(COMPOUND_LOSSES[name], x, labels, **options)
    assert_close(actual, value_and_gradient(expected, x))


@EVERY_LOSS
def test_sets_of_one_class_change_nothing(loss):
    x, labels = case({})
    actual = value_and_gradient(loss, x, labels, label_sets={1: (1,), 3: [3]}, **IGNORED)
    assert_close(actual, value_and_gradient(loss, x, labels, **IGNORED))


@EVERY_LOSS
def test_an_index_says_which_mapping_each_sample_has(loss):
    mappings = [{1: (1, 3)}, UNLABELLED]
    x, labels = case({})
    by_sample = [mappings[k] for k in (1, 1, 0)]
    expected = value_and_gradient(loss, x, labels, label_sets=by_sample, **IGNORED)
    for index in ([1, 1, 0], torch.tensor([1, 1, 0]), torch.tensor([1, 1, 0], dtype=torch.uint8)):
        options = {"label_sets": mappings, "label_set_index": index, **IGNORED}
        assert_close(value_and_gradient(loss, x, labels, **options), expected)


def test_confident_voxels_keep_their_digits():
    x = torch.zeros(1, 4, 6, dtype=torch.float32)
    x[0, 0] = torch.tensor([20.0, 30.0, 40.0, -20.0, -100.0, -1000.0])
    x[0, 2] = x[0, 0] - 1
    for label_sets in (UNLABELLED, {0: (0, 2)}):
        labels = torch.zeros(1, 6, dtype=torch.uint8)
        loss = partial(segloss.cross_entropy, target=labels, label_sets=label_sets, reduction="none")
        actual = value_and_gradient(loss, x.clone().requires_grad_())
        expected = value_and_gradient(loss, x.double().requires_grad_())
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.double(), e, rtol=2e-6, atol=1e-38)


def test_a_set_of_impossible_classes():
    x = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]], requires_grad=True)
    loss, gradient = value_and_gradient(segloss.cross_entropy, x, torch.tensor([0]), label_sets={0: (2, 3)})
    assert loss.isposinf()
    assert not gradient[0, :2].isnan().any()
    loss = segloss.cross_entropy(x, torch.tensor([0]), label_sets={0: (0, 1, 2, 3)})
    assert loss == 0
    assert segloss.cross_entropy(x * torch.nan, torch.tensor([0]), label_sets=UNLABELLED).isnan()


# ---- with other options ----


@EVERY_LOSS
@EVERY_SETS
@pytest.mark.parametrize("shape", [(3, 4, 1, 3), (3, 4, 5, 30), (3, 120, 4, 20)], ids=["few", "more", "many classes"])
def test_against_the_composite(loss, label_sets, shape):
    label_sets = UNLABELLED if label_sets is EITHER and shape[1] > 4 else label_sets
    if shape[2] == 1 or shape[1] > 4 or "weight" in getattr(loss, "keywords", {}):
        label_sets = [UNLABELLED, {}, {1: (1, 3), 0: (0, 2)}] if isinstance(label_sets, list) else UNLABELLED
    if "weight" in getattr(loss, "keywords", {}) and shape[1] > 4:
        pytest.skip("the weights are of four classes")
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (shape[0], *shape[2:])).masked_fill(torch.rand(shape[0], *shape[2:]) < 0.1, 255)
    options = {"label_sets": label_sets, **IGNORED}
    voxel_weight = torch.rand(labels.shape, dtype=torch.float64).round(decimals=1)
    actual = value_and_gradient(loss, x, labels, voxel_weight=voxel_weight, **options)
    with without_kernels():
        expected = value_and_gradient(loss, x, labels, voxel_weight=voxel_weight, **options)
    assert_close(actual, expected, rtol=1e-11, atol=1e-13)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_logits_that_are_channels_last_and_labels_with_a_channel(loss, dtype):
    sets = [UNLABELLED, {}, {1: (1, 3)}]
    x, labels = case({})
    x = x.detach().to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    actual = value_and_gradient(loss, x, labels.unsqueeze(1).byte(), label_sets=sets, **IGNORED)
    wide = x.detach().double().requires_grad_()
    expected = value_and_gradient(loss, wide, labels, label_sets=sets, **IGNORED)
    rtol = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=rtol, atol=rtol * e.abs().max().item())


@EVERY_LOSS
def test_with_a_label_map(loss):
    x, labels = case(UNLABELLED)
    raw = torch.tensor([70, 10, 30, 20])[labels.clamp_max(3)].masked_fill(labels == 255, 99)
    label_map = {70: 0, 10: 1, 30: 2, 20: 3, 99: None}
    actual = value_and_gradient(loss, x, raw, label_map=label_map, label_sets=UNLABELLED)
    assert_close(actual, value_and_gradient(loss, x, labels, label_sets=UNLABELLED, **IGNORED), rtol=0, atol=0)


@pytest.mark.parametrize("loss", [loss for name, loss in LOSSES.items() if "topk" not in name])
def test_second_derivatives_and_forward_mode(loss):
    sets = [UNLABELLED, {1: (1, 3)}]
    x, labels = case({}, (2, 4, 2, 3))
    x = x.detach().log_softmax(1).requires_grad_()
    function = partial(loss, target=labels, label_sets=sets, **IGNORED)
    assert torch.autograd.gradcheck(function, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, x)


@EVERY_LOSS
def test_under_vmap_and_per_sample_gradients(loss):
    x, labels = case({}, (6, 4, 5, 3))
    x, labels = x.detach().unflatten(0, (2, 3)), labels.unflatten(0, (2, 3))
    function = partial(loss, label_sets=[UNLABELLED, {}, {1: (1, 3)}], **IGNORED)
    actual = torch.vmap(function)(x, labels)
    assert_close([actual], [torch.stack([function(*each) for each in zip(x, labels, strict=True)])])
    actual = torch.vmap(torch.func.grad(function))(x, labels)
    expected = [torch.func.grad(function)(*each) for each in zip(x, labels, strict=True)]
    assert_close([actual], [torch.stack(expected)])


def test_compiled_without_a_break():
    x, labels = case({})
    loss = partial(segloss.dice_ce_loss, label_sets=[UNLABELLED, {1: (1, 3)}], **IGNORED)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for index in (torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])):
        options = {"label_set_index": index}
        expected = value_and_gradient(loss, x, labels, **options)
        assert_close(value_and_gradient(compiled, x, labels, **options), expected)


@pytest.mark.parametrize("dim", [0, 2, -1])
def test_classes_along_another_dimension(dim):
    x, labels = case(OF_EACH)
    moved = x.detach().movedim(1, dim).contiguous().requires_grad_()
    options = {"label_sets": OF_EACH, **IGNORED}
    value, gradient = value_and_gradient(segloss.dice_ce_loss, moved, labels, dim=dim, **options)
    expected = value_and_gradient(segloss.dice_ce_loss, x, labels, **options)
    assert_close([value, gradient.movedim(dim, 1)], expected)


@pytest.mark.parametrize("module", [m for m, f in MODULES.items() if takes(f, "label_sets")], ids=lambda m: m.__name__)
def test_modules_take_sets_once_and_an_index_for_each_batch(module):
    x, labels = case({})
    loss = module(label_sets=[UNLABELLED, {1: (1, 3)}], **IGNORED)
    options = {"label_sets": [UNLABELLED, {1: (1, 3)}], "label_set_index": [0, 1, 1], **IGNORED}
    assert_close([loss(x, labels, label_set_index=[0, 1, 1])], [MODULES[module](x, labels, **options)])
    deep = segloss.DeepSupervisionLoss(loss)
    assert_close([deep([x], labels, label_set_index=[0, 1, 1])], [loss(x, labels, label_set_index=[0, 1, 1])])


# ---- bad input ----

BAD = {
    "a class beyond the channels": (
        {0: (0, 4)},
        ValueError,
        r"classes in \[0, 4\), the channels of input.* \{0: \(0, 4",
    ),
    "a huge key": ({10**9: (0, 1)}, ValueError, "classes below 65536 in label_sets, got 1000000000"),
    "a negative class": ({0: (0, -1)}, ValueError, "different classes from 0 on"),
    "a negative key": ({-1: (0, 1)}, ValueError, "keys from 0 on"),
    "an empty set": ({0: ()}, ValueError, r"the set of class 0 to be different classes .* one at least, got \(\)"),
    "a class twice": ({0: (0, 0)}, ValueError, r"the set of class 0 to be different classes"),
    "a set that is an int": ({0: 2}, TypeError, r"the set of class 0 to be a collection of classes, got 2. Use \(0,\)"),
    "a class that is no int": ({0: (0, 1.5)}, TypeError, "each class in the set of class 0 to be an int, got 1.5"),
    "a key that is no int": ({"liver": (0, 1)}, TypeError, "each key of label_sets to be a class"),
    "an ignored label": ({1: (1, 2)}, ValueError, r"no ignored label in label_sets, got 2 in the set of class 1"),
    "no mapping": ([(0, 1), (1,), (2,)], TypeError, "a mapping for each sample in label_sets"),
    "no sequence": (5, TypeError, "expected label_sets to be a mapping from a class to the set"),
    "nothing": ([], TypeError, "expected label_sets to be a mapping from a class to the set"),
    "two mappings for three samples": ([{}, {}], ValueError, "3 mappings in label_sets, one for each sample .* got 2"),
}


@pytest.mark.parametrize(("label_sets", "error", "text"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("loss", [segloss.cross_entropy, segloss.dice_ce_loss], ids=["cross_entropy", "dice_ce_loss"])
def test_bad_sets_raise(label_sets, error, text, loss):
    x, labels = case({})
    with pytest.raises(error, match=rf"{loss.__name__}: .*{text}"):
        loss(x, labels, label_sets=label_sets, ignore_index=(2, 255))


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        ([0, 1], ValueError, r"label_set_index of shape \[3\].* got \[2\]"),
        ([0.0, 1.0, 1.0], TypeError, "label_set_index to hold integers, got torch.float32"),
        ([0, 1, 2], (IndexError, RuntimeError), "index"),
    ],
)
def test_a_bad_index_raises(index, error, text):
    x, labels = case({})
    with pytest.raises(error, match=text):
        segloss.cross_entropy(x, labels, label_sets=[{}, UNLABELLED], label_set_index=index, **IGNORED)


def test_a_label_that_only_another_sample_has_is_refused():
    x, labels = case(OF_EACH)
    labels[1, 2, 2] = 4
    with pytest.raises(IndexError, match=r"Target 4 is out of bounds: 1 label has no class, .* index \[1, 2, 2\]"):
        segloss.dice_ce_loss(x, labels, label_sets=OF_EACH, **IGNORED)


def test_a_class_beyond_the_channels_has_no_weight():
    x, labels = case(EITHER)
    with pytest.raises(ValueError, match="got class 4"):
        segloss.cross_entropy(x, labels, torch.ones(4), label_sets=EITHER, **IGNORED)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_sets_need_a_softmax(activation):
    x, labels = case({})
    with pytest.raises(ValueError, match="no label_sets without a softmax"):
        segloss.dice_loss(x.detach(), labels, activation=activation, label_sets=UNLABELLED, **IGNORED)
    with pytest.raises(ValueError, match="no label_sets without a softmax"):
        segloss.focal_loss(x, labels, activation="sigmoid", label_sets=UNLABELLED, **IGNORED)


def test_squares_of_joined_classes_are_refused():
    x, labels = case({})
    with pytest.raises(ValueError, match="dice_loss: expected squared=False with label_sets"):
        segloss.dice_loss(x, labels, squared=True, label_sets=UNLABELLED, **IGNORED)


def test_class_probabilities_have_no_labels():
    x, _ = case({})
    with pytest.raises(RuntimeError, match="expected class labels with label_sets, got class probabilities"):
        segloss.cross_entropy(x, x.detach().softmax(1), label_sets=UNLABELLED)


def test_a_slab_of_samples_has_their_mappings():
    x = torch.randn(700, 4, 30, 20, requires_grad=True)
    labels, index = torch.randint(4, (700, 30, 20), dtype=torch.uint8), torch.randint(2, (700,))
    loss = partial(segloss.dice_ce_loss, label_sets=[UNLABELLED, {1: (1, 3)}], label_set_index=index)
    expected = value_and_gradient(loss, x, labels)
    with without_kernels():
        actual = value_and_gradient(loss, x, labels)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("shape", [(500, 4, 2), (100, 4, 3, 3), (300, 4, 1)])
def test_samples_that_share_a_block(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    labels, index = torch.randint(4, (shape[0], *shape[2:])), torch.randint(2, (shape[0],))
    for loss in (segloss.dice_ce_loss, segloss.cross_entropy):
        options = {"label_sets": [UNLABELLED, {1: (1, 3)}], "label_set_index": index}
        actual = value_and_gradient(loss, x, labels, **options)
        with without_kernels():
            assert_close(actual, value_and_gradient(loss, x, labels, **options))
