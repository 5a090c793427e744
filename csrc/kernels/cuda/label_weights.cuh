// The sum of the weights of contiguous labels, without logits. Labels of other kinds take the general kernel.
#pragma once

#include "launch.cuh"
#include "memory.cuh"
#include "warp_sums.cuh"

namespace {

constexpr int LABELS_AT_ONCE = 16; // of a thread
constexpr int64_t LABELS_PER_BLOCK = 4 * LABELS_AT_ONCE * THREADS;

// A thread's sum: of class weights, or the number of labels that count.
class LabelWeights {
public:
    __device__ explicit LabelWeights(const segloss_cross_entropy& args) : a_(args) {}

    // Labels at the positions from `first` on. Most are classes or ignored.
    template <typename Label, int N> __device__ void add(const Label (&labels)[N], int64_t first) {
        int num_classes = 0, num_ignored = 0;
        UNROLL for (const auto label : labels) {
            num_ignored += label == a_.ignore_index;
            num_classes += label != a_.ignore_index && is_class(label, a_.num_classes);
        }
        count_ += num_classes;
        if (__builtin_expect(num_classes + num_ignored < N, 0)) {
            for (int i = 0; i < N; ++i) {
                if (labels[i] != a_.ignore_index && !is_class(labels[i], a_.num_classes)) {
                    totals_.refuse(first + i);
                }
            }
        }
        if (__builtin_expect(a_.class_weight != nullptr, 0)) {
            for (int i = 0; i < N; ++i) {
                if (labels[i] != a_.ignore_index && is_class(labels[i], a_.num_classes)) {
                    sum_.add(load_global(static_cast<const float*>(a_.class_weight) + labels[i]));
                }
            }
        }
    }

    __device__ Totals totals() const {
        Totals totals = totals_;
        const double sum = a_.class_weight ? sum_.value() : static_cast<double>(count_);
        totals.weight = totals.num_refused > 0 ? static_cast<double>(NAN) : sum;
        return totals;
    }

private:
    const segloss_cross_entropy& a_;
    CompensatedSum sum_;
    int count_ = 0;
    Totals totals_;
};

template <typename Label>
__global__ void __launch_bounds__(THREADS)
    add_label_weights(const __grid_constant__ segloss_cross_entropy a, int64_t size, Totals* of_blocks) {
    const Label* const labels = static_cast<const Label*>(a.target.data);
    const int64_t begin = blockIdx.x * LABELS_PER_BLOCK + threadIdx.x * LABELS_AT_ONCE;
    const int64_t block_end = (blockIdx.x + 1) * LABELS_PER_BLOCK, end = block_end < size ? block_end : size;
    LabelWeights weights(a);
    for (int64_t first = begin; first < end; first += LABELS_AT_ONCE * THREADS) {
        if (first + LABELS_AT_ONCE > end) {
            for (int64_t i = first; i < end; ++i) {
                const Label label[] = {load_global(labels + i)};
                weights.add(label, i);
            }
            break;
        }
        union {
            uint4 vectors[sizeof(Label)];
            Label labels[LABELS_AT_ONCE];
        } v;
        UNROLL for (int i = 0; i < static_cast<int>(sizeof(Label)); ++i) {
            v.vectors[i] = load_global(reinterpret_cast<const uint4*>(labels + first) + i);
        }
        weights.add(v.labels, first);
    }
    write_totals(weights.totals(), of_blocks + blockIdx.x);
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
           call.end == stride && call.real == SEGLOSS_REAL_FLOAT &&
           reinterpret_cast<uintptr_t>(a.target.data) % sizeof(uint4) == 0;
}

// Launches the kernel for such labels, and sets `blocks` to their number; that stays 0 for all others.
inline cudaError_t launch_label_weights(const segloss_cross_entropy& a, const segloss_cuda_call& call,
                                        int64_t* blocks) {
    if (!has_contiguous_labels(a, call)) {
        return cudaSuccess;
    }
    const auto launch_of = [&](auto label) {
        *blocks = (call.end + LABELS_PER_BLOCK - 1) / LABELS_PER_BLOCK;
        return launch(call, {*blocks}, add_label_weights<decltype(label)>, a, call.end,
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
