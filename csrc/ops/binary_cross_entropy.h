// The description of binary cross entropy for Operator, shared by binary_cross_entropy.cpp and the kernels of other
// devices.
#pragma once

#include "voxel_loss.h"

namespace segloss {

struct BinaryCrossEntropyOptions {
    int64_t dim = 1;
    int64_t reduction = at::Reduction::Mean;
    int64_t ignore_index = -100;
    double label_smoothing = 0;
    bool empty_zero = false;                          // a mean of total weight 0 is 0, not nan
    double gamma = 0;                                 // of the focal loss
    at::ScalarType dtype = at::ScalarType::Undefined; // of the loss
    int64_t upsample = 0;                             // see Resize
    bool with_gradient = false;

    static constexpr auto keywords() {
        return std::tuple(field("reduction", &BinaryCrossEntropyOptions::reduction),
                          field("ignore_index", &BinaryCrossEntropyOptions::ignore_index),
                          field("label_smoothing", &BinaryCrossEntropyOptions::label_smoothing),
                          field("empty_zero", &BinaryCrossEntropyOptions::empty_zero),
                          field("gamma", &BinaryCrossEntropyOptions::gamma),
                          field("dtype", &BinaryCrossEntropyOptions::dtype),
                          field("upsample", &BinaryCrossEntropyOptions::upsample));
    }
    static constexpr auto internal() {
        return std::tuple(field("with_gradient", &BinaryCrossEntropyOptions::with_gradient));
    }

    bool is_reduced() const { return reduction != at::Reduction::None; }
    bool is_mean() const { return reduction == at::Reduction::Mean; }
    VoxelLossOptions of_voxels() const { return {label_smoothing, gamma}; }
};

// Class weights are [C], or [2, C]: those of the terms for target 0, then those for target 1.
struct BinaryCrossEntropy : VoxelLoss<BinaryCrossEntropy, BinaryCrossEntropyOptions> {
    static constexpr auto name = "binary_cross_entropy";
    static constexpr auto node = "BinaryCrossEntropyBackward";
    static constexpr bool by_target = true;
    static constexpr bool publishes_kept = true; // the total weight, for means over the ranks of a process group

    static Target check(const Arguments& arguments, const Options& options);
    static void set_dtype(Options& options, const Arguments& arguments, Target kind);

    static VoxelKernels kernels_for(segloss_real real);
    static std::optional<double> known_total(const VoxelArguments& voxels);
    static bool is_loss_shape(const Tensor& grad_loss, const Tensor& input, const Options& options);
    static Tensor empty_losses(const Arguments& arguments, const Options& options, const Reading& reading);
    static VoxelLosses voxel_terms(const Arguments& arguments, const Options& options, const Reading& reading);
    static Tensor unreduced(const Tensor& losses, const Arguments& arguments, const Options& options,
                            const Reading& reading);
};

} // namespace segloss
