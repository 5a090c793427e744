// Predictions against labels: what is counted of them, for the metrics and the kernels of every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "../kernels/kernels.h"

namespace segloss {

// What a number of classes that the labels alone say may take, and what the tables of all threads may take together: of
// int64, 128 MiB.
constexpr int64_t kMaxCells = int64_t{1} << 24;

// A prediction, logits or a map of predicted labels, and the labels that it is compared with; or masks of both.
struct Comparison {
    std::string op; // the name that errors give
    at::Tensor input;
    at::Tensor target;
    int64_t ignore_index;
    int64_t dim; // of the classes; operators count it from the front
};

// The operators, through the dispatcher. A voxel whose label is ignore_index does not count.

// int64 [C, C], row = label, column = prediction; or per class [3, C]: true positives, false positives, false
// negatives. `dim` is not used for label maps.
at::Tensor confusion_counts(const Comparison& given, const c10::SymInt& num_classes, bool per_class);

// The classes of two label maps: 1 + their largest label. RuntimeError where both are one-hot along `mask_dim`, here
// and below.
int64_t num_label_classes(const Comparison& maps, std::optional<int64_t> mask_dim);

// int64 [2]: the voxels where two label maps agree, and all.
at::Tensor equal_label_counts(const Comparison& maps, std::optional<int64_t> mask_dim);

// int64 [4, C] of masks of one shape: true positives, false positives, false negatives, true negatives. A voxel that is
// ignore_index in a class counts in none.
at::Tensor mask_counts(const Comparison& masks);

// Parts of them.

// TypeError unless the tensors can be read.
void check_tensors(const Comparison& given);

// Raises for masks where label maps were expected. `kind`: what both are along `dim`.
[[noreturn]] void raise_no_label_maps(const Comparison& maps, int64_t dim, const char* kind);

// The voxels that count.
at::Tensor valid_voxels(const Comparison& given);

// Checks the arguments of confusion_counts and describes them to a kernel.
segloss_confusion confusion_for_kernel(const Comparison& given, const c10::SymInt& num_classes, bool per_class);

// Words the error of a label of either tensor that a kernel refused.
[[noreturn]] void raise_refused_labels(const Comparison& given, int64_t num_classes);

// A function that counts, with the arguments of confusion_counts' schema.
template <at::Tensor (*count)(const Comparison&, const c10::SymInt& num_classes, bool per_class)>
at::Tensor confusion_counts_by(c10::string_view op, const at::Tensor& input, const at::Tensor& target,
                               c10::SymInt num_classes, int64_t ignore_index, int64_t dim, bool per_class) {
    return count({std::string(op), input, target, ignore_index, dim}, num_classes, per_class);
}

} // namespace segloss
