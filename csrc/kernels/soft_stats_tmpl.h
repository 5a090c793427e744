/* Soft statistics and the losses summed along with them; the formulas are in kernels.h. */

/* p_c of a chunk is rows[c] * v->share. */
static REAL* FN(activations)(const struct segloss_soft_stats* s, VOXELS* v, int64_t first, int n) {
    return s->activation == SEGLOSS_SOFTMAX ? FN(exponentials)(v, first, n)
                                            : FN(probabilities)(v, s->activation, first, n);
}

/* Softmax, or p = rows itself. */
static void FN(prepare_activations)(const struct segloss_soft_stats* s, VOXELS* v) {
    if (s->activation == SEGLOSS_SOFTMAX) {
        FN(find_softmax)(v, &s->voxels);
        return;
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        v->share[i] = 1;
    }
}

/* Adds the block's sum to one class's lanes: four values in REAL, all else in double. */
static void FN(add_row)(double* restrict sums, const REAL* restrict x) {
    enum { QUARTER = SEGLOSS_BLOCK / 4 };
    REAL part[QUARTER];
    for (int i = 0; i < QUARTER; ++i) {
        part[i] = (x[i] + x[i + QUARTER]) + (x[i + 2 * QUARTER] + x[i + 3 * QUARTER]);
    }
    for (int i = 0; i < QUARTER; i += SEGLOSS_SUM_LANES) {
        for (int k = 0; k < SEGLOSS_SUM_LANES; ++k) {
            sums[k] += (double)part[i + k];
        }
    }
}

/* The three statistics' lanes of one class. */
struct FN(class_sums) {
    double* intersection;
    double* prediction;
    double* target;
};

static struct FN(class_sums) FN(sums_of_class)(const struct segloss_soft_stats* s, double* stats, int64_t class) {
    const int64_t stride = s->voxels.num_classes * SEGLOSS_SUM_LANES;
    double* first = stats + class * SEGLOSS_SUM_LANES;
    return (struct FN(class_sums)){first, first + stride, first + 2 * stride};
}

/* v p, or v p^2, of each class. */
static void FN(add_predictions)(const struct segloss_soft_stats* s, const VOXELS* v, const REAL* rows, int64_t first,
                                int n, double* stats) {
    ALIGNED REAL value[SEGLOSS_BLOCK];
    for (int c = 0; c < n; ++c) {
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            const REAL p = rows[c * SEGLOSS_BLOCK + i] * v->share[i];
            value[i] = (s->squared ? p * p : p) * v->weight[i];
        }
        FN(add_row)(FN(sums_of_class)(s, stats, first + c).prediction, value);
    }
}

/* v p g and v g, or v g^2, class by class. */
static void FN(add_targets)(const struct segloss_soft_stats* s, VOXELS* v, const REAL* rows, int64_t first, int n,
                            double* stats) {
    ALIGNED REAL both[SEGLOSS_BLOCK], only[SEGLOSS_BLOCK], buffer[SEGLOSS_BLOCK];
    for (int c = 0; c < n; ++c) {
        const REAL* g = FN(target_row)(v, &s->voxels, first, n, c, buffer);
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            const REAL weighted = g[i] * v->weight[i];
            both[i] = rows[c * SEGLOSS_BLOCK + i] * v->share[i] * weighted;
            only[i] = s->squared ? g[i] * weighted : weighted;
        }
        const struct FN(class_sums) sums = FN(sums_of_class)(s, stats, first + c);
        FN(add_row)(sums.intersection, both);
        FN(add_row)(sums.target, only);
    }
}

/* The same of labels, voxel by voxel; neighbours go to different lanes, so that none waits for another. */
static void FN(add_labels)(const struct segloss_soft_stats* s, const VOXELS* v, const REAL* rows, int64_t first, int n,
                           double* stats) {
    ALIGNED REAL p[SEGLOSS_BLOCK] = {0};
    FN(pick_labels)(rows, first, n, v->label, p);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        if (v->label[i] >= first && v->label[i] < first + n) {
            const struct FN(class_sums) sums = FN(sums_of_class)(s, stats, v->label[i]);
            sums.intersection[i % SEGLOSS_SUM_LANES] += (double)(p[i] * v->share[i] * v->weight[i]);
            sums.target[i % SEGLOSS_SUM_LANES] += (double)v->weight[i];
        }
    }
}

