/* The CUDA kernels in a table like those of the CPU, so that the same tests run them. */
#ifndef SEGLOSS_TEST_CUDA_TABLE_H
#define SEGLOSS_TEST_CUDA_TABLE_H

#include "harness.h"
#include "launchers.h"

/* Seeds the order in which the emulation's blocks and threads take turns; 0: one after the other. */
void set_order(unsigned order);

/* What the last call refused. */
static struct segloss_refusal refusal;

static struct segloss_cuda_call begin_call(enum segloss_real real, int64_t begin, int64_t end, int64_t num_classes) {
    const size_t size = segloss_cuda_workspace(end - begin, 1, num_classes);
    const struct segloss_cuda_call call = {
        .real = real,
        .begin = begin,
        .end = end,
        .num_samples = 1,
        .workspace = malloc(size),
        .refusal = &refusal,
        .origin = {"test", num_classes, 0, 1, {end}},
    };
    if (!call.workspace) {
        fail("no memory");
    }
    memset(call.workspace, GUARD_BYTE, size); /* device memory can hold anything */
    refusal = (struct segloss_refusal){0};
    return call;
}

/* The position that was refused, or -1. */
static int64_t end_call(const struct segloss_cuda_call* call, int error) {
    free(call->workspace);
    if (error != 0) {
        fail("a launch returned %d", error);
    }
    return refusal.count > 0 ? refusal.position : -1;
}

static struct segloss_cuda_sums results_in(struct segloss_sums* sums) {
    return (struct segloss_cuda_sums){.loss = &sums->loss, .loss_dtype = SEGLOSS_FLOAT64, .weight = &sums->weight};
}

/* Also writes the gradient, if the arguments have one. */
static int64_t run_forward(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                           struct segloss_sums* sums) {
    const struct segloss_cuda_call call = begin_call(real, begin, end, args->num_classes);
    const struct segloss_cuda_sums results = results_in(sums);
    return end_call(&call, segloss_cuda_cross_entropy_forward(args, &call, NULL, &results));
}

static int64_t run_backward(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin,
                            int64_t end) {
    const struct segloss_cuda_call call = begin_call(real, begin, end, args->num_classes);
    return end_call(&call, segloss_cuda_cross_entropy_backward(args, &call, NULL, 0));
}

static int64_t run_soft_sums(enum segloss_real real, const struct segloss_soft_stats* args, int64_t begin, int64_t end,
                             double* const* stats, struct segloss_sums* sums) {
    const int64_t num_classes = args->voxels.num_classes;
    const struct segloss_cuda_call call = begin_call(real, begin, end, num_classes);
    struct segloss_soft_stats without_grad = *args;
    struct segloss_cuda_sums results = results_in(sums);
    without_grad.voxels.grad_logits.data = NULL;
    results.intersection = stats[SEGLOSS_INTERSECTION];
    results.prediction = stats[SEGLOSS_PREDICTION];
    results.target = stats[SEGLOSS_TARGET];
    const int error = segloss_cuda_soft_stats_forward(&without_grad, &call, NULL, &results);
    if (!args->with_loss) {
        sums->loss = sums->weight = 0;
    }
    return end_call(&call, error);
}

static int64_t run_soft_backward(enum segloss_real real, const struct segloss_soft_stats* args, int64_t begin,
                                 int64_t end) {
    const struct segloss_cuda_call call = begin_call(real, begin, end, args->voxels.num_classes);
    return end_call(&call, segloss_cuda_soft_stats_backward(args, &call, NULL, 0));
}

static int64_t run_weight(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                          struct segloss_sums* sums) {
    const struct segloss_cuda_call call = begin_call(real, begin, end, args->num_classes);
    const struct segloss_cuda_sums results = results_in(sums);
    return end_call(&call, segloss_cuda_cross_entropy_weight(args, &call, &results));
}

/* Binary losses are soft statistics of a sigmoid, without sums of classes. */
static struct segloss_soft_stats as_stats(const struct segloss_cross_entropy* args) {
    return (struct segloss_soft_stats){.voxels = *args, .activation = SEGLOSS_SIGMOID, .with_loss = 1};
}

static int64_t run_binary_weight(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin,
                                 int64_t end, struct segloss_sums* sums) {
    const struct segloss_cuda_call call = begin_call(real, begin, end, 0);
    const struct segloss_cuda_sums results = results_in(sums);
    return end_call(&call, segloss_cuda_binary_weight(args, &call, &results));
}

static int64_t run_binary_forward(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin,
                                  int64_t end, struct segloss_sums* sums) {
    const struct segloss_cuda_call call = begin_call(real, begin, end, 0);
    const struct segloss_soft_stats stats = as_stats(args);
    const struct segloss_cuda_sums results = results_in(sums);
    return end_call(&call, segloss_cuda_soft_stats_forward(&stats, &call, NULL, &results));
}

static int64_t run_binary_backward(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin,
                                   int64_t end) {
    const struct segloss_cuda_call call = begin_call(real, begin, end, 0);
    const struct segloss_soft_stats stats = as_stats(args);
    return end_call(&call, segloss_cuda_soft_stats_backward(&stats, &call, NULL, 0));
}

