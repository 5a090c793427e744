/* Tests of the surfaces of masks, voxel by voxel, and of the distances between places, against all of them. */
#ifndef SEGLOSS_TEST_SURFACE_TESTS_H
#define SEGLOSS_TEST_SURFACE_TESTS_H

#include "harness.h"
#include "tables.h"

enum { MOST_PLACES = 300, MOST_NEAR_ROWS = 60 };

/* ---- surfaces ---- */

struct surface_case {
    struct segloss_surface args;
    uint8_t* map;    /* of classes 0 to 2 */
    uint8_t* target; /* 3 where a voxel is ignored */
};

enum voxel_kind { OUTSIDE_MASK, INSIDE_MASK, IGNORED_VOXEL };

static enum voxel_kind kind_at(const struct surface_case* c, int64_t z, int64_t y, int64_t x) {
    const struct segloss_surface* a = &c->args;
    const int is_there = z >= 0 && z < a->sizes[0] && y >= 0 && y < a->sizes[1] && x >= 0 && x < a->sizes[2];
    const int64_t at = z * a->stride_plane + y * a->stride_row + x;
    if (is_there && a->ignored && c->target[at] == a->ignored_label) {
        return IGNORED_VOXEL;
    }
    return is_there && c->map[at] == a->label ? INSIDE_MASK : OUTSIDE_MASK;
}

/* The code of an element, of a voxel 0; or -1: there is none. */
static int element_at(const struct surface_case* c, int64_t z, int64_t y, int64_t x) {
    const int is_flat = c->args.is_flat;
    if (!c->args.surfels) {
        int meets_outside = 0;
        for (int side = -1; side <= 1; side += 2) {
            meets_outside |= !is_flat && kind_at(c, z + side, y, x) == OUTSIDE_MASK;
            meets_outside |= kind_at(c, z, y + side, x) == OUTSIDE_MASK || kind_at(c, z, y, x + side) == OUTSIDE_MASK;
        }
        return kind_at(c, z, y, x) == INSIDE_MASK && meets_outside ? 0 : -1;
    }
    int code = 0, num_voxels = 0;
    for (int64_t k = is_flat ? 4 : 0; k < 8; ++k, ++num_voxels) {
        const enum voxel_kind kind = kind_at(c, z - 1 + (k >> 2), y - 1 + (k >> 1 & 1), x - 1 + (k & 1));
        if (kind == IGNORED_VOXEL) {
            return -1;
        }
        code = 2 * code + (kind == INSIDE_MASK);
    }
    return code == 0 || code == (1 << num_voxels) - 1 ? -1 : code;
}

static void check_surface(const struct segloss_kernels* table, const struct surface_case* c) {
    const struct segloss_surface* a = &c->args;
    for (int64_t z = 0; z < a->sizes[0]; ++z) {
        table->surface_mask(a, z);
    }
    for (int64_t z = 0; z < a->element_sizes[0]; ++z) {
        const int64_t count = table->surface_boundary(a, z);
        int32_t (*place)[3] = cleared(count + 1, sizeof *place);
        uint8_t* code = cleared(count + 1, 1);
        int64_t next = 0;
        table->surface_elements(a, z, place, a->surfels ? code : NULL);
        for (int64_t y = 0; y < a->element_sizes[1]; ++y) {
            for (int64_t x = 0; x < a->element_sizes[2]; ++x) {
                const int expected = element_at(c, z, y, x);
                if (expected < 0) {
                    continue;
                }
                if (next >= count || place[next][0] != z || place[next][1] != y || place[next][2] != x) {
                    fail("expected an element at %d, %d, %d", (int)z, (int)y, (int)x);
                }
                if (a->surfels && code[next] != expected) {
                    fail("expected code %d, got %d", expected, code[next]);
                }
                ++next;
            }
        }
        if (next != count) {
            fail("expected %d elements in plane %d, got %d", (int)next, (int)z, (int)count);
        }
        free(place);
        free(code);
    }
}

static void test_surface(const struct segloss_kernels* table, int kind) {
    struct surface_case c = {.args = {.label = 1, .ignored_label = 3, .is_flat = kind & 1, .surfels = kind >> 1 & 1}};
    struct segloss_surface* a = &c.args;
    int64_t num_words = 1;
    for (int axis = 0; axis < 3; ++axis) {
        a->sizes[axis] = axis == 0 && a->is_flat ? 1 : 1 + random_below(axis == 2 ? 150 : 6);
        a->element_sizes[axis] = a->sizes[axis] + (a->surfels && (axis > 0 || !a->is_flat));
    }
    a->words = a->sizes[2] / 64 + 2;
    a->stride_row = a->sizes[2] + random_below(3);
    a->stride_plane = a->stride_row * (a->sizes[1] + random_below(2));
    num_words = a->element_sizes[0] * a->element_sizes[1] * a->words;
    const int64_t size = a->stride_plane * a->sizes[0];
    const int most = random_below(2) ? 2 : 20; /* scattered voxels, or large regions with holes */
    c.map = cleared(size, 1);
    c.target = cleared(size, 1);
    for (int64_t i = 0; i < size; ++i) {
        c.map[i] = random_below(most) == 0 ? (uint8_t)random_below(3) : 1;
        c.target[i] = random_below(most) == 0 ? 3 : 0;
    }
    a->classes = c.map;
    a->target = c.target;
    a->mask = cleared(num_words, sizeof *a->mask);
    a->ignored = kind >> 2 & 1 ? cleared(num_words, sizeof *a->mask) : NULL;
    uint64_t* boundary = cleared(num_words + 1, sizeof *boundary);
    a->boundary = boundary + 1;
    check_surface(table, &c);
    free(c.map);
    free(c.target);
    free(a->mask);
    free(a->ignored);
    free(boundary);
}

