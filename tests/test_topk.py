"""The top-k loss: the mean of the largest k percent of the cross-entropy losses of the voxels that count."""

import inspect

import pytest
import reference
import torch
import torch.nn.functional as F
from losses import OF_LABELS, OF_SIZE
from tolerances import ROUNDING_RTOL, assert_close, assert_relative
from torch.autograd import gradcheck, gradgradcheck

import segloss

WEIGHT = torch.tensor([0.5, 2.0, 1.0])
NAN = float("nan")


def topk(input, target, **options):
    x = input.detach().requires_grad_()
    value = segloss.topk_loss(x, target, **options)
    return value.detach(), torch.autograd.grad(value, x)[0]


def assert_is_reference(input, target, **options):
    expected = reference.value_and_gradient(reference.topk_loss, input, target, **options)
    value, gradient = topk(input, target, **options)
    assert value.dtype == input.dtype
    assert value.shape == ()
    assert_close(value, expected[0])
    assert_close(gradient, expected[1])


def chosen(gradient):
    """How many voxels have a gradient."""
    return int((gradient != 0).any(1).sum())


def test_names_and_defaults_of_the_keywords():
    input, target, *keywords = inspect.signature(segloss.topk_loss).parameters.values()
    assert (input.name, target.name) == ("input", "target")
    assert all(keyword.kind is keyword.KEYWORD_ONLY for keyword in keywords)
    assert {keyword.name: keyword.default for keyword in keywords} == {
        "k": 10.0,
        "weight": None,
        "ignore_index": -100,
        "label_smoothing": 0.0,
        "empty": "nan",
        "dim": 1,
        "voxel_weight": None,
        **OF_LABELS,
        **OF_SIZE,
    }


# ---- the largest k percent ----


