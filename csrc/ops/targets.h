// Targets on their way to the kernels and to ATen operators.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "../kernels/kernels.h"
#include "checks.h"

namespace segloss {

// How the kernels are told what a target is; one-hot ones are labels by then.
segloss_target target_for_kernel(Target kind);

// What a kernel holds a loss's values to: class probabilities to [0, 1] but for four times the epsilon of their dtype,
// or to finite numbers where `any_finite`; the input to [0, 1] likewise where it is the probabilities. Nothing else.
struct Ranges {
    segloss_range target{};
    segloss_range logits{};
};

// Whether values are held to it at all.
inline bool is_asked(const segloss_range& range) { return range.low < range.high; }

Ranges ranges_of(const at::Tensor& input, const at::Tensor& target, Target kind, at::ScalarType compute_dtype,
                 bool any_finite = false, bool input_is_probability = false);

// Raises where a label, a mask, or a value outside its range stands at a voxel that counts: of the whole target, whose
// index the error gives. For devices without a kernel, and for what a kernel refused.
void check_values(const std::string& op, const at::Tensor& input, const at::Tensor& target,
                  const OptionalTensor& voxel_weight, Target kind, int64_t dim, int64_t ignore_index,
                  const Ranges& ranges);

// Words the error of a value that a kernel refused.
[[noreturn]] void raise_refused(const std::string& op, const at::Tensor& input, const at::Tensor& target,
                                const OptionalTensor& voxel_weight, Target kind, int64_t dim, int64_t ignore_index,
                                const Ranges& ranges);

// `op` is the name that an error gives.

// 0, of the values' dtype, after a look at them; raises where one is outside the range. Of "target" nan is outside, of
// "input" not. An operator, so that it sees the values under any transform; who adds its result keeps it in a graph.
at::Tensor check_range(const std::string& op, c10::string_view name, const at::Tensor& values,
                       const segloss_range& range);

// int32 labels of a target that is exactly one-hot along `dim`; RuntimeError at the first voxel that is not, which ends
// in `advice`.
at::Tensor one_hot_labels(const std::string& op, const at::Tensor& target, int64_t dim, const std::string& advice = "");

// Whether a target is exactly one-hot along `dim`. Looks at the values: for operators, not for what is traced.
bool is_one_hot(const std::string& op, const at::Tensor& target, int64_t dim);

// int64 labels of a target of any dtype, -1 where it is ignore_index; raises at bad labels as check_label_values does.
// For what is built from ATen operators: an operator of its own, so that it sees the values under any transform.
at::Tensor class_labels(const std::string& op, const at::Tensor& target, c10::SymInt num_classes, int64_t ignore_index);

// int8 masks of an integer target, -1 where it is ignore_index; raises as check_mask_values does. Likewise an operator.
at::Tensor class_masks(const std::string& op, const at::Tensor& target, int64_t ignore_index);

} // namespace segloss
