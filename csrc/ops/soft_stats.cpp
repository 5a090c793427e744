// Soft statistics: the sums per sample and class that region losses are made of, and the voxels' losses in the same
// walk.

#include <ATen/ATen.h>
#include <ATen/ScalarOps.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <array>
#include <numeric>
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
    int64_t activation; // a segloss_activation
    bool squared;
    int64_t ignore_index;
    bool voxel_loss;
    double gamma;
    double label_smoothing;
    bool soft_label;        // I sums min(p, g), for class probabilities
    bool any_finite_target; // class probabilities may be any finite numbers

    bool is_softmax() const { return activation == SEGLOSS_SOFTMAX; }
};

// [N, C] of v p g, v p and v g; [N] of the losses and of their weights in a mean.
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// ---- checks ---------------------------------------------------------------------------------------------------------

int64_t activation_of(const std::string& op, c10::string_view name) {
    TORCH_CHECK_VALUE(name == "softmax" || name == "sigmoid" || name == "none", op,
                      ": expected activation 'softmax', 'sigmoid' or 'none', got '", name, "'");
    return name == "softmax" ? SEGLOSS_SOFTMAX : name == "sigmoid" ? SEGLOSS_SIGMOID : SEGLOSS_IDENTITY;
}

// All that can be said without looking at a value. Returns what target is.
Target check_arguments(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                       const OptionalTensor& voxel_weight, const Options& options) {
    const auto& op = options.op;
    check_logits(op, input);
    const auto kind = classify_target(op, input, target, options.dim, /*takes_masks=*/!options.is_softmax());
    if (options.is_softmax()) {
        check_softmax(op, input, options.dim);
    }
    check_weight(op, input, weight, options.dim, kind);
    check_voxel_weight(op, input, voxel_weight, options.dim);
    check_label_smoothing(op, options.label_smoothing);
    check_gamma(op, options.gamma);
    if (options.gamma != 0 && options.is_softmax()) {
        check_labels_only(op, input, options.dim, kind);
    }
    check_ignore_index(op, kind, options.ignore_index);
    TORCH_CHECK_VALUE(
        !options.voxel_loss || options.activation != SEGLOSS_IDENTITY, op,
        ": expected activation 'softmax' or 'sigmoid' with a loss of each voxel, which needs logits, got 'none'");
    return kind;
}

// The operators beneath are handed labels for one-hot targets.
Target check_operator_arguments(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                const OptionalTensor& voxel_weight, const Options& options) {
    TORCH_CHECK_INDEX(options.dim >= 0 && options.dim < input.dim(), options.op, ": expected dim in [0, ",
                      input.dim() - 1, "] for input ", input.sym_sizes(), ", got ", options.dim);
    TORCH_CHECK_VALUE(options.activation >= SEGLOSS_SOFTMAX && options.activation <= SEGLOSS_IDENTITY, options.op,
                      ": expected activation 0 (softmax), 1 (sigmoid) or 2 (none), got ", options.activation);
    const auto kind = check_arguments(input, target, weight, voxel_weight, options);
    TORCH_CHECK(kind != Target::one_hot, options.op, ": expected labels or floating probabilities, got a ",
                target.scalar_type(), " target of input's shape. Use target.argmax(dim)");
    return kind;
}

// ---- samples --------------------------------------------------------------------------------------------------------

// The batch is the first dimension that is not the class dimension; an input [C] is a batch of one.
bool is_batched(const Tensor& input) { return input.dim() > 1; }

int64_t batch_dim(int64_t dim) { return dim == 0 ? 1 : 0; }

c10::SymInt num_samples(const Tensor& input, int64_t dim) {
    return is_batched(input) ? input.sym_size(batch_dim(dim)) : c10::SymInt(1);
}

