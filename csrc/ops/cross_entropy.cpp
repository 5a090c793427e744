// Cross entropy and negative log likelihood: one operator for the user, a forward and a backward operator beneath it.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Reduction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>
#include <tuple>

#include "checks.h"
#include "layout.h"
#include "targets.h"

namespace segloss {
namespace {

using at::ScalarType;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Options {
    int64_t dim;
    int64_t reduction;
    int64_t ignore_index;
    double label_smoothing;
    bool log_probabilities;
    bool empty_zero;
    ScalarType dtype; // of the loss

    std::string op() const { return log_probabilities ? "nll_loss" : "cross_entropy"; }
};

// ---- checks ---------------------------------------------------------------------------------------------------------

// All that can be said without looking at a value. Returns what target is.
Target check_arguments(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                       const OptionalTensor& voxel_weight, const Options& options) {
    const auto op = options.op();
    check_logits(op, input);
    const auto kind = classify_target(op, input, target, options.dim);
    check_weight(op, input, weight, options.dim, kind);
    check_voxel_weight(op, input, voxel_weight, options.dim);
    check_label_smoothing(options.label_smoothing);
    TORCH_CHECK(kind != Target::probabilities || options.ignore_index < 0,
                "ignore_index is not supported for floating point target, got ignore_index=", options.ignore_index,
                ". Leave voxels out with voxel_weight=0 instead");
    TORCH_CHECK_VALUE(options.reduction >= at::Reduction::None && options.reduction < at::Reduction::END, op,
                      ": expected reduction 0 (none), 1 (mean) or 2 (sum), got ", options.reduction);
    return kind;
}

// The operators beneath are handed labels for one-hot targets.
Target check_operator_arguments(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                const OptionalTensor& voxel_weight, const Options& options) {
    TORCH_CHECK_INDEX(options.dim >= 0 && options.dim < input.dim(), options.op(), ": expected dim in [0, ",
                      input.dim() - 1, "] for input ", input.sym_sizes(), ", got ", options.dim);
    TORCH_CHECK_TYPE(at::isFloatingType(options.dtype), options.op(), ": expected a floating dtype of the loss, got ",
                     options.dtype);
    TORCH_CHECK_VALUE(!options.log_probabilities || options.label_smoothing == 0, options.op(),
                      ": expected label_smoothing=0 with log probabilities, got ", options.label_smoothing);
    const auto kind = check_arguments(input, target, weight, voxel_weight, options);
    TORCH_CHECK(kind != Target::one_hot, options.op(), ": expected labels or floating probabilities, got a ",
                target.scalar_type(), " target of input's shape. Use target.argmax(dim)");
    return kind;
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

// A floating voxel weight, as the kernels read it.
Tensor floating_or_undefined(const OptionalTensor& tensor, ScalarType dtype) {
    return !tensor || tensor->is_floating_point() ? or_undefined(tensor) : tensor->to(compute_dtype(dtype));
}

Tensor class_weight_for_kernel(const OptionalTensor& weight, ScalarType dtype) {
    return weight ? weight->detach().to(compute_dtype(dtype)).contiguous() : Tensor();
}

segloss_cross_entropy kernel_arguments(const Tensor& input, Target kind, const Tensor& class_weight,
                                       const Options& options) {
    segloss_cross_entropy args{};
    args.num_classes = input.size(options.dim);
    args.class_weight = class_weight.defined() ? class_weight.const_data_ptr() : nullptr;
    args.ignore_index = options.ignore_index;
    args.label_smoothing = options.label_smoothing;
    args.target_is_probabilities = kind == Target::probabilities;
    args.log_probabilities = options.log_probabilities;
    TORCH_CHECK(args.num_classes <= INT32_MAX, options.op(), ": expected at most ", INT32_MAX, " classes, got ",
                args.num_classes);
    return args;
}

[[noreturn]] void raise_refused(const Tensor& input, const Tensor& target, const Options& options) {
    check_label_values(options.op(), target, input.size(options.dim), options.ignore_index);
    TORCH_CHECK_INDEX(false, options.op(), ": Target is out of bounds: a label of target ", target.sizes(),
                      " is outside [0, ", input.size(options.dim), ") and not ignore_index=", options.ignore_index);
}

Tensor reduced_loss(const segloss_sums& total, const Options& options) {
    double loss = total.loss;
    if (options.reduction == at::Reduction::Mean) {
        const double empty = options.empty_zero ? 0 : std::numeric_limits<double>::quiet_NaN();
        loss = total.weight == 0 ? empty : loss / total.weight;
    }
    return at::scalar_tensor(loss, at::TensorOptions().dtype(options.dtype));
}

std::tuple<Tensor, Tensor, Tensor> forward_cpu(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                               const OptionalTensor& voxel_weight, int64_t dim, int64_t reduction,
                                               int64_t ignore_index, double label_smoothing, bool log_probabilities,
                                               bool empty_zero, ScalarType dtype) {
    const Options options{dim, reduction, ignore_index, label_smoothing, log_probabilities, empty_zero, dtype};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    const auto sizes = position_sizes(input, dim);
    const auto num_positions = c10::multiply_integers(sizes);
    const auto class_weight = class_weight_for_kernel(weight, dtype);
    const auto voxel_weights = floating_or_undefined(voxel_weight, dtype);
    const auto tail_sizes = log_probabilities ? std::vector<int64_t>{0} : sizes;
    const auto tail = at::empty(tail_sizes, input.options().dtype(compute_dtype(dtype)));
    const bool reduce = reduction != at::Reduction::None;
    const auto loss_sizes = kind == Target::labels && input.dim() > 1 ? target.sizes() : at::IntArrayRef(sizes);
    const auto losses = reduce ? Tensor() : at::empty(loss_sizes, input.options().dtype(dtype));

    auto args = kernel_arguments(input, kind, class_weight, options);
    args.tail = tail.data_ptr();
    args.positions = describe(
        sizes, dim,
        {{&input, &args.logits}, {&target, &args.target}, {&voxel_weights, &args.voxel_weight}, {&losses, &args.loss}});
    const Chunks chunks(num_positions, args.num_classes);
    std::vector<segloss_sums> sums(chunks.count());
    const auto kernel = kernels().cross_entropy_forward[real_of(dtype)];
    const bool accepted =
        chunks.run([&](int64_t chunk, int64_t begin, int64_t end) { return kernel(&args, begin, end, &sums[chunk]); });
    if (!accepted) {
        raise_refused(input, target, options);
    }
    segloss_sums total{0, 0};
    for (const auto& sum : sums) {
        total.loss += sum.loss;
        total.weight += sum.weight;
    }
    return {reduce ? reduced_loss(total, options) : losses, at::scalar_tensor(total.weight, at::kDouble), tail};
}

void check_saved(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const Tensor& tail,
                 const Tensor& total_weight, const Options& options) {
    const auto op = options.op() + " backward";
    const bool reduced = options.reduction != at::Reduction::None;
    TORCH_CHECK_TYPE(grad_loss.is_floating_point(), op, ": expected a floating grad_loss, got ",
                     grad_loss.scalar_type());
    TORCH_CHECK(reduced || input.dim() == 1 ? grad_loss.dim() == 0 : has_label_shape(input, grad_loss, options.dim), op,
                ": expected grad_loss of the loss's shape, got ", grad_loss.sizes(), " for target ", target.sizes());
    TORCH_CHECK(options.log_probabilities ||
                    (tail.sizes() == at::IntArrayRef(position_sizes(input, options.dim)) &&
                     tail.scalar_type() == compute_dtype(options.dtype) && tail.is_contiguous()),
                op, ": expected the contiguous tail that the forward operator returned for input ", input.sizes(),
                ", got ", tail.sizes(), " of dtype ", tail.scalar_type());
    TORCH_CHECK(total_weight.numel() == 1, op, ": expected total_weight of one element, got ", total_weight.sizes());
}

Tensor backward_cpu(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                    const OptionalTensor& voxel_weight, const Tensor& tail, const Tensor& total_weight, int64_t dim,
                    int64_t reduction, int64_t ignore_index, double label_smoothing, bool log_probabilities,
                    ScalarType dtype) {
    const Options options{dim, reduction, ignore_index, label_smoothing, log_probabilities, false, dtype};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    check_saved(grad_loss, input, target, tail, total_weight, options);
    const auto sizes = position_sizes(input, dim);
    const auto class_weight = class_weight_for_kernel(weight, dtype);
    const auto voxel_weights = floating_or_undefined(voxel_weight, dtype);
    const auto grad_input = empty_output_like(input);

    auto args = kernel_arguments(input, kind, class_weight, options);
    args.tail = const_cast<void*>(tail.const_data_ptr());
    const double denominator = total_weight.item<double>();
    args.grad_scale = reduction != at::Reduction::Mean ? 1 : denominator == 0 ? 0 : 1 / denominator;
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
        raise_refused(input, target, options);
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
                                                int64_t ignore_index, double label_smoothing, bool log_probabilities,
                                                bool empty_zero, ScalarType dtype) {
    const Options options{dim, reduction, ignore_index, label_smoothing, log_probabilities, empty_zero, dtype};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    const auto sizes = position_sym_sizes(input, dim);
    const auto loss_sizes = reduction != at::Reduction::None            ? c10::SymIntArrayRef()
                            : kind == Target::labels && input.dim() > 1 ? target.sym_sizes()
                                                                        : c10::SymIntArrayRef(sizes);
    const auto tail_sizes = log_probabilities ? c10::SymDimVector{0} : sizes;
    return {at::empty_symint(loss_sizes, input.options().dtype(dtype)),
            at::empty_symint({}, input.options().dtype(at::kDouble)),
            at::empty_symint(tail_sizes, input.options().dtype(compute_dtype(dtype)))};
}

Tensor backward_meta(const Tensor& /*grad_loss*/, const Tensor& input, const Tensor& target,
                     const OptionalTensor& weight, const OptionalTensor& voxel_weight, const Tensor& /*tail*/,
                     const Tensor& /*total_weight*/, int64_t dim, int64_t reduction, int64_t ignore_index,
                     double label_smoothing, bool log_probabilities, ScalarType dtype) {
    check_operator_arguments(input, target, weight, voxel_weight,
                             {dim, reduction, ignore_index, label_smoothing, log_probabilities, false, dtype});
    return at::empty_like(input);
}

// ---- composite: the same results by differentiable ATen operators ---------------------------------------------------

Tensor keep_class_dim(const Tensor& tensor, const Tensor& input, int64_t dim) {
    return tensor.dim() == input.dim() ? tensor : tensor.unsqueeze(dim);
}

// A weight per class, shaped to multiply input.
Tensor broadcast_weight(const OptionalTensor& weight, const Tensor& input, int64_t dim) {
    if (!weight) {
        return at::ones({}, input.options());
    }
    c10::SymDimVector shape(input.dim(), 1);
    shape[dim] = weight->sym_size(0);
    return weight->to(input.scalar_type()).view_symint(shape);
}

// -log p_c of every class, in the kernels' form (largest - x_c) + log1p(tail), so that a confident voxel keeps its
// digits. For its gradient to keep them too, the largest logit takes no part in its own difference, which is 0; and the
// lowest number stands for it in the tail, not -inf, whose derivative would be nan.
Tensor negative_log_softmax(const Tensor& input, int64_t dim) {
    const auto index = input.detach().argmax(dim, /*keepdim=*/true);
    const auto largest = input.gather(dim, index);
    const double lowest = input.scalar_type() == at::kDouble ? std::numeric_limits<double>::lowest()
                                                             : std::numeric_limits<float>::lowest();
    const auto log_tail = (input - largest).scatter(dim, index, lowest).logsumexp({dim}, /*keepdim=*/true);
    const auto bound = largest.detach();
    const auto one = bound - bound + 1; // nan where the softmax is: the difference would be inf for +inf
    return ((largest - input).scatter(dim, index, 0) + at::softplus(log_tail)) * one;
}

// sum_c factor_c * nll_c, where a zero factor makes a zero term even at nll = inf.
Tensor weighted_sum(const Tensor& nll, const Tensor& factor, int64_t dim) {
    const auto void_terms = factor.eq(0).logical_and(nll.isposinf());
    return (nll.masked_fill(void_terms, 0) * factor).sum({dim}, /*keepdim=*/true);
}

struct VoxelLosses {
    Tensor losses;  // one per voxel, class dimension kept
    Tensor weights; // its share of the mean's denominator
};

// `labels` are valid: those of voxels that do not count stand at 0.
VoxelLosses label_losses(const Tensor& nll, const Tensor& labels, const OptionalTensor& weight,
                         const Options& options) {
    const auto dim = options.dim;
    const auto label_weight = weight ? weight->to(nll.scalar_type()).index_select(0, labels.flatten()).view_as(labels)
                                     : at::ones({}, nll.options());
    auto losses = weighted_sum(nll.gather(dim, labels), label_weight * (1 - options.label_smoothing), dim);
    if (options.label_smoothing != 0) {
        const auto share = options.label_smoothing / nll.sym_size(dim);
        losses = losses + weighted_sum(nll, broadcast_weight(weight, nll, dim).expand_as(nll) * share, dim);
    }
    return {losses, label_weight.expand_as(losses)};
}

VoxelLosses probability_losses(const Tensor& nll, const Tensor& target, const OptionalTensor& weight,
                               const Options& options) {
    const auto dim = options.dim;
    auto factor = target.to(nll.scalar_type());
    if (options.label_smoothing != 0) {
        factor = factor * (1 - options.label_smoothing) + options.label_smoothing / nll.sym_size(dim);
    }
    const auto losses = weighted_sum(nll, factor * broadcast_weight(weight, nll, dim), dim);
    return {losses, at::ones_like(losses)};
}

// sum / total, but without gradient where total is 0.
Tensor mean_loss(const Tensor& sum, const Tensor& total, bool empty_zero) {
    const auto empty = total.eq(0);
    const double empty_value = empty_zero ? 0 : std::numeric_limits<double>::quiet_NaN();
    return at::where(empty, at::scalar_tensor(empty_value, sum.options()), sum / total.masked_fill(empty, 1));
}

Tensor composite(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                 const OptionalTensor& voxel_weight, Target kind, const Options& options) {
    const auto dim = options.dim;
    const auto x = input.to(compute_dtype(options.dtype));
    Tensor labels;
    Tensor ignored;
    if (kind == Target::labels) {
        labels =
            class_labels(options.op(), keep_class_dim(target, input, dim), input.sym_size(dim), options.ignore_index);
        ignored = labels.lt(0);
    } else {
        ignored = at::zeros_like(target.narrow_symint(dim, 0, 1), at::kBool);
    }
    auto voxel_weights = at::ones({}, x.options());
    if (voxel_weight) {
        voxel_weights = keep_class_dim(*voxel_weight, input, dim).to(x.scalar_type());
        ignored = ignored.logical_or(voxel_weights.eq(0));
    }
    const auto seen = x.masked_fill(ignored, 0); // no nan from voxels that do not count
    const auto nll = options.log_probabilities ? seen.neg() : negative_log_softmax(seen, dim);
    auto [losses, weights] = kind == Target::labels ? label_losses(nll, labels.masked_fill(ignored, 0), weight, options)
                                                    : probability_losses(nll, target, weight, options);
    losses = (losses * voxel_weights).masked_fill(ignored, 0);
    if (options.reduction == at::Reduction::None) {
        const bool keeps_dim = kind == Target::labels && target.dim() == input.dim() && input.dim() > 1;
        return (keeps_dim ? losses : losses.squeeze(dim)).to(options.dtype);
    }
    auto loss = losses.sum();
    if (options.reduction == at::Reduction::Mean) {
        const auto total = (weights * voxel_weights).masked_fill(ignored, 0).sum();
        loss = mean_loss(loss, total, options.empty_zero);
    }
    return loss.to(options.dtype);
}

// ---- autograd -------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor> call_forward(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                                const OptionalTensor& voxel_weight, const Options& o) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("segloss::cross_entropy_forward", "")
                               .typed<decltype(forward_cpu)>();
    return op.call(input, target, weight, voxel_weight, o.dim, o.reduction, o.ignore_index, o.label_smoothing,
                   o.log_probabilities, o.empty_zero, o.dtype);
}

Tensor call_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& voxel_weight, const Tensor& tail, const Tensor& total_weight,
                     const Options& o) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("segloss::cross_entropy_backward", "")
                               .typed<decltype(backward_cpu)>();
    return op.call(grad_loss, input, target, weight, voxel_weight, tail, total_weight, o.dim, o.reduction,
                   o.ignore_index, o.label_smoothing, o.log_probabilities, o.dtype);
}

