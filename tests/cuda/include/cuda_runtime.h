// An emulation of the part of CUDA's runtime that the kernels use. A C++ compiler compiles the kernels against this
// header, and a launch runs the whole grid on the CPU before it returns: emulation.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>

#define __host__
#define __device__
#define __global__
#define __shared__ thread_local // blocks run one after the other, in one thread
#define __grid_constant__
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))

struct dim3 {
    unsigned x, y, z = 1;
    dim3(unsigned width = 1, unsigned height = 1) : x(width), y(height) {}
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

namespace emulation {

// Is called for each access to device memory.
inline void note_access(const void* /*address*/, int /*bytes*/, bool /*is_store*/) {}

constexpr unsigned WARP = 32;

// Wait until all threads of the warp, or of the block, have come as far.
void wait_for_warp();
void wait_for_block();

// Return whether it is true of any thread of the warp, or of all threads of the block, after waiting for them.
bool is_true_of_any(bool mine);
bool is_true_of_all(bool mine);

// Returns what another thread of the warp gives, after waiting for all of them.
uint64_t exchange(uint64_t mine, unsigned thread);

template <typename T> T of_thread(T mine, unsigned thread) {
    uint64_t bits = 0;
    static_assert(sizeof mine <= sizeof bits);
    std::memcpy(&bits, &mine, sizeof mine);
    bits = exchange(bits, thread);
    std::memcpy(&mine, &bits, sizeof mine);
    return mine;
}

// Runs the kernel in every thread of the grid.
cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);

} // namespace emulation

inline void __syncthreads() { emulation::wait_for_block(); }

inline int __syncthreads_and(int mine) { return emulation::is_true_of_all(mine != 0); }

inline void __syncwarp() { emulation::wait_for_warp(); }

inline int __any_sync(unsigned /*all lanes*/, int mine) { return emulation::is_true_of_any(mine != 0); }

template <typename T> T __shfl_xor_sync(unsigned /*all lanes*/, T mine, int lanes) {
    return emulation::of_thread(mine, threadIdx.x ^ static_cast<unsigned>(lanes));
}

template <typename T> T __shfl_sync(unsigned /*all lanes*/, T mine, int lane) {
    const unsigned first = threadIdx.x / emulation::WARP * emulation::WARP;
    return emulation::of_thread(mine, first + static_cast<unsigned>(lane));
}

// The first lanes keep their own.
template <typename T> T __shfl_up_sync(unsigned /*all lanes*/, T mine, unsigned lanes) {
    const bool has_other = threadIdx.x % emulation::WARP >= lanes;
    return emulation::of_thread(mine, threadIdx.x - (has_other ? lanes : 0));
}

inline void __threadfence_system() {}

template <typename T> T __ldg(const T* address) { return *address; }

inline bool has_bit(unsigned word, unsigned bit) { return (word & bit) != 0; }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// ---- the special functions, with errors as large as a GPU's can be ----

using emulation::note_access;

namespace emulation {

// x, or a neighbour up to 2^-22 away. Which one depends on its last bits, so that the same argument has the same
// result.
inline float with_error(double x) {
    const auto rounded = static_cast<float>(x);
    const int last_bits = static_cast<int>(__float_as_uint(rounded) * 2654435761u >> 30); // 0 to 3
    const double error = (last_bits - 1.5) / 1.5 * 0x1p-22;
    const auto result = static_cast<float>(x * (1 + error));
    return std::isfinite(result) && std::fabs(result) < 0x1p-126f ? 0 : result; // denormal results are flushed
}

inline float without_denormal(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

} // namespace emulation

inline float max_or_nan(float x, float y) { return x != x || x > y ? x : y; }
inline void add_label_sums(unsigned labels, unsigned bit, float x, float y, float v, float* intersection,
                           float* prediction, float* target) {
    *prediction = std::fma(x, y, *prediction);
    *intersection = labels & bit ? std::fma(x, y, *intersection) : *intersection;
    *target += labels & bit ? v : 0;
}
inline void add_unless_label(unsigned labels, unsigned bit, float x, float* sum, float y, float* at_label) {
    (labels & bit ? *at_label : *sum) = labels & bit ? y : *sum + x;
}
inline void add_product_unless_label(unsigned labels, unsigned bit, float x, float y, float* sum) {
    *sum = labels & bit ? *sum : std::fma(x, y, *sum);
}
inline unsigned bit_or_0(unsigned n) { return n < 32 ? 1u << n : 0; }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline float fast_exp2(float x) { return emulation::with_error(std::exp2(static_cast<double>(x))); }
inline float fast_log2(float x) {
    const double y = std::log2(static_cast<double>(emulation::without_denormal(x)));
    return std::fabs(y) < 1 ? static_cast<float>(y + (emulation::with_error(1 + std::fabs(y)) - (1 + std::fabs(y))) / 2)
                            : emulation::with_error(y);
}
inline float fast_reciprocal(float x) {
    return emulation::with_error(1 / static_cast<double>(emulation::without_denormal(x)));
}

template <typename T> T atomicAdd(T* address, T value) {
    const T before = *address;
    *address += value;
    return before;
}

inline int atomicCAS(int* address, int expected, int value) {
    const int before = *address;
    *address = before == expected ? value : before;
    return before;
}

cudaError_t cudaGetLastError();

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int shared_bytes);

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
    return emulation::launch(*config, [&] { kernel(arguments...); });
}
