/* Surfaces of masks, and the distances between two of them. Bits of a row are in 64-bit words, the lowest bit first. */

static int count_bits(uint64_t word) { return __builtin_popcountll(word); }

/* A bit for each of eight bytes that equals `value`. */
static uint64_t equal_bytes(const uint8_t* bytes, uint8_t value) {
    const uint64_t ones = 0x0101010101010101, low = 0x7f * ones;
    uint64_t x;
    memcpy(&x, bytes, sizeof x);
    x ^= value * ones;
    const uint64_t is_zero = ~(((x & low) + low) | x | low); /* the highest bit of each byte */
    return (is_zero >> 7) * 0x0102040810204080 >> 56;
}

static void write_bits(uint64_t* bits, const uint8_t* row, int64_t count, int64_t words, uint8_t value) {
    for (int64_t w = 0; w < words; ++w) {
        uint64_t word = 0;
        int64_t i = 0;
        const int64_t rest = count - 64 * w < 64 ? count - 64 * w : 64;
        for (; i + 8 <= rest; i += 8) {
            word |= equal_bytes(row + 64 * w + i, value) << i;
        }
        for (; i < rest; ++i) {
            word |= (uint64_t)(row[64 * w + i] == value) << i;
        }
        bits[w] = word;
    }
}

static void surface_mask(const struct segloss_surface* a, int64_t plane) {
    for (int64_t y = 0; y < a->sizes[1]; ++y) {
        const int64_t from = plane * a->stride_plane + y * a->stride_row;
        uint64_t* mask = a->mask + (plane * a->sizes[1] + y) * a->words;
        write_bits(mask, a->classes + from, a->sizes[2], a->words, a->label);
        if (a->ignored) {
            uint64_t* ignored = a->ignored + (plane * a->sizes[1] + y) * a->words;
            write_bits(ignored, a->target + from, a->sizes[2], a->words, a->ignored_label);
            for (int64_t w = 0; w < a->words; ++w) {
                mask[w] &= ~ignored[w];
            }
        }
    }
}

/* The row of bits of these voxels; NULL beyond the box. */
static const uint64_t* row_of(const uint64_t* bits, const struct segloss_surface* a, int64_t plane, int64_t row) {
    const int is_inside = bits && plane >= 0 && plane < a->sizes[0] && row >= 0 && row < a->sizes[1];
    return is_inside ? bits + (plane * a->sizes[1] + row) * a->words : NULL;
}

static uint64_t word_of(const uint64_t* row, int64_t w) { return row ? row[w] : 0; }

/* The bits of a row's left neighbours, and of the right ones. */
static uint64_t from_left(const uint64_t* row, int64_t w) {
    return word_of(row, w) << 1 | (w > 0 ? word_of(row, w - 1) >> 63 : 0);
}

static uint64_t from_right(const uint64_t* row, int64_t w, int64_t words) {
    return word_of(row, w) >> 1 | (w + 1 < words ? word_of(row, w + 1) << 63 : 0);
}

/* Voxels of the mask with a face neighbour that is neither in the mask nor ignored. */
static uint64_t boundary_voxels(const struct segloss_surface* a, int64_t plane, int64_t row, int64_t w) {
    const uint64_t *mask = row_of(a->mask, a, plane, row), *ignored = row_of(a->ignored, a, plane, row);
    uint64_t inside = from_left(mask, w) | from_left(ignored, w);
    inside &= from_right(mask, w, a->words) | from_right(ignored, w, a->words);
    for (int axis = a->is_flat; axis < 2; ++axis) {
        for (int step = -1; step <= 1; step += 2) {
            const int64_t z = plane + (axis == 0 ? step : 0), y = row + (axis == 1 ? step : 0);
            inside &= word_of(row_of(a->mask, a, z, y), w) | word_of(row_of(a->ignored, a, z, y), w);
        }
    }
    return mask[w] & ~inside;
}

/* Neighbourhoods that are neither all in the mask nor all outside, and have no ignored voxel. */
static uint64_t surfels(const struct segloss_surface* a, int64_t plane, int64_t row, int64_t w) {
    uint64_t any = 0, all = ~(uint64_t)0, ignored = 0;
    for (int64_t z = plane - !a->is_flat; z <= plane; ++z) {
        for (int64_t y = row - 1; y <= row; ++y) {
            const uint64_t *of_mask = row_of(a->mask, a, z, y), *of_ignored = row_of(a->ignored, a, z, y);
            const uint64_t left = from_left(of_mask, w), right = word_of(of_mask, w);
            any |= left | right;
            all &= left & right;
            ignored |= from_left(of_ignored, w) | word_of(of_ignored, w);
        }
    }
    return any & ~all & ~ignored;
}

