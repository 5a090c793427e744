// Soft statistics of a sigmoid and its binary losses over tiles in registers, and their gradients. The formulas are in
// kernels.h, those that keep the digits of confident voxels in binary_tmpl.h.
#pragma once

#include "warp_soft_stats.cuh"
#include "warp_targets.cuh"

namespace {

// ---- one voxel and class --------------------------------------------------------------------------------------------

// Of a logit x: e = exp(-|x|), and 1 / (1 + e), the larger one of its two probabilities.
struct Logistic {
    float x, e, larger;

    __device__ explicit Logistic(float logit)
        : x(logit), e(fast_exp2(-LOG2_E * fabsf(logit))), larger(fast_reciprocal(1 + e)) {}

    // sigmoid(z) for z = x or z = -x.
    __device__ float sigmoid_of(float z) const { return larger * (z > 0 ? 1 : e); }
    __device__ float probability() const { return sigmoid_of(x); }
    __device__ float slope() const { return e * larger * larger; } // p (1 - p)
};

// The sum of log(1 + exp(-z)) = max(-z, 0) + log(1 + e). The e of up to 64 logits need one logarithm: excess + 1 is the
// product of their 1 + e.
struct SoftplusSum {
    float hinge = 0, excess = 0;

    __device__ void add(float z, float e) {
        hinge += fmaxf(-z, 0);
        excess = fmaf(excess, 1 + e, e);
    }

    __device__ float take() {
        const float sum = hinge + log1p_of_positive(excess);
        hinge = excess = 0;
        return sum;
    }
};

// A loss, and its derivative by the logit.
struct BinaryLoss {
    float loss, slope;
};

// The loss of target 1 for z = x, of target 0 for z = -x, and minus its derivative by z.
__device__ inline BinaryLoss binary_term(const Logistic& l, float z, float gamma) {
    const float excess = z > 0 ? z : 0, minus_log = fmaxf(-z, 0) + log1p_of_positive(l.e);
    const float other = l.sigmoid_of(-z);
    if (gamma == 0) {
        return {minus_log, other};
    }
    const float power = fast_exp2(gamma * (-LOG2_E * excess - fast_log2(1 + l.e)));
    const float p = l.sigmoid_of(z), product = p != 0 ? p * minus_log : 0;
    return {power * minus_log, power * (gamma * product + other)};
}

// What all voxels of a class have in common in their losses.
struct BinaryClass {
    float weight_of_one, weight_of_zero;

    __device__ BinaryClass(const segloss_cross_entropy& a, int c) {
        const auto of_classes = static_cast<const float*>(a.class_weight);
        const auto of_ones = static_cast<const float*>(a.weight_of_ones);
        weight_of_zero = of_classes ? load_global(of_classes + c) : 1;
        weight_of_one = of_ones ? load_global(of_ones + c) : weight_of_zero;
    }

