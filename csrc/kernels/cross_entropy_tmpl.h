/* Cross entropy and its gradient; the formulas are in kernels.h.
 *
 * With m the largest logit of a voxel and tail = sum of exp(x_c - m) over the classes but one largest:
 *   -log p_y  = (m - x_y) + log1p(tail)
 *   p_c       = exp(x_c - m) / (1 + tail)
 *   1 - p_c   = (tail + (1 - exp(x_c - m))) / (1 + tail)
 * Nothing cancels in any of them, so that a confident voxel keeps its digits. */

#define VOXELS struct FN(voxels)

/* One block on its way through a kernel. */
VOXELS {
    struct block block;
    ALIGNED int32_t label[SEGLOSS_BLOCK]; /* -1: no label here */
    ALIGNED REAL weight[SEGLOSS_BLOCK];   /* v; 0 where the voxel does not count */
    const REAL* active;                   /* `weight` where some voxel does not count, else NULL */
    int any_active;
    CHUNK logits;
    CHUNK target;
    ALIGNED REAL max[SEGLOSS_BLOCK];
    ALIGNED REAL tail[SEGLOSS_BLOCK];
};

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
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        weight[i] = label[i] < 0 ? 0 : 1;
    }
    if (a->class_weight) {
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            weight[i] = label[i] < 0 ? 0 : ((const REAL*)a->class_weight)[label[i]];
        }
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

/* A voxel counts if it has a label and a weight; else both say that it does not. Returns how many do. */
static int FN(keep_active)(int32_t* restrict label, REAL* restrict weight) {
    int num_active = 0;
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const int active = (label[i] >= 0) & (weight[i] != 0);
        label[i] = active ? label[i] : -1;
        weight[i] = active ? weight[i] : 0;
        num_active += active;
    }
    return num_active;
}

/* Reads what decides whether a voxel counts. Returns -1 or the lane of the first bad label. */
static int FN(read_voxels)(VOXELS* v, const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    v->block = block_at(&a->positions, begin, end);
    v->logits.tensor = &a->logits;
    v->target.tensor = &a->target;
    v->logits.first_class = v->target.first_class = -1;
    FN(read_lanes)(v->weight, &a->voxel_weight, &v->block, 1);
    int bad = -1;
    if (a->target_is_probabilities) {
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            v->label[i] = i < v->block.count ? 0 : -1;
        }
    } else {
        bad = read_labels(v->label, &a->target, &v->block, a->num_classes, a->ignore_index);
    }
    const int num_active = FN(keep_active)(v->label, v->weight);
    v->any_active = num_active > 0;
    v->active = num_active < SEGLOSS_BLOCK ? v->weight : NULL;
    return bad;
}

static const REAL* FN(read_logits)(VOXELS* v, int64_t first_class, int num_classes) {
    return FN(read_chunk)(&v->logits, &v->block, v->active, first_class, num_classes);
}

static const REAL* FN(read_probabilities)(VOXELS* v, int64_t first_class, int num_classes) {
    return FN(read_chunk)(&v->target, &v->block, v->active, first_class, num_classes);
}

static void FN(max_of_chunk)(const REAL* restrict logits, int num_classes, REAL* restrict max) {
    for (int c = 0; c < num_classes; ++c) {
        const REAL* x = logits + c * SEGLOSS_BLOCK;
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            max[i] = x[i] > max[i] ? x[i] : max[i];
        }
    }
}

/* From the lowest finite number on: all logits -inf leave exp(x - max) = 0 instead of nan in here. */
static void FN(find_max)(VOXELS* v, int64_t num_classes) {
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        v->max[i] = REAL_LOWEST;
    }
    for (int64_t c = 0; c < num_classes; c += CLASS_CHUNK) {
        const int n = FN(chunk_length)(c, num_classes);
        FN(max_of_chunk)(FN(read_logits)(v, c, n), n, v->max);
    }
}

