"""Any strides, any size: the values and gradients of the contiguous copy, and no copy of the logits."""

import pytest
import reference
import torch
from tolerances import assert_close, assert_same_bits

import segloss

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(
        shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def randint(classes, *shape, seed=1):
    return torch.randint(classes, shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def value_and_gradient(input, target, **keywords):
    x = input.detach().requires_grad_()
    value = segloss.cross_entropy(x, target, **keywords)
    return value.detach(), torch.autograd.grad(value, x, torch.ones_like(value))[0]


def assert_is_reference(input, target, **keywords):
    expected = reference.value_and_gradient(reference.cross_entropy, input, target, **keywords)
    for a, e in zip(value_and_gradient(input, target, **keywords), expected, strict=True):
        assert_close(a, e)


# ---- layouts of the logits: each makes a [2, 3, 6, 10, 4] tensor that is not contiguous ----

SHAPE = (2, 3, 6, 10, 4)


def moved(x, dim):
    """x with dimension `dim` fastest in memory."""
    return x.movedim(dim, -1).contiguous().movedim(-1, dim)


def filler(x):
    """The value around a view of x's values: a loss could not read it unnoticed."""
    return float("nan") if x.is_floating_point() else 7


def cropped(x):
    n, c, *sizes = x.shape
    big = torch.full((n, c, *(size + 3 for size in sizes)), filler(x), dtype=x.dtype)
    view = big[:, :, 1:-2, 2:-1, :-3]
    return view.copy_(x)


def cropped_channels_last(x):
    n, c, *sizes = x.shape
    big = torch.full((n, *(size + 3 for size in sizes), c + 2), filler(x), dtype=x.dtype)
    view = big[:, 1:-2, 2:-1, :-3, 1:-1].movedim(-1, 1)
    return view.copy_(x)


def strided(x):
    """Every second element of every dimension."""
    big = torch.full([2 * size for size in x.shape], filler(x), dtype=x.dtype)
    view = big[::2, 1::2, ::2, 1::2, ::2]
    return view.copy_(x)


def offset(x):
    flat = torch.full((x.numel() + 7,), filler(x), dtype=x.dtype)
    return flat[7:].view(x.shape).copy_(x)


LAYOUTS = {
    "channels_last_3d": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "batch fastest": lambda x: moved(x, 0),
    "transposed spatial": lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
    "reversed": lambda x: x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
    "cropped": cropped,
    "cropped channels_last_3d": cropped_channels_last,
    "strided": strided,
    "storage offset": offset,
    "flipped twice": lambda x: x.flip(2, 3).flip(2, 3).transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_of_any_layout_give_the_bits_of_the_contiguous_copy(layout, dtype):
    x, labels = randn(*SHAPE, dtype=dtype), randint(3, 2, 6, 10, 4)
    laid_out = LAYOUTS[layout](x)
    assert torch.equal(laid_out, x)
    keywords = {"label_smoothing": 0.1, "reduction": "none"}
    assert_same_bits(value_and_gradient(laid_out, labels, **keywords), value_and_gradient(x, labels, **keywords))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_reduction_over_any_layout_gives_the_bits_of_the_contiguous_copy(reduction, layout):
    x, labels = randn(*SHAPE), randint(3, 2, 6, 10, 4)
    expected = value_and_gradient(x, labels, reduction=reduction)
    assert_same_bits(value_and_gradient(LAYOUTS[layout](x), labels, reduction=reduction), expected)


@pytest.mark.parametrize("layout", ["channels_last_3d", "cropped", "strided", "transposed spatial"])
def test_nll_loss_of_any_layout_gives_the_bits_of_the_contiguous_copy(layout):
    x, labels = randn(*SHAPE), randint(3, 2, 6, 10, 4)
    assert_same_bits([segloss.nll_loss(LAYOUTS[layout](x), labels)], [segloss.nll_loss(x, labels)])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_probabilities_of_any_layout_give_the_bits_of_the_contiguous_copy(layout, dtype):
    x, target = randn(*SHAPE, dtype=dtype), randn(*SHAPE, seed=2).softmax(1).to(dtype)
    assert_same_bits(value_and_gradient(x, LAYOUTS[layout](target)), value_and_gradient(x, target))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_hot_of_any_layout_gives_the_bits_of_the_contiguous_copy(layout):
    x, labels = randn(*SHAPE), randint(3, 2, 6, 10, 4)
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).contiguous()
    assert_same_bits(value_and_gradient(x, LAYOUTS[layout](one_hot)), value_and_gradient(x, labels))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_labels_that_are_not_contiguous(reduction, keepdim, dtype):
    x = randn(2, 3, 6, 10)
    labels = randint(3, 2, 10, 12).to(dtype).transpose(1, 2)[:, ::2]
    contiguous = labels.contiguous()
    if keepdim:
        labels, contiguous = labels.unsqueeze(1), contiguous.unsqueeze(1)
    expected = value_and_gradient(x, contiguous, reduction=reduction)
    assert_same_bits(value_and_gradient(x, labels, reduction=reduction), expected)


def test_voxel_weights_that_are_not_contiguous():
    x, labels = randn(2, 3, 6, 10), randint(3, 2, 6, 10)
    v = randn(2, 10, 12).abs().transpose(1, 2)[:, ::2]
    expected = value_and_gradient(x, labels, voxel_weight=v.contiguous())
    assert_same_bits(value_and_gradient(x, labels, voxel_weight=v), expected)


def test_class_weights_that_are_not_contiguous():
    x, labels, weight = randn(2, 3, 6), randint(3, 2, 6), randn(3, 2).abs()[:, 0]
    expected = value_and_gradient(x, labels, weight=weight.contiguous())
    assert_same_bits(value_and_gradient(x, labels, weight=weight), expected)


@pytest.mark.parametrize("expanded_dim", [0, 1, 2, 3])
def test_expanded_logits(expanded_dim):
    sizes = [2, 3, 6, 10]
    x = randn(*(1 if d == expanded_dim else size for d, size in enumerate(sizes))).expand(sizes)
    labels = randint(3, 2, 6, 10)
    assert_same_bits(value_and_gradient(x, labels), value_and_gradient(x.contiguous(), labels))


def test_logits_expanded_from_one_number():
    x, labels = torch.zeros(1).expand(2, 3, 6, 10), randint(3, 2, 6, 10)
    assert_same_bits(value_and_gradient(x, labels), value_and_gradient(x.contiguous(), labels))


@pytest.mark.parametrize("label_shape", [(1, 6, 10), (2, 1, 10), (2, 6, 1), (1, 1, 1)])
def test_expanded_labels(label_shape):
    x, labels = randn(2, 3, 6, 10), randint(3, *label_shape).expand(2, 6, 10)
    assert_same_bits(value_and_gradient(x, labels), value_and_gradient(x, labels.contiguous()))


@pytest.mark.parametrize("stride", [(0, 0), (0, 1)])
def test_an_expanded_gradient_of_the_losses(stride):
    x, labels = randn(4, 3).requires_grad_(), randint(3, 4)
    grad_losses = torch.tensor([2.0, 3.0, 4.0, 5.0]).as_strided((4,), stride[1:])
    (actual,) = torch.autograd.grad(segloss.cross_entropy(x, labels, reduction="none"), x, grad_losses)
    losses = segloss.cross_entropy(x, labels, reduction="none")
    (expected,) = torch.autograd.grad(losses, x, grad_losses.contiguous())
    assert torch.equal(actual, expected)


def test_a_lazily_negated_tensor():
    x, labels = randn(2, 3, 4), randint(3, 2, 4)
    negated = torch.complex(x, -x).conj().imag
    assert negated.is_neg()
    assert_same_bits(value_and_gradient(negated, labels), value_and_gradient(x, labels))


# ---- strides of the gradient ----


@pytest.mark.parametrize(
    "layout", ["channels_last_3d", "batch fastest", "transposed spatial", "reversed", "storage offset"]
)
def test_the_gradient_has_the_strides_of_dense_logits(layout):
    x = LAYOUTS[layout](randn(*SHAPE))
    assert value_and_gradient(x, randint(3, 2, 6, 10, 4))[1].stride() == x.stride()


def test_the_gradient_with_the_classes_last_is_contiguous():
    x = randn(2, 7, 3)
    assert value_and_gradient(x, randint(3, 2, 7), dim=-1)[1].is_contiguous()


# ---- rank ----


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("num_dims", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_every_rank_and_dtype_is_the_reference(reduction, num_dims, dtype):
    sizes = [2, 3, 5, 4, 3, 2, 3][:num_dims] if num_dims > 1 else [3]
    labels = randint(3, *(sizes[:1] + sizes[2:] if num_dims > 1 else []))
    assert_is_reference(randn(*sizes, dtype=dtype), labels, reduction=reduction, label_smoothing=0.1)


@pytest.mark.parametrize("num_dims", [2, 3, 4, 5, 6])
def test_every_rank_with_its_dimensions_reversed_in_memory(num_dims):
    sizes = [2, 3, 5, 4, 3, 2][:num_dims]
    x, labels = randn(*sizes), randint(3, *(sizes[:1] + sizes[2:]))
    order = list(range(num_dims))[::-1]
    laid_out = x.permute(order).contiguous().permute(order)
    assert_same_bits(value_and_gradient(laid_out, labels), value_and_gradient(x, labels))


def test_sixteen_dimensions_that_lie_apart():
    x, labels = randn(*[2] * 17), randint(2, *[2] * 16)
    laid_out = x.permute(list(range(17))[::-1]).contiguous().permute(list(range(17))[::-1])
    assert_same_bits(value_and_gradient(laid_out, labels), value_and_gradient(x, labels))


@pytest.mark.cpu_only
def test_more_dimensions_that_lie_apart_are_refused():
    order = list(range(19))[::-1]
    x = torch.zeros([2] * 19).permute(order).contiguous().permute(order)
    with pytest.raises(RuntimeError, match=r"expected at most 16 dimensions that lie apart.*contiguous\(\)"):
        segloss.cross_entropy(x, torch.zeros([2] * 18, dtype=torch.uint8))


# ---- the ends of blocks and chunks ----

NUM_VOXELS = [1, 2, 63, 64, 65, 127, 128, 129, 4095, 4096, 4097, 8193]


@pytest.mark.parametrize("num_voxels", NUM_VOXELS)
@pytest.mark.parametrize("memory", ["planar", "interleaved"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_every_number_of_voxels_is_the_reference(reduction, memory, num_voxels):
    x, labels = randn(1, 3, num_voxels), randint(3, 1, num_voxels)
    labels[0, ::7] = -100
    x = moved(x, 1) if memory == "interleaved" else x
    assert_is_reference(x, labels, reduction=reduction)


@pytest.mark.parametrize("num_voxels", NUM_VOXELS)
def test_every_number_of_voxels_of_probabilities_is_the_reference(num_voxels):
    assert_is_reference(randn(1, 3, num_voxels), randn(1, 3, num_voxels, seed=2).softmax(1), reduction="none")


@pytest.mark.parametrize("last", [1, 2, 3, 31, 63, 64, 65, 100])
def test_rows_that_end_within_a_block(last):
    x, labels = cropped(randn(2, 3, 3, 5, last)), randint(3, 2, 3, 5, last)
    assert_is_reference(x, labels, reduction="none")


@pytest.mark.filterwarnings("ignore:.*has one channel")
@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 5, 127, 128, 129, 255, 256, 257, 1000])
@pytest.mark.parametrize("memory", ["planar", "interleaved"])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_every_number_of_classes_is_the_reference(kind, memory, num_classes):
    x = randn(2, num_classes, 70)
    target = randint(num_classes, 2, 70) if kind == "labels" else randn(2, num_classes, 70, seed=2).softmax(1)
    x = moved(x, 1) if memory == "interleaved" else x
    weight = randn(num_classes, seed=3).abs()
    assert_is_reference(x, target, weight=weight, label_smoothing=0.1, reduction="sum")


@pytest.mark.parametrize("num_classes", [17, 64, 105, 112, 113, 120, 128, 129, 337, 400])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "keywords",
    [{"reduction": "mean"}, {"reduction": "none"}, {"reduction": "sum", "label_smoothing": 0.1}, {"weight": True}],
    ids=str,
)
def test_many_interleaved_classes_give_the_bits_of_planes(keywords, dtype, num_classes):
    x, labels = 5 * randn(2, num_classes, 9, 17, dtype=dtype), randint(num_classes, 2, 9, 17)
    labels[:, 3:5] = -100
    x[:, :, 3] = float("nan")
    x[1, 2] = float("-inf")
    labels[labels == 2] = 1
    if "weight" in keywords:
        keywords = {"weight": randn(num_classes, seed=3).abs()}
    loss, grad = value_and_gradient(moved(x, 1), labels, **keywords)
    assert not loss.isnan().any()
    assert_same_bits((loss, grad), value_and_gradient(x, labels, **keywords))


@pytest.mark.filterwarnings("ignore:.*has one channel")
@pytest.mark.parametrize("num_classes", [1, 127, 128, 129, 257])
def test_every_class_may_be_the_label_and_the_largest(num_classes):
    x = 5 * torch.eye(num_classes)
    assert_is_reference(x, torch.arange(num_classes), reduction="none")


@pytest.mark.parametrize("num_classes", [128, 129, 300])
def test_equal_largest_logits_in_different_chunks_of_classes(num_classes):
    x = torch.zeros(2, num_classes)
    x[:, [0, num_classes - 1]] = 9
    assert_is_reference(x, torch.tensor([0, num_classes - 1]), reduction="none")


@pytest.mark.parametrize("num_voxels", [64, 65, 130])
def test_a_block_whose_voxels_are_all_ignored(num_voxels):
    x, labels = randn(1, 3, num_voxels), randint(3, 1, num_voxels)
    labels[:, :64] = -100
    assert_is_reference(x, labels, reduction="none")


# ---- beyond 2^31 elements ----


@pytest.fixture(scope="module")
def far_apart():
    """Memory for 2^31 + 64 numbers, of which only the touched pages exist."""
    try:
        return torch.empty(2**31 + 64, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("4 GiB of address space are not to be had")


@pytest.mark.parametrize("far_dim", [0, 1, 2], ids=["samples", "classes", "voxels"])
def test_strides_beyond_2_to_the_31_elements(far_dim, far_apart):
    strides = [4, 2, 1]
    strides[far_dim] = 2**31
    x = far_apart.as_strided((2, 2, 2), strides).copy_(randn(2, 2, 2))
    labels = randint(2, 2, 2)
    assert_same_bits(value_and_gradient(x, labels), value_and_gradient(x.contiguous(), labels))


def test_more_than_2_to_the_31_logits():
    num_voxels = 2**24 + 1
    x = torch.arange(128.0).view(1, 128, 1).expand(1, 128, num_voxels)
    labels = torch.full((1, 1), 126, dtype=torch.uint8).expand(1, num_voxels)
    assert x.numel() > 2**31
    assert_close(segloss.cross_entropy(x, labels), segloss.cross_entropy(x[..., :1], labels[..., :1]))


# ---- no copy of the logits ----


def allocations(call):
    """Bytes of each allocation that torch's allocator makes during call()."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        call()
    return [event.nbytes() for event in memory_events(profile) if event.nbytes() > 0]


def memory_events(profile):
    return [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]


NO_COPY = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "cropped": lambda x: x.new_zeros(2, 64, 35, 40)[:, :, 1:33, 2:34].copy_(x),
    "transposed": lambda x: x.transpose(2, 3),
    "expanded": lambda x: x[:, :1].expand(x.shape),
}


@pytest.mark.cpu_only
@pytest.mark.parametrize("layout", NO_COPY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_alone_allocates_nothing_of_the_size_of_the_logits(dtype, layout):
    x = NO_COPY[layout](randn(2, 64, 32, 32, dtype=dtype))
    labels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    made = allocations(lambda: segloss.cross_entropy(x, labels, label_smoothing=0.1))
    assert made
    assert sum(made) <= 1024


@pytest.mark.cpu_only
@pytest.mark.parametrize("layout", NO_COPY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_allocate_the_gradient_and_nothing_else_of_its_size(dtype, layout):
    x = NO_COPY[layout](randn(2, 64, 32, 32, dtype=dtype)).requires_grad_()
    labels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    made = allocations(lambda: torch.autograd.grad(segloss.cross_entropy(x, labels), x))
    assert sum(made) <= x.numel() * x.element_size() + 1024


@pytest.mark.cpu_only
def test_expanded_logits_are_not_materialised():
    """The logits would take 1 GiB if they were not expanded from one number."""
    x, labels = torch.zeros(1).expand(64, 2**22), torch.zeros(64, dtype=torch.uint8)
    assert sum(allocations(lambda: segloss.cross_entropy(x, labels))) < 4096
    assert_close(segloss.cross_entropy(x, labels), torch.tensor(2.0**22).log())


@pytest.mark.cpu_only
def test_a_copy_would_have_been_seen():
    x = randn(2, 64, 32, 32).transpose(2, 3)
    assert sum(allocations(x.contiguous)) >= x.numel() * 4
