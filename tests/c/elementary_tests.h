/* Tests that exp, log and log1p are within the bounds that math_tmpl.h states, and float16 and bfloat16 exact. */
#ifndef SEGLOSS_TEST_ELEMENTARY_TESTS_H
#define SEGLOSS_TEST_ELEMENTARY_TESTS_H

#include "elementary.h"
#include "tables.h"

/* Batches of points in each grid. */
#ifdef FEW_CASES
enum { GRID = 64 };
#else
enum { GRID = 512 };
#endif

/* The functions that are compiled with the same flags as the table. */
static const struct elementary* elementary_of(const struct segloss_kernels* table) {
    static const struct elementary* const all[] = {
#ifdef __aarch64__
        &elementary_neon,
#else
        &elementary_baseline,
#endif
#ifdef SEGLOSS_X86
        &elementary_avx2,
        &elementary_avx512,
#endif
    };
    int i = 0;
    while (strcmp(all[i]->isa, table->isa) != 0) {
        ++i;
    }
    return all[i];
}

/* ---- exp, log and log1p ---- */

enum { BATCH = 1024 };

/* Points from first to last, spaced evenly in value, or evenly in the bit patterns, which is dense near 0. */
struct grid {
    double first, last;
    int by_pattern;
};

enum { NUM_GRIDS = 3 };

/* One function in float and in double. The last grid covers the points with the largest error. */
struct elementary_function {
    const char* name;
    double bound; /* in ulp */
    double (*exact_double)(double);
    long double (*exact_long_double)(long double);
    struct grid float_grids[NUM_GRIDS];
    struct grid double_grids[NUM_GRIDS];
    float worst_float; /* the argument with the largest error of all floats */
};

/* test_kernels.py takes the bounds from the comments of math_tmpl.h. */
static const struct elementary_function functions[NUM_FUNCTIONS] = {
    {"exp",
     EXP_BOUND,
     exp,
     expl,
     {{-0.0, -0x1.5d589ep+6, 0}, {-0.0, -0x1.5d589ep+6, 1}, {-6, -5.5, 1}},
     {{-0.0, -0x1.6232bdd7abcd2p+9, 0}, {-0.0, -0x1.6232bdd7abcd2p+9, 1}, {-6, -5.5, 1}},
     -0x1.76c71ap+2f},
    {"log",
     LOG_BOUND,
     log,
     logl,
     {{0x1p-126, 0x1.fffffep+127, 0}, {0x1p-126, 0x1.fffffep+127, 1}, {0.65, 0.75, 1}},
     {{0x1p-1022, 0x1.fffffffffffffp+1023, 0}, {0x1p-1022, 0x1.fffffffffffffp+1023, 1}, {0.65, 0.75, 1}},
     0x1.69cf3ep-1},
    {"log1p",
     LOG1P_BOUND,
     log1p,
     log1pl,
     {{0.0, 0x1.fffffep+127, 0}, {0.0, 0x1.fffffep+127, 1}, {0.4, 0.8, 1}},
     {{0.0, 0x1.fffffffffffffp+1023, 0}, {0.0, 0x1.fffffffffffffp+1023, 1}, {0.4, 0.8, 1}},
     0x1.1e984ep-1f},
    {"log1p of fractions",
     LOG1P_OF_FRACTION_BOUND,
     log1p,
     log1pl,
     {{0.0, 1.0, 0}, {0.0, 1.0, 1}, {0.9, 1.0, 1}},
     {{0.0, 1.0, 0}, {0.0, 1.0, 1}, {0.4, 0.8, 1}},
     0x1.ffec68p-1f},
};

static enum function index_of(const struct elementary_function* f) { return (enum function)(f - functions); }

static double error_in_ulp(enum segloss_dtype dtype, long double got, long double exact) {
    return got == exact ? 0 : (double)(fabsl(got - exact) / ulp(&formats[dtype], exact));
}

