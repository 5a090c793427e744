/* Forward and backward of cross entropy against the reference. */
#ifndef SEGLOSS_TEST_CROSS_ENTROPY_TESTS_H
#define SEGLOSS_TEST_CROSS_ENTROPY_TESTS_H

#include "cases.h"

/* ---- cross entropy: comparing ---- */

/* How much a result of `dtype`, computed in `real`, may differ from the reference. Relative: the contract's 1e-5 in
 * float, where exp(-87) alone loses 5e-6 by the rounding of its argument; in double exp(-708) loses 8e-14. Absolute:
 * what exp rounds to zero below the smallest normal number, and half a step among the subnormals of `dtype`. */
struct tolerance {
    long double relative;
    long double absolute;
    long double overflow; /* from here on infinity is accepted: before its factor smoothing / C, a loss is larger */
};

static struct tolerance tolerance_of(enum segloss_dtype dtype, enum segloss_real real) {
    const struct format* computed = &formats[dtype_of_real(real)];
    const struct format* f = &formats[dtype];
    struct tolerance t = {real == SEGLOSS_REAL_DOUBLE ? 2e-13L : 1e-5L, ldexpl(256, computed->min_exponent),
                          computed->max / 0x1p14L};
    if (dtype != dtype_of_real(real)) {
        t.relative += ldexpl(0.5L, -f->mantissa_bits);
        t.absolute += ldexpl(0.5L, f->min_exponent - f->mantissa_bits);
        t.overflow = f->max < t.overflow ? f->max * (1 - t.relative) : t.overflow;
    }
    return t;
}

static int is_near(const struct tolerance* t, long double got, long double expected, long double magnitude) {
    if (isnan(expected) || isinf(expected)) {
        return same_number(got, expected);
    }
    if (fabsl(expected) >= t->overflow && isinf(got)) {
        return !signbit(got) == !signbit(expected);
    }
    return fabsl(got - expected) <= t->relative * magnitude + t->absolute;
}

static void check_near(const struct tolerance* t, long double got, long double expected, long double magnitude,
                       const char* name, int64_t p, int64_t c) {
    if (!is_near(t, got, expected, magnitude)) {
        fail("%s at position %lld, class %lld: %.9Lg, expected %.9Lg", name, (long long)p, (long long)c, got, expected);
    }
}

/* Compares the sums with the reference, and with the sum of the written losses, which tests the summation alone: it is
 * in double, on a GPU nearly. */
static void check_sums(const struct segloss_kernels* table, const struct test_case* t, const struct outputs* out,
                       const struct segloss_sums* sums, const struct voxel* expected) {
    const enum segloss_dtype real = dtype_of_real(t->numbers.real);
    const struct tolerance tolerance = tolerance_of(real, t->numbers.real);
    long double loss = 0, magnitude = 0, weight = 0, written = 0;
    for (int64_t p = 0; p < t->num_positions; ++p) {
        loss += expected[p].loss;
        magnitude += fabsl(expected[p].loss);
        weight += expected[p].weight;
        written += t->is_reduced ? 0 : get(&out->loss, p, 0);
    }
    check_near(&tolerance, sums->loss, loss, magnitude, "sum of the losses", -1, -1);
    check_near(&tolerance, sums->weight, weight, weight, "sum of the weights", -1, -1);
    if (!t->is_reduced && t->loss_dtype == real) {
        const struct tolerance summation = {splits_freely(table) ? 1e-13L : 2e-7L, 0, formats[SEGLOSS_FLOAT64].max};
        check_near(&summation, sums->loss, written, magnitude, "sum of the written losses", -1, -1);
    }
}

static void check_forward(const struct segloss_kernels* table, const struct test_case* t, const struct outputs* out,
                          const struct segloss_sums* sums, const struct voxel* expected) {
    const struct tolerance tolerance = tolerance_of(t->loss_dtype, t->numbers.real);
    for (int64_t p = 0; p < t->num_positions && !t->is_reduced; ++p) {
        check_near(&tolerance, get(&out->loss, p, 0), expected[p].loss, fabsl(expected[p].loss), "loss", p, -1);
    }
    check_sums(table, t, out, sums, expected);
    check_guards(&out->loss, "loss");
}

static void check_backward(const struct test_case* t, const struct outputs* out, const struct voxel* expected) {
    const struct tolerance tolerance = tolerance_of(t->numbers.logits, t->numbers.real);
    for (int64_t p = 0; p < t->num_positions; ++p) {
        for (int64_t c = 0; c < t->num_classes; ++c) {
            check_near(&tolerance, get(&out->grad, p, c), expected[p].grad[c], expected[p].magnitude[c], "grad", p, c);
        }
    }
    check_guards(&out->grad, "grad");
}

