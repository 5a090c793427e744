/* Cross entropy, including focal loss, and its gradient; the formulas are in kernels.h. */

static REAL FN(class_weight)(const struct segloss_cross_entropy* a, int64_t c) {
    return a->class_weight ? ((const REAL*)a->class_weight)[c] : 1;
}

/* factor * nll, but 0 for a zero factor even at nll = inf. */
static inline VEC FN(weighted)(VEC factor, VEC nll) {
    return FN(only)(~((factor == 0) & (nll == (REAL)INFINITY)), factor * nll);
}

/* W = sum_c w_c; 0 without label smoothing, which alone needs it. */
static REAL FN(total_class_weight)(const struct segloss_cross_entropy* a) {
    double total = 0;
    for (int64_t c = 0; a->label_smoothing != 0 && c < a->num_classes; ++c) {
        total += (double)FN(class_weight)(a, c);
    }
    return (REAL)total;
}

/* w_y of each lane; 0 where there is no label. */
static void FN(label_weights)(const struct segloss_cross_entropy* a, const int32_t* label, REAL* weight) {
    if (a->class_weight) {
        FN(look_up)(a->class_weight, a->num_classes, label, weight);
        return;
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        FN(store)(weight + i, FN(only)(FN(load_labels)(label + i) >= 0, FN(splat)(1)));
    }
}

/* What each voxel adds to the mean's denominator: v w_y, or v if the target is probabilities. */
static const REAL* FN(find_weights)(const struct segloss_cross_entropy* a, const VOXELS* v, REAL* buffer) {
    if (a->target_kind == SEGLOSS_PROBABILITIES || !a->class_weight) {
        return v->weight;
    }
    FN(label_weights)(a, v->label, buffer);
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        FN(store)(buffer + i, FN(load)(buffer + i) * FN(load)(v->weight + i));
    }
    return buffer;
}

/* Adds these weights to the sums. If each is 0 or 1, it is enough to count. */
static void FN(add_weights)(const struct segloss_cross_entropy* a, const VOXELS* v, const REAL* weight, double* sums) {
    if (a->class_weight || a->voxel_weight.data) {
        FN(add_to_sums)(sums, weight, SEGLOSS_BLOCK);
    } else {
        sums[0] += v->num_active;
    }
}

/* q_c = w_c ((1 - s) t_c + s / C). */
static inline VEC FN(probability_weight)(const struct segloss_cross_entropy* a, int64_t class, VEC target) {
    const REAL sharpness = (REAL)(1 - a->label_smoothing);
    const REAL uniform = (REAL)(a->label_smoothing / (double)a->num_classes);
    return FN(class_weight)(a, class) * (sharpness * target + uniform);
}

/* sum_c w_c (max - x_c). */
static void FN(find_spread)(const struct segloss_cross_entropy* a, VOXELS* v, REAL* spread) {
    ALIGNED double sum[SEGLOSS_BLOCK];
    ALIGNED REAL part[SEGLOSS_BLOCK];
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* x = FN(read_input)(v, first, n);
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const VEC max = FN(load)(v->max + i);
            VEC total = {0};
            for (int c = 0; c < n; ++c) {
                const REAL w = FN(class_weight)(a, first + c);
                const VEC difference = max - FN(load)(x + c * ROW_LANES + i);
                total += w == 0 ? FN(splat)(0) : w * difference;
            }
            FN(store)(part + i, total);
        }
        FN(add_chunk)(spread, sum, part, first, a->num_classes);
    }
}

/* The factor of -log p in the focal loss, (1 - p)^gamma; or, with `of_gradient`, the factor of the gradient of -log p,
 * (1 - p)^gamma (1 + gamma p (-log p) / (1 - p)). The quotient tends to 1 where numerator and denominator vanish, so
 * nothing becomes infinite for gamma < 1. 1 - p = others / (1 + tail), p = e / (1 + tail). */