OptionalTensor defined_or_none(const Tensor& tensor) {
    return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

class CrossEntropy : public torch::autograd::Function<CrossEntropy> {
public:
    static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                          const OptionalTensor& voxel_weight, const Options& options) {
        at::AutoDispatchBelowADInplaceOrView below_autograd;
        const auto [loss, total_weight, tail] = call_forward(input, target, weight, voxel_weight, options);
        ctx->save_for_backward({input, target, or_undefined(weight), or_undefined(voxel_weight), tail, total_weight});
        ctx->saved_data["label_smoothing"] = options.label_smoothing;
        ctx->saved_data["options"] = std::vector<int64_t>{options.dim,          options.reduction,
                                                          options.ignore_index, options.log_probabilities,
                                                          options.empty_zero,   static_cast<int64_t>(options.dtype)};
        return loss;
    }

    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        const auto saved = ctx->get_saved_variables();
        const auto weight = defined_or_none(saved[2]);
        const auto voxel_weight = defined_or_none(saved[3]);
        const auto options = saved_options(ctx);
        const bool only_input = !saved[1].requires_grad() && !saved[2].requires_grad();
        const bool forward_ad = torch::autograd::isFwGradDefined(OptionalTensor(grads[0]));
        if (only_input && !forward_ad && !at::GradMode::is_enabled()) {
            const auto grad =
                call_backward(grads[0], saved[0], saved[1], weight, voxel_weight, saved[4], saved[5], options);
            return {grad, Tensor(), Tensor(), Tensor(), Tensor()};
        }
        return composite_backward(grads[0], saved[0], saved[1], weight, voxel_weight, options);
    }

