/* Tests of soft statistics, the losses summed with them and their gradient against the reference. */
#ifndef SEGLOSS_TEST_SOFT_STATS_TESTS_H
#define SEGLOSS_TEST_SOFT_STATS_TESTS_H

#include "label_tests.h"
#include "soft_stats_reference.h"

/* ---- drawing a case ---- */

/* Around 16, the number of classes above which labels are picked voxel by voxel, and around a chunk of double, 56, and
 * of float, 112. */
static const int64_t soft_class_counts[] = {1, 2, 3, 16, 17, 56, 57, 112, 113, 129};

enum { NUM_SOFT_CLASS_COUNTS = sizeof soft_class_counts / sizeof soft_class_counts[0] };

static const struct target_kind labels_kind = {"labels", SEGLOSS_LABELS, 0};
static const struct target_kind probabilities_kind = {"probabilities", SEGLOSS_PROBABILITIES, 0};
static const struct target_kind masks_kind = {"masks", SEGLOSS_MASKS, 0};

static const char* const activation_names[] = {"softmax", "sigmoid", "identity"};

/* One case: a case of cross entropy with the options of soft statistics. */
struct soft_case {
    struct test_case voxels;
    enum segloss_activation activation;
    int squared;
    int with_loss;
    int is_spoilt; /* for hostile logits: a voxel that counts holds nan or infinities, so nan is expected */
    int soft_label;
};

static struct soft_case draw_soft_case(struct test_case voxels, enum segloss_activation activation) {
    struct soft_case s = {voxels, activation, random_below(2), random_below(2), random_below(4) == 0, 0};
    s.with_loss &= activation != SEGLOSS_IDENTITY;
    s.soft_label = voxels.kind.target == SEGLOSS_PROBABILITIES && !s.squared && random_below(2);
    if (activation == SEGLOSS_IDENTITY && voxels.values == RAW) { /* no overflow in sums and squares */
        s.voxels.values = ORDINARY;
    }
    if (activation == SEGLOSS_SIGMOID) {
        s.voxels.gamma = draw_gamma();
    }
    return s;
}

static void describe_soft_case(const struct soft_case* s, const char* isa) {
    describe_case(&s->voxels, isa);
    const size_t length = strlen(current_case);
    snprintf(current_case + length, sizeof current_case - length, "; soft statistics, %s%s%s%s%s",
             activation_names[s->activation], s->squared ? ", squared" : "", s->soft_label ? ", soft labels" : "",
             s->with_loss ? ", with the loss" : "", s->is_spoilt ? ", spoilt" : "");
}

/* ---- the tensors of a case ---- */

struct soft_inputs {
    struct inputs voxels;
    struct memory grad_intersection, grad_prediction;
};

struct soft_outputs {
    struct segloss_positions statistics;
    struct memory stats, grad;
};

/* A logit that is hard but has a finite result. If the input is p itself, its square must not overflow. */
static long double hard_logit(const struct soft_case* s, int trouble, int64_t c, int64_t struck) {
    const int is_input = s->activation == SEGLOSS_IDENTITY;
    const long double huge = is_input ? 1e4L : formats[s->voxels.numbers.logits].max * 0.9L;
    switch (trouble) {
    case 0:
        return c == struck ? 1e4L : -1e4L;
    case 1:
        return c == struck ? -1e4L : 4 * random_unit() - 2;
    case 2:
        return c == struck ? huge : -huge;
    case 3:
        return c == struck && !is_input && s->voxels.num_classes > 1 ? -(long double)INFINITY : random_unit();
    default:
        return 160 * random_unit() - 80;
    }
}

/* A logit that makes the results of a voxel nan if it counts. */
static long double spoilt_logit(int trouble, int64_t c, int64_t struck) {
    static const double values[] = {NAN, INFINITY, -INFINITY};
    return trouble > 2 || c == struck ? (long double)values[trouble % 3] : 0;
}

static void fill_soft_logits(const struct soft_case* s, const struct inputs* in) {
    const struct outputs none = {0};
    const struct segloss_cross_entropy args = arguments_of(&s->voxels, in, &none);
    const struct problem problem = problem_of(&s->voxels, in, &args);
    int spoilt_to_come = s->is_spoilt;
    for (int64_t p = 0; p < s->voxels.num_positions; ++p) {
        const int trouble = random_below(6);
        const int64_t struck = random_below(s->voxels.num_classes);
        const int counts = reference_voxel_weight(&problem, p) != 0;
        for (int64_t c = 0; c < s->voxels.num_classes; ++c) {
            const int is_hard = counts && !spoilt_to_come;
            set(&in->logits, p, c, is_hard ? hard_logit(s, trouble, c, struck) : spoilt_logit(trouble, c, struck));
        }
        spoilt_to_come &= !counts;
    }
}