static void FN(focal_factors)(REAL gamma, int of_gradient, const VOXELS* v, REAL* factor) {
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC e = FN(load)(v->label_e + i), tail = FN(load)(v->tail + i);
        const VEC log_sum = FN(log1p)(tail);
        const VEC nll = (FN(load)(v->max + i) - FN(load)(v->label_x + i)) + log_sum;
        const VEC others = (1 - e) + tail;
        const VEC power = FN(exp_nonpositive)(gamma * (FN(log)(others) - log_sum));
        const VEC quotient = FN(only)((e != 0) & (others != 0), e * nll / others);
        FN(store)(factor + i, of_gradient ? power * (1 + gamma * quotient) : power);
    }
}

/* The losses for labels; `weight` is v w_y. */
static void FN(label_losses)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight,
                             const REAL* weight, REAL* loss) {
    const REAL smoothing = (REAL)a->label_smoothing;
    const REAL uniform = (REAL)(a->label_smoothing / (double)a->num_classes);
    const int is_focal = a->gamma != 0, is_smooth = smoothing != 0;
    ALIGNED REAL focal[SEGLOSS_BLOCK], spread[SEGLOSS_BLOCK];
    if (is_focal) {
        FN(find_label_exponential)(v, a->num_classes);
        FN(focal_factors)((REAL)a->gamma, 0, v, focal);
    }
    if (is_smooth) {
        FN(find_spread)(a, v, spread);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC tail = FN(load)(v->tail + i);
        const VEC log_sum = FN(log1p)(tail);
        const VEC nll = (FN(load)(v->max + i) - FN(load)(v->label_x + i)) + log_sum;
        VEC sharpness = (1 - smoothing) * FN(load)(weight + i);
        if (is_focal) {
            sharpness *= FN(load)(focal + i);
        }
        VEC sum = FN(select)(sharpness == 0, 0 * tail, sharpness * nll);
        if (is_smooth) {
            const VEC all_classes = FN(load)(spread + i) + total_class_weight * log_sum;
            sum += FN(load)(v->weight + i) * (uniform * all_classes);
        }
        FN(store)(loss + i, sum);
    }
}

static void FN(probability_losses)(const struct segloss_cross_entropy* a, VOXELS* v, REAL* loss) {
    ALIGNED REAL spread[SEGLOSS_BLOCK] = {0}, mass[SEGLOSS_BLOCK] = {0}; /* 0 without classes */
    ALIGNED REAL part_of_spread[SEGLOSS_BLOCK], part_of_mass[SEGLOSS_BLOCK];
    ALIGNED double spread_sum[SEGLOSS_BLOCK], mass_sum[SEGLOSS_BLOCK];
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* x = FN(read_input)(v, first, n);
        const REAL* target = FN(read_target)(v, first, n);
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const VEC max = FN(load)(v->max + i);
            VEC sum_of_losses = {0}, sum_of_weights = {0};
            for (int c = 0; c < n; ++c) {
                const VEC q = FN(probability_weight)(a, first + c, FN(load)(target + c * ROW_LANES + i));
                const VEC nll = max - FN(load)(x + c * ROW_LANES + i);
                sum_of_losses += FN(weighted)(q, nll);
                sum_of_weights += q;
            }
            FN(store)(part_of_spread + i, sum_of_losses);
            FN(store)(part_of_mass + i, sum_of_weights);
        }
        FN(add_chunk)(spread, spread_sum, part_of_spread, first, a->num_classes);
        FN(add_chunk)(mass, mass_sum, part_of_mass, first, a->num_classes);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC log_sum = FN(log1p)(FN(load)(v->tail + i));
        FN(store)(loss + i, FN(load)(v->weight + i) * (FN(load)(spread + i) + FN(load)(mass + i) * log_sum));
    }
}

