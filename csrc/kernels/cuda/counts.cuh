// Counts of pairs of classes.
#pragma once

#include "sums.cuh"

namespace {

// Integer counts of a sample, which atomics add to in any order. A block counts in shared memory first, if it has room.
// All threads call the constructor and finish().
class Counts {
public:
    static constexpr int64_t SHARED_CELLS = 2048;
    static constexpr int64_t SHARED_BYTES = SHARED_CELLS * static_cast<int64_t>(sizeof(unsigned));

    // The cells of a row are neighbours.
    __device__ Counts(unsigned long long* of_sample, int64_t num_rows, int64_t num_columns, int64_t row_stride)
        : of_sample_(of_sample), num_shared_(num_rows * num_columns <= SHARED_CELLS ? num_rows * num_columns : 0),
          num_columns_(num_columns), row_stride_(row_stride) {
        for (int64_t i = threadIdx.x; i < num_shared_; i += THREADS) {
            shared()[i] = 0;
        }
        __syncthreads();
    }

    __device__ void add(int64_t row, int64_t column) const {
        if (num_shared_ > 0) {
            atomicAdd(&shared()[row * num_columns_ + column], 1u);
        } else {
            atomicAdd(&of_sample_[row * row_stride_ + column], 1ull);
        }
    }

    __device__ void finish() const {
        __syncthreads();
        for (int64_t i = threadIdx.x; i < num_shared_; i += THREADS) {
            const auto count = static_cast<unsigned long long>(shared()[i]);
            if (count > 0) {
                atomicAdd(&of_sample_[i / num_columns_ * row_stride_ + i % num_columns_], count);
            }
        }
        __syncthreads();
    }

private:
    static __device__ unsigned* shared() {
        __shared__ unsigned cells[SHARED_CELLS];
        return cells;
    }

    unsigned long long* of_sample_;
    int64_t num_shared_, num_columns_, row_stride_;
};

// Counts of pairs in a sample: [N][C][C] in all, or, per class, true positives, false positives and false negatives,
// [3][N][C].
class PairCounts {
public:
    __device__ PairCounts(int64_t* counts, int64_t sample, int64_t num_samples, int64_t num_classes, bool per_class)
        : per_class_(per_class),
          counts_(reinterpret_cast<unsigned long long*>(counts) + sample * num_classes * (per_class ? 1 : num_classes),
                  per_class ? 3 : num_classes, num_classes, num_classes * (per_class ? num_samples : 1)) {}

    __device__ void add_pair(int64_t label, int64_t predicted) const {
        if (!per_class_) {
            counts_.add(label, predicted);
        } else if (label == predicted) {
            counts_.add(0, label);
        } else {
            counts_.add(1, predicted);
            counts_.add(2, label);
        }
    }

    __device__ void finish() const { counts_.finish(); }

private:
    bool per_class_;
    Counts counts_;
};

} // namespace
