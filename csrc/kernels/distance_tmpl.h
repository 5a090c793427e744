/* Exact Euclidean distance maps, one axis after the other; see kernels.h. Along a line, the squared distance at i is
 *
 *   min_j f[j] + square[|i - j|]
 *
 * of the squared distances f that the axes before have given, and of those of whole steps. All are in units of the last
 * axis' step: where the steps are equal, the squares are integers, and exact. */

/* What a map holds before the first axis. A boundary voxel is -0. Any sign says whether a voxel is inside. */
#define MARK_INSIDE ((REAL) - 1)
#define MARK_OUTSIDE ((REAL)1)
#define MARK_IGNORED ((REAL)2)

static int64_t FN(distance_marks)(const struct segloss_distance* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    const int of_all = a->num_classes == 0;
    ALIGNED int32_t label[SEGLOSS_BLOCK];
    ALIGNED REAL mark[ROW_LANES];
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        const int bad =
            read_labels(label, &a->labels, &a->label_table, &b, of_all ? INT32_MAX : a->num_classes, a->ignore_index);
        if (bad >= 0) {
            return p + bad;
        }
        for (int64_t c = 0; c < (of_all ? 1 : a->num_classes); ++c) {
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                const int is_inside = of_all ? label[i] > 0 : label[i] == c;
                mark[i] = is_inside ? MARK_INSIDE : label[i] == IGNORED ? MARK_IGNORED : MARK_OUTSIDE;
            }
            FN(write_classes)(mark, &a->maps, &b, c, 1);
        }
    }
    return -1;
}

/* Neighbouring lines: element i of line k is first[i * stride + k]. */
struct FN(lines) {
    REAL* first;
    int64_t length;
    int64_t stride;
    int count; /* at most SEGLOSS_DISTANCE_LINES */
};

/* The lines from number `line` on, of those along an axis of all maps. */
static struct FN(lines) FN(lines_at)(const struct segloss_distance* a, int axis, int64_t line, int64_t end) {
    int64_t stride = 1;
    for (int k = axis + 1; k < SEGLOSS_AXES; ++k) {
        stride *= a->sizes[k];
    }
    const int64_t length = a->sizes[axis], place = line % stride;
    REAL* first = (REAL*)a->maps.data + line / stride * length * stride + place;
    const int64_t left = end - line < stride - place ? end - line : stride - place;
    return (struct FN(lines)){first, length, stride, smaller(left, SEGLOSS_DISTANCE_LINES)};
}

/* Marks the voxels inside that have a neighbour outside along these lines, or none: the end of the image. */
static void FN(mark_boundary)(const struct FN(lines) * lines) {
    const int64_t stride = lines->stride;
    for (int64_t i = 0; i < lines->length; ++i) {
        REAL* x = lines->first + i * stride;
        const int is_end = i == 0 || i == lines->length - 1;
        for (int k = 0; is_end && k < lines->count; ++k) {
            x[k] = x[k] < 0 ? -(REAL)0 : x[k];
        }
        for (int k = 0; !is_end && k < lines->count; ++k) {
            const int meets_outside = (x[k - stride] == MARK_OUTSIDE) | (x[k + stride] == MARK_OUTSIDE);
            x[k] = meets_outside & (x[k] < 0) ? -(REAL)0 : x[k];
        }
    }
}

static void FN(distance_boundary)(const struct segloss_distance* a, int axis, int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end;) {
        const struct FN(lines) lines = FN(lines_at)(a, axis, line, end);
        FN(mark_boundary)(&lines);
        line += lines.count;
    }
}

/* Which voxels of a line belong together: those of a side; or boundary voxels, and all others. */
static int FN(kind)(const struct segloss_distance* a, REAL mark) {
    return a->of_boundary ? mark == 0 : signbit(mark) != 0;
}

/* Along the last axis, a run of voxels lies between the nearest ones to measure to, or the ends of the image. */
static void FN(measure_to_ends)(REAL* f, int64_t begin, int64_t end, int64_t length) {
    const REAL before_first = begin > 0 ? 1 : (REAL)INFINITY, after_last = end < length ? 1 : (REAL)INFINITY;
    for (int64_t i = begin; i < end; ++i) {
        const REAL to_begin = (REAL)(i - begin) + before_first, to_end = (REAL)(end - 1 - i) + after_last;
        const REAL distance = to_begin < to_end ? to_begin : to_end;
        f[i] = (REAL)copysign(distance * distance, f[i]);
    }
}

