/* The softmax of interleaved logits of many classes and its gradient, voxel by voxel: the lanes of a vector are
 * classes, so nothing is transposed. The bits are those of softmax_tmpl.h: the same operations, and sums in the same
 * order. */

/* Voxels whose largest logits are found before their exponentials, which then do not wait for them one by one. */
enum { FN(voxel_tile) = 16 };

/* Voxels whose gradients are collected in v->input before they are written: whole cache lines in any dtype. The buffer
 * holds so many classes of them, in REAL and in half of its size. */
enum { FN(grad_tile) = 32, FN(grad_classes) = CLASS_CHUNK * ROW_LANES * 2 / 3 / FN(grad_tile) / WIDTH * WIDTH };

/* Whether a block is processed so: labels, and the many classes of one voxel after those of another. */
static int FN(goes_by_voxel)(const struct segloss_cross_entropy* a, const struct block* b) {
    const int64_t stride_voxel = a->logits.strides[a->positions.num_dims - 1];
    return a->target_kind == SEGLOSS_LABELS && !a->log_probabilities && FN(has_many_classes)(a) &&
           a->logits.stride_class == 1 && first_run(b).count == b->count &&
           (stride_voxel >= a->num_classes || b->count == 1);
}

/* The classes from `first_class` on of a block in one run. */
static struct plane FN(plane_of_classes)(const VOXELS* v, const struct segloss_tensor* t, int64_t first_class) {
    const struct run all = first_run(&v->block);
    return tensor_plane(t, &v->block, &all, first_class);
}

/* The logits of one voxel. Lanes past the last class can hold any value: they lie in the next voxel, or after the last
 * voxel in the buffer. All classes of a voxel that does not count hold 0. */
static inline const REAL* FN(read_voxel)(const VOXELS* v, const struct plane* classes, int i, int num_classes,
                                         REAL* buffer) {
    const enum segloss_dtype dtype = v->input.tensor->dtype;
    const int is_last = i + 1 == v->block.count;
    const struct plane to = {buffer, 0, 1};
    const struct plane from = {(char*)classes->data + i * classes->stride_voxel * segloss_dtype_size(dtype), 0, 1};
    if (v->weight[i] == 0) {
        memset(buffer, 0, (size_t)num_classes * sizeof *buffer);
    } else if (dtype == REAL_DTYPE && !is_last) {
        return from.data;
    } else {
        const int padded = (num_classes + WIDTH - 1) / WIDTH * WIDTH;
        FN(readers)[dtype](&to, &from, 1, is_last ? num_classes : padded);
    }
    return buffer;
}

/* Classes from c on, with -inf in the lanes past the last one. */
static inline VEC FN(load_classes)(const REAL* x, int c, int num_classes) {
    MASK lane = {0};
    for (int k = 0; k < WIDTH; ++k) {
        lane[k] = k;
    }
    return FN(select)(lane < (BITS)(num_classes - c), FN(load)(x + c), FN(splat)(-(REAL)INFINITY));
}

/* The sum of e_c but where it is 1, as softmax_of_columns adds the few classes of a last chunk. */
static REAL FN(sum_of_few)(const REAL* e, int num_classes) {
    REAL sum = 0;
    for (int c = 0; c < num_classes; ++c) {
        sum += e[c] == 1 ? 0 : e[c];
    }
    return sum;
}

/* The e_c of a voxel; returns their tail. It prefetches the lines from `ahead` on meanwhile. */
static inline REAL FN(exponentials_of_voxel)(const REAL* x, int num_classes, REAL max, const char* ahead, REAL* e) {
    VEC others = {0};
    MASK minus_equals = {0};
    for (int c = 0; c < num_classes; c += WIDTH) {
        __builtin_prefetch(ahead + c * (int)sizeof(REAL), 0, 2);
        const VEC e_c = FN(exp_nonpositive)(FN(load_classes)(x, c, num_classes) - max);
        const MASK is_largest = e_c == 1;
        others += FN(only)(~is_largest, e_c);
        minus_equals += is_largest;
        FN(store)(e + c, e_c);
    }
    const REAL num_largest = FN(sum_of_vector)(__builtin_convertvector(-minus_equals, VEC));
    const REAL sum = num_classes <= FN(few_classes) ? FN(sum_of_few)(e, num_classes) : FN(sum_of_vector)(others);
    return sum + (num_largest - 1);
}

