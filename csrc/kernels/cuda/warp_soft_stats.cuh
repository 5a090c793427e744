// Soft statistics of a softmax and labels over tiles in registers, with the losses of the same walk, and their
// gradient.
#pragma once

#include "class_sums.cuh"
#include "tile_launch.cuh"
#include "warp_softmax.cuh"

namespace {

// A lane's sums of each of its classes, over the tiles of one round.
template <int K> struct LaneSums {
    float intersection[K] = {}, prediction[K] = {}, target[K] = {};

    __device__ void clear() { *this = {}; }

    template <typename Function> __device__ void for_each_kind(const Function& f) {
        f(intersection);
        f(prediction);
        f(target);
    }

    __device__ ClassSums of_class(int k) const { return {intersection[k], prediction[k], target[k]}; }

    // Of a class that the compiler does not know.
    __device__ void add(int k, float of_intersection, float of_prediction, float of_target) {
        UNROLL for (int i = 0; i < K; ++i) {
            intersection[i] += i == k ? of_intersection : 0;
            prediction[i] += i == k ? of_prediction : 0;
            target[i] += i == k ? of_target : 0;
        }
    }
};

// The sums of a block, by warps: each warp adds to its own.
class BlockSums {
public:
    __device__ BlockSums(ClassSums* of_warps, int num_classes) : of_warps_(of_warps), num_classes_(num_classes) {
        for (int c = threadIdx.x % LANES; c < num_classes_; c += LANES) {
            of_warp()[c] = {};
        }
        __syncwarp();
    }

    template <class Shape> __device__ void add(const WarpTile<Shape>& tile, LaneSums<Shape::K>* lane) {
        add_over_columns<padded(Shape::K)>(tile, 1, 0, lane);
        lane->clear();
    }

    // Writes the sums of all warps; nan if the block has refused a voxel.
    __device__ void write(bool has_refused, ClassSums* row) const {
        const bool is_valid = __syncthreads_and(!has_refused);
        for (int c = threadIdx.x; c < num_classes_; c += THREADS) {
            ClassSums sum;
            for (int warp = 0; warp < WARPS; ++warp) {
                sum.add(of_warps_[warp * num_classes_ + c]);
            }
            row[c] = is_valid ? sum : ClassSums{NAN, NAN, NAN};
        }
    }

private:
    __device__ ClassSums* of_warp() const { return of_warps_ + threadIdx.x / LANES * num_classes_; }

    static __device__ constexpr int padded(int number) { return number <= 2 ? number : 2 * padded((number + 1) / 2); }

    // Keeps one half of `held` sums, of this lane and another, which keeps the other half.
    template <int HELD, int K> static __device__ void halve(bool keeps_last, int lanes, float (&sums)[K]) {
        UNROLL for (int k = 0; k < HELD / 2; ++k) {
            const float first = sums[k], last = k + HELD / 2 < K ? sums[k + HELD / 2] : 0;
            sums[k] = (keeps_last ? last : first) + __shfl_xor_sync(ALL_LANES, keeps_last ? first : last, lanes);
        }
    }

    // Adds the sums of lanes 1, 2, 4 and so on apart. A lane holds those of fewer and fewer classes, from `first` on.
    template <int HELD, class Shape>
    __device__ void add_over_columns(const WarpTile<Shape>& tile, int lanes, int first, LaneSums<Shape::K>* lane) {
        if constexpr (HELD > 1) {
            if (lanes < tile.columns) {
                const bool keeps_last = tile.column & lanes;
                lane->for_each_kind([&](auto& sums) { halve<HELD>(keeps_last, lanes, sums); });
                add_over_columns<HELD / 2>(tile, 2 * lanes, first + (keeps_last ? HELD / 2 : 0), lane);
                return;
            }
        }
        for (; lanes < tile.columns; lanes *= 2) { // all of these lanes hold the same class
            lane->for_each_kind([&](auto& sums) { sums[0] += __shfl_xor_sync(ALL_LANES, sums[0], lanes); });
        }
        constexpr int HOLDERS = padded(Shape::K);
        UNROLL for (int k = 0; k < HELD; ++k) {
            const int c = tile.class_of(first + k);
            if (tile.column < HOLDERS && c < num_classes_) {
                of_warp()[c].add(lane->of_class(k));
            }
        }
    }

