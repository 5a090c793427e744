#include "composite.h"

#include <ATen/ATen.h>

#include <limits>

#include "targets.h"

namespace segloss {
namespace {

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

// factor * nll, where a zero factor makes a zero term even at nll = inf.
Tensor weighted(const Tensor& factor, const Tensor& nll) {
    const auto void_terms = factor.eq(0).logical_and(nll.isposinf());
    return nll.masked_fill(void_terms, 0) * factor;
}

double lowest_of(const Tensor& tensor) {
    return tensor.scalar_type() == at::kDouble ? std::numeric_limits<double>::lowest()
                                               : std::numeric_limits<float>::lowest();
}

// (1 - p_y)^gamma as exp(gamma log(1 - p_y)), whose derivatives stay finite as p_y goes to 1.
Tensor focal_factor(const Tensor& nll, const Tensor& labels, int64_t dim, double gamma) {
    const auto log_others = nll.neg().scatter(dim, labels, lowest_of(nll)).logsumexp({dim}, /*keepdim=*/true);
    return (log_others * gamma).exp();
}

VoxelLosses label_losses(const Voxels& voxels, const Tensor& nll, const OptionalTensor& weight, int64_t dim,
                         double label_smoothing, double gamma) {
    const auto& labels = voxels.target;
    const auto label_weight = weight ? weight->to(nll.scalar_type()).index_select(0, labels.flatten()).view_as(labels)
                                     : at::ones({}, nll.options());
    auto losses = weighted(label_weight * (1 - label_smoothing), nll.gather(dim, labels));
    if (gamma != 0) {
        losses = losses * focal_factor(nll, labels, dim, gamma);
    }
    if (label_smoothing != 0) {
        const auto share = label_smoothing / nll.sym_size(dim);
        const auto smooth = weighted(broadcast_weight(weight, nll, dim).expand_as(nll) * share, nll);
        losses = losses + smooth.sum({dim}, /*keepdim=*/true);
    }
    return {losses, label_weight.expand_as(losses)};
}

VoxelLosses probability_losses(const Voxels& voxels, const Tensor& nll, const OptionalTensor& weight, int64_t dim,
                               double label_smoothing) {
    auto factor = voxels.target;
    if (label_smoothing != 0) {
        factor = factor * (1 - label_smoothing) + label_smoothing / nll.sym_size(dim);
    }
    const auto losses = weighted(factor * broadcast_weight(weight, nll, dim), nll).sum({dim}, /*keepdim=*/true);
    return {losses, at::ones_like(losses)};
}

} // namespace

Voxels read_voxels(const std::string& op, const Tensor& input, const Tensor& target, const OptionalTensor& voxel_weight,
                   Target kind, int64_t dim, int64_t ignore_index, at::ScalarType dtype) {
    Voxels voxels{input.to(dtype), {}, at::ones({}, input.options().dtype(dtype)), {}};
    if (kind == Target::labels) {
        voxels.target = keep_class_dim(class_labels(op, target, input.sym_size(dim), ignore_index), input, dim);
        voxels.ignored = voxels.target.lt(0);
    } else if (kind == Target::masks) {
        voxels.target = class_masks(op, target, ignore_index);
        voxels.ignored = voxels.target.lt(0).any(dim, /*keepdim=*/true);
        voxels.target = voxels.target.to(dtype);
    } else {
        voxels.ignored = at::zeros_like(target.narrow_symint(dim, 0, 1), at::kBool);
        voxels.target = target.to(dtype);
    }
    if (voxel_weight) {
        voxels.weight = keep_class_dim(*voxel_weight, input, dim).to(dtype);
        voxels.ignored = voxels.ignored.logical_or(voxels.weight.eq(0));
    }
    voxels.input = voxels.input.masked_fill(voxels.ignored, 0); // no nan from voxels that do not count
    voxels.target = voxels.target.masked_fill(voxels.ignored, 0);
    return voxels;
}

Tensor counted_weight(const Voxels& voxels) {
    return voxels.weight.expand_as(voxels.ignored).masked_fill(voxels.ignored, 0);
}

Tensor class_targets(const Voxels& voxels, Target kind, int64_t dim) {
    return kind == Target::labels ? at::zeros_like(voxels.input).scatter(dim, voxels.target, 1) : voxels.target;
}

// (largest - x_c) + log1p(tail) as in the kernels, so that a confident voxel keeps its digits. For its gradient to keep
// them too, the largest logit takes no part in its own difference, which is 0; and the lowest number stands for it in
// the tail, not -inf, whose derivative would be nan.
Tensor negative_log_softmax(const Tensor& input, int64_t dim) {
    const auto index = input.detach().argmax(dim, /*keepdim=*/true);
    const auto largest = input.gather(dim, index);
    const auto log_tail = (input - largest).scatter(dim, index, lowest_of(input)).logsumexp({dim}, /*keepdim=*/true);
    const auto bound = largest.detach();
    const auto one = bound - bound + 1; // nan where the softmax is: the difference would be inf for +inf
    return ((largest - input).scatter(dim, index, 0) + at::softplus(log_tail)) * one;
}

VoxelLosses cross_entropy_losses(const Voxels& voxels, Target kind, const Tensor& nll, const OptionalTensor& weight,
                                 int64_t dim, double label_smoothing, double gamma) {
    return kind == Target::labels ? label_losses(voxels, nll, weight, dim, label_smoothing, gamma)
                                  : probability_losses(voxels, nll, weight, dim, label_smoothing);
}

Tensor binary_losses(const Voxels& voxels, Target kind, const OptionalTensor& weight, int64_t dim,
                     double label_smoothing, double gamma) {
    const auto& x = voxels.input;
    const auto g = class_targets(voxels, kind, dim) * (1 - label_smoothing) + label_smoothing / 2;
    // -log p and -log (1 - p)
    const auto minus_log_p = at::log_sigmoid(x).neg();
    const auto minus_log_q = at::log_sigmoid(-x).neg();
    auto hit = g;
    auto miss = 1 - g;
    if (gamma != 0) {
        hit = hit * (minus_log_q * -gamma).exp();
        miss = miss * (minus_log_p * -gamma).exp();
    }
    const auto losses = weighted(hit, minus_log_p) + weighted(miss, minus_log_q);
    return weighted(broadcast_weight(weight, x, dim).expand_as(losses), losses);
}

Tensor weighted_losses(const Voxels& voxels, const Tensor& losses) {
    return (losses * voxels.weight).masked_fill(voxels.ignored, 0);
}

} // namespace segloss
