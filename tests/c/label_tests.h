/* Tests of bad labels, bad predictions and one-hot targets. */
#ifndef SEGLOSS_TEST_LABEL_TESTS_H
#define SEGLOSS_TEST_LABEL_TESTS_H

#include "confusion_tests.h"

/* ---- bad labels ---- */

enum { BAD_CLASSES = 5, BAD_IGNORE = 200 };

/* A label that every kernel must refuse, for the dtypes in [first, last]; ignore_index 0 stands for BAD_IGNORE. */
struct bad_label {
    enum segloss_dtype first, last;
    long double value;
    int64_t ignore_index;
};

static const struct bad_label bad_labels[] = {
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, BAD_CLASSES, 0},
    {SEGLOSS_UINT8, SEGLOSS_INT64, BAD_CLASSES, 0},
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, -1, 0},
    {SEGLOSS_INT8, SEGLOSS_INT8, -1, 0},
    {SEGLOSS_INT16, SEGLOSS_INT16, INT16_MIN, 0},
    {SEGLOSS_INT32, SEGLOSS_INT32, INT32_MIN, 0},
    {SEGLOSS_INT64, SEGLOSS_INT64, -0x1p63L, 0},
    {SEGLOSS_INT64, SEGLOSS_INT64, 0x1p32L, 0},
    {SEGLOSS_UINT8, SEGLOSS_UINT8, UINT8_MAX, 0},
    {SEGLOSS_UINT16, SEGLOSS_UINT16, UINT16_MAX, 0},
    {SEGLOSS_UINT32, SEGLOSS_UINT32, UINT32_MAX, 0},
    {SEGLOSS_UINT64, SEGLOSS_UINT64, 0x1p63L, 0},
    {SEGLOSS_UINT64, SEGLOSS_UINT64, 0x1p32L, 0},
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, 0.5L, 0},
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, (long double)NAN, 0},
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, (long double)INFINITY, 0},
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, -(long double)INFINITY, 0},
    {SEGLOSS_FLOAT32, SEGLOSS_FLOAT64, 0x1p127L, 0},
    {SEGLOSS_UINT8, SEGLOSS_UINT8, UINT8_MAX, -1}, /* the same bits as ignore_index, but not its value */
    {SEGLOSS_UINT16, SEGLOSS_UINT16, UINT16_MAX, -1},
    {SEGLOSS_UINT32, SEGLOSS_UINT32, UINT32_MAX, -1},
    {SEGLOSS_UINT64, SEGLOSS_UINT64, 0x1p64L - 0x1p32L, -0x100000000},
    /* Labels that are not integral once became -2^63, so that floating-point labels could not have -2^63 as
     * ignore_index. Now they become another number, which must not be taken for ignore_index either. */
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, 0.5L, INT64_MIN},
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, 0.5L, INT64_MIN + 1},
    {SEGLOSS_UINT64, SEGLOSS_UINT64, 0x1p63L, INT64_MIN + 1},
};

/* Fills in valid labels; some are ignored if the dtype holds ignore_index. */
static void fill_good_labels(const struct memory* target, int64_t num_positions, int64_t ignore_index) {
    const int can_ignore = holds(target->view.dtype, ignore_index);
    for (int64_t p = 0; p < num_positions; ++p) {
        set(target, p, 0, can_ignore && p % 7 == 3 ? ignore_index : p % BAD_CLASSES);
    }
}

static void expect_position(const char* kernel, int64_t got, int64_t expected) {
    if (got != expected) {
        fail("%s returned %lld, expected %lld", kernel, (long long)got, (long long)expected);
    }
}

/* Checks that after a refusal the positions from the refused one's block on are unchanged. */
static void check_untouched(const struct memory* m, int64_t begin, int64_t end, int64_t refused, const char* name) {
    const size_t size = (size_t)formats[m->view.dtype].size;
    unsigned char guard[sizeof(uint64_t)];
    memset(guard, GUARD_BYTE, sizeof guard);
    check_guards(m, name);
    for (int64_t p = begin + (refused - begin) / SEGLOSS_BLOCK * SEGLOSS_BLOCK; refused >= 0 && p < end; ++p) {
        for (int64_t c = 0; c < m->num_classes; ++c) {
            if (memcmp(address_of(m, p, c), guard, size) != 0) {
                fail("%s: position %lld was written, although %lld is refused", name, (long long)p, (long long)refused);
            }
        }
    }
}

