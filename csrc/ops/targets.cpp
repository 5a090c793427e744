#include "targets.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "checks.h"
#include "layout.h"

namespace segloss {
namespace {

// ---- one-hot to labels ----------------------------------------------------------------------------------------------

void check_one_hot(const std::string& op, const Tensor& target, int64_t dim) {
    check_label_tensor(op, target);
    TORCH_CHECK_INDEX(dim >= 0 && dim < target.dim(), op, ": expected dim in [0, ", target.dim() - 1, "], got ", dim);
}

Tensor one_hot_labels_cpu(c10::string_view op, const Tensor& target, int64_t dim) {
    check_one_hot(std::string(op), target, dim);
    const auto sizes = position_sizes(target, dim);
    const auto labels = at::empty(sizes, target.options().dtype(at::kInt));
    segloss_one_hot args{};
    args.num_classes = target.size(dim);
    args.labels = labels.data_ptr<int32_t>();
    args.positions = describe(sizes, dim, {{&target, &args.target}});
    const Chunks chunks(labels.numel(), args.num_classes);
    const bool accepted =
        chunks.run([&](int64_t, int64_t begin, int64_t end) { return kernels().one_hot(&args, begin, end); });
    if (!accepted) {
        check_one_hot_values(std::string(op), target, dim);
    }
    return labels;
}

Tensor one_hot_labels_meta(c10::string_view op, const Tensor& target, int64_t dim) {
    check_one_hot(std::string(op), target, dim);
    auto sizes = target.sym_sizes().vec();
    sizes.erase(sizes.begin() + dim);
    return at::empty_symint(sizes, target.options().dtype(at::kInt));
}

// Devices without a kernel.
Tensor one_hot_labels_composite(c10::string_view op, const Tensor& target, int64_t dim) {
    check_one_hot(std::string(op), target, dim);
    check_one_hot_values(std::string(op), target, dim);
    return target.ne(0).to(at::kByte).argmax(dim).to(at::kInt);
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

} // namespace

segloss_target target_for_kernel(Target kind) {
    return kind == Target::probabilities ? SEGLOSS_PROBABILITIES
           : kind == Target::masks       ? SEGLOSS_MASKS
                                         : SEGLOSS_LABELS;
}

void raise_refused_target(const std::string& op, const Tensor& target, Target kind, int64_t num_classes,
                          int64_t ignore_index) {
    if (kind == Target::masks) {
        check_mask_values(op, target, ignore_index);
    } else {
        check_label_values(op, target, num_classes, ignore_index);
    }
    TORCH_CHECK_INDEX(false, op, ": Target is out of bounds: a value of target ", target.sizes(),
                      " is neither a label, in [0, ", num_classes,
                      "), nor a mask, 0 or 1, nor ignore_index=", ignore_index);
}

Tensor one_hot_labels(const std::string& op, const Tensor& target, int64_t dim) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("segloss::one_hot_labels", "")
                                   .typed<decltype(one_hot_labels_cpu)>();
    return handle.call(op, target, dim);
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
    m.def("one_hot_labels(str op, Tensor target, int dim) -> Tensor", tags);
    m.def("class_labels(str op, Tensor target, SymInt num_classes, int ignore_index) -> Tensor", tags);
    m.def("class_masks(str op, Tensor target, int ignore_index) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) { m.impl("one_hot_labels", TORCH_FN(one_hot_labels_cpu)); }

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("one_hot_labels", TORCH_FN(one_hot_labels_meta));
    m.impl("class_labels", TORCH_FN(class_labels_meta));
    m.impl("class_masks", TORCH_FN(class_masks_meta));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("one_hot_labels", TORCH_FN(one_hot_labels_composite));
    m.impl("class_labels", TORCH_FN(class_labels_composite));
    m.impl("class_masks", TORCH_FN(class_masks_composite));
}

} // namespace segloss
