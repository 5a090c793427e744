/* Binary cross entropy and binary focal loss of each class, and their gradient; the formulas are in kernels.h. */

#define SIGMOID struct FN(sigmoid)

/* Of a logit x, with e = exp(-|x|): the larger one of p = sigmoid(x) and q = 1 - p is 1 / (1 + e), the smaller one is
 * e / (1 + e), and their -log are log1p(e) and |x| + log1p(e). Nothing cancels. */
SIGMOID {
    MASK is_positive;
    VEC size; /* |x| */
    VEC larger;
    VEC smaller;
    VEC log_sum; /* log1p(e) */
};

#define SIGN_BIT ((UBITS)1 << (8 * sizeof(REAL) - 1))

static inline VEC FN(negated_where)(MASK mask, VEC x) { return (VEC)((UMASK)x ^ ((UMASK)mask & SIGN_BIT)); }

static inline VEC FN(magnitude)(VEC x) { return (VEC)((UMASK)x & ~SIGN_BIT); }

static inline __attribute__((always_inline)) SIGMOID FN(sigmoid_of)(VEC x) {
    const VEC size = FN(magnitude)(x);
    const VEC e = FN(exp_nonpositive)(-size);
    const VEC larger = 1 / (1 + e);
    return (SIGMOID){x > 0, size, larger, e * larger, FN(log1p_of_fraction)(e)};
}

static inline VEC FN(probability)(const SIGMOID* s) { return FN(select)(s->is_positive, s->larger, s->smaller); }

#define BINARY_TERM struct FN(binary_term)

/* The loss for target 1, q^gamma * -log p, and minus its derivative, q^gamma (gamma p * -log p + q). */
BINARY_TERM {
    VEC loss;
    VEC slope;
};

/* The exponents that take no exponential of their own. */
enum { FN(gamma_zero), FN(gamma_one), FN(gamma_two), FN(gamma_other) };

static inline int FN(kind_of_gamma)(REAL gamma) {
    return gamma == 0 ? FN(gamma_zero) : gamma == 1 ? FN(gamma_one) : gamma == 2 ? FN(gamma_two) : FN(gamma_other);
}

/* `is_unlikely`: where the target's probability, p here, is the smaller one. For target 0 p and q change places. */
static inline __attribute__((always_inline)) BINARY_TERM FN(term_of)(const SIGMOID* s, MASK is_unlikely, int kind,
                                                                     REAL gamma) {
    const VEC p = FN(select)(is_unlikely, s->smaller, s->larger);
    const VEC q = FN(select)(is_unlikely, s->larger, s->smaller);
    const VEC minus_log_p = FN(only)(is_unlikely, s->size) + s->log_sum;
    if (kind == FN(gamma_zero)) {
        return (BINARY_TERM){minus_log_p, q};
    }
    VEC power = q;
    if (kind == FN(gamma_two)) {
        power = q * q;
    } else if (kind == FN(gamma_other)) {
        power = FN(exp_nonpositive)(-gamma * (FN(only)(~is_unlikely, s->size) + s->log_sum));
    }
    const VEC product = p * FN(only)(p != 0, minus_log_p);
    return (BINARY_TERM){power * minus_log_p, power * (gamma * product + q)};
}

#define BINARY_CLASS struct FN(binary_class)

/* One class of a block: its target and the weights of the terms for targets 1 and 0. */
BINARY_CLASS {
    int64_t index;
    const REAL* target; /* NULL: labels */
    int is_weighted;    /* if not, the two weights are 1 */
    REAL weight_of_one;
    REAL weight_of_zero;
    REAL smoothing;
    REAL gamma;
};

/* Class c of the chunk of n classes at `first`. */
static BINARY_CLASS FN(binary_class_of)(const struct segloss_cross_entropy* a, VOXELS* v, int64_t first, int n, int c) {
    const REAL* target = a->target_kind == SEGLOSS_LABELS ? NULL : FN(read_target)(v, first, n) + c * ROW_LANES;
    const REAL weight = FN(class_weight)(a, first + c);
    const REAL of_one = a->weight_of_ones ? ((const REAL*)a->weight_of_ones)[first + c] : weight;
    return (BINARY_CLASS){first + c,     target, a->class_weight || a->weight_of_ones,
                          of_one,        weight, (REAL)a->label_smoothing,
                          (REAL)a->gamma};
}