static int64_t surface_boundary(const struct segloss_surface* a, int64_t plane) {
    int64_t count = 0;
    for (int64_t y = 0; y < a->element_sizes[1]; ++y) {
        uint64_t* boundary = a->boundary + (plane * a->element_sizes[1] + y) * a->words;
        for (int64_t w = 0; w < a->words; ++w) {
            boundary[w] = a->surfels ? surfels(a, plane, y, w) : boundary_voxels(a, plane, y, w);
            count += count_bits(boundary[w]);
        }
    }
    return count;
}

static uint8_t code_of(const struct segloss_surface* a, int64_t plane, int64_t row, int64_t column) {
    unsigned code = 0;
    for (int64_t z = plane - !a->is_flat; z <= plane; ++z) {
        for (int64_t y = row - 1; y <= row; ++y) {
            const uint64_t* mask = row_of(a->mask, a, z, y);
            const unsigned left = from_left(mask, column / 64) >> column % 64 & 1;
            code = code << 2 | left << 1 | (word_of(mask, column / 64) >> column % 64 & 1);
        }
    }
    return (uint8_t)code;
}

static void surface_elements(const struct segloss_surface* a, int64_t plane, int32_t (*place)[3], uint8_t* code) {
    for (int64_t y = 0; y < a->element_sizes[1]; ++y) {
        for (int64_t w = 0; w < a->words; ++w) {
            uint64_t word = a->boundary[(plane * a->element_sizes[1] + y) * a->words + w];
            for (; word; word &= word - 1, ++place) {
                const int64_t x = 64 * w + __builtin_ctzll(word);
                (*place)[0] = (int32_t)plane;
                (*place)[1] = (int32_t)y;
                (*place)[2] = (int32_t)x;
                if (a->surfels) {
                    *code++ = code_of(a, plane, y, x);
                }
            }
        }
    }
}

/* Runs of one class are read at once. */
static void surface_boxes(const uint8_t* plane, int64_t rows, int64_t columns, struct segloss_box* boxes) {
    for (int64_t y = 0; y < rows; ++y) {
        const uint8_t* row = plane + y * columns;
        for (int64_t x = 0, end; x < columns; x = end) {
            for (end = x + 1; end < columns && row[end] == row[x]; ++end) {
            }
            struct segloss_box* box = &boxes[row[x]];
            box->low[1] = y < box->low[1] ? y : box->low[1];
            box->high[1] = y + 1;
            box->low[2] = x < box->low[2] ? x : box->low[2];
            box->high[2] = end > box->high[2] ? end : box->high[2];
        }
    }
}

/* ---- the nearest element of another surface ---- */

static uint64_t* brick_at(const struct segloss_places* set, int level, int64_t z, int64_t y, int64_t x) {
    const int64_t* sizes = set->brick_sizes[level];
    return set->bricks[level] + (z * sizes[1] + y) * sizes[2] + x;
}

static void places_add(const struct segloss_places* set, const int32_t (*place)[3], int64_t count) {
    for (int64_t p = 0; p < count; ++p) {
        int64_t z = place[p][0], y = place[p][1], x = place[p][2];
        for (int level = 0; level < set->levels; ++level) {
            const uint64_t bit = (uint64_t)1 << ((z & 3) << 4 | (y & 3) << 2 | (x & 3));
            z >>= 2, y >>= 2, x >>= 2;
            uint64_t* word = brick_at(set, level, z, y, x);
            if (*word & bit) {
                break; /* the levels above have it, too */
            }
            *word |= bit;
        }
    }
}

struct nearest {
    int64_t from[3];
    int64_t place[3];
    double squared;
};

static double squared_of(int64_t steps, double spacing) { return (double)steps * spacing * ((double)steps * spacing); }

/* Looks through the nearest rows, in each at some columns on both sides. Returns whether no other place can be nearer
 * than what it found. */
