/* The gradient of cross entropy where grad_loss is 0 in most voxels, as that of a top-k loss is.
 *
 * In blocks with few other voxels, the logits of these are packed side by side, those of several blocks in one. Only
 * the packed block goes through the softmax. It gives the same bits as block by block: lanes do not depend on each
 * other. */

static void FN(active_block_grad)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight);

/* Blocks with more voxels than this are not packed, nor more blocks together. */
enum { FN(most_in_block) = SEGLOSS_BLOCK / 4, FN(most_blocks) = 32 };

#define PACKED struct FN(packed)

PACKED {
    int is_used;
    REAL total_class_weight;
    int count; /* voxels so far; their logits are in the buffer of the target, [class][lane] */
    ALIGNED int32_t label[SEGLOSS_BLOCK];
    ALIGNED REAL weight[SEGLOSS_BLOCK];
    ALIGNED REAL grad_loss[SEGLOSS_BLOCK];
    int lane[SEGLOSS_BLOCK]; /* within its block */
    int num_blocks;
    struct block block[FN(most_blocks)];
    int end[FN(most_blocks)]; /* of the voxels of a block */
};

/* Only with a softmax of labels, which leave the buffer of the target unused. */
static void FN(start_packing)(PACKED* packed, const struct segloss_cross_entropy* a, REAL total_class_weight) {
    packed->is_used = !is_one_value(&a->grad_loss, &a->positions) && a->target_kind == SEGLOSS_LABELS &&
                      !a->log_probabilities && a->num_classes <= CLASS_CHUNK;
    packed->total_class_weight = total_class_weight;
    packed->count = packed->num_blocks = 0;
    for (int64_t c = 0; a->class_weight && c < a->num_classes; ++c) {
        packed->is_used &= isfinite(((const REAL*)a->class_weight)[c]) != 0; /* 0 times another weight is nan */
    }
}

/* Whether all logits of the voxels that count are finite. Otherwise gradients can be nan where grad_loss is 0. It
 * prefetches the next block meanwhile. */
static int FN(all_finite)(const VOXELS* v, ROWS x, int num_classes) {
    MASK any = {0};
    for (int i = 0; i < v->block.count; i += WIDTH) {
        VEC zero = {0};
        for (int c = 0; c < num_classes; ++c) {
            FN(prefetch_ahead)(v, c, i);
            zero += 0 * FN(load)(x.values + c * x.stride + i);
        }
        any |= (zero != 0) & (FN(load)(v->weight + i) != 0);
    }
    BITS is_any = 0;
    for (int k = 0; k < WIDTH; ++k) {
        is_any |= any[k];
    }
    return !is_any;
}

/* Writes the gradient of a block: 0, but that of the packed voxels [begin, end) in their lanes. */
static void FN(write_packed_grad)(const PACKED* packed, const struct segloss_cross_entropy* a, VOXELS* v, int begin,
                                  int end) {
    const int n = (int)a->num_classes;
    const ROWS grad = FN(output_of_chunk)(v, &a->grad_logits, 0, a->stream_grad);
    REAL* rows = v->input.values;
    for (int c = 0; c < n; ++c) {
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            FN(store)(rows + c * ROW_LANES + i, FN(splat)(0)); /* faster than gcc's memset */
        }
        for (int j = begin; j < end; ++j) {
            rows[c * ROW_LANES + packed->lane[j]] = v->target.values[c * ROW_LANES + j];
        }
    }
    for (int c = 0; grad.values != rows && c < n; ++c) {
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            FN(put)(grad, c * grad.stride + i, FN(load)(rows + c * ROW_LANES + i));
        }
    }
    FN(finish_output)(v, grad, &a->grad_logits, 0, n, a->stream_grad);
}

