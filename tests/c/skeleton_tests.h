/* Tests of the skeletons of masks, against thinning voxel by voxel, over all voxels in each round. */
#ifndef SEGLOSS_TEST_SKELETON_TESTS_H
#define SEGLOSS_TEST_SKELETON_TESTS_H

#include "harness.h"
#include "surface_tests.h"
#include "tables.h"

struct volume {
    int64_t sizes[3];
    int is_flat;
    uint8_t* voxels; /* with one more of 0 all round */
};

static uint8_t* voxel_at(const struct volume* v, int64_t z, int64_t y, int64_t x) {
    return v->voxels + ((z + 1) * (v->sizes[1] + 2) + y + 1) * (v->sizes[2] + 2) + x + 1;
}

/* The 3 x 3 x 3 voxels around one. */
static void cube_around(const struct volume* v, int64_t z, int64_t y, int64_t x, uint8_t cube[27]) {
    for (int k = 0; k < 27; ++k) {
        cube[k] = *voxel_at(v, z + k / 9 - 1, y + k / 3 % 3 - 1, x + k % 3 - 1);
    }
}

static int parts_of_neighbours(const uint8_t* cube) {
    int part[27] = {0}, count = 0;
    for (int seed = 0; seed < 27; ++seed) {
        if (!cube[seed] || seed == 13 || part[seed]) {
            continue;
        }
        part[seed] = ++count;
        for (int any = 1; any;) {
            any = 0;
            for (int a = 0; a < 27; ++a) {
                for (int b = 0; b < 27 && part[a] == count; ++b) {
                    const int is_near = abs(a / 9 - b / 9) <= 1 && abs(a / 3 % 3 - b / 3 % 3) <= 1;
                    if (is_near && abs(a % 3 - b % 3) <= 1 && cube[b] && b != 13 && !part[b]) {
                        part[b] = count;
                        any = 1;
                    }
                }
            }
        }
    }
    return count;
}

/* Of the voxels as closed cubes: corners - edges + faces - cubes, of those that touch the middle one. A cell of one of
 * these lies at half steps; along an axis its place is 1 to 3, where even ones are within a voxel. */
static int euler_of(const uint8_t* cube, int with_middle) {
    int euler = 0;
    for (int cell = 0; cell < 27; ++cell) {
        const int at[] = {cell / 9 + 1, cell / 3 % 3 + 1, cell % 3 + 1};
        int is_there = 0, num_within = 0;
        for (int axis = 0; axis < 3; ++axis) {
            num_within += at[axis] % 2 == 0;
        }
        for (int k = 0; k < 27; ++k) {
            const int voxel[] = {k / 9, k / 3 % 3, k % 3};
            int touches = 1;
            for (int axis = 0; axis < 3; ++axis) { /* voxel v covers the places 2 v - 1 to 2 v + 1, less 1 */
                touches &= abs(2 * voxel[axis] - at[axis]) <= 1 - (at[axis] % 2 == 0);
            }
            is_there |= touches && (k == 13 ? with_middle : cube[k]);
        }
        euler += is_there ? (num_within % 2 ? -1 : 1) : 0;
    }
    return euler;
}

static int may_go(const uint8_t* cube) {
    int count = 0;
    for (int k = 0; k < 27; ++k) {
        count += cube[k];
    }
    return count != 2 && euler_of(cube, 0) == euler_of(cube, 1) && parts_of_neighbours(cube) <= 1;
}

static int thin_by_lee(const struct volume* v, const int* side, uint8_t* candidates) {
    int any = 0;
    for (int round = 0; round < 2; ++round) { /* finds candidates, then takes them out */
        uint8_t cube[27], *candidate = candidates;
        for (int64_t z = 0; z < v->sizes[0]; ++z) {
            for (int64_t y = 0; y < v->sizes[1]; ++y) {
                for (int64_t x = 0; x < v->sizes[2]; ++x, ++candidate) {
                    cube_around(v, z, y, x, cube);
                    if (round == 0) {
                        *candidate = cube[13] && !*voxel_at(v, z + side[0], y + side[1], x + side[2]) && may_go(cube);
                    } else if (*candidate && parts_of_neighbours(cube) <= 1) {
                        *voxel_at(v, z, y, x) = 0;
                        any = 1;
                    }
                }
            }
        }
    }
    return any;
}

/* In which passes a pixel goes, by its neighbours, counted clockwise from the one above, where it is not as the paper
 * has it. */
static const struct {
    const char* neighbours;
    int passes;
} exceptions_of_passes[] = {
    {"11000000", 1}, {"01100000", 1}, {"11100000", 1}, {"10100000", 3}, {"10100001", 1},
    {"10110000", 2}, {"00110000", 2}, {"00011000", 0}, {"00111000", 2}, {"00101000", 3},
    {"00101100", 2}, {"01101100", 2}, {"00001100", 2}, {"00000110", 2}, {"00001110", 2},
    {"00001010", 3}, {"00011010", 2}, {"00001011", 1}, {"00000011", 0}, {"10000001", 1},
    {"10000011", 1}, {"10000010", 3}, {"10000110", 1}, {"11000010", 1}, {"11000110", 1},
};