    ClassSums* of_warps_;
    int num_classes_;
};

template <class Shape, class Softmax>
__device__ void add_voxels(const TileVoxels<Shape::U>& v, const Softmax& softmax, const float (&x)[Shape::K][Shape::U],
                           LaneSums<Shape::K>* sums) {
    UNROLL for (int u = 0; u < Shape::U; ++u) {
        const float share = v.weight[u] * softmax.share(u);
        UNROLL for (int k = 0; k < Shape::K; ++k) {
            add_label_sums(v.is_label[u], 1u << k, x[k][u], share, v.weight[u], &sums->intersection[k],
                           &sums->prediction[k], &sums->target[k]);
        }
    }
}

// Without losses, few logits a lane need so few registers that twice as many blocks can run at once.
template <class Shape, bool LOSS>
__global__ void __launch_bounds__(THREADS, !LOSS && Shape::K * Shape::U <= 20 ? 2 * BLOCKS_AT_ONCE : BLOCKS_AT_ONCE)
    warp_soft_stats_forward(const __grid_constant__ segloss_soft_stats s,
                            const __grid_constant__ typename Shape::Grid grid, ClassSums* rows, Totals* of_blocks) {
    constexpr int K = Shape::K, U = Shape::U;
    const auto& a = s.voxels;
    const int num_classes = static_cast<int>(a.num_classes);
    WarpTile<Shape> tile(a, grid);
    BlockSums block_sums(reinterpret_cast<ClassSums*>(segloss_shared + tile.shared_vectors()), num_classes);
    LaneSums<K> lane_sums;
    LossSums loss_sums;
    Totals refused;
    const auto visit = [&] {
        float x[K][U];
        TileVoxels<U> voxels;
        tile.read(&voxels, x, &refused);
        if constexpr (LOSS) {
            const LabelSoftmax<Shape> softmax(tile, voxels, x);
            float factors[U];
            add_losses(tile, voxels, softmax, &loss_sums, factors);
            add_voxels<Shape>(voxels, softmax, x, &lane_sums);
        } else {
            const TileSoftmax<Shape> softmax(tile, x);
            add_voxels<Shape>(voxels, softmax, x, &lane_sums);
        }
    };
    tile.for_each(visit, [&] { block_sums.add(tile, &lane_sums); });
    write_tile_totals(loss_sums, refused, of_blocks + blockIdx.x);
    block_sums.write(refused.num_refused > 0, rows + static_cast<int64_t>(blockIdx.x) * num_classes);
}

// The gradients of a lane's classes with respect to the sums: b of v p for each class, and a of v p g, of which the
// label's a + b is all that is needed.
template <class Shape> class Slopes {
public:
    static constexpr int K = Shape::K, U = Shape::U;

    float b[K];

    __device__ Slopes(const WarpTile<Shape>& tile, const segloss_soft_stats& s, bool is_per_sample)
        : of_labels_(reinterpret_cast<float*>(segloss_shared + tile.shared_vectors())) {
        const int num_classes = static_cast<int>(s.voxels.num_classes);
        const int64_t first = is_per_sample ? static_cast<int64_t>(tile.sample) * num_classes : 0;
        const float* const by_intersection = static_cast<const float*>(s.grad_intersection) + first;
        const float* const by_prediction = static_cast<const float*>(s.grad_prediction) + first;
        for (int c = threadIdx.x; c < num_classes; c += THREADS) {
            of_labels_[c] = by_intersection[c] + by_prediction[c];
        }
        UNROLL for (int k = 0; k < K; ++k) { b[k] = tile.has_class(k) ? by_prediction[tile.class_of(k)] : 0; }
        __syncthreads();
    }

    // 0 for a voxel without a class.
    __device__ float of_label(int label) const { return label < 0 ? 0 : of_labels_[label]; }

private:
    float* of_labels_;
};

// The gradient of the statistics, in place of the exponentials: with d_c the slope of class c,
//
//   v p_c (d_c - sum_k p_k d_k)
//
// and that of the losses, factor (p_c - [c = y]), with LOSS. All slopes are taken relative to the label's, and p_y - 1
// as minus the sum of the other p_c, so that a confident voxel keeps its digits.
template <class Shape, bool LOSS> struct StatsGrad {
    static constexpr int K = Shape::K, U = Shape::U;
    using Softmax = std::conditional_t<LOSS, LabelSoftmax<Shape>, TileSoftmax<Shape>>;

    const WarpTile<Shape>& tile;
    const Slopes<Shape>& slopes;
    const TileVoxels<U>& v;
    float origins[U], means[U]; // the label's slope, and the mean slope relative to it

    __device__ StatsGrad(const WarpTile<Shape>& of_tile, const Slopes<Shape>& of_classes, const TileVoxels<U>& voxels,
                         const Softmax& softmax, const float (&x)[K][U])
        : tile(of_tile), slopes(of_classes), v(voxels), means{} {
        UNROLL for (int u = 0; u < U; ++u) {
            origins[u] = slopes.of_label(v.label[u]);
            UNROLL for (int k = 0; k < K; ++k) {
                add_product_unless_label(v.is_label[u], 1u << k, x[k][u], slopes.b[k] - origins[u], &means[u]);
            }
        }
        tile.reduce(means, Sum());
        UNROLL for (int u = 0; u < U; ++u) { means[u] *= softmax.share(u); }
    }

    __device__ void find(const Softmax& softmax, const float (&factors)[U], float (&x)[K][U]) const {
        UNROLL for (int u = 0; u < U; ++u) {
            const OfVoxel of = of_voxel(softmax, factors, u);
            UNROLL for (int k = 0; k < K; ++k) {
                const bool is_label = v.is_label[u] & 1u << k;
                x[k][u] *= is_label ? of.label : of.slope * slopes.b[k] + of.others;
                if constexpr (LOSS) {
                    x[k][u] -= is_label ? of.factor * softmax.others[u] : 0;
                }
            }
        }
    }

    // For resized logits.
    __device__ void store_states(const Softmax& softmax, const float (&factors)[U], const float (&x)[K][U]) const {
        float labels[U];
        UNROLL for (int u = 0; u < U; ++u) {
            labels[u] = 0;
            UNROLL for (int k = 0; k < K; ++k) { labels[u] = v.is_label[u] & 1u << k ? x[k][u] : labels[u]; }
        }
        tile.take_from_labels(v.label, labels);
        UNROLL for (int u = 0; u < U; ++u) {
            const OfVoxel of = of_voxel(softmax, factors, u);
            float of_label = of.label * labels[u];
            if constexpr (LOSS) {
                of_label -= of.factor * softmax.others[u];
            }
            tile.store_state(u, state_of(v, u, softmax.exponentials, of.others, of_label));
            tile.store_slope(u, of.slope);
        }
    }

private:
    // What the exponentials are multiplied by: the label's, and others with the slopes.
    struct OfVoxel {
        float slope, factor, others, label;
    };

    __device__ OfVoxel of_voxel(const Softmax& softmax, const float (&factors)[U], int u) const {
        const float share = softmax.share(u), by_slope = v.weight[u] * share;
        const float factor = LOSS ? factors[u] * share : 0;
        return {by_slope, factor, factor - by_slope * (origins[u] + means[u]), -by_slope * means[u]};
    }
};

// The gradient, or what that of resized logits needs of each voxel.
template <class Shape, bool LOSS, class Softmax>
__device__ void write_stats_grad(const WarpTile<Shape>& tile, const Slopes<Shape>& slopes,
                                 const TileVoxels<Shape::U>& v, const Softmax& softmax,
                                 const float (&factors)[Shape::U], float (&x)[Shape::K][Shape::U]) {
    const StatsGrad<Shape, LOSS> grad(tile, slopes, v, softmax, x);
    if constexpr (Shape::RESIZED) {
        grad.store_states(softmax, factors, x);
    } else {
        grad.find(softmax, factors, x);
        tile.store_grad(x);
    }
}

template <class Shape, bool LOSS>
__global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE)
    warp_soft_stats_backward(const __grid_constant__ segloss_soft_stats s,
                             const __grid_constant__ typename Shape::Grid grid, bool is_per_sample,
                             const double* total_weight, int unless_one, Totals* of_blocks) {
    constexpr int K = Shape::K, U = Shape::U;
    const auto& a = s.voxels;
    if (is_written<float>(a, unless_one)) {
        return;
    }
    WarpTile<Shape> tile(a, grid);
    const Slopes<Shape> slopes(tile, s, is_per_sample);
    const LossScale scale(a, {total_weight});
    Totals refused;
    const auto visit = [&] {
        float x[K][U];
        TileVoxels<U> voxels;
        tile.read(&voxels, x, &refused);
        if constexpr (LOSS) {
            const LabelSoftmax<Shape> softmax(tile, voxels, x);
            TileLosses<U> losses(a, voxels, softmax);
            scale.multiply(tile, losses.factor);
            write_stats_grad<Shape, LOSS>(tile, slopes, voxels, softmax, losses.factor, x);
        } else {
            const TileSoftmax<Shape> softmax(tile, x);
            write_stats_grad<Shape, LOSS>(tile, slopes, voxels, softmax, {}, x);
        }
    };
    tile.for_each(visit, [] {});
    write_tile_totals({}, refused, of_blocks + blockIdx.x);
}

} // namespace

