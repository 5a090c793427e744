/* Tests of labels that are read by a table: the kernels give what they give for the classes, found one by one. */
#ifndef SEGLOSS_TEST_LABEL_TABLE_TESTS_H
#define SEGLOSS_TEST_LABEL_TABLE_TESTS_H

#include "soft_stats_tests.h"

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

static void expect_similar(const char* name, double got, double expected, long double tolerance) {
    if (!same_number(got, expected) && !(fabsl((long double)got - expected) <= tolerance * (1 + fabsl(expected)))) {
        fail("%s of raw labels: %.17g, of classes: %.17g", name, got, expected);
    }
}

static void expect_same(const char* name, double got, double expected) { expect_similar(name, got, expected, 0); }

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

/* ---- sets: the results of labels are those of the masks ---- */

enum { SET_CLASSES = 9, SET_IGNORED = 200, SET_ROW = ROW_SIZE + 2 * SET_CLASSES * 2 };

struct sets_case {
    int64_t rows[2][SET_ROW];
    struct segloss_label_table view;
};

/* Labels 0 to 8 are classes, 200 is ignored; the sets, and the groups behind them, are random. */
static void draw_sets(struct sets_case* c, int64_t num_channels, int64_t num_positions) {
    const int64_t words = (num_channels + 63) / 64;
    const int has_two_rows = num_positions % 2 == 0 && random_below(2);
    for (int k = 0; k < 2; ++k) {
        int64_t* row = c->rows[k];
        const int64_t header[] = {0, SET_CLASSES + 1, 1, SEGLOSS_BAD, 1, SET_CLASSES, words};
        memcpy(row, header, sizeof header);
        for (int64_t label = 0; label <= SET_CLASSES; ++label) {
            const int is_ignored = label == SET_CLASSES;
            row[SEGLOSS_ROW_HEADER + label] = is_ignored ? SEGLOSS_IGNORED : label;
            row[SEGLOSS_ROW_HEADER + SET_CLASSES + 1 + label] = is_ignored ? SET_IGNORED : label;
        }
        for (int64_t i = 0; i < 2 * SET_CLASSES * words; ++i) {
            row[SEGLOSS_ROW_HEADER + 2 * (SET_CLASSES + 1) + i] = (int64_t)random_bits();
        }
    }
    c->view = (struct segloss_label_table){c->rows[0], SET_ROW, has_two_rows ? num_positions / 2 : 0};
}

/* Whether the channel is in the set of a class, or with SET_CLASSES + class in its group. */
static int reference_is_in_set(const struct sets_case* c, int64_t position, int64_t class, int64_t channel) {
    const int64_t* row = c->rows[c->view.row_positions > 0 ? position / c->view.row_positions : 0];
    const int64_t* sets = row + SEGLOSS_ROW_HEADER + 2 * (SET_CLASSES + 1);
    return (int)((uint64_t)sets[class * row[SEGLOSS_ROW_WORDS] + channel / 64] >> (channel % 64)) & 1;
}

static void check_sets(const struct segloss_kernels* table, const struct sets_case* c, const struct test_case* t,
                       const struct inputs* in, const struct memory* labels, enum segloss_activation activation) {
    const int is_sigmoid = activation == SEGLOSS_SIGMOID;
    const enum segloss_real real = t->numbers.real;
    /* On a GPU, kernels of their own may compute masks. */
    const long double of_sums = splits_freely(table) ? 0 : 2e-6L;
    const long double of_grad = of_sums == 0 ? 0 : of_sums + ldexpl(1, -formats[t->numbers.logits].mantissa_bits);
    struct outputs of_masks, of_labels;
    double stats[2][SEGLOSS_STATISTICS][MAX_CLASSES];
    struct segloss_sums sums[2], loss_sums[2] = {{0, 0}, {0, 0}};
    create_outputs(t, &of_masks);
    create_outputs(t, &of_labels);
    struct segloss_soft_stats args[2] = {{.voxels = arguments_of(t, in, &of_masks), .activation = activation},
                                         {.voxels = arguments_of(t, in, &of_labels), .activation = activation}};
    args[1].voxels.target_kind = is_sigmoid ? SEGLOSS_MASKS : SEGLOSS_SETS;
    args[1].voxels.target = labels->view;
    args[1].voxels.labels = c->view;
    for (int k = 0; k < 2; ++k) {
        double* const of_class[] = {stats[k][0], stats[k][1], stats[k][2]};
        args[k].with_loss = is_sigmoid;
        args[k].voxels.loss.data = NULL;
        args[k].voxels.grad_loss.stride_class = 0;
        check_accepted(table->soft_stats_forward[real](&args[k], 0, t->num_positions, of_class, &sums[k]));
        args[k].grad_intersection = args[k].grad_prediction = in->class_weight.view.data;
        check_accepted(table->soft_stats_backward[real](&args[k], 0, t->num_positions));
        args[k].voxels.grad_logits.data = NULL;
        if (is_sigmoid && table->binary_forward[real]) {
            check_accepted(table->binary_forward[real](&args[k].voxels, 0, t->num_positions, &loss_sums[k]));
        }
    }
    expect_similar("the loss", sums[1].loss, sums[0].loss, of_sums);
    expect_same("the weight", sums[1].weight, sums[0].weight);
    expect_similar("the binary loss", loss_sums[1].loss, loss_sums[0].loss, of_sums);
    for (int64_t channel = 0; channel < t->num_classes; ++channel) {
        for (int k = 0; k < SEGLOSS_STATISTICS; ++k) {
            expect_similar("a statistic", stats[1][k][channel], stats[0][k][channel], of_sums);
        }
        for (int64_t p = 0; p < t->num_positions; ++p) {
            expect_similar("a gradient", (double)get(&of_labels.grad, p, channel),
                           (double)get(&of_masks.grad, p, channel), of_grad);
        }
    }
    free_outputs(&of_masks);
    free_outputs(&of_labels);
}

