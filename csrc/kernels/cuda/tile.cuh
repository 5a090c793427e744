// A block's logits in shared memory, and later their gradient in the same place. Device memory is read once and written
// once, by neighbouring threads at neighbouring addresses, whether the voxels or the classes are contiguous.
#pragma once

#include "sums.cuh"

extern __shared__ uint4 segloss_shared[]; // sized by the launch: a tile, and what else a kernel puts behind it

namespace {

constexpr int64_t MAX_SHARED_BYTES = (64 << 10) - 1536; // every device since sm_75 grants a block 64 KiB

// Elements from voxel to voxel if the classes of a voxel are contiguous: an odd number of banks of shared memory (of
// pairs of banks for double), so that the threads of a warp, each at its own voxel, do not wait for one bank.
template <typename T> __host__ __device__ int64_t pitch_of(int64_t num_classes) {
    constexpr int64_t PER_BANK = sizeof(T) < 4 ? 4 / sizeof(T) : 1;
    return ((num_classes + PER_BANK - 1) / PER_BANK | 1) * PER_BANK;
}

template <typename T> __host__ __device__ int64_t tile_bytes(int64_t num_classes) {
    return THREADS * pitch_of<T>(num_classes) * static_cast<int64_t>(sizeof(T)); // a multiple of 16
}

// Where the classes of one voxel lie, in a tile or in a tensor.
template <typename T, typename Stride> struct Classes {
    T* first;
    Stride stride;

    __device__ T& operator[](int64_t c) const { return first[static_cast<Stride>(c) * stride]; }
};

// The classes of THREADS voxels, or of fewer at the end. All threads of the block must call load and store.
template <typename T> class Tile {
public:
    __device__ explicit Tile(int64_t num_classes) : num_classes_(static_cast<int>(num_classes)) {}

    __device__ Classes<T, int> voxel(int thread) const { return {data() + thread * voxel_stride_, class_stride_}; }

    // `offset` is that of this thread's voxel.
    __device__ void load(const segloss_tensor& logits, int64_t offset, int count) {
        const bool is_planar = share(logits, offset, count);
        const bool is_interleaved = !is_planar && logits.stride_class == 1;
        voxel_stride_ = is_interleaved ? static_cast<int>(pitch_of<T>(num_classes_)) : 1;
        class_stride_ = is_interleaved ? 1 : THREADS;
        if (is_planar) {
            for_each_vector(logits, [](uint4* in_tile, uint4* in_memory) { *in_tile = *in_memory; });
        } else {
            for_each_element(logits, count, [](T* in_tile, T* in_memory) { *in_tile = *in_memory; });
        }
        __syncthreads();
    }

    __device__ void store(const segloss_tensor& grad, int64_t offset, int count) const {
        const bool is_planar = share(grad, offset, count);
        if (is_planar && voxel_stride_ == 1) {
            for_each_vector(grad, [](uint4* in_tile, uint4* in_memory) { *in_memory = *in_tile; });
        } else {
            for_each_element(grad, count, [](T* in_tile, T* in_memory) { *in_memory = *in_tile; });
        }
        __syncthreads();
    }

private:
    static constexpr int PER_VECTOR = sizeof(uint4) / sizeof(T);
    static constexpr int VECTORS = THREADS / PER_VECTOR; // of a class

    static __device__ T* data() { return reinterpret_cast<T*>(segloss_shared); }

    static __device__ int64_t* offsets() {
        __shared__ int64_t offsets[THREADS];
        return offsets;
    }

    // Shares the voxels' offsets among the threads, and waits until all are done with the tile. True if the voxels are
    // contiguous in each class, and each class is aligned to vectors.
    static __device__ bool share(const segloss_tensor& tensor, int64_t offset, int count) {
        const int thread = static_cast<int>(threadIdx.x);
        offsets()[thread] = offset;
        __syncthreads();
        const auto address = reinterpret_cast<uintptr_t>(tensor.data) + offsets()[0] * sizeof(T);
        const bool is_aligned = address % sizeof(uint4) == 0 && tensor.stride_class % PER_VECTOR == 0;
        return __syncthreads_and(count == THREADS && is_aligned && offset == offsets()[0] + thread);
    }

    template <typename Function>
    __device__ void for_each_vector(const segloss_tensor& tensor, const Function& f) const {
        T* const memory = static_cast<T*>(tensor.data) + offsets()[0];
        for (int i = static_cast<int>(threadIdx.x); i < num_classes_ * VECTORS; i += THREADS) {
            T* const in_memory = memory + i / VECTORS * tensor.stride_class + i % VECTORS * PER_VECTOR;
            f(segloss_shared + i, reinterpret_cast<uint4*>(in_memory));
        }
    }

    template <typename Function>
    __device__ void for_each_element(const segloss_tensor& tensor, int count, const Function& f) const {
        const int thread = static_cast<int>(threadIdx.x);
        const auto visit = [&](int voxel, int c) {
            T* const memory = static_cast<T*>(tensor.data) + offsets()[voxel];
            f(&this->voxel(voxel)[c], memory + c * tensor.stride_class);
        };
        if (tensor.stride_class != 1) { // each thread copies its own voxel
            for (int c = 0; c < num_classes_ && thread < count; ++c) {
                visit(thread, c);
            }
            return;
        }
        // Classes first, THREADS elements at a time.
        int voxel = thread / num_classes_, c = thread % num_classes_;
        const int voxels = THREADS / num_classes_, classes = THREADS % num_classes_;
        while (voxel < count) {
            visit(voxel, c);
            c += classes;
            voxel += voxels + (c >= num_classes_);
            c -= c >= num_classes_ ? num_classes_ : 0;
        }
    }

    int num_classes_;
    int voxel_stride_ = 1;
    int class_stride_ = THREADS;
};

// Calls visit(walk, count) for the block's tiles in [begin, end). `walk` is at this thread's position; only the first
// `count` threads have a voxel.
template <int N, typename Function>
__device__ void for_each_tile(Walk<N> walk, int64_t begin, int64_t end, const Function& visit) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
    int64_t first = begin + static_cast<int64_t>(blockIdx.x) * THREADS;
    if (first < end) {
        walk.start(first + threadIdx.x);
    }
    while (first < end) {
        visit(walk, static_cast<int>(end - first < THREADS ? end - first : THREADS));
        first += step;
        walk.step(step);
    }
}

} // namespace
