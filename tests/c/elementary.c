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

static void exp_float(const float* x, float* y, int n) {
    for (int i = 0; i < n; ++i) {
        y[i] = exp_nonpositive_f32(x[i]);
    }
}

static void exp_double(const double* x, double* y, int n) {
    for (int i = 0; i < n; ++i) {
        y[i] = exp_nonpositive_f64(x[i]);
    }
}

static void log1p_float(const float* x, float* y, int n) {
    for (int i = 0; i < n; ++i) {
        y[i] = log1p_f32(x[i]);
    }
}

static void log1p_double(const double* x, double* y, int n) {
    for (int i = 0; i < n; ++i) {
        y[i] = log1p_f64(x[i]);
    }
}

static void from_float16(const uint16_t* x, float* y, int n) {
    for (int i = 0; i < n; ++i) {
        y[i] = float_of_float16(x[i]);
    }
}

static void from_bfloat16(const uint16_t* x, float* y, int n) {
    for (int i = 0; i < n; ++i) {
        y[i] = float_of_bfloat16(x[i]);
    }
}

static void to_float16(const float* x, uint16_t* y, int n) {
    for (int i = 0; i < n; ++i) {
        y[i] = float16_of_float(x[i]);
    }
}

static void to_bfloat16(const float* x, uint16_t* y, int n) {
    for (int i = 0; i < n; ++i) {
        y[i] = bfloat16_of_float(x[i]);
    }
}

const struct elementary ELEMENTARY = {
    .isa = ISA,
    .exp_float = exp_float,
    .exp_double = exp_double,
    .log1p_float = log1p_float,
    .log1p_double = log1p_double,
    .float_of_float16 = from_float16,
    .float_of_bfloat16 = from_bfloat16,
    .float16_of_float = to_float16,
    .bfloat16_of_float = to_bfloat16,
};