static void test_sets(enum segloss_activation activation) {
    const int is_sigmoid = activation == SEGLOSS_SIGMOID;
    const struct target_kind kind = is_sigmoid ? masks_kind : probabilities_kind;
    static const int64_t channel_counts[] = {1, 3, 31, 32, 33, 64, 65, 113};
    int num_cases = 0;
    for (int i = 0; i < 8 * NUM_COUNTS; ++i) {
        random_state = (uint64_t)i;
        struct test_case t =
            draw_case(counts[i % NUM_COUNTS], channel_counts[i / NUM_COUNTS], number_pairs[i % NUM_PAIRS], kind);
        struct sets_case c;
        struct inputs in;
        t.target_dtype = is_sigmoid ? SEGLOSS_UINT8 : SEGLOSS_FLOAT32;
        t.ignore_index = SET_IGNORED;
        t.label_smoothing = 0;
        t.voxel_weights = SOME_ZERO_WEIGHTS;
        t.target_layout = draw_layout(NUM_LAYOUTS);
        t.values = ORDINARY;
        t.is_reduced = 1;
        create_inputs(&t, &in);
        draw_sets(&c, t.num_classes, t.num_positions);
        const enum segloss_dtype dtype = (enum segloss_dtype)random_below(NUM_DTYPES);
        const int can_ignore = holds(dtype, SET_IGNORED);
        const struct memory labels = allocate_input(dtype, &t.positions, 1, draw_layout(NUM_LAYOUTS));
        for (int64_t p = 0; p < t.num_positions; ++p) {
            const int is_ignored = can_ignore && random_below(5) == 0, class = random_below(SET_CLASSES);
            set(&labels, p, 0, is_ignored ? SET_IGNORED : class);
            if (is_ignored && !is_sigmoid) {
                set(&in.voxel_weight, p, 0, 0);
            }
            for (int64_t channel = 0; channel < t.num_classes; ++channel) {
                const int is_in = reference_is_in_set(&c, p, is_sigmoid ? class : SET_CLASSES + class, channel);
                set(&in.target, p, channel, is_ignored && is_sigmoid ? SET_IGNORED : is_in);
            }
        }
        for (int k = 0; k < num_tables; ++k) {
            describe_case(&t, tables[k]->isa);
            check_sets(tables[k], &c, &t, &in, &labels, activation);
        }
        free(labels.bytes);
        free_inputs(&in);
        ++num_cases;
    }
    printf("sets of labels, %s: %d cases: ok\n", is_sigmoid ? "regions of a sigmoid" : "groups of a softmax",
           num_cases);
}

/* ---- sets of a softmax: the marginal loss against its formula ---- */

/* Of a label of `class`, whose set has the probability q, with odds = (1 - q) / q:
 *   loss = v (w (1 - s) (1 - q)^gamma -log q + s / C sum of w_c -log p_c) */
