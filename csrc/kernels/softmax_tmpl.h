/* The softmax of a block.
 *
 * With m the largest logit of a voxel and tail = sum of e_c = exp(x_c - m) over the classes but one largest:
 *   -log p_y  = (m - x_y) + log1p(tail)
 *   p_c       = e_c / (1 + tail)
 *   1 - p_c   = (tail + (1 - e_c)) / (1 + tail)
 * Nothing cancels in any of them, so that a confident voxel keeps its digits. */

static void FN(max_of_chunk)(const REAL* restrict logits, int num_classes, REAL* restrict max) {
    for (int c = 0; c < num_classes; ++c) {
        const REAL* x = logits + c * SEGLOSS_BLOCK;
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            max[i] = x[i] > max[i] ? x[i] : max[i];
        }
    }
}

/* From the lowest finite number on: all logits -inf leave exp(x - max) = 0 instead of nan in here. */
static void FN(find_max)(VOXELS* v, const struct segloss_cross_entropy* a) {
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        v->max[i] = REAL_LOWEST;
    }
    for (int64_t c = 0; c < a->num_classes; c += CLASS_CHUNK) {
        const int n = FN(chunk_length)(c, a->num_classes);
        FN(max_of_chunk)(FN(read_input)(v, c, n), n, v->max);
    }
}

static void FN(exponentials_of_class)(const REAL* restrict x, const REAL* restrict max, REAL* restrict e) {
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        e[i] = FN(exp_nonpositive)(x[i] - max[i]);
    }
}

/* e_c of a chunk, to be used before the next one is asked for. */
static REAL* FN(exponentials)(VOXELS* v, int64_t first_class, int num_classes) {
    REAL* e = v->activations.values;
    if (v->activations.first_class != first_class) {
        v->activations.first_class = first_class;
        const REAL* x = FN(read_input)(v, first_class, num_classes);
        for (int c = 0; c < num_classes; ++c) {
            FN(exponentials_of_class)(x + c * SEGLOSS_BLOCK, v->max, e + c * SEGLOSS_BLOCK);
        }
    }
    return e;
}

/* Those of one class of the chunk from `first` on, in `buffer` if need be: computed between the writes of a gradient
 * they cost less than before all of them. */
static const REAL* FN(exponentials_at)(VOXELS* v, int64_t first, int n, int c, REAL* buffer) {
    if (v->activations.first_class == first) {
        return v->activations.values + c * SEGLOSS_BLOCK;
    }
    FN(exponentials_of_class)(FN(read_input)(v, first, n) + c * SEGLOSS_BLOCK, v->max, buffer);
    return buffer;
}

/* Adds a chunk's e_c to `others`, but counts the classes at 1 in `largest`. */
static void FN(tail_of_chunk)(const REAL* restrict exponentials, int num_classes, REAL* restrict others,
                              REAL* restrict largest) {
    for (int c = 0; c < num_classes; ++c) {
        const REAL* e = exponentials + c * SEGLOSS_BLOCK;
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            const REAL is_largest = e[i] == 1 ? 1 : 0;
            others[i] += e[i] - is_largest;
            largest[i] += is_largest;
        }
    }
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

/* The tail, nan where the softmax is (a logit nan or +inf, or all of them -inf), and what follows from it. */
static void FN(find_tail)(VOXELS* v, const struct segloss_cross_entropy* a) {
    ALIGNED double sum[SEGLOSS_BLOCK];
    ALIGNED REAL total[SEGLOSS_BLOCK] = {0}, largest[SEGLOSS_BLOCK] = {0};
    for (int64_t c = 0; c < a->num_classes; c += CLASS_CHUNK) {
        const int n = FN(chunk_length)(c, a->num_classes);
        ALIGNED REAL others[SEGLOSS_BLOCK] = {0};
        FN(tail_of_chunk)(FN(exponentials)(v, c, n), n, others, largest);
        FN(add_chunk)(total, sum, others, c, a->num_classes);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL tail = total[i] + (largest[i] - 1) + (v->max[i] - v->max[i]);
        v->tail[i] = tail < 0 ? (REAL)NAN : tail;
    }
}

/* x_y. */
static void FN(find_label_input)(VOXELS* v, const struct segloss_cross_entropy* a) {
    memset(v->label_x, 0, sizeof v->label_x);
    for (int64_t c = 0; c < a->num_classes; c += CLASS_CHUNK) {
        const int n = FN(chunk_length)(c, a->num_classes);
        FN(pick_labels)(FN(read_input)(v, c, n), c, n, v->label, v->label_x);
    }
}

static void FN(find_share)(VOXELS* v) {
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        v->share[i] = 1 / (1 + v->tail[i]);
    }
}

/* All of a softmax but what concerns the label. */
static void FN(find_softmax)(VOXELS* v, const struct segloss_cross_entropy* a) {
    FN(find_max)(v, a);
    FN(find_tail)(v, a);
    FN(find_share)(v);
}

/* Where the tail is known. */
static void FN(find_softmax_again)(VOXELS* v, const struct segloss_cross_entropy* a, const REAL* tail) {
    FN(find_max)(v, a);
    memcpy(v->tail, tail, (size_t)v->block.count * sizeof *tail);
    FN(find_share)(v);
}

/* e_y, from x_y. */
static void FN(find_label_exponential)(VOXELS* v) {
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL e = FN(exp_nonpositive)(v->label_x[i] - v->max[i]);
        v->label_e[i] = v->label[i] < 0 ? 0 : e;
    }
}
