#include "composite.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <limits>

#include "targets.h"

namespace segloss {
namespace {

Tensor keep_class_dim(const Tensor& tensor, const Tensor& input, int64_t dim) {
    return tensor.dim() == input.dim() ? tensor : tensor.unsqueeze(dim);
}

// A weight per class, shaped to multiply input.
Tensor broadcast_weight(const Tensor& weight, const Tensor& input, int64_t dim) {
    c10::SymDimVector shape(input.dim(), 1);
    shape[dim] = weight.sym_size(0);
    return weight.to(input.scalar_type()).view_symint(shape);
}

// factor * nll, where a zero factor makes a zero term even at nll = inf.
Tensor weighted(const Tensor& factor, const Tensor& nll) {
    const auto void_terms = factor.eq(0).logical_and(nll.isposinf());
    return nll.masked_fill(void_terms, 0) * factor;
}

double lowest_of(const Tensor& tensor) {
    return tensor.scalar_type() == at::kDouble ? std::numeric_limits<double>::lowest()
                                               : std::numeric_limits<float>::lowest();
}

// log(1 - p_y) - log p_y for one class y of each voxel, p = softmax(input): the log-sum-exp of the other logits minus
// the y-th logit. It keeps the digits of a confident voxel, and of its gradient, as the kernels do.
//
// A large negative offset is added to the y-th logit, which takes it out of the softmax. A constant summand does not
// change derivatives, so those of -log_softmax at y are then the wanted ones, of every order; and the output of
// log_softmax is the only tensor of input's size that is saved. The value of -log_softmax is nearly that of the offset,
// and is replaced by the right one. A logit that is far below the largest already gets no offset, which would make it
// -inf. Where -log_softmax is inf, so is the right value.
Tensor log_odds_against(const Tensor& input, const Tensor& labels, int64_t dim) {
    const auto largest = input.detach().amax(dim, /*keepdim=*/true);
    const auto at_label = input.detach().gather(dim, labels) - largest;
    const auto offset = at::full_like(at_label, lowest_of(input) / 4).masked_fill(at_label.lt(lowest_of(input) / 2), 0);
    auto others = (input - largest).scatter_add(dim, labels, offset);
    const auto log_others = others.log_softmax(dim);
    const auto value = (others.detach().amax(dim, true) - at_label) - log_others.detach().amax(dim, /*keepdim=*/true);
    others.reset();
    const auto carrier = log_others.gather(dim, labels).neg();
    const auto constant = carrier.detach();
    return value + (carrier - constant.masked_fill(constant.isposinf(), 0));
}

// log(1 + exp(x)), to the last digit of a double. Not computed by log_sigmoid, whose derivatives under vmap warn.
Tensor log1p_exp(const Tensor& x) { return at::softplus(x, /*beta=*/1, /*threshold=*/40); }

// nll * (1 - p)^gamma, from log(1 - p) - log p. Where p = exp(-nll) is 0, the power is 1 and its derivatives are 0; but
// their products with nll, which may overflow or be infinite, would be nan. There the result is nll itself.
Tensor focal(const Tensor& nll, const Tensor& odds_against, double gamma) {
    if (gamma == 0) {
        return nll;
    }
    const auto power = (log1p_exp(odds_against.neg()) * -gamma).exp(); // derivatives are finite at p = 1
    const auto p_is_zero = nll.gt(746); // the largest nll with exp(-nll) > 0 in float64 is 745.1
    return at::where(p_is_zero, nll, nll.masked_fill(p_is_zero, 0) * power);
}

// -log p_c of every class, p = softmax(input). Only the largest p can be so close to 1 that log_softmax loses digits.
Tensor negative_log_softmax(const Tensor& input, int64_t dim) {
    const auto largest = input.detach().argmax(dim, /*keepdim=*/true);
    const auto least_nll = log1p_exp(log_odds_against(input, largest, dim));
    return input.log_softmax(dim).neg().scatter(dim, largest, least_nll);
}

// The weight of each voxel's class.
Tensor weight_of(const Tensor& labels, const OptionalTensor& weight, const Tensor& input) {
    return weight ? weight->to(input.scalar_type()).index_select(0, labels.flatten()).view_as(labels)
                  : at::ones_like(labels, input.options());
}

// Adds the losses of all classes, each with its share of the smoothing.
Tensor smoothed(const Tensor& losses, const Tensor& nll, const OptionalTensor& weight, int64_t dim,
                double label_smoothing) {
    const auto of_classes = weight ? weighted(broadcast_weight(*weight, nll, dim).expand_as(nll), nll) : nll;
    return losses + of_classes.sum({dim}, /*keepdim=*/true) * (label_smoothing / nll.sym_size(dim));
}

VoxelLosses label_losses(const Voxels& voxels, const OptionalTensor& weight, int64_t dim,
                         const VoxelLossOptions& options) {
    const auto& [label_smoothing, gamma, log_probabilities] = options;
    const auto& input = voxels.input;
    const auto& labels = voxels.target;
    const auto label_weight = weight_of(labels, weight, input);
    if (label_smoothing != 0) {
        const auto nll = negative_log_softmax(input, dim);
        const auto losses = weighted(label_weight * (1 - label_smoothing), nll.gather(dim, labels));
        return {smoothed(losses, nll, weight, dim, label_smoothing), label_weight};
    }
    const auto odds = log_probabilities ? Tensor() : log_odds_against(input, labels, dim);
    const auto losses = log_probabilities ? input.gather(dim, labels).neg() : focal(log1p_exp(odds), odds, gamma);
    return {weight ? weighted(label_weight, losses) : losses, label_weight};
}

// The marginal loss, -log of the sum of p over the label's set. The log-sum-exp of the set and of the other classes
// keep the digits of a confident voxel, as in log_odds_against; classes that are left out get a large negative offset.
VoxelLosses set_losses(const Voxels& voxels, const OptionalTensor& weight, int64_t dim,
                       const VoxelLossOptions& options) {
    const auto& [label_smoothing, gamma, log_probabilities] = options;
    const auto& x = voxels.input;
    const auto log_sum = [&](const Tensor& left_out) {
        return (x + left_out * (lowest_of(x) / 4)).logsumexp(dim, /*keepdim=*/true);
    };
    const auto inside = log_sum(1 - voxels.target);
    const auto odds = log_probabilities ? Tensor() : log_sum(voxels.target) - inside;
    const auto label_weight = weight_of(voxels.label, weight, x);
    const auto nll = log_probabilities ? -inside : focal(log1p_exp(odds), odds, gamma);
    const auto losses = weighted(label_weight * (1 - label_smoothing), nll);
    if (label_smoothing == 0) {
        return {losses, label_weight};
    }
    return {smoothed(losses, negative_log_softmax(x, dim), weight, dim, label_smoothing), label_weight};
}

VoxelLosses probability_losses(const Voxels& voxels, const OptionalTensor& weight, int64_t dim,
                               const VoxelLossOptions& options) {
    const auto& input = voxels.input;
    const auto& [label_smoothing, gamma, log_probabilities] = options;
    const auto nll = log_probabilities ? input.neg() : negative_log_softmax(input, dim);
    auto factor = voxels.target;
    if (label_smoothing != 0) {
        factor = factor * (1 - label_smoothing) + label_smoothing / nll.sym_size(dim);
    }
    if (weight) {
        factor = factor * broadcast_weight(*weight, nll, dim);
    }
    const auto losses = weighted(factor, nll).sum({dim}, /*keepdim=*/true);
    return {losses, at::ones_like(losses)};
}

// The loss for target 1: -log p with p = sigmoid(x), or its focal loss.
Tensor loss_of_ones(const Tensor& x, double gamma) { return focal(log1p_exp(x.neg()), x.neg(), gamma); }

// The weights of the terms for target 0 and for target 1, shaped to multiply the losses; undefined for 1.
struct TermWeights {
    Tensor zero, one;

