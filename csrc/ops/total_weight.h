// The arguments of total_weight, for the kernels of every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "../kernels/kernels.h"
#include "checks.h"

namespace segloss {

// Checks the arguments, and describes them to a kernel that adds weights. Keeps the tensors that it points to.
struct WeightArguments {
    WeightArguments(const std::string& op, const Tensor& target, const OptionalTensor& weight,
                    const OptionalTensor& voxel_weight, int64_t num_classes, const Labels& labels);
    WeightArguments(const WeightArguments&) = delete;
    WeightArguments& operator=(const WeightArguments&) = delete;

    Tensor class_weight, voxel_weight;
    segloss_cross_entropy args{};
};

} // namespace segloss