// Of the gradients that a backward pass is handed: [N, C] twice, and [N].
void check_gradients(const Tensor& grad_intersection, const Tensor& grad_prediction, const Tensor& grad_loss,
                     const Tensor& input, const Options& options) {
    const auto op = options.op + " backward";
    for (const auto& grad : {grad_intersection, grad_prediction, grad_loss}) {
        check_dense(op, grad, "gradient");
        check_same_device(op, input, grad, "gradient");
        TORCH_CHECK_TYPE(grad.is_floating_point(), op, ": expected a floating gradient, got ", grad.scalar_type());
    }
    for (const auto& grad : {grad_intersection, grad_prediction}) {
        TORCH_CHECK(grad.dim() == 2 && grad.sym_size(0) == num_samples(input, options.dim) &&
                        grad.sym_size(1) == input.sym_size(options.dim),
                    op, ": expected a gradient [", num_samples(input, options.dim), ", ", input.sym_size(options.dim),
                    "] for input ", input.sym_sizes(), ", got ", grad.sym_sizes());
    }
    TORCH_CHECK(grad_loss.dim() == 1 && grad_loss.sym_size(0) == num_samples(input, options.dim), op,
                ": expected a gradient [", num_samples(input, options.dim), "] of the loss for input ",
                input.sym_sizes(), ", got ", grad_loss.sym_sizes());
}

// A tensor that the kernels read or write, and its place in their arguments.
struct SampleOperand {
    Tensor tensor;
    segloss_tensor segloss_cross_entropy::* view;
};

// Describes each sample of a batch to the kernels.
class Samples {
public:
    Samples(const Tensor& input, int64_t dim, segloss_soft_stats& args, std::vector<SampleOperand> operands)
        : operands_(std::move(operands)) {
        auto sizes = position_sizes(input, dim);
        count_ = is_batched(input) ? sizes[0] : 1;
        if (is_batched(input)) {
            sizes.erase(sizes.begin());
        }
        num_positions_ = c10::multiply_integers(sizes);
        if (count_ == 0) {
            return;
        }
        for (auto& [tensor, view] : operands_) {
            const bool has_samples = is_batched(input) && tensor.defined() && tensor.dim() > 0;
            const auto sample_dim = has_samples && tensor.dim() == input.dim() ? batch_dim(dim) : 0;
            steps_.push_back(has_samples ? tensor.stride(sample_dim) * tensor.element_size() : 0);
            tensor = has_samples ? tensor.select(sample_dim, 0) : tensor;
        }
        std::vector<Operand> described;
        for (const auto& [tensor, view] : operands_) {
            described.push_back({&tensor, &(args.voxels.*view)});
        }
        args.voxels.positions = describe(sizes, is_batched(input) && dim > 0 ? dim - 1 : 0, described);
    }

    int64_t count() const { return count_; }
    int64_t num_positions() const { return num_positions_; }

    // The arguments of one sample, from those of the first.
    segloss_soft_stats arguments(const segloss_soft_stats& first, int64_t sample) const {
        auto args = first;
        for (size_t k = 0; k < operands_.size(); ++k) {
            auto& data = (args.voxels.*operands_[k].view).data;
            data = data ? static_cast<char*>(data) + sample * steps_[k] : nullptr;
        }
        return args;
    }

private:
    std::vector<SampleOperand> operands_; // of the first sample
    std::vector<int64_t> steps_;          // bytes from sample to sample
    int64_t count_;
    int64_t num_positions_;
};