/* Adds the losses of a chunk of classes to each voxel's. */
static void FN(add_binary_losses)(const struct segloss_cross_entropy* a, VOXELS* v, int64_t first, int n,
                                  REAL* restrict loss) {
    const REAL* x = FN(read_input)(v, first, n);
    for (int c = 0; c < n; ++c) {
        ALIGNED REAL buffer[SEGLOSS_BLOCK], class_loss[SEGLOSS_BLOCK];
        const REAL* target = FN(target_row)(v, a, first, n, c, buffer);
        FN(binary_losses)(a, v, first + c, x + c * SEGLOSS_BLOCK, target, class_loss);
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            loss[i] += class_loss[i];
        }
    }
}

/* The statistics of a block and, with_loss, each voxel's loss and share of the denominator. */
static void FN(block_stats)(const struct segloss_soft_stats* s, VOXELS* v, REAL total_class_weight, double* stats,
                            REAL* loss, REAL* weight) {
    const struct segloss_cross_entropy* a = &s->voxels;
    const int is_softmax = s->activation == SEGLOSS_SOFTMAX;
    FN(prepare_activations)(s, v);
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* rows = FN(activations)(s, v, first, n);
        FN(add_predictions)(s, v, rows, first, n, stats);
        if (a->target_kind == SEGLOSS_LABELS && n > FN(few_classes)) {
            FN(add_labels)(s, v, rows, first, n, stats);
        } else {
            FN(add_targets)(s, v, rows, first, n, stats);
        }
        if (s->with_loss && !is_softmax) {
            FN(add_binary_losses)(a, v, first, n, loss);
        }
    }
    if (s->with_loss && is_softmax) {
        FN(block_losses)(a, v, total_class_weight, loss, weight);
    } else if (s->with_loss) {
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            weight[i] = v->weight[i] * (REAL)a->num_classes;
        }
    }
}

static void FN(assert_soft_stats)(const struct segloss_soft_stats* s, int64_t begin, int64_t end) {
    assert_range(&s->voxels.positions, begin, end);
    assert(s->voxels.target.data && !s->voxels.log_probabilities);
    assert(!s->with_loss || s->activation != SEGLOSS_IDENTITY);
    assert(s->activation != SEGLOSS_SOFTMAX || s->voxels.target_kind != SEGLOSS_MASKS);
    (void)s, (void)begin, (void)end;
}

static int64_t FN(soft_stats_forward)(const struct segloss_soft_stats* s, int64_t begin, int64_t end, double* stats,
                                      struct segloss_sums* sums) {
    FN(assert_soft_stats)(s, begin, end);
    const REAL total_class_weight = FN(total_class_weight)(&s->voxels);
    double loss_sums[SEGLOSS_SUM_LANES] = {0}, weight_sums[SEGLOSS_SUM_LANES] = {0};
    VOXELS v;
    memset(stats, 0, (size_t)s->voxels.num_classes * 3 * SEGLOSS_SUM_LANES * sizeof *stats);
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, &s->voxels, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        if (v.any_active) {
            ALIGNED REAL loss[SEGLOSS_BLOCK] = {0};
            ALIGNED REAL weight[SEGLOSS_BLOCK] = {0};
            FN(block_stats)(s, &v, total_class_weight, stats, loss, weight);
            FN(add_lanes)(loss_sums, loss);
            FN(add_lanes)(weight_sums, weight);
        }
    }
    *sums = (struct segloss_sums){FN(total_of_lanes)(loss_sums), FN(total_of_lanes)(weight_sums)};
    return -1;
}

/* ---- gradient: with d_c = a_c g_c + b_c (times 2 p_c if squared), where a and b are grad_intersection and
 * grad_prediction, the statistics' part is v p_c (d_c - sum_k p_k d_k) for a softmax, v p_c (1 - p_c) d_c for a sigmoid
 * and v d_c for p itself ---- */

static inline REAL FN(prediction_slope)(const struct segloss_soft_stats* s, REAL b, REAL p) {
    return s->squared ? 2 * b * p : b;
}

