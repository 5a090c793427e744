"""Bugs that were found. Each test is named after what was wrong."""

import threading

import numpy as np
import pytest
import reference
import torch
import torch.autograd.forward_ad as fwAD
from operators import options_of
from tolerances import CONFIDENT_RTOL, assert_close, assert_relative

import segloss


@pytest.mark.parametrize("num_classes", [10_000, 200_000])
def test_sums_over_many_classes_were_taken_in_float32(num_classes):
    x = torch.zeros(1, num_classes)
    x[0, 0] = 1
    loss, grad = reference.value_and_gradient(segloss.cross_entropy, x, torch.tensor([0]))
    expected_loss, expected_grad = reference.value_and_gradient(reference.cross_entropy, x, torch.tensor([0]))
    assert_relative(loss, expected_loss, 1e-6)
    assert_relative(grad, expected_grad, CONFIDENT_RTOL)


def test_a_tiny_tail_was_lost_where_the_largest_logit_is_in_a_later_chunk_of_classes():
    x = torch.full((1, 300), -60.0)
    x[0, 250] = 0
    expected = reference.cross_entropy(x, torch.tensor([250]))
    assert_relative(segloss.cross_entropy(x, torch.tensor([250])), expected, CONFIDENT_RTOL)


def test_vmap_looped_over_samples_with_a_warning(capfd):
    x, labels = torch.randn(3, 2, 4, 5), torch.randint(4, (3, 2, 5))
    losses = torch.vmap(segloss.cross_entropy)(x, labels)
    assert_close(losses, torch.stack([segloss.cross_entropy(a, b) for a, b in zip(x, labels, strict=True)]))
    assert "performance drop" not in capfd.readouterr().err


def test_vmap_over_an_empty_dimension_raised():
    assert torch.vmap(segloss.cross_entropy)(torch.zeros(0, 2, 4), torch.zeros(0, 2).long()).shape == (0,)


def test_the_tangent_of_grad_loss_was_dropped():
    x = torch.randn(2, 3, requires_grad=True)
    labels = torch.tensor([0, 2])
    with fwAD.dual_level():
        scale = fwAD.make_dual(torch.tensor(2.0), torch.tensor(1.0))
        (grad,) = torch.autograd.grad(segloss.cross_entropy(x, labels) * scale, x)
        value, tangent = fwAD.unpack_dual(grad)
    assert_close(tangent, value / 2)


def test_accuracy_of_a_label_map_truncated_fractional_labels():
    with pytest.raises(RuntimeError, match=r"expected integral labels .* got 1\.5 at index \[1\]"):
        segloss.accuracy(torch.tensor([0, 1]), torch.tensor([0.0, 1.5]))


def test_nan_at_a_class_of_weight_zero_was_zero_in_nll_loss():
    log_p = torch.tensor([[float("nan"), -1.0], [-1.0, -2.0]])
    assert segloss.nll_loss(log_p, torch.tensor([0, 1]), torch.tensor([0.0, 1.0])).isnan()