/* ---- cross entropy: running ---- */

static void check_accepted(int64_t position) {
    if (position != -1) {
        fail("position %lld was refused", (long long)position);
    }
}

/* Runs block by block, from the last one to the first, with the gradient in a second walk. */
static void run_in_blocks(const struct segloss_kernels* table, const struct test_case* t, struct outputs* out,
                          const struct inputs* in) {
    const struct segloss_cross_entropy args = arguments_of(t, in, out);
    struct segloss_cross_entropy without_gradient = args;
    without_gradient.grad_logits.data = NULL;
    for (int64_t begin = (t->num_positions - 1) / SEGLOSS_BLOCK * SEGLOSS_BLOCK; begin >= 0; begin -= SEGLOSS_BLOCK) {
        const int64_t end = begin + SEGLOSS_BLOCK < t->num_positions ? begin + SEGLOSS_BLOCK : t->num_positions;
        struct segloss_sums sums;
        check_accepted(table->cross_entropy_forward[t->numbers.real](&without_gradient, begin, end, &sums));
        check_accepted(table->cross_entropy_backward[t->numbers.real](&args, begin, end));
    }
}

static void check_same_bits(const struct memory* a, const struct memory* b, const char* name) {
    if (memcmp(a->bytes, b->bytes, a->size) != 0) {
        fail("%s: one walk over all and two for each block differ in their bits", name);
    }
}

static void check_weight_alone(const struct segloss_kernels* table, const struct test_case* t, double alone,
                               double with_losses) {
    const enum segloss_dtype real = dtype_of_real(t->numbers.real);
    const struct tolerance tolerance = tolerance_of(real, t->numbers.real);
    if (splits_freely(table) ? alone != with_losses : !is_near(&tolerance, alone, with_losses, with_losses)) {
        fail("the weight alone is %a, with the losses %a", alone, with_losses);
    }
}

static void run_table(const struct segloss_kernels* table, const struct test_case* t, const struct inputs* in,
                      const struct voxel* expected) {
    struct outputs whole, blocks;
    struct segloss_sums sums = {-1, -1}, weight = {-1, -1};
    describe_case(t, table->isa);
    create_outputs(t, &whole);
    create_outputs(t, &blocks);
    const struct segloss_cross_entropy args = arguments_of(t, in, &whole);
    check_accepted(table->cross_entropy_forward[t->numbers.real](&args, 0, t->num_positions, &sums));
    check_forward(table, t, &whole, &sums, expected);
    check_accepted(table->cross_entropy_weight[t->numbers.real](&args, 0, t->num_positions, &weight));
    check_weight_alone(table, t, weight.weight, sums.weight);
    check_backward(t, &whole, expected);
    if (t->has_sparse_grads) { /* backward packs the other voxels, and its zeros have another sign */
        check_accepted(table->cross_entropy_backward[t->numbers.real](&args, 0, t->num_positions));
        check_backward(t, &whole, expected);
    }
    if (splits_freely(table)) {
        run_in_blocks(table, t, &blocks, in);
        check_same_bits(&whole.loss, &blocks.loss, "loss");
        check_same_bits(&whole.grad, &blocks.grad, "grad");
    }
    free_outputs(&whole);
    free_outputs(&blocks);
}

static void check_case(const struct test_case* t, const struct inputs* in) {
    static struct voxel expected[MAX_POSITIONS];
    const struct outputs none = {0};
    const struct segloss_cross_entropy args = arguments_of(t, in, &none);
    const struct problem problem = problem_of(t, in, &args);
    for (int64_t p = 0; p < t->num_positions; ++p) {
        reference_voxel(&problem, p, &expected[p]);
    }
    for (int i = 0; i < num_tables; ++i) {
        run_table(tables[i], t, in, expected);
    }
}

static void run_case(const struct test_case* t) {
    struct inputs in;
    describe_case(t, "reference");
    create_inputs(t, &in);
    check_case(t, &in);
    free_inputs(&in);
}

/* Each number of positions x number of classes x pair of dtypes, ROUNDS times with other options. */
static void test_cross_entropy(struct target_kind kind) {
    int num_cases = 0;
    for (int i = 0; i < NUM_COUNTS; ++i) {
        for (int j = 0; j < NUM_CLASS_COUNTS; ++j) {
            for (int k = 0; k < NUM_PAIRS; ++k) {
                for (int round = 0; round < ROUNDS; ++round) {
                    random_state = (uint64_t)num_cases++;
                    const struct test_case t = draw_case(counts[i], class_counts[j], number_pairs[k], kind);
                    run_case(&t);
                }
            }
        }
    }
    printf("cross entropy, %s: %d cases in %d tables, in one walk and block by block in two: ok\n", kind.name,
           num_cases, num_tables);
}

#endif
