/* Tests of the CUDA kernels on an emulated GPU: the cases of the CPU's kernels, and tests of what only CUDA kernels do.
 * The cases take every size once; dtypes and options vary from case to case.
 *
 * Prints one line per group. Returns 1 at the first failure and prints its case. */

#include "binary_tests.h"
#include "label_table_tests.h"
#include "sigmoid_tests.h"
#include "soft_stats_tests.h"
#include "table.h"
#include "tile_tests.h"
#include "voxel_tests.h"

/* ---- against the references ---- */

static void test_cross_entropy_on_gpu(void) {
    int num_cases = 0;
    for (size_t kind = 0; kind < sizeof target_kinds / sizeof target_kinds[0]; ++kind) {
        for (int i = 0; i < NUM_COUNTS * NUM_CLASS_COUNTS; ++i) {
            random_state = (uint64_t)num_cases;
            set_order((unsigned)num_cases);
            const int64_t num_positions = counts[i % NUM_COUNTS];
            const int64_t num_classes = class_counts[i / NUM_COUNTS];
            const struct number_pair numbers = number_pairs[num_cases++ % NUM_PAIRS];
            const struct test_case t = draw_case(num_positions, num_classes, numbers, target_kinds[kind]);
            run_case(&t);
        }
    }
    printf("cross entropy: %d cases: ok\n", num_cases);
}

static const struct soft_kind {
    enum segloss_activation activation;
    const struct target_kind* kind;
} soft_kinds[] = {
    {SEGLOSS_SOFTMAX, &labels_kind}, {SEGLOSS_SOFTMAX, &probabilities_kind},  {SEGLOSS_SIGMOID, &labels_kind},
    {SEGLOSS_SIGMOID, &masks_kind},  {SEGLOSS_SIGMOID, &probabilities_kind},  {SEGLOSS_IDENTITY, &labels_kind},
    {SEGLOSS_IDENTITY, &masks_kind}, {SEGLOSS_IDENTITY, &probabilities_kind},
};

static void test_soft_stats_on_gpu(void) {
    static const int64_t few_class_counts[] = {1, 3, 65, 129}; /* 129 floats a voxel do not fit into shared memory */
    int num_cases = 0;
    for (size_t kind = 0; kind < sizeof soft_kinds / sizeof soft_kinds[0]; ++kind) {
        for (int i = 0; i < NUM_COUNTS * 4; ++i) {
            random_state = (uint64_t)num_cases;
            set_order((unsigned)num_cases);
            const struct number_pair numbers = number_pairs[num_cases++ % NUM_PAIRS];
            const struct test_case voxels =
                draw_case(counts[i % NUM_COUNTS], few_class_counts[i / NUM_COUNTS], numbers, *soft_kinds[kind].kind);
            const struct soft_case s = draw_soft_case(voxels, soft_kinds[kind].activation);
            run_soft_case(&s);
        }
    }
    printf("soft statistics: %d cases: ok\n", num_cases);
}

static void test_binary_on_gpu(void) {
    static const int64_t few_class_counts[] = {1, 3, 129};
    static const struct target_kind* const kinds[] = {&labels_kind, &probabilities_kind, &masks_kind};
    int num_cases = 0;
    for (int k = 0; k < 3; ++k) {
        for (int i = 0; i < NUM_COUNTS * 3; ++i) {
            random_state = (uint64_t)num_cases;
            set_order((unsigned)num_cases);
            const struct number_pair numbers = number_pairs[num_cases++ % NUM_PAIRS];
            const struct test_case t = draw_binary_case(
                draw_case(counts[i % NUM_COUNTS], few_class_counts[i / NUM_COUNTS], numbers, *kinds[k]));
            struct inputs in;
            create_binary_inputs(&t, &in);
            check_binary_case(&t, &in);
            free_inputs(&in);
        }
    }
    test_bad_binary_targets();
    printf("binary losses: %d cases: ok\n", num_cases);
}

/* ---- sums have the same bits in any order of blocks and threads ---- */

enum { BITS_POSITIONS = 3000, BITS_CLASSES = 3 };

struct sums_of_order {
    struct segloss_sums cross_entropy, losses;
    double stats[NUM_STATISTICS * BITS_CLASSES];
};