    // Of a voxel with target g, for v = 1.
    __device__ BinaryLoss operator()(const segloss_cross_entropy& a, const Logistic& l, float g) const {
        const float gamma = static_cast<float>(a.gamma), smoothing = static_cast<float>(a.label_smoothing);
        if (a.target_kind != SEGLOSS_PROBABILITIES && smoothing == 0) {
            const float weight = g != 0 ? weight_of_one : weight_of_zero;
            const BinaryLoss term = binary_term(l, g != 0 ? l.x : -l.x, gamma);
            return {weighted(weight, term.loss), (g != 0 ? -weight : weight) * term.slope};
        }
        const float h = (1 - smoothing) * g + smoothing / 2, one = weight_of_one * h, zero = weight_of_zero * (1 - h);
        const BinaryLoss of_one = binary_term(l, l.x, gamma), of_zero = binary_term(l, -l.x, gamma);
        return {weighted(one, of_one.loss) + weighted(zero, of_zero.loss), zero * of_zero.slope - one * of_one.slope};
    }
};

// ---- the walk over tiles --------------------------------------------------------------------------------------------
//
// A rule says what to do with a row, the voxels of a lane in one class. There are two ways: for whole tiles of voxels
// that all count, with targets of 0 and 1 and without options, and for any others. Values and sizes alone decide which
// way a tile goes, not where it lies in memory, so that results have the same bits in all layouts.

// So many tiles are read before any of them is used.
template <class Shape> constexpr int TILES_AT_ONCE = Shape::K == 1 ? 4 : 1;

// The first tile of a walk and the next ones, whole. Planar rows are kept as they are in memory.
template <class Shape, bool WRITES> class PlainTiles {
public:
    static constexpr int K = Shape::K, U = Shape::U, TILES = TILES_AT_ONCE<Shape>;

    __device__ explicit PlainTiles(const WarpTile<Shape>& first_tile) : first(first_tile) {
        if constexpr (Shape::PLANAR) {
            first.load_rows(rows_);
        } else {
            first.start_copy();
        }
        are_plain = HardTargets<Shape>::read(first, targets_); // before a logit is used
        if constexpr (!Shape::PLANAR) {
            first.read_copied(rows_[0]);
        }
    }

    // Calls f(k, targets, row) for each row, which then holds its gradient.
    template <typename Function> __device__ void for_each_row(const Function& f) {
        UNROLL for (int i = 0; i < TILES * K; ++i) {
            const int k = i % K;
            auto& row = rows_[i / K][k];
            if constexpr (Shape::PLANAR) {
                float x[U];
                unpack<typename Shape::T>(row, x);
                f(k, targets_[i / K], x);
                row = pack<typename Shape::T>(x);
            } else {
                f(k, targets_[i / K], row);
            }
        }
        if constexpr (WRITES) {
            if (first.a.grad_logits.data) {
                store();
            }
        }
    }

    bool are_plain;

private:
    __device__ void store() const {
        if constexpr (Shape::PLANAR) {
            first.store_rows(rows_);
        } else {
            first.store_grad(rows_[0]);
        }
    }

    const WarpTile<Shape>& first;
    HardTargets<Shape> targets_[TILES];
    std::conditional_t<Shape::PLANAR, typename Shape::Vector[TILES][K], float[TILES][K][U]> rows_;
};

template <class Shape, class Rule> class SigmoidWalk {
public:
    static constexpr int K = Shape::K, U = Shape::U, AT_ONCE = TILES_AT_ONCE<Shape>;

    __device__ SigmoidWalk(WarpTile<Shape>* of_warp, Rule* of_tiles) : first(*of_warp), rule(*of_tiles) {
        const auto visit = [&] {
            if (!visit_plain()) {
                NO_UNROLL for (int i = 0; i < AT_ONCE; ++i) { visit_any(first.ahead(i)); }
            }
        };
        first.template for_each<AT_ONCE>(visit, [&] { rule.end_round(first); });
    }

    Totals refused;

private:
    __device__ bool visit_plain() {
        if (!__builtin_expect(first.grid.plain_sigmoid && first.is_whole(AT_ONCE), 1)) {
            return false;
        }
        PlainTiles<Shape, Rule::WRITES> tiles(first);
        if (__builtin_expect(__any_sync(ALL_LANES, !tiles.are_plain), 0)) {
            return false;
        }
        tiles.for_each_row([&](int k, const HardTargets<Shape>& targets, float (&x)[U]) {
            if (first.has_class(k)) {
                rule.visit_plain(k, targets, x);
            }
        });
        rule.end_plain(first);
        return true;
    }

    __device__ void visit_any(const WarpTile<Shape>& tile) {
        if constexpr (!Shape::PLANAR) {
            tile.start_copy();
            tile.finish_copy();
        }
        SoftTargets<Shape> targets(tile, &refused);
        const bool writes = Rule::WRITES && tile.a.grad_logits.data;
        float x[U], next[U], g[U];
        rule.begin_any_tile(tile, targets.voxels);
        tile.load_row(0, next);
        NO_UNROLL for (int k = 0; k < K && tile.has_class(k); ++k) {
            UNROLL for (int u = 0; u < U; ++u) { x[u] = targets.voxels.label[u] == tile.NO_CLASS ? 0 : next[u]; }
            if (k + 1 < K && tile.has_class(k + 1)) {
                tile.load_row(k + 1, next); // before this row is used
            }
            targets.load_row(k, g);
            rule.visit_any(k, tile.class_of(k), targets.voxels.weight, g, x);
            if (writes) {
                tile.store_row(k, x);
            }
        }
        if (!Shape::PLANAR && writes) {
            tile.copy_out();
        }
    }

    WarpTile<Shape>& first;
    Rule& rule;
};

// ---- forward --------------------------------------------------------------------------------------------------------

// A lane's losses, and its weights if it is in the first group. Most of these are 1.
struct SigmoidLosses {
    CompensatedSum losses;
    double weights = 0;
    int num_ones = 0;

