/* Tests of the kernels over tiles: the numbers of classes where their shapes change, each type and layout of logits,
 * and sizes that end within a tile. */
#ifndef SEGLOSS_TEST_TILE_TESTS_H
#define SEGLOSS_TEST_TILE_TESTS_H

#include "soft_stats_tests.h"
#include "table.h"

/* Whether the kernels over tiles take a call for all positions. */
int takes_tiles(const struct segloss_cross_entropy* args, const struct segloss_cuda_call* call);

static const int64_t tile_class_counts[] = {2,  3,  4,  5,  6,  7,  8,   9,   11,  13,  15,  16,  17, 19,
                                            21, 29, 32, 33, 64, 65, 105, 112, 128, 129, 160, 161, 256};

enum { NUM_TILE_CLASS_COUNTS = sizeof tile_class_counts / sizeof tile_class_counts[0], TILE_TYPES = 3 };

/* The last tile of 300 positions is not whole; with 256 each is, and planar logits are aligned. */
static struct test_case draw_tile_case(int64_t num_classes, int type, enum layout layout, int is_plain) {
    static const enum segloss_dtype target_dtypes[] = {SEGLOSS_UINT8, SEGLOSS_INT16, SEGLOSS_INT32, SEGLOSS_INT64};
    const int64_t num_positions = random_below(2) ? 256 : 300 + random_below(2);
    struct test_case t = draw_case(num_positions, num_classes, number_pairs[type], labels_kind);
    t.positions = (struct segloss_positions){1, {num_positions}};
    t.logits_layout = t.grad_layout = layout;
    t.label_smoothing = 0;
    if (is_plain) {
        t.target_layout = PLANAR;
        t.target_dtype = num_classes > 127 ? SEGLOSS_INT64 : target_dtypes[random_below(4)];
        t.class_weights = t.voxel_weights = NO_WEIGHTS;
        t.gamma = 0;
        t.is_reduced = 1;
    }
    return t;
}

static void check_takes_tiles(const struct test_case* t, int expected) {
    struct inputs in;
    struct outputs out;
    create_inputs(t, &in);
    create_outputs(t, &out);
    const struct segloss_cross_entropy args = arguments_of(t, &in, &out);
    const struct segloss_cuda_call call = begin_call(t->numbers.real, 0, t->num_positions, t->num_classes);
    if (takes_tiles(&args, &call) != expected) {
        fail("the kernels over tiles %s the call", expected ? "do not take" : "take");
    }
    free(call.workspace);
    free_inputs(&in);
    free_outputs(&out);
}

static void run_tile_case(const struct test_case* t, int round) {
    const struct soft_case s = {*t, SEGLOSS_SOFTMAX, 0, round % 2, 0, 0};
    describe_case(t, "cuda");
    check_takes_tiles(t, 1);
    run_case(t);
    run_soft_case(&s);
}

static void test_tiles(void) {
    int num_cases = 0;
    for (int i = 0; i < NUM_TILE_CLASS_COUNTS; ++i) {
        for (int k = 0; k < 2 * TILE_TYPES; ++k) {
            random_state = (uint64_t)num_cases;
            set_order((unsigned)num_cases);
            const enum layout layout = k < TILE_TYPES ? PLANAR : INTERLEAVED;
            const struct test_case t =
                draw_tile_case(tile_class_counts[i], k % TILE_TYPES, layout, (num_cases + i) % 2);
            run_tile_case(&t, num_cases++ / 2);
        }
    }
    printf("tiles: %d cases: ok\n", num_cases);
}

static void test_what_takes_no_tiles(void) {
    static const struct {
        int64_t num_classes;
        int type; /* in number_pairs */
        int num_dims;
        double label_smoothing;
    } cases[] = {{1, 0, 1, 0}, {257, 0, 1, 0}, {4, 3, 1, 0}, {4, 0, 3, 0}, {4, 0, 1, 0.1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        struct test_case t = draw_tile_case(cases[i].num_classes, cases[i].type, PLANAR, 1);
        t.num_positions = 256;
        t.positions = cases[i].num_dims == 1 ? (struct segloss_positions){1, {256}} : factored(256, cases[i].num_dims);
        t.label_smoothing = cases[i].label_smoothing;
        describe_case(&t, "cuda");
        check_takes_tiles(&t, 0);
    }
    printf("what takes no tiles: ok\n");
}

#endif
