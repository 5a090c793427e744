/* Logits at another size, a row at a time, and the gradient's way back. The rows around a row of the result are blended
 * first, while they are short; then the columns are expanded, WIDTH at a time, by permuting the few values that they
 * come from. */

#define COLUMNS struct FN(columns)

static inline VEC FN(permute)(VEC x, MASK from) {
#ifdef PERMUTE
    return PERMUTE(x, from);
#else
    VEC y = {0};
    for (int k = 0; k < WIDTH; ++k) {
        y[k] = x[from[k]];
    }
    return y;
#endif
}

#ifdef PERMUTE
enum { FN(can_permute) = 1 };
#else
enum { FN(can_permute) = 0 };
#endif

/* An enlargement by 2, or by 4 in float: columns with the same number modulo `count`, a phase, have the same weights.
 * In the first half of the phases `low` is the value before the column's own, in the second half its own. */
enum { FN(most_phases) = 16 / sizeof(REAL) }; /* so many columns lie in 16 bytes */

struct FN(phases) {
    MASK own, ahead, behind; /* where sort_phases puts the phase of each value, of the next one, of the one before */
    REAL low_weight[FN(most_phases)], high_weight[FN(most_phases)];
    int count; /* 0: it is another enlargement */
};

/* Makes vectors of one phase each of vectors of consecutive columns. Values are in another order then. */
static inline __attribute__((always_inline)) void FN(sort_phases)(VEC* g, int count) {
    VEC sorted[FN(most_phases)];
    const int half = count < FN(most_phases) ? count / 2 : FN(most_phases) / 2; /* so that compilers see the bounds */
    for (int step = 1; step < count; step *= 2) {
        for (int k = 0; k < half; ++k) {
            sorted[k] = FN(evens)(g[2 * k], g[2 * k + 1]);
            sorted[half + k] = FN(odds)(g[2 * k], g[2 * k + 1]);
        }
        for (int k = 0; k < 2 * half; ++k) {
            g[k] = sorted[k];
        }
    }
}

/* How a vector of columns comes from a vector of values, x[start + lane]. The way back sums the runs of lanes with the
 * same `low`, by steps of 1, 2, 4, ... lanes, and moves the first lane of each run to its place. */
COLUMNS {
    VEC low_weight, high_weight; /* 0 past the last column */
    MASK low, high;              /* relative to `start` */
    VEC low_share, high_share;   /* of the gradient: that of a single value goes to `low` alone */
    MASK first_of_low, first_of_high, has_low,
        has_high;     /* by place: the run's first lane, and whether there is a run */
    MASK same_run[4]; /* for each step, whether the lane ahead is of the same run */
    int num_steps;
    int count; /* of columns */
    int32_t start;
    int is_permutation; /* all values lie in one vector; the fields above are for these only */
};

/* Finds the runs of lanes with the same `low`. */
static void FN(plan_runs)(COLUMNS* v) {
    for (int step = 1, s = 0; step < WIDTH; step *= 2, ++s) {
        for (int k = 0; k + step < WIDTH; ++k) {
            const int is_same = k + step < v->count && v->low[k + step] == v->low[k];
            v->same_run[s][k] = -is_same;
            v->num_steps = is_same ? s + 1 : v->num_steps;
        }
    }
    for (int k = v->count - 1; k >= 0; --k) {
        const int place = (int)v->low[k];
        v->first_of_low[place] = k;
        v->has_low[place] = -1;
        if (place + 1 < WIDTH) {
            v->first_of_high[place + 1] = k;
            v->has_high[place + 1] = -1;
        }
    }
}

