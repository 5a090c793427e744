/* The C side of segloss: numbers only. No torch, no threads, no allocation, no globals.
 *
 * Voxels are counted by their position p in [0, P) over all dimensions but the classes', the last one fastest. A kernel
 * walks a half-open range [begin, end) of positions in blocks of SEGLOSS_BLOCK; `begin` is a multiple of
 * SEGLOSS_BLOCK. What it computes for a position does not depend on the range, so any split of [0, P) at multiples of
 * SEGLOSS_BLOCK gives the same bits.
 */
#ifndef SEGLOSS_KERNELS_H
#define SEGLOSS_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SEGLOSS_BLOCK = 64 };

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

/* What the kernel computes in. */
enum segloss_real { SEGLOSS_REAL_FLOAT, SEGLOSS_REAL_DOUBLE, SEGLOSS_REALS };

enum { SEGLOSS_MAX_DIMS = 16 };

/* The dimensions of the positions, neighbours merged where every tensor's strides allow it. */
struct segloss_positions {
    int num_dims; /* >= 1 */
    int64_t sizes[SEGLOSS_MAX_DIMS];
};

/* A tensor as it lies in memory, strides in elements. data == NULL: the optional tensor is absent. */
struct segloss_tensor {
    void* data;
    enum segloss_dtype dtype;
    int64_t stride_class; /* not used where the tensor has no classes */
    int64_t strides[SEGLOSS_MAX_DIMS];
};

/* Sums over a range of positions. */
struct segloss_sums {
    double loss;
    double weight; /* the mean's denominator */
};

/* Cross entropy of logits x with softmax p = exp(x) / sum_k exp(x_k), for one voxel of weight v:
 *
 *   labels y:         l = v * ((1 - s) w_y * -log p_y + s / C * sum_c w_c * -log p_c)
 *   probabilities t:  l = v * sum_c w_c ((1 - s) t_c + s / C) * -log p_c
 *
 * with s = label_smoothing. A product with a zero class weight or a zero target is 0, whatever the logit. Voxels with
 * the label ignore_index or with v = 0 count as absent: their logits are not looked at. */
struct segloss_cross_entropy {
    struct segloss_positions positions;
    int64_t num_classes; /* at most INT32_MAX */
    struct segloss_tensor logits;
    struct segloss_tensor target;       /* labels, or probabilities where target_is_probabilities */
    struct segloss_tensor voxel_weight; /* optional, floating */
    const void* class_weight;           /* REAL [C], optional */
    int64_t ignore_index;               /* labels only */
    double label_smoothing;             /* 0 with log_probabilities */
    int target_is_probabilities;
    int log_probabilities; /* logits are log p already: no softmax, tail is not used */

    /* REAL [P]: the sum of exp(x_c - max x) over all classes but one largest, which keeps every digit of a confident
     * voxel's loss log1p(tail) and of its target's gradient -tail / (1 + tail). Written forward, read backward. */
    void* tail;

    struct segloss_tensor loss; /* forward writes each voxel's loss; optional */

    struct segloss_tensor grad_loss;   /* backward: stride 0 everywhere for a reduced loss */
    double grad_scale;                 /* multiplies grad_loss: 1 / denominator for a mean */
    struct segloss_tensor grad_logits; /* backward writes grad_loss * grad_scale * dl/dx */
};

/* Classes against labels: how many valid voxels there are, and at how many the largest logit (the first of equals; nan
 * counts as largest) is the label's. */
struct segloss_accuracy {
    struct segloss_positions positions;
    int64_t num_classes;
    struct segloss_tensor logits;
    struct segloss_tensor target;
    int64_t ignore_index;
};

struct segloss_counts {
    int64_t correct;
    int64_t valid;
};

/* Exact one-hot targets to int32 labels. */
struct segloss_one_hot {
    struct segloss_positions positions;
    int64_t num_classes;
    struct segloss_tensor target;
    int32_t* labels; /* [P] */
};

/* All kernels of one instruction set. Each returns -1, or the position of the first voxel whose target it refuses: a
 * label outside [0, C) that is not ignore_index, a floating label that is not integral, a target that is not one-hot.
 * What was written up to then is meaningless. `sums` and `counts` are overwritten. */
struct segloss_kernels {
    const char* isa;
    int64_t (*cross_entropy_forward[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin,
                                                    int64_t end, struct segloss_sums* sums);
    int64_t (*cross_entropy_backward[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin,
                                                     int64_t end);
    int64_t (*accuracy[SEGLOSS_REALS])(const struct segloss_accuracy* args, int64_t begin, int64_t end,
                                       struct segloss_counts* counts);
    int64_t (*one_hot)(const struct segloss_one_hot* args, int64_t begin, int64_t end);
};

extern const struct segloss_kernels segloss_kernels_baseline;
#ifdef SEGLOSS_X86
extern const struct segloss_kernels segloss_kernels_avx2;
extern const struct segloss_kernels segloss_kernels_avx512;
#endif

/* The table for the instruction set `isa`, or for the best one of this processor where `isa` is NULL or empty. NULL if
 * there is no such table or this processor cannot run it. */
const struct segloss_kernels* segloss_select_kernels(const char* isa);

#ifdef __cplusplus
}
#endif
#endif
