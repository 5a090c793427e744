// The special functions of a GPU, a few times cheaper than those of its mathematics library. Their relative error is at
// most 2^-22, that of log2 for results near 0 an absolute one. The emulation computes them with errors as large.
#pragma once

#include <cuda_runtime.h>

namespace {

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

#ifdef __CUDACC__

// 2^x; 0 below 2^-126.
__device__ inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float fast_log2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float fast_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// What depends on whether a class is a voxel's label: a bit of `labels`, of which `bit` is 1 there. Without PTX the
// compiler would take selects besides the additions, and comparisons for bits that one instruction turns into
// predicates.

// Adds x y to `prediction`; at the label also to `intersection`, and v to `target`.
__device__ inline void add_label_sums(unsigned labels, unsigned bit, float x, float y, float v, float* intersection,
                                      float* prediction, float* target) {
    asm("{\n\t.reg .pred p;\n\t.reg .b32 label;\n\t"
        "and.b32 label, %3, %4;\n\t"
        "setp.ne.b32 p, label, 0;\n\t"
        "fma.rn.f32 %1, %5, %6, %1;\n\t"
        "@p fma.rn.f32 %0, %5, %6, %0;\n\t"
        "@p add.f32 %2, %2, %7;\n\t}"
        : "+f"(*intersection), "+f"(*prediction), "+f"(*target)
        : "r"(labels), "r"(bit), "f"(x), "f"(y), "f"(v));
}

// Adds x to the sum but at the label, which it sets to y.
__device__ inline void add_unless_label(unsigned labels, unsigned bit, float x, float* sum, float y, float* at_label) {
    asm("{\n\t.reg .pred p;\n\t.reg .b32 label;\n\t"
        "and.b32 label, %2, %3;\n\t"
        "setp.ne.b32 p, label, 0;\n\t"
        "@!p add.f32 %0, %0, %4;\n\t"
        "@p mov.f32 %1, %5;\n\t}"
        : "+f"(*sum), "+f"(*at_label)
        : "r"(labels), "r"(bit), "f"(x), "f"(y));
}

// Adds x y to the sum but at the label.
__device__ inline void add_product_unless_label(unsigned labels, unsigned bit, float x, float y, float* sum) {
    asm("{\n\t.reg .pred p;\n\t.reg .b32 label;\n\t"
        "and.b32 label, %1, %2;\n\t"
        "setp.eq.b32 p, label, 0;\n\t"
        "@p fma.rn.f32 %0, %3, %4, %0;\n\t}"
        : "+f"(*sum)
        : "r"(labels), "r"(bit), "f"(x), "f"(y));
}

// 2^n, 0 for n >= 32.
__device__ inline unsigned bit_or_0(unsigned n) {
    unsigned bit;
    asm("shl.b32 %0, 1, %1;" : "=r"(bit) : "r"(n));
    return bit;
}

// Whether a word has a bit. Without PTX the compiler would shift the bit down first.
__device__ inline bool has_bit(unsigned word, unsigned bit) {
    int result;
    asm("{\n\t.reg .pred p;\n\t.reg .b32 masked;\n\t"
        "and.b32 masked, %1, %2;\n\t"
        "setp.ne.u32 p, masked, 0;\n\t"
        "selp.s32 %0, 1, 0, p;\n\t}"
        : "=r"(result)
        : "r"(word), "r"(bit));
    return result != 0;
}

// The larger number; nan if one of them is nan.
__device__ inline float max_or_nan(float x, float y) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float max;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(max) : "f"(x), "f"(y));
    return max;
#else
    return x != x || x > y ? x : y;
#endif
}

#endif

// log(1 + x) for x in [0, 0.5], with a relative error below 2e-7.
__device__ inline float log1p_of_small(float x) {
    float sum = 0.0386736095f;
    sum = sum * x - 0.113697037f;
    sum = sum * x + 0.184504747f;
    sum = sum * x - 0.247519836f;
    sum = sum * x + 0.333138078f;
    sum = sum * x - 0.499994129f;
    return sum * x * x + x;
}

// For x from 0 to what can be added to 1.
__device__ inline float log1p_of_positive(float x) {
    const float of_large = LN_2 * fast_log2(1 + x);
    return x <= 0.5f ? log1p_of_small(x) : of_large;
}

} // namespace
