// Exact one-hot targets read as labels.
#pragma once

#include <ATen/core/Tensor.h>

namespace segloss {

// int32 labels of an integer target that is one-hot along `dim`; RuntimeError at the first voxel that is not.
at::Tensor one_hot_labels(const at::Tensor& target, int64_t dim);

} // namespace segloss
