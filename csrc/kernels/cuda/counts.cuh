// Counts of pairs (label, predicted class), in integers, so that atomics give the same result in any order.
#pragma once

#include "sums.cuh"

namespace {

__host__ __device__ inline int64_t num_cells_of(int64_t num_classes, bool per_class) {
    return num_classes * (per_class ? 3 : num_classes);
}

// The counts of a block. Few cells are counted in shared memory first. All threads construct it, and call write().
class Cells {
public:
    static constexpr int64_t SHARED = 2048;
    static constexpr int64_t SHARED_BYTES = SHARED * sizeof(unsigned);

    __device__ Cells(int64_t num_cells, int64_t* counts)
        : num_shared_(num_cells <= SHARED ? static_cast<int>(num_cells) : 0),
          counts_(reinterpret_cast<unsigned long long*>(counts)) {
        for (int i = threadIdx.x; i < num_shared_; i += THREADS) {
            shared()[i] = 0;
        }
        __syncthreads();
    }

    // Of valid classes. Of each class: true positives, then false positives, then false negatives.
    template <typename Class>
    __device__ void add(Class label, Class predicted, int64_t num_classes, bool per_class) const {
        if (!per_class) {
            add_one(label * num_classes + predicted);
        } else if (label == predicted) {
            add_one(label);
        } else {
            add_one(num_classes + predicted);
            add_one(2 * num_classes + label);
        }
    }

    __device__ void write() const {
        __syncthreads();
        for (int i = threadIdx.x; i < num_shared_; i += THREADS) {
            if (shared()[i] > 0) {
                atomicAdd(&counts_[i], static_cast<unsigned long long>(shared()[i]));
            }
        }
    }

private:
    static __device__ unsigned* shared() {
        __shared__ unsigned cells[SHARED];
        return cells;
    }

    __device__ void add_one(int64_t cell) const {
        if (num_shared_ > 0) {
            atomicAdd(&shared()[cell], 1u);
        } else {
            atomicAdd(&counts_[cell], 1ull);
        }
    }

    int num_shared_;
    unsigned long long* counts_;
};

} // namespace
