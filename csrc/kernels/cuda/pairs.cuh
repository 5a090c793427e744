// Pairs of a prediction and a label, voxel by voxel.
#pragma once

#include "counts.cuh"
#include "tile.cuh"

namespace {

using PairWalk = Walk<2>;

__device__ inline PairWalk walk_of(const segloss_confusion& a) { return {a.positions, {&a.prediction, &a.target}}; }

__device__ inline int64_t label_of(const segloss_confusion& a, const PairWalk& at) {
    return load_class(a.target, at[1], a.labels, at.position(), a.num_classes, a.ignore_index);
}

// Whether a voxel with this label and prediction is refused: predictions are checked only where the voxel counts.
__device__ inline bool is_refused(const segloss_confusion& a, int64_t label, int64_t predicted) {
    return label == BAD || (label != IGNORED && (predicted < 0 || predicted >= a.num_classes));
}

// Reports the first refused voxel of a walk.
__device__ inline void report_pair(const segloss_confusion& a, const segloss_cuda_call& call, const Refused& total) {
    auto walk = walk_of(a);
    walk.start(total.first_refused);
    const bool is_prediction = label_of(a, walk) != BAD;
    report(call, total, is_prediction ? a.prediction : a.target, walk[is_prediction ? 0 : 1],
           is_prediction ? SEGLOSS_OF_PREDICTED_LABELS : SEGLOSS_OF_TARGET);
}

// Launched with one block.
__global__ void finish_count(const __grid_constant__ segloss_confusion a,
                             const __grid_constant__ segloss_cuda_call call, const Totals* of_blocks,
                             int64_t num_totals) {
    const Totals total = sum_of_blocks(of_blocks, num_totals, 1);
    if (is_news(call, total)) {
        report_pair(a, call, total);
    }
}

} // namespace
