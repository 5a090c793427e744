#include "targets.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "checks.h"
#include "layout.h"

namespace segloss {
namespace {

// ---- one-hot to labels ----------------------------------------------------------------------------------------------

void check_one_hot(const std::string& op, const Tensor& target, int64_t dim) {
    check_label_tensor(op, target);
    TORCH_CHECK_INDEX(dim >= 0 && dim < target.dim(), op, ": expected dim in [0, ", target.dim() - 1, "], got ", dim);
}

// Writes the labels of a target; false at the first block with a voxel that is not one-hot.
bool read_one_hot(const Tensor& target, int64_t dim, const Tensor& labels) {
    segloss_one_hot args{};
    args.num_classes = target.size(dim);
    args.labels = labels.data_ptr<int32_t>();
    args.positions = describe(labels.sizes(), dim, {{&target, &args.target}});
    const Chunks chunks(labels.numel(), args.num_classes);
    return chunks.run([&](int64_t, int64_t begin, int64_t end) { return kernels().one_hot(&args, begin, end); });
}

Tensor one_hot_labels_cpu(c10::string_view op, const Tensor& target, int64_t dim, c10::string_view advice) {
    check_one_hot(std::string(op), target, dim);
    const auto labels = at::empty(position_sizes(target, dim), target.options().dtype(at::kInt));
    if (!read_one_hot(target, dim, labels)) {
        check_one_hot_values(std::string(op), target, dim, advice);
    }
    return labels;
}

Tensor one_hot_labels_meta(c10::string_view op, const Tensor& target, int64_t dim, c10::string_view /*advice*/) {
    check_one_hot(std::string(op), target, dim);
    auto sizes = target.sym_sizes().vec();
    sizes.erase(sizes.begin() + dim);
    return at::empty_symint(sizes, target.options().dtype(at::kInt));
}

// Devices without a kernel.
Tensor one_hot_labels_composite(c10::string_view op, const Tensor& target, int64_t dim, c10::string_view advice) {
    check_one_hot(std::string(op), target, dim);
    check_one_hot_values(std::string(op), target, dim, advice);
    return target.ne(0).to(at::kByte).argmax(dim).to(at::kInt);
}

// The memory of the labels is touched as far as the target is one-hot.
Tensor is_one_hot_cpu(c10::string_view op, const Tensor& target, int64_t dim) {
    check_one_hot(std::string(op), target, dim);
    const auto labels = at::empty(position_sizes(target, dim), target.options().dtype(at::kInt));
    return at::scalar_tensor(read_one_hot(target, dim, labels), at::kBool);
}

Tensor is_one_hot_meta(c10::string_view op, const Tensor& target, int64_t dim) {
    check_one_hot(std::string(op), target, dim);
    return at::empty({}, target.options().dtype(at::kBool));
}

// The first voxel alone tells most targets apart.
Tensor is_one_hot_composite(c10::string_view op, const Tensor& target, int64_t dim) {
    check_one_hot(std::string(op), target, dim);
    const auto all_one_hot = [dim](const Tensor& voxels) {
        const auto ones = voxels.eq(1);
        return ones.sum(dim).eq(1).all().logical_and(ones.logical_or(voxels.eq(0)).all());
    };
    auto first = target;
    for (int64_t d = 0; d < target.dim(); ++d) {
        first = d == dim ? first : first.narrow(d, 0, std::min<int64_t>(target.size(d), 1));
    }
    const auto is_first = all_one_hot(first);
    return is_first.item<bool>() ? all_one_hot(target) : is_first;
}

// ---- labels of any dtype to int64 -----------------------------------------------------------------------------------

Tensor class_labels_composite(c10::string_view op, const Tensor& target, c10::SymInt num_classes,
                              int64_t ignore_index) {
    check_label_tensor(std::string(op), target);
    check_label_values(std::string(op), target, num_classes.guard_int(__FILE__, __LINE__), ignore_index);
    const auto labels = target.to(at::kLong);
    return labels.masked_fill(labels.eq(ignore_index), -1);
}

Tensor class_labels_meta(c10::string_view /*op*/, const Tensor& target, c10::SymInt /*num_classes*/,
                         int64_t /*ignore_index*/) {
    return at::empty_symint(target.sym_sizes(), target.options().dtype(at::kLong));
}

// ---- integer masks to int8 ------------------------------------------------------------------------------------------

Tensor class_masks_composite(c10::string_view op, const Tensor& target, int64_t ignore_index) {
    check_label_tensor(std::string(op), target);
    TORCH_CHECK_TYPE(!target.is_floating_point(), op, ": expected integer masks, got ", target.scalar_type());
    check_mask_values(std::string(op), target, ignore_index);
    const auto values = target.to(at::kLong); // not target.eq: in uint8, -100 is 156
    return values.to(at::kChar).masked_fill_(values.eq(ignore_index), -1);
}

Tensor class_masks_meta(c10::string_view /*op*/, const Tensor& target, int64_t /*ignore_index*/) {
    return at::empty_like(target, target.options().dtype(at::kChar));
}

// ---- values in their range ------------------------------------------------------------------------------------------

// Four times the epsilon of a floating dtype.
double slack_of(at::ScalarType dtype) {
    switch (dtype) {
    case at::kHalf:
        return 0x1p-8;
    case at::kBFloat16:
        return 0x1p-5;
    case at::kFloat:
        return 0x1p-21;
    default:
        return 0x1p-50;
    }
}

// Where in a tensor some of its values lie, which have a class dimension of size 1 where the tensor has none.
struct Part {
    at::IntArrayRef sizes; // of the whole
    int64_t dim = 0;
    int64_t begin = 0;
    int64_t class_dim = 0;
};

// Of values in the dtype that is computed in. `counts`: the voxels that are looked at.
void check_values_in_range(c10::string_view op, c10::string_view name, const Tensor& values, const segloss_range& range,
                           const OptionalTensor& counts, const Part& part) {
    const bool is_target = name == "target";
    auto outside = values.lt(range.low).logical_or_(values.gt(range.high));
    outside = is_target ? outside.logical_or_(values.isnan()) : outside;
    outside = counts ? outside.logical_and_(*counts) : outside;
    if (!outside.any().item<bool>()) {
        return;
    }
    const auto first = first_true(outside);
    auto index = index_of(first, values.sizes());
    if (!index.empty()) {
        index[part.dim] += part.begin;
    }
    if (index.size() > part.sizes.size()) {
        index.erase(index.begin() + part.class_dim);
    }
    const auto got = c10::str(", got ", values.flatten()[first].item<double>(), " at index ", at::IntArrayRef(index),
                              " of ", name, " ", part.sizes);
    TORCH_CHECK(is_target, op, ": expected probabilities in [0, 1] as input with activation=None", got,
                ". For logits use activation='softmax' or 'sigmoid', or pass input.softmax(dim) or input.sigmoid()");
    TORCH_CHECK(range.high < 2, op, ": expected finite numbers in a floating target", got);
    TORCH_CHECK(false, op, ": expected class probabilities or masks in [0, 1]", got,
                ". A mask of 0 and 255 becomes one of 0 and 1 by target / 255; voxels are left out by voxel_weight=0");
}

Tensor check_range_composite(c10::string_view op, c10::string_view name, const Tensor& values, double low,
                             double high) {
    check_dense(std::string(op), values, "values");
    TORCH_CHECK_TYPE(values.is_floating_point(), op, ": expected floating values, got ", values.scalar_type());
    check_values_in_range(op, name, values, {low, high}, {}, {values.sizes()});
    return at::zeros({}, values.options());
}

Tensor check_range_meta(c10::string_view /*op*/, c10::string_view /*name*/, const Tensor& values, double /*low*/,
                        double /*high*/) {
    return at::empty({}, values.options());
}

// The voxels that count, of a target and weights with a dimension for the classes; nothing where all do.
OptionalTensor counted_voxels(const Tensor& target, const OptionalTensor& voxel_weight, Target kind, int64_t dim,
                              int64_t ignore_index) {
    OptionalTensor counts = voxel_weight ? OptionalTensor(voxel_weight->ne(0)) : std::nullopt;
    if (kind != Target::probabilities) {
        const auto valid = is_ignored(target, ignore_index).any(dim, /*keepdim=*/true).logical_not();
        counts = counts ? counts->logical_and(valid) : valid;
    }
    return counts;
}

} // namespace

Ranges ranges_of(const Tensor& input, const Tensor& target, Target kind, at::ScalarType compute_dtype, bool any_finite,
                 bool input_is_probability) {
    const auto around_probabilities = [](const Tensor& values) {
        const double slack = slack_of(values.scalar_type());
        return segloss_range{-slack, 1 + slack};
    };
    Ranges ranges;
    if (kind == Target::probabilities) {
        const double largest =
            compute_dtype == at::kDouble ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
        ranges.target = any_finite ? segloss_range{-largest, largest} : around_probabilities(target);
    }
    if (input_is_probability) {
        ranges.logits = around_probabilities(input);
    }
    return ranges;
}

void check_values(const std::string& op, const Tensor& input, const Tensor& target, const OptionalTensor& voxel_weight,
                  Target kind, int64_t dim, int64_t ignore_index, const Ranges& ranges) {
    if (kind == Target::labels) {
        check_label_values(op, target, input.size(dim), ignore_index);
    } else if (kind == Target::masks) {
        check_mask_values(op, target, ignore_index);
    }
    if (!is_asked(ranges.target) && !is_asked(ranges.logits)) {
        return;
    }
    // In parts along the first dimension that has some: what tells an error must not run out of memory.
    constexpr int64_t kElements = int64_t{1} << 24;
    int64_t along = 0;
    while (along + 1 < input.dim() && input.size(along) == 1) {
        ++along;
    }
    const auto size = input.size(along);
    const auto length =
        std::max<int64_t>(kElements / std::max<int64_t>(input.numel() / std::max<int64_t>(size, 1), 1), 1);
    for (int64_t begin = 0; begin < size; begin += length) {
        const auto part = [&](const Tensor& tensor) {
            const auto whole = tensor.dim() == input.dim() ? tensor : tensor.unsqueeze(dim);
            return whole.size(along) == 1 ? whole : whole.narrow(along, begin, std::min(length, size - begin));
        };
        const auto check = [&](const char* name, const Tensor& values, const segloss_range& range) {
            const auto counts =
                counted_voxels(part(target), voxel_weight ? OptionalTensor(part(*voxel_weight)) : std::nullopt, kind,
                               dim, ignore_index);
            const auto computed = part(values).detach().to(compute_dtype(input.scalar_type()));
            check_values_in_range(op, name, computed, range, counts, {values.sizes(), along, begin, dim});
        };
        if (is_asked(ranges.target)) {
            check("target", target, ranges.target);
        }
        if (is_asked(ranges.logits)) {
            check("input", input, ranges.logits);
        }
    }
}

void raise_refused(const std::string& op, const Tensor& input, const Tensor& target, const OptionalTensor& voxel_weight,
                   Target kind, int64_t dim, int64_t ignore_index, const Ranges& ranges) {
    check_values(op, input, target, voxel_weight, kind, dim, ignore_index, ranges);
    TORCH_CHECK_INDEX(false, op, ": Target is out of bounds: a value of target ", target.sizes(),
                      " is neither a label, in [0, ", input.size(dim),
                      "), nor a mask, 0 or 1, nor a probability, nor ignore_index=", ignore_index);
}

segloss_target target_for_kernel(Target kind) {
    return kind == Target::probabilities ? SEGLOSS_PROBABILITIES
           : kind == Target::masks       ? SEGLOSS_MASKS
                                         : SEGLOSS_LABELS;
}

Tensor check_range(const std::string& op, c10::string_view name, const Tensor& values, const segloss_range& range) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("segloss::check_range", "")
                                   .typed<decltype(check_range_composite)>();
    return handle.call(op, name, values, range.low, range.high);
}

