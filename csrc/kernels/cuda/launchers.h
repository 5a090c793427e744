/* The kernels of kernels.h for tensors in a GPU's memory. No torch, no allocation, no wait for the device: a launcher
 * puts its work on a stream, so that a CUDA graph captures it, and returns a cudaError_t.
 *
 * Positions are walked from `begin` to `end`, any two. Sums are added in a fixed order, without floating atomics: they
 * have the same bits in every run and on every device. grad_logits has the logits' dtype; stream_grad is not used. */
#ifndef SEGLOSS_CUDA_LAUNCHERS_H
#define SEGLOSS_CUDA_LAUNCHERS_H

#include "../kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Stands for a label that is no integer, or none of int64. Only int64 has this value itself. */
#define SEGLOSS_NO_LABEL (INT64_MIN + 1)

/* Where it was. */
enum segloss_refused { SEGLOSS_OF_TARGET, SEGLOSS_OF_PREDICTED_LABELS, SEGLOSS_OF_LOGITS };

/* What an error says of a call. */
struct segloss_origin {
    char op[32];
    int64_t num_classes;
    int64_t ignore_index;
    int num_dims; /* of the labels */
    int64_t sizes[64];
};

/* What a kernel refused, as kernels.h says. Such a voxel's loss and gradient are nan, and with them all sums of losses,
 * of weights and of statistics; it is not counted. */
struct segloss_refusal {
    struct segloss_origin origin;
    int64_t count;    /* of voxels; 0: none */
    int64_t position; /* of the first one */
    int64_t label;    /* its label, or predicted label; or SEGLOSS_NO_LABEL */
    double value;     /* the same as a number; of masks and probabilities the first refused one's */
    enum segloss_refused what;
};

struct segloss_cuda_call {
    enum segloss_real real;
    int64_t begin;
    int64_t end;
    int64_t num_samples;             /* >= 1, of the same size, in [begin, end); soft statistics only */
    void* workspace;                 /* device memory of segloss_cuda_workspace() bytes */
    struct segloss_refusal* refusal; /* memory that host and device see; written where its count is 0 */
    struct segloss_origin origin;
    void* stream; /* a cudaStream_t */
};

size_t segloss_cuda_workspace(int64_t num_positions, int64_t num_samples, int64_t num_classes);

/* `sums`, `stats` and `total_weight` are in device memory; of soft statistics `sums` [N], `stats`, double [N][3][C],
 * and the arguments' grad_intersection and grad_prediction, [N][C], are those of each sample. Backward divides by
 * total_weight, where given: 0 leaves no gradient. Forward writes no gradient. */
int segloss_cuda_cross_entropy_forward(const struct segloss_cross_entropy* args, const struct segloss_cuda_call* call,
                                       struct segloss_sums* sums);
int segloss_cuda_cross_entropy_backward(const struct segloss_cross_entropy* args, const struct segloss_cuda_call* call,
                                        const double* total_weight);
int segloss_cuda_soft_stats_forward(const struct segloss_soft_stats* args, const struct segloss_cuda_call* call,
                                    double* stats, struct segloss_sums* sums);
int segloss_cuda_soft_stats_backward(const struct segloss_soft_stats* args, const struct segloss_cuda_call* call,
                                     const double* total_weight);
int segloss_cuda_confusion(const struct segloss_confusion* args, const struct segloss_cuda_call* call, int64_t* counts);

#ifdef __cplusplus
}
#endif
#endif
