// Sums over voxels in a fixed order: a tree over the threads of a block, then one block over the blocks' sums.
#pragma once

#include <cuda_runtime.h>

#include "tensors.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int64_t MAX_BLOCKS = 1024; // what follows from it is part of a sum's bits: not the device's size

inline int num_blocks(int64_t num_positions, int64_t per_block) {
    const int64_t blocks = (num_positions + per_block - 1) / per_block;
    return static_cast<int>(blocks < 1 ? 1 : blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS);
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

struct ClassSums {
    double intersection = 0;
    double prediction = 0;
    double target = 0;

    __device__ void add(const ClassSums& other) {
        intersection += other.intersection;
        prediction += other.prediction;
        target += other.target;
    }
};

// What the threads of a block have, together; for thread 0. All of them call it, and `shared` may be used again.
template <typename Sum> __device__ Sum sum_of_block(const Sum& mine, Sum* shared) {
    const int thread = static_cast<int>(threadIdx.x);
    shared[thread] = mine;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) {
            shared[thread].add(shared[thread + half]);
        }
    }
    const Sum total = shared[0];
    __syncthreads();
    return total;
}

// Shared memory has no constructors.
template <typename Sum> struct Shared {
    alignas(Sum) unsigned char bytes[THREADS * sizeof(Sum)];
    __device__ Sum* sums() { return reinterpret_cast<Sum*>(bytes); }
};

// The voxels of this thread: for_each(begin, end, f) calls f(position).
template <typename Function> __device__ void for_each_position(int64_t begin, int64_t end, const Function& f) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
    for (int64_t p = begin + static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; p < end; p += step) {
        f(p);
    }
}

// Adds up a block's totals into its place.
__device__ inline void write_totals(const Totals& mine, Totals* of_blocks) {
    __shared__ Shared<Totals> shared;
    const Totals total = sum_of_block(mine, shared.sums());
    if (threadIdx.x == 0) {
        of_blocks[blockIdx.x] = total;
    }
}

// One block: adds the blocks' totals. `sums`: the losses and the weights, may be null. True for the thread that has
// the total, where something was refused that is to be reported.
__device__ inline bool add_totals(const segloss_cuda_call& call, const Totals* of_blocks, int count, segloss_sums* sums,
                                  Totals* total) {
    __shared__ Shared<Totals> shared;
    Totals mine;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += THREADS) {
        mine.add(of_blocks[i]);
    }
    *total = sum_of_block(mine, shared.sums());
    if (threadIdx.x == 0 && sums) {
        *sums = {total->loss, total->weight};
    }
    return threadIdx.x == 0 && total->num_refused > 0 && call.refusal->count == 0;
}

// The count comes last: who sees it sees the rest.
__device__ inline void report(const segloss_cuda_call& call, const Totals& total, const segloss_tensor& tensor,
                              int64_t offset, bool is_prediction) {
    segloss_refusal* const refusal = call.refusal;
    refusal->position = call.first_position + total.first_refused;
    refusal->label = load_integer(tensor, offset);
    refusal->value = load<double>(tensor, offset);
    refusal->is_prediction = is_prediction;
    __threadfence_system();
    refusal->count = total.num_refused;
}

// Calls f(Real(), T()) with what a call computes in and the type of its logits; float never computes for double logits.
template <typename Function> cudaError_t with_types(segloss_real real, segloss_dtype logits, const Function& f) {
    const bool is_double = real == SEGLOSS_REAL_DOUBLE;
    switch (logits) {
    case SEGLOSS_FLOAT32:
        return is_double ? f(double(), float()) : f(float(), float());
    case SEGLOSS_FLOAT16:
        return is_double ? f(double(), __half()) : f(float(), __half());
    case SEGLOSS_BFLOAT16:
        return is_double ? f(double(), __nv_bfloat16()) : f(float(), __nv_bfloat16());
    case SEGLOSS_FLOAT64:
        return is_double ? f(double(), double()) : cudaErrorInvalidValue;
    default:
        return cudaErrorInvalidValue;
    }
}

// Puts kernel(arguments...) on the stream of a call.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(const segloss_cuda_call& call, int blocks, void (*kernel)(Parameters...),
                   const Arguments&... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(THREADS);
    config.stream = static_cast<cudaStream_t>(call.stream);
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

} // namespace
