// What cross entropy and binary cross entropy share: a loss of each voxel (or of each class of a voxel), its sum or its
// mean, and a gradient that is computed together with these.
#pragma once

#include <ATen/core/Reduction.h>

#include <limits>
#include <optional>

#include "memory.h"
#include "operator.h"

namespace segloss {

// The kernels of a loss: of the weights alone, of losses and weights, and of the gradient.
struct VoxelKernels {
    SumKernel weight;
    SumKernel forward;
    GradientKernel backward;
};

// A loss defines, besides what loss.h lists,
//
//   kernels_for       its kernels
//   known_total       the total weight, if it does not depend on values: optional<double>
//   empty_losses      the losses if they are not reduced, uninitialised
//   voxel_terms       in ATen operators, the losses and their shares of the mean's denominator, weighted
//   unreduced         these losses in the shape of empty_losses
//   is_loss_shape     whether a gradient has that shape
template <class Loss, class LossOptions> struct VoxelLoss : LossDefaults<Loss> {
    using Options = LossOptions;
    static constexpr std::array results{Result{"loss", Role::differentiable}, Result{"total_weight", Role::kept},
                                        Result{"gradient", Role::ahead}};
    using Results = Tensors<3>;
    using Handed = Tensors<2>;

    // ---- checks -----------------------------------------------------------------------------------------------------

    static void check_reduction(const std::string& op, const Options& options) {
        TORCH_CHECK_VALUE(options.reduction >= at::Reduction::None && options.reduction < at::Reduction::END, op,
                          ": expected reduction 0 (none), 1 (mean) or 2 (sum), got ", options.reduction);
        TORCH_CHECK_VALUE(options.is_reduced() || !options.with_gradient, op,
                          ": expected with_gradient=False with reduction 0 (none), got True");
    }

    static Reading read(const Arguments& arguments, const Options& options, Target kind) {
        check_loss_dtype(arguments.op, arguments.input, options.dtype);
        return {kind,
                options.dim,
                {options.ignore_index, arguments.label_table},
                options.dtype,
                ranges_of(arguments, kind, compute_dtype(options.dtype))};
    }

    static void check_handed(const Handed& handed, const Arguments& arguments, const Options& options) {
        const auto& [grad_loss, total_weight] = handed;
        const auto& input = arguments.input;
        const auto op = arguments.op + " backward";
        check_dense(op, grad_loss, "grad_loss");
        check_same_device(op, input, grad_loss, "grad_loss");
        TORCH_CHECK_TYPE(grad_loss.is_floating_point(), op, ": expected a floating grad_loss, got ",
                         grad_loss.scalar_type());
        check_dense(op, total_weight, "total_weight");
        check_same_device(op, input, total_weight, "total_weight");
        TORCH_CHECK(options.is_reduced() ? grad_loss.dim() == 0 : Loss::is_loss_shape(grad_loss, input, options), op,
                    ": expected grad_loss of the loss's shape, got ", grad_loss.sizes(), " for input ", input.sizes(),
                    " and target ", arguments.target.sizes());
        TORCH_CHECK(total_weight.numel() == 1 && total_weight.scalar_type() == widest_dtype(input), op,
                    ": expected total_weight of one element of dtype ", widest_dtype(input), ", got ",
                    total_weight.sizes(), " of dtype ", total_weight.scalar_type());
    }

    // A reduced loss computes its gradient in forward, while the logits are in the cache. Not in float16, where an
    // unscaled gradient may underflow, nor if target or weight need a gradient, which the composite computes.
    static bool computes_gradient_ahead(const Arguments& arguments, const Options& options) {
        const auto& logits = arguments.logits();
        return !requires_grad_of_target(arguments) && options.is_reduced() && logits.scalar_type() != at::kHalf &&
               may_hold_results(logits);
    }

    // ---- CPU --------------------------------------------------------------------------------------------------------

    static Results forward_cpu(const Arguments& arguments, const Options& options, const Reading& reading) {
        const auto& input = arguments.input;
        VoxelArguments voxels(arguments, reading, options.of_voxels());
        auto& args = voxels.args;
        const auto losses = options.is_reduced() ? Tensor() : Loss::empty_losses(arguments, options, reading);
        const auto gradient = options.with_gradient ? empty_gradient(arguments, reading) : Tensor();
        const auto one = options.with_gradient ? number(1, options.dtype) : Tensor();
        voxels.describe_with({{&losses, &args.loss}, {&one, &args.grad_loss}}, gradient);
        const auto kernels = Loss::kernels_for(real_of(options.dtype));
        if (options.with_gradient) {
            const auto known = options.is_mean() ? Loss::known_total(voxels) : 1;
            const auto total_weight = known ? *known : voxels.sum_without_logits(kernels.weight).weight;
            args.grad_scale = gradient_scale(total_weight, options);
            args.stream_grad = !voxels.walk && exceeds_caches(gradient);
        }
        const auto total = voxels.sum(kernels.forward);
        return {losses.defined() ? losses : number(reduced_loss(total, options), options.dtype), number(total.weight),
                gradient.defined() ? finished_gradient(gradient, arguments) : no_gradient(input)};
    }

    static Tensor backward_cpu(const Handed& handed, const Arguments& arguments, const Options& options,
                               const Reading& reading) {
        const auto gradient = empty_gradient(arguments, reading);
        write_gradient_cpu(gradient, handed, arguments, options, reading);
        return finished_gradient(gradient, arguments);
    }

    static void rewrite_gradient_cpu(const Tensor& gradient, const Handed& handed, const Arguments& arguments,
                                     const Options& options, const Reading& reading) {
        if (arguments.coarse) { // the kernels add to a gradient of the compute dtype
            gradient.copy_(backward_cpu(handed, arguments, options, reading));
        } else {
            write_gradient_cpu(gradient, handed, arguments, options, reading);
        }
    }

    // ---- shapes and dtypes only -------------------------------------------------------------------------------------

    static Results shapes(const Arguments& arguments, const Options& options, const Reading& reading) {
        const auto& input = arguments.input;
        return {options.is_reduced() ? at::empty({}, input.options().dtype(options.dtype))
                                     : Loss::empty_losses(arguments, options, reading),
                at::empty({}, input.options().dtype(widest_dtype(input))),
                options.with_gradient ? at::empty_like(arguments.logits()) : no_gradient(input)};
    }

    // ---- composite: the same results in differentiable ATen operators -----------------------------------------------

    static Results composite(const Arguments& arguments, const Options& options, const Reading& reading) {
        const auto& input = arguments.input;
        const auto [losses, shares] = Loss::voxel_terms(arguments, options, reading);
        const auto total_weight = shares.sum();
        const auto wide_weight = total_weight.to(widest_dtype(input));
        if (!options.is_reduced()) {
            const auto loss = Loss::unreduced(losses, arguments, options, reading);
            return {loss.to(options.dtype), wide_weight, no_gradient(input)};
        }
        const auto sum = losses.sum();
        const auto loss = options.is_mean() ? mean_loss(sum, total_weight, options.empty_zero) : sum;
        return {loss.to(options.dtype), wide_weight, no_gradient(input)};
    }

    static Results part_of_slab(const Arguments& slab, const Options& options, const Reading& reading) {
        if (!options.is_reduced()) {
            return composite(slab, options, reading);
        }
        const auto [losses, shares] = Loss::voxel_terms(slab, options, reading);
        const auto wide = widest_dtype(slab.input);
        return {losses.sum(wide), shares.sum(wide), no_gradient(slab.input)};
    }

    static variable_list grads_of_parts(const Handed& handed, const Options& options) {
        const auto& [grad_loss, total_weight] = handed;
        if (!options.is_mean()) {
            return {grad_loss};
        }
        const auto empty = total_weight.eq(0); // the gradient is then 0
        return {(grad_loss / total_weight.masked_fill(empty, 1)).masked_fill(empty, 0)};
    }

    static Results finish(const Results& sums, const Options& options) {
        const auto& [loss, total_weight, gradient] = sums;
        return {(options.is_mean() ? mean_loss(loss, total_weight, options.empty_zero) : loss).to(options.dtype),
                total_weight, gradient};
    }

    // The factor of the gradient: 1 / total_weight for a mean, but 0 if total_weight is 0.
    static double gradient_scale(double total_weight, const Options& options) {
        return !options.is_mean() ? 1 : total_weight == 0 ? 0 : 1 / total_weight;
    }

private:
    VoxelLoss() = default; // only for the loss itself
    friend Loss;

    static void write_gradient_cpu(const Tensor& gradient, const Handed& handed, const Arguments& arguments,
                                   const Options& options, const Reading& reading) {
        const auto& [grad_loss, total_weight] = handed;
        VoxelArguments voxels(arguments, reading, options.of_voxels());
        auto& args = voxels.args;
        args.grad_scale = gradient_scale(*total_weight.template const_data_ptr<double>(), options);
        voxels.describe_with({{&grad_loss, &args.grad_loss}}, gradient);
        args.stream_grad = !voxels.walk && exceeds_caches(gradient);
        voxels.run(Loss::kernels_for(real_of(options.dtype)).backward);
    }

    static Tensor no_gradient(const Tensor& input) { return at::empty({0}, input.options()); }

    // The reduced loss of the sums; mean_loss does the same for tensors.
    static double reduced_loss(const segloss_sums& total, const Options& options) {
        const double empty = options.empty_zero ? 0 : std::numeric_limits<double>::quiet_NaN();
        return !options.is_mean() ? total.loss : total.weight == 0 ? empty : total.loss / total.weight;
    }
};

} // namespace segloss