    __device__ double loss() const { return losses.value(); }
    __device__ double weight() const { return weights + num_ones; }
};

// Where no gradient is wanted.
struct NoScale {
    __device__ NoScale(const segloss_cross_entropy& /*args*/, const Denominator& /*denominator*/) {}
    __device__ float factor() const { return 0; }
    template <class Shape> __device__ void multiply(const WarpTile<Shape>&, float (&)[Shape::U]) const {}
};

// Adds up the sums of classes with STATS and the losses with LOSS, and finds the gradient of the losses with GRADIENT.
template <class Shape, bool STATS, bool LOSS, bool GRADIENT> class SigmoidForward {
public:
    static constexpr int K = Shape::K, U = Shape::U;
    static constexpr bool WRITES = GRADIENT;

    SigmoidLosses losses;

    __device__ SigmoidForward(const segloss_soft_stats& stats, const double* total_weight, BlockSums* of_block)
        : s_(stats), scale_(stats.voxels, {total_weight}), block_(*of_block) {}

    __device__ void visit_plain(int k, const HardTargets<Shape>& targets, float (&x)[U]) {
        UNROLL for (int u = 0; u < U; ++u) {
            const Logistic l(x[u]);
            const bool is_one = targets.is_one(k, u);
            const float z = is_one ? l.x : -l.x;
            if (STATS) {
                const float p = l.probability();
                sums_.intersection[k] += is_one ? p : 0;
                sums_.prediction[k] += p;
            }
            if (LOSS) {
                softplus_.add(z, l.e);
            }
            if (GRADIENT) {
                x[u] = l.sigmoid_of(-z) * (is_one ? -scale_.factor() : scale_.factor());
            }
        }
        if (STATS) {
            sums_.target[k] += targets.count(k);
        }
    }

    __device__ void end_plain(const WarpTile<Shape>& tile) {
        if (LOSS) {
            loss_ += softplus_.take();
            losses.num_ones += tile.group == 0 ? TILES_AT_ONCE<Shape> * U : 0;
        }
    }

    __device__ void begin_any_tile(const WarpTile<Shape>& tile, const TileVoxels<U>& voxels) {
        UNROLL for (int u = 0; u < U; ++u) {
            factors_[u] = voxels.weight[u];
            losses.weights += tile.group == 0 ? static_cast<double>(voxels.weight[u]) : 0;
        }
        scale_.multiply(tile, factors_);
    }

    __device__ void visit_any(int k, int c, const float (&v)[U], const float (&g)[U], float (&x)[U]) {
        const BinaryClass of_class(s_.voxels, c);
        float intersection = 0, prediction = 0, target = 0, loss = 0;
        UNROLL for (int u = 0; u < U; ++u) {
            const Logistic l(x[u]);
            if (STATS) {
                const float p = l.probability();
                intersection += v[u] * (s_.soft_label ? (g[u] < p ? g[u] : p) : weighted(g[u], p));
                prediction += v[u] * p * (s_.squared ? p : 1);
                target += v[u] * g[u] * (s_.squared ? g[u] : 1);
            }
            if (LOSS) {
                const BinaryLoss of_voxel = of_class(s_.voxels, l, g[u]);
                loss += v[u] * of_voxel.loss;
                x[u] = GRADIENT ? factors_[u] * of_voxel.slope : x[u];
            }
        }
        loss_ += loss;
        if (STATS) {
            sums_.add(k, intersection, prediction, target);
        }
    }

    __device__ void end_round(const WarpTile<Shape>& tile) {
        if (STATS) {
            block_.add(tile, &sums_);
        }
        if (LOSS) {
            losses.losses.add(loss_);
            loss_ = 0;
        }
    }

private:
    using Scale = std::conditional_t<GRADIENT, LossScale, NoScale>;

    const segloss_soft_stats& s_;
    const Scale scale_;
    BlockSums& block_;
    LaneSums<K> sums_; // over the tiles of one round
    SoftplusSum softplus_;
    float loss_ = 0;   // over the tiles of one round
    float factors_[U]; // of the gradients of a tile's voxels
};

template <class Shape, bool STATS, bool LOSS, bool GRADIENT>
__global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE)
    warp_sigmoid_forward(const __grid_constant__ segloss_soft_stats s, const __grid_constant__ TileGrid grid,
                         const double* total_weight, int unless_one, ClassSums* rows, Totals* of_blocks) {
    const auto& a = s.voxels;
    if (GRADIENT && is_written<float>(a, unless_one)) {
        return;
    }
    const int num_summed = STATS ? static_cast<int>(a.num_classes) : 0;
    WarpTile<Shape> tile(a, grid);
    BlockSums block_sums(reinterpret_cast<ClassSums*>(segloss_shared + tile.shared_vectors()), num_summed);
    SigmoidForward<Shape, STATS, LOSS, GRADIENT> rule(s, total_weight, &block_sums);
    const SigmoidWalk<Shape, decltype(rule)> walk(&tile, &rule);
    write_tile_totals(rule.losses, walk.refused, of_blocks + blockIdx.x);
    if (STATS) {
        block_sums.write(walk.refused.num_refused > 0, rows + static_cast<int64_t>(blockIdx.x) * num_summed);
    }
}

