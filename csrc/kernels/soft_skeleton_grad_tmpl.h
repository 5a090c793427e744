/* The gradient of the soft skeleton; see kernels.h and soft_skeleton_tmpl.h.
 *
 * The walk of the forward pass goes on: once all levels have their differences at a plane, these become their
 * gradients, which pass down through dilations and erosions, again plane by plane. Codes say which neighbour was the
 * least or the largest; an element gathers the gradients of those that chose it, in a fixed order. */

/* Which neighbour an erosion chose: itself, or the one that comes so in memory. */
enum FN(eroded_from) {
    FN(from_itself),
    FN(from_before),
    FN(from_above),
    FN(from_left),
    FN(from_right),
    FN(from_below),
    FN(from_after)
};

/* Bits of a code: of the erosion, and of the maxima along a row, of rows and of planes, where 0 is the element itself,
 * 1 the one before and 2 the one after it. */
enum FN(code_bits) { FN(of_erosion), FN(of_row) = 3, FN(of_rows) = 5, FN(of_planes) = 7 };

static void FN(clear_margins)(const struct skeleton_layout* layout, REAL* rows) {
    for (int64_t i = 0; i < layout->length; i += layout->pitch) {
        rows[i - 1] = rows[i + layout->pitch - 2] = 0;
    }
    if (layout->below > 0) {
        memset(rows - 1 - layout->pitch, 0, (size_t)layout->pitch * sizeof *rows);
        memset(rows - 1 + layout->length, 0, (size_t)layout->pitch * sizeof *rows);
    }
}

static void FN(erode_with_codes)(const struct skeleton_layout* layout, const REAL* before, const REAL* x,
                                 const REAL* after, REAL* restrict eroded, BITS* restrict code) {
    const int64_t below = layout->below;
    for (int64_t i = 0; i < layout->length; ++i) {
        REAL least = x[i];
        BITS from = FN(from_itself);
#define TRY(neighbour, its_code)                                                                                       \
    from = (neighbour) < least ? (its_code) : from;                                                                    \
    least = (neighbour) < least ? (neighbour) : least
        TRY(before[i], FN(from_before));
        TRY(x[i - below], FN(from_above));
        TRY(x[i - 1], FN(from_left));
        TRY(x[i + 1], FN(from_right));
        TRY(x[i + below], FN(from_below));
        TRY(after[i], FN(from_after));
#undef TRY
        eroded[i] = least;
        code[i] = from << FN(of_erosion);
    }
    FN(fill_margins)(layout, eroded);
}

/* 1 if `before` is larger than x, 2 if `after` is larger than both, else 0. */
static inline BITS FN(code_of_most)(REAL before, REAL x, REAL after) {
    const BITS code = before > x ? 1 : 0;
    return after > FN(most)(before, x) ? 2 : code;
}

static void FN(widen_with_codes)(const struct skeleton_layout* layout, const REAL* x, REAL* restrict row_max,
                                 REAL* restrict max, BITS* restrict code) {
    const int64_t below = layout->below;
    for (int64_t i = 0; i < layout->length; ++i) {
        code[i] |= FN(code_of_most)(x[i - 1], x[i], x[i + 1]) << FN(of_row);
        row_max[i] = FN(most)(x[i + 1], FN(most)(x[i - 1], x[i]));
    }
    FN(copy_margin_rows)(layout, row_max);
    for (int64_t i = 0; i < layout->length; ++i) {
        const REAL above = row_max[i - below], under = row_max[i + below];
        code[i] |= FN(code_of_most)(above, row_max[i], under) << FN(of_rows);
        max[i] = FN(most)(under, FN(most)(above, row_max[i]));
    }
}

static void FN(find_lost)(const struct skeleton_layout* layout, const REAL* x, const REAL* before, const REAL* max,
                          const REAL* after, REAL* restrict difference, BITS* restrict code) {
    for (int64_t i = 0; i < layout->length; ++i) {
        code[i] |= FN(code_of_most)(before[i], max[i], after[i]) << FN(of_planes);
        difference[i] = FN(lost)(x[i], FN(most)(after[i], FN(most)(before[i], max[i])));
    }
}