static void sum_in_order(const struct soft_case* s, const struct soft_inputs* in, unsigned order,
                         struct sums_of_order* sums) {
    const struct outputs none = {0};
    const struct soft_outputs no_outputs = {0};
    const enum segloss_real real = s->voxels.numbers.real;
    const struct segloss_cross_entropy args = arguments_of(&s->voxels, &in->voxels, &none);
    const struct segloss_soft_stats soft_args = soft_arguments_of(s, in, &no_outputs);
    set_order(order);
    check_accepted(cuda_table.cross_entropy_forward[real](&args, 0, BITS_POSITIONS, &sums->cross_entropy));
    check_accepted(run_soft_forward(&cuda_table, real, &soft_args, 0, BITS_POSITIONS, sums->stats, &sums->losses));
}

static void test_bits_in_any_order(void) {
    enum { ORDERS = 5 };
    for (int k = 0; k < NUM_PAIRS; ++k) {
        random_state = (uint64_t)k;
        struct test_case voxels = draw_case(BITS_POSITIONS, BITS_CLASSES, number_pairs[k], labels_kind);
        voxels.is_reduced = 1;
        voxels.values = ORDINARY;
        const struct soft_case s = {voxels, SEGLOSS_SOFTMAX, 0, 1, 0, 0};
        struct soft_inputs in;
        struct sums_of_order first, other;
        describe_soft_case(&s, "cuda");
        create_soft_inputs(&s, &in);
        sum_in_order(&s, &in, 0, &first);
        for (unsigned order = 1; order < ORDERS; ++order) {
            sum_in_order(&s, &in, order, &other);
            if (memcmp(&first, &other, sizeof first) != 0) {
                fail("the sums depend on the order of the threads");
            }
        }
        free_soft_inputs(&in);
    }
    printf("sums in %d orders of blocks and threads: same bits: ok\n", ORDERS);
}

/* ---- results have the same bits in planar and in interleaved logits, and by the general kernels in every layout ----
 */

enum { LAYOUT_POSITIONS = 300, LAYOUT_CLASSES = 129 };

struct results_of_layout {
    struct sums_of_order sums;
    double grads[2][LAYOUT_POSITIONS][LAYOUT_CLASSES];
};

static void find_results_of_layout(struct soft_case s, enum layout layout, struct results_of_layout* results) {
    const enum segloss_real real = s.voxels.numbers.real;
    const int64_t num_classes = s.voxels.num_classes;
    struct soft_inputs in;
    struct soft_outputs out;
    random_state = 1;
    s.voxels.logits_layout = s.voxels.grad_layout = layout;
    describe_soft_case(&s, "cuda");
    create_soft_inputs(&s, &in);
    create_soft_outputs(&s, &out);
    memset(results, 0, sizeof *results);
    const struct segloss_soft_stats args = soft_arguments_of(&s, &in, &out);
    check_accepted(run_forward(real, &args.voxels, 0, LAYOUT_POSITIONS, &results->sums.cross_entropy));
    check_accepted(
        run_soft_forward(&cuda_table, real, &args, 0, LAYOUT_POSITIONS, out.stats.view.data, &results->sums.losses));
    memcpy(results->sums.stats, out.stats.view.data, sizeof results->sums.stats);
    for (int k = 0; k < 2; ++k) {
        check_accepted(k == 0 ? run_backward(real, &args.voxels, 0, LAYOUT_POSITIONS)
                              : run_soft_backward(real, &args, 0, LAYOUT_POSITIONS));
        for (int64_t i = 0; i < LAYOUT_POSITIONS * num_classes; ++i) {
            results->grads[k][i / num_classes][i % num_classes] =
                (double)get(&out.grad, i / num_classes, i % num_classes);
        }
    }
    free_soft_inputs(&in);
    free_soft_outputs(&out);
}