/* The position that backward refuses if forward refuses `expected`. Only the GPU's backward checks probabilities again,
 * because the host may not have seen the refusal yet, and no training step may use the gradient. */
static int64_t refused_by_backward(const struct segloss_kernels* table, const struct test_case* t, int64_t expected) {
    return t->kind.target != SEGLOSS_PROBABILITIES || strcmp(table->isa, "cuda") == 0 ? expected : -1;
}

static void expect_cross_entropy_refusal(const struct segloss_kernels* table, const struct test_case* t,
                                         const struct inputs* in, int64_t begin, int64_t end, int64_t expected) {
    const enum segloss_real real = t->numbers.real;
    struct outputs out;
    struct segloss_sums sums;
    create_outputs(t, &out);
    const struct segloss_cross_entropy args = arguments_of(t, in, &out);
    const int64_t in_backward = refused_by_backward(table, t, expected);
    expect_position("weight", table->cross_entropy_weight[real](&args, begin, end, &sums),
                    t->kind.target == SEGLOSS_PROBABILITIES ? -1 : expected); /* it checks only labels */
    expect_position("forward", table->cross_entropy_forward[real](&args, begin, end, &sums), expected);
    check_untouched(&out.loss, begin, end, expected, "loss");
    check_untouched(&out.grad, begin, end, expected, "grad");
    expect_position("backward", table->cross_entropy_backward[real](&args, begin, end), in_backward);
    check_untouched(&out.grad, begin, end, in_backward, "grad");
    free_outputs(&out);
}

/* All kernels that read labels, over [begin, end). */
static void expect_refusal(const struct segloss_kernels* table, const struct test_case* t, const struct inputs* in,
                           int64_t begin, int64_t end, int64_t expected) {
    int64_t cells[3 * BAD_CLASSES + 1] = {0}, largest;
    const struct segloss_confusion of_logits = confusion_arguments(&(struct confusion_case){t, in, NULL, 1});
    struct segloss_confusion of_maps = of_logits;
    of_maps.prediction_is_labels = 1;
    of_maps.prediction = (struct segloss_tensor){.data = &(int32_t){0}, .dtype = SEGLOSS_INT32}; /* 0 everywhere */
    const enum segloss_real real = t->numbers.real;
    expect_cross_entropy_refusal(table, t, in, begin, end, expected);
    expect_position("confusion", table->confusion[real](&of_logits, begin, end, cells), expected);
    expect_position("confusion of maps", table->confusion[real](&of_maps, begin, end, cells), expected);
    expect_position("largest label", table->largest_label(&of_maps, begin, end, &largest), expected);
}

/* The first of two bad labels is reported; a range without bad labels is accepted. */
static void test_bad_label(const struct bad_label* bad, enum segloss_dtype dtype, struct number_pair numbers,
                           int64_t position) {
    enum { POSITIONS = 3 * SEGLOSS_BLOCK + 1 };
    const struct target_kind labels = target_kinds[random_below(2) * 2]; /* of logits or of log probabilities */
    struct test_case t = draw_case(POSITIONS, BAD_CLASSES, numbers, labels);
    struct inputs in;
    t.target_dtype = dtype;
    t.target_layout = draw_layout(NUM_LAYOUTS);
    t.ignore_index = bad->ignore_index ? bad->ignore_index : BAD_IGNORE;
    t.values = ORDINARY;
    create_inputs(&t, &in);
    fill_good_labels(&in.target, POSITIONS, t.ignore_index);
    set(&in.target, position, 0, bad->value);
    set(&in.target, POSITIONS - 1, 0, bad->value);
    for (int i = 0; i < num_tables; ++i) {
        describe_case(&t, tables[i]->isa);
        expect_refusal(tables[i], &t, &in, 0, POSITIONS, position);
        expect_refusal(tables[i], &t, &in, 0, position, -1);
        expect_refusal(tables[i], &t, &in, 2 * SEGLOSS_BLOCK, 3 * SEGLOSS_BLOCK, -1);
    }
    free_inputs(&in);
}

