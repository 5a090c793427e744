/* Tests of soft skeletons and of their gradient, against one voxel after the other, and of probabilities. */
#ifndef SEGLOSS_TEST_SOFT_SKELETON_TESTS_H
#define SEGLOSS_TEST_SOFT_SKELETON_TESTS_H

#include "harness.h"
#include "tables.h"

enum { MOST_LEVELS = 6 };

/* An image, and what the slow reference finds of it in double. */
struct skeleton_case {
    struct segloss_soft_skeleton args;
    int64_t volume;
    double* eroded[MOST_LEVELS + 1];    /* x_k */
    int64_t* least_at[MOST_LEVELS + 1]; /* which voxel an erosion took */
    int64_t* most_at[MOST_LEVELS + 1];  /* which voxel of the next erosion its dilation took */
    double* lost[MOST_LEVELS + 1];      /* d_k */
    double* sum[MOST_LEVELS + 1];       /* s_k */
    double* grad_skeleton;
    double* grad;
};

static void voxel_place(const struct skeleton_case* c, int64_t voxel, int64_t* place) {
    for (int axis = 2; axis >= 0; --axis) {
        place[axis] = voxel % c->args.sizes[axis];
        voxel /= c->args.sizes[axis];
    }
}

/* The voxel at an offset; -1 beyond the border. */
static int64_t neighbour_of(const struct skeleton_case* c, int64_t voxel, int dz, int dy, int dx) {
    const int64_t* sizes = c->args.sizes;
    int64_t place[3];
    voxel_place(c, voxel, place);
    const int64_t z = place[0] + dz, y = place[1] + dy, x = place[2] + dx;
    const int is_in = z >= 0 && z < sizes[0] && y >= 0 && y < sizes[1] && x >= 0 && x < sizes[2];
    return is_in ? (z * sizes[1] + y) * sizes[2] + x : -1;
}

static const int cross_of_erosion[7][3] = {{0, 0, 0}, {-1, 0, 0}, {0, -1, 0}, {0, 0, -1},
                                           {0, 0, 1}, {0, 1, 0},  {1, 0, 0}};
static const int middle_first[3] = {0, -1, 1};

static void erode_slowly(struct skeleton_case* c, int k) {
    for (int64_t voxel = 0; voxel < c->volume; ++voxel) {
        int64_t at = voxel;
        for (int n = 0; n < 7; ++n) {
            const int* d = cross_of_erosion[n];
            const int64_t other = neighbour_of(c, voxel, d[0], d[1], d[2]);
            at = other >= 0 && c->eroded[k][other] < c->eroded[k][at] ? other : at;
        }
        c->least_at[k][voxel] = at;
        c->eroded[k + 1][voxel] = c->eroded[k][at];
    }
}

/* Planes compare the largest of their rows, and rows those of their columns; the first in the order of middle_first
 * wins. */
static int64_t largest_around(const struct skeleton_case* c, const double* x, int64_t voxel) {
    int64_t of_planes = -1;
    for (int p = 0; p < 3; ++p) {
        int64_t of_rows = -1;
        for (int r = 0; r < 3; ++r) {
            int64_t of_columns = -1;
            for (int q = 0; q < 3; ++q) {
                const int64_t other = neighbour_of(c, voxel, middle_first[p], middle_first[r], middle_first[q]);
                of_columns = other >= 0 && (of_columns < 0 || x[other] > x[of_columns]) ? other : of_columns;
            }
            of_rows = of_columns >= 0 && (of_rows < 0 || x[of_columns] > x[of_rows]) ? of_columns : of_rows;
        }
        of_planes = of_rows >= 0 && (of_planes < 0 || x[of_rows] > x[of_planes]) ? of_rows : of_planes;
    }
    return of_planes;
}

