/* The C side of segloss: numbers only. No torch, no threads, no allocation, no globals.
 *
 * Voxels are counted by their position p in [0, P) over all dimensions but the classes', the last one fastest. A kernel
 * walks a half-open range [begin, end) of positions in blocks of SEGLOSS_BLOCK; `begin` is a multiple of
 * SEGLOSS_BLOCK. What it computes for a position does not depend on the range, so any split of [0, P) at multiples of
 * SEGLOSS_BLOCK gives it the same bits. Sums over a range do depend on the split: the caller fixes it by the shape.
 */
#ifndef SEGLOSS_KERNELS_H
#define SEGLOSS_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SEGLOSS_BLOCK = 128 };

enum segloss_dtype {
    SEGLOSS_FLOAT32,
    SEGLOSS_FLOAT64,
    SEGLOSS_FLOAT16,
    SEGLOSS_BFLOAT16,
    SEGLOSS_UINT8, /* bool too */
    SEGLOSS_INT8,
    SEGLOSS_UINT16,
    SEGLOSS_INT16,
    SEGLOSS_UINT32,
    SEGLOSS_INT32,
    SEGLOSS_UINT64,
    SEGLOSS_INT64,
};

/* What a target holds: labels, one value per voxel; probabilities, or masks of 0 and 1, one value per class. */
enum segloss_target { SEGLOSS_LABELS, SEGLOSS_PROBABILITIES, SEGLOSS_MASKS };

/* How p follows from the input x: softmax over the classes, sigmoid, or p = x. */
enum segloss_activation { SEGLOSS_SOFTMAX, SEGLOSS_SIGMOID, SEGLOSS_IDENTITY };

/* What the kernel computes in. */
enum segloss_real { SEGLOSS_REAL_FLOAT, SEGLOSS_REAL_DOUBLE, SEGLOSS_REALS };

enum { SEGLOSS_MAX_DIMS = 16 };

/* The dimensions of the positions, neighbours merged where every tensor's strides allow it. */
struct segloss_positions {
    int num_dims; /* >= 1 */
    int64_t sizes[SEGLOSS_MAX_DIMS];
};

/* A tensor as it lies in memory, strides in elements. data == NULL: it is optional and absent, or has no element. */
struct segloss_tensor {
    void* data;
    enum segloss_dtype dtype;
    int64_t stride_class; /* not used where the tensor has no classes */
    int64_t strides[SEGLOSS_MAX_DIMS];
};

/* What values must lie in, rounded to REAL; of no meaning where low == high. */
struct segloss_range {
    double low;
    double high;
};

/* Losses summed over a range of positions. */
struct segloss_sums {
    double loss;
    double weight; /* the mean's denominator */
};

/* Cross entropy of logits x with softmax p = exp(x) / sum_k exp(x_k), for one voxel of weight v:
 *
 *   labels y:         l = v * ((1 - s) w_y * -log p_y + s / C * sum_c w_c * -log p_c)
 *   probabilities t:  l = v * sum_c w_c ((1 - s) t_c + s / C) * -log p_c
 *
 * with s = label_smoothing; focal, for labels and s = 0:
 *
 *   l = v * w_y * (1 - p_y)^gamma * -log p_y
 *
 * A product with a zero class weight or a zero target is 0, whatever the logit. Voxels with the label ignore_index, or
 * with it in any mask, or with v = 0 count as absent: their logits are not looked at. */
struct segloss_cross_entropy {
    struct segloss_positions positions;
    int64_t num_classes; /* at most INT32_MAX */
    struct segloss_tensor logits;
    struct segloss_range logit_range; /* nan is passed on */
    struct segloss_tensor target;
    enum segloss_target target_kind;    /* masks: soft statistics only */
    struct segloss_range target_range;  /* of probabilities; nan is outside */
    struct segloss_tensor voxel_weight; /* optional, floating */
    const void* class_weight;           /* REAL [C], optional */
    int64_t ignore_index;               /* of labels and masks */
    double label_smoothing;             /* 0 with log_probabilities */
    double gamma;                       /* focal; >= 0, and 0 unless the target is labels */
    int log_probabilities;              /* logits are log p already: no softmax */

    struct segloss_tensor loss; /* forward writes each voxel's loss, binary forward each class's too; else optional */

    struct segloss_tensor grad_loss;   /* stride 0 everywhere for a reduced loss */
    double grad_scale;                 /* multiplies grad_loss: 1 / denominator for a mean */
    struct segloss_tensor grad_logits; /* backward writes grad_loss * grad_scale * dl/dx; so does forward, if given */
    int stream_grad;                   /* grad_logits is larger than the caches: write past them */
};

/* Binary cross entropy of logits x, each class by itself, with p = 1 / (1 + exp(-x)) and the target g (1 at the label's
 * class, else 0; or the class's probability or mask), smoothed to h = (1 - s) g + s / 2:
 *
 *   l_c = v * w_c (h_c (1 - p_c)^gamma * -log p_c + (1 - h_c) p_c^gamma * -log(1 - p_c))
 *
 * The arguments are those of cross entropy; log_probabilities is not used. */