/* Adds a chunk's exp(x_c - max) to `others`, but counts the classes that equal max in `largest`. */
static void FN(tail_of_chunk)(const REAL* restrict logits, int num_classes, const REAL* restrict max,
                              REAL* restrict others, REAL* restrict largest) {
    for (int c = 0; c < num_classes; ++c) {
        const REAL* x = logits + c * SEGLOSS_BLOCK;
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            const int is_largest = x[i] == max[i];
            others[i] += FN(exp_nonpositive)(is_largest ? -(REAL)INFINITY : x[i] - max[i]);
            largest[i] += is_largest ? (REAL)1 : (REAL)0;
        }
    }
}

/* Sums over many classes are taken per chunk in REAL and over the chunks in double. */
static void FN(add_chunk)(double* restrict sum, const REAL* restrict part) {
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        sum[i] += (double)part[i];
    }
}

/* The tail; nan where the softmax is (a logit nan or +inf, or all of them -inf). */
static void FN(find_tail)(VOXELS* v, int64_t num_classes) {
    ALIGNED double sum[SEGLOSS_BLOCK] = {0};
    ALIGNED REAL largest[SEGLOSS_BLOCK] = {0};
    for (int64_t c = 0; c < num_classes; c += CLASS_CHUNK) {
        const int n = FN(chunk_length)(c, num_classes);
        ALIGNED REAL others[SEGLOSS_BLOCK] = {0};
        FN(tail_of_chunk)(FN(read_logits)(v, c, n), n, v->max, others, largest);
        FN(add_chunk)(sum, others);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL tail = (REAL)(sum[i] + ((double)largest[i] - 1)) + (v->max[i] - v->max[i]);
        v->tail[i] = tail < 0 ? (REAL)NAN : tail;
    }
}

/* x_y of each lane. */
static void FN(pick_from_chunk)(const REAL* restrict logits, int64_t first_class, int num_classes,
                                const int32_t* restrict label, REAL* restrict picked) {
    for (int c = 0; c < num_classes; ++c) {
        const REAL* x = logits + c * SEGLOSS_BLOCK;
        const int32_t class = (int32_t)(first_class + c);
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            picked[i] = label[i] == class ? x[i] : picked[i];
        }
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

/* Losses of labels, and each voxel's share of the denominator, v * w_y. */
static void FN(label_losses)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight, REAL* loss,
                             REAL* weight) {
    const REAL smoothing = (REAL)a->label_smoothing;
    const REAL uniform = (REAL)(a->label_smoothing / (double)a->num_classes);
    ALIGNED REAL picked[SEGLOSS_BLOCK] = {0};
    ALIGNED double spread[SEGLOSS_BLOCK] = {0};
    ALIGNED REAL label_weight[SEGLOSS_BLOCK];
    FN(label_weights)(a, v->label, label_weight);
    for (int64_t c = 0; c < a->num_classes; c += CLASS_CHUNK) {
        const int n = FN(chunk_length)(c, a->num_classes);
        const REAL* logits = FN(read_logits)(v, c, n);
        FN(pick_from_chunk)(logits, c, n, v->label, picked);
        if (smoothing != 0) {
            const REAL* w = a->class_weight ? (const REAL*)a->class_weight + c : NULL;
            ALIGNED REAL part[SEGLOSS_BLOCK] = {0};
            FN(spread_of_chunk)(logits, n, w, v->max, part);
            FN(add_chunk)(spread, part);
        }
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL log_sum = FN(log1p)(v->tail[i]);
        const REAL factor = (1 - smoothing) * label_weight[i];
        const REAL sharp = factor == 0 ? 0 * v->tail[i] : factor * ((v->max[i] - picked[i]) + log_sum);
        const REAL smooth = uniform * ((REAL)spread[i] + total_class_weight * log_sum);
        loss[i] = v->weight[i] * (sharp + smooth);
        weight[i] = v->weight[i] * label_weight[i];
    }
}

