/* Tests of the kernels over tiles for sigmoids: numbers of classes where their shapes change, each type and layout of
 * logits, each kind and dtype of targets, sizes that end within a tile or take several blocks. */
#ifndef SEGLOSS_TEST_SIGMOID_TESTS_H
#define SEGLOSS_TEST_SIGMOID_TESTS_H

#include "tile_tests.h"

/* Whether the kernels over tiles of sigmoids take a call for all positions. */
int takes_sigmoid_tiles(const struct segloss_soft_stats* stats, const struct segloss_cuda_call* call);

static const struct target_kind* const sigmoid_kinds[] = {&labels_kind, &masks_kind, &probabilities_kind};

enum { NUM_SIGMOID_KINDS = sizeof sigmoid_kinds / sizeof sigmoid_kinds[0], MANY_TILES = 9003 };

static enum segloss_dtype draw_sigmoid_target_dtype(struct target_kind kind, int64_t num_classes) {
    static const enum segloss_dtype of_labels[] = {SEGLOSS_UINT8, SEGLOSS_INT16, SEGLOSS_INT32, SEGLOSS_INT64};
    static const enum segloss_dtype of_masks[] = {SEGLOSS_FLOAT32, SEGLOSS_FLOAT16, SEGLOSS_BFLOAT16, SEGLOSS_UINT8,
                                                  SEGLOSS_INT64};
    return kind.target == SEGLOSS_LABELS  ? of_labels[num_classes > 127 ? 3 : random_below(4)]
           : kind.target == SEGLOSS_MASKS ? of_masks[random_below(5)]
                                          : of_masks[random_below(3)];
}

static struct soft_case draw_sigmoid_case(int64_t num_positions, int64_t num_classes, int type, enum layout layout,
                                          struct target_kind kind, int is_plain) {
    struct test_case t = draw_case(num_positions, num_classes, number_pairs[type], kind);
    t.positions = (struct segloss_positions){1, {num_positions}};
    t.logits_layout = t.grad_layout = layout;
    t.target_layout = kind.target == SEGLOSS_LABELS ? PLANAR : layout;
    t.target_dtype = draw_sigmoid_target_dtype(kind, num_classes);
    struct soft_case s = draw_soft_case(t, SEGLOSS_SIGMOID);
    if (is_plain) {
        s.voxels.class_weights = s.voxels.voxel_weights = NO_WEIGHTS;
        s.voxels.gamma = s.voxels.label_smoothing = 0;
        s.voxels.ignore_index = -100;
        s.voxels.is_reduced = 1;
        s.squared = s.soft_label = 0;
    }
    return s;
}

static int takes_tiles_for(const struct soft_case* s, const struct segloss_soft_stats* args) {
    const struct segloss_cuda_call call =
        begin_call(s->voxels.numbers.real, 0, s->voxels.num_positions, s->voxels.num_classes);
    free(call.workspace);
    return takes_sigmoid_tiles(args, &call);
}