/* The plan of the columns from `first` on. */
static COLUMNS FN(plan_of)(const struct segloss_axis* axis, int64_t first) {
    const REAL *low_weight = axis->low_weight, *high_weight = axis->high_weight;
    COLUMNS v;
    memset(&v, 0, sizeof v);
    v.count = smaller(axis->size - first, WIDTH);
    v.start = axis->low[first];
    v.is_permutation = FN(can_permute) && axis->high[first + v.count - 1] - v.start < WIDTH;
    if (!v.is_permutation) {
        return v;
    }
    for (int k = 0; k < v.count; ++k) {
        const int64_t i = first + k;
        const int is_single = axis->low[i] == axis->high[i];
        v.low[k] = axis->low[i] - v.start;
        v.high[k] = axis->high[i] - v.start;
        v.low_weight[k] = low_weight[i];
        v.high_weight[k] = high_weight[i];
        v.low_share[k] = is_single ? 1 : low_weight[i];
        v.high_share[k] = is_single ? 0 : high_weight[i];
    }
    FN(plan_runs)(&v);
    return v;
}

static void FN(find_order)(struct FN(phases) * phases) {
    VEC column[FN(most_phases)];
    for (int k = 0; k < phases->count * WIDTH; ++k) {
        column[k / WIDTH][k % WIDTH] = (REAL)k;
    }
    FN(sort_phases)(column, phases->count);
    for (int lane = 0; phases->count > 0 && lane < WIDTH; ++lane) {
        const int value = (int)column[0][lane] / phases->count;
        phases->own[value] = lane;
        phases->ahead[(value + WIDTH - 1) % WIDTH] = lane;
        phases->behind[(value + 1) % WIDTH] = lane;
    }
}

static struct FN(phases) FN(phases_of)(const struct segloss_axis* axis) {
    const REAL *low_weight = axis->low_weight, *high_weight = axis->high_weight;
    const int64_t from = axis->size_from, count = axis->size / from;
    struct FN(phases) phases;
    memset(&phases, 0, sizeof phases);
    const int is_known = FN(can_permute) && (count == 2 || count == FN(most_phases));
    phases.count = is_known && count * from == axis->size && from >= WIDTH ? (int)count : 0;
    for (int k = 0; k < phases.count; ++k) { /* the second value has neighbours on both sides */
        phases.low_weight[k] = low_weight[count + k];
        phases.high_weight[k] = high_weight[count + k];
    }
    for (int64_t i = 0; i < phases.count * from; ++i) {
        const int64_t low = (i + count / 2) / count - 1, k = i % count;
        const int is_inner = low >= 0 && low + 1 < from;
        if (axis->low[i] != (low < 0 ? 0 : low) || axis->high[i] - axis->low[i] != is_inner ||
            (is_inner && (low_weight[i] != phases.low_weight[k] || high_weight[i] != phases.high_weight[k]))) {
            phases.count = 0;
        }
    }
    FN(find_order)(&phases);
    return phases;
}

/* The phases, then the vectors. */
struct FN(plan) {
    ALIGNED struct FN(phases) phases;
    COLUMNS vectors[];
};

static int64_t FN(resize_plan)(const struct segloss_axis* columns, void* to) {
    const int64_t num_vectors = (columns->size + WIDTH - 1) / WIDTH;
    struct FN(plan)* plan = to;
    if (plan) {
        plan->phases = FN(phases_of)(columns);
    }
    for (int64_t k = 0; plan && k < num_vectors; ++k) {
        plan->vectors[k] = FN(plan_of)(columns, k * WIDTH);
    }
    return (int64_t)sizeof *plan + num_vectors * (int64_t)sizeof(COLUMNS);
}

/* ---- the rows that a row comes from ---- */

enum { FN(most_rows) = 4 };

/* Some columns of these rows, and their weights. */
struct FN(source) {
    int num_rows;
    int64_t offset[FN(most_rows)]; /* of the first of the columns, in elements */
    REAL weight[FN(most_rows)];
    int64_t first; /* column */
    int count;     /* of columns */
};