    TermWeights at(const Tensor& labels) const {
        const auto pick = [&](const Tensor& weight) {
            return weight.defined() ? weight.flatten().index_select(0, labels.flatten()).view_as(labels) : weight;
        };
        return {pick(zero), pick(one)};
    }
};

// weight * losses, or the losses if the weight is undefined.
Tensor weighted_by(const Tensor& weight, const Tensor& losses) {
    return weight.defined() ? weighted(weight.expand_as(losses), losses) : losses;
}

// The loss for a tensor of targets g.
Tensor binary_loss(const Tensor& x, const Tensor& g, double gamma, const TermWeights& weights) {
    const auto& [zero, one] = weights;
    return weighted(one.defined() ? g * one : g, loss_of_ones(x, gamma)) +
           weighted(zero.defined() ? (1 - g) * zero : 1 - g, loss_of_ones(x.neg(), gamma));
}

// The loss for the same target g everywhere.
Tensor binary_loss(const Tensor& x, double g, double gamma, const TermWeights& weights) {
    if (g == 0 || g == 1) {
        return g == 0 ? weighted_by(weights.zero, loss_of_ones(x.neg(), gamma))
                      : weighted_by(weights.one, loss_of_ones(x, gamma));
    }
    return weighted_by(weights.one, loss_of_ones(x, gamma)) * g +
           weighted_by(weights.zero, loss_of_ones(x.neg(), gamma)) * (1 - g);
}

} // namespace

Voxels read_voxels(const Arguments& arguments, const Reading& reading) {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
    const auto& [kind, dim, labels, dtype_of_results, ranges] = reading;
    const auto dtype = reading.compute_dtype();
    Voxels voxels{kind, arguments.values(dim, dtype), {}, {}, {}, {}};
    const bool has_ignored = kind != Target::probabilities && may_ignore(target.scalar_type(), labels);
    if (kind == Target::labels) {
        voxels.target = keep_class_dim(class_labels(op, target, input.sym_size(dim), labels), input, dim);
    } else if (kind == Target::regions || kind == Target::sets) {
        const auto label = keep_class_dim(target, input, dim);
        voxels.target = set_masks(op, label, labels.table.value_or(Tensor()), input.sym_size(dim), dim);
        if (kind == Target::sets) {
            voxels.label = class_labels(op, label, INT32_MAX, labels).clamp_min(0);
        }
    } else if (kind == Target::masks) {
        voxels.target = keep_class_dim(class_masks(op, target, labels.ignore_index), input, dim);
    } else {
        voxels.target = keep_class_dim(target, input, dim);
    }
    if (has_ignored) {
        const auto negative = voxels.target.lt(0);
        voxels.ignored = kind != Target::labels ? negative.any(dim, /*keepdim=*/true) : negative;
    }
    if (kind != Target::labels) {
        voxels.target = voxels.target.to(dtype);
    }
    if (voxel_weight) {
        voxels.weight = keep_class_dim(*voxel_weight, input, dim).to(dtype);
        const auto weightless = voxels.weight->eq(0);
        voxels.ignored = has_ignored ? voxels.ignored->logical_or(weightless) : weightless;
    }
    if (voxels.ignored) {
        voxels.input = voxels.input.masked_fill(*voxels.ignored, 0); // no nan from voxels that do not count
        voxels.target = voxels.target.masked_fill(*voxels.ignored, 0);
    }
    if (is_asked(ranges.target)) {
        voxels.target = voxels.target + check_range(op, "target", voxels.target.detach(), ranges.target);
    }
    if (is_asked(ranges.logits)) {
        voxels.input = voxels.input + check_range(op, "input", voxels.input.detach(), ranges.logits);
    }
    if (kind == Target::labels && input.sym_size(dim) == 0) { // then no voxel counts
        voxels.kind = Target::probabilities;
        voxels.target = at::zeros_like(voxels.input);
    }
    return voxels;
}

Tensor group_masks(const Arguments& arguments, const Reading& reading) {
    const auto label = keep_class_dim(arguments.target, arguments.input, reading.dim);
    const auto masks = set_masks(arguments.op, label, reading.labels.table.value_or(Tensor()),
                                 arguments.input.sym_size(reading.dim), reading.dim, /*of_groups=*/true);
    return masks.clamp_min(0).to(reading.compute_dtype());
}

Tensor weighted_values(const Voxels& voxels, const Tensor& values) {
    const auto product = voxels.weight ? values * *voxels.weight : values;
    return voxels.ignored ? product.masked_fill(*voxels.ignored, 0) : product;
}

c10::SymDimVector voxel_sizes(const Tensor& input, int64_t dim) {
    c10::SymDimVector sizes(input.sym_sizes().begin(), input.sym_sizes().end());
    sizes[dim] = 1;
    return sizes;
}

Tensor counted_weight(const Voxels& voxels, int64_t dim) {
    return weighted_values(voxels, voxels.input.new_ones_symint(voxel_sizes(voxels.input, dim)));
}

VoxelLosses cross_entropy_losses(const Voxels& voxels, const OptionalTensor& weight, int64_t dim,
                                 const VoxelLossOptions& options) {
    if (voxels.input.sym_size(dim) == 0) {
        const auto zeros = voxels.input.sum({dim}, /*keepdim=*/true);
        const double softmax = options.log_probabilities ? 0 : std::numeric_limits<double>::quiet_NaN(); // no class
        return {zeros + softmax, at::ones_like(zeros)};
    }
    const auto losses = voxels.kind == Target::labels ? label_losses
                        : voxels.kind == Target::sets ? set_losses
                                                      : probability_losses;
    return losses(voxels, weight, dim, options);
}

Tensor binary_losses(const Voxels& voxels, const OptionalTensor& weight, int64_t dim, const VoxelLossOptions& options) {
    const auto& [kind, x, target, label, voxel_weight, ignored] = voxels;
    const auto& [label_smoothing, gamma, log_probabilities] = options;
    const double least = label_smoothing / 2; // the target 0 after smoothing
    TermWeights weights;
    if (weight) { // [C], or [2, C]
        const auto rows = weight->dim() == 2 ? *weight : weight->expand_symint({2, weight->sym_size(0)});
        weights = {broadcast_weight(rows.select(0, 0), x, dim), broadcast_weight(rows.select(0, 1), x, dim)};
    }
    if (kind == Target::labels) {
        const auto at_label = binary_loss(x.gather(dim, target), 1 - least, gamma, weights.at(target));
        return binary_loss(x, least, gamma, weights).scatter(dim, target, at_label);
    }
    return binary_loss(x, label_smoothing == 0 ? target : target * (1 - label_smoothing) + least, gamma, weights);
}

Tensor mean_loss(const Tensor& sum, const Tensor& total, bool empty_zero) {
    const auto empty = total.eq(0);
    const double empty_value = empty_zero ? 0 : std::numeric_limits<double>::quiet_NaN();
    return at::where(empty, at::scalar_tensor(empty_value, sum.options()), sum / total.masked_fill(empty, 1));
}

// A composite holds five to ten tensors of a slab's size; in slabs of a sixteenth of the logits these take less memory
// than the gradient. Slabs below 2 MiB would make a GPU wait for the host.
Slabs::Slabs(const Tensor& input, int64_t dim, bool splits) : num_dims_(input.dim()), dim_(dim) {
    constexpr int64_t kMaxCount = 16;
    constexpr int64_t kMinElements = 1 << 19;
    if (!splits || input.dim() == 1 || input.numel() == 0) {
        return;
    }
    along_ = dim == 0 ? 1 : 0;
    for (int64_t d = 0; d < input.dim(); ++d) {
        along_ = d != dim && input.size(d) > input.size(along_) ? d : along_;
    }
    size_ = input.size(along_);
    const auto most = std::clamp<int64_t>(input.numel() / kMinElements, 1, std::min(size_, kMaxCount));
    length_ = (size_ + most - 1) / most;
    count_ = (size_ + length_ - 1) / length_;
}

Tensor Slabs::of(const Tensor& tensor, int64_t slab) const {
    return narrow(tensor, tensor.dim() == num_dims_ || along_ < dim_ ? along_ : along_ - 1, slab);
}

Arguments Slabs::of(const Arguments& arguments, int64_t slab) const {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
    return {op,
            of(input, slab),
            of(target, slab),
            weight,
            voxel_weight ? OptionalTensor(of(*voxel_weight, slab)) : std::nullopt,
            label_table ? OptionalTensor(of_label_table(*label_table, slab)) : std::nullopt,
            coarse ? std::optional(coarse->part(range(slab))) : std::nullopt};
}

Tensor Slabs::of_label_table(const Tensor& table, int64_t slab) const {
    const auto place = along_ < dim_ ? along_ : along_ - 1; // among the dimensions of labels
    const bool is_split = place < table.dim() - 1 && table.size(place) > 1;
    return is_split ? narrow(table, place, slab).contiguous() : table;
}

Tensor Slabs::of_samples(const Tensor& tensor, int64_t slab) const {
    const int64_t batch_dim = dim_ == 0 ? 1 : 0;
    return along_ == batch_dim ? narrow(tensor, 0, slab) : tensor;
}

Range Slabs::range(int64_t slab) const {
    return count_ == 1 ? Range() : Range{along_, slab * length_, std::min(length_, size_ - slab * length_)};
}

Tensor Slabs::narrow(const Tensor& tensor, int64_t dim, int64_t slab) const {
    const auto begin = slab * length_;
    return count_ == 1 ? tensor : tensor.narrow(dim, begin, std::min(length_, size_ - begin));
}

Tensor largest_classes(const Tensor& input, const std::optional<Coarse>& coarse, int64_t dim, bool keepdim) {
    if (!coarse) {
        return input.argmax(dim, keepdim);
    }
    const Slabs slabs(input, dim);
    std::vector<Tensor> parts;
    for (int64_t slab = 0; slab < slabs.count(); ++slab) {
        const auto logits = coarse->part(slabs.range(slab)).values(dim, compute_dtype(input.scalar_type()));
        parts.push_back(logits.argmax(dim, /*keepdim=*/true));
    }
    const auto classes = at::cat(parts, slabs.along());
    return keepdim ? classes : classes.squeeze(dim);
}

Tensor slab_gradient(const std::function<variable_list(const Tensor&)>& composite, const Tensor& input,
                     const variable_list& grads) {
    const auto keys = c10::impl::tls_local_dispatch_key_set();
    const c10::impl::ForceDispatchKeyGuard with_autograd(
        keys.included_, keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView);
    const at::NoGradGuard no_graph_of_the_gradient;
    return composite_gradient(composite, input.detach(), grads);
}

} // namespace segloss
