/* A block of voxels as a kernel processes it: what has been read of it, and which of its voxels count. */

#define VOXELS struct FN(voxels)

VOXELS {
    struct block block;
    struct block_parts parts;             /* of soft statistics */
    ALIGNED int32_t label[SEGLOSS_BLOCK]; /* -1: no label here */
    ALIGNED REAL weight[SEGLOSS_BLOCK];   /* v; 0 where the voxel does not count */
    const REAL* active;                   /* `weight` if some lane does not count, else NULL */
    int num_active;
    CHUNK input;
    struct ahead ahead; /* the same classes of the next block's input, to prefetch */
    CHUNK target;
    const struct segloss_label_table* sets; /* of labels that the target holds instead of masks; else NULL */
    int has_groups;                         /* the masks in `target` are those of groups */
    CHUNK activations;                      /* e_c = exp(x_c - max) of a softmax; p_c of any other activation */

    /* Of a softmax. label_x is x_y and label_e is e_y, 0 where there is no label. */
    ALIGNED REAL max[SEGLOSS_BLOCK];
    ALIGNED REAL tail[SEGLOSS_BLOCK];
    ALIGNED REAL share[SEGLOSS_BLOCK]; /* 1 / (1 + tail), so that p_c = e_c share; 1 for other activations */
    ALIGNED REAL label_x[SEGLOSS_BLOCK];
    ALIGNED REAL label_e[SEGLOSS_BLOCK];
};

/* Sets the weights if the caller gives none: 1 for a voxel with a label, else 0. Returns the number of labels. */
static int FN(weigh_labels)(const int32_t* restrict label, REAL* restrict weight) {
    MASK minus_count = {0};
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const MASK active = FN(load_labels)(label + i) >= 0;
        FN(store)(weight + i, FN(only)(active, FN(splat)(1)));
        minus_count += active;
    }
    int count = 0;
    for (int k = 0; k < WIDTH; ++k) {
        count -= (int)minus_count[k];
    }
    return count;
}

/* A voxel counts if it has a label and a nonzero weight; otherwise sets its label to -1 and its weight to 0. Returns
 * the number of voxels that count. */
static int FN(keep_active)(int32_t* restrict label, REAL* restrict weight) {
    int num_active = 0;
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const int active = (label[i] >= 0) & (weight[i] != 0);
        label[i] = active ? label[i] : -1;
        weight[i] = active ? weight[i] : 0;
        num_active += active;
    }
    return num_active;
}

/* Whether some mask is neither 0 nor 1: bad, or ignore_index. */
static int FN(has_other_masks)(const REAL* masks, int num_classes) {
    MASK any = {0};
    for (int c = 0; c < num_classes; ++c) {
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const VEC mask = FN(load)(masks + c * ROW_LANES + i);
            any |= (mask != 0) & (mask != 1);
        }
    }
    int is_any = 0;
    for (int k = 0; k < WIDTH; ++k) {
        is_any |= any[k] != 0;
    }
    return is_any;
}

/* Sets the label to -1 where a mask is ignore_index, and marks the lanes with a value that a mask cannot have. */
static void FN(sort_masks)(const REAL* masks, int num_classes, REAL ignored, int32_t* restrict label,
                           int32_t* restrict bad) {
    for (int c = 0; c < num_classes; ++c) {
        const REAL* mask = masks + c * ROW_LANES;
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            label[i] = mask[i] == ignored ? -1 : label[i];
            bad[i] |= !((mask[i] == 0) | (mask[i] == 1) | (mask[i] == ignored));
        }
    }
}

/* Reads the masks of all classes and sets the label to -1 where a mask is ignore_index. Returns -1 or the first lane
 * with a value that a mask cannot have. The last chunk stays in `v`, also in lanes that do not count: its values are
 * finite there, and their weight is 0. */
