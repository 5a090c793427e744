/* Forward and backward of the binary losses against the reference. */
#ifndef SEGLOSS_TEST_BINARY_TESTS_H
#define SEGLOSS_TEST_BINARY_TESTS_H

#include "soft_stats_tests.h"

static struct test_case draw_binary_case(struct test_case t) {
    t.gamma = draw_gamma();
    return t;
}

/* Each class has its own loss and gradient. */
static void create_binary_inputs(const struct test_case* t, struct inputs* in) {
    create_inputs(t, in);
    free(in->grad_loss.bytes);
    in->grad_loss = allocate_input(t->loss_dtype, &t->positions, t->num_classes, t->lanes_layout);
    for (int64_t p = 0; p < t->num_positions; ++p) {
        for (int64_t c = 0; c < t->num_classes; ++c) {
            set(&in->grad_loss, p, c, 4 * random_unit() - 2);
        }
    }
    if (random_below(2)) {
        in->weight_of_ones = allocate_input(dtype_of_real(t->numbers.real), &in->classes, 1, PLANAR);
        for (int64_t c = 0; c < t->num_classes; ++c) {
            set(&in->weight_of_ones, c, 0, random_below(4) ? 0.25 + random_unit() : 0);
        }
    }
    if (t->is_reduced) {
        in->grad_loss.view.stride_class = 0;
        memset(in->grad_loss.view.strides, 0, sizeof in->grad_loss.view.strides);
    }
}

static void create_binary_outputs(const struct test_case* t, struct outputs* out) {
    out->loss = allocate_output(t->loss_dtype, &t->positions, t->num_classes, t->lanes_layout);
    out->grad = allocate_output(t->numbers.logits, &t->positions, t->num_classes, t->grad_layout);
}

/* Writes the losses or the gradient, also for a reduced loss. */
static struct segloss_cross_entropy binary_arguments_of(const struct test_case* t, const struct inputs* in,
                                                        const struct outputs* out, int with_gradient) {
    struct segloss_cross_entropy args = arguments_of(t, in, out);
    args.loss = with_gradient ? (struct segloss_tensor){0} : out->loss.view;
    args.grad_logits = with_gradient ? out->grad.view : (struct segloss_tensor){0};
    return args;
}

struct binary_voxel {
    struct term loss[MAX_CLASSES];
    struct term grad[MAX_CLASSES];
};

static void find_binary_voxels(const struct test_case* t, const struct inputs* in, struct binary_voxel* expected) {
    const struct outputs none = {0};
    const struct segloss_soft_stats args = {.voxels = binary_arguments_of(t, in, &none, 0)};
    const struct soft_problem problem = {.voxels = problem_of(t, in, &args.voxels), .args = &args};
    memset(expected, 0, (size_t)t->num_positions * sizeof *expected);
    for (int64_t p = 0; p < t->num_positions; ++p) {
        const long double v = reference_voxel_weight(&problem.voxels, p);
        for (int64_t c = 0; v != 0 && c < t->num_classes; ++c) {
            reference_binary(&problem, p, c, v, &expected[p].loss[c], &expected[p].grad[c]);
        }
    }
}

static void check_binary(const struct test_case* t, const struct outputs* out, const struct binary_voxel* expected) {
    const struct tolerance of_loss = tolerance_of(t->loss_dtype, t->numbers.real);
    const struct tolerance of_grad = tolerance_of(t->numbers.logits, t->numbers.real);
    for (int64_t p = 0; p < t->num_positions; ++p) {
        for (int64_t c = 0; c < t->num_classes; ++c) {
            const struct term *loss = &expected[p].loss[c], *grad = &expected[p].grad[c];
            check_near(&of_loss, get(&out->loss, p, c), loss->value, loss->magnitude, "loss", p, c);
            check_near(&of_grad, get(&out->grad, p, c), grad->value, grad->magnitude, "grad", p, c);
        }
    }
}

/* The sums with the losses, with the gradient, and the weight alone. */
static void check_binary_sums(const struct test_case* t, const struct segloss_sums sums[3],
                              const struct binary_voxel* expected) {
    struct tolerance tolerance = tolerance_of(dtype_of_real(t->numbers.real), t->numbers.real);
    struct term total = {0, 0};
    tolerance.absolute *= t->num_positions * t->num_classes;
    for (int64_t p = 0; p < t->num_positions; ++p) {
        for (int64_t c = 0; c < t->num_classes; ++c) {
            add_term(&total, expected[p].loss[c].value, expected[p].loss[c].magnitude);
        }
    }
    for (int i = 0; i < 2; ++i) {
        check_near(&tolerance, sums[i].loss, total.value, total.magnitude, "sum of the losses", -1, -1);
    }
    if (sums[0].weight != sums[2].weight || sums[1].weight != sums[2].weight) {
        fail("the weight alone is %a, with the losses %a, with the gradient %a", sums[2].weight, sums[0].weight,
             sums[1].weight);
    }
}