static void test_bits_in_any_layout(void) {
    static const int64_t few_or_many[] = {BITS_CLASSES, LAYOUT_CLASSES};
    static struct results_of_layout planar, other;
    for (int k = 0; k < 2 * NUM_PAIRS; ++k) {
        random_state = (uint64_t)k;
        struct test_case voxels = draw_case(LAYOUT_POSITIONS, few_or_many[k % 2], number_pairs[k / 2], labels_kind);
        voxels.values = ORDINARY;
        voxels.gamma = voxels.label_smoothing = 0;
        const struct soft_case s = {voxels, SEGLOSS_SOFTMAX, 0, 1, 0, 0};
        find_results_of_layout(s, PLANAR, &planar);
        const int num_layouts = voxels.positions.num_dims > 2 ? NUM_NAMED_LAYOUTS : INTERLEAVED + 1;
        for (int layout = PLANAR + 1; layout < num_layouts; ++layout) {
            find_results_of_layout(s, (enum layout)layout, &other);
            if (memcmp(&planar, &other, sizeof planar) != 0) {
                fail("results differ from those of planar logits");
            }
        }
    }
    printf("results in up to %d layouts: same bits: ok\n", NUM_NAMED_LAYOUTS);
}

/* ---- samples ---- */

enum { SAMPLES = 3, SAMPLE_SIZE = 300, SAMPLE_CLASSES = 5 };

/* Gradients of the statistics for each sample, in newly allocated memory. */
static void* repeated(const struct memory* of_classes, enum segloss_real real) {
    const size_t size = SAMPLE_CLASSES * (real == SEGLOSS_REAL_DOUBLE ? sizeof(double) : sizeof(float));
    char* bytes = malloc(SAMPLES * size);
    for (int n = 0; n < SAMPLES; ++n) {
        memcpy(bytes + (size_t)n * size, of_classes->view.data, size);
        memset(bytes + (size_t)n * size, 0, n * size / SAMPLE_CLASSES); /* the samples' gradients differ */
    }
    return bytes;
}

/* By statistic, then by sample. */
struct sums_of_samples {
    double stats[SEGLOSS_STATISTICS][SAMPLES][SAMPLE_CLASSES];
    double loss[SAMPLES], weight[SAMPLES];
};

static void sum_samples(const struct segloss_soft_stats* args, const struct segloss_cuda_call* call, int first,
                        struct sums_of_samples* sums) {
    const struct segloss_cuda_sums results = {
        .loss = &sums->loss[first],
        .loss_dtype = SEGLOSS_FLOAT64,
        .weight = &sums->weight[first],
        .intersection = sums->stats[SEGLOSS_INTERSECTION][first],
        .prediction = sums->stats[SEGLOSS_PREDICTION][first],
        .target = sums->stats[SEGLOSS_TARGET][first],
    };
    struct segloss_soft_stats without_grad = *args;
    without_grad.voxels.grad_logits.data = NULL;
    segloss_cuda_soft_stats_forward(&without_grad, call, NULL, &results);
}

static void check_samples(const struct soft_case* s, const struct soft_inputs* in) {
    const enum segloss_real real = s->voxels.numbers.real;
    const size_t real_size = real == SEGLOSS_REAL_DOUBLE ? sizeof(double) : sizeof(float);
    const size_t grad_size = (size_t)(SAMPLES * SAMPLE_SIZE * SAMPLE_CLASSES);
    struct sums_of_samples all, expected;
    struct soft_outputs whole, alone;
    create_soft_outputs(s, &whole);
    create_soft_outputs(s, &alone);
    struct segloss_soft_stats args = soft_arguments_of(s, in, &whole), one = soft_arguments_of(s, in, &alone);
    char* const by_intersection = repeated(&in->grad_intersection, real);
    char* const by_prediction = repeated(&in->grad_prediction, real);
    struct segloss_cuda_call call = begin_call(real, 0, SAMPLES * SAMPLE_SIZE, SAMPLE_CLASSES);
    args.grad_intersection = by_intersection;
    args.grad_prediction = by_prediction;
    call.num_samples = SAMPLES;
    free(call.workspace);
    call.workspace = malloc(segloss_cuda_workspace(call.end, SAMPLES, SAMPLE_CLASSES));
    sum_samples(&args, &call, 0, &all);
    check_accepted(end_call(&call, segloss_cuda_soft_stats_backward(&args, &call, NULL, 0)));
    for (int n = 0; n < SAMPLES; ++n) {
        struct segloss_cuda_call single = begin_call(real, n * SAMPLE_SIZE, (n + 1) * SAMPLE_SIZE, SAMPLE_CLASSES);
        one.grad_intersection = by_intersection + (size_t)n * SAMPLE_CLASSES * real_size;
        one.grad_prediction = by_prediction + (size_t)n * SAMPLE_CLASSES * real_size;
        sum_samples(&one, &single, n, &expected);
        check_accepted(end_call(&single, segloss_cuda_soft_stats_backward(&one, &single, NULL, 0)));
    }
    if (memcmp(&all, &expected, sizeof all) != 0) {
        fail("samples have other sums than alone");
    }
    for (size_t i = 0; i < grad_size; ++i) {
        const int64_t p = (int64_t)i / SAMPLE_CLASSES, c = (int64_t)i % SAMPLE_CLASSES;
        if (get(&whole.grad, p, c) != get(&alone.grad, p, c)) {
            fail("position %lld has another gradient than in its sample alone", (long long)p);
        }
    }
    free(by_intersection);
    free(by_prediction);
    free_soft_outputs(&whole);
    free_soft_outputs(&alone);
}