@pytest.mark.parametrize("k", [1e-3, 1, 10, 10.0, 33.3, 50, 99.9, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_k_is_the_reference(dtype, k):
    assert_is_reference(torch.randn(2, 3, 4, 5, dtype=dtype), torch.randint(3, (2, 1, 4, 5)), k=k)


def test_k_of_100_percent_is_the_mean_of_cross_entropy():
    x, labels = torch.randn(2, 3, 20), torch.randint(3, (2, 20))
    labels[0, :7] = -100
    assert_close(segloss.topk_loss(x, labels, k=100.0), F.cross_entropy(x, labels))


@pytest.mark.parametrize("num_voxels", [1, 2, 9, 10, 11, 19, 20])
def test_a_part_of_a_voxel_is_rounded_down_but_one_is_kept(num_voxels):
    x, labels = torch.randn(1, 3, num_voxels), torch.randint(3, (1, num_voxels))
    losses = F.cross_entropy(x, labels, reduction="none").flatten()
    value, gradient = topk(x, labels)
    num_kept = max(1, num_voxels // 10)
    assert_close(value, losses.sort(descending=True).values[:num_kept].mean())
    assert chosen(gradient) == num_kept


@pytest.mark.parametrize("k", [7, 14, 28, 29, 55, 56, 57, 58])
def test_k_of_a_hundred_voxels_are_k_voxels(k):
    """In floating point 29 / 100 * 100 is 28.999999999999996."""
    _, gradient = topk(torch.randn(1, 3, 100), torch.randint(3, (1, 100)), k=k)
    assert chosen(gradient) == k


def test_the_voxels_of_all_samples_compete():
    x, labels = torch.zeros(2, 2, 10), torch.zeros(2, 10).long()
    x[1, 1] = 5.0  # sample 1 is wrong everywhere
    _, gradient = topk(x, labels, k=50)
    assert chosen(gradient[:1]) == 0
    assert chosen(gradient[1:]) == 10


def test_only_the_chosen_voxels_have_a_gradient():
    x, labels = torch.randn(2, 3, 50), torch.randint(3, (2, 50))
    losses = F.cross_entropy(x, labels, reduction="none")
    hardest = losses >= losses.flatten().sort(descending=True).values[9]
    _, gradient = topk(x, labels)
    assert torch.equal((gradient != 0).any(1), hardest)
    expected = torch.autograd.functional.jacobian(
        lambda x: F.cross_entropy(x, labels, reduction="none")[hardest].mean(), x
    )
    assert_close(gradient, expected)


def test_of_equal_losses_as_many_are_chosen_as_of_others():
    x, labels = torch.zeros(2, 3, 50), torch.randint(3, (2, 50))
    value, gradient = topk(x, labels)
    assert_close(value, torch.tensor(3.0).log())
    assert chosen(gradient) == 10


def test_losses_that_tie_with_the_last_one_chosen():
    x, labels = torch.zeros(1, 2, 20), torch.zeros(1, 20).long()
    x[0, 1, 4] = 3.0
    value, gradient = topk(x, labels, k=25)
    assert_close(value, (torch.tensor(3.0).exp().add(1).log() + 4 * torch.tensor(2.0).log()) / 5)
    assert chosen(gradient) == 5
    assert (gradient[0, :, 4] != 0).all()


# ---- voxels that do not count ----


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
@pytest.mark.parametrize("ignore_index", [255, 1])
def test_k_is_a_share_of_the_voxels_that_count(ignore_index, dtype):
    x, labels = torch.randn(2, 3, 50), torch.randint(3, (2, 1, 50))
    labels[0, 0, :40] = ignore_index
    num_valid = int((labels != ignore_index).sum())
    value, gradient = topk(x, labels.to(dtype), k=20, ignore_index=ignore_index)
    assert_close(value, reference.topk_loss(x, labels, k=20, ignore_index=ignore_index), torch.float32)
    assert chosen(gradient) == num_valid // 5


def test_ignored_voxels_are_not_zeros_among_the_losses():
    """95 of 100 voxels are ignored. Ten percent of the other five is less than one voxel, so one is taken."""
    x, labels = torch.randn(1, 3, 100), torch.randint(3, (1, 100))
    labels[0, 5:] = -100
    losses = F.cross_entropy(x[..., :5], labels[:, :5], reduction="none")
    assert_close(segloss.topk_loss(x, labels), losses.max())


def test_ignoring_voxels_is_dropping_them():
    x, labels = torch.randn(2, 3, 40), torch.randint(3, (2, 40))
    labels[:, ::2] = -100
    x[:, :, ::4] = NAN
    value, gradient = topk(x, labels, k=30)
    expected, expected_gradient = topk(x[..., 1::2], labels[:, 1::2], k=30)
    assert_close(value, expected)
    assert_close(gradient[..., 1::2], expected_gradient)
    assert torch.equal(gradient[..., ::2], torch.zeros(2, 3, 20))


def test_the_class_of_one_hot_may_be_ignored():
    x, labels = torch.randn(2, 3, 20), torch.randint(3, (2, 20))
    target = F.one_hot(labels, 3).movedim(-1, 1)
    for actual, expected in zip(topk(x, target, ignore_index=2), topk(x, labels, ignore_index=2), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("shape", [(2, 50), (2, 1, 50)])
def test_voxels_of_weight_zero_do_not_count(shape):
    x, labels, v = torch.randn(2, 3, 50), torch.randint(3, (2, 50)), torch.ones(2, 50)
    v[0, :40] = 0
    x[0, :, 0] = NAN
    value, gradient = topk(x, labels, k=20, voxel_weight=v.reshape(shape))
    assert_close(value, reference.topk_loss(x, labels, k=20, voxel_weight=v), torch.float32)
    assert chosen(gradient) == 12


@pytest.mark.parametrize(("empty", "expected"), [("nan", NAN), ("zero", 0.0)])
@pytest.mark.parametrize("how", ["ignored", "voxel_weight", "no voxel", "no sample"])
def test_no_voxel_that_counts(how, empty, expected):
    num_samples, num_voxels = int(how != "no sample") * 2, int(how != "no voxel") * 4
    labels = torch.full((num_samples, num_voxels), -100 if how == "ignored" else 1)
    v = torch.zeros(num_samples, num_voxels) if how == "voxel_weight" else None
    x = torch.randn(num_samples, 3, num_voxels)
    value, gradient = topk(x, labels, voxel_weight=v, empty=empty)
    assert_close(value, torch.tensor(expected))
    assert torch.equal(gradient, torch.zeros_like(x))


# ---- weights ----


def test_weights_multiply_the_losses_before_the_largest_are_chosen():
    x, labels = torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]])
    value, gradient = topk(
        x, labels, k=25, weight=torch.tensor([1.0, 3.0]), voxel_weight=torch.tensor([[4.0, 1, 1, 1]])
    )
    assert_close(value, 4 * torch.tensor(2.0).log())
    assert (gradient[0, :, 0] != 0).all()
    assert chosen(gradient) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"weight": WEIGHT},
        {"voxel_weight": True},
        {"label_smoothing": 0.2},
        {"weight": WEIGHT, "voxel_weight": True, "label_smoothing": 0.2, "ignore_index": 1},
    ],
    ids="+".join,
)
@pytest.mark.parametrize("k", [10, 40])
def test_weights_and_label_smoothing_equal_the_reference(k, options):
    v = torch.randint(3, (2, 50)) * torch.rand(2, 50) if options.get("voxel_weight") else None
    x, labels = torch.randn(2, 3, 50), torch.randint(3, (2, 50))
    assert_is_reference(x, labels, k=k, **{**options, "voxel_weight": v})