/* ---- distances ---- */

static int compare_rows(const void* first, const void* second) {
    const double a = ((const struct segloss_near_row*)first)->squared;
    const double b = ((const struct segloss_near_row*)second)->squared;
    return a < b ? -1 : a > b;
}

static double squared_distance(const struct segloss_places* set, const int32_t* a, const int32_t* b) {
    double squared = 0;
    for (int axis = 0; axis < 3; ++axis) {
        const double difference = (a[axis] - b[axis]) * set->spacing[axis];
        squared += difference * difference;
    }
    return squared;
}

/* Some of all rows, the nearest ones. */
static int make_near_rows(const struct segloss_places* set, struct segloss_near_row* rows) {
    const int planes = (int)set->sizes[0], lines = (int)set->sizes[1];
    struct segloss_near_row* all = cleared((2 * planes + 1) * (2 * lines + 1), sizeof *all);
    int count = 0;
    for (int z = -planes; z <= planes; ++z) {
        for (int y = -lines; y <= lines; ++y) {
            const double along_planes = z * set->spacing[0], along_lines = y * set->spacing[1];
            all[count++] = (struct segloss_near_row){z, y, (z * set->sizes[1] + y) * set->words,
                                                     along_planes * along_planes + along_lines * along_lines};
        }
    }
    qsort(all, (size_t)count, sizeof *all, compare_rows);
    const int kept = 1 + random_below(count < MOST_NEAR_ROWS ? count : MOST_NEAR_ROWS);
    memcpy(rows, all, (size_t)kept * sizeof *all);
    free(all);
    return kept;
}

/* Returns the memory of the tree. */
static uint64_t* make_bricks(struct segloss_places* set) {
    int64_t sizes[3], count = 0;
    memcpy(sizes, set->sizes, sizeof sizes);
    do {
        int64_t* of_level = set->brick_sizes[set->levels++];
        for (int axis = 0; axis < 3; ++axis) {
            of_level[axis] = sizes[axis] = (sizes[axis] + 3) / 4;
        }
        count += sizes[0] * sizes[1] * sizes[2];
    } while (sizes[0] > 1 || sizes[1] > 1 || sizes[2] > 1);
    uint64_t *bricks = cleared(count, sizeof *bricks), *next = bricks;
    for (int level = 0; level < set->levels; ++level) {
        set->bricks[level] = next;
        next += set->brick_sizes[level][0] * set->brick_sizes[level][1] * set->brick_sizes[level][2];
    }
    return bricks;
}

static void test_places(const struct segloss_kernels* table) {
    struct segloss_places set = {0};
    struct segloss_near_row rows[MOST_NEAR_ROWS];
    int32_t place[MOST_PLACES][3], from[MOST_PLACES][3];
    double distance[MOST_PLACES];
    for (int axis = 0; axis < 3; ++axis) {
        set.sizes[axis] = 1 + random_below(axis == 2 ? 200 : 20);
        set.spacing[axis] = random_below(2) ? 1 : 0.25 + 2 * random_unit();
    }
    for (int steps = 0; steps <= SEGLOSS_NEAR_COLUMNS; ++steps) {
        set.column_squares[steps] = steps * set.spacing[2] * (steps * set.spacing[2]);
    }
    set.words = set.sizes[2] / 64 + 2;
    uint64_t* bits = cleared(1 + set.sizes[0] * set.sizes[1] * set.words, sizeof *bits);
    const int count = 1 + random_below(random_below(2) ? 4 : MOST_PLACES);
    for (int p = 0; p < MOST_PLACES; ++p) {
        for (int axis = 0; axis < 3; ++axis) {
            place[p][axis] = random_below(set.sizes[axis]);
            from[p][axis] = random_below(set.sizes[axis]);
        }
        if (p < count) {
            const int64_t row = place[p][0] * set.sizes[1] + place[p][1];
            bits[1 + row * set.words + place[p][2] / 64] |= (uint64_t)1 << place[p][2] % 64;
        }
    }
    uint64_t* bricks = make_bricks(&set);
    set.bits = bits + 1;
    set.rows = rows;
    set.num_rows = make_near_rows(&set, rows);
    table->places_add(&set, place, count);
    table->places_search(&set, from, 0, MOST_PLACES, distance);
    for (int p = 0; p < MOST_PLACES; ++p) {
        double expected = INFINITY;
        for (int k = 0; k < count; ++k) {
            const double squared = squared_distance(&set, from[p], place[k]);
            expected = squared < expected ? squared : expected;
        }
        if (fabs(distance[p] - sqrt(expected)) > 1e-14 * distance[p]) {
            fail("place %d: expected distance %.17g, got %.17g", p, sqrt(expected), distance[p]);
        }
    }
    free(bits);
    free(bricks);
}

static void test_surfaces(void) {
    for (int i = 0; i < num_tables * 8 * 20 * ROUNDS; ++i) {
        const struct segloss_kernels* table = tables[i % num_tables];
        const int kind = i / num_tables % 8;
        snprintf(current_case, sizeof current_case, "surfaces: %s, kind %d, round %d", table->isa, kind, i);
        test_surface(table, kind);
        test_places(table);
    }
    printf("surfaces: ok\n");
}

#endif
