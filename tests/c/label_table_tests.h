/* Tests of labels that are read by a table: the kernels give what they give for the classes, found one by one. */
#ifndef SEGLOSS_TEST_LABEL_TABLE_TESTS_H
#define SEGLOSS_TEST_LABEL_TABLE_TESTS_H

#include "label_tests.h"

enum { MOST_ROWS = 4, MOST_LABELS = 300, ROW_SIZE = SEGLOSS_ROW_HEADER + 2 * MOST_LABELS };

/* Labels that are compared one by one, that are searched, and that have a table of their range. */
enum row_kind { FEW_LABELS_ROW, SEARCHED_ROW, RANGE_ROW, NUM_ROW_KINDS };

struct label_table_case {
    enum row_kind kind;
    int64_t num_rows;
    int64_t rows[MOST_ROWS][ROW_SIZE];
    struct segloss_label_table view;
};

static int64_t draw_entry(int64_t num_classes, int may_be_same) {
    switch (random_below(8)) {
    case 0:
        return SEGLOSS_BAD;
    case 1:
        return SEGLOSS_IGNORED;
    case 2:
        return may_be_same ? SEGLOSS_SAME : 0;
    case 3:
        return num_classes; /* as bad as SEGLOSS_BAD */
    default:
        return random_below(num_classes);
    }
}

static void draw_row(enum row_kind kind, int64_t num_classes, int64_t* row) {
    static const int64_t starts[] = {0, -100, 1, -40000, 1000, 0x10000000000, INT64_MIN, INT64_MAX - 0x10000000};
    static const int64_t steps[] = {1, 1, 3, 1000, 100000};
    const int64_t length = kind == FEW_LABELS_ROW ? 1 + random_below(48) : 1 + random_below(MOST_LABELS);
    const int64_t start = starts[random_below(random_below(2) ? 3 : 8)], step = steps[random_below(5)];
    const int is_sorted = kind != RANGE_ROW;
    int64_t label = start;
    row[SEGLOSS_ROW_LENGTH] = length;
    row[SEGLOSS_ROW_IS_SORTED] = is_sorted;
    row[SEGLOSS_ROW_OTHER] = draw_entry(num_classes, 1);
    row[SEGLOSS_ROW_MAY_IGNORE] = 1;
    row[SEGLOSS_ROW_CLASSES] = num_classes;
    row[SEGLOSS_ROW_WORDS] = 0;
    row[SEGLOSS_ROW_FIRST] = is_sorted && row[SEGLOSS_ROW_OTHER] == SEGLOSS_SAME && start > 0 ? 0 : start;
    for (int64_t k = 0; k < length; ++k) {
        row[SEGLOSS_ROW_HEADER + k] = draw_entry(num_classes, !is_sorted);
        row[SEGLOSS_ROW_HEADER + length + k] = label;
        label += is_sorted ? 1 + random_below(step) : 1;
    }
}

/* The class of a label, SEGLOSS_IGNORED or SEGLOSS_BAD. */
static int64_t reference_class(const struct label_table_case* c, int64_t row_positions, int64_t num_classes,
                               int64_t position, int64_t label) {
    const int64_t* row = c->rows[row_positions > 0 ? position / row_positions : 0];
    const int64_t length = row[SEGLOSS_ROW_LENGTH];
    int64_t entry = row[SEGLOSS_ROW_OTHER];
    for (int64_t k = 0; k < length; ++k) {
        entry = row[SEGLOSS_ROW_HEADER + length + k] == label ? row[SEGLOSS_ROW_HEADER + k] : entry;
    }
    if (entry == SEGLOSS_IGNORED) {
        return SEGLOSS_IGNORED;
    }
    entry = entry == SEGLOSS_SAME ? label : entry;
    return entry >= 0 && entry < num_classes ? entry : SEGLOSS_BAD;
}

/* A label that the dtype holds, most often one of the row. */
static int64_t draw_label(const struct label_table_case* c, int64_t row_positions, enum segloss_dtype dtype,
                          int64_t position) {
    const int64_t* row = c->rows[row_positions > 0 ? position / row_positions : 0];
    const int64_t length = row[SEGLOSS_ROW_LENGTH];
    const int64_t of_row = row[SEGLOSS_ROW_HEADER + length + random_below(length)];
    const int64_t other = random_below(300) - 150;
    return random_below(4) && holds(dtype, of_row) ? of_row : holds(dtype, other) ? other : -other;
}

/* Draws a label with a class, or one without if `is_bad`. Returns whether it was found. */
static int set_label(const struct label_table_case* c, const struct test_case* t, const struct memory* raw,
                     int64_t position, int is_bad, int64_t* class) {
    const int64_t row_positions = c->view.row_positions;
    for (int i = 0; i < 200; ++i) {
        const int64_t label = draw_label(c, row_positions, raw->view.dtype, position);
        *class = reference_class(c, row_positions, t->num_classes, position, label);
        if (holds(raw->view.dtype, label) && (*class == SEGLOSS_BAD) == is_bad) {
            set(raw, position, 0, (long double)label);
            return 1;
        }
    }
    return 0;
}

