// Binary cross entropy and binary focal loss of each class.

#include "binary_cross_entropy.h"

namespace segloss {

// ---- checks ---------------------------------------------------------------------------------------------------------

Target BinaryCrossEntropy::check(const Arguments& arguments, const Options& options) {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
    const auto kind = kind_of_regions(op, target, label_table,
                                      classify_target(op, input, target, options.dim, /*takes_masks=*/!label_table));
    const bool has_two_rows = weight && weight->dim() == 2 && weight->sym_size(0) == 2;
    const auto numbers = kind == Target::labels ? kind : Target::probabilities;
    check_weight(op, input, has_two_rows ? OptionalTensor(weight->select(0, 0)) : weight, options.dim, numbers);
    check_voxel_weight(op, input, voxel_weight, options.dim);
    check_label_smoothing(op, options.label_smoothing);
    check_gamma(op, options.gamma);
    check_ignore_index(op, kind, options.ignore_index);
    check_label_table(op, target, label_table, kind);
    check_reduction(op, options);
    return kind;
}

void BinaryCrossEntropy::set_dtype(Options& options, const Arguments& arguments, Target /*kind*/) {
    if (options.dtype == at::ScalarType::Undefined) {
        options.dtype = dtype_of_loss(arguments.input);
    }
    check_loss_dtype(arguments.op, arguments.input, options.dtype);
}

bool BinaryCrossEntropy::is_loss_shape(const Tensor& grad_loss, const Tensor& input, const Options& /*options*/) {
    return grad_loss.sym_sizes() == input.sym_sizes();
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

VoxelKernels BinaryCrossEntropy::kernels_for(segloss_real real) {
    return {kernels().binary_weight[real], kernels().binary_forward[real], kernels().binary_backward[real]};
}

// The number of losses, if each voxel counts whatever its target is.
std::optional<double> BinaryCrossEntropy::known_total(const VoxelArguments& voxels) {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = voxels.arguments;
    const auto& reading = voxels.reading;
    const bool has_ignored = reading.kind != Target::probabilities && voxels.may_ignore();
    return voxel_weight || has_ignored ? std::nullopt : std::optional(static_cast<double>(input.numel()));
}

Tensor BinaryCrossEntropy::empty_losses(const Arguments& arguments, const Options& options,
                                        const Reading& /*reading*/) {
    return at::empty_like(arguments.input, arguments.input.options().dtype(options.dtype));
}

// ---- composite: the same results in differentiable ATen operators ---------------------------------------------------

VoxelLosses BinaryCrossEntropy::voxel_terms(const Arguments& arguments, const Options& options,
                                            const Reading& reading) {
    const auto voxels = read_voxels(arguments, reading);
    const auto losses = binary_losses(voxels, arguments.weight, options.dim, options.of_voxels());
    return {weighted_values(voxels, losses),
            counted_weight(voxels, options.dim) * arguments.input.sym_size(options.dim)};
}

Tensor BinaryCrossEntropy::unreduced(const Tensor& losses, const Arguments& /*arguments*/, const Options& /*options*/,
                                     const Reading& /*reading*/) {
    return losses;
}

namespace {

const Operator<BinaryCrossEntropy>::Registration
    binary_cross_entropy; // NOLINT(bugprone-throwing-static-initialization): as torch's

} // namespace
} // namespace segloss