static void create_soft_inputs(const struct soft_case* s, struct soft_inputs* in) {
    const enum segloss_dtype real = dtype_of_real(s->voxels.numbers.real);
    create_inputs(&s->voxels, &in->voxels);
    if (s->voxels.values == HOSTILE) {
        fill_soft_logits(s, &in->voxels);
    }
    in->grad_intersection = allocate_input(real, &in->voxels.classes, 1, PLANAR);
    in->grad_prediction = allocate_input(real, &in->voxels.classes, 1, PLANAR);
    for (int64_t c = 0; c < s->voxels.num_classes; ++c) {
        set(&in->grad_intersection, c, 0, 4 * random_unit() - 2);
        set(&in->grad_prediction, c, 0, 4 * random_unit() - 2);
    }
}

static void free_soft_inputs(struct soft_inputs* in) {
    free_inputs(&in->voxels);
    free(in->grad_intersection.bytes);
    free(in->grad_prediction.bytes);
}

/* The statistics start with nan, which the kernel must overwrite. */
static void create_soft_outputs(const struct soft_case* s, struct soft_outputs* out) {
    const struct test_case* t = &s->voxels;
    out->statistics = (struct segloss_positions){1, {NUM_STATISTICS * t->num_classes}};
    out->stats = allocate_output(SEGLOSS_FLOAT64, &out->statistics, 1, INTERLEAVED);
    for (int64_t i = 0; i < NUM_STATISTICS * t->num_classes; ++i) {
        set(&out->stats, i, 0, (long double)NAN);
    }
    out->grad = allocate_output(t->numbers.logits, &t->positions, t->num_classes, t->grad_layout);
}

static void free_soft_outputs(struct soft_outputs* out) {
    free(out->stats.bytes);
    free(out->grad.bytes);
}

static struct segloss_soft_stats soft_arguments_of(const struct soft_case* s, const struct soft_inputs* in,
                                                   const struct soft_outputs* out) {
    const struct outputs gradient_only = {.grad = out->grad};
    struct segloss_soft_stats args = {
        .voxels = arguments_of(&s->voxels, &in->voxels, &gradient_only),
        .activation = s->activation,
        .squared = s->squared,
        .soft_label = s->soft_label,
        .with_loss = s->with_loss,
        .grad_intersection = in->grad_intersection.view.data,
        .grad_prediction = in->grad_prediction.view.data,
    };
    if (!s->with_loss) {
        args.voxels.grad_loss = (struct segloss_tensor){0};
    }
    return args;
}

static struct soft_problem soft_problem_of(const struct soft_case* s, const struct soft_inputs* in,
                                           const struct segloss_soft_stats* args) {
    const struct problem voxels = problem_of(&s->voxels, &in->voxels, &args->voxels);
    return (struct soft_problem){voxels, args, &in->grad_intersection, &in->grad_prediction};
}

/* ---- comparing ---- */

struct soft_results {
    struct soft_sums sums;
    struct term grad[MAX_POSITIONS][MAX_CLASSES];
};

/* Runs the kernel with the statistics at `stats`, one after the other. */
static int64_t run_soft_forward(const struct segloss_kernels* table, enum segloss_real real,
                                const struct segloss_soft_stats* args, int64_t begin, int64_t end, double* stats,
                                struct segloss_sums* sums) {
    double* pointers[NUM_STATISTICS];
    for (int k = 0; k < NUM_STATISTICS; ++k) {
        pointers[k] = stats + k * args->voxels.num_classes;
    }
    return table->soft_stats_forward[real](args, begin, end, pointers, sums);
}

/* Each voxel can have the absolute error of exp rounding to zero, so a sum's tolerance grows with their number. */
static struct tolerance tolerance_of_sums(const struct test_case* t) {
    struct tolerance tolerance = tolerance_of(dtype_of_real(t->numbers.real), t->numbers.real);
    tolerance.absolute *= t->num_positions;
    return tolerance;
}

static void check_stats(const struct soft_case* s, const struct memory* stats, const struct segloss_sums* sums,
                        const struct tolerance* tolerance, const struct soft_sums* expected) {
    static const char* const names[] = {"intersection", "prediction", "target"};
    for (int64_t i = 0; i < NUM_STATISTICS * s->voxels.num_classes; ++i) {
        const int64_t statistic = i / s->voxels.num_classes, c = i % s->voxels.num_classes;
        const struct term* term = &expected->stats[statistic][c];
        const double got = (double)get(stats, i, 0);
        if (!(statistic == INTERSECTION && expected->zero_times_nan[c] && isnan(got))) {
            check_near(tolerance, got, term->value, term->magnitude, names[statistic], -1, c);
        }
    }
    check_near(tolerance, sums->loss, expected->loss.value, expected->loss.magnitude, "sum of the losses", -1, -1);
    check_near(tolerance, sums->weight, expected->weight.value, expected->weight.value, "sum of the weights", -1, -1);
}

