// Sums over voxels in a fixed order: a tree over the threads of a block, then one block over the blocks' sums.
#pragma once

#include "tensors.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int LANES = 32; // of a warp
constexpr int WARPS = THREADS / LANES;
constexpr int64_t MAX_BLOCKS = 1024; // the grid is part of a sum's bits: not the device's size

// Of one sample: a thread owns a voxel.
inline int num_blocks(int64_t num_positions, int64_t num_samples) {
    const int64_t wanted = (num_positions + THREADS - 1) / THREADS, most = MAX_BLOCKS / num_samples;
    return static_cast<int>(wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most);
}

// Of some voxels.
struct Totals {
    double loss = 0;
    double weight = 0;
    int64_t num_refused = 0;
    int64_t first_refused = INT64_MAX;

    __device__ void refuse(int64_t position) {
        ++num_refused;
        first_refused = position < first_refused ? position : first_refused;
    }

    __device__ void add(const Totals& other) {
        loss += other.loss;
        weight += other.weight;
        num_refused += other.num_refused;
        first_refused = other.first_refused < first_refused ? other.first_refused : first_refused;
    }
};

// What the threads of a warp have, together; for all of them.
template <typename Real> __device__ Real sum_of_warp(Real x) {
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) {
        x += __shfl_xor_sync(~0u, x, lanes);
    }
    return x;
}

template <typename Sum> __device__ Sum of_other_lane(const Sum& mine, int lanes) {
    static_assert(sizeof(Sum) % sizeof(int64_t) == 0);
    union {
        int64_t words[sizeof(Sum) / sizeof(int64_t)];
        Sum sum;
    } copy = {};
    copy.sum = mine;
    for (auto& word : copy.words) {
        word = __shfl_xor_sync(~0u, word, lanes);
    }
    return copy.sum;
}

// What the threads of a block have, together; for thread 0. All of them call it.
template <typename Sum> __device__ Sum sum_of_block(Sum mine) {
    __shared__ double memory[WARPS * sizeof(Sum) / sizeof(double)]; // shared memory has no constructors
    const auto of_warps = reinterpret_cast<Sum*>(memory);
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) {
        mine.add(of_other_lane(mine, lanes));
    }
    __syncthreads(); // whoever summed before is done
    if (threadIdx.x % LANES == 0) {
        of_warps[threadIdx.x / LANES] = mine;
    }
    __syncthreads();
    for (int warp = 1; warp < WARPS && threadIdx.x == 0; ++warp) {
        mine.add(of_warps[warp]);
    }
    return mine;
}

// Adds up a block's totals into their place.
__device__ inline void write_totals(const Totals& mine, Totals* of_block) {
    const Totals total = sum_of_block(mine);
    if (threadIdx.x == 0) {
        *of_block = total;
    }
}

// One block: adds up what others left, for thread 0.
template <typename Sum> __device__ Sum sum_of_blocks(const Sum* of_blocks, int64_t count, int64_t stride) {
    Sum mine;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
        mine.add(of_blocks[i * stride]);
    }
    return sum_of_block(mine);
}

// The count comes last: who sees it sees the rest. The first report stays until the host has seen it.
__device__ inline void report(const segloss_cuda_call& call, const Totals& total, const segloss_tensor& tensor,
                              int64_t offset, segloss_refused what) {
    segloss_refusal* const refusal = call.refusal;
    refusal->origin = call.origin;
    refusal->position = total.first_refused;
    refusal->label = load_integer(tensor, offset);
    refusal->value = load<double>(tensor, offset);
    refusal->what = what;
    __threadfence_system();
    refusal->count = total.num_refused;
}

// For thread 0: whether the totals are to be reported.
__device__ inline bool is_news(const segloss_cuda_call& call, const Totals& total) {
    return threadIdx.x == 0 && total.num_refused > 0 && call.refusal->count == 0;
}

} // namespace