/* The largest error so far, its argument and the result. */
struct worst {
    double error;
    double x;
    double got;
};

static void keep_worst(struct worst* worst, double error, double x, double got) {
    if (!(error <= worst->error)) { /* nan too */
        *worst = (struct worst){error, x, got};
    }
}

/* Updates the largest error of each table by a batch. */
static void measure_floats(const struct elementary_function* f, const float* x, struct worst* worst) {
    double exact[BATCH];
    for (int i = 0; i < BATCH; ++i) {
        exact[i] = f->exact_double((double)x[i]);
    }
    for (int t = 0; t < num_tables; ++t) {
        float got[BATCH];
        elementary_of(tables[t])->of_float[index_of(f)](x, got, BATCH);
        for (int i = 0; i < BATCH; ++i) {
            keep_worst(&worst[t], error_in_ulp(SEGLOSS_FLOAT32, got[i], exact[i]), (double)x[i], (double)got[i]);
        }
    }
}

static void measure_doubles(const struct elementary_function* f, const double* x, struct worst* worst) {
    long double exact[BATCH];
    for (int i = 0; i < BATCH; ++i) {
        exact[i] = f->exact_long_double((long double)x[i]);
    }
    for (int t = 0; t < num_tables; ++t) {
        double got[BATCH];
        elementary_of(tables[t])->of_double[index_of(f)](x, got, BATCH);
        for (int i = 0; i < BATCH; ++i) {
            keep_worst(&worst[t], error_in_ulp(SEGLOSS_FLOAT64, got[i], exact[i]), x[i], got[i]);
        }
    }
}

/* The point after k of n steps along a grid. */
static float float_at(const struct grid* grid, int64_t k, int64_t n) {
    if (!grid->by_pattern) {
        return (float)(grid->first + (grid->last - grid->first) * ((double)k / (double)n));
    }
    const float ends[2] = {(float)grid->first, (float)grid->last};
    int32_t bits[2];
    memcpy(bits, ends, sizeof bits);
    const int32_t pattern = (int32_t)(bits[0] + ((int64_t)bits[1] - bits[0]) * k / n);
    float x;
    memcpy(&x, &pattern, sizeof x);
    return x;
}

static double double_at(const struct grid* grid, int64_t k, int64_t n) {
    if (!grid->by_pattern) {
        return grid->first + (grid->last - grid->first) * ((double)k / (double)n);
    }
    const double ends[2] = {grid->first, grid->last};
    int64_t bits[2];
    memcpy(bits, ends, sizeof bits);
    const int64_t pattern = bits[0] + (bits[1] - bits[0]) / n * k;
    double x;
    memcpy(&x, &pattern, sizeof x);
    return x;
}

static void check_bound(const struct elementary_function* f, const char* isa, const char* real, const struct worst* w) {
    printf("%s: %s, %s: at most %.3f ulp, at %a; bound %.1f\n", f->name, isa, real, w->error, w->x, f->bound);
    if (!(w->error <= f->bound)) {
        fail("%s(%a) = %a in %s is %.2f ulp off, more than %.1f", isa, w->x, w->got, real, w->error, f->bound);
    }
}

static void test_accuracy_of(const struct elementary_function* f) {
    enum { POINTS = GRID * BATCH };
    struct worst of_floats[MAX_TABLES] = {0}, of_doubles[MAX_TABLES] = {0};
    float x[BATCH];
    double y[BATCH];
    snprintf(current_case, sizeof current_case, "%s", f->name);
    for (int grid = 0; grid < NUM_GRIDS; ++grid) {
        for (int64_t k = 0; k < POINTS; k += BATCH) {
            for (int i = 0; i < BATCH; ++i) {
                x[i] = float_at(&f->float_grids[grid], k + i, POINTS - 1);
                y[i] = double_at(&f->double_grids[grid], k + i, POINTS - 1);
            }
            measure_floats(f, x, of_floats);
            measure_doubles(f, y, of_doubles);
        }
    }
    for (int i = 0; i < BATCH; ++i) {
        x[i] = f->worst_float;
    }
    measure_floats(f, x, of_floats);
    for (int t = 0; t < num_tables; ++t) {
        check_bound(f, tables[t]->isa, "float", &of_floats[t]);
        check_bound(f, tables[t]->isa, "double", &of_doubles[t]);
    }
}