def test_plus_inf_had_a_finite_second_order_gradient():
    x = torch.tensor([[float("inf"), 0.0, 1.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(segloss.cross_entropy(x, torch.tensor([1])), x, create_graph=True)
    assert grad.isnan().all()


def test_a_row_of_the_lowest_number_was_wrong_under_torch_func():
    x = torch.full((1, 3), torch.finfo(torch.float32).min)
    grad, loss = torch.func.grad_and_value(segloss.cross_entropy)(x, torch.tensor([1]))
    assert_close(loss, torch.tensor(3.0).log())
    assert_close(grad, torch.tensor([[1 / 3, -2 / 3, 1 / 3]]))


def test_integer_voxel_weights_were_rounded_to_float32_for_float64_logits():
    x, weight = torch.randn(1, 3, 2, dtype=torch.float64), torch.tensor([[2**24 + 1, 1]])
    labels = torch.tensor([[0, 2]])
    expected = reference.cross_entropy(x, labels, voxel_weight=weight, reduction="sum")
    assert_close(segloss.cross_entropy(x, labels, voxel_weight=weight, reduction="sum"), expected)


def test_fake_labels_kept_strides_that_real_ones_lose():
    labels = torch.randint(3, (2, 4, 5)).transpose(1, 2)
    torch.library.opcheck(torch.ops.segloss.class_labels.default, ("cross_entropy", labels, 3, -100))


def test_a_weight_that_requires_grad_was_refused_without_grad_mode():
    weight = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        segloss.cross_entropy(torch.randn(2, 3), torch.tensor([0, 2]), weight)


def test_accuracy_of_a_float_one_hot_target_could_not_be_compiled():
    x = torch.randn(4, 3)
    one_hot = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    compiled = torch.compile(segloss.accuracy, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, one_hot), segloss.accuracy(x, one_hot))


@pytest.mark.cpu_only
def test_float64_overflowed_the_stack_of_a_small_thread():
    x = torch.randn(2, 130, 70, dtype=torch.float64, requires_grad=True)
    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=lambda: segloss.cross_entropy(x, x.detach().softmax(1)).backward())
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert x.grad is not None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"target": np.zeros((2, 4))}, r"expected target to be a torch.Tensor, got ndarray\. Use torch.as_tensor"),
        ({"target": None}, "expected target to be a torch.Tensor, got NoneType"),
        ({"input": [[0.0]]}, "expected input to be a torch.Tensor, got list"),
        ({"input": [torch.zeros(2, 3, 4)] * 2}, r".*got list\. Use torch.stack\(input\) .* or DeepSupervisionLoss"),
        ({"input": {"out": torch.zeros(2, 3, 4), "loss": 0}}, r".*got dict\. Pass a tensor that is in it: \['out'\]"),
        (
            {"weight": np.ones(3)},
            r"expected weight to be .* got ndarray\. Use torch\.tensor\(weight, dtype=torch\.float32\)",
        ),
        ({"target": [torch.zeros(2, 4)]}, r"expected target to be .* got list\. Use torch.stack\(target\)"),
        ({"ignore_index": 2.5}, r"expected ignore_index to be an int, got 2\.5"),
        ({"dim": "C"}, "expected dim to be an int, got 'C'"),
        ({"label_smoothing": None}, "expected label_smoothing to be a float, got None"),
    ],
)
def test_arguments_of_a_wrong_type_were_printed_whole(arguments, text):
    arguments = {"input": torch.zeros(2, 3, 4), "target": torch.zeros(2, 4).long()} | arguments
    with pytest.raises(TypeError, match="cross_entropy: " + text):
        segloss.cross_entropy(**arguments)


@pytest.mark.parametrize(
    ("spoil", "fixed"),
    [
        (lambda y: torch.nn.functional.one_hot(y[:, 0], 4), lambda y: y.movedim(-1, 1)),
        (lambda y: y.transpose(2, 4), lambda y: y.permute(0, 1, 4, 3, 2)),
        (lambda y: y.flatten(2), lambda y: y.reshape(2, 6, 7, 8)),
    ],
    ids=["one-hot of the labels", "other order of axes", "flattened"],
)
def test_the_error_advised_the_wrong_call(spoil, fixed):
    x, labels = torch.randn(2, 4, 6, 7, 8), torch.randint(4, (2, 1, 6, 7, 8))
    with pytest.raises((RuntimeError, ValueError), match=r"Try target\.(movedim\(-1, 1\)|permute\(|reshape\()"):
        segloss.cross_entropy(x, spoil(labels))
    assert torch.equal(segloss.cross_entropy(x, fixed(spoil(labels))), segloss.cross_entropy(x, labels))


# ---- hostile input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_index", [2**53 + 1, 2**63 - 1])
def test_a_float_label_that_ignore_index_rounds_to_raised_an_error_without_its_value(ignore_index):
    x, labels = torch.randn(2, 3), torch.tensor([float(ignore_index), 0], dtype=torch.float64)
    for loss in (segloss.cross_entropy, segloss.dice_loss, func_gradient):
        with pytest.raises(IndexError, match=r"1 label is outside \[0, 3\), the first at index \[0\]"):
            loss(x, labels, ignore_index=ignore_index)