static struct FN(source) FN(source_of)(const struct segloss_resize* a, const struct segloss_tensor* t, int64_t plane,
                                       int64_t row, int64_t begin, int64_t end) {
    const struct segloss_axis *planes = &a->axes[SEGLOSS_PLANES], *rows = &a->axes[SEGLOSS_ROWS];
    const struct segloss_axis* columns = &a->axes[SEGLOSS_COLUMNS];
    struct FN(source) s = {.first = columns->low[begin]};
    s.count = (int)(columns->high[end - 1] - s.first + 1);
    const int num_planes = 1 + (planes->high[plane] != planes->low[plane]);
    const int num_rows = 1 + (rows->high[row] != rows->low[row]);
    for (int p = 0; p < num_planes; ++p) {
        const REAL of_plane = ((const REAL*)(p ? planes->high_weight : planes->low_weight))[plane];
        const int64_t from_plane = planes->low[plane] + p;
        for (int r = 0; r < num_rows; ++r) {
            const REAL of_row = ((const REAL*)(r ? rows->high_weight : rows->low_weight))[row];
            s.weight[s.num_rows] = (num_planes == 1 ? 1 : of_plane) * (num_rows == 1 ? 1 : of_row);
            s.offset[s.num_rows++] = from_plane * t->strides[SEGLOSS_PLANES] +
                                     (rows->low[row] + r) * t->strides[SEGLOSS_ROWS] +
                                     s.first * t->strides[SEGLOSS_COLUMNS];
        }
    }
    return s;
}

/* Classes of the workspace lie so far apart; a vector from the last column on is within the row. */
static int64_t FN(row_stride)(const struct segloss_resize* a) { return a->axes[SEGLOSS_COLUMNS].size_from + 32; }

static inline __attribute__((always_inline)) void FN(blend_vector)(const REAL* const* rows, const REAL* weight,
                                                                   int num_rows, int64_t j, REAL* to) {
    VEC sum = weight[0] * FN(load)(rows[0] + j);
    for (int r = 1; r < num_rows; ++r) {
        sum += weight[r] * FN(load)(rows[r] + j);
    }
    FN(store)(to + j, sum);
}

/* The weighted sum of rows of one class. The last vector covers some columns again. */
static inline __attribute__((always_inline)) void FN(blend_class)(const REAL* const* rows, const REAL* weight,
                                                                  int num_rows, int count, REAL* to) {
    for (int j = 0; j + WIDTH <= count; j += WIDTH) {
        FN(blend_vector)(rows, weight, num_rows, j, to);
    }
    if (count >= WIDTH) {
        FN(blend_vector)(rows, weight, num_rows, count - WIDTH, to);
        return;
    }
    for (int j = 0; j < count; ++j) {
        REAL sum = 0;
        for (int r = 0; r < num_rows; ++r) {
            sum += weight[r] * rows[r][j];
        }
        to[j] = sum;
    }
}

/* Copies the rows to the workspace, after the blended ones, if they are of another dtype, or their columns not
 * contiguous. Returns the distance of classes; rows[r] is the first class of row r. */
static int64_t FN(find_rows)(const struct segloss_resize* a, const struct FN(source) * s, const REAL** rows) {
    const struct segloss_tensor* t = &a->from;
    const int64_t stride = FN(row_stride)(a);
    const int in_place = t->dtype == REAL_DTYPE && (t->strides[SEGLOSS_COLUMNS] == 1 || s->count == 1);
    for (int r = 0; r < s->num_rows; ++r) {
        const struct plane from = {(char*)t->data + s->offset[r] * segloss_dtype_size(t->dtype), t->stride_class,
                                   t->strides[SEGLOSS_COLUMNS]};
        const struct plane to = {(REAL*)a->workspace + (r + 1) * a->num_classes * stride, stride, 1};
        if (!in_place) {
            FN(readers)[t->dtype](&to, &from, a->num_classes, s->count);
        }
        rows[r] = in_place ? from.data : to.data;
    }
    return in_place ? t->stride_class : stride;
}

