#ifdef SEGLOSS_X86
#include <emmintrin.h>
#define LARGER_F32(x, y) _mm_max_ps(x, y)
#define LARGER_F64(x, y) _mm_max_pd(x, y)
#define STREAM(to, x) _mm_stream_si128((__m128i*)(to), (__m128i)(x))
#define FENCE() _mm_sfence()
#endif

#define SEGLOSS_ISA_NAME "baseline"
#define SEGLOSS_KERNELS segloss_kernels_baseline
#define SEGLOSS_VECTOR_BYTES 16
#include "kernels_tmpl.h"