// Launch the kernel of a shape.
struct StatsLauncher {
    const TileCall& tiles;
    const segloss_soft_stats& s;
    const segloss_cuda_call& call;
    void* rows;

    template <class Shape> int operator()(Shape /*shape*/) const {
        auto args = s;
        args.voxels = tiles.args;
        const int64_t sum_bytes = WARPS * args.voxels.num_classes * static_cast<int64_t>(sizeof(ClassSums));
        const auto kernel = s.with_loss ? warp_soft_stats_forward<Shape, true> : warp_soft_stats_forward<Shape, false>;
        return launch_tiles(tiles, call, sum_bytes, kernel, args, tiles.grid, static_cast<ClassSums*>(rows),
                            static_cast<Totals*>(call.workspace));
    }
};

struct StatsGradLauncher {
    const TileCall& tiles;
    const segloss_soft_stats& s;
    const segloss_cuda_call& call;
    const double* total_weight;
    int unless_one;

    template <class Shape> int operator()(Shape /*shape*/) const {
        auto args = s;
        args.voxels = tiles.args;
        const int64_t slope_bytes = args.voxels.num_classes * static_cast<int64_t>(sizeof(float));
        const auto kernel =
            s.with_loss ? warp_soft_stats_backward<Shape, true> : warp_soft_stats_backward<Shape, false>;
        return launch_tiles(tiles, call, slope_bytes, kernel, args, tiles.grid, call.num_samples > 1, total_weight,
                            unless_one, static_cast<Totals*>(call.workspace));
    }
};

template <typename T>
int launch_stats_tiles(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call, void* rows) {
    return with_shape<T>(tiles, StatsLauncher{tiles, s, call, rows});
}

template <typename T>
int launch_stats_grad_tiles(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                            const double* total_weight, int unless_one) {
    return with_shape<T>(tiles, StatsGradLauncher{tiles, s, call, total_weight, unless_one});
}
