/* Test cases of cross entropy: sizes, dtypes, strides, options and values, drawn from a seed. */
#ifndef SEGLOSS_TEST_CASES_H
#define SEGLOSS_TEST_CASES_H

#include "reference.h"
#include "tables.h"

/* ---- cross entropy: drawing a case ---- */

/* The dtype that the kernels read and the type that they compute in. */
struct number_pair {
    enum segloss_dtype logits;
    enum segloss_real real;
};

static const struct number_pair number_pairs[NUM_PAIRS] = {
    {SEGLOSS_FLOAT32, SEGLOSS_REAL_FLOAT},   {SEGLOSS_FLOAT16, SEGLOSS_REAL_FLOAT},
    {SEGLOSS_BFLOAT16, SEGLOSS_REAL_FLOAT},  {SEGLOSS_FLOAT64, SEGLOSS_REAL_DOUBLE},
    {SEGLOSS_FLOAT32, SEGLOSS_REAL_DOUBLE},  {SEGLOSS_FLOAT16, SEGLOSS_REAL_DOUBLE},
    {SEGLOSS_BFLOAT16, SEGLOSS_REAL_DOUBLE},
};

struct target_kind {
    const char* name;
    enum segloss_target target;
    int log_probabilities;
};

static const struct target_kind target_kinds[] = {
    {"labels", SEGLOSS_LABELS, 0},
    {"probabilities", SEGLOSS_PROBABILITIES, 0},
    {"labels of log probabilities", SEGLOSS_LABELS, 1},
    {"probabilities of log probabilities", SEGLOSS_PROBABILITIES, 1},
};

/* RAW: random bits. */
enum logit_values { ORDINARY, CONFIDENT, HOSTILE, RAW, NUM_LOGIT_VALUES };

static const char* const logit_value_names[] = {"ordinary", "confident", "hostile", "raw"};

enum weights { NO_WEIGHTS, POSITIVE_WEIGHTS, SOME_ZERO_WEIGHTS, NUM_WEIGHTS };

static const char* const weights_names[] = {"no", "positive", "some zero"};

/* One case: first the axes that the tests loop over, then those that are drawn at random. */
struct test_case {
    int64_t num_positions;
    int64_t num_classes;
    struct number_pair numbers;
    struct target_kind kind;

    struct segloss_positions positions;
    enum logit_values values;
    enum segloss_dtype target_dtype;
    enum segloss_dtype loss_dtype;
    enum segloss_dtype voxel_weight_dtype;
    int logits_layout, target_layout, lanes_layout, grad_layout;
    enum weights class_weights, voxel_weights;
    int64_t ignore_index;
    double label_smoothing;
    double gamma;
    struct segloss_range target_range, logit_range;
    struct segloss_label_table labels;
    int is_reduced;       /* one grad_loss for all voxels, and no losses written */
    int has_sparse_grads; /* grad_loss is 0 in most voxels */
    int stream_grad;
};

/* Labels and masks of any dtype. Signed dtypes can store -100, most can store 255, few can store the last ones. */
static void draw_target(struct test_case* t) {
    static const int64_t ignore_indices[] = {-100, 255,       1,         0,           -1,        -100,
                                             255,  INT32_MIN, INT32_MAX, 0x100000000, INT64_MIN, INT64_MAX};
    t->ignore_index = ignore_indices[random_below(12)];
    t->target_dtype =
        (enum segloss_dtype)random_below(t->kind.target == SEGLOSS_PROBABILITIES ? NUM_FLOATING : NUM_DTYPES);
}

static double draw_gamma(void) {
    static const double gammas[] = {0, 0.5, 1, 2, 5};
    return gammas[random_below(5)];
}

static struct test_case draw_case(int64_t num_positions, int64_t num_classes, struct number_pair numbers,
                                  struct target_kind kind) {
    static const double smoothings[] = {0, 0, 0.1, 1};
    struct test_case t = {
        .num_positions = num_positions,
        .num_classes = num_classes,
        .numbers = numbers,
        .kind = kind,
        .positions = factored(num_positions, 1 + random_below(3)),
        .values = (enum logit_values)random_below(NUM_LOGIT_VALUES),
        .loss_dtype = random_below(2) ? numbers.logits : dtype_of_real(numbers.real),
        .voxel_weight_dtype = (enum segloss_dtype)random_below(NUM_DTYPES),
        .logits_layout = draw_layout(NUM_INPUT_LAYOUTS),
        .target_layout = draw_layout(NUM_INPUT_LAYOUTS),
        .lanes_layout = draw_layout(NUM_LAYOUTS),
        .grad_layout = draw_layout(NUM_LAYOUTS),
        .class_weights = (enum weights)random_below(NUM_WEIGHTS),
        .voxel_weights = (enum weights)random_below(NUM_WEIGHTS),
        .label_smoothing = kind.log_probabilities ? 0 : smoothings[random_below(4)],
        .is_reduced = random_below(2),
        .stream_grad = random_below(2),
    };
    draw_target(&t);
    if (kind.target == SEGLOSS_LABELS && !kind.log_probabilities && t.label_smoothing == 0) {
        t.gamma = draw_gamma();
    }
    t.has_sparse_grads = !t.is_reduced && random_below(3) == 0;
    return t;
}

