/* A slow reference of soft statistics, the losses summed with them and their gradient: one voxel at a time. */
#ifndef SEGLOSS_TEST_SOFT_STATS_REFERENCE_H
#define SEGLOSS_TEST_SOFT_STATS_REFERENCE_H

#include "reference.h"

/* `voxels` is the problem of the losses. The gradients with respect to the statistics are tensors over the classes. */
struct soft_problem {
    struct problem voxels;
    const struct segloss_soft_stats* args;
    const struct memory* grad_intersection;
    const struct memory* grad_prediction;
};

/* A number to compare, and the magnitude of the terms that add up to it; rounding errors are relative to it. */
struct term {
    long double value;
    long double magnitude;
};

static inline void add_term(struct term* t, long double value, long double magnitude) {
    t->value += value;
    t->magnitude += magnitude;
}

enum statistic { INTERSECTION, PREDICTION, TARGET, NUM_STATISTICS };

/* The sums over all voxels. */
struct soft_sums {
    struct term stats[NUM_STATISTICS][MAX_CLASSES];
    int zero_times_nan[MAX_CLASSES]; /* whether p was not finite at a target of 0: p g may be 0 or nan */
    struct term loss;
    struct term weight;
};

/* 0 times infinity is 0. */
static inline long double product(long double factor, long double x) {
    return factor == 0 && isinf(x) ? 0 : factor * x;
}

static inline long double softplus(long double x) { return (x > 0 ? x : 0) + log1pl(expl(-fabsl(x))); }

static inline long double sigmoid(long double x) { return x >= 0 ? 1 / (1 + expl(-x)) : expl(x) / (1 + expl(x)); }

/* p_c of one voxel. */
static inline void reference_probabilities(const struct soft_problem* problem, int64_t p, long double* probabilities) {
    struct softmax s = {0};
    if (problem->args->activation == SEGLOSS_SOFTMAX) {
        reference_softmax(&problem->voxels, p, &s);
    }
    for (int64_t c = 0; c < problem->args->voxels.num_classes; ++c) {
        const long double x = get(problem->voxels.logits, p, c);
        switch (problem->args->activation) {
        case SEGLOSS_SOFTMAX:
            probabilities[c] = reference_probability(&s, c);
            break;
        case SEGLOSS_SIGMOID:
            probabilities[c] = sigmoid(x);
            break;
        default:
            probabilities[c] = x;
        }
    }
}

static inline void reference_stats(const struct soft_problem* problem, int64_t position, long double v,
                                   const long double* probabilities, struct soft_sums* sums) {
    const int squared = problem->args->squared;
    for (int64_t c = 0; c < problem->args->voxels.num_classes; ++c) {
        const long double g = reference_target(&problem->voxels, position, c), p = probabilities[c];
        const long double product = g == 0 ? 0 : p * g;
        const long double intersection = v * (problem->args->soft_label ? (g < p ? g : p) : product);
        const long double prediction = v * p * (squared ? p : 1), target = v * g * (squared ? g : 1);
        add_term(&sums->stats[INTERSECTION][c], intersection, fabsl(intersection));
        add_term(&sums->stats[PREDICTION][c], prediction, fabsl(prediction));
        add_term(&sums->stats[TARGET][c], target, fabsl(target));
        sums->zero_times_nan[c] |= g == 0 && !isfinite(p);
    }
}

/* The binary focal cross entropy of one class and its gradient, where grad_loss has one value per class or per voxel.
 * With q = 1 - p:
 *
 *   l  = u h q^gamma softplus(-x) + w (1 - h) p^gamma softplus(x)
 *   l' = w (1 - h) p^gamma (gamma q softplus(x) + p) - u h q^gamma (gamma p softplus(-x) + q)
 *
 * An h between 0 and 1 is rounded, and so is 1 - h. The magnitudes then take both factors as 1. */
static inline void reference_binary(const struct soft_problem* problem, int64_t position, int64_t c, long double v,
                                    struct term* loss, struct term* grad) {
    const struct segloss_cross_entropy* a = &problem->args->voxels;
    const long double x = get(problem->voxels.logits, position, c), p = sigmoid(x), q = sigmoid(-x);
    const long double smoothing = (long double)a->label_smoothing, gamma = (long double)a->gamma;
    const long double h = (1 - smoothing) * reference_target(&problem->voxels, position, c) + smoothing / 2;
    const long double h_size = h == 0 ? 0 : 1, complement_size = h == 1 ? 0 : 1;
    const long double w = reference_class_weight(&problem->voxels, c);
    const long double u = reference_weight_of_one(&problem->voxels, c);
    const struct memory* grad_loss = problem->voxels.grad_loss;
    const long double scale =
        v * get(grad_loss, position, c < grad_loss->num_classes ? c : 0) * (long double)a->grad_scale;
    const long double positive = product(powl(q, gamma), softplus(-x));
    const long double negative = product(powl(p, gamma), softplus(x));
    const long double falling = powl(q, gamma) * (gamma * product(p, softplus(-x)) + q);
    const long double rising = powl(p, gamma) * (gamma * product(q, softplus(x)) + p);
    add_term(loss, v * (product(u * h, positive) + product(w * (1 - h), negative)),
             v * (product(u * h_size, positive) + product(w * complement_size, negative)));
    add_term(grad, scale * (w * (1 - h) * rising - u * h * falling),
             fabsl(scale) * (w * complement_size * rising + u * h_size * falling));
}

