// Targets read as labels.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace segloss {

// `op` is the name that an error gives.

// int32 labels of a target that is exactly one-hot along `dim`; RuntimeError at the first voxel that is not.
at::Tensor one_hot_labels(const std::string& op, const at::Tensor& target, int64_t dim);

// int64 labels of a target of any dtype, -1 where it is ignore_index; raises at bad labels as check_label_values does.
// For what is built from ATen operators: an operator of its own, so that it sees the values under any transform.
at::Tensor class_labels(const std::string& op, const at::Tensor& target, c10::SymInt num_classes, int64_t ignore_index);

} // namespace segloss
