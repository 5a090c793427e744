/* Skeletons of masks, by thinning; see kernels.h. Bits of a row are in 64-bit words, the lowest bit first. */

/* ---- masks as bits ---- */

/* The row of a voxel, among those of all planes: one more lies before and after the planes and rows of the box. */
static int64_t row_number(const struct segloss_skeleton* a, int64_t plane, int64_t row) {
    return (plane + 1) * (a->sizes[1] + 2) + row + 1;
}

static int64_t words_of_plane(const struct segloss_skeleton* a) { return (a->sizes[1] + 2) * a->words; }

/* A bit for each of eight bytes that is not 0. */
static uint64_t nonzero_bytes(const uint8_t* bytes) { return equal_bytes(bytes, 0) ^ 255; }

static void skeleton_mask(const struct segloss_skeleton* a, const uint8_t* map, int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
        for (int64_t y = 0; y < a->sizes[1]; ++y) {
            const uint8_t* row = map + z * a->stride_plane + y * a->stride_row;
            uint64_t* mask = a->mask + row_number(a, z, y) * a->words;
            int64_t x = 0;
            for (; x + 8 <= a->sizes[2]; x += 8) { /* column x is bit x + 1 */
                const uint64_t eight = nonzero_bytes(row + x);
                mask[(x + 1) / 64] |= eight << ((x + 1) & 63);
                mask[(x + 8) / 64] |= (x + 1) / 64 < (x + 8) / 64 ? eight >> 7 : 0;
            }
            for (; x < a->sizes[2]; ++x) {
                mask[(x + 1) / 64] |= (uint64_t)(row[x] != 0) << ((x + 1) & 63);
            }
            a->pending[row_number(a, z, y)] = UINT8_MAX;
        }
    }
}

/* Bits of voxels in a word of a row, moved to their neighbours to the right, and to the left. The bits at the ends of
 * a row are 0, so none comes from another row. */
static uint64_t moved_right(const uint64_t* word) { return word[0] << 1 | word[-1] >> 63; }

static uint64_t moved_left(const uint64_t* word) { return word[0] >> 1 | word[1] << 63; }

/* ---- Lee et al. ---- */

/* A neighbourhood of 3 x 3 x 3 voxels as bits: a step along a row is one bit, to the next row 4, to the next plane 16.
 * Between any two rows there is a bit of 0. */
enum { NEXT_ROW = 4, NEXT_PLANE = 16, MIDDLE = 1 + NEXT_ROW + NEXT_PLANE };

/* Rows of three bits, from bit `shift` on, of words `row` and `plane` apart; without a plane only those of the middle
 * one. If they cross a word, it is the next one. */
static inline uint64_t rows_around(const uint64_t* word, int64_t row, int64_t plane, int shift, int crosses) {
    uint64_t bits = 0;
    for (int z = plane ? 0 : 1; z < (plane ? 3 : 2); ++z) {
        for (int y = 0; y < 3; ++y) {
            const uint64_t* at = word + (z - 1) * plane + (y - 1) * row;
            const uint64_t three = crosses ? at[0] >> shift | at[1] << (64 - shift) : at[0] >> shift;
            bits |= (three & 7) << (NEXT_PLANE * z + NEXT_ROW * y);
        }
    }
    return bits;
}

/* Around the voxel of the lowest bit in `left`, which is in this word. */
static inline uint64_t neighbours_of(const uint64_t* word, uint64_t left, int64_t row, int64_t plane) {
    const int bit = __builtin_ctzll(left);
    const uint64_t others = ~((uint64_t)1 << MIDDLE);
    if (bit > 0 && bit < 63) {
        return others & rows_around(word, row, plane, bit - 1, 0);
    }
    return others & rows_around(bit > 0 ? word : word - 1, row, plane, (bit - 1) & 63, 1);
}

/* The distance of planes for these: 0 if there is only one. */
static int64_t plane_of_neighbours(const struct segloss_skeleton* a) { return a->is_flat ? 0 : words_of_plane(a); }

/* Whether a voxel or the next one, so many bits on, is there. Of all axes: any of the voxels around a corner. */
static uint64_t any_of_two(uint64_t bits, int step) { return bits | bits >> step; }

/* Whether the Euler characteristic of the mask, as a union of closed cubes, is the same without the voxel, whose cube
 * has 1: whether 1 - corners + edges - faces = 0, of those that it shares with others. */