/* The losses alone, with their gradient in the same walk and by itself. */
static void check_sigmoid_losses(const struct soft_case* s, const struct soft_problem* problem,
                                 const struct tolerance* of_sums) {
    const struct tolerance tolerance = tolerance_of(s->voxels.numbers.logits, s->voxels.numbers.real);
    const int64_t end = s->voxels.num_positions, num_classes = s->voxels.num_classes;
    struct soft_sums expected = {0};
    struct soft_outputs ahead, later;
    struct segloss_sums sums;
    create_soft_outputs(s, &ahead);
    create_soft_outputs(s, &later);
    struct segloss_cross_entropy first = problem->args->voxels, second = first;
    first.loss = second.loss = (struct segloss_tensor){0};
    first.grad_loss.stride_class = second.grad_loss.stride_class = 0;
    first.grad_logits = ahead.grad.view;
    second.grad_logits = later.grad.view;
    check_accepted(run_binary_forward(s->voxels.numbers.real, &first, 0, end, &sums));
    check_accepted(run_binary_backward(s->voxels.numbers.real, &second, 0, end));
    for (int64_t p = 0; p < end; ++p) {
        const long double v = reference_voxel_weight(&problem->voxels, p);
        struct term grad[MAX_CLASSES] = {0};
        if (v != 0) {
            reference_losses(problem, p, v, &expected, grad);
        }
        for (int64_t c = 0; c < num_classes; ++c) {
            check_near(&tolerance, get(&ahead.grad, p, c), grad[c].value, grad[c].magnitude, "grad ahead", p, c);
        }
    }
    check_near(of_sums, sums.loss, expected.loss.value, expected.loss.magnitude, "sum of the losses alone", -1, -1);
    check_near(of_sums, sums.weight, expected.weight.value, expected.weight.value, "sum of the weights", -1, -1);
    check_same_bits(&ahead.grad, &later.grad, "grad of the losses");
    free_soft_outputs(&ahead);
    free_soft_outputs(&later);
}

static void check_sigmoid_case(const struct soft_case* s, const struct soft_inputs* in) {
    const enum segloss_real real = s->voxels.numbers.real;
    const int64_t end = s->voxels.num_positions;
    const struct tolerance of_grad = tolerance_of(s->voxels.numbers.logits, real);
    const struct tolerance of_sums = tolerance_of_sums(&s->voxels);
    static struct soft_sums expected;
    struct soft_outputs out;
    struct segloss_sums sums;
    create_soft_outputs(s, &out);
    const struct segloss_soft_stats args = soft_arguments_of(s, in, &out);
    const struct soft_problem problem = soft_problem_of(s, in, &args);
    if (!takes_tiles_for(s, &args)) {
        fail("the kernels over tiles do not take the call");
    }
    check_accepted(run_soft_forward(&cuda_table, real, &args, 0, end, out.stats.view.data, &sums));
    check_accepted(run_soft_backward(real, &args, 0, end));
    memset(&expected, 0, sizeof expected);
    for (int64_t p = 0; p < end; ++p) {
        struct term grad[MAX_CLASSES];
        reference_soft_voxel(&problem, p, &expected, grad);
        for (int64_t c = 0; c < s->voxels.num_classes; ++c) {
            check_near(&of_grad, get(&out.grad, p, c), grad[c].value, grad[c].magnitude, "grad", p, c);
        }
    }
    check_stats(s, &out.stats, &sums, &of_sums, &expected);
    check_guards(&out.grad, "grad");
    if (s->with_loss) {
        check_sigmoid_losses(s, &problem, &of_sums);
    }
    free_soft_outputs(&out);
}

static void run_sigmoid_case(const struct soft_case* s) {
    struct soft_inputs in;
    describe_soft_case(s, "cuda");
    create_soft_inputs(s, &in);
    check_sigmoid_case(s, &in);
    free_soft_inputs(&in);
}

static void test_sigmoid_tiles(void) {
    static const int64_t class_counts_of_tiles[] = {1, 2, 3, 4, 5, 8, 9, 17, 64, 65, 128};
    const int num_class_counts = sizeof class_counts_of_tiles / sizeof class_counts_of_tiles[0];
    int num_cases = 0;
    for (int i = 0; i < num_class_counts; ++i) {
        for (int k = 0; k < 4 * TILE_TYPES; ++k) {
            random_state = (uint64_t)num_cases;
            set_order((unsigned)num_cases);
            const int64_t num_classes = class_counts_of_tiles[i];
            const struct target_kind kind = *sigmoid_kinds[(num_cases / 2 + i) % NUM_SIGMOID_KINDS];
            const int64_t num_positions = random_below(2) ? 256 : 300 + random_below(2);
            const struct soft_case s = draw_sigmoid_case(num_positions, num_classes, k / 4,
                                                         k % 2 ? INTERLEAVED : PLANAR, kind, (num_cases + i) % 4 != 0);
            run_sigmoid_case(&s);
            ++num_cases;
        }
    }
    printf("tiles of sigmoids: %d cases: ok\n", num_cases);
}

