/* Tests of choosing the largest losses. */
#ifndef SEGLOSS_TEST_TOPK_TESTS_H
#define SEGLOSS_TEST_TOPK_TESTS_H

#include "cross_entropy_tests.h"

struct topk_case {
    const struct test_case* test;
    const struct inputs* in;
    const struct memory* losses;
    int64_t num_kept;
    double grad_sum;
};

/* ---- values of a case ---- */

/* Few different losses, whose bits are near each other or far apart; raw cases have any bits. */
static void fill_losses(const struct test_case* t, const struct memory* losses) {
    const struct format* f = &formats[losses->view.dtype];
    const long double tiny = ldexpl(1, f->min_exponent - f->mantissa_bits);
    const long double few[] = {0,     -0.0L,  1,      1 + ulp(f, 1), -1,  2.5,      3 * tiny,
                               -tiny, 1e-30L, f->max, 1e-3L,         NAN, INFINITY, -(long double)INFINITY};
    const int num_values = t->values == HOSTILE ? 14 : 11;
    for (int64_t p = 0; p < t->num_positions; ++p) {
        const uint64_t bits = random_bits_of((size_t)f->size);
        set(losses, p, 0, t->values == RAW ? load(losses->view.dtype, &bits) : few[random_below(num_values)]);
    }
}

static int counts_in_topk(const struct topk_case* c, int64_t p) {
    const int is_ignored = get(&c->in->target, p, 0) == (long double)c->test->ignore_index;
    const struct format* f = &formats[dtype_of_real(c->test->numbers.real)];
    const int has_weight = c->test->voxel_weights != NO_WEIGHTS;
    return !is_ignored && !(has_weight && rounded(f, get(&c->in->voxel_weight, p, 0)) == 0);
}

static int64_t count_voxels(const struct topk_case* c) {
    int64_t num_voxels = 0;
    for (int64_t p = 0; p < c->test->num_positions; ++p) {
        num_voxels += counts_in_topk(c, p);
    }
    return num_voxels;
}

/* ---- against the reference ---- */

static int is_larger(long double a, long double b) { return a > b || (isnan(a) && !isnan(b)); }

/* How many losses go before the one at p: larger ones, and equal ones at earlier positions. */
static int64_t reference_rank(const struct topk_case* c, int64_t p) {
    const long double loss = get(c->losses, p, 0);
    int64_t rank = 0;
    for (int64_t q = 0; q < c->test->num_positions; ++q) {
        const long double other = get(c->losses, q, 0);
        const int goes_before = is_larger(other, loss) || (q < p && same_number(other, loss));
        rank += counts_in_topk(c, q) && goes_before;
    }
    return rank;
}

static struct segloss_topk topk_arguments(const struct topk_case* c, const struct memory* grad) {
    return (struct segloss_topk){
        .positions = c->test->positions,
        .losses = c->losses->view,
        .target = c->in->target.view,
        .voxel_weight = c->test->voxel_weights == NO_WEIGHTS ? (struct segloss_tensor){0} : c->in->voxel_weight.view,
        .ignore_index = c->test->ignore_index,
        .last_tie = -1,
        .grad_sum = c->grad_sum,
        .grad_losses = grad->view,
    };
}

/* Finds the key of the smallest loss to keep. Returns how many losses with this key are kept. */
static int64_t find_key(const struct segloss_kernels* table, const struct topk_case* c, struct segloss_topk* args) {
    enum { NUM_COUNTERS = SEGLOSS_TOPK_DIGITS * SEGLOSS_TOPK_COUNTERS };
    const int num_bits = c->test->numbers.real == SEGLOSS_REAL_DOUBLE ? 64 : 32;
    int64_t num_left = c->num_kept;
    for (int shift = num_bits; shift > 0;) {
        static int64_t counts[NUM_COUNTERS];
        shift = shift > 11 ? shift - 11 : 0;
        args->shift = shift;
        memset(counts, 0, sizeof counts);
        table->topk_count[c->test->numbers.real](args, 0, c->test->num_positions, counts, NULL);
        int64_t counter = NUM_COUNTERS - 1;
        while (counts[counter] < num_left || counter % SEGLOSS_TOPK_COUNTERS) {
            if (counter == 0) {
                fail("too few losses: %lld are missing", (long long)num_left);
            }
            if (counter % SEGLOSS_TOPK_COUNTERS) { /* adds up the counters of a digit in the first one */
                counts[counter - 1] += counts[counter];
            } else {
                num_left -= counts[counter];
            }
            --counter;
        }
        const uint64_t digit = (uint64_t)counter / SEGLOSS_TOPK_COUNTERS;
        args->key |= digit << shift;
        args->known |= (uint64_t)(SEGLOSS_TOPK_DIGITS - 1) << shift;
    }
    return num_left;
}