private:
    static Options saved_options(AutogradContext* ctx) {
        const auto fields = ctx->saved_data["options"].toIntVector();
        return {fields[0],
                fields[1],
                fields[2],
                ctx->saved_data["label_smoothing"].toDouble(),
                fields[3] != 0,
                fields[4] != 0,
                static_cast<ScalarType>(fields[5])};
    }

    // The derivative of the composite form, itself differentiable: for second derivatives, and for the gradients of
    // probabilities and of their class weights.
    static variable_list composite_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target,
                                            const OptionalTensor& weight, const OptionalTensor& voxel_weight,
                                            const Options& options) {
        const bool create_graph = at::GradMode::is_enabled();
        at::AutoGradMode enable(true);
        // Aliases, so that hooks on the caller's tensors do not run twice.
        const auto x = input.view_as(input);
        const auto t = target.view_as(target);
        const auto w = weight ? OptionalTensor(weight->view_as(*weight)) : std::nullopt;
        const auto kind = classify_target(options.op(), input, target, options.dim);
        const auto loss = composite(x, t, w, voxel_weight, kind, options);
        const std::array<Tensor, 3> arguments{x, t, or_undefined(w)};
        const auto needs_grad = [](const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); };
        variable_list sources;
        std::copy_if(arguments.begin(), arguments.end(), std::back_inserter(sources), needs_grad);
        const auto grads = torch::autograd::grad({loss}, sources, {grad_loss}, /*retain_graph=*/create_graph,
                                                 create_graph, /*allow_unused=*/true);
        variable_list result(5); // one for each argument of forward
        auto next = grads.begin();
        std::transform(arguments.begin(), arguments.end(), result.begin(),
                       [&](const Tensor& tensor) { return needs_grad(tensor) ? *next++ : Tensor(); });
        return result;
    }
};