/* The losses for sets; `weight` is v w_y. */
static void FN(set_losses)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight,
                           const REAL* weight, REAL* loss) {
    const REAL smoothing = (REAL)a->label_smoothing, gamma = (REAL)a->gamma;
    const REAL uniform = (REAL)(a->label_smoothing / (double)a->num_classes);
    ALIGNED REAL spread[SEGLOSS_BLOCK];
    SET_SUMS sums;
    if (smoothing != 0) {
        FN(find_spread)(a, v, spread);
    }
    FN(find_set_sums)(v, a->num_classes, &sums);
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC nll = a->log_probabilities ? FN(set_log_nll)(&sums, i) : FN(set_nll)(v, &sums, i);
        VEC sharpness = (1 - smoothing) * FN(load)(weight + i);
        if (gamma != 0) {
            sharpness *= FN(set_focal_factor)(gamma, 0, FN(odds_against_set)(v, &sums, i), nll);
        }
        VEC sum = FN(select)(sharpness == 0, 0 * FN(load)(v->tail + i), sharpness * nll);
        if (smoothing != 0) {
            const VEC all_classes = FN(load)(spread + i) + total_class_weight * FN(log1p)(FN(load)(v->tail + i));
            sum += FN(load)(v->weight + i) * (uniform * all_classes);
        }
        FN(store)(loss + i, FN(only)(FN(load)(v->weight + i) != 0, sum));
    }
}

/* For log probabilities the loss is -x_y: reads one value per voxel instead of all its classes. */
static void FN(label_log_losses)(const struct segloss_cross_entropy* a, const VOXELS* v, const REAL* weight,
                                 REAL* loss) {
    ALIGNED REAL picked[SEGLOSS_BLOCK] = {0};
    for (struct run r = first_run(&v->block); r.count > 0; r = next_run(&v->block, &r)) {
        for (int i = 0; i < r.count; ++i) {
            const int lane = r.lane + i;
            if (v->label[lane] >= 0) {
                const struct run one = {r.position + i, lane, 1};
                const struct plane to = lanes_plane(picked, sizeof(REAL), &one);
                const struct plane from = tensor_plane(&a->logits, &v->block, &one, v->label[lane]);
                FN(readers)[a->logits.dtype](&to, &from, 1, 1);
            }
        }
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        FN(store)(loss + i, FN(weighted)(FN(load)(weight + i), -FN(load)(picked + i)));
    }
}

static void FN(find_block_softmax)(const struct segloss_cross_entropy* a, VOXELS* v, int keep) {
    if (FN(goes_by_voxel)(a, &v->block)) {
        FN(find_softmax_by_voxel)(v, a, keep);
    } else {
        FN(find_softmax)(v, a, keep);
    }
}

/* The losses of a block, after its softmax is found, or of log probabilities. */
static void FN(block_losses)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight,
                             const REAL* weight, REAL* loss) {
    if (a->target_kind == SEGLOSS_PROBABILITIES) {
        FN(probability_losses)(a, v, loss);
    } else if (a->target_kind == SEGLOSS_SETS) {
        FN(set_losses)(a, v, total_class_weight, weight, loss);
    } else if (a->log_probabilities) {
        FN(label_log_losses)(a, v, weight, loss);
    } else {
        FN(label_losses)(a, v, total_class_weight, weight, loss);
    }
}

/* The factor of each lane's gradient, grad_loss * grad_scale * v. Only binary losses have one per class. */
static void FN(read_scale)(const struct segloss_cross_entropy* a, const VOXELS* v, int64_t class, REAL* scale) {
    const REAL factor = (REAL)a->grad_scale;
    if (!a->grad_loss.data) { /* statistics without losses */
        memset(scale, 0, SEGLOSS_BLOCK * sizeof *scale);
        return;
    }
    if (is_one_value(&a->grad_loss, &a->positions)) {
        const REAL value = FN(read_value)(&a->grad_loss, class) * factor;
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const VEC weight = FN(load)(v->weight + i);
            FN(store)(scale + i, FN(only)(weight != 0, value * weight));
        }
        return;
    }
    FN(read_classes)(scale, &a->grad_loss, &v->block, class, 1);
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC weight = FN(load)(v->weight + i);
        FN(store)(scale + i, FN(only)(weight != 0, FN(load)(scale + i) * factor * weight));
    }
}

#define LABEL_GRAD struct FN(label_grad)

