/* Rows of float16 by the conversion instructions of x86 processors with AVX2. They agree with block.h on every number;
 * nan stays nan, but keeps more of its bits. */
#ifndef SEGLOSS_F16C_H
#define SEGLOSS_F16C_H

#include <immintrin.h>

#include "block.h"

static inline __attribute__((always_inline)) void floats_of_float16(float* to, const uint16_t* from, int count) {
    int i = 0;
    for (; i + 8 <= count; i += 8) {
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
    }
    for (; i + 4 <= count; i += 4) {
        _mm_storeu_ps(to + i, _mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)(from + i))));
    }
    for (; i < count; ++i) {
        to[i] = float_of_float16(from[i]);
    }
}

static inline __attribute__((always_inline)) void float16_of_floats(uint16_t* to, const float* from, int count) {
    int i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i*)(to + i), halves);
    }
    for (; i < count; ++i) {
        to[i] = float16_of_float(from[i]);
    }
}

#define FLOATS_OF_FLOAT16 floats_of_float16
#define FLOAT16_OF_FLOATS float16_of_floats

#endif