static void test_samples(void) {
    for (int k = 0; k < NUM_PAIRS; ++k) {
        random_state = (uint64_t)k;
        struct test_case voxels = draw_case(SAMPLES * SAMPLE_SIZE, SAMPLE_CLASSES, number_pairs[k], labels_kind);
        voxels.values = ORDINARY;
        const struct soft_case s = {voxels, SEGLOSS_SOFTMAX, 1, 1, 0, 0};
        struct soft_inputs in;
        describe_soft_case(&s, "cuda");
        create_soft_inputs(&s, &in);
        check_samples(&s, &in);
        free_soft_inputs(&in);
    }
    printf("%d samples in one launch, each as alone: ok\n", SAMPLES);
}

/* ---- more voxels than threads ---- */

/* More than the threads of the largest grid. */
static const int64_t many_positions = 1024 * 128 * 2 + 77;

static void check_many_counts(const struct test_case* t, const struct inputs* in) {
    const struct confusion_case c = {t, in, NULL, 1};
    const struct segloss_positions cells = {1, {count_cells(&c) + 1}};
    const struct memory expected = allocate_counts(&cells);
    count_slowly(&c, &expected);
    check_counts(&cuda_table, &c, &expected);
    free(expected.bytes);
}

static void test_many_positions(void) {
    random_state = 1;
    struct test_case voxels = draw_case(many_positions, 2, number_pairs[0], labels_kind);
    voxels.is_reduced = 1;
    voxels.values = ORDINARY;
    voxels.gamma = voxels.label_smoothing = 0;
    const struct soft_case s = {voxels, SEGLOSS_SOFTMAX, 0, 1, 0, 0};
    const struct outputs none = {0};
    struct term grad[MAX_CLASSES];
    struct soft_sums expected;
    struct soft_inputs in;
    struct soft_outputs out;
    struct segloss_sums sums;
    describe_soft_case(&s, "cuda");
    set_order(0);
    create_soft_inputs(&s, &in);
    create_soft_outputs(&s, &out);
    memset(&expected, 0, sizeof expected);
    const struct segloss_soft_stats args = soft_arguments_of(&s, &in, &out);
    const struct soft_problem problem = soft_problem_of(&s, &in, &args);
    for (int64_t p = 0; p < many_positions; ++p) {
        reference_soft_voxel(&problem, p, &expected, grad);
    }
    const struct tolerance tolerance = tolerance_of_sums(&voxels);
    check_accepted(
        run_soft_forward(&cuda_table, SEGLOSS_REAL_FLOAT, &args, 0, many_positions, out.stats.view.data, &sums));
    check_stats(&s, &out.stats, &sums, &tolerance, &expected);
    const struct segloss_cross_entropy of_voxels = arguments_of(&voxels, &in.voxels, &none);
    check_accepted(run_forward(SEGLOSS_REAL_FLOAT, &of_voxels, 0, many_positions, &sums));
    check_near(&tolerance, sums.loss, expected.loss.value, expected.loss.magnitude, "sum of the losses", -1, -1);
    check_many_counts(&voxels, &in.voxels);
    free_soft_inputs(&in);
    free_soft_outputs(&out);
    printf("%lld positions: ok\n", (long long)many_positions);
}

