// Sums over voxels in a fixed order: a tree over the threads of a block, then one block adds the sums of all blocks.
#pragma once

#include "memory.cuh"
#include "tensors.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int LANES = 32; // of a warp
constexpr int WARPS = THREADS / LANES;
constexpr int64_t MAX_BLOCKS = 1024; // independent of the device, because a sum's bits depend on the grid

constexpr int64_t MAX_WEIGHT_BLOCKS = 512; // that add label weights: each block of a later kernel adds up theirs

// Blocks for each sample, with one voxel per thread up to the limit.
inline int num_blocks(int64_t num_positions, int64_t num_samples) {
    const int64_t wanted = (num_positions + THREADS - 1) / THREADS, most = MAX_BLOCKS / num_samples;
    return static_cast<int>(wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most);
}

// What was refused of some voxels.
struct Refused {
    int64_t num_refused = 0;
    int64_t first_refused = INT64_MAX;

    __device__ void refuse(int64_t position) {
        ++num_refused;
        first_refused = position < first_refused ? position : first_refused;
    }

    __device__ void add(const Refused& other) {
        num_refused += other.num_refused;
        first_refused = other.first_refused < first_refused ? other.first_refused : first_refused;
    }
};

// Sums over some voxels, read and written in vectors. The workspace has one for each block; other sums in its place
// must not be larger.
struct alignas(16) Totals : Refused {
    double loss = 0;
    double weight = 0;

    __device__ void add(const Totals& other) {
        Refused::add(other);
        loss += other.loss;
        weight += other.weight;
    }
};

// The sum over the threads of a warp, returned to all of them.
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

// The sum over the threads of a block, returned to thread 0. All threads must call it.
template <typename Sum> __device__ Sum sum_of_block(Sum mine) {
    alignas(16) __shared__ double memory[WARPS * sizeof(Sum) / sizeof(double)]; // shared memory has no constructors
    const auto of_warps = reinterpret_cast<Sum*>(memory);
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) {
        mine.add(of_other_lane(mine, lanes));
    }
    __syncthreads(); // an earlier call is done with `memory`
    if (threadIdx.x % LANES == 0) {
        of_warps[threadIdx.x / LANES] = mine;
    }
    __syncthreads();
    for (int warp = 1; warp < WARPS && threadIdx.x == 0; ++warp) {
        mine.add(of_warps[warp]);
    }
    return mine;
}

// Likewise, returned to all threads.
__device__ inline double sum_for_block(double mine) {
    __shared__ double of_warps[WARPS];
    mine = sum_of_warp(mine);
    if (threadIdx.x % LANES == 0) {
        of_warps[threadIdx.x / LANES] = mine;
    }
    __syncthreads();
    double sum = of_warps[0];
    UNROLL for (int warp = 1; warp < WARPS; ++warp) { sum += of_warps[warp]; }
    return sum;
}

// Writes the sum of a block's totals.
__device__ inline void write_totals(const Totals& mine, Totals* of_block) {
    const Totals total = sum_of_block(mine);
    if (threadIdx.x == 0) {
        *of_block = total;
    }
}

// The sum of what all blocks wrote, returned to thread 0. One block calls it.
template <typename Sum> __device__ Sum sum_of_blocks(const Sum* of_blocks, int64_t count, int64_t stride) {
    constexpr int AT_ONCE = 8; // loads before the first addition
    Sum mine;
    for (int64_t first = threadIdx.x; first < count; first += AT_ONCE * THREADS) {
        Sum sums[AT_ONCE];
        UNROLL for (int i = 0; i < AT_ONCE; ++i) {
            if (first + i * THREADS < count) {
                sums[i] = of_blocks[(first + i * THREADS) * stride];
            }
        }
        UNROLL for (const auto& sum : sums) { mine.add(sum); }
    }
    return sum_of_block(mine);
}

// For the thread that has claimed the record. Writes the count last, so that whoever sees it sees the rest.
__device__ inline void report(const segloss_cuda_call& call, const Refused& total, const segloss_tensor& tensor,
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

// Whether this thread must report the totals, for which it claims the record: only thread 0, and only if the host has
// read the previous report.
__device__ inline bool is_news(const segloss_cuda_call& call, const Refused& total) {
    return threadIdx.x == 0 && total.num_refused > 0 && call.refusal && atomicCAS(&call.refusal->is_claimed, 0, 1) == 0;
}

} // namespace