static int FN(read_masks)(VOXELS* v, const struct segloss_cross_entropy* a) {
    const REAL ignored = (REAL)a->ignore_index;
    const int ignores_usual = ignored == 0 || ignored == 1;
    int has_sorted = 0;
    ALIGNED int32_t bad[SEGLOSS_BLOCK] = {0};
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* masks = FN(read_chunk)(&v->target, &v->block, NULL, first, n);
        if (ignores_usual || FN(has_other_masks)(masks, n)) {
            FN(sort_masks)(masks, n, ignored, v->label, bad);
            has_sorted = 1;
        }
    }
    for (int i = 0; has_sorted && i < v->block.count; ++i) {
        if (bad[i]) {
            return i;
        }
    }
    return -1;
}

/* Reads the labels or masks and the weights, which decide whether a voxel counts. Returns -1 or the lane of the first
 * bad label or mask. */
static int FN(read_voxels)(VOXELS* v, const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    v->block = block_at(&a->positions, begin, end);
    v->input.tensor = &a->logits;
    v->target.tensor = &a->target;
    v->input.first_class = v->target.first_class = v->activations.first_class = -1;
    v->sets = has_sets(&a->labels) ? &a->labels : NULL;
    v->has_groups = 0;
    int bad = -1;
    if (a->target_kind == SEGLOSS_LABELS || v->sets) {
        bad = read_labels(v->label, &a->target, &a->labels, &v->block, a->num_classes, a->ignore_index);
    } else {
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            v->label[i] = i < v->block.count ? 0 : -1;
        }
        bad = a->target_kind == SEGLOSS_MASKS ? FN(read_masks)(v, a) : -1;
    }
    if (a->voxel_weight.data) {
        FN(read_classes)(v->weight, &a->voxel_weight, &v->block, 0, 1);
        v->num_active = FN(keep_active)(v->label, v->weight);
    } else {
        v->num_active = FN(weigh_labels)(v->label, v->weight);
    }
    v->active = v->num_active < SEGLOSS_BLOCK ? v->weight : NULL;
    return bad;
}

static const REAL* FN(read_input)(VOXELS* v, int64_t first_class, int num_classes) {
    return FN(read_chunk)(&v->input, &v->block, v->active, first_class, num_classes);
}

/* Classes often lie a power of two apart in memory, so that their cache lines share a few sets. The lines of up to this
 * many classes stay cached until all their voxels are read; with more classes, whole rows are copied first, unless they
 * lie so close together that they are in the cache at once. */
enum { FN(readable_in_place) = 32, FN(close) = 4096 / sizeof(REAL) };

/* Whether to read a chunk of classes where it is, not from a copy. */
static int FN(reads_in_place)(const struct segloss_tensor* t, const struct plane* plane, int num_classes, int count) {
    const int is_near = plane->stride_class > 0 && plane->stride_class <= FN(close);
    return FN(lies_in_rows)(t, plane, count) && (num_classes <= FN(readable_in_place) || is_near);
}

/* Like read_input, for a single use: points into the tensor if possible. Inactive lanes can hold any value. */
static ROWS FN(input_rows)(VOXELS* v, int64_t first_class, int num_classes) {
    const struct run r = first_run(&v->block);
    const struct plane now = tensor_plane(v->input.tensor, &v->block, &r, first_class);
    v->ahead = rows_ahead(v->input.tensor, &v->block, &now, first_class, num_classes);
    if (FN(reads_in_place)(v->input.tensor, &now, num_classes, r.count)) {
        return (ROWS){now.data, now.stride_class, 0};
    }
    v->input.first_class = -1;
    FN(copy_classes)(v->input.values, v->input.tensor, &v->block, first_class, num_classes);
    return (ROWS){v->input.values, ROW_LANES, 0};
}

/* Fetches a line of the same class of the next block, at lane i of this one, after input_rows. */
static inline void FN(prefetch_ahead)(const VOXELS* v, int c, int i) {
    const char* line = line_ahead(&v->ahead, i / WIDTH);
    if (line) {
        __builtin_prefetch(line + c * v->ahead.class_bytes, 0, 2);
    }
}

/* Whether each lane's set, or group, has a class. `bits` are kept from class to class. */
static void FN(read_set_row)(const VOXELS* v, uint32_t* bits, int64_t class, int is_first, int of_groups,
                             REAL* restrict row) {
    const int shift = (int)(class % 32);
    if (is_first || shift == 0) {
        bits_of_lanes(bits, v->label, v->sets, &v->block, class - shift, of_groups);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        row[i] = (REAL)(int)((bits[i] >> shift) & 1);
    }
}