static int keeps_euler(uint64_t others) {
    const uint64_t origin = 1, x = 2, y = 1 << NEXT_ROW, z = 1 << NEXT_PLANE;
    const uint64_t along_x = any_of_two(others, 1), along_y = any_of_two(others, NEXT_ROW);
    const uint64_t of_xy = any_of_two(along_x, NEXT_ROW);
    const uint64_t corners = any_of_two(of_xy, NEXT_PLANE) & (origin | x | y | x * y) * (origin | z);
    const uint64_t edges_x = any_of_two(along_y, NEXT_PLANE) & (origin | y) * (origin | z) * x;
    const uint64_t edges_y = any_of_two(along_x, NEXT_PLANE) & (origin | x) * (origin | z) * y;
    const uint64_t edges_z = of_xy & (origin | x) * (origin | y) * z;
    const uint64_t faces = others & (y * z * (origin | x * x) | x * z * (origin | y * y) | x * y * (origin | z * z));
    /* in places of their own, all are counted at once */
    const uint64_t edges = edges_x | edges_y << 24 | edges_z << 16;
    return count_bits(corners << 42 | faces) == count_bits(edges) + 1;
}

/* Whether all neighbours hang together, by corners, too; also if there are none. */
static int is_one_component(uint64_t others) {
    uint64_t reached = others & (0 - others), before;
    do {
        before = reached;
        reached |= reached << 1 | reached >> 1;
        reached |= reached << NEXT_ROW | reached >> NEXT_ROW;
        reached |= reached << NEXT_PLANE | reached >> NEXT_PLANE;
        reached &= others;
    } while (reached != before);
    return reached == others;
}

static int is_end_of_line(uint64_t others) { return (others & (others - 1)) == 0; }

/* The voxels of a word whose neighbour in this direction is in the mask. The order of directions is scikit-image's. */
static uint64_t with_neighbour(const struct segloss_skeleton* a, int direction, const uint64_t* word) {
    switch (direction) {
    case 0:
        return *(word - a->words);
    case 1:
        return *(word + a->words);
    case 2:
        return moved_left(word);
    case 3:
        return moved_right(word);
    case 4:
        return *(word + words_of_plane(a));
    default:
        return *(word - words_of_plane(a));
    }
}

/* Writes the voxels of a row that may go. All others that it has looked at stay until a neighbour goes. */
static int find_candidates(const struct segloss_skeleton* a, int direction, int64_t r) {
    const int64_t row = a->words, plane = plane_of_neighbours(a);
    const uint64_t* restrict mask = a->mask;
    uint64_t* restrict settled = a->settled, * restrict chosen = a->chosen;
    uint64_t any = 0;
    for (int64_t w = r * row; w < (r + 1) * row; ++w) {
        uint64_t left = mask[w] & ~settled[w], found = 0;
        left = left ? left & ~with_neighbour(a, direction, mask + w) : 0;
        settled[w] |= left;
        for (; left; left &= left - 1) {
            const uint64_t others = neighbours_of(mask + w, left, row, plane);
            const int may_go = !is_end_of_line(others) && keeps_euler(others) && is_one_component(others);
            found |= may_go ? left & (0 - left) : 0;
        }
        chosen[w] = found;
        any |= found;
    }
    return any != 0;
}

/* Takes a voxel out; its neighbours are to be looked at again. */
static void take_out(const struct segloss_skeleton* a, int64_t r, int64_t w, uint64_t bit) {
    const int64_t row = a->words, plane = words_of_plane(a);
    a->mask[w] &= ~bit;
    const uint64_t here = bit | bit << 1 | bit >> 1;
    const uint64_t before = bit << 63, after = bit >> 63; /* in the words beside it */
    for (int z = a->is_flat ? 0 : -1; z <= !a->is_flat; ++z) {
        for (int y = -1; y <= 1; ++y) {
            uint64_t* settled = a->settled + w + z * plane + y * row;
            settled[0] &= ~here;
            if (before | after) {
                settled[-1] &= ~before;
                settled[1] &= ~after;
            }
        }
        memset(a->pending + r + z * (a->sizes[1] + 2) - 1, UINT8_MAX, 3);
    }
}

/* Takes the candidates of a row out, one after the other, unless those before leave its neighbours in parts. */
static int remove_candidates(const struct segloss_skeleton* a, int64_t r) {
    const int64_t row = a->words, plane = plane_of_neighbours(a);
    int any = 0;
    for (int64_t w = r * row; w < (r + 1) * row; ++w) {
        for (uint64_t left = a->chosen[w]; left; left &= left - 1) {
            const uint64_t bit = left & (0 - left);
            const int is_unchanged = (a->settled[w] & bit) != 0;
            if (is_unchanged || is_one_component(neighbours_of(a->mask + w, left, row, plane))) {
                take_out(a, r, w, bit);
                any = 1;
            }
        }
    }
    return any;
}

