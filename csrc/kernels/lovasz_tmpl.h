/* The Lovasz extension of the Jaccard loss: the errors of a block, their order, and the gradient; see kernels.h. */

#define SIGN_BIT ((UBITS)1 << (8 * sizeof(REAL) - 1))

/* ---- errors ---- */

/* How the errors of a class come from its values; constant in the loops that are compiled for it. */
enum FN(lovasz_kind) { FN(of_softmax), FN(of_probabilities), FN(of_hinge) };

static enum FN(lovasz_kind) FN(lovasz_kind_of)(const struct segloss_lovasz* z) {
    return z->hinge ? FN(of_hinge) : z->activation == SEGLOSS_SOFTMAX ? FN(of_softmax) : FN(of_probabilities);
}

/* Errors of lanes whose value is x, or e_c of a softmax. That of a label, 1 - p, keeps the digits of a confident voxel.
 */
static inline __attribute__((always_inline)) VEC FN(error_at)(const VOXELS* v, VEC x, MASK is_one, int i,
                                                              enum FN(lovasz_kind) kind) {
    if (kind == FN(of_hinge)) {
        return 1 + FN(negated_where)(is_one, x);
    }
    if (kind == FN(of_probabilities)) {
        return FN(select)(is_one, 1 - x, x);
    }
    return FN(select)(is_one, FN(load)(v->tail + i) + (1 - x), x) * FN(load)(v->share + i);
}

/* Where the target of the class is 1, in voxels that count. */
static inline __attribute__((always_inline)) MASK FN(is_counted_one)(const BINARY_CLASS* class, const VOXELS* v,
                                                                     MASK counts, int i) {
    return counts & FN(is_one)(class, v, i);
}

static inline __attribute__((always_inline)) void FN(write_class_errors)(const BINARY_CLASS* class, const VOXELS* v,
                                                                         const REAL* x, enum FN(lovasz_kind) kind,
                                                                         ROWS out, int c) {
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const MASK counts = FN(load)(v->weight + i) != 0;
        const MASK is_one = FN(is_counted_one)(class, v, counts, i);
        const VEC error = FN(error_at)(v, FN(load)(x + i), is_one, i, kind);
        const VEC positive = FN(only)(counts & ~(error <= 0), FN(magnitude)(error)); /* nan stays nan */
        FN(put)(out, c * out.stride + i, FN(negated_where)(is_one, positive));
    }
}

static void FN(write_chunk_errors)(const struct segloss_lovasz* z, VOXELS* v, enum FN(lovasz_kind) kind, int64_t first,
                                   int n) {
    const struct segloss_cross_entropy* a = &z->voxels;
    const REAL* x = kind == FN(of_softmax) ? FN(exponentials)(v, first, n) : FN(read_input)(v, first, n);
    const ROWS out = FN(output_of_chunk)(v, &z->slopes, first, a->stream_grad);
    for (int c = 0; c < n; ++c) {
        const BINARY_CLASS class = FN(binary_class_of)(a, v, first, n, c);
        const REAL* row = x + c * ROW_LANES;
        if (kind == FN(of_softmax)) {
            FN(write_class_errors)(&class, v, row, FN(of_softmax), out, c);
        } else if (kind == FN(of_hinge)) {
            FN(write_class_errors)(&class, v, row, FN(of_hinge), out, c);
        } else {
            FN(write_class_errors)(&class, v, row, FN(of_probabilities), out, c);
        }
    }
    FN(finish_output)(v, out, &z->slopes, first, n, a->stream_grad);
}

static void FN(assert_lovasz)(const struct segloss_lovasz* z, int64_t begin, int64_t end) {
    assert_range(&z->voxels.positions, begin, end);
    assert(z->voxels.num_classes == 0 || (z->voxels.target.data && z->slopes.data));
    assert(z->activation != SEGLOSS_SIGMOID && (!z->hinge || z->activation == SEGLOSS_IDENTITY));
    assert(z->voxels.target_kind == SEGLOSS_LABELS || (z->hinge && z->voxels.target_kind == SEGLOSS_MASKS));
    (void)z;
    (void)begin;
    (void)end;
}

/* Prepares the softmax, if there is one. */
static void FN(prepare_lovasz)(const struct segloss_lovasz* z, VOXELS* v) {
    if (z->activation == SEGLOSS_SOFTMAX) {
        FN(find_softmax)(v, &z->voxels, 1);
        FN(find_share)(v);
    }
}

static int64_t FN(lovasz_forward)(const struct segloss_lovasz* z, int64_t begin, int64_t end) {
    FN(assert_lovasz)(z, begin, end);
    const enum FN(lovasz_kind) kind = FN(lovasz_kind_of)(z);
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_block)(&v, &z->voxels, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        FN(prepare_lovasz)(z, &v);
        for (int64_t first = 0; first < z->voxels.num_classes; first += CLASS_CHUNK) {
            FN(write_chunk_errors)(z, &v, kind, first, FN(chunk_length)(first, z->voxels.num_classes));
        }
    }
    FN(end_streams)();
    return -1;
}