/* The planes that are kept, all in one workspace. */
struct FN(skeleton_walk) {
    const struct segloss_soft_skeleton* a;
    struct skeleton_layout layout;
    REAL* workspace;
};

static REAL* FN(ring_plane)(const struct FN(skeleton_walk) * w, int64_t ring, int64_t count, int64_t z) {
    return FN(plane)(&w->layout, w->workspace, ring, count, clamped_plane(w->a, z));
}

static REAL* FN(eroded)(const struct FN(skeleton_walk) * w, int64_t k, int64_t z) {
    return FN(ring_plane)(w, 3 * k, 3, z);
}

static REAL* FN(maxima)(const struct FN(skeleton_walk) * w, int64_t k, int64_t z) {
    return FN(ring_plane)(w, 3 * (w->a->iterations + 2 + k), 3, z);
}

static REAL* FN(grads)(const struct FN(skeleton_walk) * w, int64_t k, int64_t z) {
    return FN(ring_plane)(w, 3 * (2 * w->a->iterations + 3 + k), 3, z);
}

static BITS* FN(codes)(const struct FN(skeleton_walk) * w, int64_t k, int64_t z) {
    const int64_t last = w->a->iterations, ring = 3 * (3 * last + 5) + codes_before(last, k);
    return (BITS*)FN(ring_plane)(w, ring, 2 * (last - k) + 5, z);
}

static REAL* FN(differences)(const struct FN(skeleton_walk) * w, int64_t k, int64_t z) {
    const int64_t last = w->a->iterations;
    const int64_t ring = 3 * (3 * last + 5) + codes_before(last, last + 1) + differences_before(last, k);
    return FN(ring_plane)(w, ring, 2 * (last - k) + 3, z);
}

/* A plane for other values. */
static REAL* FN(other)(const struct FN(skeleton_walk) * w, int64_t which) {
    const int64_t last = w->a->iterations, levels = last + 1;
    const int64_t ring = 3 * (3 * last + 5) + codes_before(last, levels) + differences_before(last, levels);
    return FN(ring_plane)(w, ring + which, 1, 0);
}

/* Replaces the differences d of all levels at plane z by their gradients. Forward, s_k = s + r with s = s_(k-1) and
 * r = d_k - s d_k where that is above 0. */
static void FN(pass_to_differences)(const struct FN(skeleton_walk) * w, int64_t z, REAL* restrict grad) {
    const int64_t last = w->a->iterations, length = w->layout.length;
    const REAL* s = FN(differences)(w, 0, z);
    for (int64_t k = 1; k < last; ++k) {
        const REAL* d = FN(differences)(w, k, z);
        REAL* restrict next = FN(other)(w, SKELETON_SUMS + k);
        for (int64_t i = 0; i < length; ++i) {
            const REAL more = d[i] - s[i] * d[i];
            next[i] = s[i] + (more <= 0 ? 0 : more);
        }
        s = next;
    }
    for (int64_t k = last; k > 0; --k) {
        REAL* restrict d = FN(differences)(w, k, z);
        const REAL* sum = k == 1 ? FN(differences)(w, 0, z) : FN(other)(w, SKELETON_SUMS + k - 1);
        for (int64_t i = 0; i < length; ++i) {
            const REAL of_sum = grad[i] * d[i], of_difference = grad[i] * (1 - sum[i]);
            const int is_more = d[i] - sum[i] * d[i] > 0;
            grad[i] -= is_more ? of_sum : 0;
            d[i] = is_more ? of_difference : 0;
        }
    }
    REAL* restrict d = FN(differences)(w, 0, z);
    for (int64_t i = 0; i < length; ++i) {
        d[i] = d[i] > 0 ? grad[i] : 0;
    }
    for (int64_t k = 0; k <= last; ++k) {
        FN(clear_margins)(&w->layout, FN(differences)(w, k, z));
    }
}