// Whether I sums min(p, g). Of squares (p^2 + g^2 - (p - g)^2) / 2 = p g takes its place, and at labels both are p.
bool sums_minima(Target kind, const Options& options) {
    return options.soft_label && !options.squared && kind == Target::probabilities;
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

Ranges ranges_for(const Tensor& input, const Tensor& target, Target kind, const Options& options) {
    return ranges_of(input, target, kind, compute_dtype(input.scalar_type()), options.any_finite_target,
                     options.activation == SEGLOSS_IDENTITY);
}

segloss_soft_stats kernel_arguments(const Tensor& input, const Tensor& target, Target kind, const Tensor& class_weight,
                                    const Options& options) {
    segloss_soft_stats args{};
    auto& voxels = args.voxels;
    voxels.num_classes = input.size(options.dim);
    voxels.target_kind = target_for_kernel(kind);
    voxels.class_weight = class_weight.defined() ? class_weight.const_data_ptr() : nullptr;
    voxels.ignore_index = options.ignore_index;
    voxels.label_smoothing = options.voxel_loss ? options.label_smoothing : 0;
    voxels.gamma = options.voxel_loss ? options.gamma : 0;
    const auto ranges = ranges_for(input, target, kind, options);
    voxels.target_range = ranges.target;
    voxels.logit_range = ranges.logits;
    args.activation = static_cast<segloss_activation>(options.activation);
    args.soft_label = sums_minima(kind, options);
    args.squared = options.squared;
    args.with_loss = options.voxel_loss;
    TORCH_CHECK(voxels.num_classes <= INT32_MAX, options.op, ": expected at most ", INT32_MAX, " classes, got ",
                voxels.num_classes);
    return args;
}

// Adds the lanes of every chunk of a sample, in order: [chunks of all samples, 3, C, lanes] to three [N, C].
std::array<Tensor, 3> add_up(const std::vector<double>& lanes, int64_t samples, int64_t chunks_per_sample,
                             int64_t num_classes) {
    std::array<Tensor, 3> totals;
    for (auto& total : totals) {
        total = at::zeros({samples, num_classes}, at::kDouble);
    }
    const double* next = lanes.data();
    for (int64_t n = 0; n < samples; ++n) {
        for (int64_t chunk = 0; chunk < chunks_per_sample; ++chunk) {
            for (const auto& total : totals) {
                double* sums = total.data_ptr<double>() + n * num_classes;
                for (int64_t c = 0; c < num_classes; ++c, next += SEGLOSS_SUM_LANES) {
                    sums[c] = std::accumulate(next, next + SEGLOSS_SUM_LANES, sums[c]);
                }
            }
        }
    }
    return totals;
}

Results forward_cpu(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                    const OptionalTensor& voxel_weight, int64_t dim, int64_t activation, bool squared,
                    int64_t ignore_index, bool voxel_loss, double gamma, double label_smoothing, bool soft_label,
                    bool any_finite_target) {
    const Options options{std::string(op), dim,   activation,      squared,    ignore_index,
                          voxel_loss,      gamma, label_smoothing, soft_label, any_finite_target};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    const auto dtype = input.scalar_type();
    const auto class_weight = class_weight_for_kernel(weight, dtype);
    auto args = kernel_arguments(input, target, kind, class_weight, options);
    const auto num_classes = args.voxels.num_classes;
    const Samples samples(input, dim, args,
                          {{input, &segloss_cross_entropy::logits},
                           {target, &segloss_cross_entropy::target},
                           {voxel_weight_for_kernel(voxel_weight, dtype), &segloss_cross_entropy::voxel_weight}});
    const auto chunks = Chunks::of_samples(samples.count(), samples.num_positions());
    const auto stride = 3 * num_classes * SEGLOSS_SUM_LANES;
    std::vector<double> lanes(chunks.count() * stride);
    std::vector<segloss_sums> sums(chunks.count());
    const auto kernel = kernels().soft_stats_forward[real_of(dtype)];
    const bool accepted = chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
        const auto sample = samples.arguments(args, chunk / chunks.per_sample());
        return kernel(&sample, begin, end, lanes.data() + chunk * stride, &sums[chunk]);
    });
    if (!accepted) {
        raise_refused(options.op, input, target, voxel_weight, kind, dim, ignore_index,
                      ranges_for(input, target, kind, options));
    }
    const auto [intersection, prediction, targets] = add_up(lanes, samples.count(), chunks.per_sample(), num_classes);
    const auto loss = at::zeros({samples.count()}, at::kDouble);
    const auto loss_weight = at::zeros({samples.count()}, at::kDouble);
    for (size_t chunk = 0; chunk < sums.size(); ++chunk) {
        const auto n = chunk / chunks.per_sample();
        loss.data_ptr<double>()[n] += sums[chunk].loss;
        loss_weight.data_ptr<double>()[n] += sums[chunk].weight;
    }
    return {intersection, prediction, targets, loss, loss_weight};
}

// A gradient [N, C] in the dtype that is computed in.
Tensor gradient_for_kernel(const Tensor& grad, const Tensor& input) {
    return grad.to(compute_dtype(input.scalar_type())).contiguous();
}

