// The losses as differentiable ATen operators: for second derivatives, torch.func transforms, forward-mode AD, and
// devices without kernels. Same formulas and same treatment of voxels that do not count as the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "checks.h"

namespace segloss {

// What a loss reads, ready to multiply: `dim` is kept everywhere, and voxels that do not count stand at harmless
// values.
struct Voxels {
    Tensor input;   // in the dtype that is computed in
    Tensor target;  // int64 labels, or one value for each class in input's dtype
    Tensor weight;  // v; 0-dim where there is none
    Tensor ignored; // bool
};

Voxels read_voxels(const std::string& op, const Tensor& input, const Tensor& target, const OptionalTensor& voxel_weight,
                   Target kind, int64_t dim, int64_t ignore_index, at::ScalarType dtype);

// v of each voxel, 0 where it does not count.
Tensor counted_weight(const Voxels& voxels);

// One target value for each class: `target` itself, or one-hot of labels.
Tensor class_targets(const Voxels& voxels, Target kind, int64_t dim);

// -log p_c of every class, p = softmax(input).
Tensor negative_log_softmax(const Tensor& input, int64_t dim);

struct VoxelLosses {
    Tensor losses; // one per voxel, without v
    Tensor shares; // of the mean's denominator, without v
};

// Cross entropy, or the focal loss of it, of nll = -log p.
VoxelLosses cross_entropy_losses(const Voxels& voxels, Target kind, const Tensor& nll, const OptionalTensor& weight,
                                 int64_t dim, double label_smoothing, double gamma);

// Binary cross entropy of each class's logit by itself, or the focal loss of it: one per voxel and class, without v.
Tensor binary_losses(const Voxels& voxels, Target kind, const OptionalTensor& weight, int64_t dim,
                     double label_smoothing, double gamma);

// losses * v, 0 in voxels that do not count.
Tensor weighted_losses(const Voxels& voxels, const Tensor& losses);

} // namespace segloss
