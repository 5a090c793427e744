// Sums over tiles: of a tile, of a lane over its tiles, and of a block.
#pragma once

#include "warp_tiles.cuh"

namespace {

// A sum in float and what rounding lost of it.
struct CompensatedSum {
    float sum = 0;
    float lost = 0;

    __device__ void add(float x) {
        const float next = sum + x, added = next - sum;
        lost += (sum - (next - added)) + (x - added);
        sum = next;
    }

    // An infinite sum has lost nothing; the difference that says so is nan.
    __device__ double value() const {
        const bool is_finite = sum - sum == 0;
        return static_cast<double>(sum) + (is_finite ? static_cast<double>(lost) : 0);
    }
};

template <int U> __device__ float sum_of_tile(const float (&values)[U]) {
    float sums[U];
    UNROLL for (int u = 0; u < U; ++u) { sums[u] = values[u]; }
    UNROLL for (int half = U / 2; half > 0; half /= 2) {
        UNROLL for (int u = 0; u < half; ++u) { sums[u] += sums[u + half]; }
    }
    return sums[0];
}

// The sums of a lane's losses and weights. Only the first group has them. Most tiles have nothing but weights of 1.
class LossSums {
public:
    template <class Shape>
    __device__ void add(const WarpTile<Shape>& tile, const float (&losses)[Shape::U], const float (&weights)[Shape::U],
                        bool all_one) {
        if (tile.group == 0) {
            loss_.add(sum_of_tile(losses));
            if (__builtin_expect(all_one, 1)) {
                num_ones_ += Shape::U;
            } else {
                weight_.add(sum_of_tile(weights));
            }
        }
    }

    // Likewise, with the sum of all losses, for weights of 1.
    template <class Shape> __device__ void add_ones(const WarpTile<Shape>& tile, float loss) {
        if (tile.group == 0) {
            loss_.add(loss);
            num_ones_ += Shape::U;
        }
    }

    __device__ double loss() const { return loss_.value(); }
    __device__ double weight() const { return weight_.value() + num_ones_; }

private:
    CompensatedSum loss_, weight_;
    int num_ones_ = 0;
};

// Writes the totals of a block. Most blocks have refused nothing.
template <class Sums = LossSums>
__device__ void write_tile_totals(const Sums& sums, const Totals& refused, Totals* of_block) {
    alignas(16) __shared__ double memory[WARPS * sizeof(Totals) / sizeof(double)];
    const auto of_warps = reinterpret_cast<Totals*>(memory);
    Totals mine = refused;
    if (__any_sync(ALL_LANES, refused.num_refused > 0)) {
        for (int lanes = LANES / 2; lanes > 0; lanes /= 2) {
            mine.add(of_other_lane(mine, lanes));
        }
    }
    mine.loss = sum_of_warp(sums.loss());
    mine.weight = sum_of_warp(sums.weight());
    if (threadIdx.x % LANES == 0) {
        of_warps[threadIdx.x / LANES] = mine;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < WARPS; ++warp) {
            mine.add(of_warps[warp]);
        }
        *of_block = mine;
    }
}

} // namespace