Tensor backward_cpu(const Tensor& grad_intersection, const Tensor& grad_prediction, const Tensor& grad_loss,
                    c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                    const OptionalTensor& voxel_weight, int64_t dim, int64_t activation, bool squared,
                    int64_t ignore_index, bool voxel_loss, double gamma, double label_smoothing, bool soft_label,
                    bool any_finite_target) {
    const Options options{std::string(op), dim,   activation,      squared,    ignore_index,
                          voxel_loss,      gamma, label_smoothing, soft_label, any_finite_target};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    check_gradients(grad_intersection, grad_prediction, grad_loss, input, options);
    const auto dtype = input.scalar_type();
    const auto class_weight = class_weight_for_kernel(weight, dtype);
    const auto by_intersection = gradient_for_kernel(grad_intersection, input);
    const auto by_prediction = gradient_for_kernel(grad_prediction, input);
    const auto grad_input = empty_output_like(input);
    auto args = kernel_arguments(input, target, kind, class_weight, options);
    args.voxels.grad_scale = 1;
    args.voxels.stream_grad = exceeds_caches(grad_input);
    const auto num_classes = args.voxels.num_classes;
    const Samples samples(input, dim, args,
                          {{input, &segloss_cross_entropy::logits},
                           {target, &segloss_cross_entropy::target},
                           {voxel_weight_for_kernel(voxel_weight, dtype), &segloss_cross_entropy::voxel_weight},
                           {voxel_loss ? grad_loss : Tensor(), &segloss_cross_entropy::grad_loss},
                           {grad_input, &segloss_cross_entropy::grad_logits}});
    const auto row = num_classes * by_intersection.element_size();
    const auto row_of = [row](const Tensor& grad, int64_t sample) {
        return static_cast<const char*>(grad.const_data_ptr()) + sample * row;
    };
    const auto chunks = Chunks::of_samples(samples.count(), samples.num_positions());
    const auto kernel = kernels().soft_stats_backward[real_of(dtype)];
    const bool accepted = chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
        const auto n = chunk / chunks.per_sample();
        auto sample = samples.arguments(args, n);
        sample.grad_intersection = row_of(by_intersection, n);
        sample.grad_prediction = row_of(by_prediction, n);
        return kernel(&sample, begin, end);
    });
    if (!accepted) {
        raise_refused(options.op, input, target, voxel_weight, kind, dim, ignore_index,
                      ranges_for(input, target, kind, options));
    }
    return grad_input;
}

// ---- Meta: shapes and dtypes only -----------------------------------------------------------------------------------

Results forward_meta(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& voxel_weight, int64_t dim, int64_t activation, bool squared,
                     int64_t ignore_index, bool voxel_loss, double gamma, double label_smoothing, bool soft_label,
                     bool any_finite_target) {
    check_operator_arguments(input, target, weight, voxel_weight,
                             {std::string(op), dim, activation, squared, ignore_index, voxel_loss, gamma,
                              label_smoothing, soft_label, any_finite_target});
    const auto options = input.options().dtype(at::kDouble);
    const auto stats = [&] { return at::empty_symint({num_samples(input, dim), input.sym_size(dim)}, options); };
    const auto losses = [&] { return at::empty_symint({num_samples(input, dim)}, options); };
    return {stats(), stats(), stats(), losses(), losses()};
}

Tensor backward_meta(const Tensor& /*grad_intersection*/, const Tensor& /*grad_prediction*/,
                     const Tensor& /*grad_loss*/, c10::string_view op, const Tensor& input, const Tensor& target,
                     const OptionalTensor& weight, const OptionalTensor& voxel_weight, int64_t dim, int64_t activation,
                     bool squared, int64_t ignore_index, bool voxel_loss, double gamma, double label_smoothing,
                     bool soft_label, bool any_finite_target) {
    check_operator_arguments(input, target, weight, voxel_weight,
                             {std::string(op), dim, activation, squared, ignore_index, voxel_loss, gamma,
                              label_smoothing, soft_label, any_finite_target});
    return at::empty_like(input);
}

// ---- composite: the same results by differentiable ATen operators ---------------------------------------------------