/* The gradient of a block with labels. At the label it is at_label; in another class c it is
 * e_c (slope + curve b_c) - level w_c, or with `squared` e_c (slope + curve b_c e_c) - level w_c.
 * b_c is the grad_prediction of soft statistics. */
LABEL_GRAD {
    ALIGNED REAL slope[SEGLOSS_BLOCK];
    ALIGNED REAL curve[SEGLOSS_BLOCK]; /* used with b only */
    ALIGNED REAL level[SEGLOSS_BLOCK];
    ALIGNED REAL at_label[SEGLOSS_BLOCK];
    const REAL* b;      /* NULL: none */
    const REAL* b_rows; /* the b_c of a chunk, in rows, if they differ between the lanes, else NULL */
    int squared;
};

/* Starts with the gradient of the losses: f (p_c - [c = y]) + u (W p_c - w_c), with f = scale (1 - s) w_y times the
 * focal factor and u = scale s / C. Finds the share, too. */
static inline __attribute__((always_inline)) void FN(start_label_rows)(const struct segloss_cross_entropy* a, VOXELS* v,
                                                                       REAL total_class_weight, const REAL* scale,
                                                                       const REAL* label_weight, const REAL* focal,
                                                                       int is_smooth, LABEL_GRAD* g) {
    const REAL smoothing = (REAL)a->label_smoothing;
    const REAL uniform = (REAL)(a->label_smoothing / (double)a->num_classes);
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC e = FN(load)(v->label_e + i), tail = FN(load)(v->tail + i);
        const VEC share = 1 / (1 + tail), scale_i = FN(load)(scale + i);
        VEC sharp = scale_i * share, flat = {0}, at_label = {0};
        if (label_weight) {
            sharp *= FN(load)(label_weight + i);
        }
        if (focal) {
            sharp *= FN(load)(focal + i);
        }
        if (is_smooth) {
            const VEC level = scale_i * uniform;
            sharp *= 1 - smoothing;
            flat = level * total_class_weight * share;
            at_label = flat * e - level * FN(load)(label_weight + i);
            FN(store)(g->level + i, level);
        }
        FN(store)(v->share + i, share);
        FN(store)(g->slope + i, sharp + flat);
        FN(store)(g->at_label + i, sharp * ((e - 1) - tail) + at_label);
    }
}

static void FN(start_label_grad)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight,
                                 const REAL* scale, LABEL_GRAD* g) {
    ALIGNED REAL label_weight[SEGLOSS_BLOCK], focal[SEGLOSS_BLOCK];
    const int is_focal = a->gamma != 0, is_smooth = a->label_smoothing != 0;
    g->b = g->b_rows = NULL;
    g->squared = 0;
    FN(find_label_exponential)(v, a->num_classes);
    if (!is_focal && !is_smooth && !a->class_weight) {
        FN(start_label_rows)(a, v, total_class_weight, scale, NULL, NULL, 0, g);
        return;
    }
    if (is_focal) {
        FN(focal_factors)((REAL)a->gamma, 1, v, focal);
    }
    FN(label_weights)(a, v->label, label_weight);
    FN(start_label_rows)(a, v, total_class_weight, scale, label_weight, is_focal ? focal : NULL, is_smooth, g);
}

static inline __attribute__((always_inline)) void
FN(write_label_rows)(const struct segloss_cross_entropy* a, const VOXELS* v, const REAL* exponentials,
                     const LABEL_GRAD* g, int64_t first, int n, int is_smooth, int has_b, int squared, ROWS grad) {
    for (int c = 0; c < n; ++c) {
        const REAL w = is_smooth ? FN(class_weight)(a, first + c) : 0;
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const VEC e = FN(load)(exponentials + c * ROW_LANES + i);
            VEC slope = FN(load)(g->slope + i);
            if (has_b) {
                const VEC b = g->b_rows ? FN(load)(g->b_rows + c * ROW_LANES + i) : FN(splat)(g->b[first + c]);
                slope += FN(load)(g->curve + i) * (squared ? b * e : b);
            }
            VEC value = e * slope;
            if (is_smooth) {
                value -= FN(load)(g->level + i) * w;
            }
            const MASK is_label = FN(load_labels)(v->label + i) == (BITS)(first + c);
            FN(put)(grad, c * grad.stride + i, FN(select)(is_label, FN(load)(g->at_label + i), value));
        }
    }
}