/* ---- more classes than a plain sum in float can add accurately ---- */

static void test_tail_of_many_classes_on_gpu(void) {
    enum { CLASSES = 50000 };
    const struct tolerance tolerance = {1e-6L, 0, formats[SEGLOSS_FLOAT32].max};
    float* const logits = calloc(CLASSES, sizeof *logits);
    int64_t label = 0;
    long double tail = 0;
    struct segloss_sums sums;
    for (int c = 1; c < CLASSES; ++c) {
        logits[c] = -(float)(c % 7) - 0.1f;
        tail += expl(logits[c]);
    }
    const struct segloss_cross_entropy args = {
        .positions = {1, {1}},
        .num_classes = CLASSES,
        .logits = {.data = logits, .dtype = SEGLOSS_FLOAT32, .stride_class = 1},
        .target = {.data = &label, .dtype = SEGLOSS_INT64},
        .ignore_index = -100,
    };
    snprintf(current_case, sizeof current_case, "cuda: %d classes", CLASSES);
    check_accepted(run_forward(SEGLOSS_REAL_FLOAT, &args, 0, 1, &sums));
    check_near(&tolerance, expm1l(sums.loss), tail, tail, "tail", 0, -1);
    free(logits);
    printf("%d classes: ok\n", CLASSES);
}

/* ---- the gradient of a mean ---- */

static void check_same_grad(const struct test_case* t, const struct outputs* a, const struct outputs* b,
                            const char* what) {
    for (int64_t p = 0; p < t->num_positions; ++p) {
        for (int64_t c = 0; c < t->num_classes; ++c) {
            if (get(&a->grad, p, c) != get(&b->grad, p, c)) {
                fail("%s: grad %Lg at position %lld, class %lld, expected %Lg", what, get(&a->grad, p, c), (long long)p,
                     (long long)c, get(&b->grad, p, c));
            }
        }
    }
}

/* Forward writes the gradient of a mean for a grad_loss of 1. Backward leaves it alone if that is so, even if it is
 * something else; it writes the gradient for any other grad_loss. */
static void check_gradient_ahead(const struct test_case* t, const struct inputs* in, int is_binary,
                                 double total_weight) {
    static const double numbers[] = {1, 0.5, -3, INFINITY};
    const enum segloss_real real = t->numbers.real;
    struct outputs ahead, later;
    struct segloss_sums sums;
    create_outputs(t, &ahead);
    create_outputs(t, &later);
    struct segloss_soft_stats first = as_stats(&(struct segloss_cross_entropy){0}), second = first;
    first.voxels = arguments_of(t, in, &ahead);
    second.voxels = arguments_of(t, in, &later);
    first.voxels.loss = second.voxels.loss = (struct segloss_tensor){0};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; ++i) {
        const struct segloss_cuda_call call = begin_call(real, 0, t->num_positions, 0);
        struct segloss_cuda_sums results = results_in(&sums);
        float grad_loss = 1;
        results.reduction = SEGLOSS_MEAN;
        second.voxels.grad_loss = (struct segloss_tensor){.data = &grad_loss, .dtype = SEGLOSS_FLOAT32};
        first.voxels.grad_loss.data = NULL;
        is_binary ? segloss_cuda_soft_stats_forward(&first, &call, &total_weight, &results)
                  : segloss_cuda_cross_entropy_forward(&first.voxels, &call, &total_weight, &results);
        is_binary ? segloss_cuda_soft_stats_backward(&second, &call, &total_weight, 0)
                  : segloss_cuda_cross_entropy_backward(&second.voxels, &call, &total_weight, 0);
        check_same_grad(t, &ahead, &later, "ahead");
        if (sums.weight != total_weight) {
            fail("the denominator is %g, given was %g", sums.weight, total_weight);
        }
        set(&ahead.grad, 0, 0, 77);
        first.voxels.grad_loss = second.voxels.grad_loss;
        grad_loss = (float)numbers[i];
        is_binary ? segloss_cuda_soft_stats_backward(&first, &call, &total_weight, 1)
                  : segloss_cuda_cross_entropy_backward(&first.voxels, &call, &total_weight, 1);
        if ((grad_loss == 1) != (get(&ahead.grad, 0, 0) == 77)) {
            fail("grad_loss %g: grad %Lg", (double)grad_loss, get(&ahead.grad, 0, 0));
        }
        is_binary ? segloss_cuda_soft_stats_backward(&second, &call, &total_weight, 0)
                  : segloss_cuda_cross_entropy_backward(&second.voxels, &call, &total_weight, 0);
        set(&ahead.grad, 0, 0, get(&later.grad, 0, 0));
        if (isfinite(grad_loss)) {
            check_same_grad(t, &ahead, &later, "rescaled");
        }
        end_call(&call, 0);
    }
    free_outputs(&ahead);
    free_outputs(&later);
}