def test_a_float_label_of_the_lowest_int64_was_refused_although_it_is_ignored():
    x, labels = torch.randn(2, 3), torch.tensor([-(2.0**63), 0], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(x[1:], labels[1:].long())
    for loss in (segloss.cross_entropy, func_value):
        assert_close(loss(x, labels, ignore_index=-(2**63)), expected)


def func_value(x, labels, **options):
    return torch.func.jvp(lambda x: segloss.cross_entropy(x, labels, **options), (x,), (x,))[0]


def func_gradient(x, labels, **options):
    return torch.func.grad(lambda x: segloss.cross_entropy(x, labels, **options))(x)


def test_a_uint64_mask_that_wraps_to_ignore_index_raised_an_error_without_its_value():
    masks = torch.tensor([[2**64 - 100, 0]], dtype=torch.uint64)
    for activation in (None, "sigmoid"):
        with pytest.raises(RuntimeError, match=r"got 18446744073709551516 at index \[0, 0\]"):
            segloss.dice_loss(torch.rand(1, 2), masks, activation=activation, ignore_index=-100)


def test_a_label_beyond_int64_was_named_as_a_negative_one():
    with pytest.raises(IndexError, match="Target 18446744073709551615 is out of bounds"):
        segloss.cross_entropy(torch.randn(1, 3), torch.tensor([2**64 - 1], dtype=torch.uint64))


def test_accuracy_took_a_uint64_label_for_the_negative_one_that_it_wraps_to():
    wrapping, negative = torch.tensor([2**64 - 1, 5], dtype=torch.uint64), torch.tensor([-1, 5])
    assert segloss.accuracy(wrapping, negative) == 0.5
    assert segloss.accuracy(negative, wrapping) == 0.5
    assert segloss.accuracy(negative, wrapping, ignore_index=-1) == 0.5


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("loss", [segloss.cross_entropy, segloss.dice_loss, segloss.accuracy])
def test_a_nested_tensor_got_an_internal_error_of_torch(loss):
    nested = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(3, 4)])
    for arguments in ((nested, torch.zeros(2, 4).long()), (torch.randn(2, 3, 4), nested)):
        with pytest.raises(TypeError, match=r"expected a dense (input|target), got a nested tensor. Use .*padded"):
            loss(*arguments)


@pytest.mark.parametrize("keyword", ["weight", "voxel_weight"])
def test_a_sparse_weight_got_an_error_of_the_dispatcher(keyword):
    weight = torch.ones(3) if keyword == "weight" else torch.ones(2, 4)
    with pytest.raises(TypeError, match=rf"cross_entropy: expected a dense {keyword}, got .*[Ss]parse"):
        segloss.cross_entropy(torch.randn(2, 3, 4), torch.zeros(2, 4).long(), **{keyword: weight.to_sparse()})


@pytest.mark.parametrize("metric", [segloss.accuracy, segloss.confusion_matrix, segloss.dice_score])
@pytest.mark.parametrize("strange", [np.zeros((2, 4)), [0, 1], None])
def test_a_metric_printed_an_argument_that_is_not_a_tensor(metric, strange):
    with pytest.raises(TypeError, match=rf"expected target to be a torch.Tensor, got {type(strange).__name__}"):
        metric(torch.randn(2, 3, 4), strange)


@pytest.mark.parametrize("option", ["ignore_index", "dim"])
@pytest.mark.parametrize("strange", [True, np.float32(1.5), torch.tensor(0.5), torch.tensor([1]), torch.tensor(True)])
@pytest.mark.parametrize("function", [segloss.cross_entropy, segloss.dice_loss, segloss.accuracy])
def test_an_argument_that_is_not_an_int_was_truncated_to_an_int(function, strange, option):
    with pytest.raises(TypeError, match=f": expected {option} to be an int, got "):
        function(torch.randn(2, 3), torch.tensor([0, 2]), **{option: strange})


@pytest.mark.parametrize("function", [segloss.cross_entropy, segloss.dice_loss, segloss.accuracy])
def test_an_integer_tensor_as_ignore_index_was_refused_by_some_losses_only(function):
    arguments = (torch.randn(2, 3), torch.tensor([0, 255]))
    assert torch.equal(function(*arguments, ignore_index=torch.tensor(255)), function(*arguments, ignore_index=255))


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_an_int_beyond_64_bits_got_an_error_of_the_dispatcher(number):
    x, labels = torch.randn(2, 3), torch.tensor([0, 2])
    for option in ("ignore_index", "dim"):
        with pytest.raises(ValueError, match=f"cross_entropy: expected {option} to be an int of 64 bits, got "):
            segloss.cross_entropy(x, labels, **{option: number})
    with pytest.raises(ValueError, match="dice_loss: expected smooth_dr to be a float, got an int beyond 64 bits"):
        segloss.dice_loss(x, labels, smooth_dr=number)


@pytest.mark.parametrize("option", ["include_background", "squared", "jaccard", "batch"])
def test_the_string_no_counted_as_true(option):
    with pytest.raises(ValueError, match=f"dice_loss: expected {option} to be True or False, got 'no'"):
        segloss.dice_loss(torch.randn(2, 3), torch.tensor([0, 2]), **{option: "no"})