static void FN(write_label_grad)(const struct segloss_cross_entropy* a, const VOXELS* v, const REAL* exponentials,
                                 const LABEL_GRAD* g, int64_t first, int n, ROWS grad) {
    const int is_smooth = a->label_smoothing != 0;
    if (is_smooth || g->squared) {
        FN(write_label_rows)(a, v, exponentials, g, first, n, is_smooth, g->b != NULL, g->squared, grad);
    } else if (g->b) {
        FN(write_label_rows)(a, v, exponentials, g, first, n, 0, 1, 0, grad);
    } else {
        FN(write_label_rows)(a, v, exponentials, g, first, n, 0, 0, 0, grad);
    }
}

/* As write_label_rows, of one voxel; its e_c come from its logits x unless they are `kept`. */
static inline __attribute__((always_inline)) void FN(write_label_voxel)(const VOXELS* v, const LABEL_GRAD* g, int i,
                                                                        const REAL* x, const REAL* kept,
                                                                        const REAL* class_weight, int64_t first_class,
                                                                        int n, REAL* restrict grad) {
    const int64_t label = v->label[i] - first_class;
    const REAL max = v->max[i], slope = g->slope[i];
    for (int c = 0; c < n; c += WIDTH) {
        const VEC e = kept ? FN(load)(kept + c) : FN(exp_nonpositive)(FN(load)(x + c) - max);
        VEC value = e * slope;
        if (class_weight) {
            value -= g->level[i] * FN(load)(class_weight + c);
        }
        FN(store)(grad + c, value);
    }
    if (v->label[i] >= 0 && label >= 0 && label < n) {
        grad[label] = g->at_label[i];
    }
}

/* The gradient of the classes from `first_class` on, voxel by voxel. Lanes past a voxel's last class are written over
 * by the next voxel. */
static void FN(write_label_voxels)(const struct segloss_cross_entropy* a, VOXELS* v, const LABEL_GRAD* g,
                                   int64_t first_class, int n) {
    const struct plane from = FN(plane_of_classes)(v, &a->logits, first_class);
    struct plane to = FN(plane_of_classes)(v, &a->grad_logits, first_class);
    const int is_kept = v->activations.first_class == 0, is_smooth = a->label_smoothing != 0;
    ALIGNED REAL buffer[FN(grad_classes)], class_weight[FN(grad_classes)] = {0};
    for (int c = 0; is_smooth && c < n; ++c) {
        class_weight[c] = FN(class_weight)(a, first_class + c);
    }
    for (int first = 0; first < v->block.count; first += FN(grad_tile)) {
        const int count = smaller(v->block.count - first, FN(grad_tile));
        for (int i = first; i < first + count; ++i) {
            const REAL* kept = is_kept ? v->activations.values + i * CLASS_CHUNK : NULL;
            const REAL* x = is_kept ? NULL : FN(read_voxel)(v, &from, i, n, buffer);
            REAL* grad = v->input.values + (i - first) * n;
            if (is_smooth) {
                FN(write_label_voxel)(v, g, i, x, kept, class_weight, first_class, n, grad);
            } else {
                FN(write_label_voxel)(v, g, i, x, kept, NULL, first_class, n, grad);
            }
        }
        FN(finish_voxels)(v, &a->grad_logits, &to, n, count, a->stream_grad);
        to.data = (char*)to.data + count * to.stride_voxel * segloss_dtype_size(a->grad_logits.dtype);
    }
}

static void FN(write_label_grad_by_voxel)(const struct segloss_cross_entropy* a, VOXELS* v, const LABEL_GRAD* g) {
    v->input.first_class = -1;
    for (int64_t first = 0; first < a->num_classes; first += FN(grad_classes)) {
        FN(write_label_voxels)(a, v, g, first, smaller(a->num_classes - first, FN(grad_classes)));
    }
}

