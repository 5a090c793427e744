// Binary focal losses, one for each voxel and class. Their sums come with the soft statistics, in the same walk.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

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
    int64_t ignore_index;
    double gamma;
    ScalarType dtype; // of the losses
};

Target check_arguments(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                       const OptionalTensor& voxel_weight, const Options& options) {
    const auto& op = options.op;
    check_logits(op, input);
    TORCH_CHECK_INDEX(options.dim >= 0 && options.dim < input.dim(), op, ": expected dim in [0, ", input.dim() - 1,
                      "] for input ", input.sym_sizes(), ", got ", options.dim);
    const auto kind = classify_target(op, input, target, options.dim, /*takes_masks=*/true);
    check_weight(op, input, weight, options.dim, kind);
    check_voxel_weight(op, input, voxel_weight, options.dim);
    check_gamma(op, options.gamma);
    check_ignore_index(op, kind, options.ignore_index);
    check_loss_dtype(op, input, options.dtype);
    return kind;
}

Ranges ranges_for(const Tensor& input, const Tensor& target, Target kind, const Options& options) {
    return ranges_of(input, target, kind, compute_dtype(options.dtype));
}

void check_gradient(const std::string& op, const Tensor& grad_loss, const Tensor& input) {
    check_dense(op, grad_loss, "grad_loss");
    check_same_device(op, input, grad_loss, "grad_loss");
    TORCH_CHECK(grad_loss.sizes() == input.sizes() && grad_loss.is_floating_point(), op,
                " backward: expected a floating gradient of input's shape ", input.sizes(), ", got ", grad_loss.sizes(),
                " of dtype ", grad_loss.scalar_type());
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

// Forward and backward differ in the kernel and in the tensors at two places of its arguments.
void run_kernel(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                const OptionalTensor& voxel_weight, Target kind, const Options& options, const Tensor& loss,
                const Tensor& grad_loss, const Tensor& grad_input) {
    const auto class_weight = class_weight_for_kernel(weight, options.dtype);
    const auto voxel_weights = voxel_weight_for_kernel(voxel_weight, options.dtype);
    const auto sizes = position_sizes(input, options.dim);
    segloss_cross_entropy args{};
    args.num_classes = input.size(options.dim);
    args.target_kind = target_for_kernel(kind);
    args.target_range = ranges_for(input, target, kind, options).target;
    args.class_weight = class_weight.defined() ? class_weight.const_data_ptr() : nullptr;
    args.ignore_index = options.ignore_index;
    args.gamma = options.gamma;
    args.grad_scale = 1;
    args.positions = describe(sizes, options.dim,
                              {{&input, &args.logits},
                               {&target, &args.target},
                               {&voxel_weights, &args.voxel_weight},
                               {&loss, &args.loss},
                               {&grad_loss, &args.grad_loss},
                               {&grad_input, &args.grad_logits}});
    args.stream_grad = exceeds_caches(grad_input);
    const auto real = real_of(options.dtype);
    const auto kernel = loss.defined() ? kernels().binary_forward[real] : kernels().binary_backward[real];
    const Chunks chunks(c10::multiply_integers(sizes), args.num_classes);
    if (!chunks.run([&](int64_t, int64_t begin, int64_t end) { return kernel(&args, begin, end); })) {
        raise_refused(options.op, input, target, voxel_weight, kind, options.dim, options.ignore_index,
                      ranges_for(input, target, kind, options));
    }
}

Tensor forward_cpu(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                   const OptionalTensor& voxel_weight, int64_t dim, int64_t ignore_index, double gamma,
                   ScalarType dtype) {
    const Options options{std::string(op), dim, ignore_index, gamma, dtype};
    const auto kind = check_arguments(input, target, weight, voxel_weight, options);
    const auto loss = at::empty_like(input, input.options().dtype(dtype));
    run_kernel(input, target, weight, voxel_weight, kind, options, loss, {}, {});
    return loss;
}

Tensor backward_cpu(const Tensor& grad_loss, c10::string_view op, const Tensor& input, const Tensor& target,
                    const OptionalTensor& weight, const OptionalTensor& voxel_weight, int64_t dim, int64_t ignore_index,
                    double gamma, ScalarType dtype) {
    const Options options{std::string(op), dim, ignore_index, gamma, dtype};
    const auto kind = check_arguments(input, target, weight, voxel_weight, options);
    check_gradient(options.op, grad_loss, input);
    const auto grad_input = empty_output_like(input);
    run_kernel(input, target, weight, voxel_weight, kind, options, {}, grad_loss, grad_input);
    return grad_input;
}

// ---- Meta: shapes and dtypes only -----------------------------------------------------------------------------------

Tensor forward_meta(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                    const OptionalTensor& voxel_weight, int64_t dim, int64_t ignore_index, double gamma,
                    ScalarType dtype) {
    check_arguments(input, target, weight, voxel_weight, {std::string(op), dim, ignore_index, gamma, dtype});
    return at::empty_like(input, input.options().dtype(dtype));
}

Tensor backward_meta(const Tensor& /*grad_loss*/, c10::string_view op, const Tensor& input, const Tensor& target,
                     const OptionalTensor& weight, const OptionalTensor& voxel_weight, int64_t dim,
                     int64_t ignore_index, double gamma, ScalarType dtype) {
    check_arguments(input, target, weight, voxel_weight, {std::string(op), dim, ignore_index, gamma, dtype});
    return at::empty_like(input);
}

// ---- composite: the same results by differentiable ATen operators ---------------------------------------------------

Tensor composite(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                 const OptionalTensor& voxel_weight, const Options& options) {
    const auto kind = check_arguments(input, target, weight, voxel_weight, options);
    const auto voxels = read_voxels(options.op, input, target, voxel_weight, kind, options.dim, options.ignore_index,
                                    compute_dtype(options.dtype), ranges_for(input, target, kind, options));
    const auto losses = binary_losses(voxels, weight, options.dim, /*label_smoothing=*/0, options.gamma);
    return weighted_values(voxels, losses).to(options.dtype);
}

// ---- devices without a kernel: the composite in slabs ---------------------------------------------------------------

Tensor forward_slabs(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& voxel_weight, int64_t dim, int64_t ignore_index, double gamma,
                     ScalarType dtype) {
    const Options options{std::string(op), dim, ignore_index, gamma, dtype};
    const auto kind = check_arguments(input, target, weight, voxel_weight, options);
    check_values(options.op, input, target, voxel_weight, kind, dim, ignore_index,
                 ranges_for(input, target, kind, options));
    const at::NoGradGuard no_graph;
    const auto losses = at::empty_like(input, input.options().dtype(dtype));
    const Slabs slabs(input, dim);
    for (int64_t k = 0; k < slabs.count(); ++k) {
        slabs.of(losses, k).copy_(
            composite(slabs.of(input, k), slabs.of(target, k), weight, slabs.of(voxel_weight, k), options));
    }
    return losses;
}

Tensor backward_slabs(const Tensor& grad_loss, c10::string_view op, const Tensor& input, const Tensor& target,
                      const OptionalTensor& weight, const OptionalTensor& voxel_weight, int64_t dim,
                      int64_t ignore_index, double gamma, ScalarType dtype) {
    const Options options{std::string(op), dim, ignore_index, gamma, dtype};
    const auto kind = check_arguments(input, target, weight, voxel_weight, options);
    check_gradient(options.op, grad_loss, input);
    check_values(options.op, input, target, voxel_weight, kind, dim, ignore_index,
                 ranges_for(input, target, kind, options));
    const auto grad_input = at::empty_like(input);
    const Slabs slabs(input, dim);
    for (int64_t k = 0; k < slabs.count(); ++k) {
        const auto losses = [&](const Tensor& slab) {
            return variable_list{composite(slab, slabs.of(target, k), weight, slabs.of(voxel_weight, k), options)};
        };
        slabs.of(grad_input, k).copy_(slab_gradient(losses, slabs.of(input, k), {slabs.of(grad_loss, k)}));
    }
    return grad_input;
}

// ---- autograd -------------------------------------------------------------------------------------------------------

using at::AutoDispatchBelowADInplaceOrView; // the fallback of ADInplaceOrView would box every argument
using torch::autograd::compute_requires_grad;

Tensor call_forward(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                    const OptionalTensor& voxel_weight, const Options& o) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("segloss::sigmoid_focal_forward", "")
                               .typed<decltype(forward_cpu)>();
    return op.call(o.op, input, target, weight, voxel_weight, o.dim, o.ignore_index, o.gamma, o.dtype);
}

