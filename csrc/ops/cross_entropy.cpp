// Cross entropy, negative log likelihood and the softmax focal loss.

#include "cross_entropy.h"

#include <ATen/ScalarOps.h>

#include <cmath>
#include <limits>
#include <optional>

#include "memory.h"

namespace segloss {

// ---- checks ---------------------------------------------------------------------------------------------------------

Target CrossEntropy::check(const Arguments& arguments, const Options& options) {
    const auto& [op, input, target, weight, voxel_weight] = arguments;
    const auto kind = classify_target(op, input, target, options.dim);
    check_weight(op, input, weight, options.dim, kind);
    check_voxel_weight(op, input, voxel_weight, options.dim);
    check_label_smoothing(op, options.label_smoothing);
    check_gamma(op, options.gamma);
    if (options.gamma != 0) {
        check_labels_only(op, input, options.dim, kind);
    }
    check_ignore_index(op, kind, options.ignore_index);
    TORCH_CHECK_VALUE(options.reduction >= at::Reduction::None && options.reduction < at::Reduction::END, op,
                      ": expected reduction 0 (none), 1 (mean) or 2 (sum), got ", options.reduction);
    TORCH_CHECK_VALUE(!options.log_probabilities || (options.label_smoothing == 0 && options.gamma == 0), op,
                      ": expected label_smoothing=0 and gamma=0 with log probabilities, got ", options.label_smoothing,
                      " and ", options.gamma);
    TORCH_CHECK_VALUE(options.gamma == 0 || options.label_smoothing == 0, op,
                      ": expected label_smoothing=0 with gamma ", options.gamma, ", got ", options.label_smoothing);
    TORCH_CHECK_VALUE(options.is_reduced() || !options.with_gradient, op,
                      ": expected with_gradient=False with reduction 0 (none), got True");
    return kind;
}

// With probabilities, the loss has the promoted dtype of input and target, as in torch.
void CrossEntropy::set_dtype(Options& options, const Arguments& arguments, Target kind) {
    const auto& [op, input, target, weight, voxel_weight] = arguments;
    if (options.dtype == at::ScalarType::Undefined) {
        const auto dtype = dtype_of_loss(input);
        options.dtype = kind == Target::probabilities ? at::promote_types(dtype, target.scalar_type()) : dtype;
    }
    check_loss_dtype(op, input, options.dtype);
}

Reading CrossEntropy::read(const Arguments& arguments, const Options& options, Target kind) {
    check_loss_dtype(arguments.op, arguments.input, options.dtype);
    return {kind, options.dim, options.ignore_index, options.dtype,
            ranges_of(arguments, kind, compute_dtype(options.dtype))};
}

void CrossEntropy::check_handed(const Handed& handed, const Arguments& arguments, const Options& options) {
    const auto& [grad_loss, total_weight] = handed;
    const auto& input = arguments.input;
    const auto op = arguments.op + " backward";
    check_dense(op, grad_loss, "grad_loss");
    check_same_device(op, input, grad_loss, "grad_loss");
    TORCH_CHECK_TYPE(grad_loss.is_floating_point(), op, ": expected a floating grad_loss, got ",
                     grad_loss.scalar_type());
    check_dense(op, total_weight, "total_weight");
    check_same_device(op, input, total_weight, "total_weight");
    const bool is_one_value = options.is_reduced() || input.dim() == 1;
    TORCH_CHECK(is_one_value ? grad_loss.dim() == 0 : has_label_shape(input, grad_loss, options.dim), op,
                ": expected grad_loss of the loss's shape, got ", grad_loss.sizes(), " for target ",
                arguments.target.sizes());
    TORCH_CHECK(total_weight.numel() == 1 && total_weight.scalar_type() == widest_dtype(input), op,
                ": expected total_weight of one element of dtype ", widest_dtype(input), ", got ", total_weight.sizes(),
                " of dtype ", total_weight.scalar_type());
}

// A reduced loss computes its gradient in forward, while the logits are in the cache. Not in float16, where an unscaled
// gradient may underflow, nor if target or weight need a gradient, which the composite computes.
bool CrossEntropy::computes_gradient_ahead(const Arguments& arguments, const Options& options) {
    const auto& input = arguments.input;
    return !requires_grad_of_target(arguments) && options.is_reduced() && input.scalar_type() != at::kHalf &&
           may_hold_results(input);
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

namespace {

using Options = CrossEntropy::Options;

// The factor of the gradient: 1 / total_weight for a mean, but 0 if total_weight is 0.
double gradient_scale(double total_weight, const Options& options) {
    return !options.is_mean() ? 1 : total_weight == 0 ? 0 : 1 / total_weight;
}

using SumKernel = int64_t (*)(const segloss_cross_entropy*, int64_t begin, int64_t end, segloss_sums*);

// The kernel's sums over all positions; nothing if it refused one.
std::optional<segloss_sums> sum_over(const Chunks& chunks, SumKernel kernel, const segloss_cross_entropy& args) {
    std::vector<segloss_sums> sums(chunks.count());
    const bool accepted =
        chunks.run([&](int64_t chunk, int64_t begin, int64_t end) { return kernel(&args, begin, end, &sums[chunk]); });
    segloss_sums total{0, 0};
    for (const auto& sum : sums) {
        total.loss += sum.loss;
        total.weight += sum.weight;
    }
    return accepted ? std::optional(total) : std::nullopt;
}

// Whether each voxel has weight 1 in the mean, whatever the labels are: their number is the total then.
bool all_voxels_count(const Arguments& arguments, const Reading& reading) {
    const auto& [op, input, target, weight, voxel_weight] = arguments;
    const bool is_soft = reading.kind == Target::probabilities;
    return !voxel_weight && (is_soft || (!weight && !can_hold(target.scalar_type(), reading.ignore_index)));
}

// The reduced loss of the sums; mean_loss does the same for tensors.
double reduced_loss(const segloss_sums& total, const Options& options) {
    const double empty = options.empty_zero ? 0 : std::numeric_limits<double>::quiet_NaN();
    return !options.is_mean() ? total.loss : total.weight == 0 ? empty : total.loss / total.weight;
}

Tensor number(double value, at::ScalarType dtype) { return at::detail::scalar_tensor_static(value, dtype, at::kCPU); }

// The result of a loss that is not reduced, uninitialised.
Tensor empty_losses(const Arguments& arguments, const Options& options, const Reading& reading) {
    const auto& input = arguments.input;
    const auto losses = input.options().dtype(options.dtype);
    if (reading.kind == Target::labels && input.dim() > 1) {
        return at::empty_symint(arguments.target.sym_sizes(), losses);
    }
    c10::SymDimVector sizes(input.sym_sizes());
    sizes.erase(sizes.begin() + options.dim);
    return at::empty_symint(sizes, losses);
}

} // namespace

CrossEntropy::Results CrossEntropy::forward_cpu(const Arguments& arguments, const Options& options,
                                                const Reading& reading) {
    const auto& input = arguments.input;
    VoxelArguments voxels(arguments, reading, options.of_voxels());
    auto& args = voxels.args;
    const auto losses = options.is_reduced() ? Tensor() : empty_losses(arguments, options, reading);
    const auto gradient = options.with_gradient ? empty_output_like(input) : Tensor();
    const auto one = options.with_gradient ? number(1, options.dtype) : Tensor();
    voxels.describe_with({{&losses, &args.loss}, {&one, &args.grad_loss}, {&gradient, &args.grad_logits}});
    const auto chunks = voxels.chunks();
    const auto real = real_of(options.dtype);
    const auto sum = [&](SumKernel kernel) {
        const auto total = sum_over(chunks, kernel, args);
        if (!total) {
            raise_refused(arguments, reading);
        }
        return *total;
    };
    if (options.with_gradient) {
        const auto total_weight = !options.is_mean() ? 1
                                  : all_voxels_count(arguments, reading)
                                      ? static_cast<double>(voxels.num_voxels())
                                      : sum(kernels().cross_entropy_weight[real]).weight;
        args.grad_scale = gradient_scale(total_weight, options);
        args.stream_grad = exceeds_caches(gradient);
    }
    const auto total = sum(kernels().cross_entropy_forward[real]);
    return {losses.defined() ? losses : number(reduced_loss(total, options), options.dtype),
            number(total.weight, at::kDouble), gradient.defined() ? gradient : at::empty({0}, input.options())};
}

Tensor CrossEntropy::backward_cpu(const Handed& handed, const Arguments& arguments, const Options& options,
                                  const Reading& reading) {
    const auto& [grad_loss, total_weight] = handed;
    const auto grad_input = empty_output_like(arguments.input);
    VoxelArguments voxels(arguments, reading, options.of_voxels());
    auto& args = voxels.args;
    args.grad_scale = gradient_scale(*total_weight.const_data_ptr<double>(), options);
    args.stream_grad = exceeds_caches(grad_input);
    voxels.describe_with({{&grad_loss, &args.grad_loss}, {&grad_input, &args.grad_logits}});
    voxels.run(kernels().cross_entropy_backward[real_of(options.dtype)]);
    return grad_input;
}

// ---- shapes and dtypes only -----------------------------------------------------------------------------------------

CrossEntropy::Results CrossEntropy::shapes(const Arguments& arguments, const Options& options, const Reading& reading) {
    const auto& input = arguments.input;
    return {options.is_reduced() ? at::empty({}, input.options().dtype(options.dtype))
                                 : empty_losses(arguments, options, reading),
            at::empty({}, input.options().dtype(widest_dtype(input))),
            options.with_gradient ? at::empty_like(input) : at::empty({0}, input.options())};
}

// ---- composite: the same results in differentiable ATen operators ---------------------------------------------------

namespace {

// The losses and their shares of the mean's denominator, [N, 1, *].
VoxelLosses voxel_terms(const Arguments& arguments, const Options& options, const Reading& reading) {
    const auto voxels = read_voxels(arguments, reading);
    const auto [losses, shares] = cross_entropy_losses(voxels, arguments.weight, options.dim, options.of_voxels());
    return {weighted_values(voxels, losses), weighted_values(voxels, shares)};
}

Tensor no_gradient(const Arguments& arguments) { return at::empty({0}, arguments.input.options()); }

} // namespace

CrossEntropy::Results CrossEntropy::composite(const Arguments& arguments, const Options& options,
                                              const Reading& reading) {
    const auto& [op, input, target, weight, voxel_weight] = arguments;
    const auto [losses, shares] = voxel_terms(arguments, options, reading);
    const auto total_weight = shares.sum();
    const auto wide_weight = total_weight.to(widest_dtype(input));
    if (!options.is_reduced()) {
        const bool keeps_dim = reading.kind == Target::labels && target.dim() == input.dim() && input.dim() > 1;
        const auto loss = keeps_dim ? losses : losses.squeeze(options.dim);
        return {loss.to(options.dtype), wide_weight, no_gradient(arguments)};
    }
    const auto loss = options.is_mean() ? mean_loss(losses.sum(), total_weight, options.empty_zero) : losses.sum();
    return {loss.to(options.dtype), wide_weight, no_gradient(arguments)};
}

CrossEntropy::Results CrossEntropy::part_of_slab(const Arguments& slab, const Options& options,
                                                 const Reading& reading) {
    if (!options.is_reduced()) {
        return composite(slab, options, reading);
    }
    const auto [losses, shares] = voxel_terms(slab, options, reading);
    const auto wide = widest_dtype(slab.input);
    return {losses.sum(wide), shares.sum(wide), no_gradient(slab)};
}

variable_list CrossEntropy::grads_of_parts(const Handed& handed, const Options& options) {
    const auto& [grad_loss, total_weight] = handed;
    if (!options.is_mean()) {
        return {grad_loss};
    }
    const auto empty = total_weight.eq(0); // the gradient is then 0
    return {(grad_loss / total_weight.masked_fill(empty, 1)).masked_fill(empty, 0)};
}

CrossEntropy::Results CrossEntropy::finish(const Results& sums, const Options& options) {
    const auto& [loss, total_weight, gradient] = sums;
    return {(options.is_mean() ? mean_loss(loss, total_weight, options.empty_zero) : loss).to(options.dtype),
            total_weight, gradient};
}

namespace {

const Operator<CrossEntropy>::Registration cross_entropy; // NOLINT(bugprone-throwing-static-initialization): as torch's

} // namespace
} // namespace segloss