// ---- backward -------------------------------------------------------------------------------------------------------

// The gradients with respect to the sums of v p g and of v p.
struct SigmoidSlopes {
    const float* by_intersection;
    const float* by_prediction;

    __device__ SigmoidSlopes(const segloss_soft_stats& s, int64_t sample)
        : by_intersection(static_cast<const float*>(s.grad_intersection) + sample * s.voxels.num_classes),
          by_prediction(static_cast<const float*>(s.grad_prediction) + sample * s.voxels.num_classes) {}
};

template <class Shape, bool LOSS> class SigmoidBackward {
public:
    static constexpr int K = Shape::K, U = Shape::U;
    static constexpr bool WRITES = true;

    __device__ SigmoidBackward(const WarpTile<Shape>& tile, const segloss_soft_stats& stats, int64_t sample,
                               const double* total_weight)
        : s_(stats), scale_(stats.voxels, {total_weight}), slopes_(stats, sample) {
        UNROLL for (int k = 0; k < K; ++k) {
            const int c = tile.class_of(k);
            of_zero_[k] = tile.has_class(k) ? load_global(slopes_.by_prediction + c) : 0;
            of_one_[k] = tile.has_class(k) ? of_zero_[k] + load_global(slopes_.by_intersection + c) : 0;
        }
    }

    __device__ void visit_plain(int k, const HardTargets<Shape>& targets, float (&x)[U]) {
        UNROLL for (int u = 0; u < U; ++u) {
            const Logistic l(x[u]);
            const bool is_one = targets.is_one(k, u);
            x[u] = l.slope() * (is_one ? of_one_[k] : of_zero_[k]);
            if (LOSS) {
                x[u] += l.sigmoid_of(is_one ? -l.x : l.x) * (is_one ? -scale_.factor() : scale_.factor());
            }
        }
    }

    __device__ void end_plain(const WarpTile<Shape>& /*tile*/) {}

    __device__ void begin_any_tile(const WarpTile<Shape>& tile, const TileVoxels<U>& voxels) {
        UNROLL for (int u = 0; u < U; ++u) { factors_[u] = voxels.weight[u]; }
        scale_.multiply(tile, factors_);
    }

    __device__ void visit_any(int /*k*/, int c, const float (&v)[U], const float (&g)[U], float (&x)[U]) {
        const BinaryClass of_class(s_.voxels, c);
        const float by_intersection = load_global(slopes_.by_intersection + c);
        const float by_prediction = load_global(slopes_.by_prediction + c);
        UNROLL for (int u = 0; u < U; ++u) {
            const Logistic l(x[u]);
            const float p = l.probability(), of_minimum = p < g[u] ? 1 : p == g[u] ? 0.5f : 0;
            const float slope =
                by_intersection * (s_.soft_label ? of_minimum : g[u]) + by_prediction * (s_.squared ? 2 * p : 1);
            x[u] = v[u] * l.slope() * slope;
            if (LOSS) {
                x[u] += factors_[u] * of_class(s_.voxels, l, g[u]).slope;
            }
        }
    }

    __device__ void end_round(const WarpTile<Shape>& /*tile*/) {}

private:
    using Scale = std::conditional_t<LOSS, LossScale, NoScale>;

    const segloss_soft_stats& s_;
    const Scale scale_;
    const SigmoidSlopes slopes_;
    float of_one_[K], of_zero_[K]; // the slopes of voxels with these targets
    float factors_[U];             // of the gradients of a tile's losses
};