static void check_soft_grad(const struct soft_case* s, const struct memory* grad, const struct soft_results* expected) {
    const struct tolerance tolerance = tolerance_of(s->voxels.numbers.logits, s->voxels.numbers.real);
    for (int64_t p = 0; p < s->voxels.num_positions; ++p) {
        for (int64_t c = 0; c < s->voxels.num_classes; ++c) {
            const struct term* term = &expected->grad[p][c];
            check_near(&tolerance, get(grad, p, c), term->value, term->magnitude, "grad", p, c);
        }
    }
    check_guards(grad, "grad");
}

/* ---- running ---- */

/* Runs all positions in one range, for the sums and the gradient. */
static void run_soft_whole(const struct segloss_kernels* table, const struct soft_case* s,
                           const struct segloss_soft_stats* args, const struct soft_outputs* out,
                           struct segloss_sums* sums) {
    const enum segloss_real real = s->voxels.numbers.real;
    const int64_t end = s->voxels.num_positions;
    check_accepted(run_soft_forward(table, real, args, 0, end, out->stats.view.data, sums));
    check_accepted(table->soft_stats_backward[real](args, 0, end));
}

/* The same with one range per block, whose sums are added in order. */
static void run_soft_blocks(const struct segloss_kernels* table, const struct soft_case* s,
                            const struct segloss_soft_stats* args, const struct soft_outputs* out,
                            struct segloss_sums* sums) {
    const enum segloss_real real = s->voxels.numbers.real;
    struct soft_outputs part;
    create_soft_outputs(s, &part);
    double* total = out->stats.view.data;
    memset(total, 0, (size_t)(NUM_STATISTICS * s->voxels.num_classes) * sizeof *total);
    *sums = (struct segloss_sums){0, 0};
    for (int64_t begin = 0; begin < s->voxels.num_positions; begin += SEGLOSS_BLOCK) {
        const int64_t left = s->voxels.num_positions - begin;
        const int64_t end = begin + (left < SEGLOSS_BLOCK ? left : SEGLOSS_BLOCK);
        const double* stats = part.stats.view.data;
        struct segloss_sums losses = {-1, -1};
        check_accepted(table->soft_stats_backward[real](args, begin, end));
        check_accepted(run_soft_forward(table, real, args, begin, end, part.stats.view.data, &losses));
        for (int64_t i = 0; i < NUM_STATISTICS * s->voxels.num_classes; ++i) {
            total[i] += stats[i];
        }
        sums->loss += losses.loss;
        sums->weight += losses.weight;
    }
    check_guards(&part.stats, "statistics");
    free_soft_outputs(&part);
}

/* The gradient of a voxel has the same bits in any range. Sums are in double; the order of the additions shows only in
 * their last digits. */
static void check_same_results(const struct soft_case* s, const struct soft_outputs* whole,
                               const struct soft_outputs* blocks, const struct segloss_sums* sums_of_whole,
                               const struct segloss_sums* sums_of_blocks, const struct soft_sums* expected) {
    const struct tolerance summation = {1e-14L, 0, formats[SEGLOSS_FLOAT64].max};
    const int64_t num_classes = s->voxels.num_classes;
    for (int64_t i = 0; i < NUM_STATISTICS * num_classes; ++i) {
        check_near(&summation, get(&blocks->stats, i, 0), get(&whole->stats, i, 0),
                   expected->stats[i / num_classes][i % num_classes].magnitude, "statistic by blocks", -1, i);
    }
    check_near(&summation, sums_of_blocks->loss, sums_of_whole->loss, expected->loss.magnitude, "losses by blocks", -1,
               -1);
    check_near(&summation, sums_of_blocks->weight, sums_of_whole->weight, expected->weight.magnitude,
               "weights by blocks", -1, -1);
    check_same_bits(&whole->grad, &blocks->grad, "grad");
}

/* The smallest number above 1 that divides the positions, which can be the number itself. */
static int64_t small_divisor(int64_t num_positions) {
    int64_t divisor = 2;
    while (num_positions > 1 && num_positions % divisor != 0) {
        ++divisor;
    }
    return num_positions > 1 ? divisor : 1;
}

/* The gradients of the first sample's sums for each of `num_samples`. */
static void* for_each_sample(const struct memory* of_classes, int64_t num_samples) {
    const size_t row = (size_t)of_classes->positions->sizes[0] * (size_t)formats[of_classes->view.dtype].size;
    char* rows = malloc((size_t)num_samples * row + 1);
    for (int64_t n = 0; n < num_samples; ++n) {
        memcpy(rows + (size_t)n * row, of_classes->view.data, row);
    }
    return rows;
}

/* All positions as samples of `sample_size`, in ranges of whole samples and blocks: their sums add up to those of one
 * sample, and with the same gradients for all samples the gradient of the logits has the same bits. */