@pytest.mark.parametrize(
    ("function", "option"),
    [
        (segloss.dice_loss, "smooth_nr"),
        (segloss.generalized_dice_loss, "smooth_dr"),
        (segloss.tversky_loss, "alpha"),
        (segloss.dice_ce_loss, "lambda_ce"),
        (segloss.dice_focal_loss, "lambda_focal"),
    ],
)
def test_a_complex_factor_was_rounded_to_its_real_part(function, option):
    with pytest.raises(TypeError, match=rf"expected {option} to be a float, got 1j"):
        function(torch.randn(2, 3), torch.tensor([0, 2]), **{option: 1j})


def test_the_error_of_an_unknown_reduction_named_neither_loss_nor_choices():
    with pytest.raises(ValueError, match=r"nll_loss: avg is not a valid .* Expected 'mean', 'sum' or 'none'"):
        segloss.nll_loss(torch.randn(2, 3), torch.tensor([0, 2]), reduction="avg")


def test_topk_refused_numpys_float32_as_k():
    x, labels = torch.randn(20, 3), torch.randint(3, (20,))
    assert torch.equal(segloss.topk_loss(x, labels, k=np.float32(50)), segloss.topk_loss(x, labels, k=50.0))


def test_topk_of_float8_logits_raised_an_error_about_promotion():
    with pytest.raises(TypeError, match=r"topk_loss: expected logits of dtype .* got Float8"):
        segloss.topk_loss(torch.randn(2, 3).to(torch.float8_e4m3fn), torch.tensor([0, 2]))


def test_a_range_of_float8_values_was_not_implemented():
    with pytest.raises(TypeError, match=r"dice_loss: expected values of dtype .* got Float8"):
        torch.ops.segloss.check_range("dice_loss", "target", torch.ones(0).to(torch.float8_e4m3fn), 0.0, 1.0)


def test_a_one_hot_target_without_classes_raised_an_error_about_max():
    with pytest.raises(RuntimeError, match="expected at least one class for a one-hot target, got target"):
        segloss.cross_entropy(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4).long())


def test_generalized_dice_of_no_class_and_no_voxel_raised_an_error_about_amax():
    assert segloss.generalized_dice_loss(torch.zeros(0, 0, 4), torch.zeros(0, 4).long()).isnan()


def test_binary_dice_of_an_array_raised_an_attribute_error():
    with pytest.raises(TypeError, match=r"BinaryDiceLoss: expected input to be a torch.Tensor, got ndarray"):
        segloss.BinaryDiceLoss()(np.zeros((2, 4)), torch.zeros(2, 4))


def test_deep_supervision_of_unbatched_logits_could_not_be_unpacked():
    x, label = torch.randn(3), torch.tensor(1)
    loss = segloss.DeepSupervisionLoss(segloss.CrossEntropyLoss())
    assert torch.equal(loss([x], label), segloss.cross_entropy(x, label))


def test_deep_supervision_of_a_number_divided_by_zero():
    with pytest.raises(ValueError, match=r"DeepSupervisionLoss: expected logits .* got a 0-dim tensor"):
        segloss.DeepSupervisionLoss(segloss.CrossEntropyLoss())([torch.tensor(1.0)], torch.tensor(1))


def test_deep_supervision_of_an_array_raised_an_attribute_error():
    with pytest.raises(TypeError, match=r"DeepSupervisionLoss: expected input to be a torch.Tensor, got ndarray"):
        segloss.DeepSupervisionLoss(segloss.CrossEntropyLoss())([np.zeros((2, 3))], torch.tensor([1, 0]))


def test_deep_supervision_lost_the_first_weight_of_an_iterator():
    assert segloss.DeepSupervisionLoss(segloss.DiceLoss(), iter([0.5, 0.25])).weights == (0.5, 0.25)


@pytest.mark.parametrize("weights", [3, ["a"], [None], [1j]])
def test_deep_supervision_took_weights_that_are_no_numbers(weights):
    with pytest.raises(TypeError, match=r"DeepSupervisionLoss: expected .*weights"):
        segloss.DeepSupervisionLoss(segloss.DiceLoss(), weights)


def test_deep_supervision_took_a_loss_that_cannot_be_called():
    with pytest.raises(TypeError, match="DeepSupervisionLoss: expected a module or a function as loss, got str"):
        segloss.DeepSupervisionLoss("dice_loss")