static inline REAL FN(given_if)(BITS code, int bit, BITS is, REAL grad) { return (code >> bit & 3) == is ? grad : 0; }

/* The gradient of an erosion from those of what it lost by its dilation, which goes back along planes, rows and
 * columns. */
static void FN(pass_to_dilated)(const struct skeleton_layout* layout, const REAL* const lost[3],
                                const BITS* const code[3], REAL* restrict of_planes, REAL* restrict of_rows,
                                REAL* restrict grad) {
    const int64_t below = layout->below;
    for (int64_t i = 0; i < layout->length; ++i) {
        const REAL before = FN(given_if)(code[0][i], FN(of_planes), 2, lost[0][i]);
        const REAL itself = FN(given_if)(code[1][i], FN(of_planes), 0, lost[1][i]);
        of_planes[i] = -(before + itself + FN(given_if)(code[2][i], FN(of_planes), 1, lost[2][i]));
    }
    FN(clear_margins)(layout, of_planes);
    const BITS* own = code[1];
    for (int64_t i = 0; i < layout->length; ++i) {
        const REAL above = FN(given_if)(own[i - below], FN(of_rows), 2, of_planes[i - below]);
        const REAL itself = FN(given_if)(own[i], FN(of_rows), 0, of_planes[i]);
        of_rows[i] = above + itself + FN(given_if)(own[i + below], FN(of_rows), 1, of_planes[i + below]);
    }
    FN(clear_margins)(layout, of_rows);
    for (int64_t i = 0; i < layout->length; ++i) {
        const REAL left = FN(given_if)(own[i - 1], FN(of_row), 2, of_rows[i - 1]);
        const REAL itself = FN(given_if)(own[i], FN(of_row), 0, of_rows[i]);
        grad[i] = left + itself + FN(given_if)(own[i + 1], FN(of_row), 1, of_rows[i + 1]);
    }
}

static inline REAL FN(given_by_erosion)(BITS code, BITS is, REAL grad) { return (code & 7) == is ? grad : 0; }

/* Adds the gradient of what was eroded from that of the erosion. */
static void FN(pass_to_eroded)(const struct skeleton_layout* layout, const REAL* const of_erosion[3],
                               const BITS* const code[3], REAL* restrict grad) {
    const int64_t below = layout->below;
    const REAL* g = of_erosion[1];
    const BITS* own = code[1];
    for (int64_t i = 0; i < layout->length; ++i) {
        REAL sum = grad[i] + FN(given_by_erosion)(own[i], FN(from_itself), g[i]);
        sum += FN(given_by_erosion)(code[0][i], FN(from_after), of_erosion[0][i]);
        sum += FN(given_by_erosion)(own[i - below], FN(from_below), g[i - below]);
        sum += FN(given_by_erosion)(own[i - 1], FN(from_right), g[i - 1]);
        sum += FN(given_by_erosion)(own[i + 1], FN(from_left), g[i + 1]);
        sum += FN(given_by_erosion)(own[i + below], FN(from_above), g[i + below]);
        grad[i] = sum + FN(given_by_erosion)(code[2][i], FN(from_before), of_erosion[2][i]);
    }
}

/* Adds the gradient of what was opened. */
static void FN(add_plane)(const struct skeleton_layout* layout, const REAL* from, REAL* restrict to) {
    for (int64_t i = 0; i < layout->length; ++i) {
        to[i] += from[i];
    }
}