/* Losses of probabilities; each voxel's share of the denominator is v. */
static void FN(probability_losses)(const struct segloss_cross_entropy* a, VOXELS* v, REAL* loss, REAL* weight) {
    ALIGNED double spread[SEGLOSS_BLOCK] = {0};
    ALIGNED double mass[SEGLOSS_BLOCK] = {0};
    ALIGNED REAL q[SEGLOSS_BLOCK];
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* logits = FN(read_logits)(v, first, n);
        const REAL* target = FN(read_probabilities)(v, first, n);
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
        FN(add_chunk)(spread, chunk_spread);
        FN(add_chunk)(mass, chunk_mass);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        loss[i] = v->weight[i] * ((REAL)spread[i] + (REAL)mass[i] * FN(log1p)(v->tail[i]));
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

static void FN(block_losses)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight, REAL* loss,
                             REAL* weight) {
    if (a->log_probabilities) {
        memset(v->max, 0, sizeof v->max);
        memset(v->tail, 0, sizeof v->tail);
    } else {
        FN(find_max)(v, a->num_classes);
        FN(find_tail)(v, a->num_classes);
        memcpy((REAL*)a->tail + v->block.begin, v->tail, (size_t)v->block.count * sizeof(REAL));
    }
    if (a->target_is_probabilities) {
        FN(probability_losses)(a, v, loss, weight);
    } else if (a->log_probabilities) {
        FN(label_log_losses)(a, v, loss, weight);
    } else {
        FN(label_losses)(a, v, total_class_weight, loss, weight);
    }
}

/* Eight running sums in double: the order of additions is fixed, and they vectorise. */
static void FN(add_lanes)(double* sums, const REAL* values) {
    for (int i = 0; i < SEGLOSS_BLOCK; i += 8) {
        for (int k = 0; k < 8; ++k) {
            sums[k] += (double)values[i + k];
        }
    }
}

static int64_t FN(cross_entropy_forward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end,
                                         struct segloss_sums* sums) {
    assert_range(&a->positions, begin, end);
    assert(a->target.data && (a->tail || a->log_probabilities));
    assert(!a->log_probabilities || a->label_smoothing == 0);
    const REAL total_class_weight = FN(total_class_weight)(a);
    double loss_sums[8] = {0}, weight_sums[8] = {0};
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        ALIGNED REAL loss[SEGLOSS_BLOCK] = {0};
        ALIGNED REAL weight[SEGLOSS_BLOCK] = {0};
        if (v.any_active) {
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
    *sums = (struct segloss_sums){0, 0};
    for (int k = 0; k < 8; ++k) {
        sums->loss += loss_sums[k];
        sums->weight += weight_sums[k];
    }
    return -1;
}

/* What multiplies every lane of the gradient: grad_loss * grad_scale * v. */
static void FN(read_scale)(const struct segloss_cross_entropy* a, const VOXELS* v, REAL* scale) {
    FN(read_lanes)(scale, &a->grad_loss, &v->block, 0);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        scale[i] = v->weight[i] == 0 ? 0 : scale[i] * (REAL)a->grad_scale * v->weight[i];
    }
}

/* grad_c = f (p_c - [c = y]) + u (W p_c - w_c), with f = scale (1 - s) w_y and u = scale s / C. */
static void FN(label_grad)(const struct segloss_cross_entropy* a, VOXELS* v, REAL total_class_weight, const REAL* scale,
                           int64_t first, int n, ROWS grad) {
    const REAL smoothing = (REAL)a->label_smoothing;
    const REAL uniform = (REAL)(a->label_smoothing / (double)a->num_classes);
    const REAL* logits = FN(read_logits)(v, first, n);
    ALIGNED REAL label_weight[SEGLOSS_BLOCK], sharp[SEGLOSS_BLOCK], flat[SEGLOSS_BLOCK], level[SEGLOSS_BLOCK];
    FN(label_weights)(a, v->label, label_weight);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL largest_p = 1 / (1 + v->tail[i]);
        sharp[i] = scale[i] * (1 - smoothing) * label_weight[i] * largest_p;
        level[i] = scale[i] * uniform;
        flat[i] = level[i] * total_class_weight * largest_p;
    }
    for (int c = 0; c < n; ++c) {
        const REAL* x = logits + c * SEGLOSS_BLOCK;
        const int32_t class = (int32_t)(first + c);
        const REAL w = smoothing == 0 ? 0 : FN(class_weight)(a, class);
        REAL* restrict g = grad.values + c * grad.stride;
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            const REAL e = FN(exp_nonpositive)(x[i] - v->max[i]);
            const REAL minus_others = (e - 1) - v->tail[i];
            const REAL sharp_part = sharp[i] * (v->label[i] == class ? minus_others : e);
            g[i] = sharp_part + (flat[i] * e - level[i] * w);
        }
    }
}