static void run_soft_samples(const struct segloss_kernels* table, const struct soft_case* s,
                             const struct soft_inputs* in, int64_t sample_size, const struct soft_outputs* whole,
                             const struct soft_results* expected) {
    const enum segloss_real real = s->voxels.numbers.real;
    const int64_t end = s->voxels.num_positions, num_samples = end / sample_size, C = s->voxels.num_classes;
    struct soft_outputs out;
    create_soft_outputs(s, &out);
    struct segloss_soft_stats args = soft_arguments_of(s, in, &out);
    void* const by_intersection = for_each_sample(&in->grad_intersection, num_samples);
    void* const by_prediction = for_each_sample(&in->grad_prediction, num_samples);
    double* stats = malloc((size_t)(NUM_STATISTICS * num_samples * C) * sizeof *stats + 1);
    struct segloss_sums* sums = malloc((size_t)num_samples * sizeof *sums + 1);
    double* const pointers[] = {stats, stats + num_samples * C, stats + 2 * num_samples * C};
    struct segloss_sums total = {0, 0};
    args.sample_size = sample_size;
    args.grad_intersection = by_intersection;
    args.grad_prediction = by_prediction;
    for (int64_t begin = 0; begin < end; begin += sample_size * SEGLOSS_BLOCK) {
        const int64_t last = begin + sample_size * SEGLOSS_BLOCK;
        check_accepted(table->soft_stats_forward[real](&args, begin, last < end ? last : end, pointers, sums));
        check_accepted(table->soft_stats_backward[real](&args, begin, last < end ? last : end));
    }
    double* const of_all = out.stats.view.data;
    memset(of_all, 0, (size_t)(NUM_STATISTICS * C) * sizeof *of_all);
    for (int64_t i = 0; i < NUM_STATISTICS * num_samples * C; ++i) {
        of_all[i / (num_samples * C) * C + i % C] += stats[i];
    }
    for (int64_t n = 0; n < num_samples; ++n) {
        total.loss += sums[n].loss;
        total.weight += sums[n].weight;
    }
    const struct tolerance tolerance = tolerance_of_sums(&s->voxels);
    check_stats(s, &out.stats, &total, &tolerance, &expected->sums);
    check_same_bits(&whole->grad, &out.grad, "grad of samples");
    check_guards(&out.grad, "grad of samples");
    free(by_intersection);
    free(by_prediction);
    free(stats);
    free(sums);
    free_soft_outputs(&out);
}

/* Keys of all positions, in runs of any length. */
static struct memory make_keys(const struct soft_case* s, int64_t num_keys) {
    const struct memory keys = allocate_input(SEGLOSS_INT32, &s->voxels.positions, 1, PLANAR);
    const int most = 1 + random_below(3) * SEGLOSS_BLOCK;
    int64_t key = 0;
    for (int64_t p = 0, left = 0; p < s->voxels.num_positions; ++p, --left) {
        if (left == 0) {
            key = random_below(num_keys);
            left = 1 + random_below(most);
        }
        set(&keys, p, 0, key);
    }
    return keys;
}

static void expect_refused_key(const struct segloss_kernels* table, enum segloss_real real,
                               const struct segloss_soft_stats* args, const struct memory* keys, int64_t end,
                               double* const* stats, struct segloss_sums* sums) {
    const int64_t position = random_below(end);
    set(keys, position, 0, random_below(2) ? args->num_keys : -1);
    expect_position("soft statistics of a bad key", table->soft_stats_forward[real](args, 0, end, stats, sums),
                    position);
    expect_position("soft statistics of a bad key, backward", table->soft_stats_backward[real](args, 0, end), position);
}

/* All positions with keys: their sums add up to those of one key, and with the same gradients for all keys the gradient
 * of the logits has the same bits. */
