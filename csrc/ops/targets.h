// Targets on their way to the kernels and to ATen operators.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "../kernels/kernels.h"
#include "checks.h"

namespace segloss {

// How the kernels are told what a target is; one-hot ones are labels by then.
segloss_target target_for_kernel(Target kind);

// Words the error of a label or mask that a kernel refused.
[[noreturn]] void raise_refused_target(const std::string& op, const at::Tensor& target, Target kind,
                                       int64_t num_classes, int64_t ignore_index);

// `op` is the name that an error gives.

// int32 labels of a target that is exactly one-hot along `dim`; RuntimeError at the first voxel that is not.
at::Tensor one_hot_labels(const std::string& op, const at::Tensor& target, int64_t dim);

// int64 labels of a target of any dtype, -1 where it is ignore_index; raises at bad labels as check_label_values does.
// For what is built from ATen operators: an operator of its own, so that it sees the values under any transform.
at::Tensor class_labels(const std::string& op, const at::Tensor& target, c10::SymInt num_classes, int64_t ignore_index);

// int8 masks of an integer target, -1 where it is ignore_index; raises as check_mask_values does. Likewise an operator.
at::Tensor class_masks(const std::string& op, const at::Tensor& target, int64_t ignore_index);

} // namespace segloss
