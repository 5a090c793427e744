// Kernels like those whose speed others have measured, to check the model by: gpu_checks.py has the figures.
#include <cuda_runtime.h>

struct alignas(64) Float16 {
    float4 vectors[4];
};

template <typename T> __device__ void copy(const T* from, T* to, unsigned n) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        to[i] = from[i];
    }
}

// Tree in shared memory, with few loads: most of its time goes to barriers.
template <int BATCH> __device__ void block_sum(const int* from, int* to, unsigned n) {
    __shared__ int sums[512];
    const unsigned thread = threadIdx.x, first = (blockIdx.x * blockDim.x + thread) * BATCH;
    int sum = 0;
#pragma unroll
    for (unsigned i = first; i < first + BATCH; ++i) {
        if (i < n) {
            sum += from[i];
        }
    }
    sums[thread] = sum;
    __syncthreads();
#pragma unroll
    for (unsigned width = 256; width > 32; width /= 2) {
        if (thread < width) {
            sums[thread] += sums[thread + width];
        }
        __syncthreads();
    }
    volatile int* const of_warp = sums;
#pragma unroll
    for (unsigned width = 32; width > 0; width /= 2) {
        if (thread < width) {
            of_warp[thread] += of_warp[thread + width];
        }
        __syncwarp();
    }
    if (thread == 0) {
        atomicAdd(to, of_warp[0]);
    }
}

template <typename Combine> __device__ float reduce(float x, float* of_warps, const Combine& combine) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        x = combine(x, __shfl_xor_sync(~0u, x, lanes));
    }
    __syncthreads();
    of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warps[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) {
        x = combine(x, of_warps[warp]);
    }
    return x;
}

extern "C" {

__global__ void copy_1(const float* from, float* to, unsigned n) { copy(from, to, n); }
__global__ void copy_4(const float4* from, float4* to, unsigned n) { copy(from, to, n); }
__global__ void copy_16(const Float16* from, Float16* to, unsigned n) { copy(from, to, n); }

__global__ void scale(const double* from, double* to, unsigned n) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        to[i] = 1.2 * from[i];
    }
}

__global__ void block_sum_1(const int* from, int* to, unsigned n) { block_sum<1>(from, to, n); }
__global__ void block_sum_12(const int* from, int* to, unsigned n) { block_sum<12>(from, to, n); }

// A block for each row of 8192 logits.
__global__ void __launch_bounds__(256) softmax(const float4* from, float4* to, unsigned) {
    __shared__ float of_warps[8];
    float4 x[8];
    const unsigned first = blockIdx.x * 2048 + threadIdx.x;
    float most = -INFINITY, sum = 0;
    for (int i = 0; i < 8; ++i) {
        x[i] = from[first + i * 256];
    }
    for (const auto& v : x) {
        most = fmaxf(most, fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)));
    }
    most = reduce(most, of_warps, [](float a, float b) { return fmaxf(a, b); });
    for (auto& v : x) {
        v = {__expf(v.x - most), __expf(v.y - most), __expf(v.z - most), __expf(v.w - most)};
        sum += v.x + v.y + v.z + v.w;
    }
    const float scale = 1 / reduce(sum, of_warps, [](float a, float b) { return a + b; });
    for (int i = 0; i < 8; ++i) {
        to[first + i * 256] = {x[i].x * scale, x[i].y * scale, x[i].z * scale, x[i].w * scale};
    }
}
}
