// CUDA's bfloat16, with the conversions of the C kernels.
#pragma once

#include "block.h"

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) { return float_of_bfloat16(x.bits); }
inline __nv_bfloat16 __float2bfloat16(float x) { return {bfloat16_of_float(x)}; }
