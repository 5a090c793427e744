#include "warp_counts.cuh"

namespace {

__device__ __noinline__ inline void store_integer_at(const segloss_tensor& t, int64_t offset, int value) {
    store_integer(t, offset, value);
}

template <class Shape, bool MASKS>
__global__ void __launch_bounds__(THREADS)
    warp_predictions(const __grid_constant__ segloss_cross_entropy a, const __grid_constant__ typename Shape::Grid grid,
                     float threshold) {
    constexpr int K = Shape::K, U = Shape::U;
    const segloss_tensor& to = a.loss;
    WarpTile<Shape> tile(a, grid);
    const auto visit = [&] {
        float x[K][U];
        int classes[U];
        tile.read_resized(x);
        if constexpr (!MASKS) {
            find_predictions(tile, x, classes);
        }
        UNROLL for (int u = 0; u < U; ++u) {
            if (MASKS && tile.has_voxel(u)) {
                UNROLL for (int k = 0; k < K; ++k) {
                    if (tile.has_class(k)) {
                        store_integer_at(to, tile.offset(to, u) + tile.class_of(k) * to.stride_class,
                                         x[k][u] > threshold);
                    }
                }
            } else if (!MASKS && tile.has_voxel(u) && tile.group == 0) {
                store_integer_at(to, tile.offset(to, u), classes[u]);
            }
        }
    };
    tile.for_each(visit, [] {});
}

} // namespace

int launch_resized_counts(const TileCall& tiles, const segloss_cuda_call& call, int per_class, int64_t* counts) {
    return with_resized_shape(tiles, CountsLauncher{tiles, call, per_class, counts});
}

int launch_resized_predictions(const TileCall& tiles, const segloss_cuda_call& call, const float* threshold) {
    return with_resized_shape(tiles, [&](auto shape) {
        using Shape = decltype(shape);
        const auto kernel = threshold ? warp_predictions<Shape, true> : warp_predictions<Shape, false>;
        return launch_tiles(tiles, call, 0, kernel, tiles.args, tiles.grid, threshold ? *threshold : 0);
    });
}