/* grad_c = scale (Q p_c - q_c), Q = sum_c q_c = `mass`, written as p_c (Q - q_c) - q_c (1 - p_c). */
static void FN(probability_grad)(const struct segloss_cross_entropy* a, VOXELS* v, const REAL* mass, const REAL* scale,
                                 int64_t first, int n, ROWS grad) {
    const REAL* logits = FN(read_logits)(v, first, n);
    const REAL* target = FN(read_probabilities)(v, first, n);
    ALIGNED REAL q[SEGLOSS_BLOCK];
    for (int c = 0; c < n; ++c) {
        const REAL* x = logits + c * SEGLOSS_BLOCK;
        REAL* restrict g = grad.values + c * grad.stride;
        FN(probability_weights)(a, first + c, target + c * SEGLOSS_BLOCK, q);
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            const REAL e = FN(exp_nonpositive)(x[i] - v->max[i]);
            const REAL others = (1 - e) + v->tail[i];
            g[i] = scale[i] / (1 + v->tail[i]) * (e * (mass[i] - q[i]) - q[i] * others);
        }
    }
}

static void FN(find_mass)(const struct segloss_cross_entropy* a, VOXELS* v, REAL* mass) {
    ALIGNED double sum[SEGLOSS_BLOCK] = {0};
    ALIGNED REAL q[SEGLOSS_BLOCK];
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const REAL* target = FN(read_probabilities)(v, first, n);
        ALIGNED REAL part[SEGLOSS_BLOCK] = {0};
        for (int c = 0; c < n; ++c) {
            FN(probability_weights)(a, first + c, target + c * SEGLOSS_BLOCK, q);
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                part[i] += q[i];
            }
        }
        FN(add_chunk)(sum, part);
    }
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        mass[i] = (REAL)sum[i];
    }
}

/* Gradient in log probabilities: -scale w_y at the label, or -scale q_c. */
static void FN(log_grad)(const struct segloss_cross_entropy* a, VOXELS* v, const REAL* scale, int64_t first, int n,
                         ROWS grad) {
    ALIGNED REAL q[SEGLOSS_BLOCK];
    FN(label_weights)(a, v->label, q);
    const REAL* target = a->target_is_probabilities ? FN(read_probabilities)(v, first, n) : NULL;
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
    ALIGNED REAL mass[SEGLOSS_BLOCK] = {0};
    FN(read_scale)(a, v, scale);
    if (!a->log_probabilities) {
        FN(find_max)(v, a->num_classes);
        memcpy(v->tail, (const REAL*)a->tail + v->block.begin, (size_t)v->block.count * sizeof(REAL));
        if (a->target_is_probabilities) {
            FN(find_mass)(a, v, mass);
        }
    }
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const ROWS grad = FN(output_rows)(&a->grad_logits, &v->block, first, buffer);
        if (a->log_probabilities) {
            FN(log_grad)(a, v, scale, first, n, grad);
        } else if (a->target_is_probabilities) {
            FN(probability_grad)(a, v, mass, scale, first, n, grad);
        } else {
            FN(label_grad)(a, v, total_class_weight, scale, first, n, grad);
        }
        if (grad.values == buffer) {
            FN(write_classes)(buffer, &a->grad_logits, &v->block, first, n);
        }
    }
}

/* A block without a voxel that counts: its logits need not be read. */
static void FN(zero_grad)(const struct segloss_cross_entropy* a, const struct block* b) {
    ALIGNED const REAL zeros[SEGLOSS_BLOCK] = {0};
    for (int64_t c = 0; c < a->num_classes; ++c) {
        FN(write_classes)(zeros, &a->grad_logits, b, c, 1);
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
