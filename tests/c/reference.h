/* A slow reference of cross entropy and its gradient: the formulas of kernels.h as written, one voxel at a time. */
#ifndef SEGLOSS_TEST_REFERENCE_H
#define SEGLOSS_TEST_REFERENCE_H

#include "harness.h"

enum { MAX_CLASSES = 257, MAX_POSITIONS = 400 };

/* The arguments of one problem, as the reference reads them. */
struct problem {
    enum segloss_real real; /* what the kernels compute in; determines where max - x overflows */
    const struct segloss_cross_entropy* args;
    const struct memory* logits;
    const struct memory* target;
    const struct memory* voxel_weight;
    const struct memory* grad_loss;
    const struct memory* class_weight;
    const struct memory* weight_of_ones;
};

struct voxel {
    long double loss;
    long double weight; /* share of the mean's denominator */
    long double grad[MAX_CLASSES];
    long double magnitude[MAX_CLASSES]; /* of the terms that add up to grad; rounding errors are relative to it */
};

static inline long double reference_class_weight(const struct problem* problem, int64_t c) {
    return problem->args->class_weight ? get(problem->class_weight, c, 0) : 1;
}

static inline long double reference_weight_of_one(const struct problem* problem, int64_t c) {
    return problem->args->weight_of_ones ? get(problem->weight_of_ones, c, 0) : reference_class_weight(problem, c);
}

/* A value as the kernels see it: labels as they are, masks and probabilities rounded to REAL. */
static inline long double reference_seen(const struct problem* problem, long double value) {
    const int is_label = problem->args->target_kind == SEGLOSS_LABELS;
    return is_label ? value : rounded(&formats[dtype_of_real(problem->real)], value);
}

/* Whether the label, or any mask, is ignore_index. */
static inline int reference_is_ignored(const struct problem* problem, int64_t p) {
    const long double ignored = reference_seen(problem, (long double)problem->args->ignore_index);
    int any = 0;
    for (int64_t c = 0; c < problem->target->num_classes; ++c) {
        any |= reference_seen(problem, get(problem->target, p, c)) == ignored;
    }
    return any && problem->args->target_kind != SEGLOSS_PROBABILITIES;
}

/* Whether the label is a class or ignore_index, or each mask is 0, 1 or ignore_index. Accepts any probabilities. */
static inline int reference_is_acceptable(const struct problem* problem, int64_t p) {
    const int64_t num_values = problem->args->target_kind == SEGLOSS_LABELS ? problem->args->num_classes : 2;
    const long double ignored = reference_seen(problem, (long double)problem->args->ignore_index);
    int all = 1;
    for (int64_t c = 0; c < problem->target->num_classes; ++c) {
        const long double value = reference_seen(problem, get(problem->target, p, c));
        const int is_value = value >= 0 && value < num_values && value == rintl(value);
        all &= is_value || value == ignored;
    }
    return all || problem->args->target_kind == SEGLOSS_PROBABILITIES;
}

/* The first position with a target that must be refused, or -1. */
static inline int64_t reference_refusal(const struct problem* problem, int64_t num_positions) {
    for (int64_t p = 0; p < num_positions; ++p) {
        if (!reference_is_acceptable(problem, p)) {
            return p;
        }
    }
    return -1;
}

/* v; 0 if the voxel does not count. */
static inline long double reference_voxel_weight(const struct problem* problem, int64_t p) {
    const struct segloss_cross_entropy* a = problem->args;
    if (reference_is_ignored(problem, p)) {
        return 0;
    }
    return a->voxel_weight.data ? get(problem->voxel_weight, p, 0) : 1;
}

/* t_c; for labels, 1 at the label's class, else 0. */
static inline long double reference_target(const struct problem* problem, int64_t p, int64_t c) {
    const int is_label = problem->args->target_kind == SEGLOSS_LABELS;
    return is_label ? get(problem->target, p, 0) == c : get(problem->target, p, c);
}

/* q_c, the factor of -log p_c in the loss. */
static inline long double reference_factor(const struct problem* problem, int64_t p, int64_t c) {
    const struct segloss_cross_entropy* a = problem->args;
    const long double w = reference_class_weight(problem, c);
    const long double uniform = (long double)a->label_smoothing / a->num_classes;
    return w * ((1 - (long double)a->label_smoothing) * reference_target(problem, p, c) + uniform);
}

/* The softmax of one voxel; `others` is the sum of e_c = exp(x_c - max) over all classes but one with x_c = max. */
struct softmax {
    long double x[MAX_CLASSES];
    long double e[MAX_CLASSES];
    long double max;
    long double others;
    int is_nan;
};