/* The marks of a line become squared distances. */
static void FN(measure_marks)(const struct segloss_distance* a, REAL* f) {
    const int64_t length = a->sizes[SEGLOSS_COLUMNS];
    if (a->of_boundary) {
        FN(mark_boundary)(&(struct FN(lines)){f, length, 1, 1});
    }
    for (int64_t begin = 0, end = 0; begin < length; begin = end) {
        const int kind = FN(kind)(a, f[begin]);
        const int is_near = a->of_boundary ? kind : !kind && !a->is_signed;
        for (end = begin; end < length && FN(kind)(a, f[end]) == kind; ++end) {
            f[end] = is_near ? (REAL)copysign(0, f[end]) : f[end];
        }
        if (!is_near) {
            FN(measure_to_ends)(f, begin, end, length);
        }
    }
}

static void FN(finish)(const struct segloss_distance* a, REAL* f, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const REAL distance = (REAL)(sqrt(fabs((double)f[i])) * a->spacing[SEGLOSS_COLUMNS]);
        f[i] = a->is_signed && signbit(f[i]) && distance > 0 ? -distance : distance;
    }
}

static void FN(measure_last_axis)(const struct segloss_distance* a, int64_t begin, int64_t end) {
    const int64_t length = a->sizes[SEGLOSS_COLUMNS];
    for (int64_t line = begin; line < end; ++line) {
        REAL* f = (REAL*)a->maps.data + line * length;
        FN(measure_marks)(a, f);
        if (a->last_axis == SEGLOSS_COLUMNS) {
            FN(finish)(a, f, length);
        }
    }
}

/* ---- the other axes: a tile of lines at once; it has a row for each index, and -f: the nearest is the largest ---- */

enum { FN(TILE_VECTORS) = SEGLOSS_DISTANCE_LINES * sizeof(REAL) / SEGLOSS_VECTOR_BYTES };

struct FN(tile) {
    REAL* square; /* [length + SEGLOSS_DISTANCE_STEPS] */
    REAL* near;   /* [length][SEGLOSS_DISTANCE_LINES] */
    double* line; /* [length] */
    struct corner* hull;
    double step;
};

/* If the sides measure to each other, the other one has 0. Returns whether any voxel has a distance. */
static int FN(load_tile)(REAL* near, const struct FN(lines) * lines, int has_sides, int side) {
    int any_finite = 0;
    for (int64_t i = 0; i < lines->length; ++i) {
        const REAL* f = lines->first + i * lines->stride;
        REAL* row = near + i * SEGLOSS_DISTANCE_LINES;
        for (int k = 0; k < lines->count; ++k) {
            row[k] = has_sides && (signbit(f[k]) != 0) != side ? 0 : -(REAL)fabs(f[k]);
            any_finite |= row[k] > -(REAL)INFINITY;
        }
        for (int k = lines->count; k < SEGLOSS_DISTANCE_LINES; ++k) {
            row[k] = 0;
        }
    }
    return any_finite;
}

static void FN(store_row)(REAL* f, const REAL* result, int count, int has_sides, int side) {
    for (int k = 0; k < count; ++k) {
        f[k] = has_sides && (signbit(f[k]) != 0) != side ? f[k] : (REAL)copysign(result[k], f[k]);
    }
}

/* Looks for nearer voxels ever farther away, as long as there may be any. Returns how far it went. */
static int64_t FN(search_row)(const struct FN(tile) * t, int64_t row, int64_t length, REAL* result) {
    VEC best[FN(TILE_VECTORS)];
    memcpy(best, t->near + row * SEGLOSS_DISTANCE_LINES, sizeof best);
    const int64_t most = row > length - 1 - row ? row : length - 1 - row;
    int64_t steps = 1;
    for (; steps <= most; steps += SEGLOSS_DISTANCE_STEPS) {
        VEC lowest = best[0];
        for (int v = 1; v < FN(TILE_VECTORS); ++v) {
            lowest = -FN(larger)(-lowest, -best[v]);
        }
        if (FN(largest_of_vector)(-lowest) <= t->square[steps]) {
            break;
        }
        for (int64_t s = steps; s < steps + SEGLOSS_DISTANCE_STEPS; ++s) {
            /* beyond the ends, the last row again: it is nearer than that */
            const REAL* before = t->near + (row > s ? row - s : 0) * SEGLOSS_DISTANCE_LINES;
            const REAL* after = t->near + (row + s < length ? row + s : length - 1) * SEGLOSS_DISTANCE_LINES;
            for (int v = 0; v < FN(TILE_VECTORS); ++v) {
                const VEC nearest = FN(larger)(FN(load)(before + v * WIDTH), FN(load)(after + v * WIDTH));
                best[v] = FN(larger)(best[v], nearest - t->square[s]);
            }
        }
    }
    for (int v = 0; v < FN(TILE_VECTORS); ++v) {
        FN(store)(result + v * WIDTH, -best[v]);
    }
    return steps;
}

