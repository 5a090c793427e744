// Counts of predictions against labels, for the metrics and for the kernels of every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "../kernels/kernels.h"
#include "checks.h"
#include "resized_walk.h"

namespace segloss {

// A limit for int64 counts, 128 MiB: for all counts if only the labels tell the number of classes, and for the tables
// of all threads together.
constexpr int64_t kMaxCells = int64_t{1} << 24;

// A prediction (logits or a map of predicted labels) and the labels to compare it with, or masks of both.
struct Comparison {
    std::string op; // the name in error messages
    at::Tensor input;
    at::Tensor target;
    Labels labels;
    int64_t dim;                                 // the class dimension; the operators expect it counted from the front
    std::optional<Coarse> coarse = std::nullopt; // as in Arguments
    bool per_sample = false;                     // each sample has counts of its own
};

// Calls of the operators through the dispatcher. A voxel whose label is ignored does not count.

// int64 [C, C], row = label, column = prediction; if `per_class`, [3, C]: true positives, false positives, false
// negatives. `dim` is not used for label maps. Here and below, counts `per_sample` have a dimension of N before C.
at::Tensor confusion_counts(const Comparison& given, const c10::SymInt& num_classes, bool per_class);

// The number of classes of two label maps: 1 + their largest label, for which the host waits. Here and below:
// RuntimeError if both maps are one-hot along `mask_dim`.
int64_t num_label_classes(const Comparison& maps, std::optional<int64_t> mask_dim);

// int64 [2], or [2, N]: the number of voxels that count where two label maps agree, and of all voxels that count.
at::Tensor equal_label_counts(const Comparison& maps, std::optional<int64_t> mask_dim);

// int64 [4, C] for masks of one shape: true positives, false positives, false negatives, true negatives. A voxel whose
// target is ignore_index in any class does not count.
at::Tensor mask_counts(const Comparison& masks);

// Parts of the operators.

// Raises unless the tensors are dense, on one device, and target can hold labels.
void check_tensors(const Comparison& given);

// Raises unless `dim` is a dimension of input.
void check_dim(const Comparison& given);

// Raises the error for masks in place of label maps. `kind` says what both are along `dim`.
[[noreturn]] void raise_no_label_maps(const Comparison& maps, int64_t dim, const char* kind);

// The dimension of samples, where the class dimension is `dim`.
constexpr int64_t sample_dim(int64_t dim) { return dim == 0 ? 1 : 0; }

// The number of samples whose counts are apart; 1 if all are counted together.
c10::SymInt num_counted_apart(const Comparison& given);

// Raises unless both tensors are label maps of one shape.
void check_maps(const Comparison& maps);

// The same, and raises if both are one-hot along `mask_dim`, for which the host waits.
void check_label_maps(const Comparison& maps, std::optional<int64_t> mask_dim);

// Raises unless both tensors can be masks for each class.
void check_masks(const Comparison& masks);

// Describes two label maps, whose labels can have any value, to a kernel.
segloss_confusion maps_for_kernel(const Comparison& maps);

// True at voxels that count.
at::Tensor valid_voxels(const Comparison& given);

// The counts in ATen operators, for devices without a kernel.
at::Tensor confusion_counts_composite(const Comparison& given, const c10::SymInt& num_classes, bool per_class);
at::Tensor equal_label_counts_composite(const Comparison& maps, std::optional<int64_t> mask_dim);
at::Tensor mask_counts_composite(const Comparison& masks);

// Checks the arguments of confusion_counts and describes them to a kernel.
segloss_confusion confusion_for_kernel(const Comparison& given, const c10::SymInt& num_classes, bool per_class);

// Raises the error for a label of either tensor that a kernel refused.
[[noreturn]] void raise_refused_labels(const Comparison& given, int64_t num_classes);

// Gives the function `count` the arguments of confusion_counts' schema.
template <at::Tensor (*count)(const Comparison&, const c10::SymInt& num_classes, bool per_class)>
at::Tensor confusion_counts_by(c10::string_view op, const at::Tensor& input, const at::Tensor& target,
                               c10::SymInt num_classes, int64_t ignore_index, int64_t dim, bool per_class,
                               const std::optional<at::Tensor>& label_table, int64_t upsample, bool per_sample) {
    Comparison given{std::string(op), input, target, {ignore_index, label_table}, dim, std::nullopt, per_sample};
    if (upsample != 0) {
        check_tensors(given);
        check_dim(given);
        given.coarse = take_full_size(given.op, given.input, target, dim, upsample);
    }
    return count(given, num_classes, per_class);
}

// The same for the operators of label maps and of masks.

template <at::Tensor (*count)(const Comparison&, std::optional<int64_t> mask_dim)>
at::Tensor num_label_classes_by(c10::string_view op, const at::Tensor& input, const at::Tensor& target,
                                int64_t ignore_index, std::optional<int64_t> dim,
                                const std::optional<at::Tensor>& label_table) {
    return count({std::string(op), input, target, {ignore_index, label_table}, 0}, dim);
}

template <at::Tensor (*count)(const Comparison&, std::optional<int64_t> mask_dim)>
at::Tensor equal_label_counts_by(c10::string_view op, const at::Tensor& input, const at::Tensor& target,
                                 int64_t ignore_index, std::optional<int64_t> dim,
                                 const std::optional<at::Tensor>& label_table, bool per_sample) {
    return count({std::string(op), input, target, {ignore_index, label_table}, 0, std::nullopt, per_sample}, dim);
}

template <at::Tensor (*count)(const Comparison&)>
at::Tensor mask_counts_by(c10::string_view op, const at::Tensor& input, const at::Tensor& target, int64_t ignore_index,
                          int64_t dim, bool per_sample) {
    return count({std::string(op), input, target, {ignore_index}, dim, std::nullopt, per_sample});
}

} // namespace segloss