static void test_bad_labels(void) {
    static const int64_t positions[] = {0, 1, SEGLOSS_BLOCK - 1, SEGLOSS_BLOCK, SEGLOSS_BLOCK + 1};
    const struct number_pair both[] = {number_pairs[0], number_pairs[3]};
    int num_cases = 0;
    for (size_t i = 0; i < sizeof bad_labels / sizeof bad_labels[0]; ++i) {
        for (int dtype = (int)bad_labels[i].first; dtype <= (int)bad_labels[i].last; ++dtype) {
            for (size_t k = 0; k < sizeof positions / sizeof positions[0]; ++k) {
                random_state = (uint64_t)num_cases++;
                test_bad_label(&bad_labels[i], (enum segloss_dtype)dtype, both[random_below(2)], positions[k]);
            }
        }
    }
    printf("bad labels: %d cases, the first one's position from forward, backward and confusion: ok\n", num_cases);
}

/* ---- bad predictions of a label map ---- */

static void expect_map_refusal(const struct segloss_kernels* table, const struct confusion_case* c, int64_t expected) {
    int64_t cells[3 * BAD_CLASSES + 1] = {0}, largest;
    const struct segloss_confusion args = confusion_arguments(c);
    const int64_t end = c->test->num_positions;
    describe_case(c->test, table->isa);
    expect_position("confusion of maps", table->confusion[0](&args, 0, end, cells), expected);
    expect_position("largest label", table->largest_label(&args, 0, end, &largest), expected);
}

/* The first of two bad predictions is reported; at an ignored voxel any prediction is accepted. */
static void test_bad_prediction(const struct bad_label* bad, enum segloss_dtype dtype, int64_t position) {
    enum { POSITIONS = 3 * SEGLOSS_BLOCK + 1 };
    struct test_case t = draw_case(POSITIONS, BAD_CLASSES, number_pairs[0], target_kinds[0]);
    struct inputs in;
    t.target_dtype = SEGLOSS_UINT8;
    t.target_layout = draw_layout(NUM_LAYOUTS);
    t.ignore_index = BAD_IGNORE;
    create_inputs(&t, &in);
    fill_good_labels(&in.target, POSITIONS, BAD_IGNORE);
    const struct memory map = allocate_input(dtype, &t.positions, 1, t.lanes_layout);
    for (int64_t p = 0; p < POSITIONS; ++p) {
        set(&map, p, 0, p % BAD_CLASSES);
    }
    set(&map, position, 0, bad->value);
    set(&map, POSITIONS - 1, 0, bad->value);
    set(&in.target, POSITIONS - 1, 0, 0);
    const struct confusion_case c = {&t, &in, &map, 1};
    for (int i = 0; i < num_tables; ++i) {
        set(&in.target, position, 0, 0);
        expect_map_refusal(tables[i], &c, position);
        set(&in.target, position, 0, BAD_IGNORE);
        expect_map_refusal(tables[i], &c, POSITIONS - 1);
    }
    free(map.bytes);
    free_inputs(&in);
}

static void test_bad_predictions(void) {
    int num_cases = 0;
    for (size_t i = 0; i < sizeof bad_labels / sizeof bad_labels[0]; ++i) {
        const struct bad_label* bad = &bad_labels[i];
        for (int dtype = (int)bad->first; dtype <= (int)bad->last; ++dtype) {
            if (!is_floating((enum segloss_dtype)dtype)) {
                random_state = (uint64_t)num_cases++;
                test_bad_prediction(bad, (enum segloss_dtype)dtype, random_below(3 * SEGLOSS_BLOCK));
            }
        }
    }
    printf("bad predictions: %d cases: ok\n", num_cases);
}

/* ---- one-hot targets ---- */

