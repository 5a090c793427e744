// Tables that say what the labels of a data set mean. Their rows are described in kernels.h; segloss/_labels.py makes
// them. A table is one row, [n]; or rows with sets of bits, [1, n] for all voxels or [N, n] for each sample.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "../kernels/kernels.h"
#include "checks.h"

namespace segloss {

// Raises unless a table, if there is one, has the dtype and device of tables, and the target holds labels. Does not
// read its values.
void check_label_table(const std::string& op, const Tensor& target, const OptionalTensor& table, Target kind);

// What labels mean if a table may have sets: regions, or in a loss of a softmax sets of classes. RuntimeError if it has
// and the target holds no labels.
Target kind_of_regions(const std::string& op, const Tensor& target, const OptionalTensor& table, Target kind);
Target kind_of_sets(const std::string& op, const Tensor& target, const OptionalTensor& table, Target kind);

// The table for kernels that read labels at so many positions; no rows if there is none. A table in the CPU's memory is
// checked first: ValueError if labels have classes from num_classes on, which they may only if they have sets and there
// are no class weights.
segloss_label_table label_table_for_kernel(const std::string& op, const OptionalTensor& table, int64_t num_classes,
                                           int64_t num_positions, bool has_weights = false);

// Whether some label is ignored, by the values of a table in the CPU's memory.
bool table_may_ignore(const Tensor& table);

// int64 classes of labels of any dtype: SEGLOSS_IGNORED where they are ignored, and, with a table, SEGLOSS_BAD where
// they have no class. Waits for the device if there is a table.
Tensor classes_of(const Tensor& target, const Labels& labels);

// bool [rows, C, channels]: whether a channel is in the set, or group, of a class.
Tensor sets_of_classes(const Tensor& table, int64_t channels, bool of_groups);

// Raises if a label is neither ignored nor of a class in [0, num_classes), and lists such labels. Reads all values.
void check_mapped_values(const std::string& op, const Tensor& target, int64_t num_classes, const Tensor& table);

} // namespace segloss