static void test_gradients_ahead(void) {
    static const double total_weights[] = {0.75, 3, 0};
    for (int k = 0; k < 2 * NUM_PAIRS; ++k) {
        random_state = (uint64_t)k;
        struct test_case t = draw_case(2 * SEGLOSS_BLOCK + 1, 3, number_pairs[k / 2], labels_kind);
        struct inputs in;
        t.values = ORDINARY;
        t.label_smoothing = 0;
        t.is_reduced = 1;
        describe_case(&t, "cuda");
        create_inputs(&t, &in);
        for (int i = 0; i < 3; ++i) {
            check_gradient_ahead(&t, &in, k % 2, total_weights[i]);
        }
        free_inputs(&in);
    }
    printf("gradients with the loss, and their scaling: ok\n");
}

/* A mean is finished in the dtype of the loss; without a weight it is nan, or 0. */
static void test_reductions(void) {
    static const enum segloss_dtype dtypes[] = {SEGLOSS_FLOAT32, SEGLOSS_FLOAT64, SEGLOSS_BFLOAT16};
    float logits[2] = {0, 0}, voxel_weight = 0.5F;
    const int64_t label = 1;
    const struct segloss_cross_entropy args = {
        .positions = {1, {1}},
        .num_classes = 2,
        .logits = {.data = logits, .dtype = SEGLOSS_FLOAT32, .stride_class = 1},
        .target = {.data = (void*)&label, .dtype = SEGLOSS_INT64},
        .voxel_weight = {.data = &voxel_weight, .dtype = SEGLOSS_FLOAT32},
    };
    for (int i = 0; i < 3 * 2; ++i) {
        voxel_weight = i < 3 ? 0.5F : 0;
        for (int reduction = SEGLOSS_SUM; reduction <= SEGLOSS_MEAN_OR_ZERO; ++reduction) {
            const struct segloss_cuda_call call = begin_call(SEGLOSS_REAL_FLOAT, 0, 1, 2);
            const struct segloss_positions one = {1, {1}};
            const struct memory loss = allocate_output(dtypes[i % 3], &one, 1, PLANAR);
            const struct segloss_cuda_sums results = {
                .loss = loss.view.data, .loss_dtype = dtypes[i % 3], .reduction = (enum segloss_reduction)reduction};
            check_accepted(end_call(&call, segloss_cuda_cross_entropy_forward(&args, &call, NULL, &results)));
            const long double actual = get(&loss, 0, 0), sum = voxel_weight * logl(2);
            const long double expected = reduction == SEGLOSS_SUM            ? sum
                                         : voxel_weight != 0                 ? logl(2)
                                         : reduction == SEGLOSS_MEAN_OR_ZERO ? 0
                                                                             : (long double)NAN;
            if (!(fabsl(actual - expected) < 0.003L) && !(isnan(actual) && isnan(expected))) {
                fail("reduction %d: %Lg, expected %Lg", reduction, actual, expected);
            }
            check_guards(&loss, "loss");
            free(loss.bytes);
        }
    }
    printf("sums and means: ok\n");
}