/* ---- order ---- */

static inline UBITS FN(bits_of_error)(REAL error) {
    UBITS bits;
    memcpy(&bits, &error, sizeof bits);
    return bits;
}

/* Keys grow with the errors; every nan has the one after that of inf. */
static inline UBITS FN(key_of_error)(UBITS bits) {
    const UBITS key_of_nan = FN(bits_of_error)((REAL)INFINITY) + 1, key = bits & ~SIGN_BIT;
    return key < key_of_nan ? key : key_of_nan;
}

static inline REAL FN(error_of_key)(UBITS key) {
    REAL error;
    memcpy(&error, &key, sizeof error);
    return error;
}

static void FN(lovasz_extent)(const void* errors, int64_t begin, int64_t end, struct segloss_lovasz_extent* extent) {
    const REAL* error = errors;
    int64_t num_ones = 0;
    UBITS largest = 0, least = (UBITS)-1;
    for (int64_t p = begin; p < end; ++p) {
        const UBITS bits = FN(bits_of_error)(error[p]), key = FN(key_of_error)(bits);
        const UBITS is_one = bits >> (8 * sizeof bits - 1), of_one = key | (is_one - 1);
        largest = key > largest ? key : largest;
        least = of_one < least ? of_one : least;
        num_ones += (int64_t)is_one;
    }
    *extent = (struct segloss_lovasz_extent){num_ones, largest, num_ones > 0 ? least : UINT64_MAX};
}

/* The slopes of `count` errors whose order begins with number `first`, and what they add to the loss. `ones` says how
 * many with g = 1 come before each, and `is_one` its g. */
static void FN(find_slopes)(double num_ones, double first, const double* restrict ones, const int64_t* restrict is_one,
                            const double* restrict error, int count, REAL* restrict slope, double* restrict loss) {
    for (int i = 0; i < count; ++i) {
        const double both = num_ones + (first + i - ones[i]); /* G + B */
        const double above = is_one[i] ? 1 : num_ones - ones[i];
        const double below = is_one[i] ? both : both * (both + 1);
        const double size = both == 0 ? 1 : above / below;
        slope[i] = (REAL)(is_one[i] ? -size : size);
        loss[i] = size == 0 ? 0 : error[i] * size;
    }
}

#define ITEM struct segloss_lovasz_item
#define IN(name) FN(name##_wide)
#define MAKE_ITEM(rank, is_one, position) ((ITEM){(uint64_t)(rank) | (uint64_t)(is_one) << 63, position})
#define RANK(item) ((item).rank & UINT64_MAX >> 1)
#define IS_ONE(item) ((item).rank >> 63)
#define POSITION(item) ((item).position)
#include "lovasz_order_tmpl.h"

#if !REAL_IS_DOUBLE
#define ITEM uint64_t
#define IN(name) FN(name##_narrow)
#define MAKE_ITEM(rank, is_one, position) ((rank) | (uint64_t)(is_one) << 31 | (position) << 32)
#define RANK(item) ((item) & INT32_MAX)
#define IS_ONE(item) ((item) >> 31 & 1)
#define POSITION(item) ((item) >> 32)
#include "lovasz_order_tmpl.h"
#endif

static void FN(lovasz_count)(const struct segloss_lovasz_order* o, const void* items, int64_t begin, int64_t end,
                             int64_t* counts) {
#if !REAL_IS_DOUBLE
    if (!o->is_wide) {
        FN(count_items_narrow)(o, items, begin, end, counts);
        return;
    }
#endif
    FN(count_items_wide)(o, items, begin, end, counts);
}

static void FN(lovasz_move)(const struct segloss_lovasz_order* o, const void* items, int64_t begin, int64_t end,
                            void* to, int64_t* next) {
#if !REAL_IS_DOUBLE
    if (!o->is_wide) {
        FN(move_items_narrow)(o, items, begin, end, to, next);
        return;
    }
#endif
    FN(move_items_wide)(o, items, begin, end, to, next);
}

static int64_t FN(lovasz_ones)(const struct segloss_lovasz_order* o, const void* items, int64_t begin, int64_t end) {
#if !REAL_IS_DOUBLE
    if (!o->is_wide) {
        return FN(count_ones_narrow)(items, begin, end);
    }
#endif
    (void)o;
    return FN(count_ones_wide)(items, begin, end);
}

static double FN(lovasz_slopes)(const struct segloss_lovasz_order* o, const void* items, int64_t begin, int64_t end,
                                int64_t ones_before) {
#if !REAL_IS_DOUBLE
    if (!o->is_wide) {
        return FN(write_slopes_narrow)(o, items, begin, end, ones_before);
    }
#endif
    return FN(write_slopes_wide)(o, items, begin, end, ones_before);
}

