/* Tests of resizing logits, and of the gradient's way back, against sums over all values. */
#ifndef SEGLOSS_TEST_RESIZE_TESTS_H
#define SEGLOSS_TEST_RESIZE_TESTS_H

#include "harness.h"
#include "tables.h"

enum { MOST_COLUMNS = 400 };

/* An axis in tables of both types. */
struct axis_case {
    int32_t low[MOST_COLUMNS], high[MOST_COLUMNS];
    float low_float[MOST_COLUMNS], high_float[MOST_COLUMNS];
    double low_double[MOST_COLUMNS], high_double[MOST_COLUMNS];
    int size, size_from;
};

/* Linear interpolation, or nearest neighbours. */
static void make_axis(struct axis_case* axis, int size_from, int size, int is_linear) {
    axis->size = size;
    axis->size_from = size_from;
    for (int i = 0; i < size; ++i) {
        const int distance = (2 * i + 1) * size_from - size, place = is_linear && distance > 0 ? distance : 0;
        const int low = is_linear ? place / (2 * size) : i * size_from / size;
        const double fraction = is_linear ? (double)(place % (2 * size)) / (2 * size) : 0;
        const int is_single = fraction == 0 || low + 1 == size_from;
        axis->low[i] = low;
        axis->high[i] = low + !is_single;
        axis->high_double[i] = is_single ? 0.5 : fraction;
        axis->low_double[i] = 1 - axis->high_double[i];
        axis->low_float[i] = (float)axis->low_double[i];
        axis->high_float[i] = (float)axis->high_double[i];
    }
}

static struct segloss_axis view_of_axis(const struct axis_case* axis, enum segloss_real real) {
    const int is_double = real == SEGLOSS_REAL_DOUBLE;
    return (struct segloss_axis){axis->low,
                                 axis->high,
                                 is_double ? (const void*)axis->low_double : axis->low_float,
                                 is_double ? (const void*)axis->high_double : axis->high_float,
                                 axis->size,
                                 axis->size_from};
}

/* The weight of value `from` at index i of an axis. */
static double weight_at(const struct axis_case* axis, int i, int from) {
    return (axis->low[i] == from) * axis->low_double[i] + (axis->high[i] == from) * axis->high_double[i];
}

struct resize_case {
    struct axis_case axes[SEGLOSS_AXES];
    enum segloss_real real;
    int num_classes;
    struct memory from, grad;
    int plane, row, begin, end;
};

static int64_t position_from(const struct resize_case* c, int plane, int row, int column) {
    const struct axis_case* axes = c->axes;
    return ((int64_t)plane * axes[SEGLOSS_ROWS].size_from + row) * axes[SEGLOSS_COLUMNS].size_from + column;
}

/* The sum of all values by their weights at a column of the row. */
static long double expected_value(const struct resize_case* c, int column, int class) {
    const struct axis_case* axes = c->axes;
    long double sum = 0;
    for (int p = 0; p < axes[SEGLOSS_PLANES].size_from; ++p) {
        for (int r = 0; r < axes[SEGLOSS_ROWS].size_from; ++r) {
            const double weight =
                weight_at(&axes[SEGLOSS_PLANES], c->plane, p) * weight_at(&axes[SEGLOSS_ROWS], c->row, r);
            for (int k = axes[SEGLOSS_COLUMNS].low[column]; weight != 0 && k <= axes[SEGLOSS_COLUMNS].high[column];
                 ++k) {
                sum += weight * weight_at(&axes[SEGLOSS_COLUMNS], column, k) *
                       get(&c->from, position_from(c, p, r, k), class);
            }
        }
    }
    return sum;
}

static void expect_near(const char* what, long double actual, long double expected, enum segloss_real real) {
    const long double bound = (1 + fabsl(expected)) * (real == SEGLOSS_REAL_DOUBLE ? 0x1p-47L : 0x1p-18L);
    if (!(fabsl(actual - expected) <= bound)) {
        fail("%s: expected %.17Lg, got %.17Lg", what, expected, actual);
    }
}

static void check_row(const struct segloss_kernels* table, const struct resize_case* c, struct segloss_resize* args) {
    const int64_t stride = (c->end - c->begin + 15) / 16 * 16 + 16;
    const struct segloss_positions lanes = {1, {stride}};
    const struct memory to = allocate_output(dtype_of_real(c->real), &lanes, c->num_classes, 0);
    table->resize_row[c->real](args, c->plane, c->row, c->begin, c->end, to.view.data, to.view.stride_class);
    for (int k = 0; k < c->num_classes; ++k) {
        for (int i = c->begin; i < c->end; ++i) {
            expect_near("value", get(&to, i - c->begin, k), expected_value(c, i, k), c->real);
        }
    }
    check_guards(&to, "row");
    free(to.bytes);
}