def test_the_mean_is_divided_by_the_number_of_voxels_not_by_their_weights():
    x, labels = torch.randn(2, 3, 20), torch.randint(3, (2, 20))
    losses = F.cross_entropy(x, labels, WEIGHT, reduction="none")
    assert_close(segloss.topk_loss(x, labels, k=100, weight=WEIGHT), losses.mean())


def test_a_class_of_weight_zero_still_counts():
    x, labels = torch.randn(1, 2, 10), torch.tensor([[0] * 5 + [1] * 5])
    _, gradient = topk(x, labels, k=40, weight=torch.tensor([0.0, 1.0]))
    assert chosen(gradient) == 4


# ---- targets, layouts, dtypes ----


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.uint16, torch.bool, torch.bfloat16])
def test_labels_of_other_dtypes(dtype):
    x, labels = torch.randn(2, 2, 30), torch.randint(2, (2, 30))
    for actual, expected in zip(topk(x, labels.to(dtype)), topk(x, labels), strict=True):
        assert torch.equal(actual, expected)


def test_integer_one_hot_is_labels():
    x, labels = torch.randn(2, 3, 30), torch.randint(3, (2, 30))
    target = F.one_hot(labels, 3).movedim(-1, 1)
    for actual, expected in zip(topk(x, target), topk(x, labels), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("keepdim", [False, True])
def test_the_classes_may_be_last(keepdim):
    labels = torch.randint(3, (2, 30, 1) if keepdim else (2, 30))
    assert_is_reference(torch.randn(2, 30, 3), labels, dim=-1)


def test_no_spatial_dimension():
    assert_is_reference(torch.randn(40, 3), torch.randint(3, (40,)))


@pytest.mark.parametrize("target", [torch.tensor(2), torch.tensor([2])])
def test_one_unbatched_voxel(target):
    x = torch.randn(3)
    value, gradient = topk(x, target)
    assert value.shape == ()
    assert_close(value, F.cross_entropy(x, torch.tensor(2)))
    assert_close(gradient, x.softmax(0) - torch.tensor([0.0, 0.0, 1.0]))


def test_the_gradient_has_the_strides_of_input():
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert topk(x, torch.randint(3, (2, 8, 8)))[1].stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_of_an_image_give_the_float32_answer_rounded(dtype):
    x, labels = 3 * torch.randn(1, 4, 512, 512).to(dtype), torch.randint(4, (1, 512, 512))
    value, gradient = topk(x, labels, k=50)
    expected = segloss.topk_loss(x.float(), labels, k=50)
    assert value.dtype == gradient.dtype == dtype
    assert gradient.isfinite().all()
    assert_relative(value, expected, ROUNDING_RTOL[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_result_is_float32(dtype):
    x, labels = torch.randn(2, 3, 50).to(dtype), torch.randint(3, (2, 50))
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        value, gradient = topk(x, labels)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    assert_close(value, reference.topk_loss(x, labels), torch.float32)


@pytest.mark.parametrize("margin", [100.0, 1e4])
def test_saturated_logits_have_a_finite_value_and_gradient(margin):
    x, labels = margin * torch.randn(2, 3, 30).sign(), torch.randint(3, (2, 30))
    for values in topk(x, labels):
        assert values.isfinite().all()


def test_nan_on_a_voxel_that_counts_is_seen():
    x = torch.randn(2, 3, 30)
    x[0, 1, 2] = NAN
    assert segloss.topk_loss(x, torch.randint(3, (2, 30))).isnan()


# ---- which losses are kept, on the CPU ----


def gradients_of(x, labels, **options):
    """The mask of the voxels with a gradient."""
    return (topk(x, labels, **options)[1] != 0).any(1)


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_voxels", [9, 128, 129, 20_000])  # 8192 are a chunk
def test_of_equal_losses_the_first_are_kept(num_voxels, dtype):
    x, labels = torch.zeros(2, 3, num_voxels, dtype=dtype), torch.randint(3, (2, num_voxels))
    labels[0, ::3] = -100
    num_kept = int((labels >= 0).sum()) * 70 // 100
    first = (labels >= 0).flatten().cumsum(0).view_as(labels) <= num_kept
    assert torch.equal(gradients_of(x, labels, k=70), first & (labels >= 0))


@pytest.mark.cpu_only
def test_of_losses_that_tie_with_the_smallest_one_the_first_are_kept():
    x, labels = torch.zeros(1, 2, 1000), torch.zeros(1, 1000).long()
    x[0, 1, 300:350], x[0, 1, 990:] = 3.0, -1.0
    kept = torch.zeros(1, 1000, dtype=torch.bool)
    kept[0, :150], kept[0, 300:350] = True, True
    assert torch.equal(gradients_of(x, labels, k=20), kept)


@pytest.mark.cpu_only
def test_the_loss_of_zeros_is_not_that_of_ignored_voxels():
    """A loss of one class is 0, as the losses of voxels that do not count are."""
    labels = torch.tensor([[0, 255, 0, 0, 255, 0]])
    losses = torch.zeros(1, 6)
    losses[0, 1:3] = torch.tensor([0.0, -0.0])
    total, num_kept, cutoff = torch.ops.segloss.topk_sum_forward(losses, labels, None, None, 50.0, 255)
    gradient = torch.ops.segloss.topk_sum_backward(torch.tensor(1.0), cutoff, losses, labels, None, None, 255)
    assert (total.item(), num_kept.item()) == (0, 2)
    assert gradient.tolist() == [[1, 0, 1, 0, 0, 0]]


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [0.01, 10, 60, 100])
def test_the_sum_is_that_of_topk_over_the_whole_range(k, dtype):
    bits = torch.randint(-(2**31), 2**31, (3, 7000), dtype=torch.int32)
    losses = bits.view(dtype) if dtype == torch.float32 else torch.randint(-(2**63), 2**63 - 1, (3, 7000)).view(dtype)
    losses = losses.masked_fill(~losses.isfinite() | (losses.abs() > torch.finfo(dtype).max / 2**15), -0.0)
    total, num_kept = torch.ops.segloss.topk_sum(losses, torch.zeros(3, 7000).byte(), None, None, k, -100)
    expected = losses.flatten().topk(max(int(21000 * k / 100), 1)).values.double().sum()
    assert_relative(total, expected, 1e-12)
    assert num_kept == max(int(21000 * k / 100), 1)


@pytest.mark.parametrize("num_nan", [1, 5])
def test_nan_is_larger_than_any_number(num_nan):
    x, labels = torch.randn(1, 3, 20), torch.randint(3, (1, 20))
    x[0, labels[0, 3], 3] = -torch.inf  # an infinite loss
    x[0, 0, 10 : 10 + num_nan] = NAN
    value, gradient = topk(x, labels)
    assert value.isnan()
    assert gradient[0, :, 10 : 10 + min(num_nan, 2)].isnan().all()
    assert bool((gradient[0, :, 3] != 0).any()) == (num_nan == 1)


def test_an_infinite_loss_has_a_finite_gradient():
    x, labels = torch.randn(1, 3, 20), torch.randint(3, (1, 20))
    x[0, labels[0, 3], 3] = -torch.inf
    value, gradient = topk(x, labels)
    assert value == torch.inf
    assert gradient.isfinite().all()
    assert chosen(gradient) == 2


@pytest.mark.parametrize("k", [10, 50])
def test_negative_weights_rank_last(k):
    assert_is_reference(torch.randn(2, 3, 50), torch.randint(3, (2, 50)), k=k, voxel_weight=torch.randn(2, 50))
    assert_is_reference(torch.randn(2, 3, 50), torch.randint(3, (2, 50)), k=k, voxel_weight=-torch.rand(2, 50))


@pytest.mark.parametrize("scale", [1e-3, 1e30])
def test_losses_of_a_huge_range(scale):
    x = torch.randn(2, 3, 50, dtype=torch.float64) * 10.0 ** torch.randint(-9, 9, (2, 1, 50)) * scale
    assert_is_reference(x, torch.randint(3, (2, 50)), k=30)


@pytest.mark.cpu_only
@pytest.mark.parametrize("options", [{}, {"voxel_weight": True, "ignore_index": 1}], ids=["", "voxel_weight"])
def test_threads_and_layouts_do_not_change_a_bit(options):
    x, labels = torch.randn(2, 3, 100, 110).mul(4).round().div(4), torch.randint(3, (2, 100, 110))
    v = torch.randint(3, (2, 100, 110)) / 2 if options.get("voxel_weight") else None
    options = {**options, "voxel_weight": v, "k": 30}
    layouts = [x, x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT]
    threads = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results += [topk(each, labels, **options) for each in layouts]
    finally:
        torch.set_num_threads(threads)
    for value, gradient in results:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.cpu_only
def test_the_kernel_gives_what_the_composite_gives():
    losses, labels, v = torch.rand(2, 500).double() - 0.2, torch.randint(3, (2, 500)), torch.randint(2, (2, 500))
    losses[(labels == 1) | (v == 0)] = 0

    def of(losses):
        return torch.stack(torch.ops.segloss.topk_sum(losses, labels, v, None, 30.0, 1))

    assert_relative(of(losses), torch.func.vmap(of)(losses[None])[0], 1e-12)


@pytest.mark.cpu_only
def test_opcheck():
    losses, labels, v = torch.rand(2, 5), torch.randint(3, (2, 5)), torch.rand(2, 5)
    cutoff = torch.ops.segloss.topk_sum_forward(losses, labels, v, None, 50.0, 1)[2]
    backward = (torch.tensor(2.0), cutoff, losses, labels, v, None, 1)
    torch.library.opcheck(torch.ops.segloss.topk_sum_forward.default, (losses, labels, v, None, 50.0, 1))
    torch.library.opcheck(torch.ops.segloss.topk_sum_backward.default, backward)
    torch.library.opcheck(torch.ops.segloss.topk_sum.default, (losses.requires_grad_(), labels, v, None, 50.0, 1))


# ---- derivatives and transforms ----


def test_first_and_second_derivatives():
    x = torch.randn(2, 3, 5, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[0, 1, 2, 0, -100], [1, 1, 2, 0, 0]])

    def loss(x):
        return segloss.topk_loss(x, labels, k=40, weight=WEIGHT, label_smoothing=0.1)

    assert gradcheck(loss, x, check_forward_ad=True)
    assert gradgradcheck(loss, x)


def test_batched_gradients_of_the_value():
    x, labels = torch.randn(2, 3, 20).requires_grad_(), torch.randint(3, (2, 20))
    value = segloss.topk_loss(x, labels, k=30)
    grads = torch.tensor([1.0, -2.0, 0.0])
    gradients = torch.autograd.grad(value, x, grads, is_grads_batched=True)[0]
    assert_close(gradients, grads.view(3, 1, 1, 1) * topk(x, labels, k=30)[1])


def labels_with_ignored(*shape):
    labels = torch.randint(3, shape)
    labels[..., :5] = -100
    return labels


def test_func_grad_gives_what_the_kernel_gives():
    x, labels = torch.randn(2, 3, 20), labels_with_ignored(2, 20)
    assert_close(torch.func.grad(segloss.topk_loss)(x, labels), topk(x, labels)[1])


def test_vmap_is_one_call_at_a_time():
    x, labels = torch.randn(4, 2, 3, 20), labels_with_ignored(4, 2, 20)
    labels[0, :, 10:] = -100  # a different number of voxels that count
    expected = torch.stack([segloss.topk_loss(x[b], labels[b], k=30) for b in range(4)])
    assert_close(torch.func.vmap(lambda x, y: segloss.topk_loss(x, y, k=30))(x, labels), expected)


def test_compile_is_one_graph():
    x, labels = torch.randn(2, 3, 20).requires_grad_(), labels_with_ignored(2, 20)
    compiled = torch.compile(segloss.topk_loss, backend="aot_eager", fullgraph=True)
    value = compiled(x, labels)
    assert_close(value, segloss.topk_loss(x, labels))
    assert_close(torch.autograd.grad(value, x)[0], topk(x, labels)[1])


# ---- errors ----


@pytest.mark.parametrize("k", [0, -1, 100.1, NAN])
def test_a_k_that_is_no_percentage_is_refused(k):
    with pytest.raises(ValueError, match=r"topk_loss: expected k.*got"):
        segloss.topk_loss(torch.randn(2, 3), torch.tensor([0, 1]), k=k)


def test_class_probabilities_are_refused():
    with pytest.raises(RuntimeError, match=r"topk_loss: expected .*labels, got .*probabilities"):
        segloss.topk_loss(torch.randn(2, 3, 4), torch.rand(2, 3, 4))


def test_a_bad_label_names_the_loss():
    text = r"^topk_loss: Target 7 is out of bounds: 1 label is outside \[0, 3\), the first at index \[1\]"
    with pytest.raises(IndexError, match=text):
        segloss.topk_loss(torch.randn(2, 3), torch.tensor([0, 7]))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, NAN])
def test_label_smoothing_outside_of_0_to_1_is_refused(smoothing):
    with pytest.raises(RuntimeError, match="label_smoothing"):
        segloss.topk_loss(torch.randn(2, 3), torch.tensor([0, 1]), label_smoothing=smoothing)


def test_a_weight_that_is_not_one_for_each_class_is_refused():
    with pytest.raises(RuntimeError, match=r"topk_loss: .*weight.*\[3\]"):
        segloss.topk_loss(torch.randn(2, 3), torch.tensor([0, 1]), weight=torch.ones(2))


def test_a_voxel_weight_that_requires_a_gradient_is_refused():
    with pytest.raises(RuntimeError, match=r"topk_loss: .*voxel_weight"):
        segloss.topk_loss(torch.randn(2, 3), torch.tensor([0, 1]), voxel_weight=torch.ones(2, requires_grad=True))


def test_an_unknown_meaning_of_empty_is_refused():
    with pytest.raises(ValueError, match=r"topk_loss: expected empty to be 'nan' or 'zero', got 'one'"):
        segloss.topk_loss(torch.randn(2, 3), torch.tensor([0, 1]), empty="one")