static inline void reference_losses(const struct soft_problem* problem, int64_t p, long double v,
                                    struct soft_sums* sums, struct term* grad) {
    const int64_t num_classes = problem->args->voxels.num_classes;
    if (problem->args->activation == SEGLOSS_SIGMOID) {
        for (int64_t c = 0; c < num_classes; ++c) {
            reference_binary(problem, p, c, v, &sums->loss, &grad[c]);
        }
        add_term(&sums->weight, v * num_classes, v * num_classes);
        return;
    }
    struct voxel voxel;
    reference_voxel(&problem->voxels, p, &voxel);
    add_term(&sums->loss, voxel.loss, fabsl(voxel.loss));
    add_term(&sums->weight, voxel.weight, voxel.weight);
    for (int64_t c = 0; c < num_classes; ++c) {
        add_term(&grad[c], voxel.grad[c], voxel.magnitude[c]);
    }
}

/* The derivative by p of p g, or of min(p, g), which is uncertain where p and g differ only by rounding. */
static inline struct term reference_overlap_slope(const struct soft_problem* problem, long double p, long double g) {
    if (!problem->args->soft_label) {
        return (struct term){g, fabsl(g)};
    }
    const int is_uncertain = p != g && fabsl(p - g) <= 1e-5L * g;
    const long double slope = p < g ? 1 : p == g ? 0.5L : 0;
    return (struct term){slope, is_uncertain ? (long double)INFINITY : slope};
}

/* d_c, the gradient of the statistics with respect to p_c: a_c g_c + b_c, or a_c g_c + 2 b_c p_c. */
static inline struct term reference_slope(const struct soft_problem* problem, int64_t p, int64_t c,
                                          long double probability) {
    const struct term overlap = reference_overlap_slope(problem, probability, reference_target(&problem->voxels, p, c));
    const long double a = get(problem->grad_intersection, c, 0);
    const long double b = get(problem->grad_prediction, c, 0) * (problem->args->squared ? 2 * probability : 1);
    return (struct term){a * overlap.value + b, fabsl(a) * overlap.magnitude + fabsl(b)};
}

/* v p_c (d_c - sum_k p_k d_k). The d are taken relative to that of the largest p, which leaves the result unchanged but
 * keeps the digits of a confident voxel. With labels the kernels take them relative to the label's d: so a magnitude is
 * the sum of both, and 0 at the label. */
static inline void softmax_stats_grad(long double v, const long double* probabilities, const struct term* slopes,
                                      int64_t num_classes, int64_t label, struct term* grad) {
    struct term differences[MAX_CLASSES], mean = {0, 0};
    int64_t largest = 0;
    for (int64_t c = 0; c < num_classes; ++c) {
        largest = probabilities[c] > probabilities[largest] ? c : largest;
    }
    for (int64_t c = 0; c < num_classes; ++c) {
        const long double origin = label < 0 ? 0 : slopes[label].magnitude;
        differences[c].value = slopes[c].value - slopes[largest].value;
        differences[c].magnitude = c == label ? 0 : slopes[c].magnitude + origin;
        add_term(&mean, probabilities[c] * differences[c].value, probabilities[c] * differences[c].magnitude);
    }
    for (int64_t c = 0; c < num_classes; ++c) {
        const long double factor = v * probabilities[c];
        add_term(&grad[c], factor * (differences[c].value - mean.value),
                 factor * (differences[c].magnitude + mean.magnitude));
    }
}

static inline void reference_stats_grad(const struct soft_problem* problem, int64_t p, long double v,
                                        const long double* probabilities, struct term* grad) {
    const struct segloss_cross_entropy* a = &problem->args->voxels;
    struct term slopes[MAX_CLASSES];
    for (int64_t c = 0; c < a->num_classes; ++c) {
        slopes[c] = reference_slope(problem, p, c, probabilities[c]);
    }
    if (problem->args->activation == SEGLOSS_SOFTMAX) {
        const int64_t label = a->target_kind == SEGLOSS_LABELS ? (int64_t)get(problem->voxels.target, p, 0) : -1;
        softmax_stats_grad(v, probabilities, slopes, a->num_classes, label, grad);
        return;
    }
    for (int64_t c = 0; c < a->num_classes; ++c) {
        const long double complement = sigmoid(-get(problem->voxels.logits, p, c));
        const long double derivative = problem->args->activation == SEGLOSS_SIGMOID ? probabilities[c] * complement : 1;
        add_term(&grad[c], v * derivative * slopes[c].value, v * derivative * slopes[c].magnitude);
    }
}

/* Adds a voxel to the sums and writes its gradient to `grad`. */
static inline void reference_soft_voxel(const struct soft_problem* problem, int64_t p, struct soft_sums* sums,
                                        struct term* grad) {
    const long double v = reference_voxel_weight(&problem->voxels, p);
    memset(grad, 0, MAX_CLASSES * sizeof *grad);
    if (v == 0) {
        return;
    }
    long double probabilities[MAX_CLASSES];
    reference_probabilities(problem, p, probabilities);
    reference_stats(problem, p, v, probabilities, sums);
    reference_stats_grad(problem, p, v, probabilities, grad);
    if (problem->args->with_loss) {
        reference_losses(problem, p, v, sums, grad);
    }
}

#endif
