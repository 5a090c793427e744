/* The softmax of a block.
 *
 * Let m be the largest logit of a voxel and tail the sum of e_c = exp(x_c - m) over all classes but one with x_c = m:
 *   -log p_y  = (m - x_y) + log1p(tail)
 *   p_c       = e_c / (1 + tail)
 *   1 - p_c   = (tail + (1 - e_c)) / (1 + tail)
 * Nothing cancels in any of them, so the results of a confident voxel keep their digits. */

/* Whether interleaved logits are faster voxel by voxel, as in interleaved_tmpl.h. Then sums of every layout have the
 * order that they have there, for the same bits. */
static int FN(has_many_classes)(const struct segloss_cross_entropy* a) {
    return a->num_classes > FN(few_classes) && a->num_classes >= 4 * WIDTH;
}

/* Computes softmax_of_chunk by columns of WIDTH voxels, all classes of one column before the next, so that a column
 * stays in the L1 cache from its first use to its last. The largest logit starts at `lowest`. If all logits are -inf,
 * the tail is nan with -inf for it; with the lowest finite number, exp(x - max) is 0 and the tail -1, which adds
 * nothing to that of another chunk. The e_c are summed one by one, or with `in_parts` as sum_of_vectors sums WIDTH
 * parts, to which classes are added in turn. */
static inline __attribute__((always_inline)) void FN(softmax_of_columns)(VOXELS* v, ROWS x, int64_t first_class,
                                                                         int num_classes, int keep, REAL lowest,
                                                                         int in_parts, REAL* restrict max,
                                                                         REAL* restrict tail) {
    const int few = num_classes <= FN(few_classes);
    const struct ahead ahead = v->ahead;
    REAL* restrict e = v->activations.values;
    ALIGNED REAL column[CLASS_CHUNK * WIDTH];
    for (int i = 0; i < v->block.count; i += WIDTH) {
        const char* line = line_ahead(&ahead, i / WIDTH);
        const MASK counts = FN(load)(v->weight + i) != 0;
        const MASK label = FN(load_labels)(v->label + i) - (BITS)first_class;
        VEC largest = FN(splat)(lowest);
        VEC at_label = first_class == 0 ? FN(splat)(0) : FN(load)(v->label_x + i);
        for (int c = 0; c < num_classes; ++c) {
            const VEC x_c = FN(only)(counts, FN(load)(x.values + c * x.stride + i));
            FN(store)(column + c * WIDTH, x_c);
            largest = FN(larger)(x_c, largest);
            if (few) {
                at_label = FN(select)(label == c, x_c, at_label);
            }
        }
        FN(store)(v->label_x + i, at_label);
        if (!few) {
            FN(pick_from_column)(column, first_class, num_classes, v->label + i, v->label_x + i);
        }
        VEC others[WIDTH] = {{0}}, e_label = {0};
        MASK minus_equals = {0};
        for (int c = 0; c < num_classes; ++c) {
            if (line) {
                __builtin_prefetch(line + c * ahead.class_bytes, 0, 2);
            }
            const VEC e_c = FN(exp_nonpositive)(FN(load)(column + c * WIDTH) - largest);
            const MASK is_largest = e_c == 1;
            others[in_parts ? c % WIDTH : 0] += FN(only)(~is_largest, e_c);
            minus_equals += is_largest;
            if (keep) {
                FN(store)(e + c * ROW_LANES + i, e_c);
            }
            if (few) {
                e_label = FN(select)(label == c, e_c, e_label);
            }
        }
        if (few) {
            FN(store)(v->label_e + i, e_label);
        }
        FN(store)(max + i, largest);
        const VEC sum = in_parts ? FN(sum_of_vectors)(others) : others[0];
        FN(store)(tail + i, sum + (__builtin_convertvector(-minus_equals - 1, VEC)));
    }
}

