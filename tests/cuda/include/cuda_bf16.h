// CUDA's bfloat16, with the conversions of the C kernels.
#pragma once

#include "block.h"

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) { return float_of_bfloat16(x.bits); }
inline __nv_bfloat16 __float2bfloat16(float x) { return {bfloat16_of_float(x)}; }

struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