/* Computes the gradient of the packed voxels, in place of their logits. */
static void FN(packed_grad)(PACKED* packed, const struct segloss_cross_entropy* a, VOXELS* v) {
    struct segloss_cross_entropy args = *a;
    args.positions = (struct segloss_positions){1, {packed->count}};
    args.logits = args.grad_logits = (struct segloss_tensor){v->target.values, REAL_DTYPE, ROW_LANES, {1}};
    args.grad_loss = (struct segloss_tensor){packed->grad_loss, REAL_DTYPE, 0, {1}};
    args.stream_grad = 0;
    v->block = block_at(&args.positions, 0, packed->count);
    v->input.tensor = &args.logits;
    v->input.first_class = v->activations.first_class = -1;
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        v->label[i] = i < packed->count ? packed->label[i] : -1;
        v->weight[i] = i < packed->count ? packed->weight[i] : 0;
    }
    v->num_active = packed->count;
    v->active = packed->count < SEGLOSS_BLOCK ? v->weight : NULL;
    FN(find_softmax)(v, &args, 1);
    FN(active_block_grad)(&args, v, packed->total_class_weight);
}

/* Writes the gradient of the blocks so far. */
static void FN(finish_packed)(PACKED* packed, const struct segloss_cross_entropy* a, VOXELS* v) {
    if (packed->count > 0) {
        FN(packed_grad)(packed, a, v);
    }
    int begin = 0;
    for (int k = 0; k < packed->num_blocks; ++k) {
        v->block = packed->block[k];
        FN(write_packed_grad)(packed, a, v, begin, packed->end[k]);
        begin = packed->end[k];
    }
    packed->count = packed->num_blocks = 0;
}

/* Some lanes of a block, and the grad_loss of all. */
struct FN(lanes) {
    int count;
    int lane[SEGLOSS_BLOCK];
    ALIGNED REAL grad_loss[SEGLOSS_BLOCK];
};

/* Finds the lanes with a gradient: those where read_scale gives another number than 0. */
static void FN(find_lanes_with_grad)(const struct segloss_cross_entropy* a, const VOXELS* v, struct FN(lanes) * lanes) {
    const REAL factor = (REAL)a->grad_scale;
    ALIGNED BITS minus_one[SEGLOSS_BLOCK];
    FN(read_classes)(lanes->grad_loss, &a->grad_loss, &v->block, 0, 1);
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC weight = FN(load)(v->weight + i);
        const MASK has_grad = (weight != 0) & (FN(load)(lanes->grad_loss + i) * factor * weight != 0);
        memcpy(minus_one + i, &has_grad, sizeof has_grad);
    }
    int count = 0;
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) { /* without branches, which would be mispredicted */
        lanes->lane[count] = i;
        count -= (int)minus_one[i];
    }
    lanes->count = count;
}

/* Adds these lanes of a block, whose logits are x, to the packed ones. */
static void FN(add_to_packed)(PACKED* packed, const struct segloss_cross_entropy* a, VOXELS* v, ROWS x,
                              const struct FN(lanes) * lanes) {
    const int first = packed->count;
    for (int j = 0; j < lanes->count; ++j) {
        const int lane = lanes->lane[j];
        packed->lane[first + j] = lane;
        packed->label[first + j] = v->label[lane];
        packed->weight[first + j] = v->weight[lane];
        packed->grad_loss[first + j] = lanes->grad_loss[lane];
        for (int c = 0; c < (int)a->num_classes; ++c) {
            v->target.values[c * ROW_LANES + first + j] = x.values[c * x.stride + lane];
        }
    }
    packed->count += lanes->count;
    packed->block[packed->num_blocks] = v->block;
    packed->end[packed->num_blocks++] = packed->count;
}

/* Packs a block, after read_voxels, if few of its voxels have a gradient; returns whether it did. Whether it does must
 * depend on this block alone, as a gradient of 0 can have either sign in blocks that are not packed. */
static int FN(pack)(PACKED* packed, const struct segloss_cross_entropy* a, VOXELS* v) {
    struct FN(lanes) lanes;
    FN(find_lanes_with_grad)(a, v, &lanes);
    if (lanes.count > FN(most_in_block)) {
        return 0;
    }
    ROWS x = {v->input.values, ROW_LANES, 0};
    if (v->num_active > 0) {
        x = FN(input_rows)(v, 0, (int)a->num_classes);
        if (!FN(all_finite)(v, x, (int)a->num_classes)) {
            return 0;
        }
    }
    FN(add_to_packed)(packed, a, v, x, &lanes);
    if (packed->count > SEGLOSS_BLOCK - FN(most_in_block) || packed->num_blocks == FN(most_blocks)) {
        FN(finish_packed)(packed, a, v);
    }
    return 1;
}