// Over all positions of a sample: [N, C].
Tensor sum_of_samples(const Tensor& values, int64_t dim) {
    if (!is_batched(values)) {
        return values.unsqueeze(0);
    }
    return values.movedim({batch_dim(dim), dim}, {0, 1}).unsqueeze(-1).flatten(2).sum(2);
}

// The value of each voxel, added to the class of its label: [N, C].
Tensor sum_by_label(const Tensor& values, const Tensor& labels, const c10::SymInt& num_classes, int64_t dim) {
    const auto by_sample = [&](const Tensor& voxels) {
        return is_batched(voxels) ? voxels.movedim(batch_dim(dim), 0).flatten(1) : voxels.unsqueeze(0);
    };
    const auto wide = widest_dtype(values); // they are added one by one: a float32 sum would stop growing
    const auto zeros = at::zeros_symint({num_samples(labels, dim), num_classes}, values.options().dtype(wide));
    return zeros.scatter_add(1, by_sample(labels), by_sample(values).to(wide)).to(values.scalar_type());
}

Results composite(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                  const OptionalTensor& voxel_weight, const Options& options) {
    const auto dim = options.dim;
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    const auto num_classes = input.sym_size(dim);
    const auto voxels = read_voxels(options.op, input, target, voxel_weight, kind, dim, options.ignore_index,
                                    compute_dtype(input.scalar_type()), ranges_for(input, target, kind, options));
    const auto& g = voxels.target;
    const auto p = options.is_softmax()                    ? voxels.input.softmax(dim)
                   : options.activation == SEGLOSS_SIGMOID ? voxels.input.sigmoid()
                                                           : voxels.input;
    const auto v = counted_weight(voxels, dim);
    const auto squared = [&](const Tensor& values) { return options.squared ? values * values : values; };
    const auto sum = [&](const Tensor& values) { return sum_of_samples(weighted_values(voxels, values), dim); };
    Tensor intersection;
    Tensor targets;
    if (voxels.kind == Target::labels) {
        intersection = sum_by_label(weighted_values(voxels, p.gather(dim, g)), g, num_classes, dim);
        targets = sum_by_label(v, g, num_classes, dim);
    } else {
        intersection = sum(sums_minima(kind, options) ? at::minimum(p, g) : p * g);
        targets = sum(squared(g));
    }
    auto loss = at::zeros_symint({num_samples(input, dim)}, p.options());
    auto loss_weight = at::zeros_like(loss);
    if (options.voxel_loss && options.is_softmax()) {
        const auto [losses, shares] = cross_entropy_losses(voxels, /*log_probabilities=*/false, weight, dim,
                                                           options.label_smoothing, options.gamma);
        loss = sum(losses).sum(1);
        loss_weight = sum(shares).sum(1);
    } else if (options.voxel_loss) {
        const auto losses = binary_losses(voxels, weight, dim, options.label_smoothing, options.gamma);
        loss = sum(losses).sum(1);
        loss_weight = sum_of_samples(v, dim).sum(1) * num_classes;
    }
    return {intersection, sum(squared(p)), targets, loss, loss_weight};
}

// ---- devices without a kernel: the composite in slabs ---------------------------------------------------------------

// Of a tensor [N, C] or [N]: the samples that are in a slab.
Tensor samples_of(const Slabs& slabs, const Tensor& sums, const Tensor& input, int64_t dim, int64_t slab) {
    return is_batched(input) && slabs.along() == batch_dim(dim) ? slabs.narrow(sums, 0, slab) : sums;
}