static void describe_case(const struct test_case* t, const char* isa) {
    snprintf(
        current_case, sizeof current_case,
        "%s cross entropy, %s: %lld positions in %d dimensions x %lld classes, %s %s logits %s, computed in %s, "
        "%s target %s, ignore_index %lld, %s class weights, %s voxel weights (%s), smoothing %g, gamma %g, grad %s, "
        "lanes %s, losses %s%s",
        isa, t->kind.name, (long long)t->num_positions, t->positions.num_dims, (long long)t->num_classes,
        logit_value_names[t->values], formats[t->numbers.logits].name, layout_name(t->logits_layout),
        formats[dtype_of_real(t->numbers.real)].name, formats[t->target_dtype].name, layout_name(t->target_layout),
        (long long)t->ignore_index, weights_names[t->class_weights], weights_names[t->voxel_weights],
        formats[t->voxel_weight_dtype].name, t->label_smoothing, t->gamma, layout_name(t->grad_layout),
        layout_name(t->lanes_layout), t->is_reduced ? "reduced" : formats[t->loss_dtype].name,
        t->has_sparse_grads ? ", few gradients" : "");
}

/* ---- cross entropy: values of a case ---- */

/* A logit that is hard for a softmax, one kind of trouble for each voxel. */
static long double hostile_logit(enum segloss_dtype dtype, int trouble, int64_t c, int64_t struck) {
    const long double huge = formats[dtype].max * 0.9L;
    const long double tiny = ldexpl(1, formats[dtype].min_exponent - formats[dtype].mantissa_bits);
    const long double ordinary = 4 * random_unit() - 2;
    switch (trouble) {
    case 0:
        return c == struck ? (long double)NAN : ordinary;
    case 1:
        return c == struck ? (long double)INFINITY : ordinary;
    case 2:
        return c == struck ? -(long double)INFINITY : ordinary;
    case 3:
        return -(long double)INFINITY;
    case 4:
        return c == struck ? huge : ordinary;
    case 5:
        return c == struck ? huge : -huge;
    case 6:
        return c % 2 ? -tiny : tiny * random_below(100);
    case 7:
        return huge;
    default:
        return ordinary;
    }
}

static long double draw_logit(const struct test_case* t, int trouble, int64_t c, int64_t struck) {
    long double x;
    if (t->values == RAW) {
        const uint64_t bits = random_bits_of((size_t)formats[t->numbers.logits].size);
        x = load(t->numbers.logits, &bits);
    } else if (t->values == HOSTILE) {
        x = hostile_logit(t->numbers.logits, trouble, c, struck);
    } else if (t->values == CONFIDENT) {
        x = (c == struck ? 10 * trouble : 0) + 0.5 * random_unit(); /* margins up to 80 */
    } else {
        x = 8 * random_unit() - 4;
    }
    return t->kind.log_probabilities ? -fabsl(x) : x;
}

static void fill_logits(const struct test_case* t, const struct memory* logits) {
    for (int64_t p = 0; p < t->num_positions; ++p) {
        const int trouble = random_below(9);
        const int64_t struck = random_below(t->num_classes);
        for (int64_t c = 0; c < t->num_classes; ++c) {
            set(logits, p, c, draw_logit(t, trouble, c, struck));
        }
    }
}

/* In one of four cases the whole first block is ignored, if the dtype holds ignore_index. */
static void fill_labels(const struct test_case* t, const struct memory* target) {
    const struct format* f = &formats[t->target_dtype];
    const int can_ignore = holds(t->target_dtype, t->ignore_index);
    const int64_t skipped = random_below(4) == 0 ? SEGLOSS_BLOCK : 0;
    const int64_t num_labels = f->max < MAX_CLASSES && t->num_classes > f->max ? (int64_t)f->max : t->num_classes;
    for (int64_t p = 0; p < t->num_positions; ++p) {
        const int ignored = can_ignore && (p < skipped || random_below(4) == 0);
        set(target, p, 0, ignored ? t->ignore_index : random_below(num_labels));
    }
}

static void fill_probabilities(const struct test_case* t, const struct memory* target) {
    for (int64_t p = 0; p < t->num_positions; ++p) {
        for (int64_t c = 0; c < t->num_classes; ++c) {
            set(target, p, c, random_below(3) ? random_unit() : 0);
        }
    }
}

/* In some voxels one class holds ignore_index. */
static void fill_masks(const struct test_case* t, const struct memory* target) {
    const int can_ignore = holds(t->target_dtype, t->ignore_index);
    for (int64_t p = 0; p < t->num_positions; ++p) {
        for (int64_t c = 0; c < t->num_classes; ++c) {
            set(target, p, c, random_below(2));
        }
        if (can_ignore && random_below(4) == 0) {
            set(target, p, random_below(t->num_classes), t->ignore_index);
        }
    }
}

typedef void filler(const struct test_case* t, const struct memory* target);

