// CUDA's float16, with the conversions of the C kernels.
#pragma once

#include "block.h"

struct __half {
    uint16_t bits;
};

inline float __half2float(__half x) { return float_of_float16(x.bits); }
inline __half __float2half(float x) { return {float16_of_float(x)}; }
