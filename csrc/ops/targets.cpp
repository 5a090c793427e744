#include "targets.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "arguments.h"
#include "checks.h"
#include "dispatch.h"
#include "layout.h"

namespace segloss {
namespace {

// ---- one-hot to labels ----------------------------------------------------------------------------------------------

// Writes the labels of a target. Returns false, without all labels, if a voxel is not one-hot.
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

// The kernels write labels that nobody reads, but stop where the target is not one-hot.
Tensor is_one_hot_cpu(c10::string_view op, const Tensor& target, int64_t dim) {
    check_one_hot(std::string(op), target, dim);
    const auto labels = at::empty(position_sizes(target, dim), target.options().dtype(at::kInt));
    return at::scalar_tensor(read_one_hot(target, dim, labels), at::kBool);
}

Tensor is_one_hot_meta(c10::string_view op, const Tensor& target, int64_t dim) {
    check_one_hot(std::string(op), target, dim);
    return at::empty({}, target.options().dtype(at::kBool));
}

// Checks the first voxel by itself first, which rules out most targets that are not one-hot.
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

Tensor class_labels_composite(c10::string_view op, const Tensor& target, c10::SymInt num_classes, int64_t ignore_index,
                              const OptionalTensor& label_table) {
    const Labels meaning{ignore_index, label_table};
    check_class_labels(std::string(op), target, label_table);
    check_label_values(std::string(op), target, num_classes.guard_int(__FILE__, __LINE__), meaning);
    return classes_of(target, meaning);
}

Tensor class_labels_meta(c10::string_view /*op*/, const Tensor& target, c10::SymInt /*num_classes*/,
                         int64_t /*ignore_index*/, const OptionalTensor& /*label_table*/) {
    return at::empty_symint(target.sym_sizes(), target.options().dtype(at::kLong));
}

// ---- hard masks to int8 ---------------------------------------------------------------------------------------------

Tensor class_masks_composite(c10::string_view op, const Tensor& target, int64_t ignore_index) {
    check_label_tensor(std::string(op), target);
    check_mask_values(std::string(op), target, ignore_index);
    const auto values = target.to(at::kLong); // not target.eq: in uint8, -100 is 156
    return values.to(at::kChar).masked_fill_(values.eq(ignore_index), -1);
}

Tensor class_masks_meta(c10::string_view /*op*/, const Tensor& target, int64_t /*ignore_index*/) {
    return at::empty_like(target, target.options().dtype(at::kChar));
}

// ---- labels of regions or sets to int8 masks ------------------------------------------------------------------------

void check_set_masks(const std::string& op, const Tensor& target, const Tensor& label_table,
                     const c10::SymInt& num_channels, int64_t dim) {
    check_label_tensor(op, target);
    check_dense(op, label_table, "label_table");
    TORCH_CHECK_INDEX(dim >= 0 && dim < target.dim() && target.sym_size(dim) == 1, op,
                      ": expected labels with size 1 in dimension ", dim, ", got ", target.sym_sizes());
    TORCH_CHECK_VALUE(label_table.dim() > 1 && num_channels >= 0, op,
                      ": expected a label table with sets, and num_channels of 0 or more, got ",
                      label_table.sym_sizes(), " and ", num_channels);
}

Tensor set_masks_composite(c10::string_view op, const Tensor& target, const Tensor& label_table,
                           c10::SymInt num_channels, int64_t dim, bool of_groups) {
    check_set_masks(std::string(op), target, label_table, num_channels, dim);
    const auto channels = num_channels.guard_int(__FILE__, __LINE__);
    const auto classes = class_labels_composite(op, target, INT32_MAX, /*ignore_index=*/0, label_table).squeeze(dim);
    const auto sets = sets_of_classes(label_table, channels, of_groups).to(at::kChar);
    const auto by_row = classes.reshape({sets.size(0), -1});
    std::vector<Tensor> masks;
    for (int64_t k = 0; k < sets.size(0); ++k) {
        masks.push_back(sets[k].index({by_row[k].clamp_min(0)}));
    }
    auto sizes = classes.sizes().vec();
    sizes.push_back(channels);
    return at::stack(masks).view(sizes).masked_fill_(classes.lt(0).unsqueeze(-1), -1).movedim(-1, dim);
}

Tensor set_masks_meta(c10::string_view op, const Tensor& target, const Tensor& label_table, c10::SymInt num_channels,
                      int64_t dim, bool /*of_groups*/) {
    check_set_masks(std::string(op), target, label_table, num_channels, dim);
    auto sizes = target.sym_sizes().vec();
    sizes.erase(sizes.begin() + dim);
    sizes.push_back(std::move(num_channels));
    return at::empty_symint(sizes, target.options().dtype(at::kChar)).movedim(-1, dim);
}

// ---- values in their range ------------------------------------------------------------------------------------------

Tensor check_range_composite(c10::string_view op, c10::string_view name, const Tensor& values, double low,
                             double high) {
    check_dense(std::string(op), values, "values");
    TORCH_CHECK_TYPE(is_real(values.scalar_type()), op,
                     ": expected values of dtype float64, float32, float16 or bfloat16, got ", values.scalar_type());
    check_values_in_range(std::string(op), name, values, {low, high});
    return at::zeros({}, values.options());
}

Tensor check_range_meta(c10::string_view /*op*/, c10::string_view /*name*/, const Tensor& values, double /*low*/,
                        double /*high*/) {
    return at::empty({}, values.options());
}

} // namespace

void check_one_hot(const std::string& op, const Tensor& target, int64_t dim) {
    check_label_tensor(op, target);
    TORCH_CHECK_INDEX(dim >= 0 && dim < target.dim(), op, ": expected dim in [0, ", target.dim() - 1, "], got ", dim);
}

void check_class_labels(const std::string& op, const Tensor& target, const OptionalTensor& label_table) {
    check_label_tensor(op, target);
    check_label_table(op, target, label_table, kind_of_regions(op, target, label_table, Target::labels));
}

Tensor check_range(const std::string& op, c10::string_view name, const Tensor& values, const segloss_range& range) {
    return call_operator<&check_range_composite>("check_range", op, name, values, range.low, range.high);
}

Tensor one_hot_labels(const std::string& op, const Tensor& target, int64_t dim, const std::string& advice) {
    return call_operator<&one_hot_labels_cpu>("one_hot_labels", op, target, dim, advice);
}

bool is_one_hot(const std::string& op, const Tensor& target, int64_t dim) {
    return call_operator<&is_one_hot_cpu>("is_one_hot", op, target, dim).item<bool>();
}

Tensor class_labels(const std::string& op, const Tensor& target, c10::SymInt num_classes, const Labels& labels) {
    return call_operator<&class_labels_composite>("class_labels", op, target, std::move(num_classes),
                                                  labels.ignore_index, labels.table);
}

Tensor set_masks(const std::string& op, const Tensor& target, const Tensor& label_table, c10::SymInt num_channels,
                 int64_t dim, bool of_groups) {
    return call_operator<&set_masks_composite>("set_masks", op, target, label_table, std::move(num_channels), dim,
                                               of_groups);
}

Tensor class_masks(const std::string& op, const Tensor& target, int64_t ignore_index) {
    return call_operator<&class_masks_composite>("class_masks", op, target, ignore_index);
}

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    m.def("one_hot_labels(str op, Tensor target, int dim, str advice='') -> Tensor", tags);
    m.def("is_one_hot(str op, Tensor target, int dim) -> Tensor", tags);
    m.def(
        "class_labels(str op, Tensor target, SymInt num_classes, int ignore_index, Tensor? label_table=None) -> Tensor",
        tags);
    m.def("set_masks(str op, Tensor target, Tensor label_table, SymInt num_channels, int dim, bool of_groups=False) -> "
          "Tensor",
          tags);
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
    m.impl("set_masks", TORCH_FN(set_masks_meta));
    m.impl("class_masks", TORCH_FN(class_masks_meta));
    m.impl("check_range", TORCH_FN(check_range_meta));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("one_hot_labels", TORCH_FN(one_hot_labels_composite));
    m.impl("is_one_hot", TORCH_FN(is_one_hot_composite));
    m.impl("class_labels", TORCH_FN(class_labels_composite));
    m.impl("set_masks", TORCH_FN(set_masks_composite));
    m.impl("class_masks", TORCH_FN(class_masks_composite));
    m.impl("check_range", TORCH_FN(check_range_composite));
}

} // namespace segloss
