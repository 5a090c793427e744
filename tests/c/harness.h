/* What all groups of tests share: failures, random numbers, slow conversions of number formats, tensors in guarded
 * memory. */
#ifndef SEGLOSS_TEST_HARNESS_H
#define SEGLOSS_TEST_HARNESS_H

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

/* ---- failing ---- */

#ifndef AFTER_FAILURE
#define AFTER_FAILURE exit(1)
#endif

static char current_case[1024]; /* printed with a failure */

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("FAILED %s: ", current_case);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    fflush(stdout); /* a fuzzer may end the program without flushing */
    AFTER_FAILURE;
}

/* ---- random numbers: the fuzzer's bytes while there are any, then splitmix64 ---- */

static const uint8_t* fuzzed_bytes;
static size_t num_fuzzed_bytes;
static uint64_t random_state;

/* Takes `size` of the fuzzer's bytes, if so many are left. */
static inline uint64_t random_bits_of(size_t size) {
    if (num_fuzzed_bytes >= size) {
        uint64_t bits = 0;
        memcpy(&bits, fuzzed_bytes, size);
        fuzzed_bytes += size;
        num_fuzzed_bytes -= size;
        return bits;
    }
    num_fuzzed_bytes = 0;
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline uint64_t random_bits(void) { return random_bits_of(sizeof(uint64_t)); }

static inline int random_below(int64_t n) { return (int)(random_bits_of(n <= 256 ? 1 : 8) % (uint64_t)n); }

/* Uniform in [0, 1). */
static inline double random_unit(void) { return (double)(random_bits() >> 11) * 0x1p-53; }

static inline void* cleared(int64_t count, size_t size) {
    void* memory = calloc((size_t)count, size);
    if (!memory) {
        fail("no memory");
    }
    return memory;
}

/* ---- number formats ---- */

struct format {
    const char* name;
    int size;          /* bytes */
    int mantissa_bits; /* stored bits; 0 for integers */
    int min_exponent;  /* of the smallest normal number */
    long double max;
    long double min; /* of integers */
};

static const struct format formats[] = {
    [SEGLOSS_FLOAT32] = {"float32", 4, 23, -126, 0x1.fffffep127L, 0},
    [SEGLOSS_FLOAT64] = {"float64", 8, 52, -1022, 0x1.fffffffffffffp1023L, 0},
    [SEGLOSS_FLOAT16] = {"float16", 2, 10, -14, 65504, 0},
    [SEGLOSS_BFLOAT16] = {"bfloat16", 2, 7, -126, 0x1.fep127L, 0},
    [SEGLOSS_UINT8] = {"uint8", 1, 0, 0, UINT8_MAX, 0},
    [SEGLOSS_INT8] = {"int8", 1, 0, 0, INT8_MAX, INT8_MIN},
    [SEGLOSS_UINT16] = {"uint16", 2, 0, 0, UINT16_MAX, 0},
    [SEGLOSS_INT16] = {"int16", 2, 0, 0, INT16_MAX, INT16_MIN},
    [SEGLOSS_UINT32] = {"uint32", 4, 0, 0, UINT32_MAX, 0},
    [SEGLOSS_INT32] = {"int32", 4, 0, 0, INT32_MAX, INT32_MIN},
    [SEGLOSS_UINT64] = {"uint64", 8, 0, 0, (long double)UINT64_MAX, 0},
    [SEGLOSS_INT64] = {"int64", 8, 0, 0, (long double)INT64_MAX, (long double)INT64_MIN},
};

enum { NUM_DTYPES = sizeof formats / sizeof formats[0], NUM_FLOATING = SEGLOSS_BFLOAT16 + 1 };

static inline int is_floating(enum segloss_dtype dtype) { return formats[dtype].mantissa_bits > 0; }

static inline enum segloss_dtype dtype_of_real(enum segloss_real real) {
    return real == SEGLOSS_REAL_DOUBLE ? SEGLOSS_FLOAT64 : SEGLOSS_FLOAT32;
}

/* The value of a 16-bit float, from its sign, exponent and mantissa. */
static inline long double value_of_half(const struct format* f, uint16_t bits) {
    const int mantissa = bits & ((1 << f->mantissa_bits) - 1);
    const int exponent_bits = 15 - f->mantissa_bits;
    const int exponent = (bits >> f->mantissa_bits) & ((1 << exponent_bits) - 1);
    long double magnitude;
    if (exponent == (1 << exponent_bits) - 1) {
        magnitude = mantissa ? (long double)NAN : (long double)INFINITY;
    } else if (exponent == 0) {
        magnitude = ldexpl(mantissa, f->min_exponent - f->mantissa_bits);
    } else {
        magnitude = ldexpl((1 << f->mantissa_bits) + mantissa, exponent - 1 + f->min_exponent - f->mantissa_bits);
    }
    return bits & 0x8000 ? -magnitude : magnitude;
}

/* nan equals nan. */
static inline int same_number(long double a, long double b) { return a == b || (isnan(a) && isnan(b)); }

/* The distance between neighbouring numbers of a format at x. */
static inline long double ulp(const struct format* f, long double x) {
    const int exponent = x == 0 || isinf(x) ? f->min_exponent : ilogbl(x);
    return ldexpl(1, (exponent < f->min_exponent ? f->min_exponent : exponent) - f->mantissa_bits);
}

/* x rounded to nearest, ties to even; inf if that is larger than the largest number. */
static inline long double rounded(const struct format* f, long double x) {
    if (isnan(x) || isinf(x)) {
        return x;
    }
    const long double unit = ulp(f, x);
    const long double result = rintl(x / unit) * unit;
    return fabsl(result) > f->max ? copysignl((long double)INFINITY, x) : result;
}

/* Whether a dtype can represent this value exactly. */
static inline int holds(enum segloss_dtype dtype, int64_t value) {
    const struct format* f = &formats[dtype];
    const long double x = (long double)value;
    return is_floating(dtype) ? rounded(f, x) == x : x >= f->min && x <= f->max;
}

/* The bits of the 16-bit float that has exactly this value. */
static inline uint16_t half_of_value(const struct format* f, long double value) {
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    const long double magnitude = fabsl(value);
    if (isnan(value) || isinf(value)) {
        const int infinity = 0x7fff & ~((1 << f->mantissa_bits) - 1);
        return (uint16_t)(sign | infinity | (isnan(value) ? 1 << (f->mantissa_bits - 1) : 0));
    }
    const int exponent = magnitude < ldexpl(1, f->min_exponent) ? f->min_exponent : ilogbl(magnitude);
    const int steps = (int)ldexpl(magnitude, f->mantissa_bits - exponent); /* with the leading bit */
    return (uint16_t)(sign | (steps + ((exponent - f->min_exponent) << f->mantissa_bits)));
}

static inline long double load(enum segloss_dtype dtype, const void* address) {
    union {
        float f32;
        double f64;
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } number;
    memcpy(&number, address, (size_t)formats[dtype].size);
    switch (dtype) {
    case SEGLOSS_FLOAT32:
        return number.f32;
    case SEGLOSS_FLOAT64:
        return number.f64;
    case SEGLOSS_FLOAT16:
    case SEGLOSS_BFLOAT16:
        return value_of_half(&formats[dtype], number.u16);
    case SEGLOSS_UINT8:
        return number.u8;
    case SEGLOSS_INT8:
        return number.i8;
    case SEGLOSS_UINT16:
        return number.u16;
    case SEGLOSS_INT16:
        return number.i16;
    case SEGLOSS_UINT32:
        return number.u32;
    case SEGLOSS_INT32:
        return number.i32;
    case SEGLOSS_UINT64:
        return (long double)number.u64;
    default:
        return (long double)number.i64;
    }
}

/* Integers must be in the dtype's range; floating-point values are rounded. */
static inline void store(enum segloss_dtype dtype, void* address, long double value) {
    const float f32 = (float)value;
    const double f64 = (double)value;
    const uint64_t integer = is_floating(dtype) ? 0 : value < 0 ? (uint64_t)(int64_t)value : (uint64_t)value;
    const uint16_t half = dtype == SEGLOSS_FLOAT16 || dtype == SEGLOSS_BFLOAT16
                              ? half_of_value(&formats[dtype], rounded(&formats[dtype], value))
                              : 0;
    const uint8_t u8 = (uint8_t)integer;
    const uint16_t u16 = (uint16_t)integer;
    const uint32_t u32 = (uint32_t)integer;
    const void* const sources[] = {
        [SEGLOSS_FLOAT32] = &f32, [SEGLOSS_FLOAT64] = &f64, [SEGLOSS_FLOAT16] = &half,   [SEGLOSS_BFLOAT16] = &half,
        [SEGLOSS_UINT8] = &u8,    [SEGLOSS_INT8] = &u8,     [SEGLOSS_UINT16] = &u16,     [SEGLOSS_INT16] = &u16,
        [SEGLOSS_UINT32] = &u32,  [SEGLOSS_INT32] = &u32,   [SEGLOSS_UINT64] = &integer, [SEGLOSS_INT64] = &integer,
    };
    memcpy(address, sources[dtype], (size_t)formats[dtype].size);
}

/* ---- tensors ---- */

/* The named layouts begin at an aligned address. For the others, the number of the layout determines the order of the
 * dimensions, the gaps between elements and the gap before the first one. In the last ones, for inputs only, elements
 * can overlap. */
enum layout { PLANAR, INTERLEAVED, GAPS, TRANSPOSED, NUM_NAMED_LAYOUTS };

enum { NUM_LAYOUTS = NUM_NAMED_LAYOUTS + 60, NUM_INPUT_LAYOUTS = NUM_LAYOUTS + 20 };

static inline const char* layout_name(int layout) {
    static const char* const names[] = {"planar", "interleaved", "gaps", "transposed"};
    return layout < NUM_NAMED_LAYOUTS ? names[layout] : layout < NUM_LAYOUTS ? "shuffled" : "overlapping";
}

/* `num_layouts` is NUM_LAYOUTS or NUM_INPUT_LAYOUTS. At least half of the drawn layouts are named ones. */
static inline int draw_layout(int num_layouts) {
    return random_below(random_below(2) ? NUM_NAMED_LAYOUTS : num_layouts);
}

#ifndef GUARD_SIZE
#define GUARD_SIZE 64
#endif

enum { ALIGNMENT = 64, GUARD_BYTE = 0xa5 };

/* A tensor in its own memory. Outputs lie between guards. Inputs do not, so that the address sanitizer sees a read past
 * the last element. */
struct memory {
    struct segloss_tensor view;
    const struct segloss_positions* positions;
    int64_t num_classes;
    unsigned char* bytes;
    size_t size;
    size_t before; /* bytes before the first element */
};

static inline int64_t count_positions(const struct segloss_positions* positions) {
    int64_t count = 1;
    for (int d = 0; d < positions->num_dims; ++d) {
        count *= positions->sizes[d];
    }
    return count;
}

/* `count` positions in up to `num_dims` dimensions. */
static inline struct segloss_positions factored(int64_t count, int num_dims) {
    struct segloss_positions positions = {1, {count}};
    for (int64_t factor = 2; positions.num_dims < num_dims && factor <= positions.sizes[0]; ++factor) {
        if (positions.sizes[0] % factor == 0) {
            positions.sizes[0] /= factor;
            positions.sizes[positions.num_dims++] = factor;
        }
    }
    return positions;
}

static inline void set_named_strides(struct segloss_tensor* t, const struct segloss_positions* positions,
                                     int64_t num_classes, enum layout layout) {
    int64_t stride = layout == INTERLEAVED ? num_classes : layout == GAPS ? 3 : 1;
    for (int i = 0; i < positions->num_dims; ++i) {
        const int d = layout == TRANSPOSED ? i : positions->num_dims - 1 - i;
        t->strides[d] = stride;
        stride = stride * positions->sizes[d] + (layout == GAPS ? 5 : 0);
    }
    t->stride_class = layout == INTERLEAVED ? 1 : stride;
}

/* Sets the strides of the dimensions and the classes from the innermost outwards; `layout` determines their order and
 * the gaps. */
static inline void set_shuffled_strides(struct segloss_tensor* t, const struct segloss_positions* positions,
                                        int64_t num_classes, unsigned layout) {
    const int num_dims = positions->num_dims;
    int left[SEGLOSS_MAX_DIMS + 1];
    unsigned bits = layout * 2654435761u;
    int64_t stride = 1;
    for (int d = 0; d <= num_dims; ++d) {
        left[d] = d;
    }
    for (int num_left = num_dims + 1; num_left > 0; --num_left) {
        const int drawn = (int)(bits % (unsigned)num_left), d = left[drawn];
        left[drawn] = left[num_left - 1];
        *(d < num_dims ? &t->strides[d] : &t->stride_class) = stride;
        bits /= (unsigned)num_left;
        stride = stride * (d < num_dims ? positions->sizes[d] : num_classes) + bits % 3;
        bits /= 3;
    }
}

/* Each stride is at most 3. */
static inline void set_overlapping_strides(struct segloss_tensor* t, const struct segloss_positions* positions,
                                           unsigned layout) {
    t->stride_class = layout % 3;
    for (int d = 0; d < positions->num_dims; ++d) {
        t->strides[d] = (layout >> (2 * d)) % 4;
    }
}

/* Returns the number of unused elements before the first one. */
static inline int64_t set_strides(struct segloss_tensor* t, const struct segloss_positions* positions,
                                  int64_t num_classes, int layout) {
    if (layout < NUM_NAMED_LAYOUTS) {
        set_named_strides(t, positions, num_classes, (enum layout)layout);
        return 0;
    }
    if (layout < NUM_LAYOUTS) {
        set_shuffled_strides(t, positions, num_classes, (unsigned)(layout - NUM_NAMED_LAYOUTS));
    } else {
        set_overlapping_strides(t, positions, (unsigned)(layout - NUM_LAYOUTS));
    }
    return layout % 8;
}

static inline int64_t offset_of(const struct memory* m, int64_t position, int64_t class) {
    int64_t offset = class * m->view.stride_class;
    for (int d = m->positions->num_dims - 1; d >= 0; --d) {
        offset += position % m->positions->sizes[d] * m->view.strides[d];
        position /= m->positions->sizes[d];
    }
    return offset;
}

static inline void* address_of(const struct memory* m, int64_t position, int64_t class) {
    return (char*)m->view.data + offset_of(m, position, class) * formats[m->view.dtype].size;
}

static inline long double get(const struct memory* m, int64_t position, int64_t class) {
    return load(m->view.dtype, address_of(m, position, class));
}

static inline void set(const struct memory* m, int64_t position, int64_t class, long double value) {
    store(m->view.dtype, address_of(m, position, class), value);
}

static inline void fill_with_guard_bytes(const struct memory* m) { memset(m->bytes, GUARD_BYTE, m->size); }

static inline struct memory allocate(enum segloss_dtype dtype, const struct segloss_positions* positions,
                                     int64_t num_classes, int layout, size_t guard) {
    struct memory m = {.positions = positions, .num_classes = num_classes};
    m.view.dtype = dtype;
    const int64_t free_elements = set_strides(&m.view, positions, num_classes, layout);
    const int64_t span = offset_of(&m, count_positions(positions) - 1, num_classes - 1) + 1;
    void* bytes;
    m.before = guard + (size_t)(free_elements * formats[dtype].size);
    m.size = m.before + (size_t)(span * formats[dtype].size) + guard;
    if (posix_memalign(&bytes, ALIGNMENT, m.size) != 0) {
        fail("no memory");
    }
    m.bytes = bytes;
    m.view.data = m.bytes + m.before;
    fill_with_guard_bytes(&m);
    return m;
}

static inline struct memory allocate_input(enum segloss_dtype dtype, const struct segloss_positions* positions,
                                           int64_t num_classes, int layout) {
    return allocate(dtype, positions, num_classes, layout, 0);
}

static inline struct memory allocate_output(enum segloss_dtype dtype, const struct segloss_positions* positions,
                                            int64_t num_classes, int layout) {
    return allocate(dtype, positions, num_classes, layout, GUARD_SIZE);
}

/* Checks that every byte outside the elements still holds GUARD_BYTE. */
static inline void check_guards(const struct memory* m, const char* name) {
    const size_t element_size = (size_t)formats[m->view.dtype].size;
    const size_t class_size = (size_t)m->view.stride_class * element_size;
    unsigned char* is_element = calloc(m->size, 1);
    if (!is_element) {
        fail("no memory");
    }
    for (int64_t p = 0; p < count_positions(m->positions); ++p) {
        unsigned char* first = is_element + m->before + (size_t)offset_of(m, p, 0) * element_size;
        for (int64_t c = 0; c < m->num_classes; ++c) {
            memset(first + (size_t)c * class_size, 1, element_size);
        }
    }
    for (size_t i = 0; i < m->size; ++i) {
        if (!is_element[i] && m->bytes[i] != GUARD_BYTE) {
            fail("%s: a byte outside the tensor was written, %lld bytes from its start", name,
                 (long long)i - (long long)m->before);
        }
    }
    free(is_element);
}

#endif