static void reference_marginal(const struct problem* problem, const struct sets_case* sets, int64_t p, int64_t class,
                               struct voxel* out) {
    const struct segloss_cross_entropy* a = problem->args;
    const long double v = a->voxel_weight.data ? get(problem->voxel_weight, p, 0) : 1;
    const long double w = reference_class_weight(problem, class), smoothing = (long double)a->label_smoothing;
    const long double gamma = (long double)a->gamma, scale = get(problem->grad_loss, p, 0) * (long double)a->grad_scale;
    struct softmax s;
    long double inside = 0, outside = 0, total = 0;
    reference_softmax(problem, p, &s);
    for (int64_t c = 0; c < a->num_classes; ++c) {
        *(reference_is_in_set(sets, p, class, c) ? &inside : &outside) += s.e[c];
        total += reference_class_weight(problem, c);
    }
    const long double odds = a->log_probabilities ? 0 : outside / inside, complement = odds / (1 + odds);
    const long double nll = a->log_probabilities ? -(s.max + logl(inside)) : log1pl(odds);
    const long double focal = gamma == 0 ? 1 : powl(complement, gamma);
    const long double slope = gamma == 0 ? 1 : focal * (1 + (odds == 0 ? gamma : gamma * nll / odds));
    const long double sharp = v * w * (1 - smoothing), smooth = v * smoothing / a->num_classes;
    out->loss = sharp == 0 ? 0 : sharp * focal * nll;
    out->weight = v * w;
    for (int64_t c = 0; c < a->num_classes; ++c) {
        const int is_in = reference_is_in_set(sets, p, class, c);
        const long double probability = reference_probability(&s, c), w_c = reference_class_weight(problem, c);
        const long double falling = is_in ? s.e[c] / inside * (a->log_probabilities ? 1 : complement) : 0;
        const long double rising = is_in || a->log_probabilities ? 0 : probability;
        out->loss += smooth == 0 ? 0 : smooth * w_c * reference_nll(problem, &s, c);
        out->grad[c] = scale * (sharp * slope * (rising - falling) + smooth * (total * probability - w_c));
        out->magnitude[c] = fabsl(scale) * (sharp * slope * (rising + falling) + smooth * (total * probability + w_c));
    }
}

static void give_each_set_a_class(struct sets_case* c, int64_t num_classes) {
    for (int k = 0; k < 2; ++k) {
        const int64_t words = c->rows[k][SEGLOSS_ROW_WORDS];
        for (int64_t class = 0; class < SET_CLASSES; ++class) {
            const int64_t member = random_below(num_classes);
            int64_t* set = c->rows[k] + SEGLOSS_ROW_HEADER + 2 * (SET_CLASSES + 1) + class * words;
            set[member / 64] = (int64_t)((uint64_t)set[member / 64] | (uint64_t)1 << (member % 64));
        }
    }
}

static void check_marginal_loss(struct test_case t) {
    static struct voxel expected[MAX_POSITIONS];
    int64_t classes[MAX_POSITIONS];
    struct sets_case sets;
    struct inputs in;
    create_inputs(&t, &in);
    draw_sets(&sets, t.num_classes, t.num_positions);
    give_each_set_a_class(&sets, t.num_classes);
    t.kind.target = SEGLOSS_SETS;
    t.labels = sets.view;
    const struct outputs none = {0};
    const struct segloss_cross_entropy args = arguments_of(&t, &in, &none);
    const struct problem problem = problem_of(&t, &in, &args);
    memset(expected, 0, sizeof expected);
    for (int64_t p = 0; p < t.num_positions; ++p) {
        const int is_ignored = holds(t.target_dtype, SET_IGNORED) && random_below(5) == 0;
        classes[p] = random_below(SET_CLASSES);
        set(&in.target, p, 0, is_ignored ? SET_IGNORED : classes[p]);
        if (!is_ignored) {
            reference_marginal(&problem, &sets, p, classes[p], &expected[p]);
        }
    }
    for (int k = 0; k < num_tables; ++k) {
        run_table(tables[k], &t, &in, expected);
    }
    free_inputs(&in);
}

static void test_marginal_loss(void) {
    static const int64_t class_numbers[] = {1, 2, 9, 31, 33, 64, 65, 113};
    int num_cases = 0;
    for (int i = 0; i < 8 * NUM_COUNTS * NUM_PAIRS; ++i) {
        random_state = (uint64_t)i;
        const struct number_pair numbers = number_pairs[i / (8 * NUM_COUNTS)];
        const struct target_kind kind = {"sets", SEGLOSS_LABELS, random_below(3) == 0};
        struct test_case t = draw_case(counts[i % NUM_COUNTS], class_numbers[i / NUM_COUNTS % 8], numbers, kind);
        t.values = random_below(2) ? ORDINARY : CONFIDENT;
        t.class_weights = t.num_classes < SET_CLASSES ? NO_WEIGHTS : t.class_weights;
        t.target_layout = draw_layout(NUM_LAYOUTS);
        t.has_sparse_grads = 0;
        check_marginal_loss(t);
        ++num_cases;
    }
    printf("marginal loss of sets: %d cases in %d tables: ok\n", num_cases, num_tables);
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