static inline void reference_softmax(const struct problem* problem, int64_t p, struct softmax* s) {
    int64_t largest = 0;
    s->max = -(long double)INFINITY;
    s->others = 0;
    s->is_nan = 0;
    for (int64_t c = 0; c < problem->args->num_classes; ++c) {
        s->x[c] = get(problem->logits, p, c);
        s->is_nan |= isnan(s->x[c]);
        if (s->x[c] > s->max) {
            s->max = s->x[c];
            largest = c;
        }
    }
    s->is_nan |= isinf(s->max);
    for (int64_t c = 0; c < problem->args->num_classes; ++c) {
        s->e[c] = s->is_nan ? (long double)NAN : expl(s->x[c] - s->max);
        s->others += c == largest ? 0 : s->e[c];
    }
}

static inline long double reference_nll(const struct problem* problem, const struct softmax* s, int64_t c) {
    if (problem->args->log_probabilities) {
        return -s->x[c];
    }
    const long double below = s->max - s->x[c];
    const int overflows = below > formats[dtype_of_real(problem->real)].max;
    return (overflows ? (long double)INFINITY : below) + log1pl(s->others);
}

static inline long double reference_probability(const struct softmax* s, int64_t c) {
    return s->e[c] / (1 + s->others);
}

/* 1 - p_c, without cancellation. */
static inline long double reference_complement(const struct softmax* s, int64_t c) {
    return (s->others + (1 - s->e[c])) / (1 + s->others);
}

/* (1 - p_y)^gamma. */
static inline long double reference_focal(const struct problem* problem, const struct softmax* s, int64_t label) {
    return powl(reference_complement(s, label), (long double)problem->args->gamma);
}

/* The factor of the gradient of -log p_y in the focal loss: the derivative of (1 - p)^gamma (-log p) by log p is
 * -(1 - p)^gamma (1 + gamma p / (1 - p) (-log p)), where p / (1 - p) (-log p) is 0 for p = 0 and 1 for p = 1. */
static inline long double reference_focal_slope(const struct problem* problem, const struct softmax* s, int64_t label) {
    const long double p = reference_probability(s, label), complement = reference_complement(s, label);
    const long double quotient = p == 0 ? 0 : complement == 0 ? 1 : p * reference_nll(problem, s, label) / complement;
    return reference_focal(problem, s, label) * (1 + (long double)problem->args->gamma * quotient);
}

/* grad_c = scale (Q p_c - q_c), or -scale q_c for log probabilities, with Q = sum_c q_c. The rounding of Q shows in
 * Q - q_c, unless the label's class has all of Q. */
static inline void reference_grad(const struct problem* problem, const struct softmax* s, long double scale,
                                  const long double* q, struct voxel* out) {
    const struct segloss_cross_entropy* a = problem->args;
    long double total = 0;
    for (int64_t c = 0; c < a->num_classes; ++c) {
        total += q[c];
    }
    for (int64_t c = 0; c < a->num_classes; ++c) {
        const long double probability = reference_probability(s, c);
        const long double rising = a->log_probabilities ? 0 : probability * (total - q[c]);
        const long double falling = a->log_probabilities ? q[c] : q[c] * reference_complement(s, c);
        const int is_smooth = a->label_smoothing != 0; /* then the terms are Q p_c and q_c */
        const int is_sum = a->target_kind == SEGLOSS_PROBABILITIES && !a->log_probabilities;
        const long double rounding = is_sum ? probability * total / 10 : 0;
        out->grad[c] = scale * (rising - falling);
        out->magnitude[c] = fabsl(scale) * (is_smooth ? probability * total + q[c] : rising + falling + rounding);
    }
}

static inline void reference_voxel(const struct problem* problem, int64_t p, struct voxel* out) {
    const struct segloss_cross_entropy* a = problem->args;
    const long double v = reference_voxel_weight(problem, p);
    memset(out, 0, sizeof *out);
    if (v == 0) {
        return;
    }
    struct softmax s;
    reference_softmax(problem, p, &s);
    const int has_labels = a->target_kind == SEGLOSS_LABELS;
    const int64_t label = has_labels ? (int64_t)get(problem->target, p, 0) : 0;
    const int every_class = !has_labels || a->label_smoothing != 0;
    long double q[MAX_CLASSES];
    for (int64_t c = 0; c < a->num_classes; ++c) {
        q[c] = reference_factor(problem, p, c);
        if (every_class || c == label) {
            const long double nll = reference_nll(problem, &s, c);
            out->loss += q[c] == 0 && nll == (long double)INFINITY ? 0 : v * q[c] * nll;
        }
    }
    long double scale = v * get(problem->grad_loss, p, 0) * (long double)a->grad_scale;
    if (a->gamma != 0) {
        const long double focal = reference_focal(problem, &s, label);
        out->loss = focal == 0 ? 0 : out->loss * focal;
        scale *= reference_focal_slope(problem, &s, label);
    }
    if (s.is_nan && !a->log_probabilities) {
        out->loss = (long double)NAN;
    }
    out->weight = has_labels ? v * reference_class_weight(problem, label) : v;
    reference_grad(problem, &s, scale, q, out);
}

#endif