/* Dividing by a total_weight in device memory gives the same gradient as a grad_scale that is divided by it. */
static void check_mean_gradient(const struct test_case* t, const struct inputs* in, double total_weight) {
    struct outputs by_weight, by_scale;
    create_outputs(t, &by_weight);
    create_outputs(t, &by_scale);
    const struct segloss_cross_entropy args = arguments_of(t, in, &by_weight);
    struct segloss_cross_entropy scaled = arguments_of(t, in, &by_scale);
    scaled.grad_scale = total_weight == 0 ? 0 : args.grad_scale / total_weight;
    const struct segloss_cuda_call call = begin_call(t->numbers.real, 0, t->num_positions, t->num_classes);
    check_accepted(end_call(&call, segloss_cuda_cross_entropy_backward(&args, &call, &total_weight, 0)));
    check_accepted(run_backward(t->numbers.real, &scaled, 0, t->num_positions));
    check_same_grad(t, &by_weight, &by_scale, "total_weight");
    free_outputs(&by_weight);
    free_outputs(&by_scale);
}

static int differ(double a, double b) { return !(fabs(a - b) <= 1e-9 * fabs(b)); }

/* A mean whose denominator is not known before gives what its weight and forward give. */
static void check_mean(const struct test_case* t, const struct inputs* in) {
    struct outputs together, apart;
    struct segloss_sums sums, expected, of_weight;
    create_outputs(t, &together);
    create_outputs(t, &apart);
    struct segloss_cross_entropy args = arguments_of(t, in, &together), second = arguments_of(t, in, &apart);
    args.loss = second.loss = args.grad_loss = second.grad_loss = (struct segloss_tensor){0};
    const struct segloss_cuda_call call = begin_call(t->numbers.real, 0, t->num_positions, t->num_classes);
    struct segloss_cuda_sums results = results_in(&sums), other = results_in(&expected);
    results.reduction = other.reduction = SEGLOSS_MEAN_OR_ZERO;
    check_accepted(run_weight(t->numbers.real, &second, 0, t->num_positions, &of_weight));
    segloss_cuda_cross_entropy_forward(&second, &call, &of_weight.weight, &other);
    check_accepted(end_call(&call, segloss_cuda_cross_entropy_mean(&args, &call, &results)));
    check_same_grad(t, &together, &apart, "mean");
    if (differ(sums.weight, expected.weight) || differ(sums.loss, expected.loss)) {
        fail("mean: %g of %g, expected %g of %g", sums.loss, sums.weight, expected.loss, expected.weight);
    }
    free_outputs(&together);
    free_outputs(&apart);
}

static void test_mean_gradients(void) {
    static const double total_weights[] = {0, 0.75, 3, 1e6};
    for (int k = 0; k < NUM_PAIRS; ++k) {
        random_state = (uint64_t)k;
        struct test_case t = draw_case(SEGLOSS_BLOCK + 1, 3, number_pairs[k], labels_kind);
        struct inputs in;
        t.values = ORDINARY;
        describe_case(&t, "cuda");
        create_inputs(&t, &in);
        for (size_t i = 0; i < sizeof total_weights / sizeof total_weights[0]; ++i) {
            check_mean_gradient(&t, &in, total_weights[i]);
        }
        check_mean(&t, &in);
        free_inputs(&in);
        t = draw_case(3 * 8192 + 16, 3, number_pairs[k], labels_kind);
        t.values = ORDINARY;
        describe_case(&t, "cuda, many blocks");
        create_inputs(&t, &in);
        check_mean(&t, &in);
        free_inputs(&in);
    }
    printf("gradients of means: ok\n");
}

/* ---- refused labels ---- */

/* The loss and the gradient are all nan if `expected`, else none of them is. */
static void check_nan_at(const struct outputs* out, int64_t num_classes, int64_t p, int expected) {
    int num_nan = isnan(get(&out->loss, p, 0));
    for (int64_t c = 0; c < num_classes; ++c) {
        num_nan += isnan(get(&out->grad, p, c));
    }
    if (num_nan != (expected ? 1 + num_classes : 0)) {
        fail("%d of the losses and gradients at position %lld are nan", num_nan, (long long)p);
    }
}