/* Some more classes, masks of another dtype, and masks that lie otherwise than the logits. */
static void test_what_takes_no_sigmoid_tiles(void) {
    static const struct {
        int64_t num_classes;
        const struct target_kind* kind;
        enum segloss_dtype dtype;
        enum layout target_layout;
    } cases[] = {{129, &labels_kind, SEGLOSS_INT16, PLANAR},
                 {257, &masks_kind, SEGLOSS_UINT8, PLANAR},
                 {4, &masks_kind, SEGLOSS_INT32, PLANAR},
                 {4, &masks_kind, SEGLOSS_UINT8, INTERLEAVED}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        struct soft_inputs in;
        struct soft_outputs out;
        random_state = (uint64_t)i;
        struct soft_case s = draw_sigmoid_case(256, cases[i].num_classes, 0, PLANAR, *cases[i].kind, 1);
        s.voxels.target_dtype = cases[i].dtype;
        s.voxels.target_layout = cases[i].target_layout;
        describe_soft_case(&s, "cuda");
        create_soft_inputs(&s, &in);
        create_soft_outputs(&s, &out);
        const struct segloss_soft_stats args = soft_arguments_of(&s, &in, &out);
        if (takes_tiles_for(&s, &args)) {
            fail("the kernels over tiles take the call");
        }
        free_soft_inputs(&in);
        free_soft_outputs(&out);
        run_soft_case(&s);
    }
    printf("what takes no tiles of sigmoids: ok\n");
}

/* A lane of one class reads four tiles before it uses any; and blocks follow each other. */
static void test_many_sigmoid_tiles(void) {
    static const int64_t few_classes[] = {1, 1, 9};
    int num_cases = 0;
    for (int i = 0; i < 3; ++i) {
        for (int k = 0; k < 2 * TILE_TYPES; ++k) {
            random_state = (uint64_t)num_cases;
            const enum layout layout = k < TILE_TYPES ? PLANAR : INTERLEAVED;
            const struct target_kind kind = *sigmoid_kinds[1 - (num_cases + i) % 2 * (few_classes[i] > 1)];
            struct soft_case s = draw_sigmoid_case(MANY_TILES - num_cases % 2, few_classes[i], k % TILE_TYPES, layout,
                                                   kind, num_cases % 5 != 0);
            s.with_loss = i % 2;
            ++num_cases;
            run_sigmoid_case(&s);
        }
    }
    printf("%d tiles of sigmoids in several blocks: %d cases: ok\n", MANY_TILES, num_cases);
}

/* Voxels whose logits are all far from 0, on the right side or all on the wrong one: what is small keeps its digits, as
 * all terms of a sum are. The first class has masks of 1, the second one of 0. */
static void test_confident_sigmoid_tiles(void) {
    int num_cases = 0;
    for (double margin = -80; margin <= 80; margin += 1.25) {
        random_state = (uint64_t)num_cases;
        struct soft_case s = draw_sigmoid_case(256, 2, 0, num_cases % 2 ? INTERLEAVED : PLANAR, masks_kind, 1);
        struct soft_inputs in;
        s.with_loss = 1;
        s.voxels.gamma = num_cases % 4 == 3 ? 2 : 0;
        s.voxels.values = CONFIDENT;
        s.voxels.target_dtype = SEGLOSS_UINT8;
        describe_soft_case(&s, "cuda");
        create_soft_inputs(&s, &in);
        for (int64_t p = 0; p < 256; ++p) {
            for (int c = 0; c < 2; ++c) {
                set(&in.voxels.logits, p, c, c == 0 ? margin : -margin);
                set(&in.voxels.target, p, c, c == 0);
            }
        }
        check_sigmoid_case(&s, &in);
        free_soft_inputs(&in);
        ++num_cases;
    }
    printf("tiles of confident sigmoids: %d margins: ok\n", num_cases);
}

