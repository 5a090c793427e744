// The sum of the weights of contiguous labels, without logits. Labels of other kinds take the general kernel.
#pragma once

#include "launch.cuh"
#include "memory.cuh"
#include "warp_sums.cuh"

namespace {

constexpr int VECTORS_AT_ONCE = 4; // of a thread
constexpr int64_t MIN_LABELS_PER_BLOCK = VECTORS_AT_ONCE * 16 * THREADS;

// A thread's sum: of class weights, or the number of labels that count.
class LabelWeights {
public:
    __device__ explicit LabelWeights(const segloss_cross_entropy& args)
        : a_(args), counts_classes_(!args.class_weight && !is_class(args.ignore_index, args.num_classes)) {}

    // Adds vectors of labels, THREADS vectors apart. Most labels are classes.
    template <typename Label, int N> __device__ void add(const Label (&labels)[VECTORS_AT_ONCE][N], int64_t first) {
        bool are_classes = counts_classes_;
        UNROLL for (const auto& vector : labels) {
            UNROLL for (const auto label : vector) { are_classes = are_classes & is_class(label, a_.num_classes); }
        }
        if (__builtin_expect(are_classes, 1)) {
            count_ += VECTORS_AT_ONCE * N;
            return;
        }
        UNROLL for (int i = 0; i < VECTORS_AT_ONCE; ++i) {
            UNROLL for (int j = 0; j < N; ++j) { add_one(labels[i][j], first + i * N * THREADS + j); }
        }
    }

    template <typename Label> __device__ void add_one(Label label, int64_t position) {
        const bool is_counted = label != a_.ignore_index, is_valid = is_counted && is_class(label, a_.num_classes);
        count_ += is_valid;
        if (__builtin_expect(is_counted && !is_valid, 0)) {
            refused_.refuse(position);
        }
        if (a_.class_weight && is_valid) {
            sum_.add(load_global(static_cast<const float*>(a_.class_weight) + label));
        }
    }

    __device__ static double loss() { return 0; }
    __device__ double weight() const {
        const double sum = a_.class_weight ? sum_.value() : static_cast<double>(count_);
        return refused_.num_refused > 0 ? static_cast<double>(NAN) : sum;
    }
    __device__ const Totals& refused() const { return refused_; }

private:
    const segloss_cross_entropy& a_;
    const bool counts_classes_;
    CompensatedSum sum_;
    int count_ = 0;
    Totals refused_;
};

template <typename Label>
__global__ void __launch_bounds__(THREADS) add_label_weights(const __grid_constant__ segloss_cross_entropy a,
                                                             int64_t size, int64_t per_block, Totals* of_blocks) {
    constexpr int N = sizeof(uint4) / sizeof(Label), AT_ONCE = VECTORS_AT_ONCE * N * THREADS;
    const Label* const labels = static_cast<const Label*>(a.target.data);
    const int64_t block_end = (blockIdx.x + 1) * per_block, end = block_end < size ? block_end : size;
    int64_t first = blockIdx.x * per_block;
    LabelWeights weights(a);
    for (; first + AT_ONCE <= end; first += AT_ONCE) {
        const int64_t own = first + threadIdx.x * N;
        union {
            uint4 vectors[VECTORS_AT_ONCE];
            Label labels[VECTORS_AT_ONCE][N];
        } v;
        UNROLL for (int i = 0; i < VECTORS_AT_ONCE; ++i) {
            v.vectors[i] = load_global(reinterpret_cast<const uint4*>(labels + own) + i * THREADS);
        }
        weights.add(v.labels, own);
    }
    for (int64_t i = first + threadIdx.x; i < end; i += THREADS) {
        weights.add_one(load_global(labels + i), i);
    }
    write_tile_totals(weights, weights.refused(), of_blocks + blockIdx.x);
}

// Whether the labels of all positions are one piece of memory, aligned to vectors, and their weights depend on their
// classes alone.
inline bool has_contiguous_labels(const segloss_cross_entropy& a, const segloss_cuda_call& call) {
    int64_t stride = 1;
    for (int d = a.positions.num_dims - 1; d >= 0; --d) {
        if (a.positions.sizes[d] > 1 && a.target.strides[d] != stride) {
            return false;
        }
        stride *= a.positions.sizes[d];
    }
    return a.target_kind == SEGLOSS_LABELS && !a.labels.rows && !a.voxel_weight.data && call.begin == 0 &&
           call.end > 0 && call.end == stride && call.real == SEGLOSS_REAL_FLOAT &&
           reinterpret_cast<uintptr_t>(a.target.data) % sizeof(uint4) == 0;
}

// Launches the kernel for such labels, and sets `blocks` to their number; that stays 0 for all others.
inline cudaError_t launch_label_weights(const segloss_cross_entropy& a, const segloss_cuda_call& call,
                                        int64_t* blocks) {
    if (!has_contiguous_labels(a, call)) {
        return cudaSuccess;
    }
    const auto launch_of = [&](auto label) {
        constexpr int64_t STEP = MIN_LABELS_PER_BLOCK;
        const int64_t steps = (call.end + STEP - 1) / STEP;
        const int64_t per_block = (steps + MAX_WEIGHT_BLOCKS - 1) / MAX_WEIGHT_BLOCKS * STEP;
        *blocks = (call.end + per_block - 1) / per_block;
        return launch(call, {*blocks}, add_label_weights<decltype(label)>, a, call.end, per_block,
                      static_cast<Totals*>(call.workspace));
    };
    switch (a.target.dtype) {
    case SEGLOSS_UINT8:
        return launch_of(uint8_t());
    case SEGLOSS_INT16:
        return launch_of(int16_t());
    case SEGLOSS_INT32:
        return launch_of(int32_t());
    case SEGLOSS_INT64:
        return launch_of(int64_t());
    default:
        return cudaSuccess;
    }
}

} // namespace