static void check_report(int64_t count, int64_t position, int64_t label, double value) {
    if (refusal.count != count || refusal.position != position || refusal.label != label ||
        !same_number(refusal.value, value) || refusal.what != SEGLOSS_OF_TARGET) {
        fail("reported: %lld labels, the first at %lld: %lld, %g", (long long)refusal.count,
             (long long)refusal.position, (long long)refusal.label, refusal.value);
    }
}

/* A second refusal does not overwrite the report of the first, even if that is still being written. */
static void check_first_report_stays(const struct segloss_cross_entropy* args, enum segloss_real real, int64_t end) {
    struct segloss_sums sums;
    const struct segloss_cuda_sums results = results_in(&sums);
    const struct segloss_cuda_call call = begin_call(real, 0, end, args->num_classes);
    refusal = (struct segloss_refusal){.is_claimed = 1, .position = 5};
    end_call(&call, segloss_cuda_cross_entropy_forward(args, &call, NULL, &results));
    if (refusal.count != 0 || refusal.position != 5) {
        fail("a report was overwritten");
    }
}

static void test_refused_label(enum segloss_dtype dtype, double value, int64_t label) {
    enum { POSITIONS = 2 * SEGLOSS_BLOCK, FIRST = 70, SECOND = SEGLOSS_BLOCK + 3, CLASSES = 3 };
    struct test_case t = draw_case(POSITIONS, CLASSES, number_pairs[random_below(NUM_PAIRS)], labels_kind);
    struct inputs in;
    struct outputs out;
    struct segloss_sums sums;
    t.values = ORDINARY;
    t.target_dtype = dtype;
    t.ignore_index = 0;
    t.is_reduced = 0;
    describe_case(&t, "cuda");
    create_inputs(&t, &in);
    create_outputs(&t, &out);
    set(&in.target, FIRST, 0, value);
    set(&in.target, SECOND, 0, value);
    const struct segloss_cross_entropy args = arguments_of(&t, &in, &out);
    run_forward(t.numbers.real, &args, 0, POSITIONS, &sums);
    check_report(2, FIRST, label, value);
    if (!isnan(sums.loss) || !isnan(sums.weight)) {
        fail("the sums are %g and %g, expected nan", sums.loss, sums.weight);
    }
    for (int64_t p = 0; p < POSITIONS; ++p) {
        check_nan_at(&out, CLASSES, p, p == FIRST || p == SECOND);
    }
    check_guards(&out.loss, "loss");
    check_guards(&out.grad, "grad");
    check_first_report_stays(&args, t.numbers.real, POSITIONS);
    free_inputs(&in);
    free_outputs(&out);
}

static void test_refusals(void) {
    random_state = 1;
    test_refused_label(SEGLOSS_UINT8, 255, 255);
    test_refused_label(SEGLOSS_INT8, -7, -7);
    test_refused_label(SEGLOSS_INT64, -0x1p62, INT64_MIN / 2);
    test_refused_label(SEGLOSS_FLOAT32, 3, 3);
    test_refused_label(SEGLOSS_FLOAT16, 0.5, SEGLOSS_NO_LABEL);
    test_refused_label(SEGLOSS_FLOAT64, NAN, SEGLOSS_NO_LABEL);
    printf("what is refused: count, position and label of the first, nan and no more: ok\n");
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0); /* keeps the output if a sanitizer ends the program */
    tables[num_tables++] = &cuda_table;
    test_voxels();
    test_cross_entropy_on_gpu();
    test_soft_stats_on_gpu();
    test_binary_on_gpu();
    test_tiles();
    test_what_takes_no_tiles();
    test_sigmoid_tiles();
    test_many_sigmoid_tiles();
    test_confident_sigmoid_tiles();
    test_bits_of_sigmoids();
    test_refused_sigmoids();
    test_what_takes_no_sigmoid_tiles();
    test_confusion();
    test_bad_labels();
    test_bad_predictions();
    test_one_hot();
    test_label_tables();
    test_sets(SEGLOSS_SIGMOID);
    test_bad_soft_targets();
    test_ranges();
    test_refusals();
    test_mean_gradients();
    test_gradients_ahead();
    test_reductions();
    test_bits_in_any_order();
    test_bits_in_any_layout();
    test_samples();
    test_many_positions();
    test_tail_of_many_classes_on_gpu();
    return 0;
}