static void find_skeleton_slowly(struct skeleton_case* c) {
    for (int k = 0; k <= c->args.iterations; ++k) {
        erode_slowly(c, k);
        for (int64_t i = 0; i < c->volume; ++i) {
            c->most_at[k][i] = largest_around(c, c->eroded[k + 1], i);
            const double lost = c->eroded[k][i] - c->eroded[k + 1][c->most_at[k][i]];
            c->lost[k][i] = lost > 0 ? lost : 0;
            const double before = k == 0 ? 0 : c->sum[k - 1][i], more = c->lost[k][i] * (1 - before);
            c->sum[k][i] = before + (more > 0 ? more : 0);
        }
    }
}

static void find_gradient_slowly(struct skeleton_case* c) {
    const int last = (int)c->args.iterations;
    double* of_sum = malloc((size_t)c->volume * sizeof *of_sum);
    double* of_lost[MOST_LEVELS + 1];
    memcpy(of_sum, c->grad_skeleton, (size_t)c->volume * sizeof *of_sum);
    for (int k = last; k >= 0; --k) {
        of_lost[k] = malloc((size_t)c->volume * sizeof *of_lost[k]);
        for (int64_t i = 0; i < c->volume; ++i) {
            const double before = k == 0 ? 0 : c->sum[k - 1][i];
            const int is_more = c->lost[k][i] * (1 - before) > 0;
            of_lost[k][i] = is_more ? of_sum[i] * (1 - before) : 0;
            of_sum[i] -= is_more ? of_sum[i] * c->lost[k][i] : 0;
        }
    }
    double* of_eroded = calloc((size_t)c->volume, sizeof *of_eroded);
    for (int k = last; k >= 0; --k) {
        double* grad = calloc((size_t)c->volume, sizeof *grad);
        for (int64_t i = 0; i < c->volume; ++i) {
            of_eroded[c->most_at[k][i]] -= of_lost[k][i];
        }
        for (int64_t i = 0; i < c->volume; ++i) {
            grad[i] += of_lost[k][i];
            grad[c->least_at[k][i]] += of_eroded[i];
        }
        free(of_eroded);
        free(of_lost[k]);
        of_eroded = grad;
    }
    memcpy(c->grad, of_eroded, (size_t)c->volume * sizeof *c->grad);
    free(of_eroded);
    free(of_sum);
}

static void store_real(enum segloss_real real, void* to, int64_t i, double value) {
    if (real == SEGLOSS_REAL_FLOAT) {
        ((float*)to)[i] = (float)value;
    } else {
        ((double*)to)[i] = value;
    }
}

static double load_real(enum segloss_real real, const void* from, int64_t i) {
    return real == SEGLOSS_REAL_FLOAT ? ((const float*)from)[i] : ((const double*)from)[i];
}

static void expect_close(enum segloss_real real, const char* what, int64_t voxel, double expected, double actual) {
    const double allowed = (real == SEGLOSS_REAL_FLOAT ? 1e-5 : 1e-13) * (1 + fabs(expected));
    if (!(fabs(expected - actual) <= allowed)) {
        fail("%s, voxel %lld: expected %.17g, got %.17g", what, (long long)voxel, expected, actual);
    }
}