static void FN(blend_rows)(const struct segloss_resize* a, const struct FN(source) * s) {
    const REAL* rows[FN(most_rows)];
    const int64_t class_stride = FN(find_rows)(a, s, rows);
    REAL* to = a->workspace;
    for (int64_t c = 0; c < a->num_classes; ++c, to += FN(row_stride)(a)) {
        if (s->num_rows == 1) {
            FN(blend_class)(rows, s->weight, 1, s->count, to);
        } else if (s->num_rows == 2) {
            FN(blend_class)(rows, s->weight, 2, s->count, to);
        } else if (s->num_rows == FN(most_rows)) {
            FN(blend_class)(rows, s->weight, FN(most_rows), s->count, to);
        }
        for (int r = 0; r < s->num_rows; ++r) {
            rows[r] += class_stride;
        }
    }
}

/* ---- columns ---- */

/* `from` holds the values from column `first` on; only values that the columns need. */
static void FN(expand_one_by_one)(const struct segloss_resize* a, const REAL* from, int64_t first, int64_t begin,
                                  int64_t end, REAL* to, int64_t stride) {
    const struct segloss_axis* axis = &a->axes[SEGLOSS_COLUMNS];
    const REAL *low_weight = axis->low_weight, *high_weight = axis->high_weight;
    for (int64_t c = 0; c < a->num_classes; ++c, from += FN(row_stride)(a), to += stride) {
        for (int64_t i = begin; i < end; ++i) {
            to[i - begin] = low_weight[i] * from[axis->low[i] - first] + high_weight[i] * from[axis->high[i] - first];
        }
    }
}

static void FN(expand_vector)(const struct segloss_resize* a, const COLUMNS* v, const REAL* from, REAL* to,
                              int64_t stride) {
    const int64_t from_stride = FN(row_stride)(a);
    const MASK low = v->low, high = v->high;
    const VEC low_weight = v->low_weight, high_weight = v->high_weight;
    for (int64_t c = 0; c < a->num_classes; ++c) {
        const VEC x = FN(load)(from + c * from_stride);
        FN(store)(to + c * stride, low_weight * FN(permute)(x, low) + high_weight * FN(permute)(x, high));
    }
}

static void FN(resize_classes)(const struct segloss_resize* a, const struct FN(source) * s, int64_t begin, int64_t end,
                               REAL* to, int64_t stride) {
    const struct FN(plan)* plan = a->plan;
    FN(blend_rows)(a, s);
    for (int64_t i = begin; i < end; i += WIDTH) {
        const COLUMNS* v = plan->vectors + i / WIDTH;
        REAL* to_column = to + (i - begin);
        if (v->is_permutation) {
            FN(expand_vector)(a, v, (const REAL*)a->workspace + (v->start - s->first), to_column, stride);
        } else {
            FN(expand_one_by_one)(a, a->workspace, s->first, i, i + smaller(end - i, WIDTH), to_column, stride);
        }
    }
}

/* The arguments of SEGLOSS_RESIZED_CLASSES classes from `first` on: their rows stay in the L1 cache. */
static struct segloss_resize FN(some_classes)(const struct segloss_resize* a, int64_t first) {
    struct segloss_resize some = *a;
    some.num_classes = smaller(a->num_classes - first, SEGLOSS_RESIZED_CLASSES);
    for (int k = 0; k < 2; ++k) {
        struct segloss_tensor* t = k == 0 ? &some.from : &some.grad;
        t->data = t->data ? (char*)t->data + first * t->stride_class * segloss_dtype_size(t->dtype) : NULL;
    }
    return some;
}

static void FN(resize_row)(const struct segloss_resize* a, int64_t plane, int64_t row, int64_t begin, int64_t end,
                           void* to, int64_t stride) {
    const struct FN(source) s = FN(source_of)(a, &a->from, plane, row, begin, end);
    for (int64_t first = 0; first < a->num_classes; first += SEGLOSS_RESIZED_CLASSES) {
        const struct segloss_resize some = FN(some_classes)(a, first);
        FN(resize_classes)(&some, &s, begin, end, (REAL*)to + first * stride, stride);
    }
}