Results forward_slabs(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                      const OptionalTensor& voxel_weight, int64_t dim, int64_t activation, bool squared,
                      int64_t ignore_index, bool voxel_loss, double gamma, double label_smoothing, bool soft_label,
                      bool any_finite_target) {
    const Options options{std::string(op), dim,   activation,      squared,    ignore_index,
                          voxel_loss,      gamma, label_smoothing, soft_label, any_finite_target};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    check_values(options.op, input, target, voxel_weight, kind, dim, ignore_index,
                 ranges_for(input, target, kind, options));
    const at::NoGradGuard no_graph;
    const auto zeros = [&](at::IntArrayRef sizes) {
        return at::zeros(sizes, input.options().dtype(widest_dtype(input)));
    };
    const auto samples = num_samples(input, dim).expect_int();
    const auto stats = [&] { return zeros({samples, input.size(dim)}); };
    const Results results{stats(), stats(), stats(), zeros({samples}), zeros({samples})};
    const auto& [intersection, prediction, targets, loss, loss_weight] = results;
    const Slabs slabs(input, dim);
    for (int64_t k = 0; k < slabs.count(); ++k) {
        const auto part =
            composite(slabs.of(input, k), slabs.of(target, k), weight, slabs.of(voxel_weight, k), options);
        samples_of(slabs, intersection, input, dim, k).add_(std::get<0>(part));
        samples_of(slabs, prediction, input, dim, k).add_(std::get<1>(part));
        samples_of(slabs, targets, input, dim, k).add_(std::get<2>(part));
        samples_of(slabs, loss, input, dim, k).add_(std::get<3>(part));
        samples_of(slabs, loss_weight, input, dim, k).add_(std::get<4>(part));
    }
    return results;
}

Tensor backward_slabs(const Tensor& grad_intersection, const Tensor& grad_prediction, const Tensor& grad_loss,
                      c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                      const OptionalTensor& voxel_weight, int64_t dim, int64_t activation, bool squared,
                      int64_t ignore_index, bool voxel_loss, double gamma, double label_smoothing, bool soft_label,
                      bool any_finite_target) {
    const Options options{std::string(op), dim,   activation,      squared,    ignore_index,
                          voxel_loss,      gamma, label_smoothing, soft_label, any_finite_target};
    const auto kind = check_operator_arguments(input, target, weight, voxel_weight, options);
    check_gradients(grad_intersection, grad_prediction, grad_loss, input, options);
    check_values(options.op, input, target, voxel_weight, kind, dim, ignore_index,
                 ranges_for(input, target, kind, options));
    const auto grad_input = at::empty_like(input);
    const Slabs slabs(input, dim);
    for (int64_t k = 0; k < slabs.count(); ++k) {
        const auto sums = [&](const Tensor& slab) {
            const auto part = composite(slab, slabs.of(target, k), weight, slabs.of(voxel_weight, k), options);
            return variable_list{std::get<0>(part), std::get<1>(part), std::get<3>(part)};
        };
        const variable_list grads{samples_of(slabs, grad_intersection, input, dim, k),
                                  samples_of(slabs, grad_prediction, input, dim, k),
                                  samples_of(slabs, grad_loss, input, dim, k)};
        slabs.of(grad_input, k).copy_(slab_gradient(sums, slabs.of(input, k), grads));
    }
    return grad_input;
}

// ---- autograd -------------------------------------------------------------------------------------------------------

using at::AutoDispatchBelowADInplaceOrView; // the fallback of ADInplaceOrView would box every argument
using torch::autograd::compute_requires_grad;

Results call_forward(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& voxel_weight, const Options& o) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("segloss::soft_stats_forward", "")
                               .typed<decltype(forward_cpu)>();
    return op.call(o.op, input, target, weight, voxel_weight, o.dim, o.activation, o.squared, o.ignore_index,
                   o.voxel_loss, o.gamma, o.label_smoothing, o.soft_label, o.any_finite_target);
}

Tensor call_backward(const variable_list& grads, const Tensor& input, const Tensor& target,
                     const OptionalTensor& weight, const OptionalTensor& voxel_weight, const Options& o) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("segloss::soft_stats_backward", "")
                               .typed<decltype(backward_cpu)>();
    return op.call(grads[0], grads[1], grads[2], o.op, input, target, weight, voxel_weight, o.dim, o.activation,
                   o.squared, o.ignore_index, o.voxel_loss, o.gamma, o.label_smoothing, o.soft_label,
                   o.any_finite_target);
}

// A gradient, of zeros where nothing depends on what it belongs to.
Tensor or_zeros(const Tensor& grad, c10::SymIntArrayRef sizes, const Tensor& input) {
    return grad.defined() ? grad : input.new_zeros_symint(sizes, widest_dtype(input)); // a DTensor beside one
}