Tensor call_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& voxel_weight, const Options& o) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("segloss::sigmoid_focal_backward", "")
                               .typed<decltype(backward_cpu)>();
    return op.call(grad_loss, o.op, input, target, weight, voxel_weight, o.dim, o.ignore_index, o.gamma, o.dtype);
}

Tensor forward_autograd(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                        const OptionalTensor& voxel_weight, int64_t dim, int64_t ignore_index, double gamma,
                        ScalarType dtype) {
    const Options options{std::string(op), dim, ignore_index, gamma, dtype};
    if (has_tangent({input, target, weight, voxel_weight}) || compute_requires_grad(target, or_undefined(weight))) {
        return composite(input, target, weight, voxel_weight, options);
    }
    const auto losses = [&] {
        const AutoDispatchBelowADInplaceOrView below_autograd;
        return call_forward(input, target, weight, voxel_weight, options);
    }();
    if (compute_requires_grad(input)) {
        record("SigmoidFocalBackward", {losses}, {input},
               {input, target, or_undefined(weight), or_undefined(voxel_weight)},
               [options](const variable_list& grads, const variable_list& saved) {
                   return variable_list{call_backward(grads[0], saved[0], saved[1], defined_or_none(saved[2]),
                                                      defined_or_none(saved[3]), options)};
               });
    }
    return losses;
}