/* A nan with all ones below the sign bit: integer arithmetic on its bits must not overflow. */
static float nan_of_ones(void) {
    const uint32_t pattern = 0x7fffffff;
    float x;
    memcpy(&x, &pattern, sizeof x);
    return x;
}

static double double_nan_of_ones(void) {
    const uint64_t pattern = 0x7fffffffffffffff;
    double x;
    memcpy(&x, &pattern, sizeof x);
    return x;
}

/* f(x) must be y; nan counts as equal to nan. */
struct special {
    enum function function;
    double x;
    double y;
};

static const struct special specials[] = {
    {EXP, 0.0, 1.0},
    {EXP, -0.0, 1.0},
    {EXP, -INFINITY, 0.0},
    {EXP, -1e30, 0.0},
    {EXP, NAN, NAN},
    {EXP, -NAN, NAN},
    {LOG, 0.0, -INFINITY},
    {LOG, 1.0, 0.0},
    {LOG, NAN, NAN},
    {LOG, -NAN, NAN},
    {LOG1P, 0.0, 0.0},
    {LOG1P, NAN, NAN},
    {LOG1P, -NAN, NAN},
    {LOG1P, 0x1p-126, 0x1p-126},
    {LOG1P, 0x1p-149, 0x1p-149},
    {LOG1P_OF_FRACTION, 0.0, 0.0},
    {LOG1P_OF_FRACTION, NAN, NAN},
    {LOG1P_OF_FRACTION, 0x1p-126, 0x1p-126},
    {LOG1P_OF_FRACTION, 0x1p-149, 0x1p-149},
};

static void check_special(const struct elementary* e, const struct elementary_function* f, float x32, double x64,
                          double y) {
    float x[BATCH], got[BATCH];
    double x_double[BATCH], got_double[BATCH];
    for (int i = 0; i < BATCH; ++i) {
        x[i] = x32;
        x_double[i] = x64;
    }
    e->of_float[index_of(f)](x, got, BATCH);
    e->of_double[index_of(f)](x_double, got_double, BATCH);
    if (!same_number(got[0], y) || !same_number(got_double[0], y)) {
        fail("%s: %s(%a) = %a in float, %a in double, not %a", e->isa, f->name, x64, (double)got[0], got_double[0], y);
    }
}

static void test_special_values(void) {
    snprintf(current_case, sizeof current_case, "special values");
    for (int t = 0; t < num_tables; ++t) {
        for (size_t i = 0; i < sizeof specials / sizeof specials[0]; ++i) {
            const struct special* s = &specials[i];
            check_special(elementary_of(tables[t]), &functions[s->function], (float)s->x, s->x, s->y);
        }
        for (int f = 0; f < NUM_FUNCTIONS; ++f) {
            check_special(elementary_of(tables[t]), &functions[f], nan_of_ones(), double_nan_of_ones(), NAN);
        }
        /* The first number below EXP_LOWEST gives 0, not a subnormal. */
        check_special(elementary_of(tables[t]), &functions[EXP], nextafterf(-0x1.5d589ep+6f, -INFINITY),
                      nextafter(-0x1.6232bdd7abcd2p+9, -INFINITY), 0.0);
    }
    printf("exp, log and log1p of special values: ok\n");
}

/* ---- half types ---- */

struct half_type {
    const struct format* format;
    void (*to_float)(const uint16_t* x, float* y, int n);
    void (*of_float)(const float* x, uint16_t* y, int n);
};

