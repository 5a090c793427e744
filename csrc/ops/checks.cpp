#include "checks.h"

#include <ATen/core/Formatting.h>
#include <ATen/core/Tensor.h>
#include <ATen/WrapDimUtils.h>
#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "label_table.h"

namespace segloss {
namespace {

constexpr auto kSingleLogit =
    "With a single logit per voxel use torch.nn.functional.binary_cross_entropy_with_logits, or a segloss loss with "
    "activation='sigmoid' and the mask of the foreground as target. If input holds predicted labels, pass the logits, "
    "before argmax";

using SymShape = std::vector<c10::SymInt>;

SymShape shape_of(const Tensor& tensor) { return tensor.sym_sizes().vec(); }

SymShape without(SymShape shape, int64_t dim) {
    shape.erase(shape.begin() + dim);
    return shape;
}

SymShape with_batch(SymShape shape) {
    shape.insert(shape.begin(), 1);
    return shape;
}

SymShape with_size(SymShape shape, int64_t dim, c10::SymInt size) {
    shape[dim] = std::move(size);
    return shape;
}

// The shapes that labels may have, for messages.
std::string label_shapes(const Tensor& input, int64_t dim) {
    const auto shape = shape_of(input);
    return c10::str(c10::SymIntArrayRef(without(shape, dim)), " or ", c10::SymIntArrayRef(with_size(shape, dim, 1)));
}

// Whether target has input's sizes without `dim`, or with size 1 there. Allocates nothing, as every call needs it.
bool fits(c10::SymIntArrayRef target, c10::SymIntArrayRef input, int64_t dim) {
    const auto at = static_cast<size_t>(dim);
    if (target.size() + 1 == input.size()) {
        return target.slice(0, at) == input.slice(0, at) && target.slice(at) == input.slice(at + 1);
    }
    return target.size() == input.size() && target.slice(0, at) == input.slice(0, at) && target[at] == 1 &&
           target.slice(at + 1) == input.slice(at + 1);
}

// The code target.permute(...) that gives the shape `expected`, or an empty string if the two have different sizes.
std::string permute_call(const SymShape& target, const SymShape& expected) {
    std::vector<size_t> order;
    for (const auto& size : expected) {
        for (size_t d = 0; d < target.size(); ++d) {
            if (target[d] == size && std::find(order.begin(), order.end(), d) == order.end()) {
                order.push_back(d);
                break;
            }
        }
    }
    const bool permutes = order.size() == expected.size() && target.size() == expected.size();
    return permutes ? c10::str("target.permute(", c10::Join(", ", order), ")") : "";
}

// The next three functions suggest code that makes target fit input: by a dimension more or less, or another dim; by
// another order of dimensions; and for other sizes. They return an empty string if they have no suggestion.

std::string mend_dims(const SymShape& input, const SymShape& target, int64_t dim) {
    for (int64_t d = 0; d < static_cast<int64_t>(target.size()); ++d) {
        if (target[d] == 1 && fits(without(target, d), input, dim)) {
            return c10::str("target.squeeze(", d, ")");
        }
    }
    const bool keeps_dim = dim < static_cast<int64_t>(target.size()) && target[dim] == 1;
    for (auto d = static_cast<int64_t>(input.size()) - 1; d > 0; --d) {
        if (fits(target, input, d)) {
            return c10::str("dim=", d, ", if that is where the classes are");
        }
        if (keeps_dim && fits(without(target, dim), input, d)) {
            return c10::str("dim=", d, " with target.squeeze(", dim, "), if that is where the classes are");
        }
    }
    if (dim == 1 && input.size() > 3 && fits(target, without(input, 1), dim)) {
        return "DeepSupervisionLoss with input.unbind(1), if input holds outputs of several resolutions";
    }
    const auto batched_input = with_batch(input), batched_target = with_batch(target);
    return fits(batched_target, input, dim)           ? "target.unsqueeze(0)"
           : fits(target, batched_input, dim)         ? "input.unsqueeze(0)"
           : fits(batched_target, batched_input, dim) ? "input.unsqueeze(0) and target.unsqueeze(0)"
                                                      : "";
}

std::string mend_order(const SymShape& input, const SymShape& target, int64_t dim) {
    const bool keeps_dim = target.size() == input.size();
    if (keeps_dim) {
        auto moved = target;
        std::rotate(moved.begin() + dim, moved.end() - 1, moved.end());
        if (moved == input) {
            return c10::str("target.movedim(-1, ", dim, ")");
        }
    }
    const auto expected = keeps_dim ? with_size(input, dim, 1) : without(input, dim);
    const auto permuted = permute_call(target, expected);
    return !permuted.empty() || c10::multiply_integers(target) != c10::multiply_integers(expected)
               ? permuted
               : c10::str("target.reshape(", c10::SymIntArrayRef(expected), ")");
}

// Whether target has the labels' shape and one more dimension at the end, for the colour of each voxel.
bool are_colours(const SymShape& target, const SymShape& positions) {
    return target.size() == positions.size() + 1 && positions.size() > 1 &&
           std::equal(positions.begin(), positions.end(), target.begin());
}

std::string mend_sizes(const SymShape& input, const SymShape& target, int64_t dim) {
    const auto positions = without(input, dim);
    if (are_colours(target, positions)) {
        return "target[..., 0] if its last dimension repeats the labels; turn the colours of an image into labels "
               "first";
    }
    const bool has_no_batch = target.size() + 1 == positions.size();
    const auto labels = has_no_batch                    ? with_batch(target)
                        : target.size() == input.size() ? without(target, dim)
                                                        : target;
    if (labels.size() != positions.size() || positions.empty()) {
        return "";
    }
    if (labels == positions) {
        const auto first_channel = c10::str("target.narrow(", dim, ", 0, 1) if ");
        const bool may_be_colours = target[dim] == 3 || target[dim] == 4;
        return input[dim] == 1 ? first_channel + "its first channel is the mask"
                               : c10::str("target.argmax(", dim, ") if target is one-hot, or ", first_channel,
                                          "the labels are in its first channel",
                                          may_be_colours ? "; turn the colours of an image into labels first" : "");
    }
    if (labels[0] == positions[0] && dim == 1 && labels.size() > 1) {
        constexpr std::array<const char*, 3> kModes{"linear", "bilinear", "trilinear"}; // by the number of axes
        const auto num_axes = labels.size() - 1;
        const auto upsample = num_axes <= kModes.size() ? c10::str("upsample='", kModes[num_axes - 1], "' or ") : "";
        return c10::str(upsample, "torch.nn.functional.interpolate(input, size=", c10::SymIntArrayRef(labels).slice(1),
                        ") to bring the logits to the labels' size");
    }
    if (!std::equal(labels.begin() + 1, labels.end(), positions.begin() + 1)) {
        return "";
    }
    const auto sizes = with_size(SymShape(std::max(target.size(), labels.size()), -1), 0, positions[0]);
    return "input and target of the same samples" +
           (labels[0] == 1 ? c10::str(", or target.expand(", c10::Join(", ", sizes), ") if all share these labels")
                           : "");
}

const char* mend_weight(const c10::SymInt& num_classes, const Tensor& weight) {
    return weight.dim() == 1 && weight.sym_size(0) + 1 == num_classes
               ? "Give class 0 a weight too, also where include_background=False leaves it out"
           : weight.sym_numel() == num_classes ? "Use weight.flatten()"
                                               : "Pass weights of voxels as voxel_weight";
}

// What to do with labels outside [0, num_classes), by their values: a mask of 0 and 255, labels that start at 1,
// others.
std::string label_advice(const Tensor& labels, const Tensor& bad, int64_t num_classes, int64_t ignore_index) {
    const auto valid = labels.masked_select(is_ignored(labels, {ignore_index}).logical_not());
    const auto first_bad = labels.masked_select(bad)[0];
    const bool is_mask = num_classes == 2 && valid.eq(0).logical_or_(valid.eq(first_bad)).all().item<bool>();
    const bool starts_at_1 = valid.gt(0).logical_and_(valid.le(num_classes)).all().item<bool>();
    return is_mask ? "Use target.ne(0) if it is a mask of 0 and another value, or set ignore_index to the label of "
                     "voxels to leave out"
           : starts_at_1
               ? "Use target - 1 if labels start at 1, or give the network more classes"
               : "Relabel, give the network more classes, or set ignore_index to the label of voxels to leave "
                 "out";
}

[[noreturn]] void raise_shape_error(const std::string& op, const Tensor& input, const Tensor& target, int64_t dim) {
    std::string fix;
    for (auto* const mend : {mend_dims, mend_order, mend_sizes}) {
        fix = fix.empty() ? mend(shape_of(input), shape_of(target), dim) : fix;
    }
    const auto message =
        c10::str(op, ": expected labels of shape ", label_shapes(input, dim), " or class probabilities of shape ",
                 input.sym_sizes(), " for input ", input.sym_sizes(), " with its classes in dimension ", dim,
                 ", got target ", target.sym_sizes(), fix.empty() ? "" : ". Try ", fix);
    const bool batches_differ =
        dim > 0 && target.dim() > 0 && input.dim() > 1 && input.sym_size(0) != target.sym_size(0);
    TORCH_CHECK_VALUE(!batches_differ, message);
    TORCH_CHECK(false, message);
}

// For messages: the smallest and the largest bad label, if they differ. Not for uint64, which wraps beyond int64.
std::string values_between(const Tensor& labels, const Tensor& bad) {
    if (labels.scalar_type() == at::kUInt64) {
        return "";
    }
    const auto values = (labels.is_floating_point() ? labels : labels.to(at::kLong)).masked_select(bad);
    const auto smallest = label_text(values.min(), 0), largest = label_text(values.max(), 0);
    return smallest == largest ? "" : c10::str(", with values from ", smallest, " to ", largest);
}

} // namespace

bool is_real(at::ScalarType dtype) {
    return dtype == at::kDouble || dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16;
}

int64_t first_true(const Tensor& mask) { return mask.flatten().to(at::kByte).argmax().item<int64_t>(); }

std::vector<int64_t> index_of(int64_t flat, at::IntArrayRef sizes) {
    std::vector<int64_t> index(sizes.size());
    for (auto d = static_cast<int64_t>(sizes.size()) - 1; d >= 0; --d) {
        index[d] = flat % sizes[d];
        flat /= sizes[d];
    }
    return index;
}

std::string label_text(const Tensor& labels, int64_t flat) {
    const auto label = labels.flatten()[flat].item();
    return label.isUnsigned() ? std::to_string(label.toUInt64()) : c10::str(label);
}

std::string first_value(const Tensor& values, const Tensor& found) { return label_text(values, first_true(found)); }

std::string first_place(const char* name, const Tensor& found) {
    return c10::str("at index ", at::IntArrayRef(index_of(first_true(found), found.sizes())), " of ", name, " ",
                    found.sizes());
}

bool is_integer(const Tensor& tensor) { return at::isIntegralType(tensor.scalar_type(), /*includeBool=*/true); }

Tensor is_outside(const Tensor& labels, int64_t num_classes) {
    return labels.lt(0).logical_or_(labels.ge(num_classes));
}

int64_t class_dim(const std::string& op, const Tensor& input, int64_t dim) {
    TORCH_CHECK(input.dim() > 0, op, ": expected logits [N, C, ...] or [C], got a 0-dim input. ",
                "Pass the logits of all classes; was argmax or max taken before the loss?");
    TORCH_CHECK_INDEX(input.dim() == 1 || (dim >= -input.dim() && dim < input.dim()), op,
                      ": expected dim, the class dimension of input, in [", -input.dim(), ", ", input.dim() - 1,
                      "], got ", dim, " for input ", input.sym_sizes(), ". Logits are [N, C, ...] with dim=1, ",
                      "or [..., C] with dim=-1");
    return input.dim() == 1 ? 0 : at::maybe_wrap_dim(dim, input.dim());
}

void check_dense(const std::string& op, const Tensor& tensor, const char* name) {
    TORCH_CHECK_TYPE(tensor.defined(), op, ": expected ", name, " to be a torch.Tensor, got None");
    TORCH_CHECK_TYPE(!tensor.is_nested(), op, ": expected a dense ", name, ", got a nested tensor. Use ", name,
                     ".to_padded_tensor(), and ignore_index as the label of the padding");
    TORCH_CHECK_TYPE(tensor.layout() == at::kStrided, op, ": expected a dense ", name, ", got one of layout ",
                     tensor.layout(), ". Use ", name, ".to_dense()");
}

void check_logits(const std::string& op, const Tensor& input) {
    check_dense(op, input, "input");
    TORCH_CHECK_TYPE(!is_integer(input), op, ": expected floating logits [N, C, ...], got ", input.scalar_type(),
                     " input ", input.sym_sizes(), ", which looks like predicted labels. ",
                     "Pass the network's output itself, before argmax, as the first argument");
    TORCH_CHECK_TYPE(is_real(input.scalar_type()), op,
                     ": expected logits of dtype float64, float32, float16 or bfloat16, got ", input.scalar_type(),
                     ". Use input.float()");
}

void check_label_tensor(const std::string& op, const Tensor& target) {
    check_dense(op, target, "target");
    TORCH_CHECK_TYPE(is_integer(target) || is_real(target.scalar_type()), op,
                     ": expected an integer, bool or floating target, got ", target.scalar_type(),
                     ", which no kernel reads. Use target.long() for labels, or target.float()");
}

void check_loss_dtype(const std::string& op, const Tensor& input, at::ScalarType dtype) {
    TORCH_CHECK_TYPE(is_real(dtype), op, ": expected float64, float32, float16 or bfloat16 as dtype of the loss, got ",
                     dtype);
    TORCH_CHECK_TYPE(c10::promoteTypes(dtype, input.scalar_type()) == dtype, op, ": expected a dtype of the loss that ",
                     "holds input's ", input.scalar_type(), ", got ", dtype, ". Convert the loss itself");
}

bool has_label_shape(const Tensor& input, const Tensor& labels, int64_t dim) {
    return fits(labels.sym_sizes(), input.sym_sizes(), dim);
}

Target classify_target(const std::string& op, const Tensor& input, const Tensor& target, int64_t dim,
                       bool takes_masks) {
    check_label_tensor(op, target);
    check_same_device(op, input, target, "target");
    const bool has_input_shape = target.dim() == input.dim() && target.sym_sizes() == input.sym_sizes();
    const bool is_label_shape = has_label_shape(input, target, dim);
    const bool is_mask_of_one = takes_masks && is_label_shape && input.sym_size(dim) == 1;
    TORCH_CHECK(!takes_masks || !has_input_shape || input.dim() > 1 || is_mask_of_one, op,
                ": expected input [N, C, ...] and a mask for each class of its shape, got input ", input.sym_sizes(),
                " and target ", target.sym_sizes(), " of one dimension, which may be the classes' or the voxels'. ",
                "Of the voxels of one mask pass input[None, None] and target[None, None], of one voxel input[None] and "
                "target[None]");
    if (target.is_floating_point() && (has_input_shape || is_mask_of_one)) {
        return Target::probabilities;
    }
    if (takes_masks && (has_input_shape || is_mask_of_one)) {
        return Target::masks;
    }
    if (is_label_shape) {
        TORCH_CHECK(is_integer(target) || input.sym_size(dim) != 1, op, ": expected integer labels for input ",
                    input.sym_sizes(), " of one class, got ", target.scalar_type(), " target ", target.sym_sizes(),
                    ". ", kSingleLogit, "; for labels, target.long()");
        return Target::labels;
    }
    TORCH_CHECK(input.dim() > 1 || !is_integer(target), op,
                ": Expected floating point type for target with class probabilities, got ", target.scalar_type(),
                ". input ", input.sym_sizes(), " has no class dimension for target ", target.sym_sizes(),
                "; expected logits [N, C, ...] with labels [N, ...]. Was argmax or max taken before the loss?");
    if (has_input_shape) {
        return Target::one_hot;
    }
    raise_shape_error(op, input, target, dim);
}

void check_same_device(const std::string& op, const Tensor& input, const Tensor& other, const char* name) {
    TORCH_CHECK(input.device() == other.device(), op, ": expected all tensors on one device, got input on ",
                input.device(), " and ", name, " on ", other.device(), ". Use ", name, ".to(input.device)");
}

void check_weight(const std::string& op, const Tensor& input, const OptionalTensor& weight, int64_t dim,
                  Target target) {
    if (!weight) {
        return;
    }
    check_dense(op, *weight, "weight");
    check_same_device(op, input, *weight, "weight");
    TORCH_CHECK(weight->dim() == 1 && weight->sym_size(0) == input.sym_size(dim), op, ": expected weight of shape [",
                input.sym_size(dim), "], one for each class of input ", input.sym_sizes(), ", got ",
                weight->sym_sizes(), ". ", mend_weight(input.sym_size(dim), *weight));
    TORCH_CHECK(weight->is_floating_point(), op, ": expected a floating weight, got ", weight->scalar_type(),
                ". Use weight.to(input.dtype)");
    TORCH_CHECK(
        target == Target::probabilities || !weight->requires_grad() || !c10::GradMode::is_enabled(), op,
        ": expected a weight without gradient, got requires_grad=True: with class labels the loss is not ",
        "differentiable with respect to argument 'weight'. Use weight.detach(), or class probabilities as target");
}

void check_voxel_weight(const std::string& op, const Tensor& input, const OptionalTensor& voxel_weight, int64_t dim) {
    if (!voxel_weight) {
        return;
    }
    check_dense(op, *voxel_weight, "voxel_weight");
    check_same_device(op, input, *voxel_weight, "voxel_weight");
    TORCH_CHECK(has_label_shape(input, *voxel_weight, dim), op, ": expected voxel_weight of the labels' shape, ",
                label_shapes(input, dim), " for input ", input.sym_sizes(), ", got ", voxel_weight->sym_sizes(),
                ". Pass weights of classes as weight");
    TORCH_CHECK(is_integer(*voxel_weight) || is_real(voxel_weight->scalar_type()), op,
                ": expected a voxel_weight of an integer dtype, bool, float64, float32, float16 or bfloat16, got ",
                voxel_weight->scalar_type(), ". Use voxel_weight.float()");
    TORCH_CHECK(!voxel_weight->requires_grad() || !c10::GradMode::is_enabled(), op,
                ": expected a voxel_weight without gradient, got requires_grad=True: the loss is not differentiable ",
                "with respect to argument 'voxel_weight'. Use voxel_weight.detach()");
}

void check_label_smoothing(const std::string& op, double label_smoothing) {
    TORCH_CHECK(
        label_smoothing >= 0.0 && label_smoothing <= 1.0, op,
        ": expected label_smoothing in [0, 1]; label_smoothing must be between 0.0 and 1.0. Got: ", label_smoothing);
}

void check_ignore_index(const std::string& op, Target kind, int64_t ignore_index) {
    TORCH_CHECK(kind != Target::probabilities || ignore_index < 0, op,
                ": ignore_index is not supported for floating point target, expected a negative one, got ignore_index=",
                ignore_index, ". Leave voxels out with voxel_weight=0 instead");
    TORCH_CHECK(kind != Target::masks || (ignore_index != 0 && ignore_index != 1), op,
                ": expected an ignore_index that is no value of a mask, got ignore_index=", ignore_index,
                ". Mark voxels to leave out by another value in the masks, or with voxel_weight=0");
}

void check_gamma(const std::string& op, double gamma) {
    TORCH_CHECK_VALUE(gamma >= 0 && std::isfinite(gamma), op, ": expected gamma, an exponent, in [0, inf), got ",
                      gamma);
}

void check_labels_only(const std::string& op, const Tensor& input, int64_t dim, Target kind) {
    TORCH_CHECK(kind != Target::probabilities, op, ": expected class labels, got class probabilities, a floating ",
                "target of input's shape ", input.sym_sizes(), ". Use ",
                input.sym_size(dim) == 1 ? "" : c10::str("target.argmax(", dim, "), or "),
                "a loss with activation='sigmoid'");
}

void check_softmax(const std::string& op, const Tensor& input, int64_t dim) {
    TORCH_CHECK_VALUE(input.sym_size(dim) != 1, op,
                      ": expected more than one channel for activation='softmax', got input ", input.sym_sizes(),
                      " with its classes in dimension ", dim, ", whose softmax is 1 whatever the logits are. ",
                      "Use activation='sigmoid', with the mask of the foreground as target. If input holds predicted "
                      "labels, pass the logits, before argmax");
}

void check_integral_labels(const std::string& op, const Tensor& labels) {
    if (!labels.is_floating_point()) {
        return;
    }
    const auto fractional = labels.ne(labels.floor());
    TORCH_CHECK(!fractional.any().item<bool>(), op, ": expected integral labels in target ", labels.sizes(),
                " of dtype ", labels.scalar_type(), ", got ", first_value(labels, fractional), " at index ",
                at::IntArrayRef(index_of(first_true(fractional), labels.sizes())),
                ". Round the labels, or give class probabilities the shape of input");
}

bool may_ignore(at::ScalarType dtype, const Labels& labels) {
    const auto ignore_index = labels.ignore_index;
    if (labels.table) {
        return true;
    }
    switch (dtype) {
    case at::kBool:
        return ignore_index == 0 || ignore_index == 1;
    case at::kByte:
        return ignore_index >= 0 && ignore_index <= std::numeric_limits<uint8_t>::max();
    case at::kUInt16:
    case at::kUInt32:
    case at::kUInt64:
        return ignore_index >= 0;
    default:
        return true;
    }
}

Tensor is_ignored(const Tensor& target, const Labels& labels) {
    if (labels.table) {
        return classes_of(target, labels).eq(SEGLOSS_IGNORED);
    }
    const auto integers = target.to(at::kLong); // in uint8, -100 is 156
    const auto same = integers.eq(labels.ignore_index);
    if (target.scalar_type() == at::kUInt64) {
        return same.logical_and(integers.ge(0)); // values beyond int64 wrap to negative ones
    }
    if (target.is_floating_point()) {
        const auto wide = target.to(c10::promoteTypes(target.scalar_type(), at::kFloat));
        return same.logical_and(wide.ge(-0x1p63)).logical_and(wide.lt(0x1p63)); // not beyond int64
    }
    return same;
}

void check_label_values(const std::string& op, const Tensor& target, int64_t num_classes, const Labels& labels) {
    check_integral_labels(op, target);
    if (labels.table) {
        check_mapped_values(op, target, num_classes, *labels.table);
        return;
    }
    const auto wide = target.is_floating_point() ? c10::promoteTypes(target.scalar_type(), at::kFloat) : at::kLong;
    const auto values = target.to(wide);
    const auto bad = is_outside(values, num_classes).logical_and_(is_ignored(target, labels).logical_not_());
    const auto num_bad = bad.sum().item<int64_t>();
    const bool none_is_ignored = labels.ignore_index == INT64_MIN; // no dtype but int64 can hold it
    const auto or_ignored = none_is_ignored ? "" : c10::str(" or ignore_index=", labels.ignore_index);
    TORCH_CHECK_INDEX(num_bad == 0, op, ": Target ", first_value(target, bad), " is out of bounds: ", num_bad,
                      num_bad == 1 ? " label is" : " labels are", " outside [0, ", num_classes, "), the first ",
                      first_place("target", bad), values_between(target, bad), ". Expected labels 0 to ",
                      std::max<int64_t>(num_classes - 1, 0), or_ignored, ". ",
                      num_classes == 1 ? kSingleLogit : label_advice(values, bad, num_classes, labels.ignore_index));
}

void check_mask_values(const std::string& op, const Tensor& masks, int64_t ignore_index) {
    const bool is_floating = masks.is_floating_point();
    const auto outside = is_floating ? masks.ne(0).logical_and(masks.ne(1)) : is_outside(masks.to(at::kLong), 2);
    const auto bad = outside.logical_and(is_ignored(masks, {ignore_index}).logical_not_());
    TORCH_CHECK(!bad.any().item<bool>(), op, ": expected 0 and 1 in ", is_floating ? "a floating" : "an integer",
                " target that is a mask for each class, got ", first_value(masks, bad), " ", first_place("target", bad),
                ". A mask of 0 and another value becomes one of 0 and 1 by target.ne(0); set ignore_index to the value "
                "of voxels to leave out. Labels of several classes are [N, ...] or [N, 1, ...], of logits with a "
                "channel for each");
}

void check_one_hot_values(const std::string& op, const Tensor& target, int64_t dim, c10::string_view advice) {
    const auto values = target.is_floating_point() ? target : target.to(at::kLong);
    const auto binary = values.eq(0).logical_or_(values.eq(1)).all(dim);
    const auto strange = values.ne(0).sum(dim).ne(1).logical_or_(binary.logical_not());
    if (!strange.any().item<bool>()) {
        return;
    }
    const auto more = advice.empty() ? "" : c10::str(" (", advice, ")");
    TORCH_CHECK(target.size(dim) > 0, op, ": expected at least one class for a one-hot target, got target ",
                target.sizes(), " with its classes in dimension ", dim, more);
    const auto voxel = c10::str("the voxel at index ", at::IntArrayRef(index_of(first_true(strange), strange.sizes())),
                                " of ", strange.sizes(), " is not one-hot along dimension ", dim);
    TORCH_CHECK(!target.is_floating_point(), op,
                ": expected class labels or a one-hot target, got class probabilities: ", voxel, ". Use target.argmax(",
                dim, ")", more);
    TORCH_CHECK(false, op, ": Expected floating point type for target with class probabilities, got ",
                target.scalar_type(), ". An integer target of input's shape ", target.sizes(),
                " is read as one-hot, but ", voxel, "; its values lie between ", values.min().item<int64_t>(), " and ",
                values.max().item<int64_t>(), ". Labels have shape ", strange.sizes(), ": target.narrow(", dim,
                ", 0, 1) if it repeats its labels for each class; target.ne(0) if it is a "
                "mask of 0 and another value. If input holds predicted labels, pass the logits, before argmax",
                more);
}

} // namespace segloss
