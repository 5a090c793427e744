// The softmax of a tile in registers, and the losses of its voxels. The formulas are in kernels.h.
#pragma once

#include "fast_math.cuh"
#include "voxels.cuh"
#include "warp_sums.cuh"

namespace {

struct Maximum {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Sum {
    __device__ float operator()(float a, float b) const { return a + b; }
};

// Numbers of 2^16 and more would overflow, or lose what distinguishes them, when they are scaled. True for nan.
__device__ inline bool is_huge(float max) { return !(fabsf(max) < 65536); }

// The logits of a tile are replaced by exp(x_c - max). All exponentials of a voxel may have a common factor near 1,
// which cancels in what is computed of them.
template <class Shape> class TileExponentials {
public:
    static constexpr int K = Shape::K, U = Shape::U;

    float max[U];

    // Calls visit(k, u, power) when x[k][u] has become 2^power.
    template <typename Visit>
    __device__ TileExponentials(const WarpTile<Shape>& tile, float (&x)[K][U], const Visit& visit) {
        bool is_ordinary = true;
        UNROLL for (int u = 0; u < U; ++u) {
            max[u] = x[0][u];
            UNROLL for (int k = 1; k < K; ++k) { max[u] = fmaxf(max[u], x[k][u]); }
        }
        tile.reduce(max, Maximum());
        UNROLL for (int u = 0; u < U; ++u) { is_ordinary = is_ordinary && !is_huge(max[u]); }
        if (__builtin_expect(is_ordinary, 1)) {
            UNROLL for (int u = 0; u < U; ++u) {
                const float scaled_max = max[u] * LOG2_E;
                find(u, x, [&](float logit) { return fmaf(logit, LOG2_E, -scaled_max); }, visit);
            }
        } else {
            UNROLL for (int u = 0; u < U; ++u) {
                find(u, x, [&](float logit) { return (logit - max[u]) * LOG2_E; }, visit);
            }
        }
    }

private:
    template <typename Power, typename Visit>
    static __device__ void find(int u, float (&x)[K][U], const Power& power_of, const Visit& visit) {
        UNROLL for (int k = 0; k < K; ++k) {
            const float power = power_of(x[k][u]);
            x[k][u] = fast_exp2(power);
            visit(k, u, power);
        }
    }
};

// What the gradient of resized logits needs of a voxel.
template <class Shape>
__device__ VoxelState state_of(const TileVoxels<Shape::U>& v, int u, const TileExponentials<Shape>& exponentials,
                               float constant, float of_label) {
    const bool is_refused = v.weight[u] != v.weight[u];
    return {is_refused ? NAN : exponentials.max[u], constant, of_label, v.label[u]};
}

// A softmax whose labels matter for sums alone.
template <class Shape> struct TileSoftmax {
    static constexpr int K = Shape::K, U = Shape::U;

    float sums[U];
    TileExponentials<Shape> exponentials;

    __device__ TileSoftmax(const WarpTile<Shape>& tile, float (&x)[K][U])
        : exponentials(tile, x,
                       [&](int k, int u, float /*power*/) { sums[u] = k == 0 ? x[k][u] : sums[u] + x[k][u]; }) {
        tile.reduce(sums, Sum());
    }

    // 1 / sum_c exp(x_c - max).
    __device__ float share(int u) const { return fast_reciprocal(sums[u]); }
};

// A softmax and what losses need of it: the sum of the exponentials of all classes but the label's, so that a confident
// voxel keeps its digits, and log2 of the label's.
template <class Shape> struct LabelSoftmax {
    static constexpr int K = Shape::K, U = Shape::U;

    float others[U];
    float log2_label[U];
    TileExponentials<Shape> exponentials;

    __device__ LabelSoftmax(const WarpTile<Shape>& tile, const TileVoxels<U>& v, float (&x)[K][U])
        : exponentials(tile, x, [&](int k, int u, float power) {
              others[u] = k == 0 ? 0 : others[u];
              log2_label[u] = k == 0 ? 0 : log2_label[u];
              add_unless_label(v.is_label[u], 1u << k, x[k][u], &others[u], power, &log2_label[u]);
          }) {
        tile.reduce(others, Sum());
        tile.take_from_labels(v.label, log2_label);
    }

    __device__ float label(int u) const { return fast_exp2(log2_label[u]); }
    __device__ float share(int u) const { return fast_reciprocal(others[u] + label(u)); }

    // -log p_y.
    __device__ float loss(int u) const {
        const float quotient = others[u] * fast_reciprocal(label(u));
        const float of_large = LN_2 * (fast_log2(others[u] + label(u)) - log2_label[u]);
        return quotient <= 0.5f ? log1p_of_small(quotient) : of_large;
    }

    // exp(sum_u -log p_y) - 1 of all voxels. One logarithm takes the place of U, and losses near 0 keep their digits.
    __device__ float exp_of_losses_minus_1() const {
        float product = 0;
        UNROLL for (int u = 0; u < U; ++u) {
            const float quotient = others[u] * fast_reciprocal(label(u));
            product = fmaf(product, quotient, product + quotient);
        }
        return product;
    }

    // What focal multiplies -log p_y by, and its gradient; see focal_factor in voxel_tmpl.h.
    __device__ float2 focal_factors(int u, float gamma) const {
        const float sum = others[u] + label(u);
        const float power = fast_exp2(gamma * (fast_log2(others[u]) - fast_log2(sum)));
        const float quotient = label(u) != 0 && others[u] != 0 ? label(u) * loss(u) / others[u] : 0;
        return {power, power * (1 + gamma * quotient)};
    }
};

// Of each voxel of a tile: the loss, its share of the mean's denominator, and the factor of its gradient, all weighted.
template <int U> struct TileLosses {
    float loss[U], share[U], factor[U];

    template <class Shape>
    __device__ TileLosses(const segloss_cross_entropy& a, const TileVoxels<U>& v, const LabelSoftmax<Shape>& softmax) {
        UNROLL for (int u = 0; u < U; ++u) {
            loss[u] = softmax.loss(u);
            share[u] = factor[u] = v.weight[u];
        }
        if (__builtin_expect(a.gamma != 0, 0)) {
            UNROLL for (int u = 0; u < U; ++u) {
                const float2 focal = softmax.focal_factors(u, static_cast<float>(a.gamma));
                loss[u] = weighted(focal.x, loss[u]);
                factor[u] *= focal.y;
            }
        }
        if (__builtin_expect(a.class_weight != nullptr, 0)) {
            UNROLL for (int u = 0; u < U; ++u) {
                const int label = v.label[u] < 0 ? 0 : v.label[u];
                const float weight = load_global(static_cast<const float*>(a.class_weight) + label);
                loss[u] = weighted(weight, loss[u]);
                share[u] *= weight;
                factor[u] *= weight;
            }
        }
        UNROLL for (int u = 0; u < U; ++u) { loss[u] *= v.weight[u]; } // a voxel without weight has a finite loss
    }
};

template <class Shape>
__device__ void store_losses(const WarpTile<Shape>& tile, const segloss_tensor& to, const float (&losses)[Shape::U]) {
    UNROLL for (int u = 0; u < Shape::U; ++u) {
        if (tile.has_voxel(u) && tile.group == 0) {
            store_at(to, tile.offset(to, u), losses[u]);
        }
    }
}

// Adds the losses of a tile, stores them if they are asked for, and sets the factors of their gradients. Most tiles
// need no more than the sum of plain losses.
template <class Shape>
__device__ void add_losses(const WarpTile<Shape>& tile, const TileVoxels<Shape::U>& v,
                           const LabelSoftmax<Shape>& softmax, LossSums* sums, float (&factors)[Shape::U]) {
    constexpr float MAX_PRODUCT = 1e30f;
    const float product = softmax.exp_of_losses_minus_1();
    if (__builtin_expect(v.all_one && tile.grid.has_plain_losses && product < MAX_PRODUCT, 1)) {
        sums->add_ones(tile, log1p_of_positive(product));
        UNROLL for (auto& factor : factors) { factor = 1; }
        return;
    }
    const TileLosses<Shape::U> losses(tile.a, v, softmax);
    sums->add(tile, losses.loss, losses.share, v.all_one && !tile.a.class_weight);
    if (tile.a.loss.data) {
        store_losses(tile, tile.a.loss, losses.loss);
    }
    UNROLL for (int u = 0; u < Shape::U; ++u) { factors[u] = losses.factor[u]; }
}

// The factor that the gradients of all losses have, or of those of one tile.
class LossScale {
public:
    // All threads of a block construct it.
    __device__ LossScale(const segloss_cross_entropy& args, const Denominator& denominator) : a_(args) {
        const double total = value_of(denominator);
        const bool is_zero = total == 0;
        factor_ = is_zero ? 0 : static_cast<float>(a_.grad_scale / total);
        is_per_voxel_ = a_.grad_loss.data && (a_.grad_loss.strides[0] != 0 || a_.grad_loss.strides[1] != 0);
        if (a_.grad_loss.data && !is_per_voxel_ && !is_zero) {
            factor_ *= number_at(a_.grad_loss, 0);
        }
    }

    __device__ float factor() const { return factor_; } // of all losses

    template <class Shape> __device__ void multiply(const WarpTile<Shape>& tile, float (&factors)[Shape::U]) const {
        UNROLL for (auto& factor : factors) { factor *= factor_; }
        if (__builtin_expect(is_per_voxel_, 0)) {
            UNROLL for (int u = 0; u < Shape::U; ++u) {
                if (tile.has_voxel(u) && factors[u] != 0) {
                    factors[u] *= number_at(a_.grad_loss, tile.offset(a_.grad_loss, u));
                }
            }
        }
    }

private:
    static __device__ double value_of(const Denominator& denominator) {
        if (denominator.count == 1) {
            return denominator.numbers ? *denominator.numbers : 1;
        }
        double sum = 0;
        for (int i = static_cast<int>(threadIdx.x); i < denominator.count; i += THREADS) {
            sum += load_global(denominator.numbers + i * denominator.stride);
        }
        return sum_for_block(sum);
    }

    const segloss_cross_entropy& a_;
    float factor_;
    bool is_per_voxel_;
};

} // namespace
