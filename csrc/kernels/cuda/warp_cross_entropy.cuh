// Cross entropy and the softmax focal loss over tiles in registers, and their gradient in the same walk.
#pragma once

#include "tile_launch.cuh"
#include "warp_softmax.cuh"

namespace {

// The gradient of the losses, in place of the exponentials.
template <class Shape>
__device__ void find_loss_grad(const LabelSoftmax<Shape>& softmax, const unsigned (&is_label)[Shape::U],
                               const float (&factors)[Shape::U], float (&x)[Shape::K][Shape::U]) {
    UNROLL for (int u = 0; u < Shape::U; ++u) {
        const float factor = factors[u] * softmax.share(u);
        UNROLL for (int k = 0; k < Shape::K; ++k) {
            x[k][u] = (is_label[u] & 1u << k ? -softmax.others[u] : x[k][u]) * factor;
        }
    }
}

// What the gradient of resized logits needs of each voxel.
template <class Shape>
__device__ void store_states(const WarpTile<Shape>& tile, const TileVoxels<Shape::U>& v,
                             const LabelSoftmax<Shape>& softmax, const float (&factors)[Shape::U]) {
    UNROLL for (int u = 0; u < Shape::U; ++u) {
        const float factor = factors[u] * softmax.share(u);
        tile.store_state(u, state_of(v, u, softmax.exponentials, factor, -factor * softmax.others[u]));
    }
}

template <class Shape, bool GRADIENT>
__global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE)
    warp_cross_entropy(const __grid_constant__ segloss_cross_entropy a,
                       const __grid_constant__ typename Shape::Grid grid,
                       const __grid_constant__ Denominator denominator, int unless_one, Totals* of_blocks) {
    if (is_written<float>(a, unless_one)) {
        return;
    }
    constexpr int U = Shape::U;
    WarpTile<Shape> tile(a, grid);
    const LossScale scale(a, denominator);
    LossSums sums;
    Totals refused;
    const auto visit = [&] {
        float x[Shape::K][U], factors[U];
        TileVoxels<U> voxels;
        tile.read(&voxels, x, &refused);
        const LabelSoftmax<Shape> softmax(tile, voxels, x);
        add_losses(tile, voxels, softmax, &sums, factors);
        if constexpr (GRADIENT) {
            scale.multiply(tile, factors);
            if constexpr (Shape::RESIZED) {
                store_states(tile, voxels, softmax, factors);
            } else {
                find_loss_grad(softmax, voxels.is_label, factors, x);
                tile.store_grad(x);
            }
        }
    };
    tile.for_each(visit, [] {});
    write_tile_totals(sums, refused, of_blocks + blockIdx.x);
}

} // namespace

// Launches the kernel of a shape.
struct CrossEntropyLauncher {
    const TileCall& tiles;
    const segloss_cuda_call& call;
    const Denominator& denominator;
    int unless_one;

    template <class Shape> int operator()(Shape /*shape*/) const {
        const void* const gradient = Shape::RESIZED ? tiles.grid.resize.states : tiles.args.grad_logits.data;
        const auto kernel = gradient ? warp_cross_entropy<Shape, true> : warp_cross_entropy<Shape, false>;
        return launch_tiles(tiles, call, 0, kernel, tiles.args, tiles.grid, denominator, unless_one,
                            static_cast<Totals*>(call.workspace));
    }
};

template <typename T>
int launch_cross_entropy_tiles(const TileCall& tiles, const segloss_cuda_call& call, const Denominator& denominator,
                               int unless_one) {
    return with_shape<T>(tiles, CrossEntropyLauncher{tiles, call, denominator, unless_one});
}
