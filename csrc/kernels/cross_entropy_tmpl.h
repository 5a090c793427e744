/* Cross entropy, focal too, and its gradient; the formulas are in kernels.h. */

static REAL FN(class_weight)(const struct segloss_cross_entropy* a, int64_t c) {
    return a->class_weight ? ((const REAL*)a->class_weight)[c] : 1;
}

/* W = sum_c w_c; only label smoothing asks for it. */
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
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        weight[i] = label[i] < 0 ? 0 : 1;
    }
}

/* q_c = w_c ((1 - s) t_c + s / C) of one class. */
static void FN(probability_weights)(const struct segloss_cross_entropy* a, int64_t class, const REAL* target, REAL* q) {
    const REAL sharpness = (REAL)(1 - a->label_smoothing);
    const REAL uniform = (REAL)(a->label_smoothing / (double)a->num_classes);
    const REAL w = FN(class_weight)(a, class);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        q[i] = w * (sharpness * target[i] + uniform);
    }
}

/* sum_c w_c (max - x_c). */
static void FN(spread_of_chunk)(const REAL* restrict logits, int num_classes, const REAL* restrict weight,
                                const REAL* restrict max, REAL* restrict spread) {
    for (int c = 0; c < num_classes; ++c) {
        const REAL* x = logits + c * SEGLOSS_BLOCK;
        const REAL w = weight ? weight[c] : 1;
        if (w != 0) {
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                spread[i] += w * (max[i] - x[i]);
            }
        }
    }
}

/* What focal loss multiplies -log p by, (1 - p)^gamma; or, for the gradient, what it multiplies the gradient of -log p
 * by, (1 - p)^gamma (1 + gamma p -log p / (1 - p)). The quotient goes to 1 where both vanish, so that nothing is
 * infinite for gamma < 1. 1 - p = others / (1 + tail), p = e / (1 + tail). */
static void FN(focal_factors)(REAL gamma, int of_gradient, const VOXELS* v, REAL* factor) {
    const REAL* e = v->label_e;
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL log_sum = FN(log1p)(v->tail[i]);
        const REAL nll = (v->max[i] - v->label_x[i]) + log_sum;
        const REAL others = (1 - e[i]) + v->tail[i];
        const REAL power = FN(exp_nonpositive)(gamma * (FN(log)(others) - log_sum));
        const REAL quotient = e[i] == 0 || others == 0 ? 0 : e[i] * nll / others;
        factor[i] = of_gradient ? power * (1 + gamma * quotient) : power;
    }
}

/* Losses of labels, and each voxel's share of the denominator, v * w_y. */
static void FN(label_losses)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight, REAL* loss,
                             REAL* weight) {
    const REAL smoothing = (REAL)a->label_smoothing;
    const REAL uniform = (REAL)(a->label_smoothing / (double)a->num_classes);
    ALIGNED REAL factor[SEGLOSS_BLOCK], spread[SEGLOSS_BLOCK] = {0};
    ALIGNED double spread_sum[SEGLOSS_BLOCK];
    FN(label_weights)(a, v->label, weight);
    memcpy(factor, weight, sizeof factor);
    FN(find_label_input)(v, a);
    if (a->gamma != 0) {
        ALIGNED REAL focal[SEGLOSS_BLOCK];
        FN(find_label_exponential)(v);
        FN(focal_factors)((REAL)a->gamma, 0, v, focal);
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            factor[i] *= focal[i];
        }
    }
    for (int64_t c = 0; smoothing != 0 && c < a->num_classes; c += CLASS_CHUNK) {
        const int n = FN(chunk_length)(c, a->num_classes);
        const REAL* w = a->class_weight ? (const REAL*)a->class_weight + c : NULL;
        ALIGNED REAL part[SEGLOSS_BLOCK] = {0};
        FN(spread_of_chunk)(FN(read_input)(v, c, n), n, w, v->max, part);
        FN(add_chunk)(spread, spread_sum, part, c, a->num_classes);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL log_sum = FN(log1p)(v->tail[i]);
        const REAL nll = (v->max[i] - v->label_x[i]) + log_sum;
        const REAL sharpness = (1 - smoothing) * factor[i];
        const REAL sharp = sharpness == 0 ? 0 * v->tail[i] : sharpness * nll;
        const REAL smooth = uniform * (spread[i] + total_class_weight * log_sum);
        loss[i] = v->weight[i] * (sharp + smooth);
        weight[i] *= v->weight[i];
    }
}

