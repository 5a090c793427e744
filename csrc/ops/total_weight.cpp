// The denominator of a mean over voxels with class labels. It does not need the logits.

#include "total_weight.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <string>

#include "checks.h"
#include "composite.h"
#include "label_table.h"
#include "layout.h"
#include "targets.h"

namespace segloss {
namespace {

void check_arguments(const std::string& op, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& voxel_weight, const c10::SymInt& num_classes,
                     const OptionalTensor& label_table) {
    check_label_tensor(op, target);
    check_label_table(op, target, label_table, Target::sets);
    TORCH_CHECK_VALUE(num_classes >= 0 && num_classes <= INT32_MAX, op, ": expected num_classes in [0, ", INT32_MAX,
                      "], got ", num_classes);
    for (const auto& [tensor, name] : {std::pair(weight, "weight"), std::pair(voxel_weight, "voxel_weight")}) {
        if (tensor) {
            check_dense(op, *tensor, name);
            check_same_device(op, target, *tensor, name);
            TORCH_CHECK(is_integer(*tensor) || tensor->is_floating_point(), op,
                        ": expected an integer, bool or floating ", name, ", got ", tensor->scalar_type());
        }
    }
    TORCH_CHECK(!weight || (weight->dim() == 1 && weight->sym_size(0) == num_classes), op,
                ": expected weight of shape [", num_classes, "], one for each class, got ", weight->sym_sizes());
    TORCH_CHECK(!voxel_weight || voxel_weight->sym_sizes() == target.sym_sizes(), op,
                ": expected voxel_weight of the labels' shape ", target.sym_sizes(), ", got ",
                voxel_weight->sym_sizes());
}

Tensor total_weight_cpu(c10::string_view op_view, const Tensor& target, const OptionalTensor& weight,
                        const OptionalTensor& voxel_weight, int64_t num_classes, int64_t ignore_index,
                        const OptionalTensor& label_table) {
    const std::string op(op_view);
    const Labels labels{ignore_index, label_table};
    const WeightArguments arguments(op, target, weight, voxel_weight, num_classes, labels);
    const auto kernel = kernels().cross_entropy_weight[SEGLOSS_REAL_DOUBLE];
    const auto total = sum_over(Chunks(target.numel(), 1), kernel, arguments.args);
    if (!total) {
        check_label_values(op, target, num_classes, labels);
    }
    return number(total.value_or(segloss_sums{}).weight);
}

Tensor total_weight_meta(c10::string_view op, const Tensor& target, const OptionalTensor& weight,
                         const OptionalTensor& voxel_weight, int64_t num_classes, int64_t /*ignore_index*/,
                         const OptionalTensor& label_table) {
    check_arguments(std::string(op), target, weight, voxel_weight, num_classes, label_table);
    return at::empty({}, target.options().dtype(at::kDouble));
}

// Devices without a kernel.
Tensor total_weight_composite(c10::string_view op_view, const Tensor& target, const OptionalTensor& weight,
                              const OptionalTensor& voxel_weight, int64_t num_classes, int64_t ignore_index,
                              const OptionalTensor& label_table) {
    const std::string op(op_view);
    check_arguments(op, target, weight, voxel_weight, num_classes, label_table);
    const auto dtype = widest_dtype(target);
    const auto labels = class_labels(op, target, num_classes, {ignore_index, label_table});
    const auto is_valid = labels.ge(0);
    auto weights = is_valid.to(dtype);
    if (weight && num_classes > 0) { // without a class no label is valid
        weights = weights * weight->to(dtype).index_select(0, labels.clamp_min(0).flatten()).view_as(labels);
    }
    if (voxel_weight) {
        weights = weights * voxel_weight->to(dtype);
    }
    return weights.masked_fill(is_valid.logical_not(), 0).sum();
}

} // namespace

WeightArguments::WeightArguments(const std::string& op, const Tensor& target, const OptionalTensor& weight,
                                 const OptionalTensor& voxel_weight, int64_t num_classes, const Labels& labels)
    : voxel_weight(voxel_weight.value_or(Tensor())) {
    check_arguments(op, target, weight, voxel_weight, num_classes, labels.table);
    class_weight = class_weight_for_kernel(weight, at::kDouble);
    args.num_classes = num_classes;
    args.class_weight = class_weight.defined() ? class_weight.const_data_ptr() : nullptr;
    args.ignore_index = labels.ignore_index;
    args.labels = label_table_for_kernel(op, labels.table, num_classes, target.numel(), weight.has_value());
    args.target_kind = SEGLOSS_LABELS;
    args.positions = describe(target.sizes(), 0, {{&target, &args.target}, {&this->voxel_weight, &args.voxel_weight}});
}

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    m.def("total_weight(str op, Tensor target, Tensor? weight, Tensor? voxel_weight, int num_classes, "
          "int ignore_index, Tensor? label_table=None) -> Tensor",
          {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) { m.impl("total_weight", TORCH_FN(total_weight_cpu)); }

TORCH_LIBRARY_IMPL(segloss, Meta, m) { m.impl("total_weight", TORCH_FN(total_weight_meta)); }

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) { m.impl("total_weight", TORCH_FN(total_weight_composite)); }

} // namespace segloss
