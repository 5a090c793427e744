/* Vectors of REAL, by the vector extension of gcc and clang: operators work lane by lane, comparisons give -1 or 0, and
 * a scalar operand applies to all lanes. */

#define VEC FN(vec)
#define MASK FN(mask)
#define UMASK FN(umask) /* the same bits as unsigned, for arithmetic that wraps */
#define WIDTH ((int)(SEGLOSS_VECTOR_BYTES / sizeof(REAL)))

typedef REAL VEC __attribute__((vector_size(SEGLOSS_VECTOR_BYTES)));
typedef BITS MASK __attribute__((vector_size(SEGLOSS_VECTOR_BYTES)));
typedef UBITS UMASK __attribute__((vector_size(SEGLOSS_VECTOR_BYTES)));

static inline VEC FN(load)(const REAL* from) {
    VEC x;
    memcpy(&x, from, sizeof x);
    return x;
}

static inline void FN(store)(REAL* to, VEC x) { memcpy(to, &x, sizeof x); }

static inline VEC FN(splat)(REAL x) { return (VEC){0} + x; }

static inline VEC FN(select)(MASK mask, VEC yes, VEC no) { return (VEC)((mask & (MASK)yes) | (~mask & (MASK)no)); }

/* x where the mask is set, else 0. */
static inline VEC FN(only)(MASK mask, VEC x) { return (VEC)(mask & (MASK)x); }

/* x > y ? x : y */
static inline VEC FN(larger)(VEC x, VEC y) {
#ifdef LARGER
    return LARGER(x, y);
#else
    return FN(select)(x > y, x, y);
#endif
}

/* The even lanes, or the odd ones, of each 16 bytes of two vectors: those of the first, then those of the second. */
#define NUM_LANES (SEGLOSS_VECTOR_BYTES >> (2 + REAL_IS_DOUBLE))
#if REAL_IS_DOUBLE && NUM_LANES == 8
#define EVENS 0, 8, 2, 10, 4, 12, 6, 14
#define ODDS 1, 9, 3, 11, 5, 13, 7, 15
#elif REAL_IS_DOUBLE && NUM_LANES == 4
#define EVENS 0, 4, 2, 6
#define ODDS 1, 5, 3, 7
#elif REAL_IS_DOUBLE
#define EVENS 0, 2
#define ODDS 1, 3
#elif NUM_LANES == 16
#define EVENS 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30
#define ODDS 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31
#elif NUM_LANES == 8
#define EVENS 0, 2, 8, 10, 4, 6, 12, 14
#define ODDS 1, 3, 9, 11, 5, 7, 13, 15
#else
#define EVENS 0, 2, 4, 6
#define ODDS 1, 3, 5, 7
#endif

static inline VEC FN(evens)(VEC a, VEC b) { return __builtin_shufflevector(a, b, EVENS); }

static inline VEC FN(odds)(VEC a, VEC b) { return __builtin_shufflevector(a, b, ODDS); }

#undef NUM_LANES
#undef EVENS
#undef ODDS

/* The sum of WIDTH vectors, in a fixed order, which is also that of sum_of_vector. Changes them. */
static inline VEC FN(sum_of_vectors)(VEC* x) {
    for (int half = WIDTH / 2; half > 0; half /= 2) {
        for (int k = 0; k < half; ++k) {
            x[k] += x[k + half];
        }
    }
    return x[0];
}

static inline REAL FN(sum_of_vector)(VEC x) {
#ifdef SUM
    return SUM(x);
#else
    REAL lane[WIDTH];
    memcpy(lane, &x, sizeof x);
    for (int half = WIDTH / 2; half > 0; half /= 2) {
        for (int k = 0; k < half; ++k) {
            lane[k] += lane[k + half];
        }
    }
    return lane[0];
#endif
}

/* Of a vector without nan. */
static inline REAL FN(largest_of_vector)(VEC x) {
#ifdef LARGEST
    return LARGEST(x);
#else
    REAL largest = x[0];
    for (int k = 1; k < WIDTH; ++k) {
        largest = x[k] > largest ? x[k] : largest;
    }
    return largest;
#endif
}

/* Stores to an aligned address, past the caches where the instruction set can. */
static inline void FN(stream)(REAL* to, VEC x) {
#ifdef STREAM
    STREAM(to, x);
#else
    FN(store)(to, x);
#endif
}

/* Makes streamed data visible to other threads. */
static inline void FN(end_streams)(void) {
#ifdef FENCE
    FENCE();
#endif
}

/* The labels of one vector of lanes. */
static inline MASK FN(load_labels)(const int32_t* from) {
    int32_t label __attribute__((vector_size(sizeof(int32_t) * WIDTH)));
    memcpy(&label, from, sizeof label);
    return __builtin_convertvector(label, MASK);
}

/* Adds `count` values to SUM_LANES running sums in double, in a fixed order. `count` must be a multiple of
 * SUM_LANES. */
static inline void FN(add_to_sums)(double* sums, const REAL* values, int count) {
    enum { DOUBLES = SEGLOSS_VECTOR_BYTES / sizeof(double), PARTS = SUM_LANES / DOUBLES };
    typedef REAL part_vector __attribute__((vector_size(sizeof(REAL) * DOUBLES)));
    typedef double sum_vector __attribute__((vector_size(SEGLOSS_VECTOR_BYTES)));
    sum_vector total[PARTS];
    memcpy(total, sums, sizeof total);
    for (int i = 0; i < count; i += SUM_LANES) {
        for (int k = 0; k < PARTS; ++k) {
            part_vector part;
            memcpy(&part, values + i + k * DOUBLES, sizeof part);
            total[k] += __builtin_convertvector(part, sum_vector);
        }
    }
    memcpy(sums, total, sizeof total);
}
