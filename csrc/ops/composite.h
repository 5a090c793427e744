// The losses as differentiable ATen operators: for second derivatives, forward-mode AD, and devices without kernels.
// Same formulas and same treatment of voxels that do not count as the kernels. Labels are never made one-hot: what
// belongs to a voxel's label is gathered there.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "arguments.h"
#include "autograd.h"

namespace segloss {

// What a loss reads, ready to multiply: `dim` is kept everywhere, and voxels that do not count stand at harmless
// values.
struct Voxels {
    Target kind;            // not labels where there is no class for them: then target has input's shape
    Tensor input;           // in the dtype that is computed in
    Tensor target;          // int64 labels, or one value for each class in input's dtype
    OptionalTensor weight;  // v
    OptionalTensor ignored; // bool; nothing where no voxel can be left out
};

Voxels read_voxels(const Arguments& arguments, const Reading& reading);

// values * v, 0 in voxels that do not count.
Tensor weighted_values(const Voxels& voxels, const Tensor& values);

// Input's sizes, but 1 for the classes.
c10::SymDimVector voxel_sizes(const Tensor& input, int64_t dim);

// v of each voxel, 0 where it does not count: of voxel_sizes.
Tensor counted_weight(const Voxels& voxels, int64_t dim);

struct VoxelLosses {
    Tensor losses; // one per voxel, without v
    Tensor shares; // of the mean's denominator, without v
};

// Cross entropy of softmax(input), or of log probabilities, or the focal loss of it.
VoxelLosses cross_entropy_losses(const Voxels& voxels, const OptionalTensor& weight, int64_t dim,
                                 const VoxelLossOptions& options);

// Binary cross entropy of each class's logit by itself, or the focal loss of it: one per voxel and class, without v.
Tensor binary_losses(const Voxels& voxels, const OptionalTensor& weight, int64_t dim, const VoxelLossOptions& options);

// sum / total, the one way to finish a mean: without gradient where total is 0.
Tensor mean_loss(const Tensor& sum, const Tensor& total, bool empty_zero);

// The slabs of a batch, along its longest dimension but that of the classes: on devices without a kernel a walk over
// the logits is the composite of one slab after the other, whose memory is a fraction of the logits'.
class Slabs {
public:
    Slabs(const Tensor& input, int64_t dim);

    int64_t count() const { return count_; }

    // A tensor of input's shape or of the labels', or its part in a slab.
    Tensor of(const Tensor& tensor, int64_t slab) const;
    Arguments of(const Arguments& arguments, int64_t slab) const;

    // Of a tensor [N, *] of samples: those that have a part in a slab.
    Tensor of_samples(const Tensor& tensor, int64_t slab) const;

private:
    Tensor narrow(const Tensor& tensor, int64_t dim, int64_t slab) const;

    int64_t num_dims_;
    int64_t dim_;
    int64_t along_ = 0;
    int64_t length_ = 1; // of a slab
    int64_t size_ = 1;   // of all
    int64_t count_ = 1;
};

// The derivative of `composite` by a slab of input, where no gradient is recorded, as below autograd.
Tensor slab_gradient(const std::function<variable_list(const Tensor&)>& composite, const Tensor& input,
                     const variable_list& grads);

// In which sums are taken: not every device has float64.
inline at::ScalarType widest_dtype(const Tensor& tensor) { return tensor.is_mps() ? at::kFloat : at::kDouble; }

} // namespace segloss
