// Between the counting operator and the kernels of every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "../kernels/kernels.h"

namespace segloss {

// Checks the arguments of confusion_counts and describes them; `dim` counted from the front, not used for label maps.
segloss_confusion confusion_for_kernel(const std::string& op, const at::Tensor& input, const at::Tensor& target,
                                       const c10::SymInt& num_classes, int64_t ignore_index, int64_t dim,
                                       bool per_class);

// Words the error of a label of either tensor that a kernel refused.
[[noreturn]] void raise_refused_labels(const std::string& op, const at::Tensor& input, const at::Tensor& target,
                                       int64_t num_classes, int64_t ignore_index);

} // namespace segloss