/* ---- results have the same bits in planar and in interleaved logits, aligned or not ---- */

enum { SAME_POSITIONS = 2100, SAME_CLASSES = 17 };

struct sigmoid_results {
    struct segloss_sums sums, losses;
    double stats[NUM_STATISTICS * SAME_CLASSES];
    double grads[2][SAME_POSITIONS][SAME_CLASSES];
};

/* Moves a tensor by one element to where no vector begins. Returns the memory to free. */
static void* move_by_one_element(struct segloss_tensor* t, int64_t num_elements) {
    const size_t size = (size_t)formats[t->dtype].size, bytes = (size_t)num_elements * size;
    char* const memory = aligned_alloc(ALIGNMENT, (bytes + size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    memcpy(memory + size, t->data, bytes);
    t->data = memory + size;
    return memory;
}

static void find_sigmoid_results(struct soft_case s, enum layout layout, int is_moved, struct sigmoid_results* r) {
    const enum segloss_real real = s.voxels.numbers.real;
    const int64_t end = s.voxels.num_positions, num_classes = s.voxels.num_classes;
    const int64_t target_classes = s.voxels.kind.target == SEGLOSS_LABELS ? 1 : num_classes;
    struct soft_inputs in;
    struct soft_outputs out;
    void* moved[3] = {NULL, NULL, NULL};
    random_state = 1;
    s.voxels.logits_layout = s.voxels.grad_layout = layout;
    s.voxels.target_layout = target_classes == 1 ? PLANAR : layout;
    describe_soft_case(&s, "cuda");
    create_soft_inputs(&s, &in);
    create_soft_outputs(&s, &out);
    memset(r, 0, sizeof *r);
    struct segloss_soft_stats args = soft_arguments_of(&s, &in, &out);
    args.voxels.grad_loss.stride_class = 0;
    if (is_moved) {
        moved[0] = move_by_one_element(&args.voxels.logits, end * num_classes);
        if (s.voxels.kind.target != SEGLOSS_LABELS) { /* labels lie in the same way in all layouts of logits */
            moved[1] = move_by_one_element(&args.voxels.target, end * target_classes);
        }
        moved[2] = move_by_one_element(&args.voxels.grad_logits, end * num_classes);
    }
    check_accepted(run_soft_forward(&cuda_table, real, &args, 0, end, r->stats, &r->sums));
    for (int k = 0; k < 2; ++k) {
        check_accepted(k == 0 ? run_soft_backward(real, &args, 0, end)
                              : run_binary_forward(real, &args.voxels, 0, end, &r->losses));
        out.grad.view.data = args.voxels.grad_logits.data;
        for (int64_t i = 0; i < end * num_classes; ++i) {
            r->grads[k][i / num_classes][i % num_classes] = (double)get(&out.grad, i / num_classes, i % num_classes);
        }
    }
    for (int k = 0; k < 3; ++k) {
        free(moved[k]);
    }
    free_soft_inputs(&in);
    free_soft_outputs(&out);
}

static void test_bits_of_sigmoids(void) {
    static const int64_t few_or_many[] = {1, 2, 5, 9, SAME_CLASSES};
    static struct sigmoid_results planar, other;
    int num_cases = 0;
    for (int i = 0; i < 5; ++i) {
        for (int k = 0; k < TILE_TYPES; ++k) {
            random_state = (uint64_t)num_cases;
            struct soft_case s = draw_sigmoid_case(SAME_POSITIONS - random_below(2), few_or_many[i], k, PLANAR,
                                                   *sigmoid_kinds[(k + i) % NUM_SIGMOID_KINDS], num_cases % 3 != 0);
            s.voxels.values = ORDINARY;
            s.voxels.is_reduced = s.with_loss = 1;
            s.is_spoilt = 0;
            find_sigmoid_results(s, PLANAR, 0, &planar);
            for (int way = 1; way < 4; ++way) {
                find_sigmoid_results(s, way % 2 ? INTERLEAVED : PLANAR, way / 2, &other);
                if (memcmp(&planar, &other, sizeof planar) != 0) {
                    fail("results differ from those of planar logits that are aligned");
                }
            }
            ++num_cases;
        }
    }
    printf("sigmoids of planar and interleaved logits, aligned or not: %d cases: same bits: ok\n", num_cases);
}

/* ---- refused targets ---- */

static void check_refused_sigmoid(const struct soft_case* s, long double bad) {
    enum { FIRST = 70, SECOND = 131 };
    const enum segloss_real real = s->voxels.numbers.real;
    const int64_t end = s->voxels.num_positions, num_classes = s->voxels.num_classes;
    const int64_t bad_class = s->voxels.kind.target == SEGLOSS_LABELS ? 0 : num_classes - 2;
    struct soft_inputs in;
    struct soft_outputs out;
    struct segloss_sums sums;
    describe_soft_case(s, "cuda");
    create_soft_inputs(s, &in);
    create_soft_outputs(s, &out);
    set(&in.voxels.target, FIRST, bad_class, bad);
    set(&in.voxels.target, SECOND, 0, bad);
    const struct segloss_soft_stats args = soft_arguments_of(s, &in, &out);
    expect_position("forward", run_soft_forward(&cuda_table, real, &args, 0, end, out.stats.view.data, &sums), FIRST);
    if (refusal.count != 2 || !isnan(sums.loss) || !isnan(sums.weight)) {
        fail("refused %lld, the loss is %g, the weight %g", (long long)refusal.count, sums.loss, sums.weight);
    }
    for (int64_t i = 0; i < NUM_STATISTICS * num_classes; ++i) {
        if (!isnan(get(&out.stats, i, 0))) {
            fail("a statistic is %Lg", get(&out.stats, i, 0));
        }
    }
    expect_position("backward", run_soft_backward(real, &args, 0, end), FIRST);
    for (int64_t i = 0; i < end * num_classes; ++i) {
        const int64_t p = i / num_classes;
        if (isnan(get(&out.grad, p, i % num_classes)) != (p == FIRST || p == SECOND)) {
            fail("the gradient of class %lld at position %lld is %Lg", (long long)(i % num_classes), (long long)p,
                 get(&out.grad, p, i % num_classes));
        }
    }
    free_soft_inputs(&in);
    free_soft_outputs(&out);
}

static void test_refused_sigmoids(void) {
    static const struct {
        const struct target_kind* kind;
        enum segloss_dtype dtype;
        long double bad;
    } cases[] = {{&labels_kind, SEGLOSS_UINT8, 9},           {&masks_kind, SEGLOSS_UINT8, 255},
                 {&masks_kind, SEGLOSS_FLOAT32, 0.5L},       {&masks_kind, SEGLOSS_INT64, -1},
                 {&probabilities_kind, SEGLOSS_FLOAT32, 2L}, {&probabilities_kind, SEGLOSS_BFLOAT16, (long double)NAN}};
    for (int i = 0; i < 2 * 6; ++i) {
        random_state = (uint64_t)i;
        struct soft_case s = draw_sigmoid_case(256 + 45 * (i % 4 > 1), 9, i % TILE_TYPES, i % 2 ? INTERLEAVED : PLANAR,
                                               *cases[i / 2].kind, 1);
        s.with_loss = 1;
        s.is_spoilt = 0;
        s.voxels.values = ORDINARY;
        s.voxels.target_dtype = cases[i / 2].dtype;
        s.voxels.target_range = (struct segloss_range){0, 1};
        check_refused_sigmoid(&s, cases[i / 2].bad);
    }
    printf("what tiles of sigmoids refuse: position, count, nan and no more: ok\n");
}

#endif