static int search_rows(const struct segloss_places* set, struct nearest* best) {
    enum { SIDE = SEGLOSS_NEAR_COLUMNS };
    const int64_t z = best->from[0], y = best->from[1], x = best->from[2], start = x - SIDE;
    const int shift = (int)(start & 63);
    const uint64_t* here = set->bits + (z * set->sizes[1] + y) * set->words + (start >= 0 ? start / 64 : -1);
    const struct segloss_near_row *near = set->rows, *end = near + set->num_rows;
    for (; near < end && near->squared < best->squared; ++near) {
        const int64_t plane = z + near->plane, row = y + near->row;
        if ((uint64_t)plane >= (uint64_t)set->sizes[0] || (uint64_t)row >= (uint64_t)set->sizes[1]) {
            continue;
        }
        const uint64_t* bits = here + near->offset;
        const uint64_t window = bits[0] >> shift | bits[1] << 1 << (63 - shift); /* bit SIDE is column x */
        if (!window) {
            continue;
        }
        const uint64_t left = window << (63 - SIDE), right = window >> SIDE; /* both with column x */
        const int to_left = left ? __builtin_clzll(left) : SIDE;
        const int to_right = right ? __builtin_ctzll(right) : SIDE + 1; /* more than any to the left */
        const int steps = to_left < to_right ? to_left : to_right;
        assert(steps <= SIDE);
        const double squared = near->squared + set->column_squares[steps];
        if (squared < best->squared) {
            best->squared = squared;
            best->place[0] = plane;
            best->place[1] = row;
            best->place[2] = x + (to_left < to_right ? -steps : steps);
        }
    }
    return best->squared <= set->column_squares[SIDE] && (near < end || best->squared <= near[-1].squared);
}

/* The children of a brick along one axis, the nearest ones first, with their squared distances. Each is `span` elements
 * wide. Rounding is monotonic: no element is computed to be nearer than its brick. */
struct children {
    const uint8_t* order;
    double squared[4];
};

static struct children children_along(int64_t from, int64_t brick, int64_t span, double spacing) {
    static const uint8_t orders[4][4] = {{0, 1, 2, 3}, {1, 0, 2, 3}, {2, 3, 1, 0}, {3, 2, 1, 0}};
    struct children c;
    for (int k = 0; k < 4; ++k) {
        const int64_t low = (4 * brick + k) * span, high = low + span - 1;
        c.squared[k] = squared_of(from < low ? low - from : from > high ? from - high : 0, spacing);
    }
    const int64_t nearest = from < 4 * brick * span ? 0 : from / span - 4 * brick;
    c.order = orders[nearest < 3 ? nearest : 3];
    return c;
}

static void search_brick(const struct segloss_places* set, int level, const int64_t* at, struct nearest* best) {
    const uint64_t word = *brick_at(set, level, at[0], at[1], at[2]);
    struct children along[3];
    for (int axis = 0; axis < 3; ++axis) {
        along[axis] = children_along(best->from[axis], at[axis], (int64_t)1 << 2 * level, set->spacing[axis]);
    }
    for (int line = 0; line < 16; ++line) {
        const int z = along[0].order[line >> 2], y = along[1].order[line & 3];
        const double of_line = along[0].squared[z] + along[1].squared[y];
        const unsigned in_line = word >> (16 * z + 4 * y) & 15;
        for (int i = 0; i < 4 && in_line && of_line < best->squared; ++i) {
            const int x = along[2].order[i];
            const double squared = of_line + along[2].squared[x];
            if (!(in_line >> x & 1) || squared >= best->squared) {
                continue;
            }
            const int64_t child[] = {4 * at[0] + z, 4 * at[1] + y, 4 * at[2] + x};
            if (level > 0) {
                search_brick(set, level - 1, child, best);
                continue;
            }
            best->squared = squared;
            memcpy(best->place, child, sizeof child);
        }
    }
}

/* Most places have a near neighbour, which the rows give fast. After one that has none, the next one starts with the
 * tree, from the place that was nearest to the last one. */
static void places_search(const struct segloss_places* set, const int32_t (*place)[3], int64_t begin, int64_t end,
                          double* distance) {
    const int64_t root[] = {0, 0, 0};
    const double reach = set->rows[set->num_rows - 1].squared;
    struct nearest best = {.squared = 0};
    int is_far = 0;
    for (int64_t p = begin; p < end; ++p) {
        double guess = 0;
        for (int axis = 0; axis < 3; ++axis) {
            best.from[axis] = place[p][axis];
            guess += is_far ? squared_of(best.from[axis] - best.place[axis], set->spacing[axis]) : INFINITY;
        }
        best.squared = guess;
        if (is_far || !search_rows(set, &best)) {
            search_brick(set, set->levels - 1, root, &best);
            is_far = best.squared > reach;
        }
        distance[p] = sqrt(best.squared);
    }
}