/* grad_c = scale (Q p_c - q_c) with Q = sum_c q_c = `mass`, computed as p_c (Q - q_c) - q_c (1 - p_c). */
static inline VEC FN(probability_grad)(const struct segloss_cross_entropy* a, const VOXELS* v, int64_t class, int i,
                                       VEC target, VEC e, const REAL* mass, const REAL* scale) {
    const VEC q = FN(probability_weight)(a, class, target);
    const VEC others = (1 - e) + FN(load)(v->tail + i);
    return FN(load)(scale + i) * FN(load)(v->share + i) * (e * (FN(load)(mass + i) - q) - q * others);
}

static void FN(write_probability_grad)(const struct segloss_cross_entropy* a, VOXELS* v, const REAL* exponentials,
                                       const REAL* mass, const REAL* scale, int64_t first, int n, ROWS grad) {
    const REAL* target = FN(read_target)(v, first, n);
    for (int c = 0; c < n; ++c) {
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const int k = c * ROW_LANES + i;
            const VEC t = FN(load)(target + k), e = FN(load)(exponentials + k);
            FN(put)(grad, c * grad.stride + i, FN(probability_grad)(a, v, first + c, i, t, e, mass, scale));
        }
    }
}

static void FN(find_mass)(const struct segloss_cross_entropy* a, VOXELS* v, REAL* mass) {
    ALIGNED double sum[SEGLOSS_BLOCK];
    ALIGNED REAL part[SEGLOSS_BLOCK];
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* target = FN(read_target)(v, first, n);
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            VEC total = {0};
            for (int c = 0; c < n; ++c) {
                total += FN(probability_weight)(a, first + c, FN(load)(target + c * ROW_LANES + i));
            }
            FN(store)(part + i, total);
        }
        FN(add_chunk)(mass, sum, part, first, a->num_classes);
    }
}

/* The gradient of the losses for sets; `scale` is grad_loss * grad_scale * v. */
struct FN(set_grad) {
    SET_SUMS sums;
    ALIGNED REAL sharp[SEGLOSS_BLOCK];
    ALIGNED REAL level[SEGLOSS_BLOCK];
    REAL total_class_weight;
};

static void FN(start_set_grad)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight,
                               const REAL* scale, struct FN(set_grad) * g) {
    const REAL smoothing = (REAL)a->label_smoothing, gamma = (REAL)a->gamma;
    ALIGNED REAL label_weight[SEGLOSS_BLOCK];
    g->total_class_weight = total_class_weight;
    FN(label_weights)(a, v->label, label_weight);
    FN(find_set_sums)(v, a->num_classes, &g->sums);
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        VEC sharp = FN(load)(scale + i) * ((1 - smoothing) * FN(load)(label_weight + i));
        if (gamma != 0) {
            const VEC nll = FN(set_nll)(v, &g->sums, i);
            sharp *= FN(set_focal_factor)(gamma, 1, FN(odds_against_set)(v, &g->sums, i), nll);
        }
        FN(store)(g->sharp + i, sharp);
        FN(store)(g->level + i, FN(load)(scale + i) * (REAL)(a->label_smoothing / (double)a->num_classes));
    }
}

/* The gradient of one class in some lanes, from its logit and its e_c. */
static inline VEC FN(set_grad_of_class)(const struct segloss_cross_entropy* a, const VOXELS* v,
                                        const struct FN(set_grad) * g, int64_t class, int i, VEC x, VEC e, VEC is_in) {
    const VEC sharp = FN(load)(g->sharp + i);
    VEC value = FN(only)(sharp != 0, sharp * FN(set_grad)(v, &g->sums, i, x, e, is_in));
    if (a->label_smoothing != 0) {
        const VEC p = e * FN(load)(v->share + i);
        value += FN(load)(g->level + i) * (g->total_class_weight * p - FN(class_weight)(a, class));
    }
    return FN(only)(FN(load)(v->weight + i) != 0, value);
}