/* The same for two classes, with one exponential: the larger logit has e_c = 1. */
static void FN(softmax_of_pairs)(VOXELS* v, ROWS x, int keep, REAL* restrict max, REAL* restrict tail) {
    REAL* restrict e = v->activations.values;
    for (int i = 0; i < v->block.count; i += WIDTH) {
        FN(prefetch_ahead)(v, 0, i);
        FN(prefetch_ahead)(v, 1, i);
        const MASK counts = FN(load)(v->weight + i) != 0;
        const MASK label = FN(load_labels)(v->label + i);
        const VEC x_0 = FN(only)(counts, FN(load)(x.values + i));
        const VEC x_1 = FN(only)(counts, FN(load)(x.values + x.stride + i));
        const VEC difference = x_0 - x_1;
        const MASK is_first = difference >= 0;
        const VEC smaller_e = FN(exp_nonpositive)(FN(select)(is_first, -difference, difference));
        const VEC largest = FN(select)(is_first, x_0, x_1);
        const VEC e_0 = FN(select)(is_first, FN(splat)(1), smaller_e);
        const VEC e_1 = FN(select)(is_first, smaller_e, FN(splat)(1));
        FN(store)(v->label_x + i, FN(only)(label >= 0, FN(select)(label == 0, x_0, x_1)));
        FN(store)(v->label_e + i, FN(only)(label >= 0, FN(select)(label == 0, e_0, e_1)));
        if (keep) {
            FN(store)(e + i, e_0);
            FN(store)(e + ROW_LANES + i, e_1);
        }
        FN(store)(max + i, largest);
        FN(store)(tail + i, smaller_e + (largest - largest));
    }
}

/* Finds the largest logit and the tail of a chunk of classes, and x_y if y is one of them. With `keep` it stores the
 * e_c, relative to that logit. It prefetches the next block meanwhile. */
static void FN(softmax_of_chunk)(VOXELS* v, int64_t first_class, int num_classes, int keep, REAL lowest, int in_parts,
                                 REAL* max, REAL* tail) {
    const ROWS x = FN(input_rows)(v, first_class, num_classes);
    v->activations.first_class = keep ? first_class : -1;
    FN(clear_unused)(max, &v->block, 1);
    FN(clear_unused)(tail, &v->block, 1);
    FN(clear_unused)(v->label_x, &v->block, 1);
    FN(clear_unused)(v->label_e, &v->block, 1);
    FN(clear_unused)(v->activations.values, &v->block, keep ? num_classes : 0);
    switch (num_classes) { /* for a constant number of classes the compiler keeps a column in registers */
    case 2:
        FN(softmax_of_pairs)(v, x, keep, max, tail);
        break;
#define OF_COLUMNS(n)                                                                                                  \
    case n:                                                                                                            \
        FN(softmax_of_columns)(v, x, first_class, n, keep, lowest, 0, max, tail);                                      \
        break;
        OF_COLUMNS(3)
        OF_COLUMNS(4)
        OF_COLUMNS(5)
        OF_COLUMNS(6)
        OF_COLUMNS(7)
        OF_COLUMNS(8)
#undef OF_COLUMNS
    default:
        if (in_parts && num_classes > FN(few_classes)) {
            FN(softmax_of_columns)(v, x, first_class, num_classes, keep, lowest, 1, max, tail);
        } else {
            FN(softmax_of_columns)(v, x, first_class, num_classes, keep, lowest, 0, max, tail);
        }
    }
}

/* Merges the largest logits and the tails of a further chunk into those so far, with the tails in double, in some
 * lanes. Of the two sums 1 + tail, the one with the smaller maximum is scaled down and added to the other's tail. */
static void FN(join_chunk)(VOXELS* v, double* tail, const REAL* chunk_max, const REAL* chunk_tail, int first, int end) {
    ALIGNED REAL scale[SEGLOSS_BLOCK];
    for (int i = first; i < end; i += WIDTH) {
        const VEC a = FN(load)(v->max + i), b = FN(load)(chunk_max + i);
        FN(store)(scale + i, FN(exp_nonpositive)(FN(select)(a > b, b - a, a - b)));
    }
    for (int i = first; i < end; ++i) {
        const int is_larger = chunk_max[i] > v->max[i];
        const double a = tail[i], b = (double)chunk_tail[i];
        tail[i] = is_larger ? b + (1 + a) * (double)scale[i] : a + (1 + b) * (double)scale[i];
        v->tail[i] = (REAL)tail[i];
        v->max[i] = is_larger ? chunk_max[i] : v->max[i];
    }
}

