/* Tests of the nearest components, against all voxels that have one. */
#ifndef SEGLOSS_TEST_NEAREST_TESTS_H
#define SEGLOSS_TEST_NEAREST_TESTS_H

#include "distance_tests.h"

static double squared_between(const struct segloss_nearest* a, int64_t first, int64_t second) {
    const double unit = a->spacing[SEGLOSS_COLUMNS];
    double square = 0;
    for (int axis = SEGLOSS_COLUMNS; axis >= 0; --axis) { /* in the order of the kernels: sums round alike */
        const double steps = (double)(first % a->sizes[axis] - second % a->sizes[axis]) * (a->spacing[axis] / unit);
        square += steps * steps;
        first /= a->sizes[axis];
        second /= a->sizes[axis];
    }
    return square;
}

static void check_nearest(const struct segloss_nearest* a, const int32_t* given, int64_t volume) {
    for (int64_t voxel = 0; voxel < volume; ++voxel) {
        double least = INFINITY;
        int32_t nearest = 0;
        for (int64_t other = 0; other < volume; ++other) {
            const double square = given[other] > 0 ? squared_between(a, voxel, other) : INFINITY;
            const int is_nearer = square < least || (square == least && given[other] < nearest);
            nearest = given[other] > 0 && is_nearer ? given[other] : nearest;
            least = square < least ? square : least;
        }
        if (a->components[voxel] != nearest) {
            fail("voxel %lld: expected component %d, got %d", (long long)voxel, nearest, a->components[voxel]);
        }
    }
}

/* Runs the kernels over all lines, in ranges of any size. */
static void find_nearest(const struct segloss_kernels* table, const struct segloss_nearest* a, int64_t volume) {
    for (int axis = SEGLOSS_COLUMNS; axis >= 0; --axis) {
        const int64_t count = volume / a->sizes[axis];
        double* workspace = malloc((size_t)segloss_nearest_workspace(a, axis) * sizeof *workspace);
        for (int64_t begin = 0, end = 0; begin < count; begin = end) {
            end = begin + 1 + random_below(count - begin);
            if (axis == SEGLOSS_COLUMNS) {
                table->nearest_columns(a, begin, end);
            } else {
                table->nearest_lines(a, axis, begin, end, workspace);
            }
        }
        free(workspace);
    }
}

static void test_nearest(void) {
    for (size_t s = 0; s < sizeof volume_sizes / sizeof volume_sizes[0]; ++s) {
        for (int i = 0; i < num_tables * 8 * ROUNDS; ++i) {
            const struct segloss_kernels* table = tables[i % num_tables];
            const int one_in = 1 << random_below(9), num_components = 1 + random_below(9);
            struct segloss_nearest a;
            int64_t volume = 1;
            a.last_axis = SEGLOSS_PLANES;
            for (int axis = 0; axis < SEGLOSS_AXES; ++axis) {
                a.sizes[axis] = volume_sizes[s][axis];
                a.spacing[axis] = random_below(2) ? 1 : 0.25 * (1 + random_below(9)); /* sums of squares are exact */
                volume *= a.sizes[axis];
            }
            int32_t* given = malloc((size_t)volume * sizeof *given);
            a.components = malloc((size_t)volume * sizeof *a.components);
            a.squares = malloc((size_t)volume * sizeof *a.squares);
            for (int64_t voxel = 0; voxel < volume; ++voxel) {
                given[voxel] = random_below(one_in) == 0 ? 1 + random_below(num_components) : 0;
                a.components[voxel] = given[voxel];
            }
            a.spacing[SEGLOSS_COLUMNS] = random_below(2) ? 1 : 0.5; /* a power of two, so that quotients are exact */
            snprintf(current_case, sizeof current_case, "nearest components: %s, volume %d, one in %d", table->isa,
                     (int)s, one_in);
            find_nearest(table, &a, volume);
            check_nearest(&a, given, volume);
            free(given);
            free(a.components);
            free(a.squares);
        }
    }
    printf("nearest components: ok\n");
}

#endif