@pytest.mark.parametrize("keyword", ["weight", "voxel_weight"])
def test_total_weight_followed_its_weights_to_another_device(keyword):
    weight = torch.ones(3 if keyword == "weight" else 4, device="meta")
    with pytest.raises(RuntimeError, match=f"total_weight: expected all tensors on one device, .* {keyword} on meta"):
        segloss.total_weight(torch.tensor([0, 1, 2, 0]), **{keyword: weight})


def test_total_weight_wrapped_a_number_of_classes_beyond_int32():
    with pytest.raises(ValueError, match=r"op: expected num_classes in \[0, 2147483647\], got 4294967297"):
        torch.ops.segloss.total_weight("op", torch.tensor([1]), None, None, 2**32 + 1, -100)


def test_a_dim_that_label_maps_lack_got_an_error_without_the_name_of_the_metric():
    with pytest.raises(IndexError, match=r"dice_score: expected dim, .* in \[-3, 2\], got 5"):
        segloss.dice_score(torch.zeros(2, 1, 4).long(), torch.zeros(2, 4).long(), dim=5)


def test_a_predicted_label_out_of_bounds_did_not_say_what_was_expected():
    with pytest.raises(IndexError, match=r"Predicted label 7 is out of bounds.* Expected labels 0 to 2"):
        segloss.confusion_matrix(torch.tensor([7]), torch.tensor([0]), num_classes=3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn])
def test_a_loss_was_cast_to_a_dtype_that_no_loss_is_computed_in(dtype):
    def loss(x):
        return torch.ops.segloss.cross_entropy(x, torch.tensor([0, 2]), op="op", dtype=dtype)

    for call in (loss, torch.func.grad(loss)):
        with pytest.raises(TypeError, match=r"op: expected .* as dtype of the loss, got"):
            call(torch.randn(2, 3))


def test_class_masks_cut_floats_off_to_integers():
    with pytest.raises(RuntimeError, match=r"op: expected 0 and 1 in a floating target .* got 0\.5 at index \[0\]"):
        torch.ops.segloss.class_masks("op", torch.tensor([0.5]), -100)


def test_an_exponent_of_inf_was_taken_by_the_operators():
    with pytest.raises(ValueError, match=r"op: expected gamma, an exponent, in \[0, inf\), got inf"):
        torch.ops.segloss.binary_cross_entropy(torch.randn(2, 3), torch.tensor([0, 2]), gamma=float("inf"), op="op")


@pytest.mark.parametrize("strange", [torch.ones(2, 3).to_sparse(), torch.ones(2, 3, dtype=torch.int64)])
def test_a_backward_operator_took_a_gradient_that_is_not_dense_and_floating(strange):
    x, labels, one = torch.randn(2, 3), torch.tensor([0, 2]), torch.ones(())
    with pytest.raises(TypeError, match=r"op backward: expected a (dense|floating) gradient"):
        torch.ops.segloss.soft_stats_backward(
            strange, torch.ones(2, 3), one, "op", x, labels, None, None, *options_of("soft_stats", voxel_loss=True)
        )