static void FN(write_set_grad)(const struct segloss_cross_entropy* a, VOXELS* v, const struct FN(set_grad) * g,
                               int64_t first, int n) {
    const REAL* exponentials = a->log_probabilities ? NULL : FN(exponentials)(v, first, n);
    const REAL* is_in = FN(read_sets)(v, first, n, 0);
    const REAL* x = FN(read_input)(v, first, n); /* each is read before the results take its place */
    const ROWS grad = FN(output_of_chunk)(v, &a->grad_logits, first, a->stream_grad);
    for (int c = 0; c < n; ++c) {
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const int k = c * ROW_LANES + i;
            const VEC x_c = FN(load)(x + k), is_member = FN(load)(is_in + k);
            VEC value;
            if (a->log_probabilities) {
                const VEC share = FN(exp_nonpositive)(x_c - FN(load)(g->sums.max + i)) / FN(load)(g->sums.inside + i);
                value = FN(only)((is_member != 0) & (FN(load)(g->sharp + i) != 0), -FN(load)(g->sharp + i) * share);
            } else {
                value = FN(set_grad_of_class)(a, v, g, first + c, i, x_c, FN(load)(exponentials + k), is_member);
            }
            FN(put)(grad, c * grad.stride + i, value);
        }
    }
    FN(finish_output)(v, grad, &a->grad_logits, first, n, a->stream_grad);
}

/* The gradient with respect to log probabilities: -scale w_y at the label, or -scale q_c for probabilities. */
static void FN(write_log_grad)(const struct segloss_cross_entropy* a, VOXELS* v, const REAL* scale, int64_t first,
                               int n, ROWS grad) {
    ALIGNED REAL label_weight[SEGLOSS_BLOCK];
    FN(label_weights)(a, v->label, label_weight);
    const REAL* target = a->target_kind == SEGLOSS_PROBABILITIES ? FN(read_target)(v, first, n) : NULL;
    for (int c = 0; c < n; ++c) {
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const MASK is_label = FN(load_labels)(v->label + i) == (BITS)(first + c);
            const VEC q = target ? FN(probability_weight)(a, first + c, FN(load)(target + c * ROW_LANES + i))
                                 : FN(load)(label_weight + i);
            const VEC value = -FN(load)(scale + i) * q;
            FN(put)(grad, c * grad.stride + i, target ? value : FN(only)(is_label, value));
        }
    }
}

static void FN(sets_block_grad)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight,
                                const REAL* scale) {
    struct FN(set_grad) grad;
    if (a->log_probabilities) {
        memset(v->max, 0, sizeof v->max);
        memset(v->tail, 0, sizeof v->tail);
    }
    FN(find_share)(v);
    FN(start_set_grad)(a, v, total_class_weight, scale, &grad);
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        FN(write_set_grad)(a, v, &grad, first, FN(chunk_length)(first, a->num_classes));
    }
}

/* The gradient of a block, after its softmax is found, or of log probabilities. */
static void FN(active_block_grad)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight) {
    ALIGNED REAL scale[SEGLOSS_BLOCK];
    ALIGNED REAL mass[SEGLOSS_BLOCK];
    LABEL_GRAD label_grad;
    const int has_probabilities = a->target_kind == SEGLOSS_PROBABILITIES;
    FN(read_scale)(a, v, 0, scale);
    if (a->target_kind == SEGLOSS_SETS) {
        FN(sets_block_grad)(a, v, total_class_weight, scale);
        return;
    }
    if (has_probabilities && !a->log_probabilities) {
        FN(find_share)(v);
        FN(find_mass)(a, v, mass);
    } else if (!a->log_probabilities) {
        FN(start_label_grad)(a, v, total_class_weight, scale, &label_grad);
    }
    if (FN(goes_by_voxel)(a, &v->block)) {
        FN(write_label_grad_by_voxel)(a, v, &label_grad);
        return;
    }
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* e = a->log_probabilities ? NULL : FN(exponentials)(v, first, n);
        const ROWS grad = FN(output_of_chunk)(v, &a->grad_logits, first, a->stream_grad);
        if (a->log_probabilities) {
            FN(write_log_grad)(a, v, scale, first, n, grad);
        } else if (has_probabilities) {
            FN(write_probability_grad)(a, v, e, mass, scale, first, n, grad);
        } else {
            FN(write_label_grad)(a, v, e, &label_grad, first, n, grad);
        }
        FN(finish_output)(v, grad, &a->grad_logits, first, n, a->stream_grad);
    }
}