/* sum_{c != y} e_c (d_c - d_y): relative to the label's own, so that the gradient of a confident voxel keeps its
 * digits. Leaves e_y = 0 behind; write_label_grad does not look at it. */
static void FN(find_differences)(const struct segloss_soft_stats* s, VOXELS* v, const REAL* restrict at_label,
                                 REAL* restrict difference) {
    const REAL* b = s->grad_prediction;
    ALIGNED const REAL zeros[SEGLOSS_BLOCK] = {0};
    ALIGNED double sum[SEGLOSS_BLOCK];
    for (int64_t first = 0; first < s->voxels.num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, s->voxels.num_classes);
        REAL* exponentials = FN(exponentials)(v, first, n);
        ALIGNED REAL part[SEGLOSS_BLOCK] = {0};
        FN(put_labels)((ROWS){exponentials, SEGLOSS_BLOCK}, first, n, v->label, zeros);
        for (int c = 0; c < n; ++c) {
            const REAL* e = exponentials + c * SEGLOSS_BLOCK;
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                part[i] += e[i] * (FN(prediction_slope)(s, b[first + c], e[i] * v->share[i]) - at_label[i]);
            }
        }
        FN(add_chunk)(difference, sum, part, first, s->voxels.num_classes);
    }
}

/* Adds the statistics' part to the gradient of a block with labels. */
static void FN(add_to_label_grad)(const struct segloss_soft_stats* s, VOXELS* v, LABEL_GRAD* g) {
    const REAL* e = v->label_e;
    ALIGNED REAL at_label[SEGLOSS_BLOCK], difference[SEGLOSS_BLOCK], a_y[SEGLOSS_BLOCK], b_y[SEGLOSS_BLOCK];
    FN(look_up)(s->grad_intersection, s->voxels.num_classes, v->label, a_y);
    FN(look_up)(s->grad_prediction, s->voxels.num_classes, v->label, b_y);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        at_label[i] = a_y[i] + FN(prediction_slope)(s, b_y[i], e[i] * v->share[i]);
    }
    FN(find_differences)(s, v, at_label, difference);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL scale = v->weight[i] * v->share[i];
        const REAL mean_difference = difference[i] * v->share[i];
        g->slope[i] -= scale * (at_label[i] + mean_difference);
        g->curve[i] = s->squared ? 2 * scale * v->share[i] : scale;
        g->at_label[i] -= scale * e[i] * mean_difference;
    }
    g->b = s->grad_prediction;
    g->squared = s->squared;
}

/* d_c of one class. */
static void FN(find_slopes)(const struct segloss_soft_stats* s, VOXELS* v, const REAL* rows, int64_t first, int n,
                            int c, REAL* restrict slope) {
    const REAL a = ((const REAL*)s->grad_intersection)[first + c];
    const REAL b = ((const REAL*)s->grad_prediction)[first + c];
    ALIGNED REAL buffer[SEGLOSS_BLOCK];
    const REAL* g = FN(target_row)(v, &s->voxels, first, n, c, buffer);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        slope[i] = a * g[i] + FN(prediction_slope)(s, b, rows[c * SEGLOSS_BLOCK + i] * v->share[i]);
    }
}

/* sum_k p_k d_k. */
static void FN(find_mean_slope)(const struct segloss_soft_stats* s, VOXELS* v, REAL* mean) {
    ALIGNED double sum[SEGLOSS_BLOCK];
    ALIGNED REAL slope[SEGLOSS_BLOCK];
    for (int64_t first = 0; first < s->voxels.num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, s->voxels.num_classes);
        const REAL* rows = FN(activations)(s, v, first, n);
        ALIGNED REAL part[SEGLOSS_BLOCK] = {0};
        for (int c = 0; c < n; ++c) {
            FN(find_slopes)(s, v, rows, first, n, c, slope);
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                part[i] += rows[c * SEGLOSS_BLOCK + i] * v->share[i] * slope[i];
            }
        }
        FN(add_chunk)(mean, sum, part, first, s->voxels.num_classes);
    }
}

