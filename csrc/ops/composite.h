// The losses as differentiable ATen operators: for second derivatives, torch.func transforms, forward-mode AD, and
// devices without kernels. Same formulas and same treatment of voxels that do not count as the kernels. Labels are
// never made one-hot: what belongs to a voxel's label is gathered there.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "checks.h"

namespace segloss {

// What a loss reads, ready to multiply: `dim` is kept everywhere, and voxels that do not count stand at harmless
// values.
struct Voxels {
    Tensor input;           // in the dtype that is computed in
    Tensor target;          // int64 labels, or one value for each class in input's dtype
    OptionalTensor weight;  // v
    OptionalTensor ignored; // bool; nothing where no voxel can be left out
};

Voxels read_voxels(const std::string& op, const Tensor& input, const Tensor& target, const OptionalTensor& voxel_weight,
                   Target kind, int64_t dim, int64_t ignore_index, at::ScalarType dtype);

// values * v, 0 in voxels that do not count.
Tensor weighted_values(const Voxels& voxels, const Tensor& values);

// v of each voxel, 0 where it does not count: as large as input's other dimensions.
Tensor counted_weight(const Voxels& voxels, int64_t dim);

struct VoxelLosses {
    Tensor losses; // one per voxel, without v
    Tensor shares; // of the mean's denominator, without v
};

// Cross entropy of softmax(input), or of log probabilities, or the focal loss of it.
VoxelLosses cross_entropy_losses(const Voxels& voxels, Target kind, bool log_probabilities,
                                 const OptionalTensor& weight, int64_t dim, double label_smoothing, double gamma);

// Binary cross entropy of each class's logit by itself, or the focal loss of it: one per voxel and class, without v.
Tensor binary_losses(const Voxels& voxels, Target kind, const OptionalTensor& weight, int64_t dim,
                     double label_smoothing, double gamma);

} // namespace segloss