@pytest.mark.parametrize("num_voxels", [4, 1000])
def test_the_nll_of_probabilities_of_no_class_was_uninitialised_memory(num_voxels):
    x = torch.zeros(2, 0, num_voxels)
    assert torch.equal(segloss.nll_loss(x, x, reduction="none"), torch.zeros(2, num_voxels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_forward", "binary_cross_entropy_forward"])
def test_a_loss_of_a_dtype_narrower_than_inputs_was_written_past_a_buffer(name, dtype):
    x, labels = torch.randn(1, 112, 4, dtype=torch.float64), torch.zeros(1, 4).long()
    calls = {
        "cross_entropy": lambda: torch.ops.segloss.cross_entropy(x, labels, op="op", dtype=dtype),
        "cross_entropy_forward": lambda: torch.ops.segloss.cross_entropy_forward(
            "op", x, labels, None, None, *options_of("cross_entropy", dtype=dtype, with_gradient=True)
        ),
        "binary_cross_entropy_forward": lambda: torch.ops.segloss.binary_cross_entropy_forward(
            "op", x, labels, None, None, *options_of("binary_cross_entropy", dtype=dtype)
        ),
    }
    with pytest.raises(TypeError, match="op: expected a dtype of the loss that holds input's Double, got"):
        calls[name]()


def test_losses_were_summed_in_half_precision_under_vmap():
    x, labels = torch.zeros(2, 1, 2, 8).half(), torch.zeros(2, 1, 8).long()
    weights = torch.full((2, 1, 8), 1e5)  # their products with a loss overflow float16
    losses = torch.func.vmap(lambda x, y, v: segloss.cross_entropy(x, y, voxel_weight=v))(x, labels, weights)
    assert_close(losses, torch.full((2,), 0.6931471805599453, dtype=torch.float16))
    x = torch.tensor([18.0, 0.0]).half().view(1, 1, 2, 1).expand(2, 1, 2, 4096)  # each loss is 0 in float16
    labels = torch.zeros(2, 1, 4096).long()
    losses = torch.func.vmap(lambda x, y: segloss.cross_entropy(x, y, reduction="sum"))(x, labels)
    assert torch.equal(losses[0], segloss.cross_entropy(x[0], labels[0], reduction="sum"))
    assert losses[0] > 6e-5


@pytest.mark.parametrize("metric", ["accuracy", "confusion_matrix", "dice_score", "jaccard_index"])
@pytest.mark.parametrize("kind", ["logits", "maps", "maps of so many classes"])
def test_vmap_of_a_metric_looped_over_samples_with_a_warning(metric, kind, capfd):
    x, labels = torch.randn(3, 2, 4, 5), torch.randint(4, (3, 2, 5))
    labels[:, 0, 0] = 3
    predicted = x if kind == "logits" else x.argmax(2)
    options = {"num_classes": 4} if kind == "maps of so many classes" else {}
    function = getattr(segloss, metric)
    scores = torch.vmap(lambda p, y: function(p, y, **options))(predicted, labels)
    expected = torch.stack([function(a, b, **options) for a, b in zip(predicted, labels, strict=True)])
    torch.testing.assert_close(scores, expected, rtol=0, atol=0, equal_nan=True)
    assert "performance drop" not in capfd.readouterr().err


@pytest.mark.parametrize(("dtype", "ignore_index"), [(torch.bfloat16, 257), (torch.float16, 70_000)])
def test_top_k_compared_ignore_index_in_the_labels_own_dtype(dtype, ignore_index):
    x, labels = torch.randn(1, 300, 6), torch.tensor([[0, 256, 256, 7, 256, 1]])
    expected = segloss.cross_entropy(x, labels)
    assert_close(segloss.topk_loss(x, labels.to(dtype), k=100, ignore_index=ignore_index), expected)


def test_top_k_counted_a_voxel_whose_weight_rounds_to_zero_in_the_kernel():
    x, labels = torch.randn(1, 3, 4), torch.tensor([[0, 1, 2, 0]])
    tiny, zero = (torch.tensor([[1, 1, weight, 1]], dtype=torch.float64) for weight in (1e-50, 0))
    of_tiny, of_zero = (segloss.topk_loss(x, labels, k=100, voxel_weight=weights) for weights in (tiny, zero))
    assert_close(of_tiny, of_zero)


def test_a_weight_in_float64_was_rounded_beside_a_pos_weight_in_float32():
    x, masks = torch.randn(2, 3, 8, dtype=torch.float64), torch.randint(2, (2, 3, 8), dtype=torch.uint8)
    weight, pos_weight = torch.tensor([1 / 3, 2 / 3, 0.1], dtype=torch.float64), torch.tensor([1.0, 2.0, 4.0])
    actual = segloss.binary_cross_entropy_with_logits(x, masks, weight, pos_weight=pos_weight)
    options = {"weight": weight.view(3, 1), "pos_weight": pos_weight.double().view(3, 1)}
    expected = torch.nn.functional.binary_cross_entropy_with_logits(x, masks.double(), **options)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("loss", ["dice_loss", "focal_loss", "binary_cross_entropy_with_logits"])
def test_one_channel_took_label_0_for_its_foreground_where_several_labels_are_ignored(loss):
    x, labels = torch.tensor([[[1.0, -1, 2, -3, 0.5]]]), torch.tensor([[0, 1, 0, 254, 255]])
    sigmoid = {} if loss.startswith("binary") else {"activation": "sigmoid"}
    expected = getattr(segloss, loss)(x, labels.clamp_max(254), ignore_index=254, **sigmoid)
    for target in (labels, labels.unsqueeze(1), labels.to(torch.uint8)):
        assert getattr(segloss, loss)(x, target, ignore_index=[254, 255], **sigmoid) == expected


def test_an_error_named_an_ignore_index_that_nobody_gave():
    with pytest.raises(IndexError, match=r"Expected labels 0 to 2\. "):
        segloss.cross_entropy(torch.randn(1, 3, 2), torch.tensor([[0, 255]]), ignore_index=())