/* The state without any class: merging adds nothing to the first chunk. */
static void FN(start_joining)(VOXELS* v, double* tail) {
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        v->max[i] = REAL_LOWEST;
        v->tail[i] = -1;
        tail[i] = -1;
    }
}

/* Sets the tail to nan where the softmax is nan. */
static void FN(finish_joining)(VOXELS* v) {
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC max = FN(load)(v->max + i);
        const VEC sum = FN(load)(v->tail + i) + (max - max);
        FN(store)(v->tail + i, FN(select)(sum < 0, FN(splat)((REAL)NAN), sum));
    }
}

/* Finds m, the tail, and x_y where there are labels. The tail is nan where the softmax is nan: if a logit is nan or
 * +inf, if all are -inf, or without classes. `keep`: the caller will need the e_c. */
static void FN(find_softmax)(VOXELS* v, const struct segloss_cross_entropy* a, int keep) {
    ALIGNED double tail[SEGLOSS_BLOCK];
    ALIGNED REAL chunk_max[SEGLOSS_BLOCK], chunk_tail[SEGLOSS_BLOCK];
    const int in_parts = FN(has_many_classes)(a);
    if (a->num_classes <= CLASS_CHUNK) {
        FN(softmax_of_chunk)(v, 0, (int)a->num_classes, keep, -(REAL)INFINITY, in_parts, v->max, v->tail);
        for (int i = 0; a->num_classes == 0 && i < v->block.count; ++i) {
            v->tail[i] = (REAL)NAN;
        }
        return;
    }
    FN(start_joining)(v, tail);
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        FN(softmax_of_chunk)(v, first, n, 0, REAL_LOWEST, in_parts, chunk_max, chunk_tail);
        FN(join_chunk)(v, tail, chunk_max, chunk_tail, 0, SEGLOSS_BLOCK);
    }
    FN(finish_joining)(v);
}

/* e_c of a chunk, valid until the next chunk is requested. */
static const REAL* FN(exponentials)(VOXELS* v, int64_t first_class, int num_classes) {
    REAL* restrict e = v->activations.values;
    if (v->activations.first_class != first_class) {
        v->activations.first_class = first_class;
        const ROWS x = FN(input_rows)(v, first_class, num_classes);
        FN(clear_unused)(e, &v->block, num_classes);
        for (int c = 0; c < num_classes; ++c) {
            for (int i = 0; i < v->block.count; i += WIDTH) {
                const MASK counts = FN(load)(v->weight + i) != 0;
                const VEC x_c = FN(only)(counts, FN(load)(x.values + c * x.stride + i));
                FN(store)(e + c * ROW_LANES + i, FN(exp_nonpositive)(x_c - FN(load)(v->max + i)));
            }
        }
    }
    return e;
}

/* Sums over the classes: in REAL within a chunk, in double over chunks. `part` is the sum of the chunk at `first`. */
static void FN(add_chunk)(REAL* restrict total, double* restrict sum, const REAL* restrict part, int64_t first,
                          int64_t num_classes) {
    if (num_classes <= CLASS_CHUNK) {
        memcpy(total, part, SEGLOSS_BLOCK * sizeof *total);
        return;
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        sum[i] = first == 0 ? (double)part[i] : sum[i] + (double)part[i];
        total[i] = (REAL)sum[i];
    }
}

/* 1 / (1 + tail), so that p_c = e_c share. */
static void FN(find_share)(VOXELS* v) {
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        FN(store)(v->share + i, 1 / (1 + FN(load)(v->tail + i)));
    }
}

/* e_y, from x_y. Of few classes it was found with the softmax. */
static void FN(find_label_exponential)(VOXELS* v, int64_t num_classes) {
    if (num_classes <= FN(few_classes)) {
        return;
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC e = FN(exp_nonpositive)(FN(load)(v->label_x + i) - FN(load)(v->max + i));
        FN(store)(v->label_e + i, FN(only)(FN(load_labels)(v->label + i) >= 0, e));
    }
}