static void run_soft_keys(const struct segloss_kernels* table, const struct soft_case* s, const struct soft_inputs* in,
                          const struct soft_outputs* whole, const struct soft_results* expected) {
    enum { MOST_KEYS = 5 };
    const enum segloss_real real = s->voxels.numbers.real;
    const int64_t end = s->voxels.num_positions, C = s->voxels.num_classes, num_keys = 1 + random_below(MOST_KEYS);
    const struct memory keys = make_keys(s, num_keys);
    const float ones[MOST_KEYS] = {1, 1, 1, 1, 1};
    const double double_ones[MOST_KEYS] = {1, 1, 1, 1, 1};
    struct soft_outputs out;
    create_soft_outputs(s, &out);
    struct segloss_soft_stats args = soft_arguments_of(s, in, &out);
    void* const by_intersection = for_each_sample(&in->grad_intersection, num_keys);
    void* const by_prediction = for_each_sample(&in->grad_prediction, num_keys);
    double* stats = malloc((size_t)(NUM_STATISTICS * num_keys * C) * sizeof *stats + 1);
    double* const pointers[] = {stats, stats + num_keys * C, stats + 2 * num_keys * C};
    struct segloss_sums sums[MOST_KEYS], total = {0, 0};
    args.keys = keys.view;
    args.num_keys = num_keys;
    args.grad_intersection = by_intersection;
    args.grad_prediction = by_prediction;
    args.grad_loss = real == SEGLOSS_REAL_DOUBLE ? (const void*)double_ones : ones;
    check_accepted(table->soft_stats_forward[real](&args, 0, end, pointers, sums));
    check_accepted(table->soft_stats_backward[real](&args, 0, end));
    double* const of_all = out.stats.view.data;
    memset(of_all, 0, (size_t)(NUM_STATISTICS * C) * sizeof *of_all);
    for (int64_t i = 0; i < NUM_STATISTICS * num_keys * C; ++i) {
        of_all[i / (num_keys * C) * C + i % C] += stats[i];
    }
    for (int64_t key = 0; key < num_keys; ++key) { /* weights are those of v, also without losses */
        total.loss += sums[key].loss;
        total.weight += s->with_loss ? sums[key].weight * (s->activation == SEGLOSS_SIGMOID ? (double)C : 1) : 0;
    }
    const struct tolerance tolerance = tolerance_of_sums(&s->voxels);
    check_stats(s, &out.stats, &total, &tolerance, &expected->sums);
    check_same_bits(&whole->grad, &out.grad, "grad of keys");
    check_guards(&out.grad, "grad of keys");
    expect_refused_key(table, real, &args, &keys, end, pointers, sums);
    free(keys.bytes);
    free(by_intersection);
    free(by_prediction);
    free(stats);
    free_soft_outputs(&out);
}

static void run_soft_table(const struct segloss_kernels* table, const struct soft_case* s, const struct soft_inputs* in,
                           const struct soft_results* expected) {
    struct soft_outputs whole, blocks;
    struct segloss_sums sums_of_whole = {-1, -1}, sums_of_blocks;
    const struct tolerance tolerance = tolerance_of_sums(&s->voxels);
    describe_soft_case(s, table->isa);
    create_soft_outputs(s, &whole);
    create_soft_outputs(s, &blocks);
    const struct segloss_soft_stats to_whole = soft_arguments_of(s, in, &whole);
    const struct segloss_soft_stats to_blocks = soft_arguments_of(s, in, &blocks);
    run_soft_whole(table, s, &to_whole, &whole, &sums_of_whole);
    check_stats(s, &whole.stats, &sums_of_whole, &tolerance, &expected->sums);
    check_guards(&whole.stats, "statistics");
    check_soft_grad(s, &whole.grad, expected);
    if (splits_freely(table)) {
        run_soft_blocks(table, s, &to_blocks, &blocks, &sums_of_blocks);
        check_same_results(s, &whole, &blocks, &sums_of_whole, &sums_of_blocks, &expected->sums);
    }
    if (splits_freely(table) && s->voxels.num_positions > 0) { /* a GPU gets samples in another way */
        run_soft_samples(table, s, in, 1, &whole, expected);
        run_soft_samples(table, s, in, small_divisor(s->voxels.num_positions), &whole, expected);
        run_soft_keys(table, s, in, &whole, expected);
    }
    free_soft_outputs(&whole);
    free_soft_outputs(&blocks);
}

static void find_soft_results(const struct soft_case* s, const struct soft_inputs* in, struct soft_results* results) {
    const struct soft_outputs none = {0};
    const struct segloss_soft_stats args = soft_arguments_of(s, in, &none);
    const struct soft_problem problem = soft_problem_of(s, in, &args);
    memset(&results->sums, 0, sizeof results->sums);
    for (int64_t p = 0; p < s->voxels.num_positions; ++p) {
        reference_soft_voxel(&problem, p, &results->sums, results->grad[p]);
    }
}

static void check_soft_case(const struct soft_case* s, const struct soft_inputs* in) {
    static struct soft_results expected;
    find_soft_results(s, in, &expected);
    for (int i = 0; i < num_tables; ++i) {
        run_soft_table(tables[i], s, in, &expected);
    }
}

static void run_soft_case(const struct soft_case* s) {
    struct soft_inputs in;
    describe_soft_case(s, "reference");
    create_soft_inputs(s, &in);
    check_soft_case(s, &in);
    free_soft_inputs(&in);
}