/* ---- gradient ---- */

static void FN(contract_one_by_one)(const struct segloss_resize* a, const REAL* from, int64_t stride, int64_t begin,
                                    int64_t end, REAL* to, int64_t first) {
    const struct segloss_axis* axis = &a->axes[SEGLOSS_COLUMNS];
    const REAL *low_weight = axis->low_weight, *high_weight = axis->high_weight;
    for (int64_t c = 0; c < a->num_classes; ++c, from += stride, to += FN(row_stride)(a)) {
        for (int64_t i = begin; i < end; ++i) {
            to[axis->low[i] - first] += low_weight[i] * from[i - begin];
            to[axis->high[i] - first] += high_weight[i] * from[i - begin];
        }
    }
}

static inline __attribute__((always_inline)) void FN(contract_steps)(const struct segloss_resize* a, const COLUMNS* v,
                                                                     int num_steps, const REAL* from, int64_t stride,
                                                                     REAL* to) {
    const int64_t to_stride = FN(row_stride)(a);
    MASK lane = {0}, ahead[4];
    for (int k = 0; k < WIDTH; ++k) {
        lane[k] = k;
    }
    for (int s = 0; s < 4; ++s) {
        ahead[s] = (lane + (1 << s)) & (WIDTH - 1);
    }
    for (int64_t c = 0; c < a->num_classes; ++c) {
        const VEC g = FN(load)(from + c * stride); /* lanes past the end are of no run */
        VEC low = v->low_share * g, high = v->high_share * g;
        for (int s = 0; s < num_steps; ++s) {
            low += FN(only)(v->same_run[s], FN(permute)(low, ahead[s]));
            high += FN(only)(v->same_run[s], FN(permute)(high, ahead[s]));
        }
        const VEC sum = FN(only)(v->has_low, FN(permute)(low, v->first_of_low)) +
                        FN(only)(v->has_high, FN(permute)(high, v->first_of_high));
        FN(store)(to + c * to_stride, FN(load)(to + c * to_stride) + sum);
    }
}

static void FN(contract_vector)(const struct segloss_resize* a, const COLUMNS* v, const REAL* from, int64_t stride,
                                REAL* to) {
    switch (v->num_steps) {
    case 0:
        FN(contract_steps)(a, v, 0, from, stride, to);
        break;
    case 1:
        FN(contract_steps)(a, v, 1, from, stride, to);
        break;
    case 2:
        FN(contract_steps)(a, v, 2, from, stride, to);
        break;
    case 3:
        FN(contract_steps)(a, v, 3, from, stride, to);
        break;
    default:
        FN(contract_steps)(a, v, 4, from, stride, to);
    }
}

/* Adds WIDTH values' parts of a group of columns; those of the values before and after the group's own are added at the
 * offsets `before` and `after`. */
static inline __attribute__((always_inline)) void FN(contract_phases)(const struct segloss_resize* a,
                                                                      const struct FN(phases) * phases, int count,
                                                                      const REAL* from, int64_t stride, REAL* to,
                                                                      int before, int after) {
    const int64_t to_stride = FN(row_stride)(a);
    const MASK own = phases->own, ahead = phases->ahead, behind = phases->behind;
    MASK lane = {0};
    for (int k = 0; k < WIDTH; ++k) {
        lane[k] = k;
    }
    for (int64_t c = 0; c < a->num_classes; ++c, from += stride, to += to_stride) {
        VEC g[FN(most_phases)], of_earlier = {0}, of_own = {0}, of_later = {0};
        for (int k = 0; k < count; ++k) {
            g[k] = FN(load)(from + k * WIDTH);
        }
        FN(sort_phases)(g, count);
        for (int k = 0; k < count / 2; ++k) {
            const int l = count / 2 + k;
            of_earlier += phases->low_weight[k] * g[k];
            of_own += phases->high_weight[k] * g[k] + phases->low_weight[l] * g[l];
            of_later += phases->high_weight[l] * g[l];
        }
        const VEC sum = FN(permute)(of_own, own) + FN(only)(lane < WIDTH - 1, FN(permute)(of_earlier, ahead)) +
                        FN(only)(lane > 0, FN(permute)(of_later, behind));
        FN(store)(to, FN(load)(to) + sum);
        to[before] += of_earlier[0]; /* the first and the last value keep their lanes */
        to[after] += of_later[WIDTH - 1];
    }
}