/* As softmax_of_chunk, of the voxels from `first` on. With `keep` the e_c are [voxel][CLASS_CHUNK]. */
static void FN(softmax_of_voxels)(VOXELS* v, int first, int64_t first_class, int num_classes, int keep, REAL lowest,
                                  REAL* max, REAL* tail) {
    const struct plane classes = FN(plane_of_classes)(v, v->input.tensor, first_class);
    const int count = smaller(v->block.count - first, FN(voxel_tile));
    const int64_t next = num_classes < CLASS_CHUNK ? FN(voxel_tile) * classes.stride_voxel : CLASS_CHUNK;
    ALIGNED REAL buffer[FN(voxel_tile)][CLASS_CHUNK];
    const REAL* x[FN(voxel_tile)];
    for (int j = 0; j < count; ++j) {
        VEC largest = FN(splat)(lowest);
        x[j] = FN(read_voxel)(v, &classes, first + j, num_classes, buffer[j]);
        for (int c = 0; c < num_classes; c += WIDTH) {
            largest = FN(larger)(FN(load_classes)(x[j], c, num_classes), largest);
        }
        max[first + j] = FN(largest_of_vector)(largest);
    }
    for (int j = 0; j < count; ++j) {
        const int i = first + j;
        const char* ahead =
            (const char*)classes.data + (i * classes.stride_voxel + next) * segloss_dtype_size(v->input.tensor->dtype);
        REAL* e = v->activations.values + (keep ? i * CLASS_CHUNK : 0);
        tail[i] = FN(exponentials_of_voxel)(x[j], num_classes, max[i], ahead, e);
        const int64_t label = v->label[i] - first_class;
        if (v->label[i] >= 0 && label >= 0 && label < num_classes) {
            v->label_x[i] = x[j][label];
        }
    }
}

/* As find_softmax. */
static void FN(find_softmax_by_voxel)(VOXELS* v, const struct segloss_cross_entropy* a, int keep) {
    const int is_one_chunk = a->num_classes <= CLASS_CHUNK;
    ALIGNED double tail[SEGLOSS_BLOCK];
    ALIGNED REAL chunk_max[SEGLOSS_BLOCK] = {0}, chunk_tail[SEGLOSS_BLOCK] = {0};
    v->activations.first_class = keep && is_one_chunk ? 0 : -1;
    memset(v->label_x, 0, sizeof v->label_x);
    FN(start_joining)(v, tail);
    for (int first = 0; first < v->block.count; first += FN(voxel_tile)) {
        if (is_one_chunk) {
            FN(softmax_of_voxels)(v, first, 0, (int)a->num_classes, keep, -(REAL)INFINITY, v->max, v->tail);
            continue;
        }
        for (int64_t class = 0; class < a->num_classes; class += CLASS_CHUNK) {
            const int n = FN(chunk_length)(class, a->num_classes);
            FN(softmax_of_voxels)(v, first, class, n, 0, REAL_LOWEST, chunk_max, chunk_tail);
            FN(join_chunk)(v, tail, chunk_max, chunk_tail, first, first + FN(voxel_tile));
        }
    }
    if (!is_one_chunk) {
        FN(finish_joining)(v);
    }
    FN(clear_unused)(v->max, &v->block, 1);
    FN(clear_unused)(v->tail, &v->block, 1);
}

/* Copies the gradients of some voxels, [voxel][class], from v->input to the tensor; `to` is the place of the first one.
 */
static void FN(finish_voxels)(VOXELS* v, const struct segloss_tensor* t, const struct plane* to, int num_classes,
                              int count, int stream) {
    assert(t->dtype <= SEGLOSS_BFLOAT16);
    const int num_values = num_classes * count;
    const int64_t bytes = num_values * segloss_dtype_size(t->dtype);
    const int in_one_piece = to->stride_class == 1 && to->stride_voxel == num_classes;
    if (!stream || !in_one_piece || bytes % (int64_t)sizeof(VEC) != 0 || (uintptr_t)to->data % sizeof(VEC) != 0) {
        /* copies go along the second dimension, so the voxels are their classes and the classes their voxels */
        const struct plane from = {v->input.values, num_classes, 1},
                           swapped = {to->data, to->stride_voxel, to->stride_class};
        FN(writers)[t->dtype](&swapped, &from, count, num_classes);
        return;
    }
    const REAL* values = v->input.values;
    if (t->dtype != REAL_DTYPE) {
        assert(segloss_dtype_size(t->dtype) <= (int64_t)sizeof(REAL) / 2);
        const struct plane from = {v->input.values, 0, 1};
        const struct plane staged = {v->input.values + FN(grad_tile) * FN(grad_classes), 0, 1};
        FN(writers)[t->dtype](&staged, &from, 1, num_values);
        values = staged.data;
    }
    for (int64_t k = 0; k < bytes; k += (int64_t)sizeof(VEC)) {
        FN(stream)((REAL*)((char*)to->data + k), FN(load)((const REAL*)((const char*)values + k)));
    }
}