/* Each number of positions x number of classes, SOFT_ROUNDS times with other options. */
static void test_soft_stats(enum segloss_activation activation, struct target_kind kind) {
    int num_cases = 0;
    for (int i = 0; i < NUM_COUNTS; ++i) {
        for (int j = 0; j < NUM_SOFT_CLASS_COUNTS; ++j) {
            for (int round = 0; round < SOFT_ROUNDS; ++round) {
                random_state = (uint64_t)num_cases;
                const struct number_pair numbers = number_pairs[num_cases++ % NUM_PAIRS];
                const struct test_case voxels = draw_case(counts[i], soft_class_counts[j], numbers, kind);
                const struct soft_case s = draw_soft_case(voxels, activation);
                run_soft_case(&s);
            }
        }
    }
    printf("soft statistics, %s, %s: %d cases in %d tables, whole and block by block: ok\n",
           activation_names[activation], kind.name, num_cases, num_tables);
}

/* ---- confident voxels ---- */

/* Makes one voxel with the label's logit `margin` above all others; for sigmoids, the logits are margin and -margin. */
static void make_confident(const struct soft_case* s, const struct soft_inputs* in, double margin) {
    const int is_sigmoid = s->activation == SEGLOSS_SIGMOID;
    const double offset = is_sigmoid ? 0 : random_unit(); /* so that differences are rounded, too */
    const double others = is_sigmoid ? -margin : offset;
    const int64_t label = (int64_t)get(&in->voxels.target, 0, 0);
    for (int64_t c = 0; c < s->voxels.num_classes; ++c) {
        set(&in->voxels.logits, 0, c, c == label ? margin + offset : others);
        set(&in->grad_intersection, c, 0, -1 - random_unit());
        set(&in->grad_prediction, c, 0, 0.2 + 0.2 * random_unit());
    }
    set(&in->voxels.grad_loss, 0, 0, 1);
}

/* Tolerances are relative to each number itself, unless focal loss or squaring takes it below the smallest normal
 * number. The gradients of v p g and of v p have similar sizes and opposite signs, so that nothing cancels. */
static void check_confident(const struct segloss_kernels* table, const struct soft_case* s,
                            const struct soft_inputs* in, const struct soft_results* expected) {
    struct soft_outputs out;
    struct segloss_sums sums;
    struct tolerance tolerance = tolerance_of(SEGLOSS_FLOAT32, SEGLOSS_REAL_FLOAT);
    tolerance.absolute *= s->voxels.gamma != 0 || s->squared;
    create_soft_outputs(s, &out);
    const struct segloss_soft_stats args = soft_arguments_of(s, in, &out);
    run_soft_whole(table, s, &args, &out, &sums);
    check_stats(s, &out.stats, &sums, &tolerance, &expected->sums);
    for (int64_t c = 0; c < s->voxels.num_classes; ++c) {
        if (s->activation == SEGLOSS_SIGMOID || c == (int64_t)get(&in->voxels.target, 0, 0)) {
            const long double value = expected->grad[0][c].value;
            check_near(&tolerance, get(&out.grad, 0, c), value, fabsl(value), "grad", 0, c);
        }
    }
    free_soft_outputs(&out);
}

static void run_confident_case(const struct soft_case* s, double margin) {
    static struct soft_results expected;
    struct soft_inputs in;
    create_soft_inputs(s, &in);
    make_confident(s, &in, margin);
    find_soft_results(s, &in, &expected);
    for (int i = 0; i < num_tables; ++i) {
        describe_soft_case(s, tables[i]->isa);
        const size_t length = strlen(current_case);
        snprintf(current_case + length, sizeof current_case - length, ", margin %g", margin);
        check_confident(tables[i], s, &in, &expected);
    }
    free_soft_inputs(&in);
}

static void test_confident_voxels(void) {
    static const int64_t class_numbers[] = {2, 3, 17};
    int num_cases = 0;
    for (double margin = 0; margin <= 80; margin += 0.125) {
        random_state = (uint64_t)num_cases++;
        struct test_case voxels = draw_case(1, class_numbers[random_below(3)], number_pairs[0], labels_kind);
        voxels.values = CONFIDENT;
        voxels.ignore_index = -100;
        voxels.target_dtype = SEGLOSS_UINT8;
        voxels.class_weights = POSITIVE_WEIGHTS;
        voxels.voxel_weights = POSITIVE_WEIGHTS;
        voxels.label_smoothing = 0;
        voxels.gamma = draw_gamma();
        for (int activation = SEGLOSS_SOFTMAX; activation <= SEGLOSS_SIGMOID; ++activation) {
            for (int option = 0; option < 4; ++option) {
                const struct soft_case s = {voxels, (enum segloss_activation)activation, option & 1, option >> 1, 0, 0};
                run_confident_case(&s, margin);
            }
        }
    }
    printf("soft statistics of confident voxels: %d margins in %d tables: ok\n", num_cases, num_tables);
}

/* ---- bad targets ---- */

