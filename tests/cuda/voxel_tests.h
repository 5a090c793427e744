/* Tests of voxel.h, compiled as C, against the references. */
#ifndef SEGLOSS_TEST_VOXEL_TESTS_H
#define SEGLOSS_TEST_VOXEL_TESTS_H

#include "soft_stats_tests.h"
#include "voxel.h"

#define REAL float
#define FN(name) name##_float
#include "voxel_tmpl.h"

#define REAL double
#define FN(name) name##_double
#include "voxel_tmpl.h"

static void check_voxel(const struct problem* problem, int64_t p) {
    const int is_double = problem->real == SEGLOSS_REAL_DOUBLE;
    const struct tolerance tolerance = tolerance_of(dtype_of_real(problem->real), problem->real);
    struct voxel expected;
    long double grad[MAX_CLASSES];
    reference_voxel(problem, p, &expected);
    const long double loss = is_double ? (long double)loss_of_voxel_double(problem, p, grad)
                                       : (long double)loss_of_voxel_float(problem, p, grad);
    check_near(&tolerance, loss, expected.loss, expected.loss, "loss", p, -1);
    for (int64_t c = 0; c < problem->args->num_classes; ++c) {
        check_near(&tolerance, grad[c], expected.grad[c], expected.magnitude[c], "grad", p, c);
    }
}

/* Labels with focal losses, or probabilities, with all kinds of logits. */
static void test_voxels_of(struct target_kind kind, int num_cases) {
    for (int i = 0; i < num_cases; ++i) {
        random_state = (uint64_t)i;
        const int64_t num_classes = class_counts[i % NUM_CLASS_COUNTS];
        struct test_case t = draw_case(20, num_classes, number_pairs[i % 2 ? 0 : 3], kind);
        const struct outputs none = {0};
        struct inputs in;
        t.label_smoothing = 0;
        t.voxel_weights = NO_WEIGHTS;
        describe_case(&t, "voxel");
        create_inputs(&t, &in);
        struct segloss_cross_entropy args = arguments_of(&t, &in, &none);
        args.grad_scale = 1;
        const struct problem problem = problem_of(&t, &in, &args);
        for (int64_t p = 0; p < t.num_positions; ++p) {
            set(&in.grad_loss, p, 0, 1);
            if (!reference_is_ignored(&problem, p)) {
                check_voxel(&problem, p);
            }
        }
        free_inputs(&in);
    }
}

static void test_binary_of_voxels(void) {
    static const double hs[] = {0, 0.05, 0.5, 1}, gammas[] = {0, 0.5, 1, 2, 5};
    const struct tolerance of_float = tolerance_of(SEGLOSS_FLOAT32, SEGLOSS_REAL_FLOAT);
    const struct tolerance of_double = tolerance_of(SEGLOSS_FLOAT64, SEGLOSS_REAL_DOUBLE);
    for (double x = -80; x <= 80; x += 0.375) {
        for (int i = 0; i < 20; ++i) {
            check_binary_float(&of_float, (float)x, (float)hs[i % 4], (float)gammas[i / 4]);
            check_binary_double(&of_double, x, hs[i % 4], gammas[i / 4]);
        }
    }
}

/* Over thousands of classes a plain sum in float loses digits: here 4e-4 of the tail. */
static void test_tail_of_many_classes(void) {
    enum { CLASSES = 100000 };
    struct softmax_float s;
    long double tail = 0;
    snprintf(current_case, sizeof current_case, "voxel: %d classes", CLASSES);
    start_softmax_float(&s);
    add_logit_float(&s, 0);
    for (int c = 1; c < CLASSES; ++c) {
        const float x = -(float)(c % 7) - 0.1f;
        tail += expl(x);
        add_logit_float(&s, x);
        if (c % VOXEL_GROUP == 0) {
            finish_group_float(&s);
        }
    }
    finish_group_float(&s);
    finish_softmax_float(&s);
    const struct tolerance tolerance = {2e-7L, 0, formats[SEGLOSS_FLOAT32].max};
    check_near(&tolerance, s.tail, tail, tail, "tail", -1, -1);
}

static void test_voxels(void) {
    enum { CASES = 200 };
    test_voxels_of(labels_kind, CASES);
    test_voxels_of(probabilities_kind, CASES);
    test_binary_of_voxels();
    test_tail_of_many_classes();
    printf("one voxel: %d cases of labels and of probabilities, sigmoids, a tail of many classes: ok\n", CASES);
}

#endif
