// One voxel of cross entropy or soft statistics: what is read of it, its softmax and what the losses need of it.
#pragma once

#include "../voxel.h"
#include "sums.cuh"

namespace {

template <typename Real> struct SoftmaxOf;
template <> struct SoftmaxOf<float> {
    using type = softmax_float;
};
template <> struct SoftmaxOf<double> {
    using type = softmax_double;
};

// `Real` is what is computed in, `T` the elements of logits and gradient.
template <typename Real, typename T> struct Voxel {
    using Softmax = typename SoftmaxOf<Real>::type;

    const segloss_cross_entropy* a;
    int64_t logits_at, target_at, weight_at, loss_at, grad_loss_at, grad_at;
    int64_t label; // 0 where the target is probabilities or masks
    Real weight;   // v; 0 where the voxel does not count

    Voxel() = default;

    __device__ Voxel(const segloss_cross_entropy& args, int64_t position) : a(&args) {
        const segloss_tensor* const tensors[] = {&a->logits, &a->target,    &a->voxel_weight,
                                                 &a->loss,   &a->grad_loss, &a->grad_logits};
        int64_t offsets[6];
        find_offsets(a->positions, position, tensors, offsets);
        logits_at = offsets[0], target_at = offsets[1], weight_at = offsets[2];
        loss_at = offsets[3], grad_loss_at = offsets[4], grad_at = offsets[5];
        label = read_label();
        weight = label < 0 ? 0 : a->voxel_weight.data ? load<Real>(a->voxel_weight, weight_at) : 1;
    }

    __device__ bool is_refused() const { return label == BAD; }

    __device__ Real logit(int64_t c) const {
        return static_cast<Real>(number(element<T>(a->logits, logits_at + c * a->logits.stride_class)));
    }

    __device__ Real target(int64_t c) const {
        return a->target_kind == SEGLOSS_LABELS ? static_cast<Real>(c == label)
                                                : load<Real>(a->target, target_at + c * a->target.stride_class);
    }

    __device__ bool is_mask(Real value) const {
        return value == 0 || value == 1 || value == static_cast<Real>(a->ignore_index);
    }

    __device__ Real class_weight(int64_t c) const {
        return a->class_weight ? static_cast<const Real*>(a->class_weight)[c] : 1;
    }

    __device__ void write_grad(int64_t c, Real value) const {
        assign(static_cast<T*>(a->grad_logits.data)[grad_at + c * a->grad_logits.stride_class], value);
    }

    __device__ void fill_grad(Real value) const {
        for (int64_t c = 0; c < a->num_classes; ++c) {
            write_grad(c, value);
        }
    }

    // What multiplies the gradient of the losses for v = 1: grad_loss * grad_scale * v / total_weight.
    __device__ Real grad_scale(const double* total_weight) const {
        if (!a->grad_loss.data || (total_weight && *total_weight == 0)) {
            return 0;
        }
        const Real factor = static_cast<Real>(total_weight ? a->grad_scale / *total_weight : a->grad_scale);
        return load<Real>(a->grad_loss, grad_loss_at) * factor * weight;
    }

    // ---- softmax losses: labels have one sharp factor; probabilities and smoothing one for each class ----

    __device__ bool has_factors() const { return a->target_kind == SEGLOSS_PROBABILITIES || a->label_smoothing != 0; }

    // What multiplies -log p_c, without the sharp factor of a label.
    __device__ Real factor(int64_t c) const {
        const Real uniform = static_cast<Real>(a->label_smoothing / static_cast<double>(a->num_classes));
        if (a->target_kind == SEGLOSS_LABELS) {
            return class_weight(c) * uniform;
        }
        return class_weight(c) * (static_cast<Real>(1 - a->label_smoothing) * target(c) + uniform);
    }

    __device__ Softmax read_softmax(bool with_factors) const {
        Softmax s;
        if (a->log_probabilities) {
            start_log_probabilities(&s);
        } else {
            start_softmax(&s);
            for (int64_t c = 0; c < a->num_classes; ++c) {
                add_logit(&s, logit(c));
            }
            finish_softmax(&s);
        }
        for (int64_t c = 0; c < a->num_classes && with_factors; ++c) {
            add_factor(&s, logit(c), factor(c));
        }
        return s;
    }

    __device__ Real sharp_factor(const Softmax& s, bool of_gradient) const {
        if (a->target_kind != SEGLOSS_LABELS) {
            return 0;
        }
        const Real sharp = static_cast<Real>(1 - a->label_smoothing) * class_weight(label);
        return a->gamma == 0 ? sharp : sharp * focal_factor(&s, logit(label), static_cast<Real>(a->gamma), of_gradient);
    }

    __device__ Real loss(const Softmax& s) const {
        return weight * softmax_loss(&s, logit(label), sharp_factor(s, false));
    }

    // What the voxel adds to the mean's denominator.
    __device__ Real share_of_mean() const {
        return a->target_kind == SEGLOSS_LABELS ? weight * class_weight(label) : weight;
    }

private:
    __device__ int64_t read_label() const {
        if (a->target_kind == SEGLOSS_LABELS) {
            return load_class(a->target, target_at, a->num_classes, a->ignore_index);
        }
        return a->target_kind == SEGLOSS_MASKS ? read_masks() : 0;
    }

    // A refused mask counts for more than one to be ignored.
    __device__ int64_t read_masks() const {
        int64_t result = 0;
        for (int64_t c = 0; c < a->num_classes; ++c) {
            const Real mask = target(c);
            if (!is_mask(mask)) {
                return BAD;
            }
            if (mask == static_cast<Real>(a->ignore_index)) {
                result = IGNORED;
            }
        }
        return result;
    }
};

// The gradient of the losses of one voxel, class by class, times v and grad_loss.
template <typename Real, typename T> struct LossGrad {
    using Softmax = typename SoftmaxOf<Real>::type;

    const Voxel<Real, T>& v;
    const Softmax& s;
    Real share, scale, sharp, total;
    bool has_factors;

    __device__ LossGrad(const Voxel<Real, T>& voxel, const Softmax& softmax, Real grad_scale)
        : v(voxel), s(softmax), share(softmax_share(&softmax)), scale(grad_scale),
          sharp(voxel.sharp_factor(softmax, true)), total(static_cast<Real>(softmax.mass) + sharp),
          has_factors(voxel.has_factors()) {}

    __device__ Real operator()(int64_t c) const {
        const Real at_label = v.a->target_kind == SEGLOSS_LABELS && c == v.label ? sharp : 0;
        const Real q = has_factors ? v.factor(c) + at_label : at_label;
        return scale * (v.a->log_probabilities ? -q : softmax_grad(&s, share, v.logit(c), q, total));
    }
};

// Of the first refused voxel the label, or its first refused mask.
template <typename Real, typename T>
__device__ void report_target(const segloss_cuda_call& call, const segloss_cross_entropy& a, const Totals& total) {
    const Voxel<Real, T> v(a, total.first_refused);
    int64_t offset = v.target_at;
    if (a.target_kind == SEGLOSS_MASKS) {
        int64_t c = 0;
        while (v.is_mask(v.target(c))) {
            ++c;
        }
        offset += c * a.target.stride_class;
    }
    report(call, total, a.target, offset, false);
}

template <typename Real, typename T>
__global__ void finish(const __grid_constant__ segloss_cross_entropy a, const __grid_constant__ segloss_cuda_call call,
                       const Totals* of_blocks, int count, double losses_per_voxel, segloss_sums* sums) {
    Totals total;
    if (add_totals(call, of_blocks, count, sums, &total)) {
        report_target<Real, T>(call, a, total);
    }
    if (threadIdx.x == 0 && sums) {
        sums->weight *= losses_per_voxel;
    }
}

} // namespace
