// Operators that convert targets or check values. As operators, they see the values under any transform.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "../kernels/kernels.h"
#include "checks.h"

namespace segloss {

// `op` is the name in error messages.

// Raises if a value is outside the range; nan is outside for the name "target", not for "input". Returns 0 in the
// values' dtype, for the caller to add to its own result: this keeps the check in a traced graph.
at::Tensor check_range(const std::string& op, c10::string_view name, const at::Tensor& values,
                       const segloss_range& range);

// int32 labels of a target that is exactly one-hot along `dim`. RuntimeError at the first voxel that is not, with
// `advice` at its end.
at::Tensor one_hot_labels(const std::string& op, const at::Tensor& target, int64_t dim, const std::string& advice = "");

// Raises unless a target can be one-hot along `dim`.
void check_one_hot(const std::string& op, const at::Tensor& target, int64_t dim);

// Whether a target is exactly one-hot along `dim`. Reads the values: only for use within operators, not in traced code.
bool is_one_hot(const std::string& op, const at::Tensor& target, int64_t dim);

// int64 classes of labels of any dtype, -1 where they are ignored; raises for bad labels as check_label_values does.
// For the composites, which consist of ATen operators otherwise.
at::Tensor class_labels(const std::string& op, const at::Tensor& target, c10::SymInt num_classes, const Labels& labels);

// Raises unless a target can hold labels, which the table maps to classes.
void check_class_labels(const std::string& op, const at::Tensor& target, const std::optional<at::Tensor>& label_table);

// int8 masks of the sets, or groups, of labels, -1 where the label is ignored; raises for bad labels as
// check_label_values does. `target` has size 1 in `dim`, where the result has the channels.
at::Tensor set_masks(const std::string& op, const at::Tensor& target, const at::Tensor& label_table,
                     c10::SymInt num_channels, int64_t dim, bool of_groups = false);

// int8 masks of a target, -1 where it is ignore_index; raises as check_mask_values does.
at::Tensor class_masks(const std::string& op, const at::Tensor& target, int64_t ignore_index);

} // namespace segloss