/* The masks of a chunk, from the sets of the labels' classes, or from their groups. */
static const REAL* FN(read_sets)(VOXELS* v, int64_t first_class, int num_classes, int of_groups) {
    ALIGNED uint32_t bits[SEGLOSS_BLOCK];
    v->target.first_class = v->has_groups == of_groups ? v->target.first_class : -1;
    v->has_groups = of_groups;
    for (int c = 0; v->target.first_class != first_class && c < num_classes; ++c) {
        FN(read_set_row)(v, bits, first_class + c, c == 0, of_groups, v->target.values + c * ROW_LANES);
    }
    v->target.first_class = first_class;
    return v->target.values;
}

/* Reads probabilities or masks. */
static const REAL* FN(read_target)(VOXELS* v, int64_t first_class, int num_classes) {
    if (v->sets) {
        return FN(read_sets)(v, first_class, num_classes, 0);
    }
    return FN(read_chunk)(&v->target, &v->block, v->active, first_class, num_classes);
}

/* The first lane of a chunk with a value outside [low, high], or with nan if `finds_nan`; -1: none. As integers, the
 * bits of a number in [0, high] are not negative and not larger than those of high. The same holds for a number in
 * [-high, high] without its sign bit. Only if some value fails this test are the values compared one by one. */
static int FN(first_outside)(const REAL* rows, int num_classes, REAL low, REAL high, int finds_nan) {
    const UMASK high_bits = (UMASK)FN(splat)(high);
    const UBITS kept = (UBITS)-1 >> (low == -high);
    MASK any = {0};
    for (int c = 0; c < num_classes; ++c) {
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const UMASK bits = (UMASK)FN(load)(rows + c * ROW_LANES + i) & kept;
            any |= (MASK)(bits | (high_bits - bits));
        }
    }
    int is_any = 0;
    for (int k = 0; k < WIDTH; ++k) {
        is_any |= any[k] < 0;
    }
    for (int i = 0; is_any && i < SEGLOSS_BLOCK; ++i) {
        for (int c = 0; c < num_classes; ++c) {
            const REAL x = rows[c * ROW_LANES + i];
            if (finds_nan ? !(x >= low && x <= high) : (x < low || x > high)) {
                return i;
            }
        }
    }
    return -1;
}

/* The first lane of a block with a class probability (`of_target`) or a logit outside its range; -1: none. Voxels that
 * do not count hold 0 here. */
static int FN(first_refused)(VOXELS* v, const struct segloss_cross_entropy* a, int of_target) {
    const struct segloss_range range = of_target ? a->target_range : a->logit_range;
    const REAL low = (REAL)range.low, high = (REAL)range.high;
    int refused = SEGLOSS_BLOCK;
    for (int64_t first = 0; range.low < range.high && first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* rows = of_target ? FN(read_target)(v, first, n) : FN(read_input)(v, first, n);
        const int lane = FN(first_outside)(rows, n, low, high, of_target);
        refused = lane >= 0 && lane < refused ? lane : refused;
    }
    return refused < SEGLOSS_BLOCK ? refused : -1;
}

/* read_voxels, then a check of the ranges of probabilities and logits. The last chunk of each stays in `v`. */
static int FN(read_block)(VOXELS* v, const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    int bad = FN(read_voxels)(v, a, begin, end);
    if (bad < 0 && v->num_active > 0 && a->target_kind == SEGLOSS_PROBABILITIES) {
        bad = FN(first_refused)(v, a, 1);
    }
    if (bad < 0 && v->num_active > 0) {
        bad = FN(first_refused)(v, a, 0);
    }
    return bad;
}

/* Up to this many classes it is faster to compare each class with all labels than to go voxel by voxel. */
enum { FN(few_classes) = 16 };