/* Runs the kernels over ranges of planes of any sizes. */
static void check_skeleton_case(const struct segloss_kernels* table, const struct skeleton_case* c,
                                enum segloss_real real, int is_mask) {
    const size_t size = real == SEGLOSS_REAL_FLOAT ? sizeof(float) : sizeof(double);
    char* image = malloc((size_t)c->volume * size);
    char* incoming = malloc((size_t)c->volume * size);
    char* skeleton = malloc((size_t)c->volume * size);
    char* grad = malloc((size_t)c->volume * size);
    uint8_t* mask = malloc((size_t)c->volume);
    uint8_t* of_mask = malloc((size_t)c->volume);
    for (int64_t i = 0; i < c->volume; ++i) {
        store_real(real, image, i, c->eroded[0][i]);
        store_real(real, incoming, i, c->grad_skeleton[i]);
        mask[i] = c->eroded[0][i] > 0;
    }
    for (int64_t begin = 0, end = 0; begin < c->args.sizes[0]; begin = end) {
        end = begin + 1 + random_below((int)(c->args.sizes[0] - begin));
        const int64_t elements = table->soft_skeleton_workspace(&c->args, 0);
        char* workspace = malloc((size_t)elements * size);
        table->soft_skeleton[real](&c->args, image, skeleton, begin, end, workspace);
        free(workspace);
        workspace = malloc((size_t)elements);
        table->soft_skeleton_of_mask(&c->args, mask, of_mask, begin, end, workspace);
        free(workspace);
        workspace = malloc((size_t)table->soft_skeleton_workspace(&c->args, 1) * size);
        table->soft_skeleton_backward[real](&c->args, image, incoming, grad, begin, end, workspace);
        free(workspace);
    }
    for (int64_t i = 0; i < c->volume; ++i) {
        expect_close(real, "skeleton", i, c->sum[c->args.iterations][i], load_real(real, skeleton, i));
        expect_close(real, "gradient", i, c->grad[i], load_real(real, grad, i));
        if (is_mask && of_mask[i] != (c->sum[c->args.iterations][i] > 0)) {
            fail("mask, voxel %lld: got %d", (long long)i, of_mask[i]);
        }
    }
    free(image);
    free(incoming);
    free(skeleton);
    free(grad);
    free(mask);
    free(of_mask);
}

static void test_soft_skeleton(void) {
    static const int sizes[][3] = {{1, 1, 1}, {1, 1, 70}, {9, 1, 8}, {1, 9, 8}, {30, 1, 17}, {5, 6, 7}, {25, 3, 4}};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; ++s) {
        for (int i = 0; i < num_tables * SEGLOSS_REALS * 4 * ROUNDS; ++i) {
            const struct segloss_kernels* table = tables[i % num_tables];
            const enum segloss_real real = (enum segloss_real)(i / num_tables % SEGLOSS_REALS);
            const int levels = random_below(5), is_mask = random_below(2);
            struct skeleton_case c = {.args = {{sizes[s][0], sizes[s][1], sizes[s][2]}, levels}};
            c.volume = (int64_t)sizes[s][0] * sizes[s][1] * sizes[s][2];
            snprintf(current_case, sizeof current_case, "soft skeleton: %s, real %d, volume %d, %d iterations%s",
                     table->isa, (int)real, (int)s, levels, is_mask ? ", of a mask" : "");
            const size_t count = (size_t)c.volume;
            for (int k = 0; k <= levels + 1; ++k) {
                c.eroded[k] = malloc(count * sizeof(double));
                c.lost[k] = malloc(count * sizeof(double));
                c.sum[k] = malloc(count * sizeof(double));
                c.least_at[k] = malloc(count * sizeof(int64_t));
                c.most_at[k] = malloc(count * sizeof(int64_t));
            }
            c.grad_skeleton = malloc(count * sizeof(double));
            c.grad = malloc(count * sizeof(double));
            for (int64_t v = 0; v < c.volume; ++v) { /* eighths, so that many are equal, or any floats */
                const double any = (float)random_unit();
                c.eroded[0][v] = is_mask ? random_below(3) > 0 : levels % 2 ? floor(any * 8) / 8 : any;
                c.grad_skeleton[v] = (float)(random_unit() - 0.5);
            }
            find_skeleton_slowly(&c);
            find_gradient_slowly(&c);
            check_skeleton_case(table, &c, real, is_mask);
            for (int k = 0; k <= levels + 1; ++k) {
                free(c.eroded[k]);
                free(c.lost[k]);
                free(c.sum[k]);
                free(c.least_at[k]);
                free(c.most_at[k]);
            }
            free(c.grad_skeleton);
            free(c.grad);
        }
    }
    printf("soft skeleton: ok\n");
}

#endif
