// Cross entropy and negative log likelihood: one operator for the user, a forward and a backward operator beneath it.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ScalarOps.h>
#include <ATen/core/Reduction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "autograd.h"
#include "checks.h"
#include "composite.h"
#include "layout.h"
#include "memory.h"
#include "targets.h"

namespace segloss {
namespace {

using at::ScalarType;
using torch::autograd::AutogradContext;

struct Options {
    std::string op; // the name that errors give
    int64_t dim;
    int64_t reduction;
    int64_t ignore_index;
    double label_smoothing;
    double gamma; // focal loss
    bool log_probabilities;
    bool empty_zero;
    ScalarType dtype; // of the loss
};

// ---- checks ---------------------------------------------------------------------------------------------------------

// All that can be said without looking at a value. Returns what target is.
Target check_arguments(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                       const OptionalTensor& voxel_weight, const Options& options) {
    const auto& op = options.op;
    check_logits(op, input);
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
    return kind;
}

// The operators beneath are handed labels for one-hot targets.
Target check_operator_arguments(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                const OptionalTensor& voxel_weight, const Options& options) {
    TORCH_CHECK_INDEX(options.dim >= 0 && options.dim < input.dim(), options.op, ": expected dim in [0, ",
                      input.dim() - 1, "] for input ", input.sym_sizes(), ", got ", options.dim);
    check_loss_dtype(options.op, input, options.dtype);
    TORCH_CHECK_VALUE(!options.log_probabilities || (options.label_smoothing == 0 && options.gamma == 0), options.op,
                      ": expected label_smoothing=0 and gamma=0 with log probabilities, got ", options.label_smoothing,
                      " and ", options.gamma);
    TORCH_CHECK_VALUE(options.gamma == 0 || options.label_smoothing == 0, options.op,
                      ": expected label_smoothing=0 with gamma ", options.gamma, ", got ", options.label_smoothing);
    const auto kind = check_arguments(input, target, weight, voxel_weight, options);
    TORCH_CHECK(kind != Target::one_hot, options.op, ": expected labels or floating probabilities, got a ",
                target.scalar_type(), " target of input's shape. Use target.argmax(dim)");
    return kind;
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

Ranges ranges_for(const Tensor& input, const Tensor& target, Target kind, const Options& options) {
    return ranges_of(input, target, kind, compute_dtype(options.dtype));
}

segloss_cross_entropy kernel_arguments(const Tensor& input, const Tensor& target, Target kind,
                                       const Tensor& class_weight, const Options& options) {
    segloss_cross_entropy args{};
    args.num_classes = input.size(options.dim);
    args.class_weight = class_weight.defined() ? class_weight.const_data_ptr() : nullptr;
    args.ignore_index = options.ignore_index;
    args.label_smoothing = options.label_smoothing;
    args.gamma = options.gamma;
    args.target_kind = target_for_kernel(kind);
    args.target_range = ranges_for(input, target, kind, options).target;
    args.log_probabilities = options.log_probabilities;
    TORCH_CHECK(args.num_classes <= INT32_MAX, options.op, ": expected at most ", INT32_MAX, " classes, got ",
                args.num_classes);
    return args;
}

Tensor reduced_loss(const segloss_sums& total, const Options& options) {
    double loss = total.loss;
    if (options.reduction == at::Reduction::Mean) {
        const double empty = options.empty_zero ? 0 : std::numeric_limits<double>::quiet_NaN();
        loss = total.weight == 0 ? empty : loss / total.weight;
    }
    return at::detail::scalar_tensor_static(loss, options.dtype, at::kCPU);
}

// What a mean's gradient is multiplied by: no voxel, no gradient.
double gradient_scale(double total_weight, const Options& options) {
    return options.reduction != at::Reduction::Mean ? 1 : total_weight == 0 ? 0 : 1 / total_weight;
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

std::tuple<Tensor, Tensor, Tensor> forward_cpu(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                               const OptionalTensor& voxel_weight, int64_t dim, int64_t reduction,
                                               int64_t ignore_index, double label_smoothing, double gamma,
                                               bool log_probabilities, bool empty_zero, bool with_gradient,
                                               ScalarType dtype, c10::string_view op) {
    const Options options{std::string(op),   dim,        reduction, ignore_index, label_smoothing, gamma,
                          log_probabilities, empty_zero, dtype};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    const bool reduce = reduction != at::Reduction::None;
    TORCH_CHECK_VALUE(reduce || !with_gradient, options.op,
                      ": expected with_gradient=False with reduction 0 (none), got True");
    const auto sizes = position_sizes(input, dim);
    const auto class_weight = class_weight_for_kernel(weight, dtype);
    const auto voxel_weights = voxel_weight_for_kernel(voxel_weight, dtype);
    const auto loss_sizes = kind == Target::labels && input.dim() > 1 ? target.sizes() : at::IntArrayRef(sizes);
    const auto losses = reduce ? Tensor() : at::empty(loss_sizes, input.options().dtype(dtype));
    const auto gradient = with_gradient ? empty_output_like(input) : Tensor();
    const auto one = with_gradient ? at::detail::scalar_tensor_static(1, dtype, at::kCPU) : Tensor();

    auto args = kernel_arguments(input, target, kind, class_weight, options);
    args.positions = describe(sizes, dim,
                              {{&input, &args.logits},
                               {&target, &args.target},
                               {&voxel_weights, &args.voxel_weight},
                               {&losses, &args.loss},
                               {&one, &args.grad_loss},
                               {&gradient, &args.grad_logits}});
    const Chunks chunks(c10::multiply_integers(sizes), args.num_classes);
    const auto real = real_of(dtype);
    const auto sum = [&](SumKernel kernel) {
        const auto total = sum_over(chunks, kernel, args);
        if (!total) {
            raise_refused(options.op, input, target, voxel_weight, kind, dim, ignore_index,
                          ranges_for(input, target, kind, options));
        }
        return *total;
    };
    if (with_gradient) {
        const bool is_mean = reduction == at::Reduction::Mean;
        args.grad_scale = gradient_scale(is_mean ? sum(kernels().cross_entropy_weight[real]).weight : 1, options);
        args.stream_grad = exceeds_caches(gradient);
    }
    const auto total = sum(kernels().cross_entropy_forward[real]);
    return {reduce ? reduced_loss(total, options) : losses,
            at::detail::scalar_tensor_static(total.weight, at::kDouble, at::kCPU),
            with_gradient ? gradient : at::empty({0}, input.options())};
}

void check_saved(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const Tensor& total_weight,
                 const Options& options) {
    const auto op = options.op + " backward";
    check_dense(op, grad_loss, "grad_loss");
    check_same_device(op, input, grad_loss, "grad_loss");
    const bool reduced = options.reduction != at::Reduction::None;
    TORCH_CHECK_TYPE(grad_loss.is_floating_point(), op, ": expected a floating grad_loss, got ",
                     grad_loss.scalar_type());
    check_dense(op, total_weight, "total_weight");
    check_same_device(op, input, total_weight, "total_weight");
    TORCH_CHECK(reduced || input.dim() == 1 ? grad_loss.dim() == 0 : has_label_shape(input, grad_loss, options.dim), op,
                ": expected grad_loss of the loss's shape, got ", grad_loss.sizes(), " for target ", target.sizes());
    TORCH_CHECK(total_weight.numel() == 1 && total_weight.scalar_type() == widest_dtype(input), op,
                ": expected total_weight of one element of dtype ", widest_dtype(input), ", got ", total_weight.sizes(),
                " of dtype ", total_weight.scalar_type());
}

Tensor backward_cpu(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                    const OptionalTensor& voxel_weight, const Tensor& total_weight, int64_t dim, int64_t reduction,
                    int64_t ignore_index, double label_smoothing, double gamma, bool log_probabilities,
                    ScalarType dtype, c10::string_view op) {
    const Options options{std::string(op),   dim,   reduction, ignore_index, label_smoothing, gamma,
                          log_probabilities, false, dtype};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    check_saved(grad_loss, input, target, total_weight, options);
    const auto sizes = position_sizes(input, dim);
    const auto class_weight = class_weight_for_kernel(weight, dtype);
    const auto voxel_weights = voxel_weight_for_kernel(voxel_weight, dtype);
    const auto grad_input = empty_output_like(input);

    auto args = kernel_arguments(input, target, kind, class_weight, options);
    args.grad_scale = gradient_scale(*total_weight.const_data_ptr<double>(), options);
    args.stream_grad = exceeds_caches(grad_input);
    args.positions = describe(sizes, dim,
                              {{&input, &args.logits},
                               {&target, &args.target},
                               {&voxel_weights, &args.voxel_weight},
                               {&grad_loss, &args.grad_loss},
                               {&grad_input, &args.grad_logits}});
    const auto kernel = kernels().cross_entropy_backward[real_of(dtype)];
    const bool accepted =
        Chunks(c10::multiply_integers(sizes), args.num_classes).run([&](int64_t, int64_t begin, int64_t end) {
            return kernel(&args, begin, end);
        });
    if (!accepted) {
        raise_refused(options.op, input, target, voxel_weight, kind, dim, ignore_index,
                      ranges_for(input, target, kind, options));
    }
    return grad_input;
}

// ---- Meta: shapes and dtypes only -----------------------------------------------------------------------------------

c10::SymDimVector position_sym_sizes(const Tensor& input, int64_t dim) {
    c10::SymDimVector sizes(input.sym_sizes().begin(), input.sym_sizes().end());
    sizes.erase(sizes.begin() + dim);
    return sizes;
}

std::tuple<Tensor, Tensor, Tensor> forward_meta(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                                const OptionalTensor& voxel_weight, int64_t dim, int64_t reduction,
                                                int64_t ignore_index, double label_smoothing, double gamma,
                                                bool log_probabilities, bool empty_zero, bool with_gradient,
                                                ScalarType dtype, c10::string_view op) {
    const Options options{std::string(op),   dim,        reduction, ignore_index, label_smoothing, gamma,
                          log_probabilities, empty_zero, dtype};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    const auto sizes = position_sym_sizes(input, dim);
    const auto loss_sizes = reduction != at::Reduction::None            ? c10::SymIntArrayRef()
                            : kind == Target::labels && input.dim() > 1 ? target.sym_sizes()
                                                                        : c10::SymIntArrayRef(sizes);
    return {at::empty_symint(loss_sizes, input.options().dtype(dtype)),
            at::empty_symint({}, input.options().dtype(at::kDouble)),
            with_gradient ? at::empty_like(input) : at::empty({0}, input.options())};
}

Tensor backward_meta(const Tensor& /*grad_loss*/, const Tensor& input, const Tensor& target,
                     const OptionalTensor& weight, const OptionalTensor& voxel_weight, const Tensor& /*total_weight*/,
                     int64_t dim, int64_t reduction, int64_t ignore_index, double label_smoothing, double gamma,
                     bool log_probabilities, ScalarType dtype, c10::string_view op) {
    check_operator_arguments(
        input, target, weight, voxel_weight,
        {std::string(op), dim, reduction, ignore_index, label_smoothing, gamma, log_probabilities, false, dtype});
    return at::empty_like(input);
}

// ---- composite: the same results by differentiable ATen operators ---------------------------------------------------

// sum / total, but without gradient where total is 0.
Tensor mean_loss(const Tensor& sum, const Tensor& total, bool empty_zero) {
    const auto empty = total.eq(0);
    const double empty_value = empty_zero ? 0 : std::numeric_limits<double>::quiet_NaN();
    return at::where(empty, at::scalar_tensor(empty_value, sum.options()), sum / total.masked_fill(empty, 1));
}

// The losses and their shares of the mean's denominator, [N, 1, *].
VoxelLosses voxel_terms(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                        const OptionalTensor& voxel_weight, Target kind, const Options& options) {
    const auto voxels = read_voxels(options.op, input, target, voxel_weight, kind, options.dim, options.ignore_index,
                                    compute_dtype(options.dtype), ranges_for(input, target, kind, options));
    const auto [losses, shares] = cross_entropy_losses(voxels, options.log_probabilities, weight, options.dim,
                                                       options.label_smoothing, options.gamma);
    return {weighted_values(voxels, losses), weighted_values(voxels, shares)};
}

// The loss and the mean's denominator.
std::tuple<Tensor, Tensor> composite(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                     const OptionalTensor& voxel_weight, const Options& options) {
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    const auto [losses, shares] = voxel_terms(input, target, weight, voxel_weight, kind, options);
    const auto total_weight = shares.sum();
    if (options.reduction == at::Reduction::None) {
        const bool keeps_dim = kind == Target::labels && target.dim() == input.dim() && input.dim() > 1;
        return {(keeps_dim ? losses : losses.squeeze(options.dim)).to(options.dtype), total_weight};
    }
    const bool is_mean = options.reduction == at::Reduction::Mean;
    const auto loss = is_mean ? mean_loss(losses.sum(), total_weight, options.empty_zero) : losses.sum();
    return {loss.to(options.dtype), total_weight};
}

// ---- devices without a kernel: the composite in slabs ---------------------------------------------------------------

Tensor backward_slabs(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                      const OptionalTensor& voxel_weight, const Tensor& total_weight, int64_t dim, int64_t reduction,
                      int64_t ignore_index, double label_smoothing, double gamma, bool log_probabilities,
                      ScalarType dtype, c10::string_view op) {
    const Options options{std::string(op),   dim,   reduction, ignore_index, label_smoothing, gamma,
                          log_probabilities, false, dtype};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    check_saved(grad_loss, input, target, total_weight, options);
    check_values(options.op, input, target, voxel_weight, kind, dim, ignore_index,
                 ranges_for(input, target, kind, options));
    const auto empty = total_weight.eq(0); // no voxel, no gradient
    const auto scale = reduction == at::Reduction::Mean
                           ? (grad_loss / total_weight.masked_fill(empty, 1)).masked_fill(empty, 0)
                           : grad_loss;
    const auto grad_input = at::empty_like(input);
    const Slabs slabs(input, dim);
    for (int64_t k = 0; k < slabs.count(); ++k) {
        const auto x = slabs.of(input, k);
        const auto losses = [&](const Tensor& slab) {
            const auto terms = voxel_terms(slab, slabs.of(target, k), weight, slabs.of(voxel_weight, k), kind, options);
            return variable_list{terms.losses};
        };
        const auto grad = reduction == at::Reduction::None ? slabs.of(scale, k) : scale;
        const auto by_voxel = grad.dim() + 1 == x.dim() ? grad.unsqueeze(dim) : grad;
        slabs.of(grad_input, k).copy_(slab_gradient(losses, x, {by_voxel.expand_symint(voxel_sizes(x, dim))}));
    }
    return grad_input;
}

std::tuple<Tensor, Tensor, Tensor> forward_slabs(const Tensor& input, const Tensor& target,
                                                 const OptionalTensor& weight, const OptionalTensor& voxel_weight,
                                                 int64_t dim, int64_t reduction, int64_t ignore_index,
                                                 double label_smoothing, double gamma, bool log_probabilities,
                                                 bool empty_zero, bool with_gradient, ScalarType dtype,
                                                 c10::string_view op) {
    const Options options{std::string(op),   dim,        reduction, ignore_index, label_smoothing, gamma,
                          log_probabilities, empty_zero, dtype};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    const bool reduce = reduction != at::Reduction::None;
    TORCH_CHECK_VALUE(reduce || !with_gradient, options.op,
                      ": expected with_gradient=False with reduction 0 (none), got True");
    check_values(options.op, input, target, voxel_weight, kind, dim, ignore_index,
                 ranges_for(input, target, kind, options));
    const at::NoGradGuard no_graph;
    const auto sizes = position_sizes(input, dim);
    const auto loss_sizes = kind == Target::labels && input.dim() > 1 ? target.sizes() : at::IntArrayRef(sizes);
    auto loss = reduce ? at::zeros({}, input.options().dtype(widest_dtype(input)))
                       : at::empty(loss_sizes, input.options().dtype(dtype));
    const auto total_weight = at::zeros({}, input.options().dtype(widest_dtype(input)));
    const Slabs slabs(input, dim);
    for (int64_t k = 0; k < slabs.count(); ++k) {
        const auto [losses, shares] =
            voxel_terms(slabs.of(input, k), slabs.of(target, k), weight, slabs.of(voxel_weight, k), kind, options);
        if (reduce) {
            loss.add_(losses.sum(loss.scalar_type()));
        } else {
            const auto slab = slabs.of(loss, k);
            slab.copy_(losses.reshape(slab.sizes()));
        }
        total_weight.add_(shares.sum(total_weight.scalar_type()));
    }
    if (reduction == at::Reduction::Mean) {
        loss = mean_loss(loss, total_weight, empty_zero);
    }
    const auto one = at::ones({}, input.options().dtype(dtype));
    return {loss.to(dtype), total_weight,
            with_gradient ? backward_slabs(one, input, target, weight, voxel_weight, total_weight, dim, reduction,
                                           ignore_index, label_smoothing, gamma, log_probabilities, dtype, op)
                          : at::empty({0}, input.options())};
}

// ---- autograd -------------------------------------------------------------------------------------------------------

using at::AutoDispatchBelowADInplaceOrView; // the fallback of ADInplaceOrView would box every argument
using torch::autograd::compute_requires_grad;

std::tuple<Tensor, Tensor, Tensor> call_forward(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                                const OptionalTensor& voxel_weight, const Options& o,
                                                bool with_gradient) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("segloss::cross_entropy_forward", "")
                               .typed<decltype(forward_cpu)>();
    return op.call(input, target, weight, voxel_weight, o.dim, o.reduction, o.ignore_index, o.label_smoothing, o.gamma,
                   o.log_probabilities, o.empty_zero, with_gradient, o.dtype, o.op);
}

Tensor call_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& voxel_weight, const Tensor& total_weight, const Options& o) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("segloss::cross_entropy_backward", "")
                               .typed<decltype(backward_cpu)>();
    return op.call(grad_loss, input, target, weight, voxel_weight, total_weight, o.dim, o.reduction, o.ignore_index,
                   o.label_smoothing, o.gamma, o.log_probabilities, o.dtype, o.op);
}

std::tuple<Tensor, Tensor, Tensor> forward_autograd(const Tensor& input, const Tensor& target,
                                                    const OptionalTensor& weight, const OptionalTensor& voxel_weight,
                                                    int64_t dim, int64_t reduction, int64_t ignore_index,
                                                    double label_smoothing, double gamma, bool log_probabilities,
                                                    bool empty_zero, bool with_gradient, ScalarType dtype,
                                                    c10::string_view op) {
    const Options options{std::string(op),   dim,        reduction, ignore_index, label_smoothing, gamma,
                          log_probabilities, empty_zero, dtype};
    if (has_tangent({input, target, weight, voxel_weight}) || compute_requires_grad(target, or_undefined(weight))) {
        const auto [loss, total_weight] = composite(input, target, weight, voxel_weight, options);
        return {loss, total_weight.to(widest_dtype(input)), at::empty({0}, input.options())};
    }
    const auto results = [&] {
        const AutoDispatchBelowADInplaceOrView below_autograd;
        return call_forward(input, target, weight, voxel_weight, options, with_gradient);
    }();
    if (compute_requires_grad(input)) {
        const auto& [loss, total_weight, gradient] = results;
        const auto backward = [options](const variable_list& grads, const variable_list& saved) {
            return variable_list{call_backward(grads[0], saved[0], saved[1], defined_or_none(saved[2]),
                                               defined_or_none(saved[3]), saved[4], options)};
        };
        record("CrossEntropyBackward", {loss}, {input},
               {input, target, or_undefined(weight), or_undefined(voxel_weight), total_weight}, backward);
    }
    return results;
}

Tensor backward_autograd(const Tensor& grad_loss, const Tensor& input, const Tensor& target,
                         const OptionalTensor& weight, const OptionalTensor& voxel_weight, const Tensor& total_weight,
                         int64_t dim, int64_t reduction, int64_t ignore_index, double label_smoothing, double gamma,
                         bool log_probabilities, ScalarType dtype, c10::string_view op) {
    const Options options{std::string(op),   dim,   reduction, ignore_index, label_smoothing, gamma,
                          log_probabilities, false, dtype};
    check_operator_arguments(input, target, weight, voxel_weight, options); // before a graph is made of them
    const auto loss = [options](const variable_list& arguments) {
        return variable_list{std::get<0>(composite(arguments[0], arguments[1], defined_or_none(arguments[2]),
                                                   defined_or_none(arguments[3]), options))};
    };
    return gradient_by_input(loss, {input, target, or_undefined(weight), or_undefined(voxel_weight)}, {grad_loss}, [&] {
        return call_backward(grad_loss, input, target, weight, voxel_weight, total_weight, options);
    });
}

// A reduced loss computes its gradient along with itself, while the logits are in the cache. Not in float16, where a
// gradient that is not scaled yet may vanish; not where another gradient is asked for, which has its own way.
bool computes_gradient_ahead(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                             const Options& options) {
    const bool only_input = !torch::autograd::compute_requires_grad(target, or_undefined(weight));
    return only_input && options.reduction != at::Reduction::None && input.scalar_type() != at::kHalf &&
           may_hold_results(input);
}

// The gradient that was computed ahead, times grad_loss. It is handed out once: who asks again, for several at once
// (is_grads_batched), for one to differentiate, or for a factor that would round or overflow twice, has it computed
// anew. Undefined: there is none.
Tensor take_gradient(AutogradContext* ctx, const Tensor& grad_loss) {
    const auto held = ctx->saved_data.find("gradient");
    const bool is_batched = is_func_active() || grad_loss.key_set().has(c10::DispatchKey::Batched);
    const bool is_differentiated = at::GradMode::is_enabled() || has_tangent({grad_loss});
    if (held == ctx->saved_data.end() || is_batched || is_differentiated) {
        return {};
    }
    const auto gradient = held->second.toTensor();
    ctx->saved_data.erase(held);
    const double factor = grad_loss.item<double>();
    int exponent = 0;
    const bool is_exact = std::abs(std::frexp(factor, &exponent)) == 0.5;
    if (!std::isfinite(factor) || (gradient.scalar_type() == at::kBFloat16 && !is_exact)) {
        return {};
    }
    return factor == 1 ? gradient : gradient.mul_(factor);
}

class CrossEntropy : public torch::autograd::Function<CrossEntropy> {
public:
    static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                          const OptionalTensor& voxel_weight, const Options& options) {
        const bool with_gradient = computes_gradient_ahead(input, target, weight, options);
        const AutoDispatchBelowADInplaceOrView below_autograd;
        const auto [loss, total_weight, gradient] =
            call_forward(input, target, weight, voxel_weight, options, with_gradient);
        ctx->save_for_backward({input, target, or_undefined(weight), or_undefined(voxel_weight), total_weight});
        if (with_gradient) {
            ctx->saved_data["gradient"] = gradient;
        }
        ctx->saved_data["options"] =
            std::make_tuple(options.op, options.dim, options.reduction, options.ignore_index, options.label_smoothing,
                            options.gamma, options.log_probabilities, options.empty_zero, options.dtype);
        return loss;
    }

    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        const auto saved = ctx->get_saved_variables();
        const auto voxel_weight = defined_or_none(saved[3]);
        const auto options = saved_options(ctx);
        if (!saved[1].requires_grad() && !saved[2].requires_grad()) {
            auto grad = take_gradient(ctx, grads[0]);
            if (!grad.defined()) {
                grad = call_backward(grads[0], saved[0], saved[1], defined_or_none(saved[2]), voxel_weight, saved[4],
                                     options);
            }
            return {grad, Tensor(), Tensor(), Tensor(), Tensor()};
        }
        const auto loss = [&](const variable_list& arguments) {
            const auto weight = defined_or_none(arguments[2]);
            return variable_list{std::get<0>(composite(arguments[0], arguments[1], weight, voxel_weight, options))};
        };
        auto result = composite_gradients(loss, {saved[0], saved[1], saved[2]}, grads);
        result.resize(5); // one for each argument of forward
        return result;
    }