/* Adds the parts of the groups of columns from `begin` on; returns the first column that is left. */
static int64_t FN(contract_groups)(const struct segloss_resize* a, const struct FN(phases) * phases, const REAL* from,
                                   int64_t stride, int64_t begin, int64_t end, REAL* to, int64_t first) {
    const int count = phases->count;
    int64_t i = begin;
    for (; count > 0 && i + count * WIDTH <= end; i += count * WIDTH) {
        const int64_t value = i / count;
        const int before = value > 0 ? -1 : 0;
        const int after = value + WIDTH < a->axes[SEGLOSS_COLUMNS].size_from ? WIDTH : WIDTH - 1;
        const REAL* group = from + (i - begin);
        REAL* own = to + (value - first);
        if (count == 2) {
            FN(contract_phases)(a, phases, 2, group, stride, own, before, after);
        } else {
            FN(contract_phases)(a, phases, FN(most_phases), group, stride, own, before, after);
        }
    }
    return i;
}

/* Adds the gradient of some columns of blended rows to each of these rows. */
static void FN(spread_rows)(const struct segloss_resize* a, const struct FN(source) * s, const REAL* from) {
    for (int64_t c = 0; c < a->num_classes; ++c, from += FN(row_stride)(a)) {
        for (int r = 0; r < s->num_rows; ++r) {
            REAL* to = (REAL*)a->grad.data + c * a->grad.stride_class + s->offset[r];
            const REAL weight = s->weight[r];
            int j = 0;
            for (; j + WIDTH <= s->count; j += WIDTH) {
                FN(store)(to + j, FN(load)(to + j) + weight * FN(load)(from + j));
            }
            for (; j < s->count; ++j) {
                to[j] += weight * from[j];
            }
        }
    }
}

static void FN(classes_grad)(const struct segloss_resize* a, const struct FN(source) * s, int64_t begin, int64_t end,
                             const REAL* from, int64_t stride) {
    const struct FN(plan)* plan = a->plan;
    REAL* sums = a->workspace;
    for (int64_t c = 0; c < a->num_classes; ++c) {
        memset(sums + c * FN(row_stride)(a), 0, (size_t)(s->count + WIDTH) * sizeof *sums);
    }
    const int64_t left = FN(contract_groups)(a, &plan->phases, from, stride, begin, end, sums, s->first);
    for (int64_t i = left; i < end; i += WIDTH) {
        const COLUMNS* v = plan->vectors + i / WIDTH;
        const REAL* from_column = from + (i - begin);
        if (v->is_permutation) {
            FN(contract_vector)(a, v, from_column, stride, sums + (v->start - s->first));
        } else {
            FN(contract_one_by_one)(a, from_column, stride, i, i + smaller(end - i, WIDTH), sums, s->first);
        }
    }
    FN(spread_rows)(a, s, sums);
}

static void FN(resize_row_grad)(const struct segloss_resize* a, int64_t plane, int64_t row, int64_t begin, int64_t end,
                                const void* from, int64_t stride) {
    const struct FN(source) s = FN(source_of)(a, &a->grad, plane, row, begin, end);
    for (int64_t first = 0; first < a->num_classes; first += SEGLOSS_RESIZED_CLASSES) {
        const struct segloss_resize some = FN(some_classes)(a, first);
        FN(classes_grad)(&some, &s, begin, end, (const REAL*)from + first * stride, stride);
    }
}
