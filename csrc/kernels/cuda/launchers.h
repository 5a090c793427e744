/* The kernels of kernels.h for tensors in a GPU's memory. No torch, no allocation, no wait for the device: a launcher
 * puts its work on a stream, so that a CUDA graph can capture it, and returns a cudaError_t.
 *
 * `begin` and `end` can be any positions. Sums are added in a fixed order, without floating-point atomics, so they have
 * the same bits in every run and on every device. grad_logits has the logits' dtype; stream_grad is not used. */
#ifndef SEGLOSS_CUDA_LAUNCHERS_H
#define SEGLOSS_CUDA_LAUNCHERS_H

#include <stddef.h>

#include "../kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Stands for a label that is not an integer, or does not fit into int64. Only an int64 label can have this value. */
#define SEGLOSS_NO_LABEL (INT64_MIN + 1)

/* The tensor that holds the refused value; or that a target is not one-hot, or that both label maps are. */
enum segloss_refused {
    SEGLOSS_OF_TARGET,
    SEGLOSS_OF_PREDICTED_LABELS,
    SEGLOSS_OF_LOGITS,
    SEGLOSS_NOT_ONE_HOT,
    SEGLOSS_MASKS_AS_MAPS
};

/* What an error message says about a call. */
struct segloss_origin {
    char op[32];
    int64_t num_classes;
    int64_t ignore_index;
    int num_dims; /* of the labels */
    int64_t sizes[64];
};

/* What a kernel refused, by the rules in kernels.h. The loss and gradient of a refused voxel are nan, and so are all
 * sums of losses, weights and statistics; confusion does not count it. */
struct segloss_refusal {
    int is_claimed; /* by the call that writes the rest, so that calls on several streams do not mix theirs */
    struct segloss_origin origin;
    int64_t count;    /* of refused voxels; written last. The host sets it to 0, and then is_claimed */
    int64_t position; /* of the first one */
    int64_t label;    /* the refused value, if it is an integer of int64; else SEGLOSS_NO_LABEL */
    double value;     /* the same as a number; the voxel's first refused mask, probability or logit */
    enum segloss_refused what;
};

/* How an axis of logits becomes one of the target's: see segloss_axis. The operators pass the modes in this order. */
enum segloss_axis_mode { SEGLOSS_SAME_SIZE, SEGLOSS_NEAREST, SEGLOSS_LINEAR, SEGLOSS_NEAREST_EXACT };

struct segloss_cuda_axis {
    enum segloss_axis_mode mode;
    int64_t size; /* of the target */
    int64_t size_from;
};

/* Logits of another size than the target, for cross entropy, soft statistics, predictions and their counts. The kernels
 * interpolate as they read; the arguments' logits and grad_logits are then not used, and their positions are samples
 * and voxels. These kernels take what segloss_cuda_takes_resized says, labels as targets, logits in REAL float and no
 * smoothing. */
struct segloss_cuda_resize {
    int64_t num_samples;
    struct segloss_cuda_axis axes[SEGLOSS_AXES];
    int aligns_corners;
    const float* from;          /* [N][C][planes][rows][columns] */
    struct segloss_tensor grad; /* with respect to `from`, of any dtype; the strides are those of N and of the axes */
};

struct segloss_cuda_call {
    enum segloss_real real;
    int64_t begin;
    int64_t end;
    int64_t num_samples;             /* >= 1; samples of equal size in [begin, end), for soft statistics and counts */
    void* workspace;                 /* device memory of segloss_cuda_workspace() bytes */
    struct segloss_refusal* refusal; /* memory that host and device see; written only if nobody claims it. NULL: none */
    struct segloss_origin origin;
    void* stream;                             /* a cudaStream_t */
    const struct segloss_cuda_resize* resize; /* of logits of another size, else NULL */
};

size_t segloss_cuda_workspace(int64_t num_positions, int64_t num_samples, int64_t num_classes);

/* Of a call with logits of another size. */
size_t segloss_cuda_resized_workspace(const struct segloss_cuda_resize* resize, int64_t num_classes);

/* Whether there are kernels for so many classes and logits of another size. */
int segloss_cuda_takes_resized(const struct segloss_cuda_resize* resize, int64_t num_classes);

/* A mean divides the sum of the losses by its denominator. If that is 0, the mean is nan, or 0. */
enum segloss_reduction { SEGLOSS_SUM, SEGLOSS_MEAN, SEGLOSS_MEAN_OR_ZERO };