/* Masks that every kernel must refuse, listed as in bad_labels. */
static const struct bad_label bad_masks[] = {
    {SEGLOSS_FLOAT32, SEGLOSS_INT64, 2, 0},
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, -1, 0},
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, 0.5L, 0},
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, (long double)NAN, 0},
    {SEGLOSS_FLOAT32, SEGLOSS_BFLOAT16, (long double)INFINITY, 0},
    {SEGLOSS_INT8, SEGLOSS_INT8, -1, 0},
    {SEGLOSS_INT64, SEGLOSS_INT64, 0x1p32L, 0},
    {SEGLOSS_INT64, SEGLOSS_INT64, -0x1p63L, 0},
    {SEGLOSS_UINT64, SEGLOSS_UINT64, 0x1p63L, 0},
    {SEGLOSS_UINT8, SEGLOSS_UINT8, UINT8_MAX, -1}, /* the same bits as ignore_index, but not its value */
    {SEGLOSS_UINT16, SEGLOSS_UINT16, UINT16_MAX, -1},
    {SEGLOSS_UINT32, SEGLOSS_UINT32, UINT32_MAX, -1},
};

enum { BAD_TARGET_POSITIONS = 3 * SEGLOSS_BLOCK + 1 };

/* Runs [begin, end) and expects that `expected` is refused. */
static void expect_soft_refusal(const struct segloss_kernels* table, const struct soft_case* s,
                                const struct soft_inputs* in, int64_t begin, int64_t end, int64_t expected) {
    const enum segloss_real real = s->voxels.numbers.real;
    struct soft_outputs out;
    struct segloss_sums sums;
    create_soft_outputs(s, &out);
    const struct segloss_soft_stats args = soft_arguments_of(s, in, &out);
    expect_position("soft statistics forward",
                    run_soft_forward(table, real, &args, begin, end, out.stats.view.data, &sums), expected);
    const int64_t in_backward = refused_by_backward(table, &s->voxels, expected);
    expect_position("soft statistics backward", table->soft_stats_backward[real](&args, begin, end), in_backward);
    check_guards(&out.stats, "statistics");
    check_untouched(&out.grad, begin, end, in_backward, "grad");
    free_soft_outputs(&out);
}

/* The first of two bad targets is reported; a range without bad targets is accepted. */
static void test_bad_soft_target(const struct bad_label* bad, enum segloss_dtype dtype, int64_t position,
                                 struct target_kind kind) {
    const int has_labels = kind.target == SEGLOSS_LABELS;
    const int64_t num_classes = has_labels || random_below(4) ? BAD_CLASSES : MAX_CLASSES;
    const struct test_case voxels =
        draw_case(BAD_TARGET_POSITIONS, num_classes, number_pairs[random_below(NUM_PAIRS)], kind);
    struct soft_case s =
        draw_soft_case(voxels, (enum segloss_activation)(has_labels ? random_below(3) : 1 + random_below(2)));
    struct soft_inputs in;
    s.voxels.target_dtype = dtype;
    s.voxels.target_layout = draw_layout(NUM_LAYOUTS);
    s.voxels.ignore_index = bad->ignore_index ? bad->ignore_index : BAD_IGNORE;
    s.voxels.values = ORDINARY;
    create_soft_inputs(&s, &in);
    if (has_labels) {
        fill_good_labels(&in.voxels.target, BAD_TARGET_POSITIONS, s.voxels.ignore_index);
    }
    set(&in.voxels.target, position, has_labels ? 0 : random_below(num_classes), bad->value);
    set(&in.voxels.target, BAD_TARGET_POSITIONS - 1, 0, bad->value);
    for (int i = 0; i < num_tables; ++i) {
        describe_soft_case(&s, tables[i]->isa);
        expect_soft_refusal(tables[i], &s, &in, 0, BAD_TARGET_POSITIONS, position);
        expect_soft_refusal(tables[i], &s, &in, 0, position, -1);
        expect_soft_refusal(tables[i], &s, &in, 2 * SEGLOSS_BLOCK, 3 * SEGLOSS_BLOCK, -1);
    }
    free_soft_inputs(&in);
}

static int test_bad_soft_targets_of(const struct bad_label* bad, size_t num_bad, struct target_kind kind) {
    static const int64_t positions[] = {0, SEGLOSS_BLOCK - 1, SEGLOSS_BLOCK};
    int num_cases = 0;
    for (size_t i = 0; i < num_bad; ++i) {
        for (int dtype = (int)bad[i].first; dtype <= (int)bad[i].last; ++dtype) {
            for (size_t k = 0; k < sizeof positions / sizeof positions[0]; ++k) {
                random_state = (uint64_t)num_cases++;
                if (num_cases % BAD_STEP == 0) {
                    test_bad_soft_target(&bad[i], (enum segloss_dtype)dtype, positions[k], kind);
                }
            }
        }
    }
    return num_cases / BAD_STEP;
}

/* ---- values outside their range ---- */