// ---- the operator ---------------------------------------------------------------------------------------------------

// torch.func transforms and forward-mode AD look through ATen operators only.
bool is_transformed(std::initializer_list<OptionalTensor> tensors) {
    using c10::DispatchKey;
    return c10::impl::tls_is_dispatch_key_included(DispatchKey::FuncTorchDynamicLayerBackMode) ||
           std::any_of(tensors.begin(), tensors.end(),
                       [](const OptionalTensor& tensor) { return torch::autograd::isFwGradDefined(tensor); });
}

bool has_kernel(const Tensor& tensor) { return tensor.is_cpu() || tensor.is_meta(); }

// The loss has input's dtype; float32 under autocast; the wider of both for probabilities, as torch promotes.
ScalarType loss_dtype(const Tensor& input, const Tensor& target, Target kind) {
    const auto dtype = kind == Target::probabilities ? at::promote_types(input.scalar_type(), target.scalar_type())
                                                     : input.scalar_type();
    const auto device = input.device().type();
    const bool autocast = at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device);
    return autocast ? at::promote_types(dtype, at::kFloat) : dtype;
}

Tensor cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& voxel_weight, int64_t dim, int64_t reduction, int64_t ignore_index,
                     double label_smoothing, bool log_probabilities, bool empty_zero) {
    Options options{0, reduction, ignore_index, label_smoothing, log_probabilities, empty_zero, at::kFloat};
    check_logits(options.op(), input);
    options.dim = class_dim(options.op(), input, dim);
    auto kind = check_arguments(input, target, weight, voxel_weight, options);
    options.dtype = loss_dtype(input, target, kind);
    auto labels = target;
    if (kind == Target::one_hot) {
        labels = one_hot_labels(options.op(), target, options.dim);
        kind = Target::labels;
    }
    if (is_transformed({input, labels, weight, voxel_weight}) || !has_kernel(input)) {
        return composite(input, labels, weight, voxel_weight, kind, options);
    }
    if (torch::autograd::compute_requires_grad(input, labels, or_undefined(weight))) {
        return CrossEntropy::apply(input, labels, weight, voxel_weight, options);
    }
    return std::get<0>(call_forward(input, labels, weight, voxel_weight, options));
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    m.def("cross_entropy(Tensor input, Tensor target, Tensor? weight=None, Tensor? voxel_weight=None, int dim=1, "
          "int reduction=1, int ignore_index=-100, float label_smoothing=0.0, bool log_probabilities=False, "
          "bool empty_zero=False) -> Tensor",
          tags);
    m.def("cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, Tensor? voxel_weight, int dim, "
          "int reduction, int ignore_index, float label_smoothing, bool log_probabilities, bool empty_zero, "
          "ScalarType dtype) -> (Tensor loss, Tensor total_weight, Tensor tail)",
          tags);
    m.def("cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor? weight, Tensor? voxel_weight, "
          "Tensor tail, Tensor total_weight, int dim, int reduction, int ignore_index, float label_smoothing, "
          "bool log_probabilities, ScalarType dtype) -> Tensor",
          tags);
}

TORCH_LIBRARY_IMPL(segloss, CompositeImplicitAutograd, m) { m.impl("cross_entropy", TORCH_FN(cross_entropy)); }

// Under vmap, too, the operator is what it is made of, not a loop over samples.
TORCH_LIBRARY_IMPL(segloss, FuncTorchBatchedDecomposition, m) { m.impl("cross_entropy", TORCH_FN(cross_entropy)); }

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("cross_entropy_forward", TORCH_FN(forward_cpu));
    m.impl("cross_entropy_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("cross_entropy_forward", TORCH_FN(forward_meta));
    m.impl("cross_entropy_backward", TORCH_FN(backward_meta));
}

} // namespace segloss
