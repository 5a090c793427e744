/* Sigmoids of a block, and the binary cross entropy, focal too, of every class by itself.
 *
 * With e = exp(-|x|), p = sigmoid(x):
 *   -log p        = max(-x, 0) + log1p(e)
 *   -log (1 - p)  = max(x, 0) + log1p(e)
 * and the smaller one of p and 1 - p is e / (1 + e): nothing cancels. */

static inline REAL FN(exp_minus_abs)(REAL x) { return FN(exp_nonpositive)(x > 0 ? -x : x); }

/* x = -inf stays e = 0, p = 0. */
static inline REAL FN(sigmoid)(REAL x, REAL e) { return (x >= 0 ? 1 : e) / (1 + e); }

/* p_c of a chunk, to be used before the next one is asked for: sigmoids, or the input itself. */
static REAL* FN(probabilities)(VOXELS* v, enum segloss_activation activation, int64_t first_class, int num_classes) {
    REAL* restrict p = v->activations.values;
    if (v->activations.first_class != first_class) {
        v->activations.first_class = first_class;
        const REAL* restrict x = FN(read_input)(v, first_class, num_classes);
        if (activation == SEGLOSS_IDENTITY) {
            memcpy(p, x, (size_t)num_classes * SEGLOSS_BLOCK * sizeof *p);
        }
        for (int k = 0; activation == SEGLOSS_SIGMOID && k < num_classes * SEGLOSS_BLOCK; ++k) {
            p[k] = FN(sigmoid)(x[k], FN(exp_minus_abs)(x[k]));
        }
    }
    return p;
}

/* The target of one class: of the chunk that was read, or made of the labels in `buffer`. */
static const REAL* FN(target_row)(VOXELS* v, const struct segloss_cross_entropy* a, int64_t first, int n, int c,
                                  REAL* restrict buffer) {
    if (a->target_kind != SEGLOSS_LABELS) {
        return FN(read_target)(v, first, n) + c * SEGLOSS_BLOCK;
    }
    const int32_t class = (int32_t)(first + c);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        buffer[i] = v->label[i] == class ? 1 : 0;
    }
    return buffer;
}

/* factor * nll, but 0 for a zero factor even at nll = inf. */
static inline REAL FN(weighted)(REAL factor, REAL nll) {
    return factor == 0 && nll == (REAL)INFINITY ? 0 : factor * nll;
}

/* The smoothed target is (1 - s) g + s / 2. */
static inline REAL FN(smoothed)(REAL target, REAL smoothing) { return (1 - smoothing) * target + smoothing / 2; }

/* v times the losses of one class. */
static void FN(binary_losses)(const struct segloss_cross_entropy* a, const VOXELS* v, int64_t class,
                              const REAL* restrict x, const REAL* restrict target, REAL* restrict loss) {
    const REAL smoothing = (REAL)a->label_smoothing, gamma = (REAL)a->gamma;
    const REAL w = FN(class_weight)(a, class);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL g = FN(smoothed)(target[i], smoothing);
        const REAL log_sum = FN(log1p)(FN(exp_minus_abs)(x[i]));
        const REAL minus_log_p = (x[i] < 0 ? -x[i] : 0) + log_sum;
        const REAL minus_log_q = (x[i] > 0 ? x[i] : 0) + log_sum;
        const REAL focal_p = gamma == 0 ? 1 : FN(exp_nonpositive)(-gamma * minus_log_q);
        const REAL focal_q = gamma == 0 ? 1 : FN(exp_nonpositive)(-gamma * minus_log_p);
        const REAL sum = FN(weighted)(g * focal_p, minus_log_p) + FN(weighted)((1 - g) * focal_q, minus_log_q);
        loss[i] = v->weight[i] * FN(weighted)(w, sum);
    }
}

/* The gradient of one class's loss, times scale: with q = 1 - p,
 * h p^gamma (gamma q -log q + p) - g q^gamma (gamma p -log p + q), h = 1 - g. */
static void FN(binary_grad)(const struct segloss_cross_entropy* a, int64_t class, const REAL* restrict x,
                            const REAL* restrict target, const REAL* restrict scale, REAL* restrict grad) {
    const REAL w = FN(class_weight)(a, class);
    const REAL smoothing = (REAL)a->label_smoothing, gamma = (REAL)a->gamma;
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const REAL g = FN(smoothed)(target[i], smoothing);
        const REAL e = FN(exp_minus_abs)(x[i]);
        const REAL p = FN(sigmoid)(x[i], e);
        const REAL q = FN(sigmoid)(-x[i], e);
        REAL slope_p = q, slope_q = p;
        if (gamma != 0) {
            const REAL log_sum = FN(log1p)(e);
            const REAL minus_log_p = (x[i] < 0 ? -x[i] : 0) + log_sum;
            const REAL minus_log_q = (x[i] > 0 ? x[i] : 0) + log_sum;
            slope_p = FN(exp_nonpositive)(-gamma * minus_log_q) * (gamma * FN(weighted)(p, minus_log_p) + q);
            slope_q = FN(exp_nonpositive)(-gamma * minus_log_p) * (gamma * FN(weighted)(q, minus_log_q) + p);
        }
        grad[i] = scale[i] * w * ((1 - g) * slope_q - g * slope_p);
    }
}

/* Every class's losses of a range of positions, each by itself. */
static int64_t FN(binary_forward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    assert(a->target.data && a->loss.data && !a->log_probabilities);
    ALIGNED REAL buffer[CLASS_CHUNK * SEGLOSS_BLOCK], target_buffer[SEGLOSS_BLOCK];
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
            const int n = FN(chunk_length)(first, a->num_classes);
            const ROWS loss = FN(output_rows)(&a->loss, &v.block, first, buffer);
            const REAL* x = FN(read_input)(&v, first, n);
            for (int c = 0; c < n; ++c) {
                const REAL* target = FN(target_row)(&v, a, first, n, c, target_buffer);
                FN(binary_losses)(a, &v, first + c, x + c * SEGLOSS_BLOCK, target, loss.values + c * loss.stride);
            }
            FN(write_rows)(loss, buffer, &a->loss, &v.block, first, n);
        }
    }
    return -1;
}

static int64_t FN(binary_backward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    assert(a->target.data && a->grad_loss.data && !a->log_probabilities);
    ALIGNED REAL buffer[CLASS_CHUNK * SEGLOSS_BLOCK], target_buffer[SEGLOSS_BLOCK], scale[SEGLOSS_BLOCK];
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
            const int n = FN(chunk_length)(first, a->num_classes);
            const ROWS grad = FN(output_rows)(&a->grad_logits, &v.block, first, buffer);
            const REAL* x = FN(read_input)(&v, first, n);
            for (int c = 0; c < n; ++c) {
                const REAL* target = FN(target_row)(&v, a, first, n, c, target_buffer);
                FN(read_scale)(a, &v, first + c, scale);
                FN(binary_grad)(a, first + c, x + c * SEGLOSS_BLOCK, target, scale, grad.values + c * grad.stride);
            }
            FN(write_rows)(grad, buffer, &a->grad_logits, &v.block, first, n);
        }
    }
    return -1;
}