static void FN(block_grad)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight) {
    if (v->num_active > 0) {
        FN(active_block_grad)(a, v, total_class_weight);
    } else {
        FN(zero_grad)(a, &v->block);
    }
}

static void FN(assert_cross_entropy)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    assert((a->num_classes == 0 || a->target.data) && a->target_kind != SEGLOSS_MASKS);
    assert(!a->log_probabilities || a->label_smoothing == 0);
    assert(!a->grad_logits.data || a->grad_loss.data);
    (void)a;
    (void)begin;
    (void)end;
}

/* Sums what find_weights gives, or only v if not `by_class`, without reading the logits. Returns -1 or the position
 * that it refuses. */
static int64_t FN(sum_weights)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end, int by_class,
                               double* total) {
    double sums[SUM_LANES] = {0};
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        ALIGNED REAL buffer[SEGLOSS_BLOCK];
        FN(add_weights)(a, &v, by_class ? FN(find_weights)(a, &v, buffer) : v.weight, sums);
    }
    *total = FN(total_of_lanes)(sums);
    return -1;
}

/* The mean's denominator. */
static int64_t FN(cross_entropy_weight)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end,
                                        struct segloss_sums* sums) {
    FN(assert_cross_entropy)(a, begin, end);
    *sums = (struct segloss_sums){0, 0};
    return FN(sum_weights)(a, begin, end, 1, &sums->weight);
}

static int64_t FN(cross_entropy_forward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end,
                                         struct segloss_sums* sums) {
    FN(assert_cross_entropy)(a, begin, end);
    const REAL total_class_weight = FN(total_class_weight)(a);
    double loss_sums[SUM_LANES] = {0}, weight_sums[SUM_LANES] = {0};
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_block)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        ALIGNED REAL loss[SEGLOSS_BLOCK];
        if (v.num_active > 0) {
            ALIGNED REAL buffer[SEGLOSS_BLOCK];
            const REAL* weight = FN(find_weights)(a, &v, buffer);
            if (a->log_probabilities) { /* -x = (max - x) + log1p(tail) */
                memset(v.max, 0, sizeof v.max);
                memset(v.tail, 0, sizeof v.tail);
            } else {
                FN(find_block_softmax)(a, &v, a->grad_logits.data != NULL);
            }
            FN(block_losses)(a, &v, total_class_weight, weight, loss);
            FN(add_to_sums)(loss_sums, loss, SEGLOSS_BLOCK);
            FN(add_weights)(a, &v, weight, weight_sums);
        } else {
            memset(loss, 0, sizeof loss);
        }
        if (a->loss.data) {
            FN(write_classes)(loss, &a->loss, &v.block, 0, 1);
        }
        if (a->grad_logits.data) {
            FN(block_grad)(a, &v, total_class_weight);
        }
    }
    FN(end_streams)();
    *sums = (struct segloss_sums){FN(total_of_lanes)(loss_sums), FN(total_of_lanes)(weight_sums)};
    return -1;
}

static int64_t FN(cross_entropy_backward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    FN(assert_cross_entropy)(a, begin, end);
    assert(a->num_classes == 0 || a->grad_logits.data);
    const REAL total_class_weight = FN(total_class_weight)(a);
    VOXELS v;
    PACKED packed;
    FN(start_packing)(&packed, a, total_class_weight);
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        if (packed.is_used && FN(pack)(&packed, a, &v)) {
            continue;
        }
        if (v.num_active > 0 && !a->log_probabilities) {
            FN(find_block_softmax)(a, &v, 1);
        }
        FN(block_grad)(a, &v, total_class_weight);
    }
    FN(finish_packed)(&packed, a, &v);
    FN(end_streams)();
    return -1;
}