template <class Shape, bool LOSS>
__global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE)
    warp_sigmoid_backward(const __grid_constant__ segloss_soft_stats s, const __grid_constant__ TileGrid grid,
                          bool is_per_sample, const double* total_weight, int unless_one, Totals* of_blocks) {
    if (is_written<float>(s.voxels, unless_one)) {
        return;
    }
    WarpTile<Shape> tile(s.voxels, grid);
    SigmoidBackward<Shape, LOSS> rule(tile, s, is_per_sample ? tile.sample : 0, total_weight);
    const SigmoidWalk<Shape, decltype(rule)> walk(&tile, &rule);
    write_tile_totals({}, walk.refused, of_blocks + blockIdx.x);
}

// ---- launching ------------------------------------------------------------------------------------------------------

// Each lane has 1 to K classes.
template <typename T, int K, bool PLANAR> using SigmoidShape = TileShape<T, K, true, PLANAR, PER_VECTOR<T>, false, 1>;

// Returns f(shape), an error of CUDA's runtime. Few shapes are compiled: those of voxels whose classes are contiguous
// are rare with a sigmoid.
template <typename T, typename Function> int with_sigmoid_shape(const TileCall& tiles, const Function& f) {
    const int64_t num_classes = tiles.args.num_classes;
    return num_classes == 1   ? f(TileShape<T, 1, false, true>())
           : !tiles.is_planar ? f(SigmoidShape<T, 8, false>())
           : num_classes <= 4 ? f(SigmoidShape<T, 4, true>())
                              : f(SigmoidShape<T, 8, true>());
}

template <bool STATS, bool LOSS, bool GRADIENT, typename T>
int launch_sigmoid_forward(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                           const double* total_weight, int unless_one, void* rows) {
    auto args = s;
    args.voxels = tiles.args;
    const int64_t sum_bytes = STATS ? WARPS * args.voxels.num_classes * static_cast<int64_t>(sizeof(ClassSums)) : 0;
    return with_sigmoid_shape<T>(tiles, [&](auto shape) {
        return launch_tiles(tiles, call, sum_bytes, warp_sigmoid_forward<decltype(shape), STATS, LOSS, GRADIENT>, args,
                            tiles.grid, total_weight, unless_one, static_cast<ClassSums*>(rows),
                            static_cast<Totals*>(call.workspace));
    });
}

} // namespace

template <typename T>
int launch_sigmoid_tiles(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                         const double* total_weight, int unless_one, void* rows) {
    const auto launch_of = !rows         ? launch_sigmoid_forward<false, true, true, T>
                           : s.with_loss ? launch_sigmoid_forward<true, true, false, T>
                                         : launch_sigmoid_forward<true, false, false, T>;
    return launch_of(tiles, s, call, total_weight, unless_one, rows);
}

template <typename T>
int launch_sigmoid_grad_tiles(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                              const double* total_weight, int unless_one) {
    auto args = s;
    args.voxels = tiles.args;
    return with_sigmoid_shape<T>(tiles, [&](auto shape) {
        using Shape = decltype(shape);
        const auto kernel = s.with_loss ? warp_sigmoid_backward<Shape, true> : warp_sigmoid_backward<Shape, false>;
        return launch_tiles(tiles, call, 0, kernel, args, tiles.grid, call.num_samples > 1, total_weight, unless_one,
                            static_cast<Totals*>(call.workspace));
    });
}