/* The value that a search would find there. */
static REAL FN(parabola)(const struct FN(tile) * t, const struct corner* corner, int64_t i) {
    const int64_t distance = i > corner->site ? i - corner->site : corner->site - i;
    return (REAL)t->line[corner->site] + t->square[distance];
}

/* One line after the other by its lower envelope: it takes as long for any distances. */
static void FN(measure_by_hull)(const struct FN(tile) * t, const struct FN(lines) * lines, int has_sides, int side) {
    for (int k = 0; k < lines->count; ++k) {
        for (int64_t i = 0; i < lines->length; ++i) {
            t->line[i] = -(double)t->near[i * SEGLOSS_DISTANCE_LINES + k];
        }
        const struct corner* corner = t->hull;
        const struct corner* last = corner + build_hull(t->hull, t->line, lines->length, t->step, 0) - 1;
        for (int64_t i = 0; i < lines->length && last >= t->hull; ++i) {
            REAL result = FN(parabola)(t, corner, i);
            for (REAL next = 0; corner < last && (next = FN(parabola)(t, corner + 1, i)) <= result; ++corner) {
                result = next;
            }
            FN(store_row)(lines->first + i * lines->stride + k, &result, 1, has_sides, side);
        }
    }
}

static void FN(measure_tile)(const struct segloss_distance* a, const struct FN(tile) * t,
                             const struct FN(lines) * lines) {
    const int has_sides = a->is_signed && !a->of_boundary;
    for (int side = 0; side <= has_sides; ++side) {
        int64_t steps_left = lines->length * MOST_STEPS;
        if (!FN(load_tile)(t->near, lines, has_sides, side)) {
            continue;
        }
        for (int64_t i = 0; i < lines->length && steps_left >= 0; ++i) {
            ALIGNED REAL result[SEGLOSS_DISTANCE_LINES];
            steps_left -= FN(search_row)(t, i, lines->length, result);
            FN(store_row)(lines->first + i * lines->stride, result, lines->count, has_sides, side);
        }
        if (steps_left < 0) {
            FN(measure_by_hull)(t, lines, has_sides, side);
        }
    }
}

static struct FN(tile) FN(tile_of_axis)(const struct segloss_distance* a, int axis, double* workspace) {
    const int64_t length = a->sizes[axis];
    struct FN(tile) t = {.step = a->spacing[axis] / a->spacing[SEGLOSS_COLUMNS], .line = workspace};
    t.hull = (struct corner*)(t.line + length);
    t.near = (REAL*)(t.hull + length);
    t.square = t.near + length * SEGLOSS_DISTANCE_LINES;
    for (int64_t s = 0; s < length + SEGLOSS_DISTANCE_STEPS; ++s) {
        t.square[s] = (REAL)((double)s * t.step * ((double)s * t.step));
    }
    return t;
}

static void FN(measure_axis)(const struct segloss_distance* a, int axis, int64_t begin, int64_t end,
                             double* workspace) {
    const struct FN(tile) tile = FN(tile_of_axis)(a, axis, workspace);
    for (int64_t line = begin; line < end;) {
        const struct FN(lines) lines = FN(lines_at)(a, axis, line, end);
        FN(measure_tile)(a, &tile, &lines);
        for (int64_t i = 0; axis == a->last_axis && i < lines.length; ++i) {
            FN(finish)(a, lines.first + i * lines.stride, lines.count);
        }
        line += lines.count;
    }
}

static void FN(distance_lines)(const struct segloss_distance* a, int axis, int64_t begin, int64_t end,
                               double* workspace) {
    if (axis == SEGLOSS_COLUMNS) {
        FN(measure_last_axis)(a, begin, end);
    } else {
        FN(measure_axis)(a, axis, begin, end, workspace);
    }
}
