// The class of the largest logit over tiles in registers, and the counts of pairs (label, predicted class).
#pragma once

#include "fast_math.cuh"
#include "counts.cuh"
#include "tile_launch.cuh"
#include "warp_sums.cuh"

namespace {

struct MaximumOrNan {
    __device__ float operator()(float a, float b) const { return max_or_nan(a, b); }
};
struct Minimum {
    __device__ int operator()(int a, int b) const { return a < b ? a : b; }
};

// The first class with the largest logit; nan counts as larger than any number.
template <class Shape>
__device__ void find_predictions(const WarpTile<Shape>& tile, const float (&x)[Shape::K][Shape::U],
                                 int (&classes)[Shape::U]) {
    constexpr int K = Shape::K, U = Shape::U;
    float max[U];
    bool has_nan = false;
    UNROLL for (int u = 0; u < U; ++u) {
        max[u] = x[0][u];
        UNROLL for (int k = 1; k < K; ++k) { max[u] = max_or_nan(max[u], x[k][u]); }
    }
    tile.reduce(max, MaximumOrNan());
    UNROLL for (int u = 0; u < U; ++u) {
        has_nan = has_nan || max[u] != max[u];
        classes[u] = INT32_MAX;
        UNROLL for (int k = K - 1; k >= 0; --k) {
            classes[u] = x[k][u] == max[u] && tile.has_class(k) ? tile.class_of(k) : classes[u];
        }
    }
    if (__builtin_expect(has_nan, 0)) {
        UNROLL for (int u = 0; u < U; ++u) {
            UNROLL for (int k = K - 1; k >= 0; --k) { classes[u] = x[k][u] != x[k][u] ? tile.class_of(k) : classes[u]; }
        }
    }
    tile.reduce(classes, Minimum());
}

template <class Shape>
__global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE)
    warp_counts(const __grid_constant__ segloss_cross_entropy a, const __grid_constant__ typename Shape::Grid grid,
                int per_class, int64_t num_samples, int64_t* counts, Totals* of_blocks) {
    WarpTile<Shape> tile(a, grid);
    const PairCounts cells(counts, num_samples > 1 ? tile.sample : 0, num_samples, a.num_classes, per_class);
    Totals refused;
    const auto visit = [&] {
        float x[Shape::K][Shape::U];
        int predicted[Shape::U];
        TileVoxels<Shape::U> voxels;
        tile.read(&voxels, x, &refused);
        find_predictions(tile, x, predicted);
        UNROLL for (int u = 0; u < Shape::U; ++u) {
            if (tile.group == 0 && voxels.label[u] >= 0) {
                cells.add_pair(voxels.label[u], predicted[u]);
            }
        }
    };
    tile.for_each(visit, [] {});
    cells.finish();
    write_tile_totals({}, refused, of_blocks + blockIdx.x);
}

} // namespace

// Launches the kernel of a shape.
struct CountsLauncher {
    const TileCall& tiles;
    const segloss_cuda_call& call;
    int per_class;
    int64_t* counts;

    template <class Shape> int operator()(Shape /*shape*/) const {
        return launch_tiles(tiles, call, 0, warp_counts<Shape>, tiles.args, tiles.grid, per_class, call.num_samples,
                            counts, static_cast<Totals*>(call.workspace));
    }
};

template <typename T>
int launch_count_tiles(const TileCall& tiles, const segloss_cuda_call& call, int per_class, int64_t* counts) {
    return with_shape<T>(tiles, CountsLauncher{tiles, call, per_class, counts});
}