static int64_t run_confusion(enum segloss_real real, const struct segloss_confusion* args, int64_t begin, int64_t end,
                             int64_t* counts) {
    const struct segloss_cuda_call call = begin_call(real, begin, end, args->num_classes);
    return end_call(&call, segloss_cuda_confusion(args, &call, counts));
}

/* ---- the entries of the table. After a refusal nothing may be written, so a first run finds the position ---- */

static int64_t position_entry(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin,
                              int64_t end, struct segloss_sums* sums) {
    struct segloss_cross_entropy without_outputs = *args;
    without_outputs.loss.data = without_outputs.grad_logits.data = NULL;
    return run_forward(real, &without_outputs, begin, end, sums);
}

static int64_t forward_entry(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin,
                             int64_t end, struct segloss_sums* sums) {
    const int64_t refused = position_entry(real, args, begin, end, sums);
    return refused >= 0 ? refused : run_forward(real, args, begin, end, sums);
}

static int64_t backward_entry(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin,
                              int64_t end) {
    struct segloss_sums sums;
    const int64_t refused = position_entry(real, args, begin, end, &sums);
    return refused >= 0 ? refused : run_backward(real, args, begin, end);
}

static int64_t binary_position(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin,
                               int64_t end, struct segloss_sums* sums) {
    struct segloss_cross_entropy without_outputs = *args;
    without_outputs.loss.data = without_outputs.grad_logits.data = NULL;
    return run_binary_forward(real, &without_outputs, begin, end, sums);
}

static int64_t binary_forward_entry(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin,
                                    int64_t end, struct segloss_sums* sums) {
    const int64_t refused = binary_position(real, args, begin, end, sums);
    return refused >= 0 ? refused : run_binary_forward(real, args, begin, end, sums);
}

static int64_t binary_backward_entry(enum segloss_real real, const struct segloss_cross_entropy* args, int64_t begin,
                                     int64_t end) {
    struct segloss_sums sums;
    const int64_t refused = binary_position(real, args, begin, end, &sums);
    return refused >= 0 ? refused : run_binary_backward(real, args, begin, end);
}

static int64_t soft_backward_entry(enum segloss_real real, const struct segloss_soft_stats* args, int64_t begin,
                                   int64_t end) {
    const int64_t num_classes = args->voxels.num_classes;
    double* all = malloc((size_t)(SEGLOSS_STATISTICS * num_classes) * sizeof *all);
    double* const stats[] = {all, all + num_classes, all + 2 * num_classes};
    struct segloss_sums sums;
    const int64_t refused = run_soft_sums(real, args, begin, end, stats, &sums);
    free(all);
    return refused >= 0 ? refused : run_soft_backward(real, args, begin, end);
}

static int64_t forward_float(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                             struct segloss_sums* sums) {
    return forward_entry(SEGLOSS_REAL_FLOAT, args, begin, end, sums);
}

static int64_t forward_double(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                              struct segloss_sums* sums) {
    return forward_entry(SEGLOSS_REAL_DOUBLE, args, begin, end, sums);
}

static int64_t weight_float(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                            struct segloss_sums* sums) {
    return run_weight(SEGLOSS_REAL_FLOAT, args, begin, end, sums);
}

static int64_t weight_double(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                             struct segloss_sums* sums) {
    return run_weight(SEGLOSS_REAL_DOUBLE, args, begin, end, sums);
}

static int64_t backward_float(const struct segloss_cross_entropy* args, int64_t begin, int64_t end) {
    return backward_entry(SEGLOSS_REAL_FLOAT, args, begin, end);
}

static int64_t backward_double(const struct segloss_cross_entropy* args, int64_t begin, int64_t end) {
    return backward_entry(SEGLOSS_REAL_DOUBLE, args, begin, end);
}

static int64_t binary_forward_float(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                                    struct segloss_sums* sums) {
    return binary_forward_entry(SEGLOSS_REAL_FLOAT, args, begin, end, sums);
}

static int64_t binary_forward_double(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                                     struct segloss_sums* sums) {
    return binary_forward_entry(SEGLOSS_REAL_DOUBLE, args, begin, end, sums);
}

static int64_t binary_weight_float(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                                   struct segloss_sums* sums) {
    return run_binary_weight(SEGLOSS_REAL_FLOAT, args, begin, end, sums);
}

static int64_t binary_weight_double(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                                    struct segloss_sums* sums) {
    return run_binary_weight(SEGLOSS_REAL_DOUBLE, args, begin, end, sums);
}

static int64_t binary_backward_float(const struct segloss_cross_entropy* args, int64_t begin, int64_t end) {
    return binary_backward_entry(SEGLOSS_REAL_FLOAT, args, begin, end);
}

static int64_t binary_backward_double(const struct segloss_cross_entropy* args, int64_t begin, int64_t end) {
    return binary_backward_entry(SEGLOSS_REAL_DOUBLE, args, begin, end);
}

