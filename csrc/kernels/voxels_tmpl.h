/* A block of voxels on its way through a kernel: what is read of it, and which of its voxels count. */

#define VOXELS struct FN(voxels)

VOXELS {
    struct block block;
    ALIGNED int32_t label[SEGLOSS_BLOCK]; /* -1: no label here */
    ALIGNED REAL weight[SEGLOSS_BLOCK];   /* v; 0 where the voxel does not count */
    const REAL* active;                   /* `weight` where some voxel does not count, else NULL */
    int any_active;
    CHUNK input;
    CHUNK target;
    CHUNK activations; /* e_c = exp(x_c - max) of a softmax; p_c of any other activation */

    /* Of a softmax; x_y and e_y are 0 where there is no label. */
    ALIGNED REAL max[SEGLOSS_BLOCK];
    ALIGNED REAL tail[SEGLOSS_BLOCK];
    ALIGNED REAL share[SEGLOSS_BLOCK]; /* 1 / (1 + tail), so that p_c = e_c share; 1 for other activations */
    ALIGNED REAL label_x[SEGLOSS_BLOCK];
    ALIGNED REAL label_e[SEGLOSS_BLOCK];
};

/* A voxel counts if it has a label and a weight; else both say that it does not. Returns how many do. */
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

/* Looks at the masks of all classes: label -1 where one is ignore_index, else 0. Returns -1 or the first lane with a
 * value that a mask cannot have. */
static int FN(read_masks)(VOXELS* v, const struct segloss_cross_entropy* a) {
    const REAL ignored = (REAL)a->ignore_index;
    ALIGNED int32_t bad[SEGLOSS_BLOCK] = {0};
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* target = FN(read_chunk)(&v->target, &v->block, NULL, first, n);
        for (int c = 0; c < n; ++c) {
            const REAL* mask = target + c * ROW_LANES;
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                v->label[i] = mask[i] == ignored ? -1 : v->label[i];
                bad[i] |= !((mask[i] == 0) | (mask[i] == 1) | (mask[i] == ignored));
            }
        }
    }
    v->target.first_class = -1; /* read without regard to what is active */
    for (int i = 0; i < v->block.count; ++i) {
        if (bad[i]) {
            return i;
        }
    }
    return -1;
}

/* Reads what decides whether a voxel counts. Returns -1 or the lane of the first bad label or mask. */
static int FN(read_voxels)(VOXELS* v, const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    v->block = block_at(&a->positions, begin, end);
    v->input.tensor = &a->logits;
    v->target.tensor = &a->target;
    v->input.first_class = v->target.first_class = v->activations.first_class = -1;
    FN(read_lanes)(v->weight, &a->voxel_weight, &v->block, 0, 1);
    int bad = -1;
    if (a->target_kind == SEGLOSS_LABELS) {
        bad = read_labels(v->label, &a->target, &v->block, a->num_classes, a->ignore_index);
    } else {
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            v->label[i] = i < v->block.count ? 0 : -1;
        }
        bad = a->target_kind == SEGLOSS_MASKS ? FN(read_masks)(v, a) : -1;
    }
    const int num_active = FN(keep_active)(v->label, v->weight);
    v->any_active = num_active > 0;
    v->active = num_active < SEGLOSS_BLOCK ? v->weight : NULL;
    return bad;
}

static const REAL* FN(read_input)(VOXELS* v, int64_t first_class, int num_classes) {
    return FN(read_chunk)(&v->input, &v->block, v->active, first_class, num_classes);
}

/* Probabilities or masks. */
static const REAL* FN(read_target)(VOXELS* v, int64_t first_class, int num_classes) {
    return FN(read_chunk)(&v->target, &v->block, v->active, first_class, num_classes);
}

/* Up to this many classes it is faster to compare each one with all labels than to go from voxel to voxel. */
enum { FN(few_classes) = 16 };

/* Each lane's value at its label, where that is one of these classes. */
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

/* table[y] of each lane, 0 where there is no label. */
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

/* Where to put a chunk's results, class by class; if need be over the input, which then has to be read anew. */
static ROWS FN(output_of_chunk)(VOXELS* v, const struct segloss_tensor* t, int64_t first_class, int stream) {
    v->input.first_class = -1;
    return FN(output_rows)(t, &v->block, first_class, stream, v->input.values);
}

/* A block without a voxel that counts: its input need not be read. */
static void FN(zero_grad)(const struct segloss_cross_entropy* a, const struct block* b) {
    ALIGNED const REAL zeros[SEGLOSS_BLOCK] = {0};
    for (int64_t c = 0; c < a->num_classes; ++c) {
        FN(write_classes)(zeros, &a->grad_logits, b, c, 1);
    }
}