/* Losses of probabilities; each voxel's share of the denominator is v. */
static void FN(probability_losses)(const struct segloss_cross_entropy* a, VOXELS* v, REAL* loss, REAL* weight) {
    ALIGNED REAL spread[SEGLOSS_BLOCK] = {0}, mass[SEGLOSS_BLOCK] = {0}, q[SEGLOSS_BLOCK];
    ALIGNED double spread_sum[SEGLOSS_BLOCK], mass_sum[SEGLOSS_BLOCK];
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* logits = FN(read_input)(v, first, n);
        const REAL* target = FN(read_target)(v, first, n);
        ALIGNED REAL chunk_spread[SEGLOSS_BLOCK] = {0};
        ALIGNED REAL chunk_mass[SEGLOSS_BLOCK] = {0};
        for (int c = 0; c < n; ++c) {
            const REAL* x = logits + c * SEGLOSS_BLOCK;
            FN(probability_weights)(a, first + c, target + c * SEGLOSS_BLOCK, q);
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                const REAL nll = v->max[i] - x[i];
                chunk_spread[i] += q[i] * (q[i] == 0 && nll == (REAL)INFINITY ? 0 : nll);
                chunk_mass[i] += q[i];
            }
        }
        FN(add_chunk)(spread, spread_sum, chunk_spread, first, a->num_classes);
        FN(add_chunk)(mass, mass_sum, chunk_mass, first, a->num_classes);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        loss[i] = v->weight[i] * (spread[i] + mass[i] * FN(log1p)(v->tail[i]));
        weight[i] = v->weight[i];
    }
}

/* -x_y of log probabilities: one value of each voxel is read, not all its classes. */
static void FN(label_log_losses)(const struct segloss_cross_entropy* a, const VOXELS* v, REAL* loss, REAL* weight) {
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
    FN(label_weights)(a, v->label, weight);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        weight[i] *= v->weight[i];
        const REAL nll = -picked[i];
        loss[i] = weight[i] * (weight[i] == 0 && nll == (REAL)INFINITY ? 0 : nll);
    }
}

/* The losses of a block whose softmax is found, or of log probabilities. */
static void FN(block_losses)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight, REAL* loss,
                             REAL* weight) {
    if (a->target_kind == SEGLOSS_PROBABILITIES) {
        FN(probability_losses)(a, v, loss, weight);
    } else if (a->log_probabilities) {
        FN(label_log_losses)(a, v, loss, weight);
    } else {
        FN(label_losses)(a, v, total_class_weight, loss, weight);
    }
}

static int64_t FN(cross_entropy_forward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end,
                                         struct segloss_sums* sums) {
    assert_range(&a->positions, begin, end);
    assert(a->target.data && (a->tail || a->log_probabilities));
    assert(!a->log_probabilities || a->label_smoothing == 0);
    const REAL total_class_weight = FN(total_class_weight)(a);
    double loss_sums[SEGLOSS_SUM_LANES] = {0}, weight_sums[SEGLOSS_SUM_LANES] = {0};
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        ALIGNED REAL loss[SEGLOSS_BLOCK] = {0};
        ALIGNED REAL weight[SEGLOSS_BLOCK] = {0};
        if (v.any_active) {
            if (a->log_probabilities) { /* -x = (max - x) + log1p(tail) */
                memset(v.max, 0, sizeof v.max);
                memset(v.tail, 0, sizeof v.tail);
            } else {
                FN(find_softmax)(&v, a);
                memcpy((REAL*)a->tail + p, v.tail, (size_t)v.block.count * sizeof(REAL));
            }
            FN(block_losses)(a, &v, total_class_weight, loss, weight);
            FN(add_lanes)(loss_sums, loss);
            FN(add_lanes)(weight_sums, weight);
        } else if (!a->log_probabilities) {
            memset((REAL*)a->tail + p, 0, (size_t)v.block.count * sizeof(REAL));
        }
        if (a->loss.data) {
            FN(write_classes)(loss, &a->loss, &v.block, 0, 1);
        }
    }
    *sums = (struct segloss_sums){FN(total_of_lanes)(loss_sums), FN(total_of_lanes)(weight_sums)};
    return -1;
}

