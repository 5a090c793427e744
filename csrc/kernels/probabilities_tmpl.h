/* Probabilities from logits [outer][class][inner], and the gradient of the logits; see kernels.h. */

/* A row of n lanes; 0 in lanes that do not count. */
static inline void FN(read_counted)(const REAL* from, const REAL* counts, int64_t n, REAL* row) {
    memcpy(row, from, (size_t)n * sizeof *row);
    for (int64_t i = 0; i < n; i += WIDTH) {
        FN(store)(row + i, FN(only)(FN(load)(counts + i) != 0, FN(load)(row + i)));
    }
}

/* Up to a block of positions of one outer index. */
struct FN(some_positions) {
    int64_t offset; /* of the first one's first class */
    int64_t n;
    ALIGNED REAL counts[SEGLOSS_BLOCK]; /* 1 or 0 */
};

static void FN(find_positions)(const struct segloss_probabilities* a, int64_t begin, int64_t end,
                               struct FN(some_positions) * some) {
    const int64_t inner = begin % a->inner, left = a->inner - inner;
    const int64_t n = end - begin < left ? end - begin : left;
    some->offset = begin / a->inner * a->num_classes * a->inner + inner;
    some->n = n < SEGLOSS_BLOCK ? n : SEGLOSS_BLOCK;
    memset(some->counts, 0, sizeof some->counts);
    for (int64_t i = 0; i < some->n; ++i) {
        some->counts[i] = !a->counts || a->counts[begin + i] ? 1 : 0;
    }
}

/* Writes the probabilities of some positions, REAL [class] with rows `stride` apart. */
static void FN(write_softmax)(const struct segloss_probabilities* a, const struct FN(some_positions) * some,
                              const REAL* logits, REAL* p, int64_t stride) {
    ALIGNED REAL row[SEGLOSS_BLOCK], max[SEGLOSS_BLOCK], sum[SEGLOSS_BLOCK] = {0};
    const size_t size = (size_t)some->n * sizeof *row;
    memset(row, 0, sizeof row);
    for (int64_t c = 0; c < a->num_classes; ++c) {
        FN(read_counted)(logits + c * a->inner, some->counts, some->n, row);
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            FN(store)(max + i, c == 0 ? FN(load)(row + i) : FN(larger)(FN(load)(row + i), FN(load)(max + i)));
        }
    }
    for (int64_t c = 0; c < a->num_classes; ++c) {
        FN(read_counted)(logits + c * a->inner, some->counts, some->n, row);
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const VEC e = FN(exp_nonpositive)(FN(load)(row + i) - FN(load)(max + i));
            FN(store)(row + i, e);
            FN(store)(sum + i, FN(load)(sum + i) + e);
        }
        memcpy(p + c * stride, row, size);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        FN(store)(sum + i, FN(load)(some->counts + i) / FN(load)(sum + i));
    }
    for (int64_t c = 0; c < a->num_classes; ++c) {
        for (int64_t i = 0; i < some->n; ++i) {
            p[c * stride + i] *= sum[i];
        }
    }
}

static void FN(write_sigmoid)(const struct segloss_probabilities* a, const struct FN(some_positions) * some,
                              const REAL* logits, REAL* p, int64_t stride) {
    ALIGNED REAL row[SEGLOSS_BLOCK];
    memset(row, 0, sizeof row);
    for (int64_t c = 0; c < a->num_classes; ++c) {
        FN(read_counted)(logits + c * a->inner, some->counts, some->n, row);
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const SIGMOID sigmoid = FN(sigmoid_of)(FN(load)(row + i));
            FN(store)(row + i, FN(load)(some->counts + i) * FN(probability)(&sigmoid));
        }
        memcpy(p + c * stride, row, (size_t)some->n * sizeof *row);
    }
}

static void FN(write_probabilities)(const struct segloss_probabilities* a, const struct FN(some_positions) * some,
                                    const REAL* logits, REAL* p, int64_t stride) {
    if (a->activation == SEGLOSS_SIGMOID) {
        FN(write_sigmoid)(a, some, logits, p, stride);
    } else {
        FN(write_softmax)(a, some, logits, p, stride);
    }
}

static void FN(probabilities)(const struct segloss_probabilities* a, const void* logits, void* p, int64_t begin,
                              int64_t end) {
    assert(a->num_classes > 0 && a->inner > 0 && a->activation != SEGLOSS_IDENTITY);
    struct FN(some_positions) some;
    for (int64_t at = begin; at < end; at += some.n) {
        FN(find_positions)(a, at, end, &some);
        FN(write_probabilities)(a, &some, (const REAL*)logits + some.offset, (REAL*)p + some.offset, a->inner);
    }
}

/* The probabilities take the place of the gradient, then p (g - sum p g), or of a sigmoid p (1 - p) g. */
static void FN(probabilities_backward)(const struct segloss_probabilities* a, const void* logits, const void* grad_p,
                                       void* grad, int64_t begin, int64_t end) {
    assert(a->num_classes > 0 && a->inner > 0 && a->activation != SEGLOSS_IDENTITY);
    struct FN(some_positions) some;
    for (int64_t at = begin; at < end; at += some.n) {
        FN(find_positions)(a, at, end, &some);
        REAL* restrict p = (REAL*)grad + some.offset;
        const REAL* restrict g = (const REAL*)grad_p + some.offset;
        FN(write_probabilities)(a, &some, (const REAL*)logits + some.offset, p, a->inner);
        REAL sum[SEGLOSS_BLOCK] = {0};
        for (int64_t c = 0; c < a->num_classes && a->activation == SEGLOSS_SOFTMAX; ++c) {
            for (int64_t i = 0; i < some.n; ++i) {
                sum[i] += p[c * a->inner + i] * g[c * a->inner + i];
            }
        }
        for (int64_t c = 0; c < a->num_classes; ++c) {
            for (int64_t i = 0; i < some.n; ++i) {
                const REAL of_class = p[c * a->inner + i], grad_of_class = g[c * a->inner + i];
                const REAL slope =
                    a->activation == SEGLOSS_SOFTMAX ? grad_of_class - sum[i] : (1 - of_class) * grad_of_class;
                p[c * a->inner + i] = some.counts[i] == 0 ? 0 : of_class * slope;
            }
        }
    }
}
