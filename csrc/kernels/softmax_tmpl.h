/* The softmax of a block.
 *
 * With m the largest logit of a voxel and tail = sum of e_c = exp(x_c - m) over the classes but one largest:
 *   -log p_y  = (m - x_y) + log1p(tail)
 *   p_c       = e_c / (1 + tail)
 *   1 - p_c   = (tail + (1 - e_c)) / (1 + tail)
 * Nothing cancels in any of them, so that a confident voxel keeps its digits. */

/* The largest logit of a chunk of classes, from the lowest finite number on: all logits -inf leave exp(x - max) = 0
 * instead of nan in here. */
static void FN(max_of_chunk)(const REAL* restrict x, int num_classes, REAL* restrict max) {
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        VEC largest = FN(splat)(REAL_LOWEST);
        for (int c = 0; c < num_classes; ++c) {
            largest = FN(larger)(FN(load)(x + c * ROW_LANES + i), largest);
        }
        FN(store)(max + i, largest);
    }
}

/* The tail of a chunk of classes, whose e_c are kept: the sum of those that are not 1, plus the number of all but one
 * of those that are. -1 where all logits are -inf. Meanwhile it fetches the next block. */
static void FN(tail_of_chunk)(VOXELS* v, int64_t first_class, int num_classes, const REAL* max, REAL* tail) {
    const REAL* restrict x = FN(read_input)(v, first_class, num_classes);
    REAL* restrict e = v->activations.values;
    const struct ahead ahead = v->input.ahead;
    v->activations.first_class = first_class;
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const char* line = line_ahead(&ahead, i / WIDTH);
        const VEC m = FN(load)(max + i);
        VEC others = {0}, largest = {0};
        for (int c = 0; c < num_classes; ++c) {
            if (line) {
                __builtin_prefetch(line + c * ahead.class_bytes, 0, 2);
            }
            const int k = c * ROW_LANES + i;
            const VEC e_c = FN(exp_nonpositive)(FN(load)(x + k) - m);
            const MASK is_largest = e_c == 1;
            others += FN(only)(~is_largest, e_c);
            largest += FN(only)(is_largest, e_c);
            FN(store)(e + k, e_c);
        }
        FN(store)(tail + i, others + (largest - 1));
    }
}

/* Joins the largest logit and the tail of further classes to those so far, the tail in double: of two sums 1 + tail,
 * that with the smaller maximum is scaled down and becomes part of the other one's tail. */
static void FN(join_chunk)(VOXELS* v, double* tail, const REAL* chunk_max, const REAL* chunk_tail) {
    ALIGNED REAL scale[SEGLOSS_BLOCK];
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC a = FN(load)(v->max + i), b = FN(load)(chunk_max + i);
        FN(store)(scale + i, FN(exp_nonpositive)(FN(select)(a > b, b - a, a - b)));
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const int is_larger = chunk_max[i] > v->max[i];
        const double a = tail[i], b = (double)chunk_tail[i];
        tail[i] = is_larger ? b + (1 + a) * (double)scale[i] : a + (1 + b) * (double)scale[i];
        v->tail[i] = (REAL)tail[i];
        v->max[i] = is_larger ? chunk_max[i] : v->max[i];
    }
}

/* No class yet: nothing is added to what is joined. */
static void FN(start_joining)(VOXELS* v, double* tail) {
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        v->max[i] = REAL_LOWEST;
        tail[i] = -1;
    }
}

/* m, the tail, and x_y where there are labels. The tail is nan where the softmax is: a logit nan or +inf, or all of
 * them -inf. */
static void FN(find_softmax)(VOXELS* v, const struct segloss_cross_entropy* a) {
    ALIGNED double tail[SEGLOSS_BLOCK];
    ALIGNED REAL chunk_max[SEGLOSS_BLOCK], chunk_tail[SEGLOSS_BLOCK];
    const int is_one_chunk = a->num_classes <= CLASS_CHUNK;
    memset(v->label_x, 0, sizeof v->label_x);
    if (!is_one_chunk) {
        FN(start_joining)(v, tail);
    }
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* x = FN(read_input)(v, first, n);
        REAL* max = is_one_chunk ? v->max : chunk_max;
        FN(max_of_chunk)(x, n, max);
        FN(tail_of_chunk)(v, first, n, max, is_one_chunk ? v->tail : chunk_tail);
        if (!is_one_chunk) {
            v->activations.first_class = -1; /* not to the final maximum */
            FN(join_chunk)(v, tail, chunk_max, chunk_tail);
        }
        if (a->target_kind == SEGLOSS_LABELS) {
            FN(pick_labels)(x, first, n, v->label, v->label_x);
        }
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC max = FN(load)(v->max + i);
        const VEC sum = FN(load)(v->tail + i) + (max - max);
        FN(store)(v->tail + i, FN(select)(sum < 0, FN(splat)((REAL)NAN), sum));
    }
}

/* e_c of a chunk, to be used before the next one is asked for. */
static const REAL* FN(exponentials)(VOXELS* v, int64_t first_class, int num_classes) {
    REAL* restrict e = v->activations.values;
    if (v->activations.first_class != first_class) {
        v->activations.first_class = first_class;
        const REAL* restrict x = FN(read_input)(v, first_class, num_classes);
        for (int c = 0; c < num_classes; ++c) {
            for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
                const int k = c * ROW_LANES + i;
                FN(store)(e + k, FN(exp_nonpositive)(FN(load)(x + k) - FN(load)(v->max + i)));
            }
        }
    }
    return e;
}

/* A sum over the classes: in REAL within a chunk, in double over several. `part` is that of the chunk from `first` on.
 */
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

/* e_y, from x_y. */
static void FN(find_label_exponential)(VOXELS* v) {
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC e = FN(exp_nonpositive)(FN(load)(v->label_x + i) - FN(load)(v->max + i));
        FN(store)(v->label_e + i, FN(only)(FN(load_labels)(v->label + i) >= 0, e));
    }
}