static int64_t soft_forward_float(const struct segloss_soft_stats* args, int64_t begin, int64_t end,
                                  double* const* stats, struct segloss_sums* sums) {
    return run_soft_sums(SEGLOSS_REAL_FLOAT, args, begin, end, stats, sums);
}

static int64_t soft_forward_double(const struct segloss_soft_stats* args, int64_t begin, int64_t end,
                                   double* const* stats, struct segloss_sums* sums) {
    return run_soft_sums(SEGLOSS_REAL_DOUBLE, args, begin, end, stats, sums);
}

static int64_t soft_backward_float(const struct segloss_soft_stats* args, int64_t begin, int64_t end) {
    return soft_backward_entry(SEGLOSS_REAL_FLOAT, args, begin, end);
}

static int64_t soft_backward_double(const struct segloss_soft_stats* args, int64_t begin, int64_t end) {
    return soft_backward_entry(SEGLOSS_REAL_DOUBLE, args, begin, end);
}

static int64_t confusion_float(const struct segloss_confusion* args, int64_t begin, int64_t end, int64_t* counts) {
    return run_confusion(SEGLOSS_REAL_FLOAT, args, begin, end, counts);
}

static int64_t confusion_double(const struct segloss_confusion* args, int64_t begin, int64_t end, int64_t* counts) {
    return run_confusion(SEGLOSS_REAL_DOUBLE, args, begin, end, counts);
}

static int64_t find_largest_label(const struct segloss_confusion* args, int64_t begin, int64_t end, int64_t* largest) {
    const struct segloss_cuda_call call = begin_call(SEGLOSS_REAL_FLOAT, begin, end, 0);
    const int64_t position = end_call(&call, segloss_cuda_num_classes(args, &call, largest));
    --*largest;
    return position;
}

static int64_t compare_label_maps(const struct segloss_confusion* args, int64_t begin, int64_t end, int64_t* counts) {
    const struct segloss_cuda_call call = begin_call(SEGLOSS_REAL_FLOAT, begin, end, 0);
    return end_call(&call, segloss_cuda_compare_maps(args, &call, NULL, counts));
}

static int64_t read_one_hot(const struct segloss_one_hot* args, int64_t begin, int64_t end) {
    const struct segloss_cuda_call call = begin_call(SEGLOSS_REAL_FLOAT, begin, end, 0);
    struct segloss_one_hot without_labels = *args;
    unsigned char is_one_hot = 2;
    without_labels.labels = NULL;
    int error = segloss_cuda_one_hot(&without_labels, &call, &is_one_hot);
    if (is_one_hot != (refusal.count == 0)) {
        fail("is_one_hot is %d, refused are %lld voxels", is_one_hot, (long long)refusal.count);
    }
    if (error == 0 && refusal.count == 0) {
        error = segloss_cuda_one_hot(args, &call, NULL);
    }
    return end_call(&call, error);
}

/* There is no top-k for the GPU; the table has that of the CPU. */

static void topk_count_float(const struct segloss_topk* args, int64_t begin, int64_t end, int64_t* counts,
                             double* sum) {
    segloss_kernels_baseline.topk_count[0](args, begin, end, counts, sum);
}

static void topk_count_double(const struct segloss_topk* args, int64_t begin, int64_t end, int64_t* counts,
                              double* sum) {
    segloss_kernels_baseline.topk_count[1](args, begin, end, counts, sum);
}

static int64_t topk_ties_float(const struct segloss_topk* args, int64_t begin, int64_t end, int64_t n,
                               int64_t* position) {
    return segloss_kernels_baseline.topk_ties[0](args, begin, end, n, position);
}

static int64_t topk_ties_double(const struct segloss_topk* args, int64_t begin, int64_t end, int64_t n,
                                int64_t* position) {
    return segloss_kernels_baseline.topk_ties[1](args, begin, end, n, position);
}

static void topk_backward_float(const struct segloss_topk* args, int64_t begin, int64_t end) {
    segloss_kernels_baseline.topk_backward[0](args, begin, end);
}

static void topk_backward_double(const struct segloss_topk* args, int64_t begin, int64_t end) {
    segloss_kernels_baseline.topk_backward[1](args, begin, end);
}

static const struct segloss_kernels cuda_table = {
    .isa = "cuda",
    .cross_entropy_weight = {weight_float, weight_double},
    .cross_entropy_forward = {forward_float, forward_double},
    .cross_entropy_backward = {backward_float, backward_double},
    .binary_weight = {binary_weight_float, binary_weight_double},
    .binary_forward = {binary_forward_float, binary_forward_double},
    .binary_backward = {binary_backward_float, binary_backward_double},
    .soft_stats_forward = {soft_forward_float, soft_forward_double},
    .soft_stats_backward = {soft_backward_float, soft_backward_double},
    .confusion = {confusion_float, confusion_double},
    .largest_label = find_largest_label,
    .compare_maps = compare_label_maps,
    .one_hot = read_one_hot,
    .topk_count = {topk_count_float, topk_count_double},
    .topk_ties = {topk_ties_float, topk_ties_double},
    .topk_backward = {topk_backward_float, topk_backward_double},
};

#endif