/* The losses' part of a chunk's gradient: zero without them. */
static void FN(write_loss_grad)(const struct segloss_soft_stats* s, VOXELS* v, const REAL* mass, const REAL* scale,
                                int64_t first, int n, ROWS grad) {
    if (s->with_loss && s->activation == SEGLOSS_SOFTMAX) {
        FN(probability_grad)(&s->voxels, v, mass, scale, first, n, grad);
        return;
    }
    for (int c = 0; c < n; ++c) {
        REAL* row = grad.values + c * grad.stride;
        if (s->with_loss) {
            ALIGNED REAL buffer[SEGLOSS_BLOCK];
            const REAL* target = FN(target_row)(v, &s->voxels, first, n, c, buffer);
            const REAL* x = FN(read_input)(v, first, n) + c * SEGLOSS_BLOCK;
            FN(binary_grad)(&s->voxels, first + c, x, target, scale, row);
        } else {
            memset(row, 0, SEGLOSS_BLOCK * sizeof *row);
        }
    }
}

/* Adds the statistics' part class by class; `mean` is that of find_mean_slope for a softmax. */
static void FN(add_stats_grad)(const struct segloss_soft_stats* s, VOXELS* v, const REAL* mean, int64_t first, int n,
                               ROWS grad) {
    const REAL* rows = FN(activations)(s, v, first, n);
    const REAL* input = FN(read_input)(v, first, n);
    ALIGNED REAL slope[SEGLOSS_BLOCK];
    for (int c = 0; c < n; ++c) {
        const REAL* x = input + c * SEGLOSS_BLOCK;
        REAL* restrict row = grad.values + c * grad.stride;
        FN(find_slopes)(s, v, rows, first, n, c, slope);
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            const REAL p = rows[c * SEGLOSS_BLOCK + i] * v->share[i];
            const REAL others = s->activation == SEGLOSS_SIGMOID ? FN(sigmoid)(-x[i], FN(exp_minus_abs)(x[i])) : 1;
            const REAL derivative = s->activation == SEGLOSS_IDENTITY ? 1 : p * others;
            row[i] += v->weight[i] * derivative * (slope[i] - mean[i]);
        }
    }
}

static void FN(block_stats_grad)(const struct segloss_soft_stats* s, VOXELS* v, REAL total_class_weight) {
    const struct segloss_cross_entropy* a = &s->voxels;
    const int is_softmax = s->activation == SEGLOSS_SOFTMAX;
    const int by_label = is_softmax && a->target_kind == SEGLOSS_LABELS;
    ALIGNED REAL buffer[CLASS_CHUNK * SEGLOSS_BLOCK];
    ALIGNED REAL scale[SEGLOSS_BLOCK];
    ALIGNED REAL mass[SEGLOSS_BLOCK], mean[SEGLOSS_BLOCK];
    LABEL_GRAD label_grad;
    FN(read_scale)(a, v, 0, scale);
    FN(prepare_activations)(s, v);
    if (by_label) {
        FN(start_label_grad)(a, v, total_class_weight, scale, &label_grad);
        FN(add_to_label_grad)(s, v, &label_grad);
    } else if (is_softmax) {
        FN(find_mass)(a, v, mass);
        FN(find_mean_slope)(s, v, mean);
    } else {
        memset(mean, 0, sizeof mean);
    }
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const ROWS grad = FN(output_rows)(&a->grad_logits, &v->block, first, buffer);
        if (by_label) {
            FN(write_label_grad)(a, v, &label_grad, first, n, grad);
        } else {
            FN(write_loss_grad)(s, v, mass, scale, first, n, grad);
            FN(add_stats_grad)(s, v, mean, first, n, grad);
        }
        FN(write_rows)(grad, buffer, &a->grad_logits, &v->block, first, n);
    }
}

static int64_t FN(soft_stats_backward)(const struct segloss_soft_stats* s, int64_t begin, int64_t end) {
    FN(assert_soft_stats)(s, begin, end);
    assert(s->grad_intersection && s->grad_prediction && (!s->with_loss || s->voxels.grad_loss.data));
    const REAL total_class_weight = FN(total_class_weight)(&s->voxels);
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, &s->voxels, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        if (v.any_active) {
            FN(block_stats_grad)(s, &v, total_class_weight);
        } else {
            FN(zero_grad)(&s->voxels, &v.block);
        }
    }
    return -1;
}