/* Whether all targets are 0 or 1, so that each loss has one term. */
static int FN(has_hard_targets)(const struct segloss_cross_entropy* a) {
    return a->target_kind != SEGLOSS_PROBABILITIES && a->label_smoothing == 0;
}

/* Where the target is 1, if it is hard. */
static inline __attribute__((always_inline)) MASK FN(is_one)(const BINARY_CLASS* class, const VOXELS* v, int i) {
    return class->target ? FN(load)(class->target + i) != 0 : FN(load_labels)(v->label + i) == (BITS)(class->index);
}

static inline __attribute__((always_inline)) VEC FN(target_at)(const BINARY_CLASS* class, const VOXELS* v, int i) {
    return class->target ? FN(load)(class->target + i) : FN(only)(FN(is_one)(class, v, i), FN(splat)(1));
}

/* The loss of one class, and its derivative by the logit. */
static inline __attribute__((always_inline)) BINARY_TERM FN(binary_loss)(const BINARY_CLASS* class, const VOXELS* v,
                                                                         int i, const SIGMOID* s, int is_hard,
                                                                         int kind) {
    if (is_hard) {
        const MASK is_one = FN(is_one)(class, v, i);
        const BINARY_TERM term = FN(term_of)(s, s->is_positive ^ is_one, kind, class->gamma);
        if (!class->is_weighted) {
            return (BINARY_TERM){term.loss, FN(negated_where)(is_one, term.slope)};
        }
        const VEC w = FN(select)(is_one, FN(splat)(class->weight_of_one), FN(splat)(class->weight_of_zero));
        return (BINARY_TERM){FN(weighted)(w, term.loss), FN(negated_where)(is_one, w * term.slope)};
    }
    const VEC h = (1 - class->smoothing) * FN(target_at)(class, v, i) + class->smoothing / 2;
    const VEC one = class->weight_of_one * h, zero = class->weight_of_zero * (1 - h);
    const BINARY_TERM of_one = FN(term_of)(s, ~s->is_positive, kind, class->gamma);
    const BINARY_TERM of_zero = FN(term_of)(s, s->is_positive, kind, class->gamma);
    return (BINARY_TERM){FN(weighted)(one, of_one.loss) + FN(weighted)(zero, of_zero.loss),
                         zero * of_zero.slope - one * of_one.slope};
}

/* What a walk over a block computes. */
enum FN(binary_walk) {
    FN(only_losses), /* added to the lanes, and written if there is a tensor for them */
    FN(only_grad),
    FN(losses_and_grad), /* the losses are added, the gradient written */
};

static inline __attribute__((always_inline)) void FN(walk_class)(const BINARY_CLASS* class, const VOXELS* v,
                                                                 const REAL* x, const REAL* scale,
                                                                 enum FN(binary_walk) walk, int is_hard, int kind,
                                                                 REAL* loss, ROWS out, int c) {
    const int64_t row = c * out.stride;
    for (int i = 0; i < v->block.count; i += WIDTH) {
        FN(prefetch_ahead)(v, c, i);
        const VEC weight = FN(load)(v->weight + i);
        const SIGMOID s = FN(sigmoid_of)(FN(only)(weight != 0, FN(load)(x + i)));
        const BINARY_TERM term = FN(binary_loss)(class, v, i, &s, is_hard, kind);
        const VEC value = weight * term.loss;
        if (walk != FN(only_grad)) {
            FN(store)(loss + i, FN(load)(loss + i) + value);
        }
        if (walk != FN(only_losses)) {
            FN(put)(out, row + i, FN(load)(scale + i) * term.slope);
        } else if (out.values) {
            FN(put)(out, row + i, value);
        }
    }
}

static inline __attribute__((always_inline)) void FN(walk_chunk)(const struct segloss_cross_entropy* a, VOXELS* v,
                                                                 ROWS x, int64_t first, int n,
                                                                 enum FN(binary_walk) walk, int is_hard, int kind,
                                                                 REAL* loss, ROWS out) {
    ALIGNED REAL scale[SEGLOSS_BLOCK];
    for (int c = 0; c < n; ++c) {
        const BINARY_CLASS class = FN(binary_class_of)(a, v, first, n, c);
        if (walk != FN(only_losses) && (c == 0 || a->grad_loss.stride_class != 0)) {
            FN(read_scale)(a, v, first + c, scale);
        }
        FN(walk_class)(&class, v, x.values + c * x.stride, scale, walk, is_hard, kind, loss, out, c);
    }
}