static void expect_same(const char* name, double got, double expected) {
    if (!same_number(got, expected)) {
        fail("%s of raw labels: %.17g, of classes: %.17g", name, got, expected);
    }
}

/* The counts and losses of raw labels, which may have a label without a class at `bad`, are those of the classes. */
static void check_label_table(const struct segloss_kernels* table, const struct label_table_case* c,
                              const struct test_case* t, const struct inputs* in, const struct memory* raw,
                              int64_t bad) {
    enum { CELLS = 3 * BAD_CLASSES + 1 };
    const struct confusion_case of_logits = {t, in, NULL, 1};
    const struct segloss_confusion by_class = confusion_arguments(&of_logits);
    struct segloss_confusion by_label = by_class;
    struct outputs out;
    create_outputs(t, &out);
    const struct segloss_cross_entropy loss_by_class = arguments_of(t, in, &out);
    struct segloss_cross_entropy loss_by_label = loss_by_class;
    struct segloss_sums sums = {0, 0}, expected_sums = {0, 0};
    int64_t counts[CELLS] = {0}, expected[CELLS] = {0};
    by_label.target = loss_by_label.target = raw->view;
    by_label.labels = loss_by_label.labels = c->view;
    const int64_t end = t->num_positions;
    expect_position("confusion", table->confusion[0](&by_label, 0, end, counts), bad);
    expect_position("weight", table->cross_entropy_weight[0](&loss_by_label, 0, end, &sums), bad);
    expect_position("forward", table->cross_entropy_forward[0](&loss_by_label, 0, end, &sums), bad);
    if (bad < 0) {
        check_accepted(table->confusion[0](&by_class, 0, end, expected));
        check_accepted(table->cross_entropy_forward[0](&loss_by_class, 0, end, &expected_sums));
        for (int k = 0; k < CELLS - 1; ++k) {
            expect_same("a count", (double)counts[k], (double)expected[k]);
        }
        expect_same("the loss", sums.loss, expected_sums.loss);
        expect_same("the weight", sums.weight, expected_sums.weight);
    }
    free_outputs(&out);
}

/* Returns whether the case has labels that fit. */
static int test_label_table(enum row_kind kind, enum segloss_dtype dtype, int64_t num_positions) {
    struct label_table_case c = {.kind = kind, .num_rows = num_positions % 4 == 0 ? 1 + random_below(2) * 3 : 1};
    struct test_case t = draw_case(num_positions, BAD_CLASSES, number_pairs[0], target_kinds[0]);
    struct inputs in;
    int64_t class = 0, bad = random_below(3) ? -1 : random_below(num_positions);
    int all_found = 1;
    t.target_dtype = SEGLOSS_INT32;
    t.values = ORDINARY;
    t.ignore_index = SEGLOSS_IGNORED;
    t.target_layout = draw_layout(NUM_LAYOUTS);
    create_inputs(&t, &in);
    const struct memory raw = allocate_input(dtype, &t.positions, 1, draw_layout(NUM_LAYOUTS));
    for (int64_t k = 0; k < c.num_rows; ++k) {
        draw_row(kind, BAD_CLASSES, c.rows[k]);
    }
    c.view = (struct segloss_label_table){c.rows[0], ROW_SIZE, c.num_rows > 1 ? num_positions / c.num_rows : 0};
    for (int64_t p = 0; p < num_positions && all_found; ++p) {
        all_found = set_label(&c, &t, &raw, p, 0, &class);
        set(&in.target, p, 0, (long double)class);
    }
    if (all_found && bad >= 0 && !set_label(&c, &t, &raw, bad, 1, &class)) {
        bad = -1;
    }
    for (int i = 0; i < num_tables && all_found; ++i) {
        snprintf(current_case, sizeof current_case, "%s label table of kind %d, %d rows, %lld %s labels %s",
                 tables[i]->isa, (int)kind, (int)c.num_rows, (long long)num_positions, formats[dtype].name,
                 layout_name(t.target_layout));
        check_label_table(tables[i], &c, &t, &in, &raw, bad);
    }
    free(raw.bytes);
    free_inputs(&in);
    return all_found;
}

static void test_label_tables(void) {
    static const int64_t sizes[] = {1, 2, SEGLOSS_BLOCK - 1, SEGLOSS_BLOCK, SEGLOSS_BLOCK + 4, 3 * SEGLOSS_BLOCK};
    int num_cases = 0;
    for (int round = 0; round < 20 * ROUNDS; ++round) {
        for (int dtype = 0; dtype < NUM_DTYPES; ++dtype) {
            for (int kind = 0; kind < NUM_ROW_KINDS; ++kind) {
                random_state = (uint64_t)(1000 * round + 10 * dtype + kind);
                num_cases += test_label_table((enum row_kind)kind, (enum segloss_dtype)dtype, sizes[round % 6]);
            }
        }
    }
    printf("label tables: %d cases: ok\n", num_cases);
}

#endif
