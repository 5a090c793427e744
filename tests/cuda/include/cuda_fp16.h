// CUDA's float16, with the conversions of the C kernels.
#pragma once

#include <cuda_runtime.h>

#include "block.h"

struct __half {
    uint16_t bits;
};

inline float __half2float(__half x) { return float_of_float16(x.bits); }
inline __half __float2half(float x) { return {float16_of_float(x)}; }

struct __half2 {
    __half x, y;
};

inline float2 __half22float2(__half2 both) { return {__half2float(both.x), __half2float(both.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
