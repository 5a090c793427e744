// Soft statistics of a softmax and labels over tiles in registers, with the losses of the same walk, and their
// gradient.
#pragma once

#include "class_sums.cuh"
#include "tile_launch.cuh"
#include "warp_softmax.cuh"

namespace {

// A lane's sums of each of its classes, over the tiles of one round.
template <int K> struct LaneSums {
    float intersection[K], prediction[K], target[K];

    __device__ void clear() {
        UNROLL for (int k = 0; k < K; ++k) { intersection[k] = prediction[k] = target[k] = 0; }
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
        UNROLL for (int k = 0; k < Shape::K; ++k) {
            const ClassSums sums{over_columns(tile, lane->intersection[k]), over_columns(tile, lane->prediction[k]),
                                 over_columns(tile, lane->target[k])};
            if (tile.column == 0 && tile.has_class(k)) {
                of_warp()[tile.class_of(k)].add(sums);
            }
        }
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

    template <class Shape> static __device__ double over_columns(const WarpTile<Shape>& tile, float sum) {
        for (int lanes = 1; lanes < tile.columns; lanes *= 2) {
            sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
        }
        return static_cast<double>(sum);
    }

    ClassSums* of_warps_;
    int num_classes_;
};

template <class Shape>
__device__ void add_voxels(const TileVoxels<Shape::U>& v, const TileSoftmax<Shape>& softmax, bool squared,
                           const float (&x)[Shape::K][Shape::U], LaneSums<Shape::K>* sums) {
    constexpr int K = Shape::K, U = Shape::U;
    float share[U];
    UNROLL for (int u = 0; u < U; ++u) { share[u] = v.weight[u] * softmax.share(u); }
    UNROLL for (int k = 0; k < K; ++k) {
        float predictions[U];
        UNROLL for (int u = 0; u < U; ++u) {
            const bool is_label = k == softmax.index[u];
            predictions[u] = x[k][u] * share[u];
            sums->intersection[k] += is_label ? predictions[u] : 0;
            sums->target[k] += is_label ? v.weight[u] : 0;
        }
        if (__builtin_expect(squared, 0)) {
            UNROLL for (int u = 0; u < U; ++u) { predictions[u] *= x[k][u] * softmax.share(u); }
        }
        sums->prediction[k] += sum_of_tile(predictions);
    }
}

template <class Shape, bool LOSS>
__global__ void __launch_bounds__(THREADS)
    warp_soft_stats_forward(const __grid_constant__ segloss_soft_stats s, const __grid_constant__ TileGrid grid,
                            ClassSums* rows, Totals* of_blocks) {
    const auto& a = s.voxels;
    const int num_classes = static_cast<int>(a.num_classes);
    WarpTile<Shape> tile(a, grid);
    BlockSums block_sums(reinterpret_cast<ClassSums*>(segloss_shared + tile.shared_vectors()), num_classes);
    LaneSums<Shape::K> lane_sums;
    LossSums loss_sums;
    Totals refused;
    lane_sums.clear();
    const auto visit = [&] {
        float x[Shape::K][Shape::U];
        TileVoxels<Shape::U> voxels;
        tile.load_logits(x);
        tile.read_voxels(&voxels, x, &refused);
        const TileSoftmax<Shape> softmax(tile, voxels.label, x);
        if (LOSS) {
            const TileLosses<Shape::U> losses(a, voxels, softmax);
            loss_sums.add(tile, losses.loss, losses.share);
        }
        add_voxels(voxels, softmax, s.squared, x, &lane_sums);
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

// Replaces the exponentials by the gradient: with d_c the slope of class c,
//
//   v p_c (d_c - sum_k p_k d_k) + factor (p_c - [c = y])
//
// All slopes are taken relative to the label's, and p_y as 1 - sum_{c != y} p_c, so that a confident voxel keeps its
// digits.
template <class Shape>
__device__ void find_stats_grad(const WarpTile<Shape>& tile, const Slopes<Shape>& slopes, const TileVoxels<Shape::U>& v,
                                const TileSoftmax<Shape>& softmax, const float (&factors)[Shape::U],
                                float (&x)[Shape::K][Shape::U]) {
    constexpr int K = Shape::K, U = Shape::U;
    float means[U], origins[U];
    UNROLL for (int u = 0; u < U; ++u) {
        means[u] = 0;
        origins[u] = slopes.of_label(v.label[u]);
        UNROLL for (int k = 0; k < K; ++k) {
            const float slope = slopes.b[k] - origins[u];
            means[u] += k == softmax.index[u] ? 0 : x[k][u] * slope;
        }
    }
    tile.reduce(means, Sum());
    UNROLL for (int u = 0; u < U; ++u) {
        const float share = softmax.share(u), mean = means[u] * share;
        const float by_slope = v.weight[u] * share, factor = factors[u] * share;
        const float constant = factor - by_slope * (origins[u] + mean);
        const float of_label = -(softmax.label(u) * by_slope * mean + factor * softmax.others[u]);
        UNROLL for (int k = 0; k < K; ++k) {
            const float of_other = x[k][u] * (by_slope * slopes.b[k] + constant);
            x[k][u] = k == softmax.index[u] ? of_label : of_other;
        }
    }
}

template <class Shape>
__global__ void __launch_bounds__(THREADS)
    warp_soft_stats_backward(const __grid_constant__ segloss_soft_stats s, const __grid_constant__ TileGrid grid,
                             bool is_per_sample, const double* total_weight, int unless_one, Totals* of_blocks) {
    const auto& a = s.voxels;
    if (is_written<float>(a, unless_one)) {
        return;
    }
    WarpTile<Shape> tile(a, grid);
    const Slopes<Shape> slopes(tile, s, is_per_sample);
    const LossScale scale(a, total_weight);
    Totals refused;
    const auto visit = [&] {
        float x[Shape::K][Shape::U], factors[Shape::U] = {};
        TileVoxels<Shape::U> voxels;
        tile.load_logits(x);
        tile.read_voxels(&voxels, x, &refused);
        const TileSoftmax<Shape> softmax(tile, voxels.label, x);
        if (s.with_loss) {
            const TileLosses<Shape::U> losses(a, voxels, softmax);
            UNROLL for (int u = 0; u < Shape::U; ++u) { factors[u] = losses.factor[u]; }
            scale.multiply(tile, factors);
        }
        find_stats_grad(tile, slopes, voxels, softmax, factors, x);
        tile.store_grad(x);
    };
    tile.for_each(visit, [] {});
    write_tile_totals({}, refused, of_blocks + blockIdx.x);
}

} // namespace

template <typename T>
int launch_stats_tiles(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call, void* rows) {
    auto args = s;
    args.voxels = tiles.args;
    const int64_t sum_bytes = WARPS * args.voxels.num_classes * static_cast<int64_t>(sizeof(ClassSums));
    return with_shape<T>(tiles, [&](auto shape) {
        using Shape = decltype(shape);
        const auto kernel = s.with_loss ? warp_soft_stats_forward<Shape, true> : warp_soft_stats_forward<Shape, false>;
        return launch_tiles(tiles, call, sum_bytes, kernel, args, tiles.grid, static_cast<ClassSums*>(rows),
                            static_cast<Totals*>(call.workspace));
    });
}

template <typename T>
int launch_stats_grad_tiles(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                            const double* total_weight, int unless_one) {
    auto args = s;
    args.voxels = tiles.args;
    const int64_t slope_bytes = args.voxels.num_classes * static_cast<int64_t>(sizeof(float));
    return with_shape<T>(tiles, [&](auto shape) {
        return launch_tiles(tiles, call, slope_bytes, warp_soft_stats_backward<decltype(shape)>, args, tiles.grid,
                            call.num_samples > 1, total_weight, unless_one, static_cast<Totals*>(call.workspace));
    });
}
