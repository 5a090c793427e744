// Operators that make labels and masks of targets, and look at values under any transform.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "../kernels/kernels.h"
#include "checks.h"

namespace segloss {

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
