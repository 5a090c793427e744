/* Compiled once for each instruction set, with its flags: ELEMENTARY names the table, ISA the instruction set. The
 * loops vectorise as the kernels' do. */
#include "elementary.h"

#include <math.h>

#include "block.h"

/* The macros of kernels_tmpl.h, for the template of the elementary functions alone. */
#define REAL float
#define REAL_C(constant) constant##f
#define REAL_IS_DOUBLE 0
#define BITS int32_t
#define UBITS uint32_t
#define FN(name) name##_f32
#include "math_tmpl.h"
#undef REAL
#undef REAL_C
#undef REAL_IS_DOUBLE
#undef BITS
#undef UBITS
#undef FN

#define REAL double
#define REAL_C(constant) constant
#define REAL_IS_DOUBLE 1
#define BITS int64_t
#define UBITS uint64_t
#define FN(name) name##_f64
#include "math_tmpl.h"

#define OVER_ARRAY(name, from, to, function)                                                                           \
    static void name(const from* x, to* y, int n) {                                                                    \
        for (int i = 0; i < n; ++i) {                                                                                  \
            y[i] = function(x[i]);                                                                                     \
        }                                                                                                              \
    }

OVER_ARRAY(exp_float, float, float, exp_nonpositive_f32)
OVER_ARRAY(exp_double, double, double, exp_nonpositive_f64)
OVER_ARRAY(log_float, float, float, log_f32)
OVER_ARRAY(log_double, double, double, log_f64)
OVER_ARRAY(log1p_float, float, float, log1p_f32)
OVER_ARRAY(log1p_double, double, double, log1p_f64)
OVER_ARRAY(from_float16, uint16_t, float, float_of_float16)
OVER_ARRAY(from_bfloat16, uint16_t, float, float_of_bfloat16)
OVER_ARRAY(to_float16, float, uint16_t, float16_of_float)
OVER_ARRAY(to_bfloat16, float, uint16_t, bfloat16_of_float)

const struct elementary ELEMENTARY = {
    .isa = ISA,
    .of_float = {[EXP] = exp_float, [LOG] = log_float, [LOG1P] = log1p_float},
    .of_double = {[EXP] = exp_double, [LOG] = log_double, [LOG1P] = log1p_double},
    .float_of_float16 = from_float16,
    .float_of_bfloat16 = from_bfloat16,
    .float16_of_float = to_float16,
    .bfloat16_of_float = to_bfloat16,
};
