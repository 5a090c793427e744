// Accesses to device memory: each instruction moves one value of 1 to 16 bytes. The emulation counts them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <type_traits>

// Before a loop whose number of turns the compiler knows: so that arrays become registers, or where few tiles go.
#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#else
#define UNROLL
#define NO_UNROLL
#endif

namespace {

#ifdef __CUDACC__
__device__ inline void note_access(const void* /*address*/, int /*bytes*/, bool /*is_store*/) {}
#endif

// Of memory that no thread of the kernel writes.
template <typename Value> __device__ Value load_global(const Value* address) {
    note_access(address, sizeof(Value), false);
    return __ldg(address);
}

template <typename Value> __device__ void store_global(Value* address, const Value& value) {
    note_access(address, sizeof(Value), true);
    *address = value;
}

// The compiler may split an assignment of a vector that it has just packed into four.
__device__ inline void store_global(uint4* address, const uint4& value) {
    note_access(address, sizeof value, true);
#ifdef __CUDACC__
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)), "r"(value.x),
                 "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
#else
    *address = value;
#endif
}

// Of memory that is not aligned to vectors; rarely called, so not inlined.
template <class Vector, typename Element> __device__ __noinline__ Vector load_elements(const Element* from) {
    constexpr int COUNT = static_cast<int>(sizeof(Vector) / sizeof(Element));
    union {
        Element elements[COUNT];
        Vector vector;
    } v;
    UNROLL for (int i = 0; i < COUNT; ++i) { v.elements[i] = load_global(from + i); }
    return v.vector;
}

template <class Vector, typename Element>
__device__ __noinline__ void store_elements(Element* to, const Vector& vector) {
    constexpr int COUNT = static_cast<int>(sizeof vector / sizeof(Element));
    union {
        Vector vector;
        Element elements[COUNT];
    } v;
    v.vector = vector;
    UNROLL for (int i = 0; i < COUNT; ++i) { store_global(to + i, v.elements[i]); }
}

// Copies 8 or 16 bytes to shared memory without passing through registers, where the device can. The copy has happened
// after wait_for_copies(), for this thread alone.
template <class Vector> __device__ void copy_async(Vector* shared, const Vector* global) {
    note_access(global, sizeof *global, false);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    if constexpr (sizeof(Vector) == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(address), "l"(global) : "memory");
    }
#else
    *shared = __ldg(global);
#endif
}

__device__ inline void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// ---- the numbers in a word of 4 bytes -------------------------------------------------------------------------------

template <typename T> struct Packed;

template <> struct Packed<float> {
    static constexpr int COUNT = 1;
    static __device__ void unpack(unsigned word, float* to) { to[0] = __uint_as_float(word); }
    static __device__ unsigned pack(const float* from) { return __float_as_uint(from[0]); }
};

template <> struct Packed<__half> {
    static constexpr int COUNT = 2;
    static __device__ void unpack(unsigned word, float* to) {
        const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&word));
        to[0] = both.x;
        to[1] = both.y;
    }
    static __device__ unsigned pack(const float* from) {
        const __half2 both = __floats2half2_rn(from[0], from[1]);
        return *reinterpret_cast<const unsigned*>(&both);
    }
};

template <> struct Packed<__nv_bfloat16> {
    static constexpr int COUNT = 2;
    static __device__ void unpack(unsigned word, float* to) {
        to[0] = __uint_as_float(word << 16);
        to[1] = __uint_as_float(word & 0xffff0000u);
    }
    static __device__ unsigned pack(const float* from) {
        const __nv_bfloat162 both = __floats2bfloat162_rn(from[0], from[1]);
        return *reinterpret_cast<const unsigned*>(&both);
    }
};

// How many numbers 16 bytes hold.
template <typename T> constexpr int PER_VECTOR = static_cast<int>(sizeof(uint4) / sizeof(T));

// The vector of N numbers.
template <typename T, int N> using VectorOf = std::conditional_t<N == PER_VECTOR<T>, uint4, uint2>;

template <typename T, int N> __device__ void unpack(const VectorOf<T, N>& vector, float (&to)[N]) {
    constexpr int COUNT = Packed<T>::COUNT;
    Packed<T>::unpack(vector.x, to);
    Packed<T>::unpack(vector.y, to + COUNT);
    if constexpr (N == PER_VECTOR<T>) {
        Packed<T>::unpack(vector.z, to + 2 * COUNT);
        Packed<T>::unpack(vector.w, to + 3 * COUNT);
    }
}

template <typename T, int N> __device__ VectorOf<T, N> pack(const float (&from)[N]) {
    constexpr int COUNT = Packed<T>::COUNT;
    if constexpr (N == PER_VECTOR<T>) {
        return {Packed<T>::pack(from), Packed<T>::pack(from + COUNT), Packed<T>::pack(from + 2 * COUNT),
                Packed<T>::pack(from + 3 * COUNT)};
    } else {
        return {Packed<T>::pack(from), Packed<T>::pack(from + COUNT)};
    }
}

} // namespace
