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

// Adds x y to `prediction`; if a equals b, also to `intersection`, and v to `target`. Without PTX the compiler would
// take selects besides the additions.
__device__ inline void add_label_sums(int a, int b, float x, float y, float v, float* intersection, float* prediction,
                                      float* target) {
    asm("{\n\t.reg .pred is_label;\n\t"
        "setp.eq.s32 is_label, %3, %4;\n\t"
        "fma.rn.f32 %1, %5, %6, %1;\n\t"
        "@is_label fma.rn.f32 %0, %5, %6, %0;\n\t"
        "@is_label add.f32 %2, %2, %7;\n\t}"
        : "+f"(*intersection), "+f"(*prediction), "+f"(*target)
        : "r"(a), "r"(b), "f"(x), "f"(y), "f"(v));
}

// Adds x to the sum unless a equals b; sets `label` to y if it does.
__device__ inline void add_unless(int a, int b, float x, float* sum, float y, float* label) {
    asm("{\n\t.reg .pred p;\n\t"
        "setp.eq.s32 p, %2, %3;\n\t"
        "@!p add.f32 %0, %0, %4;\n\t"
        "@p mov.f32 %1, %5;\n\t}"
        : "+f"(*sum), "+f"(*label)
        : "r"(a), "r"(b), "f"(x), "f"(y));
}

// Adds x y to the sum unless a equals b.
__device__ inline void add_product_unless(int a, int b, float x, float y, float* sum) {
    asm("{\n\t.reg .pred p;\n\t"
        "setp.ne.s32 p, %1, %2;\n\t"
        "@p fma.rn.f32 %0, %3, %4, %0;\n\t}"
        : "+f"(*sum)
        : "r"(a), "r"(b), "f"(x), "f"(y));
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
