// One voxel of cross entropy or soft statistics: its values, its softmax and its losses.
#pragma once

#include <type_traits>

#include "../voxel.h"
#include "tile.cuh"

namespace {

template <typename Real> struct SoftmaxOf;
template <> struct SoftmaxOf<float> {
    using type = softmax_float;
    using Sets = set_sums_float;
};
template <> struct SoftmaxOf<double> {
    using type = softmax_double;
    using Sets = set_sums_double;
};

using VoxelWalk = Walk<6>;

__device__ inline VoxelWalk walk_of(const segloss_cross_entropy& a) {
    return {a.positions, {&a.logits, &a.target, &a.voxel_weight, &a.loss, &a.grad_loss, &a.grad_logits}};
}

template <typename Real> __device__ bool is_outside(const segloss_range& range, Real value, bool finds_nan) {
    const bool is_outside = value < static_cast<Real>(range.low) || value > static_cast<Real>(range.high);
    return range.low < range.high && (is_outside || (finds_nan && value != value));
}

// `Real` is the type to compute in, `T` the element type of logits and gradient. They lie in a tile if `TILED`, else in
// their tensors.
template <typename Real, typename T, bool TILED> struct Voxel {
    using Number = Real;
    using Softmax = typename SoftmaxOf<Real>::type;
    using SetSums = typename SoftmaxOf<Real>::Sets;
    using Stride = std::conditional_t<TILED, int, int64_t>;
    static constexpr bool IS_TILED = TILED;

    const segloss_cross_entropy* a;
    int64_t position, target_at, weight_at, loss_at, grad_loss_at;
    int64_t label = IGNORED; // 0 for valid masks and probabilities
    Real weight = 0;         // v; 0 if the voxel does not count
    bool exists;             // false past the end
    Classes<T, Stride> logits, grad;

    __device__ Voxel(const segloss_cross_entropy& args, const VoxelWalk& at, bool is_inside)
        : a(&args), position(at.position()), target_at(at[1]), weight_at(at[2]), loss_at(at[3]), grad_loss_at(at[4]),
          exists(is_inside) {
        if (exists) {
            label = read_label();
            weight = label < 0 ? 0 : a->voxel_weight.data ? load<Real>(a->voxel_weight, weight_at) : 1;
            refuse_if(a->target_kind == SEGLOSS_PROBABILITIES && weight != 0 && first_refused_class() < a->num_classes);
        }
    }

    // Call it when `logits` is set.
    __device__ void check_logits() {
        for (int64_t c = 0; a->logit_range.low < a->logit_range.high && weight != 0 && c < a->num_classes; ++c) {
            refuse_if(is_outside(a->logit_range, logit(c), false));
        }
    }

    __device__ bool is_refused() const { return label == BAD; }

    __device__ Real logit(int64_t c) const { return static_cast<Real>(number(logits[c])); }

    __device__ Real target(int64_t c) const {
        if (has_label()) {
            return static_cast<Real>(c == label);
        }
        if (has_sets(&a->labels)) {
            return static_cast<Real>(label >= 0 && is_in_set(set_of_label(/*is_group=*/has_set()), c));
        }
        return load<Real>(a->target, target_at + c * a->target.stride_class);
    }

    // The first class whose probability is outside its range; C: none.
    __device__ int64_t first_refused_class() const {
        int64_t c = 0;
        while (c < a->num_classes && !is_outside(a->target_range, target(c), true)) {
            ++c;
        }
        return c;
    }

    __device__ bool is_mask(Real value) const {
        return value == 0 || value == 1 || value == static_cast<Real>(a->ignore_index);
    }

    __device__ Real class_weight(int64_t c) const {
        return a->class_weight ? static_cast<const Real*>(a->class_weight)[c] : 1;
    }

    __device__ Real weight_of_one(int64_t c) const {
        return a->weight_of_ones ? static_cast<const Real*>(a->weight_of_ones)[c] : class_weight(c);
    }

    __device__ void write_grad(int64_t c, Real value) const { assign(grad[c], static_cast<double>(value)); }

    // The gradient of a voxel that does not count, or is refused.
    __device__ void fill_without_weight() const {
        for (int64_t c = 0; c < a->num_classes && exists; ++c) {
            write_grad(c, is_refused() ? static_cast<Real>(NAN) : 0);
        }
    }

    // The factor of the losses' gradient for v = 1: grad_loss * grad_scale * v / total_weight. Binary losses that are
    // not reduced have a grad_loss for each class.
    __device__ Real grad_scale(const double* total_weight, int64_t c = 0) const {
        if (total_weight && *total_weight == 0) {
            return 0;
        }
        const Real factor = static_cast<Real>(total_weight ? a->grad_scale / *total_weight : a->grad_scale);
        const int64_t at = grad_loss_at + c * a->grad_loss.stride_class;
        return (a->grad_loss.data ? load<Real>(a->grad_loss, at) : 1) * factor * weight;
    }

    // ---- sets: the label stands for the classes of its set; its group is for statistics ----

    __device__ bool has_set() const { return a->target_kind == SEGLOSS_SETS; }

    __device__ const int64_t* set_of_label(bool is_group) const {
        const auto* const row = row_of_position(&a->labels, position);
        return set_of_class(row, label + (is_group ? row[SEGLOSS_ROW_CLASSES] : 0));
    }

    __device__ SetSums read_set(const Softmax& s) const {
        const auto* const set = set_of_label(/*is_group=*/false);
        SetSums sums;
        start_set(&sums);
        for (int64_t c = 0; c < a->num_classes; ++c) {
            sums.max = is_in_set(set, c) && logit(c) > sums.max ? logit(c) : sums.max;
        }
        for (int64_t c = 0; c < a->num_classes; ++c) {
            add_to_set(&sums, &s, logit(c), is_in_set(set, c));
        }
        return sums;
    }

    // The factor of -log q, or of its gradient.
    __device__ Real set_factor(const Softmax& s, const SetSums& set, bool of_gradient) const {
        const Real sharp = sharp_weight(), gamma = static_cast<Real>(a->gamma);
        return gamma == 0 ? sharp
                          : sharp * set_focal_factor(odds_against_set(&s, &set), set_nll(&s, &set), gamma, of_gradient);
    }

    // ---- softmax losses: a label has one sharp factor; probabilities and smoothing have a factor for each class ----

    __device__ bool has_label() const { return a->target_kind == SEGLOSS_LABELS; }

    __device__ bool has_factors() const { return a->target_kind == SEGLOSS_PROBABILITIES || a->label_smoothing != 0; }

    // The factor of -log p_c, without the sharp factor of a label.
    __device__ Real factor(int64_t c) const {
        const Real uniform = static_cast<Real>(a->label_smoothing / static_cast<double>(a->num_classes));
        if (has_label() || has_set()) {
            return class_weight(c) * uniform;
        }
        return class_weight(c) * (static_cast<Real>(1 - a->label_smoothing) * target(c) + uniform);
    }

    __device__ Softmax read_softmax(bool with_factors) const {
        Softmax s;
        if (a->log_probabilities) {
            start_log_probabilities(&s);
        } else {
            read_logits(&s);
        }
        for (int64_t c = 0; c < a->num_classes && with_factors; ++c) {
            add_factor(&s, logit(c), factor(c));
        }
        return s;
    }

    __device__ Real sharp_weight() const { return static_cast<Real>(1 - a->label_smoothing) * class_weight(label); }

    __device__ Real sharp_factor(const Softmax& s, bool of_gradient) const {
        if (!has_label()) {
            return 0;
        }
        const Real sharp = sharp_weight();
        return a->gamma == 0 ? sharp : sharp * focal_factor(&s, logit(label), static_cast<Real>(a->gamma), of_gradient);
    }

    __device__ Real loss(const Softmax& s) const {
        const Real x_y = has_label() ? logit(label) : s.max; // there may be no classes
        const Real loss = softmax_loss(&s, x_y, sharp_factor(s, false));
        return weight * (has_set() ? loss + set_loss(s) : loss);
    }

    // What the voxel adds to the mean's denominator.
    __device__ Real share_of_mean() const { return has_label() || has_set() ? weight * class_weight(label) : weight; }

private:
    // Of a set, without what smoothing adds.
    __device__ Real set_loss(const Softmax& s) const {
        const auto set = read_set(s);
        const Real sharp = set_factor(s, set, false);
        return sharp == 0 ? 0 : sharp * (a->log_probabilities ? set_log_nll(&set) : set_nll(&s, &set));
    }

    __device__ void refuse_if(bool is_refused) {
        label = is_refused ? BAD : label;
        weight = is_refused ? 0 : weight;
    }

    __device__ void read_logits(Softmax* s) const {
        start_softmax(s);
        for (int64_t group = 0; group < a->num_classes; group += VOXEL_GROUP) {
            const int64_t end = group + VOXEL_GROUP < a->num_classes ? group + VOXEL_GROUP : a->num_classes;
            for (int64_t c = group; c < end; ++c) {
                add_logit(s, logit(c));
            }
            finish_group(s);
        }
        finish_softmax(s);
    }

    __device__ int64_t read_label() const {
        if (has_label() || has_sets(&a->labels)) {
            return load_class(a->target, target_at, a->labels, position, a->num_classes, a->ignore_index);
        }
        return a->target_kind == SEGLOSS_MASKS ? read_masks() : 0;
    }

    // A refused mask takes precedence over an ignored one.
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

// Calls visit(voxel) for this thread's voxels in [begin, end), then stores the gradients that a tile holds, if they are
// wanted. All threads of a block call it together, including those past the end.
template <typename V, typename T, typename Function>
__device__ void for_each_voxel(const segloss_cross_entropy& a, int64_t begin, int64_t end, const Function& visit) {
    Tile<T> tile(a.num_classes);
    for_each_tile(walk_of(a), begin, end, [&](const VoxelWalk& at, int count) {
        const int thread = static_cast<int>(threadIdx.x);
        V voxel(a, at, thread < count);
        if constexpr (V::IS_TILED) {
            tile.load(a.logits, at[0], count);
            voxel.logits = voxel.grad = tile.voxel(thread);
        } else {
            voxel.logits = {static_cast<T*>(a.logits.data) + at[0], a.logits.stride_class};
            voxel.grad = {static_cast<T*>(a.grad_logits.data) + at[5], a.grad_logits.stride_class};
        }
        voxel.check_logits();
        visit(voxel);
        if (V::IS_TILED && a.grad_logits.data) {
            tile.store(a.grad_logits, at[5], count);
        }
    });
}

// The gradient of the losses of one voxel, class by class, including v and grad_loss.
template <typename V> struct LossGrad {
    using Real = typename V::Number;

    const V& v;
    const typename V::Softmax& s;
    Real share, scale, sharp, total;
    typename V::SetSums set;

    __device__ LossGrad(const V& voxel, const typename V::Softmax& softmax, Real grad_scale)
        : v(voxel), s(softmax), share(softmax_share(&softmax)), scale(grad_scale),
          sharp(voxel.sharp_factor(softmax, true)), total(static_cast<Real>(softmax.mass) + sharp) {
        if (v.has_set()) {
            set = v.read_set(s);
            sharp = v.set_factor(s, set, true);
        }
    }

    // Calls visit(c, gradient) for every class.
    template <typename Function> __device__ void for_each(const Function& visit) const {
        if (v.has_set()) {
            const auto* const members = v.set_of_label(/*is_group=*/false);
            for (int64_t c = 0; c < v.a->num_classes; ++c) {
                visit(c, of_set(c, is_in_set(members, c)));
            }
            return;
        }
        if (v.has_factors() || v.a->log_probabilities) {
            for (int64_t c = 0; c < v.a->num_classes; ++c) {
                visit(c, with_factors(c));
            }
            return;
        }
        const Real of_label = scale * sharp;
        for (int64_t c = 0; c < v.a->num_classes; ++c) {
            visit(c, of_label * label_grad(&s, share, v.logit(c), c == v.label));
        }
    }

private:
    __device__ Real of_set(int64_t c, int is_in) const {
        const Real x = v.logit(c);
        const Real of_label =
            v.a->log_probabilities ? set_log_grad(&set, x, is_in) : set_grad(&s, &set, share, x, is_in);
        const Real of_all = v.has_factors() ? softmax_grad(&s, share, x, v.factor(c), total) : 0;
        return scale * ((sharp == 0 ? 0 : sharp * of_label) + of_all);
    }

    __device__ Real with_factors(int64_t c) const {
        const Real at_label = v.has_label() && c == v.label ? sharp : 0;
        const Real q = v.has_factors() ? v.factor(c) + at_label : at_label;
        return scale * (v.a->log_probabilities ? -q : softmax_grad(&s, share, v.logit(c), q, total));
    }
};

// Reports the label of the first refused voxel, or its first refused mask, probability or logit.
template <typename Real>
__device__ void report_refused(const segloss_cuda_call& call, const segloss_cross_entropy& a, const Totals& total) {
    auto walk = walk_of(a);
    walk.start(total.first_refused);
    const Voxel<Real, Real, false> v(a, walk, true); // without logits
    if (!v.is_refused()) {
        int64_t offset = walk[0];
        while (!is_outside(a.logit_range, load<Real>(a.logits, offset), false)) {
            offset += a.logits.stride_class;
        }
        report(call, total, a.logits, offset, SEGLOSS_OF_LOGITS);
        return;
    }
    const bool of_masks = a.target_kind == SEGLOSS_MASKS && !has_sets(&a.labels);
    int64_t c = a.target_kind == SEGLOSS_PROBABILITIES ? v.first_refused_class() : 0;
    while (of_masks && v.is_mask(v.target(c))) {
        ++c;
    }
    const int64_t stride = of_masks || a.target_kind == SEGLOSS_PROBABILITIES ? a.target.stride_class : 0;
    report(call, total, a.target, v.target_at + c * stride, SEGLOSS_OF_TARGET);
}

// One thread writes the sums of a sample.
__device__ inline void write_sums(const segloss_cuda_sums& sums, int64_t sample, double loss, double weight,
                                  const double* total_weight) {
    const double denominator = total_weight ? *total_weight : weight;
    if (sums.weight) {
        sums.weight[sample] = denominator;
    }
    if (sums.loss) {
        const double empty = sums.reduction == SEGLOSS_MEAN_OR_ZERO ? 0 : static_cast<double>(NAN);
        const double mean = denominator == 0 ? empty : loss / denominator;
        store({sums.loss, sums.loss_dtype, 0, {}}, sample, sums.reduction == SEGLOSS_SUM ? loss : mean);
    }
}

// Launched with one block.
template <typename Real>
__global__ void __launch_bounds__(THREADS)
    finish(const __grid_constant__ segloss_cross_entropy a, const __grid_constant__ segloss_cuda_call call,
           const Totals* of_blocks, int64_t count, const double* total_weight,
           const __grid_constant__ segloss_cuda_sums sums) {
    const Totals total = sum_of_blocks(of_blocks, count, 1);
    if (threadIdx.x == 0) {
        write_sums(sums, 0, total.loss, total.weight, total_weight);
    }
    if (is_news(call, total)) {
        report_refused<Real>(call, a, total);
    }
}

// The denominators of means depend on labels, masks and weights alone; forward checks the range of probabilities.
inline segloss_cross_entropy without_target_range(segloss_cross_entropy args) {
    args.target_range = {};
    return args;
}

// Adds the weights of the voxels in binary losses, or their shares of the mean of the others.
template <typename Real, bool IS_BINARY>
__global__ void __launch_bounds__(THREADS)
    add_weights(const __grid_constant__ segloss_cross_entropy a, int64_t begin, int64_t end, Totals* of_blocks) {
    Totals mine;
    for_each_tile(walk_of(a), begin, end, [&](const VoxelWalk& at, int count) {
        const Voxel<Real, Real, false> v(a, at, static_cast<int>(threadIdx.x) < count); // without logits
        if (v.is_refused()) {
            mine.refuse(v.position);
            mine.weight = NAN;
        } else if (v.weight != 0) {
            mine.weight += static_cast<double>(IS_BINARY ? v.weight : v.share_of_mean());
        }
    });
    write_totals(mine, of_blocks + blockIdx.x);
}

// Whether there is no gradient to compute: forward has written that for a grad_loss of 1.
template <typename Real> __device__ bool is_written(const segloss_cross_entropy& a, int unless_one) {
    return unless_one && load<Real>(a.grad_loss, 0) == 1;
}

} // namespace