/* The gradient by erosion k at plane z, that of the image if k is 0. */
static void FN(find_grads)(const struct FN(skeleton_walk) * w, int64_t k, int64_t z) {
    const int64_t last = w->a->iterations;
    REAL* grad = FN(grads)(w, k, z);
    const REAL *lost[3], *of_erosion[3];
    const BITS *code_below[3], *code[3];
    for (int64_t i = 0; i < 3; ++i) {
        const int is_beyond = z + i - 1 < 0 || z + i - 1 >= w->a->sizes[0];
        const REAL* zeros = FN(other)(w, SKELETON_ZEROS);
        lost[i] = is_beyond || k == 0 ? zeros : FN(differences)(w, k - 1, z + i - 1);
        code_below[i] = FN(codes)(w, k == 0 ? 0 : k - 1, z + i - 1);
        of_erosion[i] = is_beyond || k > last ? zeros : FN(grads)(w, k + 1, z + i - 1);
        code[i] = FN(codes)(w, k > last ? last : k, z + i - 1);
    }
    if (k > 0) {
        FN(pass_to_dilated)(&w->layout, lost, code_below, FN(other)(w, SKELETON_PLANES), FN(other)(w, SKELETON_ROWS),
                            grad);
    } else {
        memset(grad, 0, (size_t)w->layout.length * sizeof *grad);
    }
    if (k <= last) {
        FN(add_plane)(&w->layout, FN(differences)(w, k, z), grad);
        FN(pass_to_eroded)(&w->layout, of_erosion, code, grad);
    }
    FN(clear_margins)(&w->layout, grad);
}

/* All levels up to plane t of the image. */
static void FN(walk_levels)(const struct FN(skeleton_walk) * w, int64_t begin, int64_t end, int64_t t) {
    const struct segloss_soft_skeleton* a = w->a;
    const struct skeleton_layout* layout = &w->layout;
    const int64_t last = a->iterations;
    for (int64_t k = 0; k <= last; ++k) {
        int64_t z = t - k - 1;
        if (is_plane_near(a, z, begin, end, 2 * last + 3 - k)) {
            FN(erode_with_codes)(layout, FN(eroded)(w, k, z - 1), FN(eroded)(w, k, z), FN(eroded)(w, k, z + 1),
                                 FN(eroded)(w, k + 1, z), FN(codes)(w, k, z));
        }
        if (is_plane_near(a, z, begin, end, last + 3)) {
            FN(widen_with_codes)(layout, FN(eroded)(w, k + 1, z), FN(other)(w, SKELETON_ROWS), FN(maxima)(w, k, z),
                                 FN(codes)(w, k, z));
        }
        if (is_plane_near(a, --z, begin, end, last + 2)) {
            FN(find_lost)(layout, FN(eroded)(w, k, z), FN(maxima)(w, k, z - 1), FN(maxima)(w, k, z),
                          FN(maxima)(w, k, z + 1), FN(differences)(w, k, z), FN(codes)(w, k, z));
        }
    }
}

static void FN(soft_skeleton_backward)(const struct segloss_soft_skeleton* a, const void* image,
                                       const void* grad_skeleton, void* grad_image, int64_t begin, int64_t end,
                                       void* workspace) {
    assert_soft_skeleton(a, begin, end);
    const struct FN(skeleton_walk) walk = {a, layout_of_skeleton(a), workspace};
    const struct FN(skeleton_walk)* w = &walk;
    const int64_t last = a->iterations;
    memset(workspace, 0, (size_t)soft_skeleton_workspace(a, 1) * sizeof(REAL));
    for (int64_t t = begin - 2 * last - 4; t < end + 2 * last + 4; ++t) {
        if (is_plane_near(a, t, begin, end, 2 * last + 4)) {
            FN(read_plane)(a, &w->layout, image, t, FN(eroded)(w, 0, t));
        }
        FN(walk_levels)(w, begin, end, t);
        const int64_t z = t - last - 2;
        if (is_plane_near(a, z, begin, end, last + 2)) {
            FN(read_plane)(a, &w->layout, grad_skeleton, z, FN(other)(w, SKELETON_GRAD));
            FN(pass_to_differences)(w, z, FN(other)(w, SKELETON_GRAD));
        }
        for (int64_t k = last + 1; k >= 0; --k) {
            if (is_plane_near(a, z - last - 2 + k, begin, end, k)) {
                FN(find_grads)(w, k, z - last - 2 + k);
            }
        }
        if (is_plane_near(a, z - last - 2, begin, end, 0)) {
            FN(write_plane)(a, &w->layout, FN(grads)(w, 0, z - last - 2), z - last - 2, grad_image);
        }
    }
}