static void run_binary_table(const struct segloss_kernels* table, const struct test_case* t, const struct inputs* in,
                             const struct binary_voxel* expected) {
    const enum segloss_real real = t->numbers.real;
    struct outputs whole, blocks;
    struct segloss_sums sums[3], of_block;
    describe_case(t, table->isa);
    create_binary_outputs(t, &whole);
    create_binary_outputs(t, &blocks);
    const struct segloss_cross_entropy losses = binary_arguments_of(t, in, &whole, 0);
    const struct segloss_cross_entropy grad = binary_arguments_of(t, in, &whole, 1);
    const struct segloss_cross_entropy losses_of_blocks = binary_arguments_of(t, in, &blocks, 0);
    const struct segloss_cross_entropy grad_of_blocks = binary_arguments_of(t, in, &blocks, 1);
    check_accepted(table->binary_forward[real](&losses, 0, t->num_positions, &sums[0]));
    check_accepted(table->binary_forward[real](&grad, 0, t->num_positions, &sums[1]));
    check_accepted(table->binary_weight[real](&losses, 0, t->num_positions, &sums[2]));
    check_binary(t, &whole, expected);
    check_binary_sums(t, sums, expected);
    for (int64_t begin = 0; begin < t->num_positions; begin += SEGLOSS_BLOCK) {
        const int64_t end = begin + SEGLOSS_BLOCK < t->num_positions ? begin + SEGLOSS_BLOCK : t->num_positions;
        check_accepted(table->binary_backward[real](&grad_of_blocks, begin, end));
        check_accepted(table->binary_forward[real](&losses_of_blocks, begin, end, &of_block));
    }
    check_same_bits(&whole.loss, &blocks.loss, "loss");
    check_same_bits(&whole.grad, &blocks.grad, "grad");
    check_guards(&whole.loss, "loss");
    check_guards(&whole.grad, "grad");
    free_outputs(&whole);
    free_outputs(&blocks);
}

static void check_binary_case(const struct test_case* t, const struct inputs* in) {
    static struct binary_voxel expected[MAX_POSITIONS];
    find_binary_voxels(t, in, expected);
    for (int i = 0; i < num_tables; ++i) {
        run_binary_table(tables[i], t, in, expected);
    }
}

static void expect_binary_refusal(const struct segloss_kernels* table, const struct test_case* t,
                                  const struct inputs* in, int64_t expected) {
    const enum segloss_real real = t->numbers.real;
    struct outputs out;
    describe_case(t, table->isa);
    create_binary_outputs(t, &out);
    const struct segloss_cross_entropy losses = binary_arguments_of(t, in, &out, 0);
    const struct segloss_cross_entropy grad = binary_arguments_of(t, in, &out, 1);
    struct segloss_sums sums;
    expect_position("binary forward", table->binary_forward[real](&losses, 0, t->num_positions, &sums), expected);
    check_untouched(&out.loss, 0, t->num_positions, expected, "loss");
    const int64_t in_backward = refused_by_backward(table, t, expected);
    expect_position("binary weight", table->binary_weight[real](&losses, 0, t->num_positions, &sums),
                    t->kind.target == SEGLOSS_PROBABILITIES ? -1 : expected); /* it checks only labels and masks */
    expect_position("binary backward", table->binary_backward[real](&grad, 0, t->num_positions), in_backward);
    check_untouched(&out.grad, 0, t->num_positions, in_backward, "grad");
    free_outputs(&out);
}

static void test_binary(struct target_kind kind) {
    int num_cases = 0;
    for (int i = 0; i < NUM_COUNTS; ++i) {
        for (int j = 0; j < NUM_SOFT_CLASS_COUNTS; ++j) {
            for (int round = 0; round < BINARY_ROUNDS; ++round) {
                random_state = (uint64_t)num_cases;
                const struct number_pair numbers = number_pairs[num_cases++ % NUM_PAIRS];
                const struct test_case t = draw_binary_case(draw_case(counts[i], soft_class_counts[j], numbers, kind));
                struct inputs in;
                create_binary_inputs(&t, &in);
                check_binary_case(&t, &in);
                free_inputs(&in);
            }
        }
    }
    printf("binary losses, %s: %d cases in %d tables, whole and block by block: ok\n", kind.name, num_cases,
           num_tables);
}

/* A bad label, a bad mask and a bad probability. */
static void test_bad_binary_targets(void) {
    const struct target_kind kinds[] = {labels_kind, masks_kind, probabilities_kind};
    for (int k = 0; k < 3; ++k) {
        struct test_case t = draw_binary_case(draw_case(MAX_POSITIONS, BAD_CLASSES, number_pairs[k], kinds[k]));
        struct inputs in;
        t.target_dtype = k < 2 ? SEGLOSS_INT16 : SEGLOSS_FLOAT32;
        t.target_range = test_range;
        t.voxel_weights = POSITIVE_WEIGHTS;
        t.target_layout = PLANAR;
        create_binary_inputs(&t, &in);
        set(&in.target, SEGLOSS_BLOCK + 1, 0, INT16_MIN);
        for (int i = 0; i < num_tables; ++i) {
            expect_binary_refusal(tables[i], &t, &in, SEGLOSS_BLOCK + 1);
        }
        free_inputs(&in);
    }
    printf("binary losses of bad targets: ok\n");
}

static void test_all_binary(void) {
    test_binary(labels_kind);
    test_binary(probabilities_kind);
    test_binary(masks_kind);
    test_bad_binary_targets();
}

#endif