Tensor backward_autograd(const Tensor& grad_loss, c10::string_view op, const Tensor& input, const Tensor& target,
                         const OptionalTensor& weight, const OptionalTensor& voxel_weight, int64_t dim,
                         int64_t ignore_index, double gamma, ScalarType dtype) {
    const Options options{std::string(op), dim, ignore_index, gamma, dtype};
    check_arguments(input, target, weight, voxel_weight, options); // before a graph is made of them
    const auto losses = [options](const variable_list& arguments) {
        return variable_list{composite(arguments[0], arguments[1], defined_or_none(arguments[2]),
                                       defined_or_none(arguments[3]), options)};
    };
    return gradient_by_input(losses, {input, target, or_undefined(weight), or_undefined(voxel_weight)}, {grad_loss},
                             [&] { return call_backward(grad_loss, input, target, weight, voxel_weight, options); });
}

// Gradients of the input alone; targets and weights that require one take the composite path.
class SigmoidFocal : public torch::autograd::Function<SigmoidFocal> {
public:
    static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                          const OptionalTensor& voxel_weight, const Options& options) {
        ctx->save_for_backward({input, target, or_undefined(weight), or_undefined(voxel_weight)});
        ctx->saved_data["options"] =
            std::make_tuple(options.op, options.dim, options.ignore_index, options.gamma, options.dtype);
        const AutoDispatchBelowADInplaceOrView below_autograd;
        return call_forward(input, target, weight, voxel_weight, options);
    }

    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        const auto saved = ctx->get_saved_variables();
        const auto& fields = ctx->saved_data["options"].toTupleRef().elements();
        const Options options{fields[0].toStringRef(), fields[1].toInt(), fields[2].toInt(), fields[3].toDouble(),
                              fields[4].toScalarType()};
        const auto gradient =
            call_backward(grads[0], saved[0], saved[1], defined_or_none(saved[2]), defined_or_none(saved[3]), options);
        return {gradient, Tensor(), Tensor(), Tensor(), Tensor()};
    }
};

// ---- the operator ---------------------------------------------------------------------------------------------------

Tensor sigmoid_focal(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& voxel_weight, int64_t dim, int64_t ignore_index, double gamma) {
    Options options{std::string(op), 0, ignore_index, gamma, at::kFloat};
    check_logits(options.op, input);
    options.dim = class_dim(options.op, input, dim);
    options.dtype = dtype_of_loss(input);
    check_arguments(input, target, weight, voxel_weight, options);
    if (is_compiled_from_composite(input) || compute_requires_grad(target, or_undefined(weight))) {
        return composite(input, target, weight, voxel_weight, options);
    }
    return takes_function(input, target, weight, voxel_weight)
               ? SigmoidFocal::apply(input, target, weight, voxel_weight, options)
               : call_forward(input, target, weight, voxel_weight, options);
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    m.def("sigmoid_focal(str op, Tensor input, Tensor target, Tensor? weight=None, Tensor? voxel_weight=None, "
          "int dim=1, int ignore_index=-100, float gamma=2.0) -> Tensor",
          tags);
    m.def("sigmoid_focal_forward(str op, Tensor input, Tensor target, Tensor? weight, Tensor? voxel_weight, int dim, "
          "int ignore_index, float gamma, ScalarType dtype) -> Tensor",
          tags);
    m.def("sigmoid_focal_backward(Tensor grad_loss, str op, Tensor input, Tensor target, Tensor? weight, "
          "Tensor? voxel_weight, int dim, int ignore_index, float gamma, ScalarType dtype) -> Tensor",
          tags);
}

TORCH_LIBRARY_IMPL(segloss, CompositeImplicitAutograd, m) { m.impl("sigmoid_focal", TORCH_FN(sigmoid_focal)); }

// Under vmap, too, the operator is what it is made of, not a loop over samples.
TORCH_LIBRARY_IMPL(segloss, FuncTorchBatchedDecomposition, m) { m.impl("sigmoid_focal", TORCH_FN(sigmoid_focal)); }

TORCH_LIBRARY_IMPL(segloss, Autograd, m) {
    m.impl("sigmoid_focal_forward", TORCH_FN(forward_autograd));
    m.impl("sigmoid_focal_backward", TORCH_FN(backward_autograd));
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("sigmoid_focal_forward", TORCH_FN(forward_cpu));
    m.impl("sigmoid_focal_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("sigmoid_focal_forward", TORCH_FN(forward_slabs));
    m.impl("sigmoid_focal_backward", TORCH_FN(backward_slabs));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("sigmoid_focal_forward", TORCH_FN(forward_meta));
    m.impl("sigmoid_focal_backward", TORCH_FN(backward_meta));
}

} // namespace segloss
