/* Compiled once for each instruction set, with its flags. ELEMENTARY names the table, ISA the instruction set. The
 * loops vectorise as those of the kernels do. */
#include "elementary.h"

#include <math.h>

#include "block.h"
#ifdef __F16C__
#include "f16c.h"
#endif
#include "kernels.h"

#if defined(__AVX512F__)
#define SEGLOSS_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SEGLOSS_VECTOR_BYTES 32
#else
#define SEGLOSS_VECTOR_BYTES 16
#endif

/* `n` must be a multiple of WIDTH. */
#define OVER_VECTORS(name, function)                                                                                   \
    static void name(const REAL* x, REAL* y, int n) {                                                                  \
        for (int i = 0; i < n; i += WIDTH) {                                                                           \
            FN(store)(y + i, FN(function)(FN(load)(x + i)));                                                           \
        }                                                                                                              \
    }

#define OVER_ARRAY(name, from, to, function)                                                                           \
    static void name(const from* x, to* y, int n) {                                                                    \
        for (int i = 0; i < n; ++i) {                                                                                  \
            y[i] = function(x[i]);                                                                                     \
        }                                                                                                              \
    }

/* The macros of kernels_tmpl.h, for the templates of vectors and of the elementary functions alone. */
#define REAL float
#define REAL_C(constant) constant##f
#define REAL_IS_DOUBLE 0
#define BITS int32_t
#define UBITS uint32_t
#define FN(name) name##_f32
#include "vector_tmpl.h"
#include "math_tmpl.h"
OVER_VECTORS(exp_float, exp_nonpositive)
OVER_VECTORS(log_float, log)
OVER_VECTORS(log1p_float, log1p)
OVER_VECTORS(log1p_of_fraction_float, log1p_of_fraction)
#undef REAL
#undef REAL_C
#undef REAL_IS_DOUBLE
#undef BITS
#undef UBITS
#undef FN
#undef VEC
#undef MASK
#undef UMASK
#undef WIDTH

#define REAL double
#define REAL_C(constant) constant
#define REAL_IS_DOUBLE 1
#define BITS int64_t
#define UBITS uint64_t
#define FN(name) name##_f64
#include "vector_tmpl.h"
#include "math_tmpl.h"
OVER_VECTORS(exp_double, exp_nonpositive)
OVER_VECTORS(log_double, log)
OVER_VECTORS(log1p_double, log1p)
OVER_VECTORS(log1p_of_fraction_double, log1p_of_fraction)

OVER_ARRAY(from_float16, uint16_t, float, float_of_float16)
OVER_ARRAY(from_bfloat16, uint16_t, float, float_of_bfloat16)
OVER_ARRAY(to_float16, float, uint16_t, float16_of_float)
OVER_ARRAY(to_bfloat16, float, uint16_t, bfloat16_of_float)

#ifdef __F16C__
/* Fewer than eight are padded, so that instructions convert them, too. */
#define OVER_ROW(name, from, to, function)                                                                             \
    static void name(const from* x, to* y, int n) {                                                                    \
        from padded[8] = {0};                                                                                          \
        to converted[8];                                                                                               \
        if (n >= 8) {                                                                                                  \
            function(y, x, n);                                                                                         \
            return;                                                                                                    \
        }                                                                                                              \
        memcpy(padded, x, (size_t)n * sizeof *x);                                                                      \
        function(converted, padded, 8);                                                                                \
        memcpy(y, converted, (size_t)n * sizeof *y);                                                                   \
    }

OVER_ROW(from_row_of_float16, uint16_t, float, floats_of_float16)
OVER_ROW(to_row_of_float16, float, uint16_t, float16_of_floats)
#else
#define from_row_of_float16 from_float16
#define to_row_of_float16 to_float16
#endif

const struct elementary ELEMENTARY = {
    .isa = ISA,
    .of_float = {[EXP] = exp_float,
                 [LOG] = log_float,
                 [LOG1P] = log1p_float,
                 [LOG1P_OF_FRACTION] = log1p_of_fraction_float},
    .of_double = {[EXP] = exp_double,
                  [LOG] = log_double,
                  [LOG1P] = log1p_double,
                  [LOG1P_OF_FRACTION] = log1p_of_fraction_double},
    .float_of_float16 = from_float16,
    .row_of_float16 = from_row_of_float16,
    .float_of_bfloat16 = from_bfloat16,
    .float16_of_float = to_float16,
    .float16_of_row = to_row_of_float16,
    .bfloat16_of_float = to_bfloat16,
};