static void check_half(const struct half_type* half, float x) {
    uint16_t got;
    half->of_float(&x, &got, 1);
    const long double expected = rounded(half->format, (long double)x);
    const long double value = value_of_half(half->format, got);
    if (!same_number(value, expected) || (!isnan(expected) && !signbit(value) != !signbit(x))) {
        fail("%s of %a is %04x, the nearest is %04x", half->format->name, (double)x, got,
             half_of_value(half->format, expected));
    }
}

/* Checks around one pattern: its value and the floats next to it, and the middle to the next pattern and the floats
 * next to that. */
static void check_around_half(const struct half_type* half, uint16_t bits) {
    float value, next;
    const uint16_t next_bits = (uint16_t)(bits + 1);
    half->to_float(&bits, &value, 1);
    if (!same_number(value, value_of_half(half->format, bits)) || (value == 0 && !signbit(value) != !(bits >> 15))) {
        fail("%s %04x is read as %a", half->format->name, bits, (double)value);
    }
    check_half(half, value);
    half->to_float(&next_bits, &next, 1);
    if (isinf(next) && isfinite(value)) { /* overflow begins half a step beyond the largest number */
        next = (float)copysignl(half->format->max + ulp(half->format, half->format->max), (long double)value);
    }
    if (isfinite(value) && isfinite(next)) {
        const float middle = (float)(((double)value + (double)next) / 2);
        check_half(half, middle);
        check_half(half, nextafterf(middle, INFINITY));
        check_half(half, nextafterf(middle, -INFINITY));
        check_half(half, nextafterf(value, INFINITY));
        check_half(half, nextafterf(value, -INFINITY));
    }
}

/* Converting all patterns in one call, which the compiler vectorises, must give what each gives alone. */
static void check_halves_in_vectors(const struct half_type* half) {
    static uint16_t patterns[UINT16_MAX + 1], got[UINT16_MAX + 1];
    static float values[UINT16_MAX + 1];
    for (int i = 0; i <= UINT16_MAX; ++i) {
        patterns[i] = (uint16_t)i;
    }
    half->to_float(patterns, values, UINT16_MAX + 1);
    half->of_float(values, got, UINT16_MAX + 1);
    for (int i = 0; i <= UINT16_MAX; ++i) {
        const long double value = value_of_half(half->format, patterns[i]);
        if (!same_number(values[i], value) || (!isnan(value) && got[i] != patterns[i]) ||
            !same_number(value_of_half(half->format, got[i]), value)) {
            fail("%s %04x is read as %a and written as %04x", half->format->name, i, (double)values[i], got[i]);
        }
    }
}

static void test_half_type(const struct half_type* half) {
    check_halves_in_vectors(half);
    for (int bits = 0; bits <= UINT16_MAX; ++bits) {
        check_around_half(half, (uint16_t)bits);
    }
    for (uint64_t pattern = 0; pattern <= UINT32_MAX;
         pattern += 65521) { /* all sizes of float, nan with payloads too */
        const uint32_t bits = (uint32_t)pattern;
        float x;
        memcpy(&x, &bits, sizeof x);
        check_half(half, x);
    }
    check_half(half, 0x1.fffffep+127f);
    check_half(half, INFINITY);
    check_half(half, -INFINITY);
    check_half(half, nan_of_ones());
}

static void test_half_types(void) {
    for (int t = 0; t < num_tables; ++t) {
        const struct elementary* e = elementary_of(tables[t]);
        snprintf(current_case, sizeof current_case, "half conversions, %s", e->isa);
        test_half_type(&(struct half_type){&formats[SEGLOSS_FLOAT16], e->float_of_float16, e->float16_of_float});
        test_half_type(&(struct half_type){&formats[SEGLOSS_FLOAT16], e->row_of_float16, e->float16_of_row});
        test_half_type(&(struct half_type){&formats[SEGLOSS_BFLOAT16], e->float_of_bfloat16, e->bfloat16_of_float});
    }
    printf("half conversions: all 65536 patterns of float16 and bfloat16 both ways, and what lies between: ok\n");
}

#endif