static filler* const target_fillers[] = {
    [SEGLOSS_LABELS] = fill_labels,
    [SEGLOSS_PROBABILITIES] = fill_probabilities,
    [SEGLOSS_MASKS] = fill_masks,
};

static void fill_voxel_weights(const struct test_case* t, const struct memory* weight) {
    const int64_t skipped = t->voxel_weights == SOME_ZERO_WEIGHTS && random_below(4) == 0 ? SEGLOSS_BLOCK : 0;
    for (int64_t p = 0; p < t->num_positions; ++p) {
        const int is_zero = t->voxel_weights == SOME_ZERO_WEIGHTS && (p < skipped || random_below(3) == 0);
        const double value = (int)t->voxel_weight_dtype < NUM_FLOATING ? 0.25 + random_unit() : 1 + random_below(3);
        set(weight, p, 0, is_zero ? 0 : value);
    }
}

/* ---- cross entropy: the tensors of a case ---- */

struct inputs {
    struct segloss_positions classes; /* class_weight is a tensor over the classes */
    struct memory logits, target, voxel_weight, grad_loss, class_weight, weight_of_ones;
};

struct outputs {
    struct memory loss, grad;
};

static void create_inputs(const struct test_case* t, struct inputs* in) {
    const struct segloss_positions* positions = &t->positions;
    const int64_t target_classes = t->kind.target == SEGLOSS_LABELS ? 1 : t->num_classes;
    in->logits = allocate_input(t->numbers.logits, positions, t->num_classes, t->logits_layout);
    in->target = allocate_input(t->target_dtype, positions, target_classes, t->target_layout);
    in->voxel_weight = allocate_input(t->voxel_weight_dtype, positions, 1, t->lanes_layout);
    in->grad_loss = allocate_input(t->loss_dtype, positions, 1, t->lanes_layout);
    fill_logits(t, &in->logits);
    target_fillers[t->kind.target](t, &in->target);
    fill_voxel_weights(t, &in->voxel_weight);
    for (int64_t p = 0; p < t->num_positions; ++p) {
        const int is_zero = t->has_sparse_grads && random_below(16) > 0;
        set(&in->grad_loss, p, 0, is_zero ? 0 : 4 * random_unit() - 2);
    }
    if (t->is_reduced) {
        memset(in->grad_loss.view.strides, 0, sizeof in->grad_loss.view.strides);
    }
    in->classes = (struct segloss_positions){1, {t->num_classes}};
    in->class_weight = allocate_input(dtype_of_real(t->numbers.real), &in->classes, 1, PLANAR);
    for (int64_t c = 0; c < t->num_classes; ++c) {
        const int is_zero = t->class_weights == SOME_ZERO_WEIGHTS && random_below(2);
        set(&in->class_weight, c, 0, is_zero ? 0 : 0.25 + random_unit());
    }
    in->weight_of_ones = (struct memory){0};
}

static void free_inputs(struct inputs* in) {
    free(in->logits.bytes);
    free(in->target.bytes);
    free(in->voxel_weight.bytes);
    free(in->grad_loss.bytes);
    free(in->class_weight.bytes);
    free(in->weight_of_ones.bytes);
}

static void create_outputs(const struct test_case* t, struct outputs* out) {
    out->loss = allocate_output(t->loss_dtype, &t->positions, 1, t->lanes_layout);
    out->grad = allocate_output(t->numbers.logits, &t->positions, t->num_classes, t->grad_layout);
}

static void free_outputs(struct outputs* out) {
    free(out->loss.bytes);
    free(out->grad.bytes);
}

static struct segloss_cross_entropy arguments_of(const struct test_case* t, const struct inputs* in,
                                                 const struct outputs* out) {
    return (struct segloss_cross_entropy){
        .positions = t->positions,
        .num_classes = t->num_classes,
        .logits = in->logits.view,
        .target = in->target.view,
        .voxel_weight = t->voxel_weights == NO_WEIGHTS ? (struct segloss_tensor){0} : in->voxel_weight.view,
        .class_weight = t->class_weights == NO_WEIGHTS ? NULL : in->class_weight.view.data,
        .weight_of_ones = in->weight_of_ones.view.data,
        .ignore_index = t->ignore_index,
        .label_smoothing = t->label_smoothing,
        .gamma = t->gamma,
        .target_kind = t->kind.target,
        .target_range = t->target_range,
        .logit_range = t->logit_range,
        .labels = t->labels,
        .log_probabilities = t->kind.log_probabilities,
        .loss = t->is_reduced ? (struct segloss_tensor){0} : out->loss.view,
        .grad_loss = in->grad_loss.view,
        .grad_scale = 0.75,
        .grad_logits = out->grad.view,
        .stream_grad = t->stream_grad,
    };
}

static struct problem problem_of(const struct test_case* t, const struct inputs* in,
                                 const struct segloss_cross_entropy* args) {
    return (struct problem){
        t->numbers.real,   args,           &in->logits,       &in->target,
        &in->voxel_weight, &in->grad_loss, &in->class_weight, &in->weight_of_ones,
    };
}

#endif