// From the gradients of intersection, prediction and loss to that of input.
Tensor backward_of_input(const variable_list& grads, const variable_list& saved, const Options& options) {
    const auto& input = saved[0];
    const auto samples = num_samples(input, options.dim);
    const c10::SymDimVector sizes{samples, input.sym_size(options.dim)};
    return call_backward(
        {or_zeros(grads[0], sizes, input), or_zeros(grads[1], sizes, input), or_zeros(grads[2], {samples}, input)},
        input, saved[1], defined_or_none(saved[2]), defined_or_none(saved[3]), options);
}

Results forward_autograd(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         const OptionalTensor& voxel_weight, int64_t dim, int64_t activation, bool squared,
                         int64_t ignore_index, bool voxel_loss, double gamma, double label_smoothing, bool soft_label,
                         bool any_finite_target) {
    const Options options{std::string(op), dim,   activation,      squared,    ignore_index,
                          voxel_loss,      gamma, label_smoothing, soft_label, any_finite_target};
    if (has_tangent({input, target, weight, voxel_weight}) || compute_requires_grad(target, or_undefined(weight))) {
        return composite(input, target, weight, voxel_weight, options);
    }
    const auto results = [&] {
        const AutoDispatchBelowADInplaceOrView below_autograd;
        return call_forward(input, target, weight, voxel_weight, options);
    }();
    if (compute_requires_grad(input)) {
        const auto& [intersection, prediction, targets, loss, loss_weight] = results;
        record("SoftStatsBackward", {intersection, prediction, loss}, {input},
               {input, target, or_undefined(weight), or_undefined(voxel_weight)},
               [options](const variable_list& grads, const variable_list& saved) {
                   return variable_list{backward_of_input(grads, saved, options)};
               });
    }
    return results;
}

Tensor backward_autograd(const Tensor& grad_intersection, const Tensor& grad_prediction, const Tensor& grad_loss,
                         c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         const OptionalTensor& voxel_weight, int64_t dim, int64_t activation, bool squared,
                         int64_t ignore_index, bool voxel_loss, double gamma, double label_smoothing, bool soft_label,
                         bool any_finite_target) {
    const Options options{std::string(op), dim,   activation,      squared,    ignore_index,
                          voxel_loss,      gamma, label_smoothing, soft_label, any_finite_target};
    check_operator_arguments(input, target, weight, voxel_weight, options); // before a graph is made of them
    const auto stats = [options](const variable_list& arguments) {
        const auto [intersection, prediction, targets, loss, loss_weight] = composite(
            arguments[0], arguments[1], defined_or_none(arguments[2]), defined_or_none(arguments[3]), options);
        return variable_list{intersection, prediction, loss};
    };
    const variable_list grads{grad_intersection, grad_prediction, grad_loss};
    return gradient_by_input(stats, {input, target, or_undefined(weight), or_undefined(voxel_weight)}, grads,
                             [&] { return call_backward(grads, input, target, weight, voxel_weight, options); });
}

// Gradients of the input alone; targets and weights that require one take the composite path.
class SoftStats : public torch::autograd::Function<SoftStats> {
public:
    static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& target,
                                 const OptionalTensor& weight, const OptionalTensor& voxel_weight,
                                 const Options& options) {
        const AutoDispatchBelowADInplaceOrView below_autograd;
        const auto [intersection, prediction, targets, loss, loss_weight] =
            call_forward(input, target, weight, voxel_weight, options);
        ctx->save_for_backward({input, target, or_undefined(weight), or_undefined(voxel_weight)});
        ctx->set_materialize_grads(false);
        ctx->saved_data["options"] = std::make_tuple(
            options.op, options.dim, options.activation, options.squared, options.ignore_index, options.voxel_loss,
            options.gamma, options.label_smoothing, options.soft_label, options.any_finite_target);
        return {intersection, prediction, targets, loss, loss_weight};
    }

    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        const variable_list differentiable{grads[0], grads[1], grads[3]};
        const auto gradient = backward_of_input(differentiable, ctx->get_saved_variables(), saved_options(ctx));
        return {gradient, Tensor(), Tensor(), Tensor(), Tensor()};
    }