Tensor one_hot_labels(const std::string& op, const Tensor& target, int64_t dim, const std::string& advice) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("segloss::one_hot_labels", "")
                                   .typed<decltype(one_hot_labels_cpu)>();
    return handle.call(op, target, dim, advice);
}

bool is_one_hot(const std::string& op, const Tensor& target, int64_t dim) {
    static const auto handle =
        c10::Dispatcher::singleton().findSchemaOrThrow("segloss::is_one_hot", "").typed<decltype(is_one_hot_cpu)>();
    return handle.call(op, target, dim).item<bool>();
}

Tensor class_labels(const std::string& op, const Tensor& target, c10::SymInt num_classes, int64_t ignore_index) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("segloss::class_labels", "")
                                   .typed<decltype(class_labels_composite)>();
    return handle.call(op, target, num_classes, ignore_index);
}

Tensor class_masks(const std::string& op, const Tensor& target, int64_t ignore_index) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("segloss::class_masks", "")
                                   .typed<decltype(class_masks_composite)>();
    return handle.call(op, target, ignore_index);
}

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    m.def("one_hot_labels(str op, Tensor target, int dim, str advice='') -> Tensor", tags);
    m.def("is_one_hot(str op, Tensor target, int dim) -> Tensor", tags);
    m.def("class_labels(str op, Tensor target, SymInt num_classes, int ignore_index) -> Tensor", tags);
    m.def("class_masks(str op, Tensor target, int ignore_index) -> Tensor", tags);
    m.def("check_range(str op, str name, Tensor values, float low, float high) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("one_hot_labels", TORCH_FN(one_hot_labels_cpu));
    m.impl("is_one_hot", TORCH_FN(is_one_hot_cpu));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("one_hot_labels", TORCH_FN(one_hot_labels_meta));
    m.impl("is_one_hot", TORCH_FN(is_one_hot_meta));
    m.impl("class_labels", TORCH_FN(class_labels_meta));
    m.impl("class_masks", TORCH_FN(class_masks_meta));
    m.impl("check_range", TORCH_FN(check_range_meta));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("one_hot_labels", TORCH_FN(one_hot_labels_composite));
    m.impl("is_one_hot", TORCH_FN(is_one_hot_composite));
    m.impl("class_labels", TORCH_FN(class_labels_composite));
    m.impl("class_masks", TORCH_FN(class_masks_composite));
    m.impl("check_range", TORCH_FN(check_range_composite));
}

} // namespace segloss