/* Where a launcher's results go, each of them overwritten; NULL if not wanted. Only soft statistics have samples, and
 * the sums of each class, which are wanted or not together. */
struct segloss_cuda_sums {
    void* loss; /* [N], of loss_dtype, reduced */
    enum segloss_dtype loss_dtype;
    enum segloss_reduction reduction;
    double* weight; /* [N], the mean's denominator */

    double* intersection; /* [N][C] */
    double* prediction;
    double* target;
};

/* The sums and `total_weight` are in device memory; so are the arguments' grad_intersection and grad_prediction of soft
 * statistics, [N][C].
 *
 * `total_weight` is the mean's denominator if it is known before, else NULL: the gradient is divided by it; if it is 0,
 * the gradient is 0. An absent grad_loss is 1. Forward also writes the gradient of the losses to grad_logits, if given:
 * that of cross entropy, and of the losses of sigmoids. The weight alone does not read the logits. The mean is forward
 * with the gradient of a mean whose denominator is not known before: it goes to sums->weight, which must be given.
 *
 * The binary losses are soft statistics of one sample without sums of classes: with_loss of a sigmoid, where forward
 * also writes the loss of each class to `loss`, if given, and backward takes an absent grad_intersection for 0.
 *
 * `unless_one` is for a gradient that forward has written with a grad_loss of 1: backward then writes nothing if
 * grad_loss, which is a single number, is 1. It reports nothing, as forward did. */
int segloss_cuda_cross_entropy_weight(const struct segloss_cross_entropy* args, const struct segloss_cuda_call* call,
                                      const struct segloss_cuda_sums* sums);
int segloss_cuda_cross_entropy_forward(const struct segloss_cross_entropy* args, const struct segloss_cuda_call* call,
                                       const double* total_weight, const struct segloss_cuda_sums* sums);
int segloss_cuda_cross_entropy_mean(const struct segloss_cross_entropy* args, const struct segloss_cuda_call* call,
                                    const struct segloss_cuda_sums* sums);
int segloss_cuda_cross_entropy_backward(const struct segloss_cross_entropy* args, const struct segloss_cuda_call* call,
                                        const double* total_weight, int unless_one);
int segloss_cuda_binary_weight(const struct segloss_cross_entropy* args, const struct segloss_cuda_call* call,
                               const struct segloss_cuda_sums* sums);
int segloss_cuda_soft_stats_forward(const struct segloss_soft_stats* args, const struct segloss_cuda_call* call,
                                    const double* total_weight, const struct segloss_cuda_sums* sums);
int segloss_cuda_soft_stats_backward(const struct segloss_soft_stats* args, const struct segloss_cuda_call* call,
                                     const double* total_weight, int unless_one);

/* Counts are added to what is there: pairs [N][C][C], or per class [3][N][C]; masks [4][N][C], with true negatives in
 * the last row, of a prediction and a target that both have a mask for each class. */
int segloss_cuda_confusion(const struct segloss_confusion* args, const struct segloss_cuda_call* call, int64_t* counts);
int segloss_cuda_mask_counts(const struct segloss_confusion* args, const struct segloss_cuda_call* call,
                             int64_t* counts);

/* Of two label maps: writes, [2][N], the number of voxels that count where they agree, and of all that count; if both
 * `are_one_hot`, two bools, are true, that is reported, and nothing counts. The labels can have any value. */
int segloss_cuda_compare_maps(const struct segloss_confusion* args, const struct segloss_cuda_call* call,
                              const unsigned char* are_one_hot, int64_t* counts);
/* Of two label maps: 1 + the largest label. */
int segloss_cuda_num_classes(const struct segloss_confusion* args, const struct segloss_cuda_call* call,
                             int64_t* num_classes);

/* The classes of labels, int64 [P], SEGLOSS_IGNORED where they are ignored; 0 for a refused one. */
int segloss_cuda_classes(const struct segloss_confusion* args, const struct segloss_cuda_call* call, int64_t* classes);
/* Writes the labels of a target that is one-hot, if wanted, and whether it is, if wanted. */
int segloss_cuda_one_hot(const struct segloss_one_hot* args, const struct segloss_cuda_call* call,
                         unsigned char* is_one_hot);

int segloss_cuda_predict(const struct segloss_predict* args, const struct segloss_cuda_call* call);

#ifdef __cplusplus
}
#endif
#endif
