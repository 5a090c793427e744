// The class of the largest logit over tiles in registers, and the counts of pairs (label, predicted class).
#pragma once

#include "counts.cuh"
#include "warp_tiles.cuh"

namespace {

// The first class with the largest logit; nan counts as larger than any number.
template <class Shape>
__device__ void find_predictions(const WarpTile<Shape>& tile, const float (&x)[Shape::K][Shape::U],
                                 int (&classes)[Shape::U]) {
    constexpr int K = Shape::K, U = Shape::U;
    float max[U];
    UNROLL for (int u = 0; u < U; ++u) {
        max[u] = x[0][u];
        UNROLL for (int k = 1; k < K; ++k) { max[u] = max_or_nan(max[u], x[k][u]); }
    }
    tile.reduce(max, MaximumOrNan());
    UNROLL for (int u = 0; u < U; ++u) {
        const bool is_nan = max[u] != max[u];
        classes[u] = INT32_MAX;
        UNROLL for (int k = K - 1; k >= 0; --k) {
            const bool is_largest = is_nan ? x[k][u] != x[k][u] : x[k][u] == max[u];
            classes[u] = is_largest && tile.has_class(k) ? tile.class_of(k) : classes[u];
        }
    }
    tile.reduce(classes, Minimum());
}

} // namespace