static int passes_of_pixel(const uint8_t* cube) {
    static const int clockwise[] = {10, 11, 14, 17, 16, 15, 12, 9};
    char text[9] = {0};
    int count = 0, arcs = 0;
    for (int k = 0; k < 8; ++k) {
        text[k] = cube[clockwise[k]] ? '1' : '0';
        count += cube[clockwise[k]];
        arcs += !cube[clockwise[k]] && cube[clockwise[(k + 1) % 8]];
    }
    for (size_t i = 0; i < sizeof exceptions_of_passes / sizeof exceptions_of_passes[0]; ++i) {
        if (strcmp(exceptions_of_passes[i].neighbours, text) == 0) {
            return exceptions_of_passes[i].passes;
        }
    }
    if (count < 2 || count > 6 || arcs != 1) {
        return 0;
    }
    const int up = cube[10], right = cube[14], down = cube[16], left = cube[12];
    return (!(up && right && down) && !(right && down && left)) | (!(up && right && left) && !(up && down && left))
                                                                      << 1;
}

static int thin_by_zhang(const struct volume* v, int pass, uint8_t* candidates) {
    int any = 0;
    for (int round = 0; round < 2; ++round) {
        uint8_t cube[27], *candidate = candidates;
        for (int64_t y = 0; y < v->sizes[1]; ++y) {
            for (int64_t x = 0; x < v->sizes[2]; ++x, ++candidate) {
                cube_around(v, 0, y, x, cube);
                if (round == 0) {
                    *candidate = cube[13] && passes_of_pixel(cube) >> pass & 1;
                } else if (*candidate) {
                    *voxel_at(v, 0, y, x) = 0;
                    any = 1;
                }
            }
        }
    }
    return any;
}

static void thin_volume(const struct volume* v, int is_zhang) {
    static const int sides[6][3] = {{0, -1, 0}, {0, 1, 0}, {0, 0, 1}, {0, 0, -1}, {1, 0, 0}, {-1, 0, 0}};
    uint8_t* candidates = cleared(v->sizes[0] * v->sizes[1] * v->sizes[2], 1);
    for (int any = 1; any;) {
        any = 0;
        for (int step = 0; step < (is_zhang ? 2 : v->is_flat ? 4 : 6); ++step) {
            any |= is_zhang ? thin_by_zhang(v, step, candidates) : thin_by_lee(v, sides[step], candidates);
        }
    }
    free(candidates);
}

/* ---- the kernels ---- */

static void thin_by_kernels(const struct segloss_kernels* table, struct segloss_skeleton* a, uint8_t* map) {
    const int64_t num_rows = (a->sizes[0] + 2) * (a->sizes[1] + 2), num_words = num_rows * a->words;
    uint64_t* words = cleared(3 * num_words, sizeof *words);
    uint8_t* rows = cleared(2 * num_rows, 1);
    a->mask = words;
    a->settled = words + num_words;
    a->chosen = words + 2 * num_words;
    a->pending = rows;
    a->has_chosen = rows + num_rows;
    table->skeleton_mask(a, map, 0, a->sizes[0]);
    table->skeleton_thin(a);
    table->skeleton_write(a, map, 0, a->sizes[0]);
    free(words);
    free(rows);
}

static void test_skeleton(const struct segloss_kernels* table, int kind) {
    struct volume v = {.is_flat = kind > 0};
    struct segloss_skeleton a = {.is_flat = v.is_flat, .is_zhang = kind == 2};
    for (int axis = 0; axis < 3; ++axis) {
        v.sizes[axis] = axis == 0 && v.is_flat ? 1 : 1 + random_below(axis == 2 ? v.is_flat ? 150 : 12 : 7);
    }
    if (kind == 0 && random_below(4) == 0) { /* across words */
        v.sizes[2] += 60;
    }
    memcpy(a.sizes, v.sizes, sizeof a.sizes);
    a.words = (a.sizes[2] + 2 + 63) / 64;
    a.words = a.is_zhang ? (a.words + 7) / 8 * 8 : a.words;
    a.stride_row = a.sizes[2] + random_below(3);
    a.stride_plane = a.stride_row * (a.sizes[1] + random_below(2));
    uint8_t* map = cleared(a.stride_plane * a.sizes[0], 1);
    v.voxels = cleared((a.sizes[0] + 2) * (a.sizes[1] + 2) * (a.sizes[2] + 2), 1);
    const int most = 2 + random_below(12);
    for (int64_t z = 0; z < a.sizes[0]; ++z) {
        for (int64_t y = 0; y < a.sizes[1]; ++y) {
            for (int64_t x = 0; x < a.sizes[2]; ++x) {
                const uint8_t voxel = random_below(most) > 0;
                *voxel_at(&v, z, y, x) = map[z * a.stride_plane + y * a.stride_row + x] = voxel;
            }
        }
    }
    thin_volume(&v, a.is_zhang);
    thin_by_kernels(table, &a, map);
    for (int64_t z = 0; z < a.sizes[0]; ++z) {
        for (int64_t y = 0; y < a.sizes[1]; ++y) {
            for (int64_t x = 0; x < a.sizes[2]; ++x) {
                if (*voxel_at(&v, z, y, x) != map[z * a.stride_plane + y * a.stride_row + x]) {
                    fail("another skeleton at %d, %d, %d", (int)z, (int)y, (int)x);
                }
            }
        }
    }
    free(map);
    free(v.voxels);
}

static void test_skeletons(void) {
    for (int i = 0; i < num_tables * 3 * 20 * ROUNDS; ++i) {
        const struct segloss_kernels* table = tables[i % num_tables];
        const int kind = i / num_tables % 3;
        snprintf(current_case, sizeof current_case, "skeletons: %s, kind %d, round %d", table->isa, kind, i);
        test_skeleton(table, kind);
    }
    printf("skeletons: ok\n");
}

#endif