/* What multiplies every lane of the gradient: grad_loss * grad_scale * v. Only binary losses have one of each class. */
static void FN(read_scale)(const struct segloss_cross_entropy* a, const VOXELS* v, int64_t class,
                           REAL* restrict scale) {
    const REAL factor = (REAL)a->grad_scale;
    FN(read_lanes)(scale, &a->grad_loss, &v->block, class, 0);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL product = scale[i] * factor * v->weight[i];
        scale[i] = v->weight[i] == 0 ? 0 : product;
    }
}

#define LABEL_GRAD struct FN(label_grad)

/* The gradient of a block with labels: e_c (slope + curve b_c) - level w_c in class c, or e_c (slope + curve b_c e_c) -
 * level w_c where `squared`; at_label at the label. The b_c are those of soft statistics. */
LABEL_GRAD {
    ALIGNED REAL slope[SEGLOSS_BLOCK];
    ALIGNED REAL curve[SEGLOSS_BLOCK];
    ALIGNED REAL level[SEGLOSS_BLOCK];
    ALIGNED REAL at_label[SEGLOSS_BLOCK];
    const REAL* b; /* NULL: none */
    int squared;
};

/* That of the losses: f (p_c - [c = y]) + u (W p_c - w_c), with f = scale (1 - s) w_y times the focal factor and
 * u = scale s / C. */
static void FN(start_label_grad)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight,
                                 const REAL* scale, LABEL_GRAD* g) {
    const REAL smoothing = (REAL)a->label_smoothing;
    const REAL uniform = (REAL)(a->label_smoothing / (double)a->num_classes);
    ALIGNED REAL label_weight[SEGLOSS_BLOCK], focal[SEGLOSS_BLOCK];
    FN(label_weights)(a, v->label, label_weight);
    FN(find_label_input)(v, a);
    FN(find_label_exponential)(v);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        focal[i] = 1;
    }
    if (a->gamma != 0) {
        FN(focal_factors)((REAL)a->gamma, 1, v, focal);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL e = v->label_e[i];
        const REAL sharp = scale[i] * (1 - smoothing) * label_weight[i] * focal[i] * v->share[i];
        g->level[i] = scale[i] * uniform;
        const REAL flat = g->level[i] * total_class_weight * v->share[i];
        g->slope[i] = sharp + flat;
        g->curve[i] = 0;
        g->at_label[i] = sharp * ((e - 1) - v->tail[i]) + (flat * e - g->level[i] * label_weight[i]);
    }
    g->b = NULL;
    g->squared = 0;
}

static void FN(write_label_grad)(const struct segloss_cross_entropy* a, VOXELS* v, const LABEL_GRAD* g, int64_t first,
                                 int n, ROWS grad) {
    ALIGNED REAL buffer[SEGLOSS_BLOCK];
    for (int c = 0; c < n; ++c) {
        const REAL* e = FN(exponentials_at)(v, first, n, c, buffer);
        const REAL w = a->label_smoothing == 0 ? 0 : FN(class_weight)(a, first + c);
        const REAL b = g->b ? g->b[first + c] : 0;
        REAL* restrict row = grad.values + c * grad.stride;
        if (g->squared) {
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                row[i] = e[i] * (g->slope[i] + g->curve[i] * (b * e[i])) - g->level[i] * w;
            }
        } else {
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                row[i] = e[i] * (g->slope[i] + g->curve[i] * b) - g->level[i] * w;
            }
        }
    }
    FN(put_labels)(grad, first, n, v->label, g->at_label);
}