/* ---- Zhang and Suen ---- */

/* 64 pixels in each word. The eight neighbours of all are in a circle: above, above to the right, to the right, ... */
typedef uint64_t pixels __attribute__((vector_size(SEGLOSS_VECTOR_BYTES)));
enum { TO_TOP = 0, TO_RIGHT = 2, TO_BOTTOM = 4, TO_LEFT = 6, WORDS_OF_PIXELS = sizeof(pixels) / sizeof(uint64_t) };

static pixels pixels_at(const uint64_t* word) {
    pixels p;
    memcpy(&p, word, sizeof p);
    return p;
}

/* Which pixels the paper takes out: with two to six neighbours, in one arc of the circle, and of the last conditions
 * those of the first or the second pass. */
static pixels in_pass_of_paper(const pixels* circle, int pass) {
    pixels arc = {0}, arcs = {0}, one = {0}, two = {0}, gap = {0}, gaps = {0};
    for (int k = 0; k < 8; ++k) {
        const pixels here = circle[k], starts = ~here & circle[(k + 1) % 8];
        arcs |= arc & starts;
        arc |= starts;
        two |= one & here;
        one |= here;
        gaps |= gap & ~here;
        gap |= ~here;
    }
    const pixels above = circle[TO_TOP], right = circle[TO_RIGHT], below = circle[TO_BOTTOM], left = circle[TO_LEFT];
    const pixels last = pass == 0 ? ~(right & below & (above | left)) : ~(above & left & (right | below));
    return arc & ~arcs & two & gaps & last;
}

/* Where scikit-image differs from the paper: pixels whose neighbours are around one corner of the 3 x 3. There are two
 * sides that meet in the corner, itself, and the corners before and after these. For each corner, in which passes such
 * a pixel goes, as bits: 1 the first, 2 the second, by what it has. Found by experiments with all neighbourhoods. */
static const uint8_t passes_at_corners[4][7] = {
    /* side + corner, corner + next side, all three; both sides, with the corner before, with that after, with both */
    {1, 1, 1, 3, 1, 2, 0}, /* above and to the right */
    {2, 0, 2, 3, 0, 2, 2}, /* to the right and below */
    {2, 2, 2, 3, 2, 1, 0}, /* below and to the left */
    {0, 1, 1, 3, 1, 1, 1}, /* to the left and above */
};

static pixels in_pass(const pixels* circle, int pass) {
    pixels chosen = {0}, at_corners = {0};
    for (int k = 0; k < 4; ++k) {
        const pixels before = circle[(2 * k + 7) % 8], side = circle[2 * k], corner = circle[2 * k + 1];
        const pixels next_side = circle[(2 * k + 2) % 8], after = circle[(2 * k + 3) % 8];
        const pixels others = circle[(2 * k + 4) % 8] | circle[(2 * k + 5) % 8] | circle[(2 * k + 6) % 8];
        const pixels filled = corner & ~(others | before | after), open = side & next_side & ~(corner | others);
        const pixels cases[7] = {
            filled & side & ~next_side, filled & next_side & ~side, filled & side & next_side, open & ~before & ~after,
            open & before & ~after,     open & after & ~before,     open & before & after,
        };
        for (int i = 0; i < 7; ++i) {
            at_corners |= cases[i];
            if (passes_at_corners[k][i] >> pass & 1) {
                chosen |= cases[i];
            }
        }
    }
    return chosen | (in_pass_of_paper(circle, pass) & ~at_corners);
}

/* Writes the pixels of a row that go in this pass. */
static int find_pixels(const struct segloss_skeleton* a, int pass, int64_t r) {
    pixels any = {0};
    for (int64_t w = r * a->words; w < (r + 1) * a->words; w += WORDS_OF_PIXELS) {
        pixels beside[3][3]; /* rows, and columns to the left and to the right */
        for (int y = 0; y < 3; ++y) {
            const uint64_t* row = a->mask + w + (y - 1) * a->words;
            beside[y][1] = pixels_at(row);
            beside[y][0] = beside[y][1] << 1 | pixels_at(row - 1) >> 63;
            beside[y][2] = beside[y][1] >> 1 | pixels_at(row + 1) << 63;
        }
        const pixels circle[] = {beside[0][1], beside[0][2], beside[1][2], beside[2][2],
                                 beside[2][1], beside[2][0], beside[1][0], beside[0][0]};
        const pixels chosen = beside[1][1] & in_pass(circle, pass);
        memcpy(a->chosen + w, &chosen, sizeof chosen);
        any |= chosen;
    }
    uint64_t any_word = 0;
    for (int i = 0; i < WORDS_OF_PIXELS; ++i) {
        any_word |= any[i];
    }
    return any_word != 0;
}

