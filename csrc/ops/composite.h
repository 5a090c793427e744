// The losses in differentiable ATen operators: for second derivatives, forward-mode AD, and devices without kernels.
// The formulas, and the treatment of voxels that do not count, are those of the kernels. Labels are never made one-hot:
// the values at a voxel's label are gathered.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "arguments.h"
#include "autograd.h"

namespace segloss {

// The arguments of a loss, ready for arithmetic: every tensor keeps `dim`, and input and target are 0 in voxels that do
// not count.
struct Voxels {
    Target kind;            // probabilities instead of labels if there are no classes; target then has input's shape
    Tensor input;           // in the compute dtype
    Tensor target;          // int64 labels, or one value for each class in the compute dtype
    Tensor label;           // of sets: the int64 labels, whose sets `target` has
    OptionalTensor weight;  // v, the voxel weights
    OptionalTensor ignored; // bool, true where a voxel does not count; absent only if all voxels count
};

Voxels read_voxels(const Arguments& arguments, const Reading& reading);

// Of sets: 1 at the classes of the label's group, 0 elsewhere and where the label is ignored. Like Voxels::target.
Tensor group_masks(const Arguments& arguments, const Reading& reading);

// values * v, 0 in voxels that do not count.
Tensor weighted_values(const Voxels& voxels, const Tensor& values);

// Input's sizes, with 1 for the class dimension.
c10::SymDimVector voxel_sizes(const Tensor& input, int64_t dim);

// The weight v of each voxel, 0 where it does not count. Its sizes are voxel_sizes.
Tensor counted_weight(const Voxels& voxels, int64_t dim);

struct VoxelLosses {
    Tensor losses; // one per voxel, not multiplied by v
    Tensor shares; // each voxel's part of the mean's denominator, not multiplied by v
};

// Cross entropy or focal loss of softmax(input), or cross entropy of log probabilities.
VoxelLosses cross_entropy_losses(const Voxels& voxels, const OptionalTensor& weight, int64_t dim,
                                 const VoxelLossOptions& options);

// Binary cross entropy or focal loss of each class's logit: one per voxel and class, not multiplied by v.
Tensor binary_losses(const Voxels& voxels, const OptionalTensor& weight, int64_t dim, const VoxelLossOptions& options);

// The mean sum / total. If total is 0, it is 0 or nan (`empty_zero`), with zero gradient.
Tensor mean_loss(const Tensor& sum, const Tensor& total, bool empty_zero);

// Splits a batch into slabs, along its longest dimension other than the class dimension. On devices without a kernel
// the composite is computed slab by slab, so that its memory is a fraction of the logits'.
class Slabs {
public:
    Slabs(const Tensor& input, int64_t dim, bool splits = true);

    int64_t count() const { return count_; }
    int64_t along() const { return along_; }

    // The part in a slab of a tensor of input's or the labels' shape, or of the arguments.
    Tensor of(const Tensor& tensor, int64_t slab) const;
    Arguments of(const Arguments& arguments, int64_t slab) const;

    // The slab itself, as a part of a tensor of input's shape.
    Range range(int64_t slab) const;

    // The samples of a tensor [N, *] that have voxels in a slab.
    Tensor of_samples(const Tensor& tensor, int64_t slab) const;

private:
    Tensor of_label_table(const Tensor& table, int64_t slab) const;
    Tensor narrow(const Tensor& tensor, int64_t dim, int64_t slab) const;

    int64_t num_dims_;
    int64_t dim_;
    int64_t along_ = 0;
    int64_t length_ = 1; // of a slab, in dimension along_
    int64_t size_ = 1;   // of the whole, in dimension along_
    int64_t count_ = 1;
};

// The class of the largest logit of each voxel, slab by slab if the logits are resized; `input` stands for them.
Tensor largest_classes(const Tensor& input, const std::optional<Coarse>& coarse, int64_t dim, bool keepdim);

// How the arguments of a slab are read: by the rows of its own samples, if a label table has one for each.
inline Reading reading_of_slab(const Reading& whole, const Arguments& slab) {
    auto reading = whole;
    reading.labels.table = slab.label_table;
    return reading;
}

// The gradient of `composite` with respect to a slab of input. Works below autograd, where operators record nothing.
Tensor slab_gradient(const std::function<variable_list(const Tensor&)>& composite, const Tensor& input,
                     const variable_list& grads);

// The dtype of sums: float64, or float32 on MPS, which has no float64.
inline at::ScalarType widest_dtype(const Tensor& tensor) { return tensor.is_mps() ? at::kFloat : at::kDouble; }

} // namespace segloss