/* grad_c = scale (Q p_c - q_c), Q = sum_c q_c = `mass`, written as p_c (Q - q_c) - q_c (1 - p_c). */
static void FN(probability_grad)(const struct segloss_cross_entropy* a, VOXELS* v, const REAL* mass, const REAL* scale,
                                 int64_t first, int n, ROWS grad) {
    const REAL* target = FN(read_target)(v, first, n);
    ALIGNED REAL q[SEGLOSS_BLOCK], buffer[SEGLOSS_BLOCK];
    for (int c = 0; c < n; ++c) {
        const REAL* e = FN(exponentials_at)(v, first, n, c, buffer);
        REAL* restrict g = grad.values + c * grad.stride;
        FN(probability_weights)(a, first + c, target + c * SEGLOSS_BLOCK, q);
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            const REAL others = (1 - e[i]) + v->tail[i];
            g[i] = scale[i] * v->share[i] * (e[i] * (mass[i] - q[i]) - q[i] * others);
        }
    }
}

static void FN(find_mass)(const struct segloss_cross_entropy* a, VOXELS* v, REAL* mass) {
    ALIGNED double sum[SEGLOSS_BLOCK];
    ALIGNED REAL q[SEGLOSS_BLOCK];
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* target = FN(read_target)(v, first, n);
        ALIGNED REAL part[SEGLOSS_BLOCK] = {0};
        for (int c = 0; c < n; ++c) {
            FN(probability_weights)(a, first + c, target + c * SEGLOSS_BLOCK, q);
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                part[i] += q[i];
            }
        }
        FN(add_chunk)(mass, sum, part, first, a->num_classes);
    }
}

/* Gradient in log probabilities: -scale w_y at the label, or -scale q_c. */
static void FN(log_grad)(const struct segloss_cross_entropy* a, VOXELS* v, const REAL* scale, int64_t first, int n,
                         ROWS grad) {
    ALIGNED REAL q[SEGLOSS_BLOCK];
    FN(label_weights)(a, v->label, q);
    const REAL* target = a->target_kind == SEGLOSS_PROBABILITIES ? FN(read_target)(v, first, n) : NULL;
    for (int c = 0; c < n; ++c) {
        if (target) {
            FN(probability_weights)(a, first + c, target + c * SEGLOSS_BLOCK, q);
        }
        const int32_t class = (int32_t)(first + c);
        REAL* restrict g = grad.values + c * grad.stride;
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            g[i] = target || v->label[i] == class ? -scale[i] * q[i] : 0;
        }
    }
}

static void FN(block_grad)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight) {
    ALIGNED REAL buffer[CLASS_CHUNK * SEGLOSS_BLOCK];
    ALIGNED REAL scale[SEGLOSS_BLOCK];
    ALIGNED REAL mass[SEGLOSS_BLOCK];
    LABEL_GRAD label_grad;
    const int has_probabilities = a->target_kind == SEGLOSS_PROBABILITIES;
    FN(read_scale)(a, v, 0, scale);
    if (!a->log_probabilities) {
        FN(find_softmax_again)(v, a, (const REAL*)a->tail + v->block.begin);
        if (has_probabilities) {
            FN(find_mass)(a, v, mass);
        } else {
            FN(start_label_grad)(a, v, total_class_weight, scale, &label_grad);
        }
    }
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const ROWS grad = FN(output_rows)(&a->grad_logits, &v->block, first, buffer);
        if (a->log_probabilities) {
            FN(log_grad)(a, v, scale, first, n, grad);
        } else if (has_probabilities) {
            FN(probability_grad)(a, v, mass, scale, first, n, grad);
        } else {
            FN(write_label_grad)(a, v, &label_grad, first, n, grad);
        }
        FN(write_rows)(grad, buffer, &a->grad_logits, &v->block, first, n);
    }
}

static int64_t FN(cross_entropy_backward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    assert(a->target.data && (a->tail || a->log_probabilities));
    assert(a->grad_loss.data);
    const REAL total_class_weight = FN(total_class_weight)(a);
    VOXELS v;
    memset(v.tail, 0, sizeof v.tail);
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        if (v.any_active) {
            FN(block_grad)(a, &v, total_class_weight);
        } else {
            FN(zero_grad)(a, &v.block);
        }
    }
    return -1;
}