/* Picks each lane's value at its label, if the label is one of these classes. */
static void FN(pick_labels)(const REAL* restrict rows, int64_t first_class, int num_classes,
                            const int32_t* restrict label, REAL* restrict picked) {
    if (num_classes > FN(few_classes)) {
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            const int64_t c = label[i] - first_class;
            if (label[i] >= 0 && c >= 0 && c < num_classes) {
                picked[i] = rows[c * ROW_LANES + i];
            }
        }
        return;
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const MASK class = FN(load_labels)(label + i) - (BITS)first_class;
        VEC value = FN(load)(picked + i);
        for (int c = 0; c < num_classes; ++c) {
            value = FN(select)(class == c, FN(load)(rows + c * ROW_LANES + i), value);
        }
        FN(store)(picked + i, value);
    }
}

/* Like pick_labels, from a column of WIDTH voxels. */
static void FN(pick_from_column)(const REAL* column, int64_t first_class, int num_classes, const int32_t* label,
                                 REAL* picked) {
    for (int k = 0; k < WIDTH; ++k) {
        const int64_t c = label[k] - first_class;
        if (label[k] >= 0 && c >= 0 && c < num_classes) {
            picked[k] = column[c * WIDTH + k];
        }
    }
}

/* Looks up table[y] for each lane; 0 where there is no label. */
static void FN(look_up)(const REAL* restrict table, int64_t num_classes, const int32_t* restrict label,
                        REAL* restrict value) {
    if (num_classes > FN(few_classes)) {
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            value[i] = label[i] < 0 ? 0 : table[label[i]];
        }
        return;
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const MASK class = FN(load_labels)(label + i);
        VEC entry = {0};
        for (int c = 0; c < (int)num_classes; ++c) {
            entry = FN(select)(class == c, FN(splat)(table[c]), entry);
        }
        FN(store)(value + i, entry);
    }
}

/* Where to put a chunk's results, class by class, before finish_output copies them to the tensor. This can be the
 * input's buffer, so the input must be read again afterwards. */
static ROWS FN(output_of_chunk)(VOXELS* v, const struct segloss_tensor* t, int64_t first_class, int stream) {
    v->input.first_class = -1;
    return FN(output_rows)(t, &v->block, first_class, stream, v->input.values);
}

/* Streams interleaved results of a whole block to contiguous memory. They are interleaved in a buffer first, because
 * only whole cache lines can be written past the caches. */
static void FN(stream_interleaved)(VOXELS* v, const struct segloss_tensor* t, const struct plane* to, int num_classes) {
    assert(t->dtype <= SEGLOSS_BFLOAT16);
    const size_t bytes = (size_t)num_classes * SEGLOSS_BLOCK * (size_t)segloss_dtype_size(t->dtype);
    char* staged = (char*)v->activations.values;
    assert(bytes <= sizeof v->activations.values);
    const struct plane interleaved = {staged, 1, num_classes};
    const struct plane rows = {v->input.values, ROW_LANES, 1};
    v->activations.first_class = -1;
    FN(writers)[t->dtype](&interleaved, &rows, num_classes, SEGLOSS_BLOCK);
    for (size_t k = 0; k < bytes; k += sizeof(VEC)) {
        FN(stream)((REAL*)((char*)to->data + k), FN(load)((const REAL*)(staged + k)));
    }
}

/* Copies a chunk's results to the tensor, unless they are already there. */
static void FN(finish_output)(VOXELS* v, ROWS rows, const struct segloss_tensor* t, int64_t first_class,
                              int num_classes, int stream) {
    if (rows.values != v->input.values) {
        return;
    }
    const struct run r = first_run(&v->block);
    const struct plane to = tensor_plane(t, &v->block, &r, first_class);
    const int in_one_piece = to.stride_class == 1 && to.stride_voxel == num_classes && r.count == SEGLOSS_BLOCK;
    if (stream && in_one_piece && (uintptr_t)to.data % sizeof(VEC) == 0) {
        FN(stream_interleaved)(v, t, &to, num_classes);
    } else {
        FN(write_classes)(v->input.values, t, &v->block, first_class, num_classes);
    }
}

/* Writes the gradient of a block in which no voxel counts, without reading its input. */
static void FN(zero_grad)(const struct segloss_cross_entropy* a, const struct block* b) {
    ALIGNED const REAL zeros[SEGLOSS_BLOCK] = {0};
    for (int64_t c = 0; c < a->num_classes; ++c) {
        FN(write_classes)(zeros, &a->grad_logits, b, c, 1);
    }
}
