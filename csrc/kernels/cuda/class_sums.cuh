// The sums of each class that blocks write, and the kernel that adds them up.
#pragma once

#include "voxels.cuh"

namespace {

// The sums of one class in one sample.
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

// What the blocks of a walk over all samples wrote.
struct Parts {
    const ClassSums* rows; // for each sample rows_per_sample, each of num_summed classes
    const Totals* totals;  // for each sample blocks_per_sample
    int64_t num_samples, num_summed, rows_per_sample, blocks_per_sample;
    double losses_per_voxel;
};

__device__ inline void add_rows(const Parts& parts, int64_t n, int64_t c, const segloss_cuda_sums& sums) {
    const auto first = parts.rows + n * parts.rows_per_sample * parts.num_summed + c;
    const ClassSums total = sum_of_blocks(first, parts.rows_per_sample, parts.num_summed);
    if (threadIdx.x == 0) {
        const int64_t i = n * parts.num_summed + c;
        sums.intersection[i] = total.intersection;
        sums.prediction[i] = total.prediction;
        sums.target[i] = total.target;
    }
}

__device__ inline void add_totals(const Parts& parts, int64_t n, const double* total_weight,
                                  const segloss_cuda_sums& sums) {
    const Totals total = sum_of_blocks(parts.totals + n * parts.blocks_per_sample, parts.blocks_per_sample, 1);
    if (threadIdx.x == 0) {
        write_sums(sums, n, total.loss, total.weight * parts.losses_per_voxel, total_weight);
    }
}

// For each sample, one block per class adds up the rows, and one more block adds up the totals. A last block reports
// what was refused.
template <typename Real>
__global__ void finish_stats(const __grid_constant__ segloss_cross_entropy a,
                             const __grid_constant__ segloss_cuda_call call, const __grid_constant__ Parts parts,
                             const double* total_weight, const __grid_constant__ segloss_cuda_sums sums) {
    const int64_t c = blockIdx.x;
    for (int64_t n = blockIdx.y; n < parts.num_samples && c <= parts.num_summed; n += gridDim.y) {
        if (c < parts.num_summed) {
            add_rows(parts, n, c, sums);
        } else {
            add_totals(parts, n, total_weight, sums);
        }
    }
    if (c > parts.num_summed && blockIdx.y == 0) {
        const Totals total = sum_of_blocks(parts.totals, parts.num_samples * parts.blocks_per_sample, 1);
        if (is_news(call, total)) {
            report_refused<Real>(call, a, total);
        }
    }
}

} // namespace