private:
    static Options saved_options(AutogradContext* ctx) {
        const auto& fields = ctx->saved_data["options"].toTupleRef().elements();
        return {fields[0].toStringRef(), fields[1].toInt(),  fields[2].toInt(),    fields[3].toBool(),
                fields[4].toInt(),       fields[5].toBool(), fields[6].toDouble(), fields[7].toDouble(),
                fields[8].toBool(),      fields[9].toBool()};
    }
};

// ---- the operators --------------------------------------------------------------------------------------------------

Results soft_stats(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                   const OptionalTensor& voxel_weight, int64_t dim, c10::string_view activation, bool squared,
                   int64_t ignore_index, bool voxel_loss, double gamma, double label_smoothing, bool soft_label,
                   bool any_finite_target) {
    Options options{std::string(op),  0, 0, squared, ignore_index, voxel_loss, gamma, label_smoothing, soft_label,
                    any_finite_target};
    check_logits(options.op, input);
    options.activation = activation_of(options.op, activation);
    options.dim = class_dim(options.op, input, dim);
    const auto kind = check_arguments(input, target, weight, voxel_weight, options);
    auto labels = target;
    if (kind == Target::one_hot) {
        labels = one_hot_labels(options.op, target, options.dim);
    }
    if (is_compiled_from_composite(input) || compute_requires_grad(labels, or_undefined(weight))) {
        return composite(input, labels, weight, voxel_weight, options);
    }
    if (takes_function(input, labels, weight, voxel_weight)) {
        const auto results = SoftStats::apply(input, labels, weight, voxel_weight, options);
        // Detached, not marked by the Function as without a gradient: compiled autograd refuses such a mark.
        return {results[0], results[1], results[2].detach(), results[3], results[4].detach()};
    }
    return call_forward(input, labels, weight, voxel_weight, options);
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    m.def("soft_stats(str op, Tensor input, Tensor target, Tensor? weight=None, Tensor? voxel_weight=None, int dim=1, "
          "str activation=\"softmax\", bool squared=False, int ignore_index=-100, bool voxel_loss=False, "
          "float gamma=0.0, float label_smoothing=0.0, bool soft_label=False, bool any_finite_target=False) -> (Tensor "
          "intersection, Tensor prediction, Tensor target_sum, "
          "Tensor loss, Tensor loss_weight)",
          tags);
    m.def("soft_stats_forward(str op, Tensor input, Tensor target, Tensor? weight, Tensor? voxel_weight, int dim, "
          "int activation, bool squared, int ignore_index, bool voxel_loss, float gamma, float label_smoothing, "
          "bool soft_label, bool any_finite_target) -> "
          "(Tensor intersection, Tensor prediction, Tensor target_sum, Tensor loss, Tensor loss_weight)",
          tags);
    m.def("soft_stats_backward(Tensor grad_intersection, Tensor grad_prediction, Tensor grad_loss, str op, "
          "Tensor input, Tensor target, Tensor? weight, Tensor? voxel_weight, int dim, int activation, bool squared, "
          "int ignore_index, bool voxel_loss, float gamma, float label_smoothing, "
          "bool soft_label, bool any_finite_target) -> Tensor",
          tags);
}

TORCH_LIBRARY_IMPL(segloss, CompositeImplicitAutograd, m) { m.impl("soft_stats", TORCH_FN(soft_stats)); }

// Under vmap, too, the operator is what it is made of, not a loop over samples.
TORCH_LIBRARY_IMPL(segloss, FuncTorchBatchedDecomposition, m) { m.impl("soft_stats", TORCH_FN(soft_stats)); }

TORCH_LIBRARY_IMPL(segloss, Autograd, m) {
    m.impl("soft_stats_forward", TORCH_FN(forward_autograd));
    m.impl("soft_stats_backward", TORCH_FN(backward_autograd));
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("soft_stats_forward", TORCH_FN(forward_cpu));
    m.impl("soft_stats_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("soft_stats_forward", TORCH_FN(forward_slabs));
    m.impl("soft_stats_backward", TORCH_FN(backward_slabs));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("soft_stats_forward", TORCH_FN(forward_meta));
    m.impl("soft_stats_backward", TORCH_FN(backward_meta));
}

} // namespace segloss