static void check_row_grad(const struct segloss_kernels* table, const struct resize_case* c,
                           struct segloss_resize* args) {
    const int64_t stride = (c->end - c->begin + 15) / 16 * 16 + 16, num_from = count_positions(c->grad.positions);
    const struct segloss_positions lanes = {1, {stride}};
    const struct memory from = allocate_output(dtype_of_real(c->real), &lanes, c->num_classes, 0);
    long double* expected = calloc((size_t)(num_from * c->num_classes), sizeof *expected);
    for (int k = 0; k < c->num_classes; ++k) {
        for (int64_t i = 0; i < stride; ++i) { /* nothing past the end may count */
            set(&from, i, k, i < c->end - c->begin ? random_unit() - 0.5 : NAN);
        }
        for (int64_t p = 0; p < num_from; ++p) {
            set(&c->grad, p, k, random_unit());
            expected[p * c->num_classes + k] = get(&c->grad, p, k);
        }
    }
    for (int p = 0; p < c->axes[SEGLOSS_PLANES].size_from; ++p) {
        for (int r = 0; r < c->axes[SEGLOSS_ROWS].size_from; ++r) {
            const double weight =
                weight_at(&c->axes[SEGLOSS_PLANES], c->plane, p) * weight_at(&c->axes[SEGLOSS_ROWS], c->row, r);
            for (int i = c->begin; i < c->end; ++i) {
                const struct axis_case* columns = &c->axes[SEGLOSS_COLUMNS];
                for (int j = columns->low[i]; j <= columns->high[i]; ++j) {
                    for (int k = 0; k < c->num_classes; ++k) {
                        expected[position_from(c, p, r, j) * c->num_classes + k] +=
                            weight * weight_at(columns, i, j) * get(&from, i - c->begin, k);
                    }
                }
            }
        }
    }
    table->resize_row_grad[c->real](args, c->plane, c->row, c->begin, c->end, from.view.data, from.view.stride_class);
    for (int64_t p = 0; p < num_from; ++p) {
        for (int k = 0; k < c->num_classes; ++k) {
            expect_near("gradient", get(&c->grad, p, k), expected[p * c->num_classes + k], c->real);
        }
    }
    check_guards(&c->grad, "gradient");
    free(expected);
    free(from.bytes);
}

static void check_resize(const struct segloss_kernels* table, struct resize_case* c) {
    struct segloss_resize args = {.num_classes = c->num_classes, .from = c->from.view, .grad = c->grad.view};
    for (int axis = 0; axis < SEGLOSS_AXES; ++axis) {
        args.axes[axis] = view_of_axis(&c->axes[axis], c->real);
    }
    const size_t plan_size = (size_t)table->resize_plan[c->real](&args.axes[SEGLOSS_COLUMNS], NULL);
    void* plan = aligned_alloc(64, (plan_size + 63) / 64 * 64);
    table->resize_plan[c->real](&args.axes[SEGLOSS_COLUMNS], plan);
    args.plan = plan;
    const size_t num_reals = (size_t)segloss_resize_workspace(&args);
    args.workspace = malloc(num_reals * sizeof(double));
    memset(args.workspace, GUARD_BYTE, num_reals * sizeof(double));
    const int size = c->axes[SEGLOSS_COLUMNS].size;
    for (c->begin = 0; c->begin < size; c->begin += 2 * SEGLOSS_BLOCK) {
        c->end = size < c->begin + 2 * SEGLOSS_BLOCK ? size : c->begin + 2 * SEGLOSS_BLOCK;
        check_row(table, c, &args);
        check_row_grad(table, c, &args);
    }
    free(args.workspace);
    free(plan);
}

static const int column_sizes[][2] = {{1, 1},     {1, 9},     {5, 1},    {7, 7},    {9, 18},    {40, 80},
                                      {40, 160},  {33, 132},  {35, 280}, {20, 320}, {100, 150}, {60, 140},
                                      {130, 131}, {200, 100}, {300, 90}, {90, 399}};

static void test_resize(void) {
    for (size_t s = 0; s < sizeof column_sizes / sizeof column_sizes[0]; ++s) {
        for (int i = 0; i < num_tables * NUM_FLOATING * 4; ++i) {
            struct resize_case* c = calloc(1, sizeof *c);
            const struct segloss_kernels* table = tables[i % num_tables];
            const enum segloss_dtype dtype = (enum segloss_dtype)(i / num_tables % NUM_FLOATING);
            c->real = dtype == SEGLOSS_FLOAT64 ? SEGLOSS_REAL_DOUBLE : SEGLOSS_REAL_FLOAT;
            c->num_classes = 1 + random_below(5);
            make_axis(&c->axes[SEGLOSS_PLANES], 1 + random_below(3), 1 + random_below(6), random_below(3));
            make_axis(&c->axes[SEGLOSS_ROWS], 1 + random_below(4), 1 + random_below(9), random_below(4));
            make_axis(&c->axes[SEGLOSS_COLUMNS], column_sizes[s][0], column_sizes[s][1], random_below(4));
            c->plane = random_below(c->axes[SEGLOSS_PLANES].size);
            c->row = random_below(c->axes[SEGLOSS_ROWS].size);
            const struct segloss_positions positions = {
                3, {c->axes[SEGLOSS_PLANES].size_from, c->axes[SEGLOSS_ROWS].size_from, column_sizes[s][0]}};
            c->from = allocate_input(dtype, &positions, c->num_classes, draw_layout(NUM_INPUT_LAYOUTS));
            c->grad = allocate_output(dtype_of_real(c->real), &positions, c->num_classes, 0);
            snprintf(current_case, sizeof current_case, "resize: %s, %s, %d columns to %d, %d classes", table->isa,
                     formats[dtype].name, column_sizes[s][0], column_sizes[s][1], c->num_classes);
            for (int64_t p = 0; p < count_positions(c->from.positions); ++p) {
                for (int k = 0; k < c->num_classes; ++k) {
                    set(&c->from, p, k, rounded(&formats[dtype], 8 * random_unit() - 4));
                }
            }
            check_resize(table, c);
            free(c->from.bytes);
            free(c->grad.bytes);
            free(c);
        }
    }
    printf("resize: ok\n");
}

#endif
