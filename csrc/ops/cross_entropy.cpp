// Cross entropy, negative log likelihood and the softmax focal loss.

#include "cross_entropy.h"

namespace segloss {

// ---- checks ---------------------------------------------------------------------------------------------------------

Target CrossEntropy::check(const Arguments& arguments, const Options& options) {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
    const auto kind = kind_of_sets(op, target, label_table, classify_target(op, input, target, options.dim));
    check_weight(op, input, weight, options.dim, kind);
    check_voxel_weight(op, input, voxel_weight, options.dim);
    check_label_smoothing(op, options.label_smoothing);
    check_gamma(op, options.gamma);
    if (options.gamma != 0) {
        check_labels_only(op, input, options.dim, kind);
    }
    check_ignore_index(op, kind, options.ignore_index);
    check_label_table(op, target, label_table, kind);
    check_reduction(op, options);
    TORCH_CHECK_VALUE(!options.log_probabilities || (options.label_smoothing == 0 && options.gamma == 0), op,
                      ": expected label_smoothing=0 and gamma=0 with log probabilities, got ", options.label_smoothing,
                      " and ", options.gamma);
    TORCH_CHECK_VALUE(options.gamma == 0 || options.label_smoothing == 0, op,
                      ": expected label_smoothing=0 with gamma ", options.gamma, ", got ", options.label_smoothing);
    return kind;
}

// With probabilities, the loss has the promoted dtype of input and target, as in torch.
void CrossEntropy::set_dtype(Options& options, const Arguments& arguments, Target kind) {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
    if (options.dtype == at::ScalarType::Undefined) {
        const auto dtype = dtype_of_loss(input);
        options.dtype = kind == Target::probabilities ? at::promote_types(dtype, target.scalar_type()) : dtype;
    }
    check_loss_dtype(op, input, options.dtype);
}

bool CrossEntropy::is_loss_shape(const Tensor& grad_loss, const Tensor& input, const Options& options) {
    return input.dim() == 1 ? grad_loss.dim() == 0 : has_label_shape(input, grad_loss, options.dim);
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

VoxelKernels CrossEntropy::kernels_for(segloss_real real) {
    return {kernels().cross_entropy_weight[real], kernels().cross_entropy_forward[real],
            kernels().cross_entropy_backward[real]};
}

// The number of voxels, if each has weight 1 in the mean whatever its label is.
std::optional<double> CrossEntropy::known_total(const VoxelArguments& voxels) {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = voxels.arguments;
    const auto& reading = voxels.reading;
    const bool is_soft = reading.kind == Target::probabilities;
    const bool all_count = !voxel_weight && (is_soft || (!weight && !voxels.may_ignore()));
    return all_count ? std::optional(static_cast<double>(voxels.num_voxels())) : std::nullopt;
}

Tensor CrossEntropy::empty_losses(const Arguments& arguments, const Options& options, const Reading& reading) {
    const auto& input = arguments.input;
    const auto losses = input.options().dtype(options.dtype);
    if (reading.kind != Target::probabilities && input.dim() > 1) {
        return at::empty_symint(arguments.target.sym_sizes(), losses);
    }
    c10::SymDimVector sizes(input.sym_sizes());
    sizes.erase(sizes.begin() + options.dim);
    return at::empty_symint(sizes, losses);
}

// ---- composite: the same results in differentiable ATen operators ---------------------------------------------------

VoxelLosses CrossEntropy::voxel_terms(const Arguments& arguments, const Options& options, const Reading& reading) {
    const auto voxels = read_voxels(arguments, reading);
    const auto [losses, shares] = cross_entropy_losses(voxels, arguments.weight, options.dim, options.of_voxels());
    return {weighted_values(voxels, losses), weighted_values(voxels, shares)};
}

// From [N, 1, *].
Tensor CrossEntropy::unreduced(const Tensor& losses, const Arguments& arguments, const Options& options,
                               const Reading& reading) {
    const auto& input = arguments.input;
    const bool keeps_dim =
        reading.kind != Target::probabilities && arguments.target.dim() == input.dim() && input.dim() > 1;
    return keeps_dim ? losses : losses.squeeze(options.dim);
}

namespace {

const Operator<CrossEntropy>::Registration cross_entropy; // NOLINT(bugprone-throwing-static-initialization): as torch's

} // namespace
} // namespace segloss