/* Applies to voxels that count; nan is refused in targets but not in logits. */
static const struct segloss_range test_range = {-0.25, 1.25};

static struct soft_case draw_range_case(enum segloss_activation activation, int num_case) {
    static const int64_t class_counts_of_ranges[] = {1, BAD_CLASSES, MAX_CLASSES};
    const struct test_case voxels = draw_case(BAD_TARGET_POSITIONS, class_counts_of_ranges[num_case % 3],
                                              number_pairs[num_case % NUM_PAIRS], probabilities_kind);
    struct soft_case s = draw_soft_case(voxels, activation);
    s.voxels.voxel_weights = POSITIVE_WEIGHTS;
    s.voxels.target_layout = draw_layout(NUM_LAYOUTS);
    s.voxels.logits_layout = draw_layout(NUM_LAYOUTS);
    s.voxels.values = ORDINARY;
    s.voxels.target_range = test_range;
    return s;
}

/* Cross entropy has no range for its logits, so it runs only for ranges of the target. */
static void expect_refusals(const struct soft_case* s, const struct soft_inputs* in, int64_t expected, int of_target) {
    for (int i = 0; i < num_tables; ++i) {
        describe_soft_case(s, tables[i]->isa);
        expect_soft_refusal(tables[i], s, in, 0, BAD_TARGET_POSITIONS, expected);
        if (of_target) {
            expect_cross_entropy_refusal(tables[i], &s->voxels, &in->voxels, 0, BAD_TARGET_POSITIONS, expected);
        }
    }
}

/* A value outside the range is refused if its voxel counts, and accepted if there is no range. */
static void test_value_outside_its_range(struct soft_case s, long double value, int64_t position, int of_target) {
    struct soft_inputs in;
    create_soft_inputs(&s, &in);
    const struct memory* values = of_target ? &in.voxels.target : &in.voxels.logits;
    for (int64_t p = 0; p < BAD_TARGET_POSITIONS; ++p) {
        for (int64_t c = 0; c < s.voxels.num_classes && !of_target; ++c) {
            set(values, p, c, random_unit());
        }
    }
    set(values, position, random_below(s.voxels.num_classes), value);
    const int is_refused = of_target || !isnan(value);
    expect_refusals(&s, &in, is_refused ? position : -1, of_target);
    set(&in.voxels.voxel_weight, position, 0, 0);
    expect_refusals(&s, &in, -1, of_target);
    set(&in.voxels.voxel_weight, position, 0, 1);
    s.voxels.target_range = s.voxels.logit_range = (struct segloss_range){0, 0};
    expect_refusals(&s, &in, -1, of_target);
    free_soft_inputs(&in);
}

static void test_ranges(void) {
    static const long double values[] = {
        -0.3L, 1.3L, 255, (long double)NAN, (long double)INFINITY, -(long double)INFINITY};
    static const int64_t positions[] = {0, SEGLOSS_BLOCK - 1, SEGLOSS_BLOCK, BAD_TARGET_POSITIONS - 1};
    int num_cases = 0;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; ++i) {
        for (size_t k = 0; k < sizeof positions / sizeof positions[0]; ++k) {
            for (int activation = SEGLOSS_SOFTMAX; activation <= SEGLOSS_IDENTITY; ++activation) {
                random_state = (uint64_t)num_cases++;
                if (num_cases % BAD_STEP != 0) {
                    continue;
                }
                struct soft_case s = draw_range_case((enum segloss_activation)activation, num_cases);
                test_value_outside_its_range(s, values[i], positions[k], 1);
                if (activation == SEGLOSS_IDENTITY) {
                    s.voxels.logit_range = test_range;
                    test_value_outside_its_range(s, values[i], positions[k], 0);
                }
            }
        }
    }
    printf("values outside their range: %d cases: ok\n", num_cases / BAD_STEP);
}

static void test_bad_soft_targets(void) {
    const int num_labels = test_bad_soft_targets_of(bad_labels, sizeof bad_labels / sizeof bad_labels[0], labels_kind);
    const int num_masks = test_bad_soft_targets_of(bad_masks, sizeof bad_masks / sizeof bad_masks[0], masks_kind);
    printf("soft statistics of bad targets: %d cases of labels, %d of masks: ok\n", num_labels, num_masks);
}

/* ---- all ---- */

static void test_all_soft_stats(void) {
    for (int activation = SEGLOSS_SOFTMAX; activation <= SEGLOSS_IDENTITY; ++activation) {
        test_soft_stats((enum segloss_activation)activation, labels_kind);
        test_soft_stats((enum segloss_activation)activation, probabilities_kind);
    }
    test_soft_stats(SEGLOSS_SIGMOID, masks_kind);
    test_soft_stats(SEGLOSS_IDENTITY, masks_kind);
    test_confident_voxels();
    test_bad_soft_targets();
    test_ranges();
}

#endif
