// The description of cross entropy for Operator, shared by cross_entropy.cpp and the kernels of other devices.
#pragma once

#include "voxel_loss.h"

namespace segloss {

struct CrossEntropyOptions {
    int64_t dim = 1;
    int64_t reduction = at::Reduction::Mean;
    int64_t ignore_index = -100;
    double label_smoothing = 0;
    bool log_probabilities = false;
    bool empty_zero = false;                          // a mean of total weight 0 is 0, not nan
    double gamma = 0;                                 // of the focal loss
    at::ScalarType dtype = at::ScalarType::Undefined; // of the loss
    int64_t upsample = 0;                             // see Resize
    bool with_gradient = false;

    static constexpr auto keywords() {
        return std::tuple(field("reduction", &CrossEntropyOptions::reduction),
                          field("ignore_index", &CrossEntropyOptions::ignore_index),
                          field("label_smoothing", &CrossEntropyOptions::label_smoothing),
                          field("log_probabilities", &CrossEntropyOptions::log_probabilities),
                          field("empty_zero", &CrossEntropyOptions::empty_zero),
                          field("gamma", &CrossEntropyOptions::gamma), field("dtype", &CrossEntropyOptions::dtype),
                          field("upsample", &CrossEntropyOptions::upsample));
    }
    static constexpr auto internal() { return std::tuple(field("with_gradient", &CrossEntropyOptions::with_gradient)); }

    bool is_reduced() const { return reduction != at::Reduction::None; }
    bool is_mean() const { return reduction == at::Reduction::Mean; }
    VoxelLossOptions of_voxels() const { return {label_smoothing, gamma, log_probabilities}; }
};

struct CrossEntropy : VoxelLoss<CrossEntropy, CrossEntropyOptions> {
    static constexpr auto name = "cross_entropy";
    static constexpr auto node = "CrossEntropyBackward";
    static constexpr bool by_target = true;

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
