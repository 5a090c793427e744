#include <immintrin.h>

#include "f16c.h"

#define SEGLOSS_ISA_NAME "avx2"
#define SEGLOSS_KERNELS segloss_kernels_avx2
#define SEGLOSS_VECTOR_BYTES 32
#define LARGER_F32(x, y) _mm256_max_ps(x, y)
#define LARGER_F64(x, y) _mm256_max_pd(x, y)
#define PERMUTE_F32(x, from) _mm256_permutevar8x32_ps(x, (__m256i)(from))
#define STREAM(to, x) _mm256_stream_si256((__m256i*)(to), (__m256i)(x))
#define FENCE() _mm_sfence()
#include "kernels_tmpl.h"