/* Takes them out, all at once: each was chosen by what was there before. */
static int remove_pixels(const struct segloss_skeleton* a, int64_t r) {
    for (int64_t w = r * a->words; w < (r + 1) * a->words; ++w) {
        a->mask[w] &= ~a->chosen[w];
    }
    memset(a->pending + r - 1, UINT8_MAX, 3);
    return 1;
}

/* ---- both ---- */

/* A pass, or by Lee et al. a direction. Returns whether a voxel went. */
static int thin_once(const struct segloss_skeleton* a, int step) {
    const int64_t begin = row_number(a, 0, 0), end = row_number(a, a->sizes[0] - 1, a->sizes[1]);
    int any = 0, any_chosen = 0;
    for (int64_t r = begin; r < end; ++r) { /* rows between two planes have no voxels */
        a->has_chosen[r] = 0;
        if (a->pending[r] >> step & 1) {
            a->pending[r] &= (uint8_t)~(1u << step);
            a->has_chosen[r] = (uint8_t)(a->is_zhang ? find_pixels(a, step, r) : find_candidates(a, step, r));
            any_chosen |= a->has_chosen[r];
        }
    }
    for (int64_t r = begin; any_chosen && r < end; ++r) {
        if (a->has_chosen[r]) {
            any |= a->is_zhang ? remove_pixels(a, r) : remove_candidates(a, r);
        }
    }
    return any;
}

static void skeleton_thin(const struct segloss_skeleton* a) {
    const int num_steps = a->is_zhang ? 2 : a->is_flat ? 4 : 6;
    int any;
    do {
        any = 0;
        for (int step = 0; step < num_steps; ++step) {
            any |= thin_once(a, step);
        }
    } while (any);
}

/* The bits of a row's w-th word that are columns of the box. */
static uint64_t columns_of(const struct segloss_skeleton* a, int64_t w) {
    const int64_t end = a->sizes[2] + 1 - 64 * w;
    const uint64_t before_end = end <= 0 ? 0 : end >= 64 ? UINT64_MAX : ((uint64_t)1 << end) - 1;
    return w > 0 ? before_end : before_end & ~(uint64_t)1;
}

static void skeleton_widen(const struct segloss_skeleton* a) {
    const int64_t plane = words_of_plane(a);
    for (int64_t z = 0; z < a->sizes[0]; ++z) {
        for (int64_t y = 0; y < a->sizes[1]; ++y) {
            const uint64_t* row = a->mask + row_number(a, z, y) * a->words;
            uint64_t* to = a->settled + row_number(a, z, y) * a->words;
            for (int64_t w = 0; w < a->words; ++w) {
                const uint64_t along_row = row[w] | moved_left(row + w) | moved_right(row + w);
                const uint64_t others = row[w - a->words] | row[w + a->words] | row[w - plane] | row[w + plane];
                to[w] = (along_row | others) & columns_of(a, w);
            }
        }
    }
}

static void skeleton_write(const struct segloss_skeleton* a, uint8_t* map, int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
        for (int64_t y = 0; y < a->sizes[1]; ++y) {
            uint8_t* to = map + z * a->stride_plane + y * a->stride_row;
            const uint64_t* row = a->mask + row_number(a, z, y) * a->words;
            for (int64_t w = 0; w < a->words; ++w) {
                const int64_t first = w > 0 ? 64 * w - 1 : 0;
                const int64_t last = a->sizes[2] < 64 * w + 63 ? a->sizes[2] : 64 * w + 63;
                if (row[w] == 0 && first < last) {
                    memset(to + first, 0, (size_t)(last - first));
                    continue;
                }
                for (int64_t x = first; x < last; ++x) {
                    to[x] &= (uint8_t)(row[w] >> (x + 1 - 64 * w) & 1);
                }
            }
        }
    }
}

/* ---- labels ---- */

static int64_t class_map(const struct segloss_class_map* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    ALIGNED int32_t label[SEGLOSS_BLOCK];
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        const int bad = read_labels(label, &a->labels, &a->label_table, &b, INT32_MAX, a->ignore_index);
        if (bad >= 0) {
            return p + bad;
        }
        if (a->classes) {
            memcpy(a->classes + p, label, (size_t)b.count * sizeof *label);
        }
        if (a->mask) {
            ALIGNED uint8_t mask[SEGLOSS_BLOCK];
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                mask[i] = label[i] > 0;
            }
            memcpy(a->mask + p, mask, (size_t)b.count);
        }
    }
    return -1;
}