private:
    static Options saved_options(AutogradContext* ctx) {
        const auto& fields = ctx->saved_data["options"].toTupleRef().elements();
        return {fields[0].toStringRef(), fields[1].toInt(),    fields[2].toInt(),
                fields[3].toInt(),       fields[4].toDouble(), fields[5].toDouble(),
                fields[6].toBool(),      fields[7].toBool(),   fields[8].toScalarType()};
    }
};

// ---- the operator ---------------------------------------------------------------------------------------------------

// The wider dtype of both for probabilities, as torch promotes.
ScalarType loss_dtype(const Tensor& input, const Tensor& target, Target kind) {
    const auto dtype = dtype_of_loss(input);
    return kind == Target::probabilities ? at::promote_types(dtype, target.scalar_type()) : dtype;
}

Tensor cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& voxel_weight, int64_t dim, int64_t reduction, int64_t ignore_index,
                     double label_smoothing, bool log_probabilities, bool empty_zero, double gamma, c10::string_view op,
                     std::optional<ScalarType> dtype) {
    Options options{std::string(op),   0,          reduction, ignore_index, label_smoothing, gamma,
                    log_probabilities, empty_zero, at::kFloat};
    check_logits(options.op, input);
    options.dim = class_dim(options.op, input, dim);
    const auto kind = check_arguments(input, target, weight, voxel_weight, options);
    options.dtype = dtype.value_or(loss_dtype(input, target, kind));
    check_loss_dtype(options.op, input, options.dtype);
    auto labels = target;
    if (kind == Target::one_hot) {
        labels = one_hot_labels(options.op, target, options.dim);
    }
    if (is_compiled_from_composite(input)) {
        return std::get<0>(composite(input, labels, weight, voxel_weight, options));
    }
    if (takes_function(input, labels, weight, voxel_weight)) {
        return CrossEntropy::apply(input, labels, weight, voxel_weight, options);
    }
    return std::get<0>(call_forward(input, labels, weight, voxel_weight, options, /*with_gradient=*/false));
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    m.def("cross_entropy(Tensor input, Tensor target, Tensor? weight=None, Tensor? voxel_weight=None, int dim=1, "
          "int reduction=1, int ignore_index=-100, float label_smoothing=0.0, bool log_probabilities=False, "
          "bool empty_zero=False, float gamma=0.0, str op=\"cross_entropy\", ScalarType? dtype=None) -> "
          "Tensor",
          tags);
    m.def("cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, Tensor? voxel_weight, int dim, "
          "int reduction, int ignore_index, float label_smoothing, float gamma, bool log_probabilities, "
          "bool empty_zero, bool with_gradient, ScalarType dtype, str op) -> "
          "(Tensor loss, Tensor total_weight, Tensor gradient)",
          tags);
    m.def("cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor? weight, Tensor? voxel_weight, "
          "Tensor total_weight, int dim, int reduction, int ignore_index, float label_smoothing, "
          "float gamma, bool log_probabilities, ScalarType dtype, str op) -> Tensor",
          tags);
}

TORCH_LIBRARY_IMPL(segloss, CompositeImplicitAutograd, m) { m.impl("cross_entropy", TORCH_FN(cross_entropy)); }

// Under vmap, too, the operator is what it is made of, not a loop over samples.
TORCH_LIBRARY_IMPL(segloss, FuncTorchBatchedDecomposition, m) { m.impl("cross_entropy", TORCH_FN(cross_entropy)); }

TORCH_LIBRARY_IMPL(segloss, Autograd, m) {
    m.impl("cross_entropy_forward", TORCH_FN(forward_autograd));
    m.impl("cross_entropy_backward", TORCH_FN(backward_autograd));
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("cross_entropy_forward", TORCH_FN(forward_cpu));
    m.impl("cross_entropy_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("cross_entropy_forward", TORCH_FN(forward_slabs));
    m.impl("cross_entropy_backward", TORCH_FN(backward_slabs));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("cross_entropy_forward", TORCH_FN(forward_meta));
    m.impl("cross_entropy_backward", TORCH_FN(backward_meta));
}

} // namespace segloss