/* The sum of the losses that are larger than all that begin with the known bits, here all bits. */
static void check_topk_sum(const struct segloss_kernels* table, const struct topk_case* c,
                           const struct segloss_topk* args, int64_t num_kept_ties) {
    static int64_t counts[SEGLOSS_TOPK_DIGITS * SEGLOSS_TOPK_COUNTERS];
    long double expected = 0, magnitude = 0;
    for (int64_t p = 0; p < c->test->num_positions; ++p) {
        if (counts_in_topk(c, p) && reference_rank(c, p) < c->num_kept - num_kept_ties) {
            expected += get(c->losses, p, 0);
            magnitude += fabsl(get(c->losses, p, 0));
        }
    }
    double sum = -1;
    table->topk_count[c->test->numbers.real](args, 0, c->test->num_positions, counts, &sum);
    const int is_close = fabsl(sum - expected) <= 1e-13L * magnitude; /* of additions in double */
    const int overflows = magnitude > formats[SEGLOSS_FLOAT64].max && !isfinite(sum);
    if (!same_number(sum, expected) && !is_close && !overflows) {
        fail("the sum of the larger losses is %g, expected %Lg", sum, expected);
    }
}

static void check_topk_gradient(const struct topk_case* c, const struct memory* grad) {
    const struct format* f = &formats[grad->view.dtype];
    for (int64_t p = 0; p < c->test->num_positions; ++p) {
        const int is_kept = counts_in_topk(c, p) && reference_rank(c, p) < c->num_kept;
        const long double expected = is_kept ? rounded(f, c->grad_sum) : 0;
        if (get(grad, p, 0) != expected) {
            fail("grad of loss %Lg at position %lld is %Lg, expected %Lg", get(c->losses, p, 0), (long long)p,
                 get(grad, p, 0), expected);
        }
    }
    check_guards(grad, "grad");
}

static void check_topk(const struct segloss_kernels* table, const struct topk_case* c) {
    const enum segloss_real real = c->test->numbers.real;
    const int64_t end = c->test->num_positions;
    const struct memory grad = allocate_output(dtype_of_real(real), &c->test->positions, 1, c->test->lanes_layout);
    struct segloss_topk args = topk_arguments(c, &grad);
    const int64_t num_kept_ties = find_key(table, c, &args);
    check_topk_sum(table, c, &args, num_kept_ties);
    const int64_t num_ties = table->topk_ties[real](&args, 0, end, num_kept_ties - 1, &args.last_tie);
    if (num_kept_ties < 1 || num_ties < num_kept_ties || args.last_tie < 0) {
        fail("%lld of %lld ties are kept, up to position %lld", (long long)num_kept_ties, (long long)num_ties,
             (long long)args.last_tie);
    }
    table->topk_backward[real](&args, 0, end);
    check_topk_gradient(c, &grad);
    free(grad.bytes);
}

static void check_all_topk(const struct test_case* t, const struct inputs* in) {
    const struct memory losses = allocate_input(dtype_of_real(t->numbers.real), &t->positions, 1, t->logits_layout);
    fill_losses(t, &losses);
    struct topk_case c = {t, in, &losses, 0, 4 * random_unit() - 2};
    const int64_t num_voxels = count_voxels(&c);
    c.num_kept = num_voxels == 0 ? 0 : 1 + random_below(num_voxels);
    for (int i = 0; c.num_kept > 0 && i < num_tables; ++i) {
        describe_case(t, tables[i]->isa);
        check_topk(tables[i], &c);
    }
    free(losses.bytes);
}

static void test_topk(void) {
    enum { NUM_CASES = 40 * ROUNDS };
    int num_cases = 0;
    for (int i = 0; i < NUM_COUNTS; ++i) {
        for (int k = 0; k < NUM_CASES; ++k) {
            random_state = (uint64_t)num_cases++;
            const struct number_pair numbers = {SEGLOSS_FLOAT32, (enum segloss_real)(k % SEGLOSS_REALS)};
            const struct test_case t = draw_case(counts[i], 3, numbers, target_kinds[0]);
            struct inputs in;
            create_inputs(&t, &in);
            check_all_topk(&t, &in);
            free_inputs(&in);
        }
    }
    printf("top-k: %d cases in %d tables: ok\n", num_cases, num_tables);
}

#endif