/* Compiled for the usual targets and exponents, so that their loops have no branch. */
static inline __attribute__((always_inline)) void FN(walk_kind)(const struct segloss_cross_entropy* a, VOXELS* v,
                                                                ROWS x, int64_t first, int n, enum FN(binary_walk) walk,
                                                                REAL* loss, ROWS out) {
    const int is_hard = FN(has_hard_targets)(a), kind = FN(kind_of_gamma)((REAL)a->gamma);
    if (is_hard && kind == FN(gamma_zero)) {
        FN(walk_chunk)(a, v, x, first, n, walk, 1, FN(gamma_zero), loss, out);
    } else if (is_hard && kind == FN(gamma_two)) {
        FN(walk_chunk)(a, v, x, first, n, walk, 1, FN(gamma_two), loss, out);
    } else if (kind == FN(gamma_zero)) {
        FN(walk_chunk)(a, v, x, first, n, walk, 0, FN(gamma_zero), loss, out);
    } else {
        FN(walk_chunk)(a, v, x, first, n, walk, is_hard, kind, loss, out);
    }
}

/* Adds the block's losses to the lanes of `loss`. */
static void FN(walk_block)(const struct segloss_cross_entropy* a, VOXELS* v, enum FN(binary_walk) walk, REAL* loss) {
    const struct segloss_tensor* written = walk == FN(only_losses) ? &a->loss : &a->grad_logits;
    const int stream = walk != FN(only_losses) && a->stream_grad;
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const ROWS x = FN(input_rows)(v, first, n);
        const ROWS out = written->data ? FN(output_of_chunk)(v, written, first, stream) : (ROWS){NULL, 0, 0};
        if (walk == FN(only_losses)) {
            FN(walk_kind)(a, v, x, first, n, FN(only_losses), loss, out);
        } else if (walk == FN(only_grad)) {
            FN(walk_kind)(a, v, x, first, n, FN(only_grad), loss, out);
        } else {
            FN(walk_kind)(a, v, x, first, n, FN(losses_and_grad), loss, out);
        }
        if (out.values) {
            FN(finish_output)(v, out, written, first, n, stream);
        }
    }
}

static void FN(assert_binary)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    assert((a->num_classes == 0 || a->target.data) && !a->log_probabilities);
    assert(!a->grad_logits.data || a->grad_loss.data);
    assert(!a->grad_logits.data || !a->loss.data);
    (void)a;
    (void)begin;
    (void)end;
}

/* The mean's denominator: v for each class. */
static int64_t FN(binary_weight)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end,
                                 struct segloss_sums* sums) {
    FN(assert_binary)(a, begin, end);
    *sums = (struct segloss_sums){0, 0};
    const int64_t refused = FN(sum_weights)(a, begin, end, 0, &sums->weight);
    sums->weight *= (double)a->num_classes;
    return refused;
}

static int64_t FN(binary_forward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end,
                                  struct segloss_sums* sums) {
    FN(assert_binary)(a, begin, end);
    const enum FN(binary_walk) walk = a->grad_logits.data ? FN(losses_and_grad) : FN(only_losses);
    double loss_sums[SUM_LANES] = {0}, weight_sums[SUM_LANES] = {0};
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_block)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        ALIGNED REAL loss[SEGLOSS_BLOCK] = {0};
        if (v.num_active > 0 || a->loss.data) {
            FN(walk_block)(a, &v, walk, loss);
            FN(add_to_sums)(loss_sums, loss, SEGLOSS_BLOCK);
            FN(add_weights)(a, &v, v.weight, weight_sums);
        } else if (a->grad_logits.data) {
            FN(zero_grad)(a, &v.block);
        }
    }
    FN(end_streams)();
    *sums =
        (struct segloss_sums){FN(total_of_lanes)(loss_sums), FN(total_of_lanes)(weight_sums) * (double)a->num_classes};
    return -1;
}

static int64_t FN(binary_backward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    FN(assert_binary)(a, begin, end);
    assert(a->num_classes == 0 || a->grad_logits.data);
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        if (v.num_active > 0) {
            FN(walk_block)(a, &v, FN(only_grad), NULL);
        } else {
            FN(zero_grad)(a, &v.block);
        }
    }
    FN(end_streams)();
    return -1;
}

#undef SIGN_BIT
