#include <immintrin.h>

#include "f16c.h"

#define SEGLOSS_ISA_NAME "avx512"
#define SEGLOSS_KERNELS segloss_kernels_avx512
#define SEGLOSS_VECTOR_BYTES 64
#define LARGER_F32(x, y) _mm512_max_ps(x, y)
#define LARGER_F64(x, y) _mm512_max_pd(x, y)
#define PERMUTE_F32(x, from) _mm512_permutexvar_ps((__m512i)(from), x)
#define PERMUTE_F64(x, from) _mm512_permutexvar_pd((__m512i)(from), x)
#define SUM_F32(x) _mm512_reduce_add_ps(x)
#define SUM_F64(x) _mm512_reduce_add_pd(x)
#define LARGEST_F32(x) _mm512_reduce_max_ps(x)
#define LARGEST_F64(x) _mm512_reduce_max_pd(x)
#define STREAM(to, x) _mm512_stream_si512((__m512i*)(to), (__m512i)(x))
#define FENCE() _mm_sfence()
#include "kernels_tmpl.h"