/* The sums over voxels, class by class, that every region loss is made of: v p g, v p and v g for the probability p and
 * the target g (1 at the label's class, else 0); with `squared`, p^2 and g^2 in the last two; with `soft_label`
 * v min(p, g) instead of v p g, the same where g is 0 or 1.
 *
 * With `with_loss` the losses of the voxels are summed in the same walk: cross entropy where p is a softmax, binary
 * cross entropy, over all classes, where it is a sigmoid. */
struct segloss_soft_stats {
    struct segloss_cross_entropy voxels; /* loss and log_probabilities are not used */
    enum segloss_activation activation;
    int squared;
    int soft_label; /* target_kind SEGLOSS_PROBABILITIES and not `squared` only */
    int with_loss;  /* not with SEGLOSS_IDENTITY */

    /* Backward, REAL [C]: what multiplies the derivatives of v p g and v p. voxels.grad_loss is that of the losses. */
    const void* grad_intersection;
    const void* grad_prediction;
};

/* Each statistic is handed over as this many sums, double [3][C][SEGLOSS_SUM_LANES], to be added in order. */
enum { SEGLOSS_SUM_LANES = 8 };

/* Predicted classes against labels. What is predicted is the class of the largest logit (the first of equals; nan
 * counts as largest), or the value of an integer map. Voxels with the label ignore_index count nowhere, whatever is
 * predicted there. Counts are int64 and added to what is there:
 *
 *   pairs:      [C][C], first the label, then the prediction
 *   per class:  [3][C], true positives, false positives, false negatives
 *
 * and one cell more, whose value means nothing. */
struct segloss_confusion {
    struct segloss_positions positions;
    int64_t num_classes;              /* at most INT32_MAX */
    struct segloss_tensor prediction; /* logits, or an integer map where prediction_is_labels */
    struct segloss_tensor target;
    int64_t ignore_index;
    int prediction_is_labels;
    int per_class;
};

/* Exact one-hot targets to int32 labels. */
struct segloss_one_hot {
    struct segloss_positions positions;
    int64_t num_classes;
    struct segloss_tensor target;
    int32_t* labels; /* [P] */
};

/* All kernels of one instruction set. Each returns -1, or the position of the first voxel whose target it refuses: a
 * label outside [0, C) that is not ignore_index, a floating label that is not integral, a target that is not one-hot, a
 * mask that is not 0, 1 or ignore_index, all three rounded to REAL; or, in a block without such a target, at a voxel
 * that counts, a predicted label outside [0, C), or, in forward alone, a class probability or a logit outside its
 * range. What was written up to then is meaningless; nothing is written from that voxel's block on. `sums`, `stats` and
 * `largest` are overwritten. */
struct segloss_kernels {
    const char* isa;
    /* Of the sums, the weight alone: what forward gives, without reading the logits. */
    int64_t (*cross_entropy_weight[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                                                   struct segloss_sums* sums);
    int64_t (*cross_entropy_forward[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin,
                                                    int64_t end, struct segloss_sums* sums);
    int64_t (*cross_entropy_backward[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin,
                                                     int64_t end);
    int64_t (*binary_forward[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin, int64_t end);
    int64_t (*binary_backward[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin, int64_t end);
    int64_t (*soft_stats_forward[SEGLOSS_REALS])(const struct segloss_soft_stats* args, int64_t begin, int64_t end,
                                                 double* stats, struct segloss_sums* sums);
    int64_t (*soft_stats_backward[SEGLOSS_REALS])(const struct segloss_soft_stats* args, int64_t begin, int64_t end);
    int64_t (*confusion[SEGLOSS_REALS])(const struct segloss_confusion* args, int64_t begin, int64_t end,
                                        int64_t* counts);
    /* Of the labels and the predictions of two maps, at valid voxels; -1 where there is none. */
    int64_t (*largest_label)(const struct segloss_confusion* args, int64_t begin, int64_t end, int64_t* largest);
    int64_t (*one_hot)(const struct segloss_one_hot* args, int64_t begin, int64_t end);
};

/* What is built: neon on 64-bit ARM; baseline elsewhere, and with it the other two on x86-64. */
extern const struct segloss_kernels segloss_kernels_baseline;
extern const struct segloss_kernels segloss_kernels_avx2;
extern const struct segloss_kernels segloss_kernels_avx512;
extern const struct segloss_kernels segloss_kernels_neon;

#pragma GCC visibility push(default) /* all else is the library's own */

/* The k-th table that this processor can run, the best one first; NULL after the last one. */
const struct segloss_kernels* segloss_usable_kernels(int k);

/* The table for the instruction set `isa`, or for the best one of this processor where `isa` is NULL or empty. NULL if
 * there is no such table or this processor cannot run it. "baseline" is what every processor of its kind has: where
 * another name says which instructions these are, that one's table. */
const struct segloss_kernels* segloss_select_kernels(const char* isa);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