/* ---- gradient ----
 *
 * Let h_c be the class's grad_loss times its slope. The gradient is h_c, and that of a softmax p_c (h_c - sum_k p_k
 * h_k) = p_c (h_c - h_y + D) with D = sum_k p_k (h_y - h_k), where nothing cancels: h_y is the only negative one if all
 * grad_loss are positive. */

/* The h_c of a chunk of classes. They take the place of the target, which has been read. */
static const REAL* FN(read_slopes)(const struct segloss_lovasz* z, VOXELS* v, int64_t first, int n) {
    const struct segloss_cross_entropy* a = &z->voxels;
    REAL* rows = v->target.values;
    if (v->target.first_class == first && v->target.tensor == &z->slopes) {
        return rows;
    }
    ALIGNED REAL scale[SEGLOSS_BLOCK];
    v->target.tensor = &z->slopes;
    v->target.first_class = first;
    FN(read_classes)(rows, &z->slopes, &v->block, first, n);
    for (int c = 0; c < n; ++c) {
        FN(read_scale)(a, v, first + c, scale);
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            REAL* row = rows + c * ROW_LANES + i;
            const MASK counts = FN(load)(v->weight + i) != 0;
            FN(store)(row, FN(only)(counts, FN(load)(row) * FN(load)(scale + i)));
        }
    }
    return rows;
}

/* D of each voxel, and h_y. */
static void FN(find_slope_differences)(const struct segloss_lovasz* z, VOXELS* v, REAL* at_label, REAL* difference) {
    const int64_t num_classes = z->voxels.num_classes;
    ALIGNED double sum[SEGLOSS_BLOCK];
    ALIGNED REAL part[SEGLOSS_BLOCK];
    memset(at_label, 0, SEGLOSS_BLOCK * sizeof *at_label);
    for (int64_t first = 0; first < num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, num_classes);
        FN(pick_labels)(FN(read_slopes)(z, v, first, n), first, n, v->label, at_label);
    }
    for (int64_t first = 0; first < num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, num_classes);
        const REAL* e = FN(exponentials)(v, first, n);
        const REAL* h = FN(read_slopes)(z, v, first, n);
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const VEC h_y = FN(load)(at_label + i);
            VEC total = {0};
            for (int c = 0; c < n; ++c) {
                total += FN(load)(e + c * ROW_LANES + i) * (h_y - FN(load)(h + c * ROW_LANES + i));
            }
            FN(store)(part + i, total * FN(load)(v->share + i));
        }
        FN(add_chunk)(difference, sum, part, first, num_classes);
    }
}

static void FN(write_lovasz_grad)(const struct segloss_lovasz* z, VOXELS* v, const REAL* at_label,
                                  const REAL* difference, int64_t first, int n) {
    const struct segloss_cross_entropy* a = &z->voxels;
    const int is_softmax = z->activation == SEGLOSS_SOFTMAX;
    const REAL* e = is_softmax ? FN(exponentials)(v, first, n) : NULL;
    const REAL* h = FN(read_slopes)(z, v, first, n);
    const ROWS grad = FN(output_of_chunk)(v, &a->grad_logits, first, a->stream_grad);
    for (int c = 0; c < n; ++c) {
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            VEC value = FN(load)(h + c * ROW_LANES + i);
            if (is_softmax) {
                const VEC p = FN(load)(e + c * ROW_LANES + i) * FN(load)(v->share + i);
                const VEC slope = value - FN(load)(at_label + i) + FN(load)(difference + i);
                value = FN(only)(FN(load)(v->weight + i) != 0, p * slope);
            }
            FN(put)(grad, c * grad.stride + i, value);
        }
    }
    FN(finish_output)(v, grad, &a->grad_logits, first, n, a->stream_grad);
}

static int64_t FN(lovasz_backward)(const struct segloss_lovasz* z, int64_t begin, int64_t end) {
    FN(assert_lovasz)(z, begin, end);
    assert(z->voxels.num_classes == 0 || (z->voxels.grad_logits.data && z->voxels.grad_loss.data));
    ALIGNED REAL at_label[SEGLOSS_BLOCK], difference[SEGLOSS_BLOCK];
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, &z->voxels, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        if (v.num_active == 0) {
            FN(zero_grad)(&z->voxels, &v.block);
            continue;
        }
        FN(prepare_lovasz)(z, &v);
        if (z->activation == SEGLOSS_SOFTMAX) {
            FN(find_slope_differences)(z, &v, at_label, difference);
        }
        for (int64_t first = 0; first < z->voxels.num_classes; first += CLASS_CHUNK) {
            const int n = FN(chunk_length)(first, z->voxels.num_classes);
            FN(write_lovasz_grad)(z, &v, at_label, difference, first, n);
        }
    }
    FN(end_streams)();
    return -1;
}

#undef SIGN_BIT