/* Voxels that are not one-hot: the values of the first three classes. -1 needs a signed dtype. */
static const int strange_voxels[][3] = {{0, 0, 0}, {1, 1, 0}, {2, 0, 0}, {0, 1, 2}, {1, 1, -1}, {0, 1, -1}};

enum { NUM_STRANGE = sizeof strange_voxels / sizeof strange_voxels[0] };

/* The class of the only 1 among zeros, or -1. */
static int64_t reference_one_hot(const struct memory* target, int64_t p) {
    int64_t label = -1;
    int num_others = 0;
    for (int64_t c = 0; c < target->num_classes; ++c) {
        const long double value = get(target, p, c);
        num_others += value != 0 && (value != 1 || label >= 0);
        label = value == 1 ? c : label;
    }
    return num_others == 0 ? label : -1;
}

static void describe_one_hot(const char* isa, const struct memory* target) {
    snprintf(
        current_case, sizeof current_case, "%s one-hot: %lld positions x %lld classes of %s, strides %lld and %lld",
        isa, (long long)count_positions(target->positions), (long long)target->num_classes,
        formats[target->view.dtype].name, (long long)target->view.stride_class, (long long)target->view.strides[0]);
}

/* Runs all tables: each must return the first strange voxel or, if there is none, the right labels. */
static void check_one_hot(const struct memory* target) {
    const struct segloss_positions* positions = target->positions;
    const int64_t num_positions = count_positions(positions);
    int64_t first_strange = -1;
    for (int64_t p = num_positions - 1; p >= 0; --p) {
        first_strange = reference_one_hot(target, p) < 0 ? p : first_strange;
    }
    for (int i = 0; i < num_tables; ++i) {
        struct memory labels = allocate_output(SEGLOSS_INT32, positions, 1, PLANAR);
        const struct segloss_one_hot args = {*positions, target->num_classes, target->view, labels.view.data};
        describe_one_hot(tables[i]->isa, target);
        expect_position("one_hot", tables[i]->one_hot(&args, 0, num_positions), first_strange);
        for (int64_t p = 0; p < num_positions && first_strange < 0; ++p) {
            if (get(&labels, p, 0) != reference_one_hot(target, p)) {
                fail("label %Lg at position %lld, expected %lld", get(&labels, p, 0), (long long)p,
                     (long long)reference_one_hot(target, p));
            }
        }
        check_untouched(&labels, 0, num_positions, first_strange, "labels");
        free(labels.bytes);
    }
}

static void spoil_and_check(const struct memory* target, int64_t position) {
    for (int s = 0; s < NUM_STRANGE && target->num_classes >= 3; ++s) {
        const int needs_sign = strange_voxels[s][2] < 0;
        if (needs_sign && formats[target->view.dtype].min == 0) {
            continue;
        }
        for (int64_t c = 0; c < target->num_classes; ++c) {
            set(target, position, c, c < 3 ? strange_voxels[s][c] : 0);
        }
        check_one_hot(target);
    }
}

static void test_one_hot(void) {
    int num_cases = 0;
    for (int i = 0; i < NUM_COUNTS; ++i) {
        for (int j = 0; j < NUM_CLASS_COUNTS; ++j) {
            for (int dtype = NUM_FLOATING; dtype < NUM_DTYPES; ++dtype) {
                random_state = (uint64_t)num_cases++;
                const struct segloss_positions positions = factored(counts[i], 1 + random_below(3));
                struct memory target =
                    allocate_input((enum segloss_dtype)dtype, &positions, class_counts[j], draw_layout(NUM_LAYOUTS));
                for (int64_t p = 0; p < counts[i]; ++p) {
                    for (int64_t c = 0; c < class_counts[j]; ++c) {
                        set(&target, p, c, c == p * 5 % class_counts[j]);
                    }
                }
                check_one_hot(&target);
                spoil_and_check(&target, random_below(counts[i]));
                free(target.bytes);
            }
        }
    }
    printf("one-hot: %d cases in %d tables, and %d ways not to be: ok\n", num_cases, num_tables, NUM_STRANGE);
}

#endif
